"""The same GPT in PyTorch, written from PyTorch's own parts: what values, gradients and trajectories must equal.

Module names are tinypeft's and every projection is an nn.Linear, so that PEFT attaches to it as to any model:

    peft.get_peft_model(torch_copy(model), peft.LoraConfig(target_modules=["query", "value"]))
"""
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["TorchGPT", "named_grads", "torch_copy"]


class Attention(nn.Module):
    def __init__(self, d, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key, self.value, self.output = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x, prefix=None):
        B, T, d = x.shape
        q, k, v = (f(x).view(B, T, self.n_heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        if prefix is not None:                                             # (H, P, d_head) or (B, H, P, d_head)
            k, v = (torch.cat([p.expand(B, *p.shape[-3:]), t], dim=2) for p, t in zip(prefix, (k, v), strict=True))
        S = k.shape[2]
        seen = None if S == T else torch.ones(T, S, dtype=torch.bool).tril(S - T)
        o = F.scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None)  # None: PyTorch's fast path
        return self.output(o.transpose(1, 2).reshape(B, T, d))


class MLP(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(c.d_model, c.norm_eps) for _ in range(2))
        self.attention, self.mlp = Attention(c.d_model, c.n_heads), MLP(c.d_model)

    def forward(self, x, prefix=None):
        x = x + self.attention(self.norm1(x), prefix)
        return x + self.mlp(self.norm2(x))


class TorchGPT(nn.Module):
    """tinypeft's GPT without dropout. `sizes` is its GPTConfig (PEFT takes `config` for a transformers one)."""

    def __init__(self, sizes):
        super().__init__()
        c = self.sizes = sizes
        self.token_embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.position_embedding = nn.Embedding(c.context_length, c.d_model)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.final_norm = nn.LayerNorm(c.d_model, c.norm_eps)
        self.head = None

    def forward(self, tokens, prompt=None, prefix=None, prompt_at=None):
        """tokens (B, T) → logits (B, T, V); prompt (P, d) or (B, P, d), prefix [(K, V)] per layer as in tinypeft."""
        return self.hidden(tokens, prompt, prefix, prompt_at) @ self.token_embedding.weight.T

    def hidden(self, tokens, prompt=None, prefix=None, prompt_at=None):
        """As `forward`, but the final hidden states (B, T, d)."""
        tokens = torch.as_tensor(np.asarray(tokens)).long()
        x, B = self.token_embedding(tokens), len(tokens)
        read = torch.arange(x.shape[1]).expand(B, -1)                      # the place that predicts token t + 1
        if prompt is not None:
            P, d = prompt.shape[-2:]
            at = torch.arange(P) if prompt_at is None else torch.as_tensor(np.asarray(prompt_at)).long()
            at = at.expand(B, P)
            free = torch.ones(B, P + x.shape[1], dtype=torch.bool).scatter(1, at, False)
            real = free.nonzero()[:, 1].view(B, -1)                        # the places of tokens among all
            read = torch.cat([real[:, 1:], torch.full((B, 1), free.shape[1])], dim=1) - 1
            x = (torch.zeros(B, P + x.shape[1], d, dtype=x.dtype)
                 .scatter(1, at[..., None].expand(B, P, d), prompt.expand(B, P, d))
                 .scatter(1, real[..., None].expand_as(x), x))
        past = 0 if prefix is None else prefix[0][0].shape[-2]
        x = x + self.position_embedding(torch.arange(past, past + x.shape[1]))
        for i, block in enumerate(self.blocks):
            x = block(x, None if prefix is None else prefix[i])
        return self.final_norm(x).gather(1, read[..., None].expand(-1, -1, x.shape[-1]))

    def classify(self, tokens, lengths, **virtual):
        """Class logits (B, C) that `head` reads from the last token of each row."""
        last = torch.as_tensor(np.asarray(lengths)) - 1
        return self.head(self.hidden(tokens, **virtual)[torch.arange(len(tokens)), last])


def torch_copy(model, dtype=torch.float64):
    """A TorchGPT with the weights of `model`, a plain or quantized GPT of tinypeft. Nothing is shared."""
    copy = TorchGPT(model.config).to(dtype)
    if model.head is not None:
        copy.head = nn.Linear(model.head.d_in, model.head.d_out, dtype=dtype)
    with torch.no_grad():
        for path, module in copy.named_modules():
            for name, p in module.named_parameters(recurse=False):
                ours, is_matrix = model.get(path), isinstance(module, nn.Linear) and name == "weight"
                array = ours.dense_weight() if is_matrix else getattr(ours, name).data
                assert tuple(p.shape) == array.shape, f"{path}.{name}"     # copy_ would broadcast
                p.copy_(torch.as_tensor(np.array(array)))
    return copy


def named_grads(model):
    """name → gradient (ndarray), of every parameter that has one, of a torch module or of one of tinypeft's."""
    array = lambda g: np.array(g.numpy() if hasattr(g, "numpy") else g)
    return {name: array(p.grad) for name, p in model.named_parameters() if p.grad is not None}
