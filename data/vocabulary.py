"""Vocabularies: trained on a corpus, trimmed to the pieces that texts use, extended by new pieces.

    python -m data.vocabulary report --encoder ENCODER --text bo.txt zh.txt
    python -m data.vocabulary trim   --encoder ENCODER --text bo.txt zh.txt --out SMALLER
    python -m data.vocabulary extend --encoder ENCODER --text bo.txt --pieces 8000 --out EXTENDED

ENCODER is a folder of the XLM-R family; trim and extend need protobuf, and write another such.
"""
import argparse
import io
import math
import unicodedata
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from config import cli
from data.dataset import corpus_module
from data.files import atomic_dir, read_lines, shorten
from data.heldout import digest, splits
from data.tokenizer import SPACE, UNK, UNKNOWN, Tokenizer
from model import XLMR

LANGUAGE_CHARACTERS = 2_000_000                       # a new vocabulary is trained on, per language
FILE_CHARACTERS = 10_000_000                          # new pieces are trained on, per text file
COMMON = 0.999                                        # of a text's characters: kept in new pieces
PART = 1000                                           # SentencePiece drops lines over 4,192 bytes
NORMAL = 1                                            # type of a piece that is not a special one


def vocabulary_text(dataset, val_fraction, source=None):
    """What a vocabulary is trained on: training lines of a corpus, and {character: n} of all of it.
    Each language has about LANGUAGE_CHARACTERS, so that none crowds out the others."""
    corpus = corpus_module(dataset)
    files = corpus.fetch(source)
    split_of = splits(corpus.documents(files), val_fraction)
    lines, counts, size = [], Counter(), Counter()
    for _, texts in corpus.documents(files):
        for language, text in texts.items():
            counts.update(text)
            size[language] += len(text)
    for key, texts in corpus.documents(files):
        split, texts = split_of(key, texts)
        for language, text in texts.items() if split == 'train' else ():
            limit = LANGUAGE_CHARACTERS / size[language] * 2**64
            lines += [x for x in text.splitlines() if digest('vocabulary', x) < limit]
    return lines, counts


def train_sentencepiece(lines, counts, vocab_size, coverage=1.0, seed=1, required=()):
    """A SentencePiece unigram model as XLM-R's (NFKC), trained on `lines`, as bytes.

    counts: {character: n}. The most frequent ones that make up the fraction `coverage` of the text
    are in the model, and those of `required`; others become <unk>. vocab_size counts <pad> and
    <mask>, and is an upper bound. Raises ValueError if it is too small for the characters.
    """
    normal = Counter()
    for character, n in counts.items():
        normal.update({c: n for c in unicodedata.normalize('NFKC', character) if not c.isspace()})
    enough, n_before, kept = coverage * normal.total(), 0, ''
    for character, n in normal.most_common():
        if (n_before < enough or character in required) and character not in '\0' + UNKNOWN:
            kept += character
        n_before += n
    spaces = dict.fromkeys(map(ord, normal.keys() - set(kept)), ' ')
    parts, model = (part.translate(spaces) for part in parts_of(lines)), io.BytesIO()
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


def parts_of(lines):
    """The lines, long ones in parts."""
    return (line[i:i + PART] for line in lines for i in range(0, len(line), PART))


def trim(encoder, tokenizer, paths):
    """The encoder with only the pieces that the texts use, which are cut as before. Special pieces
    and single characters stay, and one of the lowest score, on which that of <unk> depends."""
    counts = sum(usage(path, tokenizer)[1] for path in paths)[tokenizer.to_id]
    pieces = proto(tokenizer).pieces
    normal = [i for i, piece in enumerate(pieces) if piece.type == NORMAL]
    gone = {i for i in normal if not counts[i] and len(pieces[i].piece.lstrip(SPACE)) > 1}
    gone.discard(min(normal, key=lambda i: pieces[i].score))
    kept = [i for i in range(len(pieces)) if i not in gone]
    return with_pieces(encoder, tokenizer, kept, [], torch.empty(0, encoder.config.n_embd))


def extend(encoder, tokenizer, paths, n_pieces):
    """The encoder with those of n_pieces pieces, trained on the texts, that it lacks."""
    new = new_pieces(tokenizer, paths, n_pieces)
    rows = new_rows([piece for piece, _ in new], tokenizer, encoder.embeddings.word.weight.detach())
    return with_pieces(encoder, tokenizer, range(len(tokenizer.sp)), new, rows)


def new_pieces(tokenizer, paths, n):
    """Trains n pieces on FILE_CHARACTERS of each text. Returns [(piece, score)] of those that
    tokenizer lacks, among them all the texts' characters. Raises ValueError if n is too small."""
    lines, counts = [], Counter()
    for path in paths:
        of_path = Counter()
        for part in parts_of(read_lines(path)):
            of_path.update(unicodedata.normalize('NFKC', part))
        limit = FILE_CHARACTERS / max(of_path.total(), 1) * 2**64
        lines += [x for x in parts_of(read_lines(path)) if digest('vocabulary', x) < limit]
        counts += of_path
    required = characters_lacking(tokenizer, counts)  # 5: <s> <pad> </s> <unk> <mask>
    model = train_sentencepiece(lines, counts, n + 5, COMMON, required=required)
    trained = [piece for piece in proto(Tokenizer(model)).pieces if piece.type == NORMAL]
    old = {piece.piece: piece.score for piece in proto(tokenizer).pieces}
    new = [piece for piece in trained if piece.piece not in old]
    # Scores are log probabilities. With lower ones for new pieces old text is cut nearly as before
    shift, lowest = min(0, math.log(max(len(new), 1) / len(old))), min(old.values())
    return [(piece.piece, max(piece.score + shift, lowest)) for piece in new]


