"""Design plans: an architecture beside a large network, as data.

A *design* is not what is left of the large network when something is removed: it has another head, reads other
channels, or was found on another network. So it inherits no weights and is only trained from scratch; the large
network gives the epochs and FLOPs that its budgets are counted in.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras

from tfprune.cost.profiling import Profile, profile_graph
from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.walk import functional
from tfprune.plans.base import TOLD, Plan, costs, for_another_model
from tfprune.plans.files import PAIR, Form
from tfprune.plans.rows import ChannelRow, Pair, paired
from tfprune.surgery.compiling import compile_alike
from tfprune.surgery.rebuild import clone


@dataclasses.dataclass(frozen=True, kw_only=True)
class DesignPlan(Plan[ChannelRow]):
    """Which architecture is trained in the place of a smaller network.

    Here *before* is the large network and *after* the design; their layers are matched by name. Beside what every plan
    has (`tfprune.plans.base.Plan`):

    Attributes:
        architecture: The config with which Keras makes it, in its safe mode; JSON types.
    """

    architecture: Mapping[str, Any]

    unit = "channels"
    inherits = False
    no_masked_twin = "A design does not compute what the network beside it does."
    row_type = ChannelRow
    columns = ("layer", "channels", "design", "params", "design", "MACs", "design")
    file_format = "tfprune design plan 1"
    file_fields: ClassVar[Mapping[str, Form]] = {
        "architecture": dict,
        "rows": [ChannelRow.form()],
        "flops": PAIR,
        **TOLD,
    }
    how_to_edit = "for another architecture use DesignPlan.beside"

    @classmethod
    def beside(
        cls,
        model: keras.Model,
        design: keras.Model,
        *,
        notes: Sequence[str] = (),
        origin: Mapping[str, Any] | None = None,
    ) -> DesignPlan:
        """Makes the plan of a network whose weights do not matter.

        Args:
            model: The large network.
            design: A functional or Sequential model with the inputs and outputs of the large network.
            notes: Shown with the plan.
            origin: Shown with the plan.

        Raises:
            PlanError: If the two do not map the same shapes, or Keras cannot make the design from its config.
        """
        shapes = [_shapes(network) for network in (model, design)]
        if shapes[0] != shapes[1]:
            raise PlanError(
                f"The design {design.name!r} maps {shapes[1]}, the network {model.name!r} beside it {shapes[0]}; a "
                "design is trained on the same data, so it needs the same inputs and outputs."
            )
        architecture = json.loads(clone(design).to_json())
        before, after = _cost(model), _cost(_made(architecture))
        return cls(
            architecture=architecture,
            rows=paired(before, after),
            **costs(before, after),
            notes=tuple(notes),
            origin=dict(origin or {"design": design.name}),
        )

    def apply(self, model: keras.Model, weights: str = "fresh", seed: int | None = None) -> keras.Model:
        """Builds the design with new weights, compiled as the model is.

        Args:
            model: The large network that the plan was made for (or one of the same architecture).
            weights: `"fresh"`: from the layers' own initializers. There is nothing to inherit.
            seed: The same seed gives the same weights.

        Raises:
            PlanError: If the plan is for another model, if its architecture is damaged, or for other `weights`.
        """
        if weights != "fresh":
            raise PlanError(
                f"weights={weights!r} is not to be had: a design is no part of {model.name!r}, so it has no weights "
                "that it could inherit. Valid: 'fresh'."
            )
        design = _made(self.architecture)
        before, after = _cost(model), _cost(design)
        why = "The model is another one or takes another size of input, or the plan was edited; "
        self._check_costs(model, before, after, paired(before, after), f"{why}{self.how_to_edit}.")
        ours, theirs = _shapes(design), _shapes(model)
        if ours != theirs:
            raise for_another_model(f"its design maps {ours}, {model.name!r} maps {theirs}")
        design = clone(design, weights="fresh", seed=seed)
        compile_alike(design, model)
        return design

    def sizes(self) -> dict[str, Pair]:
        """Layer -> channels that it creates in the large network and in the design; 0 where there is no such layer."""
        return {row.layer: row.channels for row in self._shown()}

    def prove(self, model: keras.Model) -> str:
        """Builds the design and counts; returns what was found, in a sentence.

        No outputs can be compared, because the design does not compute what the large network does.

        Raises:
            PlanError: If the plan is for another model, or the design does not cost what the plan foretells.
        """
        cost = _cost(self.apply(model))
        return f"the design has the {cost.params:,} params and {cost.flops:,} FLOPs foretold; it inherits nothing"

    def _shown(self) -> list[ChannelRow]:
        return [row for row in self.rows if any(row.channels)]


def _made(architecture: Mapping[str, Any]) -> keras.Model:
    """The network of a config, which runs no code of its own: Keras' safe mode makes layers that are known only."""
    try:
        own = copy.deepcopy(architecture)  # Keras takes it apart
        return functional(keras.saving.deserialize_keras_object(own, safe_mode=True))
    except Exception as error:  # whatever a damaged or foreign config makes Keras raise
        first: BaseException = error
        while first.__context__ is not None:  # Keras wraps what went wrong in the configs around it
            first = first.__context__
        reason = f"{type(first).__name__}: {' '.join(str(first).split())}"
        raise PlanError(
            f"Keras cannot make the design from its config ({reason[:200]}). It takes layers of its own and registered "
            "ones, and no code; if the file of the plan is damaged, make the plan anew."
        ) from error


def _cost(model: keras.Model) -> Profile:
    """What the architecture costs, weights that are zero by chance included."""
    graph = ChannelGraph(model)
    return profile_graph(graph, graph.keep_all())


def _shapes(model: keras.Model) -> str:
    """The shapes of the inputs and outputs, as a message shows them."""
    model = functional(model)
    inputs, outputs = (", ".join(str(tensor.shape[1:]) for tensor in own) for own in (model.inputs, model.outputs))
    return f"{inputs} to {outputs}"
