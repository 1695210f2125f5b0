"""The scripts of launch/, with stand-ins for the programs around them."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
FLAGS = ["--config=my configs/x.py:full", "--workdir=/runs/it's a & b $HOME"]
MAIN = ["-m", "astjax.main", *FLAGS]
SAY = 'printf "%s\\n" "$@"'
# Waits for a signal and tells of it, as a trainer that saves.
WAITS = f"""exec {sys.executable} -IS -c '
import signal, sys
signals = [getattr(signal, "SIG" + x) for x in ("TERM", "INT", "USR1", "HUP")]
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
print("ready", flush=True)
number = signal.sigwait(signals)
print("got", signal.Signals(number).name, flush=True)
sys.exit(128 + number)'"""


class Fakes:
  """Programs that come before all others in PATH, and scripts among them."""

  def __init__(self, folder):
    self.folder = folder
    (folder / "bin").mkdir()
    self.env = {k: v for k, v in os.environ.items() if "CUDA" not in k}
    self.env |= {"PATH": f"{folder}/bin:{os.environ['PATH']}", "PAUSE": "0"}
    self.env["FOLDER"] = str(folder)

  def add(self, name, script):
    path = self.folder / "bin" / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)
    return str(path)

  def lines(self, name):
    return (self.folder / name).read_text().splitlines()

  def start(self, script, *args, **env):
    # Where tests run in the background SIGINT is ignored, and bash keeps that.
    return subprocess.Popen(
      ["env", "--default-signal=INT", LAUNCH / script, *args],
      cwd=ROOT,
      env=self.env | env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, script, *args, **env):
    """The exit code and the two outputs."""
    process = self.start(script, *args, **env)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture
def fakes(tmp_path):
  return Fakes(tmp_path)


def test_shellcheck_has_nothing_to_say():
  beside = pathlib.Path(sys.executable).parent  # where an environment has it
  program = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
  if not program:
    pytest.skip("no shellcheck")
  subprocess.run([program, *LAUNCH.glob("*.sh")], check=True)


# The k-th call ends with the k-th code.
COUNTS = """
echo "$*" >>"$FOLDER/said"
codes=($CODES)
exit "${codes[$(wc -l <"$FOLDER/said") - 1]}"
"""


@pytest.mark.parametrize(
  ("codes", "calls", "env"),
  [
    ("0", 1, {}),
    ("1 134 0", 3, {}),
    ("9 9 137", 3, {}),  # no restart is left
    ("1 1 1 1 0", 5, {"HEALTHY": "0"}),  # it begins to count anew
    ("2", 1, {}),
    ("1 2", 2, {}),
    *((str(code), 1, {}) for code in (126, 127, 129, 130, 138, 143)),
  ],
)
def test_what_is_started_again(codes, calls, env, fakes):
  job = fakes.add("job", COUNTS)
  env = {"CODES": codes, "RESTARTS": "2"} | env
  code, _, err = fakes.run("supervise.sh", job, "a b", "$x", **env)
  assert code == int(codes.split()[-1])
  assert fakes.lines("said") == ["a b $x"] * calls
  assert err.count("restart") == calls - 1


def test_a_mistake_in_a_real_command_is_not_tried_again(fakes):
  words = [sys.executable, "-m", "astjax.main", "--config=configs/demo.py"]
  code, _, err = fakes.run("supervise.sh", *words)
  assert code == 2 and err.count("no work directory") == 1


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_signals_reach_the_command(name, fakes):
  process = fakes.start("supervise.sh", fakes.add("job", WAITS))
  assert process.stdout.readline() == "ready\n"
  process.send_signal(signal.Signals[name])
  assert process.communicate()[0] == f"got {name}\n"
  assert process.returncode == 128 + signal.Signals[name]


def test_the_pause_grows_and_a_signal_ends_it(fakes):
  fakes.add("sleep", f"[[ $1 != 14000000 ]] || {{ {WAITS}\n}}")
  process = fakes.start("supervise.sh", "false", PAUSE="7000000")
  assert process.stdout.readline() == "ready\n"
  process.terminate()
  _, err = process.communicate()
  assert process.returncode == 143 and err.count("restart") == 2


