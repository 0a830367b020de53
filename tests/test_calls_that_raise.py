"""What the `call` of a layer that people wrote raises is told in one line, by every public function that runs it."""

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import randomize
from tfprune.errors import TfpruneError

X, Y = np.random.default_rng(0).normal(size=(8, 7)).astype("float32"), np.arange(8) % 3


class Raises(layers.Layer):
    """It raises once something that it needs is gone."""

    gone = False

    def call(self, x):
        if self.gone:
            raise RuntimeError("the table is closed\nand more lines")
        return 2.0 * x


class RaisesButTellsItsShape(Raises):
    def compute_output_shape(self, shape):
        return shape


@pytest.fixture(params=[Raises, RaisesButTellsItsShape])
def model(request, monkeypatch):
    inputs = keras.Input((7,))
    x = layers.BatchNormalization()(request.param(name="own")(layers.Dense(24)(inputs)))
    outputs = layers.Dense(3, activation="softmax")(layers.Dense(20, activation="relu", name="wide")(x))
    model = randomize(keras.Model(inputs, outputs, name="net"))
    monkeypatch.setattr(Raises, "gone", True)
    return model


CALLS = {
    "verify": lambda model, plan: tfprune.verify(model, plan),
    "apply": lambda model, plan: plan.apply(model),
    "compensate": lambda model, plan: plan.compensation(model, X),
    "compensate without data": lambda model, plan: plan.compensation(model),
    "taylor": lambda model, plan: tfprune.plan_channels(
        model, 0.5, criterion="taylor", data=(X, Y), loss="sparse_categorical_crossentropy"
    ),
    "apoz": lambda model, plan: tfprune.plan_channels(model, 0.5, criterion="apoz", data=X),
    "sensitivity": lambda model, plan: tfprune.sensitivity(model, (X, Y)),
    "recalibrate": lambda model, plan: tfprune.recalibrate(model, X),
    "measure_latency": lambda model, plan: tfprune.measure_latency(model),
}


@pytest.mark.parametrize("what", CALLS)
def test_what_a_call_raises_is_told_in_one_line(model, what):
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["wide"]) == 10
    if what == "apply" and type(model.get_layer("own")) is RaisesButTellsItsShape:  # it need not be run
        assert CALLS[what](model, plan).get_layer("wide").units == 10
        return
    with pytest.raises(TfpruneError, match=r"\(RuntimeError: the table is closed\)\.$") as told:
        CALLS[what](model, plan)
    assert "\n" not in str(told.value)
    assert any(name in str(told.value) for name in ("'net'", "own (Raises)"))


def test_an_export_that_cannot_be_run_is_told_in_one_line(tmp_path):
    inputs = keras.Input((None,), dtype="int32")
    pooled = layers.GlobalAveragePooling1D()(layers.Embedding(2, 4)(inputs))
    model = keras.Model(inputs, keras.ops.reshape(layers.Dense(3)(pooled), (5, -1)), name="net")
    with pytest.raises(TfpruneError, match=r"^'net' cannot be run on a random batch of 2 \(") as told:
        tfprune.export(model, tmp_path / "exported")
    assert "\n" not in str(told.value)


def test_a_layer_that_no_file_can_bring_is_told_before_an_export(tmp_path):
    inputs = keras.Input((7,))
    model = keras.Model(inputs, layers.Dense(3)(Raises()(inputs)), name="net")
    with pytest.raises(TfpruneError, match="net has parts that only their Python code can load: Raises"):
        tfprune.export(model, tmp_path / "exported")
