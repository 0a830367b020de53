"""Architecture search: what is run, what is told, and what is refused."""

import dataclasses
import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest
from absl import flags
from keras import layers
from scipy import stats

import tfprune
from tests.commands import read
from tests.helpers import user_network
from tests.stages import ROW
from tfprune.experiments import report, run, search
from tfprune.experiments.findings.architectures import (
    Efficiency,
    Found,
    Point,
    controls,
    efficiency,
    found_patterns,
    is_search,
    mean_of_seeds,
    same_ratio,
    write_patterns,
)
from tfprune.experiments.reporting.architecture_sections import _times as words_of
from tfprune.experiments.setup.resolving import settings_from_flags
from tfprune.experiments.store.rows import Results, collect
from tfprune.models import build_model
from tfprune.planning.to_pattern import pattern_of, plan_guided
from tfprune.plans.loading import load_plan
from tfprune.plans.patterns import Pattern, load_pattern

FOLDER = Path(__file__).parents[2] / "experiments"
RECIPES = sorted(FOLDER.glob("figure_*/*.flags"))


def go(small, workdir, *more):
    return search.main(["--smoke", f"--model={small}", f"--workdir={workdir}", *more])


def settings_of(*argv):
    values = flags.FlagValues()
    search.define_flags(values)
    values(["search", *argv])
    return search._grid(values)


# What is run.


@pytest.mark.slow
def test_one_command_trains_found_uniform_and_guided_networks_and_a_second_one_nothing(small, tmp_path, trained):
    assert go(small, tmp_path, "--ratio=.25,.5", "--seeds=2") == 0
    # A large network for each seed, and its sparse one; scratch_e of four methods and of two kinds of guided networks.
    assert len(trained) == 2 * 2 + 2 * 2 * (4 + 2)
    rows = read(tmp_path)
    found = {(row["method"], row["regime"]) for row in rows if row["regime"].startswith("scratch")}
    methods = ("network_slimming", "uniform", "magnitude", "uniform_sparsification", "guided")
    assert found == {(method, "scratch_e") for method in methods}
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert page.index("## Architecture search: synthetic, mine.keras") < page.index("## synthetic, mine.keras, guided")
    for words in ("guided by network_slimming, ratio=0.25", "guided by magnitude, ratio=0.5", "times fewer parameters"):
        assert words in page
    for name in ("search-", "pattern-"):
        assert list((tmp_path / "figures").glob(f"{name}synthetic-mine.keras*.png"))
    written, before = (tmp_path / "results.csv").read_bytes(), len(trained)
    assert go(small, tmp_path, "--ratio=.25,.5", "--seeds=2") == 0
    assert (len(trained), (tmp_path / "results.csv").read_bytes()) == (before, written)
    check_patterns(tmp_path)
    check_that_a_saved_pattern_makes_the_same_network(small, tmp_path, trained)


def check_patterns(workdir):
    """Every saved pattern is the mean of those of the plans of its seeds, computed anew."""
    results, model = collect(workdir), user_network()
    rows = {row.study: row for row in results.rows if row.method in ("network_slimming", "magnitude")}
    files = sorted((workdir / "patterns").glob("*.json"))
    assert len(files) == 4
    for path in files:
        (study,) = (own for own, row in rows.items() if f"{row.method}-ratio-{row.setting[6:]}-" in path.name)
        of_seeds = [pattern_of(model, results.plans[study, seed]) for seed in (0, 1)]
        saved, kind = load_pattern(path), "channels" if rows[study].method == "network_slimming" else "weights"
        assert (saved.kind, saved.origin["seeds"], saved.origin["setting"]) == (kind, [0, 1], rows[study].setting)
        if kind == "channels":
            assert saved.stages == pytest.approx(np.mean([own.stages for own in of_seeds], axis=0))
        else:
            for number, stage in enumerate(saved.stages):
                expected = np.mean([own.stages[number]["3x3"] for own in of_seeds], axis=0)
                np.testing.assert_allclose(stage["3x3"], expected)
    lines = read(workdir, "patterns.csv")
    of_channels = [line for line in lines if not line["kernel"]]
    assert len(of_channels) == 2 * 2 * 2  # settings, seeds, stages
    assert len(lines) - len(of_channels) == 2 * 2 * 2 * 9
    for line in of_channels:
        pattern = pattern_of(model, results.plans[line["study"], int(line["seed"])])
        assert float(line["kept"]) == pattern.stages[int(line["stage"]) - 1]


