"""The evaluation as evaluation.json and as evaluation.html, one page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from mammoseg.errors import MammosegError
from mammoseg.evaluation.bootstrap import Interval
from mammoseg.evaluation.evaluate import Evaluation, Figure
from mammoseg.evaluation.matching import Criterion
from mammoseg.evaluation.measures import Outcome
from mammoseg.evaluation.plots import Point, case_picture, focus_of, froc_svg, pr_svg, reliability_svg
from mammoseg.evaluation.strata import Stratum
from mammoseg.geometry import box_iou
from mammoseg.io.atomic import write_atomic
from mammoseg.io.load import load_mammogram


@dataclass(frozen=True, eq=False)
class Case:
    """One picture to show: an image, what is wrong there, and where to look."""

    outcome: Outcome
    caption: str
    focus: tuple[float, float, float, float]


def write_report(out: Path, evaluation: Evaluation) -> None:
    """Writes evaluation.json and evaluation.html into the folder `out`, made if need be; each atomically."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(out / "evaluation.json", text.encode())
    write_atomic(out / "evaluation.html", html(evaluation).encode())


def html(evaluation: Evaluation) -> str:
    """The page. Pictures are drawn from the truth's own files; an image that cannot be read has a line in its place."""
    criterion = Criterion("iou", evaluation.options.iou)
    key = criterion.name.lower().replace(" ", "_")
    parts = [_header(evaluation), _tiles(evaluation, key), _curves(evaluation, key, criterion), _tables(evaluation, key)]
    parts.append(strata_table(evaluation.strata))
    if evaluation.options.worst:
        parts += [_section(title, note, cases) for title, note, cases in worst_cases(evaluation)]
    parts.append(_images(evaluation))
    return _PAGE.replace("{{style}}", _STYLE).replace("{{body}}", "\n".join(p for p in parts if p))


def _nearest(outcome: Outcome, mass: int) -> str:
    """Of a mass that no candidate has found: the one that lies over it best."""
    candidates = outcome.pair.findings.candidates
    if candidates is None or not len(candidates.scores):
        return "no candidate there"
    iou = box_iou(candidates.boxes, np.array([outcome.pair.truth.annotation.masses[mass].box], dtype=np.float64))[:, 0]
    best = int(iou.argmax())
    if iou[best] < 0.01:
        return "no candidate there"
    return f"no candidate fits; the nearest: IoU {iou[best]:.2f}, score {candidates.scores[best]:.2f}"


def worst_cases(evaluation: Evaluation) -> list[tuple[str, str, list[Case]]]:
    """Missed masses (those the candidates see least first), false positives by score, matched outlines by Dice."""
    n = evaluation.options.worst
    missed, false, poor = [], [], []
    for o in evaluation.outcomes:
        masses, lesions = o.pair.truth.annotation.masses, o.pair.findings.lesions
        for m in o.missed:
            best = o.best_score[m]
            text = _nearest(o, m) if best is None else f"best candidate {best:.2f}"
            area = (masses[m].box[2] - masses[m].box[0]) * (masses[m].box[3] - masses[m].box[1])
            if o.pair.findings.status != "processed":
                text = f"{o.pair.findings.status}: {o.pair.findings.reason}"
            missed.append((best or 0.0, -area, Case(o, text, focus_of(o, m, None))))
        for k, m in enumerate(o.found.tolist()):
            if m < 0:
                false.append((-lesions[k].score, 0.0, Case(o, f"score {lesions[k].score:.2f}", focus_of(o, None, k))))
            elif m in o.dices:
                text = f"Dice {o.dices[m]:.2f}, score {lesions[k].score:.2f}"
                poor.append((o.dices[m], 0.0, Case(o, text, focus_of(o, m, k))))
    groups = [
        (f"Missed masses ({len(missed)})", "those the candidates see least come first", missed),
        (f"Strongest false positives ({len(false)})", "highest score first", false),
        ("Worst outlines of masses found", "lowest Dice first", poor),
    ]
    return [(t, note, [c for *_, c in sorted(cases, key=lambda x: x[:2])[:n]]) for t, note, cases in groups if cases]


