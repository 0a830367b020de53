"""The pruning methods, one file each, and `METHODS`, the catalogue of what each of them takes.

A method says how a network is trained to be pruned and how the plan is made: `tfprune.methods.base`. How to add one,
here or from outside: `tfprune.methods.catalog`.
"""

from tfprune.methods.catalog import METHODS, Entry, Option

__all__ = ["METHODS", "Entry", "Option"]
