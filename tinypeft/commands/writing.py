"""The commands that let a model write: generate continues a text, chat is a conversation."""
from __future__ import annotations

import contextlib
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..common.progress import Progress
from .arguments import (
    adapter_option,
    chosen_model,
    folder_of_task,
    learned_task,
    loaded,
    number,
    show_json,
)
from .results import noted

if TYPE_CHECKING:
    from ..models.decoder import Decoder
    from ..models.in_words import InWords
    from ..peft import PeftModel

__all__ = ["add_commands"]

ENDS = "Ctrl-C stops an answer; Ctrl-D, the end of the input, ends the conversation"


def add_commands(command: Callable) -> None:
    """Add the commands; see `cli.parser`."""
    p = command("generate", run_generate, "continue a text", takes=("seed", "model", "json"))
    p.add_argument("prompt", metavar="TEXT", help="with an adapter that was trained on pairs it is "
                   "a prompt, which is answered")
    writing_options(p, 120)
    adapter_option(p)
    p.add_argument("--chat", action="store_true",
                   help="TEXT is a message to a model that was trained on conversations, such as "
                        "smollm2; print its answer")
    p.add_argument("--stream", action="store_true", help="print the text while it is written")

    p = command("chat", run_chat, "talk to a model; in a pipe, each line of standard input "
                "is a message", takes=("seed", "model"))
    writing_options(p, 256)
    adapter_option(p)
    p.add_argument("--system", metavar="TEXT", help="what the model is told before the first "
                   "message")
    form = p.add_mutually_exclusive_group()
    form.add_argument("--family", metavar="NAME", help="the chat template to take: chatml, llama3 "
                      "and so on (default: the model's own, or the form of the adapter's prompts)")
    form.add_argument("--plain", action="store_true", help="take no chat template: messages and "
                      "answers are paragraphs")


def writing_options(p: ArgumentParser, most: int) -> None:
    """Add the options that say how a model writes. most: the default of --max-new-tokens."""
    p.add_argument("--max-new-tokens", type=number(int, least=0), default=most,
                   help=f"tokens to write, at most (default {most})")
    p.add_argument("--temperature", type=number(float, least=0),
                   help="0 is greedy (default 0.7; 0 with an adapter that was trained on pairs)")
    p.add_argument("--top-k", type=number(int, least=1),
                   help="sample from the k most probable tokens")
    p.add_argument("--top-p", type=number(float, above=0, most=1),
                   help="sample from the tokens that hold probability p")


def check_writes(args: Namespace, tuned: Decoder | PeftModel) -> None:
    """Raise ValueError if the model is a classifier, which was not trained to write."""
    if tuned.head is not None:
        raise ValueError(f"{args.adapter or args.model} holds a classifier, which names the class "
                         "of a text and does not write; use classify")


def run_generate(args: Namespace) -> None:
    from ..models.generation import steps
    from ..models.in_words import characters
    from ..text.chat import chat_end, chat_prompt, known_family
    if args.stream and args.json: raise ValueError("--stream prints text; leave out --json")
    model, tuned = loaded(args)
    tokenizer, context = model.tokenizer, model.config.context_length
    check_writes(args, tuned)
    learned = None if args.chat else learned_task(args, model)
    pairs = learned if learned and learned.form["kind"] == "pairs" else None
    if folder_of_task(args) and not (args.chat or learned) and (family := known_family(tokenizer)):
        print(f"{folder_of_task(args)} holds no task.json, so the text is continued as it stands; "
              f"--chat puts it into the chat template of {family}", file=sys.stderr)
    if pairs:       tokens, stop = pairs.encode_prompt(args.prompt), pairs.end
    elif args.chat:
        remedy = "leave out --chat, or use the command chat, which has --family and --plain"
        with noted(ValueError, lambda: remedy):
            tokens, stop = chat_prompt(tokenizer, args.prompt), chat_end(tokenizer)
    else:           tokens, stop = tokenizer.encode_prompt(args.prompt), tokenizer.end_of_text
    is_answer, n = bool(pairs or args.chat), tokens.size
    if n == 0 or pairs and not args.prompt.strip():
        raise ValueError("generate: the text is empty; give the model something to continue")
    if n >= context:
        raise ValueError(f"generate: the text has {n} tokens and the model takes {context}, "
                         "continuation included; shorten the text")
    temperature = args.temperature if args.temperature is not None else 0.0 if pairs else 0.7
    start = time.perf_counter()
    new = steps(tuned, tokens[None], min(args.max_new_tokens, context - n), temperature=temperature,
                top_k=args.top_k, top_p=args.top_p, rng=args.seed, stop=stop)
    if args.stream:
        if not is_answer: print(args.prompt, end="")
        for piece in characters(tokenizer, new, {stop}, not is_answer):
            print(piece, end="", flush=True)
        return print()
    with Progress(None, "writing"): new = list(new)
    seconds = time.perf_counter() - start
    text = "".join(characters(tokenizer, new, {stop}, not is_answer))
    if not args.json: return print(text if is_answer else args.prompt + text)
    show_json({"prompt": args.prompt, "text": text, "tokens": len(new),
               "tokens_per_second": len(new) / seconds})


