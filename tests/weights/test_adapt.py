"""Values for another shape: cut, interpolate, sum, turn, and the report."""

import numpy as np
import pytest

from astjax.errors import UserError
from astjax.weights import adapt, convert

D = 3


def grid(rows, columns, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((rows, columns, D)).astype(np.float32)


@pytest.mark.parametrize(
  ("have", "want", "start"),
  [
    (24, 12, 6),
    (14, 12, 1),
    (101, 50, 25),
    (101, 12, 44),
    (5, 2, 1),
    (5, 5, 0),
  ],
)
def test_a_shorter_axis_is_cut_around_its_middle(have, want, start):
  x = grid(have, 4)
  np.testing.assert_array_equal(
    adapt.resize_grid(x, (want, 4)), x[start : start + want]
  )
  x = grid(4, have)
  np.testing.assert_array_equal(
    adapt.resize_grid(x, (4, want)), x[:, start : start + want]
  )


def by_definition(x, size):
  """Linear interpolation with half-pixel centres, one value after the other."""
  out = []
  for i in range(size):
    at = max(0.0, (i + 0.5) * len(x) / size - 0.5)
    low = int(at)
    high = min(low + 1, len(x) - 1)
    out.append(x[low] * (1 - (at - low)) + x[high] * (at - low))
  return np.stack(out)


@pytest.mark.parametrize(("have", "want"), [(14, 101), (3, 4), (1, 5), (9, 10)])
def test_a_longer_axis_is_interpolated(have, want):
  x = grid(have, 2)
  np.testing.assert_allclose(
    adapt.resize_grid(x, (want, 2)), by_definition(x, want), atol=1e-5
  )
  assert adapt.resize_grid(x, (want, 2)).dtype == np.float32


def test_both_axes():
  """Longer in time, shorter in frequency."""
  x = grid(6, 4)
  longer = np.stack([by_definition(row, 9) for row in x])
  np.testing.assert_allclose(
    adapt.resize_grid(x, (2, 9)), longer[2:4], atol=1e-6
  )


# SSAST's own rule.


def counting(rows, columns):
  """Each position is its number, f' * T' + t'."""
  x = np.arange(rows * columns, dtype=np.float32)
  return x.reshape(rows, columns, 1)


def test_golden_patches():
  out = adapt.resize_ssast_grid(counting(8, 64), (12, 101))[..., 0]
  assert out.shape == (12, 101)
  np.testing.assert_allclose(
    out[np.ix_([0, 1, 5, 11], [0, 1, 50, 100])],
    [
      [0, 0.450495, 31.5, 63],
      [32, 32.450497, 63.5, 95],
      [202.66667, 203.11717, 234.16667, 265.66669],
      [448, 448.4505, 479.5, 511],
    ],
    atol=1e-4,
  )


def test_golden_frames():
  out = adapt.resize_ssast_grid(counting(1, 512), (1, 1023))[0, :, 0]
  np.testing.assert_allclose(
    out[[0, 1, 2, 1022]], [0, 0.250733, 0.751222, 511], atol=1e-4
  )


def bilinear_by_definition(x, rows, columns):
  x = np.stack([by_definition(row, columns) for row in x])
  return by_definition(x, rows)


def original_ssast(x, shape, bilinear):
  """The code of its fine-tuning, in other words."""
  (old_f, old_t), (new_f, new_t) = x.shape[:2], shape
  if new_t < old_t:
    first = old_t // 2 - new_t // 2
    x = x[:, first : first + new_t]
  else:
    x = bilinear(x, 8, new_t)
  if new_f < old_f:
    first = old_f // 2 - new_f // 2
    return x[first : first + new_t]
  return bilinear(x, new_f, new_t)


SSAST_SHAPES = [
  ((8, 64), (12, 101)),
  ((8, 64), (12, 50)),
  ((8, 64), (12, 9)),
  ((8, 64), (8, 64)),
  ((8, 64), (7, 90)),  # the slice is clipped to the right size
  ((8, 16), (5, 5)),  # as many columns as rows are wanted
  ((1, 128), (1, 511)),
  ((1, 128), (1, 99)),
  ((1, 128), (1, 128)),
  ((1, 40), (3, 60)),
  ((16, 32), (20, 40)),  # 16 rows -> 8 -> 20
  ((16, 32), (16, 32)),  # and back
  ((16, 32), (20, 31)),
  ((4, 16), (6, 16)),
  ((12, 16), (4, 20)),  # 12 -> 8, of which the last four are cut
  ((6, 16), (5, 33)),
]


def assert_as_the_original(have, want, bilinear):
  x = grid(*have)
  expected = original_ssast(x, want, bilinear)
  if expected.shape[:2] != want:
    with pytest.raises(UserError, match="positions='corrected' can"):
      adapt.resize_ssast_grid(x, want)
    return
  out = adapt.resize_ssast_grid(x, want)
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, expected, atol=3e-5)


