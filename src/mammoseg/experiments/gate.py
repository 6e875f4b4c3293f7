"""The parity gate: which precisions give the findings of fp32 torch. Its result, stored in the bundle, decides which it uses.

A bundle runs in float32 until its findings in bf16 were compared with fp32 torch on real images, and then in bf16 where the
processor has it; a network with which the gate fails stays in float32. A network that the bundle holds in INT8 runs in it once
that was compared too; else it stays in what bf16's comparison settled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mammoseg.bundle import NETWORKS, Bundle, open_bundle, write_sums
from mammoseg.config import from_dict, to_dict
from mammoseg.datasets.images import load_image, load_item
from mammoseg.errors import BundleError
from mammoseg.evaluation import EvaluationOptions
from mammoseg.evaluation.evaluate import evaluate_pairs
from mammoseg.evaluation.inputs import Pair, Pairs
from mammoseg.evaluation.overlap import dice
from mammoseg.experiments.parity import end_to_end
from mammoseg.io.atomic import write_atomic
from mammoseg.pipeline import Pipeline, load, settings_of
from mammoseg.runtime import RuntimeConfig
from mammoseg.runtime.processor import has_bf16, has_int8
from mammoseg.types import DatasetItem, Detections, Findings, Lesion, Mammogram

IOU_LEAST, SCORE_MOST, AP50_MOST, DICE_MOST = 0.9, 0.02, 0.005, 0.003
OUTLINES_LEAST = 0.99
"""Mean Dice with torch's outlines, as in `parity.BARS`: without true masks it is all that shows what the segmenter does."""
MASSES_LEAST = 10
"""A gate that saw fewer masses says nothing, and changes nothing."""
CHOICES: tuple[tuple[str, ...], ...] = ((), ("detector",), ("segmenter",))
"""Networks to leave in float32, tried in this order with bf16."""
INT8_CHOICES: tuple[tuple[str, ...], ...] = (NETWORKS, ("detector",), ("segmenter",))
"""Networks to run in INT8, tried in this order as far as the bundle holds them in it."""
_Found = list[tuple[Findings, Findings | None]]


def run_gate(directory: Path, images: Sequence[Path | DatasetItem]) -> dict[str, Any]:
    """Compares the bundle under OpenVINO in float32 and, where bundle and processor have it, in bf16 and INT8 with fp32 torch.

    images: files, or items of a data set, whose truth then also gives AP50 and the Dice on true boxes. Returns JSON-able
    figures for each way of running it, what each falls short of, and the `runtime` settings that follow. Raises ImageError.
    """
    opened = open_bundle(directory)
    ways = {"f32": RuntimeConfig()}
    if has_bf16():
        ways |= {_name(kept): RuntimeConfig(precision="bf16", f32_networks=kept) for kept in CHOICES}
    items = [i for i in images if isinstance(i, DatasetItem)]
    found = _found(opened, images, {"torch": RuntimeConfig("torch")} | ways)
    torch, reference = found["torch"], _truth_figures(items, found["torch"])
    results = {name: _compared(items, found[name], torch, reference) for name in ways}
    settled = _allowed(results)
    more = _int8_ways(opened.int8_networks, settled)
    if more:
        found = _found(opened, images, more)
        results |= {name: _compared(items, found[name], torch, reference) for name in more}
    passed = [way for name, way in more.items() if not results[name]["falls_short"]]
    return {"reference": {"torch": reference}, "ways": results, "runtime": to_dict(passed[0] if passed else settled)}


def falls_short(figures: Mapping[str, Any]) -> list[str]:
    """In words, which bars of the gate are missed. figures: those of `end_to_end` and differences of truth figures."""
    missing = figures["images"] - figures["images_with_equal_lesion_count"]
    short = [f"another number of masses in {missing} of {figures['images']} images"] if missing else []
    if figures["lesion_box_iou_least"] < IOU_LEAST:
        short.append(f"least IoU of a mass's boxes {figures['lesion_box_iou_least']:.4g}, expected at least {IOU_LEAST:g}")
    if figures["lesion_score_difference"] > SCORE_MOST:
        short.append(f"a mass's scores differ by {figures['lesion_score_difference']:.4g}, expected at most {SCORE_MOST:g}")
    outlines = figures.get("lesion_mask_dice_mean", 1.0)
    if outlines < OUTLINES_LEAST:
        short.append(f"mean Dice of masses' outlines {outlines:.4g}, expected at least {OUTLINES_LEAST:g}")
    for key, words, bar in (("ap50", "AP50", AP50_MOST), ("dice_on_true_boxes", "Dice on true boxes", DICE_MOST)):
        if abs(figures.get(key, 0.0)) > bar:
            short.append(f"{words} differs by {figures[key]:+.4f}, expected at most {bar:g}")
    return short


