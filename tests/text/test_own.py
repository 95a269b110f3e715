"""Tasks of one's own files: they are split honestly, say what they left out, predict, and answer every broken file by name."""
import csv
import hashlib
import itertools
import json
import os
import pickle

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.damaged import read_or_refused
from tests.toys import Noise, small
from tinypeft import tasks
from tinypeft.text import BPETokenizer
from tinypeft.text.chat import chat_answer, chat_end, chat_prompt
from tinypeft.text.tasks import held_out, own, own_files, saved
from tinypeft.text.tasks.held_out import near_duplicates, parts
from tinypeft.text.tasks.own_files import read_table
from tinypeft.text.tasks.writing import written
from tinypeft.text.templates import FAMILIES

SPLITS = "train", "validation", "test"
BYTES = BPETokenizer([])                                 # one token per byte
CHAT = BPETokenizer([], special={"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}, end_of_text=256, split="smollm")


def table(path, rows, columns=("text", "label"), **options):
    """A CSV file of rows."""
    with open(path, "w", newline="", encoding="utf-8") as f: csv.writer(f, **options).writerows([columns, *rows])
    return path


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def words(rng, n):
    return " ".join(rng.choice([*"abcdefghijklmnopqrstuvwxyz"], n))


def reviews(n, rng=0, classes=("bad", "good", "so so")):
    """Different rows of random letters, in which a word names the class."""
    rng = np.random.default_rng(rng)
    return [(f"{words(rng, 6)} {'xyz'[i % len(classes)] * 3} {i}", classes[i % len(classes)]) for i in range(n)]


@pytest.fixture
def model():
    model = make_gpt(np.float32, vocab_size=259, context_length=512, n_layers=1)
    model.tokenizer = CHAT
    return model


# -- splits ----------------------------------------------------------------------------------------
def test_shares_are_kept_in_each_class_and_each_class_is_trained_on():
    labels = ["a"] * 200 + ["b"] * 40 + ["c"] * 3
    chosen = parts([(f"row {i} {i}",) for i in range(243)], labels, [1] * 243, (0.1, 0.2))
    count = {c: [sum(pair == (s, c) for pair in zip(chosen, labels, strict=True)) for s in SPLITS] for c in "abc"}
    assert count == {"a": [140, 20, 40], "b": [28, 4, 8], "c": [1, 1, 1]}


def test_a_split_depends_on_the_seed_alone():
    texts = [(words(np.random.default_rng(i), 8),) for i in range(60)]
    draw = lambda seed: parts(texts, [None] * 60, [1] * 60, (0.2, 0.2), seed)
    assert draw(0) == draw(0) != draw(1) and draw(0).count("test") == 12


def test_near_duplicates_stay_together():
    """24 words in a row join two rows, or all words of shorter ones; 23 do not."""
    rng = np.random.default_rng(0)
    long = words(rng, 24)
    texts = [f"{words(rng, 9)} {long}", f"{long} {words(rng, 9)}", long[2:], "Great phone!", "great, PHONE", "!!", "?"]
    assert near_duplicates([(text,) for text in texts]) == [0, 0, 2, 3, 3, 5, 6]


def test_what_many_rows_begin_with_joins_nobody():
    rng = np.random.default_rng(0)
    form = words(rng, 30)
    texts = [(f"{form} {words(rng, 5)}",) for _ in range(40)]
    assert near_duplicates(texts) == list(range(40))
    assert near_duplicates(texts[:10]) == [0] * 10       # few of them are near-duplicates


def test_a_short_answer_joins_nobody_and_a_long_one_does():
    long = words(np.random.default_rng(0), 24)
    assert near_duplicates([("how", "yes"), ("why", "yes"), ("who", long), ("where", long), ("how", "no")]) == [0, 1, 2, 2, 0]


def test_families_of_near_duplicates_are_held_out_last():
    """30 single rows and a family of 8: the family is never a part of the test, though it would fit."""
    texts = [(f"row {i}",) for i in range(30)] + [("the same",)] * 8
    for seed in range(9):
        assert set(parts(texts, [0] * 38, [1] * 38, (0.2, 0.25), seed)[30:]) == {"train"}


def test_a_family_of_several_classes_is_trained_on():
    texts = [("one",)] * 2 + [(str(i),) for i in range(20)]
    for seed in range(9): assert parts(texts, "ab" * 11, [1] * 22, (0.2, 0.2), seed)[:2] == ["train"] * 2


def test_all_may_be_the_test():
    texts = [("same",), ("same",), ("other",)]
    assert parts(texts, "aba", [1] * 3, (0, 1)) == ["test"] * 3 and parts(texts, "aba", [1] * 3, (0, 0)) == ["train"] * 3
    for wrong in (-0.1, 0.1), (0.6, 0.6):
        with pytest.raises(ValueError, match="held_out must be the shares"): parts(texts, "aba", [1] * 3, wrong)


# -- text ------------------------------------------------------------------------------------------
def test_a_text_is_cut_where_a_reader_would():
    text = "# A\n\none two.\n\nthree\n\n# B\n\nfour\n" + "five six. seven eight nine"
    assert own.cut(text, 30) == ["# A\n\none two.\n\nthree\n\n", "# B\n\nfour\n", "five six. seven eight nine"]
    assert own.cut(text, 11) == ["# A\n\n", "one two.\n\n", "three\n\n", "# B\n\nfour\n", "five six. ", "seven ", "eight nine"]
    assert own.cut("unbroken", 3) == ["unbroken"] and own.cut("short", 9) == ["short"] and own.cut("", 9) == [""]


@pytest.mark.parametrize("seed", range(5))
def test_the_pieces_of_a_text_are_the_text(seed):
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(["word ", "end. ", "\n", "\n\n", "# ", "## Title\n", "\n\n\n", "long" * 5], 300))
    for most in (1, 7, 40, 200):
        pieces = own.cut(text, most)
        assert "".join(pieces) == text
        assert all(len(a) + len(b) > most for a, b in itertools.pairwise(pieces))          # neighbours that fit are joined
        assert all(len(p) <= most or " " not in p[:-1] and "\n" not in p[:-1] for p in pieces)


def notes(folder, n=6, seed=0):
    """A folder of Markdown; a hidden file, a picture and an empty one in it are not read."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(n):
        sections = (f"## Part {k}\n\n{words(rng, 50)}\n\n{words(rng, 60)}\n" for k in range(5))
        (folder / f"note{i}.md").write_text(f"# Note {i}\n\n" + "\n".join(sections), "utf-8")
    (folder / "deep").mkdir()
    (folder / "deep" / "last.TXT").write_text(words(rng, 400), "utf-8")
    (folder / "empty.txt").write_text(" \n")
    (folder / ".hidden.md").write_text("secret " * 400)
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    return folder


def test_a_folder_becomes_a_task(tmp_path):
    folder = notes(tmp_path / "notes")
    task = tasks.text(folder, BYTES)
    whole = "".join(BYTES.decode(task.data(s)) for s in SPLITS)
    assert task.name == "notes" and "secret" not in whole and "Note 5" in whole and task.context == 128
    total = sum(len(task.data(s)) for s in SPLITS)
    for split in SPLITS[1:]: assert 0.06 * total < len(task.data(split)) < 0.11 * total
    n_documents = sum((task.data(s) == BYTES.end_of_text).sum() - 1 for s in SPLITS)          # one stands in front, too
    assert task.notes[0] == f"7 files, 7 of them long and cut into parts: {n_documents} documents" and 40 <= n_documents < 90
    parts_of = {s: BYTES.decode(task.data(s)).split("<|endoftext|>")[1:-1] for s in SPLITS}
    assert not set(parts_of["train"]) & set(parts_of["test"] + parts_of["validation"])
    assert task.n_bytes["test"] == sum(len(d.encode()) for d in parts_of["test"])
    listed = [folder / "deep", folder / "empty.txt", *sorted(folder.glob("note*.md"))]    # the same files, in the same order
    again = tasks.text(listed, BYTES)
    assert again.name == "deep and 7 more" and [*again.sha256.values()] == [*task.sha256.values()]
    assert all(np.array_equal(again.data(s), task.data(s)) for s in SPLITS)


def test_files_that_are_not_read_are_named_with_the_reason(tmp_path):
    folder, rng = notes(tmp_path / "notes"), np.random.default_rng(1)
    (folder / ".git").mkdir()
    (folder / ".git" / "config.md").write_text("x")
    (folder / "README").write_text(words(rng, 99))
    for i in range(14): (folder / "deep" / f"{i:02}.gz").write_bytes(b"\x1f")
    (folder / "new\x1bline.org").write_text("x")
    try: (folder / "other").symlink_to(tmp_path, target_is_directory=True)
    except OSError: pytest.skip("this user may make no link here")
    assert tasks.text(folder, BYTES).notes[2:] == (
        "look: 2 files left out (hidden): .git/config.md, .hidden.md",
        "look: 17 files left out (the name ends in none of .md, .markdown, .rst, .txt; to read such a file, name it): README, "
        f"{', '.join(f'deep/{i:02}.gz' for i in range(11))} and 5 more",
        "look: 1 file left out (link to a folder): other", "look: 1 file left out (no text in it): empty.txt")
    named = tasks.text([folder, folder / "README"], BYTES)         # it is read, because it is named
    assert named.notes[0].startswith("8 files, ") and "README" not in str(named.notes)
    blank = tasks.text([folder / "note0.md", folder / "empty.txt"], BYTES)
    assert "look: 1 file left out (no text in it): empty.txt" in blank.notes
    in_memory = tasks.text({"a": words(np.random.default_rng(0), 400), "b": " "}, BYTES)
    assert "look: 1 text left out (no text in it): b" in in_memory.notes


def test_a_document_is_a_file_where_there_are_many(tmp_path):
    for i in range(40): (tmp_path / f"{i:02}.md").write_text(words(np.random.default_rng(i), 40) + "\n\n# Not cut\n")
    task = tasks.text(tmp_path, BYTES)
    (tmp_path / "00.md").write_text(words(np.random.default_rng(0), 70) + "\n\n# Not cut\n")
    assert task.notes[0] == tasks.text(tmp_path, BYTES).notes[0] == "40 files, a document each"    # it is larger, and whole
    lengths = sorted(len(text) + 1 for s in SPLITS for text in BYTES.decode(task.data(s)).split("<|endoftext|>")[1:-1])
    assert task.notes[1] == f"a document has {np.median(lengths):,.0f} tokens in the median, {lengths[-1]:,} at most"
    assert task.notes[2:] == ("nothing needs a look: no file left out, repeated paragraph",)
    assert len(task.data("test")) == 1 + 4 * (79 + 11 + 2)


def test_repeated_paragraphs_are_read_once(tmp_path):
    licence = "Licensed to everybody, for any purpose, in the hope that it may be of use to them. " * 2
    for i in range(30): (tmp_path / f"{i}.txt").write_text(f"{licence}\n\n{words(np.random.default_rng(i), 50)}")
    task = tasks.text(tmp_path, BYTES)
    found = [BYTES.decode(task.data(s)).count("Licensed") for s in SPLITS]
    assert sum(found) == 2 and found[0] == 2 and "characters in repeated paragraphs left out" in task.notes[2]


def test_a_short_text_has_short_windows_and_a_shorter_one_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" ".join(f"word{i}" for i in range(60)))
    task = tasks.text(path, BYTES)
    assert own.SHORTEST <= task.context == min(len(task.data(s)) for s in SPLITS) - 1 < 128
    path.write_text("Only one sentence is here, and it is not enough.")
    with pytest.raises(ValueError, match="a.txt.*give more text"): tasks.text(path, BYTES)
    whole = tasks.text(path, BYTES, held_out=(0, 1))
    assert whole.splits.keys() == {"test"} and whole.notes[0] == "1 file"
    path.write_text("x" * 4000)                                                 # it cannot be cut
    with pytest.raises(ValueError, match="a.txt: there are no documents for validation and test: give more text, which"):
        tasks.text(path, BYTES)


# -- labelled --------------------------------------------------------------------------------------
def test_rows_become_a_task(tmp_path):
    rows = reviews(300)
    path = table(tmp_path / "reviews.csv", [*rows, (rows[0][0].upper() + " ", rows[0][1]), *rows[5:8]])
    task = tasks.labelled(path, BYTES)
    assert task.classes == ("bad", "good", "so so") and [len(task.rows[s]) for s in SPLITS] == [210, 45, 45]
    assert task.notes[0] == "rows of each class: bad 100, good 100, so so 100"
    assert task.notes[2:] == ("look: 4 rows left out as repeating another: lines 302, 303, 304, 305",)
    assert task.form["columns"] == ["text", "label"] and task.form["held_out"] == [0.15, 0.15]
    assert task.sha256 == {"reviews.csv": hashlib.sha256(path.read_bytes()).hexdigest()}
    got = [(text, task.classes[i]) for s in SPLITS for text, i in task.rows[s]]
    assert sorted(got) == sorted((text.strip(), label) for text, label in rows) and len(set(got)) == 300
    assert all(sorted({i for _, i in task.rows[s]}) == [0, 1, 2] for s in SPLITS)
    assert repr(task).startswith("reviews.csv: 3 classes, 210 / 45 / 45 rows (train / validation / test); rows of each")


@pytest.mark.parametrize("name, options", [("a.csv", {}), ("a.tsv", {"delimiter": "\t"}), ("a.csv", {"delimiter": ";"}),
                                           ("a.data", {"delimiter": "\t"}), ("a.csv", {"quoting": csv.QUOTE_ALL})])
def test_every_usual_table_is_read(tmp_path, name, options):
    rows = [('He said "no",\nand; left\tus', "a, b"), ("é ≠ e", "c")]
    got = read_table(table(tmp_path / name, rows, **options))
    assert got.texts("text") == [text for text, _ in rows] and got.texts("label") == ["a, b", "c"]
    assert [line for line, _ in got.rows] == [2, 4]


def test_the_header_and_the_name_decide_how_a_file_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("\n\ntext;label\na, b, c;x\n")
    assert read_table(tmp_path / "a.csv").rows == ((4, {"text": "a, b, c", "label": "x"}),)
    (tmp_path / "a.csv").write_text("{text,label\na,x\n")
    assert read_table(tmp_path / "a.csv").columns == ("{text", "label")
    (tmp_path / "a.rows").write_text('{"text": "a", "label": "x"}\n')
    assert read_table(tmp_path / "a.rows").columns == ("text", "label")


def test_marks_and_line_ends_of_other_systems_are_no_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufefftext,label\r\nä,b\r\n\r\nc,d\r\n".encode())
    assert read_table(path).columns == ("text", "label") and read_table(path).texts("text") == ["ä", "c"]
    path.write_bytes("text,label\nä,b\n".encode("utf-16"))
    assert read_table(path, "utf-16").texts("text") == ["ä"]


def test_rows_of_json_have_labels_of_any_kind(tmp_path):
    rows = [{"text": f"{i} x", "label": i % 2 == 0} for i in range(12)]
    assert tasks.labelled(jsonl(tmp_path / "a.jsonl", rows), BYTES).classes == ("false", "true")
    (tmp_path / "a.json").write_text(json.dumps([{"text": f"{i} x", "label": i % 3} for i in range(12)]))
    assert tasks.labelled(tmp_path / "a.json", BYTES).classes == ("0", "1", "2")


def test_a_class_of_near_duplicates_has_no_test_and_that_is_told(tmp_path):
    rows = [("Same", "a"), ("same!", "a"), ("same?", "a"), *((f"row {i}", "b") for i in range(20))]
    task = tasks.labelled(table(tmp_path / "a.csv", rows), BYTES)
    assert task.notes[2:] == ("look: no row in test, by near-duplicates: 'a'",)
    assert [label for _, label in task.rows["train"]].count(0) == 3


def test_a_file_may_be_all_test_with_the_classes_of_another(tmp_path):
    path = table(tmp_path / "a.csv", [("x", "b"), ("y", "b")])
    task = tasks.labelled(path, BYTES, classes=("a", "b"), held_out=(0, 1))
    assert task.classes == ("a", "b") and task.rows == {"test": [("x", 1), ("y", 1)]}


def test_long_rows_are_cut_and_counted(tmp_path, model):
    rows = [(f"{'long ' * 60}{i}" if i < 4 else f"{i} short", "ab"[i % 2]) for i in range(40)]
    task = tasks.labelled(table(tmp_path / "a.csv", rows), model)
    assert task.context == 128 and task.notes[2:] == ("look: 4 rows cut to 128 tokens, the context: lines 2, 3, 4, 5",)
    lengths = sorted(len(model.tokenizer.encode(f"{text}\n")) + 2 for text, _ in rows)
    assert task.notes[1] == f"a row has {np.median(lengths):.0f} tokens in the median, {lengths[-1]} at most; 128 are read"
    assert max(len(ids) for s in SPLITS for ids, _ in task.data(s)) == 128


def test_predictions_are_the_heads(tmp_path, model):
    task = tasks.labelled(table(tmp_path / "a.csv", reviews(30)), model)
    tuned = tp.attach(model, tp.LoRA(rank=2), head=3)
    texts = ["a b xxx 1", "zzz", "y" * 300] * 9
    labels, p = task.predict(tuned, texts, probabilities=True)
    assert labels == task.predict(tuned, texts) and len(labels) == 27 and p.shape == (27, 3)
    assert np.allclose(p.sum(1), 1, atol=1e-6) and labels == [task.classes[i] for i in p.argmax(1)]
    for text, row in zip(texts[:3], p, strict=False):
        z = tuned.class_logits(task.encode(text)[None], [len(task.encode(text))]).data[0]
        assert np.allclose(row, np.exp(z) / np.exp(z).sum(), atol=1e-6)
    assert task.predict(tuned, []) == []
    with pytest.raises(TypeError, match="expected a list of texts, got 'one text'"): task.predict(tuned, "one text")
    with pytest.raises(ValueError, match="head has 2 classes, the task 3: bad, good, so so"):
        task.predict(tp.attach(model, tp.LoRA(rank=2), head=2), ["x"])


# -- pairs -----------------------------------------------------------------------------------------
def test_only_the_answer_counts_and_it_ends(tmp_path):
    rows = [{"prompt": f" Say {i}.", "answer": f"It is {i}.\n"} for i in range(20)]
    task = tasks.pairs(jsonl(tmp_path / "a.jsonl", rows), BYTES)
    tokens, targets = next(task.batches("test", 1))
    prompt, answer = task.rows["test"][0]
    end = BYTES.end_of_text
    assert task.chat is None and tokens[0].tolist() == [end, *f"{prompt}\n{answer}".encode()]
    assert targets[0].tolist() == [-100] * (len(prompt) + 1) + [*answer.encode(), end]
    assert [len(task.rows[s]) for s in SPLITS] == [14, 3, 3] and not prompt.startswith(" ")


def test_a_model_of_conversations_learns_in_its_template(tmp_path):
    rows = [{"prompt": f"Say {i}.", "answer": f"It is {i}."} for i in range(20)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    task = tasks.pairs(path, CHAT)
    prompt, answer = task.data("test")[0]
    text, wanted = task.rows["test"][0]
    assert task.chat == "smollm2" and task.end == chat_end(CHAT) == answer[-1]
    assert prompt.tolist() == chat_prompt(CHAT, text).tolist() and CHAT.decode(answer[:-1]) == wanted
    assert tasks.pairs(path, CHAT, chat=False).chat is None
    with pytest.raises(ValueError, match="lacks the special token"): tasks.pairs(path, BYTES, chat="smollm2")


def test_an_answer_is_the_rest_of_the_whole_conversation():
    """Whatever merges there are, prompt and answer together are the ids of the one text."""
    merged = BPETokenizer([(b"\n", b"A"), (b"A", b"B"), (b"t", b"\n")], special=CHAT.special, end_of_text=256, split="smollm",
                          vocab={bytes([b]): b for b in range(256)} | {b"\nA": 300, b"AB": 301, b"t\n": 302})
    for answer in ("ABA", "\nAB", "yes"):
        prompt, said = chat_prompt(merged, "Hi"), chat_answer(merged, "Hi", answer)
        whole = merged.encode_parts([*FAMILIES["smollm2"].template([("user", "Hi")]), answer])
        assert merged.decode([*prompt, *said]) == merged.decode(whole)
        if answer != "\nAB": assert [*prompt, *said] == whole.tolist()


@pytest.mark.parametrize("names", own.PAIRS[:-1])
def test_the_usual_columns_are_found(tmp_path, names):
    path = table(tmp_path / "a.csv", [(f"p{i}", f"a{i}", "x") for i in range(9)], (*names, "more"))
    task = tasks.pairs(path, BYTES)
    assert sorted(row for s in SPLITS for row in task.rows[s]) == [(f"p{i}", f"a{i}") for i in range(9)]
    assert task.form["columns"] == list(names)
    assert tasks.pairs(path, BYTES, names[1], names[0]).rows["test"][0][0][0] == "a"


def test_an_instructions_input_is_a_part_of_it(tmp_path):
    rows = [{"instruction": f"Add {i}.", "input": "" if i % 2 else f"{i} {i}", "output": str(2 * i)} for i in range(10)]
    task = tasks.pairs(jsonl(tmp_path / "a.jsonl", rows), BYTES)
    prompts = {prompt for s in SPLITS for prompt, _ in task.rows[s]}
    assert {"Add 2.\n\n2 2", "Add 3."} <= prompts


def test_conversations_have_several_turns(tmp_path):
    said = lambda *texts: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    system = {"role": "system", "content": "Be brief."}
    rows = [{"messages": [system, *said(f"Hi {i}", "Hello.", "Bye", f"Bye {i}")]} for i in range(9)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    task = tasks.pairs(path, CHAT)
    messages, answer = task.rows["test"][0]
    assert answer.startswith("Bye ") and len(messages) == 4
    assert task.data("test")[0][0].tolist() == chat_prompt(CHAT, messages).tolist()
    plain = tasks.pairs(path, BYTES)
    messages, _ = plain.rows["test"][0]
    assert BYTES.decode(plain.data("test")[0][0]) == f"<|endoftext|>Be brief.\n\n{messages[1]['content']}\n\nHello.\n\nBye\n"


def test_long_rows_of_pairs_are_left_out_and_counted(tmp_path):
    rows = [{"prompt": f"p {i}", "answer": "long " * 60 if i < 3 else f"a {i}"} for i in range(33)]
    path = jsonl(tmp_path / "a.jsonl", [*rows, rows[9]])
    task = tasks.pairs(path, BYTES, context=40)
    assert task.notes[1:] == ("look: 1 row left out as repeating another: line 34",
                              "look: 3 rows left out as longer than 40 tokens, the context: lines 1, 2, 3")
    assert sum(map(len, task.rows.values())) == 30
    with pytest.raises(ValueError, match="no rows of at most 4 tokens for train and validation and test"):
        tasks.pairs(path, BYTES, context=4)


def test_answers_are_generated_greedily_to_the_end(tmp_path, model):
    rows = [{"prompt": f"p {i}", "answer": f"a {i}"} for i in range(20)]
    task = tasks.pairs(jsonl(tmp_path / "a.jsonl", rows), model, chat=False)
    tuned = tp.attach(model, tp.LoRA(rank=2))
    prompts = ["p 1", "a longer one", "p 2", "p 1"]
    answers = task.predict(tuned, prompts, max_new_tokens=9)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = task.encode_prompt(prompt)
        out = tuned.generate(ids[None], 9, stop=task.end)[0, len(ids):].tolist()
        out = out[:out.index(task.end)] if task.end in out else out
        assert answer == CHAT.decode(out).strip()
    with pytest.raises(TypeError, match="expected a list of prompts"): task.predict(tuned, "p 1")
    with pytest.raises(ValueError, match="text 2 has 602 tokens and the model takes 512"): task.predict(tuned, ["x", "y" * 600])
    with pytest.raises(ValueError, match="text 1 is empty"): written(tuned, CHAT, [np.zeros(0, int)], 256, 5)


def test_a_continuation_ends_where_the_context_does(tmp_path, model):
    path = tmp_path / "a.txt"
    path.write_text(" ".join(f"word{i}" for i in range(200)))
    task = tasks.text(path, model)
    one, other = task.predict(model, ["x" * 504, "word1"], max_new_tokens=20)
    ids = model.generate(np.array([[*b"x" * 504]]), 8, stop=256)[0, 504:].tolist()
    assert one == CHAT.decode(ids[:ids.index(256)] if 256 in ids else ids) and other != ""
    last = model.generate(np.array([[*b"x" * 511]]), 1)[0, 511:].tolist()                  # room for one token
    assert task.predict(model, ["x" * 511], max_new_tokens=20) == [CHAT.decode([id for id in last if id != 256])]


# -- learning --------------------------------------------------------------------------------------
def test_what_is_learned_beats_the_majority(tmp_path):
    model = tp.GPT(tp.GPTConfig(257, 64, 32, 2, 4))
    model.tokenizer = BYTES
    task = tasks.labelled(table(tmp_path / "a.csv", reviews(300)), model)
    tuned = tp.attach(model, tp.FullFineTuning(), head=3)
    tp.train(tuned, task, 150, batch_size=16, lr=3e-3, progress=False)
    after, majority = tp.evaluate(tuned, task)["accuracy"], task.baselines["majority class"]["accuracy"]
    assert after > 0.9 > 0.5 > majority == 1 / 3 and task.predict(tuned, ["a f q zzz 9"]) == ["so so"]


# -- task.json -------------------------------------------------------------------------------------
def made(kind, folder, model):
    folder.mkdir(exist_ok=True)
    if kind == "text": return tasks.text(notes(folder / "notes"), model)
    if kind == "labelled": return tasks.labelled(table(folder / "a.csv", reviews(30)), model)
    return tasks.pairs(jsonl(folder / "a.jsonl", [{"prompt": f"p {i}", "answer": f"a {i}"} for i in range(20)]), model)


@pytest.mark.parametrize("kind", saved.KINDS)
def test_what_prediction_needs_is_saved(tmp_path, model, kind):
    task = made(kind, tmp_path / "d", model)
    tasks.save_task(task, tmp_path)
    tuned = tp.attach(model, tp.LoRA(rank=2), head=3 if kind == "labelled" else None)
    loaded = tasks.load_task(tmp_path, tuned)
    asked = ["one", "two three"]
    assert loaded.predict(tuned, asked) == task.predict(tuned, asked) and type(loaded) is type(task)
    assert loaded.form == task.form and loaded.sha256 == task.sha256 and loaded.context == task.context
    assert repr(loaded) == f"{task.name}: without data, for predict"
    with pytest.raises(ValueError, match="no split 'train'; there are none"): loaded.batch("train", 1, np.random.default_rng(0))
    tasks.save_task(loaded, tmp_path / "again")
    assert (tmp_path / "again" / saved.FILE).read_bytes() == (tmp_path / saved.FILE).read_bytes()


@pytest.mark.parametrize("kind, change, says", [
    ("labelled", {"classes": ["a"]}, "two or more different names"), ("labelled", {"classes": ["a", "a"]}, "different names"),
    ("labelled", {"classes": ["a", 3]}, "different names"), ("labelled", {"classes": {}}, "classes must be a list"),
    ("labelled", {"context": 1}, "context must lie in"), ("labelled", {"context": 10**9}, "context must lie in"),
    ("labelled", {"kind": "x"}, "kind must be one of text, labelled, pairs, got 'x'"),
    ("labelled", {"kind": []}, "kind must be"),
    ("labelled", {"format": 2}, "unknown format 2"), ("labelled", {"more": 1}, "unknown field 'more'"),
    ("labelled", {"held_out": [1]}, "held_out must be two shares"), ("labelled", {"held_out": [0, "1"]}, "two shares"),
    ("labelled", {"sha256": {"a": 1}}, "must be text"), ("labelled", {"columns": [1, 2]}, "must be text"),
    ("pairs", {"chat": "nosuch"}, "family must be one of"), ("pairs", {"chat": "gemma3"}, "lacks the special token"),
    ("pairs", {"chat": 3}, "chat must be a string or null"), ("text", {"classes": ["a", "b"]}, "unknown field 'classes'")])
def test_a_forged_task_is_refused(tmp_path, model, kind, change, says):
    tasks.save_task(made(kind, tmp_path / "d", model), tmp_path)
    path = tmp_path / saved.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=says) as e: tasks.load_task(tmp_path, model)
    assert str(path) in str(e.value)


def test_a_folder_without_a_task(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="no task.json; `finetune --out` writes it"): tasks.load_task(tmp_path, model)
    (tmp_path / saved.FILE).write_text("[]")
    with pytest.raises(ValueError, match="kind must be"): tasks.load_task(tmp_path, model)
    (tmp_path / saved.FILE).write_text('{"format": 1,\n "kind": "lab')
    says = "task.json: expected JSON, got a text that ends too early, after 27 characters; copy the file again, or make it"
    with pytest.raises(ValueError, match=says): tasks.load_task(tmp_path, model)


# -- broken files ----------------------------------------------------------------------------------
LATIN = "text,label\ncafé,a\n".encode("cp1252")
ROWS = "one,a\ntwo,a\nthree,a\nfour,b\nfive,b\nsix,b\n"
BROKEN = [
    ("labelled", "a.csv", LATIN, r"a.csv is not text in utf-8: byte 14 does not fit.*such as cp1252"),
    ("labelled", "a.csv", b"\xff\xfet\0e\0", "begins as a file in UTF-16 does; give its encoding, utf-16"),
    ("labelled", "a.csv", b"\x89PNG\r\n\0\0", "a.csv is not a text file: byte 6 is 0"),
    ("labelled", "a.csv", b" \n", "a.csv is empty"), ("labelled", "a.csv", b"text,label\n", "a.csv has no row"),
    ("labelled", "a.csv", b"Text,y\n" + ROWS.encode(), "a.csv has no column 'text' and 'label'; there are 'Text', 'y'"),
    ("labelled", "a.csv", b"text,label,text\nx,y,z\n", "two columns are called 'text'; rename one"),
    ("labelled", "a.csv", b"text,label\na,b\nc,d,e\nf\n", "lines 3, 4: line 3 has 3 fields, the header has 2; put quotes"),
    ("labelled", "a.csv", b'text,label\n"open,b\nc,d\n', "line 2: unexpected end of data; a text that contains ','"),
    ("labelled", "a.csv", b"text,label\n" + b"x" * 200_000 + b",b\n", "line 2: field larger than field limit"),
    ("labelled", "a.csv", b"text,label\na,b\n,b\nc, \n", "'text' is empty in line 3; fill it in"),
    ("labelled", "a.csv", b"text,label\na,x\nb,x\nc,x\n", "every row has the label 'x'; a classifier needs two classes"),
    ("labelled", "a.csv", f"text,label\n{ROWS}seven,c\n".encode(), r"'c' has 1 different row \(line 8\); each class needs 3"),
    ("labelled", "a.csv", b"text,label\n" + b"one,a\n" * 9 + b"two,b\n" * 9,
     r"'a' has 1 different row \(lines 2, 3, 4, 5, 6 and 4 more\), and so does one other class"),
    ("pairs", "a.jsonl", b'{"prompt": "a", "answer": "b"}\n{"prompt": "a", "answer": }\n',
     "line 2: expected JSON, got at character 27: '}'; each line holds one JSON object"),
    ("pairs", "a.jsonl", b'["a", "b"]\n["c", "d"]\n', r"a.jsonl: expected JSON, got more text after it, at line 2, column 1"),
    ("pairs", "a.jsonl", b'{"prompt": "a", "answer": "b"}\n[1]\n', r"line 2: expected a JSON object"),
    ("pairs", "a.jsonl", b'{"prompt": "a", "prompt": "b"}\n', "line 1: the name 'prompt' occurs twice"),
    ("pairs", "a.jsonl", b'{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n', "line 2: 'answer' must be text, got nothing"),
    ("pairs", "a.jsonl", b'{"prompt": "a", "answer": ["b"]}\n', r"line 1: 'answer' must be text, got \['b'\]"),
    ("pairs", "a.jsonl", b'{"prompt": "a", "answer": " "}\n', "'answer' is empty in line 1"),
    ("pairs", "a.jsonl", rb'{"prompt": "a", "answer": "\ud800"}', "line 1: .* is half of a character"),
    ("pairs", "a.jsonl", rb'{"prompt": "a", "answer": "\u0000"}', "line 1: the text holds the character NUL"),
    ("pairs", "a.jsonl", b'{"q": "a", "a": "b"}\n',
     "no column 'prompt' and 'answer' or 'prompt' and 'completion' or .* or 'messages'; there are 'q', 'a'"),
    ("pairs", "a.jsonl", b'{"messages": "hi"}', "line 1: messages must be a list of"),
    ("pairs", "a.jsonl", b'{"messages": [{"role": "user", "content": "hi"}]}', "the last one from the assistant"),
    ("pairs", "a.jsonl", b'{"messages": [{"role": "assistant", "content": "hi"}]}', "line 1: .* got no message"),
    ("pairs", "a.jsonl", b'{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d"}\n', "there are no rows for"),
    ("pairs", "a.json", b'[{"prompt": "a", "answer": "b"}', "a.json: expected JSON, got a text that ends too early"),
    ("pairs", "a.json", b'[{"prompt": "a", "answer": "b"}, 3]', "a.json, item 2: expected a JSON object"),
    ("pairs", "a.json", b'[{"prompt": "a", "answer": "b"}, {"prompt": "", "answer": "b"}]', "'prompt' is empty in item 2"),
    ("text", "a.md", b"\0" + b"word " * 99, "byte 0 is 0"),
    ("text", "a.md", b"\xe9t\xe9 " * 99, "a.md is not text in utf-8: byte 0 does not fit"),
    ("text", "a.md", b"\n \n", "a.md: there is no text in it"),
    ("text", "a.md", b"MZ\x90\0", "byte 3 is 0; save it as plain text"),
]


@pytest.mark.parametrize("kind, name, content, says", BROKEN)
def test_a_broken_file_is_told_what_is_wrong(tmp_path, kind, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says) as e: getattr(tasks, kind)(tmp_path / name, BYTES)
    assert name in str(e.value) and len(str(e.value)) < 600 + len(str(tmp_path))


POSIX = pytest.mark.skipif(os.name != "posix", reason="Windows has no devices among its files")


@pytest.mark.parametrize("call, error, says", [
    (lambda p: tasks.text(p / "nosuch"), FileNotFoundError, "nosuch"), (lambda p: tasks.labelled(p), ValueError, "is a folder"),
    (lambda p: tasks.text(p), ValueError, "holds no text file: none ends in .md, .markdown, .rst, .txt"),
    (lambda p: tasks.text([]), ValueError, "no file: there is no text"),
    pytest.param(lambda p: tasks.text("/dev/zero"), ValueError, "regular file", marks=POSIX),
    (lambda p: tasks.pairs(p / "a.csv", BYTES, prompt="x"), ValueError, "name both columns"),
    (lambda p: tasks.labelled(p / "a.csv", BYTES, delimiter="::"), ValueError, "delimiter must be one character"),
    (lambda p: tasks.labelled(p / "a.csv", BYTES, encoding="hex"), ValueError, "no encoding 'hex' of text"),
    (lambda p: tasks.labelled(p / "a.csv", BYTES, classes=("a", "c")), ValueError, "line 5: 'label' is 'b', and the"),
    (lambda p: tasks.labelled(p / "a.csv", BYTES, context=1), ValueError, "context must lie in"),
    (lambda p: tasks.labelled(p / "a.csv", BYTES, held_out=0.2), ValueError, "two numbers .* got 0.2"),
    (lambda p: tasks.text(p / "a.csv", BYTES, held_out=("0.1", "x")), ValueError, "two numbers"),
    (lambda p: tasks.pairs(p / "a.csv", BYTES, held_out=(0.1, 0.1, 0.1)), ValueError, "two numbers"),
    (lambda p: tasks.labelled(p / "a.csv", BYTES, held_out=(0.9, 0.9)), ValueError, "held_out must be")])
def test_wrong_calls(tmp_path, call, error, says):
    if call.__code__.co_consts.count("a.csv"): (tmp_path / "a.csv").write_text(f"text,label\n{ROWS}")
    with pytest.raises(error, match=says): call(tmp_path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(own_files, "MOST", 1000)
    for name in "ab": (tmp_path / f"{name}.md").write_text("word " * 120)
    with pytest.raises(ValueError, match="b.md: more than 1,000 bytes in all"): tasks.text(tmp_path, BYTES)
    monkeypatch.setattr(own_files, "MOST", 500)
    for make in (tasks.labelled, tasks.pairs):
        with pytest.raises(ValueError, match="a.md: more than 500 bytes"): make(tmp_path / "a.md", BYTES)


def test_any_bytes_give_a_task_or_a_named_error(tmp_path):
    st = pytest.importorskip("hypothesis.strategies")
    parts = ["text,label\n", "prompt,answer\n", *(f"{n} {c},{c}\n" for n in ("one", "two", "six") for c in "ab"),
             ",", ";", "\t", '"', "\n", "\r", "\0", "\ud800", "é", "a",
             '{"prompt": "p", "answer": "a"}\n', '{"prompt": "\\ud800", "answer": 1}\n',
             '{"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]}\n',
             '{"text": null, "label": []}\n',
             "{", "}", "[", "]", "1e999", "# T\n\n", "word " * 30, "\n\n"]
    content = st.binary(max_size=200) | st.lists(st.sampled_from(parts), max_size=40).map(
        lambda chosen: "".join(chosen).encode("utf-8", "surrogatepass"))
    encodings = ["utf-8"] * 8 + ["cp1252", "utf-16", "utf-7", "idna", "hex", "nosuch", "", "\0", "unicode_escape", "undefined"]

    def read(content, suffix, kind, encoding, shares):
        path = tmp_path / f"own.{suffix}"
        path.write_bytes(content)
        return getattr(tasks, kind)(path, BYTES, encoding=encoding, held_out=shares)

    def works(task):
        for batch in task.batches("test", 4): assert task.count(batch) > 0
    suffixes, kinds = ["csv", "tsv", "jsonl", "json", "md", "x"], [*saved.KINDS]
    shares = [(0.15, 0.15), (0, 1), (0, 0.2)]
    read_or_refused(read, works, ValueError, "own.", 400, content, *map(st.sampled_from, (suffixes, kinds, encodings, shares)))


def test_the_rules_numbers_are_those_of_the_pages():
    assert own_files.MOST == 20_000_000 and held_out.FORM == 10 and own.LARGEST == 20


# -- rows with nothing in a column -----------------------------------------------------------------
NOTHING = [" ", None, float("nan"), ""]


@pytest.mark.parametrize("nothing", NOTHING)
def test_rows_without_a_text_or_a_label_can_be_left_out(nothing):
    rows, options = reviews(30), {"context": 64}
    task = tasks.labelled([rows[0], (nothing, "bad"), *rows[1:], ("some text", nothing)], BYTES, skip_empty=True, **options)
    plain = tasks.labelled(rows, BYTES, skip_empty=True, **options)
    assert task.rows == plain.rows and task.classes == plain.classes
    assert task.notes == (*plain.notes[:2], "look: 2 rows left out with nothing in 'text' or 'label': items 2, 32")
    for data in [rows[0], (nothing, "bad")], [(nothing, nothing)]:
        with pytest.raises(ValueError, match="; or set skip_empty, which leaves such rows out"):
            tasks.labelled(data, BYTES)
    with pytest.raises(ValueError, match="rows: no row is left; give rows that are not empty"):
        tasks.labelled([(nothing, "bad")], BYTES, skip_empty=True)


def test_prompts_without_an_answer_can_be_left_out(tmp_path):
    """Of a conversation the last message is the answer. An empty "input" is no fault."""
    rows = [{"instruction": f"Say {i}", "output": str(i), "input": ""} for i in range(12)]
    task = tasks.pairs([*rows, {"instruction": "Say"}], BYTES, skip_empty=True)
    assert sum(len(part) for part in task.splits.values()) == 12
    assert "look: 1 row left out with nothing in 'instruction' or 'output': item 13" in task.notes
    def said(prompt, answer):
        return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
    talks = [*(said(f"Say {i}", str(i)) for i in range(12)), said("Say", " "), {"messages": []}, {"messages": None}]
    task = tasks.pairs(jsonl(tmp_path / "a.jsonl", talks), BYTES, skip_empty=True)
    assert "look: 3 rows left out with nothing in 'messages': lines 13, 14, 15" in task.notes
    with pytest.raises(ValueError, match="item 13: messages must be a list"):        # wrong, and not empty
        tasks.pairs([*talks[:12], {"messages": "hi"}], BYTES, skip_empty=True)


# -- in memory -------------------------------------------------------------------------------------
def test_rows_in_memory_make_the_task_that_a_file_makes(tmp_path):
    """Tuples in the order of the columns, dicts with names, or columns; a label may be a number of NumPy's."""
    class Frame:
        """What a data frame is to this: its names, and a column for each."""
        def keys(self): return ["n", "text", "label"]
        def __getitem__(self, name): return [row[["text", "label"].index(name)] if name != "n" else 7 for row in rows]
    rows = [(f"text number {n} {'abcdefgh'[n % 8]}", n % 2) for n in range(40)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    wanted = tasks.labelled(tmp_path / "rows.csv", BYTES)
    numbers = [(text, np.int64(label)) for text, label in rows]
    named = [{"text": text, "label": label} for text, label in rows]
    columns = {name: [row[name] for row in named] for name in ("label", "text")}
    arrays = {"text": np.array(columns["text"]), "label": np.array(columns["label"])}
    for data in rows, numbers, named, iter(rows), columns, arrays, Frame():
        task = tasks.labelled(data, BYTES)
        assert task.rows == wanted.rows and task.classes == ("0", "1") and task.name == "rows"
    assert tasks.labelled([{"stars": b, "review": a} for a, b in rows], BYTES, "review", "stars").rows == wanted.rows
    (tmp_path / "pairs.csv").write_text("prompt,answer\n" + "".join(f"{a},{b}\n" for a, b in rows))
    wanted = tasks.pairs(tmp_path / "pairs.csv", BYTES).rows
    assert tasks.pairs([(a, str(b)) for a, b in rows], BYTES).rows == wanted
    assert tasks.pairs([{"question": a, "answer": b} for a, b in rows], BYTES).rows == wanted
    assert tasks.pairs({"instruction": [a for a, _ in rows], "output": [b for _, b in rows]}, BYTES).rows == wanted
    talks = {"messages": [[{"role": "user", "content": a}, {"role": "assistant", "content": str(b)}] for a, b in rows]}
    assert len(tasks.pairs(talks, BYTES).rows["train"]) == len(wanted["train"])
    (tmp_path / "a.md").write_text("\n\n".join(text for text, _ in rows))
    texts = {"a.md": (tmp_path / "a.md").read_text()}
    for split, ids in tasks.text(tmp_path / "a.md", BYTES).streams.items():
        assert np.array_equal(tasks.text(texts, BYTES).streams[split], ids)
    apart, together = ({f"{name}{n}": text for n, (text, _) in enumerate(rows)} for name in ("a", "b"))
    for split, ids in tasks.text(apart, BYTES).streams.items():
        assert np.array_equal(tasks.text({"a": list(together.values())}, BYTES).streams[split], ids)


@pytest.mark.parametrize("make, error, says", [
    (lambda: tasks.labelled(small(), "reviews.csv"), TypeError, "or a dict of columns, got a GPT; the data come first"),
    (lambda: tasks.pairs(small(), "qa.jsonl"), TypeError, r"a list of \(prompt, answer\) or of dicts, or a"),
    (lambda: tasks.text(small(), "notes"), TypeError, "or a dict name → text, got a GPT; the data"),
    (lambda: tasks.text({"a": None}), TypeError, "expected a dict of texts, name → text, got {'a': None}"),
    (lambda: tasks.domain("notes"), TypeError, "expected a model or a tokenizer, got 'notes'; tinypeft.load_model gives"),
    (lambda: tasks.domain([("a", "b")]), TypeError, "got a list; where a task takes data, they come first, and then the model"),
    (lambda: tasks.text({"a": "b"}, {"a": 1}), TypeError, "got a dict; where a task takes data, they come first"),
    (lambda: tasks.labelled(BYTES, [("a", "x")]), TypeError, "or a dict of columns, got a BPETokenizer; the data come first"),
    (lambda: tasks.text(["one\ntwo"]), ValueError, r"'one\\ntwo' is a text and not the path of a file; give texts in mem"),
    (lambda: tasks.text({"a": ["x", 3]}), TypeError, "expected a dict of texts"),
    (lambda: tasks.labelled({"text": "a", "label": ["b"]}), TypeError, "the column 'text' must be a list of values, got 'a'"),
    (lambda: tasks.labelled({"text": ["a"], "label": ["b", "c"]}), ValueError, "unequal lengths: 'text' 1, 'label' 2"),
    (lambda: tasks.labelled({}), ValueError, "there is no row"), (lambda: tasks.labelled({"text": []}), ValueError, "no row"),
    (lambda: tasks.labelled({"a": ["x"]}), ValueError, "rows has no column 'text' and 'label'; there are 'a'"),
    (lambda: tasks.labelled(["a", "b"]), TypeError, r"item 1 of the rows: expected \(text, label\), or a dict, got 'a'"),
    (lambda: tasks.labelled([("a", "b"), ("a", "b", "c")]), TypeError, "item 2 of the rows"),
    (lambda: tasks.labelled([]), ValueError, "there is no row"),
    (lambda: tasks.text({}), ValueError, "no file: there is no text in it"),
    (lambda: tasks.labelled([("a", "x"), ("b", float("nan"))]), ValueError, "rows, item 2: 'label' must be text, got nothing"),
    (lambda: tasks.labelled([{"a": 1}]), ValueError, "rows has no column 'text' and 'label'; there are 'a'")])
def test_what_are_no_rows_is_refused_by_name(make, error, says):
    with pytest.raises(error, match=says): make()


# -- the model remembers its task ------------------------------------------------------------------
@pytest.mark.parametrize("kind", saved.KINDS)
def test_an_adapter_is_saved_with_the_task_that_it_was_trained_on(tmp_path, model, kind):
    """In both formats, and again after loading. The model keeps no data."""
    task = made(kind, tmp_path / "d", model)
    tuned = tp.attach(model, tp.LoRA(rank=2), head=3 if kind == "labelled" else None, head_bias=False)
    assert tuned.task is None
    tp.train(tuned, task, 1, progress=False)
    assert tuned.task.splits == {} and type(tuned.task) is type(task) and tuned.task.form == task.form
    answers = task.predict(tuned, ["one", "two three"])
    for format in ("tinypeft", "peft"):
        tuned.save(tmp_path / format, format)
        loaded = tp.load_adapter(tuned.detach(), tmp_path / format)
        assert loaded.task.predict(loaded, ["one", "two three"]) == answers
        loaded.save(tmp_path / f"{format} again", format)
    tasks.save_task(task, tmp_path)
    texts = {(folder / saved.FILE).read_bytes() for folder in tmp_path.iterdir() if (folder / saved.FILE).is_file()}
    assert texts == {(tmp_path / saved.FILE).read_bytes()}


def test_save_takes_a_task_and_refuses_one_that_predicts_nothing(tmp_path, model):
    task, tuned = made("pairs", tmp_path / "d", model), tp.attach(model, tp.LoRA(rank=2))
    tuned.save(tmp_path / "none")
    assert not (tmp_path / "none" / saved.FILE).exists()
    tuned.save(tmp_path / "given", task=task)
    assert tasks.load_task(tmp_path / "given", model).name == task.name
    with pytest.raises(ValueError, match="has nothing to predict"): tuned.save(tmp_path / "refused", task=Noise())
    assert not (tmp_path / "refused").exists()
    (tmp_path / "given" / saved.FILE).write_text("{")
    assert tp.load_adapter(tuned.detach(), tmp_path / "given").task is None          # load_task says why


def test_a_task_without_a_form_is_not_remembered():
    tuned = tp.attach(small(), tp.LoRA(rank=2))
    tuned.task = "an older one"
    tp.train(tuned, Noise(), 1, progress=False)
    assert tuned.task is None


# -- text in, text out -----------------------------------------------------------------------------
def test_a_classifier_takes_texts(tmp_path, model):
    task = made("labelled", tmp_path / "d", model)
    tuned = tp.attach(model, tp.LoRA(rank=2), head=3)
    with pytest.raises(ValueError, match=r"knows no classes .*use task.predict\(tuned, texts\)"): tuned.classify("one")
    tp.train(tuned, task, 1, progress=False)
    texts = ["one", "two three " * 9, "one"]
    labels, p = task.predict(tuned, texts, probabilities=True)
    answers = tuned.classify(texts)
    assert [answer.label for answer in answers] == labels and tuned.classify([]) == []
    assert [list(answer.probabilities) for answer in answers] == [list(task.classes)] * 3
    assert np.array_equal([list(answer.probabilities.values()) for answer in answers], p)
    label, probabilities = tuned.classify("one")
    assert probabilities[label] == max(probabilities.values()) and sum(probabilities.values()) == pytest.approx(1, abs=1e-6)
    with pytest.raises(TypeError, match="expected a list of texts, got array"): tuned.classify(np.arange(3))
    again = pickle.loads(pickle.dumps(tuned))
    assert again.classify("one") == tuned.classify("one")
    tuned.save(tmp_path / "judge")
    merged, base = tuned.merge(), tuned.detach()
    assert merged.classify("one").label == label
    with pytest.raises(ValueError, match="knows no classes of texts"): base.classify("one")
    tuned = tp.load_adapter(base, tmp_path / "judge")
    assert tuned.classify(texts) == answers
    ids = task.encode("one")
    assert tuned.class_logits(ids[None], np.array([len(ids)])).shape == (1, 3)
    tp.train(tuned, made("pairs", tmp_path / "d", model), 1, progress=False)
    with pytest.raises(ValueError, match="knows no classes"): tuned.classify(["one"])


def test_a_text_is_continued(model):
    ids = CHAT.encode_prompt("A lamp")[None]
    for tuned in model, tp.attach(model, tp.LoRA(rank=2)):
        out = tp.generate(tuned, ids, 9, temperature=1.0, rng=3, stop=CHAT.end_of_text)[0, 6:].tolist()
        out = out[:out.index(CHAT.end_of_text)] if CHAT.end_of_text in out else out
        assert tp.generate(tuned, "A lamp", 9, temperature=1.0, rng=3) == "A lamp" + CHAT.decode(out, continued=True)
        assert tuned.generate("A lamp", 9, temperature=1.0, rng=3) == tp.generate(tuned, "A lamp", 9, temperature=1.0, rng=3)
    assert tp.generate(model, "A lamp").startswith("A lamp")
    with pytest.raises(ValueError, match="this model has no tokenizer, so it takes token ids"): tp.generate(small(), "x")


@pytest.mark.parametrize("call, verb", [
    (lambda: tp.train(small(), ["hello"] * 10, steps=2), "train"), (lambda: tp.train(Noise(), ["hello"], steps=2), "train"),
    (lambda: tp.evaluate(small(), "notes"), "evaluate"), (lambda: tp.find_rate(small(), ["hello"], steps=2), "find_rate")])
def test_what_is_no_task_is_refused_with_how_to_make_one(call, verb):
    with pytest.raises(TypeError, match="fit_probe: expected a task with classes, as tasks.labelled makes .*got a list"):
        tp.fit_probe(small(), [("a", "b")])
    with pytest.raises(TypeError, match=rf"{verb}: expected a model and a task, got .*tasks.labelled\(rows, model\)"): call()


@pytest.mark.parametrize("call, says", [
    (lambda task, tuned: tp.train(task, tuned, steps=2), "train: the model comes first, and then the task; got a PeftModel as"),
    (lambda task, tuned: tp.train(task, tuned.model, 2), "train: the model comes first, and then the task; got a GPT as"),
    (lambda task, tuned: tp.evaluate(task, tuned), "evaluate: the model comes first, and then the task"),
    (lambda task, tuned: tp.find_rate(task, tuned, steps=2), "find_rate: the model comes first, and then the task"),
    (lambda task, tuned: task.predict(["one"], tuned), "predict: the model comes first, and then the "),
    (lambda task, tuned: tp.generate("one", tuned), "generate: the model comes first"),
    (lambda task, tuned: tp.attach(tp.LoRA(), tuned.model), "attach: expected a language model, got LoRA; the model comes"),
    (lambda task, tuned: tp.quantize(tp.NF4(), tuned.model), "quantize: expected a language model, got NF4; the model comes"),
    (lambda task, tuned: tp.load_adapter("there", tuned.model), "load_adapter: expected a language model, got str; the model")])
@pytest.mark.parametrize("kind", saved.KINDS)
def test_swapped_arguments_are_named(call, says, kind, tmp_path, model):
    with pytest.raises(TypeError, match=says): call(made(kind, tmp_path / "d", model), tp.attach(model, tp.LoRA(rank=2)))


def test_a_checkpoint_that_is_refused_leaves_the_task_as_it_was(tmp_path, model):
    (tmp_path / "c").write_text("no checkpoint")
    tuned = tp.attach(model, tp.LoRA(rank=2))
    task = made("pairs", tmp_path / "d", model)
    with pytest.raises(ValueError): tp.train(tuned, task, 1, checkpoint=tmp_path / "c", progress=False)
    assert tuned.task is None
