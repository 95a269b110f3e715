"""Starts of LoRA: the model starts as the base, the base never moves, and the factors are those of the papers and of PEFT."""
import copy
import dataclasses
import pickle
from argparse import ArgumentParser

import numpy as np
import pytest

import tinypeft as tp
from tests.families import FAMILIES, make
from tests.oracles import assert_close
from tests.protocol import assert_gradients, assert_leaves_base_alone, frozen_bytes, learned, move, shift
from tests.toys import Noise, same
from tinypeft.commands.finetuning import finetune_options
from tinypeft.commands.training import attached, calibration_of
from tinypeft.engine import functional as F
from tinypeft.peft.start_data import inputs_of, weight_gradients
from tinypeft.peft.starts import NEEDS_DATA, STARTS, TAKEN_OFF

QUERY = "blocks.0.attention.query"
LAYERS = ["query", "key", "value", "output", "up", "down"]
STEPS = dict(lr=1e-2, schedule_kind="constant", warmup=0, clip=None, weight_decay=0.1)
inits = pytest.mark.parametrize("init", STARTS)
moving = pytest.mark.parametrize("init", sorted(TAKEN_OFF))
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft.*", "ignore::UserWarning:torch.*",
                                        "ignore:Full backward hook")


def text(vocab_size=37): return np.random.default_rng(7).integers(0, vocab_size, (4, 9))


def started(model, init, **fields):
    """A LoRA on every layer, from a start."""
    method = tp.LoRA(**{"rank": 3, "alpha": 5, "targets": "all", **fields, "init": init})
    return tp.attach(model, method, calibration=text() if init in NEEDS_DATA else None)


def on(family, weights, dtype=np.float32):
    model = make(family, dtype)
    return tp.quantize(model, tp.NF4(block_size=8)) if weights == "NF4" else model


# -- the protocol ----------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", ["float32", "NF4"])
@pytest.mark.parametrize("family", ["GPT", *FAMILIES])
@inits
def test_the_model_starts_as_the_base_which_stays_as_it_was_bit_for_bit(init, family, weights, tokens):
    model = on(family, weights)
    before, logits = frozen_bytes(model), model(tokens).data
    tuned = started(model, init)
    assert np.array_equal(tuned(tokens).data, logits)
    for layer in tuned.wrappers.values():
        assert not layer.delta().any() and layer.A.data.any() | layer.B.data.any()
        assert (type(layer).__name__ == "StartedLinear") == (init in TAKEN_OFF)
    move(tuned, np.random.default_rng(0))
    moved = tuned(tokens).data
    assert not np.array_equal(moved, logits)
    with tuned.disabled(): assert np.array_equal(tuned(tokens).data, logits) and frozen_bytes(model) == before
    assert np.array_equal(tuned(tokens).data, moved)
    assert_close(tuned.merge()(tokens), tuned(tokens), 1e-5)
    assert frozen_bytes(model) == before and np.array_equal(model(tokens).data, logits)


@inits
def test_saved_copied_and_pickled_bit_exact_and_loaded_without_data(init, gpt, tokens, tmp_path):
    tuned = started(gpt(np.float32), init)
    tp.train(tuned, Noise(), 2, **STEPS)
    tuned.save(tmp_path)
    loaded = tp.load_adapter(gpt(np.float32), tmp_path)
    for again in loaded, copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned)):
        assert np.array_equal(again(tokens).data, tuned(tokens).data) and same(again.state_dict(), tuned.state_dict())
        assert [p.requires_grad for p in again.parts["LoRA"].added()] == [p.requires_grad for p in tuned.parts["LoRA"].added()]
    histories = [tp.train(t, Noise(), 3, **STEPS).loss for t in (tuned, loaded)]
    assert histories[0] == histories[1] and np.array_equal(tuned(tokens).data, loaded(tokens).data)
    assert all(p.dtype == np.float64 for p in loaded.to(np.float64).parts["LoRA"].added())


@pytest.mark.parametrize("init", ["pissa", "mica", "eva"])
def test_a_run_resumed_without_data_equals_the_unstopped_run(init, gpt, tmp_path):
    whole = started(gpt(np.float32), init)
    whole.save(tmp_path)                                                      # as it starts
    tp.train(whole, Noise(), 5, **STEPS)
    half, again = (tp.load_adapter(gpt(np.float32), tmp_path) for _ in range(2))
    run = dict(checkpoint=tmp_path / "run.safetensors", **STEPS)
    tp.train(half, Noise(), 5, stop_after=2, **run)
    assert tp.train(again, Noise(), 5, **run).resumed == 2
    assert same(again.state_dict(), whole.state_dict())


