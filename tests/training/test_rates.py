"""rates.py: who trains how fast, by width and by name; LoRA+ against PEFT; and what the records say of the width's rule."""
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

import tinypeft as tp
from tests.oracles import assert_close
from tests.protocol import learned
from tests.toys import Noise, small
from tinypeft.engine.optim import AdamW
from tinypeft.training.options import TrainOptions
from tinypeft.training.rates import HEAD_LR, factors_by_name, groups, own_rate, trained, width_factor

RESULTS = Path(__file__).parents[2] / "figures" / "results"


def rates_of(model, factors):
    """name → the rate of its group, for every parameter that trains: 1, the head's 10, and factors."""
    names = {id(a): name for name, a in model.state_dict().items()}
    options = TrainOptions(steps=1, lr=1.0, head_lr=10.0, rates=factors)
    return {names[id(p.data)]: g["lr"] for g in groups(trained(model), options) for p in g["params"]}


# -- by name ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, hit", [
    ("B", lambda n: n.endswith(".B")), ("blocks.0", lambda n: "blocks.0." in n), ("query.B", lambda n: n.endswith("query.B")),
    ("blocks.0.attention.query.B", lambda n: n == "LoRA/blocks.0.attention.query.B"),
    ("LoRA.blocks.0.attention.query.B", lambda n: n == "LoRA/blocks.0.attention.query.B"),
    ("!blocks.0", lambda n: "blocks.0." not in n), ("blocks.1-.mlp.?", lambda n: "blocks.1.mlp" in n), ("*", lambda n: True)])
def test_names_are_those_of_targets(name, hit):
    """The rule of `models/targets.py`, which has tests of its own."""
    found = rates_of(tp.attach(small(), tp.LoRA(rank=2, targets="all"), rng=0), {name: 3})
    assert {n for n, rate in found.items() if rate == 3} == {n for n in found if hit(n)}


def test_factors_multiply_and_a_head_has_its_own_rate():
    tuned = tp.attach(small(), tp.LoRA(rank=2), head=3, rng=0)
    found = rates_of(tuned, {"B": 16, "blocks.0": 0.5, "head": 0.25, "*.query.A": 3})
    assert found.keys() == tuned.state_dict().keys()
    for name, rate in found.items():
        expected = (16 if name.endswith("B") else 3 if name.endswith("query.A") else 1) * (0.5 if "blocks.0" in name else 1)
        assert rate == (2.5 if name.startswith("head") else expected)


def test_each_parameter_has_a_rate_of_its_own():
    tuned = tp.attach(small(), tp.LoRA(rank=2), rng=0)
    params = [dataclasses.replace(t, own_rate=0.1 if t.name.endswith("A") else 0.3) for t in trained(tuned)]
    found = groups(params, TrainOptions(steps=1, rates={"blocks.1": 2}))
    assert sorted((g["lr"], len(g["params"])) for g in found) == [(0.1, 2), (0.2, 2), (0.3, 2), (0.6, 2)]


def test_without_factors_the_groups_are_matrices_vectors_and_head_in_the_models_order():
    tuned = tp.attach(small(), tp.FullFineTuning(), head=3, rng=0)
    params, head = [p for p in tuned.parameters() if p.requires_grad], {id(p) for p in tuned.head.parameters()}
    body = [p for p in params if id(p) not in head]
    matrices, vectors, last = groups(trained(tuned), TrainOptions(steps=1, lr=0.5, head_lr=2.0))
    assert list(map(id, matrices["params"])) == [id(p) for p in body if p.ndim > 1] and matrices["lr"] == 0.5
    assert list(map(id, vectors["params"])) == [id(p) for p in body if p.ndim == 1] and vectors["lr"] == 0.5
    assert {id(p) for p in last["params"]} == head and last["lr"] == 2.0
    assert "weight_decay" not in matrices and vectors["weight_decay"] == last["weight_decay"] == 0.0


def test_a_parameter_of_the_base_that_was_unfrozen_by_hand_trains_too():
    tuned = tp.attach(small(), tp.LoRA(rank=2), rng=0)
    tuned.model.final_norm.weight.requires_grad = True
    before = tuned.model.final_norm.weight.data.copy()
    tp.train(tuned, Noise(), 2, rates={"model.final_norm": 2.0, "B": 4}, progress=False)
    assert not np.array_equal(tuned.model.final_norm.weight.data, before)


