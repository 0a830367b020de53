"""The network in a file of Keras 2, in the words of Keras 3.

Keras 3 refuses most configs that Keras 2 wrote: for arguments that it does not have any more, even where they hold the
only value that it still knows, for the numbering of nested networks, for names of modules. The weights it reads.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from tfprune.errors import UsageError
from tfprune.support.checks import shown

# Arguments that Keras 3 does not take, and the value that it computes with; None: whatever they hold does not matter.
_GONE: dict[str, Any] = {
    "time_major": False,
    "softmax_robust_masking": False,
    "ragged": False,
    "query_shape": None,
    "key_shape": None,
    "value_shape": None,
    "batch_input_shape": None,
    "rng_type": None,  # of augmentation
}
_ONE_GROUP = ("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D",
              "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")  # fmt: skip
# Of separable convolutions Keras 2 wrote these beside the ones of the two kernels, and used them for nothing.
_OF_NO_KERNEL = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")
_NETWORKS = ("Functional", "Model", "Sequential")
_HELD = ("layer", "forward_layer", "backward_layer", "cell")  # layers that the config of another layer holds
_RECURRENT = ("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
_TENSORFLOW_OPERATIONS = ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod", "InstanceProperty")
# Layers that pass masks of padded steps on otherwise than they do in Keras 3.
_MASKS_DIFFER = (
    "Add", "Multiply", "Subtract", "Average", "Maximum", "Minimum", "Concatenate", "Rescaling", "Normalization",
    "Identity", "Attention", "AdditiveAttention",
)  # fmt: skip


def masks_differ(config: dict) -> list[str]:
    """The layers of a network with masks of padded steps that may read or pass on other ones in Keras 3."""
    entries = list(entries_in(config))
    if not any(one["class_name"] == "Masking" or _masks_zero(one["config"]) for one in entries):
        return []
    return sorted({str(one["config"].get("name")) for one in entries if one["class_name"] in _MASKS_DIFFER})


def _masks_zero(config: Any) -> bool:
    return isinstance(config, dict) and config.get("mask_zero") is True


def plain_names(config: Any) -> dict[str, str]:
    """Name of a layer with a slash, which Keras 3 does not take -> one without, that no other layer has."""
    names = {
        name
        for one in entries_in(config)
        for name in (one.get("name"), one["config"].get("name") if isinstance(one["config"], dict) else None)
        if isinstance(name, str) and "/" in name
    }
    taken = {str(one["config"].get("name")) for one in entries_in(config) if isinstance(one["config"], dict)}
    new = {}
    for name in sorted(names):
        plain = name.replace("/", "_")
        while plain in taken:
            plain += "_"
        taken.add(plain)
        new[name] = plain
    return new


def renamed(value: Any, new: dict[str, str]) -> Any:
    """A config with other names of layers, also as keys, by which losses and metrics know their outputs."""
    if isinstance(value, dict):
        return {new.get(key, key): renamed(part, new) for key, part in value.items()}
    if isinstance(value, list):
        return [renamed(part, new) for part in value]
    return new.get(value, value) if isinstance(value, str) else value


def stay_frozen(layer: Any, entry: dict) -> None:
    """Makes a network in a network, or in another layer, one that is not trained where Keras 2 had it so.

    There nothing in such a network was trained, whatever its layers say of themselves.

    Args:
        layer: What Keras 3 has made.
        entry: The entry of it, after `modernized`.
    """
    config = entry["config"]
    if entry["class_name"] in _NETWORKS and config.get("trainable") is False:
        layer.trainable = True  # Keras does nothing for the layers inside where the network has the value already
        layer.trainable = False
        return
    if entry["class_name"] in _NETWORKS:
        inner = {one.name: one for one in layer.layers}
        pairs = [(inner.get(one["config"].get("name")), one) for one in config.get("layers", ())]
    else:
        pairs = [(getattr(layer, name, None), config.get(name)) for name in _HELD]
    for one, own in pairs:
        if one is not None and isinstance(own, dict) and isinstance(own.get("config"), dict):
            stay_frozen(one, own)


def in_several_networks(config: Any) -> dict[str, list[str]]:
    """Name of a layer that several networks have one of, of the same class -> the names of these networks."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in entries_in(config):
        if entry["class_name"] in _NETWORKS and isinstance(entry["config"], dict):
            for own in entry["config"].get("layers", ()):
                if own["class_name"] not in ("InputLayer", *_NETWORKS):
                    key = str(own["config"].get("name")), own["class_name"]
                    found.setdefault(key, []).append(str(entry["config"].get("name")))
    return {name: networks for (name, _), networks in found.items() if len(networks) > 1}


