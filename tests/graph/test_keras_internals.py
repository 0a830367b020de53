"""What Keras does not promise is used in one module only."""

import ast
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import plain_cnn
from tfprune.graph import keras_internals
from tfprune.graph.arguments import Arguments

PACKAGE = Path(tfprune.__file__).parent
INTERNALS = Path(keras_internals.__file__)
PRIVATE = re.compile(r"_(?!_)\w+")
OF_OTHERS = {"_Hash"}  # hashlib's type of hashes, in an annotation


def names_in(tree):
    """Private names that code of one file asks of objects that are not its own, with their lines.

    Those are attributes of anything but `self` and `cls`; attributes of these that no class of the file has, where the
    class extends another; names in `getattr` and the like; and private modules of Keras. A class that extends one of
    another file of tfprune may use what that has, so such classes are known by their imports.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                found.append((node.lineno, node.attr))
        elif isinstance(node, ast.Attribute) and node.attr == "src" and ast.unparse(node.value) == "keras":
            found.append((node.lineno, "keras.src"))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            name = node.args[1].values[0] if isinstance(node.args[1], ast.JoinedStr) else node.args[1]
            if isinstance(name, ast.Constant) and re.match(r"_(?!_)", name.value):
                found.append((node.lineno, name.value))
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            found += [(node.lineno, name) for name in modules if re.match(r"keras\.(src|_)", name)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "keras":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(node.lineno, name) for name in names if re.search(r"\.(src|_\w+)(\.|$)", name)]
        elif isinstance(node, ast.ClassDef) and node.bases:
            found += inherited_by(node)
    return sorted({(line, name) for line, name in found if name not in OF_OTHERS})


def inherited_by(kind):
    """Private names that the methods of a class that extends another ask of `self` without having them."""
    own = {node.name for node in kind.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(kind):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    for node in ast.walk(kind):
        is_own = isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls", "super()")
        if is_own and PRIVATE.fullmatch(node.attr) and node.attr not in own:
            yield node.lineno, node.attr


def defined_in(tree):
    """All names of functions, classes, variables and attributes that a file defines."""
    stored = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return stored | {node.name for node in ast.walk(tree) if isinstance(node, functions)}


def used_by_internals():
    tree = ast.parse(INTERNALS.read_text())
    return {name for _, name in names_in(tree)} | {name for name in defined_in(tree) if PRIVATE.fullmatch(name)}


def test_no_other_module_uses_what_keras_does_not_promise():
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py")) if path != INTERNALS}
    assert len(trees) > 100
    ours = set().union(*map(defined_in, trees.values()))
    known = used_by_internals()
    wrong = []
    for path, tree in trees.items():
        names = [(line, name) for line, name in names_in(tree) if name not in ours or name in known]
        names += [(0, f"defines {name}") for name in defined_in(tree) & known if name.startswith("_")]
        wrong += [f"{path.relative_to(PACKAGE)}:{line}: {name}" for line, name in names]
    assert wrong == []


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("model._nodes_by_depth", "_nodes_by_depth"),
        ("for layer in make()._flatten_layers(): pass", "_flatten_layers"),
        ("tensor._keras_mask = 3", "_keras_mask"),
        ("getattr(layer, '_seed_generators', ())", "_seed_generators"),
        ("hasattr(layer, '_functional')", "_functional"),
        ("getattr(layer, f'_{name}_dense')", "_"),
        ("from keras.src import backend", "keras.src.backend"),
        ("from keras.src.ops.node import Node", "keras.src.ops.node.Node"),
        ("from keras import src", "keras.src"),
        ("import keras.src.backend", "keras.src.backend"),
        ("keras.src.backend.get_keras_mask(x)", "keras.src"),
        ("class A(keras.Layer):\n    def call(self, x):\n        return self._dtype_policy", "_dtype_policy"),
        ("class A(SGD):\n    def f(self):\n        return super()._all_reduce(3)", "_all_reduce"),
    ],
)
def test_the_search_finds_every_way_to_write_it(code, name):
    assert [found for _, found in names_in(ast.parse(code))] == [name]


@pytest.mark.parametrize(
    "code",
    [
        "self._own",
        "model.layers",
        "from keras import tree",
        "layer.__class__",
        "getattr(layer, 'kernel', None)",
        "class A(Layer):\n    def build(self, s):\n        self._own = 3\n    def call(self, x):\n        self._own()",
    ],
)
def test_the_search_passes_what_is_public_or_ones_own(code):
    assert names_in(ast.parse(code)) == []


def test_the_module_uses_what_the_search_looks_for():
    assert {"_nodes_by_depth", "_keras_history", "_all_reduce_sum_gradients"} <= used_by_internals()


def test_arguments_are_filled_in_where_tensors_are():
    x, y = keras.Input((3,)), keras.Input((3,))
    single = Arguments((x,), {}, [x])
    assert single.filled([1]) == ((1,), {})
    nested = Arguments(([x, y, x], 5), {"mask": None, "scale": {"b": y, "a": 2}}, [x, y, x, y])
    args, kwargs = nested.filled([10, 20, 30, 40])
    assert args == ([10, 20, 30], 5)
    assert kwargs == {"mask": None, "scale": {"b": 40, "a": 2}}
    kwargs["training"] = True  # the caller may add to it
    assert "training" not in nested.kwargs


def test_calls_come_in_an_order_in_which_they_can_be_run():
    model = plain_cnn()
    seen = {id(tensor) for tensor in model.inputs}
    operations = []
    for operation, arguments, outputs in keras_internals.recorded_calls(model):
        assert seen.issuperset(map(id, arguments.tensors))
        seen.update(map(id, outputs))
        operations.append(operation)
    assert operations == [layer for layer in model.layers if not isinstance(layer, layers.InputLayer)]
    assert keras_internals.maker(model.outputs[0]) is model.get_layer("logits")


def test_layers_and_generators_within_a_model_are_those_at_any_depth():
    inner = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5, name="inner"), layers.Dense(4)], name="nested")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dropout(0.5, name="outer")(inner(inputs)))
    names = {layer.name for layer in keras_internals.layers_within(model)}
    assert {model.name, "nested", "inner", "outer"} <= names
    assert len(keras_internals.seed_generators(model)) == 2


def test_who_takes_training_is_told_apart():
    assert keras_internals.takes_training(layers.Dropout(0.5))
    assert keras_internals.takes_training(layers.Dense(3))
    inputs = keras.Input((3,))
    assert not keras_internals.takes_training(keras_internals.maker(inputs + 1.0))


def test_time_masks_are_those_that_keras_hands_on():
    ids = np.array([[1, 2, 0]])
    embedded = layers.Embedding(3, 4, mask_zero=True)(ids)
    mask = keras_internals.time_mask(embedded)
    assert np.array_equal(mask, [[True, True, False]])
    assert keras_internals.time_mask(keras.ops.ones((1, 3))) is None
    other = keras.ops.ones((1, 3, 4))
    keras_internals.set_time_mask(other, mask)
    expected = layers.GlobalAveragePooling1D()(np.ones((1, 3, 4), "float32"), mask=mask)
    assert np.array_equal(layers.GlobalAveragePooling1D()(other), expected)


def test_attention_has_its_projections_and_a_gate_only_where_there_is_one():
    layer = layers.MultiHeadAttention(2, 3)
    layer.build((None, 5, 4), (None, 5, 4))
    projections = keras_internals.attention_projections(layer)
    assert set(projections) == {"query", "key", "value", "output"}
    assert projections["query"].kernel.shape == (4, 2, 3)


def test_compile_settings_and_the_functions_in_them():
    def error(y, p):
        return keras.ops.mean(keras.ops.abs(y - p))

    model = plain_cnn()
    model.compile("sgd", loss=error, metrics=["accuracy"], steps_per_execution=3)
    settings = keras_internals.compile_settings(model)
    assert settings["loss"] is error
    assert settings["steps_per_execution"] == 3
    assert keras_internals.wrapped_functions(keras.metrics.MeanMetricWrapper(error)) == [error]
    assert keras_internals.wrapped_functions("sgd") == []
