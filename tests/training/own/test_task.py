"""A task of any kind: every number beside what Keras itself finds with the same batches."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from tests.processes import finish, last_json, start
from tests.trainings import STRATEGY
from tfprune.data.own.reading import own_data
from tfprune.errors import DataError, UsageError
from tfprune.methods.base import MethodSettings
from tfprune.methods.network_slimming import METHOD as SLIMMING
from tfprune.training.loop import Trainer, TrainingConfig
from tfprune.training.measures import ERROR, SCORE, SHARE, Measure
from tfprune.training.own.fitting import check_metrics, check_targets, fitted, sample_of, usual_loss
from tfprune.training.own.schedules import OwnSchedule, lowest
from tfprune.training.own.task import OwnTask, Wishes
from tfprune.training.regimes import REGIMES

GENERATOR = np.random.default_rng(0)
COUNT, BATCH = 70, 16
X = GENERATOR.normal(size=(COUNT, 5))
NUMBERS = np.sin(X[:, 0]) + X[:, 1] * X[:, 2]
CLASSES = GENERATOR.integers(0, 3, COUNT).astype("uint8")
WEIGHTS = GENERATOR.uniform(0.5, 2.0, COUNT)


def table(outputs=1, name="table", **ending):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,), name="x")
    x = layers.BatchNormalization(name="norm")(layers.Dense(8, name="hidden")(inputs))
    return keras.Model(inputs, layers.Dense(outputs, name="out", **ending)(layers.ReLU(name="relu")(x)), name=name)


def two_outputs():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,), name="x")
    x = layers.Dense(8, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, {"number": layers.Dense(1, name="number")(x), "kind": layers.Dense(3, name="kind")(x)})


def trained(model, data, task, epochs=3, schedule=None, **config):
    """The result of the loop, and the model as `train_on_batch` of Keras trains it on the same batches."""
    trainer = Trainer(model, data, TrainingConfig(batch_size=BATCH, **config), STRATEGY, None, task)
    schedule = schedule or task.large_schedule(0.1, epochs, "cifar", trainer.steps_per_epoch)
    result = trainer.run(model.get_weights(), epochs, schedule, 7)
    return trainer, result


def by_keras(model, data, epochs=3):
    """Trains a compiled model as the loop should: the same batches in the same order."""

    def rows(structure, chosen):
        return keras.tree.map_structure(lambda array: array[chosen], structure)

    steps = data.train_count // BATCH
    for epoch in range(epochs):
        order = np.random.default_rng([7, epoch]).permutation(data.train_count)[: steps * BATCH]
        for chosen in order.reshape(steps, BATCH):
            weights = None if data.train.weights is None else data.train.weights[chosen]
            model.train_on_batch(rows(data.train.inputs, chosen), rows(data.train.targets, chosen), weights)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return model.evaluate(
        data.test.inputs, data.test.targets, batch_size=BATCH, sample_weight=data.test.weights, verbose=0,
        return_dict=True,
    )  # fmt: skip


def splits(targets, weights=None):
    parts = []
    for rows in (slice(0, 50), slice(50, None)):
        own = {name: part[rows] for name, part in targets.items()} if isinstance(targets, dict) else targets[rows]
        parts.append((X[rows], own) if weights is None else (X[rows], own, weights[rows]))
    return own_data("made", *parts)


def cosine():
    return keras.optimizers.schedules.CosineDecay(1e-2, 9)


@pytest.mark.parametrize(
    ("optimizer", "weights"),
    [
        (lambda: keras.optimizers.Adam(cosine()), None),
        (lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1), WEIGHTS),
        (lambda: keras.optimizers.SGD(1e-2, momentum=0.9, use_ema=True, ema_momentum=0.8), None),
        (lambda: keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2, clipnorm=0.5), None),
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(cosine())), None),
    ],
    ids=["schedule", "weights of examples", "averages", "accumulation", "scaled loss"],
)
def test_a_regression_is_trained_and_judged_as_by_keras(optimizer, weights):
    data, model = splits(NUMBERS, weights), table()
    metrics = [keras.metrics.MeanAbsoluteError(name="mae"), keras.metrics.RootMeanSquaredError(name="rmse")]
    model.compile(optimizer(), loss="mse", weighted_metrics=metrics)
    wishes = Wishes("mse", weighted_metrics=metrics, optimizer=model.optimizer)
    task = OwnTask(model, wishes, sample_of(data))
    _, result = trained(model, data, task)
    expected = by_keras(model, data)
    last = result.history[-1]
    assert {name: last[f"val_{name}"] for name in expected} == pytest.approx(expected, rel=1e-4)
    for own, other in zip(result.weights, model.get_weights(), strict=True):
        np.testing.assert_allclose(own, other, atol=2e-6)
    assert task.measure == Measure("mae", ERROR)


def test_several_outputs_with_losses_weights_and_metrics_by_name_are_trained_as_by_keras():
    data, model = splits({"number": NUMBERS, "kind": CLASSES}), two_outputs()
    losses = {"number": "huber", "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    metrics = {"number": ["mae"], "kind": ["accuracy"]}
    model.compile("adam", loss=losses, loss_weights={"number": 0.3, "kind": 1.0}, metrics=metrics)
    wishes = Wishes(losses, metrics, loss_weights={"number": 0.3, "kind": 1.0}, optimizer=model.optimizer)
    _, result = trained(model, data, OwnTask(model, wishes, sample_of(data)))
    expected = by_keras(model, data)
    for name in ("loss", "number_mae", "kind_accuracy"):
        assert result.history[-1][f"val_{name}"] == pytest.approx(expected[name], rel=1e-5)
    measures = {}
    for name in (None, "number_mae", "loss"):
        measures[name] = OwnTask(model, Wishes(losses, metrics, name), sample_of(data)).measure
    assert measures == {
        None: Measure("kind_accuracy", SHARE),
        "number_mae": Measure("number_mae", ERROR),
        "loss": Measure("loss", ERROR),
    }


def test_a_penalty_of_a_method_trains_and_is_no_part_of_what_is_evaluated():
    data, model = splits(NUMBERS), table()
    task = OwnTask(model, Wishes("mse", ["mae"], optimizer=keras.optimizers.SGD(0.05)), sample_of(data))
    edit = SLIMMING.edit(MethodSettings(options={"gamma_l1": 0.5}))
    results = []
    for own in (None, edit):
        trainer = Trainer(model, data, TrainingConfig(batch_size=BATCH), STRATEGY, own, task)
        weights = model.get_weights()
        results.append((trainer.evaluate(weights), trainer.run(weights, 4, OwnSchedule.of(0.05, 3), 0)))
    (plain, free), (penalised, pulled) = results
    assert plain == penalised
    place = [weight.path for weight in model.weights].index("norm/gamma")
    assert np.abs(pulled.weights[place]).sum() < 0.9 * np.abs(free.weights[place]).sum()


def test_a_run_after_another_begins_with_a_new_optimizer():
    data, model = splits(NUMBERS), table()
    task = OwnTask(model, Wishes("mse", optimizer=keras.optimizers.Adam(cosine())), sample_of(data))
    trainer, first = trained(model, data, task)
    schedule = task.large_schedule(0.1, 3, "cifar", trainer.steps_per_epoch)
    assert trainer.run(model.get_weights(), 3, schedule, 7).history == first.history


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    data, model = splits(NUMBERS), table()
    task = OwnTask(model, Wishes("mse", optimizer=keras.optimizers.Adam(cosine())), sample_of(data))
    trainer, whole = trained(model, data, task)
    schedule = task.large_schedule(0.1, 3, "cifar", trainer.steps_per_epoch)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(model.get_weights(), 3, schedule, 7, [Stop()], checkpoint=tmp_path / "state.npz")
    going_on = trainer.run(model.get_weights(), 3, schedule, 7, checkpoint=tmp_path / "state.npz")
    assert going_on.history == whole.history
    for own, other in zip(going_on.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(own, other)


# Learning rates.


def test_a_schedule_is_stretched_over_the_epochs_of_a_regime():
    model, rule = table(), cosine()
    task = OwnTask(model, Wishes("mse", optimizer=keras.optimizers.Adam(rule)), sample_of(splits(NUMBERS)))
    large = task.large_schedule(0.1, 3, "cifar", 3)
    twice = task.regime_schedule(REGIMES["scratch_b"], 0.1, 3, 6, "cifar", 3)
    assert large.rates(1, 3) == pytest.approx([float(rule(step)) for step in (3, 4, 5)])
    assert twice.rates(2, 3) == pytest.approx([float(rule(step / 2)) for step in (6, 7, 8)])
    assert large.at(2) == pytest.approx(float(rule(6)))
    assert task.large_schedule(0.1, 3, "cifar", 3, slower=10).rates(1, 3) == pytest.approx(
        [float(rule(step)) / 10 for step in (3, 4, 5)]
    )
    fine = task.regime_schedule(REGIMES["finetune"], 0.1, 3, 2, "cifar", 3)
    mean = np.mean([float(rule(step)) for step in (6, 7, 8)])
    assert [fine.at(epoch) for epoch in range(2)] == pytest.approx([mean, mean])


def test_the_lowest_rate_is_none_with_which_nothing_would_be_trained():
    steps = keras.optimizers.schedules.PiecewiseConstantDecay([2, 5], [0.1, 0.01, 0.0])
    assert lowest(steps, 4, 3) == pytest.approx((0.01 * 3) / 3)
    assert lowest(0.003, 4, 3) == 0.003


def test_without_an_optimizer_the_papers_rates_are_taken():
    task = OwnTask(table(), Wishes("mse"), sample_of(splits(NUMBERS)))
    assert not task.own_optimizer
    assert task.large_schedule(0.1, 8, "cifar", 3).at(7) == pytest.approx(0.001)
    assert task.regime_schedule(REGIMES["finetune"], 0.1, 8, 2, "cifar", 3).at(0) == pytest.approx(0.001)


# What is judged.


@pytest.mark.parametrize(
    ("metrics", "measure"),
    [
        (None, Measure("loss", ERROR)),
        (["mae", "mse"], Measure("mae", ERROR)),
        ([keras.metrics.R2Score(name="r2")], Measure("r2", SCORE)),
        ([keras.losses.huber], Measure("huber", ERROR)),
        ([keras.metrics.MeanAbsoluteError(name="far")], Measure("far", ERROR)),
    ],
)
def test_the_first_metric_is_judged_by_the_way_that_keras_knows(metrics, measure):
    assert OwnTask(table(), Wishes("mse", metrics), sample_of(splits(NUMBERS[:, None]))).measure == measure


def test_of_a_metric_of_ones_own_the_way_has_to_be_told():
    def far(targets, outputs):
        return keras.ops.mean(keras.ops.abs(targets - outputs), -1)

    sample = sample_of(splits(NUMBERS))
    with pytest.raises(UsageError, match="Give better='higher' or 'lower'"):
        OwnTask(table(), Wishes("mse", [far]), sample)
    assert OwnTask(table(), Wishes("mse", [far], better="lower"), sample).measure == Measure("far", ERROR)
    assert OwnTask(table(), Wishes("mse", [far], better="higher"), sample).measure == Measure("far", SCORE)


class FurtherAway(keras.metrics.Mean):
    """A metric of which nobody knows which way is better."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(y_pred, sample_weight)


