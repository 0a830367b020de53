"""Runs that are killed, stopped, started twice, or find no room: what is left is right, and goes on."""

import csv
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.processes import ROOT, Process
from tfprune.errors import UsageError
from tfprune.experiments import run, runner
from tfprune.experiments.report import main as report_main
from tfprune.experiments.run import main
from tfprune.experiments.store.stage import own_workdir
from tfprune.training.loop import Trainer

TIMES = ("train_seconds",)


def flags(small, workdir, *argv):
    fixed = [f"--model={small}", "--dataset=synthetic", "--method=uniform", "--noexport", "--deterministic"]
    return [*fixed, f"--workdir={workdir}", *argv]


def start(small, workdir, *argv):
    """Starts a run that can be killed."""
    return Process(workdir.parent, main, flags(small, workdir, *argv))


def finish(small, workdir, *argv):
    process = start(small, workdir, *argv)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def take_signals():
    """In the child: where the tests run in the background, Ctrl-C is ignored, and so it would be here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start_command(small, workdir, *argv, preexec_fn=take_signals):
    """Starts a run as its user does, as a Python of its own."""
    # Where TensorFlow was imported its log level is set, and then a user's wish, which the command heeds.
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "-m", "tfprune.experiments.run", *flags(small, workdir, *argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=preexec_fn,
    )


def rows_without_times(workdir):
    with (workdir / "results.csv").open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def histories(workdir):
    """Stage -> every digit of its metrics, its weights' bytes."""
    found = {}
    for folder in sorted((workdir / "stages").iterdir()):
        if (folder / "history.json").exists():
            content = json.loads((folder / "history.json").read_text())
            with np.load(folder / "weights.npz") as weights:
                found[folder.name] = content["epochs"], [weights[name].tobytes() for name in weights.files]
    return found


def left_over(workdir):
    return [path.name for folder in ("stages", "unfinished") for path in (workdir / folder).glob("*")
            if not (path / "DONE").exists()]  # fmt: skip


# Killed.


LONG = ("--epochs=50", "--finetune_epochs=20", "--ratio=.3,.5")


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    status, _, err = finish(small, workdir, *LONG)
    assert status == 0, err
    return workdir


@pytest.mark.slow
def test_killed_at_twenty_moments_a_study_ends_with_the_results_of_one_that_was_not(small, tmp_path, undisturbed):
    generator, kills = random.Random(0), 0
    workdir = tmp_path / "runs"
    while kills < 20:
        process = start(small, workdir, *LONG)
        if generator.random() < 0.25:  # at any time, also while it only begins
            time.sleep(generator.uniform(0, 1))
        else:  # once it has got on
            seen, deadline = progress(workdir), time.monotonic() + 120
            while progress(workdir) == seen and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 0.3))
        assert process.poll() is None, process.communicate(timeout=60)
        process.kill()
        process.communicate(timeout=60)
        kills += 1
    assert finish(small, workdir, *LONG)[0] == 0
    assert rows_without_times(workdir) == rows_without_times(undisturbed)
    assert histories(workdir) == histories(undisturbed)
    assert left_over(workdir) == []


def progress(workdir):
    return {(path.name, path.stat().st_mtime_ns) for path in workdir.glob("unfinished/[!.]*")} | {
        (path.parent.name, 0) for path in workdir.glob("stages/*/DONE")
    }


