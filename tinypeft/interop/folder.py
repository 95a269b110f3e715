"""A Hugging Face folder as a stranger may have written it: its JSON, and its tensors in one safetensors file or in several."""
from dataclasses import dataclass
from pathlib import Path

from ..files import parse_json
from .safetensors import read_safetensors

__all__ = ["HuggingFaceError", "Report", "read_object", "read_tensors", "read_text"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Report:
    """Names of tensors: matched, missing from the folder, and in the folder but not used."""
    matched: tuple
    missing: tuple
    unused: tuple

    def __str__(self):
        some = lambda names: f"{len(names)}" + (f" ({', '.join(names[:6])}{', …' if len(names) > 6 else ''})" if names else "")
        return f"matched {len(self.matched)} tensors, missing {some(self.missing)}, not used {some(self.unused)}"


class HuggingFaceError(ValueError):
    """A folder does not hold what it should; the message names the file, and what was expected. `report`: a `Report` when
    it is about names of tensors."""

    def __init__(self, message, report=None):
        super().__init__(message)
        self.report = report


def read_text(path):
    """A file of UTF-8 text. `HuggingFaceError` unless it is one."""
    if not path.is_file():
        raise HuggingFaceError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise HuggingFaceError(f"{path}: not UTF-8 text: {e}") from e


def read_object(path):
    """A file with one JSON object → dict."""
    try:
        content = parse_json(read_text(path))
    except ValueError as e:
        raise e if isinstance(e, HuggingFaceError) else HuggingFaceError(f"{path}: not JSON: {e}") from e
    if not isinstance(content, dict):
        raise HuggingFaceError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_tensors(folder):
    """All tensors of a model's folder, by name → the `SafeTensors` each one is in. Nothing but headers is read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}; nothing is downloaded here, give a folder with "
                                f"config.json and {SINGLE}")
    if (folder / SINGLE).exists():
        return dict.fromkeys(file := read_safetensors(folder / SINGLE), file)
    if not (folder / INDEX).exists():
        hint = ("; it has PyTorch's pickle, which can run code and is not read: save it again with transformers' "
                "save_pretrained(folder)" if any(folder.glob("*.bin")) else "")
        raise HuggingFaceError(f"{folder}: neither {SINGLE} nor {INDEX}{hint}")
    shards = read_object(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise HuggingFaceError(f"{folder / INDEX}: weight_map must map tensors to files")
    for shard in set(shards.values()):
        if "/" in shard or "\\" in shard or not shard.endswith(".safetensors") or "\0" in shard:
            raise HuggingFaceError(f"{folder / INDEX}: a shard is a .safetensors file beside its index, got {shard!r}")
        if not (folder / shard).is_file():
            raise HuggingFaceError(f"{folder / shard}: no such file, but {INDEX} names it; the download is incomplete")
    files = {shard: read_safetensors(folder / shard) for shard in sorted(set(shards.values()))}
    held = {(name, shard) for shard, file in files.items() for name in file}
    if wrong := sorted(held ^ set(shards.items())):
        raise HuggingFaceError(f"{folder / INDEX} and its shards differ in {len(wrong)} tensors, the first is {wrong[0]}")
    return {name: files[shard] for name, shard in shards.items()}
