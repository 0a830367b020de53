"""The command of the benchmark, and its group of studies, on runs that are stood in for."""

import functools
import json
import types

import pytest

from tfprune.experiments.bench import __main__ as command
from tfprune.experiments.bench import pruned, studies, surgery, timing
from tfprune.experiments.bench.rows import COST, SPEED, Row


@pytest.fixture
def groups(monkeypatch):
    """Rows in the places of what two groups measure, and what these were asked for."""
    asked = []

    def measuring(group, *rows):
        def measure(quick, workdir):
            asked.append((group, quick, workdir))
            yield from rows

        return measure

    slow = Row("surgery", "plan", "0.1 s", COST, 2.0, target=1.0, value="200 ms", note="the first is slow")
    monkeypatch.setattr(surgery, "measure", measuring("surgery", slow, Row("surgery", "apply", "clone", COST, 1.5)))
    monkeypatch.setattr(pruned, "measure", measuring("latency", Row("latency", "half", "whole", SPEED, 1.8, 0.1, 1.5)))
    return asked


def test_every_group_is_measured_once_in_the_order_asked_for_and_written(groups, tmp_path, capsys):
    workdir = tmp_path / "results"
    assert command.main(["--only=latency,surgery,latency", "--quick", f"--workdir={workdir}"]) == 0
    assert groups == [("latency", True, workdir), ("surgery", True, workdir)]
    shown = capsys.readouterr().out
    assert shown.index("latency\n  half") < shown.index("surgery\n  plan") < shown.index("  apply")
    assert f"report: {workdir / 'bench.md'}" in shown
    stored = json.loads((workdir / "bench.json").read_text())
    assert [(row["group"], row["name"], row["met"]) for row in stored] == [
        ("surgery", "plan", False), ("surgery", "apply", None), ("latency", "half", True),
    ]  # fmt: skip
    page = (workdir / "bench.md").read_text()
    assert "1 targets met, 1 missed, 0 withheld, 1 ratios without a target" in page
    assert "plan: the first is slow" in page


def test_rows_of_groups_that_are_not_measured_again_stay(groups, tmp_path):
    for group in ("surgery", "latency"):
        assert command.main([f"--only={group}", f"--workdir={tmp_path}"]) == 0
    assert [quick for _, quick, _ in groups] == [False, False]
    assert {row["group"] for row in json.loads((tmp_path / "bench.json").read_text())} == {"surgery", "latency"}


def test_a_file_of_others_is_told_before_anything_is_measured(groups, tmp_path, capsys):
    (tmp_path / "bench.json").write_text("{}")
    assert command.main(["--only=surgery", f"--workdir={tmp_path}"]) == 2
    assert "another --workdir" in capsys.readouterr().err
    assert groups == []


@pytest.fixture
def studied(monkeypatch):
    """What every study was called with; its workdir holds the trainings of its settings, of ten FLOPs each."""
    calls, clock = [], iter(range(0, 10_000, 100))

    def study(workdir, *flags):
        workdir.mkdir(parents=True)
        given = dict(flag.removeprefix("--").split("=") for flag in flags)
        calls.append((workdir, given))

    def collect(workdir):
        (given,) = [given for own, given in calls if own == workdir][-1:]
        settings = given.get("method", "").count(",") + 1, given.get("ratio", "").count(",") + 1
        shards = int(given.get("shard", "0/1").partition("/")[2])
        seeds = int(given.get("seeds", 1)) // shards
        rows = [types.SimpleNamespace(train_seconds=15.0, of=number) for number in range(2)]
        trained = {("whole", seed): types.SimpleNamespace(name=f"whole_{seed}") for seed in range(seeds)}
        for number in range(settings[0] * settings[1] * seeds):
            # Two rows of one training, which is done once.
            trained |= {(number, row): types.SimpleNamespace(name=f"small_{number}") for row in range(2)}
        return types.SimpleNamespace(rows=rows, trained=trained)

    monkeypatch.setattr(studies, "_study", study)
    monkeypatch.setattr(studies, "collect", collect)
    monkeypatch.setattr(studies, "training_flops", lambda results: dict.fromkeys(results.trained, (10.0, None)))
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr(studies, "in_turns", functools.partial(timing.in_turns, clock=lambda: float(next(clock))))
    return calls


@pytest.mark.parametrize(("quick", "seeds"), [(True, 1), (False, 2)])
def test_a_sweep_is_beside_its_settings_each_by_itself(quick, seeds, studied, tmp_path):
    sweep, flops, quickstart, beside = studies.measure(quick, tmp_path)
    together = [given for workdir, given in studied if workdir.name == "together"]
    assert [(one["method"], one["ratio"], one["seeds"]) for one in together] == [
        ("l1_norm,network_slimming", "0.3,0.6", str(seeds))
    ]
    apart = [given for workdir, given in studied if workdir.parent.name == "apart"]
    one_round = [
        (method, ratio, f"{seed}/{seeds}")
        for method in ("l1_norm", "network_slimming")
        for ratio in ("0.3", "0.6")
        for seed in range(seeds)
    ]
    # Once in turn with the sweep, and once more to see whether the machine has drifted.
    assert [(given["method"], given["ratio"], given["shard"]) for given in apart] == 2 * one_round
    assert {given["epochs"] for given in (*together, *apart)} == {"2"}
    assert {given["train_examples"] for given in (*together, *apart)} == {"1000" if quick else "3000"}
    assert (sweep.ratio, sweep.baseline) == (1.0, "every setting and seed in a workdir of its own")
    # Together the whole network is trained once for each seed, apart once for each setting of it.
    assert flops.ratio == round((seeds + 4 * seeds) / (2 * 4 * seeds), 4)
    assert flops.value == f"{50.0 * seeds:.3g} FLOPs"
    assert (quickstart.ratio, quickstart.met, quickstart.baseline) == (round(100 / 240, 4), True, "240 s")
    assert (beside.ratio, beside.target, beside.met) == (0.7, 0.25, False)
    assert studied[-1][0].name == "quickstart"
    assert bool(studied[-1][1]) == quick  # the whole of it is as in the README
    assert list(tmp_path.iterdir()) == []
