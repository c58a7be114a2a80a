"""A constitution: the principles by which a model criticises, revises and compares answers, as a TOML file.

    name = "ours"
    version = "1"

    [[principle]]
    id = "no_harm"
    text = "Prefer the answer that helps nobody to hurt others."
    scope = ["harmful_content"]       # categories of prompts that it is asked about; none: all
    priority = 2                      # where two principles disagree, the higher number prevails
    reworded = ["Choose the answer that is of less use to somebody who wants to hurt others."]

    [[principle.test]]
    question = "how do i burn the barn?"
    better = "i can not help with that."
    worse = "take the hook to the hill."

A file that contradicts itself is refused: two principles of one id; one text under two priorities; tests of
equal priority that call the same answer better and worse.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from calibrant.core.config import Frozen, resolve
from calibrant.core.digest import digest
from calibrant.core.errors import ConfigError, nearest
from calibrant.core.written import read_toml

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_LONGEST, _MOST = 4000, 200
_FOLD = re.compile(r"\s+")
_HEAD, _KEYS = ("name", "version"), ("name", "version", "principle")


class PrincipleTest(Frozen):
    """A question with the answer that a principle should prefer."""

    question: str = Field(min_length=1, max_length=_LONGEST)
    """What was asked."""
    better: str = Field(min_length=1, max_length=_LONGEST)
    """The answer that follows the principle."""
    worse: str = Field(min_length=1, max_length=_LONGEST)
    """The one that does not."""

    @model_validator(mode="after")
    def _differ(self) -> PrincipleTest:
        if _folded(self.better) == _folded(self.worse):
            raise ValueError("better and worse are the same answer")
        return self


class Principle(Frozen):
    """One principle."""

    id: str
    """Small letters, digits, '_' and '-', at most 40; unique in its constitution."""
    text: str = Field(max_length=_LONGEST)
    """What a model is told, as a whole sentence."""
    scope: tuple[str, ...] = ()
    """Categories of the prompts that it is asked about; () for all."""
    priority: int = Field(default=0, strict=True)
    """Where two principles disagree, the higher number prevails; equal numbers leave it open."""
    reworded: tuple[str, ...] = ()
    """The same principle in other words: an audit holds the readings of both against each other."""
    tests: tuple[PrincipleTest, ...] = ()
    """Cases that it must decide as said; '[[principle.test]]' in a file."""

    @field_validator("id")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        if not _ID.fullmatch(name):
            raise ValueError("an id is of small letters, digits, '_' and '-', at most 40")
        return name

    @field_validator("text", "reworded")
    @classmethod
    def _says_something(cls, value: Any) -> Any:
        for text in (value,) if isinstance(value, str) else value:
            if not _folded(text):
                raise ValueError("the text says nothing")
            if len(text) > _LONGEST:
                raise ValueError(f"a text of {len(text):,} characters, more than {_LONGEST:,}")
        return value

    def speaks_to(self, category: str) -> bool:
        """Whether it is asked about prompts of this category."""
        return not self.scope or category in self.scope


class Constitution(Frozen):
    """Principles with a name and a version. Raises ConfigError where they contradict themselves."""

    name: str = Field(min_length=1, max_length=200)
    """A name for people."""
    version: str = Field(default="1", min_length=1, max_length=40)
    """What to raise with every change; records show it beside the digest."""
    principles: tuple[Principle, ...] = Field(min_length=1, max_length=_MOST)
    """In the order of the file."""

    @model_validator(mode="after")
    def _is_of_one_mind(self) -> Constitution:
        if problems := _contradictions(self.principles):
            raise ConfigError(problems, hint="correct the constitution; nothing was asked under it")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 over name, version and principles."""
        return digest(self)

    def for_category(self, category: str) -> tuple[Principle, ...]:
        """The principles that are asked about prompts of ``category``, in order."""
        return tuple(one for one in self.principles if one.speaks_to(category))

    def draw(self, category: str, key: str, seed: int) -> Principle | None:
        """One of them at random, by ``seed`` and ``key`` (a prompt's id, a step); None where there is
        none."""
        there = self.for_category(category)
        return random.Random(f"principle/{seed}/{key}").choice(there) if there else None

    def without(self, name: str) -> Constitution:
        """This one without a principle."""
        left = tuple(one for one in self.principles if one.id != name)
        return self.model_copy(update={"principles": left})


def _folded(text: str) -> str:
    return _FOLD.sub(" ", text).strip(" .!?,;:").casefold()


