"""C-ECHO and C-STORE: what is taken, what is refused and how, and what a peer may cost."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence

LE = uid.ExplicitVRLittleEndian


def test_an_image_is_kept_to_the_byte_and_named_by_hashes(receiver: Any, tools: Any) -> None:
    here = receiver()
    image = tools.mammogram()
    assert tools.echo(here.port) == 0
    assert tools.send(here.port, image) == [0]
    (file,) = here.files()
    assert file.read_bytes().endswith(tools.encoded(image))
    assert pydicom.dcmread(file).SOPInstanceUID == image.SOPInstanceUID
    assert str(image.StudyInstanceUID) not in str(file)
    assert str(image.SOPInstanceUID) not in str(file)
    assert len(here.arrived) == 1
    assert tools.send(here.port, image) == [0], "sent again, it is acknowledged again"
    assert len(here.arrived) == 1, "but it is no news"
    image.PatientName = "Other^Name"
    assert tools.send(here.port, image) == [0]
    assert len(here.arrived) == 2, "the same instance with another content is news"
    assert len(here.files()) == 1
    assert pydicom.dcmread(here.files()[0]).PatientName == "Other^Name"


def test_what_is_negotiated_is_what_can_be_read(receiver: Any, tools: Any) -> None:
    from mammoseg.io.dicom_codec import TRANSFER_SYNTAXES

    here = receiver()
    for syntax in pydicom.uid.AllTransferSyntaxes:
        with tools.associated(here.port, (tools.MG, syntax)) as association:
            assert bool(association.accepted_contexts) == (syntax in TRANSFER_SYNTAXES), syntax.name


def in_syntax(ds: Dataset, syntax: uid.UID) -> bytes:
    """The data set encoded in a syntax that pydicom can write."""
    if syntax.is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False)
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax == uid.ExplicitVRBigEndian:
        import numpy as np

        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    buffer = io.BytesIO()
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    dcmwrite(buffer, ds, enforce_file_format=True, implicit_vr=implicit, little_endian=little)
    whole = buffer.getvalue()
    return whole[132 + 12 + int.from_bytes(whole[140:144], "little") :]


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        LE,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
    ],
    ids=lambda s: s.keyword,
)
def test_images_in_each_syntax_arrive_whole(receiver: Any, tools: Any, syntax: uid.UID) -> None:
    from mammoseg.io.load import load_mammogram

    here = receiver()
    image = tools.mammogram()
    image.RequestAttributesSequence = Sequence([Dataset()])
    image.RequestAttributesSequence[0].ScheduledProcedureStepID = "1"
    data = in_syntax(image, syntax)
    with tools.associated(here.port, (tools.MG, syntax)) as association:
        assert tools.store_raw(association, data, instance_uid=image.SOPInstanceUID) == 0
    (file,) = here.files()
    assert file.read_bytes().endswith(data)
    found = load_mammogram(file)
    assert found.size == (96, 80)
    assert (found.pixels * 4095).round().astype("<u2").tobytes() == tools.mammogram().PixelData


def test_only_listed_peers_that_call_us_by_name_are_served(receiver: Any, tools: Any) -> None:
    here = receiver()
    for calling, called, diagnostic in (("STRANGER", "MAMMOSEG", 3), ("SENDER", "ELSE", 7)):
        from pynetdicom import AE

        entity = AE(calling)
        entity.add_requested_context(tools.MG, LE)
        association = entity.associate("127.0.0.1", here.port, ae_title=called)
        assert association.is_rejected
        answer = association.acceptor.primitive
        assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, diagnostic)
    assert len(here.events("association_refused")) == 2
    assert "STRANGER" not in here.lines.getvalue()
    assert here.files() == []


def ended(association: Any) -> bool:
    """Whether the association is soon over by the node's will."""
    end = time.monotonic() + 20
    while association.is_established and time.monotonic() < end:
        time.sleep(0.02)
    return bool(association.is_aborted)


