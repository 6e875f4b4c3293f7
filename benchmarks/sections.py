"""The parts of a benchmark run; each gives JSON-able figures. Seconds unless a name says otherwise."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.pixels import get_decoder

from benchmarks.contenders import INT8, OURS, RIVALS, RUNTIMES, Contender
from benchmarks.inputs import SIZES, SYNTAXES, mammogram, write_dicom
from benchmarks.timing import child, command, median, medians
from benchmarks.work import gflop
from mammoseg.io.dicom import open_dataset
from mammoseg.io.dicom_codec import _PLUGINS, stored_values
from mammoseg.io.load import load_mammogram
from mammoseg.types import Detections

LARGE = SIZES[1]


def decoding(folder: Path, repeats: int) -> dict[str, Any]:
    """File to stored values against the bare codec, and to a `Mammogram` with hash, scaling and checks."""
    out = {}
    for size in SIZES:
        for syntax in SYNTAXES:
            path = write_dicom(folder, size, syntax)
            ds = open_dataset(path, pixels=True)
            uid = ds.file_meta.TransferSyntaxUID
            plugin = {"decoding_plugin": _PLUGINS[uid]} if uid in _PLUGINS else {}
            decoder = get_decoder(uid)

            def bare(path: Path = path, ds: Any = ds, decoder: Any = decoder, plugin: Any = plugin) -> None:
                path.read_bytes()
                decoder.as_array(ds, index=0, raw=True, **plugin)

            def decode(path: Path = path, size: Any = size) -> None:
                stored_values(open_dataset(path, pixels=True), *size)

            def load(path: Path = path) -> None:
                load_mammogram(path)

            found = medians({"codec": bare, "decode": decode, "mammogram": load}, repeats)
            out[path.stem] = {**found, "decode_to_codec": found["decode"] / found["codec"]}
    return out


def contest(bundle: Path, threads: int, repeats: int, random: bool, in_int8: Path | None = None) -> dict[str, Any]:
    """Decoded image of 3328 × 4084 to findings and mask, by every runtime in turns; ratios to ours.

    in_int8: the bundle with both networks in INT8, which is timed too and has ratios of its own.
    """
    image = mammogram(LARGE)
    bundles = {name: in_int8 if name == INT8 else bundle for name in RUNTIMES}
    contenders = {n: Contender(path, n, image, threads, random) for n, path in bundles.items() if path is not None}
    seconds = medians({name: c.run for name, c in contenders.items()}, repeats)
    rivals = {
        "torch_f32": min(seconds[n] for n in RIVALS if n.startswith("torch")),
        "onnxruntime_f32": seconds["onnxruntime_f32"],
    }
    return {
        "seconds": seconds,
        "ratios": {name: theirs / seconds[OURS] for name, theirs in rivals.items()},
        "int8_ratios": {name: theirs / seconds[INT8] for name, theirs in rivals.items() if INT8 in seconds},
        "precision": contenders[OURS].precisions,
        "turns": repeats,
    }


def stages(bundle: Path, threads: int, repeats: int, random: bool, rates: dict[str, float]) -> dict[str, Any]:
    """Where the time goes between a decoded image and findings with two lesions, and how near the networks are to the limit."""
    contender = Contender(bundle, OURS, mammogram(LARGE), threads, random)
    whole = median(contender.run, repeats)
    contender.use_recordings()
    work = {
        "detector": sum(gflop(bundle, "detector", shape) for shape in contender.detector.seen),  # type: ignore[arg-type]
        "segmenter": sum(gflop(bundle, "segmenter", shape) for shape in contender.segmenter.seen),  # type: ignore[arg-type]
    }
    seconds = medians(
        {
            "detector": contender.detector.run_networks,
            "segmenter": contender.segmenter.run_networks,
            "all_but_networks": contender.run,
        },
        repeats,
    )
    least = {name: work[name] / rates[contender.precisions[name]] for name in work}  # at the rate of matrix multiplication
    return {
        "whole": whole,
        **seconds,
        "share_of_all_but_networks": seconds["all_but_networks"] / whole,
        "gflop": work,
        "gflop_per_s": {
            "detector": work["detector"] / seconds["detector"],
            "segmenter": work["segmenter"] / seconds["segmenter"],
        },
        "share_of_matmul_rate": {name: least[name] / seconds[name] for name in work}
        | {"both": sum(least.values()) / (seconds["detector"] + seconds["segmenter"])},
        "precision": contender.precisions,
        "parts_of_all_but_networks": parts(contender, repeats),
    }


def parts(contender: Contender, repeats: int) -> dict[str, float]:
    """The stages one after the other, networks answering from memory."""
    from mammoseg.fusion import candidates, fuse
    from mammoseg.io.pictures import label_image
    from mammoseg.preprocessing.resize import measure
    from mammoseg.reconstruction import reconstruct

    p, m = contender.pipeline, contender.mammogram
    d, fusion = p.config.detection, p.config.fusion
    found = p.detector.detect(m, d.scales or None, d.score_min, fusion.nms_iou)
    fused = fuse(found, fusion)
    masks = p.segmenter.segment(m, fused.boxes)
    findings = p.analyze(m)
    return medians(
        {
            "breast_region": lambda: measure(m.pixels, p.detector.spec.frame),
            "breast_region_frames_boxes_nms": lambda: p.detector.detect(m, d.scales or None, d.score_min, fusion.nms_iou),
            "fusion": lambda: fuse(found, fusion),
            "crops": lambda: p.segmenter.segment(m, fused.boxes),
            "contours": lambda: reconstruct(masks, fused, m, p.config.reconstruction, p.detector.lanes),
            "candidates": lambda: candidates(fused, found, fusion, fused.boxes),
            "label_image": lambda: label_image(findings),
        },
        repeats,
    )


def growth(bundle: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Seconds over the number of boxes, and over the size of the image, without decoding."""
    contender = Contender(bundle, OURS, mammogram(LARGE), threads, False)
    pipeline, image = contender.pipeline, contender.mammogram
    rng = np.random.default_rng(0)
    corner = rng.uniform((100, 300), (1200, 3400), (40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(150, 400, (40, 2))], axis=1)
    by_boxes = {}
    for n in (1, 2, 5, 10, 20, 40):
        given = Detections(boxes[:n], np.linspace(0.9, 0.5, n), image.size)
        by_boxes[str(n)] = median(lambda given=given: pipeline.analyze(image, given), repeats)  # type: ignore[misc]
    by_size = {}
    for megapixels in (1, 2, 5, 10, 20):
        height = 32 * round((megapixels * 1e6 * 1.25) ** 0.5 / 32)
        one = Contender(bundle, OURS, mammogram((height, 32 * round(height / 1.25 / 32))), threads, False)
        by_size[str(megapixels)] = median(one.run, repeats)
    return {"seconds_by_boxes_given": by_boxes, "seconds_by_megapixels": by_size}


