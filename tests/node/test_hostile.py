"""Random mutations of valid objects and PDUs: refused with a status of the standard, and the node stays up and small."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydicom import uid
from pynetdicom import evt

STATUSES = {0x0000, 0x0117, 0x0122, 0xA700, 0xA900, 0xC000}
SYNTAXES = [
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEG2000Lossless,
    uid.JPEGLSLossless,
]
GROWTH_MIB = 150
HURLERS = 10  # peers that send mutated PDUs at a time


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut out, doubled, put elsewhere, lengthened; mostly near the beginning, where headers are."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8, 30])):
        if not out:
            break
        place = min(int(rng.expovariate(1 / max(60, len(out) / 4))), len(out) - 1)
        kind = rng.randrange(8)
        if kind < 3:
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 3:
            out[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF])
        elif kind == 4:
            out[place : place + 4] = rng.choice(
                [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\xfe\xff\0\xe0", b"../."]
            )
        elif kind == 5:
            del out[place : place + rng.choice([1, 2, 4, 100, len(out)])]
        elif kind == 6:
            out[place:place] = out[place : place + rng.randrange(1, 200)]
        else:
            out[place:place] = rng.randbytes(rng.randrange(1, 50))
    return bytes(out)


def objects(tools: Any) -> list[tuple[uid.UID, Any]]:
    """A mammogram in several transfer syntaxes, the one image in all."""
    out = []
    for syntax in SYNTAXES:
        ds = tools.mammogram(study="1.2.3.4.5", SOPInstanceUID="1.2.3.4.5.6")
        if syntax.is_encapsulated:
            ds.compress(syntax, generate_instance_uid=False)
        ds.file_meta.TransferSyntaxUID = syntax
        out.append((syntax, ds))
    return out


def recorded(port: int, tools: Any) -> list[bytes]:
    """The PDUs that a peer sends to store an object: request, command, data in pieces, release."""
    sent: list[bytes] = []
    handlers = [(evt.EVT_DATA_SENT, lambda event: sent.append(event.data))]
    image = tools.mammogram(study="1.2.3.4.5", SOPInstanceUID="1.2.3.4.5.6")
    with tools.associated(port, (tools.MG, uid.ExplicitVRLittleEndian), evt_handlers=handlers) as association:
        assert int(association.send_c_store(image).Status) == 0
    assert [s[0] for s in sent][:2] == [1, 4]
    assert sent[-1][0] == 5
    return sent


def hurl(port: int, pdus: list[bytes], rng: random.Random) -> list[int]:
    """Sends PDUs with changes, waiting for the answer to the first as a peer must; returns the types of what comes back."""
    pdus = list(pdus)
    for _ in range(rng.choice([1, 1, 2])):
        place = rng.randrange(len(pdus))
        kind = rng.randrange(6)
        if kind < 3:
            pdus[place] = mutated(pdus[place], rng)
        elif kind == 3:
            pdus.insert(rng.randrange(len(pdus)), pdus[place])
        elif kind == 4 and len(pdus) > 1:
            del pdus[place]
        else:
            length = rng.choice([0, 1, 3, 1 << 16, 1 << 24, (1 << 32) - 1])
            pdus[place] = pdus[place][:2] + struct.pack(">L", length) + pdus[place][6:]
    answers = []
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
            peer.settimeout(0.3)
            peer.sendall(pdus[0])
            with contextlib.suppress(TimeoutError):  # it may wait for the rest of the first PDU
                answers += peer.recv(4096)[:1]
            peer.settimeout(0.15)
            for pdu in pdus[1:]:
                peer.sendall(pdu)
            if rng.random() < 0.8:  # else it hangs up without a word
                answers += peer.recv(4096)[:1]
    except OSError:
        pass
    return answers


def threads(here: Any) -> int:
    found = re.search(r"Threads:\s+(\d+)", Path(f"/proc/{here.process.pid}/status").read_text())
    assert found is not None
    return int(found[1])


def descriptors(here: Any) -> int:
    return len(list(Path(f"/proc/{here.process.pid}/fd").iterdir()))


def echo_soon(port: int, tools: Any) -> None:
    """A C-ECHO succeeds, if need be after connections that were left open have been cut off."""
    end = time.monotonic() + 30
    while True:
        with tools.associated(port, ("1.2.840.10008.1.1", uid.ExplicitVRLittleEndian)) as association:
            if association.is_established:
                assert int(association.send_c_echo().Status) == 0
                return
            assert association.is_rejected or time.monotonic() < end, "neither served nor told to come again"
        assert time.monotonic() < end, "the node is busy for too long"
        time.sleep(0.2)


def campaign(node: Any, tools: Any, count: int, seed: int) -> None:
    rng = random.Random(seed)
    here = node(quiet_s=1.0, limits="object_mib = 4\nidle_s = 5.0\nassociations = 64")
    echo_soon(here.port, tools)
    pdus = recorded(here.port, tools)
    images = [(syntax, ds, tools.encoded(ds)) for syntax, ds in objects(tools)]
    for syntax, ds, data in images:
        with tools.associated(here.port, (tools.MG, syntax)) as association:
            assert tools.store_raw(association, data, instance_uid=ds.SOPInstanceUID) == 0, "unchanged, it is taken"
    before = (here.memory_mib(), threads(here), descriptors(here))
    statuses: Counter[int | None] = Counter()
    answers: Counter[int] = Counter()
    highest = 0.0
    for block in range(count // 100):
        syntax, ds, data = images[block % len(images)]
        for _ in range(5):
            with tools.associated(here.port, (tools.MG, syntax)) as association:
                for _ in range(10):
                    if association.is_established:
                        changed = mutated(data, rng) or b"\0"
                        statuses[tools.store_raw(association, changed, instance_uid=ds.SOPInstanceUID)] += 1
        with ThreadPoolExecutor(HURLERS) as crowd:  # each spends its time waiting for answers that do not come
            rngs = [random.Random(rng.random()) for _ in range(50)]
            for got in crowd.map(lambda one: hurl(here.port, pdus, one), rngs):
                answers.update(got)
        echo_soon(here.port, tools)
        highest = max(highest, here.memory_mib())
    time.sleep(12)  # twice as long as what was left open may be silent
    echo_soon(here.port, tools)
    after = (here.memory_mib(), threads(here), descriptors(here))
    print(f"statuses {dict(statuses)}, answers {dict(answers)}, memory {before[0]:.0f} to {highest:.0f} MiB")
    assert set(statuses) <= STATUSES, statuses
    assert min(statuses[0x0000], statuses[0xC000], statuses[0xA900]) > 0
    assert set(answers) <= {2, 3, 4, 6, 7}, "only what an acceptor may send"
    assert min(answers[2], answers[4], answers[7]) > 0
    assert highest < before[0] + GROWTH_MIB
    assert after[1] <= before[1] + 4
    assert after[2] <= before[2] + 8
    assert here.process.poll() is None
    here.wait_for("analysed")
    assert not here.events("thread_ended") + here.events("error") + here.events("analysis_failed")
    for file in (here.spool / "objects").iterdir():
        assert re.fullmatch(r"[0-9a-f]{64}-[0-9a-f]{16}\.dcm", file.name)
    assert here.stop() == 0


def test_four_hundred_mutations(node: Any, tools: Any) -> None:
    campaign(node, tools, 400, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(2, 12))
def test_ten_thousand_mutations_of_each_kind(node: Any, tools: Any, seed: int) -> None:
    """A thousand of each at a time."""
    campaign(node, tools, 2_000, seed=seed)


@pytest.mark.parametrize("accepted", [10, pytest.param(600, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])])
def test_what_is_taken_though_changed_ends_with_a_result(node: Any, tools: Any, accepted: int) -> None:
    """Changed images that pass reception, each in a study of its own (unless that changed): analysed, rejected or failed."""
    rng = random.Random(3)
    rest = '[[destinations]]\nname = "pacs"\nhost = "127.0.0.1"\nport = {}\nae_title = "ARCHIVE"\nretry_s = 0.2\n'
    with tools.archive() as pacs:
        here = node(formats='["json", "seg", "cadsr", "sr", "pr", "sc"]', rest=rest.format(pacs.port))
        taken = tries = 0
        while taken < accepted:
            study = f"1.2.3.{taken}"
            image = tools.mammogram(study=study, seed=taken % 7)
            data = mutated(tools.encoded(image), rng)
            tries += 1
            with tools.associated(here.port) as association:
                taken += tools.store_raw(association, data or b"\0", instance_uid=image.SOPInstanceUID) == 0
        end = time.monotonic() + 60 + 10 * accepted

        def worked_through() -> int:
            last = {e["study"]: e for e in here.events("analysed")}
            return sum(e[s] for e in last.values() for s in ("processed", "rejected", "failed"))

        while worked_through() < accepted:
            assert time.monotonic() < end
            assert not here.events("analysis_failed"), here.events("analysis_failed")
            time.sleep(0.2)
        pacs.wait_for(sum(e["results"] for e in here.events("analysed")))
        outcomes = Counter(s for e in here.events("analysed") for s in ("processed", "rejected", "failed") if e[s])
        print(f"{tries} changed images, {taken} taken: {dict(outcomes)}")
        assert here.stop() == 0
