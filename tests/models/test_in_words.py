"""in_words.py, and text in generation.py: streams of whole characters, conversations, lists of texts; on every kind of model,
and with the methods that treat a prompt otherwise than an answer."""
import copy
import pickle
import re

import numpy as np
import pytest

import tinypeft as tp
from tests.families import make
from tinypeft.engine import memo
from tinypeft.models import generation
from tinypeft.models.in_words import answer, characters
from tinypeft.study.pages import ROOT
from tinypeft.text import BPETokenizer
from tinypeft.text.tasks import Answering, Classification

NAMES = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
CHAT = BPETokenizer([], special=NAMES, end_of_text=256, split="smollm")                  # one token per byte
PLAIN = BPETokenizer([])
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
METHODS = {"none": None, "LoRA": tp.LoRA(rank=2), "prefix": tp.PrefixTuning(length=3), "prompt": tp.PromptTuning(length=3),
           "P-tuning": tp.PTuning((2, "target"), encoder=None), "LoReFT": tp.LoReFT(rank=2, first=1, last=2)}


def talking(family="GPT", tokenizer=CHAT, **sizes):
    model = make(family, np.float32, vocab_size=262, context_length=200, n_layers=1, **sizes)     # three ids too many
    model.tokenizer = tokenizer
    return model


def on_all_kinds():
    for family in "GPT", "Llama", "Gemma": yield talking(family)
    yield tp.quantize(talking("Llama"), tp.NF4())
    for method in METHODS.values():
        if method: yield noisy(tp.attach(talking("Llama"), method))
    yield noisy(tp.attach(tp.quantize(talking(), tp.Uniform(bits=4)), tp.LoRA(rank=2)))


def noisy(tuned):
    """Parameters that change what is written."""
    rng = np.random.default_rng(0)
    for p in tuned.trainable_parameters(): p.data[...] += rng.standard_normal(p.shape) * 0.5
    return tuned


# -- streams ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["plain", "naïve 日本 🙂", "🙂" * 3, "e\u0301"])
def test_no_character_is_broken(text):
    pieces = list(characters(PLAIN, ([i] for i in text.encode()), {256}, True))
    assert pieces == list(text)


def test_bytes_that_are_no_text_are_replaced_as_decode_does():
    rng = np.random.default_rng(0)
    for n in range(60):
        octets = [*map(int, rng.choice([0x20, 0x41, 0xC3, 0xA4, 0xF0, 0x9F, 0x99, 0x82, 0xFF, 0xE6, 0x97], n))]
        pieces = [*characters(PLAIN, ([i] for i in octets), {256}, True)]
        assert "".join(pieces) == PLAIN.decode(octets) and all(pieces)


def test_a_stream_ends_before_its_end_and_skips_ids_without_a_token():
    assert "".join(characters(CHAT, ([i] for i in (72, 261, 105, 258, 33)), {258}, True)) == "Hi"
    assert [*characters(CHAT, iter([[0xF0], [258]]), {258}, True)] == ["�"] and [*characters(CHAT, [], {258}, True)] == []


def test_a_space_in_front_is_the_familys_only_where_nothing_came_before():
    vocab = {f"<0x{b:02X}>": b for b in range(256)} | {"▁": 256, "a": 257, "▁a": 258}
    tokenizer = tp.text.SentencePieceTokenizer([("▁", "a")], vocab, 259, {"</s>": 259})
    for ids in ([258, 258], [256, 257], [256, 256, 257], [257, 258], [259, 258]):
        for is_continued in (True, False):
            pieces = characters(tokenizer, ([i] for i in ids), {-1}, is_continued)
            assert "".join(pieces) == tokenizer.decode(ids, continued=is_continued), ids


def test_what_streams_is_what_generate_returns():
    options = {"temperature": 1.0, "rng": 3}
    for model in on_all_kinds():
        ids = CHAT.encode_prompt("A lamp")[None].repeat(2, 0)
        whole = tp.generate(model, ids, 9, **options)
        steps = list(tp.stream(model, ids, 9, **options))
        assert np.array_equal(np.stack(steps, 1), whole[:, ids.shape[1]:]) and steps[0].dtype == ids.dtype
        assert "A lamp" + "".join(model.stream("A lamp", 9, **options)) == model.generate("A lamp", 9, **options)
    assert list(tp.stream(model, ids, 0)) == [] and np.array_equal(tp.generate(model, ids, 0), ids)


