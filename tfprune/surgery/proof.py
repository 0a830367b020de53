"""The proof: the masked original and the smaller network compute the same.

The masked original is the network itself with the removed channels zero wherever channels are mixed.
"""

from __future__ import annotations

import contextlib
import functools
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfprune.errors import NothingProvedError, PlanError, VerificationError
from tfprune.graph.inputs import inputs_that_tell, inputs_that_work
from tfprune.graph.keras_internals import layers_within
from tfprune.graph.masking import ZEROS
from tfprune.graph.walk import functional, pack_inputs
from tfprune.support.checks import in_one_line
from tfprune.surgery.after_the_cut.compensation import Compensation, compensation_from
from tfprune.surgery.comparing import apart, compare_outputs, exact, rolled_kernel
from tfprune.surgery.masked import fresh_states, masked_outputs
from tfprune.surgery.precision import in_precision, is_short
from tfprune.surgery.provable import ChannelRemoval, Proof, Provable
from tfprune.surgery.random_weights import in_their_places, masked_with_own_statistics, random_values
from tfprune.surgery.rebuild import Built

# An output that varies by less of its size says little: rounding is about 1e-7 of its size, the tolerance 1e-5 of what
# it varies by.
_VARIES = 0.05
_FAR = 10  # a broken kernel has to make a difference so many times that of rounding
_MORE = 3  # random weights that are drawn for kernels which make none: a gate may be closed with one, not with all


def verify(
    model: keras.Model,
    plan: ChannelRemoval,
    examples: int = 4,
    seed: int = 0,
    tolerance: float = 1e-5,
    random_weights: bool = False,
    inputs: Any = None,
    power: bool = False,
    compensate: Any = None,
) -> Proof:
    """Proves a plan: the masked original and the smaller network compute the same.

    The masked original has the removed channels zero where a layer mixes channels. The smaller network is the one that
    `plan.apply(model)` builds, with the weights that the model has now. Networks of 16-bit precision are proved with
    their layers in float32: in 16 bits the order of a sum alone makes a difference. What is above the tolerance in
    float32 is compared in float64 again, where nothing is left of rounding.

    It is proved with the model's own weights and with random ones. For in the model's own a wrong channel may be lost:
    where all outputs are nearly the same (an untrained network, a detector that begins with the same score everywhere),
    or where a branch is scaled by almost nothing.

    Args:
        model: The network that the plan is for; it stays as it is.
        plan: A `ChannelPlan`.
        examples: Number of random inputs.
        seed: Of the random inputs and weights.
        tolerance: The largest difference that counts as the same, relative to what the output varies by.
        random_weights: Prove it with random weights alone.
        inputs: Your own inputs in the place of random ones, as the model takes them.
        power: Break the smaller network as well, one kernel at a time, and see whether that is noticed.
        compensate: As of `ChannelPlan.apply`. The masked original holds these constants in the places of the removed
            channels, also in what a convolution pads; with random weights the same ones.

    Returns:
        The error, which is a float, with how it was found. Of an output it is `max |masked - smaller|`, relative to
        what the output varies by (over the examples; with random weights, or one example, also from the whole network
        to the masked one; and at least a quarter of its size); of several the largest.

    Raises:
        VerificationError: If the difference is above the tolerance, or not a number.
        NothingProvedError: If the outputs depend neither on the inputs nor on what is removed (a saturated activation),
            with random weights either.
        PlanError: If the plan is not for this model (a `WeightPlan` proves itself), or an argument is out of range.
    """
    _check_verify(model, plan, examples, seed, tolerance)
    inputs = inputs_that_work(model, examples, seed) if inputs is None else inputs_that_tell(model, inputs)
    held = compensation_from(model, plan, compensate)
    is_rough = any(is_short(layer.dtype_policy) for layer in layers_within(model))
    model = in_precision(model, "float32") if is_rough else model
    comparison = _Comparison(model, plan, inputs, tolerance, held)
    found = _compared(comparison, model, seed, random_weights)
    errors = {weights: error for weights, (error, varies) in found.items() if varies}
    if not errors:
        raise NothingProvedError(
            "The outputs are the same for all random inputs, with and without the removed channels, so comparing them "
            "proves nothing. Is the last activation saturated? Verify the model without it."
        )
    tried, unnoticed = comparison.roll_every_kernel(seed) if power else (0, [])
    return Proof(max(errors.values()), " and ".join(errors), tried, unnoticed)


