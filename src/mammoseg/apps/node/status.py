"""What a node has to do, in numbers: read from its database, whether it runs or not. Nothing of a patient is in it."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from mammoseg.apps.node.config import NodeConfig
from mammoseg.apps.node.service import is_running
from mammoseg.apps.node.store import DATABASE
from mammoseg.errors import UsageError

_STUDIES = (
    "SELECT COALESCE(SUM(change > done AND attempts = 0), 0), COALESCE(SUM(change > done AND attempts > 0), 0), "
    "COALESCE(SUM(change = done), 0) FROM studies"
)
_DELIVERIES = (
    "SELECT destination, SUM(delivered IS NULL), SUM(delivered IS NOT NULL), MIN(CASE WHEN delivered IS NULL THEN made END), "
    "COALESCE(MAX(CASE WHEN delivered IS NULL THEN attempts END), 0) FROM deliveries GROUP BY destination"
)


def read_status(config: NodeConfig) -> dict[str, Any]:
    """Counts of studies, images and deliveries. Raises `UsageError` where the spool holds no node's database."""
    database = Path(config.spool) / DATABASE
    if not database.is_file():
        raise UsageError(f"no node ever ran in {config.spool}: start one, or correct `spool`")
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)
        try:
            waiting, failing, finished = connection.execute(_STUDIES).fetchone()
            images, size = connection.execute("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM objects").fetchone()
            rows = connection.execute(_DELIVERIES).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise UsageError(f"{database} cannot be read ({type(error).__name__}); check its permissions") from error
    destinations = {d.name: _delivery(True) for d in config.destinations}
    for name, left, done, oldest, attempts in rows:
        age = None if oldest is None else round(max(0.0, time.time() - oldest), 1)
        destinations[name] = _delivery(name in destinations, left, done, age, attempts)
    return {
        "running": is_running(Path(config.spool)),
        "studies": {"waiting": waiting, "failing": failing, "finished": finished},
        "images": {"held": images, "bytes": size},
        "destinations": destinations,
    }


def _delivery(
    configured: bool, waiting: int = 0, delivered: int = 0, age: float | None = None, tries: int = 0
) -> dict[str, Any]:
    return {"configured": configured, "waiting": waiting, "delivered": delivered, "oldest_s": age, "failed_attempts": tries}


def as_text(status: dict[str, Any]) -> str:
    """The status for people."""
    studies, images = status["studies"], status["images"]
    lines = [
        f"node: {'running' if status['running'] else 'not running'}",
        f"studies: {studies['waiting']} waiting or in analysis, {studies['failing']} failing, {studies['finished']} finished",
        f"images held: {images['held']} ({images['bytes'] / 1e6:.1f} MB)",
    ]
    for name, d in status["destinations"].items():
        waits = f" (oldest {d['oldest_s']:.0f} s, up to {d['failed_attempts']} failed attempts)" if d["waiting"] else ""
        gone = "" if d["configured"] else "; not in the configuration any more"
        lines.append(f"to {name}: {d['waiting']} waiting{waits}, {d['delivered']} delivered{gone}")
    return "\n".join(lines)
