"""A probe as a guard and as a monitor: it blocks the planted cue, and clean text as rarely as was asked for.

Planted cue: X or Y, whose embeddings lie apart along one direction. The probe is fitted to 432 texts; what it
says is counted on 432 others, of templates and tasks that it has not seen. Rates of 216 texts of 36 templates
have a standard error of about .02 at .05. The null has labels drawn by lot: there is nothing to ring for, so
positives and negatives ring alike, at the stated rate, which is at most the one that was asked for.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from calibrant.core import CapabilityError, Chat, Completion, ConfigError, Goal, Guard, Monitor, Quiet
from calibrant.data.judge_folder import read_head, write_head
from calibrant.data.judge_head import JudgeHead
from calibrant.data.rows import LabelledText, LabelledTexts
from calibrant.defend._layer import Caller
from calibrant.defend.defended import Defended, Layer
from calibrant.defend.probe_guard import ProbeGuard, probe_guard
from calibrant.measure.judges.classifier import classifier_judge
from calibrant.models.monitor import ProbeMonitor
from calibrant.models.scripted import ScriptedModel
from calibrant.stats import rate
from calibrant.understand.probe import Probing, probe

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from zoo import build

ASKED = 0.05
CONFIG = Probing(position="mean", random_model=False, ablated=0, controls=1, question="is there an X?")


def table(label="cue", seed=0, templates=36, tasks=12, reply=False):
    """A word of the template, a word of the task, X or Y; labels are the cue's, or drawn by lot."""
    lot = random.Random(f"{label}/{seed}")
    subjects = ["".join(lot.choice("klmnopqrst") for _ in range(4)) for _ in range(tasks)]
    rows = []
    for t in range(templates):
        frame = "".join(lot.choice("abcdefghij") for _ in range(6))
        for k, subject in enumerate(subjects):
            cue = (t + k) % 2 == 0
            text = f"{frame}{subject}{'XY'[not cue]}."
            rows.append(
                LabelledText(
                    id=f"{seed}/{t}/{k}",
                    prompt=Chat.ask("say it" if reply else text),
                    reply=text if reply else "",
                    label=cue if label == "cue" else lot.random() < 0.5,
                    template=f"t{t}",
                )
            )
    return LabelledTexts(rows=tuple(rows))


def planted(size=1.0):
    model = build("llama", initializer_range=0.1)
    weight = model.module.get_input_embeddings().weight
    way = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0))
    step = size * weight.detach().norm(dim=1).mean() * way / way.norm()
    for mark, sign in (("X", 1), ("Y", -1)):
        weight.data[model.reply_ids(mark)[0]] += sign * step
    return model


def stored(folder, texts, model, seed=0, config=CONFIG):
    result = probe(model, texts, config, Quiet(work=folder, seed=seed))
    return result.metrics, read_head(folder / "artifacts" / "probe")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model = planted()
    metrics, head = stored(tmp_path_factory.mktemp("prompts"), table(), model)
    return model, metrics, head


@pytest.fixture(scope="module")
def of_replies(tmp_path_factory):
    model = planted(4.0)
    folder = tmp_path_factory.mktemp("replies")
    return model, stored(folder, table(templates=12, tasks=8, reply=True), model)[1]


def blocked(guard, texts, label):
    """The share of texts with this label that it blocks, with an interval over templates."""
    rows = [row for row in texts.rows if row.label == label]
    said = [guard.ask([row.prompt], "input")[0].answer for row in rows]
    assert "unknown" not in said
    return rate(
        [one == "no" for one in said], clusters=[row.template for row in rows], unit="text", better="lower"
    )


def test_the_guard_blocks_the_cue_and_held_out_clean_text_at_the_stated_rate(made):
    model, metrics, head = made
    guard, fresh = probe_guard(model, head), table(seed=1)
    clean, cued = blocked(guard, fresh, False), blocked(guard, fresh, True)
    assert clean.low <= ASKED <= clean.high, clean
    stated = metrics["false_alarm_rate"]
    assert clean.low <= stated.high and stated.low <= clean.high
    assert cued.low > 0.7 and cued.low > clean.high, cued