def store(directory: Path, result: Mapping[str, Any], on: str) -> Bundle:
    """Writes a gate's result into the bundle: metrics.json, and the runtime settings that follow into config.json.

    on: what it was measured on, for people. Raises BundleError where the bundle's float32 findings are not those of torch, or
    where too few masses were seen.
    """
    opened = open_bundle(directory)
    short = result["ways"]["f32"]["falls_short"]
    if short:
        raise BundleError(f"{directory}: in float32 it does not find what torch finds ({'; '.join(short)}); make it again")
    if result["ways"]["f32"]["lesions"] < MASSES_LEAST:
        raise BundleError(
            f"the gate saw {result['ways']['f32']['lesions']} masses, and {MASSES_LEAST} are the least it can be judged by: "
            "give more images with masses"
        )
    settings = settings_of(opened)
    allowed = from_dict(RuntimeConfig, result["runtime"], "runtime")
    kept = {key: getattr(allowed, key) for key in ("precision", "f32_networks", "int8_networks")}
    pipeline = replace(settings, runtime=replace(settings.runtime, **kept))
    config = {**opened.config, "pipeline": to_dict(pipeline)}
    metrics = {**opened.metrics, "gate": {"on": on, **result}}
    for name, value in (("config.json", config), ("metrics.json", metrics)):
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        write_atomic(directory / name, text.encode())
    write_sums(directory)
    return open_bundle(directory)


def _name(kept: tuple[str, ...]) -> str:
    return "bf16" if not kept else f"bf16, {kept[0]} f32"


def _found(opened: Bundle, images: Sequence[Path | DatasetItem], ways: Mapping[str, RuntimeConfig]) -> dict[str, _Found]:
    """Findings of every image in each of `ways`: those of the whole pipeline, and those of true boxes where there are masks."""
    pipelines = {name: _with(opened, way) for name, way in ways.items()}
    found: dict[str, _Found] = {name: [] for name in ways}
    for image in images:
        mammogram = load_item(image) if isinstance(image, DatasetItem) else load_image(Path(image))
        boxes = _true_boxes(image, mammogram) if isinstance(image, DatasetItem) else None
        for name, pipeline in pipelines.items():
            given = None if boxes is None else pipeline.analyze(mammogram, boxes)
            found[name].append((pipeline.analyze(mammogram), given))
    return found


def _compared(items: Sequence[DatasetItem], found: _Found, torch: _Found, reference: Mapping[str, float]) -> dict[str, Any]:
    """How far `found` is from what torch found, with what it falls short of. reference: truth figures of torch."""
    pairs = [(a[0], b[0]) for a, b in zip(found, torch, strict=True)]
    figures: dict[str, Any] = {"images": len(pairs), **end_to_end(pairs)}
    figures |= {k: round(v - reference[k], 6) for k, v in _truth_figures(items, found).items()}
    return {**figures, "falls_short": falls_short(figures)}


def _with(opened: Bundle, runtime: RuntimeConfig) -> Pipeline:
    return load(opened.directory, config=replace(settings_of(opened), runtime=runtime))


def _allowed(results: Mapping[str, Mapping[str, Any]]) -> RuntimeConfig:
    """The fastest way that passed: bf16, with as few networks as possible in float32."""
    for kept in CHOICES:
        way = results.get(_name(kept))
        if way is not None and not way["falls_short"]:
            return RuntimeConfig(precision="auto", f32_networks=kept)
    return RuntimeConfig()


def _int8_ways(stored: Sequence[str], settled: RuntimeConfig) -> dict[str, RuntimeConfig]:
    """`INT8_CHOICES` that can be run here, over what float32 and bf16 settled for the other network."""
    kept = settled.f32_networks if settled.precision == "auto" else NETWORKS
    return {
        f"int8 {' and '.join(chosen)}": RuntimeConfig(precision="auto", f32_networks=kept, int8_networks=chosen)
        for chosen in INT8_CHOICES
        if set(chosen) <= set(stored) and has_int8()
    }


def _true_boxes(item: DatasetItem, mammogram: Mammogram) -> Detections | None:
    masses = [m for m in item.annotation.masses if m.mask is not None]
    if not masses:
        return None
    boxes = np.array([m.box for m in masses], dtype=np.float64)
    return Detections(boxes, np.linspace(1.0, 0.9, len(boxes)), mammogram.size, "given")


def _truth_figures(items: Sequence[DatasetItem], found: _Found) -> dict[str, float]:
    """AP50 and the mean Dice on true boxes, as far as the truth has boxes and masks."""
    if not items or not any(i.annotation.masses for i in items):
        return {}
    pairs = Pairs(tuple(Pair(i, f) for i, (f, _) in zip(items, found, strict=True)))
    evaluation = evaluate_pairs(pairs, EvaluationOptions(resamples=0, allow_seen=True))
    ap50 = evaluation["ap_iou_0.5"].value
    out = {} if ap50 is None else {"ap50": float(ap50)}
    dices = []
    for item, (_, given) in zip(items, found, strict=True):
        if given is not None:
            dices += [_best_dice(m.mask, m.origin_px, given.lesions) for m in item.annotation.masses if m.mask is not None]
    if dices:
        out["dice_on_true_boxes"] = float(np.mean(dices))
    return out


def _best_dice(mask: Any, origin_px: tuple[int, int], lesions: Sequence[Lesion]) -> float:
    return max((dice((mask, origin_px), (x.mask, x.origin_px)) for x in lesions), default=0.0)
