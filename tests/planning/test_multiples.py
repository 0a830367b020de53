import itertools
import json

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests import width_tables
from tests.helpers import randomize
from tfprune.engines.width_tables.widths import COMMAND, VARIABLE, read_tables
from tfprune.errors import PlanError, UsageError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.planning.multiples import pool_multiples, slower_widths, uses


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Makes the table of this machine: engine -> kind -> multiple."""

    def write(on=None, **engines):
        path = width_tables.write(tmp_path / "widths.json", on, **engines)
        monkeypatch.setenv(VARIABLE, str(path))
        return path

    return write


def network():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(24, 3, padding="same", name="three")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(40, 1, name="one")(x)
    x = layers.ReLU()(layers.DepthwiseConv2D(3, name="depthwise")(x))
    x = layers.Conv2D(18, 1, name="narrow")(x)
    x = layers.Dense(20, name="dense")(layers.GlobalAveragePooling2D()(x))
    return randomize(keras.Model(inputs, layers.Dense(5, name="head")(x)))


@pytest.fixture(scope="module")
def model():
    return network()


POOLS = ("three", "one", "narrow", "dense")
KINDS = {"conv3x3": 8, "conv1x1": 4, "depthwise": 16, "inputs": 2}
EXPECTED = {"three": 8, "one": 16, "narrow": 4, "dense": 4}


def multiples(model, tables):
    graph = ChannelGraph(model)
    found = pool_multiples(graph, graph.pools(), list(tables.values()))
    return {pool.layers[0]: multiple for pool, multiple in found.items()}


def test_every_width_of_a_kernel_has_a_kind():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(6, 3, name="three")(inputs)
    x = layers.Conv2DTranspose(8, 3, name="transposed")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = layers.SeparableConv2D(10, 3, name="separable")(x)
    x = layers.Conv2D(10, 3, groups=10, name="one_each")(x)
    x = layers.Conv2D(12, 1, name="one")(x)
    model = keras.Model(inputs, layers.Dense(3, name="dense")(layers.Flatten()(x)))
    found = {}
    for use in uses(ChannelGraph(model)):
        found.setdefault(use.layer, []).append((use.kind, len(use.labels)))
    assert {layer: sorted(own) for layer, own in found.items()} == {
        "three": [("conv3x3", 6), ("inputs", 4)],
        "transposed": [("conv3x3", 8), ("inputs", 6)],
        "depthwise": [("depthwise", 8)],
        "separable": [("conv1x1", 10), ("depthwise", 16), ("inputs", 16)],
        "one_each": [("depthwise", 10)],
        "one": [("conv1x1", 12), ("inputs", 10)],
        "dense": [("conv1x1", 3), ("inputs", 12 * 4)],
    }


def test_a_pool_keeps_the_largest_of_what_its_layers_need(model, measured):
    assert multiples(model, read_tables(measured(one=KINDS))) == EXPECTED
    # What reads the channels counts as well.
    assert multiples(model, read_tables(measured(one={"inputs": 32}))) == {
        "three": 16,
        "one": 32,
        "narrow": 16,
        "dense": 16,
    }
    # Of several engines, what suits all of them.
    both = read_tables(measured(one={"conv3x3": 8, "depthwise": 2}, other={"conv3x3": 2, "conv1x1": 4}))
    assert multiples(model, both) == {"three": 8, "one": 4, "narrow": 4, "dense": 4}


def test_channels_that_stand_several_times_count_so_often(measured):
    inputs = keras.Input((4, 4, 4))
    x = layers.Conv2D(16, 3, strides=2, padding="same", name="flattened")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    tables = read_tables(measured(one={"inputs": 16}))
    assert multiples(model, tables) == {"flattened": 4}  # at four positions each
    x = layers.Conv2D(16, 3, groups=4, name="grouped")(layers.Conv2D(16, 1, name="before")(inputs))
    grouped = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    assert multiples(grouped, read_tables(measured(one={"conv3x3": 8})))["grouped"] == 2  # of every group


def levels(width, multiple):
    return [width, *range(width - 1 - (width - 1) % multiple, 0, -multiple)]


def keeps(plan):
    return {layer: len(plan.keep[layer]) for layer in POOLS}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("how", [{"macs": 0.7}, {"macs": 0.4}, {"params": 0.5}, {"ratio": 0.3}, {"ratio": 0.6}])
def test_widths_are_multiples_and_the_cost_is_as_near_as_they_allow(model, measured, scope, how):
    measured(one=KINDS)
    plan = tfprune.plan_channels(model, round_to="measured", scope=scope, **how)
    found = keeps(plan)
    widths = {layer: plan.widths[layer] for layer in POOLS}
    assert all(found[layer] in levels(widths[layer], EXPECTED[layer]) for layer in POOLS)
    cost = "params" if "params" in how else "macs"
    # By brute force: of all widths that the multiples allow, none with one layer wider by a step fits, or is nearer.
    removed = {layer: sorted(set(range(widths[layer])) - set(plan.keep[layer])) for layer in POOLS}
    wider = []
    for layer in POOLS:
        above = [level for level in levels(widths[layer], EXPECTED[layer]) if level > found[layer]]
        if above:
            fewer = {**removed, layer: removed[layer][: widths[layer] - min(above)]}
            wider.append(getattr(tfprune.ChannelPlan.from_removed(model, fewer), cost)[1])
    if "ratio" in how:
        exact = getattr(tfprune.plan_channels(model, scope=scope, **how), cost)[1]
        assert abs(getattr(plan, cost)[1] - exact) <= min(abs(own - exact) for own in wider)
    else:
        most = how[cost] * getattr(plan, cost)[0]
        assert getattr(plan, cost)[1] <= most < min(wider)


def test_the_least_that_can_be_reached_is_that_of_all_widths(model, measured):
    measured(one=KINDS)
    every = itertools.product(
        *(levels(width, EXPECTED[layer]) for layer, width in zip(POOLS, (24, 40, 18, 20), strict=True))
    )
    costs = []
    for kept in every:
        removed = {
            layer: range(keep, model.get_layer(layer).kernel.shape[-1]) for layer, keep in zip(POOLS, kept, strict=True)
        }
        costs.append(tfprune.ChannelPlan.from_removed(model, removed).macs)
    least = min(after / before for before, after in costs)
    with pytest.raises(PlanError, match=rf"macs=0.02 cannot be reached: .* minimum {least:.3f} of the MACs are left"):
        tfprune.plan_channels(model, macs=0.02, round_to="measured")
    plan = tfprune.plan_channels(model, macs=least + 1e-6, round_to="measured")
    assert plan.macs[1] / plan.macs[0] == pytest.approx(least)
    # A ratio that widths cannot follow is followed as far as they go.
    plan = tfprune.plan_channels(model, ratio=0.99, round_to="measured", min_channels=1)
    assert plan.macs[1] / plan.macs[0] == pytest.approx(least)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_goes_are_the_least_important_of_every_layer(model, measured, scope):
    measured(one=KINDS)
    plan = tfprune.plan_channels(model, macs=0.5, round_to="measured", scope=scope)
    for layer, keep in keeps(plan).items():
        kernel = model.get_layer(layer).kernel.numpy()
        norms = np.abs(kernel).reshape(-1, kernel.shape[-1]).sum(axis=0)
        if layer not in ("one",):  # coupled to the depthwise layer, whose weights count too
            assert plan.keep[layer] == tuple(np.sort(np.argsort(norms)[-keep:]))


def test_widths_go_up_and_down_where_a_number_only_rounds_up(model, measured):
    measured(one={"conv1x1": 16})
    up, both = (tfprune.plan_channels(model, 0.5, round_to=rounding) for rounding in (16, "measured"))
    assert keeps(up) == {"three": 16, "one": 32, "narrow": 16, "dense": 16}
    exact = tfprune.plan_channels(model, 0.5)
    assert abs(both.macs[1] - exact.macs[1]) < up.macs[1] - exact.macs[1]
    assert any(keeps(both)[layer] < keeps(up)[layer] for layer in POOLS)
    assert both.origin["round_to"] == "measured"


@pytest.mark.parametrize(
    ("multiple", "expected"), [(16, (16, 8, 16)), (32, (16, 8, 32)), (4, (4, 4, 4)), (1, (1, 1, 1))]
)
def test_narrow_layers_can_lose_channels_too(measured, multiple, expected):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(24, 3, name="a")(inputs)
    x = layers.Conv2D(10, 3, name="b")(x)
    x = layers.Conv2D(64, 3, name="c")(x)
    x = layers.Conv2D(1, 1, name="d")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))
    tables = read_tables(measured(one={"conv3x3": multiple}))
    assert tuple(multiples(model, tables).values()) == (*expected, 1)
    # Where what reads them counts in as much, nothing gets faster by it.
    all_alike = read_tables(measured(one={"conv3x3": 32, "conv1x1": 32, "inputs": 32}))
    assert tuple(multiples(model, all_alike).values()) == (32, 32, 32, 32)
    measured(one={"conv3x3": multiple})
    kept = tfprune.plan_channels(model, 0.5, round_to="measured").keep
    assert all(len(kept[layer]) % m == 0 for layer, m in zip("abc", expected, strict=True))


def test_steps_that_are_too_coarse_are_told(measured):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(24, 3, name="a")(inputs)
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))
    measured(one={"conv3x3": 16})
    with pytest.raises(PlanError, match=r"ratio=0.05 removes no channel at all.*round_to"):
        tfprune.plan_channels(model, 0.05, round_to="measured")


def test_layers_without_a_ratio_of_their_own_pay_for_nothing(model, measured):
    measured(one=KINDS)
    plan = tfprune.plan_channels(model, ratios={"three": 0.5}, round_to="measured")
    assert keeps(plan) == {"three": 16, "one": 40, "narrow": 18, "dense": 20}


def test_steps_keep_multiples_and_meet_the_budget(model, measured):
    measured(one=KINDS)
    plan = tfprune.plan_channels(model, macs=0.5, round_to="measured", steps=3)
    assert plan.macs[1] <= 0.5 * plan.macs[0]
    assert all(found in levels(plan.widths[layer], EXPECTED[layer]) for layer, found in keeps(plan).items())


def test_inputs_of_unknown_size_go_by_the_params(measured):
    measured(one=KINDS)
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(32, 3, name="a")(layers.Conv2D(32, 3, name="b")(inputs))
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))
    exact, plan = (tfprune.plan_channels(model, 0.4, **how) for how in ({}, {"round_to": "measured"}))
    assert plan.params[1] == pytest.approx(exact.params[1], rel=0.15)
    assert all(len(plan.keep[layer]) % 8 == 0 for layer in "ab")


def test_a_plan_by_engine_is_proved_saved_and_loaded(model, measured, tmp_path):
    measured(one=KINDS)
    plan = tfprune.plan_channels(model, macs=0.5, round_to="measured", engine="one")
    assert (plan.origin["round_to"], plan.origin["engine"]) == ("measured", "one")
    tfprune.verify(model, plan)
    plan.save(tmp_path / "plan.json")
    assert tfprune.load_plan(tmp_path / "plan.json") == plan


def test_the_engines_of_the_package_are_names_to_round_to(model):
    for engine in ("keras", "saved_model", "litert", "onnxruntime", "openvino"):
        plan = tfprune.plan_channels(model, macs=0.9, round_to=engine)
        assert plan.macs[1] <= 0.9 * plan.macs[0]
        assert plan.origin["round_to"] == engine


def test_a_table_of_another_processor_is_told(model, measured):
    measured(on="Z80", one=KINDS)
    notes = tfprune.plan_channels(model, 0.5, round_to="measured").notes
    (note,) = (note for note in notes if "Z80" in note)
    assert note.startswith("the widths that one likes were measured on Z80, this is ")
    assert COMMAND in note
    measured(one=KINDS)
    assert not any("were measured on" in note for note in tfprune.plan_channels(model, 0.5, round_to="measured").notes)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"round_to": "tensorrt"}, "round_to='tensorrt' must be a whole number of at least 1, an engine ('keras', "),
        ({"round_to": "8"}, "round_to='8' must be a whole number"),
        ({"round_to": 1.5}, "round_to=1.5 must be a whole number of at least 1"),
        ({"round_to": "measured", "engine": "two"}, "Unknown engine 'two'. Valid: 'one'"),
        ({"round_to": "litert", "engine": "litert"}, "engine='litert' goes with latency= or round_to='measured'"),
        ({"engine": "litert"}, "give its name as round_to="),
    ],
)
def test_what_cannot_be_rounded_to_is_told_in_one_line(model, measured, how, words):
    measured(one=KINDS)
    with pytest.raises(PlanError) as told:
        tfprune.plan_channels(model, 0.5, **how)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_a_machine_that_was_not_measured_is_told(model, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match=r"There is no width table .*bench --only=widths"):
        tfprune.plan_channels(model, 0.5, round_to="measured")


@pytest.fixture
def slow_off_4(tmp_path):
    seconds = (4, width_tables.leaves_the_fast_way(4, 4.0))
    path = tmp_path / "slow.json"
    path.write_text(json.dumps(width_tables.content({"one": {"depthwise": seconds}})))
    return path


def test_layers_that_get_slower_are_told_by_the_table(model, slow_off_4):
    def plan(channels):
        return tfprune.ChannelPlan.from_removed(model, {"one": range(channels)})

    (note,) = slower_widths(model, plan(1), "one", slow_off_4)
    assert "slower in one than unpruned" in note
    assert "depthwise (40 -> 39 channels: 3.9 x the time); round_to='one' avoids it" in note
    assert slower_widths(model, plan(4), "one", slow_off_4) == []
    assert slower_widths(model, plan(31), "one", slow_off_4) == []  # 9 channels, each 4 x as slow, of 40
    (note,) = slower_widths(model, plan(29), "one", slow_off_4)
    assert "40 -> 11 channels: 1.1 x" in note


def test_what_gets_slower_on_another_processor_says_so(model, tmp_path):
    seconds = (4, width_tables.leaves_the_fast_way(4, 4.0))
    path = tmp_path / "slow.json"
    path.write_text(json.dumps(width_tables.content({"one": {"depthwise": seconds}}, on="Z80")))
    notes = slower_widths(model, tfprune.ChannelPlan.from_removed(model, {"one": [0]}), "one", path)
    assert [("slower in one" in note, "Z80" in note) for note in notes] == [(True, False), (False, True)]


def test_a_plan_by_an_engine_has_nothing_slower_there(model):
    for engine in ("litert", "onnxruntime", "openvino", "saved_model"):
        for macs in (0.7, 0.85):
            plan = tfprune.plan_channels(model, macs=macs, round_to=engine)
            assert slower_widths(model, plan, engine) == []
