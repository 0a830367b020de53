import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.commands import REGIMES, forbid_training, read
from tests.helpers import residual_cnn
from tests.processes import finish, last_json, start
from tfprune.data import load
from tfprune.data.image_data import ImageData
from tfprune.errors import UsageError
from tfprune.experiments.run import main
from tfprune.experiments.setup import flags as study_flags
from tfprune.experiments.setup.resolving import settings_from_flags
from tfprune.experiments.studies.regime_epochs import flops_ratio
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.plans.weights import WeightPlan
from tfprune.surgery.masks import GradualMasks, Mask, mask_edit
from tfprune.surgery.rebuild import clone
from tfprune.training.distribution import make_strategy
from tfprune.training.loop import Trainer, TrainingConfig
from tfprune.training.schedules import Schedule

MAGNITUDE = METHODS.get("magnitude")


def pooled_cnn():
    """`residual_cnn` for images of 32 x 32."""
    inputs = keras.Input((32, 32, 3))
    return clone(keras.Model(inputs, residual_cnn()(layers.AveragePooling2D(4)(inputs))))


def made_data():
    generator = np.random.default_rng(0)
    splits = []
    for count in (64, 20):
        labels = generator.integers(0, 5, count).astype(np.int32)
        pixels = 30 + 40 * labels[:, None, None, None] + generator.normal(0, 30, (count, 32, 32, 3))
        splits += [np.clip(pixels, 0, 255).astype(np.uint8), labels]
    return ImageData("made", *splits, 5, (0.4,) * 3, (0.25,) * 3)


def make_trainer(model, edit, precision="float32"):
    config = TrainingConfig(batch_size=16, weight_decay=1e-3, precision=precision)
    return Trainer(model, made_data(), config, make_strategy("one_device"), edit)


def kernels(model, weights, names):
    """The kernels among the weights of a model, by layer."""
    paths = [weight.path for weight in model.weights]
    return {name: weights[paths.index(f"{name}/kernel")] for name in names}


class AtEveryStep(keras.callbacks.Callback):
    """Sees at every end of some steps whether masked weights are zero."""

    def __init__(self, masks):
        super().__init__()
        self.masks, self.seen = masks, []

    def on_train_batch_end(self, batch, logs=None):
        values = {name: self.model.get_layer(name).kernel.numpy() for name in self.masks}
        self.seen.append(all((values[name][~mask] == 0).all() for name, mask in self.masks.items()))


