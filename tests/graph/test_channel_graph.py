import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers import plain_cnn, residual_cnn
from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.walk import functional
from tfprune.models import build_model


class Mystery(layers.Layer):
    def call(self, x):
        return x * float(keras.ops.convert_to_numpy(x).mean())  # of values that a tensor without any does not have

    def compute_output_shape(self, shape):
        return shape


class UsersDense(layers.Dense):
    def call(self, x):
        return keras.ops.softmax(super().call(x))


def coupled(graph, layer, channel):
    """All (layer, channel) that go when this one goes."""
    group = graph.group_of[graph.records[layer].created[channel]]
    return {
        (record.name, index)
        for record in graph.producers()
        for index in np.flatnonzero(graph.group_of[record.created] == group).tolist()
    }


def frozen(graph):
    """Layer -> reason, of its first channel."""
    first = {record.name: graph.group_of[record.created[0]] for record in graph.producers()}
    return {name: graph.frozen[group] for name, group in first.items() if group in graph.frozen}


def padded_cnn():
    """stem (2) -> wide (4) + zero-padded stem: 1 channel of zeros before, 1 after."""
    inputs = keras.Input((8, 8, 3))
    stem = layers.Conv2D(2, 3, padding="same", name="stem")(inputs)
    wide = layers.Conv2D(4, 3, padding="same", name="wide")(stem)
    short = keras.ops.pad(stem, ((0, 0), (0, 0), (0, 0), (1, 1)))
    x = layers.GlobalAveragePooling2D()(layers.Add(name="add")([short, wide]))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def test_chain_couples_nothing_and_freezes_the_output():
    graph = ChannelGraph(plain_cnn())
    assert coupled(graph, "conv_a", 4) == {("conv_a", 4)}
    assert coupled(graph, "fc", 7) == {("fc", 7)}
    assert frozen(graph) == {"logits": "model output"}
    assert [record.name for record in graph.producers()] == ["conv_a", "conv_b", "fc", "logits"]
    assert {pool.layers: len(pool) for pool in graph.pools()} == {
        ("conv_a",): 6,
        ("conv_b",): 10,
        ("fc",): 8,
    }


def test_residual_stream_is_coupled_position_by_position():
    graph = ChannelGraph(residual_cnn())
    for channel in range(8):
        assert coupled(graph, "stem", channel) == {("stem", channel), ("branch_b", channel)}
    assert coupled(graph, "branch_a", 2) == {("branch_a", 2)}
    assert {pool.layers: len(pool) for pool in graph.pools()} == {
        ("stem", "branch_b"): 8,
        ("branch_a",): 6,
    }


def test_zero_padded_shortcut_couples_with_an_offset():
    graph = ChannelGraph(padded_cnn())
    assert coupled(graph, "stem", 0) == {("stem", 0), ("wide", 1)}
    assert coupled(graph, "stem", 1) == {("stem", 1), ("wide", 2)}
    assert coupled(graph, "wide", 0) == {("wide", 0)}
    assert coupled(graph, "wide", 3) == {("wide", 3)}
    assert {pool.layers: len(pool) for pool in graph.pools()} == {("stem", "wide"): 2, ("wide",): 2}


def test_resnet20_streams_by_hand():
    graph = ChannelGraph(build_model("resnet20", (32, 32, 3), 10, 0.25))  # 4, 8, 16 channels
    first, second, third = ("conv_1", "conv_3", "conv_5", "conv_7"), (9, 11, 13), (15, 17, 19)
    expected = {(name, 1) for name in first}
    expected |= {(f"conv_{n}", 1) for n in (*second, *third)}  # zeros come after the channels of a stage
    assert coupled(graph, "conv_1", 1) == expected
    assert coupled(graph, "conv_9", 4) == {(f"conv_{n}", 4) for n in (*second, *third)}
    assert coupled(graph, "conv_15", 8) == {(f"conv_{n}", 8) for n in third}
    for inner in (*range(2, 7, 2), *range(8, 13, 2), *range(14, 19, 2)):
        assert coupled(graph, f"conv_{inner}", 0) == {(f"conv_{inner}", 0)}
    assert frozen(graph) == {"logits": "model output"}


def test_add_to_the_input_is_frozen_as_model_input():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = layers.Add()([inputs, x])
    graph = ChannelGraph(keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x))))
    assert frozen(graph) == {"conv": "model input", "head": "model output"}
    assert graph.pools() == []


def test_every_output_of_several_is_frozen():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first")(inputs)
    y = layers.Conv2D(5, 3, name="second")(x)
    graph = ChannelGraph(keras.Model(inputs, [x, layers.Dense(2, name="head")(layers.Flatten()(y))]))
    assert frozen(graph) == {"first": "model output", "head": "model output"}
    assert [pool.layers for pool in graph.pools()] == [("second",)]


