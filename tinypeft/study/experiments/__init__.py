"""Every experiment of the study; `EXPERIMENTS` maps names to them.

Those that train arms and compare them are a table, in `fine_tuning.py`: to add one, add its arms to `arms.py` and an entry
there. Those that round the base by schemes are another, in `schemes.py`. Others have files, with a function
`measure(value, seed, settings)` and an `Experiment` that says for which values it is called, and are listed here. To add a
condition, add a label and a value: it is measured alone. `rates.py` measures the learning rate of every arm, and `best.py`
reads the best.
"""
# ruff: noqa: I001
from . import adalora_planted, awq, baselines, bits_vs_parameters, formats, gptq_columns, gradient_check, k_quants, memory
from . import natural_outliers, outliers, over_rates, rates, smollm2, subspace, texts, virtual_tokens
from .fine_tuning import FINE_TUNING
from .schemes import BY_SCHEMES

EXPERIMENTS = {e.name: e for e in (
    gradient_check.GRADIENT_CHECK, texts.TEXTS, virtual_tokens.VIRTUAL_TOKENS,
    rates.RATES, rates.CLASSIFY_RATES, rates.QUANT_RATES, baselines.BASELINES, *FINE_TUNING,
    adalora_planted.ADALORA_PLANTED, over_rates.PREFIX_RATES, over_rates.FRONTIER, subspace.SUBSPACE, over_rates.BEST_RATES,
    outliers.INT8_OUTLIERS, outliers.SMOOTHQUANT, *BY_SCHEMES, gptq_columns.GPTQ_COLUMNS, awq.AWQ_KEEPING,
    formats.FORMATS_4_BIT, formats.DOUBLE_QUANTIZATION, k_quants.K_QUANTS, bits_vs_parameters.BITS_VS_PARAMETERS,
    bits_vs_parameters.PRETRAINED_FOR, memory.MEMORY, smollm2.SMOLLM2_RATES, smollm2.SMOLLM2,
    natural_outliers.NATURAL_OUTLIERS,
)}

__all__ = ["EXPERIMENTS"]
