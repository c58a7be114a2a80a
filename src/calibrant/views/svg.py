"""A canvas of pixels that matplotlib writes as clean inline SVG.

Colours are drawn as tokens and become CSS variables, so one figure serves light and dark pages; text
stays text, in the page's font. The output is deterministic and holds no date, URL or foreign style.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from calibrant.views.palette import HAIR, HEAT, INK, LIMIT, MUTED, PAPER, STAGES

MARKERS = ("o", "s", "D", "^", "v")
_VARIABLES = (
    {INK: "ink", MUTED: "muted", HAIR: "hair", PAPER: "paper", LIMIT: "limit"}
    | {colour: f"s{index}" for index, colour in enumerate(STAGES)}
    | {colour: f"h{index}" for index, colour in enumerate(HEAT)}
)
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "calibrant",
    "font.family": "DejaVu Sans",
}
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """``text`` with the characters that XML and UTF-8 cannot hold shown as U+FFFD."""
    return _CONTROL.sub("\ufffd", text)


class Canvas:
    """``width`` x ``height`` pixels, origin top left, y downwards; ``key`` is unique on the page."""

    def __init__(self, width: float, height: float, key: str) -> None:
        self._key = key
        self._tips: list[str] = []
        self._figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        self._axes.set_axis_off()
        self._figure.patch.set_visible(False)

    def line(
        self, xs: Sequence[float], ys: Sequence[float], colour: str, width: float = 1.0, **style: Any
    ) -> None:
        """A polyline; ``style`` is matplotlib's (alpha, dashes, solid_capstyle)."""
        self._axes.add_line(Line2D(xs, ys, color=colour, linewidth=width, clip_on=False, **style))

    def band(
        self, xs: Sequence[float], upper: Sequence[float], lower: Sequence[float], colour: str,
        alpha: float = 0.16,
    ) -> None:  # fmt: skip
        """A tinted band between two curves."""
        self._axes.fill_between(xs, upper, lower, color=colour, alpha=alpha, linewidth=0, clip_on=False)

    def dot(self, x: float, y: float, colour: str, marker: str, *, size: float, url: str, tip: str) -> None:
        """A mark that links to ``url`` and says ``tip`` when pointed at."""
        mark = Line2D(
            [x], [y], marker=marker, markersize=size, color=colour, linestyle="none",
            markeredgecolor=PAPER, markeredgewidth=1.1, clip_on=False,
        )  # fmt: skip
        self._point(mark, url, tip)
        self._axes.add_line(mark)

    def box(self, x: float, y: float, width: float, height: float, colour: str, **style: Any) -> None:
        """A filled rectangle; ``style`` is matplotlib's (zorder)."""
        style |= {"facecolor": colour, "linewidth": 0, "clip_on": False}
        self._axes.add_patch(Rectangle((x, y), width, height, **style))

    def spot(self, x: float, y: float, width: float, height: float, *, url: str, tip: str) -> None:
        """A place that is not seen: it lies on top, links to ``url`` and says ``tip`` when pointed at."""
        # Next to nothing, not nothing: what has no fill cannot be pointed at.
        style: dict[str, Any] = {
            "facecolor": PAPER,
            "alpha": 0.001,
            "linewidth": 0,
            "zorder": 9,
            "clip_on": False,
        }
        place = Rectangle((x, y), width, height, **style)
        self._point(place, url, tip)
        self._axes.add_patch(place)

    def _point(self, artist: Artist, url: str, tip: str) -> None:
        artist.set_url(url)
        artist.set_gid(f"tip-{len(self._tips)}")
        self._tips.append(tip)

    def text(self, x: float, y: float, text: str, colour: str = INK, size: float = 12, **style: Any) -> None:
        """Text on a middle line at ``y``; never read as mathematics. ``url`` in ``style`` links it.

        ``gid="bare"``: without a rim of paper, for text on a colour.
        """
        style = {"ha": "left", "va": "center_baseline"} | style
        self._axes.text(
            x, y, clean(text), color=colour, fontsize=size, parse_math=False, clip_on=False, **style
        )

    def svg(self, label: str, name: str) -> Markup:
        """The finished ``<svg>``: CSS class ``name``, and ``label`` as its text for screen readers."""
        buffer = io.StringIO()
        with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
            # A glyph that the measuring font lacks is still written as text for the reader's own font.
            warnings.filterwarnings("ignore", message="Glyph")
            self._figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return Markup(self._inline(buffer.getvalue(), label, name))

    def _inline(self, text: str, label: str, name: str) -> str:
        """Cut prolog, metadata and style; colours to variables; ids unique on the page."""
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
        view = re.search(r'viewBox="([^"]*)"', text)
        head = (
            f'<svg class="{name}" viewBox="{view.group(1) if view else ""}" role="img" '
            f'aria-label="{html.escape(clean(label))}">'
        )
        text = head + text[text.index(">") + 1 :]
        text = text.replace("xlink:href=", "href=")
        for colour, variable in _VARIABLES.items():
            text = text.replace(colour, f"var(--{variable})")
        for index, tip in enumerate(self._tips):
            mark = f'<g id="tip-{index}">'
            text = text.replace(mark, f"<g><title>{html.escape(clean(tip))}</title>")
        text = text.replace('<g id="bare">', '<g class="bare">')
        used = set(re.findall(r'href="#(m[0-9a-f]+)"', text))
        text = re.sub(
            r' id="([^"]*)"', lambda m: f' id="{self._key}-{m.group(1)}"' if m.group(1) in used else "", text
        )
        text = re.sub(r'href="#(m[0-9a-f]+)"', rf'href="#{self._key}-\1"', text)
        # Keyboard readers walk the table below the figure instead of every dot.
        text = text.replace('<a href="', '<a tabindex="-1" href="')
        return re.sub(r"\n\s*", "\n", text).strip()
