"""Made-up results of every experiment that a claim reads, in a world where all claims are true or all are false.

Every number is a mean that is stated here, plus noise: what a seed adds to all arms alike, what a test document adds to all
arms alike, and a little of its own. So arms of one seed move together, as real ones do.
"""
import zlib

import numpy as np

from tinypeft.study.experiment import Results

SEEDS, OWN = range(8), 0.001
WHERE = "as it is", "planted"
TOKENS = {n: np.random.default_rng(n).integers(20, 400, n) for n in (12, 15)}       # of two texts; the second one is forgotten


def run(label, seed, metrics, documents=()):
    """metrics: name → mean or list of means. documents: the metrics that are stored by test document as well."""
    rng = np.random.default_rng([zlib.crc32(label.encode()), seed])
    shared, found = 0.01 * np.sin(7 * seed), {}
    for name, mean in metrics.items():
        mean = np.asarray(mean, float)
        value = mean + shared + OWN * rng.standard_normal(mean.shape)
        if name in EXACT: value = mean
        found[name] = value.tolist()
        if name in documents:
            tokens = TOKENS[15 if name in ("forgetting", "forgotten") else 12]
            spread = 0.3 * np.cos(np.arange(len(tokens))) + OWN * rng.standard_normal((*mean.shape, len(tokens)))
            spread -= np.average(spread, axis=-1, weights=tokens)[..., None]
            found[f"{name}_documents"] = np.round((value[..., None] + spread) * tokens, 3).tolist()
    return found


EXACT = {"rate", "parameters", "bits", "matrices", "bytes", "share", "ranks", "worst_scale", "mean_by_kind"}
SIZES = ("small", 66432), ("medium", 232000), ("base", 1155456)
BASES = [(size, base, n) for size, n in SIZES for base in (size, f"{size}:1", f"{size}:2")]


