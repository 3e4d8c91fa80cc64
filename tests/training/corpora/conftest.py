"""The large corpora, read once a session."""

import pytest

from triemo.training.corpora.registry import load_corpus


@pytest.fixture(scope="session")
def fer2013_raw(data_root):
    return load_corpus("fer2013", data_root, "own", drop_duplicates=False)


@pytest.fixture(scope="session")
def goemotions(data_root):
    return load_corpus("goemotions", data_root)
