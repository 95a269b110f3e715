"""What the papers claim, beside what was measured here, and a rule that was fixed before the runs.

    rule.py      what a claim is, and the rule: parts, p for yes and for no, Holm over all claims, the verdicts
    methods.py   METHOD_CLAIMS: fine-tuning methods
    schemes.py   SCHEME_CLAIMS: quantization
    words.py     numbers in words; a mean beside its paired difference to another
    tables.py    the rule, the claims and their verdicts as Markdown tables

To add a claim, write a function (name → Results) → `Finding` and an entry of METHOD_CLAIMS or SCHEME_CLAIMS beside it, with
its contrast, its δ and what would refute it, before its experiment is run.
"""
from .methods import METHOD_CLAIMS
from .rule import Claim, Finding, Judgement, judge
from .schemes import SCHEME_CLAIMS

ALL_CLAIMS = *METHOD_CLAIMS, *SCHEME_CLAIMS

__all__ = ["ALL_CLAIMS", "METHOD_CLAIMS", "SCHEME_CLAIMS", "Claim", "Finding", "Judgement", "judge"]
