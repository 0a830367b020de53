"""The pruning methods, one file each, and `METHODS`, the catalogue of what each of them takes.

A method says how a network is trained to be pruned and how the plan is made: `tfprune.methods.base`. How to add one,
in `tfprune.methods.flags_of_methods`, or from outside.
"""

from tfprune.methods.catalog import Entry, Option
from tfprune.methods.flags_of_methods import METHODS

__all__ = ["METHODS", "Entry", "Option"]
