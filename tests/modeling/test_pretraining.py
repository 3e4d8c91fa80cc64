"""What masked tokens are predicted from, saving and loading, gradient caching, and what is refused."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_config, tiny_model
from tiny_pretraining import CLASSES, batch_of_five, gradients, pretraining_model, rows, vector_model
from transformers import AutoModel, AutoModelForPreTraining, BertModel

from triemo.modeling import TriemoConfig, TriemoForEmotionClassification, TriemoForPreTraining
from triemo.training.pretraining_trainer import cached_contrastive_step

PARTS = ("mlm_loss", "contrastive_loss", "text_audio_loss", "text_vision_loss", "audio_vision_loss", "frame_loss")


def test_the_loss_is_the_weighted_sum_of_its_parts_over_all_masked_tokens():
    model, batch = pretraining_model(mlm_weight=0.5, contrastive_weight=2.0, frame_weight=3.0), batch_of_five()
    output = model(**batch)
    expected = 0.5 * output.mlm_loss + 2 * output.contrastive_loss + 3 * output.frame_loss
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert output.mlm_logits.shape == (6, 99) and output.frame_errors.shape == (4 * 2 + 4,)
    targets = torch.tensor([7, 8, 9, 10, 11, 12])
    by_hand = -output.mlm_logits.log_softmax(-1)[torch.arange(6), targets].mean()
    assert output.mlm_loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert output.loss is output.to_tuple()[0]
    assert all(output[part].ndim == 0 and torch.isfinite(output[part]) for part in PARTS)


def test_every_parameter_that_can_be_trained_gets_a_gradient_and_fusion_is_frozen():
    model = pretraining_model(frame_weight=1.0)
    model(**batch_of_five()).loss.backward()
    missing = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert missing == set() and frozen == {"fusion"}


def test_the_ablation_hides_voice_and_face_from_the_masked_tokens():
    batch = batch_of_five()
    other = batch | {name: torch.randn_like(batch[name]) for name in ("input_features", "vision_features")}
    for sees in (True, False):
        model = pretraining_model(mlm_uses_joint_states=sees)
        assert torch.equal(model(**batch).mlm_logits, model(**other).mlm_logits) != sees
    texts = {name: batch[name] for name in ("input_ids", "attention_mask", "mlm_labels")}
    alone = model(**rows(texts, slice(0, 4)))
    torch.testing.assert_close(alone.mlm_logits, model(**batch).mlm_logits, atol=1e-5, rtol=1e-4)


def test_a_batch_of_mixed_rows_gives_each_masked_token_what_its_row_gives_alone():
    model, batch = pretraining_model(), batch_of_five()
    together = model(**batch).mlm_logits
    alone = [model(**rows(batch, slice(row, row + 1))).mlm_logits for row in (0, 2)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_hidden_steps_do_not_tell_what_they_were():
    model, batch = pretraining_model(frame_weight=1.0), batch_of_five()
    changed = batch | {"vision_features": batch["vision_features"].clone()}
    changed["vision_features"][:, 1] += torch.randn(5, 6)  # the step that is hidden
    assert torch.equal(model(**batch).mlm_logits, model(**changed).mlm_logits)
    assert (model(**batch).frame_errors - model(**changed).frame_errors).abs().max() > 1e-3
    drawn = {name: tensor for name, tensor in batch.items() if "step_mask" not in name}
    torch.manual_seed(1)
    first = model(**drawn)
    assert len(first.frame_errors) >= 8  # one a clip at least: four voices, four faces
    torch.manual_seed(1)
    assert torch.equal(model(**drawn).frame_errors, first.frame_errors)


def test_save_load_and_exchange_with_the_other_classes(tmp_path):
    model, batch = pretraining_model(), batch_of_five()
    model.save_pretrained(tmp_path / "pretrained")
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "pretrained").eval()
    assert type(loaded) is TriemoForPreTraining
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)
    assert loaded.mlm_head.decoder.weight is loaded.get_input_embeddings().weight
    assert not any(parameter.requires_grad for parameter in loaded.triemo.fusion.parameters())
    base, info = AutoModel.from_pretrained(tmp_path / "pretrained", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    options = {"output_loading_info": True, "allow_new_head": True}
    head, info = TriemoForEmotionClassification.from_pretrained(tmp_path / "pretrained", **options)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"} and not info["unexpected_keys"]
    assert all(parameter.requires_grad for parameter in head.parameters())
    tiny_model().save_pretrained(tmp_path / "classifier")
    again, info = TriemoForPreTraining.from_pretrained(tmp_path / "classifier", **options)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"mlm_head", "logit_scale"}
    assert again.logit_scale.weight.item() == pytest.approx(2.6592) and not info["unexpected_keys"]
    assert not any(parameter.requires_grad for parameter in again.triemo.fusion.parameters())


def test_the_token_head_follows_the_vocabulary_and_the_encoder_that_was_loaded():
    model = pretraining_model()
    model.resize_token_embeddings(120)
    assert model.mlm_head.decoder.weight is model.get_input_embeddings().weight
    batch = batch_of_five()
    batch["mlm_labels"][0, 1] = 119
    assert model(**batch).mlm_logits.shape == (6, 120)
    bert = BertModel(tiny_config().text_config, add_pooling_layer=False)
    composed = TriemoForPreTraining.from_encoders_pretrained(text=bert, hidden_size=32, num_attention_heads=4)
    assert torch.equal(composed.mlm_head.decoder.weight, bert.embeddings.word_embeddings.weight)
    untied = pretraining_model(tie_word_embeddings=False)
    assert untied.mlm_head.decoder.weight is not untied.get_input_embeddings().weight


def test_lora_trains_adapters_and_the_new_heads():
    targets = r".*\.(q|k|v|out)_proj"
    config = LoraConfig(r=2, target_modules=targets, modules_to_save=["logit_scale", "mlm_head"])
    peft = get_peft_model(pretraining_model(tie_word_embeddings=False), config)
    peft(**batch_of_five()).loss.backward()
    trained = {name for name, p in peft.named_parameters() if p.requires_grad}
    assert any("logit_scale.modules_to_save" in name for name in trained)
    assert any("mlm_head.modules_to_save" in name for name in trained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlm_labels": torch.full((5, 6), -100)}, r"mlm_labels must have shape \(5, 7\), got \(5, 6\)"),
        ({"mlm_labels": torch.full((5, 7), 99)}, "mlm_labels must be token ids from 0 to 98.*got 99"),
        ({"input_ids": None, "attention_mask": None}, "mlm_labels was passed without the input_ids"),
        ({"vision_step_mask": torch.zeros(5, 2)}, r"vision_step_mask must have shape \(5, 3\), got \(5, 2\)"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        pretraining_model(frame_weight=1.0)(**batch_of_five() | change)


def test_a_model_with_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="nothing to pretrain: this model has .'audio',."):
        TriemoForPreTraining(TriemoConfig(audio_feature_size=8))
    assert TriemoForPreTraining(TriemoConfig(audio_feature_size=8, frame_weight=1.0)).mlm_head is None
    assert vector_model().mlm_head is None
    assert TriemoForPreTraining(TriemoConfig(text_vocab_size=9)).logit_scale is None


# Gradient caching ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(2,), (1, 2, 4)])
def test_gradient_caching_gives_the_gradients_of_the_whole_batch(cuts):
    batch, found = {**batch_of_five(), "labels": CLASSES}, []
    bounds = [*zip((0, *cuts), (*cuts, 5), strict=True)]
    chunks = [rows(batch, slice(start, end)) for start, end in bounds]
    # The last row has no words: as a batch of its own it comes without the tensors.
    if bounds[-1] == (4, 5):
        chunks[-1] = {name: t for name, t in chunks[-1].items() if name not in ("input_ids", "mlm_labels")}
        del chunks[-1]["attention_mask"]
    for cached in (False, True):
        model = pretraining_model(frame_weight=1.0).train()
        if cached:
            losses = cached_contrastive_step(model, chunks)
        else:
            losses = model(**batch)
            losses.loss.backward()
        found.append(({part: losses[part].item() for part in ("loss", *PARTS)}, gradients(model)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert found[0][1].keys() == found[1][1].keys() and len(found[0][1]) > 90
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-5, rtol=1e-4)


def test_gradient_caching_replays_the_dropout_of_each_chunk():
    """One chunk, so that the whole batch's pass draws the same numbers."""
    batch, found = batch_of_five(), []
    for cached in (False, True):
        model = pretraining_model(hidden_dropout=0.3).train()
        torch.manual_seed(5)
        if cached:
            cached_contrastive_step(model, [batch])
        else:
            model(**batch).loss.backward()
        found.append(gradients(model))
        following = torch.rand(1)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)
    torch.manual_seed(5)
    with torch.no_grad():
        model(**batch)
    assert torch.equal(following, torch.rand(1))  # the second pass moves no random number of what follows
    with pytest.raises(ValueError, match="chunks: got none"):
        cached_contrastive_step(model, [])


