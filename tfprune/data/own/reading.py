"""Reads a user's own data: arrays, files of arrays, datasets, functions that give either.

Datasets are read once and whole, so that what is trained on can be told from other data, and a training that goes on
after an interruption sees what it would have seen without.
"""

from __future__ import annotations

import importlib
import inspect
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfprune.data.own.examples import Examples, OwnData, leaves, mapped, named_leaves
from tfprune.errors import DataError, UsageError
from tfprune.support.checks import error_line, first_line, shown

_NAMES = ("x_train", "y_train", "x_test", "y_test")
_WEIGHTS = ("sample_weight_train", "sample_weight_test")
# What a dataset may hold of which nobody knows the length.
_MOST_EXAMPLES = 10_000_000
_MOST_BYTES = 2**36
_FORMS = (
    "a pair of arrays (x, y), or batches of such pairs: a tf.data.Dataset, a keras.utils.PyDataset or another iterable"
)


def read_npz(path: Path | None) -> OwnData:
    """Reads an .npz file with the arrays x_train, y_train, x_test and y_test, and nothing that is pickled.

    The arrays sample_weight_train and sample_weight_test may stand beside them.

    Raises:
        DataError: If there is no such file, it is damaged, or it does not hold these arrays.
    """
    if path is None:
        raise DataError(f"npz has no data of its own: give the .npz file with {', '.join(_NAMES)} as data_dir.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*_NAMES, *_WEIGHTS) if name in file}
            there = ", ".join(file) or "nothing"
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{str(path)!r} cannot be read as an .npz file of arrays ({first_line(error)}). Make it with "
            "numpy.savez(file, x_train=..., y_train=..., x_test=..., y_test=...)."
        ) from error
    if missing := [name for name in _NAMES if name not in arrays]:
        raise DataError(f"{str(path)!r} holds {there}; it needs {', '.join(_NAMES)}, and lacks {', '.join(missing)}.")
    x_train, y_train, x_test, y_test = (arrays[name] for name in _NAMES)
    of_train, of_test = (arrays.get(name) for name in _WEIGHTS)
    return own_data("npz", (x_train, y_train, of_train), (x_test, y_test, of_test))


def read_function(target: str, data_dir: Path | None) -> OwnData:
    """Calls the function "package.module:name", which gives training and test data as `own_data` takes them.

    It is called without an argument, or with `data_dir`, if that is given.

    Raises:
        DataError: If it cannot be imported or called, or gives something else.
    """
    module, _, name = target.partition(":")
    try:
        load = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the code of others raises when it is imported
        raise DataError(
            f"The data set {target!r} cannot be imported ({error_line(error)}). Name a function as "
            "package.module:function; the current folder and PYTHONPATH are searched."
        ) from error
    arguments = () if data_dir is None else (data_dir,)
    try:
        inspect.signature(load).bind(*arguments)
    except (TypeError, ValueError) as error:
        given = "--data_dir" if arguments else "no argument"
        raise DataError(
            f"{target!r} must be a function that can be called with {given}: {first_line(error)}."
        ) from error
    try:
        found = load(*arguments)
    except Exception as error:  # likewise when it is called
        raise DataError(f"{target!r} failed: {error_line(error)}.") from error
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise DataError(f"{target!r} must return (train, test), each {_FORMS}; it returned {shown(found)}.")
    return own_data(target, *found)


def own_data(name: str, train: Any, test: Any) -> OwnData:
    """Data of these splits.

    Args:
        name: As results call the data.
        train: Training data: arrays `(x, y)` or `(x, y, sample_weight)`, each (n, ...), of which x and y may be
            dictionaries, lists or tuples; or an iterable of batches of such (`tf.data.Dataset`,
            `keras.utils.PyDataset`), which is read once and whole.
        test: Test data, likewise.

    Raises:
        DataError: If a split is something else, has no end, holds nothing, what is no number, or NaN.
    """
    return OwnData.of(name, _split("train", train), _split("test", test))


def _split(split: str, given: Any) -> Examples:
    if isinstance(given, tuple | list) and 2 <= len(given) <= 3 and not _is_batches(given):
        examples = _examples(split, given)
    else:
        examples = _joined(split, list(_batches(split, given)))
    _check(split, examples)
    return examples


def _is_batches(given: tuple | list) -> bool:
    """Whether a list of two or three is one of batches, each a pair, and not a pair itself."""
    return isinstance(given, list) and all(isinstance(one, tuple) for one in given)


def _examples(split: str, given: Any) -> Examples:
    if not isinstance(given, tuple | list) or not 2 <= len(given) <= 3:
        raise DataError(f"{split}= must be {_FORMS}, with targets y; received {shown(given)}.")
    parts = [mapped(part, lambda value: _array(split, value)) for part in given]
    if not leaves(parts[0]) or not leaves(parts[1]):
        raise DataError(f"{split}= must be {_FORMS}, with inputs and targets; received {shown(given)}.")
    return Examples(*parts)