def check_that_a_saved_pattern_makes_the_same_network(small, workdir, trained):
    path = next((workdir / "patterns").glob("*network_slimming-ratio-0.5-*.json"))
    before = len(trained)
    flags = ["--smoke", f"--model={small}", "--method=guided", f"--guide={path}", "--regimes=scratch_e", "--seeds=2"]
    assert run.main([*flags, "--noexport", f"--workdir={workdir}"]) == 0
    assert len(trained) == before
    content = json.loads(path.read_text(encoding="utf-8"))
    content["stages"][0] = 0.25
    edited = workdir / "edited.json"
    edited.write_text(json.dumps(content), encoding="utf-8")
    assert run.main([*flags, f"--guide={edited}", "--noexport", f"--workdir={workdir}"]) == 0
    assert len(trained) == before + 2
    plans = [
        plan for plan in collect(workdir).plans.values() if plan.origin.get("digest") == load_pattern(edited).digest
    ]
    assert [len(plan.keep["first"]) for plan in plans] == [2, 2]
    assert f"| edited, {content['name']}" in (workdir / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_shards_leave_guided_networks_to_a_run_that_has_all_seeds(small, tmp_path, capsys, trained):
    flags = ["--ratio=.5", "--seeds=2", "--method=network_slimming,uniform"]
    assert go(small, tmp_path, *flags, "--shard=0/2") == 0
    assert "no guided network for network_slimming, ratio=0.5. Its seeds 1 are not pruned" in capsys.readouterr().out
    assert go(small, tmp_path, *flags, "--shard=1/2") == 0  # and its own part of the guided networks
    assert "no guided network" not in capsys.readouterr().out
    assert go(small, tmp_path, *flags) == 0
    assert len(trained) == 2 * (2 + 2 + 1)
    guided = [row for row in read(tmp_path) if row["method"] == "guided"]
    assert {row["seed"] for row in guided} == {"0", "1"}


@pytest.mark.slow
def test_macs_find_a_plan_and_a_design_with_the_uniform_network_of_the_same_macs(small, tmp_path):
    assert go(small, tmp_path, "--macs=.5", "--seeds=1") == 0
    plans = {
        load_plan(path).origin.get("scope", "guided"): load_plan(path)
        for path in tmp_path.glob("stages/plan-*/plan.json")
    }
    assert set(plans) == {"global", "layer", "guided"}
    for scope in ("global", "layer"):
        before, after = plans[scope].macs
        assert 0.35 < after / before <= 0.5  # to within one of a few channels
    assert {row["setting"] for row in read(tmp_path)} >= {"macs=0.5"}
    model = user_network()
    assert tfprune.verify(model, plans["guided"]) < 1e-5
    assert plans["guided"].keep.keys() == plans["global"].keep.keys()


@pytest.mark.slow
def test_a_pattern_of_another_network_is_told_as_transferred(small, tmp_path, capsys):
    Pattern("channels", (0.5, 0.75), "theirs", {"dataset": "cifar10", "network": "vgg", "width": 1.0,
            "pruning": "network_slimming", "setting": "ratio=0.3"}).save(tmp_path / "theirs.json")  # fmt: skip
    Pattern("channels", (0.25, 0.75), "by hand").save(tmp_path / "hand.json")
    guides = f"--guide={tmp_path / 'theirs.json'},{tmp_path / 'hand.json'}"
    assert go(small, tmp_path / "runs", "--ratio=.3", "--seeds=1", "--method=uniform", guides) == 0
    shown = capsys.readouterr().out
    assert "transferred from cifar10, vgg: network_slimming, ratio=0.3" in shown
    assert "transferred, by hand" in shown
    widths = sorted(
        tuple(len(load_plan(path).keep[name]) for name in ("first", "second"))
        for path in (tmp_path / "runs").glob("stages/plan-*guided*/plan.json")
    )
    assert widths == [(2, 9), (4, 9)]


def test_a_search_of_a_network_with_other_defaults_says_what_it_runs():
    found = settings_of()
    assert [(own.method, own.ratio) for own in found] == [
        (method, ratio)
        for method in ("network_slimming", "uniform", "magnitude", "uniform_sparsification")
        for ratio in (0.3, 0.5, 0.7)
    ]
    first = found[0]
    assert (first.dataset, first.model, first.width, first.seeds) == ("fashion_mini", "vgg11", 0.25, (0, 1, 2))
    assert (first.regimes, first.export) == (("scratch_e",), False)


# Efficiency.


def point(line, unit, params, accuracies, found=False, source=""):
    seeds = range(len(accuracies))
    sizes = dict.fromkeys(seeds, params)
    return Point(unit, line, line, source, "aaaaaaaa", sizes, 1.0, dict(zip(seeds, accuracies, strict=True)), found)


def test_the_efficiency_of_figure_3():
    # VGG-16 on CIFAR-10 as the paper has it; Network Slimming at 60 % is as accurate as no uniform network.
    uniform = ((2.34, 91.93), (3.68, 92.43), (5.29, 92.92), (7.20, 93.06), (9.39, 93.27), (11.89, 93.47))
    points = [point("uniform", "channels", int(size * 1e6), [accuracy / 100]) for size, accuracy in uniform]
    points.append(point("unpruned", "", 14_724_042, [0.9363]))
    own = point("network_slimming", "channels", 2_450_000, [0.9369], True)
    found = efficiency(own, [*points, own])
    assert found.ratio == pytest.approx(14_724_042 / 2_450_000)
    assert (found.n, found.above, found.below) == (1, 1, 0)
    assert math.isnan(found.low)
    assert words_of(found) == "at least 6.01 x (a bound in 1 of 1 seeds)"


def test_efficiency_is_paired_by_seed_with_an_interval():
    accuracies = {100_000: (0.80, 0.79, 0.81), 400_000: (0.84, 0.85, 0.83)}
    points = [point("uniform", "channels", size, values) for size, values in accuracies.items()]
    points.append(point("unpruned", "", 1_600_000, (0.90, 0.91, 0.92)))
    own = point("network_slimming", "channels", 50_000, (0.82, 0.85, 0.875), True)
    found = efficiency(own, [*points, own])
    # Half way between 100,000 and 400,000 on a logarithmic scale; at 400,000; half way to 1,600,000.
    logs = np.log([200_000 / 50_000, 400_000 / 50_000, 800_000 / 50_000])
    interval = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.ratio, found.low, found.high], np.exp([logs.mean(), *interval]), rtol=1e-9)
    assert (found.n, found.above, found.below) == (3, 0, 0)
    assert found.sign == 1


