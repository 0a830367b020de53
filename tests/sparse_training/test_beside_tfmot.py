"""The same trainings by TFMOT under tf_keras, in a process of its own, and by tfprune under Keras 3."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl
from tensorflow_model_optimization.sparsity import keras as tfmot_keras

import tfprune
from tests.processes import finish, start
from tests.sparse_training.beside import ALIKE, BATCHES, CASES, built, kernels, trained
from tfprune.planning.ranking import off_of, patterned

slow = pytest.mark.slow

THEIRS = """
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tests.sparse_training.beside import CASES, built, kernels, trained

assert tf.keras.Model is tf_keras.Model
sparsity = tfmot.sparsity.keras

class Watch(tf_keras.callbacks.Callback):
    def __init__(self, name, layers):
        super().__init__()
        self.name, self.layers, self.step = name, layers, 0

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        wrapped = [layer for layer in self.model.layers if hasattr(layer, "pruning_vars")]
        masks = {weight.name: mask.numpy() for layer in wrapped for weight, mask, _ in layer.pruning_vars}
        own = kernels(self.layers)
        found[f"{self.name}|kernels|{self.step}"] = list(own.values())
        found[f"{self.name}|masks|{self.step}"] = [masks.get(name, np.ones_like(own[name])) for name in own]

found = {}
for name, case in CASES.items():
    plain = built(tf_keras, case)
    options = dict(case.options)
    if case.schedule is not None:
        kind, arguments = case.schedule
        options["pruning_schedule"] = getattr(sparsity, kind)(**arguments)

    def wrap(layer):
        # TFMOT removes 2:4 of transposed kernels too, along their outputs.
        is_left = "sparsity_m_by_n" in options and isinstance(layer, tf_keras.layers.Conv2DTranspose)
        return layer if is_left else sparsity.prune_low_magnitude(layer, **options)

    wrapped = tf_keras.models.clone_model(plain, clone_function=wrap)
    try:
        trained(tf_keras, wrapped, case, [sparsity.UpdatePruningStep(), Watch(name, plain.layers)])
    except tf.errors.InvalidArgumentError as error:
        found[f"{name}|error|0"] = [np.asarray(str(error))]
        continue
    found[f"{name}|end|0"] = list(kernels(sparsity.strip_pruning(wrapped).layers).values())
np.savez("found.npz", **{f"{key}|{i}": one for key, all_of in found.items() for i, one in enumerate(all_of)})
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Case -> what is told -> step -> arrays."""
    folder = tmp_path_factory.mktemp("tfmot")
    finish(start(folder, "tfmot", THEIRS, TF_USE_LEGACY_KERAS="1"))
    told = {}
    with np.load(folder / "found.npz") as found:
        for key in found:
            case, what, step, _ = key.split("|")
            told.setdefault(case, {}).setdefault(what, {}).setdefault(int(step), []).append(found[key])
    return told


class Watch(keras.callbacks.Callback):
    """Keeps the kernels of the end of every batch."""

    def __init__(self):
        super().__init__()
        self.kernels = {}

    def on_train_batch_end(self, batch, logs=None):
        self.kernels[len(self.kernels) + 1] = list(kernels(self.model.layers).values())


def magnitude(case, own_schedule):
    """The method for a case: TFMOT's schedules as they are, or in our words."""
    options = {}
    if "sparsity_m_by_n" in case.options:
        options["pattern"] = "2:4"
    elif "block_size" in case.options:
        options |= {"pattern": "block", "block_size": case.options["block_size"]}
    elif case.network == "images":
        options["skip"] = "separable/depthwise_kernel"  # which TFMOT leaves alone
    if case.schedule is None:
        return tfprune.Magnitude(**options)
    kind, arguments = case.schedule
    if not own_schedule:
        return tfprune.Magnitude(schedule=getattr(tfmot_keras, kind)(**arguments), **options)
    arguments = dict(arguments)
    if kind == "ConstantSparsity":
        schedule = tfprune.ConstantSparsity(arguments["begin_step"])
        return tfprune.Magnitude(arguments["target_sparsity"], schedule, **options)
    return tfprune.Magnitude(arguments.pop("final_sparsity"), tfprune.PolynomialDecay(**arguments), **options)


def ours(name, own_schedule=False):
    """Step -> kernels at the end of the batch; those at the end of all; and the plan."""
    case, watch = CASES[name], Watch()
    model = tfprune.sparse(built(keras, case), magnitude(case, own_schedule))
    trained(keras, model, case, [*tfprune.callbacks(model), watch])
    plan, model = tfprune.finish(model)
    return watch.kernels, list(kernels(model.layers).values()), plan


def off(arrays):
    """How many of each are zero."""
    return [int((array == 0).sum()) for array in arrays]


def count(size, sparsity):
    """How many of so many weights are off: TFMOT's words, computed once more. Python's `round` goes to even, too."""
    return size - max(1, round(float(np.float32(size) * (np.float32(1) - np.float32(sparsity)))))


