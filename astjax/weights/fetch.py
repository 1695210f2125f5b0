"""From a name to a path: published files, Hugging Face folders, local paths.

Published files are kept in $ASTJAX_CACHE (else `astjax` in the user's cache
folder), Hugging Face's where huggingface_hub keeps them. What is there is used
without network. An interrupted download goes on where it stopped.
"""

from __future__ import annotations

import email.utils
import http.client
import os
import pathlib
import re
import sys
import time
import urllib.error
import urllib.request

import filelock

from astjax.errors import Outage, UserError, nearest
from astjax.weights import files, registry

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_CHUNK = 1 << 20
_TIMEOUT_S = 30


def cache_dir() -> pathlib.Path:
  """Where published files are kept."""
  if own := os.environ.get("ASTJAX_CACHE"):
    return pathlib.Path(own)
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(base) / "astjax"


def check_name(source: str) -> None:
  """Raises a UserError if a source can be neither of the three kinds.

  Needs no network; whether a Hugging Face name exists shows when it is fetched.
  """
  is_path = os.path.exists(os.path.expanduser(source))
  if source in registry.CHECKPOINTS or is_path:
    return
  looks_like_file = source.endswith((*files.SUFFIXES, "/")) or source[:1] in (
    "/",
    ".",
    "~",
  )
  if looks_like_file or not _HUB_NAME.fullmatch(source):
    raise UserError(
      f"{source!r} is no existing path, no published checkpoint and no Hugging "
      f"Face name (owner/repository).{nearest(source, registry.CHECKPOINTS)}"
    )


def fetch(source: str) -> pathlib.Path:
  """The local file or folder of a checkpoint, fetched if it has to be.

  Args:
    source: a path, a key of `registry.CHECKPOINTS`, or a Hugging Face name.

  Raises:
    UserError: it cannot be found or fetched, or arrives damaged.
  """
  check_name(source)
  if source in registry.CHECKPOINTS:
    return _published(source, registry.CHECKPOINTS[source])
  path = os.path.expanduser(source)
  return pathlib.Path(path) if os.path.exists(path) else _from_hub(source)


def _published(name, checkpoint):
  path = cache_dir() / checkpoint.file_name
  if os.path.isfile(path):
    return path
  if os.path.exists(path):
    raise UserError(f"{path} is in the way: it is no file")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
      if not path.is_file():  # another process may have fetched it meanwhile
        download(checkpoint.url, path, sha256=checkpoint.sha256)
  except UserError as e:
    mirror = f", or use {checkpoint.mirror!r}" if checkpoint.mirror else ""
    raise type(e)(
      f"cannot fetch {name!r}: {e}; the file can be put by hand at {path}"
      f"{mirror}"
    ) from None
  except OSError as e:
    raise UserError(
      f"cannot write {e.filename or path}: {e.strerror or e} ($ASTJAX_CACHE "
      "names another folder)"
    ) from None
  return path