class Both(FurtherAway):
    """A metric of two numbers."""

    def result(self):
        return {"one": super().result(), "two": super().result()}


@pytest.mark.parametrize("known", ["accuracy", "top"])
def test_a_metric_of_ones_own_is_not_taken_for_the_end_of_its_name(known):
    sample = sample_of(splits(CLASSES))
    for own in (f"balanced_{known}", f"error_of_{known}"):
        metrics = [keras.metrics.SparseCategoricalAccuracy(name=known), FurtherAway(name=own)]
        wishes = {"loss": "sparse_categorical_crossentropy", "metrics": metrics, "judged_by": own}
        with pytest.raises(UsageError, match=f"'{own}' is better is not known"):
            OwnTask(table(3), Wishes(**wishes), sample)
        assert OwnTask(table(3), Wishes(**wishes, better="lower"), sample).measure == Measure(own, ERROR)
        assert OwnTask(table(3), Wishes(**wishes | {"judged_by": known}), sample).measure == Measure(known, SHARE)


def test_metrics_of_one_name_are_told_apart_by_their_output_and_place():
    def measure(judged_by):
        metrics = {
            "kind": [keras.metrics.SparseCategoricalAccuracy(name="quality")],
            "number": [keras.metrics.MeanAbsoluteError(name="quality"), keras.metrics.R2Score(name="quality")],
        }
        loss = {"number": "mse", "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
        sample = sample_of(splits({"number": NUMBERS[:, None], "kind": CLASSES}))
        return OwnTask(two_outputs(), Wishes(loss, metrics, judged_by), sample).measure

    for name, kind in (("kind_quality", SHARE), ("number_quality", ERROR), ("number_quality_1", SCORE)):
        assert measure(name) == Measure(name, kind)


def test_the_words_tell_tasks_apart_and_forget_names_that_keras_makes():
    sample = sample_of(splits(NUMBERS))

    def words(*wishes, **more):
        return json.dumps(OwnTask(table(), Wishes(*wishes, **more), sample).words)

    adam = keras.optimizers.Adam
    same = words("mse", ["mae"], optimizer=adam(0.1))
    assert words("mse", ["mae"], optimizer=adam(0.1, name="adam_7")) == same
    others = [
        words("mae", ["mae"], optimizer=adam(0.1)),
        words("mse", ["mse"], optimizer=adam(0.1)),
        words("mse", ["mae"], optimizer=adam(0.2)),
        words("mse", ["mae"], optimizer=adam(cosine())),
        words("mse", ["mae"]),
        words(keras.losses.Huber(0.5), ["mae"]),
        words(keras.losses.Huber(0.7), ["mae"]),
    ]
    assert len({same, *others}) == 8
    assert '"loss": "mse"' in same


# What does not fit.


def with_classes(labels, **ending):
    return table(3, **ending), splits(np.asarray(labels))


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (CLASSES + 1, "labels run from 1 to 3, and the network has 3 classes"),
        (CLASSES.astype(int) - 1, "labels run from -1 to 1"),
        (np.where(CLASSES == 1, 0, CLASSES), "no training example is of class 1"),
        (CLASSES + 0.5, "whole numbers"),
        (np.stack([CLASSES, CLASSES], 1), "takes one whole number for each"),
    ],
)
def test_labels_that_are_no_classes_of_the_network_are_refused(labels, told):
    model, data = with_classes(labels)
    with pytest.raises(DataError, match=told) as error:
        check_targets(model, data, "sparse_categorical_crossentropy")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("loss", "targets", "outputs", "told"),
    [
        ("mse", NUMBERS, 3, r"targets of \(n,\) do not fit outputs of \(n, 3\)"),
        (keras.losses.Huber(), X, 1, r"targets of \(n, 5\) do not fit outputs of \(n, 1\)"),
        ("binary_crossentropy", CLASSES, 1, "from 0 to 1; received 0 to 2"),
        ("binary_crossentropy", 0 * CLASSES, 1, "one class only"),
        ("categorical_crossentropy", np.eye(3)[0 * CLASSES], 3, "is of the classes 1, 2"),
        ({"other": "mse"}, NUMBERS, 1, "loss= names the output 'other'; 'table' has out"),
    ],
)
def test_targets_that_a_loss_would_make_nonsense_of_are_refused(loss, targets, outputs, told):
    with pytest.raises(UsageError, match=told):
        check_targets(table(outputs), splits(targets), loss)