def _header(e: Evaluation) -> str:
    c = e.counts
    status = [f"{c.n_processed} processed"]
    status += [f"<b class=warn>{c.n_rejected} rejected</b>"] * bool(c.n_rejected)
    status += [f"<b class=warn>{c.n_failed} failed</b>"] * bool(c.n_failed)
    notes = [] if e.part is None else [f"On {escape(e.part.text)}."]
    if c.n_seen_in_training:
        notes.append(f"{c.n_seen_in_training} of these images, or others of their patients, were in the bundle's training: "
                     "the figures do not tell how it does on new patients.")  # fmt: skip
    if c.n_missing_findings:
        notes.append(f"{c.n_missing_findings} images of the truth have no findings and are left out.")
    if c.n_findings_without_truth:
        notes.append(f"{c.n_findings_without_truth} findings have no truth and are left out.")
    if c.n_lesions_without_segmentation:
        notes.append(f"{c.n_lesions_without_segmentation} lesions are outlined by the ellipse in their box, "
                     "since the segmenter saw nothing there.")  # fmt: skip
    if len(e.bundles) > 1:
        notes.append(f"These findings come from {len(e.bundles)} different bundles.")
    who = " · ".join(escape(b) for b in e.bundles)
    patients = f"{c.n_patients} patient{'s' * (c.n_patients != 1)}"
    return (
        f"<header><h1>Evaluation</h1><p class=sub>{who}</p>"
        f"<p>{c.n_images} images ({', '.join(status)}) of {patients}; {c.n_images_with_mass} with a mass, "
        f"{c.n_truth} masses, {c.n_truth_with_mask} of them with an outline. "
        f"{c.n_lesions} lesions, {c.n_candidates} candidates.</p>"
        + "".join(f"<p class=note>{n}</p>" for n in notes)
        + "</header>"
    )


def _tiles(e: Evaluation, key: str) -> str:
    wanted = [(f"ap_{key}", "Average precision"), (f"tpr_{key}_at_0.5_fpi", "TPR at 0.5 FP/image"),
              ("dice_matched", "Dice, matched"), ("dice_end_to_end", "Dice, end to end"),
              ("dice_true_crops", "Dice, true crops")]  # fmt: skip
    by_key = {f.key: f for f in e.figures}
    tiles = [(by_key[k], label) for k, label in wanted if k in by_key and by_key[k].interval.value is not None]
    shown = "".join(
        f'<div class="tile"><div class="big">{f.interval.value:.3f}</div><div>{label}</div>'
        f'<div class="ci">{_range(f.interval)}</div></div>'
        for f, label in tiles
    )
    return f'<div class="tiles">{shown}</div>'


def _curves(e: Evaluation, key: str, criterion: Criterion) -> str:
    if e.pr is None or e.froc is None:
        return "<section><p>The truth holds no mass: no precision–recall curve and no FROC.</p></section>"
    by_key = {f.key: f.interval.value for f in e.figures}
    tpr, fpi, precision = (by_key.get(k) for k in ("tpr_operating", "fpi_operating", "precision_operating"))
    ap = by_key[f"ap_{key}"]
    star = Point(tpr, precision, "lesions shown") if tpr is not None and precision is not None else None
    on_froc = Point(fpi, tpr, "lesions shown") if tpr is not None and fpi is not None else None
    left = pr_svg(e.pr, f"{criterion.name}, AP {ap:.3f}", star)
    right = froc_svg(e.froc, e.options.fpi, criterion.name, on_froc)
    return (
        f'<section class="plots"><figure>{left}<figcaption>Precision–recall; AP is the area under the envelope.'
        f"</figcaption></figure><figure>{right}<figcaption>FROC; false positives are averaged over all images, normal ones "
        f"included.</figcaption></figure>{_reliability(e)}</section>"
    )


