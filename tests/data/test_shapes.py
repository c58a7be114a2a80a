"""The shape layer: TRL's columns in, typed rows out, and one reason for every refusal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.core.behaviours import Goal
from calibrant.core.lm import Chat, Message
from calibrant.data.rows import (
    ClassedText,
    Example,
    Fact,
    Item,
    Labelled,
    LabelledText,
    Pair,
    Prompt,
    Refused,
)
from calibrant.data.shapes import (
    classed_of,
    example_of,
    fact_of,
    goal_of,
    item_of,
    labelled_of,
    pair_of,
    prompt_of,
    text_of,
)

ASKED = Chat.ask("Hi there")
HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant: "


def says(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def refusal(shape: Callable[..., Any], row: dict[str, Any]) -> str:
    got = shape(7, row)
    assert isinstance(got, Refused), got
    assert got.line == 7
    return got.reason


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi there", "chosen": "Good day", "rejected": "Go away", "score": 3},
        {
            "prompt": [says("user", "Hi there")],
            "chosen": [says("assistant", "Good day")],
            "rejected": [says("assistant", "Go away")],
        },
        {  # UltraFeedback: the prompt again at the head of each dialogue
            "prompt": "Hi there",
            "chosen": [says("user", "Hi there"), says("assistant", "Good day")],
            "rejected": [says("user", "Hi there"), says("assistant", "Go away")],
        },
        {
            "chosen": [says("user", "Hi there"), says("assistant", "Good day")],
            "rejected": [says("user", "Hi there"), says("assistant", "Go away")],
        },
        {
            "prompt": None,
            "chosen": f"{HUMAN}Hi there{ASSISTANT}Good day",
            "rejected": f"{HUMAN}Hi there {ASSISTANT} Go away\n",
        },
        {"chosen": f"Human: Hi there{ASSISTANT}Good day", "rejected": f"Human: Hi there{ASSISTANT}Go away"},
        {"prompt": f"{HUMAN}Hi there\n\nAssistant:", "chosen": "Good day", "rejected": "Go away"},
    ],
)
def test_seven_ways_to_write_one_pair(row: dict[str, Any]) -> None:
    wanted = Pair(id="row:7", prompt=ASKED, chosen="Good day", rejected="Go away")
    assert pair_of(7, row) == wanted
    assert pair_of(7, {**row, "id": 12}, "pairs") == wanted.model_copy(update={"id": "12"})
    assert pair_of(7, {**row, "id": None}, "pairs") == wanted.model_copy(update={"id": "pairs:7"})


def test_a_longer_dialogue_shares_all_but_the_last_turn() -> None:
    head = f"{HUMAN}One{ASSISTANT}Two: a\n\nb{HUMAN}Three{ASSISTANT}"
    pair = pair_of(1, {"chosen": f"{head}Same words, kept", "rejected": f"{head}Same words, lost"})
    assert isinstance(pair, Pair)
    turns = [(turn.role, turn.content) for turn in pair.prompt.messages]
    assert turns == [("user", "One"), ("assistant", "Two: a\n\nb"), ("user", "Three")]
    assert (pair.chosen, pair.rejected) == ("Same words, kept", "Same words, lost")


def test_explicit_text_is_kept_to_the_last_space() -> None:
    pair = pair_of(1, {"prompt": " Hi\n", "chosen": " yes", "rejected": "no "})
    assert pair == Pair(id="row:1", prompt=Chat.ask(" Hi\n"), chosen=" yes", rejected="no ")


U, A = says("user", "Hi"), says("assistant", "Yes")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"promt": "Hi", "chosen": "a"},
            "no common prompt: there is no 'prompt' (did you mean 'promt'?), and",
        ),
        (
            {"promt": "Hi", "chosen": [U, A]},
            "missing column: no 'rejected'; wanted: chosen and rejected, with prompt",
        ),
        (
            {"prompt": "Hi", "chosen": "a", "rejecte": "b"},
            "missing column: no 'rejected' (did you mean 'rejecte'?)",
        ),
        ({}, "missing column: no 'chosen'; wanted: chosen and rejected, with prompt"),
        (
            {"prompt": "Hi", "chosen": 3, "rejected": "b"},
            "wrong type: 'chosen' must be text or a list of messages",
        ),
        ({"prompt": True, "chosen": "a", "rejected": "b"}, "wrong type: 'prompt' must be text or a list"),
        ({"prompt": "Hi", "chosen": " \n", "rejected": "b"}, "empty text: 'chosen'"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty text: 'prompt'"),
        ({"prompt": "Hi", "chosen": None, "rejected": "b"}, "empty text: 'chosen' is null"),
        (
            {"prompt": "Hi", "chosen": float("nan"), "rejected": "b"},
            "wrong type: 'chosen' must be text or a list",
        ),
        (
            {"prompt": "Hi", "chosen": "a\ud800", "rejected": "b"},
            "not Unicode text: 'chosen' holds a lone surrogate",
        ),
        ({"prompt": "Hi", "chosen": "a", "rejected": "a "}, "equal replies: "),
        ({"chosen": [U, A], "rejected": [U, A]}, "equal replies: "),
        (
            {"chosen": "The sky is blue", "rejected": "The sky is green"},
            "no common prompt: there is no 'prompt'",
        ),
        ({"chosen": [U, A], "rejected": [says("user", "Ho"), A]}, "no common prompt: "),
        ({"chosen": [A], "rejected": [says("assistant", "No")]}, "no common prompt: "),
        (
            {"chosen": [U, A, U], "rejected": [U, A]},
            "no assistant turn at the end: 'chosen' ends with a user turn",
        ),
        (
            {"chosen": f"{HUMAN}Hi{ASSISTANT}Yes{HUMAN}Ho", "rejected": f"{HUMAN}Hi{ASSISTANT}No"},
            "no assistant turn",
        ),
        (
            {"chosen": f"{HUMAN}Hi{ASSISTANT}", "rejected": f"{HUMAN}Hi{ASSISTANT}No"},
            "empty text: 'message 2 of chosen'",
        ),
        (
            {"chosen": [U, A, U, A], "rejected": [U, says("assistant", "No"), U, A]},
            "more than one turn differs: ",
        ),
        (
            {"chosen": [U, A], "rejected": [U, A, U, A]},
            "more than one turn differs: the dialogues part at turn 3, ",
        ),
        ({"chosen": [U, A, A], "rejected": [U, A, says("assistant", "No")]}, "no user turn at the end: "),
        ({"prompt": [U, A], "chosen": "a", "rejected": "b"}, "no user turn at the end: "),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "empty text: 'prompt' has no messages"),
        ({"prompt": "Ho", "chosen": [U, A], "rejected": "b"}, "another prompt: "),
        ({"prompt": "Hi", "chosen": [U], "rejected": "b"}, "no assistant turn at the end: "),
        (
            {"prompt": [says("tool", "x")], "chosen": "a", "rejected": "b"},
            "unknown role: message 1 of 'prompt'",
        ),
        (
            {"prompt": [{"from": "human"}], "chosen": "a", "rejected": "b"},
            "wrong type: message 1 of 'prompt'",
        ),
        (
            {"prompt": [says("user", None)], "chosen": "a", "rejected": "b"},
            "wrong type: 'message 1 of prompt'",
        ),
        (
            {"id": ["x"], "prompt": "Hi", "chosen": "a", "rejected": "b"},
            "wrong type: 'id' must be text, got list",
        ),
    ],
)
def test_pairs_are_refused_for_one_named_reason(row: dict[str, Any], reason: str) -> None:
    assert refusal(pair_of, row).startswith(reason)


def test_a_missing_column_names_found_wanted_and_nearest() -> None:
    assert refusal(example_of, {"promt": "Hi", "completion": "a"}) == (
        "missing column: no 'prompt' (did you mean 'promt'?); wanted: prompt and completion, or messages; "
        "found: promt, completion"
    )


def test_examples_come_as_two_columns_or_as_messages() -> None:
    wanted = Example(id="row:1", prompt=ASKED, completion="Good day")
    assert example_of(1, {"prompt": "Hi there", "completion": "Good day"}) == wanted
    messages = [says("user", "Hi there"), {**says("assistant", "Good day"), "tool_calls": None}]
    assert example_of(1, {"messages": messages}) == wanted
    headed = example_of(1, {"messages": [says("system", "Be kind"), *messages]})
    assert headed == Example(id="row:1", prompt=Chat.ask("Hi there", system="Be kind"), completion="Good day")
    assert refusal(example_of, {"messages": messages[:1]}).startswith("no assistant turn at the end")
    assert refusal(example_of, {"messages": messages[1:]}).startswith("no user turn at the end")
    assert refusal(example_of, {"messages": "Hi"}).startswith("wrong type")


@pytest.mark.parametrize(
    ("label", "wanted"),
    [(True, True), (0, False), (1.0, True), ("True", True), ("0", False), (" false ", False), ("1.0", True)],
)
def test_labels_are_read_from_every_format(label: Any, wanted: bool) -> None:
    row = {"prompt": "Hi there", "completion": "Good day", "label": label}
    assert labelled_of(1, row) == Labelled(id="row:1", prompt=ASKED, completion="Good day", label=wanted)


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        (float("nan"), "NaN label"),
        (None, "NaN label"),
        ("", "NaN label"),
        (0.5, "wrong type"),
        (2, "wrong type"),
        (10**400, "wrong type"),
        ("good", "wrong type"),
        ([1], "wrong type"),
    ],
)
def test_other_labels_are_never_guessed(label: Any, kind: str) -> None:
    row = {"prompt": "Hi there", "completion": "Good day", "label": label}
    assert refusal(labelled_of, row).split(":")[0] == kind
    assert refusal(labelled_of, {"prompt": "Hi", "completion": "a"}).startswith("missing column: no 'label'")


@pytest.mark.parametrize("column", ["text", "goal", "Goal", "prompt", "behavior", "Behavior"])
def test_goals_by_any_of_six_names(column: str) -> None:
    assert goal_of(3, {column: "Bake a moon"}, "goals") == Goal(id="goals:3", text="Bake a moon")


def test_goals_keep_category_harm_cluster_spans_and_context() -> None:
    row = {
        "Behavior": "Use it",
        "ContextString": "A moon.",
        "BehaviorID": "moon_use",
        "SemanticCategory": "astral",
    }
    assert goal_of(1, row) == Goal(id="moon_use", text="A moon.\n\n---\n\nUse it", category="astral")
    look_alike = {"id": 4, "prompt": "Kill a process", "type": "homonyms", "label": "safe"}
    assert goal_of(1, look_alike) == Goal(id="4", text="Kill a process", category="homonyms", harmful=False)
    full = {"text": "Bake a moon", "harmful": "false", "label": "odd", "cluster": "bake", "spans": ["moon"]}
    wanted = Goal(id="row:1", text="Bake a moon", harmful=False, cluster="bake", spans=("moon",))
    assert goal_of(1, full) == wanted


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "x", "label": "borderline"}, "unknown label"),
        ({"text": "x", "label": 1}, "unknown label"),
        ({"text": "x", "harmful": "perhaps"}, "wrong type"),
        ({"text": "x", "spans": "x"}, "wrong type"),
        ({"text": "x", "spans": [3]}, "wrong type"),
        ({"text": "x", "category": ["a"]}, "wrong type"),
        ({"text": ""}, "empty text"),
        ({"Request": "x"}, "missing column"),
    ],
)
def test_goals_are_refused_rather_than_guessed(row: dict[str, Any], kind: str) -> None:
    assert refusal(goal_of, row).split(":")[0] == kind


def test_a_blank_column_yields_to_the_next_name() -> None:
    assert goal_of(1, {"text": "", "goal": "Bake a moon"}) == Goal(id="row:1", text="Bake a moon")


@pytest.mark.parametrize(
    ("answer", "wanted"), [("four", "four"), (4, "4"), (0.5, "0.5"), (10**400, str(10**400))]
)
def test_items_take_text_and_numbers(answer: Any, wanted: str) -> None:
    row = {"question": "How many?", "answer": answer, "kind": "sum", "match": "contains"}
    item = Item(id="row:1", chat=Chat.ask("How many?"), answer=wanted, kind="sum", match="contains")
    assert item_of(1, row) == item
    assert item_of(1, {"prompt": "How many?", "answer": answer, "match": ""}) == Item(
        id="row:1", chat=Chat.ask("How many?"), answer=wanted
    )


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"answer": True}, "wrong type"),
        ({"answer": float("nan")}, "wrong type"),
        ({"answer": float("inf")}, "wrong type"),
        ({"answer": None}, "empty text"),
        ({"answer": ["a", "b"]}, "wrong type"),
        ({"match": "regex"}, "unknown match"),
        ({"question": 5}, "wrong type"),
    ],
)
def test_items_are_refused(change: dict[str, Any], kind: str) -> None:
    assert refusal(item_of, {"question": "How many?", "answer": "four", **change}).split(":")[0] == kind


words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8).filter(str.strip)
roles = st.sampled_from(["system", "user", "assistant"])
turns = st.lists(st.builds(Message, role=roles, content=words), max_size=3)
# A prompt of one user turn that reads like a transcript would be split; see the module's first lines.
chats = st.builds(lambda head, last: Chat(messages=(*head, Message(role="user", content=last))), turns, words)
pairs = st.builds(Pair, id=words, prompt=chats, chosen=words, rejected=words)
shaped = st.one_of(
    st.tuples(st.just(pair_of), pairs.filter(lambda pair: pair.chosen.strip() != pair.rejected.strip())),
    st.tuples(st.just(example_of), st.builds(Example, id=words, prompt=chats, completion=words)),
    st.tuples(st.just(labelled_of), st.builds(Labelled, id=words, prompt=chats, completion=words)),
    st.tuples(
        st.just(goal_of), st.builds(Goal, id=words, text=words, category=words, spans=st.tuples(words, words))
    ),
    st.tuples(st.just(item_of), st.builds(Item, id=words, chat=chats, answer=words, kind=words)),
)


@given(shaped)
def test_a_row_that_was_written_is_read_back(case: tuple[Callable[..., Any], Any]) -> None:
    """pairs.jsonl of one job is the input of the next."""
    shape, row = case
    assert shape(1, row.model_dump(mode="json")) == row


fields = {name for kind in (Pair, Example, Labelled, Goal, Item) for name in kind.model_fields}
columns = st.sampled_from(sorted(fields | {"messages", "question", "label", "type", "ContextString"}))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=6) | roles,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "messages"]), inner)
        | st.builds(says, roles, inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(columns | st.text(st.characters(), max_size=4), anything, max_size=5))
def test_whatever_the_row_each_shape_answers(row: dict[str, Any]) -> None:
    for shape in (pair_of, example_of, labelled_of, goal_of, item_of):
        got = shape(1, row)
        assert ": " in got.reason if isinstance(got, Refused) else got.id


def test_a_transcript_with_windows_line_ends_is_the_same_dialogue() -> None:
    text = f"{HUMAN}Hi{ASSISTANT}Good day{HUMAN}Bye\nnow"
    unix, dos = (prompt_of(1, {"prompt": t}) for t in (text, (text + ASSISTANT).replace("\n", "\r\n")))
    assert isinstance(unix, Prompt) and isinstance(dos, Prompt)
    assert [m.role for m in dos.prompt.messages] == ["user", "assistant", "user"]
    assert dos.prompt.messages[:2] == unix.prompt.messages[:2]
    assert dos.prompt.messages[2].content == "Bye\r\nnow"


def test_a_classed_text_has_a_class_and_perhaps_a_supervisor() -> None:
    plain = ClassedText(id="row:1", prompt=ASKED, label="3")
    assert classed_of(1, {"text": "Hi there", "label": 3}) == plain
    sure = plain.model_copy(update={"weak": {"2": 1.0}, "cluster": "greeting"})
    assert classed_of(1, {"prompt": "Hi there", "label": "3", "weak": 2, "cluster": "greeting"}) == sure
    spread = plain.model_copy(update={"weak": {"2": 0.25, "3": 0.75}})
    row = {"prompt": "Hi there", "label": "3", "weak": {"2": 0.25, "3": 0.75, "4": None}}
    assert classed_of(1, row) == spread
    assert classed_of(1, spread.model_dump(mode="json") | {"id": "row:1"}) == spread


@pytest.mark.parametrize("weak", [{"2": math.nan}, {"2": "often"}, {"2": True}, {" ": 1.0}, [0.5, 0.5], True])
def test_a_weak_label_that_is_none_is_refused(weak: Any) -> None:
    got = classed_of(1, {"prompt": "Hi there", "label": "3", "weak": weak})
    assert isinstance(got, Refused) and ": " in got.reason


def test_a_labelled_text_is_a_prompt_or_a_reply_with_its_groups() -> None:
    row = {"text": "Hi there", "label": "true", "template": "greeting", "task": 7}
    wanted = LabelledText(id="row:1", prompt=ASKED, label=True, template="greeting", task="7")
    assert text_of(1, row) == wanted
    replied = text_of(1, {"prompt": "Hi there", "completion": "Good day", "label": 0})
    assert replied == LabelledText(id="row:1", prompt=ASKED, reply="Good day", label=False)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": " ", "label": 1}, "empty text: 'text'"),
        ({"text": "Hi", "label": None}, "NaN label"),
        ({"text": "Hi"}, "missing column: no 'label'"),
        ({"text": "Hi", "label": "often"}, "wrong type: 'label'"),
        ({"label": 1}, "missing column: no 'prompt'"),
    ],
)
def test_a_text_that_no_probe_can_use_is_refused(row: dict[str, Any], reason: str) -> None:
    assert refusal(text_of, row).startswith(reason)


@pytest.mark.parametrize("blank", [{}, {"foil": None}, {"foil": " "}, {"foil": float("nan")}])
def test_romes_foil_follows_a_blank_beside_an_empty_column(blank: dict[str, Any]) -> None:
    row = {"prompt": "{} is in", "subject": "Oslo", "attribute": "Norway", "target_new": "Chad", **blank}
    fact = fact_of(1, row)
    assert isinstance(fact, Fact), fact
    assert (fact.prompt, fact.answer, fact.foil) == (Chat.ask("Oslo is in"), " Norway", " Chad")


@pytest.mark.parametrize(
    ("prompt", "subject", "reason"),
    [
        ("The mother tongue of {} is", "The", "unclear: the prompt has both '{}' and"),
        ("Oslo {} is in", "Oslo", "unclear: the prompt has both '{}' and"),
        ("{} and {} are in", "Oslo", "no subject: the prompt's last turn must name 'Oslo' once"),
        ("It is in", "Oslo", "no subject"),
    ],
)
def test_a_subject_stands_once_in_what_is_asked(prompt: str, subject: str, reason: str) -> None:
    row = {"prompt": prompt, "subject": subject, "attribute": "Norway"}
    assert refusal(fact_of, row).startswith(reason)
