"""quant/linear.py, `QuantizedEmbedding`: an embedding of codes computes what an embedding of their numbers does."""
import copy
import math

import numpy as np
import pytest

import tinypeft as tp
from tests.families import FAMILIES, make
from tests.models.test_gemma import gemma
from tests.models.test_llama import llama
from tests.oracles import assert_close
from tests.stress.attacks import save_raw
from tests.toys import Noise, same
from tinypeft.files.arrays import load_arrays
from tinypeft.interop.gguf_types import TYPES, as_qtensor
from tinypeft.quant import QuantizedEmbedding, QuantizedLinear, load_quantized, save_quantized

TOKENS = np.random.default_rng(0).integers(0, 41, (2, 9))
CODES = [kind for kind in TYPES.values() if kind.bits]


def table(kind, n=41, d=256):
    """A table in a type of GGUF's, of random bytes with scales that are finite."""
    octets = np.random.default_rng(1).integers(0, 100, (n * d // kind.weights, kind.octets), dtype=np.uint8)
    return as_qtensor(kind, octets.reshape(-1), (n, d))


def pair(make=llama, **sizes):
    """The same model with its embedding, and a head that is not tied, as codes and as their numbers."""
    plain = make(dtype=np.float32, d_model=32, n_heads=4, d_head=8, **sizes)
    coded = copy.deepcopy(plain)
    for name in "token_embedding", "lm_head":
        if (module := getattr(plain, name)) is None: continue
        q = tp.GGUF("Q8_0").quantize(module.weight.data)
        module.weight.data = q.dequantize()
        setattr(coded, name, QuantizedLinear(q, None) if name == "lm_head" else QuantizedEmbedding(q, module.scale))
    return plain, coded


@pytest.mark.parametrize("kind", CODES, ids=[kind.name for kind in CODES])
def test_rows_of_every_type_are_those_of_the_whole_bit_exact(kind):
    q, rows = table(kind), np.array([7, 0, 40, 7, 3])
    taken = q.take(rows)
    np.testing.assert_array_equal(taken.dequantize(), q.dequantize()[rows])
    assert taken.bits_per_weight == q.bits_per_weight
    assert q.take(rows[:0]).dequantize().shape == (0, 256)


@pytest.mark.parametrize("scheme, shape", [(tp.NF4(64), (2, 96)), (tp.NF4(64), (10, 63)), (tp.Uniform(3), (4, 5)),
                                           (tp.Uniform(4, symmetric=False), (4, 8))])
def test_rows_that_are_no_whole_blocks_are_not_taken(scheme, shape):
    q = scheme.quantize(np.ones(shape))
    with pytest.raises(ValueError, match="take: a row of QTensor.* is not whole blocks"): q.take(np.arange(1))


@pytest.mark.parametrize("make, sizes", [(llama, {"n_kv_heads": 2}), (llama, {"n_kv_heads": 2, "tied": False}),
                                         (gemma, {"query_scale": 8})])
def test_a_model_computes_the_same_bit_exact(make, sizes):
    """Logits, generation, and the losses and weights of a LoRA, which trains through the head."""
    plain, coded = pair(make, **sizes)
    assert np.array_equal(plain(TOKENS).data, coded(TOKENS).data)
    assert np.array_equal(plain.generate(TOKENS, 4, temperature=0), coded.generate(TOKENS, 4, temperature=0))
    assert coded.n_parameters() == plain.n_parameters() and "token_embedding.weight.codes" in coded.state_dict()
    runs = []
    for model in plain, coded:
        tuned = tp.attach(model, tp.LoRA(rank=2, targets=("query", "down")), rng=0)
        history = tp.train(tuned, Noise(41), steps=4, batch_size=2, lr=1e-2, progress=False)
        runs.append((history.loss, {name: p.data for name, p in tuned.named_parameters() if p.requires_grad}))
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1])


