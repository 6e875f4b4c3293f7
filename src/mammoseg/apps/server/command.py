"""`mammoseg serve`: the service and its viewer."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from mammoseg.apps.server.settings import MIB, Limits, ServerSettings, is_loopback
from mammoseg.errors import UsageError

DEFAULT_PORT = 8040
TOKEN_VARIABLE = "MAMMOSEG_TOKEN"


@click.command()
@click.argument("folders", nargs=-1, metavar="[FOLDER]...", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at; any but the loopback needs a token."
)
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="0 takes a free one.")
@click.option("--token", help=f"Ask for this token; the word new makes one. {TOKEN_VARIABLE} in the environment does the same.")
@click.option("--name", "names", multiple=True, help="Host name by which the server may be called (may be repeated).")
@click.option(
    "--tls",
    nargs=2,
    metavar="CERTIFICATE KEY",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Serve over TLS with these PEM files.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="BUNDLE",
    help="Weights bundle to use; the installed one by default.",
)
@click.option(
    "--truth",
    multiple=True,
    metavar="DATASET",
    help="Show the truth of this data set: KIND:PATH, or a path whose kind is recognised (may be repeated).",
)
@click.option(
    "--dicomweb",
    multiple=True,
    metavar="URL",
    help="DICOMweb server whose studies may be searched and imported (may be repeated).",
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that share a job's images."
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIRECTORY",
    help="Where uploads, jobs and their results are kept; a folder of your own account by default.",
)
@click.option(
    "--max-upload",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    metavar="MIB",
    help="Of one upload, unpacked too.",
)
@click.option(
    "--max-storage",
    type=click.IntRange(min=1),
    default=20480,
    show_default=True,
    metavar="MIB",
    help="Of all that is kept of uploads and imports.",
)
@click.option("--open", "opens", is_flag=True, help="Open a browser on it.")
def serve(folders: tuple[Path, ...], host: str, port: int, token: str | None, **options: Any) -> int:
    """Look at mammograms and findings in a browser, and segment more.

    FOLDER: images and OUT folders of `mammoseg segment`, browsed together.

    Research software, not for clinical use.
    """
    limits = Limits(upload=options["max_upload"] * MIB, storage=options["max_storage"] * MIB)
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    settings = ServerSettings(
        folders=folders,
        state=options["state"] or default_state(folders),
        bundle=options["weights"],
        host=host,
        token=secrets.token_urlsafe(32) if token == "new" else token,
        names=options["names"],
        dicomweb=options["dicomweb"],
        truth=options["truth"],
        workers=options["workers"],
        limits=limits,
        tls=options["tls"] or None,
    )
    return run(settings, port, open_browser if options["opens"] else None)


def default_state(folders: tuple[Path, ...]) -> Path:
    """A folder in this account, the same for the same folders to browse."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    key = "\0".join(sorted(os.path.abspath(f) for f in folders))
    return base / "mammoseg" / f"serve-{hashlib.sha256(os.fsencode(key)).hexdigest()[:12]}"


def is_installed() -> bool:
    """Whether the server's packages are there."""
    return all(importlib.util.find_spec(name) is not None for name in ("fastapi", "python_multipart", "uvicorn"))


def check_installed() -> None:
    """Raises `UsageError` where the server's packages are not there."""
    if not is_installed():
        raise UsageError("the viewer and its server need more packages: pip install 'mammoseg[serve]'")


def view(pairs: Sequence[tuple[Path, str, Path]], out: Path, bundle: Path) -> int:
    """Serves images with the findings just made, and opens a browser on them, until Ctrl-C.

    pairs: image file, its source name and the folder of its results. out: the run's. bundle: that it was made with.
    """
    settings = ServerSettings(folders=(), pairs=tuple(pairs), state=default_state((out,)), bundle=bundle)
    return run(settings, 0, open_browser)


def open_browser(where: str) -> None:
    """Opens a browser where there is a screen for it."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(where)


def run(settings: ServerSettings, port: int, ready: Callable[[str], None] | None = None) -> int:
    """Serves until Ctrl-C. ready: called with the address once it answers.

    Raises `UsageError` where the port cannot be had or the server's packages are not installed.
    """
    check_installed()
    import uvicorn

    from mammoseg.apps.server.app import make_app

    with _listen(settings.host, port) as listening:
        certificate, key = settings.tls or (None, None)
        config = uvicorn.Config(
            make_app(settings),
            http="h11",
            ws="none",
            log_config=_LOGGING,
            access_log=False,  # paths and addresses are nobody's business
            proxy_headers=False,
            server_header=False,
            limit_concurrency=128,
            h11_max_incomplete_event_size=16384,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        try:
            config.load()
        except (OSError, ValueError) as error:
            raise UsageError(f"--tls: the certificate and key cannot be used ({type(error).__name__})") from error
        where = address(settings, listening.getsockname()[1])
        click.echo(f"mammoseg is at {where} (Ctrl-C ends it)", err=True)
        if settings.tls is None and not is_loopback(settings.host):
            click.echo("without --tls, images and the token cross the network unencrypted", err=True)
        if ready is not None:
            ready(where)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
    return 0


def address(settings: ServerSettings, port: int) -> str:
    """What to open in a browser."""
    host = socket.gethostname() if settings.host in ("0.0.0.0", "::") else settings.host
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if settings.tls is not None else "http"
    return f"{scheme}://{shown}:{port}/" + (f"?token={quote(settings.token)}" if settings.token is not None else "")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host}, port {port} ({error.strerror}): name another with --port or --host"
        ) from error


_LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        "mammoseg.server": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
    },
}
