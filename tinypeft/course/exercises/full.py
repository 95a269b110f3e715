"""Lesson 03: AdamW, one step and many, and the memory that training needs."""
import operator
from functools import partial

import numpy as np

from ...engine import plain
from ..exercise import Exercise

__all__ = ["EXERCISES"]


# -- AdamW ---------------------------------------------------------------------------------------
def reference_adamw(w, g, m, v, t, lr, beta1, beta2, eps, decay):
    return plain.adamw(w, g, m, v, t, lr, beta1, beta2, eps, decay)


def fading(beta, old, new):
    return beta * old + (1 - beta) * new


def power(beta, t):
    """Return the divisor of a mean that began at 0."""
    return 1 - beta ** t


def next_power(beta, t):
    return 1 - beta ** (t + 1)


def first_power(beta, t):
    return 1 - beta


def inverse(beta, t):
    return 1 / power(beta, t)


def power_of_rest(beta, t):
    return (1 - beta) ** t


def uncorrected(beta, t):
    return 1


def root(v, b, eps):
    """Return the divisor of the step. b: the correction of v."""
    return np.sqrt(v / b) + eps


def eps_inside(v, b, eps):
    return np.sqrt(v / b + eps)


def late_root(v, b, eps):
    return np.sqrt(v / b) + eps / np.sqrt(b)


def adamw(w, g, m, v, t, lr, beta1, beta2, eps, decay, mean=fading, correct=power,
          of_m=None, of_v=None, root=root, square=np.square, coupled=False, with_lr=True,
          after=False, rate=True, momentum=True, adaptive=False):
    """Make one step with a mistake. of_m, of_v: the corrections of m and v, if not `correct`."""
    if coupled:
        g = g + decay * w
    m = mean(beta1, m, g)
    v = mean(beta2, v, square(g))
    m_hat = m / (of_m or correct)(beta1, t)
    divisor = root(v, (of_v or correct)(beta2, t), eps)
    step = (lr if rate else 1) * (m_hat if momentum else g) / divisor
    shrink = (lr if with_lr else 1) * decay / (divisor if adaptive else 1)
    decayed = w - step if after else w
    return w - (0 if coupled else shrink) * decayed - step, m, v


def returns_corrected(*args):
    w, m, v = adamw(*args)
    t, _, beta1, beta2 = args[4:8]
    return w, m / power(beta1, t), v / power(beta2, t)


def returns_v_first(*args):
    w, m, v = adamw(*args)
    return w, v, m


def exchanges_betas(w, g, m, v, t, lr, beta1, beta2, *others):
    return adamw(w, g, m, v, t, lr, beta2, beta1, *others)


def exchanges_corrections(w, g, m, v, t, lr, beta1, beta2, *others):
    def of_m(beta, t):
        return power(beta2, t)
    def of_v(beta, t):
        return power(beta1, t)
    return adamw(w, g, m, v, t, lr, beta1, beta2, *others, of_m=of_m, of_v=of_v)


def adds_the_step(w, g, m, v, t, lr, *others):
    moved = adamw(w, g, m, v, t, lr, *others[:-1], 0.0)[0]
    _, m, v = adamw(w, g, m, v, t, lr, *others)
    return 2 * w - moved - lr * others[-1] * w, m, v


def steps_by_old_means(w, g, m, v, t, lr, beta1, beta2, eps, decay):
    _, new_m, new_v = adamw(w, g, m, v, t, lr, beta1, beta2, eps, decay)
    m_hat = m / power(beta1, t)
    return w - lr * decay * w - lr * m_hat / root(v, power(beta2, t), eps), new_m, new_v


def adamw_cases(rng, t=None, eps=1e-3):
    w, g, m = rng.standard_normal((3, 4, 3))
    t = int(rng.integers(2, 9)) if t is None else t
    if t == 1:
        m, v = np.zeros((4, 3)), np.zeros((4, 3))
    else:
        m, v = 0.1 * m, 0.01 + 0.1 * rng.random((4, 3))
    return w, g, m, v, t, 0.01, 0.9, 0.99, eps, 0.3


def _whole_gradient(w, g, m, v, t, lr, beta1, *others):
    """Take m = β₁ m + g, without the factor 1 − β₁."""
    def square(x):
        return np.square((1 - beta1) * x)
    return adamw(w, g / (1 - beta1), m, v, t, lr, beta1, *others, square=square)


def undecayed_first_step(rng):
    return *adamw_cases(rng, t=1)[:-1], 0.0


