"""Optimisers and schedules: golden numbers and what each option may touch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from astjax import errors
from astjax.engine import optim
from astjax.errors import UserError

LR = 1e-4


def tree():
  rng = np.random.default_rng(0)
  return {
    "backbone": {
      "block_0": {"kernel": rng.standard_normal((3, 4)), "bias": np.ones(4)},
      "block_1": {"kernel": rng.standard_normal((4, 2)), "bias": np.ones(2)},
    },
    "head": {"kernel": rng.standard_normal((2, 5))},
  }


def names():
  return list(flat(tree()))


def train(grads, *, params=None, lr=LR, **kwargs):
  """Parameters after each step, and the last state, in double precision."""
  with jax.enable_x64(True):
    params = tree() if params is None else params
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    schedule = lr if callable(lr) else lambda step: lr
    tx = optim.make_optimizer(params, schedule, **kwargs)
    state, history = tx.init(params), []
    for g in grads:
      g = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), g)
      updates, state = tx.update(g, state, params)
      params = optax.apply_updates(params, updates)
      history.append(jax.tree.map(np.asarray, params))
  return history, state


def like(params, seed=1, scale=1.0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: scale * rng.standard_normal(x.shape), params)


def flat(params):
  return flatten_dict(params, sep="/")


def changes(history, params=None):
  """By parameter, how far the last step is from the start."""
  start = flat(tree() if params is None else params)
  return {k: v - start[k] for k, v in flat(history[-1]).items()}


def zeros():
  return jax.tree.map(np.zeros_like, tree())


# Adam


def test_golden_adam():
  grads = [[0.1, -0.2, 0.0], [0.3, 0.1, 0.0], [-0.2, 0.0, 1e-3]]
  history, _ = train(
    [{"w": np.array(g)} for g in grads],
    params={"w": np.array([1.0, -2.0, 0.5])},
    name="adam",
    b1=0.95,
    b2=0.999,
    eps=1e-8,
    weight_decay=5e-7,
  )
  expected = [
    [0.999899983, -1.999899983, 0.499903858],
    [0.999809384, -1.999870777, 0.499807715],
    [0.999780953, -1.999847531, 0.499747008],
  ]
  np.testing.assert_allclose([h["w"] for h in history], expected, atol=2e-8)


def test_the_defaults_are_the_papers():
  grads = [like(tree(), seed) for seed in range(3)]
  default, _ = train(grads)
  given, _ = train(
    grads, name="adam", b1=0.95, b2=0.999, eps=1e-8, weight_decay=5e-7
  )
  jax.tree.map(np.testing.assert_array_equal, default, given)


def reference(params, grads, *, coupled, decay, b1=0.9, b2=0.99, eps=1e-6):
  m = v = 0.0
  for t, g in enumerate(grads, 1):
    g = g + decay * params if coupled else g
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    params = params - LR * (step if coupled else step + decay * params)
  return params


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_against_the_textbook(name):
  grads = [like(tree(), seed) for seed in range(4)]
  history, _ = train(
    grads, name=name, b1=0.9, b2=0.99, eps=1e-6, weight_decay=0.3
  )
  expected = jax.tree.map(
    lambda p, *g: reference(p, g, coupled=name == "adam", decay=0.3),
    tree(),
    *grads,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9),
    history[-1],
    expected,
  )


def test_decay_without_a_gradient():
  # Coupled: the decay is a gradient, and Adam makes a full step of it.
  history, _ = train([zeros()], weight_decay=5e-7)
  for name, change in changes(history).items():
    np.testing.assert_allclose(
      change, -LR * np.sign(flat(tree())[name]), rtol=0.5
    )
  # Decoupled: the weights shrink by lr * decay, and by nothing else.
  history, _ = train([zeros()] * 2, name="adamw", weight_decay=0.1)
  for name, value in flat(history[-1]).items():
    expected = flat(tree())[name] * (1 - LR * 0.1) ** 2
    np.testing.assert_allclose(value, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_no_decay_and_no_gradient(name):
  history, _ = train([zeros()] * 2, name=name, weight_decay=0.0)
  assert all(np.all(c == 0) for c in changes(history).values())


def test_the_rate_follows_the_schedule():
  grads = [like(tree())] * 3
  rates = [0.0, 2e-3, 1e-3]
  history, _ = train(
    grads,
    lr=lambda step: jnp.asarray(rates)[step],
    b1=0.0,
    b2=0.0,
    eps=0.0,
    weight_decay=0.0,
  )
  # Without moments a step is the sign of the gradient.
  points = [flat(tree()), *map(flat, history)]
  for rate, before, after in zip(rates, points, points[1:], strict=False):
    for name, g in flat(grads[0]).items():
      np.testing.assert_allclose(
        after[name] - before[name], -rate * np.sign(g), atol=1e-12
      )


# Options


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_no_decay(name):
  history, _ = train(
    [zeros()], name=name, weight_decay=0.1, no_decay=("bias", "^head/")
  )
  for path, change in changes(history).items():
    spared = path.endswith("bias") or path.startswith("head")
    assert np.all((change == 0) == spared), path


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_freeze(name):
  grads = [like(tree(), seed) for seed in range(3)]
  options = {"name": name, "weight_decay": 0.1}
  history, state = train(grads, freeze=("block_0", "head"), **options)
  free, whole_state = train(grads, **options)
  for path, change in changes(history).items():
    if "block_0" in path or path.startswith("head"):
      assert np.all(change == 0), path
    else:  # and the others do what they always do
      np.testing.assert_array_equal(
        flat(history[-1])[path], flat(free[-1])[path]
      )
  # Moments are kept for what learns alone: block_1 has 4 * 2 + 2 cells.
  cells = lambda s: sum(x.size for x in jax.tree.leaves(s) if x.ndim)
  assert cells(state) == 2 * 10
  assert cells(whole_state) == 2 * sum(x.size for x in flat(tree()).values())


def test_lr_multipliers():
  grads = [like(tree(), seed) for seed in range(3)]
  plain, _ = train(grads, weight_decay=0.0)
  pairs = (("block_1/bias", 0.0), ("block_1", 3.0), ["head", 0.5])
  history, _ = train(grads, weight_decay=0.0, lr_multipliers=pairs)
  factors = {
    "backbone/block_0/bias": 1.0,
    "backbone/block_0/kernel": 1.0,
    "backbone/block_1/bias": 0.0,  # the first that fits
    "backbone/block_1/kernel": 3.0,
    "head/kernel": 0.5,
  }
  expected = changes(plain)
  for path, change in changes(history).items():
    np.testing.assert_allclose(
      change, factors[path] * expected[path], rtol=1e-9, atol=1e-15
    )


def test_lr_multipliers_scale_the_decay_of_adamw():
  history, _ = train(
    [zeros()], name="adamw", weight_decay=0.1, lr_multipliers=(("head", 4.0),)
  )
  for path, change in changes(history).items():
    factor = 4.0 if path.startswith("head") else 1.0
    np.testing.assert_allclose(
      change, -LR * 0.1 * factor * flat(tree())[path], rtol=1e-9
    )


def test_clipping():
  # Adam's step hides the gradient's scale: the first moment shows it.
  grads = like(tree(), scale=10.0)
  norm = np.sqrt(sum(np.sum(g**2) for g in flat(grads).values()))
  assert norm > 10.0

  def first_moment(grads, **kwargs):
    _, state = train([grads], b1=0.9, weight_decay=0.0, **kwargs)
    (adam,) = (
      s
      for s in jax.tree.leaves(
        state, is_leaf=lambda s: isinstance(s, optax.ScaleByAdamState)
      )
      if isinstance(s, optax.ScaleByAdamState)
    )
    return flat(adam.mu)

  clipped = first_moment(grads, clip_norm=2.0)
  free = first_moment(grads)
  for path, g in flat(grads).items():
    np.testing.assert_allclose(clipped[path], 0.1 * g * 2.0 / norm, rtol=1e-9)
    np.testing.assert_allclose(free[path], 0.1 * g, rtol=1e-9)
  # Small gradients pass.
  passed = first_moment(grads, clip_norm=norm * 1.01)
  for path in passed:
    np.testing.assert_allclose(passed[path], free[path], rtol=1e-12)


def test_clipping_comes_before_the_decay():
  history, _ = train([zeros()], weight_decay=0.1, clip_norm=1e-9)
  assert all(np.all(np.abs(c) > 0.9 * LR) for c in changes(history).values())


def test_all_options_at_once():
  grads = [like(tree(), seed) for seed in range(2)]
  history, _ = train(
    grads,
    name="adamw",
    weight_decay=0.1,
    clip_norm=1.0,
    freeze=("block_0",),
    no_decay=("bias",),
    lr_multipliers=(("head", 0.0), ("block_0", 2.0)),
  )
  moved = {k for k, c in changes(history).items() if np.any(c != 0)}
  assert moved == {"backbone/block_1/kernel", "backbone/block_1/bias"}


def test_shapes_are_enough():
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), tree()
  )
  tx = optim.make_optimizer(
    shapes, lambda step: LR, freeze=("block_0",), lr_multipliers=(("head", 2),)
  )
  jax.eval_shape(tx.init, shapes)


def test_by_name():
  out = optim.by_name(
    tree(), [("block_1/k", "b"), ("kernel$", "a"), ("^backbone", "c")], "d"
  )
  assert flat(out) == {
    "backbone/block_0/bias": "c",
    "backbone/block_0/kernel": "a",
    "backbone/block_1/bias": "c",
    "backbone/block_1/kernel": "b",
    "head/kernel": "a",
  }
  assert set(flat(optim.by_name(tree(), [], 0)).values()) == {0}


def given(options):
  """As `config.optim`."""
  own = (tree(), lambda step: LR)
  return errors.call(optim.make_optimizer, "config.optim", options, *own)


EXPRESSIONS = pytest.mark.parametrize(
  "option",
  [
    lambda p: {"freeze": (p,)},
    lambda p: {"no_decay": ("bias", p)},
    lambda p: {"lr_multipliers": (("head", 1.0), (p, 2.0))},
  ],
)


@EXPRESSIONS
def test_an_expression_that_fits_nothing(option):
  with pytest.raises(UserError, match=r"'blok_0' fits no parameter") as e:
    given(option("blok_0"))
  assert any(name in str(e.value) for name in names())


@EXPRESSIONS
@pytest.mark.parametrize("pattern", ["block_(", "*"])
def test_an_expression_that_is_none(option, pattern):
  with pytest.raises(UserError, match="is not a regular expression") as e:
    given(option(pattern))
  assert repr(pattern) in str(e.value)


@pytest.mark.parametrize("pairs", [("head",), (("head",),), ("ab", "cd")])
def test_multipliers_are_pairs(pairs):
  with pytest.raises(UserError, match=r"expected tuple\[tuple\[str, float\]"):
    given({"lr_multipliers": pairs})


# ASiT's


def test_golden_clip_and_adamw():
  """Two steps of ASiT's optimiser, its bias not decayed."""
  grads = [
    {"p": np.array([[4.0, -3.0], [0.0, 12.0]]), "b": np.array([0.1, 0.2])},
    {"p": np.array([[0.5, 0.1], [-0.2, 0.3]]), "b": np.array([-1.0, 5.0])},
  ]
  history, _ = train(
    grads,
    params={
      "p": np.array([[1.0, -2.0], [0.5, 3.0]]),
      "b": np.array([0.3, -0.7]),
    },
    lr=1e-2,
    name="adamw",
    b1=0.9,
    weight_decay=0.04,
    no_decay=("b",),
    clip_each=3.0,
  )
  first, second = history
  expected = [[0.9896, -1.9892], [0.4998, 2.9888]]
  np.testing.assert_allclose(first["p"], expected, atol=1e-7)
  np.testing.assert_allclose(first["b"], [0.29, -0.71], atol=2e-7)
  expected = [[0.979768, -1.982837], [0.507041, 2.980141]]
  np.testing.assert_allclose(second["p"], expected, atol=1e-6)
  np.testing.assert_allclose(second["b"], [0.296214, -0.717879], atol=1e-6)


