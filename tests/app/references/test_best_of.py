"""``best_of:N/REWARD#MODEL``: known before anything is loaded, and refused by name where it is none."""

from __future__ import annotations

import pytest

from calibrant.app.check import check_study
from calibrant.app.references.openers import Openers
from calibrant.app.study_file import load_study
from calibrant.core import LM, CapabilityError, Chat, ConfigError, Identity, OpenLM, Reward, Sampling
from calibrant.models.best_of_n import BestOfN

NULL, GOLD = "testbed:null/tiny?seed=1", "testbed:reward/gold"
DRAW = Sampling(max_tokens=4, temperature=1.0)


@pytest.fixture
def openers(ledger, tmp_path):
    return Openers(ledger, base=tmp_path, given={"model": NULL})


@pytest.mark.parametrize("model", [NULL, "given:model"])
def test_it_is_the_best_of_n_of_its_parts(openers, model):
    opened = openers.open(f"best_of:3/{GOLD}#{model}", LM)
    parts = BestOfN(openers.open(NULL, LM).load(), openers.open(GOLD, Reward).load(), 3)
    assert opened.digest == parts.identity.digest == opened.load().identity.digest
    chats = [Chat.ask("how do i bake a plain loaf?")]
    assert opened.load().generate(chats, DRAW) == parts.generate(chats, DRAW)


def test_n_reward_and_model_each_make_another(openers):
    named = [f"best_of:3/{GOLD}#{NULL}", f"best_of:4/{GOLD}#{NULL}", f"best_of:3/{GOLD}#{NULL[:-1]}2"]
    assert len({openers.open(name, Identity).digest for name in named}) == 3


def test_one_inside_another(openers):
    inner = f"best_of:2/{GOLD}#{NULL}"
    assert openers.open(f"best_of:3/{GOLD}#{inner}", Identity).name.startswith("best of 3 of best of 2 of")


@pytest.mark.parametrize(
    "reference",
    [
        *(f"best_of:{n}/{GOLD}#{NULL}" for n in ("0", "-1", "²", "", "99999999999")),
        *(f"best_of:{rest}" for rest in ("", "3/", f"3/{GOLD}", f"3/{GOLD}#", f"3/#{NULL}")),
        f"best_of:2/{GOLD}#" * 40 + NULL,
    ],
)  # fmt: skip
def test_what_is_none_is_refused_alike_by_check_and_by_opening(openers, tmp_path, reference):
    with pytest.raises(ConfigError) as caught:
        openers.open(reference, LM)
    (tmp_path / "study.toml").write_text(
        'name = "s"\n[[job]]\nid = "j"\nuse = "measure.capability"\n'
        f'inputs = {{ model = "{reference}", items = "testbed:items/core" }}\n'
    )
    problems = list(check_study(load_study(str(tmp_path / "study.toml"))))
    assert any(str(caught.value.message) in p for p in problems), problems


def test_it_only_talks(openers):
    with pytest.raises(CapabilityError, match="does not offer"):
        openers.open(f"best_of:2/{GOLD}#{NULL}", OpenLM).load()
