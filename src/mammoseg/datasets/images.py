"""The image of a dataset's item."""

from __future__ import annotations

from pathlib import Path

from mammoseg.errors import DatasetError, ImageError
from mammoseg.io.load import load_mammogram
from mammoseg.types import DatasetItem, Mammogram


def load_item(item: DatasetItem) -> Mammogram:
    """The mammogram of `item`, under its image id. Raises DatasetError naming the file."""
    return load_image(Path(item.path), item.image_id)


def load_image(path: Path, source: str | None = None) -> Mammogram:
    """As `load_mammogram`; what it raises becomes a DatasetError that names the file, for work on many images at a time."""
    try:
        return load_mammogram(path, source)
    except ImageError as error:
        raise DatasetError(f"{path}: {error}") from error
