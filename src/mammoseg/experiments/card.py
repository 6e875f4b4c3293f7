"""card.md: what a bundle is, what it was trained on, under which licences, for which use, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mammoseg.experiments.start import datasets_of
from mammoseg.training.checkpoint import Model

_DATASETS = {
    "cbis_ddsm_mass": """\
- **CBIS-DDSM**, mass cases of the official training part, full mammograms with boxes (digitised film). Licence CC BY 3.0.
  Sawyer-Lee R, Gimenez F, Hoogi A, Rubin D. *Curated Breast Imaging Subset of Digital Database for Screening Mammography*.
  The Cancer Imaging Archive, 2016, doi 10.7937/K9/TCIA.2016.7O02S9CY. Lee RS et al. *A curated mammography data set for use in
  computer-aided detection and diagnosis research*. Scientific Data, 2017.
""",
    "cdd_cesm": """\
- **CDD-CESM**, low-energy images with masks of mass-like regions. Licence CC BY 4.0. Khaled R et al. *Categorized contrast
  enhanced mammography dataset for diagnostic and artificial intelligence research*. Scientific Data, 2022; The Cancer Imaging
  Archive.
""",
}
_ARCHIVE = """\
- Clark K et al. *The Cancer Imaging Archive (TCIA): maintaining and operating a public information repository*. Journal of
  Digital Imaging, 2013.
"""
_STARTS = {
    "efficientnet_lite": "EfficientNet-Lite trained on ImageNet (Apache-2.0)",
    "vgg16": "VGG16 trained on ImageNet (BSD-3-Clause)",
    "vgg19": "VGG19 trained on ImageNet (BSD-3-Clause)",
}
_LIMITS = {
    "cbis_ddsm_mass": """\
- The {network} learned from digitised film of one collection (United States, 1990s). Digital mammograms of other makers,
  populations and ages may give other results.
""",
    "cdd_cesm": """\
- The mass-like regions that taught the {network} come from malignant cases of one hospital.
""",
}

_USE = """\
## Intended use

Research on the detection and delineation of breast masses in X-ray mammograms. **Not a medical device; not for clinical
use; no output may guide the care of a patient.**

## Limits

- Masses only: calcifications, distortions and asymmetries are neither sought nor found.
- Scores are no probabilities of malignancy.
- What differs from the training data may give other results; measure on data of your own before you conclude anything.
"""


def write_card(path: Path, config: Mapping[str, Any], metrics: Mapping[str, Any], models: Mapping[str, Model]) -> None:
    """Writes the card of a bundle from its configuration, metrics and the models' records."""
    networks = config["networks"]
    lines = [
        f"# {config['name']}",
        "",
        f"Mass detection and segmentation networks for {config['made_with']}.",
        "",
        "## Networks",
        "",
    ]
    for kind in ("detector", "segmenter"):
        number = sum(v.numel() for k, v in models[kind].state.items() if v.is_floating_point() and "running_" not in k)
        size = metrics["bytes"][f"{kind}.safetensors"] / 1e6
        lines.append(
            f"- **{kind}**: {_flat(networks[kind]['config'])}; {number:,} parameters, "
            f"{networks[kind]['weights']}, {size:.1f} MB"
        )
    lines += ["", "## Results", ""]
    lines += _results({k: v for k, v in metrics.items() if k not in ("bytes", "parity", "gate")}) or ["None recorded."]
    parity = metrics.get("parity", {})
    if parity:
        lines += ["", "These weights under OpenVINO against the trained float32 networks in torch:", ""]
        lines += [f"- {k.replace('_', ' ')}: {v}" for k, v in parity.items()]
    path.write_text("\n".join(lines) + "\n\n" + _data(models) + "\n" + _use(models), encoding="utf-8")


def _results(metrics: Mapping[str, Any]) -> list[str]:
    """Plain values as a list; an evaluation and a calibration, as `mammoseg bundle build` keeps them, in tables."""
    lines, after = [], []
    for name, value in metrics.items():
        if name == "calibration" and isinstance(value, Mapping):
            after += ["", "### Scores as probabilities", "", f"Fitted on {value['on']}.", ""]
            after += ["| scores | ECE, bins of equal mass | Brier score | candidates |", "|---|---|---|---|"]
            for words, key in (("raw", "raw"), ("each patient's by a fit on the others", "cross_fitted")):
                if found := value.get(key):
                    after.append(
                        f"| {words} | {found['ece']:.3f} | {found['brier']:.3f} | {found['n']} from {found['least']:g} |"
                    )
        elif isinstance(value, Mapping) and "figures" in value:
            after += ["", f"### Measured on {name}", "", f"{value['on']}, 95% intervals by bootstrap over patients.", ""]
            after += ["| figure | value |", "|---|---|"]
            after += [f"| {label} | {_interval(figure)} |" for label, figure in value["figures"].items()]
            if value.get("strata"):
                after += ["", "| masses by | group | masses | found at the operating point |", "|---|---|---|---|"]
                after += [f"| {s['by']} | {s['group']} | {s['n_masses']} | {_interval(s['tpr'])} |" for s in value["strata"]]
        else:
            lines.append(f"- {name}: {_flat(value) if isinstance(value, Mapping) else value}")
    return lines + (after if lines else after[1:])


def _interval(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "–"
    return f"{figure['value']:.3f}" + ("" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]")


def _data(models: Mapping[str, Model]) -> str:
    """What each network was trained on, by its record; source and licence of the public data sets known here."""
    lines = ["## Training data and licences", ""]
    names: set[str] = set()
    for kind, model in models.items():
        used = datasets_of(model.record)
        names.update(used)
        lines.append(f"The {kind} was trained on: {', '.join(used) or 'not recorded'}. {_start(model)}".rstrip())
    text = "\n".join(lines) + "\n\n" + "".join(_DATASETS[n] for n in sorted(names & set(_DATASETS)))
    if names & set(_DATASETS):
        text += _ARCHIVE
    text += "".join(
        f"- **{n}**: not known here; whoever passes this bundle on answers for its licence and consent.\n"
        for n in sorted(names - set(_DATASETS))
    )
    text += '\n`training.json` lists the sha256 of every image file trained on, and of every patient as "data set:patient".\n'
    if names and names <= set(_DATASETS):
        text += "The weights are offered under Apache-2.0; name the data sets above when you use them.\n"
    return text


def _start(model: Model) -> str:
    record = model.record
    settings = {**record.get("config", {}), **record.get("settings", {})}
    file = str(settings.get("weights") or settings.get("backbone_weights") or "")
    words = next((w for prefix, w in _STARTS.items() if file.lower().startswith(prefix)), file)
    words = str(record.get("start") or words)
    return f"It started from: {words}." if words else ""


def _use(models: Mapping[str, Model]) -> str:
    limits = [
        _LIMITS[name].format(network=kind)
        for kind, model in models.items()
        for name in datasets_of(model.record)
        if name in _LIMITS
    ]
    return _USE + "".join(limits)


def _flat(values: Mapping[str, Any]) -> str:
    parts = (_flat(v) if isinstance(v, Mapping) else f"{k} {v}" for k, v in values.items() if not isinstance(v, Mapping) or v)
    return ", ".join(parts)
