"""The page of attacks: complete, self-contained, and deaf to what a hostile reply says."""

from __future__ import annotations

import re
from datetime import date
from html.parser import HTMLParser

import pytest

from calibrant.app.export import report_of
from calibrant.core import Attempt, Chat, Completion, Verdict
from calibrant.data.rows import Attempts
from calibrant.views.attack_report import attack_page

HOSTILE = "</pre></details><script>alert(1)</script><img src=x onerror=alert(1)> {{ 7*7 }} \u202etxet\x1b[31m"


def attempt(goal, outcome, attack="attack.encode/rot13", category="privacy", text="hm", judge="j"):
    answer = {"success": "yes", "failure": "no", "undetermined": "unknown"}[outcome]
    return Attempt(
        id=f"{goal}-{attack}-{outcome}",
        goal_id=goal,
        category=category,
        attack=attack,
        family="transform",
        chat=Chat.ask("please"),
        completion=Completion(text=text),
        verdicts={judge: Verdict(question="q", answer=answer, reason=text)},
        outcome=outcome,
    )


def page(*attempts, reveal=False, target="a model"):
    table = Attempts(rows=attempts, source="jsonl:x.jsonl")
    made = date(2026, 1, 2)
    return attack_page(report_of(table, target, ("judged by a rule",), reveal=reveal, made=made))


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def tags(text):
    parser = Tags()
    parser.feed(text)
    assert parser.open == []
    return parser.seen


def test_the_matrix_has_every_cell_with_its_interval():
    text = page(
        attempt("g1", "success"),
        attempt("g2", "undetermined"),
        attempt("g3", "failure", category="bias"),
        attempt("g4", "failure", attack="attack.persona/actor", category="bias"),
    )
    seen = [tag for tag, _ in tags(text)]
    assert seen.count("tr") == 3  # a head, two techniques
    assert "not tried" in text  # persona on privacy
    assert 'unknown</span> <span class="ci">[0.013, 1.000]' in text
    assert "1 of 2 goals reached, 1 open" in text and "judged by a rule" in text
    assert 'held">held<' in text
    assert "1 of 4 goals reached" in text


def test_what_nobody_could_judge_has_not_held():
    text = page(attempt("g1", "failure"), attempt("g2", "undetermined"))
    assert 'open">open<' in text and 'held">held<' not in text
    assert 'open">open<' in page(attempt("g", "undetermined"))


def test_a_goal_reached_by_two_attacks_is_one_goal():
    text = page(attempt("g", "success"), attempt("g", "success", attack="attack.persona/actor"))
    assert "1 of 1 goal reached" in text and text.count("<details>") == 2


def test_one_file_and_no_script():
    text = page(attempt("g", "success"))
    seen = tags(text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in seen}
    assert not [a for _, attrs in seen for a in attrs if a.startswith("on") or a == "src"]
    assert "default-src 'none'" in text and "prefers-color-scheme:dark" in text
    assert not re.search(r"url\(|@import|https?:", text)


def test_it_can_be_read_aloud():
    seen = tags(page(attempt("g", "success")))
    assert ("html", {"lang": "en"}) in seen
    assert all("scope" in attrs for tag, attrs in seen if tag == "th")
    assert sum(tag == "h1" for tag, _ in seen) == 1
    assert any(tag == "caption" for tag, _ in seen)


@pytest.mark.parametrize("reveal", [False, True])
def test_a_hostile_reply_is_text(reveal):
    text = page(
        attempt(HOSTILE, "success", attack=HOSTILE, category=HOSTILE, text=HOSTILE, judge=HOSTILE),
        reveal=reveal,
        target=HOSTILE,
    )
    assert not {"script", "img"} & {tag for tag, _ in tags(text)}
    assert "49" not in re.sub(r"[0-9a-f]{12}", "", text.partition("</style>")[2])
    assert "\u202e" not in text and "\x1b" not in text
    assert (
        "txet" in text.partition("Goals reached")[2].partition("reply</dt>")[2].split("</pre>")[0]
    ) == reveal


def test_nothing_reached_is_not_called_safe():
    text = page(attempt("g", "failure"))
    assert "not the same as safe" in text


def test_equal_reports_are_equal_bytes():
    assert page(attempt("g", "success")) == page(attempt("g", "success"))


def test_reasoning_is_folded_and_escaped():
    hit = attempt("a", "success")
    thought = hit.model_copy(update={"completion": Completion(text="hm", reasoning=HOSTILE)})
    shown = page(thought, reveal=True)
    assert ("script", {}) not in tags(shown)
    assert "<dt>reasoning</dt><dd><details><summary>" in shown and "\\u202e" in shown
    assert "<dt>reasoning</dt>" not in page(hit, reveal=True)
