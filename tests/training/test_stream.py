import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers import randomize
from tests.image_folders import write_classes
from tests.processes import finish, last_json, start, start_workers
from tfprune.data import load
from tfprune.data.imagenet import MEAN, STD
from tfprune.data.streamed import StreamedData
from tfprune.errors import DataError, UsageError
from tfprune.experiments.run import main
from tfprune.training.loop import Trainer, TrainingConfig
from tfprune.training.schedules import Schedule
from tfprune.training.source import make_sources

STRATEGY = tf.distribute.get_strategy()
TRAIN, TEST = {"n01": 9, "n02": 7, "n03": 6}, {"n01": 4, "n02": 4, "n03": 3}
SIZE, BATCH = 16, 4


def write_imagenet(root):
    write_classes(root / "train", TRAIN, ".JPEG")
    write_classes(root / "val", TEST, ".JPEG", first=100)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """22 + 11 images in the layout of ImageNet."""
    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def data(root):
    return load("imagenet", root, image_size=SIZE)


def batches(source, seed=0, epoch=0):
    """Images, labels and counts of every batch of an epoch, as arrays."""
    iterator = source.epoch(seed, epoch)
    return [[part.numpy() for part in source.take(iterator, index)] for index in range(source.steps)]


def sources(data, batch=BATCH):
    train, evaluated = make_sources(data, batch, STRATEGY)
    return train, evaluated["val"]


def network(classes=3, size=SIZE):
    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name="bn")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return randomize(keras.Model(inputs, layers.Dense(classes, name="logits")(x)))


# What is streamed.


def test_imagenet_is_described_without_reading_an_image(data):
    assert isinstance(data, StreamedData)
    assert (data.name, data.num_classes, data.train_count, data.test_count) == ("imagenet", 3, 22, 11)
    assert data.input_shape == (SIZE, SIZE, 3)
    assert (data.mean, data.std) == (MEAN, STD)


def test_images_are_of_224_pixels_unless_told_otherwise(root):
    data = load("imagenet", root)
    assert data.input_shape == (224, 224, 3)
    assert batches(sources(data)[1])[0][0].shape == (4, 224, 224, 3)


def test_test_images_come_in_order_from_the_centre_and_the_last_batch_is_filled_up(data, root):
    _, test = sources(data)
    found = batches(test)
    assert test.steps == len(found) == 3
    images, labels, counts = (np.concatenate(parts) for parts in zip(*found, strict=True))
    assert (images.dtype, images.shape) == (np.uint8, (12, SIZE, SIZE, 3))
    np.testing.assert_array_equal(labels, [0] * 4 + [1] * 4 + [2] * 3 + [0])
    np.testing.assert_array_equal(counts, [1] * 11 + [0])
    paths = sorted((root / "val").rglob("*.JPEG"))
    for image, path in zip(images, [*paths, paths[0]], strict=True):
        whole = tf.io.decode_jpeg(path.read_bytes()).numpy()
        side = round(40 * 224 / 256)
        top, left = (40 - side) // 2, (48 - side) // 2
        centre = whole[top : top + side, left : left + side]
        expected = tf.image.resize(centre, (SIZE, SIZE), antialias=True).numpy()
        np.testing.assert_allclose(image, expected, atol=0.51)


def test_training_uses_every_image_at_most_once_an_epoch_and_none_is_left_out_for_good(data):
    seen = []
    for epoch in range(6):
        keys = [key.numpy() for key, _ in sources(data)[0]._keys(3, epoch)]
        assert len(keys) == len(set(keys)) == 20
        seen += keys
    assert len(set(seen)) == 22


def test_labels_belong_to_their_images(data):
    for key, label in data.train.keys(0, 0):
        assert int(label) == ["n01", "n02", "n03"].index(key.numpy().decode().split("/")[-2])


def test_the_same_seed_and_epoch_give_the_same_batches_to_the_bit(data):
    one, other = sources(data)[0], sources(data)[0]
    first = batches(one, seed=5, epoch=2)
    batches(one, seed=5, epoch=3)  # what was read before does not matter
    for again in (batches(one, seed=5, epoch=2), batches(other, seed=5, epoch=2)):
        for expected, received in zip(first, again, strict=True):
            for left, right in zip(expected, received, strict=True):
                np.testing.assert_array_equal(left, right)


def test_another_seed_or_epoch_gives_other_orders_and_crops(data):
    train = sources(data)[0]
    images = [np.concatenate([batch[0] for batch in batches(train, *which)]) for which in ((0, 0), (0, 1), (1, 0))]
    rows = [{image.tobytes() for image in one} for one in images]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]


