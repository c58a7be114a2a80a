"""``TaskTrees``: tasks taken apart into sub-tasks with known answers, which are put together again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from calibrant.core.config import Frozen
from calibrant.core.errors import InputError
from calibrant.data.cells import as_text, as_written, column, given, shown
from calibrant.data.rows import Table

Needs = Literal["all", "majority", "any"]
_NEEDS: tuple[Needs, ...] = ("all", "majority", "any")
_WORD = re.compile(r"[A-Za-z0-9_]+")
_FIELD = re.compile(r"\{(\w+)\}")
NODE_KEYS = ("id", "ask", "answer", "parts", "needs", "kind")


class SubTask(Frozen):
    """One node of a tree: a question that can be asked once its parts are answered."""

    id: str
    """Its name in the tree: letters, digits and '_'."""
    ask: str
    """What is asked; {NAME} stands for the answer that was given to the part NAME."""
    answer: str
    """The right answer, where those of all parts are right."""
    parts: tuple[str, ...] = ()
    """The nodes whose answers it takes; () for a leaf."""
    needs: Needs = "all"
    """How many of its parts must be right for it to be right: by this the formula counts."""
    kind: str = ""
    """What kind of step it is: error rates are shown by kind. "" is 'leaf' or 'inner'."""

    @property
    def group(self) -> str:
        """Its kind, or 'leaf' or 'inner' where it has none."""
        return self.kind or ("inner" if self.parts else "leaf")


class TaskTree(Frozen):
    """A task, and how it is taken apart."""

    id: str
    """Stable name of the row."""
    question: str
    """The whole task, as it is asked directly."""
    nodes: tuple[SubTask, ...]
    """In any order; the one that is no part of another is the root, and its answer is the task's."""
    cluster: str = ""
    """Tasks that share a template or a source are not independent; "" is its own cluster."""


class TaskTrees(Table[TaskTree]):
    """Tasks taken apart, for decomposition."""


class Layout:
    """A checked tree, every part before what it is a part of."""

    def __init__(self, tree: TaskTree) -> None:
        """Raises InputError where the nodes make no tree, or could not be asked or marked."""
        self.tree = tree
        self.nodes = {node.id: node for node in _checked(tree)}
        """In order of height."""
        self.height: dict[str, int] = {}
        """Name -> longest way down to a leaf; 0 for a leaf."""
        for node in self.nodes.values():
            self.height[node.id] = 1 + max((self.height[part] for part in node.parts), default=-1)
        self.root = next(reversed(self.nodes))
        above = {part: node.id for node in self.nodes.values() for part in node.parts}
        self.depth = {self.root: 0}
        """Name -> steps from the root."""
        for name in reversed(self.nodes):
            if name != self.root:
                self.depth[name] = self.depth[above[name]] + 1
        at = {name: place for place, name in enumerate(self.nodes)}
        self.shape = tuple(
            (tuple(at[part] for part in node.parts), node.needs, node.group) for node in self.nodes.values()
        )
        """(places of its parts, what it needs of them, its kind) of every node: what the formula reads."""

    @property
    def cluster(self) -> str:
        """What the task is not independent of."""
        return self.tree.cluster or f"task {self.tree.id}"


def _checked(tree: TaskTree) -> list[SubTask]:
    """The nodes by height. Raises InputError."""
    where = f"task '{tree.id}'"
    if not tree.question.strip():
        raise InputError(f"{where} asks nothing", hint="give it a question: the whole task in words")
    if not tree.nodes:
        raise InputError(f"{where} has an empty tree", hint="give it at least one node")
    nodes: dict[str, SubTask] = {}
    above: dict[str, str] = {}
    for node in tree.nodes:
        if node.id in nodes:
            raise InputError(f"{where} has two nodes named '{node.id}'", hint="give each its own id")
        nodes[node.id] = node
        _check_node(node, f"{where}, node '{node.id}',")
        for part in node.parts:
            if part in above:
                other = above[part]
                raise InputError(
                    f"{where}: '{part}' is a part of '{other}' and of '{node.id}'",
                    hint="a tree has one way to each node: write the node twice, under two ids",
                )
            above[part] = node.id
    for part, node_id in above.items():
        if part not in nodes:
            raise InputError(f"{where}: '{node_id}' has a part '{part}' that is no node", hint="name a node")
    return _by_height(nodes, above, where)


