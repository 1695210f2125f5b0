"""Group masked model learning: ASiT's corruption of spectrograms.

Random blocks are drawn until they cover a part of a spectrogram. What they
cover is filled, or comes from another clip: one or the other, drawn for each
view of each clip. (ASiT, arXiv 2211.13189, and the original's code.)
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from astjax.errors import UserError
from astjax.types import Array

MAX_SIDE = 0.3  # blocks are shorter than this part of the spectrogram's side
MAX_FRACTION = 0.9

_DRAWS = 64  # blocks drawn at once: half a spectrogram takes 24 to 59


@dataclasses.dataclass(frozen=True)
class Gmml:
  """How spectrograms are corrupted."""

  # The part of a spectrogram that is filled; above 0.5 it is drawn from
  # [0.5, drop), as is `replace`.
  drop: float
  # The part that another clip's cells replace, in half of all views; above 0
  # the other half is filled.
  replace: float = 0.3
  align: int = 1  # blocks begin and end at multiples of so many cells
  # Zero is the mean of standardised log-mels; "time" and "freq" zero all of the
  # frames or mel bins that a block touches.
  fill: Literal["zeros", "noise", "time", "freq"] = "zeros"
  # Mean and deviation of log-mels before standardising, as in the original.
  noise: tuple[float, float] = (-4.2677393, 4.5689974)


def corrupt(keys: Array, fbank: Array, how: Gmml) -> tuple[Array, Array]:
  """Corrupts the views of a whole batch.

  Of keys [B, V] and the standardised log-mels [B, V, T, F] of all devices:
  (corrupted log-mels; mask, [B, V, T, F] bool, True in the blocks).

  Raises:
    UserError: a spectrogram in which such blocks cannot be drawn.
  """
  batch, views, *sides = fbank.shape
  shape = (sides[0], sides[1])
  check(shape, how)

  def draw(key, x):
    coin, donor, fraction, blocks, noise = jax.random.split(key, 5)
    is_other = (jax.random.uniform(coin) < 0.5) & (how.replace > 0)
    most = jnp.where(is_other, how.replace, how.drop)
    least = jnp.minimum(most, 0.5)
    part = least + (most - least) * jax.random.uniform(fraction)
    mask, _ = block_mask(blocks, part, shape=shape, align=how.align)
    # The original draws the other clip from the same process. Here it is any
    # clip of the batch, itself too, so that the number of devices changes
    # nothing.
    donor = jax.random.randint(donor, (), 0, batch)
    return is_other, donor, mask, _fill(noise, x, mask, how)

  is_other, donor, mask, filled = jax.vmap(jax.vmap(draw))(keys, fbank)
  if not how.replace:
    return filled, mask
  other = jnp.where(mask, fbank[donor, jnp.arange(views)], fbank)
  return jnp.where(is_other[..., None, None], other, filled), mask


def block_mask(
  key: Array, fraction: Array, *, shape: tuple[int, int], align: int = 1
) -> tuple[Array, Array]:
  """Blocks until at least `fraction` of the cells is covered.

  A block has its first cell drawn evenly, but never in the last `align` frames
  or mel bins, and its sides up to `MAX_SIDE`, cut at the borders: so the first
  frames and the lowest mel bins are hardly ever covered, as in the original.
  Of one spectrogram of `shape` (T, F): (mask [T, F] bool, number of blocks).
  """
  target = fraction * math.prod(shape)
  blocks = jnp.arange(_DRAWS)[:, None, None]

  def first_block(key):
    """[T, F]: which of the drawn blocks is the first to cover a cell."""
    keys = jax.random.split(key)
    frames = _spans(keys[0], shape[0], align)[:, :, None]
    bins = _spans(keys[1], shape[1], align)[:, None, :]
    return jnp.min(jnp.where(frames & bins, blocks, _DRAWS), axis=0)

  def is_short(state):
    _, mask, _ = state
    return jnp.sum(mask) < target

  def draw(state):
    number, mask, count = state
    first = first_block(jax.random.fold_in(key, number))
    first = jnp.where(mask, -1, first)
    # A block is drawn if those before it do not cover enough.
    covered = jnp.sum(first < blocks, axis=(1, 2))
    drawn = jnp.sum(covered < target)
    return number + 1, first < drawn, count + drawn

  start = (jnp.int32(0), jnp.zeros(shape, bool), jnp.int32(0))
  _, mask, count = jax.lax.while_loop(is_short, draw, start)
  return mask, count


def _spans(key: Array, length: int, align: int) -> Array:
  """Where the drawn blocks are along one axis, [draws, length] bool."""
  start_key, size_key = jax.random.split(key)
  start = jax.random.randint(start_key, (_DRAWS,), 0, length - align)
  start = start // align * align
  size = jax.random.randint(size_key, (_DRAWS,), align, int(MAX_SIDE * length))
  size = _to_multiple(jnp.minimum(size, length - start), align)
  cell = jnp.arange(length)
  return (cell >= start[:, None]) & (cell < (start + size)[:, None])


def _to_multiple(n, align):
  """The nearest multiple; from the middle to the even one."""
  rest = n % align
  number = n // align
  return (number + (2 * rest + number % 2 > align)) * align


def _fill(key, x, mask, how):
  """[T, F] with its blocks filled."""
  if how.fill == "time":
    mask = jnp.any(mask, axis=1, keepdims=True)
  elif how.fill == "freq":
    mask = jnp.any(mask, axis=0, keepdims=True)
  elif how.fill == "noise":
    mean, std = how.noise
    return jnp.where(mask, mean + std * jax.random.normal(key, x.shape), x)
  return jnp.where(mask, 0.0, x)


def check(shape: tuple[int, int], how: Gmml) -> None:
  """Raises a UserError if a spectrogram (T, F) is too small for the blocks."""
  most = 1.0
  for length, name in zip(shape, ("frames", "mel bins"), strict=True):
    longest = int(MAX_SIDE * length)
    if longest <= how.align:
      raise UserError(
        f"blocks are up to {MAX_SIDE} of a side long and at least drop_align="
        f"{how.align}: {length} {name} are too few"
      )
    ends = (
      start + _to_multiple(min(longest - 1, length - start), how.align)
      for start in range(0, length - how.align, how.align)
    )
    most *= min(max(ends), length) / length
  asked, most = max(how.drop, how.replace), min(most, MAX_FRACTION)
  if asked > most:
    raise UserError(
      f"blocks cannot cover {asked} of {shape[0]} frames x {shape[1]} mel bins "
      f"with drop_align={how.align}: at most {most:.3g}; lower drop_perc and "
      "drop_replace"
    )
