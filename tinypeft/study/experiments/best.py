"""The best learning rate of every arm. `python -m tinypeft figures --best` writes this file from what `rates`, `classify_rates`
and `quant_rates` have measured. A label that is missing here has not been measured yet; `arms.py` then says what is expected.
"""
BEST = {
    "domain": {
        "full": 0.001,
        "adapter": 0.008,
        "parallel_adapter": 0.004,
        "prefix": 0.007,
        "prompt": 0.06,
        "ptuning": 0.0054,
        "lora": 0.013,
    },
    "classify": {
    },
    "quant": {
    },
}
