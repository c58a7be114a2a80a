"""A reward's folder: its metadata and identity, without torch.

    reward/  config.json  model.safetensors  tokenizer files  reward.json    one model, of one head or several
    reward/  reward.json  member0/  member1/  ...                            models trained apart

A classifier saved by others has no ``reward.json``; its scores are then taken as they are, and read where
transformers reads them: at the last token that is not padding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from calibrant.core.config import Frozen
from calibrant.core.digest import digest
from calibrant.core.errors import InputError
from calibrant.core.estimate import Estimate
from calibrant.core.lm import Identity
from calibrant.models.folder import check_folder, folder_identity, read_object

CARD = "reward.json"
POOLED = "last token that is not padding"
"""Where the score of a classifier without a card is read."""
Kind = Literal["single", "heads", "warm", "independent"]


class Normaliser(Frozen):
    """A score is given as (raw - mean) / std, member by member: 0 is the mean of the reference set."""

    mean: tuple[float, ...] = (0.0,)
    """Mean raw score of each member on the reference set."""
    std: tuple[float, ...] = (1.0,)
    """Standard deviation there (unbiased); raw scores are in log-odds."""
    n: int = 0
    """Replies in the reference set; 0 = nothing was normalised."""
    data: str = ""
    """Digest of the table that the reference set is the beginning of."""


class RewardCard(Frozen):
    """What a reward model must carry so that its scores mean the same elsewhere."""

    kind: Kind
    """One head, several on one trunk, an average of several models' weights, or models trained apart."""
    members: int = Field(ge=1, le=1000)
    """Heads, models that were averaged, or folders 'member0', 'member1', ..."""
    normaliser: Normaliser | None = None
    """None where each member's folder has its own."""
    read_at: Literal["end token"] = "end token"
    """Where a score is read: at the end token, which is put behind every reply, finished or not."""
    end_id: int | None = None
    """The id of that token; None where each member's folder says it."""
    padding: Literal["masked"] = "masked"
    """Places are counted on ids before any padding, so the padding token cannot move a score."""
    template: str = ""
    """Digest of the chat template; "" without one."""
    calibration: dict[str, Estimate] = Field(default_factory=dict)
    """On held-out pairs: accuracy, ece, brier, temperature, length_slope; unknown without any."""


def write_card(folder: Path, card: RewardCard) -> None:
    """Write ``reward.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(card.model_dump(mode="json"), indent=2)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")


def read_card(folder: Path) -> RewardCard | None:
    """What ``reward.json`` says, None where there is none.

    Raises:
        InputError: it does not read.
    """
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        return RewardCard.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, OSError, ValueError) as error:
        raise InputError(
            f"'{path}' is no reward card: {error}", hint="save the reward again, or take the file away"
        ) from None


def member_folders(folder: Path, card: RewardCard) -> list[Path]:
    """The folders of models trained apart, in order."""
    return [folder / f"member{number}" for number in range(card.members)]


def reward_identity(path: str | Path, *, name: str = "", dtype: str = "float32") -> Identity:
    """Identity of the reward in ``path``, as ``open_reward`` with the same arguments has it.

    Parts: those of the model's folder and ``normaliser``; or one part a member.

    Raises:
        InputError: no such folder, or no reward model in it.
    """
    folder = Path(path)
    card = read_card(folder)
    if card is not None and card.kind == "independent":
        members = [_member_identity(m, dtype).digest for m in member_folders(folder, card)]
        return ensemble_identity(members, name or folder.name)
    if card is None:
        _check_head(check_folder(folder))
    parts = folder_identity(folder, name=name, dtype=dtype).parts
    return Identity(
        name=name or folder.name,
        kind="reward",
        parts={
            **parts,
            "normaliser": normaliser_part(card.normaliser if card else None),
            **({} if card else {"read_at": POOLED}),
        },
    )


def _member_identity(folder: Path, dtype: str) -> Identity:
    """Identity of one of several; it is a reward of its own: ensembles of ensembles could be endless."""
    card = read_card(folder)
    if card is not None and card.kind == "independent":
        raise InputError(f"'{folder}' is an ensemble inside an ensemble", hint="save each member by itself")
    return reward_identity(folder, dtype=dtype)


def ensemble_identity(members: list[str], name: str) -> Identity:
    """Identity of several rewards asked together, by their digests in order."""
    parts = {f"member{number}": member for number, member in enumerate(members)}
    return Identity(name=name, kind="reward", parts=parts)


def normaliser_part(normaliser: Normaliser | None) -> str:
    """Digest of what a normaliser does to a score; "" for none."""
    return digest([normaliser.mean, normaliser.std]) if normaliser else ""


def _check_head(folder: Path) -> None:
    """Refuse a language model before it is loaded, where its config says what it is."""
    kinds = read_object(folder / "config.json").get("architectures") or []
    kinds = [str(kind) for kind in kinds] if isinstance(kinds, list) else []
    if kinds and not any("SequenceClassification" in kind for kind in kinds):
        raise InputError(
            f"'{folder}' holds a {kinds[0]}, not a reward model",
            hint="train.reward makes a reward model of a language model; its artefact is record:JOB/reward",
        )
