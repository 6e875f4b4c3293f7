"""A maker of DICOM files for the tests: one synthetic mammogram in any transfer syntax and grey-value description."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

GDCM_SYNTAXES = {
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    JPEGBaseline8Bit: gdcm.TransferSyntax.JPEGBaselineProcess1,
}
PYDICOM_SYNTAXES = (RLELossless, JPEGLSLossless, JPEG2000Lossless)


def synthetic(bits: int = 12, size: tuple[int, int] = (120, 96)) -> np.ndarray:
    """A smooth half ellipse with noise on black, uint16[H, W] using all of `bits`."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    depth = np.clip(1 - (x / (0.7 * size[1])) ** 2 - ((y - size[0] / 2) / (0.45 * size[0])) ** 2, 0, 1)
    image = np.sqrt(depth) * (0.75 + 0.2 * np.sin(x / 7) * np.cos(y / 9)) + (depth > 0) * rng.normal(0, 0.03, size)
    return np.rint(image.clip(0, 1) * (2**bits - 1)).astype(np.uint16)


def dataset(pixels: np.ndarray, bits: int, signed: bool = False, **elements: Any) -> Dataset:
    """A valid-enough MG data set around stored values [H, W], Explicit VR Little Endian."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    ds.SOPInstanceUID = generate_uid(entropy_srcs=["mammoseg test"])
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.Modality = "MG"
    ds.PatientName = "Secret^Patient"
    ds.PatientID = "SECRET-ID"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = 8 if bits <= 8 else 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(signed)
    for keyword, value in elements.items():
        if value is None:
            if keyword in ds:
                delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    kind = {(8, False): np.uint8, (8, True): np.int8, (16, False): np.uint16, (16, True): np.int16}[ds.BitsAllocated, signed]
    data = pixels.astype(kind).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    return ds


def save(ds: Dataset, path: Path, syntax: Any = ExplicitVRLittleEndian) -> Path:
    """Writes `ds` in a transfer syntax; raises where the encoder cannot."""
    if syntax in GDCM_SYNTAXES:
        plain = path.with_suffix(".plain")
        ds.save_as(plain, enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(plain))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(GDCM_SYNTAXES[syntax]))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        plain.unlink()
        return path
    if syntax in PYDICOM_SYNTAXES:
        ds.compress(syntax, generate_instance_uid=False)
    else:
        if not syntax.is_little_endian and ds.BitsAllocated == 16:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    return path


@pytest.fixture(scope="session")
def lossless_syntaxes() -> list[Any]:
    """Every lossless transfer syntax that `save` writes."""
    plain = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
    return [*plain, RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless]


@pytest.fixture
def make_dicom(tmp_path: Path) -> Callable[..., Path]:
    """`make_dicom(pixels=None, bits=12, signed=False, syntax=..., name="a.dcm", **elements)` writes a file."""

    def make(
        pixels: np.ndarray | None = None,
        bits: int = 12,
        signed: bool = False,
        syntax: Any = ExplicitVRLittleEndian,
        name: str = "a.dcm",
        **elements: Any,
    ) -> Path:
        return save(dataset(synthetic(bits) if pixels is None else pixels, bits, signed, **elements), tmp_path / name, syntax)

    return make