def adams(state):
  """The states of Adam in an optimiser's state."""
  is_adam = lambda s: isinstance(s, optax.ScaleByAdamState)
  return [s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s)]


def test_tensors_are_clipped_one_by_one():
  params = {
    "backbone": {
      "pos_embed": {"prefix": np.ones((1, 4)), "grid": np.ones((2, 3, 4))},
      "cls_token": np.ones(4),
    },
    "head": {"kernel": np.ones((4, 2))},
  }
  grads = like(params, scale=5.0)
  grads["head"]["kernel"] = np.full((4, 2), 0.1)  # short enough
  _, state = train(
    [grads], params=params, b1=0.9, weight_decay=0.0, clip_each=3.0
  )
  (adam,) = adams(state)
  moments = {k: np.asarray(v) / 0.1 for k, v in flat(adam.mu).items()}
  before = flat(grads)
  np.testing.assert_allclose(moments["head/kernel"], before["head/kernel"])
  norm = lambda *names: np.sqrt(sum(np.sum(before[n] ** 2) for n in names))
  together = ("backbone/pos_embed/prefix", "backbone/pos_embed/grid")
  for names in (together, ("backbone/cls_token",)):
    for name in names:
      expected = before[name] * 3.0 / (norm(*names) + 1e-6)
      np.testing.assert_allclose(moments[name], expected, rtol=1e-9)


