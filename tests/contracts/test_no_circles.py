"""No file leads back to itself by its imports; those for types and those inside functions count, too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import calibrant
from calibrant.app import catalog

ROOT = Path(calibrant.__file__).parent
Graph = Mapping[str, set[str]]


def files(root: Path) -> dict[str, Path]:
    """Module name -> its file; a package has the name of its folder."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """Every name that is imported, wherever that stands, and every 'module:name' that is loaded later."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"^([\w.]+):\w+$", node.value)


def graph(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the same package that it imports: a name, or the module that the name is in."""
    known = files(root)
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        names = set(imports(ast.parse(path.read_text(encoding="utf-8"))))
        found[module] = {name if name in known else name.rpartition(".")[0] for name in names} & known.keys()
    return found


def circles(edges: Graph) -> list[tuple[str, ...]]:
    """The strongly connected components of more than one module, and the modules that import themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            fresh = edges[todo.pop()] - seen
            seen |= fresh
            todo += fresh
        return seen

    ahead = {module: reached(module) for module in edges}
    return sorted(
        {tuple(sorted(m for m in ahead[one] if one in ahead[m])) for one in edges if one in ahead[one]}
    )


def test_no_file_leads_back_to_itself():
    edges = graph(ROOT)
    listed = [*catalog.TECHNIQUES.values(), *catalog.BEHAVIOURS.values()]  # what the catalogue loads later
    edges[catalog.__name__] |= {one.target.partition(":")[0] for one in listed}
    assert "calibrant.attack.gcg" in edges[catalog.__name__]
    found = circles(edges)
    assert not found, "\n".join(["circles of imports:", *map(" <-> ".join, found)])


@pytest.mark.parametrize(
    "back",
    [
        "import p.a",
        "from p.a import x",
        "from p import a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import x",
        "def f():\n    from p.a import x",
        "load('p.a:x')",
    ],
)
def test_a_planted_circle_is_found(tmp_path, back):
    package = tmp_path / "p"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "a": "from p.b import y",
        "b": "import p.c",
        "c": back,
        "d": "import p.a",
    }.items():
        (package / f"{name}.py").write_text(text)
    assert circles(graph(package)) == [("p.a", "p.b", "p.c")]
    (package / "c.py").write_text("import os\nimport p.d2\n'see p.a:x for more'")
    assert circles(graph(package)) == []
