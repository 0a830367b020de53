import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tests.helpers import plain_cnn, predict, randomize, residual_cnn
from tfprune.engines import exporting
from tfprune.engines.exporting import export
from tfprune.engines.litert import LiteRTEngine
from tfprune.engines.saved_models.saved_model import SavedModelEngine
from tfprune.errors import ExportError, UsageError
from tfprune.graph.inputs import random_inputs
from tfprune.surgery.layers import FusedBatchNormalization

# Loads both files where tfprune cannot be imported, and compares with outputs saved as arrays.
STRANGER = """
import os, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tfprune":
            raise ImportError("no tfprune here")

sys.meta_path.insert(0, Absent())
try:
    import tfprune
except ImportError:
    pass
else:
    sys.exit("tfprune was there")
os.environ["KERAS_BACKEND"] = "tensorflow"
import keras, numpy as np, tensorflow as tf

for folder in sys.argv[1:]:
    with np.load(folder + ".npz") as arrays:
        inputs = [arrays[f"in{i}"] for i in range(sum(name.startswith("in") for name in arrays))]
        expected = [arrays[f"out{i}"] for i in range(sum(name.startswith("out") for name in arrays))]
    model = keras.saving.load_model(folder + "/model.keras")
    loaded = tf.saved_model.load(folder + "/saved_model")
    signature = loaded.signatures["serving_default"]
    named = dict(zip([tensor.name for tensor in model.inputs], map(tf.constant, inputs)))
    served = signature(**named)
    results = {
        "model.keras": keras.tree.flatten(model(inputs if len(inputs) > 1 else inputs[0], training=False)),
        "serve": keras.tree.flatten(loaded.serve(*map(tf.constant, inputs))),
        "serving_default": [served[f"output_{i}"] for i in range(len(served))],
    }
    for name, outputs in results.items():
        assert len(outputs) == len(expected), name
        for one, other in zip(expected, outputs):
            error = np.abs(one - np.asarray(other)).max() / np.abs(one).max()
            assert error < 1e-5, (folder, name, error)
    print("same", len(results))
"""


def two_ends(seed=0):
    """Two inputs, two outputs, and images of any size."""
    image, extra = keras.Input((None, None, 3), name="image"), keras.Input((4,), name="extra")
    x = layers.Conv2D(6, 3, padding="same", name="conv")(image)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Concatenate(name="join")([x, layers.Dense(5, name="side")(extra)])
    outputs = [layers.Dense(3, name="one")(x), layers.Dense(2, activation="softmax", name="other")(x)]
    return randomize(keras.Model([image, extra], outputs, name="two_ends"), seed)


def test_a_stranger_without_tfprune_loads_the_files_and_gets_the_same_outputs(tmp_path):
    pruned = tfprune.plan_channels(residual_cnn(), ratio=0.5).apply(residual_cnn())
    folders = []
    for model in (plain_cnn(), pruned, two_ends()):
        folder = tmp_path / model.name
        assert export(model, folder) == folder
        inputs = random_inputs(model, 3, seed=5)
        arrays = {f"in{i}": value for i, value in enumerate(inputs)}
        arrays |= {f"out{i}": value for i, value in enumerate(predict(model, *inputs))}
        np.savez(f"{folder}.npz", **arrays)
        folders.append(str(folder))
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *folders], cwd=tmp_path / "elsewhere", capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["same 3"] * 3


def test_every_variable_is_stored_once(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(64, 3)(inputs))
    outputs = layers.Dense(10)(layers.Dense(512)(layers.Flatten()(x)))
    model = keras.Model(inputs, outputs)
    assert model.count_params() > 1_000_000
    export(model, tmp_path / "out")
    variables = sum(file.stat().st_size for file in (tmp_path / "out" / "saved_model" / "variables").iterdir())
    assert 4 * model.count_params() <= variables <= 1.2 * 4 * model.count_params()
    assert (tmp_path / "out" / "model.keras").stat().st_size <= 1.2 * 4 * model.count_params()


def test_batch_normalization_that_is_not_folded_is_one_operation_when_served(tmp_path):
    model = residual_cnn()
    folder = export(model, tmp_path / "out", fold=False)
    served = tf.saved_model.load(str(folder / "saved_model")).signatures["serving_default"]
    found = [node.op for function in served.graph.as_graph_def().library.function for node in function.node_def]
    normalizations = sum(type(layer) is layers.BatchNormalization for layer in model.layers)
    assert found.count("FusedBatchNormV3") == normalizations > 0
    assert "Rsqrt" not in found


