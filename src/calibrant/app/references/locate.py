"""Where references lead: files, folders, hubs, endpoints, real data, and the testbed.

What needs torch or pyarrow is loaded through the catalogue, so that finding a thing stays quick.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from calibrant.app import catalog
from calibrant.app.references.paths import there
from calibrant.core import ConfigError, Identity, InputError
from calibrant.core.errors import nearest
from calibrant.core.written import parse_toml
from calibrant.data.attempts import attempts_from
from calibrant.data.canaries import Canaries, canaries_from, planted_examples
from calibrant.data.columns import ignoring
from calibrant.data.files import RawRow, raw_rows
from calibrant.data.graded import graded_from
from calibrant.data.human_labels import HumanLabels, labels_from
from calibrant.data.readers import read as read_rows
from calibrant.data.references import SUFFIXES
from calibrant.data.rows import (
    Attempts,
    Example,
    Examples,
    GradedReplies,
    Labelled,
    LabelledReplies,
    Preferences,
    Prompt,
    Prompts,
    Table,
)
from calibrant.data.votes import Votes, votes_from
from calibrant.ledger.layout import disk
from calibrant.models.folder import check_folder, folder_identity
from calibrant.models.hub_name import check_hub_name

Load = Callable[[], Any]
STUDIES = Path(str(files("calibrant") / "studies"))
"""The packaged studies and their policies."""
WEIGHTS = Path(str(files("calibrant") / "testbed" / "weights"))
"""The testbed's models, a folder each."""
_SCHEMES = ("hf", "api", "data", "testbed", "record", "given", "defended")


class Origin(NamedTuple):
    """Where a real data set comes from, and which of its files holds the rows."""

    source: str
    file: str


ORIGINS: dict[str, Origin] = {
    "hh_rlhf": Origin("github.com/anthropics/hh-rlhf @ 354e5c3cb896, harmless-base", "harmless_base.jsonl"),
    "stories260K": Origin("karpathy/llama2.c, stories260K, as a Hugging Face folder", ""),
    "behaviours": Origin("github.com/busycalibrating/AdversariaLLM @ f970939273ea", "harmbench_val.csv"),
    "xstest": Origin("github.com/paul-rottger/exaggerated-safety @ d7bb5bd738c1", "prompts.csv"),
    "moderation": Origin("github.com/openai/moderation-api-release @ f4ab51b5edd3", "samples.jsonl"),
}
"""Data sets that studies name; other folders under $CALIBRANT_DATA work as data:NAME/FILE."""
_OWN: dict[Any, Callable[..., Any]] = {
    Votes: votes_from,
    Attempts: attempts_from,
    Canaries: canaries_from,
    GradedReplies: graded_from,
    HumanLabels: labels_from,
}
"""Kinds of rows with a reader of their own."""
_STACKS = 16  # of guards, one behind the other


def file(reference: str, base: Path) -> Path:
    """A file beside the study, under the working folder, or packaged with Calibrant."""
    tried = [base / reference, Path.cwd() / reference, STUDIES / reference]
    for path in tried:
        if there(path):
            return path
    raise InputError(
        f"no file '{reference}'", hint="looked in " + ", ".join(str(p.parent) for p in dict.fromkeys(tried))
    )


def toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises ConfigError with the line that cannot be read, InputError if none can."""
    try:
        with disk("reading", path):
            text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})", hint="save it as UTF-8") from None
    return parse_toml(text, str(path))


def stack(reference: str) -> tuple[str, str]:
    """The file and the model of ``defended:FILE.toml#MODEL``."""
    if reference.count("defended:") > _STACKS:
        raise ConfigError(f"'{reference[:60]}': too many references inside one another")
    file, _, inner = reference.removeprefix("defended:").partition("#")
    if not inner:
        raise ConfigError(
            f"'{reference}' names no model", hint="write defended:FILE.toml#MODEL, as in docs/defended.md"
        )
    return file, inner