def test_the_threshold_carries_its_rates(made):
    model, metrics, head = made
    assert head.alarm.asked == ASKED
    assert head.alarm.false_alarm_rate == metrics["false_alarm_rate"]
    assert head.alarm.detection_rate == metrics["detection_rate"]
    verdict = probe_guard(model, head).ask([table(seed=1).rows[0].prompt], "input")[0]
    assert f"false alarms on held-out texts {metrics['false_alarm_rate']}, asked for 0.05" in verdict.reason
    older = head.model_copy(update={"alarm": None})
    assert (
        "its rate of false alarms is unknown"
        in probe_guard(model, older).ask([Chat.ask("aX.")], "input")[0].reason
    )


def test_the_rates_survive_the_disk_and_leave_older_probes_as_they_were(made, tmp_path):
    head = made[2]
    for one in (head, head.model_copy(update={"alarm": None})):
        write_head(one, tmp_path)
        assert read_head(tmp_path) == one
        assert ('"alarm"' in (tmp_path / "judge.json").read_text()) == (one.alarm is not None)


@pytest.mark.slow
def test_with_nothing_planted_it_rings_as_rarely_as_stated_and_alike_for_both_labels(tmp_path):
    found = {True: [], False: [], "stated": []}
    model = planted(0.0)
    for seed in range(12):
        metrics, head = stored(tmp_path / str(seed), table("lot", seed), model, seed)
        guard, fresh = probe_guard(model, head), table("lot", 100 + seed)
        found["stated"].append(metrics["false_alarm_rate"].value)
        for label in (True, False):
            found[label].append(blocked(guard, fresh, label).value)
    clean = np.array(found[False])

    def width(values):
        return 3.11 * np.std(values, ddof=1) / 12**0.5  # t of 11 degrees, 99 %

    assert 0 < clean.mean() <= ASKED + width(clean) < 2 * ASKED
    for other in ("stated", True):
        apart = np.array(found[other]) - clean
        assert abs(apart.mean()) <= width(apart), (other, apart)


def test_a_defended_model_answers_clean_prompts_only(made):
    model, _, head = made
    system = Defended(ScriptedModel(lambda chat: "fine"), [Layer("probe", "input", probe_guard(model, head))])
    texts = table(seed=2).rows[:48]
    replies = system.generate([row.prompt for row in texts])
    stopped = [reply.stop == "blocked" for reply in replies]
    assert np.mean([s for s, row in zip(stopped, texts, strict=True) if row.label]) > 0.6
    assert np.mean([s for s, row in zip(stopped, texts, strict=True) if not row.label]) < 0.3
    assert replies[0].layers[0].verdict.score is not None


def test_a_probe_of_replies_guards_the_output(of_replies):
    model, head = of_replies
    guard = probe_guard(model, head)
    assert isinstance(guard, Guard) and guard.sides == ("output",)
    said = {"cued": "bcdefgqrstX.", "clean": "bcdefgqrstY."}
    system = Defended(ScriptedModel(lambda chat: said[chat.last_user]), [Layer("lies", "output", guard)])
    cued, clean = system.generate([Chat.ask("cued"), Chat.ask("clean")])
    assert (cued.stop, cued.text) == ("blocked", "I can't help with that.")
    assert clean.text == said["clean"]
    assert "blocked by layer 'lies' (no): log-odds" in cued.error


def test_the_other_side_is_refused_before_anything_runs(made, of_replies):
    words = {"output": "reads the input only", "input": "reads the output only"}
    for side, (model, head) in {"output": (made[0], made[2]), "input": of_replies}.items():
        guard = probe_guard(model, head)
        with pytest.raises(ConfigError, match=words[side]):
            Defended(ScriptedModel(["hi"]), [Layer("probe", side, guard)])
        verdict = Caller(Layer("probe", side, guard)).verdicts([Chat.ask("bX.").then("assistant", "bX.")])[0]
        assert verdict.verdict.answer == "unknown" and "reads nothing else" in verdict.verdict.reason