# -- many steps ----------------------------------------------------------------------------------
def steps(w, gradients, lr, beta1, beta2, decay, first=1, fresh=False, one=False, **options):
    """Return w after a step for each gradient; the options are for the mistakes."""
    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients, first):
        if fresh:
            m = v = np.zeros_like(w)
        if one:
            t = 1
        w, m, v = adamw(w, g, m, v, t, lr, beta1, beta2, 1e-8, decay, **options)
    return w


def reference_bug(w, gradients, lr, beta1, beta2, decay):
    return steps(w, gradients, lr, beta1, beta2, decay)


def bug_cases(rng, n=None, size=1.0):
    n = int(rng.integers(3, 6)) if n is None else n
    gradients = list(size * rng.standard_normal((n, 4, 3)))
    return rng.standard_normal((4, 3)), gradients, 0.01, 0.9, 0.999, 0.1


def last_gradient(w, gradients, *a):
    return steps(w, gradients[-1:] * len(gradients), *a)


# -- memory --------------------------------------------------------------------------------------
def master(weight_bytes):
    return 4 if weight_bytes < 4 else 0


def states(N, n, weight_bytes, frozen_bytes, frozen=operator.sub, idle=lambda b: 0,
           gradient=lambda b: b, copy=master, moments=lambda b: 8):
    """Count the bytes of frozen weights, and of trained ones with all that belongs to them.

    The options make the mistakes. frozen: the number of frozen weights. idle: the bytes beside a
    frozen weight.
    """
    b = weight_bytes
    trained = b + gradient(b) + copy(b) + moments(b)
    return frozen(N, n) * frozen_bytes + n * trained + (N - n) * idle(b)


def reference_states(N, n, weight_bytes, frozen_bytes):
    return states(N, n, weight_bytes, frozen_bytes)


ONLY_TRAINED = "gradients, m and v are for the n trained weights only"