# -- chat ------------------------------------------------------------------------------------------
def run_chat(args: Namespace) -> None:
    if not args.adapter: print(chosen_model(args), file=sys.stderr)
    tuned = loaded(args)[1]
    check_writes(args, tuned)
    family, was_trained = family_of_chat(args, tuned)
    temperature = args.temperature
    if temperature is None: temperature = 0.0 if was_trained else 0.7
    options = {"family": family, "temperature": temperature, "top_k": args.top_k,
               "top_p": args.top_p, "rng": np.random.default_rng(args.seed)}
    system = [{"role": "system", "content": args.system}] if args.system else []
    turns = []
    for text in messages():
        turns.append({"role": "user", "content": text})
        try:
            turns = fitting(tuned, system, turns, args.max_new_tokens, family)
            answer = shown(tuned.stream(system + turns, args.max_new_tokens, **options))
        except ValueError as e:
            print(e, file=sys.stderr)
            turns.pop()
        else: turns.append({"role": "assistant", "content": answer})


def family_of_chat(args: Namespace, tuned: InWords) -> tuple[str, bool]:
    """Return the family of the chat template, and whether an adapter was trained on pairs."""
    from ..models.in_words import trained_family
    from ..text.chat import PLAIN, family_of
    trained = trained_family(tuned)
    chosen = PLAIN if args.plain else args.family or trained
    remedy = "--plain goes on without a template, and --family NAME with another one"
    with noted(ValueError, lambda: remedy):
        return family_of(tuned.tokenizer, chosen), trained is not None


def messages() -> Iterator[str]:
    """Yield what the user writes: on a terminal after a mark, otherwise the lines of standard
    input. Blank lines are left out."""
    from ..text.tasks.own_files import decoded
    if sys.stdin is None: raise ValueError("there is no standard input to read")
    if not sys.stdin.isatty():
        lines = (decoded(line, "standard input", "utf-8") for line in sys.stdin.buffer)
        yield from (line.strip() for line in lines if line.strip())
        return
    with contextlib.suppress(ImportError): __import__("readline")       # arrows at the mark
    print(ENDS, file=sys.stderr)
    while True:
        try: line = input("> ").strip()
        except EOFError: return print()
        if line: yield line


def fitting(tuned: InWords, system: list[dict], turns: list[dict], most: int,
            family: str) -> list[dict]:
    """Leave out a conversation's first turns until the context has room for an answer of `most`
    tokens, or for half of itself."""
    context, first = tuned.config.context_length - getattr(tuned, "virtual_length", 0), 0
    most = min(most, context // 2)
    length = lambda: len(tuned.tokenizer.chat_prompt(system + turns[first:], family))
    while len(turns) - first > 2 and length() + most > context: first += 2
    if first: print(f"the first {first} messages were left out: the context has {context} tokens",
                    file=sys.stderr)
    return turns[first:]


def shown(pieces: Iterator[str]) -> str:
    """Print an answer while it is written, and return it. Ctrl-C ends it."""
    answer = ""
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
            answer += piece
    except KeyboardInterrupt: print(" …", end="")
    print(flush=True)
    return answer