def test_float64_goes_through_codes():
    plain, coded = pair()
    coded.to(np.float64)
    y = coded(TOKENS)
    assert y.dtype == np.float64 and np.array_equal(y.data, plain.to(np.float64)(TOKENS).data)
    assert np.array_equal(coded.to(np.float32)(TOKENS).data, plain.to(np.float32)(TOKENS).data)


@pytest.mark.parametrize("family", ["GPT", *FAMILIES])
def test_a_model_of_float64_is_quantized_with_its_embedding(family):
    sizes = {"d_model": 32} if family == "GPT" else {"d_model": 32, "d_mlp": 32, "d_head": 8}
    model = tp.quantize(make(family, **sizes), tp.GGUF("Q8_0", embeddings=True))
    y = model(TOKENS % 37)
    assert y.dtype == np.float64
    assert_close(tp.dequantize(model)(TOKENS % 37), y, 1e-12)


def test_biases_and_norms_beside_it_are_trained():
    """Every other method: `peft/test_families.py`."""
    method, coded = tp.FullFineTuning(("*bias", "*norm*")), pair(n_kv_heads=2, qkv_bias=True)[1]
    before = {name: a.copy() for name, a in coded.state_dict().items()}
    tuned = tp.attach(coded, method, rng=0)
    tp.train(tuned, Noise(41), steps=2, batch_size=2, lr=1e-2, progress=False)
    assert same({name: a for name, a in tuned.model.state_dict().items() if name.startswith("token_embedding")},
                {name: a for name, a in before.items() if name.startswith("token_embedding")})
    assert same(coded.state_dict(), before)


def test_ids_that_it_lacks_are_refused():
    coded = pair()[1]
    for ids, error in (np.array([[0, 41]]), ValueError), (np.array([[-1]]), ValueError), (np.ones((1, 2)), TypeError):
        with pytest.raises(error, match="token ids must"): coded.token_embedding(ids)


@pytest.mark.parametrize("make, sizes", [(llama, {"n_kv_heads": 2, "tied": False}), (gemma, {"query_scale": 8})])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_saved_and_comes_back(make, sizes, dtype, tmp_path):
    coded = pair(make, **sizes)[1].to(dtype)
    tp.quantize(coded, tp.NF4(block_size=16))
    coded.source = "a place"
    save_quantized(coded, tmp_path / "q")
    loaded = load_quantized(tmp_path / "q")
    assert repr(loaded) == repr(coded) and loaded.token_embedding.scale == coded.token_embedding.scale
    assert np.array_equal(loaded(TOKENS).data, coded(TOKENS).data)


@pytest.mark.parametrize("change, says", [
    ({"class": "QuantizedLinear", "bias": None}, "token_embedding is a QuantizedLinear in place of an Embedding"),
    ({"scale": {"number": "inf"}}, "the scale is inf"), ({"scale": "1"}, "scale"),
    ({"dtype": "complex64"}, "expected float32 or float64"),
    ({"dtype": "float64"}, "the vectors of token_embedding are float64, the model is not"), ({"bias": None}, "bias")])
def test_a_description_that_makes_no_sense_is_refused(change, says, tmp_path):
    save_quantized(pair()[1], tmp_path / "q")
    arrays, meta = load_arrays(tmp_path / "q")
    fields = meta["layers"]["token_embedding"] | change
    if fields["class"] == "QuantizedLinear": fields = {n: v for n, v in fields.items() if n not in ("scale", "dtype")}
    save_raw(tmp_path / "q", arrays, meta | {"layers": {"token_embedding": fields}})
    with pytest.raises(ValueError, match=says): load_quantized(tmp_path / "q")


def test_bits_per_weight_are_those_of_the_blocks():
    plain, coded = pair(tied=False)
    for model in plain, coded: tp.quantize(model, tp.NF4(block_size=16))
    assert tp.bits_per_weight(plain) == tp.bits_per_weight(coded)
    whole = tp.dequantize(coded)
    assert type(whole.token_embedding) is tp.engine.nn.Embedding and np.array_equal(whole(TOKENS).data, coded(TOKENS).data)
    assert math.isclose(coded.lm_head.nbytes * 8 / coded.lm_head.weight.size, 8.5)
