"""A sparse autoencoder (or transcoder) of one site of a model: trained, scored, and written for SAELens.

1. Activations of all texts go to a store on disk; a tenth of the texts is held out.
2. The coder is trained on the rest: ReLU, TopK, BatchTopK or JumpReLU (``maths/sparse_coding.py``), dead
   features revived. Store and training resume after a kill.
3. On held-out texts: how much of the variance is explained, and how much of the model's loss comes back when
   the coder's output stands in the activation's place, over zero and over mean ablation.
4. The same is done with a copy of the model whose weights are random. What a coder scores there, it scores
   without anything that was learned (Heap et al. 2025, 2501.17727).

    calibrant show understand.sae
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from calibrant.core import (
    CapabilityError,
    Estimate,
    InputError,
    OpenLM,
    Quiet,
    Result,
    Run,
    digest,
    technique,
)
from calibrant.core.figure_data import Datum, FigureData, by_names
from calibrant.data.rows import Prompts
from calibrant.maths.sparse_coding import Shape, SparseCoder, Variant
from calibrant.models.anatomy import anatomy
from calibrant.models.model_facts import FOREIGN
from calibrant.models.open_model import OpenModel
from calibrant.models.sites import places
from calibrant.understand._engine.harvest import Texts, at_sites, harvest, keep, source_of
from calibrant.understand._engine.patches import check_still
from calibrant.understand._engine.store import LeftOut, Store, Stored
from calibrant.understand._sae_files import save_saelens, save_sparsify
from calibrant.understand._sae_pages import write_pages
from calibrant.understand._sae_scores import Sites, in_the_model, reconstruction, tallied
from calibrant.understand._sae_train import Descent, Rows, in_order, train


class SAE(Descent):
    """What is trained, on what, and how it is scored."""

    aliases: ClassVar[dict[str, str]] = {
        "architecture": "variant", "hook_name": "site", "expansion_factor": "expansion", "d_sae": "width",
        "num_latents": "width", "l1_coefficient": "coefficient", "l0_coefficient": "coefficient",
        "training_tokens": "tokens", "train_batch_size_tokens": "batch",
    }  # fmt: skip

    variant: Variant = "topk"
    """The activation: topk, batchtopk, relu (with an L1 penalty) or jumprelu (with an L0 penalty)."""
    site: str | None = None
    """TransformerLens hook name or module path. None: the residual stream after the middle layer."""
    target: str | None = None
    """A transcoder's target: the site that is reproduced from ``site``. None: ``site`` itself."""
    skip: bool = False
    """Add a linear map of the input to a transcoder's output."""
    expansion: int = Field(default=8, ge=1)
    """Features for each dimension of what is read."""
    width: int | None = Field(default=None, ge=1)
    """Features. None: ``expansion`` times the width of what is read."""
    k: int = Field(default=32, ge=1)
    """Active features a token (topk), or on average (batchtopk)."""
    bandwidth: float = Field(default=0.05, gt=0)
    """Of jumprelu's straight-through estimator, on rows scaled to E||x||^2 = width."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of the texts that is held out, at least two of them."""
    left_out: LeftOut = "first"
    """Positions that are not read: the first of each text and every BOS, every BOS, or none."""
    stored: Stored = "float16"
    """How activations lie on disk."""
    spliced: int = Field(default=100, ge=2)
    """At most this many held-out texts are run with the coder in place."""
    control: bool = True
    """Train and score the same on a copy of the model with random weights."""
    features: int = Field(default=50, ge=0)
    """So many of the most used features get a page."""
    contexts: int = Field(default=8, ge=1)
    """Contexts on each page."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.skip and self.target is None:
            raise ValueError("skip belongs to a transcoder: give a target, or leave skip out")
        if self.target is not None and self.target == self.site:
            raise ValueError("a transcoder's target is another site: leave target out for an autoencoder")
        return self


class SAEResult(Result):
    """``explained_variance``, ``ce_recovered/...``, ``kl_score/...``, ``l0``, ``gamma``, ``dead_share``, ...;
    ``random/...`` of the control. Artefacts 'sae' (a SAELens folder), 'features.json', 'features.html'."""

    coder: Any = Field(exclude=True)
    """The trained ``SparseCoder``, live."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """What the coder keeps, beside the same with random weights."""
        shown = {
            "ce_recovered/zero": "loss recovered, over zero",
            "ce_recovered/mean": "loss recovered, over the mean",
            "kl_score/zero": "KL score, over zero",
            "kl_score/mean": "KL score, over the mean",
            "explained_variance": "explained variance",
            "dead_share": "dead features",
        }
        values = tuple(
            Datum(label=label, estimate=self.metrics[prefix + name], stage=stage)
            for name, label in shown.items()
            for prefix, stage in (("", "the model"), ("random/", "random weights"))
            if prefix + name in self.metrics
        )
        kept = FigureData(kind="intervals", values=values, title="What the sparse coder keeps")
        return (kept, *by_names(self.metrics))


@technique(version=2)
def sae(model: OpenLM, prompts: Prompts, config: SAE = SAE(), run: Run = Quiet()) -> SAEResult:
    """Train a sparse autoencoder on a site of ``model`` over all tokens of ``prompts``.

    Raises:
        InputError: too few texts, k above the width, activations that are all 0, or a full disk.
        CapabilityError: no such site, a model in training mode, or a coder that no file format holds.
        NumericalError: an activation, a loss or a logit is NaN or infinite.
    """
    check_still(model.module)
    texts, lost = _texts(model, prompts, config.left_out)
    sites = _sites(model, config)
    shape = _shape(model, texts, sites, config)
    train_rows, held = _split(len(texts.ids), config.held_out, run.seed)
    coder, store, metrics, density = _one(model, texts, (train_rows, held), shape, sites, config, run, "")
    _write(coder, model, sites, config, run)
    write_pages(
        model,
        coder,
        texts,
        store,
        sites.read,
        density,
        run,
        features=config.features,
        contexts=config.contexts,
    )
    notes = [
        "a feature is a direction that is seldom on: not a cause, nor what the model itself uses",
        "two seeds share only part of their features: a list of features is one of many",
        f"{len(held)} of {len(texts.ids)} texts were held out; positions left out: '{config.left_out}'",
    ]
    if lost:
        notes.append(f"{lost} texts were left out: too short to have a row, or longer than the context")
    seen = {texts.ids[row] for row in train_rows}
    if copies := sum(texts.ids[row] in seen for row in held):
        notes.append(f"{copies} of {len(held)} held-out texts are also trained on: their scores flatter")
    if config.control:
        try:
            other = _random_copy(model, run.seed)
        except FOREIGN as error:
            notes.append(f"no control: the model cannot be built anew ({type(error).__name__})")
        else:
            found = _one(other, texts, (train_rows, held), shape, sites, config, run, "random")[2]
            metrics |= {f"random/{name}": one for name, one in found.items()}
            notes.append("random/...: the same with random weights; what is no better there was not learned")
    return SAEResult(coder=coder, metrics=metrics, caveats=tuple(notes))


def _one(
    model: OpenLM,
    texts: Texts,
    split: tuple[list[int], list[int]],
    shape: Shape,
    sites: Sites,
    config: SAE,
    run: Run,
    note: str,
) -> tuple[SparseCoder, Store, dict[str, Estimate], Tensor]:
    """Harvest, train and score; also the density of each feature on held-out tokens."""
    source = source_of(
        model, texts, list(dict.fromkeys(sites)), dtype=config.stored, left_out=config.left_out
    )
    what = f"{note} " if note else ""
    run.spend(queries=len(texts.ids))
    store = harvest(
        model, texts, source, run.work / f"store{note and '_'}{note}",
        lambda done, total: run.progress(done, total, f"{what}activations"),
    )  # fmt: skip
    numbers = store.tokens(torch.arange(len(store)))[:, 0]
    training, held = (torch.isin(numbers, torch.tensor(rows)).nonzero()[:, 0] for rows in split)
    rows = _rows(store, sites, training, held, config, run.seed)
    key = digest([config, source.model_dump(mode="json"), run.seed])
    coder = train(shape, rows, config, run, key, note, next(model.module.parameters()).device)
    tally = tallied(coder, store, sites, held)
    count = min(config.spliced, len(split[1]))
    some = [split[1][i * len(split[1]) // count] for i in range(count)]
    metrics = reconstruction(tally) | in_the_model(model, coder, texts, some, store, sites, run)
    return coder, store, metrics, tally.density


def _rows(store: Store, sites: Sites, training: Tensor, held: Tensor, config: SAE, seed: int) -> Rows:
    at = in_order(len(training), config.batch, lambda epoch: store.order(seed, epoch, training))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        numbers = at(step)
        x = store.rows(sites.read, numbers)
        return x, x if sites.read == sites.written else store.rows(sites.written, numbers)

    (_, read), (mean, written) = (_moments(store, site, held) for site in sites)
    return Rows(batch, mean, read, written)


def _moments(store: Store, site: str, held: Tensor) -> tuple[Tensor, float]:
    """Mean (d,) and E||x||^2 of the rows that are not held out."""
    facts, count = store.header.facts[site], len(store) - len(held)
    total, square = torch.tensor(facts.total, dtype=torch.float64), facts.square
    for _, x in store.chunks(site, 2048, held):
        total, square = total - x.double().sum(0), square - float(x.double().square().sum())
    return total / count, square / count


def _texts(model: OpenLM, prompts: Prompts, left_out: LeftOut) -> tuple[Texts, int]:
    """Texts that fit and have a row, and how many do not."""
    if not prompts.rows:
        raise InputError("there are no texts", hint="give a file with a column 'prompt'")
    most = model.max_length
    chats, ids = [], []
    for row in prompts.rows:
        tokens = tuple(model.prompt_ids(row.prompt))
        if len(tokens) >= 2 and (most is None or len(tokens) <= most) and any(keep(model, tokens, left_out)):
            chats.append(row.prompt)
            ids.append(tokens)
    if len(ids) < 4:
        raise InputError(
            f"{len(ids)} of {len(prompts.rows)} texts fit the context and have a token to read",
            hint="give at least four: two are held out, and an interval needs two",
        )
    return Texts(tuple(chats), tuple(ids), prompts.digest), len(prompts.rows) - len(ids)


def _sites(model: OpenLM, config: SAE) -> Sites:
    site = config.site
    if site is None:
        site = f"blocks.{max(0, len(anatomy(model.module).blocks) - 1) // 2}.hook_resid_post"
        if site not in places(model.module):
            raise CapabilityError(
                f"the blocks of '{model.identity.name}' were not found", hint="name a site: see model.sites()"
            )
    return Sites(site, config.target or site)


def _shape(model: OpenLM, texts: Texts, sites: Sites, config: SAE) -> Shape:
    """What is trained, refused before anything long is done.

    Raises:
        InputError: a site without a vector a token, or k above the width.
        CapabilityError: an unknown site; a topk transcoder of two widths.
    """
    source_of(model, texts, list(dict.fromkeys(sites)))
    batch = model.encode([texts.chats[0]] * 2)
    seen = at_sites(model, batch, list(dict.fromkeys(sites)))
    d_in, d_out = (seen[site].shape[-1] for site in sites)
    transcoder = sites.read != sites.written
    shape = Shape(
        config.variant, d_in, d_out, config.width or config.expansion * d_in,
        config.k if config.variant in ("topk", "batchtopk") else 0,
        shifted=not transcoder, skip=config.skip, bandwidth=config.bandwidth,
    )  # fmt: skip
    shape.check()
    if transcoder and config.variant == "topk" and d_in != d_out:
        raise CapabilityError(
            f"no file format holds a topk transcoder of {d_in} to {d_out}", hint="take variant = 'batchtopk'"
        )
    return shape


def _split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the texts for training, and of those held out: two or more of each."""
    order = random.Random(f"sae/{seed}").sample(range(count), count)
    held = min(count - 2, max(2, round(share * count)))
    return sorted(order[held:]), sorted(order[:held])


def _random_copy(model: OpenLM, seed: int) -> OpenModel:
    """A model of the same config whose weights are drawn anew."""
    module: Any = model.module
    first = next(module.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = type(module)(module.config)
    twin = twin.to(first.device, first.dtype)
    return OpenModel.from_module(twin, model.tokenizer, f"{model.identity.name}, random weights")


def _write(coder: SparseCoder, model: OpenLM, sites: Sites, config: SAE, run: Run) -> None:
    """Artefact 'sae': for SAELens; a topk transcoder, which it has none of, for sparsify."""
    told: dict[str, str | Sequence[str]] = {
        "model_name": model.identity.name, "hook_name": sites.read, "model_digest": model.identity.digest,
        "variant": config.variant,
    }  # fmt: skip
    folder = run.artifact("sae")
    if sites.read == sites.written:
        save_saelens(coder, folder, told)
    elif config.variant == "topk":
        save_sparsify(coder, folder, told | {"hook_name_out": sites.written})
    else:
        save_saelens(coder, folder, told | {"hook_name_out": sites.written})
