"""The two files of a PEFT folder, read without trusting them: `Config` and `Tensors`.

Every field that is read must have the right type. An unknown field may change the function that the
adapter computes, so it is refused unless it is off (null, false, 0 or empty). PEFT 0.21 reads names
of layers as follows:

    target_modules     a list of paths or of their ends after a dot (in GPT-2 "c_proj" means attn's
                       and mlp's); or a str: a regular expression for whole paths, or "all-linear"
    exclude_modules    the same, for layers to leave out
    layers_to_transform, layers_pattern     numbers of blocks: restrict a list of targets to them
    rank_pattern, alpha_pattern             {regular expression for the end of a path: value}
    modules_to_save    ends of paths, after a dot or not; targets are left out of what it names

The first pattern in the file that matches counts. PEFT sorts patterns when it saves, so it may have
trained with another one. Python's `re` takes exponential time on some patterns. `matches` knows the
expressions that people write for paths, and takes polynomial time.
"""
import functools
import math
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array
from ..common.wording import brief, shortened
from ..files.safetensors import read_safetensors
from ..peft import MethodError
from .folder import Report, read_object
from .peft_names import Names

__all__ = ["PREFIX", "VIRTUAL", "Config", "Tensors", "matches", "prefix_of"]

# fields that every kind of adapter may have, and those that do not change what it computes
COMMON = {"peft_type", "task_type", "modules_to_save", "auto_mapping", "base_model_name_or_path",
          "revision", "inference_mode", "peft_version", "fan_in_fan_out", "megatron_config",
          "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
          "qalora_group_size", "ensure_weight_tying", "runtime_config"}
HEADS = {"score", "classifier"}          # what PEFT adds to modules_to_save for a classifier
PREFIX = "base_model.model."             # in front of a path, unless there are virtual tokens
VIRTUAL = {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}


def prefix_of(peft_type: str) -> str:
    """Return what stands in front of a module's path in the names of tensors."""
    return "base_model." if peft_type in VIRTUAL else PREFIX


class Config:
    """The fields of one adapter_config.json. HuggingFaceError if the file is no JSON object."""

    def __init__(self, path: Path):
        self.path, self.fields = path, read_object(path)

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """Return the field `name`, or the default if it is null or absent. ValueError for another
        type."""
        value, kinds = self.fields.get(name), kind if isinstance(kind, tuple) else (kind,)
        if value is None: return default
        if float in kinds: value = _as_float(value)
        if type(value) not in kinds:
            raise self.invalid(name, " or ".join(k.__name__ for k in kinds))
        return value

    def names(self, name: str, kind: Any = list, default: Collection[str] = ()) -> Any:
        """As `get`, for a list of names."""
        value = self.get(name, kind, default)
        if not all(isinstance(item, str) for item in value):
            raise self.invalid(name, "a list of names")
        return value

    def invalid(self, name: str, expected: str) -> ValueError:
        """Return the error for a field that makes no sense."""
        value = self.fields.get(name)
        return ValueError(f"{self.path}: {name} must be {expected}, got {brief(value)}")

    def unsupported(self, name: str, reason: str) -> MethodError:
        """Return the error for a field that cannot be expressed here."""
        return MethodError(f"load_adapter: {shortened(name, 80)}={brief(self.fields.get(name))} is "
                           f"not supported: {reason}")

    def task(self) -> str | None:
        """task_type: None, "CAUSAL_LM" or "SEQ_CLS". MethodError for any other."""
        task, saved = self.get("task_type", str), self.names("modules_to_save")
        if task not in (None, "CAUSAL_LM", "SEQ_CLS"):
            raise self.unsupported("task_type", "it must be CAUSAL_LM, or SEQ_CLS with a head")
        if task == "CAUSAL_LM" and "score" in saved:
            raise self.unsupported("modules_to_save", "a head, 'score', needs task_type SEQ_CLS")
        return "SEQ_CLS" if "score" in saved else task

    def saved_modules(self) -> list[str]:
        """Return the names in modules_to_save, without that of the head."""
        names = [name for name in self.names("modules_to_save") if name not in HEADS]
        if len(names) > 1000 or "" in names:
            raise self.invalid("modules_to_save", "at most 1000 names of modules")
        return names

    def refuse_unknown(self, known: set[str]) -> None:
        """MethodError for a field that is on, not `known`, and may change what is computed."""
        for name, value in self.fields.items():
            is_off = value in (None, False, 0, "", [], {})
            if not is_off and name not in known | COMMON:
                raise self.unsupported(name, "it may change what the adapter computes")

    def select(self, names: Names, paths: list[str], default: Sequence[str] = ()) -> list[str]:
        """Return the `paths` that are adapted. names: of the model's family. default: the targets
        of a file that names none, if they are not those of LoRA."""
        targets = self.names("target_modules", (list, str), list(default or names.family.adapted))
        saved = self.saved_modules()
        excluded = self.names("exclude_modules", (list, str))
        if targets == "all-linear": chosen = [p for p in paths if p.endswith((*names.layers,))]
        else:                       chosen = [p for p in paths if _is_named(p, targets)]
        chosen = [p for p in chosen if not _is_named(p, excluded) and not _is_within(p, saved)]
        if isinstance(targets, list): chosen = [p for p in chosen if self._in_layers(names, p)]
        if not chosen:
            raise self.unsupported("target_modules", f"it selects no layer of {names.blocks}.N; "
                                   f"there are {', '.join(names.layers)}")
        return chosen

    def _in_layers(self, names, path):
        numbers, blocks = self.get("layers_to_transform", (int, list), []), names.blocks
        name = blocks.rpartition(".")[2]
        pattern = self.get("layers_pattern", (str, list), name)
        if numbers == []: return True
        if not path.startswith(f"{blocks}.") or pattern not in ("", [], name, [name]): return False
        layer = int(path.removeprefix(f"{blocks}.").split(".")[0])
        return layer in (numbers if isinstance(numbers, list) else [numbers])

    def pattern_value(self, name: str, kind: type, path: str, default: float) -> Any:
        """Return the value of rank_pattern or alpha_pattern for one path."""
        pattern = self.get(name, dict, {})
        if len(pattern) > 1000 or sum(key.count(c) for key in pattern for c in "*+?([") > 50:
            raise self.invalid(name, "at most 1000 simple patterns")
        ends = [0, *(i + 1 for i, c in enumerate(path) if c == ".")]
        for key, value in pattern.items():
            if kind is float: value = _as_float(value)
            if type(value) is not kind:
                raise self.invalid(name, f"a mapping from patterns to {kind.__name__}")
            if matches(key, path, [0] if key.startswith("^") else ends): return value
        return default


