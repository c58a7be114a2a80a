"""Ask solver, auditor and fixer about the steps of trees, and play a tree through with some of them audited.

1. What a step shows are the answers that its parts were given, right or wrong. Each step is asked once for
   the same shown answers, so that all ways to spend audits are compared on the same answers.
2. What failed is None: a reply that never came, a verdict that is unknown. It is never right, and nothing
   above it is asked.
3. Every answer is kept in ``run.work`` as it comes, so that a killed run asks nothing twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

from calibrant.core import LM, Chat, Completion, Frozen, Goal, Judge, Monitor, Run, Sampling, digest
from calibrant.core.behaviours import same_number
from calibrant.core.digest import canonical
from calibrant.data.distinct import normal
from calibrant.data.task_tree import Layout
from calibrant.evals.judging import tokens, verdicts
from calibrant.ledger.lines import Lines, replay
from calibrant.oversee._comparing import filled

BLOCK = 256
"""Steps that are asked together."""
WHOLE = ""
"""Stands for a node where the whole task is asked directly."""
_FIELD = re.compile(r"\{(\w+)\}")
_SAID = re.compile(r"^[ \t*]*ANSWER[ \t*]*:[ \t*]*(.*?)[ \t*]*$", re.MULTILINE | re.IGNORECASE)
Answer = str | None
Who = Literal["solver", "fixer"]


class Step(NamedTuple):
    """One question: a node, and what it shows of its parts."""

    task: int
    """Place of the task."""
    node: str
    """Its name, or ``WHOLE``."""
    shows: tuple[str, ...] = ()
    """The answers to its parts, in order."""


class Parties(NamedTuple):
    """Who answers and who audits, and how they are asked."""

    solver: LM
    auditor: Judge | None
    fixer: LM | None
    monitor: Monitor | None
    prompt: str
    retry: str
    yes_means: Literal["right", "wrong"]
    sampling: Sampling


class _Kept(Frozen):
    """A line of ``run.work``: an answer, whether the auditor rejects it, or the monitor's score of it; None
    where it failed."""

    key: str
    text: str | None = None
    rejects: bool | None = None
    score: float | None = None


class Panel:
    """The parties, and all that they have said."""

    def __init__(self, layouts: Sequence[Layout], parties: Parties, run: Run, log: Lines) -> None:
        """``panel`` makes one."""
        self.layouts, self.parties, self._run, self._log = layouts, parties, run, log
        self._done = {kept.key: kept for kept in replay(log, _Kept.model_validate_json, "an answer")}
        told = [parties.prompt, parties.retry, parties.yes_means, parties.sampling, run.seed]
        names = {
            "solver": parties.solver,
            "fixer": parties.fixer,
            "auditor": parties.auditor,
            "monitor": parties.monitor,
        }
        self._who = {k: digest([k, *told, one.identity.digest if one else ""]) for k, one in names.items()}
        self._who["fixer"] = digest([self._who["fixer"], self._who["solver"]])
        self._keys: dict[tuple[str, Step, str], str] = {}

    def question(self, step: Step) -> str:
        """The step in words."""
        tree = self.layouts[step.task]
        if step.node == WHOLE:
            return tree.tree.question
        node = tree.nodes[step.node]
        shown = dict(zip(node.parts, step.shows, strict=True))
        return _FIELD.sub(lambda field: shown.get(field[1], field[0]), node.ask)

    def solve(self, steps: Sequence[Step]) -> list[Answer]:
        """The solver's answers."""
        return self._answers("solver", self.parties.solver, [(step, "") for step in steps])

    def fix(self, rejected: Sequence[tuple[Step, str]]) -> list[Answer]:
        """What stands in place of answers that were rejected: the fixer's, or the solver's second ones."""
        model = self.parties.fixer
        if model is None:
            return self._answers("fixer", self.parties.solver, rejected)
        return self._answers("fixer", model, [(step, "") for step, _ in rejected])

    def _answers(self, who: Who, model: LM, asked: Sequence[tuple[Step, str]]) -> list[Answer]:
        keys = [self._key(who, step, given) for step, given in asked]
        new = {key: one for key, one in zip(keys, asked, strict=True) if key not in self._done}
        sampling = self.parties.sampling.model_copy(update={"seed": self._run.seed})
        for block in _blocks(list(new)):
            chats = [self._chat(*new[key]) for key in block]
            self._run.spend(queries=len(chats))
            replies = model.generate(chats, sampling)
            same_number(f"model '{model.identity.name}'", len(replies), len(chats))
            self._run.spend(tokens=sum(tokens(reply, sampling.max_tokens) for reply in replies))
            self._keep([_Kept(key=k, text=answer_of(r)) for k, r in zip(block, replies, strict=True)])
        return [self._done[key].text for key in keys]

    def _key(self, who: str, step: Step, given: str) -> str:
        """What decides an answer: the text, and whose it is, so that equal questions stay apart."""
        if (who, step, given) not in self._keys:
            place = [self.layouts[step.task].tree.id, step.node, self.question(step)]
            self._keys[who, step, given] = digest([self._who[who], place, given])
        return self._keys[who, step, given]

    def _chat(self, step: Step, rejected: str) -> Chat:
        template = self.parties.retry if rejected else self.parties.prompt
        return filled(template, {"question": self.question(step), "answer": rejected})

    def rejects(self, given: Sequence[tuple[Step, str]]) -> list[bool | None]:
        """Whether the auditor rejects each answer; None where it does not say."""
        judge = self.parties.auditor
        if judge is None:
            raise ValueError("there is no auditor")
        keys = [self._key("auditor", step, answer) for step, answer in given]
        new = {key: one for key, one in zip(keys, given, strict=True) if key not in self._done}
        for block in _blocks(list(new)):
            asked = [(self.question(step), answer) for step, answer in (new[key] for key in block)]
            self._run.spend(queries=len(asked))
            found = verdicts(
                judge,
                [Goal(id=key, text=text, harmful=False) for key, (text, _) in zip(block, asked, strict=True)],
                [Chat.ask(text) for text, _ in asked],
                [Completion(text=answer) for _, answer in asked],
            )
            self._run.spend(tokens=sum(one.tokens for one in found))
            yes = self.parties.yes_means == "wrong"
            said = {"yes": yes, "no": not yes}
            self._keep(
                [_Kept(key=k, rejects=said.get(one.answer)) for k, one in zip(block, found, strict=True)]
            )
        return [self._done[key].rejects for key in keys]

    def suspicion(self, given: Sequence[tuple[Step, str]]) -> list[float | None]:
        """The monitor's scores of answers; None where it gave none, or no number."""
        monitor = self.parties.monitor
        if monitor is None:
            raise ValueError("there is no monitor")
        keys = [self._key("monitor", step, answer) for step, answer in given]
        new = {key: one for key, one in zip(keys, given, strict=True) if key not in self._done}
        for block in _blocks(list(new)):
            asked = (new[key] for key in block)
            chats = [Chat.ask(self.question(step)).then("assistant", answer) for step, answer in asked]
            self._run.spend(queries=len(chats))
            scores = monitor.score(chats)
            same_number(f"monitor '{monitor.identity.name}'", len(scores), len(chats))
            self._keep([_Kept(key=k, score=_finite(one)) for k, one in zip(block, scores, strict=True)])
        return [self._done[key].score for key in keys]

    def _keep(self, lines: Sequence[_Kept]) -> None:
        self._log.add([canonical(line) for line in lines])
        self._done |= {line.key: line for line in lines}

    def play(self, ways: Sequence[tuple[int, frozenset[str]]]) -> list[dict[str, Answer]]:
        """Answers by node of each (task, nodes audited), from the leaves to the root.

        An audited answer that the auditor rejects is replaced by the fixer's before anything above sees it.
        """
        answers: list[dict[str, Answer]] = [{} for _ in ways]
        top = max((tree.height[tree.root] for tree in self.layouts), default=-1)
        for height in range(top + 1):
            at: list[tuple[int, Step]] = []
            for way, (task, _) in enumerate(ways):
                tree = self.layouts[task]
                for name, node in tree.nodes.items():
                    if tree.height[name] == height:
                        step = step_of(task, name, node.parts, answers[way])
                        if step is None:
                            answers[way][name] = None
                        else:
                            at.append((way, step))
            found = self.solve([step for _, step in at])
            final = self._audited(
                [(step, one, step.node in ways[w][1]) for (w, step), one in zip(at, found, strict=True)]
            )
            for (way, step), one in zip(at, final, strict=True):
                answers[way][step.node] = one
        return answers

    def _audited(self, given: Sequence[tuple[Step, Answer, bool]]) -> list[Answer]:
        held = [(step, one) for step, one, looked in given if looked and one is not None]
        said = iter(self.after_audit(held))
        return [next(said) if looked and one is not None else one for _, one, looked in given]

    def after_audit(self, given: Sequence[tuple[Step, str]]) -> list[Answer]:
        """Each answer as an audit leaves it; None where the auditor, or the fixer, said nothing."""
        if not given:
            return []
        out = self.rejects(given)
        fixed = iter(self.fix([one for one, rejected in zip(given, out, strict=True) if rejected]))
        return [
            None if rejected is None else next(fixed) if rejected else answer
            for (_, answer), rejected in zip(given, out, strict=True)
        ]


