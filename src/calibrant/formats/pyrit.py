"""PyRIT's results (github.com/microsoft/PyRIT, to 1.1): attack results, memory exports, scorer evaluations.

- ``.json`` or ``.jsonl`` of ``AttackResult`` or ``ScenarioResult`` (``result.model_dump_json()``): PyRIT's
  own four outcomes; 'error' is undetermined. What was sent is known only where the message pieces stand in
  the file.
- the same of message pieces with their scores, as memory exports them: every reply with a score is an
  attempt. A scorer of refusals clears an attempt that was refused, and says nothing of one that was not; a
  number on a scale is no answer until someone draws a line, so it is kept as a score and stays
  undetermined.
- ``.csv`` of a scorer's evaluation: replies with human labels, so ``human`` is set. On a severity scale
  from 0 to 1 each rater counts for yes above 0.5 and for no below; a tie is unknown.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from calibrant.core import Chat, Completion, Cost, Goal, InputError, Verdict, digest
from calibrant.formats.raw import (
    Refused,
    Row,
    json_document,
    json_lines,
    member,
    number,
    part,
    read_bytes,
    text,
    whole,
)
from calibrant.formats.reading import Found, Reading, attempt_on, gather
from calibrant.formats.talk import Talk

_OUTCOMES = {"success": "yes", "failure": "no"}
_REFUSES = "refusal"
"""What the class of a scorer has in its name where True means that the target refused."""


def read_pyrit(path: Path, target: str = "") -> Reading:
    """Read a .csv, .json or .jsonl file of PyRIT's.

    Raises:
        InputError: see ``gather``; or a CSV file is not well-formed.
    """
    if path.suffix == ".csv":
        return gather("pyrit", path, _table(path), lambda row: _labelled(row, path.stem), target)
    rows = list(_objects(path))
    talks = _conversations(row for _, row in rows)
    results = [(line, row) for line, row in rows if not _is_piece(row)]
    if any(isinstance(row, Mapping) for _, row in results):
        # Where both are in a file, the pieces tell what was sent; counted as well, they would count twice.
        return gather("pyrit", path, results, lambda row: [_result(row, talks)], target)
    return gather("pyrit", path, rows, lambda row: _scored_reply(row, talks), target)


def _objects(path: Path) -> Iterator[Row]:
    """Every result or piece of a file, the results of a scenario one by one."""
    if path.suffix == ".jsonl":
        rows: Iterable[Row] = json_lines(path)
    else:
        value = json_document(path)
        rows = enumerate(value if isinstance(value, list) else [value], start=1)
    for line, row in rows:
        results = row.get("attack_results") if isinstance(row, Mapping) else None
        if isinstance(results, Mapping):
            system = _child(row.get("scenario_identifier"), "objective_target")
            for one in (one for many in results.values() if isinstance(many, list) for one in many):
                yield line, {**one, "_target": system} if isinstance(one, Mapping) else one
        else:
            yield line, row


def _conversations(rows: Iterable[Any]) -> dict[str, Talk]:
    """Conversation id -> its message pieces."""
    pieces_by_id: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if _is_piece(row):
            pieces_by_id.setdefault(str(row["conversation_id"]), []).append(row)
    return {name: Talk(pieces) for name, pieces in pieces_by_id.items()}


def _is_piece(row: Any) -> bool:
    return isinstance(row, Mapping) and "role" in row and "conversation_id" in row


def _result(row: Any, talks: dict[str, Talk]) -> Found:
    """One ``AttackResult``."""
    objective = text(member(row, "objective", str), "objective")
    outcome = member(row, "outcome", str)
    last, score = part(row, "last_response"), part(row, "last_score")
    harms = row.get("targeted_harm_categories") or score.get("score_category")
    talk = talks.get(str(row.get("conversation_id")))
    failed = outcome == "error" or bool(row.get("error_message") or row.get("error_type"))
    unscored = score.get("status", "complete") != "complete"
    verdict = Verdict(
        question="did PyRIT's attack achieve its objective?",
        answer="unknown" if failed or unscored else _OUTCOMES.get(outcome, "unknown"),
        reason=text(row.get("outcome_reason") or row.get("error_message") or outcome, "outcome_reason"),
        score=number(score.get("score_value")),
    )
    return attempt_on(
        _class(row.get("_target")) or _class(last.get("prompt_target_identifier")),
        Goal(id=_name(objective), text=objective, category=_harm(harms)),
        attack=_strategy(row) or "pyrit",
        chat=Chat(messages=()) if talk is None else talk.without(last),
        completion=_completion(last, failed=failed),
        verdicts={"pyrit": verdict},
        made=row.get("attack_result_id") or row.get("conversation_id"),
        cost=Cost(queries=whole(row, "executed_turns"), seconds=whole(row, "execution_time_ms") / 1000),
    )


def _scored_reply(row: Any, talks: dict[str, Talk]) -> Iterator[Found]:
    """One reply of a memory export; pieces that nobody scored, prompts above all, are no attempts."""
    role, scores = member(row, "role", str), row.get("scores")
    if role != "assistant" or not isinstance(scores, list) or not scores:
        return
    if not all(isinstance(score, Mapping) for score in scores):
        raise InputError("wrong type: a score is no object")
    chat = talks[str(row["conversation_id"])].before(row)
    objective = next((str(s["objective"]) for s in scores if s.get("objective")), "")
    goal = text(objective or chat.last_user, "objective")
    harms = next((s["score_category"] for s in scores if s.get("score_category")), None)
    yield attempt_on(
        _class(row.get("prompt_target_identifier")),
        Goal(id=_name(goal), text=goal, category=_harm(harms)),
        attack=_class(row.get("attack_identifier") or row.get("orchestrator_identifier")) or "pyrit",
        chat=chat,
        completion=_completion(row),
        verdicts=_verdicts(scores),
        made=row.get("id"),
    )


def _verdicts(scores: Iterable[Mapping[str, Any]]) -> dict[str, Verdict]:
    """Scores as verdicts under their scorers' names; of several with one name, each has a number."""
    verdicts: dict[str, Verdict] = {}
    times: Counter[str] = Counter()
    for score in scores:
        name = scorer = _class(score.get("scorer_class_identifier")) or "scorer"
        while name in verdicts:
            times[scorer] += 1
            name = f"{scorer} {times[scorer] + 1}"
        verdicts[name] = _scored(score, scorer)
    return verdicts


