"""Lottery tickets: with which weights they begin, how they are pruned in rounds, what is told of them."""

import dataclasses
import re
import shutil

import numpy as np
import pytest

from tests.commands import read
from tests.helpers import user_network
from tests.stages import ROW
from tfprune.experiments import lottery, report
from tfprune.experiments.findings.statistics import verdict
from tfprune.experiments.reporting.tickets import ticket_lines, ticket_points
from tfprune.experiments.store.rows import collect
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.plans.loading import load_plan
from tfprune.training.loop import Trainer

KERNELS = ("first", "second")


@pytest.fixture
def runs(monkeypatch):
    """Every training that happens: first weights, first epoch and epochs, learning rates and final weights."""
    seen, run = [], Trainer.run

    def recording(self, weights, epochs, schedule, *args, **kwargs):
        result = run(self, weights, epochs, schedule, *args, **kwargs)
        seen.append({"first": [np.array(w) for w in weights], "epochs": [e["epoch"] for e in result.history],
                     "rates": [e["learning_rate"] for e in result.history], "last": result.weights})  # fmt: skip
        return result

    monkeypatch.setattr(Trainer, "run", recording)
    return seen


def go(small, workdir, *flags):
    argv = ["--smoke", f"--model={small}", "--learning_rate=0.1", "--noexport", f"--workdir={workdir}", *flags]
    assert lottery.main(argv) == 0


def named(weights):
    """Weight path -> value, of weights in the network's order."""
    model = user_network()
    return {weight.path: value for weight, value in zip(model.weights, weights, strict=True)}


def plans_of(workdir):
    """The plans, least first removed."""
    found = [load_plan(path) for path in workdir.glob("stages/plan-*/plan.json")]
    return sorted(found, key=lambda plan: -plan.flops[1])


# What they begin with.


