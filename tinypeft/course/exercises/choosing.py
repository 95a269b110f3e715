"""Lesson 15: memory, quality, the interval of a difference, an honest choice, export to PEFT."""
import numpy as np

from ...study.experiment import half_width
from ..exercise import Exercise
from ..slips import slip, slips, which

__all__ = ["EXERCISES"]


# -- choosing.memory -------------------------------------------------------------------------------
def memory(n_base, base_bits, n_trained):
    base, trained = n_base * base_bits / 8, n_trained * (4 + 4 + 2 * 4)
    if slip("bits are not bytes: divide by 8"): base = n_base * base_bits
    if slip("a trained number takes 16 bytes; yours takes 12: did you forget the number itself, "
            "its gradient or one of two moments?"):
        trained = n_trained * 12
    if slip("a trained number takes 16 bytes; yours takes 4: where are its gradient and AdamW's "
            "two moments?"):
        trained = n_trained * 4
    if slip("a trained number takes 16 bytes; yours takes 8: are AdamW's two moments missing?"):
        trained = n_trained * 8
    match which("frozen weights have no gradient and no moments", 2):
        case 1: base = n_base * (base_bits / 8 + 12)
        case 2: base = n_base * 16
    if slip("what is trained lies beside the base, which is whole: do not subtract it"):
        base = (n_base - n_trained) * base_bits / 8
    if slip("base_bits may be a fraction, such as 4.127, or less than 8: divide "
            "by 8 with /, not with //"):
        base = n_base * (base_bits // 8)
    if slip("a trained number takes 4 bytes, whatever the base's bits are"):
        trained = n_trained * (base_bits / 8 + 12)
    if slip("this is in GiB; return bytes"): return (base + trained) / 2**30
    if slip("this is in GB; return bytes"): return (base + trained) / 1e9
    return base + trained


def _sizes(rng):
    n = int(rng.integers(10**6, 10**7))
    bits = float(rng.choice([4.127, 4.5, 8.0]))
    return n, bits, int(rng.integers(10**4, 10**5))


# -- choosing.pareto -------------------------------------------------------------------------------
def pareto(cost, loss):
    if slip("a low loss is good: the frontier is where no other point is cheaper and lower"):
        loss = -loss
    if slip("a low cost is good"): cost = -cost
    no_worse = (cost[:, None] <= cost) & (loss[:, None] <= loss)   # [i, j]: i is no worse than j
    better = (cost[:, None] < cost) | (loss[:, None] < loss)
    if slip("two equal points do not dominate each other: one of the two comparisons has to be "
            "strict"):
        better = ~np.eye(len(cost), dtype=bool)
    if slip("equal in one and better in the other is enough to dominate"):
        better = (cost[:, None] < cost) & (loss[:, None] < loss)
    if slip("of two points of equal cost the one with the higher loss is dominated: look at "
            "equally cheap points, too"):
        better = cost[:, None] < cost
    if slip("of two points of equal loss the one with the higher cost is dominated: look at "
            "equally good points, too"):
        better = loss[:, None] < loss
    frontier = ~(no_worse & better).any(axis=0)
    if slip("these are the dominated ones; the frontier consists of the others"): return ~frontier
    if slip("this is the single best point; every point that no other beats in "
            "both belongs to the frontier"):
        return loss == loss.min()
    if slip("the running minimum goes over points in the order of cost; sort "
            "first, and undo the sorting"):
        return loss <= np.minimum.accumulate(loss)
    if slip("of equal points both stay: a sweep in the order of cost that asks for a lower loss "
            "than all before drops the second"):
        return _first_of_equals(cost, loss)
    if slip("the mask is in the order of cost; put it back into the points' own order"):
        return frontier[np.argsort(cost)]
    return frontier


def _first_of_equals(cost, loss):
    """Sweep once in the order of cost, then loss, and keep what is lower than all before."""
    kept, lowest = np.zeros(len(cost), bool), np.inf
    for i in np.lexsort((loss, cost)):
        kept[i] = loss[i] < lowest
        lowest = min(lowest, loss[i])
    return kept


def _are_places(got, expected, args):
    return np.asarray(got).dtype.kind in "iu" and np.ndim(got) == 1


def _five_points(rng):
    cost = np.array([1.0, 4.0, 3.0, 5.0, 2.0])
    return cost, np.array([3.0, 2.2, 2.7, 2.3, 2.5])


def _equal_points(rng):
    return np.array([1.0, 2.0, 2.0, 4.0]), np.array([3.0, 2.0, 2.5, 2.0])


def _twice_the_same(rng):
    return np.array([1.0, 1.0, 2.0]), np.array([2.0, 2.0, 3.0])


def _one_dearer(rng):
    return np.array([1.0, 2.0]), np.array([2.0, 2.0])


def _points(rng):
    n = int(rng.integers(8, 14))
    cost = rng.permutation(np.arange(1.0, n + 1))
    return cost, 3 - 0.05 * cost + rng.normal(0, 0.15, n)


# -- choosing.apart --------------------------------------------------------------------------------
def apart(a):
    signs = np.resize([1.0, -1.0], len(a))
    return a - half_width(a) + a.std(ddof=1) * signs / 3


def _told_apart(b, args):
    """Do both intervals overlap, while that of the differences, which vary, does not contain 0?"""
    (a,) = args
    b = np.asarray(b, float)
    overlap = abs(a.mean() - b.mean()) < half_width(a) + half_width(b)
    d = a - b
    varied = d.std(ddof=1) >= 0.25 * a.std(ddof=1)
    return bool(np.isfinite(b).all() and overlap and varied and abs(d.mean()) > half_width(d))


def _equal_differences(got, expected, args):
    d = args[0] - got
    return bool(np.ptp(d) <= 1e-6 * np.abs(d).max())


def _do_not_vary(got, expected, args):
    return bool(np.std(args[0] - got) < 0.25 * np.std(args[0]))


def _do_not_overlap(got, expected, args):
    (a,) = args
    return bool(abs(a.mean() - got.mean()) >= half_width(a) + half_width(got))


def _contain_zero(got, expected, args):
    d = args[0] - got
    return bool(abs(d.mean()) <= half_width(d))


def _is_a(got, expected, args):
    return np.array_equal(got, args[0])


def _alike(x, y):
    """Do two rows of numbers go up and down together?"""
    return np.corrcoef(x, y)[0, 1] > 0.8


def _apart_as(b, a):
    """Would b be told apart if its numbers stood in this order?"""
    return _alike(a, b) and abs((a - b).mean()) > half_width(a - b)


def _of_another_seed(got, expected, args):
    return any(_apart_as(np.roll(got, k), args[0]) for k in (-1, 1))


def _sorted(got, expected, args):
    (a,) = args
    places = a.argsort().argsort()
    return any(_alike(row, np.sort(a)) and _apart_as(row[places], a) for row in (got, got[::-1]))


def _turned_over(got, expected, args):
    return _alike(got, -args[0])


def _one_number(got, expected, args):
    return np.std(got) <= 0.1 * np.std(args[0])


def _losses(rng):
    return (2.5 + rng.normal(0, 0.1, int(rng.integers(5, 9))),)


def _five(rng):
    return (np.array([2.40, 2.55, 2.47, 2.61, 2.52]),)


# -- choosing.fuse ---------------------------------------------------------------------------------
def fuse(A_q, B_q, A_v, B_v):
    if slip("the query's pair and the value's are exchanged"):
        A_q, B_q, A_v, B_v = A_v, B_v, A_q, B_q
    r, d = A_q.shape
    A = np.concatenate([A_q, A_v])
    B = np.zeros((3 * d, len(A)))
    B[:d, :r] = B_q
    B[2 * d:, r:] = B_v
    if slip("the rows of c_attn are query, key, value: put B_v into the last third and "
            "leave the key's third zero"):
        B[d:2 * d, r:], B[2 * d:] = B_v, 0
    if slip("the key's third is zero; you have repeated B_v there"): B[d:2 * d, r:] = B_v
    if slip("B_q meets the rows of A_q alone, and B_v those of A_v: the "
            "other blocks of B are zero"):
        B[:d, r:], B[2 * d:, :r] = B_v, B_q
    if slip("A_q's rows come first in A, because B_q's columns come first in B"):
        A = np.concatenate([A_v, A_q])
    if slip("this computes the right change, but in another order: A_q's rows and "
            "B_q's columns come first"):
        A, B = np.concatenate([A_v, A_q]), np.roll(B, len(A_v), axis=1)
    if slip("the query's rows are the first third, and the value's the last; yours are exchanged"):
        B = np.concatenate(np.split(B, 3)[::-1])
    if slip("return (A, B), in this order"): return B, A
    return A, B


def _pairs(rng):
    r, s, d = rng.integers(2, 4), rng.integers(4, 6), rng.integers(6, 9)
    shapes = (r, d), (d, r), (s, d), (d, s)
    return tuple(map(rng.standard_normal, shapes))


def _one_A(got, expected, args):
    A_q, B_q, A_v, _ = args
    return np.shape(got) != np.shape(expected) == (len(A_q) + len(A_v), len(B_q))


def _same_function(fn, rng):
    A_q, B_q, A_v, B_v = pairs = _pairs(rng)
    A, B = fn(*pairs)
    x = rng.standard_normal(A_q.shape[1])
    query, value = B_q @ (A_q @ x), B_v @ (A_v @ x)
    return np.allclose(B @ (A @ x), np.concatenate([query, 0 * query, value]))


def _other_shape(got, expected, args):
    return np.shape(got) != np.shape(expected)


# -- choosing.bug ----------------------------------------------------------------------------------
def honest(validation, test):
    if slip("the two texts are exchanged: the validation text chooses, and the loss on "
            "the test text is reported"):
        validation, test = test, validation
    if slip("the rates are axis 0, the seeds axis 1: take the means over axis 1"):
        validation, test = validation.T, test.T
    means = validation.mean(axis=1)
    if slip("the rate is still chosen on the test text: this is the fault above"):
        means = test.mean(axis=1)
    if slip("the validation text alone chooses; yours looks at the test text, too"):
        means = (validation + test).mean(axis=1)
    if slip("a rate is judged by the mean over its seeds, not by their median"):
        means = np.median(validation, axis=1)
    lucky = which("the best seed is luck, too: take the mean over seeds before you compare "
                  "rates", 2)
    if lucky: means = validation.min(axis=1)
    i = int(means.argmin())
    if slip("of the losses, the least is best, not the largest"): i = int(means.argmax())
    if slip("argmin without an axis counts through all rates and seeds; take the mean over the "
            "seeds first"):
        i = int(validation.argmin())
    reported = test[i].mean()
    match lucky:
        case 2: reported = test[i, validation[i].argmin()]
    if slip("report the loss of the rate that was chosen, not the least of all"):
        reported = test.mean(axis=1).min()
    if slip("the loss on the validation text is too good, because it chose the rate; return "
            "the loss on the test text"):
        reported = validation[i].mean()
    if slip("the test loss is a mean over seeds, not that of the best seed"):
        reported = test[i].min()
    each = which("one rate is chosen for all seeds; yours chooses one for each seed", 3)
    if each: reported = test[validation.argmin(0), np.arange(test.shape[1])].mean()
    match each:
        case 2: i = int(validation[:, 0].argmin())
        case 3: i = int(validation.min(axis=1).argmin())
    return i, float(reported)


THROUGH = ("argmin without an axis counts through all rates and seeds; take the mean over the "
           "seeds first")


def _three_rates(rng):
    validation = np.array([[2.1, 2.3], [2.4, 2.6], [2.9, 2.7]])
    return validation, np.array([[2.6, 2.4], [2.3, 2.1], [2.8, 2.8]])


def _one_rate(rng):
    return np.array([[2.0, 2.2]]), np.array([[2.4, 2.5]])


def _rates(rng):
    """Draw rates that are equally good, in another order on the test than on the validation text.
    """
    shape = int(rng.integers(5, 9)), int(rng.integers(3, 6))
    return 2.4 + rng.normal(0, 0.1, shape), 2.5 + rng.normal(0, 0.1, shape)


def _of_each_seed(got, expected, args):
    return np.shape(got) == args[1].shape[1:]


def _places_of_each_seed(got, expected, args):
    return _of_each_seed(got, expected, args) and np.asarray(got).dtype.kind in "iu"


# -- choosing.seeds --------------------------------------------------------------------------------
def seeds(d, half):
    from scipy.stats import t
    sd = d.std(ddof=1)
    if slip("the spread of n values divides by n − 1: ddof=1"): sd = d.std()

    def width(n):
        quantile = t.ppf(0.975, n - 1)
        if slip("the quantile of t depends on the new number of seeds, not on that of the pilot"):
            quantile = t.ppf(0.975, len(d) - 1)
        match which("few seeds need Student's t, not the normal distribution's 1.96", 2):
            case 1: quantile = 1.96
            case 2: quantile = 1.959963984540054
        if slip("the interval has two sides: the quantile is 0.975"): quantile = t.ppf(0.95, n - 1)
        if slip("t has n − 1 degrees of freedom, not n"): quantile = t.ppf(0.975, n)
        if slip("the half width falls with √n, not with n"): return quantile * sd / n
        return quantile * sd / np.sqrt(n)
    n = 2
    if slip("begin at 2, not at the pilot's number of seeds"): n = len(d)
    while width(n) > half: n += 1
    if slip("this is one seed more than needed: the half width may be "
            "equal to the wish or smaller"):
        return n + 1
    if slip("this is how many more there must be than in the pilot; return the number of all"):
        return n - len(d)
    return n


def _pilot(rng):
    d = rng.normal(0.01, 0.02, int(rng.integers(4, 6)))
    return d, float(d.std(ddof=1) * rng.uniform(0.28, 0.4))


EXERCISES = (
    Exercise(
        name="choosing.memory", title="Bytes before the first activation", stars=1,
        kind="count",
        example=lambda rng: (1000, 4.0, 10),
        reference=memory,
        cases=_sizes,
        special=(
            ("nothing is trained: the weights alone", lambda rng: (8000, 4.0, 0)),
            ("7 billion weights in 16 bits, 20 million trained",
             lambda rng: (7_000_000_000, 16.0, 20_000_000))),
        mistakes=slips(memory),
        tolerance=2e-6,                                  # a byte more or less: bytes are whole
        hints=("How many numbers of 4 bytes does training with AdamW keep for one trained number?",
               "All are numbers. The result is in bytes; a byte has 8 bits.",
               "n_base * base_bits / 8 for the base. For each trained number: 4 (itself) + 4 "
               "(gradient) + 2 * 4 (moments).")),
    Exercise(
        name="choosing.pareto", title="The Pareto frontier", stars=2,
        kind="design",
        reference=pareto, cases=_points,
        special=(
            ("five points, three on the frontier", _five_points),
            ("two points of equal cost, and two of equal loss", _equal_points),
            ("cost 1, 1, 2 and loss 2, 2, 3: the first two points are equal", _twice_the_same),
            ("cost 1, 2 and loss 2, 2: the second point is as good, and dearer", _one_dearer)),
        mistakes=slips(pareto),
        symptoms=(
            ("these are the places of points; return a boolean array with one entry for each "
             "point: true on the frontier",
             _are_places),),
        tolerance=0,
        hints=("When does point i dominate point j? What if the two are equal?",
               "cost[:, None] <= cost is (n, n): its entry [i, j] compares point i with "
               "point j. The result is (n,).",
               "i dominates j if its cost is ≤, its loss is ≤, and one of the two is <. The "
               "frontier is where no i does: ~dominates.any(0).")),
    Exercise(
        name="choosing.apart", title="They overlap, and can be told apart", stars=3,
        kind="design",
        reference=apart, cases=_losses,
        goal=("the intervals of a and of b overlap, that of a − b does not contain 0, and the "
              "differences vary by a quarter of what a varies, or by more", _told_apart),
        special=(
            ("five losses", _five),),
        symptoms=(
            ("b is the same as a: there is no difference", _is_a),
            ("all of b is one number, so the differences vary as much as a does", _one_number),
            ("the two intervals do not overlap: the means are too far apart", _do_not_overlap),
            ("yours goes down where a goes up, so the differences vary twice as much",
             _turned_over),
            ("the seeds are paired: b[k] must go up and down with a[k], and yours is sorted",
             _sorted),
            ("the seeds are paired: b[k] must go up and down with a[k], and yours goes with "
             "another seed's",
             _of_another_seed),
            ("the differences are all equal, which no two trainings are: let them vary a little",
             _equal_differences),
            ("the differences vary by less than a quarter of what a varies: real ones vary more",
             _do_not_vary),
            ("the interval of a − b contains 0: the differences vary too much for their mean",
             _contain_zero)),
        hints=("What must b do, seed by seed, so that the differences vary much less than a does?",
               "a and b are (n,). half_width(x) is half of the interval of a mean.",
               "b = a − half_width(a), plus a third of a's standard deviation with signs that "
               "change from seed to seed.")),
    Exercise(
        name="choosing.fuse", title="Two adapters fused for PEFT", stars=2,
        kind="design",
        reference=fuse, cases=_pairs,
        invariants=(
            ("B A x is [B_q A_q x; 0; B_v A_v x]", _same_function),),
        mistakes=slips(fuse),
        symptoms=(
            ("A has both A_q and A_v, one below the other: (r + s, d)", _one_A),
            ("B has 3d rows (query, key, value) and one column for each row of A", _other_shape)),
        tolerance=1e-9,
        hints=("Which rows of the output of c_attn are the query, the key and the value? Which "
               "columns of B belong to A_q?",
               "A is (r + s, d). B is (3 d, r + s), and most of it is 0.",
               "A = np.concatenate([A_q, A_v]). In a B of zeros, rows 0 … d and columns 0 … r "
               "are B_q, and the last d rows and last s columns are B_v.")),
    Exercise(
        name="choosing.bug", title="Find the bug: a winner by luck", stars=2,
        kind="fault",
        reference=honest, cases=_rates,
        special=(
            ("the rate that is best on the validation text is second on the test", _three_rates),
            ("one rate alone", _one_rate)),
        mistakes=slips(honest),
        symptoms=(
            ("one rate is chosen for all seeds; yours chooses one for each seed",
             _places_of_each_seed),
            ("this is the loss of each seed; return one number, their mean", _of_each_seed)),
        errors=(
            ("out of bounds", THROUGH),),
        tolerance=1e-9,
        hints=("Which numbers may decide which rate is taken, and which number may "
               "only be read at the end?",
               "Both arrays are (rates, seeds). A mean over seeds is (rates,). The result "
               "is an index and a number.",
               "i = validation.mean(1).argmin(). Return i and test[i].mean().")),
    Exercise(
        name="choosing.seeds", title="How many seeds?", stars=2,
        kind="design",
        reference=seeds, cases=_pilot,
        special=(
            ("a wish so modest that two seeds suffice",
             lambda rng: (np.array([0.1, 0.2, 0.3]), 10.0)),
            ("so few seeds that one degree of freedom more changes the answer",
             lambda rng: (np.array([0.1, 0.2, 0.3]), 0.5)),
            ("differences without any spread", lambda rng: (np.array([0.1, 0.1, 0.1]), 0.01))),
        mistakes=slips(seeds),
        tolerance=0,
        hints=("Two things in the half width depend on the number of seeds. Which?",
               "All are numbers, except d (n,). The result is an integer, at least 2.",
               "sd = d.std(ddof=1). Begin with n = 2, and raise n while t.ppf(0.975, n - 1) "
               "* sd / np.sqrt(n) > half.")),
)
