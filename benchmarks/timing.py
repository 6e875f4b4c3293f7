"""Medians of repeated runs; contenders take turns, so that a disturbance hits all of them."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Run = Callable[[], Any]


def medians(
    runs: Mapping[str, Run], repeats: int, warm: int = 1, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each run by `clock`, in turns; `warm` turns before are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm + repeats):
        for name, run in runs.items():
            start = clock()
            run()
            if turn >= warm:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def median(run: Run, repeats: int, warm: int = 1) -> float:
    """Median seconds of one run."""
    return medians({"": run}, repeats, warm)[""]


def child(*arguments: str, script: str = "benchmarks.child") -> tuple[str, float, float]:
    """Runs a module in a new process: its standard output, seconds from start to end, and peak memory in GB.

    The peak is that of the largest process among it and those that it waited for.
    """
    return command([sys.executable, "-m", script, *arguments])


_MEASURE = """
import resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True)
seconds = time.perf_counter() - start
sys.stdout.write(done.stdout)
print(f"\\n{seconds} {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}")
sys.exit(done.returncode)
"""


def command(arguments: list[str], cwd: Path | None = None) -> tuple[str, float, float]:
    """As `child`, for any command. Raises CalledProcessError where it fails."""
    wrapped = [sys.executable, "-c", _MEASURE, *arguments]
    done = subprocess.run(wrapped, stdout=subprocess.PIPE, text=True, check=True, cwd=cwd)
    out, _, last = done.stdout.rstrip().rpartition("\n")
    seconds, kilobytes = last.split()
    return out, float(seconds), float(kilobytes) * 1024 / 1e9
