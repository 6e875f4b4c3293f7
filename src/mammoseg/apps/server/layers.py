"""What lies behind the lesions of an image: the detections at each scale, and the fusion mask M_s (the paper's Figs. 2, 3)."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from mammoseg import pipeline as whole
from mammoseg.apps.server.aside import Aside
from mammoseg.apps.server.catalogue import Entry, Found
from mammoseg.apps.server.errors import ApiError, not_found
from mammoseg.apps.server.store import Store
from mammoseg.bundle import Bundle
from mammoseg.config import from_dict, to_dict
from mammoseg.errors import ConfigError
from mammoseg.fusion import msf_mask
from mammoseg.io.atomic import write_atomic
from mammoseg.io.load import load_mammogram
from mammoseg.pipeline import Pipeline, PipelineConfig, settings_of
from mammoseg.types import Detections

_LIMIT_S = 300.0
_MOST_BOXES = 200  # of a scale, best first


class Layers:
    """Works layers out with the pipeline, in a process aside, and keeps them."""

    def __init__(self, store: Store, bundle: Bundle | None, aside: Aside) -> None:
        self._store, self._bundle, self._aside = store, bundle, aside

    def of(self, entry: Entry, found: Found | None) -> bytes:
        """The layers as JSON, with the settings that its findings were made with (the bundle's where it has none).

        Raises `ApiError` 404 where the image file is not here, 409 without weights; `ImageError` where it is unusable.
        """
        if entry.path is None:
            raise not_found("image file")
        digest = self._store.sha256(entry.path)
        if digest is None:
            raise not_found("image file")
        if self._bundle is None:
            raise ApiError(409, "no_weights", "this installation has no weights; name a bundle with --weights")
        settings = _settings(self._bundle, found)
        key = hashlib.sha256(json.dumps([digest, self._bundle.sha256, settings], sort_keys=True).encode()).hexdigest()[:32]
        kept = self._store.root / "made" / entry.image_id / f"layers-{key}.json"
        try:
            return kept.read_bytes()
        except OSError:
            pass
        made = self._aside.call(_LIMIT_S, make_layers, entry.path, self._bundle.directory, settings)
        data = json.dumps(made, separators=(",", ":")).encode()
        write_atomic(kept, data)
        return data


def _settings(bundle: Bundle, found: Found | None) -> dict[str, Any]:
    """The settings of findings, where they were made with these weights and are understood."""
    ours = to_dict(settings_of(bundle))
    if found is not None:
        provenance = found.document.get("provenance", {})
        try:
            if provenance["bundle"]["sha256"] == bundle.sha256:
                return to_dict(from_dict(PipelineConfig, {**provenance["settings"], "runtime": ours["runtime"]}))
        except (KeyError, TypeError, ConfigError):
            pass
    return ours


def make_layers(path: Path, bundle: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The layers of the image at `path` (as `models.Layers`), with the pipeline of these settings."""
    pipeline = _pipeline(bundle, json.dumps(settings, sort_keys=True))
    config = pipeline.config
    mammogram = load_mammogram(path, "image")
    sizes = config.detection.scales or pipeline.detector.spec.scales
    per_scale = pipeline.detector.detect(mammogram, sizes, config.detection.score_min, config.fusion.nms_iou)
    return {
        "lambda": config.fusion.lam,
        "fusion": config.fusion.method,
        "score_min": config.fusion.score_min,
        "scales": [{"size": list(size), "detections": _boxes(found)} for size, found in zip(sizes, per_scale, strict=True)],
        "fusion_mask": _mask(pipeline, per_scale) if config.fusion.method == "msf" else None,
    }


@lru_cache(maxsize=2)
def _pipeline(bundle: Path, settings: str) -> Pipeline:
    return whole.load(bundle, config=from_dict(PipelineConfig, json.loads(settings)))


def _boxes(found: Detections) -> list[dict[str, Any]]:
    best = found.best_first()
    pairs = list(zip(best.boxes.tolist(), best.scores.tolist(), strict=True))[:_MOST_BOXES]
    return [{"box_xyxy": [round(v, 2) for v in box], "score": round(score, 6)} for box, score in pairs]


def _mask(pipeline: Pipeline, per_scale: list[Detections]) -> dict[str, Any]:
    xs, ys, values, most = msf_mask(per_scale, pipeline.config.fusion)
    return {
        "x_edges": xs.tolist(),
        "y_edges": ys.tolist(),
        "values": [[round(v, 6) for v in row] for row in values.tolist()],
        "scale": round(most, 6),
    }
