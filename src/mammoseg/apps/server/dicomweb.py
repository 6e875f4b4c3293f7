"""A client of DICOMweb servers (PS3.18: QIDO-RS, WADO-RS). It asks the servers that were named, and nobody else.

No redirect is followed and no proxy of the environment used, so that an answer cannot lead elsewhere. What servers answer is
bounded, and nothing of it goes into messages or logs. A server that asks for credentials gets the value of
MAMMOSEG_DICOMWEB_AUTHORIZATION as Authorization header.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from mammoseg.apps.server import models
from mammoseg.apps.server.errors import ApiError
from mammoseg.apps.server.parts import PartsToFiles
from mammoseg.apps.server.settings import AUTHORIZATION, MIB
from mammoseg.apps.server.uploads import Uploads

UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_TIMEOUT_S = 30.0
_JSON_MAX = 16 * MIB
_PIECE = 1 << 16
_NO_IMAGES = frozenset({"SR", "PR", "KO", "SEG", "DOC", "RTSTRUCT", "RTPLAN", "REG", "AU", "ECG"})
# Attributes by tag, as DICOM JSON (PS3.18 Annex F) names them.
_PATIENT_NAME, _PATIENT_ID, _DATE, _DESCRIPTION = "00100010", "00100020", "00080020", "00081030"
_MODALITIES, _MODALITY, _COUNT = "00080061", "00080060", "00201208"
_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"


class DicomWeb:
    """The servers at `urls`; what is fetched goes through `uploads`."""

    def __init__(self, urls: tuple[str, ...], uploads: Uploads) -> None:
        self._urls, self._uploads = urls, uploads

    def server(self, url: str | None) -> str:
        """One of the named servers, the first by default. Raises `ApiError` 403 for any other, 404 where none is named."""
        if not self._urls:
            raise ApiError(404, "no_dicomweb", "no DICOMweb server was named when this server was started (--dicomweb URL)")
        if url is None:
            return self._urls[0]
        if url.rstrip("/") not in self._urls:
            raise ApiError(403, "not_allowed", "that server was not named when this one was started (--dicomweb URL)")
        return url.rstrip("/")

    def search(self, query: models.StudyQuery) -> list[models.FoundStudy]:
        """Studies that match (QIDO-RS)."""
        asked = {
            "PatientID": query.patient_id,
            "PatientName": query.patient_name,
            "AccessionNumber": query.accession_number,
            "StudyDate": query.study_date,
        }
        values = {k: v for k, v in asked.items() if v} | {"limit": str(query.limit), "offset": str(query.offset)}
        fields = [("includefield", f) for f in (_DESCRIPTION, _MODALITIES, _COUNT)]
        answer = _ask_json(self.server(query.server), "/studies", [*values.items(), *fields])
        return [study for item in answer if (study := _study(item)) is not None]

    def fetch(self, request: dict[str, Any], stop: threading.Event) -> list[str]:
        """The ids of the images of a study, fetched (WADO-RS) and kept. Raises `ApiError`."""
        base = self.server(request["server"])
        study = str(request["study_instance_uid"])
        images: list[str] = []
        with self._uploads.desk() as (folder, room):
            for number, path in enumerate(_instances(base, study, stop)):
                place = folder / f"{number}"
                place.mkdir()
                with _asked(base, path, [], 'multipart/related; type="application/dicom"; transfer-syntax=*') as answer:
                    parts = PartsToFiles(answer.headers.get("Content-Type", ""), place, room, named=False)
                    try:
                        while piece := answer.read(_PIECE):
                            if stop.is_set():
                                return images
                            parts.write(piece)
                        _check_whole(answer)
                        received = parts.finish()
                    finally:
                        parts.close()
                images += self._uploads.admit(received, place, room)[0]
        return list(dict.fromkeys(images))


def _instances(base: str, study: str, stop: threading.Event) -> Iterator[str]:
    """The paths of a study's instances that may be images."""
    root = f"/studies/{quote(study)}"
    for series in _ask_json(base, f"{root}/series", [("includefield", _MODALITY)]):
        uid = _uid(series, _SERIES)
        if stop.is_set() or uid is None or _text(series, _MODALITY) in _NO_IMAGES:
            continue
        for instance in _ask_json(base, f"{root}/series/{uid}/instances", []):
            if (name := _uid(instance, _INSTANCE)) is not None and not stop.is_set():
                yield f"{root}/series/{uid}/instances/{name}"


def _ask_json(base: str, path: str, query: list[tuple[str, str]]) -> list[Mapping[str, Any]]:
    """The objects of a DICOM JSON answer."""
    with _asked(base, path, query, "application/dicom+json") as answer:
        if answer.status == 204:
            return []
        data = answer.read(_JSON_MAX + 1)
        _check_whole(answer, len(data) > _JSON_MAX)
    try:
        found = json.loads(data) if len(data) <= _JSON_MAX else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ApiError(502, "dicomweb", "the DICOMweb server's answer is not what the standard says, or too long")
    return found


@contextmanager
def _asked(base: str, path: str, query: list[tuple[str, str]], accept: str) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET request. Raises `ApiError` 502 where there is none with status 2xx, 504 where it does not come."""
    parts = urlsplit(base)
    assert parts.hostname is not None
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=_TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)
    headers = {"Accept": accept, "User-Agent": "mammoseg"}
    if secret := os.environ.get(AUTHORIZATION):
        headers["Authorization"] = secret
    try:
        connection.request("GET", parts.path + path + (f"?{urlencode(query, safe='*')}" if query else ""), headers=headers)
        answer = connection.getresponse()
        if answer.status // 100 != 2:
            raise ApiError(502, "dicomweb", f"the DICOMweb server answered with status {answer.status}")
        yield answer
    except TimeoutError as error:
        raise ApiError(504, "dicomweb", f"the DICOMweb server did not answer within {_TIMEOUT_S:.0f} s") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ApiError(502, "dicomweb", f"the DICOMweb server cannot be asked ({type(error).__name__})") from error
    finally:
        connection.close()


def _check_whole(answer: http.client.HTTPResponse, left: bool = False) -> None:
    """Raises `ApiError` 502 where less came than was announced. left: more may be there that was not read."""
    if answer.length and not left:
        raise ApiError(502, "dicomweb", "the DICOMweb server's answer was cut short")


def _values(item: Mapping[str, Any], tag: str) -> list[Any]:
    element = item.get(tag)
    found = element.get("Value") if isinstance(element, dict) else None
    return found if isinstance(found, list) else []


def _text(item: Mapping[str, Any], tag: str) -> str:
    first = next(iter(_values(item, tag)), "")
    if isinstance(first, dict):  # a person's name by its representations
        first = first.get("Alphabetic") or first.get("Ideographic") or ""
    return str(first)[:200]


def _uid(item: Mapping[str, Any], tag: str) -> str | None:
    found = _text(item, tag)
    return found if len(found) <= 64 and UID.fullmatch(found) else None


def _study(item: Mapping[str, Any]) -> models.FoundStudy | None:
    uid = _uid(item, _STUDY)
    if uid is None:
        return None
    count = _text(item, _COUNT)
    return models.FoundStudy(
        study_instance_uid=uid,
        patient_name=_text(item, _PATIENT_NAME),
        patient_id=_text(item, _PATIENT_ID),
        study_date=_text(item, _DATE),
        description=_text(item, _DESCRIPTION),
        modalities=[str(m)[:16] for m in _values(item, _MODALITIES)[:20]],
        n_instances=int(count) if count.isascii() and count.isdigit() and len(count) < 9 else None,
    )
