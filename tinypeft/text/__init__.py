"""Text: corpora that every installation carries, a byte-level BPE tokenizer, and an n-gram model to measure against."""

from .corpus import Corpus, Document, base, domain
from .ngram import KneserNey
from .tokenizer import END_OF_TEXT, BPETokenizer

__all__ = ["END_OF_TEXT", "BPETokenizer", "Corpus", "Document", "KneserNey", "base", "domain"]
