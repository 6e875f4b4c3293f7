"""The scan of received data sets, against pydicom; whatever is in them."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from typing import Any

import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from mammoseg.apps.node.scan import MAX_DEPTH, Header, ScanError, scan

LIMIT = 1 << 24
NATIVE = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian]


def nested(ds: Dataset, levels: int, undefined: bool) -> Dataset:
    """With a sequence in a sequence, `levels` deep; identifiers inside must not be taken for the image's."""
    inner = Dataset()
    inner.StudyInstanceUID, inner.SOPInstanceUID, inner.Rows = "9.9.9", "9.9.8", 7
    for _ in range(levels):
        outer = Dataset()
        outer.ReferencedSeriesSequence = Sequence([inner, Dataset()])
        outer["ReferencedSeriesSequence"].is_undefined_length = undefined
        inner.is_undefined_length_sequence_item = undefined
        inner = outer
    for element in inner:
        ds.add(element)
    return ds


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda s: s.keyword)
@pytest.mark.parametrize("undefined", [False, True])
def test_it_finds_what_pydicom_finds(tools: Any, syntax: uid.UID, undefined: bool) -> None:
    ds = nested(tools.mammogram(NumberOfFrames=1, Manufacturer="maker"), 5, undefined)
    ds.file_meta.TransferSyntaxUID = syntax
    found = scan(memoryview(tools.encoded(ds)), syntax, LIMIT)
    assert found == Header(
        sop_class_uid=ds.SOPClassUID,
        sop_instance_uid=ds.SOPInstanceUID,
        study_uid=ds.StudyInstanceUID,
        series_uid=ds.SeriesInstanceUID,
        manufacturer="maker",
        samples=1,
        frames="1",
        rows=96,
        columns=80,
        bits_allocated=16,
        has_pixels=True,
        pixel_bytes=96 * 80 * 2,
    )


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless], ids=lambda s: s.keyword)
def test_encapsulated_pixel_data(tools: Any, syntax: uid.UID) -> None:
    ds = tools.mammogram()
    ds.compress(syntax, generate_instance_uid=False)
    found = scan(memoryview(tools.encoded(ds)), syntax, LIMIT)
    first = next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))
    assert found.codestream is not None
    assert found.codestream.rstrip(b"\0") == first.rstrip(b"\0")
    assert (found.rows, found.columns, found.has_pixels, found.pixel_bytes) == (96, 80, True, 0)


def test_every_cut_is_noticed(tools: Any) -> None:
    """Cut anywhere but between two elements of the top level, a data set is not whole."""
    ds = nested(tools.mammogram(), 3, True)
    data = tools.encoded(ds)
    bounds, part = {0}, Dataset()
    part.file_meta = ds.file_meta
    for element in ds:
        part.add(element)
        bounds.add(len(tools.encoded(part)))
    places = [*range(0, 1500), *range(len(data) - 300, len(data))]
    unnoticed = []
    for place in places:
        try:
            scan(memoryview(data)[:place], uid.ExplicitVRLittleEndian, LIMIT)
            unnoticed.append(place)
        except ScanError:
            pass
    assert set(unnoticed) == bounds & set(places)


@pytest.mark.parametrize("levels", [MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, 100_000])
@pytest.mark.parametrize("bounded", [False, True])
def test_depth_is_bounded_and_costs_nothing(levels: int, bounded: bool) -> None:
    if bounded and levels > 1000:
        levels = 1000  # building it is quadratic
    data = b""
    if bounded:
        for _ in range(levels):
            item = struct.pack("<HHL", 0xFFFE, 0xE000, len(data)) + data
            data = struct.pack("<HH2sHL", 8, 0x1115, b"SQ", 0, len(item)) + item
    else:
        opened = struct.pack("<HH2sHL", 8, 0x1115, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
        closed = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
        data = opened * levels + closed * levels
    if levels <= MAX_DEPTH:
        assert scan(memoryview(data), uid.ExplicitVRLittleEndian, LIMIT) == Header()
        return
    begun = time.perf_counter()
    with pytest.raises(ScanError, match="nested too deeply"):
        scan(memoryview(data), uid.ExplicitVRLittleEndian, LIMIT)
    assert time.perf_counter() - begun < 5


def test_memory_stays_small_whatever_comes(tools: Any) -> None:
    """Random bytes, and random changes of a whole data set, in all native syntaxes: a result or a `ScanError`, and no more."""
    rng = random.Random(7)
    whole = {}
    for syntax in NATIVE:
        ds = nested(tools.mammogram(), 4, True)
        ds.file_meta.TransferSyntaxUID = syntax
        whole[syntax] = tools.encoded(ds)
    outcomes = {"read": 0, "refused": 0}
    tracemalloc.start()
    try:
        for _ in range(3000):
            syntax = rng.choice(NATIVE)
            data = bytearray(whole[syntax] if rng.random() < 0.9 else rng.randbytes(rng.randrange(2000)))
            for _ in range(rng.choice([1, 1, 2, 5, 20])):
                if data:
                    data[min(int(rng.expovariate(1 / 400)), len(data) - 1)] = rng.choice(
                        [0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)]
                    )
            try:
                scan(memoryview(data), syntax, LIMIT)
                outcomes["read"] += 1
            except ScanError:
                outcomes["refused"] += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert min(outcomes.values()) > 300, outcomes
    assert peak < 64 << 20, peak
