"""The flagfiles of the paper's tables: as the tables say, and one of every method runs."""

import re
from pathlib import Path

import pytest

from tfprune import paper
from tfprune.experiments import run
from tfprune.experiments.findings.comparison import parsed
from tfprune.experiments.flagfiles import content, flagfiles
from tfprune.paper.variants import is_design

FOLDER = Path(__file__).parents[2] / "experiments"
ON_DISK = sorted(FOLDER.glob("table_*/*.flags"))


def flags_of(path):
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def test_there_is_a_flagfile_for_every_run_of_every_table():
    expected = {
        FOLDER / f"table_{number}" / f"{name}.flags": arguments
        for number in paper.TABLES
        for name, arguments, _ in flagfiles(number)
    }
    assert {path: flags_of(path) for path in ON_DISK} == expected
    assert len(expected) >= 40


def test_a_flagfile_is_headed_by_the_papers_numbers_and_the_cost():
    path = FOLDER / "table_1" / "cifar10-vgg16_l1-VGG-16-A.flags"
    text = path.read_text(encoding="utf-8")
    assert "Table 1" in text
    printed = {"unpruned": "93.63", "finetune": "93.41", "scratch_e": "93.62", "scratch_b": "93.78"}
    assert all(re.search(rf"{regime} +{number} ", text) for regime, number in printed.items())
    # By hand: 3 passes of 50,000 images for 5 seeds; 160 epochs of the large network; 40, 160 and 243 of the small.
    large, small = 627_883_018, 0.658 * 627_883_018
    assert cost_of(path) == pytest.approx(3 * 50_000 * 5 * (160 * large + (40 + 160 + 243) * small), rel=0.05)
    (own,) = [found for found in flagfiles(1) if found[0] == path.stem]
    assert content(1, *own[1:]) == text


def cost_of(path):
    return float(re.search(r"about (\S+) FLOPs", path.read_text(encoding="utf-8"))[1])


def different():
    """The flagfiles, of those that differ in rates and lengths alone the first one."""
    settings = {}
    for path in ON_DISK:
        own = parsed(flags_of(path))
        settings.setdefault((own.dataset, own.model, own.method, own.name, own.regimes), path)
    return list(settings.values())


@pytest.mark.slow
@pytest.mark.parametrize("path", different(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_flagfile_can_be_planned(path, tmp_path, capsys):
    assert run.main([f"--flagfile={path}", "--smoke", "--dry_run", f"--workdir={tmp_path}"]) == 0
    design = is_design(parsed(flags_of(path)).name)
    assert ("\ndesign " if design else "\npruned ") in capsys.readouterr().out


def cheapest():
    """The flagfile of each method that would cost least."""
    return list({parsed(flags_of(path)).method: path for path in sorted(ON_DISK, key=cost_of, reverse=True)}.values())


@pytest.mark.slow
@pytest.mark.parametrize("path", cheapest(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_flagfile_of_every_method_runs_from_end_to_end(path, tmp_path, capsys):
    assert run.main([f"--flagfile={path}", "--smoke", "--seeds=1", f"--workdir={tmp_path}"]) == 0
    lines = (tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 4
    capsys.readouterr()
