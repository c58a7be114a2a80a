"""KTO (Kahneman-Tversky optimisation): unpaired binary feedback, thumbs up or down (2402.01306).

Where this departs from common trainers:
1. The mismatched replies that estimate z0 come from the same batch, resampled every epoch; none is ever the
   row's own. A row without one adds nothing to z0.
2. One row holds a prompt, its reply and the mismatched one, and the prompt is computed once
   (``models/branches.py``). With micro-batches z0 is still that of the whole batch.
3. Reference log-probs, those of mismatched replies too, are computed before the first step, and cached.
4. Loss weights are solved for the paper's range from the label counts.
5. A reply that does not fit the context is left out and counted, never truncated.

    calibrant show train.kto
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from calibrant.core import Estimate, Frozen, OpenLM, Quiet, Run, digest, point, technique, unknown
from calibrant.data.rows import LabelledReplies
from calibrant.maths.kto import BAND, mismatch, reference_point, solve_weights
from calibrant.maths.kto import kto as kto_loss
from calibrant.models.branches import Branches, pack, padded_tokens, score, shares, tokenised
from calibrant.models.fit import FIT_ALIASES, Fit, Plan, Share, batches_of, fit
from calibrant.models.fitting import dropped, fitting
from calibrant.models.lora import LoRA, adapted
from calibrant.models.reference import branch_sums, reference_sums
from calibrant.models.template_check import check_trainable
from calibrant.models.training_caveats import row_caveats, training_caveats
from calibrant.train._tuned import Tuned, save_tuned


class KTO(Frozen):
    """Settings of KTO."""

    aliases: ClassVar[Mapping[str, str]] = FIT_ALIASES | {
        "loss_type": "loss", "num_train_epochs": "epochs", "per_device_train_batch_size": "batch_size",
    }  # fmt: skip

    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """kto; or apo_zero_unpaired (2408.06266), the same with z0 = 0 and no mismatched replies."""
    beta: float = Field(default=0.1, gt=0)
    """Risk aversion, in units of 1 / nats: higher saturates sooner, and so stays closer to the reference."""
    desirable_weight: float | None = Field(default=None, gt=0)
    """Weight of desirable replies. None for both weights: solved from the labels; None for one: 1."""
    undesirable_weight: float | None = Field(default=None, gt=0)
    """Weight of undesirable replies; see desirable_weight."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the replies."""
    batch_size: int = Field(default=16, ge=1)
    """Replies in one step. The batch supplies the mismatched replies, so a batch of one has no z0."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt plus reply in tokens; longer rows are left out and counted. None: the context."""
    lora: LoRA | None = None
    """Train low-rank adapters alone; the saved model has them merged. None: all weights."""
    fit: Fit = Fit(lr=3e-4)
    """The optimiser."""

    def weights(self, desirable: int, undesirable: int) -> tuple[float, float]:
        """(lambda_D, lambda_U) for that many replies of each label."""
        if self.desirable_weight is None and self.undesirable_weight is None:
            return solve_weights(desirable, undesirable)
        return self.desirable_weight or 1.0, self.undesirable_weight or 1.0


class KTOResult(Tuned):
    """The fine-tuned model, also saved as artefact 'model'; every reply at every step in
    'examples.parquet'."""


class _Mismatched(NamedTuple):
    """The mismatched replies of the B rows of one batch."""

    replies: list[list[int] | None]
    """Token ids of y', None where a row borrows nothing."""
    reference: Tensor
    """(B,) ln ref(y' | x) in nats, NaN where a row borrows nothing."""

    @property
    def places(self) -> list[int]:
        """The rows with a mismatched reply."""
        return [place for place, reply in enumerate(self.replies) if reply is not None]


