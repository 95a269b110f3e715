"""combine.py: PEFT's numbers, what each way of combining promises, bases that are the same, and what is refused."""
import dataclasses
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.families import FAMILIES, make
from tests.interop.test_export import GatedLoRA
from tests.oracles import assert_close
from tests.protocol import assert_gradients, frozen_bytes, learned, move
from tests.toys import Noise
from tinypeft.engine import functional as F
from tinypeft.interop import write_gguf_adapter
from tinypeft.peft.combine import Combination, trimmed
from tinypeft.peft.lora import LoRALinear, thin_svd
from tinypeft.text.tasks.saved import content_of
from tinypeft.text.tasks.task import tokenizer_of

LORA = tp.LoRA(rank=3, alpha=6, targets=("query", "value"))
WIDE = tp.LoRA(rank=2, alpha=4, targets="all", rank_pattern={"up": 4}, alpha_pattern={"down": 3})
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft.*")


def adapters(model, *methods, seed=5):
    """Adapters of one model, each with numbers of its own."""
    found = []
    for i, method in enumerate(methods):
        tuned = tp.attach(model, method, rng=i)
        move(tuned, np.random.default_rng([seed, i]))
        if isinstance(method, tp.DyLoRA): tuned.set_rank(2)
        if isinstance(method, tp.AdaLoRA):
            for n, w in enumerate(tuned.wrappers.values()): w.Lam.data[n % 4:] = 0      # pruned, in some layers wholly
        found.append(tuned)
    return found


def deltas(tuned):
    return {path: w.delta() for path, w in tuned.wrappers.items()}


def combined(parts, w, *how, **options):
    return tp.combine(dict(zip(parts, w, strict=True)), *how, **options)


def summed(parts, w):
    """path → Σ wᵢ ΔWᵢ."""
    out = {}
    for tuned, x in zip(parts, w, strict=True):
        for path, D in deltas(tuned).items(): out[path] = out.get(path, 0) + x * D
    return out


# -- PEFT ----------------------------------------------------------------------------------------
EXACT = dict(autocast_adapter_dtype=False)               # float64 stays float64


