"""Layers that nobody taught: what they do inside, how they are made again with other widths, or else unfolded."""
