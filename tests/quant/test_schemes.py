"""What every scheme promises, on every family of models: one check a promise, one row of `tests/schemes.py` a scheme."""
import copy
import dataclasses
import functools
import math

import numpy as np
import pytest

import tinypeft as tp
from tests.families import FAMILIES, make
from tests.oracles import assert_close
from tests.protocol import frozen_bytes, learned, move
from tests.schemes import ROWS, SETTINGS
from tests.toys import Distil, linear_paths
from tinypeft.engine.nn import Linear
from tinypeft.quant.codebooks import codebook
from tinypeft.quant.qtensor import blocks_of

TOKENS = np.random.default_rng(0).integers(0, 37, (8, 24))
FEW = TOKENS[:3, :7]
LORA = tp.LoRA(2, targets="all")


def named(cells):
    """Give each cell the name of its scheme, its setting, its family and its precision."""
    return [pytest.param(*cell, id="-".join(getattr(x, "__name__", str(x)) for x in cell)) for cell in cells]


def settings(holds=lambda row, s: True):
    """Parametrize by the settings of all schemes, or of those for which something holds. Their models are GPTs."""
    return pytest.mark.parametrize("name, scheme", named(cell for cell in SETTINGS if holds(ROWS[cell[0]], cell[1])))


SMALL = [(name, row.small, family) for name, row in ROWS.items() for family in ("GPT", *FAMILIES)]
OTHERS = [(name, scheme, "GPT") for name, scheme in SETTINGS if scheme != ROWS[name].small]
cells = pytest.mark.parametrize("name, scheme, family", named([*SMALL, *OTHERS]))
trained = settings(lambda row, s: s.trains)


def plain(name, family="GPT", dtype=np.float32):
    """Make the model that is quantized."""
    return make(family, dtype, **(ROWS[name].sizes or {}).get(family, {}))


@functools.cache
def made(name, scheme, family, dtype): return tp.quantize(plain(name, family, dtype), scheme, TOKENS)


def quantized(name, scheme, family="GPT", dtype=np.float32):
    """Make a quantized model, or one whose layers are to be trained."""
    return copy.deepcopy(made(name, scheme, family, dtype))


def finished(name, scheme, family="GPT", dtype=np.float32):
    """Make a quantized model, whose layers hold codes."""
    model = quantized(name, scheme, family, dtype)
    return tp.convert(model) if scheme.trains else model


def layers(model): return {path: model.get(path) for path in linear_paths(model)}


def off(got, exact): return np.linalg.norm(got - exact) / np.linalg.norm(exact)


def test_the_table_has_every_scheme():
    """`tp.SCHEMES` and the table have the same names, so no scheme is left out of the checks."""
    assert list(ROWS) == list(tp.SCHEMES)
    assert all(type(scheme) is tp.SCHEMES[name] for name, scheme in SETTINGS)


@settings()
def test_a_scheme_is_a_value(name, scheme):
    """A scheme is frozen, and its fields or its text make an equal one, because files and labels hold these."""
    cls = type(scheme)
    for again in cls(**dataclasses.asdict(scheme)), copy.deepcopy(scheme), eval(repr(scheme), vars(tp) | {"inf": math.inf}):
        assert again == scheme and hash(again) == hash(scheme)
    with pytest.raises(dataclasses.FrozenInstanceError): setattr(scheme, dataclasses.fields(scheme)[0].name, 1)


# -- what becomes of a model -----------------------------------------------------------------------
@cells
def test_the_linear_layers_become_codes_and_nothing_else_changes(name, scheme, family):
    """Each layer keeps its sizes and bias; other parameters stay, unless norms take up the scales of a scheme that folds."""
    row, model = ROWS[name], plain(name, family)
    before, sizes = frozen_bytes(model), {path: (layer.d_out, layer.d_in) for path, layer in layers(model).items()}
    n = model.n_parameters()
    assert tp.quantize(model, scheme, TOKENS) is model
    if scheme.trains: assert tp.convert(model) is model
    assert {path: (layer.d_out, layer.d_in) for path, layer in layers(model).items()} == sizes
    assert all(isinstance(layer, tp.QuantizedLinear) for layer in layers(model).values())
    changed = {key for key, p in model.named_parameters() if p.data.tobytes() != before[key]}
    assert bool(changed) == row.folds and all("norm" in key or key.endswith("bias") for key in changed)
    assert model.n_parameters() == n


