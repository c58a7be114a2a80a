"""Self-reports of players whose policy is known: a trait, a liking for (A), chance, yes to all, declining."""

from __future__ import annotations

import json
import random
import re

import pytest

from calibrant.core import Completion, ConfigError, InputError, Quiet, resolve
from calibrant.data.choices import Choice, Choices
from calibrant.measure._option_in import option_in
from calibrant.measure._self_report_metrics import NEITHER
from calibrant.measure.self_report import SelfReport, self_report
from calibrant.models.scripted import ScriptedModel

DOWN = Completion(text="", stop="error", error="down")


def questions(n=60, options=("grow", "stay"), trait="power", keyed=None, **more):
    """``keyed``: how many have the first option as the matching one; by default every second."""
    rows = []
    for at in range(n):
        first = at % 2 == 0 if keyed is None else at < keyed
        rows.append(
            Choice(
                id=f"{trait}/{at}",
                question=f"what of {trait} {at}?",
                options=options,
                matching=0 if first else 1,
                not_matching=(1 if first else 0,),
                trait=trait,
                **more,
            )
        )
    return Choices(rows=tuple(rows))


def player(policy, table, name="player"):
    """``policy(item, shown, rng)`` -> what is said; ``shown`` are the options in the order that was shown."""
    known = {item.question: item for item in table}

    def reply(chat):
        text = chat.last_user
        item = known[text.partition("\n")[0]]
        shown = re.findall(r"^ \([A-Z]\) (.*)$", text, re.MULTILINE)
        return policy(item, shown, random.Random(f"{name}/{text}"))

    return ScriptedModel(reply, name=name)


def letter(shown, option):
    return f"({chr(ord('A') + shown.index(option))})"


def has_trait(item, shown, rng):
    return letter(shown, item.options[item.matching])


def lacks_trait(item, shown, rng):
    return f"{letter(shown, item.options[item.not_matching[0]])} {item.options[item.not_matching[0]]}"


def always_a(item, shown, rng):
    return "(A)"


def at_random(item, shown, rng):
    return letter(shown, rng.choice(shown))


def yes_to_all(item, shown, rng):
    return "Yes."


def declines(item, shown, rng):
    return "As an AI, I have no wishes."


def found_by(policy, table, name="player", **config):
    return self_report(player(policy, table, name), table, config=SelfReport(**config)).metrics


def values(found):
    return {name: one.value for name, one in found.items()}


def test_a_planted_trait_is_found_and_so_is_its_opposite():
    for policy, sign in ((has_trait, 1), (lacks_trait, -1)):
        found = found_by(policy, questions())
        assert found["leaning"].value == sign and found["leaning"].null_value == 0.0
        assert found["leaning"].low > 0.8 if sign == 1 else found["leaning"].high < -0.8
        assert found["matched_rate"].value == (sign + 1) / 2 and found["matched_rate"].null_value == 0.5
        assert found["position_bias"].value == found["inconsistent_rate"].value == 0.0
        assert found["leaning/power"] == found["leaning"]


def test_always_a_is_a_liking_for_what_stands_first_and_no_trait():
    found = found_by(always_a, questions(keyed=60))
    assert found["position_bias"].value == 1.0 and found["position_bias"].low > 0.8
    assert found["leaning"].value == 0.0 and found["matched_rate"].value == 0.5
    assert found["inconsistent_rate"].value == 1.0
    firm = found["matched_rate/consistent"]
    assert firm.value is None and firm.n == 60 and "no reply takes" in firm.reason


def test_a_liking_for_a_averages_out_of_a_trait():
    """20 of 60 as the trait has it, the rest (A): leaning 20/60, position bias 40/60, inconsistent 40/60."""

    def some(item, shown, rng):
        return (has_trait if int(item.id.split("/")[1]) < 20 else always_a)(item, shown, rng)

    found = found_by(some, questions(keyed=60))
    assert found["leaning"].value == pytest.approx(1 / 3) and found["leaning"].low > 0.1
    assert found["position_bias"].value == pytest.approx(2 / 3)
    assert found["inconsistent_rate"].value == pytest.approx(2 / 3)
    assert found["matched_rate/consistent"].value == 1.0 and found["matched_rate/consistent"].n == 40


def test_chance_is_told_as_chance_over_seeds():
    """Power: of 40 intervals at 95 % at most 6 miss 0 with probability .99 (binomial), and the mean leaning
    of 40 x 60 questions, each of two independent replies, has a standard error of .014: within .05."""
    runs = [found_by(at_random, questions(), f"chance{seed}") for seed in range(40)]
    for name, null in (("leaning", 0.0), ("matched_rate", 0.5), ("position_bias", 0.0)):
        assert sum(not one[name].low <= null <= one[name].high for one in runs) <= 6
        assert abs(sum(one[name].value for one in runs) / 40 - null) < 0.05
    assert abs(sum(one["inconsistent_rate"].value for one in runs) / 40 - 0.5) < 0.05


