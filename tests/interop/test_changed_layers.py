"""Changes of weights in PEFT's folders, both ways: both sides compute the same, and wrong folders are refused."""
import copy
import dataclasses
import functools
import json

import numpy as np
import pytest

import tinypeft as tp
from tests.families import make
from tests.oracles import relative_error as error
from tests.protocol import move
from tests.toys import Noise
from tinypeft.commands.cli import main
from tinypeft.interop import read_safetensors, write_safetensors
from tinypeft.interop.changed_table import ROWS
from tinypeft.interop.families import FAMILIES as TABLES
from tinypeft.peft.hadamard import LoHaLinear

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from peft.utils import constants  # noqa: E402

from tests.interop.test_adapters import damage, edited, json_values, loads_right_or_raises  # noqa: E402
from tests.oracles import peft_folders as oracle  # noqa: E402
from tests.oracles.peft_folders import CONFIG, SEVEN, TENSORS, TOKENS, pytestmark  # noqa: E402, F401

UP = "query", "up", "down"
PATHS = "blocks.0.mlp.down", "blocks.1.attention.key"
METHODS = (tp.LoHa(4, alpha=7, targets=UP), tp.LoKr(1, alpha=3, targets=UP), tp.LoKr(5, targets="all"),
           tp.HiRA(3, dropout=0.1, targets=UP), tp.VeRA(30, d_initial=0.3, targets=UP), tp.RandLoRA(5, alpha=9, targets=UP),
           tp.FourierFT(20, alpha=20, targets=UP), tp.C3A(4, targets=UP), tp.C3A(targets=UP), tp.SHiRA(2, targets=UP),
           tp.MiSS(5, dropout=0.2, targets=UP), tp.OFT(4, targets=UP), tp.OFT(4, neumann_terms=6, targets=UP))
long = pytest.mark.long
OURS = [*(pytest.param(family, method, marks=long) for family in ("Qwen3", "Gemma") for method in METHODS),
        *(("Llama", method) for method in METHODS), ("Llama", tp.LoHa(2, targets=PATHS)),
        ("Qwen3", tp.LoKr(2, targets=PATHS)), ("Gemma", tp.HiRA(2, targets=PATHS)),
        ("GPT", tp.HiRA(3)), ("GPT", tp.HiRA(2, targets=("query", "key", "value", "output", "up", "down"))),
        ("GPT", tp.HiRA(4, targets=PATHS)), ("GPT", tp.VeRA(5, targets=("output", "up"))),
        ("GPT", tp.RandLoRA(5, targets=("up", "down"))), ("GPT", tp.FourierFT(9, seed=3, targets=("output", "down")))]
TOLERANCE = {"FourierFT": 1e-6, "C3A": 1e-6}                              # PEFT computes them in float32; the others: 1e-12
T = ["q_proj", "up_proj"]
THEIRS = {
    "LoHa": peft.LoHaConfig(r=4, target_modules=T), "LoKr": peft.LoKrConfig(r=2, target_modules=T),
    "LoHa of one block": peft.LoHaConfig(r=2, target_modules=T, layers_to_transform=[1], rank_dropout=0.1, module_dropout=0.2),
    "LoHa of a pattern": peft.LoHaConfig(r=2, target_modules=r".*\.(q|down)_proj", rank_pattern={".*": 2},
                                         alpha_pattern={"q_proj": 5, "down_proj": 5}),
    "LoKr, both": peft.LoKrConfig(r=1, alpha=3, target_modules="all-linear", decompose_both=True, task_type="CAUSAL_LM"),
    "LoKr, whole": peft.LoKrConfig(r=50, target_modules=[*T, "down_proj"], init_weights="lycoris", rank_dropout_scale=True),
    "HiRA": peft.HiraConfig(r=3, target_modules=T, hira_dropout=0.1),
    "HiRA of ranks": peft.HiraConfig(r=3, target_modules=[*T, "k_proj"], rank_pattern={"q_proj": 2}),    # which PEFT ignores
    "VeRA": peft.VeraConfig(r=30, target_modules=T, projection_prng_key=3, vera_dropout=0.1),
    "RandLoRA": peft.RandLoraConfig(r=5, randlora_alpha=9, target_modules=[*T, "down_proj"]),
    "FourierFT": peft.FourierFTConfig(n_frequency=20, scaling=20, target_modules=T, random_loc_seed=5),
    "C3A": peft.C3AConfig(block_size=4, target_modules=T),
    "C3A of sizes": peft.C3AConfig(block_size=4, target_modules=T, block_size_pattern={"q_proj": 24}),
    "MiSS": peft.MissConfig(r=5, target_modules=T), "SHiRA": peft.ShiraConfig(r=2, target_modules=T, random_seed=3),
    "OFT": peft.OFTConfig(oft_block_size=4, target_modules=[*T, "down_proj"], module_dropout=0.1),
    "OFT by its inverse": peft.OFTConfig(oft_block_size=8, target_modules=T, use_cayley_neumann=False),
    "OFT of three blocks": peft.OFTConfig(r=3, oft_block_size=0, target_modules=T, num_cayley_neumann_terms=3)}
