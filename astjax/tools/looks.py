"""What pre-trained models make of spectrograms that they cannot see whole.

For `tools/reconstruct`, which draws it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from astjax import models
from astjax.errors import UserError
from astjax.models import asit, ast
from astjax.ops import gmml, losses, patches, xp
from astjax.ops.recipe import apply_rows, row_keys
from astjax.serving import recording
from astjax.serving.recording import Recording
from astjax.tasks import base, ssast
from astjax.tasks.base import inputs
from astjax.types import Batch
from astjax.weights import convert, saved_model
from astjax.weights.load import Checkpoint

# Of the original SSAST, which hides 400 of 512.
_SHARE = 400 / 512


class Look(NamedTuple):
  """One clip, corrupted once. All arrays are [T, F], the frames of patches.

  Attributes:
    name: of the clip.
    fbank: as it is.
    seen: what the model sees; NaN where that is nothing.
    hidden: bool, what is hidden or corrupted.
    drawn: what the model draws; None without that objective.
    identified: 1 and -1 on hidden patches, 0 elsewhere; likewise.
    attention: of the class token, in the last block on the whole clip, mean
      over heads; None where it learns nothing.
    numbers: what can be said in numbers, by name.
  """

  name: str
  fbank: np.ndarray
  seen: np.ndarray
  hidden: np.ndarray
  drawn: np.ndarray | None
  identified: np.ndarray | None
  attention: np.ndarray | None
  numbers: Mapping[str, float]


def look(
  loaded: Checkpoint,
  clips: Sequence[str],
  *,
  num_mask: int = 0,
  seed: int = 0,
  recipe: str = "",
) -> list[Look]:
  """The model's view of the beginning of some clips.

  Args:
    loaded: the model.
    clips: paths.
    num_mask: hidden patches, of an SSAST; 0 takes that of the training, if it
      is known, else 400 of 512.
    seed: of the corruption; clip i draws with the i-th key.
    recipe: replaces the model's own.

  Raises:
    UserError: no pre-trained model, no front-end, a clip that cannot be read,
      or nonsense of corruption.
  """
  info = loaded.info
  what = info.origin or loaded.kind
  kind = LOOKS.get(info.objective.get("name", ""))
  if kind is None:
    raise UserError(
      f"{what} is no SSAST or ASiT as it was pre-trained: it has no heads that "
      "draw or identify what is hidden"
    )
  if not (recipe or info.recipe):
    raise UserError(
      f"the front-end of {what} is not known; give --recipe, such as "
      f"'{recording.EXAMPLE}'"
    )
  parsed = recording.parse(recipe or info.recipe)
  key = jax.random.key(seed, impl="threefry2x32")
  keys = row_keys(key, len(clips))
  batch = _batch(parsed, clips)
  hear = jax.jit(lambda batch: apply_rows(parsed.ops, batch, keys))
  found = kind(loaded, hear(batch), key, num_mask)
  return [
    Look(clip, *(None if x is None else x[i] for x in found[:-1]), found[-1][i])
    for i, clip in enumerate(clips)
  ]


def _batch(recipe: recording.Recipe, clips: Sequence[str]) -> Batch:
  """The beginnings of the clips, as the recipe's device part reads them."""
  cutting = recording.Cutting(
    recipe, lengths=(recipe.num_frames,), column=1, num_columns=1
  )
  rows = [next(Recording(clip).rows(cutting, whole=False)) for clip in clips]
  return {
    "audio": np.stack([row.audio for row in rows]),
    "num_samples": np.array([row.num_samples for row in rows], np.int32),
    "id": np.arange(len(rows), dtype=np.int32),
  }


