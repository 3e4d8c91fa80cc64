"""The fusion module against an independent NumPy computation of its formula."""

import itertools

import numpy as np
import pytest
import torch

from triemo.modeling import TriemoConfig, TriemoFusion

D, HEADS = 16, 4
LENGTHS = {"text": 5, "audio": 9, "vision": 3}


def make_fusion(**fields) -> TriemoFusion:
    sizes = {"text_feature_size": 4, "audio_feature_size": 4, "vision_feature_size": 4}
    config = TriemoConfig(hidden_size=D, num_attention_heads=HEADS, **sizes, **fields)
    config._attn_implementation = fields.get("attn_implementation", "sdpa")
    torch.manual_seed(1)
    return TriemoFusion(config).eval()


def numpy_attention(fusion: TriemoFusion, m: str, n: str, h_m: np.ndarray, h_n: np.ndarray) -> np.ndarray:
    """A_{m->n} V_n for one sample without padding, head by head, straight from the definition."""

    def project(name: str, modality: str, x: np.ndarray) -> np.ndarray:
        layer = getattr(fusion.projections[modality], name)
        return x @ layer.weight.detach().numpy().T.astype(np.float64) + layer.bias.detach().numpy()

    q, k, v = project("q_proj", m, h_m), project("k_proj", n, h_n), project("v_proj", n, h_n)
    d = D // HEADS
    heads = []
    for head in range(HEADS):
        columns = slice(head * d, (head + 1) * d)
        scores = q[:, columns] @ k[:, columns].T / np.sqrt(d)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        heads.append(weights / weights.sum(1, keepdims=True) @ v[:, columns])
    return np.concatenate(heads, axis=1)


def numpy_fusion(fusion: TriemoFusion, sample: dict[str, np.ndarray], aligned: bool) -> np.ndarray:
    """The whole formula for one sample, given only its valid steps."""
    pairs = list(itertools.permutations(sample, 2))
    total = 0.0
    for m, n in pairs:
        context = numpy_attention(fusion, m, n, sample[m], sample[n])
        total = total + (context if aligned else context.mean(0))
    total = total * (6 / len(pairs)) if pairs else total
    for state in sample.values():
        total = total + (state if aligned else state.mean(0))
    return total


def random_batch(lengths: dict[str, list[int]]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random states with garbage in the padding, and masks of the given valid lengths per sample."""
    states, masks = {}, {}
    for m, valid in lengths.items():
        steps = max(max(valid), 1) + 2
        states[m] = torch.randn(len(valid), steps, D)
        masks[m] = (torch.arange(steps) < torch.tensor(valid)[:, None]).long()
    return states, masks


def valid_sample(states, masks, row: int) -> dict[str, np.ndarray]:
    sample = {m: states[m][row][masks[m][row].bool()].double().numpy() for m in states}
    return {m: state for m, state in sample.items() if len(state)}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_clip_fusion_equals_the_formula_with_padding_and_absent_modalities(backend):
    fusion = make_fusion(attn_implementation=backend)
    lengths = {"text": [5, 2, 0, 4, 1], "audio": [9, 3, 7, 0, 0], "vision": [3, 1, 2, 2, 0]}
    states, masks = random_batch(lengths)
    fused, _ = fusion(states, masks)
    for row in range(5):
        expected = numpy_fusion(fusion, valid_sample(states, masks, row), aligned=False)
        np.testing.assert_allclose(fused[row].detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("pair", list(itertools.combinations(LENGTHS, 2)))
def test_single_pair_equals_the_formula(pair):
    fusion = make_fusion()
    states, masks = random_batch({m: [LENGTHS[m], LENGTHS[m] - 1] for m in pair})
    fused, _ = fusion(states, masks)
    for row in range(2):
        expected = numpy_fusion(fusion, valid_sample(states, masks, row), aligned=False)
        np.testing.assert_allclose(fused[row].detach().numpy(), expected, atol=1e-5)


def test_one_modality_alone_leaves_only_the_residual():
    fusion = make_fusion()
    states, masks = random_batch({"audio": [4, 6]})
    fused, _ = fusion(states, masks)
    torch.testing.assert_close(fused[0], states["audio"][0, :4].mean(0))


@pytest.mark.parametrize("modalities", [("text", "audio", "vision"), ("text", "vision")])
def test_step_aligned_fusion_equals_the_formula_step_by_step(modalities):
    fusion = make_fusion(step_aligned=True)
    states, masks = random_batch({m: [6, 3] for m in modalities})
    fused, _ = fusion(states, masks)
    for row, steps in enumerate((6, 3)):
        expected = numpy_fusion(fusion, valid_sample(states, masks, row), aligned=True)
        np.testing.assert_allclose(fused[row, :steps].detach().numpy(), expected, atol=1e-5)
        assert fused[row, steps:].abs().max() == 0


def test_step_aligned_step_without_a_modality_uses_the_pairs_that_step_has():
    fusion = make_fusion(step_aligned=True)
    states = {m: torch.randn(1, 4, D) for m in LENGTHS}
    masks = {m: torch.ones(1, 4, dtype=torch.long) for m in LENGTHS}
    masks["vision"][0, 2] = 0  # one utterance without a face
    fused, _ = fusion(states, masks)
    sample = {m: states[m][0].double().numpy() for m in LENGTHS}
    seen = {**sample, "vision": sample["vision"][[0, 1, 3]]}  # vision as others attend to it
    expected = sample["text"][2] + sample["audio"][2]
    directed = [("text", "audio"), ("text", "vision"), ("audio", "text"), ("audio", "vision")]
    for m, n in directed:  # vision asks nothing at this step
        expected = expected + 6 / len(directed) * numpy_attention(fusion, m, n, sample[m], seen[n])[2]
    np.testing.assert_allclose(fused[0, 2].detach().numpy(), expected, atol=1e-5)


def test_step_aligned_refuses_different_lengths():
    fusion = make_fusion(step_aligned=True)
    states, masks = random_batch({"text": [5], "audio": [6]})
    with pytest.raises(ValueError, match="same number of steps.*'text': 7.*'audio': 8"):
        fusion(states, masks)


def test_returned_attentions_are_the_six_directed_softmaxes():
    fusion = make_fusion()
    states, masks = random_batch({"text": [5, 2], "audio": [9, 0], "vision": [3, 1]})
    fused, attentions = fusion(states, masks, output_attentions=True)
    torch.testing.assert_close(fused, fusion(states, masks)[0], atol=1e-6, rtol=1e-5)
    assert set(attentions) == set(itertools.permutations(LENGTHS, 2))
    weights = attentions["text", "vision"]
    assert weights.shape == (2, HEADS, 7, 5)
    torch.testing.assert_close(weights[0, :, :5].sum(-1), torch.ones(HEADS, 5))
    assert weights[1, :, :2, 1:].abs().max() == 0  # the second sample has one frame
    assert attentions["text", "audio"][1].abs().max() == 0  # and no sound