@pytest.mark.parametrize("weights", ["float32", "NF4"])
@pytest.mark.parametrize("init", ["pissa", "mica", "lora_ga"])
def test_gradients_are_those_of_finite_differences(init, weights, tokens):
    tuned = started(on("Llama", weights, np.float64), init)
    move(tuned, np.random.default_rng(0))
    assert_gradients(tuned, tokens[:2, :4])


def test_nothing_but_A_and_B_moves_in_training(gpt, tokens):
    tuned = started(gpt(), "pissa")
    start = {name: a.copy() for name, a in tuned.state_dict().items()}
    tp.train(tuned, Noise(), 2, **STEPS)
    still = {name.rpartition(".")[2] for name, a in tuned.state_dict().items() if np.array_equal(a, start[name])}
    assert still == {"A0", "B0"}
    assert_leaves_base_alone(gpt(), tp.LoRA(rank=2), tokens)


def test_the_frozen_factor_of_mica(gpt):
    """It is counted as stored, not as trained, and stays frozen off, on, and behind another method."""
    tuned = started(gpt(), "mica")
    layers = tuned.wrappers.values()
    assert tuned.summary().trained == sum(layer.A.size for layer in layers) < tuned.summary().stored
    start = [layer.B.data.copy() for layer in layers]
    tuned.detach("LoRA")
    tuned.reattach("LoRA")
    tp.train(tuned, Noise(), 2, **STEPS)
    assert all(np.array_equal(layer.B.data, B) and layer.A.data.any() for layer, B in zip(layers, start, strict=True))


def test_dropout_acts_on_what_is_trained_alone(gpt, tokens):
    tuned = started(gpt(), "pissa", dropout=0.5)
    assert np.array_equal(tuned(tokens).data, tuned.model(tokens).data)
    tuned.train()
    layer, x = tuned.wrappers[QUERY], tp.Tensor(np.ones((2, 16)))
    layer.dropout.rng = np.random.default_rng(0)
    y = layer(x).data
    z = F.dropout(x, 0.5, np.random.default_rng(0)).data
    s, A0, B0 = layer.scale, layer.A0.data, layer.B0.data
    assert_close(y, layer.base(x).data + s * z @ layer.A.data.T @ layer.B.data.T - s * x.data @ A0.T @ B0.T, 1e-12)


# -- the equations ---------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", ["float64", "NF4"])
def test_the_factors_are_those_of_the_papers_numerical(weights):
    """s B₀ A₀ against the terms of each decomposition, for a wide layer, a narrow one and a square one."""
    r, layers = 3, ("query", "up", "down")
    for init in STARTS:
        tuned = started(on("GPT", weights, np.float64), init, targets=layers, rank_pattern={"query": 2})
        data = {"eva": inputs_of, "corda": inputs_of, "lora_ga": weight_gradients}.get(init, lambda *_: {})(
            tuned.wrappers, tuned, [text()])
        for path, layer in tuned.wrappers.items():
            W, B, A, s = layer.base.dense_weight().astype(float), layer.B.data, layer.A.data, layer.scale
            r = 2 if "query" in path else 3
            assert A.shape == (r, W.shape[1]) and B.shape == (W.shape[0], r)
            U, S, Vt = np.linalg.svd(W, full_matrices=False)
            terms = lambda k, U=U, S=S, Vt=Vt: U[:, k] * S[k] @ Vt[k]
            if init == "pissa": assert_close(s * B @ A, terms(slice(r)), 1e-6)
            if init == "milora": assert_close(s * B @ A, terms(slice(-r, None)), 1e-6)
            if init in ("pissa", "milora"): assert_close(np.linalg.norm(B, axis=0), np.linalg.norm(A, axis=1), 1e-6)
            if init == "olora":
                Q, R = np.linalg.qr(W)
                assert_close(B @ A, Q[:, :r] @ R[:r], 1e-6)
                assert_close(B.T @ B, np.eye(r), 1e-6)
            if init == "mica":
                assert not A.any() and not layer.B.requires_grad
                assert_close(B.T @ W, (S[-r:, None] * Vt[-r:]) * np.sign((B * U[:, -r:]).sum(0))[:, None], 1e-6)
            if init == "eva":
                covariance, values = data[path].covariance, np.linalg.eigvalsh(data[path].covariance)[::-1]
                assert not B.any()
                assert_close(A @ covariance @ A.T, np.diag(values[:r]), 1e-6)  # the most variance that r directions can have
                assert_close(A @ A.T, np.eye(r), 1e-6)
            if init == "corda":
                C = data[path].second_moment
                C = C + 0.01 * np.trace(C) / len(C) * np.eye(len(C))
                U, S, Vt = np.linalg.svd(W @ C, full_matrices=False)
                assert_close(s * B @ A @ C, terms(slice(r), U, S, Vt), 1e-6)
            if init == "lora_ga":                        # the first step is the best one of rank 2r
                G, zeta = data[path], len(W) ** 0.25 / 4
                U, S, Vt = np.linalg.svd(G, full_matrices=False)
                assert_close(B @ (B.T @ G) + G @ A.T @ A, zeta ** 2 * terms(slice(2 * r), U, S, Vt), 1e-6)