def test_the_saved_model_takes_any_number_of_examples(tmp_path):
    model = plain_cnn()
    export(model, tmp_path / "out")
    served = tf.saved_model.load(str(tmp_path / "out" / "saved_model"))
    assert list(served.signatures) == ["serving_default"]
    for count in (1, 7):
        (batch,) = random_inputs(model, count)
        np.testing.assert_allclose(served.serve(tf.constant(batch)), predict(model, batch)[0], atol=1e-5)


def test_batch_normalization_is_folded_in_the_saved_model_and_only_there(tmp_path):
    model = residual_cnn()
    folder = export(model, tmp_path / "out")
    served = tf.saved_model.load(str(folder / "saved_model"))
    graph = served.signatures["serving_default"].graph.as_graph_def()
    found = [node.op for function in graph.library.function for node in function.node_def]
    assert {"FusedBatchNormV3", "Rsqrt", "BiasAdd"} & set(found) == {"BiasAdd"}
    loaded = keras.saving.load_model(folder / "model.keras")
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    assert len(loaded.trainable_weights) == len(model.trainable_weights)


def served_by_name(model, folder, inputs):
    """What the signature gives for inputs by the names of the network's own input layers."""
    served = tf.saved_model.load(str(folder / "saved_model")).signatures["serving_default"]
    return served(**{name: tf.constant(value) for name, value in inputs.items()})


def with_dictionaries(seed=0):
    """Inputs and outputs in dictionaries whose keys are in no order."""
    left, right = keras.Input((8, 8, 3), name="z_image"), keras.Input((8, 8, 3), name="a_image")
    convolution, x = layers.Conv2D(8, 3, name="conv"), [left, right]
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(layers.ReLU()(convolution(one))) for one in x])
    outputs = {"score": layers.Dense(2, name="dense_of_score")(x), "box": layers.Dense(4, name="dense_of_box")(x)}
    return randomize(keras.Model({"z": left, "a": right}, outputs, name="dictionaries"), seed)


@pytest.mark.parametrize("make", [two_ends, with_dictionaries])
def test_a_server_asks_by_the_names_of_the_network_before_and_after_pruning(make, tmp_path):
    model = make()
    small = tfprune.plan_channels(model, ratio=0.5).apply(model)
    model.export(str(tmp_path / "keras"), format="tf_saved_model", verbose=False)
    theirs = tf.saved_model.load(str(tmp_path / "keras")).signatures["serving_default"]
    names = [tensor.name for tensor in model.inputs]
    for network in (model, small):
        folder = export(network, tmp_path / "out")
        inputs = random_inputs(network, 3, seed=2)
        received = served_by_name(network, folder, dict(zip(names, inputs, strict=True)))
        assert sorted(received) == sorted(theirs.structured_outputs)
        outputs = keras.tree.pack_sequence_as(network.output, predict_packed(network, inputs))
        outputs = outputs if isinstance(outputs, dict) else {f"output_{i}": one for i, one in enumerate(outputs)}
        for name, expected in outputs.items():
            np.testing.assert_allclose(received[name], expected, atol=1e-5)


def predict_packed(model, inputs):
    packed = keras.tree.pack_sequence_as(model.input, inputs)
    return keras.tree.flatten(model(packed, training=False))


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        (["b", "a"], ["b", "a"]),
        (["my input"], ["my_input"]),
        (["my input", "my_input"], ["my_input", "my_input_2"]),
        (["x.y", "x_y", "X-Y"], ["x.y", "x_y_2", "X-Y_3"]),
        (["1x", "arg_1x"], ["1x", "arg_1x_2"]),
        (["Übung", "_x"], ["input_bung", "input_x"]),
        (["self", "class", "training", "inputs"], ["self_", "class_", "training", "inputs"]),
        (["input_1", "input_0"], ["input_1", "input_0"]),
    ],
    ids=str,
)
def test_inputs_have_the_names_that_tensorflow_takes_of_theirs(names, asked, tmp_path):
    inputs = [keras.Input((4,), name=name) for name in names]
    weighted = [layers.Rescaling(float(place + 1))(one) for place, one in enumerate(inputs)]
    model = keras.Model(inputs, layers.Add()(weighted) if len(inputs) > 1 else weighted[0])
    SavedModelEngine().write(model, tmp_path / "saved_model")
    values = {name: np.full((2, 4), 10.0**place, "float32") for place, name in enumerate(asked)}
    received = served_by_name(model, tmp_path, values)
    expected = sum((place + 1) * 10.0**place for place in range(len(names)))
    np.testing.assert_allclose(received["output_0"], np.full((2, 4), expected))


