"""Random functional graphs of the supported layers: whatever is removed, everything that is promised holds.

All is computed in float64, so that a channel that is left where it should be gone cannot hide in the rounding.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, event, given, seed, settings
from hypothesis import strategies as st
from keras import layers, ops, tree

import tfprune
from tests.graphs import build, recipes
from tests.helpers import predict, relative_error, weights_by_path
from tfprune.errors import NothingProvedError, PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.inputs import random_inputs
from tfprune.graph.walk import Wiring
from tfprune.plans.channels import ChannelPlan
from tfprune.surgery.rebuild import clone

EXACT = 1e-9

PLANS = st.fixed_dictionaries(
    {
        "ratio": st.floats(0.1, 0.8),
        "scope": st.sampled_from(["layer", "global"]),
        "criterion": st.sampled_from(["l1", "l2", "random"]),
        "round_to": st.sampled_from([1, 1, 2, 3]),
        "seed": st.integers(0, 9),
    }
)


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))  # which processes take side by side
def test_any_graph_keeps_every_promise(part, tmp_path):
    @seed(part)
    @settings(
        max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=set(Phase) - {Phase.explain},  # which would take longer than all the rest
    )  # fmt: skip
    @given(recipe=recipes(), asked=PLANS)
    def check(recipe, asked):
        check_promises(recipe, asked, tmp_path)

    check()


def check_promises(recipe, asked, tmp_path):
    model = build(recipe)
    same = clone(model)
    inputs = random_inputs(model, 3)
    for one, other in zip(predict(model, *inputs), predict(same, *inputs), strict=True):
        assert np.array_equal(one, other)
    try:
        plan = tfprune.plan_channels(model, **asked)
    except PlanError as error:
        event("planned: nothing, " + ("no channel is free" if "can be pruned" in str(error) else "too few channels"))
    else:
        event("planned: channels go")
        check_plan(model, plan, tmp_path)
    graph = ChannelGraph(model)
    removed = any_groups(graph, np.random.default_rng(recipe["seed"]))
    event("by hand: channels go" if removed else "by hand: nothing")
    if removed:
        plan = ChannelPlan.from_groups(graph, removed)
        small = check_plan(model, plan, tmp_path)
        check_two_steps(model, small, plan, ChannelPlan.from_groups(graph, removed[: len(removed) // 2]))
        assert gradients(small, inputs) == gradients(same, inputs)
    whole = [record.name for record in graph.records.values() if has_groups(record.operation)]
    if whole:
        graph = ChannelGraph(model, grouped=whole)
        removed = any_groups(graph, np.random.default_rng(recipe["seed"]))
        gone = {group for name in whole for group in graph.group_of[graph.records[name].created].tolist()}
        event("by hand: whole groups go" if gone.intersection(removed) else "by hand: no whole group")
        check_plan(model, ChannelPlan.from_groups(graph, removed), tmp_path)


def has_groups(operation):
    kinds = (layers.Conv1D, layers.Conv2D)
    return isinstance(operation, kinds) and operation.groups > 1 and not keeps_channels(operation)


def check_plan(model, plan, folder):
    """A plan is proved twice, foretells the costs and the widths, and survives the disk; returns what it leaves."""
    try:
        assert tfprune.verify(model, plan, examples=2) <= EXACT
    except NothingProvedError:
        event("nothing proved")
    small = plan.apply(model)
    inputs = random_inputs(model, 2, seed=1)
    assert relative_error(outputs_without(model, plan, inputs), predict(small, *inputs)) <= EXACT
    plan.save(folder / "plan.json")
    assert tfprune.load_plan(folder / "plan.json") == plan
    check_costs(plan, small)
    check_widths(plan, small)
    return small


def check_costs(plan, small):
    built = tfprune.profile(small)
    assert (built.params, built.macs, built.flops) == (plan.params[1], plan.macs[1], plan.flops[1])
    parameters = [weight for weight in small.weights if "moving" not in weight.name]
    assert built.params == sum(int(np.prod(weight.shape)) for weight in parameters)


def check_widths(plan, small):
    for name, kept in plan.keep.items():
        layer = small.get_layer(name)
        layer = getattr(layer, "layer", getattr(layer, "forward_layer", layer))
        widths = [getattr(layer, key, None) for key in ("filters", "units", "output_dim", "num_heads")]
        assert len(kept) in widths, name


def gradients(model, inputs):
    """Weight path -> whether the sum of squares of the outputs has a gradient there; all of them finite."""
    with tf.GradientTape() as tape:
        outputs = model(inputs if len(inputs) > 1 else inputs[0], training=False)
        loss = sum(ops.sum(ops.square(output)) for output in tree.flatten(outputs))
    variables = model.trainable_variables
    found = tape.gradient(loss, [variable.value for variable in variables])
    dense = [tf.convert_to_tensor(value) for value in found if value is not None]
    assert all(np.isfinite(value.numpy()).all() for value in dense)
    return {variable.path: value is None for variable, value in zip(variables, found, strict=True)}


def any_groups(graph, generator):
    """Random groups that may go together."""
    groups = np.unique(np.concatenate([graph.group_of[record.created] for record in graph.producers()]))
    free = generator.permutation([group for group in groups.tolist() if group not in graph.frozen])
    removed = []
    for group in free[: 1 + int(generator.uniform(0.2, 0.9) * len(free))].tolist():
        try:
            ChannelPlan.from_groups(graph, [*removed, group])
        except PlanError:  # the last one of a layer or of a slice
            continue
        removed.append(group)
    return removed


def check_two_steps(model, at_once, plan, first):
    """Some of the channels first, and then the others from the network that is left."""
    between = first.apply(model)
    if apart(between) != apart(model):
        event("two steps: a grouped convolution has become a depthwise one")  # whose outputs go with its inputs
        return
    others = {
        record.name: [
            place for place, channel in enumerate(first.keep[record.name]) if channel not in plan.keep[record.name]
        ]
        for record in ChannelGraph(between).producers()
    }
    twice = ChannelPlan.from_removed(between, others).apply(between)
    one, other = weights_by_path(twice), weights_by_path(at_once)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[path], other[path]) for path in one)


def apart(model):
    """The names of the layers that keep channels apart, depthwise convolutions written as grouped ones among them."""
    return {layer.name for layer in model._flatten_layers() if keeps_channels(layer)}


# The proof once more, by other means. Nothing below looks at labels: the channels that a plan removes are poisoned
# where they are made, and what is poisoned where channels are mixed becomes zero.

MIXING = (
    "Conv1D", "Conv2D", "Conv2DTranspose", "SeparableConv1D", "SeparableConv2D", "Dense", "LSTM", "GRU", "SimpleRNN",
    "Bidirectional", "MultiHeadAttention",
)  # fmt: skip


def outputs_without(model, plan, inputs):
    """The outputs of a model with everything zero that removed channels feed, found by poisoning them."""
    gone = {name: np.isin(np.arange(width), plan.keep[name], invert=True) for name, width in plan.widths.items()}

    def run(node, values):
        operation = node.operation
        if mixes(operation):
            values = [without_poison(value) for value in values]
        elif type(operation).__name__ == "Matmul":
            values = [without_poison(values[0]), without_poisoned_rows(values[1])]
        args, kwargs = node.filled(values)
        outputs = per_channel(operation, args[0]) if keeps_channels(operation) else operation(*args, **kwargs)
        if operation.name in gone and not isinstance(operation, layers.MultiHeadAttention):
            return tree.map_structure(lambda value: poisoned(value, gone[operation.name]), outputs)
        return outputs

    weights = model.get_weights()
    for layer in model._flatten_layers():
        if layer.name in gone:
            zero_inside(layer, gone[layer.name])
    outputs = Wiring(model).replay([ops.convert_to_tensor(value) for value in inputs], run)
    model.set_weights(weights)
    return [ops.convert_to_numpy(output) for output in outputs]


def mixes(operation):
    inner = operation.layer if isinstance(operation, layers.TimeDistributed) else operation
    if type(inner).__name__ == "Sum":
        return tree.flatten(inner.axis) != [1]  # over the positions of a sequence it keeps channels apart
    return type(inner).__name__ in MIXING and not keeps_channels(inner)


def keeps_channels(operation):
    """The operations in which poison would spread too far or too little: a kernel per channel, and padding."""
    if isinstance(operation, (layers.Conv1D, layers.Conv2D)):
        return operation.groups > 1 and operation.kernel.shape[-2] == 1
    return type(operation).__name__ in ("ZeroPadding1D", "ZeroPadding2D", "Pad")


def per_channel(operation, value):
    """The result for clean channels, and whole channels of poison from those that have any."""
    every = tuple(range(len(value.shape) - 1))
    bad = ops.any(is_poison(value), axis=every)
    if type(operation).__name__ == "Pad":
        if not ops.all(bad == ops.all(is_poison(value), axis=every)):  # the channels are on another axis
            return operation(value)
        bad = np.pad(bad, operation.pad_width[-1])
    outputs = operation(without_poison(value))
    return poisoned(outputs, np.repeat(bad, outputs.shape[-1] // len(bad)))


def is_poison(value):
    """NaN, or what a pooling layer makes of it: the least of all numbers."""
    return ops.logical_not(ops.abs(value) < 1e100)


def without_poison(value):
    return value if "int" in str(value.dtype) else ops.where(is_poison(value), 0.0, value)


def without_poisoned_rows(value):
    """As above, where poison does not fill whole columns, which stay apart in a product."""
    poison = is_poison(value)
    return ops.where(ops.logical_and(poison, ops.logical_not(ops.all(poison, -2, keepdims=True))), 0.0, value)


def poisoned(value, gone):
    """NaN at channels of the last axis; twice where two directions stand side by side."""
    return ops.where(np.tile(gone, value.shape[-1] // len(gone)), np.nan, value)


def zero_inside(layer, gone):
    """A layer that mixes channels of its own gets zero weights there."""
    cells = [getattr(inner, "cell", None) for inner in (layer, *layer._layers)]
    kernels = [cell.recurrent_kernel for cell in cells if cell is not None]
    if isinstance(layer, layers.MultiHeadAttention):
        kernels = [layer._output_dense.kernel]
    for kernel in kernels:
        value = np.array(kernel.numpy())
        value[gone] = 0.0
        kernel.assign(value)
