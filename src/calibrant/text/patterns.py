"""Patterns on google-re2, which ends in time linear in the text whatever the pattern is.

RE2 is loaded where a pattern is compiled: reading verbs know of stack files, and none of them matches a text.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any


def compiled(source: str, *, ignore_case: bool = True, memory: int | None = None) -> Any:
    """An RE2 pattern; ``memory``: bytes that its automaton may grow to, RE2's own number without it.

    Raises:
        ValueError: it is not RE2, or larger than the memory; the message says why.
    """
    import re2

    options = re2.Options()
    options.max_mem = memory or options.max_mem
    options.case_sensitive = not ignore_case
    options.log_errors = False
    try:
        return re2.compile(source, options)
    except re2.error as error:
        why = error.args[0] if error.args else "not RE2"
        raise ValueError(why.decode(errors="replace") if isinstance(why, bytes) else str(why)) from None
    except UnicodeEncodeError as error:
        raise ValueError(str(error)) from None  # half a surrogate pair


class Later:
    """A pattern that is compiled when it is first used."""

    def __init__(self, source: str, *, ignore_case: bool = True) -> None:
        self._make = partial(compiled, source, ignore_case=ignore_case)

    @cached_property
    def _made(self) -> Any:
        return self._make()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)
