"""What virtual tokens do: how much attention goes to a trained prefix, and how far trained prompts are from words."""
import numpy as np

from ...peft import PrefixTuning, PromptTuning
from ...tensor import concatenate, no_grad
from ..experiment import Experiment
from ..tuning import attach, domain, fine_tune, pretrained, test_loss


def attention(tuned, tokens):
    """The attention of tokens (B, T) to a prefix of P and to each other: (L, B, H, T, P + T)."""
    model, prefix, found = tuned.model, tuned.virtual.seams(tokens)["prefix"], []
    B, T = tokens.shape
    with no_grad():
        P = prefix[0][0].shape[-2]
        h = model.token_embedding(tokens) + model.position_embedding(np.arange(P, P + T))
        for block, (K, V) in zip(model.blocks, prefix, strict=True):
            a, x = block.attention, block.norm1(h)
            q, k = (layer(x).reshape(B, T, a.n_heads, -1).transpose(0, 2, 1, 3) for layer in (a.query, a.key))
            scores = (q @ concatenate([K + np.zeros((B, 1, 1, 1)), k], axis=2).transpose(0, 1, 3, 2)).data / q.shape[-1] ** 0.5
            scores = np.where(np.tri(T, P + T, P, dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            found.append(weights / weights.sum(-1, keepdims=True))
            h = block(h, (K, V))
    return np.stack(found)


def nearest(model, vectors):
    """For each of the vectors (P, d) the token with the largest cosine, as text, and that cosine."""
    E = model.token_embedding.weight.data
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    cosine = unit(vectors) @ unit(E).T                                       # (P, V)
    best = cosine.argmax(1)
    return [model.tokenizer.decode([i]) for i in best], cosine[np.arange(len(best)), best]


def measure(condition, seed, settings):
    """prefix: the share of attention that goes to it, by layer, before and after training. prompt: the cosine of each of its
    vectors with the nearest token and the token, and how far it has moved, ‖P − P₀‖/‖P₀‖, by vector."""
    method = {"prefix": PrefixTuning(length=settings["prefix"]), "prompt": PromptTuning(length=settings["prompt"])}[condition]
    fresh, (tuned, _) = attach(pretrained(), method, rng=seed), fine_tune(method, seed, settings)
    found = {"loss": test_loss(tuned)}
    if condition == "prompt":
        before, after = fresh.virtual.P_e.data, tuned.virtual.P_e.data
        words, cosine = nearest(tuned.model, after)
        moved = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
        return found | {"words": words, "started": nearest(tuned.model, before)[0], "cosine": cosine, "moved": moved}
    tokens = domain().batch("test", settings["rows"], np.random.default_rng([seed, 5]))[0]
    P, start, end = settings["prefix"], *(attention(t.eval(), tokens) for t in (fresh, tuned))
    share = lambda a: a[..., :P].sum(-1).mean((1, 2, 3))
    found |= {"share_before": share(start), "share": share(end)}
    if seed == 0:                                        # one window's map: a picture
        T = settings["shown"]
        one = end[settings["layer"], 0].mean(0)[:T, :P + T]
        found |= {"map": np.round(one, 4), "tokens": [tuned.model.tokenizer.decode([t]) for t in tokens[0, :T]]}
    return found


VIRTUAL_TOKENS = Experiment(
    "virtual_tokens", "After training on domain. prefix (of 10, reparameterized): share of all attention that goes to it, by "
    "layer, before training (real words' keys and values) and after; with seed 0 also the attention of the first tokens of a "
    "test window in one layer, a mean over heads (map). prompt (20 vectors): cosine with the nearest token's embedding, that "
    "token, the word it started as, and ‖P − P₀‖/‖P₀‖; test loss (nats/token).", measure, ("prefix", "prompt"),
    {"steps": 150, "batch_size": 4, "prefix": 10, "prompt": 20, "rows": 16, "layer": 2, "shown": 40},
    {"steps": 3, "rows": 1, "seeds": (0, 1)})
