import math
import re

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests import width_tables
from tests.helpers import plain_cnn, randomize
from tfprune.cost.profiling import profile
from tfprune.engines import base
from tfprune.engines.width_tables.widths import VARIABLE, widths_for
from tfprune.errors import PlanError, UsageError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.planning import latency_budget
from tfprune.planning.cutting import Cost
from tfprune.planning.latency_budget import calibrated, forecast


def network():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(24, 3, padding="same", name="a")(inputs)
    x = layers.ReLU()(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x))
    x = layers.Conv2D(40, 1, name="b")(x)
    x = layers.Dense(20, name="c")(layers.GlobalAveragePooling2D()(x))
    return randomize(keras.Model(inputs, layers.Dense(5, name="head")(x)))


def blocks(count, size):
    return math.ceil(count / size) * size


class Engine:
    """Stands in for an engine: its times follow from the widths of the layers alone.

    Attributes:
        size: It computes so many channels at once.
        call: Seconds that a call takes.
        fixed: Seconds that a whole network takes beside, whatever its widths.
    """

    def __init__(self, monkeypatch, size=1, call=0.5, fixed=0.0):
        self.size, self.call, self.fixed, self.timed = size, call, fixed, []
        monkeypatch.setattr(latency_budget, "pass_in", self.pass_in)
        monkeypatch.setattr(latency_budget, "seconds_in_turns", self.seconds_in_turns)

    def seconds(self, model):
        total = 0.0
        for layer in model.layers:
            if layer.weights:
                shape, positions = layer.kernel.shape, math.prod(layer.output.shape[1:-1])
                *window, inputs, outputs = shape
                total += math.prod(window) * blocks(inputs, self.size) * blocks(outputs, self.size) * positions
        return total + (self.fixed if len(model.layers) > 2 else 0.0)

    def pass_in(self, engine, model, folder, threads=None):
        self.timed.append(model)
        seconds = self.call + self.seconds(model)
        return lambda: seconds

    @staticmethod
    def seconds_in_turns(runs, rounds):
        return {name: np.full(rounds, run()) for name, run in runs.items()}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Makes the width table that "measured" goes by; `sizes`: kind -> multiple."""

    def write(**sizes):
        path = width_tables.write(tmp_path / "widths.json", saved_model=sizes)
        monkeypatch.setenv(VARIABLE, str(path))
        return widths_for("saved_model", path)

    return write


def in_blocks(size):
    return dict.fromkeys(("conv3x3", "conv1x1", "inputs", "depthwise"), size)


@pytest.mark.parametrize("size", [1, 8])
def test_the_forecast_of_a_network_is_what_its_layers_take(monkeypatch, table, size):
    engine, model = Engine(monkeypatch, size), network()
    found = forecast(ChannelGraph(model), "saved_model", table(**in_blocks(size)))
    graph = ChannelGraph(model)
    assert found.cost.of(graph.keep_all()) == pytest.approx(engine.seconds(model))
    assert "5 layers, timed alone at " in found.words
    for removed in ({"a": range(12)}, {"a": range(5), "b": range(23)}, {"b": range(39), "c": range(3)}):
        plan = tfprune.ChannelPlan.from_removed(model, removed)
        small = plan.apply(model)
        assert found.cost.of(plan.kept(graph)) == pytest.approx(engine.seconds(small), rel=1e-6)


def test_every_layer_is_timed_once_at_a_width(monkeypatch, table):
    engine = Engine(monkeypatch)
    inputs = x = keras.Input((8, 8, 16))
    for number in range(3):
        x = layers.Conv2D(16, 3, padding="same", name=f"same_{number}")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    forecast(ChannelGraph(model), "saved_model", table())
    # Nothing; three convolutions alike, as they are and with half of either; the head, of which the inputs may go.
    assert len(engine.timed) == 1 + 3 + 2
    names = {layer.name for layer in model.layers}
    assert names.isdisjoint({own.name for own in engine.timed})


def test_layers_that_there_is_no_time_for_count_by_their_macs(monkeypatch, table):
    engine, model = Engine(monkeypatch), network()
    monkeypatch.setattr(latency_budget, "_WRITING", 0.0)
    graph = ChannelGraph(model)
    found = forecast(graph, "saved_model", table())
    assert len(engine.timed) == 2
    # Nothing was known of any layer at all of its widths, so all go by the MACs.
    kept = tfprune.ChannelPlan.from_removed(model, {"a": range(12)}).kept(graph)
    whole, left = (found.cost.of(own) for own in (graph.keep_all(), kept))
    macs = tfprune.ChannelPlan.from_removed(model, {"a": range(12)}).macs
    assert left / whole == pytest.approx(macs[1] / macs[0])


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("target", [0.8, 0.5])
def test_the_budget_is_met_and_no_layer_can_be_wider(monkeypatch, table, scope, target):
    engine, model = Engine(monkeypatch, size=4), network()
    table(**in_blocks(4))
    plan = tfprune.plan_channels(model, latency=target, round_to="measured", scope=scope)
    whole = engine.seconds(model)
    assert engine.seconds(plan.apply(model)) <= target * whole
    for layer in "abc":
        width, kept = plan.widths[layer], len(plan.keep[layer])
        assert kept % 4 == 0
        if kept < width:
            removed = {name: sorted(set(range(plan.widths[name])) - set(plan.keep[name])) for name in "abc"}
            removed[layer] = removed[layer][4:]
            wider = tfprune.ChannelPlan.from_removed(model, removed)
            assert engine.seconds(wider.apply(model)) > target * whole
    assert plan.origin["latency"] == target
    assert plan.origin["engine"] == "saved_model"


def test_the_forecast_stands_beside_what_was_measured_of_the_whole(monkeypatch, table):
    Engine(monkeypatch, call=0.0)
    table()
    plan = tfprune.plan_channels(network(), latency=0.5, round_to="measured")
    found = re.fullmatch(
        r"latency in saved_model, of the whole network's: forecast (\S+) by 5 layers, timed alone at \d+ widths, which "
        r"took \d+ s; measured (\S+) \(quartiles \S+, \S+; \S+ -> \S+ ms, in turns, \d+ times each\)",
        plan.notes[-1],
    )
    assert found[1] == found[2]
    assert float(found[1]) == pytest.approx(0.5, abs=0.03)


def test_what_no_layer_explains_mends_the_forecast(monkeypatch, table):
    model = network()
    engine = Engine(monkeypatch, call=0.0)
    engine.fixed = 0.25 * engine.seconds(model)
    table()
    plan = tfprune.plan_channels(model, latency=0.5, round_to="measured")
    reached = engine.seconds(plan.apply(model)) / engine.seconds(model)
    assert reached == pytest.approx(0.5, abs=0.03)
    assert f"measured {reached:.2f}" in plan.notes[-1]
    # With the layers alone it would be 0.6.
    with pytest.raises(
        PlanError, match=r"latency=0.2 cannot be reached: .* 0\.2\d\d of the latency in saved_model are"
    ):
        tfprune.plan_channels(model, latency=0.2, round_to="measured")


def test_a_calibrated_cost_is_on_the_line_through_what_was_measured():
    cost = Cost("latency", "latency", lambda kept: float(kept.sum()))
    everything, half = np.ones(8, bool), np.arange(8) < 4
    mended = calibrated(cost, half, everything, 0.75)
    assert mended.of(everything) == 8.0
    assert mended.of(half) == pytest.approx(0.75 * 8)
    assert mended.of(np.arange(8) < 2) == pytest.approx((1 - 0.5 * 0.75) * 8)
    assert calibrated(cost, half, everything, 1.5).of(half) < 8.0  # it still grows with what is kept


def test_an_engine_is_rounded_for_unless_told_otherwise(monkeypatch):
    Engine(monkeypatch)
    model = network()
    kept = {
        round_to: tfprune.plan_channels(model, latency=0.75, round_to=round_to).keep for round_to in (None, 1, "litert")
    }
    multiple = widths_for("saved_model").kinds["conv1x1"].multiple
    assert len(kept[None]["c"]) in (20, multiple)
    assert tfprune.plan_channels(model, latency=0.75).origin["round_to"] == "saved_model"
    assert tfprune.plan_channels(model, latency=0.75, engine="keras").origin["round_to"] == "keras"
    assert any(len(kept[1][layer]) % 4 for layer in "abc")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"latency": 1.0}, "latency=1.0 is no number in (0, 1)"),
        ({"latency": "0.5"}, "latency='0.5' is no number in (0, 1)"),
        ({"latency": 0.5, "macs": 0.5}, "received macs and latency"),
        ({"latency": 0.5, "ratio": 0.5}, "received ratio and latency"),
        ({"latency": 0.5, "ratios": {"conv_a": 0.5}}, "without macs=, params= and latency="),
        ({"latency": 0.5, "engine": "tensorrt"}, "Unknown engine 'tensorrt'. Valid: 'keras', 'saved_model'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_measured(monkeypatch, how, words):
    engine = Engine(monkeypatch)
    with pytest.raises(PlanError) as told:
        tfprune.plan_channels(plain_cnn(), **how)
    assert words in str(told.value)
    assert "\n" not in str(told.value)
    assert engine.timed == []


def test_an_engine_that_is_not_installed_is_told_with_its_extra(monkeypatch):
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"onnxruntime needs onnx and .*pip install 'tfprune\[onnx\]'"):
        tfprune.plan_channels(plain_cnn(), latency=0.5, engine="onnxruntime")


def test_open_sizes_are_told():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Conv2D(3, 3)(layers.Conv2D(8, 3)(inputs)))
    with pytest.raises(PlanError, match=r"latency=0.5 needs inputs of known size"):
        tfprune.plan_channels(model, latency=0.5)


def heavy():
    """A network that takes long beside what it takes to call an engine."""
    inputs = x = keras.Input((32, 32, 32))
    for _ in range(4):
        x = layers.ReLU()(layers.Conv2D(64, 3, padding="same")(x))
        x = layers.DepthwiseConv2D(3, padding="same")(x)
    return randomize(keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x))))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["keras", "saved_model", "litert", "onnxruntime", "openvino"])
def test_a_plan_for_a_real_engine_is_measured_proved_and_loaded(engine, tmp_path):
    model = heavy()
    state = np.random.get_state()[1].tolist()
    plan = tfprune.plan_channels(model, latency=0.8, engine=engine, scope="global")
    assert np.random.get_state()[1].tolist() == state
    assert plan.notes[-1].startswith(f"latency in {engine}, of the whole network's: forecast 0.")
    assert profile(plan.apply(model)).macs == plan.macs[1] < plan.macs[0]
    tfprune.verify(model, plan)
    plan.save(tmp_path / "plan.json")
    assert tfprune.load_plan(tmp_path / "plan.json") == plan
