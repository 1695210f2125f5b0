"""Downloads from a server on this machine: whole, broken, refused, cached."""

import collections
import errno
import hashlib
import http.server
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import types

import filelock
import numpy as np
import pytest

from astjax.errors import Outage, UserError
from astjax.weights import fetch, registry

ROOT = pathlib.Path(__file__).parents[2]
DATA = np.random.default_rng(0).bytes(10_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
MIRROR = "owner/tiny-mirror"


class Site(http.server.ThreadingHTTPServer):
  """One file under every name; its faults are set by the tests."""

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.data = DATA
    self.seen = []  # the headers of every request
    self.statuses = collections.deque()  # of the next answers
    self.cuts = collections.deque()  # bytes after which they break off
    self.is_chunked = False
    self.raw = None  # instead of any answer
    self.content_type = "application/octet-stream"
    self.wait = lambda: None  # after the body
    self.on_request = lambda: None

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}/tiny.pth"

  def handle_error(self, *_):
    """A client that goes away is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def do_GET(self):
    site = self.server
    site.seen.append(self.headers)
    self.close_connection = True
    site.on_request()
    if site.raw is not None:
      self.wfile.write(site.raw)
      return
    status = site.statuses.popleft() if site.statuses else 200
    body = site.data if status < 300 else b""
    self.send_response(status)
    self.send_header("Content-Type", site.content_type)
    self.send_header("Connection", "close")
    if status == 302:
      self.send_header("Location", site.url)
    if site.is_chunked:
      self.send_header("Transfer-Encoding", "chunked")
    else:
      self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    cut = site.cuts.popleft() if site.cuts else None
    sent = body[:cut]
    if site.is_chunked:
      for i in range(0, len(sent), 3000):
        part = sent[i : i + 3000]
        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
      self.wfile.write(b"" if cut else b"0\r\n\r\n")
    else:
      self.wfile.write(sent)
    self.wfile.flush()
    site.wait()


@pytest.fixture
def cache(tmp_path, monkeypatch):
  folder = tmp_path / "cache"
  monkeypatch.setenv("ASTJAX_CACHE", str(folder))
  monkeypatch.setenv("no_proxy", "*")
  return folder


@pytest.fixture
def site(cache, monkeypatch):
  monkeypatch.setattr(fetch, "_CHUNK", 1000)
  with Site() as server:
    publish(monkeypatch, server.url)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def publish(monkeypatch, url, *, sha256=DIGEST, mirror=MIRROR):
  tiny = registry.Published(
    what="a test", url=url, licence="none", sha256=sha256, mirror=mirror
  )
  monkeypatch.setitem(registry.CHECKPOINTS, "tiny", tiny)


def error(call, *args, kind=UserError):
  """What the user reads."""
  with pytest.raises(UserError) as e:
    call(*args)
  assert type(e.value) is kind
  said = str(e.value)
  assert said.isprintable() and "Errno" not in said
  assert e.value.__cause__ is None
  return said


def files(folder):
  return {p.name for p in folder.iterdir()} if folder.exists() else set()


# Downloads.


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("sha256", [DIGEST, DIGEST[:8], ""])
def test_a_whole_download(is_chunked, sha256, site, cache, monkeypatch, capsys):
  publish(monkeypatch, site.url + "?dl=1", sha256=sha256)
  site.is_chunked = is_chunked
  site.statuses.append(302)
  path = fetch.fetch("tiny")
  assert path == cache / "tiny.pth"
  assert path.read_bytes() == DATA
  assert files(cache) - {"tiny.pth.lock"} == {"tiny.pth"}
  assert site.seen[0]["User-Agent"] == "astjax"
  out, err = capsys.readouterr()
  assert out == "" and "fetching tiny.pth" in err


def broken(site):
  site.cuts.append(4321)


def broken_chunks(site):
  site.is_chunked = True
  site.cuts.append(6000)


def empty(site):
  site.data = b""


def web_page(site):
  # What a dead link of Dropbox or a hotel's network gives, with a 200.
  site.content_type = "text/html; charset=utf-8"


@pytest.mark.parametrize(
  ("fault", "kind", "told"),
  [
    (broken, Outage, "broke off after 4,321 bytes"),
    (broken_chunks, Outage, r"broke off \(IncompleteRead\("),
    (empty, Outage, "broke off after 0 bytes"),
    (web_page, UserError, "gives a web page, expected a file"),
    (lambda s: s.statuses.append(404), UserError, r"answers 404 \(Not Found\)"),
    (lambda s: s.statuses.append(503), Outage, "answers 503"),
    (lambda s: s.statuses.extend([302] * 20), UserError, "infinite loop"),
    (lambda s: setattr(s, "raw", b""), Outage, "cannot be reached"),
    (lambda s: setattr(s, "raw", b"x\r\n\r\n"), Outage, "cannot be reached"),
  ],
)
def test_a_download_that_fails(fault, kind, told, site, cache, monkeypatch):
  """It leaves nothing, and the next one begins again."""
  publish(monkeypatch, site.url, sha256="")
  before = vars(site).copy()
  fault(site)
  said = error(fetch.fetch, "tiny", kind=kind)
  assert said.startswith("cannot fetch 'tiny' (it can be put by hand at ")
  assert f"): {site.url} " in said
  assert re.search(told, said)
  assert files(cache) <= {"tiny.pth.lock"}
  site.statuses.clear()
  for name in ("data", "content_type", "raw", "is_chunked"):
    setattr(site, name, before[name])
  assert fetch.fetch("tiny").read_bytes() == DATA


@pytest.mark.parametrize("sent", [None, 5000])
def test_the_server_falls_silent(sent, site, cache, monkeypatch):
  """Before it answers, or half way."""
  monkeypatch.setattr(fetch, "_TIMEOUT_S", 0.2)
  over = threading.Event()
  if sent:
    site.cuts.append(sent)
    site.wait = over.wait
  else:
    site.on_request = over.wait
  said = error(fetch.fetch, "tiny", kind=Outage)
  over.set()
  assert "timed out)" in said
  assert files(cache) <= {"tiny.pth.lock"}


def test_no_network(cache, monkeypatch):
  with socket.create_server(("127.0.0.1", 0)) as s:
    port = s.getsockname()[1]
  url = f"http://127.0.0.1:{port}/tiny.pth"
  publish(monkeypatch, url)
  path = cache / "tiny.pth"
  assert error(fetch.fetch, "tiny", kind=Outage) == (
    f"cannot fetch 'tiny' (it can be put by hand at {path}, or use "
    f"'{MIRROR}'): {url} cannot be reached (Connection refused)"
  )
  # And so it is.
  path.write_bytes(b"by hand")
  assert fetch.fetch("tiny").read_bytes() == b"by hand"


def test_wrong_checksum(site, cache, monkeypatch):
  publish(monkeypatch, site.url, sha256="0123456789abcdef" * 4)
  said = error(fetch.fetch, "tiny")
  assert f"SHA-256 {DIGEST[:16]}..., expected 0123456789abcdef..." in said
  assert files(cache) <= {"tiny.pth.lock"}


# The cache.


def test_what_is_there_needs_no_request(site, cache):
  cache.mkdir()
  (cache / "tiny.pth").write_bytes(b"mine")
  assert fetch.fetch("tiny").read_bytes() == b"mine"
  assert site.seen == []
  assert files(cache) == {"tiny.pth"}  # a read-only folder would do


def test_places(monkeypatch, tmp_path):
  monkeypatch.delenv("ASTJAX_CACHE", raising=False)
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setenv("HOME", str(tmp_path))
  assert fetch.cache_dir() == tmp_path / ".cache" / "astjax"
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  assert fetch.cache_dir() == tmp_path / "xdg" / "astjax"
  monkeypatch.setenv("ASTJAX_CACHE", str(tmp_path / "own"))
  assert fetch.cache_dir() == tmp_path / "own"
  for name in ("XDG_CACHE_HOME", "ASTJAX_CACHE"):  # empty means unset
    monkeypatch.setenv(name, "")
  assert fetch.cache_dir() == tmp_path / ".cache" / "astjax"


def test_a_file_in_place_of_the_folder(site, tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("ASTJAX_CACHE", f"{tmp_path}/file/deeper")
  said = error(fetch.fetch, "tiny")
  assert said.startswith(f"cannot write {tmp_path}/file")
  assert "$ASTJAX_CACHE" in said
  assert site.seen == []


def test_a_folder_in_place_of_the_file(site, cache):
  (cache / "tiny.pth").mkdir(parents=True)
  assert "is in the way: it is no file" in error(fetch.fetch, "tiny")
  assert site.seen == []


def test_the_disk_is_full(site, cache, monkeypatch):
  def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(fetch, "open", no_space, raising=False)
  said = error(fetch.fetch, "tiny", kind=Outage)
  assert f"cannot write {cache}/tiny.pth: No space left on dev" in said
  assert files(cache) <= {"tiny.pth.lock"}


def test_threads_download_once(site, monkeypatch):
  """Processes do as well: the lock is the file system's."""
  arrived = threading.Semaphore(0)

  class Lock(filelock.FileLock):
    def __enter__(self):
      arrived.release()
      return super().__enter__()

  def until_all_are_there():
    for _ in range(4):
      arrived.acquire()

  monkeypatch.setattr(fetch.filelock, "FileLock", Lock)
  site.on_request = until_all_are_there
  results = []
  threads = [
    threading.Thread(
      target=lambda: results.append(fetch.fetch("tiny").read_bytes())
    )
    for _ in range(4)
  ]
  for t in threads:
    t.start()
  for t in threads:
    t.join()
  assert results == [DATA] * 4
  assert len(site.seen) == 1


