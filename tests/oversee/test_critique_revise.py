"""Critique and revise with scripted models: one that mends its harm, and ones that do not."""

from __future__ import annotations

import json

import pytest

from calibrant.core import Chat, Completion, ConfigError, Goal, Identity, InputError, Quiet, Verdict, resolve
from calibrant.data.constitution import Constitution, Principle
from calibrant.data.rows import Goals
from calibrant.models.scripted import ScriptedModel
from calibrant.oversee.critique_revise import CritiqueRevise, critique_revise

THINGS = [f"zorble{i}" for i in range(12)]


class Harm:
    """Harm happened where 'stir' stands in the reply; '???' and errors cannot be read."""

    calibration = "exact"
    identity = Identity(name="harm", kind="judge")

    def judge(self, goals, chats, completions):
        def one(c):
            return "unknown" if "???" in c.text or c.stop == "error" else "yes" if "stir" in c.text else "no"

        return [Verdict(question="harm?", answer=one(c)) for c in completions]


@pytest.fixture
def run(tmp_path):
    return Quiet(work=tmp_path)


def goals(things=THINGS, **rest):
    return Goals(rows=tuple(Goal(id=thing, text=f"brew {thing}", **rest) for thing in things))


def model(*, first, revised, prefers):
    """Scripted by stage: each argument is a reply, or a function of what was asked."""

    def answer(chat):
        asked = chat.last_user
        if asked.startswith("Critique"):
            return "it does harm"
        if asked.startswith("Rewrite"):
            return revised(asked) if callable(revised) else revised
        if asked.startswith("Which"):
            return prefers(asked) if callable(prefers) else prefers
        return first(asked) if callable(first) else first

    return ScriptedModel(answer)


def likes(text):
    """Says which side holds ``text``, wherever it stands."""
    return lambda asked: "second" if text in asked.partition("\n\nSecond: ")[2] else "first"


def values(result):
    return {name: estimate.value for name, estimate in result.metrics.items()}


def test_planted_a_model_that_mends_its_harm(run):
    talker = model(first="stir it twice", revised="i will not", prefers=likes("i will not"))
    result = critique_revise(talker, goals(), Harm(), run=run)
    assert values(result) == {
        "harm_before": 1.0,
        "harm_after": 0.0,
        "harm_change": -1.0,
        "revised_share": 1.0,
        "pairs_kept": 1.0,
    }
    assert result.metrics["harm_change"].high < 0
    assert [(p.id, p.chosen, p.rejected) for p in result.pairs] == [
        (thing, "i will not", "stir it twice") for thing in THINGS
    ]
    assert result.pairs.rows[0].prompt == Chat.ask("brew zorble0")
    stored = [json.loads(line) for line in run.artifact("pairs.jsonl").read_text().splitlines()]
    assert stored == [pair.model_dump(mode="json") for pair in result.pairs]


@pytest.mark.parametrize("prefers", ["first", "second", "both are fine", likes("stir")])
def test_null_a_model_that_never_changes_its_answer(run, prefers):
    """Half of the answers are harmful, before and after: no change, no pair, whatever it says it likes."""

    def same(asked):
        return "stir it" if int("".join(filter(str.isdigit, asked))[:2]) % 2 else "no"

    talker = model(first=same, revised=same, prefers=prefers)
    result = critique_revise(talker, goals([f"thing{i}" for i in range(10, 40)]), Harm(), run=run)
    change = result.metrics["harm_change"]
    assert change.value == 0.0
    assert change.low < 0 < change.high
    assert result.metrics["harm_before"].value == result.metrics["harm_after"].value == 0.5
    assert len(result.pairs) == 0
    assert values(result)["pairs_kept"] == values(result)["revised_share"] == 0.0
    assert run.artifact("pairs.jsonl").read_text() == ""


@pytest.mark.parametrize("side", ["first", "second", "The FIRST one", "neither", "first or second", ""])
def test_an_answer_that_follows_the_place_makes_no_pair(run, side):
    """Such a model contradicts itself once the order is turned: unknown, not no."""
    result = critique_revise(
        model(first="stir", revised="i will not", prefers=side), goals(), Harm(), run=run
    )
    kept = result.metrics["pairs_kept"]
    assert (kept.value, kept.missing, kept.low, kept.high) == (None, 12, 0.0, 1.0)
    assert len(result.pairs) == 0
    assert values(result)["revised_share"] == 1.0