@cells
def test_the_function_stays_close_and_is_another(name, scheme, family):
    """The logits and the weights are near those of the model, and not the same: a scheme that does nothing fails."""
    row, model, q = ROWS[name], plain(name, family), finished(name, scheme, family)
    error, most = off(q(FEW).data, model(FEW).data), row.error if scheme == row.small else 1
    assert 0 < error < most, error
    assert 0 < tp.weight_error(model, q) < (0.1 if scheme == row.small else 0.8)


@settings()
def test_bits_per_weight_are_the_formula(name, scheme):
    """A layer stores what the formula of its scheme says, and a model's bits are those of all its layers."""
    row, model = ROWS[name], finished(name, scheme)
    expected = {path: row.bits(scheme, layer) for path, layer in layers(model).items()}
    for path, layer in layers(model).items(): assert 8 * layer.nbytes / layer.weight.size == pytest.approx(expected[path]), path
    sizes = {path: layer.weight.size for path, layer in layers(model).items()}
    mean = sum(expected[path] * n for path, n in sizes.items()) / sum(sizes.values())
    assert tp.bits_per_weight(model) == pytest.approx(mean) and f"{expected[path]:.2f} bits/weight" in repr(model)


@settings(lambda row, s: row.oracle)
def test_codes_decode_to_what_the_formula_gives_numerical(name, scheme, rng):
    """The formula is written out in float64."""
    W = rng.standard_normal((16, 48)).astype(np.float16).astype(np.float32)              # bitsandbytes rounds to float16 first
    assert_close(scheme.quantize(W).dequantize(), ROWS[name].oracle(scheme, W), 1e-6)


@settings(lambda row, s: row.nearest(s))
def test_no_level_is_nearer_than_the_one_chosen(name, scheme, rng):
    """All levels of the weights that share a scale are tried, in float64; so the error is at most half of the widest gap."""
    W = rng.standard_normal((16, 64)).astype(np.float16).astype(np.float32)
    q = scheme.quantize(W)
    levels = np.arange(2**q.bits) if q.codebook is None else codebook(q.codebook)
    levels = levels[np.isfinite(levels)].astype(float)
    zero = q.zeros()[:, None] if q.zeros() is not None and np.ndim(q.zeros()) else q.zero
    levels = (levels - zero) * (1.0 if q.scale is None else np.asarray(q.scales(), np.float64)[:, None])
    levels = np.broadcast_to(levels, (q.n_blocks, levels.shape[-1]))
    for x, got, of_block in zip(blocks_of(W, q.block_size), blocks_of(q.dequantize(), q.block_size), levels, strict=True):
        ordered = np.sort(of_block)
        above = np.searchsorted(ordered, x).clip(1, len(ordered) - 1)
        best = np.minimum(np.abs(x - ordered[above - 1]), np.abs(x - ordered[above]))
        assert (np.abs(got - x) <= best + 1e-6 * np.abs(x).max()).all()


@pytest.mark.parametrize("name, scheme, family", named(cell for cell in SMALL if ROWS[cell[0]].alone))
def test_a_layer_is_rounded_as_its_weight_alone_bit_exact(name, scheme, family):
    """Where no scale moves and nothing is corrected, the codes of a layer are those of `quantize(W)`."""
    model, q = plain(name, family), finished(name, scheme, family)
    for path, layer in layers(q).items():
        alone = scheme.quantize(model.get(path).weight.data)
        assert alone.metadata() == layer.weight.metadata(), path
        assert all(np.array_equal(a, layer.weight.arrays()[key]) for key, a in alone.arrays().items()), path


