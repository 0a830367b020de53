"""Whether a user's data, network and losses fit together: all that would fail later, or train on nonsense."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfprune.data.own.examples import OwnData, leaves, mapped
from tfprune.errors import DataError, UsageError
from tfprune.graph.keras_internals import maker, wrapped_functions
from tfprune.graph.walk import functional, pack_inputs
from tfprune.support.checks import is_batch, shown

_SPARSE = "sparse_categorical_crossentropy"
# Losses of Keras that compare a target with an output of the same shape, element by element or along the last axis.
_ALIKE = (
    "mean_squared_error", "mean_absolute_error", "mean_absolute_percentage_error", "mean_squared_logarithmic_error",
    "huber", "log_cosh", "poisson", "kl_divergence", "cosine_similarity", "hinge", "squared_hinge",
    "categorical_hinge", "binary_crossentropy", "binary_focal_crossentropy", "categorical_crossentropy",
    "categorical_focal_crossentropy", "dice", "tversky",
)  # fmt: skip
_ONE_HOT = ("categorical_crossentropy", "categorical_focal_crossentropy")
# Metrics of Keras by what they take.
_OF_CLASSES = (keras.metrics.SparseCategoricalAccuracy, keras.metrics.SparseTopKCategoricalAccuracy)
_OF_ONE_HOT = (keras.metrics.CategoricalAccuracy, keras.metrics.TopKCategoricalAccuracy)
_OF_NUMBERS = (
    keras.metrics.MeanAbsoluteError, keras.metrics.MeanSquaredError, keras.metrics.RootMeanSquaredError,
    keras.metrics.MeanAbsolutePercentageError, keras.metrics.MeanSquaredLogarithmicError, keras.metrics.LogCoshError,
    keras.metrics.R2Score,
)  # fmt: skip
_OF_PROBABILITIES = (keras.metrics.AUC, keras.metrics.Precision, keras.metrics.Recall, keras.metrics.BinaryAccuracy)
_FRACTIONS = ("binary_crossentropy", "binary_focal_crossentropy", *_ONE_HOT)


def fitted(model: keras.Model, data: OwnData) -> OwnData:
    """The data with their inputs in the structure in which the network takes them.

    Raises:
        DataError: If the network does not take them.
    """
    splits = {
        name: None if split is None else dataclasses.replace(split, inputs=_arranged(model, split.inputs, name))
        for name, split in (("train", data.train), ("test", data.test), ("validation", data.validation))
    }
    return dataclasses.replace(data, **splits)


def _arranged(model: keras.Model, inputs: Any, split: str) -> Any:
    tensors = functional(model).inputs
    names = [maker(tensor).name for tensor in tensors]
    if isinstance(inputs, dict):
        if missing := [name for name in names if name not in inputs]:
            raise DataError(
                f"{split}= has the inputs {', '.join(map(str, inputs))}; {model.name!r} takes {', '.join(names)}, and "
                f"{missing[0]} is not there."
            )
        flat = [inputs[name] for name in names]
    else:
        flat = leaves(inputs)
    fits = len(flat) == len(tensors) and all(
        is_batch(array.shape, (None, *tensor.shape[1:])) for array, tensor in zip(flat, tensors, strict=True)
    )
    if not fits:
        received = ", ".join(_sizes(array.shape) for array in flat)
        taken = ", ".join(_sizes(tensor.shape) for tensor in tensors)
        raise DataError(
            f"{split}= has inputs of the shapes {received}; {model.name!r} takes {taken}. The first axis is that of "
            "examples; a dataset gets it by dataset.batch(...)."
        )
    return pack_inputs(model, flat)


def _sizes(shape: tuple) -> str:
    """A shape for people, the first axis that of examples."""
    sizes = ["any" if size is None else str(size) for size in shape[1:]]
    return f"(n, {', '.join(sizes)})" if sizes else "(n,)"


def usual_loss(model: keras.Model, data: OwnData) -> tuple[Any, list[str]] | None:
    """Cross-entropy and accuracy, where the targets are classes and the network gives a number for each; else None."""
    tensors, targets = functional(model).outputs, leaves(data.train.targets)
    if len(tensors) != 1 or len(targets) != 1 or targets[0].dtype.kind not in "iu":
        return None
    shape = tuple(tensors[0].shape)
    if shape[-1] in (None, 1) or not _is_sparse(targets[0].shape, shape):
        return None
    activation = getattr(maker(tensors[0]), "activation", None)
    probable = activation is keras.activations.softmax or type(maker(tensors[0])).__name__ == "Softmax"
    return keras.losses.SparseCategoricalCrossentropy(from_logits=not probable), ["accuracy"]


def check_targets(model: keras.Model, data: OwnData, loss: Any) -> None:
    """Raises a DataError for targets that a loss of Keras would take without a word, and make nonsense of.

    What is looked at: sparse cross-entropy has classes that the network has, each of them in the training data; losses
    that compare a target with an output have both of one shape; cross-entropies of fractions have targets from 0 to 1.
    """
    outputs = functional(model)
    _check_one_each(outputs.output_names, loss)
    for output, shape, own, split, target in _paired(outputs, data, "loss", loss):
        name, where = _name(own), f"{split}=, output {output!r}"
        if name == _SPARSE:
            _check_classes(where, target, shape, own, every=split == "train")
        elif name in _ALIKE:
            _check_alike(where, name, target, shape)
            if name in _FRACTIONS:
                _check_fractions(where, name, target, every=split == "train")


def _check_one_each(outputs: list[str], loss: Any) -> None:
    """Raises a UsageError for more losses than outputs, of which Keras would take the first ones."""
    parts, most = (loss.values(), 1) if isinstance(loss, Mapping) else ([loss], len(outputs))
    if many := [part for part in parts if len(keras.tree.flatten(part)) > most]:
        raise UsageError(
            f"loss= has {len(keras.tree.flatten(many[0]))} losses, {shown(many[0])}, for {most} output"
            f"{'s' * (most > 1)}, and only {most} can count. Give one for each of {', '.join(outputs)}; a sum of two "
            "is a function of your own."
        )


def check_metrics(model: keras.Model, data: OwnData, metrics: Any) -> None:
    """Raises a DataError for targets that a metric of Keras would take without a word, and make nonsense of.

    What is looked at: metrics of classes stand at outputs that give classes and have targets that are such, those of
    numbers at outputs of the shape of their targets, those of probabilities have targets from 0 to 1.
    """
    outputs = functional(model)
    if len(outputs.outputs) == 1 and isinstance(metrics, (list, tuple)):
        metrics = [metrics]
    for output, shape, several, split, target in _paired(outputs, data, "metrics", metrics):
        where = f"{split}=, output {output!r}"
        for own in keras.tree.flatten(several):
            found = _metric(own, target, shape)
            if isinstance(found, _OF_NUMBERS) or (isinstance(found, _OF_ONE_HOT) and shape[-1] != 1):
                _check_alike(where, found.name, target, shape)
            if needed := _needed(found, target, shape):
                raise _needs_another(where, own, target, shape, needed)


def _needed(metric: Any, target: np.ndarray, output: tuple) -> str | None:
    """What a metric takes that these targets and outputs are not; None where they are, or it is not known."""
    if isinstance(metric, _OF_CLASSES) and (output[-1] == 1 or not _is_sparse(target.shape, output) or _broken(target)):
        return "one whole number, the class, for several numbers each"
    if isinstance(metric, _OF_ONE_HOT) and output[-1] == 1:
        return "several numbers each, one for a class"
    if isinstance(metric, _OF_ONE_HOT) and (target.min() < 0 or target.sum(axis=-1).max() > 1.001):
        return "targets that are fractions of classes, of which there is one in all"
    if isinstance(metric, keras.metrics.BinaryAccuracy) and not np.isin(target, (0, 1)).all():
        return "targets that are 0 or 1"
    if isinstance(metric, _OF_PROBABILITIES) and (target.min() < 0 or target.max() > 1):
        return "targets from 0 to 1"
    return "outputs that are whole numbers, as the targets" if type(metric) is keras.metrics.Accuracy else None


def _broken(target: np.ndarray) -> bool:
    return target.dtype.kind == "f" and bool((target % 1).any())


def _needs_another(where: str, metric: Any, target: np.ndarray, output: tuple, needed: str) -> DataError:
    return DataError(
        f"{where}: the metric {shown(metric)} takes {needed}; received targets of {_sizes(target.shape)} from "
        f"{target.min():g} to {target.max():g} and outputs of {_sizes(output)}. Give it to another output, or another "
        "metric."
    )


def _metric(metric: Any, target: np.ndarray, output: tuple) -> Any:
    """A metric of Keras, whatever it was given as; "accuracy" is the one that `compile` takes for such shapes."""
    if str(metric).lower() in ("accuracy", "acc"):
        if output[-1] == 1:
            return keras.metrics.BinaryAccuracy()
        sparse = target.ndim < len(output) or target.shape[-1] == 1
        return keras.metrics.SparseCategoricalAccuracy() if sparse else keras.metrics.CategoricalAccuracy()
    try:
        return keras.metrics.get(metric)
    except (ValueError, TypeError):
        return None


def _paired(model: keras.Model, data: OwnData, what: str, given: Any) -> Iterator[tuple[str, tuple, Any, str, Any]]:
    """Output, its shape, what is given for it, the split, and the target there, where all of it can be told."""
    names = model.output_names
    if isinstance(given, Mapping) and (unknown := [name for name in given if name not in names]):
        raise UsageError(f"{what}= names the output {unknown[0]!r}; {model.name!r} has {', '.join(names)}.")
    for place, (name, tensor) in enumerate(zip(names, model.outputs, strict=True)):
        if isinstance(given, Mapping):
            own = given.get(name)
        elif isinstance(given, (list, tuple)):
            own = given[place] if len(given) == len(names) else None
        else:
            own = given
        for split, examples in (("train", data.train), ("test", data.test), ("validation", data.validation)):
            target = None if examples is None else _target(examples.targets, name, place, len(names))
            if own is not None and target is not None:
                yield name, tuple(tensor.shape), own, split, target


def _target(targets: Any, name: str, place: int, count: int) -> np.ndarray | None:
    """The target of an output, where it can be told."""
    if isinstance(targets, dict):
        targets = targets.get(name)
    elif isinstance(targets, (list, tuple)):
        targets = targets[place] if len(targets) == count else None
    elif count > 1:
        return None
    return targets if isinstance(targets, np.ndarray) else None


def _name(loss: Any) -> str:
    """The name of a loss of Keras, whatever it was given as; "" of others."""
    try:
        found = keras.losses.get(loss)
    except (ValueError, TypeError):
        return ""
    for function in (found, *wrapped_functions(found)):
        if getattr(function, "__module__", "").startswith("keras") and hasattr(function, "__name__"):
            return function.__name__
    return ""


def _is_sparse(target: tuple, output: tuple) -> bool:
    """Whether a target of this shape holds one class where the output holds a number for each."""
    return any(
        len(shape) == len(output) - 1
        and all(size in (None, own) for own, size in zip(shape[1:], output[1:-1], strict=True))
        for shape in (target, target[:-1] if target[-1:] == (1,) else target)
    )


def _check_classes(where: str, target: np.ndarray, output: tuple, loss: Any, every: bool) -> None:
    classes = output[-1]
    if not _is_sparse(target.shape, output):
        raise DataError(
            f"{where}: targets of {_sizes(target.shape)} do not fit outputs of {_sizes(output)}: sparse cross-entropy "
            "takes one whole number for each, the class."
        )
    if target.dtype.kind == "f" and (target != np.rint(target)).any():
        raise DataError(
            f"{where}: sparse cross-entropy takes classes, whole numbers; received {target.reshape(-1)[0]}."
        )
    ignored = getattr(loss, "ignore_class", None)
    labels = target[target != ignored] if ignored is not None else target
    if not labels.size:
        raise DataError(f"{where}: every target is of the class {ignored} that the loss ignores.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        raise DataError(
            f"{where}: labels run from {low} to {high}, and the network has {classes} classes: give 0 to {classes - 1}."
        )
    if every and classes is not None:
        counts = np.bincount(labels.astype(np.int64).reshape(-1), minlength=classes)
        empty = [number for number in range(classes) if not counts[number] and number != ignored]
        if empty:
            raise DataError(
                f"{where}: no training example is of {_counted(empty)}, of the {classes} that the network has, so that "
                "nothing trained from scratch could know it. Give some, or a network without it."
            )


def _counted(classes: list[int]) -> str:
    if len(classes) == 1:
        return f"class {classes[0]}"
    told = ", ".join(map(str, classes[:5]))
    return f"the classes {told}{', ...' if len(classes) > 5 else ''}"


def _check_alike(where: str, name: str, target: np.ndarray, output: tuple) -> None:
    """Raises unless both have one shape; a last axis of size 1 may be missing in one of them."""
    own, other = (shape[:-1] if len(shape) > 1 and shape[-1] == 1 else shape for shape in (target.shape, output))
    if len(own) != len(other) or any(size not in (None, is_) for is_, size in zip(own[1:], other[1:], strict=True)):
        raise DataError(
            f"{where}: targets of {_sizes(target.shape)} do not fit outputs of {_sizes(output)}: {name} compares "
            "numbers with numbers, one for each."
        )


def _check_fractions(where: str, name: str, target: np.ndarray, every: bool) -> None:
    low, high = target.min(), target.max()
    if low < 0 or high > 1:
        raise DataError(f"{where}: {name} takes targets from 0 to 1; received {low:g} to {high:g}.")
    if not every:
        return
    if low == high and name not in _ONE_HOT:
        raise DataError(f"{where}: every training target is {low:g}, so that there is one class only. Give both.")
    if name in _ONE_HOT:
        empty = np.flatnonzero(~target.reshape(-1, target.shape[-1]).any(axis=0)).tolist()
        if empty:
            raise DataError(f"{where}: no training example is of {_counted(empty)}, of {target.shape[-1]}. Give some.")


def sample_of(data: OwnData) -> tuple[Any, Any, Any]:
    """Inputs, targets and weights of the first examples, as a network and its losses take them.

    They are as many as no other axis is long, so that what fits does not by chance.
    """
    sizes = {size for _, array in data.train.named() for size in array.shape[1:]}
    count = next(count for count in itertools.count(2) if count not in sizes)

    def taken(array: np.ndarray) -> np.ndarray:
        own = array[:count]
        return own.astype(np.float32) if own.dtype.kind == "f" else own

    return tuple(mapped(part, taken) for part in (data.train.inputs, data.train.targets, data.train.weights))


def no_loss(model: keras.Model) -> UsageError:
    """The error for a network of which nobody says what it is trained for."""
    return UsageError(
        f"{model.name!r} is not compiled, and no loss is given. Compile it, or give a loss and metrics (--loss=mse "
        f"--metrics=mae) for its outputs {shown(functional(model).output_names)}."
    )
