"""The agenda is what is done, what is told beforehand, and what the estimate of time sums."""

import pytest

from tests.commands import smoke, studies
from tfprune.experiments.run import main
from tfprune.experiments.studies.agenda import Export, Training, agenda, trainings_left

IMAGES = 256  # of the synthetic data that --smoke trains on


def names(study, seed=0):
    return [step.name for step in agenda(study, seed)]


def test_the_steps_of_a_method_that_trains_sparse(small, tmp_path):
    (study,) = studies(tmp_path, f"--model={small}", "--method=network_slimming", "--seeds=0,1")
    steps = {step.name: step for step in agenda(study, 0)}
    assert list(steps) == [
        *("train", "train sparse", "plan", "export unpruned", "export pruned"),
        *("finetune", "export finetune", "scratch_e", "export scratch_e", "scratch_b", "export scratch_b"),
    ]
    assert {name: step.needs for name, step in steps.items() if not isinstance(step, Export)} == {
        "train": (),
        "train sparse": ("train",),
        "plan": ("train", "train sparse"),
        "finetune": ("plan",),
        "scratch_e": ("plan",),
        "scratch_b": ("plan",),
    }
    assert not any(step.done for step in steps.values())
    # The widths follow from the training, so only Scratch-B's budget is a guess.
    assert [name for name, step in steps.items() if not step.known] == ["scratch_b"]
    assert names(study, 1) == [name for name in steps if not name.startswith("export")]  # the first seed is exported


def test_what_a_training_costs_is_three_passes_of_every_image_and_epoch(small, tmp_path):
    (study,) = studies(tmp_path, f"--model={small}", "--method=uniform", "--ratio=0.5", "--epochs=3")
    before, after = study.foreseen()[0].flops
    trainings = {step.name: step for step in agenda(study, 0) if isinstance(step, Training)}
    epochs = {name: step.epochs for name, step in trainings.items()}
    assert epochs == {"train": 1, "finetune": 1, "scratch_e": 1, "scratch_b": 2}  # --smoke shortens them
    assert trainings["train"].flops == 3 * before * IMAGES
    assert trainings["scratch_b"].flops == 3 * after * IMAGES * 2
    assert [step.schedule.at(0) for step in trainings.values()] == pytest.approx([0.1, 0.001, 0.1, 0.1])
    left = trainings_left([study])
    assert left == {step.stage.name: step.flops for step in trainings.values()}


def test_what_is_done_is_what_was_listed(small, tmp_path):
    argv = f"--model={small}", "--method=network_slimming", "--seeds=2"
    (study,) = studies(tmp_path, *argv)
    listed = [step for seed in (0, 1) for step in agenda(study, seed) if not isinstance(step, Export) and step.known]
    smoke(tmp_path, *argv)
    (after,) = studies(tmp_path, *argv)
    steps = [step for seed in (0, 1) for step in agenda(after, seed)]
    assert all(step.done for step in steps)
    assert trainings_left([after]) == {}
    stages = {step.stage.name for step in steps}
    assert {folder.name for folder in (tmp_path / "stages").iterdir()} == stages
    assert {step.stage.name for step in listed} <= stages
    exports = [step.folder for step in steps if isinstance(step, Export)]
    assert all((folder / "model.keras").is_file() for folder in exports)
    assert len(exports) == 5


def test_a_dry_run_prints_the_steps_that_are_stages(small, tmp_path, capsys):
    argv = f"--model={small}", "--method=magnitude", "--schedule=polynomial", "--ratio=0.5"
    (study,) = studies(tmp_path, *argv)
    assert main(["--smoke", "--dry_run", f"--workdir={tmp_path}", *argv]) == 0
    table = capsys.readouterr().out.partition("------")[2].splitlines()[1:]
    told = [line.removeprefix("     0  ").partition("   ")[0].rstrip(" 0123456789.") for line in table]
    assert told == [step.name for step in agenda(study, 0) if not isinstance(step, Export)]


def test_settings_that_begin_with_one_network_have_it_left_once(small, tmp_path):
    two = studies(tmp_path, f"--model={small}", "--method=uniform", "--ratio=0.3,0.5")
    left = trainings_left(two)
    assert sum(name.startswith("train-") for name in left) == 1
    assert sum(left.values()) < sum(sum(trainings_left([study]).values()) for study in two)


@pytest.mark.parametrize("first", [0, 1])
def test_a_round_foresees_the_same_whichever_is_asked_first(small, tmp_path, first):
    rounds = studies(
        tmp_path, f"--model={small}", "--method=uniform", "--ratio=0.3", "--rounds=2", "--regimes=winning_ticket"
    )
    rounds[first].foreseen()
    plans = [study.foreseen()[0] for study in rounds]
    # 8 and 12 channels lose 0.3 of themselves, twice: what is left is rounded down each time.
    assert [len(plan.keep["second"]) for plan in plans] == [8, 5]
    assert [len(plan.keep["first"]) for plan in plans] == [5, 3]
