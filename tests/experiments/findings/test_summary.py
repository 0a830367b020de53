import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tfprune
from tests.helpers import plain_cnn, user_network
from tests.stages import ROW, fill, write_stage
from tfprune.experiments.report import main as report
from tfprune.experiments.reporting.writing import write_report
from tfprune.experiments.run import main as run
from tfprune.experiments.store.stage import Store

REGIMES = ["unpruned", "pruned", "finetune", "scratch_e", "scratch_b"]


def summary_of(workdir):
    with (workdir / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_line_has_means_deviations_and_the_difference_paired_by_seed(tmp_path):
    plan, store = tfprune.plan_channels(plain_cnn(), ratio=0.5), Store(tmp_path)
    accuracies = {
        "unpruned": [0.9, 0.91, 0.92], "pruned": [0.3, 0.2, 0.1], "finetune": [0.8, 0.82, 0.84],
        "scratch_e": [0.81, 0.84, 0.85], "scratch_b": [0.83, 0.852, 0.871],
    }  # fmt: skip
    for seed in range(3):
        rows = {r: dataclasses.replace(ROW, regime=r, seed=seed, test_accuracy=accuracies[r][seed]) for r in REGIMES}
        write_stage(store, "plan", [rows["unpruned"], rows["pruned"]], plan)
        for regime in REGIMES[2:]:
            write_stage(store, regime, [rows[regime]])
    shown = write_report(tmp_path)
    lines = {line["regime"]: line for line in summary_of(tmp_path)}
    assert list(lines) == REGIMES
    for regime, values in accuracies.items():
        line = lines[regime]
        assert line["n"] == "3"
        assert float(line["test_accuracy_mean"]) == pytest.approx(np.mean(values), rel=1e-12)
        assert float(line["test_accuracy_std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    for regime, verdict in (("scratch_e", "no difference shown"), ("scratch_b", "better than finetune")):
        line, differences = lines[regime], np.subtract(accuracies[regime], accuracies["finetune"])
        interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        assert line["baseline"] == "finetune"
        assert line["verdict"] == verdict
        received = [float(line[f"difference_{name}"]) for name in ("mean", "low", "high")]
        np.testing.assert_allclose(received, [differences.mean(), *interval], rtol=1e-9)
        assert f"{100 * received[0]:+.2f} ({100 * received[1]:+.2f} to {100 * received[2]:+.2f})" in shown
    assert lines["finetune"]["baseline"] == lines["finetune"]["verdict"] == ""
    assert "equal" not in shown


def test_one_seed_has_neither_deviation_nor_interval(tmp_path):
    fill(tmp_path, tfprune.plan_channels(plain_cnn(), ratio=0.5))
    write_report(tmp_path)
    lines = {line["regime"]: line for line in summary_of(tmp_path)}
    empty = {name for name, value in lines["scratch_b"].items() if not value}
    assert {"test_accuracy_std", "difference_low", "difference_high", "latency_seconds"} <= empty
    assert float(lines["scratch_b"]["difference_mean"]) == pytest.approx(0.02)
    assert lines["scratch_b"]["verdict"] == "no difference shown"  # 128 test images tell nothing so small
    assert lines["scratch_b"]["training_flops_with_large_network"] == ""  # no origin is told


def test_a_workdir_in_which_all_has_failed_has_a_report(tmp_path, capsys):
    (tmp_path / "failed").mkdir()
    message = "The training loss is no longer a finite number."
    (tmp_path / "failed" / "train-x.json").write_text(json.dumps({"message": message}), encoding="utf-8")
    assert report([str(tmp_path)]) == 0
    assert message in capsys.readouterr().out
    for name in ("report.md", "report.html", "report.tex"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert message in text
        assert "train-x" in text
    assert not (tmp_path / "summary.csv").exists()


@pytest.mark.slow
def test_an_edited_csv_is_kept_and_told_in_one_line(tmp_path, capsys):
    fill(tmp_path, tfprune.plan_channels(plain_cnn(), ratio=0.5))
    write_report(tmp_path)
    assert capsys.readouterr().err == ""
    path = tmp_path / "results.csv"
    good = path.read_text(encoding="utf-8")
    path.write_text(good.replace("0.905", "0.999"), encoding="utf-8")
    write_report(tmp_path)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "results.edited.csv" in told
    assert path.read_text(encoding="utf-8") == good
    assert "0.999" in (tmp_path / "results.edited.csv").read_text(encoding="utf-8")


# What a study stores for it.


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A small network pruned in three ways."""
    folder = tmp_path_factory.mktemp("studies")
    user_network().save(folder / "mine.keras")
    common = ["--smoke", "--noexport", f"--model={folder / 'mine.keras'}", f"--workdir={folder / 'runs'}", "--ratio=.5"]
    assert run([*common, "--method=l1_norm,network_slimming,magnitude"]) == 0
    return folder / "runs"


def by_method(workdir):
    found = {}
    for line in summary_of(workdir):
        found.setdefault(line["method"], {})[line["regime"]] = line
    return found


@pytest.mark.slow
def test_studies_tell_what_their_pruned_networks_took(workdir):
    found = by_method(workdir)
    assert set(found) == {"l1_norm", "network_slimming", "magnitude"}
    for method, lines in found.items():
        large = float(lines["unpruned"]["training_flops"])
        with open(workdir / "results.csv", newline="", encoding="utf-8") as file:
            row = next(row for row in csv.DictReader(file) if row["regime"] == "unpruned" and row["method"] == method)
        assert large == 3 * int(row["flops"]) * int(row["train_examples"]) * int(row["epochs"])
        for regime, line in lines.items():
            own, total = (float(line[f"training_flops{end}"]) for end in ("", "_with_large_network"))
            if regime == "pruned":
                assert (own, total) == (large * (method == "network_slimming"), large)
            elif regime == "unpruned" or (method == "l1_norm" and regime.startswith("scratch")):
                assert total == own
            else:
                assert total == own + large


def test_latency_is_measured_where_the_architecture_is_smaller(workdir):
    found = by_method(workdir)
    for method, lines in found.items():
        for regime, line in lines.items():
            names = ("latency_seconds", "latency_iqr_seconds", "latency_of_large_network")
            if method == "magnitude":
                assert {line[name] for name in (*names, "latency_measured")} == {""}
                continue
            median, iqr, ratio = (float(line[name]) for name in names)
            large = float(lines["unpruned"]["latency_seconds"])
            assert 0 < median < 5
            assert 0 <= iqr < 5
            assert math.isclose(ratio, 1 if regime == "unpruned" else median / large, rel_tol=1e-9)
            assert line["latency_measured"].startswith("batch 1, ")
    page = (workdir / "report.md").read_text(encoding="utf-8")
    assert page.count("A forward pass of the smaller network took") == 2
    assert page.count("no speedup is claimed") == 1
    assert "latency" not in (workdir / "results.csv").read_text(encoding="utf-8")


@pytest.mark.slow
def test_tensorboard_has_a_row_for_every_run_and_every_figure(workdir):
    def tags(folder):
        events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
        return events, events.Tags()["tensors"]

    board = workdir / "tensorboard" / "report"
    for _ in range(2):  # a second report takes the place of the first
        events, found = tags(board)
        images = [tag for tag in found if events.SummaryMetadata(tag).plugin_data.plugin_name == "images"]
        assert len(images) == len(list((workdir / "figures").glob("*.png"))) == 3 * 4 + 1
        pixels = [tf.io.decode_png(events.Tensors(tag)[0].tensor_proto.string_val[2]).numpy() for tag in images]
        assert all(min(each.shape[:2]) > 200 for each in pixels)
        runs = [folder for folder in board.iterdir() if folder.is_dir()]
        assert len(runs) == 3 * 5
        assert all(len(list(folder.glob("events.out.*"))) == 1 for folder in (board, *runs))
        accuracies = []
        for folder in runs:
            events, _ = tags(folder)
            assert "_hparams_/session_start_info" in events.summary_metadata
            accuracies.append(tf.make_ndarray(events.Tensors("report/test_accuracy")[0].tensor_proto).item())
        with open(workdir / "results.csv", newline="", encoding="utf-8") as file:
            rows = [float(row["test_accuracy"]) for row in csv.DictReader(file)]
        assert sorted(accuracies) == pytest.approx(sorted(rows))
        write_report(workdir)
