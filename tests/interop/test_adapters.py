"""PEFT's adapter folders, both ways: both sides compute the same, and every wrong folder is refused."""
import contextlib
import copy
import json
import re
import shutil
import time
import warnings

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.oracles import relative_error as error
from tests.protocol import move
from tests.toys import Noise
from tinypeft.commands.cli import main
from tinypeft.files import load_arrays
from tinypeft.interop import adapters, read_safetensors, write_safetensors
from tinypeft.interop.peft_config import Config, matches
from tinypeft.interop.peft_names import names_of

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from tests.oracles import peft_folders as oracle  # noqa: E402
from tests.oracles.peft_folders import CONFIG, SEVEN, TENSORS, TOKENS, pytestmark  # noqa: E402, F401

ALL = ("query", "key", "value", "output", "up", "down")
OURS = [
    tp.LoRA(rank=2), tp.LoRA(rank=2, alpha=3, targets="all", rank_stabilized=True),
    tp.LoRA(rank=2, targets=ALL, rank_pattern={"value": 3, "blocks.1.mlp.up": 4}, alpha_pattern={"query": 3.5}),
    tp.LoRA(rank=3, targets=("blocks.1.attention.key", "blocks.0.mlp.down"), dropout=0.1),
    tp.LoRA(rank=3, targets=("blocks.1-", "up", "!value"), rank_pattern={"blocks.1.attention": 2, "u*": 1}),
    tp.LoRA(rank=2, targets=("!blocks.0.query", "!blocks.1.mlp")),
    tp.DyLoRA(rank=4), tp.DyLoRA(rank=4, rescale=False, targets="all"),
    tp.AdaLoRA(init_rank=4, target_rank=2, t_init=1, t_final=2, delta_t=1),
    tp.AdaLoRA(init_rank=4, target_rank=1, t_init=1, t_final=2, delta_t=1, alpha=8, targets=("query", "value", "up")),
    tp.AdaLoRA(init_rank=3, target_rank=3, t_init=0.1, t_final=0.2), tp.PrefixTuning(length=3),
    tp.PrefixTuning(length=3, reparameterize=False), tp.PTuningV2(length=4), tp.PromptTuning(length=3),
    tp.PTuning(), tp.PTuning(template=(3, "target"), encoder="mlp")]
THEIRS = {
    "LoRA": peft.LoraConfig(r=3, lora_alpha=5),
    "rsLoRA": peft.LoraConfig(r=2, use_rslora=True, target_modules=["attn.c_proj", "c_fc"], task_type="CAUSAL_LM"),
    "patterns": peft.LoraConfig(r=2, target_modules=r".*\.(attn|mlp)\.(c_attn|c_proj)", rank_pattern={"mlp.c_proj": 4},
                                alpha_pattern={r"h\.1\.attn\.c_attn": 3, "h.0.attn.c_attn": 2}, lora_dropout=0.1),
    "all but one": peft.LoraConfig(r=2, target_modules="all-linear", exclude_modules=["mlp.c_proj"],
                                 task_type="CAUSAL_LM"),
    "AdaLoRA pruned": peft.AdaLoraConfig(init_r=4, target_r=1, total_step=8, tinit=1, tfinal=2, task_type="CAUSAL_LM",
                                         target_modules=["c_attn", "c_fc"]),
    "AdaLoRA": peft.AdaLoraConfig(init_r=3, target_r=3, total_step=100, tinit=20, tfinal=20, lora_alpha=5,
                                  task_type="CAUSAL_LM"),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix of an MLP": peft.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, task_type="CAUSAL_LM"),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "P-tuning, MLP": peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=12, task_type="CAUSAL_LM"),
    "P-tuning, LSTM": peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_reparameterization_type="LSTM",
                                               task_type="CAUSAL_LM")}
dtypes = pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-12)], ids=["float32", "float64"])


@pytest.fixture(scope="module")
def base():
    """dtype → transformers' GPT-2 with the weights of `make_gpt(dtype)`."""
    made = {}
    def of(dtype, classes=None):
        if (dtype, classes) not in made: made[dtype, classes] = oracle.gpt2(make_gpt(dtype), classes)
        return made[dtype, classes]
    return of


def learned(method, dtype=np.float32, steps=12, **options):
    """`method` after a few steps of training on random tokens, so that only pruned values are zero."""
    tuned = tp.attach(make_gpt(dtype), method, rng=3, **options)
    tp.train(tuned, Noise(), steps, lr=5e-2, batch_size=4)
    if tuned.head is not None: move(tuned, np.random.default_rng(0))
    return tuned


# -- the same function on both sides ------------------------------------------------------------------------------
@dtypes
@pytest.mark.parametrize("method", OURS, ids=str)
def test_peft_computes_what_our_adapter_computes_numerical(method, dtype, tolerance, base, tmp_path):
    tuned = learned(method, dtype)
    if isinstance(method, tp.DyLoRA): tuned.set_rank(3)
    if isinstance(method, tp.AdaLoRA): assert min(tuned.ranks().values()) == 3 or min(tuned.ranks().values()) < 4
    tuned.save(tmp_path, format="peft")
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, TENSORS]
    with tuned.disabled(): plain = tuned(TOKENS).data
    assert error(tuned(TOKENS), plain) > 0.01
    again = tp.load_adapter(make_gpt(dtype), tmp_path)
    assert again(TOKENS).dtype == dtype and error(again(TOKENS), tuned(TOKENS)) <= tolerance
    if tuned.virtual is None: assert error(again.merge()(TOKENS), tuned(TOKENS)) <= tolerance
    else: tolerance = max(tolerance, 1e-6)                               # PEFT loads virtual tokens into float32
    if isinstance(method, tp.AdaLoRA): tolerance = max(tolerance, 1e-7)  # and has init_r + 1e-5 in float32
    assert error(oracle.logits(oracle.loaded(base(dtype), tmp_path), TOKENS), tuned(TOKENS)) <= tolerance


