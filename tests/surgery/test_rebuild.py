import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfprune
from tests.helpers import (
    images,
    network,
    plain_cnn,
    predict,
    randomize,
    relative_error,
    residual_cnn,
    since,
    weights_by_path,
)
from tfprune.errors import PlanError, VerificationError
from tfprune.graph.calls import Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.inputs import random_inputs
from tfprune.models import build_model
from tfprune.plans.channels import ChannelPlan
from tfprune.surgery import proof
from tfprune.surgery.comparing import compare_outputs
from tfprune.surgery.rebuild import clone

NETWORKS = ("vgg16", "vgg16_l1", "resnet20", "resnet56")


@pytest.fixture(scope="module")
def networks():
    """The paper's networks at half width with random weights and batch normalization."""
    return {name: randomize(build_model(name, (32, 32, 3), 10, 0.5), 11) for name in NETWORKS}


def readers(name):
    """Layer -> the layer whose output channels it reads, by the layout of the paper's networks."""
    if name.startswith("vgg"):
        chain = [f"conv_{n}" for n in range(1, 14)] + ["fc_1"] * name.endswith("_l1") + ["logits"]
        return dict(zip(chain[1:], chain[:-1], strict=True))
    last = int(name.removeprefix("resnet")) - 1
    return {f"conv_{n}": f"conv_{n - 1}" for n in range(2, last + 1)} | {"logits": f"conv_{last}"}


def masked_twin(model, name, plan):
    """A copy whose kernels are zero at the channels that the plan removes, made layer by layer."""
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    for reader, source in readers(name).items():
        kernel = np.array(twin.get_layer(reader).kernel.numpy())
        gone = sorted(set(range(kernel.shape[-2])) - set(plan.keep[source]))
        kernel[..., gone, :] = 0.0
        twin.get_layer(reader).kernel.assign(kernel)
    return twin


def plan_for(model, name, how):
    if how == "layer":
        return tfprune.plan_channels(model, 0.5)
    if how == "global":
        return tfprune.plan_channels(model, 0.4, criterion="gamma", scope="global")
    if how == "random":
        return tfprune.plan_channels(model, 0.7, criterion="random", seed=5)
    return ChannelPlan.from_removed(model, {"conv_1": [0, 3], "conv_2": [1], "conv_13": [2, 4, 5]})


@pytest.mark.parametrize("how", ["layer", "global", "random", "by hand"])
@pytest.mark.parametrize("name", NETWORKS)
def test_masked_and_smaller_network_compute_the_same(name, how, networks):
    model = networks[name]
    plan = plan_for(model, name, how)
    assert tfprune.verify(model, plan, examples=2) <= 1e-5
    x = images(model, 2, seed=3)
    twin, small = predict(masked_twin(model, name, plan), x), predict(plan.apply(model), x)
    assert relative_error(twin, small) <= 1e-5
    assert relative_error(predict(model, x), small) > 1e-3


@pytest.mark.parametrize("make", [plain_cnn, residual_cnn])
def test_broken_surgery_is_found(make, monkeypatch):
    model = make()
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.verify(model, plan) <= 1e-5
    right = Record.left

    def shifted(record, index, kept, but=None):
        return np.roll(right(record, index, kept, but), 1, axis=-1)

    monkeypatch.setattr(Record, "left", shifted)
    with pytest.raises(VerificationError, match=r"relative error of .* above the tolerance of 1e-05"):
        tfprune.verify(model, plan)


def test_wrong_slice_of_one_statistic_is_found(monkeypatch):
    model = plain_cnn()
    plan = ChannelPlan.from_removed(model, {"conv_a": [0]})
    right = Record.left

    def wrong(record, index, kept, but=None):
        weight = right(record, index, kept, but)
        return weight[::-1] if record.name == "bn_a" and index == 3 else weight

    monkeypatch.setattr(Record, "left", wrong)
    with pytest.raises(VerificationError):
        tfprune.verify(model, plan)


