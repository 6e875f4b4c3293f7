"""Which findings belong to which image, and which images belong together."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mammoseg.apps.batch import run_batch
from mammoseg.apps.inputs import collect
from mammoseg.apps.outputs import DEFAULT_FORMATS
from mammoseg.apps.server.catalogue import Catalogue
from mammoseg.apps.server.settings import ServerSettings
from mammoseg.apps.server.store import Store
from mammoseg.apps.worker import Job, Plan
from mammoseg.bundle import open_bundle
from mammoseg.errors import MammosegError, UsageError
from mammoseg.pipeline import settings_of

from .conftest import breast, mammogram_dicom, save

Look = Callable[..., Catalogue]


@pytest.fixture
def look(tmp_path: Path) -> Iterator[Look]:
    """Opens catalogues over folders; the state folder is the same each time."""
    stores: list[Store] = []

    def open_catalogue(*folders: Path, pairs: Any = ()) -> Catalogue:
        while stores:
            stores.pop().close()
        stores.append(Store(tmp_path / "state"))
        return Catalogue(ServerSettings(folders=folders, state=tmp_path / "state", pairs=pairs), stores[0])

    yield open_catalogue
    while stores:
        stores.pop().close()


def analyse(folder: Path, out: Path, bundle: Path) -> None:
    """What `mammoseg segment FOLDER --out OUT` does."""
    opened = open_bundle(bundle)
    plan = Plan(opened.directory, settings_of(opened), out, DEFAULT_FORMATS, {})
    run_batch([Job(i) for i in collect([folder]).images], plan, workers=0)


@pytest.fixture
def exam(small_exams: Path, tmp_path: Path) -> Path:
    """Four views of one exam, in a folder of their own."""
    out = tmp_path / "exam"
    out.mkdir()
    for path in sorted(small_exams.glob("*_0001_*.png")):
        shutil.copy(path, out)
    return out


def statuses(catalogue: Catalogue, sure: bool = True) -> dict[str, str]:
    """Status by name."""
    out = {}
    for entry in catalogue.entries():
        found = catalogue.found(entry, sure)
        out[entry.name] = found.document["status"] if found is not None else "pending"
    return out


def test_images_and_findings_below_one_folder(exam: Path, tiny_bundle: Path, look: Look) -> None:
    catalogue = look(exam.parent)
    assert set(statuses(catalogue).values()) == {"pending"}
    assert {catalogue.why_none(e) for e in catalogue.entries()} == {None}
    analyse(exam, exam.parent / "results", tiny_bundle)
    found = statuses(look(exam.parent))
    assert len(found) == 4, "pictures among the results are no images to look at"
    assert set(found.values()) == {"processed"}
    assert all(name.startswith("exam/") for name in found)


def test_images_and_findings_from_two_folders(exam: Path, tiny_bundle: Path, look: Look, tmp_path: Path) -> None:
    analyse(exam, tmp_path / "elsewhere" / "out", tiny_bundle)
    assert set(statuses(look(exam, tmp_path / "elsewhere" / "out")).values()) == {"processed"}
    assert len(look(exam, tmp_path / "elsewhere" / "out").entries()) == 4


def test_findings_alone(exam: Path, tiny_bundle: Path, look: Look, tmp_path: Path) -> None:
    analyse(exam, tmp_path / "out", tiny_bundle)
    entries = look(tmp_path / "out").entries()
    assert len(entries) == 4
    assert all(e.path is None for e in entries)
    assert set(statuses(look(tmp_path / "out")).values()) == {"processed"}


def test_an_image_that_changed_has_no_findings(exam: Path, tiny_bundle: Path, look: Look) -> None:
    analyse(exam, exam.parent / "results", tiny_bundle)
    first, second = sorted(exam.iterdir())[:2]
    shutil.copy(second, first)
    found = statuses(look(exam.parent))
    assert found.pop(f"exam/{first.name}") == "pending"
    assert set(found.values()) == {"processed"}
    catalogue = look(exam.parent)
    entry = next(e for e in catalogue.entries() if e.name.endswith(first.name))
    assert catalogue.found(entry, sure=True) is None
    assert "another file" in str(catalogue.why_none(entry))


def test_equal_names_are_told_apart_by_content(exam: Path, tiny_bundle: Path, look: Look, tmp_path: Path) -> None:
    views = sorted(exam.iterdir())
    for patient, view in (("a", views[0]), ("b", views[1])):
        (tmp_path / "set" / patient).mkdir(parents=True)
        shutil.copy(view, tmp_path / "set" / patient / "view.png")
    analyse(tmp_path / "set" / "b", tmp_path / "set" / "out", tiny_bundle)  # its source is view.png alone
    found = statuses(look(tmp_path / "set"))
    assert found == {"a/view.png": "pending", "b/view.png": "processed"}


def test_the_newest_findings_count(exam: Path, tiny_bundle: Path, look: Look, tmp_path: Path) -> None:
    import os

    analyse(exam, exam.parent / "old", tiny_bundle)
    analyse(exam, exam.parent / "new", tiny_bundle)
    for path in (exam.parent / "old").rglob("findings.json"):
        os.utime(path, (1, 1))
    catalogue = look(exam.parent)
    assert {catalogue.found(e).folder.parent.name for e in catalogue.entries()} == {"new"}


def test_files_that_are_no_findings_count_for_nothing(exam: Path, tiny_bundle: Path, look: Look) -> None:
    analyse(exam, exam.parent / "results", tiny_bundle)
    files = sorted((exam.parent / "results").rglob("findings.json"))
    older = json.dumps({**json.loads(files[2].read_text()), "schema_version": "0.9"})
    no_number = files[3].read_text().replace('"spacing_mm": null', '"spacing_mm": [NaN, NaN]')
    broken = ['{"image": {"file_sha256": null}, "status": "processed", "lesions": 7}', "[" * 100_000, older, no_number]
    assert "NaN" in no_number
    for path, text in zip(files, broken, strict=True):
        path.write_text(text)
    catalogue = look(exam.parent)
    assert set(statuses(catalogue).values()) == {"pending"}
    assert all("damaged or of another version" in str(catalogue.why_none(e)) for e in catalogue.entries())
    run = exam.parent / "results" / "run.json"
    document = json.loads(run.read_text())
    document["images"] = [{"source": "x", "folder": "../../exam"}, {"source": 3}, 5]
    run.write_text(json.dumps(document))
    assert len(look(exam.parent).entries()) >= 4


def test_ids_stay_and_say_nothing(exam: Path, look: Look) -> None:
    first = {e.name: e.image_id for e in look(exam).entries()}
    assert first == {e.name: e.image_id for e in look(exam).entries()}
    assert len(set(first.values())) == 4
    assert all(len(i) == 24 and set(i) <= set("0123456789abcdef") for i in first.values())


def test_other_servers_give_other_ids(exam: Path, tmp_path: Path) -> None:
    ids = []
    for state in ("one", "two"):
        store = Store(tmp_path / state)
        settings = ServerSettings(folders=(exam,), state=tmp_path / state)
        ids.append({e.image_id for e in Catalogue(settings, store).entries()})
        store.close()
    assert not ids[0] & ids[1], "ids are keyed, so that names cannot be guessed from them"


def test_studies_by_their_uid(tmp_path: Path, look: Look) -> None:
    for study in ("1.2.3", "1.2.4"):
        for view in ("CC", "MLO"):
            ds = mammogram_dicom(breast(8), 8, StudyInstanceUID=study, ViewPosition=view, ImageLaterality="L")
            save(ds, tmp_path / "dicom" / f"IM{study[-1]}{view[0]}")
    studies = look(tmp_path / "dicom").studies()
    assert sorted(len(s) for s in studies.values()) == [2, 2]
    names = [{e.name for e in s} for s in studies.values()]
    assert {"IM3C", "IM3M"} in names


def test_studies_by_names(exam: Path, small_exams: Path, look: Look) -> None:
    studies = look(small_exams).studies()
    assert sorted(len(s) for s in studies.values()) == [4, 4]
    assert {look(small_exams).label(s) for s in studies.values()} == {"phantom_s1_0001", "phantom_s1_0002"}


def test_what_is_no_image_is_left_out(tmp_path: Path, look: Look) -> None:
    folder = tmp_path / "mixed"
    save(mammogram_dicom(breast(8), 8), folder / "a.dcm")
    save(mammogram_dicom(breast(8), 8, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33", Modality="SR"), folder / "report.dcm")
    ours = {"Manufacturer": "mammoseg", "ManufacturerModelName": "mammoseg"}
    save(mammogram_dicom(breast(8), 8, **ours), folder / "ours.dcm")
    save(mammogram_dicom(breast(8), 8), folder / ".hidden.dcm")
    (folder / "notes.txt").write_text("notes")
    assert [e.name for e in look(folder).entries()] == ["a.dcm"]


def test_new_images_are_seen(exam: Path, look: Look) -> None:
    catalogue = look(exam)
    assert len(catalogue.entries()) == 4
    shutil.copy(sorted(exam.iterdir())[0], exam / "another.png")
    catalogue.look_again()
    assert len(catalogue.entries()) == 5
    (exam / "another.png").unlink()
    catalogue.look_again()
    assert len(catalogue.entries()) == 4


def test_exact_pairs(exam: Path, tiny_bundle: Path, look: Look, tmp_path: Path) -> None:
    out = tmp_path / "out"
    analyse(exam, out, tiny_bundle)
    pairs = [(i.path, i.source, out / i.folder) for i in collect([exam]).images]
    assert statuses(look(pairs=pairs)) == {p.name: "processed" for p in exam.iterdir()}


def test_a_damaged_database_is_one_clear_error(tmp_path: Path) -> None:
    Store(tmp_path / "s").close()
    for extra in ("-wal", "-shm"):
        (tmp_path / "s" / f"server.sqlite{extra}").unlink(missing_ok=True)
    (tmp_path / "s" / "server.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(MammosegError, match="damaged"):
        Store(tmp_path / "s")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--state"):
        Store(tmp_path / "file")


def test_segment_view_shows_the_run(exam: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """The command goes on as a server, with exactly the images and results of the run."""
    import os
    import re
    import signal
    import time

    import httpx

    command = [
        sys.executable,
        "-m",
        "mammoseg.apps.cli",
        "segment",
        str(exam),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "0",
    ]
    log = (tmp_path / "log").open("w+")
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "home")} | {"DISPLAY": ""}
    process = subprocess.Popen([*command, "--weights", str(tiny_bundle), "--view"], stdout=log, stderr=log, env=environment)
    try:
        until, found = time.monotonic() + 300, None
        while found is None and time.monotonic() < until and process.poll() is None:
            time.sleep(0.2)
            found = re.search(r"mammoseg is at (\S+)/ ", (tmp_path / "log").read_text())
        assert found is not None, (tmp_path / "log").read_text()
        images = httpx.get(f"{found[1]}/api/v1/images", trust_env=False).json()
        assert {(i["name"], i["status"], i["has_pixels"]) for i in images} == {
            (p.name, "processed", True) for p in exam.iterdir()
        }
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
