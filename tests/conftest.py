"""Settings shared by all tests: four fake devices, warnings are errors."""

import os

# Before JAX wakes up. Tests that want one device make a mesh of one.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