class Tensors:
    """A folder's tensors. `take` records those found and missing; `report` adds those left over."""

    def __init__(self, path: Path, dtype: Any):
        self.path, self.dtype, self.file = path, dtype, read_safetensors(path)
        self.names, self.matched, self.missing = {}, [], []
        for name in self.file:
            short = re.sub(r"\.default(?=\.|$)", "", name)       # some folders name the adapter
            if short in self.names:
                raise ValueError(f"{path}: {brief(name)} and {brief(self.names[short])} are the "
                                 "same tensor")
            self.names[short] = name

    def take(self, name: str, shape: tuple[int | None, ...], reason: str = "",
             whole: bool = False) -> Array | None:
        """Return the tensor `name` in the model's dtype, or None (recorded as missing). ValueError
        unless it has this shape (None: any number) and finite floats. whole: take whole numbers,
        as int64; PEFT writes floats for them on Windows."""
        if name not in self.names:
            self.missing.append(name)
            return None
        array = self.file[self.names[name]]
        got, where = array.shape, f"{self.path}: {name}"
        fits = lambda: all(n in (None, m) for n, m in zip(shape, got, strict=True))
        if len(got) != len(shape) or not fits():
            hint = "it is transposed" if got == shape[::-1] else "has the base other sizes?"
            expected = str(shape).replace("None", "any") + (reason and f" for {reason}")
            raise ValueError(f"{where} has shape {got}, expected "
                             f"{shortened(expected, 120)}; {hint}")
        dtype, kinds = (np.int64, "fiu") if whole else (self.dtype, "f")
        if array.dtype.kind not in kinds:
            raise ValueError(f"{where} is {array.dtype}, expected floats")
        with np.errstate(over="ignore", invalid="ignore"): cast = array.astype(dtype)
        if whole and (cast != array).any():
            raise ValueError(f"{where} has numbers that are not whole")
        if not np.isfinite(cast).all():
            raise ValueError(f"{where} has numbers that are not finite in {np.dtype(dtype)}")
        self.matched.append(name)
        return cast

    def report(self) -> Report:
        """Return the names of the tensors taken so far, of those missing, and of all others."""
        unused = (name for short, name in self.names.items() if short not in self.matched)
        return Report(tuple(self.matched), tuple(self.missing), tuple(unused))


def _is_named(path, names):
    if isinstance(names, str): return matches(names, path)
    return any(path == name or path.endswith(f".{name}") for name in names)


def _is_within(path, names):
    """Is the module at `path` one of those named, or in one?"""
    return any(f".{name}." in f".{path}." for name in names)


def _as_float(value):
    """Return a finite number as a float; any other JSON value as something that is no float."""
    if type(value) is int and abs(value) < 1 << 53: return float(value)
    return value if type(value) is float and math.isfinite(value) else str(value)


TOKEN = re.compile(r"(\\[.dw-]|\[\^?(?:\w-\w|\w|\\d|\.)+\]|\.|[\w-]|\((?:\?:)?([^()]*)\))"
                   r"([*+?]?)\??")


def matches(pattern: str, text: str, starts: Iterable[int] = (0,)) -> bool:
    r"""Whether a regular expression matches `text` from one of the `starts` to the end, in time
    O(len(pattern) len(text)²). The pattern may have letters, `.`, `\.`, `\d`, `\w`, sets [0-9],
    `*`, `+`, `?`, and groups (a|b) that are not nested; all others are ValueErrors."""
    try:
        tokens = _parse(pattern.removeprefix("^").removesuffix("$"))
    except re.error as e:
        raise ValueError(f"the pattern {brief(pattern)}: {e}; write names of layers") from e
    return len(text) in _match_ends(tokens, text, set(starts))


@functools.lru_cache(4096)
def _parse(pattern):
    """[(one step, "" or "*" or "+" or "?")]; a step is one character's `re` or alternatives."""
    tokens, at = [], 0
    while at < len(pattern):
        token = TOKEN.match(pattern, at)
        if token is None or len(pattern) > 1000:
            raise re.error("too long, or not understood", pattern, at)
        character, group, repeat = token.groups()
        once = re.compile(character) if group is None else [_parse(p) for p in group.split("|")]
        tokens.append((once, repeat))
        at = token.end()
    return tokens


def _match_ends(tokens, text, starts):
    """Return the places where a match that begins at one of `starts` can end."""
    for step, repeat in tokens:
        def ends(at, step=step):
            if isinstance(step, list): return set().union(*(_match_ends(p, text, at) for p in step))
            return {i + 1 for i in at if step.match(text, i)}
        reached = new = ends(starts)
        while new and repeat in ("*", "+"):
            new = ends(new) - reached
            reached = reached | new
        starts = reached | starts if repeat in ("*", "?") else reached
    return starts