def _of_ssast(loaded: Checkpoint, batch: Batch, key, num_mask: int):
  """The fields of `Look` after the name, [B, ...] each."""
  info, params = loaded.info, convert.unflatten(loaded.params)
  names = set(info.objective["heads"])
  rows, cols = loaded.params[convert.GRID].shape[:2]
  how = {"num_mask": max(1, round(_SHARE * rows * cols))}
  how |= info.objective.get("task_kw", {})
  how |= {"num_mask": num_mask} if num_mask else {}
  task = ssast.Ssast(
    **how,
    backbone=models.build(info.model, "config.json: model"),
    objective=next(k for k, v in ssast.OBJECTIVES.items() if set(v) == names),
    passes=1,
  )

  @jax.jit
  def run(params, batch):
    batch = task.corrupt(batch, key, 0)
    cut, index = base.cut(batch, task.backbone), batch["mask_index"][:, 0]
    return cut, index, task.model.apply({"params": params}, cut, index)

  cut, index, out = jax.tree.map(np.asarray, run(params, batch))
  count, *_, cells = cut.shape
  at = (np.arange(count)[:, None], index)
  in_line = cut.reshape(count, -1, cells)

  def whole(values, elsewhere):  # [B, M, cells] -> [B, T, F]
    flat = np.array(np.broadcast_to(elsewhere, in_line.shape), np.float32)
    flat[at] = values
    return patches.unpatchify(
      flat.reshape(cut.shape), patch_size=task.backbone.patch_size
    )

  true = in_line[at]  # [B, M, cells]
  numbers: list[dict[str, float]] = [{} for _ in range(count)]
  drawn = identified = None
  if "discriminative" in out:
    guess = out["discriminative"]
    hits = losses.info_nce(true, guess, over=task.softmax_over)[1]
    hits = np.asarray(hits)
    identified = whole(np.where(hits, 1.0, -1.0)[..., None], 0.0)
    for one, hit in zip(numbers, hits, strict=True):
      one["identified"] = float(hit.mean())
  if "generative" in out:
    drawn = whole(out["generative"], in_line)
    error = losses.masked_mse(true, out["generative"])
    for one, value in zip(numbers, np.asarray(error), strict=True):
      one["mse"] = float(value)
  return (
    whole(true, in_line),
    whole(np.nan, in_line),
    whole(1.0, 0.0) > 0,
    drawn,
    identified,
    None,
    numbers,
  )


def _of_asit(loaded: Checkpoint, batch: Batch, key, num_mask: int):
  """The same. A single clip has no other one to take blocks from."""
  if num_mask:
    raise UserError(
      f"num_mask={num_mask} hides patches of an SSAST; ASiT's blocks cover the "
      "part that they covered in its training"
    )
  objective, module = loaded.info.objective, saved_model.module_of(loaded.info)
  patch_size = module.backbone.patch_size
  how = asit.PRESETS[objective.get("preset", "r2")]
  how = {"drop_perc": how["drop_perc"], **objective.get("task_kw", {})}
  is_alone = len(batch["id"]) == 1
  corruption = gmml.Gmml(
    drop=how["drop_perc"],
    replace=0.0 if is_alone else how.get("drop_replace", 0.3),
    align=how.get("drop_align", 1),
    fill=how.get("drop_fill", "zeros"),
  )
  cut = lambda fbank: patches.patchify(  # noqa: E731
    fbank, patch_size=patch_size, stride=patch_size, xp=xp.JAX
  )

  @jax.jit
  def run(params, batch):
    given = inputs(batch)
    clean = given["patches"] if "patches" in given else cut(given["fbank"])
    fbank = patches.unpatchify(clean, patch_size=patch_size)
    keys = row_keys(key, len(fbank))[:, None]
    seen, hidden = gmml.corrupt(keys, fbank[:, None], corruption)
    seen, hidden = seen[:, 0], hidden[:, 0]
    out = module.apply(
      {"params": params}, cut(seen), parts=("reconstruction",)
    )["reconstruction"]
    drawn = patches.unpatchify(out, patch_size=patch_size)
    maps = ast.attention_maps(module.backbone, params["backbone"], clean)
    attention = jnp.mean(maps, axis=1)[:, 0]  # [B, F', T'] of the class token
    attention = jnp.broadcast_to(attention[..., None], clean.shape)
    attention = patches.unpatchify(attention, patch_size=patch_size)
    error = losses.masked_l1(fbank, drawn, hidden, axis=(1, 2))
    return fbank, seen, hidden, drawn, attention, error

  params = convert.unflatten(loaded.params)
  found = jax.tree.map(np.asarray, run(params, batch))
  fbank, seen, hidden, drawn, attention, error = found
  numbers = [{"l1": float(value)} for value in error]
  return fbank, seen, hidden, drawn, None, attention, numbers


LOOKS = {"ssast": _of_ssast, "asit": _of_asit}
