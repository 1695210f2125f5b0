"""Settings shared by all tests: four fake devices, warnings are errors."""

import gc
import os
import pathlib

import pytest

# Before JAX wakes up. Tests that want one device make a mesh of one.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=4"
  # On a busy machine one of four may come late to where they meet.
  + " --xla_cpu_collective_call_terminate_timeout_seconds=86400"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Fake devices share XLA's threads, one for each core: one device that waits in
# two collectives would leave none for another to arrive with.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most of a test's time is compiling. (`tests/parity` compiles as a run does.)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Many tests compile the same tiny step, some of them in processes of their own.
# To write what takes no time to compile takes longer than to compile it.
_CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def pytest_collection(session):
  """Where tests run, which is not the process that hands them out."""
  if not session.config.pluginmanager.has_plugin("dsession"):
    from tests import reuse

    reuse.install()


def pytest_sessionfinish():
  # At its end pytest collects garbage five times, to find warnings that nobody
  # heard; with all that JAX has traced that takes half a minute.
  gc.freeze()


@pytest.fixture
def compiled_as_in_a_run():
  """All of XLA's optimisations."""
  import jax

  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def one_device(monkeypatch):
  """Whatever takes all devices takes the first, as most tests do."""
  import jax

  first = jax.devices()[:1]
  monkeypatch.setattr(jax, "devices", lambda *platform: first)
