"""astjax: audio spectrogram transformers (AST, SSAST, ASiT) in JAX and Flax."""

__version__ = "0.1.0"
__all__ = ("__version__", "load")


def __getattr__(name: str):
  """`astjax.load`, which imports JAX, when it is asked for."""
  if name == "load":
    from astjax.serving.bundle import load

    return load
  raise AttributeError(f"module 'astjax' has no attribute {name!r}")
