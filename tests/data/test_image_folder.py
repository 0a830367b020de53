import csv
import struct

import numpy as np
import pytest
import tensorflow as tf

from tests.commands import refused
from tests.image_folders import picture, write_classes, write_image
from tfprune.data import folder as folder_module
from tfprune.data import load
from tfprune.data.decoding import center_box, decode
from tfprune.data.image_data import ImageData
from tfprune.data.image_files import find_splits
from tfprune.errors import DataError, UsageError
from tfprune.experiments.run import main

COUNTS = {"cat": 10, "dog": 15, "eel": 5}


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def load_folder(root, **arguments):
    return load("folder", root, **arguments)


# What is read.


@pytest.mark.parametrize("name", ["test", "val"])
def test_train_and_test_folders_are_taken_as_they_are(tmp_path, name):
    train = write_classes(tmp_path / "train", COUNTS, height=32, width=32)
    test = write_classes(tmp_path / name, {"cat": 2, "eel": 3}, first=100, height=32, width=32)
    data = load_folder(tmp_path)
    assert isinstance(data, ImageData)
    assert (data.name, data.num_classes, data.input_shape) == ("folder", 3, (32, 32, 3))
    np.testing.assert_array_equal(data.train_images, list(train.values()))
    np.testing.assert_array_equal(data.test_images, list(test.values()))
    np.testing.assert_array_equal(data.train_labels, np.repeat([0, 1, 2], [10, 15, 5]))
    np.testing.assert_array_equal(data.test_labels, [0, 0, 2, 2, 2])
    assert name in data.note


def test_mean_and_standard_deviation_are_those_of_the_training_images(tmp_path):
    write_classes(tmp_path / "train", COUNTS)
    write_classes(tmp_path / "test", {"cat": 2}, first=100)
    data = load_folder(tmp_path)
    scaled = data.train_images.astype(np.float64) / 255
    np.testing.assert_allclose(data.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, scaled.std((0, 1, 2)), rtol=1e-9)


def test_a_channel_that_is_the_same_everywhere_can_be_normalised(tmp_path):
    for name in ("a", "b"):
        for index in range(3):
            image = picture(index, 32, 32)
            image[..., 2] = 7
            write_image(tmp_path / name / f"{index}.png", image)
    assert load_folder(tmp_path).std[2] == pytest.approx(1 / 255)


def test_a_fifth_of_each_class_is_split_off_always_the_same(tmp_path):
    written = write_classes(tmp_path / "a", COUNTS, height=32, width=32)
    write_classes(tmp_path / "b", COUNTS, height=32, width=32)
    data = load_folder(tmp_path / "a")
    np.testing.assert_array_equal(np.bincount(data.test_labels), [2, 3, 1])
    np.testing.assert_array_equal(np.bincount(data.train_labels), [8, 12, 4])
    assert "20% of each class" in data.note
    together = {image.tobytes() for image in (*data.train_images, *data.test_images)}
    assert together == {image.tobytes() for image in written.values()}
    again = load_folder(tmp_path / "b")
    np.testing.assert_array_equal(again.test_images, data.test_images)
    assert again.content == data.content


def test_content_tells_other_images_names_and_splits_apart(tmp_path):
    contents = []
    for change in ("none", "an image", "a name", "a split"):
        root = tmp_path / change
        written = list(write_classes(root / "train", {"cat": 4, "dog": 4}))
        write_classes(root / "test", {"cat": 2, "dog": 2}, first=50)
        if change == "an image":
            write_image(written[1], picture(99))
        elif change == "a name":
            written[1].rename(written[1].with_name("009.png"))
        elif change == "a split":
            (root / "train").rename(root / "other")
            (root / "test").rename(root / "train")
            (root / "other").rename(root / "test")
        contents.append(load_folder(root).content)
    assert len(set(contents)) == 4


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 90), (50, 32), (20, 20), (7, 300)])
def test_images_of_any_size_are_resized_and_cropped_in_the_centre(tmp_path, height, width):
    image = picture(3, height, width)
    write_image(tmp_path / "train" / "a" / "0.png", image)
    write_image(tmp_path / "train" / "b" / "0.png", picture(4, 33, 33))
    write_classes(tmp_path / "test", {"a": 1})
    data = load_folder(tmp_path)
    scale = 32 / min(height, width)
    shape = (round(height * scale), round(width * scale))
    resized = tf.image.resize(image, shape, antialias=True).numpy()
    top, left = (shape[0] - 32) // 2, (shape[1] - 32) // 2
    expected = resized[top : top + 32, left : left + 32]
    # A gradient; to crop first may shift it by half a pixel.
    assert np.abs(data.train_images[0] - expected).max() < 256 / min(height, width) / 2 + 6


def test_image_size_is_that_of_the_images(tmp_path):
    write_classes(tmp_path, COUNTS)
    for size in (9, 64):
        assert load_folder(tmp_path, image_size=size).input_shape == (size, size, 3)


