import numpy as np
import pytest
import tensorflow as tf

from tfprune.training.augment import draws_for, normalize, random_crop_and_flip

PAD, COUNT = 4, 2500


def candidates(images):
    """(vertical, horizontal, flipped) -> what the whole batch would be with these draws, by plain slicing."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    for top in range(2 * PAD + 1):
        for left in range(2 * PAD + 1):
            crop = padded[:, top : top + height, left : left + width]
            yield (top, left, False), crop
            yield (top, left, True), crop[:, :, ::-1]


def draw_of_each(images, augmented):
    """What was drawn for every image, found by trying all 162 possibilities."""
    found = [None] * len(images)
    for draw, candidate in candidates(images):
        for index in np.flatnonzero((candidate == augmented).all(axis=(1, 2, 3))):
            assert found[index] is None, "an image that shows nothing: two draws give the same"
            found[index] = draw
    return found


@pytest.fixture(scope="module")
def many():
    images = np.random.default_rng(0).integers(1, 256, (COUNT, 9, 11, 2), np.uint8)  # not square
    augmented = random_crop_and_flip(tf.constant(images), draws_for(tf.constant(5), tf.constant(17), COUNT))
    assert augmented.dtype == tf.uint8
    assert augmented.shape == images.shape
    return draw_of_each(images, augmented.numpy())


def test_every_output_is_a_crop_of_the_padded_image_flipped_or_not(many):
    assert None not in many


def test_all_offsets_occur_with_both_flips(many):
    assert len(set(many)) == 9 * 9 * 2


def test_about_half_of_the_images_are_flipped_and_offsets_are_uniform(many):
    top, left, flipped = np.array(many).T
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / COUNT**0.5
    for offsets in (top, left):
        counts = np.bincount(offsets, minlength=9)
        expected = COUNT / 9
        assert ((counts - expected) ** 2 / expected).sum() < 31.8  # chi squared, 8 degrees of freedom, p = 1e-4
    assert abs(np.corrcoef(top, left)[0, 1]) < 4 / COUNT**0.5
    assert abs(np.corrcoef(top, flipped)[0, 1]) < 4 / COUNT**0.5


def test_images_of_the_real_size_are_cropped_alike():
    images = np.random.default_rng(1).integers(1, 256, (40, 32, 32, 1), np.uint8)
    augmented = random_crop_and_flip(images, draws_for(tf.constant(0), tf.constant(0), 40)).numpy()
    assert None not in draw_of_each(images, augmented)


def test_the_extreme_draws_stay_within_the_padding():
    images = np.arange(1, 1 + 3 * 32 * 32, dtype=np.float32).reshape(3, 32, 32, 1)
    largest = np.nextafter(np.float32(1), np.float32(0))
    draws = np.float32([[0, 0, 0.5], [largest, largest, 0.5], [0, largest, 0.0]])
    found = draw_of_each(images, random_crop_and_flip(images, tf.constant(draws)).numpy())
    assert found == [(0, 0, False), (8, 8, False), (0, 8, True)]


def test_the_same_seed_and_step_draw_the_same():
    first = draws_for(tf.constant(3), tf.constant(40), 64).numpy()
    tf.random.uniform((5,))  # what else was drawn does not matter
    np.testing.assert_array_equal(first, draws_for(tf.constant(3), tf.constant(40), 64).numpy())
    traced = tf.function(lambda seed, step: draws_for(seed, step, 64))
    np.testing.assert_array_equal(first, traced(tf.constant(3), tf.constant(40)).numpy())


def test_another_seed_or_step_draws_other_numbers():
    draws = [draws_for(tf.constant(a), tf.constant(b), 64).numpy() for a, b in ((3, 40), (3, 41), (4, 40), (40, 3))]
    for index, one in enumerate(draws):
        assert one.min() >= 0
        assert one.max() < 1
        for other in draws[index + 1 :]:
            assert not np.isclose(one, other).any(axis=1).all()
            assert (one != other).mean() > 0.99


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_equals_numpy(channels):
    generator = np.random.default_rng(2)
    images = generator.integers(0, 256, (5, 32, 32, channels), np.uint8)
    mean, std = generator.uniform(0.1, 0.6, channels), generator.uniform(0.1, 0.4, channels)
    received = normalize(tf.constant(images), tuple(mean.tolist()), tuple(std.tolist()))
    assert received.dtype == tf.float32
    np.testing.assert_allclose(received.numpy(), (images.astype(np.float64) / 255 - mean) / std, atol=2e-6)
