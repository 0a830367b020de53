"""Sparse Structure Selection: gates, their training, and the blocks that go."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers import (
    convolutions,
    images,
    plain_cnn,
    preactivated,
    predict,
    prove,
    randomize,
    relative_error,
    residual_cnn,
)
from tests.processes import finish, last_json, start
from tests.trainings import STRATEGY, make_data, proximal_steps
from tfprune.data import load
from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.methods.sparse_structure_selection import residual_blocks
from tfprune.models import build_model
from tfprune.paper.variants import VARIANTS
from tfprune.plans.channels import ChannelPlan
from tfprune.surgery.layers import GATED, plain_weights
from tfprune.surgery.rebuild import clone
from tfprune.training.loop import Trainer, TrainingConfig
from tfprune.training.optimizer import CoupledSGD
from tfprune.training.schedules import Schedule

METHOD = METHODS.get("sparse_structure_selection")


def resnet(seed=1, classes=3):
    return randomize(build_model("resnet20", (32, 32, 1), classes, 0.25), seed)


def blocks_of(model):
    return residual_blocks(ChannelGraph(model))


# The update of the gates.


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("nesterov", [False, True])
def test_gates_take_the_proximal_steps_of_the_source_and_others_do_not(momentum, nesterov):
    generator = np.random.default_rng(3)
    gradients, rates = generator.normal(0, 1, (12, 3)), [0.1] * 6 + [0.02] * 6
    gates = [keras.Variable(1.0, dtype="float32") for _ in range(3)]
    for gate, strength in zip(gates, (0.5, 2.0, 0.0), strict=True):
        gate.proximal_l1 = strength
    plain, alone = keras.Variable(1.0), keras.Variable(1.0)
    options = {"momentum": momentum, "coupled_weight_decay": 0.01, "nesterov": nesterov and momentum > 0}
    optimizer, other = CoupledSGD(**options), CoupledSGD(**options)
    seen = []
    for step, rate in zip(gradients.astype("float32"), rates, strict=True):
        optimizer.learning_rate = other.learning_rate = rate
        optimizer.apply([*map(tf.constant, step), tf.constant(step[0])], [*gates, plain])
        other.apply([tf.constant(step[0])], [alone])
        seen.append([float(gate.numpy()) for gate in gates])
    expected = [
        proximal_steps(1, gradients[:, i], rates, strength, momentum) for i, strength in enumerate((0.5, 2.0, 0.0))
    ]
    assert np.allclose(np.asarray(seen).T, expected, atol=1e-6)
    assert (np.asarray(seen)[:, 1] == 0).any()  # not nearly
    assert float(plain.numpy()) == float(alone.numpy())


def test_a_gate_that_was_closed_stays_at_exactly_zero_and_may_open_again():
    gate = keras.Variable(0.02, dtype="float32")
    gate.proximal_l1 = 1.0
    optimizer, values = CoupledSGD(momentum=0.9), []
    for gradient in [0.1] * 30 + [-3.0]:
        optimizer.apply([tf.constant(gradient)], [gate])
        values.append(float(gate.numpy()))
    assert values[3:30] == [0.0] * 27
    assert values[30] > 0


# The gated network.


def gated(model, gate_l1=0.1):
    return clone(model, METHOD.edit(MethodSettings(options={"gate_l1": gate_l1})))


def ending_in(last):
    """A stem of 6 channels and one residual block whose branch ends in a layer, perhaps with dropout behind it."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(inputs)
    y = layers.ReLU()(layers.Conv2D(5, 3, padding="same", name="inner")(x))
    for layer in last:
        y = layer(y)
    x = layers.ReLU()(layers.Add(name="add")([x, y]))
    return randomize(keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x))))


