"""Calibrant's models in lm-eval, under lm-eval's own command line.

    python -m calibrant.evals.lm_eval --model_args pretrained=testbed:model/base --tasks FOLDER

``pretrained`` is a reference as a study writes it (a folder, ``hf:NAME@COMMIT``); the rest is lm-eval's. A
log-likelihood is that of ``OpenModel.logprobs`` token for token, whatever the batch. A text that has no room
in the model is refused, where lm-eval's own backend cuts it. The results name the model's identity, and the
ids of the first prompt that it read, so that a wrong start token or template can be seen.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from calibrant.core.errors import ConfigError
from calibrant.core.lm import OpenLM, Sampling
from calibrant.evals.text_scores import Scorer
from calibrant.models.open_model import OpenModel

NAME = "calibrant"
"""What the backend is called in lm-eval: ``--model calibrant``."""
_HEEDED = {"until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature", "top_p"}


class Instance(Protocol):
    """A request of lm-eval's."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Context and continuation, text alone, or context and settings."""
        ...


def sampling_of(given: dict[str, Any]) -> tuple[Sampling, tuple[str, ...]]:
    """Sampling and stop texts of a request's settings.

    Raises:
        ConfigError: a setting that would not be heeded.
    """
    odd = sorted(given.keys() - _HEEDED)
    if odd:
        raise ConfigError(
            f"'{odd[0]}' is not heeded",
            hint=f"leave it out of generation_kwargs; heeded: {', '.join(sorted(_HEEDED))}",
        )
    until = given.get("until") or ()
    temperature = float(given.get("temperature") or 0.0) if given.get("do_sample") else 0.0
    return Sampling(
        max_tokens=int(given.get("max_gen_toks") or given.get("max_new_tokens") or 256),
        temperature=temperature,
        top_p=float(given.get("top_p") or 1.0),
    ), (until,) if isinstance(until, str) else tuple(until)


def backend(opener: Callable[[str], OpenLM]) -> type[Any]:
    """lm-eval's model class over ours; ``opener`` opens what ``pretrained`` names.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    base: Any = _lm_eval("lm_eval.api.model").TemplateLM
    windows: Any = _lm_eval("lm_eval.utils")

    class CalibrantLM(base):  # type: ignore[misc]
        """lm-eval's questions, put to a ``Scorer``."""

        def __init__(
            self,
            pretrained: str,
            batch_size: Any = None,
            max_batch_size: Any = None,
            device: Any = None,
            **more: Any,
        ) -> None:
            super().__init__()
            if more:
                raise ConfigError(
                    f"no model argument '{sorted(more)[0]}'", hint="the only one is pretrained=REFERENCE"
                )
            model = opener(pretrained)
            if not isinstance(model, OpenModel):
                raise ConfigError(
                    f"'{pretrained}' has no weights here", hint="log-likelihoods need local weights"
                )
            self.scorer = Scorer(model)
            self.tokenizer = model.tokenizer

        @property
        def eot_token_id(self) -> int:
            return int(self.scorer.model.tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            bos = self.scorer.model.tokenizer.bos_token_id
            return self.eot_token_id if bos is None else int(bos)

        @property
        def tokenizer_name(self) -> str:
            return self.scorer.model.identity.name.replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return self.scorer.ids(string, start=add_special_tokens is not False)

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            found = self.scorer.likelihoods([(context, reply) for _, context, reply in requests])
            return [(one.total, one.greedy) for one in found]

        def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
            totals = []
            for request in requests:
                ids = self.tok_encode(request.args[0], add_special_tokens=False)
                room = self.scorer.model.max_length or max(1, len(ids))
                parts = windows.get_rolling_token_windows(ids, self.prefix_token_id, room, 1)
                pairs = [windows.make_disjoint_window(part) for part in parts]
                totals.append(sum(one.total for one in self.scorer.likelihoods(pairs)))
            return totals

        def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
            rows = []
            for request in requests:
                context, given = request.args
                rows.append((self.tok_encode(context), *sampling_of(dict(given))))
            return self.scorer.continuations(rows)

        def get_model_info(self) -> dict[str, Any]:
            """What the results tell of the model."""
            model = self.scorer.model
            return {
                "calibrant_identity": model.identity.digest,
                "calibrant_parts": dict(model.identity.parts),
                "first_prompt_ids": list(self.scorer.first_prompt),
            }

    return CalibrantLM


def main(argv: Sequence[str], opener: Callable[[str], OpenLM]) -> None:
    """Register the backend and hand the line to lm-eval's own command.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    made = backend(opener)
    _lm_eval("lm_eval.api.registry").register_model(NAME)(made)
    sys.argv = ["lm-eval", *command_line(argv)]
    _lm_eval("lm_eval.__main__").cli_evaluate()


def command_line(argv: Sequence[str]) -> list[str]:
    """lm-eval's words: ``run`` where no command is named, and our backend where no model is."""
    command, *rest = argv if list(argv[:1]) in (["run"], ["ls"], ["validate"]) else ["run", *argv]
    named = any(word == "--model" or word.startswith("--model=") for word in rest)
    ours = [] if named or command != "run" else ["--model", NAME]
    return [command, *ours, *rest]


def _lm_eval(module: str) -> Any:
    """A module of lm-eval, imported when it is needed."""
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "lm-eval is not installed",
            hint="pip install lm-eval, in this environment; Calibrant needs no extra for it",
        )
    return importlib.import_module(module)


if __name__ == "__main__":
    # As a command this file is a door: what opens references lies above it, and is not imported otherwise.
    importlib.import_module("calibrant.app.lm_eval_command").run()