KINDS = ["LoHa", "LoKr", "HiRA", "VeRA", "RandLoRA", "FourierFT", "C3A", "MiSS", "SHiRA", "OFT"]
HEADS = [("Llama", tp.LoHa(2), peft.LoHaConfig(r=2, task_type="SEQ_CLS")),
         ("Gemma", tp.LoKr(2), peft.LoKrConfig(task_type="SEQ_CLS")),
         ("GPT", tp.HiRA(2), peft.HiraConfig(r=2, task_type="SEQ_CLS")),
         ("Qwen3", tp.VeRA(3), peft.VeraConfig(r=3, task_type="SEQ_CLS")),
         ("Llama", tp.OFT(4), peft.OFTConfig(oft_block_size=4, task_type="SEQ_CLS"))]


def moved(method, family, **options):
    """`method` on a model, with no change at its start."""
    tuned = tp.attach(make(family), method, rng=3, **options)
    move(tuned, np.random.default_rng(0))
    return tuned


@pytest.mark.parametrize("family, method", OURS, ids=str)
def test_peft_computes_what_our_change_computes_numerical(method, family, tmp_path):
    tuned = moved(method, family)
    tuned.save(tmp_path / "one", format="peft")
    theirs = oracle.loaded(oracle.base(family), tmp_path / "one")
    tolerance = TOLERANCE.get(type(method).__name__, 1e-12)
    assert error(oracle.logits(theirs, TOKENS), tuned(TOKENS)) <= tolerance
    assert error(oracle.logits(oracle.base(family), TOKENS), tuned(TOKENS)) > 0.001
    again = tp.load_adapter(make(family), tmp_path / "one")
    assert error(again(TOKENS), tuned(TOKENS)) <= 1e-12 and error(again.merge()(TOKENS), tuned(TOKENS)) <= 1e-12
    assert again.wrappers.keys() == tuned.wrappers.keys()
    again.save(tmp_path / "two", format="peft")
    assert oracle.files(tmp_path / "one")[1] == oracle.files(tmp_path / "two")[1]
    if isinstance(method, tp.LoKr): return                               # its rank may grow
    assert again.method == method and oracle.files(tmp_path / "one") == oracle.files(tmp_path / "two")
    assert set(again.state_dict()) == set(tuned.state_dict())
    assert all(np.array_equal(a, tuned.state_dict()[name]) for name, a in again.state_dict().items())


@pytest.mark.parametrize("name, family", [*((name, "Llama") for name in THEIRS), ("HiRA", "GPT"),
                                          *(pytest.param(kind, family, marks=long) for kind in KINDS
                                            for family in ("Qwen3", "Gemma"))])
def test_changes_of_peft_compute_the_same_here_numerical(name, family, tmp_path):
    config = copy.deepcopy(THEIRS[name])
    if family == "GPT": config.target_modules = {"c_attn", "mlp.c_proj"}
    theirs = oracle.trained(oracle.base(family), config, TOKENS)
    theirs.save_pretrained(tmp_path / "peft")
    tolerance = TOLERANCE.get(name.split()[0], 1e-12)
    tuned = tp.load_adapter(make(family), tmp_path / "peft")
    assert error(tuned(TOKENS), oracle.logits(theirs, TOKENS)) <= tolerance
    assert error(oracle.logits(oracle.base(family), TOKENS), tuned(TOKENS)) > 0.01
    assert error(tuned.merge()(TOKENS), tuned(TOKENS)) <= 1e-12
    tuned.save(tmp_path / "back", format="peft")
    assert error(oracle.logits(oracle.loaded(oracle.base(family), tmp_path / "back"), TOKENS), tuned(TOKENS)) <= tolerance
    if name == "LoKr, both" or family == "GPT": return                   # other tensors, of the same function
    ours, sent = (read_safetensors(tmp_path / side / TENSORS) for side in ("back", "peft"))
    assert ours.keys() == sent.keys() and all(np.array_equal(ours[n], sent[n]) for n in sent)