@contextmanager
def panel(layouts: Sequence[Layout], parties: Parties, run: Run) -> Iterator[Panel]:
    """A panel that keeps what is said in ``run.work``."""
    with Lines(run.work / "decomposition.jsonl") as log:
        yield Panel(layouts, parties, run, log)


def step_of(task: int, name: str, parts: Sequence[str], answers: Mapping[str, Answer]) -> Step | None:
    """The step with the answers that its parts have; None where one has none."""
    shows = [answers[part] for part in parts]
    known = tuple(one for one in shows if one is not None)
    return Step(task, name, known) if len(known) == len(shows) else None


def is_right(answer: Answer, truth: str) -> bool | None:
    """Whether two answers are the same text, case, spaces and final punctuation aside; None without one."""
    return None if answer is None else _plain(answer) == _plain(truth)


def _plain(text: str) -> str:
    text = normal(text)
    return text.rstrip(".,;:!? ") or text


def answer_of(reply: Completion) -> Answer:
    """What follows ANSWER: on a line, or the whole reply where no line begins so.

    None where nothing was said, two lines differ, or a reply was cut before such a line or within it.
    """
    if reply.stop not in ("eos", "length") or reply.unanswered:
        return None
    if reply.stop == "length" and any(line.end() == len(reply.text) for line in _SAID.finditer(reply.text)):
        return None  # 'ANSWER: 1' may have been going to say 12
    lines = list(dict.fromkeys(line.strip() for line in _SAID.findall(reply.text) if line.strip()))
    if not lines and reply.stop == "eos" and not _SAID.search(reply.text):
        lines = [reply.text.strip()]
    return lines[0] if len(lines) == 1 and lines[0] else None


def _finite(score: float | None) -> float | None:
    return None if score is None or not math.isfinite(score) else float(score)


def _blocks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), BLOCK):
        yield keys[start : start + BLOCK]
