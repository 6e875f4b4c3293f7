"""The application: its parts put together, its errors, and the viewer's pages."""

from __future__ import annotations

import contextlib
import logging
import mimetypes
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from mammoseg import __version__
from mammoseg.apps.server import models, routes_images, routes_work
from mammoseg.apps.server.errors import ApiError
from mammoseg.apps.server.guard import App, Guard
from mammoseg.apps.server.service import Service
from mammoseg.apps.server.settings import ServerSettings
from mammoseg.errors import DatasetError, ImageError

API = "/api/v1"
STATIC = Path(__file__).with_name("static")
log = logging.getLogger("mammoseg.server")
# FastAPI can report to a telemetry collector where the environment names one: never here.
_NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": models.ErrorAnswer, "description": words}
    for status, words in (
        (400, "The request cannot be read"),
        (401, "The token is missing or wrong"),
        (403, "Another site asks"),
        (408, "The request did not arrive in time"),
        (413, "The request is too large"),
        (421, "The server is called by a name that is not its own"),
        (422, "A parameter is not what it should be"),
    )
}


def make_app(settings: ServerSettings) -> App:
    """The guarded ASGI application. Raises `MammosegError` where what it needs is not there."""
    service = Service(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.stop()

    app = FastAPI(
        title="mammoseg",
        version=__version__,
        description=f"Mammograms and the mass contours found in them. {routes_images.NOTICE}",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        responses=_REFUSALS,
        telemetry=_NO_TELEMETRY,
    )
    app.state.service = service
    for routes in (routes_images, routes_work):
        app.include_router(routes.router, prefix=API)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(ImageError, _image_error)
    app.add_exception_handler(DatasetError, _dataset_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    if settings.token is not None:
        _say_token(app)
    _close_api(app)
    _serve_viewer(app)
    return Guard(app, settings)


def _close_api(app: FastAPI) -> None:
    """What is asked of the service and is none of its routes: 405 with the methods of that path, or 404."""
    paths = app.openapi()["paths"]
    ours = [(compile_path(path)[0], {m.upper() for m in operations}) for path, operations in paths.items()]

    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        methods = {m for path, methods in ours if path.match(scope["path"]) for m in methods}
        if methods:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(methods))})
        raise HTTPException(404)

    app.mount(API, nothing)


def _say_token(app: FastAPI) -> None:
    """Has the OpenAPI document say that the token is asked for (`guard` does the asking)."""
    document = app.openapi()
    document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]


def _serve_viewer(app: FastAPI) -> None:
    mimetypes.add_type("text/javascript", ".js")  # whatever this machine's registry says
    if (STATIC / "index.html").is_file():
        app.mount("/", _Viewer(directory=STATIC, html=True))
        return

    @app.get("/", include_in_schema=False)
    def no_viewer() -> PlainTextResponse:
        return PlainTextResponse(
            f"This installation has no viewer; the service is at {API}/openapi.json. {routes_images.NOTICE}\n"
        )


class _Viewer(StaticFiles):
    """The viewer's files; browsers ask each time whether they changed."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "private, no-cache"
        return response


def _answer(status: int, code: str, message: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": code}}, status, headers)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(error.status, error.code, error.message)


async def _image_error(request: Request, error: Exception) -> Response:
    return _answer(409, "no_picture", str(error))


async def _dataset_error(request: Request, error: Exception) -> Response:
    return _answer(409, "bad_findings", str(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {400: "bad_request", 404: "not_found", 405: "method"}
    words = {404: "there is nothing here", 405: "this cannot be done here"}
    message = words.get(error.status_code, "the request cannot be read")
    return _answer(error.status_code, codes.get(error.status_code, "refused"), message, error.headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    known = first["loc"][:-1] if first["type"] == "extra_forbidden" else first["loc"][:4]  # what was given is not repeated
    where = ".".join(str(part) for part in known)[:100]
    return _answer(422, "invalid", f"{where}: {first['msg'][:200]}")
