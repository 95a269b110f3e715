"""What came after LoRA, as arms: methods at three budgets, starts of LoRA, optimizers, and DoRA on rounded weights.

A budget is what LoRA trains at rank 1, 4 or 16 on all matrices: 11,520, 46,080 or 184,320 numbers. A method has an arm where
one of its settings comes within a third of the budget. These have none:

    DoRA, small        rank 1 takes 17,280: each row's length is trained as well
    LoHa, small        rank 1 takes 23,040: it has two products
    VeRA, large        rank 5,952 would give it two frozen matrices larger than the base
    LoReFT             it changes states at the ends of a prompt, and *domain* has no prompt
    (IA)³              it has one size, 3,840
"""
from ...engine import optim
from ...peft import (
    C3A,
    OFT,
    BottleneckAdapter,
    DoRA,
    FourierFT,
    FullFineTuning,
    HiRA,
    LoHa,
    LoKr,
    LoRA,
    Method,
    MiSS,
    ParallelAdapter,
    RandLoRA,
    SHiRA,
    VeRA,
)
from ...quant import NF4
from ..tuning import Arm

__all__ = ["BUDGETS", "SUCCESSORS"]

BUDGETS = {"small": 11_520, "middle": 46_080, "large": 184_320}


def at_budgets(name: str, made, sizes: tuple, rate: float) -> dict[str, Arm]:
    """Arms of a method at the budgets for which there is a size. made: size → method. rate: the one that is expected."""
    return {f"{name}, {budget}": Arm(made(size), rate) for budget, size in zip(BUDGETS, sizes, strict=True) if size}


def on_all(cls: type[Method], **options):
    """A function of a size that makes the method on all matrices, its first hyperparameter that size."""
    return lambda size: cls(size, targets="all", **options)


RANKS = 1, 4, 16
SUCCESSORS: dict[str, Arm] = {
    **at_budgets("LoRA", on_all(LoRA), RANKS, 6e-3), **at_budgets("DoRA", on_all(DoRA), (None, 4, 16), 6e-3),
    "DoRA, r = 1": Arm(DoRA(1, targets="all"), 6e-3),
    **at_budgets("HiRA", on_all(HiRA), RANKS, 0.01), **at_budgets("LoHa", on_all(LoHa), (None, 2, 8), 0.01),
    **at_budgets("LoKr", on_all(LoKr), (8, 40, 128), 0.01), **at_budgets("MiSS", on_all(MiSS), (2, 8, 32), 6e-3),
    **at_budgets("SHiRA", on_all(SHiRA), RANKS, 0.02), **at_budgets("VeRA", on_all(VeRA), (192, 1344, None), 0.1),
    **at_budgets("RandLoRA", on_all(RandLoRA), (64, 12, 3), 3e-3),
    **at_budgets("FourierFT", on_all(FourierFT), (384, 1536, 6144), 0.03),
    **at_budgets("C³A", on_all(C3A), (64, 16, 8), 0.3), **at_budgets("OFT", on_all(OFT), (4, 16, 64), 0.01),
    **at_budgets("adapter", lambda m: BottleneckAdapter(m, norms=False), (4, 17, 70), 0.012),
    **at_budgets("parallel adapter", lambda m: ParallelAdapter(m, beside="both"), (4, 17, 70), 5e-3),
    **{f"LoRA from {init}": Arm(LoRA(4, targets="all", init=init), 3e-3) for init in ("pissa", "milora", "olora", "mica")},
    **{f"LoRA from {init}": Arm(LoRA(4, targets="all", init=init), 3e-3, from_text=True)
       for init in ("eva", "corda", "lora_ga")},
    "LoRA, 60 steps": Arm(LoRA(4, targets="all"), 0.01, times=0.4),
    "LoRA from pissa, 60 steps": Arm(LoRA(4, targets="all", init="pissa"), 3e-3, times=0.4),
    "LoRA on NF4": Arm(LoRA(4, targets="all"), 6e-3, scheme=NF4()),
    "DoRA on NF4": Arm(DoRA(4, targets="all"), 6e-3, scheme=NF4()),
    "full": Arm(FullFineTuning(), 1e-3), "full by Muon": Arm(FullFineTuning(), 2e-3, optimizer=optim.Muon),
    "full by AdamW8bit": Arm(FullFineTuning(), 1e-3, optimizer=optim.AdamW8bit),
    "full by GaLore": Arm(FullFineTuning(), 4e-3, optimizer=optim.GaLore)}
