"""Text: `docstrings` reads a library's documentation, `corpus` makes the two corpora of it,
`tokenizer`, `words` and `sentencepiece` turn text into ids, `chat` and `templates` write
conversations as a model knows them, `ngram` is a baseline that counts, and `tasks/` what models
learn and are measured on.
"""
from .chat import chat_end, chat_prompt
from .corpus import Corpus, Document, base_corpus, domain_corpus
from .ngram import KneserNey
from .sentencepiece import SentencePieceTokenizer
from .tokenizer import END_OF_TEXT, BPETokenizer, Tokenizer

__all__ = ["END_OF_TEXT", "BPETokenizer", "Corpus", "Document", "KneserNey",
           "SentencePieceTokenizer", "Tokenizer", "base_corpus", "chat_end", "chat_prompt",
           "domain_corpus"]