def test_a_control_that_falls_with_its_size_is_made_a_curve_that_does_not():
    points = [point("uniform", "channels", size, [height]) for size, height in ((100, 0.5), (200, 0.75), (400, 0.25))]
    points.append(point("unpruned", "", 800, [0.75]))
    own = point("network_slimming", "channels", 100, [0.5], True)
    # 0.75 and 0.25 are pooled to 0.5, which is reached at the smallest.
    assert efficiency(own, [*points, own]).ratio == pytest.approx(1.0)
    other = dataclasses.replace(own, accuracies={0: 0.625})
    assert efficiency(other, [*points, other]).ratio == pytest.approx(math.sqrt(400 * 800) / 100)


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ((0.70, 0.82, 0.83), "at most {} x (a bound in 1 of 3 seeds)"),
        ((0.82, 0.95, 0.97), "at least {} x (a bound in 2 of 3 seeds)"),
        ((0.70, 0.82, 0.97), "not known: only bounds, of both kinds"),
    ],
)
def test_bounds_have_no_interval_and_show_nothing(accuracies, words):
    points = [point("uniform", "channels", size, (low,) * 3) for size, low in ((100_000, 0.80), (400_000, 0.84))]
    points.append(point("unpruned", "", 1_600_000, (0.90,) * 3))
    own = point("network_slimming", "channels", 10_000, accuracies, True)
    found = efficiency(own, [*points, own])
    assert math.isnan(found.low)
    assert found.sign == 0
    assert words_of(found) == words.format(f"{found.ratio:.2f}")


