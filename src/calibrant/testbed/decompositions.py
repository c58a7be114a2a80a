"""Tasks taken apart, with the truth of every node known: weights of tools, looked up and added up.

``testbed:trees/sums``: "how much do the chalk, the lamp, the reed and the awl weigh together?". A leaf asks
for one weight: it stands in the question ('lookup'), or must be known ('recall'). An inner node adds what its
parts answered ('sum'). With ``votes=1`` each thing is weighed on three scales ('recall'), and a node takes
what most of them say ('vote'): it is right where two of three are.

``testbed:solver/ruled`` answers right, given the answers that it is shown, but for a planted error rate by
kind. A wrong answer is one too high, so that in a sum two errors never cancel, and the root is right exactly
where every step is: the formula of independent errors is exact. Two dials break it: ``shared`` makes the
errors of a task come together, and ``cancel=1`` makes half of the wrong answers one too low.
``testbed:auditor/ruled`` judges steps with planted misses and false alarms, and
``testbed:suspicion/ruled`` scores them. All of them draw by the name of the step and their seed alone.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from calibrant.core import LM, Chat, Completion, Goal, Identity, InputError, Judge, Monitor, Sampling, Verdict
from calibrant.data.task_tree import SubTask, TaskTree, TaskTrees
from calibrant.testbed.checks import check_name, check_options, whole_option
from calibrant.testbed.words import TOOLS

_MOST, _DEEPEST, _WIDEST, _NODES = 2000, 6, 4, 400
_HEAVIEST = 9
_TAG = re.compile(r"\btask (\S+), (step \w+|whole): (.+?\?)", re.DOTALL)
_SUM = re.compile(r"what is (.+)\?$", re.DOTALL)
_VOTE = re.compile(r"which number do most of (.+) say\?$", re.DOTALL)
_TOLD = re.compile(r"the (\w+) weighs (\d+)\. how much does the \1 weigh\?")
_KNOWN = re.compile(r"how much does the (\w+) weigh(?:, by the \w+ scale)?\?$")
_WHOLE = re.compile(r"how much do (.+) weigh together\?$")
_REJECTED = re.compile(r"was given and rejected")
_KINDS = {"lookup": "0.02", "recall": "0.2", "sum": "0.05", "vote": "0", "whole": "0.4"}
"""Kind of step -> the solver's error rate where nothing is said."""
_SCALES = ("first", "second", "third")


def weight(tool: str) -> int:
    """What a tool weighs, 1 to 9: planted knowledge."""
    return random.Random(f"weights/{tool}").randint(1, _HEAVIEST)


def open_trees(name: str, options: Mapping[str, str]) -> TaskTrees:
    """``testbed:trees/sums?n=200&depth=2&fan=2&votes=0&seed=1``: sums of ``fan ** depth`` weights.

    Raises:
        InputError: no such table or option, no or too many tasks, or trees that are too large.
    """
    check_name("trees", name, ("sums",), "table")
    check_options("trees", name, options, ("n", "depth", "fan", "votes", "seed"))
    defaults = {"n": 200, "depth": 2, "fan": 2, "votes": 0, "seed": 0}
    n, depth, fan, votes, seed = (whole_option(key, options, one) for key, one in defaults.items())
    if not 1 <= n <= _MOST:
        raise InputError(f"n={n}: 1 to {_MOST} tasks are made", hint="write ?n=200")
    if not 1 <= depth <= _DEEPEST or not 2 <= fan <= _WIDEST or fan**depth > min(_NODES, len(TOOLS)):
        raise InputError(
            f"depth={depth}, fan={fan}: 1 to {_DEEPEST} levels of 2 to {_WIDEST} parts are made, of at most "
            f"{min(_NODES, len(TOOLS))} weights",
            hint="write ?depth=2&fan=2",
        )
    if votes > 1:
        raise InputError(f"votes={votes} is neither 0 nor 1", hint="write ?votes=1")
    rng = random.Random(f"trees/sums/{seed}/{depth}/{fan}/{votes}")
    rows = tuple(_tree(rng, f"{seed}.{at}", depth, fan, votes) for at in range(n))
    return TaskTrees(rows=rows, source=f"testbed:trees/{name}")


def _tree(rng: random.Random, name: str, depth: int, fan: int, votes: int) -> TaskTree:
    things = rng.sample(TOOLS, fan**depth)
    nodes: list[SubTask] = []
    level = [_leaf(rng, nodes, name, thing, votes) for thing in things]
    while len(level) > 1:
        level = [_sum(nodes, name, level[at : at + fan]) for at in range(0, len(level), fan)]
    listed = ", ".join(f"the {thing}" for thing in things)
    question = f"task {name}, whole: how much do {listed} weigh together?"
    return TaskTree(id=name, question=question, nodes=tuple(nodes))


def _step(name: str, nodes: Sequence[SubTask]) -> tuple[str, str]:
    """The next node's id, and how its question begins."""
    step = f"n{len(nodes)}"
    return step, f"task {name}, step {step}: "