@technique(version=3)
def kto(model: OpenLM, replies: LabelledReplies, config: KTO = KTO(), run: Run = Quiet()) -> KTOResult:
    """Fine-tune a copy of ``model`` on ``replies``; ``model`` itself is the reference policy and is not
    changed.

    Raises:
        InputError: there are no replies, or none fits the context.
        CapabilityError: the model's chat template renders an answered chat differently.
        NumericalError: the loss became NaN or infinite.
    """
    check_trainable(model, config.fit.any_template)
    rows = fitting(model, replies, lambda row: [row.completion], config.max_length)
    prompts, answers = tokenised(model, [row.prompt for row in rows], [row.completion for row in rows])
    ups = [row.label for row in rows]
    weights = config.weights(sum(ups), len(ups) - sum(ups))
    batches = batches_of(len(rows), config.batch_size, config.epochs, run.seed)
    mismatches = config.loss == "kto"
    most = min([n for n in (config.max_length, model.max_length) if n is not None], default=None)
    partners: dict[tuple[int, ...], list[int | None]] = {
        tuple(batch): _partners(batch, prompts, answers, most, run.seed)
        if mismatches
        else [None] * len(batch)
        for batch in batches
    }
    policy = adapted(model.copy(), config.lora, run.seed)
    alone, device = shares(policy.module), next(policy.module.parameters()).device
    reference, mismatched = _reference(model, prompts, answers, partners, run, config.fit.bf16)
    reference, labels = reference.to(device), torch.tensor(ups, device=device)
    mismatched = {b: _Mismatched(row.replies, row.reference.to(device)) for b, row in mismatched.items()}
    tokens = torch.tensor([len(answer) for answer in answers], device=device)
    longest: dict[int, list[list[int]]] = {}  # of each row: the longest reply that it ever borrows
    for batch, row in mismatched.items():
        for i, reply in zip(batch, row.replies, strict=True):
            if reply is not None:
                longest[i] = [max([reply, *longest.get(i, [])], key=len)]
    apart: tuple[list[int], Tensor] = [], torch.empty(0)  # a batch that comes in parts, and its sums of y'

    def loss(part: list[int], whole: list[int]) -> Share:
        nonlocal apart
        inputs, outputs = [prompts[i] for i in part], [answers[i] for i in part]
        other = mismatched[tuple(whole)]
        if len(part) == len(whole):
            own, borrowed = _together(policy.module, inputs, outputs, other.replies, not alone)
        else:
            own, _ = _together(policy.module, inputs, outputs, [None] * len(part), not alone)
            if apart[0] is not whole:
                apart = whole, _apart(policy, [prompts[i] for i in whole], other.replies, config.fit)
            borrowed = apart[1]
        kl_ratios = borrowed - other.reference
        z0 = reference_point(kl_ratios[other.places])
        ratios = own - reference[part]
        each = kto_loss(ratios, labels[part], z0, config.beta, weights)
        noted = {
            "logp": own, "ref_logp": reference[part], "reward": config.beta * ratios, "z0": z0.expand_as(own),
            "mismatched_ratio": kl_ratios[[whole.index(i) for i in part]],
            "desirable": labels[part], "tokens": tokens[part],
        }  # fmt: skip
        noted = {name: value.detach() for name, value in noted.items()}
        metrics = _metrics(noted, config.beta, [(ups[i], len(answers[i])) for i in whole])
        return Share(each.sum() / len(whole), metrics, noted)

    plan = Plan(
        batches,
        key=digest([config, replies.digest, model.identity.digest]),
        names=[row.id for row in rows],
        # As many tokens are borrowed in a batch as are its own, as long as each reply is borrowed once.
        costs=[len(p) + (1 + mismatches) * len(a) for p, a in zip(prompts, answers, strict=True)],
        size=lambda part: padded_tokens(
            Branches([prompts[i] for i in part], [[answers[i], *longest.get(i, [])] for i in part]),
            shared=not alone,
        ),
    )
    steps = fit(policy.module, plan, loss, config.fit, run)
    tuned = save_tuned("kto", model, policy, run)
    idle = sum(who.count(None) for who in partners.values()) / sum(map(len, partners.values()))
    return KTOResult(
        model=tuned,
        metrics={
            "loss_last": _last(steps, "loss", "weighted loss, mean of the last 10 steps"),
            "train_margin": _last(steps, "rewards/margins", "beta x nats"),
            "train_accuracy": _last(steps, "rewards/accuracies", "share of replies"),
            "kl": _last(steps, "kl", "nats"),
            "desirable_drift_per_token": _last(steps, "chosen_drift_per_token", "nats per token"),
            "undesirable_drift_per_token": _last(steps, "rejected_drift_per_token", "nats per token"),
            "desirable_weight": point(weights[0]),
            "undesirable_weight": point(weights[1]),
            "without_mismatch": point(idle, unit="share of replies", n=len(rows)),
            "dropped_for_length": dropped(replies, rows),
        },
        caveats=(
            *_caveats(sum(ups), len(ups) - sum(ups), weights, idle * mismatches, alone),
            *training_caveats(config.fit.bf16, model.module, tuned.module),
        ),
    )


def _partners(
    batch: list[int], prompts: list[list[int]], answers: list[list[int]], most: int | None, seed: int
) -> list[int | None]:
    """For each row of the batch, the example of its mismatched reply; ``most`` is the context."""

    def fits(row: int, partner: int) -> bool:
        return most is None or len(prompts[batch[row]]) + len(answers[batch[partner]]) <= most

    # Seeded by the batch itself, so that a run that goes on from a checkpoint draws the same.
    rng = random.Random(f"kto/{seed}/{batch}")
    partners = mismatch([tuple(prompts[i]) for i in batch], [tuple(answers[i]) for i in batch], rng, fits)
    return [None if partner is None else batch[partner] for partner in partners]


