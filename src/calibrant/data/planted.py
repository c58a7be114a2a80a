"""``Plants``: models whose circuit is known by construction, and nulls, to calibrate instruments on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from calibrant.core.lm import Identity, OpenLM
from calibrant.data.rows import Contrasts


class Planted(NamedTuple):
    """One model, with pairs that ask for what is planted in it."""

    point: Mapping[str, str]
    """Where it stands on the grid: {"family": "gpt2", "redundancy": "none", "corrupt": "earlier"}."""
    model: OpenLM
    contrasts: Contrasts
    heldout: Contrasts
    """Other pairs of the same task."""
    heads: tuple[tuple[int, int], ...]
    """(layer, head) of each that is planted; () on a null."""
    null: str = ""
    """What kind of null it is; "": something is planted."""
    against: tuple[tuple[int, int], ...] = ()
    """Those of ``heads`` that work against the answer."""
    tempting: tuple[tuple[int, int], ...] = ()
    """On a null: heads that do the work where it is none."""
    mlps: tuple[int, ...] = ()
    """Layers whose MLP is planted."""
    reworded: Contrasts | None = None
    """``contrasts`` said otherwise: the same answers and foils in another form. None: there is no other."""

    @property
    def name(self) -> str:
        """'gpt2/none/earlier', or 'gpt2/null/removed'."""
        return "/".join(self.point.values())


@runtime_checkable
class Plants(Protocol):
    """A grid of models with known circuits."""

    @property
    def identity(self) -> Identity:
        """All that decides what the cases are."""
        ...

    def cases(self, seed: int) -> Iterator[Planted]:
        """One model for each point of the grid, drawn anew by ``seed``."""
        ...
