"""A loop's state on disk: what went in comes out to the bit, and nothing is ever half there."""

from __future__ import annotations

import pytest
import torch

from calibrant.core import InputError
from calibrant.models import checkpoint
from calibrant.models.checkpoint import Checkpoint, optimiser_state, prefixed, restore_optimiser, under


def test_what_was_saved_is_found(tmp_path):
    tied = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    point = Checkpoint(tmp_path / "a.safetensors", "key")
    assert point.load() is None
    point.save({"w": tied, "again": tied, "view": tied[:, 0]}, {"step": 7, "nan": float("nan")})
    tensors, facts = point.load()
    assert torch.equal(tensors["w"], tied)
    assert torch.equal(tensors["view"], tied[:, 0])
    assert facts["step"] == 7
    assert facts["nan"] != facts["nan"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    point.clear()
    assert point.load() is None


def test_another_key_or_a_broken_file_is_none(tmp_path):
    path = tmp_path / "a.safetensors"
    Checkpoint(path, "one").save({"w": torch.ones(2)}, {})
    assert Checkpoint(path, "two").load() is None
    path.write_bytes(path.read_bytes()[:-5])
    assert Checkpoint(path, "one").load() is None


def test_a_full_disk_keeps_the_last_good_state(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    point = Checkpoint(path, "key")
    point.save({"w": torch.ones(2)}, {"step": 1})

    def full(tensors, draft, metadata):
        draft.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(InputError, match="No space left"):
        point.save({"w": torch.zeros(2)}, {"step": 2})
    assert point.load()[1] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_due_after_its_time(tmp_path):
    assert not Checkpoint(tmp_path / "a", "key", every=1e6).due()
    assert Checkpoint(tmp_path / "a", "key", every=0.0).due()


def test_an_optimiser_goes_on_as_if_nothing_had_been(tmp_path):
    """Three steps, saved and restored, three more: the bits of six steps in one go."""

    def steps(weight, optimiser, n):
        for _ in range(n):
            optimiser.zero_grad()
            (weight**3).sum().backward()
            optimiser.step()

    def fresh():
        weight = torch.nn.Parameter(torch.linspace(1, 2, 5))
        return weight, torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.95))

    whole, optimiser = fresh()
    steps(whole, optimiser, 6)
    half, optimiser = fresh()
    steps(half, optimiser, 3)
    tensors, facts = optimiser_state(optimiser)
    point = Checkpoint(tmp_path / "a.safetensors", "key")
    point.save({"w": half, **prefixed("opt", tensors)}, {"opt": facts})
    tensors, facts = point.load()
    rest, optimiser = fresh()
    with torch.no_grad():
        rest.copy_(tensors["w"])
    restore_optimiser(optimiser, under("opt", tensors), facts["opt"])
    steps(rest, optimiser, 3)
    assert torch.equal(rest, whole)
