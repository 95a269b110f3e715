"""Every arm whose learning rate is tuned: by experiment and condition, each with the rate that is expected to be the best.

    tuned("rank")                 condition → Arm, with the best rate that was measured (`best.py` reads it)
    TRIED["domain"]               label → Arm with the expected rate: where `rates` begins to look

Two experiments that train the same arm for the same time share one label, the first. The label of an arm of `methods` is its
condition; that of another has the name of its experiment in front: "rank: 64".
"""
from dataclasses import replace

from ...peft import (
    METHODS,
    AdaLoRA,
    BottleneckAdapter,
    DyLoRA,
    FullFineTuning,
    LoRA,
    ParallelAdapter,
    PrefixTuning,
    PromptTuning,
    PTuningV2,
)
from ...quant import NF4, Uniform
from ..tuning import Arm
from .best import measured_rate
from .successor_arms import SUCCESSORS

__all__ = ["ARMS", "LABELS", "SURVEYED", "TRIED", "tuned"]


def sequential(m: int, norms: bool = False) -> BottleneckAdapter:
    return BottleneckAdapter(bottleneck=m, norms=norms)


def on_all(rank: int) -> LoRA:
    return LoRA(rank=rank, targets="all")


SURVEYED = ("full", "adapter", "parallel_adapter", "prefix", "prompt", "ptuning", "ptuning_v2", "lora", "adalora", "dylora",
            "ia3")                                       # a method that the package gets later is compared elsewhere
FEW_BITS = {"NF4": NF4(), **{f"{bits} bits": Uniform(bits, False, "group", 32) for bits in (4, 3, 2)}}
SHARES = {"lora_all": {"small": on_all(3), "medium": on_all(3), "base": on_all(5)},               # 5.2, 4.5 and 5.0 %
          "adapter": {"small": sequential(12), "medium": sequential(14), "base": sequential(22)},        # 4.9, 4.8 and 5.0 %
          "prompt": {name: PromptTuning(length=P) for name, P in {"small": 9, "medium": 16, "base": 40}.items()}}      # 0.4 %
EXPECTED = {"adapter": 8e-3, "parallel_adapter": 4e-3, "prefix": 7e-3, "prompt": 0.06, "lora": 0.013, "adalora": 0.025,
            "dylora": 0.013, "ia3": 0.05}                # where it is not the method's own rate
LOFTQ_RATES = {"NF4": 0.01, "4 bits": 0.01, "3 bits": 0.0055, "2 bits": 0.0055}

