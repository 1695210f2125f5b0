"""What crosses processes."""

import json

import jax
import numpy as np

from astjax.engine import sharding


def test_union_of_what_each_process_has_met(monkeypatch):
  mine = {"train": [("a.wav", "empty")], "val": []}
  theirs = {"train": [("a.wav", "empty"), ("ä.wav", "no samples")], "val": []}
  assert sharding.union(mine) == mine  # one process: as it is

  other = np.frombuffer(json.dumps(theirs).encode(), np.uint8)

  def gather(x):
    if x.ndim == 0:
      return np.array([x, other.size])
    return np.stack([x, np.pad(other, (0, x.size - other.size))])

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(sharding.multihost_utils, "process_allgather", gather)
  assert sharding.union(mine) == {
    "train": [("a.wav", "empty"), ("ä.wav", "no samples")],
    "val": [],
  }
