"""Columns: what no row was read by is named; what would change a row's meaning is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calibrant.core.errors import InputError
from calibrant.data.canaries import canaries_from
from calibrant.data.columns import ignoring, listed
from calibrant.data.files import raw_rows
from calibrant.data.graded import graded_from
from calibrant.data.human_labels import labels_from, read_queue
from calibrant.data.readers import read
from calibrant.data.rows import Examples, Goals, Items, LabelledReplies, Preferences, Prompts, Table
from calibrant.data.votes import read_comparisons, votes_from

PAIR = {"prompt": "Hi", "chosen": "Good day", "rejected": "Go away"}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good day"}]


def rows(*given: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return list(enumerate(given, start=1))


def test_what_was_not_read_is_named_in_the_order_of_the_file() -> None:
    table = read(Preferences, rows(PAIR, {"source": "made up", **PAIR, "score_chosen": 8.0}), "p.jsonl")
    assert table.unused == ("source", "score_chosen")
    assert read(Preferences, rows(PAIR), "p.jsonl").unused == ()
    both = {"messages": TURNS, "prompt": "Bye", "completion": "So long"}
    assert read(Examples, rows(both), "e.jsonl").unused == ("prompt", "completion")
    assert read(Prompts, rows(PAIR), "p.jsonl").unused == ("chosen", "rejected")
    named = {"prompt": [{**TURNS[0], "name": "ann"}], "completion": "Good day"}
    assert read(Examples, rows(named), "e.jsonl").unused == ("prompt.name",)


@pytest.mark.parametrize(
    ("kind", "row", "column"),
    [
        (Preferences, {**PAIR, "system": "Be terse."}, "system"),
        (Preferences, {**PAIR, "System-Prompt": "Be terse."}, "System-Prompt"),
        (Preferences, {**PAIR, "systemPrompt": "Be terse."}, "systemPrompt"),
        (Goals, {"goal": "Bake a moon", "isBenign": True}, "isBenign"),
        (Preferences, {**PAIR, "margin": 1.5}, "margin"),
        (Preferences, {**PAIR, "margin": "1.5"}, "margin"),
        (Preferences, {**PAIR, "tools": [{"name": "look_up"}]}, "tools"),
        (Preferences, {**PAIR, "prompt": {"messages": TURNS[:1], "tools": [1]}}, "prompt.tools"),
        (Examples, {"messages": [TURNS[0], {**TURNS[1], "tool_calls": [{"id": 1}]}]}, "messages.tool_calls"),
        (
            Examples,
            {"messages": [TURNS[0], {**TURNS[1], "reasoning_content": "Hm."}]},
            "messages.reasoning_content",
        ),
        (Examples, {"messages": [TURNS[0], {**TURNS[1], "weight": 0}]}, "messages.weight"),
        (Examples, {"prompt": "Shorten it", "completion": "Done", "input": "A long text"}, "input"),
        (LabelledReplies, {"prompt": "Hi", "completion": "Hey", "label": True, "weight": 2}, "weight"),
        (Prompts, {"prompt": "Hi", "system": "Be terse."}, "system"),
        (Goals, {"goal": "Bake a moon", "benign": True}, "benign"),
        (Goals, {"goal": "Bake a moon", "is_harmful": "no"}, "is_harmful"),
        (Items, {"question": "Which?", "answer": "B", "choices": ["A", "B"]}, "choices"),
    ],
)
def test_a_column_that_changes_the_meaning_is_an_error_unless_it_is_ignored(
    kind: type[Table[Any]], row: dict[str, Any], column: str
) -> None:
    with pytest.raises(InputError, match=f"left out, '{column}' would change what the rows mean") as caught:
        read(kind, rows(row), "x.jsonl")
    assert f"{{ file = 'x.jsonl', ignore = ['{column}'] }}" in caught.value.hint
    table = read(kind, ignoring(rows(row), [column]), "x.jsonl")
    assert (len(table), table.unused) == (1, ())


def test_a_blank_or_neutral_cell_changes_nothing_and_is_named_all_the_same() -> None:
    nothing = {"system": " ", "tools": [], "weight": 1.0, "margin": "0", "tie": False, "reasoning": None}
    assert read(Preferences, rows({**PAIR, **nothing}), "x.jsonl").unused == tuple(nothing)
    with pytest.raises(InputError, match="left out, 'system', 'margin' would"):
        read(Preferences, rows({**PAIR, **nothing}, {**PAIR, "margin": 1, "system": "Be terse."}), "x.jsonl")


def test_in_goals_a_column_of_truth_values_may_say_which_are_benign() -> None:
    goals = [{"goal": f"Bake moon {n}", "wanted": n % 2} for n in range(4)]
    with pytest.raises(InputError, match="left out, 'wanted' would") as caught:
        read(Goals, rows(*goals), "g.jsonl")
    assert "'harmful'" in caught.value.hint
    assert read(Goals, rows(*goals[:2]), "g.jsonl").unused == ("wanted",)  # may be an index
    assert read(Goals, rows(*[{**g, "wanted": n} for n, g in enumerate(goals)]), "g").unused == ("wanted",)
    told = read(Goals, rows(*[{**goal, "harmful": False, "benign": True} for goal in goals]), "g.jsonl")
    assert told.unused == ("wanted", "benign")
    assert not any(goal.harmful for goal in told)


def test_a_word_that_says_benign_is_no_harmful_goal() -> None:
    goals = [{"goal": f"Bake moon {n}", "prompt_harm_label": "unharmful"} for n in range(2)]
    with pytest.raises(InputError, match="left out, 'prompt_harm_label' would") as caught:
        read(Goals, rows(*goals), "g.jsonl")
    assert "'harmful'" in caught.value.hint
    with pytest.raises(InputError, match="left out, 'data_type'"):
        read(Goals, rows({"goal": "x", "data_type": "adversarial_benign"}), "g.jsonl")
    assert read(Goals, rows({"goal": "x", "data_type": "vanilla_harmful"}), "g").unused == ("data_type",)
    with pytest.raises(InputError, match="unclear: the category is str 'benign'") as caught:
        read(Goals, rows({"goal": "Bake a moon", "category": "benign"}), "g.jsonl")
    assert "'harmful'" in caught.value.hint
    [told] = read(Goals, rows({"goal": "Bake a moon", "category": "benign", "harmful": 0}), "g.jsonl")
    assert (told.category, told.harmful) == ("benign", False)


def test_zeros_and_ones_that_count_or_name_are_no_truth_values() -> None:
    counts = {"version": 1, "num_turns": 1, "split": 0, "languageId": 1, "n_shots": 0, "turn": "1"}
    goals = [{"goal": f"Bake moon {n}", **counts} for n in range(4)]
    assert read(Goals, rows(*goals), "g.jsonl").unused == tuple(counts)


def test_a_tie_is_no_preference_by_whatever_name_the_column_goes() -> None:
    told = [{**PAIR, "status": said} for said in ("unchanged", "swapped", "Tie")]
    with pytest.raises(InputError, match="left out, 'status' would") as caught:
        read(Preferences, rows(*told), "orca.jsonl")
    assert "drop the pairs that are ties (line 3)" in caught.value.hint
    assert read(Preferences, rows(*told[:2]), "orca.jsonl").unused == ("status",)


def test_another_prompt_is_mended_as_the_hint_says() -> None:
    both = {"prompt": "Hi ", "chosen": TURNS, "rejected": [TURNS[0], {**TURNS[1], "content": "Go away"}]}
    with pytest.raises(InputError, match="another prompt") as caught:
        read(Preferences, rows(both), "p.jsonl")
    assert "ignore = ['prompt']" in caught.value.hint
    [pair] = read(Preferences, ignoring(rows(both), ["prompt"]), "p.jsonl")
    assert (pair.prompt.messages[0].content, pair.chosen) == ("Hi", "Good day")


def test_the_readers_of_other_tables_keep_the_same_account(tmp_path: Path) -> None:
    graded = {"prompt": "Hi", "completion": "Hey", "label": True, "raters": ["yes"], "agreement": 1}
    assert graded_from(rows(graded), "x.jsonl").unused == ("agreement",)
    xstest = {"prompt": "Hi", "completion": "Hey", "final_label": "1_full_compliance"}
    judged = {"annotation_1": "yes", "gpt_label": "no", "agreement": 1}
    assert graded_from(rows({**xstest, **judged}), "x.csv").unused == ("agreement",)
    canary = {"format": "it is {secret}", "secret": "12", "alphabet": "0123456789"}
    assert canaries_from(rows({**canary, "note": "x"}), "c.jsonl").unused == ("note",)
    vote = {"item": "a", "rater": "ann", "first": "a", "choice": "first"}
    assert votes_from(rows({**vote, "seconds": 2}), "v.jsonl").unused == ("seconds",)
    assert labels_from(rows({"id": "a", "human": True, "why": "x"}), "l.jsonl").unused == ("why",)
    with pytest.raises(InputError, match="'system' would change"):
        graded_from(rows({**graded, "system": "Be terse."}), "x.jsonl")
    with pytest.raises(InputError, match="'system' would change"):
        canaries_from(rows({**canary, "system": "Be terse."}), "c.jsonl")
    compared = tmp_path / "c.jsonl"
    compared.write_text(json.dumps({"prompt": "Hi", "a": "x", "b": "y", "system": "Be terse.", "n": 1}))
    with pytest.raises(InputError, match="'system' would change"):
        read_comparisons(compared)
    assert read_comparisons(compared, ["system"]).unused == ("n",)
    queue = tmp_path / "q.jsonl"
    queue.write_text(json.dumps({"id": "a", "goal": "", "chat": "Hi", "reply": "Hey", "cost": 1}))
    assert read_queue(queue).unused == ("cost",)


def test_ignore_takes_columns_out_and_knows_when_there_is_none() -> None:
    raw = {"messages": [{**TURNS[0], "weight": 0}, {**TURNS[1], "weight": 0, "name": "ann"}], "n": 1}
    [(_, left)] = ignoring(rows(raw), ["messages.weight", "n"])
    assert left == {"messages": [TURNS[0], {**TURNS[1], "name": "ann"}]}
    assert raw["n"] == 1  # the file's own row is unchanged
    with pytest.raises(InputError, match=r"no such column \(did you mean 'system'\?\)"):
        list(ignoring(rows({**PAIR, "system": "x"}), ["sytem"]))
    with pytest.raises(InputError, match="missing column: no 'rejected'"):
        read(Preferences, ignoring(rows(PAIR), ["rejected"]), "x.jsonl")


def test_names_are_shown_so_that_a_terminal_is_not_moved_by_them() -> None:
    assert listed(["a", "\x1b[2J", "\ud800"]) == r"'a', '\x1b[2J', '\ud800'"
    assert listed([str(n) for n in range(103)]).endswith("'99' and 3 more")


@pytest.mark.real
def test_the_real_files_open_with_their_unused_columns_named(real_data: Path) -> None:
    def opened(kind: type[Table[Any]], name: str) -> tuple[str, ...]:
        return read(kind, raw_rows(real_data / name), name).unused

    assert opened(Goals, "xstest/prompts.csv") == ("focus", "note")
    assert opened(Goals, "behaviours/harmbench_val.csv") == ("FunctionalCategory", "Tags")
    assert opened(Preferences, "hh_rlhf/harmless_base.jsonl") == ()
    xstest = real_data / "xstest"
    for path in sorted(xstest.glob("completions_*.csv")):
        assert "agreement" in graded_from(raw_rows(path), str(path)).unused
    with pytest.raises(InputError, match="left out, 'S', 'H'"):  # labels that say which texts are benign
        opened(Goals, "moderation/samples.jsonl")