def test_the_decay_follows_a_cosine():
  history, _ = train(
    [zeros()] * 5,
    lr=0.1,
    name="adamw",
    weight_decay=0.04,
    final_weight_decay=0.4,
    no_decay=("bias",),
    total_steps=4,
  )
  value = flat(tree())["head/kernel"]
  for step, after in enumerate(history):
    part = (1 + np.cos(np.pi * min(step, 4) / 4)) / 2
    value = value * (1 - 0.1 * (0.4 + (0.04 - 0.4) * part))
    np.testing.assert_allclose(flat(after)["head/kernel"], value, rtol=1e-9)
    np.testing.assert_array_equal(flat(after)["backbone/block_0/bias"], 1.0)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("decay", [{}, {"final_weight_decay": 0.4}])
def test_what_is_frozen_first(name, decay):
  """No update, no decay, no moments, and Adam counts from the thaw."""
  grads = [like(tree(), seed) for seed in range(5)]
  rates = jnp.array([1e-3, 2e-3, 3e-3, 4e-3, 5e-3])
  options = {
    "name": name,
    "weight_decay": 0.1,
    "clip_each": 3.0,
    "total_steps": 10,
    "steps_per_epoch": 2.0,
    **decay,
  }
  history, state = train(
    grads, lr=lambda s: rates[s], freeze_first=("head",), **options
  )
  free, _ = train(grads, lr=lambda s: rates[s], **options)
  for step, (one, other) in enumerate(zip(history, free, strict=True)):
    for path, value in flat(one).items():
      if path.startswith("head"):
        assert np.all((value == flat(tree())[path]) == (step < 2)), step
      else:  # the others do what they always do
        np.testing.assert_array_equal(value, flat(other)[path])
  assert sorted(int(s.count) for s in adams(state)) == [3, 5]
  # As a run that begins then: later rates and decays, but fresh moments.
  strengths = [
    0.1 + (0.4 - 0.1) * (1 - np.cos(np.pi * s / 10)) / 2 if decay else 0.1
    for s in range(5)
  ]
  value, m, v = flat(tree())["head/kernel"], 0.0, 0.0
  for step in (2, 3, 4):
    g = flat(grads[step])["head/kernel"]
    g = g * min(1.0, 3.0 / (np.linalg.norm(g) + 1e-6))
    if name == "adam":
      g = g + strengths[step] * value
    m, v = 0.95 * m + 0.05 * g, 0.999 * v + 0.001 * g * g
    t = step - 1
    update = m / (1 - 0.95**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    if name == "adamw":
      update = update + strengths[step] * value
    value = value - float(rates[step]) * update
    after = flat(history[step])["head/kernel"]
    np.testing.assert_allclose(after, value, rtol=1e-6)


def test_frozen_first_and_for_ever():
  grads = [like(tree(), seed) for seed in range(3)]
  history, _ = train(
    grads,
    name="adamw",
    weight_decay=0.1,
    final_weight_decay=0.4,
    freeze=("block_0",),
    freeze_first=("head",),
    freeze_epochs=2.0,
    total_steps=3,
  )
  moved = lambda tree_: {
    k for k, v in flat(tree_).items() if np.any(v != flat(tree())[k])
  }
  learning = {"backbone/block_1/kernel", "backbone/block_1/bias"}
  assert moved(history[1]) == learning
  assert moved(history[2]) == {*learning, "head/kernel"}


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"clip_norm": -1.0}, "clip_norm=-1.0 must be at least 0"),
    ({"clip_each": -1.0}, "clip_each=-1.0 must be at least 0"),
    ({"final_weight_decay": -0.1}, "decay=-0.1 must be at least 0"),
    ({"freeze_epochs": -1.0}, "freeze_epochs=-1.0 must be at least 0"),
    ({"freeze": (3,)}, r"freeze=\(3,\) is tuple, expected tuple.str"),
    ({"freeze_first": ("haed",)}, "'haed' fits no parameter"),
  ],
)
def test_wrong_options(wrong, message):
  with pytest.raises(UserError, match=message):
    given(wrong)


