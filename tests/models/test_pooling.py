"""Scores beside transformers' own AutoModelForSequenceClassification, in folders of others and in ours."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from calibrant.core import Chat, InputError
from calibrant.models.classifier import Classifier
from calibrant.models.loading import save_weights
from calibrant.models.open_model import OpenModel
from calibrant.models.reward_folder import RewardCard, reward_identity
from calibrant.models.reward_model import RewardModel, open_reward

MORE = ("qwen2", "mistral", "gpt2", "gpt_neox")
FAMILIES = ("llama", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE))
PADS = [
    pytest.param(1, id="pad is eos"), pytest.param(2, id="pad ends a turn", marks=pytest.mark.slow),
    pytest.param(3, id="another pad"), pytest.param(None, id="no pad", marks=pytest.mark.slow),
]  # fmt: skip
ABSOLUTE = ("gpt2",)
"""Places of left-padded rows are counted from the padding on, in transformers itself."""
CHATS = [Chat.ask("The cat sat on the mat"), Chat.ask("One"), Chat.ask("the sky is")]
REPLIES = ["the dog sat", "", "blue today, and then again"]
LINED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""A template that puts a newline behind the end token, as ChatML does."""


def theirs(folder, rows, side):
    """What transformers says of rows of ids, padded on a side as the tokenizer says; one by one if None."""
    module = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    pad = AutoTokenizer.from_pretrained(folder).pad_token_id
    with torch.no_grad():
        if side is None:
            return [float(module(torch.tensor([row])).logits[0, 0]) for row in rows]
        width = max(map(len, rows))
        gaps = [[pad] * (width - len(row)) for row in rows]
        ids = [g + r if side == "left" else r + g for r, g in zip(rows, gaps, strict=True)]
        seen = [[0] * len(g) + [1] * len(r) for r, g in zip(rows, gaps, strict=True)]
        mask = torch.tensor([s if side == "left" else s[::-1] for s in seen])
        return module(torch.tensor(ids), attention_mask=mask).logits[:, 0].tolist()


def sides(family, pad):
    return [
        None,
        *(["right"] if pad is not None else []),
        *(["left"] if pad is not None and family not in ABSOLUTE else []),
    ]


def written(lm, template):
    """Ids as transformers' own pipeline makes them: the template's rendering, or prompt, reply and end."""
    if template is None:
        return [
            lm.prompt_ids(c) + lm.reply_ids(r) + [lm.chat_tokens.end_id]
            for c, r in zip(CHATS, REPLIES, strict=True)
        ]
    turns = [
        [{"role": "user", "content": c.last_user}, {"role": "assistant", "content": r}]
        for c, r in zip(CHATS, REPLIES, strict=True)
    ]
    return [lm.tokenizer.apply_chat_template(t, tokenize=True, return_dict=False) for t in turns]


@pytest.mark.parametrize("template", [LINED, None], ids=["template", "plain"])
@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_others_is_read_where_transformers_reads(tiny, tmp_path, family, pad, template):
    """Without reward.json: pad == eos, what the template writes behind the end token, either side padded."""
    lm = tiny(family, template, pad_token_id=pad, eos_token_id=[1, 2] if template else 1, num_labels=1)
    lm.tokenizer.pad_token = None if pad is None else lm.tokenizer.convert_ids_to_tokens(pad)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(AutoModelForSequenceClassification.from_config(lm.module.config), tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    made = open_reward(tmp_path)
    assert made.identity.digest == reward_identity(tmp_path).digest
    ours = made.score(CHATS, REPLIES).mean
    for side in sides(family, pad):
        assert ours == pytest.approx(theirs(tmp_path, written(lm, template), side), abs=2e-4), side


@pytest.mark.parametrize("template", [LINED.replace("\n", ""), None], ids=["template", "plain"])
@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_ours_is_read_by_transformers_where_we_read(tiny, tmp_path, family, pad, template):
    lm = tiny(family, template, pad_token_id=pad)
    lm.tokenizer.pad_token = None if pad is None else lm.tokenizer.convert_ids_to_tokens(pad)
    if template:
        lm.module.generation_config.eos_token_id = [1, 2]
        lm = OpenModel.from_module(lm.module, lm.tokenizer, family)
    made = Classifier.from_lm(lm, seed=1)
    card = RewardCard(kind="single", members=1, end_id=made.chat_tokens.end_id)
    RewardModel(made).save(tmp_path, card)
    opened = open_reward(tmp_path)
    ours = opened.score(CHATS, REPLIES).mean
    assert ours == pytest.approx(RewardModel(made).score(CHATS, REPLIES).mean, abs=1e-5)
    rows = [p + r for p, r in zip(*made.ids(CHATS, REPLIES), strict=True)]
    kept = AutoTokenizer.from_pretrained(tmp_path)
    assert made.module.config.pad_token_id != made.chat_tokens.end_id != kept.pad_token_id
    for side in sides(family, kept.pad_token_id):
        assert ours == pytest.approx(theirs(tmp_path, rows, side), abs=2e-4), side
    assert lm.tokenizer.pad_token_id == pad  # the model that came in is as it was


def test_a_row_of_padding_alone_is_refused(tiny, tmp_path):
    lm = tiny("llama", pad_token_id=1, num_labels=1)
    save_weights(AutoModelForSequenceClassification.from_config(lm.module.config), tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="one token, and padding"):
        open_reward(tmp_path).score([Chat.ask("")], [""])
