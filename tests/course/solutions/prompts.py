"""Lesson 05: what students write, wrong and right."""
import numpy as np

import tinypeft as tp


def built(prompt_at=lambda P, T: slice(0, P), text_at=lambda P, T: slice(P, P + T), swapped=False):
    def prompts_input(P_e, X_e, positions):
        P, T = P_e.shape[0], X_e.shape[0]
        a = P_e if prompt_at is None else P_e + positions[prompt_at(P, T)]
        b = X_e if text_at is None else X_e + positions[text_at(P, T)]
        return tp.concatenate([b, a] if swapped else [a, b], axis=0)
    return prompts_input


def table_from(first):
    """The rows of the table from first(table) on, for prompt and text."""
    def prompts_input(P_e, X_e, positions):
        x = tp.concatenate([P_e, X_e], axis=0)
        at = first(positions, x)
        return x + positions[at:at + x.shape[0]]
    return prompts_input


def whole_table(P_e, X_e, positions):
    return tp.concatenate([P_e, X_e], axis=0) + positions


def side_by_side(P_e, X_e, positions):
    return tp.concatenate([P_e, X_e], axis=1) + positions[:P_e.shape[0]]


def cut(P_e, X_e, positions):
    return built()(tp.Tensor(P_e.data), X_e, positions)


def longest(work=lambda S, d: d * S * (12 * d + S + 1), limit=lambda old, share: old * (1 + share), more=0):
    def prompts_longest(T, d, share):
        lengths = np.arange(T, 4 * T + 2)
        fits = [work(int(S), d) <= limit(work(T, d), share) for S in lengths]
        return int(lengths[fits].max(initial=T) - T + more)
    return prompts_longest


def root(T, d, share):
    b, most = 12 * d + 1, (1 + share) * T * (12 * d + T + 1)
    return (-b + (b * b + 4 * most) ** 0.5) / 2 - T


def until_reached(T, d, share):
    P, extra = 0, lambda P: (T + P) * (12 * d + T + P + 1) / (T * (12 * d + T + 1)) - 1
    while extra(P) < share: P += 1
    return P


def by_roots(T, d, share):
    """The larger root of d S² + (12 d² + d) S = (1 + share) work(T)."""
    b, most = 12 * d + 1, (1 + share) * T * (12 * d + T + 1)
    S = int((-b + (b * b + 4 * most) ** 0.5) / 2)
    return max(n for n in (S - 1, S, S + 1) if n * (12 * d + n + 1) <= most) - T


def gradient(take=lambda dx, at: np.take_along_axis(dx, at[..., None], axis=1), add=lambda taken: taken.sum(0)):
    return lambda dx, at: add(take(dx, at))


def scattered(dx, at):
    found = np.zeros((at.shape[1], dx.shape[2]))
    for b in range(len(dx)):
        for j, place in enumerate(at[b]): found[j] += dx[b, place]
    return found


def ends(tokens, counts, separator):
    return [0, *(i + 1 for i, t in enumerate(tokens) if t == separator)][:len(counts)]


def all_ends(tokens, counts, separator):
    starts = [0, *(i + 1 for i, t in enumerate(tokens) if t == separator)]
    return np.concatenate([start + before + np.arange(n) for start, before, n in zip(
        starts, np.cumsum([0, *counts]), counts, strict=True)])


def every_separator(n=None, first=False, behind=True):
    """Pseudo-tokens behind (or before) every separator, or behind the first one only."""
    def prompts_places(tokens, counts, separator):
        row, part = [None] * counts[0], 0
        for t in tokens:
            if behind: row.append(int(t))
            if t == separator and not (first and part):
                part += 1
                row += [None] * (n or counts[min(part, len(counts) - 1)])
            if not behind: row.append(int(t))
        return np.array([i for i, t in enumerate(row) if t is None])
    return prompts_places


def one_place(moved):
    def prompts_places(tokens, counts, separator):
        out, before = [], 0
        for start, n in zip(ends(tokens, counts, separator), counts, strict=True):
            out += n * [start + moved * before]
            before += n
        return np.array(out)
    return prompts_places


def starting(before, which=None):
    """Places from the start of each part on: starts `which` of the row's parts gives, moved by before(counts, part)."""
    def prompts_places(tokens, counts, separator):
        starts = [0, *(i + 1 for i, t in enumerate(tokens) if t == separator)]
        starts = which(starts) if which else starts[:len(counts)]
        return np.array([start + before(counts, j) + i for j, start in enumerate(starts) for i in range(counts[j])])
    return prompts_places


