"""Stored values for the viewer: decoded once, kept while there is room, at full size and halved."""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mammoseg.apps.server.aside import Aside
from mammoseg.apps.server.catalogue import stamp_of
from mammoseg.io.stored import StoredImage, read_stored

MAX_LEVEL = 8
_CHUNK = 1 << 20
_DECODE_S = 60.0
Key = tuple[Path, tuple[int, int], int]


@dataclass(frozen=True, eq=False)
class Plane:
    """values: u16 or i16 [H, W], little-endian, C order. window: (center, width) in modality values."""

    values: NDArray[Any]
    window: tuple[float, float]
    photometric_interpretation: str


def halved(values: NDArray[Any]) -> NDArray[Any]:
    """Half as many rows and columns (rounded up): each value the rounded mean of 2 x 2, at an odd edge of what is there.

    >>> halved(np.array([[1, 3, 8], [5, 7, 10]], dtype=np.uint16)).tolist()
    [[4, 9]]
    """
    height, width = values.shape
    even = cv2.copyMakeBorder(values, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE) if height % 2 or width % 2 else values
    out: NDArray[Any] = cv2.resize(even, (even.shape[1] // 2, even.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return out


class PixelCache:
    """Planes by file, its state and level; the least recently used go when `room` bytes are exceeded.

    aside: decodes what needs a decoding library.
    """

    def __init__(self, room: int, aside: Aside) -> None:
        self._room, self._used, self._aside = room, 0, aside
        self._planes: OrderedDict[Key, Plane] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding = threading.BoundedSemaphore(2)  # each takes the file, the raw values and their copies

    def plane(self, path: Path, level: int, plain: bool) -> Plane:
        """The image at `path`, halved `level` times. Raises `ImageError` where it cannot be shown.

        plain: whether its values lie in the file unpacked.
        """
        stamp = stamp_of(path)
        key = path, stamp, level
        known = self._get(key)
        if known is not None:
            return known
        with self._decoding:
            known = self._get(key)
            if known is not None:
                return known
            above = self._get((path, stamp, 0))
            if above is None:
                above = _plane_of(read_stored(path) if plain else self._aside.call(_DECODE_S, read_stored, path))
                self._put((path, stamp, 0), above)
            values = above.values
            for _ in range(level):
                values = halved(values)
            plane = Plane(values, above.window, above.photometric_interpretation)
            if level:
                self._put(key, plane)
            return plane

    def _get(self, key: Key) -> Plane | None:
        with self._lock:
            plane = self._planes.get(key)
            if plane is not None:
                self._planes.move_to_end(key)
            return plane

    def _put(self, key: Key, plane: Plane) -> None:
        with self._lock:
            self._planes[key] = plane
            self._used += plane.values.nbytes
            while self._used > self._room and len(self._planes) > 1:
                _, gone = self._planes.popitem(last=False)
                self._used -= gone.values.nbytes


def _plane_of(image: StoredImage) -> Plane:
    kind = "<i2" if image.values.dtype == np.int16 else "<u2"
    return Plane(
        np.ascontiguousarray(image.values, dtype=kind),
        image.window,
        "MONOCHROME1" if image.grayscale.inverted else "MONOCHROME2",
    )


class PlaneResponse(Response):
    """A plane as bytes, sent in pieces. Only so many are on their way at a time (`gate`), so that memory stays bounded."""

    def __init__(
        self, load: Callable[[], Plane], gate: asyncio.Semaphore, etag: str, squeeze: bool = False, stall_s: float = 60.0
    ) -> None:
        super().__init__(media_type="application/octet-stream")
        self._load, self._gate, self._etag, self._squeeze, self._stall_s = load, gate, etag, squeeze, stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._gate:
            plane = await run_in_threadpool(self._load)
            values = plane.values
            headers = {
                "Content-Type": "application/octet-stream",
                "X-Height": str(values.shape[0]),
                "X-Width": str(values.shape[1]),
                "X-Signed": "1" if values.dtype.kind == "i" else "0",
                "X-Window-Center": f"{plane.window[0]:.6g}",
                "X-Window-Width": f"{plane.window[1]:.6g}",
                "X-Photometric-Interpretation": plane.photometric_interpretation,
                "ETag": self._etag,
                "Vary": "Accept-Encoding",
            }
            headers |= {"Content-Encoding": "gzip"} if self._squeeze else {"Content-Length": str(values.nbytes)}
            raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            data = values.view(np.uint8).reshape(-1).data
            packer = zlib.compressobj(1, zlib.DEFLATED, 31) if self._squeeze else None
            for start in range(0, len(data), _CHUNK):
                piece = bytes(data[start : start + _CHUNK])
                if packer is not None:
                    piece = await run_in_threadpool(packer.compress, piece)
                await asyncio.wait_for(send({"type": "http.response.body", "body": piece, "more_body": True}), self._stall_s)
            rest = packer.flush() if packer is not None else b""
            await send({"type": "http.response.body", "body": rest, "more_body": False})
