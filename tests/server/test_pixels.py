"""What the service gives for pixels are the values that are stored in the file, whatever file it is."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from skimage import io as skimage_io

from mammoseg.apps.server.app import make_app
from mammoseg.apps.server.settings import ServerSettings
from mammoseg.io.load import load_mammogram

from .conftest import Running, breast, launch, mammogram_dicom, save

CASES: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
for _bits, _photometric, _signed in itertools.product((8, 12, 16), ("MONOCHROME1", "MONOCHROME2"), (False, True)):
    _name = f"plain_{_bits}_{_photometric}_{'signed' if _signed else 'unsigned'}.dcm"
    CASES[_name] = breast(_bits, _signed), {"bits": _bits, "signed": _signed, "PhotometricInterpretation": _photometric}
for _syntax, _word in ((RLELossless, "rle"), (JPEG2000Lossless, "j2k"), (JPEGLSLossless, "jls")):
    for _bits, _photometric in ((8, "MONOCHROME2"), (12, "MONOCHROME1"), (16, "MONOCHROME2")):
        _given = {"bits": _bits, "PhotometricInterpretation": _photometric, "syntax": _syntax}
        CASES[f"{_word}_{_bits}_{_photometric}.dcm"] = breast(_bits), _given


def _write(folder: Path) -> None:
    for name, (values, given) in CASES.items():
        options = dict(given)
        syntax = options.pop("syntax", None)
        ds = mammogram_dicom(values, options.pop("bits"), options.pop("signed", False), **options)
        if syntax is not None:
            ds.compress(syntax)
        save(ds, folder / name)
    cv2.imwrite(str(folder / "grey8.png"), breast(8).astype(np.uint8))
    cv2.imwrite(str(folder / "grey16.png"), breast(16).astype(np.uint16))
    cv2.imwrite(str(folder / "colour_grey8.png"), np.repeat(breast(8).astype(np.uint8)[..., None], 3, axis=2))
    skimage_io.imsave(folder / "grey16.tif", breast(16).astype(np.uint16), check_contrast=False)
    import tifffile

    tifffile.imwrite(folder / "white_is_zero.tif", breast(16).astype(np.uint16), photometric="miniswhite")
    twelve = breast(12).astype(">u2")
    (folder / "twelve.pgm").write_bytes(b"P5 %d %d 4095\n" % twelve.shape[::-1] + twelve.tobytes())
    cv2.imwrite(str(folder / "lossy.jpg"), breast(8).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])
    (folder / "damaged.dcm").write_bytes((folder / "plain_12_MONOCHROME2_unsigned.dcm").read_bytes()[:5000])
    (folder / "notes.txt").write_text("no image")


EXPECTED = {name: values for name, (values, _) in CASES.items()} | {
    "grey8.png": breast(8),
    "grey16.png": breast(16),
    "colour_grey8.png": breast(8),
    "grey16.tif": breast(16),
    "white_is_zero.tif": breast(16),
    "twelve.pgm": breast(12),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of all kinds."""
    out = tmp_path_factory.mktemp("kinds")
    _write(out)
    return out


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server over them."""
    running = launch(tmp_path_factory.mktemp("server"), folder)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def images(server: Running) -> dict[str, dict[str, Any]]:
    """What it says of each, by name."""
    return {i["name"]: i for i in server.client().get("/images").json()}


def values_of(answer: httpx.Response) -> np.ndarray:
    """The values in an answer."""
    assert answer.status_code == 200, answer.text
    kind = "<i2" if answer.headers["x-signed"] == "1" else "<u2"
    return np.frombuffer(answer.content, kind).reshape(int(answer.headers["x-height"]), int(answer.headers["x-width"]))


def test_every_image_is_listed_and_nothing_else(images: dict[str, dict[str, Any]]) -> None:
    assert set(images) == set(EXPECTED) | {"lossy.jpg", "damaged.dcm"}


@pytest.mark.parametrize("name", EXPECTED)
def test_stored_values_are_equal(server: Running, images: dict[str, dict[str, Any]], name: str) -> None:
    got = values_of(server.client().get(f"/images/{images[name]['image_id']}/pixels"))
    np.testing.assert_array_equal(got, EXPECTED[name])


@pytest.mark.parametrize("name", CASES)
def test_the_header_is_told(images: dict[str, dict[str, Any]], name: str) -> None:
    values, given = CASES[name]
    image = images[name]
    assert (image["height"], image["width"]) == values.shape
    assert (image["bits_stored"], image["signed"]) == (given["bits"], given.get("signed", False))
    assert image["photometric_interpretation"] == given["PhotometricInterpretation"]


def test_jpeg_gives_what_another_decoder_gives(server: Running, images: dict[str, dict[str, Any]], folder: Path) -> None:
    got = values_of(server.client().get(f"/images/{images['lossy.jpg']['image_id']}/pixels"))
    assert np.abs(got.astype(int) - skimage_io.imread(folder / "lossy.jpg").astype(int)).max() <= 1  # decoders may round


def test_a_file_that_cannot_be_shown_says_why(server: Running, images: dict[str, dict[str, Any]]) -> None:
    answer = server.client().get(f"/images/{images['damaged.dcm']['image_id']}/pixels")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "no_picture"
    assert "cut short" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["plain_12_MONOCHROME2_unsigned.dcm", "plain_16_MONOCHROME1_signed.dcm", "grey8.png"])
def test_levels_are_means_of_two_by_two(server: Running, images: dict[str, dict[str, Any]], name: str) -> None:
    expected = EXPECTED[name].astype(np.int64)
    for level in (1, 2, 3):
        rows, columns = expected.shape
        even = np.pad(expected, ((0, rows % 2), (0, columns % 2)), mode="edge")
        mean = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).mean(axis=(1, 3))
        got = values_of(server.client().get(f"/images/{images[name]['image_id']}/pixels", params={"level": level}))
        assert got.shape == mean.shape
        assert np.abs(got - mean).max() <= 0.5
        expected = got.astype(np.int64)


@pytest.mark.parametrize("level", ["-1", "9", "x", ""])
def test_levels_that_are_none_are_refused(server: Running, images: dict[str, dict[str, Any]], level: str) -> None:
    answer = server.client().get(f"/images/{images['grey8.png']['image_id']}/pixels", params={"level": level})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid")


def test_what_did_not_change_is_not_sent_again(server: Running, images: dict[str, dict[str, Any]], folder: Path) -> None:
    client, place = server.client(), f"/images/{images['grey8.png']['image_id']}/pixels"
    tag = client.get(place).headers["etag"]
    again = client.get(place, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    changed = breast(8)[::-1].astype(np.uint8)
    cv2.imwrite(str(folder / "grey8.png"), changed)
    try:
        np.testing.assert_array_equal(values_of(client.get(place, headers={"If-None-Match": tag})), changed)
    finally:
        cv2.imwrite(str(folder / "grey8.png"), breast(8).astype(np.uint8))


def _window_line(x: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, LINEAR, to [0, 1]."""
    return np.clip((x - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _shown(answer: httpx.Response) -> np.ndarray:
    grey = _window_line(
        values_of(answer).astype(np.float64), float(answer.headers["x-window-center"]), float(answer.headers["x-window-width"])
    )
    return 1 - grey if answer.headers["x-photometric-interpretation"] == "MONOCHROME1" else grey


@pytest.mark.parametrize("name", [n for n in EXPECTED if "colour" not in n])
def test_the_window_shows_what_the_pipeline_sees(
    server: Running, images: dict[str, dict[str, Any]], folder: Path, name: str
) -> None:
    got = _shown(server.client().get(f"/images/{images[name]['image_id']}/pixels"))
    np.testing.assert_allclose(got, load_mammogram(folder / name).pixels, atol=1e-4)


def _voi_lut(entries: np.ndarray) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), 0, 16]
    item.LUTData = entries.astype(np.uint16).tobytes()
    return item


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Callable[..., httpx.Response]]:
    """Asks an application in this process, as a client elsewhere on the network would."""

    def get(path: str, **headers: str) -> httpx.Response:
        app = make_app(ServerSettings(folders=(tmp_path / "images",), state=tmp_path / "state", token="0123456789abcdef"))
        transport = httpx.ASGITransport(app=app, client=("192.0.2.7", 4000))

        async def go() -> httpx.Response:
            given = {"Authorization": "Bearer 0123456789abcdef", **headers}
            async with httpx.AsyncClient(transport=transport, base_url="http://192.0.2.1", headers=given) as client:
                image = (await client.get("/api/v1/images")).json()[0]
                return await client.get(path.format(image["image_id"]))

        try:
            return asyncio.run(go())
        finally:
            app._app.state.service.stop()  # type: ignore[attr-defined]

    return get


