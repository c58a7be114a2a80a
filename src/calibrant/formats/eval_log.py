"""An Inspect log (.eval) as evidence: the header first, then every sample, and nothing on trust.

A run that did not succeed, a file cut short and a member that fails its checksum are refused by name. A log
whose status is 'success' may hold samples that ended in an error, and Inspect's own metrics leave them out
(inspect_ai#4412: of two samples one failed, and the accuracy was 1.0); here each stays, as one that is lost.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ijson.common import JSONError
from inspect_ai.log import EvalLog, EvalSample, read_eval_log
from pydantic import ValidationError

from calibrant.core import InputError, digest
from calibrant.core.digest import plain
from calibrant.formats.evidence import ABSENT, EvalEvidence, ScoredSample

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, 93)
"""How Inspect packs members: 93 is Zstandard, which Python's own zipfile cannot read before 3.14."""
_LARGEST = 2**30
"""Bytes of one member, unpacked."""
_UNREAD = {"events", "events_data", "timelines", "attachments", "messages", "output", "store"}
_WORDS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
"""Inspect's own reading of values that are words."""
_ZSTD = importlib.import_module("zstandard" if sys.version_info < (3, 14) else "compression.zstd").ZstdError
_BROKEN = (
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    _ZSTD,
    JSONError,
)
_AGAIN = "was it written and fetched to the end? Fetch it again, or run the evaluation again"


def read_eval(path: Path) -> EvalEvidence:
    """Read a finished log.

    Raises:
        InputError: it is missing, no log, cut short or damaged; its run did not finish, failed or was
            cancelled; it holds no samples, one twice, or none that was scored.
    """
    _check_zip(path)
    try:
        head = read_eval_log(str(path), header_only=True)
        _check_status(path, head)
        log = read_eval_log(str(path), exclude_fields=_UNREAD)
    except (*_BROKEN, ValidationError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as an Inspect log: {_brief(error)}", hint=_AGAIN) from error
    samples = log.samples or []
    if not samples:
        raise InputError(
            f"{path} holds no samples", hint="was it run with --no-log-samples? Run it again without that"
        )
    return _evidence(path, head, samples)


def _evidence(path: Path, head: EvalLog, samples: list[EvalSample]) -> EvalEvidence:
    rows = [_row(sample) for sample in samples]
    twice = [key for key, n in Counter((row.id, row.epoch) for row in rows).items() if n > 1]
    if twice:
        raise _repeated(path, f"{twice[0][0]}, epoch {twice[0][1]}")
    if not any(row.values or row.odd for row in rows if not row.lost):
        why = next((row.error for row in rows if row.error), "no scorer gave a value")
        raise InputError(
            f"{path}: none of {len(rows)} samples has a score, though the run's status is 'success'; "
            f"the first: {why[:200]}",
            hint="mend what failed and run the evaluation again",
        )
    absent = _absent(head, rows)
    spec = head.eval
    about = spec.metadata or {}
    model = str(about.get("target") or spec.model) if spec.model == "none/none" else spec.model
    every = (*rows, *absent)
    return EvalEvidence(
        source=str(path),
        sha256=_sha256(path),
        eval_id=spec.eval_id,
        task=spec.task,
        task_version=str(spec.task_version),
        model=model,
        created=str(spec.created),
        inspect=str(spec.packages.get("inspect_ai", "")),
        revision=str(getattr(spec.revision, "commit", "") or ""),
        dataset=str(spec.dataset.name or ""),
        fingerprint=_fingerprint(samples),
        planned=len(every),
        samples=every,
        caveats=tuple(_caveats(every, len(absent))),
    )


def _check_zip(path: Path) -> None:
    """Every member can be unpacked and has its checksum."""
    try:
        with zipfile.ZipFile(path) as packed:
            twice = [
                one for one, n in Counter(packed.namelist()).items() if n > 1 and one.startswith("samples/")
            ]
            if twice:
                raise _repeated(path, twice[0])
            for member in packed.infolist():
                if member.compress_type not in _METHODS:
                    raise InputError(
                        f"{path}: '{member.filename}' is packed by method {member.compress_type}, which no "
                        "Inspect log uses",
                        hint="write the log again with `inspect log convert`",
                    )
                if member.file_size > _LARGEST:
                    raise InputError(
                        f"{path}: '{member.filename}' unpacks to {member.file_size:,} bytes",
                        hint="leave out what makes a sample so large, such as its store",
                    )
            bad = packed.testzip()
    except FileNotFoundError as error:
        raise InputError(f"there is no log at {path}", hint="check its name") from error
    except _BROKEN as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no whole Inspect log: {_brief(error)}", hint=_AGAIN) from error
    if bad is not None:
        raise InputError(f"{path} is damaged: '{bad}' fails its checksum", hint=_AGAIN)


def _repeated(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} holds a sample twice: {what}",
        hint="ids of a dataset must differ, also as text: 1 and '1' are the same id",
    )


