"""The scripts of launch/: what they would run, and what they do with fakes."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
RUNNABLE = [p.name for p in SCRIPTS if p.name != "lib.sh"]
BESIDE = pathlib.Path(sys.executable).parent  # where an environment has it
SHELLCHECK = shutil.which("shellcheck", path=f"{BESIDE}:{os.environ['PATH']}")
FLAGS = ["--config=my configs/x.py:full", "--workdir=/runs/it's a & b $HOME"]
MAIN = ["python", "-m", "astjax.main", *FLAGS]
POD = ["--name=pod", "--zone=us-central1-a", "--project=p"]
TYPE = "--type=v5litepod-16"
SLICE = [
  "--name=train",
  "--image=registry/astjax:tpu",
  "--tpu=tpu-v5-lite-podslice",
  "--topology=4x8",
  "--claim=shared",
]


@pytest.fixture
def fakes(tmp_path):
  """Makes programs that come before all others in PATH."""
  folder = tmp_path / "bin"
  folder.mkdir()

  def add(name, script):
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)
    return path

  add.folder = folder
  return add


def environment(folder=None, **more):
  env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
  env.pop("CUDA_VISIBLE_DEVICES", None)
  env["PYTHON"] = "python"
  if folder:
    env["PATH"] = f"{folder}:{env['PATH']}"
  return env | {k: str(v) for k, v in more.items()}


def launch(script, *args, folder=None, cwd=ROOT, **env):
  return subprocess.run(
    [LAUNCH / script, *map(str, args)],
    cwd=cwd,
    env=environment(folder, **env),
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


def dry(script, *args, **env):
  """The commands of a dry run, as lists of words."""
  done = launch(script, *args, DRY_RUN=1, **env)
  assert done.returncode == 0, done.stderr
  # What is said of the future stands behind "# when: ", or is no command.
  lines = [re.sub("^# [^:]*: ", "", x) for x in done.stdout.splitlines()]
  return [shlex.split(line, comments=True) for line in lines]


# Whoever runs the tests in the background ignores SIGINT, and bash then.
HEED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def start(script, *args, folder=None, cwd=ROOT, **env):
  return subprocess.Popen(
    [sys.executable, "-c", HEED, LAUNCH / script, *map(str, args)],
    cwd=cwd,
    env=environment(folder, **env),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait_for(path, text="", seconds=20):
  """Until the file is there and has the text."""
  end = time.monotonic() + seconds
  while not (path.exists() and text in path.read_text()):
    assert time.monotonic() < end, f"{path} never had {text!r}"
    time.sleep(0.02)


# --- all of them ------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_they_are_bash(path):
  subprocess.run(["bash", "-n", path], check=True)
  assert os.access(path, os.X_OK) == (path.name in RUNNABLE)


@pytest.mark.skipif(not SHELLCHECK, reason="no shellcheck")
def test_shellcheck_has_nothing_to_say():
  done = subprocess.run(
    [SHELLCHECK, "--external-sources", *SCRIPTS],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", RUNNABLE)
def test_help_is_the_head_of_the_script(script):
  done = launch(script, "-h")
  assert done.returncode == 0 and not done.stderr
  assert script in done.stdout and " -- " in done.stdout
  assert "set -euo" not in done.stdout


WRONG = [
  ("local.sh", [], "--config=FILE.py --workdir=FOLDER"),
  ("local.sh", ["--", "--config=x.py"], "--workdir=FOLDER"),
  ("local.sh", ["--config=x.py"], "unexpected argument --config=x.py"),
  ("local.sh", ["--processes=1", "--", *FLAGS], "--processes=1"),
  ("local.sh", ["--processes=two", "--", *FLAGS], "--processes=two"),
  ("supervise.sh", [], "no command"),
  ("supervise.sh", ["true"], "unexpected argument true"),
  ("supervise.sh", ["--max-restarts=-1", "--", "true"], "--max-restarts=-1"),
  ("detached.sh", [], "no folder"),
  ("detached.sh", ["x"], "no command"),
  ("detached.sh", ["x", "y", "--", "true"], "unexpected argument y"),
  ("slurm.sh", ["--", *FLAGS], "sbatch launch/slurm.sh"),
  ("slurm.sh", ["--nodes=2", "--", *FLAGS], "unexpected argument --nodes=2"),
  ("tpu_vm.sh", [], "expected one of up, create"),
  ("tpu_vm.sh", ["lauch", *POD], "not 'lauch'"),
  ("tpu_vm.sh", ["create", "--zone=z", TYPE], "--name=NAME"),
  ("tpu_vm.sh", ["create", "--name=n", TYPE], "--zone=ZONE"),
  ("tpu_vm.sh", ["create", *POD], "--type=TYPE"),
  ("tpu_vm.sh", ["create", *POD, "--type=v9-8"], "--version=VERSION"),
  ("tpu_vm.sh", ["up", *POD, TYPE], "--workdir=FOLDER"),
  ("tpu_vm.sh", ["delete", *POD, "--", "x"], "belong to up and run"),
  ("gke.sh", ["aply"], "expected one of apply"),
  ("gke.sh", ["apply", "--name=Train", "--", *FLAGS], "--name=Train"),
  ("gke.sh", ["apply", *SLICE[:-1], "--", *FLAGS], "--claim="),
  ("gke.sh", ["apply", *SLICE], "--workdir=FOLDER"),
  ("gke.sh", ["apply", *SLICE, "--topology=4", "--", *FLAGS], "--topology=4"),
  ("gke.sh", ["apply", *SLICE, "--topology=3x3", "--", *FLAGS], "9 chips"),
]


@pytest.mark.parametrize(
  ("script", "args", "part"), WRONG, ids=lambda x: x if type(x) is str else ""
)
def test_wrong_arguments_end_in_one_line(script, args, part, fakes):
  for name in ("gcloud", "kubectl", "srun", "python"):
    fakes(name, "echo called; exit 99")
  done = launch(script, *args, folder=fakes.folder)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"{script}: error: ") and part in line
  assert not done.stdout


@pytest.mark.parametrize(
  ("script", "args", "tool"),
  [
    ("tpu_vm.sh", ["status", *POD], "gcloud"),
    ("gke.sh", ["status", "--name=train"], "kubectl"),
    ("slurm.sh", ["--", *FLAGS], "srun"),
    ("local.sh", ["--", *FLAGS], "no_python"),
  ],
)
def test_a_missing_tool_is_named(script, args, tool, tmp_path):
  for name in ("bash", "env", "dirname", "sed"):
    (tmp_path / name).symlink_to(shutil.which(name))
  env = {"PATH": tmp_path, "PYTHON": "no_python", "SLURM_JOB_ID": 1}
  done = launch(script, *args, **env)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert f"{tool} is not installed here" in line


# --- dry runs ---------------------------------------------------------------


def test_the_option_and_the_variable_are_the_same():
  with_option = launch("local.sh", "--dry-run", "--", *FLAGS)
  with_variable = launch("local.sh", "--", *FLAGS, DRY_RUN=1)
  assert with_option.stdout == with_variable.stdout != ""


def test_one_process_on_this_machine():
  assert dry("local.sh", "--", *FLAGS) == [
    [str(LAUNCH / "supervise.sh"), "--max-restarts=3", "--", *MAIN]
  ]
  assert dry("local.sh", "--max-restarts=0", "--", *FLAGS) == [MAIN]


def test_several_processes_on_this_machine():
  outer, *inner = dry("local.sh", "--processes=3", "--", *FLAGS)
  assert outer[:3] == [str(LAUNCH / "supervise.sh"), "--max-restarts=3", "--"]
  assert {"--processes=3", "--max-restarts=0"} <= set(outer[3:])
  assert outer[-len(FLAGS) :] == FLAGS
  assert len(inner) == 3
  for i, words in enumerate(inner):
    assert words[:2] == ["env", f"CUDA_VISIBLE_DEVICES={i}"]
    assert words[2 : 2 + len(MAIN)] == MAIN
    assert words[-2:] == ["--num_processes=3", f"--process_id={i}"]
  assert len({words[-3] for words in inner}) == 1
  assert re.fullmatch(r"--coordinator=127.0.0.1:\d+", inner[0][-3])
  chosen = dry(
    "local.sh", "--processes=2", "--", *FLAGS, CUDA_VISIBLE_DEVICES="5,7"
  )
  assert [words[1] for words in chosen[1:]] == [
    "CUDA_VISIBLE_DEVICES=5",
    "CUDA_VISIBLE_DEVICES=7",
  ]
  for few in ("5,7", ""):
    env = {"CUDA_VISIBLE_DEVICES": few, "DRY_RUN": 1}
    done = launch("local.sh", "--processes=3", "--", *FLAGS, **env)
    assert done.returncode == 2
    assert f"CUDA_VISIBLE_DEVICES={few} has fewer devices" in done.stderr


@pytest.mark.parametrize(
  ("script", "words", "count"),
  [
    ("local.sh", ["--processes=2"], 1),
    ("slurm.sh", [], 1),
    ("tpu_vm.sh", ["up", "--name=pod", "--zone=z", "--type=v4-8"], 5),
  ],
)
def test_a_dry_run_can_be_pasted(script, words, count):
  """Nothing in it happens twice, and nothing that only may happen."""
  done = launch(script, *words, "--dry-run", "--", *FLAGS)
  lines = [x for x in done.stdout.splitlines() if not x.startswith("#")]
  assert len(lines) == count and not any("delete" in x for x in lines)
  assert sum("--config=" in x for x in lines) == 1


def test_slurm():
  run, requeue = dry(
    "slurm.sh", "--", *FLAGS, SLURM_JOB_ID=17, SLURM_CPUS_PER_TASK=6
  )
  step = ["srun", "--kill-on-bad-exit=0", "--cpus-per-task=6", *MAIN]
  supervise = str(LAUNCH / "supervise.sh")
  assert run == [supervise, "--max-restarts=3", "--", *step]
  assert requeue == ["scontrol", "requeue", "17"]


def test_slurm_s_own_options_come_before_the_first_command():
  text = (LAUNCH / "slurm.sh").read_text()
  head, body = text.split("set -euo pipefail", 1)
  assert "#SBATCH" not in body
  for option in ("--signal=B:USR1@120", "--requeue", "--open-mode=append"):
    assert f"\n#SBATCH {option}\n" in head


WHERE = ["--zone=us-central1-a", "--project=p"]
TPUS = ["gcloud", "compute", "tpus"]


def remote(words):
  """What a command over ssh does, and where."""
  assert words[:6] == [*TPUS, "tpu-vm", "ssh", "pod"]
  assert {*WHERE, "--worker=all", "--quiet"} <= set(words)
  (command,) = [w for w in words if w.startswith("--command=")]
  return command.removeprefix("--command=")


def test_all_of_a_tpu_slice_s_life():
  mount = "sudo mount '10.0.0.2:/a b' /shared"
  lines = dry(
    "tpu_vm.sh", "up", *POD, TYPE, "--spot", f"--setup={mount}", "--", *FLAGS
  )
  create, _, tar, scp, install, train, delete = lines
  assert create == [
    *[*TPUS, "queued-resources", "create", "pod", "--node-id=pod", *WHERE],
    "--accelerator-type=v5litepod-16",
    *["--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--quiet"],
  ]
  assert tar[0] == "tar" and {"astjax", "configs", "launch"} <= set(tar)
  for word in tar[tar.index("astjax") :]:
    assert (ROOT / word).exists()
  archive = tar[tar.index("-czf") + 1]
  assert scp[:6] == [*TPUS, "tpu-vm", "scp", archive]
  assert {"pod:astjax.tar.gz", "--worker=all", *WHERE} <= set(scp)
  assert "requirements-tpu.txt" in remote(install)
  # Also after a host was started anew.
  begins = f"set -e; cd astjax; {mount}; "
  assert remote(train).startswith(begins)
  words = shlex.split(remote(train).removeprefix(begins))
  assert words[:3] == ["launch/detached.sh", "../astjax-run", "--"]
  assert words[3:5] == ["launch/supervise.sh", "--max-restarts=3"]
  assert words[5:] == ["--", ".venv/bin/python", *MAIN[1:]]
  what = ["queued-resources", "delete", "pod"]
  assert delete == [*TPUS, *what, *WHERE, "--force", "--quiet"]


def test_each_step_of_a_tpu_slice_alone():
  everything = dry("tpu_vm.sh", "up", *POD, TYPE, "--", *FLAGS)
  create, wait, _, scp, install, train, delete = everything
  assert dry("tpu_vm.sh", "create", *POD, TYPE) == [create, wait]
  _, scp_alone, install_alone = dry("tpu_vm.sh", "install", *POD)
  assert install_alone == install
  assert scp_alone[:5] + scp_alone[6:] == scp[:5] + scp[6:]
  assert dry("tpu_vm.sh", "run", *POD, "--", *FLAGS) == [train]
  assert dry("tpu_vm.sh", "delete", *POD) == [delete]
  (status,) = dry("tpu_vm.sh", "status", *POD)
  assert status == [*TPUS, "queued-resources", "describe", "pod", *WHERE]
  (stop,) = dry("tpu_vm.sh", "stop", *POD)
  assert remote(stop).endswith("launch/detached.sh --stop ../astjax-run")
  assert "--spot" not in create


@pytest.mark.parametrize(
  ("kind", "version"),
  [
    ("v4-32", "tpu-ubuntu2204-base"),
    ("v5p-8", "v2-alpha-tpuv5"),
    ("v6e-64", "v2-alpha-tpuv6e"),
  ],
)
def test_the_software_of_a_tpu(kind, version):
  create, _ = dry("tpu_vm.sh", "create", *POD, f"--type={kind}")
  assert f"--runtime-version={version}" in create
  own = dry("tpu_vm.sh", "create", *POD, f"--type={kind}", "--version=mine")
  assert "--runtime-version=mine" in own[0]


def jobset(*options, flags=FLAGS):
  """The command of `gke.sh apply`, and the JobSet that it would apply."""
  args = [*SLICE, *options, "--", *flags]
  done = launch("gke.sh", "apply", *args, DRY_RUN=1)
  assert done.returncode == 0, done.stderr
  command, *lines = done.stdout.splitlines()
  assert lines.pop() == "YAML"
  return command, yaml.safe_load("\n".join(lines))


def test_the_template_is_yaml():
  assert (
    yaml.safe_load((LAUNCH / "jobset.yaml").read_text())["kind"] == "JobSet"
  )


def test_the_jobset():
  flags = [*FLAGS, '--config.note=a "b" \\c $(HOME) ${NAME}: {x} #1']
  command, made = jobset("--slices=2", "--namespace=lab", flags=flags)
  words = ["kubectl", "--namespace=lab", "apply", "--filename=-", "<<YAML"]
  assert shlex.split(command) == words
  assert made["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert made["metadata"]["name"] == "train"
  (group,) = made["spec"]["replicatedJobs"]
  assert group["replicas"] == 2
  job = group["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 8  # 32 chips, 4 a host
  assert job["backoffLimit"] == 0
  pod = job["template"]["spec"]
  assert pod["restartPolicy"] == "Never"
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x8",
  }
  (container,) = pod["containers"]
  assert container["image"] == "registry/astjax:tpu"
  assert container["command"] == MAIN[:3]
  # Kubernetes turns $$( back into $(.
  assert [x.replace("$$(", "$(") for x in container["args"]] == flags
  assert "$$(HOME)" in container["args"][-1]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  (mount,) = container["volumeMounts"]
  (volume,) = pod["volumes"]
  assert mount["mountPath"] == "/shared" and mount["name"] == volume["name"]
  assert volume["persistentVolumeClaim"] == {"claimName": "shared"}


def test_a_jobset_starts_again_but_not_after_a_mistake():
  _, made = jobset("--max-restarts=7")
  policy = made["spec"]["failurePolicy"]
  assert policy["maxRestarts"] == 7
  (rule,) = policy["rules"]
  assert rule["action"] == "FailJobSet"
  job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
  (cause,) = job["podFailurePolicy"]["rules"]
  assert cause["action"] == "FailJob" and cause["onExitCodes"]["values"] == [2]
  container = job["template"]["spec"]["containers"][0]["name"]
  assert cause["onExitCodes"]["containerName"] == container


def test_a_jobset_s_options():
  _, made = jobset("--spot", "--topology=2x2x4", "--chips-per-host=8")
  job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["parallelism"] == 2
  pod = job["template"]["spec"]
  assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
  assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 8}


def test_a_pod_that_is_alone_knows_it():
  _, made = jobset("--topology=2x2")
  job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["parallelism"] == 1
  (container,) = job["template"]["spec"]["containers"]
  assert container["args"] == [*FLAGS, "--num_processes=1"]


def test_the_other_verbs_of_gke():
  assert dry("gke.sh", "delete", "--name=train") == [
    ["kubectl", "delete", "jobset", "train"]
  ]
  for verb in ("logs", "status"):
    lines = dry("gke.sh", verb, "--name=train")
    selector = [w for w in lines[-1] if w.startswith("--selector=")]
    assert "jobset.sigs.k8s.io/jobset-name=train" in selector[0]


def test_the_container_file():
  text = (LAUNCH / "Containerfile").read_text()
  lines = [x for x in text.splitlines() if not x.startswith("#")]
  users = [x for x in lines if x.startswith("USER ")]
  assert users == ["USER astjax"]
  assert '"python", "-m", "astjax.main"' in lines[-1]
  assert lines.index(users[0]) < len(lines) - 1
  for line in lines:
    if line.startswith("COPY "):
      for name in line.split()[1:-1]:
        assert (ROOT / name).exists(), name
  ignored = (LAUNCH / "Containerfile.dockerignore").read_text().splitlines()
  assert "*" in ignored
  let_in = {x.removeprefix("!") for x in ignored if x.startswith("!")}
  assert let_in == {
    *("astjax", "configs", "launch", "LICENSE", "README.md"),
    *("pyproject.toml", "requirements*.txt"),
  }


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_platforms_have_the_same_jax(platform):
  def pins(name):
    text = (ROOT / name).read_text()
    return re.findall(r"^jax(?:\[\w+\])?(==.*)$", text, re.MULTILINE)

  assert pins("requirements.txt") == pins(f"requirements-{platform}.txt")


# --- supervise.sh, with commands that take no time --------------------------


def counting(fakes, tmp_path, *codes):
  """A command that ends with these codes, one after the other."""
  log = tmp_path / "calls"
  body = f'echo "$*" >>"{log}"; n=$(wc -l <"{log}"); codes=({" ".join(codes)})'
  return log, fakes("job", f'{body}; exit "${{codes[n-1]}}"')


@pytest.mark.parametrize(
  ("codes", "calls", "code"),
  [
    (["0"], 1, 0),
    (["1", "134", "0"], 3, 0),
    (["137", "137", "137", "9"], 3, 137),
    (["2"], 1, 2),
    (["1", "2"], 2, 2),
    (["143"], 1, 143),
    (["138"], 1, 138),
    (["130"], 1, 130),
    (["129"], 1, 129),
  ],
)
def test_restarts(codes, calls, code, fakes, tmp_path):
  log, job = counting(fakes, tmp_path, *codes)
  options = ["--max-restarts=2", "--backoff=0"]
  done = launch("supervise.sh", *options, "--", job, "a b", "$x")
  assert done.returncode == code
  assert log.read_text().splitlines() == ["a b $x"] * calls
  assert done.stderr.count("restart") == calls - 1 + (calls == 3 and code > 0)


def test_who_was_healthy_begins_to_count_anew(fakes, tmp_path):
  log, job = counting(fakes, tmp_path, "1", "1", "1", "1", "0")
  options = ["--max-restarts=1", "--backoff=0"]
  done = launch("supervise.sh", *options, "--", job, HEALTHY_SECONDS=0)
  assert done.returncode == 0 and len(log.read_text().splitlines()) == 5


def test_a_command_that_does_not_exist_is_not_tried_again():
  done = launch("supervise.sh", "--backoff=0", "--", "/no/such/command")
  assert done.returncode == 127 and "restart" not in done.stderr


def test_the_pause_grows(fakes, tmp_path):
  _, job = counting(fakes, tmp_path, "1", "1", "1")
  # `sleep` tells its argument and takes no time.
  slept = tmp_path / "slept"
  fakes("sleep", f'echo "$1" >>"{slept}"')
  options = ["--max-restarts=2", "--backoff=7"]
  launch("supervise.sh", *options, "--", job, folder=fakes.folder)
  assert slept.read_text().split() == ["7", "14"]


WAITING = """
for name in TERM INT USR1 HUP; do
  trap "echo got $name >>'{0}'; exit 9" $name
