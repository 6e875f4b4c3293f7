"""What an image's file name says: side and view, and which images belong together."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_SIDES = {"L": "L", "LEFT": "L", "R": "R", "RIGHT": "R"}
_VIEWS = ("CC", "MLO", "ML", "LM", "LMO", "XCCL", "XCCM")
_WORD = re.compile(r"[^_\-.\s]+")


def name_says(name: str) -> tuple[str | None, str | None, str]:
    """Side, view, and the name without them: equal for the images of one examination that are named alike.

    >>> name_says("set/P_00001_LEFT_CC.png")
    ('L', 'CC', 'set/P_00001')
    >>> name_says("phantom_s2_0001_RMLO.dcm"), name_says("IM0001")
    (('R', 'MLO', 'phantom_s2_0001'), (None, None, 'IM0001'))
    """
    path = PurePosixPath(name)
    stem = path.stem if path.suffix and not path.suffix[1:].isdecimal() else path.name
    sides, views, rest = [], [], []
    for word in _WORD.findall(stem):
        capitals = word.upper()
        if capitals in _SIDES:
            sides.append(_SIDES[capitals])
        elif capitals in _VIEWS:
            views.append(capitals)
        elif capitals[:1] in "LR" and capitals[1:] in ("CC", "MLO", "ML", "LM"):
            sides.append(capitals[0])
            views.append(capitals[1:])
        else:
            rest.append(word)
    if len(views) != 1 or len(sides) > 1:
        return None, None, str(path.with_name(stem))
    return (sides[0] if sides else None), views[0], str(path.with_name("_".join(rest) or stem))