def _reference(
    model: OpenLM,
    prompts: list[list[int]],
    answers: list[list[int]],
    partners: Mapping[tuple[int, ...], list[int | None]],
    run: Run,
    bf16: bool,
) -> tuple[Tensor, dict[tuple[int, ...], _Mismatched]]:
    """ln ref of every reply (n,), and what each batch borrows; a prompt is read once for all its replies."""
    # For each prompt: the replies that are read behind it, and their places there.
    positions: list[dict[int, int]] = [{i: 0} for i in range(len(prompts))]
    for batch, row in partners.items():
        for i, j in zip(batch, row, strict=True):
            if j is not None:
                positions[i].setdefault(j, len(positions[i]))
    texts = Branches(prompts, [[answers[j] for j in places] for places in positions])
    sums = reference_sums(model, texts, run, bf16=bf16).tolist()
    first = list(accumulate(map(len, positions), initial=0))

    def known(i: int, j: int | None) -> float:
        return float("nan") if j is None else sums[first[i] + positions[i][j]]

    by_batch = {
        batch: _Mismatched(
            [None if j is None else answers[j] for j in row],
            torch.tensor([known(i, j) for i, j in zip(batch, row, strict=True)]),
        )
        for batch, row in partners.items()
    }
    return torch.tensor([sums[place] for place in first[:-1]]), by_batch


def _together(
    module: nn.Module,
    prompts: list[list[int]],
    answers: list[list[int]],
    borrowed: Sequence[list[int] | None],
    shared: bool,
) -> tuple[Tensor, Tensor]:
    """Summed log-probs (B,) of the replies, and (B,) of the borrowed ones (NaN for none), in one pass."""
    texts = [[a] if b is None else [a, b] for a, b in zip(answers, borrowed, strict=True)]
    device = next(module.parameters()).device
    sums = score(module, pack(Branches(prompts, texts), shared=shared, device=device)).sums()
    first = torch.tensor(list(accumulate(map(len, texts), initial=0))[:-1], device=device)
    both = torch.tensor([len(text) == 2 for text in texts], device=device)
    second = (first + 1).clamp(max=len(sums) - 1)
    return sums[first], torch.where(both, sums[second].detach(), torch.nan)


def _apart(
    policy: OpenLM, prompts: list[list[int]], borrowed: Sequence[list[int] | None], how: Fit
) -> Tensor:
    """Summed log-probs (B,) of borrowed replies alone (NaN for none), rounded as the others; no gradient."""
    texts = [(p, [b]) for p, b in zip(prompts, borrowed, strict=True) if b is not None]
    some = Branches([p for p, _ in texts], [b for _, b in texts])
    device = next(policy.module.parameters()).device
    # Weights that this pass casts without a gradient must not be found by the passes that learn.
    with torch.autocast(device.type, torch.bfloat16, enabled=how.bf16, cache_enabled=False):
        sums = iter(branch_sums(policy, some, bf16=how.bf16, most=how.micro_tokens).tolist())
    return torch.tensor([torch.nan if b is None else next(sums) for b in borrowed], device=device)


def _metrics(
    noted: Mapping[str, Tensor], beta: float, whole: Sequence[tuple[bool, int]]
) -> dict[str, Tensor]:
    """Shares of what is logged every step; ``whole`` holds label and tokens of each reply of the batch.

    What a batch of one label cannot show (its margin, say) is left out, not taken for 0.
    """
    margin = (noted["reward"] - beta * noted["z0"]) * (2 * noted["desirable"].float() - 1)
    metrics = {
        "rewards/accuracies": ((margin > 0).float() + 0.5 * (margin == 0).float()).sum() / len(whole),
        "kl": noted["z0"].sum() / len(whole),
    }
    for side, label in (("chosen", True), ("rejected", False)):
        rows, tokens = sum(up is label for up, _ in whole), sum(n for up, n in whole if up is label)
        if rows:
            mine = (noted["desirable"] == label).float()
            metrics[f"rewards/{side}"] = (mine * noted["reward"]).sum() / rows
            metrics[f"logps/{side}"] = (mine * noted["logp"]).sum() / rows
            metrics[f"{side}_drift_per_token"] = (mine * noted["reward"]).sum() / beta / tokens
    if "rewards/chosen" in metrics and "rewards/rejected" in metrics:
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    return metrics


def _last(steps: Sequence[Mapping[str, float]], name: str, unit: str) -> Estimate:
    """Mean over the last ten steps that have the number."""
    tail = [step[name] for step in steps if name in step][-10:]
    if not tail:
        return unknown("no batch held the labels that it takes", unit=unit)
    return point(sum(tail) / len(tail), unit=unit)


def _caveats(up: int, down: int, weights: tuple[float, float], idle: float, alone: str) -> tuple[str, ...]:
    """What the result does not show, and what the reader must know of the data."""
    caveats = [
        "accuracy on training replies shows that they were learned, not that behaviour generalises",
        "where labels of like replies contradict each other, KTO goes with the majority",
    ]
    if not (up and down):
        caveats.append(
            f"every reply is {'desirable' if up else 'undesirable'}: nothing says what to do instead"
        )
    elif not BAND[0] * 0.999 <= weights[0] * up / (weights[1] * down) <= BAND[1] * 1.001:
        share = weights[0] * up / (weights[1] * down)
        caveats.append(f"the weights put lambda_D n_D / (lambda_U n_U) at {share:.3g}, outside of [1, 4/3]")
    if idle:
        caveats.append(f"{idle:.0%} of the replies had none to borrow, so that z0 rests on fewer or is 0")
    return (*caveats, *row_caveats(alone))
