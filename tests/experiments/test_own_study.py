"""`tfprune.study` and the command on a user's own network, data and task."""

import functools
import signal
import time

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.commands import forbid_training, read, refused, smoke
from tests.processes import finish, start
from tests.stages import CONTRACT
from tfprune.data import load
from tfprune.errors import PlanError, UsageError
from tfprune.experiments import search
from tfprune.experiments.report import main as report_main
from tfprune.experiments.run import main

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(120, 5)).astype("float32")
NUMBERS = np.sin(X[:, 0]) + X[:, 1] * X[:, 2]
CLASSES = GENERATOR.integers(0, 3, 120)
QUICK = {"method": "uniform", "epochs": 2, "finetune_epochs": 1, "batch_size": 20}
TEST = slice(100, None)


def table(outputs=1, **ending):
    inputs = keras.Input((5,), name="x")
    x = layers.BatchNormalization(name="norm")(layers.Dense(8, name="hidden")(inputs))
    return keras.Model(inputs, layers.Dense(outputs, name="out", **ending)(layers.ReLU(name="relu")(x)), name="table")


def regression(**changes):
    model = table()
    model.compile(**{"optimizer": keras.optimizers.Adam(0.01), "loss": "mse", "metrics": ["mae"], **changes})
    return model


def split(targets):
    return (X[:100], targets[:100]), (X[TEST], targets[TEST])