@pytest.mark.parametrize("targets", [NUMBERS, NUMBERS[:, None]])
def test_targets_that_fit_pass(targets):
    check_targets(table(), splits(targets), "mse")
    check_targets(table(3), splits(CLASSES[:, None]), keras.losses.SparseCategoricalCrossentropy())
    check_metrics(table(3), splits(CLASSES), ["accuracy", "sparse_categorical_accuracy"])
    check_metrics(table(3), splits(CLASSES[:, None].astype("float32")), ["accuracy"])
    check_metrics(table(3), splits(0.9 * np.eye(3)[CLASSES] + 0.1 / 3), ["accuracy", "categorical_accuracy"])
    check_metrics(table(), splits((targets > 0).astype("float32")), ["accuracy", keras.metrics.BinaryAccuracy()])


def test_accuracy_of_a_regression_at_one_of_several_outputs_is_refused():
    data = splits({"number": NUMBERS[:, None], "kind": CLASSES})
    check_metrics(two_outputs(), data, {"kind": ["accuracy"], "number": ["mae"]})
    with pytest.raises(DataError, match="'number': the metric 'accuracy' takes targets that are 0 or 1"):
        check_metrics(two_outputs(), data, {"kind": ["accuracy"], "number": ["accuracy"]})


@pytest.mark.parametrize(
    ("metric", "targets", "outputs", "told"),
    [
        ("sparse_categorical_accuracy", NUMBERS, 1, "takes one whole number, the class"),
        ("categorical_accuracy", CLASSES, 3, "do not fit outputs"),
        (keras.metrics.AUC(), NUMBERS, 1, "takes targets from 0 to 1"),
        ("mae", CLASSES, 3, r"do not fit outputs of \(n, 3\)"),
        ("accuracy", NUMBERS, 1, "takes targets that are 0 or 1"),
        ("Acc", np.abs(np.sin(NUMBERS))[:, None], 1, "takes targets that are 0 or 1"),
        ("accuracy", X[:, :3], 3, "takes targets that are fractions of classes"),
        ("accuracy", (X[:, :3] > -2).astype("float32"), 3, "takes targets that are fractions of classes"),
        ("accuracy", X[:, :2], 3, "do not fit outputs"),
        ("accuracy", NUMBERS, 3, "takes one whole number, the class"),
        (keras.metrics.Accuracy(), CLASSES, 1, "takes outputs that are whole numbers"),
    ],
)
def test_a_metric_that_needs_another_output_is_refused(metric, targets, outputs, told):
    with pytest.raises(UsageError, match=told):
        check_metrics(table(outputs), splits(targets), [metric])


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        (Wishes("no_such_loss"), "The loss 'no_such_loss' cannot be computed"),
        (Wishes("mse", ["no_such_metric"]), "The metrics .'no_such_metric'. cannot be computed"),
        (Wishes("mse", ["mae"], judged_by="mse"), "no metric of the network .* Valid: mae, loss"),
        (Wishes("mse", optimizer=3), "must be an optimizer of Keras"),
        (Wishes("mse", [keras.metrics.MeanMetricWrapper(lambda y, p: p, name="z")]), "'z' .* cannot be made again"),
        (Wishes("mse", [Both(name="both"), "mae"]), "The first metric, 'both', is no single"),
        (Wishes("mse", [keras.metrics.R2Score(None, name="each"), "mae"]), "The first metric, 'each', is no single"),
    ],
)
def test_what_keras_cannot_compute_is_told_in_one_line(wishes, told):
    with pytest.raises(UsageError, match=told) as error:
        OwnTask(table(), wishes, sample_of(splits(NUMBERS)))
    assert "\n" not in str(error.value)


