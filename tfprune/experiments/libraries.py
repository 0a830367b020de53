"""The networks of other people's Keras 3 libraries, made small and with random weights; nothing is downloaded."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tfprune.experiments.layer_networks import layer_networks
from tfprune.models import APPLICATIONS

if TYPE_CHECKING:
    import keras

Maker = Callable[[], "keras.Model"]

# Arguments of constructors, by name, that make networks of a few thousand weights.
_SMALL: dict[str, Any] = {
    "vocabulary_size": 64, "vocab_size": 64, "num_layers": 2, "num_heads": 4, "num_query_heads": 4,
    "num_key_value_heads": 2, "num_attention_heads": 4, "hidden_dim": 32, "hidden_size": 32, "intermediate_dim": 48,
    "mlp_dim": 48, "embedding_dim": 32, "head_dim": 8, "head_size": 8, "max_sequence_length": 32,
    "image_shape": (32, 32, 3), "image_size": 32, "patch_size": 8, "num_experts": 4, "top_k": 2,
    "moe_intermediate_dim": 24, "shared_expert_intermediate_dim": 24, "num_mels": 16,
    "max_encoder_sequence_length": 16, "max_decoder_sequence_length": 16, "num_layers_enc": 1, "num_layers_dec": 1,
    "dropout": 0.0, "dropout_rate": 0.0, "layer_norm_epsilon": 1e-5,
}  # fmt: skip
# Of single classes, beside these.
_OWN: dict[str, dict[str, Any]] = {
    "DenseNetBackbone": {"stackwise_num_repeats": [2, 2], "growth_rate": 8},
    "VGGBackbone": {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [16, 32]},
    "XceptionBackbone": {"stackwise_conv_filters": [[16, 16], [32, 32]], "stackwise_pooling": [True, False]},
    "DINOV2Backbone": {"position_embedding_shape": (32, 32, 3)},
    "SwinTransformerBackbone": {
        "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "drop_path": 0.0, "patch_size": 2,
    },
    "ViTDetBackbone": {"global_attention_layer_indices": [1], "window_size": 2, "num_output_channels": 16},
    "MiTBackbone": {
        "layerwise_depths": [1, 1], "num_layers": 2, "layerwise_num_heads": [1, 2], "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": 0.1, "layerwise_patch_sizes": [7, 3], "layerwise_strides": [4, 2],
        "hidden_dims": [16, 32],
    },
    "EfficientNetBackbone": {
        "stackwise_kernel_sizes": [3, 3], "stackwise_num_repeats": [1, 2], "stackwise_input_filters": [32, 16],
        "stackwise_output_filters": [16, 24], "stackwise_expansion_ratios": [1, 4], "stackwise_strides": [1, 2],
        "stackwise_squeeze_and_excite_ratios": [0.25, 0.25], "stackwise_block_types": ["v1", "v1"],
        "stackwise_width_coefficients": [1.0, 1.0], "stackwise_depth_coefficients": [1.0, 1.0],
        "input_shape": (32, 32, 3), "num_features": 64,
    },
    "MobileNetBackbone": {
        "stackwise_expansion": [[32, 48], [48, 64]], "stackwise_num_blocks": [2, 2],
        "stackwise_num_filters": [[16, 24], [24, 32]], "stackwise_kernel_size": [[3, 3], [3, 3]],
        "stackwise_num_strides": [[1, 2], [1, 2]], "stackwise_se_ratio": [[None, 0.25], [0.25, 0.25]],
        "stackwise_activation": [["relu", "hard_swish"]] * 2, "stackwise_padding": [[1, 1], [1, 1]],
        "output_num_filters": 64, "depthwise_filters": 8, "depthwise_stride": 2, "depthwise_residual": False,
        "last_layer_filter": 64, "squeeze_and_excite": 0.5, "input_num_filters": 16,
    },
    "HGNetV2Backbone": {
        "depths": [1, 1], "embedding_size": 16, "hidden_sizes": [32, 64], "stem_channels": [3, 8, 16],
        "hidden_act": "relu", "use_learnable_affine_block": False, "apply_downsample": [False, True],
        "stackwise_stage_filters": [(16, 8, 32, 1, 3, 3), (32, 16, 64, 1, 3, 3)],
        "use_lightweight_conv_block": [False, True],
    },
    "ResNetBackbone": {
        "input_conv_filters": [64], "input_conv_kernel_sizes": [3], "stackwise_num_filters": [64, 128],
        "stackwise_num_blocks": [2, 2], "stackwise_num_strides": [1, 2], "block_type": "basic_block",
    },
    "CSPNetBackbone": {
        "stem_filters": 16, "stem_kernel_size": 3, "stem_strides": 1, "stackwise_depth": [1, 2],
        "stackwise_strides": [2, 2], "stackwise_num_filters": [32, 64], "block_type": "dark_block",
        "stage_type": "dark",
    },
    **{name: {"sliding_window": 8} for name in ("GptOssBackbone", "MistralBackbone", "MixtralBackbone")},
}  # fmt: skip


def _keras_hub() -> Iterator[tuple[str, Maker]]:
    """The backbones of keras-hub."""
    models = importlib.import_module("keras_hub").models
    for name in sorted(dir(models)):
        if name.endswith("Backbone") and name not in ("Backbone", "FeaturePyramidBackbone"):
            yield name, functools.partial(_small, name, getattr(models, name))


def _small(name: str, make: Callable[..., Any]) -> keras.Model:
    return with_head(make(**arguments_for(name, make)))


def _keras_cv() -> Iterator[tuple[str, Maker]]:
    """Detectors and segmentation networks of keras-cv."""
    models = importlib.import_module("keras_cv").models

    def yolo() -> Any:
        return models.YOLOV8Backbone(
            stackwise_channels=[16, 32, 64, 128], stackwise_depth=[1, 2, 2, 1], include_rescaling=False,
            input_shape=(64, 64, 3),
        )  # fmt: skip

    def darknet() -> Any:
        return models.CSPDarkNetBackbone(
            stackwise_channels=[16, 32, 64, 128], stackwise_depth=[1, 1, 1, 1], include_rescaling=False,
            input_shape=(64, 64, 3),
        )  # fmt: skip

    def resnet() -> Any:
        return models.ResNetBackbone(
            stackwise_filters=[16, 32, 64, 128], stackwise_blocks=[1, 1, 1, 1], stackwise_strides=[1, 2, 2, 2],
            include_rescaling=False, input_shape=(64, 64, 3), block_type="block",
        )  # fmt: skip

    def mit() -> Any:
        return models.MiTBackbone(
            include_rescaling=False, depths=[1, 1, 1, 1], embedding_dims=[16, 32, 64, 128], input_shape=(64, 64, 3)
        )

    for name, backbone in (("YOLOV8Backbone", yolo), ("CSPDarkNetBackbone", darknet)):
        yield (
            f"YOLOV8Detector on {name}",
            lambda backbone=backbone: models.YOLOV8Detector(
                backbone(), num_classes=4, bounding_box_format="xyxy", fpn_depth=1
            ),
        )
    yield (
        "RetinaNet on ResNetBackbone",
        lambda: models.RetinaNet(resnet(), num_classes=4, bounding_box_format="xyxy"),
    )
    yield "DeepLabV3Plus on ResNetBackbone", lambda: models.DeepLabV3Plus(resnet(), num_classes=4)
    yield "SegFormer on MiTBackbone", lambda: models.SegFormer(mit(), num_classes=4, projection_filters=32)


# The smallest network of every family.
_KIMM = (
    "ConvMixer736D32", "ConvNeXtAtto", "DenseNet121", "EfficientNetLiteB0", "EfficientNetV2B0", "GhostNetV2W100",
    "GhostNetV3W050", "GhostNetW050", "HGNetTiny", "HGNetV2B0", "InceptionNeXtTiny", "InceptionV3", "LCNet035",
    "MobileNetV2W050", "MobileNetV3W050Small", "MobileOneS0", "MobileViTV2W050", "MobileViTXXS", "RegNetX002",
    "RegNetY002", "RepVGGA0", "ResNet18", "TinyNetE", "VGG11", "VisionTransformerTiny16", "Xception",
)  # fmt: skip


def _kimm() -> Iterator[tuple[str, Maker]]:
    """Image classifiers of kimm."""
    models = importlib.import_module("kimm").models
    for name in _KIMM:
        size = 96 if name in ("InceptionV3", "Xception") else 64
        yield (
            name,
            functools.partial(
                getattr(models, name),
                weights=None,
                input_shape=(size, size, 3),
                classes=10,
                include_preprocessing=False,
            ),
        )


def _medicai() -> Iterator[tuple[str, Maker]]:
    """Segmentation networks and classifiers of medicai, for images and for volumes."""
    models = importlib.import_module("medicai").models
    image, volume = (64, 64, 1), (32, 32, 32, 1)
    filters = (64, 32, 16, 16, 8)
    for shape, dimensions in ((image, "images"), (volume, "volumes")):
        for name in ("UNet", "AttentionUNet", "UNetPlusPlus"):
            yield (
                f"{name}, {dimensions}",
                functools.partial(
                    getattr(models, name),
                    input_shape=shape,
                    encoder_name="resnet18",
                    decoder_filters=filters,
                    num_classes=3,
                ),
            )
        yield (
            f"SegFormer, {dimensions}",
            functools.partial(models.SegFormer, input_shape=shape, encoder_name="mit_b0", num_classes=3),
        )
    for name in ("SEResNet18", "ConvNeXtV2Atto", "EfficientNetB0", "MixViTB0"):
        yield f"{name}, images", functools.partial(getattr(models, name), input_shape=image, num_classes=3)


def _small_applications() -> Iterator[tuple[str, Maker]]:
    """The networks of keras.applications for images of 96 pixels, so that every kernel can be rolled."""
    for name in APPLICATIONS:
        yield name, functools.partial(_small_application, name)


def _small_application(name: str) -> keras.Model:
    import keras

    keras.backend.clear_session()
    return getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), classes=10)


# Library -> its networks: the name, and a function that makes it.
LIBRARIES: dict[str, Callable[[], Iterator[tuple[str, Maker]]]] = {
    "keras_applications_96": _small_applications,
    "keras_cv": _keras_cv,
    "keras_hub": _keras_hub,
    "keras_layers": layer_networks,
    "kimm": _kimm,
    "medicai": _medicai,
}


def arguments_for(name: str, make: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that make a small network of a constructor: what it needs, and sizes that it has defaults for."""
    known = {**_SMALL, **_OWN.get(name, {})}
    parameters = inspect.signature(make).parameters.values()
    optional = ("max_sequence_length", "image_shape", "num_mels", *(_OWN.get(name, {})))
    return {
        one.name: known[one.name]
        for one in parameters
        if one.name in known and (one.default is one.empty or one.name in optional or "sequence_length" in one.name)
    }


def with_head(network: keras.Model) -> keras.Model:
    """A network with ten classes on what it gives first, averaged over its positions."""
    import keras

    (given, *_) = keras.tree.flatten(network.output)
    while len(given.shape) > 2:
        given = keras.ops.mean(given, axis=1)
    return keras.Model(network.inputs, keras.layers.Dense(10, name="classes")(given), name=network.name)


def randomize_statistics(model: keras.Model, seed: int = 0) -> None:
    """Gives batch normalizations statistics and parameters as of a trained network."""
    import keras
    import numpy as np

    from tfprune.graph.keras_internals import layers_within

    generator = np.random.default_rng(seed)
    for layer in layers_within(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.moving_mean.shape
            layer.moving_mean.assign(generator.normal(0.0, 0.3, size))
            layer.moving_variance.assign(generator.uniform(0.5, 2.0, size))
            for variable, low in ((layer.gamma, 0.5), (layer.beta, -0.5)):
                if variable is not None:
                    variable.assign(generator.uniform(low, low + 1.0, size))
