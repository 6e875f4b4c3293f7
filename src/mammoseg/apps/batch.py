"""The batch engine: many images, several processes, resumable; no image and no dying process stops it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mammoseg.apps.contact_sheet import write_contact_sheet
from mammoseg.apps.crew import Crew
from mammoseg.apps.dicom_outputs import StudiesOutcome, write_studies
from mammoseg.apps.out_folder import begin, held, is_below
from mammoseg.apps.outputs import drop_pictures, is_done, read_results, write_run, write_tables
from mammoseg.apps.parquet import write_parquet
from mammoseg.apps.ray_engine import worked_through_ray
from mammoseg.apps.remote import read_origin
from mammoseg.apps.worker import Job, Plan, open_pipeline, process, summarise
from mammoseg.bundle import Bundle, hash_if_readable, open_bundle
from mammoseg.config import to_dict
from mammoseg.errors import UsageError
from mammoseg.pipeline import Pipeline, settings_of
from mammoseg.provenance import describe_run

Progress = Callable[[Job, dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a run. summaries: for each job in order, its `status`, `reason` and number of `lesions`.

    resumed: how many images were kept from before. skipped: how many files were no images, and are not among the jobs.
    reports: of the studies, where DICOM results were asked for.
    """

    jobs: tuple[Job, ...]
    summaries: tuple[dict[str, Any], ...]
    resumed: int
    skipped: int = 0
    reports: StudiesOutcome = field(default_factory=StudiesOutcome)

    def count(self, status: str) -> int:
        """How many images ended with this status."""
        return sum(s["status"] == status for s in self.summaries)

    @property
    def lesions(self) -> int:
        """How many lesions were found in all."""
        return sum(int(s["lesions"]) for s in self.summaries)


def run_batch(
    jobs: Sequence[Job],
    plan: Plan,
    workers: int = 1,
    resume: bool = False,
    progress: Progress | None = None,
    skipped: int = 0,
    opener: Callable[[Plan], Pipeline] = open_pipeline,
) -> Outcome:
    """Works through all jobs and writes everything below `plan.out`.

    workers: processes, each with its share of the processors (with Ray on a cluster, see `worked_through_ray`); 0 works in this
    process (a crash of a library then ends the run). resume: keep results already there that were made from the same input,
    bundle, version and settings; other results of an earlier run are removed. progress: called after each image. skipped:
    number of files passed over, for the record.
    opener: gives the pipeline where `workers` is 0, so that a caller of many runs can keep it loaded.
    Raises `BundleError` before any image where the weights cannot be used, `UsageError` where another run is at work in
    `plan.out`, `MammosegError` where results cannot be written.
    """
    for job in jobs:
        if not is_below(job.image.folder):
            raise UsageError(f"{job.image.source}: its results would not lie below {plan.out} but in {job.image.folder!r}")
    bundle = open_bundle(plan.bundle)
    provenance = {**describe_run(bundle, to_dict(settings_of(bundle)), to_dict(plan.config)), **plan.extra}
    with held(plan.out):
        begin(plan.out, _record(jobs, plan, bundle, provenance), resume)
        kept = _kept(jobs, plan, provenance) if resume else {}
        results = dict(kept)
        for index in kept:
            _report(progress, jobs[index], kept[index])
        todo = {i: job for i, job in enumerate(jobs) if i not in kept}
        with contextlib.closing(_worked_through(todo, plan, workers, provenance, bundle, opener)) as summaries:
            for index, summary in summaries:
                results[index] = summary
                _report(progress, jobs[index], summary)
        done = [i for i in range(len(jobs)) if results[i]["status"] != "skipped"]
        n_skipped = skipped + len(jobs) - len(done)
        outcome = Outcome(tuple(jobs[i] for i in done), tuple(results[i] for i in done), len(kept), n_skipped)
        return _finish(outcome, plan, _record(outcome.jobs, plan, bundle, provenance))


def _report(progress: Progress | None, job: Job, summary: dict[str, Any]) -> None:
    if progress is not None:
        progress(job, summary)


def _kept(jobs: Sequence[Job], plan: Plan, provenance: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The summaries of the jobs whose results are there already."""
    kept = {}
    for index, job in enumerate(jobs):
        found = _already_done(job, plan, provenance)
        if found is not None:
            drop_pictures(plan.out / job.image.folder, plan.formats)
            kept[index] = {"status": found["status"], "reason": found["reason"], "lesions": len(found["lesions"])}
    return kept


def _worked_through(
    jobs: dict[int, Job],
    plan: Plan,
    workers: int,
    provenance: dict[str, Any],
    bundle: Bundle,
    opener: Callable[[Plan], Pipeline],
) -> Generator[tuple[int, dict[str, Any]]]:
    workers = min(workers, len(jobs))
    plan = with_thread_share(plan, workers)
    if jobs and workers == 0:
        pipeline = opener(plan)
        for index, job in jobs.items():
            yield index, summarise(process(pipeline, job, plan))
    elif jobs and plan.engine == "ray":
        yield from worked_through_ray(jobs, plan, workers, provenance)
    elif jobs:
        yield from Crew(plan, provenance, bundle).run(jobs, workers)


def with_thread_share(plan: Plan, workers: int) -> Plan:
    """The plan with each worker's share of the processors, unless a number of threads was asked for."""
    if plan.config.runtime.threads or (plan.engine == "ray" and os.environ.get("RAY_ADDRESS")):
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
    digest = hash_if_readable(job.image.path) if job.image.url is None else read_origin(folder, job.image)
    return None if digest is None else is_done(folder, job.image.path, job.image.source, digest, provenance, plan.formats)


def _finish(outcome: Outcome, plan: Plan, record: dict[str, Any]) -> Outcome:
    folders = [job.image.folder for job in outcome.jobs]
    write_tables(plan.out, folders)
    if plan.parquet:
        write_parquet(plan.out, folders)
    write_contact_sheet(plan.out, folders, read_results(plan.out, folders))
    counts = {status: outcome.count(status) for status in ("processed", "rejected", "failed")}
    counts = {"images": len(folders), **counts, "lesions": outcome.lesions, "files_skipped": outcome.skipped}
    reports = write_studies(plan.out, [(job.image.path, job.image.folder) for job in outcome.jobs], plan.formats)
    if reports != StudiesOutcome():
        counts |= {"studies": reports.studies, "studies_failed": reports.failed, "images_without_dicom": reports.no_source}
    write_run(plan.out, {**record, "state": "complete", "counts": counts})
    return dataclasses.replace(outcome, reports=reports)


def _record(jobs: Sequence[Job], plan: Plan, bundle: Bundle, provenance: dict[str, Any]) -> dict[str, Any]:
    """What run.json says from the beginning."""
    return {
        "schema_version": 1,
        "provenance": provenance,
        "formats": list(plan.formats),
        "images": [{"source": j.image.source, "folder": j.image.folder} for j in jobs],
        "trained_on_patients": sorted(bundle.training.get("patient_sha256", [])),
    }
