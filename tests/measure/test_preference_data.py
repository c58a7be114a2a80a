"""The lint of preference data: planted faults and biases, their nulls, and what must stay unknown."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import combinations

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from calibrant.core import BudgetError, Chat, InputError, Quiet
from calibrant.data.readers import read_file
from calibrant.data.rows import Pair, Preferences, Refused
from calibrant.data.votes import Vote, Votes
from calibrant.measure.preference_data import PreferenceData, preference_data
from calibrant.models.chat_tokens import ChatTokens
from calibrant.models.open_model import OpenModel

NOISE = ("agreement", "krippendorff_alpha", "gwet_ac1", "label_noise", "accuracy_ceiling", "majority_ceiling")


class Speller:
    """A model of which only the tokenizer is asked: one id a character, but '?y' is one too."""

    def __init__(self, max_length=None):
        letters = [chr(code) for code in range(32, 127)]
        vocabulary = {token: at for at, token in enumerate([*letters, "?y", "<end>"])}
        spelt = Tokenizer(models.BPE(vocabulary, [("?", "y")]))
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=spelt, eos_token="<end>")
        self.tokens, self.max_length = ChatTokens(self.tokenizer), max_length

    def prompt_ids(self, chat):
        return self.tokens.prompts([self.tokens.prompt_text(chat)])[0]

    def reply_ids(self, text):
        return self.tokens.replies([text], [False])[0]


def pair(name, prompt="", chosen="sure", rejected="nope"):
    return Pair(id=name, prompt=Chat.ask(prompt or f"is it {name}?"), chosen=chosen, rejected=rejected)


def table(*rows, refused=()):
    return Preferences(rows=tuple(rows), source="planted", refused=tuple(refused))


CLEAN = tuple(pair(f"c{i}") for i in range(8))


def ids(result, kind=""):
    return [one.id for one in result.findings if kind in ("", one.kind)]


def check(pairs, tmp_path, **given):
    return preference_data(pairs, run=Quiet(work=tmp_path), **given)


# Faults


def test_a_clean_set_gives_none(tmp_path):
    result = check(table(*CLEAN), tmp_path, model=Speller(100), held_out=table(pair("other")))
    assert result.findings == ()
    shares = {name: one.value for name, one in result.metrics.items() if name.endswith("_share")}
    assert {name for name, value in shares.items() if value is None} == {"tie_share"}
    assert set(shares.values()) == {0.0, None}
    assert (tmp_path / "artifacts" / "findings.jsonl").read_bytes() == b""
    assert not (tmp_path / "artifacts" / "raters.jsonl").exists()


def test_every_planted_fault_is_found_by_its_id(tmp_path):
    """Limit 20: 'is it cut?' is 10 ids, so replies that part after 12 letters are the same when cut."""
    rows = (
        *CLEAN,
        pair("empty", rejected=" "),
        pair("equal", chosen="nope"),
        pair("copy", "is it c0?"),
        pair("turned", "is it c1?", "nope", "sure"),
        pair("merge", chosen="yes"),
        pair("odd", chosen="caf\ufffd"),
        pair("long", chosen="n" * 13),
        pair("cut", chosen="nothing like a", rejected="nothing like b"),
        pair("mark", chosen="<end> y"),
    )
    refused = [Refused(line=3, reason="empty text: 'chosen'")]
    held = table(pair("seen", "IS it  c3?"), pair("unseen"))
    result = check(table(*rows, refused=refused), tmp_path, model=Speller(20), held_out=held)
    planted = {
        "refused": ["line 3"],
        "empty": ["empty"],
        "equal": ["equal"],
        "duplicate": ["copy"],
        "contradiction": ["c1", "turned"],
        "odd text": ["odd", "mark"],
        "boundary merge": ["merge"],
        "too long": ["long", "cut"],
        "same when cut": ["cut"],
        "leak": ["seen"],
    }
    assert {kind: ids(result, kind) for kind in planted} == planted
    assert len(result.findings) == sum(map(len, planted.values()))
    stored = (tmp_path / "artifacts" / "findings.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in stored] == [one.model_dump() for one in result.findings]
    metrics = result.metrics
    assert metrics["contradiction_share"].value == 2 / 17
    assert metrics["refused_share"].value == 1 / 18
    assert metrics["leak_share"].value == 1 / 2
    assert (metrics["faulty_share"].value, metrics["faulty_share"].n) == (11 / 18, 18)
    assert all(one.low < one.value < one.high for name, one in metrics.items() if name in planted)


def test_without_a_model_nothing_is_tokenised(tmp_path):
    result = check(table(*CLEAN, pair("merge", chosen="yes")), tmp_path)
    for name in ("boundary_merge_share", "too_long_share", "same_when_cut_share"):
        assert result.metrics[name].value is None
        assert "no model was given" in result.metrics[name].reason
    assert "no held-out" in result.metrics["leak_share"].reason


def test_without_a_limit_nothing_is_too_long(tmp_path):
    rows = table(*CLEAN, pair("long", chosen="n" * 500))
    open_ended = check(rows, tmp_path, model=Speller()).metrics
    assert open_ended["boundary_merge_share"].value == 0
    assert "neither the model nor max_length" in open_ended["too_long_share"].reason
    limited = check(rows, tmp_path, model=Speller(100), config=PreferenceData(max_length=13))
    assert len(ids(limited, "too long")) == 9


def test_tokens_are_charged(tmp_path):
    class Poor(Quiet):
        def spend(self, *, tokens=0, queries=0, flops=0.0):
            raise BudgetError(f"{tokens} tokens are too many")

    with pytest.raises(BudgetError, match="28 tokens"):  # 9 + 4 + 1, twice
        preference_data(table(*CLEAN), Speller(), run=Poor(work=tmp_path))
    with pytest.raises(InputError, match="no pairs"):
        check(table(), tmp_path)


def test_length_bias_and_its_null(tmp_path):
    rng = random.Random(0)
    planted = [
        pair(f"p{i}", chosen="y" * rng.randint(8, 20), rejected="n" * rng.randint(1, 9)) for i in range(80)
    ]
    result = check(table(*planted), tmp_path)
    assert result.metrics["longer_chosen"].low > 0.5
    assert any("may learn length" in caveat for caveat in result.caveats)
    by_lot = [
        pair(f"p{i}", chosen="y" * rng.randint(1, 20), rejected="n" * rng.randint(1, 20)) for i in range(80)
    ]
    result = check(table(*by_lot), tmp_path)
    found = result.metrics["longer_chosen"]
    assert found.low < 0.5 < found.high
    assert found.n == sum(len(row.chosen) != len(row.rejected) for row in by_lot)
    assert not any("may learn length" in caveat for caveat in result.caveats)
    assert "same length" in check(table(*CLEAN), tmp_path).metrics["longer_chosen"].reason


def test_pairs_of_one_prompt_are_one_cluster(tmp_path):
    rows = [pair(f"p{i}", f"prompt {i // 6}", "y" * (i + 2), "n") for i in range(24)]
    assert check(table(*rows), tmp_path).metrics["longer_chosen"].clusters == 4


# Noise: from repeated rows, or from votes


def test_copies_are_no_evidence_of_clean_labels(tmp_path):
    unrepeated = check(table(*CLEAN), tmp_path).metrics
    copied = check(table(*CLEAN, pair("copy", "is it c0?")), tmp_path).metrics
    for name in NOISE:
        assert "no pair is repeated" in unrepeated[name].reason
        assert copied[name].value is None
        assert "as mere copies would" in copied[name].reason
    assert "do not say which reply was shown first" in unrepeated["first_chosen"].reason


def test_contradictions_stand_for_votes(tmp_path):
    """60 comparisons, each judged by three rows; a fifth of the rows is turned round by lot."""
    rng, rows = random.Random(1), []
    for i in range(60):
        for k in range(3):
            sides = ("sure", "nope") if rng.random() > 0.2 else ("nope", "sure")
            rows.append(pair(f"{i}/{k}", f"prompt {i}", *sides))
    metrics = check(table(*rows), tmp_path).metrics
    assert metrics["label_noise"].low < 0.2 < metrics["label_noise"].high
    assert metrics["accuracy_ceiling"].value == pytest.approx(1 - metrics["label_noise"].value)
    assert all("copies of one vote" in metrics[name].reason for name in NOISE)


def cast(n, noises, rng, *, ties=0.0, first=0.0):
    """Votes of raters with planted noise, ties and a habit of taking the first side; the truth is side a."""
    votes = []
    for who, noise in enumerate(noises):
        for i in range(n):
            side, right = rng.choice("ab"), rng.random() >= noise
            choice = "first" if (side == "a") == right else "second"
            choice = "first" if rng.random() < first else choice
            choice = "same" if rng.random() < ties else choice
            votes.append(Vote(item=f"q{i}", rater=f"rater {who}", first=side, choice=choice))
    return Votes(rows=tuple(votes), source="told")


def test_votes_give_noise_ceiling_and_raters(tmp_path):
    votes = cast(400, (0.15, 0.15, 0.15, 0.45), random.Random(2), ties=0.1)
    metrics = check(table(*CLEAN), tmp_path, votes=votes).metrics
    assert metrics["label_noise"].low < 0.225 < metrics["label_noise"].high  # the mean of the four
    assert metrics["accuracy_ceiling"].low < 0.775 < metrics["accuracy_ceiling"].high
    assert metrics["majority_ceiling"].low > metrics["accuracy_ceiling"].high
    assert metrics["tie_share"].low < 0.1 < metrics["tie_share"].high
    assert metrics["first_chosen"].low < 0.5 < metrics["first_chosen"].high
    assert metrics["agreement"].value < 1 - 2 * 0.225 * 0.775  # a tie against a side is no half agreement
    told = [json.loads(line) for line in (tmp_path / "artifacts" / "raters.jsonl").read_text().splitlines()]
    assert [one["rater"] for one in told] == [f"rater {who}" for who in range(4)]
    assert [one["accuracy"] for one in told] == pytest.approx([0.85, 0.85, 0.85, 0.55], abs=0.06)


def test_two_raters_have_no_accuracy_of_their_own(tmp_path):
    check(table(*CLEAN), tmp_path, votes=cast(50, (0.1, 0.4), random.Random(3)))
    told = [json.loads(line) for line in (tmp_path / "artifacts" / "raters.jsonl").read_text().splitlines()]
    assert [one["accuracy"] for one in told] == [None, None]


def test_position_bias_is_found_and_called_noise(tmp_path):
    result = check(table(*CLEAN), tmp_path, votes=cast(300, (0.1, 0.1), random.Random(4), first=0.5))
    assert result.metrics["first_chosen"].low > 0.6
    assert any("sees no places" in caveat for caveat in result.caveats)


def test_repeats_and_simulated_votes_are_known_for_what_they_are(tmp_path):
    rows = [Vote(item="q", rater=f"simulated:{k}", first="a", choice="first") for k in range(2)]
    rows.append(Vote(item="q", rater="simulated:0", first="b", choice="first", repeat=True))
    result = check(table(*CLEAN), tmp_path, votes=Votes(rows=tuple(rows)))
    assert result.metrics["agreement"].value == 1.0  # the repeat, which contradicts, is not compared
    assert any("say nothing about people" in caveat for caveat in result.caveats)


def test_votes_that_are_all_ties_leave_noise_unknown(tmp_path):
    votes = cast(20, (0.1, 0.1), random.Random(5), ties=1.0)
    metrics = check(table(*CLEAN), tmp_path, votes=votes).metrics
    assert metrics["tie_share"].value == 1.0
    assert metrics["agreement"].value == 1.0
    for name in ("first_chosen", "label_noise", "accuracy_ceiling", "krippendorff_alpha"):
        assert metrics[name].value is None
        assert metrics[name].reason
        assert metrics[name].n > 0


# Real data


@pytest.mark.real
@pytest.mark.slow
def test_people_on_harmless_replies(real_data, tmp_path):
    """HH-RLHF: what the reader refuses, what 512 tokens cut off, two leaks across the usual split."""
    pairs = read_file(Preferences, real_data / "hh_rlhf" / "harmless_base.jsonl")
    train, held = (pairs.model_copy(update={"rows": part}) for part in (pairs.rows[:1200], pairs.rows[1200:]))
    model = OpenModel.from_folder(real_data / "stories260K")
    result = check(train, tmp_path, model=model, held_out=held)
    counts = Counter(one.kind for one in result.findings)
    assert counts == {"too long": 354, "same when cut": 192, "refused": 6, "leak": 2, "boundary merge": 1}
    assert result.metrics["longer_chosen"].high < 0.5
    assert result.metrics["label_noise"].value is None


@pytest.mark.real
def test_rankings_of_four_answers(real_data, tmp_path):
    """QA-feedback: one annotator's six preferences a question are the six pairs of four answers, so they say
    nothing about agreement; but no three of them ever run in a circle."""
    rows, circles = [], 0
    for at, one in enumerate(json.loads((real_data / "qa_feedback" / "dev_feedback.json").read_text())):
        wins = {}
        for (i, j), said in zip(combinations(range(4), 2), one["preference"], strict=True):
            wins[i, j] = {0: 0, 1: 1, 2: -1}[said]
            if said:
                better, worse = (i, j) if said == 1 else (j, i)
                sides = [one[f"prediction {k + 1}"] for k in (better, worse)]
                rows.append(pair(f"{at}/{i}{j}", one["question"], *sides))
        loops = [(wins[i, j], wins[j, k], -wins[i, k]) for i, j, k in combinations(range(4), 3)]
        circles += sum(abs(sum(loop)) == 3 for loop in loops)
    assert (len(rows), circles) == (2616, 0)
    result = check(table(*rows), tmp_path)
    assert result.metrics["longer_chosen"].clusters < 500
    assert result.metrics["longer_chosen"].value == pytest.approx(0.51, abs=0.01)
    assert result.metrics["label_noise"].value is None
