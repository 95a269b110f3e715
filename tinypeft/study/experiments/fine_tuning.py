"""The experiments that train arms and compare them: for each its question, its arms, and the probes that it asks.

The arms, with the rate that is expected for each, stand in `arms.py`; here they have the best rate that was measured. What a
probe measures stands in `probes.py`. Each arm is trained on *domain* for 150 steps of 4 × 128 tokens, if it says no other.
"""
from dataclasses import replace

from ...peft import LinearProbe
from ..bases import draws_of
from ..experiment import Experiment
from ..tuning import EIGHT, SEEDS, Arm
from .arms import tuned
from .probes import FineTuning

__all__ = ["FINE_TUNING", "FROZEN"]

FROZEN = Arm(LinearProbe(), classify_lr=LinearProbe.learning_rate)
LOSS = "loss", "trained", "stored", "seconds"
GAIN = "gain", "base", "trained", "seconds"
BASES = ("three sizes of bases, each drawn three times (`study/bases.py`; \":1\" and \":2\" are the seeds of those that are "
         "not shipped)")


def experiment(name: str, about: str, arms: dict[str, Arm], probes: tuple[str, ...], quick: dict,
               seeds: tuple[int, ...] = SEEDS, **settings) -> Experiment:
    """An experiment of `FineTuning`. quick: settings of a smoke run; its steps are 5 if it does not say."""
    measure = FineTuning(probes)
    return Experiment(name, about, measure.metrics(), measure, arms, {"steps": 150, "batch_size": 4} | settings,
                      {"steps": 5, "seeds": (0, 1)} | quick, seeds)


def for_longer(arms: dict[str, Arm], times: float, renamed: dict[str, str]) -> dict[str, Arm]:
    """Arms that are trained `times` as long as the experiment says, at the same rate. renamed: label → new label."""
    return {new: replace(arms[old], times=times) for old, new in renamed.items()}


def over_draws(arms: dict[str, Arm]) -> dict[str, Arm]:
    """Every arm on all bases of its size, at the rate that is the best on the shipped one: "prompt small" and, on the base of
    seed 1, "prompt small:1"."""
    return {f"{label.removesuffix(arm.base)}{base}": replace(arm, base=base)
            for label, arm in arms.items() for base in draws_of(arm.base)}


