"""adapter_config.json of Hugging Face's PEFT: what its fields say, and which layers its names and patterns mean.

The file is not trusted. Every field that is read is of the type that it must be; a field that is unknown here is refused
unless it is off (null, false, 0 or empty), for one that is on may change the function that the adapter computes.

Names of layers, as PEFT 0.21 reads them:

    target_modules     a list: a path, or its end after a dot ("c_proj" is attn's and mlp's); a str: a regular
                       expression for the whole path, or "all-linear"
    exclude_modules    the same, and what is named is left out
    layers_to_transform, layers_pattern      of what a list of targets names, the blocks of these numbers
    rank_pattern, alpha_pattern              {regular expression for the end of a path: value}; the first that fits counts,
                       of the file, where PEFT has sorted them: not always the one it trained with

Python's `re` can take exponential time on a pattern made for that, hence `fits`, which knows the expressions that
people write for paths, and takes a time in proportion to the pattern's length.
"""
import functools
import math
import re

from ..peft import MethodError
from .folder import read_object

__all__ = ["Config", "fits"]

COMMON = {"peft_type", "task_type", "modules_to_save"}
IRRELEVANT = {"auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "fan_in_fan_out",
              "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
              "qalora_group_size", "ensure_weight_tying", "runtime_config"}
TASKS = (None, "CAUSAL_LM", "SEQ_CLS")
LAYER = re.compile(r"transformer\.h\.(\d+)\.")


class Config:
    """The fields of one adapter_config.json. Raises HuggingFaceError, a ValueError, for a file that is none."""

    def __init__(self, path):
        self.path, self.fields = path, read_object(path)

    def get(self, name, kind, default=None):
        """The field `name`, null or absent: the default. ValueError unless it is of type `kind`, one or a tuple of types."""
        value = self.fields.get(name)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if value is None: return default
        if float in kinds: value = _real(value)
        if type(value) not in kinds:
            raise ValueError(f"{self.path}: {name} must be {' or '.join(k.__name__ for k in kinds)}, got {str(value)[:80]!r}")
        return value

    def names(self, name):
        """A field that is a list of str, or None."""
        value = self.get(name, list)
        if value is not None and not all(isinstance(v, str) for v in value):
            raise ValueError(f"{self.path}: {name} must be a list of names, got {str(value)[:80]}")
        return value

    def task(self):
        """task_type: None, "CAUSAL_LM" or "SEQ_CLS". MethodError for what GPT-2 is not used for here."""
        task = self.get("task_type", str)
        if task not in TASKS:
            raise MethodError(f"load_adapter: task_type {task!r} is not supported; there are CAUSAL_LM, and SEQ_CLS for a "
                              "classification head")
        saved = set(self.names("modules_to_save") or [])
        if saved - {"score", "classifier"} or (saved and task == "CAUSAL_LM"):
            raise MethodError(f"load_adapter: modules_to_save {sorted(saved)} is not supported: of the base, only the "
                              "classification head 'score' can come with an adapter, in task_type SEQ_CLS")
        return "SEQ_CLS" if "score" in saved else task

    def refuse_others(self, known):
        """MethodError for a field that is on and neither in `known` nor without effect on what is computed."""
        for name, value in self.fields.items():
            if name not in known | COMMON | IRRELEVANT and value not in (None, False, 0, "", [], {}):
                raise MethodError(f"load_adapter: {name}={str(value)[:80]} is not supported: an adapter with it computes "
                                  "something else than one without")

    # -- which layers ------------------------------------------------------------------------------
    def hits(self, paths, linear):
        """Those of a model's `paths` that are to be adapted; "all-linear" means those in `linear`."""
        targets = self.get("target_modules", (list, str), ["c_attn"])
        if isinstance(targets, list): targets = self.names("target_modules") or targets
        excluded = self.get("exclude_modules", (list, str), [])
        if isinstance(excluded, list): excluded = self.names("exclude_modules") or []
        hit = linear if targets == "all-linear" else [p for p in paths if self._named(p, targets)]
        hit = [p for p in hit if not self._named(p, excluded)]
        if isinstance(targets, list): hit = [p for p in hit if self._in_layers(p)]
        if not hit:
            raise MethodError(f"load_adapter: target_modules {str(targets)[:200]!r} hits nothing in GPT-2; there are "
                              "attn.c_attn, attn.c_proj, mlp.c_fc and mlp.c_proj in transformer.h.N")
        return hit

    @staticmethod
    def _named(path, names):
        if isinstance(names, str): return fits(names, path)
        return any(path == n or path.endswith(f".{n}") for n in names)

    def _in_layers(self, path):
        numbers = self.get("layers_to_transform", (int, list))
        pattern = self.get("layers_pattern", (str, list))
        if numbers is None or numbers == []: return True
        layer = LAYER.match(path)
        if layer is None or pattern not in (None, "", [], "h", ["h"]): return False
        return int(layer[1]) in (numbers if isinstance(numbers, list) else [numbers])

    def by_pattern(self, name, kind, path, default):
        """The value of rank_pattern or alpha_pattern for one path."""
        pattern = self.get(name, dict, {})
        if len(pattern) > 1000 or sum(key.count(c) for key in pattern for c in "*+?([") > 50:
            raise ValueError(f"{self.path}: {name} has {len(pattern)} entries, too many or too intricate for names of layers")
        ends = [0, *(i + 1 for i, c in enumerate(path) if c == ".")]
        for key, value in pattern.items():
            if kind is float: value = _real(value)
            if type(value) is not kind:
                raise ValueError(f"{self.path}: {name} must map names to {kind.__name__}, got {key[:80]!r}: {str(value)[:80]}")
            if fits(key, path, [0] if key.startswith("^") else ends): return value
        return default


