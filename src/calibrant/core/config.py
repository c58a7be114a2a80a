"""Frozen configs: every field has a docstring, an unknown key is an error with the nearest name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from calibrant.core.errors import ConfigError, nearest

T = TypeVar("T", bound="Frozen")
MOST = 10**9
"""Largest whole number that a config may ask for: of members, steps, ... Seeds and limits are free."""
_FREE = ("seed", "seeds", "budget", "caps")


class Frozen(BaseModel):
    """An immutable value: configs, results, records and rows.

    The docstring under each field is its help text, form label and documentation.
    """

    aliases: ClassVar[Mapping[str, str]] = {}
    """Names that other tools give to a field -> the field here ('learning_rate' -> 'fit.lr')."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=True)


def resolve(kind: type[T], given: Mapping[str, Any], *, where: str = "config") -> T:
    """Build ``kind`` from ``given``, with defaults filled in.

    TOML has no null: 'none' or 'null' is None in a field that may be None and takes no such text.

    Raises:
        ConfigError: lists every unknown key (with the nearest name) and every wrong value, whole numbers
            beyond ``MOST`` among them.
    """
    try:
        made = kind.model_validate(_with_nones(kind, _over_defaults(kind, _renamed(kind, given, where))))
    except ValidationError as error:
        raise ConfigError(_problems(kind, error, where)) from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None
    if huge := list(_huge(made)):
        raise ConfigError([f"{where}: '{path}' is more than {MOST:,}" for path in huge])
    return made


def _huge(config: BaseModel, above: str = "") -> Iterator[str]:
    """Names of the fields, nested ones too, with a whole number beyond ``MOST``."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if name in _FREE:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, BaseModel):
                yield from _huge(one, f"{above}{name}.")
            elif isinstance(one, int) and abs(one) > MOST:
                yield f"{above}{name}"


def _renamed(kind: type[Frozen], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Rename the fields that were given under another tool's name.

    Raises:
        ConfigError: a field was given under both names.
    """
    named = {key: value for key, value in given.items() if key not in kind.aliases}
    for key, value in given.items():
        if key not in kind.aliases:
            continue
        *above, field = kind.aliases[key].split(".")
        table = named
        for part in above:
            table[part] = dict(table.get(part, {}))
            table = table[part]
        if field in table:
            raise ConfigError(
                f"{where}: '{key}' is another name of '{kind.aliases[key]}', which is given, too"
            )
        table[field] = value
    return named


def _over_defaults(kind: type[Frozen], given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a nested table from the field's own default, so that naming one key keeps the others."""
    filled = dict(given)
    for name, field in kind.model_fields.items():
        default = field.default
        if isinstance(default, Frozen) and isinstance(filled.get(name), Mapping):
            filled[name] = default.model_dump() | _over_defaults(type(default), filled[name])
    return filled


def _with_nones(kind: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given``, nested tables too, with None for 'none' and 'null' where these can mean nothing else."""
    filled = dict(given)
    for name, field in kind.model_fields.items():
        value, options = filled.get(name), get_args(field.annotation)
        if isinstance(value, Mapping):
            inner = _inner(field.annotation)
            filled[name] = value if inner is None else _with_nones(inner, value)
        elif value in ("none", "null") and NoneType in options and not _takes(field.annotation, value):
            filled[name] = None
    return filled


def _takes(annotation: Any, value: str) -> bool:
    """Whether the value is one of the field's own: of a ``str | None``, or of a choice that has it."""
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The one config that a field holds; "LoRA | None" is one as well. None: it holds none, or several."""
    kinds = [
        one
        for one in (annotation, *get_args(annotation))
        if isinstance(one, type) and issubclass(one, BaseModel)
    ]
    return kinds[0] if len(kinds) == 1 else None


def _problems(kind: type[Frozen], error: ValidationError, where: str) -> list[str]:
    """Translate pydantic's report into one plain sentence a problem."""
    problems = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            key, around = str(item["loc"][-1]), item["loc"][:-1]
            known = _known(kind, around)
            near = nearest(key, known)
            if around and key in _known(kind, around[:-1]):
                near = f" ('{key}' is on the level of '{around[-1]}', not in it)"
            elif around and known and not near:
                near = f"; '{around[-1]}' takes {', '.join(known)}"
            problems.append(f"{where}: unknown key '{path}'{near}")
        elif item["type"] == "missing":
            problems.append(f"{where}: '{path}' is required and was not given")
        else:
            own = item.get("ctx", {}).get("error") if item["type"] == "value_error" else None
            said = str(own or item["msg"])
            said = said[:1].lower() + said[1:]  # the rest may quote names and choices
            given = item.get("input")  # a table was filled from defaults, so it is not what was written
            got = "" if own and isinstance(given, Mapping | list) else f", got {_shown(given)}"
            said = said.replace("a valid tuple", "a list")  # what TOML and JSON have
            problems.append(f"{where}: '{path}': {said}{got}" if path else f"{where}: {said}{got}")
    return problems


def _shown(value: Any) -> str:
    """The given value, shortened; a whole number of thousands of digits has no decimal form."""
    try:
        return repr(value)[:60]
    except (ValueError, RecursionError):
        return f"something of the type {type(value).__name__} beyond writing down"


def _known(kind: type[BaseModel], path: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys of the config at ``path`` inside ``kind``; () where that is not one config."""
    for part in path:
        field = kind.model_fields.get(str(part))
        inner = _inner(field.annotation) if field else None
        if inner is None:
            return ()
        kind = inner
    return tuple(kind.model_fields)
