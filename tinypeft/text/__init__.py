"""Text: `docstrings` reads a library's documentation, `corpus` makes the two corpora of it,
`tokenizer`, `words` and `sentencepiece` turn it into ids, `chat` writes conversations, `ngram` is a baseline that counts, and `tasks/` what models learn and
are measured on."""
from .corpus import Corpus, Document, base_corpus, domain_corpus
from .ngram import KneserNey
from .tokenizer import END_OF_TEXT, BPETokenizer

__all__ = ["END_OF_TEXT", "BPETokenizer", "Corpus", "Document", "KneserNey", "base_corpus",
           "domain_corpus"]
