"""The pruning methods, one file each.

A method says how a network is trained to be pruned and how the plan is made; see `tfprune.methods.base`.
"""

from tfprune.support.registry import Registry

METHODS = Registry("method")
# What sparse_structure_selection gates; here, so that a command line can check it before it pays for TensorFlow.
GATES = ("blocks", "neurons", "groups")
_NAMES = (
    *("l1_norm", "thinet", "regression", "network_slimming", "sparse_structure_selection", "soft_filter"),
    *("magnitude", "uniform", "random", "uniform_sparsification", "guided"),
)
for _name in _NAMES:
    METHODS.add(_name, f"tfprune.methods.{_name}:METHOD")