@pytest.mark.parametrize("family, method, config", HEADS, ids=str)
def test_a_head_classifies_the_same_on_both_sides_numerical(family, method, config, tmp_path):
    tuned = moved(method, family, head=3, head_bias=False)
    tuned.save(tmp_path / "ours", format="peft")
    theirs = oracle.loaded(oracle.base(family, 3), tmp_path / "ours")
    assert error(oracle.class_logits(theirs, TOKENS), tuned.class_logits(TOKENS, SEVEN)) <= 1e-12
    theirs = oracle.trained(oracle.base(family, 3), copy.deepcopy(config), TOKENS, classes=3)
    theirs.save_pretrained(tmp_path / "theirs")
    tuned = tp.load_adapter(make(family), tmp_path / "theirs")
    assert error(tuned.class_logits(TOKENS, SEVEN), oracle.class_logits(theirs, TOKENS)) <= 1e-12


@pytest.mark.parametrize("family, method, config", HEADS, ids=str)
def test_modules_to_save_stand_beside_a_change_numerical(family, method, config, tmp_path):
    config = copy.deepcopy(config)
    config.task_type = None
    config.modules_to_save = ["mlp.c_fc", "ln_1"] if family == "GPT" else ["gate_proj", "input_layernorm"]
    theirs = oracle.trained(oracle.base(family), config, TOKENS)
    theirs.save_pretrained(tmp_path / "theirs")
    tuned = tp.load_adapter(make(family), tmp_path / "theirs")
    assert [*tuned.parts] == [type(method).__name__, "FullFineTuning"]
    assert error(tuned(TOKENS), oracle.logits(theirs, TOKENS)) <= 1e-12
    tuned.save(tmp_path / "back", format="peft")
    assert error(oracle.logits(oracle.loaded(oracle.base(family), tmp_path / "back"), TOKENS), tuned(TOKENS)) <= 1e-12


def test_a_whole_matrix_of_lokr_becomes_a_product_with_the_identity(tmp_path):
    tuned = moved(tp.LoKr(3, alpha=6, targets=("value", "up")), "Llama")                # BA is 4 × 6 and 5 × 6
    tuned.save(tmp_path, format="peft")
    names = {name.rpartition(".")[2] for name in read_safetensors(tmp_path / TENSORS)}
    again = tp.load_adapter(make("Llama"), tmp_path)
    assert names == {"lokr_w1", "lokr_w2"} and again.method == tp.LoKr(5, alpha=10, targets=("value", "up"))
    value = again.wrappers["blocks.0.attention.value"]
    assert np.array_equal(value.B.data, np.eye(4, 5)) and not value.A.data[4:].any()
    tp.train(again, Noise(), 3, lr=0.1, batch_size=2)
    assert not value.B.data[:, 4:].any() and not value.A.data[4:].any()                 # zeros beside zeros stay


def test_a_product_of_c_is_multiplied_out(tmp_path):
    config = peft.LoKrConfig(r=1, target_modules=T, decompose_both=True)
    oracle.trained(oracle.base("Llama"), config, TOKENS).save_pretrained(tmp_path)
    left, right = (read_safetensors(tmp_path / TENSORS)[f"{QUERY}.lokr_w1_{x}"] for x in "ab")
    tuned = tp.load_adapter(make("Llama"), tmp_path)
    assert np.array_equal(tuned.wrappers["blocks.0.attention.query"].C.data, left @ right)


def test_pairs_of_hira_fuse_in_c_attn_and_come_apart(tmp_path):
    tuned = moved(tp.HiRA(2, targets=("query", "value", "up")), "GPT")
    tuned.save(tmp_path, format="peft")
    config, file = json.loads((tmp_path / CONFIG).read_text("utf-8")), read_safetensors(tmp_path / TENSORS)
    A, B = (file[f"base_model.model.transformer.h.0.attn.c_attn.hira_{x}"] for x in "AB")
    assert A.shape == (4, 16) and B.shape == (48, 4) and not B[16:32].any()
    up = file["base_model.model.transformer.h.0.mlp.c_fc.hira_A"]                       # PEFT has one rank for all
    assert config["r"] == 4 and config["fan_in_fan_out"] is True and up[:2].all() and not up[2:].any()
    assert tp.load_adapter(make("GPT"), tmp_path).method == tp.HiRA(2, targets=("query", "value", "up"))


