"""GPTQ in PyTorch, as its paper's Algorithm 1 reads: what `tinypeft.quant.gptq` must equal, in codes and in time.

Right-looking, untransposed, H inverted, its Cholesky factor upper: none of tinypeft's rearrangements. `gptq_model` is the loop
over a model of the authors' repository: a block's layers are given its inputs, each has an H of its own, and the next block
is given what the quantized one computes.
"""
import torch

__all__ = ["gptq", "gptq_model"]


def grid(w, bits, symmetric):
    """Rows of w (n, g) → scale and zero point (n, 1), float32."""
    w = w.float()
    low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scale = (high - low) / (2**bits - 1)
    scale[scale == 0] = 1
    zero = torch.full_like(scale, 2**(bits - 1)) if symmetric else torch.round(-low / scale)
    return scale, zero


def gptq(W, H, bits=4, group_size=None, block_size=128, damping=0.01, symmetric=False, act_order=False):
    """W (d_out, d_in), H (d_in, d_in) → (codes, Ŵ). Corrections are made in the dtype of W, rounding in float32."""
    d = W.shape[1]
    W, H, group_size = W.clone(), H.clone(), group_size or d
    dead = H.diagonal() == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    order = torch.argsort(H.diagonal(), descending=True, stable=True) if act_order else torch.arange(d)
    W, H = W[:, order], H[order][:, order]
    H.diagonal().add_(damping * H.diagonal().mean())
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    Q, codes = torch.zeros_like(W), torch.zeros_like(W, dtype=torch.uint8)
    for i1 in range(0, d, block_size):
        i2 = min(i1 + block_size, d)
        block, E = W[:, i1:i2].clone(), torch.zeros_like(W[:, i1:i2])
        for j in range(i2 - i1):
            if (i1 + j) % group_size == 0:
                scale, zero = grid(W[:, i1 + j:i1 + j + group_size], bits, symmetric)
            w = block[:, j:j + 1]
            code = torch.clamp(torch.round(w.float() / scale) + zero, 0, 2**bits - 1)
            q = scale * (code - zero)
            Q[:, i1 + j:i1 + j + 1], codes[:, i1 + j:i1 + j + 1] = q, code.to(torch.uint8)
            E[:, j:j + 1] = (w - q) / U[i1 + j, i1 + j]
            block[:, j:] -= E[:, j:j + 1] @ U[i1 + j:i1 + j + 1, i1 + j:i2]
        W[:, i2:] -= E @ U[i1:i2, i2:]
    back = torch.argsort(order)
    return codes[:, back], Q[:, back]


@torch.no_grad()
def gptq_model(model, tokens, bits, group_size):
    """Quantize the TorchGPT `model` in place, calibrated on tokens (B, T)."""
    tokens = torch.as_tensor(tokens).long()
    h = model.token_embedding(tokens) + model.position_embedding(torch.arange(tokens.shape[1]))
    for block in model.blocks:
        linears, H = [m for m in block.modules() if isinstance(m, torch.nn.Linear)], {}

        def add(m, inputs, H=H):
            x = inputs[0].reshape(-1, inputs[0].shape[-1])
            H[m] = H.get(m, 0) + 2 / len(x) * x.T @ x
        hooks = [m.register_forward_pre_hook(add) for m in linears]
        block(h)
        for hook in hooks: hook.remove()
        for m in linears: m.weight.copy_(gptq(m.weight.data, H[m], bits, group_size)[1])
        h = block(h)
    return model
