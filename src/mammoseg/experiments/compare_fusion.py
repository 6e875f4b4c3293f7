"""How the scales are best fused, on held-out images: every way from one run of the detector (paper, Fig. 5 and Table 2).

`python -m mammoseg.experiments.compare_fusion --weights BUNDLE --data DATASET --fold FOLD --out OUT` runs the bundle's
detector once at each of its scales, or of those given with `--scales`, keeps the boxes in OUT/detections.npz, and writes
OUT/fusion.csv: AP at IoU 0.5 and the true positive rate at 0.1, 0.2, 0.25 and 0.5 false positives an image of single scales,
MSF over λ and the score a box must have, WBF, NMS, and of all scales but one; with intervals over patients, and paired
differences to the best single scale.
Candidates are ranked as the pipeline's (`fusion.candidates`), before segmentation.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from mammoseg.datasets import read_dataset
from mammoseg.datasets.splits import SIDES, Side, read_side
from mammoseg.errors import UsageError
from mammoseg.evaluation.average_precision import average_precision
from mammoseg.evaluation.bootstrap import Interval, resamples
from mammoseg.evaluation.froc import tpr_at
from mammoseg.evaluation.matching import Criterion, Ranked, rank
from mammoseg.fusion import FusionConfig, candidates, fuse
from mammoseg.io.atomic import write_atomic
from mammoseg.io.load import load_mammogram
from mammoseg.pipeline import Pipeline, load, parse_scales
from mammoseg.types import Boxes, DatasetItem, Detections, Mammogram, Size

FPI = (0.1, 0.2, 0.25, 0.5)
LAMBDAS = (0.0, 0.3, 0.5, 0.6, 0.7)
SCORES = (0.05, 0.1, 0.2, 0.3)
FIGURES = ("ap50", *(f"tpr_at_{f:g}" for f in FPI))


@dataclass(frozen=True)
class Way:
    """One way of fusing: `config` over the scales numbered `scales`."""

    name: str
    config: FusionConfig
    scales: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """What a way reaches: for each of `FIGURES` the value and the difference to the best single scale, with intervals."""

    way: Way
    figures: tuple[Interval, ...]
    gains: tuple[Interval, ...]


def ways(sizes: Sequence[Size], mirrored: bool = False) -> list[Way]:
    """All ways that are compared, single scales first. mirrored: as many detections again are those of the mirrored image."""
    names, every = [f"{w}x{h}" for h, w in sizes], tuple(range(len(sizes)))
    out = [Way(f"single {name}", FusionConfig("none", score_min=0.0), (i,)) for i, name in enumerate(names)]
    out += [
        Way(f"MSF, λ {lam:g}, boxes from {low:g}", FusionConfig("msf", lam, score_min=low), every)
        for low in SCORES
        for lam in LAMBDAS
    ]
    out += [Way(f"WBF, IoU {iou:g}", FusionConfig("wbf", wbf_score_min=0.0, wbf_iou=iou), every) for iou in (0.45, 0.55, 0.65)]
    out.append(Way("NMS", FusionConfig("nms", score_min=0.0), every))
    if len(sizes) > 2:
        for i, name in enumerate(names):
            out.append(Way(f"WBF without {name}", FusionConfig("wbf", wbf_score_min=0.0), tuple(k for k in every if k != i)))
    if mirrored:
        n = len(sizes)
        out += [
            Way(f"WBF, {name} and mirrored", FusionConfig("wbf", wbf_score_min=0.0), (i, n + i)) for i, name in enumerate(names)
        ]
        both = tuple(range(2 * n))
        out.append(Way("WBF, all and mirrored", FusionConfig("wbf", wbf_score_min=0.0), both))
        out.append(Way("MSF, λ 0.6, boxes from 0.3, all and mirrored", FusionConfig("msf", 0.6, score_min=0.3), both))
    return out


def compare(
    found: Sequence[Sequence[Detections]], truth: Sequence[Boxes], patients: Sequence[str], sizes: Sequence[Size], n: int = 1000
) -> list[Row]:
    """Every way on the detections of all images.

    found: per image and scale, or per image and scale and then again per scale for the mirrored image. truth: f64[M, 4] per
    image, native frame.
    """
    weights = resamples(patients, n)
    every = ways(sizes, mirrored=bool(found) and len(found[0]) == 2 * len(sizes))
    draws = np.stack([_figures(_ranked(found, truth, way), weights) for way in every])  # (ways, 1 + n, figures)
    singles = [i for i, way in enumerate(every) if len(way.scales) == 1]
    best = max(singles, key=lambda i: float(draws[i, 0, 0]))
    return [
        Row(way, tuple(map(_interval, draws[i].T)), tuple(map(_interval, (draws[i] - draws[best]).T)))
        for i, way in enumerate(every)
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = [f"{f}{end}" for f in FIGURES for end in ("", "_low", "_high", "_gain", "_gain_low", "_gain_high")]
    writer.writerow(["way", *head])
    for row in rows:
        cells = [
            v for a, b in zip(row.figures, row.gains, strict=True) for v in (a.value, a.low, a.high, b.value, b.low, b.high)
        ]
        writer.writerow([row.way.name, *("" if c is None else f"{c:.4f}" for c in cells)])
    return stream.getvalue()


def _ranked(found: Sequence[Sequence[Detections]], truth: Sequence[Boxes], way: Way) -> Ranked:
    images = []
    for scales, boxes in zip(found, truth, strict=True):
        chosen = [scales[i] for i in way.scales]
        shown = candidates(fuse(chosen, way.config), chosen, way.config)
        images.append((shown.boxes, shown.scores, boxes))
    return rank(images, Criterion())


def _figures(ranked: Ranked, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = []
    for w in [np.ones(weights.shape[1]), *weights]:
        counts = ranked.counts(w)
        values = [average_precision(counts, "envelope"), *tpr_at(counts, FPI)]
        rows.append([np.nan if v is None else v for v in values])
    return np.array(rows, dtype=np.float64)


def _interval(column: NDArray[np.float64]) -> Interval:
    """From the sample's own value, first, and those of the resamples."""
    values, draws = column[0], column[1:][~np.isnan(column[1:])]
    if np.isnan(values) or not len(draws):
        return Interval(None)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(values), float(low), float(high))