def test_a_pattern_that_matches_nothing_is_refused_and_says_what_there_is():
    tuned = tp.attach(small(), tp.LoRA(rank=2), rng=0)
    with pytest.raises(ValueError, match=r"rates: 'bias' matches none of the parameters that train; there are A, B, LoRA, "
                       r"attention, blocks, query, value, in paths from 'LoRA\.blocks\.0\..*' to 'LoRA\.blocks\.1\..*'"):
        tp.train(tuned, Noise(), 1, rates={"bias": 2.0}, progress=False)         # the base has some, frozen


@pytest.mark.parametrize("pattern", ["B", "!B", "[AB]"])
def test_a_name_that_a_method_and_its_parameters_have_is_refused(pattern):
    tuned = tp.attach(small(), {"B": tp.LoRA(rank=2)}, {"A": tp.IA3(("key",), feedforward=None)}, rng=0)
    with pytest.raises(ValueError, match=r"rates: '.*' is the name of a method and of B/blocks\.0.*query\.[AB]; for the method "
                       r"write '.*B\]?\.blocks', for the parameters 'blocks\..*B\]?'"):
        tp.train(tuned, Noise(), 1, rates={pattern: 16}, progress=False)


def test_two_parts_of_a_path_say_which_of_the_two_is_meant():
    tuned = tp.attach(small(), {"B": tp.LoRA(rank=2)}, {"lora": tp.LoRA(rank=2)}, rng=0)
    named = [t.name for t in trained(tuned)]
    assert {n for n, f in factors_by_name(named, {"blocks.B": 16}).items() if f == 16} == {n for n in named if n.endswith(".B")}
    assert {n for n, f in factors_by_name(named, {"B.blocks": 16}).items() if f == 16} == {n for n in named if n[:2] == "B/"}
    assert {n for n, f in factors_by_name(named, {"lora": 16}).items() if f == 16} == {n for n in named if n[:5] == "lora/"}


@pytest.mark.parametrize("lr", [None, 0.5])
def test_each_of_several_methods_has_its_own_rate_and_is_a_part_of_the_names(lr):
    """And `lr`, if given, is that of all of them."""
    tuned = tp.attach(small(), tp.LoRA(rank=2), {"more": tp.LoRA(rank=3)}, tp.PrefixTuning(3, reparameterize=False),
                      tp.AdaLoRA(targets=("up",)), head=3, rng=0)
    named, made = {id(t.p): t.name for t in trained(tuned)}, []
    optimizer = lambda groups, **options: made.append(AdamW(groups, **options)) or made[-1]
    tp.train(tuned, Noise(), 6, lr=lr, rates={"more": 4, "blocks.1": 3}, optimizer=optimizer, progress=False)
    rates = {"LoRA": 1e-2, "more": 4e-2, "PrefixTuning": 6e-2, "AdaLoRA": 2e-2}
    for g in made[0].groups:
        for p in g["params"]:
            part = named[id(p)].split("/")[0]
            own = lr * (4 if part == "more" else 1) if lr else rates.get(part, 0) * 8 ** 0.5
            if part.startswith("head"): own = lr or HEAD_LR
            assert g["base_lr"] == pytest.approx(own * (3 if "blocks.1" in named[id(p)] else 1), rel=1e-12), named[id(p)]
    assert len(named) == sum(len(g["params"]) for g in made[0].groups) and len(set(named.values())) == len(named)


