"""Lesson 03: AdamW, one step and many, and the memory that training needs."""
import numpy as np

from ...engine import plain
from ..exercise import Exercise

__all__ = ["EXERCISES"]


# -- AdamW ---------------------------------------------------------------------------------------
def fading(beta, old, new):
    return beta * old + (1 - beta) * new


def power(beta, t):
    """A mean that began at 0 is divided by this."""
    return 1 - beta ** t


def next_power(beta, t):
    return 1 - beta ** (t + 1)


def uncorrected(beta, t):
    return 1


def adamw(w, g, m, v, t, lr, beta1, beta2, eps, decay, mean=fading, a=power, b=power, coupled=False, inside=False, with_lr=True,
          squared=True, rooted=True, after=False, hat=True, rate=True, momentum=True, adaptive=False):
    """AdamW with its usual mistakes. a, b: the corrections of m and v."""
    if coupled: g = g + decay * w
    m = mean(beta1, m, g)
    v = mean(beta2, v, g * g if squared else abs(g))
    a, b = a(beta1, t), b(beta2, t)
    root = np.sqrt(v / b + eps) if inside else np.sqrt(v / b) + eps if rooted else v / b + eps
    if not hat: root = np.sqrt(v / b) + eps / np.sqrt(b)
    step = (lr if rate else 1) * (m / a if momentum else g) / root
    shrink = 0 if coupled else (lr if with_lr else 1) * decay / (root if adaptive else 1)
    return w - shrink * (w - step if after else w) - step, m, v


def adamw_cases(rng, t=None, eps=1e-3):
    w, g, m = rng.standard_normal((3, 4, 3))
    t = int(rng.integers(2, 9)) if t is None else t
    if t == 1: m, v = np.zeros((4, 3)), np.zeros((4, 3))
    else:      m, v = 0.1 * m, 0.01 + 0.1 * rng.random((4, 3))
    return w, g, m, v, t, 0.01, 0.9, 0.99, eps, 0.3


