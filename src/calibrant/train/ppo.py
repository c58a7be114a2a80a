"""PPO (proximal policy optimisation, RLHF) for language models (arXiv 1707.06347, 1909.08593).

Where this departs from common trainers:
1. The score is the reward of the last *generated* token. Truncation is explicit, and so is its return:
   terminal, or bootstrapped from the critic.
2. Masks come first: padding is neither rewarded nor bootstrapped from.
3. Old log-probs are those of the rollout; their difference from the training pass is logged.
4. One row holds a prompt and all its replies, and the unembedding is applied to scored tokens only.
5. Policy and critic have separate optimisers and clips. Everything random comes from (seed, step), so a
   killed run resumes with the same bits.
6. A watcher may stop the run (early stopping): its 'no' restores the weights of its last look that was not a
   'no'; the caveats say whether that was 'yes' or 'unknown'.

    calibrant run tour
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calibrant.core import (
    Estimate,
    OpenLM,
    Quiet,
    Reward,
    Run,
    Watcher,
    point,
    technique,
    unknown,
)
from calibrant.data.rows import Prompts
from calibrant.models.checkpoint import Checkpoint
from calibrant.models.lora import adapted
from calibrant.models.reward_folder import RewardCard
from calibrant.models.reward_model import RewardModel
from calibrant.models.template_check import check_trainable
from calibrant.train._ppo_config import PPO
from calibrant.train._ppo_critic import open_critic
from calibrant.train._ppo_rollout import experience
from calibrant.train._ppo_update import learn
from calibrant.train._rl_common import alone, check_micro_tokens, draw, judged, key, with_room
from calibrant.train._rl_results import caveats, saved
from calibrant.train._rl_state import Learner, Student, watched
from calibrant.train._tuned import Tuned

__all__ = ["PPO", "PPOResult", "ppo"]


class PPOResult(Tuned):
    """The fine-tuned model is also artefact 'model', the critic 'critic', every reply in
    'examples.parquet'."""


@technique(version=2)
def ppo(
    model: OpenLM,
    prompts: Prompts,
    reward: Reward,
    watcher: Watcher | None = None,
    config: PPO = PPO(),
    run: Run = Quiet(),
) -> PPOResult:
    """Fine-tune a copy of ``model`` on its own samples for ``prompts``; ``model`` is the reference policy.

    Raises:
        InputError: there are no prompts, none leaves room for a reply, one with its
            replies takes more than ``fit.micro_tokens``, the reward gives a wrong number of
            scores, or a checkpoint cannot be written. What the reward raises is passed on.
        CapabilityError: ``config.critic`` is 'reward' and that cannot be, there are several processes, or
            the model's chat template writes an answered chat otherwise.
        NumericalError: a score, loss or gradient is NaN or infinite; earlier checkpoints stay.
    """
    alone("train.ppo")
    check_trainable(model, config.fit.any_template)
    rows = with_room(model, prompts, config.max_tokens)
    check_micro_tokens(
        model, rows, config.samples, config.max_tokens, config.fit, config.critic_fit or config.fit
    )
    policy = adapted(model.copy(), config.lora, run.seed)
    critic = open_critic(model, reward, config.critic, config.head_scale, run.seed)
    learner = _start(policy, critic, watcher, config)
    store = Checkpoint(run.work / "ppo.safetensors", key(config, run, model, prompts, reward, watcher))
    stopped = False
    for step in range(learner.resume(store, run), config.steps):
        picked, drawn = draw(policy, rows, config, step, run.seed)
        learner.spend(drawn.tokens * (1 + config.epochs), run)
        round_ = experience(learner, judged(reward, drawn), model, critic, config)
        learner.examples.note(step, picked, round_.rolled, **round_.columns())
        if stopped := learner.stops(step, policy, round_.rolled, every=config.watch_every):
            break
        with learner.learning():
            stats = learn(learner, round_, critic, config, run.seed, step)
        learner.finish(step, config.steps, round_, {**round_.summary(), **stats}, store, run)
    tuned = saved("ppo", model, policy, learner, rows, run)
    critic.save(run.artifact("critic"), RewardCard(kind="single", members=1, normaliser=critic.normaliser))
    return PPOResult(
        model=tuned,
        metrics={
            **_metrics(learner.rows),
            "dropped_for_length": point(1 - len(rows) / len(prompts), unit="share of rows", n=len(prompts)),
        },
        caveats=caveats(learner, model, stopped),
    )


def _start(policy: OpenLM, critic: RewardModel, watcher: Watcher | None, config: PPO) -> Learner:
    """The learner before the first step."""
    students = {
        "policy": Student(policy.module, config.fit),
        "critic": Student(critic.classifier.module, config.critic_fit or config.fit),
    }
    return Learner(students, config.kl.controller(), watched(watcher, students["policy"]))


def _metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """Metrics of the first and of the last 10 steps of the log."""
    metrics = {"steps": point(len(rows), unit="steps taken")}
    for name, column, unit, some in (
        ("reward_first", "objective/scores", "reward, first 10 steps", rows[:10]),
        ("reward_last", "objective/scores", "reward, last 10 steps", rows[-10:]),
        ("kl_last", "objective/kl", "nats a reply (k1), last 10 steps", rows[-10:]),
        ("entropy_last", "objective/entropy", "nats a reply, last 10 steps", rows[-10:]),
        ("ended_last", "ended", "share of replies, last 10 steps", rows[-10:]),
        ("explained_variance_last", "explained_variance", "share of variance, last 10 steps", rows[-10:]),
    ):
        numbers = [row[column] for row in some if column in row]
        mean = sum(numbers) / max(1, len(numbers))
        metrics[name] = point(mean, unit=unit) if numbers else unknown(f"no step showed {column}", unit=unit)
    return metrics
