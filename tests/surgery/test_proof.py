"""What the proof tries its networks on, and where it says that nothing was proved."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import network, plain_cnn, predict, randomize, relative_error
from tfprune.errors import NothingProvedError, PlanError, VerificationError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.inputs import inputs_that_work, random_inputs
from tfprune.graph.rules import dispatch
from tfprune.plans.channels import ChannelPlan
from tfprune.surgery import proof as proof_module
from tfprune.surgery.comparing import compare_outputs
from tfprune.surgery.masked import MaskedModel, masked_outputs
from tfprune.surgery.random_weights import random_values


def attentive(x):
    x = layers.Embedding(30, 16, mask_zero=True, name="words")(x)
    return layers.Dense(2)(layers.Flatten()(layers.MultiHeadAttention(4, 4, name="attention")(x, x)))


def test_padding_is_masked_in_the_masked_network_as_in_the_original():
    model = network(attentive, (6,), dtype="int32")
    tokens = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 0]], "int32")
    graph = ChannelGraph(model)
    whole = masked_outputs(graph, graph.keep_all(), [tokens])
    assert relative_error(predict(model, tokens), [np.asarray(whole[0])]) <= 1e-6
    plan = ChannelPlan.from_removed(model, {"attention": [1], "words": [0, 5]})
    masked = masked_outputs(graph, plan.kept(graph), [tokens])
    assert relative_error([np.asarray(masked[0])], predict(plan.apply(model), tokens)) <= 1e-5
    assert tfprune.verify(model, plan, inputs=tokens) <= 1e-5


def test_inputs_in_a_dictionary_go_by_name():
    one, other = keras.Input((5,), name="z"), keras.Input((5,), name="a")
    x = layers.Concatenate()([layers.Dense(8)(one), layers.Dense(6)(other)])
    model = randomize(keras.Model([one, other], layers.Dense(2)(x)))
    first, second = np.random.default_rng(0).normal(size=(2, 7, 5)).astype("float32")
    expected = predict(model, first, second)[0]
    masked = MaskedModel(ChannelGraph(model))
    assert relative_error([expected], [np.asarray(masked({"z": first, "a": second}))]) <= 1e-6
    how = {"criterion": "mean_activation", "ratio": 0.5}
    by_name = tfprune.plan_channels(model, data=({"a": second, "z": first}, None), **how)
    assert by_name.keep == tfprune.plan_channels(model, data=([first, second], None), **how).keep
    with pytest.raises(PlanError, match=r"does not take these inputs: .*z.*a"):
        tfprune.plan_channels(model, data={"x": first, "a": second}, **how)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float64"])
def test_data_of_other_dtypes_are_cast_as_fit_does(dtype):
    model = plain_cnn()
    pixels = np.random.default_rng(0).integers(0, 200, (6, 8, 8, 3))
    how = {"criterion": "mean_activation", "ratio": 0.5}
    expected = tfprune.plan_channels(model, data=pixels.astype("float32"), **how)
    assert tfprune.plan_channels(model, data=pixels.astype(dtype), **how).keep == expected.keep
    scan = tfprune.sensitivity(model, (pixels.astype(dtype), np.zeros(6)), ratios=[0.5])
    assert scan.rows == tfprune.sensitivity(model, (pixels.astype("float32"), np.zeros(6)), ratios=[0.5]).rows


def test_random_integers_are_what_the_layers_behind_them_know():
    words, kinds, free = (keras.Input((9,), dtype="int32", name=name) for name in ("words", "kinds", "free"))
    x = layers.Flatten()(layers.Embedding(5, 4)(words))
    y = layers.CategoryEncoding(7, output_mode="multi_hot")(kinds)
    z = layers.Dense(3)(keras.ops.cast(free, "float32"))
    model = keras.Model([words, kinds, free], layers.Dense(2)(layers.Concatenate()([x, y, z])))
    drawn = dict(zip(("words", "kinds", "free"), random_inputs(model, 200), strict=True))
    assert {name: (int(values.min()), int(values.max())) for name, values in drawn.items()} == {
        "words": (0, 4), "kinds": (0, 6), "free": (0, 255),
    }  # fmt: skip
    assert all(values[:, 0].min() == 1 for values in drawn.values())
    assert tfprune.verify(model, tfprune.plan_channels(model, 0.5)) <= 1e-5


def test_random_integers_are_what_layers_inside_of_others_know():
    class Embedded(layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.words = layers.Embedding(5, 8)

        def call(self, tokens):
            return self.words(tokens)

    inputs = keras.Input((9,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(Embedded(name="embedded")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(8)(x)))
    (tokens,) = random_inputs(model, 200)
    assert (tokens.min(), tokens.max()) == (0, 4)
    assert tfprune.verify(model, tfprune.plan_channels(model, 0.5), power=True).unnoticed == ()


def test_networks_of_words_are_proved():
    text = layers.TextVectorization(output_sequence_length=4, vocabulary=["cat", "dog", "bird", "fish"])
    inputs = keras.Input((1,), dtype="string")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(6, 8, name="words")(text(inputs)))
    model = randomize(keras.Model(inputs, layers.Dense(3)(layers.Dense(8)(x))))
    assert tfprune.verify(model, tfprune.plan_channels(model, 0.5)) <= 1e-5


def test_an_untrained_network_whose_outputs_are_all_alike_is_proved_with_random_weights():
    inputs = keras.Input((32, 32, 3))
    base = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.35)
    x = layers.GlobalAveragePooling2D()(base(inputs, training=False))
    model = keras.Model(inputs, layers.Dense(5, activation="softmax")(x))
    before = [weight.numpy() for weight in model.weights]
    assert 0.0 <= tfprune.verify(model, tfprune.plan_channels(model, 0.5)) <= 1e-5
    assert all(np.array_equal(old, new.numpy()) for old, new in zip(before, model.weights, strict=True))


def test_what_proves_nothing_with_any_weights_is_told():
    def body(x):
        return layers.Activation(keras.ops.sign)(layers.Dense(1)(layers.Dense(6)(x)) ** 2 + 1.0)

    model = network(body, (4,))
    with pytest.raises(NothingProvedError, match="proves nothing"):
        tfprune.verify(model, tfprune.plan_channels(model, 0.5))


class Mixing(layers.Layer):
    """x + x @ kernel, which begins as the identity."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), initializer="zeros", name="kernel")

    def call(self, x):
        return x + x @ self.kernel