def _check_node(node: SubTask, where: str) -> None:
    if not _WORD.fullmatch(node.id):
        raise InputError(f"{where} has no usable id", hint="use letters, digits and '_'")
    if not node.answer.strip():
        raise InputError(f"{where} has no answer", hint="every node needs its right answer, to be audited")
    if not node.ask.strip():
        raise InputError(f"{where} asks nothing", hint="write what is asked")
    named = set(_FIELD.findall(node.ask))
    left = sorted(set(node.parts) - named)
    if left:
        raise InputError(
            f"{where} does not show its part '{left[0]}'",
            hint=f"write {{{left[0]}}} where its answer belongs",
        )
    strange = sorted(named - set(node.parts))
    if strange:
        raise InputError(f"{where} shows '{strange[0]}', which is no part of it", hint="add it to parts")


def _by_height(nodes: dict[str, SubTask], above: dict[str, str], where: str) -> list[SubTask]:
    """Leaves first, the root last; without recursion, for a chain may be long."""
    open_parts = {name: len(node.parts) for name, node in nodes.items()}
    ready = [name for name, parts in open_parts.items() if not parts]
    found: list[SubTask] = []
    while ready:
        higher = []
        for name in ready:
            found.append(nodes[name])
            if name in above:
                open_parts[above[name]] -= 1
                if not open_parts[above[name]]:
                    higher.append(above[name])
        ready = higher
    if len(found) < len(nodes):
        ring = sorted(name for name, parts in open_parts.items() if parts)
        raise InputError(
            f"{where} goes round in a circle through {', '.join(ring[:4])}",
            hint="no node may be a part of its own parts",
        )
    roots = [name for name in nodes if name not in above]
    if len(roots) > 1:
        raise InputError(
            f"{where} has {len(roots)} nodes that are no part of another: {', '.join(roots[:4])}",
            hint="one root puts all others together",
        )
    return found


def tree_made(name: str, row: Mapping[str, Any]) -> TaskTree:
    """A task of a raw row: question, nodes; cluster if given. Raises InputError, see ``Layout``."""
    nodes, cluster = column(row, "nodes")[1], given(row, "cluster")
    if not isinstance(nodes, (list, tuple)):
        raise InputError(f"wrong type: 'nodes' must be a list of nodes, got {shown(nodes)}")
    made = TaskTree(
        id=name,
        question=as_text(*column(row, "question", "prompt", "task")),
        nodes=tuple(_node(node) for node in nodes),
        cluster="" if cluster is None else as_written("cluster", cluster),
    )
    try:
        Layout(made)
    except InputError as error:
        raise InputError(f"no tree: {error.message}") from error
    return made


def _node(raw: Any) -> SubTask:
    if not isinstance(raw, Mapping):
        raise InputError(f"wrong type: a node must be an object, got {shown(raw)}")
    unread = [key for key in raw if key not in NODE_KEYS]
    if unread:
        raise InputError(f"unknown key: '{unread[0]}' in a node; known: {', '.join(NODE_KEYS)}")
    parts, needs, kind = given(raw, "parts") or (), given(raw, "needs") or "all", given(raw, "kind")
    if not isinstance(parts, (list, tuple)):
        raise InputError(f"wrong type: 'parts' must be a list of names, got {shown(parts)}")
    if needs not in _NEEDS:
        raise InputError(f"unknown needs: {shown(needs)} is none of {', '.join(_NEEDS)}")
    return SubTask(
        id=as_written(*column(raw, "id")),
        ask=as_text(*column(raw, "ask")),
        answer=as_written(*column(raw, "answer")),
        parts=tuple(as_written("parts", part) for part in parts),
        needs=needs,
        kind="" if kind is None else as_written("kind", kind),
    )
