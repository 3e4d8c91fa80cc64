"""Run by publish_checks.py in a process of its own, offline: loads a repository where `triemo` is not installed.

The argument is a JSON file with `repo`, the name to load by, and `example`, Python whose last comment is what it prints.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["load_everything", "run_example"]

TRUST = {"trust_remote_code": True}


def load_everything(repo: str) -> None:
    """Every class that the maps of config.json and processor_config.json name, and no weight left to chance."""
    import transformers
    from transformers.utils import cached_file

    config = json.loads(Path(str(cached_file(repo, "config.json"))).read_text("utf-8"))
    architectures = set(config.get("architectures") or ())
    for name in config["auto_map"]:
        if name == "AutoConfig":
            transformers.AutoConfig.from_pretrained(repo, **TRUST)
            continue
        loaded: Any = getattr(transformers, name).from_pretrained(repo, output_loading_info=True, **TRUST)
        model, info = loaded
        if type(model).__name__ in architectures and info["missing_keys"]:
            raise ValueError(f"{name}: weights are missing: {sorted(info['missing_keys'])[:5]}")
    for name in ("AutoProcessor", "AutoTokenizer", "AutoImageProcessor", "AutoFeatureExtractor"):
        getattr(transformers, name).from_pretrained(repo, **TRUST)


def run_example(code: str) -> None:
    """Run the lines and compare what they print with the comment that ends them, if one does."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "the card's example", "exec"), {"__name__": "__main__"})
    _, comment, expected = code.strip().splitlines()[-1].partition("  # ")
    if comment and printed.getvalue().strip() != expected.strip():
        raise ValueError(f"the card's example printed {printed.getvalue().strip()!r}, the card says {expected!r}")


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    # As a package that is not there looks to an import and to find_spec alike.
    sys.modules["triemo"] = None  # type: ignore[assignment]
    sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).resolve().parent]
    import torch

    torch.set_num_threads(1)
    load_everything(job["repo"])
    if job["example"]:
        run_example(job["example"])


if __name__ == "__main__":
    main()