def test_a_crop_is_a_part_of_its_image_flipped_or_not(tmp_path):
    # Red grows to the right and green downwards, so that the corners of a crop tell where it was.
    across, down = np.meshgrid(np.arange(240), np.arange(200))
    image = np.stack([across, down, np.zeros_like(across)], -1).astype(np.uint8)
    for split, count in (("train", 100), ("val", 1)):
        for name in ("a", "b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.png").write_bytes(tf.io.encode_png(image).numpy())
    train, _ = sources(load("imagenet", tmp_path, image_size=64), batch=100)
    images = np.concatenate([batch[0] for epoch in range(3) for batch in batches(train, 0, epoch)]).astype(float)
    assert len(images) == 600
    assert len({image.tobytes() for image in images}) > 590  # the same crop does not come again in every epoch
    left, right = images[:, :, 0, 0].mean(1), images[:, :, -1, 0].mean(1)
    top, bottom = images[:, 0, :, 1].mean(1), images[:, -1, :, 1].mean(1)
    flipped = left > right
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / 600**0.5
    assert (bottom > top).all()  # never upside down
    widths, heights = np.abs(right - left) * 64 / 63, (bottom - top) * 64 / 63
    areas = widths * heights / (200 * 240)
    assert 0.07 < areas.min() < 0.12
    assert 0.85 < areas.max() < 1.02
    ratios = widths / heights
    assert 0.7 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.4
    assert np.minimum(left, right).min() < 5
    assert np.maximum(left, right).max() > 235


def test_train_examples_are_chosen_by_class(root):
    data = load("imagenet", root, train_examples=9, image_size=SIZE)
    labels = [int(label) for _, label in data.train.keys(None, 0)]
    assert labels == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.test_count == 11
    with pytest.raises(DataError, match="train_examples is 23"):
        load("imagenet", root, train_examples=23)


def test_a_sample_is_seen_as_in_a_test_and_always_the_same(data):
    images, labels = data.normalized_sample(6)
    assert (images.dtype, images.shape, labels.dtype) == (np.float32, (6, SIZE, SIZE, 3), np.int32)
    np.testing.assert_array_equal(data.normalized_sample(6)[0], images)
    everything, labels = data.normalized_sample(100)
    assert np.bincount(labels).tolist() == [9, 7, 6]
    assert len({image.tobytes() for image in everything}) == 22
    assert abs((everything * STD + MEAN).mean() - 0.5) < 0.1


# Training on it.


def test_training_on_a_stream_learns_repeats_itself_and_is_traced_once(data):
    trainer = Trainer(network(), data, TrainingConfig(batch_size=BATCH), STRATEGY)
    weights = network().get_weights()
    whole = trainer.run(weights, 3, Schedule(0.05), seed=1)
    assert trainer.run(weights, 2, Schedule(0.05), seed=1).history == whole.history[:2]
    again = Trainer(network(), data, TrainingConfig(batch_size=BATCH), STRATEGY)
    assert again.run(weights, 3, Schedule(0.05), seed=1).history == whole.history
    assert trainer._compiled.train.experimental_get_tracing_count() == 1
    assert trainer._compiled.test.experimental_get_tracing_count() == 1


def test_test_accuracy_is_that_of_the_plain_model(data):
    trainer = Trainer(network(), data, TrainingConfig(batch_size=BATCH), STRATEGY)
    result = trainer.run(network().get_weights(), 1, Schedule(0.05), seed=1)
    plain = network()
    plain.set_weights(result.weights)
    images, labels, counts = (np.concatenate(parts) for parts in zip(*batches(sources(data)[1]), strict=True))
    outputs = plain(((images / 255 - MEAN) / STD).astype(np.float32), training=False)
    hits = np.argmax(outputs, -1) == labels
    assert result.history[-1]["val_accuracy"] == pytest.approx(hits[counts > 0].mean(), abs=1e-6)
    losses = keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True).numpy()
    assert result.history[-1]["val_loss"] == pytest.approx(losses[counts > 0].mean(), abs=1e-4)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_image_is_named_when_it_is_reached(tmp_path, split, damage):
    write_imagenet(tmp_path)
    data = load("imagenet", tmp_path, image_size=SIZE)
    damaged = tmp_path / split / "n02" / "002.JPEG"
    if damage == "missing":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:300])
    trainer = Trainer(network(), data, TrainingConfig(batch_size=BATCH), STRATEGY)
    with pytest.raises(DataError) as error:
        trainer.run(network().get_weights(), 6, Schedule(0.01), seed=0)
    assert str(damaged) in str(error.value)
    assert ("missing" in str(error.value)) == (damage == "missing")
    assert "\n" not in str(error.value)


