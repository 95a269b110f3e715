"""What the papers claim, beside what was measured here.

    rule.py      what a claim is, the rule that gives the verdict, and the helpers the tests of claims share
    methods.py   METHOD_CLAIMS: fine-tuning methods
    schemes.py   SCHEME_CLAIMS: quantization
    tables.py    the claims and their verdicts as Markdown tables

To add a claim, write a function (name → Results) → `Finding` and an entry of METHOD_CLAIMS or SCHEME_CLAIMS beside it.
"""
from .methods import METHOD_CLAIMS
from .rule import Claim, Finding, verdict
from .schemes import SCHEME_CLAIMS
from .tables import brief, table

ALL_CLAIMS = *METHOD_CLAIMS, *SCHEME_CLAIMS

__all__ = ["ALL_CLAIMS", "METHOD_CLAIMS", "SCHEME_CLAIMS", "Claim", "Finding", "brief", "table", "verdict"]