def counts(arrays, sparsity):
    return [count(array.size, sparsity) for array in arrays]


def engine(weights, sparsity, block_size=(1, 1)):
    """The mask that TFMOT itself makes of weights."""
    weight, mask = tf.Variable(weights), tf.Variable(tf.ones(weights.shape))
    schedule = tfmot_keras.ConstantSparsity(sparsity, begin_step=0, frequency=1)
    pruning = pruning_impl.Pruning(lambda: 1, [(weight, mask, tf.Variable(0.0))], schedule, block_size, "AVG")
    pruning.conditional_mask_update()
    return mask.numpy() != 0


STEPS = list(range(1, 4 * BATCHES + 1))
SCHEDULES = [(name, False) for name in ALIKE] + [(name, True) for name, case in ALIKE.items() if case.schedule]


# The same.


@slow
@pytest.mark.parametrize(("name", "own_schedule"), SCHEDULES)
def test_the_same_masks_at_the_same_steps_and_the_same_network(name, own_schedule, theirs):
    seen, end, plan = ours(name, own_schedule)
    masks, last = theirs[name]["masks"], theirs[name]["end"][0]
    assert list(seen) == list(masks) == STEPS
    for step, arrays in seen.items():
        for array, mask in zip(arrays, masks[step], strict=True):
            np.testing.assert_array_equal(array != 0, mask != 0, err_msg=f"step {step}")
    assert sum(off(masks[16])) > (0 if CASES[name].schedule is None else sum(off(masks[1])))
    for array, other in zip(end, last, strict=True):
        np.testing.assert_array_equal(array != 0, other != 0)
        np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-6)
    assert sum(int((~mask).sum()) for mask in plan.arrays().values()) == sum(off(last))


@slow
@pytest.mark.parametrize(
    ("name", "sparsity"),
    [
        ("images, polynomial", 0.8),
        ("images, constant", 0.6),
        ("words, polynomial", 0.7),
        ("attention, polynomial", 0.7),
    ],
)
def test_the_counts_are_those_of_the_formula(name, sparsity, theirs):
    _, end, _ = ours(name)
    assert off(end) == counts(end, sparsity) == off(theirs[name]["end"][0])


@pytest.mark.parametrize(
    ("size", "sparsity", "expected"),
    [(5, 0.5, 3), (7, 0.5, 3), (3, 0.5, 1), (4, 0.99, 3), (1, 0.9, 0), (1000, 0.0004, 0), (16_777_217, 0.5, 8_388_609)],
)
def test_halves_are_rounded_to_even_and_one_weight_stays(size, sparsity, expected):
    assert off_of(size, sparsity) == count(size, sparsity) == expected


def test_counts_are_those_of_the_engine():
    generator = np.random.default_rng(0)
    for _ in range(100):
        size, sparsity = int(generator.integers(1, 400)), float(generator.choice([0.1, 0.5, 0.75, generator.random()]))
        weights = generator.permutation(np.arange(1, size + 1)).astype("float32")
        mask = engine(weights, sparsity)
        assert off_of(size, sparsity) == count(size, sparsity) == int((~mask).sum())


@pytest.mark.parametrize(
    ("shape", "block_size"), [((6, 8), (2, 4)), ((7, 9), (2, 5)), ((12, 5), (4, 2)), ((4, 6), (1, 1))]
)
def test_blocks_are_those_of_the_engine(shape, block_size):
    kernel = np.random.default_rng(0).normal(size=shape).astype("float32")
    for sparsity in (0.2, 0.5, 0.8):
        mask = patterned(kernel, sparsity, "block", block_size)
        np.testing.assert_array_equal(mask, engine(kernel, sparsity, block_size))
        assert not mask.all()


# Otherwise on purpose.


@slow
def test_zeros_are_exact_at_batch_ends_where_theirs_are_only_after_the_next_forward_pass(theirs):
    found = theirs["images, polynomial"]
    moved = [
        any((kernel[mask == 0] != 0).any() for kernel, mask in zip(found["kernels"][step], masks, strict=True))
        for step, masks in found["masks"].items()
    ]
    assert moved == [False] * 2 + [True] * 14  # what a ModelCheckpoint would store
    seen, _, _ = ours("images, polynomial")
    for step, arrays in seen.items():
        assert off(arrays) == off(found["masks"][step])


@slow
def test_nothing_grows_back_where_theirs_does(theirs):
    name = "weights that could grow back"
    masks = theirs[name]["masks"]
    back = sum(
        int((new > old).sum()) for step in STEPS[1:] for old, new in zip(masks[step - 1], masks[step], strict=True)
    )
    assert back > 0
    seen, end, _ = ours(name)
    for arrays in seen.values():
        assert off(arrays) == counts(arrays, 0.5)
        for array, first in zip(arrays, seen[1], strict=True):
            np.testing.assert_array_equal(array == 0, first == 0)
    assert off(end) == counts(end, 0.5)


