"""LLM-QAT: what the model writes for itself, what it learns from it, and what is rounded meanwhile."""
import copy

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import assert_same_race
from tests.toys import Distil, linear_paths
from tinypeft.engine import functional as F


def small_task(model, **options):
    return tp.self_distillation(model, **{**dict(rows=8, held_out=2, length=8), **options})


# -- its data --------------------------------------------------------------------------------------
def test_rows_start_at_random_go_on_greedily_and_are_drawn_then(gpt):
    model = gpt(np.float32)
    task = small_task(model, rows=90, length=20, temperature=1.5)
    rows = np.array(task.splits["train"])
    assert rows.shape == (90, 20) and len(np.unique(rows[:, 0])) > 25
    likeliest = model(rows).data.argmax(-1)[:, :-1] == rows[:, 1:]
    assert likeliest[:30, :2].all() and likeliest[30:60, :3].all() and likeliest[60:, :4].all()      # until 3, 4, 5 are there
    for block, greedy in ((likeliest[:30], 2), (likeliest[30:60], 3), (likeliest[60:], 4)):
        assert not block[:, greedy].all() and 0.1 < block[:, greedy:].mean() < 0.95
    cold = np.array(small_task(model, rows=9, length=20, temperature=0).splits["train"])
    assert (model(cold).data.argmax(-1)[:, :-1] == cold[:, 1:]).all()


def test_what_is_drawn_follows_the_teacher(gpt):
    """−log p of what was drawn is, on average, the entropy of what it was drawn from: within 4 standard errors."""
    model = gpt(np.float32)
    rows = np.array(small_task(model, rows=300, length=20).splits["train"])
    log_p = F.log_softmax(model(rows)).data[:, 4:-1]                        # for the places from 5 on
    surprise = -np.take_along_axis(log_p, rows[:, 5:, None], -1)[..., 0]
    excess = surprise + (np.exp(log_p) * log_p).sum(-1)
    assert abs(excess.mean()) < 4 * excess.std() / np.sqrt(excess.size) < 0.1


def test_seeds_and_splits(gpt):
    model = gpt(np.float32)
    a, b, c = (small_task(model, rng=rng).splits for rng in (0, 0, 1))
    assert [len(rows) for rows in a.values()] == [8, 2, 2]
    assert all(np.array_equal(a[s], b[s]) for s in a) and not np.array_equal(a["train"], c["train"])
    assert not np.array_equal(a["validation"], a["test"])


# -- its loss --------------------------------------------------------------------------------------
def test_the_teacher_is_its_own_best_student(gpt):
    model = gpt(np.float32)
    task = small_task(model)
    exact = tp.evaluate(model, task, "test")
    assert abs(exact["loss"]) < 1e-6 and exact["agreement"] == 1
    model.token_embedding.weight.data += 0.3
    model.blocks[0].mlp.up.weight.data *= 0.5
    assert tp.evaluate(model, task, "test")["loss"] > 0.01                  # the teacher is a copy, which stayed


def test_loss_is_kl_as_in_torch(gpt, torch):
    """Numerical, float64, with gradients; their repository's loss is this times the tokens of a row."""
    from tests.oracles.torch_gpt import named_grads, torch_copy
    teacher, student = gpt(), gpt(rng=1)
    task = small_task(teacher)
    batch = task.batch("train", 3, np.random.default_rng(0))
    copied = torch_copy(student)
    theirs = torch.nn.functional.kl_div(torch.log_softmax(copied(batch[0]), -1),
                                        torch.softmax(torch_copy(teacher)(batch[0]).detach(), -1), reduction="batchmean")
    loss = task.loss(student, batch)
    assert_close(loss.item() * 8, theirs.item(), 1e-10)
    loss.backward()
    theirs.backward()
    for name, g in named_grads(copied).items():
        if not name.endswith("key.bias"): assert_close(dict(student.named_parameters())[name].grad * 8, g, 1e-8, name)
    assert all(p.grad is None for p in task.teacher.parameters())


