import csv
import dataclasses
import json
import math
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from tfprune.errors import TfpruneError, UsageError
from tfprune.experiments.bench import __main__ as command
from tfprune.experiments.bench import fits, methods, outputs, pruned, studies, surgery, tfmot_fits, training
from tfprune.experiments.bench.rows import COST, SPEED, Row
from tfprune.experiments.bench.timing import Times
from tfprune.experiments.bench.trainers import BATCH_SIZE, TimedTrainer, random_data
from tfprune.models import build_model


def times(drift=0.0):
    return Times({"base": np.asarray([2.0, 4.0, 2.0]), "own": np.asarray([1.0, 1.0, 4.0])}, {"base": drift})


@pytest.mark.parametrize(
    ("measure", "ratio", "target", "met"),
    [(SPEED, 2.0, 2.0, True), (SPEED, 2.0, 2.1, False), (COST, 0.5, 0.5, True), (COST, 0.5, 0.4, False),
     (SPEED, 2.0, None, None)],
)  # fmt: skip
def test_a_row_tells_whether_its_target_is_met(measure, ratio, target, met):
    row = Row.of("training", times(), "own", "base", measure, target=target)
    assert (row.ratio, row.met, row.value) == (ratio, met, "1.00 s")
    assert Row.stored(json.loads(json.dumps(row.__dict__))) == row


def test_a_row_without_a_ratio_meets_nothing_and_says_why():
    row = Row.of("training", times(drift=0.07), "own", "base", SPEED, target=1.0)
    assert (row.ratio, row.met) == (None, None)
    assert row.note == "withheld: base drifted by +7%"
    assert row.cells()[4:8] == ["-", "1.75", "≥ 1", ""]


