from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ldm.data.formats.hub_download import fetch_parquet
from ldm.errors import UserError

CONTENT = {"data/train-0.parquet": bytes(range(200)) * 10, "data/test-0.parquet": b"test" * 30}


class Hub(BaseHTTPRequestHandler):
    """A hub with one data set; the class attributes say how it misbehaves."""

    content = CONTENT
    checksum = None
    ranges = True
    cut = None
    requests: list[tuple[str, str | None]] = []  # noqa: RUF012 - replaced by every test

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.requests.append((self.path, wanted))
        if self.path == "/api/datasets/someone/faces/tree/main/data":
            entries = [{"type": "directory", "path": "data/old"}, {"type": "file", "path": "data/README.md", "size": 3}]
            for path, data in self.content.items():
                oid = self.checksum or hashlib.sha256(data).hexdigest()
                entries.append({"type": "file", "path": path, "size": len(data), "lfs": {"oid": oid}})
            return self.answer(200, json.dumps(entries).encode())
        data = self.content.get(self.path.removeprefix("/datasets/someone/faces/resolve/main/"))
        if data is None:
            return self.answer(404, b"")
        if wanted and self.ranges:
            return self.answer(206, data[int(wanted.removeprefix("bytes=").rstrip("-")) :])
        return self.answer(200, data if self.cut is None else data[: self.cut])

    def answer(self, status, data):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    kind = type("ThisHub", (Hub,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield kind
    server.shutdown()
    thread.join()
    server.server_close()


def downloads(hub) -> list[tuple[str, str | None]]:
    return [(path.rsplit("/", 1)[1], wanted) for path, wanted in hub.requests if "/resolve/" in path]


def test_files_arrive_whole_and_once(hub, tmp_path):
    paths = fetch_parquet("someone/faces", tmp_path)
    assert [path.name for path in paths] == ["test-0.parquet", "train-0.parquet"]
    assert all(path.read_bytes() == CONTENT[f"data/{path.name}"] for path in paths)
    assert len(downloads(hub)) == 2 and not list(tmp_path.rglob("*.part"))
    assert fetch_parquet("someone/faces", tmp_path) == paths and len(downloads(hub)) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_stopped(hub, tmp_path, ranges):
    hub.cut = 50
    with pytest.raises(UserError, match="broke off after 50 bytes"):
        fetch_parquet("someone/faces", tmp_path)
    hub.cut, hub.ranges = None, ranges
    fetch_parquet("someone/faces", tmp_path)
    assert ("test-0.parquet", "bytes=50-") in downloads(hub)
    assert (tmp_path / "data" / "test-0.parquet").read_bytes() == CONTENT["data/test-0.parquet"]


def test_another_checksum_is_refused(hub, tmp_path):
    hub.checksum = "0" * 64
    with pytest.raises(UserError, match="not the file"):
        fetch_parquet("someone/faces", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_that_has_grown_is_not_kept(hub, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test-0.parquet").write_bytes(b"another one")
    (tmp_path / "data" / "train-0.parquet.part").write_bytes(b"x" * 5000)
    for path in fetch_parquet("someone/faces", tmp_path):
        assert path.read_bytes() == CONTENT[f"data/{path.name}"]


def test_what_the_hub_answers_is_not_trusted(hub, tmp_path):
    hub.content = {"data/../../outside.parquet": b"x"}
    with pytest.raises(UserError, match="outside"):
        fetch_parquet("someone/faces", tmp_path)
    hub.content = {}
    with pytest.raises(UserError, match="no Parquet files"):
        fetch_parquet("someone/faces", tmp_path)
    with pytest.raises(UserError, match="answered 404"):
        fetch_parquet("someone/others", tmp_path)


def test_without_a_network_one_line_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(UserError, match="cannot be reached .* --from FOLDER") as caught:
        fetch_parquet("someone/faces", tmp_path)
    assert "\n" not in str(caught.value)
