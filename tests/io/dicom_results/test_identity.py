"""Same findings, same bytes; the patient, the study and the source are told as the file tells them; odd headers do no harm."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGLSLossless

from mammoseg.errors import NotAnImageError
from mammoseg.io.dicom_attributes import check_kind, made_by_us
from mammoseg.io.dicom_results import StudyImage, image_result, read_source, study_of, study_result
from mammoseg.io.dicom_results.maker import derived_uid
from mammoseg.io.load import load_mammogram
from mammoseg.types import Findings

KINDS = ("seg", "pr", "sc", "cadsr", "sr")
SIZE = (97, 71)
SPARSE = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ContentDate", "ContentTime",
    "AcquisitionDate", "AcquisitionTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "SeriesNumber",
    "InstanceNumber", "ImageLaterality", "ViewPosition", "ViewCodeSequence", "PatientOrientation", "SpecificCharacterSet",
    "WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept",
)  # fmt: skip
Objects = dict[str, bytes]
Write = Callable[..., Path]
Make = Callable[..., Objects]


@pytest.fixture
def objects(find: Callable[..., Findings]) -> Make:
    """`objects(path, kinds)` makes the results of one image with two lesions."""

    def make(path: Path, kinds: tuple[str, ...] = KINDS) -> Objects:
        source, f = read_source(path), find(path, SIZE, 2, 5)
        assert source is not None
        mammogram = load_mammogram(path) if "sc" in kinds else None
        out = {k: image_result(k, source, f, mammogram) for k in ("seg", "pr", "sc") if k in kinds}  # type: ignore[arg-type]
        study = study_of([StudyImage(source, f)])
        assert study is not None
        return out | {k: study_result(k, study) for k in ("cadsr", "sr") if k in kinds}

    return make


def read(data: bytes) -> Dataset:
    return pydicom.dcmread(BytesIO(data))


def test_equal_input_gives_equal_bytes(write_source: Write, objects: Make, tmp_path: Path) -> None:
    first = objects(write_source(tmp_path / "a.dcm", 1))
    assert objects(tmp_path / "a.dcm") == first
    (tmp_path / "elsewhere").mkdir()
    for k, syntax in enumerate((ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEGLSLossless)):
        again = objects(write_source(tmp_path / f"elsewhere/other name {k}.dcm", 1, syntax=syntax))
        assert again == first, syntax.name


def test_different_content_never_shares_a_uid(write_source: Write, objects: Make, tmp_path: Path) -> None:
    first = objects(write_source(tmp_path / "a.dcm", 1))
    renamed = objects(write_source(tmp_path / "b.dcm", 1, PatientName="Renamed^Patient"))
    uids = [read(data).SOPInstanceUID for data in (*first.values(), *renamed.values())]
    assert len(set(uids)) == 10
    series = [[read(data).SeriesInstanceUID for data in made.values()] for made in (first, renamed)]
    assert series[0] == series[1]
    assert len(set(series[0])) == 5
    for text in uids:
        number = int(text.removeprefix("2.25."))
        assert len(text) == 44
        assert (uuid.UUID(int=number).version, uuid.UUID(int=number).variant) == (8, uuid.RFC_4122)


def test_derived_uids_depend_on_the_split_of_their_parts() -> None:
    assert len({derived_uid("a", "bc"), derived_uid("ab", "c"), derived_uid("abc"), derived_uid("a", "b", "c")}) == 4


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 100", "Äneas^Rüdiger"),
        ("ISO_IR 144", "Люкceмбypг"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        (None, "Plain^Name"),
    ],
)
def test_names_keep_their_bytes_and_character_set(
    write_source: Write, objects: Make, tmp_path: Path, charset: Any, name: str
) -> None:
    more = {"SpecificCharacterSet": charset, "PatientName": name, "PatientID": "ID 7", "StudyDescription": name}
    for k, syntax in enumerate((ImplicitVRLittleEndian, ExplicitVRBigEndian)):
        path = write_source(tmp_path / f"{k}.dcm", 3, syntax=syntax, **more)
        source = pydicom.dcmread(path, stop_before_pixels=True)
        raw = {t: bytes(source.get_item(t).value).strip() for t in ("PatientName", "PatientID", "StudyDescription")}
        for kind, data in objects(path, ("seg", "pr", "cadsr", "sr")).items():
            made = read(data)
            assert {t: bytes(made.get_item(t).value).strip() for t in raw} == raw, kind
            assert str(read(data).PatientName) == str(source.PatientName)
            assert made.get("SpecificCharacterSet") == source.get("SpecificCharacterSet")


def test_a_sparse_header_is_enough(write_source: Write, objects: Make, tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.dcm", 4, **dict.fromkeys(SPARSE))
    for kind, data in objects(path).items():
        made = read(data)
        assert made.PatientName == made.PatientID == made.StudyDate == "", kind
        assert made.InstanceNumber == 1
        assert made.get("ContentDate", made.get("PresentationCreationDate")) == "19700101"


def test_dates_are_those_of_the_source(write_source: Write, objects: Make, tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.dcm", 4, ContentDate="20190203", ContentTime="101112.5", StudyDate="20190202")
    for kind, data in objects(path).items():
        made = read(data)
        shown = ("PresentationCreationDate", "PresentationCreationTime") if kind == "pr" else ("ContentDate", "ContentTime")
        assert (made[shown[0]].value, made[shown[1]].value) == ("20190203", "101112.5")
        assert made.StudyDate == "20190202"
        dates = [str(e.value) for e in made.iterall() if e.VR in ("DA", "DT") and e.value]
        assert all(d.startswith(("20190202", "20190203", "2000")) for d in dates)


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "../../../etc", "1..2", "1.2." + "3" * 64, "1.2/3", ".", "..", "name"])
def test_no_object_without_usable_uids(write_source: Write, tmp_path: Path, keyword: str, value: str | None) -> None:
    path = write_source(tmp_path / "a.dcm", 1)
    ds = pydicom.dcmread(path)
    if value is None:
        delattr(ds, keyword)
    else:
        with pytest.warns() if value else _nothing():
            setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=False)
    assert read_source(path) is None


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_no_object_for_other_files(tmp_path: Path) -> None:
    for name, content in (("a.png", b"\x89PNG\r\n"), ("b.dcm", b""), ("c.dcm", b"\0" * 128 + b"DICM" + b"\xff" * 50)):
        (tmp_path / name).write_bytes(content)
        assert read_source(tmp_path / name) is None
    assert read_source(tmp_path / "none.dcm") is None


@pytest.mark.filterwarnings("ignore")
def test_damaged_headers_give_objects_or_none(write_source: Write, objects: Make, tmp_path: Path) -> None:
    """Whatever stands in the elements beside the pixels' own: a result that can be read back, never an exception."""
    path = write_source(tmp_path / "a.dcm", 1)
    whole = pydicom.dcmread(path)
    rng = np.random.default_rng(8)
    junk = [b"", b"\xff\xfe\x00\x01", b"A" * 70, b"1\\2\\3", b"../../", b"-1e400", b"\x1b$B\x1b(J", b"20191340", b"nan "]
    free = [e.tag for e in whole if e.tag.group in (0x08, 0x10, 0x18, 0x20, 0x40, 0x54)]
    made = 0
    for _ in range(60):
        ds = pydicom.dcmread(path)
        for tag in rng.choice(len(free), 5, replace=False):
            element = ds[free[tag]]
            if rng.random() < 0.3 or element.VR == "SQ":
                del ds[free[tag]]
            else:
                value = junk[rng.integers(len(junk))]
                value += b" " * (len(value) % 2)
                ds[free[tag]] = pydicom.dataelem.RawDataElement(free[tag], element.VR, len(value), value, 0, False, True, True)
        ds.save_as(path.with_name("b.dcm"))
        if read_source(path.with_name("b.dcm")) is not None:
            for data in objects(path.with_name("b.dcm"), ("seg", "pr", "cadsr", "sr")).values():
                assert UID(read(data).SOPInstanceUID).is_valid
            made += 1
    assert made > 20


