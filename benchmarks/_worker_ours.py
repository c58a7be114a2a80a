"""Our trainers as a worker, as ``_worker_trl.py`` is for TRL: reads a job, trains, tells losses and costs.

    .venv/bin/python benchmarks/_worker_ours.py JOB.json

The job: ``technique``, ``model`` (a folder), ``rows`` (JSON lines), ``config``, ``warm``, ``block`` and
``core``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _pace import Pace, read_job
from torch.nn.functional import pad

import calibrant.train.dpo as dpo_module
import calibrant.train.kto as kto_module
import calibrant.train.ppo as ppo_module
from calibrant.core import Quiet
from calibrant.data.readers import read_file
from calibrant.data.rows import LabelledReplies, Preferences, Prompts
from calibrant.models.classifier import Classifier
from calibrant.models.open_model import OpenModel
from calibrant.models.reward_model import RewardModel
from calibrant.train import _ppo_rollout, _ppo_update
from calibrant.train._rl_common import minibatches
from calibrant.train.reward import RewardConfig
from calibrant.train.reward import reward as train_reward
from calibrant.train.reward_ensemble import RewardEnsemble
from calibrant.train.reward_ensemble import reward_ensemble as train_ensemble


class Paced(Quiet):
    """A run that tells ``pace`` of every step."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(seed=0)
        self.pace = pace
        self.rows: list[dict[str, float]] = []

    def log(self, step: int, **metrics: float) -> None:
        self.rows.append(metrics)
        both = ("loss/policy_avg", "loss/value_avg")
        self.pace.step(metrics["loss"] if "loss" in metrics else sum(metrics[name] for name in both))


class Record:
    """Keeps the first rounds of PPO as the peer can replay them."""

    def __init__(self, path: Path, rounds: int, width: int) -> None:
        """Writes ``path`` once ``rounds`` are known; ``width`` is the most tokens of a reply."""
        self.path, self.left, self.width = path, rounds, width
        self.kept: dict[str, list[Any]] = {"queries": [], "responses": [], "scores": [], "orders": []}
        self.advantages: list[list[list[float]]] = []
        """Of each round, row after row: before and after whitening, 0 beyond a reply."""
        self.judged = vars(ppo_module)["judged"]
        self.credited, self.minibatches = _ppo_rollout.credited, minibatches
        vars(ppo_module)["judged"] = self.score
        vars(_ppo_rollout)["credited"] = self.credit
        vars(_ppo_update)["minibatches"] = self.cut

    def score(self, reward: Any, drawn: Any) -> Any:
        """Score replies and keep both, prompts padded on the left with 0 and replies on the right."""
        found: Any = self.judged(reward, drawn)
        most = max(map(len, found.branches.prompts))
        prompts = [[0] * (most - len(p)) + p for p in found.branches.prompts for _ in range(found.samples)]
        replies = [r + [0] * (self.width - len(r)) for some in found.branches.replies for r in some]
        self.kept["queries"].append(prompts)
        self.kept["responses"].append(replies)
        self.kept["scores"].append(np.array(found.scores.mean, dtype=np.float32))
        return found

    def credit(self, *args: Any) -> Any:
        """Give credit and keep the advantages."""
        found = self.credited(*args)
        tokens = found.masks.tokens
        tables = (found.returns - found.values).masked_fill(~tokens, 0), found.advantages
        room = (0, self.width - tokens.shape[1])
        self.advantages.append([pad(table, room).flatten().tolist() for table in tables])
        return found

    def cut(self, prompts: int, config: Any, seed: int, step: int) -> list[list[int]]:
        """Draw the order of the minibatches and keep it; the last thing before a round is learned from."""
        found = self.minibatches(prompts, config, seed, step)
        rows = [i * config.samples + k for some in found for i in some for k in range(config.samples)]
        self.kept["orders"].append(np.array(rows).reshape(config.epochs, -1))
        self.left -= 1
        if self.left == 0:
            np.savez(self.path, **{name: np.array(values) for name, values in self.kept.items()})  # type: ignore[arg-type]
        return found


def timed(pace: Pace, module: Any, name: str) -> None:
    """From now on what ``module.name`` costs counts as done once, before the steps."""
    function = getattr(module, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        with pace.setup():
            return function(*args, **kwargs)

    setattr(module, name, run)


def dpo(job: dict[str, Any], pace: Pace) -> None:
    timed(pace, dpo_module, "reference_sums")
    pairs = read_file(Preferences, Path(job["rows"]))
    config = dpo_module.DPO.model_validate(job["config"])
    dpo_module.dpo(OpenModel.from_folder(job["model"]), pairs, config, Paced(pace))


def kto(job: dict[str, Any], pace: Pace) -> None:
    timed(pace, kto_module, "reference_sums")
    vars(kto_module)["mismatch"] = lambda prompts, *_: [i - 1 for i in range(len(prompts))]  # TRL's pairing
    replies = read_file(LabelledReplies, Path(job["rows"]))
    config = kto_module.KTO.model_validate(job["config"])
    kto_module.kto(OpenModel.from_folder(job["model"]), replies, config, Paced(pace))


def reward(job: dict[str, Any], pace: Pace) -> None:
    pairs = read_file(Preferences, Path(job["rows"]))
    config = RewardConfig.model_validate(job["config"])
    train_reward(OpenModel.from_folder(job["model"]), pairs, config=config, run=Paced(pace))


def reward_ensemble(job: dict[str, Any], pace: Pace) -> None:
    pairs = read_file(Preferences, Path(job["rows"]))
    config = RewardEnsemble.model_validate(job["config"])
    train_ensemble(OpenModel.from_folder(job["model"]), pairs, config=config, run=Paced(pace))


def ppo(job: dict[str, Any], pace: Pace) -> None:
    config = ppo_module.PPO.model_validate(job["config"])
    record = Record(Path(job["replay"]), job["rounds"], config.max_tokens)
    run = Paced(pace)
    ppo_module.ppo(
        OpenModel.from_folder(job["model"]),
        read_file(Prompts, Path(job["rows"])),
        RewardModel(Classifier.from_folder(job["reward"])),
        None,
        config,
        run,
    )
    pace.tell(history=run.rows, advantages=record.advantages)


TECHNIQUES: dict[str, Callable[[dict[str, Any], Pace], None]] = {
    "dpo": dpo, "kto": kto, "reward": reward, "reward_ensemble": reward_ensemble, "ppo": ppo
}  # fmt: skip


def main() -> None:
    """Train as the job says."""
    job = read_job()
    pace = Pace(job["warm"], job["block"])
    TECHNIQUES[job["technique"]](job, pace)


if __name__ == "__main__":
    main()