# A corpus in which voice and face tell a word -------------------------------------------------------------------

FEELINGS = 6


def told_words(clips: int, seed: int) -> dict[str, torch.Tensor]:
    """Five chance words and, at a chance place, one of six that only voice and face tell; this one is masked."""
    draw = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(2, FEELINGS, 12, generator=torch.Generator().manual_seed(7))
    feeling = torch.randint(FEELINGS, (clips,), generator=draw)
    place, every = torch.randint(6, (clips,), generator=draw), torch.arange(clips)
    ids = torch.randint(10, 30, (clips, 6), generator=draw)
    labels = torch.full_like(ids, -100)
    ids[every, place], labels[every, place] = 1, 2 + feeling
    seen = [kind[feeling].unsqueeze(1) + torch.randn(clips, 3, 12, generator=draw) for kind in prototypes]
    return {"input_ids": ids, "mlm_labels": labels, "input_features": seen[0], "vision_features": seen[1]}


def learn_words(sees: bool) -> TriemoForPreTraining:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    towers = {"text_vocab_size": 30, "audio_feature_size": 12, "vision_feature_size": 12, "max_text_positions": 8}
    model = TriemoForPreTraining(
        TriemoConfig(**sizes, **towers, contrastive_weight=0.1, hidden_dropout=0.0, mlm_uses_joint_states=sees)
    ).train()
    train, draw = told_words(2048, seed=1), torch.Generator().manual_seed(2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        loss = model(**rows(train, torch.randint(2048, (64,), generator=draw))).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@torch.no_grad()
def test_matching_voice_and_face_lower_the_loss_of_masked_words():
    with torch.enable_grad():
        seeing, blind = learn_words(sees=True), learn_words(sees=False)
    held_out = told_words(512, seed=3)
    elsewhere = torch.randperm(512, generator=torch.Generator().manual_seed(4))
    mismatched = held_out | {name: held_out[name][elsewhere] for name in ("input_features", "vision_features")}
    chance = math.log(FEELINGS)  # 1.79
    assert seeing(**held_out).mlm_loss.item() < 0.3 * chance
    assert seeing(**mismatched).mlm_loss.item() > chance
    assert 0.95 * chance < blind(**held_out).mlm_loss.item() < 1.2 * chance


def test_a_few_steps_lower_every_part():
    model = pretraining_model(frame_weight=1.0).train()
    batch = batch_of_five()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(25):
        output = model(**batch)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        history.append([output[part].item() for part in ("mlm_loss", "contrastive_loss", "frame_loss")])
    assert all(last < 0.9 * first for first, last in zip(history[0], history[-1], strict=True)), history[-1]


def test_gradient_checkpointing_gives_the_same_gradients():
    found, batch = [], batch_of_five()
    for checkpointing in (False, True):
        model = pretraining_model().train()
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model(**batch).loss.backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)
