"""Two trained networks to one bundle: graphs, small weights, card, record, and proof that nothing was lost on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch.nn import Module

from mammoseg import __version__
from mammoseg.bundle import FORMAT, QUANTISE_FROM, State, WeightType, open_bundle, save_weights, write_sums
from mammoseg.config import from_dict, to_dict
from mammoseg.detection import described
from mammoseg.errors import BundleError, UsageError
from mammoseg.experiments.card import write_card
from mammoseg.experiments.export import export_graph
from mammoseg.experiments.parity import measure_parity, shortcomings
from mammoseg.experiments.start import open_model
from mammoseg.pipeline import PipelineConfig, settings_of, uncalibrated
from mammoseg.runtime.torch_runtime import build
from mammoseg.segmentation.predictor import read_spec
from mammoseg.training.checkpoint import Model


@dataclass(frozen=True)
class BundleOptions:
    """name: of the bundle. pipeline: its settings, what differs from those it starts from (see `starting_settings`).

    detector_weights, segmenter_weights: how parameters are stored. metrics: results to keep in metrics.json, JSON-able.
    images: mammograms to measure parity on; phantoms where there are none. quantise_from: see `save_weights`. force: also
    a bundle that falls short of the trained networks.
    """

    name: str = "mammoseg"
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    detector_weights: WeightType = "float16"
    segmenter_weights: WeightType = "int8"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    images: Sequence[Path] = ()
    quantise_from: int = QUANTISE_FROM
    force: bool = False


def make_bundle(detector_dir: Path, segmenter_dir: Path, out: Path, options: BundleOptions | None = None) -> dict[str, Any]:
    """Writes a bundle to `out` from two trained networks, each a model directory or a bundle; returns its metrics.

    The bundle is compared with the trained networks (`measure_parity`) before it takes its place; the figures stay in its
    metrics. Raises `UsageError` where `out` is not empty or a directory holds the wrong kind of model, `BundleError` where a
    network cannot be exported or the bundle falls short of the trained networks (unless `options.force`); nothing is left then.
    """
    chosen = options or BundleOptions()
    before = to_dict(starting_settings(detector_dir, segmenter_dir))
    settings = from_dict(PipelineConfig, _merged(before, chosen.pipeline), "pipeline")
    if settings.runtime.precision in ("auto", "int8"):  # the parity gate (`gate.py`) passed for other weights
        settings = replace(settings, runtime=replace(settings.runtime, precision="f32", f32_networks=(), int8_networks=()))
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; name another folder for the bundle")
    models = _as_written_now(open_model(detector_dir, "detector"), open_model(segmenter_dir, "segmenter"))
    target = out.resolve()
    building = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        metrics = _write(building, models, settings, chosen)
        short = [] if chosen.force else shortcomings(metrics["parity"])
        if short:
            raise BundleError(
                f"no bundle was made: on {metrics['parity']['images']} {metrics['parity']['on']} it does not give what the "
                f"trained networks give ({'; '.join(short)}): store parameters finer with --detector-weights or "
                "--segmenter-weights, or take it as it is with --force"
            )
        building.replace(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return metrics


def starting_settings(detector_dir: Path, segmenter_dir: Path) -> PipelineConfig:
    """The pipeline settings a bundle of these networks starts from: those of the bundle a network is taken from.

    Of two bundles, the detector's gives all but `reconstruction`, which the segmenter's gives; of one bundle, it gives all, but
    calibration and operating points only with its detector; of model directories, which have none, the defaults. Raises
    `BundleError` where a directory is neither.
    """
    detector, segmenter = (
        None if (path / "model.json").is_file() else settings_of(open_bundle(path)) for path in (detector_dir, segmenter_dir)
    )
    if detector is not None and segmenter is not None:
        return replace(detector, reconstruction=segmenter.reconstruction)
    return detector or (uncalibrated(segmenter) if segmenter else PipelineConfig())


def _merged(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(before)
    for key, value in changes.items():
        old = out.get(key)
        out[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _write(out: Path, models: Mapping[str, Model], settings: PipelineConfig, chosen: BundleOptions) -> dict[str, Any]:
    """All files of the bundle, into the empty folder `out`; its metrics."""
    stored: dict[str, WeightType] = {"detector": chosen.detector_weights, "segmenter": chosen.segmenter_weights}
    for kind, model in models.items():
        state: State = {k: v.numpy() for k, v in model.state.items()}
        network = build(kind, model.config, state)
        channels = int(next(v for v in network.state_dict().values() if v.ndim == 4).shape[1])
        (out / f"{kind}.onnx").write_bytes(export_graph(network, channels).SerializeToString(deterministic=True))
        save_weights(out / f"{kind}.safetensors", state, stored[kind], chosen.quantise_from)
    networks = {kind: {"config": m.config, "spec": m.spec, "weights": stored[kind]} for kind, m in models.items()}
    config = {
        "format": FORMAT,
        "name": chosen.name,
        "made_with": f"mammoseg {__version__}",
        "networks": networks,
        "pipeline": to_dict(settings),
    }
    _write_json(out / "config.json", config)
    _write_json(out / "training.json", training_record(models))
    sizes = {f"{kind}.{end}": (out / f"{kind}.{end}").stat().st_size for kind in models for end in ("onnx", "safetensors")}
    metrics: dict[str, Any] = {"bytes": sizes, **chosen.metrics}
    _write_json(out / "metrics.json", metrics)
    write_card(out / "card.md", config, metrics, models)
    write_sums(out)
    metrics["parity"] = measure_parity(out, {k: (m.config, m.state) for k, m in models.items()}, chosen.images)
    _write_json(out / "metrics.json", metrics)
    write_card(out / "card.md", config, metrics, models)
    write_sums(out)
    return metrics


def _as_written_now(detector: Model, segmenter: Model) -> dict[str, Model]:
    """The models with their descriptions in today's form, whenever they were trained."""
    arch, settings = described(detector.config)
    return {
        "detector": replace(detector, config={"arch": arch, "network": settings}, record=_portable(detector.record)),
        "segmenter": _pruned(replace(segmenter, spec=to_dict(read_spec(segmenter.spec)))),
    }