def data(reference: str) -> Path:
    """The file or folder of ``data:NAME`` or ``data:NAME/FILE`` under $CALIBRANT_DATA."""
    name, _, inside = reference.removeprefix("data:").partition("/")
    origin = ORIGINS.get(name)
    root = os.environ.get("CALIBRANT_DATA", "")
    path = Path(root) / name / (inside or (origin.file if origin else ""))
    if root:
        _stay_inside(reference, path, Path(root))
        if there(path) or there(path, folder=True):
            return path
    where = f"get it from {origin.source}" if origin else f"known names: {', '.join(ORIGINS)}"
    missing = f"{path} is not there" if root else "CALIBRANT_DATA is not set"
    raise InputError(
        f"'{reference}': {missing}{'' if origin else nearest(name, ORIGINS)}",
        hint=f"{where}, put it in a folder '{name}' and set CALIBRANT_DATA to the folder above",
    )


def _stay_inside(reference: str, path: Path, root: Path) -> None:
    """Refuse ``data:..``, absolute paths and links that lead out: such a file is not what the name says."""
    try:
        inside = path.resolve().is_relative_to(root.resolve()) and path.resolve() != root.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"'{reference}' names no file: {error}", hint="write data:NAME/FILE") from None
    if not inside:
        raise InputError(
            f"'{reference}' leads outside $CALIBRANT_DATA",
            hint="name a file below it, or give the file's own path: jsonl:PATH",
        )


def rows(reference: str, base: Path) -> Path:
    """The file behind ``jsonl:PATH`` and its like, ``data:NAME``, or a bare path with a known suffix."""
    scheme, colon, rest = reference.partition(":")
    if scheme == "data" and colon:
        found = data(reference)
        if found.is_dir():
            raise InputError(
                f"'{reference}' is a folder", hint=f"name one of its files: {reference}/FILE.jsonl"
            )
        return found
    if colon and f".{scheme}" in SUFFIXES:
        return file(rest, base)
    if reference.endswith(SUFFIXES):
        return file(reference, base)
    raise ConfigError(
        f"'{reference}' is no reference to rows{nearest(scheme, [*_SCHEMES, 'jsonl', 'csv', 'parquet'])}",
        hint="jsonl:PATH, csv:PATH, parquet:PATH, data:NAME, testbed:KIND/NAME or record:JOB/FILE",
    )


def read(wanted: type[Table[Any]], path: Path, reference: str, ignore: Sequence[str] = ()) -> Any:
    """Read rows; pairs also serve as demonstrations and as labelled replies."""
    table = _read(wanted, path, reference, ignore)
    return table.model_copy(update={"unused": (*table.unused, *ignore)}) if ignore else table


def _read(wanted: type[Table[Any]], path: Path, reference: str, ignore: Sequence[str]) -> Any:
    def stream(path: Path) -> Iterator[RawRow]:
        parquet = path.suffix == ".parquet" and wanted not in _OWN
        rows = catalog.load("calibrant.data.parquet:rows_from_parquet") if parquet else raw_rows
        return ignoring(rows(path), ignore)

    if wanted in _OWN:
        return _OWN[wanted](stream(path), reference)
    kind = wanted
    if wanted in (Examples, LabelledReplies):
        first = next((row for _, row in stream(path) if isinstance(row, dict)), {})
        kind = Preferences if "chosen" in first else wanted
    return _as(wanted, read_rows(kind, stream(path), reference))


def read_stored(
    wanted: type[Table[Any]], stored: Path, name: str, reference: str, ignore: Sequence[str] = ()
) -> Any:
    """Read rows of a ledger's file: it is stored by digest, and readers go by the name's suffix."""
    with tempfile.TemporaryDirectory() as room:
        named = Path(room) / name
        named.symlink_to(stored.resolve())
        return read(wanted, named, reference, ignore)