def test_a_revision_that_is_liked_less_makes_no_pair(run):
    """In both orders the first answer wins: a clear no, and never a pair the other way round."""
    talker = model(first="fine", revised="stir", prefers=likes("fine"))
    result = critique_revise(talker, goals(), Harm(), run=run)
    assert values(result)["pairs_kept"] == 0.0
    assert result.metrics["pairs_kept"].missing == 0
    assert values(result)["harm_change"] == 1.0
    assert len(result.pairs) == 0


def test_what_is_asked_in_order(run):
    """Five questions a goal; the comparison is put both ways round."""
    talker = model(first="A", revised="B", prefers="first")
    critique_revise(talker, goals(["x"]), Harm(), run=run)
    first, critique, revise, one, two = (chat.last_user for chat in talker.seen)
    assert first == "brew x"
    assert critique.endswith("Question: brew x\n\nAnswer: A")
    assert revise.endswith("Question: brew x\n\nAnswer: A\n\nCritique: it does harm")
    assert one.endswith("First: A\n\nSecond: B")
    assert two.endswith("First: B\n\nSecond: A")


@pytest.mark.parametrize(
    "text",
    ["{question}", "{critique} {answer}", "{", "}{", "{0}", "{first!r}", "{{second}}", "\x00", "\\1 \\g<0>"],
)
def test_hostile_braces_are_text(run, text):
    """What a model or a goal says is never filled in or read as a field."""
    talker = model(first=text, revised=text + " B", prefers="second")
    table = Goals(rows=(Goal(id="g", text=f"brew {text}"),))
    critique_revise(talker, table, Harm(), run=run)
    _, critique, revise, one, _ = (chat.last_user for chat in talker.seen)
    assert critique.endswith(f"Question: brew {text}\n\nAnswer: {text}")
    assert revise.endswith(f"Question: brew {text}\n\nAnswer: {text}\n\nCritique: it does harm")
    assert one.endswith(f"Question: brew {text}\n\nFirst: {text}\n\nSecond: {text} B")


def test_a_lone_surrogate_is_stored(run):
    """An API may send one; no UTF-8 file can hold it, and that must not end the run."""
    talker = model(first="stir \ud800", revised="no", prefers=likes("no"))
    critique_revise(talker, goals(["x"]), Harm(), run=run)
    (line,) = run.artifact("pairs.jsonl").read_text().splitlines()
    assert json.loads(line)["rejected"] == "stir ?"


FAILED = Completion(text="", stop="error", error="no line")


@pytest.mark.parametrize(
    ("stages", "unread"),
    [({"first": FAILED}, ("harm_before",)), ({"revised": FAILED}, ("harm_after",)),
     ({"first": FAILED, "revised": FAILED}, ("harm_before", "harm_after"))],
)  # fmt: skip
def test_failures_are_unknown_throughout(run, stages, unread):
    """A reply that never came is neither harmless, nor revised, nor preferred."""
    said = {"first": "stir", "revised": "no", **stages}
    result = critique_revise(model(**said, prefers=likes("no")), goals(), Harm(), run=run)
    for name in (*unread, "harm_change", "revised_share", "pairs_kept"):
        assert result.metrics[name].value is None
        assert result.metrics[name].missing == 12
    assert len(result.pairs) == 0


def test_an_error_in_the_comparison_is_no_preference(run):
    failed = Completion(text="second", stop="error", error="no line")
    result = critique_revise(model(first="stir", revised="no", prefers=failed), goals(), Harm(), run=run)
    assert result.metrics["pairs_kept"].missing == 12


def test_an_unknown_judge_widens_the_change(run):
    """One of twelve revisions cannot be read: at worst it is still harmful."""
    talker = model(
        first="stir", revised=lambda asked: "???" if "zorble0\n" in asked else "no", prefers="second"
    )
    result = critique_revise(talker, goals(), Harm(), run=run)
    change, sure = result.metrics["harm_change"], result.metrics["harm_before"]
    assert (change.missing, sure.missing) == (1, 0)
    assert change.value == -1.0
    clean = critique_revise(
        model(first="stir", revised="no", prefers="second"), goals(), Harm(), run=run
    ).metrics["harm_change"]
    assert change.high > clean.high


