"""to_low_rank: the nearest LoRA of any change of weights, with the error that it says, and nothing else lost."""
import copy
import warnings

import numpy as np
import pytest

import tinypeft as tp
from tests.families import make
from tests.oracles import assert_close
from tests.protocol import LENGTHS, frozen_bytes, learned, move
from tests.toys import same
from tinypeft.peft.low_rank import halves, thin_svd

QUERY = "blocks.0.attention.query"
CHANGES = {"lora": tp.LoRA(3, targets="all"), "pissa": tp.LoRA(3, init="pissa"),
           "adalora": tp.AdaLoRA(init_rank=4, target_rank=2), "dylora": tp.DyLoRA(rank=4),
           "dora": tp.DoRA(rank=2, targets="all"), "loha": tp.LoHa(2),
           "lokr": tp.LoKr(2, targets=("query", "up")), "hira": tp.HiRA(2), "peqa": tp.PEQA(4),
           "full": tp.FullFineTuning(("query", "up"))}
changes = pytest.mark.parametrize("name", CHANGES)


def tuned_by(name, family="Llama", dtype=np.float64, **options):
    """A model whose every trained number has moved."""
    method, model = CHANGES[name], make(family, dtype)
    if name == "peqa": model = tp.quantize(model, method)
    tuned = tp.attach(model, method, rng=0, **options)
    move(tuned, np.random.default_rng(0))
    return tuned


def dense(model, path): return model.get(path).dense_weight().astype(float)


@pytest.mark.parametrize("family", ["GPT", "Llama", "Gemma"])
@changes
def test_at_full_rank_the_function_is_the_same(name, family, tokens):
    tuned = tuned_by(name, family, head=3)
    logits, classes = tuned(tokens).data, tuned.class_logits(tokens, LENGTHS).data
    before = {name: a.copy() for name, a in tuned.state_dict().items()}
    result = tp.to_low_rank(tuned, 99)
    assert type(result.parts["LoRA"].method) is tp.LoRA and result.base is tuned.base
    assert_close(result(tokens), logits, 1e-10)
    assert_close(result.class_logits(tokens, LENGTHS), classes, 1e-10)
    assert max(result.relative_errors.values()) == 0
    assert same(tuned.state_dict(), before) and np.array_equal(tuned(tokens).data, logits)


@changes
def test_at_a_low_rank_each_layer_is_the_nearest_and_its_error_is_true(name):
    tuned = tuned_by(name)
    before = {path: dense(tuned.frozen, path) for path in linear(tuned)}
    W = {path: dense(tuned.model, path) for path in before}
    result = tp.to_low_rank(tuned, 2)
    assert {*result.relative_errors} == {*result.wrappers} and {*result.ranks().values()} == {2}
    for path, error in result.relative_errors.items():
        change = W[path] - before[path]
        U, S, Vt = np.linalg.svd(change)
        assert_close(result.wrappers[path].delta(), U[:, :2] * S[:2] @ Vt[:2], 1e-6)
        lost = np.linalg.norm(change - result.wrappers[path].delta()) / np.linalg.norm(change)
        assert abs(error - lost) <= 1e-6
    untouched = before.keys() - result.wrappers.keys()
    assert all(np.array_equal(W[path], before[path]) for path in untouched)


def linear(tuned): return [path for path, m in tuned.model.named_modules() if path.startswith("blocks.") and hasattr(m, "d_in")
                           and ".base" not in path]


@pytest.mark.parametrize("name", ["dora", "loha", "hira", "lora"])
def test_on_a_quantized_base(name, tokens):
    tuned = tp.attach(tp.quantize(make("Llama"), tp.NF4(block_size=8)), CHANGES[name], rng=0)
    move(tuned, np.random.default_rng(0))
    logits = tuned(tokens).data
    assert_close(tp.to_low_rank(tuned, 99)(tokens), logits, 1e-10)


def test_a_small_change_in_float32_is_not_lost_in_the_weight():
    """A difference of weights would have an error of 1e-7 of the weight, which is a tenth of this change."""
    tuned = tp.attach(make("GPT", np.float32), tp.LoHa(1), rng=0)
    for layer in tuned.wrappers.values(): layer.A2.data[:] = 1e-5
    change = tuned.wrappers[QUERY].delta()
    assert_close(tp.to_low_rank(tuned, 1).wrappers[QUERY].delta(), change, 1e-5)


def test_several_parts_are_one_change(tokens):
    tuned = tp.attach(make("Llama"), tp.HiRA(2), tp.LoRA(2), tp.FullFineTuning(("query", "norm1")), rng=0)
    move(tuned, np.random.default_rng(0))
    logits = tuned(tokens).data
    result = tp.to_low_rank(tuned, 99)
    assert_close(result(tokens), logits, 1e-10)
    assert list(result.parts) == ["LoRA", "FullFineTuning"] and all("norm1" in name for name in result.trained)