ENDINGS = {
    "normalization": lambda: [layers.Conv2D(6, 1), layers.BatchNormalization(name="last")],
    "normalization without shift": lambda: [layers.Conv2D(6, 1), layers.BatchNormalization(center=False, name="last")],
    "convolution": lambda: [layers.Conv2D(6, 1, name="last")],
    "convolution without bias": lambda: [layers.Conv2D(6, 1, use_bias=False, name="last")],
    "dense": lambda: [layers.Dense(6, name="last")],
    "relu": lambda: [layers.Conv2D(6, 1, activation="relu", name="last")],
    "dropout": lambda: [layers.Conv2D(6, 1), layers.BatchNormalization(name="last"), layers.Dropout(0.2)],
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("gate", [0.37, 0.0])
def test_the_folded_network_computes_what_the_gated_one_does(ending, gate):
    model = ending_in(ENDINGS[ending]())
    twin = gated(model)
    last = twin.get_layer("last")
    assert isinstance(last, tuple(GATED.values()))
    x = images(model)
    assert relative_error(predict(model, x), predict(twin, x)) <= 1e-6  # gates of 1
    last.gate.assign(gate)
    before = predict(twin, x)
    assert relative_error(predict(model, x), before) > 1e-3
    # By hand: the branch times the gate.
    branch = keras.Model(model.input, model.get_layer("add").input)
    stem, y = predict(branch, x)
    hidden = np.maximum(stem + gate * y, 0).mean((1, 2))
    head = model.get_layer("head")
    assert relative_error([hidden @ head.kernel.numpy() + head.bias.numpy()], before) <= 1e-5
    last.fold()
    assert last.gate.numpy() == 1
    model.set_weights([weight.numpy() for weight in plain_weights(twin)])
    assert relative_error(before, predict(model, x)) <= 1e-6


def test_a_gate_is_all_that_is_new_and_what_is_trained_sees_normalizations_in_training_mode():
    model = residual_cnn()
    twin = gated(model)
    assert [weight.name for weight in twin.weights if hasattr(weight, "proximal_l1")] == ["gate"]
    assert [w.shape for w in plain_weights(twin)] == [w.shape for w in model.weights]
    x = images(model)
    assert relative_error([np.asarray(model(x, training=True))], [np.asarray(twin(x, training=True))]) <= 1e-4
    assert relative_error([np.asarray(model(x))], [np.asarray(twin(x, training=True))]) > 1e-2


@pytest.fixture(scope="module")
def trained():
    """resnet20 trained with gates that close: the network with folded weights, its gates, the result, the trainer."""
    model, settings = resnet(), MethodSettings(options={"gate_l1": 0.2})
    config = TrainingConfig(batch_size=8, weight_decay=1e-3)
    trainer = Trainer(model, make_data(), config, STRATEGY, METHOD.edit(settings))
    callbacks = METHOD.callbacks(settings)
    result = trainer.run(model.get_weights(), 4, Schedule(0.05), 0, callbacks)
    model.set_weights(result.weights)
    return model, METHOD.learned(callbacks), result, trainer


def test_gates_close_exactly_and_their_blocks_are_gone(trained):
    model, learned, _, _ = trained
    closed = {name for name, gate in learned["gates"].items() if gate == 0.0}
    assert 0 < len(closed) < len(learned["gates"]) == 9
    plan = METHOD.plan(model, MethodSettings(learned=learned))
    numbers = sorted(int(name.removeprefix("bn_")) for name in closed)
    assert plan.bypass == {f"add_{number}": 1 for number in numbers}
    small = prove(model, plan)
    x = images(model, examples=6)
    assert relative_error(predict(model, x), predict(small, x)) <= 1e-5  # nothing was lost
    left = {layer.name for layer in small.layers}
    for number in numbers:
        assert left.isdisjoint({f"conv_{number - 1}", f"bn_{number - 1}", f"conv_{number}", f"bn_{number}"})
    assert len(convolutions(small)) == 19 - 2 * len(closed)
    assert all(type(layer).__module__.startswith("keras.") for layer in small.layers)
    assert plan.origin["gates"] == learned["gates"]
    # Without the gates the zero weights tell the same.
    assert METHOD.plan(model, MethodSettings()).bypass == plan.bypass


def test_the_stored_weights_have_the_accuracy_of_the_last_epoch(trained):
    _, _, result, trainer = trained
    again = trainer.evaluate(result.weights)
    assert again["val_accuracy"] == result.history[-1]["val_accuracy"]
    assert again["val_loss"] == pytest.approx(result.history[-1]["val_loss"], rel=1e-5)


def test_a_second_run_of_the_same_trainer_starts_with_open_gates(trained):
    _, learned, result, trainer = trained
    callbacks = METHOD.callbacks(MethodSettings(options={"gate_l1": 0.2}))
    trainer.model.get_layer("bn_3").gate.assign(0.3)  # as a run that diverged leaves it
    again = trainer.run(resnet().get_weights(), 4, Schedule(0.05), 0, callbacks)
    assert METHOD.learned(callbacks) == learned
    assert again.history == result.history


def test_gates_have_no_weight_decay_and_no_penalty_in_the_loss():
    twin = gated(residual_cnn(), gate_l1=0.0)
    assert twin.losses == []
    gate = twin.get_layer("bn_branch_b").gate
    optimizer = CoupledSGD(coupled_weight_decay=0.5)
    optimizer.apply([tf.constant(0.0)], [gate])
    assert gate.numpy() == 1


# Which blocks go.


def test_a_ratio_removes_the_blocks_with_the_smallest_gates():
    model = resnet()
    gates = {f"bn_{number}": gate for number, gate in zip(range(3, 21, 2), [5, 2, 7, 1, 9, 3, 8, 6, 4], strict=True)}
    for ratio, count in ((0.5, 5), (0.3, 3), (0.01, 1)):
        plan = METHOD.plan(model, MethodSettings(ratio=ratio, learned={"gates": gates}))
        least = sorted(gates, key=gates.get)[:count]
        assert plan.bypass == {name.replace("bn", "add"): 1 for name in least}
        prove(model, plan)


def test_open_gates_are_told():
    gates = dict.fromkeys((f"bn_{n}" for n in range(3, 21, 2)), 0.5) | {"bn_7": 0.25}
    with pytest.raises(PlanError, match=r"No gate of the 9 .*'resnet20' is zero.* 0\.25, of add_7.*--gate_l1.*--ratio"):
        METHOD.plan(resnet(), MethodSettings(learned={"gates": gates}))
    with pytest.raises(PlanError, match="'plain_cnn' has none"):
        METHOD.plan(plain_cnn(), MethodSettings())
    with pytest.raises(PlanError, match="'plain_cnn' has none"):
        METHOD.expected(plain_cnn(), MethodSettings())


@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (residual_cnn, [("add", 0, "bn_branch_b")]),
        (preactivated, [("add_1", 0, "conv_1b"), ("add_2", 0, "conv_2b")]),
        (lambda: ending_in([layers.Conv2D(6, 1), layers.BatchNormalization(scale=False)]), []),
        (lambda: ending_in([layers.Conv2D(6, 1, activation="relu", name="end")]), [("add", 0, "end")]),
        (lambda: ending_in([layers.Conv2D(6, 1, activation="gelu")]), []),
        (lambda: ending_in([layers.Conv2D(6, 1), layers.AveragePooling2D(1)]), []),
        (plain_cnn, []),
    ],
)
def test_blocks_are_found_where_a_gate_can_be_folded(make, blocks):
    assert [(block.addition, block.shortcut, block.last) for block in blocks_of(make())] == blocks


