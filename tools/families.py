"""The table of families: what Calibrant does on each is right, or refused by name.

    .venv/bin/python tools/families.py            all of them, then docs/families.md is written
    .venv/bin/python tools/families.py mamba      one family, printed

Every cell compares with a slow reference: one row at a time, whole, without memory, the model's own forward
pass. Training is compared by its gradient, and by the saved folder, opened again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from zoo import ZOO, build

from calibrant.attack.suffix.embedded import speak
from calibrant.attack.suffix.scorer import Candidates, Frame
from calibrant.core import CalibrantError, Chat, Quiet, Sampling
from calibrant.data.rows import Item, Items, Pair, Preferences
from calibrant.models.batching import batching
from calibrant.models.branches import Branches, pack, score, shares, tokenised
from calibrant.models.fit import Fit
from calibrant.models.lora import LoRA
from calibrant.models.model_facts import accepted
from calibrant.models.open_model import OpenModel
from calibrant.models.reward_model import open_reward
from calibrant.train.dpo import DPO, dpo
from calibrant.train.reward import RewardConfig, reward
from calibrant.understand.lens import Lens, lens

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
BEGIN, END = "<!-- families -->", "<!-- /families -->"
RIGHT = "right"
_CHATS = [Chat.ask(text) for text in ("so", "and then the mill", "x", "so", "how is the old barn", "two")]
_REPLIES = ["yes", "no, it is not", "ab", "well", "q", "mended long ago"]
_PAIRS = Preferences(rows=tuple(
    Pair(id=str(i), prompt=chat, chosen=_REPLIES[i], rejected=_REPLIES[5 - i])
    for i, chat in enumerate(_CHATS)
))  # fmt: skip
_ITEMS = Items(rows=tuple(
    Item(id=str(i), chat=chat, answer=reply)
    for i, (chat, reply) in enumerate(zip(_CHATS, _REPLIES, strict=True))
))  # fmt: skip
_CLOSE = 1e-3


class Row(NamedTuple):
    """One family's row of the table."""

    family: str
    memory: str
    drawn: str
    """How replies are generated: see ``models/batching.py``."""
    cells: tuple[str, ...]
    """One a column of ``COLUMNS``: 'right', or why it is refused."""


class WrongError(Exception):
    """A number that is not the reference's."""


def whole(model: OpenModel, ids: Sequence[int]) -> Tensor:
    """Log-probs (T, V) of one row, read whole; gradients as the caller set them."""
    module: Any = model.module
    out = module(input_ids=torch.tensor([list(ids)]), **accepted(module, use_cache=False))
    logits: Tensor = out.logits[0]
    return logits.double().log_softmax(-1)


def scored(model: OpenModel, prompt: Sequence[int], reply: Sequence[int]) -> Tensor:
    """Log-probs (N,) of the tokens of ``reply``."""
    table = whole(model, [*prompt, *reply])[len(prompt) - 1 : -1]
    return table.gather(-1, torch.tensor(list(reply))[:, None])[:, 0]


def generated(model: OpenModel, _: Path) -> None:
    """Greedy replies of rows that end at different steps, and several draws from one prompt."""
    most, prompts = 9, [model.prompt_ids(chat) for chat in _CHATS]
    with torch.no_grad():
        free = [_greedy(model, ids, most, ()) for ids in prompts]
        stops = (model.chat_tokens.stop_ids[0], free[0][2], free[1][5], free[4][4])
        slow = [_greedy(model, ids, most, stops) for ids in prompts]
        twin = OpenModel(model.module, model.tokenizer, identity=model.identity)
        twin.chat_tokens.stop_ids = stops
        found = twin.generate(_CHATS, Sampling(max_tokens=most))
        _same([list(c.ids or ()) for c in found], slow, "greedy tokens")
        drawn = twin.generate([_CHATS[1]] * 3 + [_CHATS[0]] * 2, Sampling(max_tokens=most, temperature=1.0))
        asked = [*prompts, *[prompts[1]] * 3, *[prompts[0]] * 2]
        for ids, completion in zip(asked, [*found, *drawn], strict=True):
            _near(
                torch.tensor(completion.logprobs),
                scored(model, ids, completion.ids or ()),
                "log-probs of draws",
            )


def logprobs(model: OpenModel, _: Path) -> None:
    """Log-probs of replies of many lengths."""
    asked, said = tokenised(model, _CHATS, _REPLIES)
    with torch.no_grad():
        for prompt, reply, found in zip(asked, said, model.logprobs(_CHATS, _REPLIES), strict=True):
            _near(torch.tensor(found.logprobs), scored(model, prompt, reply), "log-probs")


