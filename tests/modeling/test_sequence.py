"""One label for every utterance: vectors and clips, missing modalities, live and whole, through disk and peft."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForTokenClassification

from triemo.modeling import TriemoConfig, TriemoForEmotionSequence
from triemo.modeling.contexts_triemo import TriemoContextCache

WIDTHS = {"text_feature_size": 5, "audio_feature_size": 3, "vision_feature_size": 4}
KINDS = ("none", "transformer", "recurrent", "graph")


def tiny(kind: str = "transformer", **fields) -> TriemoForEmotionSequence:
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}
    settings |= {"step_aligned": True, "num_labels": 3, "context_type": kind} | WIDTHS | fields
    model = TriemoForEmotionSequence(TriemoConfig(**settings)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def vectors(dialogues: int = 2, turns: int = 6) -> dict[str, torch.Tensor]:
    """Of two dialogues the second is two turns shorter; single utterances lack words, voice or face."""
    torch.manual_seed(1)
    names = ("text_features", "input_features", "vision_features")
    masks = ("attention_mask", "audio_attention_mask", "video_attention_mask")
    inputs = {n: torch.randn(dialogues, turns, w) for n, w in zip(names, WIDTHS.values(), strict=True)}
    inputs |= {name: torch.ones(dialogues, turns, dtype=torch.long) for name in masks}
    for name in masks:
        inputs[name][1, turns - 2 :] = 0
    inputs["attention_mask"][0, 1] = 0
    inputs["audio_attention_mask"][0, 2:4] = 0
    inputs["video_attention_mask"][1, 0] = 0
    return inputs


def cut(inputs: dict[str, torch.Tensor], dialogue: slice, turns: slice) -> dict[str, torch.Tensor]:
    return {name: value[dialogue, turns] for name, value in inputs.items()}


SPEAKERS = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 0, 1, 0, -1, -1]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_dialogue_gives_what_it_gives_alone(kind):
    model, inputs = tiny(kind), vectors()
    with torch.inference_mode():
        together = model(**inputs, speakers=SPEAKERS)
        alone = model(**cut(inputs, slice(1, 2), slice(0, 4)), speakers=SPEAKERS[1:, :4])
    assert together.utterance_mask.tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    torch.testing.assert_close(together.logits[1:, :4], alone.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_masked_counts_for_nothing(kind):
    """Values under a mask of zero may be anything, and a modality that nobody has need not be passed."""
    model, inputs = tiny(kind), vectors()
    inputs["video_attention_mask"][:] = 0
    with torch.inference_mode():
        expected = model(**inputs, speakers=SPEAKERS).logits
        filled = dict(inputs, text_features=inputs["text_features"].clone())
        filled["text_features"][0, 1] = 50.0
        torch.testing.assert_close(model(**filled, speakers=SPEAKERS).logits[0], expected[0])
        left = {n: v for n, v in inputs.items() if n not in ("vision_features", "video_attention_mask")}
        torch.testing.assert_close(model(**left, speakers=SPEAKERS).logits, expected)


def test_what_a_process_lacks_and_others_have_changes_nothing(monkeypatch):
    """With several processes each runs all modalities, in their order, whichever its own dialogues have."""
    model, inputs = tiny(), vectors()
    voices = {name: inputs[name][:1] for name in ("input_features", "audio_attention_mask")}
    voices["audio_attention_mask"] = torch.ones_like(voices["audio_attention_mask"])
    with torch.inference_mode():
        alone = model(**voices).logits
        monkeypatch.setattr("triemo.modeling.sequence_triemo.is_distributed", lambda: True)
        torch.testing.assert_close(model(**voices).logits, alone)


def test_an_utterance_without_anything_is_named():
    inputs = vectors()
    for name in ("attention_mask", "audio_attention_mask", "video_attention_mask"):
        inputs[name][0, 2] = 0
    with pytest.raises(ValueError, match="utterance 2 of dialogue 0 has no modality"):
        tiny()(**inputs)
    for name in ("attention_mask", "audio_attention_mask", "video_attention_mask"):
        inputs[name][0] = 0
    with pytest.raises(ValueError, match=r"dialogues \[0\] of the batch have no utterance"):
        tiny()(**inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_an_utterance_without_anything_is_context_when_asked(kind):
    """It has a place and a speaker, whatever its vectors are; pushed it gives the same; alone it is no error."""
    model, inputs = tiny(kind, context_causal=True, context_window=3), cut(vectors(), slice(0, 1), slice(0, 6))
    for name in ("attention_mask", "audio_attention_mask", "video_attention_mask"):
        inputs[name][0, 2] = 0
    there, speakers = torch.ones(1, 6, dtype=torch.long), SPEAKERS[:1]
    with torch.inference_mode():
        whole = model(**inputs, speakers=speakers, utterance_mask=there).logits
        filled = {name: value.clone() for name, value in inputs.items()}
        filled["text_features"][0, 2] = 7.0
        assert torch.equal(model(**filled, speakers=speakers, utterance_mask=there).logits, whole)
        without = {name: value[:, [0, 1, 3, 4, 5]] for name, value in inputs.items()}
        left_out = model(**without, speakers=speakers[:, [0, 1, 3, 4, 5]]).logits
        cache = TriemoContextCache()
        turns = [
            model.push(cache, speakers[:, t : t + 1], there[:, :1], **cut(inputs, slice(0, 1), slice(t, t + 1)))
            for t in range(6)
        ]
    assert whole.isfinite().all()
    torch.testing.assert_close(torch.cat(turns, 1), whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(whole[:, :2], left_out[:, :2])
    if kind != "none":
        assert not torch.allclose(whole[:, 3], left_out[:, 2])
    for wrong in ([1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0]):
        with pytest.raises(ValueError, match="utterance_mask: dialogue 0 has an utterance"):
            model(**inputs, utterance_mask=torch.tensor([wrong]))


@pytest.mark.parametrize("kind", KINDS)
def test_causal_whole_and_pushed(kind):
    """Later turns leave earlier answers bit-identical, and turn by turn gives the whole dialogue's answers."""
    model = tiny(kind, context_causal=True, context_window=2)
    inputs = cut(vectors(), slice(0, 1), slice(0, 6))
    with torch.inference_mode():
        whole = model(**inputs, speakers=SPEAKERS[:1]).logits
        later = {name: value.clone() for name, value in inputs.items()}
        later["text_features"][:, 4:] = 9.0
        later["audio_attention_mask"][:, 4:] = 0
        assert torch.equal(model(**later, speakers=SPEAKERS[:1]).logits[:, :4], whole[:, :4])
        cache = TriemoContextCache()
        turns = [
            model.push(cache, SPEAKERS[:1, t : t + 1], **cut(inputs, slice(0, 1), slice(t, t + 1))) for t in range(6)
        ]
    torch.testing.assert_close(torch.cat(turns, 1), whole, atol=1e-5, rtol=1e-5)
    assert all(state.shape[1] == 2 for state, _ in cache.modalities.values())
    with pytest.raises(ValueError, match="push: needs context_causal=True"):
        tiny(kind).push(TriemoContextCache(), **cut(inputs, slice(0, 1), slice(0, 1)))


