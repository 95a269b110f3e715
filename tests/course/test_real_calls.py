"""The calls of other libraries with which lessons end do run, where the library is installed: each on a tiny model of ours."""
import contextlib
import importlib.util
import re
import warnings

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.course import percent

BLOCK = re.compile(r"^## The real call\n.*?^```python\n(.*?)^```", re.S | re.M)
CALLS = {path.stem: match[1] for path in percent.sources() if path.stem[:2] < "09"
         if (match := BLOCK.search("\n\n".join(c.source for c in percent.parsed(path) if c.kind == "markdown")))}


def tiny():
    """A LLaMA of two narrow layers, with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    sizes = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                 max_position_embeddings=64)
    return LlamaForCausalLM(LlamaConfig(**sizes))


def batch(length=8):
    import torch
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 40, (2, length)))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone()}


def libraries(code): return set(re.findall(r"^(?:from|import) (\w+)", code, re.M))


OWN = "adapters"                                          # wants an older transformers, so that few have it
RUN = [stem for stem, code in CALLS.items() if OWN not in libraries(code) or importlib.util.find_spec(OWN)]


@pytest.mark.parametrize("stem", RUN)
def test_a_real_call_runs(stem, tmp_path, monkeypatch):
    """The names that a call uses and does not define: a model, and batches of tokens."""
    code = CALLS[stem]
    for library in libraries(code): pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)                          # some write a file
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        given = {"model": tiny(), "batches": [batch(), batch()]} if re.search(r"\b(model|batches)\b", code) else {}
        exec(code, given)
    HELD[stem](given)


def named(given, part): return [name for name, p in given["tuned"].named_parameters() if part in name and p.requires_grad]


def lora_on_all_layers(given):
    """Seven linear layers a block, each with two matrices."""
    assert len(named(given, "lora_")) == 2 * 2 * 7 == len(named(given, ""))


def slopes_of_tanh(given):
    x, y = given["x"], np.tanh([0.5, -1.0, 2.0])
    assert np.allclose(x.grad, (1 - y**2) * [1, 10, 100], atol=1e-5)


def only_norms_get_gradients(given):
    got = {name for name, p in given["model"].named_parameters() if p.grad is not None}
    assert got == {name for name, _ in given["model"].named_parameters() if "norm" in name} != set()


def as_many_as_in_our_base(given):
    assert given["gpt2"].num_parameters() == tp.load_pretrained().n_parameters() == 1_155_456


def all_weights_move(given):
    fresh = dict(tiny().named_parameters())
    assert all(abs(p - fresh[name]).max() > 0 for name, p in given["model"].named_parameters())


def an_adapter_is_trained(given):
    """Where the library is there: what is trained belongs to the adapter, or to the norms."""
    assert all("adapter" in name or "norm" in name for name, p in given["model"].named_parameters() if p.requires_grad)


def a_prompt_of_20_vectors(given):
    (trained,) = [p for p in given["tuned"].parameters() if p.requires_grad]
    assert trained.shape == (20, 16)


def a_table_for_every_layer(given):
    """20 rows with a key and a value of 16 numbers for two layers."""
    (trained,) = [p for p in given["tuned"].parameters() if p.requires_grad]
    assert trained.shape == (20, 2 * 2 * 16)


def changes_and_merges(given):
    """LoRA trains two matrices a layer, and merging leaves a plain model."""
    merged = given["merged"]
    assert type(merged).__name__ == "LlamaForCausalLM" and not [n for n, _ in merged.named_parameters() if "lora" in n]
    assert np.isfinite(merged(**batch()).loss.item())


def triplets_are_trained(given):
    assert len(named(given, "lora_E")) == len(named(given, "lora_A")) == len(named(given, "lora_B")) == 2 * 4


HELD = {"00_map": lora_on_all_layers, "01_autograd": slopes_of_tanh, "01b_gradients": only_norms_get_gradients,
        "02_transformer": as_many_as_in_our_base, "03_full_finetuning": all_weights_move,
        "04_adapters": an_adapter_is_trained, "05_prompt_tuning": a_prompt_of_20_vectors,
        "06_prefix": a_table_for_every_layer, "07_lora": changes_and_merges, "08_adalora": triplets_are_trained}


def test_each_call_is_held_to_something():
    assert HELD.keys() == CALLS.keys()
