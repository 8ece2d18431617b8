"""XLM-R's token ids from a SentencePiece file, with language tokens behind them.

XLM-R's layout: <s> 0, <pad> 1, </s> 2, <unk> 3, SentencePiece's piece i (from 3) is i + 1, and <mask> is the last.
Language tokens <bo> <zh> ... follow, in the order given.
"""
import io
import unicodedata
from collections import Counter
from itertools import accumulate, chain, pairwise
from pathlib import Path

import numpy as np
import sentencepiece

from data import BOS, EOS, UNK
from data.languages import script

SPACE = '\u2581'                                      # SentencePiece's mark of a space before a piece
UNKNOWN = '\u2585'                                    # with NUL, what SentencePiece cannot have in a vocabulary
RESERVED = '\0' + UNKNOWN
STOPS = '།༎༏༐༑༔。！？｡…؟۔!?.'                         # ends of sentences: Tibetan shads, CJK, Arabic, Latin
ASCII_STOPS = '!?.'                                   # end one only before a space, or Chinese (！ becomes !): not in 3.5


class Tokenizer:
    """Text to ids and back.

    `model`: a SentencePiece file as a path, a folder that has sentencepiece.bpe.model, or its bytes. `vocab_size`:
    rows of the encoder, where they are more than the pieces; the language tokens stand behind them. Raises
    FileNotFoundError, or ValueError for a file that is no SentencePiece model of XLM-R's kind or has too many pieces.
    """

    def __init__(self, model, languages=(), vocab_size=None):
        name = 'the SentencePiece model'
        if not isinstance(model, bytes):
            path = Path(model)
            name = path = path / 'sentencepiece.bpe.model' if path.is_dir() else path
            if not path.is_file():
                raise FileNotFoundError(f'{path} does not exist; an encoder folder needs its SentencePiece file')
            model = path.read_bytes()
        self.sp = sentencepiece.SentencePieceProcessor()
        try:
            self.sp.LoadFromSerializedProto(model)
            pieces = [self.sp.id_to_piece(i) for i in range(3, len(self.sp))]
        except (RuntimeError, UnicodeDecodeError) as e:
            raise ValueError(f'{name} is damaged or no SentencePiece file; copy or download it again') from e
        if (self.sp.unk_id(), self.sp.bos_id(), self.sp.eos_id()) != (0, 1, 2):
            raise ValueError(f'{name}: <unk> <s> </s> are pieces {self.sp.unk_id()} {self.sp.bos_id()} '
                             f'{self.sp.eos_id()}, and XLM-R has them at 0 1 2')
        self.model, self.languages = model, tuple(languages)
        self.mask = len(self.sp) + 1
        self.vocab_size = vocab_size or self.mask + 1
        if self.vocab_size <= self.mask:
            raise ValueError(f'{name} has ids up to {self.mask}, and the encoder only {self.vocab_size} rows: '
                             'they do not belong together')
        pieces = ['', '', '', ' \u2047 ', *pieces, '<mask>']
        self.pieces = pieces + [''] * (self.vocab_size + len(self.languages) - len(pieces))
        self.to_id = np.arange(len(self.sp)) + 1      # SentencePiece's ids to XLM-R's
        self.to_id[:3] = UNK, BOS, EOS
        self.opens = np.array([p.startswith(SPACE) or '\u3400' <= p[:1] <= '\u9fff' for p in self.pieces])
        self.ascii_stop = np.array([p.endswith(tuple(ASCII_STOPS)) for p in self.pieces])
        self.stop = np.array([p.endswith(tuple(STOPS)) for p in self.pieces]) & ~self.ascii_stop

    def encode(self, text):
        """Ids of a text, or a list of ids for a list of texts, as integer arrays; <s> and </s> are not added."""
        if isinstance(text, str):
            return self.to_id[self.sp.encode(text)]
        encoded = self.sp.encode(text, num_threads=-1)
        ends = [0, *accumulate(map(len, encoded))]
        flat = self.to_id[np.fromiter(chain.from_iterable(encoded), np.int64, ends[-1])]  # one look-up, not one a line
        return [flat[start:end] for start, end in pairwise(ends)]

    def encode_masked(self, text):
        """As `encode` for one text in which <mask> is the token; what follows it goes on there, without a new ▁."""
        first, *parts = text.split('<mask>')
        found = [self.encode(first)]
        for part in parts:
            ids = self.encode(UNKNOWN + part)                             # an <unk>, with unknown ones behind it
            found += [[self.mask], ids[np.argmax(ids == UNK) + (UNK not in self.encode(part[:1])):]]
        return np.concatenate(found)

    def decode(self, ids):
        """The text of ids: <mask> stays visible, the other special tokens and the languages go."""
        return ''.join(self.pieces[i] for i in ids).replace(SPACE, ' ').strip()

    def dress(self, language, *texts):
        """<s> <lang> text </s>, as the model reads it, from a text's ids; between two texts XLM-R has </s> </s>."""
        between = [part for ids in texts[1:] for part in ([EOS, EOS], ids)]
        return np.concatenate([[BOS, self.language_id(language)], texts[0], *between, [EOS]])

    def language_id(self, language):
        if language not in self.languages:
            raise ValueError(f'language {language!r} has no token here; there are: {" ".join(self.languages)}')
        return self.vocab_size + self.languages.index(language)

    def foreign(self, scripts):
        """The ids of pieces that have a letter of none of the scripts, which are named as by `script`.

        Raises ValueError for a script of which the vocabulary has no letter.
        """
        self.check_scripts(scripts)
        return [i for i, piece in enumerate(self.pieces[:self.mask])
                if not {script(character) for character in piece} <= {None, *scripts}]

    def check_scripts(self, scripts):
        """Raises ValueError for a script of which the vocabulary has no letter; it names those that are there."""
        known = Counter(script(character) for piece in self.pieces for character in piece)
        if unknown := sorted(set(scripts) - set(known)):
            there = ' '.join(name for name, _ in known.most_common(12) if name)
            raise ValueError(f'the vocabulary has no letters of {" ".join(unknown)}; it has {there}, ...')

    def sentence_starts(self, ids):
        """ids (n,) -> the positions, 0 among them, where a sentence begins."""
        before, after = ids[:-1], ids[1:]
        starts = self.stop[before] & ~self.stop[after] | self.ascii_stop[before] & self.opens[after]
        return np.concatenate([[0], np.flatnonzero(starts) + 1])

    def coverage(self, text):
        """How well the vocabulary fits a text: (share of tokens that are <unk>, pieces per character)."""
        ids = self.encode(text)
        return float(np.mean(ids == UNK)) if len(ids) else 0.0, len(ids) / max(len(text), 1)


