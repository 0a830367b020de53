import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfprune.engines.exporting import export
from tfprune.engines.int8 import LiteRTInt8Engine, representative
from tfprune.errors import ExportError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.*Interpreter is deprecated")


def network():
    inputs = keras.Input((8, 8, 3), name="image")
    draw = keras.initializers.HeNormal(seed=0)
    x = layers.Conv2D(8, 3, activation="relu", kernel_initializer=draw, name="first")(inputs)
    x = layers.Conv2D(8, 3, activation="relu", kernel_initializer=draw, name="second")(x)
    return keras.Model(inputs, layers.Dense(4, name="scores")(layers.GlobalAveragePooling2D()(x)))


def examples(count=60):
    return np.random.default_rng(0).standard_normal((count, 8, 8, 3)).astype("float32")


def test_a_file_of_whole_numbers_is_run_on_the_data_and_its_accuracy_told(tmp_path):
    model, images = network(), examples()
    labels = np.asarray(model(images)).argmax(axis=1)
    labels[:15] = (labels[:15] + 1) % 4  # a quarter is wrong
    folder = export(model, tmp_path / "out", formats=("litert_int8", "keras"), data=(images, labels))
    assert sorted(path.name for path in folder.iterdir()) == ["model.keras", "model_int8.tflite"]
    check = folder.checks["litert_int8"]
    interpreter = tf.lite.Interpreter(str(folder / "model_int8.tflite"))
    found = interpreter.get_signature_runner()(image=images)["scores"]
    expected = np.asarray(model(images))
    assert found.dtype == np.float32
    assert 0 < check.difference < 0.05
    size = np.abs(expected).max()
    assert check.difference == pytest.approx(np.sqrt(np.mean((found - expected) ** 2)) / size, rel=1e-2)
    assert check.agreement == np.mean(found.argmax(axis=1) == expected.argmax(axis=1))
    assert check.accuracy == (0.75, pytest.approx(np.mean(found.argmax(axis=1) == labels)))
    kernels = [one for one in interpreter.get_tensor_details() if tuple(one["shape"]) == (8, 3, 3, 8)]
    assert {one["dtype"] for one in kernels} == {np.int8}


def test_of_data_without_end_the_first_are_taken():
    data = tf.data.Dataset.from_tensors(examples(100)).repeat()
    assert sum(len(batch[0]) for batch in representative(network(), data)[0]) == 512


def test_targets_are_found_in_every_form_of_data():
    model, images = network(), examples(21)
    labels = np.arange(21) % 4
    of_image = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    one_hot = keras.utils.to_categorical(labels, 4)
    batched = [(images[start : start + 5], labels[start : start + 5]) for start in range(0, 21, 5)]
    for data in (
        (images, labels),
        (images, labels[:, None]),
        (images, one_hot),
        tf.data.Dataset.from_tensor_slices((images, one_hot)).batch(5),
        iter(batched),
    ):
        batches, classes = representative(model, data)
        shown = np.concatenate([batch[0] for batch in batches])
        assert [of_image[image.tobytes()] for image in shown] == list(classes)
    for data in (images, (images, images), (images, labels + 0.5), iter([images])):
        assert representative(model, data)[1] is None


@pytest.mark.parametrize("kind", ["kernel", "bias"])
def test_layers_that_are_dead_on_the_data_are_named_before_converting(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(LiteRTInt8Engine, "set_up", lambda *args: pytest.fail("it was converted"))
    model = network()
    dead = model.get_layer("second")
    if kind == "kernel":
        dead.kernel.assign(np.zeros(dead.kernel.shape))
    else:
        dead.bias.assign(np.full(8, -1e3))
    told = r"'litert_int8' was not written: second gives nothing but zeros on the 60 examples.*Written to .*: keras\.$"
    with pytest.raises(UsageError, match=told):
        export(model, tmp_path / "out", formats=("litert_int8", "keras"), data=examples())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.keras"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (lambda: examples()[:, 1:], r"data= has batches of \(8, 7, 8, 3\).* takes \(None, 8, 8, 3\)"),
        (lambda: examples() * np.nan, "no finite numbers"),
        (lambda: examples(0), "data= holds no example"),
        (lambda: (examples(5), np.arange(4)), "data= has 5 examples and 4 targets"),
    ],
    ids=["shape", "NaN", "empty", "targets"],
)
def test_data_that_are_none_are_told_in_one_line(data, told, tmp_path):
    with pytest.raises(UsageError, match=told) as error:
        export(network(), tmp_path / "out", formats="litert_int8", data=data())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_far_off_is_an_error(tmp_path, monkeypatch):
    load = LiteRTInt8Engine.load
    monkeypatch.setattr(LiteRTInt8Engine, "load", lambda *args: lambda x: [2 * one for one in load(*args)(x)])
    with pytest.raises(ExportError, match=r"model_int8\.tflite differ by .* 8 bits are too few"):
        export(network(), tmp_path / "out", formats="litert_int8", data=examples())
    assert not (tmp_path / "out").exists()
