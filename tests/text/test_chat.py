"""text/chat.py: SmolLM2's prompt is the one of the template in its file; the others' are written out here.

The other three were compared with the published templates by a run of transformers: TinyLlama-1.1B-Chat-v1.0's,
Qwen 3's (enable_thinking=False) and Gemma 3's, for conversations with and without a system message, of several turns.
"""
import numpy as np
import pytest

from tests.oracles.hf_tokenizers import end_of, made, smollm2, transformers_smollm2
from tinypeft.interop import read_tokenizer
from tinypeft.interop.gguf_reader import read_gguf
from tinypeft.interop.gguf_tokenizer import tokenizer_of_gguf
from tinypeft.text import BPETokenizer, SentencePieceTokenizer, chat_end, chat_prompt
from tinypeft.text.chat import FAMILIES, chat_answer, family_of

RULES = {"smollm2": "smollm", "qwen3": "qwen2", "tinyllama": "prepend", "gemma3": "never"}      # of small tokenizers


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
    assert chat_end(ours) == theirs.eos_token_id and chat_prompt(ours, "Hi").dtype == np.int32


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
    with pytest.raises(ValueError, match="family must be one of smollm2, qwen3, gemma3, tinyllama, got 'llama'"):
        chat_prompt(tokenizer, "x", family="llama")
    with pytest.raises(ValueError, match="gemma3: the tokenizer lacks the special token '<bos>'"):
        chat_end(tokenizer, "gemma3")


def test_a_tokenizer_of_no_family():
    with pytest.raises(ValueError, match=r"no chat template is known for BPETokenizer\(vocab_size=257\); give"):
        chat_prompt(BPETokenizer([]), "x")
    vocab = {f"<0x{b:02X}>": b for b in range(256)}
    with pytest.raises(ValueError, match="tinyllama: the tokenizer lacks the special token '</s>'"):
        chat_prompt(SentencePieceTokenizer([], vocab, 256, {"<end>": 256}), "x")
