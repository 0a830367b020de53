"""The state of a training after an epoch, in one file, from which a run goes on as if it had not been interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tfprune.support.files import replacing

# What reading a damaged archive raises.
_DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
_CONTENT = "content"  # the entry of the archive that holds JSON


@runtime_checkable
class Stateful(Protocol):
    """A callback with a state beyond the variables of the network, its optimizer and what `on_train_begin` makes."""

    def state(self) -> dict[str, np.ndarray]:
        """The state after an epoch, as arrays."""

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up the state; called after `on_train_begin`."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        arrays: Name -> array.
        content: Anything else, of JSON types; `epoch`, the number of finished epochs, at least.
    """

    arrays: Mapping[str, np.ndarray]
    content: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = np.frombuffer(json.dumps(self.content).encode(), np.uint8)
        with replacing(path) as scratch:
            np.savez(scratch, **self.arrays, **{_CONTENT: text})

    @classmethod
    def load(cls, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint | None:
        """Reads a file; None if there is none, or it is damaged.

        A damaged file is moved aside, and a warning names it. Damage shows in the checksums of the archive.

        Args:
            path: The file.
            shapes: Of arrays that have to be there.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            found = cls(arrays, json.loads(arrays.pop(_CONTENT).tobytes()))
            if {name: arrays[name].shape for name in shapes} != dict(shapes):
                raise ValueError("its arrays are of another network")
            if not {"epoch", "history", "seconds"} <= set(found.content):
                raise ValueError("it does not tell the epoch")
            return found
        except FileNotFoundError:
            return None
        except _DAMAGE as error:
            aside = path.with_suffix(".damaged")
            os.replace(path, aside)
            warnings.warn(
                f"the checkpoint {str(path)!r} is damaged ({error}); it is kept as {aside.name}, and this training "
                "begins again from its first epoch.",
                stacklevel=2,
            )
            return None
