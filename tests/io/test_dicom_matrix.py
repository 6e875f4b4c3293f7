"""One image in every transfer syntax, photometric interpretation, sign and VOI: equal pixels, and right ones.

The expected values come from the formulas of PS3.3 C.11 written out here in float64, apart from the code under test, and
from `pydicom.pixels.apply_voi_lut` as a second opinion.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from mammoseg.io.load import load_mammogram

VOIS = ["none", "linear", "linear_exact", "sigmoid", "lut"]
CENTER, WIDTH = 1800.0, 2600.0


def breast(bits: int) -> np.ndarray:
    y, x = np.mgrid[:120, :96].astype(np.float64)
    depth = np.clip(1 - (x / 67) ** 2 - ((y - 60) / 54) ** 2, 0, 1)
    noise = np.random.default_rng(3).normal(0, 0.03, (120, 96))
    image = np.sqrt(depth) * (0.75 + 0.2 * np.sin(x / 7) * np.cos(y / 9)) + (depth > 0) * noise
    return np.rint(image.clip(0, 1) * (2**bits - 1)).astype(np.int64)


def voi_elements(voi: str, inverted: bool, bits: int) -> dict[str, Any]:
    """VOI elements in modality units 0 .. 2^bits - 1 (turned over for MONOCHROME1, so that the picture is the same)."""
    top = 2**bits - 1
    scale = 2 ** (bits - 12)
    if voi == "none":
        return {}
    if voi == "lut":
        item = Dataset()
        x = np.arange(top + 1) / top
        curve = np.rint(255 * 16 * x**0.7 + 15 * x).astype(int)
        curve = (4095 - curve)[::-1] if inverted else curve
        item.add_new("LUTDescriptor", "US", [(top + 1) % 65536, 0, 12])
        item.add_new("LUTData", "US", curve.tolist())
        return {"VOILUTSequence": Sequence([item])}
    center, width = CENTER * scale, WIDTH * scale
    if inverted:  # LINEAR is centred on c - 0.5
        center = top - center + (1.0 if voi == "linear" else 0.0)
    return {
        "WindowCenter": [center, 40.0],
        "WindowWidth": [width, 400.0],
        "VOILUTFunction": voi.upper(),
    }


def expected(values: np.ndarray, voi: str, bits: int) -> np.ndarray:
    """The picture by the book, in float64, from modality values of the MONOCHROME2 image."""
    top = 2**bits - 1
    scale = 2 ** (bits - 12)
    x, c, w = values.astype(np.float64), CENTER * scale, WIDTH * scale
    if voi == "none":
        return x / top
    if voi == "lut":
        return np.rint(255 * 16 * (x / top) ** 0.7 + 15 * (x / top)) / 4095
    if voi == "sigmoid":
        return 1 / (1 + np.exp(-4 * (x - c) / w))
    out = np.empty_like(x)
    for index, v in np.ndenumerate(x):
        if voi == "linear":
            y = 0.0 if v <= c - 0.5 - (w - 1) / 2 else 1.0 if v > c - 0.5 + (w - 1) / 2 else (v - (c - 0.5)) / (w - 1) + 0.5
        else:
            y = 0.0 if v <= c - w / 2 else 1.0 if v > c + w / 2 else (v - c) / w + 0.5
        out[index] = y
    return out


@pytest.mark.parametrize("voi", VOIS)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("inverted", [False, True], ids=["mono2", "mono1"])
@pytest.mark.parametrize("bits", [8, 12, 14, 16])
def test_all_lossless_syntaxes_give_the_right_pixels(
    make_dicom: Callable[..., Path], lossless_syntaxes: list[Any], bits: int, inverted: bool, signed: bool, voi: str
) -> None:
    values = breast(bits)
    top, offset = 2**bits - 1, 2 ** (bits - 1) if signed else 0
    stored = (top - values if inverted else values) - offset
    elements = voi_elements(voi, inverted, bits)
    elements |= {"RescaleSlope": 1.0, "RescaleIntercept": float(offset)}
    elements["PhotometricInterpretation"] = "MONOCHROME1" if inverted else "MONOCHROME2"
    truth = expected(values, voi, bits)
    arrays = []
    for syntax in lossless_syntaxes:
        path = make_dicom(stored, bits, signed, syntax, **elements)
        assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
        arrays.append(load_mammogram(path).pixels)
        assert np.array_equal(arrays[-1], arrays[0]), syntax.name
    np.testing.assert_allclose(arrays[0], truth, atol=2e-7, rtol=0)
    if bits > 8:  # nothing was squeezed through 8 bits
        assert len(np.unique(arrays[0])) > 1500


@pytest.mark.parametrize("voi", VOIS[1:])
def test_pydicom_agrees(make_dicom: Callable[..., Path], voi: str) -> None:
    slope, intercept = (1.0, 0.0) if voi == "lut" else (1.5, -100.0)  # pydicom cuts off fractions before a VOI LUT
    elements = voi_elements(voi, False, 12)
    path = make_dicom(breast(12), 12, RescaleSlope=slope, RescaleIntercept=intercept, **elements)
    ds = pydicom.dcmread(path)
    theirs = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds).astype(np.float64)
    if voi == "lut":
        theirs = theirs / 4095
    else:
        low, high = -100.0, 1.5 * 4095 - 100
        theirs = (theirs - low) / (high - low)
    np.testing.assert_allclose(load_mammogram(path).pixels, theirs, atol=1e-6)


@pytest.mark.parametrize("inverted", [False, True])
def test_jpeg_baseline_is_close(make_dicom: Callable[..., Path], inverted: bool) -> None:
    values = breast(8)
    path = make_dicom(
        255 - values if inverted else values,
        8,
        syntax=JPEGBaseline8Bit,
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
    )
    assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    difference = np.abs(load_mammogram(path).pixels - values / 255)
    assert difference.mean() < 0.02
    assert difference.max() < 0.2


def test_modality_lut_comes_before_the_window(make_dicom: Callable[..., Path]) -> None:
    values = breast(12)
    table = np.rint(65535 * (np.arange(4096) / 4095) ** 2).astype(int)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 16])
    item.add_new("LUTData", "US", table.tolist())
    sequence = Sequence([item])
    path = make_dicom(values, ModalityLUTSequence=sequence)
    np.testing.assert_allclose(load_mammogram(path).pixels, table[values] / 65535, atol=1e-7)
    path = make_dicom(
        values, ModalityLUTSequence=sequence, WindowCenter=20000.0, WindowWidth=30000.0, VOILUTFunction="LINEAR_EXACT"
    )
    np.testing.assert_allclose(load_mammogram(path).pixels, np.clip((table[values] - 20000) / 30000 + 0.5, 0, 1), atol=1e-6)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("vr", ["US", "OW"])
def test_voi_lut_as_words_or_bytes_with_an_offset(make_dicom: Callable[..., Path], syntax: Any, vr: str) -> None:
    values = breast(12)
    entries = np.linspace(0, 65535, 2000).astype(np.uint16)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [2000, 1000, 16])
    order = "<" if syntax.is_little_endian else ">"
    item.add_new("LUTData", vr, entries.astype(f"{order}u2").tobytes() if vr == "OW" else entries.tolist())
    path = make_dicom(values, syntax=syntax, VOILUTSequence=Sequence([item]))
    truth = entries[np.clip(values - 1000, 0, 1999)] / 65535
    np.testing.assert_allclose(load_mammogram(path).pixels, truth, atol=1e-7)


def test_voi_lut_of_packed_bytes(make_dicom: Callable[..., Path]) -> None:
    values = breast(8)
    entries = np.rint(255 * (np.arange(256) / 255) ** 0.5).astype(np.uint8)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 8])
    item.add_new("LUTData", "OW", entries.tobytes())
    path = make_dicom(values, 8, VOILUTSequence=Sequence([item]))
    np.testing.assert_allclose(load_mammogram(path).pixels, entries[values] / 255, atol=1e-7)


def test_unused_high_bits_are_no_part_of_the_value(make_dicom: Callable[..., Path]) -> None:
    values = breast(12)
    overlay = np.zeros_like(values)
    overlay[40:60, 40:60] = 1 << 13
    assert np.array_equal(load_mammogram(make_dicom(values | overlay)).pixels, load_mammogram(make_dicom(values)).pixels)
    high = make_dicom(values << 4, HighBit=15)
    assert np.array_equal(load_mammogram(high).pixels, load_mammogram(make_dicom(values)).pixels)


@pytest.mark.parametrize("inverted", [False, True])
def test_pixel_padding_is_background(make_dicom: Callable[..., Path], inverted: bool) -> None:
    values = breast(12) // 2 + 1000
    stored = 4095 - values if inverted else values
    stored[:, 80:] = 3000
    stored[:10, 80:] = 2990
    path = make_dicom(
        stored,
        PixelPaddingValue=3000,
        PixelPaddingRangeLimit=2990,
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
    )
    pixels = load_mammogram(path).pixels
    assert (pixels[:, 80:] == 0).all()
    inside = ~((stored >= 2990) & (stored <= 3000))
    np.testing.assert_allclose(pixels[inside], values[inside] / 4095, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dirty", [False, True])
def test_padding_is_told_by_the_used_bits_alone(make_dicom: Callable[..., Path], bits: int, signed: bool, dirty: bool) -> None:
    """The padding value may be written with either sign, and the bits above those stored may hold anything."""
    values = breast(bits) // 4 + 40
    code = (1 << bits) - 6  # -6 where signed
    stored = values.copy()
    stored[:, 80:] = code - (1 << bits) if signed else code
    if dirty and bits == 12:
        stored = (stored & 0xFFF) | 0x2000
        stored = stored.astype(np.uint16).astype(np.int16) if signed else stored
    path = make_dicom(stored, bits, signed, PixelPaddingValue=code - (1 << bits) if signed else code)
    other = make_dicom(stored, bits, signed, name="b.dcm", PixelPaddingValue=code)
    for pixels in (load_mammogram(path).pixels, load_mammogram(other).pixels):
        assert (pixels[:, 80:] == 0).all()
        assert (pixels[:, :80] > 0).all()
