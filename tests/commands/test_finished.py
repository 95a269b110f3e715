"""The end of a job, as a user types it: merge, combine, export, quantize; folders that are new and whole."""
import errno
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import tinypeft as tp
from tests.commands.test_commands import own, run  # noqa: F401 (own is a fixture)
from tests.families import make as family_of
from tinypeft.commands.cli import main
from tinypeft.engine.nn import Dropout
from tinypeft.interop.gguf_reader import read_gguf
from tinypeft.text.tasks.answering import Answering

TOKENS = np.random.default_rng(0).integers(0, 900, (2, 12))


def spread(tuned, rng=0):
    """Give every trained number a value that matters, as a training would."""
    rng = np.random.default_rng(rng)
    for p in tuned.trainable_parameters():
        p.data = (p.data + 0.05 * rng.standard_normal(p.shape)).astype(p.dtype)
    return tuned


def logits(model):
    for _, m in model.named_modules():
        assert not isinstance(m, Dropout) or not m.p
    return model(TOKENS).data


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of models by name: the shipped one, a Llama, and the shipped one in codes."""
    folder, model = tmp_path_factory.mktemp("bases"), tp.load_pretrained()
    tp.save_model(model, folder / "gpt")
    llama = family_of("Llama", np.float32, vocab_size=1024, context_length=128, d_model=32, d_head=8, d_mlp=32)
    llama.tokenizer = model.tokenizer
    tp.save_model(llama, folder / "llama")
    tp.save_quantized(tp.quantize(tp.load_pretrained(), tp.NF4()), folder / "nf4.safetensors")
    tp.save_quantized(tp.quantize(tp.load_pretrained(), tp.LLMInt8()), folder / "int8.safetensors")
    return folder


def adapter_on(base, method, folder, task=None, **options):
    """Save an adapter; return it."""
    tuned = spread(tp.attach(tp.load_model(base), method, rng=0, **options))
    tuned.save(folder, task=task)
    return tuned


# -- merge -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("base", ["gpt", "llama", "nf4.safetensors"])
@pytest.mark.parametrize("method", [tp.LoRA(rank=2), tp.LoRA(rank=2, init="pissa"), tp.FullFineTuning(("*norm*",))])
def test_what_merges_becomes_a_model(capsys, bases, tmp_path, base, method):
    """Of plain weights also on a base of codes: the numbers of the codes, with the change."""
    tuned = adapter_on(bases / base, method, tmp_path / "adapter")
    out = tmp_path / "m"
    status, said, err = run(capsys, "merge", "--model", bases / base, "--adapter", tmp_path / "adapter", "--out", out)
    assert (status, err) == (0, "") and said.startswith(f"merged {method}; saved in {out}\nnext: python -m tinypeft gen")
    merged = tp.load_model(tmp_path / "m")
    assert merged.tokenizer == tuned.tokenizer and merged.dtype == np.float32
    np.testing.assert_allclose(logits(merged), logits(tuned), rtol=0, atol=1e-3)
    assert not np.allclose(logits(merged), logits(tp.load_model(bases / base)), rtol=0, atol=1e-2)
    page = (tmp_path / "m" / "README.md").read_text("utf-8")
    assert f"Method: `{method}`" in page and re.search(r"Base: .*" + base, page)
    assert json.loads((tmp_path / "m" / "run.json").read_text())["result"]["saved"] == str(tmp_path / "m")


@pytest.mark.parametrize("method, says", [
    (tp.LoReFT(rank=2), "works by a hook on states"), (tp.PromptTuning(length=2), "works by virtual tokens"),
    (tp.PrefixTuning(length=2), "works by virtual tokens"), (tp.BottleneckAdapter(), "has no `merge`")])
@pytest.mark.parametrize("command", [("merge",), ("export", "--to", "gguf"), ("quantize", "nf4", "--quick")])
def test_what_no_weights_can_replace_is_refused(capsys, tmp_path, method, says, command):
    adapter_on(None, method, tmp_path / "adapter")
    status, out, err = run(capsys, *command, "--adapter", tmp_path / "adapter", "--out", tmp_path / "m")
    assert (status, out) == (2, "") and err.count("\n") == 1 and says in err
    assert err.endswith("; commands take it as it is, by --model and --adapter\n") and not (tmp_path / "m").exists()


def test_layers_that_round_their_inputs_become_plain_only_when_asked(capsys, bases, tmp_path):
    argv = "merge", "--model", bases / "int8.safetensors", "--adapter", tmp_path / "a", "--out", tmp_path / "m"
    tuned = adapter_on(bases / "int8.safetensors", tp.LoRA(rank=2), tmp_path / "a")
    status, _, err = run(capsys, *argv)
    assert status == 2 and "or merge with activations 'exact', whose merged layers" in err and not (tmp_path / "m").exists()
    status, _, err = run(capsys, *argv, "--activations", "exact")
    assert status == 0
    expected = tp.quant.dequantize(tuned.merge(activations="exact"), "exact")
    np.testing.assert_array_equal(logits(tp.load_model(tmp_path / "m")), logits(expected))
    status, _, err = run(capsys, "export", "--to", "hf", "--model", bases / "int8.safetensors", "--out", tmp_path / "n")
    assert status == 2 and "no weights do that. With activations 'exact' it becomes a plain layer" in err


def test_a_merged_model_does_the_adapters_task(capsys, own, tmp_path):  # noqa: F811
    """task.json goes with it, so that `generate` and `evaluate` need no more than --model."""
    made = "--pairs", own / "answers.jsonl"
    run(capsys, "finetune", "lora", *made, "--quick", "--steps", "2", "--out", tmp_path / "a")
    assert run(capsys, "merge", "--adapter", tmp_path / "a", "--out", tmp_path / "m")[0] == 0
    assert (tmp_path / "m" / "task.json").read_bytes() == (tmp_path / "a" / "task.json").read_bytes()
    asked = "generate", "Describe 3 dull coats.", "--max-new-tokens", "5"
    assert run(capsys, *asked, "--model", tmp_path / "m")[1] == run(capsys, *asked, "--adapter", tmp_path / "a")[1]
    after = [json.loads(run(capsys, "evaluate", *made, "--quick", "--json", *which)[1])["after"]
             for which in (("--model", tmp_path / "m"), ("--adapter", tmp_path / "a"))]
    assert after[0]["loss"] == pytest.approx(after[1]["loss"], rel=1e-5)
    page = (tmp_path / "m" / "README.md").read_text("utf-8")
    assert "| after training |" in page and "140 / 30 / 30 rows" in page      # what the adapter's own run.json says


def classifier(folder, bias):
    """An adapter of a classifier on the shipped base, with its task."""
    model = tp.load_pretrained()
    task = tp.tasks.Classification({}, ["bad", "good"], model.tokenizer, 64)
    return adapter_on(None, tp.LoRA(rank=2), folder, task, head=2, head_bias=bias)


def test_a_classifier_becomes_one_of_transformers(capsys, tmp_path):
    tuned = classifier(tmp_path / "a", False)
    status, out, _ = run(capsys, "merge", "--adapter", tmp_path / "a", "--out", tmp_path / "m")
    assert status == 0 and f'next: python -m tinypeft classify "…" --model {tmp_path / "m"}' in out
    assert json.loads((tmp_path / "m" / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}
    expected = tp.tasks.load_task(tmp_path / "a", tuned).predict(tuned, ["a b", "c"], probabilities=True)
    records = json.loads(run(capsys, "classify", "a b", "c", "--model", tmp_path / "m", "--json")[1])
    assert [record["label"] for record in records] == expected[0]
    status, _, err = run(capsys, "export", "--to", "gguf", "--adapter", tmp_path / "a", "--out", tmp_path / "g")
    assert status == 2 and "`export --to hf` has one" in err
    classifier(tmp_path / "b", True)
    status, _, err = run(capsys, "merge", "--adapter", tmp_path / "b", "--out", tmp_path / "n")
    assert status == 2 and err.endswith("has none; `finetune --format peft` trains one without\n")
    status, _, err = run(capsys, "export", "--to", "peft", "--adapter", tmp_path / "b", "--out", tmp_path / "n")
    assert status == 2 and err.endswith("has none; `finetune --format peft` trains one without\n")


# -- combine ---------------------------------------------------------------------------------------
def test_combining_is_that_of_python(capsys, tmp_path):
    for name, rng in ("a", 0), ("b", 1):
        spread(tp.attach(tp.load_pretrained(), tp.LoRA(rank=2), rng=0), rng).save(tmp_path / name)
    a, b = tmp_path / "a", tmp_path / "b"
    status, out, _ = run(capsys, "combine", f"{a}=0.75", f"{b}=-2", "--out", tmp_path / "c")
    assert status == 0 and out.startswith(f"LoRA(rank=4, alpha=4)\nsaved in {tmp_path / 'c'}\n")
    model = tp.load_pretrained()
    expected = logits(tp.combine({a: 0.75, b: -2.0}, model=model))
    np.testing.assert_array_equal(logits(tp.load_adapter(tp.load_pretrained(), tmp_path / "c")), expected)
    assert f"Combined by cat: 0.75 × {a} + -2 × {b}.".replace("_", r"\_") in (tmp_path / "c" / "README.md").read_text("utf-8")
    options = "--how", "ties", "--density", "0.5", "--rank", "3", "--format", "peft"
    status, out, _ = run(capsys, "combine", a, b, *options, "--out", tmp_path / "d", "--json")
    assert status == 0 and json.loads(out)["adapters"] == {str(a): 1.0, str(b): 1.0}
    assert tp.load_adapter(tp.load_pretrained(), tmp_path / "d").method.rank == 3


def test_a_combined_adapter_is_measured_on_the_test_split_of_each_of_its_files(capsys, own, tmp_path):  # noqa: F811
    rows = (own / "answers.jsonl").read_text("utf-8").splitlines(keepends=True)
    base, files = tp.load_pretrained(), {"a": rows[:100], "b": rows[100:], "c": rows[50:150]}
    for name, part in files.items(): (tmp_path / f"{name}.jsonl").write_text("".join(part), "utf-8")
    for name in "ab":
        adapter_on(None, tp.LoRA(rank=2), tmp_path / name, tp.tasks.pairs(tmp_path / f"{name}.jsonl", base))
    status, out, err = run(capsys, "combine", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both")
    assert (status, err) == (0, "") and out.splitlines()[-1] == (
        "to measure it, with each of a.jsonl, b.jsonl as FILE: python -m tinypeft evaluate --pairs FILE --adapter "
        f"{tmp_path / 'both'}")
    argv = "evaluate", "--adapter", tmp_path / "both", "--quick", "--json", "--pairs"
    measured = {name: json.loads(run(capsys, *argv, tmp_path / f"{name}.jsonl")[1])["on"] for name in files}
    assert measured == {"a": "the test split", "b": "the test split", "c": "all of it"}


def test_adapters_of_different_tasks_say_so_before_any_work(capsys, monkeypatch, own, tmp_path):  # noqa: F811
    base = tp.load_pretrained()
    pairs, text = tp.tasks.pairs(own / "answers.jsonl", base), tp.tasks.text(own / "notes", base)
    for name, task in ("a", pairs), ("b", text), ("c", pairs), ("d", None):
        adapter_on(None, tp.LoRA(rank=2), tmp_path / name, task)
    monkeypatch.chdir(tmp_path)
    said = {other: run(capsys, "combine", "a", other, "--out", f"a{other}")[::2] for other in "bcd"}
    assert said["c"] == (0, "") and (tmp_path / "ac" / "task.json").read_bytes() == (tmp_path / "a" / "task.json").read_bytes()
    assert said["b"][0] == 0 and not (tmp_path / "ab" / "task.json").exists()
    assert said["b"][1].startswith("these are different tasks: a learned pairs (answers.jsonl), b learned text (notes). "
                                   "So the new adapter has no task.json")
    assert "a learned pairs (answers.jsonl), d has no task.json. So " in said["d"][1]
    assert run(capsys, "combine", "b", "nosuch", "--out", "x")[2].count("\n") == 1
    with monkeypatch.context() as m:
        m.setattr("tinypeft.commands.combining.model_of", lambda args: exec("raise ValueError('work')"))
        assert run(capsys, "combine", "a", "b", "--out", "x")[2].splitlines()[0] + "\n" == said["b"][1]


@pytest.mark.parametrize("argv, says", [
    (["a=x", "b"], "expected FOLDER=NUMBER, got"), (["a", "a=2"], "an adapter is named twice"),
    (["a", "p"], "only low-rank changes can be combined"), (["a", "b", "--density", "0.5"], "density is of 'ties', 'dare'"),
    (["a", "b", "--rank", "2"], "rank is of the nearest matrix: 'svd', or 'ties'"),
    (["a", "k"], "`head` must name one of the adapters"),
    (["a", "nothing"], "no adapter.safetensors or adapter_config.json in nothing"),
    (["a", "b", "--how", "sum"], "invalid choice"),
    (["a=nan", "b"], "finite"), (["a", "b", "--how", "ties", "--density", "2"], "--density")])
def test_what_cannot_be_combined(capsys, monkeypatch, tmp_path, argv, says):
    monkeypatch.chdir(tmp_path)
    for name, rng in ("a", 0), ("b", 1):
        spread(tp.attach(tp.load_pretrained(), tp.LoRA(rank=2), rng=0), rng).save(name)
    adapter_on(None, tp.PrefixTuning(length=2), "p")
    classifier("k", True)
    try:
        status = run(capsys, "combine", *argv, "--out", "c")
    except SystemExit as e:
        status = (e.code, *capsys.readouterr())
    assert status[0] == 2 and says in status[2] and status[2].count("\n") == 1 and not (tmp_path / "c").exists()


# -- export ----------------------------------------------------------------------------------------
def test_gguf_of_each_type_comes_back(capsys, bases, tmp_path):
    tuned = adapter_on(bases / "llama", tp.LoRA(rank=2), tmp_path / "a")
    argv = "export", "--to", "gguf", "--model", bases / "llama", "--adapter", tmp_path / "a", "--out"
    assert run(capsys, *argv, tmp_path / "f32")[0] == 0
    assert {path.name for path in (tmp_path / "f32").iterdir()} == {"model.gguf", "README.md", "run.json"}
    np.testing.assert_allclose(logits(tp.load_model(tmp_path / "f32")), logits(tuned), rtol=0, atol=1e-3)
    status, out, _ = run(capsys, *argv, tmp_path / "m.gguf", "--type", "Q8_0", "--json")
    record = json.loads(out)
    assert status == 0 and record["bytes"] == (tmp_path / "m.gguf").stat().st_size
    rounded = tp.load_model(tmp_path / "m.gguf", quantized=True)
    assert type(rounded.token_embedding).__name__ == "QuantizedEmbedding"      # the larger half of a small file
    assert record["bits for each weight"] == round(8 * record["bytes"] / rounded.n_parameters(), 2)
    off = np.abs(logits(rounded) - logits(tuned)).max()
    assert 0 < off < 0.2 * np.abs(logits(tuned)).max() and rounded.tokenizer == tuned.tokenizer


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """Models in GGUF's codes, by family: as a GGUF file, and as a folder of `quantize`. The third is in other codes."""
    folder, shipped = tmp_path_factory.mktemp("coded"), tp.load_pretrained()
    for name in "GPT", "Llama":
        sizes = {"d_mlp": 256, "d_head": 64, "n_kv_heads": 1} if name == "Llama" else {}
        model = family_of(name, np.float32, **{"vocab_size": 1024, "context_length": 128, "d_model": 256, "n_heads": 4} | sizes)
        model.tokenizer = shipped.tokenizer
        tp.quantize(model, tp.GGUF("Q4_K_M", embeddings=True))
        tp.write_gguf(folder / f"{name}.gguf", model)
        (folder / name).mkdir()
        tp.save_quantized(model, folder / name / "quantized.safetensors")
    return folder


