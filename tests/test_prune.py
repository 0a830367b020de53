import keras
import numpy as np
import pytest

import tfprune
from tests.helpers import plain_cnn, predict
from tfprune import prune
from tfprune.engines import latency
from tfprune.experiments import coverage
from tfprune.graph.inputs import random_inputs
from tfprune.planning.criteria import CRITERIA, NEED_DATA


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain_cnn().save("model.keras")
    return tmp_path / "model.keras"


def test_a_file_becomes_a_smaller_file_with_its_plan_and_proof(source, capsys):
    assert prune.main(["model.keras", "--ratio=0.5", "--output=small.keras", "--nomeasure"]) == 0
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
    assert "x as fast" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rounded", "told"),
    [
        ([8e-3] * 50, True),  # 1.25 x as fast
        ([9.7e-3] * 50, False),  # not worth telling
        ([8e-3] * 26 + [10e-3] * 24, False),  # nor certain: the interval of the median begins at 1
        ([12e-3] * 50, False),
    ],
)
def test_the_hint_is_given_where_the_interval_says_so(rounded, told, source, capsys, monkeypatch):
    seconds = [[20e-3] * 50, [10e-3] * 50, rounded]
    measured = [latency.Latency(float(np.median(own)), 0.0, 50, tuple(own)) for own in seconds]
    monkeypatch.setattr(latency, "measure_latency", lambda *networks, engine: measured)
    assert prune.main(["model.keras", "--ratio=0.3", "--output=small.keras"]) == 0
    shown = capsys.readouterr().out
    assert "latency in keras, batch 1: 20.00 ms (IQR 0.00, n=50) -> 10.00 ms (IQR 0.00, n=50): 2.00 x as fast" in shown
    assert ("hint: with --round_to=keras it is 1.25 x as fast (95 % interval 1.25 to 1.25) as without" in shown) == told


def test_pruning_for_an_engine_writes_its_file_and_measures_there(source, capsys):
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(64, 3, activation="relu", name="conv_a")(image)
    x = keras.layers.Conv2D(64, 3, activation="relu", name="conv_b")(x)
    keras.Model(image, keras.layers.Dense(5, name="logits")(keras.layers.Flatten()(x))).save("model.keras")
    arguments = ["--macs=0.6", "--engine=litert", "--formats=saved_model", "--output=small.keras"]
    assert prune.main(["model.keras", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "latency in litert, batch 1:" in shown
    assert "hint" not in shown  # the widths are those of the engine already
    assert "exported: litert, saved_model in small\n" in shown
    assert sorted(path.name for path in (source.parent / "small").iterdir()) == ["model.tflite", "saved_model"]
    widths = tfprune.plan_channels(tfprune.load("model.keras"), macs=0.6, round_to="litert").keep
    assert tfprune.load_plan("small.plan.json").keep == widths


def test_the_plan_alone_writes_nothing(source, capsys):
    assert prune.main(["model.keras", "--ratio=0.5", "--plan_only"]) == 0
    assert "conv_a" in capsys.readouterr().out
    assert [path.name for path in source.parent.iterdir()] == ["model.keras"]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "Name one file to prune (.keras, .h5, .hdf5)"),
        (["nowhere.keras", "--ratio=.5", "--output=s.keras"], "no model file 'nowhere.keras'"),
        (["model.keras", "--output=s.keras"], "one of --ratio"),
        (["model.keras", "--ratio=.5", "--macs=.5", "--output=s.keras"], "one of --ratio"),
        (["model.keras", "--ratio=.5"], "--output"),
        (["model.keras", "--ratio=.5", "--output=s.h5"], "does not end in .keras"),
        (["model.keras", "--ratio=.5", "--output=model.keras"], "the network itself"),
        (["model.keras", "--ratio=.5", "--output=folder.keras"], "is a folder;"),
        (["model.keras", "--ratio=1.5", "--output=s.keras"], "1.5"),
        (
            ["model.keras", "--ratio=.5", "--engine=tensorrt", "--output=s.keras"],
            "Valid names: keras, saved_model",
        ),
        (
            ["model.keras", "--ratio=.5", "--formats=caffe", "--output=s.keras"],
            "Valid names: keras, saved_model",
        ),
        (
            ["model.keras", "--ratio=.5", "--formats=litert_int8", "--output=s.keras"],
            "takes examples of the",
        ),
        (
            ["model.keras", "--ratio=.5", "--round_to=eight", "--output=s.keras"],
            "round_to='eight' must be",
        ),
        (["model.keras", "--ratio=.5", "--round_to=-8", "--output=s.keras"], "round_to=-8 must be a whole number"),
        (["model.keras", "--latency=2", "--engine=litert", "--output=s.keras"], "latency=2.0 is no number in (0, 1)"),
        (["model.keras", "--ratio=.5", "--criterion=l3", "--output=s.keras"], "Did you mean 'l2'"),
        (["model.keras", "--ratio=.5", "--seed=-1", "--output=s.keras"], "seed=-1"),
        (["model.keras", "--ratio=.5", "--criterion=apoz", "--output=s.keras"], "give it data="),
        (["model.keras", "--ratio=.5", "--criterion=apoz", "--data=no.npz", "--output=s.keras"], "'no.npz' cannot be"),
        (["model.keras", "--ratio=.5", "--criterion=apoz", "--data=z.npz", "--output=s.keras"], "holds z; it needs x"),
        (["model.keras", "--ratio=.5", "--criterion=apoz", "--data=o.npz", "--output=s.keras"], "cannot be read"),
        (["model.keras", "--ratio=.01", "--round_to=16", "--output=s.keras"], "removes no channel at all"),
        (["subclassed.keras", "--ratio=.5", "--output=s.keras"], "The subclassed model"),
        (["garbage.keras", "--ratio=.5", "--output=s.keras"], "'garbage.keras' is no .keras file"),
    ],
)
def test_a_mistake_is_told_in_one_line(source, capsys, arguments, fragment):
    (source.parent / "folder.keras").mkdir()
    (source.parent / "garbage.keras").write_bytes(b"no archive")
    np.savez("z.npz", z=np.zeros(3))
    np.savez("o.npz", x=np.asarray([{}]))  # reading an object would unpickle it
    _Subclassed().save("subclassed.keras")
    assert prune.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert fragment in told
    assert not (source.parent / "s.keras").exists()