def _as(wanted: type[Table[Any]], table: Table[Any]) -> Table[Any]:
    """Pairs as demonstrations of their chosen replies, as replies with a thumb up or down, or as prompts.

    Canaries as demonstrations, each as often as it is planted.
    """
    if isinstance(table, Canaries) and wanted is Examples:
        return planted_examples(table)
    if not isinstance(table, Preferences) or wanted is Preferences:
        return table
    made: list[Any] = []
    for p in table.rows:
        if wanted is Examples:
            made.append(Example(id=p.id, prompt=p.prompt, completion=p.chosen))
        elif wanted is Prompts:
            made.append(Prompt(id=p.id, prompt=p.prompt))
        elif wanted is LabelledReplies:
            for label, reply in ((True, p.chosen), (False, p.rejected)):
                name = f"{p.id}/{'chosen' if label else 'rejected'}"
                made.append(Labelled(id=name, prompt=p.prompt, completion=reply, label=label))
    told = {"source": table.source, "refused": table.refused, "unused": table.unused}
    return wanted(rows=tuple(made), **told) if made else table


def model(reference: str, base: Path) -> tuple[Identity, Load]:
    """Identity of the model that ``reference`` names, and how to load it."""
    folder = model_folder(reference, base)
    if folder is not None:
        return folder_model(folder, reference)
    rest = reference.partition(":")[2]
    if reference.startswith("hf:"):
        name, revision = hub_name(reference)
        return folder_model(catalog.load("calibrant.models.hub:download")(name, revision), rest)
    if reference.startswith("api:"):
        url, _, served = rest.rpartition("#")
        if not url:
            raise ConfigError(f"'{reference}' names no model", hint="write api:http://HOST:PORT/v1#MODEL")
        return _api_model(url, served)
    asked = testbed(reference)
    if asked.kind == "attacker":
        attacker = catalog.load("calibrant.testbed.attacker:open_attacker")(asked.name, asked.options)
        return attacker.identity, lambda: attacker
    size, seed = asked.name, _option(asked, reference, "seed")
    if not (seed.isascii() and seed.isdigit() and len(seed) < 20):
        raise InputError(f"'{reference}': seed={seed} is not a whole number", hint="write ?seed=1")
    identity = Identity(name=reference, parts={"null": size, "seed": seed})
    return identity, lambda: catalog.load("calibrant.testbed.nulls:open_null")(size, {"seed": seed})


def hub_name(reference: str) -> tuple[str, str]:
    """Name and commit of ``hf:NAME@COMMIT``. Raises InputError where they are none."""
    name, _, revision = reference.removeprefix("hf:").partition("@")
    check_hub_name(name, revision)
    return name, revision


def _api_model(url: str, served: str) -> tuple[Identity, Load]:
    """A model behind an endpoint; loading it asks the endpoint once whether it is there."""
    # Read from the environment at each call; it enters no config and no record, and goes to its host alone.
    variable = catalog.load("calibrant.models.keys:key_variable")(url)
    key = variable if variable in os.environ else None
    config = catalog.load("calibrant.models.api:ApiConfig")(api_key_env=key)
    talker = catalog.load("calibrant.models.api:ApiModel").open(url, served, config)

    def checked() -> Any:
        try:
            talker.check()
        except InputError as error:
            if key is None and variable:
                told = f"a key for this address goes into ${variable}"
                error.hint = f"{error.hint}; {told}" if error.hint else told
            raise
        return talker

    return talker.identity, checked


def model_folder(reference: str, base: Path) -> Path | None:
    """The folder that holds the model, or None where none is needed: hf:, api:, testbed:null, :attacker.

    Raises:
        InputError: there is no such folder, or no model in it. ConfigError: no reference to a model.
    """
    scheme, colon, _ = reference.partition(":")
    if scheme == "testbed" and colon:
        return _testbed_folder(reference)
    if colon and scheme in ("hf", "api"):
        return None
    if colon and scheme == "data":
        return check_folder(data(reference))
    for folder in (base / reference, Path.cwd() / reference):
        if there(folder, folder=True):
            return check_folder(folder)
    raise InputError(
        f"'{reference}' is no model: {'unknown scheme' if colon else 'no such folder'}"
        f"{nearest(scheme, _SCHEMES) if colon else ''}",
        hint="a folder with config.json, hf:NAME@COMMIT, api:URL#MODEL, testbed:model/NAME, record:JOB/model",
    )


