"""Lesson 03: AdamW, one step and many, and the memory that training needs."""
from functools import partial

import numpy as np

from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]


# -- full.adamw ------------------------------------------------------------------------------------
def adamw(w, g, m, v, t, lr, beta1, beta2, eps, decay):
    old = m, v
    coupled = slip("the decay went into the gradient: that is Adam with an L2 penalty, not AdamW")
    if coupled: g = g + decay * w
    if slip("β₁ belongs to m, and β₂ to v"): beta1, beta2 = beta2, beta1
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    if slip("the new gradient has the weight 1 − β₁ in m: m = β₁ m + (1 − β₁) g"):
        m = beta1 * old[0] + g
    if slip("β multiplies the old mean, and 1 − β the new number"):
        m, v = (1 - beta1) * old[0] + beta1 * g, (1 - beta2) * old[1] + beta2 * g * g
    if slip("the new number enters the mean with the factor 1 − β"):
        m, v = beta1 * old[0] + g, beta2 * old[1] + g * g
    if slip("v is the mean of g², not of |g|"): v = beta2 * old[1] + (1 - beta2) * abs(g)
    c1, c2 = 1 - beta1 ** t, 1 - beta2 ** t                       # since m and v began at 0
    if slip("m and v are not corrected for having started at 0"): c1, c2 = 1, 1
    if slip("v is not corrected for having started at 0"): c2 = 1
    if slip("m is not corrected for having started at 0"): c1 = 1
    if slip("t counts from 1: use t as it is given, not t + 1"):
        c1, c2 = 1 - beta1 ** (t + 1), 1 - beta2 ** (t + 1)
    if slip("the corrections are those of step t, not those of the first step"):
        c1, c2 = 1 - beta1, 1 - beta2
    if slip("β₁ belongs to the correction of m, and β₂ to that of v"): c1, c2 = c2, c1
    if slip("divide by 1 − βᵗ, do not multiply with it"): c1, c2 = 1 / c1, 1 / c2
    if slip("the corrections are 1 − βᵗ, and not (1 − β)ᵗ: t is the power of β alone"):
        c1, c2 = (1 - beta1) ** t, (1 - beta2) ** t
    m_hat, v_hat = m / c1, v / c2
    if slip("the step goes along m̂, and not along g"): m_hat = g
    if slip("the step used the old m and v; update them first"):
        m_hat, v_hat = old[0] / c1, old[1] / c2
    divisor = np.sqrt(v_hat) + eps
    if slip("ε is inside the root; it stands outside the root"): divisor = np.sqrt(v_hat + eps)
    if slip("ε is missing: the step is divided by √v̂ + ε"): divisor = np.sqrt(v_hat)
    if slip("v is divided without its root: the step is m̂/(√v̂ + ε)"): divisor = v_hat + eps
    if slip("ε is added to √v̂, which is corrected; in your form, with one rate α_t for both "
            "corrections, it is added to √v"):
        divisor = np.sqrt(v_hat) + eps / np.sqrt(c2)
    step, shrink = lr * m_hat / divisor, lr * decay * w
    if slip("the learning rate is missing in the step"): step = m_hat / divisor
    if slip("the sign is wrong: w moves against the gradient"): step = -step
    if slip("the decay is not divided by √v̂"): shrink = shrink / divisor
    if coupled or slip("the decay is missing: lr · λ · w is subtracted as well"): shrink = 0
    if slip("the decay is subtracted: it makes w smaller"): shrink = -shrink
    if slip("the decay belongs to the old w; yours is taken after the step"):
        shrink = lr * decay * (w - step)
    if slip("the learning rate is missing in the decay, which is lr · λ · w"): shrink = decay * w
    w = w - shrink - step
    if slip("m and v are returned divided by their corrections; return them as they are, because "
            "the next step corrects them anew"):
        return w, m_hat, v_hat
    if slip("the order is (w, m, v)"): return w, v, m
    return w, m, v


def adamw_cases(rng, t=None, eps=1e-3):
    w, g, m = rng.standard_normal((3, 4, 3))
    t = int(rng.integers(2, 9)) if t is None else t
    if t == 1:
        m, v = np.zeros((4, 3)), np.zeros((4, 3))
    else:
        m, v = 0.1 * m, 0.01 + 0.1 * rng.random((4, 3))
    return w, g, m, v, t, 0.01, 0.9, 0.99, eps, 0.3


def undecayed_first_step(rng):
    return *adamw_cases(rng, t=1)[:-1], 0.0


