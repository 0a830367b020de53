"""What the engines have in common: a kind of file, written and loaded again."""

from __future__ import annotations

import abc
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

from tfprune.errors import UsageError

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]  # inputs and outputs flat, in the order of the model's own


class Engine(abc.ABC):
    """A kind of file, and what runs it.

    Attributes:
        name: What `engine=` calls it.
        format: What `formats=` calls the file.
        part: The name of the file or folder in an export.
        packages: What has to be installed, as it is imported.
        extra: The extra of tfprune that installs it; empty if all comes with tfprune.
    """

    name: ClassVar[str]
    format: ClassVar[str]
    part: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    def check_installed(self) -> None:
        """Raises a UsageError that names the extra unless everything it needs is installed."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise UsageError(
                f"{self.name} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
                f"installed: pip install 'tfprune[{self.extra}]'."
            )

    def cannot_take(self, model: keras.Model) -> str | None:
        """What is known to be no part of such a file: which layers, and what helps; None if nothing is."""
        return None

    @abc.abstractmethod
    def write(self, model: keras.Model, path: Path) -> None:
        """Writes the file of a network."""

    @abc.abstractmethod
    def load(self, path: Path, model: keras.Model, threads: int | None = None) -> Run:
        """Loads the file that was written of a network; returns the function of its inputs.

        Args:
            path: The file.
            model: The network it was written of, for the names and the order of inputs and outputs.
            threads: So many, or as many as the engine takes by itself.
        """