@slow
@pytest.mark.parametrize(
    ("name", "reached"),
    # At step 10 of 15, and never.
    [("a frequency that leaves the end out", 0.8 * (1 - (5 / 15) ** 3)), ("a frequency beyond the end", 0.0)],
)
def test_the_final_sparsity_is_reached_where_theirs_is_not(name, reached, theirs):
    seen, end, _ = ours(name)
    assert off(theirs[name]["end"][0]) == counts(end, reached)
    assert off(end) == off(seen[15]) == counts(end, 0.8)
    assert off(seen[14]) == counts(end, reached)


@slow
def test_step_0_counts_where_theirs_is_never_asked(theirs):
    seen, end, _ = ours("from step 0")
    assert off(theirs["from step 0"]["end"][0]) == [0, 0]
    assert off(seen[1]) == off(end) == counts(end, 0.5)


@slow
def test_a_schedule_may_begin_and_end_at_once_where_theirs_fails(theirs):
    name = "begin and end at once"
    assert "is not in [0, " in str(theirs[name]["error"][0][0])
    seen, end, _ = ours(name)
    assert [off(seen[step]) for step in (2, 3, 16)] == [[0, 0], counts(end, 0.8), counts(end, 0.8)]


@slow
def test_ties_are_cut_by_position_where_theirs_all_stay(theirs):
    assert off(theirs["equal magnitudes"]["masks"][1]) == [0, 0]
    seen, _, _ = ours("equal magnitudes")
    for array in seen[1]:
        flat = array.ravel() != 0
        assert flat.tolist() == [False] * count(array.size, 0.5) + [True] * (array.size - count(array.size, 0.5))


@slow
def test_moving_averages_keep_their_zeros_where_theirs_lose_all(theirs):
    assert off(theirs["moving averages"]["masks"][16]) == counts(theirs["moving averages"]["masks"][16], 0.5)
    assert off(theirs["moving averages"]["end"][0]) == [0, 0]
    _, end, plan = ours("moving averages")
    assert off(end) == counts(end, 0.5)
    assert [int((~mask).sum()) for mask in plan.arrays().values()] == off(end)


@slow
def test_2_4_heeds_its_schedule_where_theirs_does_not(theirs):
    name = "2:4 from a later step"
    later = off(theirs[name]["masks"][16])
    assert off(theirs[name]["masks"][1]) == later
    seen, end, _ = ours(name)
    assert [off(seen[step]) for step in (5, 6)] == [[0, 0], later]
    assert off(end) == later


def test_2_4_leaves_depthwise_kernels_alone():
    model = tfprune.sparse(built(keras, CASES["images, 2:4"]), tfprune.Magnitude(pattern="2:4"))
    with pytest.warns(UserWarning, match="before the schedule's end"):  # it is not trained
        plan, _ = tfprune.finish(model)
    assert list(plan.arrays()) == ["conv", "separable/pointwise_kernel", "hidden", "head"]


def test_a_pattern_without_a_kernel_for_it_is_told():
    model = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.DepthwiseConv2D(3)])
    with pytest.raises(tfprune.PlanError, match="pattern='2:4': transposed and depthwise"):
        tfprune.sparse(model, tfprune.Magnitude(pattern="2:4"))


def test_blocks_at_the_edge_are_judged_by_their_own_weights():
    kernel = np.asarray([[1, 9, 9, 1], [2, 1, 1, 8]], "float32")  # blocks of 3: means of 6.3, 1, 1.3 and 8
    wanted = [[True, True, True, False], [False, False, False, True]]
    assert engine(kernel, 0.5, (1, 3)).tolist() != wanted
    assert patterned(kernel, 0.5, "block", (1, 3)).tolist() == wanted


@pytest.mark.parametrize(("shape", "block_size"), [((6, 3), (2, 4)), ((3, 8), (4, 2))])
def test_one_column_or_row_of_blocks_is_pruned_where_the_engine_fails(shape, block_size):
    kernel = np.random.default_rng(0).normal(size=shape).astype("float32")
    with pytest.raises(ValueError, match="rank 2"):
        engine(kernel, 0.5, block_size)
    mask = patterned(kernel, 0.7, "block", block_size)
    axis = shape.index(min(shape))
    means = np.abs(kernel).mean(axis).reshape(-1, 2).mean(1)
    expected = means == means.max()  # of 3 or 4 blocks one stays
    np.testing.assert_array_equal(mask, np.broadcast_to(np.expand_dims(expected.repeat(2), axis), shape))


def test_blocks_of_equal_magnitudes_go_by_position():
    ones = np.ones((4, 6), "float32")
    assert engine(ones, 0.5, (2, 2)).all()
    assert patterned(ones, 0.5, "block", (2, 2)).ravel().tolist() == [False] * 12 + [True] * 12
