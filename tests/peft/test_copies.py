"""`copy.deepcopy` and pickle, which threads, processes and caches use: every model, method and layer survives both."""
import copy
import pickle

import numpy as np
import pytest

import tinypeft as tp
from tests import schemes
from tests.conftest import make_gpt
from tests.methods import SMALL, with_dropout
from tests.protocol import frozen_bytes, learned
from tinypeft.engine.nn import are_twins

SIZES = dict(d_model=32, dropout=0.1)
CALIBRATION = np.random.default_rng(0).integers(0, 37, (8, 24))
SCHEMES = {name: row.small for name, row in schemes.ROWS.items()}
ACTIVATIONS = [tp.BottleneckAdapter(4, activation=f) for f in ("relu", "tanh", "silu")]
STACK = {"first": tp.IA3(), "second": tp.LoRA(2, dropout=0.2), "prefix": tp.PrefixTuning(3, hidden=4),
         "beside": tp.ParallelAdapter(4), "norms": tp.FullFineTuning(("norm1",)), "off": tp.LoRA(2, targets=("key",))}


def quantized(name):
    return tp.quantize(make_gpt(np.float32, **SIZES), SCHEMES[name], calibration=CALIBRATION)


def several(base):
    tuned = learned(base, STACK)
    tuned.detach("off")
    return tuned


DROPPING = {name: with_dropout(method) or method for name, method in SMALL.items()}
MODELS = {**{name: lambda method=method: learned(make_gpt(np.float32, **SIZES), method) for name, method in DROPPING.items()},
          **{str(method): lambda method=method: learned(make_gpt(np.float32, **SIZES), method) for method in ACTIVATIONS},
          "probe": lambda: tp.attach(make_gpt(np.float32, **SIZES), tp.LinearProbe(), head=3),
          "several": lambda: several(make_gpt(np.float32, **SIZES)),
          "peqa, tuned": lambda: learned(quantized("peqa"), SCHEMES["peqa"]),
          **{name: lambda name=name: quantized(name) for name in SCHEMES},
          **{f"several on {name}": lambda name=name: several(quantized(name)) for name in ("nf4", "llm_int8", "fake_quant")}}


def pickled(x): return pickle.loads(pickle.dumps(x))


def logits(model, tokens):
    """Logits without dropout, then with what the model's own generators draw next."""
    return [model.train(on)(tokens).data.tobytes() for on in (False, True)]


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_is_the_same_function_bit_for_bit(name, tokens):
    model = MODELS[name]()
    copies = [pickled(model), copy.deepcopy(model)]
    state, arrays = frozen_bytes(model), [*model.state_dict().values()]       # both lists live, so that no id is used again
    own = logits(model, tokens)
    for again in copies:
        copied_arrays = [*again.state_dict().values()]
        assert frozen_bytes(again) == state and not {*map(id, arrays)} & {*map(id, copied_arrays)}
        assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
        assert logits(again, tokens) == own
    for path, layer in model.named_modules():
        if not path or not hasattr(layer, "d_in"): continue
        x = tp.Tensor(np.random.default_rng(1).standard_normal((1, 3, layer.d_in)).astype(np.float32))
        y = layer.eval()(x).data
        assert all(np.array_equal(copied(layer)(x).data, y) for copied in (pickled, copy.deepcopy)), path


@pytest.mark.parametrize("name", ["several", "peqa, tuned", "several on nf4"])
def test_the_methods_come_off_a_copy_and_return(name, tokens):
    tuned = MODELS[name]()
    base, plain, own = frozen_bytes(tuned.base), tuned.base(tokens).data, tuned(tokens).data
    on = [part for part in tuned.parts if part not in tuned.off]
    for again in pickled(tuned), copy.deepcopy(tuned):
        assert list(again.parts) == list(tuned.parts) and again.off == tuned.off
        assert frozen_bytes(again.detach()) == base and again.base is not tuned.base and are_twins(again.base, again.frozen)
        again.detach(*on)
        assert np.array_equal(again(tokens).data, plain)
        assert np.array_equal(again.reattach(*on)(tokens).data, own) and np.array_equal(tuned(tokens).data, own)
