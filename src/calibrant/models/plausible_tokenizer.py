"""Whether an untrusted tokenizer can be built and used in bounded work, from its files alone.

A tokenizer is a small program: replacements that double a text, one after the other, fill any memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calibrant.core.errors import InputError
from calibrant.models.folder import TOKENIZER_CONFIG, read_object

_GROWTH = 1000  # characters that its steps may add; ten times as often may they lengthen a text
_LONGEST = 2**14  # characters of one token; work grows with the square
_LAST = 2**26  # the largest id of an added token: some tokenizers fill all ids below it


def check_tokenizer(folder: Path) -> None:
    """Refuse what would take endless work or memory.

    Raises:
        InputError: steps that lengthen a text out of all measure, a token longer than any, an id beyond all.
    """
    for path in sorted({*folder.glob("tokenizer.json"), *folder.glob("tokenizer.*.json")}):
        if path.is_file():
            _check_program(path)
    for name, key in ((TOKENIZER_CONFIG, "added_tokens_decoder"), ("added_tokens.json", "")):
        if (folder / name).is_file():
            content = read_object(folder / name)
            table = content.get(key) or {} if key else content
            if not isinstance(table, Mapping):
                raise InputError(f"'{folder / name}': '{key}' is no table", hint="save the tokenizer again")
            for number in table if key else table.values():
                if not str(number).isdecimal() or int(number) > _LAST:
                    raise InputError(
                        f"'{folder / name}': an added token has the id {str(number)[:40]}",
                        hint=f"ids are whole numbers up to {_LAST}",
                    )


def _check_program(path: Path) -> None:
    content = read_object(path)
    longer, more = 1.0, 0
    for step in _steps([content.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]):
        longer *= _growth(step)
        more += len(str(step.get("prepend") or "")) + len(str(step.get("append") or ""))
    processor = content.get("post_processor")
    pieces = len(json.dumps(processor)) // 8 if processor else 0
    if longer > 10 * _GROWTH or more > _GROWTH or pieces > 10 * _GROWTH:
        raise InputError(
            f"'{path}' lengthens a text out of all measure", hint="take a tokenizer from where you trust"
        )
    model = content.get("model")
    words = model.get("vocab") if isinstance(model, Mapping) else None
    if max((len(word) for word in _words(words)), default=0) > _LONGEST:
        raise InputError(
            f"'{path}' has a token of more than {_LONGEST} characters", hint="no tokenizer needs it"
        )


def _words(vocabulary: Any) -> Iterator[str]:
    """Words of a table of ids, or of a list of pairs with scores."""
    for word in vocabulary if isinstance(vocabulary, (list, Mapping)) else ():
        piece = word[0] if isinstance(word, list) and word else word
        if isinstance(piece, str):
            yield piece


def _steps(parts: list[Any]) -> Iterator[Mapping[str, Any]]:
    """Every step of a tokenizer's program, however deep it lies."""
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        elif isinstance(part, Mapping):
            yield part
            parts += [value for value in part.values() if isinstance(value, (list, Mapping))]


def _growth(step: Mapping[str, Any]) -> float:
    """How many times as long a text may be after a replacement; 1 for other steps."""
    content, pattern = step.get("content"), step.get("pattern")
    if not isinstance(content, str) or not isinstance(pattern, Mapping):
        return 1
    replaced = pattern.get("String")
    if isinstance(replaced, str) and replaced:
        return max(1.0, len(content.encode()) / len(replaced.encode()))
    return 1.0 + len(content.encode())
