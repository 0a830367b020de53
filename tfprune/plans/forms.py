"""What a plan file must look like, for files that somebody has edited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfprune.errors import PlanError
from tfprune.support.checks import shown

# The form of every field of a file: a type, a list or a dictionary of one form, a tuple or a dictionary of several.
_PAIR = (int, int)
_ROW = {"layer": str, "channels": _PAIR, "params": _PAIR, "macs": _PAIR}
_SHARED: dict[str, Any] = {"rows": [_ROW], "flops": _PAIR, "notes": [str], "origin": dict}
_CHANNELS: dict[str, Any] = {
    "keep": {str: [int]},
    "widths": {str: int},
    "frozen": {str: str},
    "views": [str],
    "bypass": {str: int},
    "grouped": [str],
}
_EDIT_CHANNELS = "to remove other channels use ChannelPlan.from_removed"
_EDIT_DESIGN = "for another architecture use DesignPlan.beside"


def check_design(content: dict, path: str) -> None:
    """Raises a PlanError for a field of a design plan that is missing or of another form."""
    _check_fields(content, path, {"architecture": dict}, _EDIT_DESIGN)


def check_channels(content: dict, path: str) -> None:
    """Raises a PlanError for a field of a channel plan that is missing, of another form, or at odds with the others."""
    check = _check_fields(content, path, _CHANNELS, _EDIT_CHANNELS)
    keep, widths = content["keep"], content["widths"]
    check("keep", keep.keys() == widths.keys(), list(keep), f"about the layers of widths, {', '.join(widths)}")
    for layer, channels in keep.items():
        fine = channels == sorted({channel for channel in channels if 0 <= channel < widths[layer]})
        check(f"keep[{layer!r}]", fine, channels, f"channels from 0 to {widths[layer] - 1}, ascending, each once")


def _check_fields(content: dict, path: str, forms: dict[str, Any], how_to_edit: str) -> Callable[..., None]:
    """Checks the fields that a kind of plan has and those that all have; returns the check of one thing more."""

    def check(what: str, fine: bool, value: Any, valid: Any) -> None:
        if not fine:
            raise PlanError(
                f"The plan {path!r} is damaged: {what} is {shown(value)}; it must be {valid}. Make the plan anew; "
                f"{how_to_edit}."
            )

    for field, form in (forms | _SHARED).items():
        check(field, _fits(content.get(field), form), content.get(field), f"of the form {_words(form)}")
    check("rows", bool(content["rows"]), [], "a row for each layer with weights")
    return check


def _fits(value: Any, form: Any) -> bool:
    if isinstance(form, type):
        return type(value) is form  # True is no int here, and 1.0 neither
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(item, form[0]) for item in value)
    if isinstance(form, tuple):
        return isinstance(value, list) and len(value) == len(form) and all(map(_fits, value, form))
    if str in form:
        return isinstance(value, dict) and all(_fits(item, form[str]) for item in value.values())
    return isinstance(value, dict) and value.keys() == form.keys() and all(_fits(value[key], form[key]) for key in form)


def _words(form: Any) -> str:
    """A form as an error message shows it: `{str: [int]}` for a dictionary from texts to lists of integers."""
    if isinstance(form, type):
        return form.__name__
    if isinstance(form, dict):
        return f"{{{', '.join(f'{_words(key)}: {_words(value)}' for key, value in form.items())}}}"
    if isinstance(form, (list, tuple)):
        return f"[{', '.join(map(_words, form))}]"
    return form
