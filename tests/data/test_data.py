import dataclasses
import functools
import gzip
import hashlib
import io
import re
import struct
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfprune.data import DATASETS, cifar, fashion_mnist, load, make_fashion_mini
from tfprune.data.idx_reader import read_idx
from tfprune.data.image_data import ImageData, stratified_indices
from tfprune.errors import DataError, UsageError

IDX_NAMES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
SOURCES = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}
LABEL_COUNTS = {"cifar10": (10,), "cifar100": (20, 100)}

needs_debian_package = pytest.mark.skipif(
    not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# The registry and `load`.


def test_names_are_known_without_importing_a_framework():
    code = (
        "import sys, tfprune.data; print(*tfprune.data.DATASETS.names());"
        "print(*{'tensorflow', 'keras'} & set(sys.modules))"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert lines == "fashion_mini fashion_mnist cifar10 cifar100 synthetic npz folder imagenet\n\n"


def test_every_registered_target_can_be_called():
    assert all(callable(DATASETS.get(name)) for name in DATASETS.names())


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(UsageError, match="'cifar10'"):
        load("cifar-10")


@pytest.mark.parametrize("name", ["fashion_mini", "synthetic"])
def test_a_data_dir_that_would_not_be_read_is_refused(name, tmp_path):
    with pytest.raises(DataError) as error:
        load(name, data_dir=tmp_path)
    assert name in one_line(error)
    assert str(tmp_path) in one_line(error)


def test_data_dir_may_start_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_fashion(tmp_path / "fashion")
    assert len(load("fashion_mnist", data_dir="~/fashion").train_images) == 30


# ImageData and its subsets.


def image_data(**changes) -> ImageData:
    labels = np.repeat(np.arange(3, dtype=np.int32), (5, 2, 9))
    images = np.zeros((16, 32, 32, 2), np.uint8)
    images[:, 0, 0, 0] = np.arange(16)
    arguments = {
        "name": "toy",
        "train_images": images,
        "train_labels": labels,
        "test_images": images[:4],
        "test_labels": labels[:4],
        "num_classes": 3,
        "mean": (0.5, 0.5),
        "std": (0.25, 0.25),
    }
    return ImageData(**(arguments | changes))


def test_image_data_is_frozen_and_knows_its_input_shape():
    data = image_data()
    assert data.input_shape == (32, 32, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_images": np.zeros((16, 32, 32, 2), np.float32)}, ["train", "float32"]),
        ({"train_images": np.zeros((16, 28, 28, 2), np.uint8)}, ["train", "28x28", "32x32"]),
        ({"train_images": np.zeros((16, 32, 32), np.uint8)}, ["train", "(16, 32, 32)"]),
        (
            {"train_images": np.zeros((0, 32, 32, 2), np.uint8), "train_labels": np.zeros(0, np.int32)},
            ["train"],
        ),
        ({"test_images": np.zeros((0, 32, 32, 2), np.uint8), "test_labels": np.zeros(0, np.int32)}, ["test"]),
        ({"test_images": np.zeros((4, 32, 32, 1), np.uint8)}, ["2 channels", "1"]),
        ({"train_labels": np.zeros(16, np.int64)}, ["train", "int64"]),
        ({"train_labels": np.zeros((16, 1), np.int32)}, ["train", "(16, 1)"]),
        ({"test_labels": np.zeros(3, np.int32)}, ["test", "(3,)"]),
        ({"train_labels": np.full(16, 3, np.int32)}, ["train", "3", "0 to 2"]),
        ({"test_labels": np.full(4, -1, np.int32)}, ["test", "-1"]),
        ({"mean": (0.5,)}, ["1 means", "2 channels"]),
        ({"std": (0.5, 0.5, 0.5)}, ["3 standard deviations", "2 channels"]),
        ({"std": (0.5, 0.0)}, ["(0.5, 0.0)"]),
        ({"std": (0.5, float("inf"))}, ["inf"]),
        ({"mean": (0.5, float("nan"))}, ["nan"]),
    ],
)
def test_image_data_refuses_what_it_does_not_describe(changes, words):
    with pytest.raises(DataError) as error:
        image_data(**changes)
    for word in ["toy", *words]:
        assert word in one_line(error)


def test_subset_takes_from_the_classes_in_turn_until_one_runs_out():
    data = image_data()  # 5, 2 and 9 images of the three classes
    for count, expected in [(3, [1, 1, 1]), (6, [2, 2, 2]), (8, [3, 2, 3]), (12, [5, 2, 5]), (15, [5, 2, 8])]:
        part = data.subset(count)
        np.testing.assert_array_equal(np.bincount(part.train_labels), expected)
        ids = part.train_images[:, 0, 0, 0]
        assert len(set(ids)) == count
        np.testing.assert_array_equal(part.train_labels, data.train_labels[ids])
        assert part.test_images is data.test_images
        assert part.num_classes == 3


def test_subset_of_everything_is_everything_in_the_same_order():
    data = image_data()
    np.testing.assert_array_equal(data.subset(16).train_images, data.train_images)


@pytest.mark.parametrize("count", [-1, 0, 2, 17])
def test_subset_out_of_range_names_both_numbers(count):
    with pytest.raises(DataError) as error:
        image_data().subset(count)
    assert re.search(rf"is {count}, .* 3 classes .* 16 training", one_line(error))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_stratified_indices(labels, data):
    labels = np.array(labels)
    count = data.draw(st.integers(0, len(labels)))
    chosen = stratified_indices(labels, count)
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, stratified_indices(labels, count))
    assert set(chosen) <= set(stratified_indices(labels, len(labels) - (len(labels) - count) // 2))
    sizes = np.bincount(labels, minlength=5)
    counts = np.bincount(labels[chosen], minlength=5)
    not_used_up = counts < sizes
    if not_used_up.any():
        assert counts[not_used_up].max() - counts[not_used_up].min() <= 1
        assert counts.max() <= counts[not_used_up].min() + 1


def test_stratified_indices_are_drawn_from_all_over_the_class():
    # The first ones of each class would do for the counts, but ordered files would then give a biased set.
    labels = np.zeros(10_000, int)
    assert abs(stratified_indices(labels, 1000).mean() - 5000) < 300


def test_stratified_indices_never_change():
    # A study's numbers hold only for the very images they were measured on.
    assert stratified_indices(np.arange(30) % 3, 6).tolist() == [0, 5, 13, 20, 22, 24]


# IDX files.


def idx_bytes(array: np.ndarray) -> bytes:
    dimensions = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + dimensions + array.astype(np.uint8).tobytes()


def fashion_arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    return {
        "train-images-idx3-ubyte": random.integers(0, 256, (30, 28, 28)),
        "train-labels-idx1-ubyte": np.arange(30) % 10,
        "t10k-images-idx3-ubyte": random.integers(0, 256, (7, 28, 28)),
        "t10k-labels-idx1-ubyte": np.arange(7),
    }


def write_fashion(folder, compress=True) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    arrays = fashion_arrays()
    for name, array in arrays.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        else:
            (folder / name).write_bytes(idx_bytes(array))
    return arrays


@pytest.mark.parametrize("shape", [(3,), (2, 3, 5), (300, 1, 2)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_read_idx_gives_the_values_in_order(shape, suffix, tmp_path):
    array = np.arange(np.prod(shape)).reshape(shape) % 251
    content = idx_bytes(array)
    file = tmp_path / f"values{suffix}"
    file.write_bytes(gzip.compress(content) if suffix else content)
    read = read_idx(file, len(shape))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


GOOD_IDX = idx_bytes(np.arange(12).reshape(3, 2, 2))
GZIPPED_IDX = gzip.compress(GOOD_IDX, mtime=0)  # of a fixed time: the name of a test is the same in every process


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("a", GOOD_IDX[:-1], ["11 values", "12"]),
        ("a", GOOD_IDX + b"\0", ["13 values", "12"]),
        ("a", b"", ["00000803"]),
        ("a", b"\0\0\x08\x01" + GOOD_IDX[4:], ["00000801", "00000803"]),
        ("a", b"\0\0\x0d\x03" + GOOD_IDX[4:], ["00000d03", "00000803"]),
        ("a", GOOD_IDX[:15], ["header of 16 bytes"]),
        ("a", idx_bytes(np.zeros((0, 2, 2))), ["empty", "(0, 2, 2)"]),
        ("a", GZIPPED_IDX, ["1f8b", "00000803"]),
        ("a.gz", GOOD_IDX, ["cannot be read"]),
        ("a.gz", GZIPPED_IDX[:-10], ["cannot be read"]),
        ("a.gz", GZIPPED_IDX[:10] + b"\xff" * 20, ["cannot be read"]),
        ("a.gz", GZIPPED_IDX[:-8] + bytes(8), ["cannot be read"]),
    ],
)
def test_read_idx_refuses_a_bad_file_by_name(file, content, words, tmp_path):
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_idx(path, 3)
    for word in [str(path), *words]:
        assert word in one_line(error)


def test_read_idx_of_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="none-here cannot be read"):
        read_idx(tmp_path / "none-here", 3)


# Fashion-MNIST.


@pytest.mark.parametrize("compress", [True, False])
def test_fashion_mnist_is_decoded_and_padded_exactly(compress, tmp_path):
    arrays = write_fashion(tmp_path, compress)
    data = load("fashion_mnist", data_dir=str(tmp_path))
    assert (data.name, data.num_classes, data.input_shape) == ("fashion_mnist", 10, (32, 32, 1))
    for split, images, labels in [
        ("train", data.train_images, data.train_labels),
        ("t10k", data.test_images, data.test_labels),
    ]:
        raw = arrays[f"{split}-images-idx3-ubyte"]
        expected = np.zeros((len(raw), 32, 32, 1), np.uint8)
        expected[:, 2:30, 2:30, 0] = raw
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, arrays[f"{split}-labels-idx1-ubyte"])