def test_loss_leaves_out_what_has_no_label_and_everything_learns():
    model, inputs = tiny().train(), vectors()
    labels = torch.tensor([[0, 1, 2, -100, 0, 1], [2, 2, -100, 1, -100, -100]])
    outputs = model(**inputs, speakers=SPEAKERS, labels=labels)
    known = labels != -100
    expected = torch.nn.functional.cross_entropy(outputs.logits[known], labels[known])
    torch.testing.assert_close(outputs.loss, expected)
    outputs.loss.backward()
    unread = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unread == {f"triemo.{m}_projection.weight" for m in ("text", "audio", "vision")}  # for retrieval only


@pytest.mark.parametrize("kind", KINDS)
def test_through_the_disk_by_the_auto_class(kind, tmp_path):
    model, inputs = tiny(kind), vectors()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert type(loaded) is TriemoForEmotionSequence and loaded.config.context_type == kind
    with torch.inference_mode():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_clips_are_put_together_by_index():
    """The same vectors as clips of one step each: as without a context the utterances alone."""
    vectors_of = vectors()
    model = tiny("none", step_aligned=False)
    flat = {name: value.flatten(0, 1)[:10].unsqueeze(1) for name, value in vectors_of.items()}
    flat = {name: value[:10] for name, value in flat.items()}
    index = torch.tensor([[3, 0, 5, 9], [7, 4, -1, -1]])
    with torch.inference_mode():
        outputs = model(**flat, utterance_index=index)
        alone = model(**{name: value[3:4] for name, value in flat.items()})
    assert outputs.utterance_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    torch.testing.assert_close(outputs.logits[0, 0], alone.logits[0, 0])
    with torch.inference_mode():
        states = model.encode_clips(**flat)[index.clamp(min=0)]
        again = model(clip_states=states, utterance_mask=outputs.utterance_mask)
    torch.testing.assert_close(again.logits, outputs.logits)
    with pytest.raises(ValueError, match="clip_states is for clips; this model takes step-aligned vectors"):
        tiny()(clip_states=states, **vectors_of)
    with pytest.raises(ValueError, match="utterance_index must be from -1 to 9, got up to 10"):
        model(**flat, utterance_index=index + 1)


def test_lora_reaches_the_context():
    model = get_peft_model(
        tiny(), LoraConfig(r=2, target_modules=r".*context.*\.(q|v)_proj", modules_to_save=["classifier"])
    )
    trained = {name.split(".lora")[0] for name, p in model.named_parameters() if p.requires_grad and "lora" in name}
    assert len(trained) == 4  # two layers, two projections each
    inputs = vectors()
    labels = torch.zeros(2, 6, dtype=torch.long)
    model(**inputs, speakers=SPEAKERS, labels=labels).loss.backward()
