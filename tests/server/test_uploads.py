"""What is sent to the server: taken in where it is images, refused with the right status where it is not; nothing is left."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from mammoseg.apps.server.errors import ApiError
from mammoseg.apps.server.parts import PartsToFiles, Received, Room, harmless
from mammoseg.apps.server.settings import Limits
from mammoseg.apps.server.store import Store
from mammoseg.apps.server.uploads import Uploads

from .conftest import Running, breast, launch, mammogram_dicom

MIB = 1 << 20


def as_bytes(values: np.ndarray, bits: int = 12, **elements: object) -> bytes:
    """A DICOM file."""
    stream = io.BytesIO()
    mammogram_dicom(values, bits, **elements).save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def packed(*files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return stream.getvalue()


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with nothing to show, which takes at most 8 MiB at a time."""
    running = launch(tmp_path_factory.mktemp("uploads"), "--weights", tiny_bundle, "--max-upload", "8", "--max-storage", "64")
    yield running
    running.stop()


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    """Asks it; what was uploaded is removed afterwards, and nothing is left half done."""
    client = server.client()
    yield client
    for job in client.get("/jobs").json():
        client.post(f"/jobs/{job['job_id']}/cancel")
    for image in client.get("/images").json():
        for _ in range(100):
            if client.delete(f"/images/{image['image_id']}").status_code == 204:
                break
    assert client.get("/images").json() == []
    assert list((server.state / "uploads").iterdir()) == []


def send(client: httpx.Client, *files: tuple[str, bytes]) -> httpx.Response:
    """Sends files as a browser does."""
    return client.post("/uploads", files=[("files", file) for file in files])


def test_images_are_taken_in(client: httpx.Client) -> None:
    values = breast(12)
    answer = send(client, ("RCC.dcm", as_bytes(values)), ("readme.md", b"# nothing"))
    assert answer.status_code == 202
    (image_id,) = answer.json()["images"]
    assert answer.json()["refused"] == [{"name": "readme.md", "reason": "no DICOM, PNG, TIFF, JPEG or PGM image"}]
    image = client.get(f"/images/{image_id}").json()
    assert (image["name"], image["uploaded"], image["view_position"], image["laterality"]) == ("RCC.dcm", True, "CC", "R")
    pixels = client.get(f"/images/{image_id}/pixels")
    np.testing.assert_array_equal(np.frombuffer(pixels.content, "<u2").reshape(values.shape), values)
    assert client.get(f"/jobs/{answer.json()['job_id']}").json()["images"] == [image_id]


def test_the_same_file_is_the_same_image(client: httpx.Client) -> None:
    data = as_bytes(breast(12))
    first, second = (send(client, (name, data)).json()["images"] for name in ("a.dcm", "b.dcm"))
    assert first == second
    assert len(client.get("/images").json()) == 1


def test_archives_are_unpacked(client: httpx.Client) -> None:
    files = [(f"exam/{v}.dcm", as_bytes(breast(8), 8, InstanceNumber=n)) for n, v in enumerate(("RCC", "LCC", "RMLO", "LMLO"))]
    answer = send(client, ("exam.zip", packed(*files, ("exam/", b""), ("exam/notes.txt", b"x"), ("exam/.DS_Store", b"x"))))
    assert answer.status_code == 202
    assert len(answer.json()["images"]) == 4
    assert [r["name"] for r in answer.json()["refused"]] == ["exam/notes.txt"]
    assert sorted(i["name"] for i in client.get("/images").json()) == sorted(name for name, _ in files)


def test_names_in_archives_lead_nowhere(client: httpx.Client, server: Running) -> None:
    names = ["../../../evil.dcm", "/etc/evil.dcm", "C:\\evil.dcm", "..\\..\\evil.dcm", "a/../../b.dcm", "x" * 300 + ".dcm"]
    files = [(name, as_bytes(breast(8), 8, InstanceNumber=n)) for n, name in enumerate(names)]
    answer = send(client, ("names.zip", packed(*files)))
    assert len(answer.json()["images"]) == len(names)
    for image in client.get("/images").json():
        assert ".." not in image["name"].split("/")
        assert not image["name"].startswith("/")
        assert len(image["name"]) <= 120
    everything = {p.name for p in server.state.rglob("*")}
    assert not any("evil" in name for name in everything), "strangers' names are no file names here"
    assert not (server.state.parent / "evil.dcm").exists()