def test_outputs_have_the_keys_of_a_dictionary_whatever_these_are(tmp_path):
    inputs = keras.Input((4,), name="x")
    keys = ["z", "a/b", "my out", "1"]
    model = keras.Model(inputs, {key: layers.Dense(place + 1)(inputs) for place, key in enumerate(keys)})
    SavedModelEngine().write(model, tmp_path / "saved_model")
    received = served_by_name(model, tmp_path, {"x": np.ones((2, 4), "float32")})
    assert {key: value.shape[1] for key, value in received.items()} == {"z": 1, "a/b": 2, "my out": 3, "1": 4}


@pytest.mark.parametrize("damaged", ["model.keras", "saved_model"])
def test_a_file_that_gives_other_outputs_is_an_error_and_leaves_nothing(damaged, tmp_path, monkeypatch):
    module, name = (keras.saving, "load_model") if damaged == "model.keras" else (tf.saved_model, "load")
    load = getattr(module, name)

    def load_damaged(*args, **kwargs):
        loaded = load(*args, **kwargs)
        first = loaded.weights[0]
        first.assign(np.array(first.numpy()) * 1.001)
        return loaded

    monkeypatch.setattr(module, name, load_damaged)
    with pytest.raises(ExportError, match=damaged) as error:
        export(plain_cnn(), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_old_one(tmp_path, monkeypatch):
    export(plain_cnn(), tmp_path / "out")
    before = (tmp_path / "out" / "model.keras").read_bytes()

    def fail(*args, **kwargs):
        raise ExportError("other outputs")

    monkeypatch.setattr(exporting, "_written", fail)
    with pytest.raises(ExportError):
        export(plain_cnn(1), tmp_path / "out")
    assert (tmp_path / "out" / "model.keras").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_replaces_its_own_files_and_leaves_others_alone(tmp_path, monkeypatch):
    export(plain_cnn(0), tmp_path / "a" / "out")
    (tmp_path / "a" / "out" / "model.tflite").touch()  # of an export with more formats
    (tmp_path / "a" / "out" / "thesis.txt").write_text("mine", encoding="utf-8")
    other = plain_cnn(1)
    export(other, str(tmp_path / "a" / "out"))
    left = sorted(path.name for path in (tmp_path / "a" / "out").iterdir())
    assert left == ["model.keras", "saved_model", "thesis.txt"]
    assert (tmp_path / "a" / "out" / "thesis.txt").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    monkeypatch.chdir(tmp_path / "a" / "out")
    export(other, ".")
    assert sorted(path.name for path in Path.cwd().iterdir()) == left
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        export(other, "thesis.txt")
    assert (tmp_path / "a" / "out").stat().st_mode & 0o055 == 0o055
    loaded = keras.saving.load_model(tmp_path / "a" / "out" / "model.keras")
    batch = random_inputs(other, 2)
    np.testing.assert_allclose(predict(loaded, *batch)[0], predict(other, *batch)[0], atol=1e-6)


class Doubling(layers.Layer):
    def call(self, inputs):
        return 2 * inputs


def surprising(x):
    return keras.ops.sin(x)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (lambda: Doubling(), "Doubling"),
        (lambda: FusedBatchNormalization(), "FusedBatchNormalization"),
        (lambda: keras.Sequential([Doubling()]), "Doubling"),
        (lambda: layers.Lambda(lambda x: x + 1), "Lambda"),
        (lambda: layers.Activation(surprising), "surprising"),
    ],
    ids=["custom layer", "layer of training", "nested", "lambda", "custom function"],
)
def test_what_only_its_python_code_can_load_is_refused_in_one_line(layer, named, tmp_path):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layer()(inputs))
    with pytest.raises(UsageError, match=named) as error:
        export(model, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_litert_model_is_compared_too(tmp_path, monkeypatch):
    model = plain_cnn()
    export(model, tmp_path / "out", litert=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.keras", "model.tflite", "saved_model"]
    interpreter = tf.lite.Interpreter(str(tmp_path / "out" / "model.tflite"))
    (batch,) = random_inputs(model, 1, seed=3)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], batch.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], batch)
    interpreter.invoke()
    received = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(received, predict(model, batch)[0], atol=1e-5)

    load = LiteRTEngine.load

    def off_by_a_little(*args):
        run = load(*args)
        return lambda inputs: [1.001 * output for output in run(inputs)]

    monkeypatch.setattr(LiteRTEngine, "load", off_by_a_little)
    with pytest.raises(ExportError, match=r"model\.tflite"):
        export(model, tmp_path / "out", litert=True)


def test_what_is_no_model_or_no_folder_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"Expected a Keras 3 model, received builtins\.NoneType"):
        export(None, tmp_path)
    with pytest.raises(UsageError, match="folder=None must be a path"):
        export(plain_cnn(), None)