@pytest.mark.parametrize(
    ("low", "high", "sign"),
    [(1.1, 2.0, 1), (0.9, 2.0, 0), (0.5, 0.9, -1), (1.5, 1.5, 0), (math.nan, math.nan, 0)],
)
def test_when_an_efficiency_is_shown(low, high, sign):
    assert Efficiency(1.0, low, high, 3, 0, 0).sign == sign


def test_what_stands_beside_what():
    points = [
        point("network_slimming", "channels", 10, [0.9], True, "ratio=0.5"),
        point("uniform", "channels", 10, [0.8], source="ratio=0.5"),
        point("uniform_sparsification", "kernel weights", 10, [0.7], source="ratio=0.5"),
        point("magnitude", "kernel weights", 10, [0.6], True, "ratio=0.3"),
    ]
    assert controls(points[0], points) == [points[1]]
    assert controls(points[1], points) == []
    assert same_ratio(points[0], points).mean == pytest.approx(0.1)
    assert same_ratio(points[3], points) is None
    assert is_search(points)
    assert not is_search([points[0], points[2]])


def test_a_report_leaves_an_edited_pattern_alone(tmp_path):
    row = dataclasses.replace(ROW, method="network_slimming", setting="ratio=0.5")
    patterns = {seed: Pattern("channels", (0.5, kept), "mine") for seed, kept in enumerate((0.2, 0.4))}
    found = Found(row, patterns, mean_of_seeds(patterns))
    write_patterns(tmp_path, [found])
    path = tmp_path / found.file
    assert load_pattern(path).stages == pytest.approx((0.5, 0.3))
    path.write_text(path.read_text(encoding="utf-8").replace("0.5", "0.75"), encoding="utf-8")
    write_patterns(tmp_path, [found])
    assert load_pattern(path).stages == pytest.approx((0.75, 0.3))
    more = {**patterns, 2: Pattern("channels", (0.8, 0.6), "mine")}  # another seed
    other = Found(row, more, mean_of_seeds(more))
    write_patterns(tmp_path, [other])
    assert load_pattern(tmp_path / other.file).stages == pytest.approx((0.6, 0.4))
    assert load_pattern(path).stages == pytest.approx((0.75, 0.3))


def test_seeds_with_other_stages_have_no_mean_and_are_told():
    rows = [dataclasses.replace(ROW, method="network_slimming", seed=seed) for seed in (0, 1)]
    patterns = {(ROW.study, 0): Pattern("channels", (0.5, 0.5)), (ROW.study, 1): Pattern("channels", (0.5,))}
    with pytest.warns(UserWarning, match="the patterns of network_slimming, ratio=0.5 are left out. Only patterns"):
        assert found_patterns(Results(rows, {}, {}, {}, {}, {}, patterns)) == []


# Recipes.


