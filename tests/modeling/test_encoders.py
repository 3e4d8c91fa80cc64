"""Hugging Face encoders as towers: composed, padded, saved and reloaded."""

import pytest
import torch
from tiny_models import tiny_audio_config, tiny_text_config, tiny_vision_config
from transformers import (
    AutoModelForSequenceClassification,
    BertModel,
    CamembertConfig,
    CamembertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextV2Config,
    ConvNextV2Model,
    Dinov2Config,
    Dinov2Model,
    HubertConfig,
    HubertModel,
    IJepaConfig,
    MPNetConfig,
    MPNetModel,
    ResNetModel,
    RobertaConfig,
    RobertaModel,
    SegformerConfig,
    SwinConfig,
    SwinModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from triemo.modeling import TriemoConfig, TriemoForEmotionClassification, TriemoModel

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
JOINT = {**SIZES, "intermediate_size": 48, "projection_dim": 16, "num_labels": 7}
# feat_extract_norm="layer": the group norm of the oldest checkpoints runs over time and so over the padding.
WAVES = {
    "conv_dim": (8, 8, 8),
    "conv_kernel": (8, 4, 4),
    "conv_stride": (8, 4, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
WHISPER = {
    "num_mel_bins": 20,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
IMAGE = {"image_size": 32, "patch_size": 8}


def roberta_sizes() -> dict:
    return {**SIZES, "vocab_size": 99, "max_position_embeddings": 66, "pad_token_id": 1, "type_vocab_size": 1}


ENCODERS = {
    ("text", "bert"): lambda: BertModel(tiny_text_config()),
    ("text", "roberta"): lambda: RobertaModel(RobertaConfig(**roberta_sizes())),
    ("text", "xlm-roberta"): lambda: XLMRobertaModel(XLMRobertaConfig(**roberta_sizes())),
    ("text", "camembert"): lambda: CamembertModel(CamembertConfig(**roberta_sizes())),
    ("text", "mpnet"): lambda: MPNetModel(MPNetConfig(**SIZES, vocab_size=99, max_position_embeddings=66)),
    ("audio", "wav2vec2"): lambda: Wav2Vec2Model(Wav2Vec2Config(**SIZES, **WAVES)),
    ("audio", "hubert"): lambda: HubertModel(HubertConfig(**SIZES, **WAVES)),
    ("audio", "wavlm"): lambda: WavLMModel(WavLMConfig(**SIZES, **WAVES)),
    ("audio", "whisper"): lambda: WhisperModel(WhisperConfig(**WHISPER)),
    ("audio", "wav2vec2-bert"): lambda: Wav2Vec2BertModel(
        Wav2Vec2BertConfig(**SIZES, feature_projection_input_dim=20, conv_depthwise_kernel_size=5)
    ),
    ("vision", "resnet"): lambda: ResNetModel(tiny_vision_config()),
    ("vision", "vit"): lambda: ViTModel(ViTConfig(**SIZES, **IMAGE)),
    ("vision", "dinov2"): lambda: Dinov2Model(Dinov2Config(**SIZES, **IMAGE)),
    ("vision", "swin"): lambda: SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    ),
    ("vision", "clip_vision_model"): lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, **IMAGE, projection_dim=16)),
    ("vision", "convnextv2"): lambda: ConvNextV2Model(
        ConvNextV2Config(image_size=32, patch_size=4, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    ),
}


def inputs_for(modality: str, model_type: str, config) -> dict[str, torch.Tensor]:
    """A batch of two; the second sample is shorter, with garbage in its padding."""
    if modality == "text":
        ids = torch.randint(3, 99, (2, 9))
        ids[1, 5:] = config.pad_token_id
        return {"input_ids": ids, "attention_mask": (torch.arange(9) < torch.tensor([[9], [5]])).long()}
    if modality == "audio":
        if model_type in ("wav2vec2", "hubert", "wavlm"):
            values, steps, name = torch.randn(2, 8000), torch.tensor([[8000], [5120]]), "input_values"
        else:
            values, steps, name = torch.randn(2, 90, 20), torch.tensor([[90], [50]]), "input_features"
        mask = (torch.arange(values.shape[1]) < steps).long()
        # Waveform extractors pad with zeros, and these encoders' convolutions reach a little into the padding.
        padded = values * mask if values.dim() == 2 else values
        return {name: padded, "audio_attention_mask": mask}
    pixels = torch.randn(2, 3, getattr(config, "num_channels", 3), 32, 32)
    return {"pixel_values": pixels, "video_attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}


@pytest.mark.parametrize(("modality", "model_type"), list(ENCODERS), ids=lambda value: value)
def test_encoder_composes_runs_saves_and_reloads(tmp_path, modality, model_type):
    torch.manual_seed(0)
    encoder = ENCODERS[modality, model_type]().eval()
    encoder.save_pretrained(tmp_path / "encoder")
    model = TriemoForEmotionClassification.from_encoders_pretrained(**{modality: tmp_path / "encoder"}, **JOINT)
    tower = model.triemo.tower(modality).encoder
    reference = encoder.encoder if model_type == "whisper" else encoder
    weights = reference.state_dict()
    loaded = {name: value for name, value in tower.state_dict().items() if name in weights}
    assert len(loaded) > 10
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())
    assert not any("pooler.dense" in name for name, _ in model.named_parameters())  # nothing would train it

    inputs = inputs_for(modality, model_type, encoder.config)
    logits = model(**inputs).logits
    assert logits.shape == (2, 7) and torch.isfinite(logits).all()
    # The second sample alone, cut to its length, gives the same.
    mask = next(value for key, value in inputs.items() if key.endswith("mask"))
    steps = int(mask[1].sum())
    alone = model(**{key: value[1:, :steps] for key, value in inputs.items()}).logits
    assert (alone - logits[1:]).abs().max() < 1e-5
    assert (logits[0] - logits[1]).abs().max() > 1e-4

    model.save_pretrained(tmp_path / "model")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(again(**inputs).logits, logits, atol=1e-6, rtol=1e-5)


def test_all_parameters_get_a_gradient_from_the_encoders(tmp_path):
    encoders = {m: ENCODERS[key]() for m, key in (("text", ("text", "roberta")), ("vision", ("vision", "vit")))}
    model = TriemoForEmotionClassification.from_encoders_pretrained(**encoders, **JOINT).train()
    inputs = {**inputs_for("text", "roberta", encoders["text"].config), **inputs_for("vision", "vit", None)}
    model(**inputs, labels=torch.tensor([1, 2])).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    # The unimodal projections belong to contrastive learning, not to this loss.
    assert without == {"triemo.text_projection.weight", "triemo.vision_projection.weight"}


def test_half_of_a_two_tower_model_is_taken(tmp_path):
    text = CLIPTextConfig(**SIZES, vocab_size=99, projection_dim=16, max_position_embeddings=40)
    vision = CLIPVisionConfig(**SIZES, **IMAGE, projection_dim=16)
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)).eval()
    clip.save_pretrained(tmp_path)
    model = TriemoModel.from_encoders_pretrained(vision=tmp_path, **JOINT)
    assert model.config.vision_config.model_type == "clip_vision_model"
    pixels = torch.randn(2, 1, 3, 32, 32)
    expected = clip.vision_model(pixels[:, 0]).pooler_output
    torch.testing.assert_close(model.vision_tower.encode_frames(pixels[:, 0])[0], expected)


