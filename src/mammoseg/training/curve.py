"""What a training run tells: `curve.csv`, TensorBoard scalars and a progress line with the time left."""

from __future__ import annotations

import csv
import io
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mammoseg.io.atomic import write_atomic

log = logging.getLogger("mammoseg.training")
_HEADER = ["step", "split", "metric", "value"]


class Curve:
    """Rows (step, split, metric, value) in `out/curve.csv` and the same as TensorBoard scalars in `out/tensorboard`.

    first: the step training goes on from; rows after it, written by a run that was killed, are dropped.
    """

    def __init__(self, out: Path, first: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "curve.csv"
        kept = [row for row in read_curve(self.path) if row[0] <= first]
        text = io.StringIO()
        start = csv.writer(text, lineterminator="\n")
        start.writerow(_HEADER)
        start.writerows((s, split, metric, repr(value)) for s, split, metric, value in kept)
        write_atomic(self.path, text.getvalue().encode())  # whole at every moment: a run may be killed while it resumes
        self._file = self.path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        from torch.utils.tensorboard import SummaryWriter

        self._board: Any = SummaryWriter(str(out / "tensorboard"), purge_step=first + 1 if first else None)  # type: ignore[no-untyped-call]

    def add(self, step: int, split: str, values: dict[str, float]) -> None:
        """Appends one row per value."""
        for metric, value in values.items():
            self._writer.writerow((step, split, metric, repr(float(value))))
            self._board.add_scalar(f"{split}/{metric}", float(value), step)
        self._file.flush()

    def flush(self) -> None:
        """Everything added so far is on disk afterwards."""
        self._file.flush()
        self._board.flush()

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        self._board.close()


def read_curve(path: Path) -> list[tuple[int, str, str, float]]:
    """The rows of a `curve.csv`; empty where the file is not there. A last line cut off by a kill is dropped."""
    if not path.is_file():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8") as handle:
        for row in csv.reader(handle):
            try:
                step, split, metric, value = row
                rows.append((int(step), split, metric, float(value)))
            except ValueError:
                continue
    return rows


class ProgressLine:
    """Progress with the time left: a live bar on a terminal, else a log line; or `callback` (step, steps, values)."""

    def __init__(self, steps: int, first: int, callback: Callable[[int, int, dict[str, float]], None] | None) -> None:
        self._steps, self._first, self._callback = steps, first, callback
        self._began = time.monotonic()
        self._bar: Any = None
        if callback is None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("training", total=steps, completed=first, note="")

    def show(self, step: int, values: dict[str, float]) -> None:
        """Step `step` is done."""
        note = " ".join(f"{k} {v:.4g}" for k, v in values.items())
        if self._callback is not None:
            self._callback(step, self._steps, values)
        elif self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        else:
            each = (time.monotonic() - self._began) / max(1, step - self._first)
            left = int(each * (self._steps - step))
            log.info(
                "step %d/%d  %.2f s/step  left %d:%02d:%02d  %s",
                step,
                self._steps,
                each,
                left // 3600,
                left // 60 % 60,
                left % 60,
                note,
            )

    def note(self, step: int, values: dict[str, float]) -> None:
        """A validation's outcome."""
        text = " ".join(f"{k} {v:.4f}" for k, v in values.items())
        if self._bar is not None:
            self._bar.console.print(f"step {step} validation: {text}")
        else:
            log.info("step %d validation: %s", step, text)

    def close(self) -> None:
        """Ends the live bar."""
        if self._bar is not None:
            self._bar.stop()
