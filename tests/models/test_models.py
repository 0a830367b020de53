import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfprune
from tests.helpers import convolutions, normalizations, randomize, trainable
from tfprune.models import MODELS, build_model

VGG_WIDTHS = {
    "vgg11": [64, 128, 256, 256, 512, 512, 512, 512],
    "vgg16": [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6,
    "vgg19": [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8,
}


def make(name, classes=10, width=1.0, size=32):
    return build_model(name, (size, size, 3), classes, width)


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
    assert tfprune.profile(model).params == params


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("vgg11", 10, vgg_params(VGG_WIDTHS["vgg11"], 10)),
        ("vgg11_l1", 7, vgg_params(VGG_WIDTHS["vgg11"], 7, head=512)),
        ("vgg19_l1", 10, vgg_params(VGG_WIDTHS["vgg19"], 10, head=512)),
        ("vgg16", 100, vgg_params(VGG_WIDTHS["vgg16"], 100)),
        ("resnet20", 10, resnet_params(20, (16, 32, 64), 10)),
        ("resnet32", 100, resnet_params(32, (16, 32, 64), 100)),
        # A bias for each of the 4,224 (5,504) channels more than the network of Network Slimming.
        ("vgg16_unstructured", 10, 14_724_042 + 4_224),
        ("vgg19_unstructured", 100, 20_035_018 + 90 * 513 + 5_504),
        # Two 1x1 convolutions, 16 to 32 and 32 to 64, and their batch normalizations.
        ("resnet50_cifar", 10, resnet_params(50, (16, 32, 64), 10) + 16 * 32 + 32 * 64 + 2 * (32 + 64)),
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


STARTS = [
    # name, width, gamma, whether the variance of kernels is 2 / fan-in instead of 2 / fan-out
    ("vgg16_l1", 1.0, 0.5, False),
    ("vgg19", 1.0, 0.5, False),
    ("vgg16_unstructured", 1.0, 1.0, True),
    ("resnet56", 1.0, 1.0, False),
    ("resnet50_cifar", 1.0, 1.0, False),
    ("preresnet56", 1.0, 0.5, False),
    ("preresnet110", 1.0, 1.0, False),
    ("densenet40", 1.0, 0.5, False),
    ("densenet_bc100", 1.0, 1.0, False),
    ("imagenet_vgg11_bn", 0.25, 0.5, False),
    ("imagenet_vgg16", 0.25, None, False),
    ("imagenet_vgg16_bn", 0.25, 1.0, False),
    ("imagenet_resnet34", 0.5, 1.0, False),
    ("imagenet_resnet50", 0.5, 1.0, False),
    ("imagenet_resnext50", 0.5, 1.0, False),
]


@pytest.mark.parametrize(("name", "width", "gamma", "fan_in"), STARTS)
def test_initialisation_of_the_paper(name, width, gamma, fan_in):
    keras.utils.set_random_seed(3)
    model = make(name, width=width)
    for conv in convolutions(model):
        values = conv.kernel.numpy()
        height, breadth, entering, filters = values.shape
        expected = math.sqrt(2 / (height * breadth * (entering if fan_in else filters)))  # He
        # Five standard errors of a standard deviation of so many samples.
        assert values.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * values.size)), conv.name
        assert abs(values.mean()) < 5 * expected / math.sqrt(values.size)
        assert conv.bias is None or not conv.bias.numpy().any()
    wide = max(convolutions(model), key=lambda conv: conv.kernel.numpy().size).kernel.numpy()
    assert np.abs(wide).max() > 3 * wide.std()  # not truncated at two standard deviations
    assert (not normalizations(model)) == (gamma is None)
    for layer in normalizations(model):
        # The 1-D batch normalization of the L1-norm study's head keeps the default of one.
        assert (layer.gamma.numpy() == (1.0 if name == "vgg16_l1" and layer.name == "bn_fc_1" else gamma)).all()
        assert not layer.beta.numpy().any()
        assert (layer.epsilon, layer.momentum) == (1e-5, 0.9)
    assert not model.get_layer("logits").bias.numpy().any()


