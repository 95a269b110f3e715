"""Work that many tests of one process share: the documents of a corpus are encoded once."""
from tinypeft.text.tokenizer import Tokenizer

LEAST = 100                                              # documents of a corpus; tests encode a few of their own


def encode_corpora_once():
    """From now on a process keeps the ids of a corpus' documents, and gives a copy to whoever encodes them again."""
    encode, known = Tokenizer.encode_documents, []

    def encode_documents(self, documents):
        if not isinstance(documents, tuple) or len(documents) < LEAST: return encode(self, documents)
        for tokenizer, same, ids in known:
            if same is documents and tokenizer == self: return ids.copy()
        ids = encode(self, documents)
        known.append((self, documents, ids.copy()))
        return ids
    Tokenizer.encode_documents = encode_documents
