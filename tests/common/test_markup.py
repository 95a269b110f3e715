"""What a notebook shows of models, tensors and histories, and the one line of a long job."""
import re

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.common.show.markup import facts, table
from tinypeft.course.percent import execute
from tinypeft.training.history import History


def words(html):
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", html))


def test_every_cell_is_escaped():
    bad = "<script>&'\"</script>"
    for html in (table([[bad]], [bad], bad, foot=bad), facts([(bad, bad)], bad), facts([("x", f"[{bad}]")])):
        assert "<script>" not in html and "&lt;script&gt;&amp;" in html


def test_the_caption_of_a_narrow_table_stays_on_one_line():
    """JupyterLab's style wraps every `code`, so the caption's own style does not decide."""
    for html in (table([[1]], caption="Guess 11.absmax"), facts([("a", 1)], "Guess 11.absmax")):
        assert "<code style='white-space:nowrap'>Guess 11.absmax</code></caption>" in html


def test_a_model_is_a_table_of_what_it_stores(gpt):
    model = gpt(np.float32)
    shown = words(model._repr_html_())
    assert "blocks.0–1.mlp.up.weight 64 × 16 float32 ✔ 8,192" in shown
    n = model.n_parameters()
    assert f"{n:,} parameters, {n:,} of them trained; {4 * n:,} bytes" in shown


def test_a_tuned_quantized_model_says_what_is_trained_and_in_how_many_bits(gpt):
    tuned = tp.attach(tp.quantize(gpt(np.float32), tp.NF4()), tp.LoRA(rank=2))
    shown = words(tuned._repr_html_())
    assert "PeftModel(LoRA(rank=2))" in shown and "256 of them trained" in shown
    assert "model.blocks.0–1.attention.query.A 2 × 16 float32 ✔ 256" in shown
    q = tuned.model.blocks[0].mlp.up.weight
    assert f"model.blocks.0–1.mlp.up.weight 64 × 16 4 bits {2 * q.nbytes:,}" in shown
    total = sum(p.data.nbytes for p in tuned.parameters()) + sum(a.nbytes for _, a in tuned._named(tp.engine.nn.Packed))
    assert f"{total:,} bytes" in shown


def test_a_block_that_differs_has_a_row_of_its_own(gpt):
    model = gpt(np.float32, n_layers=4)
    model.blocks[2].mlp.up.weight.requires_grad = False
    shown = words(model._repr_html_())
    assert "blocks.0–1,3.mlp.up.weight" in shown and "blocks.2.mlp.up.weight 64 × 16 float32 4,096" in shown


def test_a_tensor_shows_shape_values_and_gradient():
    x = tp.Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    assert "shape (2, 3) dtype float64 data [[0. 1. 2.] [3. 4. 5.]] grad None: no backward yet" in words(x._repr_html_())
    (3 * x).sum().backward()
    assert "grad [[3. 3. 3.] [3. 3. 3.]]" in words(x._repr_html_())
    assert "grad" not in tp.Tensor(1.0)._repr_html_() and "leaves" in (x * 2)._repr_html_()
    assert len(tp.Tensor(np.zeros((1000, 1000)))._repr_html_()) < 1000


def test_a_history_shows_its_curve_and_evaluations():
    shown = words(History([3.0, 2.0, 1.0], [[3, {"loss": 1.5}]], 1.25)._repr_html_())
    assert "History(3 steps, loss 3.000 → 1.000, 1.2 s)" in shown and "█▅▁" in shown
    assert "after step validation loss 3 1.5000" in shown
    assert "History()" in History()._repr_html_() and "█" not in History([2.0, 2.0])._repr_html_()


def test_a_long_job_leaves_one_clean_line_in_a_notebook():
    nbformat = pytest.importorskip("nbformat")
    cell = ("import time\nfrom tinypeft.common.progress import Progress\nwith Progress(3, 'steps') as bar:\n"
            "    for i in range(3): time.sleep(0.12); bar(i + 1, f'loss {i}')\n1 + 1")
    done = execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]))
    line, value = done.cells[0].outputs
    assert line.output_type == "display_data" and re.fullmatch(r"steps 3/3  loss 2  0\.\d s", line.data["text/plain"])
    assert value.data["text/plain"] == "2"
