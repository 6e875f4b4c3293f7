"""The gate before the application: who may ask, from where, how much; and the headers of every answer.

Plain ASGI, outermost, so that nothing is answered without it: pages, assets, errors and unknown paths alike.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from h11 import LocalProtocolError

from mammoseg.apps.server.settings import MIB, ServerSettings, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("mammoseg.server")
COOKIE = "mammoseg_session"
UPLOADS = "/api/v1/uploads"
_MULTIPART_EXTRA = MIB  # of part headers and boundaries
_DRAIN_BYTES, _DRAIN_S = 64 * MIB, 5.0
_SAFE = ("GET", "HEAD", "OPTIONS")

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self'; worker-src 'self' blob:; manifest-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-embedder-policy", b"require-corp"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
_LOGIN = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>mammoseg</title>"
    "<p>This server asks for its token: open the address that it printed when it started, or type the token.</p>"
    "<form action=/ method=get><label>Token <input name=token type=password autofocus autocomplete=off></label> "
    "<button>Open</button></form><p>Research software. Not a medical device, not for clinical use.</p></html>"
)


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


class Guard:
    """app: what is guarded."""

    def __init__(self, app: App, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings
        self._token = settings.token
        self._names = {"localhost", settings.host.lower(), *(n.lower() for n in settings.names)}
        if not is_loopback(settings.host):
            self._names.add(socket.gethostname().lower())
        self._session = session_of(settings.token) if settings.token is not None else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        exchange = _Exchange(scope, receive, send, self._settings.limits.stall_s)
        try:
            headers = _headers_of(scope)
            self._check_host(headers)
            if self._token is not None and (entry := self._entry(scope)) is not None:
                await exchange.answer(303, b"", b"text/plain", (b"location", b"/"), (b"set-cookie", entry))
                return
            self._check_token(scope, headers)
            _check_origin(scope, headers)
            exchange.allow(self._body_limit(scope), headers)
            await self._app(scope, exchange.receive, exchange.send)
            exchange.check()
        except _Refused as refusal:
            await self._refuse(scope, exchange, refusal)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the message may hold anything, and is not for a log
            if exchange.refusal is not None:
                await self._refuse(scope, exchange, exchange.refusal)
                return
            frame = error.__traceback__
            while frame is not None and frame.tb_next is not None:
                frame = frame.tb_next
            where = f"{frame.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.tb_lineno}" if frame is not None else "?"
            if not exchange.gone:
                log.error("a request ended in %s at %s", type(error).__name__, where)
            mistake = _Refused(500, "internal", "the server made a mistake; its log names the place")
            await self._refuse(scope, exchange, mistake)

    def _check_host(self, headers: dict[bytes, list[bytes]]) -> None:
        """Against DNS rebinding: a name that a stranger chose to point at this machine is not one of ours."""
        given = headers.get(b"host", [])
        if len(given) != 1:
            raise _Refused(400, "bad_host", "expected one Host header")
        name = _host_name(given[0].decode("latin-1"))
        if name is None:
            raise _Refused(400, "bad_host", "expected a host name or an address as Host")
        if name not in self._names and not _is_address(name):
            raise _Refused(421, "unknown_host", "this server is not called by that name; --name allows another one")

    def _entry(self, scope: Scope) -> bytes | None:
        """The cookie for a page that was opened with the right ?token=, else None."""
        assert self._token is not None
        if scope["method"] != "GET" or scope["path"] != "/" or not scope["query_string"]:
            return None
        try:
            given = parse_qs(scope["query_string"].decode("ascii"), max_num_fields=8).get("token", [""])[0]
        except ValueError:
            return None
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode()):
            return None
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        return f"{COOKIE}={self._session}; Path=/; HttpOnly; SameSite=Strict{secure}".encode()

    def _check_token(self, scope: Scope, headers: dict[bytes, list[bytes]]) -> None:
        if self._token is None:
            return
        for value in headers.get(b"authorization", []):
            kind, _, given = value.partition(b" ")
            if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token.encode()):
                return
        for value in headers.get(b"cookie", []):
            try:
                cookie = SimpleCookie(value.decode("latin-1")).get(COOKIE)
            except CookieError:
                continue
            if cookie is not None and hmac.compare_digest(cookie.value.encode("utf-8", "replace"), self._session.encode()):
                return
        raise _Refused(401, "token", "this server asks for its token", (b"www-authenticate", b'Bearer realm="mammoseg"'))

    def _body_limit(self, scope: Scope) -> int:
        limits = self._settings.limits
        return limits.upload + _MULTIPART_EXTRA if scope["path"] == UPLOADS else limits.json

    async def _refuse(self, scope: Scope, exchange: _Exchange, refusal: _Refused) -> None:
        if exchange.started:
            return  # too late for another answer; the connection ends here
        if refusal.status == 401 and scope["method"] == "GET" and not scope["path"].startswith("/api/"):
            await exchange.answer(401, _LOGIN.encode(), b"text/html; charset=utf-8", *refusal.headers)
            return
        body = json.dumps({"error": {"message": refusal.message, "code": refusal.code}}).encode()
        if refusal.status == 413:
            await exchange.drain()
        await exchange.answer(refusal.status, body, b"application/json", *refusal.headers)


class _Exchange:
    """One request and its answer: counts what comes in, adds headers to what goes out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, stall_s: float) -> None:
        self._scope, self._receive, self._send, self._stall_s = scope, receive, send, stall_s
        self._left = 0
        self._ended = False
        self.started = self.gone = False
        self.refusal: _Refused | None = None

    def allow(self, limit: int, headers: dict[bytes, list[bytes]]) -> None:
        """Lets at most `limit` bytes of body through. Raises where the request says that it has more."""
        self._left = limit
        declared = headers.get(b"content-length", [b"0"])[0]
        if not declared.isdigit() or len(declared) > 18:
            raise _Refused(400, "bad_request", "expected a number as Content-Length")
        if int(declared) > limit:
            raise self._too_large()

    def _too_large(self) -> _Refused:
        return _Refused(413, "too_large", "the request is larger than this server allows; /api/v1/info names the limits")

    async def receive(self) -> Message:
        """As ASGI's; ends the request where it is too large or stands still."""
        if self.refusal is not None:
            return {"type": "http.disconnect"}
        waits = None if self._ended else self._stall_s  # after the body only the end of the connection can come
        try:
            message = await asyncio.wait_for(self._receive(), waits)
        except TimeoutError:
            self.refusal = _Refused(408, "timeout", "the request did not arrive in time; send it again")
            return {"type": "http.disconnect"}
        if message["type"] == "http.disconnect":
            self.gone = True
        else:
            self._left -= len(message.get("body", b""))
            self._ended = not message.get("more_body", False)
            if self._left < 0:
                self.refusal = self._too_large()
                return {"type": "http.disconnect"}
        return message

    def check(self) -> None:
        """Raises what stopped the request, if anything did."""
        if self.refusal is not None:
            raise self.refusal

    async def send(self, message: Message) -> None:
        """As ASGI's, with the headers of every answer. What a stopped request still says is dropped."""
        if self.refusal is not None and not self.started:
            return
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": self._with_ours(message.get("headers", ()))}
        try:
            await self._send(message)
        except LocalProtocolError:  # the rest of the request was no HTTP: it has been answered 400 and hung up on
            self.gone = True
            log.warning("an answer could not be sent")

    def _with_ours(self, given: Any) -> list[tuple[bytes, bytes]]:
        headers = [(bytes(k).lower(), bytes(v)) for k, v in given]
        names = {k for k, _ in headers}
        if b"cache-control" not in names:
            headers.append((b"cache-control", b"no-store"))
        headers += [h for h in _HEADERS if h[0] not in names]
        return headers

    async def answer(self, status: int, body: bytes, kind: bytes, *headers: tuple[bytes, bytes]) -> None:
        """A whole answer of the gate's own."""
        self.refusal = None
        length = str(len(body)).encode()
        given = [(b"content-type", kind), (b"content-length", length), (b"cache-control", b"no-store"), *headers]
        if not self._ended and self._scope["method"] not in _SAFE:
            given.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": status, "headers": given})
        await self.send({"type": "http.response.body", "body": b"" if self._scope["method"] == "HEAD" else body})

    async def drain(self) -> None:
        """Reads on for a moment, so that a client that is still sending gets to see the answer."""
        left, until = _DRAIN_BYTES, time.monotonic() + _DRAIN_S
        while not self._ended and not self.gone and left > 0 and time.monotonic() < until:
            try:
                message = await asyncio.wait_for(self._receive(), max(0.1, until - time.monotonic()))
            except TimeoutError:
                return
            self.gone = message["type"] == "http.disconnect"
            left -= len(message.get("body", b""))
            self._ended = not message.get("more_body", False)


