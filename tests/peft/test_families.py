"""Every method on every family of models: grouped heads, gated MLPs, norms of queries and keys, tied heads and others."""
import copy
import pickle
import tracemalloc

import numpy as np
import pytest

import tinypeft as tp
from tests.families import FAMILIES, make
from tests.oracles import assert_close
from tests.protocol import (
    Labels,
    assert_gradients,
    assert_same_race,
    frozen_bytes,
    hold_norm,
    learned,
    move,
    outputs,
)
from tests.toys import Noise
from tinypeft.engine import functional as F
from tinypeft.models.llama import Llama, LlamaConfig

SMALL = {"adapter": tp.BottleneckAdapter(4),
         "parallel_adapter": tp.ParallelAdapter(4, beside="both", activation="gelu"),
         "prefix": tp.PrefixTuning(3, hidden=5), "prompt": tp.PromptTuning(3), "ptuning": tp.PTuning(hidden=4),
         "ptuning_v2": tp.PTuningV2(3, dropout=0.0), "lora": tp.LoRA(rank=2, alpha=2, targets="all"),
         "adalora": tp.AdaLoRA(init_rank=4, target_rank=2, t_init=1, t_final=1, delta_t=1, targets=("value", "down")),
         "dylora": tp.DyLoRA(rank=4, alpha=4, targets="all"), "dora": tp.DoRA(rank=2, alpha=3, targets="all"),
         "loha": tp.LoHa(rank=2), "lokr": tp.LoKr(rank=2, targets=("query", "up")), "hira": tp.HiRA(rank=2),
         "vera": tp.VeRA(rank=5, targets=("query", "value", "down")),
         "randlora": tp.RandLoRA(rank=3, alpha=1, targets=("query", "value", "down")),
         "fourierft": tp.FourierFT(20, alpha=20, targets="all"),
         "c3a": tp.C3A(targets="all"),
         "miss": tp.MiSS(rank=3, targets="all"), "shira": tp.SHiRA(rank=1, targets=("query", "up")),
         "oft": tp.OFT(4, targets=("query", "up")),
         "loreft": tp.LoReFT(rank=2, first=2, last=1),
         "trainable_tokens": tp.TrainableTokens((3, 7, 1, 36, 20))}
METHODS = {name: SMALL.get(name) or cls() for name, cls in tp.METHODS.items() if name != "probe"}   # its head: test_probe.py
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft.*", "ignore::UserWarning:torch.*")
families = pytest.mark.parametrize("family", FAMILIES)
methods = pytest.mark.parametrize("name", METHODS)


# -- what every method does on every model -------------------------------------------------------------
CELLS = [(name, family, weights) for name in METHODS for family in ("GPT", *FAMILIES) for weights in ("float32", "NF4", "GGUF")]
CODED = "codes cannot be trained"
LEFT_OUT = {("full", "NF4"): CODED, ("full", "GGUF"): CODED}                  # (method, weights) → reason, in the error's words
BEYOND_WEIGHTS = {"adapter", "parallel_adapter", "prefix", "prompt", "ptuning", "ptuning_v2",
                  "loreft"}                                                   # these cannot be merged
NOT_AT_THE_BASE = {"adapter": "the paper starts it near the identity", "prefix": "virtual tokens change the text",
                   "prompt": "the same", "ptuning": "the same", "ptuning_v2": "the same"}
KINKS = {"full": "the curvature of all weights", "ptuning": "ReLU"}           # method → why finite differences are coarse
STILL = {"adalora": ".Lam", "full": "lm_head.weight"}                         # need not move: pruned λ; classes do not read it

HELD = {"dora": hold_norm}                       # method → holds in a layer what its gradient takes as a constant


def on(family, weights, dtype=np.float32):
    """A model of plain weights, of NF4 in its blocks, or of a GGUF file's codes in its blocks, its embedding and its head."""
    if weights == "GGUF":                                                     # rows are whole blocks of 32
        sizes = {"d_model": 32} if family == "GPT" else {"d_model": 32, "d_mlp": 32, "d_head": 8}
        return tp.quantize(make(family, dtype, **sizes), tp.GGUF("Q4_0", embeddings=True))
    model = make(family, dtype)
    return tp.quantize(model, tp.NF4(block_size=8)) if weights == "NF4" else model


@methods
def test_a_wrapper_keeps_the_module_that_it_adapts(name):
    model = make("Llama", np.float32)
    for path, wrapper in METHODS[name].wrap(model, np.random.default_rng(0)).items():
        assert wrapper.base is model.get(path), path


