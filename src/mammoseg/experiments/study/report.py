"""`OUT/report.html`: one page that opens offline, with tables beside the paper's, figures, assumptions, and the mended part."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mammoseg import __version__
from mammoseg.bundle import default_bundle
from mammoseg.datasets import dataset_name, parse_spec
from mammoseg.datasets.splits import load_fold
from mammoseg.experiments.study import mended, paper, unseen
from mammoseg.experiments.study.assumptions import INHERENT, assumed, departures
from mammoseg.experiments.study.config import StudyConfig
from mammoseg.experiments.study.figures import figure2, figure3, figure4, figure5, figure6, figure7
from mammoseg.experiments.study.graph import Step
from mammoseg.experiments.study.splits import leaked_patients
from mammoseg.experiments.study.tables import read_rows
from mammoseg.io.atomic import write_atomic

if TYPE_CHECKING:
    from mammoseg.experiments.study.plan import Study

FILE = "report.html"
_CAPTIONS = {2: figure2, 3: figure3, 4: figure4, 5: figure5, 6: figure6, 7: figure7}
_TABLES = {
    1: "Average precision of the detector at one scale",
    2: "Multi-scale fusion: TPR at false positives an image",
    3: "Detection beside others' figures, as the paper lists them",
    4: "Dice on crops around the true masses",
    5: "Dice on whole images",
}


def step(study: Study) -> Step:
    """The last step. It shows what there is: a table or figure that was not asked for has a line in its place."""
    needs = [f"table{n}" for n in _TABLES] + [f"fig{n}" for n in _CAPTIONS]
    needs += ["mended", "mended-froc", "gap"] if study.by_patient else []

    def run() -> None:
        write_atomic(study.out / FILE, html(study).encode())

    return Step("report", run, (FILE,), tuple(needs), {"config": shown_config(study), "version": __version__}, version=2)


def shown_config(study: Study) -> list[list[str]]:
    """All that the page says of the settings; no paths."""
    return [list(row) for row in (*assumed(study.effective), *departures(study.effective))]


def html(study: Study) -> str:
    """The page, from what lies in OUT; parts that are not there have a line in their place."""
    parts = [_header(study), "<h2>Detection</h2>"]
    parts += [_table(study, 1), _figure(study, 4), _table(study, 2), _figure(study, 5), _table(study, 3)]
    parts += [_figure(study, 2), _figure(study, 3), "<h2>Segmentation</h2>", _table(study, 4), _table(study, 5), _spread_note()]
    parts += [_figure(study, 6), _figure(study, 7)]
    if study.by_patient:
        parts.append(_mended(study))
    parts += [_assumptions(study), _departures(study)]
    return _PAGE.replace("{{style}}", _STYLE).replace("{{body}}", "\n".join(parts))


def _header(study: Study) -> str:
    items = study.items()
    ill = [i for i in items if i.annotation.masses]
    masses = [m for i in ill for m in i.annotation.masses]
    leaks = [leaked_patients(items, load_fold(study.out / "splits" / f"{s}.json")) for s in study.published]
    first = load_fold(study.out / "splits" / f"{study.published[0]}.json")
    source = "none" if study.cbis_ddsm is None else escape(dataset_name(study.cbis_ddsm))
    if study.config.pretrained:
        name = default_bundle().name if study.config.pretrained == "installed" else Path(study.config.pretrained).name
        source = f"a model trained before ({escape(name)})"
    phantoms = any("phantom" in str(i.attributes.get("source_id", "")).lower() for i in items) or "phantom" in study.inbreast
    warning = (
        '<p class="note">These are phantoms: synthetic images made to run the study, not to measure anything.</p>'
        if phantoms
        else ""
    )
    if not phantoms and parse_spec(study.inbreast)[0] != "inbreast":
        warning = (
            '<p class="note">The target data are not INbreast. The paper’s figures are of INbreast: they stand beside ours '
            "for orientation, and no difference between the two says which method is better.</p>"
        )
    seen = unseen.warning(study.out / unseen.FILE) if study.config.pretrained else ""
    warning += f'<p class="note">{escape(seen)}</p>' if seen else ""
    return (
        "<header><h1>Two-stage multi-scale breast mass segmentation: the published study, run again</h1>"
        "<p class=sub>Yan, Conze, Quellec, Lamard, Cochener, Coatrieux 2020, Sect. 4 · "
        f"mammoseg {escape(__version__)} · research software, not for clinical use</p>{warning}"
        f"<p>Target data: <b>{escape(dataset_name(study.inbreast))}</b>, {len(items)} images of "
        f"{len({i.patient_id for i in items})} patients, {len(ill)} of them with a mass, {len(masses)} masses, "
        f"{sum(m.mask is not None for m in masses)} outlined. Detector pre-trained on: <b>{source}</b>. "
        f"{len(study.published)} random splits of {len(first.train)} training and {len(first.test)} test images; patients on "
        f"both sides: {', '.join(map(str, leaks))}.</p></header>"
    )


def _table(study: Study, number: int) -> str:
    file = study.out / "tables" / f"table{number}.csv"
    title = f"Table {number}. {_TABLES[number]}"
    if not file.is_file():
        return f"<section><h3>{title}</h3><p class=sub>not run</p></section>"
    rows = read_rows(file)
    splits = study.published if number != 3 else []
    digits = 2
    head = "<tr><th></th><th></th>" + "".join(f"<th class=num>{s}</th>" for s in splits)
    head += "<th class=num>mean</th><th class=num>sd</th><th class=num>se</th><th class=num>the paper</th></tr>"
    body, last = "", None
    for row in rows:
        method = row["method"] if row["method"] != last else ""
        last = row["method"]
        cells = "".join(_cell(row.get(s, ""), row.get(f"paper {s}", ""), digits) for s in splits)
        spread = "".join(f"<td class=num>{_number(row[k], digits)}</td>" for k in ("mean", "sd", "se"))
        body += f"<tr><td>{escape(method)}</td><td>{escape(row['setup'])}</td>{cells}{spread}"
        body += f"<td class='num paper'>{escape(row['paper'])}</td></tr>"
    theirs = any(row.get(f"paper {s}") for row in rows for s in splits)
    note = "Below each of our values the paper's of the same number; its splits were other ones." if theirs else ""
    return f"<section class=card><h3>{title} <small>{note}</small></h3><table>{head}{body}</table></section>"


def _cell(ours: str, theirs: str, digits: int) -> str:
    said = f'<div class="paper">{_number(theirs, digits)}</div>' if theirs else ""
    return f"<td class=num>{_number(ours, digits)}{said}</td>"


def _figure(study: Study, number: int) -> str:
    file = study.out / "figures" / f"fig{number}.svg"
    words = (_CAPTIONS[number].__doc__ or "").strip()
    if not file.is_file():
        return f"<section><p class=sub>Fig. {number}: not run</p></section>"
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<figure class="card"><img alt="Figure {number}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption><b>Fig. {number}.</b> {escape(words)}</figcaption></figure>"
    )


def _spread_note() -> str:
    """Which ± the paper's tables print, by their own numbers."""
    rows = ""
    for (name, setup), (values, printed) in paper.WHOLE_DICE.items():
        which = ", ".join(paper.which_spread(values, printed)) or "none of them"
        mean = sum(values) / len(values)
        wrong = f" (the mean of its five splits is {mean:.2f})" if abs(mean - float(printed.split("±")[0])) > 0.006 else ""
        rows += f"<tr><td>{escape(paper.title(name))}</td><td>{paper.SETUPS[setup]}</td>"
        rows += f"<td>{printed}{wrong}</td><td>{which}</td></tr>"
    return (
        '<section class="card"><h3>A note on ± in the paper</h3><p>Tables 1 and 4 print standard errors (sd/√5). Table 5 '
        "mixes: by its own five numbers, the rows with MSF and one-stage print the standard error, the rows without MSF the "
        "population standard deviation, which for five numbers is √(5 − 1) = 2 times as large as the standard error. "
        "So the spread with and without MSF cannot be compared as printed. Here both are given, for every row.</p>"
        f"<details><summary>Row by row</summary><table><tr><th></th><th></th><th>printed</th><th>what it is</th></tr>{rows}"
        "</table></details></section>"
    )


