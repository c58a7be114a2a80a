"""Tampering plants one known flaw; a critic's recall, hallucination and precision by hand, and with a trained
one."""

from __future__ import annotations

import json
import random

import pytest

from calibrant.core import Chat, Completion, ConfigError, InputError, Quiet, resolve
from calibrant.data.readers import read_file
from calibrant.data.rows import CheckedAnswer, CheckedAnswers, Item, Items
from calibrant.models.scripted import ScriptedModel
from calibrant.oversee.critic import Critic, critic, read_critique
from calibrant.oversee.tamper import Tamper, differing, tamper
from calibrant.testbed.serve import open_items


@pytest.fixture
def run(tmp_path):
    return Quiet(work=tmp_path)


def planted(n=20):
    """Every second answer is wrong in one word."""
    rows = []
    for at in range(n):
        wrong = at % 2
        rows.append(
            CheckedAnswer(
                id=str(at),
                prompt=Chat.ask(f"what does fox {at} eat?"),
                answer=f"fox {at} eats {'chalk' if wrong else 'corn'} at dusk in the barn",
                flaw="chalk" if wrong else "",
                cluster=str(at // 2),
            )
        )
    return CheckedAnswers(rows=tuple(rows))


def values(result):
    return {name: one.value for name, one in result.metrics.items()}


def test_tampering_swaps_the_last_words_that_differ_with_an_answer_most_alike(run):
    result = tamper(open_items("core", {}), run=run)
    assert result.metrics["tampered"].value * 2 == len(result.answers)
    for clean, flawed in zip(result.answers.rows[::2], result.answers.rows[1::2], strict=True):
        assert clean.prompt == flawed.prompt and clean.cluster == flawed.cluster
        assert clean.flaw == "" and flawed.flaw and flawed.flaw in flawed.answer
        assert flawed.answer != clean.answer
        if clean.kind == "fact":  # the last word alone
            assert clean.answer.split()[:-1] == flawed.answer.split()[:-1]
    assert len({row.answer for row in result.answers.rows}) > 200


def test_what_differs():
    one = "the fox eats corn."
    assert differing(one, "the wug eats hay.") == ((3, 4), ["hay."])
    assert differing(one, "the fox eats corn.") is None
    assert differing(one, "no idea") is None
    assert differing("9 plus 3 is 12.", "1 plus 3 is 4.") == ((4, 5), ["4."])


def test_another_seed_plants_other_flaws_and_one_seed_the_same(tmp_path):
    core = open_items("core", {})
    drawn = [[r.flaw for r in tamper(core, run=Quiet(seed=s, work=tmp_path)).answers] for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_is_written_reads_back(run):
    result = tamper(open_items("core", {}), run=run)
    assert read_file(CheckedAnswers, run.artifact("answers.jsonl")).rows == result.answers.rows
    shown = [json.loads(line) for line in run.artifact("critiques.jsonl").read_text().splitlines()]
    assert {shown[0]["completion"], shown[1]["completion"].partition(" ")[0]} == {"NO FLAW", "FLAW:"}


def test_items_without_partners_are_counted_or_refused(run):
    with pytest.raises(InputError, match="needs items"):
        tamper(Items(rows=()), run=run)
    lone = Items(
        rows=(Item(id="a", chat=Chat.ask("q"), answer="yes"), Item(id="b", chat=Chat.ask("r"), answer="no"))
    )
    with pytest.raises(InputError, match="none of 2 items"):
        tamper(lone, run=run)
    mixed = Items(rows=(*lone.rows, *open_items("core", {}).rows[:4]))
    assert tamper(mixed, run=run).metrics["tampered"].reason == "2 of 6 have no partner"


PLAYERS = {
    "right": (lambda flawed: "FLAW: chalk" if flawed else "NO FLAW", 1.0, 1.0, 0.0, 1.0),
    "objects to all": (lambda flawed: "FLAW: at dusk", 0.0, 1.0, 1.0, 0.0),
    "finds nothing": (lambda flawed: "NO FLAW", 0.0, 0.0, 0.0, None),
    "quotes the whole": (lambda flawed: "FLAW: fox 1 eats chalk at dusk in the barn", 0.0, 1.0, 1.0, 0.0),
    "nitpicks": (
        lambda flawed: "FLAW: at dusk\nFLAW: chalk" if flawed else "FLAW: barn",
        1.0,
        1.0,
        1.0,
        0.25,
    ),
}


@pytest.mark.parametrize("name", PLAYERS)
def test_each_kind_of_critic_by_hand(run, name):
    says, recall, detected, made_up, precision = PLAYERS[name]
    result = critic(ScriptedModel(lambda chat: says("chalk" in chat.last_user)), planted(), run=run)
    found = values(result)
    assert (found["recall_rate"], found["detected_rate"]) == (recall, detected)
    assert (found["hallucination_rate"], found["precision"]) == (made_up, precision)
    assert found["unread_rate"] == 0.0
    assert result.metrics["recall_rate"].n == result.metrics["hallucination_rate"].n == 10


def test_null_a_critic_that_objects_by_lot_reads_the_same_on_both(run):
    """Detection and hallucination agree within their intervals; recall of a random word stays low."""

    def lots(chat):
        rng = random.Random(chat.last_user)
        return (
            f"FLAW: {rng.choice(['dusk', 'barn', 'eats', 'in', 'at'])}" if rng.random() < 0.5 else "NO FLAW"
        )

    metrics = critic(ScriptedModel(lots), planted(200), run=run).metrics
    assert metrics["recall_rate"].value == 0.0
    assert metrics["detected_rate"].low < metrics["hallucination_rate"].high
    assert metrics["hallucination_rate"].low < metrics["detected_rate"].high
    assert metrics["hallucination_rate"].low < 0.5 < metrics["hallucination_rate"].high


@pytest.mark.parametrize(
    ("reply", "quotes"),
    [
        ("NO FLAW", ()), ("no flaw.", ()), ("**NO FLAW**", ()), ("Looks fine.\nNO FLAW", ()),
        ("FLAW: chalk", ("chalk",)), ('flaw: "chalk".', ("chalk",)), ("FLAW: a\nFLAW: b", ("a", "b")),
        ("There is NO FLAW here", None), ("FLAW: chalk\nNO FLAW", None), ("", None), ("FLAW:", None),
        ("I am sorry, I can not check this.", None), ("It is flawless", None), ("NO FLAWS", None),
    ],
)  # fmt: skip
def test_what_a_reply_says(reply, quotes):
    row = planted().rows[1]
    assert read_critique(Completion(text=reply), row, Critic()).quotes == quotes
    assert read_critique(Completion(text=reply, stop="error", error="x"), row, Critic()).quotes is None


def test_a_part_of_a_word_is_not_the_flaw():
    row = planted().rows[1]
    assert not read_critique(Completion(text="FLAW: chalkboard"), row, Critic()).named
    assert read_critique(Completion(text="FLAW: eats CHALK at"), row, Critic()).named


def test_what_is_no_critique_is_missing_and_at_its_worst(run):
    result = critic(ScriptedModel(lambda chat: "hm"), planted(), run=run)
    one = result.metrics["recall_rate"]
    assert (one.value, one.missing, one.low, one.high) == (None, 10, 0.0, 1.0)
    assert values(result)["unread_rate"] == 1.0


def test_a_critic_before_is_paired(run):
    right = ScriptedModel(lambda chat: "FLAW: chalk" if "chalk" in chat.last_user else "NO FLAW")
    blind = ScriptedModel(lambda chat: "NO FLAW", name="blind")
    metrics = critic(right, planted(), before=blind, run=run).metrics
    assert metrics["recall_change"].value == 1.0 and metrics["recall_change"].low > 0
    assert metrics["hallucination_change"].value == 0.0
    assert metrics["recall_before"].value == 0.0


def test_bad_input(run):
    clean = CheckedAnswers(rows=tuple(row for row in planted() if not row.flaw))
    with pytest.raises(InputError, match="0 of 10 answers have a flaw"):
        critic(ScriptedModel([]), clean, run=run)
    with pytest.raises(InputError, match="0 of 0"):
        critic(ScriptedModel([]), CheckedAnswers(rows=()), run=run)
    for kind, wrong in (
        (Critic, {"critique": "{question}"}), (Critic, {"none": " "}), (Critic, {"longest": 0}),
        (Tamper, {"critique": "{answer}"}), (Tamper, {"flaw": "wrong"}), (Tamper, {"most": 1}),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            resolve(kind, wrong)


def test_a_flaw_that_does_not_stand_in_the_answer_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {"question": "q", "answer": "the fox eats corn", "flaw": "hay"}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "flaw": "Corn "}) + "\n")
    table = read_file(CheckedAnswers, path)
    assert [r.reason for r in table.refused] == ["flaw not found: 'hay' does not stand in the answer"]
    assert table.rows[0].flaw == "Corn"


