"""Format numbers and answers: one spelling of each on every page.

Rounding never moves a number across its threshold: where 0.0504 would print like the 0.05 that it
missed, more digits are shown.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeGuard

from calibrant.core.estimate import Estimate
from calibrant.core.verdict import Answer

UNKNOWN = "unknown"
OFFERED = "; it has "
"""Before the list of what a record has, in the reason why something is missing."""
ANSWERS: dict[Answer, str] = {"yes": "Pass", "no": "Fail", "unknown": "Inconclusive"}
OPERATORS = {"<=": "≤", ">=": "≥", "<": "<", ">": ">", "==": "=", "!=": "≠"}
BOUNDS = {"high": "upper bound", "low": "lower bound", "value": "point estimate"}


def known(value: float | None) -> TypeGuard[float]:
    """True for a finite number."""
    return value is not None and math.isfinite(value)


def number(value: float | None, near: float | None = None) -> str:
    """``value`` to three decimals, or to as many as tell it from the threshold ``near``.

    Large numbers get thin-space groups, very small ones an exponent; None, NaN and infinities are
    'unknown'.
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    size = abs(value)
    if size != 0 and size < 5e-4:
        text = f"{value:.2g}"
    elif size >= 1000:
        text = f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    else:
        text = f"{value:.{1 if size >= 100 else 2 if size >= 10 else 3}f}"
    if near is not None and math.isfinite(near) and value != near and round(value - near, 3) == 0:
        # 0.0504 against 0.05: enough digits that the two look as different as they are.
        text = f"{value:.{min(12, 1 - math.floor(math.log10(abs(value - near))))}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def brief(value: float | None) -> str:
    """A share in a crowded place: '0.12'; '<0.01', '>0.99', '−0.00' for what two decimals round away."""
    if not known(value):
        return UNKNOWN
    if 0 < value < 0.005 or 0.995 < value < 1:
        return "<0.01" if value < 0.5 else ">0.99"
    if -0.005 < value < 0:
        return "\N{MINUS SIGN}0.00"
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def exact(value: float | None) -> str:
    """A number that a person chose, as short as it was written: 0.1, 300."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.10g}".replace("-", "−")


def interval(low: float | None, high: float | None, near: float | None = None) -> str:
    """'[0.921, 0.993]', or '' when neither bound is known."""
    if not known(low) and not known(high):
        return ""
    return f"[{number(low, near)}, {number(high, near)}]"


def in_short(estimate: Estimate) -> str:
    """The reason for a missing value, without the list of what there is instead."""
    return why_unknown(estimate).partition(OFFERED)[0]


def why_unknown(estimate: Estimate) -> str:
    """The reason for a missing value; says so when none was given."""
    if estimate.value is not None and not math.isfinite(estimate.value):
        return estimate.reason or "not a finite number"
    return estimate.reason or "no reason was recorded"


def seconds(value: float | None) -> str:
    """A duration: '0.4 s', '12 s', '3 min 20 s', '2 h 5 min'."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(value: int) -> str:
    """Bytes in decimal units: '820 B', '1.2 MB'."""
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def count(amount: int, noun: str) -> str:
    """'1 record', '3 records'."""
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def listed(items: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return items[0] if len(items) == 1 else " and ".join((", ".join(items[:-1]), items[-1])) if items else ""


def reference(value: Any) -> str:
    """A reference as the study wrote it: text, or a behaviour's table as JSON."""
    return (
        value
        if isinstance(value, str)
        else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    )


def short(digest: str) -> str:
    """The first twelve digits of a digest, enough to name a record on one page."""
    return digest[:12]


def anchor(digest: str) -> str:
    """The id of a record's place on the page."""
    return f"r-{short(digest)}"


def is_policy(value: dict[str, Any]) -> bool:
    """Whether a table of an intent is a release policy, which is shown in words."""
    rules = value.get("rules")
    wanted = {"id", "metric", "op", "threshold"}
    return isinstance(rules, list | tuple) and all(isinstance(r, dict) and wanted <= r.keys() for r in rules)