def test_load_passes_train_examples_on(tmp_path):
    write_fashion(tmp_path)
    data = load("fashion_mnist", data_dir=tmp_path, train_examples=20)
    np.testing.assert_array_equal(np.bincount(data.train_labels), [2] * 10)
    assert len(data.test_images) == 7


@pytest.mark.parametrize("name", IDX_NAMES)
def test_a_missing_fashion_mnist_file_is_named(name, tmp_path):
    write_fashion(tmp_path)
    (tmp_path / f"{name}.gz").unlink()
    with pytest.raises(DataError) as error:
        load("fashion_mnist", data_dir=tmp_path)
    assert str(tmp_path / name) in one_line(error)


@pytest.mark.parametrize("name", IDX_NAMES)
def test_a_truncated_fashion_mnist_file_is_named(name, tmp_path):
    write_fashion(tmp_path)
    file = tmp_path / f"{name}.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError) as error:
        load("fashion_mnist", data_dir=tmp_path)
    assert str(file) in one_line(error)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (
            "train-labels-idx1-ubyte",
            np.arange(29) % 10,
            ["train-images-idx3-ubyte.gz", "30 images", "29 labels"],
        ),
        (
            "t10k-images-idx3-ubyte",
            np.zeros((8, 28, 28)),
            ["t10k-labels-idx1-ubyte.gz", "8 images", "7 labels"],
        ),
        ("t10k-images-idx3-ubyte", np.zeros((7, 32, 28)), ["32x28", "28x28"]),
        ("train-labels-idx1-ubyte", np.full(30, 10), ["label 10", "0 to 9"]),
    ],
)
def test_fashion_mnist_files_that_do_not_fit_are_named(name, array, words, tmp_path):
    write_fashion(tmp_path)
    file = tmp_path / f"{name}.gz"
    file.write_bytes(gzip.compress(idx_bytes(array)))
    with pytest.raises(DataError) as error:
        load("fashion_mnist", data_dir=tmp_path)
    for word in [str(file), *words]:
        assert word in one_line(error)