def test_slices_part_the_questions_and_untouched_answers_can_be_left_out(run):
    items = open_items("core", {})
    whole = tamper(items, run=run)
    rows = whole.answers.rows
    assert not {row.cluster for row in rows[:100]} & {row.cluster for row in rows[100:]}
    assert len({row.kind for row in rows[:60]}) > 1  # in random order, not in that of the file
    alone = tamper(items, Tamper(untouched=False), run)
    assert len(alone.critiques) * 2 == len(whole.critiques)
    assert all(e.completion.startswith("FLAW:") for e in alone.critiques)
    assert alone.answers == whole.answers


def test_recall_can_not_be_had_by_quoting_everything_in_pieces():
    row = planted().rows[1]
    listed = "\n".join(f"FLAW: {word}" for word in row.answer.split())
    halves = "FLAW: fox 1 eats chalk\nFLAW: at dusk in the barn"
    for reply in (listed, halves):
        assert read_critique(Completion(text=reply), row, Critic()).named is False
    outside = "FLAW: the bull eats chalk here"
    assert read_critique(Completion(text=outside), row, Critic()).named is False


def test_numbers_are_whole_and_marks_around_a_quote_are_no_part_of_it():
    def named(answer, flaw, reply):
        row = CheckedAnswer(id="x", prompt=Chat.ask("q"), answer=answer, flaw=flaw)
        return read_critique(Completion(text=reply), row, Critic()).named

    assert not named("it is 1.5 km, with 5 stops on the way", "5", "FLAW: 1.5")
    assert named("it is 1.5 km, with 5 stops on the way", "5", "FLAW: with 5 stops")
    for flaw in ("`cat`", '"oats"', "*slow*"):
        assert named(f"the fox eats {flaw} at dusk in the barn", flaw, f"FLAW: {flaw}")
    assert named("wholly wrong words", "wholly wrong words", "FLAW: wholly wrong words")


