import hashlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfprune.data import load
from tfprune.data.own import reading
from tfprune.data.own.examples import leaves
from tfprune.data.own.reading import own_data, read_npz
from tfprune.errors import DataError

GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.normal(size=(25, 4)).astype("float32"), GENERATOR.integers(0, 3, 25)
TEST = X[:5], Y[:5]
DATASET = tf.data.Dataset.from_tensor_slices((X, Y)).batch(10)


class Batches(keras.utils.PyDataset):
    """Three batches of `X` and `Y`; it says that there are `length`."""

    def __init__(self, length=3, **options):
        super().__init__(**options)
        self._length = length

    def __len__(self):
        return self._length

    def __getitem__(self, place):
        if place > 2:
            raise IndexError(place)
        return X[10 * place : 10 * place + 10], Y[10 * place : 10 * place + 10]


def pairs():
    return [(X[start : start + 10], Y[start : start + 10]) for start in (0, 10, 20)]


def forever():
    while True:
        yield X, Y


@pytest.mark.parametrize(
    "train",
    [(X, Y), [X, Y], (tf.constant(X), Y), DATASET, Batches(), pairs(), iter(pairs())],
    ids=["arrays", "list of arrays", "tensors", "tf.data", "PyDataset", "list of batches", "generator"],
)
def test_every_form_gives_the_same_examples_in_their_order(train):
    data = own_data("mine", train, TEST)
    np.testing.assert_array_equal(np.asarray(data.train.inputs, "float32"), X)
    np.testing.assert_array_equal(data.train.targets, Y)
    assert (data.train_count, data.test_count) == (25, 5)


def test_structures_and_weights_are_kept():
    train = {"a": X, "b": X[:, :1]}, [Y, X], Y.astype("float32")
    data = own_data("mine", train, ({"a": X[:2], "b": X[:2, :1]}, [Y[:2], X[:2]]))
    assert set(data.train.inputs) == {"a", "b"}
    assert isinstance(data.train.targets, list)
    assert [name for name, _ in data.train.named()] == ["x['a']", "x['b']", "y[0]", "y[1]", "sample_weight"]
    batched = tf.data.Dataset.from_tensor_slices((train[0], tuple(train[1]), train[2])).batch(7)
    for one, other in zip(leaves(own_data("mine", batched, TEST).train.targets), train[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_digest_tells_values_dtypes_and_splits_apart_and_nothing_else():
    def content(*splits):
        return own_data("mine", *splits).content

    changed = X.copy()
    changed[3, 2] += 1e-6
    same = content((X, Y), TEST)
    assert content((X.copy(), Y), (X[:5], Y[:5])) == same
    assert content(DATASET, TEST) == same
    others = [content((changed, Y), TEST), content((X.view("int32"), Y), TEST), content(TEST, (X, Y))]
    others += [content((X, Y, np.ones(25)), TEST), content((X.reshape(25, 2, 2), Y), TEST)]
    assert len({same, *others}) == 6


def npz(path, **arrays):
    given = {"x_train": X, "y_train": Y, "x_test": X[:5], "y_test": Y[:5], **arrays}
    np.savez(path, **{name: value for name, value in given.items() if value is not None})
    return path


def test_an_npz_file_gives_its_arrays(tmp_path):
    data = load("npz", npz(tmp_path / "data.npz", sample_weight_train=np.ones(25)))
    assert data.name == "npz"
    assert data.content == own_data("other", (X, Y, np.ones(25)), TEST).content
    assert load("npz", tmp_path / "data.npz", train_examples=9).train_count == 9


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"y_test": None}, "lacks y_test"),
        ({"x_train": np.array([{"pickled": 1}] * 25, object)}, "allow_pickle"),
        ({"x_train": np.full((25, 4), np.nan)}, "NaN"),
    ],
)
def test_another_npz_file_is_refused(tmp_path, arrays, told):
    with pytest.raises(DataError, match=told):
        read_npz(npz(tmp_path / "data.npz", **arrays))


def test_what_is_no_npz_file_is_refused(tmp_path):
    (tmp_path / "cut.npz").write_bytes(npz(tmp_path / "data.npz").read_bytes()[:200])
    np.save(tmp_path / "one.npy", X)
    for name in ("cut.npz", "one.npy", "none.npz"):
        with pytest.raises(DataError, match=r"cannot be read as an \.npz file"):
            read_npz(tmp_path / name)