def test_between_two_steps_the_callers_code_runs_as_usual():
    """Gradients are recorded, decoded weights are not kept for it, and another stream may run."""
    model = tp.quantize(talking(), tp.NF4())
    tuned = noisy(tp.attach(model, tp.LoRA(rank=2)))
    expected, other = tuned.generate("A", 6), tuned.generate("B lamp", 6)
    pieces, others = [], tuned.stream("B lamp", 6)
    for piece in tuned.stream("A", 6):
        assert tuned(np.array([[65, 66]])).requires_grad and memo._kept.get() is None
        assert generation.prompt_lengths(np.zeros((1, 7))) == 7
        pieces.append(piece + next(others, ""))
    assert len("".join(pieces)) >= len(expected) - 1 and ("B lamp" + "".join(tuned.stream("B lamp", 6))) == other


def test_a_stream_checks_its_arguments_before_the_first_step():
    model = talking()
    for call, says in [(lambda: tp.stream(model, "A", 9, temperature=-1), "temperature must be"),
                       (lambda: tp.stream(model, "x" * 300), "exceed the context of 200"),
                       (lambda: tp.stream(model, []), "tokens must be a text, or integers")]:
        with pytest.raises(ValueError, match=says): call()


# -- texts -----------------------------------------------------------------------------------------
def test_texts_of_any_lengths_are_continued_together():
    """Each is continued as it is alone, up to its own end; draws are those of the rng."""
    for model in on_all_kinds():
        texts = ["A lamp", "B", "A much longer text about lamps, and more about lamps", "A lump", "A lamp"]
        alone = [model.generate(text, 8) for text in texts]
        assert model.generate(texts, 8) == tp.generate(model, tuple(texts), 8) == alone
        first = model.generate(texts, 5, temperature=1.0, rng=5)
        assert first == model.generate(texts, 5, temperature=1.0, rng=5)
        assert all(new.startswith(text) for new, text in zip(first, texts, strict=True))


@pytest.mark.parametrize("call, says", [
    (lambda m: tp.generate("Hi", m), "the model comes first, and then the text or the tokens; got a str first"),
    (lambda m: tp.generate(np.ones((1, 2), int), m), "got a ndarray first"), (lambda m: tp.stream("Hi", m), "got a str first"),
    (lambda m: answer(TALK, m), "got a list first"),
    (lambda m: m.generate(TALK), r"these are messages of a conversation; model.chat\(messages\) answers them"),
    (lambda m: m.chat(3), "expected a text, or a list of messages, got 3"),
    (lambda m: tp.tasks.load_task(m, "helper"), "load_task: the folder comes first, and then the model")])
def test_swapped_arguments_are_named(call, says):
    with pytest.raises(TypeError, match=says): call(talking())


# -- conversations ---------------------------------------------------------------------------------
def test_an_answer_is_what_follows_the_template():
    for model in on_all_kinds():
        ids = tp.chat_prompt(CHAT, TALK, "smollm2")
        new = model.generate(ids[None], 12, temperature=1.0, rng=1, stop=258)[0, len(ids):].tolist()
        ends = [n for n, i in enumerate(new) if i in (256, 258)]
        new = [i for i in new[:ends[0] if ends else 12] if i < 259]
        answer = model.chat(TALK, 12, temperature=1.0, rng=1)
        assert new and answer == CHAT.decode(new) == "".join(model.stream(TALK, 12, temperature=1.0, rng=1))
    assert model.chat("Hi", 5) == model.chat(TALK[1:], 5)


def test_other_models_are_named_or_plain():
    model = talking(tokenizer=PLAIN)
    with pytest.raises(ValueError, match="no chat template is known for BPETokenizer.*give the family, one of .* or plain"):
        model.chat("Hi")
    expected = model.generate(tp.chat_prompt(PLAIN, "Hi", "plain")[None], 5, stop=256)[0, 4:]
    assert model.chat("Hi", 5, family="plain") == PLAIN.decode([i for i in expected if i < 256])
    model.tokenizer = None
    with pytest.raises(ValueError, match="chat: this model has no tokenizer"): model.chat("Hi")


def test_an_answer_ends_where_the_context_does():
    for model in (talking(), tp.attach(talking(), tp.PrefixTuning(length=20))):
        room = 200 - getattr(model, "virtual_length", 0) - len(tp.chat_prompt(CHAT, TALK))
        assert len(list(generation.steps(model, tp.chat_prompt(CHAT, TALK)[None], room))) == room
        assert model.chat(TALK, 9999, family="smollm2") == model.chat(TALK, room)
        context = 200 - getattr(model, "virtual_length", 0)
        with pytest.raises(ValueError, match=f"the model takes {context}, the answer included; shorten it, or leave"):
            model.chat("x" * 400)


