"""Trained weights as a bundle: a directory that says what it is, what it needs, and proves that it is unaltered.

    config.json            networks' specs with the preprocessing they need, fusion settings, operating point
    detector.onnx          the graph alone; its parameters are named by their torch state_dict keys
    detector.safetensors   the parameters, once: float16, bfloat16, or int8 with scales
    segmenter.onnx, segmenter.safetensors
    *.int8.onnx            where `mammoseg bundle quantise` made it: the graph in INT8, of the same parameters
    card.md metrics.json training.json
    SHA256SUMS             of all files above; its own hash identifies the bundle

Nothing in a bundle is ever executed or unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mammoseg.errors import BundleError
from mammoseg.io.atomic import hash_file as hash_file

FORMAT = 1
NETWORKS = ("detector", "segmenter")
REQUIRED = (
    "config.json",
    "card.md",
    "metrics.json",
    "training.json",
    *(f"{n}.{e}" for n in NETWORKS for e in ("onnx", "safetensors")),
)
SUMS = "SHA256SUMS"
WeightType = Literal["float32", "float16", "bfloat16", "int8"]
State = dict[str, NDArray[Any]]

_SCALE = ".scale"
QUANTISE_FROM = 1_000_000  # smaller tensors cost little as float16, and most of the accuracy if they are quantised
_GROUP = 32  # input channels that share a scale


@dataclass(frozen=True)
class Bundle:
    """One verified bundle on disk.

    directory: where it lies. name: the directory's name. sha256: hex digest of SHA256SUMS, which identifies the bundle.
    config, training, metrics: the parsed JSON files.
    """

    directory: Path
    name: str
    sha256: str
    config: dict[str, Any]
    training: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def card(self) -> str:
        """The text of card.md."""
        return (self.directory / "card.md").read_text(encoding="utf-8")

    def state(self, network: str) -> State:
        """The parameters of `network` ("detector" or "segmenter") by state_dict key, float32 where they are real numbers."""
        return load_weights(self.directory / f"{network}.safetensors")

    def has_seen(self, file_sha256: str | None) -> bool | None:
        """Whether an image file with this hash was trained on; None where that cannot be told."""
        known = self.training.get("image_sha256")
        return None if file_sha256 is None or not isinstance(known, list) else file_sha256 in self._seen

    @property
    def int8_networks(self) -> tuple[str, ...]:
        """The networks it holds in INT8 as well."""
        return int8_networks(self.directory)

    @property
    def _seen(self) -> frozenset[str]:
        cached: frozenset[str] | None = self.__dict__.get("_seen_cache")
        if cached is None:
            cached = frozenset(self.training.get("image_sha256", ()))
            object.__setattr__(self, "_seen_cache", cached)
        return cached


def open_bundle(directory: Path | str | None = None) -> Bundle:
    """Opens and verifies a bundle; None opens the one inside the package.

    Raises `BundleError` that names the file which is missing, altered or of an unknown format.
    """
    path = default_bundle() if directory is None else Path(directory)
    if not path.is_dir():
        raise BundleError(f"no bundle at {path}: expected a directory with config.json and network files")
    verify(path)
    config = _read_json(path / "config.json")
    training, metrics = _read_json(path / "training.json"), _read_json(path / "metrics.json")
    if config.get("format") != FORMAT:
        raise BundleError(
            f"{path / 'config.json'}: bundle format {config.get('format')!r} is not known here (expected {FORMAT}); "
            "use a bundle made for this version of mammoseg"
        )
    digest = hashlib.sha256((path / SUMS).read_bytes()).hexdigest()
    name = str(config.get("name") or path.name)
    networks = config.get("networks")
    for network in NETWORKS:
        entry = networks.get(network) if isinstance(networks, dict) else None
        if not isinstance(entry, dict) or not isinstance(entry.get("spec"), dict):
            raise BundleError(f"{path / 'config.json'}: networks.{network}.spec is missing; get the bundle again")
    return Bundle(path, name, digest, config, training, metrics)


def graph_file(directory: Path, network: str, int8: bool = False) -> Path:
    """Where a bundle holds the graph of `network`, or its graph in INT8."""
    return directory / f"{network}{'.int8' * int8}.onnx"


def int8_networks(directory: Path) -> tuple[str, ...]:
    """The networks that the bundle in `directory` holds in INT8 as well."""
    return tuple(n for n in NETWORKS if graph_file(directory, n, int8=True).is_file())


def default_bundle() -> Path:
    """The bundle that is installed with the package. Raises `BundleError` where the installation has none."""
    root = Path(str(importlib.resources.files("mammoseg"))) / "weights"
    found = sorted(p for p in root.glob("[!.]*") if (p / "config.json").is_file()) if root.is_dir() else []
    if not found:
        raise BundleError("this installation of mammoseg has no weights; name a bundle with --weights, or train one")
    if len(found) > 1:
        raise BundleError(f"several installed weights ({', '.join(p.name for p in found)}): name one with --weights")
    return found[0]


def verify(directory: Path) -> None:
    """Checks every file against SHA256SUMS. Raises `BundleError` naming the first that is missing or altered."""
    sums = directory / SUMS
    if not sums.is_file():
        raise BundleError(f"{directory}: {SUMS} is missing, so this is no complete bundle")
    listed: dict[str, str] = {}
    for line in sums.read_bytes().decode("utf-8", "backslashreplace").splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or "/" in name or "\\" in name:
            raise BundleError(f"{sums}: expected lines of '<sha256>  <file name>', got {line!r}")
        listed[name] = digest
    int8 = [graph_file(directory, network, int8=True).name for network in int8_networks(directory)]
    for name in (*REQUIRED, *int8):
        if name not in listed:
            raise BundleError(f"{sums}: {name} is not listed; the bundle is incomplete")
    for name, digest in listed.items():
        file = directory / name
        if not file.is_file():
            raise BundleError(f"{file} is missing; get the bundle again")
        if hash_file(file) != digest:
            raise BundleError(f"{file} was altered: its sha256 is not the one in {SUMS}; get the bundle again")


def write_sums(directory: Path) -> str:
    """Writes SHA256SUMS over all files of `directory`; returns its own hash, which identifies the bundle."""
    files = sorted(p for p in directory.iterdir() if p.is_file() and p.name != SUMS)
    text = "".join(f"{hash_file(p)}  {p.name}\n" for p in files)
    (directory / SUMS).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def hash_if_readable(path: Path) -> str | None:
    """As `hash_file`; None where the file is not there or cannot be read."""
    try:
        return hash_file(path)
    except OSError:
        return None


def hash_patient(dataset: str, patient_id: str) -> str:
    """How training.json names a patient without telling who it is: sha256 of "dataset:patient_id"."""
    return hashlib.sha256(f"{dataset}:{patient_id}".encode()).hexdigest()


def save_weights(
    path: Path, state: Mapping[str, NDArray[Any]], dtype: WeightType = "float16", quantise_from: int = QUANTISE_FROM
) -> None:
    """Writes parameters to a safetensors file.

    state: state_dict key to array. dtype: how tensors of two and more dimensions are stored; vectors (biases,
    normalisation) always stay float32 and integers as they are. "int8" is symmetric with scales
    `<key>.scale` (see `quantise`); tensors of fewer than `quantise_from` values are then stored as float16.
    """
    out: dict[str, tuple[str, NDArray[Any]]] = {}
    for key, array in state.items():
        value = np.asarray(array)
        if value.dtype.kind != "f":
            out[key] = (_NAMES[value.dtype], value)
            continue
        value = value.astype(np.float32)
        if value.ndim < 2 or dtype == "float32":
            out[key] = ("F32", value)
        elif dtype == "int8" and value.size >= quantise_from:
            codes, scale = quantise(value)
            out[key], out[key + _SCALE] = ("I8", codes), ("F32", scale)
        elif dtype == "bfloat16":
            out[key] = ("BF16", _to_bfloat16(value))
        else:
            out[key] = ("F16", _to_float16(value, key))
    _write_safetensors(path, out)


def load_weights(path: Path) -> State:
    """Reads what `save_weights` wrote: float32 arrays by state_dict key (integers keep their type)."""
    stored = _read_safetensors(path)
    quantised = {key for key, (name, _) in stored.items() if name == "I8" and key + _SCALE in stored}
    state: State = {}
    for key, (name, array) in stored.items():
        if key in quantised:
            scale = stored[key + _SCALE][1]
            groups = array.astype(np.float32).reshape(*scale.shape, -1)
            state[key] = (groups * scale[..., None]).reshape(array.shape)
        elif not (key.endswith(_SCALE) and key.removesuffix(_SCALE) in quantised):
            state[key] = _to_float(name, array)
    return state


def quantise(value: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 codes and scales f32[O, G]: value ~ code * scale, error <= scale / 2.

    value: f32[O, I, ...]. Each output channel has a scale for each group of 32 input channels (one where I is no multiple
    of 32). On the segmenter, a single scale per output channel cost 6% of Dice with the float32 network; groups, with
    tensors below a million values left as float16, cost 0.04%.
    """
    groups = value.shape[1] // _GROUP if value.shape[1] % _GROUP == 0 else 1
    split = value.reshape(value.shape[0], groups, -1)
    largest = np.abs(split).max(axis=2)
    scale = np.where(largest > 0, largest / 127.0, 1.0).astype(np.float32)
    codes = np.rint(split / scale[..., None]).clip(-127, 127)
    return codes.astype(np.int8).reshape(value.shape), scale


