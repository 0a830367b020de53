"""Plans as files: JSON with a field that tells which kind of plan it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfprune.errors import PlanError


def write_plan(path: str | os.PathLike, form: str, content: Mapping[str, Any]) -> None:
    """Writes the content of a plan as JSON, and under `format` its kind and version.

    Raises:
        PlanError: If the file cannot be written.
    """
    text = json.dumps({"format": form, **content}, indent=1, default=lambda number: number.item())  # numpy's numbers
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise PlanError(f"Cannot write the plan {os.fspath(path)!r}: {error.strerror}.") from error


def read_plan(path: str | os.PathLike, forms: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Reads what `write_plan` wrote; returns its kind, one of `forms`, and the content.

    Raises:
        PlanError: If the file is missing, or is no plan of these kinds.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"Cannot read the plan {os.fspath(path)!r}: {error.strerror}.") from error
    except ValueError as error:
        raise PlanError(f"{os.fspath(path)!r} is no plan: {error}.") from error
    form = content.pop("format", None) if isinstance(content, dict) else None
    if not isinstance(form, str) or form not in forms:
        valid = " or ".join(map(repr, forms))
        raise PlanError(f"{os.fspath(path)!r} is no plan of this version; its format should be {valid}.")
    return form, content
