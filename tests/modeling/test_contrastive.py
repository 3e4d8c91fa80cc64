"""InfoNCE by hand, absent pairs, labels, the temperature, and learning what three modalities share."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_pretraining import PAIRS, batch_of_five, pretraining_model, rows, vector_model

from triemo.modeling import MODALITIES, TriemoConfig
from triemo.modeling.losses_triemo import contrastive_losses
from triemo.modeling.pretraining_triemo import TriemoLogitScale

CANDIDATES = 256


def unit(*rows_):
    return torch.nn.functional.normalize(torch.tensor(rows_, dtype=torch.float32), dim=-1)


TEXT = unit([1.0, 0.0], [0.0, 1.0], [1.0, 1.0])
AUDIO = unit([1.0, 0.2], [-0.3, 1.0], [1.0, -1.0])
VISION = unit([0.1, 1.0], [1.0, 0.0], [0.5, 1.0])


def config_of(modalities=MODALITIES, **fields):
    return TriemoConfig(**{f"{m}_feature_size": 4 for m in modalities}, **fields)


def by_hand(first, second, kept, scale, excluded=()):
    """Both directions in plain Python; `excluded` holds pairs (i, j) that are no negatives."""
    first, second = first.tolist(), second.tolist()

    def terms(queries, keys):
        for i in kept:
            similarity = {j: scale * sum(a * b for a, b in zip(queries[i], keys[j], strict=True)) for j in kept}
            total = sum(math.exp(value) for j, value in similarity.items() if (i, j) not in excluded)
            yield math.log(total) - similarity[i]

    return (sum(terms(first, second)) + sum(terms(second, first))) / (2 * len(kept))


def test_info_nce_equals_the_sum_written_out():
    embeds = {"text": TEXT, "audio": AUDIO, "vision": VISION}
    losses = contrastive_losses(embeds, torch.ones(3, 3).bool(), torch.tensor(5.0), config_of())
    expected = {f"{m}_{n}_loss": by_hand(embeds[m], embeds[n], (0, 1, 2), 5.0) for m, n in PAIRS}
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, abs=1e-5)
    assert losses["contrastive_loss"].item() == pytest.approx(sum(expected.values()) / 3, abs=1e-5)


def test_a_row_without_a_pair_is_neither_query_nor_negative():
    embeds = {"text": TEXT, "audio": AUDIO, "vision": VISION}
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 0]]).bool()
    losses = contrastive_losses(embeds, mask, torch.tensor(3.0), config_of())
    expected = by_hand(TEXT, AUDIO, (0, 2), 3.0)
    assert losses["text_audio_loss"].item() == pytest.approx(expected, abs=1e-5)
    assert losses["text_vision_loss"].item() == pytest.approx(0.0, abs=1e-6)  # one row alone has no negative
    assert losses["audio_vision_loss"].item() == 0.0
    # The pair that no row has does not count in the mean.
    assert losses["contrastive_loss"].item() == pytest.approx(expected / 2, abs=1e-5)


def test_rows_of_one_class_are_no_negatives_only_where_the_class_is_known():
    embeds, full = {"text": TEXT, "audio": AUDIO}, torch.tensor([[1, 1, 0]] * 3).bool()
    both = config_of(("text", "audio"))
    loss = contrastive_losses(embeds, full, torch.tensor(4.0), both, torch.tensor([1, 1, 0]))["text_audio_loss"]
    expected = by_hand(TEXT, AUDIO, (0, 1, 2), 4.0, excluded={(0, 1), (1, 0)})
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    plain = by_hand(TEXT, AUDIO, (0, 1, 2), 4.0)
    assert expected < plain - 1e-3
    unknown = contrastive_losses(embeds, full, torch.tensor(4.0), both, torch.tensor([-100, -100, 0]))
    assert unknown["text_audio_loss"].item() == pytest.approx(plain, abs=1e-5)
    without = contrastive_losses(embeds, full, torch.tensor(4.0), both)
    assert without["text_audio_loss"].item() == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("labels", [torch.zeros(2, dtype=torch.long), torch.zeros(3), torch.zeros(3, 7)])
def test_labels_that_do_not_fit(labels):
    with pytest.raises(ValueError, match=r"labels must be class ids of shape \(3,\)"):
        contrastive_losses({"text": TEXT}, torch.ones(3, 3).bool(), torch.tensor(1.0), config_of(("text",)), labels)


def test_the_temperature_stops_at_its_bound_and_can_come_back():
    scale = TriemoLogitScale(config_of())
    assert scale().item() == pytest.approx(1 / 0.07, rel=1e-4)
    with torch.no_grad():
        scale.weight.fill_(6.0)  # where an optimiser's step may have taken it
    assert scale().item() == pytest.approx(100, rel=1e-3)
    scale().backward()  # a loss that wants it lower
    assert scale.weight.grad.item() == pytest.approx(100, rel=1e-3)
    scale.weight.grad = None
    (-scale()).backward()  # one that wants it higher still
    assert scale.weight.grad.item() == 0.0


@pytest.mark.parametrize("field", ["logit_scale_init_value", "mlm_weight", "frame_weight"])
def test_config_fields_out_of_range_are_named(field):
    with pytest.raises((ValueError, StrictDataclassError), match=field):
        config_of(**{field: -1.0 if field != "logit_scale_init_value" else 5.0})


def test_text_embeddings_do_not_see_voice_or_face_and_come_from_the_unmasked_sentence():
    model, batch = pretraining_model(), batch_of_five()
    before = model(**batch)
    other = batch | {
        "input_features": torch.randn_like(batch["input_features"]) * 3,
        "vision_features": torch.randn_like(batch["vision_features"]) * 3,
    }
    after = model(**other)
    assert torch.equal(before.text_embeds, after.text_embeds)
    assert not torch.equal(before.mlm_logits, after.mlm_logits)
    assert (before.audio_embeds - after.audio_embeds).abs().max() > 1e-3
    original = torch.where(batch["mlm_labels"] == -100, batch["input_ids"], batch["mlm_labels"])
    plain = model.triemo.get_text_features(original, batch["attention_mask"]).pooler_output
    torch.testing.assert_close(before.text_embeds, plain, atol=1e-6, rtol=1e-5)
    texts = batch | {"input_ids": batch["input_ids"].clone()}
    texts["input_ids"][0, 6] += 1
    changed = model(**texts)
    assert torch.equal(before.audio_embeds, changed.audio_embeds)
    assert torch.equal(before.vision_embeds, changed.vision_embeds)


def test_pairs_that_are_all_absent_give_zero_and_finite_gradients():
    model, batch = pretraining_model(), batch_of_five()
    apart = {name: batch[name] for name in ("input_ids", "attention_mask", "input_features", "audio_attention_mask")}
    apart["attention_mask"] = torch.tensor([[1] * 7] * 2 + [[0] * 7] * 3)
    apart["audio_attention_mask"] = torch.tensor([[0] * 61] * 2 + [[1] * 61] * 3)
    output = model(**apart)
    assert [output[f"{m}_{n}_loss"].item() for m, n in PAIRS] == [0.0, 0.0, 0.0] and output.loss.item() == 0.0
    output.loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    alone = model(input_ids=batch["input_ids"][:1])
    assert alone.loss.item() == 0.0 and alone.audio_embeds is None


def test_a_mixed_batch_aligns_what_its_rows_have():
    """The pair losses of five rows that lack this or that equal those of the rows that have the pair, alone."""
    model, batch = pretraining_model(mlm_weight=0.0), batch_of_five()
    whole = model(**batch)
    kept = rows(batch, torch.tensor([0, 2, 3]))
    assert model(**kept).text_audio_loss.item() == pytest.approx(whole.text_audio_loss.item(), abs=1e-5)
    kept = rows(batch, torch.tensor([0, 2, 4]))
    assert model(**kept).audio_vision_loss.item() == pytest.approx(whole.audio_vision_loss.item(), abs=1e-5)


# A corpus whose modalities share a latent ---------------------------------------------------------------------


def shared_latent(clips: int, shuffled: bool, seed: int) -> dict[str, torch.Tensor]:
    """Three steps of vectors for each modality: a mixture of what all share, of what it has alone, and noise."""
    mixing = torch.Generator().manual_seed(99)
    mixtures = {m: torch.randn(2, 8, 24, generator=mixing) for m in MODALITIES}
    draw = torch.Generator().manual_seed(seed)
    shared, vectors = torch.randn(clips, 8, generator=draw), {}
    for m, (common, own) in mixtures.items():
        latent = shared[torch.randperm(clips, generator=draw)] if shuffled else shared
        clean = latent @ common + torch.randn(clips, 8, generator=draw) @ own
        vectors[m] = clean.unsqueeze(1) + 0.3 * torch.randn(clips, 3, 24, generator=draw)
    names = {"text": "text_features", "audio": "input_features", "vision": "vision_features"}
    return {names[m]: value for m, value in vectors.items()}


def recalls(model, inputs) -> dict[tuple[str, str], float]:
    with torch.no_grad():
        output = model.eval()(**inputs)
    truth = torch.arange(CANDIDATES)
    embeds = {m: output[f"{m}_embeds"] for m in MODALITIES}
    return {
        (m, n): ((embeds[m] @ embeds[n].T).argmax(1) == truth).float().mean().item()
        for m in MODALITIES
        for n in MODALITIES
        if m != n
    }


def align(shuffled: bool):
    model, train = vector_model(), shared_latent(2048, shuffled, seed=1)
    held_out = shared_latent(CANDIDATES, shuffled, seed=2)
    before, draw = recalls(model, held_out), torch.Generator().manual_seed(3)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(300):
        chosen = torch.randint(2048, (128,), generator=draw)
        loss = model(**rows(train, chosen)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return before, recalls(model, held_out), model


def test_alignment_finds_the_shared_latent_and_nothing_where_pairs_are_shuffled():
    before, after, _ = align(shuffled=False)
    assert len(after) == 6 and max(before.values()) < 0.05
    assert min(after.values()) >= 0.9, after
    _, chance, model = align(shuffled=True)
    # One in 256, and five are three standard deviations above it.
    assert max(chance.values()) < 0.03, chance
    assert max(recalls(model, shared_latent(CANDIDATES, False, seed=2)).values()) < 0.03
