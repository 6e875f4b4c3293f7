"""What the figures of a run were measured on, and how quiet it was."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

LIBRARIES = ("mammoseg", "openvino", "onnxruntime", "torch", "numpy", "opencv-python-headless", "pydicom", "ray")
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")


def cpu_info() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is no such file."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.is_file() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """The machine, the libraries and the commit, JSON-able; nothing that names the machine or its user."""
    info = cpu_info()
    flags = set(info.get("flags", "").split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": info.get("model name", platform.processor()),
        "family_model": f"{info.get('cpu family', '?')}/{info.get('model', '?')}",
        "features": [f for f in FEATURES if f in flags],
        "processors": processors(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def commit() -> str | None:
    """The short hash of the checkout, with a plus where it has changes; None outside of one."""
    run = [["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "-uno"]]
    try:
        head, changes = (subprocess.run(c, capture_output=True, text=True, check=True).stdout.strip() for c in run)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changes else "")


class Watch:
    """How much of the processors other programs took while it was open: a run on a busy machine is worth little."""

    def __enter__(self) -> Watch:
        self._start = self._busy(), self._own(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        busy, own, seconds = self._busy() - self._start[0], self._own() - self._start[1], time.monotonic() - self._start[2]
        self.others = max(0.0, busy - own) / max(seconds * (os.cpu_count() or 1), 1e-9)

    @staticmethod
    def _busy() -> float:
        """Seconds all processors have worked since the machine started."""
        path = Path("/proc/stat")
        if not path.is_file():
            return 0.0
        user, nice, system, _, _, irq, soft = (float(v) for v in path.read_text().split("\n", 1)[0].split()[1:8])
        return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _own() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system