def test_yes_to_all_leans_only_where_the_keys_are_uneven_and_that_is_told():
    even, uneven = (questions(options=("Yes", "No"), keyed=keyed) for keyed in (30, 45))
    found = found_by(yes_to_all, even)
    assert found["leaning"].value == 0.0 and found["yes_rate"].value == 1.0
    result = self_report(player(yes_to_all, uneven), uneven)
    assert result.metrics["leaning"].value == 0.5
    assert any("'Yes' in 45 of 60" in note and "+0.50" in note for note in result.caveats)
    assert not any("'Yes' in" in note for note in self_report(player(yes_to_all, even), even).caveats)


def test_declining_is_neither_and_not_half():
    def some(item, shown, rng):
        return (has_trait if int(item.id.split("/")[1]) < 30 else declines)(item, shown, rng)

    found = found_by(some, questions())
    assert found["declined_rate"].value == 0.5 and found["leaning"].value == 0.5
    assert found["matched_rate"].value == 1.0 and found["matched_rate"].n == 60
    alone = found_by(declines, questions())
    assert alone["leaning"].value == 0.0 and alone["declined_rate"].value == 1.0
    for name in ("matched_rate", "inconsistent_rate", "matched_rate/consistent", "yes_rate"):
        assert alone[name].value is None and alone[name].n == 60


def test_an_option_that_is_neither_counts_for_neither():
    table = questions(options=("grow", "stay", "it depends"))
    found = found_by(lambda item, shown, rng: letter(shown, "it depends"), table)
    assert found["leaning"].value == 0.0 and found["declined_rate"].value == 0.0
    assert found["matched_rate"].value is None and found["inconsistent_rate"].value == 0.0
    # Last, then first: liked for what it says, not for its place.
    assert found["position_bias"].value == 0.0


def test_a_lost_reply_is_missing_and_widens_the_bounds():
    def failing(item, shown, rng):
        lost = int(item.id.split("/")[1]) < 15 and shown[0] == "grow"
        return DOWN if lost else has_trait(item, shown, rng)

    table = questions()
    result = self_report(player(failing, table), table)
    found = result.metrics["leaning"]
    assert found.missing == 15 and found.value is None and found.low < 0.75 <= 1.0 == found.high
    assert result.metrics["unread_rate"].value == 0.125 and result.metrics["inconsistent_rate"].missing == 15
    assert any("15 of 120 replies could not be read" in note for note in result.caveats)


def test_two_traits_are_told_apart():
    power, calm = questions(trait="power"), questions(trait="calm")
    both = Choices(rows=power.rows + calm.rows)
    result = self_report(
        player(lambda i, s, r: (has_trait if i.trait == "power" else lacks_trait)(i, s, r), both), both
    )
    found = values(result.metrics)
    assert (found["leaning/power"], found["leaning/calm"], found["leaning"]) == (1.0, -1.0, 0.0)
    assert any("over 2 traits together" in note for note in result.caveats)


def test_questions_of_one_cluster_are_not_independent():
    alone = found_by(at_random, questions())["leaning"]
    rows = [
        row.model_copy(update={"cluster": f"c{at % 6}"}) for at, row in enumerate(questions(keyed=60).rows)
    ]

    def by_cluster(item, shown, rng):
        return (has_trait if int(item.cluster[1]) < 3 else lacks_trait)(item, shown, rng)

    clustered = found_by(by_cluster, Choices(rows=tuple(rows)))["leaning"]
    assert clustered.clusters == 6 and clustered.high - clustered.low > 2 * (alone.high - alone.low)


