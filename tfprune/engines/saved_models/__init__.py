"""SavedModels, as fast as TensorFlow lets them be."""