def test_comparison_refuses_what_is_not_a_number():
    good, bad = np.ones((2, 3)), np.array([[1.0, np.nan, 1.0]] * 2)
    for pair in ((good, bad), (bad, good), (good, good * np.inf)):
        with pytest.raises(VerificationError, match="one and two differ"):
            compare_outputs([pair[0]], [pair[1]], 1e-5, "one and two", VerificationError)
    assert compare_outputs([good, 4 * good], [good, 5 * good], 0.3, "", VerificationError) == 0.25
    assert compare_outputs([0 * good], [0 * good], 0.0, "", VerificationError) == 0.0


def test_proof_does_not_depend_on_what_overflows_in_removed_channels():
    model = plain_cnn()
    kernel = np.array(model.get_layer("conv_a").kernel.numpy())
    kernel[..., 2] = 3e38
    model.get_layer("conv_a").kernel.assign(kernel)
    assert tfprune.verify(model, ChannelPlan.from_removed(model, {"conv_a": [2]})) <= 1e-5


@pytest.mark.parametrize(
    "make", [plain_cnn, residual_cnn, lambda: randomize(build_model("vgg11_l1", (32, 32, 3), 10, 0.1))]
)
def test_keeping_everything_is_bit_identical(make):
    model = make()
    same = ChannelPlan.from_removed(model, {}).apply(model)
    assert np.array_equal(predict(model, images(model))[0], predict(same, images(model))[0])
    before, after = weights_by_path(model), weights_by_path(same)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[path], after[path]) for path in before)
    own = {id(weight) for weight in model.weights}
    assert not own & {id(weight) for weight in same.weights}


def test_inherited_weights_are_the_right_slices():
    model = plain_cnn()
    small = ChannelPlan.from_removed(model, {"conv_a": [0, 4], "conv_b": [9], "fc": [1]}).apply(model)
    a, b, fc = [1, 2, 3, 5], list(range(9)), [0, 2, 3, 4, 5, 6, 7]

    def old(layer):
        return [weight.numpy() for weight in model.get_layer(layer).weights]

    expected = {
        "conv_a": [old("conv_a")[0][..., a]],
        "bn_a": [weight[a] for weight in old("bn_a")],
        "conv_b": [old("conv_b")[0][:, :, a][..., b], old("conv_b")[1][b]],
        "bn_b": [weight[b] for weight in old("bn_b")],
        "fc": [old("fc")[0].reshape(4, 4, 10, 8)[:, :, b][..., fc].reshape(144, 7), old("fc")[1][fc]],
        "logits": [old("logits")[0][fc], old("logits")[1]],
    }
    for layer, values in expected.items():
        for weight, value in zip(small.get_layer(layer).weights, values, strict=True):
            assert np.array_equal(weight.numpy(), value), weight.path


def test_smaller_network_is_plain_keras_and_of_the_old_names(tmp_path):
    model = residual_cnn()
    small = tfprune.plan_channels(model, 0.5).apply(model)
    assert type(small) is type(model)
    assert small.name == model.name
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    assert np.array_equal(predict(small, images(small))[0], predict(again, images(small))[0])


def test_original_is_left_untouched():
    model = plain_cnn()
    before, config = weights_by_path(model), str(model.get_config())
    plan = tfprune.plan_channels(model, 0.5)
    plan.apply(model).get_layer("fc").kernel.assign(np.zeros((80, 4), "float32"))
    tfprune.verify(model, plan)
    assert str(model.get_config()) == config
    assert all(np.array_equal(before[path], value) for path, value in weights_by_path(model).items())


def test_fresh_weights_follow_the_seed():
    model = plain_cnn()
    plan = tfprune.plan_channels(model, 0.5)
    one, same, other = (weights_by_path(plan.apply(model, weights="fresh", seed=seed)) for seed in (1, 1, 2))
    for path, value in one.items():
        assert np.array_equal(value, same[path]), path
        if path.endswith("kernel"):
            assert (value != other[path]).all(), path
    unseeded = [plan.apply(model, weights="fresh").get_layer("fc").kernel.numpy() for _ in range(2)]
    assert (unseeded[0] != unseeded[1]).all()
    # Layers of equal shape do not get equal weights.
    inputs = keras.Input((8,))
    twins = keras.Model(inputs, layers.Dense(8, name="c")(layers.Dense(8, name="b")(layers.Dense(8, name="a")(inputs))))
    fresh = clone(twins, weights="fresh", seed=1)
    assert (fresh.get_layer("a").kernel.numpy() != fresh.get_layer("b").kernel.numpy()).all()


