"""The networks of other libraries, on modules that stand for these: what their constructors are given."""

import inspect
import sys
import types

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import randomize
from tfprune.experiments.libraries import LIBRARIES, arguments_for, with_head
from tfprune.models import APPLICATIONS


def classifier(input_shape, classes, name=None):
    """A convolution over the channels of an image or a volume, and classes."""
    inputs = keras.Input(input_shape)
    convolution = layers.Conv2D if len(input_shape) == 3 else layers.Conv3D
    x = convolution(6, 1, activation="relu", name="wide")(inputs)
    outputs = layers.Dense(classes)(layers.Flatten()(x[:, ::16, ::16]))
    return keras.Model(inputs, outputs, name=name)


def feature_map(input_shape):
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, layers.Conv2D(6, 3, strides=8, name="wide")(inputs))


def detector(backbone, num_classes):
    return keras.Model(backbone.inputs, layers.Conv2D(num_classes, 1)(backbone.output))


@pytest.fixture
def library(monkeypatch):
    """Puts a library of these constructors into the place of one that is not installed; returns what they were given.

    The signature of each is checked at every call, so that an argument which it does not have fails as it would there.
    """

    def stand_in(module, constructors):
        received = []
        models = types.SimpleNamespace()
        for name, (parameters, make) in constructors.items():
            setattr(models, name, constructor(name, parameters, make, received))
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(models=models))
        return received

    return stand_in


def constructor(name, parameters, make, received):
    def made(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        received.append((name, dict(bound.arguments)))
        return make(**{key: value for key, value in bound.arguments.items() if key in used})

    names = parameters.split()
    signature = made.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                one.rstrip("?"),
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None if one.endswith("?") else inspect.Parameter.empty,
            )
            for one in names
        ]
    )
    used = set(inspect.signature(make).parameters)
    return made


def encoder(vocabulary_size, hidden_dim, intermediate_dim):
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    x = layers.Embedding(vocabulary_size, hidden_dim)(tokens)
    x = layers.Dense(hidden_dim)(layers.Dense(intermediate_dim, activation="relu", name="wide")(x))
    return keras.Model(tokens, {"sequence_output": x, "pooled_output": layers.Dense(hidden_dim)(x[:, 0])})


def pyramid(image_shape):
    image = keras.Input(image_shape)
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="wide")(image)
    return keras.Model(image, layers.Conv2D(16, 3, strides=2)(x), name="pyramid")


def stages(stackwise_num_repeats, growth_rate, image_shape):
    image = keras.Input(image_shape)
    x = image
    for repeats in stackwise_num_repeats:
        for _ in range(repeats):
            x = layers.Conv2D(growth_rate, 3, activation="relu")(x)
    return keras.Model(image, x)


HUB = {
    "Backbone": ("", encoder),
    "FeaturePyramidBackbone": ("", encoder),
    "Tokenizer": ("", encoder),
    "TextBackbone": (
        "vocabulary_size hidden_dim intermediate_dim max_sequence_length? dropout? num_heads? unheard_of?",
        encoder,
    ),
    "ImageBackbone": ("image_shape? num_layers?", pyramid),
    "DenseNetBackbone": ("stackwise_num_repeats growth_rate? image_shape?", stages),
}


def test_backbones_of_keras_hub_get_what_they_need_and_their_sizes_alone(library):
    received = library("keras_hub", HUB)
    networks = dict(LIBRARIES["keras_hub"]())
    assert list(networks) == ["DenseNetBackbone", "ImageBackbone", "TextBackbone"]
    assert received == []  # only what is asked for is made
    models = {name: make() for name, make in networks.items()}
    assert received == [
        # A size of this class alone is given though it has a default; a dropout or heads with one are not.
        ("DenseNetBackbone", {"stackwise_num_repeats": [2, 2], "growth_rate": 8, "image_shape": (32, 32, 3)}),
        ("ImageBackbone", {"image_shape": (32, 32, 3)}),
        (
            "TextBackbone",
            {"vocabulary_size": 64, "hidden_dim": 32, "intermediate_dim": 48, "max_sequence_length": 32},
        ),
    ]
    for model in models.values():
        assert model.output_shape == (None, 10)
        assert model.get_layer("classes").units == 10
        assert model.count_params() < 20_000


