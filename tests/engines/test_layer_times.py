import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers import plain_cnn
from tfprune.engines import base
from tfprune.engines.catalog import engine_named
from tfprune.engines.latency import pass_in
from tfprune.engines.names import ENGINE_NAMES
from tfprune.engines.width_tables.layer_times import does_nothing, seconds_in_turns
from tfprune.errors import UsageError


def test_what_is_timed_takes_turns():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = seconds_in_turns(runs, 3)
    assert calls == list("aabb") + list("ab") * 3
    assert {name: own.shape for name, own in seconds.items()} == {"a": (3,), "b": (3,)}
    assert all((own >= 0).all() for own in seconds.values())


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_a_network_runs_in_every_engine(engine, tmp_path):
    inputs = keras.Input((3, 8, 8))
    first = layers.Conv2D(5, 3, padding="same", data_format="channels_first")
    for name, model in {
        "nothing": does_nothing(), "cnn": plain_cnn(), "first": keras.Model(inputs, first(inputs)),
    }.items():  # fmt: skip
        (output,) = pass_in(engine, model, tmp_path / name, threads=1)()
        assert np.shape(output) == (1, *model.output_shape[1:])


def test_an_engine_that_is_unknown_or_not_installed_is_told(monkeypatch):
    with pytest.raises(UsageError, match=r"Unknown engine 'tensorrt'\. Valid: 'keras', 'saved_model'"):
        engine_named("tensorrt")
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"openvino needs openvino.*pip install 'tfprune\[openvino\]'"):
        engine_named("openvino")
    engine_named("keras")
