"""Cost of a step of a chat template, and the budget of a rendering: see ``templates.py``."""

from __future__ import annotations

import re
from collections.abc import Callable, ItemsView, Iterable, KeysView, Sized, ValuesView
from contextvars import ContextVar
from functools import wraps
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import TemplateError
from jinja2.runtime import str_join
from jinja2.utils import Namespace

Method = BuiltinMethodType | MethodType
METHODS = (BuiltinMethodType, MethodType)
"""Of a text or a list; those of a text that was marked safe are written in Python."""
CHARS = 4
"""2**4 characters are one unit."""
BUDGET: ContextVar[list[int]] = ContextVar("units_left")
"""Units that the render under way has left, as a list of one number; none is under way while compiling."""
_COPIED = 6
"""2**6 characters of a text that is put before or behind another are one unit: copying is quick."""
_COMPARED = 10
"""2**10 comparisons of two characters are one unit."""
_WIDEST = 1000  # a width that a filter or method may be asked for
_BITS = 2**14  # of a whole number that is worked on
_WIDE_FORMAT = re.compile(  # linear: no two of its repetitions can begin where another one runs
    r"[%)][-#0 +.\d]*\d{4}|%[-#0 +.\d]*\*|\{[^{}]*\d{4}|\{[^{}:]*:[^{}]*\{"
)
_ROWS = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)
_HOLDERS = (*_ROWS, Namespace)
"""What writes out all that it holds."""
_ALONE: frozenset[type] = frozenset({str, bool, type(None)})
"""What holds nothing; other such types are not named here."""
_TOO_MUCH = "it asks for more work than any chat template needs"
_BOTH_LENGTHS = {"strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"}
"""Methods whose work grows with a text times what is sought in it; from the front, a search is linear."""
_PLAIN_CODECS = {"utf-8", "utf8", "ascii", "strict", "ignore", "replace"}
"""What encode and decode may be told; some other codecs take the square of a text's length."""
_AT_ONCE = {"attr", "count", "d", "default", "first", "last", "length"}
"""These take no longer for a long input than for a short one."""
_SHALLOW = {  # these look at their input's items, not into them
    *("items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr"),
}


class OverspentError(TemplateError):
    """A template asked for more work than any chat template needs."""


def spend(units: int) -> None:
    """Pay; an OverspentError where the budget does not have it."""
    left = BUDGET.get()  # there is none while a template is compiled, so that nothing is worked out then
    left[0] -= units
    if left[0] < 0:
        raise OverspentError(_TOO_MUCH)


def size(value: Any) -> int:
    """Units of a value's own items or characters, without looking into them."""
    if isinstance(value, (str, bytes)):
        return len(value) >> CHARS
    if value is None:
        return 0
    if isinstance(value, int):
        return value.bit_length() >> 8
    return len(value) if isinstance(value, (*_ROWS, range)) else 0


def _nothing(_: Any) -> int:
    return 0


def weight(value: Any, limit: int | None = None) -> int:
    """Units of a value and all that it holds, each time that it holds it: what it costs to write out."""
    if isinstance(value, str):
        return len(value) >> CHARS
    if not isinstance(value, _HOLDERS):
        return size(value)
    most = BUDGET.get()[0] if limit is None else limit
    total, open_ = 0, [value]
    while open_:
        item = open_.pop()
        total += size(item)
        if total > most:
            raise OverspentError(_TOO_MUCH)
        if type(item) in _ALONE:  # what nearly all items are: the test below asks three abstract classes
            continue
        if isinstance(item, Namespace):
            open_.append(item._Namespace__attrs)
        elif isinstance(item, dict):
            open_ += item.keys()
            open_ += item.values()
        elif isinstance(item, _HOLDERS):
            open_ += item
    return total


def copied(value: Any) -> int:
    """Units of what ``+`` copies of a value: characters, or a list's own items."""
    return len(value) >> _COPIED if isinstance(value, (str, bytes)) else size(value)


def each(items: Any, cost: int) -> Any:
    """A loop's items, paid for at its start; those that come one by one are paid one by one."""
    if isinstance(items, Sized):
        spend((1 + cost) * len(items))
        return items
    return _one_by_one(items, cost)


def _one_by_one(items: Iterable[Any], cost: int) -> Iterable[Any]:
    for item in items:
        spend(1 + cost)
        yield item


def weighed(value: Any) -> Any:
    """A value, paid for with all that it holds."""
    spend(weight(value))
    return value


def sliced(value: Any) -> Any:
    """A value about to be sliced, paid for item by item."""
    spend(size(value))
    return value


def printed(value: Any) -> Any:
    """A value about to be written out, paid for."""
    if BUDGET.get(None) is not None:  # constants are printed while a template is compiled
        spend(1 + weight(value))
    return value


def joined(values: list[Any]) -> str:
    """``a ~ b ~ c``, paid for."""
    texts = sum(map(copied, (value for value in values if isinstance(value, str))))
    spend(1 + texts + weight([value for value in values if not isinstance(value, str)]))
    return str_join(values)


def tick(cost: int) -> None:
    """The beginning of a macro whose own text is ``cost`` units."""
    spend(1 + cost)


