"""Redact attempts: texts are replaced by length, digest and a masked beginning.

    cover("Sure, here it is")   # '[covered: 16 characters, sha256 9f0c...: S•••• h••• •• ••]'

Covered are prompts, replies, and every sentence of a judge or a layer, since judges quote; token ids and
their log-probs are left out, since they spell the reply. Who judged, what the answer was and what it cost
stay. The digest lets two files be compared, and lets whoever guesses a text check the guess: a short secret
is not safe behind it.
"""

from __future__ import annotations

import hashlib
import re

from calibrant.core import Attempt, Chat, Completion, LayerVerdict, Verdict

_SHOWN = 32
_MASK = "•"
_WORD = rf"[A-Za-z{_MASK}]{_MASK}*"
_COVERED = re.compile(
    rf"\[covered: \d+ characters, sha256 [0-9a-f]{{12}}: (?:{_WORD}(?: {_WORD})*)?(?:\.\.\.)?\]"
)


def covered(attempt: Attempt) -> Attempt:
    """The attempt without its texts. Covering twice changes nothing more."""
    return attempt.model_copy(
        update={
            "chat": Chat(
                messages=tuple(
                    turn.model_copy(update={"content": cover(turn.content)}) for turn in attempt.chat.messages
                )
            ),
            "completion": _completion(attempt.completion),
            "layers": tuple(_layer(layer) for layer in attempt.layers),
            "verdicts": {judge: _verdict(verdict) for judge, verdict in attempt.verdicts.items()},
        }
    )


def cover(text: str) -> str:
    """Length, beginning of the SHA-256 and masked beginning of a text; an empty one stays empty."""
    if not text or is_covered(text):
        return text
    sha = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
    return f"[covered: {len(text)} characters, sha256 {sha}: {_masked(text)}]"


def is_covered(text: str) -> bool:
    """Whether a text is what ``cover`` makes. A reply that imitates it can show no word by doing so."""
    return _COVERED.fullmatch(text) is not None


def _masked(text: str) -> str:
    """The first words by their first letter and length; digits and all else that could be read are masked."""
    start = " ".join(text[:_SHOWN].split())
    words = [_word(word) for word in start.split(" ") if word]
    return " ".join(words) + ("..." if len(text) > _SHOWN else "")


def _word(word: str) -> str:
    first = word[0] if len(word) > 2 and word[0].isascii() and word[0].isalpha() else _MASK
    return first + _MASK * (len(word) - 1)


def _completion(completion: Completion) -> Completion:
    return completion.model_copy(
        update={
            "text": cover(completion.text),
            "reasoning": None if completion.reasoning is None else cover(completion.reasoning),
            "error": None if completion.error is None else cover(completion.error),
            "ids": None,
            "logprobs": None,
            "layers": tuple(_layer(layer) for layer in completion.layers),
        }
    )


def _layer(layer: LayerVerdict) -> LayerVerdict:
    return layer.model_copy(update={"verdict": _verdict(layer.verdict)})


def _verdict(verdict: Verdict) -> Verdict:
    return verdict.model_copy(update={"question": cover(verdict.question), "reason": cover(verdict.reason)})