def _leaf(rng: random.Random, nodes: list[SubTask], name: str, thing: str, votes: int) -> SubTask:
    right = f"{weight(thing)}"
    if votes:
        for scale in _SCALES:
            step, begins = _step(name, nodes)
            asked = f"{begins}how much does the {thing} weigh, by the {scale} scale?"
            nodes.append(SubTask(id=step, ask=asked, answer=right, kind="recall"))
        parts = tuple(node.id for node in nodes[-len(_SCALES) :])
        step, begins = _step(name, nodes)
        asked = f"{begins}which number do most of {', '.join(f'{{{part}}}' for part in parts)} say?"
        nodes.append(SubTask(id=step, ask=asked, answer=right, parts=parts, needs="majority", kind="vote"))
        return nodes[-1]
    step, begins = _step(name, nodes)
    told = rng.random() < 0.5
    asked = f"{begins}{f'the {thing} weighs {right}. ' if told else ''}how much does the {thing} weigh?"
    nodes.append(SubTask(id=step, ask=asked, answer=right, kind="lookup" if told else "recall"))
    return nodes[-1]


def _sum(nodes: list[SubTask], name: str, parts: Sequence[SubTask]) -> SubTask:
    step, begins = _step(name, nodes)
    asked = f"{begins}what is {' plus '.join(f'{{{part.id}}}' for part in parts)}?"
    right = f"{sum(int(part.answer) for part in parts)}"
    nodes.append(
        SubTask(id=step, ask=asked, answer=right, parts=tuple(part.id for part in parts), kind="sum")
    )
    return nodes[-1]


class _Seen:
    """A step as it is asked, and its right answer given what it shows."""

    def __init__(self, task: str, step: str, kind: str, right: str) -> None:
        self.task, self.step, self.kind, self.right = task, step, kind, right


def _seen(text: str) -> _Seen | None:
    """None where the text is no question of this world, or shows what is no number."""
    found = _TAG.search(text)
    if found is None:
        return None
    task, step, asked = found.groups()
    for kind, pattern in (("sum", _SUM), ("vote", _VOTE)):
        shown = pattern.match(asked)
        if shown:
            parts = re.split(r" plus |, ", shown[1])
            if not all(re.fullmatch(r"-?\d{1,9}", part) for part in parts):
                return None
            if kind == "sum":
                return _Seen(task, step, kind, f"{sum(map(int, parts))}")
            return _Seen(task, step, kind, Counter(parts).most_common(1)[0][0])
    if told := _TOLD.match(asked):
        return _Seen(task, step, "lookup", told[2])
    if known := _KNOWN.match(asked):
        return _Seen(task, step, "recall", f"{weight(known[1])}")
    if whole := _WHOLE.match(asked):
        return _Seen(
            task, step, "whole", f"{sum(weight(thing.split()[-1]) for thing in whole[1].split(', '))}"
        )
    return None


def _lot(*parts: object) -> float:
    return random.Random("/".join(map(str, parts))).random()


def _share(key: str, options: Mapping[str, str], default: str) -> float:
    text = options.get(key, default)
    if not re.fullmatch(r"0|1|0?\.\d+|1\.0*|0\.", text):
        raise InputError(f"{key}={text} is no share", hint=f"write ?{key}=.5")
    return float(text)


def open_solver(name: str, options: Mapping[str, str]) -> LM:
    """``testbed:solver/ruled?lookup=.02&recall=.2&sum=.05&vote=0&whole=.4&shared=0&cancel=0&retry=.5&seed=1``;
    ``testbed:solver/perfect`` never errs.

    ``error=.1`` sets all kinds but 'whole'. ``shared``: share of tasks whose steps err by one lot. ``retry``:
    how often it is right where its wrong answer was rejected and it is asked anew; a right answer that was
    rejected it gives up.

    Raises:
        InputError: no such solver or option, or no share.
    """
    check_name("solver", name, ("ruled", "perfect"), "solver")
    allowed = (*_KINDS, "error", "shared", "cancel", "retry", "seed") if name == "ruled" else ()
    check_options("solver", name, options, allowed)
    every = {kind: options["error"] for kind in _KINDS if kind != "whole"} if "error" in options else {}
    default = _KINDS | every if name == "ruled" else dict.fromkeys(_KINDS, "0")
    rates = {kind: _share(kind, options, default[kind]) for kind in _KINDS}
    dials = {"shared": "0", "cancel": "0", "retry": ".5"}
    shares = {key: _share(key, options, default) for key, default in dials.items()}
    return _Solver(name, rates, shares, whole_option("seed", options, 0))


