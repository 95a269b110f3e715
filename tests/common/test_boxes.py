"""boxes.py: a picture made of names and lines of text alone; what it looks like around tensors is in engine/test_graph.py."""
import xml.etree.ElementTree as ET

import numpy as np

from tinypeft.common.show.boxes import BOLD, ORANGE, PLAIN, Box, draw

SVG = "{http://www.w3.org/2000/svg}"


def diagram():
    a, b = Box([("a", BOLD), ("<1 & 2>", PLAIN)], []), Box([("b", BOLD)], [])
    c = Box([("c", PLAIN)], [a, b], "join")
    return [a, b, c, Box([("d", PLAIN), ("e", ORANGE)], [c, a], "<")]


def test_columns_follow_the_arrows_and_text_is_escaped():
    boxes = diagram()
    root = ET.fromstring(draw(boxes))
    a, b, c, d = boxes
    assert a.x + a.width < c.x - c.room and b.x + b.width < c.x - c.room and c.x + c.width < d.x - d.room
    assert {text.text for text in root.iter(f"{SVG}text")} == {"a", "<1 & 2>", "b", "c", "join", "d", "e", "<"}
    assert [text.text for text in root.iter(f"{SVG}text") if text.get("font-weight") == "bold"] == ["a", "b"]
    assert [text.text for text in root.iter(f"{SVG}text") if text.get("fill")] == ["e"]
    assert len([*root.iter(f"{SVG}path")]) == 4 + 2      # a curve from each parent, a line from each operation
    assert np.allclose(sorted(a.bends[d]), (c.x - c.room, c.x + c.width))    # it passes by the column between


def test_a_picture_is_the_same_every_time():
    assert draw(diagram()) == draw(diagram())