@settings()
def test_zero_rows_stay_zero_and_constant_ones_keep_their_sign(name, scheme):
    """A row without a range has a step all the same."""
    model = plain(name)
    W = model.get("blocks.1.attention.output").weight.data
    W[3], W[5] = 0, 0.25
    tp.quantize(model, scheme, TOKENS)
    W_hat = model.get("blocks.1.attention.output").dense_weight()
    assert not W_hat[3].any() and np.isfinite(W_hat).all() and (W_hat[5] > 0).all()
    assert np.isfinite(model(FEW).data).all()


@settings()
def test_the_same_call_gives_the_same_bytes_and_writes_to_no_array(name, scheme):
    """Copies share arrays: a scheme that wrote into one would change another model."""
    model = plain(name)
    for p in model.parameters(): p.data.flags.writeable = False
    twin, before = copy.deepcopy(model), model(FEW).data
    for a, b in zip(twin.parameters(), model.parameters(), strict=True): a.data = b.data
    assert frozen_bytes(tp.quantize(twin, scheme, TOKENS)) == frozen_bytes(made(name, scheme, "GPT", np.float32))
    assert np.array_equal(model(FEW).data, before)


@settings()
def test_a_model_of_float64_is_quantized_like_its_float32_copy(name, scheme):
    """It computes in float64, with codes of the same numbers. Where inputs are rounded, too, one that lies between two levels
    may get the next one: 1 % of the largest logit was seen."""
    models = [quantized(name, scheme, dtype=dtype) for dtype in (np.float64, np.float32)]
    wide, narrow = (model(FEW) for model in models)
    assert (wide.dtype, narrow.dtype) == (np.float64, np.float32)
    assert_close(wide, narrow, 1e-3 if all(layer.is_affine for layer in layers(models[0]).values()) else 0.05)


# -- a layer ---------------------------------------------------------------------------------------
@cells
def test_what_a_layer_computes_is_its_decoded_weight(name, scheme, family, rng):
    """y = x Ŵᵀ + b, before a layer is converted and after; where inputs are rounded, too, y is near, and the layer says so."""
    row = ROWS[name]
    for model in quantized(name, scheme, family), finished(name, scheme, family):
        for path, layer in layers(model).items():
            x = tp.Tensor(0.2 * rng.standard_normal((2, 5, layer.d_in)).astype(np.float32))
            y = x.data @ layer.dense_weight().T + (0 if layer.bias is None else layer.bias.data)
            rounds = row.rounds(scheme, path.split(".")[-1])
            assert layer.is_affine == (not rounds), path
            assert off(layer(x).data, y) < (0.5 if rounds else 1e-5), path


STRAIGHT = [(*cell, np.float32) for cell in SETTINGS] + [(name, row.small, np.float64) for name, row in ROWS.items()]


@pytest.mark.parametrize("name, scheme, dtype", named(cell for cell in STRAIGHT if ROWS[cell[0]].straight(cell[1])))
def test_gradients_go_straight_through_numerical(name, scheme, dtype, rng):
    """dx = dy Ŵ and db = Σ dy in the model's precision, whatever is rounded."""
    for model in quantized(name, scheme, dtype=dtype), finished(name, scheme, dtype=dtype):
        for path, layer in layers(model).items():
            x = tp.Tensor(rng.uniform(-1, 1, (2, 5, layer.d_in)).astype(dtype), requires_grad=True)
            dy = rng.standard_normal((2, 5, layer.d_out)).astype(dtype)
            layer.bias.grad, layer.bias.requires_grad = None, True
            layer(x).backward(dy)
            assert x.grad.dtype == dtype
            assert_close(x.grad, dy @ layer.dense_weight(), 1e-5, path)
            assert_close(layer.bias.grad, dy.sum((0, 1)), 1e-5, path)


@settings(lambda row, s: not row.depends(s))
def test_a_row_of_a_batch_is_computed_alone(name, scheme):
    """Neither other rows nor later tokens change it, so generation with a cache gives the tokens of generation without."""
    model = finished(name, scheme, dtype=np.float64)
    batch = model(TOKENS[:5, :8]).data
    for alone, part in ((model(TOKENS[:1, :8]).data, batch[:1]), (model(TOKENS[:5, :4]).data, batch[:, :4])):
        assert np.abs(alone - part).max() < 1e-9 * np.abs(batch).max()
    assert np.array_equal(model.generate(FEW, 6), model.generate(FEW, 6, use_cache=False))


