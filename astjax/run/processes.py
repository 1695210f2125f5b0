"""Several processes as one run: how they meet, hear of signals, and leave.

JAX brings them together and misses the ones that are lost: their connection
breaks, or no heartbeat comes. Then JAX ends all the others, with a dump of the
stack and a non-zero exit code. Starting again is the launcher's part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
import signal
import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from astjax.errors import Outage, UserError, first_line

# Who has not been heard of for so long is gone; JAX's own default is 100.
HEARTBEAT_SECONDS = 60
LEAVE_SECONDS = 30.0
# By what a scheduler calls the number of a process, and how many there are.
# Open MPI comes first: it may start its own daemons by SLURM, one a machine.
# A step's count decides, not the job's, which JAX takes (SLURM_NTASKS): a shell
# in an interactive allocation has that too, and would wait for tasks that
# nobody has started.
_RANKS = {
  "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE",
  "SLURM_PROCID": "SLURM_STEP_NUM_TASKS",
  "JOB_COMPLETION_INDEX": "",
}


@dataclasses.dataclass(frozen=True)
class Group:
  """The processes that train together, as one of them sees them."""

  method: str  # by which JAX finds out what is None, or "deactivate"
  coordinator: str | None = None  # host:port of process 0
  num_processes: int | None = None
  process_id: int | None = None
  local_device_ids: tuple[int, ...] = ()  # its own ones; empty for all


def find(
  env: Mapping[str, str],
  coordinator: str = "",
  num_processes: int | None = None,
  process_id: int | None = None,
) -> Group | None:
  """The group that this process belongs to, or None if it trains alone.

  Flags win over JAX's variables, and these over what a scheduler tells.
  `num_processes=1` is alone whatever `env` says, such as for sweeps under srun.
  `env` is the environment after `import jax`.

  Raises:
    UserError: flags that do not belong together, or an environment that tells
      of several processes, but not where they are.
  """
  # `jax.distributed.initialize` would read the first of these alone.
  coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS", "")
  if num_processes is None:
    num_processes = _number(env, "JAX_NUM_PROCESSES")
  if process_id is None:
    process_id = _number(env, "JAX_PROCESS_ID")
  if num_processes == 1:
    return None
  if not coordinator and num_processes is None and process_id is None:
    return _of_scheduler(env)
  devices: tuple[int, ...] = ()
  rank = next((r for r in _RANKS if r in env), "")
  if num_processes is None:
    num_processes = _number(env, _RANKS.get(rank, ""))
  if rank and process_id is None:
    process_id, devices = _number(env, rank), _own_devices(env)
  given = f"--coordinator={coordinator} --num_processes={num_processes} "
  given += f"--process_id={process_id}"
  is_place = re.fullmatch(r".+:\d+", coordinator)
  if num_processes is None or process_id is None or not is_place:
    raise UserError(
      "several processes need each of --coordinator=HOST:PORT, "
      "--num_processes=N and --process_id=I (or JAX_COORDINATOR_ADDRESS, "
      f"JAX_NUM_PROCESSES, JAX_PROCESS_ID); got {given}"
    )
  if not 0 <= process_id < num_processes:
    raise UserError(f"{given} is not one of 0 ... {num_processes - 1}")
  return Group("deactivate", coordinator, num_processes, process_id, devices)


def _number(env: Mapping[str, str], name: str, default: Any = None) -> Any:
  text = env.get(name)
  try:
    return int(text) if text else default
  except ValueError:
    raise UserError(f"{name}={text!r} is not a whole number") from None


def _of_scheduler(env):
  """What JAX's own detection of clusters is asked for, if it is asked."""
  unknown = UserError(
    "the environment tells of several processes, but not where process 0 is: "
    "give --coordinator=HOST:PORT --num_processes=N, or --num_processes=1 to "
    "train alone"
  )
  if (count := _number(env, "OMPI_COMM_WORLD_SIZE", 1)) > 1:
    if "OMPI_MCA_orte_hnp_uri" not in env:  # Open MPI 5
      raise unknown
    rank = env["OMPI_COMM_WORLD_RANK"]
    return Group("ompi", None, count, int(rank), _own_devices(env))
  rank, count = env.get("SLURM_PROCID"), _number(env, "SLURM_STEP_NUM_TASKS", 1)
  if rank and count > 1 and {"SLURM_JOB_ID", "SLURM_STEP_NODELIST"} <= {*env}:
    return Group("slurm", None, count, int(rank), _own_devices(env))
  if group := _tpu(env):
    return group
  # A pod of an indexed Job; a TPU slice of one machine is one, too.
  names = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"}
  if not names <= env.keys() or env.get("TPU_WORKER_HOSTNAMES"):
    return None
  if importlib.util.find_spec("kubernetes") is None:
    raise unknown
  return Group("k8s")