def test_fashion_mnist_prefers_the_debian_package_to_a_download(tmp_path, monkeypatch):
    import keras

    write_fashion(tmp_path)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path)
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", lambda: pytest.fail("downloaded"))
    assert len(load("fashion_mnist").train_images) == 30


def test_fashion_mnist_from_keras(tmp_path, monkeypatch):
    import keras

    train_images, train_labels, test_images, test_labels = (
        array.astype(np.uint8) for array in fashion_arrays().values()
    )
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.setattr(
        keras.datasets.fashion_mnist,
        "load_data",
        lambda: ((train_images, train_labels), (test_images, test_labels)),
    )
    downloaded = load("fashion_mnist")
    write_fashion(tmp_path)
    from_files = load("fashion_mnist", data_dir=tmp_path)
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(downloaded, field), getattr(from_files, field))


def test_fashion_mnist_without_a_network_says_the_three_ways(tmp_path, monkeypatch):
    import keras

    def fail():
        raise Exception("URL fetch failure\non https://example.org: None")

    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", fail)
    with pytest.raises(DataError) as error:
        load("fashion_mnist")
    for word in ("URL fetch failure on", "dataset-fashion-mnist", "data_dir", "network connection"):
        assert word in one_line(error)


@needs_debian_package
def test_the_whole_of_fashion_mnist_and_its_constants():
    data = load("fashion_mnist")
    assert data.train_images.shape == (60_000, 32, 32, 1)
    assert data.test_images.shape == (10_000, 32, 32, 1)
    pixels = data.train_images[:, 2:30, 2:30] / 255
    assert data.mean == pytest.approx([pixels.mean()], abs=5e-6)
    assert data.std == pytest.approx([pixels.std()], abs=5e-6)