NORMALIZER = sentencepiece.SentencePieceNormalizer(rule_name='nmt_nfkc')


def normalize(text):
    """A text as XLM-R's vocabulary reads it: by SentencePiece's rule nmt_nfkc, with single spaces, none at the ends."""
    # SPACE, or not, as the version has it; the zero-width joiner is a space in XLM-R's file only, which is of 2019
    return ' '.join(NORMALIZER.Normalize(text).replace(SPACE, ' ').replace('\u200d', ' ').split())


def train_sentencepiece(lines, counts, vocab_size, coverage=1.0, seed=1, required=()):
    """A SentencePiece unigram model of XLM-R's kind (NFKC) trained on `lines`, as bytes.

    `counts`: how often each character occurs; the most frequent ones that make up the share `coverage` are all in, and
    those of `required`; the others become <unk>. vocab_size counts XLM-R's <pad> and <mask>; where the lines cannot
    fill it, the model is smaller. Raises ValueError where it cannot hold the characters.
    """
    normal = Counter()
    for character, n in counts.items():
        normal.update({c: n for c in unicodedata.normalize('NFKC', character) if not c.isspace()})
    ranked, total = normal.most_common(), sum(normal.values())
    covered = list(accumulate(n for _, n in ranked))
    kept = ''.join(c for (c, n), before in zip(ranked, [0, *covered])
                   if (before < coverage * total or c in required) and c not in RESERVED)
    drop = {ord(c): ' ' for c in normal if c not in set(kept)}
    # SentencePiece leaves out lines of over 4,192 bytes, so long ones come in parts
    parts = (line[i:i + 1000].translate(drop) for line in lines for i in range(0, len(line), 1000))
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=parts, model_writer=model, vocab_size=vocab_size - 2, hard_vocab_limit=False,
            model_type='unigram', character_coverage=1.0, required_chars=kept, num_threads=4, minloglevel=2,
            normalization_rule_name='nmt_nfkc', input_sentence_size=1_000_000, shuffle_input_sentence=True)
    except RuntimeError as e:
        raise ValueError(f'vocab_size={vocab_size}: SentencePiece cannot train that on this text, which has '
                         f'{len(kept)} different characters: {e}') from e
    return model.getvalue()