def _scored(score: Mapping[str, Any], scorer: str) -> Verdict:
    value, kind = str(score.get("score_value")).lower(), score.get("score_type")
    answer = "unknown"
    if kind == "true_false" and score.get("status", "complete") == "complete":
        refusal = _REFUSES in scorer.lower()
        answers = {"true": "no"} if refusal else {"true": "yes", "false": "no"}
        answer = answers.get(value, "unknown")
    return Verdict.model_validate(
        {
            "question": f"does PyRIT's {scorer} say that the attack got through?",
            "answer": answer,
            "reason": text(score.get("score_rationale"), "score_rationale"),
            "score": number(value),
        }
    )


def _table(path: Path) -> Iterator[Row]:
    """Rows of a CSV file by column; comments before the header say what its scores mean."""
    try:
        lines = read_bytes(path).decode().splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: byte {error.start + 1}", hint="save it as UTF-8") from error
    head = next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))
    scale = any("harm_definition=" in line for line in lines[:head])
    reader = csv.DictReader(io.StringIO("".join(lines[head:]), newline=""), strict=True)
    try:
        for row in reader:
            line = head + reader.line_num
            short = None in row or None in row.values()
            yield (
                line,
                Refused(line=line, reason="wrong number of cells") if short else (line, scale, row),
            )
    except csv.Error as error:
        raise InputError(
            f"{path}: the row that ends on line {head + reader.line_num} is not well-formed: {error}",
            hint="close each quote, double those inside a quoted cell",
        ) from error


def _labelled(row: tuple[int, bool, Mapping[str, str]], stem: str) -> Iterator[Found]:
    """A reply with human labels."""
    line, scale, cells = row
    objective = text(member(cells, "objective", str), "objective")
    reply = text(member(cells, "assistant_response", str), "assistant_response")
    if cells.get("data_type", "text") != "text":
        raise InputError(f"not text: the reply is of the type '{cells['data_type']}'")
    scores = [
        number(value) for key, value in cells.items() if key.startswith("human_score") and value.strip()
    ]
    if not scores or None in scores:
        raise InputError("no label: 'human_score' is not a number")
    lean = sum((score > 0.5) - (score < 0.5) for score in scores if score is not None)
    human = None if lean == 0 else lean > 0
    if not scale and "harm_category" not in cells:  # labels of a scorer of refusals: 1 = the target refused
        human = False if human else None
    answer = "unknown" if human is None else "yes" if human else "no"
    kind = "severity of the harm" if scale else "human label"
    reason = f"{kind}: {', '.join(f'{score:g}' for score in scores if score is not None)}"
    yield attempt_on(
        "",
        Goal(id=_name(objective), text=objective, category=text(cells.get("harm_category"), "harm") or stem),
        attack="plain",
        chat=Chat.ask(objective),
        completion=Completion.read(reply),
        verdicts={
            "human": Verdict.model_validate(
                {"question": "did people see the harm?", "answer": answer, "reason": reason}
            )
        },
        made=line,
        human=human,
    )


def _completion(piece: Mapping[str, Any], *, failed: bool = False) -> Completion:
    """A reply. Without one there is nothing to have succeeded with, so that is an error."""
    error = str(piece.get("response_error") or "none")
    reply = text(piece.get("converted_value"), "converted_value")
    if error == "blocked":
        return Completion(text="", stop="blocked", error="blocked by the target's filter")
    if failed or error not in ("none", "empty"):
        return Completion(text=reply, stop="error", error=f"PyRIT: {error if error != 'none' else 'error'}")
    return Completion.read(reply)


def _strategy(row: Mapping[str, Any]) -> str:
    """Name of the attack: PyRIT nests it under the atomic attack's technique."""
    atomic = row.get("atomic_attack_identifier")
    technique = _child(atomic, "attack_technique")
    return _class(_child(technique, "attack") or _child(atomic, "attack") or row.get("attack_identifier"))


def _child(identifier: Any, name: str) -> Any:
    """A child of an identifier; None where there is none."""
    children = identifier.get("children") if isinstance(identifier, Mapping) else None
    return children.get(name) if isinstance(children, Mapping) else None


def _harm(value: Any) -> str:
    """The first of some categories of harm, or the only one."""
    first = value[0] if isinstance(value, list) and value else value
    return text(first, "harm category") if isinstance(first, str) and first else "uncategorised"


def _class(identifier: Any) -> str:
    """The model that an identifier names, else the class; "" where there is none."""
    if not isinstance(identifier, Mapping):
        return ""
    names = (identifier.get(key) for key in ("model_name", "class_name", "__type__"))
    return text(str(next(filter(None, names), "")), "class_name")


def _name(objective: str) -> str:
    """PyRIT gives objectives no names: equal words are the same goal."""
    return f"objective#{digest(objective)[:12]}"