def modernized(entry: dict) -> dict:
    """The entry of a network as Keras 3 reads it: `{"class_name": ..., "config": ...}`.

    Args:
        entry: What Keras 2 wrote, in a `.keras` file or as the `model_config` of an HDF5 file.

    Raises:
        UsageError: For a layer that Keras 3 has no counterpart for.
    """
    from keras import layers

    kind = entry["class_name"]
    config = entry["config"]
    if isinstance(entry.get("compile_config"), dict):  # Keras 3 has other values for what was not given
        settings = {name: value for name, value in entry["compile_config"].items() if value is not None}
        entry = {**entry, "compile_config": settings}
    if kind in _TENSORFLOW_OPERATIONS:
        called = config.get("function") or config.get("attr_name") or entry.get("name")
        raise UsageError(
            f"The operation {config.get('name', entry.get('name'))!r} is TensorFlow's {called!r}, called on a Keras "
            f"tensor; Keras 3 has no layer for it ({kind}). Build the network with keras.ops, and load its weights."
        )
    entry = {key: value for key, value in entry.items() if key != "build_config"}  # layers build themselves when called
    if kind in _NETWORKS and (isinstance(config, list) or "layers" in config):
        own = "Sequential" if kind == "Sequential" else "Model"
        config = _sequential(config) if kind == "Sequential" else _graph(config)
        return entry | {"module": "keras", "registered_name": None, "class_name": own, "config": config}
    if kind == "Lambda":
        entry.pop("module", None)  # for Keras 3 a sign that its code is in the old form
    elif entry.get("module", "keras.layers") == "keras.layers":
        # HDF5 files name no modules; without one Keras takes the text "dot" for the function of that name.
        if hasattr(layers, kind):
            entry |= {"module": "keras.layers", "registered_name": None}
        elif "module" in entry:
            raise UsageError(f"Keras 3 has no layer {kind}, which the layer {config.get('name')!r} is.")
    entry["config"] = _layer(kind, config)
    return entry


def _layer(kind: str, config: dict) -> dict:
    """The config of a layer without what Keras 3 does not take.

    Raises:
        UsageError: For a value that Keras 3 has no counterpart for, or computes something else with.
    """
    from keras import layers

    config = dict(config)
    for name in ("activation", "recurrent_activation"):
        if config.get(name) == "hard_sigmoid":
            raise UsageError(
                f"The layer {config.get('name')!r} has {name}='hard_sigmoid': clip(0.2 x + 0.5, 0, 1) in Keras 2, "
                "relu6(x + 3) / 6 in Keras 3. It would be another network. Build it in Python with a function of your "
                "own in this place, and load its weights."
            )
    if hasattr(layers, kind):  # of what the constructor does not take, what says nothing goes
        taken = inspect.signature(getattr(layers, kind).__init__).parameters
        if not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
            config = {
                name: value
                for name, value in config.items()
                if name in taken or not (value is None or (name == "trainable" and value is True))
            }
    if kind == "InputLayer":
        config["batch_shape"] = config.get("batch_input_shape", config.get("batch_shape"))
    gone = dict(_GONE)
    if kind in _ONE_GROUP:
        gone["groups"] = 1
    if kind.startswith("SeparableConv"):
        gone |= dict.fromkeys(_OF_NO_KERNEL)
    for name, known in gone.items():
        if name in config:
            value = config.pop(name)
            if known is not None and value != known:
                raise UsageError(
                    f"The layer {config.get('name')!r} ({kind}) has {name}={shown(value)}; Keras 3 knows {known} only."
                )
    if kind == "BatchNormalization" and isinstance(config.get("axis"), list) and len(config["axis"]) == 1:
        config["axis"] = config["axis"][0]
    if kind == "Discretization":
        config.pop("dtype", None)  # of the bins in Keras 2; Keras 3 would round what it is to sort to whole numbers
    if kind.startswith("UpSampling") and config.get("interpolation") in ("area", "gaussian", "mitchellcubic"):
        raise UsageError(
            f"The layer {config.get('name')!r} interpolates by {config['interpolation']}; Keras 3 does not."
        )
    dtype = config.get("dtype")
    if isinstance(dtype, dict) and dtype.get("class_name") == "Policy":
        config["dtype"] = dtype["config"]["name"]
    for name in _HELD:
        if isinstance(config.get(name), dict) and "class_name" in config[name]:
            config[name] = modernized(config[name])
    if isinstance(config.get("cells"), list):
        config["cells"] = [modernized(cell) for cell in config["cells"]]
    return config


