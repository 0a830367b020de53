"""Sums over axes that tensors share: `einsum`, and all that is one."""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfprune.graph.calls import Call
from tfprune.graph.ledger import Kept, Labels
from tfprune.graph.rules.dispatch import give_up, rule_of_keras
from tfprune.graph.rules.elementwise import activated


def contract(call: Call, operands: list[str], result: str) -> Labels | list[Labels]:
    """The labels of an einsum: `operands` and `result` have one letter per axis.

    An axis shrinks in all the operands that have it, or stays in all. The channels over which the operation sums
    are mixed; the others pass, unless two operands bring channels of their own, which would make pairs.
    """
    if any(len(set(names)) < len(names) for names in (*operands, result)):
        return give_up(call, f"{call.record.name} takes a diagonal")
    letters = "".join(dict.fromkeys("".join(operands)))
    arrays = [_spread(labels, names, letters) for labels, names in zip(call.inputs, operands, strict=True)]
    varied = [{letters[axis] for axis, size in enumerate(array.shape) if size > 1} for array in arrays]
    sizes = [dict(zip(names, shape, strict=True)) for names, shape in zip(operands, call.input_shapes, strict=True)]
    for i, j in itertools.permutations(range(len(arrays)), 2):
        shared = {letter for letter in set(sizes[i]) & set(sizes[j]) if 1 not in (sizes[i][letter], sizes[j][letter])}
        if shared & varied[i] & varied[j]:
            call.tie(arrays[i], arrays[j])
        elif shared & varied[i]:  # an axis that stays in the other
            _keep_axes(call, arrays[i], [letters.index(letter) for letter in shared])
    passing = [array for array, own in zip(arrays, varied, strict=True) if own and own <= set(result)]
    for index, (array, own) in enumerate(zip(arrays, varied, strict=True)):
        if not own <= set(result):
            call.mix_all(index)
            _keep_axes(call, array, [axis for axis, letter in enumerate(letters) if letter in result])
    widest = max(passing, key=np.size, default=None)
    if widest is not None and any(np.broadcast_shapes(one.shape, widest.shape) != widest.shape for one in passing):
        return give_up(call, f"{call.record.name} makes pairs of channels")
    if len(arrays) > 1:
        _count_products(call, letters, result, arrays, sizes)
    if widest is None:
        # Nothing of a channel is left in the result, which is nobody's to remove.
        return call.frozen_labels(len(result), f"result of {call.record.name}")
    lost = [axis for axis, letter in enumerate(letters) if letter not in result]
    rest = [letter for letter in letters if letter in result]
    return widest.squeeze(tuple(lost)).transpose([rest.index(letter) for letter in result])


def _keep_axes(call: Call, labels: Labels, axes: list[int]) -> None:
    """Axes that stay whole: what is removed along the others goes alike at all of their places."""
    first = tuple(slice(1) if axis in axes else slice(None) for axis in range(labels.ndim))
    if labels[first].size > 1:
        call.tie(labels, labels[first])
    else:
        call.freeze(labels, f"{call.record.name} needs an axis to stay whole")


def _spread(labels: Labels, names: str, letters: str) -> Labels:
    """Labels with one axis per letter of the equation."""
    present = [letter for letter in letters if letter in names]
    moved = labels.transpose([names.index(letter) for letter in present])
    return np.expand_dims(moved, [axis for axis, letter in enumerate(letters) if letter not in names])


def _count_products(
    call: Call, letters: str, result: str, arrays: list[Labels], sizes: list[dict[str, int | None]]
) -> None:
    varied = np.broadcast_shapes(*(array.shape for array in arrays))
    whole = [
        max(own.get(letter) or 1 for own in sizes)
        for axis, letter in enumerate(letters)
        if varied[axis] == 1 and letter != result[:1]  # what is counted is for each of the first axis of the result
    ]
    fixed = int(np.prod(whole, dtype=np.int64))

    def count(kept: Kept) -> int:
        free = [kept[array] for array in arrays if array.size > 1]
        return fixed * (int(np.logical_and.reduce(np.broadcast_arrays(*free)).sum()) if free else 1)

    call.macs(count)