# Each process notes its GPU and its words in a file of its own.
NOTES = """
for word in "$@"; do [[ $word != --process_id=* ]] || i=${word#*=}; done
printf '%s\\n' "$CUDA_VISIBLE_DEVICES" "$@" >"$FOLDER/process$i"
((i != 2)) || exit 2
exit 1
"""


@pytest.mark.parametrize("gpus", ["", "5,7,9"])
def test_one_process_for_each_gpu(gpus, fakes):
  env = {"PYTHON": fakes.add("job", NOTES), "PROCESSES": "3", "RESTARTS": "0"}
  env |= {"CUDA_VISIBLE_DEVICES": gpus} if gpus else {}
  code, _, _ = fakes.run("local.sh", *FLAGS, **env)
  assert code == 2  # the mistake's, though the others end with 1
  coordinators = set()
  for i, gpu in enumerate(gpus.split(",") if gpus else "012"):
    first, *words = fakes.lines(f"process{i}")
    assert (first, words[:-3]) == (gpu, MAIN)
    assert words[-2:] == ["--num_processes=3", f"--process_id={i}"]
    coordinators.add(words[-3])
  (coordinator,) = coordinators
  assert re.fullmatch(r"--coordinator=127.0.0.1:\d+", coordinator)


def test_one_process_for_all_gpus(fakes):
  code, out, _ = fakes.run("local.sh", *FLAGS, PYTHON=fakes.add("job", SAY))
  assert code == 0 and out.splitlines() == MAIN


def test_a_signal_reaches_all_processes(fakes):
  python = fakes.add("job", WAITS)
  process = fakes.start("local.sh", *FLAGS, PROCESSES="2", PYTHON=python)
  assert [process.stdout.readline() for _ in "01"] == ["ready\n"] * 2
  process.terminate()
  assert process.communicate()[0] == "got SIGTERM\n" * 2
  assert process.returncode == 143


@pytest.mark.parametrize(
  ("code", "state", "requeued"),
  [
    (0, "RUNNING", False),
    (2, "RUNNING", False),
    (138, "RUNNING", True),  # the time limit comes
    (143, "RUNNING", True),  # preempted
    (143, "COMPLETING", False),  # scancel
  ],
)
def test_what_slurm_does_again(code, state, requeued, fakes):
  fakes.add("srun", f"{SAY}; exit {code}")
  fakes.add("squeue", f'[[ "$*" != *--jobs=17* ]] || echo {state}')
  fakes.add("scontrol", 'echo "$*"')
  got, out, _ = fakes.run("slurm.sh", *FLAGS, SLURM_JOB_ID="17", PYTHON="py")
  assert got == (0 if requeued else code)
  words = ["--kill-on-bad-exit=0", "py", *MAIN]
  assert out.splitlines() == words + ["requeue 17"] * requeued


def test_a_crash_is_tried_again_in_the_same_job(fakes):
  fakes.add("srun", f"{SAY}; exit 1")
  fakes.add("squeue", "echo RUNNING")
  again = {"RESTARTS": "1", "PAUSE": "0"}
  got, out, _ = fakes.run(
    "slurm.sh", *FLAGS, SLURM_JOB_ID="17", PYTHON="py", **again
  )
  words = ["--kill-on-bad-exit=0", "py", *MAIN]
  assert got == 1 and out.splitlines() == 2 * words


def test_slurm_reads_options_before_the_first_command():
  head, body = (LAUNCH / "slurm.sh").read_text().split("\nset -")
  assert {"#SBATCH --signal=USR1@120", "#SBATCH --requeue"} <= set(
    head.splitlines()
  )
  assert "#SBATCH" not in body