def test_a_function_is_imported_and_called(tmp_path, monkeypatch):
    (tmp_path / "loaders_of_mine.py").write_text(
        "import numpy as np\n"
        "def load(folder=None):\n"
        "    x = np.arange(12.0).reshape(6, 2)\n"
        "    return (x, x[:, 0] if folder is None else np.full(6, len(str(folder)))), (x, x[:, 1])\n"
        "def fails():\n"
        "    raise OSError('no disk')\n"
        "def odd():\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load("loaders_of_mine:load").train.targets.tolist() == [0, 2, 4, 6, 8, 10]
    assert load("loaders_of_mine:load", "four").train.targets.tolist() == [4] * 6
    for name, told in {
        "loaders_of_mine:fails": "failed: OSError: no disk",
        "loaders_of_mine:odd": "must return .train, test.",
        "loaders_of_mine:none": "cannot be imported",
        "no_such_module:load": "cannot be imported .ModuleNotFoundError",
    }.items():
        with pytest.raises(DataError, match=told):
            load(name)
    with pytest.raises(DataError, match="called with --data_dir"):
        load("loaders_of_mine:fails", "four")


def with_value(value):
    changed = X.copy()
    changed[7, 2] = value
    return changed


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ((with_value(np.nan), Y), r"x in 1 of 25 examples, the first at index 7"),
        ((X, with_value(np.inf)), r"NaN or infinity\): y in 1 of 25"),
        ((X, Y, -np.ones(25)), "negative weights: sample_weight goes down to -1"),
        ((X, Y, {"a": np.ones(25), "b": np.arange(25) - 3}), r"sample_weight\['b'\] goes down to -3"),
        ((X, Y[:9]), "unlike numbers of examples: 25 of x, 9 of y"),
        ((X[:0], Y[:0]), "holds no example"),
        (X, r"an array of \(25, 4\) without targets"),
        (None, "received None"),
        ("data.npz", "received 'data.npz'"),
        ((X, Y.astype(str)), "dtype <U"),
        ((X, None), "with inputs and targets"),
        ((X, Y.tolist()), "make arrays of lists"),
        (DATASET.unbatch(), r"dataset.batch\("),
        (DATASET.take(0), "holds no batch"),
        (DATASET.map(lambda x, y: x), "must be a pair of arrays"),
        (DATASET.repeat(), "has no end: it repeats"),
        (forever(), r"has no end: it has given 1,025 examples and goes on"),
        (Batches(length=5), "ended after 3 of the 5 batches"),
        (DATASET.apply(tf.data.experimental.assert_cardinality(9)), "ended with an error after 3 batches"),
        ([(X, Y), (X[:, :2], Y)], "batches of different shapes: x is"),
        ([(X, Y), (X, Y, Y)], "batches of different structure: x, y in the first, x, y, sample_weight in batch 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_epoch_of_numbers_is_refused_in_one_line(train, told, monkeypatch):
    monkeypatch.setattr(reading, "_MOST_EXAMPLES", 1000)
    with pytest.raises(DataError, match=told) as error:
        own_data("mine", train, TEST)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("train=")


def test_subsets_and_what_is_held_out_are_stratified_by_class_and_always_the_same():
    labels = np.repeat([0, 1, 2], 30)
    data = own_data("mine", (np.arange(90.0)[:, None], labels), TEST)
    subset, held = data.subset(12), data.holding_out(0.2)
    assert np.bincount(subset.train.targets).tolist() == [4, 4, 4]
    assert np.bincount(held.validation.targets).tolist() == [6, 6, 6]
    together = np.concatenate([held.train.inputs, held.validation.inputs])
    assert sorted(together.ravel()) == list(range(90))
    assert (
        hashlib.sha256(held.validation.inputs).digest()
        == hashlib.sha256(data.holding_out(0.2).validation.inputs).digest()
    )
    numbers = own_data("mine", (X, X[:, 0]), TEST)
    assert numbers.holding_out(0.5).validation.count == 12
    assert numbers.num_classes is None
    for wrong in (lambda: data.subset(2), lambda: data.subset(91), lambda: data.holding_out(0.01)):
        with pytest.raises(DataError):
            wrong()
