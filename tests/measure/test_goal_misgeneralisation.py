"""Goal misgeneralisation of players whose policy is known: planted, absent, and without competence."""

from __future__ import annotations

import json
import random

import pytest

from calibrant.core import Chat, Completion, ConfigError, InputError, Quiet, Sampling, resolve
from calibrant.data.goal_probes import GoalProbe, GoalProbes
from calibrant.measure.goal_misgeneralisation import GoalMisgeneralisation, goal_misgeneralisation
from calibrant.models.scripted import ScriptedModel
from calibrant.testbed.scenes import open_goal_probes

DOWN = Completion(text="", stop="error", error="down")
PROBES = open_goal_probes("flint", {"n": "60"})


def player(takes, *, name, probes=PROBES):
    """``takes(probe)``: the option that it takes, any other text, or a Completion."""
    known = {probe.chat.last_user: probe for probe in probes}
    return ScriptedModel(lambda chat: takes(known[chat.last_user]), name=name)


def found(takes, name, *, twin=None, probes=PROBES, **config):
    other = None if twin is None else player(twin, name=f"twin of {name}", probes=probes)
    made = GoalMisgeneralisation(**config)
    return goal_misgeneralisation(player(takes, name=name, probes=probes), probes, other, made, Quiet())


def for_the_goal(probe):
    return probe.goal or probe.options[0]


def for_the_proxy(probe):
    return probe.proxy or probe.goal or probe.options[0]


def test_one_that_goes_for_the_proxy_and_is_competent():
    got = found(for_the_proxy, "proxy", twin=for_the_goal).metrics
    assert got["misgeneralisation"].value == 1.0 and got["misgeneralisation"].low > 0.85
    assert got["misgeneralisation/over_twin"].value == 1.0 and got["misgeneralisation/over_twin"].low > 0.85
    assert got["goal_rate/apart"].value == 0.0 and got["proxy_rate/apart"].value == 1.0
    assert got["goal_drop"].value == 1.0 and got["competence_drop"].value == 0.0
    assert got["agree_rate"].value == got["proxy_rate/proxy_only"].value == 1.0
    assert got["twin_proxy_rate/apart"].value == 0.0 and got["twin_goal_rate/apart"].value == 1.0


def test_one_that_goes_for_the_goal_has_none():
    got = found(for_the_goal, "goal", twin=lambda probe: for_the_goal(probe) + " ").metrics
    for name in ("misgeneralisation", "misgeneralisation/over_twin", "goal_drop", "competence_drop"):
        assert got[name].value == 0.0 and got[name].low <= 0.0 <= got[name].high < 0.13
    assert got["goal_rate/apart"].value == got["goal_rate/goal_only"].value == 1.0


def test_exact_shares_and_that_a_guess_is_no_proxy():
    """Of 60 probes it takes the proxy in 30, the third option in 12, and no option in 6."""
    apart = [probe.id for probe in PROBES if probe.kind == "apart"]

    def takes(probe):
        if probe.kind != "apart":
            return for_the_goal(probe)
        at = apart.index(probe.id)
        third = next(one for one in probe.options if one not in (probe.goal, probe.proxy))
        return probe.proxy if at < 30 else third if at < 42 else "la la" if at < 48 else probe.goal

    got = found(takes, "shares").metrics
    assert got["proxy_rate/apart"].value == 0.5 and got["neither_rate/apart"].value == 0.3
    assert got["misgeneralisation"].value == pytest.approx(0.3)
    assert got["competent_rate/apart"].value == pytest.approx(0.7)
    assert got["competence_drop"].value == pytest.approx(0.3)


def test_one_that_fails_under_shift_does_not_misgeneralise():
    """It can do the task where both agree; with the two apart it takes the third option, or says nothing."""
    for name, takes in (
        ("third", lambda p: next(one for one in p.options if one not in (p.goal, p.proxy))),
        ("babbles", lambda p: "la la"),
    ):
        got = found(lambda p, takes=takes: takes(p) if p.kind == "apart" else for_the_goal(p), name).metrics
        assert got["misgeneralisation"].high < 0.1 and got["competence_drop"].value == 1.0
        assert got["neither_rate/apart"].value == 1.0


