"""Run by remote_loading.py in a process of its own, where `triemo` cannot be imported: loads a repository by its name.

Arguments: a JSON file with what to do; the results go to the files it names.
"""

import json
import sys
from pathlib import Path

from load_pcm import read_pcm

JOB = json.loads(Path(sys.argv[1]).read_text("utf-8"))
for blocked in JOB["blocked"]:
    sys.modules[blocked] = None  # type: ignore[assignment]  # to an import as if it were not installed
for blocked in ("triemo", *JOB["blocked"]):
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
TENSORS = load_file(JOB["inputs"]) if "inputs" in JOB else {}
results: dict = {"classes": {}, "scores": {}}


def scores(name: str, repo: str) -> list:
    """What the model of an Auto class answers to the tensors given."""
    model = getattr(transformers, name).from_pretrained(repo, **TRUST)
    results["classes"][name] = f"{type(model).__module__}.{type(model).__name__}"
    with torch.no_grad():
        output = model(**TENSORS)
    return (output.pooler_output if name == "AutoModel" else output.logits).tolist()


for name in JOB.get("models", []):
    results["scores"][name] = scores(name, REPO)
for name in JOB.get("processors", []):
    part = getattr(transformers, name).from_pretrained(REPO, **TRUST)
    results["classes"][name] = f"{type(part).__module__}.{type(part).__name__}"
if "sample" in JOB:
    save_file(dict(AutoProcessor.from_pretrained(REPO, **TRUST)(**JOB["sample"])), JOB["tensors"])
for task, input_ in JOB["pipelines"].items():
    pipe = pipeline(task, model=REPO, top_k=7, **TRUST)
    input_ = read_pcm(input_) if task == "audio-classification" else input_
    results["scores"][task] = pipe(input_)
    if task == JOB.get("save_again"):
        pipe.save_pretrained(JOB["saved"])
        results["scores"]["saved_again"] = pipeline(task, model=JOB["saved"], top_k=7, **TRUST)(input_)
if "push_again" in JOB:  # as its user would, who knows nothing of triemo
    model = transformers.AutoModelForSequenceClassification.from_pretrained(REPO, **TRUST)
    processor = AutoProcessor.from_pretrained(REPO, **TRUST)
    for part in (model, processor):
        part.save_pretrained(JOB["saved"])
        part.push_to_hub(JOB["push_again"])
    for repo in (JOB["saved"], JOB["push_again"]):
        AutoProcessor.from_pretrained(repo, **TRUST)
        results[repo] = {name: scores(name, repo) for name in JOB["models"]}
for repo in JOB.get("adapters", []):
    results[repo] = scores("AutoModelForVideoClassification", repo)

Path(JOB["results"]).write_text(json.dumps(results), "utf-8")