def folder_model(folder: Path, name: str) -> tuple[Identity, Load]:
    """A model that lies in a folder."""
    with disk("reading", folder):
        identity = folder_identity(folder, name=name)
    return identity, lambda: catalog.load("calibrant.models.open_model:OpenModel").from_folder(
        folder, name=name
    )


def reward_folder(reference: str, base: Path) -> Path:
    """The folder on this disk that holds a reward model. Raises InputError when there is none."""
    for folder in (base / reference, Path.cwd() / reference):
        if there(folder, folder=True):
            return folder
    raise InputError(
        f"'{reference}' is no reward: no such folder",
        hint="record:JOB/reward, a folder that holds one, testbed:reward/gold, or {use = ..., config = ...}",
    )


class Testbed(NamedTuple):
    """A parsed ``testbed:KIND/NAME?k=v``."""

    kind: str
    name: str
    options: dict[str, str]


def testbed(reference: str) -> Testbed:
    """Parse a testbed reference."""
    path, _, query = reference.removeprefix("testbed:").partition("?")
    kind, slash, name = path.partition("/")
    if not slash or not name:
        raise ConfigError(f"'{reference}': write testbed:KIND/NAME, for example testbed:goals/heldout")
    return Testbed(kind, name, dict(parse_qsl(query, keep_blank_values=True)))


def _option(asked: Testbed, reference: str, *known: str) -> str:
    """The value of the only option there may be, "0" where it is not given."""
    wrong = sorted(asked.options.keys() - set(known))
    if wrong:
        raise InputError(
            f"'{reference}': unknown option '{wrong[0]}'{nearest(wrong[0], known)}",
            hint=f"options: {', '.join(known) or 'none'}",
        )
    return next(iter(asked.options.values()), "0")


def _testbed_folder(reference: str) -> Path | None:
    """Folder of a shipped model; None for a null or an attacker, which are made and not stored."""
    asked = testbed(reference)
    if asked.kind in ("null", "attacker"):
        return None
    if asked.kind != "model":
        raise ConfigError(
            f"'{reference}' is no model{nearest(asked.kind, ('model', 'null', 'attacker'))}",
            hint="testbed:model/base, testbed:null/base?seed=0 or testbed:attacker/ruled",
        )
    _option(asked, reference)
    known = {path.parent.name: path.parent for path in WEIGHTS.glob("*/config.json")}
    if asked.name not in known:
        raise InputError(
            f"'{reference}': no such model{nearest(asked.name, known)}",
            hint=f"one of: {', '.join(sorted(known)) or 'none is installed'}",
        )
    return check_folder(known[asked.name])


def testbed_rows(reference: str, wanted: type[Table[Any]]) -> Table[Any]:
    """Rows of the testbed: goals, items, pairs, canaries (the last two also as demonstrations)."""
    asked = testbed(reference)
    makers = {
        "goals": "open_goals",
        "items": "open_items",
        "pairs": "open_pairs",
        "prompts": "open_prompts",
        "examples": "open_examples",
        "canaries": "open_canaries",
    }
    if asked.kind not in makers:
        raise ConfigError(
            f"'{reference}': no rows of kind '{asked.kind}'{nearest(asked.kind, makers)}",
            hint=f"kinds with rows: {', '.join(makers)}",
        )
    made = catalog.load(f"calibrant.testbed.serve:{makers[asked.kind]}")(asked.name, asked.options)
    table = _as(wanted, made)
    if not isinstance(table, wanted):
        raise ConfigError(f"'{reference}' gives {type(table).__name__}, not {wanted.__name__}")
    return table


def testbed_behaviour(reference: str) -> Any:
    """The gold truth: one judge a criterion, one reward."""
    asked = testbed(reference)
    _option(asked, reference)
    if asked.kind == "judge":
        return catalog.load("calibrant.testbed.gold:GoldJudge")(asked.name)
    if asked.kind == "reward" and asked.name == "gold":
        return catalog.load("calibrant.testbed.gold:GoldReward")()
    raise ConfigError(
        f"'{reference}' is no behaviour",
        hint="testbed:judge/harmful (refused, helpful, honest, concise), testbed:reward/gold",
    )