def test_fresh_weights_follow_the_initializers_at_the_new_width():
    model = randomize(build_model("vgg16", (32, 32, 3), 10, 0.5))
    fresh = tfprune.plan_channels(model, 0.5).apply(model, weights="fresh", seed=3)
    for number in (3, 6, 9, 12):
        conv, bn = fresh.get_layer(f"conv_{number}"), fresh.get_layer(f"bn_{number}")
        values = conv.kernel.numpy()
        expected = np.sqrt(2 / (9 * conv.filters))  # by the fan-out that is left
        assert values.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * values.size))
        assert (bn.gamma.numpy() == 0.5).all()
        assert not bn.moving_mean.numpy().any()
        assert (bn.moving_variance.numpy() == 1).all()
    logits = fresh.get_layer("logits").kernel.numpy()
    assert logits.std() == pytest.approx(0.01, rel=5 / np.sqrt(2 * logits.size))


def test_settings_of_layers_are_kept():
    inputs = keras.Input((8, 8, 3))
    conv = layers.Conv2D(6, 3, name="conv", strides=2, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.1))
    x = layers.BatchNormalization(name="bn", momentum=0.7, epsilon=0.01)(conv(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="head", dtype="float64")(layers.Flatten()(x)))
    model.get_layer("bn").trainable = False
    small = tfprune.plan_channels(model, 0.5).apply(model)
    assert small.get_layer("conv").filters == 3
    assert small.get_layer("conv").strides == (2, 2)
    assert small.get_layer("conv").kernel_regularizer.l2 == pytest.approx(0.1)
    assert (small.get_layer("bn").momentum, small.get_layer("bn").epsilon) == (0.7, 0.01)
    assert not small.get_layer("bn").trainable
    assert small.get_layer("head").kernel.dtype == "float64"


