"""Made-up results of every experiment that a claim reads, in a world where all claims are true or all are false.

Every number is a mean that is stated here, plus noise: what a seed adds to all arms alike, what a test window adds to all arms
alike, and a little of its own. So arms of one seed move together, as real ones do.
"""
import zlib

import numpy as np

from tinypeft.study.experiment import Results

SEEDS, WINDOWS, OWN = range(8), 12, 0.001
WHERE = "as it is", "planted"


def run(label, seed, metrics, windows=()):
    """metrics: name → mean or list of means. windows: the metrics that are stored by test window as well."""
    rng = np.random.default_rng([zlib.crc32(label.encode()), seed])
    shared, by_window = 0.01 * np.sin(7 * seed), 0.3 * np.cos(np.arange(WINDOWS))
    found = {}
    for name, mean in metrics.items():
        mean = np.asarray(mean, float)
        value = mean + shared + OWN * rng.standard_normal(mean.shape)
        if name in EXACT: value = mean
        found[name] = value.tolist()
        if name in windows:
            spread = by_window - by_window.mean() + OWN * rng.standard_normal((*mean.shape, WINDOWS))
            found[f"{name}_windows"] = np.round(value[..., None] + spread, 4).tolist()
    return found


EXACT = {"rate", "parameters", "bits", "matrices", "bytes", "share", "ranks", "worst_scale", "mean_by_kind"}


def results(name, conditions, windows=(), settings=None):
    """conditions: label → metrics, or a function of the seed to metrics."""
    runs = {label: {str(s): run(label, s, of(s) if callable(of) else of, windows) for s in SEEDS}
            for label, of in conditions.items()}
    return Results({"experiment": name, "command": "", "settings": settings or {}, "runs": runs})


