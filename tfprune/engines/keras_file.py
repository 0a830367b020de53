"""The `.keras` file, and Keras that runs it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
from keras import tree

from tfprune.engines.base import Engine, Run
from tfprune.graph.keras_internals import compile_settings, layers_within, wrapped_functions
from tfprune.graph.stand_ins import attributes_kept
from tfprune.graph.walk import pack_inputs

# What `compile` sets; a file takes the optimizer's variables from there, too.
_OF_COMPILE = ("optimizer", "_compile_loss", "_compile_metrics", "_compile_config", "_loss_tracker")


class KerasEngine(Engine):
    """Keras, by a `.keras` file."""

    name, format, part = "keras", "keras", "model.keras"

    def write(self, model: keras.Model, path: Path) -> None:
        """As there; without losses, metrics and the optimizer where one of them needs its Python code to be loaded."""
        own = sorted({name for one in _models(model) for name in _own_when_compiled(one)})
        if not own:
            model.save(path)
            return
        warnings.warn(
            f"{path.name} is not compiled: only their Python code can load {', '.join(own)}. Compile what is loaded.",
            stacklevel=4,
        )
        models = _models(model)
        with attributes_kept(models):
            for one in models:
                vars(one)["compiled"] = False  # past Keras, which would track what is set
                for name in _OF_COMPILE:
                    vars(one).pop(name, None)
            model.save(path)

    def load(self, path: Path, model: keras.Model, threads: int | None = None) -> Run:
        """As there; the threads are those of the process."""
        loaded = keras.saving.load_model(path, compile=False, safe_mode=True)

        def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            outputs = loaded(pack_inputs(model, inputs), training=False)
            return [keras.ops.convert_to_numpy(output) for output in tree.flatten(outputs)]

        return run


def own_parts(model: keras.Model) -> list[str]:
    """Names of a network's layers and functions that Keras alone cannot make again; what it is compiled with aside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says of a lambda what is an error of ours
        return sorted(set(_own(keras.saving.serialize_keras_object(model))))


def _own(config: object) -> Iterator[str]:
    if isinstance(config, dict):
        module, kind = config.get("module"), config.get("class_name")
        if kind == "__lambda__":
            yield "Lambda"
        elif kind is not None and (module or config.get("registered_name") or "keras").partition(".")[0] != "keras":
            yield str(config["config"]) if kind == "function" else kind
        config = [value for key, value in config.items() if key != "compile_config"]
    if isinstance(config, (list, tuple)):
        for part in config:
            yield from _own(part)


def _models(model: keras.Model) -> list[keras.Model]:
    """A model and those inside of it that are compiled."""
    return [one for one in layers_within(model) if isinstance(one, keras.Model) and one.compiled]


def _own_when_compiled(model: keras.Model) -> Iterator[str]:
    """Names of what a model is compiled with that Keras alone cannot make again.

    Keras writes all functions down alike, its own and a user's of the same name: what counts is where they are from.
    """
    for value in tree.flatten(compile_settings(model)):
        is_object = isinstance(value, (keras.Loss, keras.Metric, keras.Optimizer))
        used = [type(value), *wrapped_functions(value)] if is_object else [value] if callable(value) else []
        for thing in used:
            if thing.__module__.partition(".")[0] != "keras":
                yield getattr(thing, "__name__", type(thing).__name__)
        if isinstance(value, keras.Optimizer):
            yield from _own(value.get_config())
