"""What a step of SSAST costs beside a supervised step with as many tokens.

  python benchmarks/ssast_step.py [--variant=base384] [--batch=4] [--steps=3]

Times compiled steps of training (forward, backward, Adam) on random
spectrograms of 1,024 frames: supervised with patches that do not overlap, joint
SSAST with two passes (the original's) and with one. The three take turns, so
that a busy machine is busy for all. Prints one JSON line; the ratios are of the
medians.
"""

from __future__ import annotations

import argparse
import time

import common
import jax
import numpy as np

from astjax import tasks
from astjax.engine import optim, sharding
from astjax.engine.step import init_state, make_train_step, train_key

FRAMES, MELS, CLASSES, MASKED = 1024, 128, 527, 400
TASKS = {
  "supervised": ("supervised", {"loss": "bce"}),
  "joint": ("ssast", {"num_mask": MASKED, "passes": 2}),
  "one_pass": ("ssast", {"num_mask": MASKED, "passes": 1}),
}


def make_step(name: str, model: dict, batch: dict, mesh):
  """A function that does one step and waits for it."""
  kind, given = TASKS[name]
  task = tasks.build(
    kind,
    given,
    model=model,
    num_classes=CLASSES,
    steps_per_epoch=1.0,
    total_steps=1,
  )
  key = train_key(0)
  shapes = jax.eval_shape(lambda: task.init_params(key, batch))
  tx = optim.make_optimizer(shapes, lambda step: 1e-4)
  state = jax.jit(
    lambda: init_state(task, task.init_params(key, batch), tx),
    out_shardings=sharding.replicated(mesh),
  )()
  step = make_train_step(task, tx, (), mesh)
  rows = sharding.to_global(batch, mesh)
  numbers = iter(range(1_000_000))

  def run():
    nonlocal state
    state, metrics = step(state, rows, next(numbers), key)
    jax.block_until_ready(metrics)

  return run


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--variant", default="base384")
  parser.add_argument("--batch", type=int, default=4)
  parser.add_argument("--steps", type=int, default=3)
  parser.add_argument("--dtype", default="float32")
  args = parser.parse_args()
  random = np.random.default_rng(0)
  batch = {
    "fbank": random.standard_normal((args.batch, FRAMES, MELS)).astype("f4"),
    "label": (random.random((args.batch, CLASSES)) < 0.01).astype("f4"),
    "id": np.arange(args.batch, dtype=np.int32),
  }
  model = {
    "variant": args.variant,
    "patch_size": (16, 16),
    "stride": (16, 16),
    "dtype": args.dtype,
  }
  mesh = sharding.make_mesh(jax.devices()[:1])
  steps = {name: make_step(name, model, batch, mesh) for name in TASKS}
  times: dict[str, list[float]] = {name: [] for name in TASKS}
  for number in range(args.steps + 1):
    for name, run in steps.items():
      started = time.perf_counter()
      run()
      if number:  # the first one compiles
        times[name].append(time.perf_counter() - started)
  seconds = {name: float(np.median(t)) for name, t in times.items()}
  ratios = {
    f"{name}_to_supervised": round(seconds[name] / seconds["supervised"], 3)
    for name in ("joint", "one_pass")
  }
  common.report(
    "ssast_step",
    device=jax.devices()[0].device_kind,
    variant=args.variant,
    dtype=args.dtype,
    batch=args.batch,
    tokens=2 + (MELS // 16) * (FRAMES // 16),
    seconds={k: round(v, 4) for k, v in seconds.items()},
    **ratios,
  )


if __name__ == "__main__":
  main()
