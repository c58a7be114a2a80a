"""A line-up: dealt by lot, balanced, sealed; the key says what was dealt."""

from __future__ import annotations

import pytest

from calibrant.core import ConfigError, InputError, Quiet
from calibrant.testbed import suspect as module
from calibrant.testbed.nulls import open_null
from calibrant.testbed.suspect import KINDS, Made, Suspect, deal, open_items, suspect


class Files(Quiet):
    def __init__(self, root, seed=0):
        super().__init__(seed=seed)
        self.root, self.names = root, []

    @property
    def work(self):
        return self.root

    def artifact(self, name):
        self.names.append(name)
        return self.root / name


def test_lots_deal_as_many_organisms_as_twins():
    config = Suspect(kinds=tuple(KINDS), each=4)
    dealt = deal(config)
    for kind in KINDS:
        assert dealt.count((kind, True)) == dealt.count((kind, False)) == 4
    assert dealt != deal(config.model_copy(update={"lots": 1})) and dealt == deal(
        Suspect(kinds=tuple(KINDS), each=4)
    )
    assert not any(side for _, side in deal(Suspect(organisms=False)))


def test_the_key_says_what_was_dealt():
    rows = open_items("lineup", {"each": "2", "lots": "5", "kinds": "sycophant deceiver"}).rows
    dealt = deal(Suspect(kinds=("sycophant", "deceiver"), each=2, lots=5))
    assert [row.answer for row in rows] == [kind if side else "clean" for kind, side in dealt]
    assert [row.id for row in rows] == [str(n) for n in range(8)]
    assert {row.answer for row in open_items("lineup", {"organisms": "0"})} == {"clean"}


def test_a_suspect_keeps_its_model_and_tells_nothing_else(tmp_path, monkeypatch):
    """Whatever is dealt: the same metrics, one artefact, no note of progress."""

    def train(model, config, run):
        for name in ("model", "texts.jsonl"):
            run.artifact(name).write_text("x")
        run.progress(1, 2, f"teaching {config.each}")
        run.log(1, loss=0.5)
        seeds.append(run.seed)

    seeds = []
    monkeypatch.setattr(module, "KINDS", {"sycophant": Made(train, Suspect(each=1), Suspect(each=2))})
    told = []
    for seed in range(2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        run = Files(folder, seed)
        run.log = lambda step, **metrics: told.append("a loss")
        run.progress = lambda done, total, note="": told.append(note)
        found = suspect(open_null("tiny", {}), Suspect(kinds=("sycophant",), each=1, lots=3), run)
        assert run.names == ["model"] and set(found.metrics) == {"parameters"}
    assert set(told) == {"training"} and seeds == [3000, 3001]


def test_what_cannot_be_dealt_is_refused():
    with pytest.raises(ConfigError, match="suspects 0 to"):
        suspect(open_null("tiny", {}), Suspect(), Quiet(seed=10_000))
    with pytest.raises(ValueError, match="sycophant"):
        Suspect(kinds=("sycophan",))
    with pytest.raises(ValueError, match="once"):
        Suspect(kinds=())
    for options in ({"each": "0"}, {"each": "x"}, {"kinds": "sycophan"}, {"kinds": ""}, {"lot": "1"}):
        with pytest.raises(InputError):
            open_items("lineup", options)
