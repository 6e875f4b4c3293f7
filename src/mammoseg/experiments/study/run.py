"""Runs the study's steps, tells what is done, and what it would cost."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence

import torch

from mammoseg.config import to_dict
from mammoseg.experiments.study import cost
from mammoseg.experiments.study.graph import Graph, Step
from mammoseg.experiments.study.plan import Study, build
from mammoseg.experiments.study.report import FILE as REPORT
from mammoseg.experiments.study.report import html
from mammoseg.io.atomic import write_atomic

log = logging.getLogger("mammoseg.experiments")
Tell = Callable[[str], None]


def run(study: Study, only: Sequence[str] = (), tell: Tell = lambda line: None) -> None:
    """Does what is not done yet of the study, or of the steps `only` names with what they need; see `Graph.wanted`.

    tell: gets a line for every step. A report of what there is by then is written after a part of the study too.
    """
    graph = build(study)
    steps = graph.wanted(only)
    write_atomic(study.out / "config.json", (json.dumps(to_dict(study.config), indent=1) + "\n").encode())
    todo = len(steps)
    for number, step in enumerate(steps, start=1):
        if graph.is_done(step):
            tell(f"[{number}/{todo}] {step.name}: done before")
            continue
        begun = time.monotonic()
        tell(f"[{number}/{todo}] {step.name} …")
        threads = torch.get_num_threads()
        graph.do(step)
        torch.set_num_threads(threads)
        tell(f"[{number}/{todo}] {step.name}: {cost.words(time.monotonic() - begun)}")
    if only and not any(step.name == "report" for step in steps) and (study.out / "splits").is_dir():
        write_atomic(study.out / REPORT, html(study).encode())


def plan(study: Study, only: Sequence[str] = ()) -> tuple[Graph, list[tuple[Step, bool, float]]]:
    """(step, whether it is done, floating-point operations) of what `run` would look at; nothing is computed or written."""
    graph = build(study)
    return graph, [(step, graph.is_done(step), step.cost()) for step in graph.wanted(only)]
