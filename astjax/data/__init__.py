"""Audio in, batches out: the only package that imports TensorFlow."""
