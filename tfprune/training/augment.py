"""Augmentation and normalisation.

What is random is a function of uniform numbers that the caller draws, stateless, from the seed and the place in
the training. So a batch depends on nothing else: not on the device, the number of replicas, or what was trained
before.
"""

from __future__ import annotations

import math

import tensorflow as tf

_PAD = 4  # pixels on each side, as the paper pads CIFAR
_LARGEST_PADDED = 32  # larger images are augmented as the paper augments ImageNet
_AREAS = (0.08, 1.0)
_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10  # at an area and a ratio that fit into the image
CROP_DRAWS = 2 * _ATTEMPTS + 2


def augment(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Augments a batch by the paper's recipe for images of their size.

    Args:
        images: (batch, height, width, channels), uint8.
        draws: float (batch, `draws_per_image(height, width)`), uniform in [0, 1).

    Returns:
        Images of the same shape: uint8 up to 32x32, float32 from 0 to 255 above.
    """
    if max(images.shape[1:3]) <= _LARGEST_PADDED:
        return random_crop_and_flip(images, draws)
    return random_resized_crop_and_flip(images, draws)


def draws_per_image(height: int, width: int) -> int:
    """How many random numbers `augment` needs for an image."""
    return 3 if max(height, width) <= _LARGEST_PADDED else CROP_DRAWS + 1


def random_crop_and_flip(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Pads by 4 zero pixels, crops at random to the old size and flips half of the images left to right.

    Args:
        images: (batch, height, width, channels) of any dtype.
        draws: float (batch, 3), uniform in [0, 1): vertical offset, horizontal offset, flip.

    Returns:
        The augmented images, of the same shape and dtype.
    """
    height, width = images.shape[1:3]
    padded = tf.pad(images, ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    offsets = tf.cast(draws[:, :2] * (2 * _PAD + 1), tf.int32)
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    columns = tf.where(draws[:, 2:] < 0.5, columns[:, ::-1], columns)
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(cropped, columns, axis=2, batch_dims=1)


def random_resized_crop_and_flip(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Cuts out a random box, resizes it to the old size and flips half of the images left to right.

    Args:
        images: (batch, height, width, channels) of any dtype.
        draws: float (batch, `CROP_DRAWS` + 1), uniform in [0, 1): those of the box, then the flip.

    Returns:
        The augmented images, float32 of the same shape and range; bilinear.
    """
    height, width = images.shape[1:3]
    boxes = tf.cast(random_boxes(draws[:, :-1], height, width), tf.float32)
    top, left, high, wide = tf.unstack(boxes, axis=1)
    right = left + wide - 1
    flip = draws[:, -1] < 0.5
    # TensorFlow mirrors a box whose left edge is given as the right one.
    corners = [top, tf.where(flip, right, left), top + high - 1, tf.where(flip, left, right)]
    scale = [max(height - 1, 1), max(width - 1, 1)] * 2
    return tf.image.crop_and_resize(
        tf.cast(images, tf.float32), tf.stack(corners, 1) / scale, tf.range(tf.shape(images)[0]), (height, width)
    )


def random_boxes(draws: tf.Tensor, height: tf.Tensor | int, width: tf.Tensor | int) -> tf.Tensor:
    """Draws boxes of 8 to 100 % of an image's area and a ratio of 3/4 to 4/3, as ImageNet is trained with.

    Where none of ten attempts fits into the image, the box is the largest in the middle with such a ratio.

    Args:
        draws: float (n, `CROP_DRAWS`), uniform in [0, 1): ten areas, ten ratios, vertical and horizontal place.
        height: Of the images, in pixels.
        width: Of the images, in pixels.

    Returns:
        int32 (n, 4): top, left, height, width, within the image.
    """
    height, width = tf.cast(height, tf.int32), tf.cast(width, tf.int32)
    pixels = tf.cast(height * width, tf.float32)
    areas = pixels * (_AREAS[0] + (_AREAS[1] - _AREAS[0]) * draws[:, :_ATTEMPTS])
    low, high = (math.log(ratio) for ratio in _RATIOS)
    ratios = tf.exp(low + (high - low) * draws[:, _ATTEMPTS : 2 * _ATTEMPTS])
    heights, widths = _round(tf.sqrt(areas / ratios)), _round(tf.sqrt(areas * ratios))
    fits = (heights >= 1) & (widths >= 1) & (heights <= height) & (widths <= width)
    first = tf.argmax(tf.cast(fits, tf.int32), axis=1, output_type=tf.int32)[:, tf.newaxis]
    any_fits = tf.reduce_any(fits, axis=1)

    def chosen(sizes: tf.Tensor, size: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        largest = tf.maximum(tf.minimum(size, _round(tf.cast(other, tf.float32) * _RATIOS[1])), 1)
        return tf.where(any_fits, tf.gather(sizes, first, batch_dims=1)[:, 0], largest)

    def place(free: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
        anywhere = tf.minimum(tf.cast(draw * tf.cast(free + 1, tf.float32), tf.int32), free)
        return tf.where(any_fits, anywhere, free // 2)

    heights, widths = chosen(heights, height, width), chosen(widths, width, height)
    tops, lefts = place(height - heights, draws[:, -2]), place(width - widths, draws[:, -1])
    return tf.stack([tops, lefts, heights, widths], axis=1)


def _round(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(values), tf.int32)


def draws_for(seed: tf.Tensor, step: tf.Tensor, batch_size: int, per_image: int = 3) -> tf.Tensor:
    """(batch, per_image) uniform random numbers for one step of a run with this seed."""
    return tf.random.stateless_uniform((batch_size, per_image), tf.stack([seed, step]))


def normalize(images: tf.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> tf.Tensor:
    """(pixel / 255 - mean) / std per channel, as float32."""
    mean, std = tf.constant(mean, tf.float32), tf.constant(std, tf.float32)
    return tf.cast(images, tf.float32) * (1.0 / (255.0 * std)) - mean / std
