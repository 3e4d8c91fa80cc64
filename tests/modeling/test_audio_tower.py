"""The built-in audio tower against Whisper's encoder, and its independence of padding."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_models import tiny_audio_config
from transformers import WhisperConfig, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder, sinusoids

from triemo.modeling import TriemoAudioModel
from triemo.modeling.audio_tower_triemo import statistics_pooling, voiced_steps


def tiny_whisper_config() -> WhisperConfig:
    sizes = {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 60}
    layers = {"encoder_layers": 3, "decoder_layers": 1, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    return WhisperConfig(
        num_mel_bins=20, suppress_tokens=None, begin_suppress_tokens=None, **sizes, **layers, **tokens
    )


def randomised(model):
    """Weights far from their tiny initial scale, norms and biases included."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_equals_whisper_encoder_on_thirty_seconds(backend):
    encoder = randomised(WhisperEncoder(tiny_whisper_config()))
    tower = TriemoAudioModel.from_whisper_encoder(encoder).eval()
    tower.set_attn_implementation(backend)
    frames = torch.randn(2, 20, 3000)
    expected = encoder(frames, output_hidden_states=True)
    got = tower(frames.transpose(1, 2), output_hidden_states=True)
    assert got.last_hidden_state.shape == (2, 1500, 32)
    assert (got.last_hidden_state - expected.last_hidden_state).abs().max() < 1e-3
    # Whisper reports the normalised state as its last one.
    for ours, theirs in zip(got.hidden_states[:-1], expected.hidden_states[:-1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["whole model", "encoder half"])
def test_weights_load_from_a_whisper_folder(tmp_path, layout):
    whisper = randomised(WhisperModel(tiny_whisper_config()))
    (whisper if layout == "whole model" else whisper.encoder).save_pretrained(tmp_path)
    tower = TriemoAudioModel.from_whisper(str(tmp_path), use_weighted_layer_sum=False).eval()
    frames = torch.randn(1, 20, 3000)
    expected = whisper.encoder(frames).last_hidden_state
    assert (tower(frames.transpose(1, 2)).last_hidden_state - expected).abs().max() < 1e-3


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    from safetensors.torch import save_file

    WhisperEncoder(tiny_whisper_config()).save_pretrained(tmp_path)
    save_file({"conv1.bias": torch.zeros(32)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights of a Whisper encoder"):
        TriemoAudioModel.from_whisper(str(tmp_path))


@pytest.mark.parametrize("length", [1, 2, 9, 60])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("pooling", [{}, {"statistics_size": 4}])
def test_padding_does_not_move_a_clip(length, backend, pooling):
    tower = randomised(TriemoAudioModel(tiny_audio_config(**pooling)))
    tower.set_attn_implementation(backend)
    frames = torch.randn(2, 75, 20)  # the padding is garbage, not zeros
    mask = torch.ones(2, 75, dtype=torch.long)
    mask[0, length:] = 0
    alone = tower(frames[:1, :length]).last_hidden_state
    together = tower(frames, mask).last_hidden_state[:1, : alone.shape[1]]
    assert alone.shape[1] == (length + 1) // 2 == int(tower.output_mask(mask)[0].sum())
    assert (alone - together).abs().max() < 1e-5


def test_takes_a_clip_longer_than_whispers_window():
    tower = TriemoAudioModel(tiny_audio_config()).eval()
    assert tower(torch.randn(1, 3301, 20)).last_hidden_state.shape == (1, 1651, 32)


def test_weighted_layer_sum_is_the_normalised_average_of_the_layers():
    tower = randomised(TriemoAudioModel(tiny_audio_config(use_weighted_layer_sum=True)))
    with torch.no_grad():
        tower.layer_weights.copy_(torch.tensor([0.0, 1.0986123]))  # softmax: 1/4, 3/4
    output = tower(torch.randn(1, 30, 20), output_hidden_states=True)
    mixed = 0.25 * output.hidden_states[1] + 0.75 * output.hidden_states[2]
    torch.testing.assert_close(output.last_hidden_state, tower.layer_norm(mixed), atol=1e-5, rtol=1e-4)


def test_statistics_are_of_the_voiced_steps_of_every_layer_and_added_to_every_step():
    tower = randomised(TriemoAudioModel(tiny_audio_config(statistics_size=4)))
    frames = torch.rand(1, 40, 20)
    frames[:, 10:30] += 5.0
    mask = torch.ones(1, 40, dtype=torch.long)
    assert voiced_steps(frames, mask)[0].nonzero().squeeze(1).tolist() == list(range(5, 15))
    output = tower(frames, output_hidden_states=True)
    parts = [layer[0, 5:15] for layer in output.hidden_states[1:]]
    expected = torch.cat([value for part in parts for value in (part.mean(0), part.std(0, unbiased=False))])
    given = statistics_pooling(output.hidden_states[1:], voiced_steps(frames, mask))
    torch.testing.assert_close(given[0], expected, atol=1e-4, rtol=1e-4)
    statistics, tower.statistics = tower.statistics, None
    added = output.last_hidden_state - tower(frames).last_hidden_state
    whole = statistics.expand(statistics.reduce(expected * statistics.scale + statistics.shift))
    torch.testing.assert_close(added[0], whole.expand(20, -1), atol=1e-3, rtol=1e-3)


def test_a_mask_without_any_step_gives_finite_statistics():
    tower = randomised(TriemoAudioModel(tiny_audio_config(statistics_size=4)))
    frames, mask = torch.randn(2, 30, 20), torch.ones(2, 30, dtype=torch.long)
    mask[1] = 0
    assert voiced_steps(frames, mask)[1].sum() == 0
    pooled = statistics_pooling((torch.randn(2, 15, 32),), voiced_steps(frames, mask))
    assert torch.isfinite(pooled).all()
    assert torch.isfinite(tower(frames, mask).last_hidden_state[0]).all()


def test_statistics_of_a_negative_size_are_refused():
    with pytest.raises(StrictDataclassError, match=r"'statistics_size'\s*:\s*ValueError: .* equal to 0, got -1"):
        tiny_audio_config(statistics_size=-1)


def test_released_whisper_weights(data_root):
    """The encoder of whisper-tiny.en itself, where its folder is at hand."""
    folder = data_root.parent / "weights" / "whisper-tiny.en-encoder"
    if not folder.is_dir():
        pytest.skip(f"no Whisper encoder at {folder}")
    encoder = WhisperEncoder.from_pretrained(folder, dtype=torch.float32).eval()
    # A folder stored in half precision holds the position table rounded to it; the table is a formula, here exact.
    with torch.no_grad():
        encoder.embed_positions.weight.copy_(sinusoids(1500, 384))
    tower = TriemoAudioModel.from_whisper(str(folder)).eval()
    frames = torch.randn(1, 80, 3000)
    with torch.inference_mode():
        difference = tower(frames.transpose(1, 2)).last_hidden_state - encoder(frames).last_hidden_state
    assert difference.abs().max() < 1e-3