def test_random_weights_find_a_wrong_rule_that_weights_of_zero_hide(monkeypatch):

    monkeypatch.setattr(dispatch, "_BY_CLASS", {})

    @tfprune.rule(Mixing)
    def wrong(call):
        channels = call.channels()  # it mixes them: `call.mix()` would be right
        call.weight(call.operation.kernel, {0: channels, 1: channels})
        return call.inputs[0]

    inputs = keras.Input((4,))
    hidden = layers.Dense(8, activation="sigmoid", bias_initializer="ones", name="wide")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(Mixing(name="mixing")(hidden)))
    plan = tfprune.plan_channels(model, 0.5)
    for random_weights in (False, True):
        with pytest.raises(VerificationError):
            tfprune.verify(model, plan, random_weights=random_weights)


def test_what_random_weights_make_no_number_of_is_proved_with_the_networks_own():
    def body(x):
        x = layers.Dense(8, activation="relu", bias_initializer="ones", name="wide")(x)
        return ops.log(layers.Dense(32, kernel_initializer="ones", use_bias=False)(x))

    inputs = keras.Input((4,))
    model = keras.Model(inputs, body(inputs))
    proof = tfprune.verify(model, tfprune.plan_channels(model, 0.5), inputs=np.ones((3, 4)) * [[1], [2], [3]])
    assert (proof <= 1e-5, proof.weights) == (True, "own")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"plan": None}, "received a NoneType as plan"),
        ({"plan": "plan.json"}, "received a str as plan"),
        ({"model": 3}, "Expected a Keras 3 model"),
        ({"examples": 0}, "examples=0 must be a whole number of at least 1"),
        ({"examples": 1.5}, "examples=1.5"),
        ({"seed": -1}, "seed=-1"),
        ({"tolerance": None}, r"tolerance=None is no number in \(0, 1\)"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
        ({"inputs": np.ones((2, 7))}, "does not take these inputs"),
    ],
    ids=str,
)
def test_wrong_arguments_are_told(arguments, fragment):
    model = plain_cnn()
    with pytest.raises(PlanError, match=fragment):
        tfprune.verify(**{"model": model, "plan": tfprune.plan_channels(model, 0.5), **arguments})


