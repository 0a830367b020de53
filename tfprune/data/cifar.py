"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), read from their binary versions.

The binary version is nothing but bytes, one fixed-length record per image: its label or labels, then
its pixels, channel by channel. The Python version holds pickles, which can run code when they are read.
"""

from __future__ import annotations

import dataclasses
import tarfile
from pathlib import Path

import numpy as np

from tfprune.data.image_data import ImageData
from tfprune.errors import DataError

# In units of pixel value / 255, and used for both data sets: Liu et al., ICLR 2019, normalise so.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)

_SIZE = 32
_CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one of the data sets comes from, and how its records start.

    Attributes:
        name: Name of the data set.
        url: The archive, a compressed tar file.
        md5: Checksum of the archive.
        folder: The folder in the archive that holds the files.
        train_files: Names of the training files.
        test_file: Name of the test file.
        label_counts: The number of classes that each leading byte of a record tells apart; the last
            such byte is the label.
    """

    name: str
    url: str
    md5: str
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    label_counts: tuple[int, ...]


CIFAR10 = Source(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test_file="test_batch.bin",
    label_counts=(10,),
)
CIFAR100 = Source(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train_files=("train.bin",),
    test_file="test.bin",
    label_counts=(20, 100),  # coarse, fine
)


def load_cifar10(data_dir: Path | None) -> ImageData:
    """Loads CIFAR-10; see `_load`."""
    return _load(CIFAR10, data_dir)


def load_cifar100(data_dir: Path | None) -> ImageData:
    """Loads CIFAR-100 with its 100 fine labels; see `_load`."""
    return _load(CIFAR100, data_dir)


def _load(source: Source, data_dir: Path | None) -> ImageData:
    """Loads either data set.

    Args:
        source: Which one.
        data_dir: The folder with the .bin files, or its parent. None downloads the archive, once, into
            Keras' cache.

    Raises:
        DataError: If a file is missing or damaged, or cannot be downloaded.
    """
    place, contents = _download(source) if data_dir is None else _read_folder(source, data_dir)

    def decode_split(files: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        decoded = (_decode(source, place / file, contents[file]) for file in files)
        images, labels = zip(*decoded, strict=True)
        return np.concatenate(images), np.concatenate(labels)

    train_images, train_labels = decode_split(source.train_files)
    test_images, test_labels = decode_split((source.test_file,))
    return ImageData(
        name=source.name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=source.label_counts[-1],
        mean=MEAN,
        std=STD,
    )


def _read_folder(source: Source, data_dir: Path) -> tuple[Path, dict[str, bytes]]:
    """Returns the folder that holds the files, and each file's content by its name."""
    folder = data_dir / source.folder
    if not folder.is_dir():
        folder = data_dir
    contents = {}
    for file in (*source.train_files, source.test_file):
        try:
            contents[file] = (folder / file).read_bytes()
        except OSError as error:
            raise DataError(
                f"{folder / file} cannot be read ({error.strerror}): give the folder {source.folder} of "
                f"{source.url}, or its parent, as data_dir."
            ) from error
    return folder, contents


def _download(source: Source) -> tuple[Path, dict[str, bytes]]:
    """Returns the path of the archive with the folder in it, and each file's content by its name.

    The members are read into memory, never extracted, so no name in the archive can become a path.
    """
    import keras

    try:
        archive = keras.utils.get_file(origin=source.url, file_hash=source.md5, hash_algorithm="md5")
    except Exception as error:  # Keras raises bare Exception when a URL cannot be fetched
        reason = " ".join(str(error).split())
        raise DataError(
            f"{source.name} could not be downloaded ({reason}). Run again with a network connection, or "
            f"unpack {source.url} yourself and give the folder {source.folder} as data_dir."
        ) from error
    wanted = {f"{source.folder}/{file}": file for file in (*source.train_files, source.test_file)}
    contents = {}
    with tarfile.open(archive) as members:
        for member in members:  # in the order of the archive: going back would decompress it again
            if member.name in wanted and member.isfile():
                contents[wanted[member.name]] = members.extractfile(member).read()
    return Path(archive) / source.folder, contents


def _decode(source: Source, path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Decodes one file.

    Args:
        source: The data set.
        path: Where the content comes from, for the messages.
        content: Records, one after the other.

    Returns:
        Images, uint8 (n, 32, 32, 3), and labels, int32 (n,).

    Raises:
        DataError: If the content is not a positive number of whole records, or a label is out of range.
    """
    leading = len(source.label_counts)
    record = leading + _CHANNELS * _SIZE * _SIZE
    if not content or len(content) % record:
        raise DataError(
            f"{path} holds {len(content)} bytes, but a file of {source.name} holds one or more records of "
            f"{record} bytes: fetch the file again from {source.url}."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    for column, classes in enumerate(source.label_counts):
        highest = records[:, column].max()
        if highest >= classes:
            raise DataError(
                f"{path} has {highest} as byte {column} of a record, where {source.name} has a label from 0 "
                f"to {classes - 1}: fetch the file again from {source.url}."
            )
    planes = records[:, leading:].reshape(-1, _CHANNELS, _SIZE, _SIZE)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return images, records[:, leading - 1].astype(np.int32)