def _pruned(segmenter: Model) -> Model:
    """The segmenter without the branches that the output it is used by, one of deep supervision's, does not depend on.

    What is cut away is not in the bundle, so training that starts from it cannot bring it back.
    """
    output = str(segmenter.spec["output"])
    if output == "mean":
        return segmenter
    network = build("segmenter", segmenter.config, {k: v.numpy() for k, v in segmenter.state.items()})
    prune: Callable[[int], Module] | None = getattr(network, "pruned", None)
    if prune is None:
        return segmenter
    try:
        small = prune(int(output[1:]))
    except ValueError as error:
        raise BundleError(f"the segmenter is to be used by its output {output}, which it does not have ({error})") from error
    config: dict[str, Any] = segmenter.config | {"network": to_dict(small.config)}
    return replace(segmenter, state=small.state_dict(), config=config)


def _portable(record: Mapping[str, Any]) -> dict[str, Any]:
    """A bundle goes to others: of files on the machine it was trained on it holds names alone."""
    settings = dict(record.get("settings", {}))
    for key in ("weights", "cache"):
        if settings.get(key):
            settings[key] = Path(settings[key]).name
    return {**record, "settings": settings} if settings else dict(record)


def training_record(models: Mapping[str, Model]) -> dict[str, Any]:
    """training.json: which images and patients were trained on (as hashes), and each network's own record."""
    images: set[str] = set()
    patients: set[str] = set()
    records: dict[str, Any] = {}
    for kind, model in models.items():
        record = dict(model.record)
        seen = sorted({*record.get("image_sha256", ()), *record.pop("files_sha256", ())})
        whose = sorted({*record.get("patient_sha256", ()), *record.pop("patients_sha256", ())})
        images.update(seen)
        patients.update(whose)
        records[kind] = record | {"image_sha256": seen, "patient_sha256": whose}
    return {"image_sha256": sorted(images), "patient_sha256": sorted(patients), "networks": records}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
