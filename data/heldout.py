"""What is held out, and how training avoids it: by comparing normalised forms, not bytes."""
import hashlib
import re
import unicodedata
from collections import defaultdict
from functools import cache

import sentencepiece

from data.tokenizer import ASCII_STOPS, CLOSING, FIRST, NORMALIZER, SPACE, STOPS

# As XLM-R's vocabulary reads a text, in lower case
FOLD = sentencepiece.SentencePieceNormalizer(rule_name='nmt_nfkc_cf')
# After a full stop etc.: see data.tokenizer
QUOTE = f'[{re.escape(CLOSING)}]'
AFTER_STOP = '|'.join(f'(?<=[{STOPS}]{QUOTE * n})' for n in range(4))
SENTENCE_ENDS = re.compile(f'(?:{AFTER_STOP})(?![{STOPS}]|{QUOTE})'
                           f'|(?<=[{ASCII_STOPS}])(?=[\\s{FIRST}])')


@cache
def in_form(char):
    """Whether a character counts: not a space, punctuation or invisible."""
    return char != SPACE and unicodedata.category(char)[0] not in 'PZC'


def form(text):
    """Equal for texts that differ only in case, spaces, punctuation or Unicode normalisation."""
    return ''.join(filter(in_form, FOLD.Normalize(text)))


def hash_forms(text):
    """Hashes of a text's form and, in a tuple, of its sentences'."""
    parts = [form(part) for line in text.splitlines()
             for part in SENTENCE_ENDS.split(FOLD.Normalize(line))]
    whole = ''.join(parts) or text.strip()
    return hash(whole), tuple(map(hash, filter(None, parts))) or (hash(whole),)


class Texts:
    """A set of texts. `text in texts`: it equals one, or is a run of its sentences, or has one."""

    def __init__(self, texts=()):
        self.runs = set()                     # texts as tuples of sentences, and as (whole,)
        self.lengths = defaultdict(set)       # a sentence -> the lengths of the runs that it begins
        self.places = defaultdict(list)       # a sentence -> [(run, its place there)]
        self.update(texts)

    def update(self, texts):
        for whole, run in map(hash_forms, texts):
            if run not in self.runs:          # those of one form may be cut differently
                self.runs |= {(whole,), run}
                self.lengths[run[0]].add(len(run))
                self.lengths[whole].add(1)    # also where it is one sentence
                for place, sentence in enumerate(run):
                    self.places[sentence].append((run, place))

    def __contains__(self, text):
        whole, sentences = hash_forms(text)
        if (whole,) in self.runs or any(self.runs_in(sentences)):
            return True
        places = [self.places.get(sentence, ()) for sentence in sentences]
        i, runs = min(enumerate(places), key=lambda x: len(x[1]))      # the rarest: few to compare
        return any(place >= i and run[place - i:place - i + len(sentences)] == sentences
                   for run, place in runs)

    def runs_in(self, sentences):
        """(start, end) of each text of the set in a tuple of sentences."""
        for start, sentence in enumerate(sentences):
            for n in self.lengths.get(sentence, ()):
                if sentences[start:start + n] in self.runs:
                    yield start, start + n

    def without(self, text):
        """A text without its sentences that are in the set; '' if it is itself part of one."""
        if text not in self:
            return text
        lines = (NORMALIZER.Normalize(line).replace(SPACE, ' ') for line in text.splitlines())
        parts = [part for line in lines for part in (*SENTENCE_ENDS.split(line), '\n')]
        places = [i for i, part in enumerate(parts) if form(part)]
        for start, end in self.runs_in(tuple(hash(form(parts[i])) for i in places)):
            for i in places[start:end]:
                parts[i] = ''
        left = '\n'.join(line.strip() for line in ''.join(parts).split('\n') if form(line))
        return '' if left in self else left


def splits(documents, val_fraction):
    """Returns split_of(key, texts) -> (split, texts), for documents (key, {language: text}).

    'val': the hash of the key, or else of the text (of a pair: in the last language by name), is
    below val_fraction; this stays so when the corpus grows. 'train': others, without held-out
    sentences. None: nothing remains, or a side of a pair would lose a sentence."""
    def is_val(key, texts):
        return digest(texts[max(texts)] if key in (None, '') else key) < val_fraction * 2**64

    held_out = Texts(text for key, texts in documents if is_val(key, texts)
                     for text in texts.values())

    def split_of(key, texts):
        if is_val(key, texts):
            return 'val', texts
        left = {language: held_out.without(text) for language, text in texts.items()}
        is_cut_pair = len(left) > 1 and left != texts
        return (None, texts) if is_cut_pair or not all(left.values()) else ('train', left)

    return split_of


def digest(*parts):
    """A hash of the parts: a number below 2^64, the same in every process."""
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        part = part if isinstance(part, bytes) else str(part).encode()
        hashed.update(len(part).to_bytes(8, 'little') + part)
    return int.from_bytes(hashed.digest(), 'little')