# Masks in training.


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_masked_weights_stay_zero_over_epochs_and_the_others_are_trained(precision, monkeypatch):
    monkeypatch.setattr("tfprune.training.loop._STEPS_BETWEEN_CALLBACKS", 1)
    model = pooled_cnn()
    plan = tfprune.plan_weights(model, 0.8)
    masks = plan.arrays()
    sparse = plan.apply(model)
    watch = AtEveryStep(masks)
    trainer = make_trainer(model, plan.edit(), precision)
    result = trainer.run(sparse.get_weights(), 3, Schedule(0.1), 0, [*plan.callbacks(), watch])
    assert watch.seen == [True] * 12
    before, after = (kernels(model, weights, masks) for weights in (sparse.get_weights(), result.weights))
    for name, mask in masks.items():
        assert int((after[name] == 0).sum()) == int((~mask).sum()), name
        assert (after[name][mask] != before[name][mask]).all()
    assert sum(int((kernel == 0).sum()) for kernel in after.values()) == int(1080 * 0.8)
    sparse.set_weights(result.weights)
    assert tfprune.profile(sparse).flops == plan.flops[1]
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_a_step_with_masks_equals_a_step_with_masked_gradients():
    model = pooled_cnn()
    plan = tfprune.plan_weights(model, 0.8)
    weights = plan.apply(model).get_weights()
    held = make_trainer(model, plan.edit()).run(weights, 1, Schedule(0.1), 0, plan.callbacks()).weights
    trainer = make_trainer(model, None)
    update_step, masks = type(trainer.model.optimizer).update_step, plan.arrays()
    by_name = {trainer.model.get_layer(name).kernel.path: mask for name, mask in masks.items()}

    class MaskedGradients(type(trainer.model.optimizer)):
        def update_step(self, gradient, variable, learning_rate):
            path = next(w.path for w in trainer.model.weights if w.value is variable)
            update_step(self, gradient * by_name.get(path, 1.0), variable, learning_rate)

    trainer.model.optimizer.__class__ = MaskedGradients
    for one, other in zip(held, trainer.run(weights, 1, Schedule(0.1), 0).weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_survivor_that_is_zero_is_not_lost():
    model = pooled_cnn()
    plan = tfprune.plan_weights(model, 0.5)
    sparse = plan.apply(model)
    kernel = sparse.get_layer("branch_a").kernel
    kernel.assign(kernel * (np.arange(432).reshape(kernel.shape) // 6 % 2))  # of every other input
    assert (kernel.numpy() == 0).mean() > 0.6
    result = make_trainer(model, plan.edit()).run(sparse.get_weights(), 1, Schedule(0.1), 0, plan.callbacks())
    trained = kernels(model, result.weights, ["branch_a"])["branch_a"]
    assert np.array_equal(trained != 0, plan.arrays()["branch_a"])


def test_one_trainer_serves_one_plan_after_another():
    model = pooled_cnn()
    plans = [tfprune.plan_weights(model, sparsity) for sparsity in (0.8, 0.3)]
    trainer = make_trainer(model, plans[0].edit())
    for plan in plans:
        # Weights that were not masked are masked before the first step.
        result = trainer.run(model.get_weights(), 1, Schedule(0.1), 0, plan.callbacks())
        for name, mask in plan.arrays().items():
            assert np.array_equal(kernels(model, result.weights, [name])[name] != 0, mask)


def test_new_weights_under_the_mask_stay_masked():
    model = pooled_cnn()
    plan = tfprune.plan_weights(model, 0.9)
    for rescale in (False, True):
        settings = MethodSettings(ratio=0.9, seed=3, options={"scratch_rescale": rescale})
        fresh = MAGNITUDE.fresh(plan, model, settings)
        expected = plan.apply(model, weights="fresh", seed=3, rescale=rescale)
        assert all(map(np.array_equal, fresh.get_weights(), expected.get_weights()))
        result = make_trainer(model, plan.edit()).run(fresh.get_weights(), 2, Schedule(0.1), 0, plan.callbacks())
        for name, mask in plan.arrays().items():
            assert np.array_equal(kernels(model, result.weights, [name])[name] != 0, mask)


def test_a_mask_comes_after_the_constraint_that_a_layer_has():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, kernel_constraint=keras.constraints.UnitNorm(axis=(0, 1, 2)), name="conv")(inputs)
    x = layers.DepthwiseConv2D(3, depthwise_constraint="non_neg", name="depthwise")(x)
    model = keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    twin = clone(model, mask_edit(lambda record: record.name in ("conv", "depthwise")))
    for name in ("conv", "depthwise"):
        kernel = twin.get_layer(name).kernel
        mask = np.random.default_rng(0).random(kernel.shape) < 0.5
        kernel.constraint.mask.assign(mask.astype("float32"))
        values = np.random.default_rng(1).normal(size=kernel.shape).astype("float32")
        constrained = np.asarray(model.get_layer(name).kernel.constraint(values))
        np.testing.assert_allclose(kernel.constraint(values), constrained * mask, rtol=1e-6)
    assert not isinstance(model.get_layer("conv").kernel.constraint, Mask)


def test_masks_hold_in_fit_of_keras_too():
    model = residual_cnn()
    plan = tfprune.plan_weights(model, 0.8)
    sparse = plan.apply(model)
    twin = clone(sparse, plan.edit())
    twin.compile("adam", "mse")
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(32, 8, 8, 3)), generator.normal(size=(32, 5))
    twin.fit(inputs, targets, verbose=0, callbacks=plan.callbacks())
    assert len(twin.get_weights()) == len(sparse.get_weights())
    for name, mask in plan.arrays().items():
        before, after = sparse.get_layer(name).kernel.numpy(), twin.get_layer(name).kernel.numpy()
        assert (after[~mask] == 0).all()
        assert (after[mask] != before[mask]).mean() > 0.9  # a filter may be dead


MIRRORED = """
two_devices()
import tfprune
from tfprune.training.distribution import make_strategy
from tfprune.training.loop import Trainer, TrainingConfig
from tfprune.training.schedules import Schedule
model, report = make_model(True), {}
plan = tfprune.plan_weights(model, 0.5)
mask = plan.arrays()["conv"]
for precision in ("float32", "mixed_bfloat16", "mixed_float16"):
    config = TrainingConfig(batch_size=8, weight_decay=1e-3, precision=precision)
    trainer = Trainer(model, make_data(), config, make_strategy("mirrored"), plan.edit())
    result = trainer.run(plan.apply(model).get_weights(), 3, Schedule(0.1), 5, plan.callbacks())
    copies = [copy.numpy() for copy in trainer.model.get_layer("conv").kernel.value.values]
    report[precision] = {
        "copies": len(copies),
        "equal": bool((copies[0] == copies[1]).all()),
        "zeros": [int((copy[~mask] == 0).sum()) for copy in copies] + [int((result.weights[0] == 0).sum())],
        "losses": [epoch["loss"] for epoch in result.history],
    }
print(json.dumps(report))
"""


def test_masks_hold_on_two_replicas_in_both_precisions(tmp_path):
    (output,) = finish(start(tmp_path, "masks", MIRRORED))
    for found in last_json(output).values():
        assert (found["copies"], found["equal"], found["zeros"]) == (2, True, [18, 18, 18])  # of 3 x 3 x 1 x 4
        assert found["losses"][-1] < found["losses"][0]


# Pruning while the network trains.


class Sparsities(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        values = [self.model.get_layer(name).kernel.numpy() for name in ("stem", "branch_a", "branch_b")]
        self.seen.append(sum(int((value == 0).sum()) for value in values))


def test_gradual_pruning_follows_the_cubic_schedule_to_half_of_the_training(monkeypatch):
    monkeypatch.setattr("tfprune.training.loop._STEPS_BETWEEN_CALLBACKS", 1)
    settings = MethodSettings(ratio=0.8, options={"schedule": "polynomial"})
    method = MAGNITUDE.configured(settings)
    assert (method.trains_sparse, MAGNITUDE.trains_sparse) == (True, False)
    model, watch = pooled_cnn(), Sparsities()
    trainer = make_trainer(model, method.edit(settings))
    result = trainer.run(model.get_weights(), 6, Schedule(0.05), 0, [*method.callbacks(settings), watch])
    steps = np.minimum(np.arange(24), 12)  # 4 an epoch
    expected = [int(1080 * 0.8 * (1 - (1 - step / 12) ** 3) + 1e-3) for step in steps]
    assert watch.seen == pytest.approx(expected, abs=1)
    assert watch.seen[-1] == int(1080 * 0.8)
    model.set_weights(result.weights)
    plan = method.plan(model, settings)
    for name, mask in plan.arrays().items():
        assert np.array_equal(model.get_layer(name).kernel.numpy() != 0, mask)
    again = trainer.run(pooled_cnn().get_weights(), 6, Schedule(0.05), 0, method.callbacks(settings))
    assert again.history == result.history


def test_a_short_training_too_ends_at_the_final_sparsity():
    settings = MethodSettings(ratio=0.5, options={"schedule": "polynomial", "pattern": "block"})
    method, model = MAGNITUDE.configured(settings), pooled_cnn()
    result = make_trainer(model, method.edit(settings)).run(
        model.get_weights(), 1, Schedule(0.05), 0, method.callbacks(settings)
    )
    values = kernels(model, result.weights, ["branch_b"])["branch_b"]
    blocks = (values.reshape(54, 2, 4) != 0).sum(-1)
    assert sorted(np.unique(blocks)) == [0, 4]
    assert (blocks == 0).sum() == 54


def test_gradual_masks_leave_layers_without_a_mask_alone():
    model = pooled_cnn()
    seen = []

    def masks_at(found, sparsity):
        seen.append(list(found))
        return {name: np.ones(value.shape, bool) for name, value in found.items()}

    edit = mask_edit(lambda record: record.name == "branch_a")
    make_trainer(model, edit).run(model.get_weights(), 1, Schedule(0.1), 0, [GradualMasks(0.5, masks_at)])
    assert seen == [["branch_a"]]


# The study.


def run(workdir, *argv):
    return main(["--smoke", "--dataset=synthetic", "--method=magnitude", f"--workdir={workdir}", *argv])


def test_the_study_goes_the_whole_way_and_a_second_time_does_nothing(small, tmp_path, monkeypatch):
    argv = [f"--model={small}", "--ratio=0.8", "--seeds=2"]
    assert run(tmp_path, *argv) == 0
    rows = read(tmp_path)
    assert [row["regime"] for row in rows] == [regime for regime in REGIMES for _ in range(2)]
    assert {row["setting"] for row in rows} == {"ratio=0.8"}
    total, weights = int(rows[0]["params"]), 72 + 864
    for row in rows:
        assert int(row["params"]) == total
        assert row["macs"] == rows[0]["macs"]
        if row["regime"] != "unpruned":
            same = next(r for r in rows if r["regime"] == "pruned" and r["seed"] == row["seed"])
            assert row["flops"] == same["flops"]
            assert int(row["flops"]) < int(rows[0]["flops"])
            assert int(row["nonzero_params"]) <= total - int(0.8 * weights)
    (export,) = (tmp_path / "export").iterdir()
    zeros = set()
    for regime in REGIMES[1:]:
        model = keras.saving.load_model(export / regime / "model.keras")
        kept = [model.get_layer(name).kernel.numpy() != 0 for name in ("first", "second")]
        zeros.add(np.concatenate([one.ravel() for one in kept]).tobytes())
        assert sum(int((~one).sum()) for one in kept) == int(0.8 * weights)
    assert len(zeros) == 1  # the same mask in every regime
    assert any(path.name.startswith("kernel-weights-") for path in (tmp_path / "figures").iterdir())
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*/DONE")}
    forbid_training(monkeypatch)
    assert run(tmp_path, *argv) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*/DONE")} == written


def test_scratch_b_trains_for_the_ratio_of_the_flops_of_nonzero_weights(small, tmp_path):
    argv = [f"--model={small}", "--ratio=0.9", "--noexport", "--regimes=scratch_b", "--dataset=synthetic"]
    assert main([*argv, "--method=magnitude", "--epochs=2", f"--workdir={tmp_path}"]) == 0
    unpruned, _, scratch = read(tmp_path)
    ratio = int(unpruned["flops"]) / int(scratch["flops"])
    assert ratio > 2
    assert int(scratch["epochs"]) == int(2 * ratio)


def test_rescaled_scratch_stands_beside_the_plain_one_and_repeats_nothing_else(small, tmp_path):
    argv = [f"--model={small}", "--noexport", "--regimes=finetune,scratch_e"]
    assert run(tmp_path, *argv) == 0
    stages = set((tmp_path / "stages").iterdir())
    assert run(tmp_path, *argv, "--scratch_rescale") == 0
    (new,) = set((tmp_path / "stages").iterdir()) - stages
    assert new.name.startswith("scratch_e-")
    budgets = [(row["regime"], row["budget"]) for row in read(tmp_path)][3:]
    assert budgets == [("scratch_e", ""), ("scratch_e", "rescaled initial weights")]


@pytest.mark.parametrize(
    ("flags", "setting", "stages"),
    [
        (["--pattern=2:4"], "2:4 ratio=0.5", 3),
        (["--pattern=block", "--ratio=.75"], "block ratio=0.75", 3),
        (["--schedule=polynomial", "--ratio=.9"], "polynomial ratio=0.9", 4),
    ],
    ids=["2:4", "block", "polynomial"],
)
def test_patterns_and_schedules_go_the_whole_way(small, tmp_path, capsys, flags, setting, stages):
    assert run(tmp_path, f"--model={small}", "--regimes=finetune", *flags) == 0
    rows = read(tmp_path)
    assert [row["regime"] for row in rows] == ["unpruned", "pruned", "finetune"]
    assert {row["setting"] for row in rows} == {setting}
    assert len(list((tmp_path / "stages").iterdir())) == stages
    assert int(rows[2]["nonzero_params"]) < int(rows[0]["nonzero_params"])
    assert "exactly zero" in capsys.readouterr().out
    (export,) = (tmp_path / "export").iterdir()
    assert not set(export.name) & set(": =")


def test_dry_run_tells_the_budget_before_anything_is_trained(small, tmp_path, capsys, monkeypatch):
    forbid_training(monkeypatch)
    argv = [f"--model={small}", "--schedule=polynomial", "--ratio=.9", "--dry_run"]
    assert run(tmp_path / "w", *argv) == 0
    shown = capsys.readouterr().out
    assert "about" in shown
    assert "train sparse" in shown
    assert "a guess" in shown
    assert "polynomial to 0.9" in shown
    assert run(tmp_path / "w", f"--model={small}", "--pattern=2:4", "--dry_run") == 0
    assert "about" not in capsys.readouterr().out  # what a pattern leaves is known
    assert not (tmp_path / "w").exists()


def parse(*argv):
    from absl import flags

    values = flags.FlagValues()
    study_flags.define_flags(values)
    values(["run", "--dry_run", *argv])
    (settings,) = settings_from_flags(values)
    return settings


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        (["--method=magnitude", "--ratio=1.5"], ("--ratio=1.5", "fraction of weights")),
        (["--method=magnitude", "--pattern=4:2"], ("pattern '4:2'", "2:4, block")),
        (["--method=magnitude", "--schedule=polynomal"], ("'polynomal'", "Did you mean 'polynomial'?")),
        (["--method=magnitude", "--pattern=2:4", "--ratio=.8"], ("--pattern=2:4", "--ratio=0.8", "Leave it out")),
        (["--method=magnitude", "--pattern=2:4", "--schedule=polynomial"], ("--pattern=2:4", "--schedule=polynomial")),
        (["--method=uniform", "--pattern=2:4"], ("--pattern belongs to --method=magnitude", "--method=uniform")),
        (["--schedule=polynomial"], ("--schedule belongs to --method=magnitude", "network_slimming")),
        (["--method=l1_norm", "--scratch_rescale"], ("--scratch_rescale belongs to --method=magnitude", "l1_norm")),
        (["--method=magnitude", "--variant=VGG-16-A"], ("--method=l1_norm", "--method=magnitude")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_flags_are_told(argv, fragments):
    with pytest.raises(UsageError) as error:
        parse(*argv)
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)


def test_settings_know_what_the_planner_knows():
    from tfprune.planning.weights import MASK_PATTERNS

    assert METHODS.options()["pattern"].valid == MASK_PATTERNS


def test_a_plan_that_saves_no_flops_gives_scratch_b_no_budget():
    model = pooled_cnn()
    plan = tfprune.plan_weights(model, 0.5, skip=["stem", "branch_*"], dense=True)
    with pytest.raises(UsageError, match="saves no FLOPs"):
        flops_ratio(plan)
    before, after = (tfprune.plan_weights(model, 0.8)).flops
    assert flops_ratio(tfprune.plan_weights(model, 0.8)) == before / after > 1


# What it is good for.


@pytest.mark.slow
def test_magnitude_beats_random_masks_before_any_fine_tuning():
    from tfprune.models import build_model

    data = load("fashion_mini", None, 3000)
    model = build_model("vgg11", data.input_shape, data.num_classes, 0.125)
    config = TrainingConfig(batch_size=64)
    trainer = Trainer(model, data, config, make_strategy("one_device"))
    result = trainer.run(model.get_weights(), 3, Schedule(0.05), 0)
    model.set_weights(result.weights)
    plan = tfprune.plan_weights(model, 0.6)
    generator = np.random.default_rng(0)
    chance = WeightPlan.from_masks(
        model, {name: generator.permutation(mask.ravel()).reshape(mask.shape) for name, mask in plan.arrays().items()}
    )
    assert chance.flops == plan.flops
    ours, theirs = (trainer.evaluate(p.apply(model).get_weights())["val_accuracy"] for p in (plan, chance))
    assert result.history[-1]["val_accuracy"] > 0.5
    assert ours > theirs + 0.1
