"""Context over the utterances of a dialogue: what was said before (and after), and by whom.

Shape legend: B dialogues, N utterances, D hidden size, H heads, W utterances that one sees on each side.

Every context takes the states of utterances, which of them are there, and who speaks, and gives states that know of
one another. Speakers count only relative to the speaker of the utterance that looks: the same, another, or unknown. So
renaming them changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .configuration_triemo import TriemoConfig
from .layers_triemo import TriemoEncoderLayer

SAME, OTHER, UNKNOWN = 0, 1, 2  # who speaks, seen from another utterance
UNKNOWN_SPEAKER = -1
FARTHEST = 16  # utterances apart, beyond which distance no longer counts


@dataclass
class TriemoContextCache:
    """
    What a causal context keeps between pushes: of each layer the last W states that went in, who spoke them, and a
    recurrent layer's state. Its size does not grow with the dialogue.
    """

    states: dict[int, torch.Tensor] = field(default_factory=dict)  # by layer, (B, up to W, D)
    modalities: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # (B, up to W, D), (B, ...)
    speakers: torch.Tensor | None = None  # (B, up to W)
    recurrent: Any = None
    seen: int = 0  # utterances pushed so far


def relative_speakers(speakers: torch.Tensor) -> torch.Tensor:
    """Speaker ids (B, N), -1 unknown -> (B, N, N), SAME, OTHER or UNKNOWN, of utterance j seen from utterance i."""
    return _relation(speakers.unsqueeze(2), speakers.unsqueeze(1))


def since_before(speakers: torch.Tensor) -> torch.Tensor:
    """Speaker ids (B, N) -> (B, N), SAME, OTHER or UNKNOWN, of an utterance and the one before it."""
    return nn.functional.pad(_relation(speakers[:, :-1], speakers[:, 1:]), (1, 0), value=UNKNOWN)


def _relation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    relation = torch.where(first == second, SAME, OTHER)
    return torch.where((first == UNKNOWN_SPEAKER) | (second == UNKNOWN_SPEAKER), UNKNOWN, relation)


def visible_utterances(mask: torch.Tensor, causal: bool, window: int | None) -> torch.Tensor:
    """Mask (B, N) -> (B, N, N) bool, which utterance j is seen from i: itself always, so that no row is empty."""
    index = torch.arange(mask.shape[1], device=mask.device)
    distance = index.unsqueeze(0) - index.unsqueeze(1)  # j - i
    near = torch.ones_like(distance, dtype=torch.bool) if window is None else distance.abs() <= window
    if causal:
        near = near & (distance <= 0)
    return (near & mask.bool().unsqueeze(1)) | (distance == 0)


class TriemoTransformerContext(nn.Module):
    """
    Transformer layers whose attention has a learned bias for each head, speaker relation and distance, in place of
    absolute positions: a dialogue may be of any length.
    """

    def __init__(self, config: TriemoConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([TriemoEncoderLayer(config) for _ in range(config.context_layers)])
        self.bias = nn.Embedding(3 * (2 * FARTHEST + 1), config.num_attention_heads)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor, speakers: torch.Tensor, cache: TriemoContextCache | None = None
    ) -> torch.Tensor:
        """(B, N, D), (B, N), (B, N) -> (B, N, D)."""
        if cache is None:
            attention_mask = self.attention_mask(mask, speakers, states.dtype)
            for layer in self.layers:
                states = layer(states, attention_mask)
            return self.layer_norm(states)
        new = states.shape[1]
        for number, layer in enumerate(self.layers):
            kept = cache.states.get(number)
            states = states if kept is None else torch.cat([kept, states], dim=1)
            cache.states[number] = keep_last(states, self.config.context_window)
            here = speakers[:, -states.shape[1] :]
            states = layer(states, self.attention_mask(torch.ones_like(here), here, states.dtype))[:, -new:]
        return self.layer_norm(states)

    def attention_mask(self, mask: torch.Tensor, speakers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask (B, H, N, N): the bias where an utterance is seen, the smallest number where it is not."""
        index = torch.arange(mask.shape[1], device=mask.device)
        distance = (index.unsqueeze(0) - index.unsqueeze(1)).clamp(-FARTHEST, FARTHEST) + FARTHEST
        bias = self.bias(relative_speakers(speakers) * (2 * FARTHEST + 1) + distance).permute(0, 3, 1, 2)
        visible = visible_utterances(mask, self.config.context_causal, self.config.context_window).unsqueeze(1)
        return bias.to(dtype).masked_fill(~visible, torch.finfo(dtype).min)


