"""What the spool promises: whole files, nothing told before it is on disk, each result once."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mammoseg.apps.node import store as module
from mammoseg.apps.node.store import Snapshot, Store

STUDY, IMAGE, OTHER = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "spool")
    yield made
    made.close()


def results(store: Store, *contents: bytes) -> dict[str, str]:
    """Puts files into the outbox."""
    out = {}
    for content in contents:
        name = f"{content.hex()}.dcm"
        module.write_durably(store.outbox / name, [content], store.incoming)
        out[name] = f"uid of {content.hex()}"
    return out


def test_an_object_is_synchronised_named_and_entered_in_this_order(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The system calls in the order they are made; the database is asked for its own promise."""
    said: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        said.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).suffix or 'folder'}")
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        said.append("rename")
        return replace(self, target)

    monkeypatch.setattr(module.os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    store._db.set_trace_callback(lambda statement: said.append("commit") if statement == "COMMIT" else None)
    assert store.add(STUDY, IMAGE, "1" * 64, [b"content"])
    assert said == ["sync .part", "rename", "sync folder", "commit"]
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"


class Crash(BaseException):
    """The power goes."""


@pytest.mark.parametrize("step", range(8))
def test_a_crash_at_any_step_leaves_whole_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    spool = tmp_path / "spool"
    first = Store(spool)
    count = [0]

    def maybe(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == step + 1:
                raise Crash
            done = function(*args, **kwargs)
            if count[0] == step:
                raise Crash
            return done

        return call

    monkeypatch.setattr(module.os, "fsync", maybe(os.fsync))
    monkeypatch.setattr(Path, "replace", maybe(Path.replace))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # who is dead cannot tidy up
    told = False
    with contextlib.suppress(Crash):
        told = first.add(STUDY, IMAGE, "1" * 64, [b"con", b"tent"])
    monkeypatch.undo()
    assert all(f.read_bytes() == b"content" for f in first.objects.iterdir()), "no partial file by its name"
    first._db.close()
    second = Store(spool)
    second.recover()
    kept = [f.name for f in second.objects.iterdir()]
    assert list(second.incoming.iterdir()) == []
    known = [row[0] for row in second._db.execute("SELECT file FROM objects")]
    assert kept == known, "every file is known, and every known file is there"
    assert not told or len(kept) == 1
    assert second.add(STUDY, IMAGE, "1" * 64, [b"content"]) == (not kept), "sent again, it is kept"
    second.close()


def test_the_same_again_is_no_change_and_another_content_is(store: Store) -> None:
    assert store.add(STUDY, IMAGE, "1" * 64, [b"one"])
    assert not store.add(STUDY, IMAGE, "1" * 64, [b"one"])
    assert store.snapshot(STUDY).change == 1
    assert store.add(STUDY, IMAGE, "2" * 64, [b"two"])
    assert store.snapshot(STUDY).change == 2
    assert [f.read_bytes() for f in store.objects.iterdir()] == [b"two"]


def test_two_contents_of_one_instance_sent_at_once_are_kept_one_after_the_other(store: Store) -> None:
    """Each is acknowledged when it is whole on disk, and stays there until the other has taken its place."""
    failed: list[BaseException] = []

    def send() -> None:
        try:
            for number in range(60):
                key = str(number % 2) * 64
                store.add(STUDY, IMAGE, key, [key.encode()])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    ((_, kept),) = store.snapshot(STUDY).objects
    assert kept.is_file(), "what is entered is there"
    assert list(store.objects.iterdir()) == [kept]


def test_a_study_that_changed_meanwhile_is_not_finished(store: Store) -> None:
    store.add(STUDY, IMAGE, "1" * 64, [b"one"])
    seen = store.snapshot(STUDY)
    store.add(STUDY, OTHER, "2" * 64, [b"two"])
    assert store.finish(seen, results(store, b"early"), ["pacs"]) is None
    assert store.waiting("pacs") == []
    assert store.unfinished() == [STUDY]
    assert store.finish(store.snapshot(STUDY), results(store, b"both"), ["pacs"]) == 1
    assert store.unfinished() == []
    store.recover()
    assert [f.read_bytes() for f in store.outbox.iterdir()] == [b"both"], "what was never promised is gone"


def test_each_destination_gets_each_result_once(store: Store) -> None:
    store.add(STUDY, IMAGE, "1" * 64, [b"one"])
    store.finish(store.snapshot(STUDY), results(store, b"seg", b"report 1"), ["pacs", "web"])
    for delivery in store.waiting("pacs"):
        store.delivered(delivery)
    assert len(list(store.outbox.iterdir())) == 2, "the other destination waits for them"
    store.add(STUDY, OTHER, "2" * 64, [b"two"])
    assert store.finish(store.snapshot(STUDY), results(store, b"seg", b"report 2"), ["pacs", "web"]) == 2
    assert [(d.file.stem, d.version) for d in store.waiting("pacs")] == [(b"report 2".hex(), 2)]
    assert [d.file.stem for d in store.waiting("web")] == [c.hex() for c in (b"seg", b"report 1", b"report 2")]
    for delivery in [*store.waiting("pacs"), *store.waiting("web")]:
        store.delivered(delivery)
    assert list(store.outbox.iterdir()) == []
    assert all(store.is_own(f"uid of {c.hex()}") for c in (b"seg", b"report 1", b"report 2"))


def test_a_result_that_one_destination_got_is_there_for_a_new_one(store: Store) -> None:
    """Delivered between being found in the outbox and being promised to another destination, it has to be put there again."""
    store.add(STUDY, IMAGE, "1" * 64, [b"one"])
    store.finish(store.snapshot(STUDY), results(store, b"seg"), ["pacs"])
    store.add(STUDY, OTHER, "2" * 64, [b"two"])
    seg = results(store, b"seg")
    (first,) = store.waiting("pacs")
    store.delivered(first)
    assert list(store.outbox.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        store.finish(store.snapshot(STUDY), seg, ["pacs", "web"])
    assert (store.unfinished(), store.waiting("web")) == ([STUDY], [])
    assert store.finish(store.snapshot(STUDY), results(store, b"seg"), ["pacs", "web"]) == 2
    assert [d.file.read_bytes() for d in store.waiting("web")] == [b"seg"]
    assert store.waiting("pacs") == []


def test_a_finished_study_is_forgotten_in_time_and_an_unfinished_one_never(store: Store) -> None:
    for study, image in ((STUDY, IMAGE), ("d" * 64, OTHER)):
        store.add(study, image, "1" * 64, [b"one"])
        (store.results / study).mkdir()
    store.finish(store.snapshot(STUDY), results(store, b"seg"), ["pacs"])
    store._db.execute("UPDATE studies SET changed = ?", (time.time() - 100,))
    assert store.purge(50) == 0, "not yet delivered"
    store.delivered(store.waiting("pacs")[0])
    assert store.purge(200) == 0, "too young"
    assert store.purge(50) == 1
    assert [f.name[:64] for f in store.objects.iterdir()] == [OTHER]
    assert [f.name for f in store.results.iterdir()] == ["d" * 64]
    assert store.is_own(f"uid of {b'seg'.hex()}"), "we still know what we made"


def test_a_full_database_is_told_and_leaves_no_open_transaction(store: Store) -> None:
    store.add(STUDY, IMAGE, "1" * 64, [b"one"])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    huge = {f"{i:0200}": "u" * 3000 for i in range(300)}
    with pytest.raises(sqlite3.Error):
        store.finish(Snapshot(STUDY, 1, 0, 0, 0, ()), huge, ["pacs"])
    store._db.execute(f"PRAGMA max_page_count = {pages + 10_000}")
    assert store.waiting("pacs") == []
    assert store.finish(store.snapshot(STUDY), results(store, b"seg"), ["pacs"]) == 1
