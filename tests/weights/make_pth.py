"""Writes the torch files of `tests/fixtures/pth` and their numbers.

    python -m tests.weights.make_pth

needs torch. Each object is saved in both of torch's containers; what torch sees
in it is stored next to them, bfloat16 as uint16.
"""

import argparse
import io
import pathlib
from collections import OrderedDict
from unittest import mock

import numpy as np
import torch

from tests.weights.common import flat

FOLDER = pathlib.Path(__file__).parent.parent / "fixtures" / "pth"

FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
DTYPES = (
  torch.float64,
  *FLOATS.values(),
  torch.int64,
  torch.int32,
  torch.int16,
  torch.int8,
  torch.uint8,
  torch.bool,
)


def numbers(rng, *shape):
  return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def module(rng, dtype, parallel=False):
  """A small module with weights, buffers and a counter."""
  net = torch.nn.Sequential(
    OrderedDict(
      proj=torch.nn.Conv2d(1, 4, (2, 3)),
      norm=torch.nn.BatchNorm2d(4),
      head=torch.nn.Linear(4, 3),
    )
  )
  for tensor in (*net.parameters(), *net.buffers()):
    if tensor.is_floating_point():
      tensor.data = numbers(rng, *tensor.shape)
  net = net.to(dtype)
  return torch.nn.DataParallel(net) if parallel else net


def dtypes(rng):
  """Each of the plain types, with its extremes."""
  out = OrderedDict()
  for dtype in DTYPES:
    if dtype.is_floating_point:
      info = torch.finfo(dtype)
      extremes = [info.max, info.min, info.smallest_normal, info.eps, -0.0]
      odd = [float("nan"), float("inf"), float("-inf"), info.tiny / 4]
      values = extremes + odd + rng.standard_normal(3).tolist()
    elif dtype == torch.bool:
      values = [True, False, False] * 4
    else:
      info = torch.iinfo(dtype)
      values = [info.max, info.min, 0, 1, 2, 3, 5, 7, 11, 13, 17, 19]
    tensor = torch.tensor(
      values, dtype=torch.float64 if dtype in FLOATS.values() else dtype
    ).to(dtype)
    name = str(dtype).removeprefix("torch.")
    out[name] = tensor.reshape(3, 4)
    out[name + ".scalar"] = tensor[3].clone()
    out[name + ".empty"] = torch.empty(0, dtype=dtype)
  return out


def views(rng):
  """All ways in which a tensor may lie in its storage."""
  base = numbers(rng, 6, 8)
  half = numbers(rng, 3, 4).half()
  return OrderedDict(
    base=base,
    transposed=base.T,
    offset=base[2:5, 3:7],
    stepped=base[::2, 1::3],
    column=base[:, 5],
    one=base[4, 4],
    permuted=numbers(rng, 2, 3, 4).permute(2, 0, 1),
    half_transposed=half.T,
    expanded=numbers(rng, 3, 1).expand(3, 5),
    scalar=numbers(rng),
    empty=torch.empty(0),
    empty_rows=torch.empty(0, 7),
    empty_slice=base[3:3],
    parameter=torch.nn.Parameter(numbers(rng, 2, 2)),
    frozen=torch.nn.Parameter(numbers(rng, 2), requires_grad=False),
  )


def wrapped(rng):
  """A checkpoint in the middle of a training."""
  net = module(rng, torch.float32)
  optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
  for p in net.parameters():
    p.grad = numbers(rng, *p.shape)
    # Not by a step: its sums may differ from machine to machine.
    optimizer.state[p] = {
      "step": torch.tensor(3.0),
      "exp_avg": numbers(rng, *p.shape),
    }
  return {
    "model": net.state_dict(),
    "epoch": 3,
    "args": argparse.Namespace(lr=1e-3, data="x", sizes=[1, 2], ema=None),
    "optimizer": optimizer.state_dict(),
    "best": (0.5, True, "mAP"),
    "device": torch.device("cuda", 1),
    "shape": torch.Size((2, 3)),
  }


def cases():
  """{name: object to save}, the same each time."""
  out = {}
  for name, dtype in FLOATS.items():
    rng = np.random.default_rng(0)
    out[name] = module(rng, dtype).state_dict()
    out[name + "_parallel"] = module(rng, dtype, parallel=True).state_dict()
  for make in (dtypes, views, wrapped):
    out[make.__name__] = make(np.random.default_rng(1))
  return out


def expected(value):
  """{name: array} as torch sees the tensors in it."""
  out = {}
  for name, leaf in flat(value).items():
    if isinstance(leaf, torch.Tensor):
      leaf = leaf.detach().contiguous()
      if leaf.dtype == torch.bfloat16:
        out[name] = leaf.view(torch.int16).numpy().view(np.uint16)
      else:
        out[name] = leaf.numpy()
  return out


def save(value, path, container):
  """By `torch.save`, as a "zip" archive or the "stream" before it."""
  torch.save(value, path, _use_new_zipfile_serialization=container == "zip")


def main():
  keys = {}

  class Key(str):
    """torch names the storages of a stream by their addresses."""

    def __new__(cls, address):
      return keys.setdefault(address, f"{len(keys):03}")

  FOLDER.mkdir(exist_ok=True)
  for name, value in cases().items():
    save(value, FOLDER / f"{name}_zip.pth", "zip")
    stream = io.BytesIO()
    keys.clear()
    with mock.patch.object(torch.serialization, "str", Key, create=True):
      save(value, stream, "stream")
    (FOLDER / f"{name}_stream.pth").write_bytes(stream.getvalue())
    np.savez(FOLDER / f"{name}.npz", **expected(value))


if __name__ == "__main__":
  main()
