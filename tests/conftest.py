"""What all tests share: no network, a cache of their own, fixed seeds, few threads, and where data and weights lie."""

import atexit
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Set before the Hugging Face libraries are imported: they read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "warning")  # "error" would hide the deprecations caught below
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A folder for each process: remote code is copied into this cache, and what another run left there must not be found.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="triemo-tests-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
# Beside a second test process, two threads each would only wait for one another. Child processes inherit it.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(THREADS)


class DeprecationRaiser(logging.Handler):
    """Raises on deprecations that transformers logs instead of warning: its next release would break on them."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING and "deprecated" in message.lower():
            raise DeprecationWarning(message)


@pytest.fixture(autouse=True, scope="session")
def raise_on_logged_deprecations() -> Iterator[None]:
    handler = DeprecationRaiser()
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that read the corpora: `-m corpora` runs them alone."""
    for item in items:
        if "data_root" in getattr(item, "fixturenames", ()):
            item.add_marker("corpora")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The corpora's folder: TRIEMO_DATA, or ../shared/data beside the repository."""
    given = os.environ.get("TRIEMO_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no corpora at {folder}: set TRIEMO_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The released checkpoint's folder."""
    folder = ROOT / "checkpoints" / "triemo-small"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no released weights at {folder}")
    return folder
