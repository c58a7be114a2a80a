"""Results of an RL run: the model, its metrics, its caveats."""

from __future__ import annotations

from collections.abc import Sequence

from calibrant.core import Estimate, OpenLM, Run, point, unknown
from calibrant.data.rows import Prompt
from calibrant.models.training_caveats import training_caveats
from calibrant.train._rl_state import Learner
from calibrant.train._tuned import save_tuned


def saved(
    name: str, model: OpenLM, policy: OpenLM, learner: Learner, rows: Sequence[Prompt], run: Run
) -> OpenLM:
    """Write the artefacts 'model', 'examples.parquet' and, with a watcher, 'watch.json'."""
    tuned = save_tuned(name, model, policy, run)
    if learner.watch is not None:
        learner.watch.write(run)
    learner.examples.write(run, rows)
    return tuned


def metrics(learner: Learner, used: int, total: int, **more: tuple[str, str]) -> dict[str, Estimate]:
    """Metrics of the first and of the last 10 steps of the log.

    ``used`` of ``total`` prompts left room for a reply; ``more`` is name = (key of the log, unit).
    """
    rows = learner.rows
    estimates = {"steps": point(len(rows), unit="steps taken")}
    columns = {
        "reward_first": ("reward", "reward"),
        "reward_last": ("reward", "reward"),
        "kl_last": ("objective/kl", "nats a reply (k1)"),
        "entropy_last": ("objective/entropy", "nats a reply"),
        "ended_last": ("ended", "share of replies"),
        **more,
    }
    for name, (column, unit) in columns.items():
        some = rows[:10] if name.endswith("_first") else rows[-10:]
        unit = f"{unit}, {'first' if name.endswith('_first') else 'last'} 10 steps"
        numbers = [row[column] for row in some if column in row]
        if numbers:
            estimates[name] = point(sum(numbers) / len(numbers), unit=unit)
        else:
            estimates[name] = unknown(f"no step showed {column}", n=max(1, len(some)), unit=unit)
    estimates["dropped_for_length"] = point(1 - used / total, unit="share of rows", n=total)
    return estimates


def caveats(learner: Learner, model: OpenLM, stopped: bool) -> tuple[str, ...]:
    """Caveats of all these methods, and of this run."""
    notes = [
        "the reward is what was optimised: a higher one does not show that replies are better",
        "metrics are of the training rollouts, sampled before each step",
    ]
    late, watch = learner.rows[-10:], learner.watch
    idle = sum(row.get("frac_reward_zero_std", 0.0) for row in late) / max(1, len(late))
    if idle > 0.9:
        notes.append(
            f"in the last {len(late)} steps {100 * idle:.0f} % of the prompts had replies of one score: "
            "nothing was left to learn from, be it that all were good or that all were bad (see reward_last)"
        )
    if watch is None:
        notes.append("no watcher: whether true quality rose with the reward was not measured")
    else:
        notes.append(watch.caveat(stopped, len(learner.rows)))
    policy = learner.students["policy"]
    return (*notes, *training_caveats(policy.fit.bf16, model.module, policy.module))
