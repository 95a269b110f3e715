"""MiSS: a LoRA with a fixed A, and its sums. What every method promises is in test_methods.py."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.peft.test_plain import same_gradients
from tests.protocol import learned, shift
from tinypeft.engine import functional as F
from tinypeft.engine.nn import Parameter
from tinypeft.peft import plain
from tinypeft.peft.lora import LoRALinear

LAYERS = "query", "up", "down"
METHODS = [tp.MiSS(4, targets=LAYERS), tp.MiSS(5, targets=LAYERS)]               # 4 divides 16 and 64; 5 divides neither
every = pytest.mark.parametrize("method", METHODS, ids=str)
DOWN = "blocks.0.mlp.down"


# -- the equation --------------------------------------------------------------------------------
@every
def test_the_change_is_d_repeated_along_the_inputs(method, gpt):
    r = method.rank
    for layer in learned(gpt(), method).wrappers.values():
        repeated = np.hstack([layer.D.data] * 20)[:, :layer.d_in]
        assert np.array_equal(layer.delta(), repeated) and np.linalg.matrix_rank(layer.delta()) == r == layer.rank


@every
def test_the_product_is_the_papers_sums_with_the_same_gradients(method, gpt):
    layer = learned(gpt(), method).wrappers[DOWN]
    x = Parameter(np.random.default_rng(0).standard_normal((2, 5, 64)))
    same_gradients(lambda: layer(x), lambda: plain.miss(layer, x), x, layer.D)


@every
def test_it_is_a_lora_whose_a_is_fixed(method, gpt, tokens):
    """s = 1, A of zeros and ones and not trained, B = D: the same logits and, after every step, the same B."""
    tuned, r = learned(gpt(), method), method.rank
    lora = tp.attach(gpt(), tp.LoRA(r, alpha=r, targets=LAYERS))
    for path, layer in lora.wrappers.items():
        assert type(layer) is LoRALinear
        A = tuned.wrappers[path].factors()[1].data
        assert set(A.ravel()) == {0.0, 1.0} and (A.sum(0) == 1).all() and np.array_equal(A[:, :r], np.eye(r))
        layer.A.assign(A)
        layer.B.assign(tuned.wrappers[path].D.data.copy())
        layer.A.requires_grad = False
    x, y = shift(tokens)
    optimizers = [tp.optim.AdamW(t.trainable_parameters(), lr=1e-2) for t in (tuned, lora)]
    for _ in range(4):
        assert_close(tuned(tokens), lora(tokens), 1e-13)
        for t, optimizer in zip((tuned, lora), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(t(x), y).backward()
            optimizer.step()
        for path, layer in tuned.wrappers.items(): assert_close(layer.D, lora.wrappers[path].B, 1e-12)


def test_so_combine_takes_it(gpt, tokens):
    model = gpt()
    tuned = learned(model, METHODS[1])
    want = tuned(tokens).data
    lora = tp.combine({tuned: 1.0})
    assert type(lora.method) is tp.LoRA and set(lora.ranks().values()) == {5} == set(tuned.ranks().values())
    assert_close(lora(tokens), want, 1e-12)
