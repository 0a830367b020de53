"""Our rows beside the paper's cells, on rows that no network was trained for."""

import dataclasses
import shlex

import pytest
from absl import flags

from tests.stages import ROW
from tfprune import paper
from tfprune.errors import UsageError
from tfprune.experiments.findings.comparison import Footnotes, format_cell, nearest, table_beside_ours
from tfprune.experiments.setup.flags import define_flags
from tfprune.experiments.setup.resolving import settings_from_flags

EPOCHS = {"unpruned": 160, "pruned": 0, "finetune": 40, "scratch_e": 160, "scratch_b": 243}
ACCURACY = {"unpruned": 0.9363, "pruned": 0.31, "finetune": 0.93, "scratch_e": 0.935, "scratch_b": 0.94}
VGG = dataclasses.replace(
    ROW, dataset="cifar10", model="vgg16_l1", width=1.0, method="l1_norm", setting="VGG-16-A", training="", study="v"
)


def study(base=VGG, seeds=(0,), epochs=EPOCHS, **changes):
    """The rows of a study; by default one that does as the paper does."""
    return [
        dataclasses.replace(
            base, regime=regime, seed=seed, epochs=epochs[regime], test_accuracy=ACCURACY[regime] + 0.001 * seed,
            budget=f"{epochs['finetune']} epochs" if regime == "finetune" else "", **changes,
        )
        for regime in EPOCHS
        for seed in seeds
    ]  # fmt: skip


def matches(rows, table=None):
    """Regime -> match, or None."""
    return {row.regime: nearest([row], paper.cells(table=table)) for row in rows}


def lines_of(text, setting):
    """Column -> text, of the paper's line of a setting, and of ours."""
    lines = text.splitlines()
    (rule,) = [line for line in lines if line.startswith("-----")]
    starts = [at for at in range(len(rule)) if rule[at] == "-" and (at == 0 or rule[at - 1] == " ")]

    def cut(line):
        return [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]

    header = cut(lines[lines.index(rule) - 1])
    (at,) = [at for at, line in enumerate(lines) if line.startswith(("cifar", "imagenet")) and f" {setting} " in line]
    return [dict(zip(header, cut(line), strict=True)) for line in lines[at : at + 2]]


def commands(text):
    """The arguments of every command that is printed."""
    start = "  python -m tfprune.experiments.run "
    return [shlex.split(line[len(start) :]) for line in text.splitlines() if line.startswith(start)]


# Like with like.


def test_a_study_as_in_the_paper_meets_its_cells_without_a_difference():
    found = matches(study())
    assert found.pop("pruned") is None  # the paper does not print it
    assert {regime: (m.cell.table, m.cell.mean) for regime, m in found.items()} == {
        "unpruned": (1, 93.63), "finetune": (1, 93.41), "scratch_e": (1, 93.62), "scratch_b": (1, 93.78)
    }  # fmt: skip
    assert [match.differences for match in found.values()] == [()] * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 0.5}, {"dataset": "cifar100"}, {"dataset": "fashion_mini"}, {"model": "vgg16"},
        {"method": "uniform"}, {"method": "network_slimming"},
    ],
)  # fmt: skip
def test_another_width_data_set_network_or_method_meets_no_cell(changes):
    assert set(matches(study(**changes)).values()) == {None}


def test_another_setting_meets_no_cell_but_that_of_the_unpruned_network():
    found = matches(study(setting="ratio=0.5"))
    assert {regime for regime, match in found.items() if match} == {"unpruned"}


def test_short_runs_are_shown_with_what_they_differ_in():
    short = study(epochs=dict.fromkeys(EPOCHS, 2), training="epochs=2, batch_size=32, train_examples=6000")
    found = matches(short)
    common = ("epochs=2 (paper: 160)", "batch_size=32 (paper: 64)", "train_examples=6000")
    assert found["unpruned"].differences == found["scratch_e"].differences == found["scratch_b"].differences == common
    assert found["finetune"].differences == (*common, "finetune for 2 epochs (paper: 40)")
    assert {match.cell.table for match in found.values() if match} == {1}


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ("learning_rate=0.05", "learning_rate=0.05 (paper: 0.1)"),
        ("weight_decay=0.0005", "weight_decay=0.0005 (paper: 0.0001)"),
        ("precision=mixed_bfloat16", "precision=mixed_bfloat16"),
        ("xla=True", "xla=True"),
        ("replicas=2", "replicas=2"),
    ],
)
def test_every_other_setting_of_the_training_is_a_difference(training, told):
    assert matches(study(training=training))["scratch_e"].differences == (told,)


