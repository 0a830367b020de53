import pytest

from tfprune.experiments.studies import monitor
from tfprune.experiments.studies.monitor import TimeLeft


def watch(monkeypatch, callback, calls, steps):
    """Calls (epoch, batch, seconds since the call before) as the loop makes them."""
    now, last = [100.0], None
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now[0])
    callback.set_params({"steps": steps})
    for epoch, batch, seconds in calls:
        if epoch != last:
            callback.on_epoch_begin(epoch)
        now[0], last = now[0] + seconds, epoch
        callback.on_train_batch_end(batch)


@pytest.mark.parametrize(
    ("flops", "told"),
    [(9e9, "a minute or two"), (6e11, "about 10 minutes"), (1.08e13, "about 3 hours"), (2.592e14, "about 3 days")],
)
def test_the_time_left_is_told_once_at_the_speed_of_the_second_call(monkeypatch, capsys, flops, told):
    # The first call is slow; then 16 steps take 4 s, which is 1e9 FLOPs a second.
    calls = [(0, 15, 9.0), (0, 31, 4.0), (0, 47, 1.0), (1, 15, 1.0)]
    watch(monkeypatch, TimeLeft(flops_per_step=2.5e8, flops=flops), calls, steps=48)
    assert capsys.readouterr().out == f"\n{told} left, at the speed of the first steps\n"


def test_epochs_of_one_call_are_measured_too(monkeypatch, capsys):
    watch(monkeypatch, TimeLeft(1.0, 2000.0), [(3, 3, 5.0), (4, 3, 2.0), (5, 3, 2.0)], steps=4)
    assert "about 17 minutes left" in capsys.readouterr().out


def test_a_training_of_one_call_tells_nothing(monkeypatch, capsys):
    watch(monkeypatch, TimeLeft(1.0, 1.0), [(0, 3, 1.0)], steps=4)
    assert capsys.readouterr().out == ""
