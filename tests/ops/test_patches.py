"""Patches: their order, their grids, and the way back."""

import jax
import numpy as np
import pytest

from astjax.errors import UserError
from astjax.ops import patches, xp
from tests.ops.common import BACKENDS, noise

CASES = [
  # frames, mel bins, patch, stride
  (32, 32, (16, 16), (16, 16)),
  (40, 30, (16, 16), (10, 10)),
  (23, 19, (4, 6), (3, 5)),
  (9, 12, (12, 2), (1, 1)),
  (21, 8, (8, 1), (8, 4)),
]


def by_loops(fbank, patch, stride):
  frames, bins = fbank.shape
  rows = range(0, bins - patch[0] + 1, stride[0])
  cols = range(0, frames - patch[1] + 1, stride[1])
  return np.array(
    [
      [
        [
          fbank[t + dt, f + df]
          for df in range(patch[0])
          for dt in range(patch[1])
        ]
        for t in cols
      ]
      for f in rows
    ]
  )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", BACKENDS)
def test_order(case, name):
  frames, bins, patch, stride = case
  x = noise((frames, bins))
  out = patches.patchify(x, patch_size=patch, stride=stride, xp=BACKENDS[name])
  np.testing.assert_array_equal(np.asarray(out), by_loops(x, patch, stride))


def test_golden_ramp():
  ramp = 32.0 * np.arange(32)[None, :] + np.arange(32)[:, None]  # [T, F]
  out = patches.patchify(ramp, patch_size=(16, 16), stride=(16, 16))
  blocks = out.reshape(4, 256)  # number f * T' + t
  assert blocks[1, :3].tolist() == [16, 17, 18]
  assert blocks[1, 16] == 48
  assert blocks[2, 0] == 512


@pytest.mark.parametrize(
  ("frames", "stride", "grid"),
  [
    (1024, 10, (12, 101)),
    (1024, 12, (10, 85)),
    (1024, 14, (9, 73)),
    (1024, 16, (8, 64)),
    (512, 10, (12, 50)),
    (128, 10, (12, 12)),
    (100, 10, (12, 9)),
  ],
)
def test_grids_of_the_papers(frames, stride, grid):
  how = {"patch_size": (16, 16), "stride": (stride, stride)}
  assert patches.grid_shape(frames, 128, **how) == grid
  out = patches.patchify(np.zeros((frames, 128), np.float32), **how)
  assert out.shape == (*grid, 256)


@pytest.mark.parametrize("name", BACKENDS)
def test_leading_axes_are_kept(name):
  x = noise((2, 3, 20, 12))
  how = {"patch_size": (6, 4), "stride": (3, 4), "xp": BACKENDS[name]}
  out = np.asarray(patches.patchify(x, **how))
  assert out.shape == (2, 3, 3, 5, 24)
  assert out.dtype == np.float32
  np.testing.assert_array_equal(
    out[1, 2], np.asarray(patches.patchify(x[1, 2], **how))
  )


@pytest.mark.parametrize("patch", [(16, 16), (8, 2), (32, 1), (1, 48)])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_unpatchify_is_the_inverse(patch, batch):
  x = noise((*batch, 48, 32))
  cut = patches.patchify(x, patch_size=patch, stride=patch)
  back = patches.unpatchify(cut, patch_size=patch)
  np.testing.assert_array_equal(back, x)
  again = patches.patchify(back, patch_size=patch, stride=patch)
  np.testing.assert_array_equal(again, cut)


def test_under_jit():
  x = noise((2, 32, 24))

  @jax.jit
  def there_and_back(x):
    cut = patches.patchify(x, patch_size=(8, 4), stride=(8, 4), xp=xp.JAX)
    return cut, patches.unpatchify(cut, patch_size=(8, 4))

  cut, back = there_and_back(x)
  np.testing.assert_array_equal(
    cut, patches.patchify(x, patch_size=(8, 4), stride=(8, 4))
  )
  np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("frames_and_bins", [(15, 128), (128, 15)])
def test_too_small(name, frames_and_bins):
  frames, bins = frames_and_bins
  with pytest.raises(UserError, match=f"{bins} mel bins x {frames} frames"):
    patches.patchify(
      np.zeros(frames_and_bins, np.float32),
      patch_size=(16, 16),
      stride=(10, 10),
      xp=BACKENDS[name],
    )


@pytest.mark.parametrize(
  ("patch", "stride"),
  [((0, 16), (10, 10)), ((16, -1), (10, 10)), ((16, 16), (0, 10))],
)
def test_sizes_are_positive(patch, stride):
  with pytest.raises(UserError, match="must be positive"):
    patches.grid_shape(128, 128, patch, stride)