# The shipped subset.


def test_fashion_mini():
    data = load("fashion_mini")
    assert data.name == "fashion_mini"
    assert data.input_shape == (32, 32, 1)
    np.testing.assert_array_equal(np.bincount(data.train_labels), [600] * 10)
    np.testing.assert_array_equal(np.bincount(data.test_labels), [200] * 10)
    pixels = data.train_images[:, 2:30, 2:30] / 255
    assert data.mean == pytest.approx([pixels.mean()], abs=0.005)
    assert data.std == pytest.approx([pixels.std()], abs=0.005)


def test_fashion_mini_is_small_and_its_readme_has_the_checksums():
    files = sorted(fashion_mnist.MINI_FOLDER.glob("*.gz"))
    assert [file.name for file in files] == sorted(f"{name}.gz" for name in IDX_NAMES)
    assert sum(file.stat().st_size for file in fashion_mnist.MINI_FOLDER.iterdir()) < 4_000_000
    readme = (fashion_mnist.MINI_FOLDER / "README.md").read_text(encoding="utf-8")
    for file in files:
        content = file.read_bytes()
        row = f"| `{hashlib.sha256(content).hexdigest()}` | {len(content)} | `{file.name}` |"
        assert row in readme
    assert "Copyright © 2017 Zalando SE" in (fashion_mnist.MINI_FOLDER / "LICENSE").read_text(encoding="utf-8")


@needs_debian_package
def test_fashion_mini_is_a_subset_of_the_debian_files():
    def examples(images, labels):
        return {image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)}

    mini, whole = load("fashion_mini"), load("fashion_mnist")
    assert examples(mini.train_images, mini.train_labels) <= examples(whole.train_images, whole.train_labels)
    assert examples(mini.test_images, mini.test_labels) <= examples(whole.test_images, whole.test_labels)
    np.testing.assert_array_equal(mini.train_images, whole.subset(6000).train_images)


@needs_debian_package
def test_fashion_mini_is_made_again_byte_for_byte(tmp_path):
    made = make_fashion_mini.make(fashion_mnist.DEBIAN_FOLDER, tmp_path)
    assert sorted(file.name for file in made) == sorted(f"{name}.gz" for name in IDX_NAMES)
    for file in made:
        shipped = (fashion_mnist.MINI_FOLDER / file.name).read_bytes()
        assert gzip.decompress(file.read_bytes()) == gzip.decompress(shipped)
        assert file.read_bytes() == shipped
        assert struct.unpack("<I", shipped[4:8]) == (0,)  # the time in the gzip header


def test_the_script_without_the_debian_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(make_fashion_mini, "DEBIAN_FOLDER", tmp_path)
    monkeypatch.setattr(make_fashion_mini, "MINI_FOLDER", tmp_path / "absent")
    monkeypatch.setattr(sys, "argv", ["make_fashion_mini"])
    with pytest.raises(SystemExit, match="dataset-fashion-mnist"):
        make_fashion_mini.main()


# CIFAR.


def cifar_file(random, labels: np.ndarray) -> tuple[bytes, np.ndarray]:
    """One file's content from labels (n, label bytes), and its images (n, 32, 32, 3), pixel by pixel."""
    images = random.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    content = bytearray()
    for label_bytes, image in zip(labels, images, strict=True):
        content += bytes(label_bytes.tolist())
        for channel in range(3):
            for row in range(32):
                content += image[row, :, channel].tobytes()
    return bytes(content), images