def test_a_metric_that_is_no_number_can_stand_behind_what_is_judged():
    metrics = ["mae", keras.metrics.R2Score(None, name="each")]
    assert OwnTask(table(), Wishes("mse", metrics), sample_of(splits(NUMBERS))).measure == Measure("mae", ERROR)
    wishes = Wishes("mse", metrics[::-1], judged_by="loss")
    assert OwnTask(table(), wishes, sample_of(splits(NUMBERS))).measure == Measure("loss", ERROR)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_weights_that_fit_only_as_many_examples_as_they_are_wide_are_refused(width):
    data = splits(NUMBERS[:, None], np.ones((COUNT, width)))
    with pytest.raises(UsageError, match=rf"'mse' cannot be computed of .*, weights \(n, {width}\):"):
        OwnTask(table(), Wishes("mse"), sample_of(data))


@pytest.mark.parametrize(
    ("loss", "told"), [(["mse", "mae"], "2 losses"), ({"out": ["mse", "mae"]}, "2 losses"), (["mse"] * 3, "3 losses")]
)
def test_more_losses_than_outputs_are_refused(loss, told):
    with pytest.raises(UsageError, match=told):
        check_targets(table(), splits(NUMBERS), loss)
    check_targets(table(), splits(NUMBERS), {"out": ["mse"]})


