"""Steps that need each other: each is done once for the same settings and the same content of what it needs.

A step's key is the hash of its settings, of its code's version, and of the files that the steps it needs have written. When a
step is done, `OUT/steps/NAME.json` says its key and every file it wrote, with size, time and sha256. A step is done again where
its key is another one or a file of it was changed; a killed run therefore goes on where it was. A step that is begun anew for
another key has its old files removed first; for the same key what it left is there for it to go on from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mammoseg.bundle import hash_file
from mammoseg.errors import UsageError
from mammoseg.io.atomic import write_atomic

FORMAT = "mammoseg-study-1"


@dataclass(frozen=True)
class Step:
    """One step. name: such as "detector/T1". run: writes into the folders or files `outputs`, paths relative to OUT.

    needs: names of steps. settings: JSON-able, all that decides the outcome beside what the needed steps wrote. cost:
    estimated floating-point operations. version: raised when the step's code gives another outcome. keeps: names of files and
    folders below the outputs that take no part in the hash (checkpoints, logs). drops: folders that are removed once it is
    done.
    """

    name: str
    run: Callable[[], None]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: Callable[[], float] = lambda: 0.0
    version: int = 1
    keeps: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()


class Graph:
    """Steps in the order given, which must be one in which each comes after those it needs."""

    def __init__(self, out: Path, steps: Iterable[Step]) -> None:
        self.out = out
        self.steps: dict[str, Step] = {}
        for step in steps:
            missing = [name for name in step.needs if name not in self.steps]
            if missing or step.name in self.steps:
                raise ValueError(f"step {step.name}: named twice, or before what it needs: {missing}")
            self.steps[step.name] = step
        self._digests: dict[str, str] = {}
        self._done: set[str] = set()

    def wanted(self, only: Sequence[str] = ()) -> list[Step]:
        """The steps to have: all, or those named by `only` (a name, or the first part of names) and what they need, in order.

        Raises UsageError that lists the names where one fits nothing.
        """
        if not only:
            return list(self.steps.values())
        take: set[str] = set()
        for word in only:
            fits = [n for n in self.steps if n == word or n.startswith(f"{word}/")]
            if not fits:
                heads = list(dict.fromkeys(n.split("/")[0] for n in self.steps))
                raise UsageError(f"--only {word}: no such step; there are {', '.join(heads)}")
            stack = fits
            while stack:
                name = stack.pop()
                if name not in take:
                    take.add(name)
                    stack.extend(self.steps[name].needs)
        return [step for step in self.steps.values() if step.name in take]

    def is_done(self, step: Step) -> bool:
        """Whether the step's files are those it wrote for this very key; looked at once in the life of a graph."""
        if step.name in self._done:
            return True
        if any(not self.is_done(self.steps[name]) for name in step.needs):
            return False
        record = self._record(step)
        if record is None or record.get("key") != self.key(step) or not self._intact(step, record):
            return False
        self._done.add(step.name)
        return True

    def key(self, step: Step) -> str:
        """The hash of the step's settings and of what the steps it needs wrote; those must be done."""
        content = {
            "format": FORMAT,
            "name": step.name,
            "version": step.version,
            "settings": step.settings,
            "needs": {name: self._digest(name) for name in step.needs},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def do(self, step: Step) -> None:
        """Runs the step, whose needs must be done, and records what it wrote."""
        key = self.key(step)
        begun = self.out / "steps" / f"{_file(step.name)}.begun"
        if not begun.is_file() or begun.read_text(encoding="ascii") != key:
            self._remove(step)
            write_atomic(begun, key.encode())
        step.run()
        files = {}
        for path in self._files(step):
            stat = path.stat()
            files[path.relative_to(self.out).as_posix()] = [stat.st_size, stat.st_mtime_ns, hash_file(path)]
        if not files:
            raise UsageError(f"step {step.name} wrote nothing to {', '.join(step.outputs)}")
        content = {"format": FORMAT, "key": key, "files": files}
        write_atomic(self._file_of(step), (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
        for name in step.outputs:
            for folder in step.drops:
                shutil.rmtree(self.out / name / folder, ignore_errors=True)
        self._digests.pop(step.name, None)
        self._done.add(step.name)

    def _digest(self, name: str) -> str:
        """One hash of all files that a step wrote."""
        if name not in self._digests:
            record = self._record(self.steps[name])
            if record is None:
                raise ValueError(f"step {name} is not done")
            content = {path: values[2] for path, values in record["files"].items()}
            self._digests[name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return self._digests[name]

    def _record(self, step: Step) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(self._file_of(step).read_bytes())
        except (OSError, ValueError):
            return None
        return record if record.get("format") == FORMAT else None

    def _intact(self, step: Step, record: dict[str, Any]) -> bool:
        for name, (size, mtime, digest) in record["files"].items():
            path = self.out / name
            try:
                stat = path.stat()
            except OSError:
                return False
            if stat.st_size != size or (stat.st_mtime_ns != mtime and hash_file(path) != digest):
                return False
        return len(self._files(step)) == len(record["files"])

    def _files(self, step: Step) -> list[Path]:
        found: list[Path] = []
        for name in step.outputs:
            path = self.out / name
            found += [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        return [
            p
            for p in found
            if not p.name.startswith(".") and not any(part in step.keeps for part in p.relative_to(self.out).parts)
        ]

    def _remove(self, step: Step) -> None:
        self._file_of(step).unlink(missing_ok=True)
        for name in step.outputs:
            path = self.out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _file_of(self, step: Step) -> Path:
        return self.out / "steps" / f"{_file(step.name)}.json"


def _file(name: str) -> str:
    return name.replace("/", ".")