@pytest.mark.parametrize("name", ["", "../../x.dcm", "/etc/passwd.dcm", "a\0b.dcm", "con.dcm", "%2e%2e/x.dcm", "é" * 500])
def test_names_of_files_lead_nowhere(client: httpx.Client, server: Running, name: str) -> None:
    before = set(server.state.parent.iterdir())
    body = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="'
        + name.encode().replace(b'"', b"%22")
        + b'"\r\n\r\n'
        + as_bytes(breast(8), 8)
        + b"\r\n--b--\r\n"
    )
    answer = client.post("/uploads", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 202, answer.text
    assert set(server.state.parent.iterdir()) == before


REFUSED: dict[str, tuple[bytes, str, int, str]] = {
    "no multipart": (b"{}", "application/json", 415, "not_multipart"),
    "no type": (b"{}", "", 415, "not_multipart"),
    "no boundary": (b"--b\r\n", "multipart/form-data", 415, "not_multipart"),
    "a long boundary": (b"--b\r\n", "multipart/form-data; boundary=" + "b" * 1000, 400, "bad_multipart"),
    "broken": (b"no boundary at all", "multipart/form-data; boundary=b", 400, "bad_multipart"),
    "cut short": (
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.dcm"\r\n\r\nabc', "multipart/form-data; boundary=b", 400,
        "bad_multipart"),
    "long part headers": (b"--b\r\nX: " + b"x" * 100_000, "multipart/form-data; boundary=b", 400, "bad_multipart"),
    "many part headers": (b"--b\r\n" + b"X: x\r\n" * 1000, "multipart/form-data; boundary=b", 400, "bad_multipart"),
    "no files": (b"--b--\r\n", "multipart/form-data; boundary=b", 422, "no_images"),
    "a field only": (
        b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nabc\r\n--b--\r\n', "multipart/form-data; boundary=b", 422,
        "no_images"),
    "a long field": (
        b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + b"x" * 200_000 + b"\r\n--b--\r\n",
        "multipart/form-data; boundary=b", 413, "too_large"),
    "many files": (
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n\r\n' * 600 + b"--b--\r\n",
        "multipart/form-data; boundary=b", 413, "too_large"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bodies_that_are_no_upload(client: httpx.Client, case: str) -> None:
    body, kind, status, code = REFUSED[case]
    answer = client.post("/uploads", content=body, headers={"Content-Type": kind} if kind else {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_no_images_among_the_files(client: httpx.Client) -> None:
    before = client.get("/jobs").json()
    answer = send(client, ("a.txt", b"text"), ("b.pdf", b"%PDF-1.7"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "no_images")
    assert client.get("/jobs").json() == before


def test_a_large_upload_is_refused_whether_it_says_so_or_not(client: httpx.Client) -> None:
    large = b"\x89PNG" + bytes(10 * MIB)
    declared = send(client, ("large.png", large))
    assert (declared.status_code, declared.json()["error"]["code"]) == (413, "too_large")
    head = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n'

    def pieces() -> Iterator[bytes]:
        yield head
        for _ in range(200):
            yield bytes(1 << 16)

    streamed = client.post("/uploads", content=pieces(), headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (streamed.status_code, streamed.json()["error"]["code"]) == (413, "too_large")


def flattened(data: bytes, size: int) -> bytes:
    """The archive with lies about the sizes of what is in it."""
    out = bytearray(data)
    local, central = out.find(b"PK\x03\x04"), out.find(b"PK\x01\x02")
    out[local + 22 : local + 26] = struct.pack("<I", size)
    out[central + 24 : central + 28] = struct.pack("<I", size)
    return bytes(out)


def test_zip_bombs_are_refused(client: httpx.Client, server: Running) -> None:
    before, large = server.rss(), packed(("a.png", bytes(300 * MIB)))
    for data in (large, flattened(large, 100), packed(*((f"{n}.png", bytes(MIB)) for n in range(20)))):
        answer = send(client, ("bomb.zip", data))
        assert answer.status_code in (413, 422)
        assert answer.json()["error"]["code"] in ("bomb", "too_large", "bad_archive")
    assert server.rss() - before < 100 * MIB


def test_overlapping_entries_are_refused(client: httpx.Client) -> None:
    """All entries of the table of contents point at the same data (Fifield 2019)."""
    data = packed(("a.png", bytes(2 * MIB)))
    central, end = data.find(b"PK\x01\x02"), data.rfind(b"PK\x05\x06")
    entries = data[central:end] * 200
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 200, 200, len(entries), central, 0)
    answer = send(client, ("bomb.zip", data[:central] + entries + tail))
    assert answer.status_code in (413, 422)


ARCHIVES = {
    "cut": packed(("a.png", bytes(1000)))[:-5],
    "only its end": b"PK\x05\x06" + bytes(18),
    "entries elsewhere": packed(("a.png", b"x" * 1000)).replace(b"PK\x01\x02", b"PK\x01\x03"),
    "broken data": packed(("a.png", bytes(range(256)) * 40)).replace(b"\x01\x02\x03\x04", b"\xff\xff\xff\xff"),
    "an archive in an archive": packed(("b.zip", packed(("a.png", bytes(1000))))),
    "a name that is no text": packed(("\ud800.png".encode("utf-8", "surrogatepass").decode("latin-1"), b"x")),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_odd_archives_are_refused(client: httpx.Client, case: str) -> None:
    answer = send(client, ("odd.zip", ARCHIVES[case]))
    if answer.status_code == 202:  # the data may still be an image file's name with broken content: the job says so
        assert case in ("broken data", "a name that is no text")
    else:
        assert answer.status_code in (413, 422), answer.text


def test_encrypted_entries_are_named(client: httpx.Client) -> None:
    data = bytearray(packed(("secret.dcm", as_bytes(breast(8), 8))))
    data[6] |= 1
    data[data.find(b"PK\x01\x02") + 8] |= 1
    answer = send(client, ("a.zip", bytes(data)), ("b.dcm", as_bytes(breast(12))))
    assert answer.status_code == 202
    assert [r["name"] for r in answer.json()["refused"]] == ["secret.dcm"]


def test_a_full_store_refuses_more(client: httpx.Client) -> None:
    rng = np.random.default_rng(0)
    statuses = []
    for number in range(11):
        values = rng.integers(0, 4096, (1800, 1800))  # 6.5 MB each, of 64 MiB
        statuses.append(send(client, (f"{number}.dcm", as_bytes(values))).status_code)
    assert statuses[:10] == [202] * 10
    assert statuses[10] == 507


def test_only_uploads_can_be_removed(serve: Callable[..., Running], tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(as_bytes(breast(12)))
    running = serve(folder, "--weights", tiny_bundle)
    client = running.client()
    (image,) = client.get("/images").json()
    assert client.delete(f"/images/{image['image_id']}").status_code == 409
    assert client.delete(f"/images/{24 * '0'}").status_code == 404
    assert (folder / "a.dcm").is_file()
    uploaded = send(client, ("b.dcm", as_bytes(breast(8), 8))).json()
    for _ in range(600):
        if client.get(f"/jobs/{uploaded['job_id']}").json()["state"] == "done":
            break
        client.get(f"/images/{uploaded['images'][0]}/pixels")
    place = f"/images/{uploaded['images'][0]}"
    assert client.get(place).json()["status"] in ("processed", "rejected")
    assert client.delete(place).status_code == 204
    assert client.get(place).status_code == 404
    assert uploaded["images"][0] not in "".join(str(p) for p in running.state.rglob("*"))


def test_parts_take_no_memory(tmp_path: Path) -> None:
    room = Room(tmp_path, Limits(free=0), 1 << 40, 0)
    parts = PartsToFiles("multipart/form-data; boundary=b", tmp_path, room)
    parts.write(b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.dcm"\r\n\r\n')
    tracemalloc.start()
    for _ in range(1000):
        parts.write(bytes(1 << 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    parts.write(b"\r\n--b--\r\n")
    (received,) = parts.finish()
    assert received.path.stat().st_size == 1000 << 16
    assert peak < 2 * MIB


def test_a_nearly_full_disk_refuses(tmp_path: Path) -> None:
    room = Room(tmp_path, Limits(free=1 << 60), 1 << 40, 0)
    with pytest.raises(ApiError) as refused:
        room.take(1, 1)
    assert refused.value.status == 507


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "uploads" / "abc.part").mkdir()
    (tmp_path / "uploads" / "abc.part" / "000000.dcm").write_bytes(b"x")
    uploads = Uploads(store, Limits())
    assert list((tmp_path / "uploads").iterdir()) == []
    with uploads.desk() as (folder, room):
        file = folder / "000000.pgm"
        file.write_bytes(b"P5 1 1 255\n\0")
        images, refused = uploads.admit([Received(file, "a.pgm")], folder, room)
    assert (len(images), refused) == (1, [])
    store.close()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a/b/c/d/e.dcm", "c/d/e.dcm"),
        ("\r\nSet-Cookie: x", "__Set-Cookie: x"),
        (".." * 9, ".." * 9),
        ("\u202egnp.dcm", "_gnp.dcm"),
    ],
)
def test_names_are_made_harmless(name: str, shown: str) -> None:
    assert harmless(name) == shown
