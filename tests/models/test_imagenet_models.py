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


@pytest.mark.slow
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


# The designs: per stage of VGG the filters of its convolutions, from ThiNet's paper; per block of ResNet-50-2x what its
# first convolution reads and the filters of the first and the second one, from the study's code.
GAP = [32, 32, 64, 64, *[128] * 3, *[256] * 3, *[512] * 3]
TINY = [16, 16, 32, 32, *[64] * 3, *[128] * 3, 128, 128, 256]
TWICE = """
35,64,55 101,51,39 97,50,37 144,128,106 205,105,72 198,105,72 288,128,110 278,256,225 418,209,147 407,204,158
423,212,155 412,211,148 595,256,213 606,512,433 1222,512,437 1147,512,440
"""
BLOCKS = [tuple(map(int, block.split(","))) for block in TWICE.split()]


def costs_of_pooled_vgg(widths, side, colours=3, classes=1000):
    """Params, MACs and the paper's FLOPs: a bias and a ReLU 1 per element, a max pool 4 per output."""
    params = macs = flops = 0
    for number, (entering, leaving) in enumerate(itertools.pairwise([colours, *widths])):
        if number in (2, 4, 7, 10):
            side //= 2
            flops += 4 * entering * side**2
        params += (9 * entering + 1) * leaving
        macs += 9 * entering * leaving * side**2
        flops += 2 * leaving * side**2
    macs += widths[-1] * classes
    return params + (widths[-1] + 1) * classes, macs, flops + 2 * macs + classes


def costs_of_resnet50_2x():
    """The same at 224 pixels: batch normalization 2 and a ReLU 1 per element, the pool of the stem 9."""
    params, macs = 49 * 3 * 64 + 2 * 64, 49 * 3 * 64 * 112**2
    flops, entering, side = 3 * 64 * 112**2 + 9 * 64 * 56**2, 64, 56
    for number, (read, first, second) in enumerate(BLOCKS):
        stage = sum(number >= begin for begin in (3, 7, 13))
        leaving = 256 * 2**stage
        made = side // 2 if number in (3, 7, 13) else side
        kernels = [(read * first, side, first), (9 * first * second, made, second), (second * leaving, made, leaving)]
        kernels += [(entering * leaving, made, leaving)] if entering != leaving else []
        params += sum(size + 2 * filters for size, _, filters in kernels)
        macs += sum(size * area**2 for size, area, _ in kernels)
        flops += sum(2 * filters * area**2 for _, area, filters in kernels)
        flops += first * side**2 + second * made**2 + leaving * made**2
        entering, side = leaving, made
    macs += 2048 * 1000
    return params + 2049 * 1000, macs, flops + 2 * macs + 1000


@pytest.mark.parametrize(
    ("name", "large", "expected", "fewer"),
    [
        # The factors that ThiNet's paper and the study tell, and 90 epochs that become about 134.
        ("imagenet_vgg_gap", "imagenet_vgg16", costs_of_pooled_vgg(GAP, 224), (16.6, 3.31)),
        ("imagenet_vgg_tiny", "imagenet_vgg16", costs_of_pooled_vgg(TINY, 224), (104, 15.4)),
        ("imagenet_resnet50_2x", "imagenet_resnet50", costs_of_resnet50_2x(), (1.30, 134.5 / 90)),
    ],
)
def test_designs_have_the_costs_of_the_formula_and_of_the_paper(name, large, expected, fewer):
    models = make(large), make(name)
    plan = tfprune.DesignPlan.beside(*models)
    assert trainable(models[1]) == expected[0]
    assert (plan.params[1], plan.macs[1], plan.flops[1]) == expected
    factors = [before / after for before, after in (plan.params, plan.flops)]
    assert factors == pytest.approx(fewer, rel=0.005)
    assert models[1].input_shape == models[0].input_shape
    assert models[1].output_shape == models[0].output_shape


@pytest.mark.parametrize(
    ("name", "widths"),
    [("imagenet_vgg_gap", [width // 8 for width in GAP]), ("imagenet_vgg_tiny", [width // 8 for width in TINY])],
)
def test_designs_of_vgg_have_a_pooled_head_and_no_fifth_pool(name, widths):
    model = build_model(name, (32, 48, 1), 7, 0.125)
    expected = [kind for count in (2, 2, 3, 3, 3) for kind in (*["Conv2D", "ReLU"] * count, "MaxPooling2D")][:-1]
    assert [type(layer).__name__ for layer in model.layers[1:]] == [*expected, "GlobalAveragePooling2D", "Dense"]
    assert [(conv.name, conv.filters) for conv in convolutions(model)] == [
        (f"conv_{number}", width) for number, width in enumerate(widths, 1)
    ]
    assert model.get_layer("relu_13").output.shape == (None, 2, 3, widths[-1])
    assert trainable(model) == costs_of_pooled_vgg(widths, 32, 1, 7)[0]


def test_blocks_of_resnet50_2x_read_evenly_spaced_channels_and_their_shortcuts_all():
    model = make("imagenet_resnet50_2x", 5, size=32)
    firsts = [model.get_layer(f"conv_{number}") for number in range(2, 50, 3)]
    assert [(conv.kernel.shape[2], conv.filters) for conv in firsts] == [block[:2] for block in BLOCKS]
    assert [model.get_layer(f"conv_{number}").filters for number in range(3, 50, 3)] == [block[2] for block in BLOCKS]
    shortcuts = [model.get_layer(f"conv_shortcut_{stage}") for stage in range(1, 5)]
    assert [conv.kernel.shape[2] for conv in shortcuts] == [64, 256, 512, 1024]
    entering = ["pool", *(f"relu_{number}" for number in range(4, 49, 3))]
    for name, conv, (read, *_) in zip(entering, firsts, BLOCKS, strict=True):
        stream = model.get_layer(name).output
        count = stream.shape[-1]
        numbers = np.arange(count, dtype="float32").reshape(1, 1, 1, count)
        seen = np.asarray(keras.Model(stream, conv.input)(np.broadcast_to(numbers, (1, *stream.shape[1:]))))[0, 0, 0]
        assert len(seen) == read
        assert seen[0] == 0
        steps = np.diff(seen)
        assert set(steps) <= {count // read, count // read + 1}  # as even as whole numbers can be
        assert count - seen[-1] <= count // read + 1


@pytest.mark.parametrize("width", [0.001, 0.0155, 0.02, 0.05])
def test_narrow_blocks_read_channels_that_there_are(width):
    model = make("imagenet_resnet50_2x", 5, width, size=32)
    takes = [operation for operation in model.operations if type(operation).__name__ == "Take"]
    assert len(takes) == len(BLOCKS)
    for take, (read, *_) in zip(takes, BLOCKS, strict=True):
        indices = take._inbound_nodes[0].arguments.args[1]
        assert len(indices) == max(1, int(read * width))
        assert sorted(set(indices)) == indices
        assert indices[-1] < take.input.shape[-1]
