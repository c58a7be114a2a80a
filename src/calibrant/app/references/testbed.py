"""``testbed:KIND/NAME?k=v``: models, rows and ground truth of the testbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from calibrant.app import catalog
from calibrant.app.references import behaviours, locate, on_disk
from calibrant.app.references.opened import Opened, identified
from calibrant.app.references.rows import TABLES, serving_as
from calibrant.app.references.scheme import BEHAVIOURS, MODELS, Reference, found_by
from calibrant.core import ConfigError, Identity, InputError, Monitor
from calibrant.core.errors import nearest
from calibrant.data.constitution import Constitution
from calibrant.data.control_setting import ControlSetting
from calibrant.data.planted import Plants
from calibrant.data.rows import Table
from calibrant.models.folder import check_folder

_ROWS = (
    "goals", "items", "pairs", "prompts", "examples", "canaries", "contrasts", "facts", "classes",
    "questions", "trees", "labels", "goal_probes",
)  # fmt: skip
"""Kinds of rows: 'open_goals' of ``testbed/serve.py`` makes goals, and so on."""

_PLANTS = {
    "induction": "circuits",
    "name_mover": "name_mover",
    "greater_than": "greater_than",
    "gate": "gates",
    "backdoor": "backdoor",
    "edited": "edited",
    "facts": "facts",
    "refusal": "refusal_plant",
    "concept": "imitable",
}
"""Planted models, and their modules in the testbed."""


_SCRIPTED = {
    "attacker": "attacker",
    "policy": "control",
    "reader": "constitutions",
    "writer": "constitutions",
    "debater": "questions",
    "arbiter": "questions",
    "solver": "decompositions",
}
"""Kinds of models that speak by rule, and their modules in the testbed."""


class Parsed(NamedTuple):
    """``testbed:KIND/NAME?k=v``, taken apart."""

    text: str
    kind: str
    name: str
    options: dict[str, str]


def find(reference: Reference) -> Any:
    """Rows, a behaviour, or a model: its folder, or how it is made; no weights are read.

    Raises:
        InputError: no such name or option. ConfigError: no such kind, or one that gives no ``wanted``.
    """
    path, _, query = reference.rest.partition("?")
    kind, slash, name = path.partition("/")
    if not slash or not name:
        raise ConfigError(f"'{reference.text}': write testbed:KIND/NAME, for example testbed:goals/heldout")
    parsed = Parsed(reference.text, kind, name, dict(parse_qsl(query, keep_blank_values=True)))
    if reference.wanted in TABLES:
        return _rows(parsed, reference.wanted)
    if reference.wanted is Plants:
        return _plants(parsed)
    if reference.wanted is ControlSetting:
        return _control(parsed)
    if reference.wanted is Constitution:
        return _constitution(parsed)
    if reference.wanted in BEHAVIOURS:
        return behaviours.fitting(_behaviour(parsed), reference)
    return _model(parsed)


def make(reference: Reference, found: Any) -> Opened:
    """What ``find`` found."""
    if isinstance(found, tuple):
        identity, load = found
        return identified(identity, load, reference.text, reference.wanted)
    if isinstance(found, Path):
        return on_disk.read(reference, found)
    if reference.wanted in (Plants, ControlSetting):
        identity = found.identity
        return Opened(
            identity.digest,
            "plants" if reference.wanted is Plants else "control setting",
            lambda: found,
            name=identity.name,
            parts=identity.parts,
            identity=identity,
        )
    if reference.wanted is Constitution:
        return Opened(found.digest, "constitution", lambda: found, name=reference.text)
    if reference.wanted in TABLES:
        return Opened(found.digest, "data", lambda: found, name=reference.text)
    return behaviours.described(found, lambda: found, reference)


def _rows(parsed: Parsed, wanted: type[Table[Any]]) -> Table[Any]:
    """Goals, items, pairs, canaries, ...; the last two also as demonstrations."""
    if parsed.kind not in _ROWS:
        raise ConfigError(
            f"'{parsed.text}': no rows of kind '{parsed.kind}'{nearest(parsed.kind, _ROWS)}",
            hint=f"kinds with rows: {', '.join(_ROWS)}",
        )
    home = parsed.kind if parsed.kind in ("contrasts", "facts", "questions") else "serve"
    home = {
        "classes": "imitable",
        "trees": "decompositions",
        "labels": "sandwich",
        "goal_probes": "scenes",
    }.get(parsed.kind, home)
    home = "refusal_plant" if parsed.kind == "goals" and parsed.name.startswith("plant_") else home
    home = "constitutions" if (parsed.kind, parsed.name) == ("pairs", "principled") else home
    home = "suspect" if (parsed.kind, parsed.name) == ("items", "lineup") else home
    home = "backdoor" if parsed.kind == "prompts" and parsed.name == "backdoor" else home
    source = catalog.load(f"calibrant.testbed.{home}:open_{parsed.kind}")(parsed.name, parsed.options)
    table = serving_as(wanted, source)
    if not isinstance(table, wanted):
        raise ConfigError(f"'{parsed.text}' gives {type(table).__name__}, not {wanted.__name__}")
    return table


def _plants(parsed: Parsed) -> Plants:
    """Models with known circuits; none is built yet."""
    if parsed.kind != "plants":
        raise ConfigError(f"'{parsed.text}' is no set of plants", hint="testbed:plants/induction")
    plants: Plants = catalog.load("calibrant.testbed.circuit_plants:open_plants")(parsed.name, parsed.options)
    return plants


def _control(parsed: Parsed) -> ControlSetting:
    """Tasks for AI control."""
    if parsed.kind != "control":
        raise ConfigError(f"'{parsed.text}' is no control setting", hint="testbed:control/errands")
    setting: ControlSetting = catalog.load("calibrant.testbed.control:open_control")(
        parsed.name, parsed.options
    )
    return setting


def _constitution(parsed: Parsed) -> Constitution:
    """Principles, with or without a planted defect."""
    if parsed.kind != "constitution":
        raise ConfigError(f"'{parsed.text}' is no constitution", hint="testbed:constitution/clean")
    found: Constitution = catalog.load("calibrant.testbed.constitutions:open_constitution")(
        parsed.name, parsed.options
    )
    return found


def _behaviour(parsed: Parsed) -> Any:
    """The gold truth: one judge a criterion, one reward; monitors and auditors that go by rules."""
    if parsed.kind == "monitor":
        monitor: Monitor = catalog.load("calibrant.testbed.control:open_monitor")(parsed.name, parsed.options)
        return monitor
    if parsed.kind in ("auditor", "suspicion"):
        home = "calibrant.testbed.decompositions"
        return catalog.load(f"{home}:open_{parsed.kind}")(parsed.name, parsed.options)
    _option(parsed)
    if (parsed.kind, parsed.name) == ("judge", "flawed"):
        return catalog.load("calibrant.testbed.hacking:FlawedChecker")()
    if parsed.kind == "judge":
        return catalog.load("calibrant.testbed.gold:GoldJudge")(parsed.name)
    if parsed.kind == "reward" and parsed.name == "gold":
        return catalog.load("calibrant.testbed.gold:GoldReward")()
    raise ConfigError(
        f"'{parsed.text}' is no behaviour",
        hint="testbed:judge/harmful (refused, helpful, honest, concise, flawed), testbed:reward/gold, "
        "testbed:monitor/words, testbed:auditor/ruled, testbed:suspicion/ruled",
    )


def _model(parsed: Parsed) -> Path | tuple[Identity, Callable[[], Any]]:
    """The folder of a shipped model; a null, a plant or an attacker, which are made."""
    if parsed.kind in _SCRIPTED:
        module = _SCRIPTED[parsed.kind]
        scripted = catalog.load(f"calibrant.testbed.{module}:open_{parsed.kind}")(parsed.name, parsed.options)
        return scripted.identity, lambda: scripted
    if parsed.kind == "plant":
        if parsed.name not in _PLANTS:
            raise InputError(
                f"'{parsed.text}': no such plant{nearest(parsed.name, _PLANTS)}",
                hint=f"one of: {', '.join(_PLANTS)}",
            )
        home = f"calibrant.testbed.{_PLANTS[parsed.name]}"
        identity = catalog.load(f"{home}:plant_identity")(parsed.name, parsed.options)
        return identity, lambda: catalog.load(f"{home}:open_plant")(parsed.name, parsed.options)
    if parsed.kind == "null":
        seed = _option(parsed, "seed")
        if not (seed.isascii() and seed.isdigit() and len(seed) < 20):
            raise InputError(f"'{parsed.text}': seed={seed} is not a whole number", hint="write ?seed=1")
        identity = Identity(name=parsed.text, parts={"null": parsed.name, "seed": seed})
        return identity, lambda: catalog.load("calibrant.testbed.nulls:open_null")(
            parsed.name, {"seed": seed}
        )
    if parsed.kind != "model":
        raise ConfigError(
            f"'{parsed.text}' is no model{nearest(parsed.kind, ('model', 'null', 'plant', *_SCRIPTED))}",
            hint="testbed:model/base, testbed:null/base, testbed:plant/induction, testbed:attacker/ruled or "
            "testbed:policy/untrusted",
        )
    _option(parsed)
    known = {path.parent.name: path.parent for path in locate.WEIGHTS.glob("*/config.json")}
    if parsed.name not in known:
        raise InputError(
            f"'{parsed.text}': no such model{nearest(parsed.name, known)}",
            hint=f"one of: {', '.join(sorted(known)) or 'none is installed'}",
        )
    return check_folder(known[parsed.name])


def _option(parsed: Parsed, *known: str) -> str:
    """The value of the only option there may be, "0" where it is not given."""
    wrong = sorted(parsed.options.keys() - set(known))
    if wrong:
        raise InputError(
            f"'{parsed.text}': unknown option '{wrong[0]}'{nearest(wrong[0], known)}",
            hint=f"options: {', '.join(known) or 'none'}",
        )
    return next(iter(parsed.options.values()), "0")


TESTBED = found_by(
    find, make, (*MODELS, *TABLES, *BEHAVIOURS, Plants, ControlSetting, Constitution), columns=False
)