def test_frozen_layers_keep_their_weights_where_others_are_fresh():
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(6, 3, name="conv")(inputs))
    x = layers.Bidirectional(layers.LSTM(4), name="both")(layers.Reshape((36, 6))(x))
    model = randomize(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    for layer in (model.get_layer("conv"), model.get_layer("bn"), model.get_layer("both").forward_layer):
        layer.trainable = False
    plan = tfprune.plan_channels(model, 0.5)
    inherited, fresh = plan.apply(model), plan.apply(model, weights="fresh", seed=0)
    for own, other in zip(inherited.weights, fresh.weights, strict=True):
        kept = other.path.startswith(("conv/", "bn/")) or "forward" in other.path
        assert np.array_equal(own, other) == kept, other.path
        assert other.trainable == own.trainable
    again = (
        tfprune.plan_weights(model, 0.5).apply(model, weights="fresh", seed=0, rescale=True).get_layer("conv").kernel
    )
    assert set(np.unique(again)) <= {0, *np.unique(model.get_layer("conv").kernel)}


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "float64"])
def test_precision_survives_and_the_proof_holds(policy):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, dtype=policy, name="conv")(inputs)
    x = layers.TimeDistributed(layers.Dense(8, dtype=policy), dtype=policy)(layers.BatchNormalization(dtype=policy)(x))
    x = layers.LSTM(9, dtype=policy)(layers.Reshape((36, 8), dtype=policy)(x))
    model = randomize(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    plan = tfprune.plan_channels(model, 0.4)
    small = plan.apply(model)
    for layer in model.layers:
        kept = small.get_layer(layer.name)
        assert kept.dtype_policy.name == layer.dtype_policy.name
        assert [weight.dtype for weight in kept.weights] == [weight.dtype for weight in layer.weights]
    assert small.get_layer("conv").compute_dtype == policy.removeprefix("mixed_")
    assert small.get_layer(model.layers[3].name).layer.compute_dtype == policy.removeprefix("mixed_")
    assert tfprune.verify(model, plan) <= 1e-5


def test_networks_of_sixteen_bits_are_compared_in_float32(monkeypatch):
    # By how much sums in 16 bits differ depends on the processor, so what is compared is looked at.
    compared = []

    def watched(function):
        return lambda graph, *args: (compared.append(graph.model), function(graph, *args))[1]

    for function in (proof.masked_outputs, proof.masked_with_own_statistics):
        monkeypatch.setattr(proof, function.__name__, watched(function))
    model = randomize(residual_cnn())
    halved = clone(model, lambda record, config: (type(record.operation), {**config, "dtype": "mixed_float16"}))
    assert {layer.dtype_policy.name for layer in halved.layers if layer.weights} == {"mixed_float16"}
    assert tfprune.verify(halved, tfprune.plan_channels(halved, 0.5)) <= 1e-5
    network, same = compared  # with its own weights, and with random ones
    assert network is same
    assert {layer.dtype_policy.name for layer in network.layers if layer.weights} == {"float32"}
    assert {str(tensor.dtype) for tensor in network.outputs} == {"float32"}


def nobodys_loss(targets, outputs):
    return keras.ops.mean(keras.ops.abs(targets - outputs))


class NobodysMetric(keras.metrics.Mean):
    def update_state(self, targets, outputs, sample_weight=None):
        super().update_state(keras.ops.max(outputs))


@pytest.mark.parametrize("weights", ["inherit", "fresh"])
@pytest.mark.parametrize("loss", ["mse", nobodys_loss, keras.losses.Huber(0.3)])
def test_compile_settings_survive_with_an_optimizer_of_its_own(loss, weights):
    model = plain_cnn()
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 100)
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.9), loss, metrics=["mae", NobodysMetric(name="most")],
        steps_per_execution=2, jit_compile=False,
    )  # fmt: skip
    x, y = images(model, 8), np.zeros((8, 5), "float32")
    model.fit(x, y, epochs=2, verbose=0)
    small = tfprune.plan_channels(model, 0.5).apply(model, weights=weights)
    assert small.optimizer is not model.optimizer
    assert small.optimizer.get_config() == model.optimizer.get_config()
    assert int(small.optimizer.iterations) == 0
    assert (small.steps_per_execution, small.jit_compile) == (2, False)
    outputs = predict(small, x)[0]
    found = small.evaluate(x, y, verbose=0, return_dict=True)
    assert found["mae"] == pytest.approx(np.abs(outputs).mean(), rel=1e-5)
    assert found["most"] == pytest.approx(outputs.max(), rel=1e-5)
    expected = {"mse": np.square(outputs).mean(), nobodys_loss: np.abs(outputs).mean()}
    if loss in expected:
        assert found["loss"] == pytest.approx(expected[loss], rel=1e-5)
    small.fit(x, y, verbose=0)


def decayed(model):
    """Which trainable variables the weight decay of a model's optimizer moves, when all gradients are zero."""
    variables = model.trainable_variables
    before = [variable.numpy().copy() for variable in variables]
    model.optimizer.apply([keras.ops.zeros(variable.shape) for variable in variables], variables)
    return [not np.array_equal(old, new.numpy()) for old, new in zip(before, variables, strict=True)]


@pytest.mark.parametrize("make", [
    lambda model: tfprune.plan_channels(model, 0.5).apply(model),
    lambda model: tfprune.plan_weights(model, 0.5).apply(model),
])  # fmt: skip
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_the_optimizer_excludes_from_weight_decay_stays_excluded(make, wrapped):
    model = plain_cnn()
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay([model.get_layer("conv_b").kernel], ["bias", "gamma"])
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if wrapped else optimizer, "mse")
    small = make(model)
    names = [variable.path for variable in small.trainable_variables]
    excluded = [name == "conv_b/kernel" or name.endswith(("bias", "gamma")) for name in names]
    assert decayed(small) == [not own for own in excluded]
    assert decayed(model) == [not own for own in excluded]


