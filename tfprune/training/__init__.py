"""One training loop for every regime, method and distribution strategy."""

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")  # Keras dtype policies; variables are float32 in all
