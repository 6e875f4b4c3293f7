"""DICOM's greyscale pipeline as arithmetic: stored value → modality → VOI → [0, 1], bright = dense.

Order as in PS3.4 N.2: Modality LUT or rescale (PS3.3 C.11.1), then VOI LUT or window (C.11.2), then MONOCHROME1 is turned
over (C.7.6.3.1.2). Stored values have at most 16 bits, so the whole chain is one table of float64, looked up per pixel: 16 bit
stay 16 bit. Nothing here knows of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mammoseg.types import FloatImage

VoiFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
FULL_RANGE_QUANTILE = 0.9995
_BLOCK_PIXELS = 1 << 16
_WORTHLESS = 0.005  # a VOI transform that leaves less than this share of pixels off the ends shows nothing
Table = NDArray[np.float64]
Stored = NDArray[np.integer]


@dataclass(frozen=True)
class Window:
    """One VOI window (PS3.3 C.11.2.1.2): centre and width in modality units, and the function between."""

    center: float
    width: float
    function: VoiFunction = "LINEAR"

    def __post_init__(self) -> None:
        least = 1.0 if self.function == "LINEAR" else 0.0
        valid = np.isfinite(self.center) and np.isfinite(self.width)
        if not valid or self.width < least or self.width <= 0:
            raise ValueError(f"Window: expected a width of at least {least:g} for {self.function}, got {self.width:g}")

    def apply(self, x: Table) -> Table:
        """Modality values f64 to [0, 1].

        >>> Window(50, 100).apply(np.array([-1.0, 0.0, 49.5, 99.0, 200.0])).tolist()
        [0.0, 0.0, 0.5, 1.0, 1.0]
        """
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):
                return 1.0 / (1.0 + np.exp(-4.0 * (x - self.center) / self.width))
        if self.function == "LINEAR_EXACT":
            return np.clip((x - self.center) / self.width + 0.5, 0.0, 1.0)
        if self.width == 1.0:
            return (x > self.center - 0.5).astype(np.float64)
        return np.clip((x - (self.center - 0.5)) / (self.width - 1.0) + 0.5, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Lut:
    """A Modality or VOI look-up table (PS3.3 C.11.1.1.1). values: as stored. first: the input that maps to values[0]."""

    values: Table
    first: int
    bits: int

    def apply(self, x: Table) -> Table:
        """Maps f64 inputs; those below `first` get the first entry, those beyond the end the last one."""
        index = np.floor(x + 0.5) - self.first
        return self.values[index.clip(0, len(self.values) - 1).astype(np.int64)]

    @property
    def top(self) -> float:
        """The table's full-scale value: 2^bits - 1, or a smaller power of two where the entries stay far below it.

        Some devices declare 16 bits for entries of 12; taken at their word the image would be black.
        """
        declared = 2.0**self.bits - 1
        highest = float(self.values.max())
        if highest > declared or highest < declared / 4:
            return 2.0 ** max(1, int(highest).bit_length()) - 1
        return declared


@dataclass(frozen=True, eq=False)
class Grayscale:
    """What a DICOM file says about its grey values.

    slope, intercept: rescale, unless modality_lut is given. voi: LUT or window, or None for the full range.
    inverted: MONOCHROME1. bits_stored, signed: of the stored values.
    """

    bits_stored: int
    signed: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    modality_lut: Lut | None = None
    voi: Window | Lut | None = None
    inverted: bool = False

    def modality(self, stored: Table) -> Table:
        """Stored values f64 to modality values f64."""
        if self.modality_lut is not None:
            return self.modality_lut.apply(stored)
        return stored * self.slope + self.intercept

    def presentation(self, stored: Table, full_range: tuple[float, float], voi: Window | Lut | None) -> Table:
        """Stored values f64 to [0, 1], bright = dense. full_range: (lowest, highest) stored value, used without a VOI."""
        x = self.modality(stored)
        if isinstance(voi, Window):
            y = voi.apply(x)
        elif isinstance(voi, Lut):
            y = np.clip(voi.apply(x) / voi.top, 0.0, 1.0)
        elif self.modality_lut is not None:
            y = np.clip(x / self.modality_lut.top, 0.0, 1.0)
        else:
            low, high = sorted(float(v) for v in self.modality(np.array(full_range, dtype=np.float64)))
            y = np.clip((x - low) / (high - low), 0.0, 1.0)
        return 1.0 - y if self.inverted else y


def full_range(counts: NDArray[np.int64], lowest: int, bits: int, signed: bool) -> tuple[float, float]:
    """The range of stored values shown where a file names no window.

    Up to 8 bits that of `bits`, as for any 8-bit picture. Above, the smallest power-of-two range that holds all but 1 in
    2000 values at each end, at most that of `bits`: 12-bit data in a 16-bit file keep the grey values they had in 12 bits;
    a few dead pixels at full scale change nothing; and unlike with the data's own minimum and maximum the exposure still shows.
    counts: how often each stored value from `lowest` on occurs. signed values that are never negative are treated as
    unsigned.
    """
    cumulative = np.cumsum(counts)
    total = int(cumulative[-1]) if len(counts) else 0
    if total == 0:
        return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    low = lowest + int(np.searchsorted(cumulative, (1 - FULL_RANGE_QUANTILE) * total, side="right"))
    high = lowest + int(np.searchsorted(cumulative, FULL_RANGE_QUANTILE * total))
    high = min(high, lowest + len(counts) - 1)
    if bits <= 8:
        return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    if low >= 0:
        used = min(bits - int(signed), max(1, high.bit_length()))
        return 0.0, 2.0**used - 1
    used = min(bits, 1 + max((-low - 1).bit_length(), max(high, 0).bit_length(), 1))
    return -(2.0 ** (used - 1)), 2.0 ** (used - 1) - 1


def render(stored: Stored, grayscale: Grayscale, padding: NDArray[np.bool_] | None = None) -> FloatImage:
    """Stored values [H, W] (at most 16 bit) to f32[H, W] in [0, 1], bright = dense.

    padding: bool[H, W], pixels that are no image (Pixel Padding Value): they become 0 and count for no range.
    A window or VOI LUT that leaves (nearly) no pixel between black and white is useless; the full range is shown then.
    """
    lowest, table = table_of(stored, grayscale, padding)
    single = table.astype(np.float32)
    pixels: FloatImage = np.empty(stored.shape, dtype=np.float32)
    for rows in _blocks(stored.shape):
        np.take(single, stored[rows].astype(np.intp) - lowest, out=pixels[rows], mode="clip")
    if padding is not None:
        pixels[padding] = 0.0
    return pixels


def table_of(stored: Stored, grayscale: Grayscale, padding: NDArray[np.bool_] | None = None) -> tuple[int, Table]:
    """How `render` shows these stored values: the lowest of them, and f64 in [0, 1] for each value from it to the highest."""
    lowest, highest = int(stored.min()), int(stored.max())
    counts = np.zeros(highest - lowest + 1, dtype=np.int64)
    for rows in _blocks(stored.shape):
        counted = stored[rows].ravel() if padding is None else stored[rows][~padding[rows]]
        counts += np.bincount(counted.astype(np.intp) - lowest, minlength=len(counts))
    values = np.arange(lowest, highest + 1, dtype=np.float64)
    shown = full_range(counts, lowest, grayscale.bits_stored, grayscale.signed)
    table = grayscale.presentation(values, shown, grayscale.voi)
    if grayscale.voi is not None and not _useful(table, counts):
        table = grayscale.presentation(values, shown, None)
    return lowest, table


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows of an image a few at a time, so that what is computed on the way stays in the processor's cache."""
    step = max(1, _BLOCK_PIXELS // max(1, shape[1]))
    for row in range(0, shape[0], step):
        yield slice(row, row + step)


def _useful(table: Table, counts: NDArray[np.int64]) -> bool:
    """Whether a table spreads the values that occur: some pixels lie off both ends, or both ends are used."""
    total = max(1, int(counts.sum()))
    black = int(counts[table <= 0.002].sum()) / total
    white = int(counts[table >= 0.998].sum()) / total
    return 1.0 - black - white > _WORTHLESS or min(black, white) > _WORTHLESS