def test_what_was_changed_of_an_optimizer_that_was_given_by_name_survives():
    model = plain_cnn()
    model.compile("adamw", "mse")
    model.optimizer.learning_rate = 0.5
    model.optimizer.exclude_from_weight_decay(var_names=["kernel"])
    small = tfprune.plan_channels(model, 0.5).apply(model)
    assert float(small.optimizer.learning_rate) == 0.5
    names = [variable.path for variable in small.trainable_variables]
    assert decayed(small) == [not name.endswith("kernel") for name in names]


def test_variables_excluded_from_weight_decay_that_have_no_copy_are_told():
    model = plain_cnn()
    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay([model.get_layer("conv_b").kernel])
    model.compile(optimizer, "mse")
    with pytest.warns(UserWarning, match="excludes conv_b/kernel from weight decay"):
        tfprune.DesignPlan.beside(model, plain_cnn()).apply(model, "fresh")


def test_compile_settings_that_cannot_be_copied_are_told():
    model = plain_cnn()
    model.compile("sgd", "mse", metrics=[keras.metrics.MeanMetricWrapper(lambda targets, outputs: outputs)])
    with pytest.warns(UserWarning, match=r"compile settings that cannot be copied \(.*lambda.*\); compile anew"):
        small = tfprune.plan_channels(model, 0.5).apply(model)
    assert not small.compiled
    assert not tfprune.plan_channels(plain_cnn(), 0.5).apply(plain_cnn()).compiled


def test_a_loss_that_is_a_lambda_survives():
    model = plain_cnn()
    model.compile("sgd", lambda targets, outputs: 3.0 * keras.ops.mean(outputs, axis=-1))
    small = tfprune.plan_channels(model, 0.5).apply(model)
    x = images(model, 4)
    expected = 3.0 * predict(small, x)[0].mean()
    assert small.evaluate(x, np.zeros((4, 5)), verbose=0) == pytest.approx(expected, rel=1e-4)


def test_outputs_of_nested_models_keep_the_names_that_losses_know():
    heads = [
        keras.Sequential([keras.Input((8,)), layers.Dense(n, name="last")], name=name)
        for name, n in (("a", 3), ("b", 2))
    ]
    inputs = keras.Input((4,))
    x = layers.Dense(8, name="wide")(inputs)
    model = randomize(keras.Model(inputs, [head(x) for head in heads]))
    model.compile("sgd", {"a": "mse", "b": "mae"})
    small = tfprune.plan_channels(model, 0.5).apply(model)
    assert small.output_names == ["a", "b"]
    data = np.ones((6, 4)), {"a": np.ones((6, 3)), "b": np.ones((6, 2))}
    small.fit(*data, verbose=0)
    assert tfprune.verify(model, tfprune.plan_channels(model, 0.5)) <= 1e-5


def test_methods_of_a_subclass_are_told_to_be_lost():
    class Own(keras.Model):
        def train_step(self, data):
            return {"loss": 0.0}

    inputs = keras.Input((4,))
    model = Own(inputs, layers.Dense(2)(layers.Dense(8)(inputs)), name="own")
    with pytest.warns(UserWarning, match=r"own is a Own; the pruned network is a plain keras.Model, .*train_step"):
        tfprune.plan_channels(model, 0.5).apply(model)


