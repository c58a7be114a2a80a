"""Play every protocol on every question, in both orders of the answers and with both assignments of sides.

Kept in ``run.work`` a block of questions at a time, so that a killed run asks nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from calibrant.core import LM, Chat, Frozen, Run, Sampling
from calibrant.core.behaviours import same_number
from calibrant.core.digest import canonical, digest
from calibrant.data.rows import Question
from calibrant.evals.judging import tokens
from calibrant.ledger.lines import Lines, replay
from calibrant.oversee._comparing import Comparing, readings
from calibrant.oversee._protocol_chats import CRITIQUE, SIDES, Role, Said, Scene, judged, marked, played

BLOCK = 32
"""Questions that are played together."""
Name = Literal[
    "direct",
    "consultancy",
    "consultancy_open",
    "debate",
    "debate_simultaneous",
    "debate_open",
    "debate_open_simultaneous",
    "critic",
    "prover",
    "recursive",
]
Who = Literal["player", "opponent"]
Stance = Literal["right", "wrong", ""]


class Rule(NamedTuple):
    """What tells one protocol from another."""

    role: Role | None = None
    """What its players do; None: there are none."""
    open: bool = False
    """The player chooses its side; else it argues for the right answer once, and once for the wrong one."""
    simultaneous: bool = False
    """A debater does not read the other's turn of the same round."""
    against: Name = "direct"
    """What it is held against beside direct; 'direct' for nothing more."""


RULES: dict[Name, Rule] = {
    "direct": Rule(),
    "consultancy": Rule("consult"),
    "consultancy_open": Rule("consult", open=True),
    "debate": Rule("debate", against="consultancy"),
    "debate_simultaneous": Rule("debate", simultaneous=True, against="consultancy"),
    "debate_open": Rule("debate", open=True, against="consultancy_open"),
    "debate_open_simultaneous": Rule("debate", open=True, simultaneous=True, against="consultancy_open"),
    "critic": Rule("criticise"),
    "prover": Rule("prove"),
    "recursive": Rule("assist"),
}


class Turn(Frozen):
    """What one player said."""

    who: Who
    """Which of the two players."""
    side: str
    """The side that it argued for as displayed, 'critique', or the part that it evaluated."""
    round: int
    """The first is 1."""
    text: str
    """As the judge and other players read it, quotes marked."""
    verified: int = 0
    """Quotes that stand in the passage."""
    quotes: int = 0
    """All its quotes."""


class Case(Frozen):
    """One question under one protocol, judged once; a line of ``cases.jsonl``."""

    item: str
    """Id of the question."""
    cluster: str
    """What it is not independent of."""
    protocol: str
    """The protocol; 'player' or 'opponent' where one is asked itself, with the passage."""
    place: int
    """0: the right answer is displayed first; 1: second."""
    player: Stance = ""
    """The answer that ``player`` argues for (a critic: that was proposed); "" where it takes no side."""
    turns: tuple[Turn, ...] = ()
    """What was said, in order."""
    silent: tuple[Who, ...] = ()
    """Who owed a turn and said nothing."""
    reading: tuple[float, float] | None = None
    """Probabilities of the answers as displayed; None: no verdict."""


class Cast(NamedTuple):
    """Who plays, and how."""

    judge: LM
    player: LM
    opponent: LM
    reading: Comparing
    template: str
    rounds: int
    parts: tuple[str, ...]
    marks: bool
    sampling: Sampling


class _Kept(Frozen):
    """A block of questions in ``run.work``."""

    key: str
    cases: tuple[Case, ...]


@dataclass
class _Game:
    """A case in the making."""

    protocol: str
    scene: Scene
    player: Stance = ""
    seats: tuple[tuple[Who, str], ...] = ()
    turns: list[Turn] = field(default_factory=list)
    silent: list[Who] = field(default_factory=list)