# -- in training -----------------------------------------------------------------------------------
@pytest.mark.parametrize("ratio", [1, 16])
def test_lora_plus_is_pefts_numerical(ratio):
    """20 steps in float64 of PEFT's `create_loraplus_optimizer` on a torch copy."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from peft.optimizers import create_loraplus_optimizer

    from tests.oracles import peft_lora
    tuned, task = learned(small().to(np.float64), tp.LoRA(rank=3, targets="all")), Noise()
    theirs = peft_lora.peft_model(tuned, peft.LoraConfig(
        r=3, lora_alpha=tuned.method.alpha, target_modules=["query", "key", "value", "output", "up", "down"]))
    make = lambda: create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=2e-3, loraplus_lr_ratio=ratio,
                                             loraplus_weight_decay=0.1)
    history = tp.train(tuned, task, 20, lr=2e-3, rates={"B": ratio}, schedule_kind="constant", warmup=0, clip=None,
                       weight_decay=0.1, progress=False)
    assert_close(history.loss, peft_lora.train(theirs, task, 20, 8, lr=None, make=make), 1e-10)
    for path, name, p, their_p in peft_lora.pairs(tuned, theirs):
        assert_close(p, their_p.reshape(p.shape), 1e-8, f"{path}.{name}")


def test_a_factor_of_one_changes_no_bit_and_of_zero_stops():
    states = []
    for rates in (None, {"A": 1, "*": 1.0}, {"A": 0}):
        tuned = tp.attach(small(), tp.LoRA(rank=2), rng=0)
        start = {name: a.copy() for name, a in tuned.state_dict().items()}
        tp.train(tuned, Noise(), 5, rates=rates, weight_decay=0.1, progress=False)
        states.append(tuned.state_dict())
    for name, a in states[0].items():
        assert np.array_equal(a, states[1][name])
        assert np.array_equal(states[2][name], start[name]) == name.endswith("A")


def test_the_schedule_acts_on_every_rate():
    seen = []
    class Watched(AdamW):
        def step(self):
            seen.append({g["lr"] for g in self.groups})
            super().step()
    tp.train(tp.attach(small(), tp.LoRA(rank=2), rng=0), Noise(), 4, lr=1.0, rates={"B": 4}, warmup=2, optimizer=Watched,
             progress=False)
    assert seen == [{0.5, 2.0}, {1.0, 4.0}, {1.0, 4.0}, {0.5, 2.0}]


# -- by width --------------------------------------------------------------------------------------
def test_the_factor_is_one_at_128_and_halves_at_four_times_that():
    wide = lambda d: tp.GPT(tp.GPTConfig(37, 8, d, 1, 4))
    assert width_factor(wide(128)) == 1.0 and width_factor(wide(512)) == 0.5 and width_factor(wide(32)) == 2.0
    assert own_rate(tp.attach(wide(512), tp.LoRA())) == tp.LoRA.learning_rate / 2 and own_rate(wide(32)) == 2e-3


METHOD = {"parallel": tp.ParallelAdapter}                # the names of the record that are not those of METHODS


def excess(factor):
    """method → how much more it loses on SmolLM2 at `factor` times its own rate than at the best rate that was tried, nats."""
    runs = json.loads((RESULTS / "smollm2_rates.json").read_text("utf-8"))["runs"]
    found = {}
    for name, run in runs.items():
        rates, losses = run["0"]["rate"], run["0"]["loss"]
        rate = np.clip(METHOD.get(name, tp.METHODS.get(name))().learning_rate * factor, rates[0], rates[-1])
        found[name] = float(PchipInterpolator(np.log(rates), losses)(np.log(rate))) - min(losses)
    return found


def test_the_width_rule_is_what_the_records_support():
    """What rates.py says: at 576, by monotone interpolation between the rates that were tried; 32 and 64."""
    by_exponent = {p: excess((128 / 576) ** p) for p in (0, 0.25, 0.5, 0.75, 1)}
    mean = {p: np.mean(list(found.values())) for p, found in by_exponent.items()}
    own, rule = by_exponent[0], by_exponent[0.5]
    assert mean[0.75] < mean[0.5] < mean[1] < mean[0.25] < mean[0] and len(own) == 11
    others = {p: np.mean([x for name, x in found.items() if name != "ptuning_v2"]) for p, found in by_exponent.items()}
    assert [round(others[p], 2) for p in (0, 0.25, 0.5, 0.75, 1)] == [0.07, 0.06, 0.07, 0.09, 0.11]
    assert width_factor(tp.GPT(tp.GPTConfig(37, 8, 576, 1, 4))) == (128 / 576) ** 0.5
    said = {"full": (0.05, 0.32), "ptuning_v2": (0.39, 2.52), "adalora": (0.37, 0.11), "parallel": (0.15, 0.09)}
    for name, pair in said.items(): assert (round(rule[name], 2), round(own[name], 2)) == pair, name
    assert [round(mean[p], 2) for p in (0, 0.25, 0.5, 0.75, 1)] == [0.30, 0.18, 0.10, 0.08, 0.10]
    runs = {label: of["100"] for label, of in json.loads((RESULTS / "rates.json").read_text("utf-8"))["runs"].items()}
    best = {label: r["rate"][int(np.argmin(r["loss"]))] for label, r in runs.items()}
    for arm, base, said in (("prompts: full", "full", (1.1, 2.2)), ("sizes: lora_all", "sizes: lora_all base", (1.8, 3.2)),
                            ("sizes: adapter", "sizes: adapter base", (1.8, 3.2))):
        assert tuple(round(best[f"{arm} {size}"] / best[base], 1) for size in ("medium", "small")) == said, arm
    for size in ("medium", "small"):
        prompt = runs[f"prompts: prompt {size}"]
        assert max(prompt["loss"]) - min(prompt["loss"]) < 0.01 and prompt["rate"][-1] > 5 * prompt["rate"][0]