@pytest.mark.parametrize("training", [True, False])
def test_what_a_nested_model_was_told_goes_down_to_its_layers(training):
    base = keras.Sequential([keras.Input((8,)), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(8)])
    inputs = keras.Input((4,))
    x = base(layers.Dense(8)(inputs), training=training)
    model = randomize(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    small = tfprune.plan_channels(model, 0.5).apply(model)
    x = np.ones((5, 4), "float32")
    for either in (model, small):
        once, again = (np.asarray(either(x)) for _ in range(2))
        assert np.array_equal(once, again) is not training


class Scaled(layers.Layer):
    """A layer whose config Keras cannot know."""

    def __init__(self, factors, **options):
        super().__init__(**options)
        self.factors = factors

    def build(self, shape):
        self.offset = self.add_weight(shape=(shape[-1],), name="offset")

    def call(self, x):
        return x * self.factors + self.offset


class Strict(layers.Layer):
    """A layer that takes no name."""

    def __init__(self):
        super().__init__()

    def call(self, x):
        return x


class Secretive(layers.Layer):
    """Its config forgets how many times it is wider inside, and so do its attributes."""

    def __init__(self, times=1, **options):
        super().__init__(**options)
        self.factor = times

    def build(self, shape):
        self.inner = self.add_weight(shape=(shape[-1], self.factor * shape[-1]), name="inner")
        self.outer = self.add_weight(shape=(self.factor * shape[-1], shape[-1]), name="outer")

    def call(self, x):
        return x @ self.inner @ self.outer

    def get_config(self):
        return {"name": self.name}


@pytest.mark.parametrize(
    ("layer", "fragment"),
    [
        (Scaled(np.ones(6, "float32"), name="own"), "its get_config raises NotImplementedError: Scaled .* 'factors'"),
        (Secretive(3, name="own"), "its config makes another layer than it is"),
    ],
)
def test_a_layer_that_cannot_be_made_again_is_told_before_anything_is_promised(layer, fragment):
    model = network(lambda x: layers.Dense(2)(layer(layers.Dense(6)(layers.Dense(8)(x)))), (4,))
    with pytest.raises(PlanError, match=rf"own \(\w+\) cannot be made again: {fragment}.* cannot be unfolded"):
        tfprune.plan_channels(model, 0.5)


@keras.saving.register_keras_serializable("tests")
class Forgetful(layers.Layer):
    """Its config forgets how many times it is wider inside."""

    def __init__(self, times=1, bias="zeros", **options):
        super().__init__(**options)
        self.times, self._bias = times, keras.initializers.get(bias)

    def build(self, shape):
        self.inner = self.add_weight(shape=(shape[-1], self.times * shape[-1]), name="inner")
        self.outer = self.add_weight(shape=(self.times * shape[-1], shape[-1]), name="outer")
        self.shift = self.add_weight(shape=(shape[-1],), initializer=self._bias, name="shift")

    def call(self, x):
        return x @ self.inner @ self.outer + self.shift

    def get_config(self):
        return {"name": self.name}


@keras.saving.register_keras_serializable("tests")
class Unconfigured(Forgetful):
    """It has no config at all: an argument is an object, so that Keras cannot tell it."""

    def __init__(self, times, bias, **options):
        super().__init__(times, bias, **options)

    get_config = layers.Layer.get_config


@pytest.mark.parametrize("layer", [Forgetful(3, name="own"), Unconfigured(3, keras.initializers.Ones(), name="own")])
def test_what_a_config_does_not_tell_is_read_from_the_attributes_of_the_same_name(layer, tmp_path):
    model = network(lambda x: layers.Dense(2)(layer(layers.Dense(6)(layers.Dense(8, name="wide")(x)))), (4,))
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["wide"]) == 4
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    small = plan.apply(model)
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    np.testing.assert_allclose(loaded(x), small(x), rtol=1e-6)


def test_a_layer_whose_constructor_takes_no_name_is_made_again():
    model = network(lambda x: layers.Dense(2)(Strict()(layers.Dense(6, name="wide")(x))), (4,))
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["wide"]) == 3
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


@keras.saving.register_keras_serializable("tests")
def quarters(shape, dtype=None):
    return keras.ops.full(shape, 0.25, dtype)


class Twice(keras.regularizers.Regularizer):
    def __call__(self, value):
        return 2.0 * keras.ops.sum(value)

    def get_config(self):
        return {}


class Nothing(keras.constraints.Constraint):
    def __call__(self, value):
        return value


