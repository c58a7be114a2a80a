"""OpenModel: encoding, scoring, identity, folders, and the published sample of real weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from calibrant.core import Chat, InputError, NumericalError, OpenLM, Sampling
from calibrant.models.chat_tokens import ChatTokens
from calibrant.models.folder import folder_identity
from calibrant.models.open_model import OpenModel

Build = Callable[..., OpenModel]
TURNS = Chat.ask("The cat", system="a").then("assistant", "sat").then("user", "on")
CHATS = [Chat.ask("The cat"), Chat.ask(""), TURNS, Chat.ask("One two three four five")]
REPLIES = ["sat on the mat.", " and then again", "", "six seven eight"]


def test_it_is_an_open_lm(lm: OpenModel) -> None:
    assert isinstance(lm, OpenLM)
    assert not lm.module.training
    assert not any(p.requires_grad for p in lm.module.parameters())


def test_encode_row_by_row(tiny: Build) -> None:
    """BOS 0, then prompt, reply and end token 1; right-padded; the reply mask covers reply and end."""
    lm = tiny()
    batch = lm.encode([Chat.ask("a"), Chat.ask("")], ["a", "aa"])
    a = lm.tokenizer("a", add_special_tokens=False)["input_ids"][0]
    assert batch.ids.tolist() == [[0, a, a, 1], [0, a, a, 1]]
    assert batch.reply.tolist() == [[False, False, True, True], [False, True, True, True]]
    shorter = lm.encode([Chat.ask("a"), Chat.ask("")])
    assert shorter.ids[0].tolist() == [0, a]
    assert shorter.mask.tolist() == [[True, True], [True, False]]
    assert not shorter.reply.any()


def test_ids_never_merge_across_the_boundary(tiny: Build) -> None:
    """'at' in one text is one token; as 'a' + 't' it stays two, and the reply owns exactly its own."""
    lm = tiny()
    whole, prompt, reply = lm.prompt_ids(Chat.ask("at")), lm.prompt_ids(Chat.ask("a")), lm.reply_ids("t")
    assert lm.encode([Chat.ask("a")], ["t"]).ids[0].tolist() == [*prompt, *reply, 1]
    assert len(whole) < len(prompt) + len(reply)


def test_plain_format(tiny: Build) -> None:
    lm = tiny()
    assert lm.chat_tokens.prompt_text(Chat.ask("The cat")) == "The cat"
    text = "System:\na\nUser:\nThe cat\nAssistant:\nsat\nUser:\non\nAssistant:\n"
    assert lm.chat_tokens.prompt_text(TURNS) == text
    assert lm.prompt_ids(Chat.ask("")) == [0]


def test_never_two_bos(tiny: Build, chatml: str) -> None:
    assert tiny().prompt_ids(Chat.ask("<s>The cat")).count(0) == 1
    with_bos = tiny(template="{{ bos_token }}" + chatml)
    assert with_bos.prompt_ids(Chat.ask("The cat")).count(0) == 1
    assert 0 not in tiny(template=chatml).prompt_ids(Chat.ask("The cat"))


def test_chat_template_and_its_end_of_turn(tiny: Build, chatml: str) -> None:
    """The template ends turns with <|end|> (id 2); once that is a stop token, replies end with it."""
    lm = tiny(template=chatml)
    assert lm.chat_tokens.prompt_text(TURNS).endswith("<|user|>on<|end|><|assistant|>")
    assert lm.chat_tokens.end_id == 1  # nothing says yet that <|end|> stops generation
    lm.module.generation_config.eos_token_id = [1, 2]
    again = OpenModel.from_module(lm.module, lm.tokenizer, "chatty")
    assert set(again.chat_tokens.stop_ids) == {1, 2}
    assert again.encode([TURNS], ["sat"]).ids[0, -1] == 2
    assert again.identity.digest != lm.identity.digest  # what stops it can change an answer


def test_a_template_may_refuse(tiny: Build) -> None:
    template = "{{ raise_exception('no system message') if messages[0]['role'] == 'system' }}<|user|>hi"
    lm = tiny(template=template)
    with pytest.raises(InputError, match="no system message"):
        lm.encode([TURNS])
    fine, refused = lm.generate([Chat.ask("a"), TURNS], Sampling(max_tokens=2))
    assert fine.stop != "error" and refused.stop == "error" and "no system message" in refused.error


def test_too_long_names_the_row(tiny: Build) -> None:
    """Context 16: prompt 4 + reply 12 + end token 1 is one too many."""
    lm = tiny(max_position_embeddings=16)
    assert lm.encode([Chat.ask("aaa")], ["a" * 11]).ids.shape == (1, 16)
    for call in (lm.encode, lm.logprobs):
        with pytest.raises(InputError, match=r"row 1 has 4 tokens of prompt and 13 of reply.* 16 in all"):
            call([Chat.ask("a"), Chat.ask("aaa")], ["a", "a" * 12])
    with pytest.raises(InputError, match="2 chats, 1 replies"):
        lm.encode([Chat.ask("a"), Chat.ask("b")], ["a"])


@pytest.mark.parametrize("budget", [1, 30, 16_384])
def test_logprobs_match_one_forward_at_a_time(lm: OpenModel, budget: int) -> None:
    """Batched and padded against a full pass per row and a float64 softmax."""
    same = OpenModel(lm.module, lm.tokenizer, identity=lm.identity, token_budget=budget)
    for chat, reply, scored in zip(CHATS, REPLIES, same.logprobs(CHATS, REPLIES), strict=True):
        prompt, answer = lm.prompt_ids(chat), [*lm.reply_ids(reply), 1]
        table = lm.module(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
        naive = [float(table[len(prompt) - 1 + t, token]) for t, token in enumerate(answer)]
        assert scored.ids == tuple(answer)
        assert scored.logprobs == pytest.approx(naive, abs=1e-4)
        assert scored.total == pytest.approx(sum(naive), abs=1e-4)
    assert same.logprobs([], []) == []


def test_nan_weights_raise_in_scoring(tiny: Build) -> None:
    lm = tiny().copy()
    with torch.no_grad():
        lm.module.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(NumericalError, match="row 0"):
        lm.logprobs([Chat.ask("a")], ["a"])


def test_padding_changes_nothing(lm: OpenModel) -> None:
    batch = lm.encode(CHATS, REPLIES)
    together = lm.forward(batch)
    for i, (chat, reply) in enumerate(zip(CHATS, REPLIES, strict=True)):
        alone = lm.forward(lm.encode([chat], [reply]))[0]
        assert torch.allclose(together[i, : len(alone)], alone, atol=1e-4)


def test_gradients_reach_a_copy_and_leave_the_original(tiny: Build) -> None:
    lm = tiny()
    twin, batch = lm.copy(), lm.encode(CHATS, REPLIES)
    before = lm.forward(batch)
    assert not before.requires_grad
    twin.forward(batch).logsumexp(-1).sum().backward()
    with torch.no_grad():
        for parameter in twin.module.parameters():
            assert parameter.grad is not None
            parameter -= 0.01 * parameter.grad
    assert torch.equal(lm.forward(batch), before)
    assert not torch.equal(twin.forward(batch), before)


def test_identity_follows_every_part(tiny: Build, chatml: str) -> None:
    one, same = tiny(), tiny()
    assert one.identity == same.identity
    assert tiny(max_position_embeddings=32).identity.parts["config"] != one.identity.parts["config"]
    assert tiny(template=chatml).identity.parts["template"] != one.identity.parts["template"]
    with torch.no_grad():
        same.module.get_input_embeddings().weight[3, 3] += 1e-3
    moved = OpenModel.from_module(same.module, same.tokenizer, "moved").identity
    changed = {key for key in moved.parts if moved.parts[key] != one.identity.parts[key]}
    assert changed == {"weights"}


def test_save_and_open_again(tiny: Build, chatml: str, tmp_path: Path) -> None:
    lm = tiny(template=chatml)
    lm.save(tmp_path)
    again = OpenModel.from_folder(tmp_path, name="again")
    batch = lm.encode(CHATS, REPLIES)
    assert torch.equal(again.encode(CHATS, REPLIES).ids, batch.ids)
    assert torch.equal(again.forward(batch), lm.forward(batch))
    assert again.identity == folder_identity(tmp_path, name="again")
    half = OpenModel.from_folder(tmp_path, dtype="bfloat16")
    assert next(half.module.parameters()).dtype == torch.bfloat16
    assert half.identity.digest != again.identity.digest
    assert all(c.stop != "error" for c in half.generate(CHATS, Sampling(max_tokens=3)))


def test_folder_identity_moves_with_each_file(tiny: Build, tmp_path: Path) -> None:
    tiny().save(tmp_path)
    before = folder_identity(tmp_path).parts
    (tmp_path / "README.md").write_text("no part of the model")
    assert folder_identity(tmp_path).parts == before
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    with_template = folder_identity(tmp_path).parts
    assert {k for k in before if with_template[k] != before[k]} == {"template"}
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert folder_identity(tmp_path).parts["config"] != before["config"]


def test_folder_identity_needs_no_torch() -> None:
    code = (
        "import sys, calibrant.models.folder as f; sys.exit(bool({'torch', 'transformers'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_folders_that_cannot_be_opened_say_why(tiny: Build, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        folder_identity(tmp_path / "absent")
    with pytest.raises(InputError, match="so it is not a Hugging Face"):
        OpenModel.from_folder(tmp_path)
    tiny().save(tmp_path)
    weights = tmp_path / "model.safetensors"
    kept = weights.read_bytes()
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"only pickled weights \(pytorch_model.bin\)"):
        OpenModel.from_folder(tmp_path)
    weights.write_bytes(kept)
    tensors = load_file(weights)
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != lost}, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"lacks 1 weights.*{lost}"):
        OpenModel.from_folder(tmp_path)
    weights.write_bytes(kept[:1000])
    with pytest.raises(InputError, match="is no safetensors file: its header would have"):
        OpenModel.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        folder_identity(tmp_path)


def test_a_tokenizer_must_be_able_to_end(tiny: Build) -> None:
    lm = tiny()
    lm.tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        OpenModel.from_module(lm.module, lm.tokenizer, "endless")


def test_the_hub_wants_a_commit_and_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'main' of 'a/b' is not a full commit hash"):
        OpenModel.from_hub("a/b", "main")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"'a/b' at 0000.* neither in the local cache") as caught:
        OpenModel.from_hub("a/b", "0" * 40)
    assert "give the folder" in caught.value.hint


def test_special_tokens_in_a_reply_are_plain_characters(tiny: Build) -> None:
    """A reply that spells '</s>' is scored to its real end, not to the first thing that looks like one."""
    ids = tiny().reply_ids("a</s>b")
    assert 1 not in ids and tiny().chat_tokens.text(ids) == "a</s>b"


def _with_more_tokens(lm: OpenModel) -> None:
    lm.tokenizer.add_tokens([f"<new{i}>" for i in range(99)], special_tokens=True)


def _with_another_start(lm: OpenModel) -> None:
    """Of an empty prompt that a template writes: nothing else stands before the reply."""
    _with_more_tokens(lm)
    lm.tokenizer.bos_token = "<new98>"
    lm.tokenizer.chat_template = "{{ messages[0].content }}"


def _with_half_a_letter(lm: OpenModel) -> None:
    half = "{% if '<' in messages[0].content %}{{ '\\ud800' }}{% endif %}"
    lm.tokenizer.chat_template = half + "{{ messages[0].content }}"


def _with_a_slow_pattern(lm: OpenModel) -> None:
    core = lm.tokenizer.backend_tokenizer
    core.normalizer = normalizers.Replace(Regex("(n|nn)+<|(e|ee|eee)+y"), "")


@pytest.mark.parametrize(
    ("change", "text", "said"),
    [
        (_with_more_tokens, "<new98>", "'<new98>' has the id .*, but the model has 300 embeddings"),
        (_with_another_start, "", "'<new98>' has the id .*, but the model has 300 embeddings"),
        (_with_half_a_letter, "<", "writes half a surrogate pair"),
        (_with_a_slow_pattern, "e" * 40, "the tokenizer gives up on a text"),
    ],
    ids=["a token without an embedding", "a start without one", "half a letter", "a slow pattern"],
)
def test_a_prompt_that_has_no_ids_costs_its_own_row(tiny: Build, change, text: str, said: str) -> None:
    lm = tiny()
    change(lm)
    bad, good = lm.generate([Chat.ask(text), Chat.ask("The cat")], Sampling(max_tokens=2))
    assert bad.stop == "error" and re.search(said, bad.error)
    assert good.stop in ("eos", "length") and good.ids
    with pytest.raises(InputError, match=said):
        lm.logprobs([Chat.ask(text)], ["sat"])
    assert lm.logprobs([Chat.ask("The cat")], ["sat"])


def test_an_end_token_without_an_embedding_is_refused(tiny: Build) -> None:
    lm = tiny()
    _with_more_tokens(lm)
    lm.tokenizer.eos_token = "<new98>"
    with pytest.raises(InputError, match="'<new98>' has the id"):
        OpenModel.from_module(lm.module, lm.tokenizer, "longer")


@pytest.mark.parametrize("letters", ["\n", ""], ids=["knows newlines", "drops newlines"])
@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_replies_come_back_with_metaspace_tokenizers(scheme: str, letters: str) -> None:
    """A reply keeps or lacks its leading space exactly as written, wherever the tokenizer puts spaces."""
    core = Tokenizer(BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    names = ["<unk>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=names, show_progress=False)
    core.train_from_iterator(["the time and the cat and the mat" + letters], trainer)
    tokens = ChatTokens(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>"))
    for text in ("time", " time", "the cat", " the cat and", "m", " "):
        (ids,) = tokens.replies([text], [False])
        assert tokens.text(ids) == text
        assert tokens.replies([tokens.text(ids)], [False]) == [ids]
    assert tokens.replies(["time"], [False]) != tokens.replies([" time"], [False])
    (ids,) = tokens.replies(["time"], [True])
    assert tokens.text(ids, opens=True) == "time"


@pytest.mark.real
def test_published_greedy_sample(real_data: Path) -> None:
    """llama2.c's 257 positions are BOS and 256 tokens."""
    lm = OpenModel.from_folder(real_data / "stories260K")
    page = (real_data / "stories260K" / "golden_text.md").read_text(encoding="utf-8")
    published = re.search(r"-t 0\.0\n(.*?)\n```", page, re.DOTALL)
    assert published is not None
    found = lm.generate([Chat.ask("")], Sampling(max_tokens=256))[0]
    assert found.text == published.group(1)
    assert lm.prompt_ids(Chat.ask("")) == [1]
    scored = lm.logprobs([Chat.ask("")], [found.text])[0]
    assert scored.ids == (*found.ids, 2)
    assert scored.logprobs[:-1] == pytest.approx(found.logprobs, abs=1e-4)


