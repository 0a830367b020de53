"""Stages and their store: finished work is found again, half-done work never.

A stage is named by what it depends on: a readable slug and eight hex digits of its config's hash. A stage is
written to a temporary folder beside its place and renamed when it is complete, DONE marker inside. The marker holds
the digests of the stage's files, so that what was damaged or edited later is not taken for a result.

Several processes may share a store, on one machine or through a file system that knows locks: whoever does a stage
owns its lock, which the operating system takes from a process that dies.

    stages/<name>/          a finished stage
    unfinished/<name>.npz   where its training has got to
    locks/<name>.lock       locked while a process does it
    failed/<name>.json      why it cannot be done
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from tfprune.errors import TfpruneError, UsageError
from tfprune.support.files import replacing

# Raise it when stages of an older tfprune must not be reused, although their configs look the same.
_SCHEMA = 4
_DONE = "DONE"


class BusyError(TfpruneError):
    """Another process is doing a stage.

    Attributes:
        stage: The stage.
    """

    def __init__(self, stage: Stage):
        super().__init__(f"Another process is doing {stage.name}.")
        self.stage = stage


class DamagedError(TfpruneError):
    """A finished stage is not as it was stored, or not there any more."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a study and where its results are.

    Attributes:
        kind: What is done.
        config: What the result depends on; JSON types only.
        folder: Where the result is, once it is there.
    """

    kind: str
    config: Mapping[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        """Name of the folder; unique."""
        return self.folder.name

    @property
    def done(self) -> bool:
        """Whether the stage is complete."""
        return (self.folder / _DONE).is_file()

    @property
    def checkpoint(self) -> Path:
        """The file in which its training keeps its state."""
        return self._beside("unfinished", "npz")

    @property
    def failure(self) -> Path:
        """The file that says why the stage cannot be done, if it has been tried in vain."""
        return self._beside("failed", "json")

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keeps other processes from doing the stage; raises a BusyError if one of them is doing it."""
        with _held(self.folder.parent.parent, self.name, BusyError(self)):
            for folder in (self.folder.parent, self.checkpoint.parent):  # what a killed process was writing
                for scratch in folder.glob(f".{self.name}.*"):
                    shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
            yield

    @property
    def busy(self) -> bool:
        """Whether another process is doing the stage."""
        try:
            with self.owned():
                return False
        except BusyError:
            return True

    def fail(self, content: Mapping[str, Any]) -> None:
        """Notes why the stage cannot be done, and drops what its training has kept."""
        self.failure.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.failure) as scratch:
            write_json(scratch, {"stage": self.name, **content})
        self.checkpoint.unlink(missing_ok=True)

    def _beside(self, folder: str, ending: str) -> Path:
        return self.folder.parent.parent / folder / f"{self.name}.{ending}"

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Gives a folder to write to, which becomes the stage's when the block ends without an error."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{self.name}.", dir=self.folder.parent))
        try:
            yield scratch
            write_json(scratch / "config.json", {**Store.stamp(self.kind), **self.config})
            write_json(scratch / _DONE, {path.name: _digest(path) for path in sorted(scratch.iterdir())})
            scratch.chmod(0o755)
            if not self.done:  # another process may have been faster; its result is as good
                shutil.rmtree(self.folder, ignore_errors=True)  # what has no DONE marker is nobody's
                os.replace(scratch, self.folder)
            self.checkpoint.unlink(missing_ok=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def weights(self, file: str = "weights.npz") -> list[np.ndarray]:
        """The weights that the stage stored."""
        path = self.file(file)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return [arrays[f"w{index}"] for index in range(len(arrays))]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise self._damaged(file) from error

    def read(self, file: str) -> Any:
        """A JSON file of the stage."""
        path = self.file(file)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(file) from error

    def stored_config(self) -> dict[str, Any]:
        """The config that is stored with the stage, with `kind` and `schema`; {} if it cannot be read."""
        try:
            content = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def file(self, name: str) -> Path:
        """The path of one of the stage's files; raises a DamagedError if it is not what the stage stored."""
        path = self.folder / name
        if not self.folder.is_dir():
            raise DamagedError(f"The stage {str(self.folder)!r} is not there any more. Run the study again.")
        try:
            digests = json.loads((self.folder / _DONE).read_text(encoding="utf-8"))
            intact = digests[name] == _digest(path)
        except (OSError, ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise self._damaged(name)
        return path

    def check(self, arrays: bool = False) -> None:
        """Raises a DamagedError if a file is not as it was stored.

        Args:
            arrays: Whether files of arrays count, which are not read: that they are gone or cut is found, that
                they were edited is found by whoever reads them.
        """
        try:
            names = list(json.loads((self.folder / _DONE).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise self._damaged(_DONE) from error
        for name in names:
            if not name.endswith(".npz"):
                self.file(name)
            elif arrays and not zipfile.is_zipfile(self.folder / name):
                raise self._damaged(name)

    def _damaged(self, file: str) -> DamagedError:
        return DamagedError(
            f"The finished stage {str(self.folder)!r} is damaged: {file} is not as it was stored. Delete this "
            "folder to redo it."
        )


class Store:
    """The stages of one workdir.

    Args:
        workdir: The folder; stages are in its subfolder `stages`.
    """

    def __init__(self, workdir: Path):
        self.folder = Path(workdir) / "stages"

    def similar(self, stage: Stage) -> list[Stage]:
        """Finished stages of the same kind and slug that are not this one, by name."""
        slug = stage.name.rpartition("-")[0]
        folders = sorted(marker.parent for marker in self.folder.glob(f"{slug}-????????/{_DONE}"))
        return [Stage(stage.kind, {}, folder) for folder in folders if folder != stage.folder]

    @staticmethod
    def stamp(kind: str) -> dict[str, Any]:
        """What a stage of this kind depends on beside its config."""
        return {"schema": _SCHEMA, "kind": kind}

    def stage(self, kind: str, slug: str, config: Mapping[str, Any]) -> Stage:
        """The stage of this kind with this config, done or not.

        Args:
            kind: What is done ("train").
            slug: Readable part of its name.
            config: What the result depends on. Leave out what has its default value, so that a setting that
                is added later does not change the names of older stages.
        """
        canonical = json.dumps({**self.stamp(kind), **config}, sort_keys=True)
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        return Stage(kind, config, self.folder / f"{kind}-{slug}-{digest}")

    def finished(self, kind: str) -> list[Stage]:
        """All finished stages of a kind, by name; those of another version of tfprune are left out with a warning."""
        folders = sorted(marker.parent for marker in self.folder.glob(f"{kind}-*/{_DONE}"))
        stages = [Stage(kind, {}, folder) for folder in folders]
        usable = [stage for stage in stages if stage.stored_config().get("schema", _SCHEMA) == _SCHEMA]
        if len(usable) < len(stages):
            warnings.warn(
                f"{len(stages) - len(usable)} of the stages {kind}-* in {str(self.folder)!r} cannot be used: another "
                "version of tfprune made them. Run the study again, or report with that version.",
                stacklevel=2,
            )
        return usable

    def named(self, name: str) -> Stage:
        """The stage in the folder of this name."""
        return Stage(name.partition("-")[0], {}, self.folder / name)


@contextmanager
def own_workdir(workdir: Path) -> Iterator[None]:
    """Keeps other runs of several workers, which do not share stages, out of a workdir.

    Raises:
        UsageError: If such a run is there.
    """
    busy = UsageError(
        f"Another run of several workers uses {str(workdir)!r}. Wait until it is done, or give another --workdir."
    )
    with _held(Path(workdir), "workers", busy):
        yield


@contextmanager
def reporting(workdir: Path) -> Iterator[None]:
    """Waits until no other process writes the report of a workdir, and keeps others from it."""
    with _lock(workdir, "report"):
        yield


@contextmanager
def _held(workdir: Path, name: str, busy: TfpruneError) -> Iterator[None]:
    """Holds a lock; raises `busy` if another process does."""
    lock = _lock(workdir, name)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise busy from None
    try:
        yield
    finally:
        lock.release()


def _lock(workdir: Path, name: str) -> FileLock:
    folder = workdir / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_weights(folder: Path, weights: list[np.ndarray], file: str = "weights.npz") -> None:
    """Writes weights so that `Stage.weights` reads them."""
    np.savez(folder / file, **{f"w{index}": array for index, array in enumerate(weights)})


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, readable and stable."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
