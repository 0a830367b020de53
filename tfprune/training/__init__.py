"""One training loop for every regime, method and distribution strategy."""