def download(url: str, path: pathlib.Path, *, sha256: str = "") -> None:
  """Fetches a file; `path` is complete and checked, or absent.

  Args:
    url: its address.
    path: where it goes; `<path>.part` holds what has arrived so far.
    sha256: the digest or its beginning; "" checks nothing.

  Raises:
    UserError: no such file, or another file than expected.
    Outage: no network.
    OSError: `path` or its part cannot be written.
  """
  part = path.with_name(path.name + ".part")
  done = part.stat().st_size if part.exists() else 0
  headers = {"User-Agent": "astjax"}
  if done:  # only the rest, if the file is still the same
    since = email.utils.formatdate(part.stat().st_mtime, usegmt=True)
    headers |= {"Range": f"bytes={done}-", "If-Unmodified-Since": since}
  try:
    request = urllib.request.Request(url, headers=headers)
    answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
  except urllib.error.HTTPError as e:
    e.close()
    if done and e.code in (412, 416):  # a newer or a shorter file: begin again
      part.unlink()
      return download(url, path, sha256=sha256)
    raise UserError(f"{url} answers {e.code} ({_line(e.reason)})") from None
  except (OSError, http.client.HTTPException, ValueError) as e:
    reason = _line(getattr(e, "reason", None) or e)
    kind = UserError if isinstance(e, ValueError) else Outage
    raise kind(f"{url} cannot be reached ({reason})") from None
  with answer:
    if answer.headers.get_content_type() == "text/html":
      raise UserError(f"{url} gives a web page, expected a file")
    start = done if answer.status == 206 else 0
    total = 0 if answer.length is None else start + answer.length
    progress = _Progress(path.name, start, total)
    with open(part, "ab" if start else "wb") as file:
      for chunk in _chunks(answer, url):
        file.write(chunk)
        progress(file.tell())
  size = part.stat().st_size
  if not size or (total and size != total):
    raise _broke_off(url, f"{size:,} of {total:,} bytes arrived")
  digest = files.sha256(part)
  if not digest.startswith(sha256):
    part.unlink()
    if start:  # its beginning was of another file: begin again
      return download(url, path, sha256=sha256)
    raise UserError(
      f"{url} gave another file than expected: SHA-256 {digest[:16]}..., "
      f"expected {sha256[:16]}..."
    )
  os.replace(part, path)


def _chunks(answer, url):
  try:
    while chunk := answer.read(_CHUNK):
      yield chunk
  except (OSError, http.client.HTTPException) as e:
    raise _broke_off(url, _line(e)) from None


def _broke_off(url, reason):
  return UserError(f"{url} broke off ({reason}); the next try goes on there")


def _line(reason):
  text = getattr(reason, "strerror", None) or str(reason)
  return " ".join(text.split())[:200] or type(reason).__name__


class _Progress:
  """Megabytes and rate, every two seconds; a growing line on a terminal."""

  def __init__(self, name: str, first: int, total: int):
    self._name, self._first, self._total = name, first, total
    self._started = self._shown = time.monotonic()

  def __call__(self, done: int) -> None:
    """Tells how many bytes there are."""
    now = time.monotonic()
    is_last = done == self._total
    if now - self._shown < 2 and not is_last:
      return
    self._shown = now
    rate = (done - self._first) / max(now - self._started, 1e-6)
    text = f"fetching {self._name}: {done / 1e6:.0f} MB"
    if self._total:
      left = (self._total - done) / max(rate, 1.0)
      text += f" of {self._total / 1e6:.0f}, ETA {left:.0f} s"
    on_terminal = sys.stderr.isatty()
    end = "\n" if is_last or not on_terminal else ""
    text = f"\r{text}\x1b[K" if on_terminal else text
    print(text, end=end, file=sys.stderr)


def _from_hub(name: str) -> pathlib.Path:
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError:
    raise UserError(
      f"{name!r} is no existing path; to fetch it from Hugging Face: "
      "pip install 'astjax[hub]'"
    ) from None
  repository, _, revision = name.partition("@")
  kind = UserError

  def get(*patterns):
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        repository, revision=revision or None, allow_patterns=patterns
      )
    )

  try:
    folder = get("*.json", "*.safetensors")
    if not any(folder.glob("*.safetensors")):
      folder = get("*.json", "pytorch_model*.bin")
  except errors.GatedRepoError:
    reason = "its owner has to grant you access first (hf auth login)"
  except errors.RepositoryNotFoundError:
    reason = "there is no such repository, or it is private"
  except errors.RevisionNotFoundError:
    reason = f"it has no revision {revision!r}"
  except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
    reason = "it is not in the cache and Hugging Face cannot be reached"
    kind = Outage
  except Exception as e:  # also those of the HTTP library below it
    reason = _line(e)
  else:
    return folder
  raise kind(
    f"cannot get {name!r} (no existing path) from Hugging Face: {reason}"
  )
