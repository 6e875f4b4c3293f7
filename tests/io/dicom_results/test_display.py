"""A presentation state shows the picture that was analysed: a renderer of our own, by PS3.4 N.2, gives the same grey values."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from mammoseg.io.dicom_results import image_result, read_source
from mammoseg.io.load import load_mammogram
from mammoseg.types import Findings

SIZE = (97, 71)


def lut_item(first: int, values: np.ndarray, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(values), first, bits])
    item.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    return item


def through_lut(item: Dataset, x: np.ndarray) -> np.ndarray:
    entries, first, _ = (int(v) for v in item.LUTDescriptor)
    values = np.frombuffer(item.LUTData, "<u2").astype(np.float64)
    assert len(values) == (entries or 65536)
    return values[(np.floor(x + 0.5) - first).clip(0, len(values) - 1).astype(int)]


def render(state: Dataset, image: Dataset) -> np.ndarray:
    """The image under the presentation state: modality, VOI, presentation LUT; of the image nothing but stored values."""
    x = image.pixel_array.astype(np.float64)
    if "ModalityLUTSequence" in state:
        x = through_lut(state.ModalityLUTSequence[0], x)
    else:
        x = x * float(state.RescaleSlope) + float(state.RescaleIntercept)
    (voi,) = state.SoftcopyVOILUTSequence
    if "VOILUTSequence" in voi:
        y = through_lut(voi.VOILUTSequence[0], x) / (2.0 ** voi.VOILUTSequence[0].LUTDescriptor[2] - 1)
    else:
        center, width = float(voi.WindowCenter), float(voi.WindowWidth)
        if voi.get("VOILUTFunction", "LINEAR") == "SIGMOID":
            y = 1 / (1 + np.exp(-4 * (x - center) / width))
        else:
            y = ((x - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1)
    return 1 - y if state.PresentationLUTShape == "INVERSE" else y


def elements(voi: str) -> dict[str, Any]:
    table = np.rint(1023 * (np.arange(4096) / 4095) ** 0.6)
    return {
        "none": {"WindowCenter": None, "WindowWidth": None},
        "useless window": {"WindowCenter": "100000", "WindowWidth": "10"},
        "linear": {"WindowCenter": "1500", "WindowWidth": "2200", "VOILUTFunction": "LINEAR"},
        "two windows": {"WindowCenter": ["1800", "2000"], "WindowWidth": ["3000", "100"]},
        "linear exact": {"WindowCenter": "1500.25", "WindowWidth": "2200.5", "VOILUTFunction": "LINEAR_EXACT"},
        "sigmoid": {"WindowCenter": "1500", "WindowWidth": "2200", "VOILUTFunction": "SIGMOID"},
        "lut": {"VOILUTSequence": Sequence([lut_item(0, table, 10)])},
        "lut below its bits": {"VOILUTSequence": Sequence([lut_item(0, table, 16)])},
        "rescale": {"RescaleSlope": "0.25", "RescaleIntercept": "-100", "WindowCenter": "300", "WindowWidth": "700"},
        "rescale, none": {"RescaleSlope": "0.25", "RescaleIntercept": "-100", "WindowCenter": None, "WindowWidth": None},
        "rescale, lut": {
            "RescaleIntercept": "-1000",
            "VOILUTSequence": Sequence([lut_item(-1000, np.rint(4095 * (np.arange(4096) / 4095) ** 1.4), 12)]),
        },
        "modality lut": {
            "ModalityLUTSequence": Sequence([lut_item(0, np.rint(60000 * (np.arange(4096) / 4095) ** 0.8), 16)]),
            "WindowCenter": None,
            "WindowWidth": None,
        },
        "modality lut, window": {
            "ModalityLUTSequence": Sequence([lut_item(0, np.rint(60000 * (np.arange(4096) / 4095) ** 0.8), 16)]),
            "WindowCenter": "30000",
            "WindowWidth": "50000",
        },
    }[voi]


VOIS = [
    "none", "useless window", "linear", "two windows", "linear exact", "sigmoid", "lut", "lut below its bits", "rescale",
    "rescale, none", "rescale, lut", "modality lut", "modality lut, window",
]  # fmt: skip


@pytest.mark.parametrize("inverted", [False, True], ids=["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("voi", VOIS)
def test_the_state_shows_what_was_analysed(
    write_source: Callable[..., Path], find: Callable[..., Findings], tmp_path: Path, voi: str, inverted: bool
) -> None:
    path = write_source(tmp_path / "a.dcm", 2, SIZE, inverted=inverted, **elements(voi))
    mammogram, source = load_mammogram(path), read_source(path)
    assert source is not None
    assert mammogram.pixels.std() > 0.05
    state = pydicom.dcmread(BytesIO(image_result("pr", source, find(path, SIZE, 1, 1), mammogram)))
    assert np.abs(render(state, pydicom.dcmread(path)) - mammogram.pixels).max() < 1e-4
    area = state.DisplayedAreaSelectionSequence[0]
    assert (list(area.DisplayedAreaTopLeftHandCorner), list(area.DisplayedAreaBottomRightHandCorner)) == ([1, 1], [71, 97])


def test_padding_counts_for_no_window(write_source: Callable[..., Path], find: Callable[..., Findings], tmp_path: Path) -> None:
    more = elements("none") | {"PixelPaddingValue": 0, "BitsStored": 16, "HighBit": 15}
    path = write_source(tmp_path / "a.dcm", 2, SIZE, **more)
    source, mammogram = read_source(path), load_mammogram(path)
    assert source is not None
    state = pydicom.dcmread(BytesIO(image_result("pr", source, find(path, SIZE, 0, 1), mammogram)))
    image = pydicom.dcmread(path)
    shown = image.pixel_array > 0
    assert np.abs(render(state, image) - mammogram.pixels)[shown].max() < 1e-4
    assert float(state.SoftcopyVOILUTSequence[0].WindowWidth) == 4096