@pytest.mark.parametrize(("name", "family", "weights"), CELLS)
def test_a_method_on_a_model(name, family, weights, tokens, tmp_path):
    """Start, three steps, off and on, a copy, a file, merged or refused, and off again: the base has not changed a bit."""
    model, method = on(family, weights), METHODS[name]
    before, flags, logits = frozen_bytes(model), [p.requires_grad for p in model.parameters()], model(tokens).data
    if reason := LEFT_OUT.get((name, weights)):
        with pytest.raises(tp.MethodError, match=reason): tp.attach(model, method, head=3)
        return
    tuned = tp.attach(model, method, head=3, rng=1)
    assert np.array_equal(tuned(tokens).data, logits) != (name in NOT_AT_THE_BASE)

    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    start = {n: p.data.copy() for n, p in tuned.named_parameters() if p.requires_grad}
    history = tp.train(tuned, Labels(), 3, batch_size=4, lr=1e-2, workers=1)
    assert np.isfinite(history.loss).all() and all(p.grad is None for p in frozen.values())
    still = [n for n, p in tuned.named_parameters() if n in start and np.array_equal(p.data, start[n])]
    assert all(n.endswith(STILL.get(name, "nothing")) for n in still), still
    learned = outputs(tuned, tokens)
    with tuned.disabled(): assert np.array_equal(tuned(tokens).data, logits) and frozen_bytes(model) == before
    assert outputs(tuned, tokens) == learned

    tuned.save(tmp_path)
    loaded = tp.load_adapter(on(family, weights), tmp_path)
    assert type(loaded.method) is type(tuned.method) and loaded.summary().stored == tuned.summary().stored
    for again in loaded, copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned)):
        assert outputs(again, tokens) == learned

    if name in BEYOND_WEIGHTS:
        with pytest.raises(tp.MethodError, match="^merge: "): tuned.merge()
    else:
        merged = tuned.merge()
        assert type(merged) is type(model) and merged.attached is None and merged.config == model.config
        assert_close(merged(tokens), tuned(tokens), 1e-5)
    assert tuned.detach() is model and frozen_bytes(model) == before and np.array_equal(model(tokens).data, logits)
    assert [p.requires_grad for p in model.parameters()] == flags and outputs(tuned.reattach(), tokens) == learned


def gradient_cells():
    """All cells; decoded weights differ little between families, so three of those wait for the long tests."""
    for name, family, weights in CELLS:
        if (name, weights) in LEFT_OUT: continue
        is_long = weights != "float32" and family != "Llama"
        yield pytest.param(name, family, weights, marks=[pytest.mark.long] * is_long)


@pytest.mark.parametrize(("name", "family", "weights"), list(gradient_cells()))
def test_gradients_are_those_of_finite_differences(name, family, weights, tokens):
    tuned = tp.attach(on(family, weights, np.float64), METHODS[name], head=3, rng=0)
    move(tuned, np.random.default_rng(0))
    for layer in tuned.wrappers.values(): HELD.get(name, lambda layer: None)(layer)
    step = 3e-4 if weights == "GGUF" else 1e-3           # these models are wider, and bend more
    assert_gradients(tuned, tokens[:2, :4], kinks=name in KINKS, step=step)


@families
@methods
def test_generates_with_and_without_cache(family, name, tokens):
    tuned = tp.attach(make(family), METHODS[name], rng=0)
    move(tuned, np.random.default_rng(0))
    a, b = (tuned.generate(tokens, 8, use_cache=cached) for cached in (True, False))
    assert a.shape == (3, 15) and np.array_equal(a, b)


@families
def test_rows_of_one_batch_have_different_methods(family, rng):
    model, tuned = make(family), {}
    for name, method in METHODS.items():
        tuned[name] = tp.attach(model, method, rng=0)
        move(tuned[name], rng)
        tuned[name].detach()
    tasks = [*METHODS, None]
    tokens = rng.integers(0, 37, (len(tasks), 6))
    got = tp.mixed_batch(model, tuned, tokens, tasks).data
    for b, task in enumerate(tasks):
        alone = tuned[task].reattach()(tokens[b:b + 1]) if task else model(tokens[b:b + 1])
        np.testing.assert_allclose(got[b], alone.data[0], rtol=0, atol=1e-10)
        if task: tuned[task].detach()
    assert len({row.tobytes() for row in got}) == len(tasks)


