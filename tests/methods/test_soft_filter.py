"""Soft filter pruning: what is zeroed and when, and what is removed."""

import keras
import numpy as np
import pytest

import tfprune
from tests.helpers import accuracy, convolutions, drawn_plan, plain_cnn, predict, randomize, residual_cnn
from tests.processes import finish, last_json, start
from tests.trainings import STRATEGY, make_data
from tfprune.data import load
from tfprune.errors import PlanError
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.methods.soft_filter import weakest_filters
from tfprune.models import build_model
from tfprune.plans.channels import ChannelPlan
from tfprune.surgery.rebuild import clone
from tfprune.training.loop import Trainer, TrainingConfig
from tfprune.training.schedules import Schedule

METHOD = METHODS.get("soft_filter")


def zeros(kernel):
    """Channels of a kernel whose filters are exactly zero."""
    return tuple(np.flatnonzero(~np.abs(kernel).any(axis=tuple(range(kernel.ndim - 1)))))


class Watch(keras.callbacks.Callback):
    """The kernels of all convolutions before and after the method's callback, at the start and at every test."""

    def __init__(self, own):
        super().__init__()
        self.own, self.before, self.after = own, [], []

    def set_model(self, model):
        super().set_model(model)
        self.own.set_model(model)

    def _note(self, act):
        for notes in (self.before, self.after):
            notes.append([layer.kernel.numpy().copy() for layer in convolutions(self.model)])
            if notes is self.before:
                act()

    def on_train_begin(self, logs=None):
        self._note(self.own.on_train_begin)

    def on_test_begin(self, logs=None):
        self._note(self.own.on_test_begin)


def resnet(width=0.25):
    return randomize(build_model("resnet20", (32, 32, 1), 3, width), 1)


@pytest.fixture(scope="module", params=[0.3, 0.5])
def run(request):
    """A ResNet trained for four epochs: ratio, its plain twin with the final weights, what was seen, the result."""
    model = resnet()
    trainer = Trainer(model, make_data(), TrainingConfig(batch_size=8, weight_decay=5e-4, nesterov=True), STRATEGY)
    settings = MethodSettings(ratio=request.param)
    (own,) = METHOD.callbacks(settings)
    watch = Watch(own)
    result = trainer.run(model.get_weights(), 4, Schedule(0.1), 0, [watch])
    model.set_weights(result.weights)
    return request.param, model, watch, result, trainer


def test_at_the_start_and_after_every_epoch_the_weakest_filters_of_every_convolution_are_zero(run):
    ratio, model, watch, _, _ = run
    assert len(watch.after) == 5
    assert len(convolutions(model)) == 19
    for before, after in zip(watch.before, watch.after, strict=True):
        for one, other in zip(before, after, strict=True):
            width = one.shape[-1]
            gone = zeros(other)
            assert len(gone) == int(round(width * ratio, 9))
            norms = np.sqrt((one.astype(np.float64) ** 2).sum((0, 1, 2)))
            left = np.setdiff1d(np.arange(width), gone)
            assert norms[list(gone)].max() <= norms[left].min()
            assert np.array_equal(one[..., left], other[..., left])


def test_filters_that_were_zero_train_on_and_may_come_back(run):
    _, _, watch, _, _ = run
    moved = came_back = total = 0
    for first, then, last in zip(watch.after[0], watch.before[1], watch.after[-1], strict=True):
        gone = list(zeros(first))
        total += len(gone)
        moved += np.abs(then[..., gone]).any(axis=(0, 1, 2)).sum()
        came_back += len(set(gone) - set(zeros(last)))
    assert moved > 0.5 * total  # where a ReLU is closed for all images, there is no gradient
    assert came_back


def test_the_accuracy_of_an_epoch_is_that_of_the_zeroed_network(run):
    _, _, watch, result, trainer = run
    assert trainer.evaluate(result.weights)["val_accuracy"] == result.history[-1]["val_accuracy"]
    assert trainer.evaluate(result.weights)["val_loss"] == result.history[-1]["val_loss"]
    trainer.evaluate(result.weights)
    loose = list(result.weights)
    for index, weight in enumerate(loose):
        for before, after in zip(watch.before[-1], watch.after[-1], strict=True):
            if weight.shape == after.shape and np.array_equal(weight, after):
                loose[index] = before
    assert trainer.evaluate(loose)["val_loss"] != result.history[-1]["val_loss"]


def test_the_plan_removes_the_zero_filters_that_no_other_layer_needs(run):
    _, model, _, _, _ = run
    ratio = run[0]
    plan = METHOD.plan(model, MethodSettings(ratio=ratio))
    free = [f"conv_{n}" for n in range(2, 20, 2)]  # the first of each block
    stay = total = 0
    for layer in convolutions(model):
        gone, removed = zeros(layer.kernel.numpy()), set(range(layer.filters)) - set(plan.keep[layer.name])
        assert removed <= set(gone)
        if layer.name in free:
            assert removed == set(gone)
        total, stay = total + len(gone), stay + len(gone) - len(removed)
    assert plan.notes == (f"{stay} of {total} zero filters stay: other layers need their channels",)
    assert tfprune.verify(model, plan) <= 1e-5


