"""text/chat.py, text/templates.py: prompts are those that transformers makes of the models' own templates.

oracles/chat_templates.json holds the texts of the templates: SmolLM2's from its file, the others as they stand in
llama.cpp's folder models/templates and in its tests.
"""
import json
from pathlib import Path

import numpy as np
import pytest

from tests.oracles.hf_tokenizers import end_of, made, smollm2, transformers_smollm2
from tinypeft.interop import read_tokenizer, write_tokenizer
from tinypeft.interop.gguf_reader import read_gguf
from tinypeft.interop.gguf_tokenizer import tokenizer_of_gguf
from tinypeft.text import BPETokenizer, SentencePieceTokenizer, chat_end, chat_prompt
from tinypeft.text.chat import PLAIN, chat_answer, family_of, known_family, turns_of
from tinypeft.text.templates import FAMILIES, family_of_text

RULES = {"smollm2": "smollm", "qwen3": "qwen2", "tinyllama": "prepend", "gemma3": "never"}      # of small tokenizers


TEXTS = json.loads((Path(__file__).parents[1] / "oracles" / "chat_templates.json").read_text("utf-8"))
FAMILY_OF = {"SmolLM2-135M-Instruct": "smollm2", "OpenHermes-2.5-Mistral-7B": "chatml", "Qwen2-1.5B-Instruct": "qwen2",
             "Qwen2.5-7B-Instruct": "qwen2.5", "Qwen3-0.6B": "qwen3", "Meta-Llama-3-8B-Instruct": "llama3",
             "Llama-3.1-8B-Instruct": "llama3.1", "Llama-3.2-3B-Instruct": "llama3.2", "gemma-3-270m-it": "gemma3",
             "Mistral-7B-Instruct-v0.1": "mistral-v0.1", "Mistral-7B-Instruct-v0.2": "mistral-v0.2",
             "Mistral-7B-Instruct-v0.3": "mistral-v0.3", "TinyLlama-1.1B-Chat-v1.0": "tinyllama"}
BOS = {"gemma3": "<bos>", "llama3": "<|begin_of_text|>", "llama3.1": "<|begin_of_text|>", "llama3.2": "<|begin_of_text|>"}


def said(*texts, system=None):
    """Messages of user and assistant in turn."""
    front = [{"role": "system", "content": system}] if system is not None else []
    return front + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.fixture
def tokenizer(request, tmp_path):
    rule = RULES[request.param]
    (tmp_path / "tokenizer.json").write_text(made(rule).to_str(), "utf-8")
    end = "<|im_end|>" if rule in ("smollm", "qwen2") else end_of(rule)
    (tmp_path / "tokenizer_config.json").write_text(f'{{"eos_token": "{end}"}}')
    return read_tokenizer(tmp_path)


def test_smollm2s_prompts_are_its_templates():
    ours, theirs = tokenizer_of_gguf(read_gguf(smollm2()).fields), transformers_smollm2()
    for messages in (said("Hi, what is 12 + 3?"), said("Hi", system="Be  brief.\n"), said("", system=""),
                     said("a", "b  3", "c\n\n"), said(" one ", "two", "three", "four\n", "five", system="S")):
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert chat_prompt(ours, messages).tolist() == expected
    for answer in ("Yo.", "12 + 3 = 15\nor so", "def f(x):\n    return 2"):           # as in training on the whole conversation
        whole = theirs.apply_chat_template([*said("Hi  3"), {"role": "assistant", "content": answer}], return_dict=False)
        got = [*chat_prompt(ours, "Hi  3"), *chat_answer(ours, "Hi  3", answer), chat_end(ours)]
        assert got + ours.encode("\n").tolist() == whole
    assert chat_prompt(ours, "Hi").tolist() == chat_prompt(ours, said("Hi")).tolist()
    assert ours.chat_template == TEXTS["SmolLM2-135M-Instruct"]
    assert chat_end(ours) == theirs.eos_token_id and chat_prompt(ours, "Hi").dtype == np.int32


def test_every_family_has_a_template_that_is_known_by_its_text():
    assert sorted(FAMILY_OF.values()) == sorted(FAMILIES)
    for model, text in TEXTS.items():
        assert family_of_text(text) == family_of_text(f"\n{text}\n") == FAMILY_OF[model], model
        assert family_of_text(text.replace("message", "massage", 1)) is None
        assert family_of_text(text.replace("\\n", "\n")) == FAMILY_OF[model]           # as some files write it
    assert family_of_text("") is None and family_of_text("\ud800") is None