# How much a proof says.


def detector(x):
    """A class prior that is large beside all that the network has to say when it is new."""
    x = layers.Conv2D(8, 3, activation="relu", name="one")(x)
    x = layers.Conv2D(8, 3, activation="relu", name="two")(x)
    small = keras.initializers.RandomNormal(stddev=1e-6)
    return layers.Conv2D(4, 1, kernel_initializer=small, bias_initializer=keras.initializers.Constant(-4.6))(x)


def scaled(x):
    """A block as ConvNeXt begins with it: its branch is scaled by almost nothing."""
    x = layers.Conv2D(6, 3, name="stem")(x)
    branch = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    branch = layers.Conv2D(6, 1, name="narrow")(layers.Conv2D(12, 1, activation="gelu", name="wide")(branch))
    branch = layers.BatchNormalization(gamma_initializer=keras.initializers.Constant(1e-6))(branch)
    return layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Add()([x, branch])))


def fresh(body, shape):
    keras.utils.set_random_seed(1)
    inputs = keras.Input(shape)
    return keras.Model(inputs, body(inputs))


@pytest.mark.parametrize("body", [detector, scaled])
def test_every_rolled_kernel_is_noticed_where_the_networks_own_weights_hide_it(body):
    model = fresh(body, (12, 12, 3))
    before = model.get_weights()
    proof = tfprune.verify(model, tfprune.plan_channels(model, 0.5), power=True)
    assert proof <= 1e-5
    assert proof.weights == ("random" if body is detector else "own and random")
    assert proof.unnoticed == ()
    kernels = [weight for weight in model.trainable_weights if len(weight.shape) > 1]
    assert proof.tried == len(kernels)
    assert proof.power() == f"of {len(kernels)} kernels rolled by one channel {len(kernels)} were noticed"
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.applications.MobileNetV2((64, 64, 3), 0.35, weights=None, classes=7),
        lambda: keras.applications.ConvNeXtTiny(weights=None, input_shape=(64, 64, 3), classes=7),
        lambda: keras.applications.DenseNet121(weights=None, input_shape=(64, 64, 3), classes=7),
        lambda: keras.applications.ResNet50V2(weights=None, input_shape=(64, 64, 3), classes=7),
        lambda: keras.applications.MobileNetV3Small(weights=None, input_shape=(32, 32, 3), classes=7),
        lambda: keras.applications.EfficientNetB0(weights=None, input_shape=(32, 32, 3), classes=7),
    ],
    ids=["MobileNetV2", "ConvNeXtTiny", "DenseNet121", "ResNet50V2", "MobileNetV3Small", "EfficientNetB0"],
)
def test_every_rolled_kernel_of_a_published_network_is_noticed(make):
    keras.utils.set_random_seed(0)
    model = make()
    proof = tfprune.verify(model, tfprune.plan_channels(model, 0.5), examples=2, power=True, random_weights=True)
    assert proof <= 1e-5
    assert proof.unnoticed == ()


def test_a_wrong_network_is_told_beside_what_each_output_varies_by():
    def body(x):
        x = layers.Dense(8, activation="relu", name="wide")(x)
        return [layers.Dense(2, name="loud")(x) * 1e4, layers.Dense(2, name="quiet")(x)]

    inputs = keras.Input((5,))
    model = randomize(keras.Model(inputs, body(inputs)))
    plan = tfprune.plan_channels(model, 0.5)

    assert tfprune.verify(model, plan) <= 1e-5
    small = plan.apply(model)
    kernel = small.get_layer("quiet").kernel
    kernel.assign(kernel[:, ::-1])
    inputs = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    masked = masked_outputs(plan.graph(model), plan.kept(plan.graph(model)), [inputs])
    outputs = [np.asarray(output) for output in masked]
    scales = [float(np.ptp(output, axis=0).max()) for output in outputs]
    with pytest.raises(VerificationError, match="the output varies by"):
        compare_outputs(outputs, predict(small, inputs), 1e-5, "they", VerificationError, scales)


