"""Generation: one token after another, with a cache of the keys and values that attention has seen.

The model predicts a distribution over the next token. `generate` takes the likeliest, or samples
(with a temperature, from the k likeliest, or from the smallest set of probability p), and appends
the choice. With the cache each step feeds one token instead of all; the result is the same.

A quantized layer decodes its weight for every token, which takes longer than the product of the
weight and one token. So `generate` keeps decoded weights until it returns, of the layers that come
first, at most KEPT bytes in all: those of a small model, and a small part of a large one.

Prompts of unequal lengths go on together: the model reads as many tokens as the shortest has, and
then one of each row at a time. A row whose prompt goes on takes the next token of its prompt, and
no guess.

`plain.py` has `sample` and `generate` as one reads them; read it first.
"""
import codecs
import contextvars
import functools
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ..common.hints import Array, Rng, Seed
from ..engine import functional as F
from ..engine.tensor import Tensor, no_grad, within

__all__ = ["KVCache", "LayerCache", "answer", "batches", "characters", "continuations", "generate",
           "keeping", "kept",
           "prompt_lengths", "prompted", "sample", "steps", "stream", "trained_family"]

KEPT = 2**23                                                 # bytes of decoded weights
ROWS = 16                                                    # prompts that are continued together,
LATER = 16                                                   # and how much longer one may be
_kept = contextvars.ContextVar("kept", default=None)
_prompt_lengths = contextvars.ContextVar("prompt_lengths", default=None)


def keeping() -> AbstractContextManager[dict[Hashable, Array | Tensor]]:
    """Inside `with keeping():` `kept` returns an array again. No weight may change there."""
    return within(_kept, {})


def kept(source: Hashable, make: Callable[[], Any]) -> Any:
    """Return make(), an array or a Tensor, to be read only. Inside `keeping()` it is made once for
    each `source`, as long as all of them take at most KEPT bytes."""
    arrays = _kept.get()
    if arrays is None:
        return make()
    if source in arrays:
        return arrays[source]
    array = make()
    if array.nbytes + sum(a.nbytes for a in arrays.values()) <= KEPT:
        arrays[source] = array
    return array


def prompted(lengths: Array) -> AbstractContextManager[Array]:
    """Inside `with prompted(lengths):` the first lengths[b] tokens of row b are a prompt; the model
    wrote the others, or learns to. A method that treats a prompt differently asks for this."""
    return within(_prompt_lengths, lengths)


def prompt_lengths(tokens: Array) -> Array:
    """Return how many tokens of each row of `tokens` (B, T) are its prompt, (B,): all, unless
    `prompted` says otherwise."""
    lengths = _prompt_lengths.get()
    B, T = tokens.shape
    return np.full(B, T) if lengths is None else lengths


class LayerCache:
    """Keys and values of one layer, (B, H, S, d_head), in buffers that double when full. What a
    window has passed is dropped: the next call may write over it, and frees buffers that are more
    than four times too large."""

    def __init__(self):
        self.k = self.v = None
        self.start = self.stop = 0                           # of the positions held, in the buffers
        self.dropped = 0                                     # positions in no buffer any more

    @property
    def length(self) -> int:
        """Count the positions so far, also those that were dropped."""
        return self.dropped + self.stop

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add Tensors (B, H, T, d_head); return Tensors of everything held."""
        T = k.shape[2]
        n = self.stop - self.start + T
        room = 0 if self.k is None else self.k.shape[2]
        if not self.stop + T <= room <= 4 * n:
            self.k = self._moved(self.k, k.data, n)
            self.v = self._moved(self.v, v.data, n)
            self.dropped += self.start
            self.start = 0
            self.stop = n - T
        new = np.s_[:, :, self.stop:self.stop + T]
        self.k[new] = k.data
        self.v[new] = v.data
        self.stop += T
        held = np.s_[:, :, self.start:self.stop]
        return Tensor(self.k[held]), Tensor(self.v[held])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """Attention of q (B, H, T, d_head) over everything held and k, v, which are added.
        options: of `functional.attention`. A window w leaves the last w − 1 positions."""
        o = F.attention(q, *self.append(k, v), **options)
        window = options.get("window")
        if window:
            self.start = max(self.start, self.stop + 1 - window)
        return o

    @property
    def nbytes(self) -> int:
        """Count the bytes of the keys and values held; the buffers take more."""
        return 0 if self.k is None else 2 * self.k[:, :, self.start:self.stop].nbytes

    def _moved(self, old, new, n):
        """Make a buffer for 2 n positions of the shape of `new`; copy those held into it."""
        B, H, _, d = new.shape
        buffer = np.empty((B, H, 2 * n, d), new.dtype)
        held = self.stop - self.start
        if held:
            buffer[:, :, :held] = old[:, :, self.start:self.stop]
        return buffer


class KVCache:
    """One cache per layer. length: positions so far, virtual ones too; nbytes: of what is held.
    `length` cannot be set: a window drops what it has passed."""

    def __init__(self, n_layers: int, layer: Callable[[], LayerCache] = LayerCache):
        self.layers = [layer() for _ in range(n_layers)]

    @property
    def length(self) -> int:
        return self.layers[0].length

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


def sample(logits: Array, rng: Rng, temperature: float = 1.0,
           top_k: int | None = None, top_p: float | None = None) -> Array:
    """Draw one token per row from logits (B, V) → (B,); temperature 0 takes the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    z = logits.astype(np.float64) / temperature
    p = np.exp(z - z.max(-1, keepdims=True))
    u = rng.random(len(z))
    return np.array([_drawn(*row, top_k, top_p) for row in zip(p, u, strict=True)])


