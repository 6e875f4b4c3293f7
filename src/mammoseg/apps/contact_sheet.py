"""index.html: all images of a run at a glance. One file, no script from elsewhere, opens offline."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mammoseg.io.atomic import write_atomic

_STYLE = """
:root { color-scheme: dark; --line: #2b3138; --ink: #e8eaed; --soft: #9aa4af; --card: #181c21; --hit: #f2c230; }
* { box-sizing: border-box; }
body { margin: 0; background: #0f1215; color: var(--ink); font: 15px/1.45 system-ui, "Segoe UI", Roboto, sans-serif; }
header { position: sticky; top: 0; background: #0f1215f2; padding: 14px 24px;
  border-bottom: 1px solid var(--line); z-index: 1; }
h1 { font-size: 18px; margin: 0 0 4px; } header p { margin: 0; color: var(--soft); }
.notice { color: #ffb4a8; } nav { margin-top: 8px; display: flex; flex-wrap: wrap; gap: 6px; }
nav label { border: 1px solid var(--line); border-radius: 999px; padding: 2px 12px; cursor: pointer; color: var(--soft); }
input[type=radio] { position: absolute; opacity: 0; }
input[type=radio]:checked + span { color: var(--ink); font-weight: 600; }
input[type=radio]:focus-visible + span { outline: 2px solid var(--hit); outline-offset: 4px; border-radius: 4px; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 14px; padding: 18px 24px 40px; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
article.lesions { border-color: #6d5a1c; } article.rejected, article.failed { border-color: #7c3a33; }
.picture { display: flex; align-items: center; justify-content: center; height: 340px; background: #000; }
.picture img { max-width: 100%; max-height: 340px; } .picture p { color: var(--soft); padding: 20px; text-align: center; }
.text { padding: 10px 12px 12px; } h2 { font-size: 14px; margin: 0 0 2px; overflow-wrap: anywhere; }
.meta { color: var(--soft); font-size: 13px; margin: 0 0 6px; }
.badge { display: inline-block; border-radius: 4px; padding: 0 7px; font-size: 13px; font-weight: 600; }
.b-lesions { background: var(--hit); color: #201a00; } .b-none { background: #29313a; color: #cdd6df; }
.b-rejected { background: #8a4b14; color: #fff; } .b-failed { background: #a32a22; color: #fff; }
table { width: 100%; border-collapse: collapse; margin-top: 8px; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 2px 4px; border-top: 1px solid var(--line); font-weight: 400; }
th { color: var(--soft); } th:first-child, td:first-child { text-align: left; }
a { color: inherit; } footer { color: var(--soft); padding: 0 24px 24px; font-size: 13px; overflow-wrap: anywhere; }
body:has(#f-lesions:checked) article:not(.lesions), body:has(#f-none:checked) article:not(.none),
body:has(#f-bad:checked) article:not(.rejected):not(.failed) { display: none; }
"""


def write_contact_sheet(out: Path, folders: Sequence[str], findings: Iterable[dict[str, Any]]) -> None:
    """Writes OUT/index.html from the findings (as in JSON) of all images; pictures are the overlays beside them."""
    cards: list[str] = []
    kinds: Counter[str] = Counter()
    provenance: dict[str, Any] = {}
    for folder, found in zip(folders, findings, strict=True):
        kind = _kind(found)
        kinds[kind] += 1
        provenance = found["provenance"]
        cards.append(_card(out, folder, found, kind))
    bad = kinds["rejected"] + kinds["failed"]
    filters = [
        ("f-all", f"all {len(cards)}", True),
        ("f-lesions", f"with masses {kinds['lesions']}", False),
        ("f-none", f"processed, nothing found {kinds['none']}", False),
        ("f-bad", f"not processed {bad}", False),
    ]
    nav = "".join(
        f'<label><input type="radio" name="f" id="{i}"{" checked" if on else ""}><span>{html.escape(text)}</span></label>'
        for i, text, on in filters
    )
    bundle = provenance.get("bundle", {})
    version = provenance.get("package", {}).get("version", "")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Mass contours: {len(cards)} images</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<header>\n"
        f"<h1>Mass contours in {len(cards)} image{'s' if len(cards) != 1 else ''}</h1>\n"
        '<p class="notice">Research software. Not a medical device, not for clinical use.</p>\n'
        f"<nav>{nav}</nav>\n</header>\n<main>\n{''.join(cards)}</main>\n"
        f"<footer>mammoseg {html.escape(str(version))} · weights {html.escape(str(bundle.get('name', '')))} "
        f"{html.escape(str(bundle.get('sha256', ''))[:12])} · red: contour, yellow: detection box · "
        '<a href="findings.csv">findings.csv</a> · <a href="findings.jsonl">findings.jsonl</a> · '
        '<a href="run.json">run.json</a></footer>\n</body>\n</html>\n'
    )
    write_atomic(out / "index.html", page.encode())


def _kind(found: dict[str, Any]) -> str:
    if found["status"] != "processed":
        return str(found["status"])
    return "lesions" if found["lesions"] else "none"


def _card(out: Path, folder: str, found: dict[str, Any], kind: str) -> str:
    image = found["image"]
    link = quote(folder)
    number = len(found["lesions"])
    badge = {
        "lesions": f"{number} mass{'es' if number != 1 else ''}",
        "none": "processed, nothing found",
        "rejected": "rejected, not analysed",
        "failed": "failed, not analysed",
    }[kind]
    if (out / folder / "overlay.png").is_file():
        picture = (
            f'<a class="picture" href="{link}/overlay.png">'
            f'<img loading="lazy" src="{link}/overlay.png" alt="{html.escape(image["source"])}"></a>'
        )
    else:
        picture = f'<div class="picture"><p>{html.escape(found["reason"] or "no picture was asked for")}</p></div>'
    facts = [f"{image['width']} × {image['height']}" if image["width"] else "", image["laterality"], image["view_position"]]
    if image.get("seen_in_training"):
        facts.append("used to train these weights")
    meta = " · ".join(html.escape(str(f)) for f in facts if f)
    return (
        f'<article class="{kind}">\n{picture}\n<div class="text">\n<h2>{html.escape(image["source"])}</h2>\n'
        f'<p class="meta">{meta}</p>\n<span class="badge b-{kind}">{badge}</span>\n{_table(found["lesions"])}'
        f'<p class="meta"><a href="{link}/findings.json">findings.json</a></p>\n</div>\n</article>\n'
    )


def _table(lesions: Sequence[dict[str, Any]]) -> str:
    if not lesions:
        return ""
    rows = "".join(
        f"<tr><td>{lesion['id']}</td><td>{lesion['score']:.2f}</td><td>{_size(lesion)}</td></tr>" for lesion in lesions
    )
    return f"<table><tr><th>mass</th><th>score</th><th>size</th></tr>{rows}</table>\n"


def _size(lesion: dict[str, Any]) -> str:
    if lesion["long_axis_mm"] is None:
        return f"{lesion['area_px']} px"
    return f"{lesion['long_axis_mm']:.1f} × {lesion['short_axis_mm']:.1f} mm"
