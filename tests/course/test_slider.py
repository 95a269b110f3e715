"""A slider: self-contained, small, one axis for all frames, with a picture where no script may run."""
import base64
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.course import sliders
from tinypeft.course.beside import beside
from tinypeft.course.exercises import of_topic
from tinypeft.course.slider import _Axis, slider
from tinypeft.quant.obq import obq_step

x = np.linspace(0, 1, 50)
RNG = np.random.default_rng(0)


def waves(n=5, **options):
    numbers = range(1, n + 1)
    return slider("k", {k: (x, np.sin(k * x)) for k in numbers}, captions={k: f"sine of {k} x" for k in numbers}, **options)


def page(html):
    """(the markup that the script puts in, what it tells)."""
    return [json.loads(text) for text in re.search(r"const page = (.*), told = (.*), start = ", html).groups()]


def still(html):
    """The image that is shown without scripts, as an element."""
    return ET.fromstring(base64.b64decode(re.search("base64,([^']+)'", html)[1]))


def test_one_frame_a_value_with_its_caption():
    markup, told = page(waves().html)
    assert markup.count("class='frame'") == 5 and told == [[str(k), f"sine of {k} x"] for k in range(1, 6)]
    assert "type='range' min='0' max='4' value='2'" in markup
    assert repr(waves()) == "\n".join(f"k = {k}: sine of {k} x" for k in range(1, 6))


def test_without_scripts_the_middle_frame_is_shown():
    html = waves().html
    before = html[:html.index("<script>")]
    assert "k = 3: sine of 3 x" in before and "<input" not in before
    lines = [e.get("points") for e in still(html).iter() if e.tag.endswith("polyline")]
    assert len(lines) == 1 and lines[0] in page(html)[0]


def test_neither_picture_is_wider_than_its_page():
    """On a phone, the still image and the live drawing both shrink, in proportion."""
    html = waves().html
    svg = page(html)[0].split(">")[0]
    assert "style='max-width:100%;height:auto'" in svg and "viewBox=" in svg and "style='max-width:100%'" in html


def test_frames_share_the_axes():
    """The same y is at the same height in a frame whose own largest number is smaller."""
    s = slider("k", {1: ([0, 1], [0, 1]), 2: ([0, 1], [0, 10]), 3: ([0, 1], [0, 5])})
    tops = [float(re.search(r",([\d.]+)'", frame)[1]) for frame in s.drawn]
    assert tops[1] < tops[2] < tops[0] and tops[2] == pytest.approx((tops[1] + 254) / 2, abs=0.2)


def test_it_needs_nothing_from_outside():
    html = waves().html.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in html and " src='data:" in html and "import" not in html
    assert "data-lm-suppress-shortcuts" in html, "JupyterLab would take the arrow keys"
    assert "<label" in page(html)[0] and "aria-valuetext" in html


def test_sliders_on_one_page_do_not_disturb_each_other():
    names = [re.search("data-slider='([0-9a-f]+)'", s.html)[1] for s in (waves(5), waves(6))]
    assert names[0] != names[1] and waves().html == waves().html
    for name, s in zip(names, (waves(5), waves(6)), strict=True):
        assert f"querySelectorAll(\"[data-slider='{name}']\")" in s.html and "getElementById" not in s.html
    assert 'class="frame"' not in waves().html and " id=" not in waves().html


def test_names_are_escaped():
    html = slider("a < b & '</script>'", {"<i>": (x, x), 2: (x, x)}, captions={2: "</script> & more"}).html
    assert html.count("</script>") == 1 and "a &lt; b &amp; &#x27;&lt;/script&gt;&#x27;" in html
    assert slider("k", {1: {"a<b": (x, x)}}).drawn and "a&lt;b" in slider("k", {1: {"a<b": (x, x)}}).html


def test_a_line_keeps_the_points_that_can_be_seen():
    straight = np.linspace(0, 1, 10_000)
    points = lambda y: len(re.search("points='([^']+)'", slider("k", {1: (straight, y)}).drawn[0])[1].split())
    assert points(2 * straight) == 2 and 10 < points(np.sin(6 * straight)) < 100
    assert points((straight > 0.5) * 1.0) == 4