def _reliability(e: Evaluation) -> str:
    r = e.reliability
    if r is None:
        return ""
    picture = reliability_svg(r, f"ECE {r.ece:.3f}, Brier {r.brier:.3f}")
    return (
        f"<figure>{picture}<figcaption>Scores as probabilities that a mass is there: {r.n} candidates of score {r.least:g} and "
        f"more, {r.rate:.0%} of which found one, in {len(r.bins)} bins of equal size. It depends on how common masses are in "
        "these images.</figcaption></figure>"
    )


def _tables(e: Evaluation, key: str) -> str:
    detection = [f for f in e.figures if f.key.startswith((f"ap_{key}", f"tpr_{key}_"))]
    shown = [f for f in e.figures if f.key.endswith("_operating")]
    outlines = [f for f in e.figures if f.key.startswith(("dice", "hd95", "assd"))]
    scores = [f for f in e.figures if f.key in ("ece", "brier")]
    rest = [f for f in e.figures if f not in detection + shown + outlines + scores]
    level = f"{100 * e.options.level:g}% interval"
    left = _table("Detection", level, detection) + _table("Lesions as shown", level, shown)
    right = _table("Outlines", level, outlines) if outlines else ""
    right += _table("Scores as probabilities", level, scores) if scores else ""
    return f'<section class="tables"><div>{left}</div><div>{right}</div></section>{_matrix(rest, level)}'


def _table(title: str, level: str, figures: Sequence[Figure]) -> str:
    rows = "".join(
        f"<tr><td>{escape(f.label)}</td><td class=num>{_number(f.interval.value)}</td>"
        f"<td class=num>{_range(f.interval)}</td><td class=num>{f.n} {f.unit}</td></tr>"
        for f in figures
    )
    head = f"<tr><th></th><th class=num>value</th><th class=num>{level}</th><th class=num>of</th></tr>"
    return f'<div class="card"><h2>{title}</h2><table>{head}{rows}</table></div>'


def _matrix(figures: Sequence[Figure], level: str) -> str:
    """The same figures under several criteria: a row for each criterion."""
    rows: dict[str, list[Figure]] = {}
    columns: list[str] = []
    for f in figures:
        what, _, criterion = f.label.rpartition(", ")
        rows.setdefault(criterion, []).append(f)
        columns += [what] if what not in columns else []
    head = "<tr><th>a mass is found by</th>" + "".join(f"<th class=num>{escape(c)}</th>" for c in columns) + "</tr>"
    body = "".join(
        f"<tr><td>{escape(criterion)}</td>"
        + "".join(f'<td class=num>{_number(f.interval.value)}<div class="ci">{_range(f.interval)}</div></td>' for f in row)
        + "</tr>"
        for criterion, row in rows.items()
    )
    title = f"<h2>Detection by other criteria <small>with {level}</small></h2>"
    return f'<section class="tables"><div class="card wide">{title}<table>{head}{body}</table></div></section>' if rows else ""


def strata_table(strata: Sequence[Stratum]) -> str:
    """Sensitivity and Dice of groups of masses as a table; "" for none."""
    rows, last = "", ""
    for s in strata:
        rows += f"<tr><td>{escape(s.by) if s.by != last else ''}</td><td>{escape(s.group)}</td><td class=num>{s.n_masses}</td>"
        for interval in (s.tpr, s.dice):
            rows += f'<td class=num>{_number(interval.value)}<div class="ci">{_range(interval)}</div></td>'
        rows, last = rows + "</tr>", s.by
    head = "<tr><th></th><th></th><th class=num>masses</th><th class=num>TPR of the lesions shown</th>"
    head += "<th class=num>Dice, missed ones 0</th></tr>"
    title = "<h2>By kind of mass and image</h2>"
    return f'<section class="tables"><div class="card wide">{title}<table>{head}{rows}</table></div></section>' if rows else ""


