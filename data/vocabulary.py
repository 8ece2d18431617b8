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
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from config import cli, runtime
from data.dataset import corpus_module
from data.files import atomic_dir, read_lines, shorten
from data.heldout import digest, splits
from data.languages import script
from data.tokenizer import SPACE, UNK, UNKNOWN, Tokenizer
from model import SWCMConfig, XLMR, read_encoder

LANGUAGE_CHARACTERS = 2_000_000                       # a new vocabulary is trained on, per language
FILE_CHARACTERS = 10_000_000                          # new pieces are trained on, per text file
COMMON = 0.999                                        # of a text's characters: kept in new pieces
PART = 1000                                           # SentencePiece drops lines over 4,192 bytes
NORMAL = 1                                            # type of a piece that is not a special one


def vocabulary_text(dataset, val_fraction, source=None):
    """What a vocabulary is trained on: training lines of a corpus, and {character: n} of all of it.

    Each language has about LANGUAGE_CHARACTERS, so that none crowds out the others.
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
        if split == 'train':
            for language, text in texts.items():
                limit = LANGUAGE_CHARACTERS / size[language] * 2**64
                lines += [x for x in text.splitlines() if digest('vocabulary', x) < limit]
    return lines, counts


def train_sentencepiece(lines, counts, vocab_size, coverage=1.0, seed=1, required=()):
    """A SentencePiece unigram model as XLM-R's (NFKC), trained on `lines`, as bytes.

    counts: {character: n}. The most frequent ones that make up the fraction `coverage` of the text
    are in the model, and those of `required`; others become <unk>. vocab_size counts <pad> and
    <mask>; the model is smaller if the lines cannot fill it. Raises ValueError if it is too small
    for the characters.
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
    parts = (part.translate(spaces) for part in parts_of(lines))
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


def parts_of(lines):
    """The lines, long ones in parts."""
    return (line[i:i + PART] for line in lines for i in range(0, len(line), PART))


def trim(folder, paths, out, min_count=1, size=None, without=()):
    """Writes the encoder of `folder`, with only the pieces that the texts use, to the folder `out`.

    min_count, size, without: see `kept_pieces`. Raises ValueError or OSError, and leaves nothing.
    """
    sizes, state, tokenizer = open_encoder(folder, paths, out)
    tokenizer.check_scripts(without)
    counts = sum(usage(path, tokenizer)[1] for path in paths)[tokenizer.to_id]
    kept = kept_pieces(proto(tokenizer).pieces, counts, min_count, size, without)
    save_encoder(folder, paths, out, sizes, state, tokenizer, kept)


def kept_pieces(pieces, counts, min_count=1, size=None, without=()):
    """Which of a SentencePiece model's pieces stay, as sorted indices; counts (n,): of each piece.

    Pieces stay that occur min_count times (of these the `size` most frequent), special pieces,
    single characters, and one of the lowest score, on which the score of <unk> depends. So a text
    that loses no piece is cut as before. But pieces with letters of the scripts `without` go.
    Raises ValueError if no letter of the texts stays.
    """
    normal = [i for i, piece in enumerate(pieces) if piece.type == NORMAL]
    most_frequent = sorted(normal, key=lambda i: -counts[i])[:size]
    stay = {i for i in most_frequent if counts[i] >= min_count}
    stay.add(min(normal, key=lambda i: pieces[i].score))
    stay.update(i for i in normal if len(pieces[i].piece.lstrip(SPACE)) <= 1)
    stay = {i for i in stay if not set(map(script, pieces[i].piece)) & set(without)}
    if not any(counts[i] and any(map(script, pieces[i].piece)) for i in stay):
        raise ValueError('no letter of these texts is in the vocabulary, or stays; `extend` adds '
                         'letters to it')
    return [i for i, piece in enumerate(pieces) if piece.type != NORMAL or i in stay]


def extend(folder, paths, out, n_pieces, seed=1):
    """Writes the encoder of `folder` with at most n_pieces new pieces, trained on the texts, to
    `out`. Raises as `trim`."""
    sizes, state, tokenizer = open_encoder(folder, paths, out)
    new, n_trained = new_pieces(tokenizer, paths, n_pieces, seed)
    if not new:
        raise ValueError(f'the vocabulary has all {n_trained:,} pieces that these texts yield')
    print(f'{len(new):,} new pieces; {n_trained - len(new):,} of the {n_trained:,} trained were '
          'there already' + (', and such a text yields no more' if n_trained < n_pieces else ''))
    rows = new_rows([piece for piece, _ in new], tokenizer, state['embeddings.word.weight'], seed)
    save_encoder(folder, paths, out, sizes, state, tokenizer, range(len(tokenizer.sp)), new, rows)


