"""What costs seconds right after channels were removed, and before any training: statistics and biases."""
