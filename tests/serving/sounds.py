"""A small run on recordings of all kinds, and what its evaluation gives."""

from __future__ import annotations

import contextlib

import jax
import numpy as np
import soundfile
from ml_collections import ConfigDict

from astjax import train
from astjax.data import pipeline
from astjax.engine import sharding
from astjax.engine.step import make_eval_step
from astjax.run import evaluation as run_evaluation
from astjax.run import job
from tests.tiny import RATE, SAMPLES, tiny_config

# name -> (samples, rate, channels)
RECORDINGS = {
  "a/exact.wav": (SAMPLES, RATE, 1),
  "a/one_more_hop.wav": (SAMPLES + 79, RATE, 1),
  "a/short.flac": (900, RATE, 1),
  "a/stereo.wav": (1500, RATE, 2),
  "b/five_channels.wav": (1600, 16_000, 5),
  "b/fast.flac": (9000, 44_100, 2),
  "b/long.wav": (9000, 22_050, 1),
  "b/shortest.wav": (10, RATE, 1),
}


def noise(samples, channels=1, seed=0):
  """Coloured, so that clips differ from each other."""
  rng = np.random.default_rng(seed)
  audio = rng.standard_normal((samples, channels))
  audio = audio + (seed % 3) * np.roll(audio, 1, axis=0)
  return (0.05 * (1 + seed) * audio / 3).clip(-1, 1).astype(np.float32)


def write(folder):
  """All of `RECORDINGS`."""
  for seed, (name, (samples, rate, channels)) in enumerate(RECORDINGS.items()):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = noise(samples, channels, seed)
    soundfile.write(path, audio if channels > 1 else audio[:, 0], rate)
  return folder


def trained(sounds, workdir, **overrides):
  """A run of three steps, with a rate at which its logits come apart."""
  config = tiny_config(steps=3, schedule={"lr": 0.02}, best="", **overrides)
  config.input.source = "folder"
  config.input.source_kw = ConfigDict({})
  config.input.data_dir = str(sounds)
  config.input.split = ""
  config.input.on_host = config.input.on_host.replace(
    "decode|", f"decode|resample({RATE})|"
  )
  config.evals.val.split = ""
  config.evals.val.source_kw = ConfigDict({})
  mesh = sharding.make_mesh(jax.devices()[:1])
  train.train_and_evaluate(config, workdir, mesh=mesh)
  return workdir


def evaluation(workdir):
  """(names, outputs, metrics) of the run's own evaluation."""
  loaded, state = job.load_run(workdir)
  split = loaded.evals["val"]
  step = make_eval_step(loaded.task, split.device_ops, loaded.mesh)
  batches = pipeline.eval_batches(split.reader, split.host_ops, batch_size=4)
  with contextlib.closing(batches):
    out = run_evaluation.outputs(step, state, batches, loaded.mesh)
  names = [split.reader.source.name(i) for i in out["id"]]
  return names, out, run_evaluation.reduce(loaded.task, out)[0]
