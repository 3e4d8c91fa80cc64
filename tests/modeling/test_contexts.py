"""Contexts over a dialogue: their formulas, what they may see, and who speaks."""

import numpy as np
import pytest
import torch

from triemo.modeling import TriemoConfig
from triemo.modeling.contexts_triemo import TriemoContext, TriemoContextCache, relative_speakers, visible_utterances

KINDS = ("transformer", "recurrent", "graph")
D, N = 8, 7


def context_of(kind: str, **fields) -> TriemoContext:
    config = TriemoConfig(
        text_feature_size=4, hidden_size=D, num_attention_heads=2, intermediate_size=16, context_type=kind, **fields
    )
    torch.manual_seed(1)
    context = TriemoContext(config).eval()
    for parameter in context.parameters():  # biases and embeddings too, so that nothing is zero by chance
        torch.nn.init.normal_(parameter, std=0.4)
    return context


def dialogues() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two dialogues of 7 and 4 utterances, states, mask and speakers."""
    torch.manual_seed(2)
    mask = torch.ones(2, N, dtype=torch.long)
    mask[1, 4:] = 0
    speakers = torch.tensor([[0, 1, 0, 2, 2, 1, -1], [5, 5, 7, 5, 0, 0, 0]])
    return torch.randn(2, N, D), mask, speakers


def test_relations_and_what_is_seen():
    relation = relative_speakers(torch.tensor([[3, 4, 3, -1]]))
    assert relation[0].tolist() == [[0, 1, 0, 2], [1, 0, 1, 2], [0, 1, 0, 2], [2, 2, 2, 2]]
    mask = torch.tensor([[1, 1, 1, 0]])
    seen = visible_utterances(mask, causal=True, window=1)[0].int().tolist()
    assert seen == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert visible_utterances(mask, causal=False, window=None)[0, 0].tolist() == [True, True, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_batch_and_names_of_speakers_change_nothing(kind):
    context = context_of(kind)
    states, mask, speakers = dialogues()
    together = context(states, mask, speakers)
    assert (together[1, 4:] == 0).all()
    alone = context(states[1:, :4], mask[1:, :4], speakers[1:, :4])
    torch.testing.assert_close(together[1:, :4], alone)
    filled = states.clone()
    filled[1, 4:] = 1e3
    torch.testing.assert_close(context(filled, mask, speakers)[1, :4], together[1, :4])
    renamed = torch.where(speakers < 0, speakers, 9 - speakers)
    assert torch.equal(context(states, mask, renamed), together)
    torch.testing.assert_close(context(states.flip(0), mask.flip(0), speakers.flip(0)).flip(0), together)


@pytest.mark.parametrize("kind", KINDS)
def test_who_spoke_matters(kind):
    context = context_of(kind)
    states, mask, speakers = dialogues()
    swapped = speakers.clone()
    swapped[0, :2] = torch.tensor([1, 0])
    changed = (context(states, mask, swapped) - context(states, mask, speakers))[0].abs().amax(-1)
    assert changed.max() > 1e-4
    unknown = context(states, mask, None)
    assert torch.equal(unknown, context(states, mask, torch.full_like(speakers, -1)))
    assert not torch.allclose(unknown, context(states, mask, speakers))


@pytest.mark.parametrize("kind", KINDS)
def test_causal_is_blind_to_what_comes(kind):
    """Bit for bit."""
    context = context_of(kind, context_causal=True)
    states, mask, speakers = dialogues()
    before = context(states, mask, speakers)
    for turn in range(1, N):
        later, said = states.clone(), speakers.clone()
        later[:, turn:], said[:, turn:] = 100.0, 3
        assert torch.equal(context(later, mask, said)[:, :turn], before[:, :turn])
    seeing = context_of(kind)
    assert not torch.equal(seeing(later, mask, said)[:, :-1], seeing(states, mask, speakers)[:, :-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, 3])
def test_pushing_equals_the_whole_dialogue(kind, step):
    """Also over a dialogue longer than the window, with a cache that stays small."""
    context = context_of(kind, context_causal=True, context_window=4)
    torch.manual_seed(3)
    states, speakers = torch.randn(2, 60, D), torch.randint(-1, 3, (2, 60))
    whole = context(states, torch.ones(2, 60, dtype=torch.long), speakers)
    cache, pushed = TriemoContextCache(), []
    for start in range(0, 60, step):
        part = slice(start, start + step)
        pushed.append(context.push(states[:, part], speakers[:, part], cache))
        assert all(kept.shape[1] <= 4 for kept in cache.states.values()) and cache.speakers.shape[1] <= 4
    torch.testing.assert_close(torch.cat(pushed, 1), whole, atol=1e-5, rtol=1e-5)
    assert cache.seen == 60


def test_push_needs_an_end_to_look_back_to():
    for fields in ({"context_causal": True}, {"context_window": 3}):
        context = context_of("graph", **fields)
        with pytest.raises(ValueError, match="push: needs context_causal=True and a context_window"):
            context.push(torch.zeros(1, 1, D), None, TriemoContextCache())


def test_none_leaves_utterances_alone():
    states, mask, speakers = dialogues()
    assert torch.equal(context_of("none")(states, mask, speakers), states * mask.unsqueeze(-1))


def test_speaker_dropout_hides_whole_dialogues_in_training_only():
    context = context_of("graph", speaker_dropout=1.0, hidden_dropout=0.0)
    states, mask, speakers = dialogues()
    assert torch.equal(context.train()(states, mask, speakers), context.eval()(states, mask, None))
    assert not torch.equal(context(states, mask, speakers), context(states, mask, None))


@pytest.mark.parametrize("fields", [{}, {"context_causal": True, "context_window": 2}])
def test_attention_sums_to_one_over_what_is_seen(fields):
    """Of every kind, and nothing of it falls on padding or beyond the window, whatever stands there."""
    states, mask, speakers = dialogues()
    states[1, 4:] = 1e3
    seen = visible_utterances(mask, fields.get("context_causal", False), fields.get("context_window"))
    transformer = context_of("transformer", **fields).encoder
    additive = transformer.attention_mask(mask, speakers, states.dtype)
    _, heads = transformer.layers[0].self_attn(states, additive, output_attentions=True)
    recurrent, graph = (context_of(kind, **fields).encoder for kind in ("recurrent", "graph"))
    for weights in (*heads.unbind(1), recurrent.attention(states, mask), graph.attention(states, mask)):
        there = mask.bool()
        torch.testing.assert_close(weights.sum(-1)[there], torch.ones(int(mask.sum())))
        assert (weights[~seen] == 0).all() and (weights[0][seen[0]] > 0).any()


# The formulas, once more ---------------------------------------------------------------------------------------------


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def normalised(values: np.ndarray, norm: torch.nn.LayerNorm) -> np.ndarray:
    centred = values - values.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def linear(layer: torch.nn.Linear, values: np.ndarray) -> np.ndarray:
    bias = 0.0 if layer.bias is None else layer.bias.detach().double().numpy()
    return values @ layer.weight.detach().double().numpy().T + bias


@pytest.mark.parametrize("causal", [False, True])
def test_graph_as_its_formula_says(causal):
    """Edge by edge in NumPy, with a window of 2."""
    context = context_of("graph", context_causal=causal, context_window=2)
    graph, (states, mask, speakers) = context.encoder, dialogues()
    got = context(states, mask, speakers)[0].detach().numpy()
    x, who = states[0].double().numpy(), speakers[0].tolist()

    def seen(i: int) -> list[int]:
        return [j for j in range(N) if abs(j - i) <= 2 and (j <= i or not causal)]

    directions = 1 if causal else 2
    nodes = []
    for i in range(N):
        scores = np.array([x[i] @ linear(graph.edge, x[j]) for j in seen(i)]) / D**0.5
        weights = dict(zip(seen(i), softmax(scores), strict=True))
        assert abs(sum(weights.values()) - 1) < 1e-12
        value = weights[i] * linear(graph.self_relation, x[i])
        edges: dict[int, list[int]] = {}
        for j in seen(i):
            if j != i:
                relation = 2 if -1 in (who[i], who[j]) else int(who[i] != who[j])
                edges.setdefault(relation * directions + int(j > i), []).append(j)
        for number, members in edges.items():
            for j in members:
                value = value + weights[j] / len(members) * linear(graph.relations[number], x[j])
        nodes.append(np.maximum(value, 0))
    nodes = np.stack(nodes)
    gathered = [
        np.mean([linear(graph.neighbours, nodes[j]) for j in seen(i)], 0) + linear(graph.self_neighbour, nodes[i])
        for i in range(N)
    ]
    expected = normalised(x + linear(graph.out_proj, np.maximum(gathered, 0)), graph.layer_norm)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_recurrent_step_by_step():
    """One LSTM cell after the other in NumPy, both ways, and the attention over them."""
    context = context_of("recurrent", context_layers=1)
    module, (states, mask, speakers) = context.encoder, dialogues()
    got = context(states, mask, speakers)[1, :4].detach().numpy()
    x, who = states[1, :4].double().numpy(), speakers[1, :4].tolist()
    embedding = module.speaker_embedding.weight.detach().double().numpy()
    relation = [2, *(int(a != b) for a, b in zip(who[:-1], who[1:], strict=True))]
    inputs = [value + embedding[r] for value, r in zip(x, relation, strict=True)]

    def run(lstm: torch.nn.LSTM, steps: list[np.ndarray]) -> list[np.ndarray]:
        sizes = {name: value.detach().double().numpy() for name, value in lstm.named_parameters()}
        hidden = cell = np.zeros(lstm.hidden_size)
        out = []
        for step in steps:
            gates = (
                sizes["weight_ih_l0"] @ step
                + sizes["bias_ih_l0"]
                + sizes["weight_hh_l0"] @ hidden
                + sizes["bias_hh_l0"]
            )
            i, f, g, o = np.split(gates, 4)
            sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            hidden = sigmoid(o) * np.tanh(cell)
            out.append(hidden)
        return out

    h = np.concatenate([run(module.lstms[0], inputs), run(module.lstms[1], inputs[::-1])[::-1]], axis=1)
    weights = softmax(linear(module.score, np.tanh(linear(module.key, h)))[:, 0])
    summary = np.tile(weights @ h, (4, 1))
    read = np.tanh(linear(module.summary_proj, summary) + linear(module.state_proj, h))
    np.testing.assert_allclose(got, normalised(x + read, module.layer_norm), atol=1e-5)
    sums = module.attention(torch.randn(2, N, D), mask).sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
