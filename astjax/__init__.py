"""astjax: audio spectrogram transformers (AST, SSAST, ASiT) in JAX and Flax."""

__version__ = "0.1.0"
