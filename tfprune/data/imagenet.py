"""ImageNet (ILSVRC 2012; Russakovsky et al., 2015), streamed from a folder or from tensorflow-datasets."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfprune.data.image_data import check_train_examples, stratified_indices
from tfprune.data.image_files import find_splits
from tfprune.data.streamed import FileSplit, StreamedData
from tfprune.errors import DataError

# In units of pixel value / 255: those that all of PyTorch's networks for ImageNet are trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_BUILDER = "imagenet2012"
# Encoded images that wait to be drawn from, besides the shuffling of files: about 1 GB.
_SHUFFLE_BUFFER = 8192


def load_imagenet(data_dir: Path | None, image_size: int, train_examples: int | None) -> StreamedData:
    """Finds the images of ImageNet, or of any data set in the same layout; reads none of them yet.

    Args:
        data_dir: Holds `train/<class>/*` and `val/<class>/*` (or `test`). None takes `imagenet2012` of
            tensorflow-datasets, where it keeps its files (`TFDS_DATA_DIR`, or ~/tensorflow_datasets).
        image_size: Height and width of the crops.
        train_examples: How many training images to keep: by `stratified_indices` of a folder, the first so
            many of tensorflow-datasets, which stores them shuffled. None keeps all.

    Raises:
        DataError: If the folder is missing or laid out otherwise, tensorflow-datasets is not installed or has
            no ImageNet, or `train_examples` is out of range.
    """
    if data_dir is None:
        train, test, num_classes, content = _from_tfds(train_examples)
    else:
        train, test, num_classes, content = _from_folder(data_dir, train_examples)
    return StreamedData(
        name="imagenet",
        train=train,
        test=test,
        num_classes=num_classes,
        image_size=image_size,
        mean=MEAN,
        std=STD,
        content=content,
        note="streamed; trained on random resized crops",
    )


def _from_folder(data_dir: Path, train_examples: int | None) -> tuple[FileSplit, FileSplit, int, str]:
    train, test = find_splits(data_dir)
    if test is None:
        raise DataError(f"'{data_dir}' holds no folder train: lay it out as train/<class>/* and val/<class>/*.")
    digest = hashlib.sha256("\0".join((*train.names, "", *test.names)).encode())
    if train_examples is not None:
        check_train_examples("imagenet", train_examples, len(train.classes), len(train))
        train = train.subset(stratified_indices(train.labels, train_examples))
    return FileSplit(train), FileSplit(test), len(train.classes), digest.hexdigest()[:16]


def _from_tfds(train_examples: int | None) -> tuple[TfdsSplit, TfdsSplit, int, str]:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            "imagenet without a data_dir needs tensorflow-datasets, which is not installed: run "
            "pip install 'tfprune[tfds]', or give a data_dir that holds train/<class>/* and val/<class>/*."
        ) from error
    builder = tfds.builder(_BUILDER)
    try:
        builder.download_and_prepare()  # does nothing if it was done before
    except Exception as error:  # whatever its downloads and its checks of files raise
        reason = " ".join(str(error).split())
        raise DataError(
            f"tensorflow-datasets has no {_BUILDER} ({reason}). Follow "
            f"https://www.tensorflow.org/datasets/catalog/{_BUILDER}, or give a data_dir that holds "
            "train/<class>/* and val/<class>/*."
        ) from error
    num_classes = builder.info.features["label"].num_classes
    available, split = builder.info.splits["train"].num_examples, "train"
    if train_examples is not None:
        check_train_examples("imagenet", train_examples, num_classes, available)
        available, split = train_examples, f"train[:{train_examples}]"
    train = TfdsSplit(tfds, builder, split, available)
    test = TfdsSplit(tfds, builder, "validation", builder.info.splits["validation"].num_examples)
    return train, test, num_classes, builder.info.full_name


class TfdsSplit:
    """A `Split` of tensorflow-datasets; its keys are the encoded images themselves.

    Every worker reads all of them and decodes its own share, so that batches do not depend on how many workers
    there are. Decoding is what costs time.

    Args:
        tfds: The module tensorflow_datasets.
        builder: The data set, prepared.
        split: As `as_dataset` takes it.
        count: Number of images in it.
    """

    def __init__(self, tfds: Any, builder: Any, split: str, count: int):
        self._tfds, self._builder, self._split, self.count = tfds, builder, split, count

    def keys(self, seed: int | None, epoch: int) -> tf.data.Dataset:
        """As `Split.keys`: files in random order, and images drawn from a buffer of 8,192."""
        shuffle_seed = None if seed is None else int(np.random.default_rng([seed, epoch]).integers(2**31))
        dataset = self._builder.as_dataset(
            split=self._split,
            shuffle_files=seed is not None,
            decoders={"image": self._tfds.decode.SkipDecoding()},
            read_config=self._tfds.ReadConfig(shuffle_seed=shuffle_seed),
        )
        if seed is not None:
            dataset = dataset.shuffle(min(_SHUFFLE_BUFFER, self.count), shuffle_seed)
        return dataset.map(lambda example: (example["image"], tf.cast(example["label"], tf.int32)))

    def read(self, key: tf.Tensor) -> tf.Tensor:
        """As `Split.read`: they have been read."""
        return key

    def name(self, key: bytes) -> str:
        """As `Split.name`."""
        return f"one of {len(key)} bytes in {self._builder.info.full_name}, {self._split}"