# -- full.bug --------------------------------------------------------------------------------------
def mended(w, gradients, lr, beta1, beta2, decay):
    if slip("each step uses the last gradient; step t belongs to gradient t"):
        gradients = gradients[-1:] * len(gradients)
    if slip("this is one step: there is one for each gradient"): gradients = gradients[:1]
    if slip("the gradients come in reverse order"): gradients = gradients[::-1]
    coupled = slip("the decay went into the gradient: that is Adam with an L2 penalty, not AdamW")
    m, v = np.zeros_like(w), np.zeros_like(w)              # two arrays, and not one with two names
    for t, g in enumerate(gradients, 1):
        if slip("m and v begin anew in each step; they remember the gradients of all steps"):
            m, v = np.zeros_like(w), np.zeros_like(w)
        if slip("t stays 1: the corrections belong to the first step alone"): t = 1
        if slip("t counts from 1: the first step divides by 1 − β"): t += 1
        if coupled: g = g + decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        c1, c2 = 1 - beta1 ** t, 1 - beta2 ** t
        if slip("the corrections of m and v are missing"): c1, c2 = 1, 1
        if slip("the corrections are 1 − βᵗ, and not (1 − β)ᵗ: t is the power of β alone"):
            c1, c2 = (1 - beta1) ** t, (1 - beta2) ** t
        divisor = np.sqrt(v / c2) + 1e-8
        if slip("ε is inside the root; it stands outside the root"):
            divisor = np.sqrt(v / c2 + 1e-8)
        step, shrink = lr * m / c1 / divisor, lr * decay * w
        if slip("the learning rate is missing in the decay, which is lr · λ · w"):
            shrink = decay * w
        if slip("the decay is taken from the w that the step has moved; it belongs to the old w"):
            shrink = lr * decay * (w - step)
        if coupled or slip("the decay is missing"): shrink = 0
        w = w - shrink - step
    return w


def bug_cases(rng, n=None, size=1.0):
    n = int(rng.integers(3, 6)) if n is None else n
    gradients = list(size * rng.standard_normal((n, 4, 3)))
    return rng.standard_normal((4, 3)), gradients, 0.01, 0.9, 0.999, 0.1


# -- full.states -----------------------------------------------------------------------------------
def states(N, n, weight_bytes, frozen_bytes):
    master = 4 if weight_bytes < 4 else 0
    frozen = (N - n) * frozen_bytes
    if slip("the trained weights are also counted as frozen ones"): frozen = N * frozen_bytes
    if slip("the frozen weights are missing"): frozen = 0
    match which("gradients, m and v are for the n trained weights only", 4):
        case 1: frozen += (N - n) * (weight_bytes + 8 + master)
        case 2: frozen += (N - n) * (weight_bytes + 8)
        case 3: frozen += (N - n) * weight_bytes
        case 4: frozen += (N - n) * 8
    if slip("only trained weights have a master copy"): frozen += (N - n) * master
    if slip("below 4 bytes, every trained weight has a float32 master copy besides"): master = 0
    if slip("every trained weight of less than 4 bytes has a master copy, and "
            "not those of 2 bytes alone"):
        master = 4 if weight_bytes == 2 else 0
    if slip("you counted a master copy in float32; there the weight itself is the master copy"):
        master = 4
    if slip("the master copy takes 4 bytes, because it is in float32"):
        master = weight_bytes if weight_bytes < 4 else 0
    gradient, moments = weight_bytes, 8
    if slip("m and v are in float32, 4 bytes each, whatever the weight takes"):
        moments = 2 * weight_bytes
    if slip("Adam keeps two numbers of 4 bytes per weight, m and v"): moments = 4
    if slip("Adam's m and v are missing, 4 bytes each"): moments = 0
    if slip("a frozen weight takes frozen_bytes, not weight_bytes"):
        frozen = (N - n) * weight_bytes
    if slip("a gradient takes weight_bytes, as the weight does"): gradient = 4
    if slip("there are two errors: the frozen weights are N − n, and a trained weight has a "
            "gradient"):
        frozen, gradient = N * frozen_bytes, 0
    if slip("the gradient is missing"): gradient = 0
    total = frozen + n * (weight_bytes + gradient + master + moments)
    if slip("this is in bits; count bytes"): total = 8 * total
    return total


