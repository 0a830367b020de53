"""Random inputs for a model, and a user's own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfprune.errors import PlanError
from tfprune.graph.keras_internals import layers_within, losses_kept
from tfprune.graph.walk import Wiring, flat_inputs, functional, pack_inputs
from tfprune.support.checks import error_line

_LENGTHS = (32, 16, 8, 64, 128, 256, 4)  # of axes of unknown size, in the order in which they are tried
_MOST = (256, 64, 16, 4, 2)  # whole numbers are below one of these where no layer tells what it looks up


def inputs_that_work(model: keras.Model, examples: int, seed: int = 0) -> list[np.ndarray]:
    """As `random_inputs`, with sizes for the axes of unknown size, and below numbers, that the model can take.

    Raises:
        PlanError: If it can take none of those that are tried.
    """
    tensors = functional(model).inputs
    is_open = any(size is None for tensor in tensors for size in tensor.shape[1:])
    has_numbers = any("int" in tensor.dtype for tensor in tensors)
    if not is_open and not has_numbers:
        return random_inputs(model, examples, seed)
    reason = ""
    for most in _MOST if has_numbers else _MOST[:1]:
        for length in _LENGTHS if is_open else _LENGTHS[:1]:
            inputs = random_inputs(model, examples, seed, length, most)
            try:
                with keras.StatelessScope(), losses_kept(model):  # the model stays as it is
                    model(pack_inputs(model, inputs), training=False)
                return inputs
            except Exception as error:  # whatever TensorFlow or the code of others raises for a size that is wrong
                reason = reason or error_line(error)
    if not is_open:
        raise PlanError(
            f"{model.name!r} takes no random whole numbers, not those below {', '.join(map(str, _MOST))} either "
            f"({reason[:200]}). Give inputs= of your own."
        )
    raise PlanError(
        f"{model.name!r} leaves sizes of its inputs open, and takes none of {', '.join(map(str, _LENGTHS))} for them "
        f"({reason[:200]}). Give inputs= of your own."
    )


def random_inputs(
    model: keras.Model, examples: int, seed: int = 0, length: int = _LENGTHS[0], most: int = _MOST[0]
) -> list[np.ndarray]:
    """Random inputs, one array per model input; axes of unknown size get `length`.

    Numbers are standard normal; integers are below what the layers that look them up know, or `most`, and the first of
    a sequence is never 0, which may stand for padding; an input with "mask" in its name is 1, and now and then 0;
    strings are of the vocabulary, if there is one, or letters.
    """
    generator = np.random.default_rng(seed)
    limits, words = _lookups(model)

    def draw(tensor: keras.KerasTensor) -> np.ndarray:
        shape = (tensor.shape[0] or examples, *(size or length for size in tensor.shape[1:]))
        if "mask" in tensor.name and tensor.dtype != "string":  # other numbers drown what they are added to
            shown = generator.random(shape) < 0.8
            shown[:, :1] = True
            return shown.astype(tensor.dtype)
        if "int" in tensor.dtype:
            high = min(limits.get(tensor.name, most), np.iinfo(tensor.dtype).max + 1)
            values = generator.integers(0, high, shape)
            if len(shape) > 1:
                values[:, 0] = np.maximum(values[:, 0], min(1, high - 1))
            return values.astype(tensor.dtype)
        if tensor.dtype == "bool":
            return generator.random(shape) < 0.5
        if tensor.dtype == "string":
            return generator.choice(words, shape)
        return generator.standard_normal(shape).astype(tensor.dtype)

    return [draw(tensor) for tensor in functional(model).inputs]


def _lookups(model: keras.Model) -> tuple[dict[str, int], list[str]]:
    """Input -> how many integers the layers behind it know; and the words that layers of text know."""
    model = functional(model)
    wiring = Wiring(model)
    reached = {number: {tensor.name} for number, tensor in zip(wiring.inputs, model.inputs, strict=True)}
    limits: dict[str, int] = {}
    words: list[str] = []
    for node in wiring.nodes:
        sources = {name for number in node.inputs for name in reached[number]}
        reached |= dict.fromkeys(node.outputs, sources)
        inside = layers_within(node.operation) if isinstance(node.operation, keras.Layer) else []
        known = [getattr(layer, name, None) for layer in inside for name in ("input_dim", "num_tokens")]
        least = min((size for size in known if isinstance(size, int)), default=None)
        if least:
            limits |= {name: min(least, limits.get(name, least)) for name in sources}
        if hasattr(node.operation, "get_vocabulary"):
            words += [str(word) for word in node.operation.get_vocabulary()[2:]]
    return limits, words or list("abcdefgh")


def own_inputs(model: keras.Model, inputs: Any) -> list:
    """Inputs that a user gives, flat and of the dtypes of the model's inputs.

    Raises:
        PlanError: If the model does not take them.
    """
    try:
        return [keras.ops.convert_to_numpy(value) for value in flat_inputs(model, inputs)]
    except (ValueError, TypeError, AttributeError) as error:
        raise PlanError(f"{model.name!r} does not take these inputs: {' '.join(str(error).split())}") from error


def inputs_that_tell(model: keras.Model, inputs: Any) -> list:
    """As `own_inputs`, of the shapes of the model's inputs and of finite numbers, so that outputs can be compared.

    Raises:
        PlanError: If they are not.
    """
    arrays = own_inputs(model, inputs)
    shapes = [tuple(tensor.shape) for tensor in functional(model).inputs]
    if isinstance(inputs, (list, tuple)) and all(hasattr(value, "shape") for value in inputs):
        arrays += list(inputs)[len(shapes) :]  # more than there are inputs; Keras drops them
    fits = len(arrays) == len(shapes) and all(
        array.ndim == len(shape) and all(own in (None, size) for size, own in zip(array.shape, shape, strict=True))
        for array, shape in zip(arrays, shapes, strict=True)
    )
    if not fits or len({array.shape[0] for array in arrays}) > 1:
        received = ", ".join(str(array.shape) for array in arrays)
        raise PlanError(f"{model.name!r} takes inputs of {', '.join(map(str, shapes))}; received {received}.")
    if any(array.shape[0] == 0 for array in arrays):
        raise PlanError(f"The inputs for {model.name!r} hold no example; give one or more.")
    if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in arrays):
        raise PlanError(
            f"The inputs for {model.name!r} hold values that are no finite numbers; nothing follows of them."
        )
    return arrays