@keras.saving.register_keras_serializable("tests")
class _Subclassed(keras.Model):
    """A model whose graph Keras does not know."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(3)
        self.build((None, 4))

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs):
        if float(keras.ops.sum(inputs)) > 0:
            return self.dense(inputs)
        return self.dense(-inputs)


@pytest.mark.parametrize("name", ["x", "image"])
def test_criteria_read_data_from_a_file(source, capsys, name):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(12, 8, 8, 3)).astype("float32"), generator.integers(0, 5, 12)
    np.savez("data.npz", **{name: x, "y": y})
    loss = "sparse_categorical_crossentropy"
    arguments = ["--criterion=taylor", "--data=data.npz", f"--loss={loss}", "--steps=2", "--output=small.keras"]
    assert prune.main(["model.keras", "--params=0.5", "--nomeasure", *arguments]) == 0
    expected = tfprune.plan_channels(plain_cnn(), params=0.5, criterion="taylor", data=(x, y), loss=loss, steps=2)
    assert tfprune.load_plan("small.plan.json").keep == expected.keep


def test_compile_settings_stay_in_the_file(source, capsys):
    model = plain_cnn()
    model.compile(keras.optimizers.Adam(3e-4), "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    model.save("model.keras")
    assert prune.main(["model.keras", "--ratio=0.5", "--output=small.keras", "--nomeasure"]) == 0
    assert capsys.readouterr().err == ""
    small = keras.saving.load_model("small.keras")
    assert small.loss == "mse"
    assert type(small.optimizer) is keras.optimizers.Adam
    assert float(small.optimizer.learning_rate) == pytest.approx(3e-4)


def test_compile_settings_that_cannot_be_loaded_are_told(source, capsys):
    def nobodys_loss(targets, outputs):
        return keras.ops.mean((targets - outputs) ** 2)

    model = plain_cnn()
    model.compile("sgd", nobodys_loss)
    model.save("model.keras")
    assert prune.main(["model.keras", "--ratio=0.5", "--output=small.keras", "--nomeasure"]) == 0
    assert "note: model.keras has compile settings that Keras cannot load" in capsys.readouterr().err
    assert not keras.saving.load_model("small.keras").compiled


@pytest.mark.slow
def test_coverage_writes_a_row_for_each_scope_and_what_is_above_its_target(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(coverage._Speed, "missed", lambda *_: ["plan 9.00 s (target 0.1 s)"])  # on any machine
    assert coverage.main(["--only=MobileNet", f"--output={tmp_path / 'coverage.md'}"]) == 0
    lines = (tmp_path / "coverage.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| MobileNet")]
    assert [line for line in lines if line.startswith("- ")] == [
        f"- MobileNet, {scope}: plan 9.00 s (target 0.1 s)" for scope in ("layer", "global")
    ]
    assert [row.split("|")[6].strip() for row in rows] == ["layer", "global"]
    assert all(float(row.split("|")[13]) <= 1e-5 for row in rows)
    assert coverage.main(["--only=MobileNett"]) == 2
    assert "Did you mean 'MobileNet'" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["", "x.keras"])
def test_nothing_is_written_where_the_files_cannot_be(source, capsys, output):
    (source.parent / "x.plan.json").mkdir()
    assert prune.main(["model.keras", "--ratio=0.5", f"--output={output}"]) == 2
    assert ("Give --output" if not output else "'x.plan.json' is a folder") in capsys.readouterr().err
    assert sorted(path.name for path in source.parent.iterdir()) == ["model.keras", "x.plan.json"]


def test_an_interrupted_run_leaves_nothing(source, capsys, monkeypatch):
    save = keras.Model.save

    def interrupted(model, *args, **kwargs):
        save(model, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "save", interrupted)
    assert prune.main(["model.keras", "--ratio=0.5", "--output=small.keras", "--nomeasure"]) == 130
    assert [path.name for path in source.parent.iterdir()] == ["model.keras"]


def test_help_names_every_criterion(capsys):
    assert prune.main(["--help"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  --criterion"))
    own, of_data = line.partition("(default")[0].removesuffix(". ").split("; with --data: ")
    assert [*own.partition("importance: ")[2].split(", "), *of_data.split(", ")] == list(CRITERIA.names())
    assert of_data == ", ".join(NEED_DATA)
