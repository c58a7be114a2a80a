"""Sparse coders on disk: SAELens 6 folders and sparsify folders. Weights through safetensors alone.

SAELens   ``cfg.json``, ``sae_weights.safetensors``: W_enc [d_in, d_sae], W_dec [d_sae, d_out], b_enc, b_dec,
          and threshold [d_sae] (jumprelu), W_skip [d_out, d_in] (skip transcoders). BatchTopK is saved as
          JumpReLU. Some write W_enc as [d_sae, d_in]: ``metadata.w_enc_layout`` says which; where it says
          nothing, SAELens's is meant.
sparsify  ``cfg.json``, ``sae.safetensors``: encoder.weight [m, d], encoder.bias, W_dec [m, d], b_dec, W_skip.

Names, shapes and configs are checked before a tensor is read. What is saved is opened again, and must give
the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from calibrant.core import CapabilityError, InputError, NumericalError
from calibrant.ledger.layout import disk
from calibrant.maths.sparse_coding import Shape, SparseCoder, Variant
from calibrant.models.folder import read_object

CONFIG, SAELENS, SPARSIFY = "cfg.json", "sae_weights.safetensors", "sae.safetensors"
FORMAT = "6.54.12"
"""The SAELens whose layout is written: without a version its reader takes a folder for one of before 6."""
Layout = Literal["d_in,d_sae", "d_sae,d_in"]
_VARIANTS: Mapping[str, tuple[Variant, bool, bool]] = {  # architecture -> variant, transcoder, skip
    "standard": ("relu", False, False),
    "topk": ("topk", False, False),
    "jumprelu": ("jumprelu", False, False),
    "transcoder": ("relu", True, False),
    "skip_transcoder": ("relu", True, True),
    "jumprelu_transcoder": ("jumprelu", True, False),
    "jumprelu_skip_transcoder": ("jumprelu", True, True),
}
_PROBE = 64
_FLOATS = ("F64", "F32", "F16", "BF16")


class Opened(NamedTuple):
    """A coder that was read."""

    coder: SparseCoder
    """In eval mode, float32, for rows as they are."""
    metadata: Mapping[str, Any]
    """What the file says of where it is from."""
    form: Literal["saelens", "sparsify"]
    """Whose layout it was in."""


def open_coder(folder: str | Path) -> Opened:
    """Read a folder of SAELens or sparsify.

    Raises:
        InputError: no such folder or file, a missing or unknown key, another width or layout, NaN.
        CapabilityError: an architecture, normalisation or activation that is not known here.
    """
    path = Path(folder)
    form = next((kind for kind in (SAELENS, SPARSIFY) if (path / kind).is_file()), None)
    if not (path / CONFIG).is_file() or form is None:
        raise InputError(
            f"'{path}' is no sparse autoencoder: it has no {CONFIG}, or neither {SAELENS} nor {SPARSIFY}",
            hint="give the folder that SAELens or sparsify wrote; pickled files are not opened",
        )
    config = read_object(path / CONFIG)
    shape, layout = _saelens_shape(path, config) if form == SAELENS else _sparsify_shape(path, config)
    wanted = _names(shape, form, layout)
    weights = _weights(path / form, wanted)
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    coder = _filled(shape, weights, form, layout, _flag(path, config, "rescale_acts_by_decoder_norm"))
    return Opened(coder, metadata, "saelens" if form == SAELENS else "sparsify")


def save_saelens(
    coder: SparseCoder, folder: str | Path, metadata: Mapping[str, Any], layout: Layout = "d_in,d_sae"
) -> None:
    """Write a folder that SAELens 6 opens (with its own ``layout``), and prove that it reads back.

    Raises:
        CapabilityError: a TopK transcoder, which SAELens has none of: see ``save_sparsify``. A coder is one
            where widths differ, it has a skip connection, or the metadata name a ``hook_name_out``.
        NumericalError: a weight is NaN or infinite. InputError: the disk is full or refuses.
    """
    shape = coder.shape
    kind: Variant = "jumprelu" if shape.variant == "batchtopk" else shape.variant
    transcoder = (
        shape.d_in != shape.d_out or shape.skip or not (shape.shifted or metadata.get("autoencoder", True))
    )
    sort = (kind, transcoder, shape.skip)
    architecture = next((name for name, one in _VARIANTS.items() if one == sort), None)
    if architecture is None:
        raise CapabilityError("SAELens has no TopK transcoder", hint="save it as a sparsify folder")
    if transcoder and shape.shifted:
        raise CapabilityError("SAELens's transcoders take no bias off their input", hint="train it unshifted")
    config: dict[str, Any] = {
        "architecture": architecture, "d_in": shape.d_in, "d_sae": shape.width, "dtype": "float32",
        "device": "cpu", "apply_b_dec_to_input": shape.shifted, "normalize_activations": "none",
        "reshape_activations": "hook_z" if str(metadata.get("hook_name")).endswith("hook_z") else "none",
        "metadata": {**metadata, "sae_lens_version": FORMAT, "w_enc_layout": layout},
    }  # fmt: skip
    config |= {"k": shape.k, "rescale_acts_by_decoder_norm": False} if kind == "topk" else {}
    config |= {"d_out": shape.d_out} if transcoder else {}
    _save(coder, Path(folder), SAELENS, layout, config)


def save_sparsify(coder: SparseCoder, folder: str | Path, metadata: Mapping[str, Any]) -> None:
    """Write a folder that sparsify opens: TopK, as wide out as in. See ``save_saelens``.

    Raises:
        CapabilityError: another variant, or two widths.
    """
    shape = coder.shape
    if shape.variant != "topk" or shape.d_in != shape.d_out:
        raise CapabilityError(
            f"sparsify has no {shape.variant} coder of {shape.d_in} to {shape.d_out}",
            hint="save it for SAELens",
        )
    config = {
        "activation": "topk", "expansion_factor": max(1, shape.width // shape.d_in),
        "num_latents": shape.width, "normalize_decoder": True, "k": shape.k, "multi_topk": False,
        "skip_connection": shape.skip,
        "transcode": not shape.shifted, "d_in": shape.d_in, "metadata": dict(metadata),
    }  # fmt: skip
    _save(coder, Path(folder), SPARSIFY, "d_sae,d_in", config)


def _save(coder: SparseCoder, folder: Path, form: str, layout: Layout, config: dict[str, Any]) -> None:
    given = _tensors(coder, form, layout)
    for name, tensor in given.items():
        if not tensor.isfinite().all():
            raise NumericalError(f"'{name}' is NaN or infinite: it is not saved", hint="check the training")
    with disk("writing", folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file(given, folder / form)
        except SafetensorError as error:
            raise InputError(f"'{folder / form}' cannot be written: {error}", hint="free space") from error
        (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    again = open_coder(folder).coder
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(_PROBE, coder.shape.d_in, generator=generator, dtype=torch.float32)
    rows = rows * (1.0 + coder.decoder_bias.abs().mean().item())
    before = coder.training
    same = torch.equal(coder.eval().float()(rows), again(rows)) and torch.equal(
        coder.encode(rows), again.encode(rows)
    )
    coder.train(before)
    if not same:
        raise NumericalError(f"what was saved in '{folder}' gives other outputs", hint="report this as a bug")


def _tensors(coder: SparseCoder, form: str, layout: Layout) -> dict[str, Tensor]:
    encoder = coder.encoder if layout == "d_sae,d_in" else coder.encoder.T
    names = _keys(form)
    given: dict[str, Tensor | None] = {
        names["encoder"]: encoder, names["bias"]: coder.bias, "W_dec": coder.decoder,
        "b_dec": coder.decoder_bias, "W_skip": coder.skip,
        "threshold": coder.threshold if form == SAELENS else None,
    }  # fmt: skip
    return {
        name: tensor.detach().float().cpu().contiguous().clone()
        for name, tensor in given.items()
        if tensor is not None
    }


def _keys(form: str) -> dict[str, str]:
    if form == SAELENS:
        return {"encoder": "W_enc", "bias": "b_enc"}
    return {"encoder": "encoder.weight", "bias": "encoder.bias"}


def _names(shape: Shape, form: str, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Every tensor that the file must have, with its shape."""
    encoder = (shape.d_in, shape.width) if layout == "d_in,d_sae" else (shape.width, shape.d_in)
    names = _keys(form)
    wanted: dict[str, tuple[int, ...]] = {
        names["encoder"]: encoder, names["bias"]: (shape.width,), "W_dec": (shape.width, shape.d_out),
        "b_dec": (shape.d_out,),
    }  # fmt: skip
    wanted |= {"threshold": (shape.width,)} if shape.variant == "jumprelu" else {}
    return wanted | ({"W_skip": (shape.d_out, shape.d_in)} if shape.skip else {})