@pytest.mark.parametrize("chat", ["smollm2", None])
def test_an_adapter_chats_in_the_form_that_it_was_trained_in(chat, tmp_path):
    """After save and load, too, and as a copy, and merged."""
    rows = {split: [(f"Say {i}", f"{i}") for i in range(n)] for split, n in (("train", 9), ("validation", 3), ("test", 3))}
    for method in METHODS.values():
        if method is None: continue
        model = talking("Llama")
        task = Answering(rows, CHAT, 150, None, chat)
        tuned = tp.attach(model, method)
        tp.train(tuned, task, 2, lr=0.1, progress=False)
        answer = tuned.chat("Say 5", 9)
        assert answer and answer.strip() == task.predict(tuned, ["Say 5"], 9)[0]
        tuned.save(tmp_path / "helper")
        assert pickle.loads(pickle.dumps(tuned)).chat("Say 5", 9) == copy.deepcopy(tuned).chat("Say 5", 9) == answer
        if isinstance(method, tp.LoRA):
            tp.save_model(tuned.merge(), tmp_path / "merged")
            merged = tp.load_model(tmp_path / "merged")
            assert tuned.merge().chat("Say 5", 9) == merged.chat("Say 5", 9) == answer
            assert tp.attach(merged, tp.LoRA(rank=2)).chat("Say 5", 9) == answer
            (tmp_path / "merged" / "task.json").write_text("{")
            assert tp.load_model(tmp_path / "merged").task is None
            tp.save_model(talking("Llama"), tmp_path / "merged")
            assert tp.load_model(tmp_path / "merged").task is None
        assert tp.load_adapter(tuned.detach(), tmp_path / "helper").chat("Say 5", 9) == answer


@pytest.mark.parametrize("family", ["GPT", "Llama"])
def test_texts_of_unequal_lengths_are_classified(family, tmp_path):
    """By every kind of method, on a quantized base, after save and load, and as a copy."""
    rows = {split: [(f"{'good' if i % 2 else 'bad'} {i}", i % 2) for i in range(n)] for split, n in (("train", 9), ("test", 3))}
    task, texts = Classification(rows, ("bad", "good"), CHAT, 60), ["good", "bad " * 9, "x"]
    for method in METHODS.values():
        if method is None: continue
        model = tp.quantize(talking(family), tp.NF4())
        tuned = tp.attach(model, method, head=2)
        tp.train(tuned, task, 2, lr=0.1, progress=False)
        answers = tuned.classify(texts)
        for text, (label, p) in zip(texts, answers, strict=True):                    # as if it were alone
            ids = task.encode(text)
            z = tuned.class_logits(ids[None], [len(ids)]).data[0]
            np.testing.assert_allclose([*p.values()], np.exp(z) / np.exp(z).sum(), atol=1e-6)
            assert label == max(p, key=p.get) and list(p) == ["bad", "good"]
        assert answers[0].probabilities != answers[2].probabilities
        tuned.save(tmp_path)
        assert pickle.loads(pickle.dumps(tuned)).classify(texts) == copy.deepcopy(tuned).classify(texts) == answers
        assert tp.load_adapter(tuned.detach(), tmp_path).classify(texts) == answers


def test_the_snippet_of_the_page_runs(monkeypatch, capsys):
    page = (ROOT / "tinypeft" / "interop" / "README.md").read_text("utf-8")
    code = re.search(r"## Tokenizers, texts and chats.*?```python\n(.*?)```", page, re.S).group(1)
    assert code.count("…") == 2 and "steps=30" in code
    texts = [f"a {word} lamp" for word in "abcdefgh"]
    code = code.replace('"a broken lamp", …', f'"a broken lamp", *{texts}').replace('"bad", …', '*["bad", "good", "good"] * 3')
    model, names = talking(), {"tp": tp}
    monkeypatch.setattr(tp, "load_pretrained", lambda name: model)
    exec(code.replace("steps=30", "steps=1"), names)
    with names["tuned"].disabled() as base:
        assert names["answer"] == base.chat("Which lamp is the best?")
        assert capsys.readouterr().out.startswith(base.chat(names["talk"], 64, temperature=0.7, rng=1))
    label, p = names["tuned"].classify("A warm light")
    assert label in ("good", "bad") and sum(p.values()) == pytest.approx(1)
