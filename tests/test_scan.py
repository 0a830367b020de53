"""Sensitivity: masked measurements against networks that are really smaller."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tests.helpers import plain_cnn, randomize, residual_cnn
from tfprune.errors import PlanError, UsageError


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
    with pytest.raises(PlanError, match=r"ratios has 1\.0, which is no number in \(0, 1\)"):
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
