"""Downloads from a server on this machine: whole, broken, refused, cached."""

import collections
import email.utils
import errno
import hashlib
import http.server
import io
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request

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
    self.knows_ranges = True
    self.is_chunked = False
    self.raw = None  # instead of any answer
    self.content_type = "application/octet-stream"
    self.modified = time.time() - 86_400
    self.wait = lambda: None  # before the body
    self.on_request = lambda: None

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}/tiny.pth"

  @property
  def ranges(self):
    return [headers.get("Range") for headers in self.seen]

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
    status, start = self.status_and_start()
    body = site.data[start:] if status < 300 else b""
    self.send_response(status)
    self.send_header("Content-Type", site.content_type)
    self.send_header("Connection", "close")
    if status == 302:
      self.send_header("Location", site.url)
    if status == 206:
      total = len(site.data)
      self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
    if site.is_chunked:
      self.send_header("Transfer-Encoding", "chunked")
    else:
      self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    cut = site.cuts.popleft() if site.cuts else None
    sent = body[:cut]
    if site.is_chunked:
      for i in range(0, len(sent), 3000):
        self.wfile.write(
          b"%x\r\n%s\r\n" % (len(sent[i:][:3000]), sent[i:][:3000])
        )
      self.wfile.write(b"" if cut else b"0\r\n\r\n")
    else:
      self.wfile.write(sent)
    self.wfile.flush()
    site.wait()

  def status_and_start(self):
    site = self.server
    if site.statuses:
      return site.statuses.popleft(), 0
    wanted = self.headers.get("Range")
    since = self.headers.get("If-Unmodified-Since")
    if since:
      date = email.utils.parsedate_to_datetime(since).timestamp()
      if site.modified > date:
        return 412, 0
    if not wanted or not site.knows_ranges:
      return 200, 0
    start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
    return (206, start) if start < len(site.data) else (416, 0)


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


def error(call, *args, **kwargs):
  """What the user reads."""
  with pytest.raises(UserError) as e:
    call(*args, **kwargs)
  said = str(e.value)
  assert said.isprintable() and "Errno" not in said
  assert e.value.__cause__ is None
  return said


def files(folder):
  return {p.name for p in folder.iterdir()} if folder.exists() else set()


def put_part(cache, data):
  cache.mkdir()
  (cache / "tiny.pth.part").write_bytes(data)


# Downloads.


def test_a_whole_download(site, cache):
  path = fetch.fetch("tiny")
  assert path == cache / "tiny.pth"
  assert path.read_bytes() == DATA
  assert files(cache) - {"tiny.pth.lock"} == {"tiny.pth"}
  assert site.ranges == [None]
  assert site.seen[0]["User-Agent"] == "astjax"


def test_without_a_checksum(site, cache, monkeypatch):
  publish(monkeypatch, site.url + "?dl=1", sha256="")
  assert fetch.fetch("tiny").read_bytes() == DATA
  assert files(cache) - {"tiny.pth.lock"} == {"tiny.pth"}


def test_without_a_length(site):
  site.is_chunked = True
  assert fetch.fetch("tiny").read_bytes() == DATA


def test_interrupted_and_continued(site, cache):
  site.cuts.extend([4321, 1000])
  said = error(fetch.fetch, "tiny")
  assert "broke off (4,321 of 10,000 bytes arrived)" in said
  assert "the next try goes on there" in said
  assert (cache / "tiny.pth.part").read_bytes() == DATA[:4321]
  assert not (cache / "tiny.pth").exists()
  assert "5,321 of 10,000 bytes" in error(fetch.fetch, "tiny")
  assert fetch.fetch("tiny").read_bytes() == DATA
  assert site.ranges == [None, "bytes=4321-", "bytes=5321-"]
  assert files(cache) - {"tiny.pth.lock"} == {"tiny.pth"}