def attacked(model: OpenModel, _: Path) -> None:
    """Losses of suffixes and their gradient by the tokens, as GCG asks for them; the reply to embeddings."""
    asked, said = tokenised(model, _CHATS, _REPLIES)
    frame, rows = Frame(asked[1][:4], asked[1][7:], said[0]), torch.tensor([asked[4][:3], asked[4][3:6]])
    candidates = Candidates(model.module, frame)
    gradient, losses = candidates.gradient(rows[0]), candidates.losses(rows)[0]
    for number, suffix in enumerate(rows.tolist()):
        slow = -scored(model, [*frame.before, *suffix, *frame.after], frame.target).mean().detach()
        _near(losses[number : number + 1], slow[None], "losses of suffixes")
    table: Any = candidates.table
    ids = torch.tensor([[*frame.before, *rows[0].tolist(), *frame.after, *frame.target]])
    spelt = table(ids).detach().requires_grad_()
    module: Any = model.module
    out, most = module(inputs_embeds=1 * spelt, **accepted(module, use_cache=False)), len(frame.target)
    logits = out.logits[0, -most - 1 : -1].double()
    loss = torch.nn.functional.cross_entropy(logits, ids[0, -most:])
    start = len(frame.before)
    flow = torch.autograd.grad(loss, spelt)[0][0, start : start + rows.shape[1]]
    _near(gradient, flow @ table(torch.arange(table.num_embeddings)).detach().T, "the gradient by tokens")
    with torch.no_grad():
        said_back = speak(module, table(torch.tensor(asked[1])), 6, model.chat_tokens.stop_ids)
        _same(
            [list(said_back.ids)],
            [_greedy(model, asked[1], 6, model.chat_tokens.stop_ids)],
            "what embeddings say",
        )


def tuned(model: OpenModel, folder: Path, adapters: LoRA | None = None) -> None:
    """The gradient of a batch of pairs; then training, and the saved folder, opened again."""
    if adapters is None:
        _same_gradient(model)
    config = DPO(batch_size=3, lora=adapters, fit=Fit(lr=1e-2))
    found = dpo(model, _PAIRS, config, Quiet(work=folder)).model
    again = OpenModel.from_folder(folder / "artifacts" / "model")
    with torch.no_grad():
        ids = model.prompt_ids(_CHATS[1])
        _near(whole(again, ids), whole(found, ids), "the saved folder's numbers")
        if float((whole(found, ids) - whole(model, ids)).abs().max()) < 1e-3:
            raise WrongError("training changed nothing")


def adapted(model: OpenModel, folder: Path) -> None:
    """The same with adapters."""
    tuned(model, folder, LoRA(r=2))


def rewarded(model: OpenModel, folder: Path) -> None:
    """Scores of a trained reward model, as transformers reads its folder, one row at a time."""
    made: Any = reward(model, _PAIRS, config=RewardConfig(batch_size=3), run=Quiet(work=folder)).reward
    saved = folder / "artifacts" / "reward"
    opened: Any = open_reward(saved)
    alone: Any = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    asked, said = made.classifier.ids(_CHATS, _REPLIES)
    with torch.no_grad():
        slow = torch.cat([alone(torch.tensor([p + r])).logits[0] for p, r in zip(asked, said, strict=True)])
        _near(made.classifier.read_all(asked, said)[:, 0], slow, "scores")
        _near(opened.classifier.read_all(asked, said)[:, 0], slow, "the saved folder's scores")


def looked(model: OpenModel, _: Path) -> None:
    """The lens at the last layer is the model's own prediction; at the first it is another."""
    found = lens(model, _ITEMS, Lens(batch=4), Quiet()).metrics
    depth = sum(name.startswith("kl") for name in found)
    site, ids = f"blocks.{depth - 1}.hook_resid_post", model.prompt_ids(_CHATS[1])
    with torch.no_grad():
        stream = model.trace(model.encode([_CHATS[1]]), [site])[site]
        _near(
            model.unembed(stream)[0].double().log_softmax(-1), whole(model, ids), "the last layer's reading"
        )
    if not float(found["kl_to_final/layer_0"].value or 0) > 1e-3:
        raise WrongError("the first layer reads as the last does")


