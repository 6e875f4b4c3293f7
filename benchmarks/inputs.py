"""The mammograms that are timed: phantoms with two masses, as 12-bit DICOM in three transfer syntaxes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gdcm
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import JPEG2000Lossless

from mammoseg.datasets.phantom import PhantomConfig, PhantomView, make_exam
from mammoseg.datasets.phantom_files import to_dicom
from mammoseg.io.load import load_array
from mammoseg.types import Mammogram, Size

SIZES: tuple[Size, ...] = ((3328, 2560), (4084, 3328))
SYNTAXES = ("uncompressed", "jpeg_lossless", "jpeg2000")


@dataclass(frozen=True)
class TwoMasses:
    """Where the two masses of every timed image are, as parts of its width and height (`xyxy`)."""

    boxes: tuple[tuple[float, float, float, float], ...] = ((0.16, 0.30, 0.25, 0.37), (0.22, 0.55, 0.30, 0.61))

    def in_image(self, size: Size) -> NDArray[np.float64]:
        """The boxes f64[2, 4] in pixels of an image of `size` (H, W)."""
        return np.array(self.boxes) * (size[1], size[0], size[1], size[0])


@cache
def phantom(size: Size) -> PhantomView:
    """A left oblique view of `size` (H, W)."""
    return make_exam(3, PhantomConfig(size=size, masses=(2, 2), normal_fraction=0.0))[3]


def mammogram(size: Size) -> Mammogram:
    """A phantom as decoding gives it."""
    view = phantom(size)
    return load_array((view.pixels << 4).astype(np.uint16), view.spacing_mm)


def write_dicom(folder: Path, size: Size, syntax: str) -> Path:
    """The phantom of `size` as a DICOM file of one of `SYNTAXES`; written once."""
    path = folder / f"{size[1]}x{size[0]}_{syntax}.dcm"
    if path.exists():
        return path
    ds = to_dicom(phantom(size), "BENCH")
    if syntax == "jpeg2000":
        ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    plain = folder / f".{path.name}"
    ds.save_as(plain, enforce_file_format=True)
    if syntax == "jpeg_lossless":
        _to_jpeg_lossless(plain)
    plain.replace(path)
    return path


def _to_jpeg_lossless(path: Path) -> None:
    reader, writer, change = gdcm.ImageReader(), gdcm.ImageWriter(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(path))
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    if not reader.Read():
        raise RuntimeError(f"{path.name} cannot be read")
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise RuntimeError(f"{path.name} cannot be compressed")
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise RuntimeError(f"{path.name} cannot be written")
