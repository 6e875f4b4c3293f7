"""`kill -9` at random moments while studies arrive without pause: nothing acknowledged is lost, nothing comes twice."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import random
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import uid

CADSR, PR = uid.MammographyCADSRStorage, uid.GrayscaleSoftcopyPresentationStateStorage
UNDER_WAY = 5  # studies a sender has not yet got a report of


class Sender(threading.Thread):
    """Sends study after study, each image until it is acknowledged, as a modality does."""

    def __init__(self, number: int, port: int, pacs: Any, tools: Any) -> None:
        super().__init__(daemon=True)
        self.number, self.port, self.pacs, self.tools = number, port, pacs, tools
        self.acknowledged: dict[str, set[str]] = {}
        self.enough = threading.Event()

    def run(self) -> None:
        rng = random.Random(self.number)
        while not self.enough.is_set():
            if len(self.acknowledged) - reported(self.pacs, self.acknowledged) >= UNDER_WAY:
                time.sleep(0.05)
                continue
            study = uid.generate_uid()
            self.acknowledged[study] = set()
            for _ in range(rng.choice([1, 2, 4])):
                self.send(self.tools.mammogram(study=study, seed=rng.randrange(10)), study)

    def send(self, image: Any, study: str) -> None:
        while True:
            try:
                with self.tools.associated(self.port) as association:
                    if association.is_established:
                        answer = association.send_c_store(image)
                        if answer.get("Status") == 0x0000:
                            self.acknowledged[study].add(str(image.SOPInstanceUID))
                            return
            except (RuntimeError, OSError):
                pass
            time.sleep(0.1)


def reported(pacs: Any, studies: dict[str, set[str]]) -> int:
    """How many of the studies have a report."""
    return sum(study in pacs.studies for study in list(studies))


class Watch(threading.Thread):
    """Looks at the spool all the time: a file by its name is whole, for its name holds the hash of its content.

    A file is read when it appears, and again whenever it is another one, or its size or time has changed.
    """

    def __init__(self, spool: Path) -> None:
        super().__init__(daemon=True)
        self.spool, self.over = spool, threading.Event()
        self.looked, self.partial = 0, []  # type: int, list[str]

    def run(self) -> None:
        seen: dict[str, tuple[int, int, int]] = {}
        while not self.over.wait(0.01):
            here: dict[str, tuple[int, int, int]] = {}
            for folder, piece in (("objects", slice(65, 81)), ("outbox", slice(0, 64))):
                for file in os.scandir(self.spool / folder):
                    try:
                        state = file.stat()
                        here[file.path] = now = (state.st_ino, state.st_size, state.st_mtime_ns)
                        if seen.get(file.path) != now:
                            self.look(Path(file.path), file.name[piece])
                    except FileNotFoundError:  # delivered meanwhile
                        continue
            seen = here

    def look(self, file: Path, said: str) -> None:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        self.looked += 1
        if not digest.startswith(said) or len(said) not in (16, 64):
            self.partial.append(file.name)


def campaign(node: Any, tools: Any, kills: int, seed: int, weights: str = "") -> None:
    rng = random.Random(seed)
    with tools.archive() as pacs:
        pacs.studies = Reports(pacs)
        rest = f'[[destinations]]\nname = "pacs"\nhost = "127.0.0.1"\nport = {pacs.port}\nae_title = "ARCHIVE"\n'
        rest += "retry_s = 0.1\nretry_max_s = 0.5\n"
        here = node(formats='["json", "seg", "cadsr", "pr"]', quiet_s=2.0, weights=weights, rest=rest)
        senders = [Sender(number, here.port, pacs, tools) for number in range(2)]
        watch = Watch(here.spool)
        for thread in (*senders, watch):
            thread.start()
        died: list[int] = []
        for _ in range(kills):
            wait_for_a_moment(here, rng)
            died += children(here.process.pid)
            here.kill()
            here.start()
        for sender in senders:
            sender.enough.set()
        for sender in senders:
            sender.join(timeout=300)
            assert not sender.is_alive()
        acknowledged = {study: images for s in senders for study, images in s.acknowledged.items()}
        wait_until_done(here, acknowledged, pacs)
        watch.over.set()
        watch.join()
        judge(here, pacs, acknowledged)
        assert watch.partial == []
        assert watch.looked >= sum(map(len, acknowledged.values()))
        assert sum(e["studies"] > 0 for e in here.events("recovered")) >= kills // 3, "the kills were felt"
        assert not any(Path(f"/proc/{pid}").exists() for pid in died), "what a killed node had started is gone too"
        assert here.stop() == 0


def wait_for_a_moment(here: Any, rng: random.Random) -> None:
    """Any moment; or one in, or soon after, a certain step of the node's work."""
    step = rng.choice(["", "", "object_received", "study_complete", "analysed", "delivered"])
    if not step:
        time.sleep(rng.uniform(0.0, 5.0))
        return
    at, sign, end = here.log.stat().st_size, f'"event": "{step}"', time.monotonic() + 30
    with here.log.open(encoding="utf-8") as log:
        log.seek(at)
        news = ""
        while sign not in news and time.monotonic() < end:
            time.sleep(0.005)
            news = news[-100:] + log.read()
    time.sleep(rng.choice([0.0, rng.uniform(0.0, 0.1), rng.uniform(0.0, 1.0)]))


