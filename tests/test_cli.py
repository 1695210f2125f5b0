"""The frame of every command: what ends in which line and code."""

import errno
import signal

import pytest

from astjax import cli, errors


def run(work, *argv, **how):
  parser = cli.Parser("Does it.")
  parser.add_argument("--number", type=int, default=1)
  parser.add_argument("--coordinator", default="")
  return cli.run(work, parser, argv, **how)


ENDS = {
  "done": (None, 0, ""),
  "mistake": (errors.UserError("no\nsuch file"), 2, "no such file"),
  "outage": (errors.Outage("a disk"), 1, "a disk"),
  "disk": (OSError(errno.ENOSPC, "No space", "x.txt"), 1, "No space (x.txt)"),
  "signal": (errors.Stopped(signal.SIGTERM, 7), 143, "saved at step 7"),
  "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"),
}


@pytest.mark.parametrize("case", ENDS)
def test_ends(case, capsys):
  raised, code, line = ENDS[case]

  def work(args):
    if raised is not None:
      raise raised

  assert run(work) == code
  err = capsys.readouterr().err
  assert err.count("\n") == (code != 0) and line in err


def test_a_bug_keeps_its_traceback(capsys):
  def work(args):
    return {}["absent"]

  assert run(work) == 1
  assert "Traceback" in capsys.readouterr().err


def test_a_command_may_have_a_code_of_its_own():
  assert run(lambda args: cli.fail("a fold failed", 7)) == 7


@pytest.mark.parametrize(
  ("argv", "line"),
  [
    (["--nubmer=3"], "unknown flag --nubmer. Did you mean 'number'?"),
    (["--co=x"], "unknown flag --co."),  # no abbreviations
    (["word"], "unexpected argument 'word'"),
    (["--number=x"], "--number: invalid int value: 'x'"),
    (["--number"], "--number: expected one argument"),
  ],
)
def test_mistakes_in_flags(argv, line, capsys):
  assert run(lambda args: 0, *argv) == 2
  err = capsys.readouterr().err
  assert line in err and err.count("\n") == 1


def test_unknown_words_can_be_passed_on():
  seen = []
  words = ["--config.seed", "-3", "--number=2", "--x=a b"]
  assert run(seen.append, *words, pass_on=True) == 0
  assert seen[0].number == 2
  assert seen[0].others == ["--config.seed", "-3", "--x=a b"]
