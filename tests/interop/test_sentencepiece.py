"""interop/sentencepiece.py: the tokenizer.json of Llama 2 and Gemma gives tokenizers' ids and is written again."""
import json

import numpy as np
import pytest

import tinypeft as tp
from tests.damaged import read_or_refused, spliced
from tests.models.test_llama import llama
from tests.oracles.hf_tokenizers import BYTES, MIXED, PREFIXES, documents, end_of, ids, made, nasty_strings
from tinypeft.commands.cli import main
from tinypeft.interop import HuggingFaceError, read_tokenizer, write_tokenizer

tokenizers = pytest.importorskip("tokenizers")


def written(folder, content, prefix="prepend", **config):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end_of(prefix), **config}))
    return folder


@pytest.mark.parametrize("prefix", PREFIXES)
def test_ids_are_the_librarys(prefix, tmp_path):
    theirs = made(prefix)
    ours = read_tokenizer(written(tmp_path / "theirs", theirs.to_str(), prefix))
    assert ours.prefix == prefix and ours.start == theirs.token_to_id("<bos>" if prefix == "never" else "<s>")
    write_tokenizer(tmp_path / "ours", ours)
    assert read_tokenizer(tmp_path / "ours") == ours
    rewritten = tokenizers.Tokenizer.from_file(str(tmp_path / "ours" / "tokenizer.json"))
    hard = [MIXED, "\n\n".join(documents()), "", " a", "a </s> b</s></s> c", " </s>", "▁a", "a▁ b", "<0x0A>",
            "a\n\n\nb  c   d<eos>"]
    for n, text in enumerate([*hard, *nasty_strings(700)]):
        for special in True, False:
            got = ours.encode(text, special).tolist()
            assert got == ids(theirs, text, special), repr(text)
            if n % 10 == 0: assert got == ids(rewritten, text, special)
        assert ours.decode(got) == theirs.decode(got, skip_special_tokens=False)
        assert ours.encode_prompt(text).tolist() == ids(theirs, text, False, front=True)
        if n % 10 == 0: assert ours.encode_prompt(text).tolist() == ids(rewritten, text, False, front=True)


def test_transformers_reads_what_is_written(tmp_path):
    auto = pytest.importorskip("transformers").AutoTokenizer
    for prefix in "prepend", "never":
        ours = read_tokenizer(written(tmp_path / "theirs", made(prefix).to_str(), prefix))
        write_tokenizer(tmp_path / prefix, ours)
        theirs = auto.from_pretrained(tmp_path / prefix)
        assert theirs.eos_token_id == ours.end_of_text and theirs.bos_token_id == ours.start
        for text in [MIXED, *list(nasty_strings(200))]:
            assert theirs(text)["input_ids"] == ours.encode_prompt(text, allow_special=True).tolist()


def test_gemmas_class_in_transformers_and_the_file_agree(tmp_path):
    """transformers builds a GemmaTokenizer of the vocabulary and merges alone; its ids are ours."""
    auto = pytest.importorskip("transformers").AutoTokenizer
    folder = written(tmp_path, made("never").to_str(), "never", tokenizer_class="GemmaTokenizer", bos_token="<bos>")
    ours, theirs = read_tokenizer(folder), auto.from_pretrained(folder)
    for text in ["a", " b c", *list(nasty_strings(200))]:
        assert theirs(text)["input_ids"] == ours.encode_prompt(text, allow_special=True).tolist(), repr(text)


def test_the_llama_class_of_transformers_5_differs_in_front_of_spaces_alone(tmp_path):
    """It builds a tokenizer anew, with a space in front as "first"; the file of Llama 2 and TinyLlama says "prepend", as
    SentencePiece does. So texts differ that begin with a space, and texts after a special token."""
    auto = pytest.importorskip("transformers").AutoTokenizer
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "unk_token": "<unk>", "legacy": False}
    folder = written(tmp_path, made("prepend").to_str(), **config)
    ours, theirs = read_tokenizer(folder), auto.from_pretrained(folder)
    same = lambda text: ours.encode_prompt(text, allow_special=True).tolist() == theirs(text)["input_ids"]
    assert all(same(text) for text in nasty_strings(300) if not text.startswith(" ") and "</s>" not in text)
    assert not same(" a") and not same("a</s>b")
    assert auto.from_pretrained(folder).backend_tokenizer.pre_tokenizer.prepend_scheme == "first"


def test_other_forms_of_the_same(tmp_path):
    content = json.loads(made("never").to_str())
    ours = read_tokenizer(written(tmp_path, content, "never"))
    content["pre_tokenizer"], content["model"]["merges"] = None, [" ".join(pair) for pair in content["model"]["merges"]]
    assert read_tokenizer(written(tmp_path, content, "never")) == ours
    content["normalizer"] = {"type": "Sequence", "normalizers": [content["normalizer"]]}
    for token in content["added_tokens"]: token["normalized"] = token["special"]
    assert read_tokenizer(written(tmp_path, content, "never")) == ours
    (tmp_path / "tokenizer_config.json").unlink()                       # the end of text is found without it
    assert read_tokenizer(tmp_path).end_of_text == ours.end_of_text