def test_groups_are_stored_beside_each_other(tmp_path):
    first = Row("surgery", "plan", "0.1 s", COST, 0.5, target=1.0, value="50 ms")
    outputs.store(tmp_path, "surgery", [first])
    missed = Row("training", "step", "fit", SPEED, 1.2, 0.1, target=1.25, value="9 images/s", note="convolutions")
    outputs.store(tmp_path, "training", [missed, Row("training", "other", "fit", SPEED, 1.5)])
    text = outputs.store(tmp_path, "training", [missed])
    stored = json.loads((tmp_path / "bench.json").read_text())
    assert [(row["group"], row["name"], row["ratio"], row["target"], row["met"]) for row in stored] == [
        ("training", "step", 1.2, 1.25, False),
        ("surgery", "plan", 0.5, 1.0, True),
    ]
    assert {"baseline", "iqr"} <= set(stored[0])
    with open(tmp_path / "bench.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["step", "plan"]
    page = (tmp_path / "bench.md").read_text()
    assert "1 targets met, 1 missed, 0 withheld, 0 ratios without a target" in page
    for part in ("step: convolutions", "≥ 1.25", "**no**"):
        assert part in page
    assert "step" in text
    assert {"processor", "cores", "packages", "threads"} <= set(
        json.loads((tmp_path / "machine.json").read_text())["training"]
    )


@pytest.mark.parametrize(
    "content", ["{", "{}", "[1]", '[{"group": "training"}]',
                '[{"group": "mine", "name": "", "baseline": "", "measure": "speed", "ratio": 1}]',
                '[{"group": "training", "name": "", "baseline": "", "measure": "speed", "ratio": 1}]'],
)  # fmt: skip
def test_other_files_of_that_name_are_left_alone(tmp_path, content):
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(UsageError, match="another --workdir"):
        outputs.store(tmp_path, "training", [])
    assert (tmp_path / "bench.json").read_text() == content


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--only=trainig"], "training"), (["--only="], "Valid: training"), (["now"], "Unexpected argument 'now'")],
)
def test_mistakes_are_told_in_one_line(arguments, told, tmp_path, capsys):
    assert command.main([*arguments, f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_bare_steps_take_one_batch_and_epochs_take_all(monkeypatch):
    data = random_data(steps=3)
    model = build_model("vgg16", data.input_shape, 10, 1 / 16)
    trainers = [TimedTrainer(model, data, bare=bare) for bare in (True, False)]
    bare, whole = ([t._train.batch(t._train.take(t._train.epoch(0, 0), i)) for i in range(3)] for t in trainers)
    images = [[np.asarray(batch[0]) for batch in batches] for batches in (bare, whole)]
    assert images[0][0].shape == (BATCH_SIZE, 32, 32, 3)
    np.testing.assert_array_equal(images[0][0], images[1][0])
    np.testing.assert_array_equal(images[0][0], images[0][2])
    assert np.abs(images[1][0] - images[1][2]).max() > 1
    trainer = trainers[0]
    trainer.prepare()
    before = int(trainer.model.optimizer.iterations.numpy())
    trainer()
    assert int(trainer.model.optimizer.iterations.numpy()) - before == 3


def test_training_is_beside_fit(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "_NETWORKS", (training._Network("vgg16", 1 / 16, 2, 1e-6, 1.0),))
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    rows = list(training.measure(True, tmp_path))
    assert [(row.name, row.baseline, row.measure) for row in rows] == [
        ("vgg16 x 0.0625, bare steps", "Keras fit", SPEED),
        ("vgg16 x 0.0625, epoch with augmentation", "Keras fit with augmentation", SPEED),
        ("vgg16 x 0.0625, epoch with augmentation", "bare steps", COST),
    ]
    assert re.fullmatch(r"[\d,]+ and [\d,]+ images/s", rows[0].value)
    assert rows[0].target == 1e-6
    assert rows[0].met in (True, None)  # None where the machine does not hold still


def test_a_process_of_pytorch_that_dies_is_told(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    steps = training._TorchSteps(training._Network("vgg16", 1.0, 2), 2, "NCHW")
    steps._process.wait()
    with pytest.raises(TfpruneError, match="PyTorch's process ended"), steps:
        steps()


@pytest.mark.parametrize(("name", "width"), [(n.name, n.width) for n in training._NETWORKS])
def test_networks_of_pytorch_are_the_same(name, width):
    torch = pytest.importorskip("torch", reason="PyTorch is a peer, no dependency")
    from tfprune.experiments.bench import torch_networks

    own = build_model(name, (32, 32, 3), 10, width)
    theirs = torch_networks.build(name, width, 10)
    assert sum(p.numel() for p in theirs.parameters()) == sum(math.prod(w.shape) for w in own.trainable_weights)
    assert theirs(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.slow
def test_methods_are_beside_the_plain_loop(monkeypatch, tmp_path):
    monkeypatch.setattr(methods, "random_data", lambda steps: random_data(2))
    monkeypatch.setattr(
        methods, "build_model", lambda name, shape, classes, width=1.0: build_model(name, shape, classes, 1 / 16)
    )
    rows = list(methods.measure(True, tmp_path))
    assert [row.target for row in rows] == [1.03, 1.05, None, None, 1.03, None]
    assert len({row.name for row in rows}) == 6
    assert {row.baseline for row in rows} == {"the plain loop"}
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_sparse_training_is_beside_fit_and_beside_tfmot(monkeypatch, tmp_path):
    (_, network) = fits._NETWORKS
    monkeypatch.setattr(fits, "_NETWORKS", (dataclasses.replace(network, steps=2, batch_size=4),))
    rows = list(fits.measure(True, tmp_path))
    assert [(row.name, row.baseline, row.target) for row in rows] == [
        ("dense, fixed masks", "Keras fit", 1.05),
        ("dense, gradual", "Keras fit", 1.08),
        ("dense, slimming", "Keras fit", 1.03),
        ("dense, TFMOT's fixed masks", "tf_keras fit", None),
        ("dense, TFMOT's gradual", "tf_keras fit", None),
    ]
    assert all(re.fullmatch(r"[\d.]+ and [\d.]+ ms a step", row.value) for row in rows)


def test_every_round_of_gradual_pruning_has_a_cut():
    assert [network.steps % fits._FREQUENCY for network in fits._NETWORKS] == [0, 0]


def test_networks_of_both_keras_are_the_same():
    import tf_keras

    own = {"dense": tfmot_fits.dense(keras), "resnet20": build_model("resnet20", (32, 32, 3), 10)}
    for name, model in own.items():
        theirs = tfmot_fits.BUILDERS[name](tf_keras)
        shapes = [sorted(tuple(w.shape) for w in network.weights) for network in (model, theirs)]
        assert shapes[0] == shapes[1]
        generator = np.random.default_rng(0)
        values = {shape: generator.normal(0.0, 0.2, shape) for shape in shapes[0]}
        for network in (model, theirs):
            network.set_weights([np.abs(values[tuple(w.shape)]) for w in network.weights])
        inputs = generator.normal(size=(2, *model.input_shape[1:])).astype("float32")
        np.testing.assert_allclose(model(inputs), theirs(inputs), rtol=1e-4)


@pytest.mark.slow
def test_surgery_is_beside_cloning_and_limits(monkeypatch, tmp_path):
    monkeypatch.setattr(surgery, "_QUICK", ("MobileNetV2",))
    monkeypatch.setattr(
        surgery, "_SIZES", {"layers": (surgery._branches, (4, 40)), "channels": (surgery._broad, (10, 100))}
    )
    monkeypatch.setattr(surgery, "_MOST_SECONDS", 1e-6)
    monkeypatch.setattr(surgery, "_MOST_SECONDS_DEEP", 1e-6)
    rows = list(surgery.measure(True, tmp_path))
    plan, prune, verify, *growth = rows
    assert plan.name == "MobileNetV2 (156 layers, 4 M params), plan"
    assert (plan.baseline, plan.target, plan.met) == ("1e-06 s", 1.0, False)
    assert re.fullmatch(r"of it \S+ ms make the graph, and \S+ ms read and rank 4 M weights", plan.note)
    assert (prune.baseline, prune.target) == ("clone_model", 3.0)
    assert verify.ratio > 0
    assert [(row.name, row.baseline, row.target) for row in growth] == [
        ("plan, 40 layers", "4 layers", 15.0), ("plan + apply, 40 layers", "4 layers", 15.0),
        ("plan, 100 channels", "10 channels", 15.0), ("plan + apply, 100 channels", "10 channels", 15.0),
    ]  # fmt: skip


def test_synthetic_networks_have_the_sizes_they_are_named_by():
    branches, broad = surgery._branches(20), surgery._broad(1000)
    assert sum(bool(layer.weights) for layer in branches.layers) == 21  # and the head
    assert max(tensor.shape[-1] for tensor in (layer.output for layer in broad.layers)) == 1000


@pytest.mark.slow
def test_pruned_networks_are_beside_the_unpruned_one_in_every_engine(monkeypatch, tmp_path):
    monkeypatch.setattr(pruned, "build_model", lambda name, shape, classes: build_model(name, shape, classes, 1 / 4))
    rows = list(pruned.measure(True, tmp_path))
    speeds, costs = ([row for row in rows if row.measure == measure] for measure in (SPEED, COST))
    # 3 networks beside the unpruned one, 5 engines, 2 batch sizes; of a SavedModel also 4 that are not folded, less the
    # unpruned one, and half of the MACs folded beside itself. 2 networks, 3 sizes.
    assert (len(speeds), len(costs)) == (2 * (5 * 3 + 4 + 1), 6)
    assert all(bool(row.note) == (row.met is False) for row in speeds if row.ratio)
    assert all(0 < row.ratio < 1 for row in costs if "on disk" in row.name)
    (row,) = (
        row for row in speeds if row.name.startswith("vgg16, half of the MACs (") and "LiteRT, batch 32" in row.name
    )
    assert 0.4 < int(re.search(r"\((\d+)%", row.name)[1]) / 100 <= 0.5
    (row,) = (row for row in speeds if row.baseline == "half of the MACs, not folded" and "batch 32" in row.name)
    assert row.target == 1.0
    assert (tmp_path / "figures" / "speedup.png").stat().st_size > 10_000


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(100))
    (tmp_path / "c").write_bytes(bytes(11))
    assert (pruned._size(tmp_path), pruned._size(tmp_path / "c")) == (111, 11)


@pytest.mark.slow
def test_peak_memory_of_a_served_network_holds_its_weights(tmp_path):
    from tfprune.engines.exporting import export

    inputs = keras.Input((64,))
    model = keras.Model(inputs, keras.layers.Dense(64)(keras.layers.Dense(100_000)(inputs)))
    folder = export(model, tmp_path / "exported")
    found = subprocess.run(
        [sys.executable, "-m", "tfprune.experiments.memory", folder / "saved_model", "2"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 4 * model.count_params() < float(found.stdout) < 6 * 4 * model.count_params()


def test_a_study_that_fails_is_told(tmp_path):
    with pytest.raises(TfpruneError, match=r"exit status 2.*nothing_such"):
        studies._study(tmp_path, "--method=nothing_such")


@pytest.mark.slow
def test_flops_of_a_sweep_count_every_training_once(small, tmp_path):
    flags = ["--smoke", f"--model={small}", "--method=l1_norm", "--ratio=0.3,0.6"]
    studies._study(tmp_path / "together", *flags)
    for ratio in ("0.3", "0.6"):
        studies._study(tmp_path / "apart" / ratio, *flags[:-1], f"--ratio={ratio}")
    with open(tmp_path / "together" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    trained = {}
    for row in rows:
        if row["regime"] != "pruned":
            key = (row["regime"], row["regime"] != "unpruned" and row["setting"])
            trained[key] = 3.0 * float(row["flops"]) * int(row["train_examples"]) * int(row["epochs"])
    together = studies._flops([tmp_path / "together"])
    assert together == pytest.approx(sum(trained.values()), rel=1e-9)
    apart = studies._flops(sorted((tmp_path / "apart").iterdir()))
    assert apart - together == pytest.approx(trained["unpruned", False], rel=1e-9)
