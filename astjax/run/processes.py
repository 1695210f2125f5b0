"""Several processes as one run: how they find each other and end together.

A run with a part missing waits for ever in its next collective. So a process
that fails leaves word of it in the store that all share, one that is killed is
missed by its connection or its heartbeat, and all others end with one line.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import functools
import importlib.util
import json
import os
import re
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import NoReturn

import jax
from jax._src import distributed

from astjax.errors import UserError, first_line

# Who has not been heard of for so long is gone; JAX's own default is 100.
HEARTBEAT_SECONDS = 60
# How long process 0, who keeps the store, stays so that others can hear why.
_LINGER_SECONDS = 5.0
_FAILED, _HEARD = "astjax/failed", "astjax/heard"
# What a collective says when the other end is gone, on CPU, GPU and TPU.
_BROKEN = re.compile(
  "gloo|nccl|connection|socket closed|unavailable|deadline|heartbeat|barrier"
  "|coordination|halted|slice health",
  re.IGNORECASE,
)
_lock, _leaving = threading.Lock(), threading.Event()
_HANDLER = ctypes.CFUNCTYPE(None)
_KEPT = []  # C++ calls them, which Python does not see
_LISTENER: list[threading.Thread] = []


@dataclasses.dataclass(frozen=True)
class Group:
  """The processes that train together, as one of them sees them.

  Attributes:
    source: who told of it: "flags", or JAX's name of a scheduler.
    coordinator: host:port of process 0; None asks the scheduler.
    num_processes: how many they are; None asks the scheduler.
    process_id: which of them this one is; None asks the scheduler.
    local_device_ids: the accelerators of this machine that are its own; empty
      for all of them.
  """

  source: str
  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  local_device_ids: tuple[int, ...] = ()


def find(
  env: Mapping[str, str],
  *,
  coordinator: str = "",
  num_processes: int | None = None,
  process_id: int | None = None,
) -> Group | None:
  """The group that this process belongs to, or None if it trains alone.

  Args:
    env: environment variables, after `import jax`.
    coordinator: host:port of process 0, if the user gave it.
    num_processes: how many, if the user gave it; 1 is alone, whatever the
      environment says.
    process_id: which one, if the user gave it.

  Raises:
    UserError: flags that do not belong together, or an environment that tells
      of several processes, but not where they are.
  """
  if num_processes is not None or coordinator or process_id is not None:
    return _of_flags(env, coordinator, num_processes, process_id)
  # Open MPI before SLURM, by which it starts its own daemons.
  for look in (_open_mpi, _slurm, _tpu, _kubernetes):
    if group := look(env):
      return group
  return None


def _of_flags(env, coordinator, num_processes, process_id):
  if num_processes is not None and num_processes < 1:
    raise UserError(f"--num_processes={num_processes} must be at least 1")
  if num_processes is None or num_processes == 1:
    if process_id or coordinator:
      raise UserError(
        f"--process_id={process_id or 0} and --coordinator={coordinator} need "
        "--num_processes=N, N > 1"
      )
    return None
  if not coordinator:
    raise UserError("--num_processes needs --coordinator=HOST:PORT")
  if not re.fullmatch(r".+:\d+", coordinator):
    raise UserError(f"--coordinator={coordinator} is not HOST:PORT")
  own = ()
  if process_id is None:
    known = [rank for rank in _RANKS if rank in env]
    if not known:
      raise UserError("--num_processes needs --process_id=I, from 0")
    process_id = int(env[known[0]])
    own = _RANKS[known[0]](env)
  if not 0 <= process_id < num_processes:
    raise UserError(
      f"--process_id={process_id} is not in 0 ... {num_processes - 1}"
    )
  return Group("flags", coordinator, num_processes, process_id, own)


def _slurm(env):
  if not {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"} <= env.keys():
    return None
  # Of the step, not of the job: a shell inside an allocation for many tasks is
  # a step of one.
  count = int(env.get("SLURM_STEP_NUM_TASKS", 1))
  if count < 2:
    return None
  return Group(
    "slurm", None, count, int(env["SLURM_PROCID"]), _own_of_slurm(env)
  )


def _open_mpi(env):
  count = int(env.get("OMPI_COMM_WORLD_SIZE", 1))
  if count < 2:
    return None
  local = int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
  coordinator = None
  if "OMPI_MCA_orte_hnp_uri" not in env:  # Open MPI 5 tells no address
    if local < count:
      raise UserError(
        "this Open MPI does not tell where process 0 is; give "
        f"--coordinator=HOST:PORT --num_processes={count}"
      )
    job = env.get("PMIX_NAMESPACE", "") + env.get("OMPI_MCA_ess_base_jobid", "")
    coordinator = f"localhost:{61_440 + zlib.crc32(job.encode()) % 4_096}"
  rank = int(env["OMPI_COMM_WORLD_RANK"])
  return Group("ompi", coordinator, count, rank, _own_of_open_mpi(env))


def _own_of_slurm(env):
  count = int(env.get("SLURM_STEP_NUM_TASKS", 1))
  shared = count > int(env.get("SLURM_STEP_NUM_NODES", 1))
  return _own_device(env, env.get("SLURM_LOCALID")) if shared else ()


def _own_of_open_mpi(env):
  shared = int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1)) > 1
  return (
    _own_device(env, env.get("OMPI_COMM_WORLD_LOCAL_RANK")) if shared else ()
  )


# By what a scheduler calls the number of a process.
_RANKS = {
  "OMPI_COMM_WORLD_RANK": _own_of_open_mpi,
  "SLURM_PROCID": _own_of_slurm,
  "JOB_COMPLETION_INDEX": lambda env: (),
}


def _own_device(env, local_id):
  """One accelerator for each of the processes on a machine."""
  visible = env.get("CUDA_VISIBLE_DEVICES") or env.get("ROCR_VISIBLE_DEVICES")
  if local_id is None or (visible and "," not in visible):
    return ()  # the scheduler has shared them out already
  return (int(local_id),)


def _tpu(env):
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
  # tells how many there are, and one of them is fine, too.
  return None if "TPU_SKIP_MDS_QUERY" in env else Group("gcetpu")


def _kubernetes(env):
  if not {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= env.keys():
    return None
  if env.get("TPU_WORKER_HOSTNAMES"):
    return None  # a slice of one machine, as `_tpu` found
  if importlib.util.find_spec("kubernetes") is None:
    raise UserError(
      "a pod of an indexed Job needs --coordinator=HOST:PORT "
      "--num_processes=N (--num_processes=1 if it trains alone), or the "
      "package kubernetes and the right to read the Job"
    )
  return Group("k8s")


def join(group: Group) -> None:
  """Starts `jax.distributed`; from here on all processes end together.

  Raises:
    ConnectionError: the others, or the scheduler's answer, did not come.
  """
  told = "JAX_LOCAL_DEVICE_IDS" in os.environ
  method = "deactivate" if group.source == "flags" else group.source
  try:
    with _told_of_losses():
      jax.distributed.initialize(
        group.coordinator,
        num_processes=group.num_processes,
        process_id=group.process_id,
        local_device_ids=None if told else group.local_device_ids,
        cluster_detection_method=method,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      )
  except Exception as e:
    reason = first_line(e)
    hint = "" if group.source == "flags" else "; alone it is --num_processes=1"
    raise ConnectionError(
      f"cannot join the {group.num_processes or 'other'} processes at "
      f"{group.coordinator or group.source}: {reason}{hint}"
    ) from None
  if distributed.global_state.num_processes > 1:
    _LISTENER.append(threading.Thread(target=_listen, daemon=True))
    _LISTENER[0].start()
    # Before JAX's own, which takes away what the thread uses.
    atexit.register(leave)


def is_one_of_several() -> bool:
  """Whether this process has joined others."""
  state = distributed.global_state
  return state.client is not None and state.num_processes > 1


def label() -> str:
  """'process 1 of 4: ' for messages, or nothing where there is one alone."""
  if not is_one_of_several():
    return ""
  state = distributed.global_state
  return f"process {state.process_id} of {state.num_processes}: "


def leave() -> None:
  """Waits for the others, so that none of them misses this one.

  One that fails until then is still heard.
  """
  with contextlib.suppress(Exception):
    jax.distributed.shutdown()
  _leaving.set()
  for thread in _LISTENER:
    thread.join()


def end(text: str, code: int = 1) -> NoReturn:
  """One line on standard error, word to the others, and the end.

  At once: threads of a failed save or of other processes' collectives would
  otherwise add pages of their own, or wait.
  """
  with _lock:  # for good: whoever comes first speaks, and nobody after
    _say(text)
    if is_one_of_several():
      _leave_word(text, code)
    os._exit(code)


def wait_for_word() -> None:
  """Gives another's failure the time to be heard, which ends this process."""
  time.sleep(2.0)