def test_axes_of_powers_of_ten():
    s = slider("k", {1: ([1e-6, 1], [1e-8, 1])}, xlog=True, ylog=True)
    assert ">10⁻⁶<" in "".join(s.back) and ">1<" in "".join(s.back)
    assert "-0<" not in "".join(waves().back) and "−0<" not in "".join(waves().back)


@pytest.mark.parametrize("numbers, log", [((2.0, 9.0), True), ((0.3, 0.31), True), ((2.0, 9.0), False), ((-3.0, 40.0), False)])
def test_the_ticks_of_an_axis_lie_on_it(numbers, log):
    ticks = _Axis(np.array(numbers), 100.0, 300.0, log).ticks()
    assert 3 <= len(ticks) <= 8 and all(100 - 1e-6 <= pixel <= 300 + 1e-6 for pixel, _ in ticks)


def test_pictures_of_arrays():
    s = slider("rank", {k: np.add.outer(np.arange(20.0), np.arange(30.0)) * k for k in (1, 2)})
    assert all("data:image/png" in frame for frame in s.drawn) and s.drawn[0] != s.drawn[1]


def test_a_slider_without_frames_is_refused():
    with pytest.raises(ValueError, match="at least one frame"): slider("k", {})


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the script")
def test_the_script_shows_the_frame_of_the_handle(tmp_path):
    code = re.search(r"<script>(.*)</script>", waves().html, re.S)[1]
    (tmp_path / "run.js").write_text("""
const make = () => ({frames: [0, 1, 2, 3, 4].map(() => ({style: {}})), input: {value: 2, setAttribute() {}}, output: {}, p: {},
  removeAttribute() { this.done = true }, querySelector(q) { return this[q] }, querySelectorAll() { return this.frames }});
const boxes = [make(), make()];
global.document = {querySelectorAll: () => boxes.filter(box => !box.done)};
""" + code + """
boxes[0].input.value = 4; boxes[0].input.oninput();
const seen = frames => frames.map(frame => frame.style.display != "none");
console.log(JSON.stringify(boxes.map(b => [seen(b.frames), b.output.textContent, b.p.textContent])));
""", "utf-8")
    told = json.loads(subprocess.run(["node", tmp_path / "run.js"], capture_output=True, text=True, check=True).stdout)
    assert told == [[[i == 4 for i in range(5)], "5", "sine of 5 x"], [[i == 2 for i in range(5)], "3", "sine of 3 x"]]


def test_a_long_name_in_the_key_does_not_lie_under_the_next():
    line = ([0, 1], [0, 1])
    back = slider("n", {1: {"short": line, "next": line}}, behind={"weights, gradients, m, v": line}).back
    places = {name: float(x) for part in back for x, name in re.findall(r'<text x="([\d.]+)"[^>]*>([^<]+)</text>', part)}
    assert places["short"] - places["weights, gradients, m, v"] >= 7 * 24 and places["next"] - places["short"] == 130


# -- the lessons' sliders ------------------------------------------------------------------------
W = RNG.normal(size=(64, 128)).astype(np.float32)
X = RNG.normal(size=(100, 128)) * np.where(np.arange(128) == 7, 30, 1)
ROWS = tp.Uniform(2, symmetric=False).fit(W)
nf4_levels = of_topic("nf4")["nf4.levels"].reference
two_rounds = lambda r: of_topic("loftq")["loftq.rounds"].reference(W, lambda M: tp.Uniform(2, False).fit(M).round(M), r, 2)
prefix_share = of_topic("prefix")["prefix.share"].reference
READY = {"bits": lambda: sliders.bits(W), "groups": lambda: sliders.groups(W),
         "gate": lambda: sliders.gate(prefix_share, RNG.normal(size=32), RNG.normal(size=(40, 32)), RNG.normal(size=(10, 32))),
         "rank": lambda: sliders.rank(W), "smoothing": lambda: sliders.smoothing(X, W),
         "step": lambda: sliders.step(np.sin, np.cos(1.0), 1.0), "clipping": lambda: sliders.clipping(W),
         "valley": lambda: sliders.valley(obq_step), "levels": lambda: sliders.levels(nf4_levels, W),
         "leftover": lambda: sliders.leftover(two_rounds, W, ROWS.round(W)),
         "budget": lambda: sliders.budget(of_topic("choosing")["choosing.memory"].reference, 6_738_000_000, 5_000_000),
         "turning": lambda: sliders.turning(of_topic("real")["real.rotary"].reference)}
