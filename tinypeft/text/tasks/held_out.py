"""Splits of a small collection: near-duplicates on one side, every class in training.

The corpora's rule (`corpus.py`) decides by hashes alone, which leaves parts of 300 rows too small
or too large by chance. Here the families are the same, and the parts have the sizes that are asked
for:

1. Texts that share a span of 24 words, or all their words if they have fewer, are one family. A
   span that more than a tenth of the texts have (and more than ten) is a form, such as a licence or
   an instruction in front of every prompt: its words do not count.
2. The families are taken in the order of their size, and among equals of a hash. Each goes to test
   if it fits in what is left of test's share, or else to validation, or else to training. So single
   texts are held out before families of near-duplicates, of which a test would say little.
3. Shares are kept in each class. A family of several classes is trained on.
"""
from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from .. import corpus

__all__ = ["check_shares", "near_duplicates", "parts"]

FORM = 10                                                     # 1 in FORM texts, and above FORM


def near_duplicates(texts: Sequence[tuple[str, ...]]) -> list[int]:
    """For each text, the index of its family's first member. A text may have several sections, of
    which a later one counts only where it has a whole span: many answers are "yes"."""
    number = {}
    words = [[corpus.numbered(section, number) for section in sections] for sections in texts]
    found = [np.unique(np.concatenate([*map(corpus.keys, sections)])) for sections in words]
    key, count = np.unique(np.concatenate(found), return_counts=True)
    if len(forms := key[count > max(FORM, len(texts) // FORM)]):
        words = [[_without(section, np.isin(corpus.keys(section), forms)) for section in sections]
                 for sections in words]
    counted = ([section for i, section in enumerate(sections)
                if not i or len(section) >= corpus.SPAN] for sections in words)
    return corpus.components(np.concatenate([*map(corpus.keys, own)]) for own in counted)


def _without(words, is_form):
    """Return the words that stand in no span that is a form. is_form: for each span."""
    kept, n = np.ones(len(words), bool), min(corpus.SPAN, len(words))
    for i in np.flatnonzero(is_form): kept[i:i + n] = False
    return [word for word, keep in zip(words, kept, strict=True) if keep]


def check_shares(held_out: tuple[float, float]) -> None:
    """Raise ValueError unless `held_out` is the shares of validation and test: two numbers, at
    least 0, with sum ≤ 1."""
    try: validation, test = map(float, held_out)
    except (TypeError, ValueError): validation = test = math.nan
    if not (validation >= 0 and test >= 0 and validation + test <= 1):
        raise ValueError("held_out must be the shares of validation and test, two numbers of at "
                         f"least 0 and together at most 1, such as (0.1, 0.1); got {held_out!r}")


def parts(texts: Sequence[tuple[str, ...]], classes: Sequence[Hashable], weights: Sequence[int],
          shares: tuple[float, float], seed: int = 0) -> list[str]:
    """Return the part of each text: "train", "validation" or "test".

    texts: sections of each. classes: shares are kept in each. weights: what a text counts in its
    class: 1, or its length. shares: of validation and of test. A share of texts that count 1 is
    rounded, and at least 1. Raises ValueError unless the shares are at least 0 with sum ≤ 1."""
    check_shares(shares)
    if tuple(shares) == (0, 1): return ["test"] * len(texts)
    family = near_duplicates(texts)
    members = defaultdict(list)
    for i, first in enumerate(family): members[first].append(i)
    total = Counter()
    for c, weight in zip(classes, weights, strict=True): total[c] += weight
    rounded = lambda share: max(1, round(share)) if share and max(weights) == 1 else share
    left = {(c, part): rounded(share * n) for c, n in total.items()
            for part, share in zip(("test", "validation"), reversed(shares), strict=True)}
    luck = lambda first: hashlib.sha256(repr((seed, texts[first])).encode()).digest()
    chosen = ["train"] * len(texts)
    for first in sorted(members, key=lambda first: (len(members[first]), luck(first))):
        own = members[first]
        weight, kinds = sum(weights[i] for i in own), {classes[i] for i in own}
        for part in ("test", "validation") if len(kinds) == 1 else ():
            if weight <= left[classes[first], part]:
                left[classes[first], part] -= weight
                for i in own: chosen[i] = part
                break
    return chosen
