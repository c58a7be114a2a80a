"""The table of an alignment tax: a line for each thing that is compared, in words that a manager reads."""

from __future__ import annotations

from collections.abc import Mapping

from calibrant.core import Estimate

_HEAD = "| | Before | After | {} | 95 % | Reading |\n| --- | --- | --- | --- | --- | --- |\n"
_LOSSES, _CHANGES = _HEAD.format("Lost, a share"), "\n" + _HEAD.format("After less before")
SIDES = (
    ("over_refusal_increase", "over_refusal_rate", "benign requests refused", "more refused"),
    ("harm_decrease", "harm_rate", "harmful requests complied with", "fewer complied with"),
)
"""Change, the rate that it is of, and both in words."""


def verdict(change: Estimate, margin: float) -> str:
    """Non-inferiority: what the interval of a tax says of the margin."""
    if change.value is None or change.low is None or change.high is None:
        return f"unknown: {change.reason}" if change.reason else "unknown"
    if change.high < margin:
        return f"not inferior: at most {change.high:.1%} is lost, {margin:.1%} was accepted"
    if change.low > margin:
        return f"inferior: at least {change.low:.1%} is lost, {margin:.1%} was accepted"
    return f"open: {margin:.1%} lies in the interval, so more items are needed"


def table(metrics: Mapping[str, Estimate], margin: float) -> str:
    """Markdown: skills with their tax, then what else was compared."""
    lines = [f"Largest tax that is accepted, a share of the skill above chance: {margin:.1%}\n\n", _LOSSES]
    plain = [n.removeprefix("tax/") for n in metrics if n.startswith("tax/") and n.count("/") == 1]
    for name, change in metrics.items():
        if not (name == "tax" or name.startswith("tax/")):
            continue
        kind = name.removeprefix("tax").removeprefix("/")
        before, after = (metrics.get(f"accuracy_{side}/{kind}") for side in ("before", "after"))
        lines.append(
            _line(kind or f"mean of {', '.join(plain)}", before, after, change, verdict(change, margin))
        )
    lines.append(_CHANGES)
    for name, rate_name, what, said in SIDES:
        if name in metrics:
            before, after = (metrics[f"{rate_name}_{side}"] for side in ("before", "after"))
            change = metrics[name] if name.endswith("increase") else _turned(metrics[name])
            lines.append(_line(what, before, after, change, _clear(metrics[name], said)))
    before, after = metrics["reply_tokens_before"], metrics["reply_tokens_after"]
    lines.append(_line("tokens of a reply", before, after, None, ""))
    return "".join(lines)


def _turned(one: Estimate) -> Estimate:
    """Before less after, as after less before."""
    value, low, high = (None if end is None else 0.0 - end for end in (one.value, one.high, one.low))
    return one.model_copy(update={"value": value, "low": low, "high": high})


def _clear(change: Estimate, said: str) -> str:
    if change.low is None or change.high is None:
        return f"unknown: {change.reason}" if change.reason else "unknown"
    if change.low > 0:
        return said
    return f"not {said}" if change.high < 0 else "open: the interval holds 0, so more requests are needed"


def _line(
    what: str, before: Estimate | None, after: Estimate | None, change: Estimate | None, reading: str
) -> str:
    ends = ""
    if change is not None and change.low is not None and change.high is not None:
        ends = f"{change.low:.3f} to {change.high:.3f}"
    cells = [_plain(what), _whole(before), _whole(after), _number(change), ends, _plain(reading)]
    return "| " + " | ".join(cells) + " |\n"


def _number(estimate: Estimate | None) -> str:
    return "" if estimate is None else "unknown" if estimate.value is None else f"{estimate.value:.3f}"


def _whole(estimate: Estimate | None) -> str:
    """With its interval, where it has one."""
    if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
        return _number(estimate)
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _plain(text: str) -> str:
    """What fits into a cell of a table."""
    return " ".join(text.replace("|", "/").split())