@settings(lambda row, s: row.depends(s))
def test_a_scale_for_the_batch_lets_rows_change_each_other(name, scheme):
    """As README says of them: other rows and later tokens change what a row computes."""
    model = finished(name, scheme, dtype=np.float64)
    batch = model(TOKENS[:5, :8]).data
    for alone, part in ((model(TOKENS[:1, :8]).data, batch[:1]), (model(TOKENS[:5, :4]).data, batch[:, :4])):
        assert np.abs(alone - part).max() > 1e-4 * np.abs(batch).max()


# -- a method on it --------------------------------------------------------------------------------
@cells
def test_a_lora_trains_on_it_and_comes_off(name, scheme, family):
    """A fresh one changes no bit; all that it trains gets a gradient, nothing of the base does, and off it is as before."""
    model = quantized(name, scheme, family)
    before, logits = frozen_bytes(model), model(FEW).data
    tuned = tp.attach(model, LORA, rng=0)
    assert np.array_equal(tuned(FEW).data, logits)
    move(tuned, np.random.default_rng(0))
    tp.functional.cross_entropy(tuned(FEW[:, :-1]), FEW[:, 1:]).backward()
    own = {id(p) for p in tuned.trainable_parameters()}
    assert len(own) == 2 * len(linear_paths(plain(name, family)))
    assert all((p.grad is not None and np.isfinite(p.grad).all()) == (id(p) in own) for p in tuned.parameters())
    assert not np.array_equal(tuned(FEW).data, logits)
    assert tuned.detach() is model and frozen_bytes(model) == before and np.array_equal(model(FEW).data, logits)


@cells
def test_it_is_merged_into_the_decoded_weights_or_refused_by_name(name, scheme, family):
    """No weights replace a layer that rounds its inputs, so merging refuses until it is told to drop the rounding."""
    row = ROWS[name]
    for model in [quantized(name, scheme, family), finished(name, scheme, family)][not scheme.trains:]:
        tuned = learned(model, LORA)
        rounding = [path for path in tuned.wrappers if row.rounds(scheme, path.split(".")[-1])]
        logits = tuned(FEW).data
        if rounding:
            says = rf"^merge: {rounding[0]} is a \w+, .* rounds its (in|out)puts.* merge with activations 'exact'"
            with pytest.raises(tp.MethodError, match=says): tuned.merge()
        merged = tuned.merge(activations="exact")
        for path, wrapper in tuned.wrappers.items():
            assert type(merged.get(path)) is Linear
            assert_close(merged.get(path).weight.data, wrapper.base.dense_weight() + wrapper.delta(), 1e-6, path)
        assert_close(merged(FEW), logits, 0.6 if rounding else 1e-4)
        if not scheme.trains: assert isinstance(tuned.detach().get(path), tp.QuantizedLinear)      # the base keeps its codes


@cells
def test_decoded_it_is_a_plain_model(name, scheme, family):
    """`dequantize` gives the numbers of the codes to plain layers, of a copy; rounding of inputs goes only when asked."""
    model = finished(name, scheme, family)
    before = model(FEW).data
    rounding = [path for path in linear_paths(model) if ROWS[name].rounds(scheme, path.split(".")[-1])]
    if rounding:
        with pytest.raises(ValueError, match=rf"{rounding[0]} is a \w+, which rounds its"): tp.dequantize(model)
    decoded = tp.dequantize(model, "exact" if rounding else "kept")
    for path, layer in layers(model).items():
        assert type(decoded.get(path)) is Linear and np.array_equal(decoded.get(path).weight.data, layer.dense_weight())
    assert_close(decoded(FEW), before, 0.6 if rounding else 2e-5)
    assert np.array_equal(model(FEW).data, before) and tp.dequantize(decoded) is decoded


# -- files -----------------------------------------------------------------------------------------
WIDER = [(*cell, np.float64) for cell in SMALL if cell[2] == "GPT"]


