"""What a user gives is as it was after a call of any public function: weights, seeds, attributes, compile settings.

`recalibrate` changes statistics, and `sparse` puts a method around a network; they say so.
"""

import inspect

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tfprune.graph.keras_internals import layers_within

CHANGING = {"recalibrate", "sparse", "callbacks", "finish"}
BY_ITSELF = {"study"}  # trains; its own tests ask this


class Lively(layers.Layer):
    """Draws from seeds of its own, counts its calls in a weight and in Python, and keeps and adds what it has seen."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units, self.inner = units, layers.Dense(units, activation="relu")
        self.seeds, self.others = keras.random.SeedGenerator(1), [keras.random.SeedGenerator(2)]
        self.calls, self.seen, self.by_name = 0, [], {}

    def build(self, shape):
        self.inner.build(shape)
        self.count = self.add_weight(name="count", shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=None):
        self.calls += 1
        self.seen.append(tuple(x.shape))
        self.by_name[str(self.calls)] = self.calls
        self.latest = self.calls
        self.count.assign_add(1.0)
        self.add_loss(0.0 * ops.sum(x))
        for seeds in (self.seeds, *self.others):
            drawn = keras.random.uniform((), 0.5, 1.0, seed=seeds)
            x = x * drawn if training else x + 0.0 * drawn
        return self.inner(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Subclassed(keras.Model):
    """As `Lively`, a whole network."""

    def __init__(self):
        super().__init__()
        self.first, self.own = layers.Dense(8, name="first"), Lively(10, name="own")
        self.drop, self.norm = layers.Dropout(0.3), layers.BatchNormalization()
        self.last = layers.Dense(3, activation="softmax", name="last")
        self.calls, self.seen = 0, []

    def call(self, x, training=None):
        self.calls += 1
        self.seen.append(self.calls)
        return self.last(self.norm(self.drop(self.own(self.first(x), training=training))))


def functional():
    inputs = keras.Input((5,))
    x = layers.BatchNormalization()(Lively(10, name="own")(layers.Dense(8, name="first")(inputs)))
    outputs = layers.Dense(3, activation="softmax", name="last")(layers.Dropout(0.3)(x))
    return keras.Model(inputs, outputs)


def stateful():
    inputs = keras.Input(batch_shape=(4, 6, 5))
    x = layers.LSTM(8, stateful=True)(layers.GaussianNoise(0.1)(inputs))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Dense(10, name="first")(x)))


def of_keras():
    """Of Keras' layers alone, as `export` wants it."""
    inputs = keras.Input((4, 4, 3))
    x = layers.RandomFlip()(layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(inputs))
    x = layers.Dropout(0.3)(layers.BatchNormalization()(layers.Conv2D(6, 3, name="second")(x)))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Flatten()(x)))


MODELS = {make.__name__: make for make in (functional, Subclassed, stateful, of_keras)}


def fitted(name):
    """A network that was trained a little, and data for it."""
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    shape = {"stateful": (6, 5), "of_keras": (4, 4, 3)}.get(name, (5,))
    inputs = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    targets = np.arange(4) % 3
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=True)
    model.fit(inputs, targets, batch_size=4, verbose=0)
    return model, (inputs, targets)


def held(value):
    """What an attribute is, and what lists and dictionaries hold."""
    value = getattr(value, "__wrapped__", value)
    if isinstance(value, dict):
        return {key: held(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [held(own) for own in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else id(value)


def state(model):
    """All that there is to a network."""
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    variables += [own for layer in layers_within(model) for own in getattr(layer, "states", None) or ()]
    values = {id(variable): ops.convert_to_numpy(variable).tolist() for variable in variables}
    attributes = [
        (layer.name, {name: held(value) for name, value in vars(layer).items()}) for layer in layers_within(model)
    ]
    return values, attributes, [held(layer.losses) for layer in layers_within(model)]


def plan_of(model):
    return tfprune.plan_channels(model, 0.5)


# Public function, or what one gives -> calls of it; each takes a model, data for it and a folder.
CALLS = {
    "plan_channels": lambda model, data, folder: [
        tfprune.plan_channels(model, 0.5, criterion=criterion, data=data) for criterion in ("mean_activation", "taylor")
    ],
    "plan_weights": lambda model, data, folder: tfprune.plan_weights(model, 0.5, dense=True),
    "plan_guided": lambda model, data, folder: tfprune.plan_guided(
        model, tfprune.pattern_of(model, tfprune.plan_channels(model, 0.5))
    ),
    "pattern_of": lambda model, data, folder: tfprune.pattern_of(model, tfprune.plan_weights(model, 0.5, dense=True)),
    "profile": lambda model, data, folder: tfprune.profile(model),
    "measure_latency": lambda model, data, folder: tfprune.measure_latency(model, n=1, batch_size=len(data[0])),
    "sensitivity": lambda model, data, folder: [
        tfprune.sensitivity(model, evaluate, ratios=[0.5])
        for evaluate in (data, lambda one: one.evaluate(*data, verbose=0)[0])
    ],
    "export": lambda model, data, folder: tfprune.export(model, folder / "exported"),
    "verify": lambda model, data, folder: [
        tfprune.verify(model, plan_of(model), power=True),
        tfprune.verify(model, plan_of(model), inputs=data[0], compensate=data[0]),
    ],
    "ChannelGraph": lambda model, data, folder: tfprune.ChannelGraph(model),
    "ChannelPlan": lambda model, data, folder: [
        tfprune.ChannelPlan.from_removed(model, {"first": [0]}),
        plan_of(model).apply(model),
        plan_of(model).apply(model, weights="fresh", seed=1),
        plan_of(model).apply(model, compensate=True),
        plan_of(model).apply(model, compensate=data[0]),
        plan_of(model).compensation(model, data[0]),
        plan_of(model).prove(model),
    ],
    "WeightPlan": lambda model, data, folder: [
        tfprune.plan_weights(model, 0.5, dense=True).apply(model),
        tfprune.plan_weights(model, 0.5, dense=True).prove(model),
    ],
    "load_plan": lambda model, data, folder: loaded(plan_of(model), folder).apply(model),
}
OF_ONE = {"plan_guided": ("of_keras",), "pattern_of": ("of_keras",), "export": ("of_keras",)}


def loaded(plan, folder):
    plan.save(folder / "plan.json")
    return tfprune.load_plan(folder / "plan.json")


def test_every_public_function_that_takes_a_model_is_asked():
    public = {name: getattr(tfprune, name) for name in tfprune.__all__ if name != "__version__"}
    takes = {
        name
        for name, one in public.items()
        if inspect.isfunction(one) and {"model", "models"} & inspect.signature(one).parameters.keys()
    }
    assert takes - CHANGING - BY_ITSELF <= CALLS.keys()


@pytest.mark.parametrize(("function", "name"), [(one, name) for one in CALLS for name in OF_ONE.get(one, MODELS)])
def test_nothing_of_the_model_is_changed(function, name, tmp_path):
    model, data = fitted(name)
    before = state(model)
    CALLS[function](model, data, tmp_path)
    for one, other in zip(before, state(model), strict=True):
        assert one == other