def test_the_unstructured_winning_ticket_begins_with_the_large_networks_first_weights_under_the_mask(
    small, runs, tmp_path
):
    go(small, tmp_path, "--ratio=.5")
    large, winning, random = runs
    masks = plans_of(tmp_path)[0].arrays()
    first, ticket, other = (named(run["first"]) for run in (large, winning, random))
    trained_kernels = named(large["last"])
    for path, value in first.items():
        layer, _, name = path.partition("/")
        if name == "kernel" and layer in KERNELS:
            np.testing.assert_array_equal(ticket[path], value * masks[layer])
            np.testing.assert_array_equal(other[path] != 0, masks[layer])
            assert not np.isin(other[path][masks[layer]], value).any()  # new draws, all of them
        else:
            np.testing.assert_array_equal(ticket[path], value)
    # The mask is that of the trained weights: one threshold over all convolutions.
    magnitudes = np.sort(np.concatenate([np.abs(trained_kernels[f"{layer}/kernel"]).ravel() for layer in KERNELS]))
    threshold = magnitudes[len(magnitudes) // 2]
    for layer in KERNELS:
        np.testing.assert_array_equal(masks[layer], np.abs(trained_kernels[f"{layer}/kernel"]) >= threshold)


def test_the_structured_winning_ticket_is_cut_from_the_large_networks_first_weights(small, runs, tmp_path):
    go(small, tmp_path, "--method=l1_norm", "--ratio=.5")
    large, winning, random = runs
    first, last = named(large["first"]), named(large["last"])
    keep = {}
    for layer in KERNELS:  # the filters of largest L1 norm, after the training
        norms = np.abs(last[f"{layer}/kernel"]).sum((0, 1, 2))
        keep[layer] = np.sort(np.argsort(norms)[len(norms) // 2 :])
    expected = [first["first/kernel"][..., keep["first"]]]
    expected += [first[f"bn_first/{name}"][keep["first"]] for name in ("gamma", "beta")]
    expected += [first[f"bn_first/moving_{name}"][keep["first"]] for name in ("mean", "variance")]
    expected += [first["second/kernel"][:, :, keep["first"]][..., keep["second"]], first["second/bias"][keep["second"]]]
    for value, received in zip(expected, winning["first"], strict=False):
        np.testing.assert_array_equal(received, value)
    np.testing.assert_array_equal(winning["first"][-2], first["classes/kernel"][keep["second"]])
    assert [w.shape for w in random["first"]] == [w.shape for w in winning["first"]]
    assert not np.isin(random["first"][0], first["first/kernel"]).any()


@pytest.mark.parametrize("method", ["magnitude", "uniform"])
def test_scratch_does_not_begin_with_the_large_networks_first_weights(small, runs, tmp_path, method):
    go(small, tmp_path, f"--method={method}", "--ratio=.1", "--regimes=scratch_e")
    large, scratch = runs
    for one, other in ((large["first"][0], scratch["first"][0]), (large["first"][-2], scratch["first"][-2])):
        assert not np.isin(other[other != 0], one).any()


def test_a_ticket_that_is_rewound_begins_where_the_large_network_was_and_goes_on_from_there(small, runs, tmp_path):
    go(small, tmp_path, "--method=l1_norm", "--ratio=.5", "--rewind_epoch=1")
    large, winning, random = runs
    assert (large["epochs"], winning["epochs"], random["epochs"]) == ([1, 2], [2], [1, 2])
    assert winning["rates"] == large["rates"][1:]
    (stage,) = tmp_path.glob("stages/train-*")
    with np.load(stage / "early_weights.npz", allow_pickle=False) as arrays:
        early = named([arrays[f"w{number}"] for number in range(len(arrays))])
    assert np.abs(early["first/kernel"] - named(large["first"])["first/kernel"]).max() > 1e-4
    assert np.abs(early["first/kernel"] - named(large["last"])["first/kernel"]).max() > 1e-4
    kept = list(plans_of(tmp_path)[0].keep["first"])
    np.testing.assert_array_equal(winning["first"][0], early["first/kernel"][..., kept])
    rows = read(tmp_path)
    assert [row["epochs"] for row in rows if row["regime"] == "winning_ticket"] == ["1"]
    assert [row["budget"] for row in rows if row["regime"] == "winning_ticket"] == ["rewound to epoch 1"]


# Rounds.


def test_every_round_removes_its_share_of_what_the_trained_ticket_has_left(small, runs, tmp_path):
    go(small, tmp_path, "--ratio=.2", "--rounds=3")
    assert len(runs) == 1 + 3 * 2  # the large network once, two tickets a round
    plans, total = plans_of(tmp_path), 8 * 9 + 8 * 12 * 9
    kept = [sum(int(mask.sum()) for mask in plan.arrays().values()) for plan in plans]
    assert kept == [total - int(total * (1 - 0.8**number)) for number in (1, 2, 3)]
    tickets = [named(run["last"]) for run in (runs[0], runs[1], runs[3])]  # pruned in rounds 1, 2 and 3
    before = dict.fromkeys(KERNELS, True)
    for plan, ticket in zip(plans, tickets, strict=True):
        masks = plan.arrays()
        magnitudes = {layer: np.abs(ticket[f"{layer}/kernel"]) for layer in KERNELS}
        cut = np.sort(np.concatenate([m.ravel() for m in magnitudes.values()]))[-sum(m.sum() for m in masks.values())]
        for layer in KERNELS:
            np.testing.assert_array_equal(masks[layer], magnitudes[layer] >= cut)
            assert not np.any(masks[layer] & ~np.broadcast_to(before[layer], masks[layer].shape))
        before = masks
    first = named(runs[0]["first"])
    np.testing.assert_array_equal(named(runs[5]["first"])["second/kernel"], first["second/kernel"] * before["second"])


def test_channels_are_pruned_in_rounds_too(small, runs, tmp_path):
    go(small, tmp_path, "--method=l1_norm", "--ratio=.3", "--rounds=2")
    one, two = plans_of(tmp_path)
    large, ticket = runs[0], runs[1]
    norms = np.abs(ticket["last"][0]).sum((0, 1, 2))
    left = np.asarray(one.keep["first"])[np.sort(np.argsort(norms)[len(norms) - len(two.keep["first"]) :])]
    assert list(two.keep["first"]) == left.tolist()
    assert len(two.keep["first"]) == int(int(8 * 0.7) * 0.7)
    kept = list(two.keep["first"])
    np.testing.assert_array_equal(runs[3]["first"][0], named(large["first"])["first/kernel"][..., kept])
    rows = read(tmp_path)
    assert {row["setting"] for row in rows} == {"ratio=0.3", "ratio=0.3 round=2"}
    params = {row["setting"]: row["params"] for row in rows if row["regime"] == "winning_ticket"}
    assert params == {"ratio=0.3": str(one.params[1]), "ratio=0.3 round=2": str(two.params[1])}


def test_the_same_command_again_trains_nothing(small, tmp_path, trained):
    flags = ("--ratio=.5", "--rounds=2", "--rewind_epoch=1")
    go(small, tmp_path, *flags)
    written, count = (tmp_path / "results.csv").read_bytes(), len(trained)
    go(small, tmp_path, *flags)
    assert (len(trained), (tmp_path / "results.csv").read_bytes()) == (count, written)


@pytest.mark.slow
def test_a_large_network_is_trained_once_for_all_its_settings(small, tmp_path, trained):
    argv = ["--smoke", f"--model={small}", "--ratio=.3,.6", "--noexport", f"--workdir={tmp_path}"]
    assert lottery.main(argv) == 0  # at the two default learning rates
    assert len(list(tmp_path.glob("stages/train-*"))) == 2
    assert len(trained) == 2 + 2 * 2 * 2
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Lottery tickets: synthetic, mine.keras, magnitude" in page
    assert (tmp_path / "figures" / "tickets-synthetic-mine.keras-magnitude.png").is_file()
    assert len(collect(tmp_path).plans) == 4


def test_the_mask_and_the_rewound_weights_are_of_the_same_training(small, runs, tmp_path):
    go(small, tmp_path, "--ratio=.5", "--schedule=polynomial", "--rewind_epoch=1")
    _, sparse, winning, _ = runs
    (stage,) = tmp_path.glob("stages/train-*-sparse-*")
    with np.load(stage / "early_weights.npz", allow_pickle=False) as arrays:
        early = named([arrays[f"w{number}"] for number in range(len(arrays))])
    (plan,) = plans_of(tmp_path)
    np.testing.assert_array_equal(named(sparse["last"])["second/kernel"] != 0, plan.arrays()["second"])
    expected = early["second/kernel"] * plan.arrays()["second"]
    np.testing.assert_array_equal(named(winning["first"])["second/kernel"], expected)
    assert len(list(tmp_path.glob("stages/*/early_weights.npz"))) == 1


def test_rounds_at_random_draw_apart():
    # Of eight channels two rounds of a half leave two, each with a chance of a quarter.
    model, kept = user_network(), np.zeros(8)
    method = METHODS.get("random")
    for seed in range(60):
        one = method.plan(model, MethodSettings(ratio=0.5, seed=seed))
        both = one.then(model, method.plan(one.apply(model), MethodSettings(ratio=0.5, seed=seed, round=2)))
        kept[list(both.keep["first"])] += 1
    # 15 of 60 expected, with a deviation of 3.4; the same draws again would leave channel 0 about 26 times.
    assert kept.sum() == 120
    assert np.all(np.abs(kept - 15) < 11)
    assert abs(kept[0] - 15) < 9


def test_a_study_whose_plan_is_gone_is_left_out_of_the_report_and_told(small, tmp_path, capsys):
    go(small, tmp_path, "--ratio=.3,.6")
    gone = next(path for path in tmp_path.glob("stages/plan-*/plan.json") if load_plan(path).origin["sparsity"] == 0.6)
    shutil.rmtree(gone.parent)
    capsys.readouterr()
    assert report.main([str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "ratio=0.6 is left out: its plan is not in" in printed.err
    assert {row["setting"] for row in read(tmp_path)} == {"ratio=0.3"}


def test_a_list_tells_what_is_left_to_train_and_what_it_costs(small, tmp_path, capsys):
    flags = ["--smoke", f"--model={small}", "--ratio=.3,.6", "--learning_rate=0.1", f"--workdir={tmp_path}"]
    assert lottery.main([*flags, "--dry_run"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    # One large network and four tickets of 256 images, three passes each; what the tickets cost is a guess.
    assert last.startswith(
        "regimes winning_ticket, random_ticket; seeds 0; 1 epoch of the large network; 5 trainings left"
    )
    assert 3 * 256 * 125_074 < float(re.search(r"about (\S+) FLOPs", last)[1]) < 3 * 256 * 125_074 * 5
    assert lottery.main([*flags, "--noexport"]) == 0
    capsys.readouterr()
    assert lottery.main([*flags, "--dry_run"]) == 0
    assert "0 trainings left" in capsys.readouterr().out


# What is told.


def rows_of(study, setting, nonzero, winning, random):
    base = dataclasses.replace(ROW, study=study, setting=setting, training="learning_rate=0.01")
    rows = []
    for seed, (one, other) in enumerate(zip(winning, random, strict=True)):
        for regime, accuracy, left in (
            ("unpruned", 0.95, 1000), ("pruned", 0.5, nonzero), ("winning_ticket", one, nonzero),
            ("random_ticket", other, nonzero),
        ):  # fmt: skip
            own = {"seed": seed, "regime": regime, "test_accuracy": accuracy, "nonzero_params": left}
            rows.append(dataclasses.replace(base, **own))
    return rows


def test_the_table_has_both_tickets_of_every_setting_and_their_paired_difference():
    rows = rows_of("b", "ratio=0.8", 200, [0.91, 0.93, 0.92], [0.90, 0.91, 0.89])
    rows += rows_of("a", "ratio=0.2", 800, [0.94], [0.95])
    ((title, points),) = ticket_points(rows).items()
    assert title.endswith(f"{ROW.model} x {ROW.width:g}, {ROW.method}" if ROW.width != 1 else ROW.method)
    lines = ticket_lines(points)
    assert [line[:3] for line in lines] == [
        ("learning_rate=0.01", "ratio=0.2", "20.0"), ("learning_rate=0.01", "ratio=0.8", "80.0"),
    ]  # fmt: skip
    assert lines[0][3:] == ("95.00", "94.00", "95.00", "-1.00", "1")
    # Differences of 1, 2 and 3 points: mean 2, deviation 1, t(0.975, 2) = 4.303, so 2 ± 4.303 / sqrt(3).
    assert lines[1][4:] == ("92.00 ± 1.00", "90.00 ± 1.00", "+2.00 (-0.48 to +4.48)", "3")


def test_rounds_and_patterns_are_lines_of_their_own():
    rows = [
        *rows_of("a", "ratio=0.2", 800, [0.9], [0.9]), *rows_of("b", "ratio=0.2 round=2", 640, [0.9], [0.9]),
        *rows_of("c", "ratio=0.6", 400, [0.9], [0.9]), *rows_of("d", "2:4 ratio=0.5", 500, [0.9], [0.9]),
    ]  # fmt: skip
    ((_, points),) = ticket_points(rows).items()
    found = {point.setting: point.protocol for point in points}
    assert found == {
        "ratio=0.2": "", "ratio=0.2 round=2": "rounds of 0.2", "ratio=0.6": "", "2:4 ratio=0.5": "2:4",
    }  # fmt: skip


def test_a_setting_without_both_tickets_has_no_line():
    rows = [row for row in rows_of("a", "ratio=0.2", 800, [0.9], [0.9]) if row.regime != "random_ticket"]
    assert ticket_points(rows) == {}


@pytest.mark.parametrize(
    ("differences", "lead"),
    [
        ((0.02, 0.021, 0.019), "The first weights mattered"),
        ((-0.02, -0.021, -0.019), "The first weights did harm"),
        ((0.02, -0.02, 0.01), "No difference between the winning and the random ticket was shown"),
    ],
)
def test_the_verdict_on_tickets(differences, lead):
    random = dict.fromkeys(range(3), 0.9)
    winning = {seed: 0.9 + value for seed, value in enumerate(differences)}
    words = verdict({"winning_ticket": winning, "random_ticket": random}, 10_000)
    assert words.startswith(lead)
    assert "fine-tuning" not in words
    both = verdict(
        {"winning_ticket": winning, "random_ticket": random, "finetune": random, "scratch_e": random}, 10_000
    )
    assert lead in both
    assert "fine-tuning" in both


# Mistakes.


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rounds=0"], "--rounds=0 must be at least 1"),
        (["--rounds=2", "--regimes=random_ticket"], "Try --regimes=winning_ticket,random_ticket"),
        (["--rounds=2", "--method=thinet"], "--rounds=2 goes with a --ratio of l1_norm, magnitude"),
        (["--rounds=2", "--method=l1_norm", "--model=vgg16_l1", "--variant=VGG-16-A"], "received --method=l1_norm"),
        (["--rounds=2", "--schedule=polynomial"], "without --pattern and --schedule"),
        (
            ["--rounds=3", "--ratio=.9", "--method=l1_norm"],
            "Round 3 of --rounds cannot be pruned; ask for fewer rounds",
        ),
        (["--rewind_epoch=6"], "less than the 6 epochs"),
        (["--rewind_epoch=-1"], "must be 0 or more"),
        (["--rewind_epoch=1", "--regimes=random_ticket"], "--rewind_epoch=1 is of --regimes=winning_ticket"),
        (["--learning_rate=fast"], "--learning_rate=fast must be a number, or several with commas"),
        (["--ratio=.5,.6,0.5"], "--ratio=.5,.6,0.5 names 0.5 twice"),
        (["--method=magnitude,thin"], "'thin'"),
        (["--gate_l1=1"], "--gate_l1 belongs to --method=sparse_structure_selection; received --method=magnitude"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(flags, words, capsys):
    assert lottery.main(["--dry_run", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