# -- many steps ----------------------------------------------------------------------------------
def steps(w, gradients, lr, beta1, beta2, decay, first=1, fresh=False, one=False, **options):
    """w after one step of AdamW for each gradient; the options make the mistakes."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, first):
        if fresh: m, v = np.zeros_like(w), np.zeros_like(w)
        w, m, v = adamw(w, g, m, v, 1 if one else t, lr, beta1, beta2, 1e-8, decay, **options)
    return w


def shared(w, gradients, lr, beta1, beta2, decay):
    """m and v are one array."""
    both = np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        both = fading(beta2, fading(beta1, both, g), g * g)
        w = w - lr * decay * w - lr * both / power(beta1, t) / (np.sqrt(both / power(beta2, t)) + 1e-8)
    return w


def reference_bug(w, gradients, lr, beta1, beta2, decay):
    return steps(w, gradients, lr, beta1, beta2, decay)


def bug_cases(rng, positive=False, n=None):
    g = rng.standard_normal((int(rng.integers(3, 6)) if n is None else n, 4, 3))
    return rng.standard_normal((4, 3)), list(abs(g) if positive else g), 0.01, 0.9, 0.999, 0.1


# -- memory --------------------------------------------------------------------------------------
def master(weight_bytes):
    return 4 if weight_bytes < 4 else 0


def states(N, n, weight_bytes, frozen_bytes, frozen=lambda N, n: N - n, gradient=lambda b: b, copy=master, moments=lambda b: 8):
    """The bytes of frozen weights, and of a trained one with all that belongs to it; the options make the mistakes."""
    b = weight_bytes
    return frozen(N, n) * frozen_bytes + n * (b + gradient(b) + copy(b) + moments(b))


def reference_states(N, n, weight_bytes, frozen_bytes):
    return states(N, n, weight_bytes, frozen_bytes)


ONLY_TRAINED = "gradients, m and v are for the n trained weights only"


def states_cases(rng):
    N = 2 * int(rng.integers(5_000, 50_000))                                  # even, so that half a byte each makes whole bytes
    return N, 2 * int(rng.integers(50, N // 2)), int(rng.choice([1, 2, 4])), float(rng.choice([0.5, 1, 2]))


def reference_activations(B, T, d, H, L, V):
    return L * (16 * B * T * d + 2 * B * T + B * H * T * (T + 64) // 2) + 2 * B * T * d + B * T + B * T * V


def activations_cases(rng):
    B, blocks, H, L = (int(n) for n in rng.integers((1, 1, 2, 2), (6, 5, 7, 9)))
    return B, 64 * blocks, H * int(rng.integers(5, 20)), H, L, int(rng.integers(100, 900))


def reference_recompute(B, T, d, H, L, V, k):
    head = 2 * B * T * d + B * T + B * T * V
    block = reference_activations(B, T, d, H, 1, 0) - 2 * B * T * d - B * T
    return L // k * B * T * d + max(k * block, head)


def recompute(B, T, d, H, L, V, k, inputs=None, more=lambda k, block, head: max(k * block, head)):
    """The count with other inputs than one per part, or with another second term."""
    head, all_ = 2 * B * T * d + B * T + B * T * V, reference_activations(B, T, d, H, L, V)
    block = (all_ - head) // L
    return (L // k if inputs is None else inputs(L, k)) * B * T * d + more(k, block, head)


def recompute_cases(rng, vocabulary=None):
    B, blocks, H, k, parts = (int(n) for n in rng.integers((1, 1, 2, 2, 3), (6, 5, 7, 5, 6)))
    V = int(rng.integers(100, 900)) if vocabulary is None else vocabulary
    return B, 64 * blocks, H * int(rng.integers(5, 20)), H, k * parts, V, k


def off_by(term):
    return lambda B, T, d, H, L, V: reference_activations(B, T, d, H, L, V) + term(B, T, d, H, L, V)


EXERCISES = (
    Exercise(
        name="full.adamw", title="One step of AdamW", stars=2,
        reference=plain.adamw, cases=adamw_cases,
        special=(
            ("the first step: m and v were 0, and nothing decays",
             lambda rng: (*adamw_cases(rng, t=1)[:9], 0.0)),),
        mistakes=(
            ("m and v are not corrected for having started at 0", lambda *a: adamw(*a, a=uncorrected, b=uncorrected)),
            ("v is not corrected for having started at 0", lambda *a: adamw(*a, b=uncorrected)),
            ("m is not corrected for having started at 0", lambda *a: adamw(*a, a=uncorrected)),
            ("t counts from 1: use t as it is given, not t + 1", lambda *a: adamw(*a, a=next_power, b=next_power)),
            ("the corrections are those of step t, not those of the first step",
             lambda *a: adamw(*a, a=lambda beta, t: 1 - beta, b=lambda beta, t: 1 - beta)),
            ("divide by 1 − βᵗ, do not multiply with it",
             lambda *a: adamw(*a, a=lambda beta, t: 1 / power(beta, t), b=lambda beta, t: 1 / power(beta, t))),
            ("β multiplies the old mean, and 1 − β the new number", lambda *a: adamw(*a, mean=lambda beta, old, new: fading(1 - beta, old, new))),
            ("the new number enters the mean with the factor 1 − β", lambda *a: adamw(*a, mean=lambda beta, old, new: beta * old + new)),
            ("β₁ belongs to m, and β₂ to v", lambda *a: adamw(*a[:6], a[7], a[6], *a[8:])),
            ("the decay went into the gradient: that is Adam with an L2 penalty, not AdamW", lambda *a: adamw(*a, coupled=True)),
            ("the decay is not divided by √v̂", lambda *a: adamw(*a, adaptive=True)),
            ("the decay is missing: lr · λ · w is subtracted as well", lambda *a: adamw(*a[:-1], 0.0)),
            ("the decay is subtracted: it makes w smaller", lambda *a: adamw(*a[:-1], -a[-1])),
            ("the decay belongs to the old w; yours is taken after the step", lambda *a: adamw(*a, after=True)),
            ("the learning rate is missing in the decay, which is lr · λ · w", lambda *a: adamw(*a, with_lr=False)),
            ("the learning rate is missing in the step", lambda *a: adamw(*a, rate=False)),
            ("the step goes along m̂, and not along g", lambda *a: adamw(*a, momentum=False)),
            ("ε is inside the root; it stands outside the root", lambda *a: adamw(*a, inside=True)),
            ("ε is missing: the step is divided by √v̂ + ε", lambda *a: adamw(*a[:8], 0.0, a[9])),
            ("v is divided without its root: the step is m̂/(√v̂ + ε)", lambda *a: adamw(*a, rooted=False)),
            ("ε is added to √v̂, which is corrected; in your form, with one rate α_t for both corrections, it is added to √v",
             lambda *a: adamw(*a, hat=False)),
            ("v is the mean of g², not of |g|", lambda *a: adamw(*a, squared=False)),
            ("m and v are returned divided by their corrections; return them as they are, because the next step corrects them anew",
             lambda *a: (lambda w, m, v: (w, m / power(a[6], a[4]), v / power(a[7], a[4])))(*adamw(*a))),
            ("the order is (w, m, v)", lambda *a: (lambda w, m, v: (w, v, m))(*adamw(*a))),
            ("the sign is wrong: w moves against the gradient",
             lambda w, g, *a: (2 * w - adamw(w, g, *a[:-1], 0.0)[0] - a[3] * a[-1] * w, *adamw(w, g, *a)[1:])),
            ("the step used the old m and v; update them first",
             lambda w, g, m, v, t, lr, b1, b2, eps, decay: (
                 w - lr * decay * w - lr * (m / power(b1, t)) / (np.sqrt(v / power(b2, t)) + eps),
                 *adamw(w, g, m, v, t, lr, b1, b2, eps, decay)[1:]))),
        tolerance=1e-9,
        hints=("Why are m and v divided by something at the start? Does the decay go into the gradient, or straight to the"
               " weight?",
               "w, g, m and v have one shape; the others are numbers. Return (w, m, v) as new arrays.",
               "m = beta1 * m + (1 - beta1) * g, and v the same with beta2 and g**2. m_hat = m / (1 - beta1**t), and v_hat "
               "likewise. The new w is w - lr * decay * w - lr * m_hat / (np.sqrt(v_hat) + eps). Do not write m *= beta1, "
               "which changes the caller's array.")),
    Exercise(
        name="full.states", title="Memory for weights, gradients and optimizer", stars=1,
        reference=reference_states, cases=states_cases,
        special=(
            ("everything trained in mixed precision: 16 bytes each", lambda rng: (1000, 1000, 2, 2)),
            ("everything trained in float32: 16 bytes each", lambda rng: (1000, 1000, 4, 4)),
            ("one frozen weight of 4 bits: half a byte", lambda rng: (1, 0, 2, 0.5)),
            ("trained weights of 1 byte, with a master copy of 4", lambda rng: (1000, 1000, 1, 1))),
        mistakes=(
            ("the trained weights are also counted as frozen ones", lambda *a: states(*a, frozen=lambda N, n: N)),
            ("the frozen weights are missing", lambda *a: states(*a, frozen=lambda N, n: 0)),
            (ONLY_TRAINED, lambda N, n, b, f: states(N, n, b, f) + (N - n) * (b + 8 + master(b))),
            (ONLY_TRAINED, lambda N, n, b, f: states(N, n, b, f) + (N - n) * (b + 8)),
            (ONLY_TRAINED, lambda N, n, b, f: states(N, n, b, f) + (N - n) * b),
            (ONLY_TRAINED, lambda N, n, b, f: states(N, n, b, f) + (N - n) * 8),
            ("only trained weights have a master copy", lambda N, n, b, f: states(N, n, b, f) + (N - n) * master(b)),
            ("below 4 bytes, every trained weight has a float32 master copy besides", lambda *a: states(*a, copy=lambda b: 0)),
            ("every trained weight of less than 4 bytes has a master copy, and not those of 2 bytes alone",
             lambda *a: states(*a, copy=lambda b: 4 * (b == 2))),
            ("you counted a master copy in float32; there the weight itself is the master copy", lambda *a: states(*a, copy=lambda b: 4)),
            ("the master copy takes 4 bytes, because it is in float32", lambda *a: states(*a, copy=lambda b: b * (b < 4))),
            ("m and v are in float32, 4 bytes each, whatever the weight takes", lambda *a: states(*a, moments=lambda b: 2 * b)),
            ("Adam keeps two numbers of 4 bytes per weight, m and v", lambda *a: states(*a, moments=lambda b: 4)),
            ("Adam's m and v are missing, 4 bytes each", lambda *a: states(*a, moments=lambda b: 0)),
            ("a frozen weight takes frozen_bytes, not weight_bytes", lambda N, n, b, f: states(N, n, b, b)),
            ("a gradient takes weight_bytes, as the weight does", lambda *a: states(*a, gradient=lambda b: 4)),
            ("the gradient is missing", lambda *a: states(*a, gradient=lambda b: 0)),
            ("this is in bits; count bytes", lambda *a: 8 * states(*a))),
        symptoms=(
            ("a frozen weight may take half a byte: do not cut the result to a whole number",
             lambda got, expected, args: float(got).is_integer() and abs(got - expected) < 1),),
        tolerance=1e-9,
        hints=("What is kept for a frozen weight, and what for a trained one? When does a trained weight need a second "
               "copy?",
               "All are bytes. N − n weights are frozen. Each of the n others has itself, a gradient, m and v.",
               "(N - n) * frozen_bytes + n * (2 * weight_bytes + 8), and 4 * n more if weight_bytes < 4.")),
    Exercise(
        name="full.activations", title="Memory for activations", stars=2,
        reference=reference_activations, cases=activations_cases,
        special=(("the base, with 4 rows of 128 tokens", lambda rng: (4, 128, 128, 4, 5, 1024)),),
        mistakes=(
            ("you counted one layer norm in a block; there are two layer norms",
             off_by(lambda B, T, d, H, L, V: -L * (B * T * d + B * T))),
            ("1/σ of the layer norms is missing: one number per token and norm",
             off_by(lambda B, T, d, H, L, V: -(2 * L + 1) * B * T)),
            ("1/σ of the blocks' layer norms is missing: each of the two keeps one number per token",
             off_by(lambda B, T, d, H, L, V: -2 * L * B * T)),
            ("1/σ of the final norm is missing: one number per token", off_by(lambda B, T, d, H, L, V: -B * T)),
            ("attention's weights are missing: B H T (T + 64)/2",
             off_by(lambda B, T, d, H, L, V: -L * B * H * T * (T + 64) // 2)),
            ("all T² of attention's weights are counted; half of them are hidden and never computed",
             off_by(lambda B, T, d, H, L, V: L * B * H * (T * T - T * (T + 64) // 2))),
            ("attention's weights are counted for one head",
             off_by(lambda B, T, d, H, L, V: L * B * (1 - H) * T * (T + 64) // 2)),
            ("attention's weights are counted twice: only half of the T² are computed",
             off_by(lambda B, T, d, H, L, V: L * B * H * T * (T + 64) // 2)),
            ("the 64 queries that work at a time see one more block of keys than T²/2 counts: T (T + 64)/2",
             off_by(lambda B, T, d, H, L, V: -L * B * H * T * 32)),
            ("a norm keeps x̂ and 1/σ, and not the mean besides", off_by(lambda B, T, d, H, L, V: (2 * L + 1) * B * T)),
            ("B T d numbers are missing in each block: an input of query, key and value, of the output projection or of `up`, or x̂",
             off_by(lambda B, T, d, H, L, V: -L * B * T * d)),
            ("a block has 17 B T d and not 16: no addition keeps anything, and no input is kept twice",
             off_by(lambda B, T, d, H, L, V: L * B * T * d)),
            ("the input of `up` is d wide, and its result 4 d", off_by(lambda B, T, d, H, L, V: 3 * L * B * T * d)),
            ("the final norm is missing: x̂ and 1/σ", off_by(lambda B, T, d, H, L, V: -B * T * d - B * T)),
            ("after the blocks B T d numbers are missing: x̂ of the final norm, or the head's input", off_by(lambda B, T, d, H, L, V: -B * T * d)),
            ("after the blocks three more are kept: the final norm, the head's input and the probabilities",
             off_by(lambda B, T, d, H, L, V: -2 * B * T * d - B * T - B * T * V)),
            ("the embedding keeps the tokens' numbers, and no vectors", off_by(lambda B, T, d, H, L, V: B * T * d)),
            ("GELU's derivative and the input of `down` are 4 d wide",
             off_by(lambda B, T, d, H, L, V: -6 * L * B * T * d)),
            ("a row of the MLP is d wide where it is 4 d wide: GELU and the input of `down`, which is GELU's result, are both 4 d",
             off_by(lambda B, T, d, H, L, V: -3 * L * B * T * d)),
            ("GELU keeps 4 d numbers per position, its input or its derivative, and `down` keeps its input: one of the two is missing",
             off_by(lambda B, T, d, H, L, V: -4 * L * B * T * d)),
            ("GELU needs one array of 4 d, not two: its derivative alone, or its input alone",
             off_by(lambda B, T, d, H, L, V: 4 * L * B * T * d)),
            ("the cross-entropy keeps B T V numbers once: its gradient needs the probabilities, and not the logits besides",
             off_by(lambda B, T, d, H, L, V: B * T * V)),
            ("the final norm and the head's input exist once, after the blocks, and not in each of them",
             off_by(lambda B, T, d, H, L, V: (L - 1) * (2 * B * T * d + B * T))),
            ("the final norm, the head and the probabilities exist once, after the blocks, and not in each of them",
             off_by(lambda B, T, d, H, L, V: (L - 1) * (2 * B * T * d + B * T + B * T * V))),
            ("the probabilities of the cross-entropy are missing: B T V", off_by(lambda B, T, d, H, L, V: -B * T * V)),
            ("the probabilities of the cross-entropy exist once, not in every block",
             off_by(lambda B, T, d, H, L, V: (L - 1) * B * T * V)),
            ("the final norm and the head's input, which come after the blocks, are missing",
             off_by(lambda B, T, d, H, L, V: -2 * B * T * d - B * T)),
            ("a block has 18 B T d and not 16: query, key and value share one input, and the two additions keep nothing", off_by(lambda B, T, d, H, L, V: 2 * L * B * T * d)),
            ("this is in bytes; count numbers", lambda *a: 4 * reference_activations(*a)),
            ("this counts one block; there are L", lambda B, T, d, H, L, V: reference_activations(B, T, d, H, 1, V))),
        tolerance=0,
        hints=("Which arrays does a block keep for its backward pass, one row of the table after another? What is kept "
               "once, after all blocks?",
               "Most arrays are (B, T, d), two are (B, T, 4d). The norms' 1/σ are (B, T), attention's weights about half "
               "of (B, H, T, T), the probabilities (B, T, V).",
               "In a block: 2 + 1 + 3 + 1 + 1 + 4 + 4 = 16 times B T d, then 2 B T and B H T (T + 64)/2. Multiply by L; "
               "add 2 B T d + B T + B T V.")),
    Exercise(
        name="full.bug", title="Find the bug: an AdamW that diverges", stars=2,
        reference=reference_bug, cases=bug_cases,
        special=(
            ("one step", lambda rng: bug_cases(rng, n=1)),),
        mistakes=(
            ("m and v are one array with two names: what is written into m is in v, too", shared),
            ("m and v begin anew in each step; they remember the gradients of all steps", lambda *a: steps(*a, fresh=True)),
            ("t stays 1: the corrections belong to the first step alone", lambda *a: steps(*a, one=True)),
            ("t counts from 1: the first step divides by 1 − β", lambda *a: steps(*a, first=2)),
            ("the corrections of m and v are missing", lambda *a: steps(*a, a=uncorrected, b=uncorrected)),
            ("each step uses the last gradient; step t belongs to gradient t", lambda w, gradients, *a: steps(w, gradients[-1:] * len(gradients), *a)),
            ("this is one step: there is one for each gradient", lambda w, gradients, *a: steps(w, gradients[:1], *a)),
            ("the gradients come in reverse order", lambda w, gradients, *a: steps(w, gradients[::-1], *a)),
            ("the decay went into the gradient: that is Adam with an L2 penalty, not AdamW", lambda *a: steps(*a, coupled=True)),
            ("the learning rate is missing in the decay, which is lr · λ · w", lambda *a: steps(*a, with_lr=False)),
            ("the decay is taken from the w that the step has moved; it belongs to the old w", lambda *a: steps(*a, after=True)),
            ("the decay is missing", lambda *a: steps(*a[:-1], 0.0))),
        symptoms=(
            ("v became negative, and a negative number has no root: are m and v one array with two names?",
             lambda got, expected, args: np.isnan(got).any()),),
        tolerance=1e-9,
        hints=("What are `m`, `v` and `w` after the first step? Print them, and the caller's array, too. Do they agree with what "
               "you compute by hand?",
               "w and each gradient have one shape, and so have m and v: two arrays. The result is a new array.",
               "Write m, v = np.zeros_like(w), np.zeros_like(w), or m = beta1 * m + … without *=. Write w = w - …, and leave "
               "the lines between as they are.")),
    Exercise(
        name="full.recompute", title="Compute the activations again", stars=2,
        reference=reference_recompute, cases=recompute_cases,
        special=(
            ("32 blocks in parts of four, of a model of 7 billion parameters",
             lambda rng: (1, 512, 4096, 32, 32, 32000, 4)),
            ("a vocabulary so large that the head needs the most",
             lambda rng: (*recompute_cases(rng, 200_000),))),
        mistakes=(
            ("one input is kept for each part of k blocks, and not for each block",
             lambda *a: recompute(*a, inputs=lambda L, k: L)),
            ("the part that is walked needs its own input, too: L/k inputs are kept, and not L/k − 1",
             lambda *a: recompute(*a, inputs=lambda L, k: L // k - 1)),
            ("there are L/k parts, and each keeps one input: not k, and not one more",
             lambda *a: recompute(*a, inputs=lambda L, k: k)),
            ("there are L/k parts, and each keeps one input: not k, and not one more",
             lambda *a: recompute(*a, inputs=lambda L, k: L // k + 1)),
            ("one part is walked at a time: the arrays of k blocks are there, and not those of all",
             lambda *a: recompute(*a, more=lambda k, block, head: max(a[4] * block, head))),
            ("a part has k blocks, and there are L/k parts",
             lambda *a: recompute(*a, more=lambda k, block, head: max(a[4] // k * block, head))),
            ("the inputs of all parts are there at both moments, also at the end of the forward pass",
             lambda B, T, d, H, L, V, k: max(recompute(B, T, d, H, L, V, k, more=lambda k, block, head: k * block), 2 * B * T * d + B * T + B * T * V)),
            ("this is the smaller moment: the peak is the larger one", lambda *a: recompute(*a, more=lambda k, block, head: min(k * block, head))),
            ("the head's moment has B T d and B T of the final norm, B T d of the head, and B T V",
             lambda B, T, d, H, L, V, k: recompute(B, T, d, H, L, V, k, more=lambda k, block, head: max(k * block, B * T * V))),
            ("the head's moment has B T d and B T of the final norm, B T d of the head, and B T V",
             lambda B, T, d, H, L, V, k: recompute(B, T, d, H, L, V, k, more=lambda k, block, head: max(k * block, B * T * (d + V)))),
            ("attention's weights are missing: B H T (T + 64)/2 in each block",
             lambda B, T, d, H, L, V, k: recompute(B, T, d, H, L, V, k, more=lambda k, block, head: max(k * (16 * B * T * d + 2 * B * T), head))),
            ("1/σ of the layer norms is missing: 2 B T in each block",
             lambda B, T, d, H, L, V, k: recompute(B, T, d, H, L, V, k, more=lambda k, block, head: max(k * (block - 2 * B * T), head))),
            ("the inputs of the parts are missing: L/k of them", lambda *a: recompute(*a, inputs=lambda L, k: 0)),
            ("a part has k blocks, whose arrays are all there while it is walked",
             lambda *a: recompute(*a, more=lambda k, block, head: max(block, head))),
            ("the head's arrays are gone when the blocks are computed again: take the larger of the two, not the sum",
             lambda *a: recompute(*a, more=lambda k, block, head: k * block + head)),
            ("the head also needs its arrays, and may need more than a part does: take the larger of the two",
             lambda *a: recompute(*a, more=lambda k, block, head: k * block)),
            ("this is in bytes; count numbers", lambda *a: 4 * reference_recompute(*a))),
        tolerance=0,
        hints=("What is in memory when the forward pass is done? And what while a part of k blocks is walked backwards?",
               "L/k inputs of B T d numbers stay all the time. Beside them are either the head's arrays, 2 B T d + B T + B T V, "
               "or those of k blocks, never both.",
               "block = 16 * B * T * d + 2 * B * T + B * H * T * (T + 64) // 2. The peak is L // k * B * T * d + max(k * block, head).")),
)