# experiment → condition → arm
ARMS: dict[str, dict[str, Arm]] = {
    "methods": {**{name: Arm(METHODS[name](), EXPECTED.get(name, METHODS[name]().learning_rate), METHODS[name]().learning_rate)
                   for name in SURVEYED},
                "lora_all": Arm(on_all(4), 6e-3, classify_lr=5e-3)},
    "adapters": {
        "sequential 16": Arm(sequential(16), 0.012, classify_lr=0.012),
        "parallel 16": Arm(ParallelAdapter(bottleneck=16, beside="both"), 5e-3, classify_lr=5e-3),
        "sequential 64": Arm(sequential(64), 8e-3), "parallel 64": Arm(ParallelAdapter(bottleneck=64, beside="both"), 4e-3),
        "sequential 16, norms": Arm(sequential(16, norms=True), 0.012, classify_lr=0.012)},
    "rank": {
        **{str(r): Arm(LoRA(rank=r), 0.013) for r in (1, 2, 4, 8, 16, 32, 64)},
        "1/sqrt": Arm(LoRA(rank=1, alpha=16 * 8 ** -0.5, rank_stabilized=True), 0.013),
        "64/sqrt": Arm(LoRA(rank=64, alpha=16 * 8 ** -0.5, rank_stabilized=True), 0.01)},
    "placement": {
        "Wq r=36": Arm(LoRA(rank=36, targets=("query",)), 0.02), "Wv r=36": Arm(LoRA(rank=36, targets=("value",)), 0.02),
        "Wq, Wv r=18": Arm(LoRA(rank=18), 0.013),
        "all four r=9": Arm(LoRA(rank=9, targets=("query", "key", "value", "output")), 8e-3),
        "all six r=4": Arm(on_all(4), 6e-3), "up and down r=7": Arm(LoRA(rank=7, targets=("up", "down")), 8e-3)},
    "batches": {f"{name}, {rows} rows": Arm(method, rate * (2 if rows > 4 else 1), rows=None if rows == 4 else rows)
                for name, method, rate in (("full", FullFineTuning(), 1e-3), ("lora_all", on_all(4), 6e-3))
                for rows in (4, 64)},
    "capacity": {f"{name}, {tokens:,} tokens": Arm(method, rate, tokens=tokens)
                 for name, method, rate in (("full", FullFineTuning(), 1e-3), ("r = 1", on_all(1), 6e-3))
                 for tokens in (16_384, 65_536, 262_144)},
    "adalora": {label: replace(arm, times=4 / 3) for label, arm in {
        "all six r=2": Arm(on_all(2), 5.5e-3), "AdaLoRA 3 → 2": Arm(AdaLoRA(init_rank=3, target_rank=2), 0.025),
        "all six r=8": Arm(on_all(8), 8e-3), "AdaLoRA 12 → 8": Arm(AdaLoRA(), 0.025)}.items()},
    "dylora": {"DyLoRA": Arm(DyLoRA(rank=16), 0.013), "DyLoRA × 3": Arm(DyLoRA(rank=16), 0.01, times=3),
               "LoRA r=16, cut": Arm(LoRA(rank=16), 0.013)},
    "qlora": {"16 bits": Arm(on_all(8), 8e-3), **{label: Arm(on_all(8), 8e-3, scheme=scheme) for label, scheme in {
        "NF4": NF4(), "NF4, double": NF4(double_quant=True), "int3": FEW_BITS["3 bits"], "int2": FEW_BITS["2 bits"]}.items()}},
    "rounding_rank": {**{f"16 bits, r = {r}": Arm(on_all(r), 6e-3) for r in (2, 32)},
                      **{f"{bits}, r = {r}": Arm(on_all(r), 6e-3, scheme=FEW_BITS[bits])
                         for r in (2, 32) for bits in ("3 bits", "2 bits")}},
    "loftq": {"LoRA, 16 bits": Arm(on_all(8), 8e-3),
              **{f"{name}, {label}": Arm(on_all(8), LOFTQ_RATES[label] if by_loftq else 8e-3, scheme=scheme,
                                               by_loftq=by_loftq)
                 for label, scheme in FEW_BITS.items() for name, by_loftq in (("QLoRA", False), ("LoftQ", True))}},
    "prompts": {
        **{f"full {base}": Arm(FullFineTuning(), lr, base=base) for base, lr in
           {"small": 4e-3, "medium": 2e-3, "base": 1e-3}.items()},
        **{f"prompt {base}": Arm(PromptTuning(length=20), lr, base=base) for base, lr in
           {"small": 0.03, "medium": 0.05, "base": 0.06}.items()},
        **{f"ptuning_v2 {base}": Arm(PTuningV2(length=20, dropout=0.0), 0.1, base=base)
           for base in ("small", "medium", "base")}},
    "prefix_length": {
        **{f"prompt {P}": Arm(PromptTuning(length=P), 0.06) for P in (1, 10, 40, 100)},
        **{f"prefix {P}": Arm(PrefixTuning(length=P, reparameterize=False), 0.15) for P in (1, 10, 40)}},
    "sizes": {f"{name} {base}": Arm(method, {"lora_all": 8e-3, "adapter": 0.012, "prompt": 0.05}[name], base=base)
              for name, by_base in SHARES.items() for base, method in by_base.items()}
             | {f"r = 4 {base}": Arm(on_all(4), rate, base=base) for base, rate in
                {"small": 0.014, "medium": 8e-3, "base": 6e-3}.items()},
    "lengths": {label: replace(arm, times=4) for label, arm in {
        "full 600": Arm(FullFineTuning(), 8e-4), "lora_all 600": Arm(on_all(4), 5e-3),
        "adapter 600": Arm(sequential(16), 0.01)}.items()},
    "first_look": {label: replace(arm, times=0.4) for label, arm in {
        "full": Arm(FullFineTuning(), 1e-3), "lora_all": Arm(on_all(4), 0.01),
        "qlora_all": Arm(on_all(4), 0.01, scheme=NF4()), "adapter": Arm(BottleneckAdapter(), 0.01),
        "prompt": Arm(PromptTuning(), 0.1)}.items()},
    "successors": SUCCESSORS}


def labelled(rate: str) -> tuple[dict[str, Arm], dict[tuple[str, str], str]]:
    """(label → arm, (experiment, condition) → label) of the arms that have a `rate`, "lr" or "classify_lr", and no other. An
    arm that stands twice has one label."""
    tried, label_of, seen = {}, {}, {}
    for experiment, by_condition in ARMS.items():
        for condition, arm in by_condition.items():
            if getattr(arm, rate) is None: continue
            no_rate = replace(arm, lr=None, classify_lr=None)
            label = seen.setdefault(repr(no_rate), condition if experiment == "methods" else f"{experiment}: {condition}")
            tried.setdefault(label, replace(no_rate, **{rate: getattr(arm, rate)}))
            label_of[experiment, condition] = label
    tried = dict(sorted(tried.items(), key=lambda item: item[1].base != "base"))                 # the shipped base comes first
    return tried, label_of


TRIED, LABELS = {}, {}
TRIED["domain"], LABELS["domain"] = labelled("lr")
TRIED["classify"], LABELS["classify"] = labelled("classify_lr")


def tuned(experiment: str, on_classify: bool = False) -> dict[str, Arm]:
    """condition → arm at its best rate on domain, and on classify if it is trained on that, too, for an experiment of ARMS.
    A rate that has not been measured is the expected one."""
    found = {}
    for condition, arm in ARMS[experiment].items():
        of_classify = best_rate("classify", experiment, condition, "classify_lr") if on_classify else None
        found[condition] = replace(arm, lr=best_rate("domain", experiment, condition, "lr"), classify_lr=of_classify)
    return found


def best_rate(task: str, experiment: str, condition: str, rate: str) -> float | None:
    label = LABELS[task].get((experiment, condition))
    return label and measured_rate(task, label, getattr(TRIED[task][label], rate))