@pytest.mark.parametrize("weights", ["float64", "NF4"])
def test_gradients_of_weights_are_those_of_full_fine_tuning_numerical(weights):
    """Averaged over the batches; on a quantized base they are those of its decoded weights."""
    model, batches = on("Gemma", weights, np.float64), [text(), text()[:1, :5] + 1]
    tuned = tp.attach(model, tp.LoRA(targets="all"))
    gradients = weight_gradients(tuned.wrappers, tuned, batches)
    assert all(p.grad is None for p in tuned.parameters())
    dense = make("Gemma")
    for path, layer in tuned.wrappers.items(): dense.get(path).weight.assign(layer.base.dense_weight().astype(float))
    for tokens in batches:
        x, y = shift(tokens)
        F.cross_entropy(dense(x), y).backward(np.array(0.5))
    for path in tuned.wrappers: assert_close(gradients[path], dense.get(path).weight.grad, 1e-10)


def test_inputs_are_what_each_layer_reads():
    model = make("Llama")
    tuned = tp.attach(model, tp.IA3(), tp.LoRA(targets=("down", "query")))
    move(tuned, np.random.default_rng(0))
    read = {}

    def listening(path, layer):
        forward = layer.forward
        layer.forward = lambda x: (read.setdefault(path, []).append(x.data), forward(x))[1]
    for path, layer in tuned.parts["LoRA"].wrappers.items(): listening(path, layer)
    inputs = inputs_of(tuned.parts["LoRA"].wrappers, tuned, [text(), text()[:2, :3]])
    for path, xs in read.items():
        X = np.vstack([x.reshape(-1, x.shape[-1]) for x in xs])
        assert inputs[path].n == len(X) == 42
        assert_close(inputs[path].second_moment, X.T @ X / 42, 1e-12)
        assert_close(inputs[path].covariance, np.cov(X.T, bias=True), 1e-12)
    layer = tuned.wrappers[QUERY]
    assert layer is tuned.model.get(QUERY) and type(layer.base) is tp.engine.Linear


# -- data ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("init", NEEDS_DATA)
def test_without_data_it_says_what_to_give_and_leaves_the_model(init, gpt, tokens):
    method, model = tp.LoRA(rank=2, init=init), gpt()
    before = frozen_bytes(model)
    with pytest.raises(tp.MethodError, match=r"attach: LoRA.*give calibration=, tokens \(B, T\) or a list"):
        tp.attach(model, method)
    tuned = tp.attach(model, tp.HiRA(2))
    with pytest.raises(tp.MethodError, match="add: LoRA.*give calibration="): tuned.add(method)
    assert list(tuned.parts) == ["HiRA"]
    tuned.add(method, calibration=tokens)
    assert list(tuned.parts) == ["HiRA", "LoRA"] and tuned.parts["LoRA"].wrappers[QUERY].A.data.any()
    assert frozen_bytes(model) == before


