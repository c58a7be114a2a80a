"""``SentenceEncoder``: what turns a text into a vector. ``encoder.py`` opens one; here is no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from calibrant.core import Identity
from calibrant.models.folder import folder_identity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@runtime_checkable
class SentenceEncoder(Protocol):
    """An encoder of texts of limited length."""

    @property
    def identity(self) -> Identity:
        """Its files, by digest."""
        ...

    @property
    def most(self) -> int:
        """Most tokens of a text, special ones included."""
        ...

    def size(self, text: str) -> int:
        """Tokens of a text, special ones included."""
        ...

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """A vector of length 1 a text, (N, D).

        Raises:
            InputError: a text of more than ``most`` tokens; nothing is truncated.
            NumericalError: a vector is not finite.
        """
        ...


def encoder_identity(path: Path) -> Identity:
    """Identity of the encoder in a folder, as ``open_encoder`` has it.

    Raises:
        InputError, CapabilityError: see ``folder_identity``.
    """
    return folder_identity(path).model_copy(update={"kind": "encoder"})
