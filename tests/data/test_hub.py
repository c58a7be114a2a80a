"""Hub datasets, offline: a local folder in the hub's layout, and the errors of a hub out of reach."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from calibrant.core.errors import InputError
from calibrant.data.hub import rows_from_hub
from calibrant.data.readers import read
from calibrant.data.rows import Preferences


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    home = tmp_path / "greetings"
    home.mkdir()
    line = '{{"prompt": "Hi {0}", "chosen": "Good day", "rejected": "Go away"}}\n'
    (home / "train.jsonl").write_text("".join(line.format(n) for n in range(3)))
    (home / "test.jsonl").write_text(line.format("test"))
    return home


def test_a_local_folder_streams_the_split_asked_for(folder: Path) -> None:
    pairs = read(Preferences, rows_from_hub(str(folder), None), str(folder))
    assert [(pair.id, pair.prompt.last_user) for pair in pairs] == [
        ("greetings:1", "Hi 0"),
        ("greetings:2", "Hi 1"),
        ("greetings:3", "Hi 2"),
    ]
    [(line, row)] = rows_from_hub(str(folder), None, split="test")
    assert (line, row["prompt"]) == (1, "Hi test")  # type: ignore[index,call-overload]


def test_a_wrong_split_or_subset_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"split 'nope'.*cannot be opened: .*train"):
        list(rows_from_hub(str(folder), None, split="nope"))
    with pytest.raises(InputError, match="subset odd"):
        list(rows_from_hub(str(folder), None, subset="odd"))


def test_a_file_that_breaks_off_is_an_error(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": "H')
    with pytest.raises(InputError, match="greetings") as caught:
        list(rows_from_hub(str(folder), None))
    assert caught.value.hint


def test_a_hub_out_of_reach_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="'someone/something' at revision 0123abc, split 'train'") as caught:
        list(rows_from_hub("someone/something", "0123abc"))
    assert "network" in caught.value.hint


def test_a_hub_dataset_without_a_revision_is_not_opened() -> None:
    with pytest.raises(InputError, match="no revision") as caught:
        rows_from_hub("someone/something", None)
    assert "hf:someone/something@COMMIT" in caught.value.hint
