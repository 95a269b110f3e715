"""Trainable tokens: rows that are looked up and score, which tokens, beside other methods, and PEFT's numbers.

What every method promises is in test_methods.py.
"""
import numpy as np
import pytest

import tinypeft as tp
from tests.families import FAMILIES, make
from tests.oracles import assert_close
from tests.protocol import assert_gradients, assert_same_race, learned, move
from tests.toys import Noise, same
from tinypeft.engine.nn import Embedding

EVERY = ["GPT", *FAMILIES]
IDS = 5, 3, 36                                           # rows are kept in ascending order: 3, 5, 36
METHOD = tp.TrainableTokens(IDS)


@pytest.fixture
def tokens(rng):
    """Rows that have the tokens, and others."""
    tokens = rng.integers(0, 37, (3, 7))
    tokens[:, :4] = 5, 5, 36, 0
    return tokens


def layer_of(tuned):
    return tuned.wrappers["token_embedding"]


# -- what is computed ----------------------------------------------------------------------------
@pytest.mark.parametrize("family", EVERY)
def test_it_is_the_model_with_these_rows_in_its_table(family, tokens):
    model = make(family)
    table = model.token_embedding.weight.data.copy()
    tuned = learned(model, METHOD)
    layer = layer_of(tuned)
    assert layer.tokens.tolist() == [3, 5, 36]
    table[[3, 5, 36]] = layer.rows.data
    assert np.array_equal(layer.dense_weight(), table)
    want = make(family)
    head = want.lm_head
    want.token_embedding.weight.assign(table)
    assert_close(tuned(tokens), want(tokens), 1e-13)
    merged = tuned.merge()
    assert type(merged.token_embedding) is Embedding and merged.token_embedding.scale == want.token_embedding.scale
    assert np.array_equal(merged(tokens).data, want(tokens).data)
    if head is not None: assert np.array_equal(merged.lm_head.weight.data, head.weight.data)
    assert np.array_equal(tuned.generate(tokens, 6), merged.generate(tokens, 6))
    assert np.array_equal(tuned.generate(tokens, 6, use_cache=False), merged.generate(tokens, 6))


# -- which tokens --------------------------------------------------------------------------------
def test_tokens_are_ids_or_strs_of_one_token(gpt, tokens):
    model = gpt(vocab_size=1024)
    with pytest.raises(tp.MethodError, match=r"tokens: a str needs model.tokenizer; without one, give ids"):
        tp.attach(model, tp.TrainableTokens(("<|endoftext|>",)))
    model.tokenizer = tp.load_tokenizer()
    the = model.tokenizer.encode(" the").tolist()
    assert len(the) == 1
    tuned = tp.attach(model, tp.TrainableTokens((" the", "<|endoftext|>", 9)))
    assert layer_of(tuned).tokens.tolist() == sorted([*the, model.tokenizer.end_of_text, 9])
    text = "no such single token"
    ids = model.tokenizer.encode(text).tolist()
    with pytest.raises(tp.MethodError, match=f"'{text}' is not one token but {len(ids)}, \\[{ids[0]}, .*by their ids"):
        tp.attach(model, tp.TrainableTokens((9, text)))
    for id in 1024, 10**9:
        with pytest.raises(tp.MethodError, match=r"tokens must be words or ids in \[0, 1024\)"):
            tp.attach(model, tp.TrainableTokens((id,)))
    with pytest.raises(tp.MethodError, match="tokens must be"): tp.attach(model, tp.TrainableTokens(("",)))
    assert model.attached is None


# -- beside other methods ------------------------------------------------------------------------
@pytest.mark.parametrize("other", [tp.LoRA(2, targets="all"), tp.PromptTuning(2, init="text", text=(5, 5)),
                                   tp.PTuningV2(2, dropout=0.0), tp.FullFineTuning(("token_embedding", "final_norm")),
                                   tp.TrainableTokens((36, 1))], ids=str)
@pytest.mark.parametrize("is_first", [True, False])
def test_beside_another_method(other, is_first, gpt, tokens):
    parts = {"rows": METHOD, "other": other} if is_first else {"other": other, "rows": METHOD}
    model = gpt()
    before = model(tokens).data
    tuned = tp.attach(model, parts, rng=0)
    move(tuned, np.random.default_rng(0))
    assert_gradients(tuned, tokens[:2], kinks=True)
    both = tuned(tokens).data
    tuned.detach("rows")
    assert not np.array_equal(tuned(tokens).data, both)
    assert np.array_equal(tuned.reattach("rows")(tokens).data, both)
    if "P" not in type(other).__name__: assert_close(tuned.merge()(tokens), both, 1e-11)
    if is_first: assert_close(tuned.merge("rows")(tokens), both, 1e-11)
    assert np.array_equal(model(tokens).data, before)


def test_the_second_of_two_on_one_token_counts(gpt, tokens):
    """Wrappers nest, so the second adapts the embedding as the first one changed it."""
    tuned = tp.attach(gpt(), {"one": tp.TrainableTokens((3, 5)), "two": tp.TrainableTokens((5, 7))})
    move(tuned, np.random.default_rng(0))
    one, two = (part.wrappers["token_embedding"] for part in tuned.parts.values())
    E = two.dense_weight()
    assert np.array_equal(E[[3, 5, 7]], [one.rows.data[0], *two.rows.data])
    assert_close(two(np.array([[3, 5, 7]]))[0], E[[3, 5, 7]], 1e-15)
    assert_close(two.scores(two(tokens)), two(tokens).data @ E.T, 1e-13)


