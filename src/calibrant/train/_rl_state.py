"""The complete state of an RL run, so that a killed run can resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from calibrant.core import NumericalError, OpenLM, Run, Verdict, Watcher
from calibrant.maths.kl import AdaptiveKL, FixedKL
from calibrant.maths.shaping import Moments
from calibrant.models.checkpoint import Checkpoint, optimiser_state, prefixed, restore_optimiser, under
from calibrant.models.fit import Fit, adamw, rate, training
from calibrant.models.lora import has_adapters
from calibrant.models.open_model import OpenModel
from calibrant.models.precision import announce, is_half
from calibrant.models.rollouts import Rollouts
from calibrant.train._rl_common import ExampleLog, Round, read
from calibrant.train._settings import Old


@dataclass
class Student:
    """A trained network with its optimiser."""

    module: nn.Module
    """Its weights change in place."""
    fit: Fit
    """How it descends."""
    optimiser: torch.optim.Optimizer = field(init=False)
    """AdamW over what learns."""
    moved: bool = field(init=False, default=False)
    """Whether a step has changed a weight. Until then a policy *is* its reference, and what tells their
    log-probs apart is rounding, which AdamW would blow up to a step of full size."""

    def __post_init__(self) -> None:
        with training(self.module):
            self.optimiser = adamw(self.module, self.fit)

    def weights(self) -> dict[str, nn.Parameter]:
        """The trained weights by name: the adapters where there are any, else all."""
        named = dict(self.module.named_parameters())
        return {n: p for n, p in named.items() if "lora_" in n} if has_adapters(self.module) else named

    @property
    def lr(self) -> float:
        """The learning rate now."""
        return float(self.optimiser.param_groups[0]["lr"])

    def pace(self, step: int, total: int) -> None:
        """Set the learning rate of ``step`` of ``total``."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.fit, step, total)

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Set the trained weights to ``weights``."""
        for name, parameter in self.weights().items():
            parameter.copy_(weights[name])


def old_and_reference(student: Student, rolled: Rollouts, model: OpenLM, old: Old) -> tuple[Tensor, Tensor]:
    """(M, T) ln pi_old and ln ref of a round's replies, in nats, on the policy's device.

    Until its first step the policy is the reference, so the two are equal to the bit.
    """
    rescored = old == "rescored" or (old == "auto" and (student.fit.bf16 or is_half(student.module)))
    device = next(student.module.parameters()).device
    logprobs = read(student.module, rolled, student.fit.bf16) if rescored else rolled.behaviour.to(device)
    return logprobs, read(model.module, rolled, student.fit.bf16) if student.moved else logprobs


Loss = Callable[[list[int]], tuple[Tensor, Mapping[str, Tensor]]]
"""Numbers of the prompts of a part -> its share of the loss, and of the numbers to log."""


def descend(student: Student, parts: Sequence[list[int]], loss: Loss, where: str) -> dict[str, float]:
    """One step of the optimiser on the sum of the parts' shares; returns all sums, 'loss' and 'grad_norm'.

    Raises:
        NumericalError: the loss or the gradient norm is NaN or infinite; the step is not taken.
    """
    student.optimiser.zero_grad(set_to_none=True)
    params = [p for p in student.module.parameters() if p.requires_grad]
    device, sums = params[0].device, dict[str, Tensor]()
    for part in parts:
        with torch.autocast(device.type, torch.bfloat16, enabled=student.fit.bf16):
            value, stats = loss(part)
        value.backward()  # type: ignore[no-untyped-call]
        for name, share in {"loss": value, **stats}.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + share.detach()
    sums["grad_norm"] = nn.utils.clip_grad_norm_(params, student.fit.clip)
    row = dict(zip(sums, torch.stack([value.double() for value in sums.values()]).tolist(), strict=True))
    for name in ("loss", "grad_norm"):
        if not math.isfinite(row[name]):
            raise NumericalError(
                f"{name} is {row[name]} at {where}",
                hint="lower the learning rate, and look at the scores; this step was not taken",
            )
    student.optimiser.step()
    student.moved = student.moved or row["grad_norm"] > 0 or student.fit.weight_decay > 0
    return row


@dataclass
class Watch:
    """A watcher, and the weights of its last look that was not a 'no'.

    Weights of the last 'yes' would undo nearly everything: an undecided watcher says 'unknown' while the
    reward still rises (mean regret .41 to 1.33 of a hump of 1.36, against .007 to .22 for the last look).
    The verdict on the kept weights is kept with them, so that an 'unknown' is not mistaken for a 'yes'.
    """

    watcher: Watcher
    """Who looks."""
    good: dict[str, Tensor]
    """On the CPU; those at the start until the first look."""
    good_step: int = 0
    """The step whose replies they drew."""
    good_answer: str = ""
    """What it said of them; "" before its first look."""
    seen: int = 0
    """The last step that was looked at."""
    verdict: Verdict | None = None
    """What it said last."""

    def stops(self, step: int, policy: OpenLM, student: Student, rolled: Rollouts) -> bool:
        """Ask the watcher; on a 'no', restore the last good weights and return True."""
        # Named anew: under the old identity its answers would pass for those of the model that came in.
        now = OpenModel.from_module(policy.module, policy.tokenizer, f"{policy.identity.name} at step {step}")
        self.verdict, self.seen = self.watcher.see(step, now, rolled), step
        if self.verdict.answer != "no":
            self.good, self.good_step, self.good_answer = _copied(student), step, self.verdict.answer
        if self.verdict.answer == "no":
            student.put(self.good)
        return self.verdict.answer == "no"

    def caveat(self, stopped: bool, steps: int) -> str:
        """The caveat of a run of ``steps``: what was seen of the weights that it leaves, and what was not."""
        of_them = {"yes": "of which it said 'yes'", "unknown": "of which it could not tell ('unknown')"}
        verdict = of_them.get(self.good_answer, "as it came in, of which it said 'no' at once")
        if stopped and self.verdict is not None:
            why = f"the watcher stopped the run at step {self.seen} ({self.verdict.reason})"
            return f"{why}; the model is that of step {self.good_step}, {verdict}"
        return (
            f"the watcher looked last at step {self.seen} of {steps}, at weights {verdict}; "
            "what came after it has not seen"
        )

    def write(self, run: Run) -> None:
        """Write the watcher's own report, if it has one: artefact 'watch.json'."""
        write = getattr(self.watcher, "write", None)
        if write is not None:
            write(run.artifact("watch.json"))