def session_of(token: str) -> str:
    """What the cookie holds: made from the token, but not the token."""
    return hmac.new(token.encode(), b"mammoseg session", hashlib.sha256).hexdigest()


def _headers_of(scope: Scope) -> dict[bytes, list[bytes]]:
    headers: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(bytes(name).lower(), []).append(bytes(value))
    return headers


def _host_name(host: str) -> str | None:
    """The name or address of a Host header or an origin's authority, without the port; None where it is neither.

    >>> _host_name("LocalHost:80"), _host_name("[::1]:8040"), _host_name("a b"), _host_name("x@y")
    ('localhost', '::1', None, None)
    """
    if not host or any(c in host for c in " \t/\\@?#%,") or not host.isprintable():
        return None
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018  raises ValueError for a port that is none
        return parts.hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _check_origin(scope: Scope, headers: dict[bytes, list[bytes]]) -> None:
    """Other sites' pages may not ask anything here but to be led to the viewer (cross-site request forgery)."""
    site = headers.get(b"sec-fetch-site", [b"none"])[0]
    page = scope["method"] == "GET" and not scope["path"].startswith("/api/")
    if site not in (b"same-origin", b"none") and not page:
        raise _Refused(403, "cross_site", "other sites may not use this server")
    origins = headers.get(b"origin", [])
    if any(_authority(o.decode("latin-1").lower()) != headers[b"host"][0].decode("latin-1").lower() for o in origins):
        raise _Refused(403, "cross_site", "other sites may not use this server")


def _authority(origin: str) -> str | None:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc if parts.scheme in ("http", "https") else None