def test_interrupted_without_a_length(site, cache):
  site.is_chunked = True
  site.cuts.append(6000)
  assert "broke off (IncompleteRead(" in error(fetch.fetch, "tiny")
  part = (cache / "tiny.pth.part").read_bytes()
  assert part and DATA.startswith(part)
  assert fetch.fetch("tiny").read_bytes() == DATA
  assert site.ranges == [None, f"bytes={len(part)}-"]


def test_a_server_without_ranges_starts_again(site):
  site.knows_ranges = False
  site.cuts.append(4321)
  error(fetch.fetch, "tiny")
  assert fetch.fetch("tiny").read_bytes() == DATA
  assert site.ranges == [None, "bytes=4321-"]


@pytest.mark.parametrize("surplus", [0, 5])
def test_416_starts_again(site, cache, surplus):
  put_part(cache, DATA + b"x" * surplus)
  assert fetch.fetch("tiny").read_bytes() == DATA
  assert site.ranges == [f"bytes={10_000 + surplus}-", None]


@pytest.mark.parametrize("status", [412, 416])
def test_refused_without_a_part(site, status):
  site.statuses.append(status)
  assert f"answers {status} " in error(fetch.fetch, "tiny")


def test_the_file_changed_meanwhile(site, cache, monkeypatch):
  # Nothing but its date tells, where no checksum is known.
  publish(monkeypatch, site.url, sha256="")
  put_part(cache, b"old" * 100)
  site.modified = time.time() + 60
  assert fetch.fetch("tiny").read_bytes() == DATA
  assert site.ranges == ["bytes=300-", None]
  assert site.seen[0]["If-Unmodified-Since"].endswith(" GMT")


def test_a_part_of_another_file(site, cache):
  put_part(cache, b"old" * 100)
  assert fetch.fetch("tiny").read_bytes() == DATA
  assert site.ranges == ["bytes=300-", None]


def test_404(site, cache):
  site.statuses.append(404)
  said = error(fetch.fetch, "tiny")
  assert said.startswith(
    f"cannot fetch 'tiny': {site.url} answers 404 (Not Fou"
  )
  assert files(cache) <= {"tiny.pth.lock"}


def test_404_keeps_the_part(site, cache):
  put_part(cache, DATA[:100])
  site.statuses.append(404)
  error(fetch.fetch, "tiny")
  assert fetch.fetch("tiny").read_bytes() == DATA
  assert site.ranges == ["bytes=100-", "bytes=100-"]


def test_a_web_page_is_no_file(site, cache, monkeypatch):
  # What a dead link of Dropbox or a hotel's network gives, with a 200.
  publish(monkeypatch, site.url, sha256="")
  site.content_type = "text/html; charset=utf-8"
  assert "gives a web page, expected a file" in error(fetch.fetch, "tiny")
  assert files(cache) <= {"tiny.pth.lock"}


def test_an_empty_answer(site, cache, monkeypatch):
  publish(monkeypatch, site.url, sha256="")
  site.data = b""
  assert "broke off (0 of 0 bytes arrived)" in error(fetch.fetch, "tiny")
  assert not (cache / "tiny.pth").exists()


def test_redirects(site):
  site.statuses.extend([302, 302])
  assert fetch.fetch("tiny").read_bytes() == DATA
  site.statuses.extend([302] * 20)
  said = error(fetch.download, site.url, pathlib.Path("nowhere"))
  assert "answers 302 (" in said and "infinite loop. The last" in said


@pytest.mark.parametrize(
  "raw", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n"]
)
def test_no_http(site, raw):
  site.raw = raw
  assert "cannot be reached" in error(fetch.fetch, "tiny")


def test_no_network_may_pass(monkeypatch, tmp_path):
  def urlopen(*args, **kwargs):
    raise urllib.error.URLError(OSError(101, "Network is unreachable"))

  monkeypatch.setattr(urllib.request, "urlopen", urlopen)
  with pytest.raises(Outage, match="cannot be reached"):
    fetch.download("https://example.org/a.pth", tmp_path / "a.pth")