@dataclass
class Learner:
    """The state that changes from step to step."""

    students: dict[str, Student]
    """By name: 'policy', and 'critic' where there is one."""
    controller: FixedKL | AdaptiveKL
    """The KL coefficient."""
    watch: Watch | None = None
    """The watcher, where there is one."""
    moments: Moments = field(default_factory=Moments)
    """Of all scores so far."""
    examples: ExampleLog = field(default_factory=ExampleLog)
    """A row a reply."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """What was logged, a row a step."""
    spent: int = 0
    """Tokens charged so far."""

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Enable gradients inside the block; sampling is done outside."""
        with ExitStack() as stack:
            for student in self.students.values():
                stack.enter_context(training(student.module, student.fit.recompute))
            yield

    def spend(self, tokens: int, run: Run) -> None:
        """Charge the run."""
        run.spend(tokens=tokens)
        self.spent += tokens

    def stops(self, step: int, policy: OpenLM, rolled: Rollouts, *, every: int) -> bool:
        """Whether a watcher, where there is one, says 'no' to this step; it looks once in ``every`` steps."""
        if self.watch is None or step % every:
            return False
        return self.watch.stops(step, policy, self.students["policy"], rolled)

    def finish(
        self, step: int, of: int, round_: Round, row: dict[str, float], checkpoint: Checkpoint, run: Run
    ) -> None:
        """End a step: update the KL coefficient, log ``row``, save a checkpoint if it is time, report
        progress.

        The last of the ``of`` steps of a run that was saved before is saved, too: what follows a long run
        must not cost it again.
        """
        nats, lengths = round_.k1.sum(), round_.rolled.lengths
        self.controller = self.controller.after(float(nats), len(lengths), int(lengths.sum()))
        self.rows.append(row)
        run.log(step, **row)
        if checkpoint.due() or (step + 1 == of and checkpoint.path.exists()):
            self.save(checkpoint, step + 1)
        run.progress(step + 1, of, f"reward {float(round_.rolled.rewards.mean()):.3f}")

    def save(self, checkpoint: Checkpoint, step: int) -> None:
        """Write a checkpoint; ``step`` is the next one."""
        tensors = prefixed("examples", self.examples.tensors())
        facts: dict[str, Any] = {
            "step": step,
            "controller": self.controller.state(),
            "moments": self.moments.state(),
            "rows": self.rows,
            "spent": self.spent,
        }
        for name, student in self.students.items():
            state, optimiser = optimiser_state(student.optimiser)
            facts[name] = {"optimiser": optimiser, "moved": student.moved}
            tensors |= prefixed(f"{name}/weights", student.weights())
            tensors |= prefixed(f"{name}/adamw", state)
        if self.watch is not None:
            tensors |= prefixed("good", self.watch.good)
            watcher_state: Any = getattr(self.watch.watcher, "state", dict)()
            looks = {"good": self.watch.good_step, "answer": self.watch.good_answer, "seen": self.watch.seen}
            facts["watch"] = {**looks, "state": watcher_state}
        checkpoint.save(tensors, facts)

    def resume(self, checkpoint: Checkpoint, run: Run) -> int:
        """Restore the last checkpoint, and charge its cost; returns the next step.

        First it reports, as progress, where half precision is slow.
        """
        for student in self.students.values():
            announce(student.fit.bf16, next(student.module.parameters()).device, run, 1)
        contents = checkpoint.load()
        if contents is None:
            return 0
        tensors, facts = contents
        self.controller = self.controller.restored(facts["controller"])
        self.moments = Moments.restored(facts["moments"])
        self.rows = facts["rows"]
        self.examples.restore(under("examples", tensors))
        for name, student in self.students.items():
            student.put(under(f"{name}/weights", tensors))
            restore_optimiser(student.optimiser, under(f"{name}/adamw", tensors), facts[name]["optimiser"])
            student.moved = facts[name]["moved"]
        if self.watch is not None:
            looks = facts["watch"]
            self.watch.good, self.watch.good_step = under("good", tensors), looks["good"]
            self.watch.seen, self.watch.good_answer = looks["seen"], looks["answer"]
            getattr(self.watch.watcher, "restore", lambda state: None)(looks["state"])
        self.spend(facts["spent"], run)
        return int(facts["step"])


def watched(watcher: Watcher | None, student: Student) -> Watch | None:
    """The watcher at the start of a run."""
    return None if watcher is None else Watch(watcher, _copied(student))


def _copied(student: Student) -> dict[str, Tensor]:
    return {name: p.detach().cpu().clone() for name, p in student.weights().items()}
