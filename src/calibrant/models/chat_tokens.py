"""From chats to token ids and back, for any Hugging Face tokenizer.

A tokenizer with a chat template uses it. One without gets the *plain* format: a lone user message is
its content as it stands, so that a base model simply continues it (empty content = the start of a
text, BOS alone); several turns are written one under the other, each as ``Role:``, a newline and the
content, and the reply follows the last ``Assistant:`` line. The newline keeps the reply clear of the
question whether it begins with a space. A chat that ends with an assistant turn is continued from there:
that turn is the beginning of the reply (prefill).

A reply is tokenised as it stands in the text: where it continues a prompt, not as a text of its own.
SentencePiece-like tokenizers put a space before every text ("ime" alone becomes "_ime"), so that
tokenising a reply alone would score words that the model never wrote. Such tokenizers are given a
newline first, and its ids are cut off again; decoding does the same, and keeps a leading space that
the model wrote. Prompt ids and reply ids are joined as ids and never merge across the boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calibrant.core.errors import InputError
from calibrant.core.lm import Chat
from calibrant.core.reasoning import Parted, inside, part, speaks_of_reasoning
from calibrant.models.foreign import no_panic
from calibrant.models.template_check import ANSWERED, ASKED, REPLY, Differences, differences
from calibrant.models.templates import chat_text

_ANCHOR = "\n"  # put before a reply so that it is not the start of a text


class ChatTokens:
    """Encodes prompts and replies; ``end_id`` closes a reply, any of ``stop_ids`` ends generation.

    ``behind``: ids that the chat template writes behind a last reply. ``differences``: what it writes
    otherwise than prompt, reply and end token, see ``template_check.py``.
    """

    def __init__(
        self, tokenizer: Any, more_stop_ids: Sequence[int] = (), embeddings: int | None = None
    ) -> None:
        """Read how ``tokenizer`` writes chats.

        Args:
            tokenizer: that of the model.
            more_stop_ids: what the generation config names beside the tokenizer's own end token.
            embeddings: how many ids the model can read; None where nobody knows.

        Raises:
            InputError: the tokenizer has no end-of-sequence token, or one that the model cannot read.
        """
        if tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has no end-of-sequence token, so no reply could ever end",
                hint="set tokenizer.eos_token before opening the model",
            )
        self.tokenizer = tokenizer
        self.embeddings = embeddings
        self.stop_ids = tuple(dict.fromkeys((int(tokenizer.eos_token_id), *more_stop_ids)))
        self._prefix = self._start_ids()
        self._anchor = self._anchor_ids()
        self._marks = any(speaks_of_reasoning(token) for token in tokenizer.all_special_tokens)
        self.end_id = self._end_of_turn()
        self._check([self.end_id])
        self.differences = self._compared()
        self.behind = self._behind()

    def prompt_text(self, chat: Chat) -> str:
        """The text that stands before the reply.

        Raises:
            InputError: the chat has no turn, holds half a surrogate pair, or the template refuses it.
        """
        if not chat.messages:
            raise InputError("the chat has no turns", hint="give at least one user message")
        if any(not _is_text(message.content) for message in chat.messages):
            raise InputError(
                "the chat holds half a surrogate pair, which no tokenizer can read",
                hint="decode the text again, with errors='replace'",
            )
        if not self.tokenizer.chat_template:
            return plain_text(chat)
        if chat.messages[-1].role == "assistant":
            return self._begun(chat)
        return self._render(chat, add_generation_prompt=True)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of prompt texts: never two BOS, and never empty, since a model needs one token to begin."""
        start = [] if self.tokenizer.chat_template else self._prefix
        rows = []
        for ids in self._ids(texts):
            whole = ids if ids[: len(start)] == start else [*start, *ids]
            rows.append(whole or [self._first_id()])
            self._check(rows[-1][: max(1, len(start))])  # the rest was checked when it was spelt
        return rows

    def replies(self, texts: Sequence[str], opens: Sequence[bool]) -> list[list[int]]:
        """Ids of reply texts, without the end token; ``opens`` marks those that begin a text.

        Special tokens spelt out in a reply are ordinary characters here: decoding never yields any.
        """
        anchors = ["" if first or not self._anchor else _ANCHOR for first in opens]
        whole = self._ids([a + t for a, t in zip(anchors, texts, strict=True)], split_special_tokens=True)
        return [ids[len(self._anchor) :] if a else ids for a, ids in zip(anchors, whole, strict=True)]

    def text(self, ids: Sequence[int], *, opens: bool = False) -> str:
        """The reply that ``ids`` spell, special tokens left out; the inverse of ``replies``."""
        if opens or not self._anchor:
            return self._decode(ids)
        return self._decode([*self._anchor, *ids])[len(self._decode(self._anchor)) :]

    def parted(self, ids: Sequence[int], prompt: str, chat: Chat) -> Parted:
        """Reasoning and reply that ``ids`` spell after ``prompt``, the text that ``chat`` makes."""
        begun = chat.messages[-1].content if chat.messages[-1].role == "assistant" else ""
        opened = inside(prompt[: len(prompt) - len(begun)], begun)
        text = self.text(ids, opens=self.opens(chat))
        if not self._marks:
            return part(text, opened)
        parts = part(self._decode(ids, skip_special_tokens=False), opened)
        if parts.reasoning is None:
            return Parted(None, text)
        return parts._replace(reasoning=self._plain(parts.reasoning), reply=self._plain(parts.reply))

    def opens(self, chat: Chat) -> bool:
        """Whether the reply to ``chat`` is the first text of the sequence: a plain, empty prompt."""
        return not self.tokenizer.chat_template and plain_text(chat) == ""

    def _ids(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        """Ids of many texts, no special tokens added."""
        if not texts:
            return []
        options = {"add_special_tokens": False, "return_attention_mask": False, **options}
        with no_panic("the tokenizer gives up on a text"):
            rows: list[list[int]] = self.tokenizer(list(texts), **options)["input_ids"]
        for ids in rows:
            self._check(ids)
        return rows

    def _check(self, ids: Sequence[int]) -> None:
        """Refuse ids that the model has no embedding for: tokens that were added without one."""
        highest = max(ids, default=0)
        if self.embeddings is not None and highest >= self.embeddings:
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise InputError(
                f"token {token!r} has the id {highest}, but the model has {self.embeddings} embeddings",
                hint="resize the model's embeddings, or take the tokenizer that it was trained with",
            )

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
        with no_panic("the tokenizer cannot spell some ids"):
            return str(self.tokenizer.decode(list(ids), **options))

    def _plain(self, text: str) -> str:
        """``text`` without the special tokens spelt out in it."""
        for token in self.tokenizer.all_special_tokens:
            text = text.replace(token, "")
        return text.strip()

    def _render(self, chat: Chat, *, add_generation_prompt: bool) -> str:
        turns = [{"role": m.role, "content": m.content} for m in chat.messages]
        text = chat_text(self.tokenizer, turns, add_generation_prompt=add_generation_prompt)
        if not _is_text(text):
            raise InputError(
                "the chat template writes half a surrogate pair, which no tokenizer can read",
                hint="fix chat_template.jinja",
            )
        return text

    def _begun(self, chat: Chat) -> str:
        """A chat that ends inside the reply: the prompt, then what the model has been made to say.

        The prompt with the reply's beginning behind it, which is what every template writes that puts nothing
        between the two; a template that trims or moves replies would say something else here.
        """
        *before, reply = chat.messages
        if not before:
            raise InputError(
                "the chat holds nothing but the beginning of a reply", hint="put a user message before it"
            )
        return self._render(Chat(messages=tuple(before)), add_generation_prompt=True) + reply.content

    def _first_id(self) -> int:
        """The token that stands for the start of a text where the prompt has none."""
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)

    def _start_ids(self) -> list[int]:
        """What the tokenizer itself puts before every text: usually BOS, or nothing."""
        bare = self._ids(["a"])[0]
        full: list[int] = self.tokenizer("a")["input_ids"]
        places = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
        return full[: places[0]] if places else []

    def _anchor_ids(self) -> list[int]:
        """Ids of the anchor, or [] when the tokenizer spells a text the same wherever it stands."""
        anchor, alone, after = self._ids([_ANCHOR, "a", _ANCHOR + "a"])
        moved = after[: len(anchor)] == anchor and after[len(anchor) :] != alone
        return anchor if moved else []

    def _end_of_turn(self) -> int:
        """The stop token that the chat template writes after a reply, else the tokenizer's own."""
        if self.tokenizer.chat_template:
            question = Chat.ask("a")
            answered = self._render(question.then("assistant", "b"), add_generation_prompt=False)
            prompt, whole = self._ids([self._render(question, add_generation_prompt=True), answered])
            for token in whole[len(prompt) :]:
                if token in self.stop_ids:
                    return token
        return self.stop_ids[0]

    def _behind(self) -> list[int]:
        """Ids that the template writes behind a last reply, all of them; without one the end token."""
        if not self.tokenizer.chat_template:
            return [self.end_id]
        return self._ids([self._render(ANSWERED, add_generation_prompt=False).rpartition(REPLY)[2]])[0]

    def _compared(self) -> Differences:
        """What the template writes otherwise than prompt + reply + end token; none without a template."""
        if not self.tokenizer.chat_template:
            return Differences()
        prompt = self._render(ASKED, add_generation_prompt=True)
        bare, whole = (self._render(chat, add_generation_prompt=False) for chat in (ASKED, ANSWERED))
        return differences(
            prompt, bare, whole, self._decode([self.end_id], skip_special_tokens=False).strip()
        )


def _is_text(text: str) -> bool:
    """Whether ``text`` has a UTF-8 form."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def plain_text(chat: Chat) -> str:
    """The plain format of a chat; see the module's docstring."""
    if len(chat.messages) == 1 and chat.messages[0].role == "user":
        return chat.messages[0].content
    if chat.messages and chat.messages[-1].role == "assistant":
        return plain_text(Chat(messages=chat.messages[:-1])) + chat.messages[-1].content
    turns = [f"{m.role.capitalize()}:\n{m.content}\n" for m in chat.messages]
    return "".join([*turns, "Assistant:\n"])
