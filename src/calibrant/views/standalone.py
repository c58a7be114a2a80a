"""A figure of a page as an SVG document that stands alone: title and legend inside, plain colours, on white.

Markdown and notebooks show an SVG as an image, which knows neither the page's style nor whether the reader's
background is dark.
"""

from __future__ import annotations

import re
from importlib.resources import files

from calibrant.views.drawn import Drawn
from calibrant.views.palette import INK, LIMIT, MUTED, STAGES
from calibrant.views.svg import MARKERS, Canvas

WIDTH, MARGIN, ROW = 800.0, 18.0, 24.0
FONT = "Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def standalone(figure: Drawn) -> str:
    """One SVG document: title and legend above the drawing, white below both."""
    head, top = _head(figure)
    body = _nested(str(figure.wide), MARGIN, top)
    height = top + _height(str(figure.wide)) + MARGIN
    label = re.search(r'aria-label="([^"]*)"', str(figure.wide))
    bare = ".bare text{stroke:none}" if 'class="bare"' in body else ""
    told = label.group(1).removesuffix(" The table below holds every number.") if label else ""
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 2 * MARGIN:g} {height:g}" '
        f'width="{WIDTH + 2 * MARGIN:g}" height="{height:g}" role="img" aria-label="{told}">\n'
        f"<style>svg *{{stroke-linejoin:round}}text{{font-family:{FONT}!important;paint-order:stroke;"
        f"stroke:#fff;stroke-width:3px}}{bare}</style>\n"
        f'<rect width="100%" height="100%" fill="#fff"/>\n{head}\n{body}\n</svg>\n'
    )
    return _plain(text)


def _head(figure: Drawn) -> tuple[str, float]:
    """Title and legend, and where the drawing may begin."""
    entries = [(text, STAGES[look], MARKERS[look], dashes) for text, look, dashes in figure.legend]
    if figure.spec.limited:
        entries.append(("threshold", LIMIT, "", "4 3"))
    places, x, y = [], 0.0, 50.0 if entries else 8.0
    for text, *_ in entries:
        wide = 62 + 7 * len(text)
        if x and x + wide > WIDTH:
            x, y = 0.0, y + ROW
        places.append((x, y))
        x += wide
    canvas = Canvas(WIDTH, y + ROW, "head")
    canvas.text(0, 14, figure.spec.title, INK, 17, weight="bold")
    for (text, colour, marker, dashes), (x, y) in zip(entries, places, strict=True):
        style = {"dashes": tuple(float(part) for part in dashes.split())} if dashes else {}
        canvas.line([x, x + 26], [y, y], colour, 1.6, **style)
        if marker:
            canvas.dot(x + 13, y, colour, marker, size=7.5, url="#", tip=text)
        canvas.text(x + 34, y, text, MUTED, 12.5)
    return _nested(str(canvas.svg("", "head")), MARGIN, MARGIN), MARGIN + y + ROW


def _nested(svg: str, x: float, y: float) -> str:
    """An ``<svg>`` of the page at a place in another, without its links and label."""
    view = re.search(r'viewBox="([^"]*)"', svg)
    text = re.sub(r"</?a\b[^>]*>\n?", "", svg[svg.index(">") + 1 :])
    size = f'width="{WIDTH:g}" height="{_height(svg):g}"'
    return (
        f'<svg x="{x:g}" y="{y:g}" {size} viewBox="{view.group(1) if view else ""}" overflow="visible">{text}'
    )


def _height(svg: str) -> float:
    """Height of an ``<svg>`` of the page, in its own pixels."""
    found = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)
    if found is None:
        raise ValueError("the drawing has no viewBox")
    return float(found.group(1))


def _plain(text: str) -> str:
    """The page's light palette in place of its variables, white in place of its paper."""
    template = (files("calibrant.views") / "page.html.j2").read_text(encoding="utf-8")
    light = template[template.index(":root{") : template.index("@media(prefers-color-scheme:dark)")]
    colours = dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})", light)) | {"paper": "#fff"}
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colours.get(found.group(1), found.group(0)), text)