def test_an_untrained_one_is_loaded_too(tmp_path):
    for name, rank in ("LoHa", 4), ("LoKr", 2), ("HiRA", 3):
        oracle.trained(oracle.base("Llama"), copy.deepcopy(THEIRS[name]), TOKENS, steps=0).save_pretrained(tmp_path / name)
        tuned = tp.load_adapter(make("Llama"), tmp_path / name)
        assert len(tuned.wrappers) == 4 and tuned.method.rank == rank
        assert np.array_equal(tuned(TOKENS).data, make("Llama")(TOKENS).data)


def test_peft_has_the_scale_of_loha_in_float32(tmp_path):
    tuned = moved(tp.LoHa(3, alpha=7), "Llama")
    tuned.save(tmp_path, format="peft")
    assert 1e-10 < error(oracle.logits(oracle.loaded(oracle.base("Llama"), tmp_path), TOKENS), tuned(TOKENS)) <= 1e-7


def test_what_was_trained_here_is_trained_on_in_peft(tmp_path):
    tuned = tp.attach(make("Llama"), tp.LoHa(2), rng=0)
    tp.train(tuned, Noise(), 5, lr=0.05, batch_size=4)
    tuned.save(tmp_path, format="peft")
    theirs = oracle.loaded(oracle.base("Llama"), tmp_path, is_trainable=True)
    oracle.loss(theirs, TOKENS).backward()
    for p in tuned.trainable_parameters(): p.grad = None
    tp.functional.cross_entropy(tuned(TOKENS[:, :-1]), TOKENS[:, 1:]).backward()
    layer, ours = theirs.get_submodule(QUERY), tuned.wrappers["blocks.0.attention.query"]
    for name, tensor in ROWS[0].tensors.items():
        assert error(getattr(layer, tensor)["default"].grad, getattr(ours, name).grad) <= 1e-11


def test_a_change_loads_onto_a_quantized_base_numerical(tmp_path):
    for method in tp.LoHa(2), tp.LoKr(2), tp.HiRA(2):
        tuned = tp.attach(make("Llama", np.float32), method, rng=0)
        move(tuned, np.random.default_rng(0))
        tuned.save(tmp_path / str(method), format="peft")
        quantized = tp.load_adapter(tp.quantize(make("Llama", np.float32), tp.NF4(block_size=16)), tmp_path / str(method))
        assert error(quantized.merge()(TOKENS), quantized(TOKENS)) <= 1e-5
        with quantized.disabled(): plain = quantized(TOKENS)
        assert error(plain, quantized(TOKENS)) > 1e-3
        quantized.save(tmp_path / "back", format="peft")
        assert oracle.files(tmp_path / "back")[1] == oracle.files(tmp_path / str(method))[1]


@pytest.mark.parametrize("kind, name", [("VeRA", "vera_lambda_b"), ("RandLoRA", "randlora_gamma")])
def test_shared_matrices_are_cut_to_the_layers_that_are_there(kind, name, folders, tmp_path):
    queries = [f"base_model.model.model.layers.{n}.self_attn.q_proj.{name}" for n in range(2)]
    folder = edited(folders / kind, tmp_path, {}, dict.fromkeys(queries))
    with pytest.warns(UserWarning, match="missing 2 .*q_proj"):
        tuned = tp.load_adapter(make("Llama", np.float32), folder, strict=False)
    whole = tp.load_adapter(make("Llama", np.float32), folders / kind)
    assert whole.wrappers.keys() > tuned.wrappers.keys() and "blocks.0.mlp.up" in tuned.wrappers
    for path, layer in tuned.wrappers.items(): assert np.array_equal(layer.delta(), whole.wrappers[path].delta())


# -- what PEFT lacks -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", [tp.LoHa(2), tp.LoKr(2)], ids=str)
def test_what_peft_has_for_linear_layers_alone_is_refused_on_gpt2(method, tmp_path):
    tuned = moved(method, "GPT")
    with pytest.raises(tp.MethodError, match="for layers of the class Linear, and GPT-2's are Conv1D"):
        tuned.save(tmp_path / "new", format="peft")
    assert not (tmp_path / "new").exists()
    config = {"peft_type": type(method).__name__.upper(), "r": 2, "target_modules": ["c_fc"]}
    (tmp_path / CONFIG).write_text(json.dumps(config), "utf-8")
    write_safetensors(tmp_path / TENSORS, {})
    with pytest.raises(tp.MethodError, match="peft_type=.* is not supported: PEFT has it for layers of the class Linear"):
        tp.load_adapter(make("GPT"), tmp_path)


