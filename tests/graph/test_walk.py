"""How calls hang together, nested models unfolded."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import prove, randomize, residual_cnn
from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.walk import Wiring, flat_inputs, pack_inputs, pack_outputs


def call_it(node, values):
    args, kwargs = node.filled(values)
    return node.operation(*args, **kwargs)


def test_calls_read_what_calls_before_them_make():
    wiring = Wiring(residual_cnn())
    known = set(wiring.inputs)
    for number, node in enumerate(wiring.nodes):
        assert node.number == number
        assert known.issuperset(node.inputs)
        assert known.isdisjoint(node.outputs)
        known.update(node.outputs)
    assert known.issuperset(wiring.outputs)
    names = [node.operation.name for node in wiring.nodes]
    assert names.index("stem") < names.index("branch_a") < names.index("branch_b") < names.index("add")


def test_a_tensor_that_is_read_twice_by_one_call_has_a_value_for_each():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Concatenate()([inputs, inputs]))
    (received,) = Wiring(model).replay([1.0], lambda node, values: 10 * values[0] + values[1])
    assert received == 11.0
    assert Wiring(model).readers() == {0: 2, 1: 1}


def test_nested_models_are_unfolded_at_every_call():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="inner"), layers.ReLU()], name="nested")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(inner(inputs)))
    wiring = Wiring(model)
    assert [node.operation.name for node in wiring.nodes].count("inner") == 2
    assert len({number for node in wiring.nodes for number in node.outputs}) == 4
    x = np.random.default_rng(0).standard_normal((2, 4)).astype("float32")
    (received,) = wiring.replay([x], call_it)
    np.testing.assert_array_equal(received, model(x))


@pytest.mark.parametrize(
    ("outer", "inner", "told"),
    [(None, None, False), (True, None, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_training_of_a_nested_model_goes_down_to_its_layers(outer, inner, told):
    a, b, c = keras.Input((4,)), keras.Input((4,)), keras.Input((4,))
    lowest = keras.Model(a, layers.Dropout(0.5, name="drop")(a) + 1.0)
    middle = keras.Model(b, lowest(b) if inner is None else lowest(b, training=inner))
    model = keras.Model(c, middle(c) if outer is None else middle(c, training=outer))
    drop, add = Wiring(model).nodes
    assert drop.filled([3])[1].get("training") in ((told,) if told else (False, None))  # None from Keras 3.16 on
    assert "training" not in add.filled([3])[1]  # an operation that does not ask


def test_constants_in_the_place_of_a_nested_models_input_are_refused():
    one, two = keras.Input((3,)), keras.Input((3,))
    inner = keras.Model([one, two], layers.Add()([one, two]), name="sums")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(inner([inputs, ops.ones((1, 3))])))
    with pytest.raises(PlanError, match="nested model 'sums' is called with a constant"):
        tfprune.plan_channels(model, 0.5)


def test_what_only_a_bypassed_branch_needs_is_not_needed():
    wiring = Wiring(residual_cnn())
    names = [node.operation.name for node in wiring.nodes]
    assert all(wiring.needed({}))
    without = {name for name, needed in zip(names, wiring.needed({"add": 0}), strict=True) if not needed}
    assert without == {"branch_a", "bn_branch_a", "relu_branch_a", "branch_b"} | (without & {"bn_branch_b"})
    assert all(wiring.needed({"add": 1}))  # the branch needs the stem


def test_structures_of_inputs_and_outputs_are_the_models():
    inputs = {"b": keras.Input((2,), name="b"), "a": keras.Input((3,), name="a")}
    x = layers.Concatenate()([inputs["a"], inputs["b"]])
    model = keras.Model(inputs, {"sum": layers.Dense(2)(x), "pair": [x, x]})
    a, b = np.ones((1, 3), "float32"), np.zeros((1, 2), "float32")
    flat = flat_inputs(model, {"a": a, "b": b})
    packed = pack_inputs(model, flat)
    assert np.array_equal(packed["a"], a)
    assert np.array_equal(packed["b"], b)
    outputs = Wiring(model).replay(flat, call_it)
    assert set(pack_outputs(model, outputs)) == {"sum", "pair"}
    assert len(pack_outputs(model, outputs)["pair"]) == 2


def tower(name):
    inputs = keras.Input((4,))
    hidden = layers.Dense(8, activation="relu", name="dense")(inputs)
    return keras.Model(inputs, layers.Dense(8, name="out")(hidden), name=name)


def two_towers():
    """Two nested networks with equal layer names, which an input and a layer of the outer network have, too."""
    a, b = keras.Input((4,), name="dense"), keras.Input((4,), name="b")
    joined = layers.Concatenate()([tower("one")(a), tower("two")(b)])
    return randomize(keras.Model([a, b], layers.Dense(2, name="out")(joined), name="towers"))


def test_layers_of_the_outer_network_keep_their_names_beside_equal_ones_in_nested_networks():
    model = two_towers()
    graph = ChannelGraph(model)
    assert graph.records["out"].operation is model.get_layer("out")
    assert [record.name for record in graph.producers()] == ["dense_2", "out_2", "dense_3", "out_3", "out"]
    plan = tfprune.plan_channels(model, 0.5, skip=["out"])
    assert {name: len(plan.keep[name]) for name in ("out_2", "out_3", "out")} == {"out_2": 4, "out_3": 4, "out": 2}
    model.compile("sgd", {"out": "mse"}, metrics={"out": ["mae"]})
    small = prove(model, plan)
    assert small.output_names == ["out"]
    assert {"dense", "b", "out"} <= {layer.name for layer in small.layers}
    results = small.evaluate([np.ones((2, 4))] * 2, np.zeros((2, 2)), verbose=0, return_dict=True)
    assert set(results) == {"loss", "mae"}


def test_an_output_of_a_nested_network_keeps_its_name_beside_layers_of_that_name_inside():
    inputs = keras.Input((4,))
    body = layers.Dense(8, activation="relu", name="head")(inputs)
    head = keras.Model(inputs, layers.Dense(3, name="last")(body), name="head")
    same = keras.Sequential([inputs, layers.Dense(8, activation="relu"), layers.Dense(3, name="same")], name="same")
    given = keras.Input((4,))
    model = randomize(keras.Model(given, [head(given), same(given)]))
    small = prove(model, tfprune.plan_channels(model, 0.5))
    assert small.output_names == model.output_names == ["head", "same"]
    assert "same" in ChannelGraph(model).records


def test_a_bypass_of_the_outer_network_leaves_an_addition_of_that_name_in_a_nested_one():
    def block(x, name):
        return layers.Add(name="add")([x, layers.Conv2D(4, 3, padding="same", name=name)(x)])

    given, inputs = keras.Input((8, 8, 4)), keras.Input((8, 8, 4))
    nested = keras.Model(given, block(given, "inner"), name="nested")
    model = randomize(keras.Model(inputs, block(nested(inputs), "branch")))
    plan = tfprune.ChannelPlan.from_removed(model, {}, bypass={"add": 0})
    assert [name for name, channels in plan.keep.items() if channels] == ["inner"]
    assert tfprune.verify(model, plan) <= 1e-5


def test_a_sequential_model_keeps_its_name():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(8)], name="inner")
    model = randomize(keras.Sequential([keras.Input((4,)), inner, layers.Dense(2)], name="mine"))
    assert tfprune.plan_channels(model, 0.5).apply(model).name == "mine"
    assert tfprune.plan_weights(model, 0.5, dense=True).apply(model).name == "mine"
    with pytest.raises(PlanError, match="'mine'"):
        tfprune.plan_channels(model, 0.5, skip=["*"])