def is_lost(error: Exception) -> bool:
  """Whether an error may be that another process is gone."""
  text = first_line(error)
  if isinstance(error, OSError):  # orbax's, not that of a disk
    theirs = isinstance(error, TimeoutError) and error.errno is None
  else:  # of XLA or the store: JAX's own class, or a status at the beginning
    theirs = isinstance(error, jax.errors.JaxRuntimeError) or (
      isinstance(error, (RuntimeError, ValueError))
      and re.match("[A-Z_]{5,}: ", text)
    )
  return is_one_of_several() and bool(theirs and _BROKEN.search(text))


def _say(text: str) -> None:
  sys.stdout.flush()
  print(f"astjax: error: {label()}{text}", file=sys.stderr, flush=True)


def _leave_word(text: str, code: int) -> None:
  state = distributed.global_state
  client, me = state.client, state.process_id
  with contextlib.suppress(Exception):  # also if another one failed before
    client.key_value_set(_FAILED, json.dumps([me, text, code]))
  with contextlib.suppress(Exception):
    client.key_value_set(f"{_HEARD}/{me}", "")
    give_up = time.monotonic() + _LINGER_SECONDS
    while me == 0 and time.monotonic() < give_up:
      if len(client.key_value_dir_get(_HEARD)) == state.num_processes:
        return
      time.sleep(0.1)