numbers = lambda s, pattern: [float(re.search(pattern, words)[1]) for words in s.words]


@pytest.mark.parametrize("name", READY)
def test_a_lessons_slider_is_small_and_told(name):
    s = READY[name]()
    assert len(s.html.encode()) <= 40_000 and 5 <= len(s.drawn) <= 13 and all(s.words)
    for frame in s.drawn: ET.fromstring(f"<svg xmlns='http://www.w3.org/2000/svg'>{frame}</svg>")
    assert not re.search(r"nan|inf", "".join(s.drawn + s.back))


def test_more_bits_and_smaller_groups_have_a_smaller_error():
    assert (np.diff(numbers(sliders.bits(W), r"error is ([\d.]+)")) < 0).all()
    assert (np.diff(numbers(sliders.groups(W), r"error is ([\d.]+)")) > 0).all()
    q = tp.Uniform(4, True, "group", 32).quantize(W)
    told = sliders.bits(W).words[2]
    assert f"{100 * np.linalg.norm(q.dequantize() - W) / np.linalg.norm(W):.1f} %" in told
    assert f"{q.bits_per_weight:.2f} bits" in told


def test_the_gate_of_zero_keys_is_their_share_of_equal_scores():
    q, k, P_K = np.zeros(8), RNG.normal(size=(6, 8)), RNG.normal(size=(2, 8))
    assert numbers(sliders.gate(prefix_share, q, k, P_K), r"λ = ([\d.]+)") == [0.25] * 13


def test_the_gate_tells_the_students_share():
    told = sliders.gate(lambda q, k, P_K: P_K.max(), np.zeros(8), np.zeros((6, 8)), np.full((2, 8), 0.1)).words
    assert told[0] == "λ = 0.000, so the text counts 1.000" and told[-1] == "λ = 0.300, so the text counts 0.700"


def test_the_full_rank_keeps_everything():
    shares = numbers(sliders.rank(W), r"^([\d.]+) %")
    assert shares[-1] == 100 and (np.diff(shares) > 0).all()


def test_smoothing_balances_an_outlier_channel():
    errors = numbers(sliders.smoothing(X, W), r"error is ([\d.]+)")
    assert 0 < int(np.argmin(errors)) < 10


def test_a_finite_difference_has_a_best_step():
    s = sliders.step(np.sin, np.cos(1.0), 1.0)
    best = next(i for i, words in enumerate(s.words) if "the best" in words)
    assert s.values[0] == "10⁻¹²" and s.values[-1] == "0.1" and 4 <= best <= 9           # the handle goes to larger steps
    assert all("rounding" in words for words in s.words[:best]) and all("bends" in words for words in s.words[best + 1:])


def test_a_lucky_step_does_not_make_rounding_of_a_larger_one_bending():
    """For exp at 1 a step of 10⁻⁶ is off by 6e-11, and f bends by 2e-13 within it."""
    s = sliders.step(np.exp, np.e, 1.0)
    assert "rounding" in s.words[s.values.index("10⁻⁶")] and "bends" in s.words[s.values.index("10⁻³")]


def test_every_point_has_two_coordinates(monkeypatch):
    """A histogram is drawn with one step per bin."""
    monkeypatch.setattr(sliders, "slider", lambda name, frames, behind=None, **rest: (frames, behind))
    frames, behind = sliders.clipping(W)
    for x, y in [*behind.values(), *(curve for frame in frames.values() for curve in frame.values())]: assert len(x) == len(y)
    assert len(behind["weights"][0]) == 2 * 60 and behind["weights"][0][0] == W.min() and behind["weights"][0][-1] == W.max()


