"""Registries: names that a user may type, and what they stand for."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable
from typing import Any

from tfprune.errors import UsageError
from tfprune.support.checks import error_line

_NAME = re.compile("[A-Za-z][A-Za-z0-9_-]*")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def unknown_name(kind: str, name: Any, valid: tuple[str, ...]) -> UsageError:
    """Returns the error for a name that is not among the valid ones, with the nearest of them."""
    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.4) if isinstance(name, str) else []
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return UsageError(f"Unknown {kind} {name!r}.{hint} Valid names: {', '.join(valid)}.")


class Registry:
    """Maps names to `"module:attribute"` targets, imported only when they are asked for, or to the things themselves.

    The names are known without importing anything, so a command line can check a flag before it pays
    for importing TensorFlow.

    Args:
        kind: What the names stand for, singular, as error messages should call it ("model").
        reserved: Names that stand for something else already, so that nothing is registered under them.
    """

    def __init__(self, kind: str, reserved: Iterable[str] = ()):
        self.kind = kind
        self._reserved = frozenset(reserved)
        self._targets: dict[str, Any] = {}

    def add(self, name: str, target: Any) -> None:
        """Registers something under a name, which is given once.

        Args:
            name: What users type: letters, digits, _ and -, a letter first.
            target: "package.module:attribute", imported when it is asked for; or the thing itself.

        Raises:
            ValueError: If the name is taken or no name, or if the target is none.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"The name of a {self.kind} consists of letters, digits, _ and -, a letter first; received {name!r}."
            )
        if name in self._reserved:
            raise ValueError(f"The {self.kind} {name!r} exists already. Register yours under another name.")
        if target is None or (isinstance(target, str) and not _TARGET.fullmatch(target)):
            raise ValueError(
                f"The {self.kind} {name!r} needs a target: 'package.module:attribute', or the thing itself; received "
                f"{target!r}."
            )
        if name in self._targets:
            raise ValueError(f"The {self.kind} {name!r} is registered twice: {self._targets[name]} and {target}.")
        self._targets[name] = target

    def remove(self, name: str) -> None:
        """Takes a name out again."""
        del self._targets[self.check(name)]

    def names(self) -> tuple[str, ...]:
        """All names, in the order of their registration."""
        return tuple(self._targets)

    def check(self, name: str) -> str:
        """Returns `name`, or raises a UsageError that lists the valid names and the nearest one."""
        if not isinstance(name, str) or name not in self._targets:
            raise unknown_name(self.kind, name, self.names())
        return name

    def get(self, name: str) -> Any:
        """Returns what `name` stands for; imports it first if need be.

        Raises:
            UsageError: For an unknown name, or a target that cannot be imported.
        """
        target = self._targets[self.check(name)]
        if not isinstance(target, str):
            return target
        module, attribute = target.split(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever the code of others raises when it is imported
            raise UsageError(
                f"The {self.kind} {name!r} is registered as {target!r}, which cannot be imported: {error_line(error)}."
            ) from error