@pytest.mark.parametrize("name, scheme, family, dtype", named([*((*cell, np.float32) for cell in [*SMALL, *OTHERS]), *WIDER]))
def test_a_file_brings_it_back_bit_exact(name, scheme, family, dtype, tmp_path):
    """With a class head, and layers that are plain since a merge: the same function and text; saved again, the same bytes."""
    model = finished(name, scheme, family, dtype)
    tuned = learned(model, tp.LoRA(2, targets=("value", "down")))
    model = tuned.merge(activations="exact")
    model.head = Linear(model.config.d_model, 3, rng=0).to(dtype)
    tp.save_quantized(model, tmp_path / "a")
    loaded = tp.load_quantized(tmp_path / "a")
    assert type(loaded) is type(model) and loaded.config == model.config and repr(loaded) == repr(model)
    a, b = model.state_dict(), loaded.state_dict()
    assert list(a) == list(b) and all(a[key].tobytes() == b[key].tobytes() and a[key].dtype == b[key].dtype for key in a)
    assert np.array_equal(loaded(FEW).data, model(FEW).data)
    assert np.array_equal(loaded.class_logits(FEW, [7, 3, 5]).data, model.class_logits(FEW, [7, 3, 5]).data)
    tp.save_quantized(loaded, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# -- calibration -----------------------------------------------------------------------------------
@settings(lambda row, s: row.tokens(s) == "needed")
def test_needed_tokens_are_asked_for_and_decide(name, scheme):
    """Without tokens a scheme refuses and the model stays; with others it makes another model."""
    model = plain(name)
    modules = dict(model.named_modules())
    with pytest.raises(ValueError, match="looks at activations; give it calibration="): tp.quantize(model, scheme)
    with pytest.raises(ValueError, match="not one token"): tp.quantize(model, scheme, [])
    assert dict(model.named_modules()) == modules
    other = tp.quantize(model, scheme, np.random.default_rng(3).integers(0, 37, (4, 24)))
    assert frozen_bytes(other) != frozen_bytes(made(name, scheme, "GPT", np.float32))


@settings(lambda row, s: row.tokens(s) != "needed")
def test_other_schemes_need_no_tokens(name, scheme):
    """They quantize without, and give the same codes where tokens are given, unless they use them."""
    model = tp.quantize(plain(name), scheme)
    same = frozen_bytes(model) == frozen_bytes(made(name, scheme, "GPT", np.float32))
    assert same or ROWS[name].tokens(scheme) == "used"


@settings(lambda row, s: row.tokens(s))
def test_calibration_shows_one_line_of_progress(name, scheme, capsys):
    """On a terminal, or where it is asked for; in a pipe it is silent."""
    batches = np.split(TOKENS[:6], 3)
    tp.quantize(plain(name), scheme, batches, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("\rquantizing 1/") and err.endswith("\n") and err.count("\n") == 1
    assert f"quantizing {ROWS[name].line}" in err
    tp.quantize(plain(name), scheme, batches)
    assert capsys.readouterr() == ("", "")


@settings(lambda row, s: row.tokens(s))
def test_a_layer_that_only_zeros_reach_has_a_step_or_is_named(name, scheme):
    """Inputs may be zero in calibration and others later. What is judged by its inputs alone is refused there."""
    model = plain(name)
    for p in model.blocks[1].norm2.parameters(): p.data[...] = 0
    before = frozen_bytes(model)
    if not ROWS[name].silent:
        with pytest.raises(ValueError, match=r"blocks.1.*(H is zero|inputs are 0)"): tp.quantize(model, scheme, TOKENS)
        assert frozen_bytes(model) == before
        return
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        tp.quantize(model, scheme, TOKENS)
        for p in model.blocks[1].norm2.parameters(): p.data[...] = 1
        assert np.isfinite(model(FEW).data).all()


# -- training --------------------------------------------------------------------------------------
@trained
def test_converted_it_is_the_same_function_bit_exact(name, scheme, tmp_path):
    """Everything that trains is moved before; a model whose layers are not converted is no file."""
    model = quantized(name, scheme)
    rng = np.random.default_rng(2)
    for key, p in model.named_parameters():
        change = (0.2 * rng.standard_normal(p.shape)).astype(p.dtype)                     # inputs leave calibrated ranges
        p.assign(p.data * np.exp(change) if key.endswith(("step", "offset", "scale")) else p.data + change)
    before = model(FEW).data
    with pytest.raises(ValueError, match="convert"): tp.save_quantized(model, tmp_path / "q")
    dense = {path: layer.dense_weight() for path, layer in layers(model).items()}
    exact = plain(name)
    errors, of_weights = tp.layer_errors(exact, model, FEW), tp.weight_error(exact, model)
    tp.convert(model)
    assert np.array_equal(model(FEW).data, before) and not list(tmp_path.iterdir())
    assert all(np.array_equal(model.get(path).dense_weight(), W) for path, W in dense.items() if "base" not in path)
    assert list(errors) == linear_paths(model) and errors == tp.layer_errors(exact, model, FEW)
    assert of_weights == tp.weight_error(exact, model)
    with pytest.raises(ValueError, match="nothing|no layer"): tp.convert(exact)


@settings(lambda row, s: s.trains and s.bits <= 3)
def test_training_lowers_the_loss_and_moves_what_it_should(name, scheme):
    """Direction: the distance from the float model after 25 steps, on a gated model; converted, it computes the same."""
    model = plain(name, "Llama")
    task = Distil(copy.deepcopy(model))
    tp.quantize(model, scheme, TOKENS)
    before, start = tp.evaluate(model, task)["loss"], {key: p.data.copy() for key, p in model.named_parameters()}
    tp.train(model, task, steps=25, batch_size=8, lr=3e-3, progress=False)
    assert tp.evaluate(model, task)["loss"] < 0.9 * before                                  # measured: 0.64 … 0.84
    moved = {key for key, p in model.named_parameters() if not np.array_equal(p.data, start[key])}
    assert moved == {key for key in start if key.endswith(ROWS[name].trained)}
    exact = model.eval()(FEW).data
    assert_close(tp.convert(model)(FEW), exact, 1e-5)


# -- what is refused -------------------------------------------------------------------------------
@settings()
def test_weights_that_are_not_finite_are_refused_by_place(name, scheme):
    """And a model that has them stays as it was, the first block and all norms included."""
    model = plain(name)
    W = model.get("blocks.1.mlp.up").weight.data
    for W[2, 3] in np.nan, np.inf:
        modules, before = dict(model.named_modules()), frozen_bytes(model)
        with pytest.raises(ValueError, match=r"not finite.*\(2, 3\)"): scheme.quantize(W)
        with pytest.raises(ValueError, match="not finite"), np.errstate(all="ignore"): tp.quantize(model, scheme, TOKENS)
        assert dict(model.named_modules()) == modules and frozen_bytes(model) == before and not model.training


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.uneven])
def test_groups_that_do_not_divide_are_refused_in_words(name):
    """Before anything is changed."""
    model = make("GPT", np.float32)
    modules, before = dict(model.named_modules()), frozen_bytes(model)
    with pytest.raises(ValueError, match=r"group(_size|s)=\d+ does not divide"): tp.quantize(model, ROWS[name].uneven, TOKENS)
    assert dict(model.named_modules()) == modules and frozen_bytes(model) == before


@pytest.mark.parametrize("name", ROWS)
def test_what_is_quantized_is_not_quantized_again(name):
    """Nor are layers that are still trained, nor converted ones."""
    small = ROWS[name].small
    for model in quantized(name, small), finished(name, small):
        with pytest.raises(ValueError, match=r"blocks.0.attention.query is a \w+ already"): tp.quantize(model, small, TOKENS)


@settings()
def test_inputs_of_another_size_are_refused(name, scheme):
    """By a layer's own words, whichever class it is of."""
    layer = finished(name, scheme).get("blocks.0.mlp.up")
    with pytest.raises(ValueError, match=r"\(2, 3\) does not fit"): layer(tp.Tensor(np.zeros((2, 3), np.float32)))
