"""One thread for tests that compare last digits."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """As in two processes: sums in another order would differ; small tensors only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