def test_no_text_makes_a_special_token(tmp_path):
    content = json.loads(made("prepend").to_str())
    content["model"]["vocab"] |= {"<s": 5000, "<": 5001, "s": content["model"]["vocab"]["s"], ">": 5002}
    content["model"]["merges"] = [["<", "s"], ["<s", ">"], *content["model"]["merges"]]
    ours = read_tokenizer(written(tmp_path, content))
    assert ours.start not in ours.encode("<s>") and 5000 in ours.encode("<s>")
    assert ours.start in ours.encode("<s>", allow_special=True)


@pytest.mark.parametrize("prefix, path, value, says", [
    ("prepend", "normalizer", None, "with byte_fallback, this is not supported: normalizer None"),
    ("prepend", "normalizer.normalizers.0.prepend", "_", "this is not supported"),
    ("never", "normalizer.content", "_", "this is not supported"),
    ("never", "normalizer.pattern", {"Regex": " +"}, "this is not supported"),
    ("first", "pre_tokenizer.split", True, "this is not supported"),
    ("first", "pre_tokenizer.replacement", "_", "this is not supported"),
    ("first", "pre_tokenizer.prepend_scheme", "last", "this is not supported"),
    ("never", "pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer {'type': 'Whitespace'}"),
    ("prepend", "decoder", None, "decoder is None"), ("prepend", "decoder.decoders.3.start", 2, "decoder is"),
    ("prepend", "model.dropout", 0.1, "dropout is 0.1"),
    ("prepend", "model.ignore_merges", True, "ignore_merges is True"),
    ("prepend", "model.continuing_subword_prefix", "##", "continuing_subword_prefix"),
    ("prepend", "model.type", "Unigram", "type is 'Unigram'"),
    ("prepend", "model.vocab.<0xFF>", "x", "ids must be integers, got 'x'"),
    ("prepend", "model.merges", [["q", 1]], "a token must be a string, got 1"),
    ("prepend", "model.merges", [["qq", "zz"]], "missing from the vocabulary"),
    ("prepend", "added_tokens.2.id", 9, "each once"),
    ("never", "added_tokens.8.normalized", True, "is looked for in normalized text"),
    ("prepend", "post_processor.single", [{"Sequence": {"id": "B"}}], "puts special tokens around")])
def test_what_would_change_ids_is_refused_by_name(prefix, path, value, says, tmp_path):
    content = json.loads(made(prefix).to_str())
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = content
    for part in above: place = place[part]
    place[last] = value
    with pytest.raises(HuggingFaceError, match=f"tokenizer.json: .*{says}"):
        read_tokenizer(written(tmp_path, content, prefix))


def test_a_byte_without_a_token_is_refused(tmp_path):
    content = json.loads(made("prepend").to_str())
    del content["model"]["vocab"]["<0xC3>"]
    with pytest.raises(HuggingFaceError, match="1 bytes have no token, the first is <0xC3>"):
        read_tokenizer(written(tmp_path, content))


@pytest.mark.parametrize("prefix", ["prepend", "never"])
def test_the_command_line_begins_with_the_start(prefix, tmp_path, capsys):
    """A folder of the Llama family: generation goes on from <s>, the text, and keeps the space in front of a word."""
    tokenizer = read_tokenizer(written(tmp_path / "theirs", made(prefix).to_str(), prefix))
    model = llama(dtype=np.float32, vocab_size=tokenizer.vocab_size)
    model.tokenizer = tokenizer
    tp.save_model(model, tmp_path / "model")
    tokens = tokenizer.encode_prompt("the array")
    assert tokens[0] == tokenizer.start and tp.load_model(tmp_path / "model").tokenizer == tokenizer
    out = tp.load_model(tmp_path / "model").generate(tokens[None], 8, stop=tokenizer.end_of_text)[0]
    end = out[len(tokens):] != tokenizer.end_of_text
    assert main(["generate", "the array", "--model", str(tmp_path / "model"), "--max-new-tokens", "8",
                 "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "the array" + tokenizer.decode(out[len(tokens):][end], continued=True) + "\n"


def test_mutated_files_give_the_named_error_or_a_tokenizer_that_works(tmp_path):
    st = pytest.importorskip("hypothesis.strategies")
    content = json.loads(made("prepend").to_str())
    content["model"]["merges"] = content["model"]["merges"][:2]
    keep = {t for pair in content["model"]["merges"] for t in (*pair, "".join(pair))} | {*BYTES}
    content["model"]["vocab"] = {t: i for t, i in content["model"]["vocab"].items() if i < 3 or t in keep}
    whole = json.dumps(content).encode()
    written(tmp_path, whole.decode())
    tokens = [b"", b"0", b"[", b"]", b"{", b"}", b",", b":", b'"', b"null", b"true", b"3", b'"a"', b"\xff"]
    place = st.one_of(st.integers(0, 1900), st.integers(0, len(whole)))
    change = st.tuples(place, st.integers(0, 8), st.sampled_from(tokens))

    def read(changes):
        (tmp_path / "tokenizer.json").write_bytes(spliced(whole, changes))
        return read_tokenizer(tmp_path)

    def works(t): t.decode(t.encode(MIXED))
    read_or_refused(read, works, HuggingFaceError, str(tmp_path), 200, st.lists(change, min_size=1, max_size=2))
