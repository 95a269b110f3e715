"""Schematics: small, readable without the page's colours, described, and no text on another or across an edge."""
import gc
import re
import tomllib
import tracemalloc
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font

import tinypeft as tp
from tinypeft.course import percent, show
from tinypeft.course.schematics import SCHEMATICS, drawings
from tinypeft.course.schematics.sheet import FROZEN, Sheet
from tinypeft.engine import functional as F
from tinypeft.engine.tensor import topological_order

DRAWN = {name: draw() for name, draw in SCHEMATICS.items()}
each = pytest.mark.parametrize("name", DRAWN)
FONTS = {bold: FT2Font(findfont(FontProperties(family="DejaVu Sans", weight=weight)))
         for bold, weight in ((False, "normal"), (True, "bold"))}


# -- what a sheet says, as rectangles (left, top, right, bottom) and segments ---------------------
def parts(svg):
    """The texts [(n, words, box)], the rectangles of boxes and cells [(n, rectangle, is it filled?)] and the pieces of lines
    and outlines [(n, segment)], n being the place in the order of drawing. A text is measured in DejaVu Sans, which is as
    wide as any font that the sheet asks for."""
    written, rectangles, segments = [], [], []
    for n, e in enumerate(list(ET.fromstring(svg))[1:]):                     # the first is the background
        if e.tag.endswith("text"):
            size, font = float(e.get("font-size", 12)), FONTS[e.get("font-weight") == "bold"]
            font.set_size(size, 72)
            font.set_text(e.text)
            width, x, y = font.get_width_height()[0] / 64, float(e.get("x")), float(e.get("y"))
            left = x - width * {"start": 0, "end": 1}.get(e.get("text-anchor"), 0.5)
            written.append((n, e.text, (left, y - 0.73 * size, left + width, y + 0.2 * size)))
            continue
        filled = e.get("fill") != "none"
        if e.tag.endswith("rect"):
            found = [tuple(float(e.get(k)) for k in ("x", "y", "width", "height"))]
        else:
            found = [tuple(map(float, m)) for m in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)", e.get("d"))]
        rectangles += [(n, (x, y, x + w, y + h), filled) for x, y, w, h in found]
        if found: continue
        points = [tuple(map(float, p.split())) for p in e.get("d").strip("Mz").split("L")]
        if e.get("d").endswith("z"): points.append(points[0])
        segments += [(n, segment) for segment in zip(points[:-1], points[1:], strict=True)]
    return written, rectangles, segments


def meet(a, b, gap=0.5):
    return a[0] < b[2] - gap and b[0] < a[2] - gap and a[1] < b[3] - gap and b[1] < a[3] - gap


def inside(a, b):
    return b[0] <= a[0] and a[2] <= b[2] and b[1] <= a[1] and a[3] <= b[3]


def crosses(segment, box):
    t = np.linspace(0, 1, 200)[:, None]
    points = np.array(segment[0]) * (1 - t) + np.array(segment[1]) * t
    return ((points > np.array(box[:2]) + 0.5) & (points < np.array(box[2:]) - 0.5)).all(1).any()


def faults(svg):
    """What a reader could not read, as sentences. What a filled box behind a text hides does not disturb it."""
    root, (written, rectangles, segments) = ET.fromstring(svg), parts(svg)
    width, height = float(root.get("width")), float(root.get("height"))
    found = [f"a box leaves the sheet: {r}" for _, r, _ in rectangles if not inside(r, (1, 1, width - 1, height - 1))]
    for i, (_, words, box) in enumerate(written):
        behind = max([n for n, r, filled in rectangles if filled and inside(box, r)], default=-1)
        if not inside(box, (3, 3, width - 3, height - 3)): found.append(f"{words!r} leaves the sheet")
        found += [f"{words!r} lies on {other!r}" for _, other, there in written[:i] if meet(box, there)]
        found += [f"{words!r} crosses the edge of a box at {r}" for n, r, _ in rectangles
                  if n > behind and meet(box, r) and not inside(box, r)]
        found += [f"a line crosses {words!r} at {s}" for n, s in segments if n > behind and crosses(s, box)]
    return found


@each
def test_it_can_be_read(name):
    assert faults(DRAWN[name].figure) == []


def test_faults_are_found():
    s = Sheet(100, 100)
    s.text(20, 20, "a long word that leaves")
    s.text(50, 50, "one")
    s.text(55, 52, "two")
    s.box(40, 80, 12, 12, "wide words")
    s.line((0, 50), (100, 50))
    told = " ".join(faults(s.svg))
    for words in ("'a long word that leaves' leaves the sheet", "'two' lies on 'one'", "'wide words' crosses the edge",
                  "a line crosses 'one'"):
        assert words in told


@each
def test_it_is_small_and_plain(name):
    svg = DRAWN[name].figure
    root = ET.fromstring(svg)
    assert len(svg.encode()) <= 8192 and {e.tag.split("}")[1] for e in root.iter()} <= {"svg", "rect", "path", "text"}
    background = next(root.iterfind(".//{*}rect"))
    assert background.get("fill") == "#FFF" and background.get("width") == root.get("width") == "640"
    assert background.get("height") == root.get("height") and " id=" not in svg and "href" not in svg
    sizes = {float(e.get("font-size", 12)) for e in root.iterfind(".//{*}text")}
    assert min(sizes) >= 11


@each
def test_it_is_described(name):
    drawn = DRAWN[name]
    caption = f"{drawn.sentence} {drawn.detail}"
    assert 1 <= len(re.findall(r"[.?](?= |$)", caption)) <= 3 and len(caption) <= 300 and len(drawn.alt) >= 80
    assert drawn.alt.endswith(".") and drawn.sentence.endswith(".") and drawn.detail.endswith(".")


