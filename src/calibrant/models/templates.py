"""Render an untrusted chat template: the text that transformers renders, within a budget.

A template comes with a model and is a program. transformers runs it in jinja's sandbox, which keeps it from
files and code, but not from endless loops and endless strings. Here every loop's items, call, filter, sum and
piece of output is paid for out of a budget that grows with the chat, *before* the work is done; a template
that spends more is refused. Work is counted, not timed, so the answer is the same on every machine. What no
chat template needs (``lipsum``, ``|batch``, recursive loops, ...) is not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Template, nodes
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

from calibrant.models import template_costs as costs
from calibrant.models.foreign import foreign

STEPS = 1_000_000
"""Units of work for any chat; one unit is a step, or 16 characters."""
_PER_UNIT = 100  # more units for each unit that the chat itself weighs
_LONGEST = 2**20  # characters of a template
_NOT_OFFERED = {
    *("batch", "center", "filesizeformat", "groupby", "pprint", "random", "slice", "striptags"),
    *("urlize", "wordwrap", "xmlattr"),
}
_FREE_TESTS = {  # these look at a value's kind alone; all others are paid for
    *("boolean", "callable", "defined", "escaped", "false", "filter", "float", "integer", "iterable"),
    *("mapping", "none", "number", "sameas", "sequence", "string", "test", "true", "undefined"),
}
_EACH, _JOIN, _WEIGH, _SLICE, _TICK = "an item", "a join", "a value", "a slice", "a call"  # none can be spelt
_REPEATED = (nodes.For, nodes.Macro, nodes.CallBlock)
_transformers: Any = chat_template_utils


def chat_text(tokenizer: Any, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """What ``tokenizer.apply_chat_template`` makes of ``turns``, as text.

    Raises:
        InputError: the template cannot be rendered, refuses this chat, or asks for too much work.
    """
    hint = "read chat_template.jinja: some take no system message, or roles in one order alone"
    with foreign("the chat template refuses this chat", hint):  # it can provoke nearly any exception
        shared = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        variables = {"messages": turns, **shared, **tokenizer.special_tokens_map}
        return _rendered(tokenizer.get_chat_template(), variables)


def _rendered(template: str, variables: Mapping[str, Any]) -> str:
    """The text that ``template`` makes of ``variables``; raises nearly anything where it makes none."""
    compiled = _compiled(template)
    token = costs.BUDGET.set([STEPS + _PER_UNIT * costs.weight(variables, 2**60)])
    try:
        return compiled.render(**variables)
    finally:
        costs.BUDGET.reset(token)


@lru_cache(maxsize=32)
def _compiled(template: str) -> Template:
    if len(template) > _LONGEST:
        raise costs.OverspentError(f"it has {len(template)} characters, more than {_LONGEST}")
    return _environment().from_string(template)


@lru_cache(maxsize=1)
def _environment() -> Bounded:
    """An environment with the settings, filters and functions that transformers gives to templates."""
    theirs = _transformers._compile_jinja_template("").environment
    environment = Bounded(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[type(extension) for extension in theirs.extensions.values()],
        finalize=costs.printed,
    )
    filters = {name: fn for name, fn in theirs.filters.items() if name not in _NOT_OFFERED}
    environment.filters = {name: costs.guarded(name, fn) for name, fn in filters.items()}
    environment.filters.update({_EACH: costs.each, _JOIN: costs.joined, _WEIGH: costs.weighed})
    environment.filters.update({_SLICE: costs.sliced, _TICK: costs.tick})
    tests: dict[str, Any] = environment.tests
    tests.update({name: costs.guarded(name, fn) for name, fn in tests.items() if name not in _FREE_TESTS})
    environment.globals = {name: fn for name, fn in theirs.globals.items() if name != "lipsum"}
    environment.globals["strftime_now"] = costs.plain_format(theirs.globals["strftime_now"])
    return environment


class Bounded(ImmutableSandboxedEnvironment):
    """jinja's sandbox, with every operator, call and slice paid for."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])
    intercepted_unops = frozenset(["+", "-"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Meters().visit(super()._parse(source, name, filename))
        return tree

    # What jinja calls for an operator, a call, an item and a str.format; see its SandboxedEnvironment.
    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: D102
        paid = costs.copied if operator == "+" else costs.weight
        costs.spend(1 + paid(left) + paid(right))
        costs.check_whole(left, right)
        if operator == "*":
            costs.pay_repeat(left, right)
            costs.pay_repeat(right, left)
        elif operator == "**":
            costs.check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            costs.pay_format(left, right)
        return super().call_binop(context, operator, left, right)

    def call_unop(self, context: Any, operator: str, arg: Any) -> Any:  # noqa: D102
        costs.check_whole(arg)
        return super().call_unop(context, operator, arg)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: D102, N805
        looks_in = not isinstance(__obj, Macro)  # a macro is handed its arguments, and pays inside for more
        costs.spend(1 + (costs.weight((args, kwargs)) if looks_in else len(args) + len(kwargs)))
        if isinstance(__obj, costs.METHODS):
            args = costs.gathered(__obj, args)
            costs.check_method(__obj, (*args, *kwargs.values()))
        result = super().call(__context, __obj, *args, **kwargs)
        costs.spend(costs.size(result))
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:  # noqa: D102
        costs.spend(1 + costs.weight(argument))
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:  # noqa: D102
        formatter = super().wrap_str_format(value)
        if formatter is None:
            return None

        def paid(*args: Any, **kwargs: Any) -> str:
            costs.pay_format(value.__self__, (args, kwargs))
            return formatter(*args, **kwargs)

        return paid


class _Meters(NodeTransformer):
    """Puts meters into a parsed template: at loops, joins, slices, comparisons, lists and macros."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """The node, with meters in it."""
        cost = nodes.Const(_text_units(node)) if isinstance(node, _REPEATED) else None
        node = self.generic_visit(node)
        if isinstance(node, nodes.ScopedEvalContextModifier) or getattr(node, "recursive", False):
            raise costs.OverspentError("it has a recursive loop or switches escaping")
        if isinstance(node, nodes.For) and cost:
            node.iter = _filtered(node.iter, _EACH, cost)
        elif isinstance(node, (nodes.Macro, nodes.CallBlock)) and cost:
            node.body.insert(0, nodes.ExprStmt(_filtered(cost, _TICK)))
        elif isinstance(node, nodes.Concat):
            return _filtered(nodes.List(node.nodes), _JOIN)
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, _SLICE)
        elif isinstance(node, (nodes.Compare, nodes.Operand)):
            node.expr = _filtered(node.expr, _WEIGH)
        elif (
            isinstance(node, (nodes.List, nodes.Dict, nodes.Tuple)) and getattr(node, "ctx", "load") == "load"
        ):
            return _filtered(node, _WEIGH)  # paid as built, so that no list can hold itself over and over
        return node


def _text_units(node: nodes.Node) -> int:
    """Units of the constant text inside ``node``."""
    return sum(len(text.data) for text in node.find_all(nodes.TemplateData)) >> costs.CHARS


def _filtered(node: Any, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None)
