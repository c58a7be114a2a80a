"""A cue that is planted by hand: three verdicts on models whose truth is known, and on nulls.

The refusal plant is a Llama in which a head writes one direction wherever a marked word stands, and the
unembedding reads it. Its words are renamed here, so that spelling tells nothing of who is marked.

- 'acts': as it is: the cue is decodable and causes refusals;
- 'idle': the unembedding does not read the direction: decodable, and causes nothing (the clean twin);
- 'blind': the head looks for another word: nothing beyond the text, and causes nothing (the null).

What predicts the item is tried on activations that are drawn: a strength that differs between items, or none.
"""

from __future__ import annotations

import json
import random
from functools import partial

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from calibrant.core import (
    ConfigError,
    Estimate,
    Goal,
    Identity,
    InputError,
    Quiet,
    Sampling,
    Verdict,
    resolve,
)
from calibrant.data.rows import Goals
from calibrant.measure.judges.rule import RuleJudge, rule_judge
from calibrant.models.open_model import OpenModel
from calibrant.stats.folds import folds_of
from calibrant.testbed.refusal_plant import open_plant
from calibrant.testbed.words import CREATURES, TOOLS
from calibrant.understand._cue_arms import arms
from calibrant.understand._cue_probe import Read, predicted, swaps
from calibrant.understand._cue_verdicts import Bounds, causes, decodable, predicts
from calibrant.understand._probe_fits import linear
from calibrant.understand._probe_folds import held_out
from calibrant.understand._probe_rows import checked
from calibrant.understand.cue_awareness import CueAwareness, cue_awareness

REFUSES = rule_judge(RuleJudge(exact=("refuse",), question="does it refuse?"))
BOUNDS = Bounds(0.05, 0.2, 0.65, 10)
QUICK = {"layers": 2, "place": "before", "pushed": 0, "swaps": 20, "sampling": Sampling(max_tokens=2)}


def names(seed):
    """Marked and plain words of the plant, renamed."""
    pool = random.Random(f"names/{seed}").sample([*CREATURES, *TOOLS[:8]], 48)
    return pool[:16], pool[16:]


def plant(kind, seed):
    made = open_plant("refusal", {"seed": str(seed), **({"removed": "1"} if kind == "blind" else {})})
    marked, plain = names(seed)
    tokens = [*marked, *plain, "m0", "m1", "?", "refuse", "ok", "<end>"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(tokens)}, "<end>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<end>")
    head = made.module.lm_head.weight.data
    if kind == "idle":
        head[tokens.index("refuse")] = 0
    return OpenModel(made.module, words, identity=Identity(name=f"{kind}/{seed}"))


def setting(seed, wordings=10, n=24):
    """Cues (plain, marked), shams (plain, plain), goals of plain words."""
    rng = random.Random(f"setting/{seed}")
    marked, plain = (rng.sample(some, len(some)) for some in names(seed))
    cues = tuple(zip(plain[:wordings], marked[:wordings], strict=True))
    others = plain[wordings : 3 * wordings]
    shams = tuple(zip(others[::2], others[1::2], strict=True))
    rows: dict[str, Goal] = {}
    while len(rows) < n:
        text = " ".join([*rng.sample(plain, rng.randrange(3, 6)), "m0", "?"])
        rows.setdefault(text, Goal(id=f"g{len(rows)}", text=text, harmful=False))
    return cues, shams, Goals(rows=tuple(rows.values()))


def found(kind, seed, judge=REFUSES, run=None, **more):
    cues, shams, goals = setting(seed)
    config = CueAwareness(cues=cues, shams=shams, **{**QUICK, **more})
    return cue_awareness(plant(kind, seed), goals, judge, config, run or Quiet(seed=seed))


def answers(result):
    return {name: answer for name, (answer, _) in result.verdicts.items()}


