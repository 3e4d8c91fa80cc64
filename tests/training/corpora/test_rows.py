"""Where corpora lie, and the hash by which figures name them."""

import hashlib

import pytest

from triemo.training.corpora.rows import corpus_hash, data_root


def test_missing_root_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="data root: got .*nowhere"):
        data_root(tmp_path / "nowhere")
    monkeypatch.setenv("TRIEMO_DATA", str(tmp_path))
    assert data_root() == tmp_path


def test_corpus_hash_changes_with_names_and_bytes(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.txt").write_bytes(b"one")
    line = f"a.txt {hashlib.sha256(b'one').hexdigest()}"
    assert corpus_hash(tmp_path, "c") == hashlib.sha256(line.encode()).hexdigest()
    first = corpus_hash(tmp_path, "c")
    (tmp_path / "c" / "a.txt").rename(tmp_path / "c" / "b.txt")
    assert corpus_hash(tmp_path, "c") != first
