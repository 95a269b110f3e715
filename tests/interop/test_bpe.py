"""interop/bpe.py: GPT-2's tokenizer files give transformers' ids for any text; other files are refused."""
import json
import sys
import unicodedata

import pytest

import tinypeft as tp
from tests.damaged import read_or_refused, spliced
from tests.oracles.hf_tokenizers import MIXED, nasty_strings
from tinypeft.interop import HuggingFaceError, read_tokenizer, write_tokenizer
from tinypeft.interop.byte_level import CHARACTER
from tinypeft.text import base_corpus
from tinypeft.text.words import _newer, words


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder with vocab.json and merges.txt that the tokenizers library learned, and transformers' GPT2Tokenizer of it."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    learned = tokenizers.Tokenizer(tokenizers.models.BPE())
    learned.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=2000, special_tokens=["<|endoftext|>"], show_progress=False,
                                             initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    learned.train_from_iterator([*(str(d) for d in base_corpus().train[:150]), MIXED * 3], trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    learned.model.save(str(folder))
    return folder, transformers.GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


def test_ids_are_transformers(theirs):
    folder, tokenizer = theirs
    ours = read_tokenizer(folder)
    assert ours.vocab_size == len(tokenizer) and ours.end_of_text == tokenizer.eos_token_id
    count = 0
    for text in [MIXED, base_corpus().text("test")[:100_000], "", *nasty_strings()]:
        ids = ours.encode(text, allow_special=True)
        assert ids.tolist() == tokenizer.encode(text), repr(text)
        assert ours.decode(ids) == text
        count += ours.end_of_text in ids
    assert count > 200
    for lone in ("\ud800", "a\udfff"):                                    # no text: refused on both sides
        with pytest.raises(ValueError, match="surrogate"): ours.encode(lone)
        with pytest.raises((TypeError, ValueError)): tokenizer.encode(lone)


@pytest.mark.skipif(unicodedata.unidata_version > "16.1", reason="a Python that knows more letters than tokenizers")
def test_every_character_is_a_letter_a_numeral_a_space_or_another_as_in_the_library():
    """All of Unicode 16.0, whose newest letters this Python may not know."""
    cut = pytest.importorskip("tokenizers").pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    known = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in ("Cn", "Co", "Cs")
             or c in _newer() or ord(c) % 256 == 7 and not "\ud800" <= c <= "\udfff"]
    assert len(known) > 150_000
    for i in range(0, len(known), 4096):
        text = "".join(f"a{c}1{c}!{c} {c}" for c in known[i:i + 4096])
        assert words(text) == [text[a:b] for _, (a, b) in cut.pre_tokenize_str(text)], hex(ord(known[i]))


def test_written_by_transformers_and_read_here(theirs, tmp_path):
    folder, tokenizer = theirs
    tokenizer.save_pretrained(tmp_path)                                  # tokenizer.json
    assert read_tokenizer(tmp_path) == read_tokenizer(folder)


def test_added_tokens(theirs, tmp_path):
    from transformers import GPT2Tokenizer
    folder, _ = theirs
    tokenizer = GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    tokenizer.add_tokens(["<pad>", "<pad>>"], special_tokens=True)
    tokenizer.add_tokens(["naïve"])
    tokenizer.save_pretrained(tmp_path)
    ours = read_tokenizer(tmp_path)
    assert ours.special.keys() == {"<|endoftext|>", "<pad>", "<pad>>"} and ours.added.keys() == {"naïve"}
    assert ours.end_of_text == tokenizer.eos_token_id
    for text in ("naïve<pad> <pad>>x naïvet<|endoftext|>", " naïve", "<pad", "<pad>>>"):
        assert ours.encode(text, allow_special=True).tolist() == tokenizer.encode(text)
    ours.save(tmp_path / "ours.json")
    assert tp.text.BPETokenizer.load(tmp_path / "ours.json") == ours
    write_tokenizer(tmp_path / "again", ours)
    assert read_tokenizer(tmp_path / "again") == ours
    (tmp_path / "again" / "tokenizer.json").unlink()                     # vocab.json does not say that they are special
    (tmp_path / "again" / "added_tokens.json").write_text(json.dumps(ours.special | ours.added))
    older = read_tokenizer(tmp_path / "again")
    assert older.special == ours.special | ours.added and (older.vocab, older.merges) == (ours.vocab, ours.merges)