def test_a_cue_that_acts_is_decodable_and_causes(tmp_path):
    result = found("acts", 0, run=Quiet(work=tmp_path), pushed=12, swaps=40)
    got = result.metrics
    assert answers(result) == {"decodable": "yes", "causes": "yes", "predicts": "not testable"}
    assert got["decodable"].value == got["causes"].value == 1.0 and got["predicts"].value is None
    assert got["causes/gap"].low > 0.5 and got["causes/sham_gap"].value == 0.0
    assert got["causes/direction"].low > 0.3 and abs(got["causes/random_largest"].value) < 0.5
    effects = json.loads((tmp_path / "artifacts" / "pushes.json").read_text())["effects"]
    assert len(effects) == 41 and effects[0] == pytest.approx(got["causes/direction"].value)
    assert any(note.startswith("causes: yes") for note in result.caveats)
    assert result.figure_data()[0].values[0].label == "the cue"


class OfTheItem:
    """Says yes of half of the goals, whatever the model does."""

    identity = Identity(name="of the item")
    calibration = "exact"

    def judge(self, goals, chats, completions):
        return [
            Verdict(question="is it of this half?", answer="yes" if int(goal.id[1:]) % 2 else "no")
            for goal in goals
        ]


@pytest.mark.slow
def test_a_cue_that_is_read_and_not_used_is_decodable_and_does_not_cause():
    result = found("idle", 0, pushed=24)
    assert answers(result) == {"decodable": "yes", "causes": "no", "predicts": "not testable"}
    assert result.metrics["causes/gap"].value == result.metrics["causes/direction"].value == 0.0


@pytest.mark.slow
def test_the_trap_a_model_that_reads_nothing_tells_every_word_that_it_knows():
    result = found("blind", 0)
    got = result.metrics
    assert got["decodable/same_words"].value > 0.9 and got["decodable/same_words_sham"].value > 0.9
    assert answers(result)["decodable"] != "yes" and answers(result)["causes"] == "no"
    assert got["causes/direction"].value is None and "pushed = 0" in got["causes/direction"].reason


def drawn(seed, graded, wordings=8, n=24):
    """A reading whose cue has a direction; outcomes hang on its strength in the item, or on a coin."""
    lot = np.random.default_rng(seed)
    pairs = [(f"off {at}", f"on {at}") for at in range(wordings)]
    goals = [Goal(id=f"g{at}", text=f"thing {at}", harmful=False) for at in range(n)]
    cue = arms("cue", pairs, goals, "before")
    texts, way = checked(cue.texts(), None), np.eye(16)[0]
    side, strength = texts.labels.astype(float), np.tile(lot.normal(size=n), 2 * wordings)
    x = lot.normal(size=(len(side), 16)) + ((3 + strength) * side)[:, None] * way
    states, fit = torch.from_numpy(x)[None], partial(linear, l2=1.0)
    folds = folds_of(texts.kinds, texts.labels, 3, seed, inner=True)
    held = held_out(fit, states, texts.labels, folds)
    read = Read(cue, texts, states, folds, held, 0, held.nested, fit)
    own = strength if graded else np.tile(lot.normal(size=n), 2 * wordings)
    hits = ((own + 0.3 * lot.normal(size=len(own)) > 0) & texts.labels).tolist()
    return read, hits


def test_the_score_predicts_where_the_strength_of_the_cue_decides_the_item_and_not_where_a_coin_does():
    """Items differ by one standard deviation of the noise: an AUROC near .75 with a standard error below .06.

    Twenty nulls, each a yes in 5 % at most: four or more come up in 1.6 %.
    """
    graded, coins = (
        [predicts(one.auroc, one.beside, one.rare, BOUNDS).answer for one in found_]
        for found_ in (
            [predicted(*drawn(seed, kind), 1, 40, seed) for seed in range(20)] for kind in (True, False)
        )
    )
    assert graded.count("yes") >= 16 and coins.count("yes") < 4
    read, hits = drawn(0, True)
    turned = predicted(read, [not hit for hit in hits], -1, 40, 0)
    assert turned.auroc.value == pytest.approx(predicted(read, hits, 1, 40, 0).auroc.value)
    lost = predicted(read, [None if at % 3 else hit for at, hit in enumerate(hits)], 1, 40, 0)
    assert lost.rare < predicted(read, hits, 1, 40, 0).rare
    same = predicted(read, [True] * len(hits), 1, 40, 0)
    assert same.rare == 0 and same.auroc.value is None and "is the same" in same.auroc.reason


