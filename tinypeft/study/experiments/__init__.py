"""Every experiment of the study, one file per question; `EXPERIMENTS` maps names to them.

A file has a function `measure(value, seed, settings)` and an `Experiment` that says for which values it is called. To add a
condition, add a label and a value: it is measured alone. To add an experiment, add a file and its line here. An arm whose
learning rate is tuned stands in `arms.py`; `rates.py` measures the rate, and `best.py` reads it.
"""
# ruff: noqa: I001
from . import adalora, adapters, baselines, dylora, first_look, frontier, gradient_check, lengths, methods, natural_outliers
from . import placement, prompts, rank, rates, regret, subspace
from . import awq, bits_vs_parameters, double_quantization, formats, gptq, granularity, int8_outliers, k_quants, loftq, memory
from . import qat, qlora, schemes, smollm2, smoothquant, successors, texts, virtual_tokens

EXPERIMENTS = {e.name: e for e in (
    gradient_check.GRADIENT_CHECK, texts.TEXTS, virtual_tokens.VIRTUAL_TOKENS,
    rates.RATES, rates.CLASSIFY_RATES, rates.QUANT_RATES, baselines.BASELINES, methods.EVERY_METHOD, rank.RANK,
    placement.PLACEMENT, adalora.ADALORA, adalora.ADALORA_PLANTED, dylora.DYLORA, adapters.ADAPTERS, prompts.PROMPTS,
    prompts.SIZES, prompts.PREFIX_RATES, prompts.PREFIX_LENGTH, frontier.FRONTIER, lengths.LENGTHS, first_look.FIRST_LOOK,
    subspace.SUBSPACE, successors.SUCCESSORS, regret.BEST_RATES, regret.BATCHES, regret.CAPACITY, regret.ROUNDING_RANK,
    int8_outliers.INT8_OUTLIERS, int8_outliers.INT8_THRESHOLD, int8_outliers.INT8_ACTIVATIONS,
    smoothquant.SMOOTHQUANT, smoothquant.SMOOTHQUANT_MAXIMA, gptq.GPTQ_OR_NEAREST, gptq.GPTQ_COLUMNS, awq.AWQ_KEEPING,
    awq.AWQ_SEARCH, formats.FORMATS_4_BIT, double_quantization.DOUBLE_QUANTIZATION, granularity.GRANULARITY, qlora.QLORA,
    loftq.LOFTQ, qat.QAT, schemes.SCHEMES_OVER_SEEDS, k_quants.K_QUANTS, bits_vs_parameters.BITS_VS_PARAMETERS,
    bits_vs_parameters.PRETRAINED_FOR, memory.MEMORY, smollm2.SMOLLM2_RATES, smollm2.SMOLLM2, natural_outliers.NATURAL_OUTLIERS,
)}

__all__ = ["EXPERIMENTS"]
