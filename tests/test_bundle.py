"""Weights on disk, and a bundle's proof that it is unaltered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mammoseg import bundle as b
from mammoseg.errors import BundleError


def _state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "conv.weight": (rng.normal(size=(16, 8, 3, 3)) * rng.uniform(0.01, 4, size=(16, 1, 1, 1))).astype(np.float32),
        "small.weight": rng.normal(size=(2, 4, 1, 1)).astype(np.float32),
        "bn.running_var": np.array([1e-9, 3.0, 7e8], dtype=np.float32),
        "bn.num_batches_tracked": np.array(12, dtype=np.int64),
        "act.scale": rng.normal(size=3).astype(np.float32),
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_weights_come_back_within_their_types_precision(tmp_path: Path, dtype: b.WeightType) -> None:
    state = _state()
    b.save_weights(tmp_path / "w.safetensors", state, dtype, quantise_from=1024)
    back = b.load_weights(tmp_path / "w.safetensors")
    assert set(back) == set(state)
    for key in ("bn.running_var", "bn.num_batches_tracked", "act.scale"):  # never squeezed
        assert np.array_equal(back[key], state[key]), key
        assert back[key].dtype == state[key].dtype
    error = np.abs(back["conv.weight"] - state["conv.weight"])
    largest = np.abs(state["conv.weight"]).reshape(16, -1).max(axis=1).reshape(16, 1, 1, 1)
    allowed = {"float32": 0.0, "float16": largest * 2**-11, "bfloat16": largest * 2**-8, "int8": largest / 254 * 1.0001}[dtype]
    assert (error <= allowed).all()
    assert (error.max() > 0) == (dtype != "float32")


def test_int8_is_a_quarter_of_float32_with_a_scale_for_each_32_input_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = (
        rng.normal(size=(64, 96, 3, 3)).astype(np.float32) * np.repeat([1, 0.01, 100], 32).astype(np.float32)[:, None, None]
    )
    b.save_weights(tmp_path / "w.safetensors", {"w": values}, "int8", quantise_from=1024)
    assert (tmp_path / "w.safetensors").stat().st_size < values.nbytes / 4 + 64 * 3 * 4 + 1000
    back = b.load_weights(tmp_path / "w.safetensors")["w"]
    for part in range(3):
        group = values[:, 32 * part : 32 * part + 32]
        allowed = np.abs(group).max(axis=(1, 2, 3)) / 254 * 1.0001
        assert (np.abs(back[:, 32 * part : 32 * part + 32] - group).max(axis=(1, 2, 3)) <= allowed).all()


def test_int8_leaves_small_tensors_as_float16(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(64, 64, 3, 3)).astype(np.float32)
    b.save_weights(tmp_path / "w.safetensors", {"w": values}, "int8")
    assert np.array_equal(b.load_weights(tmp_path / "w.safetensors")["w"], values.astype(np.float16).astype(np.float32))


def test_float16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"big: values beyond float16"):
        b.save_weights(tmp_path / "w.safetensors", {"big": np.full((2, 2), 1e6, np.float32)}, "float16")


def test_bfloat16_agrees_with_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(2).normal(size=(100, 100)).astype(np.float32)
    b.save_weights(tmp_path / "w.safetensors", {"w": values}, "bfloat16")
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(b.load_weights(tmp_path / "w.safetensors")["w"], expected)


def test_torch_reads_the_same_file(tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    state = _state()
    b.save_weights(tmp_path / "w.safetensors", state, "float16")
    read = load_file(str(tmp_path / "w.safetensors"))
    assert np.array_equal(read["conv.weight"].float().numpy(), b.load_weights(tmp_path / "w.safetensors")["conv.weight"])


def _write_bundle(folder: Path) -> Path:
    folder.mkdir()
    for name in b.REQUIRED:
        (folder / name).write_text("{}")
    (folder / "config.json").write_text(
        json.dumps({"format": 1, "name": "tiny", "networks": {n: {"spec": {}} for n in b.NETWORKS}})
    )
    (folder / "training.json").write_text(json.dumps({"image_sha256": ["aa"]}))
    b.write_sums(folder)
    return folder


def test_a_bundle_opens_and_knows_what_it_has_seen(tmp_path: Path) -> None:
    opened = b.open_bundle(_write_bundle(tmp_path / "tiny"))
    assert (opened.name, len(opened.sha256)) == ("tiny", 64)
    assert [opened.has_seen(x) for x in ("aa", "bb", None)] == [True, False, None]


@pytest.mark.parametrize("name", b.REQUIRED)
def test_an_altered_byte_is_named(tmp_path: Path, name: str) -> None:
    folder = _write_bundle(tmp_path / "tiny")
    raw = bytearray((folder / name).read_bytes())
    raw[0] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(BundleError, match=rf"{name} was altered"):
        b.open_bundle(folder)


def test_what_is_missing_or_unknown_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        b.open_bundle(tmp_path / "nowhere")
    folder = _write_bundle(tmp_path / "tiny")
    (folder / "detector.onnx").unlink()
    with pytest.raises(BundleError, match=r"detector.onnx is missing"):
        b.open_bundle(folder)
    b.write_sums(folder)
    with pytest.raises(BundleError, match=r"detector.onnx is not listed"):
        b.open_bundle(folder)
    (folder / "detector.onnx").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"format": 99}))
    b.write_sums(folder)
    with pytest.raises(BundleError, match="bundle format 99 is not known"):
        b.open_bundle(folder)
    (folder / b.SUMS).unlink()
    with pytest.raises(BundleError, match="SHA256SUMS is missing"):
        b.open_bundle(folder)


@pytest.mark.parametrize("networks", [None, [], {}, {"detector": {"spec": {}}}, {"detector": 1, "segmenter": {"spec": []}}])
def test_a_config_without_networks_is_named(tmp_path: Path, networks: object) -> None:
    folder = _write_bundle(tmp_path / "tiny")
    (folder / "config.json").write_text(json.dumps({"format": 1, "networks": networks}))
    b.write_sums(folder)
    with pytest.raises(BundleError, match=r"config\.json: networks\.\w+\.spec is missing"):
        b.open_bundle(folder)


def test_sums_that_are_no_text_are_named(tmp_path: Path) -> None:
    folder = _write_bundle(tmp_path / "tiny")
    (folder / b.SUMS).write_bytes(b"\xff\xfe\n")
    with pytest.raises(BundleError, match="expected lines of"):
        b.open_bundle(folder)


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not weights")
    with pytest.raises(BundleError, match="no safetensors file"):
        b.load_weights(tmp_path / "w.safetensors")
