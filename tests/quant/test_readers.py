"""quant/readers.py: who reads what, held against what the block computes."""
import numpy as np
import pytest

import tinypeft as tp
from tests.models.test_gemma import gemma
from tests.models.test_llama import llama
from tinypeft.quant.readers import channels, readers

MODELS = {"grouped": llama, "Qwen3": lambda: llama("Qwen3"), "one key head": lambda: llama("one key head"), "Gemma": gemma}


def test_readers_of_a_plain_block(gpt):
    block = gpt().blocks[0]
    assert readers(block) == {"norm1": ("attention.query", "attention.key", "attention.value"),
                              "attention.value": ("attention.output",), "norm2": ("mlp.up",), None: ("mlp.down",)}
    for source in readers(block): assert channels(block, source).tolist() == list(range(16 if source else 64))


@pytest.mark.parametrize("name", MODELS)
def test_readers_of_a_gated_block(name):
    block = MODELS[name]().blocks[0]
    assert readers(block) == {"norm1": ("attention.query", "attention.key", "attention.value"),
                              "attention.value": ("attention.output",), "norm2": ("mlp.gate", "mlp.up"),
                              "mlp.up": ("mlp.down",)}
    assert channels(block, "mlp.up").tolist() == list(range(20))


@pytest.mark.parametrize("name", MODELS)
def test_channels_are_what_depends_on_a_channel(name):
    """A row of W_value that changes is seen in the columns of W_output that its heads have, and in no others."""
    block = MODELS[name]().blocks[0]
    columns, value = channels(block, "attention.value"), block.attention.value
    x, seen = tp.Tensor(np.random.default_rng(1).standard_normal((1, 9, 24))), []
    block.attention.output.forward = lambda o: seen.append(o.data) or o      # what attention computes
    block.attention(x)
    for row in range(value.d_out):
        kept = value.weight.data[row].copy()
        value.weight.data[row] += 1
        block.attention(x)
        assert np.array_equal(np.flatnonzero((seen[0] != seen[-1]).any((0, 1))), np.flatnonzero(columns == row))
        value.weight.data[row] = kept