def _real(value):
    """A number of JSON as a float, if it is finite; anything else as it is, except that it is no float."""
    if type(value) is int and abs(value) < 1 << 53: return float(value)
    return value if type(value) is float and math.isfinite(value) else str(value)


TOKEN = re.compile(r"(\\[.dw-]|\[\^?(?:\w-\w|\w|\\d|\.)+\]|\.|[\w-]|\((?:\?:)?([^()]*)\))([*+?]?)\??")


def fits(pattern, text, starts=(0,)):
    r"""Whether a regular expression matches all of `text` from one of the `starts` on, in time O(len(pattern) len(text)²).

    It may have letters, `.`, `\.`, `\d`, `\w`, sets [0-9], groups (a|b), `*`, `+`, `?`, and groups with none of these
    inside each other. ValueError for others, which PEFT may accept.
    """
    return len(text) in _ends(_parsed(pattern.removeprefix("^").removesuffix("$")), text, set(starts))


@functools.lru_cache(4096)
def _parsed(pattern):
    """[(what matches once, "", "*", "+" or "?")]: a compiled expression for one character, or a list of alternatives."""
    tokens, at = [], 0
    while at < len(pattern):
        token = TOKEN.match(pattern, at)
        if token is None or len(pattern) > 1000:
            raise ValueError(f"the pattern {pattern[:200]!r} is too long, or not understood from {pattern[at:at + 20]!r} on; "
                             "write names of layers instead")
        try:
            once = re.compile(token[1]) if token[2] is None else [_parsed(part) for part in token[2].split("|")]
        except re.error as e:
            raise ValueError(f"the pattern {pattern[:200]!r} is no regular expression: {e}") from e
        tokens.append((once, token[3]))
        at = token.end()
    return tokens


def _ends(tokens, text, starts):
    """Where a match that begins at one of `starts` can end."""
    for once, repeat in tokens:
        if not starts: break
        if isinstance(once, list): step = lambda s, once=once: set().union(*(_ends(part, text, s) for part in once))
        else:                      step = lambda s, once=once: {i + 1 for i in s if once.match(text, i)}
        reached = new = step(starts)
        while new and repeat in ("*", "+"):
            new = step(new) - reached
            reached = reached | new
        starts = reached | starts if repeat in ("*", "?") else reached
    return starts
