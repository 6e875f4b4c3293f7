"""The settings of a node, as its TOML file holds them; checked whole before anything starts."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from mammoseg.apps.outputs import FORMATS
from mammoseg.config import load_toml
from mammoseg.errors import ConfigError

IMPLEMENTATION_NAME = "MAMMOSEG"
_MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a peer may cost.

    object_mib: largest object. associations: at a time. pdu_kib: longest PDU we take, and announce. association_s: how long one
    may last in all. idle_s: how long a peer may be silent. free_mib: objects are refused while the disk has less left.
    """

    object_mib: int = 256
    associations: int = 8
    pdu_kib: int = 128
    association_s: float = 1800.0
    idle_s: float = 60.0
    free_mib: int = 1024

    def __post_init__(self) -> None:
        for name in ("object_mib", "associations", "association_s", "idle_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if not 16 <= self.pdu_kib <= 16384:
            raise ValueError(f"pdu_kib: expected 16 to 16384, got {self.pdu_kib}")
        if self.free_mib < 0:
            raise ValueError(f"free_mib: expected 0 or more, got {self.free_mib}")

    @property
    def object_bytes(self) -> int:
        """The largest object in bytes."""
        return self.object_mib * _MIB


@dataclass(frozen=True)
class Tls:
    """TLS of what we receive. certificate, key: our own, PEM. ca: of the peers, who then must have a certificate."""

    certificate: str
    key: str
    ca: str = ""

    def context(self) -> ssl.SSLContext:
        """For the server. Raises `ConfigError` where a file cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _load(context, self.certificate, self.key, self.ca, "tls")
        if self.ca:
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True)
class Destination:
    """Where results go: `kind` "dicom" (C-STORE: host, port, ae_title) or "stow" (DICOMweb STOW-RS: url).

    tls: speak TLS (of `url`, https says so). ca, certificate, key: PEM files: whom to trust (the system's by default), and our
    own certificate where the peer asks for one. verify_host: the certificate must be of this host name.
    username, password_file: HTTP basic authentication. timeout_s: of a connection and of each answer. retry_s, retry_max_s:
    the first and the longest pause after a failure; the pause doubles with each.
    """

    name: str
    kind: Literal["dicom", "stow"] = "dicom"
    host: str = ""
    port: int = 0
    ae_title: str = ""
    url: str = ""
    tls: bool = False
    ca: str = ""
    certificate: str = ""
    key: str = ""
    verify_host: bool = True
    username: str = ""
    password_file: str = ""
    timeout_s: float = 60.0
    retry_s: float = 5.0
    retry_max_s: float = 3600.0

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise ValueError(f"name: expected a printable name, got {self.name!r}")
        if self.kind == "dicom":
            _check_ae(self.ae_title, f"{self.name}: ae_title")
            if not self.host or not 0 < self.port < 65536:
                raise ValueError(f"{self.name}: expected host and port of the destination, got {self.host!r} and {self.port}")
        elif urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ValueError(f"{self.name}: expected url as http(s)://host/dicom-web, got {self.url!r}")
        if not 0 < self.retry_s <= self.retry_max_s or self.timeout_s <= 0:
            raise ValueError(f"{self.name}: expected 0 < retry_s <= retry_max_s and timeout_s > 0")

    def context(self) -> ssl.SSLContext | None:
        """For the client, or None without TLS. Raises `ConfigError` where a file cannot be used."""
        if not self.tls and not self.url.startswith("https:"):
            return None
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _load(context, self.certificate, self.key, self.ca, f"destination {self.name}")
        context.check_hostname = self.verify_host
        return context

    def password(self) -> str:
        """The first line of `password_file`. Raises `ConfigError` where it cannot be read."""
        try:
            return Path(self.password_file).read_text(encoding="utf-8").split("\n")[0] if self.password_file else ""
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"destination {self.name}: password_file {self.password_file} cannot be read") from error


@dataclass(frozen=True)
class Analysis:
    """How studies are analysed.

    weights: a bundle, the installed one by default. set: changes of its settings, as `--set`. formats: as `--formats` of
    `mammoseg segment`; the DICOM objects among them are delivered. image_s: an image that takes longer is given up as failed.
    """

    weights: str = ""
    set: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("json", "seg", "cadsr", "sr", "pr")
    image_s: float = 600.0

    def __post_init__(self) -> None:
        unknown = [f for f in self.formats if f not in FORMATS]
        if unknown:
            raise ValueError(f"formats: {unknown[0]!r} is not known; known here: {', '.join(FORMATS)}")
        if self.image_s <= 0:
            raise ValueError(f"image_s: expected more than 0, got {self.image_s}")


@dataclass(frozen=True)
class NodeConfig:
    """A whole node.

    spool: folder for what is received and made; a node has it for itself. ae_title, host, port: what we listen as and on.
    calling: AE titles that may send to us; nobody else may. quiet_s: a study is complete when nothing of it came for so long.
    keep_h: how long images and results of a finished study are kept, so that late images join them. log: a file for the log;
    standard error by default. grace_s: how long associations may go on when the node is told to stop.
    """

    spool: str = "/var/lib/mammoseg"
    ae_title: str = "MAMMOSEG"
    host: str = "127.0.0.1"
    port: int = 11112
    calling: tuple[str, ...] = ()
    quiet_s: float = 60.0
    keep_h: float = 168.0
    log: str = ""
    grace_s: float = 10.0
    limits: Limits = field(default_factory=Limits)
    tls: Tls | None = None
    analysis: Analysis = field(default_factory=Analysis)
    destinations: tuple[Destination, ...] = ()

    def __post_init__(self) -> None:
        if not self.spool:
            raise ValueError("spool: expected a folder, got nothing")
        _check_ae(self.ae_title, "ae_title")
        if not self.calling:
            raise ValueError("calling: expected the AE titles that may send to this node, got none")
        for title in self.calling:
            _check_ae(title, "calling")
        if not 0 <= self.port < 65536:
            raise ValueError(f"port: expected 1 to 65535 (0 takes a free one), got {self.port}")
        if self.quiet_s <= 0 or self.keep_h < 0 or self.grace_s < 0:
            raise ValueError("expected quiet_s above 0, keep_h and grace_s of at least 0")
        twice = [name for name, n in Counter(d.name for d in self.destinations).items() if n > 1]
        if twice:
            raise ValueError(f"destinations: the name {twice[0]!r} is there twice; each needs its own")


def load_config(path: Path, sets: Iterable[str] = ()) -> NodeConfig:
    """Reads and checks a node's TOML file. Raises `ConfigError` where something is wrong, certificates included."""
    config = load_toml(NodeConfig, path, sets)
    if config.tls is not None:
        config.tls.context()
    for destination in config.destinations:
        destination.context()
        destination.password()
    return config


def _check_ae(title: str, where: str) -> None:
    """PS3.5 6.2: at most 16 characters of the default repertoire, no backslash, not only spaces."""
    if not title.strip() or title != title.strip() or len(title) > 16 or "\\" in title or not title.isascii():
        raise ValueError(f"{where}: expected an AE title (1 to 16 ASCII characters, no backslash), got {title!r}")
    if not title.isprintable():
        raise ValueError(f"{where}: expected an AE title of printable characters, got {title!r}")


def _load(context: ssl.SSLContext, certificate: str, key: str, ca: str, where: str) -> None:
    try:
        if certificate:
            context.load_cert_chain(certificate, key or None)
        if ca:
            context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(f for f in (certificate, key, ca) if f)
        why = error.strerror if isinstance(error, OSError) and error.strerror else "not PEM, or not belonging together"
        raise ConfigError(f"{where}: the files {files} cannot be used ({why}); check paths, permissions and format") from error
