"""Any subset of modalities, exactly: batching, padding, order and the independence of unimodal embeddings."""

import pytest
import torch
from tiny_models import (
    KEYS,
    SUBSETS,
    all_inputs,
    audio_inputs,
    text_inputs,
    tiny_audio_config,
    tiny_config,
    tiny_model,
    vision_inputs,
)

from triemo.modeling import TriemoForEmotionClassification


def mixed_batch() -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """One padded batch of all seven subsets with different lengths, and each of its samples alone, unpadded."""
    batch = all_inputs(len(SUBSETS))
    valid = {
        "text": [7, 6, 5, 4, 3, 2, 7],
        "audio": [9, 61, 30, 7, 44, 60, 33],
        "vision": [3, 2, 1, 1, 3, 2, 3],
    }
    alone = []
    for row, subset in enumerate(SUBSETS):
        sample = {}
        for modality, keys in KEYS.items():
            steps = valid[modality][row] if modality in subset else 0
            batch[keys[1]][row] = (torch.arange(batch[keys[1]].shape[1]) < steps).long()
            if steps:
                sample.update({key: batch[key][row : row + 1, :steps] for key in keys})
        alone.append(sample)
    return batch, alone


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_seven_subsets_in_one_batch_give_the_logits_each_gets_alone(backend):
    model = tiny_model()
    model.set_attn_implementation(backend)
    batch, alone = mixed_batch()
    logits = model(**batch).logits
    singles = torch.cat([model(**sample).logits for sample in alone])
    assert (logits - singles).abs().max() < 1e-5
    assert torch.pdist(logits).min() > 1e-3  # the samples differ, so the equality says something


@pytest.mark.parametrize("weighted", [False, True])
def test_embeddings_and_attentions_alone_equal_those_in_the_batch(weighted):
    model = tiny_model(audio_config=tiny_audio_config(use_weighted_layer_sum=weighted, statistics_size=3 * weighted))
    batch, alone = mixed_batch()
    together = model(**batch, output_attentions=True)
    for row, sample in enumerate(alone):
        single = model(**sample, output_attentions=True)
        for name in ("text_embeds", "audio_embeds", "vision_embeds"):
            if getattr(single, name) is None:
                assert together[name][row].abs().max() == 0
            else:
                torch.testing.assert_close(together[name][row], single[name][0], atol=1e-5, rtol=1e-4)
        for pair, weights in (single.fusion_attentions or {}).items():
            steps = weights.shape[2:]
            got = together.fusion_attentions[pair][row, :, : steps[0], : steps[1]]
            torch.testing.assert_close(got, weights[0], atol=1e-5, rtol=1e-4)


def test_order_of_the_batch_does_not_matter():
    model = tiny_model()
    batch, _ = mixed_batch()
    order = torch.randperm(len(SUBSETS))
    shuffled = model(**{key: value[order] for key, value in batch.items()}).logits
    torch.testing.assert_close(shuffled, model(**batch).logits[order], atol=1e-5, rtol=1e-4)


def test_content_and_amount_of_padding_do_not_matter():
    model = tiny_model()
    batch, _ = mixed_batch()
    expected = model(**batch).logits
    for modality, (name, mask, *_) in KEYS.items():
        garbage = dict(batch)
        padding = torch.full((7, 10, *batch[name].shape[2:]), 3).to(batch[name].dtype)
        garbage[name] = torch.cat([batch[name].clone(), padding], dim=1)
        garbage[mask] = torch.nn.functional.pad(batch[mask], (0, 10))
        garbage[name][garbage[mask] == 0] = 5
        garbage.pop("video_times" if modality == "vision" else "", None)
        reference = dict(batch)
        reference.pop("video_times" if modality == "vision" else "", None)
        expected = model(**reference).logits
        assert (model(**garbage).logits - expected).abs().max() < 1e-5


def test_unimodal_embedding_does_not_move_when_another_modality_changes():
    model = tiny_model()
    first = {**text_inputs(), **audio_inputs(), **vision_inputs()}
    for modality, keys in KEYS.items():
        changed = {**all_inputs(), **{key: first[key] for key in keys}}
        before, after = model(**first), model(**changed)
        assert torch.equal(before[f"{modality}_embeds"], after[f"{modality}_embeds"])
        assert not torch.equal(before.logits, after.logits)
        torch.testing.assert_close(before[f"{modality}_embeds"].norm(dim=-1), torch.ones(2))


