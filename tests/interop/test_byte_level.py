"""interop/byte_level.py: the tokenizer.json of SmolLM2, Qwen and Llama 3 gives tokenizers' ids and is written again."""
import json

import pytest

from tests.oracles.hf_tokenizers import BYTE_LEVEL, MIXED, NAMED, documents, ids, made, nasty_strings
from tinypeft.interop import HuggingFaceError, read_tokenizer, write_tokenizer
from tinypeft.interop.byte_level import as_bytes, as_characters

tokenizers = pytest.importorskip("tokenizers")
CONFIG = {"eos_token": "<|im_end|>"}


def written(folder, content, config=CONFIG):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("split", BYTE_LEVEL)
def test_ids_are_the_librarys(split, tmp_path):
    theirs = made(split)
    ours = read_tokenizer(written(tmp_path / "theirs", theirs.to_str()))
    assert ours.split == split and ours.added.keys() == {"<think>", "</think>"}
    assert ours.end_of_turn == ours.special["<|im_end|>"] and ours.end_of_text == ours.special["<|endoftext|>"]
    write_tokenizer(tmp_path / "ours", ours)
    assert read_tokenizer(tmp_path / "ours") == ours
    rewritten = tokenizers.Tokenizer.from_file(str(tmp_path / "ours" / "tokenizer.json"))
    lost = 0
    for n, text in enumerate([MIXED, "\n".join(documents()), "a<think>b<|im_end|>\n", *nasty_strings(700)]):
        for special in True, False:
            got = ours.encode(text, special).tolist()
            assert got == ids(theirs, text, special), repr(text)
            if n % 10 == 0: assert got == ids(rewritten, text, special)
        lost += ours.decode(got) != text
        assert ours.decode(got) == theirs.decode(got, skip_special_tokens=False)
    assert (lost > 0) == (split in ("smollm", "qwen2"))              # bytes without a token; other forms than NFC


def test_bytes_that_the_vocabulary_lacks_give_no_token(tmp_path):
    ours = read_tokenizer(written(tmp_path, made("smollm").to_str()))
    lacking = [b for b in range(256) if bytes([b]) not in ours.vocab]
    assert len(lacking) == 21 and ours.encode(bytes(lacking)).size == 0
    assert ours.decode_bytes(ours.encode(bytes([65, *lacking, 66]))) == b"AB"
    unused = set(range(ours.vocab_size)) - {*ours.vocab.values(), *ours.special.values(), *ours.added.values()}
    assert len(unused) >= 21 and ours.decode(sorted(unused)) == ""      # ids may leave gaps


@pytest.mark.parametrize("byte", [0x0A, 0x20, 0x61, 0x7E, 0x80, 0xBF, 0xC2, 0xF0])
def test_a_vocabulary_that_lacks_a_byte_of_text_is_refused(byte, tmp_path):
    content = json.loads(made("gpt2").to_str())
    character = as_characters(bytes([byte]))
    content["model"]["vocab"] = {t: i for t, i in content["model"]["vocab"].items() if t in NAMED or character not in t}
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if character not in "".join(pair)]
    with pytest.raises(HuggingFaceError, match=f"1 bytes that text needs are no tokens, the first is {byte:#04x}"):
        read_tokenizer(written(tmp_path, content))


def test_both_writings_of_merges(tmp_path):
    content = json.loads(made("qwen2").to_str())
    ours = read_tokenizer(written(tmp_path, content))
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    assert read_tokenizer(written(tmp_path, content)) == ours


