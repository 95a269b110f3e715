"""Every exercise accepts its right solutions and refuses the wrong ones, naming the mistake."""
import ast
import gc
import importlib.util
import inspect
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.course import build, percent
from tinypeft.course.check import check_file
from tinypeft.course.diagnose import difference
from tinypeft.course.exercises import TOPICS, of_topic
from tinypeft.course.worth import worth
from tinypeft.engine import functional as F
from tinypeft.engine import plain
from tinypeft.engine.nn import LayerNorm, Linear
from tinypeft.engine.tensor import concatenate, unbroadcast
from tinypeft.interop.llama import halves
from tinypeft.peft.prefix import Prefix
from tinypeft.peft.ptuning import places
from tinypeft.quant.folding import fold_scale
from tinypeft.quant.formats import decode, encode
from tinypeft.quant.int8 import int8_inputs, scaled_matmul
from tinypeft.quant.llm_int8 import inputs
from tinypeft.quant.packing import pack
from tinypeft.quant.peqa import scaled_linear
from tinypeft.quant.qtensor import QTensor
from tinypeft.quant.rounding import fake_quantize
from tinypeft.quant.smoothquant import smoothing_factors
from tinypeft.quant.uniform import make_grid
from tinypeft.text.tasks.distillation import divergence

HERE = Path(__file__).parent / "solutions"
LESSONS = {path.stem: path for path in percent.sources()}
WRITTEN = [topic for topic, lesson in TOPICS.items() if lesson in LESSONS]