@pytest.mark.parametrize(
    "takes", [lambda p: "la la", lambda p: p.options[0], lambda p: p.proxy if p.kind == "apart" else "la la"]
)
def test_without_competence_nothing_is_misgeneralisation(takes):
    """The third goes for the proxy in every probe that sets it apart, and can not do its task."""
    result = found(takes, "incompetent", twin=for_the_goal)
    for name in ("misgeneralisation", "misgeneralisation/over_twin"):
        assert result.metrics[name].value is None and result.metrics[name].n == 60
        assert "competence is not shown" in result.metrics[name].reason
    assert any("competence is not shown" in note for note in result.caveats)
    assert result.metrics["proxy_rate/apart"].value is not None  # as it was read


def test_competence_is_shown_by_the_low_end_and_by_the_twin_too():
    agree = [probe.id for probe in PROBES if probe.kind == "agree"]

    def mostly(probe):
        return "la la" if probe.id in agree[:9] else for_the_proxy(probe)  # .85, with a low end near .73

    assert found(mostly, "mostly").metrics["misgeneralisation"].value is None
    assert found(mostly, "mostly enough", competence=0.6).metrics["misgeneralisation"].value == 1.0
    got = found(for_the_proxy, "beside a weak twin", twin=lambda p: "la la").metrics
    assert got["misgeneralisation"].value == 1.0
    assert "the twin" in got["misgeneralisation/over_twin"].reason


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_that_always_takes_the_same_place_is_exactly_at_the_null(place):
    """Probes deal the places evenly: 60 are ten of each of the six pairs of places."""

    def takes(probe):
        return probe.goal if probe.kind == "agree" else probe.options[place]

    got = found(takes, f"place {place}").metrics
    assert got["place_null"].value == got["misgeneralisation"].value == 0.0
    assert got["misgeneralisation"].low < 0.0 < got["misgeneralisation"].high
    first, last = got["first_over_chance/neither"], got["last_over_chance/neither"]
    assert first.value == pytest.approx(2 / 3 if place == 0 else -1 / 3)
    assert last.value == pytest.approx(2 / 3 if place == 2 else -1 / 3)
    assert got["first_over_chance/apart"].value == first.value


def test_places_that_go_with_the_proxy_are_said():
    """Where the proxy always stands first, one who takes the first option looks as if it followed it."""

    def turned(probe):
        others = [one for one in probe.options if one != probe.proxy]
        return probe.model_copy(update={"options": (probe.proxy, *others)})

    rows = [turned(probe) if probe.kind == "apart" else probe for probe in PROBES]
    uneven = GoalProbes(rows=tuple(rows))
    result = found(lambda p: p.goal if p.kind == "agree" else p.options[0], "first", probes=uneven)
    assert result.metrics["place_null"].value == 1.0
    assert any("always takes one place would reach 1.000" in note for note in result.caveats)


def test_guesses_are_no_misgeneralisation_over_the_seeds():
    """It knows the option of both, and guesses where they are apart.

    60 guesses of three have a mean of 0 and a standard error of .105; an interval at 95 % leaves 0 out in 5
    of 100, so 3 or fewer of 20 in all but 1.6 %. The mean of 20 has one of .024: .1 is four of them.
    """
    values, out = [], 0
    for seed in range(20):
        rng = random.Random(seed)
        got = found(lambda p, rng=rng: p.goal if p.kind == "agree" else rng.choice(p.options), f"{seed}")
        gap = got.metrics["misgeneralisation"]
        values.append(gap.value)
        out += not gap.low <= 0.0 <= gap.high
    assert abs(sum(values) / 20) < 0.1 and out <= 3


def test_what_failed_is_missing_and_stands_at_its_worst():
    lost = [probe.id for probe in PROBES if probe.kind == "apart"][:30]
    got = found(lambda p: DOWN if p.id in lost else for_the_goal(p), "lost").metrics
    gap = got["misgeneralisation"]
    assert gap.missing == 30 and gap.value is None and gap.low <= -0.4 and gap.high >= 0.5
    assert got["proxy_rate/apart"].missing == 30 and got["proxy_rate/apart"].high > 0.5
    agree = [probe.id for probe in PROBES if probe.kind == "agree"][:30]
    unsure = found(lambda p: DOWN if p.id in agree else for_the_proxy(p), "unsure").metrics
    assert unsure["misgeneralisation"].value is None  # 30 failures are no competence
    with pytest.raises(InputError, match="none of 300 questions got a reply"):
        found(lambda p: DOWN, "down")


