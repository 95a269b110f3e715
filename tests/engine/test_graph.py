"""Drawn graphs: true values and gradients, every edge, nothing over anything else, and the graph as usable as before."""
import base64
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.engine import functional as F

SVG = "{http://www.w3.org/2000/svg}"


def texts(g):
    return [t.text for t in ET.fromstring(g.svg).iter(f"{SVG}text")]


def rectangles(g):
    """(left, top, right, bottom) of the boxes and operations; the first rectangle is the background."""
    rects = [[float(r.get(k)) for k in ("x", "y", "width", "height")] for r in [*ET.fromstring(g.svg).iter(f"{SVG}rect")][1:]]
    return [(x, y, x + width, y + height) for x, y, width, height in rects]


def expression(a, b, c, f):
    return ((a * b + c) * f).tanh() + a / b


def test_values_and_gradients_are_those_of_backward():
    inputs = {name: tp.Tensor(value, requires_grad=True) for name, value in zip("abcf", (2, -3, 10, -0.2), strict=True)}
    expression(**inputs).backward()
    said = texts(tp.graph(expression, a=2.0, b=-3.0, c=10.0, f=-0.2))
    for name, x in inputs.items():
        at = said.index(name)
        assert said[at + 1:at + 3] == [f"data {x.item():.4g}", f"grad {x.grad:.4g}"]
    assert {"+", "×", "÷", "tanh"} <= set(said) and f"data {expression(**inputs).item():.4g}" in said
    assert said.count("grad 1") == 3                     # the sum, and the two it adds up


def test_gradients_in_the_middle_of_a_graph():
    """d tanh(ab + c)/d(ab) = 1 − tanh²: drawn for a value that no one has named."""
    said = texts(tp.graph(lambda a, b, c: (a * b + c).tanh(), a=2.0, b=-3.0, c=6.5))
    assert said[said.index("data -6") + 1] == f"grad {1 - np.tanh(0.5) ** 2:.4g}"


@pytest.mark.parametrize("fn, inputs", [
    (expression, {"a": 2.0, "b": -3.0, "c": 10.0, "f": -0.2}),
    (lambda x, y: (x * y).exp() / (x.log() + y * y + x) + x * x, {"x": 1.2, "y": 0.7}),
    (lambda x: x * x * x + x, {"x": 1.0}),
    (lambda A, B: F.linear(F.linear(tp.Tensor(np.ones((4, 8))), A), B).mean(), {"A": np.ones((2, 8)), "B": np.ones((6, 2))})])
def test_no_box_lies_over_another_or_leaves_the_picture(fn, inputs):
    g = tp.graph(fn, **inputs)
    boxes = rectangles(g)
    for i, (l1, t1, r1, b1) in enumerate(boxes):
        for l2, t2, r2, b2 in boxes[:i]:
            assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', g.svg).groups())
    assert all(0 < left and 0 < top and right < width and bottom < height for left, top, right, bottom in boxes)
    edges = sum(len({id(p) for p in box.parents}) + bool(box.operation) for box in g.boxes)
    assert g.svg.count("<path") == edges


def test_a_tensors_own_graph_is_drawn_without_being_used_up():
    a, W = tp.Tensor([[1.0, 2.0]], requires_grad=True), tp.Tensor(np.ones((3, 2), np.float32))
    y = F.linear(a, W)
    loss = F.gelu(y).sum()
    said = texts(tp.graph(loss, a=a, y=y))
    assert said.count("data (1, 3)") == 2 and {"a", "y", "linear", "gelu", "sum"} <= set(said)
    assert not any(line.startswith("grad") for line in said)                 # nothing was walked yet
    loss.backward()
    assert a.grad.shape == (1, 2)


def test_what_is_frozen_is_not_in_it():
    W = tp.Tensor(np.ones((3, 2), np.float32))
    said = texts(tp.graph(lambda b, W: F.linear(tp.Tensor([[1.0, 2.0]]), W, b).sum(), b=np.zeros(3, np.float32), W=W))
    assert "W" not in said and "b" in said


def test_it_is_saved_as_it_is_shown_and_always_the_same(tmp_path):
    g, again = (tp.graph(expression, a=2.0, b=-3.0, c=10.0, f=-0.2) for _ in range(2))
    assert g.save(tmp_path / "g.svg").read_text("utf-8") == g._repr_svg_() == again.svg
    image = re.search(r"src='data:image/svg\+xml;base64,(.+?)'", g._repr_html_())[1]      # shown in untrusted notebooks, too
    assert base64.b64decode(image).decode() == g.svg


def test_what_cannot_be_drawn_says_so():
    with pytest.raises(ValueError, match="nothing is recorded"): tp.graph(lambda a: a * 2, a=tp.Tensor(1.0))
    with pytest.raises(ValueError, match="expected at most 200"): tp.graph(lambda x: sum((x + i for i in range(300)), x), x=1.0)
