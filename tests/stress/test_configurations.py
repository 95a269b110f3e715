"""The short form of the search over random configurations, and the proof that it finds faults."""
import dataclasses

import numpy as np
import pytest

import tinypeft as tp
from tests.stress.configurations import METHODS, SCHEMES, run
from tests.stress.drawing import drawn
from tinypeft.engine.nn import Dropout
from tinypeft.peft.adalora import AdaLoRALinear
from tinypeft.peft.dylora import DyLoRALinear
from tinypeft.peft.ia3 import ScaledOutput
from tinypeft.peft.lora import LowRankLinear
from tinypeft.peft.prompt import Prompt


@pytest.mark.parametrize("chunk", [0, 1, *(pytest.param(i, marks=pytest.mark.long) for i in range(2, 10))])
def test_random_configurations_keep_every_promise(chunk):
    broken = [f"{c!r}\n{what}" for c, what in (run(0, i) for i in range(20 * chunk, 20 * chunk + 20)) if what]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("cls", dict.fromkeys([*METHODS.values(), *SCHEMES.values()]), ids=lambda cls: cls.__name__)
def test_every_field_is_drawn_with_several_values(cls):
    found = [drawn(cls, np.random.default_rng(i)) for i in range(200)]
    for f in dataclasses.fields(cls):
        assert len({repr(getattr(x, f.name)) for x in found}) >= 2, f"{cls.__name__}.{f.name} keeps its default"


# fault → the method it shows in, the class and attribute where it is, what takes its place, the promise that breaks
FAULTS = {
    "ΔW is larger than what the wrapper adds": (
        tp.LoRA, LowRankLinear, "delta", lambda self, delta=LowRankLinear.delta: 1.01 * delta(self),
        "merged is wrapped"),
    "a merged layer forgets to scale its bias": (
        tp.IA3, ScaledOutput, "merge", lambda self: self.merged(self.l.data[:, None], 1), "merged is wrapped"),
    "a method trains a norm in secret": (
        tp.LoRA, tp.LoRA, "trained", lambda self, model: ["final_norm.weight"], "trained parameters are the formula's"),
    "the singular values are not saved": (
        tp.AdaLoRA, AdaLoRALinear, "only_to_train", (*AdaLoRALinear.only_to_train, "Lam"), "stored parameters"),
    "the masks of a step stay on": (
        tp.DyLoRA, DyLoRALinear, "end_step", lambda self: None, "gradients and masks are gone"),
    "a rank is drawn from no seed": (
        tp.DyLoRA, tp.DyLoRA, "before_step", lambda self, layers, step, total, rng: [
            layer.start_step(b) for b in [np.random.default_rng().choice(self.ranks)]
            for layer in layers.values()],
        "trains the same"),
    "dropout is on outside training": (
        tp.LoRA, Dropout, "forward", lambda self, x: tp.functional.dropout(x, self.p, self.rng), ""),
    "a prompt looks at the other rows": (
        tp.PromptTuning, Prompt, "seams", lambda self, tokens, lengths=None: {"prompt": self.P_e * (1 + tokens.mean())},
        "a row is by itself"),
    "a prompt enters again with every token": (
        tp.PromptTuning, tp.PeftModel, "seams", lambda self, tokens, cache=None, lengths=None: {}
        if self.is_disabled else self.virtual.seams(np.asarray(tokens), lengths), "exceed the context"),
    "a derivative is wrong": (
        tp.PrefixTuning, tp.Tensor, "tanh", lambda x: tp.Tensor.op(np.tanh(x.data), (x, lambda dy: dy)),
        "finite differences")}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_search_finds_a_planted_fault(fault, monkeypatch):
    method, cls, name, wrong, promise = FAULTS[fault]
    monkeypatch.setattr(cls, name, wrong)
    found = (what for _, what in (run(0, i, methods={"it": method}, schemes={}) for i in range(30)) if what)
    assert promise in next(found)
