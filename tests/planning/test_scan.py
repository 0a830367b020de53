"""Sensitivity: masked measurements against networks that are really smaller."""

import csv
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tests.helpers import plain_cnn, randomize, residual_cnn
from tfprune.errors import PlanError, UsageError
from tfprune.planning.scan import Sensitivity, SensitivityRow


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return generator.normal(size=(64, 8, 8, 3)).astype("float32"), generator.integers(0, 5, 64)


def accuracy(model, x, y):
    return float((model(x, training=False).numpy().argmax(1) == y).mean())


@pytest.mark.parametrize("make", [plain_cnn, residual_cnn])
def test_values_are_those_of_networks_that_are_really_smaller(make, images):
    model = make()
    scan = tfprune.sensitivity(model, images, ratios=(0.5, 0.25))
    assert scan.baseline == pytest.approx(accuracy(model, *images))
    assert [row.ratio for row in scan.rows[:2]] == [0.25, 0.5]
    for row in scan.rows:
        plan = tfprune.plan_channels(model, ratios={row.layers[0]: row.ratio})
        assert row.removed == row.channels - len(plan.keep[row.layers[0]])
        assert row.value == pytest.approx(accuracy(plan.apply(model), *images))
    assert {row.layers for row in scan.rows} == {pool.layers for pool in tfprune.ChannelGraph(model).pools()}


def test_any_metric_can_be_measured(images):
    x, y = images
    model = plain_cnn()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss)
    scan = tfprune.sensitivity(model, lambda network: network.evaluate(x, y, verbose=0), ratios=[0.5])
    small = tfprune.plan_channels(model, ratios={"conv_a": 0.5}).apply(model)
    assert scan.rows[0].layers == ("conv_a",)
    assert scan.rows[0].value == pytest.approx(float(loss(y, small(x))), rel=1e-5)
    assert model.get_layer("conv_a").filters == 6


def test_units_that_a_recurrent_layer_reads_of_its_own_are_masked():
    inputs = keras.Input((5, 4))
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.LSTM(8, name="lstm")(inputs))))
    x = np.random.default_rng(0).normal(size=(6, 5, 4)).astype("float32")
    scan = tfprune.sensitivity(model, lambda network: np.abs(network.predict(x, verbose=0)).sum(), ratios=(0.3, 0.6))
    for row in scan.rows:
        small = tfprune.plan_channels(model, row.ratio).apply(model)
        assert row.value == pytest.approx(np.abs(small.predict(x, verbose=0)).sum(), rel=1e-5)


def test_ratios_that_remove_the_same_are_measured_once(images):
    data = tf.data.Dataset.from_tensor_slices(images).batch(16)
    scan = tfprune.sensitivity(plain_cnn(), data, ratios=(0.01, 0.5, 0.52, 0.999), skip="conv_b")
    assert [(row.layers[0], row.ratio, row.removed) for row in scan.rows] == [
        ("conv_a", 0.01, 1), ("conv_a", 0.5, 3), ("conv_a", 0.52, 4), ("conv_a", 0.999, 5),
        ("fc", 0.01, 1), ("fc", 0.5, 4), ("fc", 0.52, 5), ("fc", 0.999, 7),
    ]  # fmt: skip
    assert len(tfprune.sensitivity(plain_cnn(), data, ratios=(0.4, 0.41), skip=["conv_*"]).rows) == 1


