"""What the routes work with: one object that holds the server's parts and their lives."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated

from fastapi import Depends, Request

from mammoseg.apps.server.aside import Aside
from mammoseg.apps.server.catalogue import Catalogue
from mammoseg.apps.server.describe import Describer
from mammoseg.apps.server.dicomweb import DicomWeb
from mammoseg.apps.server.jobs import Jobs
from mammoseg.apps.server.layers import Layers
from mammoseg.apps.server.pixels import PixelCache
from mammoseg.apps.server.results import Results
from mammoseg.apps.server.settings import ServerSettings
from mammoseg.apps.server.store import Store
from mammoseg.apps.server.truth import Truths
from mammoseg.apps.server.uploads import Uploads
from mammoseg.bundle import Bundle, open_bundle
from mammoseg.errors import BundleError

_PLANES_AT_A_TIME = 6  # on their way to clients
_UPLOADS_AT_A_TIME = 4
_REST_EVERY_S = 30.0


class Service:
    """The parts of a running server. Raises `MammosegError` where what it needs is not there."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.bundle = _bundle(settings)
        self.truths = Truths(settings.truth)
        self.store = Store(settings.state)
        self.catalogue = Catalogue(settings, self.store)
        self._decoder, self._networks = Aside(idle_s=float("inf")), Aside()
        self.pixels = PixelCache(settings.limits.pixels, self._decoder)
        self.results = Results(self.store, self.catalogue, self._decoder)
        self.layers = Layers(self.store, self.bundle, self._networks)
        self.uploads = Uploads(self.store, settings.limits)
        self.dicomweb = DicomWeb(settings.dicomweb, self.uploads)
        self.jobs = Jobs(settings, self.store, self.catalogue, self.bundle, self.dicomweb)
        self.describer = Describer(self.catalogue, self.results, self.truths, self.bundle is not None)
        self.planes_gate = asyncio.Semaphore(_PLANES_AT_A_TIME)
        self.uploads_gate = asyncio.Semaphore(_UPLOADS_AT_A_TIME)
        self.layers_gate, self.results_gate, self.search_gate = (asyncio.Semaphore(n) for n in (1, 2, 4))
        self._ended = threading.Event()

    def start(self) -> None:
        """Begins to work."""
        self.jobs.start()
        threading.Thread(target=self._look_after, name="look after", daemon=True).start()

    def stop(self) -> None:
        """Ends all work and lets go of the state folder."""
        self._ended.set()
        self._decoder.close()
        self._networks.close()
        self.jobs.stop()
        self.store.close()

    def _look_after(self) -> None:
        self._decoder.warm()
        while not self._ended.wait(_REST_EVERY_S):
            self._networks.rest()


def _bundle(settings: ServerSettings) -> Bundle | None:
    """The weights; without any, findings can be looked at but not made."""
    try:
        return open_bundle(settings.bundle)
    except BundleError:
        if settings.bundle is not None:
            raise
        return None


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Here = Annotated[Service, Depends(_service)]