def detect_all(pipeline: Pipeline, items: Sequence[DatasetItem], kept: Path, mirrored: bool = False) -> list[list[Detections]]:
    """The detections of all images at all scales; those in the file `kept` are not computed again, new ones go there.

    mirrored: those of the mirrored image as well, in the frame of the image, after the others.
    """
    sizes = pipeline.detector.spec.scales
    stored = dict(np.load(kept)) if kept.is_file() else {}
    key = np.frombuffer(f"{pipeline.bundle.sha256} {sizes}".encode(), dtype=np.uint8)
    if stored and not np.array_equal(stored.pop("made_by"), key):
        raise UsageError(f"{kept} is of another bundle or other scales: name another folder for these results")
    out = []
    for number, item in enumerate(items, start=1):
        names = [f"{item.image_id}|{i}" for i in range(len(sizes) * (1 + mirrored))]
        if not all(name in stored for name in names):
            mammogram = load_mammogram(Path(item.path))
            found = pipeline.detector.detect(mammogram)
            if mirrored:
                found += [_mirror(d) for d in pipeline.detector.detect(_mirror_image(mammogram))]
            stored |= {name: np.column_stack([d.boxes, d.scores]) for name, d in zip(names, found, strict=True)}
            if number % 20 == 0 or number == len(items):
                click.echo(f"{number} of {len(items)} images", err=True)
                buffer = io.BytesIO()
                np.savez_compressed(buffer, made_by=key, **stored)
                write_atomic(kept, buffer.getvalue())
        out.append([Detections(stored[n][:, :4], stored[n][:, 4], item.annotation.size) for n in names])
    return out


def _mirror_image(mammogram: Mammogram) -> Mammogram:
    return replace(mammogram, pixels=np.ascontiguousarray(mammogram.pixels[:, ::-1]))


def _mirror(found: Detections) -> Detections:
    width = found.size[1]
    return replace(
        found,
        boxes=np.column_stack([width - found.boxes[:, 2], found.boxes[:, 1], width - found.boxes[:, 0], found.boxes[:, 3]]),
    )


@click.command()
@click.option("--weights", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Bundle; the installed one.")
@click.option("--data", required=True, help="Dataset, KIND:PATH.")
@click.option("--fold", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Fold file; all images without.")
@click.option("--side", type=click.Choice(SIDES), default="validation", show_default=True)
@click.option("--scales", metavar="WxH,...", help="Scales to run, width x height, in place of the detector's own.")
@click.option("--mirrored", is_flag=True, help="Run the mirrored images too: test-time flips.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the results.")
def main(weights: Path | None, data: str, fold: Path | None, side: Side, scales: str | None, mirrored: bool, out: Path) -> None:
    """Compare ways of fusing scales on one side of a fold, or on all of a dataset."""
    out.mkdir(parents=True, exist_ok=True)
    items = read_dataset(data) if fold is None else read_side(data, fold, side)[0]
    pipeline = load(weights)
    if scales is not None:
        pipeline.detector.spec = replace(pipeline.detector.spec, scales=tuple(parse_scales(scales)))
    found = detect_all(pipeline, items, out / "detections.npz", mirrored)
    truth = [np.array([m.box for m in i.annotation.masses], dtype=np.float64).reshape(-1, 4) for i in items]
    rows = compare(found, truth, [i.patient_id for i in items], pipeline.detector.spec.scales)
    write_atomic(out / "fusion.csv", table(rows).encode())
    for row in rows:
        values = "  ".join(f"{v.value:.3f}" for v in row.figures if v.value is not None)
        gain = row.gains[0]
        click.echo(f"{row.way.name:<32}{values}   AP {gain.value:+.3f} [{gain.low or 0:+.3f}, {gain.high or 0:+.3f}]")


if __name__ == "__main__":
    main()
