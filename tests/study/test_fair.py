"""Pictures at equal terms: legible, described, and each sentence follows the numbers, whatever they are."""
import json

import numpy as np
import pytest

from tests.legible import faults
from tinypeft.study import plot, stored
from tinypeft.study.experiments import EXPERIMENTS
from tinypeft.study.pictures import PICTURES, fair

GAIN = {"full": 0.57, "lora_all": 0.42, "adalora": 0.43, "adapter": 0.45, "parallel_adapter": 0.46, "prefix": 0.2,
        "prompt": 0.16}
FROZEN = 2.985


class Made:
    """A folder of results that were made up, without their stamps."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.rng = folder, np.random.default_rng(0)
        monkeypatch.setattr(stored, "warn_if_stale", lambda name, stored: None)

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

    def sizes(self, prompt=(0.5, 0.3, 0.1)):
        share = {"full": (1, 1, 1), "lora_all": (0.34, 0.6, 0.73), "adapter": (0.5, 0.5, 0.5), "prompt": prompt}
        n = {"small": 66_432, "medium": 232_000, "base": 1_155_456}
        self.write("sizes", {f"{m} {b}": {"gain": 0.4 * s, "parameters": n[b], "share_trained": 0.05}
                             for m, by_base in share.items() for b, s in zip(n, by_base, strict=True)})

    def lengths(self, closes=False):
        share = {60: 0.7, 150: 0.72, 600: 0.72, 1500: 0.95 if closes else 0.71}
        gain = {60: 0.35, 150: 0.57, 600: 0.9, 1500: 1.05}
        at = lambda m, s: {"loss": FROZEN - gain[s] * (1 if m == "full" else share[s] * (0.95 if m == "adapter" else 1))}
        self.write("first_look", {"frozen": {"loss": FROZEN}, **{m: at(m, 60) for m in ("full", "lora_all")}})
        self.write("methods", {"frozen": {"loss": FROZEN}, **{m: at(m, 150) for m in ("full", "lora_all")}})
        self.write("adapters", {"sequential 16": at("adapter", 150)})
        self.write("lengths", {f"{m} {s}": at(m, s) for s in (600, 1500) for m in ("full", "lora_all", "adapter")}, seeds=3)

    def rates(self):
        runs = {}
        for i, name in enumerate(EXPERIMENTS["methods"].conditions):
            rate = 1e-3 * (1 + i) * 1.8 ** np.arange(-2, 3)
            loss = 2.5 + (0.01 + 0.004 * i) * np.arange(-2, 3) ** 2
            if name == "full": loss[-1] = np.inf
            runs[name] = {"rate": rate, "by_seed": [[x, x] for x in loss], "loss": loss}
        runs.pop("frozen", None)
        self.write("rates", runs, seeds=1)

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
def made(tmp_path, monkeypatch): return Made(tmp_path, monkeypatch)


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


def test_sizes_names_a_trend_only_where_it_is_measured(made):
    made.sizes()
    sentence = drawn(made, "sizes").sentence
    assert "66,432 and of 1,155,456 parameters" in sentence and sentence.count("it rises") == 1
    assert "(no measurable trend)" in sentence and "(it falls)" in sentence


def test_lengths_says_whether_the_gap_closes(made):
    made.lengths()
    drawing = drawn(made, "lengths")
    assert drawing.sentence.startswith("Longer training does not close the gap") and "1,500 steps" in drawing.alt
    made.lengths(closes=True)
    assert drawn(made, "lengths").sentence.startswith("The gap to full fine-tuning closes")


def test_rates_shows_how_wide_the_good_region_is(made):
    made.rates()
    sentence = drawn(made, "rates").sentence             # it ends where a training diverges: at 1.8 × the best rate
    assert f"a factor of 1.5 for LoRA on all, and of {1.8 ** (1 + 8 / 7):.1f} for full" in sentence


@pytest.mark.parametrize("above, factor, is_open", [
    ([0.04, 0.0, 0.04], 2.0, False), ([0.01, 0.0, 0.04], 2 * 2 ** 0.5, True), ([np.inf, 0.0, np.inf], 1.0, False)])
def test_the_width_of_the_good_region(above, factor, is_open):
    width, opened = fair.good_width(np.array([1.0, 2.0, 4.0]), np.array(above))
    assert width == pytest.approx(factor) and opened == is_open


def test_memory_counts_weights_gradients_optimizer_and_activations(made):
    made.methods()
    r = stored.load(made.folder, "methods")
    full = fair.bytes_of(r, "full")
    assert full["weights"] == 4 * 1_155_456 and full["optimizer"] == 8 * 1_155_456
    assert fair.bytes_of(r, "prompt")["weights"] > full["weights"] and full["step"] >= 20 * 2**20
    assert "memory" in drawn(made, "pareto").sentence
