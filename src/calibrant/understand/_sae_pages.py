"""Feature pages: where the most used features are strongest, and how often they are on. No explanation.

A density is the share of held-out tokens in which a feature is on. Contexts are from all stored tokens, one a
text, strongest first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

import torch
from torch import Tensor

from calibrant.core import OpenLM, Run
from calibrant.core.shown import harmless
from calibrant.maths.sparse_coding import SparseCoder
from calibrant.models.chat_tokens import ChatTokens
from calibrant.understand._engine.harvest import Texts
from calibrant.understand._engine.store import Store

_CHUNK, _AROUND, _BINS = 2048, 8, 24
_STYLE = (
    "body{font:14px sans-serif;max-width:60em;margin:2em auto;color:#222}"
    "td{padding:.2em .6em;vertical-align:top}code{white-space:pre-wrap}h2{margin:1.6em 0 .2em;font-size:1em}"
)


def write_pages(
    model: OpenLM,
    coder: SparseCoder,
    texts: Texts,
    store: Store,
    site: str,
    density: Tensor,
    run: Run,
    *,
    features: int,
    contexts: int,
) -> None:
    """Artefacts 'features.json' and 'features.html': the ``features`` most used, ``contexts`` each."""
    chosen = density.argsort(descending=True, stable=True)[:features]
    chosen = chosen[density[chosen] > 0]
    places = _places(coder, store, site, chosen)
    pages = [
        {"feature": feature, "density": float(density[feature])}
        | _page(model, texts, places[feature], contexts)
        for feature in chosen.tolist()
    ]
    table = {"site": site, "density_histogram": _histogram(density), "features": pages}
    run.artifact("features.json").write_text(json.dumps(table), encoding="utf-8")
    run.artifact("features.html").write_text(_html(site, pages), encoding="utf-8")


def _places(
    coder: SparseCoder, store: Store, site: str, chosen: Tensor
) -> dict[int, dict[tuple[int, int], float]]:
    """Feature -> (text, position) -> activation, where it is on."""
    found: dict[int, dict[tuple[int, int], float]] = {int(feature): {} for feature in chosen}
    wanted = torch.zeros(coder.shape.width, dtype=torch.bool)
    wanted[chosen] = True
    for some, x in store.chunks(site, _CHUNK):
        pattern, values = coder.codes(x)
        on = wanted[pattern.columns] & (values > 0)
        where = store.tokens(some)[pattern.rows[on], :2].tolist()
        for feature, (text, position), value in zip(
            pattern.columns[on].tolist(), where, values[on].tolist(), strict=True
        ):
            found[feature][text, position] = value
    return found


def _page(
    model: OpenLM, texts: Texts, places: Mapping[tuple[int, int], float], contexts: int
) -> dict[str, Any]:
    """Its strongest places, one a text, each with the tokens around and what it is there."""
    tokens, strongest = ChatTokens(model.tokenizer), dict[int, int]()
    for text, position in sorted(places, key=lambda place: (-places[place], place)):
        if len(strongest) == contexts:
            break
        strongest.setdefault(text, position)
    shown = []
    for text, position in strongest.items():
        ids = texts.ids[text]
        window = range(max(0, position - _AROUND), min(len(ids), position + _AROUND + 1))
        shown_tokens = [
            {"token": spelt(tokens, ids[at]), "activation": round(places.get((text, at), 0.0), 5)}
            for at in window
        ]
        shown.append({"text": text, "position": position, "tokens": shown_tokens})
    return {
        "tokens_on": len(places),
        "strongest": max(places.values(), default=0.0),
        "mean_when_on": sum(places.values()) / max(1, len(places)),
        "contexts": shown,
    }


def spelt(tokens: ChatTokens, token: int) -> str:
    """What a token says inside a text, its blank included; a special token by its name."""
    return tokens.text([token]) or str(tokens.tokenizer.decode([token]))


def _histogram(density: Tensor) -> dict[str, Any]:
    """Counts of features by log10 density, from -6 to 0, and of those that are never on."""
    logs = density[density > 0].double().log10().clamp(-6, 0)
    counts = torch.histc(logs, _BINS, -6, 0).long().tolist()
    return {"log10_from": -6, "log10_to": 0, "counts": counts, "never": int((density == 0).sum())}


def _html(site: str, pages: list[dict[str, Any]]) -> str:
    """One table a feature; the darker a token, the stronger."""
    parts = []
    for page in pages:
        most = page["strongest"] or 1.0
        rows = "".join(
            f"<tr><td>{max(t['activation'] for t in context['tokens']):.3g}</td><td><code>"
            + "".join(
                f'<span style="background:rgba(230,140,0,{token["activation"] / most:.2f})">'
                f"{escape(harmless(token['token']))}</span>"
                for token in context["tokens"]
            )
            + "</code></td></tr>"
            for context in page["contexts"]
        )
        parts.append(
            f"<h2>Feature {page['feature']}</h2><p>on in {100 * page['density']:.3g} % of held-out tokens, "
            f"strongest {page['strongest']:.3g}, mean when on {page['mean_when_on']:.3g}</p>"
            f"<table>{rows}</table>"
        )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Features</title><style>{_STYLE}</style><h1>Features of {escape(site)}</h1>"
        f"{''.join(parts)}</html>\n"
    )
