"""Probes: what was planted is read, by its controls as well; where nothing is planted, or only the template
knows, the intervals hold chance.

Planted cue: a token whose embedding moves by four mean norms along one direction. With 48 texts of each label
and a true AUROC of .99 the standard error is .009 (Hanley & McNeil 1982), so that .95 is reached in more than
99.9 % of draws. Nulls: 40 seeds; where intervals of 95 % hold chance in 95 %, 34 or more do so with 99.7 %
probability, and with 3 % where they hold it in 70 %.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrant.core import CapabilityError, Chat, Completion, Goal, InputError, NumericalError, Quiet
from calibrant.data.judge_folder import read_head
from calibrant.data.rows import LabelledText, LabelledTexts
from calibrant.maths.codelength import block_ends, prequential
from calibrant.measure.judges.classifier import classifier_judge
from calibrant.stats.alarms import threshold
from calibrant.stats.auroc import area
from calibrant.stats.folds import folds_of
from calibrant.testbed.circuits import open_contrasts, open_plant
from calibrant.text.ngrams import ngrams
from calibrant.understand._probe_ablation import ablation
from calibrant.understand._probe_fits import linear, perceptron, sparse
from calibrant.understand._probe_folds import held_out
from calibrant.understand._probe_rows import checked, shuffled
from calibrant.understand.probe import Probing, probe

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from zoo import build

QUICK = Probing(position="mean", random_model=False, ablated=0, controls=2)


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def table(templates=12, tasks=8, label="cue", seed=0, named=("template", "task"), reply=False):
    """A word of the template, a word of the task, a cue: X or Y, which tells the label where it is 'cue'."""
    lot = random.Random(seed)
    verdict = [t % 2 == 0 for t in range(templates)]
    lot.shuffle(verdict)
    subjects = ["".join(lot.choice("klmnopqrst") for _ in range(4)) for _ in range(tasks)]
    rows = []
    for t in range(templates):
        frame = "".join(lot.choice("abcdefghij") for _ in range(6))
        for k, subject in enumerate(subjects):
            truth = {"cue": (t + k) % 2 == 0, "chance": lot.random() < 0.5, "template": verdict[t]}[label]
            cue = "XY"[not truth] if label == "cue" else lot.choice("XY")
            text = f"{frame}{subject}{cue}."
            rows.append(
                LabelledText(
                    id=f"{t}/{k}",
                    prompt=Chat.ask("say it" if reply else text),
                    reply=text if reply else "",
                    label=truth,
                    template=f"t{t}" if "template" in named else "",
                    task=f"k{k}" if "task" in named else "",
                )
            )
    return LabelledTexts(rows=tuple(rows))


def planted(name="llama", size=4.0, seed=0):
    """The model, and the direction that X and Y lie apart in."""
    model = build(name, initializer_range=0.1) if name == "llama" else build(name)
    weight = model.module.get_input_embeddings().weight
    way = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(seed))
    way /= way.norm()
    step = size * weight.detach().norm(dim=1).mean() * way
    for mark, sign in (("X", 1), ("Y", -1)):
        weight.data[model.reply_ids(mark)[0]] += sign * step
    return model, way


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    run = Quiet(work=tmp_path_factory.mktemp("probe"))
    model = planted()[0]
    return model, probe(model, table(), Probing(position="mean", question="is there an X?"), run), run


def test_a_planted_cue_is_read_across_templates_and_tasks(found):
    metrics = found[1].metrics
    assert metrics["auroc"].value >= 0.95 and metrics["auroc"].low > 0.5
    assert metrics["accuracy"].low > metrics["accuracy/majority"].value
    assert metrics["selectivity"].low > 0 and metrics["bits_per_label"].value < 0.9
    assert metrics["compression/layer_0"].value > 1.1


def test_the_text_alone_knows_it_as_well(found):
    """A cue that is a token: the probe has nothing beyond the text, and says so."""
    metrics = found[1].metrics
    assert metrics["auroc/text"].value > 0.95 and metrics["auroc/embedding"].value > 0.95
    assert metrics["gain/text"].low <= 0 <= metrics["gain/text"].high


def test_what_only_the_model_computes_is_beyond_the_text():
    """The planted circuit says the word that followed the last one before: is its number odd?"""
    rows = tuple(
        LabelledText(
            id=row.id,
            prompt=row.clean,
            label=int(row.answer[1:]) % 2 == 1,
            template=row.clean.last_user.split()[-1],
        )
        for row in open_contrasts("induction", {"n": "120"}).rows
    )
    config = Probing(random_model=False, ablated=16, directions=10, controls=1)
    metrics = probe(open_plant("induction", {}), LabelledTexts(rows=rows), config, Quiet()).metrics
    assert metrics["layer"].value == 1 and metrics["auroc"].value > 0.95
    assert metrics["gain/text"].low > 0.2 and metrics["gain/embedding"].low > 0.2
    assert metrics["auroc/layer_0"].value < 0.7 and metrics["ablation/excess"].low > 0
    broken = probe(open_plant("induction", {"removed": "1"}), LabelledTexts(rows=rows), config, Quiet())
    assert broken.metrics["auroc"].low < 0.6


@pytest.mark.parametrize("kind", ["sparse", "mlp"])
def test_other_probes_read_it_too(kind):
    config = QUICK.model_copy(update={"probe": kind, "k": 8})
    metrics = probe(planted()[0], table(named=("template",)), config, Quiet()).metrics
    assert metrics["auroc"].value >= 0.95
    assert ("ablation/probe" in metrics) is False


@pytest.mark.parametrize("named", [("template", "task"), ("template",)])
def test_what_only_the_template_predicts_is_not_found_across_templates(named):
    """And a split of rows is fooled."""
    texts = table(templates=24, tasks=4, label="template", named=named)
    result = probe(planted()[0], texts, QUICK, Quiet())
    metrics = result.metrics
    assert any("labels go by group, of which there are 24" in note for note in result.caveats)
    assert metrics["auroc"].low < 0.5 < metrics["auroc"].high
    assert metrics["auroc_ungrouped"].value > 0.9
    blind = LabelledTexts(rows=tuple(r.model_copy(update={"template": "", "task": ""}) for r in texts.rows))
    fooled = probe(planted()[0], blind, QUICK, Quiet())
    assert fooled.metrics["auroc"].low > 0.8 and any("no template" in note for note in fooled.caveats)
    assert not any("labels go by group" in note for note in fooled.caveats)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["chance", "template"])
@pytest.mark.parametrize("named", [("template", "task"), ("template",)])
def test_intervals_hold_chance_where_nothing_is_planted(label, named):
    held = 0
    model = planted()[0]
    for seed in range(40):
        texts = table(templates=16, tasks=6, label=label, seed=seed, named=named)
        one = probe(model, texts, QUICK, Quiet(seed=seed)).metrics["auroc"]
        held += one.low <= 0.5 <= one.high
    assert held >= 34, held


def test_the_layer_is_chosen_without_the_rows_it_is_judged_on():
    """Of 60 layers of noise the best has an AUROC far above .5; the nested one has not."""
    way = np.random.default_rng(0)
    nested, naive = [], []
    for seed in range(6):
        x = torch.from_numpy(way.normal(size=(60, 60, 3)))
        labels = np.arange(60) % 2 == 0
        folds = folds_of([], labels, 4, seed, inner=True)
        held = held_out(lambda a, b: linear(a, b, 1.0), x, labels, folds)
        nested.append(area(held.nested, labels, folds.blocks))
        naive.append(max(area(one, labels, folds.blocks) for one in held.scores))
    assert np.mean(naive) > 0.62 and np.mean(nested) < 0.58


def test_no_group_is_on_both_sides_of_a_split():
    rows = table(templates=9, tasks=7).rows
    kinds = [[row.template for row in rows], [row.task for row in rows]]
    labels = np.array([row.label for row in rows])
    folds = folds_of(kinds, labels, 4, 0, inner=True)
    cells = list(folds.cells)
    assert sorted(np.concatenate([folds.inside(cell) for cell in cells])) == list(range(len(rows)))
    for cell in cells:
        for names in kinds:
            inside = {names[i] for i in folds.inside(cell)}
            assert not inside & {names[i] for i in folds.apart(cell)}
            assert not inside & {names[i] for i in folds.apart(cell, cells[0])}


def test_shared_fits_are_the_fits_that_each_split_needs(monkeypatch):
    """Two blocks leave out what their rectangle's other corners do: as fits one by one show."""
    rows = table(templates=8, tasks=8).rows
    labels = np.array([row.label for row in rows])
    x = torch.randn(2, len(rows), 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    folds = folds_of([[r.template for r in rows], [r.task for r in rows]], labels, 4, 0, inner=True)

    def fit(a, b):
        return linear(a, b, 1.0)

    held = held_out(fit, x, labels, folds)
    cell = (1, 2)
    others, scores = held.inner[cell]
    wide = torch.cat([x] * 2)
    monkeypatch.setattr("calibrant.understand._probe_folds._AT_ONCE", 1)  # a layer at a time
    alone = held_out(fit, wide, labels, folds)
    assert np.abs(alone.scores[:2] - held.scores).max() < 1e-9 and (alone.picked == held.picked).all()
    for other in [(0, 0), (3, 1)]:
        part, train = folds.inside(other), folds.apart(cell, other)
        direct = fit(x[:, train], torch.from_numpy(labels[train])).scores(x[:, part]).numpy()
        where = [list(others).index(row) for row in part]
        assert np.abs(scores[:, where] - direct).max() < 1e-9


def test_codelength_is_the_sum_of_the_papers_formula():
    way = np.random.default_rng(0)
    x = torch.from_numpy(way.normal(size=(2, 50, 4)))
    labels = x[0, :, 0] > 0
    ends = block_ends([1] * 50)
    assert ends[-1] == 50 and ends[0] == 1
    bits = prequential(lambda a, b: linear(a, b, 1.0).scores, x, labels, ends)
    for layer in range(2):
        total = 0.0
        for start, end in zip([0, *ends], ends, strict=False):
            for row in range(start, end):
                seen = labels[:start]
                if start == 0 or seen.all() or not seen.any():
                    total += 1.0
                    continue
                one = linear(x[layer : layer + 1, :start], seen, 1.0)
                p = torch.sigmoid(one.scores(x[layer : layer + 1, row : row + 1]))[0, 0]
                total -= float(torch.log2(p if labels[row] else 1 - p))
        assert float(bits[layer].sum()) == pytest.approx(total, rel=1e-9)
    assert block_ends([10, 30, 60]) == [10, 40, 100]


def test_the_sparse_probe_uses_k_features_of_each_layer():
    way = torch.Generator().manual_seed(1)
    x = torch.randn(3, 80, 20, generator=way, dtype=torch.float64)
    labels = x[1, :, 7] > 0
    plane = sparse(x, labels, 1.0, 2)
    assert ((plane.weight != 0).sum(1) == 2).all() and plane.weight[1, 7] > 1
    assert torch.equal(sparse(x, labels, 1.0, 99).weight != 0, torch.ones(3, 20, dtype=torch.bool))


def test_the_perceptron_reads_what_no_plane_does():
    way = torch.Generator().manual_seed(2)
    x = torch.randn(1, 300, 4, generator=way, dtype=torch.float64)
    labels = (x[0, :, 0] > 0) ^ (x[0, :, 1] > 0)
    right = [float(((fit.scores(x)[0] > 0) == labels).double().mean()) for fit in (
        perceptron(x, labels, 1.0, 0), linear(x, labels, 1.0)
    )]  # fmt: skip
    assert right[0] > 0.95 and right[1] < 0.7


def used(keep):
    """A probe of the last layer's cue; the unembedding reads nothing but its direction, or all but it."""
    model, way = planted()
    head = model.module.lm_head.weight
    along = (head @ way)[:, None] * way
    head.data = (head + 20 * along) if keep else head - along
    texts = checked(table(), None)
    plane = torch.zeros(32, dtype=torch.float64), way.double()
    return ablation(model, texts, "blocks.1.hook_resid_post", plane, 20, 48, Quiet())


def test_a_direction_that_is_used_matters_more_than_random_ones_and_an_idle_one_less():
    assert used(True)["ablation/excess"].low > 0
    assert used(False)["ablation/excess"].high < 0.01


def test_a_threshold_keeps_its_rate():
    """Of new negatives at most the share is above it, on average over draws (split conformal)."""
    way = np.random.default_rng(0)
    above = [np.mean(way.normal(size=400) > threshold(way.normal(size=39), 0.05)) for _ in range(600)]
    assert np.mean(above) == pytest.approx(0.05, abs=0.006)
    assert threshold(np.zeros(18), 0.05) is None and threshold(np.arange(19.0), 0.05) == 18.0


def test_false_alarms_are_as_rare_as_was_asked(found):
    alarm = found[1].metrics["false_alarm_rate"]
    assert alarm.low <= 0.05 <= alarm.high and found[1].metrics["detection_rate"].value > 0.8


def test_the_stored_probe_is_a_judge(found):
    model, _, run = found
    head = read_head(run.work / "artifacts" / "probe")
    assert head.over == "prompt" and head.question == "is there an X?"
    judge = classifier_judge(model, head)
    goal = Goal(id="g", text="look")
    chats = [Chat.ask(text) for text in ("bcdefgqrstX.", "bcdefgqrstY.")]
    said = judge.judge([goal] * 2, chats, [Completion(text="fine")] * 2)
    assert [one.answer for one in said] == ["yes", "no"]
    assert "over" in json.loads((run.work / "artifacts" / "probe" / "judge.json").read_text())


def test_a_probe_of_replies_is_a_judge_of_replies(tmp_path):
    model, run = planted()[0], Quiet(work=tmp_path)
    metrics = probe(model, table(reply=True), QUICK, run).metrics
    head = read_head(tmp_path / "artifacts" / "probe")
    assert metrics["auroc"].value > 0.95 and head.over == "reply"
    goal, chat = Goal(id="g", text="look"), Chat.ask("say it")
    replies = [Completion(text=text) for text in ("bcdefgqrstX.", "bcdefgqrstY.")]
    said = classifier_judge(model, head).judge([goal] * 2, [chat] * 2, replies)
    assert [one.answer for one in said] == ["yes", "no"]


def test_with_few_negatives_there_is_no_threshold(tmp_path):
    result = probe(planted()[0], table(templates=6, tasks=5), QUICK, Quiet(work=tmp_path))
    assert "cannot set a rate" in result.metrics["false_alarm_rate"].reason
    assert any("no threshold" in note for note in result.caveats)
    assert not (tmp_path / "artifacts").exists()


def test_shuffled_weights_are_the_same_numbers_in_another_order():
    model = build("gpt2")
    twin = shuffled(model, 0)
    for (name, one), other in zip(model.module.named_parameters(), twin.module.parameters(), strict=True):
        assert torch.equal(one.flatten().sort().values, other.flatten().sort().values), name
    assert not torch.equal(model.module.transformer.wte.weight, twin.module.transformer.wte.weight)
    tied = twin.module.lm_head.weight is twin.module.transformer.wte.weight
    assert tied == (model.module.lm_head.weight is model.module.transformer.wte.weight)


def test_ngrams_count():
    one, two, three = ngrams(["ab", "ab ab", "xy"], lengths=(2,), buckets=997)
    assert one.sum() == 3 and two.sum() == 6 and (one > 0).sum() == 3
    assert (one * two).sum() > 0 and (one * three).sum() == 0


@pytest.mark.parametrize(
    "name", ["gpt2", *slow("gpt_neox", "gemma2", "bloom", "opt", "qwen2", "falcon", "olmo2", "mistral")]
)
def test_every_family_can_be_probed(name):
    config = Probing(position="mean", controls=1, directions=10, ablated=8)
    metrics = probe(planted(name, size=12.0)[0], table(), config, Quiet()).metrics
    assert metrics["auroc"].value > 0.8
    assert metrics["ablation/excess"].value is not None and metrics["auroc/random_model"].value is not None


def test_half_precision_is_read(found):
    model = planted()[0]
    model.module.to(torch.bfloat16)
    metrics = probe(model, table(), Probing(position="mean", controls=1, directions=10, ablated=8)).metrics
    assert metrics["auroc"].value > 0.95


def test_inside_inference_mode_the_numbers_are_the_same(found):
    with torch.inference_mode():
        inside = probe(found[0], table(), QUICK, Quiet()).metrics
    assert inside["auroc"] == found[1].metrics["auroc"]
    assert inside["bits_per_label"] == found[1].metrics["bits_per_label"]


GOOD = table().rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((), "0 of 0 texts are labelled yes"),
        (tuple(row for row in GOOD if row.label), "0 of 48 texts are labelled no"),
        ((*GOOD, GOOD[0]), "two texts are called '0/0'"),
        ((*GOOD, GOOD[0].model_copy(update={"id": "again", "label": False})), "texts '0/0' and 'again'"),
        ((*GOOD, GOOD[0].model_copy(update={"id": "r", "reply": "yes"})), "1 of 97 rows have a reply"),
        (tuple(r.model_copy(update={"template": "t"}) for r in GOOD), "all rows have the template 't'"),
        ((*GOOD, GOOD[0].model_copy(update={"id": "e", "prompt": Chat.ask(" ")})), "text 'e' is empty"),
        (tuple(r.model_copy(update={"template": r.id[:1] + "x"}) for r in GOOD[:16]), "too few groups"),
        ((*GOOD, GOOD[0].model_copy(update={"id": "l", "prompt": Chat.ask("a" * 200)})), "text 'l' does not"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_probed_are_refused(rows, words):
    with pytest.raises(InputError, match=re.escape(words)):
        probe(planted()[0], LabelledTexts(rows=rows), QUICK, Quiet())


def test_too_few_groups_are_refused_by_name():
    rows = tuple(row.model_copy(update={"template": "a" if row.label else "b", "task": ""}) for row in GOOD)
    with pytest.raises(InputError, match="fold"):
        probe(planted()[0], LabelledTexts(rows=rows), QUICK, Quiet())


def test_a_model_in_training_mode_is_refused():
    model = planted()[0]
    model.module.train()
    with pytest.raises(CapabilityError, match="training mode"):
        probe(model, table(), QUICK, Quiet())


def test_a_state_that_is_no_number_is_an_error():
    model = planted()[0]
    model.module.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(NumericalError, match="not finite"):
        probe(model, table(), QUICK, Quiet())


def test_a_site_that_the_family_lacks_is_refused():
    model = planted()[0]
    model.module.model.layers[0].register_forward_hook(lambda _, __, out: out * 1.01)
    model.module.model.layers[1].register_forward_hook(lambda _, __, out: out * 1.01)
    with pytest.raises(CapabilityError, match="has no hook_attn_out"):
        probe(model, table(), QUICK.model_copy(update={"site": "attn_out"}), Quiet())
