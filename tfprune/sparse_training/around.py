"""The three calls: `tfprune.sparse`, `tfprune.callbacks` and `tfprune.finish`."""

from __future__ import annotations

import keras

from tfprune.errors import UsageError
from tfprune.plans.base import Plan
from tfprune.sparse_training.base import Attached, SparseMethod
from tfprune.support.checks import shown

_PLACE = "_tfprune_attached"  # the attribute of a network that holds what is around it; files do not


def sparse(model: keras.Model, method: SparseMethod, initial_step: int | None = None) -> keras.Model:
    """Puts a pruning method around a network, which is then trained as always.

    >>> model = tfprune.sparse(model, tfprune.Magnitude(0.8, tfprune.PolynomialDecay(end_step=2000)))
    >>> model.compile(optimizer, loss)
    >>> model.fit(data, callbacks=tfprune.callbacks(model))
    >>> plan, model = tfprune.finish(model)

    The network stays the object that it is, with its class, its `train_step` and what it was compiled with, for all
    methods but `SparseStructureSelection`. What files hold of it is plain: they load without tfprune. To go on with a
    training that was saved, load the file and call this again.

    Args:
        model: A built network, functional, Sequential or subclassed. Its weights are where the training starts.
        method: `Magnitude`, `Lottery`, `NetworkSlimming`, `SparseStructureSelection` or `SoftFilter`.
        initial_step: For `Magnitude`, the number of batches that an earlier training has seen. By default it is found:
            in the zeros that this training has left in the network, and the optimizer's count of batches.

    Returns:
        The network to train.

    Raises:
        PlanError: If the network has nothing to prune, or an argument is out of range.
        UsageError: If the method is none, or one is around the network already.
    """
    if not isinstance(model, keras.Model):
        raise UsageError(f"tfprune.sparse takes a Keras model and a method; received {shown(model)} as model.")
    if not isinstance(method, SparseMethod):
        raise UsageError(
            f"tfprune.sparse takes a model and a method; received {shown(method)} as method. Valid: Magnitude, "
            "Lottery, NetworkSlimming, SparseStructureSelection, SoftFilter of tfprune, as tfprune.Magnitude(0.8)."
        )
    if getattr(model, _PLACE, None) is not None:
        raise UsageError(f"{model.name!r} is trained sparse already. Call tfprune.finish(model) first.")
    attached = method.attach(model, initial_step)
    setattr(attached.model, _PLACE, attached)
    return attached.model


def callbacks(model: keras.Model) -> list[keras.callbacks.Callback]:
    """The callbacks with which a network is trained that `sparse` returned.

    Put them after others: what gives old weights back at the end of a training, such as `EarlyStopping`, knows of no
    masks.

    Raises:
        UsageError: If it is another one.
    """
    return _attached(model).callbacks()


def finish(model: keras.Model) -> tuple[Plan, keras.Model]:
    """Takes the method off a network that was trained.

    Args:
        model: What `sparse` returned.

    Returns:
        The plan, of weights that are off or of channels to remove, and the plain network that it is for, which is the
        one that was given to `sparse`, trained. `plan.apply(network)` makes the pruned one; a network whose weights
        are off is pruned already.

    Raises:
        UsageError: If no method is around the network.
        PlanError: If no plan can be made of it.
    """
    attached = _attached(model)
    found = attached.finish()
    setattr(model, _PLACE, None)
    return found


def _attached(model: keras.Model) -> Attached:
    attached = getattr(model, _PLACE, None)
    if not isinstance(attached, Attached):
        what = repr(model.name) if isinstance(model, keras.Model) else shown(model)
        raise UsageError(
            f"No method is around {what}. Call model = tfprune.sparse(model, method) first, also after loading a file."
        )
    return attached
