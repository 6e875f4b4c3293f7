"""card.md: what a bundle is, what it was trained on, under which licences, for which use, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mammoseg.training.checkpoint import Model

_DATA = """\
## Training data and licences

- **CBIS-DDSM**, mass cases of the official training part, full mammograms with boxes (digitised film). Licence CC BY 3.0.
  Sawyer-Lee R, Gimenez F, Hoogi A, Rubin D. *Curated Breast Imaging Subset of Digital Database for Screening Mammography*.
  The Cancer Imaging Archive, 2016, doi 10.7937/K9/TCIA.2016.7O02S9CY. Lee RS et al. *A curated mammography data set for use in
  computer-aided detection and diagnosis research*. Scientific Data, 2017.
- **CDD-CESM**, low-energy images with masks of mass-like regions. Licence CC BY 4.0. Khaled R et al. *Categorized contrast
  enhanced mammography dataset for diagnostic and artificial intelligence research*. Scientific Data, 2022; The Cancer Imaging
  Archive.
- Clark K et al. *The Cancer Imaging Archive (TCIA): maintaining and operating a public information repository*. Journal of
  Digital Imaging, 2013.
- ImageNet-trained starting weights: EfficientNet-Lite (Apache-2.0) for the detector, VGG16 (BSD-3-Clause) for the segmenter's
  encoder, "VGG19 initialised from ImageNet VGG16 by identity insertion".

The weights are offered under Apache-2.0; name the data sets above when you use them. `training.json` lists the sha256 of
every image file trained on, and of every patient as "data set:patient".
"""

_USE = """\
## Intended use

Research on the detection and delineation of breast masses in X-ray mammograms. **Not a medical device; not for clinical
use; no output may guide the care of a patient.**

## Limits

- Masses only: calcifications, distortions and asymmetries are neither sought nor found.
- The detector learned from digitised film of one collection (United States, 1990s). Digital mammograms of other makers,
  populations and ages may give other results; measure on data of your own before you conclude anything.
- The mass-like regions that taught the segmenter come from malignant cases of one hospital.
- Scores are no probabilities of malignancy. Small masses (below about 5 mm), masses in dense tissue and masses cut by
  the image's edge are missed more often.
- Implants, magnification views, specimens and tomosynthesis were not part of training.
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
    shown = {k: v for k, v in metrics.items() if k not in ("bytes", "parity")}
    lines += [f"- {k}: {_flat(v) if isinstance(v, Mapping) else v}" for k, v in shown.items()] or ["None recorded."]
    parity = metrics.get("parity", {})
    if parity:
        lines += ["", "These weights under OpenVINO against the trained float32 networks in torch:", ""]
        lines += [f"- {k.replace('_', ' ')}: {v}" for k, v in parity.items()]
    path.write_text("\n".join(lines) + "\n\n" + _DATA + "\n" + _USE, encoding="utf-8")


def _flat(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items() if not isinstance(v, Mapping) or v)
