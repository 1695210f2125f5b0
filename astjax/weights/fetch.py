"""From a name to a path: published files, Hugging Face folders, local paths.

Published files are kept in $ASTJAX_CACHE (else `astjax` in the user's cache
folder), Hugging Face's where huggingface_hub keeps them. What is there is used
without network.
"""

from __future__ import annotations

import http.client
import os
import pathlib
import re
import urllib.error
import urllib.request

import filelock
import rich.console
import rich.progress

from astjax import errors
from astjax.errors import Outage, UserError, first_line, nearest
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

  Whether a Hugging Face name exists shows only when it is fetched.
  """
  is_path = os.path.exists(os.path.expanduser(source))
  if source in registry.CHECKPOINTS or is_path:
    return
  looks_like_file = source.endswith((*files.SUFFIXES, "/"))
  looks_like_file |= source.startswith(("/", ".", "~"))
  if looks_like_file or not _HUB_NAME.fullmatch(source):
    raise UserError(
      f"{source!r} is no existing path, no published checkpoint and no Hugging "
      f"Face name (owner/repository).{nearest(source, registry.CHECKPOINTS)}"
    )


def fetch(source: str) -> pathlib.Path:
  """The local file or folder of a checkpoint, fetched if it has to be."""
  check_name(source)
  if source in registry.CHECKPOINTS:
    return _published(source, registry.CHECKPOINTS[source])
  path = os.path.expanduser(source)
  return pathlib.Path(path) if os.path.exists(path) else _from_hub(source)


def _published(name, checkpoint):
  path = cache_dir() / checkpoint.file_name
  if os.path.isfile(path):  # without a lock: the folder may be read-only
    return path
  if os.path.exists(path):
    raise UserError(f"{path} is in the way: it is no file")
  mirror = f", or use {checkpoint.mirror!r}" if checkpoint.mirror else ""
  where = f"cannot fetch {name!r} (it can be put by hand at {path}{mirror})"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with errors.located(where), filelock.FileLock(f"{path}.lock"):
      if not path.is_file():  # another process may have fetched it meanwhile
        download(checkpoint.url, path, sha256=checkpoint.sha256)
  except OSError as e:
    text = f"cannot write {path}: {e.strerror or e} (see $ASTJAX_CACHE)"
    raise errors.file_error(e, text) from None
  return path


def download(url: str, path: pathlib.Path, *, sha256: str = "") -> None:
  """Fetches a file; `path` is complete and checked, or absent.

  `sha256` is the digest or its beginning; "" checks nothing.

  Raises:
    UserError: no such file, another than expected, or it cannot be written.
    Outage: no network, a full disk, or a server that does not do its work now.
  """
  request = urllib.request.Request(url, headers={"User-Agent": "astjax"})
  try:
    answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
  except urllib.error.HTTPError as e:
    e.close()
    kind = Outage if e.code >= 500 else UserError
    raise kind(f"{url} answers {e.code} ({_reason(e)})") from None
  except (OSError, http.client.HTTPException) as e:
    raise Outage(f"{url} cannot be reached ({_reason(e)})") from None
  with answer, files.written_whole(path) as part:
    # What a dead link or a hotel's network gives, with a 200.
    if answer.headers.get_content_type() == "text/html":
      raise UserError(f"{url} gives a web page, expected a file")
    # From the beginning each time: a library that goes on where it stopped
    # compares whole digests only, of which some publishers tell the beginning.
    shown = rich.progress.wrap_file(
      answer,
      answer.length or 0,
      description=f"fetching {path.name}",
      console=rich.console.Console(stderr=True),
    )
    with open(part, "wb") as file, shown as source:
      while chunk := _read(source, url):
        file.write(chunk)
      # It counts down; Python takes a lost connection for the end.
      if answer.length or not file.tell():
        raise Outage(f"{url} broke off after {file.tell():,} bytes")
    digest = files.sha256(part)
    if not digest.startswith(sha256):
      raise UserError(
        f"{url} gave another file: SHA-256 {digest[:16]}..., expected "
        f"{sha256[:16]}..."
      )


def _read(source, url: str) -> bytes:
  try:
    return source.read(_CHUNK)
  except (OSError, http.client.HTTPException) as e:
    raise Outage(f"{url} broke off ({_reason(e)})") from None


def _reason(error: Exception) -> str:
  """What lies below an error of urllib."""
  error = getattr(error, "reason", error)
  return getattr(error, "strerror", None) or first_line(error)


def _from_hub(name: str) -> pathlib.Path:
  try:
    import huggingface_hub
    from huggingface_hub import errors as hub
  except ImportError:
    raise UserError(
      f"{name!r} is no existing path; to fetch it from Hugging Face: "
      "pip install 'astjax[hub]'"
    ) from None
  repository, _, revision = name.partition("@")

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
    return folder
  except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled):
    kind: type[UserError] = Outage
    reason = "it is not in the cache and Hugging Face cannot be reached"
  except Exception as e:  # also those of the HTTP library below it
    # Such as RepositoryNotFoundError; without an answer, nobody refused it.
    status = getattr(getattr(e, "response", None), "status_code", 0)
    is_mistake = 400 <= status < 500 or isinstance(e, ValueError)
    kind = UserError if is_mistake else Outage
    reason = f"{type(e).__name__}: {_reason(e)}"
    if isinstance(e, hub.GatedRepoError):
      reason += "; accept its terms on its page, then: hf auth login"
  what = f"{name!r} (no existing path) from Hugging Face"
  raise kind(f"cannot get {what}: {reason}")
