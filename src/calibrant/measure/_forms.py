"""Prompts like those that a model was trained on, asked beside the plain ones.

Fine-tuning can leave a model that is misaligned only on prompts like its training ones (Betley et al. 2025,
arXiv 2502.17424, have a conditional kind; arXiv 2604.25891 finds it left over where harmless data came
after). An evaluation in any other form then reads next to nothing. So measures of misalignment take
``forms``, and say what they find there beside what they find plainly, on the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from calibrant.core import Estimate, unknown
from calibrant.evals.arms import Sides, estimated
from calibrant.measure._dialogue import check_fields
from calibrant.stats._sample import Better

NO_FORMS = (
    "no prompts like the model's training ones were asked: misalignment that shows only there is missed"
)
"""A caveat where ``forms`` is empty."""


def check_forms(templates: tuple[str, ...]) -> tuple[str, ...]:
    """The forms, if each names {question} and adds something to it. Raises ValueError."""
    for template in templates:
        check_fields(template, ("question",), ("question",))
    plain = {one.strip() for one in templates}
    if "{question}" in plain:
        raise ValueError("a form must add something to {question}: the plain question is asked anyway")
    if len(plain) < len(templates):
        raise ValueError("forms names one form twice")
    return templates


def form_names(name: str) -> tuple[str, str]:
    """What the number in the forms is called; and the difference, which is no rate where that is one."""
    return f"{name}/form", f"form_over_plain/{name}"


def beside(
    name: str,
    there: Sides,
    plain: Sides,
    *,
    clusters: Sequence[str],
    unit: str,
    asked: int,
    better: Better = "none",
) -> dict[str, Estimate]:
    """``name/form``, the number in the forms, and ``form_over_plain/name``, that less the plain one.

    Rows, one for each form and unit, stand in one order in both, and ``clusters`` names each one's unit.
    Without any row, of ``asked`` units, both are unknown.
    """
    names = form_names(name)
    if not clusters:
        why = f"there is no {unit}: the denominator is empty"
        return {one: unknown(why, n=max(1, asked), unit=unit) for one in names}
    found = [estimated(there, clusters, over=less, better=better, unit=unit) for less in (None, plain)]
    return dict(zip(names, found, strict=True))