def solutions(topic):
    spec = importlib.util.spec_from_file_location(f"solutions_{topic}", HERE / f"{topic}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOLUTIONS = {topic: solutions(topic) for topic in WRITTEN}
NAMES = [name for topic in WRITTEN for name in of_topic(topic)]


@pytest.mark.usefixtures("shorter_tape")
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_solution_is_refused_and_the_mistake_named(name, seed):
    for i, (fn, words) in enumerate(SOLUTIONS[name.split(".")[0]].WRONG[name]):
        result = tp.check(name, fn, seed=seed)
        assert not result and words and words in f"{result.message.partition(', in line ')[0]} {result.cause}", (i, result)
        assert result.function is result.exercise.reference


@pytest.mark.usefixtures("shorter_tape")
@pytest.mark.parametrize("seeds", [(0, 1), pytest.param((2, 3), marks=pytest.mark.long)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_another_right_solution_is_accepted(name, seeds):
    for i, fn in enumerate(SOLUTIONS[name.split(".")[0]].RIGHT[name]):
        for seed in seeds:
            result = tp.check(name, fn, seed=seed)
            assert result, (i, result)
            assert inspect.unwrap(result.function) is fn


@pytest.mark.parametrize("name", NAMES)
def test_each_exercise_is_tried_enough(name):
    """Four mistakes at least are named by a sentence of the exercise's own."""
    topic, e = SOLUTIONS[name.split(".")[0]], of_topic(name.split(".")[0])[name]
    told = [words for _, words in topic.WRONG[name]]
    own = [sentence for sentence, _ in (*e.mistakes, *e.symptoms)] + [sentence for _, sentence in e.errors]
    assert sum(any(words in sentence for sentence in own) for words in told) >= 4 and len(topic.RIGHT[name]) >= 1
    assert len({*told}) == len(told), "each is a mistake of its own"


@pytest.mark.parametrize("topic", WRITTEN)
def test_the_lesson_and_its_exercises_agree(topic):
    """The same names; points and minutes come from the lesson; its own solutions get full points."""
    exercises, cells = of_topic(topic), percent.read(LESSONS[TOPICS[topic]])
    stated = {cell.exercise: cell for cell in cells if cell.exercise}
    assert stated.keys() == exercises.keys() and SOLUTIONS[topic].WRONG.keys() == exercises.keys()
    for name, cell in stated.items():
        assert worth(name) == (cell.options["points"], cell.options["minutes"], cell.bonus)
    namespace = prepared(cells)
    for cell in cells:
        if cell.exercise:
            exec(cell.source, namespace)
            result = tp.check(cell.exercise, namespace[exercises[cell.exercise].function])
            assert result and result.message == f"right. {points_of(cell)}.", result


def points_of(cell):
    points, extra = cell.options["points"], "extra " * cell.bonus
    return f"1 {extra}point" if points == 1 else f"{points} {extra}points"


def prepared(cells):
    """What a lesson has imported: the import statements of all its cells."""
    namespace = {"__name__": "__main__"}
    for cell in cells:
        if cell.kind == "code":
            for line in cell.source.split("\n"):
                if line.startswith(("import ", "from ")): exec(line, namespace)
    return namespace


def test_no_two_files_of_the_course_need_each_other():
    """Imports within course/ form no circle, so that any file can be read after those it imports."""
    root = Path(tp.__file__).parent / "course"
    files = {path.relative_to(root).with_suffix("").as_posix().removesuffix("/__init__"): path
             for path in root.rglob("*.py") if path != root / "__init__.py"}
    imported = {}
    for name, path in files.items():
        base = path.parent.relative_to(root).parts
        imported[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(base) + 1:
                target = "/".join([*base[:len(base) + 1 - node.level], *(node.module or "").split(".")]).strip("/")
                imported[name] |= {target} & files.keys()
    for name in files:
        seen, reach = set(), set(imported[name])
        while reach - seen:
            seen |= reach
            reach = set().union(*(imported[other] for other in seen))
        assert name not in seen, f"{name} imports itself, through some of {sorted(seen)}"


def test_the_budget_is_the_packages():
    """For one matrix, in each of 50 schedules."""
    exercise = of_topic("adalora")["adalora.budget"]
    for seed in range(50):
        t, T, t_i, t_f, b0, bT = exercise.cases(np.random.default_rng(seed))
        ours = tp.AdaLoRA(init_rank=b0, target_rank=bT, t_init=t_i, t_final=t_f)
        for step in (0, t_i, t, T - t_f, T): assert exercise.reference(step, T, t_i, t_f, b0, bT) == ours.budget(step, T, 1)


def test_backward_passes_are_the_engines():
    def linear_vjp(X, W, dY, need):
        leaves = [tp.Tensor(a, requires_grad=True) for a in (X, W, np.zeros(len(W)))]
        F.linear(*leaves).backward(dY)
        return tuple(leaf.grad for leaf in leaves)

    def layer_norm_vjp(x, gamma, dy, eps):
        x = tp.Tensor(x, requires_grad=True)
        F.layer_norm(x, tp.Tensor(gamma), tp.Tensor(np.zeros_like(gamma)), eps).backward(dy)
        return x.grad

    def attention(q, k, v): return plain.attention(tp.Tensor(q), tp.Tensor(k), tp.Tensor(v)).data
    def loss(logits, tokens): return F.cross_entropy(tp.Tensor(logits[:, :-1]), tokens[:, 1:]).item()
    for topic, engine in (("autograd", unbroadcast), ("autograd", linear_vjp), ("autograd", layer_norm_vjp),
                          ("transformer", attention), ("transformer", loss)):
        exercise = of_topic(topic)[f"{topic}.{engine.__name__}"]
        for seed in range(5):
            args = exercise.cases(np.random.default_rng(seed))
            assert difference(exercise.reference(*args), engine(*args), 1e-6, free=True) is None, (engine, seed)


def test_the_step_of_adamw_is_the_packages():
    exercise = of_topic("full")["full.adamw"]
    for seed in range(5):
        args = exercise.cases(np.random.default_rng(seed))
        for ours, theirs in zip(exercise.reference(*args), plain.adamw(*args), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_the_gradients_through_rounding_are_the_engines():
    def rounded(x, s, z, low, high, dy):
        x, z = tp.Tensor(x, requires_grad=True), tp.Tensor(np.array(float(z)), requires_grad=True)
        fake_quantize(x, tp.Tensor(np.array(s)), z, low, high, mask="paper").backward(dy)
        return x.grad, z.grad

    def lsq(x, s, bits, dy):
        x, s, Q_P = tp.Tensor(x, requires_grad=True), tp.Tensor(s, requires_grad=True), 2**(bits - 1) - 1
        g = 1 / np.sqrt(x.shape[1] * Q_P)
        x_hat = fake_quantize(x, s.reshape(-1, 1), tp.Tensor(np.zeros((1, 1))), -Q_P - 1, Q_P, "paper", g)
        x_hat.backward(dy)
        return x_hat.data, x.grad, s.grad

    def peqa(x, dy, q, z, g):
        codes = QTensor(pack(q.astype(np.uint8), 8), 8, q.shape, g, np.ones(z.size, np.float32),
                        pack(z.astype(np.uint8).reshape(-1), 8))
        s = tp.Tensor(np.ones(z.size), requires_grad=True)
        scaled_linear(tp.Tensor(x), codes, s, None).backward(dy)
        return s.grad.reshape(z.shape)

    def distillation(teacher, student):
        student = tp.Tensor(student, requires_grad=True)
        loss = divergence(F.log_softmax(tp.Tensor(teacher)).data, student)
        loss.backward()
        return loss.item(), student.grad
    engines = {"ste": lambda *a: rounded(*a)[0], "zero": lambda *a: rounded(*a)[1], "lsq": lsq, "peqa": peqa,
               "distillation": distillation}
    for name, engine in engines.items():
        exercise = of_topic("qat")[f"qat.{name}"]
        for seed in range(5):
            args = exercise.cases(np.random.default_rng(seed))
            assert difference(exercise.reference(*args), engine(*args), 1e-6) is None, name


def test_rounding_is_the_packages():
    def absmax(x, bits):
        row = x.reshape(1, -1)
        return tp.Uniform(bits, granularity="tensor").fit(row).round(row).reshape(x.shape)
    def best_clip(x, bits, fractions):
        m = np.abs(x).max(1)
        errors = [np.square(make_grid(-p * m, p * m, bits).round(x) - x).sum(1) for p in fractions]
        return np.asarray(fractions)[np.argmin(errors, axis=0)]
    def to_float(x, e, m): return decode(encode(x, f"E{e}M{m}"), f"E{e}M{m}")
    def codes(x, bits):
        grid = make_grid(x.min().reshape(1), x.max().reshape(1), bits, symmetric=False)
        return grid.encode(x.reshape(1, -1)).reshape(x.shape).astype(int), grid.scale.item(), -int(grid.zero.item())
    packages = {"absmax": absmax, "best_clip": best_clip, "to_float": to_float, "survey": codes, "pack": lambda q: pack(q, 4)}
    for name, package in packages.items():
        exercise = of_topic("quantization")[f"quantization.{name}"]
        for seed in range(10):
            args = exercise.cases(np.random.default_rng(seed))
            assert difference(exercise.reference(*args), package(*args), 1e-5, free=True) is None, (name, seed)


def test_the_products_of_codes_and_the_smoothing_are_the_packages():
    def vector_wise(X, W):
        Q, s = int8_inputs(X, "token")
        return s * scaled_matmul(Q, tp.Uniform(8).quantize(W), X.dtype)

    def llm_int8(X, W, threshold):
        Q, s, O = inputs(X, threshold)
        return X[:, O] @ W[:, O].T + s * scaled_matmul(Q, tp.Uniform(8).quantize(W), X.dtype), O

    def smooth(gamma, beta, weights, max_abs, alpha):
        norm, layers = LayerNorm(len(gamma)), [Linear(W.shape[1], W.shape[0], bias=False, rng=0) for W in weights]
        norm.weight.data, norm.bias.data = gamma, beta
        for layer, W in zip(layers, weights, strict=True): layer.weight.data = W
        fold_scale(norm, layers, smoothing_factors(max_abs, weights, alpha))
        return norm.weight.data, norm.bias.data, [layer.weight.data for layer in layers]
    for package in (vector_wise, llm_int8, smooth):
        exercise = of_topic("outliers")[f"outliers.{package.__name__}"]
        for seed in range(5):
            args = exercise.cases(np.random.default_rng(seed))
            assert difference(exercise.reference(*args), package(*args), 1e-6, free=True) is None, (package, seed)


def test_the_places_of_pseudo_tokens_are_the_packages():
    exercise = of_topic("prompts")["prompts.places"]
    for seed in range(20):
        tokens, counts, separator = exercise.cases(np.random.default_rng(seed))
        assert np.array_equal(exercise.reference(tokens, counts, separator), places(tokens[None], counts, separator)[0])


def test_the_rows_of_halves_are_the_packages():
    W, d_head = of_topic("real")["real.bug"].cases(np.random.default_rng(0))
    assert np.array_equal(of_topic("real")["real.bug"].reference(W, d_head), halves(W, d_head))


def test_a_prefix_is_the_packages():
    """The keys and values that a table holds, and the gradient that the engine derives."""
    exercises, rng = of_topic("prefix"), np.random.default_rng(0)
    table, L, H = exercises["prefix.cut"].cases(rng)
    theirs = Prefix(table, L, H, dropout=0.0, rng=None).seams(None)["prefix"]
    assert np.array_equal(exercises["prefix.cut"].reference(table, L, H), [(K.data, V.data) for K, V in theirs])
    q, k, v, P_K, P_V, do = exercises["prefix.backward"].cases(rng)
    prefix = [tp.Tensor(a, requires_grad=True) for a in (P_K, P_V)]
    K, V = (concatenate([of_prefix, tp.Tensor(of_text)], axis=0) for of_prefix, of_text in zip(prefix, (k, v), strict=True))
    F.attention(tp.Tensor(q[None]), K, V).backward(do[None])
    for ours, leaf in zip(exercises["prefix.backward"].reference(q, k, v, P_K, P_V, do), prefix, strict=True):
        np.testing.assert_allclose(ours, leaf.grad, rtol=1e-9)


def test_what_a_newcomer_stumbles_over_is_told():
    """NumPy's functions on Tensors, torch's methods, a product the wrong way: the student's own line and what to do."""
    def numpys(P, Q): return np.linalg.norm(P.T @ P - np.eye(P.shape[1])) ** 2
    def torchs(P, Q): return (P.T @ P).pow(2).sum()
    def wrong_way(P, Q): return ((P @ P.T - np.eye(P.shape[1])) ** 2).sum()
    def ones(P, Q): return ((P.T @ P - 1) ** 2).sum() + ((Q @ Q.T - 1) ** 2).sum()
    for fn, says in ((numpys, "NumPy's functions do not take them"), (torchs, ".exp() .log()"), (wrong_way, "AAᵀ for AᵀA"),
                     (ones, "its diagonal alone")):
        told = tp.check("adalora.penalty", fn)
        assert says in told.cause and "norm:" not in told.message, told
    first = tp.check("adalora.importance", lambda w, g, I_bar, U, beta1, beta2: (I_bar, U, U))
    assert first.message.startswith("result 1 of 3")


# Cases with an obvious answer, invariants and gradients of each exercise; none where it is left out.
CHECKS = {
    "map.trained": (1, 0, 0), "map.merges": (13, 0, 0), "map.signs": (4, 0, 0), "map.bug": (2, 0, 0), "map.pack": (3, 0, 0),
    "autograd.walk": (3, 0, 0), "autograd.unbroadcast": (4, 0, 0), "autograd.linear_vjp": (6, 0, 0),
    "autograd.layer_norm_vjp": (0, 1, 0), "autograd.forward": (1, 0, 0),
    "gradients.catches": (21, 0, 0), "gradients.needed": (5, 0, 0), "gradients.fourth": (0, 1, 0),
    "transformer.attention": (4, 1, 0), "transformer.loss": (3, 0, 0), "transformer.count": (1, 0, 0),
    "transformer.sees": (9, 0, 0), "transformer.alibi": (2, 0, 0),
    "full.adamw": (1, 0, 0), "full.states": (4, 0, 0), "full.activations": (1, 0, 0),
    "full.bug": (1, 0, 0), "full.recompute": (2, 0, 0), "adapters.forward": (1, 0, 5), "adapters.backward": (2, 0, 0),
    "adapters.widen": (0, 1, 0), "adapters.bug": (6, 0, 0), "adapters.linear": (0, 1, 0),
    "prompts.input": (0, 0, 1), "prompts.longest": (5, 0, 0), "prompts.gradient": (3, 0, 0), "prompts.places": (2, 0, 0),
    "prompts.bug": (4, 0, 0), "prompts.lstm": (1, 0, 0),
    "prefix.backward": (2, 0, 0), "prefix.share": (4, 1, 0), "prefix.bug": (1, 0, 0),
    "prefix.copies": (3, 0, 0),
    "lora.forward": (2, 0, 3), "lora.backward": (0, 1, 0), "lora.attach": (3, 0, 0),
    "lora.alike": (16, 0, 0), "lora.swap": (2, 0, 0), "lora.bug": (20, 0, 0),
    "lora.dora": (1, 0, 4),
    "adalora.penalty": (1, 0, 2), "adalora.importance": (1, 0, 0), "adalora.budget": (5, 0, 0), "adalora.allocate": (3, 1, 0),
    "adalora.export": (2, 1, 0),
    "dylora.forward": (2, 0, 3), "dylora.bug": (4, 0, 0), "dylora.draw": (3, 1, 0), "dylora.cut": (2, 0, 0),
    "quantization.absmax": (2, 1, 0), "quantization.survey": (3, 1, 0), "quantization.best_clip": (3, 0, 0),
    "quantization.to_float": (4, 0, 0), "quantization.bug": (2, 0, 0), "quantization.pack": (1, 1, 0),
    "outliers.bug": (3, 0, 0), "outliers.zero_point": (1, 0, 0),
    "outliers.drown": (2, 0, 0), "outliers.vector_wise": (2, 0, 0), "outliers.llm_int8": (6, 0, 0),
    "outliers.smooth": (1, 1, 0),
    "calibrated.directions": (3, 0, 0), "calibrated.compensate": (1, 2, 0), "calibrated.gptq": (1, 0, 0),
    "calibrated.bug": (2, 0, 0), "calibrated.order": (2, 0, 0), "calibrated.scale": (2, 0, 0),
    "nf4.levels": (2, 0, 0), "nf4.encode": (1, 0, 0), "nf4.backward": (1, 0, 0), "nf4.bug": (1, 0, 0), "nf4.better": (1, 0, 0),
    "nf4.loses": (2, 0, 0),
    "loftq.vanish": (1, 0, 0), "loftq.rounds": (1, 0, 0), "loftq.bug": (1, 1, 0),
    "qat.ste": (2, 0, 0), "qat.lsq": (2, 0, 0), "qat.peqa": (1, 0, 0), "qat.distillation": (5, 0, 0),
    "qat.bug": (2, 0, 0), "qat.zero": (2, 0, 0),
    "choosing.memory": (2, 0, 0), "choosing.pareto": (4, 0, 0), "choosing.fuse": (0, 1, 0),
    "choosing.apart": (1, 0, 0), "choosing.bug": (2, 0, 0), "choosing.seeds": (3, 0, 0),
    "real.norm_backward": (1, 1, 0), "real.rotary": (1, 1, 0), "real.fewer": (2, 0, 0), "real.block": (1, 0, 0),
    "real.bug": (2, 0, 0), "real.encode": (2, 0, 0),
    "children.which": (38, 0, 0), "children.bug": (13, 0, 0), "children.nearest": (1, 0, 0),
    "k_quants.read": (1, 0, 0), "k_quants.which": (14, 0, 0), "k_quants.search": (2, 0, 0),
    "k_quants.bug": (4, 0, 0), "k_quants.mixture": (5, 0, 0)}


# The example on the page of each exercise that has one: words of the page, and numbers that the reference makes of it.
EXAMPLES = {
    "prompts.input": ("$(5.1, 5)$, $(1.2, 0)$, $(0.3, 1)$", [5.1, 5, 1.2, 0, 0.3, 1]),
    "prefix.backward": ("$dP_V = 0.5$ and $dP_K = 1$", [1, 0.5]),
    "prefix.share": (r"$\lambda = 3/4$ of the attention", [0.75]),
    "lora.forward": ("$h = (7 - 1,\\ 2 - 2) = (6,\\ 0)$", [6, 0]),
    "adalora.importance": (r"$\bar I = 0.8 \cdot 0.5 + 0.2 \cdot 1 = 0.6$", [0.6, 0.24, 0.144]),
    "adalora.budget": ("How large may the budget $b(35)$ be", [135]),
    "adalora.allocate": ("the scores (5, 1, 0.5) and (4, 3, 0.2)", [1, 0, 0, 1, 1, 0]),
    "quantization.absmax": ("come back as (−1, 0, 0.5, 1.5)", [-1, 0, 0.5, 1.5]),
    "nf4.levels": (r"$$c = (-1,\ \ 0,\ \ 0.409,\ \ 1)$$", [-1, 0, 0.409, 1]),
    "nf4.encode": ("so the codes are $(2, 0, 2, 1)$", [2, 0, 2, 1, 0.8]),
    "qat.ste": (r"$\mathrm{d}x = (5, 0)$", [5, 0]),
    "qat.distillation": (r"$\frac12 \ln \frac23 + \frac12 \ln 2 = 0.144$", [0.1438, 0.25, -0.25]),
    "qat.lsq": ("Together: $-0.4$.", [2, 3, 1, 0, -0.4 / 3 ** 0.5, 3 / 3 ** 0.5]),
    "choosing.memory": (r"$10 \cdot 16 = 160$ bytes", [660]),
    "real.rotary": (r"(0.540,\ 0.995,\ 0.841,\ 0.100)$", [1, 1, 0, 0, 0.540, 0.995, 0.841, 0.100])}


@pytest.mark.parametrize("name", [name for name in NAMES if of_topic(name.split(".")[0])[name].example])
def test_the_first_case_is_the_example_on_the_page(name):
    topic, (words, numbers) = name.split(".")[0], EXAMPLES[name]
    prose = " ".join(build.prose(LESSONS[TOPICS[topic]]).split())
    assert words in prose, "the page has another example now"
    exercise = of_topic(topic)[name]
    made = exercise.reference(*exercise.example(np.random.default_rng(0)))
    made = [getattr(part, "data", part) if not isinstance(part, np.ndarray) else part
            for part in (made if isinstance(made, tuple) else (made,))]
    assert np.allclose(np.concatenate([np.ravel(part).astype(float) for part in made]), numbers, atol=6e-4)


def test_a_wrong_answer_is_shown_on_the_example_first():
    told = tp.check("adalora.importance", lambda w, g, I, U, b1, b2: (I, U, I * U))
    assert "in the example of the lesson" in told.message and told.got == "[0.5]  float64(1,)"
    twice = tp.check("lora.forward", lambda x, W, A, B, alpha: F.linear(x, W) + F.linear(F.linear(x, A), B) * (2 * alpha))
    assert "in the example of the lesson" in twice.message and twice.expected.startswith("[6. 0.]")
    large = tp.check("lora.forward", lambda x, W, A, B, alpha: F.linear(x, W) + F.linear(F.linear(x, A), B) * alpha)
    assert "infinite" not in large.message and "the scale is α/r, not α" in large.cause


@pytest.mark.parametrize("nothing", [np.nan, np.inf])
def test_a_goal_that_is_missed_by_numbers_that_are_not_finite(nothing):
    """How near they came cannot be said."""
    told = tp.check("children.lengths", lambda W, r: np.full(len(W), nothing))
    assert not told and "the goal is missed" in told.message and "it leaves" not in told.message


def test_a_missed_goal_does_not_show_an_answer():
    """A design has many right answers, and the reference's is one of them."""
    told = tp.check("loftq.vanish", lambda W_hat, s: (0.3 * s[:, None], np.ones((1, W_hat.shape[1]))))
    assert "the goal is missed" in told.message and "0.3" in told.got and told.expected == ""
    assert "expected" not in repr(told)


def result_of_other_kind(kind):
    """A function that returns nothing, or flat, doubled or truncated parts of some result."""
    change = {"none": lambda part: None, "flat": np.ravel, "longer": lambda part: np.concatenate([np.atleast_1d(part)] * 2),
              "text": str}[kind]
    def of(reference):
        def wrong(*args):
            parts = reference(*args)
            changed = tuple(map(change, parts)) if isinstance(parts, tuple) else change(parts)
            return None if kind == "none" else changed
        return wrong
    return of


@pytest.mark.parametrize("kind", ["none", "flat", "longer", "text"])
@pytest.mark.parametrize("name", [e.name for topic in WRITTEN for e in of_topic(topic).values() if e.goal])
def test_a_design_of_another_shape_is_not_shown_an_answer_either(name, kind):
    """Zeros in the reference's place, so that only the check can tell its numbers."""
    e = of_topic(name.partition(".")[0])[name]
    zeros = lambda *args: tuple(0 * np.asarray(part) for part in made) \
        if isinstance(made := e.reference(*args), tuple) else 0 * np.asarray(made)
    told = tp.check(name, result_of_other_kind(kind)(zeros))
    assert not told and told.expected == "" and "expected  " not in repr(told), told


KINDS = {"design", "fault", "gradient", "count", "formula"}
MOST = 11                                                # counts and formulas, without bonus exercises


def test_each_exercise_has_a_kind():
    exercises = [e for topic in WRITTEN for e in of_topic(topic).values()]
    assert {e.name: e.kind for e in exercises if e.kind not in KINDS} == {}
    assert [e.name for e in exercises if e.title.startswith("Find the bug") != (e.kind == "fault")] == []
    plain = [e.name for e in exercises if e.kind in ("count", "formula") and not worth(e.name).bonus]
    assert len(plain) <= MOST, plain


@pytest.mark.parametrize("topic", WRITTEN)
def test_stars_are_what_the_instructors_page_says(topic):
    """Three where the text asks to derive something; more than one for a bug, which nobody just writes down."""
    text, stars = "", {e.name: e.stars for e in of_topic(topic).values()}
    for cell in percent.read(LESSONS[TOPICS[topic]]):
        if cell.kind == "markdown": text = cell.source.partition("### Exercise")[2].partition("<details>")[0] or text
        if not cell.exercise: continue
        if re.search(r"\bderive\b", text, re.I): assert stars[cell.exercise] == 3, cell.exercise
        if text.partition("\n")[0].count("Find the bug"): assert stars[cell.exercise] > 1, cell.exercise


@pytest.mark.parametrize("topic", WRITTEN)
def test_no_check_of_an_exercise_was_lost(topic):
    """A wrong solution may fail several checks, and then none of the others is missed: so they are counted."""
    for name, e in of_topic(topic).items():
        assert (len(e.special + e.extremes), len(e.invariants), len(e.gradient)) == CHECKS.get(name, (0, 0, 0)), name


def test_the_activations_of_lesson_03_are_those_that_are_traced():
    """What the exercise counts is what a forward pass leaves allocated, to 2 %."""
    model = tp.load_pretrained()
    task, (B, T), c = tp.tasks.domain(model, context=128), (8, 128), model.config
    tuned = tp.attach(model, tp.FullFineTuning())
    batch = task.batch("train", B, np.random.default_rng(0))
    gc.collect()
    tracemalloc.start()
    loss = task.loss(tuned, batch)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    counted = of_topic("full")["full.activations"].reference(B, T, c.d_model, c.n_heads, c.n_layers, c.vocab_size)
    assert loss.requires_grad and abs(held / (4 * counted) - 1) < 0.02


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_no_rule_without_the_weights_makes_good_scales(seed):
    for i, rule in enumerate(SOLUTIONS["calibrated"].FIXED): assert not tp.check("calibrated.scale", rule, seed=seed), i


def test_a_missing_factor_is_named():
    right = of_topic("prefix")["prefix.copies"].reference
    told = tp.check("prefix.copies", lambda lam, n: 7 * right(lam, n))
    assert told.cause == "your result is 7 times the expected one everywhere: a factor is wrong or missing"


def test_a_file_with_some_functions_of_a_topic(tmp_path):
    """Those are checked, and the others are not missed."""
    path = tmp_path / "mine.py"
    path.write_text("def lora_swap(W, tasks): return [W + alpha / len(A) * B @ A for A, B, alpha in tasks]\n"
                    "def lora_alike(A, B, a, C, D, c): return True\n")
    assert [(r.exercise.name, bool(r)) for r in check_file("lora", path)] == [("lora.alike", False), ("lora.swap", True)]
    path.write_text("x = 1")
    with pytest.raises(ValueError, match="defines none of lora_forward, lora_attach"): check_file("lora", path)


def test_an_error_where_an_invariant_is_checked_is_told():
    """The function is right on random arrays, and fails at B = 0."""
    right = of_topic("lora")["lora.backward"].reference

    def fails(x, W, A, B, alpha, dh):
        if not B.any(): raise KeyError("no B")
        return right(x, W, A, B, alpha, dh)
    told = tp.check("lora.backward", fails)
    assert told.message.startswith("your function fails where this should hold: with B = 0") and "KeyError" in told.message
