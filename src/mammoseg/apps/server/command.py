"""`mammoseg serve`: the service and its viewer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
from pathlib import Path
from typing import Any

import click

from mammoseg.apps.server.settings import ServerSettings, is_loopback
from mammoseg.errors import UsageError

DEFAULT_PORT = 8040


@click.command()
@click.argument("folders", nargs=-1, metavar="[FOLDER]...", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at; any but the loopback needs a token."
)
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="0 takes a free one.")
@click.option("--token", help="Ask for this token; the word new makes one. MAMMOSEG_TOKEN in the environment does the same.")
@click.option("--name", "names", multiple=True, help="Host name by which the server may be called (may be repeated).")
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="BUNDLE",
    help="Weights bundle to use; the installed one by default.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIRECTORY",
    help="Where uploads, jobs and their results are kept; a folder of your own account by default.",
)
def serve(folders: tuple[Path, ...], host: str, port: int, token: str | None, **options: Any) -> int:
    """Look at mammograms and findings in a browser, and segment more.

    FOLDER: images and OUT folders of `mammoseg segment`, browsed together.

    Research software, not for clinical use.
    """
    token = token or os.environ.get("MAMMOSEG_TOKEN") or None
    settings = ServerSettings(
        folders=folders,
        state=options["state"] or default_state(folders),
        bundle=options["weights"],
        host=host,
        token=secrets.token_urlsafe(32) if token == "new" else token,
        names=options["names"],
    )
    return run(settings, port)


def default_state(folders: tuple[Path, ...]) -> Path:
    """A folder in this account, the same for the same folders to browse."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    key = "\0".join(sorted(os.path.abspath(f) for f in folders))
    return base / "mammoseg" / f"serve-{hashlib.sha256(os.fsencode(key)).hexdigest()[:12]}"


def run(settings: ServerSettings, port: int) -> int:
    """Serves until Ctrl-C. Raises `UsageError` where the port cannot be had or the server's packages are not installed."""
    try:
        import uvicorn

        from mammoseg.apps.server.app import make_app
    except ImportError as error:
        raise UsageError("the server needs more packages: pip install 'mammoseg[serve]'") from error
    listening = _listen(settings.host, port)
    with listening:
        config = uvicorn.Config(
            make_app(settings),
            http="h11",
            ws="none",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=128,
            h11_max_incomplete_event_size=16384,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
        )
        click.echo(f"mammoseg is at {address(settings, listening.getsockname()[1])} (Ctrl-C ends it)", err=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
    return 0


def address(settings: ServerSettings, port: int) -> str:
    """What to open in a browser."""
    host = settings.host if is_loopback(settings.host) or settings.host not in ("0.0.0.0", "::") else socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={settings.token}" if settings.token is not None else "")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host}, port {port} ({error.strerror}): name another with --port or --host"
        ) from error