def test_far_clients_get_it_packed(tmp_path: Path, ask: Callable[..., httpx.Response]) -> None:
    save(mammogram_dicom(breast(12), 12), tmp_path / "images" / "a.dcm")
    packed = ask("/api/v1/images/{}/pixels", **{"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    np.testing.assert_array_equal(values_of(packed), breast(12))
    plain = ask("/api/v1/images/{}/pixels", **{"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    np.testing.assert_array_equal(values_of(plain), breast(12))


WINDOWS: dict[str, dict[str, Any]] = {
    "window": {"WindowCenter": 1500, "WindowWidth": 900},
    "rescaled": {"WindowCenter": 700, "WindowWidth": 800, "RescaleSlope": 0.5, "RescaleIntercept": -100},
    "useless window": {"WindowCenter": 60000, "WindowWidth": 10},
}


@pytest.mark.parametrize("case", WINDOWS)
def test_windows_of_the_file(tmp_path: Path, ask: Callable[..., httpx.Response], case: str) -> None:
    path = save(mammogram_dicom(breast(12), 12, **WINDOWS[case]), tmp_path / "images" / "a.dcm")
    answer = ask("/api/v1/images/{}/pixels")
    slope, intercept = WINDOWS[case].get("RescaleSlope", 1), WINDOWS[case].get("RescaleIntercept", 0)
    x = values_of(answer) * slope + intercept
    got = _window_line(x, float(answer.headers["x-window-center"]), float(answer.headers["x-window-width"]))
    np.testing.assert_allclose(got, load_mammogram(path).pixels, atol=1e-4)


def test_a_look_up_table_is_approached_by_a_window(tmp_path: Path, ask: Callable[..., httpx.Response]) -> None:
    x = np.arange(4096)
    curve = 65535 / (1 + np.exp(-(x - 1800) / 250))
    ds = mammogram_dicom(breast(12), 12, VOILUTSequence=Sequence([_voi_lut(curve)]))
    path = save(ds, tmp_path / "images" / "a.dcm")
    got, seen = _shown(ask("/api/v1/images/{}/pixels")), load_mammogram(path).pixels
    assert np.corrcoef(got.ravel(), seen.ravel())[0, 1] > 0.98
    assert np.abs(got - seen).max() < 0.25