def mean_absolute_error(network):
    return float(np.abs(np.asarray(network(X[TEST])).ravel() - NUMBERS[TEST]).mean())


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A study of a regression, and its network."""
    keras.utils.set_random_seed(0)
    model, workdir = regression(), tmp_path_factory.mktemp("studied")
    before = model.get_weights()
    result = tfprune.study(model, *split(NUMBERS), seeds=2, workdir=workdir, **QUICK)
    return result, model, before, workdir


def test_every_row_is_the_metric_of_the_network_that_is_stored(studied):
    result = studied[0]
    assert result.metric == "mae"
    assert [row.regime for row in result.rows if row.seed == 1] == [
        "unpruned", "pruned", "finetune", "scratch_e", "scratch_b"
    ]  # fmt: skip
    for row in result.rows:
        network = result.network(row.regime, row.seed)
        assert row.test_accuracy == pytest.approx(mean_absolute_error(network), rel=1e-5)
        assert row.params == sum(int(np.prod(weight.shape)) for weight in network.trainable_weights)
        assert (row.metric, row.metric_kind) == ("mae", "error")
        assert row.best_accuracy <= row.test_accuracy


def test_the_network_of_the_user_stays_as_it_is(studied):
    _, model, before, _ = studied
    for own, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(own, other)
    assert model.compiled


def test_results_report_and_verdict_name_the_metric(studied):
    result, _, _, workdir = studied
    rows = read(workdir)
    assert set(CONTRACT) <= set(rows[0])
    assert {(row["metric"], row["metric_kind"], row["dataset"], row["model"]) for row in rows} == {
        ("mae", "error", "own", "table")
    }
    page = result.report.read_text(encoding="utf-8")
    assert result.verdict in page
    assert "test mae" in page
    assert "it in mae" in result.verdict
    assert "accuracy by regime" not in page
    assert f"{result.rows[0].metric}" in str(result)
    assert {row["metric"] for row in read(workdir, "summary.csv")} == {"mae"}


def test_the_same_call_again_trains_nothing_and_another_one_does(studied, monkeypatch):
    result, model, _, workdir = studied
    forbid_training(monkeypatch)
    again = tfprune.study(model, *split(NUMBERS), seeds=2, workdir=workdir, **QUICK)
    assert again.rows == result.rows
    (x, y), test = split(NUMBERS)
    changed = y.copy()
    changed[3] += 1e-6
    other = keras.models.clone_model(model)
    other.compile(keras.optimizers.Adam(0.02), "mse", metrics=["mae"])
    for call in (
        lambda: tfprune.study(model, (x, changed), test, seeds=2, workdir=workdir, **QUICK),
        lambda: tfprune.study(other, (x, y), test, seeds=2, workdir=workdir, **QUICK),
        lambda: tfprune.study(model, (x, y), test, seeds=2, workdir=workdir, loss="mae", **QUICK),
        lambda: tfprune.study(model, (x, y), test, seeds=2, workdir=workdir, metrics=["mse"], **QUICK),
    ):
        with pytest.raises(AssertionError, match="trained what was trained"):
            call()


def test_what_was_not_run_cannot_be_had(studied):
    result = studied[0]
    with pytest.raises(UsageError, match="Unknown regime of this study 'winning_ticket'"):
        result.network("winning_ticket")
    with pytest.raises(UsageError, match="seed=7 is none of this study: 0, 1"):
        result.plan(7)


def test_a_single_seed_can_be_asked_for_by_its_number(tmp_path):
    result = tfprune.study(
        regression(), *split(NUMBERS), seeds=[5], regimes="scratch_e", workdir=tmp_path, export=False, **QUICK
    )
    assert {row.seed for row in result.rows} == {5}
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("weights", ["fresh", "trained"])
def test_what_is_frozen_stays_as_it_was_given_in_every_network(weights, tmp_path):
    model = regression()
    hidden, norm = model.get_layer("hidden"), model.get_layer("norm")
    hidden.trainable = False
    given, gamma = hidden.get_weights(), norm.get_weights()[0]
    call = {"seeds": 2, "weights": weights, "workdir": tmp_path, "export": False, **QUICK}
    result = tfprune.study(model, *split(NUMBERS), **call)
    for seed in (0, 1):
        kept = list(result.plan(seed).keep["hidden"])
        for regime in ("finetune", "scratch_e", "scratch_b"):
            network = result.network(regime, seed)
            for own, value in zip(network.get_layer("hidden").get_weights(), given, strict=True):
                np.testing.assert_array_equal(own, value[..., kept])
            assert not network.get_layer("hidden").trainable
            assert not np.array_equal(network.get_layer("norm").get_weights()[0], gamma[kept])
    hidden.set_weights([value + 1 for value in given])  # other values that are frozen are another network
    other = tfprune.study(model, *split(NUMBERS), **call)
    assert not {row.test_accuracy for row in other.rows} & {row.test_accuracy for row in result.rows}


# A network that comes with its weights.


def test_given_weights_are_evaluated_and_nothing_large_is_trained(tmp_path, trained):
    model = regression()
    model.fit(X[:100], NUMBERS[:100], epochs=3, verbose=0)
    result = tfprune.study(
        model, *split(NUMBERS), seeds=1, weights="trained", method="network_slimming", ratio=0.5, epochs=4,
        finetune_epochs=1, batch_size=20, regimes=["finetune", "scratch_e"], workdir=tmp_path,
    )  # fmt: skip
    assert trained == [1, 4]
    unpruned = result.rows[0]
    assert (unpruned.regime, unpruned.epochs, unpruned.train_seconds) == ("unpruned", 0, 0.0)
    assert unpruned.test_accuracy == pytest.approx(model.evaluate(X[TEST], NUMBERS[TEST], verbose=0)[1], rel=1e-5)
    gammas = np.abs(model.get_layer("norm").gamma.numpy())
    assert result.plan().keep["hidden"] == tuple(sorted(np.argsort(-gammas, kind="stable")[:4].tolist()))
    page = result.report.read_text(encoding="utf-8")
    assert "100 training examples at hand, the comparison favours the inherited weights" in page
    assert [folder.name.split("-")[0] for folder in sorted((tmp_path / "stages").iterdir())] == [
        "finetune", "given", "plan", "scratch_e"
    ]  # fmt: skip
    other = keras.models.clone_model(model)
    other.compile("adam", "mse", metrics=["mae"])
    again = tfprune.study(
        other, *split(NUMBERS), seeds=1, weights="trained", method="uniform", epochs=4, finetune_epochs=1,
        batch_size=20, regimes="finetune", workdir=tmp_path,
    )  # fmt: skip
    assert again.rows[0].test_accuracy != unpruned.test_accuracy


def test_a_file_comes_with_its_weights_on_images_too(tmp_path, small):
    model = keras.saving.load_model(small)
    smoke(tmp_path, f"--model={small}", "--weights=trained", "--method=l1_norm", "--regimes=finetune")
    data = load("synthetic")
    images = (data.test_images.astype("float32") / 255 - data.mean[0]) / data.std[0]
    right = float((np.asarray(model(images)).argmax(-1) == data.test_labels).mean())
    (unpruned, *_) = read(tmp_path)
    assert float(unpruned["test_accuracy"]) == pytest.approx(right)
    assert unpruned["epochs"] == "0"


def npz(folder, **changes):
    (x_train, y_train), (x_test, y_test) = split(NUMBERS)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test, **changes}
    np.savez(folder / "data.npz", **arrays)
    return f"--data_dir={folder / 'data.npz'}"


@pytest.mark.slow
def test_the_command_studies_a_file_with_an_npz_file(tmp_path, capsys):
    model = regression()
    model.fit(X[:100], NUMBERS[:100], epochs=3, verbose=0)
    model.save(tmp_path / "mine.keras")
    fixed = [f"--model={tmp_path / 'mine.keras'}", "--dataset=npz", npz(tmp_path), f"--workdir={tmp_path / 'runs'}"]
    flags = [
        "--weights=trained",
        "--method=uniform",
        "--epochs=2",
        "--finetune_epochs=1",
        "--batch_size=20",
        "--seeds=2",
    ]
    assert main([*fixed, *flags, "--seeds=2"]) == 0
    rows = read(tmp_path / "runs")
    expected = model.evaluate(X[TEST], NUMBERS[TEST], verbose=0)[1]
    assert [float(row["test_accuracy"]) for row in rows if row["regime"] == "unpruned"] == pytest.approx([expected] * 2)
    assert "it in mae, of which lower is better" in capsys.readouterr().out
    assert report_main([str(tmp_path / "runs")]) == 0


def test_a_loss_can_be_named_for_a_network_that_is_not_compiled(tmp_path, capsys):
    table().save(tmp_path / "mine.keras")
    flags = ["--dry_run", f"--model={tmp_path / 'mine.keras'}", "--dataset=npz", npz(tmp_path), "--method=uniform"]
    assert "is not compiled, and no loss is given" in refused(capsys, *flags)
    assert main([*flags, "--loss=huber", "--metrics=mae,mse", "--judged_by=mse"]) == 0
    assert "judged by mse, lower is better" in capsys.readouterr().out


def test_a_search_is_for_fractions_of_right_answers(tmp_path, capsys):
    regression().save(tmp_path / "mine.keras")
    flags = [f"--model={tmp_path / 'mine.keras'}", "--dataset=npz", npz(tmp_path), f"--workdir={tmp_path / 'runs'}"]
    assert search.main([*flags, "--dry_run"]) == 2
    assert "npz is judged by mae. Give a fraction of right answers" in capsys.readouterr().err


def test_layers_of_ones_own_are_imported_by_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "layers_of_mine.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('mine')\n"
        "class Double(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return 2 * x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from layers_of_mine import Double

    inputs = keras.Input((32, 32, 1))
    x = Double()(layers.Conv2D(4, 3, name="conv")(inputs))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    model.save(tmp_path / "mine.keras")
    del keras.saving.get_custom_objects()["mine>Double"]
    monkeypatch.delitem(__import__("sys").modules, "layers_of_mine")
    flags = ["--smoke", "--dry_run", f"--model={tmp_path / 'mine.keras'}", "--method=l1_norm"]
    assert "it needs 'Double'" in refused(capsys, *flags)
    assert main([*flags, "--import=layers_of_mine"]) == 0


# What is refused.


def nan():
    changed = X[:100].copy()
    changed[7, 2] = np.nan
    return changed


def frozen():
    model = regression()
    model.trainable = False
    return model


def training_in_its_own_way(name):
    plain = table()
    kind = type("Mine", (keras.Model,), {name: lambda self, *args, **kwargs: None})
    model = kind(plain.inputs, plain.outputs, name="table")
    model.compile("adam", "mse", metrics=["mae"])
    return model


WRONG = {
    "shapes": (regression, (X[:100, :4], NUMBERS[:100]), {}, r"shapes .n, 4.; 'table' takes .n, 5."),
    "targets": (regression, (X[:100], X[:100]), {}, "mean_squared_error compares"),
    "labels": (lambda: table(3), (X[:100], CLASSES[:100] + 1), {}, "labels run from 1 to 3"),
    "empty class": (lambda: table(4), (X[:100], CLASSES[:100]), {}, "no training example is of class 3"),
    "nan": (regression, (nan(), NUMBERS[:100]), {}, "the first at index 7"),
    "metric": (regression, (X[:100], NUMBERS[:100]), {"metrics": ["sparse_categorical_accuracy"]}, "another output"),
    "no such output": (regression, (X[:100], NUMBERS[:100]), {"metrics": {"mask": "mae"}}, "'mask'; 'table' has out"),
    "no loss": (table, (X[:100], NUMBERS[:100]), {}, "is not compiled, and no loss is given"),
    "no network": (lambda: "table", (X[:100], NUMBERS[:100]), {}, "must be a Keras model"),
    "argument": (regression, (X[:100], NUMBERS[:100]), {"epoch": 3}, "Did you mean 'epochs'"),
    "several": (regression, (X[:100], NUMBERS[:100]), {"ratio": [0.3, 0.5]}, "one setting"),
    "batch": (regression, (X[:100], NUMBERS[:100]), {"batch_size": 101}, "more than the 100 training examples"),
    "sparse training": (
        regression, (X[:100], NUMBERS[:100]), {"method": "soft_filter", "weights": "trained"}, "nothing large is"
    ),
    **{
        name: (
            functools.partial(training_in_its_own_way, name), (X[:100], NUMBERS[:100]), {},
            rf"'table' .Mine. has a {name} of its own"
        )
        for name in ("train_step", "compute_loss", "test_step", "compute_metrics")
    },
    "seed": (regression, (X[:100], NUMBERS[:100]), {"seeds": [-1]}, r"seeds=.-1. must name whole numbers from 0"),
    "half a seed": (regression, (X[:100], NUMBERS[:100]), {"seeds": [1.5]}, r"seeds=.1.5. must name whole"),
    "optimizer": (regression, (X[:100], NUMBERS[:100]), {"optimizer": "adamm"}, "'adamm' is no optimizer of Keras"),
    "name": (regression, (X[:100], NUMBERS[:100]), {"name": 5}, "name= must be a text; received 5"),
    "wide weights": (
        regression, (X[:100], NUMBERS[:100, None], np.ones((100, 2))), {}, "The loss 'mse' cannot be computed"
    ),
    "all frozen": (frozen, (X[:100], NUMBERS[:100]), {}, "'table' has no weight that is trained"),
    "gates": (
        regression, (X[:100], NUMBERS[:100]), {"method": "sparse_structure_selection"}, "proximal steps"
    ),
    "float16": (regression, (X[:100], NUMBERS[:100]), {"precision": "mixed_float16"}, "Take mixed_bfloat16"),
    "weights of losses": (regression, (X[:100], NUMBERS[:100]), {"loss_weights": [1.0]}, "goes with loss="),
    "method": (regression, (X[:100], NUMBERS[:100]), {"method": "l1_norm"}, "'table' has none"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told_in_one_line_before_anything_is_stored(case, tmp_path):
    make, train, more, told = WRONG[case]
    test = X[TEST, : train[0].shape[1]], train[1][:20]
    with pytest.raises((UsageError, PlanError), match=told) as error:
        tfprune.study(make(), train, test, workdir=tmp_path, **{"seeds": 1, **QUICK, **more})
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--weights=trained"], "--weights=trained takes the weights in a file"),
        (["--weights=trained", "--model=FILE", "--regimes=winning_ticket"], "A winning ticket starts from"),
        (["--weights=trained", "--model=FILE", "--gamma_l1=1e-3"], "--gamma_l1 is of a training"),
        (["--weights=given"], "Unknown weights 'given'"),
        (["--dataset=npz", "--model=FILE"], "needs --data_dir"),
        (["--dataset=npz", "--model=FILE", "--data_dir=none.npz"], "cannot be read as an .npz file"),
        (["--dataset=no.such:load", "--model=FILE"], "cannot be imported"),
        (["--dataset=no such:load", "--model=FILE"], "package.module:function"),
        (["--loss=mse"], "--loss=mse is for data of your own"),
        (["--better=up"], "Unknown better 'up'"),
        (["--dataset=npz", "--model=FILE", "--data_dir=FILE", "--optimizer=model", "--learning_rate=1"], "own rates"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together_end_the_command(flags, told, small, tmp_path, capsys):
    flags = [flag.replace("FILE", str(small)) for flag in flags]
    assert told in refused(capsys, *flags, f"--workdir={tmp_path}")
    assert not (tmp_path / "stages").exists()


def test_data_that_do_not_fit_end_the_command(small, tmp_path, capsys):
    error = refused(capsys, f"--model={small}", "--dataset=npz", npz(tmp_path), f"--workdir={tmp_path / 'runs'}")
    assert "'mine' takes (n, 32, 32, 1)" in error
    assert not (tmp_path / "runs" / "stages").exists()


# Interrupted.

SCRIPT = """
if __name__ == "__main__":
    import keras, tfprune
    from keras import layers
    generator = np.random.default_rng(0)
    x = generator.normal(size=(320, 5)).astype("float32")
    y = np.sin(x[:, 0]) + x[:, 1] * x[:, 2]
    model = keras.Sequential([keras.Input((5,)), layers.Dense(8), layers.BatchNormalization(), layers.ReLU(),
                              layers.Dropout(0.1), layers.Dense(1)], name="table")
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 300)), "mse", metrics=["mae"])
    result = tfprune.study(model, (x[:256], y[:256]), (x[256:], y[256:]), ratio=0.5, seeds=2, epochs=30,
                           finetune_epochs=20, batch_size=32, workdir=sys.argv[1])
    print(result.verdict)