def deep(levels: int) -> bytes:
    """A private sequence of undefined length in itself, `levels` deep."""
    opened = struct.pack("<HH2sHL", 9, 0x1010, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closed = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    return opened * levels + closed * levels


def test_broken_objects_are_refused_with_the_right_status(receiver: Any, tools: Any) -> None:
    here = receiver()
    image = tools.mammogram()
    whole, own = tools.encoded(image), str(image.SOPInstanceUID)
    cut = whole.index(b"\x08\x00\x60\x00")  # before Modality: after the SOP UIDs
    many = b"".join(struct.pack("<HH2sH", 0x0009, 0x1000 + i % 0xE000, b"LO", 0) for i in range(60_000))
    ends = struct.pack("<HH2sHL", 9, 0x1010, b"SQ", 0, 1 << 31)
    cases: list[tuple[str, bytes, int]] = [
        ("no DICOM at all", b"GET / HTTP/1.1\r\n\r\n" * 30, 0xC000),
        ("cut in the header", whole[: cut + 3], 0xC000),
        ("cut in the pixels", whole[:-100], 0xC000),
        ("nothing after the identifiers", whole[:cut], 0xA900),
        ("10,000 sequences in one another", whole[:cut] + deep(10_000) + whole[cut:], 0xC000),
        ("60,000 elements", whole[:cut] + many + whole[cut:], 0xC000),
        ("a sequence beyond the end", whole[:cut] + ends + whole[cut:], 0xC000),
        ("another instance", tools.encoded(tools.mammogram(SOPInstanceUID="1.2.3.4")), 0xA900),
        ("another class", tools.encoded(tools.mammogram(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", SOPInstanceUID=own)), 0xA900),
        ("more rows than pixels", tools.encoded(tools.mammogram(Rows=60000, Columns=2000, SOPInstanceUID=own)), 0xA900),
        ("more pixels than memory", tools.encoded(tools.mammogram(Rows=65535, Columns=65535, SOPInstanceUID=own)), 0xA900),
        ("no rows", tools.encoded(tools.mammogram(Rows=0, SOPInstanceUID=own)), 0xA900),
        ("many frames", tools.encoded(tools.mammogram(NumberOfFrames=1000, SOPInstanceUID=own)), 0xA900),
        ("no pixels", whole[: whole.rindex(b"\xe0\x7f\x10\x00")], 0xA900),
    ]
    with tools.associated(here.port) as association:
        for name, data, status in cases:
            assert tools.store_raw(association, data, instance_uid=own) == status, name
        assert tools.store_raw(association, whole, instance_uid=own) == 0, "and the association goes on"
    assert len(here.files()) == 1
    assert len(here.events("object_refused")) == len(cases)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("trick", ["../../../etc/passwd", "/etc/passwd", "..", "1.2\0.3", "a" * 60, "1..2", "C:\\x", "1.2/3"])
def test_path_tricks_in_uids_are_refused(receiver: Any, tools: Any, trick: str) -> None:
    here = receiver()
    with pydicom.config.disable_value_validation():
        as_instance = tools.encoded(tools.mammogram(SOPInstanceUID=uid.UID(trick)))
        fine = tools.mammogram()
        fine.StudyInstanceUID = uid.UID(trick)
        as_study = tools.encoded(fine)
    with tools.associated(here.port) as association:
        assert tools.store_raw(association, as_instance, instance_uid=trick) == 0x0117
        assert tools.store_raw(association, as_study, instance_uid=fine.SOPInstanceUID) == 0x0117
    assert here.files() == []
    assert "passwd" not in here.lines.getvalue()


def test_a_compressed_image_with_other_dimensions_than_its_header_is_refused(receiver: Any, tools: Any) -> None:
    here = receiver()
    for syntax in (uid.JPEG2000Lossless, uid.JPEGLSLossless):
        image = tools.mammogram()
        image.compress(syntax, generate_instance_uid=False)
        image.Rows = 4000
        with tools.associated(here.port, (tools.MG, syntax)) as association:
            assert tools.store_raw(association, in_syntax_as_is(image), instance_uid=image.SOPInstanceUID) == 0xA900


def in_syntax_as_is(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    whole = buffer.getvalue()
    return whole[132 + 12 + int.from_bytes(whole[140:144], "little") :]


def test_an_object_beyond_the_limit_is_refused_and_its_bytes_are_not_kept(receiver: Any, tools: Any) -> None:
    here = receiver(object_mib=1)
    fits, large = tools.mammogram(size=(700, 700)), tools.mammogram(size=(1000, 700))
    with tools.associated(here.port) as association:
        assert tools.store_raw(association, tools.encoded(large), instance_uid=large.SOPInstanceUID) == 0xA700
        assert tools.store_raw(association, tools.encoded(fits), instance_uid=fits.SOPInstanceUID) == 0
        assert tools.store_raw(association, b"\0" * (5 << 20), instance_uid="1.2") is None, "far beyond: aborted"
        assert ended(association)
    assert len(here.files()) == 1
    assert tools.echo(here.port) == 0


def test_a_deflated_bomb_does_not_unpack(receiver: Any, tools: Any) -> None:
    import zlib

    here = receiver(object_mib=4)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(tools.encoded(tools.mammogram())) + packer.compress(b"\0" * (1 << 29)) + packer.flush()
    assert len(bomb) < 1 << 20
    with tools.associated(here.port, (tools.MG, uid.DeflatedExplicitVRLittleEndian)) as association:
        assert tools.store_raw(association, bomb, instance_uid="1.2.3") == 0xC000


def test_results_of_others_are_refused_and_ours_are_dropped(receiver: Any, tools: Any) -> None:
    from mammoseg.apps.node.intake import key_of

    here = receiver()
    report = tools.mammogram(SOPClassUID=uid.ComprehensiveSRStorage, Modality="SR")
    del report.PixelData
    assert tools.send(here.port, report) == [0x0122]
    here.store._db.execute("INSERT INTO own VALUES (?)", (key_of(str(report.SOPInstanceUID)),))
    assert tools.send(here.port, report) == [0]
    assert here.files() == []
    assert here.arrived == []
    assert len(here.events("own_result_ignored")) == 1


def test_a_full_disk_is_said_to_the_sender(receiver: Any, tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = receiver(free_mib=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert tools.send(here.port, tools.mammogram()) == [0xA700]
    monkeypatch.undo()
    from mammoseg.apps.node import store

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    assert tools.send(here.port, tools.mammogram()) == [0xA700]
    monkeypatch.undo()
    assert here.files() == [], "nothing half is left"
    assert tools.send(here.port, tools.mammogram()) == [0]


def test_more_associations_than_allowed_are_rejected(receiver: Any, tools: Any) -> None:
    here = receiver(associations=2)
    with tools.associated(here.port) as first, tools.associated(here.port) as second:
        assert first.is_established
        assert second.is_established
        with tools.associated(here.port) as third:
            assert third.is_rejected
            assert third.acceptor.primitive.result == 2, "transient: come again"
    assert tools.echo(here.port) == 0


def test_a_peer_that_falls_silent_or_never_ends_is_cut_off(receiver: Any, tools: Any) -> None:
    here = receiver(idle_s=1.0, association_s=2.0)
    with (
        socket.create_connection(("127.0.0.1", here.port)) as silent,
        socket.create_connection(("127.0.0.1", here.port)) as slow,
    ):
        slow.sendall(b"\x01\x00\x00\x00\x01\x00")  # the head of an A-ASSOCIATE-RQ, and then a byte now and then
        begun = time.monotonic()
        end = begun + 15
        open_still = {silent, slow}
        while open_still and time.monotonic() < end:
            for peer in list(open_still):
                peer.settimeout(0.2)
                try:
                    if peer is slow:
                        peer.sendall(b"\0")
                    if peer.recv(100) == b"":
                        open_still.discard(peer)
                except TimeoutError:
                    continue
                except OSError:
                    open_still.discard(peer)
        assert not open_still, "both are closed"
    assert tools.echo(here.port) == 0


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BBL", kind, 0, len(body) if length is None else length) + body


def test_a_pdu_longer_than_agreed_is_aborted_without_reading_it(receiver: Any, tools: Any) -> None:
    here = receiver()
    with socket.create_connection(("127.0.0.1", here.port), timeout=20) as peer:
        peer.sendall(pdu(1, b"\0\1" * 50, length=0xFFFFFFF0))
        assert peer.recv(10)[:1] == b"\x07", "an A-ABORT"
        peer.settimeout(60)
        with contextlib.suppress(ConnectionError):
            while peer.recv(10):
                pass
    assert tools.echo(here.port) == 0


def test_a_request_before_the_answer_to_the_last_is_aborted(receiver: Any, tools: Any) -> None:
    here = receiver()
    image = tools.mammogram()
    with tools.associated(here.port) as association:
        from pynetdicom.dimse_primitives import C_STORE

        for number in range(50):
            request = C_STORE()
            request.MessageID, request.Priority = number, 2
            request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
            request.DataSet = io.BytesIO(tools.encoded(image))
            association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
        assert ended(association)
    assert tools.echo(here.port) == 0


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A certificate for localhost with its key, and one that nobody trusts."""
    for name in ("node", "stranger"):
        made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        made += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        made += ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        subprocess.run(made, check=True, capture_output=True)
    return folder / "node.pem", folder / "node.key", folder / "stranger.pem"


def test_tls_both_ways_and_a_peer_without_it_holds_up_nobody(receiver: Any, tools: Any, tmp_path: Path) -> None:
    from mammoseg.apps.node.config import Tls

    certificate, key, _ = certificates(tmp_path)
    here = receiver(tls=Tls(str(certificate), str(key), ca=str(certificate)))
    context = ssl.create_default_context(cafile=str(certificate))
    with socket.create_connection(("127.0.0.1", here.port)):  # says nothing
        with tools.associated(here.port) as plain:
            assert not plain.is_established
        with tools.associated(here.port, tls_args=(context, "localhost")) as unknown:
            assert not unknown.is_established, "the node asks for a certificate"
        context.load_cert_chain(certificate, key)
        image = tools.mammogram(size=(500, 400))
        assert tools.send(here.port, image, tls_args=(context, "localhost")) == [0]
    (file,) = here.files()
    assert file.read_bytes().endswith(tools.encoded(image))


def test_connections_that_never_agree_on_tls_are_bounded(receiver: Any, tmp_path: Path) -> None:
    from mammoseg.apps.node.config import Tls

    certificate, key, _ = certificates(tmp_path)
    here = receiver(tls=Tls(str(certificate), str(key)), associations=1)
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", here.port), timeout=10))
            time.sleep(0.005)
        time.sleep(0.5)
        assert threading.active_count() - before <= 20, "no thread for each"


def test_many_senders_at_once(receiver: Any, tools: Any) -> None:
    here = receiver()
    study = uid.generate_uid()
    images = [tools.mammogram(study=study, seed=i) for i in range(24)]
    statuses: list[int] = []

    def sender(part: list[Dataset]) -> None:
        statuses.extend(tools.send(here.port, *part))

    threads = [threading.Thread(target=sender, args=(images[i::6],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0] * 24
    assert len(here.files()) == 24
    seen = here.store.snapshot(here.arrived[0])
    assert (len(seen.objects), seen.change) == (24, 24)