def test_finetune_refuses_before_it_trains(tmp_path, capsys):
    argv = ["finetune", "lokr", "--steps", "1000000", "--out", str(tmp_path / "new"), "--format", "peft"]
    assert main(argv) == 2 and "GPT-2's are Conv1D" in capsys.readouterr().err


def test_c_attn_has_one_vector_in_peft_and_three_here(tmp_path):
    for method, config in (
            (tp.VeRA(2), peft.VeraConfig(r=2)), (tp.RandLoRA(2), peft.RandLoraConfig(r=2)),
            (tp.FourierFT(2), peft.FourierFTConfig(n_frequency=2, target_modules=["c_attn"]))):
        with pytest.raises(tp.MethodError, match=f"PEFT has one {type(method).__name__} for transformer.h.0.attn.c_attn"):
            moved(method, "GPT").save(tmp_path / "new", format="peft")
        one_part = dataclasses.replace(method, targets=("blocks.0.attention.value",))
        with pytest.raises(tp.MethodError, match=f"PEFT has one {type(method).__name__} for transformer.h.0.attn.c_attn"):
            moved(one_part, "GPT").save(tmp_path / "new", format="peft")
        oracle.trained(oracle.base("GPT"), config, TOKENS, steps=0).save_pretrained(tmp_path)
        with pytest.raises(tp.MethodError, match="c_attn is three layers here, each with a"):
            tp.load_adapter(make("GPT"), tmp_path)


def test_entries_that_peft_would_not_draw_are_refused(tmp_path):
    tuned = moved(tp.FourierFT(5), "Llama")
    tuned.wrappers["blocks.1.attention.value"].E[0, 0] += 1
    with pytest.raises(tp.MethodError, match="the entries of .*1.self_attn.v_proj are not those of the seed 777"):
        tuned.save(tmp_path / "new", format="peft")


def test_series_that_peft_lacks_are_refused(tmp_path):
    for terms in 2, 3:
        with pytest.raises(tp.MethodError, match=f"PEFT's series of {terms} terms is another one"):
            moved(tp.OFT(4, neumann_terms=terms), "Llama").save(tmp_path / "new", format="peft")


def test_places_in_any_order_are_sorted(folders, tmp_path):
    order = np.random.default_rng(0).permutation(96)
    both = f"{QUERY}.shira_weight", PLACES
    turned = edited(folders / "SHiRA", tmp_path, {}, lambda a: a | {n: np.ascontiguousarray(a[n][..., order]) for n in both})
    floats = edited(turned, tmp_path / "windows", {}, lambda a: a | {PLACES: a[PLACES].astype("f4")})
    states = (tp.load_adapter(make("Llama", np.float32), folder).state_dict() for folder in (turned, folders / "SHiRA", floats))
    assert all(np.array_equal(a, b) and np.array_equal(a, c) for a, b, c in zip(*map(dict.values, states), strict=True))


def test_shared_matrices_are_not_left_out_by_strict_false(folders, tmp_path):
    folder = edited(folders / "VeRA", tmp_path, {}, {"base_model.vera_B": None})
    with pytest.raises(tp.AdapterError, match="missing 1 .*vera_B"):
        tp.load_adapter(make("Llama", np.float32), folder, strict=False)


def test_a_wrapper_of_ones_own_is_refused(tmp_path):
    class Twice(LoHaLinear):
        def change(self): return super().change() * 2
    class Own(tp.LoHa):
        wrapper = Twice
    with pytest.raises(tp.MethodError, match="a Twice on .*q_proj may do more than a LoHaLinear"):
        tp.attach(make("Llama"), Own()).save(tmp_path / "new", format="peft")