def test_an_encoder_decoder_is_refused(tmp_path):
    config = T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoder-decoder \\(t5\\); give an encoder"):
        TriemoModel.from_encoders_pretrained(text=tmp_path)


def test_text_positions_follow_the_tower():
    roberta = TriemoModel.from_encoders_pretrained(text=ENCODERS["text", "roberta"](), **JOINT)
    assert roberta.config.max_text_positions == 64  # 66 minus the two that RoBERTa's padding takes
    bert = TriemoModel.from_encoders_pretrained(text=ENCODERS["text", "bert"](), **JOINT)
    assert bert.config.max_text_positions == 64


def test_whisper_config_becomes_the_built_in_tower():
    config = TriemoConfig(audio_config=WhisperConfig(**WHISPER), **JOINT)
    assert config.audio_config.to_dict() == tiny_audio_config().to_dict() | {
        "dtype": config.audio_config.to_dict()["dtype"]
    }


def test_backend_falls_back_where_an_encoder_has_no_attention(tmp_path):
    model = TriemoForEmotionClassification.from_encoders_pretrained(
        text=ENCODERS["text", "bert"](), vision=ENCODERS["vision", "resnet"](), **JOINT
    )
    model.save_pretrained(tmp_path)
    for backend in ("eager", "sdpa"):
        loaded = TriemoForEmotionClassification.from_pretrained(tmp_path, attn_implementation=backend)
        assert loaded.config._attn_implementation == loaded.config.text_config._attn_implementation == backend
        assert loaded.config.vision_config._attn_implementation == "eager"