def _compared(
    comparison: _Comparison, model: keras.Model, seed: int, random_weights: bool
) -> dict[str, tuple[float, bool]]:
    """What was found with which weights; raises a PlanError where the code of others fails when it is called."""
    with in_one_line(f"Nothing can be proved: {model.name!r}, or what is left of it, cannot be run"):
        comparison.check_trace()
        return comparison.run_with_all(seed, random_weights)


def _check_verify(model: keras.Model, plan: Any, examples: int, seed: int, tolerance: float) -> None:
    functional(model)
    if not isinstance(plan, Provable):
        raise PlanError(f"verify takes a model and a plan; received a {type(plan).__name__} as plan. See load_plan.")
    if not isinstance(plan, ChannelRemoval):
        raise PlanError(f"{plan.no_masked_twin} Use plan.prove(model).")
    for name, value, least in (("examples", examples, 1), ("seed", seed, 0)):
        if not isinstance(value, numbers.Integral) or value < least:
            raise PlanError(f"{name}={value!r} must be a whole number of at least {least}.")
    if not isinstance(tolerance, numbers.Real) or not 0.0 < tolerance < 1.0:
        raise PlanError(f"tolerance={tolerance!r} is no number in (0, 1).")


class _Compared(NamedTuple):
    """What was compared, and with which weights.

    Attributes:
        values: Those in the places of the model's own.
        masked: Outputs of the masked network.
        scales: What differences of each output are relative to.
        error: The largest one.
    """

    values: Mapping[int, np.ndarray]
    masked: list[np.ndarray]
    scales: list[float]
    error: float


