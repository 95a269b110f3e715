"""LoReFT as its authors' package computes it: what `tinypeft.peft.loreft` must equal.

`pyreft.json` holds each block's R, W and b, the logits and gradients of padded rows, and a greedy continuation. Nobody needs
the package for one method, so this was run once, with pyreft 0.1.0, pyvene 0.1.8 and what they import in a folder of their own:

    PYTHONPATH=.:FOLDER python -m tests.oracles.pyreft
"""
import json
from pathlib import Path

import numpy as np

from tests.families import make

__all__ = ["LENGTHS", "NEW", "P", "RANK", "S", "TOKENS", "stored"]

FILE = Path(__file__).with_suffix(".json")
FAMILY, RANK, P, S, NEW = "Llama", 3, 2, 2, 6
TOKENS, LENGTHS = np.random.default_rng(0).integers(1, 37, (3, 9)), np.array([9, 6, 7])
TIED = True, False


def stored():
    """(tied, name → array) of each run."""
    for run in json.loads(FILE.read_text("utf-8")):
        yield run["tied"], {name: np.float64(array) for name, array in run.items() if name != "tied"}


def run(tied):
    """One run of the authors' interventions on transformers' model."""
    import pyreft
    import torch

    from tests.oracles.torch_llama import torch_llama
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    base = torch_llama(make(FAMILY), torch.float64, True)
    base.config.pad_token_id = 0
    L, d = base.config.num_hidden_layers, base.config.hidden_size
    layers = [*range(L)] * (1 if tied else 2)
    phis = [pyreft.LoreftIntervention(embed_dim=d, low_rank_dimension=RANK, dtype=torch.float64) for _ in layers]
    model = pyreft.get_reft_model(base, pyreft.ReftConfig(representations=[
        {"layer": layer, "component": "block_output", "low_rank_dimension": RANK, "intervention": phi}
        for layer, phi in zip(layers, phis, strict=True)]), set_device=False)
    places = {"first": [[*range(P)] for _ in LENGTHS], "last": [[*range(n - S, n)] for n in LENGTHS]}
    both = [a + b for a, b in zip(*places.values(), strict=True)]
    where = [both] * L if tied else [places["first"]] * L + [places["last"]] * L
    x = torch.as_tensor(TOKENS)
    mask = torch.as_tensor(np.arange(TOKENS.shape[1]) < LENGTHS[:, None]).long()
    logits = model({"input_ids": x, "attention_mask": mask}, unit_locations={"sources->base": (None, where)})[1].logits
    counts = mask.bool()
    loss = torch.nn.functional.cross_entropy(logits[counts], x[counts])      # of each position's own token: the last counts
    loss.backward()
    one = slice(LENGTHS.argmax(), LENGTHS.argmax() + 1)
    written = model.generate({"input_ids": x[one], "attention_mask": mask[one]}, max_new_tokens=NEW, do_sample=False,
                             unit_locations={"sources->base": (None, [rows[one] for rows in where])},
                             intervene_on_prompt=True)[1]
    phis = [v[0] if isinstance(v, (list, tuple)) else v for v in model.interventions.values()]
    brief = lambda tensors: [t.detach().numpy().tolist() for t in tensors]
    sources = [phi.learned_source for phi in phis]
    return {"tied": tied, "R": brief(phi.rotate_layer.weight.T for phi in phis), "W": brief(s.weight for s in sources),
            "b": brief(s.bias for s in sources), "logits": logits.detach().numpy().tolist(), "loss": loss.item(),
            "dW": brief(s.weight.grad for s in sources), "db": brief(s.bias.grad for s in sources),
            "written": written.numpy().tolist()}


if __name__ == "__main__":
    FILE.write_text(json.dumps([run(tied) for tied in TIED]) + "\n", "utf-8")
