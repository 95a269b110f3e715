"""A Hugging Face folder: its JSON, and its tensors in one or several files. Nothing is trusted."""
from dataclasses import dataclass
from pathlib import Path

from .. import files
from ..common.wording import brief, shortened
from ..files import naming, parse_json
from ..files.safetensors import SafeTensors, read_safetensors

__all__ = ["HuggingFaceError", "Report", "check_fields", "read_object", "read_tensors", "read_text"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_NAME = 255                                       # bytes that a file's name can have


@dataclass(frozen=True)
class Report:
    """Names of tensors: matched, missing from the folder, and in the folder but not used."""
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self):
        missing, unused = (f"{len(names)} ({shortened(', '.join(names), 240)})"
                           if names else "0" for names in (self.missing, self.unused))
        return f"matched {len(self.matched)} tensors, missing {missing}, not used {unused}"


class HuggingFaceError(ValueError):
    """A file or folder is not as expected. `report`: a `Report` if tensors' names are at fault."""

    def __init__(self, message: str, report: Report | None = None):
        super().__init__(message)
        self.report = report


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises HuggingFaceError if there is none."""
    try:
        return files.read_text(path)
    except FileNotFoundError as e: raise HuggingFaceError(f"{path}: no such file") from e
    except ValueError as e:        raise HuggingFaceError(str(e)) from e


def read_object(path: Path) -> dict:
    """Return the JSON object in a file. Raises HuggingFaceError for anything else."""
    text = read_text(path)
    with naming(f"{path}: not JSON", HuggingFaceError): content = parse_json(text)
    if not isinstance(content, dict):
        raise HuggingFaceError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def check_fields(fields: dict, allowed: dict[str, tuple]) -> None:
    """ValueError for a value that is not `allowed`. A field that is absent has the first value."""
    for name, values in allowed.items():
        if (got := fields.get(name, values[0])) not in values:
            expected = " or ".join(map(repr, values))
            raise ValueError(f"{name} is {brief(got)}, expected {expected}")


def read_tensors(folder: str | Path) -> dict[str, SafeTensors]:
    """Tensor's name → the file that holds it, for a model's folder; reads only the headers."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}; nothing is downloaded, give "
                                f"a folder with config.json and {SINGLE}")
    if (folder / SINGLE).exists():
        return dict.fromkeys(file := read_safetensors(folder / SINGLE), file)
    if not (index := folder / INDEX).exists():
        hint = ("; .bin files are pickles, which can run code and are not read: save it again with "
                "transformers' save_pretrained(folder)" if any(folder.glob("*.bin")) else "")
        raise HuggingFaceError(f"{folder}: neither {SINGLE} nor {INDEX}{hint}")
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise HuggingFaceError(f"{index}: weight_map must map tensors to files")
    for name in set(shards.values()):
        if (any(c in name for c in "/\\\0") or not name.endswith(".safetensors")
                or len(name.encode("utf-8", "replace")) > LONGEST_NAME):
            raise HuggingFaceError(f"{index}: {brief(name)} is no .safetensors file in the same "
                                   "folder")
        if not (folder / name).is_file():
            raise HuggingFaceError(f"{folder / name} is missing; the download is incomplete")
    files = {name: read_safetensors(folder / name) for name in sorted(set(shards.values()))}
    held = {(tensor, name) for name, file in files.items() for tensor in file}
    if wrong := sorted(held ^ set(shards.items())):
        raise HuggingFaceError(
            f"{index}: {len(wrong)} tensors differ from the shards', the first is "
            f"{brief(wrong[0])}")
    return {tensor: files[name] for tensor, name in shards.items()}
