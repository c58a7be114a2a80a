"""The rows that techniques take: pairs, examples, prompts, labelled replies, goals, items.

A table is a frozen tuple of rows with its source and the account of what was refused on reading.
TRL's column names are accepted by the readers; here every prompt is a ``Chat``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Literal, TypeVar

from pydantic import Field

from calibrant.core.attempt import Attempt
from calibrant.core.behaviours import Goal
from calibrant.core.config import Frozen
from calibrant.core.digest import digest
from calibrant.core.lm import Chat

R = TypeVar("R", bound=Frozen)
_DISPUTED = "counts differ: "
"""How readers of other tools' files begin to say that totals are not those of the rows."""
_SHOWN = 8


def _certain(probability: float) -> bool:
    return probability == 1.0


def _unsaid(text: str) -> bool:
    return not text


def _none_given(texts: tuple[str, ...]) -> bool:
    return not texts


class Pair(Frozen):
    """A preference: for one prompt, a better and a worse reply."""

    id: str
    """Stable name of the row."""
    prompt: Chat
    """What both replies answer."""
    chosen: str
    """The preferred reply."""
    rejected: str
    """The other one."""
    chosen_probability: float = Field(default=1.0, ge=0.5, le=1.0, exclude_if=_certain)
    """How likely it is that ``chosen`` is the better one: a soft label. Training weighs both orders by it;
    whatever measures agreement with ``chosen`` does not read it."""
    category: str = Field(default="", exclude_if=_unsaid)
    """Harm category of the prompt; "" where none is known."""
    principle: str = Field(default="", exclude_if=_unsaid)
    """Id of the principle under which the two were compared; "" for none."""


class Example(Frozen):
    """A demonstration for supervised fine-tuning: the loss is on the completion only."""

    id: str
    """Stable name of the row."""
    prompt: Chat
    """What is answered."""
    completion: str
    """The reply to imitate."""


class Prompt(Frozen):
    """Something to answer, where training draws the replies itself."""

    id: str
    """Stable name of the row."""
    prompt: Chat
    """What is answered."""


class Labelled(Frozen):
    """A reply with a thumb up or down (KTO's shape)."""

    id: str
    """Stable name of the row."""
    prompt: Chat
    """What is answered."""
    completion: str
    """The reply."""
    label: bool
    """True = desirable."""


class Item(Frozen):
    """A question with a known answer, for capability."""

    id: str
    """Stable name of the row."""
    chat: Chat
    """The question."""
    answer: str
    """The right answer."""
    kind: str = ""
    """'fact', 'sum', 'instruction', ...: results are also shown by kind."""
    match: Literal["exact", "contains"] = "exact"
    """Compare whole replies (case and outer space aside), or look for the answer as a phrase."""
    wrong: tuple[str, ...] = Field(default=(), exclude_if=_none_given)
    """Wrong answers that a user may put forward or a model may give; () where none are known."""
    cluster: str = Field(default="", exclude_if=_unsaid)
    """Items that share a subject or a template are not independent; "" is its own cluster."""


class Contrast(Frozen):
    """A prompt, a corrupted version of it, and what tells the two apart in the model's next token."""

    id: str
    """Stable name of the row."""
    clean: Chat
    """The prompt that ``answer`` follows."""
    corrupt: Chat
    """The same with a few tokens changed, of as many tokens, which ``answer`` does not follow."""
    answer: str
    """What comes next after the clean prompt; its first token is read. A leading blank counts."""
    foil: str
    """What to compare it with: the answer to the corrupted prompt, or any wrong one."""
    cluster: str = ""
    """Rows that share a template or a subject are not independent; "" is its own cluster."""


class Fact(Frozen):
    """A prompt about a subject, and what comes next where the model knows the fact."""

    id: str
    """Stable name of the row."""
    prompt: Chat
    """The prompt; its last turn names the subject once."""
    subject: str
    """The subject as it stands in the prompt."""
    answer: str
    """What comes next; its first token is read. A leading blank counts."""
    foil: str = ""
    """A wrong answer to compare it with; "" for none."""
    other: str = ""
    """Another subject of as many tokens, with another answer; "" lets one be drawn from the other rows."""
    cluster: str = ""
    """Rows that share a template or a subject are not independent; "" is its own cluster."""


class LabelledText(Frozen):
    """A text whose activations are read, with what a probe is to tell of it."""

    id: str
    """Stable name of the row."""
    prompt: Chat
    """What the model reads."""
    reply: str = ""
    """The reply to read; "" reads the prompt."""
    label: bool
    """What the probe is to tell."""
    template: str = ""
    """Rows made from one template share its name; "" names none."""
    task: str = ""
    """Rows about one task, subject or source share its name; "" names none."""


