"""Decoded images kept for training: reduced to one height, 16 bit, memory-mapped, so that an epoch costs no decoding."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray

from mammoseg.bundle import hash_file
from mammoseg.config import to_dict
from mammoseg.datasets.images import load_item
from mammoseg.errors import DatasetError
from mammoseg.preprocessing.resize import FrameConfig, FrameMeasure, measure
from mammoseg.types import Boxes, DatasetItem, FloatImage

log = logging.getLogger("mammoseg.detection")


@dataclass(frozen=True, eq=False)
class CachedImage:
    """One image of the cache. raw: uint16[h, w], 0..65535 for 0..1. boxes: f64[N, 4] of its masses, in this frame.

    measured: in this frame too. scale: of this frame to the native one. ignored: f64[M, 4] in this frame, of what is neither a
    mass nor free of findings (the item's attribute `other_regions`). zoom: how large training shows it, relative to a frame
    that the breast fills.
    """

    item: DatasetItem
    raw: NDArray[np.uint16]
    boxes: Boxes
    measured: FrameMeasure
    scale: float
    ignored: Boxes = field(default_factory=lambda: np.zeros((0, 4)))
    zoom: float = 1.0

    @property
    def pixels(self) -> FloatImage:
        """f32[h, w] in [0, 1]."""
        return self.raw.astype(np.float32) / np.float32(65535.0)


def cached_images(
    items: Sequence[DatasetItem],
    folder: Path,
    frame: FrameConfig,
    height: int = 1024,
    hashes: Mapping[str, str] | None = None,
) -> list[CachedImage]:
    """The images of `items`, at most `height` px high, from the cache below `folder`, which is made where it is not there.

    hashes: sha256 of each image file by image id; None computes them. The key is made of them, of `height` and of the code
    that reads and reduces images; measures are kept per `frame` and code that measures. So neither a changed file nor changed
    code is ever served what was kept before. Raises DatasetError where an image has not the size its annotation says, and what
    `load_mammogram` raises.
    """
    known = hashes or {i.image_id: hash_file(Path(i.path)) for i in items}
    contents = sorted([i.image_id, known[i.image_id], *i.annotation.size] for i in items)
    key = _key([height, contents, code_version("mammoseg.io", "mammoseg.detection.cache")])
    pixels_file = folder / f"pixels-{key}.npy"
    shapes = [_reduced(i.annotation.size, height) for i in items]
    # Stored in the order of image ids, whatever the order asked for.
    order = sorted(range(len(items)), key=lambda i: items[i].image_id)
    offsets, end = {}, 0
    for i in order:
        offsets[i] = end
        end += shapes[i][0] * shapes[i][1]
    if not pixels_file.is_file():
        _write_pixels(pixels_file, items, shapes, offsets, end)
    flat = np.load(pixels_file, mmap_mode="r")
    raws = [flat[offsets[i] : offsets[i] + h * w].reshape(h, w) for i, (h, w) in enumerate(shapes)]
    frame_key = _key([to_dict(frame), code_version("mammoseg.preprocessing", "mammoseg.geometry")])
    measures = _measures(folder / f"measures-{key}-{frame_key}.json", items, raws, frame)
    out = []
    for item, raw, measured in zip(items, raws, measures, strict=True):
        factor = raw.shape[0] / item.annotation.size[0], raw.shape[1] / item.annotation.size[1]
        boxes, ignored = (
            np.array(given, dtype=np.float64).reshape(-1, 4) * ((factor[1], factor[0]) * 2)
            for given in ([m.box for m in item.annotation.masses], item.attributes.get("other_regions", []))
        )
        out.append(CachedImage(item, raw, boxes, measured, factor[0], ignored))
    return out


def code_version(*modules: str) -> str:
    """A hash of the source of `modules`, of packages all their files, and of the versions of the libraries that do the work."""
    digest = hashlib.sha256(json.dumps([cv2.__version__, np.__version__, pydicom.__version__]).encode())
    for name in modules:
        file = Path(str(importlib.import_module(name).__file__))
        for source in sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]:
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


def _key(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _reduced(size: tuple[int, int], height: int) -> tuple[int, int]:
    scale = min(1.0, height / size[0])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _write_pixels(
    path: Path, items: Sequence[DatasetItem], shapes: list[tuple[int, int]], offsets: dict[int, int], total: int
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    flat = np.lib.format.open_memmap(str(temporary), mode="w+", dtype=np.uint16, shape=(total,))

    def write(i: int) -> None:
        pixels = load_item(items[i]).pixels
        if pixels.shape != items[i].annotation.size:
            said = items[i].annotation.size
            raise DatasetError(f"{items[i].image_id}: the image is {pixels.shape} (H, W), its annotation says {said}")
        h, w = shapes[i]
        small = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA)
        flat[offsets[i] : offsets[i] + h * w] = np.round(small.clip(0, 1) * 65535).astype(np.uint16).ravel()

    with ThreadPoolExecutor(max_workers=2) as pool:
        for done, _ in enumerate(pool.map(write, range(len(items))), start=1):
            if done % 200 == 0 or done == len(items):
                log.info("decoded %d/%d images", done, len(items))
    flat.flush()
    temporary.rename(path)


def _measures(
    path: Path, items: Sequence[DatasetItem], raws: Sequence[NDArray[np.uint16]], frame: FrameConfig
) -> list[FrameMeasure]:
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
    else:
        known = {}
        for done, (item, raw) in enumerate(zip(items, raws, strict=True), start=1):
            m = measure(raw.astype(np.float32) / np.float32(65535.0), frame)
            known[item.image_id] = [list(m.box), m.low, m.high]
            if done % 200 == 0:
                log.info("measured %d/%d images", done, len(items))
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(known), encoding="utf-8")
        temporary.rename(path)
    return [FrameMeasure(tuple(known[i.image_id][0]), known[i.image_id][1], known[i.image_id][2]) for i in items]
