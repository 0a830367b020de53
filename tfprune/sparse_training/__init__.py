"""Pruning while a network trains by its user's own `fit`: `tfprune.sparse`, `tfprune.callbacks`, `tfprune.finish`."""