def test_goals_of_one_cluster_count_as_one(run):
    talker = model(first="stir", revised="no", prefers="second")
    alone = critique_revise(talker, goals(), Harm(), run=run).metrics["harm_after"]
    together = critique_revise(talker, goals(cluster="pots"), Harm(), run=run).metrics["harm_after"]
    assert alone.clusters is None
    assert together.clusters == 1
    assert together.high > alone.high


def test_the_run_seed_reaches_every_draw(run):
    seeds = []

    class Note(ScriptedModel):
        def generate(self, chats, sampling=None):
            seeds.append(sampling.seed)
            return super().generate(chats)

    talker = Note(lambda chat: "first")
    critique_revise(talker, goals(["x"]), Harm(), run=Quiet(seed=9, work=run.work))
    assert seeds == [9] * 5


def test_queries_are_charged_before_they_are_asked(run):
    talker = model(first="A", revised="B", prefers="first")

    class Poor(Quiet):
        left = 30

        def spend(self, *, tokens=0, queries=0, flops=0.0):
            self.left -= queries
            if self.left < 0:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        critique_revise(talker, goals(), Harm(), run=Poor(work=run.work))
    assert len(talker.seen) == 24


def test_no_goals():
    with pytest.raises(InputError, match="at least one goal"):
        critique_revise(ScriptedModel([]), Goals(rows=()), Harm())


@pytest.mark.parametrize(
    ("name", "template", "lacks"),
    [
        ("critique", "Look at {answer}", "question"),
        ("critique", "Look at {question}", "answer"),
        ("revise", "{question} {critique}", "answer"),
        ("compare", "{question}: {first}?", "second"),
        ("compare", "{question}: {second}?", "first"),
    ],
)
def test_a_template_must_show_what_it_asks_about(name, template, lacks):
    with pytest.raises(ConfigError, match=rf"does not contain \{{{lacks}\}}"):
        resolve(CritiqueRevise, {name: template})
    resolve(CritiqueRevise, {name: template + "{" + lacks + "}"})


TWO = Constitution(
    name="two",
    principles=(
        Principle(id="calm", text="is it calm?", scope=("pots",)),
        Principle(id="kind", text="is it kind?"),
        Principle(id="true", text="is it true?"),
    ),
)


class Refuses(Harm):
    def judge(self, goals, chats, completions):
        return [Verdict(question="refuses?", answer="yes" if "not" in c.text else "no") for c in completions]


def test_principles_are_drawn_by_seed_goal_and_round_and_noted(run):
    talker = model(first="stir", revised="i will not", prefers=likes("i will not"))
    result = critique_revise(talker, goals(), Harm(), TWO, config=CritiqueRevise(rounds=2), run=run)
    asked = [chat.last_user for chat in talker.seen if chat.last_user.startswith("Critique")]
    shown = ["calm" if "calm" in a else "kind" if "kind" in a else "true" for a in asked]
    assert set(shown) == {"kind", "true"}  # 'calm' speaks to pots alone
    assert shown[:12] != shown[12:]
    assert [pair.principle for pair in result.pairs] == shown[12:]
    again = critique_revise(talker, goals(), Harm(), TWO, config=CritiqueRevise(rounds=2), run=run)
    assert [p.principle for p in again.pairs] == [p.principle for p in result.pairs]
    other = Quiet(seed=7, work=run.work)
    drawn = critique_revise(talker, goals(), Harm(), TWO, config=CritiqueRevise(rounds=2), run=other)
    assert [p.principle for p in drawn.pairs] != [p.principle for p in result.pairs]
    of_pots = critique_revise(talker, goals(category="pots"), Harm(), TWO, run=run)
    assert {pair.category for pair in of_pots.pairs} == {"pots"}


def test_goals_to_which_no_principle_speaks_are_counted(run):
    scoped = TWO.without("kind").without("true")
    talker = model(first="stir", revised="no", prefers=likes("no"))
    result = critique_revise(talker, goals(), Harm(), scoped, run=run)
    assert "no principle speaks to 12 of 12 goals" in result.caveats
    assert {pair.principle for pair in result.pairs} == {""}