def letters_of(operation: Any, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """The operands and the result of an operation that sums over shared axes, one letter for each axis.

    Args:
        operation: One of `keras.ops`.
        ranks: Of the operands.

    Returns:
        None for operations that do something else, and for operands without axes.
    """
    kind = type(operation).__name__
    if min(ranks) == 0 or isinstance(operation, keras.layers.Layer):
        return None
    if kind == "Einsum":
        return _letters(_with_result(operation.subscripts), ranks)
    if len(ranks) != 2 or kind not in ("Matmul", "Dot", "Tensordot"):
        return None
    rank, other = ranks
    if kind == "Matmul":
        batch = string.ascii_lowercase[: max(rank - 2, other - 2, 0)]
        one, two = (batch[len(batch) - max(own - 2, 0) :] for own in ranks)
        rows, columns = "X" * (rank > 1), "Z" * (other > 1)
        return [f"{one}{rows}Y", f"{two}Y{columns}"], f"{batch}{rows}{columns}"
    firsts, seconds = [rank - 1], [max(other - 2, 0)]
    if kind == "Tensordot":
        axes = operation.axes
        if isinstance(axes, int):
            axes = range(rank - axes, rank), range(axes)
        firsts, seconds = ([own] if isinstance(own, int) else list(own) for own in axes)
    given, kernel = list(string.ascii_lowercase[:rank]), list(string.ascii_uppercase[:other])
    for first, second in zip(firsts, seconds, strict=True):
        kernel[second] = given[first]
    summed = {given[first] for first in firsts}
    return ["".join(given), "".join(kernel)], "".join(letter for letter in given + kernel if letter not in summed)


def _with_result(equation: str) -> str:
    """An equation that names its result: what stands once, in the order of the alphabet."""
    if "->" in equation:
        return equation
    named = equation.replace(" ", "")
    plain = named.replace("...", "").replace(",", "")
    once = "".join(sorted(letter for letter in set(plain) if plain.count(letter) == 1))
    return f"{named}->{'...' * ('...' in named)}{once}"


@rule_of_keras("Matmul", "Einsum")
def contraction(call: Call) -> Labels | list[Labels]:
    """Rows of one by columns of the other: sums over the axes that they share, as attention does."""
    if reason := _not_of_tensors(call):
        return give_up(call, reason)
    letters = letters_of(call.operation, [labels.ndim for labels in call.inputs])
    if letters is None:
        return give_up(call, f"{call.record.name} multiplies by a number")
    return contract(call, *letters)


def _not_of_tensors(call: Call) -> str:
    """The reason, where an operand is no tensor; empty if all are."""
    for value in keras.tree.flatten(call.node.arguments.args):
        if isinstance(value, keras.Variable):
            return f"{call.record.name} multiplies by {value.name}, which is found in no attribute of a layer"
        if not isinstance(value, keras.KerasTensor):
            return f"{call.record.name} multiplies by a constant"
    return ""


@rule_of_keras("Dot", "Tensordot")
def _dot(call: Call) -> Labels | list[Labels]:
    """The layer, and the operation, which multiplies each example with each where both have a batch.

    In the layer normalizing to length one is no obstacle, since a zero adds nothing to a length.
    """
    if not isinstance(call.operation, keras.layers.Layer):
        return give_up(call, _not_of_tensors(call) or f"{call.record.name} multiplies across the batch")
    axes, ranks = call.operation.axes, [labels.ndim for labels in call.inputs]
    axes = [axis % rank for axis, rank in zip((axes, axes) if isinstance(axes, int) else axes, ranks, strict=True)]
    one = list(string.ascii_lowercase[: ranks[0]])
    other = [one[0], *string.ascii_uppercase[1 : ranks[1]]]
    other[axes[1]] = one[axes[0]]
    kept = [letter for letter in one + other[1:] if letter != one[axes[0]]]
    labels = contract(call, ["".join(one), "".join(other)], "".join(kept))
    if isinstance(labels, list) or labels.ndim == len(call.output_shape):
        return labels
    return labels.reshape(len(call.output_shape) * (1,))  # two vectors make one number, with an axis of its own


@rule_of_keras("EinsumDense")
def einsum_dense(call: Call) -> Labels:
    """A kernel whose axes are given by an equation.

    Of the axes that the kernel creates the first that is wider than one is the layer's channels (the heads, where
    it makes heads), those before the positions aside (experts); or the second, where the first cannot go. The others
    keep their sizes; and so do all of them
    where channels pass by the kernel (which mixes positions), and what passes along the kernel: both together would be
    pairs.
    """
    layer = call.operation
    (source, kernel), result = _letters(layer.equation, [call.inputs[0].ndim, len(layer.kernel.shape)])
    labels = call.inputs[0]
    varied = [axis for axis, size in enumerate(labels.shape) if size > 1]
    summed = [axis for axis in varied if source[axis] not in result]
    wide = created_letters(kernel, layer.kernel.shape, source, result)
    created = wide[len(wide) > 1 and call.is_turned] if wide else None
    passing = [axis for axis in varied if axis not in summed]
    axes: dict[str, Labels] = {}
    if passing and not summed and (created is None or not any(source[axis] in kernel for axis in passing)):
        created, axes[source[passing[-1]]] = None, uniform(call, passing[-1])
    elif passing and created is not None:
        call.freeze(labels, f"{call.record.name} makes pairs of channels")
    if created is not None:
        axes[created] = call.create(layer.kernel.shape[kernel.index(created)])
        if len(wide) > 1:
            call.chosen(axes[created])
    if summed:
        call.mix_all(0)
        axes[source[summed[-1]]] = uniform(call, summed[-1])
    sizes = [size or 1 for size, letter in zip(call.input_shapes[0], source, strict=True) if letter not in kernel]
    by_axis = {kernel.index(letter): channels for letter, channels in axes.items() if letter in kernel}
    call.weight(layer.kernel, by_axis, int(np.prod(sizes[1:], dtype=np.int64)))
    shown = next((letter for letter in axes if letter in result), None)
    if shown is None:
        return call.frozen_labels(len(result), f"result of {call.record.name}")
    axis, channels = result.index(shown), axes[shown]
    if layer.bias is not None:
        own = axis - len(result) + len(layer.bias.shape)
        call.weight(layer.bias, {own: channels} if own >= 0 and layer.bias.shape[own] > 1 else {})
    given = list(layer.get_config()["output_shape"])  # without the batch, and without axes that "..." stands for
    place = axis - (len(result) - len(given) if layer.equation.startswith("...") else 1)
    if given[place] is not None:
        call.setting(
            "output_shape", lambda kept: (*given[:place], int(kept[channels].sum()), *given[place + 1 :]), channels
        )
    return activated(call, call.place(channels, axis))


def created_letters(kernel: str, shape: Sequence[int], source: str, result: str) -> list[str]:
    """The axes of the result that a kernel makes, the one first that is the layer's channels; wide ones, if any is.

    Args:
        kernel: Its letters.
        shape: Its shape.
        source: The letters of what it is multiplied with.
        result: Those of what comes out.
    """
    made = [letter for letter in result if letter in kernel and letter not in source]
    behind = max((result.index(letter) for letter in source if letter in result), default=0)
    wide = [letter for letter in made if shape[kernel.index(letter)] > 1] or made
    return sorted(wide, key=lambda letter: result.index(letter) < behind)


def uniform(call: Call, axis: int, index: int = 0) -> Labels:
    """Labels of an input along one axis, which go alike at all places of the other axes."""
    labels = np.moveaxis(call.inputs[index], axis, -1)
    one = labels.reshape(-1, labels.shape[-1])[:1]
    call.tie(labels.reshape(-1, labels.shape[-1]), one)
    return one[0]


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The operands and the result of an equation, a letter for every axis that "..." stands for."""
    operands, result = equation.replace(" ", "").split("->")
    named = operands.split(",")
    unused = "".join(letter for letter in string.ascii_letters if letter not in equation)
    hidden = [rank - len(names.replace("...", "")) for names, rank in zip(named, ranks, strict=True)]
    elided = unused[: max(hidden)]
    named = [names.replace("...", elided[len(elided) - size :]) for names, size in zip(named, hidden, strict=True)]
    return named, result.replace("...", elided)
