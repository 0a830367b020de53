"""Compiling a network as another: the same losses, metrics and optimizer, for outputs that may have other names."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras
from keras import tree

from tfprune.graph.keras_internals import carry_over_decay, compile_settings, wrapped_functions
from tfprune.support.checks import first_line


def compile_alike(small: keras.Model, model: keras.Model, copies: Mapping[int, Any] | None = None) -> None:
    """Compiles a network as another: the same losses, new metrics and a new optimizer of the same settings.

    Nothing is done if the other is not compiled. What cannot be carried over is told in a warning: metrics that Keras
    cannot copy, the methods of a subclass (`train_step`), for the small network is a plain functional one, other names
    of outputs by which losses and metrics know them, and variables that the optimizer excludes from weight decay, if
    nothing is known of their copies.

    Args:
        small: The network.
        model: The other.
        copies: Identity of a variable of the other -> the one in its place, as of `Built.copies`.
    """
    if type(model).__module__.partition(".")[0] != "keras" and type(small).__module__.startswith("keras"):
        warnings.warn(
            f"{model.name} is a {type(model).__name__}; the pruned network is a plain keras.Model, without the methods "
            "of that class (such as train_step).",
            stacklevel=3,
        )
    if not model.compiled:
        return
    settings = _by_place(compile_settings(model), model, small)
    # Functions and classes of the user's need not be registered with Keras to be found again.
    own = {}
    for value in tree.flatten(settings):
        for thing in (type(value), *wrapped_functions(value)):
            if hasattr(thing, "__name__"):
                own[thing.__name__] = thing

    def again(value: Any) -> Any:
        if not isinstance(value, (keras.optimizers.Optimizer, keras.metrics.Metric)):
            return value
        made = type(value).from_config(value.get_config())
        if isinstance(value, keras.optimizers.Optimizer):
            _tell_of_decay(model, carry_over_decay(value, made, copies or {}, model.variables))
        return made

    try:
        with keras.saving.custom_object_scope(own):
            small.compile(**tree.map_structure(again, settings))
    except (TypeError, ValueError, NotImplementedError) as error:
        warnings.warn(
            f"{model.name} has compile settings that cannot be copied ({first_line(error)}); compile anew.",
            stacklevel=3,
        )


def _tell_of_decay(model: keras.Model, lost: list) -> None:
    if lost:
        names = ", ".join(variable.path for variable in lost)
        warnings.warn(
            f"The optimizer of {model.name} excludes {names} from weight decay; what takes their place is not known, "
            "so the new optimizer decays it. Call exclude_from_weight_decay anew.",
            stacklevel=5,
        )


def _by_place(settings: dict[str, Any], model: keras.Model, small: keras.Model) -> dict[str, Any]:
    """Settings in which losses and metrics are given by the places of outputs, where these have other names now.

    Of a nested model with several outputs all have its name, in Keras; layers have names of their own.
    """
    names, new = getattr(model, "output_names", None), getattr(small, "output_names", None)
    if names is None or new is None or names == new or isinstance(small.output, dict):
        return settings
    by_name = {
        key: settings[key]
        for key in ("loss", "loss_weights", "metrics", "weighted_metrics")
        if isinstance(settings.get(key), dict) and set(settings[key]) <= set(names)
    }
    if not by_name:
        return settings
    warnings.warn(
        f"{model.name} has losses or metrics for outputs of the names {', '.join(names)}; in the pruned network these "
        f"are {', '.join(new)}, in this order. Targets that are given by name need the new names.",
        stacklevel=4,
    )
    return {**settings, **{key: [value.get(name) for name in names] for key, value in by_name.items()}}