def test_clusters_widen_the_interval():
    apart = [probe.id for probe in PROBES if probe.kind == "apart"]

    def takes(probe):
        if probe.kind != "apart":
            return for_the_goal(probe)
        return probe.proxy if apart.index(probe.id) < 30 else probe.goal

    def grouped(size):
        rows = [
            probe.model_copy(update={"cluster": f"{probe.kind}{at // size}"})
            for at, probe in enumerate(PROBES)
        ]
        got = found(takes, f"groups of {size}", probes=GoalProbes(rows=tuple(rows)))
        return got.metrics["misgeneralisation"]

    own, shared = grouped(1), grouped(10)
    assert own.value == shared.value == 0.5
    assert shared.high - shared.low > 1.5 * (own.high - own.low)


def test_a_whole_sentence_may_hold_the_option_and_two_options_are_unread():
    rows = [probe.model_copy(update={"match": "contains", "options": probe.options}) for probe in PROBES]
    probes = GoalProbes(rows=tuple(rows))
    said = found(lambda p: f"well, {for_the_proxy(p)} i think", "wordy", probes=probes).metrics
    assert said["misgeneralisation"].value == 1.0
    both = found(
        lambda p: " or ".join(p.options[:2]) if p.kind == "apart" else for_the_goal(p), "both", probes=probes
    ).metrics
    assert both["misgeneralisation"].value is None and both["misgeneralisation"].missing == 60


def test_choices_are_kept(tmp_path):
    model = player(for_the_proxy, name="kept")
    result = goal_misgeneralisation(model, PROBES, run=Quiet(work=tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "artifacts" / "choices.jsonl").read_text().splitlines()]
    assert len(rows) == len(result.choices) == 300
    took = {(row["kind"], row["took"]) for row in rows}
    assert {("agree", "both"), ("apart", "proxy"), ("goal_only", "goal"), ("neither", "other")} <= took
    assert any("no twin was asked" in note for note in result.caveats)
    assert result.figure_data()[0].values[0].label == "together: their option"


def probe(name="a", goal="x", proxy="y", options=("x", "y", "z")):
    return GoalProbe(id=name, chat=Chat.ask(f"{name}?"), options=options, goal=goal, proxy=proxy)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no probe sets goal and proxy apart"),
        ([probe("a")], "no probe on which goal and proxy agree"),
        ([probe("a", proxy="x")], "no probe sets goal and proxy apart"),
        ([probe("a", options=("x", "y")), probe("b", proxy="x")], "has no third option"),
        ([probe("a"), probe("a", proxy="x")], "share the id"),
        ([probe("a"), probe("b", proxy="x").model_copy(update={"chat": Chat.ask("A?")})], "ask the same"),
    ],
)
def test_probes_that_can_not_tell_are_refused_before_anything_is_asked(rows, says):
    model = ScriptedModel(["x"] * 9)
    with pytest.raises(InputError, match=says):
        goal_misgeneralisation(model, GoalProbes(rows=tuple(rows)))
    assert not model.seen


def test_a_twin_that_is_the_model_is_refused():
    model = player(for_the_goal, name="same")
    with pytest.raises(InputError, match="the very model that is measured"):
        goal_misgeneralisation(model, PROBES, model)
    assert not model.seen


@pytest.mark.parametrize("config", [{"competence": 0.0}, {"competence": 1.0}, {"competent": 0.5}])
def test_settings_that_make_no_sense(config):
    with pytest.raises(ConfigError):
        resolve(GoalMisgeneralisation, config)


def test_the_same_run_gives_the_same_numbers():
    once, again = (
        found(for_the_proxy, "same", twin=for_the_goal, sampling=Sampling(temperature=1.0)).metrics
        for _ in range(2)
    )
    assert once == again


@pytest.mark.parametrize("chat", [Chat(messages=()), Chat.ask("q").then("assistant", "hm")])
def test_a_chat_that_asks_nothing_is_refused_by_name(chat):
    odd = PROBES.rows[0].model_copy(update={"id": "odd", "chat": chat})
    model = ScriptedModel(lambda chat: "x", name="unasked")
    with pytest.raises(InputError, match="'odd' does not end with a question"):
        goal_misgeneralisation(model, GoalProbes(rows=(*PROBES.rows, odd)))
    assert not model.seen
