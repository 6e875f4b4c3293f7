"""Compiled networks are kept between runs and are the same; several calls at a time; precision for the processor."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mammoseg.errors import ConfigError
from mammoseg.runtime import RuntimeConfig, compiled_cache, load_network
from mammoseg.runtime.processor import has_bf16

needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="this processor has no bf16")
PRECISIONS = ["f32", pytest.param("bf16", marks=needs_bf16)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(compiled_cache.VARIABLE, str(folder))
    return folder


def inputs(count: int = 1) -> np.ndarray:
    return np.random.default_rng(0).random((count, 3, 128, 64), dtype=np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_network_from_the_cache_gives_the_same_bytes(tiny_bundle: Path, cache: Path, precision: str) -> None:
    settings = RuntimeConfig(threads=1, precision=precision)  # type: ignore[arg-type]
    made = load_network(tiny_bundle, "detector", settings)(inputs())
    (kept,) = cache.iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    before = kept.stat().st_mtime_ns
    read = load_network(tiny_bundle, "detector", settings)(inputs())
    assert all(np.array_equal(a, b) for a, b in zip(made, read, strict=True))
    assert [p.stat().st_size for p in cache.iterdir()] == [kept.stat().st_size]
    assert kept.stat().st_mtime_ns != before  # it was used, not made again beside
    os.environ[compiled_cache.VARIABLE] = "off"
    without = load_network(tiny_bundle, "detector", settings)(inputs())
    assert all(np.array_equal(a, b) for a, b in zip(made, without, strict=True))


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "of others"])
def test_a_damaged_cache_is_made_again(tiny_bundle: Path, cache: Path, damage: str) -> None:
    settings = RuntimeConfig(threads=1)
    made = load_network(tiny_bundle, "detector", settings)(inputs())
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    assert compiled_cache.read_cached(kept.stem) == whole[32:]
    if damage == "of others":
        kept.chmod(0o666)
    else:
        kept.write_bytes({"cut": whole[:-100], "changed": whole[:500] + b"x" + whole[501:], "empty": b""}[damage])
    assert compiled_cache.read_cached(kept.stem) is None
    again = load_network(tiny_bundle, "detector", settings)(inputs())
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
    assert compiled_cache.read_cached(kept.stem) is not None
    assert kept.stat().st_mode & 0o077 == 0


def test_what_makes_another_network_is_kept_apart(tiny_bundle: Path, cache: Path) -> None:
    for name in ("detector", "segmenter"):
        for threads in (1, 2):
            load_network(tiny_bundle, name, RuntimeConfig(threads=threads))
    assert len(list(cache.iterdir())) == 4


def test_without_a_place_for_it_there_is_no_cache(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(compiled_cache.VARIABLE, str(tmp_path / "file" / "below"))
    load_network(tiny_bundle, "detector", RuntimeConfig(threads=1))
    monkeypatch.setenv(compiled_cache.VARIABLE, "off")
    assert compiled_cache.cache_folder() is None
    monkeypatch.delenv(compiled_cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compiled_cache.cache_folder() == tmp_path / "xdg" / "mammoseg"
    assert not cache.exists()


def test_the_oldest_go_where_there_is_too_much(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_cache, "MOST_BYTES", 2500)
    for i in range(4):
        compiled_cache.write_cached(f"k{i}", bytes(1000))
        os.utime(cache / f"k{i}.blob", (i, i))
    assert compiled_cache.read_cached("k2") == bytes(1000)  # now the last used
    compiled_cache.write_cached("k4", bytes(1000))
    assert sorted(p.stem for p in cache.iterdir()) == ["k2", "k4"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_results_do_not_depend_on_threads_lanes_or_company(tiny_bundle: Path, precision: str) -> None:
    """So that one worker and two find the same."""
    sizes = [(128, 64), (192, 96), (96, 64), (160, 96)]
    rng = np.random.default_rng(1)
    xs = [rng.random((1, 3, *size), dtype=np.float32) for size in sizes] * 3
    one = load_network(tiny_bundle, "detector", RuntimeConfig(threads=1, precision=precision))  # type: ignore[arg-type]
    two = load_network(tiny_bundle, "detector", RuntimeConfig(threads=2, precision=precision), lanes=2)  # type: ignore[arg-type]
    assert (one.lanes, two.lanes) == (1, 2)
    expected = [one(x) for x in xs]
    with ThreadPoolExecutor(6) as many:
        found = list(many.map(two, xs))
    for a, b in zip(expected, found, strict=True):
        for p, q in zip(a, b, strict=True):
            assert np.abs(p - q).max() < (1e-5 if precision == "f32" else 2e-2)


@pytest.mark.parametrize(("lanes", "expected"), [(1, [1, 3]), (2, [])])
def test_memory_of_another_number_of_inputs_is_given_back(tiny_bundle: Path, lanes: int, expected: list[int]) -> None:
    """By one lane alone: of several, another's call may be under way. What is computed stays the same."""
    settings = RuntimeConfig(threads=2)
    network = load_network(tiny_bundle, "detector", settings, lanes)
    compiled, released = network._compiled, []  # type: ignore[attr-defined]

    class Watched:
        def release_memory(self) -> None:
            released.append(count)
            compiled.release_memory()

    network._compiled = Watched()  # type: ignore[attr-defined]
    for count in (2, 2, 1, 1, 3):
        fresh = load_network(tiny_bundle, "detector", settings, lanes)(inputs(count))
        assert all(np.array_equal(a, b) for a, b in zip(network(inputs(count)), fresh, strict=True))
    assert released == expected