def test_what_is_not_a_weight_of_a_linear_layer_stays_as_it_was_learned(tokens, tmp_path):
    tuned = learned(make("GPT"), tp.FullFineTuning())
    logits, biases = tuned(tokens).data, tuned.trained["blocks.0.mlp.up.bias"].data.copy()
    result = tp.to_low_rank(tuned, 99)
    assert_close(result(tokens), logits, 1e-10)
    assert np.array_equal(result.trained["blocks.0.mlp.up.bias"].data, biases)
    assert not any(name.startswith("blocks") and "norm" not in name and name.endswith("weight") for name in result.trained)
    result.save(tmp_path)
    assert_close(tp.load_adapter(result.base, tmp_path)(tokens), logits, 1e-10)


def test_a_folder_for_peft(tokens, tmp_path):
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    from tests.oracles import peft_folders as oracle
    tuned = learned(make("Llama"), tp.LoHa(2))
    result = tp.to_low_rank(tuned, 3)
    result.save(tmp_path, "peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = oracle.loaded(oracle.base("Llama"), tmp_path)
    assert_close(oracle.logits(theirs, oracle.TOKENS), result(oracle.TOKENS), 1e-12)


def test_the_loras_are_pefts_numerical(tokens):
    """`convert_to_lora` decomposes in float32."""
    peft = pytest.importorskip("peft")
    import torch

    from tests.oracles.torch_gpt import torch_copy
    tuned = learned(make("GPT"), tp.LoHa(2, alpha=4))
    config = peft.LoHaConfig(r=2, alpha=4, target_modules=["query", "value"])
    theirs = peft.get_peft_model(torch_copy(tuned.frozen).float(), config)
    names = {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"}
    for path, layer in tuned.wrappers.items():
        for ours, name in names.items():
            weight = getattr(theirs.get_submodule(f"base_model.model.{path}"), name)["default"]
            weight.data = torch.as_tensor(getattr(layer, ours).data).float()
    _, state = peft.convert_to_lora(theirs, 3)
    result = tp.to_low_rank(tuned, 3)
    for path, layer in result.wrappers.items():
        A, B = (next(array for name, array in state.items() if path in name and f"lora_{x}" in name).numpy() for x in "AB")
        assert_close(layer.delta(), B @ A, 1e-5)


def test_it_can_go_on_training_and_the_base_does_not_move(tokens):
    from tests.toys import Noise
    tuned = tuned_by("loha")
    before = frozen_bytes(tuned.base)
    result = tp.to_low_rank(tuned, 2)
    history = tp.train(result, Noise(), 3, lr=1e-3)
    assert np.isfinite(history.loss).all() and frozen_bytes(tuned.base) == before


@pytest.mark.parametrize(("method", "words"), [
    (tp.PromptTuning(3), "changes states or the context"), (tp.PrefixTuning(3, hidden=3), "changes states or the context"),
    (tp.LoReFT(2), "changes states or the context"),
    (tp.TrainableTokens((1, 2)), "changes token_embedding, which is no linear layer"),
    (tp.BottleneckAdapter(4), "puts a .*Adapter at blocks.0.attention.output, which changes more than a weight"),
    (tp.IA3(), "puts a ScaledOutput at .*, which changes more than a weight"),
    (tp.FullFineTuning(("norm1",)), "changes no weight of a linear layer")])
def test_what_no_lora_can_say_is_refused_and_stays(method, words, tokens):
    tuned = learned(make("GPT"), method)
    logits = tuned(tokens).data
    with pytest.raises(tp.MethodError, match=f"^to_low_rank: .*{words}"): tp.to_low_rank(tuned, 2)
    assert np.array_equal(tuned(tokens).data, logits)


def test_what_is_off_or_makes_no_sense_is_refused():
    tuned = tp.attach(make("GPT"), tp.LoHa(2), tp.LoRA(2), rng=0)
    for rank in 0, -1, 2.0, True, None:
        with pytest.raises(tp.MethodError, match="to_low_rank: rank must be a positive integer"): tp.to_low_rank(tuned, rank)
    with pytest.raises(TypeError, match="to_low_rank: expected what attach returns, got a GPT"): tp.to_low_rank(tuned.model, 2)
    tuned.detach("LoRA")
    with pytest.raises(tp.MethodError, match="to_low_rank: the part 'LoRA', .* is switched off"): tp.to_low_rank(tuned, 2)
    tuned.reattach().merge(in_place=True)
    with pytest.raises(tp.MethodError, match="no methods any more"): tp.to_low_rank(tuned, 2)


def test_a_change_of_zero_has_no_error(tokens):
    tuned = tp.attach(make("GPT"), tp.LoHa(2), rng=0)
    result = tp.to_low_rank(tuned, 2)
    assert {*result.relative_errors.values()} == {0.0} and not result.wrappers[QUERY].delta().any()
    assert copy.deepcopy(result).relative_errors == result.relative_errors


def test_halves_of_a_thin_product(rng):
    B, A = rng.standard_normal((7, 3)), rng.standard_normal((3, 5))
    left, right = halves(*thin_svd(B, A), 3)
    assert_close(left @ right, B @ A, 1e-12)
    assert_close(left.T @ left, right @ right.T, 1e-12)