done
echo ready >>'{0}'
while true; do sleep 0.05; done
"""


@pytest.mark.parametrize("name", ["TERM", "INT", "USR1", "HUP"])
def test_signals_reach_the_command(name, fakes, tmp_path):
  said = tmp_path / "said"
  job = fakes("job", WAITING.format(said))
  process = start("supervise.sh", "--backoff=0", "--", job)
  wait_for(said, "ready")
  process.send_signal(signal.Signals[f"SIG{name}"])
  out, _ = process.communicate(timeout=20)
  assert process.returncode == 9, out  # the command's own, and no restart
  assert said.read_text().splitlines() == ["ready", f"got {name}"]


def test_a_signal_ends_the_pause(fakes, tmp_path):
  log, job = counting(fakes, tmp_path, "1", "1")
  process = start("supervise.sh", "--backoff=100", "--", job)
  wait_for(log, "\n")
  time.sleep(0.2)
  process.terminate()
  process.communicate(timeout=20)
  assert process.returncode == 143
  assert len(log.read_text().splitlines()) == 1


# --- local.sh ---------------------------------------------------------------

WORKER = """
for word in "$@"; do
  case $word in --process_id=*) i=${{word#*=}} ;; esac
done
trap 'echo "$i stopped" >>"{0}"; exit 143' TERM
echo "$i gpu $CUDA_VISIBLE_DEVICES" >>"{0}"
{1}
"""


def test_processes_end_together(fakes, tmp_path):
  said = tmp_path / "said"
  python = fakes(
    "job",
    WORKER.format(said, "[[ $i == 1 ]] && exit 5; while :; do sleep 0.1; done"),
  )
  options = ["--processes=2", "--max-restarts=0", "--grace=0"]
  done = launch("local.sh", *options, "--", *FLAGS, PYTHON=python)
  assert done.returncode == 5
  assert "process 1 ended with code 5" in done.stderr
  lines = sorted(said.read_text().splitlines())
  assert lines == ["0 gpu 0", "0 stopped", "1 gpu 1"]


def test_a_mistake_of_one_process_is_final(fakes, tmp_path):
  # The others end with 1 when they hear of it, maybe before it has ended.
  said = tmp_path / "said"
  body = "[[ $i == 0 ]] && exit 1; sleep 1; exit 2"
  python = fakes("job", WORKER.format(said, body))
  done = launch("local.sh", "--processes=2", "--", *FLAGS, PYTHON=python)
  assert done.returncode == 2 and "restart" not in done.stderr
  assert len(said.read_text().splitlines()) == 2


def test_a_signal_reaches_all_processes_through_both_scripts(fakes, tmp_path):
  said = tmp_path / "said"
  body = "while :; do sleep 0.1; done"
  python = fakes("job", WORKER.format(said, body))
  process = start("local.sh", "--processes=2", "--", *FLAGS, PYTHON=python)
  wait_for(said, "0 gpu 0")
  wait_for(said, "1 gpu 1")
  process.terminate()
  out, _ = process.communicate(timeout=20)
  assert process.returncode == 143, out
  assert {"0 stopped", "1 stopped"} <= set(said.read_text().splitlines())


# --- slurm.sh ---------------------------------------------------------------


@pytest.fixture
def slurm(fakes, tmp_path):
  """Runs the job as SLURM does: a copy of the script, from another folder."""
  said = tmp_path / "said"
  script = tmp_path / "spool" / "slurm_script"
  script.parent.mkdir()
  shutil.copy(LAUNCH / "slurm.sh", script)
  fakes("scontrol", f'echo "scontrol $*" >>"{said}"')
  fakes("squeue", 'echo "${FAKE_STATE:-CANCELLED}"')

  def begin(body, *options, **env):
    fakes("srun", f'echo started >>"{said}"\n{body}')
    env = {"SLURM_JOB_ID": 17, "SLURM_SUBMIT_DIR": ROOT} | env
    return subprocess.Popen(
      ["bash", script, *options, "--", *FLAGS],
      cwd=ROOT,
      env=environment(fakes.folder, **env),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  begin.said = said
  return begin


# As the real one: SIGUSR1 reaches the trainer, SIGTERM kills it.
SAVES = """
trap 'exit 138' USR1
trap 'exit 137' TERM
while true; do sleep 0.05; done
"""


def end(process, said, signum=None):
  if signum:
    wait_for(said, "started")
    time.sleep(0.1)
    process.send_signal(signum)
  out, _ = process.communicate(timeout=20)
  return out, said.read_text().splitlines()


def test_the_pre_signal_saves_and_requeues(slurm):
  process = slurm(SAVES)
  out, said = end(process, slurm.said, signal.SIGUSR1)
  assert said == ["started", "scontrol requeue 17"], out
  assert process.returncode == 0


def test_who_does_not_save_in_time_is_requeued_all_the_same(slurm):
  body = "trap '' USR1; for i in {1..40}; do sleep 0.05; done; exit 1"
  process = slurm(body, "--grace=1")
  out, said = end(process, slurm.said, signal.SIGUSR1)
  assert "not saved within 1 s" in out
  assert said[:2] == ["started", "scontrol requeue 17"]


@pytest.mark.parametrize("code", [0, 2, 143, 130])
def test_what_is_final_is_not_requeued(code, slurm):
  process = slurm(f"exit {code}")
  out, said = end(process, slurm.said)
  assert said == ["started"], out
  assert process.returncode == code


def test_a_training_that_ends_at_the_signal_is_not_requeued(slurm):
  body = "trap 'exit 0' USR1; while :; do sleep 0.05; done"
  process = slurm(body)
  _, said = end(process, slurm.said, signal.SIGUSR1)
  assert said == ["started"] and process.returncode == 0


@pytest.mark.parametrize("code", [138, 143])
def test_scancel_is_final_and_preemption_is_not(code, slurm):
  # 138: this script got SIGTERM; 143: the processes got it.
  body, signum = (SAVES, signal.SIGTERM) if code == 138 else ("exit 143", None)
  process = slurm(body, FAKE_STATE="COMPLETING")
  out, said = end(process, slurm.said, signum)
  assert said == ["started"] and process.returncode == code, out
  slurm.said.unlink()
  process = slurm(body, FAKE_STATE="RUNNING")
  out, said = end(process, slurm.said, signum)
  assert said == ["started", "scontrol requeue 17"], out


def test_a_signal_to_the_processes_alone_requeues(slurm):
  out, said = end(slurm("exit 138"), slurm.said)
  assert said == ["started", "scontrol requeue 17"], out


def test_a_crash_is_tried_again_in_the_same_job(slurm, fakes):
  fakes("sleep", "")
  process = slurm("exit 1", "--max-restarts=2")
  out, said = end(process, slurm.said)
  assert said == ["started"] * 3, out
  assert process.returncode == 1


def test_a_job_is_not_requeued_for_ever(slurm):
  process = slurm(SAVES, "--max-requeues=5", SLURM_RESTART_COUNT=5)
  out, said = end(process, slurm.said, signal.SIGUSR1)
  assert said == ["started"] and "5 times" in out
  assert process.returncode == 1


def test_a_job_from_another_folder_says_so(slurm, tmp_path):
  process = slurm(SAVES, SLURM_SUBMIT_DIR=tmp_path)
  out, _ = process.communicate(timeout=20)
  assert process.returncode == 2 and "submit from the" in out


# --- detached.sh ------------------------------------------------------------


def test_a_detached_command_outlives_its_viewer(tmp_path):
  folder, go = tmp_path / "a run", tmp_path / "go"
  job = (
    f"echo begun; until [[ -e '{go}' ]]; do sleep 0.05; done; echo done; exit 7"
  )
  words = [folder, "--", "bash", "-c", job]
  first = start("detached.sh", *words)
  wait_for(folder / "log", "begun")
  with first:
    first.kill()
  second = start("detached.sh", *words)
  assert "running already" in second.stdout.readline()
  go.touch()
  out, _ = second.communicate(timeout=20)
  assert second.returncode == 7
  assert out.count("begun") == 1
  assert "done" in out


def test_a_detached_command_is_stopped(tmp_path):
  said = tmp_path / "said"
  job = WAITING.format(said)
  viewer = start("detached.sh", tmp_path / "run", "--", "bash", "-c", job)
  wait_for(said, "ready")
  wait_for(tmp_path / "run" / "pid", "\n")
  assert launch("detached.sh", "--stop", tmp_path / "run").returncode == 0
  viewer.communicate(timeout=20)
  assert viewer.returncode == 9
  assert "got TERM" in said.read_text()
  assert launch("detached.sh", "--stop", tmp_path / "run").returncode == 0


# --- tpu_vm.sh up, with a cloud of files ------------------------------------

# $CLOUD/state is the slice's state. The k-th training does what the k-th line
# of $CLOUD/plan says: a code, and what becomes of the slice.
CLOUD = """
case "$*" in
  *"queued-resources describe"*)
    [[ -e $CLOUD/state ]] || { echo "NOT_FOUND: it" >&2; exit 1; }
    now=$(<"$CLOUD/state")
    sed -i "s/SUSPENDING/SUSPENDED/; s/CREATING/SUSPENDED/; s/LOST/ACTIVE/
      s/GONE/LOST/" "$CLOUD/state"
    case $now in GONE | LOST) echo "no connection" >&2; exit 1 ;; esac
    echo "$now" ;;
  *"queued-resources create"*) echo create >>"$CLOUD/said"
    if [[ -e $CLOUD/slow ]]; then
      echo CREATING >"$CLOUD/state"; rm "$CLOUD/slow"
    else
      echo ACTIVE >"$CLOUD/state"
    fi ;;
  *"queued-resources delete"*) echo delete >>"$CLOUD/said"
    rm -f "$CLOUD/state" "$CLOUD/ready" ;;
  *"tpu-vm scp"*) echo copy >>"$CLOUD/said" ;;
  *"test -e astjax-run/asked"*) [[ -e $CLOUD/asked ]] ;;
  *"test -e"*) [[ -e $CLOUD/ready ]] ;;
  *"pip install"*) echo install >>"$CLOUD/said"; touch "$CLOUD/ready" ;;
  *astjax.main*) echo train >>"$CLOUD/said"
    k=$(grep -c train "$CLOUD/said")
    read -r code state more < <(sed -n "${k}p" "$CLOUD/plan")
    echo "$state" >"$CLOUD/state"
    [[ ! $more ]] || : >"$CLOUD/$more"
    exit "$code" ;;
