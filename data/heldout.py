"""What is held out, and how it is kept from being learned: by a text's form, not its bytes."""
import hashlib
import re
import unicodedata
from itertools import count

import sentencepiece

from data.tokenizer import ASCII_STOPS, SPACE, STOPS

# As XLM-R's vocabulary reads a text, in lower case
FOLD = sentencepiece.SentencePieceNormalizer(rule_name='nmt_nfkc_cf')
# After a stop; after an ASCII one only before a space or Chinese, as in data.tokenizer
SENTENCE_ENDS = re.compile(f'(?<=[{STOPS.strip(ASCII_STOPS)}])'
                           f'|(?<=[{ASCII_STOPS}])(?=[{SPACE}\\s\u3400-\u9fff])')


class LettersOnly(dict):
    """For str.translate: deletes white space, punctuation and invisible characters."""

    def __missing__(self, code):
        char = chr(code)
        deleted = char.isspace() or char == SPACE or unicodedata.category(char)[0] in 'PZC'
        self[code] = None if deleted else code
        return self[code]


LETTERS_ONLY = LettersOnly()


def letters(text):
    return FOLD.Normalize(text).translate(LETTERS_ONLY)


def forms(text):
    """(hash of a text's form, tuple of its sentences' hashes), which hold in this process only.

    Texts that differ in case, spaces, punctuation or what SentencePiece normalizes have one form.
    """
    parts = [part.translate(LETTERS_ONLY) for line in text.splitlines()
             for part in SENTENCE_ENDS.split(FOLD.Normalize(line))]
    sentences = tuple(hash(part) for part in parts if part)
    return hash(''.join(parts) or text.strip()), sentences or (hash(text.strip()),)


class Texts:
    """A set of texts. `text in texts`: it is one of them, contains one, or is contained in one.

    Contained is: as successive whole sentences.
    """

    def __init__(self, texts=()):
        self.wholes = set()           # forms of whole texts
        self.runs = set()             # texts as tuples of sentences
        self.run_lengths = {}         # a sentence -> the lengths of the runs that it begins
        self.places = {}              # a sentence -> [(run, its place there)]
        self.update(texts)

    def update(self, texts):
        for whole, run in map(forms, texts):
            if whole not in self.wholes:
                self.wholes.add(whole)
                self.runs.add(run)
                self.run_lengths.setdefault(run[0], set()).add(len(run))
                for place, sentence in enumerate(run):
                    self.places.setdefault(sentence, []).append((run, place))

    def __contains__(self, text):
        whole, sentences = forms(text)
        if whole in self.wholes or next(self.runs_in(sentences), None):
            return True
        # is it in a run? Compare where its rarest sentence stands
        rarest = min(sentences, key=lambda sentence: len(self.places.get(sentence, ())))
        i = sentences.index(rarest)
        return any(place >= i and run[place - i:place - i + len(sentences)] == sentences
                   for run, place in self.places.get(rarest, ()))

    def runs_in(self, sentences):
        """(start, end) of each text of the set in a tuple of sentences."""
        for start, sentence in enumerate(sentences):
            for n in self.run_lengths.get(sentence, ()):
                if sentences[start:start + n] in self.runs:
                    yield start, start + n

    def without(self, text):
        """A text less its sentences that are one of the set; '' where it is itself part of one."""
        if text not in self:
            return text
        lines = [[(part, letters(part)) for part in SENTENCE_ENDS.split(line)]
                 for line in text.splitlines()]
        sentences = tuple(hash(form) for line in lines for _, form in line if form)
        held_out = {i for run in self.runs_in(sentences) for i in range(*run)}
        number = count()              # of the sentence
        kept = [''.join(part for part, form in line if not form or next(number) not in held_out)
                for line in lines]
        left = '\n'.join(line.strip() for line in kept if letters(line))
        return '' if left in self else left


def splits(documents, val_fraction, needed=False):
    """The function of a document (key, {language: text}) that gives its split and its texts.

    The split is 'val' if the hash of its key, or without one that of its text, is in the lowest
    val_fraction; for a pair that is the text of the last language by name. So the split is stable
    when the corpus grows. Other documents are 'train', less the lines and sentences that are held
    out, or None: those of which nothing is left, that are part of a text held out, and pairs with
    such a side. Raises ValueError where nothing is held out but `needed`.
    """
    def is_val(key, texts):
        return digest(key or texts[max(texts)]) < val_fraction * 2**64

    held_out, n = Texts(), 0
    for n, (key, texts) in enumerate(documents, 1):
        if is_val(key, texts):
            held_out.update(texts.values())
    if needed and not held_out.wholes:
        raise ValueError(f'val_fraction={val_fraction} holds none of the {n} documents and pairs '
                         'out, which the best checkpoint is chosen by; give more text or a larger '
                         'fraction')

    def split_of(key, texts):
        if is_val(key, texts):
            return 'val', texts
        left = {language: held_out.without(text) for language, text in texts.items()}
        is_cut_pair = len(left) > 1 and left != texts
        return (None, texts) if is_cut_pair or not all(left.values()) else ('train', left)

    return split_of


def digest(*parts):
    """A number below 2^64 that depends on nothing but the parts."""
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        part = part if isinstance(part, bytes) else str(part).encode()
        hashed.update(len(part).to_bytes(8, 'little') + part)
    return int.from_bytes(hashed.digest(), 'little')
