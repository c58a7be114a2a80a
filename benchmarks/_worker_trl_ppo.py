"""TRL 1.12's PPO as a worker: run by ``.peers/trl_ppo/bin/python``, reads a job, trains, tells what it cost.

    .peers/trl_ppo/bin/python benchmarks/_worker_trl_ppo.py JOB.json

The job: ``model``, ``reward`` and ``critic`` (folders), ``rows`` (JSON lines with ``prompt`` as turns),
``options`` (of PPOConfig), ``warm``, ``block``, ``core``, and optionally ``save`` (a folder for the trained
policy) and ``replay``: an .npz of rounds that are not drawn here but given, with their scores and the order
of their minibatches; the rounds after them are drawn. Nothing of Calibrant is imported.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _pace import Pace, read_job
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

ALWAYS = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "num_sample_generations": 0}


class Replay:
    """Given rounds in place of drawn ones, for as many rounds as there are."""

    def __init__(self, rounds: Mapping[str, Any], policy: Any, reward: Any, pad: int) -> None:
        """``rounds``: responses (U, B, T), scores (U, B), orders (U, epochs, B)."""
        self.rounds, self.policy, self.reward, self.pad = rounds, policy, reward, pad
        self.round = -1
        self.epoch = 0
        self.advantages: list[list[list[float]]] = []
        """Of each given round, row after row: before and after whitening, 0 beyond a reply."""
        self.draw = ppo_trainer.batch_generation
        self.get_reward = ppo_trainer.get_reward
        self.whiten = ppo_trainer.masked_whiten
        self.permute = np.random.permutation
        ppo_trainer.batch_generation = self.batch_generation
        ppo_trainer.get_reward = self.scored
        ppo_trainer.masked_whiten = self.masked_whiten
        setattr(np.random, "permutation", self.permutation)  # noqa: B010

    @property
    def on(self) -> bool:
        """Whether this round is a given one."""
        return self.round < len(self.rounds["responses"])

    def batch_generation(self, model: Any, queries: Any, size: int, pad: int, config: Any) -> Any:
        """The given replies, with the logits (over the temperature) that drew them."""
        self.round, self.epoch = self.round + 1, 0
        if not self.on:
            return self.draw(model, queries, size, pad, config)
        replies = torch.from_numpy(self.rounds["responses"][self.round])
        both = torch.cat([queries, replies], 1)
        logits = ppo_trainer.forward(model, both, pad).logits[:, queries.shape[1] - 1 : -1]
        return both, logits / config.temperature

    def scored(self, model: Any, *args: Any) -> Any:
        """The given scores for the reward model, the network's values for the critic."""
        if self.on and model is self.reward:
            return None, torch.from_numpy(self.rounds["scores"][self.round]), None
        return self.get_reward(model, *args)

    def masked_whiten(self, values: Any, mask: Any, shift_mean: bool = True) -> Any:
        """Whitens, and notes the advantages."""
        white = self.whiten(values, mask, shift_mean)
        if self.on and shift_mean:
            both = values.masked_fill(~mask, 0), white.masked_fill(~mask, 0)
            self.advantages.append([table.flatten().tolist() for table in both])
        return white

    def permutation(self, n: int) -> Any:
        """The given order of an epoch."""
        if not self.on:
            return self.permute(n)
        self.epoch += 1
        return self.rounds["orders"][self.round][self.epoch - 1]


class Steps(TrainerCallback):
    """Passes the end of each round on."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        row = state.log_history[-1]
        self.pace.step(row["loss/policy_avg"] + row["loss/value_avg"])


def prompts(path: str, tokenizer: Any) -> Dataset:
    """The prompts as token ids."""
    rows = [json.loads(line)["prompt"] for line in Path(path).read_text(encoding="utf-8").splitlines()]
    ids = tokenizer.apply_chat_template(rows, add_generation_prompt=True)["input_ids"]
    return Dataset.from_dict({"input_ids": ids})


def main() -> None:
    """Train as the job says."""
    job = read_job()
    pace = Pace(job["warm"], job["block"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32) for _ in range(2)
    )
    reward, critic = (
        AutoModelForSequenceClassification.from_pretrained(job[name], num_labels=1, dtype=torch.float32)
        for name in ("reward", "critic")
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(output_dir=folder, **ALWAYS | job["options"]),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=critic,
            train_dataset=prompts(job["rows"], tokenizer),
            eval_dataset=prompts(job["rows"], tokenizer).select(range(1)),
            callbacks=[Steps(pace)],
        )
        replay = None
        if job.get("replay"):
            rounds = dict(np.load(job["replay"]))
            replay = Replay(rounds, policy, trainer.reward_model, tokenizer.pad_token_id)
            given = [{"input_ids": torch.from_numpy(queries)} for queries in rounds["queries"]]
            trainer.dataloader = [*given, *trainer.dataloader]
        trainer.train()
        if job.get("save"):
            policy.save_pretrained(job["save"])
    history = [row for row in trainer.state.log_history if "loss/policy_avg" in row]
    pace.tell(history=history, advantages=replay.advantages if replay else [])


if __name__ == "__main__":
    main()
