"""The search behind ``attack.gcg``: from a slot in a prompt to the suffix that makes a model say a reply.

It does nothing with its result; see ``calibrant.attack.gcg`` for the papers and for where it departs from
nanoGCG. A ``State`` is all that a search remembers between two steps, so that it can be stored and taken up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from calibrant.attack.suffix.scorer import Candidates
from calibrant.attack.suffix.slot import Slot, alone, in_context
from calibrant.core import CapabilityError, Chat, Frozen, Goal, InputError, OpenLM, Sampling
from calibrant.maths.gcg import agreement, kept, sample

_CHARACTERS = (*".,!?;:()[]{}@#$%&*wxyz",)
"""What further entries of a buffer begin with, as in nanoGCG."""


class Probe(Frozen):
    """How a draft model sifts candidates."""

    share: int = Field(default=16, ge=1)
    """One candidate in so many is read by both models, to see how well they agree."""
    reduction: int = Field(default=8, ge=1)
    """R: the target reads (1 - agreement) B / R of the candidates that the draft likes best."""


class GCG(Frozen):
    """What is optimised, and how long."""

    reply: str = Field(default="sure, here is how to do it:", min_length=1)
    """Target string that the reply should begin with; {request} is the goal's text, {0}, {1}, ... its
    spans."""
    suffix: str = Field(default=" x" * 20, min_length=1)
    """The initial suffix, appended to the request unchanged: mind its first space."""
    steps: int = Field(default=250, ge=0)
    """Most steps; each replaces tokens of the suffix once."""
    width: int = Field(default=512, ge=1)
    """Candidates in a step."""
    top_k: int = Field(default=256, ge=1)
    """Tokens with the best gradient that are proposed for each position."""
    replace: int = Field(default=1, ge=1)
    """Tokens that a candidate replaces."""
    buffer: int = Field(default=0, ge=0)
    """Size of the buffer of best suffixes to continue from; 0 continues from the last, even where it is
    worse."""
    mellowmax: float | None = Field(default=None, gt=0)
    """Alpha of a mellowmax over the reply's logits in place of the mean cross-entropy; None is the latter."""
    ascii: bool = True
    """Sample only tokens of printable ASCII characters."""
    stop: bool = True
    """Stop when greedy decoding produces the target string."""
    exact: bool = False
    """Follow nanoGCG's trajectory: its tokenising, its filter and its choices."""
    probe: Probe = Probe()
    """Used where a draft model is given."""
    block: int = Field(default=10, ge=1)
    """Steps between checkpoints: the most that a kill loses."""
    sampling: Sampling = Sampling()
    """How the target's replies are sampled."""


class Found(NamedTuple):
    """What a search came to."""

    ids: tuple[int, ...]
    """Of the best suffix."""
    text: str
    """What it spells."""
    loss: float | None
    """Its loss; None where no step was made."""
    losses: tuple[float, ...]
    """Loss of the suffix that each step chose."""
    reached: bool
    """Whether greedy decoding says the reply (by the model's probabilities of it, not yet by generating)."""


class State(Frozen):
    """A search between two steps, as it is stored."""

    ids: tuple[int, ...]
    """Where it stands."""
    best: tuple[int, ...]
    """The best suffix so far."""
    loss: float | None
    """Its loss."""
    losses: tuple[float, ...] = ()
    """Loss of each step's choice."""
    buffer: tuple[tuple[float, tuple[int, ...]], ...]
    """(loss, ids), best first."""
    reached: bool = False
    """Whether it may stop."""
    rng: str
    """State of the generator, as hex digits."""


