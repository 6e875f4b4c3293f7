"""A run's `curve.csv` as a picture: the training loss and its parts beside the validation figures."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mammoseg.errors import TrainingError
from mammoseg.io.atomic import write_atomic
from mammoseg.training.curve import read_curve

_COLOURS = ("#1f5a94", "#c2571a", "#3b7d3b", "#7a4fa3", "#8a6d1d", "#5b6470")
_HIDDEN = ("learning_rate",)


def plot_curve(curve: Path, picture: Path, title: str = "") -> None:
    """Draws `curve` (a run's `curve.csv`) as an SVG at `picture`, atomically; the same bytes for the same rows.

    Left: what was logged of the training batches; right: the validation figures (0 to 1), where there are any. x: steps.
    Raises TrainingError where the file has no rows.
    """
    rows: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for step, split, metric, value in read_curve(curve):
        if metric not in _HIDDEN:
            rows[split][metric].append((step, value))
    if not rows:
        raise TrainingError(f"{curve}: no rows of a training curve; expected the curve.csv of a training run")
    panels = [split for split in ("train", "validation") if split in rows]
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    FigureCanvasSVG(figure)
    for axes, split in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, split, rows[split])
    if title:
        figure.suptitle(title, fontsize=11)
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "mammoseg", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    write_atomic(picture, buffer.getvalue().encode())


def _panel(axes: Any, split: str, metrics: dict[str, list[tuple[int, float]]]) -> None:
    for colour, (metric, points) in zip(_COLOURS * 3, metrics.items(), strict=False):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, linewidth=1.6, marker="o" if len(points) < 15 else None, markersize=4)
        axes.plot([], [], color=colour, label=metric.replace("_", " "))
    axes.set(title="training batches" if split == "train" else "validation", xlabel="step", ylabel="")
    axes.set_ylim(bottom=0)
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
