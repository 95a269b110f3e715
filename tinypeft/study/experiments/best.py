"""The best learning rate of every arm. `python -m tinypeft figures --best` writes this file from what `rates`, `classify_rates`
and `quant_rates` have measured. A label that is missing here has not been measured yet; `arms.py` then says what is expected.
"""
BEST = {
    "domain": {},
    "classify": {},
    "quant": {},
}