def test_random_depthwise_kernels_are_drawn_for_the_inputs_that_they_sum():
    inputs = keras.Input((16, 16, 256))
    model = keras.Model(inputs, layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(inputs))
    (value,) = random_values(ChannelGraph(model), 0).values()
    assert value.shape == (3, 3, 256, 1)
    assert value.std() == pytest.approx((2 / 9) ** 0.5, rel=0.05)


def test_a_kernel_counts_as_noticed_with_whichever_weights_tell_it():
    inputs = keras.Input((5,))
    x = layers.Dense(12, activation="relu")(inputs)
    x = layers.Rescaling(1.0, offset=60.0)(layers.Dense(2, name="out")(layers.Dense(12, activation="tanh")(x)))
    model = keras.Model(inputs, layers.Activation("sigmoid")(x))
    model.get_layer("out").bias.assign([-60.0, -60.0])  # without it, as with random weights, all is saturated
    proof = tfprune.verify(model, tfprune.plan_channels(model, 0.5), power=True)
    assert (proof.weights, proof.tried, proof.unnoticed) == ("own", 3, ())


# Normalizations over the channels that are left.


def normalize(x, rms, epsilon):
    mean = 0.0 if rms else x.mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + epsilon)


@pytest.mark.parametrize("rms", [False, True])
def test_a_narrowed_normalization_runs_over_the_channels_that_are_left(rms, tmp_path):
    kind = layers.RMSNormalization if rms else layers.LayerNormalization

    def body(x):
        return layers.Dense(3, name="last")(kind(name="norm", epsilon=1e-3)(layers.Dense(10, name="wide")(x)))

    model = network(body, (5,))
    plan = tfprune.plan_channels(model, 0.5, normalization="narrowed")
    kept = list(plan.keep["wide"])
    assert len(kept) == 5
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    inputs = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
    kernel, bias, scale, *rest = (np.asarray(weight, np.float64) for weight in model.get_weights())
    shift, last, last_bias = (rest[0][kept], *rest[1:]) if not rms else (0.0, *rest)
    hidden = normalize((inputs.astype(np.float64) @ kernel + bias)[:, kept], rms, 1e-3) * scale[kept] + shift
    assert np.allclose(predict(plan.apply(model), inputs)[0], hidden @ last[kept] + last_bias, rtol=1e-4, atol=1e-4)
    assert plan.notes[0].startswith("normalization='narrowed': norm run over the channels that are left")
    plan.save(tmp_path / "plan.json")
    again = tfprune.load_plan(tmp_path / "plan.json")
    assert again == plan
    assert tfprune.verify(model, again) <= 1e-5
    with pytest.raises(PlanError, match=r"wide: norm normalizes over the channels"):
        tfprune.plan_channels(model, 0.5)
    with pytest.raises(PlanError, match=r"Unknown normalization 'wide'\. Valid: 'frozen', 'narrowed'"):
        tfprune.plan_channels(model, 0.5, normalization="wide")


