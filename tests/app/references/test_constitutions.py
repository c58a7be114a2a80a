"""References to constitutions: a file, one that ships, the testbed's, an earlier job's; and what is none."""

from __future__ import annotations

import pytest

from calibrant.app.references.openers import Openers
from calibrant.core import LM, CalibrantError, ConfigError, InputError
from calibrant.data.constitution import Constitution
from calibrant.data.rows import Preferences
from calibrant.ledger import Ledger


@pytest.fixture
def openers(tmp_path):
    return Openers(Ledger(tmp_path / "ledger"), base=tmp_path)


def test_each_kind_opens_and_its_digest_is_that_of_its_principles(openers, tmp_path):
    shipped = openers.open("starter_constitution.toml", Constitution)
    assert shipped.load().name == "starter"
    assert shipped.digest == shipped.load().digest
    (tmp_path / "own.toml").write_text('name = "own"\n[[principle]]\nid = "a"\ntext = "be kind."\n')
    own = openers.open("own.toml", Constitution)
    (tmp_path / "again.toml").write_text(
        '# a remark\nname = "own"\n[[principle]]\ntext = "be kind."\nid = "a"\n'
    )
    assert openers.open("again.toml", Constitution).digest == own.digest
    planted = openers.open("testbed:constitution/conflict", Constitution)
    assert len(planted.load().principles) == 5


def test_the_testbeds_pairs_and_models(openers):
    assert len(openers.open("testbed:pairs/principled?n=14", Preferences).load()) == 14
    reader = openers.open("testbed:reader/ruled?error=.1", LM)
    assert reader.digest != openers.open("testbed:reader/ruled", LM).digest
    assert openers.open("testbed:writer/ruled", LM).load().identity.name == "testbed:writer/ruled"


@pytest.mark.parametrize(
    ("reference", "wanted", "error", "says"),
    [
        ("none.toml", Constitution, InputError, "no file 'none.toml'"),
        ("broken.toml", Constitution, ConfigError, "holds no"),
        ("testbed:constitution/none", Constitution, InputError, "no such name"),
        ("testbed:goals/heldout", Constitution, ConfigError, "is no constitution"),
        ("testbed:constitution/clean", Preferences, ConfigError, "no rows of kind"),
        ("testbed:constitution/clean", LM, ConfigError, "is no model"),
        ("jsonl:x.jsonl", Constitution, CalibrantError, "Constitution"),
        ({"name": "x"}, Constitution, CalibrantError, "Constitution"),
    ],
)
def test_what_is_none(openers, tmp_path, reference, wanted, error, says):
    (tmp_path / "broken.toml").write_text('name = "x"\n')
    with pytest.raises(error, match=says):
        openers.open(reference, wanted)