def test_classifiers_start_as_in_the_paper():
    keras.utils.set_random_seed(4)
    vgg11 = make("imagenet_vgg11_bn", 100, 0.25)
    for layer in (
        make("vgg16_l1").get_layer("fc_1"),
        make("vgg16", 100).get_layer("logits"),
        make("vgg16_unstructured", 100).get_layer("logits"),
        *(vgg11.get_layer(layer) for layer in ("fc_1", "fc_2", "logits")),
    ):
        values = layer.kernel.numpy()
        assert values.std() == pytest.approx(0.01, rel=5 / math.sqrt(2 * values.size))
    for name, fan_in in (("resnet20", 64), ("preresnet56", 256)):
        values = make(name, 100).get_layer("logits").kernel.numpy()
        assert values.shape == (fan_in, 100)
        assert np.abs(values).max() <= 1 / math.sqrt(fan_in)  # PyTorch's default: uniform in +-1/sqrt(fan-in)
        assert values.std() == pytest.approx(1 / math.sqrt(fan_in) / math.sqrt(3), rel=0.05)


def test_forms_of_vgg_differ_in_biases_and_head():
    plain, l1, unstructured = (make(name, width=0.125) for name in ("vgg16", "vgg16_l1", "vgg16_unstructured"))
    assert [conv.use_bias for conv in convolutions(unstructured)] == [True] * 13
    assert not any(conv.use_bias for conv in (*convolutions(plain), *convolutions(l1)))
    names = [layer.name for layer in plain.layers]
    assert [layer.name for layer in unstructured.layers] == names
    assert [layer.name for layer in l1.layers] == [*names[:-1], "fc_1", "bn_fc_1", "relu_fc_1", "logits"]


def test_resnet50_of_cifar_has_convolutions_in_the_two_shortcuts_that_change_the_shape():
    model = make("resnet50_cifar", width=0.5)
    numbered = [conv.name for conv in convolutions(model) if "shortcut" not in conv.name]
    assert numbered == [f"conv_{n}" for n in range(1, 50)]  # 2 * 8 a stage, and the stem
    shortcuts = {conv.name: conv for conv in convolutions(model) if "shortcut" in conv.name}
    assert {name: (conv.kernel.shape, conv.strides, conv.use_bias) for name, conv in shortcuts.items()} == {
        "conv_shortcut_2": ((1, 1, 8, 16), (2, 2), False),
        "conv_shortcut_3": ((1, 1, 16, 32), (2, 2), False),
    }
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 8)).astype("float32")
    shortcut = keras.Model(model.get_layer("relu_17").output, model.get_layer("add_19").input[1])
    kernel = shortcuts["conv_shortcut_2"].kernel.numpy()[0, 0]
    # Every other pixel; fresh statistics divide by sqrt(1 + epsilon).
    expected = x[:, ::2, ::2] @ kernel / math.sqrt(1 + 1e-5)
    assert np.allclose(keras.ops.convert_to_numpy(shortcut(x)), expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS.names())
def test_half_of_the_channels_of_every_network_can_be_removed_and_that_is_proved(name):
    # Small images where the network takes them: the size of a map makes no difference to its channels.
    width = 1 / 6 if name.startswith("densenet") else 0.125  # the growth of 12 becomes 2
    model = randomize(make(name, 7, width, size=32 if "vgg" in name else 16), 1)
    assert model.output_shape == (None, 7)
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.verify(model, plan, examples=2) <= 1e-5
    # All convolutions lose channels, the coupled ones too; where half of an odd number goes, the rest stays. Selections
    # freeze the streams that they select from: the stem, the shortcuts and the third convolution of every block.
    stream = {"conv_1", *(f"conv_{n}" for n in range(4, 50, 3)), *(f"conv_shortcut_{n}" for n in range(1, 5))}
    whole = stream if name == "imagenet_resnet50_2x" else set()
    assert {conv.name: len(plan.keep[conv.name]) for conv in convolutions(model)} == {
        conv.name: conv.filters if conv.name in whole else conv.filters // 2 for conv in convolutions(model)
    }


@pytest.mark.parametrize(
    ("before", "add", "size", "channels"), [("relu_7", "add_9", 32, 4), ("relu_13", "add_15", 16, 8)]
)
def test_option_a_shortcut_pools_and_puts_the_new_channels_after_the_old_ones(before, add, size, channels):
    model = make("resnet20", width=0.25)
    x = np.random.default_rng(0).standard_normal((2, size, size, channels)).astype("float32")
    shortcut = keras.Model(model.get_layer(before).output, model.get_layer(add).input[1])
    received = keras.ops.convert_to_numpy(shortcut(x))
    pooled = x.reshape(2, size // 2, 2, size // 2, 2, channels).mean((2, 4))
    # The published code concatenates zeros behind the pooled channels; weights of it can only be used in that order.
    assert np.allclose(received, np.concatenate([pooled, np.zeros_like(pooled)], -1), atol=1e-6)


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