@pytest.mark.parametrize("only", ["tokenizer.json", "vocab.json merges.txt"])
def test_written_here_and_read_by_transformers(only, tmp_path):
    auto = pytest.importorskip("transformers").AutoTokenizer
    ours = tp.load_pretrained().tokenizer
    write_tokenizer(tmp_path, ours)
    for path in tmp_path.iterdir():
        if path.name not in only + " tokenizer_config.json": path.unlink()
    tokenizer = auto.from_pretrained(tmp_path)
    assert len(tokenizer) == ours.vocab_size and tokenizer.eos_token_id == ours.end_of_text
    for text in [MIXED, *list(nasty_strings(300))]:
        assert tokenizer.encode(text) == ours.encode(text, allow_special=True).tolist()
    assert read_tokenizer(tmp_path) == ours


def test_bytes_as_characters():
    """Some of GPT-2's characters for bytes are well known from its vocabulary."""
    assert len(set(CHARACTER.values())) == 256 and all(c.isprintable() and not c.isspace() for c in CHARACTER.values())
    assert [CHARACTER[b] for b in b" \n\t\x00aZ~\xa1\xff\xad"] == list("ĠĊĉĀaZ~¡ÿŃ")


def test_a_folder_without_a_tokenizer(tmp_path):
    assert read_tokenizer(tmp_path) is None


@pytest.fixture
def files(tmp_path):
    """What a tokenizer's folder holds, as a dict to change, and a function that writes and reads it."""
    write_tokenizer(tmp_path, tp.text.BPETokenizer.train("low lower lowest", 260))
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))

    def read():
        (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
        return read_tokenizer(tmp_path)
    assert read().vocab_size == 260
    return content, read


def test_older_forms_of_the_same_file(files):
    """tokenizer.json as tokenizers wrote it in 2019, and with what transformers 5 puts around a text, nothing."""
    content, read = files
    expected = read()
    del content["model"]["type"], content["model"]["ignore_merges"], content["pre_tokenizer"]["use_regex"]
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["added_tokens"][0]["normalized"] = True
    content["model"]["continuing_subword_prefix"] = ""
    assert read() == expected
    content["post_processor"] = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}], "special_tokens": {}}
    assert read() == expected


def change(content, path, value):
    *above, last = path.split(".")
    for part in above: content = content[part]
    content[last] = value


@pytest.mark.parametrize("path, value, says", [
    ("model.type", "WordPiece", "type is 'WordPiece'"), ("model.type", None, "type is None"), ("model", 3, "expected model"),
    ("model.dropout", 0.1, "dropout is 0.1"),
    ("model.unk_token", "<unk>", "unk_token"), ("model.byte_fallback", True, "byte_fallback"),
    ("model.ignore_merges", True, "ignore_merges"), ("model.continuing_subword_prefix", "##", "continuing_subword_prefix"),
    ("normalizer", {"type": "NFC"}, "normalizer is 'NFC'"), ("normalizer", "NFC", "normalizer"),
    ("pre_tokenizer", None, "pre_tokenizer is None"), ("pre_tokenizer", "x", "pre_tokenizer is"),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": []}, "'Sequence'"), ("pre_tokenizer", {}, "pre_tokenizer is None"),
    ("pre_tokenizer.add_prefix_space", True, "put no space in front"),
    ("pre_tokenizer.use_regex", False, "split by GPT-2's"),
    ("post_processor", {"type": "TemplateProcessing", "special_tokens": {"<s>": {}}}, "puts special tokens around"),
    ("post_processor", {"type": "BertProcessing"}, "post_processor is 'BertProcessing'"),
    ("decoder", {"type": "WordPiece"}, "decoder"),
    ("added_tokens", [{"id": 5, "content": "<x>", "lstrip": True}], "not depend on the text around it"),
    ("added_tokens", [{"id": 5}], "an added token"), ("added_tokens", [3], "an added token"),
    ("added_tokens", [{"content": "<x>"}], "ids must be integers, got None"),
    ("added_tokens", [{"id": True, "content": "<x>"}], "ids must be integers, got True"),
    ("added_tokens", [{"id": 7, "content": "<x>"}], "each once"),
    ("added_tokens", [{"id": 260, "content": ""}], "need names"),
    ("added_tokens", [{"id": 260, "content": "\ud800"}], "surrogates not allowed"),
    ("model.vocab", [], "expected model"), ("model.vocab.a", "b", "ids must be integers, got 'b'"),
    ("model.vocab.a", 0, "each once"), ("model.vocab.a", 10**30, "each once"), ("model.vocab.a", 1.0, "ids must be integers"),
    ("model.vocab. ", 260, "' ', which stands"),
    ("model.merges", {}, "expected model"), ("model.merges", [["l"]], "a merge must be two tokens"),
    ("model.merges", [3], "a merge must be two tokens, got 3"),
    ("model.merges", [["q", "x"]], "missing from the vocabulary"), ("model.merges", [[1, 2]], "a token must be a string"),
    ("model.merges", ["a b c"], "a merge must be two tokens, got 'a b c'")])