def test_inputs_get_the_structure_of_the_network_and_have_to_fit():
    first, second = keras.Input((2,), name="first"), keras.Input((3,), name="second")
    model = keras.Model([first, second], layers.Dense(1)(layers.Concatenate()([first, second])))
    parts = {"second": X[:, 2:], "first": X[:, :2]}
    data = fitted(model, own_data("made", (parts, NUMBERS), (parts, NUMBERS)))
    assert [array.shape[1] for array in data.train.inputs] == [2, 3]
    for wrong, told in (
        ({"first": X[:, :2]}, "second is not there"),
        (X, "takes .n, 2., .n, 3."),
        ([X[:, 2:], X[:, :2]], "shapes .n, 3., .n, 2."),
    ):
        with pytest.raises(DataError, match=told):
            fitted(model, own_data("made", (wrong, NUMBERS), (parts, NUMBERS)))


def test_classes_get_cross_entropy_and_accuracy_by_themselves():
    for ending, logits in (({}, True), ({"activation": "softmax"}, False)):
        model, data = with_classes(CLASSES, **ending)
        loss, metrics = usual_loss(model, data)
        assert (loss.get_config()["from_logits"], metrics) == (logits, ["accuracy"])
        assert OwnTask(model, Wishes(loss, metrics), sample_of(data)).measure == Measure("accuracy", SHARE)
    assert usual_loss(table(), splits(NUMBERS)) is None
    assert usual_loss(two_outputs(), splits({"number": NUMBERS, "kind": CLASSES})) is None


