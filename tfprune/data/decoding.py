"""From the bytes of an image file to pixels, by TensorFlow."""

from __future__ import annotations

import tensorflow as tf

from tfprune.errors import DataError

CHANNELS = 3
TEST_SHARE = 224 / 256  # of the shorter side: ImageNet is tested on the centre 224 of 256 pixels
# What Python or TensorFlow raises for an image that cannot be read or decoded.
READ_ERRORS = (
    OSError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
)


def decode(content: tf.Tensor) -> tf.Tensor:
    """Decodes a PNG, JPEG, BMP or GIF (its first frame) into uint8 (height, width, 3), grey ones too.

    Of a BMP with a palette of colours, TensorFlow takes the indices for shades of grey.

    Raises:
        tf.errors.InvalidArgumentError: If it is none of these, or damaged.
    """
    image = tf.io.decode_image(content, channels=CHANNELS, expand_animations=False)
    return tf.ensure_shape(image, (None, None, CHANNELS))


def resize_crop(image: tf.Tensor, box: tf.Tensor, size: int) -> tf.Tensor:
    """Cuts out a box and resizes it.

    Args:
        image: uint8 (height, width, 3).
        box: int32 (4,): top, left, height, width, within the image.
        size: Height and width of the result.

    Returns:
        uint8 (size, size, 3), bilinear with antialiasing.
    """
    crop = tf.slice(image, [box[0], box[1], 0], [box[2], box[3], CHANNELS])
    # Antialiasing, because most photographs are far larger than what they are resized to.
    resized = tf.image.resize(crop, (size, size), antialias=True)
    return tf.ensure_shape(tf.cast(tf.round(resized), tf.uint8), (size, size, CHANNELS))


def center_box(image: tf.Tensor, share: float) -> tf.Tensor:
    """The square in the middle of an image whose side is this share of the image's shorter side.

    To cut it out and resize it is to resize the shorter side to size / share and to crop the centre to size,
    without computing what is cropped away.

    Args:
        image: (height, width, channels).
        share: In (0, 1].

    Returns:
        int32 (4,): top, left, height, width.
    """
    sides = tf.shape(image)[:2]
    side = tf.cast(tf.round(share * tf.cast(tf.reduce_min(sides), tf.float32)), tf.int32)
    side = tf.maximum(side, 1)
    return tf.concat([(sides - side) // 2, [side, side]], 0)


def unreadable(name: str, error: Exception) -> DataError:
    """The error for an image, by its path or other name, for one of the `READ_ERRORS`."""
    if isinstance(error, tf.errors.InvalidArgumentError):
        reason = "it is damaged, or no PNG, JPEG, BMP or GIF"
    else:
        reason = getattr(error, "strerror", None) or "it is missing, or not yours to read"
    return DataError(f"The image '{name}' cannot be read ({reason}): replace it, or remove it.")
