"""Folders that can be written, and files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfprune.errors import UsageError


def check_writable(folder: Path) -> None:
    """Makes a folder if there is none; raises a UsageError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"The folder {str(folder)!r} cannot be written ({error.strerror}). Name a folder that can."
        ) from error


def file_name(text: str) -> str:
    """A text with what shells and file systems take amiss replaced."""
    return text.translate(str.maketrans("= :*?", "-----"))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` when the block ends without an error."""
    scratch = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