def cifar_files(source: cifar.Source) -> dict[str, tuple[bytes, np.ndarray, np.ndarray]]:
    """Content, images and labels of each file of a small data set of the true format."""
    random = np.random.default_rng(7)
    files = {}
    for file in (*source.train_files, source.test_file):
        labels = np.stack([random.integers(0, count, 4) for count in LABEL_COUNTS[source.name]], axis=1)
        labels[0] = np.array(LABEL_COUNTS[source.name]) - 1  # the highest labels must pass
        files[file] = (*cifar_file(random, labels), labels)
    return files


def write_cifar(source: cifar.Source, folder) -> dict[str, tuple[bytes, np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True)
    files = cifar_files(source)
    for file, (content, _, _) in files.items():
        (folder / file).write_bytes(content)
    return files


def check_cifar(data: ImageData, files) -> None:
    *train, test = files.values()
    np.testing.assert_array_equal(data.train_images, np.concatenate([images for _, images, _ in train]))
    np.testing.assert_array_equal(data.train_labels, np.concatenate([labels[:, -1] for _, _, labels in train]))
    np.testing.assert_array_equal(data.test_images, test[1])
    np.testing.assert_array_equal(data.test_labels, test[2][:, -1])


@pytest.mark.parametrize(
    ("name", "folder", "train_files", "num_classes"),
    [
        ("cifar10", "cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)], 10),
        ("cifar100", "cifar-100-binary", ["train.bin"], 100),
    ],
)
@pytest.mark.parametrize("parent", [True, False])
def test_cifar_is_decoded_exactly(name, folder, train_files, num_classes, parent, tmp_path):
    files = write_cifar(SOURCES[name], tmp_path / folder)
    assert list(files)[:-1] == train_files
    data = load(name, data_dir=tmp_path if parent else tmp_path / folder)
    check_cifar(data, files)
    assert (data.name, data.num_classes, data.input_shape) == (name, num_classes, (32, 32, 3))
    assert data.mean == (0.4914, 0.4822, 0.4465)
    assert data.std == (0.2023, 0.1994, 0.2010)
    assert data.train_images.flags.c_contiguous


@pytest.mark.parametrize(("name", "file"), [(name, file) for name in SOURCES for file in cifar_files(SOURCES[name])])
def test_a_bad_cifar_file_is_named(name, file, tmp_path):
    source = SOURCES[name]
    path = tmp_path / source.folder / file
    good = write_cifar(source, path.parent)[file][0]
    damaged = [(good[:-1], "record"), (good + b"\0", "record"), (b"", "0 bytes")]
    for column, count in enumerate(LABEL_COUNTS[name]):
        start = len(good) // 4  # the second of four records
        damaged.append((good[: start + column] + bytes([count]) + good[start + column + 1 :], f"has {count} "))
    for content, word in damaged:
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            load(name, data_dir=tmp_path)
        assert str(path) in one_line(error)
        assert word in one_line(error)
    path.unlink()
    with pytest.raises(DataError) as error:
        load(name, data_dir=tmp_path)
    assert str(path) in one_line(error)
    assert source.url in one_line(error)


def test_the_addresses_and_checksums_of_cifar():
    root = "https://www.cs.toronto.edu/~kriz"
    assert cifar.CIFAR10.url == f"{root}/cifar-10-binary.tar.gz"
    assert cifar.CIFAR10.md5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert cifar.CIFAR100.url == f"{root}/cifar-100-binary.tar.gz"
    assert cifar.CIFAR100.md5 == "03b5dce01913d631647c71ecec9e9cb8"


@pytest.fixture
def served_archive(tmp_path, monkeypatch):
    """A function that puts an archive at a file: address, where Keras' real get_file fetches it."""
    import keras

    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(keras.utils, "get_file", functools.partial(keras.utils.get_file, cache_dir=str(cache)))

    def serve(source, name):
        files = cifar_files(source)
        archive = tmp_path / f"{name}.tar.gz"
        with tarfile.open(archive, "w:gz") as members:
            for file in ("../outside.txt", *reversed(files)):  # no order is promised
                member = tarfile.TarInfo(f"{source.folder}/{file}" if file in files else file)
                content = files[file][0] if file in files else b"outside"
                member.size = len(content)
                members.addfile(member, io.BytesIO(content))
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        served = dataclasses.replace(source, url=archive.as_uri(), md5=md5)
        monkeypatch.setattr(cifar, name.upper(), served)
        return archive, files

    return serve


@pytest.mark.parametrize("name", SOURCES)
def test_cifar_is_downloaded_once_and_nothing_is_extracted(name, served_archive, tmp_path):
    archive, files = served_archive(SOURCES[name], name)
    check_cifar(load(name), files)
    archive.unlink()
    check_cifar(load(name), files)
    kept = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert kept == [f"cache/datasets/{name}.tar.gz"]


@pytest.mark.parametrize("name", SOURCES)
def test_a_cifar_archive_with_another_checksum_is_refused(name, served_archive):
    archive, _ = served_archive(SOURCES[name], name)
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(DataError) as error:
        load(name)
    assert "hash does not match" in one_line(error)


@pytest.mark.parametrize("name", SOURCES)
def test_cifar_without_a_network_says_what_to_do(name, monkeypatch):
    import keras

    def fail(**arguments):
        assert arguments["file_hash"] == SOURCES[name].md5
        raise Exception(f"URL fetch failure on\n{arguments['origin']}: None")

    monkeypatch.setattr(keras.utils, "get_file", fail)
    with pytest.raises(DataError) as error:
        load(name)
    for word in (name, "URL fetch failure", SOURCES[name].url, SOURCES[name].folder, "data_dir", "network"):
        assert word in one_line(error)


# Synthetic images.


def test_synthetic_is_the_same_every_time():
    first, second = load("synthetic"), load("synthetic")
    assert first.train_images.shape == (256, 32, 32, 1)
    assert first.test_images.shape == (128, 32, 32, 1)
    np.testing.assert_array_equal(first.train_images, second.train_images)
    np.testing.assert_array_equal(first.test_labels, second.test_labels)
    for labels in (first.train_labels, first.test_labels):
        counts = np.bincount(labels, minlength=10)
        assert counts.max() - counts.min() <= 1
    assert first.mean == pytest.approx([(first.train_images / 255).mean()])
    assert first.std == pytest.approx([(first.train_images / 255).std()])


def test_synthetic_can_be_learnt_but_not_by_heart():
    data = load("synthetic")
    train, test = (images.reshape(len(images), -1) / 255 for images in (data.train_images, data.test_images))
    centres = np.stack([train[data.train_labels == label].mean(0) for label in range(10)])
    nearest = ((test[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (nearest == data.test_labels).mean() > 0.95
    assert not {image.tobytes() for image in data.train_images} & {image.tobytes() for image in data.test_images}


# Images held out.


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1 / 3, 0.5])
def test_a_fraction_of_every_class_is_held_out_and_nothing_is_lost(fraction):
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), (12, 24, 60, 13)).astype(np.int32)
    images = generator.integers(0, 256, (len(labels), 3, 3, 1)).astype(np.uint8)
    data = ImageData("made", images, labels, images[:4], labels[:4], 4, (0.5,), (0.2,))
    held = data.holding_out(fraction)
    for label, count in enumerate((12, 24, 60, 13)):
        assert (held.validation_labels == label).sum() == int(count * fraction + 1e-9)
    pairs = [
        *zip(held.train_images, held.train_labels, strict=True),
        *zip(held.validation_images, held.validation_labels, strict=True),
    ]
    assert sorted((i.tobytes(), int(n)) for i, n in pairs) == sorted(
        (i.tobytes(), int(n)) for i, n in zip(images, labels, strict=True)
    )
    assert held.test_images is data.test_images
    assert np.array_equal(data.holding_out(fraction).validation_images, held.validation_images)
    assert f"{len(held.validation_labels)} training images are held out" in held.note


@pytest.mark.parametrize(("fraction", "told"), [(0.05, "of the 10 .* class 1 of made is 0"), (0.99, "class 1 .* is 9")])
def test_a_fraction_that_leaves_a_class_nothing_is_refused(fraction, told):
    labels = np.repeat(np.arange(2), (500, 10)).astype(np.int32)
    images = np.zeros((510, 2, 2, 1), np.uint8)
    data = ImageData("made", images, labels, images, labels, 2, (0.5,), (0.2,))
    if fraction < 0.5:
        with pytest.raises(DataError, match=told):
            data.holding_out(fraction)
    else:
        assert (data.holding_out(fraction).train_labels == 1).sum() == 1
        with pytest.raises(DataError, match="one to hold out and one to train on"):
            dataclasses.replace(data, train_images=images[:501], train_labels=labels[:501]).holding_out(fraction)
