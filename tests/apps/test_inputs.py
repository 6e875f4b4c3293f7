"""Which files are taken, what they are called, where their results go."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest

from mammoseg.apps.boxes import read_boxes, to_detections
from mammoseg.apps.inputs import collect, result_folders
from mammoseg.apps.out_folder import is_below, refuse_mixing
from mammoseg.errors import DecodeError, NotAnImageError, UsageError


def _png(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((4, 4), np.uint8))
    return path


@pytest.mark.parametrize(
    ("sources", "folders"),
    [
        (["a.dcm", "b.png"], ["a", "b"]),
        (["x/a.png", "y/b.png"], ["a", "b"]),
        (["x/a.png", "y/a.png", "b.png"], ["x/a", "y/a", "b"]),
        (["a.dcm", "a.png"], ["a.dcm", "a.png"]),
        (["x/a.dcm", "x/a.png", "y/a.png"], ["x/a.dcm", "x/a.png", "y/a"]),
        (["1.2.840.5", "1.2.840.6"], ["1.2.840.5", "1.2.840.6"]),  # what follows a dot is no extension here
        (["a.PNG", "A.dcm"], ["a.PNG", "A.dcm"]),
        (["a/x.png", "A/x.png"], ["a/x.png_1", "A/x.png_2"]),  # some file systems take these for one
        (["index.html.dcm", "b.png"], ["index.html.dcm", "b"]),
        ([".png.png"], [".png"]),
        (["..png", "...png"], ["..png", "...png"]),  # their stems are . and ..
        (["x.png", "x/mask.png", "x/mask.tif"], ["x", "x/mask.png_", "x/mask.tif"]),  # x/mask.png is a file of x.png
        (["run.json/a.png", "b/a.png"], ["run.json_/a", "b/a"]),
        (["run.json"], ["run.json_"]),
    ],
)
def test_result_folders(sources: list[str], folders: list[str]) -> None:
    assert result_folders(sources) == folders
    assert len({f.casefold() for f in folders}) == len(folders)


def test_folders_are_recursed_and_what_is_no_image_is_skipped(tmp_path: Path) -> None:
    _png(tmp_path / "in/b.png"), _png(tmp_path / "in/sub/a.png"), _png(tmp_path / "in/.hidden/c.png")
    _png(tmp_path / "in/out/mask.png")
    (tmp_path / "in/notes.txt").write_text("some words")
    found = collect([tmp_path / "in"], exclude=tmp_path / "in/out")
    assert [(i.source, i.folder) for i in found.images] == [("b.png", "b"), ("sub/a.png", "a")]
    assert found.skipped == ("notes.txt",)


def test_equal_names_from_several_places_stay_apart_and_a_file_named_twice_is_one(tmp_path: Path) -> None:
    a, b = _png(tmp_path / "a/x.png"), _png(tmp_path / "b/x.png")
    found = collect([a, b, tmp_path / "a"])
    assert [(i.source, i.folder) for i in found.images] == [("a/x.png", "a/x"), ("b/x.png", "b/x")]


def test_what_is_named_must_be_there_and_be_an_image(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        collect([tmp_path / "nothing.png"])
    (tmp_path / "notes.txt").write_text("some words")
    with pytest.raises(NotAnImageError, match=r"notes\.txt"):
        collect([tmp_path / "notes.txt"])
    with pytest.raises(UsageError, match=r"no images found .*1 files skipped"):
        collect([tmp_path])


@pytest.mark.parametrize("kind", ["pipe", "loop"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    odd = tmp_path / "odd.png"
    os.mkfifo(odd) if kind == "pipe" else odd.symlink_to("odd.png")
    with pytest.raises(UsageError, match="pipe or device" if kind == "pipe" else "no such file"):
        collect([odd])
    refuse_mixing(tmp_path / "out", [odd])


def test_links_and_folders_that_cannot_be_read_are_not_passed_over_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _png(tmp_path / "in/a.png"), _png(tmp_path / "in/closed/b.png"), _png(tmp_path / "elsewhere/c.png")
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/gone.png").symlink_to("nowhere.png")
    scan = os.scandir

    def scandir(path: str) -> Any:  # the tests may run as root, who can read everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = collect([tmp_path / "in"])
    assert [i.source for i in found.images] == ["a.png", "gone.png"]  # the second fails with its reason when it is read
    assert (found.unread, found.linked) == (("closed",), ("linked",))
    (tmp_path / "in/a.png").unlink(), (tmp_path / "in/gone.png").unlink()
    with pytest.raises(UsageError, match=r"no images found in .*1 folder could not be read \(closed\).*not followed"):
        collect([tmp_path / "in"])


def _coco(path: Path, *names: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": [{"id": k, "file_name": n} for k, n in enumerate(names)]}))
    return path


def test_results_of_a_coco_file_never_lie_outside_out(tmp_path: Path) -> None:
    absolute = str(tmp_path / "images/b/x.png")
    coco = _coco(tmp_path / "labels/a.json", "../images/a/x.png", "../images/./c/../b/x.png", "../../../y.png", "in/z.png")
    found = collect([coco])
    assert len(found.images) == 4
    assert all(is_below(i.folder) and ".." not in i.source and not i.source.startswith("/") for i in found.images)
    assert {i.folder for i in found.images} >= {"y", "z"}
    alone = collect([_coco(tmp_path / "labels/b.json", absolute, "in/z.png")])
    assert [(i.source, i.folder) for i in alone.images] == [("x.png", "x"), ("in/z.png", "z")]


def test_a_coco_file_needs_no_more_than_file_names_and_may_hold_a_question_mark_in_its_path(tmp_path: Path) -> None:
    coco = _coco(tmp_path / "what?" / "a.json", "there.png", "missing.png")
    _png(tmp_path / "what?/there.png")
    assert [i.source for i in collect([coco]).images] == ["there.png", "missing.png"]


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"images": 3}', '{"images": [{"id": 1}]}', '{"images": [{"file_name": 5}]}', "\xff"]
)
def test_a_json_file_that_is_no_coco_is_wrong_usage(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"a\.json: expected"):
        collect([tmp_path / "a.json"])


@pytest.mark.parametrize("name", ["", "a\0b.png", "\ud800.png"])
def test_a_file_name_that_no_file_can_have_is_wrong_usage(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="expected the relative path of an image"):
        collect([_coco(tmp_path / "a.json", name)])


def test_names_that_are_no_utf8_are_spelled_out(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9" + b"\xff" * 100
    os.mkdir(raw)
    _png(tmp_path / "plain.png").rename(os.fsdecode(raw + b"/b\xe9" + b"\xff" * 90 + b".png"))
    image = collect([tmp_path]).images[0]
    assert image.source.startswith("caf\\xe9\\xff")
    assert image.folder.startswith("b\\xe9\\xff")
    assert len(image.folder.encode()) <= 200  # what is spelled out is longer than file systems take
    (image.source + image.folder).encode()
    assert image.path.is_file()


def test_a_named_dicom_object_without_an_image_is_an_error(tmp_path: Path) -> None:
    report = write_report(tmp_path / "report.dcm")
    with pytest.raises(NotAnImageError, match=r"report\.dcm: .*without one"):
        collect([report])
    assert [i.may_skip for i in collect([tmp_path]).images] == [True]


def write_report(path: Path) -> Path:
    """A DICOM structured report."""
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    ds.Modality = "SR"
    ds.save_as(path, enforce_file_format=True)
    return path


def test_boxes_from_csv_and_coco_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("image,x1,y1,x2,y2,score\na.png,1,2,11.5,22,0.5\nb/c.png,0,0,4,4,\n")
    (tmp_path / "b.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b/c.png"}], "annotations": ['
        '{"image_id": 1, "bbox": [1, 2, 10.5, 20], "score": 0.5}, {"image_id": 2, "bbox": [0, 0, 4, 4]}]}'
    )
    first, second = (read_boxes(tmp_path / name) for name in ("b.csv", "b.json"))
    for given in (first, second):
        boxes, strangers = given.assign(["c.png", "x/a.png", "other.png"])
        assert [None if b is None else b.tolist() for b in boxes] == [[[0, 0, 4, 4, 1]], [[1, 2, 11.5, 22, 0.5]], None]
        assert strangers == []
        assert given.assign(["c.png"])[1] == ["a.png"]
    assert first.sha256 != second.sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,x1,y1\n", "missing: x2, y2"),
        ("image,x1,y1,x2,y2\na,1,2,three,4\n", "line 2: expected numbers"),
        ("image,x1,y1,x2,y2\na,5,2,3,4\n", "line 2: expected x1 < x2"),
        ("image,x1,y1,x2,y2\na,nan,2,3,4\n", "line 2: expected x1 < x2"),
        ('{"images": []}', "expected COCO"),
        ("x1,y1,x2,y2,image\n1,2,3,4\n", "line 2: expected as many values"),
        ("image,x1,y1,x2,y2\na,1,2,3,4,5\n", "line 2: expected as many values"),
        pytest.param("image,x1,y1,x2,y2\n" + "a" * 200_000 + ",1,2,3,4\n", "comma-separated", id="a long field"),
        pytest.param('{"images": ' + "[" * 100_000, "expected COCO", id="deep"),
        pytest.param(
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": [1'
            + "0" * 400
            + ", 1, 1, 1]}]}",
            "expected COCO",
            id="a number too large",
        ),
    ],
)
def test_boxes_that_are_wrong_say_where(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "b").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_boxes(tmp_path / "b")


def test_boxes_that_fit_no_image_or_several(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("image,x1,y1,x2,y2\nx.png,1,2,3,4\n")
    given = read_boxes(tmp_path / "b.csv")
    with pytest.raises(UsageError, match="no image named there"):
        given.assign(["y.png"])
    with pytest.raises(UsageError, match="fits 2 images"):
        given.assign(["a/x.png", "b/x.png"])


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 7, "bbox": [1, 2, 3, 4]}, "annotation 1: expected the id of one of the file's images, got image_id 7"),
        ({"image_id": 1, "bbox": "1234"}, "annotation 1: expected a bbox"),
        ({"image_id": 1, "bbox": [1, 2, 3]}, "annotation 1: expected a bbox"),
        ({"image_id": 1, "bbox": [1, 2, "3", 4]}, "annotation 1: expected a bbox"),
        ({"image_id": 1, "bbox": [1, 2, 3, 4], "score": "high"}, 'and perhaps a score, as numbers, got .*"high"'),
        ({"image_id": 1, "bbox": [1, 2, -3, 4]}, "annotation 1: expected x1 < x2"),
    ],
)
def test_a_coco_annotation_that_is_wrong_is_named(tmp_path: Path, annotation: dict[str, Any], message: str) -> None:
    good = {"image_id": 1, "bbox": [1, 2, 3, 4], "score": None}
    content = {"images": [{"id": 1, "file_name": "x.png"}], "annotations": [good, annotation]}
    (tmp_path / "b.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message):
        read_boxes(tmp_path / "b.json")
    content["annotations"] = [good]
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert read_boxes(tmp_path / "b.json").by_image["x.png"].tolist() == [[1, 2, 4, 6, 1]]


def test_given_boxes_are_cut_to_the_image() -> None:
    found = to_detections(np.array([[-5, -5, 5, 5, 0.4], [90, 90, 120, 120, 1.0]]), (100, 100))
    assert found.boxes.tolist() == [[90, 90, 100, 100], [0, 0, 5, 5]]
    assert found.scores.tolist() == [1.0, 0.4]
    with pytest.raises(DecodeError, match="100 x 80 pixels, got 1 of 2 outside"):
        to_detections(np.array([[-5, -5, 5, 5, 0.4], [0, 200, 10, 210, 1.0]]), (80, 100))
