"""Right and wrong solutions of lesson 01b's exercises."""
import numpy as np


def differs(upstream=None, direction=None, eps=1e-5, within=1e-7, of_dx=True, flip=False, times=12, seed=17):
    """Both sides of equation (1), by hand. of_dx: the difference is compared with ‖vjp(u)‖ ‖v‖, and not with 1."""
    def autograd_catches(f, vjp, x):
        rng, wrong = np.random.default_rng(seed), False
        for _ in range(times):
            u = np.ones(x.shape) if upstream == "ones" else rng.standard_normal(x.shape)
            v = np.ones(x.shape) if direction == "ones" else rng.standard_normal(x.shape)
            slope = (f(x + eps * v) - f(x - eps * v)) / (2 * eps)
            gap = abs(np.sum(vjp(x, u) * v) - np.sum(u * slope))
            wrong |= bool(gap > within * (np.linalg.norm(vjp(x, u)) * np.linalg.norm(v) if of_dx else 1))
        return not wrong if flip else wrong
    return autograd_catches


def is_close(f, vjp, x):
    """One direction, with NumPy's own limits."""
    u, v = np.random.default_rng(17).standard_normal((2, *x.shape))
    return not np.isclose(np.vdot(vjp(x, u), v), np.vdot(u, f(x + 1e-5 * v) - f(x - 1e-5 * v)) / 2e-5)


def number_by_number(f, vjp, x):
    """The whole Jacobian by finite differences, one number of x after another."""
    u, dx = np.random.default_rng(3).standard_normal(x.shape), np.empty(x.shape)
    for i in np.ndindex(x.shape):
        e = np.zeros(x.shape)
        e[i] = 1e-6
        dx[i] = np.vdot(u, f(x + e) - f(x - e)) / 2e-6
    return np.linalg.norm(dx - vjp(x, u)) > 1e-7 * np.linalg.norm(dx)


def relative(f, vjp, x):
    """Forty directions, and the worst of them beside the largest of both sides."""
    u, v = np.random.default_rng(5).standard_normal((2, 40, *x.shape))
    left = np.array([np.vdot(vjp(x, a), b) for a, b in zip(u, v, strict=True)])
    right = [np.vdot(a, f(x + 1e-5 * b) - f(x - 1e-5 * b)) / 2e-5 for a, b in zip(u, v, strict=True)]
    return bool(abs(left - right).max() > 1e-7 * abs(left).max())


def somewhere(f, vjp, x):
    """At points of its own, not at the x that is given."""
    return differs()(f, vjp, np.random.default_rng(8).standard_normal(x.shape))


def one_number(f, vjp, x):
    """v moves the first number alone."""
    u, v = np.random.default_rng(0).standard_normal(x.shape), np.zeros(x.shape)
    v.flat[0] = 1
    dx = vjp(x, u)
    right = np.vdot(u, f(x + 1e-5 * v) - f(x - 1e-5 * v)) / 2e-5
    return bool(abs(np.vdot(dx, v) - right) > 1e-7 * np.linalg.norm(dx))


def marked(below=True, above=True, start=True, leaves=True, all_of=False):
    """Two passes over the values, or one of them."""
    def gradients_needed(uses, trained):
        n, some = len(uses), all if all_of else any
        depends, asked = [start and k in trained for k in range(n)], [k == n - 1 for k in range(n)]
        for k in range(n):
            near = [depends[j] or j in trained for j in uses[k]]
            depends[k] = depends[k] or bool(near) and some(near)
        for k in range(n - 1, -1, -1):
            for j in uses[k]: asked[j] = asked[j] or asked[k]
        return [(depends[k] or not below) and (asked[k] or not above) and (leaves or bool(uses[k])) for k in range(n)]
    return gradients_needed


def by_sets(uses, trained):
    """From the last value down, and from the trained ones up, over what uses what."""
    users = {k: {i for i, parents in enumerate(uses) if k in parents} for k in range(min(len(uses), 40))}
    users = users if len(uses) <= 40 else {j: {j + 1} for j in range(len(uses))}
    def reached(starts, step):
        found, waiting = set(starts), list(starts)
        while waiting:
            for other in step(waiting.pop()):
                if other not in found:
                    found.add(other)
                    waiting.append(other)
        return found
    up = reached(trained, lambda k: users.get(k, ()))
    down = reached([len(uses) - 1], lambda k: uses[k])
    return [k in up and k in down for k in range(len(uses))]


