"""Pictures at equal terms: legible, described, and each sentence follows the numbers, whatever they are."""
import json
import re

import numpy as np
import pytest

from tests.legible import faults
from tinypeft.study import plot, stored
from tinypeft.study.bases import draws_of
from tinypeft.study.experiments import EXPERIMENTS
from tinypeft.study.pictures import PICTURES, fair

GAIN = {"full": 0.57, "lora_all": 0.42, "adalora": 0.43, "adapter": 0.45, "parallel_adapter": 0.46, "prefix": 0.2,
        "prompt": 0.16}
FROZEN = 2.985


class Made:
    """A folder of results that were made up, without what they are measured with."""

    def __init__(self, folder):
        self.folder, self.rng = folder, np.random.default_rng(0)

    def write(self, name, runs, seeds=8):
        """runs: condition → metrics; a number or array varies by 0.01 over seeds where it is a loss or a gain."""
        vary = {"loss", "gain", "learned", "forgotten"}
        one = lambda m, v: (np.asarray(v) + (self.rng.normal(0, 0.01) if m in vary else 0)).tolist()
        record = {"experiment": name, "command": "", "settings": EXPERIMENTS[name].settings,
                  "runs": {c: {str(s): {m: one(m, v) for m, v in metrics.items()} for s in range(seeds)}
                           for c, metrics in runs.items()}}
        (self.folder / f"{name}.json").write_text(json.dumps(record), "utf-8")

    def frontier(self, forgets=lambda name, learned: learned ** 2 * (1.1 if name == "full" else 0.9), **of):
        """Each method learns nearly all at half of its best rate; what it forgets follows from what it has learned."""
        runs = {}
        for name, arm in EXPERIMENTS["frontier"].conditions.items():
            rate = [float(f"{arm.lr * f:.2g}") for f in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2)]
            learned = GAIN[name] * np.array([0.4, 0.6, 0.8, 0.93, 1, 0.97])
            forgotten = forgets(name, learned) * np.array([1, 1, 1, 1, 1, 1.5])
            runs[name] = {"rate": rate, "learned": learned, "forgotten": forgotten}
        self.write("frontier", runs | of)

    def prompts(self):
        share = {"full": (1, 1, 1), "ptuning_v2": (0.5, 0.5, 0.5), "prompt": (0.5, 0.3, 0.1)}
        n = {"small": 66_432, "medium": 232_000, "base": 1_155_456}
        self.write("prompts", {f"{m} {b}": {"before": FROZEN, "loss": FROZEN - 0.4 * s, "gain": 0.4 * s, "parameters": n[size]}
                               for m, by_size in share.items() for size, s in zip(n, by_size, strict=True)
                               for b in draws_of(size)})

    def methods(self):
        runs = {"frozen": {"loss": FROZEN}}
        for i, name in enumerate(EXPERIMENTS["methods"].conditions):
            if name == "frozen": continue
            trained = 1_155_456 if name == "full" else 2_000 * (i + 1) ** 2
            share = 1 if name == "full" else trained / (1_155_456 + trained)
            runs[name] = {"loss": FROZEN - GAIN.get(name, 0.3 + 0.01 * i), "trained": trained, "share": share,
                          "peak_bytes": (20 + i) * 2**20}
        self.write("methods", runs)


@pytest.fixture
def made(tmp_path): return Made(tmp_path)


def drawn(made, name):
    with plot.style():
        drawing = PICTURES[name].draw(made.folder)
        assert faults(drawing.figure) == []
    words = f"{drawing.sentence} {drawing.detail} {drawing.alt}"
    assert drawing.sentence.endswith(".") and drawing.detail.endswith(".") and len(drawing.alt) > 80
    assert not {"nan", "inf", "nan,", "inf,"} & set(words.split())
    return drawing


def test_forgetting_says_who_forgets_less_at_equal_learning(made):
    made.frontier()
    drawing = drawn(made, "forgetting")
    assert "more than each of the 6 other methods at theirs" in drawing.sentence
    assert "it forgets less than none of the 4 methods that can be compared so" in drawing.sentence       # two learn too little
    made.frontier(lambda name, learned: learned ** 2 * (1 if name == "full" else 2))
    sentence = drawn(made, "forgetting").sentence
    assert "forgets less than each of the 4 methods" in sentence


def test_a_rate_that_diverges_is_left_out_of_its_curve(made):
    rate = [float(f"{EXPERIMENTS['frontier'].conditions['prompt'].lr * f:.2g}") for f in (1 / 4, 1 / 2, 1, 2)]
    made.frontier(prompt={"rate": rate, "learned": [0.1, 0.15, 0.16, -np.inf], "forgotten": [0.1, 0.2, 0.3, np.inf]})
    assert "prompt learns 0.16" in drawn(made, "forgetting").alt


def test_forgotten_at_equal_learning_lies_between_two_rates():
    curve = np.array([0.1, 0.2, 0.4, 0.3]), np.array([0.0, 0.1, 0.3, 0.9]), 2
    assert fair.forgotten_at(curve, 0.3) == pytest.approx(0.2) and fair.forgotten_at(curve, 0.1) == pytest.approx(0)
    assert np.isnan(fair.forgotten_at(curve, 0.05)) and np.isnan(fair.forgotten_at(curve, 0.5))


def test_prompt_sizes_shows_every_base(made):
    made.prompts()
    drawing = drawn(made, "prompt_sizes")
    assert re.search(r"a prompt at the input reaches (49|50|51) %, (29|30|31) %, (9|10|11) % of", drawing.sentence)
    assert "3 of 66,432" in drawing.detail and re.search(r"66,432 parameters: .*prompt \d+% / \d+% / \d+%\.", drawing.alt)


def test_memory_counts_weights_gradients_optimizer_and_activations(made):
    made.methods()
    r = stored.load(made.folder, "methods")
    full = fair.bytes_of(r, "full")
    assert full["weights"] == 4 * 1_155_456 and full["optimizer"] == 8 * 1_155_456
    assert fair.bytes_of(r, "prompt")["weights"] > full["weights"] and full["step"] >= 20 * 2**20


def test_the_methods_that_no_cheaper_one_matches_are_named(made):
    made.methods()
    drawing = drawn(made, "pareto")
    on_steps = re.search(r"over memory: (.*)\.$", drawing.alt)[1].split(", ")
    assert re.findall(r"\(([^)]+)\)", drawing.sentence) == [name for name in on_steps if name != "full"] != []