def test_objects_that_nobody_registered_are_kept():
    inputs = keras.Input((4,))
    wide = layers.Dense(
        8, kernel_initializer=quarters, kernel_regularizer=Twice(), kernel_constraint=Nothing(), name="wide"
    )
    model = keras.Model(inputs, layers.Dense(2, name="head")(wide(inputs)))
    plan = ChannelPlan.from_removed(model, {"wide": [0, 1]})
    for small in (plan.apply(model), plan.apply(model, weights="fresh", seed=1)):
        kernel = small.get_layer("wide").kernel.numpy()
        assert np.array_equal(kernel, np.full((4, 6), 0.25))
        assert float(small.losses[0]) == pytest.approx(2 * kernel.sum())
        assert small.get_layer("wide").kernel_constraint is wide.kernel_constraint


@since("3.13")
def test_inputs_stay_optional():
    one, other = keras.Input((4,), name="one"), keras.Input((4,), optional=True, name="other")

    class Either(layers.Layer):
        def call(self, first, second):
            return first if second is None else first + second

    x = Either(name="either")(one, other)
    model = keras.Model([one, other], layers.Dense(2)(layers.Dense(8)(x)))
    small = tfprune.plan_channels(model, 0.5).apply(model)
    x = np.ones((3, 4), "float32")
    assert small([x, None]).shape == (3, 2)


def test_adapted_normalization_of_inputs_survives():
    data = np.random.default_rng(0).normal(3.0, 2.0, (20, 8, 8, 3)).astype("float32")
    inputs = keras.Input((8, 8, 3))
    normalize = layers.Normalization(name="normalize")
    normalize.adapt(data)
    x = layers.Conv2D(6, 3, name="conv")(normalize(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x)))
    same = ChannelPlan.from_removed(model, {}).apply(model)
    assert np.array_equal(predict(model, data)[0], predict(same, data)[0])
    assert tfprune.verify(model, tfprune.plan_channels(model, 0.5)) <= 1e-5


def test_clone_with_an_edit_changes_the_class_and_keeps_the_weights():
    from tfprune.surgery.layers import FusedBatchNormalization

    def fuse(record: Record, config: dict):
        kind = type(record.operation)
        return (FusedBatchNormalization if kind is layers.BatchNormalization else kind), config

    model = residual_cnn()
    fused = clone(model, fuse)
    assert type(fused.get_layer("bn_stem")) is FusedBatchNormalization
    assert relative_error(predict(model, images(model)), predict(fused, images(model))) <= 1e-5
    back = clone(fused)
    assert type(back.get_layer("bn_stem")) is FusedBatchNormalization
    assert tfprune.verify(fused, tfprune.plan_channels(fused, 0.5)) <= 1e-5


def test_random_inputs_have_the_shapes_and_types_of_the_model():
    model = keras.Model(
        [one := keras.Input((None, 4)), two := keras.Input((3,), dtype="int32")],
        layers.Concatenate()([layers.GlobalAveragePooling1D()(one), layers.Embedding(9, 2)(two)[:, 0]]),
    )
    first, second = random_inputs(model, 5, seed=2)
    assert first.shape == (5, 32, 4)
    assert second.shape == (5, 3)
    assert second.dtype == np.int32
    assert np.array_equal(first, random_inputs(model, 5, seed=2)[0])
    assert not np.array_equal(first, random_inputs(model, 5, seed=3)[0])


def test_verify_uses_the_weights_that_the_model_has_now():
    model = plain_cnn(seed=0)
    plan = tfprune.plan_channels(model, 0.5)
    randomize(model, 8)
    assert tfprune.verify(model, plan) <= 1e-5
    x = images(model)
    assert relative_error(predict(plan.apply(plain_cnn(seed=0)), x), predict(plan.apply(model), x)) > 1e-2


def test_graph_of_the_smaller_network_has_the_kept_widths():
    model = residual_cnn()
    plan = tfprune.plan_channels(model, 0.5)
    graph = ChannelGraph(plan.apply(model))
    assert {record.name: len(record.created) for record in graph.producers()} == {
        layer: len(keep) for layer, keep in plan.keep.items()
    }


def test_augmentation_does_nothing_in_the_proof():
    model = network(lambda x: layers.Conv2D(2, 1)(layers.Conv2D(8, 3)(layers.RandomFlip()(x))), (8, 8, 3))
    assert tfprune.verify(model, tfprune.plan_channels(model, 0.5)) <= 1e-5