def test_a_sum_of_two_like_branches_is_no_block_and_neither_is_a_branch_that_others_read():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="stem")(inputs)
    one, other = layers.Conv2D(4, 1)(x), layers.Conv2D(4, 1)(x)
    x = layers.Add()([one, other])
    y = layers.Conv2D(4, 1, name="read_twice")(x)
    x = layers.Concatenate()([layers.Add()([x, y]), y])
    model = randomize(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    assert blocks_of(model) == []


def test_a_block_inside_of_a_removed_branch_goes_with_it():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="stem")(inputs)
    y = layers.Conv2D(4, 1, name="outer_1")(x)
    y = layers.Add(name="inner_add")([y, layers.Conv2D(4, 1, name="inner")(y)])
    y = layers.Conv2D(4, 1, name="outer_2")(layers.ReLU()(y))
    x = layers.ReLU()(layers.Add(name="outer_add")([x, y]))
    model = randomize(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    plan = METHOD.plan(model, MethodSettings(learned={"gates": {"inner": 0.0, "outer_2": 0.0}}))
    assert plan.bypass == {"outer_add": 0}
    prove(model, plan)


def test_what_is_known_before_the_training():
    plan, known = METHOD.expected(resnet(), MethodSettings())
    assert not known
    assert len(plan.bypass) == 5
    assert METHOD.sparse_key(MethodSettings(options={"gate_l1": 0.1})) != METHOD.sparse_key(
        MethodSettings(options={"gate_l1": 0.2})
    )


# The published shapes: bottlenecks left of each stage's 3, 4, 6, 3; whether the first is one of them.

SHAPES = {
    "ResNet-41": ((0, 4, 6, 3), (0, 1, 1, 1), 117),
    "ResNet-32": ((1, 4, 4, 1), (0, 1, 1, 1), 145),
    "ResNet-26": ((0, 2, 5, 1), (0, 0, 0, 1), 179),
}


@pytest.fixture(scope="module")
def resnet50():
    return build_model("imagenet_resnet50", (224, 224, 3), 1000)


def params_of_resnet50(kept, first):
    """By hand: every convolution is followed by a normalization, and has no bias."""
    total, enters = 7 * 7 * 3 * 64 + 2 * 64, 64
    for stage, (blocks, has_first) in enumerate(zip(kept, first, strict=True)):
        inner = 64 * 2**stage
        leaves = 4 * inner
        total += enters * leaves + 2 * leaves  # the shortcut
        for block in range(blocks):
            into = enters if has_first and not block else leaves
            total += into * inner + 9 * inner * inner + inner * leaves + 4 * inner + 2 * leaves
        enters = leaves
    return total + 2048 * 1000 + 1000


@pytest.mark.parametrize("name", SHAPES)
def test_variant_has_the_blocks_params_and_budget_of_the_paper(name, resnet50):
    kept, first, epochs = SHAPES[name]
    settings = MethodSettings(ratios={}, bypass=VARIANTS[name].bypass)
    plan, known = METHOD.expected(resnet50, settings)
    assert known
    assert VARIANTS[name].models == ("imagenet_resnet50",)
    assert plan.params == (params_of_resnet50((3, 4, 6, 3), (1, 1, 1, 1)), params_of_resnet50(kept, first))
    left = {layer for layer, channels in plan.keep.items() if channels}
    number, counts, firsts = 2, [], []
    for blocks in (3, 4, 6, 3):
        whole = [all(f"conv_{number + 3 * b + i}" in left for i in range(3)) for b in range(blocks)]
        assert whole == [any(f"conv_{number + 3 * b + i}" in left for i in range(3)) for b in range(blocks)]
        counts.append(sum(whole))
        firsts.append(int(whole[0]))
        number += 3 * blocks
    assert (tuple(counts), tuple(firsts)) == (kept, first)
    assert {f"conv_shortcut_{stage}" for stage in (1, 2, 3, 4)} <= left
    assert 2 + 3 * sum(counts) == int(name.removeprefix("ResNet-"))  # convolutions and the dense layer
    assert int(100 * plan.flops[0] / plan.flops[1]) == pytest.approx(epochs, abs=1)


@pytest.mark.slow
def test_a_variant_is_a_network_that_is_proved_and_can_be_trained(resnet50):
    model = randomize(build_model("imagenet_resnet50", (64, 64, 3), 10, 0.125))
    small = prove(model, METHOD.plan(model, MethodSettings(ratios={}, bypass=VARIANTS["ResNet-26"].bypass)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(small(images(model), training=True) ** 2)
    assert all(gradient is not None for gradient in tape.gradient(loss, small.trainable_variables))


# Over replicas, and against chance.

REPLICAS = """
two_devices()
import keras, tensorflow as tf
from tests.helpers import residual_cnn
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.models import build_model
from tfprune.training.loop import Trainer, TrainingConfig
from tfprune.training.schedules import Schedule
method, settings = METHODS.get("sparse_structure_selection"), MethodSettings(options={"gate_l1": .2})
keras.utils.set_random_seed(0)
model = build_model("resnet20", (32, 32, 1), 3, .25)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
trainer = Trainer(model, make_data(), TrainingConfig(batch_size=8), strategy, method.edit(settings))
callbacks = method.callbacks(settings)
seen = []
class Watch(keras.callbacks.Callback):
    def on_test_begin(self, logs=None):
        for layer in self.model.layers:
            if hasattr(layer, "gate"):
                seen.append([v.numpy().item() for v in strategy.experimental_local_results(layer.gate.value)])
trainer.run(model.get_weights(), 4, Schedule(.05), 0, [Watch(), *callbacks])
gates = list(method.learned(callbacks)["gates"].values())
print(json.dumps([seen, gates]))
"""


@pytest.mark.slow
def test_on_two_devices_the_gates_are_equal_and_close(tmp_path):
    (output,) = finish(start(tmp_path, "gates", REPLICAS))
    seen, gates = last_json(output)
    assert all(one == other for one, other in seen)
    assert [one for one, _ in seen[-9:]] == gates
    assert 0.0 in gates


@pytest.mark.slow
def test_the_blocks_with_closed_gates_are_better_removed_than_random_ones():
    data, settings = load("fashion_mini"), MethodSettings(options={"gate_l1": 0.1})
    model = clone(build_model("resnet20", data.input_shape, 10, 0.5), weights="fresh", seed=0)
    trainer = Trainer(model, data, TrainingConfig(), STRATEGY, METHOD.edit(settings))
    callbacks = METHOD.callbacks(settings)
    result = trainer.run(model.get_weights(), 6, Schedule.paper(0.1, 6), 0, callbacks)
    model.set_weights(result.weights)
    plan = METHOD.plan(model, MethodSettings(learned=METHOD.learned(callbacks)))

    def accuracy(plan):
        small = plan.apply(model)
        return Trainer(small, data, TrainingConfig(), STRATEGY).evaluate(small.get_weights())["val_accuracy"]

    assert accuracy(plan) == pytest.approx(result.history[-1]["val_accuracy"], abs=1e-6)
    additions = [block.addition for block in blocks_of(model)]
    assert 0 < len(plan.bypass) < len(additions)
    chance = []
    for seed in range(6):
        drawn = np.random.default_rng(seed).choice(additions, len(plan.bypass), replace=False).tolist()
        chance.append(accuracy(ChannelPlan.from_removed(model, {}, bypass=dict.fromkeys(drawn, 1))))
    assert accuracy(plan) > np.mean(chance) + 0.05
