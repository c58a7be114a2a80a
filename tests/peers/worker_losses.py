"""Run TRL 1.16's own loss code on given log-probs: called by ``.peers/trl/bin/python``, imports no calibrant.

    .peers/trl/bin/python worker_losses.py FOLDER

FOLDER holds ``inputs.npz`` and ``cases.json`` (a list of ``{"name", "kind", "options"}``); written there is
``outputs.npz``: ``NAME/loss`` and ``NAME/grad``, the gradient by ``policy`` (for rewards: by ``scores``).

The trainers are made without their constructors, and a stub stands where the model would be, so what runs is
the loss code alone, in float64.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RewardTrainer, RLOOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer


def same(value, *args, **kwargs):
    return value


ONE_PROCESS = SimpleNamespace(
    device=torch.device("cpu"), gather=same, gather_for_metrics=same, reduce=same, num_processes=1
)


class Stub(torch.nn.Module):
    """Stands where the model would be, in training mode."""

    is_gradient_checkpointing = False


def bare(trainer_class, **fields):
    """A trainer without its constructor, in training mode, that knows only ``fields``."""
    trainer = trainer_class.__new__(trainer_class)
    fields = {
        "accelerator": ONE_PROCESS,
        "model": Stub(),
        "aux_loss_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    } | fields
    for name, value in fields.items():
        setattr(trainer, name, value)
    return trainer


def outputs(logprobs, inputs):
    """What TRL's fused head returns; only the log-probs and the collision probabilities matter to a loss."""
    zero = torch.zeros_like(logprobs)
    return SimpleNamespace(
        log_probs=logprobs,
        entropy=zero,
        mean_logits=zero,
        is_top1=zero.bool(),
        log_sum_sq_probs=inputs.get("log_collision"),
    )


def mask_of(inputs):
    """(R, 1 + T) completion mask: one prompt token, then the reply's tokens."""
    lengths, width = inputs["lengths"], inputs["policy"].shape[1]
    reply = (torch.arange(width) < lengths[:, None]).long()
    return torch.cat([torch.zeros(len(lengths), 1, dtype=torch.long), reply], 1)


def sequences(inputs):
    mask = mask_of(inputs)
    return {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
    }


def dpo(inputs, options):
    options = {
        "beta": 0.1,
        "loss_types": ["sigmoid"],
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "use_weighting": False,
        "loss_weights": None,
    } | options
    trainer = bare(
        DPOTrainer,
        precompute_ref_logps=False,
        ref_model=lambda **given: outputs(inputs["reference"], inputs),
        args=SimpleNamespace(
            discopop_tau=options.pop("discopop_tau", 0.05), gradient_checkpointing_kwargs=None
        ),
        **options,
    )
    trainer.loss_weights = options["loss_weights"] or [1.0] * len(options["loss_types"])
    return trainer._compute_loss(lambda **given: outputs(inputs["policy"], inputs), sequences(inputs), False)


def kto(inputs, options):
    kind = options.get("loss_type", "kto")
    trainer = bare(
        KTOTrainer,
        precompute_ref_logps=True,
        calculate_KL=kind == "kto",
        **{"loss_type": kind, "desirable_weight": 1.0, "undesirable_weight": 1.0} | options,
    )
    trainer._compute_kl_logps = lambda model, batch: inputs["kl_policy"]
    batch = sequences(inputs) | {
        "label": inputs["label"].bool(),
        "ref_logps": inputs["reference"].sum(1),
        "ref_KL_logps": inputs["kl_reference"],
    }
    return trainer._compute_loss(lambda **given: outputs(inputs["policy"], inputs), batch, False)


def reward(inputs, options):
    """Rewards chosen first, then rejected."""
    trainer = bare(RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=options.get("centre")))
    batch = {"attention_mask": torch.ones(1, 1)}
    if options.get("margin"):
        batch["margin"] = inputs["margin"]

    def model(**given):
        return SimpleNamespace(logits=inputs["scores"][:, None])

    return trainer.compute_loss(model, batch)


def halves(inputs):
    """Mean log-prob by token of chosen and rejected replies, as both trainers below take them."""
    return (inputs["policy"].sum(1) / inputs["lengths"]).chunk(2)


def simpo(inputs, options):
    trainer = bare(CPOTrainer, loss_type="simpo", alpha=0.0, label_smoothing=0.0, **options)
    return trainer.cpo_loss(*halves(inputs))[0].mean()


def orpo(inputs, options):
    """As ``ORPOTrainer.get_batch_loss_metrics`` adds up: negative log-likelihood less the ratio's mean."""
    chosen, rejected = halves(inputs)
    return -chosen.mean() - bare(ORPOTrainer, **options).odds_ratio_loss(chosen, rejected)[0].mean()


def grpo(inputs, options):
    trainer = bare(
        GRPOTrainer,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        **options,
    )
    return trainer._compute_loss(None, rollout(trainer, inputs))


def rloo(inputs, options):
    trainer = bare(RLOOTrainer, **options)
    return trainer._compute_loss(None, rollout(trainer, inputs))


def rollout(trainer, inputs):
    mask = mask_of(inputs)[:, 1:]
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
        inputs["policy"], torch.zeros_like(inputs["policy"]), None
    )  # fmt: skip
    return {
        "prompt_ids": torch.ones(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.ones_like(mask),
        "completion_mask": mask,
        "advantages": inputs["advantages"],
        "old_per_token_logps": inputs["old"],
        "old_logps": (inputs["old"] * mask).sum(1),
        "ref_per_token_logps": inputs["reference"],
        "num_items_in_batch": mask.sum(),
    }


KINDS = {
    "dpo": dpo, "kto": kto, "reward": reward, "simpo": simpo, "orpo": orpo, "grpo": grpo, "rloo": rloo
}  # fmt: skip


def main(folder):
    given = dict(np.load(folder / "inputs.npz"))
    found = {}
    for case in json.loads((folder / "cases.json").read_text()):
        inputs = {name: torch.from_numpy(value) for name, value in given.items()}
        leaf = inputs["scores" if case["kind"] == "reward" else "policy"].requires_grad_()
        loss = KINDS[case["kind"]](inputs, case["options"])
        loss.backward()
        found[f"{case['name']}/loss"] = loss.detach().numpy()
        found[f"{case['name']}/grad"] = leaf.grad.numpy()
    np.savez(folder / "outputs.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
