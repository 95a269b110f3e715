"""generate --stream and chat: what a user types, sees and interrupts, on a terminal and through a pipe."""
import builtins
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tinypeft.commands import writing
from tinypeft.commands.cli import main
from tinypeft.text import BPETokenizer

NAMES = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}


def run(capsys, *argv):
    status = main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def model(monkeypatch):
    """The model that every command loads: random, its tokens are bytes, in the chat template of SmolLM2."""
    model = make_gpt(np.float32, vocab_size=259, context_length=300, n_layers=1)
    model.tokenizer = BPETokenizer([], special=NAMES, end_of_text=256, split="smollm")
    monkeypatch.setattr("tinypeft.commands.arguments.model_of", lambda args: model)
    monkeypatch.setattr("tinypeft.commands.writing.chosen_model", lambda args: "model: small")
    return model


@pytest.fixture
def typed(monkeypatch):
    """A function that puts lines into a pipe at standard input."""
    def put(text):
        octets = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(octets)))
    return put


def turns(*texts, system=None):
    front = [] if system is None else [{"role": "system", "content": system}]
    return front + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


# -- generate --------------------------------------------------------------------------------------
@pytest.mark.parametrize("more", [[], ["--chat"], ["--temperature", "2", "--top-k", "40", "--seed", "3"]])
def test_a_stream_is_the_text_piece_by_piece(capsys, monkeypatch, model, more):
    asked = "generate", "A lamp", "--max-new-tokens", "20", *more
    whole, pieces = run(capsys, *asked)[1], []
    def shown(*text, end="\n", flush=False): pieces.append("".join(text) + end)
    monkeypatch.setattr(writing, "print", shown, raising=False)
    assert main([*asked, "--stream"]) == 0
    assert "".join(pieces) == whole and len(pieces) > 10


