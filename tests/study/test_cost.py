"""What quantizing costs: bits, bytes and errors by their formulas, and on how much it was measured; copies share arrays."""
import numpy as np
import pytest

import tinypeft as tp
from tinypeft.study import compare, cost
from tinypeft.study.compared import COMPARED_SCHEMES


def little(context):
    model = tp.GPT(tp.GPTConfig(1024, context, 32, 2, 1), rng=0)
    model.tokenizer = tp.load_pretrained().tokenizer
    return model, tp.tasks.text({"numbers": " ".join(map(str, range(4000)))}, model, context=32)


def cost_of(scheme, context=32, rows=16):
    """(model, its quantized copy, what that costs)"""
    model, task = little(context)
    calibration = task.batch("train", 4, np.random.default_rng(0))[0]
    return model, *cost.quantized_at_cost(model, scheme, task, calibration, rows)


def test_llm_qat_learns_from_what_fits_into_the_context(monkeypatch):
    written, real = [], cost.train
    monkeypatch.setattr(cost, "train", lambda model, task, *steps, **options: written.append(task.data("train").shape) or
                        real(model, task, 1, **options))
    for context in (96, 32): cost_of(tp.LLMQAT(), context)
    assert written == [(32, 64), (32, 32)]


def test_it_says_on_how_much_it_was_measured():
    assert [cost_of(tp.NF4(16), rows=rows)[2]["on"] for rows in (16, 512)] == ["16 windows of the test split", "the test split"]


def test_a_scheme_is_measured_by_its_formulas():
    scheme, (_, domain) = tp.NF4(16, double_quant=True), little(32)
    model, quantized, found = cost_of(scheme)
    assert found["quantized"]["perplexity"] == pytest.approx(found["exact"]["perplexity"], rel=0.05)
    tokens = next(iter(domain.batches("test", 4)))[0]
    exact, rounded = model(tokens).data, tp.quantize(cost.sharing(model), scheme)(tokens).data
    assert found["output_error"] == pytest.approx(np.sqrt(((rounded - exact) ** 2).sum() / (exact ** 2).sum()), rel=1e-5)
    weights = [m.weight.data for path, m in model.named_modules() if path.startswith("blocks.") and hasattr(m, "d_out")]
    errors, squares = (sum(float((f(W) ** 2).sum()) for W in weights)
                       for f in (lambda W: scheme.quantize(W).dequantize() - W, lambda W: W))
    assert found["weight_error"] == pytest.approx(np.sqrt(errors / squares), rel=1e-5)
    assert found["weights"] == sum(W.size for W in weights)
    assert found["bits_per_weight"] == pytest.approx(8 * found["bytes"] / found["weights"])


@pytest.mark.parametrize("scheme", [tp.NF4(16), tp.LLMInt8(), tp.GGUF("Q8_0", embeddings=True)])
def test_the_size_in_all_is_that_of_the_arrays_of_the_file(tmp_path, scheme):
    """Embeddings that are in codes, too, count as codes."""
    model, quantized, found = cost_of(scheme)
    quantized.tokenizer = None                           # which is no weight, and larger than this model
    tp.save_quantized(quantized, tmp_path / "q")
    assert 0 < (tmp_path / "q").stat().st_size - found["bytes_in_all"] < 12000
    assert found["bits_in_all"] == 8 * found["bytes_in_all"] / model.n_parameters()
    text = cost.described(found)
    assert f"{found['bytes_in_all'] / 1024:,.0f} KiB, {found['bits_in_all']:.3f} bits over all weights" in text
    assert f"the rest      {(found['bytes_in_all'] - found['bytes']) / 1024:,.0f} KiB" in text


def test_the_main_jobs_sizes_are_the_same_numbers():
    model, _, found = cost_of(tp.NF4(16))
    exact, nf4 = compare.scheme_rows({"NF4": [{"bits": found["bits_per_weight"], "loss": 2.0, "excess": 0.1}]}, model)
    assert (nf4["bytes"], nf4["bits_in_all"]) == (found["bytes_in_all"], pytest.approx(found["bits_in_all"]))
    assert exact["bytes"] == 4 * model.n_parameters() and exact["bits_in_all"] == 32


@pytest.mark.parametrize("label", [k for k, scheme in COMPARED_SCHEMES.items() if not scheme.trains])
def test_a_scheme_writes_into_no_array_that_copies_share(label):
    model = tp.GPT(tp.GPTConfig(64, 16, 32, 2, 2))
    for p in model.parameters(): p.data.flags.writeable = False
    copied = cost.sharing(model)
    assert all(a is b for a, b in zip(copied.state_dict().values(), model.state_dict().values(), strict=True))
    tokens = np.random.default_rng(0).integers(0, 64, (16, 16))
    before = model(tokens).data
    tp.quantize(copied, COMPARED_SCHEMES[label], calibration=tokens)
    assert np.array_equal(model(tokens).data, before)
