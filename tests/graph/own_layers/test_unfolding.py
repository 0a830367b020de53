"""What becomes the layers inside of it, with reshapes and layers within layers, and why some layers cannot."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import network, predict
from tfprune.graph.channel_graph import ChannelGraph


class Inner(layers.Layer):
    """A dense layer of a width that no config tells."""

    def __init__(self, way=None, **options):
        super().__init__(**options)
        self.wide, self.way = layers.Dense(10, name="wide"), way

    def build(self, shape):
        self.wide.build(shape)

    def call(self, x, training=None):
        return WAYS[self.way](self, x, training)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 10)


class Swap(Inner):
    """A layer without weights inside, and an activation before or behind it."""

    def __init__(self, way=None, **options):
        super().__init__(way, **options)
        self.turn = Turn(name="turn")


class Turn(layers.Layer):
    """Looks at each number alone."""

    def call(self, x):
        return ops.sin(x)

    def compute_output_shape(self, shape):
        return shape


class Untold(Inner):
    """It has no config today."""

    def get_config(self):
        raise AttributeError("no config today")


class Outer(Inner):
    """Another of its kind inside."""

    def __init__(self, way=None, within=None, **options):
        super().__init__(way, **options)
        self.part = (Untold if within == "untold" else Inner)(name="part")

    def build(self, shape):
        super().build(shape)
        self.part.build(shape)


def masked(x, mask):
    """What each position sees of those before it."""
    scores = ops.matmul(x, ops.transpose(x, (0, 2, 1))) * 0.1
    return ops.matmul(ops.softmax(scores + mask), x)


def rows(x):
    """(1, length): the numbers of the positions."""
    return ops.expand_dims(ops.cast(ops.arange(ops.shape(x)[1]), "float32"), 0)


def spread(x):
    """(batch, 1, length): the same for each example."""
    batch, length = ops.shape(x)[0], ops.shape(x)[1]
    return ops.broadcast_to(ops.expand_dims(rows(x), 0), (batch, 1, length))


WAYS = {
    None: lambda own, x, training: ops.relu(own.wide(x)),
    # These become the layers inside.
    "examples kept": lambda own, x, training: ops.relu(
        ops.reshape(ops.reshape(own.wide(x), (ops.shape(x)[0], -1)), (ops.shape(x)[0], x.shape[1], 10))
    ),
    "examples joined": lambda own, x, training: ops.reshape(
        ops.tanh(ops.reshape(own.wide(x), (-1, 10))), (-1, x.shape[1], 10)
    ),
    "within": lambda own, x, training: own.part(x) * ops.sigmoid(own.wide(x)),
    "spread over examples": lambda own, x, training: masked(ops.relu(own.wide(x)), 0.1 * spread(x)),
    "spread twice": lambda own, x, training: masked(ops.relu(own.wide(x)), (0.1 * spread(x)) + rows(x)),
    # These do not.
    "no trace": lambda own, x, training: ops.relu(ops.relu(own.wide(x))) if training else ops.relu(own.wide(x)),
    "no trace within": lambda own, x, training: own.part(x) * (
        ops.relu(ops.relu(own.wide(x))) if training else ops.relu(own.wide(x))
    ),
    "other kind": lambda own, x, training: ops.sigmoid(own.wide(x)) if training else ops.tanh(own.wide(x)),
    "other order": lambda own, x, training: (
        ops.tanh(own.part(x)) if training else own.part(ops.tanh(x))
    ),
    "a new axis": lambda own, x, training: masked(
        ops.relu(own.wide(x)), ops.cast(ops.arange(ops.shape(x)[1]), "float32")[None]
    ),
    "other axes": lambda own, x, training: ops.relu(own.wide(x)) * ops.mean(
        own.wide(x), axis=(1, 2) if training else (1,), keepdims=True
    ),
    "other rank": lambda own, x, training: ops.reshape(
        ops.tanh(ops.reshape(own.wide(x), (-1, 2, 5) if training else (-1, 10))), (-1, ops.shape(x)[1], 10)
    ),
    "bent before it is read": lambda own, x, training: masked(ops.relu(own.wide(x)), ops.tanh(spread(x))),
    "bent later": lambda own, x, training: masked(ops.relu(own.wide(x)), ops.tanh(0.1 * spread(x))),
    "leaves": lambda own, x, training: ops.broadcast_to(
        ops.relu(own.wide(ops.max(x, axis=1, keepdims=True))), (ops.shape(x)[0], ops.shape(x)[1], 10)
    ),
}  # fmt: skip


def around(layer, shape=(6, 5)):
    def body(x):
        x = layers.Dense(8, activation="relu", name="before")(x)
        return layers.Dense(3, name="head")(layers.Dense(4, activation="relu", name="after")(layer(x)))

    return network(body, shape)


def unfolded(model, ratios, batches=((1, 6), (5, 6))):
    """The smaller network, without the layer "own", proved for several batches."""
    plan = tfprune.plan_channels(model, ratios=ratios)
    assert "own (" in " ".join(plan.notes)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    for batch, length in batches:
        given = np.random.default_rng(batch).normal(size=(batch, length, 5)).astype("float32")
        assert tfprune.verify(model, plan, inputs=given) <= 1e-5
    small = plan.apply(model)
    assert not any(isinstance(layer, Inner) for layer in small.layers)
    return small, plan


@pytest.mark.parametrize("way", ["examples kept", "examples joined"])
def test_reshapes_are_written_for_the_channels_that_are_left(way, tmp_path):
    model = around(Inner(way, name="own"))
    small, plan = unfolded(model, {"own/wide": 0.3, "before": 0.5})
    kernel = model.get_layer("own").wide.kernel.numpy()
    (made,) = [layer for layer in small.layers if layer.name == "own_wide"]
    assert np.array_equal(made.kernel.numpy(), kernel[list(plan.keep["before"])][:, plan.keep["own/wide"]])
    small.save(tmp_path / "small.keras")
    given = np.random.default_rng(0).normal(size=(7, 6, 5)).astype("float32")  # another batch than those of the tracing
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert np.array_equal(predict(small, given)[0], predict(again, given)[0])
    shapes = {tuple(operation.output.shape) for operation in small.operations}
    assert (None, 6, 7) in shapes
    assert ((None, 42) if way == "examples kept" else (None, 7)) in shapes


def test_a_layer_within_a_layer_that_has_no_config_either_becomes_what_is_inside_of_it():
    model = around(Outer("within", name="own"))
    small, plan = unfolded(model, {"own/wide": 0.5})
    assert plan.keep["own/wide"] == plan.keep["own/part/wide"]  # they meet in a product
    widths = [layer.units for layer in small.layers if isinstance(layer, layers.Dense)]
    assert sorted(widths) == [3, 4, 5, 5, 8]


@pytest.mark.parametrize("way", ["spread over examples", "spread twice", "a new axis"])
def test_what_is_counted_holds_for_any_batch_and_length(way):
    unfolded(around(Inner(way, name="own"), (None, 5)), {"own/wide": 0.5}, ((1, 3), (4, 8), (2, 11)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Inner("no trace", name="own"), "own does other things in training, or for other sizes"),
        (
            lambda: Outer("no trace within", "untold", name="own"),
            "own does other things in training, or for other sizes",
        ),
        (lambda: Inner("other kind", name="own"), "own does something else in training, or is told not to, in Tanh"),
        (lambda: Outer("other order", "untold", name="own"), "own does something else in training"),
        (lambda: Inner("other axes", name="own"), "own does something else in training, or is told not to, in Mean"),
        (lambda: Inner("other rank", name="own"), "own does something else in training, or is told not to, in Reshape"),
        *[
            (
                lambda way=way: Inner(way, name="own"),
                "own makes something of the size of the batch or of an open axis, in BroadcastTo",
            )
            for way in ("bent before it is read", "bent later", "leaves")
        ],
    ],
)
def test_what_does_not_hold_for_all_sizes_stays_whole_with_the_reason(make, reason):
    model = around(make(), (None, 5))
    frozen = ChannelGraph(model).frozen_layers()
    assert f"cannot be unfolded: {reason}" in " ".join(frozen.values())
    plan = tfprune.plan_channels(model, 0.5)
    assert (len(plan.keep["before"]), len(plan.keep["after"])) == (4, 2)
    assert {len(kept) for name, kept in plan.keep.items() if name.startswith("own/")} == {10}
    assert tfprune.verify(model, plan, power=True) <= 1e-5
    assert isinstance(plan.apply(model).get_layer("own"), Inner)
