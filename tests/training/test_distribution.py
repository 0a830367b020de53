"""Strategies with several replicas or workers have to be set up before anything else: each in a process of its own."""

import os
import re
import subprocess
import sys
from fnmatch import fnmatch

import pytest
import tensorflow as tf

from tests.processes import ROOT, finish, free_ports, last_json, start, start_workers
from tfprune.errors import UsageError
from tfprune.training.distribution import agree, make_strategy, worker_index

FOLDERS = ("", "workers/1/")  # of the stages of two workers

# One process.


def test_one_device_is_the_default(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name in ("auto", "one_device"):
        strategy = make_strategy(name)
        assert strategy.num_replicas_in_sync == 1
        assert worker_index(strategy) == 0
        assert agree(strategy, True) is True
        assert agree(strategy, False) is False


def test_an_unknown_strategy_gets_the_nearest_name():
    with pytest.raises(UsageError, match=r"'mirored'.*'mirrored'.*multi_worker"):
        make_strategy("mirored")


@pytest.mark.parametrize(
    "config", [None, "", "{", "[]", "null", '"text"', '{"cluster": {}}', '{"cluster": {}, "task": {"type": "worker"}}']
)
def test_a_cluster_that_cannot_be_read_is_told_with_an_example(config, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UsageError, match=r'TF_CONFIG.*\{"cluster": \{"worker": \["host1') as error:
        make_strategy("multi_worker")
    assert "\n" not in str(error.value)


def test_auto_goes_by_tf_config(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(UsageError, match="TF_CONFIG"):
        make_strategy("auto")


@pytest.mark.parametrize(
    ("kind", "index", "expected"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 2, 3), (None, None, 0)]
)
def test_the_chief_comes_before_the_workers(kind, index, expected):
    class Strategy:
        cluster_resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"chief": ["a:1"], "worker": ["b:1", "c:1", "d:1"]}), task_type=kind, task_id=index
        )

    assert worker_index(Strategy()) == expected


def test_without_a_chief_the_first_worker_is_it():
    class Strategy:
        cluster_resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": ["b:1", "c:1"]}), task_type="worker", task_id=0
        )

    assert worker_index(Strategy()) == 0


# Two devices.

