"""Which platform a program is made for: this machine's, or another one.

A few choices depend on it (attention on a CPU, double precision). They are made
while a function is traced, and ask here rather than `jax.default_backend`, so
that a program for a TPU can be compiled on a machine that has none.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_ASKED_FOR = contextvars.ContextVar("platform", default="")


def platform() -> str:
  """That of `compiling_for`, else the default: "cpu", "gpu" or "tpu"."""
  return _ASKED_FOR.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
  """What is traced inside is made for this platform."""
  token = _ASKED_FOR.set(name)
  try:
    yield
  finally:
    _ASKED_FOR.reset(token)