def results(name, conditions, documents=(), settings=None):
    """conditions: label → metrics, or a function of the seed to metrics."""
    runs = {label: {str(s): run(label, s, of(s) if callable(of) else of, documents) for s in SEEDS}
            for label, of in conditions.items()}
    record = {"experiment": name, "command": "", "settings": settings or {}, "runs": runs}
    return Results(record, tuple(TOKENS.values()))


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
    rates = lambda losses: {"rate": [0.01, 0.017, 0.03, 0.052], "loss": losses, "validation": losses}
    frontier = {"full": {"rate": [1e-4, 2e-4, 4e-4], "learned": [0.2, 0.4, 0.6],
                         "forgotten": so([0.2, 0.4, 0.6], [0.02, 0.05, 0.1])},
                "lora_all": {"rate": [1e-3, 2e-3, 4e-3], "learned": [0.1, 0.3, 0.5], "forgotten": [0.05, 0.1, 0.2]}}
    ratio, exponent = so(1.0, 2.0), so(0.0, 0.4)
    best = {f"{name}, {where}": {"log_best": x} for where in ("60 steps", "150 steps", "small", "medium")
            for name, x in (("full", -3.0), ("LoRA", -3.0 + ratio))}
    best |= {f"r = {r}": {"log_best": -2 + exponent * np.log10(r)} for r in (1, 8, 64)}
    gap = {(4, "full"): 2.0, (4, "lora_all"): 2.1, (64, "full"): 2.3, (64, "lora_all"): so(2.6, 2.3)}
    learns = {(16_384, "full"): 2.8, (16_384, "r = 1"): 2.85, (65_536, "full"): 2.6, (65_536, "r = 1"): 2.7,
              (262_144, "full"): 2.5, (262_144, "r = 1"): so(2.7, 2.5)}
    costs = {("16 bits", 2): 2.5, ("16 bits", 32): 2.4, ("3 bits", 2): so(2.7, 2.55), ("3 bits", 32): 2.5, ("2 bits", 2): 3.0,
             ("2 bits", 32): 2.6}
    prompt = {"small": 0.1, "medium": 0.4, "base": so(0.7, 0.2)}
    deep = {"small": so(0.5, 0.05), "medium": 0.8, "base": 0.9}
    at_3_bits = {"small": 3.9, "medium": 3.7, "base": so(3.4, 3.6)}
    return {r.record["experiment"]: r for r in (
        results("methods", {
            "frozen": {"loss": 3.0, "accuracy": 0.4, "forgetting": 0.0, "share": 0.0},
            "full": {"loss": 2.0, "accuracy": 0.8, "forgetting": 0.4, "share": 1.0},
            "lora_all": {"loss": so(2.05, 2.5), "accuracy": 0.79, "forgetting": so(0.1, 0.5), "share": 0.038}},
                ("loss", "forgetting")),
        results("placement", {"Wq r=36": {"loss": so(2.7, 2.4)}, "Wv r=36": {"loss": 2.6}, "all four r=9": {"loss": 2.5},
                              "all six r=4": {"loss": so(2.4, 2.6)}, "up and down r=7": {"loss": so(2.4, 2.7)}}, ("loss",)),
        results("best_rates", best),
        results("batches", {f"{name}, {rows} rows": {"loss": x} for (rows, name), x in gap.items()}, ("loss",)),
        results("capacity", {f"{name}, {n:,} tokens": {"loss": x} for (n, name), x in learns.items()}, ("loss",)),
        results("rounding_rank", {f"{bits}, r = {r}": {"loss": x} for (bits, r), x in costs.items()}, ("loss",)),
        results("rank", {c: {"loss": x} for c, x in (ranks | {"64/sqrt": so(1.9, 2.1)}).items()}, ("loss",)),
        results("frontier", frontier, ("learned", "forgotten"), {"factors": [1 / 4, 1 / 2, 1]}),
        results("adalora", {"all six r=2": {"loss": 2.5}, "AdaLoRA 3 → 2": {"loss": so(2.4, 2.6)}, "all six r=8": {"loss": 2.5},
                            "AdaLoRA 12 → 8": lambda s: {"loss": 2.4, "ranks": kept(s)}}, ("loss",)),
        results("adalora_planted", {"attention": {"spearman": so(0.8, -0.5), "of_planted": 0.9, "share_planted": 0.55,
                                                  "mean_by_kind": [1, 2, 3, 2]}}),
        results("dylora", {"DyLoRA": {"loss": [so(x + 0.01, 2.9) for x in (2.05, 2.04, 2.03, 2.02, 2.01)]},
                           "DyLoRA × 3": {"loss": [2.05, 2.04, 2.03, 2.02, 2.01]},
                           "LoRA r=16, cut": {"loss": [2.5, 2.5, 2.5, 2.5, 2.0],
                                              "loss_svd": [so(x + 0.01, 2.6) for x in (2.05, 2.04, 2.03, 2.02, 2.01)]}},
                ("loss", "loss_svd")),
        results("adapters", {"sequential 16, norms": {"loss": so(2.05, 2.5), "accuracy": 0.79, "share": 0.037},
                             **loss(sequential_16=2.2, parallel_16=so(2.1, 2.3), sequential_64=2.2, parallel_64=2.1)},
                ("loss",)),
        results("prompts", {f"{c} {b}": {"gain": x, "parameters": n} for size, b, n in BASES for c, x in
                            (("full", 1.0), ("prompt", prompt[size]), ("ptuning_v2", deep[size]))}, ("gain",)),
        results("prefix_length", loss(prompt_100=2.5, prefix_10=2.2), ("loss",)),
        results("prefix_rates", {"reparameterized": rates(so(steady, shaky)), "direct": rates(so(shaky, steady))}, ("loss",)),
        results("sizes", {f"{c} {b}": {"gain": 0.7} for _, b, _ in BASES for c in ("lora_all", "adapter", "r = 4")}, ("gain",)),
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
        results("k_quants", {c: {"excess": x, "bits": 4.5} for c, x in {
            "Q4_0": 0.2, "NF4": 0.2, "int4 asymmetric": 0.2, "GPTQ": 0.1, "Q5_K": 0.05, "Q6_K": 0.02, "Q4_K": so(0.1, 0.3),
            "Q4_K, importance": so(0.05, 0.4), "Q4_K, importance from other text": 0.1, "Q4_K, equal importance": 0.1,
            "Q4_K, shuffled importance": 0.1}.items()}),
        results("qlora", {"16 bits": {"before": 3.0, "after": 2.0, "to_NF4": so(2.3, 2.4), "to_int3": 2.7}, **{
            c: {"before": 3.0, "after": so(2.03, 2.4), "merged_into_16_bits": 2.1, "merged_and_rounded": so(2.2, 2.6)}
            for c in ("NF4", "NF4, double", "int3")}}, ("before", "after", "merged_and_rounded", "to_NF4", "to_int3")),
        results("loftq", {f"{c}, {b}": {"after": x} for b in ("NF4", "3 bits", "2 bits") for c, x in
                          (("QLoRA", 2.5), ("LoftQ", so(2.4, 2.6)))}, ("after",)),
        results("successors", {
            **{c: {"loss": x, "trained": 1e4, "norms": 0.1} for c, x in {
                "LoRA, small": so(2.5, 2.4), "DoRA, r = 1": so(2.4, 2.5), "LoRA, middle": 2.4, "DoRA, middle": 2.3,
                "LoRA on NF4": 2.5, "DoRA on NF4": 2.4, "LoRA, 60 steps": 2.6, "LoRA from pissa, 60 steps": so(2.5, 2.7),
                "LoRA from pissa": 2.4, "VeRA, small": so(2.41, 2.7), "full": 2.2, "full by Muon": so(2.1, 2.3),
                "full by AdamW8bit": so(2.2, 2.3), "full by GaLore": so(2.22, 2.6)}.items()},
            "OFT, middle": {"loss": 2.3, "trained": 1e4, "norms": 0.0}}, ("loss",)),
        results("qat", {"float32, trained as long": {"excess": 0.0}, **{f"{c}, {b} bits": {"excess": x} for b in (3, 2)
                                                                        for c, x in trained.items()}}),
        results("pretrained_for", {size: {"excess": [0.1, so(0.2, 0.05)], "parts": [[0.1] * 8, [so(0.2, 0.05)] * 8]}
                                   for size in ("small", "medium")}),
        results("bits_vs_parameters", {f"{b}, {bits} bits": {"loss": x, "matrices": 4e5, "bytes": 8e5}
                                       for size, b, _ in BASES for bits, x in (
                                           (16, {"small": 3.9, "medium": 3.5, "base": 3.0}[size]), (3, at_3_bits[size]))}))}


def distinct(results: dict[str, Results]) -> dict[str, Results]:
    """The same results, with another number added to every condition, metric and entry of a list: an expression that reads
    another one has another effect."""
    for name, r in results.items():
        for label, runs in r.record["runs"].items():
            for metric in {m for run in runs.values() for m in run if not m.endswith("_documents")}:
                rng = np.random.default_rng(zlib.crc32(f"{name}, {label}, {metric}".encode()))
                shape = np.shape(next(iter(runs.values()))[metric])
                more = 0.01 * rng.random(shape)
                for run in runs.values(): run[metric] = (np.asarray(run[metric], float) + more).tolist()
    return results
