"""The pages' templates, as jinja2 reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from calibrant.views import formatting


def template(name: str, **helpers: Callable[[Any], object]) -> Template:
    """A template of this folder, with ``helpers`` as filters; escaping on, undefined names are errors."""
    environment = Environment(
        loader=PackageLoader("calibrant", "views"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"short": formatting.short, **helpers}
    return environment.get_template(name)
