"""Calibrant's models as a provider of Inspect: ``inspect eval TASK --model calibrant/testbed-base``.

``calibrant/testbed-NAME`` is ``testbed:model/NAME``; any other name is a reference or a folder, as a study
writes it. The name in the log ends with the identity's digest, and a name given with one is held to it.
Calls that arrive within 5 ms share a batch, and the batch never changes a reply. Log-probs are those of the
tokens that were drawn. What is not served (tools, images, stop sequences ...) is refused, not ignored.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
)
from inspect_ai.model import Logprob as Token
from inspect_ai.model import Logprobs as Tokens
from inspect_ai.tool import ToolChoice, ToolInfo

from calibrant.app.inspect_batching import MOST, Batcher
from calibrant.app.references.openers import Openers
from calibrant.core import LM, Chat, Completion, ConfigError, InputError, Message, OpenLM, Sampling, digest
from calibrant.evals.judging import tokens
from calibrant.ledger import Ledger

_PIN = "@sha256:"
_SERVED = {"max_tokens", "temperature", "top_p", "seed", "logprobs"}
_ELSEWHERE = {
    "max_retries", "timeout", "attempt_timeout", "max_connections", "adaptive_connections", "system_message",
    "cache_prompt", "cache", "batch", "max_tool_output", "internal_tools", "parallel_tool_calls",
    "reasoning_history", "modalities",
}  # fmt: skip
"""Settings that Inspect itself heeds, or that have no meaning without a server or tools."""
_STOPS: dict[str, StopReason] = {"eos": "stop", "length": "max_tokens", "blocked": "content_filter"}


class _Call(NamedTuple):
    """One reply that is wanted."""

    chat: Chat
    sampling: Sampling


class CalibrantAPI(ModelAPI):
    """A local model, or whatever else a reference names."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),
        ledger: str = ".calibrant",
        **unknown: Any,
    ) -> None:
        """Open the model.

        Raises:
            InputError: there is no such model, or it is not the one that the name is pinned to.
            ConfigError: a model argument that there is not.
        """
        if unknown:
            raise ConfigError(
                f"calibrant/{model_name}: no model argument '{sorted(unknown)[0]}'",
                hint="the only one is -M ledger=FOLDER; models are named by their reference",
            )
        name, _, pin = model_name.partition(_PIN)
        opened = Openers(Ledger(Path(ledger))).open(reference_of(name), LM)
        if pin and not opened.digest.startswith(pin):
            raise InputError(
                f"'{name}' is not the model that was measured: its digest begins {opened.digest[:12]}, "
                f"not {pin[:12]}",
                hint=f"leave '{_PIN}{pin[:12]}' out to use the model as it is now",
            )
        self.lm: LM = opened.load()
        self._open = self.lm if isinstance(self.lm, OpenLM) else None
        self.identity = opened.digest
        super().__init__(f"{name}{_PIN}{opened.digest[:12]}", base_url, api_key, [], config)
        self.batcher: Batcher[_Call, Completion] = Batcher(self._replies)
        self._drawn: Counter[str] = Counter()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """One reply; a chat that cannot be answered raises, so that its sample is an error, not a score."""
        _check(tools, config)
        chat = chat_of(input)
        completion = await self.batcher.result(_Call(chat, self._sampling(chat, config)))
        if completion.stop == "error":
            raise InputError(completion.error or "the model gave no reply and no reason")
        return self._output(chat, completion, bool(config.logprobs))

    def _sampling(self, chat: Chat, config: GenerateConfig) -> Sampling:
        """As configured; a chat that is asked again (another epoch) draws anew, and the same on every run."""
        wanted = Sampling(
            max_tokens=config.max_tokens or Sampling().max_tokens,
            temperature=config.temperature or 0.0,
            top_p=1.0 if config.top_p is None else config.top_p,
            seed=config.seed or 0,
        )
        if wanted.temperature == 0:
            return wanted
        key = digest([chat, wanted])
        again, self._drawn[key] = self._drawn[key], self._drawn[key] + 1
        if not again:
            return wanted
        return wanted.model_copy(update={"seed": int(digest([wanted.seed, again])[:12], 16)})

    def _replies(self, calls: list[_Call]) -> list[Completion]:
        """One call of the model for each way of sampling."""
        replies: dict[int, Completion] = {}
        for sampling in dict.fromkeys(call.sampling for call in calls):
            places = [place for place, call in enumerate(calls) if call.sampling == sampling]
            found = self.lm.generate([calls[place].chat for place in places], sampling)
            replies.update(zip(places, found, strict=True))
        return [replies[place] for place in range(len(calls))]

    def _output(self, chat: Chat, completion: Completion, logprobs: bool) -> ModelOutput:
        content: str | list[Content] = completion.text
        if completion.reasoning is not None:
            content = [ContentReasoning(reasoning=completion.reasoning), ContentText(text=completion.text)]
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(content=content, model=self.model_name, source="generate"),
            stop_reason=_STOPS.get(completion.stop, "unknown"),
            logprobs=self._tokens(completion) if logprobs else None,
        )
        read = len(self._open.prompt_ids(chat)) if self._open is not None else 0
        made = tokens(completion, 0)
        return ModelOutput(
            model=self.model_name,
            choices=[choice],
            usage=ModelUsage(input_tokens=read, output_tokens=made, total_tokens=read + made),
        )

    def _tokens(self, completion: Completion) -> Tokens:
        """The tokens that were drawn, stop token included, each with its own log-prob."""
        if completion.ids is None or completion.logprobs is None or self._open is None:
            raise ConfigError(
                f"'{self.model_name}' gives no log-probs", hint="leave logprobs out, or use local weights"
            )
        words = [self._open.tokenizer.decode([one]) for one in completion.ids]
        pairs = zip(words, completion.logprobs, strict=True)
        return Tokens(content=[Token(token=word, logprob=value) for word, value in pairs])

    def max_connections(self) -> int:
        """As many as fit into one batch."""
        return MOST

    def max_tokens(self) -> int | None:
        """What a reply may have where nobody says."""
        return Sampling().max_tokens

    def connection_key(self) -> str:
        """Models do not share connections."""
        return self.model_name

    async def count_text_tokens(self, text: str) -> int:
        """By the model's own tokenizer, where there is one."""
        return len(self._open.reply_ids(text)) if self._open is not None else len(text.split())


