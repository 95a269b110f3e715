"""How virtual tokens are used: the attention that a trained prefix gets, and the distance of trained prompts from words."""
import numpy as np

from ...engine.tensor import concatenate, no_grad
from ...models.gpt import GPT
from ...peft import Method, PeftModel, PrefixTuning, PromptTuning
from ..experiment import Experiment
from ..tuning import attach, domain, fine_tune, pretrained, test_loss


def attention(tuned: PeftModel, tokens: np.ndarray) -> np.ndarray:
    """The attention of tokens (B, T) to a prefix of P and to each other: (L, B, H, T, P + T)."""
    model, prefix, found = tuned.model, tuned.virtual.seams(tokens)["prefix"], []
    B, T = tokens.shape
    with no_grad():
        P = prefix[0][0].shape[-2]
        h = model.token_embedding(tokens) + model.position_embedding(np.arange(P, P + T))
        for block, (K, V) in zip(model.blocks, prefix, strict=True):
            a, x = block.attention, block.norm1(h)
            q, k = (layer(x).reshape(B, T, a.n_heads, -1).transpose(0, 2, 1, 3) for layer in (a.query, a.key))
            keys = concatenate([K + np.zeros((B, 1, 1, 1)), k], axis=2)
            scores = (q @ keys.transpose(0, 1, 3, 2)).data / q.shape[-1] ** 0.5
            scores = np.where(np.tri(T, P + T, P, dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            found.append(weights / weights.sum(-1, keepdims=True))
            h = block(h, (K, V))
    return np.stack(found)


def nearest(model: GPT, vectors: np.ndarray) -> tuple[list[str], np.ndarray]:
    """For each of the vectors (P, d) the token with the largest cosine, as text, and that cosine."""
    E = model.token_embedding.weight.data
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    cosine = unit(vectors) @ unit(E).T                                       # (P, V)
    best = cosine.argmax(1)
    return [model.tokenizer.decode([i]) for i in best], cosine[np.arange(len(best)), best]


def measure(method: Method, seed: int, settings: dict) -> dict:
    """A prefix: the share of attention that it gets. A prompt: how near its vectors are to tokens, and how far they moved."""
    fresh, (tuned, _) = attach(pretrained(), method, rng=seed), fine_tune(method, seed, settings)
    found = {"loss": test_loss(tuned)}
    if hasattr(fresh.virtual, "P_e"):
        before, after = fresh.virtual.P_e.data, tuned.virtual.P_e.data
        words, cosine = nearest(tuned.model, after)
        moved = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
        return found | {"words": words, "started": nearest(tuned.model, before)[0], "cosine": cosine, "moved": moved}
    tokens = domain().batch("test", settings["rows"], np.random.default_rng([seed, 5]))[0]
    P, start, end = method.length, *(attention(t.eval(), tokens) for t in (fresh, tuned))
    share = lambda a: a[..., :P].sum(-1).mean((1, 2, 3))
    found |= {"share_before": share(start), "share": share(end)}
    if seed == 0:                                        # one window's map: a picture
        T = settings["shown"]
        one = end[settings["layer"], 0].mean(0)[:T, :P + T]
        found |= {"map": np.round(one, 4), "tokens": [tuned.model.tokenizer.decode([t]) for t in tokens[0, :T]]}
    return found


VIRTUAL_TOKENS = Experiment(
    "virtual_tokens", "A prefix of 10 (reparameterized) and a prompt of 20 vectors, after training on domain.",
    {"loss": "nats/token, domain test", "share": "share of all attention that goes to the prefix, by layer",
     "share_before": "the same before training, with real words' keys and values",
     "map": "with seed 0: attention of the first tokens of a test window in one layer, mean over heads",
     "tokens": "with seed 0: these tokens", "cosine": "cosine of each prompt vector with the nearest token's embedding",
     "words": "that token, one per vector", "started": "the token that each vector started as",
     "moved": "‖P − P₀‖/‖P₀‖, one per vector"},
    measure, {"prefix": PrefixTuning(length=10), "prompt": PromptTuning(length=20)},
    {"steps": 150, "batch_size": 4, "rows": 16, "layer": 2, "shown": 40},
    {"steps": 3, "rows": 1, "seeds": (0, 1)})