def test_it_prints_saves_and_gives_ratios_to_plan_with(images, tmp_path):
    model = plain_cnn()
    scan = tfprune.sensitivity(model, images, ratios=(0.2, 0.5))
    lines = str(scan).splitlines()
    assert lines[0].split() == ["layer", "channels", "-20%", "-50%"]
    assert lines[2].split()[:2] == ["conv_a", "6"]
    assert "whole network" in lines[-1]
    scan.save(tmp_path / "scan")
    with open(tmp_path / "scan" / "sensitivity.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["value"]) == scan.baseline
    assert [(row["layers"], float(row["value"])) for row in rows[1:]] == [(r.layers[0], r.value) for r in scan.rows]
    assert (tmp_path / "scan" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")

    within = scan.within(0.05)
    for layer, ratio in within.items():
        assert all(scan.baseline - r.value <= 0.05 for r in scan.rows if r.layers[0] == layer and r.ratio <= ratio)
    assert scan.within(1.0) == {"conv_a": 0.5, "conv_b": 0.5, "fc": 0.5}
    assert tfprune.plan_channels(model, ratios=scan.within(1.0)).keep == tfprune.plan_channels(model, 0.5).keep


def test_mistakes_are_told(images, tmp_path):
    with pytest.raises(PlanError, match=r"ratios\[1\]=1\.0 is no number in \(0, 1\)"):
        tfprune.sensitivity(plain_cnn(), images, ratios=[0.5, 1.0])
    with pytest.raises(PlanError, match=r"skip='block_\*' fits no layer"):
        tfprune.sensitivity(plain_cnn(), images, skip=["block_*"])
    with pytest.raises(UsageError, match="Unknown criterion"):
        tfprune.sensitivity(plain_cnn(), images, criterion="l7")
    with pytest.raises(PlanError, match=r"must return one number; it returned \[0\.5, 0\.25\]"):
        tfprune.sensitivity(plain_cnn(), lambda network: [0.5, 0.25])
    inputs = keras.Input((4,))
    two = keras.Model(inputs, [layers.Dense(2)(layers.Dense(3)(inputs)), layers.Dense(1)(inputs)])
    with pytest.raises(PlanError, match="has 2 outputs, of which accuracy"):
        tfprune.sensitivity(two, (np.ones((2, 4)), np.ones(2)))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match="cannot be written"):
        tfprune.sensitivity(plain_cnn(), images, ratios=[0.5]).save(file)


def scanned(baseline, *rows):
    """A scan of rows (pool, layers, ratio, value)."""
    return Sensitivity(baseline, tuple(SensitivityRow(p, ls, 8, ratio, 1, value) for p, ls, ratio, value in rows))


@pytest.mark.parametrize(
    ("scan", "arguments", "expected"),
    [
        (scanned(1.0, (0, ("a",), 0.5, 0.99), (0, ("a",), 0.9, math.nan)), (0.02,), {"a": 0.5}),
        (scanned(1.0, (0, ("a",), 0.5, math.nan), (0, ("a",), 0.9, 1.0)), (0.02,), {}),
        (scanned(math.nan, (0, ("a",), 0.5, 1.0)), (0.02,), {}),
        (scanned(1.0, (0, ("a",), 0.5, 1.01), (0, ("a",), 0.9, 1.5)), (0.02, False), {"a": 0.5}),
        (scanned(1.0, (0, ("a",), 0.5, 0.2), (0, ("a",), 0.9, 0.1)), (0.02, False), {"a": 0.9}),
        (scanned(1.0, (0, ("a", "b"), 0.1, 1.0), (1, ("a",), 0.1, 0.0)), (0.02,), {}),
        (scanned(1.0, (0, ("a", "b"), 0.1, 0.0), (1, ("b",), 0.1, 1.0)), (0.02,), {}),
        (
            scanned(1.0, *((pool, ls, r, 1.0 - r * pool) for r in (0.1, 0.3) for pool, ls in enumerate(("ab", "b")))),
            (0.2,),
            {"a": 0.3, "b": 0.1},
        ),
    ],
)
def test_no_ratio_is_recommended_that_a_pool_of_the_layer_did_not_stand(scan, arguments, expected):
    assert scan.within(*arguments) == expected


def test_a_drop_that_is_no_number_is_told():
    with pytest.raises(PlanError, match=r"drop='a' is no number in \[0, inf\)"):
        scanned(1.0, (0, ("a",), 0.5, 1.0)).within("a")


def head(units, activation=None):
    inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu", name="wide")(inputs)
    return randomize(keras.Model(inputs, layers.Dense(units, activation=activation, name="head")(x)))


VECTORS = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
BITS = np.arange(20) % 2


@pytest.mark.parametrize(
    ("units", "activation", "targets", "fragment"),
    [
        (1, None, BITS, "one output without a sigmoid"),
        (1, None, VECTORS[:, 0], "one output without a sigmoid"),
        (1, "sigmoid", VECTORS[:, :1], "no classes from 0 to 1"),
        (1, "sigmoid", BITS + 1, "no classes from 0 to 1"),
        (3, "softmax", VECTORS[:, :3], "no classes from 0 to 1"),
        (3, "softmax", np.arange(20), "no classes from 0 to 2"),
        (3, "softmax", np.arange(20) - 1, "no classes from 0 to 2"),
        (3, "sigmoid", np.ones((20, 3)), "several classes at once"),
        (3, "softmax", BITS[:19], r"shape \(19,\)"),
        (3, "softmax", None, "no classes"),
        (3, "softmax", {"a": BITS, "b": BITS}, "several targets"),
    ],
)
def test_accuracy_is_not_measured_where_it_means_nothing(units, activation, targets, fragment):
    with pytest.raises(PlanError, match=f"{fragment}.*[Gg]ive a function"):
        tfprune.sensitivity(head(units, activation), (VECTORS, targets))


@pytest.mark.parametrize(
    ("units", "activation", "targets"),
    [
        (1, "sigmoid", BITS),
        (1, "sigmoid", BITS[:, None].astype("float32")),
        (2, None, BITS),
        (2, "softmax", BITS[:, None].astype("float32")),
        (2, "softmax", np.eye(2)[BITS]),
    ],
)
def test_accuracy_is_that_of_the_classes(units, activation, targets):
    model = head(units, activation)
    outputs = model(VECTORS).numpy()
    right = (outputs[:, 0] > 0.5 if units == 1 else outputs.argmax(1)) == BITS
    for data in ((VECTORS, targets), tf.data.Dataset.from_tensor_slices((VECTORS, targets)).batch(8)):
        assert tfprune.sensitivity(model, data, ratios=[0.5]).baseline == pytest.approx(right.mean())


def test_data_by_the_names_of_inputs_and_a_sigmoid_inside_of_a_nested_model_are_fine():
    inner = head(1, "sigmoid")
    inputs = {"one": keras.Input((4,), name="one")}
    model = keras.Model(inputs, inner(layers.Dense(4)(inputs["one"])))
    assert tfprune.sensitivity(model, ({"one": VECTORS}, BITS), ratios=[0.5]).rows


PAIRS = tf.data.Dataset.from_tensor_slices((VECTORS, BITS))


@pytest.mark.parametrize(
    ("evaluate", "fragment"),
    [
        ((VECTORS, BITS, np.ones(20)), "must be .inputs, targets."),
        (PAIRS.batch(4).map(lambda x, y: (x, y, y)), "must be .inputs, targets."),
        (VECTORS, "must be .inputs, targets."),
        ([VECTORS, BITS], "must be .inputs, targets."),
        (None, "evaluate=None must be"),
        ("accuracy", "evaluate='accuracy' must be"),
        (PAIRS, "takes batches of"),
        (iter(PAIRS.batch(4)), "must be .inputs, targets."),
        ((VECTORS[:0], BITS[:0]), "takes batches of"),
        ((VECTORS[:, :3], BITS), "takes batches of"),
    ],
    ids=range(10),
)
def test_data_in_another_form_are_told(evaluate, fragment):
    with pytest.raises(PlanError, match=fragment) as error:
        tfprune.sensitivity(head(2), evaluate)
    assert "\n" not in str(error.value)


def test_a_generator_is_refused_before_it_is_used_up():
    batches = ((VECTORS, BITS) for _ in range(2))
    with pytest.raises(PlanError, match=r"<generator.*must be .inputs, targets."):
        tfprune.sensitivity(head(2), batches)
    assert len(list(batches)) == 2


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"ratios": 0.5}, r"ratios=0\.5 must be a list of numbers in \(0, 1\)"),
        ({"ratios": None}, "ratios=None must be a list"),
        ({"ratios": [0.5, "a"]}, r"ratios\[1\]='a' is no number"),
        ({"ratios": []}, r"ratios=\[\] remove no channel"),
        ({"skip": None}, "skip=None must be a list of layer names"),
        ({"aggregate": "median"}, "Unknown aggregate 'median'"),
        ({"criterion": ["l1"]}, "Unknown criterion"),
        ({"seed": "a"}, "seed='a' must be a whole number"),
    ],
    ids=str,
)
def test_wrong_argument_is_told(arguments, fragment):
    with pytest.raises(UsageError, match=fragment):
        tfprune.sensitivity(head(2), (VECTORS, BITS), **arguments)