_DTYPES = {
    "F64": np.float64,
    "I64": np.int64,
    "F32": np.float32,
    "I32": np.int32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(v): k for k, v in _DTYPES.items() if k != "BF16"}


def _write_safetensors(path: Path, entries: Mapping[str, tuple[str, NDArray[Any]]]) -> None:
    """The safetensors format, by its specification: length of the header, header in JSON, values; wider types first."""
    order = sorted(entries, key=lambda k: (-entries[k][1].dtype.itemsize, k))
    header: dict[str, Any] = {"__metadata__": {"format": "mammoseg"}}
    position = 0
    for key in order:
        name, array = entries[key]
        header[key] = {"dtype": name, "shape": list(array.shape), "data_offsets": [position, position + array.nbytes]}
        position += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            file.write(entries[key][1].tobytes())


def _read_safetensors(path: Path) -> dict[str, tuple[str, NDArray[Any]]]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing; get the bundle again") from error
    try:
        end = 8 + int.from_bytes(raw[:8], "little")
        if end > len(raw):
            raise ValueError(f"header of {end} bytes in a file of {len(raw)}")
        out = {}
        for key, info in json.loads(raw[8:end]).items():
            if key == "__metadata__":
                continue
            first, last = info["data_offsets"]
            values: NDArray[Any] = np.frombuffer(raw[end + first : end + last], dtype=_DTYPES[info["dtype"]])
            out[key] = (info["dtype"], values.reshape(info["shape"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is no safetensors file that can be read here ({error}); get the bundle again") from error
    return out


def _to_float(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if name == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _to_float16(value: NDArray[np.float32], key: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        out = value.astype(np.float16)
    if not np.isfinite(out).all():
        raise BundleError(f"{key}: values beyond float16's range (largest {np.abs(value).max():.3g}); store it as bfloat16")
    return out


def _to_bfloat16(value: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = value.view(np.uint32).astype(np.uint64)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    return (rounded >> 16).astype(np.uint16)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: expected a JSON file ({error})") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path}: expected a JSON object")
    return value
