"""Families of models: which layers and states methods find in grouped heads, gated MLPs and norms; PEFT on transformers."""

import numpy as np
import pytest

import tinypeft as tp
from tests.families import FAMILIES, make
from tests.oracles import assert_close
from tests.protocol import (
    assert_same_race,
    learned,
    move,
)
from tests.toys import Noise
from tinypeft.engine import functional as F

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft.*", "ignore::UserWarning:torch.*")
families = pytest.mark.parametrize("family", FAMILIES)


# -- which layers --------------------------------------------------------------------------------------
@families
def test_targets_name_the_same_paths_as_in_a_gpt_and_the_gate(family):
    matched = lambda targets: list(tp.attach(make(family), tp.LoRA(rank=1, targets=targets)).wrappers)
    layers = [f"attention.{x}" for x in ("query", "key", "value", "output")] + [f"mlp.{x}" for x in ("gate", "up", "down")]
    assert sorted(matched("all")) == sorted(f"blocks.{n}.{x}" for n in (0, 1) for x in layers)
    assert matched(("query", "value")) == [f"blocks.{n}.attention.{x}" for n in (0, 1) for x in ("query", "value")]
    assert matched(("blocks.1.mlp.gate",)) == ["blocks.1.mlp.gate"]
    for name in ("lm_head", "token_embedding"):
        tied = make(family).lm_head is None and name != "lm_head"
        says = "is the token embedding, which is tied" if tied else "here are attention, blocks, down, gate, key"
        with pytest.raises(ValueError, match=f"'{name}' .*{says}"): matched((name,))


@families
def test_a_prefix_starts_as_if_real_words_had_gone_before(family, tokens):
    """The stored keys are rotated already, and the text starts at position P."""
    model = make(family)
    want = model(np.hstack([np.tile([7, 1, 7], (3, 1)), tokens])).data[:, 3:]
    for method in (tp.PTuningV2(3, init="text", text=(7, 1)), tp.PrefixTuning(3, hidden=3, init="text", text=(7, 1))):
        tuned = tp.attach(model, method)
        np.testing.assert_allclose(tuned(tokens).data, want, rtol=0, atol=1e-10)


@families
def test_one_vector_scales_what_the_down_projection_reads(family, rng):
    """IA³'s l_ff multiplies γ(gate(x)) ⊙ up(x), the inner activations of a gated MLP; so does a vector behind `up`."""
    model = make(family)
    mlp, x = model.blocks[0].mlp, tp.Tensor(rng.standard_normal((4, model.config.d_model)))
    inner, l = F.geglu if family == "Gemma" else F.swiglu, rng.standard_normal(20)
    want = (l * inner(mlp.gate(x), mlp.up(x)).data) @ mlp.down.weight.data.T
    for method, place in (tp.IA3(), "down"), (tp.IA3(targets=("up",), feedforward=None), "up"):
        tuned = tp.attach(model, method)
        tuned.wrappers[f"blocks.0.mlp.{place}"].l.data[:] = l
        assert_close(tuned.model.blocks[0].mlp(x), want, 1e-12)


@families
def test_a_model_without_biases_has_none_to_train(family):
    model = make(family)
    for name in "bias", "wrong":
        with pytest.raises(ValueError, match=f"{name!r} matches none of the parameters; .*here are attention.*gate"):
            tp.attach(model, tp.FullFineTuning(targets=(name,)))
    norms = tp.attach(model, tp.FullFineTuning(targets=("norm1", "norm2", "final_norm")))
    assert norms.summary().trained == 5 * model.config.d_model
    mlp = tp.attach(model, tp.FullFineTuning(targets=("mlp",)))
    assert sorted(mlp.trained) == sorted(f"blocks.{n}.mlp.{x}.weight" for n in (0, 1) for x in ("gate", "up", "down"))


@families
def test_an_adapter_says_of_which_family_it_is(family, tmp_path):
    """The same sizes are not enough: on a GPT its numbers would have no meaning."""
    tp.attach(make(family, np.float32), tp.LoRA(rank=2)).save(tmp_path)
    with pytest.raises(tp.MethodError, match=f"made for a model of .* a {type(make(family)).__name__}; this one is a GPT of"):
        tp.load_adapter(make("GPT", np.float32), tmp_path)
    with pytest.raises(tp.MethodError, match="rope_theta"):
        tp.load_adapter(make(family, np.float32, rope_theta=1e4), tmp_path)