def test_states_of_recurrent_layers_are_as_they_were():
    inputs = keras.Input(batch_shape=(4, 5, 4))
    lstm = layers.LSTM(6, stateful=True, name="lstm")
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.Dense(5, name="wide")(lstm(inputs)))))
    states = [np.random.default_rng(i).normal(size=(4, 6)).astype("float32") for i in range(2)]
    for variable, value in zip(lstm.states, states, strict=True):
        variable.assign(value)
    plan = ChannelPlan.from_removed(model, {"wide": [1, 2]})
    assert tfprune.verify(model, plan) <= 1e-5
    for variable, value in zip(lstm.states, states, strict=True):
        assert np.array_equal(variable.numpy(), value)
    assert "state" in plan.frozen["lstm"]


def test_operations_with_arrays_and_lambdas_in_wrappers_are_made_again():
    def body(x):
        x = ops.repeat(layers.Dense(6)(x), np.array([1, 2, 1, 1, 1]), axis=1)
        x = layers.TimeDistributed(layers.Lambda(lambda y: y * 2), name="twice")(layers.Dense(4, name="whole")(x))
        return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))

    model = network(body, (5, 4))
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.verify(model, plan) <= 1e-5
    assert "twice" in plan.frozen["whole"]


def test_a_layer_with_weights_that_is_an_activation_is_not_shared():
    slopes = layers.PReLU(alpha_initializer=keras.initializers.Constant(0.25), name="slopes")
    model = network(lambda x: layers.Dense(3)(layers.Dense(8, activation=slopes)(layers.Dense(8, name="w")(x))), (5,))
    predict(model, np.ones((2, 5), "float32"))  # which makes the slopes
    slopes.alpha.assign(np.full(8, 0.4))
    before = slopes.alpha.numpy()
    plan = tfprune.plan_channels(model, 0.5)
    for small in (plan.apply(model), plan.apply(model, weights="fresh", seed=1)):
        predict(small, np.ones((2, 5), "float32"))
        own = small.layers[2].activation
        assert own is not slopes
        assert own.alpha is not slopes.alpha
        small.compile("sgd", "mse")
        small.fit(np.ones((8, 5)), np.ones((8, 3)), verbose=0)
    tfprune.verify(model, plan, random_weights=True, power=True)
    assert np.array_equal(slopes.alpha.numpy(), before)
    assert np.array_equal(plan.apply(model).layers[2].activation.alpha.numpy(), before)


def test_what_adapt_has_taught_a_layer_is_not_lost(tmp_path):
    words = layers.TextVectorization(output_sequence_length=4)
    words.adapt(["cat dog bird", "dog fish cat", "cat"])
    inputs = keras.Input((1,), dtype="string")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(8, 8, name="words")(words(inputs)))
    model = randomize(keras.Model(inputs, layers.Dense(3)(layers.Dense(8)(x))))
    plan = tfprune.plan_channels(model, 0.5)
    small = plan.apply(model)
    learned = [layer for layer in small.layers if isinstance(layer, layers.TextVectorization)]
    assert [layer.get_vocabulary() for layer in learned] == [words.get_vocabulary()]
    assert "bird" in words.get_vocabulary()
    assert tfprune.verify(model, plan, inputs=tf.constant([["dog bird"], ["cat"], ["fish"]])) <= 1e-5

    bins = layers.Discretization(num_bins=4)
    bins.adapt(np.linspace(0, 10, 50)[:, None])
    inputs = keras.Input((1,))
    x = layers.Dense(6, name="wide")(keras.ops.cast(bins(inputs), "float32"))
    model = randomize(keras.Model(inputs, layers.Dense(2)(x)))
    plan = tfprune.plan_channels(model, 0.5)
    small = plan.apply(model)
    (own,) = (layer for layer in small.layers if isinstance(layer, layers.Discretization))
    assert own.bin_boundaries == bins.bin_boundaries
    assert tfprune.verify(model, plan, inputs=np.array([[1.0], [4.0], [9.0]])) <= 1e-5