# Several replicas.

REPLICAS = """
if __name__ == "__main__":
    if sys.argv[1] == "2":
        two_devices()
    import keras, tensorflow as tf
    from keras import layers
    from tfprune.data.own.reading import own_data
    from tfprune.training.distribution import make_strategy
    from tfprune.training.loop import Trainer, TrainingConfig
    from tfprune.training.own.fitting import sample_of
    from tfprune.training.own.task import OwnTask, Wishes
    strategy = make_strategy("mirrored" if sys.argv[1] == "2" else "one_device")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(70, 5)).astype("float32")
    y = {"a": x[:, :1] * x[:, 1:2], "b": (x[:, 2] > 0).astype("uint8")}
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    h = layers.Dense(8, activation="relu", kernel_regularizer="l2", name="h")(inputs)
    model = keras.Model(inputs, {"a": layers.Dense(1, name="a")(h), "b": layers.Dense(2, name="b")(h)})
    parts = [(x[r], {k: v[r] for k, v in y.items()}) for r in (slice(0, 50), slice(50, None))]
    data = own_data("made", *parts)
    losses = {"a": "mse", "b": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    rule = keras.optimizers.schedules.CosineDecay(1e-2, 9)
    task = OwnTask(model, Wishes(losses, {"a": ["mae"], "b": [keras.metrics.SparseCategoricalAccuracy(name="right")]},
                                 optimizer=keras.optimizers.Adam(rule)), sample_of(data))
    trainer = Trainer(model, data, TrainingConfig(batch_size=16), strategy, None, task)
    result = trainer.run(model.get_weights(), 3, task.large_schedule(0.1, 3, "cifar", trainer.steps_per_epoch), 5)
    print(json.dumps({"history": result.history, "weights": [w.tolist() for w in result.weights]}))
"""


@pytest.mark.slow
def test_two_replicas_train_and_judge_as_one(tmp_path):
    one, two = (last_json(finish(start(tmp_path, f"replicas{n}", REPLICAS, str(n)))[0]) for n in (1, 2))
    for own, other in zip(one["history"], two["history"], strict=True):
        assert own == pytest.approx(other, rel=1e-4)
    for own, other in zip(one["weights"], two["weights"], strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5)