def test_the_server_falls_silent(site, monkeypatch):
  monkeypatch.setattr(fetch, "_TIMEOUT_S", 0.2)
  over = threading.Event()
  site.on_request = over.wait
  said = error(fetch.fetch, "tiny")
  over.set()
  assert "cannot be reached (timed out)" in said


def test_the_server_falls_silent_half_way(site, cache, monkeypatch):
  monkeypatch.setattr(fetch, "_TIMEOUT_S", 0.2)
  over = threading.Event()
  site.cuts.append(5000)
  site.wait = over.wait
  said = error(fetch.fetch, "tiny")
  over.set()
  assert re.search(r"broke off \(.*timed out\)", said)
  assert (cache / "tiny.pth.part").read_bytes() == DATA[:5000]
  assert fetch.fetch("tiny").read_bytes() == DATA
  assert site.ranges[-1] == "bytes=5000-"


def test_no_network(cache, monkeypatch):
  with socket.create_server(("127.0.0.1", 0)) as s:
    port = s.getsockname()[1]
  url = f"http://127.0.0.1:{port}/tiny.pth"
  publish(monkeypatch, url)
  path = cache / "tiny.pth"
  assert error(fetch.fetch, "tiny") == (
    f"cannot fetch 'tiny': {url} cannot be reached (Connection refused); the "
    f"file can be put by hand at {path}, or use '{MIRROR}'"
  )
  publish(monkeypatch, url, mirror="")
  assert error(fetch.fetch, "tiny").endswith(f"put by hand at {path}")
  # And so it is.
  path.write_bytes(b"by hand")
  assert fetch.fetch("tiny").read_bytes() == b"by hand"


@pytest.mark.parametrize(
  "url",
  [
    "tiny.pth",
    "gopher://127.0.0.1/tiny.pth",
    "http:///tiny.pth",
    "http://127.0.0.1:port/tiny.pth",
    "http://[::1/tiny.pth",
    "http://127.0.0.1:9/tiny file.pth",
    "http://127.0.0.1:9/tïny.pth",
    f"http://{'a' * 70}.invalid/tiny.pth",
  ],
)
def test_odd_addresses(cache, monkeypatch, url):
  publish(monkeypatch, url)
  assert f"{url} cannot be reached (" in error(fetch.fetch, "tiny")


# Checksums.


def test_wrong_checksum(site, cache, monkeypatch):
  publish(monkeypatch, site.url, sha256="0123456789abcdef" * 4)
  said = error(fetch.fetch, "tiny")
  assert f"SHA-256 {DIGEST[:16]}..., expected 0123456789abcdef..." in said
  assert files(cache) <= {"tiny.pth.lock"}
  assert len(site.seen) == 1


def test_wrong_checksum_after_a_break(site, cache, monkeypatch):
  publish(monkeypatch, site.url, sha256="01234567")
  put_part(cache, DATA[:10])
  assert "expected 01234567..." in error(fetch.fetch, "tiny")
  assert files(cache) <= {"tiny.pth.lock"}
  assert site.ranges == ["bytes=10-", None]


@pytest.mark.parametrize("digits", [1, 8, 63])
def test_beginning_of_a_checksum(site, monkeypatch, digits):
  publish(monkeypatch, site.url, sha256=DIGEST[:digits])
  assert fetch.fetch("tiny").read_bytes() == DATA


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


@pytest.mark.parametrize("below", ["", "/deeper/still"])
def test_a_file_in_place_of_the_folder(site, tmp_path, monkeypatch, below):
  (tmp_path / "file").write_text("")
  folder = f"{tmp_path}/file{below}"
  monkeypatch.setenv("ASTJAX_CACHE", folder)
  said = error(fetch.fetch, "tiny")
  assert said.startswith(f"cannot write {tmp_path}/file")
  assert "$ASTJAX_CACHE names another folder" in said
  assert site.seen == []


