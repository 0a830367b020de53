"""Stages and their store: finished work is found again, half-done work never.

A stage is named by what it depends on: a readable slug and eight hex digits of its config's hash. A stage is
written to a temporary folder beside its place and renamed when it is complete, DONE marker inside.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tfprune.errors import TfpruneError

# Raise it when stages of an older tfprune must not be reused, although their configs look the same.
_SCHEMA = 3


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
        return (self.folder / "DONE").is_file()

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Gives a folder to write to, which becomes the stage's when the block ends without an error."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{self.name}.", dir=self.folder.parent))
        try:
            yield scratch
            write_json(scratch / "config.json", {"kind": self.kind, "schema": _SCHEMA, **self.config})
            (scratch / "DONE").touch()
            scratch.chmod(0o755)
            if not self.done:  # another process may have been faster; its result is as good
                shutil.rmtree(self.folder, ignore_errors=True)  # what has no DONE marker is nobody's
                os.replace(scratch, self.folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def weights(self, file: str = "weights.npz") -> list[np.ndarray]:
        """The weights that the stage stored."""
        try:
            with np.load(self.folder / file, allow_pickle=False) as arrays:
                return [arrays[f"w{index}"] for index in range(len(arrays))]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise self._damaged(file) from error

    def read(self, file: str) -> Any:
        """A JSON file of the stage."""
        try:
            return json.loads((self.folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(file) from error

    def _damaged(self, file: str) -> TfpruneError:
        return TfpruneError(
            f"The finished stage {str(self.folder)!r} is damaged: {file}. Delete this folder to redo it."
        )


class Store:
    """The stages of one workdir.

    Args:
        workdir: The folder; stages are in its subfolder `stages`.
    """

    def __init__(self, workdir: Path):
        self.folder = Path(workdir) / "stages"

    def stage(self, kind: str, slug: str, config: Mapping[str, Any]) -> Stage:
        """The stage of this kind with this config, done or not.

        Args:
            kind: What is done ("train").
            slug: Readable part of its name.
            config: What the result depends on. Leave out what has its default value, so that a setting that
                is added later does not change the names of older stages.
        """
        canonical = json.dumps({"schema": _SCHEMA, "kind": kind, **config}, sort_keys=True)
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        return Stage(kind, config, self.folder / f"{kind}-{slug}-{digest}")

    def finished(self, kind: str) -> list[Stage]:
        """All finished stages of a kind, by name."""
        folders = sorted(marker.parent for marker in self.folder.glob(f"{kind}-*/DONE"))
        return [Stage(kind, {}, folder) for folder in folders]

    def named(self, name: str) -> Stage:
        """The stage in the folder of this name."""
        return Stage(name.partition("-")[0], {}, self.folder / name)


def save_weights(folder: Path, weights: list[np.ndarray], file: str = "weights.npz") -> None:
    """Writes weights so that `Stage.weights` reads them."""
    np.savez(folder / file, **{f"w{index}": array for index, array in enumerate(weights)})


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, readable and stable."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
