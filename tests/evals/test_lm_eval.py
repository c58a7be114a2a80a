"""lm-eval's questions get our numbers, token for token, however they are batched."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import types
from pathlib import Path

import pytest

import calibrant
from calibrant.core import Chat, ConfigError, InputError, Sampling
from calibrant.evals import lm_eval as module
from calibrant.evals.lm_eval import backend, command_line, main, sampling_of
from calibrant.evals.text_scores import Scorer
from calibrant.models.open_model import OpenModel


@pytest.fixture(scope="module")
def model():
    return OpenModel.from_folder(Path(calibrant.__file__).parent / "testbed" / "weights" / "tiny")


def rows(model, count=12):
    """Prompts with replies of very different length, as ids, with the end token."""
    rng = random.Random(0)
    chats = [Chat.ask(f"what is {n} plus {rng.randrange(10)}?" * (1 + n % 3)) for n in range(count)]
    replies = [" ".join(["the wug eats snails."] * (1 + n % 5)) for n in range(count)]
    end = model.chat_tokens.end_id
    pairs = [(model.prompt_ids(c), [*model.reply_ids(r), end]) for c, r in zip(chats, replies, strict=True)]
    return chats, replies, pairs


def test_likelihoods_are_ours_token_for_token(model):
    chats, replies, pairs = rows(model)
    own = model.logprobs(chats, replies)
    found = Scorer(model).likelihoods(pairs)
    for one, other in zip(found, own, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert one.total == pytest.approx(other.total, abs=1e-4)


def test_the_batch_changes_nothing(model):
    _, _, pairs = rows(model)
    together = Scorer(model).likelihoods(pairs)
    alone = [Scorer(model).likelihoods([pair])[0] for pair in pairs]
    backwards = Scorer(model).likelihoods(pairs[::-1])[::-1]
    for one, other, third in zip(together, alone, backwards, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert one.logprobs == pytest.approx(third.logprobs, abs=1e-5)
        assert one.greedy == other.greedy == third.greedy


def test_greedy_is_what_the_model_would_say(model):
    chats, _, _ = rows(model, 4)
    said = model.generate(chats, Sampling(max_tokens=6))
    pairs = [(model.prompt_ids(chat), list(one.ids)) for chat, one in zip(chats, said, strict=True)]
    assert all(one.greedy for one in Scorer(model).likelihoods(pairs))
    wrong = [(context, [(reply[0] + 1) % len(model.tokenizer), *reply[1:]]) for context, reply in pairs]
    assert not any(one.greedy for one in Scorer(model).likelihoods(wrong))


def test_what_has_no_room_is_refused_and_not_cut(model):
    with pytest.raises(InputError, match=r"request 1 has .* tokens, but the model's context holds"):
        Scorer(model).likelihoods([([5], [6]), ([5] * model.max_length, [6, 7])])
    assert Scorer(model).likelihoods([([5] * model.max_length, [6])])[0].total < 0


def test_continuations_end_at_the_first_stop(model):
    scorer = Scorer(model)
    ids = model.prompt_ids(Chat.ask("what is 2 plus 2?"))
    whole, again = scorer.continuations(
        [(ids, Sampling(max_tokens=8), ()), (ids, Sampling(max_tokens=8), ())]
    )
    assert whole == again == model.generate([Chat.ask("what is 2 plus 2?")], Sampling(max_tokens=8))[0].text
    middle = whole[len(whole) // 2]
    (cut,) = scorer.continuations([(ids, Sampling(max_tokens=8), (middle, "never"))])
    assert cut == whole[: whole.index(middle)]
    assert scorer.first_prompt == tuple(ids)


def test_repeats_draw_anew_and_a_run_repeats(model):
    ids = model.prompt_ids(Chat.ask("what is 2 plus 2?"))
    hot = Sampling(max_tokens=8, temperature=1.5)
    runs = [Scorer(model).continuations([(ids, hot, ())] * 6) for _ in range(2)]
    assert runs[0] == runs[1] and len(set(runs[0])) > 1


def test_settings_are_heeded_or_refused():
    sampling, stops = sampling_of({"until": "\n", "max_gen_toks": 7, "do_sample": True, "temperature": 0.5})
    assert (sampling.max_tokens, sampling.temperature, stops) == (7, 0.5, ("\n",))
    assert sampling_of({"until": ["a", "b"], "temperature": 0.5})[0].temperature == 0.0
    with pytest.raises(ConfigError, match="'num_beams' is not heeded"):
        sampling_of({"num_beams": 4})


def test_the_line_is_lm_evals_own():
    assert command_line(["--tasks", "x"]) == ["run", "--model", "calibrant", "--tasks", "x"]
    assert command_line(["run", "--tasks", "run"]) == ["run", "--model", "calibrant", "--tasks", "run"]
    assert command_line(["--model", "hf", "--tasks", "x"]) == ["run", "--model", "hf", "--tasks", "x"]
    assert command_line(["ls", "tasks"]) == ["ls", "tasks"]


def test_without_lm_eval_the_remedy_is_told(model, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="lm-eval is not installed") as told:
        main(["--tasks", "x"], lambda reference: model)
    assert "pip install lm-eval" in told.value.hint


def test_importing_it_needs_neither_lm_eval_nor_the_app():
    code = (
        "import sys, calibrant.evals.lm_eval; "
        "print([m for m in sys.modules if m == 'lm_eval' or m.startswith('calibrant.app')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def lm(model, monkeypatch):
    """The backend over a stand-in for lm-eval's two modules, with its documented behaviour."""

    class TemplateLM:
        def __init__(self):
            self.ready = True

    def get_rolling_token_windows(token_list, prefix_token, max_seq_len, context_len):
        yield [prefix_token, *token_list[:-1]], list(token_list)

    def make_disjoint_window(pair):
        return pair[0][: len(pair[0]) - len(pair[1]) + 1], pair[1]

    stand_ins = {
        "lm_eval.api.model": types.SimpleNamespace(TemplateLM=TemplateLM),
        "lm_eval.utils": types.SimpleNamespace(
            get_rolling_token_windows=get_rolling_token_windows, make_disjoint_window=make_disjoint_window
        ),
    }
    monkeypatch.setattr(module, "_lm_eval", stand_ins.__getitem__)
    return backend(lambda reference: model)(pretrained="anything", batch_size=1, device="cpu")


def test_the_backend_answers_lm_evals_requests(lm, model):
    _, _, pairs = rows(model, 3)
    own = Scorer(model).likelihoods(pairs)
    told = lm._loglikelihood_tokens([(("", ""), *pair) for pair in pairs])
    assert told == [(pytest.approx(one.total), one.greedy) for one in own]
    text = "the wug eats snails."
    (rolled,) = lm.loglikelihood_rolling([types.SimpleNamespace(args=(text,))])
    ids = lm.tok_encode(text, add_special_tokens=False)
    assert rolled == pytest.approx(Scorer(model).likelihoods([([lm.prefix_token_id], ids)])[0].total)
    assert rolled < 0 and math.isfinite(rolled)
    request = types.SimpleNamespace(args=("what is 2 plus 2?", {"until": [], "max_gen_toks": 4}))
    assert isinstance(lm.generate_until([request])[0], str)
    info = lm.get_model_info()
    assert info["calibrant_identity"] == model.identity.digest and info["first_prompt_ids"] == pairs[0][0]


def test_the_backend_takes_no_other_argument(lm):
    with pytest.raises(ConfigError, match="no model argument 'dtype'"):
        type(lm)(pretrained="anything", dtype="float16")
