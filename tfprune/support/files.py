"""Folders that can be written, and files that are whole or not there."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfprune.errors import UsageError

_LONGEST = 150  # of 255 bytes, with room for what is put before and behind


def check_writable(folder: Path) -> None:
    """Makes a folder if there is none; raises a UsageError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"The folder {str(folder)!r} cannot be written ({error.strerror}). Name a folder that can."
        ) from error


def file_name(text: str) -> str:
    """A text with what shells and file systems take amiss replaced, and cut where it is too long for a name."""
    name = re.sub(r"[^\w.+-]+", "-", text).strip("-")
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` when the block ends without an error."""
    # Not named by the process: on a shared file system those of several machines, or pods, may have one number.
    scratch = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