@pytest.mark.parametrize("name", ["tiny.pth.part", "tiny.pth.lock"])
def test_a_folder_in_place_of_a_file(site, cache, name):
  (cache / name).mkdir(parents=True)
  assert error(fetch.fetch, "tiny").startswith(f"cannot write {cache / name}: ")


def test_a_folder_in_place_of_the_result(site, cache):
  (cache / "tiny.pth").mkdir(parents=True)
  assert "is in the way: it is no file" in error(fetch.fetch, "tiny")
  assert site.seen == []


def test_a_name_too_long(site, monkeypatch, tmp_path):
  monkeypatch.setenv("ASTJAX_CACHE", str(tmp_path / ("x" * 300)))
  assert "File name too long" in error(fetch.fetch, "tiny")


def test_not_allowed_to_write(site, cache, monkeypatch):
  def no_lock(path):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

  monkeypatch.setattr(fetch.filelock, "FileLock", no_lock)
  said = error(fetch.fetch, "tiny")
  assert said.startswith(f"cannot write {cache}/tiny.pth.lock: Permission deni")


def test_the_disk_is_full(site, cache, monkeypatch):
  class Full(io.FileIO):
    def write(self, data):
      if self.tell() >= 3000:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      return super().write(data)

  with monkeypatch.context() as patch:
    patch.setattr(fetch, "open", Full, raising=False)
    said = error(fetch.fetch, "tiny")
  assert said.startswith(f"cannot write {cache}/tiny.pth: No space left on dev")
  assert (cache / "tiny.pth.part").read_bytes() == DATA[:3000]
  assert fetch.fetch("tiny").read_bytes() == DATA
  assert site.ranges == [None, "bytes=3000-"]


def test_threads_download_once(site):
  site.on_request = lambda: time.sleep(0.2)
  barrier = threading.Barrier(4)
  results = []

  def work():
    barrier.wait()
    results.append(fetch.fetch("tiny").read_bytes())

  threads = [threading.Thread(target=work) for _ in range(4)]
  for t in threads:
    t.start()
  for t in threads:
    t.join()
  assert results == [DATA] * 4
  assert len(site.seen) == 1


CHILD = """
import pathlib, sys
from astjax.weights import fetch, registry
url, sha256, ready = sys.argv[1:]
registry.CHECKPOINTS["tiny"] = registry.Published(
  what="", url=url, licence="", sha256=sha256
)
pathlib.Path(ready).touch()
print(fetch.fetch("tiny"))
"""


def test_processes_download_once(site, cache, tmp_path):
  ready = [tmp_path / str(i) for i in range(2)]

  def until_all_are_there():
    end = time.monotonic() + 60
    while not all(r.exists() for r in ready) and time.monotonic() < end:
      time.sleep(0.02)
    time.sleep(0.3)

  site.on_request = until_all_are_there
  children = [
    subprocess.Popen(
      [sys.executable, "-c", CHILD, site.url, DIGEST, str(r)],
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
    )
    for r in ready
  ]
  told = [c.communicate(timeout=100)[0].strip() for c in children]
  assert told == [str(cache / "tiny.pth")] * 2
  assert (cache / "tiny.pth").read_bytes() == DATA
  assert len(site.seen) == 1


def test_after_a_failure_the_next_one_may_try(site):
  site.statuses.append(503)
  assert "answers 503" in error(fetch.fetch, "tiny")
  assert fetch.fetch("tiny").read_bytes() == DATA


# Progress.


def test_progress_in_plain_lines(site, capsys):
  fetch.fetch("tiny")
  out, err = capsys.readouterr()
  assert out == ""
  assert err == "fetching tiny.pth: 0 MB of 0, ETA 0 s\n"