# Schedules


def schedule(**kwargs):
  given = {"lr": 1.0, "steps_per_epoch": 10.0, "total_steps": 100} | kwargs
  made = optim.make_schedule(**given)
  return lambda *steps: np.broadcast_to(
    made(np.array(steps)), len(steps)
  ).tolist()


def test_constant():
  assert schedule(lr=0.25)(0, 1, 1_000) == [0.25] * 3


def test_stepped_warmup_of_the_paper():
  rates = schedule(lr=2.0, warmup="stepped", warmup_steps=1000)
  assert rates(0, 49, 50, 99, 100, 999, 1000, 1001, 5000) == pytest.approx(
    [0.0, 0.0, 0.1, 0.1, 0.2, 1.9, 2.0, 2.0, 2.0], rel=1e-6
  )


@pytest.mark.parametrize("steps", [20, 50, 120, 1000])
def test_stepped_warmup_is_over_in_time(steps):
  rates = schedule(warmup="stepped", warmup_steps=steps)(*range(steps + 2))
  assert rates[0] == 0.0
  assert rates == sorted(rates)
  assert rates[steps:] == [1.0, 1.0]


def test_linear_warmup():
  rates = schedule(lr=2.0, warmup="linear", warmup_steps=8)
  assert rates(0, 1, 4, 8, 9, 50) == pytest.approx(
    [0.0, 0.25, 1.0, 2.0, 2.0, 2.0]
  )


