"""Run by checks.py in a process of its own, offline: loads a repository where `triemo` is not installed.

The argument is a JSON file with `repo`, the name to load by, and `example`, Python that ends in a comment with what it
prints.
"""

import contextlib
import io
import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

__all__ = ["load_everything", "run_example", "try_endpoint"]

TRUST = {"trust_remote_code": True}


def load_everything(repo: str) -> None:
    """
    Every class that the maps of config.json and processor_config.json name: the base model and those that the weights
    are of with all their weights, the others as code alone, for a head that the weights lack is refused on loading.
    """
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.utils import cached_file

    config = json.loads(Path(str(cached_file(repo, "config.json"))).read_text("utf-8"))
    architectures = set(config.get("architectures") or ())
    for name, reference in config["auto_map"].items():
        if name == "AutoConfig":
            transformers.AutoConfig.from_pretrained(repo, **TRUST)
            continue
        if name != "AutoModel" and reference.rpartition(".")[2] not in architectures:
            get_class_from_dynamic_module(reference, repo)
            continue
        loaded: Any = getattr(transformers, name).from_pretrained(repo, output_loading_info=True, **TRUST)
        model, info = loaded
        if type(model).__name__ in architectures and info["missing_keys"]:
            raise ValueError(f"{name}: weights are missing: {sorted(info['missing_keys'])[:5]}")
    if cached_file(repo, "processor_config.json", _raise_exceptions_for_missing_entries=False) is None:
        return  # a head over vectors
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


def try_endpoint(repo: str) -> None:
    """One request to the repository's `handler.py`, where it has one and the model reads text."""
    from transformers.utils import cached_file

    file = cached_file(repo, "handler.py", _raise_exceptions_for_missing_entries=False)
    config = json.loads(Path(str(cached_file(repo, "config.json"))).read_text("utf-8"))
    if file is None or not (config.get("text_config") or config.get("text_vocab_size")):
        return
    spec: Any = spec_from_file_location("handler", file)
    module = module_from_spec(spec)
    sys.modules["handler"] = module
    spec.loader.exec_module(module)
    turn = {"text": "Is this a test?"}
    of_dialogues = "TriemoForEmotionSequence" in (config.get("architectures") or ())
    answer = module.EndpointHandler(str(Path(file).parent))({"inputs": {"turns": [turn]} if of_dialogues else turn})
    if not answer:
        raise ValueError(f"handler.py answered {answer!r}")


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    # As a package that is not there looks to an import and to find_spec alike.
    sys.modules["triemo"] = None  # type: ignore[assignment]
    sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).resolve().parent]
    import torch

    torch.set_num_threads(1)
    load_everything(job["repo"])
    try_endpoint(job["repo"])
    if job["example"]:
        run_example(job["example"])


if __name__ == "__main__":
    main()