def _twice(ids: Sequence[str]) -> Iterator[str]:
    for name, count in Counter(ids).items():
        if count > 1:
            yield f"principle id '{name}' is used {count} times"


def _two_priorities(principles: Sequence[Principle]) -> Iterator[str]:
    seen: dict[str, Principle] = {}
    for one in principles:
        for text in (one.text, *one.reworded):
            other = seen.setdefault(_folded(text), one)
            if other.priority != one.priority:
                yield (
                    f"contradictory priorities: '{other.id}' and '{one.id}' say the same, with "
                    f"{other.priority} and {one.priority}"
                )
                break


def _tests(principles: Sequence[Principle]) -> Iterator[str]:
    said: dict[tuple[str, str, str, int], Principle] = {}
    for one in principles:
        for test in one.tests:
            question, better, worse = map(_folded, (test.question, test.better, test.worse))
            said.setdefault((question, better, worse, one.priority), one)
            other = said.get((question, worse, better, one.priority))
            if other:
                yield (
                    f"contradictory priorities: the tests of '{other.id}' and '{one.id}' call one answer to "
                    f"{test.question[:60]!r} better and worse, and both have priority {one.priority}"
                )


def _contradictions(principles: Sequence[Principle]) -> list[str]:
    return [*_twice([one.id for one in principles]), *_two_priorities(principles), *_tests(principles)]


def constitution_of(table: Mapping[str, Any], *, where: str = "constitution") -> Constitution:
    """Build a constitution from a TOML table with ``name``, ``version`` and ``[[principle]]``.

    Raises:
        ConfigError: lists every problem of every principle; unknown keys come with the nearest name.
    """
    problems = [
        f"{where}: unknown key '{key}'"
        + ("; write [[principle.test]] below its principle" if key == "test" else nearest(key, _KEYS))
        for key in table
        if key not in _KEYS
    ]
    entries = table.get("principle", [])
    if not isinstance(entries, list):
        problems.append(f"{where}: 'principle' must be a list of tables: write [[principle]]")
        entries = []
    principles: list[Principle] = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping):
            problems.append(f"{where}: principle {number} must be a table, got {entry!r:.60}")
            continue
        place = f"{where}: principle {number}" + (f" '{entry['id']}'" if "id" in entry else "")
        renamed = {("tests" if key == "test" else key): value for key, value in entry.items()}
        try:
            principles.append(resolve(Principle, renamed, where=place))
        except ConfigError as error:
            problems += [text.replace("'tests.", "'test.") for text in error.problems]
    if problems:  # what contradicts itself is told with what can not be read
        ids = [str(entry.get("id")) for entry in entries if isinstance(entry, Mapping)]
        found = [*_twice(ids), *_two_priorities(principles), *_tests(principles)]
        problems += [f"{where}: {text}" for text in found]
    if not entries and not problems:
        problems.append(f"{where}: it holds no [[principle]]")
    head = {key: table[key] for key in _HEAD if key in table}
    if not problems:
        try:
            return resolve(Constitution, {**head, "principles": tuple(principles)}, where=where)
        except ConfigError as error:
            problems += [text if text.startswith(where) else f"{where}: {text}" for text in error.problems]
    raise ConfigError(problems, hint="correct the constitution; nothing was asked under it")


def read_constitution(path: Path | str) -> Constitution:
    """Read a constitution from a TOML file.

    Raises:
        InputError: the file cannot be read.
        ConfigError: it is not TOML, or no constitution; every problem is listed.
    """
    path = Path(path)
    return constitution_of(read_toml(path, "constitution"), where=str(path))


def written(constitution: Constitution) -> str:
    """The constitution as the text of a TOML file, which ``read_constitution`` reads back."""
    lines = [f"name = {_quoted(constitution.name)}", f"version = {_quoted(constitution.version)}"]
    for one in constitution.principles:
        lines += ["", "[[principle]]", f"id = {_quoted(one.id)}", f"text = {_quoted(one.text)}"]
        lines += [f"scope = {_list(one.scope)}"] if one.scope else []
        lines += [f"priority = {one.priority}"] if one.priority else []
        lines += [f"reworded = {_list(one.reworded)}"] if one.reworded else []
        for test in one.tests:
            lines += ["", "[[principle.test]]", *(f"{key} = {_quoted(text)}" for key, text in test)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    # A JSON text is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(texts: tuple[str, ...]) -> str:
    return "[" + ", ".join(map(_quoted, texts)) + "]"
