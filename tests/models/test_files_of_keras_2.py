"""What files of Keras 2 tell beside what is computed: what is trained, compile settings, layers that are shared."""

import keras
import numpy as np
import pytest
import tf_keras

import tfprune

OLD = tf_keras.layers
DATA = np.random.default_rng(0).normal(size=(5, 8)).astype("float32")


def nested(name, last=None):
    inputs = tf_keras.Input((8,))
    x = OLD.Dense(8, activation="relu", name="hidden")(inputs)
    return tf_keras.Model(inputs, (last or OLD.Dense(3, name="last"))(x), name=name)


def trained_alone():
    """In Keras 2 nothing of a network that is not trained is trained, whatever its layers say."""
    inputs, inner = tf_keras.Input((8,)), nested("inner")
    inner.trainable = False
    inner.get_layer("hidden").trainable = True
    return tf_keras.Model(inputs, OLD.Dense(3, name="head")(inner(inputs)))


def trained_alone_in_time():
    inputs, inner = tf_keras.Input((2, 8)), nested("inner")
    inner.trainable = False
    inner.get_layer("hidden").trainable = True
    x = OLD.TimeDistributed(inner)(inputs)
    return tf_keras.Model(inputs, OLD.Dense(3, name="head")(x))


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("make", [trained_alone, trained_alone_in_time])
def test_what_keras_2_did_not_train_is_not_trained(tmp_path, make, suffix):
    old = make()
    old.save(tmp_path / f"old{suffix}")
    model = tfprune.load(tmp_path / f"old{suffix}")
    shapes = sorted(tuple(weight.shape) for weight in old.trainable_weights)
    assert sorted(tuple(weight.shape) for weight in model.trainable_weights) == shapes
    small = tfprune.plan_channels(model, 0.5).apply(model)
    assert [weight.path.split("/")[-2] for weight in small.trainable_weights] == ["head", "head"]


@pytest.mark.parametrize("names", [("a", "b"), ("heads/a", "heads/b")])
def test_compile_settings_by_the_names_of_nested_networks_are_kept(tmp_path, names):
    inputs = tf_keras.Input((8,))
    old = tf_keras.Model(inputs, [nested(name)(inputs) for name in names])
    old.compile("sgd", loss=dict(zip(names, ("mse", "mae"), strict=True)), metrics={names[0]: ["mae"]})
    old.save(tmp_path / "old.keras")
    targets = [np.ones((5, 3)), np.zeros((5, 3))]
    expected = old.evaluate(DATA, targets, verbose=0, return_dict=True)
    model = tfprune.load(tmp_path / "old.keras")
    found = model.evaluate(DATA, targets, verbose=0, return_dict=True)
    assert {name.replace("/", "_"): value for name, value in expected.items()} == pytest.approx(found, rel=1e-5)
    np.testing.assert_allclose(model.predict(DATA, verbose=0)[0], old.predict(DATA, verbose=0)[0], rtol=1e-5, atol=1e-6)


def sharing():
    inputs, last = tf_keras.Input((8,)), OLD.Dense(3, name="shared")
    return tf_keras.Model(inputs, [nested(name, last)(inputs) for name in ("a", "b")])


def test_a_layer_that_nested_networks_share_is_told_where_it_cannot_be_loaded(tmp_path):
    sharing().save(tmp_path / "old.keras")
    with pytest.raises(tfprune.UsageError, match=r"the networks a, b in it share the layer 'shared'\. .* as HDF5"):
        tfprune.load(tmp_path / "old.keras")


def test_a_layer_that_nested_networks_share_is_told_where_each_gets_its_own(tmp_path):
    old = sharing()
    old.save(tmp_path / "old.h5")
    with pytest.warns(UserWarning, match="networks in it seem to share shared: the weights are the same"):
        model = tfprune.load(tmp_path / "old.h5")
    assert isinstance(model, keras.Model)
    np.testing.assert_allclose(model(DATA)[1], old(DATA)[1], rtol=1e-5, atol=1e-6)