def _array(split: str, value: Any) -> np.ndarray:
    try:
        array = value.numpy() if hasattr(value, "numpy") else np.asarray(value)
        array = np.asarray(array)
    except Exception as error:  # ragged lists, tensors of other libraries
        raise DataError(f"{split}= holds {shown(value)}, which is no array ({first_line(error)}).") from error
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{split}= holds values of dtype {array.dtype}: give numbers. Texts become numbers before the network, by "
            "keras.layers.TextVectorization or StringLookup; sequences of unlike lengths are padded to one."
        )
    if array.ndim == 0:
        raise DataError(
            f"{split}= holds the single number {array}, and the first axis of an array is that of examples. Batch a "
            "dataset with dataset.batch(...); make arrays of lists of numbers."
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _batches(split: str, given: Any) -> Iterator[Examples]:
    """The batches of a dataset; raises a DataError for one without an end, or that ends with an error."""
    if hasattr(given, "shape"):
        raise DataError(f"{split}= must be {_FORMS}; received an array of {tuple(given.shape)} without targets.")
    if isinstance(given, str | bytes | Mapping) or not (isinstance(given, Iterable) or hasattr(given, "__getitem__")):
        raise DataError(f"{split}= must be {_FORMS}; received {shown(given)}.")
    batches, length = _iterated(split, given)
    held = size = number = 0
    try:
        for batch in batches:
            examples = _examples(split, batch)
            yield examples
            number, held = number + 1, held + examples.count
            size += sum(array.nbytes for _, array in examples.named())
            if length is None and (held > _MOST_EXAMPLES or size > _MOST_BYTES):
                raise _endless(split, f"it has given {held:,} examples and goes on")
    except UsageError:
        raise
    except Exception as error:  # whatever tfdata or the code of others raises
        raise DataError(f"{split}= ended with an error after {number} batches: {error_line(error)}.") from error
    if length is not None and number < length:
        raise DataError(
            f"{split}= ended after {number} of the {length} batches that it is said to have. Mend its length."
        )


def _iterated(split: str, given: Any) -> tuple[Iterable[Any], int | None]:
    """The batches of a dataset, and how many it says that there are."""
    import keras
    import tensorflow as tf

    if isinstance(given, tf.data.Dataset):
        cardinality = int(given.cardinality())
        if cardinality == tf.data.INFINITE_CARDINALITY:
            raise _endless(split, "it repeats")
        return given, None if cardinality < 0 else cardinality
    if isinstance(given, keras.utils.PyDataset):
        if given.num_batches is None:
            raise _endless(split, "it has no num_batches")
        return _items(given, given.num_batches), given.num_batches
    return given, None


def _items(dataset: Any, count: int) -> Iterator[Any]:
    for place in range(count):
        try:
            yield dataset[place]
        except (IndexError, StopIteration):
            return


def _endless(split: str, why: str) -> DataError:
    return DataError(f"{split}= has no end: {why}. An epoch is all of the data; give a part: dataset.take(100).")


def _joined(split: str, batches: list[Examples]) -> Examples:
    if not batches:
        raise DataError(f"{split}= holds no batch. Give some; an iterator that was read before is empty.")
    first = batches[0]
    names = [name for name, _ in first.named()]
    for number, batch in enumerate(batches):
        own, arrays = [name for name, _ in batch.named()], batch.named()
        if own != names:
            raise DataError(
                f"{split}= has batches of different structure: {', '.join(names)} in the first, {', '.join(own)} in "
                f"batch {number}."
            )
        for (name, array), (_, other) in zip(arrays, first.named(), strict=True):
            if array.shape[1:] != other.shape[1:]:
                raise DataError(
                    f"{split}= has batches of different shapes: {name} is {other.shape} in the first and {array.shape} "
                    f"in batch {number}. The first axis is that of examples (dataset.batch makes it); pad sequences to "
                    "one length."
                )
    columns = zip(*([array for _, array in batch.named()] for batch in batches), strict=True)
    joined = iter([np.concatenate(column) for column in columns])
    parts = (first.inputs, first.targets, first.weights)
    return Examples(*(mapped(part, lambda _: next(joined)) for part in parts))


def _check(split: str, examples: Examples) -> None:
    """Raises a DataError unless there are as many of everything, at least one, and all are finite."""
    counts = {name: len(array) for name, array in examples.named()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
        raise DataError(f"{split}= has unlike numbers of examples: {told}.")
    if not examples.count:
        raise DataError(f"{split}= holds no example.")
    for name, array in named_leaves(examples.weights, "sample_weight"):
        if array.size and array.min() < 0:
            raise DataError(
                f"{split}= has negative weights: {name} goes down to {array.min():g}, with which a loss is made worse. "
                "Give weights from 0."
            )
    for name, array in examples.named():
        if array.dtype.kind != "f":
            continue
        finite = np.isfinite(array)
        if not finite.all():
            rows = np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))
            raise DataError(
                f"{split}= holds values that are no finite numbers (NaN or infinity): {name} in {len(rows):,} of "
                f"{len(array):,} examples, the first at index {rows[0]}. Leave these out, or mend them."
            )