# Stopped.


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_a_run_in_one_line_and_it_goes_on(small, tmp_path, undisturbed, sent, status):
    process, deadline = start_command(small, tmp_path, *LONG), time.monotonic() + 120
    while not list(tmp_path.glob("unfinished/[!.]*.npz")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert err == f"python -m tfprune.experiments.run: stopped by {sent.name}. {run.GOING_ON}\n"
    shown = finish(small, tmp_path, *LONG, "--dry_run")[1]
    assert "0 of 5" in shown
    status, out, _ = finish(small, tmp_path, *LONG)
    assert status == 0
    begun = int(re.search(r"epoch (\d+)/50", out)[1])
    assert begun > 1  # not from the beginning
    assert histories(tmp_path) == histories(undisturbed)


# Several at once.


@pytest.mark.slow
def test_processes_in_one_workdir_do_every_stage_once(small, tmp_path, undisturbed):
    processes = [start(small, tmp_path, *LONG) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    done = [line for out, _ in outputs for line in out.splitlines() if line.startswith("seed 0: ")]
    expected = ["train, 50 epochs", "plan", "finetune, 20 epochs", "scratch_e, 50 epochs"]
    assert [done.count(f"seed 0: {what}") for what in expected] == [1, 2, 2, 2]  # one network, two ratios
    assert histories(tmp_path) == histories(undisturbed)
    assert rows_without_times(tmp_path) == rows_without_times(undisturbed)


def test_what_another_process_does_is_left_to_it_and_waited_for(small, tmp_path, monkeypatch, capsys):
    argv = flags(small, tmp_path, "--epochs=1", "--finetune_epochs=1")
    argv.remove("--deterministic")
    assert main([*argv, "--regimes=finetune"]) == 0
    assert main([*argv, "--dry_run"]) == 0
    trained, real, held = [], Trainer.run, []

    def spy(self, *args, **kwargs):
        trained.append(args[1])
        return real(self, *args, **kwargs)

    def wait(seconds):  # the other process ends
        assert len(trained) == 1  # all that is free has been done
        held.pop().__exit__(None, None, None)

    from tfprune.experiments.store.keys import StudyStages

    def regime(self, seed, regime, epochs, original=StudyStages.regime):
        stage = original(self, seed, regime, epochs)
        if regime.name == "scratch_e" and not held and not trained:
            held.append(stage.owned())
            held[0].__enter__()
        return stage

    monkeypatch.setattr(Trainer, "run", spy)
    monkeypatch.setattr(StudyStages, "regime", regime)
    monkeypatch.setattr(runner.time, "sleep", wait)
    assert main(argv) == 0
    assert len(trained) == 2  # scratch_b, then scratch_e
    assert "waiting for scratch_e-synthetic-mine-uniform-seed0-" in capsys.readouterr().out
    assert {row["regime"] for row in rows_without_times(tmp_path)} >= {"scratch_e", "scratch_b", "finetune"}


def test_runs_of_several_workers_do_not_share_a_workdir(tmp_path):
    with (
        own_workdir(tmp_path),
        pytest.raises(UsageError, match="Another run of several workers"),
        own_workdir(tmp_path),
    ):
        pass
    with own_workdir(tmp_path):
        pass


# What cannot be done.


def test_a_run_that_diverges_is_marked_and_the_others_go_on(small, tmp_path, capsys, monkeypatch):
    argv = ["--smoke", f"--model={small}", "--method=uniform", "--noexport", f"--workdir={tmp_path}"]
    assert main([*argv, "--learning_rate=1e35,.1"]) == 1
    shown = capsys.readouterr()
    (told,) = (line for line in shown.err.splitlines() if line.startswith("python -m"))
    assert re.search(r"1 failed; what does not need them is done\. train-\S+: The loss is nan in step \d of 4", told)
    assert "learning rate 1e+35" in told
    assert {row["regime"] for row in rows_without_times(tmp_path)} == {
        "unpruned", "pruned", "finetune", "scratch_e", "scratch_b",
    }  # fmt: skip
    (noted,) = (tmp_path / "failed").iterdir()
    content = json.loads(noted.read_text())
    assert (content["what"], content["seed"], content["stage"]) == ("train", 0, noted.stem)
    monkeypatch.setattr(Trainer, "run", lambda *args, **kwargs: pytest.fail("tried again"))
    assert main([*argv, "--learning_rate=1e35,.1"]) == 1
    assert re.search(r"0 +train +1 +1e\+35 +failed", capsys.readouterr().out)
    monkeypatch.undo()
    noted.unlink()
    assert main([*argv, "--learning_rate=1e35"]) == 1
    assert noted.exists()


@pytest.mark.slow
def test_a_plan_that_cannot_be_made_is_marked_and_the_others_go_on(small, tmp_path, capsys):
    argv = ["--smoke", "--model=resnet20", "--width=.25", "--noexport", "--regimes=finetune", f"--workdir={tmp_path}"]
    assert main([*argv, "--method=sparse_structure_selection,uniform", "--gate_l1=0"]) == 1
    shown = capsys.readouterr()
    assert re.search(r"1 failed; .* plan-\S+: No gate of the 9 residual blocks", shown.err)
    assert {row["method"] for row in rows_without_times(tmp_path)} == {"uniform"}


@pytest.mark.slow
def test_a_disk_that_is_full_is_told_in_one_line_and_leaves_nothing_half_done(small, tmp_path, undisturbed):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))

    process = start_command(small, tmp_path, *LONG, preexec_fn=limit)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "File too large" in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("stages/*/DONE"))
    assert finish(small, tmp_path, *LONG)[0] == 0
    assert histories(tmp_path) == histories(undisturbed)
    assert left_over(tmp_path) == []


# What is not as it was stored.


