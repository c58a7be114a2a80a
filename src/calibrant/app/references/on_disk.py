"""Open a file or folder as the wanted kind: a model, a reward, rows, a policy, ..."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from calibrant.app import catalog
from calibrant.app.references import locate, rows
from calibrant.app.references.opened import Opened, from_bytes, identified
from calibrant.app.references.scheme import MODELS, Reference, Scheme, found_by
from calibrant.core import Reward, digest, resolve
from calibrant.data.cards import JudgeCard
from calibrant.data.constitution import Constitution, read_constitution
from calibrant.data.edge_graph import EdgeGraph
from calibrant.data.guard_policy import GuardPolicy, read_guard_policy
from calibrant.data.instrument_card import InstrumentCard
from calibrant.data.judge_head import JudgeHead
from calibrant.data.text_classifier import TextClassifier
from calibrant.defend.defended import StackSpec
from calibrant.govern.policy import ReleasePolicy, load_policy
from calibrant.ledger.layout import disk
from calibrant.models.folder import check_folder, folder_identity
from calibrant.models.reward_folder import reward_identity
from calibrant.models.sentence import SentenceEncoder, encoder_identity

FILES = {
    InstrumentCard: "calibrant.data.instrument_card:read_instrument_card",
    JudgeCard: "calibrant.data.cards:read_card",
    JudgeHead: "calibrant.data.judge_folder:read_head",
    EdgeGraph: "calibrant.data.edge_graph:read_graph",
    SentenceEncoder: "calibrant.models.encoder:open_encoder",
    TextClassifier: "calibrant.data.classifier_folder:read_classifier",
}
"""What is one file or folder, mostly a technique's -> what reads it."""


def at(path: Callable[[Reference], Path], gives: tuple[Any, ...]) -> Scheme:
    """A scheme of files and folders on this disk: ``path`` finds one, and reads nothing."""
    return found_by(lambda reference: check(reference, path(reference)), read, gives)


def check(reference: Reference, path: Path) -> Any:
    """What lies there, as far as can be told without weights and rows: policies and stacks are read.

    Raises:
        InputError: no model lies there, or the file cannot be read.
        ConfigError: a policy or a stack of guards with problems; all are listed.
    """
    if reference.wanted in (*MODELS, SentenceEncoder):
        return check_folder(path)
    if reference.wanted is ReleasePolicy:
        return load_policy(path)
    if reference.wanted is Constitution:
        return read_constitution(path)
    if reference.wanted is GuardPolicy:
        return read_guard_policy(path)
    if reference.wanted is StackSpec:
        return resolve(StackSpec, locate.toml(path), where=reference.text)
    return path


def read(reference: Reference, found: Any, stored_as: str = "") -> Opened:
    """What ``check`` found; ``stored_as`` is a file's name where its path has another suffix."""
    text, wanted = reference.text, reference.wanted
    if wanted in MODELS:
        return model(reference, found, text)
    if wanted is Reward:
        with disk("reading", found):
            identity = reward_identity(found, name=text)
        opener = catalog.load("calibrant.models.reward_model:open_reward")
        return identified(identity, partial(opener, found, name=text), text, wanted)
    if wanted is SentenceEncoder:
        with disk("reading", found):
            identity = encoder_identity(found)
        return identified(identity, partial(catalog.load(FILES[wanted]), found), text, wanted)
    if wanted in FILES:
        return from_bytes(found, lambda: catalog.load(FILES[wanted])(found), text)
    if wanted is ReleasePolicy:
        return Opened(found.digest, "policy", lambda: found, name=found.name)
    if wanted is Constitution:
        return Opened(found.digest, "constitution", lambda: found, name=found.name)
    if wanted is GuardPolicy:
        return Opened(found.digest, "guard policy", lambda: found, name=found.name)
    if wanted is StackSpec:
        return Opened(digest(found), "stack", lambda: found, name=text)
    load = partial(rows.read, wanted, found, text, reference.ignore, stored_as)
    return from_bytes(found, load, text)


def model(reference: Reference, folder: Path, name: str) -> Opened:
    """The model that lies in a folder, under a name."""
    with disk("reading", folder):
        identity = folder_identity(folder, name=name)

    def load() -> Any:
        return catalog.load("calibrant.models.open_model:OpenModel").from_folder(folder, name=name)

    return identified(identity, load, reference.text, reference.wanted)
