"""Fields that state their limits: every field of every method, scheme and config refuses what makes no sense."""
import copy
import dataclasses
import inspect
import pickle
import pydoc
import re

import numpy as np
import pytest

import tinypeft as tp
from tests.bad_values import bad_values
from tinypeft.common.hyper import Checked, declared, flag, layer_names, mapping, one_of, real, whole
from tinypeft.common.wording import brief
from tinypeft.text import tasks

NAMED = {**tp.METHODS, **tp.SCHEMES}
CLASSES = [*NAMED.values(), tp.GPTConfig]
FIELDS = [pytest.param(cls, f, id=f"{cls.__name__}.{f.name}") for cls in CLASSES for f in dataclasses.fields(cls)]
JUNK = [object(), 1j, b"8", "no such choice", [None], {"query": object()}, (object(),), np.zeros(2)]
every_field = pytest.mark.parametrize("cls, field", FIELDS)
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


# -- every field of every class ------------------------------------------------------------------
@every_field
def test_a_bad_value_is_refused_and_the_message_names_class_field_and_value(cls, field):
    limit = field.metadata["limit"]
    bad = [*bad_values(limit), *(x for x in JUNK if not (isinstance(x, str) and limit.holds(x)))]
    for value in bad:
        with pytest.raises(cls.error) as caught:
            cls(**{field.name: value})
        message = str(caught.value)
        assert message.startswith(f"{cls.__name__}: {field.name} must be ") and message.endswith(f", got {brief(value)}")


@every_field
def test_none_is_allowed_where_the_message_says_so(cls, field):
    limit = field.metadata["limit"]
    assert limit.holds(None) == limit.expected.endswith(("None", "None'"))


@pytest.mark.parametrize("cls", [*tp.METHODS.values(), tp.GPTConfig], ids=lambda cls: cls.__name__)
def test_numpy_scalars_are_allowed_where_numbers_are(cls):
    for f in dataclasses.fields(cls):
        if type(f.default) in (int, float):
            scalar = np.int64(f.default) if type(f.default) is int else np.float64(f.default)
            assert getattr(cls(**{f.name: scalar}), f.name) is scalar


# -- names ---------------------------------------------------------------------------------------
@every_class
def test_the_names_of_other_libraries_get_a_hint(cls):
    fields = {f.name: f.metadata["also"] for f in dataclasses.fields(cls)}
    others = [name for names in fields.values() for name in names]
    assert len(set(others)) == len(others) and not set(others) & fields.keys()
    for ours, names in fields.items():
        for name in names:
            with pytest.raises(TypeError, match=f"^{cls.__name__} has no field '{name}'; the field is called {ours}$"):
                cls(**{name: 1})


@pytest.mark.parametrize("make, message", [
    (lambda: tp.LoRA(r=8), "LoRA has no field 'r'; the field is called rank"),
    (lambda: tp.LoRA(lora_alpha=8), "the field is called alpha"),
    (lambda: tp.LoRA(target_modules=["query"]), "the field is called targets"),
    (lambda: tp.AdaLoRA(deltaT=1), "the field is called delta_t"),
    (lambda: tp.PrefixTuning(num_virtual_tokens=8), "the field is called length"),
    (lambda: tp.PTuningV2(prefix_projection=True), "the field is called reparameterize"),
    (lambda: tp.GPTConfig(n_embd=8), "the field is called d_model"),
    (lambda: tp.AWQ(n_grid=8), "the field is called n_ratios"),
    (lambda: tp.AWQ(auto_clip=True), "the field is called clip"),
    (lambda: tp.LoRA(rnak=8), "did you mean rank?"),
    (lambda: tp.LoRA(alfa=8), "did you mean alpha?"),
    (lambda: tp.PromptTuning(size=8), "its fields are length, init, text"),
    (lambda: tp.LinearProbe(rank=8), "its fields are none")])