def _sequential(config: list | dict) -> dict:
    # A list until Keras 2.2.3.
    config = {"name": "sequential", "layers": config} if isinstance(config, list) else dict(config)
    entries = list(config["layers"])
    shape = entries[0]["config"].get("batch_input_shape") if entries else None
    if shape is not None and entries[0]["class_name"] != "InputLayer":
        first = entries[0]["config"]
        given = {"batch_input_shape": shape, "dtype": first.get("dtype"), "name": f"{first.get('name')}_input"}
        entries.insert(0, {"class_name": "InputLayer", "config": given})
    config.pop("build_input_shape", None)
    config["layers"] = [modernized(entry) for entry in entries]
    return config


def _graph(config: dict) -> dict:
    config = dict(config)
    config["layers"] = [modernized(entry) for entry in config["layers"]]
    # In Keras 2 a nested network of known inputs counted its making as its first call; in Keras 3 it does not, but for
    # references to functional networks from the ends.
    counted = {entry["name"]: entry["class_name"] for entry in config["layers"] if _made_by_a_call(entry)}
    names = {entry["name"] for entry in config["layers"]}
    for entry in config["layers"]:
        calls = _one_less(entry["inbound_nodes"], set(counted))
        entry["inbound_nodes"] = [_call(entry["class_name"], call, names) for call in calls]
    sequential = {name for name, kind in counted.items() if kind == "Sequential"}
    for ends in ("input_layers", "output_layers"):
        config[ends] = _one_less(config[ends], sequential)
        if isinstance(config[ends], list) and len(config[ends]) == 1:  # a network of one tensor, not of a list of one
            config[ends] = config[ends][0]
    return config


def _call(kind: str, call: list, names: set[str]) -> list | dict:
    """A call of a layer; in the form of Keras 3 where tensors are among its keyword arguments, which it else drops."""
    inputs = [given for given in call if isinstance(given, list)]
    arguments = inputs[0][3] if inputs and len(inputs[0]) > 3 else {}
    tensors = _tensors(arguments, names)
    given = [_tensors(reference[:3], names) for reference in inputs]
    if kind in _RECURRENT and (len(inputs) > 1 or "constants" in arguments):
        # Keras 2 wrote initial states beside the input, and constants that there are none of.
        tensors = {name: value for name, value in tensors.items() if name != "constants"}
        if len(inputs) > 1:
            tensors["initial_state"] = given[1:]
        return {"args": given[:1], "kwargs": tensors}
    if tensors == arguments:
        return call
    return {"args": given if len(given) == 1 else [given], "kwargs": tensors}


def _tensors(value: Any, names: set[str]) -> Any:
    """References `[name, call, output]` as Keras 3 writes them; it looks their shapes up."""
    if isinstance(value, dict):
        return {key: _tensors(part, names) for key, part in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) == 3 and _refers(value, names):
        return {"class_name": "__keras_tensor__", "config": {"shape": [], "dtype": "float32", "keras_history": value}}
    return [_tensors(part, names) for part in value]


def _refers(value: list, names: set[str]) -> bool:
    """Whether a list is a reference `[name, call, output, ...]` to a layer of these names."""
    return len(value) >= 3 and isinstance(value[0], str) and value[0] in names and isinstance(value[1], int)


def _made_by_a_call(entry: dict) -> bool:
    config = entry["config"]
    if "layers" not in config or entry["class_name"] not in _NETWORKS:
        return False
    return entry["class_name"] != "Sequential" or config["layers"][0]["class_name"] == "InputLayer"


def _one_less(value: Any, names: set[str]) -> Any:
    """References `[name, call, output, ...]` to layers of these names with the number of the call one less."""
    if isinstance(value, dict):
        return {key: _one_less(part, names) for key, part in value.items()}
    if not isinstance(value, list):
        return value
    if _refers(value, names):
        value = [value[0], value[1] - 1, *value[2:]]
    return [_one_less(part, names) for part in value]


def entries_in(config: Any) -> Iterator[dict]:
    """Every `{"class_name": ..., "config": ...}` within a config, from the outside in."""
    if isinstance(config, dict):
        if "class_name" in config and "config" in config:
            yield config
        for part in config.values():
            yield from entries_in(part)
    elif isinstance(config, list):
        for part in config:
            yield from entries_in(part)