def new_pieces(tokenizer, paths, n, seed=1):
    """Trains n pieces on FILE_CHARACTERS of each text. Returns [(piece, score)] of those that
    tokenizer lacks, among them all the texts' characters, and the number trained.

    Raises ValueError if n is too small.
    """
    lines, counts = [], Counter()
    for path in paths:
        of_path = Counter()
        for part in parts_of(read_lines(path)):
            of_path.update(unicodedata.normalize('NFKC', part))
        limit = FILE_CHARACTERS / max(of_path.total(), 1) * 2**64
        lines += [x for x in parts_of(read_lines(path)) if digest('vocabulary', x) < limit]
        counts += of_path
    required = characters_lacking(tokenizer, counts)
    try:                                              # 5: <s> <pad> </s> <unk> <mask>
        model = train_sentencepiece(lines, counts, n + 5, COMMON, seed, required)
    except ValueError as e:
        raise ValueError(f'pieces={n}: too few for the {len(counts)} different characters of the '
                         'texts, or too little text') from e
    trained = [piece for piece in proto(Tokenizer(model)).pieces if piece.type == NORMAL]
    old = {piece.piece: piece.score for piece in proto(tokenizer).pieces}
    new = [piece for piece in trained if piece.piece not in old]
    # A score is a log probability among the pieces it was trained with. Beside the old ones a new
    # piece is less likely; so old languages are cut nearly as before.
    shift, lowest = min(0, math.log(max(len(new), 1) / len(old))), min(old.values())
    return [(piece.piece, max(piece.score + shift, lowest)) for piece in new], len(trained)


def characters_lacking(tokenizer, characters):
    """The set of those characters that tokenizer turns into <unk>."""
    characters = list(characters)
    return {c for c, ids in zip(characters, tokenizer.encode(characters)) if UNK in ids}


def new_rows(pieces, tokenizer, word, seed=1):
    """Embeddings (N,C) of new pieces, from those of the old pieces (V,C).

    Each is the mean of the old pieces that the new one was cut into (Gee et al. 2022,
    aclanthology.org/2022.emnlp-industry.41), with noise of a tenth of the old rows' spread, so that
    no two are equal. Where one of these is <unk> it is random, N(0, 0.02²), as XLM-R's were.
    """
    generator, old = torch.Generator().manual_seed(seed), word[UNK + 1:tokenizer.mask].float()
    noise = torch.randn(len(pieces), word.shape[1], generator=generator)
    rows, spread = 0.02 * noise, 0.1 * old.std(0)
    model = proto(tokenizer)                          # cuts a piece without a space before it
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    cutter = Tokenizer(model.SerializeToString())
    for i, ids in enumerate(cutter.encode([piece.replace(SPACE, ' ') for piece in pieces])):
        if UNK not in ids:
            rows[i] = spread * noise[i] + word[ids].float().mean(0)
    return rows


def proto(tokenizer):
    """The tokenizer's SentencePiece file as an object that can be changed.

    Raises ValueError if protobuf is missing or does not fit sentencepiece, or if this is not a
    unigram model.
    """
    try:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except Exception as e:                            # TypeError and others, if the two do not fit
        why = shorten(' '.join(str(e).split()), 150)
        raise ValueError('data.vocabulary needs protobuf to write SentencePiece files: pip install '
                         f'-U sentencepiece protobuf ({why})') from e
    found = ModelProto()
    found.ParseFromString(tokenizer.model)
    if found.trainer_spec.model_type != found.trainer_spec.UNIGRAM:
        raise ValueError('the SentencePiece model is not a unigram one, as the XLM-R family has it')
    return found


def open_encoder(folder, paths, out):
    """Sizes, tensors and tokenizer of an encoder's folder, after a check of texts and `out`."""
    if Path(out).exists():
        raise ValueError(f'{out} exists; name a new folder')
    check_texts(paths)
    sizes, state, _ = read_encoder(folder)
    tokenizer = Tokenizer(folder, vocab_size=sizes['vocab_size'])
    proto(tokenizer)
    return sizes, state, tokenizer


def check_texts(paths):
    """Raises ValueError for files without text, or not of plain text, and OSError."""
    for path in map(Path, paths):
        if path.suffix in ('.jsonl', '.json', '.tsv', '.csv'):
            raise ValueError(f'{path} is {path.suffix[1:]}; give files of plain text')
        characters = chain.from_iterable(read_lines(path))
        if all(unicodedata.category(c)[0] in 'ZC' for c in characters):
            raise ValueError(f'{path} has no text')


