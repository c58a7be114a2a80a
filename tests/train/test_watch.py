"""What a watched run says of the weights that it leaves: a 'yes', an 'unknown', or a 'no' at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calibrant.core import Identity, Verdict
from calibrant.models.fit import Fit
from calibrant.train._rl_state import Student, Watch, watched


class Says:
    """A watcher that gives these answers, one a look."""

    identity = Identity(name="says", kind="watcher", parts={"of": "a list"})

    def __init__(self, *answers):
        self.answers = iter(answers)

    def see(self, step, policy, rollouts):
        return Verdict(question="go on?", answer=next(self.answers), reason="it is on the list")


@pytest.mark.parametrize(
    ("answers", "good", "said"),
    [
        (["yes", "no"], 0, "that of step 0, of which it said 'yes'"),
        (["yes", "unknown", "no"], 1, "that of step 1, of which it could not tell ('unknown')"),
        (["no"], 0, "as it came in, of which it said 'no' at once"),
        (["yes", "unknown"], 1, "weights of which it could not tell ('unknown')"),
        (["yes", "unknown", "yes"], 2, "weights of which it said 'yes'"),
    ],
)
def test_an_unknown_is_not_told_as_a_yes(model, answers, good, said):
    student = Student(nn.Linear(1, 1), Fit())
    start = float(student.module.weight.detach())
    watch = watched(Says(*answers), student)
    assert isinstance(watch, Watch)
    stopped = False
    for step in range(len(answers)):
        student.put({name: torch.full_like(p, step) for name, p in student.weights().items()})
        stopped = watch.stops(step, model, student, None)
    assert stopped == (answers[-1] == "no")
    assert watch.good_step == good
    assert float(watch.good["weight"]) == (start if answers == ["no"] else good)
    if stopped:
        assert float(student.module.weight.detach()) == float(watch.good["weight"])
    assert said in watch.caveat(stopped, len(answers))