def test_data_may_be_an_array_a_list_or_a_generator(gpt, tokens):
    states = []
    for calibration in tokens, [tokens], (row for row in [tokens]):
        tuned = tp.attach(gpt(), tp.LoRA(rank=2, init="eva"), calibration=calibration)
        states.append(tuned.state_dict())
    assert same(states[0], states[1]) and same(states[0], states[2])
    plain = tp.attach(gpt(), tp.LoRA(rank=2), calibration=tokens)             # as in `quantize`: it is not needed
    assert same(plain.state_dict(), tp.attach(gpt(), tp.LoRA(rank=2)).state_dict())


@pytest.mark.parametrize(("init", "calibration", "words"), [
    ("eva", np.zeros((2, 3)), r"expected integers \(B, T\)"), ("eva", np.zeros((2, 25), int), "the context length"),
    ("eva", np.zeros((0, 3), int), "not one token"), ("eva", np.ones((1, 2), int), "eva: 2 tokens do not vary in 2 directions"),
    ("lora_ga", np.ones((3, 1), int), "no next token"), ("lora_ga", np.array([[99, 0]]), r"must lie in \[0, 37\)")])
def test_bad_data_is_refused_and_the_model_stays(init, calibration, words, gpt):
    model = gpt()
    before = frozen_bytes(model)
    with pytest.raises(ValueError, match=words):
        tp.attach(model, tp.LoRA(rank=2, init=init), calibration=calibration)
    assert model.attached is None and frozen_bytes(model) == before


@pytest.mark.parametrize("init", NEEDS_DATA)
def test_numbers_that_are_not_finite_are_refused(init, gpt, tokens):
    model = gpt()
    model.get(QUERY).weight.data[0, 0] = np.nan
    with pytest.raises(tp.MethodError, match="calibration: .* is not finite"), np.errstate(invalid="ignore"):
        tp.attach(model, tp.LoRA(targets=("value",), init=init), calibration=tokens)
    assert model.attached is None


def test_dropout_of_the_base_is_off_while_data_are_read_and_modes_come_back(gpt, tokens):
    model = gpt(dropout=0.5).train()
    a = tp.attach(model, tp.LoRA(rank=2, init="lora_ga"), calibration=tokens)
    assert a.training and model.training
    b = tp.attach(gpt(), tp.LoRA(rank=2, init="lora_ga"), calibration=tokens)
    assert same(a.state_dict(), b.state_dict())


def test_a_probe_and_the_command_line_give_data():
    """The command takes the first training rows, each alone, so no padding is read."""
    model = tp.load_pretrained()
    rows = [(f"a {word} day of {i}", kind) for i in range(6) for word, kind in (("bright", "good"), ("dull", "bad"))]
    task = tp.tasks.labelled(rows, model=model)
    lora = tp.LoRA(rank=2, init="eva", targets=("blocks.0.query",))
    with pytest.raises(tp.MethodError, match="give calibration="): tp.fit_probe(model, task, lora)
    batches = calibration_of(task)
    assert len(batches) == len(task.data("train")) and all(len(tokens) == 1 < tokens.shape[1] for tokens in batches)
    tuned = tp.fit_probe(model, task, lora, calibration=batches, n_folds=2)
    parser = ArgumentParser()
    finetune_options(parser)
    for data in (), ("--csv", "rows.csv"):               # with a head of zeros, and with one that is solved
        args = parser.parse_args(["lora", "--set", "init=eva", "rank=2", "targets=blocks.0.query", *data])
        args.seed = 0
        again = attached(args, model, task, head_bias=True)
        layer, = again.wrappers.values()
        assert np.array_equal(layer.A.data, tuned.parts["LoRA"].wrappers[QUERY].A.data)


# -- beside other methods --------------------------------------------------------------------------
@moving
def test_two_on_one_base_and_one_over_another(init, gpt, tokens):
    """The base never moves, so a second adapter finds W₀; a second part starts from the weight as the first one made it."""
    model, before = gpt(), frozen_bytes(gpt())
    first = learned_from(model, init)
    logits = first(tokens).data
    second = learned_from(model, "pissa")
    assert frozen_bytes(model) == before
    assert np.array_equal(first(tokens).data, logits)
    got = tp.mixed_batch(model, {"a": first, "b": second}, tokens, ["a", "b", "a"]).data
    assert_close(got[[0, 2]], logits[[0, 2]], 1e-12)
    first.add(tp.LoRA(rank=2, init="pissa"))
    assert np.array_equal(first(tokens).data, logits)
    layer = first.wrappers[QUERY]
    W = first.parts["LoRA"].wrappers[QUERY].dense_weight()
    U, S, Vt = np.linalg.svd(W)
    assert_close(layer.scale * layer.B.data @ layer.A.data, U[:, :2] * S[:2] @ Vt[:2], 1e-10)
    move(first, np.random.default_rng(1))
    assert_close(first.merge()(tokens), first(tokens), 1e-10)