@pytest.mark.parametrize("model", TEXTS)
def test_templates_are_what_transformers_makes_of_their_texts(model):
    """As text: with the names of special tokens in it. A date is today's on both sides."""
    transformers, family = pytest.importorskip("transformers"), FAMILIES[FAMILY_OF[model]]
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=made("smollm"), bos_token=BOS.get(FAMILY_OF[model], "<s>"),
                                                  eos_token=family.end, chat_template=TEXTS[model])
    render = lambda messages, **more: theirs.apply_chat_template(messages, tokenize=False, enable_thinking=False, **more)
    systems = (None,) if model == "Mistral-7B-Instruct-v0.1" else (None, "Be  brief.\n", "")
    for system in systems:
        for messages in (said(" Hi 12 "), said("a", "b  3", "c\n\n"), said("\none", "two", "three", "four\n", " f i v e")):
            messages = said(*(m["content"] for m in messages), system=system)
            ours = "".join(family.template(turns_of(messages)))
            assert ours == render(messages, add_generation_prompt=True), (system, messages)
            if model == "Mistral-7B-Instruct-v0.3" and system is not None: continue      # it is lost where an answer is last
            whole = render([*messages, {"role": "assistant", "content": "Yo."}])
            assert whole.startswith(f"{ours}{family.before}Yo.{family.end}")


def test_a_mistral_of_the_first_version_has_no_system_message():
    with pytest.raises(ValueError, match="mistral-v0.1 has no system message; put it into the first text"):
        FAMILIES["mistral-v0.1"].template([("system", "x"), ("user", "y")])


@pytest.mark.parametrize("tokenizer", ["smollm2"], indirect=True)
def test_the_text_of_the_template_decides(tokenizer):
    """And not the tokenizer, which a model with another template may have, too. Another template is shown and refused."""
    for model in ("SmolLM2-135M-Instruct", "OpenHermes-2.5-Mistral-7B", "Qwen2.5-7B-Instruct"):
        tokenizer.chat_template = TEXTS[model]
        assert known_family(tokenizer) == FAMILY_OF[model]
        texts = "".join(map(str, FAMILIES[FAMILY_OF[model]].template([("user", "Hi")])))
        assert tokenizer.chat_prompt("Hi").tolist() == tokenizer.encode(texts, allow_special=True).tolist()
    tokenizer.chat_template = "{% for m in messages %}My own{{ m }}\n{% endfor %}"
    with pytest.raises(ValueError, match="known here; it begins with '{% for m in messages %}My own{{ m }}'; give the family, "
                                         "one of .*smollm2.*, or plain for none"): chat_prompt(tokenizer, "Hi")
    assert known_family(tokenizer) is None
    assert chat_prompt(tokenizer, "Hi", "smollm2").size > 3


@pytest.mark.parametrize("tokenizer", RULES, indirect=True)
def test_plain_is_paragraphs(tokenizer):
    expected = [tokenizer.opening, *tokenizer.encode("Be brief.\n\nHi\n\nYo\n\nBye\n")]
    assert chat_prompt(tokenizer, said("Hi", "Yo", "Bye", system="Be brief."), PLAIN).tolist() == expected
    assert chat_end(tokenizer, PLAIN) == tokenizer.end_of_text == tokenizer.chat_end("plain")
    assert np.array_equal(chat_answer(tokenizer, "Hi", "Yo", PLAIN), tokenizer.encode("Yo"))
    with pytest.raises(ValueError, match="got user, assistant"): chat_prompt(tokenizer, said("Hi", "Yo"), PLAIN)


@pytest.mark.parametrize("name", ["smollm", "prepend"])
def test_the_text_goes_with_the_tokenizer(name, tmp_path):
    """From a folder of transformers, of any age, and back; and through our own file."""
    (tmp_path / "tokenizer.json").write_text(made(name).to_str(), "utf-8")
    text, config = "{{ messages }}\n{# é #}", {"eos_token": end_of(name)}
    write = lambda more: (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | more), "utf-8")
    for template in text, [{"name": "tools", "template": "x"}, {"name": "default", "template": text}]:
        write({"chat_template": template})
        assert read_tokenizer(tmp_path).chat_template == text
    for template in 3, [], [3, {"name": ["default"]}, {"name": "default"}], None:
        write({"chat_template": template})
        assert read_tokenizer(tmp_path).chat_template is None
    (tmp_path / "chat_template.jinja").write_text(text, "utf-8")
    tokenizer = read_tokenizer(tmp_path)
    tokenizer.save(tmp_path / "own.json")
    write_tokenizer(tmp_path / "back", tokenizer)
    for again in type(tokenizer).load(tmp_path / "own.json"), read_tokenizer(tmp_path / "back"):
        assert again.chat_template == text and again == tokenizer
    auto = pytest.importorskip("transformers").AutoTokenizer
    assert auto.from_pretrained(tmp_path / "back").chat_template == text