def test_rows_of_one_batch_have_their_own(gpt, tokens):
    model, tuned = gpt(), {}
    for name, ids in {"a": (5, 3), "b": (36, 5)}.items():
        tuned[name] = tp.attach(model, tp.TrainableTokens(ids))
        move(tuned[name], np.random.default_rng(ord(name)))
    out = tp.mixed_batch(model, tuned, tokens, ["a", "b", None]).data
    for b, name in enumerate("ab"):
        assert_close(out[b:b + 1], tuned[name](tokens[b:b + 1]), 1e-13)
    assert_close(out[2:], model(tokens[2:]), 1e-13)


# -- files ---------------------------------------------------------------------------------------
def test_a_file_names_its_tokens_and_they_are_checked(gpt, tmp_path):
    from tinypeft.files import load_arrays, save_arrays
    learned(gpt(np.float32), METHOD).save(tmp_path)
    file = tmp_path / "adapter.safetensors"
    arrays, meta = load_arrays(file)
    for wrong in ([5, 3, 36], [3, 3, 36], [-1, 5, 36], [3, 5, 37]):
        save_arrays(file, {**arrays, "TrainableTokens/token_embedding.tokens": np.array(wrong)}, meta)
        model = gpt(np.float32)
        with pytest.raises(ValueError, match=r"token_embedding.tokens must be ascending ids in \[0, 37\)"):
            tp.load_adapter(model, tmp_path)
        assert model.attached is None
    part = meta["parts"]["TrainableTokens"]["fields"]
    for wrong in ([], [0.5], [True], "ab", [-3], list(range(37)) * 1000):
        part["tokens"] = wrong
        save_arrays(file, arrays, meta)
        with pytest.raises(ValueError): tp.load_adapter(gpt(np.float32), tmp_path)


@pytest.mark.parametrize("family", ["GPT", "Llama"])
def test_on_a_gguf_file_whose_embedding_stays_codes(family, tokens, tmp_path):
    """Both kinds of folders, a resumed run, and a merge, whose table has the codes' numbers and the rows."""
    sizes = {"d_model": 32} if family == "GPT" else {"d_model": 32, "d_mlp": 32, "d_head": 8}
    tp.write_gguf(tmp_path / "q.gguf", tp.quantize(make(family, np.float32, **sizes), tp.GGUF("Q8_0", embeddings=True)))

    def base(dtype=np.float32):
        return tp.load_model(tmp_path / "q.gguf", quantized=True).to(dtype)

    def run(**options):
        tuned = tp.attach(base(), METHOD)
        return tp.train(tuned, Noise(), 4, progress=False, workers=1, **options).loss, tuned
    losses, tuned = run()
    run(stop_after=2, checkpoint=tmp_path / "half")
    again, resumed = run(checkpoint=tmp_path / "half")
    assert losses == again and same(resumed.state_dict(), tuned.state_dict())
    for form in "tinypeft", "peft":
        tuned.save(tmp_path / form, format=form)
        assert np.array_equal(tp.load_adapter(base(), tmp_path / form)(tokens).data, tuned(tokens).data), form
    for dtype, bound in (np.float32, 1e-5), (np.float64, 1e-12):
        tuned = learned(base(dtype), METHOD)
        want, merged = tuned(tokens), tuned.merge()
        assert type(merged.token_embedding) is Embedding and merged.token_embedding.weight.dtype == dtype
        assert_close(merged(tokens), want, bound)
        assert_close(tuned.merge(in_place=True)(tokens), want, bound)
        tp.save_quantized(merged, tmp_path / "merged")
        assert np.array_equal(tp.load_quantized(tmp_path / "merged")(tokens).data, merged(tokens).data)
        assert_close(tp.dequantize(merged)(tokens), want, bound)


def test_muon_leaves_the_rows_to_adamw(gpt):
    """Each row belongs to one token, as in the table."""
    from tinypeft.training.rates import trained
    tuned = tp.attach(gpt(), METHOD, tp.LoRA(2))
    assert any(t.p is layer_of(tuned).rows and t.is_table for t in trained(tuned))


# -- PEFT ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", EVERY)
@pytest.mark.filterwarnings("ignore")
def test_logits_20_steps_of_adamw_and_the_merge_equal_pefts_numerical(family, tokens):
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    import copy

    from tests.oracles import peft_folders as oracle
    tuned = learned(make(family), METHOD)
    theirs = peft.get_peft_model(copy.deepcopy(oracle.base(family)), peft.TrainableTokensConfig(token_indices=[3, 5, 36]))
    delta, = (p for p in theirs.parameters() if p.requires_grad)
    assert_same_race(tuned, lambda x: oracle.logits(theirs, x), [(layer_of(tuned).rows, delta)], tokens)
    assert_close(tuned.merge()(tokens), oracle.logits(theirs.merge_and_unload(), tokens).detach(), 1e-8)
