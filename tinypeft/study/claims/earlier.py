"""The 34 claims of the rule before this one, their verdicts, and why each verdict may be another now.

That rule asked of "contradicted" that every effect lie below a margin, so that it could hardly be reached; it called the rest
"not at this size", although size was not varied; it made no correction for many claims, and asked no effect to matter. Its
numbers came from five seeds and from arms of which many had no learning rate of their own.

What depends on results is not written here: `Earlier.reason` reads it from the judgement.
"""
from __future__ import annotations

from dataclasses import dataclass

from .rule import CONTRADICTED, LEVEL, NOT_MEASURED, REPRODUCED, SMALL, Judgement, parts

__all__ = ["EARLIER", "Earlier"]

YES, OPEN = "reproduced", "not at this size"


@dataclass(frozen=True)
class Earlier:
    """A claim of the earlier rule. text, verdict: as they were. now: how the claim that replaces it begins. changed: what is
    measured otherwise, "" if nothing is."""
    text: str
    verdict: str
    now: str
    changed: str = ""

    def reason(self, j: Judgement) -> str:
        """What is measured otherwise, and what decided."""
        if j.claim.by_construction: return f"{self.changed} {j.claim.by_construction}".strip()
        return f"{self.changed} {decided(j)}".strip()


def decided(j: Judgement) -> str:
    """The part on which the verdict turned, in a sentence."""
    if j.verdict == NOT_MEASURED: return "It is not measured yet."
    each = [(part, c) for c in j.finding.contrasts for part in parts(j.claim.kind, j.claim.delta, c)]
    show = lambda c: f"{c.name}: {j.claim.delta.show(c.effect)}"
    weakest = show(max(each, key=lambda one: one[0].effect.p_above(one[0].limit))[1])
    if j.verdict == REPRODUCED: return f"Every part holds and is large ({weakest})."
    if j.verdict == SMALL:
        small = next(c for part, c in each if not part.large)
        return f"All of it holds, but not all of it is shown to be large ({show(small)})."
    if j.verdict == CONTRADICTED:
        return f"One part that is wrong suffices ({show(min(each, key=lambda one: one[0].effect.p_below(one[0].limit))[1])})."
    if j.verdict == LEVEL: return f"There is no difference that matters ({weakest})."
    return f"These runs cannot tell (p = {j.p:.2g} after Holm; {weakest})."


