"""What the processor computes natively. An emulated precision is slower than float32, and no reason to use it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_BF16 = frozenset({"avx512_bf16", "amx_bf16"})
_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@cache
def processor_flags(path: Path = _CPUINFO) -> frozenset[str]:
    """The features of an x86-64 processor under Linux, as /proc/cpuinfo names them; none elsewhere."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def has_bf16(path: Path = _CPUINFO) -> bool:
    """Whether the processor multiplies bfloat16 natively (AVX-512 BF16 or AMX)."""
    return bool(processor_flags(path) & _BF16)


def has_int8(path: Path = _CPUINFO) -> bool:
    """Whether the processor multiplies and adds 8-bit integers natively (VNNI or AMX)."""
    return bool(processor_flags(path) & _INT8)


def describe_processor() -> str:
    """Equal where compiled networks may be exchanged: architecture and features."""
    return " ".join([platform.system(), platform.machine(), *sorted(processor_flags())])
