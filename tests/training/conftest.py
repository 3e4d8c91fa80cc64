"""The real corpora, read once a session; one thread for tests that compare last digits."""

import pytest
import torch

from triemo.training.corpora.official import load_fer2013, load_goemotions, load_ravdess


@pytest.fixture(scope="session")
def fer2013_raw(data_root):
    return load_fer2013(data_root, drop_duplicates=False)


@pytest.fixture(scope="session")
def goemotions(data_root):
    return load_goemotions(data_root)


@pytest.fixture(scope="session")
def ravdess(data_root):
    return load_ravdess(data_root)


@pytest.fixture(scope="module")
def one_thread():
    """As in two processes: sums in another order would differ; small tensors only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
