"""Damaged files and files that are no images: each has its own reason, none passes silently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from mammoseg.errors import DecodeError, ImageError, NotAMammogramError, NotAnImageError, UsageError
from mammoseg.io.load import is_candidate_file, load_mammogram, sniff

Make = Callable[..., Path]


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGBaseline8Bit,
        JPEGLosslessSV1,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
def test_a_dicom_cut_anywhere_never_passes_as_another_image(make_dicom: Make, syntax: Any) -> None:
    path = make_dicom(bits=8 if syntax == JPEGBaseline8Bit else 12, syntax=syntax)
    data = path.read_bytes()
    whole = load_mammogram(path).pixels
    for length in sorted({int(f * len(data)) for f in np.linspace(0, 0.999, 60)} | {len(data) - 12}):
        path.write_bytes(data[:length])
        try:
            pixels = load_mammogram(path).pixels
        except ImageError:
            continue
        assert np.array_equal(pixels, whole), f"cut to {length} of {len(data)} bytes passed as another image"
        assert length > 0.95 * len(data)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".pgm"])
def test_a_picture_cut_anywhere_fails(tmp_path: Path, suffix: str) -> None:
    image = np.tile(np.linspace(0, 255, 200), (240, 1)).astype(np.uint8)
    image = image ^ np.random.default_rng(0).integers(0, 8, image.shape, dtype=np.uint8)
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), image)
    load_mammogram(path)
    data = path.read_bytes()
    for fraction in (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.97):
        path.write_bytes(data[: int(fraction * len(data))])
        with pytest.raises(DecodeError):
            load_mammogram(path)


def test_the_folder_of_the_issue(make_dicom: Make, tmp_path: Path) -> None:
    """Each bad file has a reason of its own; what is no image is skipped."""
    good = make_dicom(name="good.dcm")
    data = good.read_bytes()
    rng = np.random.default_rng(0)
    (tmp_path / "cut.dcm").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.dcm").write_text("These are not the images you are looking for.\n" * 20)
    make_dicom(name="ct.dcm", Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "IM0002").write_bytes(b"")
    (tmp_path / "noise.dcm").write_bytes(rng.bytes(5000))
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((200, 150), np.uint8))
    cv2.imwrite(str(tmp_path / "photo.jpg"), cv2.resize(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8), (300, 400)))
    (tmp_path / "text.png").write_text("text")
    for name in ("notes.txt", "a.xml", "a.json", "a.pdf", "a.csv", ".DS_Store", "._good.dcm", "README"):
        (tmp_path / name).write_bytes(b"%PDF-1.7 <xml/> {}")
    (tmp_path / "DICOMDIR").write_bytes(data.replace(b"1.2.840.10008.5.1.4.1.1.1.2\0", b"1.2.840.10008.1.3.10\0\0\0\0\0\0\0\0"))
    outcomes: dict[str, tuple[str, str]] = {}
    for path in sorted(tmp_path.iterdir()):
        try:
            load_mammogram(path)
            outcomes[path.name] = ("processed", "")
        except DecodeError as error:
            outcomes[path.name] = ("failed", str(error))
        except NotAMammogramError as error:
            outcomes[path.name] = ("rejected", str(error))
        except NotAnImageError as error:
            outcomes[path.name] = ("skipped", str(error))
    expected = {
        "good.dcm": ("processed", ""),
        "cut.dcm": ("failed", "cut short"),
        "text.dcm": ("failed", "text"),
        "ct.dcm": ("rejected", "CT"),
        "empty.dcm": ("failed", "0 bytes"),
        "empty.png": ("failed", "0 bytes"),
        "IM0002": ("failed", "0 bytes"),
        "noise.dcm": ("failed", "other data"),
        "black.png": ("rejected", "black"),
        "photo.jpg": ("rejected", "colour"),
        "text.png": ("failed", "PNG, TIFF, JPEG or PGM"),
    }
    skipped = ["notes.txt", "a.xml", "a.json", "a.pdf", "a.csv", ".DS_Store", "._good.dcm", "README", "DICOMDIR"]
    expected |= dict.fromkeys(skipped, ("skipped", "expected"))
    assert set(outcomes) == set(expected)
    for name, (status, word) in expected.items():
        assert outcomes[name][0] == status, name
        assert word in outcomes[name][1], name
        assert is_candidate_file(tmp_path / name) == (status != "skipped"), name
    reasons = [outcomes[name][1] for name in ("cut.dcm", "text.dcm", "ct.dcm", "empty.dcm", "black.png", "photo.jpg")]
    assert len(set(reasons)) == len(reasons)
    assert not any(str(tmp_path) in reason for _, reason in outcomes.values())


def test_content_counts_more_than_the_name(make_dicom: Make, tmp_path: Path) -> None:
    assert load_mammogram(make_dicom(name="picture.txt")).size == (120, 96)
    assert load_mammogram(make_dicom(name="IM0001")).size == (120, 96)
    assert load_mammogram(make_dicom(name="wrong.png")).size == (120, 96)
    image = np.tile(np.arange(0, 200, dtype=np.uint8), (150, 1))
    (tmp_path / "x.dcm").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    assert sniff(tmp_path / "x.dcm") == "raster"
    np.testing.assert_array_equal(load_mammogram(tmp_path / "x.dcm").pixels, image.astype(np.float32) / np.float32(255))


def test_a_missing_file_or_a_folder_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.dcm", tmp_path):
        with pytest.raises(UsageError, match="expected a file"):
            load_mammogram(path)