def recursive(uses, trained):
    def depends(k): return k in trained or any(depends(j) for j in uses[k])
    return [depends(k) and n for k, n in enumerate(marked(below=False)(uses, trained))]


def lowest(uses, trained):
    return [n and k >= min(trained, default=len(uses)) for k, n in enumerate(marked(below=False)(uses, trained))]


def near(uses, trained):
    return [(k in trained or any(j in trained for j in uses[k])) and n
            for k, n in enumerate(marked(below=False)(uses, trained))]


def central(f, x, eps): return (f(x + eps) - f(x - eps)) / (2 * eps)


WRONG = {
    "gradients.catches": [
        (differs(upstream="ones"), "draw u at random"),
        (one_number, "one number or one row alone"),
        (differs(within=1e-2), "accept no more than 1e-7 of"),
        (differs(within=3e-4), "no more than 1e-7"),
        (differs(within=1e-5), "a few millionths"),
        (is_close, "nearly blind"),
        (differs(times=1, seed=0), "draw eight or more"),
        (lambda f, vjp, x: all(differs(times=1, seed=k)(f, vjp, x) for k in range(8)), "one that differs is enough"),
        (differs(of_dx=False), "rounding grows with"),
        (differs(direction="ones"), "draw v at random"),
        (differs(within=1e-14), "that rounding does not exceed"),
        (somewhere, "at points of your own"),
        (differs(within=0), "compared with a tolerance"),
        (differs(eps=0.5), "is ε small"),
        (differs(flip=True), "wrong way round"),
        (lambda f, vjp, x: False, "you accept a wrong vjp"),
        (lambda f, vjp, x: True, "you refuse a right vjp"),
        (lambda f, vjp, x: True if vjp(x, x) > f(x) else False, "single numbers")],
    "gradients.needed": [
        (lambda uses, trained: [n or k in trained for k, n in enumerate(marked()(uses, trained))], "gets no gradient"),
        (marked(above=False), "is never reached"),
        (marked(below=False), "from no trained leaf"),
        (marked(leaves=False), "needs its own gradient"),
        (marked(all_of=True), "one parent"),
        (lowest, "above the lowest trained leaf"),
        (lambda uses, trained: [k >= min(trained or [0]) for k in range(len(uses))], "need not depend on it"),
        (lambda uses, trained: marked()(uses, trained)[:-1] + [True], "the last value, too"),
        (lambda uses, trained: [n and (k in trained or len(uses[k]) > 0) for k, n in enumerate(marked(below=False)(uses, trained))],
         "even if the walk passes by"),
        (near, "has to come through all of it"),
        (lambda uses, trained: [k in trained for k in range(len(uses))], "those of all values between"),
        (lambda uses, trained: [k for k, n in enumerate(marked()(uses, trained)) if n], "not the numbers of those"),
        (recursive, "do not follow them"),
        (lambda uses, trained: [k in t for k, t in enumerate(trained)], "is a list of numbers")],
    "gradients.fourth": [
        (central, "central difference itself"),
        (lambda f, x, eps: (f(x + 1e-5) - f(x - 1e-5)) / 2e-5, "use the ε that is given"),
        (lambda f, x, eps: (f(x + eps) - f(x)) / eps, "take both sides"),
        (lambda f, x, eps: (central(f, x, eps) + central(f, x, eps / 2)) / 2, "factors with which"),
        (lambda f, x, eps: 2 * central(f, x, eps / 2) - central(f, x, eps), "a quarter of the error"),
        (lambda f, x, eps: 4 * central(f, x, eps / 2) - central(f, x, eps), "must sum to 1"),
        (lambda f, x, eps: (4 * central(f, x, eps) - central(f, x, eps / 2)) / 3, "gets the larger factor"),
        (lambda f, x, eps: (4 * central(f, x, eps / 2) + central(f, x, eps)) / 5, "have the same sign")],
}
RIGHT = {
    "gradients.catches": [
        differs(),
        differs(within=1e-8),
        differs(within=1e-8, eps=1e-6),
        differs(eps=1e-4),
        number_by_number,
        relative,
        lambda *a: np.bool_(differs()(*a))],
    "gradients.needed": [marked(), by_sets, lambda *a: np.array(marked()(*a))],
    "gradients.fourth": [
        lambda f, x, h: (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h),
        lambda f, x, h: central(f, x, h / 2) + (central(f, x, h / 2) - central(f, x, h)) / 3],
}
