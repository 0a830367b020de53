"""Folders of small images, written by the tests that read them."""

import numpy as np
import tensorflow as tf

ENCODERS = {".png": tf.io.encode_png, ".jpg": tf.io.encode_jpeg, ".JPEG": tf.io.encode_jpeg}


def picture(number, height=40, width=48, channels=3):
    """A smooth colour gradient that depends on the number: uint8 (height, width, channels)."""
    generator = np.random.default_rng(number)
    corners = generator.integers(0, 256, (2, 2, channels)).astype(np.float32)
    return np.uint8(tf.image.resize(corners, (height, width)).numpy().round())


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ENCODERS[path.suffix](image).numpy())
    return path


def write_classes(root, counts, suffix=".png", first=0, **shape):
    """Writes so many images for every class; returns {path: image}."""
    written = {}
    for name, count in counts.items():
        for index in range(count):
            image = picture(first + len(written), **shape)
            written[write_image(root / name / f"{index:03d}{suffix}", image)] = image
    return written
