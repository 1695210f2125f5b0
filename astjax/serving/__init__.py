"""Models in use, without their training data and without TensorFlow."""
