import json
import pathlib
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tf_keras
from keras import layers

import tfprune
from tests.helpers import plain_cnn, predict
from tfprune import prune
from tfprune.errors import UsageError
from tfprune.models.model_files import objects_of

OLD = tf_keras.layers


def _two_branches(x):
    shared = tf_keras.Sequential([OLD.InputLayer((6, 6, 3)), OLD.Conv2D(3, 1)])
    inner = tf_keras.Input((6, 6, 3))
    functional = tf_keras.Model(inner, OLD.DepthwiseConv2D(3, padding="same")(inner))
    return OLD.Concatenate()([shared(x), shared(functional(x)), functional(shared(x))])


# What Keras 3 refuses in a file of Keras 2, or reads as something else: shape of an example, the layers on it.
OF_KERAS_2 = {
    "convolutions": ((6, 6, 3), lambda x: OLD.ReLU()(OLD.BatchNormalization()(OLD.Conv2D(4, 3)(x)))),
    "separable": ((6, 6, 3), lambda x: OLD.SeparableConv2D(4, 3)(x)),
    "transposed": ((6, 6, 3), lambda x: OLD.Conv2DTranspose(4, 3, strides=2)(x)),
    "dropout": ((6, 6, 3), lambda x: OLD.Conv2D(2, 1)(OLD.SpatialDropout2D(0.5)(x))),
    "recurrent": ((5, 3), lambda x: OLD.Bidirectional(OLD.GRU(4))(OLD.LSTM(3, return_sequences=True)(x))),
    "cells": ((5, 3), lambda x: OLD.RNN([OLD.LSTMCell(4), OLD.GRUCell(3)])(x)),
    "attention": ((5, 4), lambda x: OLD.MultiHeadAttention(2, 3)(OLD.Dense(4)(x), value=x)),
    "attention_of_no_weights": ((5, 4), lambda x: OLD.Attention()([x, OLD.Dense(4)(x)])),
    "nested": ((6, 6, 3), _two_branches),
    "last_is_nested": ((4,), lambda x: tf_keras.Sequential([OLD.InputLayer((4,)), OLD.Dense(2)])(x)),
    "in_time": ((3, 4), lambda x: OLD.TimeDistributed(tf_keras.Sequential([OLD.InputLayer((4,)), OLD.Dense(2)]))(x)),
    "bins": ((4,), lambda x: OLD.Discretization(bin_boundaries=[-0.7, 0.1, 0.6])(x)),
    "states": (
        (5, 3),
        lambda x: OLD.LSTM(4)(OLD.Dense(2)(x), initial_state=[OLD.LSTM(4)(x), OLD.GRU(4)(x)]),
    ),
    "one_state": ((5, 3), lambda x: OLD.GRU(4)(OLD.Dense(2)(x), initial_state=OLD.GRU(4)(x))),
    "both_ways_from_states": (
        (5, 3),
        lambda x: OLD.Bidirectional(OLD.GRU(4))(x, initial_state=[OLD.GRU(4)(x), OLD.GRU(4)(x)]),
    ),
    "slashes": (
        (6, 6, 3),
        lambda x: OLD.Add(name="block/sum")([OLD.Conv2D(3, 1, name="block/conv")(x), OLD.ReLU(name="block_conv")(x)]),
    ),
    "augmented": ((6, 6, 3), lambda x: OLD.Conv2D(2, 3)(OLD.RandomFlip()(OLD.RandomRotation(0.1)(x)))),
    "leaky": ((4,), lambda x: OLD.LeakyReLU(0.2)(OLD.Dense(4, activation="gelu")(x))),
}


