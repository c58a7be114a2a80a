"""Relevance in the place of gradients: the propagation rules of RelP, for a model as it is.

Under these rules a model is a product of matrices at the values of one run, so that what each activation
carries to a reading adds up (Rezaei Jafari et al. 2025, 2508.21258, and their code):

- norms keep their scale: y = x / s with s frozen (LN-rule, Ali et al. 2022);
- activation functions keep their ratio: y = x * (f(x) / x) with the ratio frozen (identity rule);
- a product of two activations, as in SwiGLU and GeGLU, gives each factor half (half rule);
- maps stay as they are (0-rule), and the attention pattern may be frozen (AH-rule).

No family is known by name. The rules stand on the functions that a forward pass calls, and on modules that
work element by element. They are believed only where relevance adds up: with the pattern frozen, that of the
first stream and of all biases is what the unembedding gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from calibrant.core import CapabilityError
from calibrant.models.anatomy import anatomy
from calibrant.models.model_facts import FOREIGN, facts, first_tensor, muted
from calibrant.understand._engine.columns import TOKENS, hooked, trial
from calibrant.understand._engine.stream import before

_NEAR = 1e-4  # of what is added up
_LEAST = 1e-6  # where a ratio is taken instead of at 0, as in the authors' code
Call = Callable[..., Any]


@contextmanager
def relevance(module: nn.Module, *, frozen: bool) -> Iterator[None]:
    """A block in which backward passes give RelP's coefficients; forward passes give what they always do.

    Args:
        module: a causal language model.
        frozen: keep the attention pattern; otherwise relevance goes through it by its gradient.

    Raises:
        CapabilityError: relevance does not add up: the model computes something that the rules do not cover.
    """
    with muted(module), torch.inference_mode(False), torch.enable_grad():
        try:
            gap = _gap(module)
        except FOREIGN as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise _refusal(module, f"its parts do not fit the rules ({said})") from error
    if not gap <= _NEAR:
        raise _refusal(
            module, f"relevance does not add up ({gap:.2g} of it is lost): it computes what no rule covers"
        )
    with _ruled(module, frozen):
        yield


def _refusal(module: nn.Module, why: str) -> CapabilityError:
    return CapabilityError(
        f"no RelP for {type(module).__name__}: {why}",
        hint="method = 'atp' and 'atp_star' take the model's own gradients; RelP needs float32 or float64",
    )


@contextmanager
def _ruled(module: nn.Module, frozen: bool, biases: bool = False) -> Iterator[None]:
    """The rules alone; ``biases`` have gradients, all other weights have none."""
    known = facts(module)
    if "activations" not in known:
        with muted(module), torch.no_grad():
            known["activations"] = _activations(module)
    paths: list[str] = known["activations"]
    own = {weight: weight.requires_grad for weight in module.parameters()}
    for name, weight in module.named_parameters():
        weight.requires_grad_(biases and name.endswith("bias"))
    try:
        handles = [module.get_submodule(path).register_forward_hook(_keep_ratio) for path in paths]
        with hooked(handles), _Rules(frozen):
            yield
    finally:
        for weight, felt in own.items():
            weight.requires_grad_(felt)


def _gap(module: nn.Module) -> float:
    """How much of the relevance of a reading of the unembedding is lost on the way, as a share."""
    layout = anatomy(module)
    if not layout.tail:
        raise ValueError("the way from its last block to the logits was not found")
    seen, given = list[Tensor](), list[Tensor]()

    def begin(value: Tensor) -> Tensor:
        seen.append(value.detach().clone().requires_grad_())
        return seen[-1].clone()

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        value = first_tensor(output)
        assert value is not None
        given.append(value)

    handles = [
        before(module, layout.blocks[0], begin),
        module.get_submodule(layout.tail[-1]).register_forward_hook(keep),
    ]
    with hooked(handles), _ruled(module, frozen=True, biases=True):
        trial(module, TOKENS)
        draw = torch.Generator().manual_seed(0)
        weights = torch.randn(given[-1].shape, generator=draw, dtype=torch.float64).to(given[-1])
        reading = (given[-1] * weights).sum()
        leaves = [seen[-1], *(weight for weight in module.parameters() if weight.requires_grad)]
        flows = torch.autograd.grad(reading, leaves, allow_unused=True)
    parts = [
        float((leaf.detach() * flow).sum())
        for leaf, flow in zip(leaves, flows, strict=True)
        if flow is not None
    ]
    whole = float(reading.detach())
    return abs(sum(parts) - whole) / max(abs(whole), *map(abs, parts), 1e-30)


def _activations(module: nn.Module) -> list[str]:
    """Paths of modules that work element by element, without weights, and give 0 for 0."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(path: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                seen[path] = (args[0].clone(), output.clone())

        return note

    handles = [
        child.register_forward_hook(keep(path))
        for path, child in module.named_modules()
        if path and not list(child.children()) and not list(child.parameters())
    ]
    with hooked(handles):
        trial(module, TOKENS)
    found = []
    for path, (given, gave) in seen.items():
        if given.shape != gave.shape or not given.is_floating_point() or torch.equal(given, gave):
            continue
        kept = torch.arange(given.shape[-1], device=given.device) % 2 == 0
        alone = module.get_submodule(path).forward(given * kept)
        if torch.allclose(alone, gave * kept, rtol=1e-5, atol=1e-7):
            found.append(path)
    return found


