import dataclasses
import re

import matplotlib.image
import pytest

import tfprune
from tests.helpers import other_head, plain_cnn
from tests.stages import ACCURACY, ROW, fill, write_stage
from tfprune.experiments.findings.statistics import verdict
from tfprune.experiments.report import main
from tfprune.experiments.reporting.writing import write_report
from tfprune.experiments.store.stage import Store


@pytest.fixture(scope="module")
def plan():
    return tfprune.plan_channels(plain_cnn(), ratio=0.5)


def table_lines(text, column="test accuracy %"):
    """Regime -> its lines of the tables on the terminal that have a column of this name."""
    found, wanted = {}, False
    for line in text.splitlines():
        word = line.split(" ", 1)[0]
        wanted = column in line if word == "regime" else wanted
        if wanted and word in ACCURACY:
            found.setdefault(word, []).append(line)
    return found


def test_a_report_holds_csv_table_verdict_and_figures(tmp_path, plan):
    fill(tmp_path, plan)
    shown = write_report(tmp_path)
    assert list(table_lines(shown)) == list(ACCURACY)
    assert "93.00" in table_lines(shown)["unpruned"][0]
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    words = verdict({"finetune": {0: 0.90}, "scratch_e": {0: 0.905}, "scratch_b": {0: 0.92}}, 128)
    assert words in shown
    assert words in page
    assert len((tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()) == 6
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert len(pictures) == 4
    for picture in pictures:
        pixels = matplotlib.image.imread(tmp_path / picture)
        assert min(pixels.shape[:2]) > 200
        assert pixels[..., :3].std() > 0.01


def test_several_seeds_have_one_line_a_regime_with_mean_and_deviation(tmp_path, plan):
    fill(tmp_path, plan, seeds=(0, 1, 2))
    lines = table_lines(write_report(tmp_path))
    assert {regime: len(found) for regime, found in lines.items()} == dict.fromkeys(ACCURACY, 1)
    assert "90.10 ± 0.10" in lines["finetune"][0]  # 90.0, 90.1, 90.2
    assert lines["finetune"][0].split()[-1] == "3"


def test_seeds_whose_plans_give_scratch_b_other_lengths_are_judged_together(tmp_path, plan):
    # Network Slimming's widths, and so the FLOPs ratio, differ by seed.
    fill(tmp_path, plan, seeds=(0, 1, 2), scratch_b_epochs=(12, 14, 13))
    shown = write_report(tmp_path)
    accuracies = {regime: {seed: ACCURACY[regime] + 0.001 * seed for seed in range(3)} for regime in ACCURACY}
    accuracies["scratch_b"][1] += 0.001
    assert "n=3" in verdict(accuracies, 128).split("Scratch-B ended")[1]
    assert verdict(accuracies, 128) in shown
    lines = table_lines(shown)
    assert len(lines["scratch_b"]) == 1
    assert lines["scratch_b"][0].split()[-1] == "3"


def test_of_several_lengths_of_a_regime_the_longest_is_judged(tmp_path, plan):
    fill(tmp_path, plan, seeds=(0, 1))
    for seed in (0, 1):
        longer = dataclasses.replace(
            ROW, regime="finetune", seed=seed, epochs=40, budget="40 epochs", test_accuracy=0.95 + 0.001 * seed
        )
        write_stage(Store(tmp_path), "finetune", [longer])
    shown = write_report(tmp_path)
    accuracies = {regime: {seed: ACCURACY[regime] + 0.001 * seed for seed in range(2)} for regime in ACCURACY}
    assert len(table_lines(shown)["finetune"]) == 2  # never averaged together
    accuracies["finetune"] = {0: 0.95, 1: 0.951}
    accuracies["scratch_b"][1] += 0.001
    assert verdict(accuracies, 128) in shown


@pytest.mark.slow
def test_every_setting_has_a_section_and_figures_of_its_own(tmp_path, plan):
    fill(tmp_path, plan)
    fill(tmp_path, plan, method="l1_norm", study="bbbbbbbb")
    fill(tmp_path, plan, width=0.5, study="cccccccc")
    write_report(tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert sorted(titles) == [
        "All settings of synthetic, vgg16 x 0.25",
        "How to read this",
        "synthetic, vgg16 x 0.25, l1_norm, ratio=0.5",
        "synthetic, vgg16 x 0.25, uniform, ratio=0.5",
        "synthetic, vgg16 x 0.5, uniform, ratio=0.5",
    ]
    assert len(list((tmp_path / "figures").glob("*.png"))) == 13


@pytest.mark.slow
def test_the_command_rebuilds_what_was_deleted(tmp_path, plan, capsys):
    fill(tmp_path / "a", plan)
    fill(tmp_path / "b", plan, seeds=(0, 1))
    before = write_report(tmp_path / "a")
    for file in ("results.csv", "report.md"):
        (tmp_path / "a" / file).unlink()
    capsys.readouterr()
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert before in shown
    assert "n=2" in shown
    for folder in "ab":
        assert (tmp_path / folder / "report.md").is_file()
        assert (tmp_path / folder / "results.csv").is_file()


LIKE_TABLE_1 = {"dataset": "cifar10", "model": "vgg16_l1", "width": 1.0, "method": "l1_norm", "setting": "VGG-16-A"}


def test_the_papers_value_stands_beside_ours_with_a_footnote_where_the_training_differs(tmp_path, plan):
    fill(tmp_path, plan, seeds=(0, 1), training="epochs=6", **LIKE_TABLE_1)
    shown = write_report(tmp_path)
    lines = table_lines(shown)
    assert re.split(r"  +", lines["unpruned"][0])[1:3] == ["93.05 ± 0.07", "93.63 ± 0.16 (table 1) [1]"]
    assert re.split(r"  +", lines["scratch_b"][0])[2] == "93.78 ± 0.15 (table 1) [1]"
    assert "93.41 ± 0.12 (table 1) [2]" in lines["finetune"][0]
    assert "table" not in lines["pruned"][0]
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    for text in (shown, page):
        assert "paper %" in text
        assert "[1] not the paper's training: epochs=6 (paper: 160).\n" in text
        assert "[2] not the paper's training: epochs=6 (paper: 160), finetune for 6 epochs (paper: 40).\n" in text
    assert "| 93.63 ± 0.16 (table 1) [1] " in page


def test_a_design_has_no_pruned_row_and_is_judged_beside_the_large_network(tmp_path):
    plan = tfprune.DesignPlan.beside(plain_cnn(), other_head())
    store = Store(tmp_path)
    for seed in (0, 1):
        for regime in ("unpruned", "scratch_e", "scratch_b"):
            row = dataclasses.replace(ROW, regime=regime, seed=seed, test_accuracy=ACCURACY[regime] + 0.001 * seed)
            write_stage(store, *(("plan", [row], plan) if regime == "unpruned" else (regime, [row])))
    for stage in store.finished("plan"):  # as a study leaves it: a design has no weights before it is trained
        (stage.folder / "weights.npz").unlink()
    shown = write_report(tmp_path)
    assert list(table_lines(shown)) == ["unpruned", "scratch_e", "scratch_b"]
    assert "Scratch-E ended 2.5 points below it" in shown
    assert "-2.50 (-2.50 to -2.50)" in table_lines(shown)["scratch_e"][0]
    assert "fine-tun" not in shown
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "![channels per layer](figures/channels-" in page
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert matplotlib.image.imread(tmp_path / picture)[..., :3].std() > 0.01


def test_a_study_that_the_paper_does_not_have_has_no_column_for_it(tmp_path, plan):
    fill(tmp_path, plan)
    assert "paper %" not in write_report(tmp_path)


def test_a_table_of_the_paper_is_printed_over_all_workdirs_and_nothing_is_written(tmp_path, plan, capsys):
    fill(tmp_path / "a", plan, scratch_b_epochs=(243,), **LIKE_TABLE_1)
    fill(tmp_path / "b", plan, seeds=(1,), scratch_b_epochs=(243,), **LIKE_TABLE_1)
    assert main([str(tmp_path / "a"), "--paper_table=1", str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Table 1 of the paper: L1-norm filter pruning")
    assert "92.00 ± 0.00 (n=2)" in shown
    assert "python -m tfprune.experiments.run --dataset=cifar10 --model=resnet56 " in shown
    assert not list(tmp_path.glob("*/report.md"))
    assert not list(tmp_path.glob("*/results.csv"))


def test_a_table_of_the_paper_needs_no_workdir(capsys):
    assert main(["--paper_table=4"]) == 0
    shown = capsys.readouterr().out
    assert "93.81 ± 0.14" in shown
    assert "(n=" not in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--paper_table=7"], ["7", "1, 2, 3, 4, 5, 6, 8"]),
        (["--paper_table=0"], ["0", "1, 2, 3, 4, 5, 6, 8"]),
        (["--paper_table=two"], ["--paper_table", "two"]),
        (["/nowhere/at/all", "--paper_table=1"], ["/nowhere/at/all"]),
        (["{empty}", "--paper_table=1"], ["no finished"]),
    ],
)
def test_a_wrong_table_or_workdir_is_status_2_and_one_line(arguments, told, tmp_path, capsys):
    assert main([argument.format(empty=tmp_path) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert all(part in shown.err for part in told)


@pytest.mark.parametrize(
    ("arguments", "told"), [([], "workdir"), (["/nowhere/at/all"], "/nowhere/at/all"), (["{empty}"], "no finished")]
)
def test_a_workdir_without_results_is_status_2_and_one_line(arguments, told, tmp_path, capsys):
    assert main([argument.format(empty=tmp_path) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert told in shown.err
    assert list(tmp_path.iterdir()) == []
