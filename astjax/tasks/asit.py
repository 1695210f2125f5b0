"""ASiT (arXiv 2211.13189): learning from clips without labels.

A student sees corrupted views of a clip, its teacher, a running average of the
student, sees them whole. The student learns to say what the teacher says: of
each patch, and of the clip from another view of it. And it draws what was
corrupted.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from astjax import errors
from astjax.engine import optim
from astjax.engine.task import LossOut, Outputs, Summary, Task, keys_of_ids
from astjax.errors import UserError
from astjax.models import asit
from astjax.ops import gmml, losses, posemb
from astjax.ops import patches as patch_ops
from astjax.ops.recipe import row_keys
from astjax.tasks.base import cut, inputs
from astjax.types import Array, Batch, Params

_Dropped = Annotated[
  float,
  errors.Within(
    lambda x: 0 <= x <= gmml.MAX_FRACTION, f"in [0, {gmml.MAX_FRACTION}]"
  ),
]
_DROP = ("drop_perc", "drop_replace", "drop_align", "drop_fill")
_Weights = Annotated[
  tuple[errors.NotNegative, ...],
  errors.Within(lambda w: len(w) in (0, 3), "three numbers"),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asit(Task):
  """Self-distillation and reconstruction under group masked model learning.

  Needs `fbank` [B, V, T, F], V global views of each clip, or their `patches`
  (cut without overlap), and `fbank_local` [B, V', T', F] if there are local
  views; no labels. It remembers the teacher's parameters and two centers.

  The defaults are the original's; what is None or empty is taken from `preset`,
  a key of `models.asit.PRESETS`.

  Attributes:
    drop_perc: largest part of a spectrogram that is dropped, see `gmml.Gmml`.
    drop_replace: part that comes from another clip; 0 never does so. Without
      `drop_perc`, evaluations then corrupt nothing.
    drop_align: blocks begin and end at multiples of so many cells.
    drop_fill: what stands in dropped blocks.
    drop_only: reconstruct only what is corrupted.
    local_views: V', seen by the student alone, as they are.
    loss_weights: of class token, patches and reconstruction.
    student_temp: temperature of the student's softmax.
    teacher_temp: of the teacher's, from epoch `teacher_temp_epochs` on.
    teacher_temp_start: of the teacher's in the first epoch; in between it grows
      linearly, and is constant within an epoch.
    teacher_temp_epochs: epochs of this growth, both ends included.
    momentum: of the teacher at the start; a cosine takes it to 1.
    center_momentum: of the two centers.
    chunk: tokens of a clip whose logits are held at once; 0 holds all, which
      costs memory and saves computing them again.
  """

  model: asit.ASIT = dataclasses.field(init=False)
  preset: Literal["r1", "r2"] = "r2"
  hidden: errors.Count = asit.PROJECTION["hidden"]
  bottleneck: errors.Count = asit.PROJECTION["bottleneck"]
  outputs: tuple[errors.Count, ...] = ()
  recon_widths: tuple[errors.CountOrZero, ...] = ()
  drop_perc: _Dropped | None = None
  drop_replace: _Dropped = 0.3
  drop_align: errors.Count = 1
  drop_fill: Literal["zeros", "noise", "time", "freq"] = "zeros"
  drop_only: bool = True
  local_views: errors.CountOrZero | None = None
  loss_weights: _Weights = ()
  student_temp: errors.Positive = 0.1
  teacher_temp: errors.Positive = 0.07
  teacher_temp_start: errors.Positive = 0.04
  teacher_temp_epochs: errors.CountOrZero | None = None
  momentum: errors.Fraction = 0.996
  center_momentum: errors.Fraction = 0.9
  chunk: errors.CountOrZero = 64
  metric_names = ("loss", "cls", "patch", "recon", "spread")
  length_matters = True  # the teacher's momentum spans the whole run

  def __post_init__(self):
    for name, usual in asit.PRESETS[self.preset].items():
      if getattr(self, name) in (None, ()):
        self._set(**{name: usual})
    names = ("preset", "hidden", "bottleneck", "outputs", "recon_widths")
    sizes = {name: getattr(self, name) for name in names}
    self._set(model=asit.make(self.backbone, **sizes))

  @property
  def corruption(self) -> gmml.Gmml:
    """Of the student's global views."""
    return gmml.Gmml(*(getattr(self, name) for name in _DROP))

  @property
  def saved_objective(self) -> dict[str, Any]:
    """Sizes that are not the preset's, and how it was trained."""
    how = {name: getattr(self, name) for name in _DROP}
    return {"name": "asit"} | self.model.describe() | {"task_kw": how}

  def temperature(self, step: Array) -> Array:
    """The teacher's, in the epoch that a step belongs to."""
    epochs: Any = self.teacher_temp_epochs  # by now not None
    rising = np.linspace(self.teacher_temp_start, self.teacher_temp, epochs)
    per_epoch = self.steps_per_epoch
    ends = [optim.first_step(n, per_epoch) for n in range(1, epochs + 1)]
    epoch = jnp.searchsorted(
      jnp.asarray(ends, jnp.int32), jnp.asarray(step), side="right"
    )
    return jnp.asarray([*rising.tolist(), self.teacher_temp])[epoch]

  def teacher_rate(self, step: Array) -> Array:
    """1 - momentum: how far the teacher goes towards the student in a step."""
    return optim.cosine(1.0 - self.momentum, 0.0, self.total_steps)(step)

  def init_params(self, rng: Array, batch: Batch) -> Params:
    """{"backbone", "projection", "reconstruction"}, float32."""
    patches = cut(self._views(batch), self.backbone)
    patches = patches.reshape(-1, *patches.shape[2:])
    return self.model.init(rng, patches)["params"]

  def init_state(self, params: Params) -> dict[str, Any]:
    """The teacher is a copy of the student."""
    sizes = self.model.outputs
    return {
      "teacher": jax.tree.map(jnp.copy, params),
      "center_cls": jnp.zeros(sizes[0]),
      "center_patch": jnp.zeros(sizes[-1]),
    }

  def corrupt(self, batch: Batch, rng: Array, step: Array) -> Batch:
    """Adds `corrupted` and `mask`, both [B, V, T, F]."""
    # Blocks come from any clip of the global batch, and means over cells and
    # the centers are global, so that nothing depends on the number of devices.
    # (The original's are of one device, but for the centers.)
    keys = row_keys(rng, len(batch["id"]))
    return self._corrupt(batch, keys, self.corruption)

  def loss(self, params, task_state, batch, rng, step) -> tuple[Array, LossOut]:
    """The weighted sum of the three losses, and the new centers."""
    rated, stats = self._rate(params, task_state, batch, step, rng=rng)
    metrics = jax.tree.map(jnp.mean, rated)
    metrics |= {
      "spread": losses.spread(stats["teacher"]),
      "cls_entropy": losses.entropy(stats["cls"]),
      "patch_entropy": losses.entropy(stats["patch"]),
    }
    m = self.center_momentum
    centers = {
      name: m * task_state[name] + (1.0 - m) * stats[name]
      for name in ("center_cls", "center_patch")
    }
    return metrics["loss"], LossOut(metrics, task_state | centers)

  def after_update(self, params, task_state, step) -> dict[str, Any]:
    """The teacher follows the student."""
    rate = self.teacher_rate(step)
    teacher = jax.tree.map(
      lambda t, s: t + rate * (s - t), task_state["teacher"], params
    )
    return task_state | {"teacher": teacher}

  def evaluate(self, params, task_state, batch, step) -> dict[str, Array]:
    """{loss: [B]} and `teacher` [B, V, K], what it makes of the clean views."""
    # Blocks are filled, never taken from another clip: the loss of a clip would
    # depend on which others stand in its batch.
    alone = dataclasses.replace(self.corruption, replace=0.0)
    batch = self._corrupt(batch, keys_of_ids(batch), alone)
    rated, stats = self._rate(params, task_state, batch, step)
    return rated | {"teacher": stats["teacher"]}

  def features(self, params, task_state, batch) -> Array:
    """The teacher's class token [B, D] on clips of any length.

    Of views [B, V, T, F], the mean over them.
    """
    patches = cut(batch, self.backbone)
    *rows, height, width, cells = patches.shape
    teacher = _with_grid(task_state["teacher"], (height, width))
    out = self.backbone.apply(
      {"params": teacher["backbone"]},
      patches=patches.reshape(-1, height, width, cells),
    )
    token = out["prefix"][:, 0].astype(jnp.float32)
    return jnp.mean(token.reshape(rows[0], -1, token.shape[-1]), axis=1)

  def summarise(self, outputs: Outputs) -> Summary:
    """Means over a split; the spread is of all its clips together."""
    means = {k: float(np.mean(outputs[k])) for k in self.metric_names[:-1]}
    return means | {"spread": float(losses.spread(outputs["teacher"]))}, {}

  def _views(self, batch: Batch) -> dict[str, Array]:
    """The global views: {"fbank": [B, V, T, F]} or the same as patches."""
    given = inputs(batch)
    ((name, value),) = given.items()
    if value.ndim != {"fbank": 4, "patches": 5}[name] or value.shape[1] < 2:
      raise UserError(
        f"ASiT needs two or more views of each clip, {name!r} [B, V, ...]; it "
        f"is {value.shape}: check input.on_host"
      )
    return given

  def _corrupt(self, batch, keys, how) -> Batch:
    given = self._views(batch)
    if "patches" in given:
      given["fbank"] = patch_ops.unpatchify(
        given.pop("patches"), patch_size=self.backbone.patch_size
      )
    fbank = given["fbank"]
    keys = jax.vmap(lambda k: row_keys(k, fbank.shape[1]))(keys)
    corrupted, mask = gmml.corrupt(keys, fbank, how)
    rest = {k: v for k, v in batch.items() if k != "patches"}
    return rest | {"fbank": fbank, "corrupted": corrupted, "mask": mask}

  def _rate(self, params, task_state, batch, step, *, rng=None):
    """({loss: [B] or []}, statistics of the teacher).

    With `rng`, for training: drop path, and one mean of the reconstruction
    error over all cells of the batch. Without, all losses are per clip.
    """
    clean, corrupted, mask = (
      cut({"fbank": batch[name]}, self.backbone)
      for name in ("fbank", "corrupted", "mask")
    )  # [B, V, F', T', ph * pw]
    rngs = (None, None) if rng is None else jax.random.split(rng)
    student = self._see(params, corrupted, asit.PARTS, rngs[0])
    if self.local_views:
      local = self._see_local(params, batch, rngs[1])
      student["cls"] = jnp.concatenate([student["cls"], local], axis=1)
    teacher = self._see(task_state["teacher"], clean, ("cls", "patch"))
    teacher = jax.lax.stop_gradient(teacher)
    cls, patch, stats = self._distill(student, teacher, task_state, step)
    recon = losses.masked_l1(
      clean,
      student["reconstruction"],
      mask if self.drop_only else jnp.ones_like(mask),
      axis=(1, 2, 3, 4) if rng is None else None,
    )
    weights = self.loss_weights
    loss = weights[0] * cls + weights[1] * patch + weights[2] * recon
    return {"loss": loss, "cls": cls, "patch": patch, "recon": recon}, stats

  def _distill(self, student, teacher, task_state, step):
    """(loss of class tokens, of patch tokens, statistics of the teacher).

    These are its unit vectors "teacher" [B, V, K], its mean distributions "cls"
    and "patch", and its mean logits "center_cls" and "center_patch".
    """
    temps = {
      "student_temp": self.student_temp,
      "teacher_temp": self.temperature(step),
    }
    teacher_logits = losses.outputs(teacher["cls"], teacher["kernels"]["cls"])
    cls, mean_cls = losses.distill_views(
      losses.outputs(student["cls"], student["kernels"]["cls"]),
      teacher_logits,
      task_state["center_cls"],
      **temps,
    )
    # Tokens of all views of a clip side by side, [B, V * N, K].
    side_by_side = lambda x: x.reshape(len(x), -1, x.shape[-1])  # noqa: E731
    patch, mean_patch = losses.distill_tokens(
      side_by_side(student["patch"]),
      side_by_side(teacher["patch"]),
      student["kernels"]["patch"],
      teacher["kernels"]["patch"],
      task_state["center_patch"],
      chunk=self.chunk,
      **temps,
    )
    # The mean of products with one kernel is the product of the mean.
    mean_token = jnp.mean(teacher["patch"], (0, 1, 2))
    stats = {
      "teacher": teacher["cls"],
      "cls": mean_cls,
      "patch": mean_patch,
      "center_cls": jnp.mean(teacher_logits, axis=(0, 1)),
      "center_patch": losses.outputs(mean_token, teacher["kernels"]["patch"]),
    }
    return cls, patch, stats

  def _see(self, params, patches, parts, rng=None) -> dict[str, Any]:
    """What the module says of views: {part: [B, V, ...]}, and its `kernels`."""
    rngs = None if rng is None else {"drop_path": rng}
    model = self.model.bind({"params": params}, rngs=rngs)
    # The views of a clip follow each other, so that no row leaves its device.
    rows = patches.reshape(-1, *patches.shape[2:])
    out = model(rows, parts=parts, train=rng is not None)
    views = patches.shape[:2]
    out = {k: x.reshape(*views, *x.shape[1:]) for k, x in out.items()}
    return out | {"kernels": model.kernels()}

  def _see_local(self, params, batch, rng) -> Array:
    """Class tokens of the local views, [B, V', K]."""
    fbank = batch.get("fbank_local")
    if fbank is None or fbank.shape[1] != self.local_views:
      found = "it has none" if fbank is None else f"they are {fbank.shape}"
      raise UserError(
        f"'fbank_local' needs {self.local_views} local views of each clip, "
        f"{found}: check input.on_host, or set task_kw.local_views"
      )
    patches = cut({"fbank": fbank}, self.backbone)
    params = _with_grid(params, patches.shape[2:4])
    return self._see(params, patches, ("cls",), rng)["cls"]


def _with_grid(params: Params, shape: tuple[int, int]) -> Params:
  """The parameters with positions for a grid (F', T'), bicubic."""
  flat = flatten_dict(params)
  name = ("backbone", "pos_embed", "grid")
  return unflatten_dict(flat | {name: posemb.resize(flat[name], shape)})
