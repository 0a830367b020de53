import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfprune import profile
from tfprune.models import build_model

VGG_WIDTHS = {
    "vgg11": [64, 128, 256, 256, 512, 512, 512, 512],
    "vgg16": [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6,
    "vgg19": [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8,
}


def make(name, classes=10, width=1.0, size=32):
    return build_model(name, (size, size, 3), classes, width)


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def convolutions(model):
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def vgg_params(widths, classes, head=None):
    sizes = [3, *widths]
    convs = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(sizes))
    if head is None:
        return convs + widths[-1] * classes + classes
    return convs + widths[-1] * head + head + 2 * head + head * classes + classes


def resnet_params(depth, widths, classes):
    blocks = (depth - 2) // 6
    total = 9 * 3 * widths[0] + 2 * widths[0]
    entering = widths[0]
    for width in widths:
        total += 9 * entering * width + 9 * width * width * (2 * blocks - 1) + 4 * width * blocks
        entering = width
    return total + widths[-1] * classes + classes


@pytest.mark.parametrize(
    ("name", "classes", "params"),
    [
        ("vgg16", 10, 14_724_042),
        ("vgg19", 10, 20_035_018),
        ("vgg16_l1", 10, 14_987_722),
        ("resnet56", 10, 853_018),
        ("resnet110", 10, 1_727_962),
    ],
)
def test_parameter_counts_of_the_paper(name, classes, params):
    model = make(name, classes)
    assert trainable(model) == params
    assert profile(model).params == params


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("vgg11", 10, vgg_params(VGG_WIDTHS["vgg11"], 10)),
        ("vgg11_l1", 7, vgg_params(VGG_WIDTHS["vgg11"], 7, head=512)),
        ("vgg19_l1", 10, vgg_params(VGG_WIDTHS["vgg19"], 10, head=512)),
        ("vgg16", 100, vgg_params(VGG_WIDTHS["vgg16"], 100)),
        ("resnet20", 10, resnet_params(20, (16, 32, 64), 10)),
        ("resnet32", 100, resnet_params(32, (16, 32, 64), 100)),
    ],
)
def test_parameter_counts_by_formula(name, classes, expected):
    assert trainable(make(name, classes)) == expected


