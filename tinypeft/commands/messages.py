"""What an error or a warning of the library says, in the words of the command line.

The library's messages name arguments of Python. A user of a command has options.
"""
from __future__ import annotations

import contextlib
import re
import shlex
import warnings
from collections.abc import Iterator

from ..common.wording import printable

__all__ = ["plain_warnings", "with_flags"]

WORDS = (
    (r"load_pretrained\(\)", "the shipped base: leave --model out"),
    (r"\bencoding='([\w-]+)'", r"--encoding \1"),
    (r"\bskip_empty=True", "--skip-empty"),
    (r"(?<!-)\bcontext must lie", "--context must lie"),
    (r"(?:, or )?give what load_adapter\(model, folder\) returns for each adapter",
     "merge them one after the other"),
    (r'call merge\(activations="exact"\)', "give --activations exact"),
    (r'activations="exact"', "--activations exact"),
    (r"(?:; )?attach with head_bias=False(?:, or set model\.head = None)?",
     "; `finetune --format peft` trains a head without one"),
    (r"save it in our own format", "only --format tinypeft holds it"),
    (r"save it in PEFT with safe_serialization=True", "save it as safetensors in PEFT"),
    (r"by format=.+?, or delete", "by deleting"),
    (r"combine: how='(\w+)'", r"combine: --how \1"),
    (r"needs density=,", "needs --density,"),
    (r"; (\w+) is of 'ties', 'dare', 'dare_ties'",
     r"; --\1 is of --how ties, dare and dare_ties"),
    (r"; rank is of the nearest matrix: 'svd', or .*", "; --rank is of --how svd, ties and dare"),
    (r"take 'cat' or 'svd'", "take --how cat or svd"),
    (r"head= must be one of the dict's keys, an adapter with a head, and its head is kept",
     "--head FOLDER names the adapter whose head is kept"),
    (r"merge\(\) gives a plain model with both changes", "`merge` gives a model with both changes"),
    (r"strict=False loads those that match\.", "Python's load_adapter(…, strict=False) loads those "
     "that match."))


def with_flags(message: str) -> str:
    """Return a message in which options stand where it named arguments of Python."""
    message = re.sub(r"load_model\('([^']+)'\)", model_option, message)
    for python, flags in WORDS:
        message = re.sub(python, flags, message)
    return message


def model_option(call: re.Match) -> str:
    """Return the option that does what a call of `load_model` does."""
    return f"--model {shlex.quote(call[1])}"


def one_line(message: Warning | str, *rest: object) -> str:
    """Return a warning as a line for a user, in place of `warnings.formatwarning`."""
    return f"tinypeft: {printable(with_flags(str(message)))}\n"


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Inside, a warning is one line on stderr, without the line of code that gave it."""
    before = warnings.formatwarning
    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = before