def reference_of(name: str) -> str:
    """The reference that a model's name in Inspect stands for."""
    if name.startswith("testbed-"):
        return f"testbed:model/{name.removeprefix('testbed-')}"
    return name


def chat_of(messages: list[ChatMessage]) -> Chat:
    """A chat of text alone.

    Raises:
        InputError: an image, a tool's message, or another part that is no text.
    """
    turns = []
    for message in messages:
        role = message.role
        if role == "tool":
            raise InputError("this provider serves no tools, and the chat holds a tool's message")
        parts = message.content if isinstance(message.content, list) else []
        odd = [part.type for part in parts if part.type not in ("text", "reasoning")]
        if odd:
            raise InputError(f"this provider reads text, and a message holds a part of type '{odd[0]}'")
        turns.append(Message(role=role, content=message.text))
    return Chat(messages=tuple(turns))


def _check(tools: list[ToolInfo], config: GenerateConfig) -> None:
    """Refuse what would be ignored."""
    if tools:
        raise ConfigError("this provider serves no tools", hint="use a task whose solver calls none")
    given = config.model_dump(exclude_none=True)
    odd = sorted(
        given.keys() - _SERVED - _ELSEWHERE - ({"num_choices"} if given.get("num_choices") == 1 else set())
    )
    if odd:
        raise ConfigError(
            f"this provider does not heed '{odd[0]}'",
            hint=f"leave it out; served are: {', '.join(sorted(_SERVED))}",
        )
