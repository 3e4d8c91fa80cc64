"""The face crops that the model got, as pictures for people."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

__all__ = ["data_uri", "face_pictures"]


def face_pictures(reader: Any, tensors: Mapping[str, torch.Tensor], most: int = 6) -> list[tuple[float, Image.Image]]:
    """
    Some of the faces in a sample, evenly spread over those that were found.

    Args:
        reader: the `multimodal-emotion-recognition` pipeline, whose image processor says how pixels were normalised.
        tensors: a batch of one, as `reader.preprocess` returns it.
        most: how many pictures at most.

    Returns:
        The time in seconds and the crop as the model sees it, of each; empty without a face.
    """
    if "pixel_values" not in tensors:
        return []
    found = tensors["video_attention_mask"][0].nonzero().flatten().tolist()
    places = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    times = tensors.get("video_times")
    settings = reader.processor.image_processor
    pictures = []
    for frame in (found[place] for place in places):
        pixels = tensors["pixel_values"][0, frame].float().cpu()
        if settings.do_normalize:
            mean, std = (torch.tensor(values)[:, None, None] for values in (settings.image_mean, settings.image_std))
            pixels = pixels * std + mean
        if settings.do_rescale:
            pixels = pixels / settings.rescale_factor
        levels = pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        image = Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels)
        pictures.append((0.0 if times is None else float(times[0, frame]), image))
    return pictures


def data_uri(picture: Image.Image) -> str:
    """A picture inside a page, so that no file of it is written."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