MIRRORED = """
two_devices()
import keras, numpy as np, tensorflow as tf
from tfprune.errors import DivergedError, UsageError
from tfprune.training.distribution import make_strategy, worker_index
from tfprune.training.optimizer import CoupledSGD
from tfprune.training.schedules import Schedule

mirrored, one = make_strategy("mirrored"), make_strategy("one_device")
report = {"replicas": mirrored.num_replicas_in_sync, "worker": worker_index(mirrored)}
report["one"] = train(one, normalize=False, held_out=0.25)[1].history
report["mirrored"] = train(mirrored, normalize=False, held_out=0.25)[1].history

def spread(trainer):
    copies = [[copy.numpy() for copy in v.value.values] for v in trainer.model.variables]
    assert all(len(copy) == 2 for copy in copies)
    return max(float(np.abs(a - b).max()) for a, b in copies)

for precision in ("float32", "mixed_bfloat16", "mixed_float16"):
    trainer, result = train(mirrored, normalize=True, precision=precision)
    report[f"history {precision}"] = result.history
    report[f"spread {precision}"] = spread(trainer)
    moving = trainer.model.get_layer("bn").moving_variance
    report[f"moved {precision}"] = float(np.abs(moving.numpy() - 1).max())

trainer, result = train(mirrored, normalize=False, held_out=0.25, xla=True)
report["xla"], report["spread xla"] = result.history, spread(trainer)

# The plain model with the returned weights has the accuracy that was told.
model, data = make_model(True), make_data()
trainer, result = train(mirrored, normalize=True)
model.set_weights(result.weights)
images = (data.test_images / 255 - 0.4) / 0.25
hits = np.argmax(model(images.astype(np.float32), training=False), -1) == data.test_labels
report["accuracy"] = [float(hits.mean()), result.history[-1]["val_accuracy"]]

# A second run on the same trainer repeats the first.
again = trainer.run(make_model(True).get_weights(), 3, Schedule(0.1, (2,)), 5)
report["repeats"] = again.history == result.history

# Gradients that are no numbers on the second replica only.
with mirrored.scope():
    weight = keras.Variable(np.float32([2.0, -3.0]))
    optimizer = CoupledSGD(momentum=0.9, scales_loss=True)
    optimizer.build([weight])
    optimizer.reset()

@tf.function
def step(bad):
    def on_replica():
        number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
        gradient = tf.where(bad & (number > 0), tf.constant([np.inf, 1.0]), tf.constant([1.0, 1.0]))
        optimizer.apply([optimizer.scaled(gradient)], [weight])
    mirrored.run(on_replica)

optimizer.learning_rate = 0.1
report["overflow"] = []
for bad in (True, False):
    step(tf.constant(bad))
    copies = [copy.numpy().tolist() for copy in weight.value.values]
    report["overflow"].append([copies, float(optimizer.loss_scale.numpy())])

try:
    train(mirrored, normalize=False, batch_size=7)
except UsageError as error:
    report["odd batch"] = str(error)
try:
    trainer.run(make_model(True).get_weights(), 2, Schedule(1e30), 5)
except DivergedError as error:
    report["diverged"] = str(error)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    (output,) = finish(start(tmp_path_factory.mktemp("mirrored"), "mirrored", MIRRORED))
    return last_json(output)


def test_two_replicas_have_the_losses_of_one_device_without_normalization(mirrored):
    assert (mirrored["replicas"], mirrored["worker"]) == (2, 0)
    assert len(mirrored["one"]) == 3
    assert "validation_loss" in mirrored["one"][0]
    for one, other in zip(mirrored["one"], mirrored["mirrored"], strict=True):
        assert other == pytest.approx(one, abs=1e-5)


def test_two_replicas_with_xla_have_the_losses_of_one_device_without(mirrored):
    for one, other in zip(mirrored["one"], mirrored["xla"], strict=True):
        assert other == pytest.approx(one, abs=1e-5)
    assert mirrored["spread xla"] == 0


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_two_replicas_train_with_normalization_and_end_equal(mirrored, precision):
    history = mirrored[f"history {precision}"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert mirrored[f"spread {precision}"] == 0
    assert mirrored[f"moved {precision}"] > 0.1


def test_the_accuracy_of_two_replicas_is_that_of_the_plain_model(mirrored):
    plain, told = mirrored["accuracy"]
    assert told == pytest.approx(plain, abs=1e-6)


def test_two_replicas_repeat_themselves(mirrored):
    assert mirrored["repeats"]


def test_an_overflow_on_one_replica_keeps_all_where_they_are(mirrored):
    (left_out, after), (taken, scale) = mirrored["overflow"]
    assert left_out == [[2.0, -3.0]] * 2
    assert after == scale == 2.0**14
    assert taken == [pytest.approx([1.8, -3.2])] * 2  # 0.1 times the sum of both gradients


def test_a_batch_that_does_not_divide_is_refused(mirrored):
    assert "batch_size=7" in mirrored["odd batch"]
    assert "2 replicas" in mirrored["odd batch"]


def test_divergence_is_told_on_two_replicas_too(mirrored):
    assert "epoch 1" in mirrored["diverged"]
    assert "1e+30" in mirrored["diverged"]


MIRRORED_COMMAND = """
two_devices()
from tfprune.experiments.run import main
status = main(["--smoke", "--strategy=mirrored", "--model=vgg11", "--width=.05", "--workdir=w", "--noexport"])
print(json.dumps({"status": status}))
"""


@pytest.mark.slow
def test_the_command_runs_on_two_devices(tmp_path):
    (output,) = finish(start(tmp_path, "command", MIRRORED_COMMAND))
    assert last_json(output) == {"status": 0}
    assert "2 CPU replicas" in output
    assert len((tmp_path / "w" / "results.csv").read_text(encoding="utf-8").splitlines()) == 6


# Two workers.

WORKER = """
from tfprune.training.distribution import agree, make_strategy, worker_index
strategy = make_strategy("auto")
index = worker_index(strategy)
report = {"index": index, "replicas": strategy.num_replicas_in_sync}
report["agree"] = [agree(strategy, flag) for flag in (True, False, index == 0, index == 1)]
trainer, result = train(strategy, normalize=True)
report["history"] = result.history
report["weights"] = [weight.tolist() for weight in result.weights]
report["plain"] = train(strategy, normalize=False)[1].history
print(json.dumps(report))
"""
ONE_DEVICE = """
from tfprune.training.distribution import make_strategy
print(json.dumps(train(make_strategy("one_device"), normalize=False)[1].history))
"""


@pytest.mark.slow
def test_two_workers_train_together_and_end_equal(tmp_path):
    workers = start_workers(tmp_path, "worker", WORKER)
    outputs = finish(*workers, start(tmp_path, "one", ONE_DEVICE))
    first, second, one = map(last_json, outputs)
    assert [first.pop("index"), second.pop("index")] == [0, 1]
    assert first == second  # the same history and weights, to the last bit
    assert first["replicas"] == 2
    assert first["agree"] == [True, False, False, False]
    assert first["history"][-1]["loss"] < first["history"][0]["loss"]
    for expected, received in zip(one, first["plain"], strict=True):
        assert received == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_the_command_of_the_page_runs_on_two_workers_and_only_the_chief_writes_results(tmp_path):
    text = (ROOT / "docs" / "distribution.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```bash\n(for .*?)^```", text, re.MULTILINE | re.DOTALL)
    for told, free in zip(("12345", "12346"), free_ports(2), strict=True):
        assert told in block
        block = block.replace(told, str(free))
    done = subprocess.run(
        ["bash", "-c", f'python() {{ "{sys.executable}" "$@" || echo "status $?"; }}\n{block}'],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert "status" not in done.stdout, done.stderr[-3000:]
    assert done.stdout.count("seed 0: train sparse, 1 epoch") == 1  # the others are silent
    assert "2 CPU replicas" in done.stdout
    written = {path.relative_to(tmp_path / "two_workers").as_posix() for path in tmp_path.rglob("*")}
    assert {name for name in written if name.endswith(("results.csv", "report.md"))} == {"results.csv", "report.md"}
    rows = (tmp_path / "two_workers" / "results.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 6
    finished = [sorted(name.removeprefix(p) for name in written if fnmatch(name, f"{p}stages/*/DONE")) for p in FOLDERS]
    assert finished[0] == finished[1]
    assert len(finished[0]) == 6
    assert {name.split("/")[2] for name in written if name.startswith("workers/1/")} <= {
        "stages",
        "locks",
        "unfinished",
    }
    assert len([name for name in written if name.endswith("model.keras")]) == 5


KILLED = """
import sys
from pathlib import Path
from tfprune.training.distribution import make_strategy, worker_index
from tfprune.training.schedules import Schedule
strategy = make_strategy("multi_worker")
worker = worker_index(strategy)
import keras
from tfprune.training.loop import Trainer, TrainingConfig

