"""ASiT (arXiv 2211.13189): learning from clips without labels.

A student sees corrupted views of a clip, its teacher, a running average of the
student, sees them whole. The student learns to say what the teacher says: of
each patch, and of the clip from another view of it. And it draws what was
corrupted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from astjax import errors
from astjax.engine import optim
from astjax.engine.task import LossOut, Task
from astjax.errors import UserError
from astjax.models import asit, ast
from astjax.ops import gmml, losses, posemb, xp
from astjax.ops import patches as patch_ops
from astjax.ops.recipe import row_keys
from astjax.tasks.base import inputs
from astjax.types import Array, Batch, Params

# What differs between the two releases of the original beside the heads.
PRESETS = {
  "r1": {
    "drop_perc": 0.7,
    "local_views": 0,
    "teacher_temp_epochs": 30,
    "loss_weights": (1.0, 1.0, 2.0),
  },
  "r2": {
    "drop_perc": 0.5,
    "local_views": 4,
    "teacher_temp_epochs": 5,
    "loss_weights": (0.5, 0.5, 1.0),
  },
}


@dataclasses.dataclass(frozen=True)
class Asit(Task):
  """Self-distillation and reconstruction under group masked model learning.

  Needs `fbank` [B, V, T, F], V global views of each clip, or their `patches`
  (cut without overlap), and `fbank_local` [B, V', T', F] if there are local
  views; no labels. It remembers the teacher's parameters and two centers.

  The means over cells and the centers are of the global batch, and so is the
  draw of other clips; the original's are of one device, but for the centers.

  Attributes:
    model: backbone and heads.
    preset: "r1" or "r2".
    corruption: of the student's global views.
    drop_only: whether only corrupted cells are to be drawn.
    local_views: V', seen by the student alone, as they are.
    loss_weights: of the class token's loss, the patches', the reconstruction's.
    student_temp: of the softmax of the student.
    teacher_temps: of the teacher's, by epoch; the last one from there on.
    boundaries: first steps of these epochs, but for the first.
    momentum: of the teacher at the start; 1 at the end of `total_steps`.
    center_momentum: of the centers.
    chunk: see `losses.distill_tokens`.
    total_steps: length of the run.
  """

  model: asit.ASIT
  preset: str
  corruption: gmml.Gmml
  drop_only: bool
  local_views: int
  loss_weights: tuple[float, float, float]
  student_temp: float
  teacher_temps: tuple[float, ...]
  boundaries: tuple[int, ...]
  momentum: float
  center_momentum: float
  chunk: int
  total_steps: int
  metric_names = ("loss", "cls", "patch", "recon", "spread")
  length_matters = True

  @property
  def backbone(self) -> ast.Backbone:
    """Of the model."""
    return self.model.backbone

  @property
  def objective(self) -> dict[str, Any]:
    """What a saved model has beside the backbone, and how it was trained."""
    how = {
      "drop_perc": self.corruption.drop,
      "drop_replace": self.corruption.replace,
      "drop_align": self.corruption.align,
      "drop_fill": self.corruption.fill,
    }
    sizes = asit.describe(self.model, self.preset)
    return {"name": "asit"} | sizes | {"task_kw": how}

  def teacher_temp(self, step: Array) -> Array:
    """Of the epoch that a step belongs to."""
    epoch = jnp.searchsorted(
      jnp.asarray(self.boundaries, jnp.int32), jnp.asarray(step), side="right"
    )
    return jnp.asarray(self.teacher_temps)[epoch]

  def teacher_rate(self, step: Array) -> Array:
    """1 - momentum: how far the teacher goes towards the student in a step."""
    return optim.cosine(1.0 - self.momentum, 0.0, self.total_steps)(step)

  def init_params(self, rng: Array, batch: Batch) -> Params:
    """{"backbone", "projection", "reconstruction"}, float32."""
    patches = self._cut(self._views(batch))
    return self.model.init(rng, patches.reshape(-1, *patches.shape[2:]))[
      "params"
    ]

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
    keys = row_keys(rng, len(batch["id"]))
    return self._corrupt(batch, keys, self.corruption)

  def loss(
    self,
    params: Params,
    task_state: dict[str, Any],
    batch: Batch,
    rng: Array,
    step: Array,
  ) -> tuple[Array, LossOut]:
    """The weighted sum of the three losses, and the new centers."""
    rated, said = self._rate(params, task_state, batch, step, rng=rng)
    metrics = jax.tree.map(jnp.mean, rated)
    metrics |= {
      "spread": losses.spread(said["teacher"]),
      "cls_entropy": losses.entropy(said["cls"]),
      "patch_entropy": losses.entropy(said["patch"]),
    }
    m = self.center_momentum
    centers = {
      name: m * task_state[name] + (1.0 - m) * said[name]
      for name in ("center_cls", "center_patch")
    }
    return metrics["loss"], LossOut(metrics, task_state | centers)

  def after_update(
    self, params: Params, task_state: dict[str, Any], step: Array
  ) -> dict[str, Any]:
    """The teacher follows the student."""
    rate = self.teacher_rate(step)
    teacher = jax.tree.map(
      lambda t, s: t + rate * (s - t), task_state["teacher"], params
    )
    return task_state | {"teacher": teacher}

  def evaluate(
    self, params: Params, task_state: dict[str, Any], batch: Batch, step: Array
  ) -> dict[str, Array]:
    """{loss: [B]} and `teacher` [B, V, K], what it makes of the clean views.

    Every clip has its blocks for ever, drawn from its id; all are filled, none
    comes from another clip, so that a row depends on itself alone.
    """
    key = jax.random.key(0, impl="threefry2x32")
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["id"])
    alone = dataclasses.replace(self.corruption, replace=0.0)
    batch = self._corrupt(batch, keys, alone)
    rated, said = self._rate(params, task_state, batch, step)
    return rated | {"teacher": said["teacher"]}

  def features(
    self, params: Params, task_state: dict[str, Any], batch: Batch
  ) -> Array:
    """The teacher's class token [B, D] on clips of any length.

    Of views [B, V, T, F], the mean over them.
    """
    patches = self._cut(inputs(batch))
    *rows, height, width, cells = patches.shape
    teacher = _with_grid(task_state["teacher"], (height, width))
    out = self.backbone.apply(
      {"params": teacher["backbone"]},
      patches=patches.reshape(-1, height, width, cells),
    )
    token = out["prefix"][:, 0].astype(jnp.float32)
    return jnp.mean(token.reshape(rows[0], -1, token.shape[-1]), axis=1)

  def summarise(
    self, outputs: dict[str, np.ndarray]
  ) -> tuple[dict[str, float], dict]:
    """Means over a split, and the spread over all of it."""
    names = self.metric_names[:-1]
    means = {k: float(np.mean(outputs[k])) for k in names}
    return means | {"spread": float(losses.spread(outputs["teacher"]))}, {}

  def _views(self, batch: Batch) -> dict[str, Array]:
    """The global views: {"fbank": [B, V, T, F]} or the same as patches."""
    given = inputs(batch)
    for name, value in given.items():
      expected = {"fbank": "[B, V, T, F]", "patches": "[B, V, F', T', K]"}[name]
      if value.ndim != expected.count(",") + 1 or value.shape[1] < 2:
        raise UserError(
          f"ASiT needs two or more views of each clip, {name!r} {expected}; it "
          f"is {value.shape}: check input.on_host"
        )
    return given

  def _cut(self, given: dict[str, Array]) -> Array:
    """Literal patches [..., F', T', ph * pw]."""
    if "patches" in given:
      return given["patches"]
    return patch_ops.patchify(
      given["fbank"],
      patch_size=self.backbone.patch_size,
      stride=self.backbone.stride,
      xp=xp.JAX,
    )

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
    """Losses, and what the teacher says.

    With `rng`, for training: drop path, and one mean of the reconstruction
    error over all cells of the batch. Without, all losses are per clip.

    Returns:
      ({loss: [B] or []}, {"teacher": its unit vectors [B, V, K], "cls" and
      "patch": its mean distributions, "center_cls" and "center_patch": its mean
      logits}).
    """
    clean, corrupted, mask = (
      self._cut({"fbank": batch[name]})
      for name in ("fbank", "corrupted", "mask")
    )  # [B, V, F', T', ph * pw]
    rngs = (None, None) if rng is None else jax.random.split(rng)
    mine = self._kernels(params)
    student = self._see(params, corrupted, asit.PARTS, rngs[0])
    student_cls = student["cls"]  # [B, V, K]
    if self.local_views:
      local = self._see_local(params, batch, rngs[1])
      student_cls = jnp.concatenate([student_cls, local], axis=1)
    its = self._kernels(task_state["teacher"])
    teacher = self._see(task_state["teacher"], clean, ("cls", "patch"))
    its, teacher = jax.lax.stop_gradient((its, teacher))

    temps = {
      "student_temp": self.student_temp,
      "teacher_temp": self.teacher_temp(step),
    }
    teacher_logits = losses.outputs(teacher["cls"], its["cls"])
    cls, said_cls = losses.distill_views(
      losses.outputs(student_cls, mine["cls"]),
      teacher_logits,
      task_state["center_cls"],
      **temps,
    )
    # Tokens of all views of a clip side by side, [B, V * N, K].
    in_line = lambda x: x.reshape(len(x), -1, x.shape[-1])  # noqa: E731
    patch, said_patch = losses.distill_tokens(
      in_line(student["patch"]),
      in_line(teacher["patch"]),
      mine["patch"],
      its["patch"],
      task_state["center_patch"],
      chunk=self.chunk,
      **temps,
    )
    recon = losses.masked_l1(
      clean,
      student["reconstruction"],
      mask if self.drop_only else jnp.ones_like(mask),
      axis=(1, 2, 3, 4) if rng is None else None,
    )
    weights = self.loss_weights
    loss = weights[0] * cls + weights[1] * patch + weights[2] * recon
    rated = {"loss": loss, "cls": cls, "patch": patch, "recon": recon}
    said = {
      "teacher": teacher["cls"],
      "cls": said_cls,
      "patch": said_patch,
      "center_cls": jnp.mean(teacher_logits, axis=(0, 1)),
      # The mean of products with one kernel is the product of the mean.
      "center_patch": losses.outputs(
        jnp.mean(teacher["patch"], (0, 1, 2)), its["patch"]
      ),
    }
    return rated, said

  def _see(self, params, patches, parts, rng=None) -> dict[str, Array]:
    """What the module makes of views [B, V, ...]: {part: [B, V, ...]}.

    Clip by clip its views, so that no row leaves its device. With `rng`, drop
    path.
    """
    out = self.model.apply(
      {"params": params},
      patches.reshape(-1, *patches.shape[2:]),
      parts=parts,
      train=rng is not None,
      rngs=None if rng is None else {"drop_path": rng},
    )
    views = patches.shape[:2]
    return jax.tree.map(lambda x: x.reshape(*views, *x.shape[1:]), out)

  def _kernels(self, params) -> dict[str, Array]:
    return self.model.apply({"params": params}, method="kernels")

  def _see_local(self, params, batch, rng) -> Array:
    """Class tokens of the local views, [B, V', K]."""
    fbank = batch.get("fbank_local")
    if fbank is None or fbank.shape[1] != self.local_views:
      found = "it has none" if fbank is None else f"they are {fbank.shape}"
      raise UserError(
        f"the batch needs {self.local_views} local views of each clip, "
        f"'fbank_local' [B, V', T', F]; {found}: check input.on_host, or set "
        "task_kw.local_views"
      )
    patches = self._cut({"fbank": fbank})
    params = _with_grid(params, patches.shape[2:4])
    return self._see(params, patches, ("cls",), rng)["cls"]


def _with_grid(params: Params, shape: tuple[int, int]) -> Params:
  """The parameters with positions for a grid (F', T'), bicubic."""
  backbone = params["backbone"]
  positions = backbone["pos_embed"]
  grid = posemb.resize(positions["grid"], shape)
  positions = positions | {"grid": grid}
  return params | {"backbone": backbone | {"pos_embed": positions}}


_Dropped = Annotated[
  float,
  errors.Within(
    lambda x: 0 <= x <= gmml.MAX_FRACTION, f"in [0, {gmml.MAX_FRACTION}]"
  ),
]
_Weights = Annotated[
  tuple[errors.NotNegative, ...],
  errors.Within(lambda w: len(w) in (0, 3), "three numbers"),
]


def make(
  *,
  model: Mapping[str, Any],
  num_classes: int,
  steps_per_epoch: float,
  total_steps: int,
  preset: Literal["r1", "r2"] = "r2",
  hidden: int = asit.PROJECTION["hidden"],
  bottleneck: int = asit.PROJECTION["bottleneck"],
  outputs: tuple[int, ...] = (),
  recon_widths: tuple[int, ...] = (),
  drop_perc: _Dropped | None = None,
  drop_replace: _Dropped = 0.3,
  drop_align: errors.Count = 1,
  drop_fill: Literal["zeros", "noise", "time", "freq"] = "zeros",
  drop_only: bool = True,
  local_views: errors.CountOrZero | None = None,
  loss_weights: _Weights = (),
  student_temp: errors.Positive = 0.1,
  teacher_temp: errors.Positive = 0.07,
  teacher_temp_start: errors.Positive = 0.04,
  teacher_temp_epochs: errors.CountOrZero | None = None,
  momentum: errors.Fraction = 0.996,
  center_momentum: errors.Fraction = 0.9,
  chunk: errors.CountOrZero = 64,
) -> Asit:
  """The task from plain config values; defaults are the original's.

  What is None or empty is the preset's.

  Args:
    model: arguments of `astjax.models.ast.make_backbone`: the stride is the
      patch size, the prefix ("cls",); drop path is of the student alone.
    num_classes: not used: labels are not looked at.
    steps_per_epoch: for the teacher's temperature.
    total_steps: for the teacher's momentum.
    preset: which release of the original.
    hidden: width of the projection head.
    bottleneck: K, what its output layers read.
    outputs: their sizes, see `models.asit.make`.
    recon_widths: hidden width and channels of the reconstruction head.
    drop_perc: largest part of a spectrogram that is dropped, see `gmml.Gmml`.
    drop_replace: part that comes from another clip; 0 never does so. Without
      `drop_perc`, evaluations then corrupt nothing.
    drop_align: blocks begin and end at multiples of so many cells.
    drop_fill: what stands in dropped blocks.
    drop_only: reconstruct only what is corrupted.
    local_views: V'.
    loss_weights: of class token, patches and reconstruction.
    student_temp: temperature of the student.
    teacher_temp: of the teacher, from epoch `teacher_temp_epochs` on.
    teacher_temp_start: of the teacher in the first epoch; in between it grows
      linearly, and is constant within an epoch.
    teacher_temp_epochs: epochs of this growth, both ends included.
    momentum: of the teacher at the start; a cosine takes it to 1.
    center_momentum: of the two centers.
    chunk: tokens of a clip whose logits are held at once; 0 holds all, which
      costs memory and saves computing them again.

  Raises:
    UserError: values that do not fit.
  """
  del num_classes
  usual = PRESETS[preset]
  weights = tuple(loss_weights) or usual["loss_weights"]
  drop = usual["drop_perc"] if drop_perc is None else drop_perc
  views = usual["local_views"] if local_views is None else local_views
  warmup = teacher_temp_epochs
  warmup = usual["teacher_temp_epochs"] if warmup is None else warmup
  backbone = errors.call(ast.make_backbone, "config.model", model)
  return Asit(
    model=asit.make(
      backbone,
      preset=preset,
      hidden=hidden,
      bottleneck=bottleneck,
      outputs=outputs,
      recon_widths=recon_widths,
    ),
    preset=preset,
    corruption=gmml.Gmml(drop, drop_replace, drop_align, drop_fill),
    drop_only=drop_only,
    local_views=views,
    loss_weights=weights,
    student_temp=student_temp,
    teacher_temps=(
      *np.linspace(teacher_temp_start, teacher_temp, warmup).tolist(),
      teacher_temp,
    ),
    boundaries=tuple(
      optim.first_step(epoch, steps_per_epoch) for epoch in range(1, warmup + 1)
    ),
    momentum=momentum,
    center_momentum=center_momentum,
    chunk=chunk,
    total_steps=total_steps,
  )
