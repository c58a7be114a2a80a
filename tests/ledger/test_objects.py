from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calibrant.core.digest import digest, digest_bytes, digest_path
from calibrant.core.errors import EvidenceError, InputError
from calibrant.core.record import Artifact
from calibrant.ledger import Ledger


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two equal files and another, one below a folder, with names that are not plain ASCII."""
    made = tmp_path / "model"
    (made / "sub dir").mkdir(parents=True)
    (made / "a.bin").write_bytes(b"rain" * 100)
    (made / "sub dir" / "Bär.bin").write_bytes(b"rain" * 100)
    (made / "c.txt").write_text("dry")
    return made


def objects(ledger: Ledger) -> list[Path]:
    return sorted(path for path in (ledger.root / "objects").rglob("*") if path.is_file())


def test_a_file_is_stored_by_content_and_read_only(ledger: Ledger, tmp_path: Path):
    source = tmp_path / "notes"
    source.write_bytes(b"drizzle")
    kept = ledger.store(source, "notes.txt")
    assert kept == Artifact(name="notes.txt", digest=digest_bytes(b"drizzle"), bytes=7)
    source.write_bytes(b"changed later")
    path = ledger.open(kept)
    assert path.read_bytes() == b"drizzle"
    assert path == ledger.root / "objects" / kept.digest[:2] / kept.digest
    assert path.stat().st_mode & 0o777 == 0o444


def test_a_folder_comes_back_whole(ledger: Ledger, folder: Path):
    kept = ledger.store(folder, "model")
    assert kept.digest == digest_path(folder)
    assert kept.bytes == 803
    assert kept.files is not None
    assert set(kept.files) == {"a.bin", "c.txt", "sub dir/Bär.bin"}
    assert len(objects(ledger)) == 2
    opened = ledger.open(kept)
    assert opened == ledger.root / "trees" / kept.digest
    assert digest_path(opened) == kept.digest
    assert (opened / "a.bin").samefile(opened / "sub dir" / "Bär.bin")


def test_timings_are_volatile(ledger: Ledger, tmp_path: Path):
    (tmp_path / "x").write_text("1 s")
    assert ledger.store(tmp_path / "x", "timing.json").volatile
    assert not ledger.store(tmp_path / "x", "times.json").volatile


def test_an_empty_folder_and_an_empty_file(ledger: Ledger, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "nil").write_bytes(b"")
    kept = ledger.store(tmp_path / "empty", "model")
    assert (kept.files, kept.bytes) == ({}, 0)
    assert list(ledger.open(kept).iterdir()) == []
    assert ledger.open(ledger.store(tmp_path / "nil", "nil")).read_bytes() == b""


def test_four_megabytes_five_times_are_copied_once(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "model"
    source.mkdir()
    block = bytes(range(256)) * 4096
    for number in range(4):
        (source / f"{number}.bin").write_bytes(block[number:] + block[:number])
    copies, copyfile = [], shutil.copyfile

    def counted(a: Path, b: Path) -> Path:
        copies.append(a.name)
        return copyfile(a, b)

    monkeypatch.setattr(shutil, "copyfile", counted)
    kept = [ledger.store(source, "model") for _ in range(5)]
    for _ in range(5):
        ledger.open(kept[0])
    assert len({artifact.digest for artifact in kept}) == 1
    assert sorted(copies) == ["0.bin", "1.bin", "2.bin", "3.bin"]
    on_disk = {path.stat().st_ino: path.stat().st_size for path in ledger.root.rglob("*") if path.is_file()}
    assert sum(on_disk.values()) == 4 * 2**20


def test_without_hard_links_the_folder_is_copied(
    ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    kept = ledger.store(folder, "model")
    opened = ledger.open(kept)
    assert digest_path(opened) == kept.digest
    assert (opened / "c.txt").stat().st_nlink == 1
    assert (opened / "c.txt").stat().st_mode & 0o777 == 0o444


def test_an_incomplete_opened_folder_is_made_anew(ledger: Ledger, folder: Path):
    kept = ledger.store(folder, "model")
    (ledger.open(kept) / "c.txt").unlink()
    assert digest_path(ledger.open(kept)) == kept.digest


def test_missing_or_resized_files_are_told_with_a_remedy(ledger: Ledger, folder: Path):
    kept = ledger.store(folder, "model")
    assert kept.files is not None
    lost = ledger.root / "objects" / kept.files["c.txt"][:2] / kept.files["c.txt"]
    ledger.open(kept)
    lost.unlink()
    with pytest.raises(EvidenceError, match=r"'c\.txt' of artefact 'model' is missing") as caught:
        ledger.open(kept)
    assert "run its study again" in caught.value.hint
    lost.write_text("dry, and more")
    with pytest.raises(EvidenceError, match="has 813 bytes, not 803"):
        ledger.open(kept)
    ledger.store(folder, "model")  # storing the right bytes heals the object
    assert digest_path(ledger.open(kept)) == kept.digest


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../out", "", "a//b", "./a"])
def test_no_name_leads_outside(ledger: Ledger, tmp_path: Path, name: str):
    (tmp_path / "x").write_text("x")
    found = ledger.store(tmp_path / "x", "x").digest
    with pytest.raises(EvidenceError, match="outside"):
        ledger.open(Artifact(name="model", digest=digest({name: found}), bytes=1, files={name: found}))
    with pytest.raises(EvidenceError, match="no digest"):
        ledger.open(Artifact(name="x", digest="../../../x", bytes=1))


def test_a_list_of_files_that_is_not_the_digest_s_is_refused(ledger: Ledger, folder: Path):
    kept = ledger.store(folder, "model")
    assert kept.files is not None
    files = {"b.bin": kept.files["a.bin"]}
    with pytest.raises(EvidenceError, match="list of files"):
        ledger.open(kept.model_copy(update={"files": files}))


def test_nothing_there(ledger: Ledger, tmp_path: Path):
    with pytest.raises(InputError, match="nothing at"):
        ledger.store(tmp_path / "none", "x")
    assert not ledger.root.exists()


def test_names_that_are_not_utf8_are_told(ledger: Ledger, tmp_path: Path):
    (tmp_path / "model").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "model") + b"/\xff")).write_text("x")
    with pytest.raises(InputError, match="artefact 'model'"):
        ledger.store(tmp_path / "model", "model")


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk full"), (errno.EDQUOT, "disk full"), (errno.EACCES, "denied")]
)
@pytest.mark.parametrize("step", ["copyfile", "replace", "fsync"])
def test_a_refusing_disk_leaves_nothing_behind(
    ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, step: str
):
    def refuse(a: object, b: object = None) -> None:
        if step == "copyfile" and isinstance(b, Path):
            b.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr({"copyfile": shutil, "replace": Path, "fsync": os}[step], step, refuse)
    with pytest.raises(InputError, match=words) as caught:
        ledger.store(folder, "model")
    assert "run the same command again: what is finished is kept" in caught.value.hint
    assert objects(ledger) == []
    assert list((ledger.root / "tmp").iterdir()) == []
    monkeypatch.undo()
    assert digest_path(ledger.open(ledger.store(folder, "model"))) == digest_path(folder)


def test_a_source_that_changes_meanwhile_is_refused(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "x"
    source.write_text("before")
    monkeypatch.setattr(shutil, "copyfile", lambda a, b: b.write_text("after"))
    with pytest.raises(InputError, match="changed while it was stored"):
        ledger.store(source, "x")
    assert objects(ledger) == []


_KILLED = """
import os, sys
from pathlib import Path
from calibrant.ledger import Ledger
Path.replace = lambda self, target: os._exit(9)
Ledger(Path(sys.argv[1])).store(Path(sys.argv[2]), "model")
"""


def test_a_kill_before_the_rename_leaves_only_a_draft(ledger: Ledger, folder: Path):
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(ledger.root), str(folder)], timeout=600)
    assert killed.returncode == 9
    assert objects(ledger) == []
    (draft,) = (ledger.root / "tmp").iterdir()
    kept = ledger.store(folder, "model")  # ignored while it may still be somebody's
    assert digest_path(ledger.open(kept)) == kept.digest
    assert draft.exists()
    old = time.time() - 100_000
    os.utime(draft, (old, old))
    (folder / "new").write_text("new")
    ledger.store(folder, "model")
    assert list((ledger.root / "tmp").iterdir()) == []