# -- what is rounded -------------------------------------------------------------------------------
SCHEMES = [tp.LLMQAT(), tp.LLMQAT(bits=3, activation_bits=None, kv_bits=4), tp.LLMQAT(bits=4, activation_bits=8, kv_bits=None),
           tp.LLMQAT(cutoff=0.5)]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_training_follows_pytorch(gpt, scheme, tokens, torch):
    """20 steps of AdamW on everything, float64: weights per channel, inputs per token, keys and values per token."""
    from tests.oracles.torch_gpt import torch_copy
    from tests.oracles.torch_qat import QATLinear, min_max
    oracle, model = torch_copy(gpt()), tp.quantize(gpt(), scheme)
    rounding = lambda bits: bits and min_max(bits, cutoff=scheme.cutoff)
    for path in linear_paths(model):
        parent, name = path.rsplit(".", 1)
        theirs = QATLinear(oracle.get_submodule(path), rounding(scheme.bits), rounding(scheme.activation_bits),
                           rounding(scheme.kv_bits) if name in ("key", "value") else None)
        setattr(oracle.get_submodule(parent), name, theirs)
    theirs = dict(oracle.named_parameters())
    tuned = tp.attach(model, tp.FullFineTuning())
    assert_same_race(tuned, oracle, [(p, theirs[n]) for n, p in tuned.trained.items()], tokens, tolerance=1e-8)


def test_the_cutoff_stops_gradients_and_nothing_else(gpt, tokens):
    grads, values = [], []
    for cutoff in (None, 0.5):
        model = tp.quantize(gpt(np.float32), tp.LLMQAT(cutoff=cutoff))
        values.append(model(tokens).data)
        F.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).backward()
        up = model.blocks[1].mlp.up.weight
        grads.append(up.grad)
    large = np.abs(up.data) >= 0.5
    assert np.array_equal(*values) and large.any() and grads[0][large].all() and not grads[1][large].any()
    assert grads[1][~large].any()


def test_keys_and_values_are_what_a_cache_of_few_bits_holds(gpt, tokens):
    """At most 2ᵇ − 1 numbers per token, and generation with a cache equals generation without."""
    model = tp.quantize(gpt(np.float32), tp.LLMQAT(kv_bits=2))
    for _ in range(2):                                                      # before and after convert
        cache = tp.KVCache(2)
        with tp.no_grad(): model(tokens, cache=cache)
        k = cache.layers[1].k[:, :, :7].transpose(0, 2, 1, 3).reshape(21, 16)
        v = cache.layers[1].v[:, :, :7].transpose(0, 2, 1, 3).reshape(21, 16)
        assert all(len(np.unique(row)) <= 3 for row in (*k, *v))
        assert np.array_equal(model.generate(tokens, 9), model.generate(tokens, 9, use_cache=False))
        if hasattr(model.blocks[0].mlp.up, "convert"): tp.convert(model)


# -- what it is for --------------------------------------------------------------------------------
def test_it_learns_from_its_own_text_what_holds_for_other_text(gpt, seeds):
    """Direction, three seeds, W-A-KV 3-8-4: after 60 steps on what the model wrote, KL is below 0.6 of what it was without
    training, on its own text and on random tokens."""
    own, other = [], []
    for seed in seeds:
        teacher = gpt(np.float32, rng=seed)
        task, random = tp.self_distillation(teacher, rows=64, held_out=16, length=16, rng=seed), Distil(teacher)
        model = tp.quantize(copy.deepcopy(teacher), tp.LLMQAT(bits=3))
        before = [tp.evaluate(model, t, "test")["loss"] for t in (task, random)]
        tp.train(model, task, 60, lr=3e-3, seed=seed, progress=False)
        tp.convert(model)
        after = [tp.evaluate(model, t, "test")["loss"] for t in (task, random)]
        own.append(after[0] / before[0]); other.append(after[1] / before[1])
    assert max(own) < 0.6 and max(other) < 0.6, (own, other)


# -- what cannot be --------------------------------------------------------------------------------
def test_errors(gpt):
    for options in (dict(length=5), dict(length=25), dict(rows=0), dict(held_out=0)):
        with pytest.raises(ValueError, match="length in 6 … 24"): small_task(gpt(np.float32), **options)
    with pytest.raises(TypeError, match="expected a language model"): tp.self_distillation(tp.attach(gpt(), tp.LoRA()))
