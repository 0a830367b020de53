import itertools

import keras
import numpy as np
import pytest

import tfprune
from tests.helpers import convolutions, normalizations, trainable
from tfprune.models import build_model

VGG_WIDTHS = {"vgg11": [64, 128, 256, 256] + [512] * 4, "vgg16": [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6}


def make(name, classes=1000, width=1.0, size=224):
    return build_model(name, (size, size, 3), classes, width)


def vgg_params(widths, classes, fc, side=7, bn=0, bn_fc=0):
    """bn and bn_fc: 2 where gamma and beta are, after convolutions and after the dense layers of the head."""
    convs = sum((9 * a + 1) * b for a, b in itertools.pairwise([3, *widths]))
    units = [widths[-1] * side**2, fc, fc, classes]
    return convs + bn * sum(widths) + sum((a + 1) * b for a, b in itertools.pairwise(units)) + bn_fc * 2 * fc


def resnet_params(widths, classes, bottleneck, groups=1):
    """Params of ResNet-34, ResNet-50 or ResNeXt-50, block by block; (size, filters, groups) of the convolutions."""
    total, entering = (49 * 3 + 2) * widths[0], widths[0]
    for w, blocks in zip(widths, (3, 4, 6, 3), strict=True):
        inner = 2 * w if groups > 1 else w
        branch = ((1, inner, 1), (3, inner, groups), (1, 4 * w, 1)) if bottleneck else ((3, w, 1), (3, w, 1))
        for block in range(blocks):
            leaving = branch[-1][1]
            if block == 0 and (entering != leaving):
                total += (entering + 2) * leaving
            for size, filters, parts in branch:
                total += (size**2 * entering // parts + 2) * filters
                entering = filters
    return total + (entering + 1) * classes


@pytest.mark.parametrize(
    ("name", "params", "gmacs", "bn_channels"),
    [
        # As torchvision publishes them, with its GFLOPS, which are multiply-accumulates.
        ("imagenet_resnet34", 21_797_672, 3.66, 8_512),
        ("imagenet_resnet50", 25_557_032, 4.09, 26_560),
        ("imagenet_resnext50", 25_028_904, 4.23, 34_112),
        ("imagenet_vgg16", 138_357_544, 15.47, 0),
        ("imagenet_vgg16_bn", 138_365_992, 15.47, 4_224),
        # torchvision's vgg11_bn and two batch normalizations of 4,096 in the head.
        ("imagenet_vgg11_bn", 132_868_840 + 2 * 2 * 4_096, 7.61, 2_752 + 2 * 4_096),
    ],
)
def test_params_and_macs_published_for_the_whole_network(name, params, gmacs, bn_channels):
    model = make(name)
    assert model.output_shape == (None, 1000)
    assert trainable(model) == params
    assert sum(layer.gamma.shape[0] for layer in normalizations(model)) == bn_channels
    cost = tfprune.profile(model)
    assert cost.params == params
    assert cost.macs / 1e9 == pytest.approx(gmacs, abs=0.006)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imagenet_vgg11_bn", vgg_params([w // 8 for w in VGG_WIDTHS["vgg11"]], 7, 512, 2, bn=2, bn_fc=2)),
        ("imagenet_vgg16", vgg_params([w // 8 for w in VGG_WIDTHS["vgg16"]], 7, 512, 2)),
        ("imagenet_vgg16_bn", vgg_params([w // 8 for w in VGG_WIDTHS["vgg16"]], 7, 512, 2, bn=2)),
        ("imagenet_resnet34", resnet_params((8, 16, 32, 64), 7, False)),
        ("imagenet_resnet50", resnet_params((8, 16, 32, 64), 7, True)),
        ("imagenet_resnext50", resnet_params((8, 16, 32, 64), 7, True, groups=4)),
    ],
)
def test_width_and_smaller_images_give_the_params_of_the_formula(name, expected):
    model = make(name, 7, 0.125, size=64)  # the last map is 2x2
    assert model.output_shape == (None, 7)
    assert trainable(model) == expected


def test_vgg_has_its_layers_in_the_order_of_the_paper():
    convs = {"imagenet_vgg11_bn": (1, 1, 2, 2, 2), "imagenet_vgg16": (2, 2, 3, 3, 3)}
    units = {
        "imagenet_vgg11_bn": ["Dense", "BatchNormalization", "ReLU"],
        "imagenet_vgg16": ["Dense", "ReLU", "Dropout"],
    }
    for name in convs:
        model = make(name, 5, 0.05, size=32)
        one = ["Conv2D", "ReLU"] if name == "imagenet_vgg16" else ["Conv2D", "BatchNormalization", "ReLU"]
        expected = [kind for count in convs[name] for kind in (*one * count, "MaxPooling2D")]
        expected += ["Flatten", *units[name] * 2, "Dense"]
        assert [type(layer).__name__ for layer in model.layers[1:]] == expected
        assert [conv.name for conv in convolutions(model)] == [f"conv_{n}" for n in range(1, sum(convs[name]) + 1)]
        assert all(conv.use_bias for conv in convolutions(model))
        assert {layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)} <= {0.5}


@pytest.mark.parametrize(
    ("name", "depth", "strided"),
    [
        ("imagenet_resnet34", 34, (8, 16, 28)),
        ("imagenet_resnet50", 50, (12, 24, 42)),
        ("imagenet_resnext50", 50, (12, 24, 42)),
    ],
)
def test_resnet_halves_the_map_where_torchvision_does(name, depth, strided):
    model = make(name, width=0.05)
    numbered = [conv for conv in convolutions(model) if "shortcut" not in conv.name]
    assert [conv.name for conv in numbered] == [f"conv_{n}" for n in range(1, depth)]
    assert [conv.name for conv in numbered if conv.strides == (2, 2)] == [f"conv_{n}" for n in (1, *strided)]
    assert all(conv.kernel.shape[0] == 3 for conv in numbered if conv.strides == (2, 2) and conv.name != "conv_1")
    first = 2 if name == "imagenet_resnet34" else 1  # the stage of the first shortcut that changes the width
    shortcuts = {conv.name: conv.strides for conv in convolutions(model) if "shortcut" in conv.name}
    assert shortcuts == {f"conv_shortcut_{stage}": (2, 2) if stage > 1 else (1, 1) for stage in range(first, 5)}
    sides = [model.get_layer(layer).output.shape[1] for layer in ("relu_1", "pool", *(f"conv_{n}" for n in strided))]
    assert sides == [112, 56, 28, 14, 7]


@pytest.mark.parametrize("size", [224, 63])
def test_the_stem_of_resnet_pads_as_pytorch_pads(size):
    model = make("imagenet_resnet34", 5, 0.04, size)  # two channels
    x = np.random.default_rng(1).standard_normal((1, size, size, 3)).astype("float32")
    stem = keras.Model(model.input, model.get_layer("conv_1").output)(x).numpy()
    kernel = model.get_layer("conv_1").kernel.numpy()
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    last = (size + 6 - 7) // 2
    assert stem.shape == (1, last + 1, last + 1, 2)
    for row, column in ((0, 0), (0, last), (5, 3), (last, last)):
        patch = padded[0, 2 * row : 2 * row + 7, 2 * column : 2 * column + 7]
        assert np.allclose(stem[0, row, column], np.einsum("hwc,hwco->o", patch, kernel), atol=1e-4)
    activated = keras.Model(model.input, model.get_layer("relu_1").output)(x).numpy()
    pooled = keras.Model(model.input, model.get_layer("pool").output)(x).numpy()
    border = np.pad(activated, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    last = (activated.shape[1] + 2 - 3) // 2
    assert pooled.shape == (1, last + 1, last + 1, 2)
    for row, column in ((0, 0), (0, last), (4, 7), (last, last)):
        window = border[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        assert np.allclose(pooled[0, row, column], window.max((0, 1)))


def test_resnet_keeps_its_shortcuts_on_maps_of_one_pixel():
    # At 16 pixels the last stage takes one pixel to one pixel, and with one channel a shortcut would fit as it is.
    names = [conv.name for conv in convolutions(make("imagenet_resnet34", 5, 0.001, size=16))]
    assert [name for name in names if "shortcut" in name] == [f"conv_shortcut_{stage}" for stage in (2, 3, 4)]