def _exact(value: Tensor, linear: Tensor) -> Tensor:
    """``value``, with the gradients of ``linear``."""
    return value.detach() + (linear - linear.detach())


def _ratio(given: Tensor, gave: Tensor) -> Tensor:
    """gave / given, frozen."""
    sign = torch.where(given.detach() < 0, -1.0, 1.0).to(given)
    ratio: Tensor = gave.detach() / (given.detach() + sign * _LEAST)
    return ratio


def _keep_ratio(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    given: Tensor = args[0]
    return _exact(output, given * _ratio(given, output)) if given.requires_grad else output


class _Rules(TorchFunctionMode):
    """The rules, on the functions that a forward pass calls."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.rules: dict[str, Callable[[Call, tuple[Any, ...], Mapping[str, Any]], Any]] = {
            **dict.fromkeys(("rsqrt", "sqrt"), _constant),
            **dict.fromkeys(("pow", "__pow__"), _power),
            **dict.fromkeys(("mul", "__mul__", "__rmul__", "multiply"), _product),
            **dict.fromkeys(("div", "__truediv__", "divide", "true_divide"), _quotient),
            **dict.fromkeys(("silu", "gelu", "mish", "hardswish", "relu6"), _activation),
            "layer_norm": _layer_norm,
            "rms_norm": _rms_norm,
        }
        if frozen:
            self.rules |= {"softmax": _constant, "scaled_dot_product_attention": _attention}

    def __torch_function__(
        self, func: Call, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Apply the rule of a function, or the function."""
        rule = self.rules.get(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {})) if rule is None else rule(func, args, kwargs or {})


def _feels(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _constant(func: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    result = func(*args, **kwargs)
    return result.detach() if _feels(result) else result


def _power(func: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """A negative power is a norm's scale."""
    exponent = args[1] if len(args) > 1 else kwargs.get("exponent")
    norm = isinstance(exponent, (int, float)) and exponent < 0
    return (_constant if norm else _plain)(func, args, kwargs)


def _plain(func: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return func(*args, **kwargs)


def _product(func: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Half for each factor, where both are activations."""
    result = func(*args, **kwargs)
    if len(args) > 1 and _feels(args[0]) and _feels(args[1]):
        return _exact(result, result / 2)
    return result


def _quotient(func: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What is divided by is a scale."""
    if len(args) > 1 and _feels(args[1]):
        return func(args[0], args[1].detach(), *args[2:], **kwargs)
    return func(*args, **kwargs)


def _activation(func: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    result = func(*args, **kwargs)
    return _exact(result, args[0] * _ratio(args[0], result)) if _feels(args[0]) else result


def _attention(func: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    query, key, *rest = args
    return func(query.detach(), key.detach(), *rest, **kwargs)


def _layer_norm(func: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return _normed(func, args, kwargs, functional.layer_norm, centred=True)


def _rms_norm(func: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return _normed(func, args, kwargs, functional.rms_norm, centred=False)


def _normed(
    func: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any], like: Call, *, centred: bool
) -> Tensor:
    """A norm over the last dimensions, its scale frozen."""
    result: Tensor = func(*args, **kwargs)
    given: Tensor = args[0]
    if not _feels(given):
        return result
    named = dict(zip(("normalized_shape", "weight", "bias", "eps"), args[1:], strict=False)) | dict(kwargs)
    shape = named["normalized_shape"]
    count = 1 if isinstance(shape, int) else len(shape)
    over = tuple(range(-count, 0))
    moved = given - given.mean(over, keepdim=True) if centred else given
    epsilon = named.get("eps")
    epsilon = torch.finfo(given.dtype).eps if epsilon is None else epsilon
    linear = moved * (moved.detach().square().mean(over, keepdim=True) + epsilon).rsqrt()
    if (weight := named.get("weight")) is not None:
        linear = linear * weight
    if centred and (bias := named.get("bias")) is not None:
        linear = linear + bias
    return _exact(result, linear)