def _drawn(p, u, top_k, top_p):
    """Return the token at u, uniform in [0, 1), where tokens lie side by side, the likeliest first,
    each as wide as its share of p (V,). Only the likeliest are sorted, as many as it takes: of
    SmolLM2's 49,152 tokens that takes a sixth of the time."""
    n = top_k or 64
    while True:
        order = _likeliest(p, n)
        share = p[order] / (p[order] if top_k else p).sum()
        mass = share.cumsum()
        if top_k or n >= len(p) or mass[-1] >= (top_p or u):
            break
        n *= 8
    if top_p is not None:
        share = share[mass - share < top_p]              # keep while the mass before is < top_p
        mass = (share / share.sum()).cumsum()
    return order[min(np.searchsorted(mass, u), np.count_nonzero(share) - 1)]


def _likeliest(p, n):
    """Return the places of the n largest of p, the largest first; of equal ones the first first."""
    places = np.arange(len(p))
    if n < len(p):
        places = np.flatnonzero(~(p < np.partition(p, -n)[-n]))
    return places[np.argsort(-p[places], kind="stable")][:n]


def generate(model: Any, tokens: Array | str | list[str], max_new_tokens: int = 64,
             temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None,
             rng: Seed = 0, stop: int | None = None, use_cache: bool = True,
             cache: KVCache | None = None) -> Any:
    """Continue `tokens` (B, T); return integers (B, T + n), n ≤ max_new_tokens. Or continue a
    text, up to the end of text, and return it with what was written; or each text of a list, or
    each prompt (T_b,) of a list of arrays of unequal lengths.

    model: a Decoder or a PeftModel, called as model(tokens, cache=…, last=True). temperature: 0 is
    greedy.
    stop: a token id; a row that has produced it repeats it, and generation ends when all rows have.
    cache: a `KVCache` in place of a fresh one, such as one that quantizes.
    use_cache: False computes all positions anew for each token, and writes the same tokens, unless
    the model rounds inputs by what all tokens of a call hold: W8A8 and SmoothQuant with activations
    "tensor", and LLMInt8. There the rows of a batch depend on each other, too.
    Raises ValueError for options out of range, and if the sequence would exceed the context.
    """
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, stop=stop,
                   use_cache=use_cache, cache=cache)
    if starts_with(tokens, Mapping):
        raise TypeError("generate: these are messages of a conversation; model.chat(messages) "
                        "answers them")
    if starts_with(tokens, str):
        new = new_texts(model, tokens, max_new_tokens, rng=rng, **options)
        return ["".join(pair) for pair in zip(tokens, new, strict=True)]
    if starts_with(tokens, np.ndarray) and len({row.shape for row in tokens}) > 1:
        new = continuations(model, tokens, max_new_tokens, rng=rng, **options)
        return [np.concatenate(pair) for pair in zip(tokens, new, strict=True)]
    new = stream(model, tokens, max_new_tokens, rng=rng, **options)
    if isinstance(tokens, str):
        return tokens + "".join(new)
    columns = [step[:, None] for step in new]
    return np.concatenate([np.asarray(tokens), *columns], axis=1)


def new_texts(model: Any, texts: list[str], max_new_tokens: int, stop: int | None = None,
              **options: Any) -> list[str]:
    """Return what each of the texts is continued by."""
    require_model(model)
    tokenizer = require_tokenizer(model, "generate")
    prompts = [tokenizer.encode_prompt(text) for text in texts]
    if stop is None:
        stop = tokenizer.end_of_text
    new = continuations(model, prompts, max_new_tokens, stop=stop, **options)
    pieces = [characters(tokenizer, ids[:, None], {stop}, is_continued=True) for ids in new]
    return ["".join(piece) for piece in pieces]