@dtypes
@pytest.mark.parametrize("name", THEIRS)
def test_a_peft_adapter_computes_the_same_here_and_merges_numerical(name, dtype, tolerance, base, tmp_path):
    theirs = oracle.trained(base(dtype), copy.deepcopy(THEIRS[name]), TOKENS, steps=8)
    theirs.save_pretrained(tmp_path / "peft")
    expected = oracle.logits(theirs, TOKENS)
    tuned = tp.load_adapter(make_gpt(dtype), tmp_path / "peft")
    if "MLP" in name and dtype is np.float64: tolerance = 1e-6           # what the encoder computes is saved in float32
    assert error(oracle.logits(base(dtype), TOKENS), expected) > 0.01
    assert error(tuned(TOKENS), expected) <= tolerance
    if name == "AdaLoRA pruned":
        assert 0 < sum(w.rank < w.Lam.size for w in tuned.wrappers.values())
    if tuned.virtual is None: assert error(tuned.merge()(TOKENS), tuned(TOKENS)) <= tolerance

    tuned.save(tmp_path / "ours")                                        # in our own format, bit for bit
    assert np.array_equal(tp.load_adapter(make_gpt(dtype), tmp_path / "ours")(TOKENS).data, tuned(TOKENS).data)
    tuned.save(tmp_path / "back", format="peft")
    assert error(tp.load_adapter(make_gpt(dtype), tmp_path / "back")(TOKENS), tuned(TOKENS)) <= tolerance
    tp.train(tuned, Noise(), 45 if name == "AdaLoRA" else 8, lr=1e-2, batch_size=4)      # and it learns on
    assert error(tuned(TOKENS), expected) > 1e-3


@pytest.mark.parametrize("method", [tp.LoRA(rank=2), tp.LoRA(rank=2, alpha=8, targets="all"),
                                    tp.LoRA(rank=4, rank_stabilized=True)], ids=str)
def test_separate_pairs_survive_the_round_trip_bit_exact(method, tmp_path):
    tuned = learned(method)
    tuned.save(tmp_path, format="peft")
    state = tp.load_adapter(make_gpt(np.float32), tmp_path).state_dict()
    assert state.keys() == tuned.state_dict().keys()
    assert all(np.array_equal(a, state[name]) for name, a in tuned.state_dict().items())
    scales = [w.scale for w in tp.load_adapter(make_gpt(np.float32), tmp_path).wrappers.values()]
    assert scales == pytest.approx([w.scale for w in tuned.wrappers.values()], rel=1e-12)


def test_the_matrix_of_query_and_value_is_made_of_blocks(tmp_path):
    tuned = learned(tp.LoRA(rank=2, alpha=6, rank_pattern={"blocks.1.attention.value": 3}))
    tuned.save(tmp_path, format="peft")
    config, file = json.loads((tmp_path / CONFIG).read_text()), read_safetensors(tmp_path / TENSORS)
    assert config["r"] == 4 and config["rank_pattern"] == {"transformer.h.1.attn.c_attn": 5}
    assert config["target_modules"] == ["attn.c_attn"] and config["fan_in_fan_out"] is True
    A, B = (file[f"base_model.model.transformer.h.0.attn.c_attn.lora_{x}.weight"] for x in "AB")
    assert A.shape == (4, 16) and B.shape == (48, 4)
    assert not B[:16, 2:].any() and not B[16:32].any() and not B[32:, :2].any() and B[:16, :2].all() and B[32:, 2:].all()
    query = tuned.wrappers["blocks.0.attention.query"]
    assert np.array_equal(A[:2], query.A.data) and np.array_equal(B[:16, :2], query.B.data)


def test_a_fused_pair_becomes_three_that_start_with_one_A(base, tmp_path):
    oracle.trained(base(np.float32), peft.LoraConfig(r=3), TOKENS).save_pretrained(tmp_path)
    tuned = tp.load_adapter(make_gpt(np.float32), tmp_path)
    assert tuned.method == tp.LoRA(rank=3, alpha=8, targets=("query", "key", "value"))
    A = [tuned.wrappers[f"blocks.0.attention.{x}"].A.data for x in ("query", "key", "value")]
    assert np.array_equal(A[0], A[1]) and np.array_equal(A[0], A[2]) and not np.shares_memory(A[0], A[1])


def test_an_untrained_adapter_is_loaded_too(base, tmp_path):
    oracle.trained(base(np.float32), peft.LoraConfig(r=2), TOKENS, steps=0).save_pretrained(tmp_path)
    tuned = tp.load_adapter(make_gpt(np.float32), tmp_path)
    assert len(tuned.wrappers) == 6 and np.array_equal(tuned(TOKENS).data, make_gpt(np.float32)(TOKENS).data)


def test_the_first_matching_pattern_in_the_file_counts_as_in_peft(base, tmp_path):
    """PEFT sorts the patterns when it saves, so it may load another function than it trained."""
    config = peft.LoraConfig(r=2, alpha_pattern={r"h\.1\.attn\.c_attn": 3, "c_attn": 2})
    theirs = oracle.trained(base(np.float32), config, TOKENS)
    theirs.save_pretrained(tmp_path)
    loaded = oracle.logits(oracle.loaded(base(np.float32), tmp_path), TOKENS)
    assert error(tp.load_adapter(make_gpt(np.float32), tmp_path)(TOKENS), loaded) <= 1e-5
    assert error(oracle.logits(theirs, TOKENS), loaded) > 1e-3


def test_peft_can_train_an_exported_adapter_further(base, tmp_path):
    tuned = learned(tp.LoRA(rank=2, targets=("query", "key", "value", "up")))
    tuned.save(tmp_path, format="peft")
    theirs = oracle.loaded(base(np.float32), tmp_path, is_trainable=True)
    assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == 2 * (6 * (16 + 48) + 2 * (16 + 64))
    oracle.loss(theirs, TOKENS).backward()
    tp.functional.cross_entropy(tuned(TOKENS[:, :-1]), TOKENS[:, 1:]).backward()
    module = theirs.base_model.model.transformer.h[0].attn.c_attn
    ours = [tuned.wrappers[f"blocks.0.attention.{x}"] for x in ("query", "key", "value")]
    assert error(module.lora_A["default"].weight.grad, np.concatenate([w.A.grad for w in ours])) <= 1e-5
    assert error(module.lora_B["default"].weight.grad[32:, 4:], ours[2].B.grad) <= 1e-5


