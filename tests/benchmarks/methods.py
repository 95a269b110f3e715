"""A training step of every method over PEFT's, on the same model of the base's size; ratios are medians over pairs.

    python -m tests.benchmarks.methods [--rounds 9] [--json FILE]

What PEFT wraps a layer with goes on a copy of the model that is written in plain PyTorch, and virtual tokens, for which PEFT
needs a model of transformers, on a GPT-2 of transformers with the same weights. Both sides train the same number of
parameters. Methods that PEFT does not have are timed alone.
"""
import tempfile
from types import SimpleNamespace

import peft
import torch
import transformers

import tinypeft as tp
from tests.benchmarks.measure import in_turn, medians, mib, parser, ratio, torch_peak, traced_peak, write
from tests.benchmarks.sides import HORIZON, SIZES, batch_of, ours, theirs
from tests.oracles.torch_gpt import TorchGPT, torch_copy

CONFIG, ROWS = SIZES["base"]
VIRTUAL, WIDTH = 20, 128                                 # virtual tokens; units of the MLP that makes them
MATRICES = ["query", "key", "value", "output", "up", "down"]
QV = {"target_modules": ["query", "value"]}
LM = {"task_type": "CAUSAL_LM", "num_virtual_tokens": VIRTUAL}

OTHERS = {                                               # whose settings are not the defaults
    "lora": tp.LoRA(rank=8), "adalora": tp.AdaLoRA(init_rank=12, target_rank=8),
    "prefix": tp.PrefixTuning(VIRTUAL, hidden=WIDTH), "ptuning_v2": tp.PTuningV2(VIRTUAL, dropout=0.0),
    "prompt": tp.PromptTuning(VIRTUAL), "ptuning": tp.PTuning((VIRTUAL, "target"), encoder="mlp", hidden=WIDTH),
    "dylora": tp.DyLoRA(rank=8), "dora": tp.DoRA(rank=8), "lokr": tp.LoKr(rank=2, alpha=2.0),
    "c3a": tp.C3A(16), "oft": tp.OFT(16), "trainable_tokens": tp.TrainableTokens(tuple(range(20)))}
OURS = {name: OTHERS.get(name) or tp.METHODS[name]() for name in tp.METHODS if name != "probe"}       # a probe trains no model
WRAPPING = {
    "full": None,
    "lora": peft.LoraConfig(r=8, **QV),
    "dora": peft.LoraConfig(r=8, use_dora=True, **QV),
    "adalora": peft.AdaLoraConfig(init_r=12, target_r=8, tinit=HORIZON // 10, tfinal=4 * HORIZON // 10, deltaT=10,
                                  orth_reg_weight=0.01, total_step=HORIZON, target_modules=MATRICES),
    "ia3": peft.IA3Config(target_modules=["key", "value", "down"], feedforward_modules=["down"]),
    "loha": peft.LoHaConfig(r=8, alpha=8, **QV),
    "lokr": peft.LoKrConfig(r=2, alpha=2, **QV),
    "hira": peft.HiraConfig(r=8, **QV),
    "miss": peft.MissConfig(r=8, **QV),
    "vera": peft.VeraConfig(**QV),
    "randlora": peft.RandLoraConfig(**QV),
    "shira": peft.ShiraConfig(r=8, **QV),
    "fourierft": peft.FourierFTConfig(n_frequency=1000, **QV),
    "c3a": peft.C3AConfig(block_size=16, **QV),
    "oft": peft.OFTConfig(oft_block_size=16, use_cayley_neumann=False, **QV)}
AT_SEAMS = {
    "prefix": peft.PrefixTuningConfig(**LM, prefix_projection=True, encoder_hidden_size=WIDTH),
    "ptuning_v2": peft.PrefixTuningConfig(**LM),
    "prompt": peft.PromptTuningConfig(**LM),
    "ptuning": peft.PromptEncoderConfig(**LM, encoder_hidden_size=WIDTH)}