@pytest.mark.parametrize("family, place", [("GPT", "GPT.gguf"), ("Llama", "Llama.gguf"), ("Llama", "Llama")])
def test_codes_that_no_adapter_changed_are_kept(capsys, coded, tmp_path, family, place):
    """Without --type; query, key and value of a GPT are one tensor, which is codes only if all three are."""
    argv = "export", "--to", "gguf", "--model", coded / place, "--out"
    status, out, err = run(capsys, *argv, tmp_path / "same.gguf")
    assert (status, err) == (0, "") and "matrices have the codes that they had, 0 are" in out.replace("1 are", "0 are")
    if place.endswith(".gguf"): assert (tmp_path / "same.gguf").read_bytes() == (coded / place).read_bytes()
    tuned = adapter_on(coded / place, tp.LoRA(rank=2, targets=("blocks.0.query",)), tmp_path / "a")
    status, out, _ = run(capsys, *argv, tmp_path / "m.gguf", "--adapter", tmp_path / "a", "--json")
    before, after = read_gguf(coded / f"{family}.gguf"), read_gguf(tmp_path / "m.gguf")
    changed = {name for name in before if after.kind(name) != before.kind(name)}
    assert changed == {"blk.0.attn_qkv.weight" if family == "GPT" else "blk.0.attn_q.weight"}
    assert all(after.kind(name).name == "F32" for name in changed)
    assert all(np.array_equal(after.octets(name), before.octets(name)) for name in before.keys() - changed)
    want = logits(tuned)
    np.testing.assert_allclose(logits(tp.load_model(tmp_path / "m.gguf")), want, rtol=0, atol=1e-3)
    assert np.abs(logits(tp.load_model(coded / f"{family}.gguf")) - want).max() > 0.1     # what a lost adapter would be
    assert re.fullmatch(r"\d+ matrices have the codes that they had, [12] are numbers", json.loads(out)["note"])