def _section(title: str, note: str, cases: Sequence[Case]) -> str:
    shown = "".join(
        f'<figure class="case">{_picture(c)}<figcaption><b>{escape(c.outcome.pair.truth.image_id)}</b><br>{escape(c.caption)}'
        "</figcaption></figure>"
        for c in cases
    )
    legend = ('<span class="key"><i style="background:#3cc850"></i>truth <i style="background:#eb3c3c"></i>outline '
              '<i style="background:#ffd700"></i>detection</span>')  # fmt: skip
    return f'<section><h2>{title} <small>{note}</small> {legend}</h2><div class="cases">{shown}</div></section>'


def _picture(case: Case) -> str:
    truth = case.outcome.pair.truth
    try:
        picture = case_picture(load_mammogram(Path(truth.path), truth.image_id), case.outcome, case.focus)
    except (MammosegError, OSError) as error:
        return f'<p class="nopicture">no picture: {escape(str(error).replace(truth.path, truth.image_id))}</p>'
    return f'<img alt="{escape(truth.image_id)}: {escape(case.caption)}" src="{picture}">'


def _images(e: Evaluation) -> str:
    rows = "".join(
        f"<tr><td>{escape(o.pair.truth.image_id)}</td><td>{o.pair.findings.status}</td>"
        f"<td class=num>{len(o.pair.truth.annotation.masses)}</td><td class=num>{int((o.found >= 0).sum())}</td>"
        f"<td class=num>{int((o.found < 0).sum())}</td><td class=num>{_number(o.dice)}</td></tr>"
        for o in e.outcomes
    )
    numbers = "".join(f"<th class=num>{name}</th>" for name in ("masses", "found", "false positives", "Dice end to end"))
    head = f"<tr><th>image</th><th>status</th>{numbers}</tr>"
    return f"<section><details><summary>All {len(e.outcomes)} images</summary><table>{head}{rows}</table></details></section>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _range(interval: Interval) -> str:
    return "" if interval.low is None or interval.high is None else f"{interval.low:.3f} – {interval.high:.3f}"


_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 24px 60px; color: #1f2933; background: #f5f7fa;
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 30px; } h2 { font-size: 18px; margin: 0 0 10px; } small { color: #66788a; font-weight: normal; }
header p { margin: 6px 0; } .sub { color: #66788a; } .warn { color: #b42318; }
.note { background: #fff4e5; border-left: 4px solid #e08a00; padding: 8px 12px; border-radius: 4px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 14px; margin: 20px 0; }
.tile, .plots figure, .card, .cases figure, details { background: #fff; border: 1px solid #e1e7ee;
  border-radius: 10px; padding: 14px 16px; margin: 0; box-sizing: border-box; }
.big { font-size: 32px; font-weight: 650; color: #0b6e99; line-height: 1.2; font-variant-numeric: tabular-nums; }
.ci { color: #66788a; font-size: 13px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 14px; }
.plots svg { width: 100%; height: auto; } figcaption { font-size: 13px; color: #52606d; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 14px; align-items: start; }
.wide { grid-column: 1 / -1; } .card + .card { margin-top: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { padding: 4px 8px; border-bottom: 1px solid #edf1f5; text-align: left; }
th { color: #66788a; font-weight: 600; } .num { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
section { margin-top: 26px; }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(360px, 1fr)); gap: 14px; }
.case img { width: 100%; border-radius: 4px; display: block; margin-bottom: 6px; } .case figcaption { overflow-wrap: anywhere; }
.key { font-size: 13px; font-weight: normal; color: #52606d; float: right; }
.key i { display: inline-block; width: 14px; height: 4px; margin: 0 4px 3px 10px; border-radius: 2px; }
summary { cursor: pointer; font-weight: 600; } .nopicture { color: #b42318; font-size: 13px; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{{style}}</style></head>
<body>
{{body}}
<p class="sub">Research software, not for clinical use. Intervals: percentile bootstrap over patients.</p>
</body></html>
"""