def _listen() -> None:
  """Ends this process when another one leaves word of its failure."""
  state = distributed.global_state
  while not _leaving.wait(1.0):
    try:
      word = json.loads(state.client.key_value_try_get(_FAILED))
    except Exception:  # no word, or the store is gone: see _lost
      continue
    who, text, code = word
    if who != state.process_id:
      end(f"process {who} failed: {text}", code)
    return


def _lost(*status: object) -> None:
  """Called by JAX when a process is missed, or the store of process 0 is."""
  del status
  with _lock:
    is_first = distributed.global_state.process_id == 0
    if is_first or _answers():
      _say(
        f"another process was not heard of for {HEARTBEAT_SECONDS} s: killed, "
        "frozen, or its machine is gone"
      )
      # All are told at the same time, by this one if it is the first.
      time.sleep(1.0 if is_first else 0.0)
    else:
      _say("process 0 is gone: killed, or its machine is")
    os._exit(1)


def _answers() -> bool:
  """Whether process 0 still does; its socket may outlive it for a moment."""
  host, port = distributed.global_state.coordinator_address.rsplit(":", 1)
  try:
    for _ in range(4):
      socket.create_connection((host.strip("[]"), int(port)), 3.0).close()
      time.sleep(0.5)
  except OSError:
    return False
  return True


@contextlib.contextmanager
def _told_of_losses() -> Iterator[None]:
  """The client that is made inside calls `_lost`.

  JAX has no argument for it, and without it a lost process is a stack dump.
  """
  with contextlib.ExitStack() as stack:
    try:
      from jax._src.lib import _jax

      make_client = _jax.get_distributed_runtime_client
    except (ImportError, AttributeError):  # another JAX: a stack dump, then
      pass
    else:
      _jax.get_distributed_runtime_client = functools.partial(
        make_client, missed_heartbeat_callback=_lost
      )
      stack.callback(
        setattr, _jax, "get_distributed_runtime_client", make_client
      )
      _speak_at_termination()
    yield


def _speak_at_termination() -> None:
  """Lets `_lost` be called by a jaxlib that cannot.

  Its callback has a C++ status as argument, which has no form in Python: the
  call raises std::bad_cast, and C++ terminates. What is done then can be set.
  """
  with contextlib.suppress(OSError, AttributeError):  # another C++ library
    cxx = ctypes.CDLL("libstdc++.so.6")
    exception_type = cxx.__cxa_current_exception_type
    exception_type.restype = ctypes.c_void_p
    set_terminate = cxx._ZSt13set_terminatePFvvE
    set_terminate.argtypes = [_HANDLER]
    set_terminate.restype = _HANDLER

    def handler():
      kind = exception_type()  # std::type_info: a table and a name
      name = kind and ctypes.cast(kind, ctypes.POINTER(ctypes.c_char_p))[1]
      if name == b"St8bad_cast":
        _lost()
      previous()

    kept = _HANDLER(handler)
    previous = set_terminate(kept)
    _KEPT.append(kept)
