"""A model in use: recordings in, scores or embeddings out.

  bundle = astjax.load("runs/sounds")
  bundle.predict("dog.wav").top(3)

No TensorFlow: the host part of the recipe runs in NumPy (`recording`), the rest
under jit, so that a clip gives what it gives in the evaluation of training.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from astjax import models
from astjax.errors import UserError, located
from astjax.models import ast, heads
from astjax.ops.recipe import apply_rows, row_keys
from astjax.serving import recording
from astjax.serving.recording import Recording
from astjax.types import Batch, Params
from astjax.weights import adapt, convert
from astjax.weights import load as weights
from astjax.weights.info import ModelInfo, Options

# Training's evaluation cuts at the trained length; who predicts on a minute
# wants the minute. Up to 1.5 times that length is heard at once, with positions
# for four lengths, so that a new duration compiles nothing; then in windows.
_STRETCH = (1.125, 1.25, 1.375, 1.5)
_LOUD = 2.0  # full scale is 1; lossy codecs and resampling overshoot a little


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Prediction:
  """What a model hears in one recording.

  Attributes:
    class_names: names of the classes; their numbers if there are no names.
    scores: [C], each in [0, 1]; the mean over the windows.
    logits: [C], the mean over the windows.
    seconds: how long the recording is (what was read of it).
    window_times: [W, 2] start and end in seconds; one window unless the
      recording is longer than 1.5 times the trained length.
    window_scores: [W, C].
  """

  class_names: tuple[str, ...]
  scores: np.ndarray
  logits: np.ndarray
  seconds: float
  window_times: np.ndarray
  window_scores: np.ndarray

  def top(
    self, count: int = 5, window: int | None = None
  ) -> list[tuple[str, float]]:
    """(class, score) of the highest scores, of one window if given."""
    scores = self.scores if window is None else self.window_scores[window]
    order = np.argsort(-scores, kind="stable")[:count]
    return [(self.class_names[i], float(scores[i])) for i in order]

  def __repr__(self) -> str:
    heard = ", ".join(f"{name} {score:.3f}" for name, score in self.top(3))
    return f"<Prediction of {self.seconds:.2f} s: {heard}, ...>"


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Embedding:
  """What a model makes of one recording, before any classifier.

  Attributes:
    clip: [D] float32, what the classifier reads; the mean over the windows.
    frames: [n, D] float32, the outputs of each column of patches, averaged
      over frequency. Columns in the padding are left out.
    times: [n] seconds: the middle of what each column sees. Evenly spaced.
    seconds: how long the recording is.
  """

  clip: np.ndarray
  frames: np.ndarray
  times: np.ndarray
  seconds: float

  def __repr__(self) -> str:
    size = f"{len(self.clip)} numbers, {len(self.frames)} frames"
    return f"<Embedding of {self.seconds:.2f} s: {size}>"


def load(
  source: str | os.PathLike,
  *,
  recipe: str = "",
  class_names: Sequence[str] = (),
  options: Options | None = None,
  batch_size: int = 8,
  dtype: str = "float32",
) -> Bundle:
  """A model, ready to use.

  Args:
    source: a path, a work directory of a run, a published checkpoint or a
      Hugging Face name; see `weights.load`.
    recipe: from a recording to the model's input, where the source does not
      know it (or to replace its own).
    class_names: of the classifier, where the source does not know them.
    options: what a bare file does not tell.
    batch_size: how many clips or windows run at once, at most.
    dtype: "float32" or "bfloat16", of the transformer's computation.
  """
  loaded = weights.load(source, options)
  if loaded.is_image:
    raise UserError(f"a model of images ({loaded.kind}): train it on sounds")
  info, given = loaded.info, tuple(class_names)
  own = info.class_names
  if given and own and given != own:
    other = [pair for pair in zip(given, own, strict=False) if len({*pair}) > 1]
    what = "{!r} for {!r}".format(*other[0]) if other else f"{len(given)} names"
    raise UserError(
      f"the model has {len(own)} class names of its own, and was given {what}: "
      "leave them out"
    )
  info = dataclasses.replace(
    info, recipe=recipe or info.recipe, class_names=given or own
  )
  params = convert.unflatten(loaded.params)
  return Bundle(info, params, batch_size, dtype, digest=loaded.digest)


class Bundle:
  """Recipe, backbone and classifier, with parameters of the shapes of `info`.

  Attributes:
    info: what is known about the model.
    class_names: of its classifier; numbers as text if it has no names.
    digest: of the weights.
    sample_rate: Hz, at which it hears.
    seconds: the trained length.
  """

  def __init__(
    self,
    info: ModelInfo,
    params: Params,
    batch_size: int = 8,
    dtype: str = "float32",
    digest: str = "",
  ):
    if not info.recipe:
      raise UserError(
        f"the front-end of this model ({info.origin}) is not known; give its "
        f"recipe, such as recipe='{recording.EXAMPLE}'"
      )
    if batch_size < 1:
      raise UserError(f"batch_size={batch_size} must be at least 1")
    self.info, self.digest = info, digest
    self.class_names = info.class_names or tuple(
      str(i) for i in range(info.head.num_classes if info.head else 0)
    )
    self._batch_size = batch_size
    self._backbone = models.build({**info.model, "dtype": dtype}, "model")
    self._recipe = recording.parse(info.recipe)
    frames = self._recipe.frames
    self.sample_rate = frames.sample_rate
    trained = self._recipe.num_frames
    self.seconds = frames.num_samples(trained) / frames.sample_rate
    lengths = [trained, *(math.ceil(trained * x) for x in _STRETCH)]
    self._cutting = recording.Cutting(
      self._recipe,
      lengths=tuple(dict.fromkeys(lengths)),
      column=self._backbone.stride[1],
      num_columns=self._columns(trained),
    )
    self._params = jax.device_put(params)
    grid = self._params["backbone"]["pos_embed"]["grid"]
    self._grids = {trained: grid}  # by number of frames
    self._grid = np.asarray(grid)
    self._apply = jax.jit(self._forward)
    self._has_warned = False
    self._check()

  def predict(
    self, clips: Any, sample_rate: Any = None, *, whole: bool = True
  ) -> Prediction | list[Prediction]:
    """Scores of all classes, one `Prediction` a clip.

    Args:
      clips: a path or an array, [S] or [S, channels] of floats in [-1, 1],
        int16 or int32; or a list of those.
      sample_rate: Hz, of the arrays; one for all, or a list with one for each.
      whole: False hears the beginning alone, of the trained length, as the
        evaluation of training does.
    """
    found, several = recording.recordings(clips, sample_rate)
    return _one_or_all(self._predictions(found, whole), several)

  def logits(
    self, clips: Any, sample_rate: Any = None, *, whole: bool = True
  ) -> np.ndarray:
    """Logits [C], or [n, C] of a list; arguments as of `predict`."""
    predictions = self.predict(clips, sample_rate, whole=whole)
    if isinstance(predictions, Prediction):
      return predictions.logits
    none = np.zeros((0, len(self.class_names)), np.float32)
    return np.stack([p.logits for p in predictions]) if predictions else none

  def embed(
    self, clips: Any, sample_rate: Any = None, *, whole: bool = True
  ) -> Embedding | list[Embedding]:
    """Embeddings; needs no classifier. Arguments as of `predict`."""
    found, several = recording.recordings(clips, sample_rate)
    heard = self._hear(found, ("clip", "frames"), whole)
    return _one_or_all((h.error or self._embedding(h) for h in heard), several)

  def stream(
    self,
    clips: Iterable[Any],
    sample_rate: Any = None,
    *,
    whole: bool = True,
    progress: recording.Progress | None = None,
  ) -> Iterator[Prediction | UserError]:
    """Predictions in the order of the clips, each as soon as it is there.

    A clip that cannot be used gives its UserError and does not stop the rest.
    Arguments as of `predict`; `progress` is called with the number of the clip
    and the seconds of it that have been heard.
    """
    found, _ = recording.recordings(list(clips), sample_rate)
    return self._predictions(found, whole, progress)

  def _predictions(self, found, whole, progress=None):
    head = self.info.head
    if head is None:
      raise UserError(f"this model ({self.info.origin}) has no classifier")
    for heard in self._hear(found, ("logits",), whole, progress):
      yield heard.error or self._prediction(heard, head)

  def _prediction(self, heard: _Heard, head: heads.Head) -> Prediction:
    logits = np.stack([out["logits"] for _, _, out in heard.parts])  # [W, C]
    scores = head.probabilities(logits)
    times = [(start, start + count) for start, count, _ in heard.parts]
    return Prediction(
      class_names=self.class_names,
      scores=scores.mean(0),
      logits=logits.mean(0),
      seconds=heard.recording.seconds,
      window_times=np.array(times) / self.sample_rate,
      window_scores=scores,
    )

  def _embedding(self, heard: _Heard) -> Embedding:
    frames = self._recipe.frames
    column = self._cutting.column * frames.hop_size  # samples
    sight = frames.num_samples(self._backbone.patch_size[1])
    parts: list[np.ndarray] = []
    times: list[np.ndarray] = []
    for start, count, out in heard.parts:
      middles = start + np.arange(len(out["frames"])) * column + sight / 2
      # Without columns that the window before had, or that lie in padding.
      new = middles > (times[-1][-1] if times else -1)
      new &= middles <= start + count
      new[0] |= not times
      if new.any():
        parts.append(out["frames"][new])
        times.append(middles[new])
    return Embedding(
      clip=np.mean([out["clip"] for _, _, out in heard.parts], axis=0),
      frames=np.concatenate(parts),
      times=np.concatenate(times) / self.sample_rate,
      seconds=heard.recording.seconds,
    )

  def _hear(
    self,
    found: Iterable[Recording],
    keys: Sequence[str],
    whole: bool,
    progress: recording.Progress | None = None,
  ) -> Iterator[_Heard]:
    """Outputs of the model, recording by recording, in batches over them."""
    order: collections.deque[_Heard] = collections.deque()
    waiting: dict[int, list] = {}  # by number of samples
    running: collections.deque = collections.deque()

    def start(length):
      rows = waiting.pop(length)
      running.append((rows, self._run([row for _, row in rows])))
      if len(running) > 1:  # the next batch is read while one runs
        settle()

    def settle():
      rows, out = running.popleft()
      out = {key: np.asarray(out[key]) for key in keys}
      for n, (heard, row) in enumerate(rows):
        # A copy, or one row would keep its whole batch in memory.
        own = {key: out[key][n].copy() for key in keys}
        heard.parts.append((row.start, row.num_samples, own))
        heard.left -= 1
      if progress:
        end = row.start + row.num_samples
        progress(heard.number, end / self.sample_rate)

    def finished():
      while order and order[0].read and (order[0].error or not order[0].left):
        yield order.popleft()

    for number, one in enumerate(found):
      # Results come in order: a rare length must not hold up all others.
      for length, rows in list(waiting.items()):
        if rows[0][0].number <= number - 2 * self._batch_size:
          start(length)
      heard = _Heard(number, one)
      order.append(heard)
      try:
        for row in one.rows(self._cutting, whole=whole):
          heard.left += 1
          length = len(row.audio)
          waiting.setdefault(length, []).append((heard, row))
          if len(waiting[length]) == self._batch_size:
            start(length)
        if whole and one.peak == 0.0:
          raise UserError(f"{one.name}: it is silent: every sample is zero")
        if one.peak > _LOUD and not self._has_warned:
          self._has_warned = True
          warnings.warn(
            f"{one.name} has samples up to {one.peak:g}; full scale is 1, and "
            "what lies above is clipped (divide int16 samples by 32768)",
            stacklevel=2,
          )
      except UserError as e:
        heard.error = e
      heard.read = True
      yield from finished()
    for length in list(waiting):
      start(length)
    while running:
      settle()
    yield from finished()

  def _run(self, rows: list[recording.Row]) -> dict[str, jax.Array]:
    """One batch of rows of one length."""
    # Filled up to a power of two, so that few shapes are compiled.
    size = min(1 << (len(rows) - 1).bit_length(), self._batch_size)
    rows = [*rows, *[rows[-1]] * (size - len(rows))]
    batch = {
      "audio": np.stack([row.audio for row in rows]),
      "num_samples": np.array([row.num_samples for row in rows], np.int32),
    }
    return self._apply(self._params_of(len(rows[0].audio)), batch)

  def _columns(self, num_frames: int) -> int:
    """Columns of patches in so many frames."""
    patch, stride = self._backbone.patch_size[1], self._backbone.stride[1]
    return max(num_frames - patch, 0) // stride + 1

  def _params_of(self, num_samples: int) -> Params:
    """The parameters with positions for this length, adapted once."""
    num_frames = self._recipe.frames.num_frames(num_samples)
    if num_frames not in self._grids:
      shape = (self._grid.shape[0], self._columns(num_frames))
      grid = adapt.resize_grid(self._grid, shape)
      self._grids[num_frames] = jnp.asarray(grid)
    backbone = self._params["backbone"]
    positions = backbone["pos_embed"] | {"grid": self._grids[num_frames]}
    return self._params | {"backbone": backbone | {"pos_embed": positions}}

  def _forward(self, params: Params, batch: Batch) -> dict[str, Any]:
    """Logits [B, C], clip embeddings [B, D] and frames [B, T', D]."""
    # No op draws: `recording.parse` has seen to it.
    keys = row_keys(jax.random.key(0, impl="threefry2x32"), len(batch["audio"]))
    batch = apply_rows(self._recipe.ops, batch, keys)
    inputs = {k: batch[k] for k in ("fbank", "patches") if k in batch}
    if len(inputs) != 1:
      raise UserError("the recipe ends in neither fbank nor patches")
    if self.info.head is None:
      out: Any = self._backbone.apply({"params": params["backbone"]}, **inputs)
      # SSAST's prefix tokens, for one, have learned nothing yet.
      known = self.info.pretraining
      pooling = known.pooling if known else "prefix"
      pooling = pooling if self._backbone.prefix else "tokens"
      found = {"clip": heads.pool(out, pooling)}
    else:
      model = ast.classifier(self._backbone, self.info.head)
      out = model.apply({"params": params}, **inputs, method="outputs")
      found = {"clip": out["features"], "logits": out["logits"]}
    patches = out["tokens"].astype(jnp.float32)  # [B, F' * T', D]
    shape = (len(patches), self._grid.shape[0], -1, patches.shape[-1])
    return found | {"frames": patches.reshape(shape).mean(1)}

  def _check(self) -> None:
    """Whether recipe and model fit, before the first recording."""
    length = self._recipe.frames.num_samples(self._recipe.num_frames)
    kind = np.int16 if self._recipe.quantise else np.float32
    batch = {
      "audio": jax.ShapeDtypeStruct((1, length), kind),
      "num_samples": jax.ShapeDtypeStruct((1,), np.int32),
    }
    with located("the recipe does not fit the model"):
      jax.eval_shape(self._forward, self._params, batch)


@dataclasses.dataclass
class _Heard:
  """A recording on its way through the model."""

  number: int
  recording: Recording
  # (first sample, number of samples, outputs) of each row
  parts: list[tuple[int, int, dict]] = dataclasses.field(default_factory=list)
  left: int = 0  # rows that the model has not run on
  read: bool = False  # whether there are no more rows
  error: UserError | None = None


def _one_or_all(results: Iterable, several: bool) -> Any:
  """All of them, or the only one; raises the first error."""
  found = []
  for result in results:
    if isinstance(result, UserError):
      raise result
    found.append(result)
  return found if several else found[0]