class Reports:
    """The studies of which an archive has a CAD report."""

    def __init__(self, pacs: Any) -> None:
        self.pacs = pacs
        self.known: set[str] = set()
        self.studies: set[str] = set()

    def __contains__(self, study: str) -> bool:
        for instance in [i for i in list(self.pacs.got) if i not in self.known]:
            self.known.add(instance)
            if self.pacs.classes[instance] == CADSR:
                self.studies.add(str(header(self.pacs, instance).StudyInstanceUID))
        return study in self.studies


def header(pacs: Any, instance: str) -> Any:
    return pydicom.dcmread(io.BytesIO(pacs.got[instance][0]), force=True)


def children(pid: int) -> list[int]:
    """The processes a process started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(p) for p in (task / "children").read_text().split()]
    return found


def database(here: Any, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"file:{here.spool / 'node.sqlite'}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def wait_until_done(here: Any, acknowledged: dict[str, set[str]], pacs: Any) -> None:
    end = time.monotonic() + 900
    while True:
        (left,) = database(here, "SELECT SUM(change > done) FROM studies")[0]
        (waiting,) = database(here, "SELECT COUNT(*) FROM deliveries WHERE delivered IS NULL")[0]
        if not left and not waiting:
            return
        assert time.monotonic() < end, f"{left} studies, {waiting} deliveries left of {len(acknowledged)}"
        time.sleep(0.2)


def judge(here: Any, pacs: Any, acknowledged: dict[str, set[str]]) -> None:
    """Every acknowledged image has one result of its own; every version of every study one report; copies are equal."""
    assert sum(map(len, acknowledged.values())) >= 10
    assert all(len(set(copies)) == 1 for copies in pacs.got.values()), "sent again after a crash, it is the same to the byte"
    outlines: Counter[str] = Counter()
    reports: dict[str, list[set[str]]] = {}
    for instance, kind in pacs.classes.items():
        ds = header(pacs, instance)
        referred = {str(e.value) for e in ds.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
        if kind == PR:
            outlines.update(referred)
        elif kind == CADSR:
            reports.setdefault(str(ds.StudyInstanceUID), []).append(referred)
    everything = {image for images in acknowledged.values() for image in images}
    assert set(outlines) >= everything, "no acknowledged image without its result"
    assert {n for image, n in outlines.items() if image in everything} == {1}, "and none with two"
    versions = Counter(dict(database(here, "SELECT study, version FROM studies")))
    for study, images in acknowledged.items():
        key = hashlib.sha256(study.encode()).hexdigest()
        mine = sorted(reports[study], key=len)
        assert len(mine) == versions[key], "a report for each version, and no other"
        assert mine[-1] >= images, "the last one has every image"
        assert all(a < b for a, b in itertools.pairwise(mine))
    several = sum(n > 1 for n in versions.values())
    print(f"{len(acknowledged)} studies, {len(everything)} images, {several} studies with more than one version")


@pytest.mark.system
def test_ten_kills(node: Any, tools: Any) -> None:
    campaign(node, tools, 10, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(2, 12))
def test_two_hundred_kills(node: Any, tools: Any, tiny_bundle: Path, seed: int) -> None:
    """Twenty at a time, with small networks: most of a round would else be spent on loading large ones."""
    campaign(node, tools, 20, seed=seed, weights=str(tiny_bundle))