def states_cases(rng):
    N = 2 * int(rng.integers(5_000, 50_000))             # even: half a byte each makes whole bytes
    n = 2 * int(rng.integers(50, N // 2))
    weight_bytes = int(rng.choice([1, 2, 4]))
    return N, n, weight_bytes, float(rng.choice([0.5, 1, 2]))


def cut_to_whole(got, expected, args):
    return float(got).is_integer() and abs(got - expected) < 1


# -- full.activations ------------------------------------------------------------------------------
def activations(B, T, d, H, L, V):
    vectors, norms = 2 + 1 + 3 + 1 + 1 + 4 + 4, 2        # a token's arrays of d numbers, and 1/σ
    queries = 2 * H                                      # attention's two numbers for each
    if slip("you counted one layer norm in a block; there are two layer norms"):
        vectors, norms = 15, 1
    if slip("1/σ of the blocks' layer norms is missing: each of the two "
            "keeps one number per token"):
        norms = 0
    if slip("attention's two numbers for each query of a head are missing: 2 B H T"): queries = 0
    if slip("attention's weights are counted, T² in each head: they are computed again, and not "
            "kept"):
        queries = H * T
    if slip("attention's weights are counted, T² in each head, beside the two numbers for each "
            "query: they are computed again, and not kept"):
        queries = H * T + 2 * H
    if slip("attention keeps two numbers for each query in every head, and not in one head"):
        queries = 2
    if slip("attention keeps two numbers for each query of a head, the largest score and the "
            "sum: one of the two is missing"):
        queries = H
    if slip("B T d numbers are missing in each block: an input of query, key and value, of the "
            "output projection or of `up`, or x̂"):
        vectors = 15
    if slip("B T d numbers are too many in each block: no addition keeps anything, and no input "
            "is kept twice"):
        vectors = 17
    if slip("the input of `up` is d wide, and its result 4 d"): vectors = 19
    if slip("GELU's derivative and the input of `down` are 4 d wide"): vectors = 10
    if slip("a row of the MLP is d wide where it is 4 d wide: GELU and the input of `down`, "
            "which is GELU's result, are both 4 d"):
        vectors = 13
    if slip("GELU keeps 4 d numbers per position, its input or its derivative, and `down` keeps "
            "its input: one of the two is missing"):
        vectors = 12
    if slip("4 d numbers per position are too many: GELU needs one array of 4 d, its derivative "
            "or its input, and an addition needs nothing"):
        vectors = 20
    if slip("2 B T d numbers are too many in each block: query, key and value share one input, "
            "and the two additions keep nothing"):
        vectors = 18
    last_vectors, last_norms, last_rows = 2, 1, 1        # the final norm, the head, probabilities
    if slip("1/σ of the layer norms is missing: one number per token and norm"):
        norms, last_norms = 0, 0
    if slip("1/σ of the final norm is missing: one number per token"): last_norms = 0
    if slip("a norm keeps x̂ and 1/σ, and not the mean besides"): norms, last_norms = 4, 2
    if slip("the final norm is missing: x̂ and 1/σ"): last_vectors, last_norms = 1, 0
    if slip("after the blocks B T d numbers are missing: x̂ of the final "
            "norm, or the head's input"):
        last_vectors = 1
    if slip("after the blocks three more are kept: the final norm, the head's "
            "input and the probabilities"):
        last_vectors, last_norms, last_rows = 0, 0, 0
    if slip("the embedding keeps the tokens' numbers, and no vectors"): last_vectors = 3
    if slip("the cross-entropy keeps B T V numbers once: its gradient needs the probabilities, "
            "and not the logits besides"):
        last_rows = 2
    if slip("the final norm and the head's input exist once, after the "
            "blocks, and not in each of them"):
        vectors, norms, last_vectors, last_norms = 18, 3, 0, 0
    if slip("the probabilities of the cross-entropy are missing: B T V"): last_rows = 0
    if slip("the final norm and the head's input, which come after the blocks, are missing"):
        last_vectors, last_norms = 0, 0
    block = B * T * (vectors * d + norms + queries)
    head = B * T * (last_vectors * d + last_norms + last_rows * V)
    if slip("the final norm, the head and the probabilities exist once, after the "
            "blocks, and not in each of them"):
        head = L * head
    if slip("the probabilities of the cross-entropy exist once, not in every block"):
        head += (L - 1) * B * T * V
    if slip("the probabilities are one for each token of the vocabulary at each place: B T V, "
            "and not B T + V"):
        head = B * T * (2 * d + 1) + B * T + V
    if slip("this counts one block; there are L"): L = 1
    if slip("this is in bytes; count numbers"): return 4 * (L * block + head)
    return L * block + head


def activations_cases(rng):
    low, high = (1, 30, 3, 2), (6, 300, 7, 9)
    B, T, H, L = rng.integers(low, high).tolist()
    d = H * int(rng.integers(5, 20))
    return B, T, d, H, L, int(rng.integers(100, 900))


# -- full.recompute --------------------------------------------------------------------------------
def recompute(B, T, d, H, L, V, k):
    block = 16 * B * T * d + 2 * B * T + 2 * B * H * T
    head = (B * T * d + B * T) + B * T * d + B * T * V
    if slip("attention's two numbers for each query of a head are missing: 2 B H T in each block"):
        block -= 2 * B * H * T
    if slip("1/σ of the layer norms is missing: 2 B T in each block"): block -= 2 * B * T
    match which("the head's moment has B T d and B T of the final norm, B T d of the head, and "
                "B T V", 2):
        case 1: head = B * T * V
        case 2: head = B * T * d + B * T * V
    parts, walked = L // k, k
    if slip("one input is kept for each part of k blocks, and not for each block"): parts = L
    if slip("the part that is walked needs its own input, too: L/k inputs "
            "are kept, and not L/k − 1"):
        parts = L // k - 1
    match which("there are L/k parts, and each keeps one input: not k, and not one more", 2):
        case 1: parts = k
        case 2: parts = L // k + 1
    if slip("the inputs of the parts are missing: L/k of them"): parts = 0
    if slip("one part is walked at a time: the arrays of k blocks are there, and not those of all"):
        walked = L
    if slip("a part has k blocks, and there are L/k parts"): walked = L // k
    if slip("a part has k blocks, whose arrays are all there while it is walked"): walked = 1
    inputs, part = parts * B * T * d, walked * block
    if slip("the inputs of all parts are there at both moments, also at "
            "the end of the forward pass"):
        return max(inputs + part, head)
    if slip("the inputs of all parts are there at both moments, also during the walk through one"):
        return max(part, inputs + head)
    peak = inputs + max(part, head)
    if slip("this is the smaller moment: the peak is the larger one"):
        peak = inputs + min(part, head)
    if slip("the head's arrays are gone when the blocks are computed again: take the "
            "larger of the two, not the sum"):
        peak = inputs + part + head
    if slip("the head also needs its arrays, and may need more than a part does: "
            "take the larger of the two"):
        peak = inputs + part
    if slip("this is in bytes; count numbers"): peak = 4 * peak
    return peak


def recompute_cases(rng, vocabulary=None):
    low, high = (1, 30, 3, 2, 3), (6, 300, 7, 5, 6)
    B, T, H, k, parts = rng.integers(low, high).tolist()
    V = int(rng.integers(100, 900)) if vocabulary is None else vocabulary
    return B, T, H * int(rng.integers(5, 20)), H, k * parts, V, k


EXERCISES = (
    Exercise(
        name="full.adamw", title="One step of AdamW", stars=3,
        kind="design",
        reference=adamw, cases=adamw_cases,
        special=(
            ("the first step: m and v were 0, and nothing decays", undecayed_first_step),),
        mistakes=slips(adamw),
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
        reference=states, cases=states_cases,
        special=(
            ("everything trained in mixed precision: 16 bytes each",
             lambda rng: (1000, 1000, 2, 2)),
            ("everything trained in float32: 16 bytes each", lambda rng: (1000, 1000, 4, 4)),
            ("one frozen weight of 4 bits: half a byte", lambda rng: (1, 0, 2, 0.5)),
            ("trained weights of 1 byte, with a master copy of 4", lambda rng: (1000, 1000, 1, 1))),
        mistakes=slips(states),
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
        reference=activations, cases=activations_cases,
        special=(
            ("the base, with 4 rows of 128 tokens", lambda rng: (4, 128, 128, 4, 5, 1024)),),
        mistakes=slips(activations),
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
        reference=mended, cases=bug_cases,
        special=(
            ("one step, with gradients of about a thousandth",
             partial(bug_cases, n=1, size=1e-3)),),
        mistakes=slips(mended),
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
        reference=recompute, cases=recompute_cases,
        special=(
            ("32 blocks in parts of four, of a model of 7 billion parameters",
             lambda rng: (1, 512, 4096, 32, 32, 32000, 4)),
            ("a vocabulary so large that the head needs the most",
             lambda rng: (*recompute_cases(rng, 200_000),))),
        mistakes=slips(recompute),
        tolerance=0,
        hints=("What is in memory when the forward pass is done? And what while a part of k "
               "blocks is walked backwards?",
               "L/k inputs of B T d numbers stay all the time. Beside them are either the head's "
               "arrays, 2 B T d + B T + B T V, or those of k blocks, never both.",
               "block = 16 * B * T * d + 2 * B * T + 2 * B * H * T. The peak is L // k * B * T * d "
               "+ max(k * block, head).")),
)
