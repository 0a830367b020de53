"""Registries: names that a user may type, and what they stand for."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from tfprune.errors import UsageError


def unknown_name(kind: str, name: Any, valid: tuple[str, ...]) -> UsageError:
    """Returns the error for a name that is not among the valid ones, with the nearest of them."""
    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.4) if isinstance(name, str) else []
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return UsageError(f"Unknown {kind} {name!r}.{hint} Valid names: {', '.join(valid)}.")


class Registry:
    """Maps names to `"module:attribute"` targets, imported only when they are asked for.

    The names are known without importing anything, so a command line can check a flag before it pays
    for importing TensorFlow.

    Args:
        kind: What the names stand for, singular, as error messages should call it ("model").
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._targets: dict[str, str] = {}

    def add(self, name: str, target: str) -> None:
        """Registers `target` ("package.module:attribute") under `name`; a name is given once."""
        if name in self._targets:
            raise ValueError(f"The {self.kind} {name!r} is registered twice: {self._targets[name]} and {target}.")
        self._targets[name] = target

    def names(self) -> tuple[str, ...]:
        """All names, in the order of their registration."""
        return tuple(self._targets)

    def check(self, name: str) -> str:
        """Returns `name`, or raises a UsageError that lists the valid names and the nearest one."""
        if not isinstance(name, str) or name not in self._targets:
            raise unknown_name(self.kind, name, self.names())
        return name

    def get(self, name: str) -> Any:
        """Imports and returns what `name` stands for."""
        module, attribute = self._targets[self.check(name)].split(":")
        return getattr(importlib.import_module(module), attribute)
