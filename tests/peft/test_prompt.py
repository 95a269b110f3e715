"""Prompt tuning: against PEFT's prompt embedding, and its three starts. Its promises are in test_methods.py."""
import numpy as np
import pytest

import tinypeft as tp
from tests.protocol import assert_same_race
from tinypeft.text import BPETokenizer

RANDOM, WORDS, TEXT = (tp.PromptTuning(3, "random"), tp.PromptTuning(3), tp.PromptTuning(3, "text", (7, 1)))


def test_equals_peft(gpt, tokens):
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from tests.oracles.torch_gpt import torch_copy
    model = gpt()
    copy = torch_copy(model)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=16,
                                     num_transformer_submodules=1, num_layers=2, num_attention_heads=4)
    theirs = peft.PromptEmbedding(config, copy.token_embedding).double()
    import torch
    oracle = lambda x: copy(x, prompt=theirs(torch.arange(3).expand(len(x), -1)))
    tuned = tp.attach(model, RANDOM, rng=0)
    assert_same_race(tuned, oracle, [(tuned.virtual.P_e, theirs.embedding.weight)], tokens)


def test_starts_as_real_words(gpt, tokens):
    """A prompt made of words' embeddings is those words before the text."""
    model = gpt()
    longer = np.hstack([np.tile([7, 1, 7], (3, 1)), tokens])
    want = model(longer).data[:, 3:]
    np.testing.assert_allclose(tp.attach(model, TEXT)(tokens).data, want, rtol=0, atol=1e-12)


def test_starts_from_text_through_the_tokenizer(gpt):
    model = gpt(vocab_size=300)
    model.tokenizer = BPETokenizer.train("axes of the axes of the " * 20, 264)
    ids = model.tokenizer.encode("axes of")
    P_e = tp.attach(model, tp.PromptTuning(2 * len(ids) + 1, "text", "axes of")).virtual.P_e.data
    E = model.token_embedding.weight.data
    assert np.array_equal(P_e, E[[*ids, *ids, ids[0]]])                  # said again until P are full


def test_starts_from_common_tokens():
    E = np.arange(6000.0)[:, None] * np.ones(4)
    model = tp.GPT(tp.GPTConfig(vocab_size=6000, context_length=600, d_model=4, n_layers=1, n_heads=1))
    model.token_embedding.weight.data = E
    drawn = tp.attach(model, tp.PromptTuning(500), rng=0).virtual.P_e.data[:, 0]
    assert 256 <= drawn.min() < 300 and 4900 < drawn.max() < 5000        # neither single bytes nor rare words


def test_the_seed_decides(gpt):
    first, again, other = (tp.attach(gpt(), WORDS, rng=r).virtual.P_e.data for r in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_random_start(gpt):
    P_e = tp.attach(gpt(), tp.PromptTuning(20, "random")).virtual.P_e.data
    assert 0.45 < P_e.max() <= 0.5 and -0.5 <= P_e.min() < -0.45


def test_generation_counts_virtual_tokens(gpt, tokens):
    tuned = tp.attach(gpt(), WORDS)
    assert tuned.generate(tokens, 15).shape == (3, 22)                   # 3 + 7 + 14 positions are fed, of 24
    with pytest.raises(ValueError, match="beside 3 virtual ones"):
        tuned.generate(tokens, 16)


@pytest.mark.parametrize("make, word", [
    (lambda: tp.PromptTuning(init="text"), "belong together"), (lambda: tp.PromptTuning(text="a"), "belong together"),
    (lambda: tp.PTuningV2(text="word"), "belong together")])
def test_nonsense_is_refused_at_once(make, word):
    with pytest.raises(tp.MethodError, match=word):
        make()


@pytest.mark.parametrize("method, word", [
    (tp.PromptTuning(3, "text", "word"), "tokenizer"),
    (tp.PromptTuning(3, "text", (99,)), r"ids in \[0, 37\)"), (tp.PromptTuning(3, "text", ()), r"got \[\]")])
def test_what_does_not_fit_the_model_is_refused(method, word, gpt):
    model = gpt()
    with pytest.raises(tp.MethodError, match=word):
        tp.attach(model, method)
    assert model.attached is None


def test_the_first_and_the_last_token_are_words(gpt):
    table = gpt().token_embedding.weight.data
    start = tp.attach(gpt(), tp.PromptTuning(length=2, init="text", text=(0, 36))).virtual.P_e.data
    assert np.array_equal(start, table[[0, 36]])
    for ids in ((-1, 0), (0, 37)):
        with pytest.raises(tp.MethodError, match=r"must be words or ids in \[0, 37\)"):
            tp.attach(gpt(), tp.PromptTuning(length=2, init="text", text=ids))