def test_a_batch_larger_than_the_stream_is_refused(data):
    with pytest.raises(UsageError, match="22 training examples of imagenet"):
        Trainer(network(), data, TrainingConfig(batch_size=23), STRATEGY)


# What is wrong with the folder.


def test_images_that_are_not_split_are_refused(tmp_path):
    write_classes(tmp_path, TRAIN)
    with pytest.raises(DataError, match="val/<class>"):
        load("imagenet", tmp_path)


def test_validation_images_without_class_folders_are_refused(tmp_path):
    # As the archive of ImageNet has them.
    write_classes(tmp_path / "train", TRAIN)
    write_classes(tmp_path, {"val": 3})
    with pytest.raises(DataError, match=r"val' holds 3 images .* no class folders"):
        load("imagenet", tmp_path)


# tensorflow-datasets, or a fake of it: the parts of its interface that are used, on images in memory.


class FakeBuilder:
    prepared = True

    def __init__(self, name):
        assert name == "imagenet2012"
        images = {"train": list(range(23)), "validation": list(range(100, 109))}
        self.images = {split: [self.example(number) for number in numbers] for split, numbers in images.items()}
        splits = {split: types.SimpleNamespace(num_examples=len(examples)) for split, examples in self.images.items()}
        self.info = types.SimpleNamespace(
            full_name="imagenet2012/fake", splits=splits, features={"label": types.SimpleNamespace(num_classes=5)}
        )

    @staticmethod
    def example(number):
        image = np.full((20, 24, 3), number, np.uint8)
        return {"image": tf.io.encode_png(image), "label": tf.constant(number % 5, tf.int64)}

    def download_and_prepare(self):
        if not self.prepared:
            raise AssertionError("Manual directory\n  does not exist")

    def as_dataset(self, *, split, shuffle_files, decoders, read_config):
        assert isinstance(decoders["image"], FakeSkipDecoding)
        assert shuffle_files == (read_config.shuffle_seed is not None)
        name, _, count = split.partition("[:")
        examples = self.images[name][: int(count.rstrip("]")) if count else None]
        parts = {key: [example[key] for example in examples] for key in ("image", "label")}
        return tf.data.Dataset.from_tensor_slices(parts)


class FakeSkipDecoding:
    pass


class FakeReadConfig(types.SimpleNamespace):
    pass


@pytest.fixture
def fake_tfds(monkeypatch):
    module = types.ModuleType("tensorflow_datasets")
    module.builder, module.ReadConfig = FakeBuilder, FakeReadConfig
    module.decode = types.SimpleNamespace(SkipDecoding=FakeSkipDecoding)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)


def test_tensorflow_datasets_is_streamed_and_shuffled_by_seed_and_epoch(fake_tfds):
    data = load("imagenet", image_size=SIZE)
    assert (data.train_count, data.test_count, data.num_classes) == (23, 9, 5)
    assert data.content == "imagenet2012/fake"
    train, test = sources(data)
    orders = {}
    for which in ((0, 0), (0, 1), (1, 0), (0, 0)):
        found = batches(train, *which)
        numbers = np.concatenate([batch[0][:, 0, 0, 0] for batch in found])
        np.testing.assert_array_equal(np.concatenate([batch[1] for batch in found]), numbers % 5)
        assert len(set(numbers)) == 20
        assert set(numbers) <= set(range(23))
        assert orders.setdefault(which, numbers.tolist()) == numbers.tolist()
    assert len({tuple(order) for order in orders.values()}) == 3
    images, _, counts = (np.concatenate(parts) for parts in zip(*batches(test), strict=True))
    assert images[:, 0, 0, 0].tolist() == [*range(100, 109), 100, 101, 102]
    assert counts.tolist() == [1] * 9 + [0] * 3


def test_a_subset_of_tensorflow_datasets_is_its_beginning(fake_tfds):
    data = load("imagenet", image_size=SIZE, train_examples=7)
    assert data.train_count == 7
    found = np.concatenate([batch[0][:, 0, 0, 0] for batch in batches(sources(data, batch=7)[0])])
    assert sorted(found) == list(range(7))
    with pytest.raises(DataError, match="5 to 23"):
        load("imagenet", train_examples=24)


