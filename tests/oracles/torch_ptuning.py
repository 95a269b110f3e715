"""P-tuning with a template in PyTorch, for which PEFT has no counterpart: the sequence is laid out row by row."""
import torch
from torch import nn

__all__ = ["TemplatedPTuning"]


class TemplatedPTuning(nn.Module):
    """Pseudo-tokens, encoded by nn.LSTM and an MLP, before each part of a row; parts end with `separator`.

    sizes: how many stand before each part, e.g. (2, 3) for context and target.
    """

    def __init__(self, model, sizes, separator, n):
        super().__init__()
        d = model.sizes.d_model
        self.model, self.sizes, self.separator = model, sizes, separator
        self.embedding = nn.Embedding(sum(sizes), d)
        self.lstm = nn.LSTM(d, n, num_layers=2, bidirectional=True, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(2 * n, 2 * n), nn.ReLU(), nn.Linear(2 * n, d))
        self.double()

    def pseudo_tokens(self):
        return self.mlp(self.lstm(self.embedding.weight[None])[0])[0]

    def forward(self, tokens):
        """tokens (B, T) → logits (B, T, V)."""
        return torch.stack([self.row(row) for row in tokens])

    def row(self, row):
        h, groups = self.model, list(self.pseudo_tokens().split(list(self.sizes)))
        line, due, before = list(groups.pop(0)), [], []                   # `before`: the place of every token
        for token in row:
            line += due
            due = []
            before.append(len(line))
            line.append(h.token_embedding.weight[int(token)])
            if token == self.separator and groups: due = list(groups.pop(0))
        line += due                                                       # the row ends with a separator
        x = torch.stack(line)[None] + h.position_embedding.weight[:len(line)]
        for block in h.blocks: x = block(x)
        predicts = [place - 1 for place in before[1:]] + [len(line) - 1]
        return h.final_norm(x)[0, predicts] @ h.token_embedding.weight.T

    def pairs(self, virtual):
        """[(parameter of tinypeft's module, ours)]"""
        encoder, out = virtual.encoder, [(virtual.embedding, self.embedding.weight)]
        for layer in (0, 1):
            for lstm, suffix in ((encoder.lstm.forwards[layer], ""), (encoder.lstm.backwards[layer], "_reverse")):
                out += [(getattr(lstm, name), getattr(self.lstm, f"{name}_l{layer}{suffix}"))
                        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        for linear, other in ((encoder.W1, self.mlp[0]), (encoder.W2, self.mlp[2])):
            out += [(linear.weight, other.weight), (linear.bias, other.bias)]
        return out
