"""Export: a network as others can load it, read back before it counts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keras
from keras import tree

from tfprune.engines.catalog import engine_named
from tfprune.engines.saved_model import SavedModelEngine
from tfprune.errors import ExportError, UsageError
from tfprune.graph.inputs import random_inputs
from tfprune.graph.stand_ins import left_as_it_is
from tfprune.graph.walk import functional, pack_inputs
from tfprune.support.checks import in_one_line, path_of
from tfprune.surgery.comparing import compare_outputs

_TOLERANCE = 1e-5
_LITERT_SINCE = (3, 13)
_PARTS = ("model.keras", "saved_model", "model.tflite")


def export(model: keras.Model, folder: str | os.PathLike, litert: bool = False, fold: bool = True) -> Path:
    """Writes `model.keras` and `saved_model/` (and `model.tflite`), reloaded and compared.

    The files need Keras or TensorFlow and nothing of tfprune to be loaded. The SavedModel holds every weight
    once, and one signature, `serving_default`, with the names of the model's inputs and, where they are a dictionary,
    of its outputs (`output_0` and so on where they are none, as `Model.export` has it); in Python,
    `tf.saved_model.load(path).serve(inputs)`.

    Args:
        model: A functional or Sequential model of Keras' own layers, with one or more inputs.
        folder: Where to write. Files of these names that are there are replaced, once everything was compared;
            other files are left alone.
        litert: Also write a LiteRT model.
        fold: Fold batch normalizations of the SavedModel into the layers beside them, and add biases as TensorFlow
            fuses them; only rounding changes. False: the layers as they are. `model.keras` has them in any case.

    Returns:
        The folder.

    Raises:
        ExportError: If a file, read back, gives other outputs than the model: more than 1e-5 of the largest
            output.
        UsageError: If the model has layers or functions that cannot be loaded without their Python code, or if it
            is no model or the folder no path.
    """
    functional(model)
    folder = path_of("folder", folder)
    custom = sorted(set(_custom_parts(keras.saving.serialize_keras_object(model))))
    if litert and tuple(map(int, keras.__version__.split(".")[:2])) < _LITERT_SINCE:
        raise UsageError(f"litert=True needs Keras 3.13 or later; Keras {keras.__version__} is installed.")
    if custom:
        raise UsageError(f"{model.name} has parts that only their Python code can load: {', '.join(custom)}.")
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch_folder = tempfile.TemporaryDirectory(dir=folder, prefix=".export-")
    except OSError as error:
        raise UsageError(
            f"Cannot export to {str(folder)!r} ({error.strerror}). Name a folder that can be made."
        ) from error
    try:
        with scratch_folder as name:
            scratch = Path(name)
            with left_as_it_is(model):
                _write_and_compare(model, scratch, litert, fold)
            for part in _PARTS:  # also one that was written before and is not now
                if (folder / part).exists():
                    (folder / part).rename(scratch / f"replaced-{part}")
                if (scratch / part).exists():
                    (scratch / part).rename(folder / part)
    except BaseException:
        if new:
            folder.rmdir()
        raise
    return folder


def _write_and_compare(model: keras.Model, folder: Path, litert: bool, fold: bool) -> None:
    inputs = random_inputs(model, examples=2)
    with in_one_line(f"{model.name!r} cannot be run on a random batch of {len(inputs[0])}"):
        expected = tree.flatten(model(pack_inputs(model, inputs), training=False))

    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras", compile=False, safe_mode=True)
    _compare(expected, loaded(pack_inputs(model, inputs), training=False), "model.keras")

    for name in ("saved_model", "litert") if litert else ("saved_model",):
        engine = SavedModelEngine(fold) if name == "saved_model" else engine_named(name)
        engine.write(model, folder / engine.part)
        _compare(expected, engine.load(folder / engine.part, model)(inputs), engine.part)


def _custom_parts(config: object) -> Iterator[str]:
    """Names of the layers and functions in a serialized model that Keras alone cannot make again."""
    if isinstance(config, dict):
        module, kind = config.get("module"), config.get("class_name")
        if kind == "__lambda__":
            yield "Lambda"
        elif kind is not None and (module or config.get("registered_name") or "keras").partition(".")[0] != "keras":
            yield str(config["config"]) if kind == "function" else kind
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for part in config:
            yield from _custom_parts(part)


def _compare(expected: list, received: object, what: str) -> None:
    compare_outputs(expected, tree.flatten(received), _TOLERANCE, f"the network in memory and {what}", ExportError)
