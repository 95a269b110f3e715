"""K_QUANTS.md: its function, its bytes and its numbers are those of llama.cpp's own package."""
import re
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.interop.gguf_bytes import file_bytes
from tinypeft.study import k_quants

PAGE = (Path(tp.__file__).parent / "quant" / "K_QUANTS.md").read_text("utf-8")
FUNCTION, = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "def decode" in block]
BLOCK = bytes.fromhex(re.search(r"```text\n(.*?)```", PAGE, re.S).group(1))


def decode(octets):
    """What the page's own function makes of the bytes of one superblock."""
    names = {}
    exec(FUNCTION, names)
    return np.float32(names["decode"](octets))


def table(heading):
    """The rows of the table that begins with this cell, as lists of numbers and texts."""
    rows = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip("` ") for cell in row.strip("|").split("|")] for row in rows if row.startswith("|")]


def test_the_page_decodes_a_superblock_in_at_most_25_lines():
    assert len(BLOCK) == 144 and len(decode(BLOCK)) == 256
    body = FUNCTION[FUNCTION.index("def decode"):].strip().splitlines()
    assert len(body) <= 25 and "import tinypeft" not in FUNCTION and "numpy" not in FUNCTION


def test_the_pages_numbers_are_those_of_gguf_bit_exact(rng):
    """The worked example; and the page's function on blocks of other numbers, and on bytes that nobody wrote."""
    gguf = pytest.importorskip("gguf")
    theirs = lambda octets: gguf.quants.dequantize(np.frombuffer(octets, np.uint8)[None], gguf.GGMLQuantizationType.Q4_K)[0]
    numbers = theirs(BLOCK)
    assert np.array_equal(decode(BLOCK), numbers)
    shown = table("weight")
    assert len(shown) == 6
    for weight, j, byte, q, decoded, before in shown:
        assert numbers[int(weight)] == np.float32(decoded) and int(weight) // 32 == int(j)
        assert f"{BLOCK[16 + int(weight) % 32]:02x}" == byte and int(q) == int(byte, 16) >> 4 * int(j) & 15
        assert abs(float(before) - float(decoded)) < 0.02
    levels = numbers.reshape(8, 32)
    for j, _, _, step, minimum, _ in table("j"):
        s, m, own = float(step), float(minimum), levels[int(j)]
        assert np.abs(own - s * np.rint((own + m) / s) + m).max() < 2e-5
    written = file_bytes(tp.GGUF("Q4_K").quantize(rng.standard_normal((20, 256))))
    at_random = rng.integers(0, 256, (20, 144), dtype=np.uint8)
    at_random[:, [1, 3]] &= 0x3F                                                    # no scale is infinite or NaN
    for octets in [*written, *at_random]:
        assert np.array_equal(decode(octets.tobytes()), theirs(octets.tobytes()))


def test_the_example_is_what_the_package_writes():
    assert file_bytes(tp.GGUF("Q4_K").quantize(k_quants.superblock())).tobytes() == BLOCK


def test_the_search_that_is_drawn_is_the_one_that_is_computed():
    """Its least error is that of `fit_line`, up to float32; and the picture says what moving the origin is worth."""
    from tinypeft.quant.k_quants import LINE_TRIALS, fit_line, steps
    for x in k_quants.superblock().reshape(8, 32):
        errors, kept = k_quants.search(x, moving=True)
        w = np.float32(np.sqrt(np.mean(x * x)) + np.abs(x))
        both = []
        for trials in (), steps(*LINE_TRIALS[4], 15):
            s, m, q = fit_line(x[:, None], w[:, None], 15, trials)
            both.append((w * np.square(s * q[:, 0] - m - x)).sum())
        assert abs(both[1] / both[0] - errors.min()) < 1e-4 and errors[kept][-1] == errors.min()
    shown = k_quants.superblock().reshape(8, 32)[k_quants.SEARCHED]
    assert k_quants.search(shown, moving=True)[0].min() < 0.9 * k_quants.search(shown, moving=False)[0].min()