def test_the_drops_and_image_size_of_a_row_that_tells_them_are_compared():
    large = {"dataset": "imagenet", "model": "imagenet_resnet34", "setting": "ResNet-34-A"}
    training = "epochs=90, batch_size=256, drops={}, image_size={}"
    for drops, size, told in (
        ("imagenet", 224, ()),
        ("cifar", 64, ("drops=cifar (paper: imagenet)", "image_size=64 (paper: 224)")),
    ):
        assert matches(study(**large, training=training.format(drops, size)))["unpruned"].differences == told


def test_nesterov_momentum_is_no_difference():
    assert matches(study(training="nesterov=True"))["scratch_e"].differences == ()


def test_other_lengths_of_fine_tuning_and_scratch_b_are_differences():
    found = matches(study(epochs={**EPOCHS, "finetune": 10, "scratch_b": 200}))
    assert found["finetune"].differences == ("finetune for 10 epochs (paper: 40)",)
    assert found["scratch_b"].differences == ("scratch_b for 200 epochs (paper: 243)",)
    assert found["scratch_e"].differences == ()


def test_a_cap_is_a_difference_where_the_paper_has_none_and_the_other_way_round():
    (row,) = [row for row in study() if row.regime == "scratch_b"]
    capped = dataclasses.replace(row, budget="at most 2 x the epochs")
    assert "scratch_b at most 2 x the epochs (paper: no cap)" in nearest([capped], paper.cells()).differences
    large = {"dataset": "imagenet", "model": "imagenet_resnet34", "setting": "ResNet-34-A", "epochs": 106}
    training = "epochs=90, batch_size=256, drops=imagenet"
    with_cap = dataclasses.replace(capped, **large, training=training)
    assert nearest([with_cap], paper.cells()).differences == ()
    unbound = dataclasses.replace(row, **large, training=training)  # for less than twice the epochs
    assert nearest([unbound], paper.cells()).differences == ()
    without = dataclasses.replace(unbound, epochs=181)
    told = nearest([without], paper.cells()).differences
    assert told[0] == "scratch_b without a cap (paper: at most 2 x the epochs)"


def test_the_penalty_of_slimming_counts_but_not_for_the_unpruned_network():
    slim = {"model": "vgg19", "method": "network_slimming", "setting": "ratio=0.7"}
    for gamma_l1, told in (("0.0001", ()), ("1e-05", ("gamma_l1=1e-05 (paper: 0.0001)",))):
        found = matches(study(**slim, training=f"gamma_l1={gamma_l1}"))
        assert (found["finetune"].cell.mean, found["finetune"].differences) == (93.60, told)
        assert (found["unpruned"].cell.mean, found["unpruned"].differences) == (93.53, ())


def test_scratch_b_of_learned_widths_may_have_any_length():
    slim = {"model": "vgg19", "method": "network_slimming", "setting": "ratio=0.7", "training": "gamma_l1=0.0001"}
    (one,) = [row for row in study(**slim, epochs={**EPOCHS, "scratch_b": 310}) if row.regime == "scratch_b"]
    assert nearest([one, dataclasses.replace(one, seed=1, epochs=305)], paper.cells()).differences == ()


def test_a_longer_schedule_or_fine_tuning_meets_the_table_that_has_it():
    longer = study(epochs={**EPOCHS, "unpruned": 300, "scratch_e": 300, "scratch_b": 455}, training="epochs=300")
    found = matches(longer)
    assert {found[regime].cell.table for regime in ("unpruned", "scratch_e", "scratch_b", "finetune")} == {17}
    assert found["scratch_b"].differences == ()
    assert found["finetune"].differences == ("finetune for 40 epochs (paper: not known)",)
    (row,) = [row for row in study(epochs={**EPOCHS, "finetune": 80}) if row.regime == "finetune"]
    match = nearest([row], paper.cells())
    assert (match.cell.table, match.cell.mean, match.differences) == (16, 93.45, ())


# The table of the paper.


def test_a_table_has_the_papers_line_and_ours_below():
    text = table_beside_ours(1, study(seeds=(0, 1, 2)))
    theirs, ours = lines_of(text, "VGG-16-A")
    assert theirs["scratch_b"] == "93.78 ± 0.15"
    assert theirs["unpruned"] == "93.63 ± 0.16"
    assert (ours["unpruned"], ours["finetune"]) == ("93.73 ± 0.10 (n=3)", "93.10 ± 0.10 (n=3)")
    assert (ours["scratch_e"], ours["scratch_b"]) == ("93.60 ± 0.10 (n=3)", "94.10 ± 0.10 (n=3)")
    assert lines_of(text, "ResNet-56-B")[1]["scratch_e"] == "not run"