@pytest.mark.parametrize("warmup", ["stepped", "linear", "none"])
def test_a_warmup_of_no_steps(warmup):
  rates = schedule(warmup=warmup, warmup_steps=0 if warmup != "none" else 9)
  assert rates(0, 1, 10) == [1.0, 1.0, 1.0]


def by_epoch(epochs, steps_per_epoch=10, **kwargs):
  """The one rate of each epoch, from 1."""
  rates = schedule(
    decay="multistep", steps_per_epoch=float(steps_per_epoch), **kwargs
  )
  out = []
  for epoch in range(epochs):
    first = epoch * steps_per_epoch
    steps = {first, first + 1, first + steps_per_epoch - 1}
    (rate,) = set(rates(*steps))
    out.append(rate)
  return out


def test_multistep_of_audioset():
  assert by_epoch(5, decay_start=2, decay_every=1, decay_factor=0.5) == [
    1.0,
    1.0,
    0.5,
    0.25,
    0.125,
  ]


@pytest.mark.parametrize(
  ("start", "every", "factor", "stop"),
  [(10, 5, 0.5, 1000), (5, 1, 0.85, 1000), (5, 1, 0.85, 12), (3, 4, 0.1, 4)],
)
def test_multistep(start, every, factor, stop):
  # Epoch n has factor^k, k the number of milestones <= n - 1.
  rates = by_epoch(
    20,
    decay_start=start,
    decay_every=every,
    decay_factor=factor,
    decay_stop=stop,
  )
  milestones = range(start, stop, every)
  expected = [
    factor ** sum(m <= n - 1 for m in milestones) for n in range(1, 21)
  ]
  np.testing.assert_allclose(rates, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("examples", "batch"), [(7, 2), (100, 12), (2724, 7), (1, 2)]
)
def test_multistep_with_a_fraction_of_a_step(examples, batch):
  # A milestone after m epochs counts from the first step with
  # step * batch >= m * examples.
  rates = schedule(
    decay="multistep",
    steps_per_epoch=examples / batch,
    decay_start=2,
    decay_every=1,
    decay_factor=0.5,
    decay_stop=60,
  )
  some = (3, 4, 5, 42)
  steps = [-(-m * examples // batch) + d for m in some for d in (-1, 0)]
  expected = [
    0.5 ** sum(m * examples <= s * batch for m in range(2, 60)) for s in steps
  ]
  np.testing.assert_allclose(rates(*steps), expected, rtol=1e-5)


def test_cosine():
  rates = schedule(
    lr=2.0,
    decay="cosine",
    final_lr=0.5,
    warmup="linear",
    warmup_steps=20,
    total_steps=120,
  )
  assert rates(0, 10, 20, 70, 120, 500) == pytest.approx(
    [0.0, 1.0, 2.0, 1.25, 0.5, 0.5], rel=1e-6
  )
  falling = rates(*range(20, 121))
  assert falling == sorted(falling, reverse=True)
  expected = 0.5 + 1.5 * (1 + np.cos(np.pi * np.arange(101) / 100)) / 2
  np.testing.assert_allclose(falling, expected, rtol=1e-5)


def test_cosine_without_warmup():
  rates = schedule(decay="cosine", total_steps=100)
  assert rates(0, 50, 100) == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)


def test_warmup_times_decay():
  rates = schedule(
    decay="multistep", decay_start=1, warmup="linear", warmup_steps=20
  )
  assert rates(5, 10, 15, 30) == pytest.approx([0.25, 0.25, 0.375, 0.125])


def test_schedules_are_traceable():
  for decay in ("constant", "multistep", "cosine"):
    for warmup in ("none", "stepped", "linear"):
      given = {
        "lr": 0.3,
        "steps_per_epoch": 7.5,
        "total_steps": 90,
        "decay": decay,
        "warmup": warmup,
        "warmup_steps": 50,
        "decay_stop": 6,
      }
      made = optim.make_schedule(**given)
      traced = jax.jit(jax.vmap(made))(jnp.arange(90))
      plain = [float(made(s)) for s in (0, 7, 30, 49, 50, 51, 89)]
      np.testing.assert_allclose(
        traced[np.array([0, 7, 30, 49, 50, 51, 89])], plain, atol=1e-7
      )


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"lr": 0.0}, "lr=0.0 must be positive"),
    ({"lr": -1.0}, "lr=-1.0 must be positive"),
    ({"decay_start": -1}, "decay_start=-1 must be at least 0"),
    ({"decay_every": 0}, "decay_every=0 must be at least 1"),
    ({"decay_factor": -0.5}, "decay_factor=-0.5 must be positive"),
    ({"warmup_steps": -5}, "warmup_steps=-5 must be at least 0"),
    ({"warmup_epochs": -1.0}, "warmup_epochs=-1.0 must be at least 0"),
    ({"lr_batch_size": -1}, "lr_batch_size=-1 must be at least 0"),
    (
      {"lr_batch_size": 256, "batch_size": 64, "final_lr": 0.5},
      "final_lr=0.5 must be at most lr, 0.25",
    ),
    ({"decay": "cosin"}, "decay='cosin'.*'constant', 'multistep', 'cosine'"),
    ({"decya": "cosine"}, "unknown argument 'decya'.*Did you mean 'decay'"),
    ({"lr": "1e-4"}, "lr='1e-4' is str, expected float"),
  ],
)
def test_wrong_schedules(wrong, message):
  own = {"steps_per_epoch": 1.0, "total_steps": 1}
  with pytest.raises(UserError, match=message):
    errors.call(
      optim.make_schedule, "config.schedule", {"lr": 1.0} | wrong, **own
    )


