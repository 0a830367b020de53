"""Checks of what a user gives: every error is one line that tells what was received and what is valid."""

from __future__ import annotations

import contextlib
import numbers
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tfprune.errors import PlanError, TfpruneError

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def shown(value: Any) -> str:
    """A value as an error message shows it: on one line, and not longer than that."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def without_colours(text: str) -> str:
    """A text without what makes it bold or coloured in a terminal, as Keras prints its reasons."""
    return _ANSI.sub("", text)


def first_line(error: BaseException) -> str:
    """The first line that an error's message has, or its class where it has no message.

    Keras puts lines around the messages of errors in layers, and colours them; these are left out.
    """
    around = re.compile(r"Exception encountered when calling|Could not automatically infer .* Error encountered:$")
    lines = [line.strip() for line in without_colours(str(error)).splitlines()]
    lines = [line for line in lines if line and not around.match(line)]
    return lines[0] if lines else type(error).__name__


def error_line(error: BaseException) -> str:
    """An error of other people's code as a part of a message: its class and first line, without the full stop."""
    line, kind = first_line(error), type(error).__name__
    return kind if line == kind else f"{kind}: {line.rstrip('.')}"


@contextlib.contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Tells what other people's code raises in one line, in a PlanError; `what`: what could not be done."""
    try:
        yield
    except TfpruneError:
        raise
    except Exception as error:
        raise PlanError(f"{what} ({error_line(error)[:300]}).") from error


def number_in(what: str, value: Any, low: float, high: float, ends: str = "()") -> None:
    """Raises unless a value is a number between two others; square brackets for ends that belong to them."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        above = low <= value if ends[0] == "[" else low < value
        below = value <= high if ends[1] == "]" else value < high
        if above and below:
            return
    raise PlanError(f"{what}={shown(value)} is no number in {ends[0]}{low:g}, {high:g}{ends[1]}.")


def whole_number(what: str, value: Any, least: int) -> None:
    """Raises unless a value is a whole number of at least `least`."""
    if not isinstance(value, numbers.Integral) or value < least:
        raise PlanError(f"{what}={shown(value)} must be a whole number of at least {least}.")


def one_of(what: str, value: Any, valid: Iterable[str]) -> None:
    """Raises unless a value is one of the valid names."""
    if not isinstance(value, str) or value not in valid:
        raise PlanError(f"Unknown {what} {shown(value)}. Valid: {', '.join(map(repr, valid))}.")


def several(what: str, value: Any, of: str) -> list:
    """The elements of a list, tuple, array or other collection, but not of a text or a dictionary."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable) or getattr(value, "shape", 1) == ():
        raise PlanError(f"{what}={shown(value)} must be a list of {of}.")
    return list(value)


def names(what: str, value: Any) -> list[str]:
    """A list of names, also of a single one."""
    found = [value] if isinstance(value, str) else several(what, value, "layer names (texts)")
    if not all(isinstance(name, str) for name in found):
        raise PlanError(f"{what}={shown(value)} must be a list of layer names (texts).")
    return found


def by_layer(what: str, value: Any, of: str) -> Mapping:
    """Raises unless a value is a dictionary from names of layers."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise PlanError(f"{what}={shown(value)} must be a dictionary: layer name -> {of}.")
    return value


def path_of(what: str, value: Any) -> Path:
    """The path that a text or path object names."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(value, bytes):
        raise PlanError(f"{what}={shown(value)} must be a path (a text or a pathlib.Path).")
    return Path(value)


def is_batch(shape: tuple, expected: tuple) -> bool:
    """Whether an array of this shape is a batch, of one example or more, for a tensor; None is a size left open."""
    sizes = zip(shape[1:], expected[1:], strict=False)
    return len(shape) == len(expected) and shape[0] > 0 and all(own == size or size is None for own, size in sizes)
