"""Findings to JSON and back, and what the schema refuses."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mammoseg.errors import DatasetError
from mammoseg.geometry import mask_box
from mammoseg.io.findings_json import (
    findings_from_json,
    findings_to_bytes,
    findings_to_json,
    read_findings,
    schema,
    write_atomic,
    write_findings,
)
from mammoseg.io.pictures import label_image, write_mask_png
from mammoseg.types import Detections, Findings, ImageInfo, Lesion

SIZE = (90, 70)
finite = st.floats(0, 1, allow_nan=False, width=64)


@st.composite
def lesions(draw: st.DrawFn, number: int) -> Lesion:
    x1, y1 = draw(st.floats(0, 40)), draw(st.floats(0, 50))
    w, h = draw(st.floats(2, 25)), draw(st.floats(2, 35))
    r, c = int(y1), int(x1)
    mask = np.zeros((max(2, int(h)), max(2, int(w))), dtype=bool)
    mask[draw(st.integers(0, 1)) :, : draw(st.integers(1, mask.shape[1]))] = True
    left, top, right, bottom = (int(v) for v in mask_box(mask))
    mask, r, c = mask[top:bottom, left:right], r + top, c + left
    a, b = c + mask.shape[1], r + mask.shape[0]
    contour = np.array([[c, r], [a, r], [a, b], [c, b]], dtype=np.float64)
    size = draw(st.none() | st.floats(0.1, 100))
    return Lesion(number, (x1, y1, x1 + w, y1 + h), draw(finite), mask, (r, c), contour, size, size, size)


@st.composite
def findings(draw: st.DrawFn) -> Findings:
    text = st.text(max_size=20)
    info = ImageInfo(
        draw(text), *SIZE, draw(st.none() | st.just((0.07, 0.0941234567891234))), draw(st.none() | text),
        draw(st.sampled_from([None, "L", "R"])), draw(st.sampled_from([None, "CC"])), draw(st.none() | st.just("0a" * 32)),
        draw(st.none() | st.booleans()),
    )  # fmt: skip
    found = tuple(draw(lesions(i + 1)) for i in range(draw(st.integers(0, 3))))
    extra = draw(st.lists(finite, max_size=4))
    boxes = [lesion.box for lesion in found] + [(1.00049, 2.0, 3.0, 4.0)] * len(extra)
    scores = [lesion.score for lesion in found] + extra
    candidates = Detections(np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array(scores), SIZE)
    return Findings(info, "processed", None, found, candidates, {"bundle": draw(text), "settings": {"lambda": 0.6}})


@settings(max_examples=60, deadline=None)
@given(findings())
def test_round_trip(f: Findings) -> None:
    data = findings_to_bytes(f)
    assert data == findings_to_bytes(f)
    document = json.loads(data)
    assert document == findings_to_json(f)
    Draft202012Validator(schema()).validate(document)  # the whole document, contours too
    for lesion, candidate in zip(document["lesions"], document["candidates"], strict=False):
        assert (lesion["box_xyxy"], lesion["score"]) == (candidate["box_xyxy"], candidate["score"])
    back = findings_from_json(document)
    assert findings_to_bytes(back) == data
    for a, b in zip(f.lesions, back.lesions, strict=True):
        np.testing.assert_allclose(a.box, b.box, atol=5.1e-4)
        np.testing.assert_allclose(a.contour_xy, b.contour_xy, atol=5.1e-3)
        assert abs(a.score - b.score) <= 5.1e-7
        x1, y1, x2, y2 = (int(v) for v in (a.contour_xy.min(axis=0).tolist() + a.contour_xy.max(axis=0).tolist()))
        assert b.origin_px == (y1, x1)
        assert b.mask.shape == (y2 - y1, x2 - x1)
        assert b.mask.all()


def example(n: int = 2, status: str = "processed") -> Findings:
    if status != "processed":
        return Findings(ImageInfo("a.dcm"), status, "blank image: …", provenance={"v": 1})  # type: ignore[arg-type]
    found = []
    for i in range(n):
        mask = np.tri(20, 20, dtype=bool)
        contour = np.array([[10.0, 10 + i], [30, 30 + i], [10, 30 + i]])
        found.append(Lesion(i + 1, (10.0, 10.0 + i, 30.0, 30.0 + i), 0.9 - 0.1 * i, mask, (10 + i, 10), contour, 4.0, 2.5, 2.0))
    boxes = np.array([x.box for x in found], dtype=np.float64).reshape(-1, 4)
    return Findings(
        ImageInfo("exam/a.dcm", *SIZE, (0.1, 0.1), "PixelSpacing", "L", "CC", "0" * 64, False),
        "processed", None, tuple(found), Detections(boxes, np.array([x.score for x in found]), SIZE), {"bundle": "x"},
    )  # fmt: skip


def test_files_with_and_without_mask(tmp_path: Path) -> None:
    f = example(1)
    write_findings(tmp_path / "findings.json", f)
    assert [p.name for p in tmp_path.iterdir()] == ["findings.json"]
    by_contour = read_findings(tmp_path / "findings.json").lesions[0]
    r, c = by_contour.origin_px
    drawn = np.zeros(SIZE, dtype=bool)
    drawn[r : r + by_contour.mask.shape[0], c : c + by_contour.mask.shape[1]] = by_contour.mask
    assert np.logical_xor(drawn, label_image(f) == 1).sum() <= 20  # pixel centres on the diagonal
    write_mask_png(tmp_path / "mask.png", f)
    by_mask = read_findings(tmp_path / "findings.json").lesions[0]
    assert by_mask.origin_px == (10, 10)
    assert np.array_equal(by_mask.mask, f.lesions[0].mask)
    write_mask_png(tmp_path / "mask.png", Findings(ImageInfo("x", 5, 5), "processed", candidates=Detections.empty((5, 5))))
    with pytest.raises(DatasetError, match="label image"):
        read_findings(tmp_path / "findings.json")


@pytest.mark.parametrize("status", ["rejected", "failed"])
def test_not_processed_is_told_apart_from_nothing_found(tmp_path: Path, status: str) -> None:
    write_findings(tmp_path / "findings.json", example(status=status))
    document = json.loads((tmp_path / "findings.json").read_text(encoding="utf-8"))
    assert document["status"] == status
    assert document["reason"]
    assert document["lesions"] == document["candidates"] == []
    assert document["image"]["height"] is None
    back = read_findings(tmp_path / "findings.json")
    assert (back.status, back.candidates) == (status, None)
    nothing = findings_to_json(example(0))
    assert (nothing["status"], nothing["reason"], nothing["lesions"]) == ("processed", None, [])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), "2.0"),
        (("status",), "done"),
        (("status",), "failed"),
        (("reason",), "why"),
        (("image", "height"), None),
        (("image", "spacing_mm"), [0.1]),
        (("image", "file_sha256"), "abc"),
        (("image", "path"), "/home/x"),
        (("lesions", 0, "score"), 1.5),
        (("lesions", 0, "box_xyxy"), [1, 2, 3]),
        (("lesions", 0, "contour_xy", 2), [1.0, "x"]),
        (("lesions", 0, "contour_xy", 2), [True, 1.0]),
        (("lesions", 0, "id"), 0),
        (("candidates", 0, "label"), "x"),
        (("candidates", 0, "box_xyxy"), [5.0, 5.0, 1.0, 1.0]),
    ],
)
def test_a_wrong_document_is_refused(path: tuple[str | int, ...], value: object) -> None:
    document = json.loads(findings_to_bytes(example()))
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(DatasetError):
        findings_from_json(document)


def test_reading_what_is_no_findings(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no findings"):
        read_findings(tmp_path / "findings.json")
    for text in ("", "{", "[]", "null", "[" * 100_000):
        (tmp_path / "findings.json").write_text(text)
        with pytest.raises(DatasetError):
            read_findings(tmp_path / "findings.json")


def test_not_finite_is_never_written(tmp_path: Path) -> None:
    f = example()
    bad = Findings(f.image, "processed", None, f.lesions, f.candidates, {"x": float("nan")})
    with pytest.raises(DatasetError):
        write_findings(tmp_path / "findings.json", bad)
    assert not list(tmp_path.iterdir())


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.bin'"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_overlap_belongs_to_the_higher_score() -> None:
    f = example(2)
    labels = label_image(f)
    assert labels.dtype == np.uint8
    assert (labels == 1).sum() == f.lesions[0].area_px
    assert 0 < (labels == 2).sum() < f.lesions[1].area_px
