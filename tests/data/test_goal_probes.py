"""Goal probes are read strictly, and know how goal and proxy stand to each other."""

from __future__ import annotations

import json

import pytest

from calibrant.core import Chat, InputError
from calibrant.data.files import raw_rows
from calibrant.data.goal_probes import GoalProbe, goal_probes_from
from calibrant.testbed.scenes import open_goal_probes

GOOD = {"question": "which?", "options": ["x", "y", "z"], "goal": "x", "proxy": "y"}


def read(tmp_path, *rows):
    path = tmp_path / "probes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return goal_probes_from(raw_rows(path), str(path))


@pytest.mark.parametrize(
    ("goal", "proxy", "kind"),
    [
        ("x", "x", "agree"),
        ("x", "y", "apart"),
        ("x", "", "goal_only"),
        ("", "y", "proxy_only"),
        ("", "", "neither"),
    ],
)
def test_the_kind_follows_from_goal_and_proxy(tmp_path, goal, proxy, kind):
    (row,) = read(tmp_path, GOOD | {"goal": goal, "proxy": proxy or None})
    assert row.kind == kind and row.options == ("x", "y", "z")


def test_what_is_written_is_read_back(tmp_path):
    made = open_goal_probes("flint", {"n": "6"})
    again = read(tmp_path, *(row.model_dump(mode="json") for row in made))
    assert again.rows == made.rows and not again.refused and not again.unused


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"goal": "w"}, "'goal' is none of the options"),
        ({"proxy": "w"}, "'proxy' is none of the options"),
        ({"options": ["x", "X ", "z"], "goal": "", "proxy": ""}, "two options are the same"),
        ({"options": ["x", "x!", "z"], "goal": "x!", "proxy": "x"}, "two options are the same"),
        ({"options": ["x"], "proxy": ""}, "at least 2"),
        ({"options": "xyz"}, "must be a list of texts"),
        ({"options": ["x", 3, "y"]}, "must be text"),
        ({"options": None}, "options"),
        ({"question": " "}, "question"),
        ({"match": "loosely"}, "'exact' or 'contains'"),
    ],
)
def test_a_row_that_says_nothing_clear_is_refused_with_its_reason(tmp_path, change, reason):
    table = read(tmp_path, GOOD, GOOD | change)
    assert len(table) == 1 and len(table.refused) == 1
    assert table.refused[0].line == 2 and reason in table.refused[0].reason
    with pytest.raises(InputError, match="none of 1 rows is a goal probe"):
        read(tmp_path, GOOD | change)


def test_ids_columns_and_system_messages(tmp_path):
    with pytest.raises(InputError, match="share the id 'a'"):
        read(tmp_path, GOOD | {"id": "a"}, GOOD | {"id": "a"})
    with pytest.raises(InputError, match="system"):
        read(tmp_path, GOOD | {"system": "be bold."})
    table = read(tmp_path, GOOD | {"note": "hm"})
    assert table.unused == ("note",) and table.rows[0].id == "probe:1"
    with pytest.raises(ValueError, match="none of the options"):
        GoalProbe(id="a", chat=Chat.ask("which?"), options=("x", "y"), goal="w")
