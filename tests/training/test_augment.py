import numpy as np
import pytest
import tensorflow as tf

from tfprune.training.augment import (
    CROP_DRAWS,
    augment,
    draws_for,
    draws_per_image,
    normalize,
    random_boxes,
    random_crop_and_flip,
    random_resized_crop_and_flip,
)

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


# Random resized crops.


def boxes(height, width, count=4000, seed=1):
    draws = draws_for(tf.constant(seed), tf.constant(0), count, CROP_DRAWS)
    top, left, high, wide = random_boxes(draws, height, width).numpy().T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + high <= height).all()
    assert (left + wide <= width).all()
    return top, left, high, wide


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (350, 350)])
def test_boxes_have_areas_and_ratios_within_the_papers_range(height, width):
    _, _, high, wide = boxes(height, width)
    areas, ratios = high * wide / (height * width), wide / high
    assert 0.078 < areas.min() < 0.09
    assert 0.9 < areas.max() <= 1
    assert 0.74 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.35
    assert abs(np.log(ratios[areas < 0.4]).mean()) < 0.02  # where every ratio fits, its logarithm is uniform
    assert abs(np.quantile(areas[areas < 0.4], 0.5) - 0.24) < 0.02


def test_boxes_lie_anywhere():
    top, left, high, wide = boxes(300, 400)
    for begin, size, whole in ((top, high, 300), (left, wide, 400)):
        free = whole - size
        places = begin[free > 50] / free[free > 50]
        assert places.min() < 0.01
        assert places.max() > 0.99
        assert abs(places.mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (1, 1, (0, 0, 1, 1)), (1, 50, (0, 24, 1, 1))],
)
def test_an_image_that_is_too_long_is_cropped_in_the_middle(height, width, expected):
    # 8 % of it are longer than the shorter side allows.
    assert set(zip(*(part.tolist() for part in boxes(height, width, 50)), strict=True)) == {expected}


def test_the_extreme_draws_give_boxes_within_the_image():
    largest = np.nextafter(np.float32(1), np.float32(0))
    for draw in (0, 0.5, largest):
        top, left, high, wide = random_boxes(tf.fill((1, CROP_DRAWS), np.float32(draw)), 224, 224).numpy()[0]
        assert min(top, left) >= 0
        assert max(top + high, left + wide) <= 224


def test_large_images_are_resized_crops_flipped_half_of_the_time():
    across, down = np.meshgrid(np.arange(64), np.arange(64))
    image = np.stack([3 * across, 3 * down], -1).astype(np.uint8)
    images = tf.constant(np.repeat(image[np.newaxis], COUNT, 0))
    draws = draws_for(tf.constant(5), tf.constant(17), COUNT, draws_per_image(64, 64))
    augmented = augment(images, draws)
    assert augmented.dtype == tf.float32
    assert augmented.shape == images.shape
    augmented = augmented.numpy() / 3
    # The corners of the box are the corners of the crop.
    tops, lefts, high, wide = random_boxes(draws[:, :-1], 64, 64).numpy().T
    left, right = augmented[:, 0, 0, 0], augmented[:, 0, -1, 0]
    flipped = left > right
    np.testing.assert_allclose(np.minimum(left, right), lefts, atol=1e-3)
    np.testing.assert_allclose(np.maximum(left, right), lefts + wide - 1, atol=1e-3)
    np.testing.assert_allclose(augmented[:, 0, 0, 1], tops, atol=1e-3)
    np.testing.assert_allclose(augmented[:, -1, 0, 1], tops + high - 1, atol=1e-3)
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / COUNT**0.5
    np.testing.assert_array_equal(flipped, draws[:, -1].numpy() < 0.5)


def test_the_whole_image_is_the_image():
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 1), np.uint8)
    draws = np.zeros((2, CROP_DRAWS + 1), np.float32)
    draws[:, :10], draws[:, 10:20], draws[:, -1] = 1, 0.5, [0.6, 0.4]
    whole, mirrored = random_resized_crop_and_flip(tf.constant(images), tf.constant(draws)).numpy()
    np.testing.assert_allclose(whole, images[0], atol=1e-3)
    np.testing.assert_allclose(mirrored, images[1, :, ::-1], atol=1e-3)


def test_images_up_to_32_pixels_are_padded_and_larger_ones_are_not():
    assert draws_per_image(32, 32) == 3
    assert draws_per_image(33, 32) == draws_per_image(32, 33) == CROP_DRAWS + 1
    images = np.random.default_rng(1).integers(1, 256, (40, 32, 32, 1), np.uint8)
    draws = draws_for(tf.constant(0), tf.constant(0), 40)
    np.testing.assert_array_equal(augment(images, draws), random_crop_and_flip(images, draws))


# Random numbers.


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