def progress(monkeypatch, *, total, on_terminal=False):
  """What 10 MB/s, from 100 MB on, look like."""
  screen = io.StringIO()
  screen.isatty = lambda: on_terminal
  clock = types.SimpleNamespace(now=0.0)
  monkeypatch.setattr(
    fetch, "time", types.SimpleNamespace(monotonic=lambda: clock.now)
  )
  monkeypatch.setattr(fetch.sys, "stderr", screen)
  tell = fetch._Progress("a.pth", 100_000_000, total)
  for second in range(1, 6):
    clock.now = float(second)
    tell(100_000_000 + second * 10_000_000)
  return screen.getvalue()


def test_progress_every_two_seconds(monkeypatch):
  assert progress(monkeypatch, total=150_000_000).splitlines() == [
    "fetching a.pth: 120 MB of 150, ETA 3 s",
    "fetching a.pth: 140 MB of 150, ETA 1 s",
    "fetching a.pth: 150 MB of 150, ETA 0 s",
  ]


def test_progress_without_a_total(monkeypatch):
  assert progress(monkeypatch, total=0).splitlines() == [
    "fetching a.pth: 120 MB",
    "fetching a.pth: 140 MB",
  ]


def test_progress_on_a_terminal(monkeypatch):
  text = progress(monkeypatch, total=150_000_000, on_terminal=True)
  assert text.count("\r") == 3
  assert text.count("\n") == 1 and text.endswith("\n")


# Names.


def test_good_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "x.pth").touch()
  (tmp_path / "folder").mkdir()
  for path in ("x.pth", "./x.pth", "~/x.pth", f"{tmp_path}/x.pth", "folder/"):
    fetch.check_name(path)
    found = fetch.fetch(path)
    assert found.exists() and "~" not in str(found)
  fetch.check_name("audioset_10_10_0.4593")
  fetch.check_name("MIT/ast-finetuned-audioset-10-10-0.4593")
  fetch.check_name("owner/name@main")
  fetch.check_name("owner/name.v2@refs/pr/1")


