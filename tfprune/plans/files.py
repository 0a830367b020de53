"""Plans and patterns as files: JSON with a field that tells what it is, and others of a known form.

Nothing here imports TensorFlow, so that a command line can check a file before it pays for that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from tfprune.errors import PlanError
from tfprune.support.checks import path_of, shown

# What a field of a file must look like: a type; a list or a dictionary of one form (`[int]`, `{str: int}`); a tuple or
# a dictionary of several (`(int, int)`, `{"layer": str, "params": (int, int)}`).
Form = Any
PAIR: Form = (int, int)


def write_plan(path: str | os.PathLike, kind: str, content: Mapping[str, Any], what: str = "plan") -> None:
    """Writes the content of a plan (or what else it is) as JSON, and under `format` its kind and version.

    Raises:
        PlanError: If the file cannot be written.
    """
    path = path_of("path", path)
    text = json.dumps({"format": kind, **content}, indent=1, default=lambda number: number.item())  # numpy's numbers
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise PlanError(f"Cannot write the {what} {str(path)!r}: {error.strerror}.") from error


def read_plan(path: str | os.PathLike, kinds: Mapping[str, Any], what: str = "plan") -> tuple[str, dict[str, Any]]:
    """Reads what `write_plan` wrote; returns its kind, one of `kinds`, and the content.

    Raises:
        PlanError: If the file is missing, or is not of these kinds.
    """
    path = path_of("path", path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"Cannot read the {what} {str(path)!r}: {error.strerror}.") from error
    except ValueError as error:
        raise PlanError(f"{str(path)!r} is no {what}: {error}.") from error
    kind = content.pop("format", None) if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        valid = " or ".join(map(repr, kinds))
        raise PlanError(f"{str(path)!r} is no {what} of this version; its format should be {valid}.")
    return kind, content


class PlanFile:
    """The content of a plan's file, for files that somebody has edited.

    Args:
        path: The file, for messages.
        content: What it holds.
        how_to_edit: What messages advise instead of editing it.
    """

    def __init__(self, path: str, content: Mapping[str, Any], how_to_edit: str):
        self._path, self._content, self._how_to_edit = path, content, how_to_edit

    def field(self, name: str, form: Form) -> Any:
        """The value of a field, lists as tuples; raises a PlanError if it is missing or of another form."""
        value = self._content.get(name)
        self.check(name, _fits(value, form), value, f"of the form {_words(form)}")
        return _with_tuples(value, form)

    def check(self, what: str, fine: bool, value: Any, valid: str) -> None:
        """Raises a PlanError unless all is fine with a value, telling what would be valid."""
        if not fine:
            raise PlanError(
                f"The plan {self._path!r} is damaged: {what} is {shown(value)}; it must be {valid}. Make the plan "
                f"anew; {self._how_to_edit}."
            )


def _fits(value: Any, form: Form) -> bool:
    if isinstance(form, type):
        return type(value) is form  # True is no int here, and 1.0 neither
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(item, form[0]) for item in value)
    if isinstance(form, tuple):
        return isinstance(value, list) and len(value) == len(form) and all(map(_fits, value, form))
    if str in form:
        return isinstance(value, dict) and all(_fits(item, form[str]) for item in value.values())
    return isinstance(value, dict) and value.keys() == form.keys() and all(_fits(value[key], form[key]) for key in form)


def _with_tuples(value: Any, form: Form) -> Any:
    """A value of this form, its lists as tuples; what is but a `dict` by its form stays as it is."""
    if isinstance(form, (list, tuple)):
        forms = form * len(value) if isinstance(form, list) else form
        return tuple(map(_with_tuples, value, forms))
    if isinstance(form, dict):
        return {key: _with_tuples(item, form[str] if str in form else form[key]) for key, item in value.items()}
    return value


def _words(form: Form) -> str:
    """A form as an error message shows it: `{str: [int]}` for a dictionary from texts to lists of integers."""
    if isinstance(form, type):
        return form.__name__
    if isinstance(form, dict):
        return f"{{{', '.join(f'{_words(key)}: {_words(value)}' for key, value in form.items())}}}"
    if isinstance(form, (list, tuple)):
        return f"[{', '.join(map(_words, form))}]"
    return form
