"""What the paper reports (Yan et al. 2020, Tables 1 to 5), as printed, and which spread its ± is."""

from __future__ import annotations

import math
from collections.abc import Sequence

AP = (78.64, 70.24, 76.11, 79.05, 73.28)
AP_PRINTED = "75.46 ± 1.7"

TPR_AT_FPI: dict[float, tuple[tuple[float, float], ...]] = {
    0.0: ((0.91, 1.58), (0.97, 1.39), (0.89, 1.30), (0.91, 1.55), (1.0, 0.87)),
    0.5: ((0.97, 0.18), (0.94, 0.27), (0.91, 0.18), (0.92, 0.36), (0.97, 0.12)),
    0.6: ((0.94, 0.12), (0.94, 0.24), (0.91, 0.18), (0.92, 0.30), (0.97, 0.06)),
    0.7: ((0.94, 0.09), (0.89, 0.27), (0.91, 0.15), (0.89, 0.18), (0.97, 0.06)),
}

OTHERS: tuple[tuple[str, str, str, str], ...] = (
    ("Sapate et al. [13]", "0.88@1.51", "DDSM", "148"),
    ("Ribli et al. [43]", "0.90@0.3", "INbreast", "107"),
    ("Dhungel et al. [33]", "0.95@5", "INbreast", "410"),
    ("Agarwal et al. [28]", "0.92@0.5", "INbreast", "410"),
)
"""Table 3: method, TPR@FPavg, data set, images; the caption gives the order of the references."""
OURS_IN_TABLE_3 = "0.94@0.22"

CROP_DICE: dict[str, tuple[tuple[float, ...], str]] = {
    "unet": ((90.47, 89.76, 88.16, 87.97, 89.66), "89.20 ± 0.5"),
    "cgan": ((90.30, 90.53, 89.70, 89.33, 90.22), "90.02 ± 0.2"),
    "cascade": ((89.20, 90.40, 88.83, 89.18, 89.82), "89.49 ± 0.3"),
    "unetpp": ((90.94, 91.42, 90.56, 90.23, 91.13), "90.86 ± 0.2"),
}

WHOLE_DICE: dict[tuple[str, str], tuple[tuple[float, ...], str]] = {
    ("unet", "one-stage"): ((43.66, 44.12, 45.93, 40.79, 47.36), "44.37 ± 1.1"),
    ("unet", "two-stage-single"): ((70.59, 68.46, 70.56, 74.66, 66.06), "70.07 ± 2.8"),
    ("unet", "two-stage-msf"): ((77.40, 83.07, 75.45, 77.80, 82.47), "79.24 ± 1.5"),
    ("cgan", "one-stage"): ((25.27, 30.91, 24.74, 23.21, 40.45), "28.92 ± 3.2"),
    ("cgan", "two-stage-single"): ((70.28, 66.93, 70.22, 74.93, 63.73), "69.22 ± 3.7"),
    ("cgan", "two-stage-msf"): ((75.66, 81.66, 76.70, 77.44, 83.45), "78.98 ± 1.5"),
    ("cascade", "one-stage"): ((64.37, 61.56, 65.63, 65.35, 70.55), "65.49 ± 1.5"),
    ("cascade", "two-stage-single"): ((70.89, 67.78, 70.01, 73.35, 65.02), "69.81 ± 3.4"),
    ("cascade", "two-stage-msf"): ((75.76, 82.51, 76.78, 77.69, 83.16), "79.18 ± 1.5"),
    ("unetpp", "one-stage"): ((53.38, 49.38, 47.44, 48.85, 61.80), "52.17 ± 2.6"),
    ("unetpp", "two-stage-single"): ((72.18, 68.55, 72.27, 76.10, 65.69), "70.96 ± 3.6"),
    ("unetpp", "two-stage-msf"): ((77.51, 84.38, 77.39, 78.80, 84.12), "80.44 ± 1.6"),
}

TITLES = {
    "unet": "U-Net [8]",
    "cgan": "cGAN [7]",
    "cascade": "cascaded U-Net [9]",
    "unetpp": "v19U-Net++ [23]",
    "ellipse": "ellipse in the true box (baseline)",
}
SETUPS = {"one-stage": "one-stage", "two-stage-single": "two-stage w/o MSF", "two-stage-msf": "two-stage with MSF"}


def title(name: str) -> str:
    """The network's name as the paper prints it; its own for another."""
    return TITLES.get(name, name)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Sample standard deviation, population standard deviation, and the standard error of either, of values.

    >>> {k: round(v, 2) for k, v in spread([43.66, 44.12, 45.93, 40.79, 47.36]).items()}
    {'sd': 2.49, 'population sd': 2.23, 'se': 1.11, 'population se': 1.0}
    """
    n = len(values)
    mean = sum(values) / n
    square = sum((v - mean) ** 2 for v in values)
    sd, population = math.sqrt(square / (n - 1)), math.sqrt(square / n)
    return {"sd": sd, "population sd": population, "se": sd / math.sqrt(n), "population se": population / math.sqrt(n)}


def which_spread(values: Sequence[float], printed: str) -> list[str]:
    """What the ± of `printed` can be: the spreads of `values` that round to it, or nearly (0.06) where none does.

    >>> which_spread((43.66, 44.12, 45.93, 40.79, 47.36), "44.37 ± 1.1"), which_spread(*WHOLE_DICE["unet", "two-stage-single"])
    (['se'], ['population sd'])
    """
    said = float(printed.split("±")[1])
    found = spread(values)
    exact = [name for name, value in found.items() if abs(round(value, 1) - said) < 1e-9]
    return exact or [name for name, value in found.items() if abs(value - said) <= 0.06]
