"""The pruning methods, one file each.

A method says how a network is trained to be pruned and how the plan is made; see `tfprune.methods.base`.
"""

from tfprune.registry import Registry

METHODS = Registry("method")
for _name in ("l1_norm", "thinet", "regression", "network_slimming", "uniform", "random"):
    METHODS.add(_name, f"tfprune.methods.{_name}:METHOD")