@pytest.mark.parametrize(("have", "want"), SSAST_SHAPES)
def test_positions_as_the_original_ssast(have, want):
  assert_as_the_original(have, want, bilinear_by_definition)


@pytest.mark.torch
@pytest.mark.parametrize(("have", "want"), SSAST_SHAPES)
def test_positions_as_the_original_ssast_by_torch(have, want):
  torch = pytest.importorskip("torch")

  def bilinear(x, rows, columns):
    x = torch.from_numpy(x).permute(2, 0, 1)[None]
    x = torch.nn.functional.interpolate(x, (rows, columns), mode="bilinear")
    return x[0].permute(1, 2, 0).numpy()

  assert_as_the_original(have, want, bilinear)


@pytest.mark.parametrize(
  ("have", "want", "rows"),
  [((8, 64), (6, 50), 7), ((8, 64), (4, 90), 6), ((16, 32), (4, 32), 2)],
)
def test_a_cut_that_the_original_ssast_cannot_do(have, want, rows):
  with pytest.raises(UserError, match=f"gives {rows} rows; positions="):
    adapt.resize_ssast_grid(grid(*have), want)
  assert adapt.resize_grid(grid(*have), want).shape[:2] == want


def test_channels_are_summed():
  kernel = np.random.default_rng(0).standard_normal((2, 4, 3, D))
  np.testing.assert_allclose(
    adapt.sum_channels(kernel),
    kernel[:, :, 0] + kernel[:, :, 1] + kernel[:, :, 2],
    rtol=1e-6,
  )


# A whole model.


def model(rows=2, columns=5, patch=(4, 4), prefix=("cls", "dist"), **extra):
  rng = np.random.default_rng(1)

  def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  out = {f"backbone/{name}_token": draw(D) for name in prefix}
  if prefix:
    out[convert.PREFIX] = draw(len(prefix), D)
  out |= {
    convert.GRID: draw(rows, columns, D),
    adapt.KERNEL: draw(*patch, D),
    "backbone/norm/scale": draw(D),
    "head/bias": draw(2),
  }
  return out | extra


def fit(source, target, **kwargs):
  own = lambda m: tuple(
    n for n in ("cls", "dist") if f"backbone/{n}_token" in m
  )
  return adapt.fit(
    source,
    target,
    source_prefix=own(source),
    model_prefix=own(target),
    **kwargs,
  )


def test_everything_but_the_classifier():
  source, target = model(), model()
  source = {k: v + 1 for k, v in source.items()}
  taken, report = fit(source, target)
  for path in target:
    same = target if path == "head/bias" else source
    np.testing.assert_array_equal(taken[path], same[path])
  assert report.fresh == ["head/bias"]
  assert report.dropped == {"head/bias": "fresh in the model"}
  assert not report.changed
  assert report.lines() == [
    "taken: 6 arrays as they are",
    "dropped (fresh in the model): head/bias",
    "fresh: head/bias",
  ]


def test_the_classifier_too():
  source = {k: v + 1 for k, v in model().items()}
  taken, report = fit(source, model(), fresh=())
  np.testing.assert_array_equal(taken["head/bias"], source["head/bias"])
  assert not report.fresh


def test_a_source_without_classifier():
  source = model()
  del source["head/bias"]
  assert fit(source, model())[1].fresh == ["head/bias"]
  with pytest.raises(UserError, match="- head/bias is not in the file"):
    fit(source, model(), fresh=())


def test_a_model_without_classifier():
  target = model()
  del target["head/bias"]
  taken, report = fit(model(), target)
  assert "head/bias" not in taken and not report.fresh


def test_from_images():
  source = model(4, 4)
  rgb = np.random.default_rng(2).standard_normal((4, 4, 3, D))
  source[adapt.KERNEL] = rgb.astype(np.float32)
  taken, report = fit(source, model(2, 5))
  np.testing.assert_allclose(taken[adapt.KERNEL], rgb.sum(2), atol=1e-6)
  np.testing.assert_array_equal(
    taken[convert.GRID], adapt.resize_grid(source[convert.GRID], (2, 5))
  )
  assert report.changed == {
    adapt.KERNEL: "sum over 3 channels",
    convert.GRID: ("positions, 4 x 4 -> 2 x 5 (bilinear)"),
  }


def test_rows_become_time():
  source = model(3, 5, patch=(2, 4))
  taken, report = fit(source, model(5, 3, patch=(4, 2)), rows="time")
  np.testing.assert_array_equal(
    taken[convert.GRID], source[convert.GRID].swapaxes(0, 1)
  )
  np.testing.assert_array_equal(
    taken[adapt.KERNEL], source[adapt.KERNEL].swapaxes(0, 1)
  )
  assert all("rows become time" in what for what in report.changed.values())