def test_width_multiplies_every_layer_and_leaves_at_least_one_channel():
    assert [conv.filters for conv in convolutions(make("vgg16", width=0.25))] == [
        int(width * 0.25) for width in VGG_WIDTHS["vgg16"]
    ]
    narrow = make("vgg16_l1", width=0.25)
    assert narrow.get_layer("fc_1").units == 128
    assert trainable(narrow) == vgg_params([w // 4 for w in VGG_WIDTHS["vgg16"]], 10, head=128)
    assert trainable(make("resnet20", width=0.5)) == resnet_params(20, (8, 16, 32), 10)
    assert trainable(make("resnet20", width=2)) == resnet_params(20, (32, 64, 128), 10)
    assert {conv.filters for conv in convolutions(make("resnet20", width=0.01))} == {1}
    assert make("resnet20", width=0.01).output_shape == (None, 10)


def test_vgg_layers_are_in_the_order_of_the_paper():
    model = make("vgg16")
    kinds = [type(layer).__name__ for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    expected = []
    for stage, count in enumerate((2, 2, 3, 3, 3)):
        expected += ["MaxPooling2D"] * (stage > 0) + ["Conv2D", "BatchNormalization", "ReLU"] * count
    assert kinds == [*expected, "AveragePooling2D", "Flatten", "Dense"]
    assert [conv.name for conv in convolutions(model)] == [f"conv_{n}" for n in range(1, 14)]
    assert model.get_layer("average_pool").output.shape == (None, 1, 1, 512)
    assert not any(conv.use_bias for conv in convolutions(model))


def test_resnet_halves_the_map_at_the_first_block_of_stages_two_and_three():
    model = make("resnet20")
    sizes = {conv.name: (conv.output.shape[1], conv.filters) for conv in convolutions(model)}
    assert sizes == {f"conv_{n}": (32, 16) if n < 8 else (16, 32) if n < 14 else (8, 64) for n in range(1, 20)}
    assert [conv.name for conv in convolutions(model) if conv.strides == (2, 2)] == ["conv_8", "conv_14"]


def test_strided_convolution_is_padded_as_pytorch_pads_it():
    model = make("resnet20", width=0.125)
    kernel = np.random.default_rng(0).standard_normal(model.get_layer("conv_8").kernel.shape).astype("float32")
    model.get_layer("conv_8").kernel.assign(kernel)
    part = keras.Model(model.get_layer("relu_7").output, model.get_layer("conv_8").output)
    x = np.random.default_rng(1).standard_normal((1, 32, 32, 2)).astype("float32")
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    received = keras.ops.convert_to_numpy(part(x))
    for row, column in ((0, 0), (0, 15), (7, 3), (15, 15)):
        patch = padded[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        assert np.allclose(received[0, row, column], np.einsum("hwc,hwco->o", patch, kernel), atol=1e-5)


@pytest.mark.parametrize(("name", "gamma"), [("vgg16_l1", 0.5), ("vgg19", 0.5), ("resnet56", 1.0)])
def test_initialisation_of_the_paper(name, gamma):
    keras.utils.set_random_seed(3)
    model = make(name)
    for conv in convolutions(model):
        values = conv.kernel.numpy()
        expected = math.sqrt(2 / (9 * conv.filters))  # He by fan-out: 3 * 3 * filters
        # Five standard errors of a standard deviation of so many samples.
        assert values.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * values.size)), conv.name
        assert abs(values.mean()) < 5 * expected / math.sqrt(values.size)
    wide = max(convolutions(model), key=lambda conv: conv.kernel.numpy().size).kernel.numpy()
    assert np.abs(wide).max() > 3 * wide.std()  # not truncated at two standard deviations
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # The 1-D batch normalization of the head keeps the default of one.
            assert (layer.gamma.numpy() == (1.0 if layer.name == "bn_fc_1" else gamma)).all()
            assert not layer.beta.numpy().any()
            assert (layer.epsilon, layer.momentum) == (1e-5, 0.9)
    assert not model.get_layer("logits").bias.numpy().any()


def test_classifiers_start_as_in_the_paper():
    keras.utils.set_random_seed(4)
    for layer in (make("vgg16_l1").get_layer("fc_1"), make("vgg16", 100).get_layer("logits")):
        values = layer.kernel.numpy()
        assert values.std() == pytest.approx(0.01, rel=5 / math.sqrt(2 * values.size))
    values = make("resnet20", 100).get_layer("logits").kernel.numpy()
    assert np.abs(values).max() <= 1 / math.sqrt(64)  # PyTorch's default: uniform in +-1/sqrt(fan-in)
    assert values.std() == pytest.approx(1 / math.sqrt(64) / math.sqrt(3), rel=0.05)


def test_option_a_shortcut_pools_and_pads_zeros_on_both_sides():
    model = make("resnet20", width=0.25)
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 4)).astype("float32")
    shortcut = keras.Model(model.get_layer("relu_7").output, model.get_layer("add_9").input[1])
    received = keras.ops.convert_to_numpy(shortcut(x))
    pooled = x.reshape(2, 16, 2, 16, 2, 4).mean((2, 4))
    assert received.shape == (2, 16, 16, 8)
    assert np.allclose(received[..., 2:6], pooled, atol=1e-6)
    assert not received[..., :2].any()
    assert not received[..., 6:].any()


@pytest.mark.parametrize(("before", "add", "bn"), [("relu_7", "add_9", "bn_9"), ("relu_13", "add_15", "bn_15")])
def test_option_a_shortcut_has_a_gradient(before, add, bn):
    model = make("resnet20", width=0.25)
    model.get_layer(bn).gamma.assign(keras.ops.zeros_like(model.get_layer(bn).gamma))  # the branch says nothing
    part = keras.Model(model.get_layer(before).output, model.get_layer(add).output)
    x = tf.constant(np.random.default_rng(0).standard_normal((1, *part.input_shape[1:])).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(part(x, training=False))
    gradient = tape.gradient(total, x).numpy()
    # Each value enters one average of four, and that one output: the derivative of the sum is 1/4.
    assert np.allclose(gradient, 0.25)
    step = np.zeros(x.shape, "float32")
    step[0, 3, 5, 1] = 1.0
    numeric = float(tf.reduce_sum(part(x + step, training=False) - part(x, training=False)))
    assert numeric == pytest.approx(0.25, abs=1e-4)


def test_any_number_of_resnets_can_be_built_in_one_process():
    keras.backend.clear_session()  # Keras numbers unnamed operations; "pad_8" once met the layer of that name
    for _ in range(9):
        make("resnet20", width=0.125)


def test_resnet_without_missing_channels_has_no_padding():
    model = make("resnet20", width=0.01)
    assert not [operation for operation in model.operations if type(operation).__name__ == "Pad"]


def test_networks_take_other_image_sizes():
    assert make("vgg11", 4, 0.1, size=64).output_shape == (None, 4)
    grey = build_model("resnet20", (28, 28, 1), 4, 0.5)
    assert grey.output_shape == (None, 4)
    assert grey.get_layer("conv_1").kernel.shape == (3, 3, 1, 8)