COLUMNS: dict[str, Callable[[OpenModel, Path], None]] = {
    "generate": generated, "logprobs": logprobs, "train.dpo": tuned, "with LoRA": adapted,
    "train.reward": rewarded, "understand.lens": looked, "attack.gcg": attacked,
}  # fmt: skip


def row(name: str) -> Row:
    """Try everything on one family.

    Raises:
        WrongError: a number is not the reference's.
        Exception: whatever else is neither right nor refused by name.
    """
    cells = []
    for attempt in COLUMNS.values():
        with TemporaryDirectory() as folder:
            try:
                attempt(build(name), Path(folder))
                cells.append(RIGHT)
            except CalibrantError as error:
                cells.append(_plain(error.message))
    try:
        drawn: str = batching(build(name).module).way
    except CalibrantError:
        drawn = "-"
    return Row(name, ZOO[name].memory, drawn, tuple(cells))


def table(rows: Iterable[Row]) -> str:
    """Markdown: a row a family, and below it what refusals say."""
    notes: dict[str, int] = {}
    lines = [
        "| Family | Kept of earlier tokens | Generation | "
        + " | ".join(f"`{c}`" if "." in c else c for c in COLUMNS)
        + " |",
        "| --- | --- | --- |" + " --- |" * len(COLUMNS),
    ]
    for family, memory, drawn, cells in rows:
        said = [c if c == RIGHT else f"refused [{notes.setdefault(c, len(notes) + 1)}]" for c in cells]
        lines.append(f"| {family} | {memory} | {drawn} | {' | '.join(said)} |")
    return "\n".join([*lines, "", *(f"{number}. {note}." for note, number in notes.items())]) + "\n"


def _plain(message: str) -> str:
    """What a refusal says, without the names of family and class, so that equal reasons are one note."""
    said = re.sub(r"'[^']*'|\b[A-Z]\w+(LMHeadModel|ForCausalLM)\b", "the model", message).partition(" (")[0]
    return said[0].upper() + said[1:]


def _greedy(model: OpenModel, ids: Sequence[int], most: int, stops: Sequence[int]) -> list[int]:
    row = list(ids)
    while len(row) - len(ids) < most and not (len(row) > len(ids) and row[-1] in stops):
        row.append(int(whole(model, row)[-1].argmax()))
    return row[len(ids) :]


def _same_gradient(model: OpenModel) -> None:
    asked, chosen = tokenised(model, [p.prompt for p in _PAIRS.rows], [p.chosen for p in _PAIRS.rows])
    _, rejected = tokenised(model, [p.prompt for p in _PAIRS.rows], [p.rejected for p in _PAIRS.rows])
    policy = model.copy()
    packed = pack(Branches(asked, [list(both) for both in zip(chosen, rejected, strict=True)]),
                  shared=not shares(policy.module))  # fmt: skip
    fast = score(policy.module, packed).sums().view(-1, 2)
    flow = _flow(policy, fast)
    slow = torch.stack([
        torch.stack([scored(policy, prompt, reply).sum() for reply in both])
        for prompt, *both in zip(asked, chosen, rejected, strict=True)
    ])  # fmt: skip
    _near(fast.detach(), slow.detach(), "sums of replies")
    _near(flow, _flow(policy, slow), "the gradient")


def _flow(policy: OpenModel, sums: Tensor) -> Tensor:
    """Gradient of the mean of -ln sigmoid((chosen - rejected) / 10) by all weights, as one vector."""
    loss = -torch.nn.functional.logsigmoid(0.1 * (sums[:, 0] - sums[:, 1])).mean()
    weights = [weight for weight in policy.module.parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat(
        [torch.zeros(w.numel()) if g is None else g.flatten() for g, w in zip(found, weights, strict=True)]
    )


def _near(found: Tensor, slow: Tensor, what: str) -> None:
    apart, scale = float((found.double() - slow.double()).abs().max()), 1e-6 + float(slow.abs().max())
    if not apart <= _CLOSE * scale:
        raise WrongError(f"{what}: off by {apart:.3g}, the largest is {scale:.3g}")


def _same(found: list[list[int]], slow: list[list[int]], what: str) -> None:
    if found != slow:
        raise WrongError(
            f"{what}: {sum(a != b for a, b in zip(found, slow, strict=True))} of {len(slow)} rows are wrong"
        )


def page(rows: Iterable[Row]) -> str:
    """The text of the page with a new table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{table(rows)}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    if names := sys.argv[1:]:
        sys.stdout.write(table(row(name) for name in names) + "\n")
    else:
        PAGE.write_text(page([row(name) for name in ZOO]), encoding="utf-8")
