"""The tokenizer files of a Hugging Face folder, both ways: `tokenizer.json` of GPT-2, SmolLM2,
TinyLlama, Llama 2 and 3, Qwen 2 and 3, and Gemma; GPT-2's `vocab.json` with `merges.txt`.

`byte_level.py` and `sentencepiece.py` read and write the parts in which the two kinds differ. What
they share is here: the tokens that are found by name, and the one that is put in front of a text.
"""
import json
from pathlib import Path

from ..common.wording import brief, shortened
from ..files import write_atomically
from ..text.sentencepiece import SentencePieceTokenizer
from ..text.tokenizer import END_OF_TEXT, BPETokenizer, Tokenizer
from . import byte_level, sentencepiece
from .folder import HuggingFaceError, read_object, read_text

__all__ = ["read_tokenizer", "write_tokenizer"]

FLAGS = "single_word", "lstrip", "rstrip"        # added tokens that depend on the text around them
ENDS = END_OF_TEXT, "</s>", "<eos>"               # the end of text where no file names it
TEMPLATE = "chat_template.jinja"
POST_PROCESSORS = "ByteLevel", "TemplateProcessing", "Sequence"


def read_tokenizer(folder: str | Path, rows: int | None = None) -> Tokenizer | None:
    """Return the tokenizer in a Hugging Face folder, or None if there is none.

    `tokenizer.json` is preferred to `vocab.json`. The end of text is the `eos_token` of
    `tokenizer_config.json` or `special_tokens_map.json`, otherwise `<|endoftext|>`, `</s>` or
    `<eos>`. An `eos_token` beside a special `<|endoftext|>` is the end of a turn. An added token is
    `special` if the file says so, and `added` if not. `start` is the token that the post-processor
    of `tokenizer.json` puts in front; as in transformers, `add_bos_token` changes nothing there.
    `chat_template` is the text of `chat_template.jinja`, or that field of `tokenizer_config.json`.
    rows: the ids that the model has; named tokens beyond them are left out (Gemma 3's
    `<image_soft_token>` in its models of text).

    `encode(text, allow_special=True)` gives the ids of tokenizers for the file as it is, and
    `encode_prompt` adds `start`. One difference: a special token is found wherever its name stands,
    also if the file says `normalized`. transformers 5 builds LlamaTokenizer anew with a space in
    front only at the beginning of a text ("first"), whatever the file says. Raises HuggingFaceError
    for damaged files, and for any part that would give other ids."""
    folder = Path(folder)
    path = folder / ("tokenizer.json" if (folder / "tokenizer.json").exists() else "vocab.json")
    if not path.exists(): return None
    content, eos = read_object(path), _end_of_text(folder)
    if path.name == "vocab.json": content = _older_files(folder, content)
    try:
        match content:
            case {"model": {"vocab": dict(vocab), "merges": list(merges)} as model}: pass
            case _: raise ValueError("expected model: {vocab: {…}, merges: […]}")
        special, added = _named_tokens(content)
        eos = eos or next((name for name in ENDS if name in vocab | special), END_OF_TEXT)
        special = {eos: vocab.get(eos)} | special
        ids = [*vocab.values(), *special.values(), *added.values()]
        if wrong := [i for i in ids if type(i) is not int]:
            raise ValueError(f"ids must be integers, got {brief(wrong[0])}; is {brief(eos)} in it?")
        if rows is not None:
            beyond = {name for name, i in (special | added).items() if i >= rows and name != eos}
            vocab, special, added = ({name: i for name, i in names.items() if name not in beyond}
                                     for names in (vocab, special, added))
        ends = _ends(eos, special) | {"start": _start(content, special)}
        content["model"] = model | {"vocab": vocab, "merges": [_pair(merge) for merge in merges]}
        kind = sentencepiece if model.get("byte_fallback") is True else byte_level
        tokenizer = kind.parsed(content, special, added, **ends)
    except (ValueError, TypeError) as e:
        raise HuggingFaceError(f"{path}: not a byte-pair encoding that is supported: "
                               f"{shortened(str(e))}") from e
    tokenizer.chat_template = _chat_template(folder)
    return tokenizer


def _chat_template(folder):
    """Return the template of a chat that a folder holds, or None. Of several, it is the default."""
    if (folder / TEMPLATE).exists(): return read_text(folder / TEMPLATE)
    path = folder / "tokenizer_config.json"
    template = read_object(path).get("chat_template") if path.exists() else None
    named = template if isinstance(template, list) else []
    for entry in named:
        match entry:
            case {"name": "default", "template": template}: break
    return template if isinstance(template, str) else None


def _pair(merge):
    """Return a merge, "a b" or ["a", "b"], as a list of two strings."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError(f"a merge must be two tokens, got {brief(merge)}")
    for token in pair:
        if not isinstance(token, str):
            raise TypeError(f"a token must be a string, got {brief(token)}")
    return pair


def _named_tokens(content):
    """({special name: id}, {other added name: id})"""
    special, added = {}, {}
    for token in content.get("added_tokens") or []:
        match token:
            case {"content": str(name)} if not any(map(token.get, FLAGS)): pass
            case _:
                raise ValueError("an added token needs a content, and must not depend on the text "
                                 f"around it, got {brief(token)}")
        if token.get("special") is True: special[name] = token.get("id")
        elif token.get("normalized") and content.get("normalizer"):
            raise ValueError(f"the added token {brief(name)} is looked for in normalized text")
        else: added[name] = token.get("id")
    return special, added


def _ends(eos, special):
    """Return the arguments end_of_text and end_of_turn, for the name of the file's eos_token."""
    if eos == END_OF_TEXT or END_OF_TEXT not in special: return {"end_of_text": special[eos]}
    return {"end_of_text": special[END_OF_TEXT], "end_of_turn": special[eos]}


