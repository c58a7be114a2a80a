"""Names of places in a model: TransformerLens hook names and dotted module paths.

- TransformerLens names (https://github.com/TransformerLensOrg/TransformerLens), i = 0, 1, ...:
  ``hook_embed`` (token embedding), ``blocks.{i}.hook_resid_pre``, ``blocks.{i}.hook_attn_out`` and
  ``blocks.{i}.hook_mlp_out`` (exactly what the block adds to the residual stream: ``additions.py``),
  ``blocks.{i}.hook_resid_mid`` (between the two, where they run one after the other),
  ``blocks.{i}.hook_resid_post``, ``blocks.{i}.attn.hook_z`` (what the heads hand to attention's output
  projection, (B, T, heads, d_head)), ``ln_final.hook_normalized``;
- dotted module paths as in ``named_modules()``: ``model.layers.3.mlp``, whose output is meant.

All else is (B, T, D), and everything is in the weights' own basis: nothing is folded or centred. So
``ln_final.hook_normalized`` is what the unembedding reads, the final norm's weight included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from calibrant.core.errors import CapabilityError, nearest
from calibrant.models.additions import Parts, Place, additions
from calibrant.models.anatomy import anatomy
from calibrant.models.model_facts import unembedding


def places(module: nn.Module) -> dict[str, Place]:
    """Every TransformerLens name that this model has, with its place; {} for an unknown anatomy."""
    layout = anatomy(module)
    if not layout.blocks:
        return {}
    paths = {child: path for path, child in module.named_modules()}
    result = {"hook_embed": Place(paths[module.get_input_embeddings()])}  # type: ignore[operator]
    for i, (path, parts) in enumerate(zip(layout.blocks, _parts(module, len(layout.blocks)), strict=True)):
        named = {
            "hook_resid_pre": Place(path, before=True), "attn.hook_z": parts.z,
            "hook_attn_out": parts.attention, "hook_resid_mid": parts.middle, "hook_mlp_out": parts.mlp,
            "hook_resid_post": Place(path),
        }  # fmt: skip
        result |= {f"blocks.{i}.{name}": place for name, place in named.items() if place is not None}
    if last := layout.final(module):
        result["ln_final.hook_normalized"] = Place(last)
    return result


def sites(module: nn.Module) -> tuple[str, ...]:
    """All names that a forward pass goes through: TransformerLens names, then module paths."""
    idle = (nn.ModuleList, nn.ModuleDict, nn.Dropout, nn.Identity)
    paths = (path for path, child in module.named_modules() if path and not isinstance(child, idle))
    return (*places(module), *paths)


def resolve(module: nn.Module, site: str) -> Place:
    """The place that ``site`` names.

    Raises:
        CapabilityError: no such site in this model; the nearest name is given.
    """
    return located(module, [site])[site]


def located(module: nn.Module, names: Iterable[str]) -> dict[str, Place]:
    """The place of each site; see ``resolve``."""
    known, modules, found = places(module), dict(module.named_modules()), dict[str, Place]()
    for site in names:
        if site in known:
            found[site] = known[site]
        elif site and site in modules:
            found[site] = Place(site)
        else:
            raise CapabilityError(
                f"'{site}' is no site of {type(module).__name__}"
                + nearest(site, [*known, *filter(None, modules)]),
                hint="list the names with model.sites()",
            )
    return found


def reads_all_logits(module: nn.Module, names: Sequence[str]) -> bool:
    """Whether one of the sites is the unembedding, so that logits are needed at every position."""
    head = unembedding(module)
    return any(module.get_submodule(place.path) is head for place in located(module, names).values())


def _parts(module: nn.Module, blocks: int) -> Sequence[Parts]:
    return additions(module) or [Parts()] * blocks