def bmp(image):
    height, width, _ = image.shape
    assert width % 4 == 0  # rows need no filling
    pixels = image[::-1, :, ::-1].tobytes()
    header = struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54)
    return header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(pixels), 0, 0, 0, 0) + pixels


def one_coloured_gif(*colours):
    """An animation, 1x1, a colour for each frame."""
    table = bytes(value for colour in (*colours, *[(0, 0, 0)] * (4 - len(colours))) for value in colour)
    frames = b"".join(
        b"\x21\xf9\x04\x00\x0a\x00\x00\x00\x2c" + struct.pack("<4HB", 0, 0, 1, 1, 0)
        + bytes([2, 2, 0b00000100 | index << 3 | (0b101 << 6) & 0xC0, 0b01, 0])
        for index in range(len(colours))
    )  # fmt: skip
    return b"GIF89a" + struct.pack("<2H3B", 1, 1, 0b10000001, 0, 0) + table + frames + b"\x3b"


def test_every_format_is_decoded_to_three_channels():
    image = picture(1, 20, 16)
    grey = picture(2, 20, 16, channels=1)
    with_alpha = np.concatenate([image, np.full((20, 16, 1), 255, np.uint8)], -1)
    np.testing.assert_array_equal(decode(tf.io.encode_png(image)), image)
    np.testing.assert_array_equal(decode(tf.io.encode_png(grey)), np.repeat(grey, 3, -1))
    np.testing.assert_array_equal(decode(tf.io.encode_png(with_alpha)), image)
    np.testing.assert_array_equal(decode(bmp(image)), image)
    assert np.abs(decode(tf.io.encode_jpeg(image, quality=100)).numpy().astype(int) - image).mean() < 3
    two_frames = decode(one_coloured_gif((10, 20, 30), (200, 100, 50)))
    np.testing.assert_array_equal(two_frames, [[[10, 20, 30]]])


def test_the_box_in_the_middle_has_the_share_of_the_shorter_side():
    assert center_box(np.zeros((256, 300, 3)), 224 / 256).numpy().tolist() == [16, 38, 224, 224]
    assert center_box(np.zeros((1, 1, 3)), 0.1).numpy().tolist() == [0, 0, 1, 1]


def test_hidden_files_do_not_count_and_other_files_are_told(tmp_path):
    write_classes(tmp_path, COUNTS)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / ".DS_Store").touch()
    assert "left out" not in load_folder(tmp_path).note
    (tmp_path / "cat" / "notes.txt").touch()
    assert "1 files that are no images are left out" in load_folder(tmp_path).note


def test_train_examples_are_chosen_by_class_before_anything_is_decoded(tmp_path):
    written = list(write_classes(tmp_path / "train", COUNTS))
    write_classes(tmp_path / "test", {"cat": 2})
    whole, part = load_folder(tmp_path), load_folder(tmp_path, train_examples=6)
    np.testing.assert_array_equal(np.bincount(part.train_labels), [2, 2, 2])
    np.testing.assert_array_equal(part.train_images, whole.subset(6).train_images)
    kept = {image.tobytes() for image in part.train_images}
    for path, image in zip(written, whole.train_images, strict=True):
        if image.tobytes() not in kept:
            path.write_bytes(b"damaged")
    assert load_folder(tmp_path, train_examples=6).content == part.content


# What is wrong.


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError) as error:
        load_folder(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in one_line(error)


def test_no_folder_at_all():
    with pytest.raises(DataError, match="data_dir"):
        load("folder")


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"no images.*PNG"):
        load_folder(tmp_path)


def test_images_without_class_folders(tmp_path):
    for index in range(3):
        write_image(tmp_path / f"{index}.png", picture(index))
    with pytest.raises(DataError) as error:
        load_folder(tmp_path)
    for word in (str(tmp_path), "3 images", "0.png", "no class folders"):
        assert word in one_line(error)


def test_a_class_without_images(tmp_path):
    write_classes(tmp_path, COUNTS)
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "fox.tiff").touch()
    with pytest.raises(DataError) as error:
        load_folder(tmp_path)
    assert str(tmp_path / "fox") in one_line(error)


def test_a_single_class(tmp_path):
    write_classes(tmp_path, {"cat": 5})
    with pytest.raises(DataError, match="single class, 'cat'"):
        load_folder(tmp_path)


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    write_classes(tmp_path, {"cat": 5, "dog": 1})
    with pytest.raises(DataError, match="dog' holds a single image"):
        load_folder(tmp_path)


def test_a_test_class_that_is_not_trained(tmp_path):
    write_classes(tmp_path / "train", {"cat": 2, "dog": 2})
    write_classes(tmp_path / "test", {"cat": 2, "emu": 2})
    with pytest.raises(DataError, match="'emu', which has no training images"):
        load_folder(tmp_path)


