"""A stand-in for any-guardrail 0.7.7: its surface, and every way to go wrong, by ``mode``."""

import contextlib
import ctypes
import math
import os
import sys
import time
from enum import StrEnum
from types import SimpleNamespace

from any_guardrail.providers.huggingface import HuggingFaceProvider


class GuardrailName(StrEnum):
    DEEPSET = "deepset"
    PAIR = "pair"
    REPLIES = "replies"
    HOSTED = "hosted"
    LLAMA_GUARD = "llama_guard"


class Output(SimpleNamespace):
    """As ``GuardrailOutput``; the real one lets nothing but a bool be 'valid', which nobody relies on."""

    def __init__(self, valid, score=None, explanation=None, extra=None, modified_text=None):
        super().__init__(
            valid=valid, score=score, explanation=explanation, extra=extra, modified_text=modified_text
        )


class Guardrail:
    def __init__(
        self, name, model_id="first", mode="words", limit=10**30, table=None, tokenizer=True, at=0.5
    ):
        if mode == "no load":
            raise ValueError("Only supports ['first']. Please use this path to instantiate model.")
        if mode == "exit on load":
            sys.exit(0)
        self.name, self.mode, self.at = name, mode, at
        stages = {"pair": ("input", "output"), "replies": ("output",), "deepset": ("input", "output")}
        backend = "local_decoder" if name == "llama_guard" else "local_encoder"
        self.METADATA = SimpleNamespace(
            stages=stages.get(name, ("input",)), backend=SimpleNamespace(value=backend)
        )
        if name != "hosted":
            self.provider = HuggingFaceProvider(limit, table)
            self.provider.load_model(model_id)
            if not tokenizer:
                del self.provider.tokenizer

    def validate(self, text, reply=None, **more):
        mode, tokenizer = self.mode, getattr(getattr(self, "provider", None), "tokenizer", None)
        seen = text if reply is None else f"{text} {reply}"
        if self.name == "llama_guard":
            words = self.provider.generate_chat(self.at_rest(text), max_new_tokens=3).data["generated_text"]
            return Output("unsafe" not in words, explanation=words)  # as 0.7.7 has it
        if tokenizer is not None:
            seen = " ".join(tokenizer(seen, truncation=True)["input_ids"][1:-1])  # silently
            table = self.provider.table
            if table is not None and len(tokenizer(seen)["input_ids"]) > table - 2:
                raise IndexError("index out of range in self")
        score = 0.9 if "zorble" in seen else 0.1
        if mode == "sleep":
            time.sleep(10**6)
        if mode == "die":
            os._exit(3)
        if mode == "crash":
            ctypes.string_at(0)
        if mode == "exit":
            sys.exit(0)
        if mode == "raise":
            raise RuntimeError("the fuse is gone")
        if mode == "print":
            print('{"id": "", "valid": true, "score": 0.0}')
            os.write(1, b"loading 100%\n")
            sys.stderr.write("careful\n" * 100_000)
        if mode == "noise":
            for pipe in range(3, 20):
                with contextlib.suppress(OSError):
                    os.write(pipe, b'{"id": "", "valid": true, "score": 0.0}\n')
        if mode == "endless":
            for pipe in range(3, 20):
                with contextlib.suppress(OSError):
                    for _ in range(64):
                        os.write(pipe, b"x" * 65_536)
        if mode == "ask":
            score = 0.1 if input("run this model's code? [y/N] ") else 0.2
        if mode == "seen":
            return Output(True, 0.1, f"{self.provider.loaded} {more}")
        return {
            "none": Output(None, 0.1),
            "text": Output("true", 0.1),
            "one": Output(1, 0.1),
            "no score": Output(
                "zorble" not in seen, explanation=" safe\n" if "zorble" not in seen else "unsafe"
            ),
            "nan": Output(True, math.nan),
            "nan, invalid": Output(False, math.nan),
            "inf": Output(True, -math.inf),
            "percent": Output(True, 50.0),
            "negative": Output(True, -0.1),
            "true score": Output(True, True),
            "worded score": Output(True, "0.1"),
            "list": [Output(True, 0.1)],
            "unparsed": Output(False, extra={"parse_failure": True}),
            "unparsed, valid": Output(True, 0.1, extra={"parse_failure": True}),
            "rewritten": Output(True, 0.1, modified_text="[REDACTED]"),
            "nothing": SimpleNamespace(),
            "no json": Output(True, object()),
        }.get(mode, Output(score < self.at, score))

    def at_rest(self, text):
        return {"long": "well this is unsafe", "safe": "safe"}.get(text, "unsafe S1")


class AnyGuardrail:
    @classmethod
    def create(cls, guardrail_name, **settings):
        return Guardrail(guardrail_name, **settings)

    @classmethod
    def evaluate(cls, guardrail_name, guardrail, prompt, response=None, **more):
        if response is not None and guardrail_name != "pair":
            raise ValueError(f"{guardrail_name}.validate() has no response/second-text argument")
        return guardrail.validate(prompt, response, **more)