def states_cases(rng):
    N = 2 * int(rng.integers(5_000, 50_000))             # even: half a byte each makes whole bytes
    n = 2 * int(rng.integers(50, N // 2))
    weight_bytes = int(rng.choice([1, 2, 4]))
    return N, n, weight_bytes, float(rng.choice([0.5, 1, 2]))


def two_a_query(H, T):
    return 2 * H


def kept(B, T, d, H, V, vectors=16, norms=2, attention=two_a_query, rows=0,
         last_vectors=2, last_norms=1, last_rows=1):
    """Count the numbers that a block keeps, and those that are kept after all blocks.

    A vector has d numbers for each token, a norm has one (1/σ), and a row has V. The numbers of
    them make the mistakes. attention: what it keeps for each token beside Q, K and V.
    """
    block = B * T * (vectors * d + norms + attention(H, T) + rows * V)
    return block, B * T * (last_vectors * d + last_norms + last_rows * V)


def activations(B, T, d, H, L, V, **numbers):
    block, head = kept(B, T, d, H, V, **numbers)
    return L * block + head


def reference_activations(B, T, d, H, L, V):
    return activations(B, T, d, H, L, V)


def activations_cases(rng):
    low, high = (1, 30, 3, 2), (6, 300, 7, 9)
    B, T, H, L = rng.integers(low, high).tolist()
    d = H * int(rng.integers(5, 20))
    return B, T, d, H, L, int(rng.integers(100, 900))


def recompute(B, T, d, H, L, V, k, inputs=operator.floordiv, blocks=lambda L, k: k,
              peak=max, **numbers):
    """Return the peak if k blocks are computed again at a time; the options are for the mistakes.

    inputs: of how many parts the input is kept. blocks: how many are computed again at a time.
    """
    block, head = kept(B, T, d, H, V, **numbers)
    return inputs(L, k) * B * T * d + peak(blocks(L, k) * block, head)


def reference_recompute(B, T, d, H, L, V, k):
    return recompute(B, T, d, H, L, V, k)


def part_alone(part, head):
    return part


def head_without_inputs(B, T, d, H, L, V, k):
    block, head = kept(B, T, d, H, V)
    return max(L // k * B * T * d + k * block, head)


def walk_without_inputs(B, T, d, H, L, V, k):
    block, head = kept(B, T, d, H, V)
    return max(k * block, L // k * B * T * d + head)


def recompute_cases(rng, vocabulary=None):
    low, high = (1, 30, 3, 2, 3), (6, 300, 7, 5, 6)
    B, T, H, k, parts = rng.integers(low, high).tolist()
    V = int(rng.integers(100, 900)) if vocabulary is None else vocabulary
    return B, T, H * int(rng.integers(5, 20)), H, k * parts, V, k


def cut_to_whole(got, expected, args):
    return float(got).is_integer() and abs(got - expected) < 1


REST = "the corrections are 1 − βᵗ, and not (1 − β)ᵗ: t is the power of β alone"

EXERCISES = (
    Exercise(
        name="full.adamw", title="One step of AdamW", stars=3,
        kind="design",
        reference=reference_adamw, cases=adamw_cases,
        special=(
            ("the first step: m and v were 0, and nothing decays", undecayed_first_step),),
        mistakes=(
            ("m and v are not corrected for having started at 0",
             partial(adamw, correct=uncorrected)),
            ("the new gradient has the weight 1 − β₁ in m: m = β₁ m + (1 − β₁) g",
             _whole_gradient),
            ("v is not corrected for having started at 0", partial(adamw, of_v=uncorrected)),
            ("m is not corrected for having started at 0", partial(adamw, of_m=uncorrected)),
            ("t counts from 1: use t as it is given, not t + 1",
             partial(adamw, correct=next_power)),
            ("the corrections are those of step t, not those of the first step",
             partial(adamw, correct=first_power)),
            ("β₁ belongs to the correction of m, and β₂ to that of v", exchanges_corrections),
            ("divide by 1 − βᵗ, do not multiply with it", partial(adamw, correct=inverse)),
            (REST, partial(adamw, correct=power_of_rest)),
            ("β multiplies the old mean, and 1 − β the new number",
             partial(adamw, mean=lambda beta, old, new: fading(1 - beta, old, new))),
            ("the new number enters the mean with the factor 1 − β",
             partial(adamw, mean=lambda beta, old, new: beta * old + new)),
            ("β₁ belongs to m, and β₂ to v", exchanges_betas),
            ("the decay went into the gradient: that is Adam with an L2 penalty, not AdamW",
             partial(adamw, coupled=True)),
            ("the decay is not divided by √v̂", partial(adamw, adaptive=True)),
            ("the decay is missing: lr · λ · w is subtracted as well",
             lambda *a: adamw(*a[:-1], 0.0)),
            ("the decay is subtracted: it makes w smaller", lambda *a: adamw(*a[:-1], -a[-1])),
            ("the decay belongs to the old w; yours is taken after the step",
             partial(adamw, after=True)),
            ("the learning rate is missing in the decay, which is lr · λ · w",
             partial(adamw, with_lr=False)),
            ("the learning rate is missing in the step", partial(adamw, rate=False)),
            ("the step goes along m̂, and not along g", partial(adamw, momentum=False)),
            ("ε is inside the root; it stands outside the root",
             partial(adamw, root=eps_inside)),
            ("ε is missing: the step is divided by √v̂ + ε",
             partial(adamw, root=lambda v, b, eps: np.sqrt(v / b))),
            ("v is divided without its root: the step is m̂/(√v̂ + ε)",
             partial(adamw, root=lambda v, b, eps: v / b + eps)),
            ("ε is added to √v̂, which is corrected; in your form, with one rate α_t for both "
             "corrections, it is added to √v",
             partial(adamw, root=late_root)),
            ("v is the mean of g², not of |g|", partial(adamw, square=abs)),
            ("m and v are returned divided by their corrections; return them as they are, because "
             "the next step corrects them anew",
             returns_corrected),
            ("the order is (w, m, v)", returns_v_first),
            ("the sign is wrong: w moves against the gradient", adds_the_step),
            ("the step used the old m and v; update them first", steps_by_old_means)),
        tolerance=1e-9,
        hints=("Why are m and v divided by something at the start? Does the decay go into the "
               "gradient, or straight to the weight?",
               "w, g, m and v have one shape; the others are numbers. Return "
               "(w, m, v) as new arrays.",
               "m = beta1 * m + (1 - beta1) * g, and v the same with beta2 and g**2. m_hat "
               "= m / (1 - beta1**t), and v_hat likewise. The new w is w - lr * decay * w "
               "- lr * m_hat / (np.sqrt(v_hat) + eps). Do not write m *= beta1, which "
               "changes the caller's array.")),
    Exercise(
        name="full.states", title="Memory for weights, gradients and optimizer", stars=1,
        kind="count",
        reference=reference_states, cases=states_cases,
        special=(
            ("everything trained in mixed precision: 16 bytes each",
             lambda rng: (1000, 1000, 2, 2)),
            ("everything trained in float32: 16 bytes each", lambda rng: (1000, 1000, 4, 4)),
            ("one frozen weight of 4 bits: half a byte", lambda rng: (1, 0, 2, 0.5)),
            ("trained weights of 1 byte, with a master copy of 4", lambda rng: (1000, 1000, 1, 1))),
        mistakes=(
            ("the trained weights are also counted as frozen ones",
             partial(states, frozen=lambda N, n: N)),
            ("the frozen weights are missing", partial(states, frozen=lambda N, n: 0)),
            (ONLY_TRAINED, partial(states, idle=lambda b: b + 8 + master(b))),
            (ONLY_TRAINED, partial(states, idle=lambda b: b + 8)),
            (ONLY_TRAINED, partial(states, idle=lambda b: b)),
            (ONLY_TRAINED, partial(states, idle=lambda b: 8)),
            ("only trained weights have a master copy", partial(states, idle=master)),
            ("below 4 bytes, every trained weight has a float32 master copy besides",
             partial(states, copy=lambda b: 0)),
            ("every trained weight of less than 4 bytes has a master copy, and "
             "not those of 2 bytes alone",
             partial(states, copy=lambda b: 4 * (b == 2))),
            ("you counted a master copy in float32; there the weight itself is the master copy",
             partial(states, copy=lambda b: 4)),
            ("the master copy takes 4 bytes, because it is in float32",
             partial(states, copy=lambda b: b * (b < 4))),
            ("m and v are in float32, 4 bytes each, whatever the weight takes",
             partial(states, moments=lambda b: 2 * b)),
            ("Adam keeps two numbers of 4 bytes per weight, m and v",
             partial(states, moments=lambda b: 4)),
            ("Adam's m and v are missing, 4 bytes each", partial(states, moments=lambda b: 0)),
            ("a frozen weight takes frozen_bytes, not weight_bytes",
             lambda N, n, b, f: states(N, n, b, b)),
            ("a gradient takes weight_bytes, as the weight does",
             partial(states, gradient=lambda b: 4)),
            ("there are two errors: the frozen weights are N − n, and a trained weight has a "
             "gradient", partial(states, frozen=lambda N, n: N, gradient=lambda b: 0)),
            ("the gradient is missing", partial(states, gradient=lambda b: 0)),
            ("this is in bits; count bytes", lambda *a: 8 * states(*a))),
        symptoms=(
            ("a frozen weight may take half a byte: do not cut the result to a whole number",
             cut_to_whole),),
        tolerance=1e-9,
        hints=("What is kept for a frozen weight, and what for a trained one? When does a trained "
               "weight need a second copy?",
               "All are bytes. N − n weights are frozen. Each of the n others has "
               "itself, a gradient, m and v.",
               "(N - n) * frozen_bytes + n * (2 * weight_bytes + 8), and 4 * n "
               "more if weight_bytes < 4.")),
    Exercise(
        name="full.activations", title="Memory for activations", stars=2,
        kind="count",
        reference=reference_activations, cases=activations_cases,
        special=(
            ("the base, with 4 rows of 128 tokens", lambda rng: (4, 128, 128, 4, 5, 1024)),),
        mistakes=(
            ("you counted one layer norm in a block; there are two layer norms",
             partial(activations, vectors=15, norms=1)),
            ("1/σ of the layer norms is missing: one number per token and norm",
             partial(activations, norms=0, last_norms=0)),
            ("1/σ of the blocks' layer norms is missing: each of the two "
             "keeps one number per token",
             partial(activations, norms=0)),
            ("1/σ of the final norm is missing: one number per token",
             partial(activations, last_norms=0)),
            ("attention's two numbers for each query of a head are missing: 2 B H T",
             partial(activations, attention=lambda H, T: 0)),
            ("attention's weights are counted, T² in each head: they are computed again, and not "
             "kept",
             partial(activations, attention=lambda H, T: H * T)),
            ("attention's weights are counted, T² in each head, beside the two numbers for each "
             "query: they are computed again, and not kept",
             partial(activations, attention=lambda H, T: H * T + 2 * H)),
            ("attention keeps two numbers for each query in every head, and not in one head",
             partial(activations, attention=lambda H, T: 2)),
            ("attention keeps two numbers for each query of a head, the largest score and the "
             "sum: one of the two is missing",
             partial(activations, attention=lambda H, T: H)),
            ("a norm keeps x̂ and 1/σ, and not the mean besides",
             partial(activations, norms=4, last_norms=2)),
            ("B T d numbers are missing in each block: an input of query, key and value, of the "
             "output projection or of `up`, or x̂",
             partial(activations, vectors=15)),
            ("B T d numbers are too many in each block: no addition keeps anything, and no input "
             "is kept twice",
             partial(activations, vectors=17)),
            ("the input of `up` is d wide, and its result 4 d", partial(activations, vectors=19)),
            ("the final norm is missing: x̂ and 1/σ",
             partial(activations, last_vectors=1, last_norms=0)),
            ("after the blocks B T d numbers are missing: x̂ of the final "
             "norm, or the head's input",
             partial(activations, last_vectors=1)),
            ("after the blocks three more are kept: the final norm, the head's "
             "input and the probabilities",
             partial(activations, last_vectors=0, last_norms=0, last_rows=0)),
            ("the embedding keeps the tokens' numbers, and no vectors",
             partial(activations, last_vectors=3)),
            ("GELU's derivative and the input of `down` are 4 d wide",
             partial(activations, vectors=10)),
            ("a row of the MLP is d wide where it is 4 d wide: GELU and the input of `down`, "
             "which is GELU's result, are both 4 d",
             partial(activations, vectors=13)),
            ("GELU keeps 4 d numbers per position, its input or its derivative, and `down` keeps "
             "its input: one of the two is missing",
             partial(activations, vectors=12)),
            ("4 d numbers per position are too many: GELU needs one array of 4 d, its derivative "
             "or its input, and an addition needs nothing",
             partial(activations, vectors=20)),
            ("the cross-entropy keeps B T V numbers once: its gradient needs the probabilities, "
             "and not the logits besides",
             partial(activations, last_rows=2)),
            ("the final norm and the head's input exist once, after the "
             "blocks, and not in each of them",
             partial(activations, vectors=18, norms=3, last_vectors=0, last_norms=0)),
            ("the final norm, the head and the probabilities exist once, after the "
             "blocks, and not in each of them",
             lambda B, T, d, H, L, V: L * sum(kept(B, T, d, H, V))),
            ("the probabilities of the cross-entropy are missing: B T V",
             partial(activations, last_rows=0)),
            ("the probabilities are one for each token of the vocabulary at each place: B T V, "
             "and not B T + V",
             lambda B, T, d, H, L, V: activations(B, T, d, H, L, V, last_rows=0) + B * T + V),
            ("the probabilities of the cross-entropy exist once, not in every block",
             partial(activations, rows=1, last_rows=0)),
            ("the final norm and the head's input, which come after the blocks, are missing",
             partial(activations, last_vectors=0, last_norms=0)),
            ("2 B T d numbers are too many in each block: query, key and value share one input, "
             "and the two additions keep nothing",
             partial(activations, vectors=18)),
            ("this is in bytes; count numbers", lambda *a: 4 * reference_activations(*a)),
            ("this counts one block; there are L",
             lambda B, T, d, H, L, V: activations(B, T, d, H, 1, V))),
        tolerance=0,
        hints=("Which arrays does a block keep for its backward pass, one row of the table after "
               "another? What is kept once, after all blocks?",
               "Most arrays are (B, T, d), two are (B, T, 4d). The norms' 1/σ are (B, T), "
               "attention's two numbers for each query (B, H, T), the probabilities (B, T, V).",
               "In a block: 2 + 1 + 3 + 1 + 1 + 4 + 4 = 16 times B T d, then 2 B T and 2 B H T. "
               "Multiply by L; add 2 B T d + B T + B T V.")),
    Exercise(
        name="full.bug", title="Find the bug: an AdamW that diverges", stars=2,
        kind="fault",
        reference=reference_bug, cases=bug_cases,
        special=(
            ("one step, with gradients of about a thousandth",
             partial(bug_cases, n=1, size=1e-3)),),
        mistakes=(
            ("m and v begin anew in each step; they remember the gradients of all steps",
             partial(steps, fresh=True)),
            ("t stays 1: the corrections belong to the first step alone", partial(steps, one=True)),
            ("t counts from 1: the first step divides by 1 − β", partial(steps, first=2)),
            ("the corrections of m and v are missing", partial(steps, correct=uncorrected)),
            (REST, partial(steps, correct=power_of_rest)),
            ("ε is inside the root; it stands outside the root", partial(steps, root=eps_inside)),
            ("each step uses the last gradient; step t belongs to gradient t", last_gradient),
            ("this is one step: there is one for each gradient",
             lambda w, gradients, *a: steps(w, gradients[:1], *a)),
            ("the gradients come in reverse order",
             lambda w, gradients, *a: steps(w, gradients[::-1], *a)),
            ("the decay went into the gradient: that is Adam with an L2 penalty, not AdamW",
             partial(steps, coupled=True)),
            ("the learning rate is missing in the decay, which is lr · λ · w",
             partial(steps, with_lr=False)),
            ("the decay is taken from the w that the step has moved; it belongs to the old w",
             partial(steps, after=True)),
            ("the decay is missing", lambda *a: steps(*a[:-1], 0.0))),
        symptoms=(
            ("t counts from 1: with t = 0 the corrections 1 − βᵗ are 0",
             lambda got, expected, args: np.isnan(got).all()),
            ("v became negative, and a negative number has no root: are m and v "
             "one array with two names?",
             lambda got, expected, args: np.isnan(got).any()),),
        tolerance=1e-9,
        hints=("What are `m`, `v` and `w` after the first step? Print them, and the caller's "
               "array, too. Do they agree with what you compute by hand?",
               "w and each gradient have one shape, and so have m and v: two arrays. "
               "The result is a new array.",
               "Write m, v = np.zeros_like(w), np.zeros_like(w), or m = beta1 * m + … without "
               "*=. Write w = w - …, and leave the lines between as they are.")),
    Exercise(
        name="full.recompute", title="Compute the activations again", stars=2,
        kind="count",
        reference=reference_recompute, cases=recompute_cases,
        special=(
            ("32 blocks in parts of four, of a model of 7 billion parameters",
             lambda rng: (1, 512, 4096, 32, 32, 32000, 4)),
            ("a vocabulary so large that the head needs the most",
             lambda rng: (*recompute_cases(rng, 200_000),))),
        mistakes=(
            ("one input is kept for each part of k blocks, and not for each block",
             partial(recompute, inputs=lambda L, k: L)),
            ("the part that is walked needs its own input, too: L/k inputs "
             "are kept, and not L/k − 1",
             partial(recompute, inputs=lambda L, k: L // k - 1)),
            ("there are L/k parts, and each keeps one input: not k, and not one more",
             partial(recompute, inputs=lambda L, k: k)),
            ("there are L/k parts, and each keeps one input: not k, and not one more",
             partial(recompute, inputs=lambda L, k: L // k + 1)),
            ("one part is walked at a time: the arrays of k blocks are there, and not those of all",
             partial(recompute, blocks=lambda L, k: L)),
            ("a part has k blocks, and there are L/k parts",
             partial(recompute, blocks=operator.floordiv)),
            ("the inputs of all parts are there at both moments, also at "
             "the end of the forward pass",
             head_without_inputs),
            ("the inputs of all parts are there at both moments, also during the walk through one",
             walk_without_inputs),
            ("this is the smaller moment: the peak is the larger one",
             partial(recompute, peak=min)),
            ("the head's moment has B T d and B T of the final norm, B T d of the head, and B T V",
             partial(recompute, last_vectors=0, last_norms=0)),
            ("the head's moment has B T d and B T of the final norm, B T d of the head, and B T V",
             partial(recompute, last_vectors=1, last_norms=0)),
            ("attention's two numbers for each query of a head are missing: 2 B H T in each block",
             partial(recompute, attention=lambda H, T: 0)),
            ("1/σ of the layer norms is missing: 2 B T in each block", partial(recompute, norms=0)),
            ("the inputs of the parts are missing: L/k of them",
             partial(recompute, inputs=lambda L, k: 0)),
            ("a part has k blocks, whose arrays are all there while it is walked",
             partial(recompute, blocks=lambda L, k: 1)),
            ("the head's arrays are gone when the blocks are computed again: take the "
             "larger of the two, not the sum",
             partial(recompute, peak=operator.add)),
            ("the head also needs its arrays, and may need more than a part does: "
             "take the larger of the two",
             partial(recompute, peak=part_alone)),
            ("this is in bytes; count numbers", lambda *a: 4 * reference_recompute(*a))),
        tolerance=0,
        hints=("What is in memory when the forward pass is done? And what while a part of k "
               "blocks is walked backwards?",
               "L/k inputs of B T d numbers stay all the time. Beside them are either the head's "
               "arrays, 2 B T d + B T + B T V, or those of k blocks, never both.",
               "block = 16 * B * T * d + 2 * B * T + 2 * B * H * T. The peak is L // k * B * T * d "
               "+ max(k * block, head).")),
)
