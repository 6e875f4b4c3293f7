"""Datasets: one reader a file, one registry, every reader giving `list[DatasetItem]`.

A dataset is named by a *spec*, `KIND:PATH` or `KIND:PATH?option=value&option=value`, or by a bare path whose kind is
recognised: a `.json` file or a folder with `annotations.json` is COCO, a folder with `images/` and `masks/` is image_mask (or
cdd_cesm, by the columns of its index.csv), one with `AllDICOMs/` is inbreast, one with CBIS-DDSM's CSVs is cbis_ddsm.

To add a reader: write `datasets/<kind>.py` with `read(path: Path, **options: str) -> list[DatasetItem]`, add one line to
`READERS` and one to `DESCRIPTIONS`. A reader that sees more than its items tell may have `survey(path, **options)`, which gives
the items and lines on what is odd, for `datasets check`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

from mammoseg.datasets.checking import check_items
from mammoseg.errors import DatasetSpecError
from mammoseg.types import DatasetItem

Reader = Callable[..., list[DatasetItem]]

READERS = {
    "coco": "mammoseg.datasets.coco:read",
    "image_mask": "mammoseg.datasets.image_mask:read",
    "phantom": "mammoseg.datasets.phantom_files:read",
    "cdd_cesm": "mammoseg.datasets.cdd_cesm:read",
    "inbreast": "mammoseg.datasets.inbreast:read",
    "cbis_ddsm": "mammoseg.datasets.cbis_ddsm:read",
}

DESCRIPTIONS = {
    "coco": "COCO JSON with boxes and/or masks (polygons, RLE); options: category, patient_pattern",
    "image_mask": "a folder with images/ and masks/ of equal stems, optional index.csv; options: masses, patient_pattern",
    "phantom": "a folder written by `mammoseg phantom`",
    "cdd_cesm": "the low-energy images of CDD-CESM with their mass-like regions",
    "inbreast": "INbreast as released (AllDICOMs, AllXML, INbreast.csv); options: images (mass, all), rois",
    "cbis_ddsm": "CBIS-DDSM as TCIA serves it (CSVs, DICOM); options: split (train, test), abnormality (mass, calc), missing",
}


def list_kinds() -> dict[str, str]:
    """The kinds of dataset that can be read, each with one line of description."""
    return dict(DESCRIPTIONS)


def read_dataset(spec: str | Path) -> list[DatasetItem]:
    """Reads the dataset that `spec` names; see the module's docstring for its form.

    Items come in the order of the source. `image_id` is unique, relative to the dataset and the same wherever the dataset
    lies; annotations are in the native frame of each image (`xyxy`, half-open, pixel edges).
    Raises DatasetError naming the file, the record and what to do; DatasetSpecError where it is `spec` that is wrong.
    """
    kind, path, options = _located(spec)
    module, _, attribute = READERS[kind].partition(":")
    return cast(list[DatasetItem], _call(getattr(importlib.import_module(module), attribute), kind, path, options))


def inspect(spec: str | Path) -> tuple[list[DatasetItem], list[str]]:
    """The items of the dataset `spec` that can be read, and what is odd or missing: one line each, none when all is well.

    Raises DatasetError as `read_dataset` does, but not for files that a partial download lacks: those are among the lines.
    """
    kind, path, options = _located(spec)
    function = getattr(importlib.import_module(READERS[kind].partition(":")[0]), "survey", None)
    lines: list[str] = []
    if function is None:
        items = read_dataset(spec)
    else:
        items, lines = cast(tuple[list[DatasetItem], list[str]], _call(function, kind, path, options))
    return items, lines + check_items(items)


def _located(spec: str | Path) -> tuple[str, Path, dict[str, str]]:
    """As `parse_spec`; what it names must be there."""
    kind, path, options = parse_spec(spec)
    if not path.exists():
        raise DatasetSpecError(f"dataset {str(spec)!r}: no such file or folder")
    return kind, path, options


def _call(function: Callable[..., Any], kind: str, path: Path, options: dict[str, str]) -> Any:
    try:
        return function(path, **options)
    except TypeError as error:
        if options and "unexpected keyword argument" in str(error):
            raise DatasetSpecError(f"dataset kind {kind!r} does not take these options: {', '.join(options)}") from error
        raise


def parse_spec(spec: str | Path) -> tuple[str, Path, dict[str, str]]:
    """Splits a spec into (kind, path, options); recognises the kind of a bare path.

    >>> parse_spec("coco:/data/annotations.json?category=tumour")
    ('coco', PosixPath('/data/annotations.json'), {'category': 'tumour'})
    """
    text = str(spec)
    prefix, separator, rest = text.partition(":")
    named = bool(separator) and prefix in READERS
    location, _, query = (rest if named else text).partition("?")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals:
            raise DatasetSpecError(f"dataset {text!r}: expected option=value after '?', got {part!r}")
        options[unquote(key)] = unquote(value)
    path = Path(location).expanduser()
    if named:
        return prefix, path, options
    if not path.exists():
        if separator and "/" not in prefix:
            near = difflib.get_close_matches(prefix, READERS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(READERS)}"
            raise DatasetSpecError(f"dataset {text!r}: unknown kind {prefix!r}; {hint}")
        raise DatasetSpecError(f"dataset {text!r}: no such file or folder")
    return _recognise(path), path, options


def dataset_name(spec: str | Path) -> str:
    """The name of its folder, by which records of training name a dataset: the same wherever it lies and however it is named.

    >>> dataset_name("coco:/data/mine/annotations.json?category=tumour")
    'mine'
    """
    path = parse_spec(spec)[1].resolve()
    return path.parent.name if path.suffix.lower() == ".json" and not path.is_dir() else path.name


def _recognise(path: Path) -> str:
    if path.is_file() and path.suffix.lower() == ".json":
        return "coco"
    if (path / "annotations.json").is_file():
        return "coco"
    if (path / "images").is_dir() and (path / "masks").is_dir():
        return "cdd_cesm" if _is_cdd_cesm(path / "index.csv") else "image_mask"
    if any((folder / "AllDICOMs").is_dir() for folder in (path, *path.glob("*"))):
        return "inbreast"
    if any(next(path.glob(f"{deep}*_case_description_*_set.csv"), None) for deep in ("", "*/", "*/*/")):
        return "cbis_ddsm"
    raise DatasetSpecError(
        f"dataset {str(path)!r}: its kind is not recognised (no .json file, no annotations.json, no images/ and masks/, no "
        "AllDICOMs/, no case_description CSVs); "
        f"write KIND:PATH with one of {', '.join(READERS)}"
    )


def _is_cdd_cesm(index: Path) -> bool:
    """Whether the columns are CDD-CESM's, whose masks show other findings too and must not all be taken for masses."""
    try:
        with index.open(encoding="utf-8-sig", errors="replace") as stream:
            head = stream.readline(4096).strip().split(",")
    except OSError:
        return False
    return {"file", "patient_id", "findings", "tags", "n_regions"} <= set(head)


def check(dataset: str | Path | list[DatasetItem]) -> list[str]:
    """What is odd or missing in a dataset (a spec, or items already read): one line each, empty when all is well."""
    return check_items(dataset) if isinstance(dataset, list) else inspect(dataset)[1]