def optimise(
    model: OpenLM,
    chat: Chat,
    reply: str,
    config: GCG,
    generator: torch.Generator,
    draft: OpenLM | None = None,
) -> Found:
    """Search for a suffix to ``chat`` after which ``model`` says ``reply``.

    Args:
        model: whose weights are read; left as they are.
        chat: the suffix goes behind its last turn.
        reply: as it stands; nothing is filled in.
        config: see ``GCG``; ``sampling`` and ``block`` play no part.
        generator: on the model's device; one seed, one trajectory.
        draft: a smaller model with the same tokenizer, which sifts candidates.

    Raises:
        InputError: the tokenizer does not give the suffix or any candidate back, or the context is too small.
        CapabilityError: the draft's tokenizer is another.
        NumericalError: a loss is NaN or infinite.
    """
    search = Search(model, chat, reply, config, draft)
    state = search.begin(generator)
    while not over(state, config):
        state = search.step(state, generator)
    return found(search.slot, state)


class Search:
    """One search's frozen parts: slot, scorers, settings."""

    def __init__(
        self, model: OpenLM, chat: Chat, reply: str, config: GCG, draft: OpenLM | None = None
    ) -> None:
        """See ``optimise``."""
        cut = alone if config.exact else in_context
        self.slot = cut(model, chat, config.suffix, reply, ascii_only=config.ascii)
        self.scorer = Candidates(model.module, self.slot.frame, mellow=config.mellowmax)
        self.config = config
        self.draft = None
        if draft is not None:
            draft_slot = cut(draft, chat, config.suffix, reply, ascii_only=config.ascii)
            tokenizers = [lm.identity.parts.get("tokenizer") for lm in (model, draft)]
            if tokenizers[0] != tokenizers[1] or draft_slot.frame != self.slot.frame:
                raise CapabilityError(
                    f"draft '{draft.identity.name}' and '{model.identity.name}' read other token ids",
                    hint="probe sampling needs a draft model with the same tokenizer and chat template",
                )
            self.draft = Candidates(draft.module, draft_slot.frame, mellow=config.mellowmax)
        self._model = model

    @property
    def flops(self) -> float:
        """Spent so far."""
        return self.scorer.flops + (self.draft.flops if self.draft else 0.0)

    def begin(self, generator: torch.Generator) -> State:
        """The state before the first step."""
        rows = self._tensor([self.slot.ids])
        if self.config.buffer > 1:
            rows = torch.cat([rows, self._others(generator)])
        losses = self.scorer.losses(rows)[0].tolist()
        buffer = sorted(zip(losses, map(tuple, rows.tolist()), strict=True), key=lambda entry: entry[0])
        loss, ids = buffer[0]
        return State(
            ids=ids,
            best=ids,
            loss=None if self.config.exact else loss,  # nanoGCG returns what a step chose, never the start
            buffer=tuple(buffer),
            rng=_hex(generator),
        )

    def step(self, state: State, generator: torch.Generator) -> State:
        """One exchange."""
        config, ids = self.config, self._tensor(state.ids)
        rows = sample(
            ids,
            self.scorer.gradient(ids),
            self.slot.forbidden,
            width=config.width,
            top_k=config.top_k,
            replace=config.replace,
            generator=generator,
        )
        rows = rows[self.slot.survives(rows)]
        if not len(rows):
            raise InputError(
                f"none of {config.width} candidates is what its own text is tokenised to",
                hint="begin with another 'suffix', or keep to ascii; this tokenizer may not round-trip",
            )
        loss, pick, reached = self._choose(rows, ids, generator)
        buffer = _added(state.buffer, loss, tuple(pick.tolist()), config.buffer)
        better = state.loss is None or loss < state.loss
        ends = reached and config.stop and not config.exact
        return State(
            ids=buffer[0][1],
            best=tuple(pick.tolist()) if ends else buffer[0][1] if better else state.best,
            loss=loss if better or ends else state.loss,
            losses=(*state.losses, loss),
            buffer=buffer,
            reached=reached,
            rng=_hex(generator),
        )

    def _choose(self, rows: Tensor, near: Tensor, generator: torch.Generator) -> tuple[float, Tensor, bool]:
        """The candidate to go on with: its loss, its ids (n,), and whether the reply is reached."""
        if self.draft is not None:
            rows = rows[self._sifted(rows, near, generator)]
        losses, reached = self.scorer.losses(rows, near)
        if self.config.exact:
            place = int(losses.argmin())
            return float(losses[place]), rows[place], bool(reached.any())
        if self.config.stop and bool(reached.any()):
            losses = losses.where(reached, torch.inf)
        place = int(losses.argmin())
        return float(losses[place]), rows[place], bool(reached[place])

    def _sifted(self, rows: Tensor, near: Tensor, generator: torch.Generator) -> Tensor:
        """Places of the candidates that the target has to read: the probes, and the draft's favourites."""
        assert self.draft is not None
        width, probe = len(rows), self.config.probe
        order = torch.randperm(width, generator=generator, device=rows.device)
        probes = order[: max(1, width // probe.share)]
        guessed = self.draft.losses(rows, near)[0]
        losses = self.scorer.losses(rows[probes], near)[0]
        count = kept(agreement(losses, guessed[probes]), width, probe.reduction)
        favourites = guessed.topk(count, largest=False).indices
        return torch.cat([probes, favourites[~torch.isin(favourites, probes)]])

    def _others(self, generator: torch.Generator) -> Tensor:
        """Random entries (buffer - 1, n) for a buffer to begin with; in context, those that survive."""
        spelt = [self._alone(character) for character in _CHARACTERS]
        singles = self._tensor([ids[0] for ids in spelt if len(ids) == 1])
        if not len(singles):
            raise InputError("no punctuation mark is a token of its own", hint="set buffer = 0 or 1")
        shape = (self.config.buffer - 1, len(self.slot.ids))
        picks = torch.randint(0, len(singles), shape, generator=generator, device=singles.device)
        rows = singles[picks]
        return rows if self.config.exact else rows[self.slot.survives(rows)]

    def _alone(self, character: str) -> list[int]:
        if not self.config.exact:
            return self._model.reply_ids(character)
        ids: list[int] = self._model.tokenizer(character, add_special_tokens=False)["input_ids"]
        return ids

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.scorer.device)


def wished(template: str, goal: Goal) -> str:
    """The beginning that a reply to ``goal`` is wished to have.

    Raises:
        InputError: the template names a span that the goal does not have.
    """
    text = template.replace("{request}", goal.text)
    for place, span in enumerate(goal.spans):
        text = text.replace(f"{{{place}}}", span)
    missing = re.search(r"\{\d+\}", text)
    if missing:
        raise InputError(
            f"goal '{goal.id}' has {len(goal.spans)} spans, and the reply asks for {missing[0]}",
            hint="name the words that carry the meaning in the goal's 'spans', or leave them out of 'reply'",
        )
    return text


def over(state: State, config: GCG) -> bool:
    """Whether the search ends here."""
    return len(state.losses) >= config.steps or (config.stop and state.reached)


def found(slot: Slot, state: State) -> Found:
    """What a search in ``slot`` came to."""
    return Found(state.best, slot.text(state.best), state.loss, state.losses, state.reached)


def restored(state: State, generator: torch.Generator) -> torch.Generator:
    """``generator`` as it was when ``state`` was made."""
    generator.set_state(torch.frombuffer(bytearray.fromhex(state.rng), dtype=torch.uint8))
    return generator


def _hex(generator: torch.Generator) -> str:
    return generator.get_state().numpy().tobytes().hex()


def _added(
    buffer: Sequence[tuple[float, tuple[int, ...]]], loss: float, ids: tuple[int, ...], size: int
) -> tuple[tuple[float, tuple[int, ...]], ...]:
    """nanoGCG's buffer: a newcomer takes the place of the worst if it is better; best first."""
    if size == 0:
        return ((loss, ids),)
    if not loss < buffer[-1][0]:
        return tuple(buffer)
    rest = buffer if len(buffer) < size else buffer[:-1]
    return tuple(sorted((*rest, (loss, ids)), key=lambda entry: entry[0]))
