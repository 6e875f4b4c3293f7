"""What a server is started with, and the limits it keeps."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from mammoseg.errors import UsageError

MIB = 1 << 20
GIB = 1 << 30
TOKEN_MIN = 16
AUTHORIZATION = "MAMMOSEG_DICOMWEB_AUTHORIZATION"


@dataclass(frozen=True)
class Limits:
    """Bytes unless named otherwise.

    upload, files: of one upload, as sent and as unpacked, and how many files. file: of one image. storage: of all that was
    uploaded or imported and is kept. json: of any other request's body. pixels: of decoded images kept at hand.
    stall_s: how long a request may stand still, in seconds. free: of the disk, always left free.
    """

    upload: int = 2 * GIB
    file: int = 512 * MIB
    files: int = 500
    storage: int = 20 * GIB
    json: int = MIB
    pixels: int = 256 * MIB
    stall_s: float = 60.0
    free: int = GIB


@dataclass(frozen=True)
class ServerSettings:
    """folders: inputs and OUT folders to browse. state: where uploads, jobs and their results are kept.

    bundle: of the weights, the installed ones by default. token: asked of every request where given. names: host names by
    which the server may be called, besides those of the loopback and addresses. dicomweb: base URLs of the servers that may
    be asked. truth: dataset specs. pairs: image file, its source name and results folder, where known exactly.
    tls: certificate and key as PEM files.
    """

    folders: tuple[Path, ...]
    state: Path
    bundle: Path | None = None
    host: str = "127.0.0.1"
    token: str | None = None
    names: tuple[str, ...] = ()
    dicomweb: tuple[str, ...] = ()
    truth: tuple[str, ...] = ()
    workers: int = 1
    pairs: tuple[tuple[Path, str, Path], ...] = ()
    tls: tuple[Path, Path] | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dicomweb", tuple(check_server(url) for url in self.dicomweb))
        if self.token is None and not is_loopback(self.host):
            raise UsageError(
                f"--host {self.host} can be reached from other machines: give --token (or --token new), or leave --host out"
            )
        if self.token is not None and (len(self.token) < TOKEN_MIN or not self.token.isascii() or not self.token.isprintable()):
            raise UsageError(f"--token: expected at least {TOKEN_MIN} plain characters; --token new makes one")


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine alone.

    >>> is_loopback("localhost"), is_loopback("127.0.0.2"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_server(url: str) -> str:
    """A server's base URL without a slash at its end. Raises `UsageError` where it is none."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise UsageError(
            f"--dicomweb: expected the base URL of a DICOMweb server such as http://pacs:8042/dicom-web, got {url!r}"
        )
    if parts.username is not None:
        raise UsageError(f"--dicomweb: leave the password out of the URL and set {AUTHORIZATION} in the environment")
    return url.rstrip("/")
