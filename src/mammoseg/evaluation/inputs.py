"""Brings saved findings and the truth together, and refuses images that the bundle was trained on."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mammoseg.bundle import hash_file, hash_patient
from mammoseg.errors import EvaluationError
from mammoseg.io.findings_json import read_findings
from mammoseg.types import DatasetItem, Findings


@dataclass(frozen=True, eq=False)
class Pair:
    """One image: what is true of it, and what was found."""

    truth: DatasetItem
    findings: Findings


@dataclass(frozen=True, eq=False)
class Pairs:
    """pairs: in the truth's order. missing: ids of truth images without findings. n_extra: findings without truth.

    seen: ids of images that the bundle was trained on, themselves or others of their patient.
    """

    pairs: tuple[Pair, ...]
    missing: tuple[str, ...] = ()
    n_extra: int = 0
    seen: tuple[str, ...] = ()


def load_findings(folder: Path) -> list[Findings]:
    """The findings of the run that `mammoseg segment` wrote to `folder`: those its run.json lists, in that order.

    Without run.json (see `trained_on_patients`) all that lie below `folder`, in order of their paths. Raises EvaluationError
    where there are none, and what `read_findings` raises for one that is missing or not valid.
    """
    run = _read_run(folder)
    files = sorted(folder.rglob("findings.json")) if run is None else [folder / f / "findings.json" for f in run[0]]
    if not files:
        raise EvaluationError(f"no findings.json below {str(folder)!r}: expected the OUT folder of `mammoseg segment`")
    return [read_findings(file) for file in files]


def trained_on_patients(folder: Path, allow_unknown: bool = False) -> frozenset[str]:
    """The hashes of the patients the bundle was trained on, as run.json in the OUT folder tells.

    Without run.json that cannot be told: EvaluationError, or none with `allow_unknown`.
    """
    run = _read_run(folder)
    if run is None and not allow_unknown:
        raise EvaluationError(
            f"no run.json in {str(folder)!r}, so it cannot be told which patients the weights were trained on: give the whole "
            "OUT folder of `mammoseg segment`, or say --allow-seen"
        )
    return frozenset() if run is None else run[1]


def _read_run(folder: Path) -> tuple[list[str], frozenset[str]] | None:
    """The image folders and the patients trained on in run.json; None where there is none."""
    file = folder / "run.json"
    if not file.is_file():
        return None
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        folders = [str(image["folder"]) for image in run["images"]]
        patients = frozenset(str(h) for h in run["trained_on_patients"])
        state = run.get("state", "complete")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(
            f"{str(file)!r} is not the record of a run ({type(error).__name__}: {error}); segment again"
        ) from error
    if state != "complete":
        raise EvaluationError(f"the run in {str(folder)!r} was not finished: go on with `mammoseg segment ... --resume`")
    return folders, patients


def pair(
    findings: Sequence[Findings],
    truth: Sequence[DatasetItem],
    patients: frozenset[str] = frozenset(),
    dataset_names: Iterable[str] = (),
) -> Pairs:
    """Finds the findings of each truth image: by the file's sha256, else by its relative path, else by its stem.

    patients: hashes of the patients trained on; dataset_names: names this dataset may have had in training.
    Raises EvaluationError where a stem fits several findings, where one findings fits several images of different
    content, or where an image's size is not the one the truth was drawn on.
    """
    index = _Index(findings)
    names = set(dataset_names)
    used: dict[int, str] = {}
    pairs, missing, seen = [], [], []
    for item in truth:
        k, same_content = index.find(item)
        if k is None:
            missing.append(item.image_id)
            continue
        if k in used and not same_content:
            raise EvaluationError(
                f"the findings of {findings[k].image.source!r} fit two images, {used[k]!r} and {item.image_id!r}: "
                "segment the images under the paths they have in the truth"
            )
        used[k] = item.image_id
        _check_size(item, findings[k])
        pairs.append(Pair(item, findings[k]))
        own_names = names | {str(v) for v in (item.attributes.get("dataset"), item.annotation.attributes.get("dataset")) if v}
        if findings[k].image.seen_in_training or any(hash_patient(n, item.patient_id) in patients for n in own_names):
            seen.append(item.image_id)
    return Pairs(tuple(pairs), tuple(missing), len(findings) - len(used), tuple(seen))


def admit(pairs: Pairs, allow_seen: bool = False, allow_missing: bool = False) -> None:
    """Raises EvaluationError where the pairs are none, lack findings, or hold images the bundle has seen."""
    n_truth = len(pairs.pairs) + len(pairs.missing)
    if not pairs.pairs:
        raise EvaluationError(f"none of the {n_truth} images of the truth has findings: are these findings of that dataset?")
    if pairs.missing and not allow_missing:
        raise EvaluationError(
            f"{len(pairs.missing)} of {n_truth} images of the truth have no findings ({pairs.missing[0]!r}, ...): "
            "segment them too (`mammoseg evaluate --allow-missing` leaves them out)"
        )
    if pairs.seen and not allow_seen:
        raise EvaluationError(
            f"{len(pairs.seen)} of {len(pairs.pairs)} images, or other images of their patients, were in the bundle's training "
            f"({pairs.seen[0]!r}, ...): use others (`mammoseg evaluate --allow-seen` "
            "takes them all the same)"
        )


class _Index:
    """Findings by content, path and stem."""

    def __init__(self, findings: Sequence[Findings]) -> None:
        self.by_sha: dict[str, list[int]] = defaultdict(list)
        self.by_source: dict[str, int] = {}
        self.by_stem: dict[str, list[int]] = defaultdict(list)
        for k, f in enumerate(findings):
            if f.image.file_sha256:
                self.by_sha[f.image.file_sha256].append(k)
            self.by_source[PurePosixPath(f.image.source).as_posix()] = k
            self.by_stem[PurePosixPath(f.image.source).stem].append(k)

    def find(self, item: DatasetItem) -> tuple[int | None, bool]:
        """Which findings, and whether they are of the very same file content."""
        path = Path(item.path)
        named = self._by_path(item)
        if self.by_sha and path.is_file():
            same = self.by_sha.get(hash_file(path), [])
            if same:
                return (named if named in same else same[0]), True
        if named is not None:
            return named, False
        fits = self.by_stem.get(path.stem, [])
        if len(fits) > 1:
            raise EvaluationError(
                f"{len(fits)} findings are named {path.stem!r}, none of them by the path of {item.image_id!r}: "
                "segment the images under the paths they have in the truth"
            )
        return (fits[0], False) if fits else (None, False)

    def _by_path(self, item: DatasetItem) -> int | None:
        """The longest tail of the image's path that is the source of some findings."""
        for name in (item.image_id, item.path):
            parts = PurePosixPath(Path(name).as_posix()).parts
            for i in range(len(parts)):
                k = self.by_source.get("/".join(parts[i:]))
                if k is not None:
                    return k
        return None


def _check_size(item: DatasetItem, findings: Findings) -> None:
    height, width = findings.image.height, findings.image.width
    if findings.status == "processed" and (height, width) != item.annotation.size:
        raise EvaluationError(
            f"{item.image_id!r}: the findings are in an image of {height}×{width} pixels (height×width), the truth in one of "
            f"{item.annotation.size[0]}×{item.annotation.size[1]}: segment the images the truth was drawn on"
        )