def pefts(model, parts, w, **options):
    """path → ΔW of PEFT's add_weighted_adapter on a torch copy of the base."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from tests.oracles.torch_gpt import torch_copy
    config = lambda m: peft.LoraConfig(
        r=m.rank, lora_alpha=m.alpha, target_modules=["query", "key", "value", "output", "up", "down"] if m.targets == "all"
        else list(m.targets), rank_pattern=m.rank_pattern or {}, alpha_pattern=m.alpha_pattern or {})
    theirs, names = None, [f"a{i}" for i in range(len(parts))]
    for name, tuned in zip(names, parts, strict=True):
        if theirs is None: theirs = peft.get_peft_model(torch_copy(model), config(tuned.method), name, **EXACT)
        else: theirs.add_adapter(name, config(tuned.method), **EXACT)
        for path, wrapper in tuned.wrappers.items():
            layer = theirs.get_submodule(f"base_model.model.{path}")
            for ours, at in (wrapper.A, layer.lora_A), (wrapper.B, layer.lora_B):
                with torch.no_grad(): at[name].weight.copy_(torch.as_tensor(ours.data.copy()))
    torch.set_default_dtype(torch.float64)               # PEFT makes tensors of the weights in the default precision
    try: theirs.add_weighted_adapter(names, list(w), "sum", **options)
    finally: torch.set_default_dtype(torch.float32)
    paths = {path for tuned in parts for path in tuned.wrappers}
    return {path: theirs.get_submodule(f"base_model.model.{path}").get_delta_weight("sum").detach().numpy() for path in paths}


HOWS = {  # ours, PEFT's
    "cat": (dict(how="cat"), "cat"), "svd": (dict(how="svd"), "svd"), "linear": (dict(how="linear"), "linear"),
    "svd of rank 1": (dict(how="svd", rank=1), "svd"),
    "ties": (dict(how="ties", density=0.3), "ties_svd"), "ties by default": (dict(how="ties"), "ties_svd"),
    "ties, counted": (dict(how="ties", density=0.5, sign="frequency"), "ties_svd"),
    "ties of all": (dict(how="ties", density=1), "ties_svd"),
    "ties of rank 9": (dict(how="ties", density=0.7, rank=9), "ties_svd"),
    "ties of factors": (dict(how="ties", density=0.4, factors=True), "ties"),
    "ties of factors, counted": (dict(how="ties", density=0.8, factors=True, sign="frequency"), "ties"),
    "dare": (dict(how="dare", density=0.6), "dare_linear_svd"),
    "dare_ties": (dict(how="dare_ties", density=0.6), "dare_ties_svd"),
    "dare of factors": (dict(how="dare", density=0.6, factors=True), "dare_linear"),
    "dare_ties of factors": (dict(how="dare_ties", density=0.6, factors=True, sign="frequency"), "dare_ties")}


@pytest.mark.parametrize("w", [(0.7, 0.3), (1.5, -0.4, 0.9)], ids=str)
@pytest.mark.parametrize("name", HOWS)
def test_changes_equal_pefts_numerical(name, w, monkeypatch):
    torch = pytest.importorskip("torch")
    options, theirs = HOWS[name]
    together = options["how"] == "linear" or options.get("factors")              # of factors: their ranks must agree
    methods = [LORA, tp.LoRA(rank=3, alpha=2), tp.LoRA(rank=3, alpha=7, targets="all")] if together else [LORA, WIDE, LORA]
    model = make_gpt()
    parts, rng = adapters(model, *methods[:len(w)]), np.random.default_rng(8)
    monkeypatch.setattr(torch, "bernoulli", lambda p: torch.as_tensor(rng.random(p.shape)) < p)     # the same masks
    if theirs.endswith("svd"): options = {"rank": 3, **options}                   # PEFT knows no rank_pattern here
    more = {"svd_rank": options["rank"]} if "rank" in options else {}
    if options["how"] not in ("cat", "svd", "linear"): more["density"] = options.get("density", 0.2)
    expected = pefts(model, parts, w, combination_type=theirs, majority_sign_method=options.get("sign", "total"), **more)
    tuned = tp.combine(dict(zip(parts, w, strict=True)), **options, rng=8)
    assert tuned.wrappers.keys() == expected.keys()
    for path, D in deltas(tuned).items(): assert_close(D, expected[path], 1e-11, path)
    assert max(map(np.ptp, expected.values())) > 1e-3


# -- what each way promises ----------------------------------------------------------------------
MIXED = [LORA, WIDE, tp.AdaLoRA(4, 2, targets=("value", "up")), tp.DyLoRA(rank=4, alpha=3, targets=("query", "down"))]


@pytest.mark.parametrize("family", ["GPT", *FAMILIES])
def test_cat_is_the_sum_of_the_merges(family, tokens):
    model = make_gpt() if family == "GPT" else make(family)
    parts, w = adapters(model, *MIXED), (0.5, -1.25, 2.0, 1.0)
    weights = {path: model.get(path).weight.data.copy() for tuned in parts for path in tuned.wrappers}
    merges = [tuned.merge() for tuned in parts]
    tuned = tp.combine(dict(zip(parts, w, strict=True)))
    merged = tuned.merge()
    for path, W in weights.items():
        change = sum(x * (m.get(path).weight.data - W) for m, x in zip(merges, w, strict=True))
        assert_close(merged.get(path).weight.data, W + change, 1e-12)
    assert_close(merged(tokens), tuned(tokens), 1e-11)


def test_ranks_of_cat_add_up_to_what_a_matrix_can_have(gpt):
    model = gpt()
    parts = adapters(model, tp.LoRA(rank=9), tp.LoRA(rank=12, targets=("query",)), tp.AdaLoRA(4, 2, targets=("key", "value")))
    tuned = tp.combine(dict.fromkeys(parts, 1.0))
    pruned = {path: max(w.rank, 1) for path, w in parts[2].wrappers.items()}
    for path, r in tuned.ranks().items():
        kind = path.rsplit(".", 1)[-1]
        assert r == {"query": 16, "value": 9 + parts[2].wrappers.get(path, parts[0]).rank if kind == "value" else 0,
                     "key": pruned.get(path)}[kind], path
    for path, D in summed(parts, (1, 1, 1)).items(): assert_close(deltas(tuned)[path], D, 1e-12)


def test_a_rank_that_all_layers_of_a_kind_have_is_named_once(gpt):
    model = gpt()
    one = combined(adapters(model, LORA, WIDE), (1, 1)).method
    assert (one.rank, one.rank_pattern) == (2, {"query": 5, "value": 5, "up": 4}) and one.alpha_pattern == one.rank_pattern
    one = combined(adapters(model, LORA, tp.LoRA(rank=2, targets=("blocks.1.value",))), (1, 1)).method
    assert (one.rank, one.rank_pattern) == (3, {"blocks.1.attention.value": 5}) and one.targets == ("query", "value")


@pytest.mark.parametrize("how", ["cat", "svd", "linear", "ties"])
def test_one_adapter_with_weight_one_is_itself(how, gpt, tokens):
    model = gpt()
    (tuned,) = adapters(model, WIDE)
    logits = tuned(tokens).data
    again = tp.combine({tuned: 1}, how, density=1.0 if how == "ties" else None, rank=4 if how in ("svd", "ties") else None)
    assert_close(again(tokens), logits, 1e-10)
    assert how != "cat" or again.ranks() == tuned.ranks()


def test_svd_is_the_nearest_and_at_full_rank_the_sum(gpt):
    model, w = gpt(), (0.8, -0.6)
    parts = adapters(model, LORA, WIDE)
    total, full = summed(parts, w), deltas(combined(parts, w, "svd", rank=16))
    for path, D in total.items(): assert_close(full[path], D, 1e-12)
    for r in (1, 2, 4):
        tuned = combined(parts, w, "svd", rank=r)
        for path, D in total.items():
            tail = np.linalg.svd(D)[1][r:]
            assert np.isclose(np.linalg.norm(D - deltas(tuned)[path]), np.linalg.norm(tail), rtol=1e-9, atol=1e-12)
            layer = tuned.wrappers[path]                                          # the roots of the singular values in both
            assert_close(layer.B.data.T @ layer.B.data, layer.A.data @ layer.A.data.T, 1e-9)
    assert set(combined(parts, w, "svd").ranks().values()) == {2, 3, 4}            # the largest, layer by layer


def test_linear_is_not_the_sum(gpt):
    a, b = adapters(gpt(), LORA, LORA)
    got = deltas(tp.combine({a: 0.5, b: 0.5}, "linear"))
    for path, layer in a.wrappers.items():
        A1, B1, A2, B2 = layer.A.data, layer.B.data, b.wrappers[path].A.data, b.wrappers[path].B.data
        assert_close(got[path], 0.5 * 2 * (B1 + B2) @ (A1 + A2), 1e-12)                                    # s = 2
        assert np.linalg.norm(got[path] - summed([a, b], (0.5, 0.5))[path]) > 0.3 * np.linalg.norm(got[path])


def test_ties_by_hand():
    T = np.array([[[4.0, -3, 1, 0.5]], [[-5.0, -1, 2, 0.25]], [[3.0, 2, 0.75, 0.1]]])
    merged = lambda w=(1, 1, 1), **options: Combination("ties", **options).merged(list(T), np.array(w, float), None)
    assert merged(density=0.5).tolist() == [[(4 + 3) / 2, -3, 2, 0]]             # γ: 2 → +, −1 → −, 2 → +
    assert merged(density=1.0).tolist() == [[3.5, -2, 1.25, (0.5 + 0.25 + 0.1) / 3]]
    assert merged((1, 2, -2), density=0.5).tolist() == [[(4 - 6) / 2, -3, 4, 0]]
    assert merged((3, 3, 3), density=0.5).tolist() == (3 * merged(density=0.5)).tolist()        # the paper's λ = 3
    T[:] = [[[9.0, 1, 0, 1]], [[-1.0, 2, 0, -1]], [[-1.0, -1, 0, 0]]]
    assert merged(density=1.0, sign="frequency").tolist() == [[-1, 1.5, 0, 1]]    # a tie of votes is +
    assert trimmed(np.array([[1.0, -1, 1], [-1, 2, 0]]), 0.5).tolist() == [[1, -1, 0], [0, 2, 0]]


def test_dare_has_the_mean_and_the_spread_of_its_paper():
    """E = Σ wᵢ Tᵢ and Var = Σ wᵢ² Tᵢ² (1 − d)/d, over masks."""
    rng, d, w = np.random.default_rng(0), 0.3, np.array([1.0, -0.5])
    T, draw = rng.standard_normal((2, 3, 4)), np.random.default_rng(1)
    many = np.array([Combination("dare", density=d).merged(list(T), w, draw) for _ in range(20_000)])
    variance = ((w[:, None, None] * T) ** 2).sum(0) * (1 - d) / d
    error = np.sqrt(variance / len(many))
    assert (np.abs(many.mean(0) - (w[:, None, None] * T).sum(0)) < 4.5 * error).all()
    assert np.allclose(many.var(0), variance, rtol=0.1)
    assert np.array_equal(Combination("dare", density=1.0).merged(list(T), w, draw), (w[:, None, None] * T).sum(0))


def test_a_seed_repeats_dare(gpt):
    a, b = adapters(gpt(), LORA, WIDE)
    seeds = 0, np.random.default_rng(0), 1
    one, same, other = (deltas(combined([a, b], (1, 1), "dare", density=0.5, rng=seed)) for seed in seeds)
    assert all(np.array_equal(one[path], same[path]) and not np.allclose(one[path], other[path]) for path in one)


def test_svd_without_forming_the_matrix(rng):
    for d_out, d_in, r in ((7, 5, 3), (4, 9, 12), (6, 6, 6)):
        left, right = rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in))
        U, S, Vt = thin_svd(left, right)
        assert len(S) == min(d_out, d_in, r)
        assert_close((U * S) @ Vt, left @ right, 1e-12)
        assert_close(S, np.linalg.svd(left @ right)[1][:len(S)], 1e-12)


# -- the result, and the adapters ----------------------------------------------------------------
def test_the_result_is_a_lora_like_any_other(gpt, tokens, tmp_path):
    model = gpt(np.float32)
    before = frozen_bytes(model)
    parts = adapters(model, LORA, WIDE)
    tuned = tp.combine({parts[0]: 0.5, parts[1]: 2}, "svd", rank=2)
    assert type(tuned.method) is tp.LoRA and tuned.base is model and tuned.method.targets == (
        "query", "key", "value", "output", "up", "down") and tuned.summary().trained == 2 * 2 * (4 * 32 + 2 * 80)
    assert all(p.dtype == np.float32 and p.requires_grad for p in tuned.trainable_parameters())
    logits = tuned(tokens).data
    for form in "tinypeft", "peft":
        tuned.save(tmp_path / form, form)
        assert_close(tp.load_adapter(model, tmp_path / form)(tokens), logits, 1e-6)
    tp.train(tuned, Noise(), 3, lr=1e-2, progress=False)
    assert not np.array_equal(tuned(tokens).data, logits)
    assert frozen_bytes(model) == before and model.attached is None


def test_gradients_of_the_result(gpt, tokens):
    a, b = adapters(gpt(), LORA, tp.DyLoRA(rank=4, alpha=3))
    assert_gradients(tp.combine({a: 1, b: -0.5}, "ties", density=0.6), tokens[:2, :4])


def test_the_adapters_stay_as_they_are(gpt, tokens):
    a, b = adapters(gpt(), LORA, WIDE)
    states, logits = [frozen_bytes(t) for t in (a, b)], [t(tokens).data for t in (a, b)]
    tuned = tp.combine({a: 1, b: 1})
    for p in tuned.trainable_parameters(): p.data += 1                             # nothing is shared
    assert [frozen_bytes(t) for t in (a, b)] == states
    assert all(np.array_equal(t(tokens).data, old) for t, old in zip((a, b), logits, strict=True))


def test_folders_and_copies_of_the_base(gpt, tokens, tmp_path):
    model, other = gpt(np.float32), gpt(np.float32)
    a, b = adapters(model, LORA, WIDE)
    expected = tp.combine({a: 0.7, b: 0.3})(tokens).data
    a.save(tmp_path / "a")
    b.save(tmp_path / "b", "peft")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = tp.combine({tmp_path / "a": 0.7, str(tmp_path / "b"): 0.3}, model=other)
    assert got.base is other
    assert_close(got(tokens), expected, 1e-5)
    for options in {"model": other}, {}:
        got = tp.combine({b: 0.3, tmp_path / "a": 0.7}, **options)
        assert got.base is options.get("model", model)
        assert_close(got(tokens), expected, 1e-5)


def test_on_a_quantized_base(gpt, tokens):
    model = tp.quantize(gpt(np.float32), tp.NF4(block_size=16))
    a, b = adapters(model, LORA, WIDE)
    tuned = tp.combine({a: 1, b: 1})
    assert_close(tuned.merge()(tokens), tuned(tokens), 1e-5)
    for path, D in summed([a, b], (1, 1)).items(): assert_close(deltas(tuned)[path], D, 1e-5)


def test_a_head_is_that_of_the_adapter_which_is_named(gpt, tokens):
    model = gpt()
    (a,) = adapters(model, LORA)
    b = tp.attach(model, WIDE, head=3, rng=1)
    with pytest.raises(tp.MethodError, match="heads are not combined; `head` must name one of"): tp.combine({a: 1, b: 1})
    with pytest.raises(tp.MethodError, match="heads are not combined"): tp.combine({a: 1, b: 1}, head=a)
    tuned = tp.combine({a: 1, b: 1}, head=b)
    assert np.array_equal(tuned.head.weight.data, b.head.weight.data) and tuned.head.weight is not b.head.weight
    assert tuned.class_logits(tokens, [3, 7, 5]).shape == (3, 3)
    c = tp.attach(model, LORA, head=2, head_bias=False)
    assert tp.combine({c: 1, b: 1}, head=c).head.bias is None


# -- refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize("method, words", [
    (tp.FullFineTuning(targets=("bias",)), "trains parameters of the base, such as blocks.0"),
    (tp.BottleneckAdapter(4), "trains parameters of the base, such as blocks.0.norm1"),
    (tp.BottleneckAdapter(4, norms=False), "is not a LoRA, AdaLoRA, DyLoRA or MiSS"), (tp.PromptTuning(2), "is not a LoRA"),
    (tp.IA3(), "is not a LoRA"), (tp.LoRA(rank=4, targets="all"), "4; factors of different ranks cannot be added")], ids=str)
def test_other_methods_are_refused_and_all_is_left_as_it_was(method, words, gpt, tokens):
    model = gpt()
    (a,) = adapters(model, LORA)
    b = learned(model, method)
    logits, state = b(tokens).data, {n: x.copy() for n, x in a.state_dict().items()}
    with pytest.raises(tp.MethodError, match=words): tp.combine({a: 1, b: 1}, "linear")
    assert np.array_equal(b(tokens).data, logits)
    assert all(np.array_equal(x, a.state_dict()[n]) for n, x in state.items())


DOWN, IA3 = tp.LoRA(2, targets=("down",)), tp.IA3(("query",), None)


@pytest.mark.parametrize("methods, words", [
    ((LORA, tp.PrefixTuning(2)), r"PrefixTuning\(.*\) is not a LoRA"), ((IA3, LORA), r"IA3\(.*\) is not a LoRA"),
    ((LORA, IA3), r"IA3\(.*\) is not a LoRA"), ((LORA, IA3, LORA), r"IA3\(.*\) is not a LoRA"),
    ((tp.BottleneckAdapter(4, norms=False), DOWN), r"BottleneckAdapter\(.*\) is not a LoRA"),
    ((LORA, WIDE), "LoRA and LoRA 2 both change blocks.0.attention.query")], ids=str)
def test_what_stands_under_between_or_over_a_lora_is_not_dropped(methods, words, gpt, tokens):
    tuned = tp.attach(gpt(), *methods)
    move(tuned, np.random.default_rng(0))
    logits = tuned(tokens).data
    with pytest.raises(tp.MethodError, match=f"combine: {words}"): tp.combine({tuned: 1})
    assert np.array_equal(tuned(tokens).data, logits)


def test_loras_of_one_model_on_other_layers_are_combined(gpt, tokens):
    tuned = tp.attach(gpt(), tp.LoRA(2, targets=("query",)), tp.LoRA(3, targets=("value", "up")))
    move(tuned, np.random.default_rng(0))
    logits = tuned(tokens).data
    assert_close(tp.combine({tuned: 1})(tokens).data, logits, 1e-12)


@pytest.mark.parametrize("options, words", [
    (dict(how="sum"), "how must be 'cat', 'svd', 'linear', 'ties', 'dare' or 'dare_ties', got 'sum'"),
    (dict(how="cat", rank=3), "rank is of the"), (dict(how="linear", rank=3), "rank is of the"),
    (dict(how="ties", rank=3, factors=True), "rank is of the nearest"), (dict(how="svd", density=0.5), "density is of 'ties'"),
    (dict(how="dare"), "how 'dare' needs density, "), (dict(how="dare_ties"), "needs density, "),
    (dict(how="svd", factors=True), "factors is of 'ties'")], ids=str)
def test_options_that_make_no_sense_are_refused(options, words, gpt):
    (a,) = adapters(gpt(), LORA)
    with pytest.raises(tp.MethodError) as caught: tp.combine({a: 1}, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("x", [float("nan"), float("inf"), "1", None, True])
def test_what_is_no_number_is_refused(x, gpt):
    (a,) = adapters(gpt(), LORA)
    with pytest.raises(tp.MethodError, match="has .*, expected a finite number"): tp.combine({a: x})


def test_bases_that_differ_are_refused(gpt, tmp_path):
    model, other = gpt(np.float32), gpt(np.float32, rng=1)
    (a,), (b,) = adapters(model, LORA), adapters(other, LORA)
    with pytest.raises(tp.MethodError, match="on a base with other weights"): tp.combine({a: 1, b: 1})
    b.save(tmp_path)
    with pytest.raises(tp.MethodError, match="on a base with other weights. If it fits"): tp.combine({a: 1, tmp_path: 1})
    with pytest.warns(UserWarning, match="weights differ"): c = tp.load_adapter(model, tmp_path)
    assert tp.combine({a: 1, c: 1}).wrappers.keys() == a.wrappers.keys()
    tp.quantize(model, tp.NF4(block_size=16))
    (d,) = adapters(model, LORA)
    for first, second in (a, d), (d, a):
        with pytest.raises(tp.MethodError, match="on a base with other weights"): tp.combine({first: 1, second: 1})


def test_adapters_are_combined_on_the_base_as_it_was_when_they_were_attached(gpt, tokens):
    model = gpt()
    a, b = adapters(model, LORA, WIDE)
    expected = tp.combine({a: 1, b: 1})(tokens).data
    tp.quantize(model, tp.NF4(block_size=16))
    assert np.array_equal(tp.combine({a: 1, b: 1})(tokens).data, expected)
    with pytest.raises(tp.MethodError, match="on a base with other weights"): tp.combine({a: 1, b: 1}, model=model)


def test_what_is_no_adapter_is_refused(gpt, tmp_path):
    model = gpt()
    (a,) = adapters(model, LORA)
    for wrong in ({}, [a], a, {model: 1}, {3: 1}):
        with pytest.raises(TypeError, match="combine: expected "): tp.combine(wrong)
    with pytest.raises(tp.MethodError, match="model= must be the base of the adapters in folders, got NoneType"):
        tp.combine({tmp_path: 1})
    with pytest.raises(FileNotFoundError): tp.combine({tmp_path: 1}, model=model)
    tp.attach(model, LORA).add(a)
    for verb in (lambda: tp.combine({a: 1})), a.ranks, a.fold, lambda: a.set_rank(1):
        with pytest.raises(tp.MethodError, match="this PeftModel has no methods any more"): verb()


def test_a_layer_that_is_more_than_low_rank_is_refused_by_name(gpt, tmp_path):
    """Made from LoRA's, with a `merge` of its own."""
    class Scaled(LoRALinear):
        def forward(self, x): return super().forward(x) * 2
        def merge(self): raise NotImplementedError

    @dataclasses.dataclass(frozen=True)
    class Other(tp.LoRA):
        def wrap(self, model, rng):
            wrappers = super().wrap(model, rng)
            wrappers["blocks.0.attention.query"].__class__ = Scaled       # one of four
            return wrappers
    tuned = tp.attach(gpt(), Other(2))
    with pytest.raises(tp.MethodError, match=r"combine: Other\(rank=2\) is not a LoRA"): tp.combine({tuned: 1})
    with pytest.raises(tp.MethodError, match="save: a Scaled on .* may do more than a LoRALinear"): tuned.save(tmp_path, "peft")
    assert not list(tmp_path.iterdir())