# The k-th training does what the k-th line of $PLAN says: its exit code, and
# what becomes of the slice, whose state is in a file.
CLOUD = """
cd "$FOLDER"
case "$*" in
  *" describe "*)
    [[ -e state ]] || { echo "NOT_FOUND: it" >&2; exit 1; }
    now=$(<state)
    sed -i "s/CREATING\\|GONE/ACTIVE/; s/SUSPENDING/SUSPENDED/" state
    [[ $now != GONE ]] || { echo "no connection" >&2; exit 1; }
    echo "$now" ;;
  *" create "*) what=create; echo CREATING >state ;;
  *" delete "*) what=delete; rm state ;;
  *" scp "*) what=copy; tar -tzf "$5" >tree ;;
  *flock*) exit 1 ;;
  *uv*) what=install ;;
  *) what=train
    k=$(grep -c train said)
    read -r code now < <(sed -n "$((k + 1))p" <<<"$PLAN")
    echo "$now" >state ;;
esac
[[ ! $what ]] || { echo $what >>said; printf '%s\\n' "$@" >$what; }
exit "${code:-0}"
"""
SLICE = {"NAME": "pod", "ZONE": "z", "TYPE": "v5litepod-16", "POLL": "0"}
NEW = ["create", "copy", "install", "train"]


@pytest.mark.parametrize(
  ("plan", "said"),
  [
    ("0 ACTIVE", NEW),
    ("2 ACTIVE", NEW),
    ("255 SUSPENDED\n0 ACTIVE", [*NEW, "delete", *NEW]),
    ("143 SUSPENDING\n0 ACTIVE", [*NEW, "delete", *NEW]),
    ("255 GONE\n0 ACTIVE", NEW + NEW[1:]),  # no connection
    ("1 ACTIVE\n0 ACTIVE", NEW + NEW[1:]),
    ("1 ACTIVE\n9 ACTIVE", NEW + NEW[1:]),  # no attempt is left
    ("9 SUSPENDED\n9 SUSPENDED\n0 ACTIVE", 2 * [*NEW, "delete"] + NEW),
  ],
)
def test_a_preempted_slice_is_made_anew(plan, said, fakes):
  fakes.add("gcloud", CLOUD)
  code, _, err = fakes.run(
    "tpu_vm.sh",
    *FLAGS,
    **SLICE,
    **{"PLAN": plan, "RESTARTS": "1", "SPOT": "1", "SETUP": "mount  'a b'"},
  )
  assert code == int(plan.splitlines()[-1].split()[0]), err
  assert fakes.lines("said") == said
  create, train = fakes.lines("create"), fakes.lines("train")
  assert create[:4] == ["compute", "tpus", "queued-resources", "create"]
  assert {"--accelerator-type=v5litepod-16", "--spot"} <= set(create)
  assert "--runtime-version=v2-alpha-tpuv5-lite" in create
  assert {"ssh", "pod", "--zone=z", "--worker=all"} <= set(train)
  assert train[-2] == "--command=set -e; cd astjax; mount  'a b'"
  words = ["RESTARTS=1", "launch/tpu_host.sh", *FLAGS]
  assert shlex.split(train[-1]) == words
  assert {words[1], "astjax/main.py"} <= set(fakes.lines("tree"))


def test_a_training_outlives_the_connection(fakes, tmp_path):
  shutil.copytree(LAUNCH, tmp_path / "launch")
  (tmp_path / ".venv").mkdir()
  (tmp_path / "bin").rename(tmp_path / ".venv" / "bin")
  (tmp_path / "bin").symlink_to(".venv/bin")
  go = tmp_path / "go"
  os.mkfifo(go)
  fakes.add("python", f'echo "begun $3"; read -r <"{go}"; echo ended; exit 7')

  def begin():
    return fakes.start(tmp_path / "launch" / "tpu_host.sh", "a b", RESTARTS="0")

  with begin() as first:
    assert first.stdout.readline() == "begun a b\n"
    first.kill()
  with begin() as second:  # shows the same
    assert second.stdout.readline() == "begun a b\n"
    go.write_text("\n")
    assert second.stdout.read() == "ended\n"
  assert second.returncode == 7
  with begin() as third:  # a new one, of which no exit code is left
    assert third.stdout.readline() == "begun a b\n"
    os.kill(int(fakes.lines("run.pid")[0]), signal.SIGKILL)
    go.write_text("\n")
    third.communicate()
  assert third.returncode == 1


