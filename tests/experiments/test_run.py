import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.commands import REGIMES, forbid_training, read, smoke, studies
from tests.helpers import randomize, trainable, user_network
from tests.processes import Process
from tests.stages import CONTRACT
from tfprune.data import load
from tfprune.engines.onnx import OnnxRuntimeEngine
from tfprune.experiments.run import main
from tfprune.experiments.studies.stage_files import best_epoch
from tfprune.experiments.studies.trainers import Trainers
from tfprune.experiments.studies.training import trainer_of
from tfprune.models import build_model
from tfprune.training.loop import Trainer


def accuracy_of(file):
    """Test accuracy of a file on the synthetic data, with Keras and numpy only."""
    data = load("synthetic")
    images = (data.test_images.astype(np.float64) / 255 - data.mean) / data.std
    model = keras.saving.load_model(file)
    outputs = np.asarray(model(images.astype(np.float32), training=False))
    return model, float((outputs.argmax(-1) == data.test_labels).mean())


def check_results(rows, workdir):
    assert [row["regime"] for row in rows] == REGIMES
    assert set(CONTRACT) <= set(rows[0])
    unpruned, pruned = rows[0], rows[1]
    ratio = int(unpruned["flops"]) / int(pruned["flops"])
    assert ratio > 1
    lengths = {"unpruned": 1, "finetune": 1, "scratch_e": 1, "scratch_b": int(min(2.0, ratio))}
    for row in rows:
        assert 0 <= float(row["test_accuracy"]) <= float(row["best_accuracy"]) <= 1
        assert float(row["train_seconds"]) >= 0
        if row["regime"] in lengths:
            assert int(row["epochs"]) == lengths[row["regime"]]
        if row["regime"] != "unpruned":
            assert (row["params"], row["macs"], row["flops"]) == (pruned["params"], pruned["macs"], pruned["flops"])
            assert int(row["params"]) < int(unpruned["params"])
    page = (workdir / "report.md").read_text(encoding="utf-8")
    for row in rows:
        assert f"{100 * float(row['test_accuracy']):.2f}" in page