class _Comparison:
    """The masked original and the smaller network on the same inputs.

    Args:
        model: The network.
        plan: What goes.
        inputs: One array per input.
        tolerance: The largest error.
        compensation: What stands in the places of the removed channels, if it is something else than zeros.

    Attributes:
        graph: The channel graph of the network, as the plan sees it.
    """

    def __init__(
        self,
        model: keras.Model,
        plan: ChannelRemoval,
        inputs: list,
        tolerance: float,
        compensation: Compensation | None = None,
    ):
        self._model, self._plan, self._inputs, self._tolerance = model, plan, inputs, tolerance
        self._compensation = compensation
        self.graph = plan.graph(model)
        self._kept = plan.kept(self.graph)
        held = None if compensation is None else compensation.held(self.graph, self._kept)
        self._small = Built(self.graph, self._kept, held=held)
        self._filling = ZEROS if held is None else held
        self._masked: list[np.ndarray] = []
        self._scales: list[float] = []
        self._compared: list[_Compared] = []

    def run_with_all(self, seed: int, random_weights: bool) -> dict[str, tuple[float, bool]]:
        """Compares with the model's own weights, unless it is to be random ones alone, and with random ones.

        Args:
            seed: Of the random weights.
            random_weights: Whether it is to be random ones alone.

        Returns:
            "own" and "random" -> what `run` gives.
        """
        found: dict[str, tuple[float, bool]] = {}
        for weights, drawn in (("own", None), ("random", seed)):
            if random_weights and weights == "own":
                continue
            found[weights] = self._run_in_any(drawn, own="own" in found)
        return found

    def _run_in_any(self, seed: int | None, own: bool) -> tuple[float, bool]:
        """Compares in float32, and where that differs in float64; arguments as of `run`."""
        try:
            return self.run(seed, own)
        except VerificationError as error:
            return self.in_double(seed, error)

    def run(self, seed: int | None = None, own: bool = False) -> tuple[float, bool]:
        """Compares, with the model's own weights or with random ones in their places.

        Args:
            seed: Of random weights; None: the model's own.
            own: Whether it was compared with the model's own weights. Then outputs that are no numbers with others (a
                logarithm of what is never negative in the model itself) prove nothing, and are no error.

        Returns:
            The error, and whether the outputs vary enough for it to mean something.

        Raises:
            VerificationError: If the error is above the tolerance.
        """
        values: dict[int, np.ndarray] = {} if seed is None else random_values(self.graph, seed)
        with fresh_states(self._model):
            if seed is None:
                masked = masked_outputs(self.graph, self._kept, self._inputs, None, self._filling)
            else:
                masked = masked_with_own_statistics(self.graph, self._kept, self._inputs, values, seed, self._filling)
        outputs = [exact(output) for output in masked]
        if own and not all(np.isfinite(output).all() for output in outputs):
            return 0.0, False
        self._masked = outputs
        sizes = [float(np.abs(output).max(initial=0.0)) for output in outputs]
        varied = [float(np.ptp(output, axis=0).max(initial=0.0)) for output in outputs]
        lively = [spread > _VARIES * size for spread, size in zip(varied, sizes, strict=True)]
        # Then what is removed may make a difference. With the model's own weights the random ones will tell as much.
        if not all(lively) and (values or len(self._inputs[0]) == 1):
            whole = self._whole(values)
            varied = [max(spread, apart(*pair)) for spread, *pair in zip(varied, whole, outputs, strict=True)]
            lively = [spread > _VARIES * size for spread, size in zip(varied, sizes, strict=True)]
        # Rounding is of the size of an output, not of what it varies by: deep networks have 1e-6 of it.
        least = [size / 4 if is_lively else size for size, is_lively in zip(sizes, lively, strict=True)]
        self._scales = [max(spread, size) for spread, size in zip(varied, least, strict=True)]
        if values:  # its own it has from the beginning
            self._small.hand_on(values)
        received = self._received()
        error, varies = self._differ(received, math.inf), any(lively) if values else all(lively)
        if varies:
            self._compared.append(_Compared(values, self._masked, self._scales, error))
        return self._differ(received, self._tolerance), varies

    def in_double(self, seed: int | None, error: VerificationError) -> tuple[float, bool]:
        """Compares in float64: where a deep network only makes rounding larger, nothing is found there.

        Args:
            seed: As of `run`.
            error: What was found in float32; it is raised where the network is none in float64, or differs there.
        """
        try:
            model = in_precision(self._model, "float64")
            inputs = [value.astype("float64") if value.dtype.kind == "f" else value for value in self._inputs]
            found = _Comparison(model, self._plan, inputs, self._tolerance, self._compensation).run(seed)
        except Exception:  # a layer of others may know one precision only
            self._check_repeats()
            raise error from None
        if found[0] > self._tolerance / 100:  # in float64 nothing is left of rounding
            raise error
        return found

    def _check_repeats(self) -> None:
        """Raises a VerificationError if the network gives something else at every call."""
        one, two = self._whole({}), self._whole({})
        if any(not np.array_equal(*pair, equal_nan=True) for pair in zip(one, two, strict=True)):
            raise VerificationError(
                f"{self._model.name!r} gives something else at every call, also with training=False, so that nothing "
                "can be compared. Verify it without what draws at random."
            )

    def check_trace(self) -> None:
        """Compares a model with a `call` of its own with the graph that was made of it.

        Raises:
            VerificationError: If they differ.
        """
        if functional(self._model) is self._model or isinstance(self._model, keras.Sequential):
            return
        with fresh_states(self._model):
            given = functional(self._model)(pack_inputs(self._model, self._inputs), training=False)
        what = f"{self._model.name!r} and the graph that its call was traced as"
        traced = [exact(output) for output in tree.flatten(given)]
        try:
            compare_outputs(self._whole({}), traced, self._tolerance, what, VerificationError)
        except VerificationError:
            self._check_repeats()
            raise

    def _whole(self, values: Mapping[int, np.ndarray]) -> list[np.ndarray]:
        """What the network gives with nothing removed."""
        with fresh_states(self._model), self._with(values):
            outputs = self._model(pack_inputs(self._model, self._inputs), training=False)
        return [exact(output) for output in tree.flatten(outputs)]

    @contextlib.contextmanager
    def _with(self, values: Mapping[int, np.ndarray]) -> Iterator[None]:
        """Other values in the places of the model's weights, which stay as they are."""
        if not values:
            yield
            return
        with keras.StatelessScope(state_mapping=in_their_places(self._model, values)):
            yield

    def _received(self, run: Callable[[Any], Any] | None = None) -> list:
        """What the smaller network gives as it is; `run`: another way to call it."""
        run = functools.partial(self._small.model, training=False) if run is None else run
        with fresh_states(self._small.model):
            return tree.flatten(run(pack_inputs(self.graph.model, self._inputs)))

    def _traced(self) -> Callable[[Any], Any] | None:
        """The smaller network, traced, so that it runs several times as fast; None where it cannot be traced."""
        run = tf.function(functools.partial(self._small.model, training=False), autograph=False)
        try:
            self._received(run)
        except Exception:  # whatever the code of others does on tensors without values
            return None
        return run

    def _differ(self, received: list, tolerance: float) -> float:
        """The error of outputs of the smaller network; raises a VerificationError above the tolerance."""
        what = "the masked and the smaller network"
        return compare_outputs(self._masked, received, tolerance, what, VerificationError, self._scales)

    def roll_every_kernel(self, seed: int) -> tuple[int, list[str]]:
        """Rolls every kernel of the smaller network by one channel, one at a time, with all weights that tell anything.

        Args:
            seed: Of the random weights so far; for kernels that make no difference others are drawn.

        Returns:
            How many there are, and the layers of those that make no difference above the tolerance.
        """
        used, kernels = self._used(), self._small.model.variables
        noticed: dict[int, bool] = {}
        run = self._traced()
        for compared in self._compared:
            self._roll(kernels, noticed, compared, run)
        for more in range(1, _MORE + 1):
            count = len(self._compared)
            if not all(found for place, found in noticed.items() if id(kernels[place]) in used):
                self._run_in_any(seed + more, own=True)
            for compared in self._compared[count:]:
                self._roll(kernels, noticed, compared, run)
        # What makes no difference and has no slope is not used, as far as can be told.
        noticed = {place: found for place, found in noticed.items() if found or id(kernels[place]) in used}
        paths = {place: variable.path.rpartition("/")[0] for place, variable in enumerate(kernels)}
        return len(noticed), [paths[place] for place, found in noticed.items() if not found]

    def _roll(
        self, kernels: list, noticed: dict[int, bool], compared: _Compared, run: Callable[[Any], Any] | None
    ) -> None:
        """Rolls the kernels that have made no difference yet, with the weights of one comparison."""
        self._masked, self._scales = compared.masked, compared.scales
        self._small.hand_on(compared.values)
        tolerance = max(self._tolerance, _FAR * compared.error)
        for place, variable in enumerate(kernels):
            value = keras.ops.convert_to_numpy(variable)
            rolled = rolled_kernel(variable.name, value)
            if rolled is None or noticed.get(place):
                continue
            variable.assign(rolled)
            try:
                self._differ(self._received(run), tolerance)
                noticed[place] = False
            except VerificationError:
                noticed[place] = True
            variable.assign(value)

    def _used(self) -> set[int]:
        """Identities of the variables that the outputs of the smaller network depend on; of all, if none can be told.

        Some layers have weights for other calls, as an embedding one that turns channels into words.
        """
        variables = self._small.model.variables
        try:
            with tf.GradientTape() as tape:
                tape.watch([variable.value for variable in variables])
                given = tree.flatten(self._small.model(pack_inputs(self.graph.model, self._inputs), training=False))
                total = sum(tf.reduce_sum(output) for output in given if output.dtype.is_floating)
            found = tape.gradient(total, [variable.value for variable in variables])
        except Exception:  # whatever the code of others does to a tape
            found = []
        used = {id(variable) for variable, slope in zip(variables, found, strict=False) if slope is not None}
        return used or set(map(id, variables))