def test_a_missing_token_stays_fresh():
  source, target = model(prefix=("cls",)), model()
  taken, report = fit(source, target)
  np.testing.assert_array_equal(
    taken["backbone/dist_token"], target["backbone/dist_token"]
  )
  np.testing.assert_array_equal(
    taken[convert.PREFIX][0], source[convert.PREFIX][0]
  )
  np.testing.assert_array_equal(
    taken[convert.PREFIX][1], target[convert.PREFIX][1]
  )
  assert "backbone/dist_token" in report.fresh
  assert "row of dist is fresh" in report.changed[convert.PREFIX]


@pytest.mark.parametrize("prefix", [("cls",), ()])
def test_a_token_too_many_is_dropped(prefix):
  source = model()
  taken, report = fit(source, model(prefix=prefix))
  assert "no such token in the model" in report.dropped.values()
  if prefix:
    np.testing.assert_array_equal(
      taken[convert.PREFIX], source[convert.PREFIX][:1]
    )
  else:
    assert convert.PREFIX not in taken


def test_no_tokens_in_the_source():
  _, report = fit(model(prefix=()), model())
  assert {"backbone/cls_token", "backbone/dist_token"} <= {*report.fresh}


SSAST = {"mask_token": np.ones(D), "generative/fc1/bias": np.ones(D)}


def test_parts_of_another_objective_are_dropped():
  taken, report = fit(model() | SSAST, model())
  assert taken.keys() == model().keys()
  assert report.dropped == dict.fromkeys(SSAST, "of the pre-training") | {
    "head/bias": "fresh in the model"
  }
  assert report.fresh == ["head/bias"]


def test_parts_that_only_the_model_has_stay_fresh():
  target = model() | {"teacher/bias": np.zeros(D)}
  taken, report = fit(model() | SSAST, target)
  assert report.fresh == ["head/bias", "teacher/bias"]
  assert not taken["teacher/bias"].any()
  assert [*SSAST] == [k for k in report.dropped if not k.startswith("head")]


def test_parts_of_both_are_taken_strictly():
  own = {k: np.zeros_like(v) for k, v in SSAST.items()}
  taken, report = fit(model() | SSAST, model() | own)
  for path, array in SSAST.items():
    np.testing.assert_array_equal(taken[path], array)
  assert not set(SSAST) & {*report.dropped, *report.fresh}
  # But of two heads one may be missing.
  other = {"mask_token": own["mask_token"], "discriminative/bias": np.zeros(D)}
  _, report = fit(model() | SSAST, model() | other)
  assert report.fresh == ["head/bias", "discriminative/bias"]
  assert report.dropped["generative/fc1/bias"] == "of the pre-training"
  with pytest.raises(UserError, match=r"mask_token is \(3,\) in the file"):
    fit(model() | SSAST, model() | {"mask_token": np.zeros(4)})
  own["generative/fc2/bias"] = np.zeros(D)
  with pytest.raises(UserError, match="- generative/fc2/bias is not in the"):
    fit(model() | SSAST, model() | own)


def test_the_rule_for_positions_is_told():
  source, target = model(16, 4), model(20, 5)
  taken, report = fit(source, target, resize="ssast")
  np.testing.assert_array_equal(
    taken[convert.GRID],
    adapt.resize_ssast_grid(source[convert.GRID], (20, 5)),
  )
  assert report.changed[convert.GRID] == ("positions, 16 x 4 -> 20 x 5 (ssast)")
  _, report = fit(source, model(16, 4), resize="ssast")
  assert report.changed[convert.GRID].endswith("(ssast)")


def test_chosen_leaves_stay_fresh():
  _, report = fit(model(), model(), fresh=("head/.*", r"backbone/norm/\w+"))
  assert "backbone/norm/scale" in report.fresh
  assert report.dropped["backbone/norm/scale"] == "fresh in the model"


@pytest.mark.parametrize(
  ("fresh", "told"),
  [
    (("backbone/nrm/.*",), "meets none of the model's parameters"),
    (("head/(",), "is no expression"),
  ],
)
def test_a_wrong_expression(fresh, told):
  with pytest.raises(UserError, match=told):
    fit(model(), model(), fresh=fresh)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"backbone/extra": np.zeros(2)}, r"\+ backbone/extra is not in the model"),
    (
      {"backbone/norm/scale": np.zeros(4)},
      r"backbone/norm/scale is \(4,\) in the file, \(3,\) in the model",
    ),
    ({adapt.KERNEL: np.zeros((8, 4, D))}, r"\(8, 4, 3\) in the file"),
    ({convert.GRID: np.zeros((2, 5, 9))}, r"\(2, 5, 9\) in the file"),
  ],
)
def test_what_does_not_fit_is_listed(change, told):
  with pytest.raises(UserError, match=told):
    fit(model() | change, model())


def test_a_missing_leaf():
  source = model()
  del source["backbone/norm/scale"]
  with pytest.raises(UserError, match="- backbone/norm/scale is not in the"):
    fit(source, model())


def test_another_width_is_told_for_positions_too():
  source = {k: np.repeat(v, 2, axis=-1) for k, v in model().items()}
  with pytest.raises(UserError, match="backbone/pos_embed/prefix is"):
    fit(source, model(prefix=("cls",)))
