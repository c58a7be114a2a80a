"""Chat templates: the text that transformers renders, and an end to those that would never stop."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from calibrant.core import Chat, InputError
from calibrant.models import templates
from calibrant.models.chat_tokens import ChatTokens
from calibrant.models.open_model import OpenModel

Build = Callable[..., OpenModel]
TURNS = [
    {"role": "system", "content": "Be \\brief\n and <b>kind</b>."},
    {"role": "user", "content": " What is {x}? "},
    {"role": "assistant", "content": "<think>hm</think> A name.\n"},
    {"role": "user", "content": "Ünïcode 🙂 %s"},
]
BEGIN = "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' + m['content'] }}{% endfor %}"
HONEST = {
    "chatml": BEGIN + "{% if add_generation_prompt %}\n  {{ '<|assistant|>' }}{% endif %}",
    "system first": "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{{ bos_token }}"
    "{% endif %}{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns') }}{% endif %}{{ m.content | trim + eos_token }}{% endfor %}",
    "last question": "{%- set ns = namespace(last=messages|length - 1) %}{%- for m in messages[::-1] %}"
    "{%- if m.role == 'user' and m.content is string and not m.content.startswith('<') %}"
    "{%- set ns.last = (messages|length - 1) - loop.index0 %}{%- break %}{%- endif %}{%- endfor %}{{ 1 }}"
    "{%- for m in messages if m.role != 'system' %}{{ loop.length }}{{ loop.last }}"
    "{{ m.content.split('</think>')[-1].lstrip('\\n') }}{%- endfor %}",
    "macros": "{% macro say(m, end='') -%}[{{ m.role|upper }}] {{ caller() if caller else m|tojson }}"
    "{{ end }}{%- endmacro %}{% for m in messages %}{{ say(m, end='\\n') }}"
    "{% call say(m) %}{{ m.content.replace('a', 'b')|indent(2) }}{% endcall %}{% endfor %}",
    "filters": "{{ messages|map(attribute='role')|unique|join(',') }}{{ {'a': (1, 2)}|tojson }}{{ 1 in [] }}"
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ dict(a=1)|items|list }}{{ 7 // 2 }}"
    "{{ '%s-%d' % ('a', 3) }}{{ '{}'.format(4) }}{{ nope|default('x') }}{{ not tools }}{{ 2 ** 3 * 'ab' }}",
    "formats": "{{ 'Cutting Knowledge Date: December 2023. Today: %s'|format('now') }}{{ 'In 2024, %s' % 1 }}"
    "{{ 'Since 2024 {}'.format(1) }}{{ '{{\"year\": {}, \"of\": 2024}}'.format(messages[0].role) }}"
    "{{ '%.3f%%'|format(0.5) }}{{ ', '.join(messages|map(attribute='role')) }}{{ {'a': 1}.values() }}"
    "{{ 'a b'.rsplit(' ', 1)[0].encode('UTF-8').decode() }}"
    "{{ namespace(a=1) }}{{ 'a' is lower }}{{ -7 is odd }}{{ messages is sequence }}{{ 1.26|round(1) }}",
    "marked": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    "{{ strftime_now('%Y') }}{% set x %}{{ bos_token }}!{% endset %}{{ x * 3 }}",
}
DAG, TWO = "{% set a = ['x'] %}", "{% set a = ['x'] %}{% set b = ['x'] %}"
GROW, GROW_TWO = "{% set a = [a, a] %}" * 60, "{% set a = [a, a] %}{% set b = [b, b] %}" * 60
LONG = "{% set a = 'x' * 100000 %}"
MANY = "{% for i in range(99999) %}"
HOSTILE = {
    "nested loops": MANY + MANY + "{% endfor %}{% endfor %}",
    "nested loops that keep nothing": MANY + "{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "ten small loops": "{% for i in range(100) %}" * 10 + "{% endfor %}" * 10,
    "a long body": MANY + "x" * 100_000 + "{% endfor %}",
    "lipsum": "{{ lipsum(10**6) }}",
    "a repeated text": "{{ 'a' * 10**10 }}",
    "a repeated list": "{{ 10**10 * [1] }}",
    "a power": "{{ 9**(9**9) }}",
    "powers of powers": "{{ (2**4000)**(2**4000) }}",
    "a power that is only compared": "{{ 1 if 9**20000000 else 2 }}",
    "digits before the point": "{{ 5|round(-10**7) }}",
    "a long remainder": "{% set a = ('f' * 400000)|int(base=16) %}{% set b = ('f' * 200000)|int(base=16) %}"
    + MANY
    + "{% if a is divisibleby b %}{% endif %}{% endfor %}",
    "a long number's sign": "{% set a = ('f' * 900000)|int(base=16) %}"
    + MANY
    + "{% set b = -a %}{% endfor %}",
    "joins that double": "{% set a = 'xxxxxxxx' %}" + "{% set a = a ~ a %}" * 60,
    "sums that double": "{% set a = 'xxxxxxxx' %}" + "{% set a = a + a %}" * 60,
    "blocks that double": "{% set a %}xxxxxxxx{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
    "a list that holds itself twice": DAG + GROW + "{{ a }}",
    "such a list as JSON": DAG + GROW + "{{ a|tojson }}",
    "two such lists compared": TWO + GROW_TWO + "{{ a == b }}",
    "such a tuple as a key": "{% set a = ('x',) %}" + "{% set a = (a, a) %}" * 60 + "{{ {a: 1} }}",
    "a printf width": "{{ '%10000000000d' % 1 }}",
    "a printf width as an argument": "{{ '%*d' % (10**9, 1) }}",
    "a format width": "{{ '{:10000000000}'.format(1) }}",
    "a format width as an argument": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "a filter's width": "{{ 'a'|center(10000000000) }}",
    "a method's width": "{{ 'a'.ljust(10000000000) }}",
    "an indent": "{{ [1]|tojson(indent=10000000000) }}",
    "a batch": "{{ [1]|batch(1000000000, 1)|list }}",
    "bytes that double": "{% set a = 'x'.encode() %}" + "{% set a = a + a %}" * 60,
    "repeated bytes": "{{ 'x'.encode() * 10**10 }}",
    "a named width": "{{ '\\t'.expandtabs(tabsize=10**9) }}",
    "wide tabs": "{% set a = '\\t' * 1000000 %}{{ a.expandtabs(1000) }}",
    "a million indents": "{% set a = '\\n' * 1000000 %}{{ a|indent(1000, blank=true) }}",
    "a long division": "{% set a = ('f' * 900000)|int(base=16) %}{{ a // 7 }}",
    "a million pieces": "{% set a = 'x,' * 500000 %}" + MANY + "{% set b = a.split(',') %}{% endfor %}",
    "a replacement": LONG + "{{ a|replace('x', a) }}",
    "a method's replacement": LONG + "{{ a.replace('', a) }}",
    "a separator": LONG + "{{ range(99999)|map('string')|join(a) }}",
    "a method's separator": LONG + "{{ a.join(a) }}",
    "slices": "{% set a = 'x' * 1000000 %}" + MANY + "{% set b = a[1:] %}{% endfor %}",
    "searches": "{% set a = 'x' * 1000000 %}" + MANY + "{% set b = 'y' in a %}{% endfor %}",
    "a comparison by name": "{% set a = 'x' * 1000000 %}{% set b = ('x' * 1000000) ~ '' %}"
    + MANY
    + "{% if a is greaterthan b %}{% endif %}{% endfor %}",
    "a strip of many letters": "{% set a = 'x' * 500000 %}{{ a.strip(('y' * 500000) ~ 'x') }}",
    "a trim of many letters": "{% set a = 'x' * 500000 %}{{ a|trim(('y' * 500000) ~ 'x') }}",
    "a search from behind": "{% set a = 'a' * 900000 %}{{ a.rfind('ab' ~ ('a' * 400000)) }}",
    "a codec that takes the square": "{{ ('a' * 900000).encode().decode(' PunyCode') }}",
    "capitals": "{% set a = 'x' * 1000000 %}" + MANY + "{% set b = a.upper() %}{% endfor %}",
    "macros that double": "{% macro m(n) %}{{ n and m(n - 1) + m(n - 1) }}{% endmacro %}{{ m(60) }}",
    "a macro for ever": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a recursive loop": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "a date with a width": "{{ strftime_now('%1000000000Y') }}",
    "a sum of lists": "{{ ([[1]] * 9999)|sum(start=[]) }}",
    "a format of many fields": "{{ ('%(a)s' * 100000) % {'a': 'x' * 100000} }}",
    "a method's format of many fields": "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "a mapped format of many fields": "{{ ('{a}' * 100000).format_map({'a': 'x' * 100000}) }}",
    "a filter's format of many fields": "{{ ('%(a)s' * 100000)|format(a='x' * 100000) }}",
    "a named printf width": "{{ '%(a)10000d' % {'a': 1} }}",
    "a method's separator, drawn": LONG + "{{ a.join(range(99999)|map('string')) }}",
    "letters asked for their case": LONG + MANY + "{% if a is lower %}{% endif %}{% endfor %}",
    "a format of a million colons": "{{ (':' * 1000000) % 1 }}",
    "a namespace, written often": "{% set n = namespace(a=['x' * 99] * 9999) %}"
    + MANY
    + "{{ n }}{% endfor %}",
    "values, written often": LONG + "{% set b = {'a': a}.values() %}" + MANY + "{{ b }}{% endfor %}",
    "arguments that double": "{% macro m(n) %}{% if n %}{{ m(n - 1, varargs, varargs) }}{% else %}"
    "{{ varargs }}{% endif %}{% endmacro %}{{ m(60, 1) }}",
    "a safe text's replacement": LONG + "{{ (a|safe).replace('x', a) }}",
    "a safe text's width": "{{ ('x'|safe).ljust(10000000000) }}",
    "a safe text as a separator": LONG + "{{ (a|safe).join(range(99999)|map('string')) }}",
    "a safe text's tabs": "{{ (('\\t' * 1000000)|safe).expandtabs(1000000) }}",
    "a safe text's translation": LONG + "{{ (a|safe).translate({120: a}) }}",
    "deep brackets": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "deep blocks": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "a number of 5000 digits": "{{ " + "9" * 5000 + " }}",
    "two million characters": "x" * 2_000_000,
    "another file": "{% include '/etc/passwd' %}",
    "no syntax": "{% if %}",
    "no such filter": "{{ 1|nope }}",
    "a division by zero": "{{ 1 // 0 }}",
    "a text and a number": "{{ 'a' + 1 }}",
    "a failed assertion": "{{ 'aaa'|truncate(1, true, 'xxxxx') }}",
    "a long refusal": "{{ raise_exception('a' * 1000000) }}",
    "Python's insides": "{{ ''.__class__.__mro__ }}",
}


def _tokenizer(tiny: Build, template: Any) -> Any:
    tokenizer = tiny().tokenizer
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", HONEST)
def test_the_text_is_that_of_transformers(tiny: Build, name: str) -> None:
    tokenizer = _tokenizer(tiny, HONEST[name])
    turns = TURNS
    for wanted in (True, False):
        theirs = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=wanted)
        assert templates.chat_text(tokenizer, turns, add_generation_prompt=wanted) == theirs


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused(tiny: Build, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asks for hours or all memory, or breaks; the budget is cut to a tenth to keep the test quick."""
    monkeypatch.setattr(templates, "STEPS", templates.STEPS // 10)
    with pytest.raises(InputError, match="the chat template refuses") as caught:
        templates.chat_text(_tokenizer(tiny, HOSTILE[name]), TURNS, add_generation_prompt=True)
    assert len(caught.value.message) < 600
    assert not isinstance(caught.value.__cause__, MemoryError)


def test_a_long_chat_has_the_budget_that_it_needs(tiny: Build) -> None:
    """A hundred times the work of a usual template, on 2,000 turns and on one turn of a megabyte."""
    tokenizer = _tokenizer(tiny, HONEST["last question"])
    long = [{"role": ("user", "assistant")[i % 2], "content": f"line {i}"} for i in range(2000)]
    for turns in (long, [{"role": "user", "content": "word " * 200_000}]):
        theirs = tokenizer.apply_chat_template(turns, tokenize=False)
        assert templates.chat_text(tokenizer, turns, add_generation_prompt=False) == theirs


LINGERING = {
    "counts": "{% for m in messages %}{{ messages|length }}{{ messages|length }}{{ (messages|last).role }}"
    "{% endfor %}",
    "a growing text": "{% set ns = namespace(out='') %}{% for m in messages %}{% set ns.out = ns.out + '<|' +"
    " m.role + '|>' + m.content %}{% endfor %}{{ ns.out }}",
    "a growing list": "{% set ns = namespace(all=[]) %}{% for m in messages %}{% set ns.all = ns.all + [m] %}"
    "{% endfor %}{{ ns.all|length }}",
    "a macro that looks back": "{% macro last(all, i) %}{{ i == all|length - 1 }}{% endmacro %}"
    "{% for m in messages %}{{ last(messages, loop.index0) }}{{ m.content }}{% endfor %}",
}


@pytest.mark.parametrize("name", LINGERING)
@pytest.mark.parametrize(("n", "words"), [(201, 400), (1001, 1)])
def test_many_turns_have_the_budget_that_they_need(tiny: Build, name: str, n: int, words: int) -> None:
    """Templates that look at the whole chat in every turn, as some do: quick for Python, so cheap here."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": "word " * words} for i in range(n)]
    tokenizer = _tokenizer(tiny, LINGERING[name])
    theirs = tokenizer.apply_chat_template(turns, tokenize=False)
    assert templates.chat_text(tokenizer, turns, add_generation_prompt=False) == theirs


def test_each_render_has_a_budget_of_its_own(tiny: Build) -> None:
    """Threads that render at once neither share a budget nor see each other's overrun."""
    good, bad = _tokenizer(tiny, HONEST["chatml"]), _tokenizer(tiny, HOSTILE["a repeated text"])
    expected = templates.chat_text(good, TURNS, add_generation_prompt=True)

    def one(number: int) -> str:
        try:
            return templates.chat_text(bad if number % 2 else good, TURNS, add_generation_prompt=True)
        except InputError:
            return "refused"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(40))) == [expected, "refused"] * 20


def test_a_model_with_a_hostile_template_says_so_when_it_is_opened(tiny: Build) -> None:
    with pytest.raises(InputError, match="the chat template refuses"):
        ChatTokens(_tokenizer(tiny, HOSTILE["nested loops"]))
    tokens = ChatTokens(_tokenizer(tiny, "{{ 'a' * ((messages|length - 2) * 10**10) }}"))
    with pytest.raises(InputError, match="more work than any chat template needs"):
        tokens.prompt_text(Chat.ask("a", system="b").then("assistant", "c").then("user", "d"))
