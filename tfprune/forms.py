"""What a plan file must look like, for files that somebody has edited."""

from __future__ import annotations

from typing import Any

from tfprune.checks import shown
from tfprune.errors import PlanError

# The form of every field of a file: a type, a list or a dictionary of one form, a tuple or a dictionary of several.
_PAIR = (int, int)
_FORMS: dict[str, Any] = {
    "keep": {str: [int]},
    "widths": {str: int},
    "rows": [{"layer": str, "channels": _PAIR, "params": _PAIR, "macs": _PAIR}],
    "flops": _PAIR,
    "frozen": {str: str},
    "views": [str],
    "bypass": {str: int},
    "grouped": [str],
    "notes": [str],
    "origin": dict,
}


def check_content(content: dict, path: str) -> None:
    """Raises a PlanError for a field that is missing, of another form, or at odds with the others."""

    def check(what: str, fine: bool, value: Any, valid: Any) -> None:
        if not fine:
            raise PlanError(
                f"The plan {path!r} is damaged: {what} is {shown(value)}; it must be {valid}. Make the plan anew; to "
                "remove other channels use ChannelPlan.from_removed."
            )

    for field, form in _FORMS.items():
        check(field, _fits(content.get(field), form), content.get(field), f"of the form {_words(form)}")
    check("rows", bool(content["rows"]), [], "a row for each layer with weights")
    keep, widths = content["keep"], content["widths"]
    check("keep", keep.keys() == widths.keys(), list(keep), f"about the layers of widths, {', '.join(widths)}")
    for layer, channels in keep.items():
        fine = channels == sorted({channel for channel in channels if 0 <= channel < widths[layer]})
        check(f"keep[{layer!r}]", fine, channels, f"channels from 0 to {widths[layer] - 1}, ascending, each once")


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