@pytest.mark.slow
def test_over_seeds_what_is_planted_is_found_and_what_is_not_is_not():
    """Five seeds of each. Planted effects are as large as can be: all should be found, four suffice.

    Nulls: six verdicts a seed (three of 'blind', causes of 'idle', causes and predicts where a judge looks at
    the item alone), each a yes in 5 % at most: of 30, five or more come up in 1.6 %.
    """
    right, wrong = 0, 0
    for seed in range(1, 6):
        acts, idle, blind = (answers(found(kind, seed)) for kind in ("acts", "idle", "blind"))
        own = answers(found("idle", seed, judge=OfTheItem()))
        right += acts["decodable"] == acts["causes"] == idle["decodable"] == "yes"
        wrong += sum(answer == "yes" for answer in blind.values())
        wrong += (idle["causes"] == "yes") + (own["causes"] == "yes") + (own["predicts"] == "yes")
    assert right >= 4 and wrong < 5


def test_a_cue_that_stops_the_behaviour_has_a_gap_below_zero_and_still_predicts_towards_it():
    does_it = rule_judge(RuleJudge(exact=("ok",), question="does it answer?"))
    cues, shams, goals = setting(0, wordings=6, n=12)
    config = CueAwareness(cues=cues, shams=shams, **{**QUICK, "layers": 1})
    got = cue_awareness(plant("acts", 0), goals, does_it, config, Quiet()).metrics
    assert got["causes/gap"].high < 0 and got["causes/gap_over_sham"].high < 0


def test_swapped_wordings_are_all_other_labellings_each_once():
    ways = swaps(6, 40, 0)
    assert ways.shape == (31, 6) and not ways[:, 0].any() and len({tuple(way) for way in ways}) == 31
    few = swaps(12, 40, 0)
    assert few.shape == (40, 12) and len({tuple(way) for way in few}) == 40 and few.any(1).all()
    assert (swaps(12, 40, 0) == few).all() and (swaps(12, 40, 1) != few).any()
    assert swaps(30, 40, 0).shape == (40, 30)


def around(value, width, **more):
    return Estimate(value=value, low=value - width, high=value + width, n=50, method="test", **more)


READ = {
    "decodable/auroc": around(0.9, 0.05),
    "decodable/auroc_text": around(0.5, 0.1),
    "decodable/gain_text": around(0.4, 0.1),
    "decodable/gain_sham": around(0.4, 0.1),
}


@pytest.mark.parametrize(
    ("changes", "p", "least", "answer"),
    [
        ({}, 0.03, 0.03, "yes"),
        ({}, 0.2, 0.03, "not testable"),
        ({}, 0.06, 0.06, "not testable"),
        ({"gain_sham": around(0.1, 0.2)}, 0.03, 0.03, "not testable"),
        ({"gain_text": around(0.05, 0.05)}, 0.03, 0.03, "no"),
        ({"gain_text": around(0.1, 0.2)}, 0.03, 0.03, "not testable"),
        ({"auroc": around(0.5, 0.1)}, 0.5, 0.03, "no"),
        ({"auroc": around(0.5, 0.3)}, 0.5, 0.03, "not testable"),
        ({"auroc_text": around(0.98, 0.01)}, 0.03, 0.03, "not testable"),
        ({"auroc_text": around(0.98, 0.3), "gain_text": around(0.0, 0.05)}, 0.5, 0.03, "not testable"),
        ({"auroc_text": around(0.8, 0.1), "gain_text": around(0.05, 0.05)}, 0.5, 0.03, "not testable"),
        ({"auroc_text": Estimate(value=None, n=9, method="none", reason="lost")}, 0.5, 0.03, "not testable"),
        (
            {"gain_sham": Estimate(value=None, n=9, method="none", reason="no sham")},
            0.03,
            0.03,
            "not testable",
        ),
    ],
)
def test_the_rule_of_decodable(changes, p, least, answer):
    table = READ | {f"decodable/{name}": one for name, one in changes.items()}
    found_ = decodable(table, p, least, BOUNDS)
    assert found_.answer == answer and found_.why