def memory(bundles: dict[str, Path], folder: Path) -> dict[str, float]:
    """Peak memory in GB of a process that decodes and analyses 3328 × 4084 images one after the other."""
    file = write_dicom(folder, LARGE, "uncompressed")
    return {name: child(str(path), str(file), "3")[2] for name, path in bundles.items()}


def flat_memory(folder: Path, counts: tuple[int, ...]) -> dict[str, Any]:
    """Peak memory in GB and seconds of `mammoseg segment` over folders of ever more images (640 × 832, one scale)."""
    files = small_files(folder)
    out: dict[str, Any] = {}
    for count in counts:
        images, results = folder / f"images{count}", folder / f"results{count}"
        for path in (images, results):
            shutil.rmtree(path, ignore_errors=True)
        images.mkdir()
        for i in range(count):
            (images / f"{i:04d}.png").hardlink_to(files[i % len(files)])
        arguments = ["segment", str(images), "--out", str(results), "--formats", "json,mask", "--scales", "160x320"]
        _, seconds, peak = command([sys.executable, "-m", "mammoseg.apps.cli", *arguments])
        out[str(count)] = {"peak_gb": peak, "seconds": seconds}
        shutil.rmtree(images)
        shutil.rmtree(results)
    return out


def cold_start(folder: Path, repeats: int) -> dict[str, float]:
    """`mammoseg segment` on one image in a new process: with an empty cache of compiled networks, and with a filled one."""
    file, out, seconds = write_dicom(folder, LARGE, "uncompressed"), folder / "cold", []
    arguments = [sys.executable, "-m", "mammoseg.apps.cli", "segment", str(file), "--out", str(out), "--overwrite"]
    for _ in range(1 + repeats):
        seconds.append(command(arguments)[1])
    return {"first": seconds[0], "warm_cache": float(np.median(seconds[1:]))}


