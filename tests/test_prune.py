import keras
import numpy as np
import pytest

import tfprune
from tests.helpers import plain_cnn, predict
from tfprune import prune
from tfprune.experiments import coverage
from tfprune.proof import random_inputs


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain_cnn().save("model.keras")
    return tmp_path / "model.keras"


def test_a_file_becomes_a_smaller_file_with_its_plan_and_proof(source, capsys):
    assert prune.main(["model.keras", "--ratio=0.5", "--output=small.keras", "--nolatency"]) == 0
    shown = capsys.readouterr().out
    assert "proof: masked and removed network differ by" in shown
    model, small = keras.saving.load_model("model.keras"), keras.saving.load_model("small.keras")
    plan = tfprune.load_plan("small.plan.json")
    batch = random_inputs(model, 3)
    np.testing.assert_array_equal(predict(small, *batch)[0], predict(plan.apply(model), *batch)[0])
    assert f"params: {tfprune.profile(model).params:,} -> {tfprune.profile(small).params:,}" in shown
    assert sorted(path.name for path in source.parent.iterdir()) == ["model.keras", "small.keras", "small.plan.json"]


def test_latency_of_both_networks_is_told(source, capsys):
    assert prune.main(["model.keras", "--macs=0.5", "--output=small.keras"]) == 0
    assert "x faster" in capsys.readouterr().out


def test_the_plan_alone_writes_nothing(source, capsys):
    assert prune.main(["model.keras", "--ratio=0.5", "--plan_only"]) == 0
    assert "conv_a" in capsys.readouterr().out
    assert [path.name for path in source.parent.iterdir()] == ["model.keras"]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "Name one .keras file"),
        (["nowhere.keras", "--ratio=.5", "--output=s.keras"], "no model file 'nowhere.keras'"),
        (["model.keras", "--output=s.keras"], "either --ratio"),
        (["model.keras", "--ratio=.5", "--macs=.5", "--output=s.keras"], "either --ratio"),
        (["model.keras", "--ratio=.5"], "--output"),
        (["model.keras", "--ratio=.5", "--output=s.h5"], "no .keras file"),
        (["model.keras", "--ratio=.5", "--output=model.keras"], "the network itself"),
        (["model.keras", "--ratio=.5", "--output=folder.keras"], "is a folder"),
        (["model.keras", "--ratio=1.5", "--output=s.keras"], "1.5"),
        (["model.keras", "--ratio=.5", "--criterion=l3", "--output=s.keras"], "Did you mean 'l2'"),
        (["model.keras", "--ratio=.5", "--seed=-1", "--output=s.keras"], "--seed=-1"),
        (["garbage.keras", "--ratio=.5", "--output=s.keras"], "cannot load 'garbage.keras'"),
    ],
)
def test_a_mistake_is_told_in_one_line(source, capsys, arguments, fragment):
    (source.parent / "folder.keras").mkdir()
    (source.parent / "garbage.keras").write_bytes(b"no archive")
    assert prune.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert fragment in told
    assert not (source.parent / "s.keras").exists()


@pytest.mark.slow
def test_coverage_writes_a_row_for_each_scope(tmp_path, capsys):
    assert coverage.main(["--only=MobileNet", f"--output={tmp_path / 'coverage.md'}"]) == 0
    rows = [line for line in (tmp_path / "coverage.md").read_text(encoding="utf-8").splitlines() if "MobileNet" in line]
    assert [row.split("|")[5].strip() for row in rows] == ["layer", "global"]
    assert all(float(row.split("|")[11]) <= 1e-5 for row in rows)
    assert coverage.main(["--only=MobileNett"]) == 2
    assert "Did you mean 'MobileNet'" in capsys.readouterr().err
