"""finder.py: the rates rise, the model stays as it is, and the suggestion is near the rate that a search found."""
import json
import math
import xml.etree.ElementTree as ET
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tests.methods import SMALL, with_dropout
from tests.oracles import assert_close
from tests.toys import Noise, same, small
from tinypeft.engine.optim import AdamW


@pytest.mark.parametrize("method", [with_dropout(method) or method for method in SMALL.values()], ids=SMALL)
def test_the_model_stays_as_it_is(method):
    """Bit for bit: its arrays and its base's, the buffers of AdaLoRA and the generators; and training is what it would be."""
    made = [tp.attach(small(), method, rng=0, head=3) for _ in range(2)]
    searched, other = made
    arrays = {n: a for n, a in searched.state_dict().items()}
    before = {n: a.copy() for n, a in [*arrays.items(), *searched.model.state_dict().items()]}
    found = tp.find_rate(searched, Noise(), steps=8, progress=False)
    assert len(found.rates) > 0 and not searched.training
    assert same({**searched.state_dict(), **searched.model.state_dict()}, before)
    assert all(searched.state_dict()[n] is a for n, a in arrays.items()) and all(p.grad is None for p in searched.parameters())
    losses = [tp.train(t, Noise(), 8, progress=False).loss for t in made]
    assert losses[0] == losses[1] and same(searched.state_dict(), other.state_dict())


def test_frozen_arrays_are_in_memory_once():
    tuned, seen = tp.attach(small(), tp.LoRA(rank=2), rng=0), []
    class Looking(Noise):
        def loss(self, model, batch):
            seen.append(model)
            return super().loss(model, batch)
    tp.find_rate(tuned, Looking(), steps=2, progress=False)
    assert seen[0] is not tuned
    for p, q in zip(tuned.parameters(), seen[0].parameters(), strict=True): assert (p.data is q.data) == (not p.requires_grad)


def test_the_rates_rise_in_equal_ratios_and_the_losses_are_those_of_a_run():
    seen = []
    class Watched(AdamW):
        def step(self):
            seen.append(self.groups[0]["lr"])
            super().step()
    tuned, task = tp.attach(small().to(np.float64), tp.LoRA(rank=2), rng=0), Noise()
    options = dict(batch_size=3, seed=5, progress=False)
    found = tp.find_rate(tuned, task, lowest=1e-4, highest=1e-2, steps=10, optimizer=Watched, **options)
    assert_close(found.rates, 1e-4 * 100 ** (np.arange(10) / 10), 1e-12)
    assert_close(found.rates, seen, 1e-15)
    history = tp.train(tuned, task, 10, lr=1e-2, schedule_kind="exponential", lr_floor=1e-2, warmup=0, eval_every=1,
                       eval_batches=1, **options)
    assert found.losses.tolist() == [metrics["loss"] for _, metrics in history.evals]


class Given(Noise):
    """The validation losses are given."""
    def __init__(self, *losses):
        super().__init__()
        self.losses = list(losses)

    def finish(self, means, split): return {"loss": self.losses.pop(0)}


@pytest.mark.parametrize("losses, tried, best, note", [
    ((3, 2, 1, 2, 2.9, 3.1, 9), 6, 2, "loss 3.000 → 1.000"),       # more than twice the lowest, and than the first
    ((1, 1, 0.5, 0.9, 1.0, 1.1, 9), 6, 2, "loss 1.000 → 0.500"),   # more than twice the lowest, but not than the first
    ((1, 1.5, 1.9, 2.1, 9), 4, 0, "the loss only rises: try a smaller `lowest`"),
    ((3, 2, 1), 3, 2, "the loss still falls: try a larger `highest`"),
    ((3, 2, 1, math.nan, 1, 9, 9), 6, 2, "loss 3.000 → 1.000")])
def test_it_ends_when_the_loss_rises_and_says_what_it_found(losses, tried, best, note):
    found = tp.find_rate(small(), Given(*losses), lowest=1e-6, highest=1e-3, steps=len(losses), progress=False)
    finite = [x for x in losses[:tried] if math.isfinite(x)]
    assert found.losses.tolist() == finite and found.suggestion == found.rates[best]
    assert repr(found).startswith(f"RateSearch(suggestion {found.suggestion:.2g}, {len(finite)} rates from 1e-06 to ")
    assert repr(found).endswith(f"; {note})")


