"""Random pruning, a control: the widths of `uniform`, the channels drawn at random."""

from tfprune.methods.uniform import Uniform


class Random(Uniform):
    """The same ratio in every layer; which channels, at random."""

    blind = True
    criterion = of_views = "random"


METHOD = Random()
