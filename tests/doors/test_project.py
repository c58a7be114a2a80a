"""The project's own promises: floors, budgets, benchmark rows and the table made from them."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def script(path: str) -> ModuleType:
    """A script of this repository, imported without running its main."""
    spec = importlib.util.spec_from_file_location(f"calibrant_{Path(path).stem}", ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Without the sweeping between two rounds, which takes a second in a process that holds a whole suite."""
    monkeypatch.setattr("gc.collect", int)
    return script("benchmarks/_race.py")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("tools/bench_table.py")


class Clock:
    """A clock that only the runners move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float, name: str, log: list[str]) -> Any:
        def work() -> None:
            log.append(name)
            self.now += seconds

        return work


def row(**changes: Any) -> dict[str, Any]:
    known = {"name": "a race", "target": 1.0, "ratio": 1.5, "low": 1.25, "high": 1.75, "equal": True}
    return known | {"memory_ratio": None, "versions": {"torch": "2"}} | changes


def test_imports_keep_to_the_floors() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_stay_short_enough_to_read() -> None:
    assert SOURCES
    long = {path.name: n for path in SOURCES if (n := len(path.read_text("utf-8").splitlines())) > 400}
    assert not long


def test_shipped_weights_fit_their_budget() -> None:
    weights = [*(ROOT / "src").rglob("*.safetensors")]
    assert sum(path.stat().st_size for path in weights) <= 20_000_000


def test_a_race_knows_who_is_slower_and_lets_both_go_first(race: ModuleType) -> None:
    clock, log = Clock(), []
    ours, peers = clock.takes(2.0, "ours", log), clock.takes(3.0, "peer", log)
    assert race.race(ours, peers, 3, clock) == [1.5, 1.5, 1.5]
    assert log == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_a_race_of_equals_is_a_draw(race: ModuleType) -> None:
    clock = Clock()
    same = clock.takes(2.0, "same", [])
    assert race.race(same, same, 4, clock) == [1.0] * 4


def test_a_ratio_is_the_geometric_mean_inside_its_interval(race: ModuleType) -> None:
    """sqrt(2 x 0.5) = 1: twice as fast and twice as slow is a draw."""
    quick = race.make_row("x", [2.0, 0.5], equal=True)
    assert quick.ratio == pytest.approx(1.0) and quick.low is None and quick.high is None
    full = race.make_row("x", [1.1, 1.2, 1.0, 1.3, 1.15], equal=True)
    assert full.low < full.ratio < full.high
    logs = [math.log(r) for r in (1.1, 1.2, 1.0, 1.3, 1.15)]
    assert full.ratio == pytest.approx(math.exp(sum(logs) / 5))


def test_peak_memory_counts_what_lives_at_once(race: ModuleType) -> None:
    """1,000 float32 = 4,000 bytes each: two live at once, a view and an in-place change add nothing."""

    def work() -> None:
        tensor = torch.zeros(1000)
        for _ in range(5):
            tensor = tensor + 1
        tensor.view(10, 100).mul_(2)

    with torch.inference_mode():
        assert race.peak_bytes(work) == 8000
        assert race.peak_bytes(lambda: None) == 0


def test_the_table_shows_losses_and_never_calls_the_unknown_met(bench: ModuleType) -> None:
    rows = [
        row(name="won"),
        row(name="lost", low=0.75),
        row(name="quick", low=None, high=None),
        row(name="unequal", equal=False),
    ]
    said = {line.split(" | ")[0].strip("| "): line for line in bench.table(rows).splitlines()}
    assert said["won"] == "| won | 1.50 [1.25, 1.75] | 1 |  | met |"
    assert "missed" in said["lost"] and "met" not in said["quick"] and "met" not in said["unequal"]


def test_only_the_table_of_a_page_is_replaced(bench: ModuleType) -> None:
    page = f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter\n"
    assert bench.replaced(page, "new\n") == f"before\n{bench.BEGIN}\nnew\n{bench.END}\nafter\n"
    for broken in ("no markers", bench.BEGIN, f"{bench.END}{bench.BEGIN}", page * 2):
        with pytest.raises(ValueError, match="needs one"):
            bench.replaced(broken, "new")


def test_the_readme_holds_the_table_of_the_committed_results(bench: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = bench.read(ROOT / "benchmarks" / "results")
    assert readme == bench.replaced(readme, bench.table(rows)), "run tools/bench_table.py"


def test_committed_results_are_rows_of_full_runs(race: ModuleType) -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        rows = json.loads(path.read_text(encoding="utf-8"))
        assert rows and (ROOT / "benchmarks" / f"{path.stem}.py").is_file(), path.name
        for found in rows:
            assert set(found) == set(race.Row._fields), path.name
            assert found["equal"] is True and found["low"] <= found["ratio"] <= found["high"], found["name"]


def test_every_benchmark_is_explained() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks").glob("[a-z]*.py"):
        assert f"`{path.name}`" in page, path.name


def test_every_make_target_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:]
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(targets) >= {"setup", "demo", "test", "check", "bench", "peers", "docs", "clean"}
    assert not [target for target in targets if f"`make {target}`" not in page and target != "lint"]
