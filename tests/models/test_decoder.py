"""decoder.py: what every family of models does alike, held on one small model of each."""
import dataclasses
import tracemalloc

import numpy as np
import pytest

import tinypeft as tp
from tests.toys import same
from tinypeft.models.gemma import Gemma, GemmaConfig
from tinypeft.models.llama import Llama, LlamaConfig

LLAMA = LlamaConfig(41, 32, d_model=12, n_layers=2, n_heads=4, n_kv_heads=2, d_mlp=10, d_head=6)
CONFIGS = {"GPT": tp.GPTConfig(37, 24, 16, 2, 4), "Llama": LLAMA,
           "Qwen3": dataclasses.replace(LLAMA, qk_norm=True, tied=False),
           "Gemma": GemmaConfig(41, 32, 12, n_layers=2, n_heads=4, n_kv_heads=2, d_mlp=10, d_head=6, window=3,
                                global_every=2)}
CLASSES = {tp.GPTConfig: tp.GPT, LlamaConfig: Llama, GemmaConfig: Gemma}
IDS = np.arange(10).reshape(2, 5)


@pytest.fixture(params=CONFIGS)
def family(request):
    """(class, config)."""
    config = CONFIGS[request.param]
    return CLASSES[type(config)], config


# -- a model from arrays -----------------------------------------------------------------------------
def test_the_shapes_of_a_model_are_known_without_one(family):
    cls, config = family
    assert cls.parameter_shapes(config) == {n: p.shape for n, p in cls(config).named_parameters()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_model_is_made_of_arrays_without_copies(family, dtype):
    cls, config = family
    first = cls(config, rng=0).to(dtype)
    arrays = first.state_dict() | {"head.weight": np.ones((3, config.d_model), dtype)}
    second = cls.from_arrays(config, arrays)
    assert np.array_equal(second(IDS).data, first(IDS).data) and repr(second.blocks[0]) == repr(first.blocks[0])
    assert all(second.state_dict()[n] is a for n, a in arrays.items()) and second.head.bias is None
    assert list(second.state_dict()) == [*first.state_dict(), "head.weight"]
    assert second.class_logits(IDS, [5, 3]).shape == (2, 3)
    assert all(p.requires_grad and p.data.flags.writeable for p in second.parameters())


def test_a_layer_takes_the_place_of_its_weights(family):
    cls, config = family
    first = cls(config, rng=0)
    path, arrays = "blocks.1.mlp.up", first.state_dict()
    layer = first.get(path)
    rest = {n: a for n, a in arrays.items() if not n.startswith(path)}
    model = cls.from_arrays(config, rest, {path: layer})
    assert same(model.state_dict(), arrays) and model.get(path).weight is layer.weight
    with pytest.raises(ValueError, match=f"x has a weight .*, expected none: a {cls.__name__} has no such layer"):
        cls.from_arrays(config, arrays, {"x": layer})


@pytest.mark.parametrize("change, error, says", [
    ({"blocks.1.norm1.weight": None}, KeyError, "missing .*blocks.1.norm1.weight"),
    ({"x": np.ones(3)}, KeyError, "unknown .*'x'"),
    ({"final_norm.weight": np.ones(3, np.float32)}, ValueError, r"final_norm.weight .* \(3,\), expected \(1[26],\)"),
    ({"head.weight": np.float32(1)}, ValueError, r"head.weight has shape \(\), expected \(1[26],\)")])
def test_arrays_that_do_not_fit_are_named(family, change, error, says):
    cls, config = family
    arrays = {n: a for n, a in (cls(config).state_dict() | change).items() if a is not None}
    with pytest.raises(error, match=says): cls.from_arrays(config, arrays)
    wide = arrays["token_embedding.weight"].astype(np.float64)
    with pytest.raises(ValueError, match="float32 and float64, expected float32 or float64 for all"):
        cls.from_arrays(config, cls(config).state_dict() | {"token_embedding.weight": wide})


def test_sizes_that_the_arrays_do_not_have_take_no_memory(family):
    cls, config = family
    arrays = cls(config).state_dict()
    sizes = [name for name in ("n_layers", "vocab_size", "d_model", "d_mlp") if hasattr(config, name)]
    tracemalloc.start()
    for name, n in [*((name, n) for name in sizes for n in (1 << 40, 1 << 80)), ("n_layers", 3)]:
        with pytest.raises((ValueError, KeyError)): cls.from_arrays(dataclasses.replace(config, **{name: n}), arrays)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_config_of_another_family_is_refused(family):
    cls, config = family
    other = next(c for c in CONFIGS.values() if type(c) is not type(config))
    says = f"{cls.__name__}: expected a {cls.__name__}Config, got {type(other).__name__}"
    with pytest.raises(TypeError, match=says): cls(other)