def walk(ends_behind=True, limit=True, reverse=False):
    def prompts_places(tokens, counts, separator):
        counts = counts[::-1] if reverse else counts
        out, part = list(range(counts[0])), 0
        for i, t in enumerate(tokens):
            if t == separator and (part < len(counts) - 1 or not limit):
                part += 1
                out += [i + ends_behind + len(out) + j for j in range(counts[part])]
        return np.array(out)
    return prompts_places


def unshifted(tokens, counts, separator):
    ends = [0, *(np.nonzero(tokens == separator)[0] + 1)][:len(counts)]
    return np.concatenate([start + np.arange(n) for start, n in zip(ends, counts, strict=True)])


def inserted(tokens, counts, separator):
    """Insert marks into the row, then look where they are."""
    row, part = [None] * counts[0], 0
    for t in tokens:
        row.append(int(t))
        if t == separator and part < len(counts) - 1:
            part += 1
            row += [None] * counts[part]
    return np.array([i for i, t in enumerate(row) if t is None])


def read_by(own=False, shift=0, last=True):
    def prompts_bug(at, n):
        real = [i for i in range(n) if i not in set(at)]
        out = real if own else [i - 1 for i in real[1:]] + ([n - 1] if last else [])
        return np.array([i + shift for i in out])
    return prompts_bug


def lstm(directions=2, layers=2, biases=2, state=1, second=2, embeddings=1, maps=1, gates="ifgo", each=None):
    def prompts_lstm(P, d, n):
        total = embeddings * P * d + maps * ((2 * n + 1) * 2 * n + (2 * n + 1) * d)
        for layer in range(layers):
            k = second * n if layer else d
            total += (each[layer] if each else directions) * sum(n * k + state * n * n + biases * n for _ in gates)
        return total
    return prompts_lstm