def test_a_low_rank_layer_of_ones_own_becomes_a_lora(gpt, tokens):
    """So that PEFT's folders, which refuse it, hold what it learned."""
    tuned = tp.attach(gpt(), GatedLoRA(2))
    move(tuned, np.random.default_rng(0))
    logits, made = tuned(tokens).data, tp.combine({tuned: 1.0})
    assert type(made.method) is tp.LoRA
    assert_close(made(tokens).data, logits)


def test_a_layer_that_says_its_change_in_another_way_is_refused(gpt, tmp_path):
    """Its `factors` are LoRA's still, so no sum and no file of factors has its ΔW."""
    class Doubled(LoRALinear):
        def forward(self, x): return self.base(x) + F.linear(x, self.change())
        def change(self): return 2 * super().change()
    class Other(tp.LoRA):
        def adapted(self, layer, A, scale, rng): return Doubled(layer, A, scale, self.dropout, rng)
    tuned = tp.attach(gpt(), Other(2))
    with pytest.raises(tp.MethodError, match="combine: Other.* is not a LoRA"): tp.combine({tuned: 1})
    with pytest.raises(tp.MethodError, match="no more, but there is Other"): write_gguf_adapter(tmp_path / "a.gguf", tuned)
    assert not list(tmp_path.iterdir())