EARLIER = (
    Earlier("LoRA is as good as full fine-tuning with a few per cent of the parameters", OPEN, "LoRA is as good as full",
            "Both arms have rates of their own on both tasks."),
    Earlier("With the same number of parameters, more matrices at a lower rank beat one matrix at a high rank", YES,
            "With the same number of parameters"),
    Earlier("A very small rank suffices", OPEN, "A very small rank", "Every rank has its own rate."),
    Earlier("A large rank learns more with the scale α/√r than with α/r", YES, "A large rank learns more",
            "Each scale has its own rate; before, both had one, and the scale itself acts like a rate."),
    Earlier("LoRA learns less than full fine-tuning, and forgets less", YES, "LoRA learns less than full",
            "It says now that each is at its best rate; what holds at equal learning is a claim of its own."),
    Earlier("AdaLoRA is better than LoRA with the same final budget", OPEN, "AdaLoRA is better"),
    Earlier("AdaLoRA's ranks are uneven, and the same matrices keep more rank with every seed", YES,
            "AdaLoRA's ranks are uneven",
            "Seeds are compared in pairs that share none, within each kind of matrix."),
    Earlier("AdaLoRA puts rank where a change of known ranks was planted (Spearman above 0.5)", YES, "AdaLoRA puts rank where",
            "The claim says that only the attention was planted, and the limit that was set after a first look is gone."),
    Earlier("DyLoRA works at every rank; a LoRA that is cut to a smaller rank does not", OPEN, "DyLoRA works at every rank",
            "Both arms have their own rates, and one way to cut is the contrast."),
    Earlier("One DyLoRA replaces one LoRA for each rank", OPEN, "One DyLoRA replaces",
            "It is judged at every rank, trained as long as one LoRA; before, by a mean, trained three times as long."),
    Earlier("Adapters are as good as full fine-tuning with 3.6 % of the parameters", OPEN, "Adapters are as good as full",
            "The layer norms are trained as in the paper, and *classify* has its own rate."),
    Earlier("Parallel adapters are better than sequential adapters with as many parameters", YES,
            "Parallel adapters are better",
            "The rate of the sequential adapters is no longer at the edge of its grid."),
    Earlier("Prefixes in every layer are far better than prompts at the input alone", YES, "Deep prompts are better",
            "Far means five δ now, and both store as many numbers; this claim and the next are one."),
    Earlier("Deep prompts are better than shallow prompts in small models too", YES, "Deep prompts are better",
            "This claim and the one before are one."),
    Earlier("Prompt tuning's gap to full fine-tuning closes as the model grows", YES, "Prompt tuning's gap",
            "All bases were trained for as many steps."),
    Earlier("Reparameterized prefixes train more stably than direct prefixes, and end slightly better", OPEN,
            "Reparameterized prefixes", "The rates bracket the best one, which is taken on validation text. Stability is "
            "what three times that rate costs."),
    Earlier("With outlier features, LLM.int8() is nearer float32 than absmax, zero-point, row-wise and vector-wise "
            "quantization", YES, "With outlier features"),
    Earlier("LLM.int8() costs nothing, however large the outliers (less than 0.01 nats/token)", YES,
            "LLM.int8() costs nothing"),
    Earlier("SmoothQuant's error over α is a U: too little and too much smoothing are both worse than α = 0.5", YES,
            "SmoothQuant's error over α"),
    Earlier("GPTQ loses less than round to nearest on the same grid, at 4, 3 and 2 bits", YES, "GPTQ loses less than round"),
    Earlier("GPTQ makes the error of the weights larger and the error of the outputs smaller", YES, "GPTQ makes the error"),
    Earlier("Activations show which 1 % of the weights to keep; the weights' own size and chance do not", YES,
            "Activations show which",
            "It is judged by the loss; before, by the error of the layers' outputs, on which the rule selects."),
    Earlier("AWQ's scales lose less than round to nearest at 3 bits, and keep no weight in 16 bits", YES, "AWQ's scales",
            "The scales are judged without clipping; before, most of the gain was that of clipping."),
    Earlier("On normal weights NF4 has a smaller error than FP4 E2M1, and FP4 E2M1 a smaller one than symmetric int4", YES,
            "On normal numbers NF4"),
    Earlier("NF4 has a smaller error than asymmetric int4 at every block size and with heavy tails", OPEN,
            "On normal numbers NF4",
            "This was the study's own, and is now a remark on the claim before."),
    Earlier("NF4 loses least of the 4-bit formats, on a model", YES, "NF4 loses least"),
    Earlier("Double quantization saves 0.373 bits per weight and costs nothing", YES, "Double quantization saves"),
    Earlier("QLoRA learns as well as a LoRA on 16 bits", YES, "QLoRA learns as well", "Both have rates of their own."),
    Earlier("Rounding a merged QLoRA again loses what was learned", YES, "Rounding a merged QLoRA",
            "It says now that a part is lost."),
    Earlier("LoftQ ends below QLoRA at 3 and 2 bits", YES, "LoftQ ends below QLoRA",
            "Each has its own rate; before, both had one."),
    Earlier("Training with rounded weights beats GPTQ at 3 and 2 bits", YES, "Training with rounded weights beats"),
    Earlier("PEQA, which trains the scales alone, beats round to nearest", YES, "PEQA, which trains"),
    Earlier("LLM-QAT, trained on text that the model writes itself, beats GPTQ at 3 and 2 bits", OPEN,
            "LLM-QAT, trained on text",
            "It is marked as the study's own, because the paper tests other bits."),
    Earlier("More parameters at 2 bits beat fewer at 16 bits, in about as many bytes of matrices", YES,
            "More parameters at 2 bits", "All bases were trained for as many steps. It is marked as the study's own, because "
            "these sizes lie too far apart to test the paper."),
)
