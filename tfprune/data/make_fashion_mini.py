"""Makes the subset of Fashion-MNIST that is part of this package, from the Debian package's files.

    python -m tfprune.data.make_fashion_mini

writes the four IDX files into the folder of this package, the same bytes each time, and prints their
checksums for `fashion_mini/README.md`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import struct
import sys
from pathlib import Path

import numpy as np

from tfprune.data.fashion_mnist import DEBIAN_FOLDER, MINI_FOLDER, read_folder
from tfprune.data.idx_reader import UNSIGNED_BYTE
from tfprune.data.image_data import stratified_indices
from tfprune.errors import DataError

TRAIN_EXAMPLES = 6000
TEST_EXAMPLES = 2000


def make(source: Path, target: Path) -> list[Path]:
    """Writes the subset.

    Args:
        source: Folder with the four IDX files of Fashion-MNIST.
        target: Folder to write the four files of the subset into; it must be there.

    Returns:
        The files written.

    Raises:
        DataError: If a file of Fashion-MNIST is missing or damaged.
    """
    train_images, train_labels, test_images, test_labels = read_folder(source)
    train = stratified_indices(train_labels, TRAIN_EXAMPLES)
    test = stratified_indices(test_labels, TEST_EXAMPLES)
    arrays = {
        "train-images-idx3-ubyte.gz": train_images[train],
        "train-labels-idx1-ubyte.gz": train_labels[train],
        "t10k-images-idx3-ubyte.gz": test_images[test],
        "t10k-labels-idx1-ubyte.gz": test_labels[test],
    }
    for name, array in arrays.items():
        _write_idx_gz(target / name, array)
    return [target / name for name in arrays]


def _write_idx_gz(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">4B{array.ndim}I", 0, 0, UNSIGNED_BYTE, array.ndim, *array.shape)
    # A gzip header holds a time and a file name: without them, the same content gives the same bytes.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as compressed:
        compressed.write(header + array.tobytes())


def main() -> None:
    """Writes the subset into the package and prints a line per file: checksum, size in bytes, name."""
    argparse.ArgumentParser(description="Makes the subset of Fashion-MNIST that tfprune ships.").parse_args()
    try:
        files = make(DEBIAN_FOLDER, MINI_FOLDER)
    except DataError as error:
        sys.exit(f"Install the Debian package dataset-fashion-mnist: {error}")
    for file in files:
        content = file.read_bytes()
        print(hashlib.sha256(content).hexdigest(), len(content), file.name)


if __name__ == "__main__":
    main()
