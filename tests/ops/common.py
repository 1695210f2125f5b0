"""What the tests of the array functions share."""

import functools

import jax
import numpy as np

from astjax.ops import frontend, recipe, xp
from astjax.ops.recipe import apply

BACKENDS = {
  "numpy": xp.NUMPY,
  "jax": xp.Jax(double=True),
  "jax_float32": xp.Jax(double=False),
}


def parse(text):
  return recipe.parse(text, frontend.OPS, "recipe")


def noise(shape, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  return (rng.standard_normal(shape) * scale).astype(np.float32)


@functools.cache
def signal_a() -> np.ndarray:
  """One second of noise and a sine that no library's generator can change."""
  state, u = 1, []
  for _ in range(16_000):
    state = (1_103_515_245 * state + 12_345) % 2**31
    u.append(state / 2**31 - 0.5)
  sine = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
  return (0.2 * np.array(u) + 0.3 * sine).astype(np.float32)


def run_ops(text, example, key=0, name="numpy"):
  """The outputs of a recipe on one example, as NumPy arrays."""
  ops = parse(text)
  words = xp.random_key(key) if isinstance(key, int) else key
  if name == "numpy":
    return apply(ops, example, words, BACKENDS[name])
  run = jax.jit(lambda e, k: apply(ops, e, k, BACKENDS[name]))
  out = run(example, jax.random.wrap_key_data(words, impl="threefry2x32"))
  return {k: np.asarray(v) for k, v in out.items()}
