"""What whoever reads a plan of channels should know of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import keras

from tfprune.cost.profiling import cost_notes
from tfprune.graph.calls import Record
from tfprune.graph.channel_graph import ChannelGraph


def model_notes(graph: ChannelGraph, frozen: Mapping[str, str]) -> list[str]:
    """What a plan tells of the model itself, beside the layers that are frozen."""
    notes = cost_notes(graph)
    if narrowed := graph.narrowed():
        notes.append(
            f"normalization='narrowed': {', '.join(narrowed)} run over the channels that are left, here and in the "
            "masked network of the proof; so the outputs are not those of the network with zeroed channels"
        )
    notes += dict.fromkeys(note for record in graph.records.values() for note in record.notes)
    # Whatever such a layer froze may be frozen for another reason, too, or be no channels that a layer creates.
    unknown = {r.given_up for r in graph.records.values() if "not known to tfprune" in r.given_up}
    return notes + sorted(unknown - set(frozen.values()))


def unnamed_notes(made: Iterable[Record]) -> list[str]:
    """A note where a file of the smaller network holds Python code that a layer has hidden in its own constructor."""
    names = [
        part.name
        for part in made
        if part.whole is not None and getattr(getattr(part.operation, "activation", None), "__name__", "") == "<lambda>"
    ]
    if not names:
        return []
    return [f"saved, the smaller network cannot be loaded: a lambda is the activation of {', '.join(names)}; name it"]


def hdf5_notes(graph: ChannelGraph, made: Iterable[Record]) -> list[str]:
    """A note where the smaller network can no longer be loaded from HDF5, and the model can.

    Keras does not read operations between layers from there. The call of a layer may hold some, which come to light.
    """
    if any(map(_not_in_hdf5, (record for record in graph.records.values() if record.whole is None))):
        return []
    kinds = sorted({type(part.operation).__name__ for part in made if _not_in_hdf5(part)})
    if not kinds:
        return []
    return [
        f"saved as .h5, the smaller network cannot be loaded: Keras does not read operations ({', '.join(kinds)}) from "
        "HDF5; save it as .keras"
    ]


def _not_in_hdf5(record: Record) -> bool:
    """Whether a record is of an operation that stands in the smaller network as such, and cannot be read from HDF5."""
    kind = type(record.operation).__name__
    if isinstance(record.operation, keras.Layer) or kind in ("Concatenate", "Softmax"):  # which pass for the layers
        return False
    # Inside of a layer, reshapes and products with numbers become layers.
    scales = kind == "Multiply" and all(len(call.node.arguments.tensors) == 1 for call in record.calls)
    return record.whole is None or not (kind == "Reshape" or scales)


def unregistered_notes(graph: ChannelGraph, made: Iterable[Record]) -> list[str]:
    """A note where a file of the smaller network needs classes of which a file of the model itself needs none.

    Such a model is of a class that makes its layers in its constructor; the smaller network is a plain one.
    """
    if type(graph.model).__module__.partition(".")[0] == "keras":
        return []
    kinds = {type(record.operation) for record in made if isinstance(record.operation, keras.Layer)}
    names = sorted(
        kind.__name__
        for kind in kinds
        if kind.__module__.partition(".")[0] != "keras"
        and keras.saving.get_registered_object(keras.saving.get_registered_name(kind)) is not kind
    )
    if not names:
        return []
    return [f"saved, the smaller network is loaded with custom_objects= for {', '.join(names)}: nobody registered them"]
