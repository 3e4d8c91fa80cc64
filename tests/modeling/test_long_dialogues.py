"""Dialogues of thousands of utterances: what they take of memory, in a process that has read nothing else."""

import subprocess
import sys

SCRIPT = """
import resource, torch
from triemo.modeling import TriemoConfig, TriemoForEmotionSequence

torch.set_num_threads(1)
sizes = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256, "num_hidden_layers": 1}
sizes |= {"text_feature_size": 384, "step_aligned": True, "text_position_type": "sinusoidal", "context_layers": 1}
words, who = torch.randn(1, 5000, 384), torch.randint(0, 2, (1, 5000))
with torch.inference_mode():
    for kind in ("none", "transformer", "recurrent", "graph"):
        model = TriemoForEmotionSequence(TriemoConfig(**sizes, context_type=kind)).eval()
        logits = model(text_features=words[:, :1000], speakers=who[:, :1000]).logits
        assert logits.shape == (1, 1000, 2) and bool(logits.isfinite().all())
        if kind != "none":
            fields = {"context_causal": True, "context_window": 20}
            model = TriemoForEmotionSequence(TriemoConfig(**sizes, **fields, context_type=kind)).eval()
            cache = model.new_cache()
            for start in range(0, 5000, 250):
                part = slice(start, start + 250)
                logits = model.push(cache, who[:, part], text_features=words[:, part])
            assert logits.shape == (1, 250, 2) and cache.seen == 5000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_thousands_of_utterances_fit_into_4_gib():
    """1,000 at once with every context, both ways; 5,000 pushed in parts, within a window."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 4 * 2**20  # KiB