def test_test_folders_without_images(tmp_path):
    write_classes(tmp_path / "train", {"cat": 2, "dog": 2})
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="val' holds no images"):
        load_folder(tmp_path)


def test_a_train_folder_alone(tmp_path):
    write_classes(tmp_path / "train", COUNTS)
    with pytest.raises(DataError) as error:
        load_folder(tmp_path)
    for word in ("neither test nor val", str(tmp_path / "train")):
        assert word in one_line(error)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_damaged_image_is_named(tmp_path, damage, suffix):
    paths = list(write_classes(tmp_path, COUNTS, suffix))
    content = paths[17].read_bytes()
    paths[17].write_bytes({"truncated": content[: len(content) // 2], "text": b"no image", "empty": b""}[damage])
    with pytest.raises(DataError) as error:
        load_folder(tmp_path)
    assert str(paths[17]) in one_line(error)


def test_data_that_does_not_fit_into_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    paths = list(write_classes(tmp_path, COUNTS))
    needed = 2 * 30 * 32 * 32 * 3
    monkeypatch.setattr(folder_module, "_available_memory", lambda: needed / 0.6 + 1)
    assert load_folder(tmp_path).train_count == 24
    monkeypatch.setattr(folder_module, "_available_memory", lambda: needed / 0.6 - 1)
    paths[0].write_bytes(b"never read")
    with pytest.raises(DataError) as error:
        load_folder(tmp_path)
    for word in ("60%", "--image_size", "--train_examples"):
        assert word in one_line(error)
    monkeypatch.setattr(folder_module, "_available_memory", lambda: None)
    with pytest.raises(DataError, match="cannot be read"):
        load_folder(tmp_path)


def test_the_memory_of_this_machine_is_known():
    assert 2**20 < folder_module._available_memory() < 2**50


@pytest.mark.parametrize("count", [2, 25])
def test_train_examples_out_of_range(tmp_path, count):
    write_classes(tmp_path, COUNTS)
    with pytest.raises(DataError, match=f"train_examples is {count}.*3 to 24"):
        load_folder(tmp_path, train_examples=count)


@pytest.mark.parametrize(("name", "size"), [("cifar10", 32), ("folder", 7), ("imagenet", 1025)])
def test_an_image_size_that_cannot_be_had(name, size):
    with pytest.raises(UsageError, match=f"image_size={size}"):
        load(name, image_size=size)


def test_labels_follow_the_sorted_names_of_the_classes(tmp_path):
    write_classes(tmp_path / "train", {"b": 1, "a": 1, "C": 1})
    write_classes(tmp_path / "test", {"b": 1})
    train, test = find_splits(tmp_path)
    assert train.classes == ("C", "a", "b")
    assert train.names == ("C/000.png", "a/000.png", "b/000.png")
    assert test.labels.tolist() == [2]


# From the command line.


def run(root, workdir, *argv):
    argv = (f"--data_dir={root}", f"--workdir={workdir}", "--dataset=folder", "--model=resnet20", "--width=.25", *argv)
    return main([*argv, "--epochs=1", "--batch_size=8", "--method=uniform", "--regimes=scratch_e", "--noexport"])


@pytest.mark.slow
def test_a_folder_goes_the_whole_way_and_other_images_are_trained_anew(tmp_path, capsys):
    write_classes(tmp_path / "a", COUNTS)
    write_classes(tmp_path / "b", COUNTS, first=500)
    assert run(tmp_path / "a", tmp_path / "w") == 0
    shown = capsys.readouterr().out
    for word in ("folder: 24 training and 6 test images of 32x32x3, 3 classes", "20% of each class"):
        assert word in shown
    assert run(tmp_path / "b", tmp_path / "w") == 0
    with (tmp_path / "w" / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["regime"] for row in rows] == ["unpruned", "pruned", "scratch_e"] * 2
    assert len({row["study"] for row in rows}) == 2
    assert {(row["dataset"], row["train_examples"], row["test_examples"]) for row in rows} == {("folder", "24", "6")}
    assert run(tmp_path / "a", tmp_path / "w") == 0
    assert len(list((tmp_path / "w" / "stages").iterdir())) == 6


def test_a_folder_with_nothing_in_it_is_refused_by_the_command(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    err = refused(capsys, "--dataset=folder", f"--data_dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'w'}")
    assert "holds no images" in err


def test_images_too_small_for_the_network_are_refused_by_the_command(tmp_path, capsys):
    write_classes(tmp_path / "data", COUNTS)
    argv = ("--dataset=folder", f"--data_dir={tmp_path / 'data'}", "--image_size=16", f"--workdir={tmp_path / 'w'}")
    err = refused(capsys, *argv, "--batch_size=8")
    assert "'vgg16'" in err
    assert "(16, 16, 3)" in err
