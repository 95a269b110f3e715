"""history.py, live.py and common/show/curves.py: what a history says, and the curves of it."""
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest

import tinypeft as tp
from tests.toys import Noise, small
from tinypeft.common.show.curves import smooth
from tinypeft.training import live

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def no_figures():
    yield
    plt.close("all")


def a_history(n=120, evals=True):
    found = [[s, {"loss": 2 + abs(s - 80) / 40, "accuracy": 0.5}] for s in range(20, n + 1, 20)] if evals else []
    return tp.History(loss=[3 - s / n for s in range(n)], evals=found, seconds=1.0)


def lines(ax): return {line.get_label(): line for line in ax.get_lines()}


# -- the history -----------------------------------------------------------------------------------
def test_the_best_evaluation_is_the_first_lowest_finite_one():
    best = lambda *losses: tp.History(evals=[[i, {"loss": x}] for i, x in enumerate(losses, 1)]).best
    assert best() is None and best(np.nan, np.inf) is None
    assert best(np.nan, 2.0, 1.0, 1.0, -np.inf) == [3, {"loss": 1.0}]
    with pytest.raises(ValueError, match="after step 7 has only accuracy; add a loss"):
        _ = tp.History(evals=[[7, {"accuracy": 1.0}]]).best


def test_a_notebook_shows_why_it_stopped():
    history = a_history()
    history.stopped = "<b>enough</b>"
    assert repr(history).endswith(", 1.0 s, stopped: <b>enough</b>)") and "&lt;b&gt;enough" in history._repr_html_()


# -- the curve -------------------------------------------------------------------------------------
def test_the_curve_is_the_history():
    fig, ax = plt.subplots()
    assert a_history().plot(ax) is ax and plt.get_fignums() == [fig.number]
    found = lines(ax)
    raw = next(line for label, line in found.items() if label.startswith("_"))
    assert np.array_equal(raw.get_ydata(), a_history().loss) and np.array_equal(raw.get_xdata(), range(1, 121))
    assert np.array_equal(found["validation"].get_xdata(), [20, 40, 60, 80, 100, 120])
    assert np.array_equal(found["validation"].get_ydata(), [3.5, 3, 2.5, 2, 2.5, 3])
    assert found["best: 2.000 at step 80"].get_xydata().tolist() == [[80, 2]]
    assert ax.get_xlabel() == "step" and ax.get_ylabel() == "loss (nats)"


def test_without_axes_there_is_a_new_figure_and_without_evaluations_no_points():
    ax = a_history(evals=False).plot()
    assert len(plt.get_fignums()) == 1 and ax.figure.number == plt.get_fignums()[0]
    assert set(lines(ax)) >= {"training, smoothed"} and "validation" not in lines(ax)
    ax = tp.History(loss=[1.0], evals=[[1, {"accuracy": 1.0}]]).plot()           # one step; a task without a loss
    assert lines(ax)["training, smoothed"].get_ydata().tolist() == [1.0]
    with pytest.raises(ValueError, match="plot: the history has no steps; train first"): tp.History().plot()


@pytest.mark.parametrize("width", [0.04, 0.4, 2, 30])
def test_smoothing_weighs_neighbours_by_a_gaussian(width):
    losses = np.random.default_rng(0).standard_normal(41)
    i = np.arange(41)
    W = np.exp(-0.5 * ((i[:, None] - i) / max(width, 1e-9)) ** 2) * (abs(i[:, None] - i) <= min(40, int(3 * width + 0.5)))
    assert np.allclose(smooth(losses, width), W @ losses / W.sum(1), rtol=1e-12)
    assert np.allclose(smooth([5.0] * 7, width), 5) and len(smooth([], width)) == 0


def test_the_text_of_a_picture_is_the_same_every_time_and_opens_no_window():
    one, two = (a_history().svg() for _ in range(2))
    assert one == two and plt.get_fignums() == []
    assert "best: 2.000 at step 80" in " ".join(ET.fromstring(one).itertext())


# -- the live curve --------------------------------------------------------------------------------
@pytest.fixture
def notebook(monkeypatch):
    """What a kernel would show: a list of ("display" or "update", text)."""
    shown = []
    class Handle:
        def update(self, data, raw): shown.append(("update", data["text/html"]))
    def display(data, raw, display_id):
        shown.append(("display", data["text/html"]))
        return Handle()
    monkeypatch.setitem(__import__("sys").modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr(live, "in_notebook", lambda: True)
    return shown


def test_a_live_curve_is_one_output_that_is_drawn_again(notebook):
    tp.train(small(), Noise(), 4, callbacks=[tp.LiveCurve(seconds=0)], progress=False)
    assert [kind for kind, _ in notebook] == ["display", "update", "update", "update"]
    assert all("data:image/svg+xml;base64," in text for _, text in notebook) and len({text for _, text in notebook}) == 4


def test_a_live_curve_takes_its_time_and_shows_the_end(notebook):
    tp.train(small(), Noise(), 4, callbacks=[tp.LiveCurve(seconds=1000)], progress=False)
    assert [kind for kind, _ in notebook] == ["display", "update"]               # the first step and the last
    tp.train(small(), Noise(), 9, callbacks=[tp.LiveCurve(seconds=1000)], eval_every=3, progress=False)
    assert [kind for kind, _ in notebook[2:]] == ["display", "update", "update", "update"]       # and each evaluation


def test_a_live_curve_is_drawn_every_two_seconds(notebook, monkeypatch):
    history, curve = tp.train(small(), Noise(), 1, progress=False), tp.LiveCurve()
    for now in (0.0, 1.9, 2.0, 3.9, 4.1):
        monkeypatch.setattr(live.time, "perf_counter", lambda now=now: now)
        curve(SimpleNamespace(metrics=None, step=1, total=9, history=history))
    assert len(notebook) == 3


def test_a_live_curve_outside_a_notebook_draws_nothing(monkeypatch):
    monkeypatch.setattr(tp.History, "svg", lambda *_: 1 / 0)
    assert len(tp.train(small(), Noise(), 3, callbacks=[tp.LiveCurve(seconds=0)], progress=False).loss) == 3


def test_a_folder_gets_the_losses_and_their_picture(tmp_path):
    """A row for each step; the metrics of validation stand in the rows of the steps that have some."""
    history = tp.History([3.0, 2.5, 2.0], evals=[(2, {"loss": 2.75, "accuracy": 0.5})])
    history.save(tmp_path)
    rows = [line.split(",") for line in (tmp_path / "losses.csv").read_text().splitlines()]
    assert rows == [["step", "loss", "validation_loss", "validation_accuracy"], ["1", "3.0", "", ""],
                    ["2", "2.5", "2.75", "0.5"], ["3", "2.0", "", ""]]
    assert (tmp_path / "curve.svg").read_text().count("<svg") == 1
    with pytest.raises(ValueError): tp.History().save(tmp_path / "none")
    assert not (tmp_path / "none").exists()
