"""AWQ in PyTorch, as its authors' repository (mit-han-lab/llm-awq, its branch for OPT) does it: what
`tinypeft.quant.awq` is measured against.

It is written anew from that code, with its decisions: scales are chosen on whole batches, by the outputs themselves and
not by H; ranges on about 512 tokens; weights are clipped to the range before they are rounded; steps are float32 and at
least 1e-5/(2ᵇ − 1), and a range need not contain 0.
"""
import torch

__all__ = ["awq", "clipped", "round_to_nearest", "search"]


def round_to_nearest(W, bits, group):
    """Ŵ, asymmetric in groups of `group` weights of a row."""
    w, top = W.reshape(-1, group), 2**bits - 1
    high, low = w.amax(1, keepdim=True), w.amin(1, keepdim=True)
    s = (high - low).clamp(min=1e-5) / top
    z = (-torch.round(low / s)).clamp(0, top)
    return ((torch.clamp(torch.round(w / s) + z, 0, top) - z) * s).reshape(W.shape)


def search(linears, x, module, bits, group):
    """The s (d_in,) of 20 that changes module(x) least when the weights of `linears` become Q(W s)/s."""
    exact, mean_abs, originals = module(x), x.abs().reshape(-1, x.shape[-1]).mean(0), [m.weight.data for m in linears]
    least, best = float("inf"), None
    for i in range(20):
        s = mean_abs.pow(i / 20).clamp(min=1e-4)
        s = s / (s.max() * s.min()).sqrt()
        for m, W in zip(linears, originals, strict=True): m.weight.data = round_to_nearest(W * s, bits, group) / s
        loss = (exact - module(x)).pow(2).mean().item()
        if loss < least: least, best = loss, s
    for m, W in zip(linears, originals, strict=True): m.weight.data = W
    return best


def clipped(W, x, bits, group, n_tokens=512):
    """W with the range of every group cut to the best of 1, 0.95, … 0.55 of it, as judged on x (n, d_in)."""
    x = x.reshape(-1, W.shape[1] // group, group)
    x = x[::max(1, len(x) // n_tokens)].transpose(0, 1)                  # (groups, tokens, group)
    w = W.reshape(len(W), -1, group).transpose(0, 1)                     # (groups, d_out, group)
    top = w.abs().amax(2, keepdim=True)
    exact, best, least = w @ x.mT, top.clone(), torch.full_like(top, 1e9)
    for i in range(10):
        edge = top * (1 - i / 20)
        q = round_to_nearest(torch.minimum(torch.maximum(w, -edge), edge), bits, group)
        error = (q @ x.mT - exact).pow(2).mean(2, keepdim=True)
        best, least = torch.where(error < least, edge, best), torch.minimum(error, least)
    return torch.minimum(torch.maximum(w, -best), best).transpose(0, 1).reshape(W.shape)


def input_of(linear, block, h):
    """What `linear` is given while `block` computes block(h)."""
    seen = []
    hook = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block(h)
    hook.remove()
    return seen[0]


@torch.no_grad()
def awq(model, tokens, bits, group):
    """Quantize the TorchGPT `model` in place, calibrated on tokens (B, T); every block sees the original ones before it."""
    tokens = torch.as_tensor(tokens).long()
    h = model.token_embedding(tokens) + model.position_embedding(torch.arange(tokens.shape[1]))
    for block in model.blocks:
        a, mlp, after = block.attention, block.mlp, block(h)
        x = {name: input_of(m, block, h) for name, m in
             (("query", a.query), ("output", a.output), ("up", mlp.up), ("down", mlp.down))}
        s = {"query": search([a.query, a.key, a.value], x["query"], a, bits, group),
             **{name: search([m], x[name], m, bits, group) for name, m in
                (("output", a.output), ("up", mlp.up), ("down", mlp.down))}}
        for source, readers, name in ((block.norm1, (a.query, a.key, a.value), "query"), (a.value, (a.output,), "output"),
                                      (block.norm2, (mlp.up,), "up")):
            source.weight.div_(s[name] if source is not a.value else s[name][:, None])
            source.bias.div_(s[name])
            for m in readers: m.weight.mul_(s[name])
        mlp.down.weight.mul_(s["down"])
        inputs = {a.value: "query", a.output: "output", mlp.up: "up", mlp.down: "down"}
        for m, name in inputs.items(): m.weight.copy_(clipped(m.weight, x[name] / s[name], bits, group))
        for m in (a.query, a.key, *inputs): m.weight.copy_(round_to_nearest(m.weight, bits, group))
        mlp.down.weight.div_(s["down"])                                  # its input is not divided here
        h = after
    return model