def test_the_numbers_that_are_drawn_are_those_of_the_formulas(monkeypatch):
    monkeypatch.setattr(sliders, "slider", lambda name, frames, behind=None, captions=None, **rest: (frames, behind, captions))
    frames, *_ = sliders.smoothing(X, W)
    inputs, weights = ([frame[name][1] for frame in frames.values()] for name in ("inputs ÷ s", "weights × s"))
    assert np.allclose(weights[0], 1) and np.allclose(inputs[-1], 1)         # α = 0 and α = 1
    assert np.allclose(np.multiply(inputs, weights), inputs[0])
    frames, _, captions = sliders.gate(prefix_share, X[0, :16], W[:7, :16], W[9:12, :16])
    for scale, frame in frames.items():
        prefix, text = frame["prefix"][1], frame["text"][1]
        assert len(prefix) == 3 and len(text) == 7 and np.isclose(prefix.sum() + text.sum(), 1)
        assert f"λ = {prefix.sum():.3f}" in captions[scale]
    scores = np.concatenate([W[9:12, :16], W[:7, :16]]) @ X[0, :16] / 4
    assert np.allclose(np.concatenate([y for _, y in frames[1.0].values()]), np.exp(scores) / np.exp(scores).sum())
    frames, *_ = sliders.rank(W[:40, :40])
    assert np.allclose(frames[40], W[:40, :40]) and all(np.linalg.matrix_rank(A) == r for r, A in frames.items())
    pairs, *_ = sliders.rank(W[:40, :40], beside=True)
    assert all(np.array_equal(pair[:, :40], frames[r]) for r, pair in pairs.items())
    assert all(np.array_equal(pair[:, 42:], frames[40]) for pair in pairs.values())
    frames, behind, _ = sliders.bits(W)
    assert np.array_equal(frames[4]["rounded"][1], tp.Uniform(4, True, "group", 32).quantize(W).dequantize()[0, :64])
    assert np.array_equal(behind["weights"][1], W[0, :64])
    _, behind, _ = sliders.step(np.exp, np.e, 1.0)
    assert behind["all steps"][1][-1] == pytest.approx(abs((np.exp(1.1) - np.exp(0.9)) / 0.2 - np.e) / np.e)
    frames, *_ = sliders.clipping(W, bits=3)
    for share, frame in frames.items():
        assert np.allclose(np.unique(frame["grid"][0]), share * np.abs(W).max() * np.arange(-3, 4) / 3)


def test_a_grid_may_be_rounded_to_by_a_students_function():
    """The same function gives the same errors; one with a code more on one side has a lower one."""
    symmetric = sliders.clipping(W, rounding=lambda w, s: s * np.clip(np.rint(w / s), -3, 3))
    assert symmetric.words == sliders.clipping(W).words
    longer = sliders.clipping(W, rounding=lambda w, s: s * np.clip(np.rint(w / s), -4, 3))
    assert numbers(longer, r"error is ([\d.]+)")[0] < numbers(symmetric, r"error is ([\d.]+)")[0]


def test_all_codes_of_a_rounding_are_drawn(monkeypatch):
    """A code that no weight has belongs to the grid."""
    monkeypatch.setattr(sliders, "slider", lambda name, frames, **rest: frames)
    frames = sliders.clipping(W, shares=(0.4, 1.4, 3.0), rounding=lambda w, s: s * np.clip(np.rint(w / s), -4, 3))
    for share, frame in frames.items():
        assert np.allclose(np.unique(frame["grid"][0]), share * np.abs(W).max() * np.arange(-4, 4) / 3)


def test_dots_are_joined_by_no_line():
    after, before = (np.arange(3), np.array([0, 2, 1])), (np.arange(3), np.zeros(3))
    s = slider("n", {1: {"after": after}}, behind={"before": before}, dots=True)
    for drawn in (s.drawn[0], s.back[-1]):
        assert drawn.count("h0") == drawn.count("M") == 3 and "polyline" not in drawn and "L" not in drawn
    assert "stroke-width='9'" in s.back[-1] and "stroke-width='5'" in s.drawn[0]


def test_a_clipped_grid_can_be_better_than_the_whole_range():
    errors = numbers(sliders.clipping(W), r"error is ([\d.]+)")
    assert 0 < int(np.argmin(errors)) < len(errors) - 1


def test_a_step_of_obq_helps_where_inputs_are_correlated():
    s = sliders.valley(obq_step)
    nearest, stepped = (np.array(numbers(s, rf"([\d.]+) {end}")) for end in ("to nearest", "with the step"))
    assert nearest[0] == stepped[0] and (stepped <= nearest).all() and stepped[-1] < 0.3 * nearest[-1]
    assert sliders.valley(lambda w, *_: (w.tolist(), None)).words[-1].startswith(f"the loss is {nearest[-1]:.2f}")