def learned_from(model, init):
    tuned = started(model, init)
    move(tuned, np.random.default_rng(0))
    return tuned


def test_over_a_layer_without_a_weight_it_is_refused(gpt):
    model = gpt()
    with pytest.raises(tp.MethodError, match="has no weight that another method could read"):
        tp.attach(model, tp.BottleneckAdapter(4), tp.LoRA(targets=("down",), init="pissa"))
    assert model.attached is None


@moving
def test_ranks_and_combinations_see_a_lora_of_rank_2r(init, gpt, tokens):
    model = gpt()
    a = learned_from(model, init)
    assert {*a.ranks().values()} == {6}
    logits = a(tokens).data
    b = learned(model, tp.LoRA(rank=2, targets="all"))
    with pytest.raises(tp.MethodError, match="set_rank"): b.set_rank(1)
    delta = a.parts["LoRA"].wrappers[QUERY].delta() - 2 * b.wrappers[QUERY].delta()
    both = tp.combine({a: 1, b: -2})
    assert {*both.ranks().values()} == {8}
    assert_close(both.wrappers[QUERY].delta(), delta, 1e-10)
    for how in "cat", "svd", "linear":
        alone = tp.combine({a: 1}, how)
        assert_close(alone(tokens), logits, 1e-10)


def test_a_rank_of_more_than_half_of_a_matrix(gpt, tokens, tmp_path):
    model = gpt()
    tuned = tp.attach(model, tp.LoRA(rank=10, init="pissa"))
    move(tuned, np.random.default_rng(0))
    assert {*tuned.ranks().values()} == {16}
    logits = tuned(tokens).data
    tuned.save(tmp_path, "peft")
    for again in tp.combine({tuned: 1}), tp.load_adapter(gpt(), tmp_path):
        assert_close(again(tokens), logits, 1e-10)
    with pytest.raises(tp.MethodError, match="lora_ga: rank 10 takes 20 singular vectors, and a 16 × 16 matrix has 16"):
        tp.attach(model, tp.LoRA(rank=10, init="lora_ga"), calibration=tokens)
    with pytest.raises(tp.MethodError, match="rank 17 exceeds 16"): tp.attach(model, tp.LoRA(rank=17, init="pissa"))


def test_what_cannot_keep_a_start_refuses_it(gpt, tmp_path):
    for init in "pissa", "eva", "mica":
        with pytest.raises(tp.MethodError, match="loftq: expected a LoRA without a start of its own"):
            tp.loftq(gpt(np.float32), tp.LoRA(2, init=init), tp.NF4())
    task = tp.tasks.text({"a": " ".join(map(str, range(2000)))}, model=tp.load_pretrained())
    for init in "pissa", "mica":
        tuned = tp.attach(tp.load_pretrained(), tp.LoRA(2, init=init, targets=("blocks.0.query",)))
        with pytest.raises(tp.MethodError, match="export_training: .*some are frozen here"):
            tp.export_training(tuned, task, tmp_path, 3)


# -- files -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("damage", [
    lambda a: a | {f"LoRA/{QUERY}.A0": np.zeros((4, 16), np.float32)}, lambda a: a | {f"LoRA/{QUERY}.B0": np.zeros(16, "f4")},
    lambda a: {name: x for name, x in a.items() if not name.endswith("A0")},
    lambda a: a | {f"LoRA/{QUERY}.A1": np.zeros(3, "f4")}])
def test_a_damaged_file_is_refused_and_the_model_stays(damage, gpt, tmp_path):
    from tinypeft.files import load_arrays, save_arrays
    tp.attach(gpt(np.float32), tp.LoRA(rank=3, init="pissa")).save(tmp_path)
    arrays, meta = load_arrays(tmp_path / "adapter.safetensors")
    save_arrays(tmp_path / "adapter.safetensors", damage({name: np.array(a) for name, a in arrays.items()}), meta)
    model = gpt(np.float32)
    before = frozen_bytes(model)
    with pytest.raises((ValueError, KeyError), match="adapter.safetensors"): tp.load_adapter(model, tmp_path)
    assert model.attached is None and frozen_bytes(model) == before


