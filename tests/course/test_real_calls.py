"""The calls of other libraries with which lessons end do run, where the library is installed: each on a tiny model of ours."""
import contextlib
import importlib.util
import re
import warnings

import numpy as np
import pytest

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


@pytest.mark.parametrize("stem", CALLS)
def test_a_real_call_runs(stem, tmp_path, monkeypatch):
    """The names that a call uses and does not define: a model, and batches of tokens."""
    code = CALLS[stem]
    monkeypatch.chdir(tmp_path)                          # some write a file
    for library in set(re.findall(r"^(?:from|import) (\w+)", code, re.M)):
        if importlib.util.find_spec(library) is None: pytest.skip(f"{library} is not installed")
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        given = {"model": tiny(), "batches": [batch(), batch()]} if re.search(r"\b(model|batches)\b", code) else {}
        exec(code, given)
    HELD[stem](given)


def changes_and_merges(given):
    """A fresh LoRA trains two matrices a layer, and merging leaves a plain model."""
    import torch
    merged = given["merged"]
    assert type(merged).__name__ == "LlamaForCausalLM" and not [n for n, _ in merged.named_parameters() if "lora" in n]
    assert torch.isfinite(merged(**batch()).loss)


HELD = {"07_lora": changes_and_merges}


def test_each_call_is_held_to_something():
    assert HELD.keys() == CALLS.keys()