class WithLoss(torch.nn.Module):
    """A model whose output has the loss as well, to which PEFT's AdaLoRA adds its penalty."""

    def __init__(self, model: TorchGPT):
        super().__init__()
        self.model = model

    def forward(self, tokens, targets=None):
        logits = self.model(tokens)
        loss = None if targets is None else torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return SimpleNamespace(logits=logits, loss=loss)


def transformers_copy(model):
    """A GPT-2 of transformers with the weights of `model`, by way of a folder."""
    with tempfile.TemporaryDirectory() as folder:
        tp.save_model(model, folder)
        return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


def counterpart(name, model, batch):
    """(model, step) of PEFT, or None for a method that it lacks."""
    if name in AT_SEAMS:
        adapted = peft.get_peft_model(transformers_copy(model), AT_SEAMS[name])
        mask = torch.ones(batch[0].shape, dtype=torch.long)
        return adapted, theirs(adapted, batch, lambda tokens: adapted(input_ids=tokens, attention_mask=mask))
    if name not in WRAPPING: return None                 # PEFT lacks it, or trains other numbers
    copy = torch_copy(model, torch.float32)
    if name == "full": return copy, theirs(copy, batch)
    adapted = peft.get_peft_model(WithLoss(copy), WRAPPING[name])
    for n, p in adapted.named_parameters():
        if "ranknum" in n: p.requires_grad = False       # AdaLoRA's init_r, a constant
    allocate = getattr(adapted.base_model, "update_and_allocate", lambda t: None)
    if name != "adalora": return adapted, theirs(adapted, batch)
    targets = torch.as_tensor(batch[1])                  # PeftModel's own forward would leave the penalty out
    return adapted, theirs(adapted, batch, after_step=allocate, loss=lambda tokens: adapted.base_model(tokens, targets).loss)


def compared(name, rounds):
    """The cells of a method: milliseconds and memory of a step and trained parameters on each side, and the ratios."""
    config, model = CONFIG, tp.GPT(CONFIG)
    batch = batch_of(config, ROWS, config.context_length - VIRTUAL)
    tuned = tp.attach(tp.GPT(config), OURS[name])
    trained, steps = {"tinypeft": sum(p.size for p in tuned.trainable_parameters())}, {"tinypeft": ours(tuned, batch)}
    if there := counterpart(name, model, batch):
        adapted, steps["PEFT"] = there
        trained["PEFT"] = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    times = in_turn(steps, rounds)
    peaks = {side: (traced_peak if side == "tinypeft" else torch_peak)(step) for side, step in steps.items()}
    ms = medians(times, 1e-3, 1)
    return {"method": f"`{OURS[name]!r}`", "trained": trained["tinypeft"], "PEFT: trained": trained.get("PEFT"),
            "ms": ms["tinypeft"], "PEFT: ms": ms.get("PEFT"),
            "ratio": ratio(times["tinypeft"], times["PEFT"]) if there else None,
            "MiB": mib(peaks["tinypeft"]), "PEFT: MiB": mib(peaks.get("PEFT")),
            "memory ÷ PEFT": round(peaks["tinypeft"] / peaks["PEFT"], 3) if there else None}


def main(argv=None):
    args = parser(__doc__, 9).parse_args(argv)
    table = {}
    print(f"{'method':<20}{'trained':>10}{'ms':>8}{'PEFT':>8}{'ratio':>8}{'memory':>8}")
    for name in OURS:
        row = table[name] = compared(name, args.rounds)
        print(f"{name:<20}{row['trained']:>10,}{row['ms']:>8}{row['PEFT: ms'] or '–':>8}"
              f"{row['ratio'] or '–':>8}{row['memory ÷ PEFT'] or '–':>8}", flush=True)
    write("methods", args, {"methods": table}, {"methods": {"rows": ROWS, "tokens": CONFIG.context_length - VIRTUAL}})


if __name__ == "__main__":
    main()
