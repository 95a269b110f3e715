"""transformers' models with the weights of ours, PEFT on them, and a few steps of training there."""
import copy
import functools
import logging
import warnings

import numpy as np
import peft
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

import tinypeft as tp
from tests.families import make

from .torch_llama import torch_llama

LAYERS = {"attn.c_proj": "attention.output", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
TOKENS = np.random.default_rng(1).integers(1, 37, (3, 7))                # 0 is the classifier's padding
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
SEVEN = [7, 7, 7]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft.*", "ignore::UserWarning:torch.*",
                                        "ignore:The following rank_pattern keys")     # of AdaLoRA, which PEFT reads elsewhere
logging.getLogger("transformers").setLevel(logging.ERROR)


@functools.cache
def base(family, classes=None):
    """transformers' model with the weights of `make(family)`, in float64. It is made once, so copy it before you change it."""
    return transformers_model(make(family), classes)


def files(folder):
    """The bytes of the two files of an adapter."""
    return [(folder / name).read_bytes() for name in (CONFIG, TENSORS)]


def transformers_model(model, classes=None):
    """transformers' model for the next token, or with `classes` a classifier, with the weights of `model`, in its dtype."""
    if isinstance(model, tp.GPT): return gpt2(model, classes)
    exact = model.token_embedding.weight.dtype == np.float64
    theirs = torch_llama(model, torch.float64 if exact else torch.float32, exact)
    theirs.config.pad_token_id = theirs.config.bos_token_id = 0
    if classes is None: return theirs
    config = copy.deepcopy(theirs.config)
    config.num_labels = classes
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_config(config).to(theirs.dtype)
    classifier.model = theirs.model
    return classifier.eval()


def gpt2(model, classes=None):
    """GPT2LMHeadModel, or with `classes` GPT2ForSequenceClassification, with the weights of `model`, in its dtype."""
    c = model.config
    config = GPT2Config(vocab_size=c.vocab_size, n_positions=c.context_length, n_embd=c.d_model, n_layer=c.n_layers,
                        n_head=c.n_heads, layer_norm_epsilon=c.norm_eps, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
                        bos_token_id=0, eos_token_id=0, pad_token_id=0, num_labels=classes or 2)
    torch.manual_seed(0)
    theirs = (GPT2ForSequenceClassification if classes else GPT2LMHeadModel)(config)
    theirs = theirs.to(torch.float64 if model.token_embedding.weight.dtype == np.float64 else torch.float32)
    ours = model.state_dict()

    def put(name, array):
        p = theirs.transformer.get_parameter(name)
        assert tuple(p.shape) == array.shape
        with torch.no_grad(): p.copy_(torch.as_tensor(array.copy()))
    put("wte.weight", ours["token_embedding.weight"])
    put("wpe.weight", ours["position_embedding.weight"])
    norms = {"ln_f": "final_norm"}
    for n in range(c.n_layers):
        norms |= {f"h.{n}.ln_1": f"blocks.{n}.norm1", f"h.{n}.ln_2": f"blocks.{n}.norm2"}
        for kind in ("weight", "bias"):
            qkv = [ours[f"blocks.{n}.attention.{x}.{kind}"] for x in ("query", "key", "value")]
            put(f"h.{n}.attn.c_attn.{kind}", np.concatenate(qkv).T)
            for name, path in LAYERS.items(): put(f"h.{n}.{name}.{kind}", ours[f"blocks.{n}.{path}.{kind}"].T)
    for name, path in norms.items():
        for kind in ("weight", "bias"): put(f"{name}.{kind}", ours[f"{path}.{kind}"])
    return theirs.eval()


def loaded(base, folder, **options):
    """PEFT with the adapter of `folder` on a copy of `base`; a warning about its tensors is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected|adapter keys|Unexpected).*")
        return peft.PeftModel.from_pretrained(copy.deepcopy(base), folder, **options).eval()


def trained(base, config, tokens, classes=None, steps=3, lr=0.05):
    """PEFT with `config` on a copy of `base`, after a few steps of AdamW, and AdaLoRA's pruning with them."""
    torch.manual_seed(1)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    for name, p in model.named_parameters():
        if "ranknum" in name: p.requires_grad = False
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, tokens, classes).backward()
        optimizer.step()
        if hasattr(model.base_model, "update_and_allocate"): model.base_model.update_and_allocate(step)
    return model.eval()


def loss(model, tokens, classes=None):
    """Of the next token, or of row b being of class b mod `classes`."""
    if classes is None:
        return F.cross_entropy(logits(model, tokens)[:, :-1].flatten(0, 1), torch.as_tensor(tokens[:, 1:]).flatten())
    return F.cross_entropy(class_logits(model, tokens), torch.arange(len(tokens)) % classes)


def logits(model, tokens):
    """(B, T, V): of the tokens, not of virtual ones before them."""
    x = torch.as_tensor(tokens)
    return model(input_ids=x, attention_mask=torch.ones_like(x)).logits[:, -x.shape[1]:]


def class_logits(model, tokens):
    """(B, C). For prefixes past PEFT's forward, which does not know the classifier of transformers 5."""
    x = torch.as_tensor(tokens)
    if getattr(model, "active_peft_config", None) is not None and model.active_peft_config.peft_type == "PREFIX_TUNING":
        mask = torch.ones(len(x), x.shape[1] + model.active_peft_config.num_virtual_tokens)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.base_model(x, past_key_values=model.get_prompt(len(x)), attention_mask=mask).logits
    return model(input_ids=x, attention_mask=torch.ones_like(x)).logits