def test_a_coupled_channel_goes_when_its_filters_are_zero_in_all_layers():
    model = residual_cnn()
    kernels = {name: model.get_layer(name).kernel for name in ("stem", "branch_a", "branch_b")}
    for name, channels in {"stem": [0, 3], "branch_a": [1, 4], "branch_b": [3, 6]}.items():
        kernel = kernels[name].numpy().copy()
        kernel[..., channels] = 0
        kernels[name].assign(kernel)
    plan = METHOD.plan(model, MethodSettings(ratio=0.34))
    assert plan.keep["stem"] == plan.keep["branch_b"] == (0, 1, 2, 4, 5, 6, 7)
    assert plan.keep["branch_a"] == (0, 2, 3, 5)
    assert plan.notes == ("2 of 6 zero filters stay: other layers need their channels",)
    assert tfprune.verify(model, plan) <= 1e-5


def test_what_is_removed_is_zero_where_it_is_read_so_only_the_shift_of_the_normalization_is_lost():
    model = plain_cnn()
    kernel = model.get_layer("conv_a").kernel
    values = kernel.numpy().copy()
    values[..., [2, 5]] = 0
    kernel.assign(values)
    norm = model.get_layer("bn_a")
    norm.beta.assign(np.full(6, 0.5, "float32"))
    norm.moving_mean.assign(np.zeros(6, "float32"))
    x = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype("float32")
    plan = ChannelPlan.from_removed(model, {"conv_a": [2, 5]})
    assert not np.allclose(predict(model, x)[0], predict(plan.apply(model), x)[0], atol=1e-4)
    norm.beta.assign(np.asarray([0.5, 0.5, 0, 0.5, 0.5, 0], "float32"))
    assert np.allclose(predict(model, x)[0], predict(plan.apply(model), x)[0], atol=1e-5)


def test_a_ratio_of_less_than_a_filter_is_told():
    with pytest.raises(PlanError, match=r"ratio=0\.05 of soft_filter removes no channel of 'plain_cnn'.*larger ratio"):
        METHOD.plan(plain_cnn(), MethodSettings(ratio=0.05))


@pytest.mark.parametrize(("width", "ratio", "count"), [(10, 0.3, 3), (100, 0.29, 29), (16, 0.1, 1), (16, 0.4, 6)])
def test_the_number_of_filters_is_the_whole_part_of_the_product(width, ratio, count):
    kernel = np.random.default_rng(0).standard_normal((3, 3, 2, width))
    assert len(weakest_filters(kernel, ratio)) == count


def test_what_is_known_before_the_training():
    plan, known = METHOD.expected(plain_cnn(), MethodSettings(ratio=0.5))
    assert known
    assert [len(plan.keep[name]) for name in ("conv_a", "conv_b", "fc")] == [3, 5, 8]
    assert not METHOD.expected(resnet(), MethodSettings(ratio=0.5))[1]


def test_the_key_tells_ratio_and_start():
    keys = {
        METHOD.sparse_key(MethodSettings(ratio=r, options={"pretrained": p})) for r in (0.3, 0.4) for p in (False, True)
    }
    assert len(keys) == 4


REPLICAS = """
two_devices()
import keras, tensorflow as tf
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
callbacks = METHODS.get(sys.argv[1]).callbacks(MethodSettings(ratio=.5))
trainer, result = train(strategy, True, callbacks=callbacks)
kernel = trainer.model.get_layer("conv").kernel.value
copies = [value.numpy() for value in strategy.experimental_local_results(kernel)]
print(json.dumps([len(copies), bool(np.array_equal(*copies)), (np.abs(copies[1]).sum((0, 1, 2)) == 0).sum().item(),
                  bool(np.array_equal(copies[0], result.weights[0]))]))
"""


def test_on_two_devices_both_replicas_have_the_same_zeros(tmp_path):
    (output,) = finish(start(tmp_path, "replicas", REPLICAS, "soft_filter"))
    assert last_json(output) == [2, True, 2, True]


@pytest.mark.slow
def test_the_filters_that_are_zero_after_training_are_better_removed_than_random_ones():
    data = load("fashion_mini")
    model = clone(build_model("vgg16", data.input_shape, 10, 0.25), weights="fresh", seed=0)
    trainer = Trainer(model, data, TrainingConfig(), STRATEGY)
    settings = MethodSettings(ratio=0.3)
    result = trainer.run(model.get_weights(), 4, Schedule.paper(0.1, 4), 0, METHOD.callbacks(settings))
    model.set_weights(result.weights)
    plan = METHOD.plan(model, settings)
    chance = [accuracy(drawn_plan(model, plan, seed).apply(model), data) for seed in range(3)]
    assert accuracy(plan.apply(model), data) > max(chance) + 0.05
