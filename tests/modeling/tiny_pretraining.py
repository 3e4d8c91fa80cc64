"""Tiny pretraining models and batches that the tests of pretraining share; no draw of chance in the forward pass."""

import torch
from tiny_models import all_inputs, tiny_config, tiny_text_config

from triemo.modeling import MODALITIES, TriemoConfig, TriemoForPreTraining

PAIRS = (("text", "audio"), ("text", "vision"), ("audio", "vision"))


def pretraining_model(seed: int = 0, **fields) -> TriemoForPreTraining:
    """In evaluation mode. Faces come as vectors: batch normalisation would depend on how a batch is cut."""
    text = tiny_text_config()
    text.hidden_dropout_prob = text.attention_probs_dropout_prob = 0.0
    settings = {"text_config": text, "vision_config": None, "vision_feature_size": 6, "hidden_dropout": 0.0, **fields}
    torch.manual_seed(seed)
    model = TriemoForPreTraining(tiny_config(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale.weight":
                parameter.mul_(2.0)
    return model


def batch_of_five() -> dict[str, torch.Tensor]:
    """Row 1 has no voice, row 3 no face, row 4 no text; five tokens are masked in row 0, one in row 2."""
    batch = all_inputs(5)
    batch |= {"pixel_values": None, "vision_features": torch.randn(5, 3, 6)}
    batch = {name: tensor for name, tensor in batch.items() if tensor is not None}
    batch["audio_attention_mask"][1] = 0
    batch["video_attention_mask"][3] = 0
    batch["attention_mask"][4] = 0
    batch["attention_mask"][2, 5:] = 0
    batch["mlm_labels"] = torch.full((5, 7), -100)
    batch["mlm_labels"][0, 1:6] = torch.tensor([7, 8, 9, 10, 11])
    batch["mlm_labels"][2, 3] = 12
    batch["audio_step_mask"] = torch.tensor([[1, 0, 0, 1, 0, 0, 0]]).repeat(5, 1)
    batch["vision_step_mask"] = torch.tensor([[0, 1, 0]]).repeat(5, 1)
    return batch


# Of the five rows' classes the fourth is unknown.
CLASSES = torch.tensor([0, 1, 0, -100, 1])


def rows(batch: dict[str, torch.Tensor], chosen: slice) -> dict[str, torch.Tensor]:
    """Some rows of a batch."""
    return {name: tensor[chosen] for name, tensor in batch.items()}


def gradients(model: TriemoForPreTraining) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def vector_model(width: int = 24, seed: int = 0, **fields) -> TriemoForPreTraining:
    """Text, voice and face as vectors."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    vectors = {f"{modality}_feature_size": width for modality in MODALITIES}
    return TriemoForPreTraining(TriemoConfig(**sizes, **vectors, **{"projection_dim": 24, **fields}))
