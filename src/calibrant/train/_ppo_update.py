"""The optimiser steps of a round of PPO."""

from __future__ import annotations

from torch import Tensor

from calibrant.maths.kl import PENALTIES
from calibrant.maths.policy_losses import AGGREGATIONS, Window, clipped_surrogate, token_mean, value_loss
from calibrant.models.branches import pack, score, shares, spread
from calibrant.models.reward_model import RewardModel
from calibrant.train._ppo_config import PPO
from calibrant.train._ppo_critic import values
from calibrant.train._ppo_rollout import Experience
from calibrant.train._rl_common import clips, cuts, minibatches, wide
from calibrant.train._rl_state import Learner, Student, descend


def learn(
    learner: Learner, round_: Experience, critic: RewardModel, config: PPO, seed: int, step: int
) -> dict[str, float]:
    """Take the optimiser steps of a round; returns the means of their metrics."""
    policy, judge = learner.students["policy"], learner.students["critic"]
    warming, where = step < config.critic_warmup, f"step {step}"
    judge.pace(step, config.steps)
    policy.pace(max(0, step - config.critic_warmup), config.steps - config.critic_warmup)
    logged: dict[str, list[float]] = {}
    for chosen in minibatches(len(round_.rolled.branches.prompts), config, seed, step):
        stats = {} if warming else _policy_step(policy, round_, chosen, config, where)
        stats |= _critic_step(judge, critic, round_, chosen, config, where)
        for name, value in stats.items():
            logged.setdefault(name, []).append(value)
        if config.stop_kl is not None and stats.get("policy/approxkl_avg", 0.0) > config.stop_kl:
            break
    means = {name: sum(values) / len(values) for name, values in logged.items()}
    if not warming:  # the first minibatch met the very weights that drew
        means["logprob_mismatch"] = logged["logprob_mismatch"][0]
    return means | {"updates": len(logged["loss/value_avg"]), "lr": 0.0 if warming else policy.lr}


def _policy_step(
    student: Student, round_: Experience, chosen: list[int], config: PPO, where: str
) -> dict[str, float]:
    """One step of the policy on the replies to the ``chosen`` prompts."""
    rolled, shared = round_.rolled, not shares(student.module)
    parts = cuts(rolled, chosen, shared, student.fit.micro_tokens)
    mine = rolled.rows(chosen)
    window = Window(int(round_.mask[mine].sum()), len(mine), config.max_tokens, len(parts))
    low, high = clips(config.clip, config.clip_high)

    def loss(part: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        rows = rolled.rows(part)
        mask, old = round_.mask[rows], round_.old[rows]
        packed = pack(rolled.of(part), shared=shared, device=old.device)
        scored = score(
            student.module, packed, temperature=rolled.temperature, entropy=config.entropy_bonus > 0
        )
        new = wide(scored.padded(), mask)
        out = clipped_surrogate(new, old, round_.credit.advantages[rows], low=low, high=high)
        each, stats = out.loss, {}
        if config.kl.place == "loss" and student.moved:  # before the first step it is 0, and its gradient
            each = each + round_.coef * PENALTIES[config.kl.estimator](new, round_.reference[rows])
        if config.entropy_bonus > 0 and scored.entropy is not None:
            entropy = wide(spread(scored.entropy, scored), mask)
            each = each - config.entropy_bonus * entropy
            stats["policy/entropy_avg"] = token_mean(entropy, mask, window)
        apart, behaviour = (new - old).detach(), rolled.behaviour[rows].to(old.device)
        stats |= {
            "policy/approxkl_avg": token_mean(0.5 * apart**2, mask, window),
            "policy/clipfrac_avg": token_mean(out.clipped.float(), mask, window),
            "val/ratio": token_mean(apart.exp(), mask, window),
            "logprob_mismatch": token_mean((new.detach() - behaviour).abs(), mask, window),
        }
        return AGGREGATIONS[config.aggregation](each, mask, window), stats

    row = descend(student, parts, loss, where)
    return {"loss/policy_avg": row.pop("loss"), "policy/grad_norm": row.pop("grad_norm"), **row}


def _critic_step(
    student: Student, critic: RewardModel, round_: Experience, chosen: list[int], config: PPO, where: str
) -> dict[str, float]:
    """One step of the critic on the replies to the ``chosen`` prompts."""
    rolled, shared = round_.rolled, not shares(student.module)
    window = Window(int(round_.credit.masks.steps[rolled.rows(chosen)].sum()), len(chosen) * rolled.samples)

    def loss(part: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        rows = rolled.rows(part)
        mask, old = round_.credit.masks.steps[rows], round_.credit.values[rows]
        packed = pack(rolled.of(part), shared=shared, device=old.device)
        new = values(critic, packed).table(packed.lengths, old.shape[1], after=config.score_at == "after")
        out = value_loss(new, old, round_.credit.returns[rows], clip=config.value_clip)
        share = token_mean(out.loss, mask, window)
        clipped = token_mean(out.clipped.float(), mask, window)
        return config.value_weight * share, {"loss/value_avg": share, "val/clipfrac_avg": clipped}

    row = descend(student, cuts(rolled, chosen, shared, student.fit.micro_tokens), loss, where)
    return {"val/grad_norm": row.pop("grad_norm"), **{k: v for k, v in row.items() if k != "loss"}}
