"""CDD-CESM's images with exactly one region: those that cross-validation tests on, and the patients that have none of them."""

from __future__ import annotations

from mammoseg.datasets import parse_spec, read_dataset
from mammoseg.errors import ConfigError
from mammoseg.types import DatasetItem


def is_test_image(item: DatasetItem) -> bool:
    """Whether an image has exactly one region by the source's count, and we find it."""
    return item.attributes.get("n_regions") == 1 and len(item.annotation.masses) >= 1


def with_all_regions(data: str) -> list[DatasetItem]:
    """The data set with every region, mass-like or not. Raises ConfigError where it is another than CDD-CESM."""
    kind, _, options = parse_spec(data)
    if kind != "cdd_cesm":
        raise ConfigError(f"{data}: only cdd_cesm tells how many regions an image has; this needs that data set")
    return read_dataset(f"{data}{'&' if options else '?'}regions=all")


def never_tested(data: str) -> set[str]:
    """Image ids of the patients none of whose images is one that cross-validation tests on."""
    every = with_all_regions(data)
    tested = {item.patient_id for item in every if is_test_image(item)}
    return {item.image_id for item in every if item.patient_id not in tested}