# -- PEFT ------------------------------------------------------------------------------------------
def pefts(init, base, tokens, rank=8):
    """PEFT's LoRA from its own start on a float32 copy of `base`."""
    import peft
    import torch

    from tests.oracles.peft_lora import WithLoss
    options = {"eva": {"eva_config": peft.EvaConfig(rho=1.0)}}.get(init, {})
    if init == "corda": options = {"corda_config": peft.tuners.lora.config.CordaConfig(corda_method="ipm")}
    if init == "lora_ga": options = {"lora_ga_config": peft.tuners.lora.config.LoraGAConfig()}
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "up", "down"], init_lora_weights=init,
                             **options)
    model = WithLoss(base).float()
    if init == "corda":
        from peft.tuners.lora.corda import preprocess_corda
        preprocess_corda(model, config, run_model=lambda: model(tokens))
    if init == "lora_ga":
        from peft.tuners.lora.loraga import preprocess_loraga
        preprocess_loraga(model, config, lambda: model(*shift(tokens)).loss.backward())
    theirs = peft.get_peft_model(model, config)
    if init == "eva":
        peft.initialize_lora_eva_weights(
            theirs, [torch.as_tensor(tokens)], forward_fn=lambda model, x: model.base_model(x.numpy()),
            prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, show_progress_bar=False)
    return theirs


@pytest.mark.parametrize("init", sorted(STARTS.keys() - {"milora"}))
def test_the_factors_are_pefts_numerical(init, gpt):
    """Up to signs of singular vectors, and in float32, which PEFT decomposes in."""
    pytest.importorskip("peft")
    rank, tokens = (4 if init == "lora_ga" else 8), np.random.default_rng(3).integers(0, 37, (1 if init == "corda" else 9, 24))
    base, tolerance = gpt(np.float32), 2e-3 if init == "corda" else 1e-3      # W C has numbers of very different sizes
    theirs = pefts(init, base, tokens, rank)
    tuned = tp.attach(base, tp.LoRA(rank, 2 * rank, targets=("query", "up", "down"), init=init), calibration=tokens)
    numbers = lambda module: module.weight.detach().numpy()
    for path, layer in tuned.wrappers.items():
        other = theirs.get_submodule(f"base_model.model.copy.{path}")
        A, B = numbers(other.lora_A["default"]), numbers(other.lora_B["default"])
        W0, sBA = layer.base.weight.data, layer.scale * layer.B.data @ layer.A.data
        if init == "lora_ga":                            # PEFT's has the singular values, and A without ζ: see the module
            B, A = B / np.linalg.norm(B, axis=0), A
            B, A = (x * len(W0) ** 0.25 / 4 for x in (B, A))
        else: assert_close(numbers(other.base_layer), W0 - sBA if init in TAKEN_OFF else W0, tolerance)
        if init == "corda":                              # C is a sum of x xᵀ there, over the largest number
            ratio = np.linalg.norm(B) / np.linalg.norm(layer.B.data)
            B, A = B / ratio, A * ratio
        assert_close(abs(layer.A.data), abs(A), tolerance)
        assert_close(abs(layer.B.data), abs(B), tolerance)
    assert [p.requires_grad for n, p in theirs.named_parameters() if "lora_B" in n] == 6 * [init != "mica"]


