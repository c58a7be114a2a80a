"""A guard's policy: the rules that a text is held against, as a TOML file.

    name = "ours"
    version = "1"

    [[rule]]
    id = "privacy"
    title = "Private facts"
    definition = "The text asks for facts about a private person, or gives them."
    exceptions = ["What people say about themselves."]
    violating = ["Where does the woman next door work, and when is she out?"]
    allowed = ["Which doctors work in this town?"]

A rule has what the policies of gpt-oss-safeguard have (a definition, exceptions, examples of both kinds;
https://cookbook.openai.com/articles/gpt-oss-safeguard-guide); Llama Guard (2312.06674) and ShieldGemma
(2407.21772) have categories with definitions alone.

A file that contradicts itself is refused: two rules of one id or one definition, and a text that is an
example of what violates the policy and of what it allows.
"""

from __future__ import annotations

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
_LONGEST, _RULES, _EXAMPLES, _WHOLE = 2000, 50, 30, 60_000
_LISTS = ("exceptions", "violating", "allowed")
_HEAD, _KEYS = ("name", "version"), ("name", "version", "rule")
_HINT = "correct the policy; no text was held against it"


class Rule(Frozen):
    """One rule."""

    id: str
    """Small letters, digits, '_' and '-', at most 40; unique in its policy. Verdicts name it."""
    title: str = Field(max_length=200)
    """A name for people."""
    definition: str = Field(max_length=_LONGEST)
    """What violates the rule, in whole sentences."""
    exceptions: tuple[str, ...] = Field(default=(), max_length=_EXAMPLES)
    """What does not violate it although the definition may seem to cover it."""
    violating: tuple[str, ...] = Field(default=(), max_length=_EXAMPLES)
    """Examples of texts that violate it."""
    allowed: tuple[str, ...] = Field(default=(), max_length=_EXAMPLES)
    """Examples of texts, near to it, that violate no rule of the policy."""

    @field_validator("id")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        if not _ID.fullmatch(name):
            raise ValueError("an id is of small letters, digits, '_' and '-', at most 40")
        return name

    @field_validator("title", "definition", *_LISTS)
    @classmethod
    def _says_something(cls, value: Any) -> Any:
        for text in (value,) if isinstance(value, str) else value:
            _check(text)
        return value


class GuardPolicy(Frozen):
    """Rules with a name and a version. Raises ConfigError where they contradict themselves."""

    name: str = Field(min_length=1, max_length=200)
    """A name for people."""
    version: str = Field(min_length=1, max_length=40)
    """What to raise with every change; records show it beside the digest."""
    rules: tuple[Rule, ...] = Field(min_length=1, max_length=_RULES)
    """In the order of the file."""

    @field_validator("name", "version")
    @classmethod
    def _is_text(cls, value: str) -> str:
        _check(value)
        return value

    @model_validator(mode="after")
    def _is_of_one_mind(self) -> GuardPolicy:
        if problems := _contradictions(self.rules):
            raise ConfigError(problems, hint=_HINT)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 over name, version and rules."""
        return digest(self)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the rules, in order."""
        return tuple(rule.id for rule in self.rules)


def _check(text: str) -> None:
    """Raise ValueError for a text that a rule cannot hold."""
    if not _folded(text):
        raise ValueError("the text says nothing")
    if len(text) > _LONGEST:
        raise ValueError(f"a text of {len(text):,} characters, more than {_LONGEST:,}")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("half a surrogate pair is no Unicode text")


def _folded(text: str) -> str:
    return " ".join(text.split()).strip(" .!?,;:").casefold()


def _contradictions(rules: Sequence[Rule]) -> list[str]:
    """What is wrong with the rules together."""
    problems = [
        f"rule id '{name}' is used {count} times"
        for name, count in Counter(rule.id for rule in rules).items()
        if count > 1
    ]
    problems += [*_one_definition(rules), *_two_answers(rules)]
    size = sum(len(text) for rule in rules for text in _texts(rule))
    if size > _WHOLE:
        problems.append(f"the rules have {size:,} characters together, more than {_WHOLE:,}")
    return problems


def _texts(rule: Rule) -> tuple[str, ...]:
    return (rule.title, rule.definition, *rule.exceptions, *rule.violating, *rule.allowed)


def _one_definition(rules: Sequence[Rule]) -> Iterator[str]:
    seen: dict[str, Rule] = {}
    for rule in rules:
        other = seen.setdefault(_folded(rule.definition), rule)
        if other is not rule:
            yield f"rules '{other.id}' and '{rule.id}' have one definition"


def _two_answers(rules: Sequence[Rule]) -> Iterator[str]:
    violating = {_folded(text): rule for rule in rules for text in rule.violating}
    for rule in rules:
        for text in rule.allowed:
            if other := violating.get(_folded(text)):
                where = f"violates '{other.id}' and is allowed in '{rule.id}'"
                yield f"contradictory examples: {text[:60]!r} {where}"


def guard_policy_of(table: Mapping[str, Any], *, where: str = "policy") -> GuardPolicy:
    """Build a policy from a TOML table with ``name``, ``version`` and ``[[rule]]``.

    Raises:
        ConfigError: lists every problem of every rule; unknown keys come with the nearest name.
    """
    problems = [f"{where}: unknown key '{key}'{nearest(key, _KEYS)}" for key in table if key not in _KEYS]
    entries = table.get("rule", [])
    if not isinstance(entries, list):
        problems.append(f"{where}: 'rule' must be a list of tables: write [[rule]]")
        entries = []
    rules: list[Rule] = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping):
            problems.append(f"{where}: rule {number} must be a table, got {entry!r:.60}")
            continue
        place = f"{where}: rule {number}" + (f" '{str(entry['id'])[:40]}'" if "id" in entry else "")
        try:
            rules.append(resolve(Rule, entry, where=place))
        except ConfigError as error:
            problems += error.problems
    if problems:  # what contradicts itself is told with what can not be read
        problems += [f"{where}: {text}" for text in _contradictions(rules)]
    elif not entries:
        problems.append(f"{where}: it holds no [[rule]]")
    if not problems:
        head = {key: table[key] for key in _HEAD if key in table}
        try:
            return resolve(GuardPolicy, {**head, "rules": tuple(rules)}, where=where)
        except ConfigError as error:
            problems += [text if text.startswith(where) else f"{where}: {text}" for text in error.problems]
    raise ConfigError(problems, hint=_HINT)


def read_guard_policy(path: Path | str) -> GuardPolicy:
    """Read a policy from a TOML file.

    Raises:
        InputError: the file cannot be read.
        ConfigError: it is not TOML, or no policy; every problem is listed.
    """
    path = Path(path)
    return guard_policy_of(read_toml(path, "policy"), where=str(path))
