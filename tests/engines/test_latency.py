import keras
import numpy as np
import pytest

from tests.helpers import plain_cnn, residual_cnn
from tfprune.engines import latency
from tfprune.errors import UsageError


def test_measures_a_real_network():
    measured = latency.measure_latency(plain_cnn(), batch_size=2, n=4, warm_up=1)
    assert measured.n == 4
    assert 0 < measured.median < 5
    assert measured.iqr >= 0
    assert str(measured).endswith("n=4)")
    assert f"{measured.median * 1000:.2f} ms" in str(measured)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = [keras.layers.Dense(4), keras.layers.Dense(3)]

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x


def test_measures_a_subclassed_network_that_was_trained():
    model = Subclassed()
    model(np.zeros((2, 5), "float32"))
    model.compile("sgd", "mse")
    model.fit(np.zeros((2, 5)), np.zeros((2, 3)), verbose=0)
    assert latency.measure_latency(model, batch_size=2, n=2, warm_up=1).median > 0


def test_several_networks_take_turns_and_get_one_answer_each(monkeypatch):
    order, models = [], (plain_cnn(), residual_cnn())
    monkeypatch.setattr(latency, "compiled_pass", lambda model, *_: lambda: order.append(model))
    first, second = latency.measure_latency(*models, n=3, warm_up=2)
    assert order == [*models] * 5
    assert first.n == second.n == 3


def test_median_and_quartiles_leave_the_warm_up_out(monkeypatch):
    durations = [900.0, 800.0, 1.0, 5.0, 2.0, 9.0]
    ticks = iter(np.cumsum([step for duration in durations for step in (0.0, duration)]).tolist())
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(latency, "compiled_pass", lambda *_: lambda: None)
    measured = latency.measure_latency(plain_cnn(), n=4, warm_up=2)
    assert measured.median == pytest.approx(3.5)
    # Of 1, 2, 5, 9, linearly interpolated: the quartiles are 1.75 and 6.
    assert measured.iqr == pytest.approx(4.25)


def test_a_pass_runs_the_network_on_the_whole_batch():
    outputs = latency.compiled_pass(residual_cnn(classes=4), 6, False)()
    assert [output.shape for output in outputs] == [(6, 4)]


@pytest.mark.parametrize(
    ("models", "arguments", "fragment"),
    [
        ((), {}, "received no network"),
        ((plain_cnn,), {"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ((plain_cnn,), {"n": 0}, "n=0 must be a whole number of at least 1"),
        ((plain_cnn,), {"n": 1.5}, "n=1.5 must be a whole number"),
        ((plain_cnn,), {"warm_up": -1}, "warm_up=-1 must be a whole number of at least 0"),
        ((lambda: None,), {}, "Expected a Keras 3 model, received builtins.NoneType"),
        ((plain_cnn, lambda: "plan"), {}, "Expected a Keras 3 model, received builtins.str"),
    ],
)
def test_nothing_to_measure_is_told(models, arguments, fragment):
    with pytest.raises(UsageError, match=fragment):
        latency.measure_latency(*(make() for make in models), **arguments)
