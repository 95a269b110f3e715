"""Every picture of the study. `PICTURES`: name → the function that draws it, its title, its lesson and its results.

    draw("figures", "rank")          # figures/rank.svg from figures/results/rank.json → its `Drawing`

    whole.py        all claims                                   few_bits.py    QLoRA, LoftQ, trained roundings, all schemes
    fair.py         all methods at equal terms                   weights.py     a grid, granularity, formats, GPTQ, AWQ
    low_rank.py     LoRA, AdaLoRA, DyLoRA                        outliers.py    LLM.int8(), SmoothQuant
    prompts.py      prompts and prefixes                         memory.py      memory of fine-tuning
    changes.py      what ΔW of each method looks like            speed.py       cost as the work grows
    engine.py       the check of a gradient                      schematics.py  drawings without numbers

A picture is a function from the folder of results to a `plot.Drawing`, a figure with its words. It reads stored results
(`r` in these files) and measures nothing. Pictures that need no measurement compute exactly what they show.
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import glance, k_quants, plot, pretraining
from ..experiments import EXPERIMENTS
from . import changes, engine, fair, few_bits, low_rank, memory, outliers, prompts, schematics, speed, weights, whole

__all__ = ["PICTURES", "Picture", "draw", "drawing", "measured_for", "missing"]


@dataclass(frozen=True)
class Picture:
    """draw: folder of results → `Drawing`. title: its heading. lesson: two digits. needs: names of results. ending: of its
    file."""
    draw: Callable[[Path], plot.Drawing]
    title: str
    lesson: str
    needs: tuple[str, ...] = ()
    ending: str = "svg"

    def file(self, name: str) -> str:
        return f"{name}.{self.ending}"


PICTURES = {
    "forest": Picture(whole.forest, "All claims, in units of δ", "15"),
    "pareto": Picture(fair.pareto, "Quality over parameters and memory", "15", ("methods",)),
    "forgetting": Picture(fair.forgetting, "Learning and forgetting", "03", ("frontier",)),
    "compare": Picture(glance.stored("compare"), "The main job at a glance", "15", ("compare",)),
    "compare_all": Picture(glance.stored("compare_all"), "Every method and every scheme", "15", ("compare_all",)),
    "pretraining": Picture(pretraining.picture, "How the base was trained", "02"),
    "natural_outliers": Picture(outliers.natural, "Outliers of a real model", "16", ("natural_outliers",)),
    "schemes": Picture(few_bits.schemes, "Bits and what they cost", "15", ("schemes",)),
    "bits_vs_parameters": Picture(few_bits.bits_vs_parameters, "More parameters or more bits", "15", ("bits_vs_parameters",)),
    "memory": Picture(memory.memory, "Where the memory goes", "03", ("memory",)),
    "scaling": Picture(speed.scaling, "Cost as work grows", "03", ("benchmark_scaling",)),
    "gradient_check": Picture(engine.gradient_check, "Checking a gradient", "01", ("gradient_check",)),
    "changes_of_a_weight": Picture(changes.changes_of_a_weight, "What a change of a weight can look like", "07", (), "png"),
    "methods_in_a_block": Picture(schematics.methods_in_a_block, "Where each method sits", "04"),
    "staircase": Picture(weights.staircase, "What rounding does", "10"),
    "rank": Picture(low_rank.rank, "LoRA's rank", "07", ("rank", "methods")),
    "subspace": Picture(low_rank.subspace, "What an update looks like", "07", ("subspace",), "png"),
    "adalora": Picture(low_rank.adalora, "AdaLoRA's ranks", "08", ("adalora",), "png"),
    "adalora_planted": Picture(low_rank.planted, "Ranks that were planted", "08", ("adalora_planted",)),
    "dylora": Picture(low_rank.dylora, "One training for every rank", "09", ("dylora", "rank")),
    "prompt_sizes": Picture(prompts.prompt_sizes, "Prompts and the size of the model", "05", ("prompts",)),
    "prefix_length": Picture(prompts.prefix_length, "Prompts at the input and in every layer", "06", ("prefix_length",)),
    "soft_prompts": Picture(prompts.soft_prompts, "Reading a soft prompt", "05", ("virtual_tokens",)),
    "int8_outliers": Picture(outliers.int8_outliers, "Outliers and eight bits", "11", ("int8_outliers",)),
    "smoothquant": Picture(outliers.smoothquant, "SmoothQuant's α", "11", ("smoothquant",)),
    "granularity": Picture(weights.granularity, "What shares a scale", "10", ("granularity",)),
    "formats": Picture(weights.formats, "Four-bit formats", "13", ("formats",)),
    "k_quants": Picture(k_quants.picture, "K-quants", "18"),
    "gptq": Picture(weights.gptq, "GPTQ against round to nearest", "12", ("gptq",)),
    "gptq_columns": Picture(weights.gptq_columns, "GPTQ, column after column", "12", ("gptq_columns",), "png"),
    "awq": Picture(weights.awq, "Which weights matter", "12", ("awq",)),
    "qlora": Picture(few_bits.qlora, "QLoRA, and what merging loses", "13", ("qlora",)),
    "loftq": Picture(few_bits.loftq, "LoftQ's start", "13", ("loftq",)),
    "qat": Picture(few_bits.qat, "Training with rounded weights", "14", ("qat",)),
    "qlora_flow": Picture(schematics.qlora_flow, "QLoRA's data flow", "13"),
}


def missing(folder: str | Path, name: str) -> list[str]:
    """Names of the picture's results that are not in `folder`/results."""
    return [n for n in PICTURES[name].needs if not (Path(folder) / "results" / f"{n}.json").exists()]


def measured_for(names: Iterable[str]) -> list[str]:
    """The names, with those of experiments in place of a picture's."""
    needs = lambda name: PICTURES[name].needs if name in PICTURES and name not in EXPERIMENTS else (name,)
    return [n for name in names for n in needs(name)]


def drawing(folder: str | Path, name: str) -> plot.Drawing:
    """The picture as a `Drawing`, from the results stored in `folder`/results."""
    with plot.style():
        return PICTURES[name].draw(Path(folder) / "results")


def draw(folder: str | Path, name: str) -> plot.Drawing:
    """Draw the picture into `folder`; returns its `Drawing`."""
    drawn = drawing(folder, name)
    plot.save(drawn, Path(folder) / PICTURES[name].file(name))
    return drawn