def _mended(study: Study) -> str:
    file = study.out / mended.FILE
    if not file.is_file():
        return "<h2>Mended</h2><p class=sub>not run</p>"
    found = json.loads(file.read_bytes())
    m = study.config.mended
    parts = [
        "<div class=mended><h2>Mended: the same questions with patients apart</h2>",
        f"<p>{len(study.by_patient)} split{'s' * (len(study.by_patient) > 1)} by patient: about {m.train:.0%} of the patients "
        f"to train on, {m.validation:.0%} to choose λ and the score threshold on, the rest to test on, with their images "
        "without a mass. Intervals: 95%, bootstrap over patients, pooled over the splits.</p>",
        _lacking(study, found),
        _points(found),
        _gap(study),
        _criteria(found),
        _froc(study),
        _figures_of(found),
        _comparisons(found),
        _strata(found, m.networks[0]),
        "</div>",
    ]
    return "\n".join(parts)


def _lacking(study: Study, found: Mapping[str, Any]) -> str:
    """What the data do not hold, and which of the questions that leaves open; "" where they hold all."""
    counts = next(iter(found["networks"].values()))["counts"]
    lines = []
    if counts["n_images"] == counts["n_images_with_mass"]:
        lines.append("No test image is without a mass: false positives are counted on images with one alone.")
    if any(i.spacing_mm is None for i in study.items() if i.annotation.masses):
        lines.append(
            "The size of a pixel is not known for every image: distances in mm are given where it is, and masses are grouped "
            "by thirds of their sizes."
        )
    return f'<p class="note">{" ".join(lines)}</p>' if lines else ""


