"""The last block's MLP at the last position alone: no other is read.

The module is found by what it does: of those in the last block that map (R, T, D) to (R, T, D) by two
matrices or more, the largest that gives the last of a few random vectors the same when it is shown nothing
else. Attention and its parts do not count, whatever they do: keys and values are read at all positions, and
a head may be still by chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from calibrant.models.anatomy import anatomy
from calibrant.models.hooks import with_first
from calibrant.models.model_facts import FOREIGN, facts, first_tensor, muted, sample_ids
from calibrant.understand._engine.skip import Call, first_changed, last_logits

_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}  # of the largest output; half precision: 2 %
_TRIED = 4


@contextmanager
def last_position_only(module: nn.Module) -> Iterator[None]:
    """A block in which the last block's MLP runs at the last position; what it gives at others is 0.

    Where it was not found, or somebody hooks a part of it, it runs as always.
    """
    path = last_mlp(module)
    target = module.get_submodule(path) if path else None
    parts = [] if target is None else list(target.modules())[1:]
    if target is None or any(part._forward_hooks or part._forward_pre_hooks for part in parts):
        yield
        return
    with _narrowed(target):
        yield


@contextmanager
def _narrowed(target: nn.Module) -> Iterator[None]:
    own, plain = vars(target).get("forward"), target.forward

    def narrow(*args: Any, **kwargs: Any) -> Any:
        handed = first_tensor((*args, *kwargs.values()))
        if handed is None or handed.ndim != 3 or handed.shape[1] < 2:
            return plain(*args, **kwargs)
        (args, kwargs), length = first_changed((args, kwargs), _last), handed.shape[1]
        output = plain(*args, **kwargs)
        value = first_tensor(output)
        assert value is not None  # seen when it was found
        return with_first(output, nn.functional.pad(value, (0, 0, length - 1, 0)))

    vars(target)["forward"] = narrow
    try:
        yield
    finally:
        vars(target).pop("forward")
        if own is not None:
            vars(target)["forward"] = own


def last_mlp(module: nn.Module) -> str:
    """Path of that module; "" where there is none. Looked for once, shared with the model's copies."""
    known = facts(module)
    if "last_mlp" not in known:
        known["last_mlp"] = ""
        with muted(module), torch.no_grad(), suppress(*FOREIGN):
            known["last_mlp"] = _look(module)
    path: str = known["last_mlp"]
    return path


def _look(module: nn.Module) -> str:
    blocks = anatomy(module).blocks
    if not blocks:
        return ""
    root, seen = module.get_submodule(blocks[-1]), dict[str, list[Call]]()
    sizes = {
        path: sum(p.numel() for p in part.parameters())
        for path, part in root.named_modules()
        if path and sum(p.ndim > 1 for p in part.parameters()) > 1 and not _attends(root, path)
    }
    tried = sorted(sizes, key=lambda path: -sizes[path])

    def note(path: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        handed, value = first_tensor((*args, *kwargs.values())), first_tensor(output)
        if handed is not None and value is not None and handed.ndim == 3 and handed.shape == value.shape:
            seen.setdefault(path, []).append((args, kwargs))

    handles = [
        root.get_submodule(path).register_forward_hook(
            lambda _, args, kwargs, output, path=path: note(path, args, kwargs, output), with_kwargs=True
        )
        for path in tried
    ]
    ids = torch.tensor([sample_ids(module, 6)] * 2, device=next(module.parameters()).device)
    try:
        expected = last_logits(module, ids, None)
    finally:
        for handle in handles:
            handle.remove()
    once = [path for path in tried if len(seen.get(path, [])) == 1]  # not shared with other blocks
    for path in once[:_TRIED]:
        part = root.get_submodule(path)
        with suppress(*FOREIGN):
            args, kwargs = first_changed(seen[path][0], _noise)
            whole = first_tensor(part(*args, **kwargs))
            args, kwargs = first_changed((args, kwargs), _last)
            alone = first_tensor(part(*args, **kwargs))
            assert whole is not None and alone is not None  # it gave a tensor before
            with _narrowed(part):
                if _same(alone, _last(whole)) and _same(last_logits(module, ids, None), expected):
                    return f"{blocks[-1]}.{path}"
    return ""


def _attends(root: nn.Module, path: str) -> bool:
    """Whether it is attention, a part of it, or has it as a part."""
    inside = [part for part, _ in root.get_submodule(path).named_modules(prefix=path)]
    around = [path.rsplit(".", up)[0] for up in range(path.count(".") + 1)]
    kinds = [type(root.get_submodule(part)).__name__ for part in (*inside, *around)]
    return any("att" in name.lower() for name in inside) or any("attention" in kind.lower() for kind in kinds)


def _last(value: Tensor) -> Tensor:
    return value[:, -1:]


def _noise(value: Tensor) -> Tensor:
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= _TOLERANCE.get(other.dtype, 0.02) * other.abs().max())