@pytest.mark.parametrize("name", ["LoRA", "prefix", "prompt"])
def test_generates_what_peft_generates(name, base, tmp_path):
    """PEFT runs without a cache: with one, and transformers 5, PEFT 0.21 loses the prefix and fails on a prompt."""
    oracle.trained(base(np.float32), copy.deepcopy(THEIRS[name]), TOKENS).save_pretrained(tmp_path)
    ids, theirs = oracle.torch.as_tensor(TOKENS), oracle.loaded(base(np.float32), tmp_path)
    expected = theirs.generate(input_ids=ids, attention_mask=oracle.torch.ones_like(ids), max_new_tokens=8, do_sample=False,
                               eos_token_id=None, use_cache=False)
    assert np.array_equal(tp.load_adapter(make_gpt(np.float32), tmp_path).generate(TOKENS, 8), expected.numpy())


def test_models_and_adapters_of_both_sides_combine(base, tmp_path):
    """Their GPT-2 is tuned here; the adapter loads onto it there; merged and exported models load there, too."""
    base(np.float32).save_pretrained(tmp_path / "gpt2")
    tuned = tp.attach(tp.load_model(tmp_path / "gpt2", expected=tp.GPT), tp.LoRA(rank=2))
    tp.train(tuned, Noise(), 5, lr=5e-2, batch_size=4)
    tuned.save(tmp_path / "adapter", format="peft")
    assert error(oracle.logits(oracle.loaded(base(np.float32), tmp_path / "adapter"), TOKENS), tuned(TOKENS)) <= 1e-5
    tp.save_model(tuned.merge(), tmp_path / "merged")
    tp.save_model(tuned.detach(), tmp_path / "again")
    merged, again = (oracle.GPT2LMHeadModel.from_pretrained(tmp_path / name).eval() for name in ("merged", "again"))
    assert error(oracle.logits(merged, TOKENS), tuned(TOKENS)) <= 1e-5
    assert error(oracle.logits(oracle.loaded(again, tmp_path / "adapter"), TOKENS), tuned(TOKENS)) <= 1e-5


# -- a classification head -----------------------------------------------------------------------
HEADS = [tp.LoRA(rank=2), tp.AdaLoRA(init_rank=4, target_rank=2, t_init=1, t_final=2, delta_t=1), tp.PTuningV2(length=3),
         tp.PromptTuning(length=3), tp.PTuning(template=(3, "target"))]


@pytest.mark.parametrize("method", HEADS, ids=str)
def test_a_head_trained_here_classifies_the_same_there_numerical(method, base, tmp_path):
    tuned = learned(method, head=3, head_bias=False)
    tuned.save(tmp_path, format="peft")
    theirs = oracle.loaded(base(np.float32, 3), tmp_path)
    assert error(oracle.class_logits(theirs, TOKENS), tuned.class_logits(TOKENS, SEVEN)) <= 1e-5
    again = tp.load_adapter(make_gpt(np.float32), tmp_path)
    assert error(again.class_logits(TOKENS, [3, 7, 5]), tuned.class_logits(TOKENS, [3, 7, 5])) <= 1e-6
    assert again.head.bias is None and again.head.weight.requires_grad
    if tuned.virtual is None:                                            # PEFT does not see padding behind virtual tokens
        padded = np.where(np.arange(7) < np.reshape([3, 7, 5], (3, 1)), TOKENS, 0)
        assert error(oracle.class_logits(theirs, padded), tuned.class_logits(padded, [3, 7, 5])) <= 1e-5
    again.save(tmp_path / "ours")                                        # without a bias in our own format too
    once_more = tp.load_adapter(make_gpt(np.float32), tmp_path / "ours")
    assert np.array_equal(once_more.class_logits(TOKENS, SEVEN).data, again.class_logits(TOKENS, SEVEN).data)


@pytest.mark.parametrize("config", [
    peft.LoraConfig(r=2, task_type="SEQ_CLS"), peft.AdaLoraConfig(init_r=3, target_r=2, total_step=100, task_type="SEQ_CLS"),
    peft.LoraConfig(r=2, modules_to_save=["score"]), peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"),
    peft.PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"),
    peft.PromptEncoderConfig(num_virtual_tokens=3, task_type="SEQ_CLS")], ids=lambda c: f"{c.peft_type.name} {c.task_type}")
def test_a_head_trained_there_classifies_the_same_here_numerical(config, base, tmp_path):
    theirs = oracle.trained(base(np.float32, 3), copy.deepcopy(config), TOKENS, classes=3)
    theirs.save_pretrained(tmp_path)
    tuned = tp.load_adapter(make_gpt(np.float32), tmp_path)
    assert tuned.head.d_out == 3
    assert error(tuned.class_logits(TOKENS, SEVEN), oracle.class_logits(theirs, TOKENS)) <= 1e-5


# -- what PEFT lacks ---------------------------------------------------------------------
@pytest.mark.parametrize("method, options, words", [
    (tp.BottleneckAdapter(bottleneck=4), {}, "PEFT has no counterpart of BottleneckAdapter"),
    (tp.ParallelAdapter(bottleneck=4), {}, "no counterpart"),
    (tp.FullFineTuning(), {}, "the embedding is tied to the output head, and PEFT would train two matrices"),
    (tp.FullFineTuning(targets=("bias",)), {}, "trains .*bias, but not all of that layer"),
    (tp.LinearProbe(), {"head": 3}, "the head has a bias"),
    (tp.PTuning(separator=5), {}, r"\(3, 'context', 3, 'target'\) puts pseudo-tokens after text"),
    (tp.PTuning(), {"head": 3, "head_bias": False}, "puts pseudo-tokens after text"),
    (tp.LoRA(rank=2), {"head": 3}, "head_bias")], ids=str)
def test_methods_that_peft_lacks_are_refused_and_nothing_is_written(method, options, words, tmp_path):
    with pytest.raises(tp.MethodError, match=words):
        tp.attach(make_gpt(np.float32), method, **options).save(tmp_path / "out", format="peft")
    assert not (tmp_path / "out").exists()


