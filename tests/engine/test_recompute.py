"""recompute.py: the same training, bit for bit, in less memory; what cannot be recomputed is refused."""
import tracemalloc

import numpy as np
import pytest

import tinypeft as tp
from tests.methods import SMALL
from tests.schemes import ROWS
from tests.toys import Noise, same, small
from tinypeft.engine import functional as F
from tinypeft.engine.nn import Dropout, Linear, Module
from tinypeft.engine.recompute import recomputed, recomputing
from tinypeft.engine.tensor import GraphError, Tensor
from tinypeft.models.cache import KVCache
from tinypeft.models.gemma import Gemma, GemmaConfig
from tinypeft.models.llama import Llama, LlamaConfig
from tinypeft.training.backward import backward

SIZES = {"vocab_size": 37, "context_length": 24, "d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
         "d_mlp": 20, "d_head": 6}
MODELS = {"GPT": small, "dropout": lambda: small(dropout=0.2),
          "Llama": lambda: Llama(LlamaConfig(**SIZES, qk_norm=True)),
          "Gemma": lambda: Gemma(GemmaConfig(**SIZES, window=3, global_every=2))}


def trained(model, on, workers=2, **options):
    """Losses of 4 steps, and the state after them."""
    history = tp.train(model, Noise(), 4, batch_size=4, lr=1e-2, workers=workers, checkpoint_activations=on,
                       progress=False, **options)
    return history.loss, model.state_dict()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", MODELS)
def test_training_is_the_same_bit_for_bit(kind, workers):
    (a, before), (b, after) = (trained(MODELS[kind](), on, workers) for on in (False, True))
    assert a == b and same(before, after)


METHODS = {
    **SMALL, "LoRA with dropout": tp.LoRA(rank=2, dropout=0.3, targets="all"), "DyLoRA, frozen": tp.DyLoRA(rank=4, frozen=True),
    "head alone": tp.LinearProbe(), "prefix MLP with dropout": tp.PrefixTuning(length=3, dropout=0.2)}


@pytest.mark.parametrize("name", METHODS)
def test_training_a_method_is_the_same_bit_for_bit(name):
    head = 3 if name == "head alone" else None
    task = Classes() if head else Noise()
    results = []
    for on in (False, True):
        tuned = tp.attach(small(dropout=0.1 if "dropout" in name else 0.0), METHODS[name], rng=1, head=head)
        history = tp.train(tuned, task, 4, batch_size=4, lr=1e-2, checkpoint_activations=on, progress=False)
        results.append((history.loss, tuned.state_dict()))
    (a, before), (b, after) = results
    assert a == b and same(before, after)


class Classes(Noise):
    def batch(self, split, size, rng): return rng.integers(0, 37, (size, 6)), np.full(size, 6), rng.integers(0, 3, size)
    def loss(self, model, batch): return F.cross_entropy(model.class_logits(*batch[:2]), batch[2])


TRAINED = [tp.FakeQuant(learn_step=True, symmetric=False), *(row.small for row in ROWS.values() if row.small.trains)]


@pytest.mark.parametrize("scheme, methods", [(tp.NF4(block_size=16), [tp.LoRA(rank=2)]), *((s, []) for s in TRAINED)], ids=str)
def test_training_quantized_weights_is_the_same_bit_for_bit(scheme, methods):
    def make():
        model = tp.quantize(small(), scheme)
        return tp.attach(model, *methods, rng=1) if methods else model
    (a, before), (b, after) = (trained(make(), on) for on in (False, True))
    assert a == b and same(before, after)


def test_a_run_may_go_on_either_way(tmp_path):
    """The numbers are the same, so a checkpoint does not ask how they were computed."""
    _, whole = trained(small(), False)
    file = tmp_path / "run.safetensors"
    trained(small(), True, checkpoint=file, stop_after=2)
    _, halves = trained(small(), False, checkpoint=file)
    assert same(whole, halves)


def peak(model, on, batch):
    """Bytes at most in use beside the model during a step."""
    tracemalloc.start()
    with recomputing(on): backward(model, Noise(), batch)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for p in model.parameters(): p.grad = None
    return found


def test_it_takes_less_memory():
    """8 blocks: the peak is about one block's graph and the inputs of the others."""
    model = tp.attach(Llama(LlamaConfig(37, 128, 64, 8, 4, 2, 160, 16)), tp.LoRA(rank=2), rng=0)
    batch = Noise(T=128).batch("train", 2, np.random.default_rng(0))
    kept, again = (peak(model, on, batch) for on in (False, True))
    assert again < 0.33 * kept, again / kept


def test_blocks_run_twice_where_gradients_are_wanted_and_once_elsewhere():
    model, runs = small(), []
    forward = model.blocks[0].mlp.forward
    model.blocks[0].mlp.forward = lambda x: runs.append(x) or forward(x)
    tokens = np.arange(6).reshape(2, 3)
    with recomputing():
        y = model(tokens)
        assert len(runs) == 1
        y.backward(np.ones(y.shape, np.float32))
        assert len(runs) == 2
        with tp.no_grad(): model(tokens)
        model.generate(tokens, 2)
    assert len(runs) == 5
    model(tokens).backward(np.ones((2, 3, 37), np.float32))
    assert len(runs) == 6


def test_a_cache_with_gradients_is_refused_as_ever():
    with recomputing(), pytest.raises(GraphError, match="a cache keeps numbers without their history"):
        small()(np.zeros((1, 2), int), cache=KVCache(2))


# -- one module ------------------------------------------------------------------------------------
class Noisy(Module):
    """A layer whose dropout shares its generator with that of another."""

    def __init__(self):
        self.layer, self.first = Linear(3, 3, rng=0), Dropout(0.5, rng=1)
        self.second = Dropout(0.5, self.first.rng)

    def forward(self, x): return self.second(self.layer(self.first(x)))


def test_masks_are_drawn_again_and_the_next_draws_go_on():
    x, results = np.random.default_rng(0).standard_normal((5, 3)), []
    for run in (lambda m, x: m(x), lambda m, x: recomputed(m, m, x)):
        module, leaf = Noisy().to(np.float64).train(), Tensor(x, requires_grad=True)
        y, z = run(module, leaf), run(module, leaf)
        y.backward(np.ones(y.shape))
        results.append([y.data, z.data, leaf.grad, *(p.grad for p in module.parameters()), module(leaf).data])
    for a, b in zip(*results, strict=True): assert np.array_equal(a, b)


def test_a_frozen_input_gets_no_gradient(rng):
    layer, x = Linear(3, 2, rng=0).to(np.float64), Tensor(rng.standard_normal((4, 3)))
    tp.gradcheck(lambda *_: recomputed(layer, layer, x), layer.weight, layer.bias)
    layer.weight.requires_grad = layer.bias.requires_grad = False
    assert not recomputed(layer, layer, x).requires_grad


def test_what_cannot_be_recomputed_is_refused(rng):
    layer, other = Linear(3, 3, rng=0), Linear(3, 3, rng=1)
    x = Tensor(rng.standard_normal((4, 3)).astype(np.float32), requires_grad=True)
    dy = np.ones((4, 3), np.float32)
    with pytest.raises(GraphError, match="depends on 3 of them and on 2 others; train it without checkpoint_act"):
        recomputed(lambda x: other(layer(x)), layer, x).backward(dy)
    with pytest.raises(GraphError, match="has 3 inputs and parameters .* depends on 1 of them and on 0 others"):
        recomputed(lambda x: x * 2, layer, x).backward(dy)