# -- which layers, and how many numbers --------------------------------------------------------------
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
def test_counts_are_the_formulas(family):
    """w numbers per position are the keys of a layer, of the heads that have keys of their own."""
    model = make(family)
    c, L = model.config, 2
    d, q, w, h = c.d_model, c.n_heads * c.d_head, c.n_kv_heads * c.d_head, c.d_mlp
    norms = d * ((4 if family == "Gemma" else 2) * L + 1) + (0 if family == "Llama" else 2 * c.d_head * L)
    want = {"full": model.n_parameters(), "adapter": 2 * L * (2 * d * 4 + d + 4) + norms,
            "parallel_adapter": 2 * L * (2 * d * 4 + d + 4), "prefix": 3 * w + (5 * w + 5) + 2 * L * w * (5 + 1),
            "prompt": 3 * d, "ptuning_v2": 2 * 3 * L * w, "lora": L * 2 * (2 * (d + q) + 2 * (d + w) + 3 * (d + h)),
            "adalora": L * 4 * (d + w + d + h + 2), "ia3": L * (2 * w + h)}
    want["dylora"] = 2 * want["lora"]
    want["loreft"] = L * (2 * 2 * d + 2)
    want["trainable_tokens"] = 5 * d
    want["dora"] = want["lora"] + L * (q + 2 * w + 2 * d + 2 * h)             # and a length for each output
    for name, n in want.items():
        tuned = tp.attach(model, METHODS[name])
        assert tuned.summary().trained == n, name
        if name in ("prefix", "ptuning_v2"): assert tuned.summary().stored == 2 * 3 * L * w
        tuned.detach()


@families
def test_a_prefix_starts_as_if_real_words_had_gone_before(family, tokens):
    """The stored keys are rotated already, and the text starts at position P."""
    model = make(family)
    want = model(np.hstack([np.tile([7, 1, 7], (3, 1)), tokens])).data[:, 3:]
    for method in (tp.PTuningV2(3, init="text", text=(7, 1)), tp.PrefixTuning(3, hidden=3, init="text", text=(7, 1))):
        tuned = tp.attach(model, method)
        np.testing.assert_allclose(tuned(tokens).data, want, rtol=0, atol=1e-10)
        assert tuned.detach() is model


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
        assert_close(mlp(x), want, 1e-12)
        tuned.detach()


@families
def test_a_model_without_biases_has_none_to_train(family):
    model = make(family)
    for name in "bias", "wrong":
        with pytest.raises(ValueError, match=f"{name!r} matches none of the parameters; .*here are attention.*gate"):
            tp.attach(model, tp.FullFineTuning(targets=(name,)))
    norms = tp.attach(model, tp.FullFineTuning(targets=("norm1", "norm2", "final_norm")))
    assert norms.summary().trained == 5 * model.config.d_model
    norms.detach()
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


def test_nothing_but_full_fine_tuning_copies_the_weights(tmp_path):
    """7 MB of weights: attaching, switching off, saving and loading take a tenth of that."""
    model = Llama(LlamaConfig(8192, 256, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, d_mlp=384, d_head=32))
    most = model.n_parameters() * 4 // 10
    peaks, tokens = {}, np.arange(12).reshape(2, 6)

    def traced(what, call):
        tracemalloc.start()
        try: return call()
        finally:
            peaks[what] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    for name, method in METHODS.items():
        if name == "full": continue
        tuned = traced(name, lambda method=method: tp.attach(model, method, rng=0))
        tuned(tokens)                                    # and it runs
        traced(f"{name} detached", tuned.detach)
    assert peaks["lora"] - sum(p.data.nbytes for p in tuned.trainable_parameters()) < 2e5
    tuned = tp.attach(model, tp.LoRA(rank=2), rng=0)
    traced("save", lambda: tuned.save(tmp_path / "ours"))
    tuned.save(tmp_path / "peft", format="peft")         # the first time imports what PEFT's format needs
    traced("save for PEFT", lambda: tuned.save(tmp_path / "peft", format="peft"))
    traced("off and on", lambda: tuned.detach() and tuned.reattach())
    for folder in ("ours", "peft"):
        tuned.detach()
        tuned = traced(f"load {folder}", lambda folder=folder: tp.load_adapter(model, tmp_path / folder))
    assert max(peaks.values()) < most, {what: n for what, n in peaks.items() if n >= most}


@methods
def test_a_learning_rate_can_be_given(name):
    """Its default suits a model 128 wide."""
    moved = []
    for lr in (None, 1e-12):
        tuned = tp.attach(make("Llama", np.float32), METHODS[name], head=3, rng=1)
        start = [p.data.copy() for p in tuned.trainable_parameters()]
        tp.train(tuned, Labels(), 3, batch_size=4, lr=lr, weight_decay=0.0)
        moved.append(max(np.abs(p.data - a).max() for p, a in zip(tuned.trainable_parameters(), start, strict=True)))
    assert moved[0] > 1e-5 and moved[1] < 1e-9


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
    with tuned.disabled() as base: model = peft.get_peft_model(torch_llama(base), config(peft)).double()
    encoder, v = model.prompt_encoder["default"], tuned.virtual
    theirs, ours = [p for _, p in encoder.named_parameters()], list(v.parameters())
    by_shape = lambda ps: sorted(ps, key=lambda p: str(tuple(p.shape)))

    def oracle(x):
        x = torch.as_tensor(x)
        return model(input_ids=x, attention_mask=torch.ones_like(x)).logits[:, -x.shape[1]:]
    assert_same_race(tuned, oracle, list(zip(by_shape(ours), by_shape(theirs), strict=True)), tokens, steps=10)
