"""References to guards' policies: one that ships, a file of the study, and what is none."""

from __future__ import annotations

import pytest

from calibrant.app.references import locate
from calibrant.app.references.openers import Openers
from calibrant.core import LM, ConfigError, InputError
from calibrant.data.guard_policy import GuardPolicy, read_guard_policy
from calibrant.ledger import Ledger


def test_a_stack_file_opens_it_with_a_policy_that_ships_or_lies_beside(tmp_path):
    openers = Openers(Ledger(tmp_path / "ledger"), base=tmp_path)
    starter = openers.open("starter_policy.toml", GuardPolicy)
    assert starter.load() == read_guard_policy(locate.STUDIES / "starter_policy.toml")
    own = tmp_path / "own.toml"
    own.write_text('name="o"\nversion="1"\n[[rule]]\nid="a"\ntitle="A"\ndefinition="It says a."\n')
    stack = tmp_path / "stack.toml"
    seen = set()
    for policy in ("starter_policy.toml", "own.toml"):
        stack.write_text(
            '[[layer]]\nname = "policy"\nside = "input"\n[layer.guard]\nuse = "defend.policy_guard"\n'
            f'inputs = {{ model = "testbed:model/base", policy = "{policy}" }}\n'
        )
        opened = openers.open("defended:stack.toml#testbed:model/base", LM)
        seen.add(opened.digest)
    assert len(seen) == 2
    assert opened.load().identity.digest == opened.digest
    own.write_text('name="o"\nversion="1"\n[[rules]]\nid="a"\n')
    with pytest.raises(ConfigError, match="did you mean 'rule'"):
        openers.open("defended:stack.toml#testbed:model/base", LM)
    with pytest.raises(InputError, match=r"no file 'none\.toml'"):
        openers.open("none.toml", GuardPolicy)