def test_a_backbone_with_a_head_can_be_planned_and_proved(library):
    library("keras_hub", HUB)
    networks = dict(LIBRARIES["keras_hub"]())
    for name, width in (("TextBackbone", 48), ("ImageBackbone", 8)):
        model = randomize(networks[name]())
        plan = tfprune.plan_channels(model, 0.5)
        assert plan.sizes()["wide"] == (width, width // 2)
        assert tfprune.verify(model, plan, power=True).unnoticed == ()


def test_a_constructor_whose_need_is_not_known_is_called_without_it(library):
    library("keras_hub", {"OddBackbone": ("image_shape unheard_of", pyramid)})
    ((name, make),) = LIBRARIES["keras_hub"]()
    assert name == "OddBackbone"
    with pytest.raises(TypeError, match="missing a required argument: 'unheard_of'"):
        make()


def test_an_argument_whose_name_tells_a_length_is_given_though_it_has_a_default():
    def speech(max_encoder_sequence_length=3000, max_decoder_sequence_length=448, num_mels=80, top_k=1):
        return None

    assert arguments_for("SpeechBackbone", speech) == {
        "max_encoder_sequence_length": 16, "max_decoder_sequence_length": 16, "num_mels": 16,
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(7,), (5, 7), (4, 5, 7), (2, 4, 5, 7)])
def test_a_head_reads_what_a_network_gives_averaged_over_its_positions(shape):
    inputs = keras.Input(shape)
    model = with_head(keras.Model(inputs, layers.Activation("tanh")(inputs), name="mine"))
    assert (model.name, model.output_shape) == ("mine", (None, 10))
    values = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    average = np.tanh(values).mean(axis=tuple(range(1, values.ndim - 1)))
    kernel, bias = randomize(model).get_layer("classes").get_weights()
    np.testing.assert_allclose(model([values]), average @ kernel + bias, rtol=1e-4, atol=1e-5)


def test_a_head_reads_the_first_of_several_outputs():
    inputs = keras.Input((4, 3))
    first, second = layers.Dense(5, name="first")(inputs), layers.Dense(6, name="second")(inputs)
    assert with_head(keras.Model(inputs, [first, second])).get_layer("classes").kernel.shape == (5, 10)


CV = {
    "YOLOV8Backbone": ("stackwise_channels stackwise_depth include_rescaling activation? input_shape?", feature_map),
    "CSPDarkNetBackbone": (
        "stackwise_channels stackwise_depth include_rescaling use_depthwise? input_shape?",
        feature_map,
    ),
    "ResNetBackbone": (
        "stackwise_filters stackwise_blocks stackwise_strides include_rescaling input_shape? input_tensor? block_type?",
        feature_map,
    ),
    "MiTBackbone": ("include_rescaling depths input_shape? input_tensor? embedding_dims?", feature_map),
    "YOLOV8Detector": ("backbone num_classes bounding_box_format fpn_depth? label_encoder?", detector),
    "RetinaNet": ("backbone num_classes bounding_box_format anchor_generator? label_encoder?", detector),
    "DeepLabV3Plus": ("backbone num_classes projection_filters? dropout?", detector),
    "SegFormer": ("backbone num_classes projection_filters?", detector),
}


UNET = (
    "input_shape encoder_name? decoder_filters? num_classes?",
    lambda input_shape, num_classes: classifier(input_shape, num_classes),
)
SINGLE = ("input_shape num_classes? include_rescaling?", UNET[1])
MEDICAI = {
    **dict.fromkeys(("UNet", "AttentionUNet", "UNetPlusPlus"), UNET),
    "SegFormer": ("input_shape encoder_name? num_classes? decoder_head_embedding_dim?", UNET[1]),
    **dict.fromkeys(("SEResNet18", "ConvNeXtV2Atto", "EfficientNetB0", "MixViTB0"), SINGLE),
}