@pytest.mark.real
def test_replies_of_a_sentencepiece_model_come_back_as_the_same_ids(real_data: Path) -> None:
    """Mid-word, after a word, after a space, after a newline, at the start: text -> ids is exact."""
    lm = OpenModel.from_folder(real_data / "stories260K")
    starts = (
        "",
        "Once upon a t",
        "Once upon a",
        "Lily went to the ",
        "She said,\n",
        "Tom and Sue l",
        "The b",
    )
    chats = [*(Chat.ask(start) for start in starts), Chat.ask("Tell me").then("assistant", "No.")]
    drawn = lm.generate(chats, Sampling(max_tokens=24))
    scored = lm.logprobs(chats, [c.text for c in drawn])
    assert [s.ids[:-1] for s in scored] == [c.ids for c in drawn]
    openings = [c.text[0] for c in drawn]
    assert openings[0] == "O" and openings[2] == " "  # the start of a text shows no space; a new word does
    assert openings[1].isalpha()  # the word goes on


@pytest.mark.real
def test_real_words_survive_decoding(real_data: Path) -> None:
    """For any text: decode(encode(text)) = text, at the start of a sequence or inside it."""
    tokens = OpenModel.from_folder(real_data / "stories260K").chat_tokens
    for text in ("a", " a", "  a", "\n", "\n\n a", "caf\u00e9 \u2603", "</s>", "", "Lily's mom"):
        assert tokens.text(tokens.replies([text], [False])[0]) == text