def guarded(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test whose input and result are paid for."""
    first = 1 if hasattr(fn, "jinja_pass_arg") else 0
    weigh: Callable[[Any], int] = size if name in _SHALLOW else weight
    if name in _AT_ONCE:
        weigh = _nothing

    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        before, value, after = args[:first], args[first], args[first + 1 :]
        if name == "join" and not isinstance(value, Sized):
            value = list(_one_by_one(value, 0))
        rest = (*after, *kwargs.values())
        spend(1 + weigh(value) + weight(rest))
        check_whole(value, *rest)
        _check_filter(name, value, rest)
        result = fn(*before, value, *after, **kwargs)
        spend(size(result))
        return result

    return run


def _check_filter(name: str, value: Any, rest: tuple[Any, ...]) -> None:
    """Refuse what would make a huge value of small ones."""
    if name in ("indent", "tojson", "round"):
        widest = _check_widths(rest)
        spend(widest * (value.count("\n") if isinstance(value, str) else weight(value)) >> CHARS)
    elif name == "format":
        pay_format(str(value), rest)
    elif name == "replace" and len(rest) >= 2:
        _check_replace(str(value), str(rest[0]), str(rest[1]))
    elif name == "trim":
        _pay_search(str(value), rest)
    elif name == "join" and rest and isinstance(value, Sized):
        spend(len(value) * weight(str(rest[0])))
    elif name == "sum" and any(isinstance(item, (list, tuple, str)) for item in rest):
        raise OverspentError("it adds lists up one by one")


def gathered(method: Method, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a method, with what ``join`` would draw one by one drawn before."""
    if method.__name__ != "join" or not args or isinstance(args[0], Sized):
        return args
    return (list(_one_by_one(args[0], 0)), *args[1:])


def check_method(method: Method, args: tuple[Any, ...]) -> None:
    """The same for a method of a built-in value, which is paid for as well."""
    value, name = method.__self__, method.__name__
    if not isinstance(value, (str, bytes, list, tuple, dict, int, range)):
        return
    spend(weight(value))
    if name in ("center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes"):
        widest = _check_widths(args)
        spend(widest * (value.count("\t") if isinstance(value, str) else 1) >> CHARS)
    elif name in ("replace", "join", "translate") and isinstance(value, bytes):
        raise OverspentError("it changes bytes, which no chat template needs")
    elif name == "replace" and isinstance(value, str) and len(args) >= 2:
        _check_replace(value, str(args[0]), str(args[1]))
    elif name == "join" and isinstance(value, str) and args and isinstance(args[0], Sized):
        spend(len(args[0]) * size(value))
    elif name in _BOTH_LENGTHS and isinstance(value, (str, bytes)):
        _pay_search(value, args)
    elif name in ("encode", "decode") and not all(str(arg).lower() in _PLAIN_CODECS for arg in args):
        raise OverspentError("it encodes text otherwise than as UTF-8")
    elif name == "translate" and args:
        spend(len(str(value)) * weight(args[0]))


def _pay_search(text: str | bytes, sought: Iterable[Any]) -> None:
    """Pay for a search in which every character may be compared with every one that is sought."""
    spend(len(text) * sum(len(part) for part in sought if isinstance(part, (str, bytes))) >> _COMPARED)


def _check_widths(args: Iterable[Any]) -> int:
    """The widest of the widths among ``args``."""
    widest = 8
    for width in args:
        if (isinstance(width, int) and abs(width) > _WIDEST) or (
            isinstance(width, str) and len(width) > _WIDEST
        ):
            raise OverspentError(f"it asks for a width of more than {_WIDEST}")
        widest = max(widest, width if isinstance(width, int) else len(width) if isinstance(width, str) else 0)
    return widest


def pay_format(text: str, values: Any) -> None:
    """Pay for a format: each of its fields may write out all values, but no width is long or an argument."""
    if _WIDE_FORMAT.search(text.replace("{{", "").replace("}}", "")):
        raise OverspentError("it has a format with a long or an open width")
    spend((text.count("%") + text.count("{")) * (1 + weight(values)))


def _check_replace(text: str, old: str, new: str) -> None:
    times = text.count(old) if old else len(text) + 1
    spend((times * len(new)) >> CHARS)


def pay_repeat(times: Any, value: Any) -> None:
    """Pay for ``times * value``, where that repeats a text or a list."""
    if isinstance(times, int) and isinstance(value, (str, bytes, list, tuple)) and times > 0:
        spend((len(value) * times) >> (0 if isinstance(value, (list, tuple)) else CHARS))


def check_whole(*numbers: Any) -> None:
    """Work on whole numbers grows with the square of their digits: none may have thousands."""
    if any(isinstance(number, int) and number.bit_length() > _BITS for number in numbers):
        raise OverspentError("it works on a number of thousands of digits")


def check_power(base: Any, exponent: Any) -> None:
    """The same for what ``base ** exponent`` would be."""
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > _BITS:
        raise OverspentError("it works on a number of thousands of digits")


def plain_format(fn: Callable[[str], str]) -> Callable[[str], str]:
    """``strftime_now`` without the widths that some C libraries know."""

    def run(text: str) -> str:
        if re.search(r"%[^%a-zA-Z]*\d", text):
            raise OverspentError("it formats the date with a width")
        return fn(text)

    return run
