"""One phantom, written in every lossless way DICOM has for it, gives equal findings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from mammoseg.datasets.phantom import PhantomConfig, make_exam
from mammoseg.io.findings_json import findings_to_json
from mammoseg.pipeline import Pipeline, load

TOP, BITS = 4095, 12


@pytest.fixture(scope="module")
def view() -> Any:
    return make_exam(11, PhantomConfig(size=(208, 160), normal_fraction=0.0))[2]


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle)


def voi_elements(voi: str, inverted: bool) -> dict[str, Any]:
    """The same picture from MONOCHROME1 and 2: windows and tables turned over with the values."""
    if voi == "none":
        return {}
    if voi == "lut":
        table = np.rint(TOP * (np.arange(TOP + 1) / TOP) ** 0.8).astype(int)
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [TOP + 1, 0, BITS])
        item.add_new("LUTData", "US", ((TOP - table)[::-1] if inverted else table).tolist())
        return {"VOILUTSequence": Sequence([item])}
    center = 1700.0
    if inverted:
        center = TOP - center + (1.0 if voi == "linear" else 0.0)
    return {"WindowCenter": center, "WindowWidth": 2400.0, "VOILUTFunction": voi.upper()}


@pytest.mark.parametrize("voi", ["none", "linear", "linear_exact", "sigmoid", "lut"])
def test_lossless_syntaxes_give_equal_findings(
    make_dicom: Callable[..., Path], lossless_syntaxes: list[Any], view: Any, pipeline: Pipeline, voi: str
) -> None:
    values = view.pixels.astype(np.int64)
    found: list[tuple[str, list[Any], list[Any]]] = []
    for inverted in (False, True):
        for signed in (False, True):
            offset = 2 ** (BITS - 1) if signed else 0
            stored = (TOP - values if inverted else values) - offset
            elements = voi_elements(voi, inverted) | {"RescaleSlope": 1.0, "RescaleIntercept": float(offset)}
            elements |= {"PhotometricInterpretation": "MONOCHROME1" if inverted else "MONOCHROME2"}
            elements |= {"ImagerPixelSpacing": [0.9, 0.9]}
            for syntax in lossless_syntaxes:
                path = make_dicom(stored, BITS, signed, syntax, **elements)
                document = findings_to_json(pipeline.analyze_file(path))
                assert document["status"] == "processed", document["reason"]
                name = f"{syntax.name}, {'MONOCHROME1' if inverted else 'MONOCHROME2'}, {'signed' if signed else 'unsigned'}"
                found.append((name, document["lesions"], document["candidates"]))
    assert len(found) == 32
    assert found[0][1], "the phantom must give lesions, or equality proves nothing"
    assert found[0][2]
    for name, lesions, candidates in found[1:]:
        assert lesions == found[0][1], name
        assert candidates == found[0][2], name
