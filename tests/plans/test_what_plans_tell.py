"""What plans tell of files that cannot be loaded, of proofs that prove nothing, and of data that do not fit."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import network, plain_cnn
from tfprune.errors import PlanError
from tfprune.graph.own_layers.unfolding import needs_unfolding


class Kept(layers.Layer):
    """Its constructor takes no config; it looks one number up by hand, so that it cannot become what is inside."""

    def __init__(self, width):
        super().__init__()
        self.width, self.dense = width, layers.Dense(width)

    def build(self, shape):
        self.dense.build(shape)
        self.scale = self.add_weight(shape=(self.width,), name="scale")

    def call(self, x):
        return ops.relu(self.dense(x)) * self.scale

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_a_layer_that_keras_cannot_make_of_its_config_is_told(tmp_path):
    model = network(lambda x: layers.Dense(3)(Kept(10)(layers.Dense(8, name="before")(x))), (5,))
    own = model.layers[2]
    plan = tfprune.plan_channels(model, 0.5)
    told = f"{own.name} (Kept) has a config of which Keras cannot make it: a saved network cannot be loaded"
    assert told in plan.notes
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    small = plan.apply(model)
    assert not needs_unfolding(plan.graph(model).records[own.name], plan.kept(plan.graph(model)))
    small.save(tmp_path / "small.keras")
    with pytest.raises(TypeError, match="Kept"):
        keras.saving.load_model(tmp_path / "small.keras", custom_objects={"Kept": Kept})


def test_a_proof_that_proves_nothing_says_so_in_its_sentence():
    inputs = keras.Input((5,))
    wide = layers.Dense(8, activation="relu", name="wide")(inputs)
    model = keras.Model(inputs, layers.Lambda(lambda x: 0.0 * x)(layers.Dense(3)(wide)))
    plan = tfprune.plan_channels(model, 0.5)
    assert plan.prove(model).startswith("The outputs are the same for all random inputs, with and without")
    live = keras.Model(inputs, layers.Dense(3)(wide))
    assert tfprune.plan_channels(live, 0.5).prove(live).startswith("masked and removed network differ by ")


def test_a_plan_of_which_nothing_is_frozen_has_no_line_of_it():
    plan = tfprune.plan_channels(plain_cnn(), 0.5)
    assert "frozen: logits (model output)" in str(plan)
    assert "frozen" not in str(dataclasses.replace(plan, frozen={}))


def test_data_whose_targets_do_not_fit_are_told_with_the_reason():
    model, images = plain_cnn(), np.ones((6, 8, 8, 3), "float32")
    asked = {"criterion": "taylor", "loss": "categorical_crossentropy"}
    with pytest.raises(PlanError, match=r"loss='categorical_crossentropy' cannot be computed of these targets and"):
        tfprune.plan_channels(model, 0.5, data=(images, np.ones((6, 4), "float32")), **asked)
    with pytest.raises(PlanError, match=r"data= has unlike numbers of inputs and targets: \[5, 6\]"):
        tfprune.plan_channels(model, 0.5, data=(images, np.ones((5, 5), "float32")), **asked)
    plan = tfprune.plan_channels(model, 0.5, data=(images, np.eye(6, 5, dtype="float32")), **asked)
    assert len(plan.keep["conv_a"]) == 3


@keras.saving.register_keras_serializable("telling")
class TwoWidths(layers.Layer):
    """One width in the config for two inside, so that it becomes the layers inside, and the operation between them."""

    def __init__(self, width=8, between="transpose", **options):
        super().__init__(**options)
        self.width, self.between = width, between
        self.one, self.two = layers.Dense(width, activation="relu"), layers.Dense(width)

    def build(self, shape):
        self.one.build(shape)
        self.two.build((*shape[:-1], self.width))

    def call(self, x):
        x = self.one(x)
        return self.two(ops.tanh(x) if self.between == "tanh" else 2.0 * x)

    def get_config(self):
        return {**super().get_config(), "width": self.width, "between": self.between}


def loads(model, path):
    model.save(path)
    try:
        keras.saving.load_model(path)
    except ValueError:
        return False
    return True


@pytest.mark.filterwarnings("ignore:.*HDF5")
@pytest.mark.parametrize(
    ("between", "before", "told"),
    [("tanh", layers.Dense, True), ("scale", layers.Dense, False), ("tanh", None, False)],
    ids=["comes to light", "becomes a layer", "was there before"],
)
def test_a_file_of_hdf5_that_could_be_loaded_before_is_told(between, before, told, tmp_path):
    def body(x):
        x = ops.relu(layers.Dense(8)(x)) if before is None else before(8, activation="relu")(x)
        return layers.Dense(2)(TwoWidths(between=between, name="own")(x))

    model = network(body, (4,))
    plan = tfprune.ChannelPlan.from_removed(model, {"own/dense": [0, 1, 2]})
    assert any(note.startswith("own (TwoWidths) becomes the layers inside") for note in plan.notes)
    notes = [note for note in plan.notes if note.startswith("saved as .h5, the smaller network cannot be loaded")]
    assert bool(notes) == told
    assert not told or "(Tanh)" in notes[0]
    assert loads(model, tmp_path / "model.h5") == (before is not None)
    assert loads(plan.apply(model), tmp_path / "small.h5") == (before is not None and not told)