class TriemoRecurrentContext(nn.Module):
    """
    A contextual LSTM over the utterances and attention over its states (Poria et al., 2017, "Context-dependent
    sentiment analysis in user-generated videos" and "Multi-level multiple attentions"):

        h = LSTM(x + speaker)        p_j = w . tanh(W_h h_j)        r_i = sum_j softmax_j(p_j) h_j
        out_i = tanh(W_p r_i + W_x h_i)

    Bidirectional, a second LSTM reads each dialogue from its end. The speaker enters as whether the one before was the
    same. Attention sees the utterances that config and mask allow.
    """

    def __init__(self, config: TriemoConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.speaker_embedding = nn.Embedding(3, width)
        directions = 1 if config.context_causal else 2
        self.lstms = nn.ModuleList(
            [nn.LSTM(width, width // directions, config.context_layers, batch_first=True) for _ in range(directions)]
        )
        self.key = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)
        self.summary_proj = nn.Linear(width, width, bias=False)
        self.state_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor, speakers: torch.Tensor, cache: TriemoContextCache | None = None
    ) -> torch.Tensor:
        """(B, N, D), (B, N), (B, N) -> (B, N, D)."""
        new = states.shape[1]
        inputs = self.dropout(states + self.speaker_embedding(since_before(speakers)[:, -new:]))
        forwards, recurrent = self.lstms[0](inputs, None if cache is None else cache.recurrent)
        hidden = forwards
        if len(self.lstms) == 2:
            # A row's valid utterances in reverse, its padding left where it is: padding never enters the LSTM first.
            index = torch.arange(new, device=mask.device)
            length = last_valid(mask)
            order = torch.where(index < length, length - 1 - index, index).unsqueeze(-1)
            # `take_along_dim` would fix the sizes of a traced graph.
            backwards, _ = self.lstms[1](inputs.gather(1, order.expand_as(inputs)))
            hidden = torch.cat([forwards, backwards.gather(1, order.expand_as(backwards))], dim=-1)
        if cache is not None:
            cache.recurrent = recurrent
            hidden = hidden if 0 not in cache.states else torch.cat([cache.states[0], hidden], dim=1)
            cache.states[0] = keep_last(hidden, self.config.context_window)
            mask = torch.ones(hidden.shape[:2], dtype=mask.dtype, device=mask.device)
        summary = torch.matmul(self.attention(hidden, mask), hidden)
        read = torch.tanh(self.summary_proj(summary) + self.state_proj(hidden))
        return self.layer_norm(states + self.dropout(read[:, -new:]))

    def attention(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Weights (B, N, N) of utterance j for utterance i."""
        scores = self.score(torch.tanh(self.key(hidden))).transpose(1, 2)
        visible = visible_utterances(mask, self.config.context_causal, self.config.context_window)
        scores = scores.expand_as(visible).masked_fill(~visible, torch.finfo(scores.dtype).min)
        return scores.softmax(-1)


class TriemoGraphContext(nn.Module):
    """
    Relational graph convolution over the utterances of a window (after DialogueGCN, Ghosal et al., 2019, with the
    relations made relative as in the conversation graphs of Shenoy and Sardana, 2020):

        a_ij = softmax_j( x_i . W_e x_j )
        g_i = relu( sum_r sum_{j in N_r(i)} a_ij / |N_r(i)| W_r x_j + a_ii W_0 x_i )
        out_i = relu( sum_{j in N(i)} W_n g_j / |N(i)| + W_s g_i )

    where r runs over speaker (same, other, unknown) and direction (past and, unless causal, future).
    """

    def __init__(self, config: TriemoConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.directions = 1 if config.context_causal else 2
        self.edge = nn.Linear(width, width, bias=False)
        self.relations = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(3 * self.directions)])
        self.self_relation = nn.Linear(width, width)
        self.neighbours = nn.Linear(width, width, bias=False)
        self.self_neighbour = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor, speakers: torch.Tensor, cache: TriemoContextCache | None = None
    ) -> torch.Tensor:
        """(B, N, D), (B, N), (B, N) -> (B, N, D)."""
        new, residual = states.shape[1], states
        if cache is None:
            nodes = self.relate(states, mask, speakers)
            seen = visible_utterances(mask, self.config.context_causal, self.config.context_window)
        else:
            states = states if 0 not in cache.states else torch.cat([cache.states[0], states], dim=1)
            cache.states[0] = keep_last(states, self.config.context_window)
            here = speakers[:, -states.shape[1] :]
            nodes = self.relate(states, torch.ones_like(here), here)[:, -new:]
            nodes = nodes if 1 not in cache.states else torch.cat([cache.states[1], nodes], dim=1)
            cache.states[1] = keep_last(nodes, self.config.context_window)
            there = torch.ones(nodes.shape[:2], dtype=mask.dtype, device=mask.device)
            seen = visible_utterances(there, self.config.context_causal, self.config.context_window)
        share = seen.to(nodes.dtype) / seen.sum(-1, keepdim=True).to(nodes.dtype)
        gathered = torch.matmul(share, self.neighbours(nodes)) + self.self_neighbour(nodes)
        read = self.out_proj(self.dropout(nn.functional.relu(gathered[:, -new:])))
        return self.layer_norm(residual + self.dropout(read))

    def relate(self, states: torch.Tensor, mask: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        """g of the formula, (B, N, D)."""
        weights, relation = self.attention(states, mask), relative_speakers(speakers)
        visible = visible_utterances(mask, self.config.context_causal, self.config.context_window)
        index = torch.arange(states.shape[1], device=states.device)
        distance = index.unsqueeze(0) - index.unsqueeze(1)
        gathered = weights.diagonal(dim1=1, dim2=2).unsqueeze(-1) * self.self_relation(states)
        for number, project in enumerate(self.relations):
            side = distance < 0 if number % self.directions == 0 else distance > 0
            edges = visible & side & (relation == number // self.directions)
            degree = edges.sum(-1, keepdim=True).clamp(min=1).to(states.dtype)
            gathered = gathered + torch.matmul(weights * edges.to(states.dtype) / degree, project(states))
        return nn.functional.relu(gathered)

    def attention(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Weights (B, N, N) of utterance j for utterance i, which sum to one over those that i sees."""
        scores = torch.matmul(states, self.edge(states).transpose(1, 2)) / states.shape[-1] ** 0.5
        visible = visible_utterances(mask, self.config.context_causal, self.config.context_window)
        return scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1)


CONTEXTS: dict[str, type] = {
    "transformer": TriemoTransformerContext,
    "recurrent": TriemoRecurrentContext,
    "graph": TriemoGraphContext,
}


class TriemoContext(nn.Module):
    """The context that `config.context_type` names; `none` leaves every utterance to itself."""

    def __init__(self, config: TriemoConfig):
        super().__init__()
        self.config = config
        self.encoder = None if config.context_type == "none" else CONTEXTS[config.context_type](config)

    def forward(self, states: torch.Tensor, mask: torch.Tensor, speakers: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            states: of utterances, (B, N, D).
            mask: (B, N), 1 where there is an utterance; padding stands at a dialogue's end.
            speakers: (B, N) ids within a dialogue, -1 or None where unknown. In training, a share of
                `speaker_dropout` of the dialogues loses them.

        Returns:
            (B, N, D), zeros at padding.
        """
        speakers = self.known_speakers(mask, speakers)
        if self.encoder is not None:
            states = self.encoder(states, mask, speakers)
        return states * mask.unsqueeze(-1).to(states.dtype)

    def push(self, states: torch.Tensor, speakers: torch.Tensor | None, cache: TriemoContextCache) -> torch.Tensor:
        """
        The next utterances of dialogues, (B, new, D), in a causal context: what `forward` gives for them, at a cost
        that does not grow with what was said before. `cache` is changed in place.

        Raises:
            ValueError: a context that sees the future, or sees back without an end.
        """
        if self.encoder is None:
            return states
        if not self.config.context_causal or self.config.context_window is None:
            raise ValueError(
                "push: needs context_causal=True and a context_window, got "
                f"context_causal={self.config.context_causal} and context_window={self.config.context_window}."
            )
        mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        speakers = self.known_speakers(mask, speakers)
        if cache.speakers is not None:
            speakers = torch.cat([cache.speakers, speakers], dim=1)
        cache.speakers = keep_last(speakers, self.config.context_window)
        cache.seen += states.shape[1]
        return self.encoder(states, mask, speakers, cache)

    def known_speakers(self, mask: torch.Tensor, speakers: torch.Tensor | None) -> torch.Tensor:
        """(B, N) int64; in training, of some dialogues none."""
        if speakers is None:
            return torch.full_like(mask, UNKNOWN_SPEAKER, dtype=torch.long)
        if self.training and self.config.speaker_dropout:
            lost = torch.rand(len(speakers), 1, device=speakers.device) < self.config.speaker_dropout
            return speakers.masked_fill(lost, UNKNOWN_SPEAKER)
        return speakers


def keep_last(values: torch.Tensor, window: int | None) -> torch.Tensor:
    """The last W steps along the second axis, or all."""
    return values if window is None else values[:, max(0, values.shape[1] - window) :]


def last_valid(mask: torch.Tensor) -> torch.Tensor:
    """Mask (B, N) -> (B, 1), one more than the index of the last valid step."""
    index = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask.to(torch.long) * index).amax(1, keepdim=True)


__all__ = [
    "UNKNOWN_SPEAKER",
    "TriemoContext",
    "TriemoContextCache",
    "TriemoGraphContext",
    "TriemoRecurrentContext",
    "TriemoTransformerContext",
    "relative_speakers",
    "visible_utterances",
]
