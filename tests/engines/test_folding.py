import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers import predict, randomize, relative_error, since, weights_by_path
from tfprune.engines.saved_models.folding import folded_twin, plain_twin
from tfprune.engines.saved_models.saved_model import SavedModelEngine
from tfprune.engines.saved_models.served_layers import Affine, Served
from tfprune.graph.inputs import random_inputs
from tfprune.surgery.layers import FusedBatchNormalization


@pytest.fixture
def exactly():
    """Everything in float64, so that nothing but rounding of 1e-16 may differ."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(before)


def made(body, *shapes, dtype=None):
    inputs = [keras.Input(shape, dtype=dtype or keras.config.dtype_policy().compute_dtype) for shape in shapes]
    return randomize(keras.Model(inputs if len(inputs) > 1 else inputs[0], body(*inputs)))


def left(twin):
    """The batch normalizations that are not folded."""
    return [layer.name for layer in twin.layers if isinstance(layer, (Affine, layers.BatchNormalization))]


def served(twin):
    return [layer.name for layer in twin.layers if isinstance(layer, Served)]


def check(model, not_folded=(), tolerance=1e-12):
    """The twin computes the same, has these normalizations left, and the model is as it was."""
    inputs = random_inputs(model, 3, seed=1)
    expected, before = predict(model, *inputs), weights_by_path(model)
    twin = folded_twin(model)
    assert relative_error(expected, predict(twin, *inputs)) <= tolerance
    assert left(twin) == list(not_folded)
    assert all(np.array_equal(value, before[path]) for path, value in weights_by_path(model).items())
    return twin


def bn(**config):
    return layers.BatchNormalization(name="bn", **config)


BEFORE = {
    "conv1d": (lambda: layers.Conv1D(5, 3, padding="same", strides=2), (9, 3)),
    "conv1d causal": (lambda: layers.Conv1D(5, 3, padding="causal", dilation_rate=2), (9, 3)),
    "conv2d": (lambda: layers.Conv2D(5, 3, padding="same"), (8, 8, 3)),
    "conv2d without bias": (lambda: layers.Conv2D(5, 3, use_bias=False), (8, 8, 3)),
    "conv2d groups": (lambda: layers.Conv2D(6, 3, groups=3), (8, 8, 9)),
    "conv3d": (lambda: layers.Conv3D(5, 2), (5, 5, 5, 3)),
    "depthwise 1d": (lambda: layers.DepthwiseConv1D(3, depth_multiplier=2), (9, 3)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, strides=2, padding="same"), (8, 8, 3)),
    "depthwise multiplier": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False), (8, 8, 3)),
    "separable 1d": (lambda: layers.SeparableConv1D(5, 3, depth_multiplier=2), (9, 3)),
    "separable": (lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2, padding="same"), (8, 8, 3)),
    "transposed 1d": (lambda: layers.Conv1DTranspose(5, 3, strides=2), (9, 3)),
    "transposed": (lambda: layers.Conv2DTranspose(5, 3, strides=2, padding="same"), (6, 6, 3)),
    "transposed 3d": (lambda: layers.Conv3DTranspose(5, 2, use_bias=False), (4, 4, 4, 3)),
    "dense": (lambda: layers.Dense(5), (3,)),
    "dense of steps": (lambda: layers.Dense(5, use_bias=False), (4, 3)),
    "einsum": (lambda: layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d"), (4, 3)),
    "einsum without bias": (lambda: layers.EinsumDense("abc,cde->abde", (4, 2, 5)), (4, 3)),
    "einsum of every step": (lambda: layers.EinsumDense("abc,bcd->abd", (4, 5), bias_axes="bd"), (4, 3)),
    "einsum ellipsis": (lambda: layers.EinsumDense("...c,cd->...d", (5,), bias_axes="d"), (4, 3)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BEFORE)
def test_it_is_folded_into_the_layer_before(kind, exactly):
    make, shape = BEFORE[kind]
    check(made(lambda x: layers.ReLU()(bn()(make()(x))), shape))


@pytest.mark.parametrize("axis", [1, 2, 3, -1, -2, -3])
def test_every_output_axis_of_a_dense_einsum_can_be_normalized(axis, exactly):
    dense = layers.EinsumDense("abc,cde->abde", (4, 2, 5), bias_axes="d")
    check(made(lambda x: bn(axis=axis)(dense(x)), (4, 3)), ["bn"] if axis in (1, -3) else [])


@pytest.mark.parametrize("config", [{"scale": False}, {"center": False}, {"scale": False, "center": False}])
def test_scale_and_center_may_be_missing(config, exactly):
    check(made(lambda x: bn(**config)(layers.Conv2D(5, 3)(x)), (8, 8, 3)))
    check(made(lambda x: bn(**config)(x), (8, 8, 3)), ["bn"])
    check(made(lambda x: bn(**config)(x), (7,)), ["bn"])


@since("3.15")
def test_renormalization_is_as_any_other_at_inference(exactly):
    check(made(lambda x: bn(renorm=True)(layers.Conv2D(5, 3)(x)), (8, 8, 3)))


AFTER = {
    "conv1d": (lambda: layers.Conv1D(5, 3, strides=2, activation="relu"), (9, 6)),
    "conv2d": (lambda: layers.Conv2D(5, 3), (8, 8, 6)),
    "conv2d without bias": (lambda: layers.Conv2D(5, 3, dilation_rate=2, use_bias=False), (8, 8, 6)),
    "conv2d groups": (lambda: layers.Conv2D(9, 3, groups=3), (8, 8, 6)),
    "conv3d": (lambda: layers.Conv3D(5, 2), (5, 5, 5, 6)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3), (8, 8, 6)),
    "depthwise multiplier": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 6)),
    "separable": (lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2), (8, 8, 6)),
    "dense": (lambda: layers.Dense(5, activation="softmax"), (6,)),
    "dense of steps": (lambda: layers.Dense(5, use_bias=False), (4, 6)),
}


@pytest.mark.parametrize("kind", AFTER)
def test_it_is_folded_into_the_layer_after_which_pads_nothing(kind, exactly):
    make, shape = AFTER[kind]
    twin = check(made(lambda x: make()(layers.Dropout(0.5)(bn()(layers.ReLU()(x)))), shape))
    assert len(served(twin)) == 1


@pytest.mark.parametrize("layer", [
    lambda: layers.Conv2D(5, 3, padding="same"), lambda: layers.Conv2DTranspose(5, 3),
    lambda: layers.DepthwiseConv2D(3, padding="same"), lambda: layers.EinsumDense("abcd,de->abce", (8, 8, 5)),
])  # fmt: skip
def test_a_layer_after_it_that_pads_takes_nothing(layer, exactly):
    check(made(lambda x: layer()(bn()(x)), (8, 8, 6)), ["bn"])


def test_both_sides_of_one_layer_and_two_in_a_row(exactly):
    def body(x):
        x = layers.Conv2D(5, 3, name="conv")(layers.BatchNormalization()(x))
        return layers.ReLU()(layers.BatchNormalization()(layers.Dropout(0.1)(layers.BatchNormalization()(x))))

    assert served(check(made(body, (8, 8, 6)))) == ["conv"]


@pytest.mark.parametrize("passing", [
    lambda: layers.Dropout(0.3), lambda: layers.SpatialDropout2D(0.3), lambda: layers.GaussianNoise(0.3),
    lambda: layers.Identity(), lambda: layers.Activation("linear"), lambda: layers.ActivityRegularization(0.1),
])  # fmt: skip
def test_what_does_nothing_at_inference_may_lie_between(passing, exactly):
    check(made(lambda x: bn()(passing()(layers.Conv2D(5, 3)(x))), (8, 8, 3)))


def after_a_convolution(between):
    return lambda x: bn()(between(layers.Conv2D(6, 3, name="conv")(x)))


NEVER = {
    "activation": lambda x: bn()(layers.Conv2D(5, 3, activation="relu")(x)),
    "activation layer": after_a_convolution(layers.ReLU()),
    "padding": after_a_convolution(layers.ZeroPadding2D()),
    "reshape": after_a_convolution(layers.Reshape((6, 36))),
    "maximum": after_a_convolution(layers.MaxPooling2D()),
    "another axis": lambda x: bn(axis=1)(layers.Conv2D(5, 3)(x)),
    "training": lambda x: bn()(layers.Conv2D(5, 3)(x), training=True),
    "own class": lambda x: bn()(Own(5, 3)(x)),
}


@pytest.mark.parametrize("what", NEVER)
def test_what_cannot_be_folded_stays(what, exactly):
    check(made(NEVER[what], (8, 8, 3)), ["bn"])


class Own(layers.Conv2D):
    def call(self, inputs):
        return keras.ops.relu(super().call(inputs))


def test_an_output_that_is_read_twice_or_given_is_not_changed(exactly):
    def read_twice(x):
        x = layers.Conv2D(5, 3)(x)
        return layers.Add()([x, bn()(x)])

    def given(x):
        x = layers.Conv2D(5, 3)(x)
        return [x, bn()(x)]

    def given_normalized(x):
        y = bn()(x)
        return [y, layers.Conv2D(5, 3)(y)]

    for body in (read_twice, given, given_normalized):
        check(made(body, (8, 8, 3)), ["bn"])


def test_an_addition_or_concatenation_before_it(exactly):
    def body(x):
        a, b = layers.Conv2D(5, 3)(x), layers.Conv2D(5, 3)(x)
        a, b = layers.BatchNormalization(name="added")(layers.Add()([a, b])), layers.Concatenate()([a, b])
        return layers.Concatenate()([a, layers.ReLU()(layers.BatchNormalization(name="joined")(b))])

    check(made(body, (8, 8, 3)), ["joined", "added"])


def test_shared_layers(exactly):
    def same_pairs(a, b):
        conv, norm = layers.Conv2D(5, 3, name="conv"), bn()
        return layers.Subtract()([norm(conv(a)), norm(conv(b))])

    def two_norms(a, b):
        conv = layers.Conv2D(5, 3)
        return layers.Subtract()([layers.BatchNormalization(name="one")(conv(a)), layers.ReLU()(conv(b))])

    def one_norm(a, b):
        norm = bn()
        return layers.Subtract()([norm(layers.Conv2D(5, 3)(a)), norm(layers.Conv2D(5, 3)(b))])

    def same_pairs_after(a, b):
        conv, norm = layers.Conv2D(5, 3, name="conv"), bn()
        return layers.Subtract()([conv(norm(a)), conv(norm(b))])

    shapes = (8, 8, 3), (8, 8, 3)
    assert served(check(made(same_pairs, *shapes))) == ["conv"]
    assert served(check(made(same_pairs_after, *shapes))) == ["conv"]
    check(made(two_norms, *shapes), ["one"])
    check(made(one_norm, *shapes), ["bn"])


def test_one_normalization_after_two_convolutions_and_one_of_them_alone(exactly):
    def body(x):
        norm = bn()
        return norm(layers.Conv2D(3, 3)(norm(layers.Conv2D(3, 3)(x))))

    check(made(body, (8, 8, 3)), ["bn"])


def test_nested_networks_and_sequential_ones(exactly):
    image = keras.Input((8, 8, 3), dtype="float64")
    inner = keras.Sequential([image, layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()])
    check(inner)
    model = made(lambda x: layers.BatchNormalization()(layers.Conv2D(5, 3)(inner(x))), (8, 8, 3))
    check(model)
    frozen = made(lambda x: inner(x, training=True), (8, 8, 3))
    assert len(left(folded_twin(frozen))) == 1


def test_masked_steps_stay_masked(exactly):
    def body(x):
        return layers.LSTM(3)(layers.BatchNormalization(name="bn")(layers.Dense(5)(layers.Masking()(x))))

    model = made(body, (6, 4))
    inputs = random_inputs(model, 3)[0]
    inputs[:, 4:] = 0
    twin = folded_twin(model)
    assert relative_error(predict(model, inputs), predict(twin, inputs)) <= 1e-12
    assert left(twin) == ["bn"]


@pytest.mark.parametrize("kind", [layers.Conv2D, layers.DepthwiseConv2D, layers.Conv2DTranspose])
@pytest.mark.parametrize("side", ["before", "after"])
def test_channels_may_be_first(kind, side, exactly):
    """On processors, TensorFlow runs only some of these: the weights are those of the same network, channels last."""
    twins = []
    for data_format, axis, shape in (("channels_first", 1, (3, 8, 8)), ("channels_last", -1, (8, 8, 3))):
        settings = {"kernel_size": 3, "data_format": data_format, "name": "layer"}
        settings |= {} if kind is layers.DepthwiseConv2D else {"filters": 5}
        order = (kind(**settings), bn(axis=axis))
        twins.append(folded_twin(made(keras.Sequential(order if side == "before" else order[::-1]), shape)))
    padded = side == "after" and kind is layers.Conv2DTranspose
    assert left(twins[0]) == left(twins[1]) == (["bn"] if padded else [])
    for one, other in zip(*(twin.get_layer("layer").weights for twin in twins), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_channels_may_be_first_where_they_are_computed(exactly):
    for padding, side in (("same", "before"), ("valid", "after")):
        conv = layers.DepthwiseConv2D(3, padding=padding, data_format="channels_first")
        order = [conv, bn(axis=1)]
        check(made(keras.Sequential(order if side == "before" else order[::-1]), (3, 8, 8)))


def test_an_activation_with_weights_is_kept(exactly):
    check(made(lambda x: layers.Dense(5, activation=layers.PReLU())(bn()(x)), (4,)))


def test_scales_that_are_no_finite_numbers_are_left_to_tensorflow():
    model = made(lambda x: bn(epsilon=1e-12)(layers.Conv2D(5, 3)(x)), (8, 8, 3))
    model.get_layer("bn").moving_variance.assign(np.full(5, -1.0))
    assert left(folded_twin(model)) == ["bn"]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_16_bits_stay_as_they_are(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = made(lambda x: layers.ReLU()(bn()(layers.Conv2D(5, 3)(x))), (8, 8, 3), dtype="float32")
        twin = folded_twin(model)
    finally:
        keras.config.set_dtype_policy(before)
    inputs = random_inputs(model, 2)
    plain = plain_twin(model)
    for one, other in zip(predict(plain, *inputs), predict(twin, *inputs), strict=True):
        np.testing.assert_array_equal(one.astype("float32"), other.astype("float32"))
    assert type(twin.get_layer("bn")) is FusedBatchNormalization


def test_int8_and_lora_weights_are_left_alone():
    for change in (lambda layer: layer.quantize("int8"), lambda layer: layer.enable_lora(2)):
        model = made(lambda x: layers.Dense(4, name="dense")(bn()(layers.ReLU()(x))), (8,), dtype="float32")
        change(model.get_layer("dense"))
        inputs = random_inputs(model, 3)
        try:
            twin = folded_twin(model)
        except Exception as error:
            pytest.skip(f"cannot be cloned: {error}")
        assert relative_error(predict(model, *inputs), predict(twin, *inputs)) <= 1e-6
        assert left(twin) == ["bn"]


def functions_of(folder):
    """How many nodes of each kind the functions of a SavedModel have."""
    graph = tf.saved_model.load(str(folder)).signatures["serving_default"].graph.as_graph_def()
    kinds = [node.op for function in graph.library.function for node in function.node_def]
    return {kind: kinds.count(kind) for kind in kinds}


def test_what_is_served_has_biases_that_tensorflow_fuses_and_no_normalization(tmp_path):
    def body(x):
        y = layers.BatchNormalization()(layers.Conv2D(5, 3, padding="same", use_bias=False)(x))
        y = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(layers.ReLU()(y)))
        return layers.BatchNormalization()(layers.Add()([layers.Conv2D(5, 1)(x), y]))

    model = made(body, (8, 8, 3), dtype="float32")
    for fold in (True, False):
        SavedModelEngine(fold).write(model, tmp_path / str(fold))
    found = functions_of(tmp_path / "True")
    assert (found["BiasAdd"], found["DepthwiseConv2dNative"]) == (4, 2)
    assert {"FusedBatchNormV3", "Rsqrt", "AddN"}.isdisjoint(found)
    assert functions_of(tmp_path / "False")["FusedBatchNormV3"] == 3
    variables = tf.saved_model.load(str(tmp_path / "True")).weights
    assert sum(variable.shape.num_elements() for variable in variables) == 3 * 9 * 5 + 5 + 9 * 5 + 5 + 15 + 5 + 5 + 5


APPLICATIONS = [
    "ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2", "InceptionV3",
    "MobileNet", "MobileNetV2", "MobileNetV3Large", "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2",
    "VGG16", "Xception",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_networks_of_keras_serve_the_same(name, tmp_path):
    kind = getattr(keras.applications, name)
    model = kind(weights=None, input_shape=(96, 96, 3), include_top=False, pooling="avg")
    randomize_statistics(model)
    inputs = random_inputs(model, 2)
    engine = SavedModelEngine()
    engine.write(model, tmp_path / "out")
    assert relative_error(predict(model, *inputs), engine.load(tmp_path / "out", model)(inputs)) <= 1e-5


def randomize_statistics(model):
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape
            layer.moving_mean.assign(generator.normal(0, 0.1, size))
            layer.moving_variance.assign(generator.uniform(0.5, 2, size))
            layer.beta.assign(generator.normal(0, 0.1, size))