LENGTHS, LOFTQ = tuned("lengths"), tuned("loftq")
FINE_TUNING = (
    # Quality, forgetting and cost: the comparison of all.
    experiment(
        "methods", "Every method on domain and on classify, at its best learning rate on each (experiments `rates`, "
        "`classify_rates`); also what it forgets and what it costs.",
        {"frozen": FROZEN, **tuned("methods", on_classify=True)},
        ("accuracy", "classify curve", "loss", "forgetting", "trained", "stored", "share", "peak", "seconds of a step",
         "curve"),
        {"steps": 10, "classify_steps": 5, "conditions": ("frozen", "full", "lora")}, classify_steps=200),
    # What the main job prints of methods, over eight seeds: a first run, which has three, checks the study. The rows on schemes
    # are those of experiment `schemes`; "float32, trained as long" is in experiment `qat`.
    experiment(
        "first_look", "The frozen base, full fine-tuning, LoRA with r = 4 on all matrices, the same on a base in NF4 (QLoRA), "
        "adapters and a prompt after 60 steps on domain, each at its best learning rate for 60 steps (experiment `rates`).",
        {"frozen": Arm(LinearProbe()), **tuned("first_look")}, ("loss on some", "trained", "share"),
        {"conditions": ("frozen", "full", "qlora_all")}, EIGHT),
    # Does the gap to full fine-tuning close with more training steps?
    experiment(
        "lengths", "Full fine-tuning, LoRA with r = 4 on all matrices and sequential adapters (m = 16) after 600 and 1,500 "
        "steps, both at the best learning rate for 600 (experiment `rates`).",
        LENGTHS | for_longer(LENGTHS, 10, {label: label.replace("600", "1500") for label in LENGTHS}),
        ("loss", "forgotten", "steps"), {"steps": 1, "conditions": ("full 600", "lora_all 600")}, SEEDS[:2]),

    # LoRA: does it need its rank, and what does the scale do at the extremes (arXiv 2106.09685, table 6; 2312.03732)?
    experiment(
        "rank", "LoRA on query and value at rank r, scale α/r (α = 16) or, with /sqrt, α/√r (α = 16/√8, equal at r = 8), each "
        "at its best learning rate (experiment `rates`).",
        tuned("rank"), LOSS, {"conditions": ("1", "8")}),
    # Where should its parameters go: one matrix at a high rank, or more matrices at lower ranks (table 5)?
    experiment(
        "placement", "LoRA with 9,216 parameters in every layer, in one matrix or in more, each at its best learning rate "
        "(experiment `rates`).",
        tuned("placement"), LOSS, {"conditions": ("Wq r=36", "all six r=4")}),
    # Is a rank that training allocates better than the same rank everywhere (arXiv 2303.10512)?
    experiment(
        "adalora", "AdaLoRA and LoRA on all six matrices of a block with the same number of singular values in the end, 2 or 8 "
        "per matrix on average, 200 steps, each at its best learning rate (experiment `rates`).",
        tuned("adalora"), ("loss", "trained", "ranks", "seconds", "budget"),
        {"steps": 15, "conditions": ("all six r=2", "AdaLoRA 3 → 2")}, EIGHT),
    # One training for every rank, against LoRA cut after training, and LoRA trained at each rank (2210.07558).
    experiment(
        "dylora", "One training used at ranks 1, 2, 4, 8 and 16 of query and value, α = 16: DyLoRA of rank 16, trained as long "
        "as LoRA or three times as long, and LoRA of rank 16 cut after training, each at its best learning rate (experiment "
        "`rates`); one LoRA for each rank is experiment `rank`.",
        tuned("dylora"), ("seconds", "steps", "at ranks"), {"seeds": (0,), "conditions": ("DyLoRA", "LoRA r=16, cut")}),
    # What is said of batches and of capacity ("LoRA Without Regret", Schulman et al., Thinking Machines Lab, 2025).
    experiment(
        "batches", "Full fine-tuning and LoRA with r = 4 on all matrices on domain, 600 rows of 128 tokens read in batches of "
        "4 or 64, each at its best learning rate (experiment `rates`).",
        tuned("batches"), LOSS, {"steps": 16, "seeds": (0,), "conditions": ("full, 64 rows",)}),
    experiment(
        "capacity", "Full fine-tuning and LoRA with r = 1 on all matrices after 150 steps of 4 × 128 tokens, drawn from the "
        "first 16,384, 65,536 or 262,144 tokens of domain's training text, each at its best learning rate (experiment "
        "`rates`).",
        tuned("capacity"), LOSS, {"steps": 2, "seeds": (0,), "conditions": ("r = 1, 16,384 tokens",)}),

    # Adapters: how narrow may they be, and are they better after a sublayer or beside it (arXiv 2110.04366)?
    experiment(
        "adapters", "Adapters of bottleneck m after (sequential) or beside (parallel, scale 4) both sublayers of every block, "
        "equally many parameters, each at its best learning rate on either task (experiments `rates`, `classify_rates`). The "
        "condition \"sequential 16, norms\" trains the layer norms as well.",
        tuned("adapters", on_classify=True), ("loss", "trained", "share of the base", "seconds", "accuracy"),
        {"classify_steps": 5, "conditions": ("sequential 16", "parallel 16")}, classify_steps=200),

    # Prompt tuning equals full fine-tuning in models of ten billion parameters and falls short in small ones (2104.08691);
    # prompts in every layer work in small ones too (2110.07602).
    experiment(
        "prompts", f"Full fine-tuning, prompt tuning and P-tuning v2 (both P = 20) of {BASES}, each at its best learning rate "
        "on the shipped base of its size (experiment `rates`).",
        over_draws(tuned("prompts")), GAIN, {"conditions": ("full base", "prompt base", "ptuning_v2 base")}, SEEDS[:2]),
    experiment(
        "sizes", f"LoRA on all matrices, sequential adapters and prompts on {BASES}, each method at about the same share of "
        "the parameters of every base (LoRA and adapters 5 %, prompts 0.4 %), and LoRA with r = 4 on all matrices of every "
        "base; full fine-tuning of the same bases is in `prompts`.",
        over_draws(tuned("sizes")), GAIN, {"conditions": ("r = 4 small", "lora_all small")}, SEEDS[:2]),
    experiment(
        "prefix_length", "Prompt tuning (embedding only) and prefix tuning (direct: keys and values in every layer) at length "
        "P, each at its best learning rate (experiment `rates`). \"prompt 100\" stores as many numbers as \"prefix 10\".",
        tuned("prefix_length"), LOSS, {"steps": 4, "conditions": ("prompt 1", "prefix 10")}),

    # Is what came after LoRA better than LoRA, with as many trained parameters?
    experiment(
        "successors", "What came after LoRA on domain: methods at three budgets of trained parameters (LoRA's at ranks 1, 4 "
        "and 16 on all matrices, within a third), starts of LoRA with r = 4, DoRA on the base in NF4, and full fine-tuning by "
        "other optimizers, each at its best learning rate (experiment `rates`).",
        tuned("successors"), (*LOSS, "norms"),
        {"steps": 2, "seeds": (0,), "conditions": ("DoRA, middle", "LoRA from lora_ga", "full by Muon")}),

    # QLoRA: a LoRA on a base of 4 bits learns as well as one on 16 (its tables 3 and 4); what becomes of it afterwards?
    experiment(
        "qlora", "A LoRA on all layers, rank 8, trained for 150 steps of 4 × 128 tokens on bases of 16, 4, 3 and 2 bits, each "
        "at its best learning rate (experiment `rates`), and merged; a seed draws the LoRA and the batches.",
        tuned("qlora"), ("before", "after", "merged"), {"steps": 3, "conditions": ("16 bits", "NF4"), "seeds": (0,)}),
    # LoftQ: a LoRA that starts from what rounding lost, at 4, 3 and 2 bits (its tables 1 to 4).
    experiment(
        "loftq", "A LoRA of rank 8 on all layers of a rounded base (NF4; integers in groups of 32, asymmetric), started at "
        "zero (QLoRA) or by LoftQ, and trained for 150 steps of 4 × 128 tokens, or 300, at its best learning rate for 150 "
        "(experiment `rates`); a seed draws the LoRA and the batches.",
        LOFTQ | for_longer(LOFTQ, 2, {label: f"{label}, 300 steps" for label in LOFTQ if label[-6:] in ("3 bits", "2 bits")}),
        ("before", "after"), {"steps": 2, "conditions": ("QLoRA, 2 bits", "LoftQ, 2 bits"), "seeds": (0,)}),
    experiment(
        "rounding_rank", "LoRA of rank 2 and 32 on all layers of bases of 16, 3 and 2 bits (round to nearest in groups of 32), "
        "each at its best learning rate (experiment `rates`).",
        tuned("rounding_rank"), LOSS, {"steps": 2, "seeds": (0,), "conditions": ("2 bits, r = 2",)}),
)