def _weights(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors, once every name, shape and type in the header is right."""
    try:
        with disk("reading", path), safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(one.get_shape()) for name, one in found.items()}
            if lost := sorted(wanted.keys() - shapes.keys()):
                raise InputError(f"'{path}' has no '{lost[0]}'", hint="it must be as cfg.json says")
            if more := sorted(shapes.keys() - wanted.keys()):
                raise InputError(f"'{path}' has '{more[0]}', which its cfg.json does not ask for",
                                 hint="is it of another architecture?")  # fmt: skip
            for name, shape in wanted.items():
                _check_shape(path, name, shapes[name], shape)
                if found[name].get_dtype() not in _FLOATS:
                    raise InputError(f"'{name}' in '{path}' is of type {found[name].get_dtype()}",
                                     hint="weights are floats of 16 to 64 bits")  # fmt: skip
            weights = {name: file.get_tensor(name).float() for name in wanted}
    except SafetensorError as error:
        raise InputError(f"'{path}' is damaged: {error}", hint="copy or download it again") from None
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise InputError(f"'{name}' in '{path}' holds NaN or infinity", hint="the training had diverged")
    return weights


def _check_shape(path: Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found == wanted:
        return
    turned = len(found) == 2 and found[::-1] == wanted
    hint = "its cfg.json is of another coder"
    if turned:
        hint = 'it is in the other layout: say "metadata": {"w_enc_layout": "d_sae,d_in"} in cfg.json'
    raise InputError(f"'{name}' in '{path}' has shape {list(found)}, cfg.json says {list(wanted)}", hint=hint)


def _saelens_shape(path: Path, config: Mapping[str, Any]) -> tuple[Shape, Layout]:
    kind = config.get("architecture")
    if not isinstance(kind, str) or kind not in _VARIANTS:
        raise CapabilityError(
            f"'{path}' is of architecture {kind!r:.60}", hint=f"known here: {', '.join(_VARIANTS)}"
        )
    how = config.get("normalize_activations", "none")
    if how not in ("none", None):
        raise CapabilityError(
            f"'{path}' normalises its input ({how!r:.60})", hint="fold it into the weights in SAELens first"
        )
    metadata = config.get("metadata")
    layout = metadata.get("w_enc_layout", "d_in,d_sae") if isinstance(metadata, dict) else "d_in,d_sae"
    if layout not in ("d_in,d_sae", "d_sae,d_in"):
        raise InputError(f"'{path}': w_enc_layout = {layout!r:.60}", hint="'d_in,d_sae' or 'd_sae,d_in'")
    variant, transcoder, skip = _VARIANTS[kind]
    d_in = _whole(path, config, "d_in")
    shape = Shape(
        variant,
        d_in,
        _whole(path, config, "d_out") if transcoder else d_in,
        _whole(path, config, "d_sae"),
        _whole(path, config, "k") if variant == "topk" else 0,
        shifted=not transcoder and _flag(path, config, "apply_b_dec_to_input", True),
        skip=skip,
    )
    return shape, layout  # type: ignore[return-value]


def _sparsify_shape(path: Path, config: Mapping[str, Any]) -> tuple[Shape, Layout]:
    if (how := config.get("activation", "topk")) != "topk":
        raise CapabilityError(f"'{path}' has activation {how!r:.60}", hint="topk is known here")
    d_in = _whole(path, config, "d_in")
    width = config.get("num_latents") or d_in * _whole(path, config, "expansion_factor")
    shape = Shape(
        "topk",
        d_in,
        d_in,
        _whole(path, {"num_latents": width}, "num_latents"),
        _whole(path, config, "k"),
        shifted=not _flag(path, config, "transcode"),
        skip=_flag(path, config, "skip_connection"),
    )
    return shape, "d_sae,d_in"


def _whole(path: Path, config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or not 1 <= value < 2**31:
        raise InputError(
            f"'{path / CONFIG}': {name} = {value!r:.60}", hint="it must be a whole number above 0"
        )
    return value


def _flag(path: Path, config: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"'{path / CONFIG}': {name} = {value!r:.60}", hint="it must be true or false")
    return value


def _filled(
    shape: Shape, weights: Mapping[str, Tensor], form: str, layout: Layout, rescaled: bool
) -> SparseCoder:
    shape.check()
    coder = SparseCoder(shape)
    names = _keys(form)
    encoder = weights[names["encoder"]]
    given = {
        "encoder": encoder if layout == "d_sae,d_in" else encoder.T.contiguous(),
        "bias": weights[names["bias"]], "decoder": weights["W_dec"], "decoder_bias": weights["b_dec"],
    }  # fmt: skip
    given |= {"threshold": weights["threshold"]} if "threshold" in weights else {}
    given |= {"skip": weights["W_skip"]} if "W_skip" in weights else {}
    if rescaled:  # SAELens picks by activation times norm, and writes with rows of norm 1
        norms = torch.linalg.vector_norm(given["decoder"], dim=1)
        given["encoder"] = given["encoder"] * norms[:, None]
        given["bias"] = given["bias"] * norms
        given["decoder"] = (
            given["decoder"] / norms.where(norms > 0, 1.0)[:, None]
        )  # a row of zeros writes nothing
    coder.load_state_dict(given)
    return coder.eval().requires_grad_(False)