def play(items: Sequence[Question], names: Sequence[Name], cast: Cast, run: Run) -> list[Case]:
    """Every case, in order of questions.

    Raises:
        BudgetError: the next block would pass a limit; those done are kept in ``run.work``.
        CapabilityError: a model answers for more or fewer chats than it was given.
    """
    who = [one.identity.digest for one in (cast.judge, cast.player, cast.opponent)]
    basis = [who, cast.player is cast.opponent, list(names), list(cast[3:]), run.seed]
    found: list[Case] = []
    with Lines(run.work / "protocols.jsonl") as log:
        done = {kept.key: kept.cases for kept in replay(log, _Kept.model_validate_json, "a block of cases")}
        for start in range(0, len(items), BLOCK):
            run.progress(start, len(items), "playing")
            block = items[start : start + BLOCK]
            key = digest([basis, list(block)])
            if key not in done:
                done[key] = tuple(_played(block, names, cast, run))
                log.add([canonical(_Kept(key=key, cases=done[key]))])
            found += done[key]
    run.progress(len(items), len(items), "playing")
    return found


def _played(items: Sequence[Question], names: Sequence[Name], cast: Cast, run: Run) -> list[Case]:
    scenes = [Scene(item, place) for item in items for place in (0, 1)]
    cases: list[Case] = []
    if any(RULES[name].role for name in names):
        players: list[tuple[Who, LM]] = [("player", cast.player)]
        if cast.opponent is not cast.player and any(RULES[name].role == "debate" for name in names):
            players.append(("opponent", cast.opponent))
        for who, model in players:
            chats = [played(scene, "believe", "") for scene in scenes]
            read = readings(model, chats, _own(cast), run, run.seed)
            cases += [_case(_Game(who, scene), one) for scene, one in zip(scenes, read, strict=True)]
    chosen: list[str] = []
    if any(RULES[name].open for name in names):
        chosen = _choices(scenes, cast, run)
    for name in names:
        games = _games(name, scenes, chosen)
        for at in range(cast.rounds if RULES[name].role in ("consult", "debate", "assist") else 1):
            _round(name, at + 1, games, cast, run)
        heard = [game for game in games if not game.silent and (game.seats or RULES[name].role is None)]
        chats = [judged(game.scene, cast.template) for game in heard]
        read = readings(cast.judge, chats, cast.reading, run, run.seed) if chats else []
        verdicts = {id(game): one for game, one in zip(heard, read, strict=True)}
        cases += [_case(game, verdicts.get(id(game))) for game in games]
    return cases


def _own(cast: Cast) -> Comparing:
    """How players are read: they are asked for 'first' or 'second', whatever the judge's words are."""
    return cast.reading.model_copy(update={"answers": SIDES})


def _case(game: _Game, reading: tuple[float, float] | None) -> Case:
    item = game.scene.item
    return Case(
        item=item.id,
        cluster=cluster_of(item),
        protocol=game.protocol,
        place=game.scene.place,
        player=game.player,
        turns=tuple(game.turns),
        silent=tuple(dict.fromkeys(game.silent)),
        reading=reading,
    )


def cluster_of(item: Question) -> str:
    """Questions about one passage are not independent."""
    return item.cluster or (digest(item.passage) if item.passage else f"item {item.id}")


def _choices(scenes: Sequence[Scene], cast: Cast, run: Run) -> list[str]:
    """The side that the player chooses to argue for; "" where it names none, or both."""
    chats = [played(scene, "choose", "") for scene in scenes]
    read = readings(cast.player, chats, _own(cast), run, run.seed)
    return ["" if one is None else chosen_side(one) for one in read]


def chosen_side(reading: tuple[float, float]) -> str:
    """The displayed side that a reading names; "" where it names none, or both alike."""
    first, second = reading
    if first == second or 1.0 - first - second > max(first, second):
        return ""
    return SIDES[0] if first > second else SIDES[1]


