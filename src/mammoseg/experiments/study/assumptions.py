"""What the paper leaves open and what stands for it, each a setting with a name; where a study departs from the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mammoseg import detection, segmentation
from mammoseg.config import to_dict
from mammoseg.experiments.study.config import StudyConfig


@dataclass(frozen=True)
class Assumption:
    """open: what the paper does not say. key: the setting that holds the answer, "" where it lies in the code. why: words."""

    open: str
    key: str
    why: str


ASSUMPTIONS: tuple[Assumption, ...] = (
    Assumption("the single scale behind Table 1 and “w/o MSF” in Table 5 (H, W)", "assumptions.single_scale",
               "the middle one of the five, at which anchors are measured"),
    Assumption("from which overlap on a box is a hit in FROC and TPR@FPI", "assumptions.hit_iou",
               "stated for average precision alone (0.5), taken for all; the mended part adds 0.1, 0.2 and the centre"),
    Assumption("Dice of whole images: missed masses, false positives, several masses", "assumptions.dice",
               "all pixels of an image against all of the truth: a miss is 0, false positives count; mean over images"),
    Assumption("lowest score that enters a curve", "assumptions.curve_score_min", "low enough for curves to end flat"),
    Assumption("score threshold of a scale before fusion", "fusion.score_min", "a usual one; λ = 0 “keeps all detections”"),
    Assumption("non-maximum suppression within a scale (IoU)", "fusion.nms_iou", "darknet's own"),
    Assumption("N in Eq. 1", "", "the number of scales run, whether or not they found anything"),
    Assumption("λ = 0 in Eq. 1 (M_s ≥ 0 holds everywhere)", "", "M_s > 0: every pixel that a box covers"),
    Assumption("connectivity of the regions of M_s", "", "8-connected"),
    Assumption("rounding of boxes to pixels in M_i", "", "outward"),
    Assumption("score of a fused box, to rank it by", "", "max ΣM_i / N, at most 1; it plays no part in Table 2"),
    Assumption("λ of the two-stage results (0.6 in the text, 0.5 in Table 3)", "fusion.lam", "“we finally choose λ = 0.6”"),
    Assumption("optimizer and warm-up of YOLOv3", "finetune.training.optimizer", "darknet's yolov3.cfg: SGD, 1000 steps"),
    Assumption("which predictions count as no background (IoU)", "finetune.loss.ignore_iou", "darknet's yolov3.cfg"),
    Assumption("averaging of the detector's weights", "finetune.training.ema_decay", "as common implementations do"),
    Assumption("limit on the norm of gradients", "finetune.training.gradient_clip", "keeps a bad batch from undoing a run"),
    Assumption("grey values that the detector sees", "finetune.frame.intensity", "as stored, brought to 0 … 1"),
    Assumption("learning rate during the 60,000 iterations of pre-training", "pretrain.training.schedule",
               "constant after warm-up; the steps at 10k and 20k are those of fine-tuning"),
    Assumption("inputs that multi-scale training draws from (H, W)", "finetune.sizes",
               "multiples of 32 between the smallest and largest scale of prediction, 1:2"),
    Assumption("augmentation of the detector", "finetune.augmentation.flip_horizontal", "flips, scale, shift, grey values"),
    Assumption("which images of CBIS-DDSM (1,514 in the paper; 1,231 + 361 with masses today)", "data.official_split",
               "all that the collection's CSVs name"),
    Assumption("which ROIs of INbreast are masses", "", "those named Mass: 116 in 107 images, as the paper counts"),
    Assumption("how the five splits were drawn", "splits.seed", "at random by image, as “random splits” says; not by patient"),
    Assumption("margin of a crop around its box", "segmenter.crop.margin", "a fifth of the box on each side"),
    Assumption("shape of a crop that is not square", "segmenter.crop.shape", "stretched to the square"),
    Assumption("jitter of true boxes in training", "segmenter.jitter.scale", "detected boxes are not true boxes"),
    Assumption("flips and turns of crops", "segmenter.symmetries", "one of the square's eight symmetries"),
    Assumption("learning rate of the segmenters", "segmenter.training.learning_rate", "usual for Adam and such networks"),
    Assumption("fall of the segmenters' learning rate", "segmenter.training.schedule", "to 1/100 at the end, after a warm-up"),
    Assumption("“until convergence”", "segmenter.training.steps", "so many steps of 4 crops for every network"),
    Assumption("ImageNet weights of U-Net, cGAN and cascade", "", "none: only VGG19 has them; U-Net can take its "
               "encoder with network.encoder = \"vgg19\""),
    Assumption("decoder of v19U-Net++", "", "64, 128, 256, 512 channels, bilinear upsampling, batch norm"),
    Assumption("which output of deep supervision", "segmenter.spec.output", "the mean of all; of the cascade the last stage"),
    Assumption("U-Net's padding and normalisation", "", "padded convolutions with batch norm"),
    Assumption("the cGAN's schedule", "", "generator and discriminator take each step together, not in turn"),
    Assumption("the cascade's stages", "", "1/4, 1/2 and 1 of the image, trained together"),
    Assumption("one-stage training", "one_stage.training.steps", "as on crops, on whole images"),
    Assumption("contrast of whole images for one-stage networks", "one_stage.equalise", "histogram equalisation, as for crops"),
    Assumption("number format of training", "finetune.training.precision", "bfloat16 where the device has it"),
    Assumption("threshold of the masks", "reconstruction.threshold", "1/2"),
    Assumption("a box in which the segmenter sees nothing", "", "the ellipse inscribed in the box; the findings say so"),
    Assumption("± in the tables", "", "sample standard deviation and standard error are given both; see the note at Table 5"),
)  # fmt: skip

INHERENT: tuple[str, ...] = (
    "PyTorch in place of Keras; the numbers of a run depend on it, not the method.",
    "Images are brought to the study's size before anything else, truth included; Dice is measured there, as the paper's is.",
    "Test images are those of the split alone; nothing was tuned on them except where the paper did so (λ in Table 2).",
)
"""What is different whatever the settings say."""


_WITHOUT_EFFECT = (
    "cache",
    "cache_height",
    "checkpoint_every",
    "validate_every",
    "log_every",
    "accelerator",
    "threads",
    "workers",
)


def assumed(config: StudyConfig) -> list[tuple[str, str, str, str]]:
    """(what is open, setting, value, why) of every assumption, in order."""
    values = to_dict(config)
    return [(a.open, a.key, shown(lookup(values, a.key)) if a.key else "", a.why) for a in ASSUMPTIONS]


def departures(config: StudyConfig) -> list[tuple[str, str, str]]:
    """(setting, published, here) of every setting that is not the published one and bears on results; files by their names.

    Networks have all their settings, whether or not they were given. Where training starts is always told: the paper has
    ImageNet's weights, which no default can name. Pre-training is left out where a model trained before stands for it.
    """
    there, here = dict(_flat(_complete(StudyConfig()))), dict(_flat(_complete(config)))
    out = [] if config.pretrained else [("pretrain.weights", "ImageNet’s", shown(config.pretrain.weights or "none"))]
    for name in config.networks:
        if config.segmenter_of(name).arch == "unetpp":
            weights = shown(config.segmenter_of(name).backbone_weights or "none")
            out.append((f"networks.{name}.backbone_weights", "VGG19’s of ImageNet", weights))
    told = {key for key, _, _ in out} | ({"finetune.weights"} if config.pretrained else set())
    for key in [*there, *(k for k in here if k not in there)]:
        if key in told or key.split(".")[-1] in _WITHOUT_EFFECT or (config.pretrained and key.startswith("pretrain.")):
            continue
        published = there.get(key, there.get(_general(key)))
        if published != here.get(key):
            out.append((key, shown(published), shown(here.get(key))))
    return out


def _complete(config: StudyConfig) -> dict[str, Any]:
    """The settings with those of the networks that are left to their defaults."""
    values = to_dict(config)
    for part, of in (("pretrain", config.pretrain), ("finetune", config.finetune)):
        values[part]["network"] = to_dict(detection.network_config(of.arch, of.network))
    for name, own in values["networks"].items():
        crops = config.segmenter_of(name)
        values["networks"][name] = own | {"network": to_dict(segmentation.network_config(crops.arch, crops.network))}
    return values


def _general(key: str) -> str:
    """The setting for all networks that one of a single network stands before.

    >>> _general("networks.unetpp.training.steps"), _general("networks.unet.one_stage.size")
    ('segmenter.training.steps', 'one_stage.size')
    """
    parts = key.split(".")[2:]
    return ".".join(parts if parts[:1] == ["one_stage"] else ["segmenter", *parts]) if key.startswith("networks.") else key


def lookup(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        values = values[part]
    return values


def shown(value: Any) -> str:
    """A setting for people: of a path its last part alone.

    >>> shown([[320, 160], [512, 256]]), shown("/data/vgg19.safetensors"), shown(0.1)
    ('320 × 160, 512 × 256', 'vgg19.safetensors', '0.1')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or "–"
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(v, (list, tuple)) for v in value):
            return ", ".join(" × ".join(map(str, v)) for v in value)
        return ", ".join(shown(v) for v in value) or "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            out += _flat(value, f"{prefix}{key}.")
        else:
            out.append((prefix + key, value))
    return out


def page() -> str:
    """docs/assumptions.md: the assumptions with the published configuration's values."""
    lines = [
        "# What the paper leaves open",
        "",
        "`mammoseg reproduce` runs the experiments of Yan et al. 2020. Where the paper does not say what was done, a setting",
        "stands for it, under the name given here; `report.html` lists them all with the values of its run, and every",
        "departure from them.",
        "",
        "| open in the paper | here | setting | why |",
        "|---|---|---|---|",
    ]
    for what, key, value, why in assumed(StudyConfig()):
        lines.append(f"| {what} | {value} | {f'`{key}`' if key else ''} | {why} |")
    lines += ["", "Different whatever the settings say:", ""]
    lines += [f"- {line}" for line in INHERENT]
    return "\n".join(lines) + "\n"