def test_a_wrong_name_gets_a_hint(make, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


# -- the kinds of field --------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Kinds(Checked):
    count: int = whole(2, least=2, most=8)
    size: int | None = whole(None, least=0, or_none=True)
    share: float = real(0.5, above=0, most=1)
    rate: float = real(1.0, below=10)
    kind: str | None = one_of("a", "b", None, default="b")
    on: bool = flag(False)
    names: tuple = layer_names("all")
    ranks: dict | None = mapping(whole(1, least=1))
    pair: tuple = declared((1, 2), dataclasses.replace(whole(0).metadata["limit"], holds=lambda x: len(x) == 2))

    def check(self):
        if self.size == self.count: raise self.error("size and count must differ")


@pytest.mark.parametrize("field, good, bad, expected", [
    ("count", [2, 8, np.int8(3)], [1, 9, 2.0, True, "2", None], "an integer from 2 to 8"),
    ("size", [None, 0, 10 ** 30], [-1, 0.0, False], "a non-negative integer, or None"),
    ("share", [1, 1e-300, np.float32(0.5)], [0, 1.01, float("nan"), True, "1", None, np.complex64(1)], "a number in (0, 1]"),
    ("rate", [-1e30, 9.99, 0], [10, float("inf"), -float("inf")], "a number in (-inf, 10)"),
    ("kind", ["a", None], ["c", b"a", 0, ["a"]], "'a', 'b' or None"),
    ("on", [True, np.False_], [0, 1, None, "yes"], "True or False"),
    ("names", [("query",), ["query", "up"], "all"], ["query", (), [], (1,), None, {"query": 1}], "a tuple of names"),
    ("ranks", [None, {}, {"query": 1}], [{"query": 0}, {"query": True}, {1: 1}, [("query", 1)]], "each a positive integer")])
def test_a_kind_of_field_holds_what_it_says(field, good, bad, expected):
    for value in good: assert getattr(Kinds(**{field: value}), field) is value
    for value in bad:
        with pytest.raises(ValueError) as caught: Kinds(**{field: value})
        message = str(caught.value)
        assert message.startswith(f"Kinds: {field} must be ") and expected in message
        assert message.endswith(f", got {brief(value)}")


def test_check_runs_after_the_fields():
    with pytest.raises(ValueError, match="size and count must differ"): Kinds(size=2)
    with pytest.raises(ValueError, match="Kinds: count must be"): Kinds(count=1, size=1)


# -- values --------------------------------------------------------------------------------------
@every_class
def test_a_value_can_be_copied_replaced_saved_and_pickled(cls):
    value = cls()                                                      # all its defaults are allowed
    for same in (copy.copy(value), copy.deepcopy(value), dataclasses.replace(value), pickle.loads(pickle.dumps(value))):
        assert type(same) is cls and same == value and repr(same) == repr(value)
    saved = dataclasses.asdict(value)
    assert saved.keys() == {f.name for f in dataclasses.fields(cls)}
    if not any(isinstance(x, dict) for x in saved.values()): assert cls(**saved) == value      # no scheme within a scheme
    with pytest.raises(dataclasses.FrozenInstanceError): value.anything = 1
    with pytest.raises(TypeError, match="has no field 'anything'"): dataclasses.replace(value, anything=1)


class Plain(tp.LoRA):
    """Without a decorator."""
    learning_rate = 0.5


class OwnInit(tp.LoRA):
    def __init__(self, size, **options):
        super().__init__(rank=2 * size, **options)


class Bare(tp.peft.Method):
    """No dataclass at all: it has no fields."""


@dataclasses.dataclass(frozen=True)
class Extended(tp.LoRA):
    extra: object = None


def test_a_users_subclass_needs_no_decorator(gpt, tokens):
    assert repr(Plain(rank=4)) == "Plain(rank=4)" and Plain(4) == Plain(rank=4) != tp.LoRA(4)
    with pytest.raises(tp.MethodError, match="^Plain: rank must be a positive integer, got 0$"): Plain(0)
    with pytest.raises(TypeError, match="Plain has no field 'r'; the field is called rank"): Plain(r=4)
    assert Plain.__doc__ == "Without a decorator." and pickle.loads(pickle.dumps(Plain(3))) == Plain(3)
    assert repr(OwnInit(2, alpha=3)) == "OwnInit(rank=4, alpha=3)"
    assert repr(Bare()) == "Bare()"
    assert repr(Extended(extra="x")) == "Extended(rank=8, extra='x')"
    tuned = tp.attach(gpt(), Plain(rank=2))
    assert tuned.learning_rate == 0.5 and tuned(tokens).shape == (3, 7, 37)


# -- the equation where the reader looks ---------------------------------------------------------
@pytest.mark.parametrize("name", NAMED)
def test_the_docstring_of_a_class_has_paper_equation_symbols_and_differences(name):
    cls = NAMED[name]
    doc = cls.__doc__
    if name not in ("uniform", "gguf", "trainable_tokens"):            # textbook, file format, habit of tools: no paper
        assert re.search(r"arXiv\s+\d{4}\.\d{4,5}", doc), "no citation"
    assert re.search(r"^    .*[=←∝|].*$", doc, re.MULTILINE), "no equation"
    if name not in ("full", "probe", "uniform", "gguf"):                                # nothing to translate
        assert re.search(r"^    \S.* {3,}(here|shape)", doc, re.MULTILINE), "no table of symbols"
        assert re.search(r"differ|authors|repository|DeepSpeed", doc), "not where implementations differ"
    shown = pydoc.plain(pydoc.render_doc(cls))
    for line in filter(str.strip, doc.splitlines()): assert line.strip() in shown


# -- what they are ---------------------------------------------------------------------------------
DEFAULTS = """
    FullFineTuning(targets=None)
    BottleneckAdapter(bottleneck=64, placement='houlsby', activation='gelu', activation_up=False, init_std=0.01,
        norms=True)
    ParallelAdapter(bottleneck=64, scale=4.0, beside='ffn', activation='relu')
    PrefixTuning(length=10, reparameterize=True, hidden=None, dropout=0.0, init='vocabulary', text=None)
    PromptTuning(length=20, init='vocabulary', text=None)
    PTuning(template=(3, 'context', 3, 'target'), separator=None, encoder='lstm', hidden=None)
    PTuningV2(length=20, reparameterize=False, hidden=None, dropout=0.1, init='vocabulary', text=None)
    LoRA(rank=8, alpha=16.0, dropout=0.0, targets=('query', 'value'), init='kaiming', rank_stabilized=False,
        rank_pattern=None, alpha_pattern=None)
    AdaLoRA(init_rank=12, target_rank=8, t_init=0.1, t_final=0.4, delta_t=10, beta1=0.85, beta2=0.85, gamma=0.01,
        alpha=None, dropout=0.0, targets='all', orthogonality='squared', importance='before')
    DoRA(rank=8, alpha=16.0, dropout=0.0, targets=('query', 'value'), init='kaiming', rank_stabilized=False,
         rank_pattern=None, alpha_pattern=None)
    HiRA(rank=8, dropout=0.0, targets=('query', 'value'))
    VeRA(rank=256, d_initial=0.1, dropout=0.0, targets=('query', 'value'))
    RandLoRA(rank=32, alpha=640.0, dropout=0.0, targets=('query', 'value'))
    FourierFT(frequencies=1000, alpha=150.0, std=0.0, seed=777, targets=('query', 'value'))
    C3A(block_size=None, init='zeros', targets=('query', 'value'))
    LoReFT(rank=8, first=7, last=7, tied=True, dropout=0.0, targets='all')
    TrainableTokens(tokens=(0,))
    LoHa(rank=8, alpha=8.0, targets=('query', 'value'))
    LoKr(rank=8, alpha=8.0, targets=('query', 'value'))
    MiSS(rank=8, dropout=0.0, targets=('query', 'value'))
    OFT(block_size=32, neumann_terms=None, targets=('query', 'value'))
    SHiRA(rank=8, targets=('query', 'value'))
    DyLoRA(rank=8, alpha=16.0, rank_min=1, distribution='uniform', p=0.15, frozen=False, block_size=1, rescale=True,
        dropout=0.0, targets=('query', 'value'))
    IA3(targets=('key', 'value', 'down'), feedforward=('down',))
    LinearProbe()
    Uniform(bits=8, symmetric=True, granularity='channel', group_size=None, clipping='minmax', convention='absmax',
        scale_dtype='float32', percentile=99.9, grid_steps=100, shrink=0.8, norm=2.0)
    FloatFormat(name='E4M3', scaling=None, block_size=64, scale_format='float32', saturate=True)
    NF4(block_size=64, double_quant=False)
    GGUF(name='Q4_0', importance=False, embeddings=False)
    GPTQ(bits=4, group_size=None, symmetric=False, act_order=False, static_groups=False, group_scales='lazy',
        damping=0.01, block_size=128, clipping='minmax', scale_dtype='float16', true_sequential=False)
    AWQ(bits=4, group_size=128, symmetric=False, n_ratios=20, duo_scaling=False, clip=True, clip_steps=20,
        max_shrink=0.5, scale_dtype='float16', sequential=False)
    W8A8(weights='tensor', activations='tensor')
    LLMInt8(threshold=6.0, variant='paper')
    ZeroQuant(bits=8, mlp_bits=None, groups=64, group_size=None, steps=0, lr=0.0001)
    SmoothQuant(weights='tensor', activations='token', alpha=0.5)
    FakeQuant(bits=4, learn_step=False, symmetric=True, granularity='channel', group_size=None,
        activation_bits=None, activation_symmetric=True, mask='paper')
    LLMQAT(bits=4, activation_bits=8, kv_bits=4, cutoff=None)
    PEQA(bits=4, symmetric=False, group_size=None, targets='all')
    GPTConfig(vocab_size=1024, context_length=256, d_model=128, n_layers=6, n_heads=4, dropout=0.0, norm_eps=1e-05)
    TrainOptions(batch_size=8, seed=0, lr=None, head_lr=None, rates=None, schedule_kind='linear', warmup=None,
        lr_floor=0.0, accumulate=1, workers=None, checkpoint_activations=False, clip=1.0, optimizer=AdamW,
        betas=(0.9, 0.999), weight_decay=0.0, eval_every=None, eval_batches=None, patience=None, keep_best=False,
        callbacks=(), checkpoint=None, checkpoint_every=None, stop_after=None, progress=None)
"""
FUNCTIONS = """
    attach(rng=0, head_bias=True) capture(hessian=False) check(seed=0) classify(classes=('numpy.ma', 'numpy.polynomial',
    'scipy.interpolate', 'scipy.io', 'scipy.optimize', 'scipy.signal', 'scipy.sparse', 'scipy.special', 'scipy.stats',
    'matplotlib.axes', 'matplotlib.backends', 'matplotlib.patches'), per_class=160, held_out=40) combine(how='cat',
    sign='total', factors=False, rng=0) concatenate(axis=0) dequantize(activations='kept') evaluate(split='test',
    batch_size=16) find_rate(lowest=1e-05, highest=1.0, steps=60) fit_probe(rng=0, splits=('train',
    'validation'), n_folds=5, head_bias=True, batch_size=16, seed=0, cache=False)
    generate(max_new_tokens=64, temperature=0.0, rng=0, use_cache=True) gradcheck(rng=0,
    directions=4, step=0.001, tolerance=1e-08) guess(unit='') invented(things=32, rng=0) labelled(text='text',
    label='label', reads='newline', held_out=(0.15, 0.15), seed=0, encoding='utf-8', skip_empty=False)
    layer_errors(trained=False)
    load_adapter(strict=True) load_model(quantized=False, strict=True) load_pretrained(quantized=False)
    load_quantized(layers=()) loftq(iterations=5, rng=0) pairs(held_out=(0.15, 0.15), seed=0, encoding='utf-8',
    skip_empty=False)
    plant_outliers(channels=3, factor=32.0, rng=0) planted(effect=0.01, held_out=8192, rng=0) quantize(targets='all',
    skip_quantized=False) search_rank(split='validation', tolerance=0.0, batch_size=16) self_distillation(rows=256,
    held_out=32, temperature=1.0, rng=0) split(axis=0) stack(axis=0) stream(max_new_tokens=64) text(held_out=(0.1, 0.1),
    seed=0, encoding='utf-8') train(batch_size=8, seed=0) weight_error(trained=False) write_card(kind='tinypeft', data=(),
    notes=())"""
RATES = {"full": 1e-3, "adapter": 5e-3, "parallel_adapter": 3e-3, "prefix": 3e-3, "prompt": 3e-2, "ptuning": 3e-3,
         "ptuning_v2": 6e-2, "lora": 1e-2, "adalora": 2e-2, "dylora": 1e-2, "dora": 1e-2, "loha": 1e-2, "lokr": 1e-2,
         "hira": 1e-2, "ia3": 3e-2, "probe": 1e-2,
         "vera": 1e-1,
         "randlora": 3e-3,
         "fourierft": 3e-2,
         "c3a": 3e-1,
         "miss": 1e-2, "shira": 3e-2, "oft": 1e-2,
         "loreft": 3e-3, "trainable_tokens": 1e-2}


def test_the_defaults_are_these():
    """The papers' defaults, on which every stored result rests. A change of one is a decision, not a slip."""
    defaults = lambda cls: ", ".join(f"{f.name}={getattr(f.default, '__name__', repr(f.default))}"
                                     for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING)
    stated = " ".join(DEFAULTS.split())
    for cls in (*NAMED.values(), tp.GPTConfig, tp.TrainOptions): assert f"{cls.__name__}({defaults(cls)})" in stated
    assert {name: cls().learning_rate for name, cls in tp.METHODS.items()} == RATES


def test_a_call_without_options_does_this():
    """The same for the public functions."""
    calls = []
    for module in tp, tasks:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            defaults = [f"{p.name}={p.default!r}" for p in inspect.signature(function).parameters.values()
                        if isinstance(p.default, int | float | str | tuple)]
            if name in module.__all__ and defaults: calls.append(f"{name}({', '.join(defaults)})")
    assert " ".join(sorted(calls)) == " ".join(FUNCTIONS.split())


FROM_0 = {"dropout", "norm_eps", "damping", "gamma", "beta1", "beta2", "shrink", "max_shrink", "SmoothQuant.alpha", "separator",
          "ZeroQuant.steps", "t_init", "t_final", "seed", "TrainOptions.lr", "head_lr", "lr_floor", "warmup", "weight_decay",
          "eval_every", "stop_after", "first", "last",
          "FourierFT.std"}
NOT_1 = {"dropout", "beta1", "beta2", "shrink", "max_shrink", "p", "percentile", "d_head", "NF4.block_size",
         "FloatFormat.block_size", "mlp_bits", "activation_bits", "kv_bits", "ZeroQuant.bits", "FakeQuant.bits", "LLMQAT.bits",
         "OFT.block_size", "neumann_terms"}


@pytest.mark.parametrize("cls", [*NAMED.values(), tp.GPTConfig, tp.LlamaConfig, tp.GemmaConfig, tp.TrainOptions])
def test_a_number_is_positive_unless_0_means_none(cls):
    """Sizes, counts and scales begin above 0. What is a share ends below 1, and what needs two begins at 2."""
    for f in dataclasses.fields(cls):
        limit, names = f.metadata.get("limit"), {f.name, f"{cls.__name__}.{f.name}"}
        if limit is None or not re.match(r"an? (\S+ ){,2}(integer|number|id)\b", limit.expected): continue
        assert limit.holds(0) == bool(names & FROM_0) and limit.holds(1) != bool(names & NOT_1), f.name


@pytest.mark.parametrize("cls, name", [(cls, f.name) for cls in NAMED.values() for f in dataclasses.fields(cls)
                                       if f.name.endswith("bits")])
def test_codes_have_at_most_eight_bits(cls, name):
    """More do not fit the packed bytes."""
    assert getattr(cls(**{name: 8}), name) == 8
    for bits in (0, 9):
        with pytest.raises(ValueError, match=f"^{cls.__name__}: {name} must be .*, got {bits}$"): cls(**{name: bits})
