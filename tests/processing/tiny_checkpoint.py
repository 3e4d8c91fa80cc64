"""A tiny checkpoint over all three modalities, with its processor, made in memory: what loading and pipelines need."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import tiny_audio_config, tiny_model, tiny_text_config
from transformers import BertTokenizerFast

from triemo.modeling import TriemoForEmotionClassification
from triemo.processing import TriemoFeatureExtractor, TriemoImageProcessor, TriemoProcessor

WORDS = "i am so happy sad afraid angry what a day this is not fine the of and you we they it was".split()
LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
FACE_DETECTOR = Path(__file__).resolve().parents[2] / "checkpoints" / "triemo-small" / "face_detector.safetensors"

# A known deprecation, which the tests' handler would raise on: video processors need torchvision, which is not there.
logging.getLogger("transformers.pipelines.video_classification").addFilter(
    lambda record: "Using `image_processor` for video classification" not in record.getMessage()
)


def tiny_tokenizer() -> BertTokenizerFast:
    """WordPiece over a few words and the letters: every English sentence has tokens."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*pieces, *WORDS])]
    vocab = {token: index for index, token in enumerate(tokens)}
    return BertTokenizerFast(vocab=vocab, model_max_length=32)


def tiny_processor(**image_settings: Any) -> TriemoProcessor:
    """Frames of 32 pixels, taken whole unless a face detector is named; 80 mel bins."""
    settings = {"face_detector": None, "size": 32, "num_frames": 4, **image_settings}
    return TriemoProcessor(TriemoImageProcessor(**settings), TriemoFeatureExtractor(), tiny_tokenizer())


def tiny_classifier(**config_fields: Any) -> TriemoForEmotionClassification:
    text = tiny_text_config()
    text.vocab_size = len(tiny_tokenizer())
    fields = {
        "text_config": text,
        "audio_config": tiny_audio_config(num_mel_bins=80),
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: index for index, label in enumerate(LABELS)},
        "num_frames": 4,
    }
    model = tiny_model(**{**fields, **config_fields})
    with torch.no_grad():
        model.classifier.out_proj.weight.mul_(10)  # scores of different inputs then differ in the first decimal
    return model


def save_tiny_checkpoint(folder: Path, **config_fields: Any) -> Path:
    """Model and processor, as `save_pretrained` of both lays them out."""
    tiny_classifier(**config_fields).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def picture(seed: int = 0, height: int = 40, width: int = 50) -> np.ndarray:
    """Coloured noise, (height, width, 3) uint8: no two pictures give the same logits."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
