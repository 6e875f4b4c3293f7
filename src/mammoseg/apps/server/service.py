"""What the routes work with: one object that holds the server's parts and their lives."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Depends, Request

from mammoseg.apps.server.catalogue import Catalogue
from mammoseg.apps.server.pixels import PixelCache
from mammoseg.apps.server.settings import ServerSettings
from mammoseg.apps.server.store import Store
from mammoseg.bundle import Bundle, open_bundle
from mammoseg.errors import BundleError

_PLANES_AT_A_TIME = 6  # on their way to clients


class Service:
    """The parts of a running server. Raises `MammosegError` where what it needs is not there."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.bundle = _bundle(settings)
        self.store = Store(settings.state)
        self.catalogue = Catalogue(settings, self.store)
        self.pixels = PixelCache(settings.limits.pixels)
        self.gate = asyncio.Semaphore(_PLANES_AT_A_TIME)

    def start(self) -> None:
        """Begins to work."""

    def stop(self) -> None:
        """Ends all work and lets go of the state folder."""
        self.store.close()


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
