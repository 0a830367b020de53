"""What is exported for every engine: run here by the engines themselves, and not by what `export` compares with."""

import os
import threading
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tests.helpers import plain_cnn, predict, randomize
from tfprune.engines import exporting
from tfprune.engines.exporting import export
from tfprune.engines.litert import LiteRTEngine
from tfprune.engines.onnx import OnnxRuntimeEngine
from tfprune.errors import ExportError, TfpruneError, UsageError
from tfprune.graph.inputs import random_inputs

OTHERS = ("litert", "onnx", "openvino")


def run_litert(folder, **inputs):
    interpreter = tf.lite.Interpreter(str(folder / "model.tflite"))
    return interpreter.get_signature_runner("serving_default")(**inputs)


def run_onnx(folder, **inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert {one.name for one in session.get_inputs()} == set(inputs)
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def run_openvino(folder, **inputs):
    import openvino

    model = openvino.Core().compile_model(folder / "openvino" / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = model(inputs)
    return {name: results[output] for output in model.outputs for name in output.get_names()}


RUN = {"litert": run_litert, "onnx": run_onnx, "openvino": run_openvino}


def two_ends():
    """Two inputs and two outputs of names in no order, one of them of open size."""
    image, extra = keras.Input((None, None, 3), name="zulu"), keras.Input((4,), name="alpha")
    x = layers.Conv2D(6, 3, padding="same")(image)
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    x = layers.Concatenate()([x, layers.Dense(5)(extra)])
    return randomize(keras.Model([image, extra], [layers.Dense(3, name="z")(x), layers.Dense(3, name="a")(x)]), 0)


def recurrent(kind, shape=(6, 4), batch=None, **kwargs):
    inputs = keras.Input(batch_shape=(batch, *shape), name="x")
    return keras.Model(inputs, kind(name="mine", **kwargs)(inputs))


@pytest.mark.filterwarnings("ignore:.*Interpreter is deprecated")
def test_inputs_and_outputs_go_by_their_names_in_every_engine(tmp_path):
    large = two_ends()
    model = tfprune.plan_channels(large, 0.5).apply(large)  # was never called
    folder = export(model, tmp_path / "out", formats=OTHERS)
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.tflite", "openvino"]
    assert sorted(folder.checks) == sorted(OTHERS)
    assert all(check.difference <= check.tolerance == 1e-5 for check in folder.checks.values())
    for count, size in ((1, 9), (3, 16)):
        inputs = random_inputs(model, count, seed=count, length=size)
        z, a = predict(model, *inputs)
        for name in OTHERS:
            found = RUN[name](folder, zulu=inputs[0], alpha=inputs[1])
            assert set(found) == {"z", "a"}
            np.testing.assert_allclose(found["z"], z, atol=1e-5)
            np.testing.assert_allclose(found["a"], a, atol=1e-5)


def test_outputs_of_two_names_that_are_mixed_up_are_an_error(tmp_path, monkeypatch):
    load = OnnxRuntimeEngine.load
    monkeypatch.setattr(OnnxRuntimeEngine, "load", lambda *args: lambda inputs: load(*args)(inputs)[::-1])
    with pytest.raises(
        ExportError, match=r"'onnx' was not written: .*model\.onnx differ.* Written to .*out': keras\.$"
    ):
        export(two_ends(), tmp_path / "out", formats=("keras", "onnx"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.keras"]


def test_an_input_that_is_an_output_and_keys_of_a_dictionary_have_names_too(tmp_path):
    inputs = {"left": keras.Input((6,), name="left in"), "right": keras.Input((3,), name="right")}
    model = keras.Model(inputs, {"sum": layers.Dense(3)(inputs["left"]), "right": inputs["right"]})
    folder = export(model, tmp_path / "out", formats="onnx")
    given = random_inputs(model, 2)
    found = run_onnx(folder, left_in=given[0], right=given[1])
    assert set(found) == {"sum", "right_2"}
    np.testing.assert_array_equal(found["right_2"], given[1])


@pytest.mark.parametrize(
    ("model", "helps"),
    [
        (lambda: recurrent(layers.LSTM, units=3), r"mine \(LSTM\) .* unroll=True"),
        (lambda: recurrent(layers.GRU, units=3), r"mine \(GRU\) .* unroll=True"),
        (lambda: recurrent(layers.Bidirectional, layer=layers.LSTM(3)), r"mine \(Bidirectional\) .* unroll=True"),
        (
            lambda: recurrent(layers.ConvLSTM2D, (5, 6, 6, 2), filters=3, kernel_size=3),
            r"mine \(ConvLSTM2D\) .* with a b",
        ),
        (lambda: recurrent(layers.Dense, units=3, dtype="mixed_float16"), r"mine \(Dense\) is of mixed_float16"),
        (lambda: recurrent(layers.LSTM, batch=2, units=3, stateful=True), r"mine \(LSTM\) is stateful.*stateful=False"),
    ],
    ids=["LSTM", "GRU", "Bidirectional", "ConvLSTM2D", "mixed_float16", "stateful"],
)
def test_what_litert_cannot_take_is_told_before_it_is_written_and_the_others_are_there(
    model, helps, tmp_path, monkeypatch
):
    monkeypatch.setattr(LiteRTEngine, "write", lambda *args: pytest.fail("it was written"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.tflite").touch()  # of another network
    with pytest.raises(UsageError, match=f"^'litert' was not written: {helps}.*Written to '.*out': keras") as error:
        export(model(), tmp_path / "out", formats=("keras", "litert"))
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.keras"]
    with pytest.raises(UsageError, match=r"Nothing was written\.$"):
        export(model(), tmp_path / "new" / "other", formats="litert")
    assert not (tmp_path / "new").exists()


def test_what_a_converter_cannot_take_is_told_with_its_layers(tmp_path):
    inputs = keras.Input((8,))
    x = layers.Dense(4, name="before")(inputs)
    outputs = layers.Lambda(lambda x: x, name="same")(x)
    model = keras.Model(inputs, layers.Dense(3, name="after")(outputs))

    class Refuses(LiteRTEngine):
        def write(self, model, path):
            raise RuntimeError('loc("functional_7/after_1/MatMul@__inference"): error: no\nsuch operation')

    judge = exporting.Judge(model, random_inputs(model, 2))
    with pytest.raises(UsageError, match=r"litert cannot take some operation of after \(RuntimeError: loc") as error:
        exporting._written(model, Refuses(), tmp_path, judge, None)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*Interpreter is deprecated")
def test_what_litert_can_take_without_operations_of_tensorflow(tmp_path):
    inputs = keras.Input((4, 4, 2), name="x")
    twice = keras.Model(inputs, layers.UpSampling2D(name="y")(layers.UpSampling2D()(inputs)))
    models = [
        twice,
        recurrent(layers.GRU, units=3, unroll=True),
        recurrent(layers.LSTM, batch=2, units=3),
    ]
    for number, model in enumerate(models):
        folder = export(model, tmp_path / str(number), formats="litert")
        (given,) = random_inputs(model, 2, seed=7)
        (found,) = run_litert(folder, x=given).values()
        np.testing.assert_allclose(found, predict(model, given)[0], atol=1e-5)


def test_stateful_layers_begin_anew_in_files_and_keep_their_state_in_memory(tmp_path):
    model = recurrent(layers.LSTM, batch=2, units=3, stateful=True)
    (given,) = random_inputs(model, 2)
    first, second = predict(model, given)[0], predict(model, given)[0]
    assert np.abs(first - second).max() > 1e-3
    before = [np.array(state) for state in model.layers[1].states]
    folder = export(model, tmp_path / "out")
    for state, own in zip(model.layers[1].states, before, strict=True):
        np.testing.assert_array_equal(state, own)
    loaded, served = keras.saving.load_model(folder / "model.keras"), tf.saved_model.load(str(folder / "saved_model"))
    for expected in (first, second):
        np.testing.assert_allclose(loaded(given), expected, atol=1e-6)
        np.testing.assert_allclose(served.serve(tf.constant(given)), expected, atol=1e-6)


def own_loss(y, predicted):
    return keras.ops.mean(keras.ops.abs(y - predicted))


class OwnMetric(keras.metrics.MeanAbsoluteError):
    pass


@pytest.mark.parametrize(
    ("loss", "metric", "told"),
    [
        (keras.losses.categorical_crossentropy, keras.metrics.categorical_accuracy, None),
        (own_loss, "mae", "own_loss"),
        (lambda y, predicted: keras.ops.mean(y - predicted), "mae", "<lambda>"),
        ("mse", OwnMetric(), "OwnMetric"),
    ],
    ids=["of Keras", "loss", "lambda", "metric"],
)
def test_what_a_network_is_compiled_with_refuses_no_export(loss, metric, told, tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3)(inputs))
    model.compile("adam", loss, metrics=[metric])
    batch = np.ones((4, 4), "float32"), np.ones((4, 3), "float32")
    model.fit(*batch, verbose=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folder = export(model, tmp_path / "out", formats="keras")
    words = [str(one.message) for one in caught if "is not compiled" in str(one.message)]
    assert len(words) == (told is not None)
    assert told is None or told in words[0]
    loaded = keras.saving.load_model(folder / "model.keras")
    assert loaded.compiled == (told is None)
    np.testing.assert_array_equal(loaded(batch[0]), model(batch[0]))
    model.fit(*batch, verbose=0)  # as before
    assert model.optimizer.iterations == 2


def test_a_loss_of_a_nested_model_refuses_no_export(tmp_path):
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    inner.compile("sgd", own_loss)
    inputs = keras.Input((4,))
    with pytest.warns(UserWarning, match="own_loss"):
        folder = export(keras.Model(inputs, inner(inputs)), tmp_path / "out", formats="keras")
    keras.saving.load_model(folder / "model.keras")
    assert inner.compiled


def test_open_sizes_that_are_too_small_are_not_compared_on(tmp_path):
    inputs = x = keras.Input((None, None, 3))
    for _ in range(5):
        x = layers.MaxPooling2D()(layers.Conv2D(4, 3)(x))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    assert export(model, tmp_path / "out", formats="keras").checks["keras"].difference <= 1e-5


def test_inputs_without_signs_or_of_ones_own(tmp_path):
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(3)(keras.ops.log(inputs + 1e-6)))
    export(model, tmp_path / "positive", formats="keras")
    narrow = keras.Model(inputs, layers.Dense(3)(keras.ops.sqrt(inputs - 10)))
    with pytest.raises(UsageError, match=r"no finite numbers.*Give inputs=") as error:
        export(narrow, tmp_path / "narrow", formats="keras")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "narrow").exists()
    export(narrow, tmp_path / "narrow", formats="keras", inputs=np.full((2, 8), 11.0))
    with pytest.raises(UsageError, match=r"takes inputs of \(None, 8\); received \(2, 7\)"):
        export(narrow, tmp_path / "narrow", formats="keras", inputs=np.ones((2, 7)))


def rounding(factor):
    """A network whose outputs are small differences of large numbers."""
    inputs = keras.Input((6,))
    x = layers.Dense(6, kernel_initializer=keras.initializers.RandomNormal(seed=1))(inputs)
    x = layers.Subtract()([layers.Rescaling(1.0, factor)(x), layers.Rescaling(1.0, factor)(keras.ops.zeros_like(x))])
    return keras.Model(inputs, layers.Dense(3, kernel_initializer="ones")(x))


def test_a_network_that_makes_rounding_large_is_allowed_as_much_and_no_other_one(tmp_path, monkeypatch):
    load = LiteRTEngine.load

    def off_by(part):
        def damaged(*args):
            return lambda inputs: [(1 + part) * output for output in load(*args)(inputs)]

        monkeypatch.setattr(LiteRTEngine, "load", damaged)

    off_by(3e-5)
    with pytest.raises(ExportError, match=r"model\.tflite differ by"):
        export(rounding(0.0), tmp_path / "exact", formats="litert")
    check = export(rounding(100.0), tmp_path / "rough", formats="litert").checks["litert"]
    assert 1e-5 < check.difference < check.tolerance < 1e-3
    off_by(0.01)
    with pytest.raises(ExportError, match=r"model\.tflite differ by"):
        export(rounding(100.0), tmp_path / "rough", formats="litert")
    export(rounding(0.0), tmp_path / "exact", formats="litert", tolerance=0.02)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_networks_of_16_bits_are_compared_as_such(policy, tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, bias_initializer="random_normal", dtype=policy)(inputs)
    x = layers.ReLU(dtype=policy)(layers.BatchNormalization(dtype=policy)(x))
    x = layers.GlobalAveragePooling2D(dtype=policy)(x)
    model = keras.Model(inputs, layers.Dense(3, bias_initializer="random_normal", dtype=policy)(x))
    checks = export(model, tmp_path / "out", formats=("keras", "saved_model", "openvino")).checks
    assert all(check.tolerance <= 0.05 for check in checks.values())


def test_openvino_stores_float32(tmp_path):
    inputs = keras.Input((64,))
    model = keras.Model(inputs, layers.Dense(64)(inputs))
    folder = export(model, tmp_path / "out", formats="openvino")
    assert (folder / "openvino" / "model.bin").stat().st_size >= 4 * 64 * 64
    assert sorted(path.name for path in (folder / "openvino").iterdir()) == ["model.bin", "model.xml"]


@pytest.mark.filterwarnings("ignore:.*Interpreter is deprecated")
def test_weights_that_are_zero_are_not_stored(tmp_path):
    inputs = keras.Input((8, 8, 16), name="x")
    model = keras.Model(inputs, layers.Dense(32)(layers.Flatten()(layers.Conv2D(64, 3, activation="relu")(inputs))))
    with pytest.raises(UsageError, match=r"sparse=True: no kernel .* half of zeros"):
        export(model, tmp_path / "none", formats="litert", sparse=True)
    pruned = tfprune.plan_weights(model, 0.8, dense=True).apply(model)
    plain = export(pruned, tmp_path / "plain", formats="litert") / "model.tflite"
    sparse = export(pruned, tmp_path / "sparse", formats="litert", sparse=True) / "model.tflite"
    assert sparse.stat().st_size < 0.4 * plain.stat().st_size
    (given,) = random_inputs(model, 2)
    (found,) = run_litert(tmp_path / "sparse", x=given).values()
    np.testing.assert_allclose(found, predict(pruned, given)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"formats": ()}, "formats= is empty; give one or more of 'keras'"),
        ({"formats": None}, "formats=None must be a list"),
        ({"formats": ("keras", "tensorrt")}, "Unknown format 'tensorrt'. Valid: 'keras', 'saved_model'"),
        ({"tolerance": 2}, "tolerance=2 is no number in"),
        ({"sparse": True}, "sparse= is for 'litert', which is not among the formats"),
        ({"data": np.ones((4, 32, 32, 3))}, "data= is for 'litert_int8', which is not among the formats"),
        ({"formats": "litert_int8"}, "'litert_int8' needs data="),
    ],
)
def test_arguments_that_are_none_are_told_before_anything_is_written(arguments, told, tmp_path):
    with pytest.raises(UsageError, match=told) as error:
        export(plain_cnn(), tmp_path / "out", **arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_an_engine_that_is_not_installed_is_told_with_its_extra(name, tmp_path, monkeypatch):
    find = exporting.OnnxRuntimeEngine.check_installed.__globals__["importlib"].util.find_spec
    absent = {"onnxruntime", "openvino"}
    monkeypatch.setattr("importlib.util.find_spec", lambda own, *args: None if own in absent else find(own, *args))
    with pytest.raises(UsageError, match=rf"not installed: pip install 'tfprune\[{name}\]'"):
        export(plain_cnn(), tmp_path / "out", formats=("keras", name))
    assert not (tmp_path / "out").exists()


def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(LiteRTEngine, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(plain_cnn(), tmp_path / "a" / "b", litert=True)
    assert list(tmp_path.iterdir()) == []


def test_two_exports_to_one_folder_do_not_mix(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    names = ("model.keras", "model.onnx")
    errors = []

    def move(own):
        try:
            for number in range(50):
                scratch = tmp_path / f"{own}{number}"
                scratch.mkdir()
                for name in names:
                    (scratch / name).write_text(own)
                exporting._move(scratch, folder, names)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=move, args=(own,)) for own in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len({(folder / name).read_text() for name in names}) == 1
    assert sorted(os.listdir(folder)) == sorted(names)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TfpruneError, match=r"Cannot export to .*Name a folder that can be made") as error:
        export(plain_cnn(), tmp_path / "file" / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(8, 3, activation="gelu"),
        layers.Conv2D(8, 3, activation="celu"),
        layers.Conv2D(8, 3, groups=2),
        layers.Conv2D(8, 3, 2, "same", groups=4, use_bias=False),
        layers.Conv2D(8, 3, padding="same", dilation_rate=2, groups=2),
    ],
    ids=["gelu", "celu", "groups", "groups_same", "groups_dilated"],
)
def test_onnx_has_what_tf2onnx_does_not_know(layer, tmp_path):
    inputs = keras.Input((9, 9, 4), name="image")
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(layer(inputs)))
    assert export(model, tmp_path / "out", formats="onnx").checks["onnx"].difference < 1e-5