class Pause(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if sys.argv[1] == "killed" and self.epoch == 2:
            import os
            os._exit(9)  # in the middle of the third epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        begun.append(epoch)
        if worker:
            import time
            time.sleep(0.05)  # the other one is faster, which must not matter

begun = []
model, data = make_model(True), make_data()
trainer = Trainer(model, data, TrainingConfig(batch_size=2), strategy)
state = Path(f"state{worker}.npz") if sys.argv[1] != "whole" else None
result = trainer.run(model.get_weights(), 6, Schedule(0.1, (4,)), 5, [Pause()], checkpoint=state)
print(json.dumps({"begun": begun, "history": result.history, "sums": [float(w.sum()) for w in result.weights]}))
"""


@pytest.mark.slow
def test_two_workers_that_are_killed_go_on_together(tmp_path):
    for process in start_workers(tmp_path, "killed", KILLED, "killed"):
        process.communicate(timeout=240)
        assert process.returncode == 9
    whole = [last_json(output) for output in finish(*start_workers(tmp_path, "whole", KILLED, "whole"))]
    resumed = [last_json(output) for output in finish(*start_workers(tmp_path, "resumed", KILLED, "resumed"))]
    for one, other in zip(whole, resumed, strict=True):
        assert (one["begun"], other["begun"]) == ([0, 1, 2, 3, 4, 5], [2, 3, 4, 5])
        assert (one["history"], one["sums"]) == (other["history"], other["sums"])
