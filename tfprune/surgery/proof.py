"""The proof: the masked original and the smaller network compute the same.

The masked original is the network itself with the removed channels zero wherever channels are mixed.
"""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from tfprune.errors import NothingProvedError, PlanError, VerificationError
from tfprune.graph.inputs import own_inputs, random_inputs
from tfprune.graph.keras_internals import layers_within
from tfprune.graph.walk import functional, pack_inputs
from tfprune.surgery.masked import masked_outputs
from tfprune.surgery.provable import ChannelRemoval, Provable
from tfprune.surgery.rebuild import clone


def verify(
    model: keras.Model,
    plan: ChannelRemoval,
    examples: int = 4,
    seed: int = 0,
    tolerance: float = 1e-5,
    random_weights: bool = False,
    inputs: Any = None,
) -> float:
    """Proves a plan: the masked original and the smaller network compute the same.

    The masked original has the removed channels zero at the input of every layer that mixes channels. The
    smaller network is built by `plan.apply(model)`, with the weights that the model has now. Networks of 16-bit
    precision are proved with their layers in float32: in 16 bits the order of a sum alone makes a difference.

    Where the model's own weights hide everything (an untrained network whose outputs hardly depend on its inputs),
    random weights take their place.

    Args:
        model: The network that the plan is for.
        plan: A `ChannelPlan`.
        examples: Number of random inputs.
        seed: Of the random inputs and weights.
        tolerance: The largest difference that counts as the same, relative to the largest output.
        random_weights: Prove it with random weights at once. They find what weights of zero hide, such as a wrong
            rule for a layer of your own that begins as the identity.
        inputs: Your own inputs in the place of random ones, as the model takes them.

    Returns:
        `max |masked - smaller| / max |masked|`.

    Raises:
        VerificationError: If the difference is above the tolerance, or not a number.
        NothingProvedError: If the outputs depend neither on the inputs nor on what is removed (a saturated
            activation), with random weights either, so that they would be the same after any surgery.
        PlanError: If the plan is not for this model, or an argument is out of range. A `WeightPlan` and a
            `DesignPlan` prove themselves.
    """
    _check_verify(model, plan, examples, seed, tolerance)
    inputs = random_inputs(model, examples, seed) if inputs is None else own_inputs(model, inputs)
    if not random_weights:
        try:
            return _compare(model, plan, inputs, tolerance)
        except NothingProvedError:
            pass
    return _compare(_randomized(model, seed), plan, inputs, tolerance)


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


def _randomized(model: keras.Model, seed: int) -> keras.Model:
    """A twin with random weights and statistics, whatever the model's own are."""
    generator = np.random.default_rng(seed)
    twin = clone(model)
    fixed = {id(v) for layer in layers_within(twin) if hasattr(layer, "finalize_state") for v in layer.weights}
    for variable in twin.weights:
        shape, name = variable.shape, variable.name
        if id(variable) in fixed or "float" not in variable.dtype:
            continue
        if name in ("gamma", "scale"):
            value = generator.uniform(0.5, 1.5, shape)
        elif name == "moving_variance":
            value = generator.uniform(0.5, 2.0, shape)
        elif len(shape) < 2:
            value = generator.normal(0.0, 0.3, shape)
        else:
            value = generator.normal(0.0, (2.0 / max(1, np.prod(shape[:-1]))) ** 0.5, shape)
        variable.assign(value)
    return twin


def _compare(model: keras.Model, plan: ChannelRemoval, inputs: list, tolerance: float) -> float:
    model = _in_full_precision(model)
    graph = plan.graph(model)
    with _fresh_states(model):
        masked = masked_outputs(graph, plan.kept(graph), inputs)
    with _fresh_states(model):
        whole = tree.flatten(model(pack_inputs(model, inputs), training=False))
    _check_informative(whole, masked)
    small = plan.apply(model)
    removed = tree.flatten(small(pack_inputs(model, inputs), training=False))
    return compare_outputs(masked, removed, tolerance, "the masked and the smaller network", VerificationError)


@contextlib.contextmanager
def _fresh_states(model: keras.Model) -> Iterator[None]:
    """Lets stateful recurrent layers begin anew, as those of the smaller network do, and gives the states back."""
    layers = [layer for layer in layers_within(model) if getattr(layer, "stateful", False)]
    states = [(state, state.numpy()) for layer in layers for state in layer.states]
    for layer in layers:
        layer.reset_state()
    yield
    for state, value in states:
        state.assign(value)


def _in_full_precision(model: keras.Model) -> keras.Model:
    """The model, or a twin in float32 of one that has layers of 16 bits."""

    def widened(config: Any) -> Any:
        if not isinstance(config, dict):
            return config
        return {
            key: "float32" if key == "dtype" and _is_short(value) else widened(value) for key, value in config.items()
        }

    if not any(_is_short(layer.dtype_policy) for layer in layers_within(model)):
        return model
    return clone(model, lambda record, config: (type(record.operation), widened(config)))


def _is_short(dtype: Any) -> bool:
    """Whether a dtype or policy, an object or its config, is of 16 bits or mixed with them."""
    return keras.dtype_policies.get(dtype).name.endswith("float16")


def _check_informative(whole: list, masked: list) -> None:
    """Raises a NothingProvedError if outputs tell neither examples nor the masked network from the whole one."""
    for one, other in zip(whole, masked, strict=True):
        one, other = (keras.ops.convert_to_numpy(output).astype(np.float64) for output in (one, other))
        noise = 1e-6 * np.abs(one).max(initial=0.0)
        if not (np.ptp(one, axis=0).max(initial=0.0) <= noise and np.abs(one - other).max(initial=0.0) <= noise):
            return
    raise NothingProvedError(
        "The outputs are the same for all random inputs, with and without the removed channels, so comparing them "
        "proves nothing. Is the last activation saturated? Verify the model without it."
    )


def compare_outputs(expected: list, received: list, tolerance: float, what: str, error: type[Exception]) -> float:
    """Returns max |expected - received| / max |expected| over outputs; raises `error` above the tolerance."""
    worst = 0.0
    for one, other in zip(expected, received, strict=True):
        one, other = (keras.ops.convert_to_numpy(value).astype(np.float64) for value in (one, other))
        difference = np.abs(one - other).max(initial=0.0)
        scale = np.abs(one).max(initial=0.0)
        worst = max(worst, difference / scale if difference else 0.0)
        if not np.isfinite(difference) or worst > tolerance:
            raise error(
                f"{what} differ by {difference:.3g} where the largest output is {scale:.3g}: "
                f"a relative error of {worst:.3g}, above the tolerance of {tolerance:.3g}."
            )
    return float(worst)