JOBSET = {
  "NAME": "train",
  "IMAGE": "registry/astjax:tpu",
  "CLAIM": "shared",
  "TPU": "tpu-v5-lite-podslice",
  "TOPOLOGY": "4x8",
}


@pytest.mark.parametrize(
  ("env", "hosts", "more"),
  [
    ({"SLICES": "2", "SPOT": "1"}, 8, []),
    ({"TOPOLOGY": "2x2x2", "CHIPS": "8"}, 1, ["--num_processes=1"]),
  ],
)
def test_the_jobset(env, hosts, more, fakes):
  flags = [*FLAGS, '--config.note=a "b" \\c $(HOME) ${NAME}: {x} #1']
  code, out, err = fakes.run("gke.sh", *flags, **JOBSET | env)
  assert code == 0, err
  made = yaml.safe_load(out)
  assert made["kind"] == "JobSet" and made["metadata"]["name"] == "train"
  (group,) = made["spec"]["replicatedJobs"]
  job = group["template"]["spec"]
  assert group["replicas"] == int(env.get("SLICES", 1))
  assert job["parallelism"] == job["completions"] == hosts
  pod = job["template"]["spec"]
  spot = pod["nodeSelector"].get("cloud.google.com/gke-spot")
  assert spot == ("true" if "SPOT" in env else None)
  (container,) = pod["containers"]
  chips = int(env.get("CHIPS", 4))
  assert container["resources"]["limits"] == {"google.com/tpu": chips}
  # A mistake, and nothing else, ends it for good.
  (cause,) = job["podFailurePolicy"]["rules"]
  assert cause["action"] == "FailJob" and cause["onExitCodes"]["values"] == [2]
  assert cause["onExitCodes"]["containerName"] == container["name"]
  assert made["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
  # What the pod runs; Kubernetes makes one $ of two.
  fakes.add("python", SAY)
  command = [*container["command"], container["args"][0].replace("$$", "$")]
  words = subprocess.check_output(command, env=fakes.env, text=True)
  assert words.splitlines() == ["-m", "astjax.main", *flags, *more]


FEW = {"PROCESSES": "3", "CUDA_VISIBLE_DEVICES": "5,7"}


@pytest.mark.parametrize(
  ("script", "args", "env", "part"),
  [
    ("gke.sh", FLAGS, JOBSET | {"TOPOLOGY": "3x3"}, "9 chips"),
    ("tpu_vm.sh", FLAGS, SLICE | {"TYPE": "v9-8"}, "VERSION"),
    ("tpu_vm.sh", [], SLICE, "--workdir"),
    ("supervise.sh", [], {}, "expected a command"),
    ("local.sh", FLAGS, FEW, "CUDA_VISIBLE_DEVICES=5,7"),
  ],
)
def test_what_is_missing_is_named(script, args, env, part, fakes):
  fakes.add("gcloud", "echo called")
  code, out, err = fakes.run(script, *args, **env)
  assert code != 0 and not out
  assert part in err and len(err.splitlines()) == 1


def test_the_container_gets_what_it_copies():
  lines = (LAUNCH / "Containerfile").read_text().splitlines()
  assert lines[-1] == 'ENTRYPOINT ["python", "-m", "astjax.main"]'
  ignored = (LAUNCH / "Containerfile.dockerignore").read_text().splitlines()
  let_in = [line[1:] for line in ignored if line.startswith("!")]
  copied = " ".join(x[5:].rsplit(" ", 1)[0] for x in lines if x[:5] == "COPY ")
  for name in copied.split():
    assert (ROOT / name).exists()
    assert any(pathlib.PurePath(name).match(x) for x in let_in), name


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_platforms_have_the_same_jax(platform):
  def pins(name):
    text = (ROOT / name).read_text()
    return re.findall(r"^jax(?:\[\w+\])?(==.*)$", text, re.MULTILINE)

  assert pins("requirements.txt") == pins(f"requirements-{platform}.txt")