# Names.


def test_good_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "x.pth").touch()
  (tmp_path / "owner" / "name").mkdir(parents=True)
  paths = ("x.pth", "./x.pth", "~/x.pth", f"{tmp_path}/x.pth", "owner/")
  # A path wins over the hub.
  for path in (*paths, "owner/name"):
    fetch.check_name(path)
    found = fetch.fetch(path)
    assert found.exists() and "~" not in str(found)
  for name in (
    "audioset_10_10_0.4593",
    "MIT/ast-finetuned-audioset-10-10-0.4593",
    "owner/name@main",
    "owner/name.v2@refs/pr/1",
  ):
    fetch.check_name(name)


@pytest.mark.parametrize(
  "name",
  [
    "",
    "nothing",
    "folder/x.safetensors",
    "./x",
    "~nobody-of-this-name/x",
    "owner/name/",
    "owner/name/more",
    "owner/name@",
    "owner/na\nme",
    "https://huggingface.co/owner/name",
    "\0",
    "x" * 5000,
  ],
)
def test_bad_names(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for call in (fetch.check_name, fetch.fetch):
    said = error(call, name)
    assert said.startswith(f"{name!r} is no existing path, no published check")
    assert said.endswith(".") and "audioset_10_10_0.4593" in said


def test_a_mistyped_name():
  said = error(fetch.check_name, "audioset_10_10_0.459")
  assert "Did you mean 'audioset_10_10_0.4593'?" in said


# Hugging Face.


@pytest.fixture
def hub(monkeypatch, tmp_path):
  """A snapshot_download that fetches from `files`, or raises `error`."""
  huggingface_hub = pytest.importorskip("huggingface_hub")
  fake = types.SimpleNamespace(
    files=[], error=None, calls=[], folder=tmp_path / "snapshot"
  )
  fake.folder.mkdir()

  def snapshot_download(repo_id, *, revision, allow_patterns):
    fake.calls.append((repo_id, revision, tuple(allow_patterns)))
    if fake.error:
      raise fake.error
    for name in fake.files:
      if any(pathlib.PurePath(name).match(p) for p in allow_patterns):
        (fake.folder / name).touch()
    return str(fake.folder)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  return fake


def test_hub_safetensors(hub):
  hub.files = ["config.json", "model.safetensors", "pytorch_model.bin", "a.md"]
  assert fetch.fetch("owner/name") == hub.folder
  assert files(hub.folder) == {"config.json", "model.safetensors"}
  assert hub.calls == [("owner/name", None, ("*.json", "*.safetensors"))]


def test_hub_bin(hub):
  hub.files = ["config.json", "pytorch_model.bin", "training_args.bin"]
  assert fetch.fetch("owner/name@v1.0") == hub.folder
  assert files(hub.folder) == {"config.json", "pytorch_model.bin"}
  assert hub.calls == [
    ("owner/name", "v1.0", ("*.json", "*.safetensors")),
    ("owner/name", "v1.0", ("*.json", "pytorch_model*.bin")),
  ]


def hub_error(name, *args):
  errors = pytest.importorskip("huggingface_hub").errors
  if args:
    return getattr(errors, name)(*args)
  response = types.SimpleNamespace(headers={}, request=None, status_code=404)
  text = "404 Client Error. (Request ID: x)\n\nNot Found for url: y."
  return getattr(errors, name)(text, response=response)


@pytest.mark.parametrize(
  ("make", "kind", "expected"),
  [
    (lambda: hub_error("GatedRepoError"), UserError, "GatedRepoError: 404"),
    (
      lambda: hub_error("LocalEntryNotFoundError", "Got:\nthis"),
      Outage,
      "not in the cache and Hugging Face cannot be reached",
    ),
    (lambda: hub_error("HfHubHTTPError"), UserError, "404 Client Error"),
    (lambda: OSError(errno.ENOSPC, "No space left"), Outage, ": No space"),
    # The HTTP libraries' own are neither OSError nor ValueError.
    (
      lambda: type("ReadError", (Exception,), {})("cut\noff"),
      Outage,
      ": cut",
    ),
    (lambda: type("ReadError", (Exception,), {})(), Outage, "ReadError"),
  ],
)
def test_hub_errors(hub, make, kind, expected):
  hub.error = make()
  said = error(fetch.fetch, "owner/name@v9", kind=kind)
  assert said.startswith("cannot get 'owner/name@v9' (no existing path) from ")
  assert expected in said
  assert len(said) < 400


@pytest.mark.parametrize("is_old", [False, True])
def test_without_huggingface_hub(monkeypatch, is_old):
  module = types.ModuleType("huggingface_hub") if is_old else None
  monkeypatch.setitem(sys.modules, "huggingface_hub", module)
  monkeypatch.delitem(sys.modules, "huggingface_hub.errors", raising=False)
  said = error(fetch.fetch, "owner/name")
  assert said == (
    "'owner/name' is no existing path; to fetch it from Hugging Face: "
    "pip install 'astjax[hub]'"
  )


OFFLINE = """
from astjax.errors import UserError
from astjax.weights import fetch
try:
  fetch.fetch("owner/name")
except UserError as e:
  print(e)
"""


def test_hub_offline(tmp_path):
  pytest.importorskip("huggingface_hub")
  env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
  env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
  done = subprocess.run(
    [sys.executable, "-c", OFFLINE],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=env,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == [
    "cannot get 'owner/name' (no existing path) from Hugging Face: it is not "
    "in the cache and Hugging Face cannot be reached"
  ]
  assert done.stderr == ""


# The registry.


def test_entries():
  for key, entry in registry.CHECKPOINTS.items():
    assert entry.what and entry.licence
    assert re.fullmatch(r"https://[\w.-]+/[\w./?=-]+", entry.url), key
    assert entry.file_name.endswith((".pth", ".npz")), key
    assert re.fullmatch("([0-9a-f]{8,64})?", entry.sha256), key
    is_npz = entry.file_name.endswith(".npz")  # names that Google gives twice
    assert registry.of_file(entry.file_name) is (None if is_npz else entry)
    assert registry.of_file(key + ".pth") is entry
    if entry.mirror:
      assert registry.of_mirror(entry.mirror) is entry
      assert registry.of_mirror(entry.mirror + "@main") is entry
      fetch.check_name(entry.mirror)
    assert "/" not in key and not key.endswith((".pth", ".npz"))
  for name in ("", "x.pth", "tiny", "ViT-B_16", ".pth"):
    assert registry.of_file(name) is None


def test_entries_are_distinct():
  entries = registry.CHECKPOINTS.items()
  for values in (
    [c.url for _, c in entries],
    [c.file_name for _, c in entries],
    [c.what + key for key, c in entries],  # runs of one model share it
    [c.mirror for _, c in entries if c.mirror],
  ):
    assert len(set(values)) == len(values)


def test_what_predicting_needs_of_audio_models():
  for key, entry in registry.CHECKPOINTS.items():
    is_audio = key.startswith(("audioset", "speechcommands"))
    is_ssast = key.startswith("SSAST")
    assert bool(entry.num_frames) is (is_audio or is_ssast)
    if is_ssast:
      assert entry.stride == ((128, 2) if "Frame" in key else (16, 16))
      assert entry.statistics == registry.AUDIOSET_STATISTICS
      assert entry.file_name == f"{key}.pth"
    if is_audio:
      strides = re.match(r"[a-z]+_(\d+)_(\d+)_", key).groups()
      assert entry.stride == tuple(map(int, strides))
      assert len(entry.statistics) == 2
      assert entry.scores in ("sigmoid", "softmax")
      assert key.rsplit("_", 1)[1] in entry.expected