def test_our_results_are_known_as_ours(write_source: Write, objects: Make, tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.dcm", 1)
    assert not made_by_us(pydicom.dcmread(path))
    for data in objects(path).values():
        assert made_by_us(read(data))
        with pytest.raises(NotAnImageError, match=r"a result of mammoseg itself|an object without one"):
            check_kind(read(data))


def test_no_private_elements_and_the_words_of_research(write_source: Write, objects: Make, tmp_path: Path) -> None:
    made = objects(write_source(tmp_path / "a.dcm", 1))
    for kind, data in made.items():
        ds = read(data)
        assert not any(e.tag.is_private for e in ds.iterall()), kind
        assert (ds.Manufacturer, ds.SoftwareVersions[0], ds.DeviceSerialNumber) == ("mammoseg", "9.8.7", "5e" * 8)
        assert "research" in ds.SeriesDescription
        words = [str(e.value) for e in ds.iterall() if e.VR in ("LO", "ST", "LT", "UT", "SH")]
        for word in words:
            assert "cancer" not in word.lower() or "no probability of cancer" in word
            assert "diagnos" not in word.lower()
        assert any("not for clinical use" in w for w in words), kind


def test_results_differ_in_uid_but_share_tracking(write_source: Write, objects: Make, tmp_path: Path) -> None:
    made = objects(write_source(tmp_path / "a.dcm", 1))
    tracked = {}
    for kind in ("seg", "pr", "cadsr", "sr"):
        found = [str(e.value) for e in read(made[kind]).iterall() if e.keyword in ("TrackingUID", "UID")]
        tracked[kind] = {u for u in found if u.startswith("2.25.")}
    device = derived_uid("device", "9.8.7", "5e" * 32)
    assert device in tracked["sr"]
    assert tracked["seg"] == tracked["pr"] == tracked["cadsr"] == tracked["sr"] - {device}
    assert len(tracked["seg"]) == 2