def test_each_is_shown_in_a_lesson():
    code = "".join(path.read_text(encoding="utf-8") for path in percent.sources())
    assert SCHEMATICS.keys() == set(re.findall(r'show\("schematic:(\w+)"\)', code))


def test_the_road_has_every_lesson():
    """The second half of a lesson may stand in its first half's box."""
    numbers = {path.stem.partition("_")[0].rstrip("b") for path in percent.sources()}
    assert numbers == {word for word in words("road").split() if re.fullmatch(r"\d\d", word)}


def test_a_drawing_has_its_words_and_is_installed_with_the_package():
    files = {path.stem: path for path in Path(drawings.__file__).parent.glob("*.svg")}
    assert files.keys() == drawings.WORDS.keys() and files.keys() < SCHEMATICS.keys()
    project = tomllib.loads((Path(tp.__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["tinypeft"]
    installed = {path for pattern in patterns for path in Path(tp.__file__).parent.glob(pattern)}
    assert set(files.values()) <= installed


def test_it_is_shown_with_caption_and_description(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw=False: shown.append(data))
    show("schematic:lora")
    picture, caption = shown
    assert picture["image/svg+xml"] == DRAWN["lora"].figure and picture["text/plain"] == DRAWN["lora"].alt
    assert "<img alt=" in picture["text/html"] and caption.data.startswith("**LoRA adds")


def test_of_an_unknown_name_the_names_are_told(capsys):
    show("schematic:no such")
    told = capsys.readouterr().out
    assert "there is no schematic 'no such'; the schematics are map, autograd, stack" in told and told.strip().endswith("llama")


# -- the paper -----------------------------------------------------------------------------------
def test_words_are_escaped_and_numbers_short():
    s = Sheet(90, 40)
    s.box(10, 10, 70, 20, "a < b & c", FROZEN)
    s.arrow((0, 5), (20 / 3, 5))
    assert "a &lt; b &amp; c" in s.svg and not re.search(r"\d\.\d\d|\d\.0[^\d]", s.svg)


def test_an_arrow_ends_where_it_points():
    s = Sheet(90, 90)
    s.arrow((10, 10), (10, 50), (60, 50))
    line, head = s.parts
    assert 'd="M10 10L10 50L53 50"' in line and 'd="M60 50L' in head


# -- what the drawings claim ---------------------------------------------------------------------
words = lambda name: " ".join(text for _, text, _ in parts(DRAWN[name].figure)[0])


def test_the_walk_through_the_stack_is_the_engines():
    """Layers 3, 4 and 5 leave a node, and the weight of layer 3 is the one leaf."""
    weights = [tp.Tensor(np.eye(3) * (k + 1), requires_grad=k == 2) for k in range(5)]
    y = tp.Tensor(np.ones((2, 3)))
    for W in weights: y = F.linear(y, W)
    leaves = [value for value in topological_order(y.node) if isinstance(value, tp.Tensor)]
    assert len(topological_order(y.node)) == 4 and [id(leaf) for leaf in leaves] == [id(weights[2])]
    told = words("stack")
    assert told.count("no gradient,") == 2 and told.count("dW alone,") == 1 and told.count("dX alone,") == 2


def test_the_graphs_numbers_are_the_engines():
    x = tp.Tensor(np.float64(3), requires_grad=True)
    a = x * x
    b = a + a
    c = b + a
    c.backward()
    told = words("autograd")
    assert x.grad == 18 and all(f"value {v.item():g}" in told for v in (a, b, c)) and f"grad {x.grad:g}" in told


def test_the_units_of_memory_are_what_a_block_keeps():
    B, T, d, H = 4, 64, 256, 4
    tokens = np.zeros((B, T), int)

    def held(L):
        """Numbers that the forward pass of a model of L blocks leaves allocated."""
        model = tp.GPT(tp.GPTConfig(vocab_size=64, context_length=T, d_model=d, n_layers=L, n_heads=H), rng=0)
        model(tokens)
        gc.collect()
        tracemalloc.start()
        logits = model(tokens)
        size = tracemalloc.get_traced_memory()[0] / 4
        tracemalloc.stop()
        del logits
        return size
    units = ((held(3) - held(1)) / 2 - 2 * B * H * T) / (B * T * d)
    assert units == pytest.approx(16, abs=0.4) and "there are 16." in words("memory") and "16 BTd" in words("memory")


def test_the_cells_of_the_grid_are_the_packages():
    from tinypeft.quant import uniform
    g = uniform.make_grid(np.array([-1.0]), np.array([2.5]), bits=3, symmetric=False)
    assert g.scale.item() == 0.5 and np.ravel(g.zero)[0] == 2
    assert np.allclose(g.round(np.array([[-1.55, -0.63, 0.1, 0.42, 1.31, 1.9, 2.9]])), [[-1, -0.5, 0, 0.5, 1.5, 2, 2.5]])


def test_the_bits_of_nf4_are_the_packages():
    W = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    plain, double = (tp.NF4(double_quant=d).quantize(W).bits_per_weight for d in (False, True))
    assert f"{plain:g} bits" in words("nf4") and f"{double:.3f}" in words("nf4")


def test_the_llama_is_the_smallest_smollm2():
    c = tp.LlamaConfig()
    assert f"d = {c.d_model}, H = {c.n_heads}, G = {c.n_kv_heads}, and d_mlp = {c.d_mlp}" in DRAWN["llama"].detail