class ClassedText(Frozen):
    """A text of one of several classes, with a supervisor's opinion of it where there is one."""

    id: str
    """Stable name of the row."""
    prompt: Chat
    """What the model reads."""
    label: str
    """Its true class."""
    weak: dict[str, float] = Field(default_factory=dict)
    """A weak supervisor's probability of each class; classes that are left out have 0. {}: none is known."""
    cluster: str = ""
    """Rows that share a template or a source are not independent; "" is its own cluster."""


class CheckedAnswer(Frozen):
    """An answer to criticise, and the flaw that was put into it, if any."""

    id: str
    """Stable name of the row."""
    prompt: Chat
    """The question."""
    answer: str
    """The answer to criticise."""
    flaw: str = ""
    """The words of the answer that are wrong, as they stand in it; "" where nothing was put in."""
    kind: str = ""
    """How it was tampered with, or what kind of question it is: results are also shown by kind."""
    cluster: str = ""
    """Rows that share a question or a template are not independent; "" is its own cluster."""


class Question(Frozen):
    """A question with a right and a wrong answer, which players argue and a judge decides."""

    id: str
    """Stable name of the row."""
    question: str
    """What is asked, in words."""
    correct: str
    """The right answer."""
    wrong: str
    """The wrong one."""
    passage: str = ""
    """What players may read and the judge may not; "" for none."""
    shown: str = ""
    """What the judge reads, too: say, an excerpt of the passage; "" for none."""
    cluster: str = ""
    """Rows that share a passage are not independent; "" is that of the passage, or its own without one."""


class Graded(Frozen):
    """A reply with a human label, to calibrate a judge on."""

    id: str
    """Stable name of the row."""
    prompt: Chat
    """What was asked."""
    completion: str
    """The reply that was labelled."""
    label: bool
    """Whether the behaviour happened, by human judgement."""
    target: str = ""
    """Which model (family) wrote the reply."""
    family: str = ""
    """Technique family of the attack behind the prompt; 'plain' or "" where there was none."""
    raters: tuple[str, ...] = ()
    """Each rater's own label, as written in the file."""
    screened: tuple[str, ...] = ()
    """What other judges said of it, as written in the file: 'name=label'."""


class Refused(Frozen):
    """A row that was not taken, and why."""

    line: int
    """Line number in the file (1 = first), or row number where a file has no lines."""
    reason: str
    """In words."""


class Table(Frozen, Generic[R]):
    """Rows of one kind, with their source and an account of the refused ones."""

    rows: tuple[R, ...]
    """What was read."""
    source: str = ""
    """Where it came from."""
    refused: tuple[Refused, ...] = ()
    """Every refused row with its reason and line number."""
    unused: tuple[str, ...] = ()
    """Columns that were not read in at least one of the rows taken; 'messages.name' is a key of a message."""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[R]:  # type: ignore[override]
        return iter(self.rows)

    @property
    def lost(self) -> tuple[Refused, ...]:
        """The rows that were refused: ``refused`` without what ``disputed`` tells."""
        return tuple(row for row in self.refused if not row.reason.startswith(_DISPUTED))

    @property
    def disputed(self) -> str:
        """Where a file's own totals are not those of its rows, in words; "" where they are."""
        reasons = [row.reason for row in self.refused if row.reason.startswith(_DISPUTED)]
        more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        return "; ".join(reason.removeprefix(_DISPUTED) for reason in reasons[:_SHOWN]) + more

    @property
    def digest(self) -> str:
        """Digest of the rows alone: the same rows are the same data wherever they lie."""
        return digest(list(self.rows))


class Preferences(Table[Pair]):
    """Preference pairs, for DPO and reward models."""


class Prompts(Table[Prompt]):
    """Prompts, for methods that draw their own replies: PPO, best-of-n, online DPO."""


class Examples(Table[Example]):
    """Demonstrations, for SFT."""


class LabelledReplies(Table[Labelled]):
    """Replies with labels, for KTO."""


class Goals(Table[Goal]):
    """Goals, for attacks and refusal measurements."""


class Items(Table[Item]):
    """Questions with answers, for capability."""


class Contrasts(Table[Contrast]):
    """Clean and corrupted prompts, for activation patching."""


class Facts(Table[Fact]):
    """Prompts about a subject each, for causal tracing."""


class LabelledTexts(Table[LabelledText]):
    """Texts with labels, for probes."""


class ClassedTexts(Table[ClassedText]):
    """Texts of several classes, for weak-to-strong generalisation."""


class CheckedAnswers(Table[CheckedAnswer]):
    """Answers with and without a planted flaw, for critics."""


class Questions(Table[Question]):
    """Questions with a right and a wrong answer, for oversight protocols."""


class GradedReplies(Table[Graded]):
    """Replies with human labels, to calibrate judges on."""


class Attempts(Table[Attempt]):
    """Attempts of an attack, of this tool or read from another's files."""