def continuations(model: Any, prompts: list[Array], max_new_tokens: int, rng: Seed = 0,
                  stop: int | None = None, **options: Any) -> list[Array]:
    """Return what each prompt (T_b,) is continued by, (n_b,); several prompts at a time."""
    options |= dict(stop=stop, rng=np.random.default_rng(rng))
    for i, prompt in enumerate(prompts, 1):
        if prompt.ndim != 1 or not prompt.size or prompt.dtype.kind not in "iu":
            raise ValueError(f"generate: prompt {i} must be integers (T,) with T ≥ 1, got "
                             f"{prompt.dtype} {prompt.shape}")
    lengths = np.array([len(prompt) for prompt in prompts])
    # The vectors of a virtual module may depend on where a prompt ends.
    later = LATER if getattr(model, "virtual", None) is None else 0
    new = [None] * len(prompts)
    for rows in batches(lengths, ROWS, later):
        n = lengths[rows]
        tokens = np.zeros((len(rows), n.max()), int)
        for i, row in enumerate(rows):
            tokens[i, :n[i]] = prompts[row]
        columns = list(steps(model, tokens, max_new_tokens, lengths=n, **options))
        written = np.array(columns, int).reshape(len(columns), len(rows)).T
        for i, row in enumerate(rows):
            start = n[i] - n.min()
            ids = written[i, start:start + max_new_tokens]
            ends = np.flatnonzero(ids == stop)
            new[row] = ids[:ends[0] + 1] if ends.size else ids
    return new


def batches(lengths: Array, n_rows: int, later: int) -> Iterator[Array]:
    """Yield the places of all `lengths` (N,): at most `n_rows` at a time, sorted, none of which is
    longer by more than `later` than the first."""
    rows = np.argsort(lengths, kind="stable")
    while rows.size:
        n_near = np.searchsorted(lengths[rows], lengths[rows[0]] + later, side="right")
        n = min(n_rows, n_near)
        yield rows[:n]
        rows = rows[n:]


def stream(model: Any, tokens: Any, max_new_tokens: int = 64, stop: int | None = None,
           **options: Any) -> Iterator[Any]:
    """Yield what `generate` adds as soon as it is there: of tokens (B, T) integers (B,) at a time,
    of a text pieces of text. A piece is one whole character or more.

    tokens: the messages of a conversation do, too: {"role": …, "content": …} each, the last one of
    the user; then the pieces are those of the answer. family: of the chat template, as in
    `tinypeft.chat_prompt`. options: of `generate`. The model must not change before the end."""
    require_model(model)
    if starts_with(tokens, Mapping):
        return answer(model, tokens, max_new_tokens, stop, **options)
    if not isinstance(tokens, str):
        return steps(model, tokens, max_new_tokens, stop=stop, **options)
    tokenizer = require_tokenizer(model, "generate")
    ids = tokenizer.encode_prompt(tokens)
    if stop is None:
        stop = tokenizer.end_of_text
    new = steps(model, ids[None], max_new_tokens, stop=stop, **options)
    return characters(tokenizer, new, {stop}, is_continued=True)


def answer(model: Any, messages: Any, max_new_tokens: int = 256, stop: int | None = None,
           family: str | None = None, **options: Any) -> Iterator[str]:
    """Yield the pieces of the model's answer in a conversation; see `stream`. It is shorter than
    max_new_tokens where the context ends. ValueError if there is no room for an answer."""
    require_model(model)
    tokenizer = require_tokenizer(model, "chat")
    family = family or trained_family(model)
    ids = tokenizer.chat_prompt(messages, family)
    if stop is None:
        stop = tokenizer.chat_end(family)
    room = model.config.context_length - getattr(model, "virtual_length", 0) - len(ids)
    if room < 1:
        raise ValueError(f"chat: the conversation has {len(ids)} tokens and the model takes "
                         f"{len(ids) + room}, the answer included; shorten it, or leave out its "
                         "first messages")
    new = steps(model, ids[None], min(max_new_tokens, room), stop=stop, **options)
    return characters(tokenizer, new, {stop, tokenizer.end_of_text}, is_continued=False)


def trained_family(model: Any) -> str | None:
    """Return the family of the chat template that the model was trained on prompts in, "plain" for
    none, or None for a model that was not."""
    task = getattr(model, "task", None)
    return (task.chat or "plain") if hasattr(task, "chat") else None


