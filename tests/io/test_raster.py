"""PNG, TIFF, JPEG and PGM: exact values at full depth, grey or refused, the right way up."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from mammoseg.datasets.headers import image_size
from mammoseg.errors import DecodeError, NotAMammogramError, UsageError
from mammoseg.io.load import load_array, load_mammogram, sniff


def ramp(top: int, size: tuple[int, int] = (90, 110)) -> np.ndarray:
    """Every value from 0 to `top` about evenly, shuffled by a fixed seed, as uint16."""
    values = np.linspace(0, top, size[0] * size[1]).round()
    return np.random.default_rng(1).permutation(values).reshape(size).astype(np.uint16)


EIGHT, SIXTEEN = ramp(255).astype(np.uint8), ramp(65535)


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
@pytest.mark.parametrize(("image", "top"), [(EIGHT, 255), (SIXTEEN, 65535)], ids=["8 bit", "16 bit"])
def test_every_value_survives(tmp_path: Path, suffix: str, image: np.ndarray, top: int) -> None:
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), image)
    pixels = load_mammogram(path).pixels
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(np.rint(pixels.astype(np.float64) * top), image)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"bigtiff": False, "byteorder": ">"}, {"tile": (32, 32)}])
@pytest.mark.parametrize(("image", "top"), [(EIGHT, 255), (SIXTEEN, 65535)], ids=["8 bit", "16 bit"])
def test_tiff_kinds(tmp_path: Path, options: dict[str, object], image: np.ndarray, top: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, photometric="minisblack", **options)
    np.testing.assert_array_equal(np.rint(load_mammogram(path).pixels.astype(np.float64) * top), image)


@pytest.mark.parametrize(("image", "top"), [(EIGHT, 255), (SIXTEEN, 65535)], ids=["8 bit", "16 bit"])
def test_tiff_white_is_zero_is_turned_over(tmp_path: Path, image: np.ndarray, top: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, photometric="miniswhite")
    np.testing.assert_array_equal(np.rint(load_mammogram(path).pixels.astype(np.float64) * top), top - image.astype(np.int64))


def test_tiff_pages_and_bigtiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([EIGHT, EIGHT]), photometric="minisblack")
    with pytest.raises(NotAMammogramError, match="several pages"):
        load_mammogram(tmp_path / "pages.tif")
    tifffile.imwrite(tmp_path / "big.tif", EIGHT, bigtiff=True)
    with pytest.raises(DecodeError, match="BigTIFF"):
        load_mammogram(tmp_path / "big.tif")
    tifffile.imwrite(tmp_path / "float.tif", EIGHT.astype(np.float32))
    with pytest.raises(DecodeError, match="float32"):
        load_mammogram(tmp_path / "float.tif")


def test_twelve_bits_in_sixteen_keep_their_grey_values(tmp_path: Path) -> None:
    image = ramp(4095)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image)
    np.testing.assert_allclose(load_mammogram(path).pixels, image / 4095, atol=1e-7)
    image[0, :2] = 65535  # two dead pixels change nothing for the others
    cv2.imwrite(str(path), image)
    np.testing.assert_allclose(load_mammogram(path).pixels[1:], image[1:] / 4095, atol=1e-7)


def test_equal_channels_and_alpha_and_palette_are_grey(tmp_path: Path) -> None:
    expected = EIGHT.astype(np.float32) / np.float32(255)
    cv2.imwrite(str(tmp_path / "rgb.png"), cv2.merge([EIGHT] * 3))
    cv2.imwrite(str(tmp_path / "rgba.png"), cv2.merge([EIGHT] * 3 + [np.full_like(EIGHT, 255)]))
    Image.fromarray(EIGHT).convert("LA").save(tmp_path / "la.png")
    palette = Image.fromarray(EIGHT).convert("P")
    palette.putpalette([v for v in range(256) for _ in range(3)])
    palette.putdata(EIGHT.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(load_mammogram(path).pixels, expected, err_msg=path.name)
    cv2.imwrite(str(tmp_path / "rgb16.png"), cv2.merge([SIXTEEN] * 3))
    got = load_mammogram(tmp_path / "rgb16.png").pixels
    np.testing.assert_array_equal(np.rint(got.astype(np.float64) * 65535), SIXTEEN)


def test_alpha_is_opacity_over_black(tmp_path: Path) -> None:
    alpha = np.full_like(EIGHT, 255)
    alpha[:, 60:] = 0
    cv2.imwrite(str(tmp_path / "a.png"), cv2.merge([EIGHT] * 3 + [alpha]))
    pixels = load_mammogram(tmp_path / "a.png").pixels
    assert (pixels[:, 60:] == 0).all()
    np.testing.assert_array_equal(pixels[:, :60], EIGHT[:, :60].astype(np.float32) / np.float32(255))


def test_grey_jpeg_and_colour_jpeg(tmp_path: Path) -> None:
    smooth = cv2.resize(EIGHT, (220, 180), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "grey.jpg"), smooth)
    cv2.imwrite(str(tmp_path / "rgb.jpg"), cv2.merge([smooth] * 3))
    for name in ("grey.jpg", "rgb.jpg"):
        assert np.abs(load_mammogram(tmp_path / name).pixels - smooth / 255).mean() < 0.03
    colour = cv2.merge([smooth, smooth[::-1], 255 - smooth])
    for suffix in (".jpg", ".png", ".tif"):
        cv2.imwrite(str(tmp_path / f"colour{suffix}"), colour)
        with pytest.raises(NotAMammogramError, match="colour"):
            load_mammogram(tmp_path / f"colour{suffix}")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_an_orientation_tag_turns_nothing(tmp_path: Path, orientation: int, suffix: str) -> None:
    y, x = np.mgrid[:90, :110]
    image = np.clip(x + 60 * (y < 30) + 80 * ((x < 30) & (y > 50)), 0, 255).astype(np.uint8)
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    if suffix == ".tif":
        tifffile.imwrite(path, image, photometric="minisblack", extratags=[(274, "H", 1, orientation, True)])
    else:
        Image.fromarray(image).save(path, exif=exif, quality=95)
    np.testing.assert_allclose(load_mammogram(path).pixels, image / 255, atol=0.06 if suffix == ".jpg" else 1e-6)
    assert image_size(path) == image.shape


@pytest.mark.timeout(20)
@pytest.mark.parametrize("head", [b"P5" + b" " * 10_000 + b"x", b"P5" + b"#a\n" * 5_000 + b"x", b"P5" + b"#" * 100_000])
def test_a_hostile_pgm_header_ends_at_once(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "a.pgm").write_bytes(head)
    with pytest.raises(DecodeError, match="PGM"):
        load_mammogram(tmp_path / "a.pgm")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".pgm"])
def test_what_is_rejected_still_has_its_size(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), np.zeros((90, 110), np.uint8))
    with pytest.raises(NotAMammogramError, match="blank") as caught:
        load_mammogram(path)
    assert caught.value.size == (90, 110) == image_size(path)


def test_a_file_without_extension_that_cannot_be_opened_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert [sniff(Path(n)) for n in ("IM0001", "a.dcm", "a.png", "a.txt")] == ["dicom", "dicom", "raster", "other"]


def test_pgm_maxval_and_text(tmp_path: Path) -> None:
    image = ramp(1000)
    body = image.astype(">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5\n# a comment\n110 90\n1000\n" + body)
    np.testing.assert_allclose(load_mammogram(tmp_path / "a.pgm").pixels, image / 1000, atol=1e-7)
    (tmp_path / "b.pgm").write_bytes(b"P2\n110 90\n1000\n" + " ".join(map(str, image.ravel())).encode())
    np.testing.assert_allclose(load_mammogram(tmp_path / "b.pgm").pixels, image / 1000, atol=1e-7)
    (tmp_path / "c.pgm").write_bytes(b"P5\n110 90\n500\n" + body)
    with pytest.raises(DecodeError, match="PGM"):
        load_mammogram(tmp_path / "c.pgm")
    (tmp_path / "d.pgm").write_bytes(b"P5\n60000 60000\n255\n")
    with pytest.raises(DecodeError, match="200 megapixels"):
        load_mammogram(tmp_path / "d.pgm")


def test_png_that_lies_about_its_size_or_is_altered(tmp_path: Path) -> None:
    data = cv2.imencode(".png", EIGHT)[1].tobytes()
    path = tmp_path / "a.png"
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    path.write_bytes(png_chunks((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")))
    with pytest.raises(DecodeError, match="200 megapixels"):
        load_mammogram(path)
    altered = bytearray(data)
    altered[len(data) // 2] ^= 0x10
    path.write_bytes(altered)
    with pytest.raises(DecodeError, match="damaged"):
        load_mammogram(path)


def test_one_bit_and_blank_and_small(tmp_path: Path) -> None:
    Image.fromarray(EIGHT > 128).save(tmp_path / "bit.png")
    Image.fromarray(EIGHT > 128).save(tmp_path / "bit.tif")
    for name in ("bit.png", "bit.tif"):
        with pytest.raises(NotAMammogramError, match="only 2 grey values"):
            load_mammogram(tmp_path / name)
    cv2.imwrite(str(tmp_path / "white.png"), np.full((100, 100), 255, np.uint8))
    with pytest.raises(NotAMammogramError, match="white"):
        load_mammogram(tmp_path / "white.png")
    cv2.imwrite(str(tmp_path / "small.png"), EIGHT[:30])
    with pytest.raises(NotAMammogramError, match="too small"):
        load_mammogram(tmp_path / "small.png")


def test_arrays() -> None:
    np.testing.assert_array_equal(load_array(EIGHT).pixels, EIGHT.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(np.rint(load_array(SIXTEEN).pixels.astype(np.float64) * 65535), SIXTEEN)
    unit = (EIGHT / 255).astype(np.float64)
    m = load_array(unit, spacing_mm=(0.1, 0.2), laterality="L", view_position="CC", source="mine")
    np.testing.assert_allclose(m.pixels, unit, atol=1e-7)
    assert (m.spacing_mm, m.spacing_source, m.laterality, m.view_position, m.source) == ((0.1, 0.2), "given", "L", "CC", "mine")
    assert m.file_sha256 is None
    for wrong in (unit * 300, unit - 0.5, np.full((90, 110), np.nan), EIGHT.astype(np.int32), EIGHT.ravel(), EIGHT > 3):
        with pytest.raises(UsageError):
            load_array(wrong)
    with pytest.raises(NotAMammogramError, match="blank"):
        load_array(np.zeros((100, 100), np.uint8))
    with pytest.raises(NotAMammogramError, match="colour"):
        load_array(np.stack([unit, unit, 1 - unit], axis=-1))
