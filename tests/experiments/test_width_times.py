import keras
import pytest

from tfprune.engines.names import ENGINE_NAMES
from tfprune.engines.width_tables.widths import KINDS, best_multiple
from tfprune.experiments import width_times


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_every_kind_of_layer_is_timed_at_every_width(engine, monkeypatch):
    monkeypatch.setattr(width_times, "_SIDE", 4)
    monkeypatch.setattr(width_times, "_DEPTHWISE_SIDE", 4)
    found = width_times.times(engine, rounds=4, blocks=(32,))
    assert tuple(found) == KINDS
    for own in found.values():
        assert set(own["seconds"]) == {32, *(32 + rest for rest in width_times._RESTS)}
        assert own["noise"] >= 0
        best_multiple(own["seconds"], own["noise"])  # which needs all of these


@pytest.mark.parametrize("first", [True, False])
def test_the_networks_have_the_widths_that_they_are_named_by(first):
    axis = 1 if first else -1
    shapes = {}
    for kind in KINDS:
        model = width_times._network(kind, 40, first)
        shapes[kind] = (model.input_shape[axis], model.output_shape[axis])
        kinds = [layer for layer in model.layers if layer.weights]
        assert len(kinds) == (4 if kind == "depthwise" else 1)
        assert all(isinstance(layer, keras.layers.DepthwiseConv2D) == (kind == "depthwise") for layer in kinds)
        size = (1, 1) if kind == "conv1x1" else (3, 3)
        assert {layer.kernel_size for layer in kinds} == {size}
    assert shapes == {"conv3x3": (64, 40), "conv1x1": (256, 40), "inputs": (40, 64), "depthwise": (40, 40)}
