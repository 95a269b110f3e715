"""What the papers claim, beside what was measured here, and a rule that was fixed before the runs.

    methods.py   METHOD_CLAIMS: fine-tuning methods
    schemes.py   SCHEME_CLAIMS: quantization
    measured.py  what a claim's expression reads: s.rank["64"] - s.rank["64/sqrt"]
    rule.py      what a claim is, and the rule: parts, p for yes and for no, Holm over all claims, the verdicts
    deltas.py    δ of each metric
    tables.py    the rule, the claims and their verdicts as Markdown tables

To add a claim, add an entry to METHOD_CLAIMS or SCHEME_CLAIMS: what is compared and what would refute it in words, and `parts`,
the comparison as an expression. Commit it before its experiment is run; if its numbers were there first, its `why` says so.
"""
from .methods import METHOD_CLAIMS
from .rule import Claim, Judgement, judge
from .schemes import SCHEME_CLAIMS

ALL_CLAIMS = *METHOD_CLAIMS, *SCHEME_CLAIMS

__all__ = ["ALL_CLAIMS", "METHOD_CLAIMS", "SCHEME_CLAIMS", "Claim", "Judgement", "judge"]