@pytest.fixture(scope="module")
def finetuned(small, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finetuned")
    argv = ["--smoke", f"--model={small}", "--method=uniform", "--noexport", "--regimes=finetune"]
    assert main([*argv, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.mark.parametrize("damage", ["cut", "edited", "gone"])
@pytest.mark.parametrize("file", ["train/weights.npz", "plan/plan.json", "finetune/rows.json", "plan/DONE"])
def test_a_damaged_stage_is_named_and_not_trusted(tmp_path, capsys, small, finetuned, file, damage):
    kind, name = file.split("/")
    argv = ["--smoke", f"--model={small}", "--method=uniform", "--noexport", f"--workdir={tmp_path}"]
    shutil.copytree(finetuned, tmp_path, dirs_exist_ok=True)
    (path,) = (tmp_path / "stages").glob(f"{kind}-*/{name}")
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if damage == "cut" else content.replace(b"0", b"1"))
    capsys.readouterr()
    status, err = main(argv), capsys.readouterr().err
    if (name, damage) == ("DONE", "gone"):  # a stage without it is not finished, and made again
        assert status == 0
        assert path.read_bytes() != b""
        return
    assert status == 1
    told = rf"{path.parent.name}' is damaged: \S+ is not as it was stored\. Delete this folder"
    assert re.search(rf"1 failed; what does not need them is done\. .*{told}", err)
    shutil.rmtree(path.parent)
    assert main(argv) == 0
    capsys.readouterr()
    assert [row["regime"] for row in rows_without_times(tmp_path)] == [
        "unpruned", "pruned", "finetune", "scratch_e", "scratch_b",
    ]  # fmt: skip


def test_every_damaged_stage_is_told_and_counted(tmp_path, capsys, small, finetuned):
    argv = ["--smoke", f"--model={small}", "--method=uniform", "--noexport", f"--workdir={tmp_path}"]
    shutil.copytree(finetuned, tmp_path, dirs_exist_ok=True)
    damaged = []
    for kind in ("plan", "finetune"):  # its last weights, which nothing needs, are found to be cut as well
        (path,) = (tmp_path / "stages").glob(f"{kind}-*/weights.npz")
        path.write_bytes(path.read_bytes()[:-9])
        damaged.append(path.parent.name)
    (tmp_path / "stages" / damaged[0] / "plan.json").write_text("{}")
    assert main([*argv, "--regimes=finetune", "--dry_run"]) == 0
    assert re.findall(r"0 +(train|plan|finetune) .*(done|damaged)$", capsys.readouterr().out, re.MULTILINE) == [
        ("train", "done"), ("plan", "damaged"), ("finetune", "damaged"),
    ]  # fmt: skip
    assert main([*argv, "--regimes=finetune"]) == 1
    assert "1 failed; what does not need them is done." in capsys.readouterr().err  # nothing else can be looked at
    shutil.rmtree(tmp_path / "stages" / damaged[0])
    assert main([*argv, "--regimes=finetune,scratch_e"]) == 1
    err = capsys.readouterr().err
    assert re.search(rf"1 failed; .*{damaged[1]}' is damaged: weights.npz", err)
    assert len(list((tmp_path / "stages").glob("scratch_e-*/DONE"))) == 1


def test_a_damaged_stage_leaves_the_rest_of_the_report(small, tmp_path, capsys):
    argv = ["--smoke", f"--model={small}", "--method=uniform", "--noexport", f"--workdir={tmp_path}", "--seeds=2"]
    assert main(argv) == 0
    (path,) = (tmp_path / "stages").glob("scratch_e-*seed1*/config.json")
    path.write_text(path.read_text().replace("64", "65").replace("0", "1"), encoding="utf-8")
    (large,) = (tmp_path / "stages").glob("train-*seed0*/history.json")
    large.write_text("{}", encoding="utf-8")
    capsys.readouterr()
    assert report_main([str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert re.search(r"scratch_e-\S+seed1\S+ is damaged: config\.json .* Its results are left out", err)
    assert re.search(r"train-\S+seed0\S+ is damaged: history\.json .* not in the learning curves", err)
    found = [(row["regime"], row["seed"]) for row in rows_without_times(tmp_path)]
    assert ("scratch_e", "1") not in found
    assert len(found) == 9


def test_a_last_step_that_makes_weights_of_no_numbers_is_told(small, tmp_path, capsys):
    argv = [f"--model={small}", "--dataset=synthetic", "--train_examples=64", "--epochs=1", "--method=uniform"]
    argv += ["--noexport", "--regimes=scratch_e", f"--workdir={tmp_path}", "--learning_rate=1e25,.1"]
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert re.search(r"1 failed; .* The test loss is nan after epoch 1, at learning rate 1e\+25", err)
    assert {row["training"].count("1e+25") for row in rows_without_times(tmp_path)} == {0}


def test_work_of_other_settings_says_which_setting_differs(small, tmp_path, capsys):
    argv = [
        "--smoke",
        f"--model={small}",
        "--method=uniform",
        "--regimes=finetune",
        "--noexport",
        f"--workdir={tmp_path}",
    ]
    assert main(argv) == 0
    capsys.readouterr()
    assert main([*argv, "--weight_decay=.01", "--batch_size=32", "--dry_run"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("unlike"))
    assert line.endswith(": batch_size=64 there, 32 here, weight_decay=0.0001 there, 0.01 here")
    (config,) = (tmp_path / "stages").glob("train-*/config.json")
    config.write_text(config.read_text().replace('"schema": ', '"schema": 9'))
    assert main([*argv, "--weight_decay=.01", "--dry_run"]) == 0
    assert re.search(r"schema=9\d there, \d here", capsys.readouterr().out)