def _start(content, special):
    """Return the id that is put in front of every text, or None."""
    part, name = content.get("post_processor"), None
    in_sequence = isinstance(part, dict) and part.get("type") == "Sequence"
    steps = part.get("processors") if in_sequence else [part]
    for step in steps if isinstance(steps, list) else [steps]:
        kind = step.get("type") if isinstance(step, dict) else step
        if kind is not None and kind not in POST_PROCESSORS[:2]:
            raise ValueError(f"post_processor is {brief(kind)}, expected one of "
                             f"{', '.join(POST_PROCESSORS)}")
        if kind != "TemplateProcessing": continue
        match step.get("single"):
            case [{"Sequence": {"id": "A"}}]: pass
            case [{"SpecialToken": {"id": str(name)}}, {"Sequence": {"id": "A"}}]: pass
            case single:
                raise ValueError("the post_processor puts special tokens around a text; one in "
                                 f"front is supported, got {brief(single)}")
    if name is None: return None
    if name not in special:
        raise ValueError(f"{brief(name)} stands in front of every text, but is no special token")
    return special[name]


def _end_of_text(folder):
    """Return the eos_token that the two small files name, or None."""
    for path in folder / "tokenizer_config.json", folder / "special_tokens_map.json":
        token = read_object(path).get("eos_token") if path.exists() else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str): return token
    return None


def _older_files(folder, vocab):
    """vocab.json and its companions as a tokenizer.json."""
    merges = [s.split(" ") for s in read_text(folder / "merges.txt").split("\n") if s.strip()]
    if merges and merges[0][0].startswith("#version"): del merges[0]
    path = folder / "added_tokens.json"                  # it does not say which ones are special
    named = read_object(path) if path.exists() else {}
    return {"model": {"vocab": vocab, "merges": merges}, "pre_tokenizer": byte_level.LEVEL,
            "added_tokens": [{"content": name, "id": i, "special": True}
                             for name, i in named.items()]}


def write_tokenizer(folder: str | Path, tokenizer: Tokenizer) -> None:
    """Write the tokenizer's files; transformers, tokenizers and llama.cpp read them. GPT-2's older
    files are written too where they say the same. A chat template goes into `chat_template.jinja`,
    and a tokenizer without one removes that file."""
    folder = Path(folder)
    by_id = lambda ids: dict(sorted(ids.items(), key=lambda pair: pair[1]))
    name = {i: name for name, i in tokenizer.special.items()}
    end, start = name[tokenizer.end_of_text], tokenizer.start
    special, added = tokenizer.special, tokenizer.added
    match tokenizer:
        case BPETokenizer():           parts = byte_level.described(tokenizer)
        case SentencePieceTokenizer(): parts = sentencepiece.described(tokenizer)
        case _: raise TypeError(f"write_tokenizer: got {type(tokenizer).__name__}")
    vocab, merges = by_id(parts["model"]["vocab"] | special | added), parts["model"]["merges"]
    if start is not None: parts["post_processor"] = _in_front(name[start], start)
    flags = dict.fromkeys([*FLAGS, "normalized"], False)
    content = {"version": "1.0", "truncation": None, "padding": None,
               "added_tokens": [{"id": i, "content": name, **flags,
                                 "special": name in special}
                                for name, i in by_id(special | added).items()],
               **parts, "model": {**parts["model"], "vocab": vocab, "merges": merges}}
    eos = end if tokenizer.end_of_turn is None else name[tokenizer.end_of_turn]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
    if start is not None: config["bos_token"] = name[start]
    if getattr(tokenizer, "split", None) == "gpt2" and start is None:
        config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "bos_token": end,
                  "eos_token": eos, "unk_token": end}
        lines = "".join(f"{a} {b}\n" for a, b in [("#version:", "0.2"), *merges])
        write_atomically(folder / "merges.txt", lines)
        write_atomically(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False) + "\n")
    for file, value in ("tokenizer", content), ("tokenizer_config", config):
        write_atomically(folder / f"{file}.json", json.dumps(value, ensure_ascii=False) + "\n")
    if tokenizer.chat_template is None: (folder / TEMPLATE).unlink(missing_ok=True)
    else:                               write_atomically(folder / TEMPLATE, tokenizer.chat_template)


def _in_front(name, i):
    """Return the post-processor: it puts a token in front of one text, or of each of two."""
    piece = lambda side, kind: [{"SpecialToken": {"id": name, "type_id": kind}},
                                {"Sequence": {"id": side, "type_id": kind}}]
    return {"type": "TemplateProcessing", "single": piece("A", 0),
            "pair": piece("A", 0) + piece("B", 1),
            "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]}}}