def _own_devices(env):
  """One accelerator for each process, where several share a machine."""
  # JAX gives each task of SLURM and Open MPI one, also where a task has the
  # machine for itself, or where the scheduler has shared them out already.
  count = functools.partial(_number, env, default=1)
  if "OMPI_COMM_WORLD_RANK" in env:
    is_shared = count("OMPI_COMM_WORLD_LOCAL_SIZE") > 1
    rank = env.get("OMPI_COMM_WORLD_LOCAL_RANK")
  else:
    is_shared = count("SLURM_STEP_NUM_TASKS") > count("SLURM_STEP_NUM_NODES")
    rank = env.get("SLURM_LOCALID")
  visible = env.get("CUDA_VISIBLE_DEVICES") or env.get("ROCR_VISIBLE_DEVICES")
  is_shared_out = bool(visible) and "," not in visible
  return (int(rank),) if rank and is_shared and not is_shared_out else ()


def _tpu(env):
  """Several TPU hosts; JAX would join a group of one as well."""
  platforms = env.get("JAX_PLATFORMS", "")
  if importlib.util.find_spec("libtpu") is None or (
    platforms and "tpu" not in platforms
  ):
    return None
  hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
  if hosts:
    several = "," in hosts or int(env.get("MEGASCALE_NUM_SLICES") or 1) > 1
    return Group("gketpu") if several else None
  # JAX sets this one where it finds no TPU. On a TPU VM its metadata server
  # tells how many there are, and a group of one is fine.
  return None if "TPU_SKIP_MDS_QUERY" in env else Group("gcetpu")


def join(group: Group) -> None:
  """Starts `jax.distributed`; an Outage if the others do not come."""
  is_set = "JAX_LOCAL_DEVICE_IDS" in os.environ
  try:
    jax.distributed.initialize(
      group.coordinator,
      num_processes=group.num_processes,
      process_id=group.process_id,
      local_device_ids=None if is_set else group.local_device_ids,
      cluster_detection_method=group.method,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except Exception as e:
    raise Outage(
      f"cannot join the {group.num_processes or 'other'} processes at "
      f"{group.coordinator or group.method}: {first_line(e)}; alone it is "
      "--num_processes=1"
    ) from None


def leave() -> None:
  """Waits half a minute for the others, since JAX ends who misses one."""

  def shut_down():
    with contextlib.suppress(Exception):
      jax.distributed.shutdown()

  # In a thread: JAX's own time-out ends the process, and with another code.
  thread = threading.Thread(target=shut_down, daemon=True)
  thread.start()
  thread.join(LEAVE_SECONDS)


class Signals:
  """Inside this context signals are noted, for the loop to ask about."""

  def __init__(self) -> None:
    self.received: int | None = None  # number of the signal
    self._old: dict[int, Any] = {}
    # Among several processes SIGTERM belongs to JAX, which carries it to all of
    # them. The other signals are turned into it.
    self._several = jax.process_count() > 1
    self._start: int | None = None

  def __enter__(self) -> Signals:
    catch = {signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup
      catch.remove(signal.SIGHUP)
    if self._several:
      catch.remove(signal.SIGTERM)

    def note(signum, frame):
      self.received = signum
      if self._several:
        signal.raise_signal(signal.SIGTERM)

    # Not in the main thread: signals are left to the caller.
    with contextlib.suppress(ValueError):
      self._old = {s: signal.signal(s, note) for s in catch}
    return self

  def __exit__(self, *exception) -> None:
    for signum, handler in self._old.items():
      signal.signal(signum, handler)
    if self._old and self._several:  # nobody looks at a notice any more
      signal.signal(signal.SIGTERM, signal.SIG_DFL)

  def asked(self, step: int) -> bool:
    """Whether any process was signalled; the same answer on all of them."""
    if not self._several:
      return self.received is not None
    # JAX's preemption service finds a step that none of them has begun, without
    # a collective in every step. A notice before the first call makes that step
    # 1, which a resumed run would be past: so steps count from this start.
    self._start = step - 1 if self._start is None else self._start
    if not multihost_utils.reached_preemption_sync_point(step - self._start):
      return False
    signals = multihost_utils.process_allgather(np.int32(self.received or 0))
    self.received = int(signals.max()) or signal.SIGTERM
    return True