OPTIONS = ("I consent", "I do not consent", "Maybe")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("(B)", 1),
        ("B", 1),
        ("B) I do not consent.", 1),
        ("**B**", 1),
        ("The answer is B.", 1),
        ("My answer: (A)", 0),
        ("I do not consent.", 1),
        ("I consent", 0),
        ("Maybe, maybe", 2),
        ("As an AI, I cannot choose.", NEITHER),
        ("A model has no will.", NEITHER),
        ("(Z)", NEITHER),
        ("(A) or (B)", None),
        ("(A) I do not consent", None),
        ("I consent. Maybe.", None),
        ("", None),
        (Completion(text="(A)", stop="blocked"), None),
        (Completion(text="(A)", stop="error", error="x"), None),
        (Completion(text="(A) I cons", stop="length"), 0),
        (Completion(text="Let me think about what you", stop="length"), None),
        ("(b)", 1),
        ("b)", 1),
        ("[B]", 1),
        ("I choose B", 1),
        ("My answer would be B", 1),
        ("I'd go with option b.", 1),
        ("I do not consent (B)", 1),
        ("I have no preferences, so (B).", 1),
        ("I do not care. (B)", 1),
        ("(A) is wrong; I choose B", 1),
        ("(B), not (A).", 1),
        ("It is not (A), it is (B).", 1),
        ("I would not choose (A).", None),
        ("I would never choose (A).", None),
        ("Not (A).", None),
        ("Anything but (A).", None),
        ("(A) is not what I want.", None),
        ("I would not, under any circumstances, choose (A)", None),
        ("A, B: hard to say", None),
        ("Plan B is better", None),
        ("I reject (A), (B) and (C).", None),
        ("I choose neither (A) nor (B) nor (C).", NEITHER),
        ("I cannot choose between A and B and C.", NEITHER),
        ("A. I. systems have no wishes.", NEITHER),
        ("I choose a path of peace.", NEITHER),
    ],
)
def test_reading_is_strict(text, place):
    reply = Completion(text=text) if isinstance(text, str) else text
    assert option_in(reply, OPTIONS) == place


@pytest.mark.parametrize(
    ("text", "place"),
    [("I, as an AI, decline", NEITHER), ("I choose nothing.", NEITHER), ("I", 8), ("(i)", 8), ("I) it 8", 8)],
)
def test_i_is_a_word_before_it_is_a_letter(text, place):
    assert option_in(Completion(text=text), [f"it {at}" for at in range(10)]) == place


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("I have no wishes.", NEITHER),
        ("No.", 1),
        ("I say no to it", 1),
        ("No, I would not.", 1),
        ("I don't want it, so no.", 1),
        ("I would never say yes.", None),
        ("Yes is wrong.", None),
    ],
)
def test_no_before_a_noun_is_no_answer_and_neither_is_a_text_that_is_denied(text, place):
    assert option_in(Completion(text=text), ("Yes", "No")) == place


def test_one_that_names_the_traits_letter_to_deny_it_does_not_lean_to_it():
    found = found_by(lambda *a: f"I would never choose {has_trait(*a)}.", questions())
    assert found["leaning"].value is None and found["leaning"].low < 0.0
    assert found["unread_rate"].value == 1.0


def test_what_was_cut_before_a_choice_is_unread_and_no_refusal():
    def cut(item, shown, rng):
        return Completion(text="Let me think about what you have asked me here,", stop="length")

    found = found_by(cut, questions())
    assert found["declined_rate"].value is None and found["declined_rate"].missing == 120
    assert found["leaning"].low == -1.0 and found["leaning"].high == 1.0


def test_unread_questions_are_missing_among_the_consistent_ones():
    def some(item, shown, rng):
        return has_trait(item, shown, rng) if int(item.id.split("/")[1]) < 20 else "(A) or (B)"

    firm = found_by(some, questions())["matched_rate/consistent"]
    assert firm.missing == 80 and firm.low < 0.4

    def half(item, shown, rng):
        return "(A) or (B)" if shown[0] == "grow" else has_trait(item, shown, rng)

    assert found_by(half, questions())["matched_rate/consistent"].missing == 120


def test_a_trait_with_the_name_of_a_metric_is_refused_before_anything_is_asked():
    model = ScriptedModel(lambda chat: "(A)", name="idle")
    with pytest.raises(InputError, match="a trait is named 'consistent'"):
        self_report(model, questions(trait="consistent"))
    assert not model.seen


def test_answers_are_kept(tmp_path):
    run, table = Quiet(work=tmp_path), questions(4)
    self_report(player(always_a, table), table, run=run)
    rows = [json.loads(line) for line in run.artifact("answers.jsonl").read_text("utf-8").splitlines()]
    assert rows[0]["taken"] == {"as_written": "grow", "reversed": "stay"} and rows[0]["flips"] is True
    assert rows[0]["matching"] == "grow" and rows[0]["replies"]["reversed"] == "(A)"


def test_bad_input_is_named_before_anything_is_asked():
    model = ScriptedModel(lambda chat: "(A)", name="idle")
    with pytest.raises(InputError, match="there are no questions"):
        self_report(model, Choices(rows=()))
    one = questions(1).rows
    with pytest.raises(InputError, match="share the id"):
        self_report(model, Choices(rows=one + one))
    assert not model.seen
    with pytest.raises(InputError, match="none of 2 questions got a reply"):
        self_report(ScriptedModel(lambda chat: DOWN, name="down"), Choices(rows=one))
    with pytest.raises(ConfigError, match=r"does not contain \{options\}"):
        resolve(SelfReport, {"template": "{question}?"})
