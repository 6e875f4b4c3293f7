"""`python -m benchmarks`: measures and writes bench/latest.json; `python -m benchmarks check`: compares ratios with it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import Watch, describe, processors

ROOT = Path(__file__).resolve().parents[1] / "bench"
WORSE = 1.15  # a ratio may be so much smaller than the recorded one, not more
SECTIONS = (
    "contest",
    "stages",
    "int8",
    "decoding",
    "cold_start",
    "memory",
    "throughput",
    "ray_workers",
    "growth",
    "flat_memory",
    "training_input",
)


def measure(names: tuple[str, ...], folder: Path, repeats: int, images: int, bundle: Path | None = None) -> dict[str, Any]:
    """A run of the sections `names`.

    folder: for images, bundles and the cache. images: of the largest folder. bundle: in place of the shipped one.
    """
    from benchmarks import sections
    from benchmarks.bundles import published, shipped
    from benchmarks.int8 import int8, quantised
    from benchmarks.work import matmul_rate

    bundles = {"shipped": bundle or shipped(), "published": published(folder)}
    threads = processors()
    rates = {p: matmul_rate(p, threads) for p in ("f32", "bf16", "int8")}
    out: dict[str, Any] = {"matmul_gflop_per_s": rates}
    turns = {"shipped": max(7, repeats), "published": max(2, repeats // 2)}  # some 3 s a turn, and 28
    per_bundle = {
        "stages": lambda name, path: sections.stages(path, threads, repeats, name != "shipped", rates),
        "int8": lambda name, path: int8(path, folder, threads, repeats, rates),
        "contest": lambda name, path: sections.contest(
            path, threads, turns[name], name != "shipped", quantised(path, folder)[0] if name != "shipped" else None
        ),
    }
    single = {
        "decoding": lambda: sections.decoding(folder, repeats),
        "memory": lambda: sections.memory(bundles, folder),
        "cold_start": lambda: sections.cold_start(folder, 3),
        "throughput": lambda: sections.throughput(folder, 12),
        "ray_workers": lambda: sections.ray_workers(folder, bundles["shipped"], 40, max(3, repeats // 2)),
        "training_input": lambda: sections.training_input(bundles["shipped"], folder, threads, repeats),
        "growth": lambda: sections.growth(bundles["shipped"], threads, max(3, repeats // 2)),
        "flat_memory": lambda: sections.flat_memory(folder, tuple(n for n in (10, 100, 1000) if n <= images)),
    }
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        if name in per_bundle:
            out[name] = {b: per_bundle[name](b, path) for b, path in bundles.items()}
        else:
            out[name] = single[name]()
        print(json.dumps({name: rounded(out[name])}), file=sys.stderr, flush=True)  # so that a run cut short is not lost
    return out


def rounded(value: Any) -> Any:
    """Numbers to four digits."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """What a check compares: how much faster than the rivals of the same run, by "bundle rival"."""
    found = record["figures"]["contest"]
    return {f"{b} {rival}": value for b, entry in found.items() for rival, value in entry["ratios"].items()}


def compare(now: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """In words, which ratios are more than 15% worse than recorded; what cannot be compared is one of them."""
    for bundle, entry in now["figures"]["contest"].items():
        before = recorded["figures"]["contest"][bundle]["precision"]
        if entry["precision"] != before:
            return [f"{bundle}: networks run in {entry['precision']} here, in {before} in the record: run make bench first"]
    was, found = ratios(recorded), ratios(now)
    return [
        f"{name}: {found[name]:.2f} times as fast, {value:.2f} in the record" for name, value in was.items()
        if found[name] * WORSE < value
    ]  # fmt: skip


def main() -> int:
    """Exit code 1 where a check fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("run", "check"), default="run")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", type=int, default=1000, help="of the largest folder")
    parser.add_argument("--folder", type=Path, help="keep images and bundles here between runs")
    parser.add_argument("--bundle", type=Path, help="in place of the shipped one")
    parser.add_argument("--record", type=Path, default=ROOT, help="folder of latest.json and history.jsonl")
    chosen = parser.parse_args()
    names = ("contest",) if chosen.what == "check" else tuple(chosen.sections.split(","))
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["MAMMOSEG_CACHE"] = str(Path(temporary) / "cache")
        with Watch() as watch:
            figures = measure(names, folder, chosen.repeats, chosen.images, chosen.bundle)
    record = {"machine": describe(), "others_used_of_processors": watch.others, "repeats": chosen.repeats, "figures": figures}
    record = rounded(record)
    if chosen.what == "check":
        worse = compare(record, json.loads((chosen.record / "latest.json").read_text()))
        print(json.dumps(ratios(record), indent=1))
        print("\n".join(worse) or "no ratio is more than 15% worse than the recorded one")
        return 1 if worse else 0
    chosen.record.mkdir(exist_ok=True)
    if set(names) == set(SECTIONS):  # a run of some sections goes to the history alone
        (chosen.record / "latest.json").write_text(json.dumps(record, indent=1) + "\n")
    with (chosen.record / "history.jsonl").open("a") as history:
        history.write(json.dumps(record) + "\n")
    print(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