THINKS = "<think>the cat</think>on the mat"


def parted(lm: OpenModel, written: str, chat: Chat = CHATS[0]) -> tuple[str | None, str]:
    """Reasoning and reply of what ``lm`` would have to draw to write this."""
    ids = lm.tokenizer(written, add_special_tokens=False)["input_ids"]
    return lm.chat_tokens.parted(ids, lm.chat_tokens.prompt_text(chat), chat)[:2]


def test_reasoning_is_parted_from_the_reply(tiny: Build, chatml: str) -> None:
    lm = tiny(template=chatml)
    assert parted(lm, THINKS) == ("the cat", "on the mat")
    assert parted(lm, "on the mat") == (None, "on the mat")
    assert parted(lm, "the cat</think>on") == (None, "the cat</think>on")  # nothing was opened
    assert parted(lm, "<think>the cat") == ("the cat", "")
    chat = CHATS[0].then("assistant", "<think>sure,")
    assert parted(lm, " the cat</think>on", chat) == ("the cat", "on")


def test_a_template_that_opens_the_block(tiny: Build, chatml: str) -> None:
    lm = tiny(template=chatml.replace("'<|assistant|>'", "'<|assistant|><think>\\n'"))
    assert lm.chat_tokens.prompt_text(CHATS[0]).endswith("<think>\n")
    assert parted(lm, "the cat</think>on the mat") == ("the cat", "on the mat")
    assert parted(lm, "the cat") == ("the cat", "")
    closed = CHATS[0].then("assistant", "enough</think>sure,")
    assert parted(lm, "the cat", closed) == (None, "the cat")
    (drawn,) = lm.generate([CHATS[0]], Sampling(max_tokens=3))
    assert drawn.unanswered and drawn.reasoning and len(drawn.ids or ()) == 3


def test_tags_that_are_special_tokens(tiny: Build, chatml: str) -> None:
    """Decoding leaves special tokens out, so that they have to be spelt out to be seen."""
    lm = tiny(template=chatml)
    marks = ["[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|start|>"]
    lm.tokenizer.add_special_tokens({"extra_special_tokens": [*marks, "<|end|>"]})
    again = OpenModel.from_module(lm.module, lm.tokenizer, "magistral")
    assert parted(again, "[THINK]the cat[/THINK]on the mat") == ("the cat", "on the mat")
    said = "<|channel|>analysis<|message|>the cat<|end|><|start|>assistant<|channel|>final<|message|>on"
    assert parted(again, said) == ("the cat", "on")
    assert parted(again, "the cat<|end|>") == (None, "the cat")
