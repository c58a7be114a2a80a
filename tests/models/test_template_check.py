"""Chat templates in the style of the common families: met, met but for white space, or refused by name."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from calibrant.core import CapabilityError, Chat, Identity
from calibrant.models.chat_tokens import ChatTokens
from calibrant.models.template_check import Differences, check_trainable

EACH = "{% for m in messages %}"
GENERATE = "{% if add_generation_prompt %}"
CHATML = (
    EACH + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    + GENERATE + "{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
LLAMA_3 = (
    "{{ bos_token }}"
    + EACH
    + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    + GENERATE
    + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}" + EACH + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}"
    "{{ LEAD + m.content + TAIL + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_2 = INST.replace("LEAD", "' '").replace("TAIL", "' '")
MISTRAL = INST.replace("LEAD + ", "").replace("TAIL + ", "")
GEMMA = (
    "{{ bos_token }}" + EACH + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n'"
    " + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    + GENERATE
    + "{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI_3 = (
    EACH + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    + GENERATE + "{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)  # fmt: skip
ZEPHYR = (
    EACH + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    + GENERATE + "{{ '<|assistant|>\n' }}{% endif %}"
)  # fmt: skip
DEEPSEEK = (
    "{{ bos_token }}"
    + EACH
    + "{% if m.role == 'user' %}{{ '<|User|>' + m.content }}{% else %}{{ '<|Assistant|>'"
    " + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    + GENERATE
    + "{{ PROMPT }}{% endif %}"
)
DEEPSEEK_V3 = DEEPSEEK.replace("PROMPT", "'<|Assistant|>'")
DEEPSEEK_R1 = DEEPSEEK.replace("PROMPT", "'<|Assistant|><think>\n'")
QWEN_3 = (
    EACH
    + "{{ '<|im_start|>' + m.role + '\n' + ('<think>\n\n</think>\n\n' if m.role == 'assistant' and loop.last"
    " else '') + m.content + '<|im_end|>\n' }}{% endfor %}"
    + GENERATE
    + "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COMMAND_R = (
    "{{ bos_token }}" + EACH + "{{ '<|START_OF_TURN_TOKEN|>' + ('<|USER_TOKEN|>' if m.role == 'user' else"
    " '<|CHATBOT_TOKEN|>') + m.content + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    + GENERATE + "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)  # fmt: skip
VICUNA = (
    EACH + "{% if m.role == 'user' %}{{ 'USER: ' + m.content + '\n' }}{% else %}{{ 'ASSISTANT: ' + m.content"
    " + eos_token + '\n' }}{% endif %}{% endfor %}" + GENERATE + "{{ 'ASSISTANT:' }}{% endif %}"
)
ALPACA = (
    EACH + "{{ ('### Instruction:\n' if m.role == 'user' else '### Response:\n') + m.content + '\n\n' }}"
    "{% endfor %}" + GENERATE + "{{ '### Response:\n' }}{% endif %}"
)  # fmt: skip
DEAF = CHATML.split("{% if add")[0]
"""A template that ignores add_generation_prompt."""
MUTE = EACH + "{% if m.role == 'user' %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
"""One that writes no replies."""


def tokens(template, eos, stops=()):
    """The ids of a template whose special tokens are ``eos`` and ``stops``; the latter end a reply, too."""
    specials = ["<s>", "</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>"]
    specials += ["<|END_OF_TURN_TOKEN|>", "<think>", "</think>"]
    letters = {piece: i for i, piece in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=letters, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token=eos,
        extra_special_tokens=specials,
        chat_template=template,
    )
    return ChatTokens(made, [letters[token] for token in stops])


class Talker:
    """A model by name only."""

    identity = Identity(name="talker", parts={"weights": "none"})

    def __init__(self, found):
        self.template_differences = found


MET = [
    ("chatml", CHATML, "<|im_end|>", ()), ("chatml by its list", CHATML, "<|endoftext|>", ["<|im_end|>"]),
    ("llama 3", LLAMA_3, "<|eot_id|>", ()), ("gemma", GEMMA, "</s>", ["<end_of_turn>"]),
    ("mistral", MISTRAL, "</s>", ()), ("phi 3", PHI_3, "<|endoftext|>", ["<|end|>"]),
    ("zephyr", ZEPHYR, "</s>", ()), ("deepseek v3", DEEPSEEK_V3, "</s>", ()),
    ("command r", COMMAND_R, "<|END_OF_TURN_TOKEN|>", ()),
]  # fmt: skip
NEARLY = [
    ("llama 2", LLAMA_2, "</s>", "puts ' ' between prompt and reply"),
    ("vicuna", VICUNA, "</s>", "puts ' ' between prompt and reply"),
    ("alpaca", ALPACA, "</s>", "writes nothing behind a last reply, where '</s>' is put"),
]
REFUSED = [
    ("llama 3 without its end token", LLAMA_3, "</s>", "ends a reply with '<|eot_id|>', but '</s>'"),
    ("gemma without its list", GEMMA, "</s>", "ends a reply with '<end_of_turn>', but '</s>'"),
    ("phi 3 without its list", PHI_3, "<|endoftext|>", "but '<|endoftext|>' is what ends one"),
    ("chatml with another end", CHATML, "<|endoftext|>", "ends a reply with '<|im_end|>'"),
    ("deepseek r1", DEEPSEEK_R1, "</s>", "opens a block of thoughts"),
    ("qwen 3", QWEN_3, "<|im_end|>", r"puts '<think>\n\n</think>' between prompt and reply"),
    ("deaf", DEAF, "<|im_end|>", "ignores add_generation_prompt, and puts '<|im_start|>assistant'"),
    ("mute", MUTE, "<|im_end|>", "leaves out or rewrites the reply of an answered chat"),
]


@pytest.mark.parametrize(("name", "template", "eos", "stops"), MET, ids=[case[0] for case in MET])
def test_a_template_that_is_met(name, template, eos, stops):
    found = tokens(template, eos, stops)
    assert found.differences == Differences()
    check_trainable(Talker(found.differences), allowed=False)
    # What is compared is what is trained: prompt, reply and end are the beginning of the whole.
    prompt = found.prompt_text(Chat.ask("where?"))
    whole = found._render(Chat.ask("where?").then("assistant", "here"), add_generation_prompt=False)
    end = found.tokenizer.convert_ids_to_tokens(found.end_id)
    assert whole.startswith(f"{prompt}here{end}")


@pytest.mark.parametrize(("name", "template", "eos", "said"), NEARLY, ids=[case[0] for case in NEARLY])
def test_white_space_and_a_missing_end_are_said_and_taken(name, template, eos, said):
    found = tokens(template, eos).differences
    assert not found.faults
    assert any(said in note for note in found.notes)
    check_trainable(Talker(found), allowed=False)


@pytest.mark.parametrize(("name", "template", "eos", "said"), REFUSED, ids=[case[0] for case in REFUSED])
def test_a_template_that_writes_something_else_is_refused(name, template, eos, said):
    found = tokens(template, eos).differences
    assert any(said in fault for fault in found.faults), found
    with pytest.raises(CapabilityError, match="does not write what would be trained") as caught:
        check_trainable(Talker(found), allowed=False)
    assert "fit.any_template" in caught.value.hint
    check_trainable(Talker(found), allowed=True)


def test_without_a_template_there_is_nothing_to_differ():
    assert tokens(None, "</s>").differences == Differences()