def test_unknown_layer_freezes_what_it_touches_and_is_named():
    unknown = Mystery(name="odd")
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="free")(inputs)
    x = layers.Conv2D(4, 3, name="touched")(x)
    x = layers.Conv2D(5, 3, name="after")(unknown(x))
    graph = ChannelGraph(keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x))))
    kind = type(unknown).__name__
    reasons = frozen(graph)
    assert reasons.keys() == {"touched", "head"}
    assert reasons["touched"].startswith(f"odd ({kind}) is not known to tfprune, and cannot be looked into (")
    assert [pool.layers for pool in graph.pools()] == [("free",), ("after",)]


def test_users_subclass_of_a_known_layer_is_not_taken_for_it():
    inputs = keras.Input((6,))
    x = layers.Dense(5, name="known")(inputs)
    x = UsersDense(4, name="theirs")(x)
    graph = ChannelGraph(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    assert frozen(graph)["theirs/dense_0"] == "softmax over the channels in theirs/softmax_1"
    assert "known" not in frozen(graph)  # it was looked into: what it calls is a Dense
    assert graph.records["theirs"].created is None


def test_subclass_of_a_model_with_a_functional_graph_is_taken_apart():
    class Named(keras.Model):
        pass

    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    graph = ChannelGraph(Named(inputs, layers.Dense(2, name="head")(layers.Flatten()(x))))
    assert [pool.layers for pool in graph.pools()] == [("conv",)]


def test_shared_layer_makes_the_same_channels_at_every_call():
    one, two = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    left = layers.Conv2D(4, 3, name="left")(one)
    right = layers.Conv2D(4, 3, name="right")(two)
    shared = layers.Conv2D(5, 3, name="shared")
    x = layers.Concatenate()([shared(left), shared(right)])
    graph = ChannelGraph(keras.Model([one, two], layers.Dense(2, name="head")(layers.Flatten()(x))))
    # What enters a shared kernel at both calls is sliced once, so it goes together.
    assert coupled(graph, "left", 3) == {("left", 3), ("right", 3)}
    assert coupled(graph, "shared", 1) == {("shared", 1)}
    assert len(graph.records["shared"].calls) == 2


def test_nested_models_are_entered_and_equal_names_told_apart():
    def block(name):
        inputs = keras.Input((8, 8, 4))
        return keras.Model(inputs, layers.Conv2D(4, 3, padding="same", name="conv")(inputs), name=name)

    inputs = keras.Input((8, 8, 4))
    x = block("two")(block("one")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))
    graph = ChannelGraph(model)
    assert [record.name for record in graph.producers()] == ["conv", "conv_2", "head"]
    assert graph.records["conv_2"].operation is model.get_layer("two").get_layer("conv")
    assert [pool.layers for pool in graph.pools()] == [("conv",), ("conv_2",)]


def test_sequential_and_functional_give_the_same_graph():
    stack = [layers.Conv2D(4, 3, name="conv"), layers.ReLU(), layers.Flatten(), layers.Dense(2, name="head")]
    model = keras.Sequential([keras.Input((8, 8, 3)), *stack])
    assert [pool.layers for pool in ChannelGraph(model).pools()] == [("conv",)]
    assert functional(model) is not model


def test_flatten_repeats_every_label_once_per_position():
    graph = ChannelGraph(plain_cnn())
    rows = graph.records["fc"].axes[0][0]
    created = graph.records["conv_b"].created
    assert (rows.reshape(4, 4, 10) == created).all()


def test_kept_labels_are_those_of_the_other_groups():
    graph = ChannelGraph(residual_cnn())
    group = graph.group_of[graph.records["stem"].created[3]]
    kept = graph.kept([group])
    assert np.flatnonzero(~kept[graph.records["stem"].created]).tolist() == [3]
    assert np.flatnonzero(~kept[graph.records["branch_b"].created]).tolist() == [3]
    assert kept[graph.records["branch_a"].created].all()
    assert graph.kept([]).all()
    assert graph.keep_all().all()


def test_replay_runs_the_graph():
    model = residual_cnn()
    x = np.ones((1, 8, 8, 3), "float32")
    order = []

    def run(call, values):
        order.append(call.record.name)
        args, kwargs = call.node.filled(values)
        return call.operation(*args, **kwargs)

    (received,) = ChannelGraph(model).replay([keras.ops.convert_to_tensor(x)], run)
    assert np.array_equal(received, model(x, training=False))
    assert order.index("stem") < order.index("branch_a") < order.index("branch_b") < order.index("add")


def test_models_without_a_graph_are_refused_with_what_to_do():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(PlanError, match=r"'mine' \(Subclassed\) has no input shape yet.* model\(example\)"):
        ChannelGraph(Subclassed(name="mine"))
    with pytest.raises(PlanError, match=r"Sequential model 'late' has no input shape.*model\.build"):
        ChannelGraph(keras.Sequential([layers.Dense(3)], name="late"))
    with pytest.raises(PlanError, match=r"Expected a Keras 3 model, received builtins\.str"):
        ChannelGraph("vgg16")
