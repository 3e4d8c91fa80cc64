"""Run by test_hub_folder in a process of its own, where `triemo` cannot be imported: loads a repository by its name.

Arguments: a JSON file with what to do; the results go to the files it names.
"""

import json
import sys
from pathlib import Path


class Blocker:
    """Makes packages look as if they were not installed."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


JOB = json.loads(Path(sys.argv[1]).read_text("utf-8"))
sys.meta_path.insert(0, Blocker(JOB["blocked"]))
for blocked in JOB["blocked"]:
    try:
        __import__(blocked)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{blocked} can be imported: this process proves nothing")

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoProcessor, pipeline  # noqa: E402

torch.set_num_threads(1)
REPO, TRUST = JOB["repo"], {"trust_remote_code": True}
results: dict = {"classes": {}, "scores": {}}

if "inputs" in JOB:
    tensors = load_file(JOB["inputs"])
    for name in JOB["models"]:
        model = getattr(transformers, name).from_pretrained(REPO, **TRUST)
        with torch.no_grad():
            output = model(**tensors)
        results["classes"][name] = f"{type(model).__module__}.{type(model).__name__}"
        results["scores"][name] = (output.pooler_output if name == "AutoModel" else output.logits).tolist()
for name in JOB.get("processors", []):
    part = getattr(transformers, name).from_pretrained(REPO, **TRUST)
    results["classes"][name] = f"{type(part).__module__}.{type(part).__name__}"
if "sample" in JOB:
    save_file(dict(AutoProcessor.from_pretrained(REPO, **TRUST)(**JOB["sample"])), JOB["tensors"])
for task, input_ in JOB["pipelines"].items():
    pipe = pipeline(task, model=REPO, top_k=7, **TRUST)
    results["scores"][task] = pipe(input_)
    if task == JOB.get("save_again"):
        pipe.save_pretrained(JOB["saved"])
        results["scores"]["saved_again"] = pipeline(task, model=JOB["saved"], top_k=7, **TRUST)(input_)

Path(JOB["results"]).write_text(json.dumps(results), "utf-8")