esac
"""
NEW = ["create", "copy", "install", "train"]


@pytest.mark.parametrize(
  ("plan", "said", "code"),
  [
    (["0 ACTIVE"], NEW, 0),
    (["255 SUSPENDED", "0 ACTIVE"], [*NEW, "delete", *NEW], 0),
    # The trainer saves when the machine is taken away.
    (["143 SUSPENDING", "0 ACTIVE"], [*NEW, "delete", *NEW], 0),
    (["143 ACTIVE asked"], NEW, 143),
    (["143 ACTIVE", "0 ACTIVE"], [*NEW, "train"], 0),  # nobody asked
    # Taken away again before it was there.
    (
      ["255 SUSPENDED slow", "0 ACTIVE"],
      [*NEW, "delete", "create", "delete", *NEW],
      0,
    ),
    (["255 GONE", "0 ACTIVE"], [*NEW, "train"], 0),  # no connection, twice
    (["2 ACTIVE"], NEW, 2),
    (["255 ACTIVE", "0 ACTIVE"], [*NEW, "train"], 0),
    (["1 ACTIVE", "1 ACTIVE", "1 ACTIVE"], [*NEW, "train"], 1),
  ],
)
def test_a_preempted_slice_is_made_anew(plan, said, code, fakes, tmp_path):
  fakes("gcloud", CLOUD)
  (tmp_path / "plan").write_text("\n".join(plan) + "\n")
  options = [*POD, TYPE, "--spot", "--poll=0", "--max-restarts=1"]
  done = launch(
    "tpu_vm.sh",
    "up",
    *options,
    "--",
    *FLAGS,
    folder=fakes.folder,
    CLOUD=tmp_path,
  )
  assert done.returncode == code, done.stderr
  assert (tmp_path / "said").read_text().split() == said


def test_a_slice_that_cannot_be_had_is_an_error(fakes, tmp_path):
  fakes("gcloud", '[[ "$*" != *describe* ]] || echo FAILED')
  done = launch("tpu_vm.sh", "create", *POD, TYPE, folder=fakes.folder)
  assert done.returncode == 1 and "FAILED" in done.stderr


# --- the trainer and the scripts mean the same ------------------------------


def test_a_mistake_in_a_real_command_is_not_tried_again():
  words = [sys.executable, "-m", "astjax.main", "--config=configs/demo.py"]
  done = launch("supervise.sh", "--backoff=0", "--", *words)
  assert done.returncode == 2
  assert done.stderr.count("no work directory") == 1