class _Solver:
    """The LM that ``open_solver`` makes."""

    def __init__(self, name: str, rates: Mapping[str, float], dials: Mapping[str, float], seed: int) -> None:
        self._rates, self._dials, self._seed = rates, dials, seed
        parts = {"solver": "ruled", "version": "1", "seed": str(seed)}
        parts |= {key: f"{value:g}" for key, value in (rates | dict(dials)).items()}  # type: ignore[operator]
        self.identity = Identity(name=f"testbed:solver/{name}", parts=parts)

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        """One answer a chat; what is no question of this world is not answered with a number."""
        return [Completion(text=self._answer(chat.last_user)) for chat in chats]

    def _answer(self, text: str) -> str:
        seen = _seen(text)
        if seen is None:
            return "i can not tell."
        right = int(seen.right)
        together = _lot("solver/together", self._seed, seen.task) < self._dials["shared"]
        step = "" if together and seen.kind != "whole" else seen.step
        errs = _lot("solver", self._seed, seen.task, step) < self._rates[seen.kind]
        if _REJECTED.search(text):
            again = _lot("solver/again", self._seed, seen.task, seen.step)
            return f"{right if errs and again < self._dials['retry'] else right + 2 if errs else right + 1}"
        if not errs:
            return f"{right}"
        low = self._dials["cancel"] and _lot("solver/low", self._seed, seen.task, seen.step) < 0.5
        return f"{right - 1 if low else right + 1}"


def open_auditor(name: str, options: Mapping[str, str]) -> Judge:
    """``testbed:auditor/ruled?misses=.1&alarms=.05&silent=0&seed=1``: yes means that a step is right.

    ``misses``: how often it passes a wrong step, ``alarms``: how often it rejects a right one, ``silent``:
    how often it does not say. misses=.5&alarms=.5 knows nothing. ``testbed:auditor/oracle`` never errs.

    Raises:
        InputError: no such auditor or option, or no share.
    """
    check_name("auditor", name, ("ruled", "oracle"), "auditor")
    check_options("auditor", name, options, ("misses", "alarms", "silent", "seed") if name == "ruled" else ())
    misses, alarms = (".1", ".05") if name == "ruled" else ("0", "0")
    rates = {
        "misses": _share("misses", options, misses),
        "alarms": _share("alarms", options, alarms),
        "silent": _share("silent", options, "0"),
    }
    return _Auditor(name, rates, whole_option("seed", options, 0))


class _Auditor:
    """The judge that ``open_auditor`` makes."""

    calibration = "exact"
    question = "is the step right, given what it shows?"

    def __init__(self, name: str, rates: Mapping[str, float], seed: int) -> None:
        self._rates, self._seed = rates, seed
        if any(rates.values()):
            self.calibration = "uncalibrated"
        parts = {"auditor": "ruled", "version": "1", "seed": str(seed)}
        parts |= {key: f"{value:g}" for key, value in rates.items()}
        self.identity = Identity(name=f"testbed:auditor/{name}", kind="judge", parts=parts)

    def judge(
        self, goals: Sequence[Goal], chats: Sequence[Chat], completions: Sequence[Completion]
    ) -> list[Verdict]:
        """One verdict a step; unknown for what is no step of this world."""
        return [
            self._verdict(chat.last_user, reply.text) for chat, reply in zip(chats, completions, strict=True)
        ]

    def _verdict(self, text: str, answer: str) -> Verdict:
        seen = _seen(text)
        if seen is None:
            return Verdict(question=self.question, answer="unknown", reason="it is no step of this world")
        key = (self._seed, seen.task, seen.step, answer)
        if _lot("auditor/silent", *key) < self._rates["silent"]:
            return Verdict(question=self.question, answer="unknown", reason="the auditor did not say")
        right = answer == seen.right
        errs = _lot("auditor", *key) < self._rates["alarms" if right else "misses"]
        return Verdict(question=self.question, answer="yes" if right != errs else "no", reason="by rule")


def open_suspicion(name: str, options: Mapping[str, str]) -> Monitor:
    """``testbed:suspicion/ruled?noise=.5&seed=1``: 1 for a wrong step, 0 for a right one, and normal noise of
    this standard deviation; ``testbed:suspicion/random`` reads nothing.

    Raises:
        InputError: no such monitor or option, or a noise that is no number from 0 on.
    """
    check_name("suspicion", name, ("ruled", "random"), "monitor")
    check_options("suspicion", name, options, ("noise", "seed") if name == "ruled" else ("seed",))
    text = options.get("noise", ".5")
    if not re.fullmatch(r"\d{0,3}(\.\d{0,6})?", text) or not re.search(r"\d", text):
        raise InputError(f"noise={text} is no number from 0 on", hint="write ?noise=.5")
    return _Suspicion(name, float(text), whole_option("seed", options, 0))


class _Suspicion:
    """The monitor that ``open_suspicion`` makes."""

    threshold = 0.5

    def __init__(self, name: str, noise: float, seed: int) -> None:
        self._reads, self._noise, self._seed = name == "ruled", noise, seed
        parts = {"suspicion": name, "version": "1", "noise": f"{noise:g}", "seed": str(seed)}
        self.identity = Identity(name=f"testbed:suspicion/{name}", kind="monitor", parts=parts)

    def score(self, chats: Sequence[Chat]) -> list[float | None]:
        """One score a step with its answer; None for what is no step of this world."""
        return [self._score(chat) for chat in chats]

    def _score(self, chat: Chat) -> float | None:
        seen = _seen(chat.last_user)
        answer = chat.messages[-1].content
        if seen is None or chat.messages[-1].role != "assistant":
            return None
        rng = random.Random(f"suspicion/{self._seed}/{seen.task}/{seen.step}/{answer}")
        return float(self._reads and answer != seen.right) + rng.gauss(0.0, self._noise or 1e-9)
