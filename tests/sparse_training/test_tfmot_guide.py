"""TFMOT's first guide on `fashion_mini`, and the page that tells where each of its names has gone."""

import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from tensorflow_model_optimization.sparsity import keras as tfmot_keras

import tfprune
from tfprune.data import load

PAGE = Path(__file__).parents[2] / "docs" / "from_tfmot.md"
BATCHES, END, FREQUENCY, FIRST, FINAL = 47, 100, 7, 0.5, 0.8


def first_cells(heading):
    """What the first column of a table of the page names."""
    rows = PAGE.read_text(encoding="utf-8").split(heading)[1].split("\n\n")[0].splitlines()
    return [row.split("`")[1] for row in rows if row.startswith("| `")]


def test_every_public_name_of_tfmot_has_its_line():
    names = sorted(name for name in dir(tfmot_keras) if not name.startswith("_"))
    assert len(names) >= 11
    assert sorted(first_cells("| `tfmot.sparsity.keras` | here |\n")) == names


def test_every_argument_of_prune_low_magnitude_has_its_line():
    # What TFMOT's monitoring wraps tells only of *args.
    arguments = inspect.signature(inspect.unwrap(tfmot_keras.prune_low_magnitude)).parameters
    assert len(arguments) >= 7
    assert first_cells("| argument of `prune_low_magnitude` | here |\n") == list(arguments)


def test_names_of_tfprune_on_the_page_exist():
    named = set(re.findall(r"tfprune\.([A-Za-z]\w*)", PAGE.read_text(encoding="utf-8")))
    assert {"sparse", "callbacks", "finish", "Magnitude"} <= named
    assert [name for name in named if not hasattr(tfprune, name) and name != "data"] == []


# The guide's example.


def network():
    return keras.Sequential([
        keras.Input((32, 32, 1)), layers.Conv2D(12, 3, activation="relu", name="conv"), layers.MaxPooling2D(),
        layers.Flatten(), layers.Dense(10, name="classes"),
    ])  # fmt: skip


def due(step, end=END):
    """The sparsity that TFMOT's formula has at the last cut up to a step; None before the first one."""
    last = end if step >= end else step // FREQUENCY * FREQUENCY
    return FINAL + (FIRST - FINAL) * (1 - last / end) ** 3


def off(size, sparsity):
    return size - max(1, round(size * (1 - sparsity)))


class Watch(keras.callbacks.Callback):
    """Sees after every batch that the zeros are as many as they shall be, and that none has come back."""

    def __init__(self, expected, step=0):
        super().__init__()
        self.expected, self.step, self.before = expected, step, None

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        zeros = {name: np.asarray(self.model.get_layer(name).kernel) == 0 for name in ("conv", "classes")}
        for name, zero in zeros.items():
            assert zero.sum() == off(zero.size, self.expected(self.step)), (name, self.step)
            assert self.before is None or not (self.before[name] & ~zero).any(), (name, self.step)
        self.before = zeros


def fit(model, watch, first_epoch, epochs, data, *others):
    model.fit(
        data.train_images / 255.0, data.train_labels, batch_size=128, initial_epoch=first_epoch, epochs=epochs,
        verbose=0, callbacks=[*tfprune.callbacks(model), watch, *others],
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The file of the guide's network, trained, and its data."""
    data, path = load("fashion_mini"), tmp_path_factory.mktemp("guide") / "base.keras"
    keras.utils.set_random_seed(0)
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(data.train_images / 255.0, data.train_labels, batch_size=128, epochs=3, verbose=0)
    model.save(path)
    return path, data


def compiled(path):
    """The network with a new optimizer, as TFMOT asks for."""
    model = keras.models.load_model(path)
    model.compile("adam", model.loss, metrics=["accuracy"])
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (tfprune.ConstantSparsity(), lambda step: FINAL),
        (tfprune.PolynomialDecay(END, initial_sparsity=FIRST, frequency=FREQUENCY), due),
    ],
    ids=["80 % from the first step", "from 50 to 80 %"],
)
def test_sparsity_is_exact_at_every_step_after_saving_loading_and_going_on(schedule, expected, trained, tmp_path):
    path, data = trained
    method, watch = tfprune.Magnitude(FINAL, schedule), Watch(expected)
    model = tfprune.sparse(compiled(path), method)
    saved = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fit(model, watch, 0, 2, data, saved)
    assert watch.step == 2 * BATCHES

    model = keras.models.load_model(tmp_path / "1.keras")
    assert type(model) is keras.Sequential
    model = tfprune.sparse(model, method)
    watch = Watch(expected, step=BATCHES)
    watch.before = {name: np.asarray(model.get_layer(name).kernel) == 0 for name in ("conv", "classes")}
    fit(model, watch, 1, 3, data)
    plan, model = tfprune.finish(model)
    assert watch.step == 3 * BATCHES
    assert {name: int((~mask).sum()) for name, mask in plan.arrays().items()} == {"conv": 86, "classes": 21_600}

    model.save(tmp_path / "pruned.keras")
    again = keras.models.load_model(tmp_path / "pruned.keras")
    for name, mask in plan.arrays().items():
        np.testing.assert_array_equal(np.asarray(again.get_layer(name).kernel) != 0, mask)
    test = data.test_images / 255.0, data.test_labels
    assert again.evaluate(*test, verbose=0)[1] > keras.models.load_model(path).evaluate(*test, verbose=0)[1] - 0.05


@pytest.mark.slow
def test_where_the_step_of_a_file_is_not_known_a_warning_tells(trained, tmp_path):
    path, data = trained
    schedule = tfprune.PolynomialDecay(END, initial_sparsity=FIRST, frequency=FREQUENCY)
    model = tfprune.sparse(keras.models.load_model(path), tfprune.Magnitude(FINAL, schedule))  # not compiled anew
    fit(model, Watch(due), 0, 1, data)
    model.save(tmp_path / "1.keras")
    with pytest.warns(UserWarning, match=r"those of the cut at step 42, .* counted 188 batches.* initial_step"):
        model = tfprune.sparse(keras.models.load_model(tmp_path / "1.keras"), tfprune.Magnitude(FINAL, schedule))
    fit(model, Watch(due, step=42), 0, 1, data)
    model = keras.models.load_model(tmp_path / "1.keras")
    model = tfprune.sparse(model, tfprune.Magnitude(FINAL, schedule), initial_step=BATCHES)
    fit(model, Watch(due, step=BATCHES), 0, 1, data)