def _check_status(path: Path, head: EvalLog) -> None:
    if head.status == "success":
        return
    said = {
        "started": "was never finished (status 'started'): its samples are those that came first",
        "error": f"failed (status 'error'): {head.error.message[:200] if head.error else 'no reason given'}",
        "cancelled": "was cancelled (status 'cancelled'): its samples are those that came first",
    }.get(str(head.status), f"has the status '{head.status}'")
    raise InputError(
        f"{path}: the run {said}", hint="`inspect eval-retry` finishes it; a part of a run is no evidence"
    )


def _row(sample: EvalSample) -> ScoredSample:
    values: dict[str, float] = {}
    unscored: dict[str, str] = {}
    odd: dict[str, str] = {}
    scores = sample.scores or {}
    for name, score in scores.items():
        for part, value in _parts(name, score.value):
            if part in {*values, *odd, *unscored}:
                raise InputError(
                    f"sample {sample.id}: two scores are called '{part}'",
                    hint="rename a scorer, or a key of its dictionary",
                )
            number = _number(value)
            if number is None:
                odd[part] = str(value)[:60]
            elif math.isfinite(number):
                values[part] = number
            else:
                unscored[part] = str(score.reason or "no reason given")
    return ScoredSample(
        id=str(sample.id),
        epoch=sample.epoch,
        values=values,
        unscored=unscored,
        odd=odd,
        edited=tuple(sorted(name for name, score in scores.items() if score.history)),
        error="" if sample.error is None else (sample.error.message[:500] or "no reason given"),
        limit="" if sample.limit is None else str(sample.limit.type),
        invalidated=sample.invalidation is not None,
        metadata={k: v for k, v in sample.metadata.items() if isinstance(v, (str, int, float, bool))},
    )


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A score, or each part of one that is a dictionary."""
    if isinstance(value, Mapping):
        yield from ((f"{name}/{key}", part) for key, part in value.items())
    else:
        yield name, value


def _number(value: Any) -> float | None:
    """A value as a number, NaN where it is unscored; None where it is no number."""
    if value is None:
        return math.nan
    if isinstance(value, (bool, int, float)):
        return float(value)
    if isinstance(value, str):
        known = _WORDS.get(value, _WORDS.get(value.lower()) if len(value) > 1 else None)
        if known is not None:
            return known
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _absent(head: EvalLog, rows: list[ScoredSample]) -> tuple[ScoredSample, ...]:
    """The planned samples that the log does not hold."""
    epochs = range(1, (head.eval.config.epochs or 1) + 1)
    wanted = [(str(one), epoch) for epoch in epochs for one in head.eval.dataset.sample_ids or ()]
    held = {(row.id, row.epoch) for row in rows}
    lost = [key for key in wanted if key not in held]
    total = max(head.results.total_samples if head.results else 0, len(wanted))
    lost += [(f"sample {number} of the plan", 1) for number in range(len(rows) + len(lost), total)]
    return tuple(ScoredSample(id=one, epoch=epoch, error=ABSENT) for one, epoch in lost)


def _fingerprint(samples: list[EvalSample]) -> str:
    """Of the questions, whatever their order and however often each was asked."""
    asked = {
        str(one.id): digest(
            [one.model_dump(mode="json", include={"input", "target", "choices"}), type(one.id).__name__]
        )
        for one in samples
    }
    return digest(plain(sorted(asked.items())))


def _caveats(rows: tuple[ScoredSample, ...], absent: int) -> Iterator[str]:
    n = len(rows)
    errors = sum(bool(row.error) for row in rows) - absent
    limits = Counter(row.limit for row in rows if row.limit)
    if errors:
        yield f"{errors} of {n} samples ended in an error: no score of theirs counts, and each is missing"
    if absent:
        yield f"{absent} of {n} planned samples are not in the log: each is missing"
    if limits:
        told = ", ".join(f"{name} {count}" for name, count in sorted(limits.items()))
        halted = sum(limits.values())
        yield f"{halted} of {n} samples were halted by a limit ({told}), and count as they were scored"
    edited = sum(bool(row.edited) for row in rows)
    if edited:
        yield f"scores of {edited} of {n} samples were edited after the scorer gave them; the edits count"
    invalid = sum(row.invalidated for row in rows)
    if invalid:
        yield f"{invalid} of {n} samples were declared invalid: each is missing"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
