"""Who may ask, from where, and how much: tokens, names, other sites, sizes, and the headers of every answer."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from mammoseg.apps.server.guard import CSP, session_of
from mammoseg.apps.server.settings import ServerSettings, check_server
from mammoseg.errors import UsageError

from .conftest import TOKEN, Running, breast, launch, mammogram_dicom, save


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image."""
    folder = tmp_path_factory.mktemp("one")
    save(mammogram_dicom(breast(12), 12), folder / "a.dcm")
    return folder


@pytest.fixture(scope="module")
def guarded(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that asks for a token."""
    running = launch(tmp_path_factory.mktemp("guarded"), images, token=TOKEN)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def open_one(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that asks for none."""
    running = launch(tmp_path_factory.mktemp("open"), images)
    yield running
    running.stop()


PATHS = [
    "/",
    "/index.html",
    "/nothing",
    "/api/v1/info",
    "/api/v1/images",
    "/api/v1/openapi.json",
    "/api/v1/nothing",
    "/assets/x.js",
]
WRONG: dict[str, dict[str, str]] = {
    "none": {},
    "another": {"Authorization": "Bearer another token of the same kind"},
    "empty": {"Authorization": "Bearer"},
    "basic": {"Authorization": f"Basic {TOKEN}"},
    "a part": {"Authorization": f"Bearer {TOKEN[:-1]}"},
    "longer": {"Authorization": f"Bearer {TOKEN}x"},
    "bytes": {"Authorization": "Bearer \xff\xfe"},
    "cookie with the token itself": {"Cookie": f"mammoseg_session={TOKEN}"},
    "broken cookie": {"Cookie": 'mammoseg_session="\\400; ='},
    "cookie of another token": {"Cookie": f"mammoseg_session={session_of('another token here')}"},
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_given_without_the_token(guarded: Running, path: str, wrong: str) -> None:
    headers = {k: v.encode("latin-1") for k, v in WRONG[wrong].items()}
    answer = httpx.get(guarded.url + path, headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "ODD"])
def test_nothing_is_done_without_the_token(guarded: Running, method: str) -> None:
    for path in ("/", "/api/v1/jobs", "/api/v1/uploads"):
        assert httpx.request(method, guarded.url + path, trust_env=False).status_code == 401


def test_the_token_as_a_header(guarded: Running) -> None:
    assert guarded.client().get("/info").status_code == 200
    assert (
        httpx.get(f"{guarded.url}/api/v1/info", headers={"Authorization": f"bearer  {TOKEN}"}, trust_env=False).status_code
        == 200
    )


def test_the_token_in_the_address_becomes_a_cookie(guarded: Running) -> None:
    with httpx.Client(base_url=guarded.url, trust_env=False) as client:
        opened = client.get("/", params={"token": TOKEN})
        assert (opened.status_code, opened.headers["location"]) == (303, "/")
        cookie = opened.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert TOKEN not in cookie
        assert client.get("/api/v1/info").status_code == 200
        assert client.get("/").status_code == 200
    for wrong in ("", TOKEN[:-1], "x" * 1000):
        refused = httpx.get(guarded.url, params={"token": wrong}, trust_env=False)
        assert refused.status_code == 401
        assert "set-cookie" not in refused.headers
    assert httpx.get(f"{guarded.url}/api/v1/info", params={"token": TOKEN}, trust_env=False).status_code == 401
    assert TOKEN not in guarded.log.read_text().split("\n", 1)[1], "only the address that is printed at the start may show it"


def _send(running: Running, text: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", running.port), 20) as connection:
        connection.sendall(text.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        out = b""
        while piece := connection.recv(65536):
            out += piece
    return out


def _status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer.split(b" ", 2)[1])


HOSTS = {
    "localhost": 200, "LOCALHOST:8040": 200, "127.0.0.1:1": 200, "[::1]:8040": 200, "192.0.2.1": 200,
    "evil.example": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example": 421, "xlocalhost": 421,
    "": 400, "a b": 400, "user@localhost": 400, "localhost:port": 400, "localhost/": 400, "[::1": 400,
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_names_that_a_stranger_pointed_here_are_refused(open_one: Running, host: str) -> None:
    answer = _send(open_one, f"GET /api/v1/info HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert _status(answer) == HOSTS[host]


def test_two_hosts_or_none(open_one: Running) -> None:
    assert _status(_send(open_one, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")) == 400
    assert _status(_send(open_one, b"GET / HTTP/1.1\r\n\r\n")) == 400


CROSS = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Origin": "http://["},
    {"Origin": "file://"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", CROSS, ids=str)
def test_other_sites_may_ask_nothing(open_one: Running, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/images"), ("POST", "/jobs"), ("POST", "/uploads"), ("DELETE", "/images/" + 24 * "0")):
        answer = open_one.client().request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site")
        assert "access-control-allow-origin" not in answer.headers
    assert open_one.client().get("/jobs").json() == []


def test_the_viewer_itself_may_ask(open_one: Running) -> None:
    headers = {"Origin": open_one.url, "Sec-Fetch-Site": "same-origin"}
    assert open_one.client().post("/jobs", headers=headers, json={"images": [24 * "0"]}).status_code == 404
    led_here = httpx.get(open_one.url, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, trust_env=False)
    assert led_here.status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/api/v1/info", "/api/v1/images/x/pixels", "/api/v1/images", "/api/v1/nothing"]
)
def test_every_answer_has_the_headers(open_one: Running, path: str) -> None:
    headers = httpx.get(open_one.url + path, trust_env=False).headers
    assert headers["content-security-policy"] == CSP
    assert "unsafe" not in CSP
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] in (("no-store",) if path.startswith("/api") else ("no-store", "private, no-cache"))
    assert "server" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd", "/..%2f..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..\\..\\etc\\passwd",
        "//etc/passwd", "/assets/../../guard.py", "/assets/%2e%2e/%2e%2e/guard.py", "/%00", "/index.html%00.js", "/a/" * 500,
        "/api/v1/images/../../../../etc/passwd/pixels", "/api/v1/images/..%2f..%2fetc%2fpasswd/pixels",
        "/api/v1/images/000000000000000000000000/results/../../../../etc/passwd", "/api/v1/jobs/%2e%2e", "/api/v1/../../x",
    ],
)  # fmt: skip
def test_paths_lead_nowhere(open_one: Running, path: str) -> None:
    answer = _send(open_one, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert _status(answer) in (400, 404, 422)
    assert b"root:" not in answer
    assert b"def " not in answer


def test_bodies_are_limited(open_one: Running) -> None:
    client = open_one.client()
    large = b'{"images": ["' + b"0" * (2 << 20) + b'"]}'
    declared = client.post("/jobs", content=large, headers={"Content-Type": "application/json"})
    assert (declared.status_code, declared.json()["error"]["code"]) == (413, "too_large")
    pieces = client.post("/jobs", content=(large[i : i + 9999] for i in range(0, len(large), 9999)))
    assert (pieces.status_code, pieces.json()["error"]["code"]) == (413, "too_large")
    for length in (b"-1", b"1e3", b"9" * 40, b"0x10", b"+5"):
        answer = _send(open_one, b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + length + b"\r\n\r\n{}")
        assert _status(answer) in (400, 413)


def test_a_body_that_stands_still_is_given_up(tmp_path: Path, images: Path) -> None:
    """In this process, with less patience than by default."""
    import asyncio

    from mammoseg.apps.server.app import make_app
    from mammoseg.apps.server.settings import Limits

    app = make_app(ServerSettings(folders=(images,), state=tmp_path / "state", limits=Limits(stall_s=0.2)))
    sent: list[dict] = []
    headers = [(b"host", b"localhost"), (b"content-length", b"100"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/api/v1/jobs", "query_string": b"", "headers": headers,
             "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "http_version": "1.1",
             "raw_path": b"/api/v1/jobs", "root_path": "", "asgi": {"version": "3.0"}}  # fmt: skip

    async def never() -> dict:
        await asyncio.sleep(60)
        raise AssertionError("unreachable")

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(app(scope, never, send))
    app._app.state.service.stop()
    assert sent[0]["status"] == 408


def test_many_headers_and_long_ones(open_one: Running) -> None:
    many = b"".join(b"X-%d: 1\r\n" % i for i in range(100_000))
    for odd in (many, b"X: " + b"a" * 10_000_000 + b"\r\n"):
        with socket.create_connection(("127.0.0.1", open_one.port), 20) as connection:
            try:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + odd + b"\r\n")
                answer = connection.recv(65536)
            except OSError:  # the server hung up before all was sent
                continue
            assert answer == b"" or _status(answer) in (400, 431)
    assert open_one.client().get("/info").status_code == 200


def test_an_address_for_others_needs_a_token(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::", "some.name"):
        with pytest.raises(UsageError, match="--token"):
            ServerSettings(folders=(), state=tmp_path, host=host)
    for token in ("", "short", "ü" * 30, "a\nb" * 10):
        with pytest.raises(UsageError, match="--token"):
            ServerSettings(folders=(), state=tmp_path, token=token)
    command = [sys.executable, "-m", "mammoseg.apps.cli", "serve", "--host", "0.0.0.0", "--state", str(tmp_path / "s")]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "--token" in refused.stderr


def test_a_token_is_made_on_request(serve: Callable[..., Running], images: Path) -> None:
    running = serve(images, "--host", "0.0.0.0", token="new")
    said = running.log.read_text()
    token = said.split("?token=")[1].split()[0]
    assert len(token) >= 40
    assert "unencrypted" in said
    name = running.url.split("//")[1].split(":")[0]
    place = f"http://127.0.0.1:{running.port}/api/v1/info"
    assert httpx.get(place, trust_env=False).status_code == 401
    assert httpx.get(place, headers={"Authorization": f"Bearer {token}", "Host": name}, trust_env=False).status_code == 200


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "pacs:8042", "http://", "http://u:p@x/", "http://x/?a=1", "http://x:y/", "http://x/#a"]
)
def test_dicomweb_addresses(url: str) -> None:
    with pytest.raises(UsageError, match="--dicomweb"):
        check_server(url)
    assert check_server("http://pacs:8042/dicom-web/") == "http://pacs:8042/dicom-web"


def test_one_server_a_state_folder(open_one: Running, images: Path) -> None:
    command = [sys.executable, "-m", "mammoseg.apps.cli", "serve", str(images), "--port", "0", "--state", str(open_one.state)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--state" in refused.stderr


def test_a_port_in_use(open_one: Running, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mammoseg.apps.cli", "serve", "--port", str(open_one.port), "--state", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--port" in refused.stderr


def test_no_telemetry_even_where_the_environment_asks_for_it(serve: Callable[..., Running], images: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as collector:
        collector.settimeout(0.1)
        where = f"http://127.0.0.1:{collector.getsockname()[1]}"
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": where,
            "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
            "OTEL_SDK_DISABLED": "false",
        }
        running = serve(images, env=environment)
        assert running.client().get("/images").status_code == 200
        time.sleep(1)
        assert running.stop() == 0
        with pytest.raises(TimeoutError):
            collector.accept()