@inits
def test_logits_gradients_and_10_steps_of_adamw_equal_pefts_on_a_moved_base_numerical(init, gpt, tokens):
    peft = pytest.importorskip("peft")
    import torch

    from tests.oracles import peft_lora
    tuned = started(gpt(), init)
    layers = tuned.wrappers.values()
    for layer in layers: layer.B.requires_grad = True    # so that the oracle copies it
    theirs = peft_lora.peft_model(tuned, peft.LoraConfig(r=3, lora_alpha=5, target_modules=LAYERS))
    pairs = peft_lora.pairs(tuned, theirs)
    for path, layer in tuned.wrappers.items():
        layer.B.requires_grad = init != "mica"
        other = theirs.get_submodule(f"base_model.model.copy.{path}")
        other.lora_B["default"].weight.requires_grad = init != "mica"
        moved = layer.scale * layer.B.data @ layer.A.data
        with torch.no_grad(): other.base_layer.weight -= torch.as_tensor(moved)
    assert_close(tuned(tokens), theirs(tokens).logits, 1e-12)
    x, y = shift(tokens)
    F.cross_entropy(tuned(x), y).backward()
    theirs.base_model(x, y).loss.backward()
    for path, name, p, their_p in pairs:
        if p.requires_grad: assert_close(p.grad, their_p.grad, 1e-11, f"{path}.{name}")
        p.grad = their_p.grad = None
    ours = tp.train(tuned, Noise(), 10, **STEPS)
    assert_close(ours.loss, peft_lora.train(theirs, Noise(), 10, 8, lr=1e-2, weight_decay=0.1), 1e-10)
    for path, name, p, their_p in pairs: assert_close(p, their_p, 1e-8, f"{path}.{name}")


@pytest.mark.parametrize("family", ["GPT", *FAMILIES])
@pytest.mark.parametrize("init", ["pissa", "mica", "corda"])
def test_pefts_folders_hold_it_as_a_lora_numerical(init, family, tmp_path):
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    from tests.oracles import peft_folders as oracle
    tuned = started(make(family), init, targets=("query", "value", "up"), rank_pattern={"value": 2}, rank_stabilized=True)
    move(tuned, np.random.default_rng(0))
    tuned.save(tmp_path, format="peft")
    theirs = oracle.loaded(oracle.base(family), tmp_path)
    assert_close(oracle.logits(theirs, oracle.TOKENS), tuned(oracle.TOKENS), 1e-12)
    again = tp.load_adapter(make(family), tmp_path)
    assert_close(again(oracle.TOKENS), tuned(oracle.TOKENS), 1e-12)
    assert {*again.ranks()} == {*tuned.ranks()}


def test_what_peft_trained_from_pissa_and_converted_is_read_numerical(tmp_path):
    """The folder fits the base as it was; the one that is not converted is refused, since the base moved."""
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    import torch

    from tests.oracles import peft_folders as oracle
    base = copy.deepcopy(oracle.base("Llama")).float()
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"],
                                                       init_lora_weights="pissa", task_type="CAUSAL_LM"))
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.05)
    oracle.loss(theirs, oracle.TOKENS).backward()
    optimizer.step()
    theirs.save_pretrained(tmp_path / "moved")
    with pytest.raises(tp.MethodError, match="it changed the base's weights as well"):
        tp.load_adapter(make("Llama", np.float32), tmp_path / "moved")
    logits = oracle.logits(theirs, oracle.TOKENS).detach().numpy()
    theirs.save_pretrained(tmp_path / "lora", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    tuned = tp.load_adapter(make("Llama", np.float32), tmp_path / "lora")
    assert {*tuned.ranks().values()} == {6}
    assert_close(tuned(oracle.TOKENS), logits, 1e-4)


def test_what_peft_trained_from_mica_keeps_its_factor_frozen_numerical(tmp_path):
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    from tests.oracles import peft_folders as oracle
    theirs = oracle.trained(copy.deepcopy(oracle.base("Llama")).float(), peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"], init_lora_weights="mica", task_type="CAUSAL_LM"), oracle.TOKENS)
    theirs.save_pretrained(tmp_path)
    tuned = tp.load_adapter(make("Llama", np.float32), tmp_path)
    assert tuned.method.init == "mica" and not any(layer.B.requires_grad for layer in tuned.wrappers.values())
    assert_close(tuned(oracle.TOKENS), oracle.logits(theirs, oracle.TOKENS), 1e-4)


def test_plain_inits_are_as_before(gpt):
    """Drawn from the same generator in the same order."""
    for init in "kaiming", "gaussian":
        tuned = tp.attach(gpt(np.float32), tp.LoRA(rank=2, init=init), rng=3)
        draw = np.random.default_rng(3)
        for layer in tuned.wrappers.values():
            A = draw.uniform(-0.25, 0.25, (2, 16)) if init == "kaiming" else draw.normal(0, 0.5, (2, 16))
            assert np.array_equal(layer.A.data, A.astype(np.float32)) and not layer.B.data.any()
    assert [f.name for f in dataclasses.fields(tp.DoRA)] == [f.name for f in dataclasses.fields(tp.LoRA)]
