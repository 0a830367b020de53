"""The networks of the paper, and the door through which every other network comes in.

A network is a function and a name in `MODELS`; a family shares one function. From outside it is one call, made before
a command parses its flags:

    import sys

    from tfprune.experiments import run
    from tfprune.models import MODELS

    MODELS.add("mine", "my_package.networks:mine")  # or the function itself
    sys.exit(run.main(sys.argv[1:]))

    def mine(name, input_shape, classes, width):  # "mine", (height, width, channels), 10, the multiplier --width
        ...  # a functional keras.Model that gives logits or probabilities
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfprune.errors import UsageError
from tfprune.models.model_files import SUFFIXES, load
from tfprune.support.checks import first_line, shown, without_colours
from tfprune.support.registry import Registry, unknown_name

if TYPE_CHECKING:
    import keras

# The constructors of keras.applications, known here so that a misspelt name is told before Keras is imported.
APPLICATIONS = (
    "ConvNeXtBase", "ConvNeXtLarge", "ConvNeXtSmall", "ConvNeXtTiny", "ConvNeXtXLarge", "DenseNet121",
    "DenseNet169", "DenseNet201", "EfficientNetB0", "EfficientNetB1", "EfficientNetB2", "EfficientNetB3",
    "EfficientNetB4", "EfficientNetB5", "EfficientNetB6", "EfficientNetB7", "EfficientNetV2B0",
    "EfficientNetV2B1", "EfficientNetV2B2", "EfficientNetV2B3", "EfficientNetV2L", "EfficientNetV2M",
    "EfficientNetV2S", "InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Large",
    "MobileNetV3Small", "NASNetLarge", "NASNetMobile", "ResNet101", "ResNet101V2", "ResNet152", "ResNet152V2",
    "ResNet50", "ResNet50V2", "VGG16", "VGG19", "Xception",
)  # fmt: skip

MODELS = Registry("model", reserved=APPLICATIONS)
for _target, _names in {
    "vgg:vgg": "vgg11 vgg16 vgg19 vgg11_l1 vgg16_l1 vgg19_l1 vgg16_unstructured vgg19_unstructured",
    "resnet:resnet": "resnet20 resnet32 resnet56 resnet110 resnet50_cifar",
    "preresnet:preresnet": "preresnet56 preresnet110 preresnet164",
    "densenet:densenet": "densenet40 densenet_bc100",
    "imagenet_vgg:imagenet_vgg": "imagenet_vgg11_bn imagenet_vgg16 imagenet_vgg16_bn",
    "imagenet_vgg:imagenet_vgg_pooled": "imagenet_vgg_gap imagenet_vgg_tiny",
    "imagenet_resnet:imagenet_resnet": "imagenet_resnet34 imagenet_resnet50 imagenet_resnet50_2x imagenet_resnext50",
}.items():
    for _name in _names.split():
        MODELS.add(_name, f"tfprune.models.{_target}")


def is_file(name: str) -> bool:
    """Whether a model's name is the path of a user's file rather than a name."""
    return name.endswith(SUFFIXES) or os.sep in name


def check_model(name: str, width: float = 1.0) -> None:
    """Raises a UsageError unless `build_model` can make this; imports nothing heavy."""
    if is_file(name):
        if not Path(name).is_file():
            raise UsageError(f"There is no model file {name!r}.")
    elif name not in APPLICATIONS and name not in MODELS.names():
        raise unknown_name("model", name, (*MODELS.names(), *APPLICATIONS, f"a path ending in {', '.join(SUFFIXES)}"))
    if not 0 < width < math.inf:
        raise UsageError(f"width={width} must be above 0.")
    if width != 1.0 and name not in MODELS.names():
        raise UsageError(f"width={width} applies to {', '.join(MODELS.names())} only; received model {name!r}.")


def build_model(
    name: str,
    input_shape: tuple[int, ...],
    classes: int,
    width: float = 1.0,
    custom_objects: Mapping[str, Any] | None = None,
) -> keras.Model:
    """Builds or loads a network that gives logits or probabilities of classes.

    Args:
        name: A name in `MODELS`, a constructor of keras.applications, or the path of a file of Keras (see `load`).
        input_shape: (height, width, channels) of the images.
        classes: Number of classes.
        width: Width multiplier, for the networks in `MODELS`.
        custom_objects: Name -> class or function, for those that a file needs beside Keras' own.

    Raises:
        UsageError: For an unknown name, a file that Keras cannot load safely, or a network that does not
            fit the images or the classes.
    """
    import keras

    check_model(name, width)
    if is_file(name):
        model = load(name, custom_objects, compiled=False)
    else:
        own = name in MODELS.names()
        builder = MODELS.get(name) if own else getattr(keras.applications, name)
        if own:
            _check_builder(name, builder)
        try:
            if own:
                model = builder(name, input_shape, classes, width)
            else:
                model = builder(weights=None, input_shape=input_shape, classes=classes, classifier_activation=None)
        except Exception as error:  # Keras' for sizes that do not fit, and whatever a builder of others raises
            lines = [line for line in str(error).splitlines() if line.strip() and "Exception encountered" not in line]
            reason = without_colours(lines[0]).strip() if lines else ""
            kind = "" if isinstance(error, ValueError) and reason else f"{type(error).__name__}: "
            message = f"The model {name!r} cannot be made for images of {input_shape}: {kind}{reason}".rstrip(": ")
            raise UsageError(message) from error
    if not isinstance(model, keras.Model) or getattr(model, "inputs", None) is None:
        raise UsageError(
            f"The builder of the model {name!r} must return a functional keras.Model; it returned {shown(model)}."
        )
    shapes = [tuple(tensor.shape[1:]) for tensor in (*model.inputs, *model.outputs)]
    fits = len(shapes) == 2 and shapes[1] == (classes,) and len(shapes[0]) == 3
    if not fits or any(size not in (None, given) for size, given in zip(shapes[0], input_shape, strict=True)):
        raise UsageError(
            f"The model {name!r} maps {shapes[0]} to {shapes[-1]}; the data set needs {input_shape} to ({classes},)."
        )
    return model


def _check_builder(name: str, builder: Any) -> None:
    """Raises a UsageError unless a builder from outside takes what `build_model` gives it."""
    try:
        inspect.signature(builder).bind(name, (32, 32, 3), 10, 1.0)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"The builder of the model {name!r} must be a function of (name, input_shape, classes, width); received "
            f"{shown(builder)}: {first_line(error)}."
        ) from error


def build_application(name: str) -> keras.Model:
    """A network of keras.applications as it is published, of random weights: nothing is downloaded.

    Where it leaves the size of its images open, it is made for 224 x 224, because MACs depend on the size.

    Args:
        name: A name in `APPLICATIONS`.
    """
    import keras

    make = getattr(keras.applications, name)
    model = make(weights=None)
    return make(weights=None, input_shape=(224, 224, 3)) if None in model.input_shape[1:] else model