def test_a_run_is_not_exported(tmp_path):
    rng = np.random.default_rng(0)
    task = tp.tasks.LanguageModelling("letters", {s: rng.integers(0, 37, 50) for s in ("train", "validation", "test")},
                                      {"train": 50, "validation": 50, "test": 50}, 9)
    with pytest.raises(tp.MethodError, match="the script does not know its tensors"):
        tp.export_training(moved(tp.LoHa(2), "Llama"), task, tmp_path / "new", 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders that PEFT wrote for the Llama of float32, by name."""
    root, base = tmp_path_factory.mktemp("peft"), llama(np.float32)
    for name in KINDS:
        oracle.trained(base, copy.deepcopy(THEIRS[name]), TOKENS).save_pretrained(root / name)
    return root


@functools.cache
def llama(dtype, classes=None): return oracle.transformers_model(make("Llama", dtype), classes)


QUERY = "base_model.model.model.layers.0.self_attn.q_proj"
PLACES = f"{QUERY}.shira_indices"
WRONG = {
    "targets": ("LoHa", {"target_modules": ["q_proj", "embed_tokens"]}, {}, "selects model.embed_tokens, but only the linear"),
    "no targets": ("LoKr", {"target_modules": ["c_attn"]}, {}, "selects no layer"),
    "fewer": ("LoHa", {"target_modules": ["q_proj"]}, {}, "not used 8"),
    "more": ("LoHa", {"target_modules": ["q_proj", "up_proj", "k_proj"]}, {}, "missing 8"),
    "missing": ("LoHa", {}, {f"{QUERY}.hada_w2_a": None}, "matched 15 tensors, missing 1 .*hada_w2_a"),
    "missing C": ("LoKr", {}, {f"{QUERY}.lokr_w1": None}, "missing 1 .*lokr_w1"),
    "missing A": ("HiRA", {}, {f"{QUERY}.hira_A": None}, "missing 1 .*hira_A"),
    "superfluous": ("LoKr", {}, {f"{QUERY}.lokr_w2": np.ones((6, 6), "f4")}, "not used 1 .*lokr_w2"),
    "rank": ("LoHa", {"r": 5}, {}, r"has shape \(2\d, 4\), expected \(2\d, 5\)"),
    "rank of LoKr": ("LoKr", {"r": 3}, {}, "missing 4 .*lokr_w2.*not used 8"),
    "rank of HiRA": ("HiRA", {"r": 2}, {}, "expected .2, 24. for r = 2"),
    "no rank": ("LoHa", {"r": 0}, {}, "rank must be a positive integer"),
    "a large rank": ("LoHa", {"r": 10**9}, {}, "rank 1000000000 exceeds"),
    "a large rank of LoKr": ("LoKr", {"r": 10**9}, {}, "missing 4 .*lokr_w2"),
    "a large rank of HiRA": ("HiRA", {"r": 10**9}, {}, "expected .1000000000"),
    "ranks": ("LoHa", {"rank_pattern": {"q_proj": 2}}, {}, "rank_pattern=.* is not supported: a LoHa has one rank here"),
    "alphas": ("LoKr", {"alpha_pattern": {"q_proj": 2}}, {}, "alpha_pattern=.* is not supported: a LoKr has one alpha here"),
    "alpha": ("LoHa", {"alpha": -1}, {}, "alpha must be a positive number"), "text": ("LoKr", {"r": "2"}, {}, "r must be int"),
    "factor": ("LoKr", {"decompose_factor": 2}, {}, "decompose_factor=2 is not supported: here it must be -1"),
    "both": ("LoKr", {"decompose_both": 1}, {}, "decompose_both must be bool"),
    "dropout": ("HiRA", {"hira_dropout": 2}, {}, "dropout must be"), "bias": ("LoHa", {"bias": "all"}, {}, "bias='all' is not"),
    "unknown": ("LoHa", {"use_gravity": True}, {}, "use_gravity=True is not supported"),
    "head": ("LoKr", {"task_type": "SEQ_CLS"}, {}, "missing 1 .*score"),
    "type": ("LoHa", {"peft_type": "loha"}, {}, "in capitals, LOHA"),
    "type of another": ("HiRA", {"peft_type": "LOHA"}, {}, "hira_dropout=0.1 is not supported"),
    "transposed": ("LoHa", {}, {f"{QUERY}.hada_w1_b": np.ones((24, 4), "f4")}, "transposed"),
    "not a number": ("LoHa", {}, {f"{QUERY}.hada_w1_b": np.full((4, 24), np.nan, "f4")}, "not finite"),
    "integers": ("LoKr", {}, {f"{QUERY}.lokr_w1": np.ones((4, 4), "i4")}, "expected floats"),
    "not saved": ("VeRA", {"save_projection": False}, {}, "save_projection=False is not supported: here it must be True"),
    "no A": ("VeRA", {}, {"base_model.vera_A": None}, "missing 1 .*base_model.vera_A"),
    "biases of VeRA": ("VeRA", {"bias": "all"}, {}, "bias='all' is not supported: here it must be 'none'"),
    "a large rank of VeRA": ("VeRA", {"r": 10**9}, {}, "needs many more numbers than the file holds"),
    "another rank of VeRA": ("VeRA", {"r": 31}, {}, r"has shape \(30, 24\), expected \(31, 24\)"),
    "B of one layer": ("RandLoRA", {}, lambda a: a | {f"{QUERY}.randlora_B": 2 * a[f"{QUERY}.randlora_B"]}, "layers share one"),
    "sparse": ("RandLoRA", {"sparse": True}, {}, "sparse=True is not supported"),
    "many entries": ("FourierFT", {"n_frequency": 10**9}, {}, "frequencies is 1000000000, but a 24 × 24 matrix has 576"),
    "more entries": ("FourierFT", {"n_frequency": 21}, {}, r"has shape \(20,\), expected \(21,\)"),
    "entries of layers": ("FourierFT", {"n_frequency_pattern": {"q_proj": 3}}, {}, "a FourierFT has one frequencies here"),
    "a large seed": ("FourierFT", {"random_loc_seed": 2**32}, {}, "seed must be"),
    "blocks": ("C3A", {"block_size": 5}, {}, "block_size 5 does not divide"),
    "no block": ("C3A", {"block_size": 0}, {}, "block_size must be a positive integer"),
    "blocks of layers": ("C3A", {"block_size_pattern": {"q_proj": 2}}, {}, "block_size_pattern=.* is not supported: blocks"),
    "bat": ("MiSS", {"init_weights": "bat"}, {}, "init_weights='bat' is not supported: here it must be True"),
    "mini": ("MiSS", {"init_weights": "mini", "mini_r": 1}, {}, "init_weights='mini' is not supported: here it must be True"),
    "no start": ("MiSS", {"init_weights": 1}, {}, "init_weights must be bool or str, got 1"),
    "columns of MiSS": ("MiSS", {"r": 6}, {}, r"has shape \(5, 2\d\), expected \(6, 2\d\)"),
    "places outside": ("SHiRA", {}, {PLACES: np.full((2, 96), 24, "i4")}, "places outside of a 24 × 24 matrix"),
    "places below": ("SHiRA", {}, {PLACES: np.full((2, 96), -1, "i4")}, "places outside of a 24 × 24 matrix"),
    "a place twice": ("SHiRA", {}, {PLACES: np.full((2, 96), 3, "i4")}, "expected rising numbers from 0 to 575, each once"),
    "half a place": ("SHiRA", {}, {PLACES: np.full((2, 96), 0.5, "f4")}, "has numbers that are not whole"),
    "no number": ("SHiRA", {}, {PLACES: np.full((2, 96), np.nan, "f4")}, "has numbers that are not whole"),
    "places far away": ("SHiRA", {}, {PLACES: np.full((2, 96), 2**64 - 1, "u8")}, "places outside of|not whole"),
    "few places": ("SHiRA", {}, {PLACES: np.ones((2, 95), "i4")}, r"expected \(2, 96\)"),
    "no places": ("SHiRA", {}, {PLACES: None}, "missing 1 .*shira_indices"),
    "many numbers": ("SHiRA", {"r": 10**9}, {}, "expected .48000000000"),
    "terms": ("OFT", {"num_cayley_neumann_terms": 2}, {}, "num_cayley_neumann_terms=2 is not supported: a series"),
    "many terms": ("OFT", {"num_cayley_neumann_terms": 10**9}, {}, "neumann_terms must be an integer from 2 to 32"),
    "bounded": ("OFT", {"coft": True}, {}, "coft=True is not supported"),
    "a size": ("OFT", {"oft_block_size": 5}, {}, "block_size 5 does not divide"),
    "one for all": ("OFT", {"block_share": True}, {}, "block_share=True is not supported"),
    "blocks of two sizes": ("OFT", {"oft_block_size": 0, "r": 4}, {}, "r=4 is not supported: here blocks have one size"),
    "a number and a size": ("OFT", {"r": 6}, {}, "r=6 is not supported"),
    "another size": ("OFT", {"oft_block_size": 2}, {}, r"has shape \(\d, 6\), expected \(1\d, 1\)"),
    "a layer of its own": ("LoHa", {"modules_to_save": ["up_proj"]}, {}, "not used 8|missing")}


@pytest.mark.parametrize("name", WRONG)
def test_folders_that_do_not_fit_are_refused(name, folders, tmp_path):
    kind, fields, tensors, says = WRONG[name]
    model = make("Llama", np.float32)
    with pytest.raises(ValueError, match=says): tp.load_adapter(model, edited(folders / kind, tmp_path, fields, tensors))
    assert model.attached is None


@pytest.mark.parametrize("kind, name", [("LoHa", "hada_w1_b"), ("LoKr", "lokr_w1"), ("LoKr", "lokr_w2_b"), ("HiRA", "hira_A"),
                                        ("VeRA", "vera_lambda_d"), ("C3A", "c3a_kernel"), ("SHiRA", "shira_weight")])
def test_strict_false_loads_the_layers_that_match(kind, name, folders, tmp_path):
    folder = edited(folders / kind, tmp_path, {}, {f"{QUERY}.{name}": None})
    with pytest.warns(UserWarning, match=f"missing 1 .*q_proj.{name}"):
        tuned = tp.load_adapter(make("Llama", np.float32), folder, strict=False)
    assert [*tuned.wrappers] == ["blocks.0.mlp.up", "blocks.1.attention.query", "blocks.1.mlp.up"]
    whole = tp.load_adapter(make("Llama", np.float32), folders / kind).state_dict()
    assert all(np.array_equal(array, whole[name]) for name, array in tuned.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_is_not_there_has_pefts_default(kind, folders, tmp_path):
    config = THEIRS[kind]
    needed = {"peft_type", "task_type", "target_modules", "r", "n_frequency", "block_size", "oft_block_size"}
    theirs = type(config)(**{"block_size": 256} if kind == "C3A" else {}).to_dict()
    fields = theirs.keys() - needed
    edits = {"stated": {field: theirs[field] for field in fields}, "absent": dict.fromkeys(fields, ...)}
    stated, absent = (tp.load_adapter(make("Llama", np.float32), edited(folders / kind, tmp_path / name, values))
                      for name, values in edits.items())
    assert stated.method == absent.method and np.array_equal(stated(TOKENS).data, absent(TOKENS).data)
    row = next(row for row in ROWS if row.method.__name__ == kind)
    assert {name: theirs[name] for name, _ in row.fields.values()} == {name: default for name, default in row.fields.values()}
    assert row.needed.items() <= theirs.items()


def test_a_folder_without_targets_has_pefts_default():
    for row in ROWS:
        theirs = getattr(constants, f"TRANSFORMERS_MODELS_TO_{row.peft_type}_TARGET_MODULES_MAPPING")
        for family in TABLES:
            if family.model is tp.GPT and (row.method is tp.FourierFT or not row.conv1d): continue   # mlp.c_proj
            assert all(theirs.get(kind, [*family.adapted]) == [*family.adapted] for kind in family.defaults)


# -- damaged and hostile files --------------------------------------------------------------------------------------
hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

kinds = pytest.mark.parametrize("kind", ["LoKr", *(pytest.param(k, marks=long) for k in KINDS if k != "LoKr")])


@kinds
def test_edited_configurations_raise_or_compute_what_peft_computes(kind, folders, tmp_path):
    fields, loaded = sorted(json.loads((folders / kind / CONFIG).read_text("utf-8"))), []

    @hypothesis.settings(max_examples=25)
    @hypothesis.given(st.dictionaries(st.sampled_from(fields), json_values | st.just(...), min_size=1, max_size=2))
    def check(edits):
        folder = edited(folders / kind, tmp_path, edits)
        loaded.append(loads_right_or_raises(folder, folders / kind, llama, make("Llama", np.float32)))
    check()
    assert loaded.count(True) > 3 and loaded.count(False) > 3


@kinds
def test_damaged_files_raise_or_compute_what_peft_computes(kind, folders, tmp_path):
    loaded = []

    @hypothesis.settings(max_examples=60)
    @hypothesis.given(st.sampled_from([CONFIG, TENSORS]), st.data())
    def check(file, data):
        damage(folders / kind, file, data, tmp_path)
        loaded.append(loads_right_or_raises(tmp_path, folders / kind, llama, make("Llama", np.float32)))
    check()
    assert loaded.count(True) > 3 and loaded.count(False) > 3