def test_auto_is_what_the_processor_has(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\n")
    new.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n")
    assert [has_bf16(p) for p in (old, new, tmp_path / "missing")] == [False, True, False]
    assert RuntimeConfig(precision="auto").precision_of("detector") == ("bf16" if has_bf16() else "f32")
    assert RuntimeConfig("torch", precision="auto").precision_of("detector") == "f32"
    assert RuntimeConfig().precision_of("detector") == "f32"
    mixed = RuntimeConfig(precision="bf16", f32_networks=("detector",))
    assert [mixed.precision_of(n) for n in ("detector", "segmenter")] == ["f32", "bf16"]
    with pytest.raises(ValueError, match="expected detector, segmenter or both, got fusion"):
        RuntimeConfig(f32_networks=("fusion",))


def test_onnx_runtime_names_the_devices_it_has(tiny_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match=r"no device 'TPU'; it has .*CPU"):
        load_network(tiny_bundle, "detector", RuntimeConfig("onnxruntime", device="TPU"))


def test_the_environment_switches_the_cache_of_the_command_too(tiny_bundle: Path, small_exams: Path, tmp_path: Path) -> None:
    image = sorted(small_exams.iterdir())[0]
    seen = []
    for value in ("off", str(tmp_path / "kept")):
        command = [sys.executable, "-m", "mammoseg.apps.cli", "segment", str(image), "--weights", str(tiny_bundle)]
        command += ["--out", str(tmp_path / f"out-{len(seen)}"), "--formats", "json"]
        environment = os.environ | {compiled_cache.VARIABLE: value, "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        seen.append([p.name for p in (tmp_path / "home").rglob("*")])
    assert seen == [[], []]
    assert len(list((tmp_path / "kept").iterdir())) == 2
    first, second = (next((tmp_path / f"out-{i}").rglob("findings.json")).read_bytes() for i in (0, 1))
    assert first == second


FIRST_CALLS = """
import sys, threading
from mammoseg.runtime.openvino_runtime import ov

sys.setswitchinterval(1e-6)
gate = threading.Barrier(2)

def call():
    gate.wait()
    ov.Type.f32.to_dtype()  # as the first inference does

threads = [threading.Thread(target=call) for _ in range(2)]
for t in threads: t.start()
for t in threads: t.join()
print("both came back")
"""


def test_the_first_calls_of_two_threads_do_not_wait_for_each_other() -> None:
    """OpenVINO's first call makes a table with the interpreter's lock given up half-way; two at once never came back."""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True, timeout=60)
        assert done.stdout == "both came back\n", done.stderr