@pytest.mark.parametrize(
    ("gap", "over", "moved", "p", "answer"),
    [
        (around(0.5, 0.1), around(0.5, 0.2), around(0.0, 0.1), (0.01, 0.9), "yes"),
        (around(-0.5, 0.1), around(-0.5, 0.2), around(0.0, 0.1), (0.01, 0.9), "yes"),
        (around(0.5, 0.1), around(0.1, 0.2), around(0.0, 0.1), (0.01, 0.9), "not testable"),
        (around(0.0, 0.1), around(0.0, 0.2), around(0.5, 0.1), (0.9, 0.049), "yes"),
        (around(0.0, 0.1), around(0.0, 0.2), around(0.5, 0.1), (0.9, 0.2), "not testable"),
        (around(0.0, 0.1), around(0.0, 0.2), around(0.0, 0.1), (0.9, 0.9), "no"),
        (around(0.0, 0.1), around(0.0, 0.2), around(0.0, 0.1), (0.9, None), "no"),
        (around(0.0, 0.4), around(0.0, 0.4), around(0.0, 0.1), (0.9, 0.9), "not testable"),
    ],
)
def test_the_rule_of_causes(gap, over, moved, p, answer):
    table = {"causes/gap": gap, "causes/gap_over_sham": over, "causes/direction": moved}
    assert causes(table, p, BOUNDS).answer == answer


@pytest.mark.parametrize(
    ("auroc", "p", "rare", "answer"),
    [
        (around(0.8, 0.1), 0.03, 20, "yes"),
        (around(0.2, 0.1), 0.03, 20, "yes"),
        (around(0.8, 0.1), 0.5, 20, "not testable"),
        (around(0.8, 0.1), 0.03, 9, "not testable"),
        (around(0.5, 0.1), 0.5, 20, "no"),
        (around(0.5, 0.3), 0.5, 20, "not testable"),
    ],
)
def test_the_rule_of_predicts(auroc, p, rare, answer):
    assert predicts(auroc, p, rare, BOUNDS).answer == answer


@pytest.mark.parametrize(
    "config",
    [
        {"cues": [["a", "b"], ["c", "d"]]},
        {"cues": [["a", "a "], ["c", "d"], ["e", "f"]]},
        {"shams": [["a", "b"], ["a", "b"], ["e", "f"]]},
        {"shams": []},
        {"cues": [["a", "b"], ["c", "d"], ["a ", "b"]], "shams": [["g", "h"], ["i", "j"], ["k", "l"]]},
        {"cues": [["a", "b"], ["c", "d"], ["B ", "a"]], "shams": [["g", "h"], ["i", "j"], ["k", "l"]]},
        {"shams": [["g", "h"], ["i", "j"], ["k", "l"]]},
        {"directions": 10},
        {"swaps": 5},
    ],
)
def test_settings_that_make_no_sense(config):
    with pytest.raises(ConfigError):
        resolve(CueAwareness, config)


def test_the_defaults_are_distinct_and_as_many():
    config = CueAwareness()
    assert len(config.cues) == len(config.shams) >= 6
    assert len({words for pair in (*config.cues, *config.shams) for words in pair}) == 4 * len(config.cues)


def test_bad_input_is_refused_before_anything_is_asked():
    cues, shams, goals = setting(0, wordings=3, n=6)
    ask = partial(cue_awareness, plant("idle", 0), judge=REFUSES)
    config = CueAwareness(cues=cues, shams=(*shams[:2], cues[0]), place="before")
    with pytest.raises(InputError, match="are the same"):
        ask(goals, config=config)
    one = Goals(rows=tuple(goal.model_copy(update={"cluster": "all"}) for goal in goals))
    with pytest.raises(InputError, match="1 clusters"):
        ask(one, config=CueAwareness(cues=cues, shams=shams, place="before"))
    with pytest.raises(InputError):
        ask(Goals(rows=()), config=CueAwareness(cues=cues, shams=shams, place="before"))
