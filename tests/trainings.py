"""What short trainings share: small data, one device, and the steps of gates by hand."""

import numpy as np
import tensorflow as tf

from tfprune.data.image_data import ImageData

STRATEGY = tf.distribute.get_strategy()
CLASSES = 3
MEAN, STD = (0.4,), (0.25,)


def make_data(train=44, test=30, seed=0, channels=1):
    """Images with a brightness by class, under noise; the first pixel of a training image is its number."""
    generator = np.random.default_rng(seed)
    splits = []
    for count in (train, test):
        labels = generator.integers(0, CLASSES, count).astype(np.int32)
        pixels = 40 + 60 * labels[:, None, None, None] + generator.normal(0, 30, (count, 32, 32, channels))
        splits += [np.clip(pixels, 0, 255).astype(np.uint8), labels]
    splits[0][:, 0, 0, 0] = np.arange(train)
    return ImageData("made", *splits, CLASSES, MEAN * channels, STD * channels)


def proximal_steps(gate, gradients, rates, strength, momentum):
    """Equations 10 to 12 of the source, and the clip of its code, in float64."""
    gate, velocity, seen = np.float64(gate), np.float64(0), []
    for gradient, rate in zip(gradients, rates, strict=True):
        z = gate - rate * gradient
        z = np.sign(z) * max(abs(z) - rate * strength, 0)
        velocity = z - gate + momentum * velocity
        gate = max(z + momentum * velocity, 0)
        seen.append(gate)
    return seen
