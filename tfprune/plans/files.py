"""Plans and patterns as files: JSON with a field that tells what it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from tfprune.errors import PlanError
from tfprune.support.checks import path_of


def write_plan(path: str | os.PathLike, form: str, content: Mapping[str, Any], what: str = "plan") -> None:
    """Writes the content of a plan (or what else it is) as JSON, and under `format` its kind and version.

    Raises:
        PlanError: If the file cannot be written.
    """
    path = path_of("path", path)
    text = json.dumps({"format": form, **content}, indent=1, default=lambda number: number.item())  # numpy's numbers
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise PlanError(f"Cannot write the {what} {str(path)!r}: {error.strerror}.") from error


def read_plan(path: str | os.PathLike, forms: Mapping[str, Any], what: str = "plan") -> tuple[str, dict[str, Any]]:
    """Reads what `write_plan` wrote; returns its kind, one of `forms`, and the content.

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
    form = content.pop("format", None) if isinstance(content, dict) else None
    if not isinstance(form, str) or form not in forms:
        valid = " or ".join(map(repr, forms))
        raise PlanError(f"{str(path)!r} is no {what} of this version; its format should be {valid}.")
    return form, content
