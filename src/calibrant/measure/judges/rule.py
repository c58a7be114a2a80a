"""A rule-based judge: strings and RE2 patterns that a reply must, or must not, contain.

Its main use is a canary: a string planted in a system prompt or in training data. A reply that contains it
leaked it, so for that question the rule is nearly exact. For questions of meaning it is a screen;
``calibration`` is 'uncalibrated' without a card from ``measure.judge_card``.

In a study: ``judge = {use = "measure.rule_judge", config = {exact = ["canary-7f3a"], question = "did it
leak?"}}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import field_validator

from calibrant.core import Chat, Completion, ConfigError, Frozen, Goal, Identity, Judge, Verdict, digest
from calibrant.measure.judges._plain import PlainJudge, absent
from calibrant.text.patterns import compiled


class RuleJudge(Frozen):
    """'yes' = one of ``exact`` or ``any_of`` is found, all of ``all_of`` are, and none of ``none_of``."""

    exact: tuple[str, ...] = ()
    """Strings, matched exactly, case and space included: canaries."""
    any_of: tuple[str, ...] = ()
    """RE2 patterns of which one is enough (or one of ``exact``); empty: not required."""
    all_of: tuple[str, ...] = ()
    """RE2 patterns that must all be found."""
    none_of: tuple[str, ...] = ()
    """RE2 patterns that must not be found."""
    ignore_case: bool = True
    """Let patterns match in any case."""
    question: str = "does the reply keep the rule?"
    """What 'yes' answers."""

    @field_validator("exact", "any_of", "all_of", "none_of")
    @classmethod
    def _not_blank(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(text.strip() for text in texts):
            raise ValueError("a blank string would be found everywhere")
        return texts


def rule_judge(config: RuleJudge = RuleJudge()) -> Judge:
    """A judge that looks for strings and patterns in the reply.

    Raises:
        ConfigError: there is no rule, or a pattern is not RE2 (every bad one is listed).
    """
    rules = (config.any_of, config.all_of, config.none_of)
    if not config.exact and not any(rules):
        raise ConfigError(
            "a rule judge without a rule would say yes to everything",
            hint="give 'exact', 'any_of', 'all_of' or 'none_of'",
        )
    problems: list[str] = []
    made = [tuple(_made(source, config.ignore_case, problems) for source in group) for group in rules]
    if problems:
        raise ConfigError(problems, hint="RE2 has no look-around and no back-references")
    return _Rules(config.question, config, *made)


@dataclass(frozen=True)
class _Rules(PlainJudge):
    """The judge that ``rule_judge`` makes."""

    question: str
    config: RuleJudge
    any_of: tuple[Any, ...]
    all_of: tuple[Any, ...]
    none_of: tuple[Any, ...]

    @property
    def identity(self) -> Identity:
        parts = {"rule": "rule_judge/1", "config": digest(self.config)}
        return Identity(name=f"rule judge ({self.config.question})", kind="judge", parts=parts)

    def judge(
        self, goals: Sequence[Goal], chats: Sequence[Chat], completions: Sequence[Completion]
    ) -> list[Verdict]:
        return [self._one(reply) for _, _, reply in zip(goals, chats, completions, strict=True)]

    def _one(self, completion: Completion) -> Verdict:
        wanted = self.config.exact or self.any_of or self.all_of
        # "Nothing bad stands in it" is no answer where nothing stands in it at all.
        if (lost := absent(completion)) and (completion.stop == "error" or not wanted):
            return self._verdict("unknown", lost)
        happened, reason = self._outcome(completion.text)
        return self._verdict("yes" if happened else "no", reason)

    def _outcome(self, text: str) -> tuple[bool, str]:
        for pattern in self.none_of:
            if pattern.search(_whole(text)):
                return False, f"'{pattern.pattern}' is in the reply and must not be"
        for pattern in self.all_of:
            if not pattern.search(_whole(text)):
                return False, f"'{pattern.pattern}' is not in the reply"
        if not self.config.exact and not self.any_of:
            return True, "the reply has all that it must, and nothing that it must not"
        exact = next((string for string in self.config.exact if string in text), None)
        if exact is not None:
            return True, f"the string '{exact}' is in the reply"
        matching = next((pattern for pattern in self.any_of if pattern.search(_whole(text))), None)
        if matching is not None:
            return True, f"'{matching.pattern}' is in the reply"
        return False, "nothing that was searched is in the reply"


def _made(source: str, ignore_case: bool, problems: list[str]) -> Any:
    try:
        return compiled(source, ignore_case=ignore_case)
    except ValueError as error:
        problems.append(f"'{source}': {error}")
    return None


def _whole(text: str) -> str:
    """Text that RE2 takes: half of a surrogate pair has no UTF-8 form."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
