"""Small PNGs: what another reader sees in them is what was put in."""
import io

import numpy as np
import pytest
from matplotlib.image import imread

from tinypeft.course.png import palette_png


def read(data):
    return np.round(255 * imread(io.BytesIO(data))[..., :3]).astype(int)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 33)])
def test_few_colours_come_back_exactly(shape, rng):
    palette = rng.integers(0, 256, (200, 3), dtype=np.uint8)
    pixels = palette[rng.integers(0, 200, shape)]
    assert np.array_equal(read(palette_png(pixels)), pixels)


def test_of_many_colours_the_most_frequent_stays_and_the_others_become_the_nearest_kept():
    ramp = np.stack([*np.meshgrid(np.arange(0, 250, 3), np.arange(0, 250, 3)), np.full((84, 84), 9)], -1).astype(np.uint8)
    pixels = np.concatenate([ramp, np.full((200, 84, 3), 255, np.uint8)])
    seen = read(palette_png(pixels))
    kept = np.unique(seen.reshape(-1, 3), axis=0)
    assert np.array_equal(seen[84:], pixels[84:]) and len(kept) == 256
    nearest = ((ramp.reshape(-1, 1, 3).astype(int) - kept) ** 2).sum(-1).min(1)
    assert np.array_equal(((seen[:84].reshape(-1, 3) - ramp.reshape(-1, 3)) ** 2).sum(-1), nearest)


def test_a_chart_takes_little_more_than_half_of_its_bytes_and_looks_the_same():
    from tinypeft.course.show import _png
    from tinypeft.study import plot
    fig, ax = plot.figure()
    ax.plot(np.sin(np.arange(50)), **plot.mark("lora"))
    ax.set(xlabel="x", ylabel="some text")
    file = io.BytesIO()
    with plot.style(): fig.savefig(file, format="png", dpi=100, bbox_inches="tight")
    small = _png(fig)
    assert len(small) < 0.6 * len(file.getvalue())
    file.seek(0)
    before, after = read(file.getvalue()), read(small)
    assert before.shape == after.shape and abs(before - after).max() < 24 and abs(before - after).mean() < 0.1
