"""Gates on neurons and groups: where they sit, what they compute, and that what they close is removed at no loss."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, event, given, settings
from keras import layers

from tests.graphs import build, recipes
from tests.helpers import (
    accuracy,
    assert_sliced,
    densely_connected,
    images,
    network,
    plain_cnn,
    preactivated,
    predict,
    prove,
    randomize,
    relative_error,
    residual_cnn,
    user_network,
)
from tests.trainings import STRATEGY, proximal_steps
from tfprune.data import load
from tfprune.errors import PlanError
from tfprune.experiments.run import main
from tfprune.graph.inputs import random_inputs
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.methods.shared.channel_gates import ChannelGates
from tfprune.models import build_model
from tfprune.models.blocks import conv_bn_relu, pooled_logits
from tfprune.plans.channels import ChannelPlan
from tfprune.plans.loading import load_plan
from tfprune.surgery.layers import GATED, plain_weights
from tfprune.surgery.rebuild import clone
from tfprune.training.loop import Trainer, TrainingConfig
from tfprune.training.optimizer import CoupledSGD
from tfprune.training.schedules import Schedule

METHOD = METHODS.get("sparse_structure_selection")


def resnext(shape=(8, 8, 3), classes=5, widths=((8, 12), (16, 20)), groups=4, strides=1):
    """Bottleneck blocks with grouped convolutions: conv_1a, conv_1b (grouped), conv_1c, and so on."""
    inputs = keras.Input(shape)
    x = conv_bn_relu(inputs, 6, "stem", strides=strides)
    for number, (inner, outer) in enumerate(widths, 1):
        shortcut = conv_bn_relu(x, outer, f"{number}s", relu=False, size=1)
        x = conv_bn_relu(x, inner, f"{number}a", size=1)
        x = conv_bn_relu(x, inner, f"{number}b", groups=groups)
        x = conv_bn_relu(x, outer, f"{number}c", size=1, relu=False)
        x = layers.ReLU()(layers.Add()([x, shortcut]))
    return randomize(keras.Model(inputs, pooled_logits(x, classes), name="resnext"))


# The update, and the gated layers.


def test_a_vector_of_gates_takes_the_proximal_steps_of_each():
    generator = np.random.default_rng(3)
    gradients, rates = generator.normal(0, 1, (12, 5)), [0.1] * 6 + [0.02] * 6
    gates = keras.Variable(np.ones(5), dtype="float32")
    gates.proximal_l1 = 0.3
    optimizer, seen = CoupledSGD(momentum=0.9, coupled_weight_decay=0.01, nesterov=True), []
    for step, rate in zip(gradients.astype("float32"), rates, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([tf.constant(step)], [gates])
        seen.append(gates.numpy())
    expected = np.stack([proximal_steps(1, gradients[:, i], rates, 0.3, 0.9) for i in range(5)], axis=1)
    assert np.allclose(seen, expected, atol=1e-6)
    assert (np.asarray(seen) == 0).any()  # not nearly
    assert (seen[-1] > 0).any()


LAYERS = {
    "convolution": (lambda: layers.Conv2D(6, 3, name="own"), (5, 5, 2), -1),
    "grouped convolution": (lambda: layers.Conv2D(6, 3, groups=3, activation="relu", name="own"), (5, 5, 6), -1),
    "convolution over time": (lambda: layers.Conv1D(6, 3, use_bias=False, name="own"), (7, 2), -1),
    "dense": (lambda: layers.Dense(6, activation="leaky_relu", name="own"), (5,), -1),
    "normalization": (lambda: layers.BatchNormalization(name="own"), (5, 5, 6), -1),
    "normalization, channels first": (lambda: layers.BatchNormalization(axis=1, name="own"), (6, 5, 5), 1),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("count", [6, 3])
def test_each_gate_multiplies_its_run_of_channels_and_is_folded(name, count):
    make, shape, axis = LAYERS[name]
    model = network(lambda x: make()(x), shape)

    def gate(record, config):
        kind = type(record.operation)
        return (GATED[kind], {**config, "gate_l1": 0.1, "gates": count}) if record.name == "own" else (kind, config)

    twin, (x,) = clone(model, gate), random_inputs(model, 3)
    assert relative_error(predict(model, x), predict(twin, x)) <= 1e-6
    gates = np.linspace(0, 2, count)
    twin.get_layer("own").gate.assign(gates)
    (plain,), (before,) = predict(model, x), predict(twin, x)
    by_hand = np.moveaxis(np.moveaxis(plain, axis, -1) * np.repeat(gates, 6 // count), -1, axis)
    assert relative_error([by_hand], [before]) <= 1e-5
    twin.get_layer("own").fold()
    assert (twin.get_layer("own").gate.numpy() == np.ones(count)).all()
    model.set_weights([weight.numpy() for weight in plain_weights(twin)])
    assert relative_error([before], predict(model, x)) <= 1e-5


# Where gates sit.


def between(*behind, shape=(8, 8, 3)):
    """A convolution with a batch normalization, something behind it, and a convolution that reads it."""

    def body(x):
        x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, padding="same", name="first")(x))
        for layer in behind:
            x = layer(x)
        return layers.Dense(3)(layers.Flatten()(layers.Conv2D(5, 3, name="reader")(x)))

    return network(body, shape)


def without_normalization(x):
    x = layers.Conv2D(4, 3, activation="relu", name="a")(x)
    x = layers.MaxPooling2D(2)(layers.ReLU()(layers.Conv2D(6, 3, name="b")(x)))
    return layers.Dense(3)(layers.Dense(5, activation="relu", name="c")(layers.Flatten()(x)))


def side_by_side(x):
    one = layers.ReLU()(layers.BatchNormalization(name="bn_1")(layers.Conv2D(4, 1)(x)))
    other = layers.Activation("sigmoid")(layers.BatchNormalization(name="bn_2")(layers.Conv2D(5, 1)(x)))
    return layers.Dense(3)(layers.Flatten()(layers.Conv2D(6, 1, name="reader")(layers.Concatenate()([one, other]))))


def depthwise(x):
    x = layers.ReLU(6)(layers.BatchNormalization(name="bn_1")(layers.Conv2D(4, 1)(x)))
    x = layers.ReLU(6)(layers.BatchNormalization(name="bn_2")(layers.DepthwiseConv2D(3)(x)))
    return layers.Dense(3)(layers.Flatten()(layers.Conv2D(5, 1, name="reader")(x)))


def with_an_offset(x):
    """One value per position, added to all channels: a closed gate is no zero behind it."""
    a = layers.Conv2D(4, 1, name="a")(x)
    x = layers.Add()([a, layers.Conv2D(1, 1)(x)])
    return layers.Dense(3)(layers.Flatten()(layers.Conv2D(5, 1, name="reader")(x)))


def read_by_itself(x):
    """A recurrent layer reads its own channels, whatever a normalization behind it makes of them."""
    x = layers.LSTM(4, return_sequences=True)(x)
    return layers.Dense(3)(layers.Flatten()(layers.Dense(5, name="reader")(layers.BatchNormalization(name="bn")(x))))


def called_twice(x):
    shared = layers.Conv2D(4, 3, padding="same")
    x = layers.Conv2D(4, 1, activation="relu", name="own")(shared(layers.ReLU()(shared(layers.Conv2D(4, 1)(x)))))
    return layers.Dense(3)(layers.Flatten()(layers.Conv2D(5, 1, name="reader")(x)))


IMAGE = (8, 8, 3)
PLACES = {
    "vgg": (plain_cnn, {"bn_a": 6, "bn_b": 10, "fc": 8}),
    "residual": (residual_cnn, {"bn_branch_a": 6}),  # not the stream
    "preactivated": (preactivated, {"bn_1a": 6, "bn_2a": 6}),
    "densely connected": (densely_connected, None),
    "no normalization": (lambda: network(without_normalization, IMAGE), {"a": 4, "b": 6, "c": 5}),
    "PReLU": (lambda: between(layers.PReLU(shared_axes=[1, 2]), layers.AveragePooling2D(2)), {"bn": 4, "reader": 5}),
    "silu": (lambda: between(layers.Activation("silu")), {"bn": 4, "reader": 5}),
    "dropout and padding": (lambda: between(layers.Dropout(0.3), layers.ZeroPadding2D()), {"bn": 4, "reader": 5}),
    "sigmoid": (lambda: between(layers.Activation("sigmoid")), {"reader": 5}),
    "offset": (lambda: between(layers.Rescaling(2.0, offset=1.0)), {"reader": 5}),
    "depthwise bias": (lambda: between(layers.DepthwiseConv2D(3)), {"reader": 5}),
    "side by side": (lambda: network(side_by_side, IMAGE), {"bn_1": 4, "reader": 6}),
    "depthwise": (lambda: network(depthwise, IMAGE), {"bn_2": 4, "reader": 5}),
    "with an offset": (lambda: network(with_an_offset, IMAGE), {"reader": 5}),
    "read by itself": (lambda: network(read_by_itself, (6, 3)), {"reader": 5}),
    "called twice": (lambda: network(called_twice, IMAGE), {"own": 4, "reader": 5}),
    "grouped": (resnext, {"bn_stem": 6}),  # channels of grouped convolutions go from all groups alike
}


@pytest.mark.parametrize("name", PLACES)
def test_a_gate_sits_where_it_alone_makes_the_zeros_that_are_read(name):
    make, expected = PLACES[name]
    model = make()
    if expected is None:
        with pytest.raises(PlanError, match="No gate on neurons has a place in"):
            ChannelGates.find(model, "neurons")
        return
    found = ChannelGates.find(model, "neurons").layers
    assert {layer: len(gates) for layer, gates in found.items()} == expected


def test_groups_have_a_gate_each_and_ordinary_convolutions_none():
    found = ChannelGates.find(resnext(), "groups")
    assert {layer: len(gates) for layer, gates in found.layers.items()} == {"bn_1b": 4, "bn_2b": 4}
    assert found.graph.grouped == ("conv_1b", "conv_2b")
    with pytest.raises(PlanError, match=r"'residual_cnn' has none.*imagenet_resnext50"):
        METHOD.expected(residual_cnn(), MethodSettings(options={"gates": "groups"}))
    with pytest.raises(PlanError, match=r"Unknown gates 'layers'\. Valid: 'blocks', 'neurons', 'groups'"):
        METHOD.plan(residual_cnn(), MethodSettings(options={"gates": "layers"}))


# What goes, and that nothing is lost by it.


def folded(model, kind, close):
    """The network with gates folded into its weights, its gates, and what the gated one computes for some inputs.

    `close(name, count)` gives the gates of a layer.
    """
    model = clone(model)
    twin = clone(model, METHOD.edit(MethodSettings(options={"gates": kind})))
    gates = {}
    for layer in twin.layers:
        if isinstance(layer, tuple(GATED.values())):
            gates[layer.name] = close(layer.name, layer.gate.shape[0])
            layer.gate.assign(gates[layer.name])
    inputs = random_inputs(model, 3)
    before = predict(twin, *inputs)
    for name in gates:
        twin.get_layer(name).fold()
    model.set_weights([weight.numpy() for weight in plain_weights(twin)])
    return model, {name: list(values) for name, values in gates.items()}, inputs, before


def some_closed(seed):
    generator = np.random.default_rng(seed)

    def close(name, count):
        gates = generator.uniform(0.3, 2, count) * (generator.random(count) < 0.6)
        gates[generator.integers(count)] = 0.0
        return gates

    return close


CASES = [(name, "neurons") for name in PLACES if PLACES[name][1]] + [("grouped", "groups")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_closed_gates_are_of_is_removed_and_no_output_changes(name, kind):
    model, gates, inputs, before = folded(PLACES[name][0](), kind, some_closed(1))
    assert relative_error(before, predict(model, *inputs)) <= 1e-5
    plan = METHOD.plan(model, MethodSettings(learned={"gates": gates}, options={"gates": kind}))
    small = prove(model, plan)
    assert relative_error(before, predict(small, *inputs)) <= 1e-5
    assert all(type(layer).__module__.startswith("keras.") for layer in small.layers)
    assert (plan.origin["gates"], plan.origin["of"]) == (gates, kind)
    # Each layer, or what it normalizes, keeps as many channels as gates are open.
    for layer, values in gates.items():
        left = np.count_nonzero(values)
        own = small.get_layer(layer)
        weight = own.gamma if isinstance(own, layers.BatchNormalization) else own.kernel
        channels = dict(model_widths(model))[layer]
        assert weight.shape[-1] == channels // len(values) * left
    # Without the gates the zero weights tell the same.
    assert METHOD.plan(model, MethodSettings(options={"gates": kind})).keep == plan.keep


def model_widths(model):
    for layer in model.layers:
        if layer.weights:
            yield layer.name, layer.weights[0].shape[-1]


def test_a_group_goes_with_all_that_enters_and_leaves_it():
    model = resnext()
    gates = {"bn_1b": [1.0, 0.0, 0.5, 0.0], "bn_2b": [2.0, 2.0, 2.0, 0.0]}
    plan = METHOD.plan(model, MethodSettings(learned={"gates": gates}, options={"gates": "groups"}))
    kept = {layer: plan.keep[layer] for layer in ("conv_1a", "conv_1b", "conv_2a", "conv_2b")}
    assert kept == {
        "conv_1a": (0, 1, 4, 5), "conv_1b": (0, 1, 4, 5), "conv_2a": tuple(range(12)), "conv_2b": tuple(range(12)),
    }  # fmt: skip
    small = prove(model, plan)
    assert [small.get_layer(name).groups for name in ("conv_1b", "conv_2b")] == [2, 3]


def with_depthwise(x):
    """Two depthwise convolutions, one written as a grouped one, around a grouped one; nothing makes zeros."""
    x = layers.Conv2D(8, 1, name="a", activation="silu")(x)
    x = layers.DepthwiseConv2D(3, name="depth_1", padding="same", activation="sigmoid")(x)
    x = layers.Conv2D(8, 1, name="b")(x)
    x = layers.Conv2D(12, 3, groups=4, name="own", activation="sigmoid")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Conv2D(8, 1, name="c")(x)
    x = layers.Conv2D(16, 3, groups=8, name="depth_2", padding="same")(x)
    return layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))


def test_whole_groups_of_random_weights_go_whatever_is_behind_them():
    model = network(with_depthwise, IMAGE)
    plan = ChannelPlan.from_removed(model, {"own": [4], "b": [7]}, grouped=["own"])
    assert {layer: kept for layer, kept in plan.keep.items() if len(kept) < plan.widths[layer]} == {
        "b": (0, 1, 4, 5), "own": (0, 1, 2, 6, 7, 8),
    }  # fmt: skip
    small = prove(model, plan)
    assert small.get_layer("own").groups == 2
    own, b = [0, 1, 2, 6, 7, 8], [0, 1, 4, 5]
    assert_sliced(small, model, {"c": own}, {"own": own, "bn": own, "b": b})
    # By hand: what leaves the groups is read no more.
    kernel = model.get_layer("c").kernel
    kernel.assign(kernel.numpy() * np.isin(np.arange(12), own)[:, None])
    x = images(model)
    assert relative_error(predict(model, x), predict(small, x)) <= 1e-5
    assert list(ChannelGates.find(model, "groups").layers) == ["bn"]  # depthwise convolutions have no groups to lose


def test_a_plan_of_whole_groups_is_saved_and_not_put_together(tmp_path):
    model = resnext()
    plan = ChannelPlan.from_removed(model, {"conv_2b": [0]}, grouped=["conv_2b"])
    plan.save(tmp_path / "plan.json")
    loaded = load_plan(tmp_path / "plan.json")
    assert loaded == plan
    prove(model, loaded)
    alike = ChannelPlan.from_removed(model, {"conv_2b": [0]})
    assert alike.keep["conv_2b"] != plan.keep["conv_2b"]
    second = ChannelPlan.from_removed(plan.apply(model), {"conv_stem": [0]})
    for one, other in ((plan, second), (second, plan)):
        with pytest.raises(PlanError, match="views or whole groups cannot be put together"):
            one.then(model, other)


@pytest.mark.parametrize(("name", "words"), [("nowhere", "no such layer"), ("conv_1a", "a convolution of several")])
def test_only_grouped_convolutions_lose_whole_groups(name, words):
    with pytest.raises(PlanError, match=f"'{name}'.*{words}"):
        ChannelPlan.from_removed(resnext(), {}, grouped=[name])


@pytest.mark.parametrize(("make", "kind", "layer"), [(plain_cnn, "neurons", "bn_b"), (resnext, "groups", "bn_2b")])
def test_a_layer_whose_gates_are_all_zero_keeps_one_and_the_plan_tells(make, kind, layer):
    def close(name, count):
        return np.zeros(count) if name == layer else np.ones(count)

    model, gates, inputs, before = folded(make(), kind, close)
    plan = METHOD.plan(model, MethodSettings(learned={"gates": gates}, options={"gates": kind}))
    count = len(gates[layer])
    (note,) = [note for note in plan.notes if "is kept" in note]
    assert note.endswith(f"all of its {count} gates are closed; one of its {kind} is kept")
    assert plan.sizes()[layer.replace("bn", "conv")] == ((10, 1) if kind == "neurons" else (16, 4))
    assert relative_error(before, predict(prove(model, plan), *inputs)) <= 1e-5


def test_a_ratio_removes_the_smallest_gates_of_the_whole_network():
    model = plain_cnn()
    generator = np.random.default_rng(0)
    gates = {name: generator.permutation(np.arange(1, n + 1) / n * top).tolist() for name, n, top in
             (("bn_a", 6, 3.0), ("bn_b", 10, 1.0), ("fc", 8, 2.0))}  # fmt: skip
    settings = MethodSettings(ratio=0.5, learned={"gates": gates}, options={"gates": "neurons"})
    plan = METHOD.plan(model, settings)
    smallest = sorted((value, layer, i) for layer, values in gates.items() for i, value in enumerate(values))[:12]
    for layer, made in (("bn_a", "conv_a"), ("bn_b", "conv_b"), ("fc", "fc")):
        gone = {i for _, owner, i in smallest if owner == layer}
        assert set(plan.keep[made]) == set(range(len(gates[layer]))) - gone
    prove(model, plan)


def test_open_gates_are_told_and_so_is_what_has_none():
    gates = {"bn_branch_a": [0.5, 0.25, 0.5, 0.5, 0.5, 0.5]}
    with pytest.raises(PlanError, match=r"No gate of the 6 neurons of 'residual_cnn' is zero.* 0\.25, of bn_branch_a"):
        METHOD.plan(residual_cnn(), MethodSettings(learned={"gates": gates}, options={"gates": "neurons"}))
    gates["bn_branch_a"][2] = 0.0
    plan = METHOD.plan(residual_cnn(), MethodSettings(learned={"gates": gates}, options={"gates": "neurons"}))
    assert plan.keep["branch_a"] == (0, 1, 3, 4, 5)
    assert any(note.startswith("no gates on stem, branch_b: ") for note in plan.notes)
    assert "1 of 6 gates on neurons are closed" in plan.notes


def test_what_is_known_before_the_training():
    plan, known = METHOD.expected(plain_cnn(), MethodSettings(options={"gates": "neurons"}))
    assert not known
    assert plan.sizes() == {"conv_a": (6, 3), "conv_b": (10, 5), "fc": (8, 4)}
    plan, known = METHOD.expected(resnext(), MethodSettings(ratio=0.25, options={"gates": "groups"}))
    assert not known
    assert {plan.sizes()[layer] for layer in ("conv_1b", "conv_2b")} == {(8, 6), (16, 12)}
    keys = {METHOD.sparse_key(MethodSettings(options={"gates": kind})) for kind in ("blocks", "neurons", "groups")}
    assert len(keys) == 3
    assert METHOD.sparse_key(MethodSettings(options={"gate_l1": 0.1})) == "L1 on gates 0.1"  # of stages that are there


# On trained networks.


NETWORKS = {
    "neurons": (lambda shape: build_model("vgg11", shape, 10, 0.125), 0.02),
    "groups": (lambda shape: resnext(shape, 10, ((24, 32), (48, 64)), 8, strides=4), 0.05),
}


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request):
    """Settings with the gates of a training that closed some, the network with folded weights, its accuracy, data."""
    data, (make, gate_l1) = load("fashion_mini", train_examples=3000), NETWORKS[request.param]
    settings = MethodSettings(options={"gate_l1": gate_l1, "gates": request.param})
    model = clone(make(data.input_shape), weights="fresh", seed=0)
    trainer = Trainer(model, data, TrainingConfig(), STRATEGY, METHOD.edit(settings))
    callbacks = METHOD.callbacks(settings)
    result = trainer.run(model.get_weights(), 4, Schedule.paper(0.1, 4), 0, callbacks)
    model.set_weights(result.weights)
    settings = dataclasses.replace(settings, learned=METHOD.learned(callbacks))
    return settings, model, result.history[-1]["val_accuracy"], data


def test_what_training_closed_is_gone_and_nothing_is_lost(trained):
    settings, model, reached, data = trained
    plan = METHOD.plan(model, settings)
    small = prove(model, plan)
    x = images(model, examples=6)
    assert relative_error(predict(model, x), predict(small, x)) <= 1e-5
    assert accuracy(small, data) == pytest.approx(reached, abs=1e-3)
    gates = settings.learned["gates"]
    closed = sum(values.count(0.0) for values in gates.values())
    assert 0.2 < closed / sum(map(len, gates.values())) < 0.9
    # The widths follow from the zeros; where all gates are closed one is spared.
    widths = {name.replace("bn", "conv"): (len(v), max(1, len(v) - v.count(0.0))) for name, v in gates.items()}
    assert {name: plan.sizes()[name] for name in widths} == {
        name: (plan.widths[name], plan.widths[name] // count * left) for name, (count, left) in widths.items()
    }
    # Without the gates the zero weights tell the same.
    assert METHOD.plan(model, dataclasses.replace(settings, learned={})).keep == plan.keep


def test_what_training_closed_is_better_removed_than_chance(trained):
    settings, model, reached, data = trained
    generator, gates = np.random.default_rng(0), settings.learned["gates"]
    chance = []
    for _ in range(3):
        drawn = {name: generator.permutation(values).tolist() for name, values in gates.items()}
        plan = METHOD.plan(model, dataclasses.replace(settings, learned={"gates": drawn}))
        chance.append(accuracy(plan.apply(model), data))
    assert METHOD.plan(model, settings).params == plan.params
    assert reached > np.mean(chance) + 0.05


@pytest.mark.parametrize(
    ("gates", "more", "setting"), [("neurons", [], "gate_l1=2"), ("groups", ["--ratio=.4"], "ratio=0.4")]
)
def test_a_study_goes_the_whole_way(gates, more, setting, tmp_path):
    model = user_network() if gates == "neurons" else resnext((32, 32, 1), 10, ((8, 8),), strides=4)
    model.save(tmp_path / "own.keras")
    argv = ["--smoke", f"--model={tmp_path / 'own.keras'}", "--method=sparse_structure_selection", f"--gates={gates}"]
    assert main([*argv, *more, "--noexport", "--regimes=finetune", f"--workdir={tmp_path / 'runs'}"]) == 0
    assert f",gates={gates} {setting}," in (tmp_path / "runs" / "results.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("more", [[], ["--dry_run"]])
def test_a_network_without_groups_is_refused_before_anything_is_trained(more, tmp_path, capsys):
    argv = ["--smoke", "--model=resnet20", "--method=sparse_structure_selection", "--gates=groups", *more]
    assert main([*argv, f"--workdir={tmp_path / 'runs'}"]) == 2
    assert "'resnet20' has none. Take imagenet_resnext50" in capsys.readouterr().err
    assert not list(tmp_path.rglob("stages/*"))


# In any network.


FIRST_STEPS = {"neurons": (), "groups": (("conv_norm_relu", 0, 0, 8, 0), ("grouped", 0, 0, 8, 1))}


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    phases=set(Phase) - {Phase.explain},
)  # fmt: skip
@given(recipe=recipes())
@pytest.mark.parametrize("kind", FIRST_STEPS)
def test_in_any_graph_closed_gates_are_removed_at_no_loss(kind, recipe):
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        model = build({**recipe, "steps": [*FIRST_STEPS[kind], *recipe["steps"]]})
        try:
            ChannelGates.find(model, kind)
        except PlanError:
            event("no gate")
            return
        event("gates")
        model, gates, inputs, outputs = folded(model, kind, some_closed(recipe["seed"]))
        plan = METHOD.plan(model, MethodSettings(learned={"gates": gates}, options={"gates": kind}))
        received = predict(plan.apply(model), *inputs)
        for one, other in zip(outputs, received, strict=True):
            assert np.allclose(one, other, rtol=1e-9, atol=1e-9 * np.abs(one).max(initial=0))
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])