def _points(found: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{s}</td><td class=num>{sizes['train']}</td><td class=num>{sizes['validation']}</td>"
        f"<td class=num>{sizes['test']}</td><td class=num>{found['patients_on_both_sides'][s]}</td>"
        f"<td class=num>{found['operating_points'][s]['lam']:g}</td>"
        f"<td class=num>{found['operating_points'][s]['lesion_score_min']:.3f}</td></tr>"
        for s, sizes in found["splits"].items()
    )
    head = "".join(
        f"<th class=num>{t}</th>"
        for t in ("training images", "validation", "test", "patients on both sides", "λ chosen", "score threshold chosen")
    )
    return f"<section class=card><h3>Splits and operating points</h3><table><tr><th></th>{head}</tr>{rows}</table></section>"


def _gap(study: Study) -> str:
    file = study.out / mended.GAP_FILE
    if not file.is_file():
        return ""
    rows = ""
    for row in read_rows(file):
        there = [_number(row[s], 2) for s in study.published]
        here = [_number(row[s], 2) for s in study.by_patient]
        rows += (
            f"<tr><td>{escape(row['method'])}</td><td class=num>{' · '.join(there)}</td><td class=num>{' · '.join(here)}</td>"
        )
        rows += f"<td class='num strong'>{escape(row['paper'])}</td></tr>"
    return (
        "<section class=card><h3>The leakage gap <small>published splits minus patient-wise splits, same settings, images with "
        "a mass alone</small></h3><table><tr><th></th><th class=num>published</th><th class=num>patient-wise</th>"
        f"<th class=num>gap</th></tr>{rows}</table></section>"
    )


