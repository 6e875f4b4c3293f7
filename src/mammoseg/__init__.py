"""mammoseg: from a native full mammogram to the contour of every mass in it. Research software, not for clinical use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mammoseg._version import __version__

if TYPE_CHECKING:
    from mammoseg.pipeline import Pipeline as Pipeline
    from mammoseg.pipeline import load as load

__all__ = ["Pipeline", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """`mammoseg.load` and `mammoseg.Pipeline`, imported when first asked for."""
    if name in ("load", "Pipeline"):
        from mammoseg import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'mammoseg' has no attribute {name!r}")
