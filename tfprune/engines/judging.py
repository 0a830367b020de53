"""Whether a file computes what its network does, as far as its precision goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import keras
import numpy as np
from keras import tree

from tfprune.engines.base import Run
from tfprune.engines.serving import stateful_layers
from tfprune.errors import ExportError, PlanError
from tfprune.graph.keras_internals import layers_within
from tfprune.graph.walk import pack_inputs
from tfprune.support.checks import in_one_line
from tfprune.surgery.comparing import compare_outputs, exact
from tfprune.surgery.masked import fresh_states
from tfprune.surgery.precision import in_precision, is_short

_LEAST = 1e-5  # of the largest output: what float32 differs by with another order of sums
_TIMES = 4  # the file rounds, and so does the network, each in its own way
_MOST = 0.05  # a network whose rounding is above a quarter of that cannot be told from another one
_MOST_INT8 = 0.1
_STEPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10}  # from 1 to the next number


@dataclasses.dataclass(frozen=True)
class Check:
    """What a file gives beside its network.

    Attributes:
        difference: `max |network - file|`, relative to the largest output; of several outputs the largest. Of
            `litert_int8` the root of the mean square in the place of the maximum.
        tolerance: What is allowed.
        agreement: Fraction of the examples of `data=` whose largest output is the same one; `litert_int8` alone, and
            None where the network has several outputs, or one value in each.
        accuracy: Of the network and of the file, where `data=` has classes for targets; else None.
    """

    difference: float
    tolerance: float
    agreement: float | None = None
    accuracy: tuple[float, float] | None = None


class Judge:
    """Compares files of a network with it, on the same inputs.

    Args:
        model: The network; stateful layers begin anew.
        inputs: One array per input.
        tolerance: The largest difference, relative to the largest output; None: 1e-5, or where the network's own
            rounding is more, four times that: its distance from the same network in float64, and at least the
            distance of 1 from the next number in the precision that it computes in.

    Raises:
        PlanError: If the network cannot be run on these inputs, or gives something that is no finite number.
    """

    def __init__(self, model: keras.Model, inputs: Sequence[np.ndarray], tolerance: float | None = None):
        self._model, self._inputs, self._given = model, inputs, tolerance
        self._calls = 2 if stateful_layers(model) else 1  # the second one with what the first has left
        with in_one_line(f"{model.name!r} cannot be run on a random batch of {len(inputs[0])}"):
            self._expected = self._outputs(model, inputs)
        if not all(np.isfinite(exact(output)).all() for output in self._expected if _is_number(output)):
            raise PlanError(
                f"{model.name!r} gives values that are no finite numbers, so that no file can be compared with it. "
                "Give inputs= such as it is made for."
            )

    def compare(self, run: Run, what: str) -> Check:
        """Runs a file and compares.

        Args:
            run: What runs it, loaded anew.
            what: Its name, for messages.

        Raises:
            ExportError: If it computes something else.
        """
        received = [output for _ in range(self._calls) for output in run(self._inputs)]
        shapes = [[tuple(np.shape(output)) for output in outputs] for outputs in (self._expected, received)]
        if shapes[0] != shapes[1]:
            raise ExportError(f"The network in memory gives {shapes[0]}, and {what} {shapes[1]}.")
        tolerance = _LEAST if self._given is None else self._given
        words = f"the network in memory and {what}"
        try:
            return Check(compare_outputs(self._expected, received, tolerance, words, ExportError), tolerance)
        except ExportError:
            rounding = max(self._rounding(), self._step()) if self._given is None else 0.0
            if _TIMES * rounding <= _LEAST:
                raise
        tolerance = min(_TIMES * rounding, _MOST)
        return Check(compare_outputs(self._expected, received, tolerance, words, ExportError), tolerance)

    def _outputs(self, model: keras.Model, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        with fresh_states(model):
            calls = [model(pack_inputs(model, list(inputs)), training=False) for _ in range(self._calls)]
        return [keras.ops.convert_to_numpy(output) for output in tree.flatten(calls)]

    def _step(self) -> float:
        """The distance of 1 from the next number in 16 bits, where the network computes in them; else 0.

        A few outputs may come close to those in float64 by chance.
        """
        computed = {layer.compute_dtype for layer in layers_within(self._model) if is_short(layer.dtype_policy)}
        return max((_STEPS[dtype] for dtype in computed), default=0.0)

    def _rounding(self) -> float:
        """How far the network is from itself in float64, or 0 where it cannot be had in that."""
        try:
            twin = in_precision(self._model, "float64")
            inputs = [value.astype("float64") if value.dtype.kind == "f" else value for value in self._inputs]
            return compare_outputs(self._outputs(twin, inputs), self._expected, np.inf, "", ExportError)
        except Exception:  # a layer of others may know one precision only
            return 0.0


def judge_int8(
    model: keras.Model, run: Run, batches: Iterable[Sequence[np.ndarray]], classes: np.ndarray | None, what: str
) -> Check:
    """Compares a file of whole numbers with its network, on representative data.

    Args:
        model: The network.
        run: What runs the file.
        batches: Of one array per input.
        classes: (examples,) int, what the examples are; None if that is not known.
        what: The name of the file, for messages.

    Raises:
        ExportError: If the root mean square of the difference is above a tenth of the largest output.
    """
    pairs = []
    for batch in batches:
        expected = tree.flatten(model(pack_inputs(model, list(batch)), training=False))
        pairs.append(([exact(output) for output in expected], [exact(output) for output in run(batch)]))
    worst, both = 0.0, []
    for place in range(len(pairs[0][0])):
        one, other = (np.concatenate([pair[side][place] for pair in pairs]) for side in (0, 1))
        size = np.abs(one).max(initial=0.0)
        worst = max(worst, float(np.sqrt(np.mean((one - other) ** 2)) / size) if size else float(np.abs(other).max()))
        both.append((one, other))
    if not worst <= _MOST_INT8:
        raise ExportError(
            f"The network in memory and {what} differ by {worst:.3g} of the largest output in the mean (root mean "
            f"square), above {_MOST_INT8}: 8 bits are too few for it on these data."
        )
    one, other = both[0]
    if len(both) > 1 or one.ndim != 2 or one.shape[1] < 2:
        return Check(worst, _MOST_INT8)
    found, again = one.argmax(axis=1), other.argmax(axis=1)
    right = None if classes is None else (float(np.mean(found == classes)), float(np.mean(again == classes)))
    return Check(worst, _MOST_INT8, float(np.mean(found == again)), right)


def _is_number(output: np.ndarray) -> bool:
    return output.dtype.kind not in "OSU"