def test_the_result_does_the_task_of_its_head_or_the_one_that_all_do(gpt):
    shared = {"kind": "pairs", "chat": None, "held_out": [0.1, 0.1], "seed": 0}
    def learned(name, sha256, **form):
        form = shared | {"context": 8, "columns": ["q", "a"]} | form
        return SimpleNamespace(form=form, name=name, sha256={name: sha256}, tokenizer=tokenizer_of(None))
    model, pairs, same = gpt(), learned("a.csv", "1"), learned("a.csv", "1")
    text, chats, other = learned("b", "2", kind="text"), learned("c.csv", "3", chat="chatml"), learned("d.csv", "4", seed=1)
    (a, b), c = adapters(model, LORA, LORA), tp.attach(model, LORA, head=2)
    for task in same, text, chats, other, None:
        a.task, b.task = pairs, task
        tuned = tp.combine({a: 1, b: 1})
        assert tuned.task is None if task is not same else content_of(tuned.task) == content_of(pairs)
    # Of two files, each is split as it was, the longer rows are read, and no column is chosen that one of them lacks.
    a.task, b.task = pairs, learned("b.csv", "2", context=9, columns=["x", "y"])
    tuned = tp.combine({a: 1, b: 1})
    assert content_of(tuned.task) == shared | {"format": 1, "context": 9, "name": "a.csv and b.csv",
                                               "sha256": {"a.csv": "1", "b.csv": "2"}}
    b.task = learned("a.csv", "0123456789")              # another file of the same name
    tuned = tp.combine({a: 1, b: 1})
    assert tuned.task.sha256 == {"a.csv": "1", "a.csv (01234567)": "0123456789"}
    a.task, c.task = text, pairs
    assert tp.combine({a: 1, c: 1}, head=c).task is pairs
