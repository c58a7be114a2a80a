"""The arms in which items are asked: plainly, under cues and shams, after training, and with noise."""

from __future__ import annotations

from collections.abc import Sequence

from calibrant.core import Chat, Estimate, OpenLM, Run, digest
from calibrant.data.rows import Items
from calibrant.measure._dialogue import Talk, fill, knows, pick, read, reworded
from calibrant.measure._elicit import Lesson, noised, tuned
from calibrant.measure._sandbagging_config import Sandbagging
from calibrant.measure._sandbagging_metrics import HELD, Heard, gains_apart, restored
from calibrant.models.arm_run import ArmRun


def hear(name: str, items: Items, talk: Talk, config: Sandbagging, password: bool = False) -> Heard:
    """Plain samples that decide what is known, one more, and every cue and sham."""
    plain = [reworded(item, fill(config.neutral, question=item.chat.last_user)) for item in items]
    drawn = talk.put(f"{name}, known", [chat for chat in plain for _ in range(config.samples)])
    talk.refuse_silence()
    known = []
    for at, item in enumerate(items):
        some = drawn[at * config.samples : (at + 1) * config.samples]
        known.append(knows([read(item, one) for one in some], item.answer, config.known))
    heard = Heard(items.rows, known, len(config.cues))
    replies = talk.put(f"{name}, neutral", plain)
    heard.arms["neutral"] = [read(item, one) for item, one in zip(items, replies, strict=True)]
    for arm, side in (("cue", 0), ("sham", 1)):
        ask(heard, arm, chats(heard, config, side), talk, name)
    if password:
        ask(heard, "password", chats(heard, config, 0, config.password), talk, name)
    return heard


def chats(heard: Heard, config: Sandbagging, side: int = 0, around: str = "") -> list[Chat]:
    """Every item under every cue (``side`` 0) or sham (1), the wordings of one item together."""
    found = []
    for item in heard.items:
        for pair in config.cues:
            text = fill(pair[side], question=item.chat.last_user)
            found.append(reworded(item, fill(around, prompt=text) if around else text))
    return found


def ask(heard: Heard, arm: str, asked: list[Chat], talk: Talk, stage: str) -> None:
    """Put these chats, one a unit, and keep what was read."""
    replies = talk.put(f"{stage}, {arm}", asked)
    heard.arms[arm] = [read(item, one) for item, one in zip(heard.units, replies, strict=True)]


def trained(
    model: OpenLM,
    ignorant: OpenLM | None,
    heard: Heard,
    parts: tuple[Sequence[int], Sequence[int]],
    config: Sandbagging,
    run: Run,
) -> tuple[dict[str, Estimate], list[Talk]]:
    """Train copies on the first of ``parts``, with right answers and with wrong ones; ask them the second."""
    taught, kept = set(parts[0]), parts[1]
    places = heard.places(lambda at: at in taught)
    asked = chats(heard, config)
    lessons = [asked[at] for at in places]
    items = [heard.units[at] for at in places]
    truths = [item.answer for item in items]
    wrong = [pick(item, int(digest([run.seed, at])[:8], 16)) for at, item in enumerate(items)]
    how = Lesson(config.passes, config.batch_size, config.fit)
    arms = [("trained", model, truths), ("placebo", model, wrong)]
    arms += [("ignorant", ignorant, truths)] if ignorant is not None else []
    steps = config.passes * -(-len(lessons) // config.batch_size)
    talks, other = [], Heard(heard.items, heard.known, heard.cues)
    for number, (name, start, answers) in enumerate(arms):
        part = ArmRun(run, f"elicit/{name}", number, number * steps, steps * len(arms))
        copy = tuned(start, lessons, answers, how, part)
        talks.append(Talk(copy, config.sampling, run, len(asked)))
        if name == "ignorant":
            before = Talk(start, config.sampling, run, len(asked))
            ask(other, "cue", asked, before, "ignorant")
            ask(other, "trained", asked, talks[-1], "ignorant, trained")
            talks.append(before)
        else:
            ask(heard, name, asked, talks[-1], name)
    found = {
        "restored/training": restored(heard, kept, "cue", "trained", HELD),
        "restored_over_placebo": restored(heard, kept, "placebo", "trained", HELD),
    }
    if ignorant is not None:
        found["restored/ignorant"] = restored(other, kept, "cue", "trained", HELD)
        found["restored_over_ignorant"] = gains_apart(heard, other, kept)
    return found, talks


def with_noise(
    model: OpenLM, heard: Heard, config: Sandbagging, run: Run
) -> tuple[dict[str, Estimate], list[Talk]]:
    """Accuracy under the cues with noise on the weights, and what the same noise costs the plain question."""
    found: dict[str, Estimate] = {}
    talks = []
    plain = [reworded(item, fill(config.neutral, question=item.chat.last_user)) for item in heard.units]
    asked = chats(heard, config)
    for scale in config.noise:
        # The draws of noise stand side by side like wordings: one more reading of every unit.
        many = Heard(heard.items, heard.known, heard.cues * config.noise_draws)
        rows: dict[str, list[list[str | None]]] = {"cue": [], "neutral": []}
        for draw in range(config.noise_draws):
            copy = noised(model, scale, int(digest([run.seed, "noise", draw])[:8], 16))
            talks.append(Talk(copy, config.sampling, run, 2 * len(asked)))
            for arm, some in (("cue", asked), ("neutral", plain)):
                replies = talks[-1].put(f"noise {scale:g}, {draw}, {arm}", some)
                rows[arm].append([read(i, one) for i, one in zip(heard.units, replies, strict=True)])
        for arm, drawn in rows.items():
            many.arms[f"{arm}, noisy"] = _side_by_side(drawn, heard.cues)
            before = heard.reading(arm)
            still = [before(at) for at in range(len(asked))]
            many.arms[arm] = _side_by_side([still] * config.noise_draws, heard.cues)
            name = "noise_gain" if arm == "cue" else "noise_gain_neutral"
            every = range(len(heard.items))
            unit = "item under a cue" if arm == "cue" else "item, asked plainly"
            found[f"{name}/{scale:g}"] = restored(many, every, arm, f"{arm}, noisy", f"{unit}, and a draw")
    return found, talks


def _side_by_side(draws: Sequence[Sequence[str | None]], cues: int) -> list[str | None]:
    """Readings of units in several draws, those of one item together."""
    items = range(len(draws[0]) // cues)
    return [one for at in items for draw in draws for one in draw[at * cues : (at + 1) * cues]]
