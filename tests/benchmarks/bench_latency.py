"""One sample through the released checkpoint, against what people would otherwise run. Batch 1, in turn, medians.

    python tests/benchmarks/bench_latency.py --repeats 10
    python tests/benchmarks/bench_latency.py --large          # needs 6 GB of memory
    python tests/benchmarks/bench_latency.py --parts          # where the time of a clip goes

(a) its three towers as three stock pipelines (text-classification, audio-classification, image-classification on all
frames at once), of the same sizes with random weights, from sentence, samples and face crops to labels; Triemo's
pipeline from the very same inputs. Whisper's stock feature extractor and encoder work on windows of 30 s.
(b) `--large`: the forward passes alone of a stack of the shapes of WavLM-large, VideoMAE-large and DeBERTa-v3-large,
random weights; Triemo's forward pass from the same sentence, samples and number of frames.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from interleaved import interleaved_ms
from PIL import Image
from transformers import (
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2Model,
    ResNetForImageClassification,
    VideoMAEConfig,
    VideoMAEModel,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    pipeline,
)
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from triemo.processing.media_triemo import load_audio, load_frames
from triemo.serving.reading import load_reader
from triemo.serving.samples import ASSETS
from triemo.training.common import default_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=default_model())
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--large", action="store_true", help="(b) instead of (a)")
    parser.add_argument("--parts", action="store_true", help="time of each part of reading the demo's clip")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    reader = load_reader(arguments.model, "cpu")
    sentence = (ASSETS / "demo.txt").read_text("utf-8").strip()
    voice = load_audio(ASSETS / "demo.mp4")
    size = reader.processor.image_processor.size
    shape = (arguments.frames, size["height"], size["width"], 3)
    crops = [Image.fromarray(crop) for crop in np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)]
    print(f"{len(voice) / 16000:.1f} s of voice, {len(crops)} face crops, {len(sentence.split())} words")
    if arguments.parts:
        parts(reader, sentence, arguments)
        return
    # What comes is a face already, for both sides.
    reader.processor.image_processor.face_detector = None
    inputs = {"text": sentence, "audio": {"array": voice, "sampling_rate": 16000}, "video": crops}
    if arguments.large:
        tensors = reader.prepare(inputs)
        runs = {"triemo": lambda: reader.forward(tensors), **large_stack(voice, arguments.frames, tensors)}
    else:
        runs = {"triemo": lambda: reader(inputs, num_frames=arguments.frames)}
        runs |= stock_pipelines(reader, sentence, voice, crops)
    medians = interleaved_ms(runs, arguments.repeats)
    for name, median in medians.items():
        print(f"{name:24s} {median:10.1f} ms")
    others = sum(median for name, median in medians.items() if name != "triemo")
    share = medians["triemo"] / others
    print(f"together {others:.1f} ms; triemo takes {share:.3f} of it (1 / {1 / share:.1f})")


class Crops(BaseImageProcessor):
    """Pillow's resize and a normalisation: the least that a stock image processor does."""

    model_input_names = ["pixel_values"]

    def __init__(self, height: int = 96, width: int = 96, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height, self.width = height, width

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        images = images if isinstance(images, list) else [images]
        resized = [np.asarray(image.resize((self.width, self.height)), dtype=np.float32) for image in images]
        pixels = (np.stack(resized).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
        return BatchFeature({"pixel_values": pixels.astype(np.float32)}, tensor_type=return_tensors)


def stock_pipelines(reader: Any, sentence: str, voice: np.ndarray, crops: list) -> dict[str, Callable[[], Any]]:
    config = reader.model.config
    text_config, vision_config, audio = (
        copy.deepcopy(config.text_config),
        copy.deepcopy(config.vision_config),
        config.audio_config,
    )
    vision_config.num_channels = 3
    heard = WhisperConfig(
        num_mel_bins=audio.num_mel_bins,
        d_model=audio.hidden_size,
        encoder_layers=audio.num_hidden_layers,
        encoder_attention_heads=audio.num_attention_heads,
        encoder_ffn_dim=audio.intermediate_size,
        num_labels=config.num_labels,
    )
    size = reader.processor.image_processor.size
    words = pipeline(
        "text-classification",
        model=BertForSequenceClassification(text_config).eval(),
        tokenizer=reader.processor.tokenizer,
        device="cpu",
    )
    sound = pipeline(
        "audio-classification",
        model=WhisperForAudioClassification(heard).eval(),
        feature_extractor=WhisperFeatureExtractor(feature_size=audio.num_mel_bins),
        device="cpu",
    )
    faces = pipeline(
        "image-classification",
        model=ResNetForImageClassification(vision_config).eval(),
        image_processor=Crops(**size),
        device="cpu",
    )
    return {
        "text-classification": lambda: words(sentence),
        # A copy: the pipeline takes what it reads out of the dict.
        "audio-classification": lambda: sound({"raw": voice, "sampling_rate": 16000}),
        "image-classification": lambda: faces(crops, batch_size=len(crops)),
    }


def large_stack(voice: np.ndarray, frames: int, tensors: dict[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    shape = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    wavlm = WavLMModel(
        WavLMConfig(**shape, feat_extract_norm="layer", do_stable_layer_norm=True, num_conv_pos_embeddings=128)
    ).eval()
    videomae = VideoMAEModel(VideoMAEConfig(**shape, num_frames=frames, image_size=224)).eval()
    deberta = DebertaV2Model(
        DebertaV2Config(
            **shape,
            vocab_size=128100,
            relative_attention=True,
            position_buckets=256,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            type_vocab_size=0,
        )
    ).eval()
    samples, pixels = torch.from_numpy(voice)[None], torch.randn(1, frames, 3, 224, 224)
    words = {name: tensors[name] for name in ("input_ids", "attention_mask")}

    def run(model: Any, **given: torch.Tensor) -> Callable[[], Any]:
        @torch.inference_mode()
        def forward() -> Any:
            return model(**given)

        return forward

    return {
        "WavLM-large": run(wavlm, input_values=samples),
        "VideoMAE-large": run(videomae, pixel_values=pixels),
        "DeBERTa-v3-large": run(deberta, **words),
    }


def parts(reader: Any, sentence: str, arguments: argparse.Namespace) -> None:
    """Of a clip: decoding, faces, log-mel, the model."""
    clip = str(ASSETS / "demo.mp4")
    frames, _ = load_frames(clip, num_frames=arguments.frames)
    voice = load_audio(clip)
    processor = reader.processor
    tensors = reader.prepare({"video": clip, "text": sentence})
    runs: dict[str, Callable[[], Any]] = {
        "whole clip": lambda: reader({"video": clip, "text": sentence}),
        "frames decoded": lambda: load_frames(clip, num_frames=arguments.frames),
        "sound decoded": lambda: load_audio(clip),
        "faces and crops": lambda: processor.image_processor([frames]),
        "crops alone": lambda: processor.image_processor([frames], face_detector=None),
        "log-mel": lambda: processor.feature_extractor(voice, sampling_rate=16000),
        "tokens": lambda: processor.tokenizer(sentence),
        "model": lambda: reader.forward(tensors),
    }
    for name, median in interleaved_ms(runs, arguments.repeats).items():
        print(f"{name:24s} {median:10.1f} ms")


if __name__ == "__main__":
    main()