def flags_of(path):
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recipe_is_read_as_the_figure_says(path, monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    found = settings_of(f"--flagfile={path}")
    assert {own.seeds for own in found} == {(0, 1, 2, 3, 4)}
    assert {own.epochs for own in found} == {160}
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {path.parent.name.capitalize().replace('_', ' ')}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [own for own in RECIPES if own.parent.name != "figure_4"],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_a_recipe_can_be_planned(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(FOLDER.parent)
    assert search.main([f"--flagfile={path}", "--smoke", "--dry_run", f"--workdir={tmp_path}"]) == 0
    *_, left, guided = capsys.readouterr().out.strip().splitlines()
    assert "trainings left" in left
    assert guided.startswith("and ")


@pytest.mark.slow
def test_a_recipe_runs_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(FOLDER.parent)
    more = ["--smoke", "--seeds=1", "--ratio=0.4", f"--workdir={tmp_path}"]
    assert search.main([f"--flagfile={FOLDER / 'figure_3' / 'channels.flags'}", *more]) == 0
    assert "guided by network_slimming, ratio=0.4" in capsys.readouterr().out


def test_the_transfer_command_builds_the_networks_of_figure_6(monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    found = settings_of(f"--flagfile={FOLDER / 'figure_6' / 'transferred.flags'}")
    model = build_model("vgg19", (32, 32, 3), 100)
    assert {(own.dataset, own.model, own.width, own.method) for own in found} == {("cifar100", "vgg19", 1.0, "guided")}
    params = [plan_guided(model, own.guide).params[1] for own in found]
    assert [round(count / 1e7, 3) for count in params] == [1.567, 1.196, 0.881, 0.624, 0.428, 0.307]


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        # The x axes of figures 3, 5 and 6; PreResNet-164 under the name of PreResNet-110.
        ("vgg16_unstructured", 10, (13.26, 11.79, 10.32, 8.84, 7.37, 5.90, 4.43, 2.96, 1.49)),
        ("vgg19_unstructured", 100, (18.08, 16.08, 14.08, 12.08, 10.08, 8.08, 6.07, 4.07)),
        ("preresnet164", 100, (1.559, 1.391, 1.223, 1.056, 0.888, 0.721, 0.553, 0.385, 0.218)),
        ("densenet40", 100, (0.997, 0.893, 0.790, 0.686, 0.582, 0.479, 0.375, 0.272, 0.168)),
    ],
)
def test_sparse_networks_have_the_parameters_of_the_figures(name, classes, millions):
    model = build_model(name, (32, 32, 3), classes)
    plans = [
        tfprune.plan_weights(model, 0.1 * n, scope="layer", criterion="random") for n in range(1, len(millions) + 1)
    ]
    digits = 0.006 if millions[0] > 10 else 0.0006
    assert [plan.nonzero[1] / 1e6 for plan in plans] == pytest.approx(millions, abs=digits)


# Mistakes.


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--ratio=0"], "--ratio=0 is outside (0, 1)"),
        (["--ratio=.3,1.2"], "--ratio=1.2 is outside (0, 1)"),
        (["--macs=1"], "--macs=1 is outside (0, 1): give the fraction of the MACs to keep"),
        (["--macs=.5", "--ratio=.5"], "Give one of --ratio, --macs and --variant"),
        (["--macs=.5", "--method=magnitude"], "--macs goes with network_slimming, uniform, random"),
        (["--guide=nowhere.json"], "Cannot read the pattern 'nowhere.json'"),
        (["--method=guided"], "give --guide, a file that tfprune.experiments.search has written"),
        (["--method=guided,uniform", "--guide=nowhere.json"], "--method=guided goes without other methods"),
        (["--regimes=finetune"], "A search compares networks trained with the regime scratch_e"),
        (["3"], "Unexpected argument '3'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(flags, words, capsys):
    assert search.main(["--dry_run", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_pattern_with_another_number_of_stages_is_one_line_and_status_2(small, tmp_path, capsys):
    Pattern("channels", (0.5,) * 3).save(tmp_path / "three.json")
    assert go(small, tmp_path / "runs", "--seeds=1", f"--guide={tmp_path / 'three.json'}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has 3 stages, 'mine' has 2: first; second." in line
    assert not list((tmp_path / "runs").glob("stages/train-*"))


def test_a_network_without_stages_is_one_line_and_status_2(tmp_path, capsys):
    inputs = keras.Input((32, 32, 1))
    x = layers.BatchNormalization()(layers.Dense(16)(layers.Flatten()(inputs)))
    keras.Model(inputs, layers.Dense(10)(layers.ReLU()(x)), name="flat").save(tmp_path / "flat.keras")
    assert go(tmp_path / "flat.keras", tmp_path / "runs", "--seeds=1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'flat' has no stages" in line


def test_settings_of_other_commands_take_a_guide_too(tmp_path):
    Pattern("channels", (0.5, 0.5), "my pattern").save(tmp_path / "p.json")
    values = flags.FlagValues()
    run.define_flags(values)
    values(["run", "--method=guided", f"--guide={tmp_path / 'p.json'}"])
    (settings,) = settings_from_flags(values)
    assert settings.name == f"guide=my-pattern-{load_pattern(tmp_path / 'p.json').digest}"
    assert settings.ratio is None


def test_a_report_without_patterns_writes_none(small, tmp_path):
    argv = ["--smoke", f"--model={small}", "--method=uniform", "--noexport", f"--workdir={tmp_path}"]
    assert run.main(argv) == 0
    assert not (tmp_path / "patterns.csv").exists()
    assert report.main([str(tmp_path)]) == 0
    assert "Architecture search" not in (tmp_path / "report.md").read_text(encoding="utf-8")
