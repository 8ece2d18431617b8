"""Training a SentencePiece vocabulary of XLM-R's kind on a corpus."""
import io
import unicodedata
from collections import Counter
from itertools import accumulate

import sentencepiece

from data.dataset import corpus_module
from data.heldout import digest, splits
from data.tokenizer import UNKNOWN

MAX_CHARACTERS = 2_000_000        # of a language, on which a vocabulary is trained
RESERVED = '\0' + UNKNOWN         # what SentencePiece cannot have in a vocabulary


def vocabulary_text(dataset, val_fraction, source=None):
    """What a vocabulary is trained on: (lines, Counter of the characters of the whole corpus).

    The lines are training text, about MAX_CHARACTERS of each language where there are more, so that
    no language crowds out the others.
    """
    corpus = corpus_module(dataset)
    files = corpus.fetch(source)
    split_of = splits(corpus.documents(files), val_fraction, needed=True)
    lines, counts, size = [], Counter(), Counter()
    for _, texts in corpus.documents(files):
        for language, text in texts.items():
            counts.update(text)
            size[language] += len(text)
    for key, texts in corpus.documents(files):
        split, texts = split_of(key, texts)
        for language, text in texts.items() if split == 'train' else ():
            lines += [line for line in text.splitlines()
                      if digest('vocabulary', line) < MAX_CHARACTERS / size[language] * 2**64]
    return lines, counts


def train_sentencepiece(lines, counts, vocab_size, coverage=1.0, seed=1, required=()):
    """A SentencePiece unigram model of XLM-R's kind (NFKC) trained on `lines`, as bytes.

    `counts`: how often each character occurs; the most frequent ones that make up the fraction
    `coverage` are all in, and those of `required`; the others become <unk>. vocab_size counts
    XLM-R's <pad> and <mask>; where the lines cannot fill it, the model is smaller. Raises
    ValueError where it cannot hold the characters.
    """
    normal = Counter()
    for character, n in counts.items():
        for c in unicodedata.normalize('NFKC', character):
            if not c.isspace():
                normal[c] += n
    ranked = normal.most_common()
    before = [0, *accumulate(n for _, n in ranked)]       # occurrences of more frequent characters
    kept = ''.join(c for (c, _), n_before in zip(ranked, before)
                   if (n_before < coverage * normal.total() or c in required) and c not in RESERVED)
    to_space = {ord(c): ' ' for c in set(normal) - set(kept)}
    # SentencePiece leaves out lines of over 4,192 bytes, so long ones come in parts
    parts = (line[i:i + 1000].translate(to_space)
             for line in lines for i in range(0, len(line), 1000))
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=parts, model_writer=model, vocab_size=vocab_size - 2,
            hard_vocab_limit=False, model_type='unigram', character_coverage=1.0,
            required_chars=kept, num_threads=4, minloglevel=2, normalization_rule_name='nmt_nfkc',
            input_sentence_size=1_000_000, shuffle_input_sentence=True)
    except RuntimeError as e:
        raise ValueError(f'vocab_size={vocab_size}: SentencePiece cannot train that on this text, '
                         f'which has {len(kept)} different characters: {e}') from e
    return model.getvalue()