"""


def rows_without_times(workdir):
    return [{name: value for name, value in row.items() if name != "train_seconds"} for row in read(workdir)]


@pytest.mark.slow
def test_a_study_that_is_killed_in_its_middle_ends_as_one_that_was_not(tmp_path):
    (whole,) = finish(start(tmp_path, "whole", SCRIPT, str(tmp_path / "whole")))
    workdir, killed = tmp_path / "killed", 0
    for number, kind in enumerate(("train", "sparse", "scratch_b")):  # a training of each, in its middle
        process = start(tmp_path, f"killed{number}", SCRIPT, str(workdir))
        while process.poll() is None:
            if any(kind in path.name and path.suffix == ".npz" for path in (workdir / "unfinished").glob("*")):
                process.kill()
                break
            time.sleep(0.005)
        process.communicate(timeout=60)
        killed += process.returncode == -signal.SIGKILL
    assert killed == 3
    (ended,) = finish(start(tmp_path, "ended", SCRIPT, str(workdir)))
    assert ended.strip().splitlines()[-1] == whole.strip().splitlines()[-1]
    assert rows_without_times(workdir) == rows_without_times(tmp_path / "whole")
    names = sorted(folder.name for folder in (workdir / "stages").iterdir())
    assert names == sorted(folder.name for folder in (tmp_path / "whole" / "stages").iterdir())
    for name in names:
        if not name.startswith("plan"):
            own, other = (np.load(folder / "stages" / name / "weights.npz") for folder in (workdir, tmp_path / "whole"))
            assert all((own[key] == other[key]).all() for key in own.files)
