"""The batch engine: many images, several processes, resumable; no image and no dying process stops it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mammoseg.apps.contact_sheet import write_contact_sheet
from mammoseg.apps.crew import Crew
from mammoseg.apps.outputs import is_done, read_results, write_run, write_tables
from mammoseg.apps.worker import Job, Plan, open_pipeline, process, summarise
from mammoseg.bundle import Bundle, hash_if_readable, open_bundle
from mammoseg.config import to_dict
from mammoseg.pipeline import settings_of
from mammoseg.provenance import describe_run

Progress = Callable[[Job, dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a run. summaries: for each job in order, its `status`, `reason` and number of `lesions`."""

    jobs: tuple[Job, ...]
    summaries: tuple[dict[str, Any], ...]
    resumed: int

    def count(self, status: str) -> int:
        """How many images ended with this status."""
        return sum(s["status"] == status for s in self.summaries)

    @property
    def lesions(self) -> int:
        """How many lesions were found in all."""
        return sum(int(s["lesions"]) for s in self.summaries)


def run_batch(
    jobs: Sequence[Job], plan: Plan, workers: int = 1, resume: bool = False, progress: Progress | None = None, skipped: int = 0
) -> Outcome:
    """Works through all jobs and writes everything below `plan.out`.

    workers: processes, each with its share of the processors; 0 works in this process (a crash of a library then ends the
    run). resume: keep results already there that were made from the same input, bundle, version and settings.
    progress: called after each image. skipped: number of files passed over, for the record.
    Raises `BundleError` before any image where the weights cannot be used.
    """
    bundle = open_bundle(plan.bundle)
    provenance = {**describe_run(bundle, to_dict(settings_of(bundle)), to_dict(plan.config)), **plan.extra}
    plan = with_thread_share(plan, workers)
    plan.out.mkdir(parents=True, exist_ok=True)
    results: dict[int, dict[str, Any]] = {}
    report = progress or (lambda job, summary: None)
    for index, job in enumerate(jobs if resume else ()):
        found = _already_done(job, plan, provenance)
        if found is not None:
            results[index] = {"status": found["status"], "reason": found["reason"], "lesions": len(found["lesions"])}
            report(job, results[index])
    resumed = len(results)
    todo = [i for i in range(len(jobs)) if i not in results]
    if workers == 0 and todo:
        pipeline = open_pipeline(plan)
        for index in todo:
            results[index] = summarise(process(pipeline, jobs[index], plan))
            report(jobs[index], results[index])
    elif todo:
        for index, summary in Crew(plan, provenance, bundle).run({i: jobs[i] for i in todo}, min(workers, len(todo))):
            results[index] = summary
            report(jobs[index], summary)
    outcome = Outcome(tuple(jobs), tuple(results[i] for i in range(len(jobs))), resumed)
    _finish(outcome, plan, bundle, provenance, skipped)
    return outcome


def with_thread_share(plan: Plan, workers: int) -> Plan:
    """The plan with each worker's share of the processors, unless a number of threads was asked for."""
    if plan.config.runtime.threads:
        return plan
    threads = max(1, processors() // max(1, workers))
    runtime = dataclasses.replace(plan.config.runtime, threads=threads)
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, runtime=runtime))


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _already_done(job: Job, plan: Plan, provenance: dict[str, Any]) -> dict[str, Any] | None:
    folder = plan.out / job.image.folder
    if not (folder / "findings.json").is_file():
        return None
    digest = hash_if_readable(job.image.path)
    return None if digest is None else is_done(folder, digest, provenance, plan.formats)


def _finish(outcome: Outcome, plan: Plan, bundle: Bundle, provenance: dict[str, Any], skipped: int) -> None:
    folders = [job.image.folder for job in outcome.jobs]
    write_tables(plan.out, folders)
    write_contact_sheet(plan.out, folders, read_results(plan.out, folders))
    counts = {status: outcome.count(status) for status in ("processed", "rejected", "failed")}
    record = {
        "schema_version": 1,
        "provenance": provenance,
        "formats": list(plan.formats),
        "counts": {"images": len(folders), **counts, "lesions": outcome.lesions, "files_skipped": skipped},
        "images": [{"source": j.image.source, "folder": j.image.folder} for j in outcome.jobs],
        "trained_on_patients": sorted(bundle.training.get("patient_sha256", [])),
    }
    write_run(plan.out, record)
