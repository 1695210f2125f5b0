"""Pure array functions: no Flax, no TensorFlow, no input or output."""