# What differs between families ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_positions_that_padding_takes_do_not_count(name):
    """RoBERTa's descendants: 66 positions minus two; one step more, and their tables are read past the end."""
    model = TriemoForEmotionClassification.from_encoders_pretrained(text=ENCODERS["text", name](), **JOINT)
    assert model.triemo.text_tower.max_positions == model.config.max_text_positions == 64
    assert torch.isfinite(model(input_ids=torch.randint(3, 99, (1, 64))).logits).all()
    with pytest.raises(ValueError, match="text has 65 steps, this model takes at most 64"):
        model(input_ids=torch.randint(3, 99, (1, 65)))


def test_swin_gives_the_mean_of_its_patches_and_no_corner():
    swin = ENCODERS["vision", "swin"]().eval()
    tower = TriemoModel.from_encoders_pretrained(vision=swin, **JOINT).vision_tower
    pixels = torch.randn(2, 3, 32, 32)
    expected = swin(pixels)
    torch.testing.assert_close(tower.encode_frames(pixels)[0], expected.pooler_output)
    torch.testing.assert_close(tower.encode_frames(pixels)[0], expected.last_hidden_state.mean(1))


@pytest.mark.parametrize("name", ["ijepa", "segformer"])
def test_an_encoder_in_which_nothing_stands_for_a_frame_is_refused(name):
    sizes = {**SIZES, **IMAGE}
    segments = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_attention_heads": [1, 2], "sr_ratios": [2, 1]}
    segments |= {"num_encoder_blocks": 2, "mlp_ratios": [2, 2], "strides": [4, 2], "patch_sizes": [7, 3]}
    config = IJepaConfig(**sizes) if name == "ijepa" else SegformerConfig(**segments)
    model = TriemoForEmotionClassification(TriemoConfig(vision_config=config, **JOINT))
    with pytest.raises(
        ValueError, match="vision: (IJepa|Segformer)Model has neither a pooled output nor a class token"
    ):
        model(pixel_values=torch.randn(1, 1, 3, 32, 32))


@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "wavlm"])
def test_every_layer_of_a_waveform_encoder_learns_at_every_step(name):
    """With LayerDrop, DDP would miss the gradients of the layers that were dropped."""
    encoder = ENCODERS["audio", name]()
    encoder.config.layerdrop = 0.9
    model = TriemoForEmotionClassification.from_encoders_pretrained(audio=encoder, **JOINT).train()
    assert model.config.audio_config.layerdrop == 0
    for step in range(3):
        model.zero_grad()
        values = torch.randn(2, 8000 if step else 200)  # three steps at first: fewer than SpecAugment hides
        model(input_values=values, labels=torch.tensor([0, 1])).loss.backward()
        without = {name for name, p in model.named_parameters() if p.grad is None}
        assert without == {"triemo.audio_projection.weight"}


def test_a_short_clip_is_seen_as_a_long_batch_would_see_it():
    """Padding for SpecAugment leaves the states alone; in evaluation there is none."""
    torch.manual_seed(0)
    encoder = ENCODERS["audio", "wav2vec2"]()
    tower = TriemoModel.from_encoders_pretrained(audio=encoder, **JOINT).audio_tower
    values, mask = torch.randn(1, 256), torch.ones(1, 256, dtype=torch.long)
    expected = tower(values, mask).states
    for module in tower.modules():
        module.train()
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config = tower.encoder.config
    config.hidden_dropout = config.attention_dropout = config.activation_dropout = 0.0
    for layer in tower.encoder.encoder.layers:
        layer.attention.dropout = 0.0
    got = tower(values, mask).states
    assert got.shape == expected.shape == (1, 3, 32)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