def test_formats_have_names():
    with pytest.raises(tp.MethodError, match="unknown format 'pickle'; there are tinypeft, peft"):
        tp.attach(make_gpt(np.float32), tp.LoRA(rank=2)).save("nowhere", format="pickle")


# -- every mismatch is reported ----------------------------------------------------------------
@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    """Folders that PEFT wrote, by name."""
    root = tmp_path_factory.mktemp("peft")
    configs = {"lora": peft.LoraConfig(r=2, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM"),
               "adalora": THEIRS["AdaLoRA pruned"], "prefix": THEIRS["prefix"], "ptuning": THEIRS["P-tuning, MLP"],
               "classes": peft.LoraConfig(r=2, task_type="SEQ_CLS"), "ia3": peft.IA3Config(task_type="CAUSAL_LM"),
               "norms": peft.LNTuningConfig(task_type="CAUSAL_LM", modules_to_save=["c_fc"]),
               "biases": peft.LoraConfig(r=2, bias="lora_only", lora_bias=True, modules_to_save=["ln_1"]),
               "rows": peft.TrainableTokensConfig(token_indices=[5, 3]),
               "rows beside": peft.LoraConfig(r=2, trainable_token_indices=[5, 3])}
    for name, config in configs.items():
        classes = 3 if name == "classes" else None
        oracle.trained(base(np.float32, classes), copy.deepcopy(config), TOKENS, classes, steps=8).save_pretrained(root / name)
    return root


def edited(folder, to, config=None, tensors=None):
    """A copy of `folder` in `to`, with fields of its config and tensors changed (None: removed) by dict or function."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    fields = json.loads((to / CONFIG).read_text()) | (config or {})
    (to / CONFIG).write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))
    if tensors:
        arrays = {n: np.array(a) for n, a in read_safetensors(to / TENSORS).items()}
        arrays = tensors(arrays) if callable(tensors) else arrays | tensors
        write_safetensors(to / TENSORS, {n: a for n, a in arrays.items() if a is not None})
    return to


A0, B0 = (f"base_model.model.transformer.h.0.attn.c_attn.lora_{x}.weight" for x in "AB")
E0 = "transformer.h.0.attn.c_attn.lora_E"
renamed = lambda f: lambda arrays: {f(n): a for n, a in arrays.items()}
WRONG = {
    "no prefix": ("lora", {}, renamed(lambda n: n.removeprefix("base_model.model.")), "must begin with 'base_model.model.'"),
    "another prefix": ("lora", {}, renamed(lambda n: n.replace("base_model.model", "model")), "must begin with"),
    "prefix twice": ("lora", {}, renamed(lambda n: "base_model.model." + n), "matched 0 tensors, missing 8"),
    "missing": ("lora", {}, {A0: None}, r"matched 7 tensors, missing 1 \(base_model.*c_attn.lora_A.weight\), not used 0"),
    "superfluous": ("lora", {}, {"x.y": np.ones(3, "f4")}, r"matched 8 tensors, missing 0, not used 1 \(x.y\)"),
    "another layer's": ("lora", {}, {A0.replace("h.0", "h.7"): np.ones((2, 16), "f4")}, "not used 1"),
    "no tensors": ("lora", {}, lambda arrays: {}, "matched 0"),
    "twice": ("lora", {}, {A0.replace("weight", "default.weight"): np.ones((2, 16), "f4")}, "the same tensor"),
    "rank": ("lora", {"r": 3}, None, r"lora_A.weight has shape \(2, 16\), expected \(3, 16\) for r = 3"),
    "rank of one": ("lora", {"rank_pattern": {"c_attn": 5}}, None, "expected .5, 16"),
    "rank zero": ("lora", {"r": 0}, None, "at least 1"),
    "transposed A": ("lora", {}, lambda a: a | {A0: a[A0].T.copy()}, "transposed"),
    "transposed B": ("lora", {}, lambda a: a | {B0: a[B0].T.copy()}, "transposed"),
    "integers": ("lora", {}, {A0: np.ones((2, 16), "i4")}, "expected floats"),
    "not a number": ("lora", {}, lambda a: a | {A0: a[A0] * np.nan}, "not finite"),
    "too large": ("lora", {}, lambda a: a | {A0: np.full((2, 16), 1e300)}, "not finite in float32"),
    "unknown type": ("lora", {"peft_type": "GRAVITY"}, None, "'GRAVITY' is not supported: there are LORA, ADALORA"),
    "not here": ("lora", {"peft_type": "BOFT"}, None, "'BOFT' is not supported"),
    "no (IA)3": ("lora", {"peft_type": "IA3"}, None, "is not supported: it may change"),
    "lower case": ("lora", {"peft_type": "lora"}, None, "in capitals, LORA"),
    "no type": ("lora", {"peft_type": ...}, None, "peft_type=None is not supported"),
    "nothing hit": ("lora", {"target_modules": ["q_proj"]}, None, "selects no layer of transformer.h.N; there are attn.c_attn"),
    "nothing hit by a pattern": ("lora", {"target_modules": "c_attn"}, None, "selects no layer"),
    "less hit": ("lora", {"target_modules": ["c_attn"]}, None, "not used 4"),
    "more hit": ("lora", {"target_modules": ["c_attn", "c_fc", "c_proj"]}, None, "missing 8"),
    "layers": ("lora", {"layers_to_transform": [1]}, None, "not used 4"),
    "excluded": ("lora", {"exclude_modules": ["c_fc"]}, None, "not used 4"),
    "embedding": ("lora", {"target_modules": ["c_attn", "wte"]}, None, "selects transformer.wte, but only the linear layers"),
    "head": ("lora", {"target_modules": ["lm_head"]}, None, "selects lm_head"),
    "DoRA": ("lora", {"use_dora": True}, None, "missing 4 .*lora_magnitude_vector"),
    "DoRA with biases": ("lora", {"use_dora": True, "lora_bias": True}, None, "lora_bias=True is not supported: with use_dora"),
    "biases": ("lora", {"bias": "all"}, None, "missing 13 .*base_layer.bias"),
    "biases of LoRA": ("lora", {"lora_bias": True}, None, "missing 4 .*lora_B.bias"),
    "PiSSA": ("lora", {"init_lora_weights": "pissa"}, None, "'pissa' is not supported: it changed the base's weights"),
    "saved modules": ("lora", {"modules_to_save": ["lm_head"]}, None, "modules_to_save=.'lm_head'. is not supported"),
    "replicated layers": ("lora", {"layer_replication": [[0, 1], [0, 2]]}, None, "layer_replication=.* is not supported"),
    "trained tokens": ("lora", {"trainable_token_indices": [3]}, None, "missing 1 .*wte.token_adapter.trainable_tokens_delta"),
    "unknown field": ("lora", {"use_gravity": True}, None, "use_gravity=True is not supported"),
    "task": ("lora", {"task_type": "TOKEN_CLS"}, None, "task_type='TOKEN_CLS' is not supported"),
    "no head": ("lora", {"task_type": "SEQ_CLS"}, None, "missing 1 .base_model.model.score.weight"),
    "head for no task": ("classes", {"task_type": "CAUSAL_LM"}, None, "modules_to_save"),
    "head of one class": ("classes", {}, {"base_model.model.score.weight": np.ones((1, 16), "f4")}, "at least 2, got 1"),
    "text for a number": ("lora", {"r": "2"}, None, "r must be int, got '2'"),
    "scale": ("lora", {"lora_alpha": -1}, None, "alpha must be a positive number"),
    "scale beyond float32": ("lora", {"lora_alpha": 1e39}, None, "LoRA: alpha must be a positive number, got 9999"),
    "dropout": ("lora", {"lora_dropout": 1.5}, None, r"\[0, 1\)"),
    "mask": ("adalora", {"rank_pattern": {E0: [True]}}, None, "to 4 booleans"),
    "mask of another": ("adalora", {"rank_pattern": {"h.9.c_attn.lora_E": [True] * 4}}, None, "expected|names"),
    "no mask": ("adalora", {"rank_pattern": None}, None, "4 of init_r = 4 triplets are left"),
    "rank of all": ("adalora", {"init_r": 5}, None, "to 5 booleans"),
    "scale of AdaLoRA": ("adalora", {"lora_alpha": 0}, None, "alpha must be a positive number"),
    "AdaLoRA's beyond float32": ("adalora", {"lora_alpha": 1e39}, None, "AdaLoRA: alpha must be a positive number, or None"),
    "no task": ("prefix", {"task_type": None}, None, "PEFT ignores an adapter without one"),
    "length": ("prefix", {"num_virtual_tokens": 4}, None, r"has shape \(3, 64\), expected \(4, 64\)"),
    "no length": ("prefix", {"num_virtual_tokens": None}, None, "num_virtual_tokens must be given"),
    "layers of prefix": ("prefix", {"num_layers": 3}, None, "num_layers=3 is not supported: this model has 2"),
    "heads of prefix": ("prefix", {"num_attention_heads": 2}, None, "num_attention_heads=2 is not supported: this model has 4"),
    "prefix with a prefix": ("prefix", {}, renamed(lambda n: "base_model.model." + n), "missing 1 .prompt_embeddings"),
    "another kind": ("prefix", {"peft_type": "PROMPT_TUNING"}, None, r"expected \(3, 16\)"),
    "not of this kind": ("ptuning", {"peft_type": "LORA"}, None, "encoder_hidden_size=12 is not supported")}


def test_two_writers_of_a_folder_leave_one_adapter(tmp_path, monkeypatch):
    """The other one comes between the tensors and the configuration."""
    ours, theirs = (moved_lora(alpha) for alpha in (4.0, 8.0))
    write, others = adapters.write_atomically, [theirs]
    def interrupted(path, text):
        if others: others.pop().save(tmp_path, "peft")
        write(path, text)
    monkeypatch.setattr(adapters, "write_atomically", interrupted)
    ours.save(tmp_path, "peft")
    loaded = tp.load_adapter(make_gpt(np.float32), tmp_path)
    assert loaded.method.alpha == 4.0 and error(loaded(TOKENS).data, ours(TOKENS).data) < 1e-6
    monkeypatch.setattr(adapters, "write_atomically", lambda path, text: (
        write(path, text), write_safetensors(tmp_path / "adapter_model.safetensors", {"x": np.ones(1)})))
    with pytest.raises(OSError, match="other processes write to"): ours.save(tmp_path, "peft")


def moved_lora(alpha):
    tuned = tp.attach(make_gpt(np.float32), tp.LoRA(rank=2, alpha=alpha), rng=0)
    move(tuned, np.random.default_rng(int(alpha)))
    return tuned


@pytest.mark.parametrize("name", WRONG)
def test_every_mismatch_is_an_error_that_names_it(name, folders, tmp_path):
    kind, config, tensors, words = WRONG[name]
    model = make_gpt(np.float32)
    before, logits = model.state_dict().keys(), model(TOKENS).data
    with pytest.raises(ValueError, match=words):
        tp.load_adapter(model, edited(folders / kind, tmp_path, config, tensors))
    assert model.attached is None and model.state_dict().keys() == before and np.array_equal(model(TOKENS).data, logits)


@pytest.mark.parametrize("kind, sizes, words", [
    ("lora", dict(d_model=32), "has the base other sizes"), ("lora", dict(n_layers=1), "not used 4"),
    ("lora", dict(n_layers=3), "missing 4"), ("prefix", dict(d_model=32), "token_dim=16 is not supported: this model has 32"),
    ("prefix", dict(n_layers=3), "num_layers"), ("prefix", dict(context_length=3), "no room"),
    ("adalora", dict(d_model=8), "has the base other sizes")])
def test_a_base_of_other_sizes_is_an_error(kind, sizes, words, folders):
    with pytest.raises(tp.MethodError if "_" in words or "room" in words else ValueError, match=words):
        tp.load_adapter(make_gpt(np.float32, **sizes), folders / kind)


def test_the_error_has_a_report(folders, tmp_path):
    with pytest.raises(tp.AdapterError) as e:
        tp.load_adapter(make_gpt(np.float32), edited(folders / "lora", tmp_path, {}, {B0: None, "x": np.ones(1, "f4")}))
    assert len(e.value.report.matched) == 7 and e.value.report.missing == (B0,) and e.value.report.unused == ("x",)
    assert isinstance(e.value, tp.MethodError) and "strict=False" in str(e.value)


def test_strict_false_loads_the_matching_tensors_and_reports_the_rest(folders, tmp_path):
    whole = tp.load_adapter(make_gpt(np.float32), folders / "lora").state_dict()
    folder = edited(folders / "lora", tmp_path, {}, {B0: None, "x": np.ones(1, "f4")})
    with pytest.warns(UserWarning, match="matched 7 tensors, missing 1 .*c_attn.lora_B.weight.*, not used 1 .x."):
        tuned = tp.load_adapter(make_gpt(np.float32), folder, strict=False)
    state = tuned.state_dict()
    assert state.keys() == {n for n in whole if not n.startswith("LoRA/blocks.0.attention")}
    assert all(np.array_equal(a, whole[n]) for n, a in state.items())
    nothing = edited(folders / "lora", tmp_path / "nothing", {}, renamed(lambda n: n.removeprefix("base_model.")))
    with pytest.raises(tp.AdapterError, match="matched 0"): tp.load_adapter(make_gpt(np.float32), nothing, strict=False)
    transposed = edited(folders / "lora", tmp_path / "transposed", {}, lambda a: a | {A0: a[A0].T.copy()})
    with pytest.raises(ValueError, match="transposed"): tp.load_adapter(make_gpt(np.float32), transposed, strict=False)


@pytest.mark.parametrize("kind, ending", [("lora", "lora_A.weight"), ("lora", "lora_B.weight"), ("adalora", "lora_A"),
                                          ("adalora", "lora_E"), ("ia3", "ia3_l"), ("biases", "lora_B.bias")])
def test_strict_false_loads_what_comes_after_a_missing_tensor(kind, ending, folders, tmp_path):
    whole = tp.load_adapter(make_gpt(np.float32), folders / kind).state_dict()
    first = next(name for name in read_safetensors(folders / kind / TENSORS) if name.endswith(ending))
    with pytest.warns(UserWarning, match=f"missing 1 .*{first}"):
        model, folder = make_gpt(np.float32), edited(folders / kind, tmp_path, {}, {first: None})
        state = tp.load_adapter(model, folder, strict=False).state_dict()
    same = [name for name, array in state.items() if np.array_equal(array, whole[name])]
    assert len(whole) / 2 <= len(same) < len(whole), whole.keys() - {*same}


@pytest.mark.parametrize("kind, config", [("lora", peft.LoraConfig), ("adalora", peft.AdaLoraConfig), ("ia3", peft.IA3Config)])
def test_a_field_that_is_not_there_has_pefts_default(kind, config, folders, tmp_path):
    needed = {"peft_type", "task_type", "target_modules", "feedforward_modules", "r", "init_r", "rank_pattern", "total_step"}
    theirs = config(**{"total_step": 8} if kind == "adalora" else {}).to_dict()
    fields = json.loads((folders / kind / CONFIG).read_text("utf-8")).keys() & theirs.keys() - needed
    stated, absent = (tp.load_adapter(make_gpt(np.float32), edited(folders / kind, tmp_path / name, values)) for name, values in
                      {"stated": {field: theirs[field] for field in fields}, "absent": dict.fromkeys(fields, ...)}.items())
    assert len(fields) > 5 and stated.method == absent.method and np.array_equal(stated(TOKENS).data, absent(TOKENS).data)


@pytest.mark.parametrize("rank", [1, 2])
def test_an_adalora_that_has_learned_nothing_keeps_one_triplet_of_each_layer(rank, tmp_path):
    model = make_gpt(np.float32)
    tuned = tp.attach(model, tp.AdaLoRA(init_rank=rank, target_rank=1, targets=("down",)))
    tuned.save(tmp_path, format="peft")
    assert {a.shape for name, a in read_safetensors(tmp_path / TENSORS).items() if name.endswith("lora_E")} == {(1, 1)}
    assert np.array_equal(tp.load_adapter(model, tmp_path)(TOKENS).data, make_gpt(np.float32)(TOKENS).data)


def test_folders_that_peft_accepts_are_accepted(folders, tmp_path):
    """An adapter's name inside the tensors' names; float16; a minimal configuration."""
    want = tp.load_adapter(make_gpt(np.float32), folders / "lora")(TOKENS).data
    named = edited(folders / "lora", tmp_path / "1", {}, renamed(lambda n: n.replace(".weight", ".default.weight")))
    assert np.array_equal(tp.load_adapter(make_gpt(np.float32), named)(TOKENS).data, want)
    half = edited(folders / "lora", tmp_path / "2", {}, lambda arrays: {n: a.astype("f2") for n, a in arrays.items()})
    assert 0 < error(tp.load_adapter(make_gpt(np.float32), half)(TOKENS), want) < 1e-2
    minimal = edited(folders / "lora", tmp_path / "3")
    (minimal / CONFIG).write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["c_fc", "c_attn"]}')
    assert np.array_equal(tp.load_adapter(make_gpt(np.float32), minimal)(TOKENS).data, want)


def test_folders_are_known_by_their_files(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="no adapter.safetensors or adapter_config.json in"):
        tp.load_adapter(make_gpt(np.float32), tmp_path)
    both = edited(folders / "lora", tmp_path / "both")
    tp.attach(make_gpt(np.float32), tp.LoRA(rank=2)).save(both)
    with pytest.raises(ValueError, match="two adapters"): tp.load_adapter(make_gpt(np.float32), both)
    only = edited(folders / "lora", tmp_path / "only")
    (only / TENSORS).rename(only / "adapter_model.bin")
    with pytest.raises(tp.MethodError, match="pickle and can run code"): tp.load_adapter(make_gpt(np.float32), only)
    (only / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors"): tp.load_adapter(make_gpt(np.float32), only)
    for text in ("", "[1]", "{", "[" * 100_000, '{"r": 1e400'):
        (only / CONFIG).write_text(text)
        with pytest.raises(ValueError, match="adapter_config.json"): tp.load_adapter(make_gpt(np.float32), only)


def test_an_adapter_loads_onto_a_quantized_base(folders):
    model = tp.quantize(make_gpt(np.float32), tp.NF4(block_size=16))
    tuned = tp.load_adapter(model, folders / "lora")
    assert error(tuned.merge()(TOKENS), tuned(TOKENS)) <= 1e-5


# -- names and patterns --------------------------------------------------------------------------
PATHS = [name for n in range(12) for name in (f"transformer.h.{n}.attn.c_attn", f"transformer.h.{n}.attn.c_proj",
                                              f"transformer.h.{n}.mlp.c_fc", f"transformer.h.{n}.mlp.c_proj")]


@pytest.mark.parametrize("fields", [
    {"target_modules": ["c_attn"]}, {"target_modules": ["c_proj"]}, {"target_modules": ["proj", "c_fc"]},
    {"target_modules": ["attn.c_proj", "transformer.h.3.mlp.c_fc"]}, {"target_modules": r".*\.attn\.(c_attn|c_proj)"},
    {"target_modules": r".*h\.1\d*\..*c_fc"}, {"target_modules": r"transformer\.h\.[0-5]\.(?:attn|mlp)\.c_proj$"},
    {"target_modules": "^transformer.h.(1|3|10).mlp.+"}, {"target_modules": ["c_fc"], "exclude_modules": ["h.3.mlp.c_fc"]},
    {"target_modules": ["c_fc"], "exclude_modules": r".*\.[1-3]\..*"}, {"target_modules": ["c_fc"], "layers_to_transform": 2},
    {"target_modules": ["c_fc", "c_attn"], "layers_to_transform": [1, 11]},
    {"target_modules": ["c_fc"], "layers_to_transform": [4], "layers_pattern": "h"},
    {"target_modules": ["c_fc"], "layers_to_transform": [4], "layers_pattern": ["h"]},
    {"target_modules": "all-linear", "exclude_modules": ["c_proj"]}], ids=str)
def test_layers_are_selected_as_in_peft(fields, tmp_path):
    from peft.tuners.tuners_utils import check_target_module_exists
    (tmp_path / CONFIG).write_text(json.dumps(fields))
    config = peft.LoraConfig(**fields)
    if fields["target_modules"] == "all-linear": config.target_modules = set(PATHS)     # PEFT resolves it beforehand
    hit = {p: check_target_module_exists(config, p) for p in PATHS}
    expected = [p for p, found in hit.items() if found and type(found).__name__ != "_ExcludedModule"]
    assert expected and Config(tmp_path / CONFIG).select(names_of(make_gpt()), PATHS) == expected


def test_patterns_give_values_as_in_peft(tmp_path):
    from peft.utils.other import get_pattern_key
    pattern = {"h.1.attn.c_attn": 3, r"h\.[2-4]\.mlp\..*": 5, "c_proj": 7, "transformer.h.5.mlp.c_fc": 9,
               "^h.11.mlp.c_fc": 4, "^transformer.h.7.mlp.c_fc": 6, "c_(attn|fc)": 2}
    (tmp_path / CONFIG).write_text(json.dumps({"rank_pattern": pattern}))
    for path in PATHS:
        expected = pattern.get(get_pattern_key(pattern.keys(), path), 8)
        assert Config(tmp_path / CONFIG).pattern_value("rank_pattern", int, path, 8) == expected


hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

atoms = st.sampled_from(["a", "b", "c", ".", r"\.", r"\d", r"\w", "[ab]", "[^a]", "[a-c]", "(a|bc)", "(?:ab|c)", "(a.|b*|c)"])
patterns = st.lists(st.tuples(atoms, st.sampled_from(["", "", "*", "+", "?"])), max_size=7).map(
    lambda tokens: "".join(atom + repeat for atom, repeat in tokens))


@hypothesis.settings(max_examples=300)
@hypothesis.given(patterns, st.text("abc.1", max_size=8))
def test_a_pattern_matches_as_in_python(pattern, text):
    assert matches(pattern, text) == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize("pattern", ["(a*)*b", "(a|a)*" * 20, "(a", "a{3}", r"(a)\1", "(?=a)a", "a" * 2000, "[b-a]", "a|b",
                                     "((a))"])
def test_other_patterns_are_refused_or_matched_quickly(pattern):
    start = time.perf_counter()
    try:
        assert matches(pattern, "a" * 40) == pattern.startswith("(a|a)*")
    except ValueError as e:
        assert "pattern" in str(e)
    assert time.perf_counter() - start < 1


def test_hostile_patterns_take_no_time(folders, tmp_path):
    start = time.perf_counter()
    for config in ({"target_modules": "(.|.)*" * 160 + "x"}, {"rank_pattern": {".*" * 25 + f"x{i}": 3 for i in range(40)}},
                   {"rank_pattern": {"." * i: 2 for i in range(1, 1000)}, "alpha_pattern": {".*" * 20 + ")" * 3: 1}}):
        with pytest.raises(ValueError): tp.load_adapter(make_gpt(np.float32), edited(folders / "lora", tmp_path, config))
    assert time.perf_counter() - start < 5


# -- damaged and hostile files --------------------------------------------------------------------
json_values = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 6), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["LORA", "ADALORA", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "CAUSAL_LM", "SEQ_CLS", "all-linear",
                     "gaussian", "c_attn", r".*\.(c_attn|c_fc)", ["c_attn"], ["c_fc", "c_attn"], ["score"], {"c_attn": 2},
                     {"c_fc": 3.5}, [0], [0, 1], ["ln_1", "mlp"], "all"]),
    st.recursive(st.integers(0, 3), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3),
                 max_leaves=5))
KINDS = ["lora", "adalora", "prefix", "ptuning", "classes", "ia3", "norms", "biases", "rows", "rows beside"]
EXAMPLES = {"ia3": 25, "norms": 25, "biases": 25, "rows": 25, "rows beside": 25}                        # the others: 60


def accepted(theirs, folder, original):
    """What PEFT computes for the folder. PEFT refuses some fields that change nothing here; then all that it computes with
    one edited field as in the original, and for the original."""
    with contextlib.suppress(Exception): return [oracle.loaded(theirs, folder)]
    models, (now, before) = [], (json.loads((place / CONFIG).read_text("utf-8")) for place in (folder, original))
    for name in {**now, **before}:
        if now.get(name, ...) == before.get(name, ...): continue
        restored = {k: v for k, v in now.items() if k != name} | {k: v for k, v in before.items() if k == name}
        (folder / CONFIG).write_text(json.dumps(restored), "utf-8")
        with contextlib.suppress(Exception): models.append(oracle.loaded(theirs, folder))
    return [*models, oracle.loaded(theirs, original)]


def loads_right_or_raises(folder, original, base, model):
    """Loading onto `model` raises a ValueError (→ False), or gives the function that PEFT gives (→ True)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tuned = tp.load_adapter(model, folder)
        except ValueError as e:
            assert str(e)
            return False
        compute = lambda model: (oracle.class_logits if tuned.head else oracle.logits)(model, TOKENS).detach().numpy()
        theirs = base(np.float32, tuned.head and tuned.head.d_out)
        with np.errstate(all="ignore"): ours = tuned.class_logits(TOKENS, SEVEN).data if tuned.head else tuned(TOKENS).data
        expected = [compute(model) for model in accepted(theirs, folder, original)]
        largest = max(np.abs(a).max() for a in tuned.state_dict().values() if a.size)
        assert largest > 1e18 or any(error(ours, logits) <= 1e-4 for logits in expected)   # 1e18: an exponent's bit
        return True


@pytest.mark.parametrize("kind", KINDS)
def test_edited_configurations_raise_or_compute_what_peft_computes(kind, folders, base, tmp_path):
    fields, loaded = sorted(json.loads((folders / kind / CONFIG).read_text())), []

    @hypothesis.settings(max_examples=EXAMPLES.get(kind, 60))
    @hypothesis.given(st.dictionaries(st.sampled_from(fields), json_values | st.just(...), min_size=1, max_size=2))
    def check(edits):
        folder = edited(folders / kind, tmp_path, edits)
        loaded.append(loads_right_or_raises(folder, folders / kind, base, make_gpt(np.float32)))
    check()
    assert loaded.count(True) > 3 and loaded.count(False) > 3


def damage(folder, file, data, to):
    """Copy a folder's two files to `to`; one bit of `file` is flipped there, or its end is missing."""
    content = bytearray((folder / file).read_bytes())
    at = int(data.draw(st.floats(0, 1, exclude_max=True)) * len(content))
    if data.draw(st.integers(0, 3)): content[at] ^= 1 << data.draw(st.integers(0, 7))
    else: del content[at:]
    for name in (CONFIG, TENSORS): shutil.copy(folder / name, to / name)
    (to / file).write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_raise_or_compute_what_peft_computes(kind, folders, base, tmp_path):
    shutil.copytree(folders / kind, tmp_path, dirs_exist_ok=True)
    loaded = []

    @hypothesis.settings(max_examples=EXAMPLES.get(kind, 60))
    @hypothesis.given(st.sampled_from([CONFIG, TENSORS]), st.data())
    def check(file, data):
        damage(folders / kind, file, data, tmp_path)
        loaded.append(loads_right_or_raises(tmp_path, folders / kind, base, make_gpt(np.float32)))
    check()
    is_twice = kind == "rows"                             # of the embedding and of the tied head: they must be equal
    assert (is_twice or loaded.count(True) > 3) and loaded.count(False) > 3


# -- the command line ----------------------------------------------------------------------------
def test_finetune_writes_a_folder_for_peft_that_generate_reads(capsys, tmp_path):
    folder = str(tmp_path / "adapter")
    assert main(["finetune", "lora", "--quick", "--steps", "2", "--out", folder, "--format", "peft", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["saved"] == folder
    assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["peft_type"] == "LORA"
    assert main(["generate", "numpy.mean(a", "--adapter", folder, "--max-new-tokens", "4", "--seed", "1"]) == 0
    assert capsys.readouterr().out.startswith("numpy.mean(a")
    model = tp.load_pretrained()
    assert tp.load_adapter(model, folder).method == tp.LoRA(rank=8)


def test_finetune_for_peft_gives_a_head_that_peft_has(capsys, tmp_path):
    argv = ["finetune", "prompt", "--task", "classify", "--quick", "--steps", "1", "--set", "length=4", "--format", "peft"]
    assert main([*argv, "--out", str(tmp_path / "a")]) == 0
    assert tp.load_adapter(tp.load_pretrained(), tmp_path / "a").head.bias is None


def test_finetune_refuses_before_training_a_method_that_peft_lacks(capsys, tmp_path):
    assert main(["finetune", "adapter", "--steps", "1000000", "--out", str(tmp_path / "b"), "--format", "peft"]) == 2
    assert "no counterpart" in capsys.readouterr().err


def test_our_own_files_say_whether_the_head_has_a_bias(tmp_path):
    tuned = tp.attach(make_gpt(np.float32), tp.LoRA(rank=2), head=3, head_bias=False)
    tuned.save(tmp_path)
    assert load_arrays(tmp_path / "adapter.safetensors")[1]["head_bias"] is False
    assert tp.load_adapter(make_gpt(np.float32), tmp_path).head.bias is None


@pytest.mark.parametrize("targets, theirs", [(("query", "value"), 4), (("query", "value", "up"), 3), (("up",), 2)])
def test_the_mean_rank_of_a_pruned_adalora_is_that_of_pefts_layers(targets, theirs, tmp_path):
    """PEFT adapts query, key and value as one layer: it gets the sum of their triplets."""
    method = tp.AdaLoRA(init_rank=4, target_rank=2, t_init=1, t_final=2, delta_t=1, targets=targets)
    learned(method).save(tmp_path, format="peft")
    assert json.loads((tmp_path / CONFIG).read_text("utf-8"))["target_r"] == theirs
