"""What one types into the site's search, and what has to come first. `website.py` types it in a browser."""
GLOSSARY = "lessons/GLOSSARY.html#word-"
FIRST = {                                                # what a learner types → what comes first
    "qlora": "lessons/13_nf4_qlora.html", "rank": f"{GLOSSARY}rank", "gptq": "tinypeft/quant/gptq.html",
    "outlier": f"{GLOSSARY}outlier", "lora": "tinypeft/peft/lora.html", "prefix tuning": "tinypeft/peft/prefix.html",
    "nf4": "tinypeft/quant/nf4.html", "adapter": f"{GLOSSARY}adapter", "dora": "tinypeft/peft/dora.html",
    "quantization": f"{GLOSSARY}quantization", "learning rate": f"{GLOSSARY}learning-rate", "merge": f"{GLOSSARY}merge",
    "perplexity": f"{GLOSSARY}perplexity", "gguf": "tinypeft/quant/gguf.html", "galore": f"{GLOSSARY}galore",
    "awq": "tinypeft/quant/awq.html", "smoothquant": "tinypeft/quant/smoothquant.html",
    "memory": "lessons/03_full_finetuning.html", "prompt tuning": "tinypeft/peft/prompt.html",
    "catastrophic forgetting": f"{GLOSSARY}forgetting-catastrophic-forgetting",
    "nats": f"{GLOSSARY}nats", "ia3": "tinypeft/peft/ia3.html", "quantize": "lessons/10_quantization.html",
    "rank stabilized": "lessons/07_lora.html", "desc_act": "lessons/12_gptq_awq.html",
    "own data": "tinypeft/commands/README.html",
}
NOTHING = {                                              # what finds nothing → where it stands all the same
    "dxhat": "lessons/01_autograd.html",                 # in a solution
    "movements": "lessons/07_lora.html",                 # in a folded answer
    "FunctionDef": "lessons/projects/example/1_own_task.html",
    "unfrozen": "tinypeft/peft/dylora.html",             # in the name of a test
    "mutant": "tests/README.html",
}
