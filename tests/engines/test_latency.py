import keras
import numpy as np
import pytest

from tests.helpers import plain_cnn, residual_cnn
from tfprune.engines import latency
from tfprune.engines.catalog import ENGINES
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


@pytest.mark.parametrize("engine", ["saved_model", "litert", "onnxruntime", "openvino"])
def test_every_engine_is_timed_with_the_whole_batch(engine, monkeypatch):
    seen = []
    kind = type(ENGINES[engine])
    load = kind.load

    def noted(*args):
        run = load(*args)

        def once(inputs):
            seen.append([value.shape for value in inputs])
            return run(inputs)

        return once

    monkeypatch.setattr(kind, "load", noted)
    model = residual_cnn()
    before, after = latency.measure_latency(model, model, engine=engine, batch_size=3, n=6, warm_up=1)
    assert seen == [[(3, *model.inputs[0].shape[1:])]] * (2 + 2 * 7)  # one each to see whether it runs
    assert before.median > 0
    assert after.speedup(before).low <= after.speedup(before).ratio <= after.speedup(before).high


def test_an_engine_that_is_not_installed_is_told_with_its_extra(monkeypatch):
    monkeypatch.setattr(ENGINES["openvino"].__class__, "packages", ("no_such_package",))
    with pytest.raises(UsageError, match=r"no_such_package, which is not installed: pip install 'tfprune\[openvino\]'"):
        latency.measure_latency(plain_cnn(), engine="openvino")


def of(*seconds):
    return latency.Latency(float(np.median(seconds)), 0.0, len(seconds), tuple(seconds))


def test_the_speedup_is_that_of_the_passes_one_by_one():
    # Both get slower by far in the end; no pass is less than 1.9 x or more than 2.2 x as fast.
    before = of(2.0, 2.1, 2.2, 1.9, 2.0, 20.0, 21.0, 19.0)
    after = of(1.0, 1.0, 1.0, 1.0, 1.0, 10.0, 10.0, 10.0)
    found = after.speedup(before)
    assert found.ratio == pytest.approx(2.0)
    # Of eight values, the interval of the median from the first to the last has 1 - 2 / 2^8 = 99.2 %, from the second
    # to the seventh 93 %: too little.
    assert (found.low, found.high) == pytest.approx((1.9, 2.2))
    assert str(found) == "2.00 x as fast (95 % interval 1.90 to 2.20)"


def test_five_passes_are_too_few_for_an_interval():
    found = of(1.0, 1.0, 1.0, 1.0, 1.0).speedup(
        of(2.0, 2.0, 2.0, 2.0, 2.0)
    )  # from first to last: 1 - 2 / 2^5 = 93.75 %
    assert np.isnan(found.low + found.high)
    assert str(found) == "2.00 x as fast (too few passes for an interval)"


def test_a_speedup_of_what_was_not_timed_together_is_refused():
    with pytest.raises(UsageError, match="compares two networks that one call has timed"):
        of(1.0, 2.0).speedup(of(1.0))


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
        (
            (plain_cnn,),
            {"engine": "tensorrt"},
            "Unknown engine 'tensorrt'. Valid: 'keras', 'saved_model',",
        ),
        ((plain_cnn,), {"threads": 2}, "threads=2 cannot be set for engine='keras', because TensorFlow has them"),
        ((plain_cnn,), {"threads": 0, "engine": "litert"}, "threads=0 must be a whole number of at least 1"),
        ((plain_cnn,), {"jit_compile": True, "engine": "litert"}, "jit_compile=True is for engine='keras'"),
        ((plain_cnn, lambda: "plan"), {}, "Expected a Keras 3 model, received builtins.str"),
    ],
)
def test_nothing_to_measure_is_told(models, arguments, fragment):
    with pytest.raises(UsageError, match=fragment):
        latency.measure_latency(*(make() for make in models), **arguments)
