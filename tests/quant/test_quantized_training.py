"""On the shipped base: what training does for 2 bits, where rounding alone breaks the model. Directions, over three seeds."""
import copy

import numpy as np
import pytest

import tinypeft as tp

GROUPS = dict(granularity="group", group_size=32)
BASE = tp.Uniform(2, symmetric=False, **GROUPS)                             # round to nearest
LORA = tp.LoRA(rank=8, targets="all")
STEPS, SEEDS = 15, range(3)

pytestmark = pytest.mark.long                            # each direction has a short test in the file of its method


@pytest.fixture(scope="module")
def base():
    return tp.load_pretrained()


@pytest.fixture(scope="module")
def losses(base):
    """name → test loss on *domain* per seed, after 15 steps of 4 × 64 tokens; float and rounded: before any."""
    task = tp.tasks.domain(base, context=64, held_out=1024)
    loss = lambda model: tp.evaluate(model, task, "test")["loss"]
    found = {"float": [loss(base)], "rounded": [loss(tp.quantize(copy.deepcopy(base), BASE))]}

    def run(name, make, lr, finish=lambda model: model):
        for seed in SEEDS:
            model = make(copy.deepcopy(base), seed)
            found.setdefault(f"{name} at the start", []).append(loss(model))
            tp.train(model, task, STEPS, batch_size=4, lr=lr, seed=seed, progress=False)
            found.setdefault(name, []).append(loss(finish(model)))
    run("STE", lambda m, seed: tp.quantize(m, tp.FakeQuant(2, symmetric=False, **GROUPS)), 1e-3, tp.convert)
    run("LSQ", lambda m, seed: tp.quantize(m, tp.FakeQuant(2, learn_step=True, symmetric=False, **GROUPS)), 1e-3, tp.convert)
    run("PEQA", lambda m, seed: tp.attach(tp.quantize(m, BASE), tp.PEQA(2, group_size=32)), 3e-3, lambda t: t.merge())
    run("QLoRA", lambda m, seed: tp.attach(tp.quantize(m, BASE), LORA, rng=seed), 3e-3)
    run("LoftQ", lambda m, seed: tp.loftq(m, LORA, BASE, rng=seed), 3e-3)
    return {name: np.array(values) for name, values in found.items()}


def test_rounding_alone_breaks_the_model(losses):
    assert losses["rounded"] > losses["float"] + 0.8


@pytest.mark.parametrize("name, gain", [("STE", 0.7), ("LSQ", 0.7), ("PEQA", 0.5), ("QLoRA", 0.5), ("LoftQ", 0.7)])
def test_training_recovers(losses, name, gain):
    """nats/token below rounding, whichever seed; the integers' own loss, where the method leaves integers."""
    assert (losses[name] < losses["rounded"] - gain).all(), losses[name]


def test_loftq_is_ahead_of_qlora(losses):
    """At the start by 0.2 nats/token, and still by 0.05 after training, paired by seed."""
    assert (losses["LoftQ at the start"] < losses["QLoRA at the start"] - 0.2).all()
    assert (losses["LoftQ"] < losses["QLoRA"] - 0.05).all(), losses["QLoRA"] - losses["LoftQ"]


def test_llm_qat_needs_no_data(base):
    """4-8-4 on what the base writes (32 rows of 48 tokens), judged on its next-token loss on real text, three seeds."""
    task = tp.tasks.domain(base, context=64, held_out=1024)
    loss = lambda model: tp.evaluate(model, task, "test")["loss"]
    exact, rounded, ratios = loss(base), loss(tp.quantize(copy.deepcopy(base), tp.LLMQAT())), []
    for seed in SEEDS:
        own = tp.self_distillation(base, rows=32, held_out=1, length=48, rng=seed)
        model = tp.quantize(copy.deepcopy(base), tp.LLMQAT())
        tp.train(model, own, STEPS, batch_size=4, lr=3e-4, seed=seed, progress=False)
        ratios.append((loss(tp.convert(model)) - exact) / (rounded - exact))
    assert max(ratios) < 0.8, ratios                                        # of what rounding costs