def test_planted_a_second_round_mends_what_the_first_left(run):
    """'stir stir' loses a word a round: harm is 1, 1, 0, and evasiveness beside it 0, 0, 1."""

    def revised(asked):
        answer = asked.partition("Answer: ")[2].partition("\n\n")[0]
        return {"stir stir": "stir", "stir": "i will not"}.get(answer, answer)

    talker = model(first="stir stir", revised=revised, prefers="second")
    result = critique_revise(
        talker, goals(), Harm(), evasive=Refuses(), config=CritiqueRevise(rounds=3), run=run
    )
    found = values(result)
    assert [found[f"harm/round_{k}"] for k in range(4)] == [1.0, 1.0, 0.0, 0.0]
    assert [found[f"evasive/round_{k}"] for k in range(4)] == [0.0, 0.0, 1.0, 1.0]
    assert [found[f"harm_change/round_{k}"] for k in (1, 2, 3)] == [0.0, -1.0, -1.0]
    assert found["harm_change"] == -1.0


def test_help_is_asked_of_the_goals_that_are_not_harmful(run):
    table = Goals(rows=(*goals().rows, *goals([f"b{i}" for i in range(6)], harmful=False).rows))
    talker = model(first="stir", revised="stir", prefers="first")
    result = critique_revise(talker, table, Harm(), helpful=Harm(), run=run)
    assert (result.metrics["helpful/round_1"].n, result.metrics["harm_after"].n) == (6, 18)
    without = critique_revise(talker, goals(), Harm(), helpful=Harm(), run=run)
    assert without.metrics["helpful/round_0"].value is None
    assert "benign" in without.metrics["helpful/round_0"].reason


def test_demonstrations_are_what_is_preferred_and_what_was_left(run):
    """Six answers are mended, six are left: all are shown, unless only revisions are wanted."""

    def first(asked):
        return "stir" if int("".join(filter(str.isdigit, asked))) < 6 else "fine"

    def revised(asked):
        return "i will not" if "Answer: stir" in asked else "fine"

    talker = model(first=first, revised=revised, prefers=likes("i will not"))
    result = critique_revise(talker, goals(), Harm(), run=run)
    assert [e.completion for e in result.revisions] == ["i will not"] * 6 + ["fine"] * 6
    stored = [json.loads(line) for line in run.artifact("revisions.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in stored] == [e.completion for e in result.revisions]
    alone = critique_revise(talker, goals(), Harm(), config=CritiqueRevise(unchanged=False), run=run)
    assert [e.completion for e in alone.revisions] == ["i will not"] * 6
    worse = model(first=first, revised=revised, prefers=likes("stir"))
    disliked = critique_revise(worse, goals(), Harm(), config=CritiqueRevise(unchanged=False), run=run)
    assert len(disliked.revisions) == 0


def test_a_constitution_that_the_critique_does_not_show_is_refused(run):
    config = CritiqueRevise(critique="mend {question} {answer}")
    with pytest.raises(ConfigError, match=r"does not contain \{principle\}"):
        critique_revise(ScriptedModel([]), goals(), Harm(), TWO, config=config, run=run)


def test_a_round_that_failed_is_not_mended_by_the_next(run):
    """Round 1's revision never came: round 2 revises nothing, and the goal stays unknown."""
    asked = []

    def revised(text):
        asked.append(text)
        return FAILED if len(asked) <= 12 else "i will not"

    talker = model(first="stir", revised=revised, prefers="second")
    result = critique_revise(talker, goals(), Harm(), config=CritiqueRevise(rounds=2), run=run)
    assert len(result.pairs) == len(result.revisions) == 0
    for name in ("harm_after", "revised_share", "pairs_kept"):
        assert result.metrics[name].missing == 12


def test_a_critique_that_never_came_leaves_harm_unknown(run):
    """All first answers are harmful, all critiques are empty: nothing was mended."""

    def answer(chat):
        asked = chat.last_user
        if asked.startswith("Critique"):
            return Completion(text="")
        return "i will not" if asked.startswith(("Rewrite", "Which")) else "stir"

    result = critique_revise(ScriptedModel(answer), goals(), Harm(), run=run)
    assert values(result)["harm_before"] == 1.0
    assert result.metrics["harm_after"].missing == result.metrics["harm_change"].missing == 12


def test_a_negated_verdict_is_none(run):
    def turned(asked):
        return (
            "The first is not better."
            if "no" in asked.partition("Second: ")[2]
            else "The second is not better."
        )

    result = critique_revise(model(first="stir", revised="no", prefers=turned), goals(), Harm(), run=run)
    assert result.metrics["pairs_kept"].missing == 12
    assert len(result.pairs) == 0