@pytest.mark.parametrize(
  "name",
  [
    "",
    "nothing",
    "x.pth",
    "folder/x.pth",
    "folder/x.safetensors",
    "./x",
    "../x",
    "/abs/x",
    "~/x",
    "~nobody-of-this-name/x",
    "owner/",
    "owner/name/",
    "owner/name/more",
    "owner/name@",
    "owner/name@a b",
    "owner name/x",
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


@pytest.mark.parametrize(
  ("typed", "meant"),
  [
    ("audioset_10_10_0.459", "audioset_10_10_0.4593"),
    ("deit_base_distiled_patch16_384", "deit_base_distilled_patch16_384"),
    ("Audioset_16_16_0.4422.pth", "audioset_16_16_0.4422"),
  ],
)
def test_mistyped_names(typed, meant):
  assert f"Did you mean {meant!r}?" in error(fetch.check_name, typed)


def test_a_path_wins_over_the_hub(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "owner" / "name").mkdir(parents=True)
  assert fetch.fetch("owner/name") == pathlib.Path("owner/name")


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


def test_a_hub_name_too_long_for_a_path(hub):
  hub.error = hub_error("HFValidationError", "too long")
  said = error(fetch.fetch, "owner/" + "x" * 300)
  assert said.endswith(" from Hugging Face: too long")


def hub_error(name, *args):
  errors = pytest.importorskip("huggingface_hub").errors
  if args:
    return getattr(errors, name)(*args)
  response = types.SimpleNamespace(headers={}, request=None, status_code=404)
  text = "404 Client Error. (Request ID: x)\n\nNot Found for url: y."
  return getattr(errors, name)(text, response=response)


@pytest.mark.parametrize(
  ("make", "expected"),
  [
    (lambda: hub_error("GatedRepoError"), "owner has to grant you access"),
    (lambda: hub_error("RepositoryNotFoundError"), "no such repository, or "),
    (lambda: hub_error("RevisionNotFoundError"), "no revision 'v9'"),
    (
      lambda: hub_error("LocalEntryNotFoundError", "Got:\nthis"),
      "not in the cache and Hugging Face cannot be reached",
    ),
    (
      lambda: hub_error("OfflineModeIsEnabled", "It is.\nReally."),
      "not in the cache and Hugging Face cannot be reached",
    ),
    (lambda: hub_error("HfHubHTTPError"), "404 Client Error"),
    (lambda: hub_error("HFValidationError", "Repo id must\nbe"), "id must be"),
    (lambda: OSError(errno.ENOSPC, "No space left"), ": No space left"),
    (lambda: OSError(), "OSError"),
    # The HTTP libraries' own are neither OSError nor ValueError.
    (lambda: type("ReadError", (Exception,), {})("cut\noff"), "cut off"),
    (lambda: type("ReadError", (Exception,), {})(), "ReadError"),
  ],
)
def test_hub_errors(hub, make, expected):
  hub.error = make()
  said = error(fetch.fetch, "owner/name@v9")
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
    timeout=100,  # not the retries of a network that is there
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == [
    "cannot get 'owner/name' (no existing path) from Hugging Face: it is not "
    "in the cache and Hugging Face cannot be reached"
  ]
  assert done.stderr == ""


# The registry.


@pytest.mark.parametrize(("key", "entry"), registry.CHECKPOINTS.items())
def test_entries(key, entry):
  assert entry.what and entry.licence
  assert re.fullmatch(r"https://[\w.-]+/[\w./?=-]+", entry.url)
  assert entry.file_name.endswith((".pth", ".npz"))
  assert re.fullmatch("([0-9a-f]{8,64})?", entry.sha256)
  assert re.fullmatch(r"([\w.-]+/[\w.-]+)?", entry.mirror)
  is_npz = entry.file_name.endswith(".npz")  # names that Google gives twice
  assert registry.of_file(entry.file_name) is (None if is_npz else entry)
  assert registry.of_file(key + ".pth") is entry
  if entry.mirror:
    assert registry.of_mirror(entry.mirror) is entry
    assert registry.of_mirror(entry.mirror + "@main") is entry
  assert "/" not in key and not key.endswith((".pth", ".npz"))
  if entry.mirror:
    fetch.check_name(entry.mirror)


@pytest.mark.parametrize("field", ["url", "file_name", "what"])
def test_entries_are_distinct(field):
  values = [getattr(c, field) for c in registry.CHECKPOINTS.values()]
  if field == "what":  # runs of one model share it
    values = [v + c for v, c in zip(values, registry.CHECKPOINTS, strict=True)]
  assert len(set(values)) == len(values)


def test_mirrors_are_distinct():
  mirrors = [c.mirror for c in registry.CHECKPOINTS.values() if c.mirror]
  assert len(set(mirrors)) == len(mirrors)


def test_what_predicting_needs_of_audio_models():
  for key, entry in registry.CHECKPOINTS.items():
    is_audio = key.startswith(("audioset", "speechcommands"))
    is_ssast = key.startswith("SSAST")
    assert bool(entry.num_frames) is (is_audio or is_ssast)
    if is_ssast:
      assert entry.stride == ((128, 2) if "Frame" in key else (16, 16))
      assert entry.statistics == registry.AUDIOSET_STATISTICS
      assert entry.file_name == f"{key}.pth" and not entry.scores
    if is_audio:
      strides = re.match(r"[a-z]+_(\d+)_(\d+)_", key).groups()
      assert entry.stride == tuple(map(int, strides))
      assert len(entry.statistics) == 2
      assert entry.scores in ("sigmoid", "softmax")
      assert key.rsplit("_", 1)[1] in entry.expected


@pytest.mark.parametrize("name", ["", "x.pth", "tiny", "ViT-B_16", ".pth"])
def test_unknown_files(name):
  assert registry.of_file(name) is None