EXPECTED = {
    "smollm2": ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
                "<|im_start|>assistant\nYo<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"),
    "tinyllama": ("<|system|>\nBe brief.</s>\n<|user|>\n Hi </s>\n<|assistant|>\nYo</s>\n"
                  "<|user|>\nBye</s>\n<|assistant|>\n"),
    "gemma3": ("<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn>\n"
               "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n")}
EXPECTED["qwen3"] = EXPECTED["smollm2"] + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("tokenizer", RULES, indirect=True)
def test_templates(tokenizer):
    family = family_of(tokenizer)
    messages = said(" Hi ", "Yo", "Bye", system="Be brief.")
    got = chat_prompt(tokenizer, messages)
    assert got.tolist() == tokenizer.encode(EXPECTED[family], allow_special=True).tolist()
    assert tokenizer.decode([chat_end(tokenizer)]) == FAMILIES[family].end
    assert np.array_equal(chat_prompt(tokenizer, messages, family), got)


@pytest.mark.parametrize("tokenizer", RULES, indirect=True)
def test_a_message_cannot_end_its_turn(tokenizer):
    marks, special = "".join(tokenizer.special), list(tokenizer.special.values())
    clean = chat_prompt(tokenizer, said("Hi", "Yo", "Bye", system="S"))
    sly = chat_prompt(tokenizer, said(f"Hi{marks}", f"{marks}Yo", f"B{marks}ye", system=marks))
    assert sly[np.isin(sly, special)].tolist() == clean[np.isin(clean, special)].tolist() and len(sly) > len(clean)


@pytest.mark.parametrize("tokenizer", ["qwen3"], indirect=True)
def test_earlier_thoughts_are_left_out(tokenizer):
    with_thoughts = said("a", "<think>\nhm </think>x\n</think>\n\nb", "c <think>d</think>")
    without = said("a", "b", "c <think>d</think>")
    assert np.array_equal(chat_prompt(tokenizer, with_thoughts), chat_prompt(tokenizer, without))
    assert "\nc <think>d</think><|im_end|>" in tokenizer.decode(chat_prompt(tokenizer, without))     # a user's text stays
    assert "assistant\n\nb<|im_end|>" in tokenizer.decode(chat_prompt(tokenizer, said("a", "\nb", "c")))


@pytest.mark.parametrize("tokenizer", ["smollm2"], indirect=True)
def test_bad_conversations_are_named(tokenizer):
    for messages, says in [
            ([], "got no message"), (said("a", "b"), "got user, assistant"), (said(system="x"), "got system"),
            ([*said("a"), *said("b")], "got user, user"), ([*said("a"), *said("b", system="x")], "user, system, user"),
            ([{"role": "tool", "content": "x"}], "a message is .* got {'role': 'tool'"), ([3], "got 3"),
            ([{"role": "user", "content": None}], "got {'role': 'user', 'content': None}")]:
        with pytest.raises(ValueError, match=says): chat_prompt(tokenizer, messages)
    with pytest.raises(ValueError, match="family must be one of chatml, smollm2, .*, tinyllama or plain, got 'llama'"):
        chat_prompt(tokenizer, "x", family="llama")
    with pytest.raises(ValueError, match="family must be one of .* got \\['chatml'\\]"): chat_prompt(tokenizer, "x", ["chatml"])
    with pytest.raises(ValueError, match="gemma3: the tokenizer lacks the special token '<bos>'"):
        chat_end(tokenizer, "gemma3")


def test_a_tokenizer_of_no_family():
    with pytest.raises(ValueError, match=r"no chat template is known for BPETokenizer\(vocab_size=257\); give"):
        chat_prompt(BPETokenizer([]), "x")
    vocab = {f"<0x{b:02X}>": b for b in range(256)}
    with pytest.raises(ValueError, match="tinyllama: the tokenizer lacks the special token '</s>'"):
        chat_prompt(SentencePieceTokenizer([], vocab, 256, {"<end>": 256}), "x")