def test_a_group_normalization_loses_whole_groups():
    def body(x):
        x = layers.GroupNormalization(4, name="norm")(layers.Conv2D(16, 3, name="wide")(x))
        return layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.ReLU()(x)))

    model = network(body, (8, 8, 3))
    plan = tfprune.plan_channels(model, 0.5, normalization="narrowed")
    kept = np.asarray(plan.keep["wide"])
    assert len(kept) == 8
    assert all(np.isin(np.arange(4 * group, 4 * group + 4), kept).all() for group in set((kept // 4).tolist()))
    assert plan.apply(model).get_layer("norm").groups == 2
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


class Rms(layers.Layer):
    """An RMS normalization written by hand."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-6) * self.scale


def transformer(x):
    """Pre-normalized, as most are."""
    x = layers.Dense(16, name="stem")(x)
    for number in range(2):
        y = layers.LayerNormalization(name=f"norm_{number}")(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, 4, name=f"attention_{number}")(y, y)])
        y = layers.Dense(32, activation="gelu", name=f"wide_{number}")(Rms(name=f"rms_{number}")(x))
        x = layers.Add()([x, layers.Dense(16, name=f"narrow_{number}")(y)])
    return layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.LayerNormalization(name="last")(x)))


def test_the_width_of_a_transformer_goes_where_normalizations_are_narrowed():
    model = network(transformer, (6, 5))
    frozen, narrowed = (tfprune.plan_channels(model, 0.5, normalization=how) for how in ("frozen", "narrowed"))
    assert len(frozen.keep["stem"]) == 16
    assert len(narrowed.keep["stem"]) == len(narrowed.keep["narrow_1"]) == 8
    assert narrowed.params[1] < 0.6 * frozen.params[1]
    for plan in (frozen, narrowed):
        proof = tfprune.verify(model, plan, power=True, random_weights=True)
        assert proof <= 1e-5
        assert proof.unnoticed == ()
    small = narrowed.apply(model)
    assert small.get_layer("attention_0").num_heads == 2
    small.compile("sgd", "mse")
    small.fit(np.ones((8, 6, 5)), np.zeros((8, 3)), verbose=0)


# Sizes that are left open.


def test_a_network_of_open_size_is_proved_on_a_size_that_it_takes():
    class Positions(layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(12, shape[-1]), name="table")

        def call(self, x):
            return x + self.table[: x.shape[1]]

        def compute_output_shape(self, shape):
            return shape

    inputs = keras.Input((None,), dtype="int32")
    x = Positions()(layers.Embedding(20, 8, name="words")(inputs))
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(layers.Dense(8)(x)))))
    assert inputs_that_work(model, 3)[0].shape == (3, 8)  # of 32, 16 and 8
    assert tfprune.verify(model, tfprune.plan_channels(model, 0.5)) <= 1e-5


def test_a_network_that_takes_no_size_that_is_tried_asks_for_inputs():
    inputs = keras.Input((None, 4))
    x = layers.Dense(2)(layers.Flatten()(layers.Reshape((7, 5))(layers.Dense(5, name="wide")(inputs))))
    model = keras.Model(inputs, x)
    with pytest.raises(PlanError, match=r"leaves sizes of its inputs open, and takes none of 32, 16.* Give inputs= of"):
        inputs_that_work(model, 2)
    assert inputs_that_work(keras.Model(inputs, layers.Dense(5)(inputs)), 2)[0].shape == (2, 32, 4)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (np.zeros((4, 7), "float32"), r"takes inputs of \(None, 6\); received \(4, 7\)"),
        ([np.zeros((4, 6)), np.zeros((4, 6))], r"takes inputs of \(None, 6\); received \(4, 6\), \(4, 6\)"),
        (np.full((4, 6), np.nan), "hold values that are no finite numbers"),
        ("abc", "does not take these inputs"),
    ],
)
def test_inputs_that_do_not_fit_are_told(inputs, told):
    given = keras.Input((6,))
    model = keras.Model(given, layers.Dense(2)(layers.Dense(8)(given)))
    plan = tfprune.plan_channels(model, 0.5)
    with pytest.raises(PlanError, match=told):
        tfprune.verify(model, plan, inputs=inputs)


@pytest.mark.parametrize("random_weights", [True, False])
def test_rounding_that_a_network_makes_larger_is_no_difference(random_weights):
    def body(x):
        x = layers.Dense(600, activation="relu")(layers.Dense(600, activation="relu")(x))
        return ops.sin(layers.Dense(3)(x) * 1e3)

    model = randomize(network(body, (16,)))
    plan = tfprune.plan_channels(model, 0.5)
    graph = plan.graph(model)
    inputs = np.random.default_rng(0).normal(size=(4, 16)).astype("float32")
    (masked,) = masked_outputs(graph, plan.kept(graph), [inputs])
    small = predict(plan.apply(model), inputs)[0]
    assert np.abs(np.asarray(masked) - small).max() > 1e-5  # in float32 it would have failed
    assert tfprune.verify(model, plan, random_weights=random_weights) < 1e-7


def test_a_network_that_is_wrong_is_wrong_in_float64_too():
    model = plain_cnn()
    plan = tfprune.plan_channels(model, 0.5)
    known = dispatch._BY_NAME["ReLU"]
    dispatch._BY_NAME["ReLU"] = dispatch._Known(lambda call: call.inputs[0][..., ::-1], known.flops)
    try:
        with pytest.raises((VerificationError, PlanError)):
            tfprune.verify(model, tfprune.ChannelPlan.from_removed(model, {"conv_a": [0]}))
    finally:
        dispatch._BY_NAME["ReLU"] = known
    assert tfprune.verify(model, plan) <= 1e-5


def test_a_mask_is_drawn_as_one():
    tokens, mask = (
        keras.Input((6,), dtype="int32", name="tokens"),
        keras.Input((6,), dtype="int32", name="padding_mask"),
    )
    x = layers.Embedding(9, 8)(tokens)
    scores = ops.einsum("bqd,bsd->bqs", layers.Dense(8, name="query")(x), layers.Dense(8, name="key")(x))
    scores = scores + (1 - ops.cast(mask[:, None, :], "float32")) * -1e9
    x = layers.Dense(5, name="last")(ops.einsum("bqs,bsd->bqd", ops.softmax(scores), x))
    model = randomize(keras.Model([tokens, mask], x))
    assert set(np.unique(random_inputs(model, 8)[1])) == {0, 1}
    # With any other numbers the scores drown in the mask, and nobody notices a wrong query.
    assert tfprune.verify(model, tfprune.plan_channels(model, 0.5), power=True).unnoticed == ()


class Both(layers.Layer):
    """Has two kernels, and uses one."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units

    def build(self, shape):
        self.used = self.add_weight(shape=(shape[-1], self.units), name="used")
        self.unused = self.add_weight(shape=(3, self.units), name="unused")

    def call(self, x):
        return x @ self.used

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_weights_that_no_output_depends_on_are_not_rolled():
    model = network(lambda x: layers.Dense(3)(Both(4, name="both")(layers.Dense(6)(x))), (5,))
    proof = tfprune.verify(model, tfprune.plan_channels(model, 0.5), power=True)
    assert (proof.tried, proof.unnoticed) == (3, ())


def test_kernels_of_the_same_path_are_rolled_one_by_one():
    def body(x):
        x = keras.Sequential([layers.Dense(8, name="same")], name="one")(x)
        return layers.Dense(3, name="last")(Twin(name="twin")(x))

    model = network(body, (5,))
    proof = tfprune.verify(model, tfprune.plan_channels(model, 0.5), power=True)
    assert proof.tried == 4


class Twin(layers.Layer):
    """Its layers have one name, and so their kernels one path."""

    def __init__(self, **options):
        super().__init__(**options)
        self.one, self.two = layers.Dense(6, name="dense"), layers.Dense(6, name="dense")

    def build(self, shape):
        self.one.build(shape)
        self.two.build((*shape[:-1], 6))

    def call(self, x):
        return self.two(ops.relu(self.one(x)))


def test_kernels_behind_a_gate_that_is_closed_get_other_random_weights(monkeypatch):
    def gated(inputs):
        hidden = layers.Dense(8, activation="relu")(inputs)
        gate = layers.Dense(1, activation="hard_sigmoid")(layers.Rescaling(30.0)(inputs))
        return layers.Add()([layers.Dense(5)(hidden), layers.Dense(5, name="branch")(hidden) * gate])

    model = network(gated, (6,))
    plan = tfprune.plan_channels(model, 0.5)

    def unnoticed(seed):
        return tfprune.verify(model, plan, seed=seed, power=True, random_weights=True).unnoticed

    with monkeypatch.context() as alone:
        alone.setattr(proof_module, "_MORE", 0)
        closed = [seed for seed in range(20) if unnoticed(seed) == ("branch",)]
    assert closed
    assert [unnoticed(seed) for seed in closed] == [()] * len(closed)


class OutOfSight(layers.Layer):
    """Computes in numpy, where no slope comes through."""

    def call(self, x):
        return keras.ops.convert_to_tensor(np.tanh(keras.ops.convert_to_numpy(x)))

    def compute_output_shape(self, shape):
        return shape


def test_kernels_in_front_of_what_no_slope_passes_are_tried_as_well():
    model = network(lambda x: layers.Dense(3)(OutOfSight()(layers.Dense(5)(layers.Dense(8)(x)))), (6,))
    proof = tfprune.verify(model, tfprune.plan_channels(model, 0.5), power=True)
    assert (proof.tried, proof.unnoticed) == (3, ())
