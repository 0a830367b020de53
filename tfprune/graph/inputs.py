"""Random inputs for a model, and a user's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfprune.errors import PlanError, UsageError
from tfprune.graph.keras_internals import layers_within
from tfprune.graph.stand_ins import left_as_it_is
from tfprune.graph.walk import Wiring, flat_inputs, functional, pack_inputs, run_each
from tfprune.support.checks import error_line, is_batch, whole_number

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
                with left_as_it_is(model):
                    model(pack_inputs(model, inputs), training=False)
                    if is_open:
                        _check_not_too_small(model, inputs)
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


def _check_not_too_small(model: keras.Model, inputs: list[np.ndarray]) -> None:
    """Raises a ValueError if a layer has nothing to give for inputs of this size.

    TensorFlow may go on with empty tensors, or with numbers that mean nothing.
    """
    wiring = Wiring(model)
    shapes = {number: tuple(value.shape) for number, value in zip(wiring.inputs, inputs, strict=True)}
    for node, outputs in run_each(wiring, [tf.constant(value) for value in inputs]):
        found = [tuple(output.shape) for output in outputs]
        if hasattr(node.operation, "kernel_size"):
            found = [node.operation.compute_output_shape(shapes[node.inputs[0]])]
        if any(0 in shape for shape in found):
            raise ValueError(f"{node.operation.name} gives nothing for so small a size")
        shapes.update(zip(node.outputs, found, strict=True))


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


def input_batches(model: keras.Model, data: Any, batch_size: int) -> Iterator[list[np.ndarray]]:
    """A user's data as batches of inputs, whatever batches they come in; targets beside the inputs are left out.

    Args:
        model: The network that the data are for.
        data: Inputs, as the model takes them (an array, a list or a dictionary of arrays); `(inputs, targets)`; or
            batches of either form (`tf.data.Dataset`, `keras.utils.PyDataset`, a generator). Arrays come in an order
            that is drawn once and for all, because many are sorted by class; batches in their own.
        batch_size: The most examples of a batch. All batches have at least half of that, where there are so many. A
            model of a fixed batch size gets that one.

    Yields:
        One array per model input, of its dtype.

    Raises:
        UsageError: If there is no example, no end of them, a shape or structure that the model does not take, or a
            value that is no finite number.
    """
    whole_number("batch_size", batch_size, 1)
    fixed = next((tensor.shape[0] for tensor in functional(model).inputs if tensor.shape[0] is not None), None)
    size, held = fixed or batch_size, 0
    waiting: list[list[np.ndarray]] = []
    for given in _given(model, data, size):
        waiting.append(_checked(model, given))
        held += len(waiting[-1][0])
        while held >= 2 * size:
            joined = _joined(waiting)
            yield [array[:size] for array in joined]
            waiting, held = [[array[size:] for array in joined]], held - size
    if not held:
        raise UsageError("data= holds no example. Give some; a generator that was read before is empty.")
    parts = -(-held // size)
    if fixed and held % size:
        raise UsageError(f"{model.name!r} takes batches of exactly {size}; data= does not divide into such.")
    for part in zip(*(np.array_split(array, parts) for array in _joined(waiting)), strict=True):
        yield list(part)


def _joined(batches: list[list[np.ndarray]]) -> list[np.ndarray]:
    return batches[0] if len(batches) == 1 else [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


def _given(model: keras.Model, data: Any, size: int) -> Iterator[Any]:
    """The inputs of every batch that data consist of, or of batches of this size of arrays."""
    if isinstance(data, tuple) and data:
        data = data[0]
    if not _are_arrays(model, data):
        yield from map(_without_targets, _batches(data))
        return
    arrays = keras.tree.flatten(data)
    counts = sorted({len(array) if np.ndim(array) else 0 for array in arrays})
    if len(counts) != 1:
        raise UsageError(f"data= has unlike numbers of examples for its inputs: {counts}.")
    order = np.random.default_rng(0).permutation(counts[0])
    for start in range(0, counts[0], size):
        rows = order[start : start + size]
        yield keras.tree.map_structure(lambda array, rows=rows: np.asarray(array)[rows], data)


def _are_arrays(model: keras.Model, data: Any) -> bool:
    """Whether data are the inputs themselves; a list of arrays may also be batches, for a model of one input."""
    if isinstance(data, list):
        flat = all(hasattr(one, "shape") or isinstance(one, (int, float)) for one in data)
        return flat and len(data) == len(functional(model).inputs)
    return isinstance(data, dict) or hasattr(data, "shape")


def _batches(data: Any) -> Iterable[Any]:
    endless = "data= has no end. Give a part of it, such as dataset.take(100)."
    if isinstance(data, keras.utils.PyDataset):
        count = data.num_batches
        if count is None:
            raise UsageError(endless)
        return (data[place] for place in range(count))
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise UsageError(endless)
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise UsageError(
            f"data= is a {type(data).__name__}; give arrays, (inputs, targets), or batches: a tf.data.Dataset, a "
            "keras.utils.PyDataset or a generator."
        )
    return data


def _without_targets(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple) and batch else batch


def _checked(model: keras.Model, given: Any) -> list[np.ndarray]:
    """The inputs of one batch, flat; raises a UsageError unless the model takes them and all are finite."""
    arrays, tensors = own_inputs(model, given), functional(model).inputs
    fits = len(arrays) == len(tensors) and all(
        is_batch(array.shape, tensor.shape) for array, tensor in zip(arrays, tensors, strict=True)
    )
    if not fits or len({len(array) for array in arrays}) > 1:
        received, taken = (", ".join(str(tuple(one.shape)) for one in some) for some in (arrays, tensors))
        raise UsageError(
            f"data= has batches of {received}; {model.name!r} takes {taken}. The first axis is that of examples; a "
            "Dataset gets it by dataset.batch(...)."
        )
    for array, tensor in zip(arrays, tensors, strict=True):
        if keras.backend.is_float_dtype(tensor.dtype) and not np.isfinite(array.astype("float64")).all():
            raise UsageError(
                f"data= holds values that are no finite numbers (input {tensor.name!r} of {model.name!r}). Leave them "
                "out, or mend them: nothing can be measured with them."
            )
    return arrays
