"""Sparse Structure Selection of neurons: where the gates sit, what closes them, and the channels that go."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers import images, plain_cnn, predict, prove, randomize, relative_error, residual_cnn
from tests.test_loop import STRATEGY
from tests.test_sparse_structure_selection import proximal_steps
from tfprune.data import load
from tfprune.errors import PlanError
from tfprune.experiments.run import main
from tfprune.graph import ChannelGraph
from tfprune.layers import GATED
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.methods.neuron_selection import gated_layers
from tfprune.models import build_model
from tfprune.plans import ChannelPlan
from tfprune.surgery import clone
from tfprune.training.loop import Trainer, TrainingConfig
from tfprune.training.optimizer import CoupledSGD
from tfprune.training.schedules import Schedule

SETTINGS = MethodSettings(gate_l1=0.02, gates="neurons")
METHOD = METHODS.get("sparse_structure_selection").configured(SETTINGS)


def test_gates_of_one_layer_take_the_proximal_steps_each_for_itself():
    gradients = np.random.default_rng(1).normal(0.2, 1, (10, 4))
    gate = keras.Variable(np.ones(4), dtype="float32")
    gate.proximal_l1 = 0.7
    optimizer, seen = CoupledSGD(0.1, momentum=0.9, coupled_weight_decay=0.1), []
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient, tf.float32)], [gate])
        seen.append(gate.numpy())
    expected = [proximal_steps(1, gradients[:, i], [0.1] * 10, 0.7, 0.9) for i in range(4)]
    np.testing.assert_allclose(np.transpose(seen), expected, atol=1e-6)


def test_gates_sit_in_the_normalization_behind_a_layer_or_in_the_layer():
    assert gated_layers(ChannelGraph(plain_cnn())) == {"conv_a": "bn_a", "conv_b": "bn_b", "fc": "fc"}
    # The stem and the end of the branch are coupled; so only the channels inside of the block have gates.
    assert list(gated_layers(ChannelGraph(residual_cnn()))) == ["branch_a"]


def test_a_layer_with_an_activation_of_its_own_has_no_gates():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="tanh", name="active")(inputs)
    x = layers.Conv2D(5, 3, name="linear")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.ReLU()(x))))
    assert gated_layers(ChannelGraph(model)) == {"linear": "linear"}
    only = keras.Model(inputs, model.layers[1].output)
    with pytest.raises(PlanError, match=r"--gates=neurons.*Take another method"):
        METHOD.plan(only, SETTINGS)


@pytest.mark.parametrize("kind", [layers.Conv2D, layers.Dense, layers.BatchNormalization])
def test_folded_gates_compute_what_the_gates_did(kind):
    own = {layers.Conv2D: {"filters": 6, "kernel_size": 3}, layers.Dense: {"units": 6}}.get(kind, {})
    layer = GATED[kind](gate_l1=0.1, each_channel=True, **own)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 6)).astype("float32")
    layer.build(x.shape)
    for number, weight in enumerate(layer.weights):
        weight.assign(np.random.default_rng(number).uniform(0.3, 1.5, weight.shape))
    gates = np.array([0.0, 0.5, 1.0, 2.0, 0.1, 0.0], np.float32)
    layer.gate.assign(np.ones(6))
    open_outputs = np.asarray(layer(x, training=False)) if kind is layers.BatchNormalization else np.asarray(layer(x))
    layer.gate.assign(gates)
    layer.fold()
    np.testing.assert_array_equal(layer.gate.numpy(), np.ones(6))
    folded = np.asarray(layer(x, training=False) if kind is layers.BatchNormalization else layer(x))
    np.testing.assert_allclose(folded, open_outputs * gates, rtol=1e-4, atol=1e-5)
    assert not folded[..., [0, 5]].any()


@pytest.fixture(scope="module")
def trained():
    """A VGG on fashion_mini with gates that closed: data, the network with folded weights, its gates, the accuracy."""
    data = load("fashion_mini", train_examples=3000)
    model = clone(build_model("vgg11", data.input_shape, 10, 0.125), weights="fresh", seed=0)
    trainer = Trainer(model, data, TrainingConfig(), STRATEGY, METHOD.edit(SETTINGS))
    callbacks = METHOD.callbacks(SETTINGS)
    result = trainer.run(model.get_weights(), 4, Schedule.paper(0.1, 4), 0, callbacks)
    model.set_weights(result.weights)
    return data, model, METHOD.learned(callbacks), result.history[-1]["val_accuracy"]


def test_channels_whose_gates_close_are_gone_and_nothing_is_lost(trained):
    _, model, learned, _ = trained
    plan = METHOD.plan(model, MethodSettings(gates="neurons", learned=learned))
    small = prove(model, plan)
    x = images(model, examples=6)
    assert relative_error(predict(model, x), predict(small, x)) <= 1e-5
    closed = {name: np.flatnonzero(np.asarray(values) == 0) for name, values in learned["gates"].items()}
    assert sum(map(len, closed.values())) > 10
    for layer, holder in gated_layers(ChannelGraph(model)).items():
        gone = set(range(plan.widths[layer])) - set(plan.keep[layer])
        if len(closed[holder]) < plan.widths[layer]:
            assert gone == set(closed[holder].tolist()), layer
        else:
            assert len(plan.keep[layer]) == 1
            assert any(note.startswith(f"{layer} keeps one channel") for note in plan.notes)
    # Without the gates the zero weights tell the same.
    assert METHOD.plan(model, SETTINGS).keep == plan.keep


def test_closed_gates_are_better_removed_than_random_channels(trained):
    data, model, learned, accuracy = trained
    plan = METHOD.plan(model, MethodSettings(gates="neurons", learned=learned))

    def measured(plan):
        small = plan.apply(model)
        return Trainer(small, data, TrainingConfig(), STRATEGY).evaluate(small.get_weights())["val_accuracy"]

    assert measured(plan) == pytest.approx(accuracy, abs=1e-6)
    chance = []
    for seed in range(2):
        generator = np.random.default_rng(seed)
        removed = {
            layer: generator.choice(plan.widths[layer], plan.widths[layer] - len(kept), replace=False)
            for layer, kept in plan.keep.items()
            if layer != "logits"
        }
        chance.append(measured(ChannelPlan.from_removed(model, removed)))
    assert accuracy > np.mean(chance) + 0.05


def test_a_ratio_takes_the_smallest_gates_of_all_layers_and_leaves_one_channel_in_each():
    model = randomize(plain_cnn())
    gates = {"bn_a": [0.5, 0.01, 0.02, 0.9, 0.8, 0.7], "bn_b": np.linspace(0.3, 0.39, 10).tolist(), "fc": [0.05] * 8}
    plan = METHOD.plan(model, MethodSettings(ratio=0.5, gates="neurons", learned={"gates": gates}))
    # 12 of 24: the two of conv_a, seven of the eight of fc (one stays), and the next two of conv_b.
    assert plan.keep["conv_a"] == (0, 3, 4, 5)
    assert plan.keep["fc"] == (7,)
    assert plan.keep["conv_b"] == tuple(range(2, 10))
    assert "fc keeps one channel; all of its gates are to go" in plan.notes


def test_open_gates_are_told():
    with pytest.raises(PlanError, match=r"No gate of the 24 neurons .* is zero; the smallest is 1. Train with"):
        METHOD.plan(randomize(plain_cnn()), SETTINGS)


def test_blocks_and_neurons_are_trained_apart():
    blocks = METHODS.get("sparse_structure_selection").configured(MethodSettings())
    assert blocks.sparse_key(MethodSettings(gate_l1=0.02)) != METHOD.sparse_key(SETTINGS)


def test_a_study_goes_the_whole_way(tmp_path, capsys):
    from tests.test_run import user_network

    user_network().save(tmp_path / "mine.keras")
    argv = ["--smoke", f"--model={tmp_path / 'mine.keras'}", "--method=sparse_structure_selection", "--gates=neurons"]
    assert main([*argv, f"--workdir={tmp_path / 'runs'}"]) == 0
    text = (tmp_path / "runs" / "results.csv").read_text(encoding="utf-8")
    assert "gates=neurons gate_l1=" in text
    for flags, words in (
        (["--gates=filters"], "Unknown gates 'filters'"),
        (["--gates=neurons", "--method=l1_norm"], "--gates belongs to --method=sparse_structure_selection"),
        (["--gates=neurons", "--variant=ResNet-26", "--model=imagenet_resnet50"], "--gates=neurons and --variant"),
    ):
        capsys.readouterr()
        assert main(["--method=sparse_structure_selection", "--dry_run", *flags]) == 2
        assert words in capsys.readouterr().err
