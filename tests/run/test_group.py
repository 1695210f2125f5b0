"""Which environments and flags make a group of processes."""

import subprocess
import sys

import pytest

from astjax.errors import UserError
from astjax.run import processes
from astjax.run.processes import Group

# What srun tells the third of four tasks on two machines.
SLURM = {
  "SLURM_JOB_ID": "4711",
  "SLURM_NTASKS": "4",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_STEP_NUM_NODES": "2",
  "SLURM_STEP_NODELIST": "node[07,11]",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "0",
}
OPEN_MPI = {
  "OMPI_COMM_WORLD_SIZE": "4",
  "OMPI_COMM_WORLD_RANK": "3",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
  "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


@pytest.fixture
def installed(monkeypatch):
  """Which of the optional packages there are: none, unless named."""
  names = set()
  monkeypatch.setattr(
    processes.importlib.util,
    "find_spec",
    lambda name: name if name in names else None,
  )
  return names


@pytest.mark.parametrize(
  "env",
  [
    {},
    {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "4"},  # the shell of salloc
    # A batch script, and a shell that is a step of its own in salloc.
    {k: v for k, v in SLURM.items() if "STEP" not in k},
    SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"},
    {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a notebook in a pod
    {"TPU_WORKER_HOSTNAMES": "a,b"},  # no libtpu
  ],
)
def test_alone(env, installed):
  assert processes.find(env) is None


def test_alone_because_the_user_says_so(installed):
  assert processes.find(SLURM, num_processes=1) is None
  assert processes.find(POD, num_processes=1) is None


def test_slurm(installed):
  assert processes.find(SLURM) == Group("slurm", None, 4, 2, (0,))
  one_each = SLURM | {"SLURM_STEP_NUM_NODES": "4"}
  assert processes.find(one_each).local_device_ids == ()
  flags = {"coordinator": "node07:8476", "num_processes": 4}
  assert processes.find(SLURM, **flags).local_device_ids == (0,)
  assert processes.find(one_each, **flags).local_device_ids == ()
  assert processes.find(SLURM, **flags, process_id=1).local_device_ids == ()
  # The scheduler has shared out the accelerators, or has not.
  for visible, own in (("3", ()), ("0,1", (0,)), ("", (0,))):
    env = SLURM | {"CUDA_VISIBLE_DEVICES": visible}
    assert processes.find(env).local_device_ids == own


def test_open_mpi(installed):
  assert processes.find(OPEN_MPI) == Group("ompi", None, 4, 3, (1,))
  newer = {k: v for k, v in OPEN_MPI.items() if "orte" not in k}
  with pytest.raises(UserError, match="--coordinator=HOST:PORT"):
    processes.find(newer)
  expected = Group("deactivate", "node1:8476", 4, 3, (1,))
  assert processes.find(newer, coordinator="node1:8476") == expected


def test_open_mpi_that_slurm_started(installed):
  """Its daemons are a step of SLURM, one on each machine."""
  both = SLURM | OPEN_MPI | {"SLURM_PROCID": "0"}
  assert processes.find(both) == Group("ompi", None, 4, 3, (1,))
  flags = {"coordinator": "node1:8476", "num_processes": 4}
  assert processes.find(both, **flags).process_id == 3


def test_tpu(installed):
  installed.add("libtpu")
  hosts = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
  assert processes.find(hosts) == Group("gketpu")
  assert processes.find({"TPU_WORKER_HOSTNAMES": "a"}) is None
  assert processes.find(POD | {"TPU_WORKER_HOSTNAMES": "a"}) is None
  slices = {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}
  assert processes.find(slices) == Group("gketpu")
  assert processes.find({}) == Group("gcetpu")
  # libtpu is there to compile for a TPU, without one.
  assert processes.find({"TPU_SKIP_MDS_QUERY": "1"}) is None
  assert processes.find(hosts | {"JAX_PLATFORMS": "cpu"}) is None


def test_kubernetes(installed):
  with pytest.raises(UserError, match="--coordinator=HOST:PORT"):
    processes.find(POD)
  flags = {"coordinator": "job-0.jobs:8476", "num_processes": 2}
  expected = Group("deactivate", "job-0.jobs:8476", 2, 1)
  assert processes.find(POD, **flags) == expected
  installed.add("kubernetes")
  assert processes.find(POD) == Group("k8s")


JAX = {
  "JAX_COORDINATOR_ADDRESS": "host:1",
  "JAX_NUM_PROCESSES": "3",
  "JAX_PROCESS_ID": "2",
}


def test_jax_variables(installed):
  """They win over a scheduler, and flags over them."""
  for env in (JAX, SLURM | JAX, POD | JAX):
    assert processes.find(env) == Group("deactivate", "host:1", 3, 2)
  found = processes.find(JAX, coordinator="other:2", process_id=0)
  assert found == Group("deactivate", "other:2", 3, 0)
  assert processes.find(JAX, num_processes=1) is None
  assert processes.find({"JAX_NUM_PROCESSES": "1"}) is None
  assert processes.find({"JAX_NUM_PROCESSES": ""}) is None
  # What they leave out, a scheduler tells.
  address = {"JAX_COORDINATOR_ADDRESS": "host:1"}
  expected = Group("deactivate", "host:1", 4, 2, (0,))
  assert processes.find(SLURM | address) == expected


@pytest.mark.parametrize(
  ("env", "flags", "words"),
  [
    ({}, {"num_processes": 0}, "--num_processes=0"),
    ({}, {"num_processes": 2}, "--coordinator=HOST:PORT"),
    ({}, {"process_id": 1}, "--process_id=1"),
    ({}, {"coordinator": "a:1"}, "--coordinator=a:1"),
    ({}, {"num_processes": 2, "coordinator": "a:1"}, "--process_id=I"),
    (JAX, {"coordinator": "a"}, "HOST:PORT"),
    (JAX, {"process_id": 3}, r"--process_id=3 is not one of 0 ... 2"),
    (JAX | {"JAX_PROCESS_ID": "x"}, {}, "JAX_PROCESS_ID='x'"),
    ({"JAX_NUM_PROCESSES": "2"}, {}, "JAX_COORDINATOR_ADDRESS"),
  ],
)
def test_what_does_not_fit(env, flags, words, installed):
  with pytest.raises(UserError, match=words):
    processes.find(env, **flags)


def test_jax_tells_where_there_is_no_tpu():
  """`find` relies on it: libtpu is installed for compiling ahead of time."""
  code = "import jax, os; print(os.environ.get('TPU_SKIP_MDS_QUERY'))"
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == "1"