# The whole way.


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The command with no flag but --smoke, and what it printed."""
    workdir = tmp_path_factory.mktemp("quickstart")
    smoke(workdir)
    return workdir


def test_the_quickstart_gives_rows_report_and_figures(quickstart):
    rows = read(quickstart)
    check_results(rows, quickstart)
    assert {(row["dataset"], row["model"], row["method"], row["setting"], row["seed"]) for row in rows} == {
        ("synthetic", "vgg16", "network_slimming", "ratio=0.5", "0")
    }
    pictures = list((quickstart / "figures").glob("*.png"))
    assert sorted(picture.name.split("-")[0] for picture in pictures) == ["accuracy", "channels", "curves", "weights"]
    for picture in pictures:
        pixels = matplotlib.image.imread(picture)
        assert min(pixels.shape[:2]) > 200
        assert pixels[..., :3].std() > 0.01
        assert picture.name in (quickstart / "report.md").read_text(encoding="utf-8")
    assert all((folder / "DONE").is_file() for folder in (quickstart / "stages").iterdir())


def test_what_is_exported_has_the_accuracy_and_size_of_its_row(quickstart):
    (setting,) = (quickstart / "export").iterdir()
    assert sorted(folder.name for folder in setting.iterdir()) == sorted(REGIMES)
    for row in read(quickstart):
        folder = setting / row["regime"]
        model, accuracy = accuracy_of(folder / "model.keras")
        assert accuracy == pytest.approx(float(row["test_accuracy"]), abs=1e-6)
        assert trainable(model) == int(row["params"])
        assert not any("Fused" in type(layer).__name__ for layer in model.layers)
        batch = tf.random.stateless_normal((3, 32, 32, 1), (1, 2))
        loaded = tf.saved_model.load(str(folder / "saved_model"))
        np.testing.assert_allclose(loaded.serve(batch), model(batch, training=False), atol=1e-5)


def test_tensorboard_finds_scalars_and_histograms_of_gamma(quickstart):
    folders = [folder for folder in (quickstart / "tensorboard").iterdir() if folder.name != "report"]
    assert len(folders) == 5  # two large networks, three regimes
    for folder in folders:
        events = EventAccumulator(str(folder), {"tensors": 0})
        events.Reload()
        tags = set(events.Tags()["tensors"])
        assert {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"} <= tags
        gammas = {tag for tag in tags if tag.startswith("gamma/")}
        assert gammas == {f"gamma/bn_{number}" for number in range(1, 14)}
        history = json.loads((quickstart / "stages" / folder.name / "history.json").read_text())["epochs"]
        for name in ("loss", "val_accuracy", "learning_rate"):
            points = events.Tensors(name)
            assert [point.step for point in points] == [epoch["epoch"] for epoch in history]
            values = [float(tf.make_ndarray(point.tensor_proto)) for point in points]
            np.testing.assert_allclose(values, [epoch[name] for epoch in history], rtol=1e-6)
        buckets = tf.make_ndarray(events.Tensors("gamma/bn_1")[-1].tensor_proto)
        widths = {2 * 8, 2 * 16}  # at least one gamma, at most all
        assert 0 < buckets[:, 2].sum() <= max(widths)


def test_the_same_command_again_trains_nothing_and_changes_nothing(quickstart, monkeypatch):
    before = {path: path.read_bytes() for path in quickstart.rglob("*") if path.suffix in (".csv", ".md", ".keras")}
    times = {path: path.stat().st_mtime_ns for path in quickstart.rglob("*") if path.suffix in (".keras", ".npz")}
    forbid_training(monkeypatch)
    smoke(quickstart)
    for path, content in before.items():
        assert path.read_bytes() == content
    for path, written in times.items():
        assert path.stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [
        ["--model=resnet20", "--method=uniform"],
        ["--model=vgg16_l1", "--method=l1_norm", "--variant=VGG-16-A"],
        ["--model=resnet20", "--method=soft_filter"],
        ["--model=resnet20", "--method=sparse_structure_selection", "--ratio=0.5"],
    ],
    ids=["resnet20", "variant", "soft_filter", "sparse_structure_selection"],
)
def test_other_networks_go_the_whole_way(argv, tmp_path):
    smoke(tmp_path, *argv, "--noexport")
    rows = read(tmp_path)
    check_results(rows, tmp_path)
    assert rows[0]["setting"] == ("VGG-16-A" if "--variant=VGG-16-A" in argv else "ratio=0.5")
    assert not (tmp_path / "export").exists()


@pytest.mark.slow
def test_a_design_goes_the_whole_way_without_a_pruned_row_and_without_fine_tuning(tmp_path, trained, capsys):
    argv = ["--model=imagenet_vgg16", "--method=thinet", "--variant=VGG-Tiny", "--width=.1"]
    smoke(tmp_path, *argv, "--seeds=2")
    assert trained == [1, 1, 2] * 2
    shown = capsys.readouterr().out
    tiny = build_model("imagenet_vgg_tiny", (32, 32, 1), 10, 0.1)
    assert f"\ndesign    {trainable(tiny):,} params" in shown
    assert f"proof: the design has the {trainable(tiny):,} params" in shown
    rows = read(tmp_path)
    assert [(row["regime"], row["seed"]) for row in rows] == [
        (regime, seed) for regime in ("unpruned", "scratch_e", "scratch_b") for seed in "01"
    ]
    assert {int(row["params"]) for row in rows[2:]} == {trainable(tiny)}
    assert {row["setting"] for row in rows} == {"VGG-Tiny"}
    (setting,) = (tmp_path / "export").iterdir()
    assert sorted(folder.name for folder in setting.iterdir()) == ["scratch_b", "scratch_e", "unpruned"]
    for row in rows[::2]:
        model, accuracy = accuracy_of(setting / row["regime"] / "model.keras")
        assert accuracy == pytest.approx(float(row["test_accuracy"]), abs=1e-6)
        assert trainable(model) == int(row["params"])
    # A design has no weights before it is trained.
    plans = sorted((tmp_path / "stages").glob("plan-*"))
    assert [(folder / "weights.npz").exists() for folder in plans] == [False, False]
    smoke(tmp_path, *argv, "--seeds=2", "--dry_run")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith(("0 ", "1 "))]
    assert [(line[1], line[-1]) for line in lines] == [
        (stage, "done") for stage in ("train", "plan", "scratch_e", "scratch_b")
    ] * 2
    smoke(tmp_path, *argv, "--seeds=2")
    assert len(trained) == 6
    capsys.readouterr()
    assert main(["--smoke", f"--workdir={tmp_path}", *argv, "--regimes=finetune"]) == 2
    assert "VGG-Tiny is a network of its own" in capsys.readouterr().err


# With a user's own network, which is fast.


@pytest.fixture(scope="module")
def reused(small, tmp_path_factory):
    """A finished run of Network Slimming."""
    workdir = tmp_path_factory.mktemp("reused")
    smoke(workdir, f"--model={small}", "--noexport")
    return workdir


@pytest.mark.parametrize("method", ["l1_norm", "uniform", "random"])
def test_another_method_reuses_the_large_network(small, reused, trained, method):
    smoke(reused, f"--model={small}", f"--method={method}", "--noexport")
    assert len(trained) == 3
    rows = [row for row in read(reused) if row["method"] == method]
    check_results(rows, reused)
    (first,) = (r for r in read(reused) if (r["method"], r["regime"]) == ("network_slimming", "unpruned"))
    for column in ("test_accuracy", "params", "flops", "train_seconds"):
        assert rows[0][column] == first[column]


@pytest.mark.slow
def test_soft_filters_of_a_trained_network_start_from_its_weights_at_a_tenth_of_the_rate(small, tmp_path, monkeypatch):
    runs, run = [], Trainer.run

    def noting(self, weights, epochs, schedule, *args, **kwargs):
        result = run(self, weights, epochs, schedule, *args, **kwargs)
        runs.append((weights, schedule.at(0), result.weights))
        return result

    monkeypatch.setattr(Trainer, "run", noting)
    argv = [f"--model={small}", "--method=soft_filter", "--ratio=.3", "--regimes=finetune"]
    smoke(tmp_path, *argv, "--noexport")
    smoke(tmp_path, *argv, "--pretrained")
    large, scratch, _, pretrained, _ = runs
    assert [rate for _, rate, _ in (large, scratch, pretrained)] == pytest.approx([0.1, 0.1, 0.01])
    assert all(np.array_equal(*pair) for pair in zip(scratch[0], large[0], strict=True))
    assert all(np.array_equal(*pair) for pair in zip(pretrained[0], large[2], strict=True))
    assert {row["setting"] for row in read(tmp_path)} == {"ratio=0.3", "pretrained ratio=0.3"}
    (exported,) = (tmp_path / "export").iterdir()
    assert " " not in exported.name
    forbid_training(monkeypatch)
    smoke(tmp_path, *argv, "--pretrained")


@pytest.mark.slow
def test_blocks_whose_gates_close_are_gone_and_nothing_is_trained_again(tmp_path, monkeypatch, capsys):
    argv = ["--model=resnet20", "--method=sparse_structure_selection", "--regimes=finetune"]
    smoke(tmp_path, *argv, "--dry_run")
    assert "gate_l1=2, L1 on gates 2" in capsys.readouterr().out
    smoke(tmp_path, *argv)
    assert "of 9 residual blocks are removed" in capsys.readouterr().out
    rows = read(tmp_path)
    assert {row["setting"] for row in rows} == {"gate_l1=2"}
    (setting,) = (tmp_path / "export").iterdir()
    for row in rows[1:]:
        model, accuracy = accuracy_of(setting / row["regime"] / "model.keras")
        assert accuracy == pytest.approx(float(row["test_accuracy"]), abs=1e-6)
        assert trainable(model) == int(row["params"])
    forbid_training(monkeypatch)
    smoke(tmp_path, *argv)


def test_open_gates_at_the_end_are_one_line(tmp_path, capsys):
    argv = ["--model=resnet20", "--width=.25", "--method=sparse_structure_selection", "--gate_l1=0"]
    assert main(["--dataset=synthetic", "--epochs=1", *argv, f"--workdir={tmp_path}"]) != 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--gate_l1" in err


def test_a_network_of_the_users_goes_the_whole_way(small, tmp_path):
    smoke(tmp_path, f"--model={small}", "--precision=mixed_bfloat16")
    rows = read(tmp_path)
    check_results(rows, tmp_path)
    (setting,) = (tmp_path / "export").iterdir()
    for row in rows[1:]:
        model, accuracy = accuracy_of(setting / row["regime"] / "model.keras")
        # Trained in bfloat16, exported in float32: a few answers may differ.
        assert accuracy == pytest.approx(float(row["test_accuracy"]), abs=0.03)
        assert trainable(model) == int(row["params"])
        assert {variable.dtype for variable in model.variables} == {"float32"}


def test_what_is_exported_after_some_epochs_has_the_accuracy_of_its_row(small, tmp_path):
    argv = [f"--model={small}", "--dataset=synthetic", "--epochs=5", "--batch_size=16", "--method=random"]
    assert main([*argv, f"--workdir={tmp_path}"]) == 0
    rows = read(tmp_path)
    (setting,) = (tmp_path / "export").iterdir()
    accuracies = [float(row["test_accuracy"]) for row in rows]
    for row, accuracy in zip(rows, accuracies, strict=True):
        assert accuracy_of(setting / row["regime"] / "model.keras")[1] == pytest.approx(accuracy, abs=1e-6)
    assert accuracies[0] > 0.2  # something was learnt
    assert len(set(accuracies)) >= 3


@pytest.mark.slow
def test_a_model_file_is_known_by_its_content(small, tmp_path, monkeypatch, trained):
    smoke(tmp_path / "w", f"--model={small}", "--noexport", "--regimes=finetune")
    assert len(trained) == 3
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / small.name
    moved.write_bytes(small.read_bytes())
    smoke(tmp_path / "w", f"--model={moved}", "--noexport", "--regimes=finetune")
    assert len(trained) == 3
    randomize(user_network(), 1).save(moved)
    smoke(tmp_path / "w", f"--model={moved}", "--noexport", "--regimes=finetune")
    assert len(trained) == 6


def test_dry_run_writes_and_trains_nothing_and_tells_the_plan(small, tmp_path, monkeypatch, capsys):
    forbid_training(monkeypatch)
    argv = ["--dry_run", f"--workdir={tmp_path / 'w'}", "--method=l1_norm", "--seeds=3,7", "--epochs=8"]
    assert main([*argv, "--dataset=synthetic", f"--model={small}", "--budget_cap=1.5"]) == 0
    assert list(tmp_path.iterdir()) == []
    shown = capsys.readouterr().out
    for word in ("synthetic", "256", "128", "l1_norm", "scratch_b", "0.1, 0.01 from 4, 0.001 from 6"):
        assert word in shown
    lines = [line.split() for line in shown.splitlines() if line.strip().startswith(("3 ", "7 "))]
    stages = ["train", "plan", "finetune", "scratch_e", "scratch_b"]
    assert [line[:2] for line in lines] == [[seed, stage] for seed in "37" for stage in stages]
    assert {line[1]: line[2] for line in lines if line[1] != "plan"} == {
        "train": "8", "finetune": "2", "scratch_e": "8", "scratch_b": "12",
    }  # fmt: skip


def test_dry_run_tells_what_is_done(small, tmp_path, capsys):
    argv = [f"--model={small}", "--noexport", "--method=uniform"]
    smoke(tmp_path, *argv, "--regimes=finetune")
    capsys.readouterr()
    smoke(tmp_path, *argv, "--dry_run")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("0 ")]
    done = {line[1]: line[-1] == "done" for line in lines}
    assert done == {"train": True, "plan": True, "finetune": True, "scratch_e": False, "scratch_b": False}


@pytest.mark.slow
def test_the_order_of_seeds_changes_no_result(small, tmp_path):
    argv = [f"--model={small}", "--noexport", "--dataset=synthetic", "--epochs=2"]
    for name, seeds in (("a", "0,1"), ("b", "1,0")):
        assert main([*argv, f"--workdir={tmp_path / name}", f"--seeds={seeds}"]) == 0
    one, other = read(tmp_path / "a"), read(tmp_path / "b")
    assert len(one) == 10
    for first, second in zip(one, other, strict=True):
        assert {**first, "train_seconds": 0} == {**second, "train_seconds": 0}
    assert one[0]["test_accuracy"] != one[1]["test_accuracy"] or one[2]["test_accuracy"] != one[3]["test_accuracy"]
    report = (tmp_path / "a" / "report.md").read_text(encoding="utf-8")
    assert "±" in report


def test_a_seed_added_later_trains_that_seed_only(small, tmp_path, trained):
    argv = [f"--model={small}", "--noexport", "--method=uniform", "--regimes=scratch_e"]
    smoke(tmp_path, *argv, "--seeds=1")
    assert len(trained) == 2
    smoke(tmp_path, *argv, "--seeds=2")
    assert len(trained) == 4
    assert [(row["regime"], row["seed"]) for row in read(tmp_path)] == [
        (regime, seed) for regime in ("unpruned", "pruned", "scratch_e") for seed in "01"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flag", ["--learning_rate=.05", "--weight_decay=0", "--batch_size=32", "--precision=mixed_bfloat16"]
)
def test_a_setting_that_changes_the_training_trains_anew(small, tmp_path, trained, flag):
    argv = [f"--model={small}", "--noexport", "--method=uniform", "--regimes=finetune"]
    smoke(tmp_path, *argv)
    smoke(tmp_path, *argv, flag)
    assert len(trained) == 4
    assert len(read(tmp_path)) == 6


def test_a_loss_that_diverges_is_status_1_and_one_line(small, tmp_path, capsys):
    status = main(["--smoke", f"--model={small}", "--learning_rate=1e35", f"--workdir={tmp_path}"])
    assert status == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "1e+35" in err
    assert not list((tmp_path / "stages").glob("*/DONE")) if (tmp_path / "stages").exists() else True


def test_a_run_that_was_killed_goes_on_where_it_was(small, tmp_path, trained):
    argv = ["--smoke", f"--model={small}", f"--workdir={tmp_path}", "--noexport"]
    process = Process(tmp_path, main, argv)
    try:
        deadline = time.monotonic() + 120
        while not (finished := list(tmp_path.glob("stages/*/DONE"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate(timeout=60)
    assert not (tmp_path / "results.csv").exists()
    finished = list(tmp_path.glob("stages/*/DONE"))
    written = {path: path.stat().st_mtime_ns for path in finished}
    assert main(argv) == 0
    assert 0 < len(trained) <= 5 - sum("plan-" not in path.parent.name for path in finished)
    assert {path: path.stat().st_mtime_ns for path in finished} == written
    check_results(read(tmp_path), tmp_path)


@pytest.mark.parametrize(("model", "as_before"), [("resnet50_cifar", True), ("resnet20", False), ("resnet110", False)])
def test_weights_of_a_network_with_another_order_of_channels_are_not_taken_for_its_own(model, as_before, tmp_path):
    # Versions that put half of the zero channels before the others knew these networks by their names alone.
    (study,) = studies(tmp_path, f"--model={model}", "--width=.0625", "--method=uniform")
    for stage in (study.stages.large(0, sparse=False), study.stages.plan(0)):
        assert (stage.config["model"] == model) == as_before
        assert stage.name.startswith(f"{stage.kind}-synthetic-{model}-")


# One trainer for networks of one shape.


@pytest.mark.slow
def test_the_trainer_of_one_pruned_network_is_used_for_another_only_if_it_computes_the_same(tmp_path):
    # Where zeros lie on both sides of a shortcut, other channels that go move them: the same shapes of weights, another
    # network.
    inputs = keras.Input((32, 32, 1))
    stem = layers.Conv2D(8, 3, strides=4, padding="same", name="stem")(inputs)
    short = keras.ops.pad(stem, ((0, 0), (0, 0), (0, 0), (4, 4)))
    x = layers.Add()([short, layers.Conv2D(16, 3, padding="same", name="wide")(layers.ReLU()(stem))])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    keras.Model(inputs, layers.Dense(10, name="logits")(x)).save(tmp_path / "padded.keras")
    (study,) = studies(tmp_path, f"--model={tmp_path / 'padded.keras'}", "--method=random", "--ratio=.4")
    before = set()
    data = study.data
    images = ((data.test_images / 255 - data.mean) / data.std).astype(np.float32)
    for seed in range(4):
        plan = study.method.plan(study.network.architecture, study.method_settings(seed))
        small = randomize(plan.apply(study.network.architecture), 0)
        before.add(sum(channel < 4 for channel in plan.keep["wide"]))
        loss = trainer_of(study, small).evaluate(small.get_weights())["val_loss"]
        outputs = np.asarray(small(images, training=False), np.float64)
        outputs -= outputs.max(-1, keepdims=True)
        chosen = outputs[np.arange(len(outputs)), data.test_labels]
        expected = (np.log(np.exp(outputs).sum(-1)) - chosen).mean()
        assert loss == pytest.approx(expected, rel=1e-4), seed
    assert len(before) > 1


def test_networks_of_one_shape_share_a_trainer(tmp_path, small):
    (study,) = studies(tmp_path, f"--model={small}", "--method=random")
    plans = [study.method.plan(study.network.architecture, study.method_settings(seed)) for seed in (0, 1)]
    assert plans[0].keep != plans[1].keep
    trainers = [trainer_of(study, plan.apply(study.network.architecture)) for plan in plans]
    assert trainers[0] is trainers[1]


@pytest.mark.slow
def test_settings_share_the_trainers_of_what_has_no_layers_of_a_method(tmp_path, small, monkeypatch):
    made = []
    init = Trainer.__init__

    def counted(self, model, data, config, strategy, edit, task):
        made.append((model.count_params(), edit is not None))
        init(self, model, data, config, strategy, edit, task)

    monkeypatch.setattr(Trainer, "__init__", counted)
    ways = ["--method=l1_norm,random,network_slimming", "--ratio=0.5", "--learning_rate=0.1,0.05"]
    smoke(tmp_path, f"--model={small}", *ways, "--noexport")
    plain = [params for params, edited in made if not edited]
    # L1-norm and random pruning leave the same widths, at both learning rates, and the large network is one.
    assert len(plain) == len(set(plain))
    assert sum(edited for _, edited in made) == 2  # slimming's own, at each learning rate


def test_only_so_many_trainers_are_kept():
    trainers, made = Trainers(), []

    def get(key):
        return trainers.get(key, lambda: made.append(key) or key)

    assert [get(key) for key in "abcdaebf"] == list("abcdaebf")
    assert made == list("abcdebf")  # b made room for e, the least used; then c for b


def test_the_command_can_be_run_as_a_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tfprune.experiments.run", "--ratio=2"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("python -m tfprune.experiments.run: --ratio=2")
    assert done.stderr.count("\n") == 1


# Fairness.


def test_b_may_spend_the_flops_of_fine_tuning_too(small, tmp_path, trained):
    argv = [f"--model={small}", "--noexport", "--method=uniform", "--ratio=.2"]
    smoke(tmp_path, *argv)
    smoke(tmp_path, *argv, "--budget=flops_plus_finetune", "--regimes=scratch_b")
    rows = {row["budget"]: int(row["epochs"]) for row in read(tmp_path) if row["regime"] == "scratch_b"}
    plain, more = rows[""], rows["plus 1 epoch of fine-tuning"]
    assert more == plain + 1
    assert trained == [1, 1, 1, plain, more]


def test_a_budget_of_epochs_leaves_out_b_which_would_be_e(small, tmp_path, trained, capsys):
    argv = [f"--model={small}", "--noexport", "--method=uniform", "--budget=epochs"]
    smoke(tmp_path, *argv)
    assert trained == [1, 1, 1]
    assert "epochs of the large network, which is Scratch-E" in capsys.readouterr().out
    assert main(["--smoke", f"--workdir={tmp_path}", *argv, "--regimes=scratch_e,scratch_b"]) == 2
    assert "With --budget=epochs scratch_b is scratch_e" in capsys.readouterr().err
    smoke(tmp_path, *argv, "--regimes=scratch_b")
    assert trained == [1, 1, 1, 1]
    assert "Scratch-B trains for the epochs of the large network" in capsys.readouterr().out


def test_the_best_epoch_is_chosen_on_held_out_images(small, tmp_path):
    argv = [f"--model={small}", "--noexport", "--method=uniform", "--regimes=finetune", "--dataset=synthetic"]
    assert main([*argv, f"--workdir={tmp_path}", "--epochs=6", "--validation_fraction=.25"]) == 0
    rows = read(tmp_path)
    counts = np.bincount(load("synthetic").train_labels)
    assert {row["train_examples"] for row in rows} == {str(256 - sum(counts // 4))}
    (folder,) = (tmp_path / "stages").glob("train-*")
    epochs = json.loads((folder / "history.json").read_text())["epochs"]
    judged = [epoch["validation_accuracy"] for epoch in epochs]
    assert float(rows[0]["best_accuracy"]) == epochs[judged.index(max(judged))]["val_accuracy"]
    assert float(rows[0]["test_accuracy"]) == epochs[-1]["val_accuracy"]
    assert "validation_fraction=0.25" in rows[0]["training"]


def test_a_budget_of_epochs_is_known_before_the_plan_is(small, tmp_path, capsys):
    argv = [f"--model={small}", "--method=network_slimming", "--regimes=scratch_b", "--dry_run"]
    for budget, told in (("flops", "about 2"), ("epochs", "1")):
        smoke(tmp_path, *argv, f"--budget={budget}")
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("0  scratch_b"))
        assert re.split("  +", line.strip())[2] == told


def test_the_first_of_the_best_epochs_is_chosen():
    test, held_out = (0.2, 0.9, 0.9, 0.5), (0.3, 0.1, 0.8, 0.8)
    history = [{"epoch": n, "val_accuracy": accuracy} for n, accuracy in enumerate(test)]
    assert best_epoch(history)["epoch"] == 1
    judged = [{**epoch, "validation_accuracy": accuracy} for epoch, accuracy in zip(history, held_out, strict=True)]
    assert best_epoch(judged) == {"epoch": 2, "val_accuracy": 0.9, "validation_accuracy": 0.8}


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--validation_fraction=1", "--validation_fraction=1 must be 0"),
        ("--validation_fraction=-0.1", "--validation_fraction=-0.1 must be 0"),
        ("--validation_fraction=0.001", "every class needs one to hold out"),
        ("--budget=money", "epochs, flops, flops_plus_finetune"),
    ],
)
def test_wrong_fairness_is_told(small, tmp_path, capsys, flag, told):
    assert main(["--smoke", f"--model={small}", f"--workdir={tmp_path}", flag]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_exports_what_formats_names(small, tmp_path):
    formats = "saved_model,litert_int8,onnx"
    smoke(tmp_path, f"--model={small}", "--method=uniform", "--regimes=finetune", f"--formats={formats}")
    folders = sorted((tmp_path / "export").glob("*/*"))
    assert [folder.name for folder in folders] == ["finetune", "pruned", "unpruned"]
    for folder in folders:
        found = sorted(path.name for path in folder.iterdir())
        assert found == ["model.onnx", "model_int8.tflite", "saved_model", "stage.txt"]


def test_an_engine_that_is_missing_is_told_before_anything_is_trained(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(OnnxRuntimeEngine, "packages", ("no_such_package",))
    arguments = [f"--model={small}", "--smoke", "--formats=onnx", f"--workdir={tmp_path / 'runs'}"]
    assert main(arguments) == 2
    assert "pip install 'tfprune[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "stages").exists()