@pytest.mark.parametrize("base", ["Llama.gguf", "Llama"])
def test_a_second_rounding_is_said(capsys, coded, bases, tmp_path, base):
    argv = "export", "--to", "gguf", "--model", coded / base, "--out"
    for kind in "Q8_0", "F16", "BF16":
        _, out, _ = run(capsys, *argv, tmp_path / f"{kind}.gguf", "--type", kind)
        assert f"the weights were codes already, and --type {kind} rounded them once more: without --type" in out
    assert "codes" not in run(capsys, *argv, tmp_path / "f32.gguf", "--type", "F32")[1]
    plain = "export", "--to", "gguf", "--model", bases / "llama", "--out", tmp_path / "plain.gguf"
    assert "codes" not in run(capsys, *plain, "--type", "Q8_0")[1]
    other = "export", "--to", "gguf", "--model", bases / "nf4.safetensors", "--out", tmp_path / "nf4.gguf"
    assert "\n0 matrices have the codes that they had, " in run(capsys, *other)[1]       # NF4 is none of GGUF's types


def test_a_lora_for_llama_cpp(capsys, bases, tmp_path):
    """The adapter alone: what `write_gguf_adapter` writes, as a file or in a folder with its card."""
    tuned = adapter_on(bases / "llama", tp.LoRA(rank=2), tmp_path / "a")
    tp.write_gguf_adapter(tmp_path / "expected.gguf", tuned)
    argv = "export", "--to", "gguf-lora", "--model", bases / "llama", "--adapter", tmp_path / "a", "--out"
    status, out, err = run(capsys, *argv, tmp_path / "l.gguf")
    assert (status, err) == (0, "") and f"next: llama-cli -m BASE.gguf --lora {tmp_path / 'l.gguf'}, where BASE" in out
    assert f"`export --to gguf --model {bases / 'llama'} --out BASE.gguf` writes" in out
    assert run(capsys, *argv, tmp_path / "folder")[0] == 0
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"adapter.gguf", "README.md", "run.json"}
    page = (tmp_path / "folder/README.md").read_text("utf-8")
    assert "An adapter for llama.cpp" in page and "```bash\nllama-cli -m BASE.gguf --lora adapter.gguf\n```" in page
    assert "```python" not in page
    expected = (tmp_path / "expected.gguf").read_bytes()
    assert (tmp_path / "l.gguf").read_bytes() == (tmp_path / "folder/adapter.gguf").read_bytes() == expected
    adapter_on(bases / "llama", tp.IA3(), tmp_path / "i")
    status, _, err = run(capsys, *argv[:5], "--adapter", tmp_path / "i", "--out", tmp_path / "no")
    assert status == 2 and "but there is IA3()" in err and not (tmp_path / "no").exists()


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_gguf_of_halves(capsys, bases, tmp_path, kind):
    """Matrices alone are rounded, and the position embedding of a GPT is not, as in llama.cpp."""
    gguf = pytest.importorskip("gguf")
    for base in "gpt", "llama":
        argv = "export", "--to", "gguf", "--model", bases / base, "--out"
        assert run(capsys, *argv, tmp_path / base)[0] == run(capsys, *argv, tmp_path / f"{base}.gguf", "--type", kind)[0] == 0
        exact = {t.name: t.data for t in gguf.GGUFReader(tmp_path / base / "model.gguf").tensors}
        reader = gguf.GGUFReader(tmp_path / f"{base}.gguf")
        assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType[f"MOSTLY_{kind}"]
        for t in reader.tensors:
            is_rounded = exact[t.name].ndim == 2 and t.name != "position_embd.weight"
            assert t.tensor_type.name == (kind if is_rounded else "F32")
            expected = gguf.quants.quantize(exact[t.name], t.tensor_type)
            assert np.array_equal(t.data.view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("chat, place, use", [
    (None, "m.gguf", "m.gguf"), ("smollm2", "m.gguf", "m.gguf --chat --temperature 0"),
    ("smollm2", "folder", "folder")])
def test_what_a_gguf_was_trained_to_be_asked_is_said_if_it_cannot_say_it(capsys, monkeypatch, tmp_path, chat, place, use):
    """Of a task that was trained in a chat template, which the shipped base does not know."""
    monkeypatch.chdir(tmp_path)
    rows = [(f"question {n}", f"answer {n}") for n in range(40)]
    tuned = adapter_on(None, tp.LoRA(rank=2), tmp_path / "a")
    tp.tasks.save_task(tp.tasks.pairs(rows, tuned.model), tmp_path / "a")
    monkeypatch.setattr(Answering, "chat", property(lambda task: chat, lambda task, value: None), raising=False)
    status, out, _ = run(capsys, "export", "--to", "gguf", "--adapter", "a", "--out", place)
    assert status == 0 and f'next: python -m tinypeft generate "…" --model {use}, or llama-cli -m ' in out
    assert out.endswith(" --temp 0\n")                  # of pairs, in a template or not
    if place == "folder":
        assert "```bash\nllama-cli -m model.gguf --temp 0\n```" in (tmp_path / place / "README.md").read_text("utf-8")


def test_the_help_of_export_says_what_belongs_to_a_training(capsys):
    with pytest.raises(SystemExit): main(["export", "--help"])
    shared, _, training = capsys.readouterr().out.partition("for --to training:\n")
    for option in "METHOD", "--steps STEPS", "--lr LR", "--csv FILE", "--checkpoint FILE":
        assert f"  {option}" in training and f"  {option}" not in shared
    for option in "--type TYPE", "--adapter FOLDER", "--out FOLDER", "--activations {kept,exact}":
        assert f"  {option}" in shared and f"  {option}" not in training


def test_export_to_peft_is_what_save_writes(capsys, tmp_path):
    tuned = adapter_on(None, tp.LoRA(rank=2), tmp_path / "a")
    assert run(capsys, "export", "--to", "peft", "--adapter", tmp_path / "a", "--out", tmp_path / "p")[0] == 0
    tuned.save(tmp_path / "expected", "peft")
    for file in (tmp_path / "expected").iterdir():
        assert (tmp_path / "p" / file.name).read_bytes() == file.read_bytes()
    assert {"tokenizer.json", "README.md", "run.json"} < {path.name for path in (tmp_path / "p").iterdir()}


def test_a_run_of_an_adapter_goes_on_in_pytorch(capsys, own, tmp_path):  # noqa: F811
    """From its own numbers, on its own data."""
    run(capsys, "finetune", "lora", "--pairs", own / "answers.jsonl", "--quick", "--steps", "2", "--out", tmp_path / "a")
    status, _, _ = run(capsys, "export", "--to", "training", "--adapter", tmp_path / "a", "--pairs", own / "answers.jsonl",
                       "--steps", "7", "--out", tmp_path / "r")
    assert status == 0 and json.loads((tmp_path / "r" / "settings.json").read_text())["steps"] == 7
    theirs = tp.load_adapter(tp.load_pretrained(), tmp_path / "r" / "adapter")
    np.testing.assert_array_equal(logits(theirs), logits(tp.load_adapter(tp.load_pretrained(), tmp_path / "a")))


@pytest.mark.parametrize("argv, says", [
    (["hf", "lora"], "--to hf does not train; leave out METHOD"), (["hf", "--steps", "3"], "leave out --steps"),
    (["peft", "--quick"], "leave out --quick"), (["gguf", "--seed", "3"], "leave out --seed"),
    (["hf", "--type", "Q8_0"], "--type needs --to gguf"), (["peft"], "needs --adapter FOLDER"),
    (["gguf-lora"], "needs --adapter FOLDER"),
    (["training"], "give METHOD, such as lora, or --adapter"), (["training", "lora", "--adapter", "x"], "give METHOD, such as"),
    (["training", "lorra"], "there is no method 'lorra'"), (["hf", "--adapter", "nothing"], "no adapter.safetensors")])
def test_exports_that_make_no_sense(capsys, tmp_path, argv, says):
    status, out, err = run(capsys, "export", "--to", *argv, "--out", tmp_path / "x")
    assert (status, out) == (2, "") and says in err and err.count("\n") == 1 and not (tmp_path / "x").exists()


# -- quantize --------------------------------------------------------------------------------------
def test_a_tuned_model_is_quantized_and_measured_on_its_own_data(capsys, own, tmp_path):  # noqa: F811
    data = "--pairs", own / "answers.jsonl"
    run(capsys, "finetune", "lora", *data, "--quick", "--out", tmp_path / "a")
    quantize = "quantize", "nf4", *data, "--quick", "--adapter", tmp_path / "a"
    status, out, _ = run(capsys, *quantize, "--out", tmp_path / "q", "--json")
    record = json.loads(out)
    assert status == 0 and record["task"] == "answers.jsonl" and record["bits_per_weight"] == pytest.approx(4.5)
    model = tp.load_model(tmp_path / "q")
    assert model.tokenizer == tp.load_pretrained().tokenizer and tp.bits_per_weight(model) == record["bits_per_weight"]
    task = tp.tasks.pairs(own / "answers.jsonl", model)
    assert record["quantized"] == tp.evaluate(model, task, "test", max_batches=2) != record["exact"]
    tuned = tp.load_adapter(tp.load_pretrained(), tmp_path / "a")
    assert record["exact"]["loss"] == pytest.approx(tp.evaluate(tuned, task, "test", max_batches=2)["loss"], rel=1e-5)
    answer = run(capsys, "generate", "Describe 3 dull coats.", "--max-new-tokens", "4", "--model", tmp_path / "q")[1]
    assert answer and not answer.startswith("Describe")
    page = (tmp_path / "q" / "README.md").read_text("utf-8")
    assert "| after training, before the weights were rounded |" in page and "stored in nf4." in page
    assert "## Quantized" in page and " on the test split of answers.jsonl" in page
    out = run(capsys, *quantize)[1]
    assert out.splitlines()[0].startswith("answers.jsonl: prompt → answer") and " on the test split of answers.jsonl" in out


@pytest.mark.parametrize("data", [("--csv", "nothing.csv"), ("--task", "classify")])
def test_a_model_without_classes_is_not_measured_on_some(capsys, data):
    status, out, err = run(capsys, "quantize", "nf4", *data)
    assert (status, out) == (2, "") and err.endswith("has no classes; --adapter FOLDER of a classifier gives it some\n")


def test_a_quantized_model_is_quantized_again_and_learns(capsys, own, bases, tmp_path):  # noqa: F811
    """Its codes' numbers are what is rounded. QLoRA is `finetune --model` on what `quantize --out` saved."""
    few = "--quick", "--pairs", own / "answers.jsonl"
    status, _, _ = run(capsys, "quantize", "uniform", "--model", bases / "nf4.safetensors", *few, "--out", tmp_path / "q")
    expected = tp.quantize(tp.quant.dequantize(tp.load_model(bases / "nf4.safetensors")), tp.Uniform())
    assert status == 0
    np.testing.assert_array_equal(logits(tp.load_model(tmp_path / "q")), logits(expected))
    status, out, _ = run(capsys, "finetune", "lora", "--model", tmp_path / "q", *few, "--steps", "2", "--out", tmp_path / "a")
    assert status == 0 and f"--model {tmp_path / 'q'} --adapter" in out
    with pytest.warns(UserWarning, match="weights differ") as caught: run(capsys, "evaluate", *few, "--adapter", tmp_path / "a")
    assert f"weights differ from training's; its base came from the model '{tmp_path / 'q'}'" in str(caught[0].message)


# -- folders that are new and whole ----------------------------------------------------------------
COMMANDS = {"merge": ["merge", "--adapter", "a"], "combine": ["combine", "a", "b"],
            "peft": ["export", "--to", "peft", "--adapter", "a"], "hf": ["export", "--to", "hf"],
            "gguf": ["export", "--to", "gguf"], "quantize": ["quantize", "nf4", "--quick", "--pairs", "qa.jsonl"],
            "training": ["export", "--to", "training", "lora", "--quick", "--pairs", "qa.jsonl"]}
WRITES = {"merge": "tinypeft.interop.loading.save_model", "hf": "tinypeft.interop.loading.save_model",
          "combine": "tinypeft.interop.card.write_page", "peft": "tinypeft.interop.card.write_page",
          "gguf": "tinypeft.interop.gguf.write_gguf", "quantize": "tinypeft.quant.save_quantized",
          "training": "tinypeft.interop.export.export_training"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in a folder that holds two adapters and a file of pairs."""
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": f"Question {i}", "answer": f"Answer {i}"}) for i in range(30)]
    (tmp_path / "qa.jsonl").write_text("\n".join(rows), "utf-8")
    for name, rng in ("a", 0), ("b", 1):
        spread(tp.attach(tp.load_pretrained(), tp.LoRA(rank=1), rng=0), rng).save(name)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("error, status", [(OSError(errno.ENOSPC, "No space left on device", "x"), 2),
                                           (KeyboardInterrupt(), 130)])
def test_a_full_disk_and_a_stop_leave_nothing(capsys, monkeypatch, place, name, error, status):
    def fails(*args, **options): raise error
    monkeypatch.setattr(WRITES[name], fails)
    before = sorted(path.name for path in place.iterdir())
    code, out, err = run(capsys, *COMMANDS[name], "--out", "made")
    assert code == status and err.splitlines()[-1].startswith("tinypeft: ") and "saved in" not in out
    assert sorted(path.name for path in place.iterdir()) == before


def test_a_full_disk_is_said_of_the_place_that_was_asked_for(capsys, monkeypatch, place):
    """Not of the folder beside it, which is gone."""
    def full(model, folder): raise OSError(errno.ENOSPC, "No space left on device", str(folder / "model.safetensors"))
    monkeypatch.setattr("tinypeft.interop.loading.save_model", full)
    _, _, err = run(capsys, *COMMANDS["merge"], "--out", "made")
    path = Path("made", "model.safetensors")
    assert err == f"tinypeft: {path}: No space left on device; make room, or give another place\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_there_already_is_not_touched(capsys, monkeypatch, place, name):
    """It is said before any work: no model is loaded."""
    def never(*args): raise AssertionError
    for module in ("arguments", "combining", "for_pytorch"):
        monkeypatch.setattr(f"tinypeft.commands.{module}.model_of", never)
    (place / "made").mkdir()
    (place / "made" / "file").write_text("mine")
    status, out, err = run(capsys, *COMMANDS[name], "--out", "made")
    assert (status, out, err) == (2, "", "tinypeft: --out made is there already; give another place, or delete it\n")
    assert [path.name for path in (place / "made").iterdir()] == ["file"]


def test_an_empty_folder_is_filled_and_a_file_is_no_folder(capsys, monkeypatch, place):
    (place / "made").mkdir()
    (place / "file").write_text("mine")
    assert run(capsys, *COMMANDS["merge"], "--out", "made")[0] == 0 and tp.load_model("made").tokenizer
    assert run(capsys, *COMMANDS["merge"], "--out", "file")[0] == 2 and (place / "file").read_text() == "mine"
    assert run(capsys, *COMMANDS["hf"], "--out", "deep/er")[0] == 0 and (place / "deep" / "er" / "config.json").exists()
    (place / "empty").mkdir()
    monkeypatch.chdir(place / "empty")
    assert run(capsys, *COMMANDS["hf"], "--out", ".") == (
        2, "", "tinypeft: --out . is the folder that you are in, which cannot be replaced\n")


# -- run.json --------------------------------------------------------------------------------------
RUN = {"format": 1, "command": ["finetune"], "python": "", "numpy": "", "result": {}}


def test_a_folder_says_how_it_was_made_and_is_made_again(capsys, place):
    """By the command that its run.json holds, with another --out."""
    assert run(capsys, "--seed", "4", *COMMANDS["combine"], "--out", "one", "--how", "dare", "--density", "0.5")[0] == 0
    command = json.loads((place / "one" / "run.json").read_text("utf-8"))["command"]
    assert command[:6] == ["--seed", "4", "combine", "a", "b", "--out"]
    assert run(capsys, *command, "--out", "two")[0] == run(capsys, *command, "--seed", "5", "--out", "three")[0] == 0
    made, again, other = ({p.name: p.read_bytes() for p in (place / name).iterdir() if p.name not in ("run.json", "README.md")}
                          for name in ("one", "two", "three"))
    assert made == again and other["adapter.safetensors"] != made["adapter.safetensors"]


@pytest.mark.parametrize("content", ["x", "{}", "[]", json.dumps(RUN | {"format": 2}), json.dumps(RUN | {"result": []})])
def test_a_run_that_cannot_be_read_is_left_out_of_the_card(capsys, place, content):
    """And stops nothing."""
    (place / "a" / "run.json").write_text(content)
    assert run(capsys, *COMMANDS["merge"], "--out", "made")[0] == 0
    assert "## Results" not in (place / "made" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("result, shows", [
    ({"before": {"loss": 10 ** 400, "x": None, "a|b": True, "c|d": 2.5}, "data": [3, "<b>"]},
     [r"| c\|d |", "2.5000", r"\<b\>"]),
    ({"before": [], "baselines": 7, "measured": {"a": 3, "b": {"loss": 0.5}}, "data": {}},
     ["| b, by cross-validation | 0.5000 |"]),
    ({"after": {"loss": float("nan")}, "baselines": {"x": {"loss": [1]}}}, [])])
def test_what_an_adapter_says_of_itself_is_repeated_with_care(capsys, place, result, shows):
    (place / "a" / "run.json").write_text(json.dumps(RUN | {"result": result}))
    assert run(capsys, *COMMANDS["merge"], "--out", "made")[0] == 0
    page = (place / "made" / "README.md").read_text("utf-8")
    assert all(part in page for part in shows) and "<b>" not in page


# -- the page --------------------------------------------------------------------------------------
@pytest.mark.long
def test_the_commands_of_the_page_run_one_after_the_other(capsys, own, monkeypatch, tmp_path):  # noqa: F811
    """With --quick where something is trained or measured. What the page says of folders is so."""
    page = (Path(tp.__file__).parent / "commands" / "README.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    shutil.copy(own / "answers.jsonl", "qa.jsonl")
    shutil.copy(own / "reviews.csv", "reviews.csv")
    shutil.copytree(own / "notes", "notes")
    page = page.replace(" --model smollm2", "")          # these tests take the shipped base, which is faster
    lines = [shlex.split(line, comments=True)[3:] for block in re.findall(r"```bash\n(.*?)```", page, re.S)
             for line in block.splitlines() if line]
    assert {*"finetune evaluate classify generate merge combine export quantize".split()} <= {line[0] for line in lines}
    for line in lines:
        works = line[0] in ("finetune", "evaluate", "quantize") or "training" in line
        few = ["--steps", "2"] * (line[:2] != ["finetune", "probe"] and (line[0] == "finetune" or "training" in line))
        status, _, err = run(capsys, *line, *["--quick"] * works, *few)
        assert status == 0, (line, err)
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", page.split("## What is in a folder")[1], re.M)
    made = {"finetune": "helper", "combine": "both", "merge": "merged", "quantize": "small", "export --to hf": "plain"}
    for names, commands in rows:
        for name in re.findall(r"`([\w.]+)`", names):
            for command, folder in made.items():
                holds = commands.startswith("all") or f"`{command}`" in commands
                assert (tmp_path / folder / name).exists() == holds, (name, command)
