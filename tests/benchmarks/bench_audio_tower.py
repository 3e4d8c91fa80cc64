"""Time of the built-in audio tower on clips of their own length, against Whisper's encoder and its 30 s window.

    python tests/benchmarks/bench_audio_tower.py --seconds 5 --repeats 10

Random weights of whisper-tiny's size unless `--weights` names a folder or Hub id: the time does not depend on them.
Both run in one process on the same clip, alternating; the ratio is what to quote.
"""

import argparse
import statistics
import time

import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from triemo.modeling import TriemoAudioModel

TINY = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the clip")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", help="folder or Hub id of a Whisper model")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.weights:
        encoder = WhisperEncoder.from_pretrained(args.weights, dtype=torch.float32).eval()
    else:
        encoder = WhisperEncoder(WhisperConfig(**TINY)).eval()
    tower = TriemoAudioModel.from_whisper_encoder(encoder).eval()
    bins = encoder.config.num_mel_bins
    clip = torch.randn(1, int(args.seconds * 100), bins)
    window = torch.zeros(1, bins, 3000)
    window[:, :, : clip.shape[1]] = clip.transpose(1, 2)

    times: dict[str, list[float]] = {"whisper": [], "triemo": []}
    with torch.inference_mode():
        for repeat in range(args.repeats + 1):
            for name, run in (("whisper", lambda: encoder(window)), ("triemo", lambda: tower(clip))):
                start = time.perf_counter()
                run()
                if repeat:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:8s} {median * 1000:8.1f} ms (median of {args.repeats}, min {min(times[name]) * 1000:.1f})")
    print(f"triemo / whisper on {args.seconds:g} s: {medians['triemo'] / medians['whisper']:.3f}")


if __name__ == "__main__":
    main()