@pytest.mark.parametrize("table", paper.TABLES)
def test_every_cell_of_every_table_is_printed(table):
    text = table_beside_ours(table, [])
    for cell in paper.cells(table=table):
        assert format_cell(cell) in text
        assert cell.remark in text
        assert f"Recipe {cell.recipe}:" in text
    printed = sum(line.count("not run") for line in text.splitlines() if " ours " in line)
    lines = {(c.dataset, c.model, c.setting, c.recipe) for c in paper.cells(table=table) if c.setting}
    own_unpruned = any(cell.regime == "unpruned" for cell in paper.cells(table=table))
    designs = ("VGG-GAP", "VGG-Tiny", "ResNet-50-2x")  # nothing to fine-tune
    possible = [c for c in paper.cells(table=table) if c.setting not in designs or c.regime != "finetune"]
    assert printed == sum(1 for c in possible if c.setting) + own_unpruned * len(lines)


def test_one_seed_has_no_deviation():
    assert lines_of(table_beside_ours(1, study()), "VGG-16-A")[1]["scratch_b"] == "94.00 (n=1)"


def test_what_is_not_alike_has_a_mark_and_a_footnote_and_still_its_command():
    text = table_beside_ours(1, study(epochs=dict.fromkeys(EPOCHS, 2), training="epochs=2"))
    ours = lines_of(text, "VGG-16-A")[1]
    mark = ours["scratch_b"].removeprefix("94.00 (n=1) ")
    assert f"{mark} not the paper's training: epochs=2 (paper: 160).\n" in text
    assert any("--variant=VGG-16-A" in command for command in commands(text))
    assert not any("--variant=VGG-16-A" in command for command in commands(table_beside_ours(1, study())))


def test_the_reproduction_is_shown_rather_than_a_short_run_of_more_seeds():
    short = study(epochs=dict.fromkeys(EPOCHS, 2), training="epochs=2", seeds=range(5))
    whole = study(study="w")
    for rows in (short + whole, whole + short):
        assert lines_of(table_beside_ours(1, rows), "VGG-16-A")[1]["scratch_b"] == "94.00 (n=1)"


def test_seeds_of_several_workdirs_are_taken_together_and_none_twice():
    text = table_beside_ours(1, [*study(seeds=(0, 1)), *study(seeds=(1, 2))])
    assert lines_of(text, "VGG-16-A")[1]["unpruned"] == "93.73 ± 0.10 (n=3)"


def test_the_unpruned_network_of_one_setting_is_that_of_the_other():
    rows = study(model="resnet56", setting="ResNet-56-A", epochs={**EPOCHS, "scratch_b": 178})
    ours = lines_of(table_beside_ours(1, rows), "ResNet-56-B")[1]
    assert (ours["unpruned"], ours["scratch_b"]) == ("93.63 (n=1)", "not run")


def test_lengths_of_fine_tuning_stand_in_columns_of_their_own():
    eighty = study(epochs={**EPOCHS, "finetune": 80})
    theirs, ours = lines_of(table_beside_ours(16, eighty), "VGG-16-A")
    assert (theirs["finetune 40"], theirs["finetune 80"]) == ("93.40 ± 0.12 [1]", "93.45 ± 0.06")
    assert (ours["finetune 40"], ours["finetune 80"]) == ("not run", "93.00 (n=1)")


def test_the_learning_rate_tells_which_line_is_ours():
    rows = [dataclasses.replace(row, regime="winning_ticket") for row in study() if row.regime == "scratch_e"]
    rows = [*study(), *rows]
    for training, with_ours in (("", 0), ("learning_rate=0.01", 1)):
        text = table_beside_ours(9, [dataclasses.replace(row, training=training) for row in rows])
        lines = text.splitlines()
        own = [lines[at + 1] for at, line in enumerate(lines) if line.startswith("cifar10") and " VGG-16-A " in line]
        assert ["93.50 (n=1)" in line for line in own] == [with_ours == 0, with_ours == 1]


def test_drops_are_counted_from_our_own_unpruned_network():
    imagenet = {"dataset": "imagenet", "model": "imagenet_resnet50", "method": "thinet", "setting": "ResNet-50-70%"}
    rows = study(**imagenet, seeds=(0, 1), training="epochs=90, batch_size=256, drops=imagenet")
    theirs, ours = lines_of(table_beside_ours(2, rows), "ResNet-50-70%")
    assert theirs["scratch_e"] == "-1.71 (from 76.13)"
    assert ours["unpruned"] == "93.68 ± 0.07 (n=2)"
    assert ours["scratch_e"] == "-0.13 ± 0.00 (from 93.68) (n=2)"