def test_a_tokenizer_unlike_gpt2s_is_an_error_that_names_the_difference(files, path, value, says):
    content, read = files
    change(content, path, value)
    with pytest.raises(HuggingFaceError, match=rf"tokenizer.json: .*{says}"):
        read()


def test_the_older_files_and_their_mistakes(tmp_path):
    ours = tp.text.BPETokenizer.train("low lower lowest", 260)
    write_tokenizer(tmp_path, ours)
    (tmp_path / "tokenizer.json").unlink()
    merges = tmp_path / "merges.txt"
    merges.write_bytes(merges.read_bytes().removeprefix(b"#version: 0.2\n").replace(b"\n", b"\r\n"))
    assert read_tokenizer(tmp_path) == ours                              # with another system's line ends, without a version
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "low"}}')
    with pytest.raises(HuggingFaceError, match="missing from the vocabulary, the first is b'low'"):
        read_tokenizer(tmp_path)                                         # a token is either made by merges or special
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(HuggingFaceError, match="got None; is '</s>' in it"):
        read_tokenizer(tmp_path)
    for content, says in ((b"\xff", "not UTF-8"), (b"a b c", "a merge must be two tokens"),
                          (b"q x", "missing from the vocabulary")):
        merges.write_bytes(content)
        (tmp_path / "tokenizer_config.json").write_text("{}")
        with pytest.raises(HuggingFaceError, match=says): read_tokenizer(tmp_path)
    merges.unlink()
    with pytest.raises(HuggingFaceError, match="merges.txt: no such file"):
        read_tokenizer(tmp_path)


def test_mutated_files_give_the_named_error_or_a_tokenizer_that_works(tmp_path):
    st = pytest.importorskip("hypothesis.strategies")
    write_tokenizer(tmp_path, tp.text.BPETokenizer.train("low lower lowest", 262))
    path = tmp_path / "tokenizer.json"
    whole = path.read_bytes()
    tokens = [b"", b"0", b"-", b"[", b"]", b"{", b"}", b",", b":", b'"', b"null", b"true", b"3", b'"a"', b"\\", b"\xff", b"1e9"]
    change = st.tuples(st.one_of(st.integers(0, 1400), st.integers(0, len(whole))), st.integers(0, 8), st.sampled_from(tokens))

    def read(changes):
        path.write_bytes(spliced(whole, changes))
        return read_tokenizer(tmp_path)

    def works(t):
        kept = bytes(b for b in MIXED.encode() if bytes([b]) in t.vocab)         # a byte without a token is lost
        assert t.added or t.decode_bytes(t.encode(MIXED)) == kept
        assert t.decode([t.end_of_text]) in t.special
    read_or_refused(read, works, HuggingFaceError, str(tmp_path), 300, st.lists(change, min_size=1, max_size=2))


TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }} ✓{% endfor %}"


def test_a_chat_template_goes_with_the_tokenizer(tmp_path):
    """From a folder of transformers, to one, and through our own file; transformers applies what was written."""
    transformers = pytest.importorskip("transformers")
    ours = tp.load_pretrained().tokenizer
    write_tokenizer(tmp_path / "none", ours)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "none")
    theirs.chat_template = TEMPLATE
    theirs.save_pretrained(tmp_path / "theirs")
    read = read_tokenizer(tmp_path / "theirs")
    assert read.chat_template == TEMPLATE and read != ours and read_tokenizer(tmp_path / "none").chat_template is None
    write_tokenizer(tmp_path / "again", read)
    assert read_tokenizer(tmp_path / "again") == read
    messages = [{"role": "user", "content": "Hello"}]
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.apply_chat_template(messages, tokenize=False) == "<|user|>\nHello ✓"
    read.save(tmp_path / "own.json")
    assert tp.text.BPETokenizer.load(tmp_path / "own.json") == read
    write_tokenizer(tmp_path / "again", ours)                            # the older template must not stay
    assert read_tokenizer(tmp_path / "again").chat_template is None


@pytest.mark.parametrize("value, template", [
    ("a", "a"), ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"), ([], None),
    (["x", 3], None), ([{"name": "other", "template": "o"}], None), (7, None), ({"default": "x"}, None),
    ([{"name": [], "template": "x"}], None)])
def test_older_folders_hold_templates_in_the_configuration(value, template, tmp_path):
    write_tokenizer(tmp_path, tp.load_pretrained().tokenizer)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"chat_template": value}), "utf-8")
    assert read_tokenizer(tmp_path).chat_template == template