def characters(tokenizer: Any, tokens: Iterable[Array], ends: Container[int],
               is_continued: bool) -> Iterator[str]:
    """Yield the text of tokens (1,), in pieces of whole characters, up to one of `ends`. Bytes that
    are no character become "�". is_continued: did text come before? A space in front is kept."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for (token,) in tokens:
        if token in ends:
            break
        if token >= tokenizer.vocab_size:                    # some vocabularies are padded
            continue
        piece = decoder.decode(tokenizer.decode_bytes([token], is_continued))
        is_continued = is_continued or bool(tokenizer.decode_bytes([token], True))
        if piece:
            yield piece
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest


def steps(model: Any, tokens: Array, max_new_tokens: int, temperature: float = 0.0,
          top_k: int | None = None, top_p: float | None = None, rng: Seed = 0,
          stop: int | None = None, use_cache: bool = True, cache: KVCache | None = None,
          lengths: Array | None = None) -> Iterator[Array]:
    """Check the arguments of `generate`, and return an iterator of what each step adds, (B,).

    lengths (B,): how many tokens of each row are there; the others are written. Steps then start
    behind the shortest row, and give the tokens of longer rows again."""
    tokens = np.asarray(tokens)
    _check(tokens, max_new_tokens, temperature, top_k, top_p)
    _check_room(model, tokens.shape[1], max_new_tokens)
    if not use_cache:
        cache = None
    elif cache is None:
        cache = KVCache(model.config.n_layers)
    prompts = prompt_lengths(tokens)
    if lengths is None:
        lengths = np.full(len(tokens), tokens.shape[1])
    draw = functools.partial(sample, rng=np.random.default_rng(rng), temperature=temperature,
                             top_k=top_k, top_p=top_p)
    return _steps(model, tokens, lengths, prompts, max_new_tokens, draw, stop, cache)


def _steps(model, tokens, lengths, prompts, max_new_tokens, draw, stop, cache):
    """Yield what each step adds: where a prompt goes on, its next token."""
    arrays = {}                                              # decoded weights
    fed = 0                                                  # tokens that the cache has seen
    done = np.zeros(len(tokens), bool)
    whole = tokens.shape[1]
    for length in range(lengths.min(), whole + max_new_tokens):
        # Between two steps the caller's own code runs, so the settings of a step end with it:
        # nothing is recorded, decoded weights are kept.
        with no_grad(), within(_kept, arrays), prompted(prompts):
            logits = model(tokens[:, fed:length], cache=cache, last=True)
        if cache is not None:
            fed = length
        new = draw(logits.data[:, -1]).astype(tokens.dtype)
        if stop is not None:
            new = np.where(done, stop, new).astype(tokens.dtype)
        if length < whole:
            is_prompt = length < lengths
            new = np.where(is_prompt, tokens[:, length], new)
            done |= ~is_prompt & (new == stop)
        elif stop is not None:
            done |= new == stop
        yield new
        if (done | (length + 1 - lengths >= max_new_tokens)).all():
            break
        before = tokens[:, :length]
        rest = tokens[:, length + 1:]
        tokens = np.concatenate([before, new[:, None], rest], axis=1)


def starts_with(value: Any, kind: type) -> bool:
    """Tell if a value is a list or tuple whose first item is of a kind."""
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], kind)


def require_model(model: Any) -> None:
    """Raise TypeError for anything that has no `config`, such as a text in the model's place."""
    if not hasattr(model, "config"):
        raise TypeError("generate: the model comes first, and then the text or the tokens; got a "
                        f"{type(model).__name__} first")


def require_tokenizer(model: Any, verb: str) -> Any:
    """Return the model's tokenizer. Raises ValueError if it has none."""
    if getattr(model, "tokenizer", None) is None:
        raise ValueError(f"{verb}: this model has no tokenizer, so it takes token ids (B, T); set "
                         "model.tokenizer to give it a text")
    return model.tokenizer


def _check(tokens, max_new_tokens, temperature, top_k, top_p):
    """Raise ValueError for an argument of `generate` that is out of range."""
    if tokens.ndim != 2 or 0 in tokens.shape or tokens.dtype.kind not in "iu":
        raise ValueError("generate: tokens must be a text, or integers (B, T) with T ≥ 1, got "
                         f"{tokens.dtype} {tokens.shape}")
    if max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens must be at least 0, got {max_new_tokens}")
    if not temperature >= 0:
        raise ValueError(f"generate: temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p must lie in (0, 1], got {top_p}")


def _check_room(model, n_tokens, n_new):
    """Raise ValueError if the text would exceed the context; the last token need not be fed."""
    virtual = getattr(model, "virtual_length", 0)
    context = model.config.context_length
    if virtual + n_tokens + n_new > context + 1:
        more = f" beside {virtual} virtual ones" if virtual else ""
        raise ValueError(f"generate: {n_tokens} tokens and {n_new} new ones{more} exceed the "
                         f"context of {context}; ask for fewer new tokens")