def save_encoder(folder, paths, out, sizes, state, tokenizer, keep, new=(), new_embeddings=None):
    """Writes an encoder with the old pieces of indices `keep`, then new ones [(piece, score)] with
    their embeddings (N,C). Prints its size, the old one's, and what it makes of the texts."""
    n_before, model = sum(t.numel() for t in state.values()), proto(tokenizer)
    pieces = [model.pieces[i] for i in keep]
    del model.pieces[:]
    model.pieces.extend(pieces)
    for piece, piece_score in new:
        model.pieces.add(piece=piece, score=piece_score)
    model.trainer_spec.vocab_size = len(model.pieces)
    rows = [*range(UNK + 1), *(i + 1 for i in keep if i >= UNK)]         # <mask> goes to the end
    if spare := tokenizer.vocab_size - tokenizer.mask - 1:
        print(f'{spare:,} rows behind <mask> are left out')
    word = state['embeddings.word.weight']
    added = {'embeddings.word.weight': word[:0] if new_embeddings is None else new_embeddings}
    if 'head.bias' in state:
        mean = state['head.bias'][UNK + 1:tokenizer.mask].float().mean()
        added['head.bias'] = mean.expand(len(new))    # the masked-token bias of new pieces
    for name, more in added.items():
        old = state[name]
        state[name] = torch.cat([old[rows], more.to(old.dtype), old[tokenizer.mask, None]])
    sizes = {**sizes, 'vocab_size': len(rows) + len(new) + 1}
    encoder = XLMR(SWCMConfig(**sizes), model.SerializeToString())
    encoder.copy_encoder(state, folder)
    with atomic_dir(Path(out)) as temporary:
        encoder.save(temporary)
    n_after = sum(t.numel() for t in state.values())
    print(f'{folder}: {tokenizer.vocab_size:,} ids, {n_before:,} parameters')
    print(f'{out}: {sizes["vocab_size"]:,} ids, {n_after:,} parameters')
    report(paths, Tokenizer(out), tokenizer)


def usage(path, tokenizer):
    """Of a text file {character: n} and, for each id, how often it occurs (V,)."""
    characters, counts = Counter(), np.zeros(tokenizer.vocab_size, np.int64)
    for line in read_lines(path):
        characters.update(line)
        np.add.at(counts, tokenizer.encode(line), 1)
    return characters, counts


def fraction_changed(path, tokenizer, before):
    """The fraction of the pieces of a text file, cut by `before`, that tokenizer cuts otherwise."""
    n = n_changed = 0
    for line in read_lines(path):
        ours, theirs = spans(tokenizer.sp, line), spans(before.sp, line)
        n += len(theirs)
        n_changed += len(theirs - ours)
    return n_changed / max(n, 1)


def spans(sp, line):
    """{(start, end, whether it is <unk>)} of the pieces of a line."""
    pieces = sp.encode(line, out_type=str)
    ends = [0, *accumulate(map(len, pieces))]
    return set(zip(ends, ends[1:], (i == sp.unk_id() for i in sp.piece_to_id(pieces))))


def report(paths, tokenizer, before=None):
    """Prints how a vocabulary fits each file, and the fraction of `before`'s tokens it changes."""
    width = max(4, *(len(str(path)) for path in paths))
    header = ['characters', 'tokens', 'tokens/char', '<unk>', 'missing', 'in use', 'changed']
    header = header if before else header[:-1]
    print(f'{"file":{width}}', *(f'{name:>12}' for name in header))
    for path in paths:
        characters, counts = usage(path, tokenizer)
        n_characters, n_tokens = characters.total(), max(counts.sum(), 1)
        n_missing = len(characters_lacking(tokenizer, characters))
        cells = [f'{n_characters:,}', f'{n_tokens:,}', f'{n_tokens / n_characters:.3f}',
                 f'{counts[UNK] / n_tokens:.2%}', f'{n_missing:,}', f'{np.mean(counts > 0):.1%}']
        if before:
            cells.append(f'{fraction_changed(path, tokenizer, before):.2%}')
        print(f'{str(path):{width}}', *(f'{cell:>12}' for cell in cells))
    print('missing: different characters that become <unk>; in use: fraction of the vocabulary'
          + ("; changed: fraction of the old vocabulary's tokens, cut otherwise" if before else ''))


def main(argv):
    parser = argparse.ArgumentParser('python -m data.vocabulary', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    about = {'report': 'how a vocabulary fits texts', 'trim': 'keep the pieces that texts use',
             'extend': 'add pieces that are trained on texts'}
    options = {name: commands.add_parser(name, help=text, description=text, allow_abbrev=False)
               .add_argument for name, text in about.items()}
    for name, add in options.items():
        add('--encoder', required=True, type=cli.find, help='folder of an encoder')
        add('--text', required=True, nargs='+', help='files of plain text, UTF-8')
        if name != 'report':
            add('--out', required=True, help='folder for the new encoder')
    options['report']('--before', type=cli.find, help='another encoder: show what changes')
    options['trim']('--min_count', type=int, default=1, help='keep pieces that occur so often (1)')
    options['trim']('--size', type=int, help='keep so many of these, and all single characters')
    options['trim']('--without', nargs='+', default=(), metavar='SCRIPT',
                    help='keep no letters of these scripts, such as CJK HANGUL')
    options['extend']('--pieces', type=int, required=True, help='how many to train')
    options['extend']('--seed', type=int, default=1, help='of the pieces and of noise (1)')
    args = parser.parse_args(argv)
    for key in 'min_count', 'size', 'pieces', 'seed':
        if (value := getattr(args, key, None)) is not None and value < 1:
            raise ValueError(f'{key}={value}: give a number from 1 on')
    if args.command == 'report':
        check_texts(args.text)
        report(args.text, Tokenizer(args.encoder), args.before and Tokenizer(args.before))
    elif args.command == 'trim':
        trim(args.encoder, args.text, args.out, args.min_count, args.size, args.without)
    else:
        extend(args.encoder, args.text, args.out, args.pieces, args.seed)


if __name__ == '__main__':
    runtime.run(main)