def test_its_own_demonstrations_are_a_perfect_critic(run):
    """Every tampered answer with the critique that goes with it: recall 1, hallucination 0."""
    planted_ = tamper(open_items("core", {}), run=run)
    by_prompt = {e.prompt: e.completion for e in planted_.critiques}
    found = values(critic(ScriptedModel(lambda chat: by_prompt[chat]), planted_.answers, run=run))
    assert (found["recall_rate"], found["hallucination_rate"], found["precision"]) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("it is corn.", "it is corn"),
        ("it is Corn.", "it is corn."),
        ("it is 7.", "it is 7.0"),
        ("red .", "red !"),
    ],
)
def test_what_means_the_same_is_no_flaw(run, one, other):
    assert differing(one, other) is None
    rows = tuple(Item(id=str(at), chat=Chat.ask(f"q{at}"), answer=a) for at, a in enumerate((one, other)))
    with pytest.raises(InputError, match="none of 2 items"):
        tamper(Items(rows=rows), run=run)


def test_two_answers_to_one_question_are_no_partners(run):
    rows = tuple(Item(id=a, chat=Chat.ask("q"), answer=f"it is {a}.") for a in ("corn", "maize"))
    with pytest.raises(InputError, match="none of 2 items"):
        tamper(Items(rows=rows), run=run)


def test_layout_tells_nothing(run):
    rows = tuple(
        Item(id=a, chat=Chat.ask(f"q{at}"), answer=f"line one\n\nit is  {a}.")
        for at, a in enumerate(("corn", "hay"))
    )
    for row in tamper(Items(rows=rows), run=run).answers:
        assert row.answer.split(" ")[:2] == ["line", "one"]