def _froc(study: Study) -> str:
    file = study.out / mended.FROC_FILE
    if not file.is_file():
        return ""
    data = base64.b64encode(file.read_bytes()).decode()
    words = (mended.froc_figure.__doc__ or "").strip()
    return (
        f'<figure class="card"><img alt="FROC by patient" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def _criteria(found: Mapping[str, Any]) -> str:
    """Detection of the first network's findings by each hit criterion: a row for each."""
    name = next(iter(found["networks"]))
    figures = found["networks"][name]["figures"]
    rows = ""
    for criterion in mended.CRITERIA:
        key = criterion.name.lower().replace(" ", "_")
        mine = [f"ap_{key}", *(k for k in figures if k.startswith(f"tpr_{key}_at"))]
        cells = "".join(f"<td class=num>{_interval(figures[k])}</td>" for k in mine if k in figures)
        rows += f"<tr><td>{criterion.name}</td>{cells}</tr>"
    at = [k.split("_at_")[1].split("_")[0] for k in figures if k.startswith("tpr_centre_at")]
    head = "".join(f"<th class=num>TPR at {f} FP/image</th>" for f in at)
    return (
        "<section class=card><h3>Detection over all test images, by hit criterion</h3>"
        f"<table><tr><th>a mass is found by</th><th class=num>AP</th>{head}</tr>{rows}</table></section>"
    )


def _figures_of(found: Mapping[str, Any]) -> str:
    names = list(found["networks"])
    keys: dict[str, str] = {}
    for name in names:
        for key, figure in found["networks"][name]["figures"].items():
            if not key.startswith(("ap_", "tpr_iou", "tpr_centre")):
                keys.setdefault(key, figure["label"])
    rows = ""
    for key, label in keys.items():
        rows += f"<tr><td>{escape(label)}</td>"
        for name in names:
            figure = found["networks"][name]["figures"].get(key)
            rows += "<td class=num>–</td>" if figure is None else f"<td class=num>{_interval(figure)}</td>"
        rows += "</tr>"
    counts = found["networks"][names[0]]["counts"]
    head = "".join(f"<th class=num>{escape(paper.title(n))}</th>" for n in names)
    return (
        f"<section class=card><h3>At the chosen operating points <small>{counts['n_images']} test images, "
        f"{counts['n_images_with_mass']} with a mass, {counts['n_truth']} masses, {counts['n_patients']} patients</small></h3>"
        f"<table><tr><th></th>{head}</tr>{rows}</table></section>"
    )


def _comparisons(found: Mapping[str, Any]) -> str:
    rows, last = "", None
    for d in found["comparisons"]:
        said = escape(d["comparison"]) if d["comparison"] != last else ""
        last = d["comparison"]
        p = "" if d["p"] is None else f"{d['p']:.3g}"
        values = "".join(f"<td class=num>{'–' if d[k] is None else format(d[k], '.3f')}</td>" for k in ("first", "second"))
        rows += f"<tr><td>{said}</td><td>{escape(d['label'])}</td>{values}<td class=num>{_interval(d['interval'], True)}</td>"
        rows += f"<td class=num>{p}</td></tr>"
    head = "".join(f"<th class=num>{t}</th>" for t in ("first", "second", "difference", "p"))
    head = f"<tr><th></th><th></th>{head}</tr>"
    note = "p: sign-flip test by patient; several tests, not corrected for their number"
    return f"<section class=card><h3>Paired comparisons <small>{note}</small></h3><table>{head}{rows}</table></section>"


def _strata(found: Mapping[str, Any], name: str) -> str:
    rows, last = "", None
    for s in found["networks"][name]["strata"]:
        by = escape(s["by"]) if s["by"] != last else ""
        last = s["by"]
        rows += f"<tr><td>{by}</td><td>{escape(s['group'])}</td><td class=num>{s['n_masses']}</td>"
        rows += f"<td class=num>{_interval(s['tpr'])}</td><td class=num>{_interval(s['dice'])}</td></tr>"
    head = "<tr><th></th><th></th><th class=num>masses</th><th class=num>TPR</th><th class=num>Dice, missed ones 0</th></tr>"
    title = f"By kind of mass and image <small>{escape(paper.title(name))}</small>"
    return f"<section class=card><h3>{title}</h3><table>{head}{rows}</table></section>"


def _assumptions(study: Study) -> str:
    rows = ""
    for (what, key, value, why), (_, _, default, _) in zip(assumed(study.effective), assumed(StudyConfig()), strict=True):
        other = "" if value == default else f"<div class=ci>default: {escape(default)}</div>"
        rows += f"<tr><td>{escape(what)}</td><td>{escape(value)}{other}</td><td><code>{escape(key)}</code></td>"
        rows += f"<td>{escape(why)}</td></tr>"
    head = "<tr><th>open in the paper</th><th>here</th><th>setting</th><th>why this default</th></tr>"
    return f"<h2>Assumptions</h2><section class=card><table>{head}{rows}</table></section>"


def _departures(study: Study) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td>{escape(there)}</td><td>{escape(here)}</td></tr>"
        for key, there, here in departures(study.effective)
    )
    table = (
        f"<table><tr><th>setting</th><th>published</th><th>here</th></tr>{rows}</table>"
        if rows
        else "<p>None in the settings.</p>"
    )
    rest = "".join(f"<li>{escape(line)}</li>" for line in INHERENT)
    return f"<h2>Departures from the paper</h2><section class=card>{table}<ul>{rest}</ul></section>"


def _interval(figure: Mapping[str, Any], signed: bool = False) -> str:
    value, low, high = figure["value"], figure["low"], figure["high"]
    if value is None:
        return "–"
    form = "+.3f" if signed else ".3f"
    between = "" if low is None or high is None else f'<div class="ci">{low:{form}} – {high:{form}}</div>'
    return f"{value:{form}}{between}"


def _number(text: str, digits: int) -> str:
    return f"{float(text):.{digits}f}" if text else "–"


_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1120px; padding: 32px 24px 64px; color: #1f2933; background: #f6f8fa;
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 4px; font-size: 27px; line-height: 1.25; } h2 { margin: 36px 0 8px; font-size: 21px; }
h3 { margin: 0 0 8px; font-size: 16px; } small { color: #66788a; font-weight: normal; font-size: 13px; }
.sub { color: #66788a; margin: 4px 0; } .note { background: #fff4e5; border-left: 4px solid #e08a00; padding: 8px 12px; }
.card { background: #fff; border: 1px solid #e1e7ee; border-radius: 8px; padding: 14px 16px; margin: 14px 0; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { padding: 4px 8px; border-bottom: 1px solid #edf1f5; text-align: left; vertical-align: top; }
th { color: #52606d; font-weight: 600; } .num { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.paper { color: #8a5a00; font-size: 12.5px; } .ci { color: #66788a; font-size: 12.5px; } .strong { font-weight: 650; }
figure img { display: block; max-width: 100%; max-height: 900px; margin: 0 auto 8px; }
figcaption { font-size: 13.5px; color: #52606d; }
.mended { border-left: 4px solid #0b6e99; padding-left: 16px; margin-top: 40px; } code { font-size: 12.5px; }
summary { cursor: pointer; color: #0b6e99; } ul { margin: 8px 0; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>The published study, run again</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{{style}}</style></head>
<body>
{{body}}
</body></html>
"""
