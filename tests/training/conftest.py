"""The real corpora, read once a session."""

import pytest

from triemo.training.corpora import load_fer2013, load_goemotions, load_ravdess


@pytest.fixture(scope="session")
def fer2013_raw(data_root):
    return load_fer2013(data_root, drop_duplicates=False)


@pytest.fixture(scope="session")
def goemotions(data_root):
    return load_goemotions(data_root)


@pytest.fixture(scope="session")
def ravdess(data_root):
    return load_ravdess(data_root)