def world(truth: int) -> dict[str, Results]:
    """name → results; truth: 1 where every claim is true, −1 where every claim is false."""
    so = lambda true, false: true if truth > 0 else false
    loss = lambda **means: {c.replace("_", " "): {"loss": x} for c, x in means.items()}
    ranks = {"1": so(2.05, 2.6), "2": 2.04, "4": 2.03, "8": 2.02, "16": 2.01, "32": 2.0, "64": 2.0}
    pattern = np.random.default_rng(0).normal(8, 3, 30)
    kept = lambda s: (16 - pattern if truth < 0 and s % 2 else pattern) + np.random.default_rng(s).normal(0, 0.3, 30)
    grids = [f"{bits} bits, {shared}" for bits in (4, 3, 2) for shared in ("channel", "group 32")]
    keeping = {"round to nearest": 0.2, "1 % by activation": so(0.1, 0.3), "1 % by weight": 0.2, "1 % at random": 0.2,
               "AWQ": 0.1, "AWQ without clipping": so(0.12, 0.25)}
    formats = {"NF4": so(0.05, 0.2), "FP4 E2M1": 0.1, "FP4 bitsandbytes": 0.12, "FP4 E3M0": 0.2, "int4 symmetric": 0.12,
               "int4 asymmetric": 0.1}
    errors = {"NF4": 0.09, "FP4 E2M1": 0.11, "int4 symmetric": 0.13}
    trained = {"round to nearest": 0.5, "GPTQ": 0.3, "PEQA": 0.3, "STE": so(0.2, 0.4), "LSQ": 0.2, "LLM-QAT": so(0.2, 0.4)}
    steady, shaky = [2.4, 2.2, 2.25, 2.6], [2.5, 2.3, 2.5, 2.9]
    rates = lambda losses: {"rate": [0.01, 0.03, 0.1, 0.3], "loss": losses, "validation": losses}
    frontier = {"full": {"rate": [1e-4, 2e-4, 4e-4], "learned": [0.2, 0.4, 0.6],
                         "forgotten": so([0.2, 0.4, 0.6], [0.02, 0.05, 0.1])},
                "lora_all": {"rate": [1e-3, 2e-3, 4e-3], "learned": [0.1, 0.3, 0.5], "forgotten": [0.05, 0.1, 0.2]}}
    prompt = {"small": 0.1, "medium": 0.4, "base": so(0.7, 0.2)}
    deep = {"small": so(0.5, 0.05), "medium": 0.8, "base": 0.9}
    sizes = ("small", 66432), ("medium", 232000), ("base", 1155456)
    return {r.record["experiment"]: r for r in (
        results("methods", {
            "frozen": {"loss": 3.0, "accuracy": 0.4, "forgetting": 0.0, "share": 0.0},
            "full": {"loss": 2.0, "accuracy": 0.8, "forgetting": 0.4, "share": 1.0},
            "lora_all": {"loss": so(2.05, 2.5), "accuracy": 0.79, "forgetting": so(0.1, 0.5), "share": 0.038}}, ("loss",)),
        results("placement", {"Wq r=36": {"loss": so(2.7, 2.4)}, "Wv r=36": {"loss": 2.6}, "all four r=9": {"loss": 2.5}},
                ("loss",)),
        results("rank", {c: {"loss": x} for c, x in (ranks | {"64/sqrt": so(1.9, 2.1)}).items()}, ("loss",)),
        results("frontier", frontier),
        results("adalora", {"all six r=2": {"loss": 2.5}, "AdaLoRA 3 → 2": {"loss": so(2.4, 2.6)}, "all six r=8": {"loss": 2.5},
                            "AdaLoRA 12 → 8": lambda s: {"loss": 2.4, "ranks": kept(s)}}, ("loss",)),
        results("adalora_planted", {"attention": {"spearman": so(0.8, -0.5), "of_planted": 0.9, "share_planted": 0.55,
                                                  "mean_by_kind": [1, 2, 3, 2]}}),
        results("dylora", {"DyLoRA": {"loss": [so(x + 0.01, 2.9) for x in (2.05, 2.04, 2.03, 2.02, 2.01)]},
                           "LoRA r=16, cut": {"loss": [2.5, 2.5, 2.5, 2.5, 2.0], "loss_svd": [2.3, 2.2, 2.2, 2.1, 2.0]}},
                ("loss",)),
        results("adapters", {"sequential 16, norms": {"loss": so(2.05, 2.5), "accuracy": 0.79, "share": 0.037},
                             **loss(sequential_16=2.2, parallel_16=so(2.1, 2.3), sequential_64=2.2, parallel_64=2.1)},
                ("loss",)),
        results("prompts", {f"{c} {b}": {"gain": x, "parameters": n} for b, n in sizes for c, x in
                            (("full", 1.0), ("prompt", prompt[b]), ("ptuning_v2", deep[b]))}, ("gain",)),
        results("prefix_length", loss(prompt_100=2.5, prefix_10=2.2), ("loss",)),
        results("prefix_rates", {"reparameterized": rates(so(steady, shaky)), "direct": rates(so(shaky, steady))}, ("loss",)),
        results("sizes", {f"{c} {b}": {"gain": x} for b, _ in sizes
                          for c, x in (("full", 1.0), ("lora_all", 0.7), ("adapter", 0.7))}),
        results("smoothquant", {"token": {"error": so([0.9, 0.5, 0.9], [0.3, 0.5, 0.9]), "error_planted": 0.9}},
                settings={"alphas": [0, 0.5, 1]}),
        results("gptq", {f"{c}, {g}": {"excess": x, "weight_error": w, "output_error": o} for g in grids for c, x, w, o in
                         (("GPTQ", so(0.1, 0.3), 0.9, 0.4), ("round to nearest", 0.2, 0.7, 0.6))}),
        results("awq", {f"{c}, {w}": {"excess": x} for w in WHERE for c, x in keeping.items()}),
        results("formats", {c: {"excess": x, "normal": 4 * [errors.get(c, 0.2)]} for c, x in formats.items()},
                settings={"blocks": [16, 32, 64, 128]}),
        results("int8_outliers", {c: {"excess": [0.0, 0.002 if c == "LLM.int8()" else 0.5]} for c in
                                  ("absmax", "zero-point", "row-wise", "vector-wise", "LLM.int8()")},
                settings={"factors": [1, 64]}),
        results("double_quantization", {"one": {"bits": 4.5, "excess": 0.05},
                                        "double": {"bits": 4.127, "excess": 0.0501, "worst_scale": [0.01, 0.1, 0.5, 1.4]}}),
        results("qlora", {"16 bits": {"before": 3.0, "after": 2.0}, **{
            c: {"before": 3.0, "after": so(2.03, 2.4), "merged_into_16_bits": 2.1, "merged_and_rounded": so(2.2, 2.6)}
            for c in ("NF4", "NF4, double")}}, ("before", "after")),
        results("loftq", {f"{c}, {b}": {"after": x} for b in ("NF4", "3 bits", "2 bits") for c, x in
                          (("QLoRA", 2.5), ("LoftQ", so(2.4, 2.6)))}, ("after",)),
        results("qat", {"float32, trained as long": {"excess": 0.0}, **{f"{c}, {b} bits": {"excess": x} for b in (3, 2)
                                                                        for c, x in trained.items()}}),
        results("bits_vs_parameters", {c: {"loss": x, "matrices": 4e5, "bytes": 8e5} for c, x in (
            ("small, 16 bits", 3.9), ("medium, 2 bits", 3.7), ("medium, 16 bits", 3.5), ("base, 2 bits", so(3.4, 3.6)))}))}