def test_get_features_are_the_embeddings_of_the_forward_pass():
    model = tiny_model().triemo
    inputs = all_inputs()
    outputs = model(**inputs)
    text = model.get_text_features(**{key: inputs[key] for key in KEYS["text"]})
    audio = model.get_audio_features(**{key: inputs[key] for key in KEYS["audio"]})
    vision = model.get_vision_features(pixel_values=inputs["pixel_values"])
    for output, name in ((text, "text_embeds"), (audio, "audio_embeds"), (vision, "vision_embeds")):
        torch.testing.assert_close(output.pooler_output, outputs[name])
    with pytest.raises(ValueError, match="get_audio_features got none of"):
        model.get_audio_features()


def test_modality_mask_says_who_has_what():
    batch, _ = mixed_batch()
    expected = torch.tensor([[m in subset for m in KEYS] for subset in SUBSETS])
    assert torch.equal(tiny_model()(**batch).modality_mask, expected)


def test_modality_dropout_drops_at_random_but_never_the_last_one():
    model = tiny_model(modality_dropout=0.5).train()
    batch, _ = mixed_batch()
    before = torch.tensor([[m in subset for m in KEYS] for subset in SUBSETS])
    masks = torch.stack([model(**batch).modality_mask for _ in range(60)])
    assert masks.any(-1).all()  # something always stays
    assert not (masks & ~before).any()  # nothing appears from nowhere
    dropped = 1 - masks[:, -1].float().mean(0)  # of the sample with all three
    assert ((dropped > 0.2) & (dropped < 0.7)).all()
    assert torch.equal(model.eval()(**batch).modality_mask, before)


def test_towers_run_only_on_present_rows_and_frames():
    model = tiny_model()
    seen = {}
    for modality in KEYS:
        encoder = model.triemo.tower(modality).encoder
        encoder.register_forward_pre_hook(
            lambda _, args, kwargs, m=modality: seen.__setitem__(m, len((*args, *kwargs.values())[0])),
            with_kwargs=True,
        )
    batch, _ = mixed_batch()
    model(**batch)
    assert seen == {"text": 4, "audio": 4, "vision": int(batch["video_attention_mask"].sum())}


def test_video_time_moves_the_prediction_and_equals_the_default_rate():
    model = tiny_model(video_frame_rate=5.0)
    inputs = {**audio_inputs(), **vision_inputs()}
    default = model(**{**inputs, "video_times": None}).logits
    same = model(**{**inputs, "video_times": torch.arange(3).expand(2, -1) / 5.0}).logits
    later = model(**{**inputs, "video_times": torch.arange(3).expand(2, -1) / 5.0 + 1.0}).logits
    torch.testing.assert_close(default, same)
    assert (default - later).abs().max() > 1e-4


def test_audio_and_vision_share_one_clock():
    model = tiny_model().triemo
    times = torch.tensor([[0.25, 1.2, 7.0]])
    zeros = {m: torch.zeros(1, 3, model.tower(m).width) for m in ("audio", "vision")}
    audio = model.audio_embedding(zeros["audio"], times) - model.audio_embedding.projection.bias
    vision = model.vision_embedding(zeros["vision"], times) - model.vision_embedding.projection.bias
    audio, vision = (
        audio - model.audio_embedding.type_embedding.weight,
        vision - model.vision_embedding.type_embedding.weight,
    )
    torch.testing.assert_close(audio, vision, atol=1e-5, rtol=1e-4)


def test_audio_steps_are_averaged_to_the_step_rate_with_their_times():
    config = tiny_config(audio_config=None, audio_feature_size=3, audio_frame_rate=50.0, audio_step_rate=10.0)
    tower = TriemoForEmotionClassification(config).triemo.audio_tower
    features = torch.arange(7.0).view(1, 7, 1).expand(2, 7, 3)
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
    output = tower.pool_steps(tower(features, mask))
    torch.testing.assert_close(output.states[0, :, 0], torch.tensor([2.0, 5.5]))  # mean of 0..4, of 5 and 6
    torch.testing.assert_close(output.states[1, :, 0], torch.tensor([1.0, 0.0]))  # mean of 0..2; no second step
    assert output.mask.tolist() == [[1, 1], [1, 0]]
    torch.testing.assert_close(output.times, torch.tensor([[0.04, 0.11], [0.02, 0.0]]))