def test_a_damaged_image_of_tensorflow_datasets_is_told(fake_tfds, monkeypatch):
    data = load("imagenet", image_size=SIZE)
    monkeypatch.setitem(data.train._builder.images["train"][0], "image", tf.constant(b"damaged"))
    trainer = Trainer(network(5), data, TrainingConfig(batch_size=23), STRATEGY)
    with pytest.raises(DataError, match=r"7 bytes in imagenet2012/fake, train"):
        trainer.run(network(5).get_weights(), 1, Schedule(0.01), seed=0)


def test_without_tensorflow_datasets_the_command_to_install_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"pip install 'tfprune\[tfds\]'.*data_dir"):
        load("imagenet")


def test_a_data_set_that_is_not_prepared_is_told_in_one_line(fake_tfds, monkeypatch):
    monkeypatch.setattr(FakeBuilder, "prepared", False)
    with pytest.raises(DataError, match=r"Manual directory does not exist.*data_dir"):
        load("imagenet")


# From the command line.

SMALL = ("--model=resnet20", "--width=.25", "--method=uniform", "--regimes=scratch_b", "--noexport")


@pytest.mark.slow
def test_imagenet_goes_the_whole_way_from_a_folder(tmp_path, root, capsys):
    argv = ["--dataset=imagenet", f"--data_dir={root}", "--image_size=16", "--epochs=3", "--batch_size=4", *SMALL]
    assert main([*argv, f"--workdir={tmp_path / 'w'}"]) == 0
    shown = capsys.readouterr().out
    for word in ("imagenet: 22 training and 11 test images of 16x16x3, 3 classes; streamed", "capped at 2"):
        assert word in shown
    assert "0.1, 0.01 from 1, 0.001 from 2" in shown
    rows = (tmp_path / "w" / "results.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 4


@pytest.mark.slow
def test_smoke_runs_any_command_for_imagenet_without_a_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert main(["--smoke", "--dataset=imagenet", *SMALL, f"--workdir={tmp_path}"]) == 0
    rows = (tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 4


# Several replicas and workers.

SHARED = """
from pathlib import Path
def record(strategy, folder):
    import tensorflow as tf
    from tfprune.data import load
    from tfprune.training.source import make_sources
    report = []
    train, evaluated = make_sources(load("imagenet", folder, image_size=16), 4, strategy)
    for source in (train, evaluated["val"]):
        iterator = source.epoch(7, 3)
        for index in range(source.steps):
            parts = [strategy.experimental_local_results(part) for part in source.take(iterator, index)]
            images = [tf.reduce_sum(tf.cast(part, tf.int64), (1, 2, 3)) for part in parts[0]]
            report.append([np.concatenate(part).tolist() for part in (images, *parts[1:])])
    return report

def history(strategy, folder):
    import keras
    from keras import layers
    from tests.helpers import randomize
    from tfprune.data import load
    from tfprune.training.loop import Trainer, TrainingConfig
    from tfprune.training.schedules import Schedule
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Conv2D(4, 3)(inputs)))
    model = randomize(keras.Model(inputs, layers.Dense(3, name="logits")(x)), 1)
    trainer = Trainer(model, load("imagenet", folder, image_size=16), TrainingConfig(batch_size=4), strategy)
    return trainer.run(model.get_weights(), 2, Schedule(0.05), 5).history
"""
REPLICAS = (
    SHARED
    + """
two_devices()
from tfprune.training.distribution import make_strategy
strategies = [make_strategy(name) for name in ("one_device", "mirrored")]
print(json.dumps([[record(s, sys.argv[1]), history(s, sys.argv[1])] for s in strategies]))
"""
)
WORKER = (
    SHARED
    + """
from tfprune.training.distribution import make_strategy
strategy = make_strategy("multi_worker")
print(json.dumps([record(strategy, sys.argv[1]), history(strategy, sys.argv[1])]))
"""
)


@pytest.mark.slow
def test_replicas_and_workers_share_the_batches_of_one_device(tmp_path, root):
    workers = start_workers(tmp_path, "worker", WORKER, str(root))
    (one, mirrored), *shares = map(last_json, finish(start(tmp_path, "replicas", REPLICAS, str(root)), *workers))
    assert len(one[0]) == 5 + 3
    assert mirrored[0] == one[0]
    together = [[a + b for a, b in zip(*parts, strict=True)] for parts in zip(shares[0][0], shares[1][0], strict=True)]
    assert together == one[0]
    for history in (mirrored[1], shares[0][1], shares[1][1]):
        for expected, received in zip(one[1], history, strict=True):
            assert received == pytest.approx(expected, abs=1e-5)
