"""plain.py: each plain twin computes what the fast form computes, and has the same gradients."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import learned
from tests.toys import Noise
from tinypeft.engine.nn import Parameter
from tinypeft.peft import plain
from tinypeft.peft.lstm import lstm
from tinypeft.peft.ptuning import places

ADALORA = tp.AdaLoRA(init_rank=4, target_rank=2, targets="all", t_init=1, t_final=1, delta_t=1)


def same_gradients(ours, theirs, *tensors):
    """Two ways to compute a tensor give the same numbers and the same gradients, for an upstream gradient drawn at random."""
    results = []
    for compute in (ours, theirs):
        for t in tensors: t.grad = None
        y = compute()
        (y * np.random.default_rng(3).standard_normal(y.shape)).sum().backward()
        results.append([y.data, *(t.grad for t in tensors)])
    for a, b in zip(*results, strict=True): assert_close(a, b, 1e-12)


@pytest.mark.parametrize("budget", [0, 1, 7, 30, 48])
def test_allocation(budget, gpt):
    tuned = tp.attach(gpt(), ADALORA, rng=0)
    for step in range(3):
        for layer in tuned.wrappers.values():
            for p in (layer.P, layer.Lam, layer.Q): p.grad = np.random.default_rng(step).standard_normal(p.shape)
            layer.observe(0.85, 0.85)
    layers = tuned.wrappers
    assert len(layers) * 4 == 48
    expected = plain.allocate(layers, budget)
    tuned.method.allocate(layers, budget)
    kept = [(path, i) for path, layer in layers.items() for i in range(4) if layer.kept[i]]
    assert len(kept) == budget and sorted(kept) == sorted(expected)


def test_equal_scores_go_to_the_first_triplets(gpt):
    tuned = tp.attach(gpt(), ADALORA, rng=0)                     # all scores are still 0
    tuned.method.allocate(tuned.wrappers, 6)
    first, second, *others = tuned.wrappers
    assert plain.allocate(tuned.wrappers, 6) == [(first, 0), (first, 1), (first, 2), (first, 3), (second, 0), (second, 1)]
    assert [layer.kept.sum() for layer in tuned.wrappers.values()] == [4, 2] + [0] * len(others)


def test_adalora_trains_as_if_the_plain_allocation_pruned(gpt, monkeypatch):
    def run():
        tuned = tp.attach(gpt(), ADALORA, rng=0)
        return tp.train(tuned, Noise(), 8, lr=1e-2, progress=False).loss, tuned.ranks()

    def allocate(method, layers, budget):
        kept = plain.allocate(layers, budget)
        for path, layer in layers.items(): layer.keep(np.array([(path, i) in kept for i in range(4)]))
    fast = run()
    monkeypatch.setattr(tp.AdaLoRA, "allocate", allocate)
    assert run() == fast


def test_randlora(gpt):
    tuned = learned(gpt(), tp.RandLoRA(3, targets=("query", "up", "down")))      # n = 6, and d_in is now equal, less, more
    for path in "attention.query", "mlp.up", "mlp.down":
        layer = tuned.wrappers[f"blocks.1.{path}"]
        whole = lambda layer=layer, path=path: plain.randlora(layer).T if path == "mlp.down" else plain.randlora(layer)
        same_gradients(layer.change, whole, layer.Lam, layer.Gam)


def test_lstm():
    rng = np.random.default_rng(0)
    a, U = (Parameter(rng.standard_normal(shape)) for shape in ((6, 12), (12, 3)))
    same_gradients(lambda: lstm(a, U), lambda: plain.lstm(a, U), a, U)


@pytest.mark.parametrize("counts", [(3,), (2, 1), (0, 3), (1, 0, 2)])
def test_places(counts):
    tokens = np.random.default_rng(0).integers(0, 3, (40, 12))
    tokens[:, 3] = tokens[:, 7] = 2                                  # at least two separators
    assert places(tokens, counts, 2).tolist() == [plain.places(row, counts, 2) for row in tokens]


def test_mixed_batch(gpt, tokens):
    model, methods = gpt(), {"a": tp.PromptTuning(3), "b": tp.PromptTuning(3), "c": tp.LoRA(2), "d": tp.PrefixTuning(2)}
    tuned = {task: learned(model, method) for task, method in methods.items()}
    rows, tasks = np.concatenate([tokens, tokens]), list("abcdba")
    assert_close(tp.mixed_batch(model, tuned, rows, tasks).data, plain.mixed_batch(tuned, rows, tasks), 1e-12)