def of_keras_2(shape, build):
    inputs = tf_keras.Input(shape)
    model = tf_keras.Model(inputs, build(inputs))
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if weight.dtype.is_floating:
            weight.assign(generator.uniform(0.2, 1.0, weight.shape))
    return model


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("name", OF_KERAS_2)
def test_a_file_of_keras_2_computes_what_it_computed_there(tmp_path, name, suffix):
    shape, build = OF_KERAS_2[name]
    old = of_keras_2(shape, build)
    old.save(tmp_path / f"old{suffix}")
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    expected = np.asarray(old(x, training=False))
    received = np.asarray(tfprune.load(tmp_path / f"old{suffix}")(x, training=False)).astype(expected.dtype)
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6, strict=True)


def test_a_sequential_of_the_first_keras_2_is_a_list_without_an_input_layer(tmp_path):
    old = tf_keras.Sequential([OLD.Conv2D(4, 3, input_shape=(6, 6, 3)), OLD.Flatten(), OLD.Dense(2)])
    old.save(tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"] = [entry for entry in config["config"]["layers"] if entry["class_name"] != "InputLayer"]
        file.attrs["model_config"] = json.dumps(config)
        del file.attrs["keras_version"]
    x = np.random.default_rng(0).normal(size=(3, 6, 6, 3)).astype("float32")
    np.testing.assert_allclose(tfprune.load(tmp_path / "old.h5")(x), np.asarray(old(x)), rtol=1e-5, atol=1e-6)


def test_compile_settings_that_keras_3_cannot_load_are_told(tmp_path):
    old = of_keras_2(*OF_KERAS_2["convolutions"])
    old.compile("sgd", tf_keras.losses.MeanSquaredError())
    old.save(tmp_path / "old.h5")
    with pytest.warns(UserWarning, match="has compile settings that Keras cannot load"):
        assert not tfprune.load(tmp_path / "old.h5").compiled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not tfprune.load(tmp_path / "old.h5", compiled=False).compiled


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize(
    ("build", "fragment"),
    [
        (lambda x: OLD.Dense(3, activation="hard_sigmoid", name="gate")(x), "'gate' has activation='hard_sigmoid'"),
        (lambda x: OLD.LSTM(3, recurrent_activation="hard_sigmoid")(OLD.Reshape((4, 1))(x)), "recurrent_activation="),
        (lambda x: OLD.Dense(3)(x * 2.0), "'math.multiply', called on a Keras tensor"),
        (lambda x: OLD.ThresholdedReLU(0.5)(x), "ThresholdedReLU"),
        (lambda x: OLD.UpSampling2D(interpolation="gaussian")(OLD.Reshape((2, 2, 1))(x)), "interpolates by gaussian"),
        (lambda x: OLD.LSTM(3, time_major=True)(OLD.Reshape((4, 1))(x)), "has time_major=True"),
    ],
)
def test_what_keras_3_computes_otherwise_or_not_at_all_is_told(tmp_path, suffix, build, fragment):
    inputs = tf_keras.Input((4,), batch_size=1)
    tf_keras.Model(inputs, build(inputs)).save(tmp_path / f"old{suffix}")
    with pytest.raises(UsageError) as error:
        tfprune.load(tmp_path / f"old{suffix}")
    assert fragment in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(("written", "named"), [("h5", "model.keras"), ("h5", "model.hdf5"), ("keras", "model.h5")])
def test_the_content_says_what_a_file_is_and_not_its_name(tmp_path, written, named):
    model = plain_cnn()
    model.save(tmp_path / f"written.{written}")
    (tmp_path / f"written.{written}").rename(tmp_path / named)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(predict(tfprune.load(tmp_path / named), x)[0], predict(model, x)[0])


def _lambda_of_keras_3():
    return keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Lambda(lambda x: x * 2, name="twice")])


def _lambda_of_keras_2():
    return tf_keras.Sequential([OLD.Dense(4, input_shape=(4,)), OLD.Lambda(lambda x: x * 2, name="twice")])


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("build", [_lambda_of_keras_3, _lambda_of_keras_2])
def test_code_in_a_file_is_named_and_runs_only_when_asked_for(tmp_path, build, suffix):
    model = build()
    model.save(tmp_path / f"model{suffix}")
    with pytest.raises(UsageError, match=r"holds Python code, in 'twice'; .*--unsafe, or unsafe=True"):
        tfprune.load(tmp_path / f"model{suffix}")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    loaded = tfprune.load(tmp_path / f"model{suffix}", unsafe=True)
    np.testing.assert_allclose(loaded(x), np.asarray(model(x)), rtol=1e-6)