WRONG = {
    "prompts.input": [
        (built(text_at=lambda P, T: slice(0, T)), "begin behind the prompt"),
        (built(prompt_at=None), "have positions, too"),
        (built(None, None), "position vectors are missing"),
        (cut, "no gradient reaches P_e"),
        (table_from(lambda pos, x: 1), "first row of the table"),
        (table_from(lambda pos, x: pos.shape[0] - x.shape[0]), "not the last"),
        (lambda P_e, X_e, pos: X_e + pos[:X_e.shape[0]], "prompt's rows are missing"),
        (whole_table, "than you need"),
        (side_by_side, "join along axis 0"),
        (lambda P_e, X_e, pos: built()(P_e, X_e, pos).data, "expected a tinypeft.Tensor"),
        (built(lambda P, T: slice(T, P + T), lambda P, T: slice(0, T), swapped=True), "not behind it")],
    "prompts.longest": [
        (longest(more=1), "one more than fits"),
        (longest(limit=lambda old, share: old * (1 + share) - 0.5), "with <=, not with <"),
        (until_reached, "try P + 1"),
        (lambda T, d, share: round(root(T, d, share)), "round the root down"),
        (lambda T, d, share: int(np.ceil(root(T, d, share))), "first P that reaches"),
        (longest(more=-1), "one vector more still fits"),
        (longest(lambda S, d: S), "only the matrices"),
        (longest(lambda S, d: S * (S + 1)), "only attention"),
        (longest(lambda S, d: d * S * (12 * d + (S + 1) / 2)), "one product for the scores"),
        (longest(lambda S, d: d * S * (12 * d + 2 * S)), "not 2 S²"),
        (longest(lambda S, d: d * S * (12 * d + S)), "sees itself as well"),
        (longest(lambda S, d: d * S * (12 + S + 1)), "not 12 d"),
        (longest(limit=lambda old, share: old * (1 + share / 100)), "not per cent"),
        (lambda T, d, share: float(longest()(T, d, share)) + 0.5, "another number")],
    "prompts.gradient": [
        (gradient(add=lambda taken: taken.mean(0)), "not a mean"),
        (gradient(take=lambda dx, at: dx[:, at[0]]), "a row of its own"),
        (gradient(take=lambda dx, at: dx[:, :at.shape[1]]), "not always in front"),
        (gradient(take=lambda dx, at: dx[:, -at.shape[1]:]), "the end of the rows"),
        (gradient(add=lambda taken: taken[0]), "not the first one alone"),
        (gradient(add=lambda taken: taken), "add the rows up"),
        (gradient(add=lambda taken: taken.sum(1)), "not over the vectors"),
        (gradient(add=lambda taken: -taken.sum(0)), "the sign of dx")],
    "prompts.places": [
        (unshifted, "not counted"),
        (walk(ends_behind=False), "belongs to the part that it ends"),
        (walk(reverse=True), "wrong order"),
        (walk(limit=False), "a later one is a token like others"),
        (lambda *a: np.setdiff1d(np.arange(len(a[0]) + sum(a[1])), inserted(*a)), "not of the pseudo-tokens"),
        (one_place(False), "as np.insert takes them"),
        (one_place(True), "stand one behind another"),
        (every_separator(), "in the last part a separator"),
        (every_separator(1), "behind every separator"),
        (every_separator(first=True), "only the first separator"),
        (every_separator(behind=False), "and before every one"),
        (starting(lambda c, j: c[0] * (j > 0)), "of one part alone"),
        (starting(lambda c, j: c[j - 1] if j else 0), "all pseudo-tokens placed so far"),
        (lambda t, counts, s: np.arange(sum(counts)), "all pseudo-tokens stand in front"),
        (starting(lambda c, j: j), "not by the number of parts"),
        (starting(lambda c, j: sum(c[:j + 1])), "do not move themselves"),
        (lambda t, c, s: starting(lambda c, j: sum(c[:j]), which=lambda ends: [0, *ends[1:][1 - len(c):]])(t, c, s),
         "not the last ones"),
        (lambda t, c, s: starting(lambda c, j: sum(c[:j]), which=lambda ends: [*ends[1:len(c)], len(t)])(t, c, s),
         "not behind it"),
        (lambda t, c, s: np.isin(np.arange(len(t) + sum(c)), walk()(t, c, s)), "this is a whole row"),
        (lambda *a: np.split(walk()(*a), np.cumsum(a[1])[:-1]), "one for each part"),
        (all_ends, "token like others"),
        (lambda *a: walk()(*a) + 1, "everywhere")],
    "prompts.bug": [
        (read_by(own=True), "own places; but"),
        (lambda at, n: np.arange(n - len(at)), "0 … T − 1, as before"),
        (read_by(shift=1), "one place before them"),
        (read_by(own=True, shift=-1), "too early"),
        (lambda at, n: np.arange(n)[-(n - len(at)):], "the last T places"),
        (lambda at, n: [*read_by(last=False)(at, n), max(set(range(n)) - {*at})], "even if vectors"),
        (lambda at, n: [*read_by(last=False)(at, n), n], "no place n"),
        (lambda at, n: [i + (i + 1 in at) for i in read_by(own=True)(at, n)], "not at the first"),
        (read_by(own=True, shift=1), "not always one further"),
        (lambda at, n: np.isin(np.arange(n), at), "none for a vector"),
        (read_by(last=False), "last token is missing"),
        (lambda at, n: np.arange(n), "all places of the row")],
    "prompts.lstm": [
        (lstm(directions=1), "two directions"),
        (lstm(layers=1), "second layer is missing"),
        (lstm(second=1), "reads both directions"),
        (lstm(biases=1), "two biases"),
        (lstm(gates="ifo"), "four, not three"),
        (lstm(gates="i"), "each of the four gates"),
        (lambda P, d, n: lstm()(P, d, n) - lstm(layers=1)(P, d, n) + lstm(embeddings=0, layers=0)(P, d, n) + P * d,
         "first layer is missing"),
        (lstm(each=(1, 2)), "first layer has two"),
        (lstm(each=(2, 1)), "second layer has two"),
        (lambda P, d, n: lstm()(P, d, n) + 8 * n * (d - 2 * n), "not d"),
        (lambda P, d, n: lstm()(P, d, n) - (2 * n + 1) * 2 * n, "first linear map, ("),
        (lambda P, d, n: lstm()(P, d, n) - (2 * n + 1) * d, "second linear map, ("),
        (lambda P, d, n: lstm()(P, d, n) - 2 * n, "map has 2n"),
        (lambda P, d, n: lstm()(P, d, n) - d, "map has d"),
        (lstm(biases=0), "biases of all gates are"),
        (lambda P, d, n: lstm(biases=0)(P, d, n) - 2 * n - d, "and of both linear maps"),
        (lstm(embeddings=0), "are trained, too"),
        (lstm(state=0), "of the state"),
        (lstm(maps=0), "linear maps are missing")],
}
RIGHT = {
    "prompts.input": [built()], "prompts.longest": [longest(), by_roots, lambda *a: np.int64(by_roots(*a))],
    "prompts.gradient": [gradient(), scattered, lambda *a: scattered(*a).tolist()],
    "prompts.places": [inserted, walk(), lambda *a: [int(i) for i in walk()(*a)]],
    "prompts.bug": [read_by(), lambda *a: read_by()(*a).tolist()], "prompts.lstm": [lstm(), lambda *a: float(lstm()(*a))],
}
