"""The shape layer: a dictionary becomes a typed row, or is rejected with the reason. Pure functions.

Column names are TRL's (https://huggingface.co/docs/trl/dataset_formats), and what ``rows.py`` writes is
read back. Wherever a chat is wanted, a string is one user turn, a transcript as in HH-RLHF
("\\n\\nHuman: ... \\n\\nAssistant: ...") is split into its turns, a list of {role, content} stays as it is.

Departures from TRL: a shared prompt is found by whole turns, never by characters (two replies that begin
with the same words keep them); prompts end with a user turn; a reply is one assistant turn.

A reason reads "kind: detail", so that refusals can be counted by kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from calibrant.core.behaviours import Goal
from calibrant.core.config import Frozen
from calibrant.core.errors import InputError
from calibrant.core.lm import Chat
from calibrant.data.cells import (
    Row,
    as_boolean,
    as_number,
    as_text,
    as_written,
    column,
    given,
    is_blank,
    shown,
)
from calibrant.data.choices import Choice, choice
from calibrant.data.columns import says_benign
from calibrant.data.rows import (
    CheckedAnswer,
    ClassedText,
    Contrast,
    Example,
    Fact,
    Item,
    Labelled,
    LabelledText,
    Pair,
    Prompt,
    Question,
    Refused,
)
from calibrant.data.task_tree import TaskTree, tree_made
from calibrant.data.turns import asked, dialogue, final, messages_of, parted, prompt_in, reply_in

R = TypeVar("R", bound=Frozen)

_HARMFUL = {"safe": False, "benign": False, "unsafe": True, "harmful": True}


def pair_of(line: int, row: Row, stem: str = "row") -> Pair | Refused:
    """Shape a preference: prompt, chosen, rejected; or chosen and rejected that share their first turns.

    Replies that equal each other but for outer space are refused: they prefer nothing. With
    chosen_probability (a soft label from .5 to 1), category and principle if given.
    """
    return _taken(_pair, line, row, stem)


def example_of(line: int, row: Row, stem: str = "row") -> Example | Refused:
    """Shape a demonstration: prompt, completion; or messages, whose last turn is the completion."""
    return _taken(_example, line, row, stem)


def prompt_of(line: int, row: Row, stem: str = "row") -> Prompt | Refused:
    """Shape something to answer: prompt, question, chat or messages; a goal's text; a pair's shared turns."""
    return _taken(_only_prompt, line, row, stem)


def labelled_of(line: int, row: Row, stem: str = "row") -> Labelled | Refused:
    """Shape a judged reply: as ``example_of``, with label (true, false, 1, 0; a NaN is no label)."""
    return _taken(_labelled, line, row, stem)


def goal_of(line: int, row: Row, stem: str = "row") -> Goal | Refused:
    """Shape a goal: text, goal, prompt or behavior; with category, harmful, cluster and spans if given.

    A HarmBench context stands before its behaviour, as that benchmark sends it. A label 'safe' (XSTest)
    makes a benign look-alike, 'unsafe' a harmful goal; another label is refused, never guessed. Without
    either column the goal counts as harmful.
    """
    return _taken(_goal, line, row, stem)


def item_of(line: int, row: Row, stem: str = "row") -> Item | Refused:
    """Shape a question: question, prompt or chat; answer (text or a number); kind, match, cluster and wrong
    (an answer, or a list) if given."""
    return _taken(_item, line, row, stem)


def contrast_of(line: int, row: Row, stem: str = "row") -> Contrast | Refused:
    """Shape a clean and a corrupted prompt: clean, corrupt, answer, foil; cluster if given."""
    return _taken(_contrast, line, row, stem)


def fact_of(line: int, row: Row, stem: str = "row") -> Fact | Refused:
    """Shape a fact: prompt, subject, answer; foil, other and cluster if given.

    ROME's names are read, too: ``attribute`` or ``target_true`` for the answer, ``target_new`` for the foil,
    each after a blank, as ROME's code reads them; and a ``{}`` in the prompt stands for the subject.
    """
    return _taken(_fact, line, row, stem)


def text_of(line: int, row: Row, stem: str = "row") -> LabelledText | Refused:
    """Shape a text for a probe: prompt, text or chat; label; reply (completion), template, task if given."""
    return _taken(_text, line, row, stem)


def classed_of(line: int, row: Row, stem: str = "row") -> ClassedText | Refused:
    """Shape a text of a class: prompt, text or chat; label (text or a number); weak (a class, or a number a
    class) and cluster if given."""
    return _taken(_classed, line, row, stem)


def checked_of(line: int, row: Row, stem: str = "row") -> CheckedAnswer | Refused:
    """Shape an answer to criticise: question or prompt; answer; flaw, kind and cluster if given.

    A flaw that does not stand in the answer, case and outer space aside, is refused: no critique could quote
    it.
    """
    return _taken(_checked, line, row, stem)


def question_of(line: int, row: Row, stem: str = "row") -> Question | Refused:
    """Shape a question with two answers: question, correct, wrong; passage, shown and cluster if given.

    Other names are read, too: answer for the right one, foil or distractor for the wrong one, article,
    context or story for the passage, excerpt for what is shown, article_id or passage_id for the cluster.
    """
    return _taken(_question, line, row, stem)


def tree_of(line: int, row: Row, stem: str = "row") -> TaskTree | Refused:
    """Shape a task taken apart: question, nodes (id, ask, answer; parts, needs and kind if given); cluster if
    given. Nodes that make no tree are refused."""
    return _taken(tree_made, line, row, stem)


def choice_of(line: int, row: Row, stem: str = "row") -> Choice | Refused:
    """Shape a multiple-choice question about a trait, as ``calibrant.data.choices`` says."""
    return _taken(lambda name, one: choice(name, one, stem), line, row, stem)


def _taken(make: Callable[[str, Row], R], line: int, row: Row, stem: str) -> R | Refused:
    """Make the row under its own id, or under '<stem>:<line>'; an InputError becomes a refusal."""
    try:
        own = given(row, "id", "BehaviorID", "behavior_id")
        return make(f"{stem}:{line}" if own is None else as_written("id", own), row)
    except InputError as error:
        # A column may be named with half of a surrogate pair, which no record could hold.
        return Refused(line=line, reason=error.message.encode(errors="backslashreplace").decode())


def _pair(name: str, row: Row) -> Pair:
    if row.get("prompt") is None:
        prompt, chosen, rejected = parted(dialogue(row, "chosen"), dialogue(row, "rejected"))
    else:
        prompt = prompt_in(row, "prompt")
        chosen, rejected = reply_in(row, "chosen", prompt), reply_in(row, "rejected", prompt)
    if chosen.strip() == rejected.strip():
        raise InputError("equal replies: chosen and rejected are the same text")
    likely = given(row, "chosen_probability")
    return Pair(
        id=name,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        chosen_probability=1.0 if likely is None else _likely(likely),
        category=_noted(row, "category"),
        principle=_noted(row, "principle"),
    )


def _likely(value: Any) -> float:
    """A soft label; a CSV file has it as text."""
    with suppress(ValueError):  # as_number says what it is
        value = float(value) if isinstance(value, str) else value
    probability = as_number("chosen_probability", value)
    if not 0.5 <= probability <= 1.0:
        raise InputError(
            f"no soft label: chosen_probability is {probability:g}; it lies between .5 and 1, "
            "and below .5 the other reply is the chosen one"
        )
    return probability


def _noted(row: Row, name: str) -> str:
    """A text beside the row; what is no text stays unread, and is told with the other columns."""
    found = dict.get(row, name) if isinstance(row, dict) else row.get(name)
    return _word(row, name) if isinstance(found, str) else ""


def _word(row: Row, name: str) -> str:
    found = given(row, name)
    return "" if found is None else as_written(name, found)


def _example(name: str, row: Row) -> Example:
    if row.get("messages") is None:
        prompt = prompt_in(row, "prompt", wanted="prompt and completion, or messages")
        return Example(id=name, prompt=prompt, completion=reply_in(row, "completion", prompt))
    turns = messages_of("messages", row["messages"])
    reply = final("messages", turns)
    return Example(id=name, prompt=asked("messages", turns[:-1]), completion=reply)


def _only_prompt(name: str, row: Row) -> Prompt:
    if row.get("prompt") is None and row.get("chosen") is not None:
        return Prompt(id=name, prompt=_pair(name, row).prompt)
    wanted = ("prompt", "question", "chat", "text", "goal", "messages")
    return Prompt(id=name, prompt=prompt_in(row, *wanted))


def _labelled(name: str, row: Row) -> Labelled:
    example = _example(name, row)
    return Labelled(id=name, prompt=example.prompt, completion=example.completion, label=_label(row))


def _label(row: Row) -> bool:
    if "label" in row and is_blank(row["label"]):
        raise InputError("NaN label: a missing label is neither good nor bad")
    return as_boolean(*column(row, "label"))


def _text(name: str, row: Row) -> LabelledText:
    prompt = prompt_in(row, "prompt", "text", "chat", "messages")
    reply = next((key for key in ("reply", "completion") if given(row, key) is not None), None)
    template, task = given(row, "template"), given(row, "task")
    return LabelledText(
        id=name,
        prompt=prompt,
        reply="" if reply is None else reply_in(row, reply, prompt),
        label=_label(row),
        template="" if template is None else as_written("template", template),
        task="" if task is None else as_written("task", task),
    )


def _classed(name: str, row: Row) -> ClassedText:
    weak, cluster = given(row, "weak"), given(row, "cluster")
    if isinstance(weak, Mapping):
        # A column of objects read from Parquet has every class in every row, and null where none was written.
        weak = {as_text("weak", k): as_number(f"weak.{k}", v) for k, v in weak.items() if v is not None}
    elif weak is not None:
        weak = {as_written("weak", weak): 1.0}
    return ClassedText(
        id=name,
        prompt=prompt_in(row, "prompt", "text", "chat", "messages"),
        label=as_written(*column(row, "label")),
        weak=weak or {},
        cluster="" if cluster is None else as_written("cluster", cluster),
    )


def _checked(name: str, row: Row) -> CheckedAnswer:
    answer, flaw = as_text(*column(row, "answer", "completion")), _word(row, "flaw").strip()
    if flaw.casefold() not in answer.casefold():
        raise InputError(f"flaw not found: {flaw[:30]!r} does not stand in the answer")
    return CheckedAnswer(
        id=name,
        prompt=prompt_in(row, "question", "prompt", "chat"),
        answer=answer,
        flaw=flaw,
        kind=_word(row, "kind"),
        cluster=_word(row, "cluster"),
    )


def _goal(name: str, row: Row) -> Goal:
    text = as_text(*column(row, "text", "goal", "Goal", "prompt", "behavior", "Behavior"))
    context = given(row, "ContextString", "context")
    if context is not None:
        text = f"{as_text('context', context)}\n\n---\n\n{text}"
    category = given(row, "category", "Category", "SemanticCategory", "FunctionalCategory", "type")
    if says_benign(category) and given(row, "harmful", "label") is None:
        raise InputError(
            f"unclear: the category is {shown(category)}, but nothing says whether the goal is harmful"
        )
    cluster, spans = given(row, "cluster"), row.get("spans") or ()
    if not isinstance(spans, (list, tuple)):
        raise InputError(f"wrong type: 'spans' must be a list of texts, got {shown(spans)}")
    return Goal(
        id=name,
        text=text,
        category="uncategorised" if category is None else as_written("category", category),
        harmful=_harmful(row),
        cluster="" if cluster is None else as_written("cluster", cluster),
        spans=tuple(as_text("spans", span) for span in spans),
    )


def _harmful(row: Row) -> bool:
    """Read 'harmful', else a label in words; a goal without either is harmful."""
    harmful, label = given(row, "harmful"), given(row, "label")
    if harmful is not None:
        return as_boolean("harmful", harmful)
    if label is None:
        return True
    if str(label).lower() not in _HARMFUL:
        raise InputError(
            f"unknown label: {shown(label)} is none of {', '.join(_HARMFUL)}; or give 'harmful' instead"
        )
    return _HARMFUL[str(label).lower()]


def _item(name: str, row: Row) -> Item:
    kind, match = given(row, "kind"), given(row, "match") or "exact"
    if match not in ("exact", "contains"):
        raise InputError(f"unknown match: {shown(match)} is neither 'exact' nor 'contains'")
    wrong = given(row, "wrong")
    if not isinstance(wrong, (list, tuple)):
        wrong = [] if wrong is None else [wrong]
    return Item(
        id=name,
        chat=prompt_in(row, "question", "prompt", "chat"),
        answer=as_written(*column(row, "answer")),
        kind="" if kind is None else as_written("kind", kind),
        match=match,
        wrong=tuple(as_written("wrong", one) for one in wrong),
        cluster=_word(row, "cluster"),
    )


def _contrast(name: str, row: Row) -> Contrast:
    cluster = given(row, "cluster", "template")
    made = Contrast(
        id=name,
        clean=prompt_in(row, "clean"),
        corrupt=prompt_in(row, "corrupt", "corrupted"),
        answer=as_written(*column(row, "answer")),
        foil=as_written(*column(row, "foil")),
        cluster="" if cluster is None else as_written("cluster", cluster),
    )
    if made.clean == made.corrupt:
        raise InputError("equal prompts: clean and corrupt are the same")
    return made


def _fact(name: str, row: Row) -> Fact:
    subject = as_written(*column(row, "subject"))
    prompt = prompt_in(row, "prompt")
    last = prompt.messages[-1]
    if "{}" in last.content and subject in last.content.replace("{}", ""):
        raise InputError(f"unclear: the prompt has both '{{}}' and {subject[:30]!r}, its subject")
    if last.content.count("{}") == 1:
        filled = last.model_copy(update={"content": last.content.replace("{}", subject)})
        prompt = Chat(messages=(*prompt.messages[:-1], filled))
    if prompt.messages[-1].content.count(subject) != 1:
        raise InputError(f"no subject: the prompt's last turn must name {subject[:30]!r} once")
    foil, other, cluster = (
        given(row, *names) for names in (("foil", "target_new"), ("other",), ("cluster", "template"))
    )
    named = "target_new" if given(row, "foil") is None else "foil"
    return Fact(
        id=name,
        prompt=prompt,
        subject=subject,
        answer=_continuing(prompt, *column(row, "answer", "attribute", "target_true")),
        foil="" if foil is None else _continuing(prompt, named, foil),
        other="" if other is None else as_written("other", other),
        cluster="" if cluster is None else as_written("cluster", cluster),
    )


def _question(name: str, row: Row) -> Question:
    told = {
        "passage": given(row, "passage", "article", "context", "story"),
        "shown": given(row, "shown", "excerpt"),
    }
    cluster = given(row, "cluster", "article_id", "passage_id")
    made = Question(
        id=name,
        question=as_text(*column(row, "question", "prompt")),
        correct=as_written(*column(row, "correct", "correct_answer", "answer")),
        wrong=as_written(*column(row, "wrong", "wrong_answer", "foil", "distractor")),
        cluster="" if cluster is None else as_written("cluster", cluster),
        # Rows that this package writes hold "" where there is none.
        **{key: as_text(key, text) for key, text in told.items() if text not in (None, "")},
    )
    if made.correct.strip() == made.wrong.strip():
        raise InputError("equal answers: the right and the wrong answer are the same text")
    return made


def _continuing(prompt: Chat, name: str, value: object) -> str:
    """What follows the prompt: ROME's columns leave out the blank that its code puts in, ours do not."""
    text = as_written(name, value)
    if name in ("answer", "foil") or text[:1].isspace() or prompt.messages[-1].content[-1:].isspace():
        return text
    return f" {text}"