def _games(name: Name, scenes: Sequence[Scene], chosen: Sequence[str]) -> list[_Game]:
    """With seats: who speaks for which side. Debaters speak in the order in which answers are displayed."""
    rule = RULES[name]
    games: list[_Game] = []
    for at, scene in enumerate(scenes):
        open_scene = scene._replace(role=rule.role)
        if rule.role is None:
            games.append(_Game(name, scene))
        elif rule.role == "assist":
            games.append(_Game(name, open_scene, seats=(("player", ""),)))
        elif rule.open and not chosen[at]:
            games.append(_Game(name, open_scene))
        else:
            right = scene.side_of(right=True)
            for side in (chosen[at],) if rule.open else (right, scene.side_of(right=False)):
                game = _Game(name, open_scene, "right" if side == right else "wrong", (("player", side),))
                if rule.role == "debate":
                    whose: dict[bool, Who] = {True: "player", False: "opponent"}
                    game.seats = tuple((whose[one == side], one) for one in SIDES)
                elif rule.role == "criticise":
                    game.scene = open_scene._replace(proposed=side)
                games.append(game)
    return games


def _round(name: Name, number: int, games: Sequence[_Game], cast: Cast, run: Run) -> None:
    """One turn of every seat. Who speaks at the same time reads the record as it stood before."""
    if RULES[name].role == "assist":
        _speak(number, [(game, "player", part) for part in cast.parts for game in games], cast, run)
        return
    steps: tuple[tuple[int, ...], ...] = ((0, 1),) if RULES[name].simultaneous else ((0,), (1,))
    for seats in steps:
        owed = [(game, *game.seats[at]) for at in seats for game in games if at < len(game.seats)]
        _speak(number, [one for one in owed if not one[0].silent], cast, run)


def _speak(number: int, owed: Sequence[tuple[_Game, Who, str]], cast: Cast, run: Run) -> None:
    """Ask all at once, and enter what they say once all have spoken."""
    models: Mapping[Who, LM] = {"player": cast.player, "opponent": cast.opponent}
    said: list[tuple[_Game, Turn]] = []
    for model, turns in _by_model(owed, models):
        chats = [_asked(game, side) for game, _, side in turns]
        for (game, who, side), text in zip(turns, _replies(model, chats, cast.sampling, run), strict=True):
            if not text.strip():
                game.silent.append(who)
                continue
            quoted = marked(text, game.scene.item.passage, marks=cast.marks)
            label = CRITIQUE if game.scene.role == "criticise" else side
            turn = Turn(
                who=who, side=label, round=number, text=quoted.text,
                verified=quoted.verified, quotes=quoted.quotes,
            )  # fmt: skip
            said.append((game, turn))
    order = {(id(game), who): at for at, (game, who, _) in enumerate(owed)}
    said.sort(key=lambda one: order[id(one[0]), one[1].who])  # in turn, whichever model was asked first
    for game, turn in said:
        game.turns.append(turn)
        entry = Said(turn.side, number, turn.text)
        game.scene = game.scene._replace(record=(*game.scene.record, entry))


def _by_model(
    owed: Sequence[tuple[_Game, Who, str]], models: Mapping[Who, LM]
) -> Iterable[tuple[LM, list[tuple[_Game, Who, str]]]]:
    """Turns by who answers them; one model in both seats is asked once."""
    if models["player"] is models["opponent"]:
        return [(models["player"], list(owed))] if owed else []
    parted = [(model, [one for one in owed if one[1] == who]) for who, model in models.items()]
    return [(model, turns) for model, turns in parted if turns]


def _asked(game: _Game, side: str) -> Chat:
    role = game.scene.role or "assist"
    return played(game.scene, role, side, part=side if role == "assist" else "")


def _replies(model: LM, chats: Sequence[Chat], sampling: Sampling, run: Run) -> list[str]:
    """What each said; "" where it said nothing: an error, a block, or reasoning that never ended."""
    run.spend(queries=len(chats))
    replies = model.generate(chats, sampling.model_copy(update={"seed": run.seed}))
    same_number(f"model '{model.identity.name}'", len(replies), len(chats))
    run.spend(tokens=sum(tokens(reply, sampling.max_tokens) for reply in replies))
    return [reply.text if reply.stop in ("eos", "length") else "" for reply in replies]
