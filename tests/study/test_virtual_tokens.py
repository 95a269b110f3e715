"""The experiment on virtual tokens measures what it says: the attention the model really pays, the tokens really nearest."""
import numpy as np

import tinypeft as tp
from tinypeft.engine import functional as F
from tinypeft.study.experiments import virtual_tokens
from tinypeft.study.experiments.virtual_tokens import attention, nearest


def test_its_attention_is_the_models(monkeypatch):
    tuned = tp.attach(tp.load_pretrained(), tp.PrefixTuning(length=10), rng=0).eval()
    tokens = np.random.default_rng(0).integers(0, 1024, (2, 20))
    seen, real = [], F.attention

    def spy(q, k, v, **options):
        seen.append((v.data, (o := real(q, k, v, **options)).data))
        return o
    monkeypatch.setattr(F, "attention", spy)
    tuned(tokens)                                        # five layers, and five more when `attention` walks them
    weights = attention(tuned, tokens)
    assert weights.shape == (5, 2, 4, 20, 30)
    for w, (v, o) in zip(weights, seen[:5], strict=True): np.testing.assert_allclose(w @ v, o, atol=1e-5)


def test_the_nearest_token_of_a_token_is_itself():
    model = tp.load_pretrained()
    ids = model.tokenizer.encode(" array of values")
    words, cosine = nearest(model, 3 * model.token_embedding.weight.data[ids])
    assert "".join(words) == " array of values"
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)


def test_the_map_is_of_the_first_tokens_and_a_mean_over_heads(monkeypatch):
    """So what each token pays to the prefix, to those before it and to itself adds up to 1."""
    monkeypatch.setattr(virtual_tokens, "test_loss", lambda model: 0.0)
    settings = {"steps": 1, "batch_size": 1, "rows": 1, "layer": 2, "shown": 40}
    found = virtual_tokens.measure(tp.PrefixTuning(length=10), 0, settings)
    assert found["map"].shape == (40, 50) and len(found["tokens"]) == 40
    np.testing.assert_allclose(found["map"].sum(1), 1, atol=0.005)