@pytest.mark.parametrize("split, change, says", [
    ("qwen2", {"normalizer": None}, "the normalizer is None, expected 'NFC'"),
    ("smollm", {"normalizer": {"type": "NFC"}}, "the normalizer is 'NFC', expected None"),
    ("smollm", {"normalizer": {"type": "NFKC"}}, "normalizer is 'NFKC'"),
    ("llama3", {"model.ignore_merges": False}, "ignore_merges is False, expected True"),
    ("qwen2", {"model.ignore_merges": True}, "ignore_merges is True, expected False"),
    ("smollm", {"model.unk_token": "<|endoftext|>"}, "unk_token is used for the bytes"),
    ("smollm", {"pre_tokenizer.pretokenizers.0.individual_digits": False}, "must split by"),
    ("smollm", {"pre_tokenizer.pretokenizers.1.use_regex": False}, "must split by"),
    ("smollm", {"pre_tokenizer.pretokenizers.1.type": "Metaspace"}, "expected it to end in ByteLevel"),
    ("smollm", {"pre_tokenizer.pretokenizers": []}, "expected it to end in ByteLevel"),
    ("smollm", {"pre_tokenizer.pretokenizers": 3}, "not a byte-pair encoding"),
    ("qwen2", {"pre_tokenizer.pretokenizers.0.pattern": {"Regex": r"\s+"}}, "must split by"),
    ("qwen2", {"pre_tokenizer.pretokenizers.0.behavior": "Removed"}, "must split by"),
    ("qwen2", {"pre_tokenizer.pretokenizers.0.invert": True}, "must split by"),
    ("qwen2", {"pre_tokenizer.pretokenizers.1.add_prefix_space": True}, "put no space in front"),
    ("qwen2", {"added_tokens.3.normalized": True}, "'<think>' is looked for in normalized text"),
    ("qwen2", {"post_processor": {"type": "Sequence", "processors": [{"type": "BertProcessing"}]}},
     "post_processor is 'BertProcessing'"),
])
def test_what_would_change_ids_is_refused_by_name(split, change, says, tmp_path):
    content = json.loads(made(split).to_str())
    for path, value in change.items():
        *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place = content
        for part in above: place = place[part]
        place[last] = value
    with pytest.raises(HuggingFaceError, match=f"tokenizer.json: .*{says}"): read_tokenizer(written(tmp_path, content))


def test_a_token_in_front(tmp_path):
    """Llama 3's post-processor puts one there; transformers, the judge, does not heed add_bos_token beside that."""
    auto = pytest.importorskip("transformers").AutoTokenizer
    content = json.loads(made("llama3").to_str())
    level, start = content["post_processor"], content["model"]["vocab"]["<|im_start|>"]
    A, B = ({"Sequence": {"id": side, "type_id": i}} for i, side in enumerate("AB"))
    template = {"type": "TemplateProcessing", "pair": [A, B],
                "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, A],
                "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [start], "tokens": ["<|im_start|>"]}}}
    both, bos = {"type": "Sequence", "processors": [level, template]}, {"bos_token": "<|im_start|>"}
    for part, config, expected in [(level, {}, None), (template, {}, start), (both, {}, start), (None, {}, None),
                                   (level, bos | {"add_bos_token": True}, None),
                                   (both, bos | {"add_bos_token": False}, start)]:
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **CONFIG, **config}
        folder = written(tmp_path, content | {"post_processor": part}, config)
        ours, theirs = read_tokenizer(folder), auto.from_pretrained(folder)
        assert ours.start == expected, (part, config)
        assert ours.encode_prompt("Hi 123", True).tolist() == theirs("Hi 123")["input_ids"], (part, config)
        write_tokenizer(tmp_path / "again", ours)
        assert read_tokenizer(tmp_path / "again") == ours
        assert auto.from_pretrained(tmp_path / "again")("Hi 123")["input_ids"] == theirs("Hi 123")["input_ids"]
    for pieces, says in [([*template["single"], template["single"][0]], "puts special tokens around"),
                         ([{"SpecialToken": {"id": "<x>"}}, A], "'<x>' stands in front of every text")]:
        with pytest.raises(HuggingFaceError, match=says):
            read_tokenizer(written(tmp_path, content | {"post_processor": template | {"single": pieces}}))


def test_named_tokens_that_the_model_has_no_rows_for(tmp_path):
    folder = written(tmp_path, made("qwen2").to_str())
    last = max(read_tokenizer(folder).added.values())
    ours = read_tokenizer(folder, rows=last)
    assert ours.added.keys() == {"<think>"} and ours.vocab_size == last
    assert ours.decode(ours.encode("</think>", allow_special=True)) == "</think>"


def test_bytes_as_characters():
    every = bytes(range(256))
    assert as_bytes(as_characters(every)) == every
    with pytest.raises(ValueError, match="'日', which stands for no byte"): as_bytes("a日")