def throughput(folder: Path, images: int) -> dict[str, float]:
    """Images a second of `mammoseg segment` with all that it writes, 3328 × 4084, start and end included."""
    files = [write_dicom(folder, LARGE, s) for s in SYNTAXES]
    inputs, out = folder / "many", folder / "many-results"
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir()
    for i in range(images):
        (inputs / f"{i:03d}.dcm").hardlink_to(files[i % len(files)])
    figures = {}
    for workers in (1, 2):
        arguments = ["segment", str(inputs), "--out", str(out), "--workers", str(workers), "--overwrite"]
        figures[f"images_per_s_{workers}_workers"] = (
            images / command([sys.executable, "-m", "mammoseg.apps.cli", *arguments])[1]
        )
    return figures


def ray_workers(folder: Path, bundle: Path, images: int, turns: int) -> dict[str, Any]:
    """Images a second of one and of two Ray workers of one core each, from the first result to the last (640 × 832).

    Medians of so many turns.
    """
    files = small_files(folder)
    inputs, out = folder / "ray-images", folder / "ray-results"
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir()
    for i in range(images):
        (inputs / f"{i:04d}.png").hardlink_to(files[i % len(files)])
    rates: dict[int, list[float]] = {1: [], 2: []}
    for workers in (1, 2) * turns:
        arguments = ["segment", str(inputs), "--out", str(out), "--weights", str(bundle), "--formats", "json", "--overwrite"]
        arguments += ["--engine", "ray", "--workers", str(workers), "--set", "runtime.threads=1"]
        command([sys.executable, "-m", "mammoseg.apps.cli", *arguments])
        times = sorted(p.stat().st_mtime for p in out.rglob("findings.json"))
        # The first images of each worker make its kernels; the last ones may be of one worker alone.
        first, last = times[2 * workers], times[-1]
        rates[workers].append((len(times) - 1 - 2 * workers) / (last - first))
    one, two = (float(np.median(found)) for found in rates.values())
    return {
        "one_worker_images_per_s": one,
        "two_workers_images_per_s": two,
        "of_twice_one": two / (2 * one),
        "by_turn": [b / (2 * a) for a, b in zip(*rates.values(), strict=True)],
    }


def small_files(folder: Path) -> list[Path]:
    """Twenty phantoms of 640 × 832, 16-bit PNG."""
    from mammoseg.datasets.phantom import PhantomConfig
    from mammoseg.datasets.phantom_files import write_exams

    if not (folder / "small" / "annotations.json").is_file():
        write_exams(folder / "small", 5, seed=2, format="png", config=PhantomConfig(size=(832, 640)))
    return sorted((folder / "small" / "images").iterdir())


def training_input(bundle: Path, folder: Path, threads: int, repeats: int) -> dict[str, float]:
    """Seconds to make a batch of 8 with augmentation from the cache of decoded images, and to compute its gradient."""
    import torch

    from mammoseg.bundle import open_bundle
    from mammoseg.config import from_dict
    from mammoseg.datasets import read_dataset
    from mammoseg.detection.cache import cached_images
    from mammoseg.detection.losses import LossConfig
    from mammoseg.detection.predictor import DetectorSpec
    from mammoseg.detection.training import DetectionTask, SamplingConfig
    from mammoseg.preprocessing.augmentation import AugmentationConfig
    from mammoseg.runtime.processor import has_bf16
    from mammoseg.runtime.torch_runtime import build

    torch.set_num_threads(threads)
    small_files(folder)
    network = open_bundle(bundle).config["networks"]["detector"]
    spec = from_dict(DetectorSpec, network["spec"])
    images = cached_images(read_dataset(f"phantom:{folder / 'small'}"), folder / "cache", spec.frame)
    module = build("detector", network["config"]).train()
    task = DetectionTask(
        module, images, (), spec, LossConfig(), SamplingConfig(spec.scales, 8, resize_every=1), AugmentationConfig()
    )
    step = 0

    def batch() -> Any:
        nonlocal step
        step += 1
        return task.batch(step, range(8), 0)

    one = batch()

    def gradient() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            loss = task.loss(module, one)["loss"]
        loss.backward()

    found = medians({"batch": batch, "gradient": gradient}, repeats)
    return {**found, "batch_to_gradient": found["batch"] / found["gradient"]}
