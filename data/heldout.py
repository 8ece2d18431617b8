"""What is held out, and how it is kept from being learned: a text's form is compared, not its bytes."""
import hashlib
import re
import unicodedata

import sentencepiece

from data.tokenizer import SPACE, STOPS

FOLD = sentencepiece.SentencePieceNormalizer(rule_name='nmt_nfkc_cf')     # as XLM-R's vocabulary, in lower case


class Bare(dict):
    """For str.translate: sentence ends become line feeds; spaces, other punctuation and unseen characters go."""

    def __missing__(self, code):
        char = chr(code)
        drop = char.isspace() or char == SPACE or unicodedata.category(char)[0] in 'PZC'
        self[code] = '\n' if char in STOPS else None if drop else code
        return self[code]


BARE = Bare()
SENTENCES = re.compile(f'(?<=[{STOPS}])')


def forms(text):
    """The form of a text, and the set of those of it, its lines and its sentences; as hashes, of this process only.

    Texts that differ in case, spaces, punctuation or in what SentencePiece writes as one have one form.
    """
    marked = [FOLD.Normalize(line).translate(BARE) for line in text.splitlines()]
    lines = [line.replace('\n', '') for line in marked]
    parts = {sentence for line in marked for sentence in line.split('\n')}.union(lines) - {''}
    whole = ''.join(lines) or text.strip()
    return hash(whole), {hash(whole), *map(hash, parts)}


class Texts:
    """A set of texts. `text in texts`: it is one of them, or a line or sentence of one, or one is a line or sentence
    of it."""

    def __init__(self, texts=()):
        self.wholes, self.parts = set(), set()
        self.update(texts)

    def update(self, texts):
        for whole, parts in map(forms, texts):
            self.wholes.add(whole)
            self.parts |= parts

    def __contains__(self, text):
        whole, parts = forms(text)
        return whole in self.parts or not self.wholes.isdisjoint(parts)

    def without(self, text):
        """The text less its lines and sentences that are one of the set; '' where it is itself in one."""
        if text not in self:
            return text
        lines = (SENTENCES.split(line) for line in text.splitlines() if forms(line)[0] not in self.wholes)
        kept = (''.join(s for s in line if forms(s)[0] not in self.wholes).strip() for line in lines)
        left = '\n'.join(filter(None, kept))
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
