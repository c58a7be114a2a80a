"""Guards by rule in one process: defend.pattern_guard against the scanners of LLM Guard 0.3.16.

LLM Guard has ended (its last release is of 2025), so these rows are history: what a user of it knew. Fifty
make-believe rules, texts of .2, 2 and 20 kB; half of them hold letters with accents, and one in ten breaks a
rule, at a random place. Every verdict of every round must be the same. Four ways:

- *patterns*: the same regular expressions, ours at its default (also decoded, folded, letter by letter);
- *patterns as written*: the same without decodings (``views = ()``), which is nearer to what the peer reads;
- *words*: ``words`` against ``BanSubstrings`` with whole words;
- *stack*: words and patterns in one guard against ``scan_prompt`` of Regex, BanSubstrings and InvisibleText;
  here also words with invisible characters inside.

The peer is told to log errors only: its default writes a line for each scan. CPU seconds, one pinned core,
in turn; peak memory is that of the process, with what each side's package imports.
"""

from __future__ import annotations

import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _race import Row, finish, is_quick, say
from _train_peer import Worker, core, in_turn, peer_python, peer_version, versus

PEER = "llm_guard"
WAYS = ("patterns", "patterns as written", "words", "stack")
SIZES = {200: 1500, 2_000: 300, 20_000: 40}
"""Characters of a text -> texts a round."""
RULES, WARM, ROUNDS = 50, 1, 8
_LETTERS = "bcdfghjklmnprstvz"


def word(rng: random.Random) -> str:
    """A make-believe word."""
    return "".join(rng.choice(_LETTERS) + rng.choice("aeiou") for _ in range(rng.randint(2, 4)))


def job_of(way: str, size: int, quick: bool) -> dict[str, Any]:
    """Rules, and texts that break one or none."""
    rng = random.Random(f"{way} {size}")
    rules = sorted({word(rng) + "zorble" for _ in range(RULES)})
    texts = []
    for at in range(SIZES[size] // (4 if quick else 1)):
        words: list[str] = []
        while sum(map(len, words)) + len(words) < size:
            words.append(word(rng).replace("e", "é" if at % 2 else "e"))
        if at % 10 == 0:
            planted = rng.choice(rules)
            if way == "stack" and at % 20 == 0:
                planted = "\u200b".join(planted)
            words[rng.randrange(len(words))] = planted
        texts.append(" ".join(words))
    broken = [int(at % 10 != 0) for at in range(len(texts))]
    return {"way": way, "rules": rules, "texts": texts, "verdicts": broken}


def race(way: str, size: int, folder: Path, quick: bool) -> Row:
    """Both in turn, all texts a round."""
    rounds = 2 if quick else ROUNDS
    job = job_of(way, size, quick) | {"core": None if quick else core(), "rounds": WARM + rounds}
    name = f"defend.pattern_guard, {way}, {RULES} rules, {size / 1000:g} kB, against LLM Guard"
    say(name)
    with ExitStack() as stack:
        ours = Worker(Path(sys.executable), "_worker_rules.py", job, folder / "ours")
        peer = Worker(peer_python(PEER), "_worker_llm_guard.py", job, folder / "peer")
        workers = [stack.enter_context(side) for side in (ours, peer)]
        mine, theirs = in_turn([[side.next()] for side in workers], workers, rounds)
    for one in (*mine, *theirs):
        assert one["losses"] == [job["verdicts"]], f"{name}: verdicts differ"
    row = versus(name, mine, theirs, WARM + rounds, 1.0)
    return row._replace(versions=row.versions | {"llm-guard": peer_version(PEER, "llm-guard")})


def main() -> None:
    """Race every way at every size; the quick run takes one size."""
    quick = is_quick(__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        races = [(way, size) for way in WAYS for size in ([2_000] if quick else SIZES)]
        finish([race(way, size, Path(temporary) / f"{way} {size}", quick) for way, size in races])


if __name__ == "__main__":
    main()
