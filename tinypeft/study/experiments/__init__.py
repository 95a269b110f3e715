"""Every experiment of the study; `EXPERIMENTS` maps names to them.

Those that train arms and compare them are a table, in `fine_tuning.py`: to add one, add its arms to `arms.py` and an entry
there. Another has a file, with a function `measure(value, seed, settings)` and an `Experiment` that says for which values it is
called, and a line here. To add a condition, add a label and a value: it is measured alone. `rates.py` measures the learning
rate of every arm, and `best.py` reads the best.
"""
# ruff: noqa: I001
from . import adalora_planted, baselines, best_rates, frontier, gradient_check, natural_outliers, prefix_rates, rates, subspace
from . import awq, bits_vs_parameters, double_quantization, formats, gptq, granularity, int8_outliers, k_quants, memory
from . import qat, schemes, smollm2, smoothquant, texts, virtual_tokens
from .fine_tuning import FINE_TUNING

EXPERIMENTS = {e.name: e for e in (
    gradient_check.GRADIENT_CHECK, texts.TEXTS, virtual_tokens.VIRTUAL_TOKENS,
    rates.RATES, rates.CLASSIFY_RATES, rates.QUANT_RATES, baselines.BASELINES, *FINE_TUNING,
    adalora_planted.ADALORA_PLANTED, prefix_rates.PREFIX_RATES, frontier.FRONTIER, subspace.SUBSPACE, best_rates.BEST_RATES,
    int8_outliers.INT8_OUTLIERS, smoothquant.SMOOTHQUANT, gptq.GPTQ_OR_NEAREST, gptq.GPTQ_COLUMNS, awq.AWQ_KEEPING,
    formats.FORMATS_4_BIT, double_quantization.DOUBLE_QUANTIZATION, granularity.GRANULARITY, qat.QAT,
    schemes.SCHEMES_OVER_SEEDS, k_quants.K_QUANTS, bits_vs_parameters.BITS_VS_PARAMETERS, bits_vs_parameters.PRETRAINED_FOR,
    memory.MEMORY, smollm2.SMOLLM2_RATES, smollm2.SMOLLM2, natural_outliers.NATURAL_OUTLIERS,
)}

__all__ = ["EXPERIMENTS"]