def characters_lacking(tokenizer, characters):
    """The set of those characters that tokenizer turns into <unk>."""
    characters = list(characters)
    return {c for c, ids in zip(characters, tokenizer.encode(characters)) if UNK in ids}


def new_rows(pieces, tokenizer, word):
    """Embeddings (N,C) of new pieces, from those of the old pieces (V,C).

    Each is the mean of the old pieces that the new one was cut into (Gee et al. 2022,
    aclanthology.org/2022.emnlp-industry.41), with noise of a tenth of the old rows' spread, so that
    no two are equal. Where one of these is <unk> it is random, N(0, 0.02²), as XLM-R's were.
    """
    noise = torch.randn(len(pieces), word.shape[1], generator=torch.Generator().manual_seed(1))
    rows, spread = 0.02 * noise, 0.1 * word[UNK + 1:tokenizer.mask].std(0)
    model = proto(tokenizer)                          # cuts a piece without a space before it
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    cutter = Tokenizer(model.SerializeToString())
    for i, ids in enumerate(cutter.encode([piece.replace(SPACE, ' ') for piece in pieces])):
        if UNK not in ids:
            rows[i] = spread * noise[i] + word[ids].mean(0)
    return rows


def with_pieces(encoder, tokenizer, kept, new, rows):
    """The encoder with the old pieces of indices `kept`, then new ones [(piece, score)] with their
    embeddings `rows` (N,C)."""
    model, state = proto(tokenizer), dict(encoder.named_parameters())
    pieces = [model.pieces[i] for i in kept]
    del model.pieces[:]
    model.pieces.extend(pieces)
    for piece, piece_score in new:
        model.pieces.add(piece=piece, score=piece_score)
    model.trainer_spec.vocab_size = len(model.pieces)
    ids, mask = [*range(UNK + 1), *(i + 1 for i in kept if i >= UNK)], tokenizer.mask
    bias = state['head.bias'][UNK + 1:mask].mean().expand(len(new))
    for name, added in ('embeddings.word.weight', rows), ('head.bias', bias):
        state[name] = torch.cat([state[name][ids], added, state[name][mask, None]])
    config = replace(encoder.config, vocab_size=len(ids) + len(new) + 1)
    changed = XLMR(config, model.SerializeToString())
    changed.copy_encoder(state, 'the encoder')
    return changed


def proto(tokenizer):
    """The tokenizer's SentencePiece file as an object that can be changed. Raises ValueError if
    protobuf is missing or does not fit sentencepiece."""
    try:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except Exception as e:                            # TypeError and others, if the two do not fit
        why = shorten(' '.join(str(e).split()), 150)
        raise ValueError('data.vocabulary needs protobuf: pip install -U sentencepiece protobuf '
                         f'({why})') from e
    return ModelProto.FromString(tokenizer.model)


def check_texts(paths):
    """Raises ValueError for files without text, or not of plain text, and OSError."""
    for path in map(Path, paths):
        if path.suffix in ('.jsonl', '.json', '.tsv', '.csv'):
            raise ValueError(f'{path} is {path.suffix[1:]}; give files of plain text')
        characters = chain.from_iterable(read_lines(path))
        if all(unicodedata.category(c)[0] in 'ZC' for c in characters):
            raise ValueError(f'{path} has no text')


def usage(path, tokenizer):
    """Of a text file {character: n}, and how often each id occurs (V,)."""
    characters, counts = Counter(), np.zeros(tokenizer.vocab_size, np.int64)
    for line in read_lines(path):
        characters.update(line)
        np.add.at(counts, tokenizer.encode(line), 1)
    return characters, counts


def report(paths, tokenizer):
    """Prints how a vocabulary fits each file."""
    width = max(4, *(len(str(path)) for path in paths))
    header = 'characters', 'tokens', 'tokens/character', '<unk> tokens', '<unk> characters'
    print(f'{"file":{width}}', *(f'{name:>16}' for name in header))
    for path in paths:
        characters, counts = usage(path, tokenizer)
        n, n_tokens = characters.total(), max(counts.sum(), 1)
        n_missing = len(characters_lacking(tokenizer, characters))
        print(f'{path:{width}} {n:16,} {n_tokens:16,} {n_tokens / n:16.3f} '
              f'{counts[UNK] / n_tokens:16.2%} {n_missing:16,}')


def main(argv):
    parser = argparse.ArgumentParser('python -m data.vocabulary', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('command', choices=('report', 'trim', 'extend'))
    parser.add_argument('--encoder', required=True, type=cli.find, help='folder of an encoder')
    parser.add_argument('--text', required=True, nargs='+', help='files of plain text, UTF-8')
    parser.add_argument('--out', help='folder for the new encoder')
    parser.add_argument('--pieces', type=int, default=8000, help='for extend, to train (8000)')
    args = parser.parse_args(argv)
    check_texts(args.text)
    if args.command == 'report':
        return report(args.text, Tokenizer(args.encoder))
    if not args.out or Path(args.out).exists():
        raise ValueError(f'out={args.out}: name a new folder')
    encoder = XLMR.from_encoder(args.encoder)
    tokenizer = Tokenizer(encoder.sentencepiece, vocab_size=encoder.config.vocab_size)
    changed = (trim(encoder, tokenizer, args.text) if args.command == 'trim' else
               extend(encoder, tokenizer, args.text, args.pieces))
    with atomic_dir(Path(args.out)) as temporary:
        changed.save(temporary)
    print(f'{args.encoder}: {encoder.config.vocab_size:,} ids; '
          f'{args.out}: {changed.config.vocab_size:,} ids')
    report(args.text, Tokenizer(args.out))


if __name__ == '__main__':
    cli.run(main)
