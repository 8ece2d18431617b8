"""What is held out, and how it is kept from being learned: a text's form is compared, not its bytes."""
import hashlib
import re
import unicodedata
from itertools import count

import sentencepiece

from data.tokenizer import ASCII_STOPS, SPACE, STOPS

FOLD = sentencepiece.SentencePieceNormalizer(rule_name='nmt_nfkc_cf')     # as XLM-R's vocabulary, in lower case


class Bare(dict):
    """For str.translate: drops white space, punctuation and characters that do not show."""

    def __missing__(self, code):
        char = chr(code)
        drop = char.isspace() or char == SPACE or unicodedata.category(char)[0] in 'PZC'
        self[code] = None if drop else code
        return self[code]


BARE = Bare()
# behind a stop, ASCII ones only before a space or Chinese, as in data.tokenizer
SENTENCE_ENDS = re.compile(f'(?<=[{STOPS.strip(ASCII_STOPS)}])|(?<=[{ASCII_STOPS}])(?=[{SPACE}\\s\u3400-\u9fff])')


def bare(text):
    return FOLD.Normalize(text).translate(BARE)


def forms(text):
    """The form of a text and of its sentences, a tuple; as hashes, of this process only.

    Texts that differ in case, spaces, punctuation or in what SentencePiece writes as one have one form.
    """
    parts = [part.translate(BARE) for line in text.splitlines() for part in SENTENCE_ENDS.split(FOLD.Normalize(line))]
    return hash(''.join(parts) or text.strip()), tuple(map(hash, filter(None, parts))) or (hash(text.strip()),)


class Texts:
    """A set of texts. `text in texts`: it is one of them, or successive sentences of one, or one is such of it."""

    def __init__(self, texts=()):
        self.wholes, self.starts, self.places = set(), {}, {}
        self.update(texts)

    def update(self, texts):
        for whole, sentences in map(forms, texts):
            if whole not in self.wholes:
                self.wholes.add(whole)
                self.starts.setdefault(sentences[0], {}).setdefault(len(sentences), set()).add(sentences)
                for i, sentence in enumerate(sentences):
                    self.places.setdefault(sentence, []).append((sentences, i))

    def __contains__(self, text):
        whole, sentences = forms(text)
        if whole in self.wholes or next(self.inside(sentences), None):
            return True
        rarest = min(range(len(sentences)), key=lambda i: len(self.places.get(sentences[i], ())))
        return any(i >= rarest and found[i - rarest:i - rarest + len(sentences)] == sentences
                   for found, i in self.places.get(sentences[rarest], ()))

    def inside(self, sentences):
        """(start, end) of each text of the set in a tuple of sentences."""
        for i, sentence in enumerate(sentences):
            for n, found in self.starts.get(sentence, {}).items():
                if sentences[i:i + n] in found:
                    yield i, i + n

    def without(self, text):
        """The text less the sentences that are one of the set together; '' where it is itself in one."""
        if text not in self:
            return text
        lines = [[(part, bare(part)) for part in SENTENCE_ENDS.split(line)] for line in text.splitlines()]
        sentences = tuple(hash(form) for line in lines for _, form in line if form)
        drop, number = {i for run in self.inside(sentences) for i in range(*run)}, count()
        kept = (''.join(part for part, form in line if not form or next(number) not in drop) for line in lines)
        left = '\n'.join(line.strip() for line in kept if bare(line))
        return '' if left in self else left


def splits(documents, val_fraction, needed=False):
    """Returns the function of a document (key, {language: text}): its part, 'train', 'val' or None, and its texts.

    It is for validation when the hash of its key, or where it has none of its text, is in the lowest val_fraction;
    that of a pair is the text of the last language by name. So this is stable when the corpus grows, and what
    data/nano has not read stays so. Other texts lose the lines and sentences that are held out. Those of which nothing
    is left, that are a line or sentence of a text held out, and pairs with such a side are for neither (None). Raises
    ValueError where nothing is held out but `needed`.
    """
    def is_val(key, texts):
        return digest(key or texts[max(texts)]) < val_fraction * 2**64

    held_out, n = Texts(), 0
    for n, (key, texts) in enumerate(documents, 1):
        if is_val(key, texts):
            held_out.update(texts.values())
    if needed and not held_out.wholes:
        raise ValueError(f'val_fraction={val_fraction} holds none of the {n} documents and pairs out, and without any '
                         'no best checkpoint can be chosen; give more text or a larger fraction')

    def split_of(key, texts):
        if is_val(key, texts):
            return 'val', texts
        left = {language: held_out.without(text) for language, text in texts.items()}
        return (None, texts) if not all(left.values()) or len(left) > 1 and left != texts else ('train', left)

    return split_of


def digest(*parts):
    """A number below 2^64 that depends on nothing but the parts."""
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        part = part if isinstance(part, bytes) else str(part).encode()
        hashed.update(len(part).to_bytes(8, 'little') + part)
    return int.from_bytes(hashed.digest(), 'little')
