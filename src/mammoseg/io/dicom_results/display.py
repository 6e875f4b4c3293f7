"""How the source image is shown: the transforms that `read_dicom` used for it, as a presentation state can say them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
from pydicom.uid import ExplicitVRBigEndian

from mammoseg.errors import DecodeError
from mammoseg.io import dicom_attributes as attributes
from mammoseg.io.dicom import open_dataset, padding_of, used_bits
from mammoseg.io.dicom_codec import stored_values
from mammoseg.io.dicom_results.source import SourceImage
from mammoseg.io.grayscale import Grayscale, Lut, Window, full_range, table_of


@dataclass(frozen=True, eq=False)
class Display:
    """grayscale: with the VOI transform that was used, which is never missing."""

    grayscale: Grayscale
    voi: Window | Lut


def display_of(source: SourceImage) -> Display:
    """Reads the pixels again and finds the VOI transform with which the image was shown; the full range as a window where
    the file has none, or a useless one. Raises `DecodeError`.
    """
    size = source.size
    if size is None:
        raise DecodeError("expected Rows and Columns in the DICOM header, got none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = open_dataset(source.path, pixels=True)
        bits, signed = int(ds.BitsStored), attributes.integer(ds, "PixelRepresentation") == 1
        values = used_bits(stored_values(ds, *size), ds, signed)
        padding = padding_of(ds, values, bits, signed)
        endian = ">" if ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
        grayscale = attributes.grayscale(ds, bits, signed, endian)
    lowest, table = table_of(values, grayscale, padding)
    if grayscale.voi is not None:
        stored = np.arange(lowest, lowest + len(table), dtype=np.float64)
        if np.array_equal(table, grayscale.presentation(stored, (0.0, 1.0), grayscale.voi)):
            return Display(grayscale, grayscale.voi)
    if grayscale.modality_lut is not None:
        low, high = 0.0, grayscale.modality_lut.top
    else:
        counted = values if padding is None else values[~padding]
        counts = np.bincount((counted.astype(np.int64) - lowest).ravel(), minlength=len(table)).astype(np.int64)
        shown = full_range(counts, lowest, bits, signed)
        low, high = sorted(float(v) for v in grayscale.modality(np.array(shown)))
    window = Window((low + high) / 2, high - low, "LINEAR_EXACT")
    return Display(replace(grayscale, voi=window), window)


def as_linear(window: Window) -> Window:
    """The same window with the function LINEAR, which every viewer knows; a SIGMOID stays one.

    >>> as_linear(Window(50.0, 100.0, "LINEAR_EXACT"))
    Window(center=50.5, width=101.0, function='LINEAR')
    """
    if window.function != "LINEAR_EXACT":
        return window
    return Window(window.center + 0.5, window.width + 1.0, "LINEAR")
