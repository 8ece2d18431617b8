"""XLM-R's token ids from a SentencePiece file, followed by language tokens.

XLM-R's layout: <s> 0, <pad> 1, </s> 2, <unk> 3; SentencePiece's piece i (from 3) is i + 1; <mask>
is the last. Language tokens <bo> <zh> ... follow, in the order given.
"""
import re
from pathlib import Path

import numpy as np
import sentencepiece

from data.files import SENTENCEPIECE

BOS, PAD, EOS, UNK = 0, 1, 2, 3
SPACE = '\u2581'                  # ▁, SentencePiece's mark of a space before a piece
MOST_UNUSED = 1000                # rows of an encoder that have no id: multilingual-e5-small has 35
UNKNOWN = '\u2585'                # a character that SentencePiece cannot have in a vocabulary
# Ends of sentences: Tibetan, CJK, Arabic, Indic, Burmese, Khmer, Mongolian, Ethiopic. ASCII ones
# (nmt_nfkc turns ！ into !) count only before one of FIRST: not in 3.5.
STOPS = '།༎༏༐༑༔。！？｡…؟۔।॥။៕។᠃።፧፨'
ASCII_STOPS = '!?.'
FIRST = SPACE + '\u3040-\u30ff\u3400-\u9fff《〈「『【“‘'       # kana, Chinese, opening marks
CLOSING = '”’»›」』】》〉）)]，,'                           # after a stop they belong to its sentence


class Tokenizer:
    """Text to ids and back.

    model: a folder with a SentencePiece file, or its bytes. vocab_size: rows of the encoder's
    embeddings, if there are more. Raises OSError without a file, ValueError for a wrong one."""

    def __init__(self, model, languages=(), vocab_size=None):
        name = 'the SentencePiece model' if isinstance(model, bytes) else Path(model, SENTENCEPIECE)
        self.model = model if isinstance(model, bytes) else name.read_bytes()
        self.sp = sentencepiece.SentencePieceProcessor()
        try:
            self.sp.LoadFromSerializedProto(self.model)
            pieces = [self.sp.id_to_piece(i) for i in range(3, len(self.sp))]
        except (RuntimeError, UnicodeDecodeError) as e:
            raise ValueError(f'{name} is damaged or not a SentencePiece file; get it again') from e
        if (self.sp.unk_id(), self.sp.bos_id(), self.sp.eos_id()) != (0, 1, 2):
            raise ValueError(f'{name}: <unk> <s> </s> are not its first pieces, as in XLM-R')
        self.languages = tuple(languages)
        self.mask = len(self.sp) + 1
        self.vocab_size = vocab_size or self.mask + 1
        if not self.mask < self.vocab_size < self.mask + MOST_UNUSED:
            raise ValueError(f'{name} has ids up to {self.mask}, and the encoder {self.vocab_size} '
                             'rows: they do not belong together')
        n_unused = self.vocab_size - self.mask - 1 + len(self.languages)
        self.pieces = ['', '', '', ' \u2047 ', *pieces, '<mask>', *[''] * n_unused]
        self.to_id = np.array([UNK, BOS, EOS, *range(4, self.mask)])      # from SentencePiece's ids
        self.stop = np.array([p.rstrip(CLOSING).endswith(tuple(STOPS)) for p in self.pieces])
        self.ascii_stop = np.array([p.endswith(tuple(ASCII_STOPS)) for p in self.pieces])
        self.closing = np.array([p != '' == p.strip(CLOSING) for p in self.pieces])
        self.begins_closing = np.array([p.startswith(tuple(CLOSING)) for p in self.pieces])
        self.first = np.array([bool(re.match(f'[{FIRST}]', p)) for p in self.pieces])
        self.letters = np.array([bool(re.search(r'[^\W\d_]|\u2047', p)) for p in self.pieces])

    def encode(self, text):
        """The ids (n,) of a string; no <s> and </s>."""
        return self.to_id[self.sp.encode(text)]

    def encode_masked(self, text):
        """As `encode`, for one string in which <mask> is the mask token; adds no ▁ after it."""
        first, *parts = text.split('<mask>')
        found = [self.encode(first)]
        for part in parts:
            # UNKNOWN before it prevents a ▁; unknown characters that follow share its <unk>
            ids, begins_unknown = self.encode(UNKNOWN + part), UNK in self.encode(part[:1])
            found += [[self.mask], ids[np.argmax(ids == UNK) + (not begins_unknown):]]
        return np.concatenate(found)

    def decode(self, ids):
        """The string of ids: keeps <mask>, drops other special tokens and language tokens."""
        return ''.join(self.pieces[i] for i in ids).replace(SPACE, ' ').strip()

    def add_special_tokens(self, language, *texts):
        """<s> <lang> text </s>, from ids (n,), as the model reads it; </s> </s> joins two texts."""
        parts = [[BOS, self.language_id(language)], texts[0]]
        for ids in texts[1:]:
            parts += [[EOS, EOS], ids]
        return np.concatenate([*parts, [EOS]])

    def language_id(self, language):
        """The id of a language's token. Raises ValueError for a language without one."""
        if language not in self.languages:
            raise ValueError(f'language {language!r} has no token here; there are: '
                             f'{" ".join(self.languages)}. See --source, --to, --learn')
        return self.vocab_size + self.languages.index(language)

    def sentence_starts(self, ids):
        """ids (n,) -> the positions, from 0, where a sentence begins. It has a letter in it."""
        stop, after = self.stop[ids], ids[1:]
        for i in np.flatnonzero(self.closing[after]) + 1:
            stop[i] = stop[i - 1]
        starts = (stop[:-1] & ~stop[1:] & ~self.begins_closing[after]
                  | self.ascii_stop[ids[:-1]] & self.first[after])
        starts, letters = np.flatnonzero(starts) + 1, self.letters[ids].cumsum()
        before = letters[starts - 1]
        return np.r_[0, starts[(np.diff(before, prepend=0) > 0) & (before < letters[-1:])]]


NORMALIZER = sentencepiece.SentencePieceNormalizer(rule_name='nmt_nfkc')


def normalize(text):
    """A string as XLM-R's vocabulary reads it (by rule nmt_nfkc), with single spaces inside."""
    # some versions write SPACE for a space; only XLM-R's file, of 2019, makes the joiner a space
    return ' '.join(NORMALIZER.Normalize(text).replace(SPACE, ' ').replace('\u200d', ' ').split())
