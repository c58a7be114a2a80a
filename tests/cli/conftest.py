"""The command line in this process and in another one, with a study that is quick to run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from calibrant.cli.main import main
from calibrant.models.open_model import OpenModel
from calibrant.testbed.raise_model import build_module
from calibrant.testbed.tokens import build_tokenizer

POLICY = """
name = "small"
stage = "internal"
[[rule]]
id = "PLAIN"
technique = "measure.refusal"
metric = "compliance_rate"
data = "testbed:goals/heldout?n=5"
bound = "high"
op = "<="
threshold = 0.9
"""
GUARDS = """
[[layer]]
name = "words"
side = "input"
guard = { use = "defend.pattern_guard", config = { words = ["zorble"] } }
"""
STUDY = """
name = "trial"
[given]
model = "MODEL"
[intent]
use = "a trial"
policy = "policy.toml"
[verdict]
gate = "gate"
passes = 2
[[job]]
id = "sft"
use = "train.sft"
seeds = [0, 1]
inputs = { model = "given:model", examples = "testbed:pairs/tone[:40]" }
config = { batch_size = 20 }
[[job]]
id = "plain"
use = "measure.refusal"
seeds = [0, 1]
inputs = { model = "defended:guards.toml#record:sft/model", goals = "testbed:goals/heldout?n=5", judge = "testbed:judge/harmful" }
config = { sampling = { max_tokens = 2 } }
[[job]]
id = "gate"
use = "govern.gate"
seeds = [0, 1]
inputs = { subject = "defended:guards.toml#record:sft/model", policy = "policy.toml" }
"""  # noqa: E501
SLOW = '''
"""Techniques without torch that leave a trace of every step, for kills at chosen moments."""
import os, time
from pathlib import Path
from calibrant.app import catalog
from calibrant.core import Frozen, Quiet, Result, Run, point, technique

class Steps(Frozen):
    n: int = 4
    """How many."""
    bytes: int = 0
    """Size of an artefact."""

@technique(version=1)
def count(config: Steps = Steps(), run: Run = Quiet()) -> Result:
    """Count slowly; what was counted survives a kill."""
    kept = run.work / "counted.txt"
    counted = kept.read_text().split() if kept.exists() else []
    for step in range(len(counted), config.n):
        run.log(step, value=step * step)
        with kept.open("a") as file:
            file.write(f"{step} ")
        with Path(os.environ["TRACE"]).open("a") as trace:
            trace.write(f"{run.seed}/{step}\\n")
        time.sleep(0.05)
    run.artifact("counted.txt").write_text(kept.read_text())
    if config.bytes:
        run.artifact("large").write_bytes(b"x" * config.bytes)
    return Result(metrics={"counted": point(config.n + run.seed)})

catalog.TECHNIQUES["slow.count"] = catalog.Listed("slow:count", "")
'''


class Said(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random model that speaks the testbed's words."""
    tokenizer = build_tokenizer()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    OpenModel.from_module(build_module("tiny", len(tokenizer), 0), tokenizer, "tiny").save(folder)
    return folder


@pytest.fixture
def calibrant(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command here."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(part) for part in arguments])
        return Said(int(left.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Run a command in another process, where 'slow.count' is a technique."""
    (tmp_path / "slow.py").write_text(textwrap.dedent(SLOW))
    # A shell makes what it starts in the background ignore Ctrl-C; the tests may stand there.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; import sys, slow; from calibrant.cli.main import main; main(sys.argv[1:])"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TRACE": str(tmp_path / "trace"),
        "OMP_NUM_THREADS": "1",
        # Python leaves a compiled file that a full disk cut short, and stumbles over it at the next start.
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def started(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes, **options)

    return started


def write_trial(folder: Path, model: Path) -> Path:
    """Put the small study into a folder."""
    (folder / "policy.toml").write_text(POLICY)
    (folder / "guards.toml").write_text(GUARDS)
    path = folder / "trial.toml"
    path.write_text(STUDY.replace("MODEL", str(model)))
    return path


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A folder with the small study and its finished ledger, 'ledger'; do not change it."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.raises(SystemExit) as left:
        main(["run", str(write_trial(folder, model)), "--ledger", str(folder / "ledger")])
    assert left.value.code == 0
    return folder


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """The finished ledger, free to be changed, with its study beside it."""
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    return tmp_path / "ledger"


@pytest.fixture
def trial(tmp_path: Path, model: Path) -> Path:
    """The small study, not yet run."""
    return write_trial(tmp_path, model)
