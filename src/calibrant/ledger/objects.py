"""Stored files and folders, addressed by the digest of their bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from calibrant.core.digest import digest, digest_file, manifest
from calibrant.core.errors import EvidenceError, InputError
from calibrant.core.record import Artifact
from calibrant.ledger.layout import artifact_faults, disk, object_path, tree_path

_DAY = 86_400.0


class Objects:
    """The files of a ledger: equal bytes are kept once, and a stored file never changes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def store(self, path: Path, name: str) -> Artifact:
        """Keep a file, or the files of a folder, by content; equal bytes are kept once.

        Folders without files in them are not kept. A name that starts with 'timing' makes the artefact
        volatile: it stays out of the result digest.

        Raises:
            InputError: nothing there, changed meanwhile, names that are not UTF-8, disk full or refused.
        """
        volatile = name.startswith("timing")
        with disk(f"storing {path} in", self.root):
            if not (path.is_file() or path.is_dir()):
                raise InputError(
                    f"artefact '{name}': there is nothing at {path}", hint="write it before it is stored"
                )
            if not path.is_dir():
                found = digest_file(path)
                return Artifact(name=name, digest=found, bytes=self._ingest(path, found), volatile=volatile)
            files = manifest(path)
            try:
                whole = digest(files)
            except ValueError as error:
                raise InputError(
                    f"artefact '{name}': {error}", hint="give its files names in UTF-8"
                ) from error
            size = sum(self._ingest(path / file, found) for file, found in files.items())
            return Artifact(name=name, digest=whole, bytes=size, files=files, volatile=volatile)

    def open(self, artifact: Artifact) -> Path:
        """The stored file, or the stored folder. Treat both as read-only.

        Sizes are compared here; bytes are compared by ``verify``.

        Raises:
            EvidenceError: a file of it is missing or has another size, or its description is unsound.
        """
        hint = (
            "restore it from a copy, or run its study again: a job whose artefacts are missing is run again"
        )
        with disk("opening", self.root):
            faults = artifact_faults(artifact) or self.missing(artifact)
            if faults:
                raise EvidenceError(f"{self.root}: {'; '.join(faults[:5])}", hint=hint)
            digests = [artifact.digest] if artifact.files is None else list(artifact.files.values())
            size = sum(object_path(self.root, found).stat().st_size for found in digests)
            if size != artifact.bytes:
                raise EvidenceError(
                    f"{self.root}: artefact '{artifact.name}' has {size} bytes, not {artifact.bytes}",
                    hint="run `calibrant verify`; move the altered file away, then run its study again",
                )
            if artifact.files is None:
                return object_path(self.root, artifact.digest)
            return self._tree(artifact.digest, artifact.files)

    def missing(self, artifact: Artifact) -> list[str]:
        """The artefact's files that are not in the store."""
        files = {artifact.name: artifact.digest} if artifact.files is None else artifact.files
        return [
            f"'{file}' of artefact '{artifact.name}' is missing ({found[:12]})"
            for file, found in files.items()
            if not object_path(self.root, found).is_file()
        ]

    def _ingest(self, source: Path, expected: str) -> int:
        """Make sure that the object ``expected`` is there, if need be by a copy; return its size."""
        target = object_path(self.root, expected)
        # The stored bytes are read, not trusted: storing the right ones again heals a damaged object.
        if not (target.is_file() and digest_file(target) == expected):
            with self._draft() as room:
                draft = room / expected
                shutil.copyfile(source, draft)
                if digest_file(draft) != expected:
                    raise InputError(
                        f"{source} changed while it was stored", hint="let its writer finish first"
                    )
                draft.chmod(0o444)
                sync(draft)
                target.parent.mkdir(parents=True, exist_ok=True)
                draft.replace(target)
            sync(target.parent)
            sync(target.parent.parent)
        return target.stat().st_size

    def _tree(self, whole: str, files: dict[str, str]) -> Path:
        """Lay out a stored folder, from hard links where the file system has them, else from copies."""
        tree = tree_path(self.root, whole)
        if _complete(tree, files):
            return tree
        with self._draft() as room:
            draft = room / "tree"
            draft.mkdir()
            for name, found in files.items():
                target, source = draft / name, object_path(self.root, found)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    target.hardlink_to(source)
                except OSError:  # no links here, or too many to one file
                    shutil.copyfile(source, target)
                    target.chmod(0o444)
            tree.parent.mkdir(parents=True, exist_ok=True)
            if tree.exists() and not _complete(tree, files):
                tree.rename(room / "incomplete")
            try:
                draft.rename(tree)
            except OSError:
                # Another process may have laid out the same folder first; then its copy is ours too.
                if not _complete(tree, files):
                    raise
        return tree

    @contextmanager
    def _draft(self) -> Iterator[Path]:
        """A room on the ledger's own file system, so that a rename out of it is atomic; removed at exit."""
        drafts = self.root / "tmp"
        drafts.mkdir(parents=True, exist_ok=True)
        for old in drafts.iterdir():
            with suppress(FileNotFoundError):
                if old.stat().st_mtime < time.time() - _DAY:
                    shutil.rmtree(old, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=drafts, ignore_cleanup_errors=True) as room:
            yield Path(room)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _complete(tree: Path, files: dict[str, str]) -> bool:
    return tree.is_dir() and all((tree / name).is_file() for name in files)