@pytest.fixture(scope="module")
def of_asit():
  """100 epochs of 1,000 steps, in double precision."""
  steps = np.arange(100_000, dtype=np.float64)
  with jax.enable_x64(True):
    made = optim.make_schedule(
      lr=5e-4,
      lr_batch_size=256,
      batch_size=128,
      steps_per_epoch=1000.0,
      total_steps=100_000,
      decay="cosine",
      final_lr=1e-6,
      warmup="linspace",
      warmup_epochs=10.0,
    )
    return {
      "lr": np.asarray(made(steps)),
      "decay": np.asarray(optim.cosine(0.04, 0.4, 100_000)(steps)),
      "momentum": 1 - np.asarray(optim.cosine(0.004, 0.0, 100_000)(steps)),
    }


@pytest.mark.parametrize(
  ("name", "step", "expected"),
  [
    ("lr", 1, 2.50025003e-8),
    ("lr", 5000, 1.25012501e-4),
    ("lr", 9999, 2.5e-4),
    ("lr", 10_000, 2.5e-4),
    ("lr", 50_000, 1.47119198e-4),
    ("lr", 99_999, 1.00000008e-6),
    ("decay", 5000, 0.04221610),
    ("decay", 10_000, 0.04880983),
    ("decay", 50_000, 0.22),
    ("momentum", 5000, 0.9960246233),
    ("momentum", 10_000, 0.9960978870),
    ("momentum", 50_000, 0.998),
  ],
)
def test_golden_schedules_of_asit(name, step, expected, of_asit):
  digits = {"lr": 1e-12, "decay": 1e-8, "momentum": 1e-9}[name]
  assert of_asit[name][step] == pytest.approx(expected, abs=digits)


def test_the_first_rate_of_asit_is_zero(of_asit):
  assert of_asit["lr"][0] == 0.0


def test_linspace_warmup():
  """As NumPy's linspace, both ends included, in steps or in epochs."""
  for given in ({"warmup_steps": 5}, {"warmup_epochs": 0.5}):
    rates = schedule(lr=2.0, warmup="linspace", **given)
    assert rates(*range(7)) == pytest.approx([0, 0.5, 1, 1.5, 2, 2, 2])
  assert schedule(warmup="linspace", warmup_steps=1)(0, 1) == [0.0, 1.0]
  rates = schedule(warmup="linear", warmup_epochs=0.4)(0, 1, 4)
  assert rates == pytest.approx([0, 0.25, 1])