def test_a_stream_is_not_json(capsys, model):
    status, out, err = run(capsys, "generate", "A", "--stream", "--json")
    assert (status, out) == (2, "") and err == "tinypeft: --stream prints text; leave out --json\n"


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize("has_task", [True, False])
def test_a_classifier_does_not_write(capsys, monkeypatch, tmp_path, command, has_task):
    """As an adapter, with task.json or without, and merged into a model."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n")))
    base = tp.load_pretrained()
    task = tp.tasks.Classification({}, ["bad", "good"], base.tokenizer, 64) if has_task else None
    tuned = tp.attach(base, tp.LoRA(rank=2), head=2, head_bias=False)
    tuned.save(tmp_path / "judge", task=task)
    tp.save_model(tuned.merge(), tmp_path / "merged")
    for name, where in ("judge", ["--model", "shipped", "--adapter"]), ("merged", ["--model"]):
        status, out, err = run(capsys, command, *["Hi"][:command == "generate"], *where, tmp_path / name)
        says = "holds a classifier, which names the class of a text and does not write; use classify\n"
        assert (status, out) == (2, "") and err.endswith(f"tinypeft: {tmp_path / name} {says}")


# -- chat ------------------------------------------------------------------------------------------
def test_a_conversation_has_a_history(capsys, model, typed):
    typed("Hi\n\n  How are you?  \r\nÄ 日本")
    status, out, err = run(capsys, "chat", "--max-new-tokens", "9", "--temperature", "0", "--system", "Be brief.")
    first = model.chat(turns("Hi", system="Be brief."), 9)
    second = model.chat(turns("Hi", first, "How are you?", system="Be brief."), 9)
    third = model.chat(turns("Hi", first, "How are you?", second, "Ä 日本", system="Be brief."), 9)
    assert (status, out, err) == (0, f"{first}\n{second}\n{third}\n", "model: small\n")


def test_answers_are_drawn_by_the_seed(capsys, model, typed):
    answers = []
    for seed in "1", "1", "2":
        typed("Hi\nHi\n")
        answers.append(run(capsys, "chat", "--max-new-tokens", "9", "--seed", seed)[1])
    assert answers[0] == answers[1] != answers[2] and len(set(answers[0].split("\n"))) == 3


def test_first_messages_are_left_out_where_the_context_ends(capsys, model, typed):
    typed("\n".join("abcdef"[i] * 60 for i in range(6)))
    status, out, err = run(capsys, "chat", "--max-new-tokens", "40", "--temperature", "0", "--system", "S")
    assert status == 0 and out.count("\n") >= 6 and "the first 2 messages were left out: the context has 300 tokens" in err
    typed("x" * 400 + "\nHi")
    status, out, err = run(capsys, "chat", "--max-new-tokens", "9", "--temperature", "0")
    assert status == 0 and "the model takes 300, the answer included; shorten it" in err
    assert out == model.chat(turns("Hi"), 9) + "\n"      # the long message is forgotten


def test_a_template_that_is_not_known_is_shown_and_plain_goes_on(capsys, model, typed):
    model.tokenizer.chat_template = "{% if tools %}My own\n{% endif %}"
    typed("Hi\n")
    status, out, err = run(capsys, "chat")
    assert status == 2 and out == "" and "it begins with '{% if tools %}My own'" in err
    assert err.rstrip().endswith("--plain goes on without a template, and --family NAME with another one")
    asked = "chat", "--max-new-tokens", "9", "--temperature", "0"
    for more, family in (["--plain"], "plain"), (["--family", "chatml"], "chatml"):
        typed("Hi\n")
        assert run(capsys, *asked, *more)[1] == model.chat("Hi", 9, family=family) + "\n"
    typed("Hi\n")
    assert "family must be one of chatml" in run(capsys, *asked, "--family", "nosuch")[2]
    status, _, err = run(capsys, "generate", "Hi", "--chat")
    assert status == 2 and "My own" in err and err.rstrip().endswith("the command chat, which has --family and --plain")
    rows = tp.tasks.pairs([(f"{i} {'abcdefghij'[i % 10] * 9}", str(i)) for i in range(40)], model)
    assert "look: the model's chat template is not known here, so prompts are plain text" in rows.notes


@pytest.mark.parametrize("chat", [None, False])
def test_an_adapter_chats_as_it_was_trained(capsys, model, monkeypatch, typed, chat, tmp_path):
    rows = [(f"{i} {'abcdefghij'[i % 10] * 9}", str(i)) for i in range(40)]
    tuned = tp.attach(model, tp.PrefixTuning(length=3))
    tp.train(tuned, tp.tasks.pairs(rows, model, chat=chat), 2, lr=0.1, progress=False)
    tuned.save(tmp_path)
    expected = tuned.chat("3 ddd", 9)
    typed("3 ddd")
    status, out, err = run(capsys, "chat", "--adapter", tmp_path, "--max-new-tokens", "9")
    assert (status, out, err) == (0, expected + "\n", "")


def test_ctrl_c_stops_an_answer_and_not_the_conversation(capsys, model, monkeypatch, typed):
    """What was written stays in the history."""
    typed("Hi\nGo on\n")
    seen, stream = [], type(model).stream
    def interrupted(self, messages, *args, **options):
        seen.append(messages)
        pieces = stream(self, messages, *args, **options)
        yield next(pieces)
        if len(seen) == 1: raise KeyboardInterrupt
        yield from pieces
    monkeypatch.setattr(type(model), "stream", interrupted)
    status, out, _ = run(capsys, "chat", "--max-new-tokens", "9", "--temperature", "0")
    first = model.chat("Hi", 9)
    assert status == 0 and out.split("\n")[0] == f"{first[0]} …" and seen[1] == turns("Hi", first[0], "Go on")


def test_on_a_terminal_there_is_a_mark_and_the_end_of_input_ends_it(capsys, model, monkeypatch, typed):
    typed("")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    lines = iter(["Hi", " "])
    def read(mark):
        assert mark == "> "
        try: return next(lines)
        except StopIteration: raise EOFError from None
    monkeypatch.setattr(builtins, "input", read)
    status, out, err = run(capsys, "chat", "--max-new-tokens", "9", "--temperature", "0")
    assert status == 0 and out == model.chat("Hi", 9) + "\n\n" and "Ctrl-C stops an answer; Ctrl-D" in err
    def stopped(mark): raise KeyboardInterrupt
    monkeypatch.setattr(builtins, "input", stopped)
    assert run(capsys, "chat")[0] == 130


@pytest.mark.parametrize("octets, says", [(b"Hi\n\xff\n", "standard input is not text in utf-8"), (b"H\0i", "byte 1 is 0")])
def test_what_is_no_text_is_named(capsys, model, typed, octets, says):
    typed(octets)
    status, _, err = run(capsys, "chat", "--max-new-tokens", "2")
    assert status == 2 and says in err


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
def test_a_real_terminal(tmp_path):
    """The shipped base, two messages, Ctrl-C in the second answer, Ctrl-D. The interrupt follows the answer's first bytes: at
    the mark it would end the conversation."""
    import pty
    terminal, theirs = pty.openpty()
    command = "-m", "tinypeft", "chat", "--model", "shipped", "--plain", "--max-new-tokens", "200"
    chat = subprocess.Popen([sys.executable, *command],
                            stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, start_new_session=True, cwd=tmp_path,
                            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    os.close(theirs)
    shown = b""
    def until(wanted, seconds=60):
        nonlocal shown
        end, start = time.monotonic() + seconds, len(shown)
        while wanted not in shown[start:]:
            assert time.monotonic() < end, shown
            shown += os.read(terminal, 4096)
    until(b"> ")
    os.write(terminal, b"Return the mean\n")
    until(b"> ")
    os.write(terminal, b"numpy\n")
    until(b"numpy\r\n")
    shown += os.read(terminal, 1)
    os.killpg(chat.pid, signal.SIGINT)
    until(b"> ")
    os.write(terminal, b"\x04")
    assert chat.wait(30) == 0
    os.close(terminal)
