"""Runs a guardrail of any-guardrail in the interpreter that this file is given to; answers by JSON lines.

It is started as a script, by ``_any_guardrail_peer.py``, and needs nothing of Calibrant. One question a line
on standard input, one answer a line on standard output, under the question's id. Whatever the guardrail and
its libraries print goes to standard error, and what they read is empty.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("any-guardrail", "any-llm-sdk", "torch", "transformers", "tokenizers")
_LONGEST = 1000
"""Characters of an explanation that are handed on."""
_UNBOUNDED = 10**6
"""A tokenizer without a limit names a number beyond this one."""


def versions() -> dict[str, str]:
    """The packages that can change an answer, and the interpreter."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


class Holder:
    """A guardrail, once it is loaded."""

    def __init__(self) -> None:
        self.name: Any = None
        self.guardrail: Any = None
        self.arguments: dict[str, Any] = {}
        self.limit: int | None = None
        self.cut = False

    def load(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Make the guardrail; the sides that it says it reads, and whether its tokens can be counted.

        Raises:
            RuntimeError: the folder or the revision that is asked for has no effect on what it loads.
        """
        from any_guardrail import AnyGuardrail, GuardrailName
        from any_guardrail.providers.huggingface import HuggingFaceProvider

        self.name, self.arguments = GuardrailName(asked["guardrail"]), asked["arguments"]
        folder, revision, loaded = asked["folder"], asked["revision"], []
        load_model = HuggingFaceProvider.load_model

        def pinned(provider: Any, model_id: str, **more: Any) -> None:
            """What ``load_model`` does, with the folder or the revision, and without the model's own code."""
            provider.trust_remote_code = False
            more.pop("trust_remote_code", None)
            if folder:
                model_id, provider.tokenizer_id = folder, None
            elif revision != "unpinned":
                provider.revision = revision
            load_model(provider, model_id, **more)
            loaded.append(model_id)

        HuggingFaceProvider.load_model = pinned
        try:
            named = {"model_id": asked["model_id"]} if asked["model_id"] else {}
            self.guardrail = AnyGuardrail.create(self.name, **asked["settings"], **named)
        finally:
            HuggingFaceProvider.load_model = load_model
        if not loaded and (folder or revision != "unpinned"):
            raise RuntimeError("it loads no model by HuggingFaceProvider: neither folder nor revision counts")
        self.limit = self._limit()
        self._watch()
        stages = sorted(str(getattr(s, "value", s)) for s in self.guardrail.METADATA.stages)
        return {"stages": stages, "limit": self.limit, "versions": versions()}

    def _limit(self) -> int | None:
        """Most tokens that the model reads; None where nobody can be asked."""
        provider = getattr(self.guardrail, "provider", None)
        tokenizer = getattr(provider, "tokenizer", None)
        config = getattr(getattr(provider, "model", None), "config", None)
        told = [getattr(tokenizer, "model_max_length", None)]
        table = getattr(config, "max_position_embeddings", None)
        if isinstance(table, int):
            told.append(table - 2)  # RoBERTa's table has two places that no token takes
        known = [n for n in told if isinstance(n, int) and not isinstance(n, bool) and 0 < n < _UNBOUNDED]
        if not callable(tokenizer) or not known:
            return None
        writes = str(getattr(self.guardrail.METADATA.backend, "value", "")) == "local_decoder"
        return (
            min(known) // 2 if writes else min(known)
        )  # half is for the prompt round the text, and the reply

    def _watch(self) -> None:
        """Notice replies that end where no more tokens were allowed (any-guardrail PR 249)."""
        provider: Any = getattr(self.guardrail, "provider", None)
        generate = getattr(provider, "generate_chat", None)
        if generate is None:
            return

        def watched(*args: Any, max_new_tokens: int, **more: Any) -> Any:
            out = generate(*args, max_new_tokens=max_new_tokens, **more)
            written = out.data.get("completion_token_count")
            self.cut |= isinstance(written, int) and written >= max_new_tokens
            return out

        provider.generate_chat = watched

    def count(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Tokens of a text, special ones included."""
        tokenizer = self.guardrail.provider.tokenizer
        return {"tokens": len(tokenizer(asked["text"], truncation=False)["input_ids"])}

    def validate(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What the guardrail says of a text, or of a reply to it.

        Raises:
            TypeError: it gave several answers to one text.
        """
        from any_guardrail import AnyGuardrail

        self.cut = False
        out = AnyGuardrail.evaluate(
            self.name, self.guardrail, asked["text"], asked["reply"], **self.arguments
        )
        if isinstance(out, list):
            raise TypeError(f"{len(out)} answers to one text")
        return {
            "valid": out.valid,
            "score": out.score,
            "explanation": str(getattr(out, "explanation", None) or "")[:_LONGEST],
            "unparsed": bool((getattr(out, "extra", None) or {}).get("parse_failure")),
            "rewritten": getattr(out, "modified_text", None) is not None,
            "cut": self.cut,
        }


def main() -> None:
    """Answer questions until there are no more."""
    if sys.argv[1:] == ["--versions"]:
        print(json.dumps(versions()))  # noqa: T201
        return
    asked, told = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    holder = Holder()
    for line in asked:
        question = json.loads(line)
        try:
            answer = json.dumps({"id": question["id"], **getattr(holder, question["do"])(question)})
        except Exception as error:  # noqa: BLE001  # the other side says what it means, and blocks
            answer = json.dumps(
                {"id": question["id"], "error": f"{type(error).__name__}: {error}"[:_LONGEST]}
            )
        told.write(answer.encode() + b"\n")
        told.flush()


if __name__ == "__main__":
    main()
