"""What costs no training after the cut: more rows of the pruned network, evaluated as their words say."""

import numpy as np
import pytest

import tfprune
from tests.commands import forbid_training, read, refused, smoke
from tfprune.data import load
from tfprune.experiments.store.stage import Store
from tfprune.models import build_model
from tfprune.plans.loading import load_plan

WORDS = ["", "compensated", "compensated, recalibrated", "recalibrated"]


def pruned_rows(workdir):
    return {row["budget"]: row for row in read(workdir) if row["regime"] == "pruned"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    smoke(folder, "--model=resnet20", "--width=.25", "--method=uniform", "--regimes=finetune", "--noexport")
    return folder


def test_rows_are_added_to_a_finished_study_without_any_training(workdir, monkeypatch, capsys):
    before = read(workdir)
    forbid_training(monkeypatch)
    argv = ["--model=resnet20", "--width=.25", "--method=uniform", "--regimes=finetune", "--noexport", "--after_cut"]
    smoke(workdir, *argv)
    assert sorted(pruned_rows(workdir)) == WORDS
    assert [row for row in read(workdir) if row["budget"] not in WORDS[1:]] == before
    assert "pruned (compensated, recalibrated)" in capsys.readouterr().out
    smoke(workdir, *argv)
    assert len(read(workdir)) == len(before) + 3

    # The same by hand, from what the stages hold.
    store = Store(workdir)
    plan = load_plan(store.finished("plan")[0].file("plan.json"))
    data, large = load("synthetic"), build_model("resnet20", load("synthetic").test_images.shape[1:], 10, 0.25)
    large.set_weights(store.finished("train")[0].weights())
    images, _ = data.normalized_sample(1000)
    test = (data.test_images.astype("float32") / 255 - data.mean) / np.asarray(data.std, "float32")
    compensated = plan.apply(large, compensate=images)
    by_hand = {
        "": plan.apply(large),
        "compensated": compensated,
        "compensated, recalibrated": tfprune.recalibrate(plan.apply(large, compensate=images), images),
        "recalibrated": tfprune.recalibrate(plan.apply(large), images),
    }
    for words, network in by_hand.items():
        accuracy = float((network.predict(test, verbose=0).argmax(-1) == data.test_labels).mean())
        # One image in 128 may lie where rounding decides.
        assert float(pruned_rows(workdir)[words]["test_accuracy"]) == pytest.approx(accuracy, abs=1.5 / len(test)), (
            words
        )
        assert int(pruned_rows(workdir)[words]["params"]) == tfprune.profile(network).params


def test_a_method_that_fits_what_is_left_is_recalibrated_only(tmp_path):
    smoke(
        tmp_path, "--model=resnet20", "--width=.25", "--method=regression", "--regimes=finetune", "--noexport",
        "--after_cut",
    )  # fmt: skip
    assert sorted(pruned_rows(tmp_path)) == ["", "recalibrated"]


def test_a_design_inherits_nothing(capsys):
    network = ("--dataset=imagenet", "--model=imagenet_vgg16")
    told = refused(capsys, *network, "--method=thinet", "--variant=VGG-Tiny", "--after_cut")
    assert "--variant=VGG-Tiny is a design, which inherits none" in told
