"""Errors of libraries that read untrusted files are reported as errors of those files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from calibrant.core.errors import CalibrantError, InputError


@contextmanager
def foreign(what: str, hint: str, hide: tuple[str, str] = ("", "")) -> Iterator[None]:
    """Turn what is raised inside the block into an InputError that begins with ``what``.

    transformers, tokenizers and safetensors raise nearly anything on odd files, ``Exception`` itself and
    panics of Rust among it, so the handler is broad. ``hide``: a path that means nothing to a reader, and
    what to write for it.

    Raises:
        InputError: in place of anything but our own errors, Ctrl-C and the like.
    """
    try:
        yield
    except CalibrantError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        message = str(error).strip() or type(error).__name__
        raise InputError(f"{what}: {message.replace(*hide)[:500]}", hint=hint) from error


@contextmanager
def no_panic(what: str) -> Iterator[None]:
    """Turn a panic of Rust, which is no ``Exception``, into an InputError; other errors pass.

    Raises:
        InputError: the library gave up on this input.
    """
    try:
        yield
    except BaseException as error:
        if not _is_panic(error):
            raise
        raise InputError(
            f"{what}: {str(error)[:300]}", hint="leave that text out, or fix tokenizer.json"
        ) from error


def _is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust gave up: pyo3 raises a class that it does not export."""
    return type(error).__name__ == "PanicException"