def test_a_needle_at_the_edge_of_divergence_is_no_suggestion():
    """It was measured: LoRA on the shipped base, 30 rates. The lowest loss is one point between a bump and the climb."""
    losses = [2.925, 2.914, 2.905, 2.891, 2.874, 2.871, 2.901, 2.941, 2.900, 2.853, 2.937, 3.269, 3.638, 6.458]
    found = tp.RateSearch(np.geomspace(0.00068, 0.1, 14), np.array(losses))
    assert found.losses.argmin() == 9 and found.suggestion == found.rates[4] and found.largest == found.rates[9]
    assert found.smoothed[1] == pytest.approx((2.925 + 2.914 + 2.905) / 3) and found.smoothed[0] == pytest.approx(2.9213333)
    assert f"from 0.00068 to 0.1, safe up to {found.largest:.2g}; loss 2.925 → 2.874" in repr(found)


@pytest.mark.parametrize("losses, safe", [((3, 2, 1), 2), ((1, 2, 3), 0), ((3, 1, 1, 1, 9), 2), ((3, 1, 1, 1, 9, 1, 1.5), 2)])
def test_the_largest_safe_rate_is_the_last_before_the_loss_is_what_it_was(losses, safe):
    """A second valley behind a climb does not count."""
    found = tp.RateSearch(np.arange(1.0, 1 + len(losses)), np.array(losses, float))
    assert found.largest == found.rates[safe] >= found.suggestion


def test_a_run_that_diverges_is_a_search_that_ends():
    class Wild(Noise):
        calls = 0
        def loss(self, model, batch):
            if model.training: self.calls += 1
            return super().loss(model, batch) * (math.inf if self.calls > 5 else 1.0)
    found = tp.find_rate(small(), Wild(), steps=10, workers=1, progress=False)
    assert len(found.rates) == 5


@pytest.mark.parametrize("options, says", [
    ({"lowest": 0.0}, "expected 0 < lowest < highest, both finite, got 0.0 and 1.0"),
    ({"lowest": 2.0}, "got 2.0 and 1.0"), ({"highest": math.inf}, "and inf"), ({"lowest": math.nan}, "got nan and 1.0"),
    ({"lr": 1.0}, "find_rate sets lr itself; leave it out"),
    ({"checkpoint": "c", "patience": 3}, "find_rate sets checkpoint, patience itself"),
    ({"steps": 0}, "TrainOptions: steps must be a positive integer"),
    ({"rates": {"C": 2}}, "'C' matches none of the parameters")])
def test_misuse(options, says):
    with pytest.raises(ValueError, match=says): tp.find_rate(tp.attach(small(), tp.LoRA()), Noise(), progress=False, **options)


def test_a_task_without_a_loss_is_refused():
    class Lossless(Noise):
        def finish(self, means, split): return {"accuracy": 1.0}
    with pytest.raises(ValueError, match="expected a metric 'loss' of .*Lossless.*, got accuracy"):
        tp.find_rate(small(), Lossless(), steps=3, progress=False)


def test_nothing_finite_is_an_error():
    with pytest.raises(ValueError, match="find_rate: the loss was not finite after a step at the lowest rate, 0.001"):
        tp.find_rate(small(), Given(math.nan, math.nan), lowest=1e-3, steps=2, progress=False)


def test_the_picture_marks_the_suggestion():
    pytest.importorskip("matplotlib")
    found = tp.RateSearch(np.array([1e-4, 1e-3, 1e-2, 1e-1]), np.array([3.0, 2.0, 1.0, 2.5]))
    text = found._repr_html_()
    words = " ".join(ET.fromstring(b64decode(text.split("base64,")[1].split("'")[0])).itertext())
    assert "0.01" in words and "learning rate" in words and "RateSearch(suggestion 0.01, 4 rates" in text
    from matplotlib.figure import Figure
    ax = Figure().subplots()
    assert found.plot(ax) is ax and ax.get_xscale() == "log"
    curve, mark = ax.get_lines()
    assert ax.get_ylim() == (0.8, 5.0)
    assert curve.get_xydata().tolist() == [[1e-4, 3], [1e-3, 2], [1e-2, 1], [1e-1, 2.5]] and set(mark.get_xdata()) == {0.01}


@pytest.mark.parametrize("label, method", [("full", tp.FullFineTuning()), ("lora", tp.LoRA())])
@pytest.mark.long
def test_the_suggestion_is_within_a_factor_of_three_of_the_best_rate_direction(label, method):
    """The best of the rates that were tried, after 150 steps (experiment `rates`)."""
    runs = json.loads((Path(__file__).parents[2] / "figures/results/rates.json").read_text("utf-8"))["runs"][label]["100"]
    best = runs["rate"][int(np.argmin(runs["loss"]))]
    model = tp.load_pretrained()
    task = tp.tasks.domain(model, context=128)
    found = tp.find_rate(tp.attach(model, method, rng=0), task, steps=40, batch_size=4, progress=False)
    assert 1 / 3 <= found.suggestion / best <= 3