def test_every_network_of_keras_cv_has_a_backbone_of_its_own(library):
    received = library("keras_cv", CV)
    networks = dict(LIBRARIES["keras_cv"]())
    assert received == []
    boxes = {"num_classes": 4, "bounding_box_format": "xyxy"}
    heads = {
        "YOLOV8Detector on YOLOV8Backbone": {**boxes, "fpn_depth": 1},
        "YOLOV8Detector on CSPDarkNetBackbone": {**boxes, "fpn_depth": 1},
        "RetinaNet on ResNetBackbone": boxes,
        "DeepLabV3Plus on ResNetBackbone": {"num_classes": 4},
        "SegFormer on MiTBackbone": {"num_classes": 4, "projection_filters": 32},
    }
    assert list(networks) == list(heads)
    for name, given in heads.items():
        one, other = networks[name](), networks[name]()
        assert one.output_shape == (None, 8, 8, 4)
        assert not {id(layer) for layer in one.layers} & {id(layer) for layer in other.layers}
        (below, sizes), (above, arguments), *again = received
        assert [below, above] == name.split(" on ")[::-1]
        assert arguments.pop("backbone").output_shape == (None, 8, 8, 6)
        assert arguments == given
        assert sizes["include_rescaling"] is False
        assert sizes["input_shape"] == (64, 64, 3)
        # One number for each stage, so that the strides of a feature pyramid are those of the library.
        per_stage = {len(value) for key, value in sizes.items() if isinstance(value, list)}
        assert per_stage == {4}
        assert [kind for kind, _ in again] == [below, above]
        received.clear()


class OfAnyName:
    """A namespace that has a constructor by every name."""

    def __init__(self, parameters, received):
        self.parameters, self.received = parameters, received

    def __getattr__(self, name):
        return constructor(name, self.parameters, classifier, self.received)


def test_networks_of_kimm_are_made_with_random_weights_for_ten_classes(monkeypatch):
    received = []
    models = OfAnyName("input_shape? include_preprocessing? classes? weights? name?", received)
    monkeypatch.setitem(sys.modules, "kimm", types.SimpleNamespace(models=models))
    networks = list(LIBRARIES["kimm"]())
    assert len({name for name, _ in networks}) == len(networks) == 26
    assert {"ResNet18", "VGG11", "MobileViTXXS", "InceptionV3", "Xception"} < {name for name, _ in networks}
    for name, make in networks:
        model, size = make(), 96 if name in ("InceptionV3", "Xception") else 64
        assert (model.input_shape, model.output_shape) == ((None, size, size, 3), (None, 10))
        given = {"weights": None, "input_shape": (size, size, 3), "classes": 10, "include_preprocessing": False}
        assert received.pop() == (name, given)
    assert received == []


def test_networks_of_medicai_are_made_for_images_and_for_volumes(library):
    received = library("medicai", MEDICAI)
    image, volume = (64, 64, 1), (32, 32, 32, 1)
    networks = dict(LIBRARIES["medicai"]())
    wanted = {
        f"{kind}, {what}": (kind, shape)
        for what, shape in (("images", image), ("volumes", volume))
        for kind in ("UNet", "AttentionUNet", "UNetPlusPlus", "SegFormer")
    }
    alone = ("SEResNet18", "ConvNeXtV2Atto", "EfficientNetB0", "MixViTB0")
    wanted |= {f"{kind}, images": (kind, image) for kind in alone}
    assert set(networks) == set(wanted)
    for name, (kind, shape) in wanted.items():
        model, (called, given) = networks[name](), received.pop()
        assert (model.input_shape, model.output_shape) == ((None, *shape), (None, 3))
        assert (called, given.pop("input_shape"), given.pop("num_classes")) == (kind, shape, 3)
        if "UNet" in kind:
            assert (given["encoder_name"], len(given.pop("decoder_filters"))) == ("resnet18", 5)
        assert set(given) == (set() if kind in alone else {"encoder_name"})


def test_networks_of_keras_applications_are_small_and_have_random_weights(monkeypatch):
    networks = dict(LIBRARIES["keras_applications_96"]())
    assert tuple(networks) == APPLICATIONS
    received = []
    for name in APPLICATIONS:
        stand_in = constructor(name, "include_top? weights? input_shape? classes?", classifier, received)
        monkeypatch.setattr(keras.applications, name, stand_in)
    for name, make in networks.items():
        assert make().output_shape == (None, 10)
        assert received.pop() == (name, {"weights": None, "input_shape": (96, 96, 3), "classes": 10})


def test_a_network_of_keras_applications_fits_images_of_96_pixels():
    model = dict(LIBRARIES["keras_applications_96"]())["MobileNetV3Small"]()
    assert (model.input_shape, model.output_shape) == ((None, 96, 96, 3), (None, 10))
    assert np.allclose(model(np.ones((2, 96, 96, 3), "float32")).numpy().sum(axis=-1), 1, atol=1e-5)