def test_doubts_about_a_cell_stand_below_its_table():
    text = table_beside_ours(10, [])
    assert "suspected typo" in text
    assert table_beside_ours(6, []).count("the network really has 164 layers") == 1


# The commands.


@pytest.mark.parametrize("table", [1, 4, 16, 17])
def test_the_commands_for_what_is_not_run_would_reproduce_the_cells(table):
    found = commands(table_beside_ours(table, []))
    reached = set()
    for arguments in found:
        values = flags.FlagValues()
        define_flags(values)
        values(["run", "--dry_run", *arguments])
        (settings,) = settings_from_flags(values)
        cells = paper.cells(settings.dataset, settings.model, settings.method, settings.name, table=table)
        recipe = paper.recipe(cells[-1].recipe)
        for field in ("epochs", "batch_size", "learning_rate", "weight_decay", "budget_cap"):
            assert getattr(settings, field) == getattr(recipe, field)
        assert settings.width == 1
        assert len(settings.seeds) == cells[-1].n
        if settings.method == "network_slimming":
            assert settings.options["gamma_l1"] == recipe.gamma_l1
        lengths = (None, settings.finetune_epochs)
        run = ("unpruned", *settings.regimes)
        reached |= {c for c in cells if c.regime in run and (c.regime != "finetune" or c.epochs in lengths)}
    wanted = {cell for cell in paper.cells(table=table) if cell.model in ("vgg16_l1", "resnet56", "resnet110", "vgg19")}
    assert wanted <= reached


def test_only_the_regimes_that_are_missing_are_asked_for():
    rows = [row for row in study() if row.regime != "scratch_b"]
    (arguments,) = [found for found in commands(table_beside_ours(1, rows)) if "--variant=VGG-16-A" in found]
    assert arguments[-2:] == ["--regimes=scratch_b", "--seeds=5"]


def test_what_this_version_cannot_run_is_told_with_the_reason():
    lines = table_beside_ours(12, []).splitlines()
    assert (
        "  voc2007 imagenet_resnet34 ResNet-34-A: not possible with this version: unknown data set 'voc2007'" in lines
    )


def test_designs_are_run_from_scratch_and_their_fine_tuned_numbers_are_nobodys_to_run():
    text = table_beside_ours(2, [])
    assert "not possible" not in text
    assert "not possible" not in table_beside_ours(3, [])
    ours = lines_of(text, "VGG-GAP")[1]
    regimes = ("unpruned", "finetune", "scratch_e", "scratch_b")
    assert [ours[regime] for regime in regimes] == ["not run", "none [1]", "not run", "not run"]
    assert lines_of(text, "VGG-Conv")[1]["finetune"] == "not run"
    assert "[1] a design inherits no weights, so none can be fine-tuned." in text
    (arguments,) = [found for found in commands(text) if "--variant=VGG-GAP" in found]
    assert arguments[-1] == "--regimes=scratch_e,scratch_b"
    design = {"dataset": "imagenet", "model": "imagenet_vgg16", "method": "thinet", "setting": "VGG-GAP"}
    training = "epochs=90, batch_size=256, learning_rate=0.01, drops=imagenet"
    lengths = dict.fromkeys(EPOCHS, 90) | {"scratch_b": 180}
    rows = study(epochs=lengths, **design, training=training)
    rows = [row for row in rows if row.regime in ("unpruned", "scratch_e", "scratch_b")]
    rows[-1] = dataclasses.replace(rows[-1], budget="at most 2 x the epochs")
    text = table_beside_ours(2, rows)
    ours = lines_of(text, "VGG-GAP")[1]
    assert ours["finetune"].startswith("none")
    assert [ours[regime].endswith("(n=1)") for regime in ("unpruned", "scratch_e", "scratch_b")] == [True] * 3
    assert not [found for found in commands(text) if "--variant=VGG-GAP" in found]


def test_a_table_without_accuracies_is_refused():
    with pytest.raises(UsageError, match="Table 7 "):
        table_beside_ours(7, [])


def test_the_same_footnote_has_one_number():
    notes = Footnotes()
    assert [notes.mark("a", ""), notes.mark("b", "a"), notes.mark()] == [" [1]", " [2] [1]", ""]
    assert notes.lines() == ["[1] a.", "[2] b."]