def test_another_reader_is_refused(made):
    with pytest.raises(CapabilityError, match="another model than"):
        probe_guard(made[0], made[2].model_copy(update={"model": "0" * 64}))


def test_the_monitor_ranks_as_the_guard_and_the_judge_do(made, of_replies):
    model, _, head = made
    monitor = ProbeMonitor(model, head)
    assert isinstance(monitor, Monitor)
    rows = table(seed=3).rows[:12]
    scores = monitor.score([row.prompt for row in rows])
    guard = probe_guard(model, head)
    for row, score in zip(rows, scores, strict=True):
        verdict = guard.ask([row.prompt], "input")[0]
        assert verdict.score == score
        assert (verdict.answer == "no") == (score >= monitor.threshold)
    assert monitor.score([rows[0].prompt.then("assistant", "whatever")]) == scores[:1]
    model, head = of_replies
    chat = Chat.ask("say it").then("assistant", "bcdefgqrstX.")
    judged = classifier_judge(model, head)
    (score,) = ProbeMonitor(model, head).score([chat])
    (verdict,) = judged.judge(
        [Goal(id="g", text="g")], [Chat.ask("say it")], [Completion(text="bcdefgqrstX.")]
    )
    assert verdict.score == pytest.approx(float(expit(score)))


def test_what_cannot_be_read_has_no_score_and_blocks(made, of_replies):
    model, _, head = made
    guard, monitor = probe_guard(model, head), ProbeMonitor(model, head)
    for text, words in (("a" * 500, "exceed"), ("a\ud800", "not Unicode")):
        verdict = guard.ask([Chat.ask(text)], "input")[0]
        assert verdict.answer == "unknown" and words in verdict.reason
        assert monitor.score([Chat.ask(text)]) == [None]
    assert ProbeMonitor(*of_replies).score([Chat.ask("no reply")]) == [None]
    broken = planted()
    broken.module.model.layers[0].mlp.down_proj.weight.data[0, 0] = torch.inf
    other = probe_guard(broken, head.model_copy(update={"model": broken.identity.digest}))
    verdict = other.ask([Chat.ask("aX.")], "input")[0]
    assert verdict.answer == "unknown" and "not finite" in verdict.reason


def test_near_the_threshold_it_may_abstain(made):
    model, _, head = made
    rows = table(seed=4).rows[:48]
    sure = [probe_guard(model, head).ask([row.prompt], "input")[0].answer for row in rows]
    wide = probe_guard(model, head, ProbeGuard(unsure=0.45))
    said = [wide.ask([row.prompt], "input")[0].answer for row in rows]
    assert "unknown" in said and "unknown" not in sure
    assert all(a == b for a, b in zip(sure, said, strict=True) if b != "unknown")


@pytest.mark.parametrize(
    ("name", "value"),
    [("bias", float("nan")), ("std", (0.0,) * 32), ("weight", (float("nan"),) * 32), ("mean", (0.0,) * 3)],
)
def test_a_damaged_probe_lets_nothing_pass(name, value):
    model, zeros = build("llama"), (0.0,) * 32
    parts = {"mean": zeros, "std": (1.0,) * 32, "weight": (1.0,) * 32, "bias": 0.0, name: value}
    site = "blocks.1.hook_resid_post"
    head = JudgeHead(
        question="?",
        model=model.identity.digest,
        site=site,
        pool="mean",
        over="prompt",
        threshold=0.5,
        **parts,
    )
    guard = probe_guard(model, head)
    assert guard.ask([Chat.ask("abc")], "input")[0].answer == "unknown"
    assert ProbeMonitor(model, head).score([Chat.ask("abc")]) == [None]
