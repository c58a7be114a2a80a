"""A constitution as a file: read, written back, and refused with every problem named."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrant.core import ConfigError, InputError
from calibrant.data.constitution import (
    Constitution,
    Principle,
    PrincipleTest,
    constitution_of,
    read_constitution,
    written,
)

STARTER = Path(__file__).parents[2] / "src/calibrant/studies/starter_constitution.toml"


def one(name="a", text="be kind.", **rest):
    return {"id": name, "text": text, **rest}


def made(*principles, **head):
    return constitution_of({"name": "n", "principle": list(principles), **head}, where="c.toml")


def test_the_starter_reads_and_every_principle_has_a_test_and_other_words():
    starter = read_constitution(STARTER)
    assert starter.name == "starter"
    assert len(starter.principles) >= 6
    assert all(p.tests and p.reworded for p in starter.principles)
    assert len({p.priority for p in starter.principles}) > 1


@pytest.mark.parametrize(
    "text", ['say "no".', "a\\b", "tab\there", "line\nline", "ünï ☃", "\x7f", "'''", '"""']
)
def test_what_is_written_reads_back(tmp_path, text):
    test = PrincipleTest(question=text, better=f"{text} x", worse=f"{text} y")
    principle = Principle(
        id="p-1",
        text=f"prefer {text}",
        scope=("a b", text),
        priority=-2,
        reworded=(f"x {text}",),
        tests=(test,),
    )
    constitution = Constitution(
        name=f"n {text}", version="2b", principles=(principle, Principle(id="q", text="z"))
    )
    path = tmp_path / "c.toml"
    path.write_text(written(constitution), encoding="utf-8")
    again = read_constitution(path)
    assert again == constitution
    assert again.digest == constitution.digest


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"name": "n"}, "holds no"),
        ({"name": "n", "principle": []}, "holds no"),
        ({"name": "n", "principle": {"id": "a"}}, "write \\[\\[principle\\]\\]"),
        ({"name": "n", "principle": ["a"]}, "principle 1 must be a table"),
        ({"principle": [one()]}, "name"),
        ({"name": "n", "principels": [one()]}, "did you mean 'principle'"),
        ({"name": "n", "principle": [one(txt="x")]}, "unknown key 'txt'"),
        ({"name": "n", "principle": [one(name="A b")]}, "small letters"),
        ({"name": "n", "principle": [one(name="a/b")]}, "small letters"),
        ({"name": "n", "principle": [one(text=" . ")]}, "says nothing"),
        ({"name": "n", "principle": [one(reworded=["?"])]}, "says nothing"),
        ({"name": "n", "principle": [one(text="x" * 5000)]}, "4000"),
        ({"name": "n", "principle": [one(priority="high")]}, "priority"),
        ({"name": "n", "principle": [one(priority=1.5)]}, "priority"),
        ({"name": "n", "principle": [one(), one()]}, "'a' is used 2 times"),
        (
            {"name": "n", "principle": [one(), one("b", "Be KIND", priority=1)]},
            "contradictory priorities: 'a' and 'b' say the same, with 0 and 1",
        ),
        (
            {"name": "n", "principle": [one(test=[{"question": "q", "better": "Yes.", "worse": "yes"}])]},
            "same answer",
        ),
    ],
)
def test_every_fault_is_named(table, says):
    with pytest.raises(ConfigError, match=says):
        constitution_of(table, where="c.toml")


def test_tests_of_equal_priority_must_agree_and_an_order_settles_it():
    plus = [{"question": "Q?", "better": "x", "worse": "y"}]
    minus = [{"question": "q", "better": "Y", "worse": "X!"}]
    with pytest.raises(ConfigError, match="'a' and 'b' call one answer"):
        made(one(test=plus), one("b", "be brief", test=minus))
    settled = made(one(test=plus, priority=1), one("b", "be brief", test=minus))
    assert len(settled.principles) == 2


def test_all_problems_come_at_once():
    with pytest.raises(ConfigError) as caught:
        made(one("A"), one("b", ""), one("c", priority="x"))
    assert len(caught.value.problems) >= 3


def test_contradictions_are_told_beside_what_can_not_be_read():
    """An unknown key, an id used twice, and one text under two priorities, of three principles."""
    with pytest.raises(ConfigError) as caught:
        made(one(), one(importance=3), one("b", "Be kind!", priority=2))
    text = "\n".join(caught.value.problems)
    assert "unknown key 'importance'" in text and "'a' is used 2 times" in text
    assert "'a' and 'b' say the same" in text


def test_messages_speak_of_lists_and_of_the_file():
    with pytest.raises(ConfigError, match="'scope': input should be a list, got 'x'"):
        made(one(scope="x"))
    with pytest.raises(ConfigError, match=r"'test\.0\.better' is required"):
        made(one(test=[{"question": "q", "worse": "a"}]))
    with pytest.raises(ConfigError, match=r"write \[\[principle\.test\]\] below its principle"):
        constitution_of({"name": "n", "principle": [one()], "test": [{}]})


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_constitution(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot read"):
        read_constitution(tmp_path)
    (tmp_path / "latin.toml").write_bytes("name = 'ü'".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        read_constitution(tmp_path / "latin.toml")
    (tmp_path / "cut.toml").write_text("name = 'a")
    with pytest.raises(ConfigError, match="not TOML"):
        read_constitution(tmp_path / "cut.toml")


def test_the_digest_covers_every_field():
    base = made(one(reworded=["other"], scope=["x"], test=[{"question": "q", "better": "a", "worse": "b"}]))
    first = base.principles[0]
    changes = [
        {"text": "z"}, {"scope": ()}, {"priority": 1}, {"reworded": ()}, {"tests": ()}, {"id": "z"},
    ]  # fmt: skip
    seen = {base.digest, base.model_copy(update={"version": "2"}).digest}
    for change in changes:
        seen.add(base.model_copy(update={"principles": (first.model_copy(update=change),)}).digest)
    assert len(seen) == len(changes) + 2


def test_a_draw_depends_on_key_and_seed_and_respects_scope():
    both = made(one(scope=["x"]), one("b", "be brief"), one("c", "be calm"))
    assert {p.id for k in range(40) if (p := both.draw("y", str(k), 0))} == {"b", "c"}
    assert [both.draw("x", "k", s) for s in range(9)] == [both.draw("x", "k", s) for s in range(9)]
    assert len({both.draw("x", "k", s) for s in range(30)}) == 3
    assert made(one(scope=["x"])).draw("y", "k", 0) is None
    assert [p.id for p in both.without("b").principles] == ["a", "c"]


def test_a_sign_is_a_difference_and_a_mark_at_the_start_of_the_file_is_none(tmp_path):
    made(one(test=[{"question": "2 - 7?", "better": "-5", "worse": "5"}]))
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xef\xbb\xbf" + written(made(one())).encode())
    assert read_constitution(path) == made(one())


def test_a_contradiction_hides_behind_no_earlier_principle():
    plus = [{"question": "Q?", "better": "x", "worse": "y"}]
    minus = [{"question": "q", "better": "y", "worse": "x"}]
    with pytest.raises(ConfigError, match="'b' and 'c' call one answer"):
        made(
            one("a", "t", priority=1, test=plus), one("b", "u", priority=2, test=plus),
            one("c", "v", priority=2, test=minus),
        )  # fmt: skip