# -- PEFT on transformers' own models, in float64 ------------------------------------------------------
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WRAPPED = {
    "LoRA": (tp.LoRA(rank=3, alpha=5, targets="all", rank_pattern={"gate": 2}), lambda peft: peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=LAYERS, rank_pattern={"gate_proj": 2})),
    "DoRA": (tp.DoRA(rank=3, alpha=5, targets="all", rank_pattern={"gate": 2}), lambda peft: peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=LAYERS, rank_pattern={"gate_proj": 2}, use_dora=True)),
    "AdaLoRA": (tp.AdaLoRA(init_rank=4, target_rank=2, t_init=2, t_final=3, delta_t=1, orthogonality="norm", gamma=0.5,
                           importance="after", alpha=9 * 4 / (4 + 1e-5), targets=("query", "value", "gate", "down")),
                lambda peft: peft.AdaLoraConfig(
        init_r=4, target_r=2, tinit=2, tfinal=3, deltaT=1, lora_alpha=9, orth_reg_weight=0.5, total_step=10,
        target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"])),
    "IA³": (tp.IA3(), lambda peft: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"],
                                                  feedforward_modules=["down_proj"]))}


@families
@pytest.mark.parametrize("kind", WRAPPED)
def test_logits_and_10_steps_of_adamw_equal_pefts_numerical(kind, family, tokens):
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    from tests.oracles import peft_lora
    method, config = WRAPPED[kind]
    tuned = learned(make(family), method)
    theirs = peft_lora.peft_model(tuned, config(peft))
    assert_close(tuned(tokens), theirs(tokens).logits, 1e-12)
    ours = tp.train(tuned, Noise(), 10, lr=1e-2, schedule_kind="constant", warmup=0, clip=None, weight_decay=0.0, workers=1)
    assert_close(ours.loss, peft_lora.train(theirs, Noise(), 10, 8, lr=1e-2), 1e-10)
    for path, name, p, their_p in peft_lora.pairs(tuned, theirs):
        assert_close(p, their_p.reshape(p.shape), 1e-8, f"{path}.{name}")
    if kind == "AdaLoRA": assert len(set(tuned.ranks().values())) > 1      # it pruned


VIRTUAL = {
    "prefix": (tp.PTuningV2(3, init="random", dropout=0.0), lambda peft: peft.PrefixTuningConfig(
        num_virtual_tokens=3, task_type="CAUSAL_LM")),
    "prefix of an MLP": (tp.PrefixTuning(3, hidden=5), lambda peft: peft.PrefixTuningConfig(
        num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=5, task_type="CAUSAL_LM")),
    "prompt": (tp.PromptTuning(3, "random"), lambda peft: peft.PromptTuningConfig(
        num_virtual_tokens=3, task_type="CAUSAL_LM")),
    "P-tuning": (tp.PTuning((3, "target"), encoder="mlp", hidden=5), lambda peft: peft.PromptEncoderConfig(
        num_virtual_tokens=3, encoder_hidden_size=5, task_type="CAUSAL_LM"))}


@families
@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_equal_pefts_for_10_steps_numerical(kind, family, tokens):
    """PEFT puts the prefix into the cache of transformers' model, which decides positions, windows and shared heads."""
    peft = pytest.importorskip("peft")
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from tests.oracles.torch_llama import torch_llama
    method, config = VIRTUAL[kind]
    tuned = tp.attach(make(family), method, rng=0)
    move(tuned, np.random.default_rng(0))
    model = peft.get_peft_model(torch_llama(tuned.frozen), config(peft)).double()
    encoder, v = model.prompt_encoder["default"], tuned.virtual
    theirs, ours = [p for _, p in encoder.named_parameters()], list(v.parameters())
    by_shape = lambda ps: sorted(ps, key=lambda p: str(tuple(p.shape)))

    def oracle(x):
        x = torch.as_tensor(x)
        return model(input_ids=x, attention_mask=torch.ones_like(x)).logits[:, -x.shape[1]:]
    assert_same_race(tuned, oracle, list(zip(by_shape(ours), by_shape(theirs), strict=True)), tokens, steps=10)