def _weights_alone(path):
    plain_cnn().save_weights(path.with_suffix(".weights.h5"))
    path.with_suffix(".weights.h5").rename(path)


def _cut(path):
    plain_cnn().save(path.with_suffix(".keras"))
    path.write_bytes(path.with_suffix(".keras").read_bytes()[:-200])


def _archive_of(**members):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in members.items():
                archive.writestr(name.replace("__", "."), text)

    return write


@pytest.mark.parametrize(
    ("write", "fragment"),
    [
        (lambda path: None, "There is no model file"),
        (lambda path: path.mkdir(), "is a folder; a file is needed (.keras, .h5, .hdf5)"),
        (lambda path: (path.mkdir(), (path / "saved_model.pb").touch()), "is a SavedModel; a file is needed"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid 1"), "pointer of Git LFS"),
        (lambda path: path.write_bytes(b""), "is no .keras file (an archive) and no HDF5 file, or it was cut"),
        (_cut, "is no .keras file (an archive) and no HDF5 file, or it was cut"),
        (_weights_alone, "holds weights and no network"),
        (_archive_of(readme="hello"), "without config.json"),
        (_archive_of(config__json="{"), "is damaged, or no network of Keras"),
        (_archive_of(config__json="[1, 2]"), "its config is [1, 2]"),
        (_archive_of(config__json='{"class_name": "Dense", "config": {"units": "x"}}'), "Keras cannot load"),
        (
            _archive_of(
                config__json='{"class_name": "Functional", "config": {"layers": [{"class_name": "Dense"}]}}',
                metadata__json='{"keras_version": "2.15.0"}',
            ),
            "is damaged: its config cannot be read (KeyError: 'config')",
        ),
        (_archive_of(config__json="{}", **{"../evil": "x"}), "would be written outside of it"),
    ],
)
def test_what_is_no_network_is_told_in_one_line(tmp_path, write, fragment):
    write(tmp_path / "file.h5")
    with pytest.raises(UsageError) as error:
        tfprune.load(tmp_path / "file.h5")
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def own_layers(tmp_path, monkeypatch):
    """A module with a layer of its own, and a network that holds one."""
    name = f"own_layers_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "import keras\n\n\nclass Fuzzy(keras.layers.Layer):\n    def call(self, x):\n        return keras.ops.sin(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    fuzzy = objects_of([name])["Fuzzy"]
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    keras.Model(inputs, layers.Dense(2)(layers.Flatten()(fuzzy(name="fuzzy")(x)))).save("model.keras")
    return name


def test_a_class_that_is_not_there_is_named_with_its_module(own_layers):
    other = f"{own_layers[:-1]}!"  # as if it had been written on another machine
    with zipfile.ZipFile("model.keras") as archive, zipfile.ZipFile("other.keras", "w") as written:
        for member in archive.infolist():
            text = archive.read(member)
            written.writestr(
                member, text.replace(own_layers.encode(), other.encode()) if "json" in str(member) else text
            )
    with pytest.raises(UsageError) as error:
        tfprune.load("other.keras")
    message = str(error.value)
    assert f"it needs 'Fuzzy' of {other}, which is not there" in message
    assert "--import=MODULE" in message
    assert f"Keras {keras.__version__} wrote the file" in message
    assert len(message) < 500


def test_modules_that_are_imported_bring_the_layers_of_a_file(own_layers, capsys):
    arguments = ["model.keras", "--ratio=0.5", "--output=small.keras", "--nomeasure"]
    assert prune.main([*arguments, f"--import={own_layers}"]) == 0
    small = tfprune.load("small.keras", custom_objects=objects_of([own_layers]))
    assert small.get_layer("conv").filters == 4


@pytest.mark.parametrize(("code", "fragment"), [(None, "ModuleNotFoundError"), ("1 / 0", "ZeroDivisionError")])
def test_a_module_that_cannot_be_imported_is_told(own_layers, capsys, code, fragment):
    if code is not None:
        pathlib.Path("broken_module.py").write_text(code)
    assert prune.main(["model.keras", "--ratio=0.5", "--output=s.keras", "--import=broken_module"]) == 2
    told = capsys.readouterr().err
    assert f"The module 'broken_module' cannot be imported: {fragment}" in told
    assert told.count("\n") == 1


def test_the_command_prunes_a_file_of_keras_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    old = of_keras_2((6, 6, 3), lambda x: OLD.Dense(2)(OLD.Flatten()(OLD.SeparableConv2D(8, 3, name="sep")(x))))
    old.save("old.h5")
    assert prune.main(["old.h5", "--ratio=0.5", "--output=small.keras", "--nomeasure"]) == 0
    assert tfprune.load("small.keras").get_layer("sep").filters == 4


def test_the_command_prunes_beside_code_that_it_was_told_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    inputs = keras.Input((6,))
    x = layers.Lambda(lambda x: x * 2, name="twice")(layers.Dense(8, name="wide")(inputs))
    keras.Model(inputs, layers.Dense(2)(layers.Dense(8, name="more")(x))).save("model.keras")
    arguments = ["model.keras", "--ratio=0.5", "--output=small.keras", "--nomeasure"]
    assert prune.main(arguments) == 2
    assert "in 'twice'" in capsys.readouterr().err
    assert prune.main([*arguments, "--unsafe"]) == 0
    assert tfprune.load("small.keras", unsafe=True).get_layer("more").units == 4


def test_a_loss_with_code_in_it_hinders_nothing_else(tmp_path):
    model = plain_cnn()
    model.compile("sgd", lambda y, z: keras.ops.mean((y - z) ** 2))
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="compile settings with Python code in them"):
        assert not tfprune.load(tmp_path / "model.keras").compiled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfprune.load(tmp_path / "model.keras", compiled=False)


def test_masks_of_keras_2_that_may_differ_are_told(tmp_path):
    words, numbers = tf_keras.Input((4,), dtype="int32"), tf_keras.Input((4, 3))
    x = OLD.Add(name="sum")([OLD.Embedding(5, 3, mask_zero=True)(words), numbers])
    tf_keras.Model([words, numbers], OLD.GlobalAveragePooling1D()(x)).save(tmp_path / "old.h5")
    with pytest.warns(UserWarning, match="masks of padded steps, which sum may pass on otherwise in Keras 3"):
        tfprune.load(tmp_path / "old.h5")


def _weights_alone(path):
    file = path.with_suffix(".weights.h5")
    plain_cnn().save_weights(file)
    return file


def _archive_of_something_else(path):
    file = path.with_suffix(".keras")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme", "hello")
    return file


@pytest.mark.parametrize(
    ("make", "told"),
    [(_weights_alone, "holds weights and no network. Build"), (_archive_of_something_else, "is an archive without")],
)
def test_a_file_that_holds_no_network_is_told_as_what_it_is(make, told, tmp_path):
    file = make(tmp_path / "mine")
    with pytest.raises(UsageError) as error:
        tfprune.load(file)
    assert str(error.value).startswith(f"{str(file)!r} {told}")
    assert "damaged" not in str(error.value)


def test_operations_that_keras_does_not_read_from_hdf5_are_told(tmp_path):
    inputs = keras.Input((4,))
    keras.Model(inputs, layers.Dense(3)(keras.ops.relu(layers.Dense(8)(inputs)))).save(tmp_path / "mine.h5")
    with pytest.raises(UsageError, match=r"keras\.ops between its layers \('Relu'\), .* model\.save\('model\.keras'\)"):
        tfprune.load(tmp_path / "mine.h5")
