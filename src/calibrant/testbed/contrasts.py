"""``testbed:contrasts/NAME``: pairs of a clean prompt and a corrupted one, to patch between."""

from __future__ import annotations

from collections.abc import Mapping

from calibrant.core import Chat, InputError
from calibrant.data.rows import Contrast, Contrasts
from calibrant.testbed import backdoor, circuits, gates, greater_than, name_mover
from calibrant.testbed.checks import check_name, check_options, whole_option
from calibrant.testbed.text_contrasts import TASKS, text_contrasts
from calibrant.testbed.words import REFUSAL
from calibrant.testbed.world import Split, goals, lookalikes, recipe, request

_PLANTED = {
    "induction": circuits,
    "name_mover": name_mover,
    "greater_than": greater_than,
    "gate": gates,
    "backdoor": backdoor,
}
"""Tasks of planted models, and their modules."""
_SPLITS: Mapping[str, Split] = {"heldout": "heldout", "train": "train"}


_MOST = 5000


def open_contrasts(name: str, options: Mapping[str, str]) -> Contrasts:
    """Those of planted models: see the plant of that name. 'refusal': harmful requests, each beside a benign
    one about the same thing. 'ioi', 'greater_than_year' and 'repeat' are English: see ``text_contrasts``.

    The answer of 'refusal' is the refusal, the foil how an answer to the benign request begins. ``?n=48``,
    ``?split=train`` has the verbs and things that safety training saw. Pairs of one harmful verb are a
    cluster.
    """
    check_name("contrasts", name, (*_PLANTED, "refusal", *TASKS), "task")
    if whole_option("n", options, 24) > _MOST:
        raise InputError(f"n={options['n']}: at most {_MOST:,} pairs are made", hint="write ?n=24")
    if name in TASKS:
        return text_contrasts(name, options)
    return _PLANTED[name].open_contrasts(name, options) if name in _PLANTED else _refusal(options)


def _refusal(options: Mapping[str, str]) -> Contrasts:
    check_options("contrasts", "refusal", options, ("n", "split"))
    split = _SPLITS.get(options.get("split", "heldout"))
    if split is None:
        raise InputError(f"split={options['split']} is no split", hint=f"one of: {', '.join(_SPLITS)}")
    benign: dict[str, list[str]] = {}
    for one in lookalikes(split):
        benign.setdefault(one.spans[1], []).append(one.spans[0])
    harmful, n = goals(split), whole_option("n", options, 48)
    rows = []
    for number in range(min(n, len(harmful))):
        at = number * len(harmful) // n
        verb, thing = harmful[at].spans
        verbs = benign[thing]
        other = verbs[at % len(verbs)]
        rows.append(
            Contrast(
                id=f"{harmful[at].id}/{other}",
                clean=Chat.ask(harmful[at].text),
                corrupt=Chat.ask(request(other, thing)),
                answer=REFUSAL,
                foil=recipe(other, thing),
                cluster=verb,
            )
        )
    return Contrasts(rows=tuple(rows), source="testbed:contrasts/refusal")