def test_the_error_of_a_table_has_a_least_delta_and_nf4s_is_the_packages():
    s = sliders.levels(nf4_levels, W)
    errors = numbers(s, r"error is ([\d.]+)")
    assert 0 < int(np.argmin(errors)) < len(errors) - 1
    Q = tp.NF4().quantize(W).dequantize()
    assert errors[4] == pytest.approx(100 * np.linalg.norm(Q - W) / np.linalg.norm(W), abs=0.01)


def test_more_rank_leaves_less_of_the_error():
    s = sliders.leftover(two_rounds, W, ROWS.round(W))
    left = numbers(s, r"is ([\d.]+) of")
    assert (np.diff(left) < 0).all() and left[0] < 1
    assert np.allclose(numbers(s, r"leaves (\d+) %"), 100 * np.square(left), atol=1.6)


def test_the_singular_values_that_a_rank_takes_away_come_first(monkeypatch):
    monkeypatch.setattr(sliders, "slider", lambda name, frames, **rest: frames)
    for r, frame in sliders.leftover(two_rounds, W, ROWS.round(W), ranks=(1, 4)).items():
        number, after = frame["after LoftQ"]
        assert number[0] == 1 and (after[:r] < 1e-4).all() and (after[r:] > 1e-3).all() and (np.diff(after[r:]) <= 0).all()


def test_fewer_bits_leave_room_for_more_rank():
    s = READY["budget"]()
    need = numbers(s, r"it is ([\d.]+) GiB")
    assert (np.diff(need) < 0).all() and need[0] == pytest.approx((6_738e6 * 2 + 40e6 * 16) / 2**30, abs=0.06)
    fitting = [int((16 * 2**30 - 6_738e6 * bits / 8) / (16 * 5e6)) for bits in (16, 8, 4.5, 4.127, 3.25, 2.5)]
    assert numbers(s, r"ranks up to (\d+) fit") == fitting == sorted(set(fitting))
    assert sliders.budget(lambda n, bits, trained: 2**40, 1, 1).words[0].endswith("no rank fits")


def test_a_larger_base_turns_more_slowly(monkeypatch):
    monkeypatch.setattr(sliders, "slider", lambda name, frames, **rest: frames)
    frames = READY["turning"]()
    products = [product for _, product in frames.values()]
    assert all(product[0] == pytest.approx(1) for product in products)
    assert (np.diff([product[5] for product in products]) > 0).all()


# -- texts side by side --------------------------------------------------------------------------
def test_texts_side_by_side():
    pair = beside({"before, 3.1 nats": "<b>def\n  x", "after": "plain"})
    assert "&lt;b&gt;def\n  x" in pair._repr_html_() and "width:50%" in pair._repr_html_()
    assert repr(pair) == "before, 3.1 nats:\n    <b>def\n      x\nafter:\n    plain"
    rows = beside({"asked": ["a", "b" * 200], "told": ["c", "d"]})
    assert rows._repr_html_().count("<tr>") == 3 and "overflow-wrap:anywhere" in rows._repr_html_()
    assert repr(rows).endswith("told:\n    c\n\n    d")
    with pytest.raises(ValueError, match="2 for 'a', 1 for 'b'"): beside({"a": ["x", "y"], "b": "z"})


def test_a_unit_is_as_long_on_both_axes():
    """A square of side 1 has sides of the same number of pixels."""
    square = {"": ([0, 1, 1, 0], [0, 0, 1, 1])}
    points = re.search(r"points='([^']+)'", slider("a", {1: square}, equal=True).drawn[0])[1]
    (x0, y0), (x1, _), (_, y1), _ = (map(float, point.split(",")) for point in points.split())
    assert abs((x1 - x0) - (y0 - y1)) < 0.3


def test_the_slider_of_ranks_ends_where_nothing_is_left():
    product = RNG.normal(size=(20, 3)) @ RNG.normal(size=(3, 30))
    assert sliders.rank(product, range(1, 4)).values == ["1", "2", "3"]
    assert sliders.rank(product, (1, 2)).values == ["1", "2", "20"]
