"""A vocabulary for other languages: keep only what their texts use, or add a script that it cannot read.

    python -m data.vocab report --encoder ENCODER --text bo.txt zh.txt
    python -m data.vocab trim   --encoder ENCODER --text bo.txt zh.txt --out SMALLER
    python -m data.vocab extend --encoder ENCODER --text bo.txt --pieces 8000 --out EXTENDED

ENCODER is a folder of the XLM-R family; transformers reads what is written, too. trim and extend need protobuf.
"""
import argparse
import math
import unicodedata
from collections import Counter
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
import torch

import config
from data.heldout import digest
from data.languages import script
from data.files import read_lines
from data.tokenizer import SPACE, UNK, Tokenizer
from data.vocabulary import train_sentencepiece
from data.weights import read_encoder, read_json, write_encoder

NORMAL = 1                                            # a piece's type where it is no special one
COMMON = 0.999                                        # share of a text whose characters new pieces are made of
PART = 1000                                           # characters of a line that are drawn together
# New pieces are trained on so many characters of each text: 8,000 pieces of Tibetan take a minute or two.
CHARACTERS = 10_000_000
INITS = ('subpieces', 'script', 'mean', 'random')


def trim(folder, paths, out, min_count=1, size=None, without=()):
    """Writes the encoder of `folder` with the pieces that the texts use to the folder `out`.

    Raises ValueError, FileNotFoundError or OSError and leaves nothing behind.
    """
    sizes, state, tokenizer = read(folder, paths, out)
    tokenizer.check_scripts(without)
    counts = sum(Usage(path, tokenizer).counts for path in paths)[tokenizer.to_id]
    write(folder, paths, out, sizes, state, tokenizer, used(proto(tokenizer).pieces, counts, min_count, size, without))


def extend(folder, paths, out, n_pieces, init='subpieces', seed=1):
    """Writes the encoder of `folder` with at most n_pieces new pieces, trained on the texts, to the folder `out`.

    init: see `new_rows`. The masked-token bias of each is the mean of the old ones. Raises as `trim`.
    """
    sizes, state, tokenizer = read(folder, paths, out)
    new, n_trained = new_pieces(tokenizer, paths, n_pieces, seed)
    if not new:
        raise ValueError(f'the vocabulary has all {n_trained:,} pieces that these texts yield')
    print(f'{len(new):,} new pieces; {n_trained - len(new):,} of the {n_trained:,} trained were there already'
          + (', and such a text yields no more' if n_trained < n_pieces else ''))
    rows = new_rows([piece for piece, _ in new], tokenizer, state['embeddings.word.weight'], init, seed)
    write(folder, paths, out, sizes, state, tokenizer, range(len(tokenizer.sp)), new, rows)


def used(pieces, counts, min_count=1, size=None, without=()):
    """Which of a SentencePiece model's pieces stay, as sorted indices, given how often each occurs (n,).

    Those that occur min_count times or, with `size`, that many of the most frequent; all single characters and special
    pieces; and, as the score of <unk> depends on it, a piece of least score. So a text of which no piece is dropped is
    cut as before. But none with letters of the scripts `without` (named as by data.tokenizer.script), in which case
    texts may be cut otherwise around an <unk>. Raises ValueError where no letter of the texts is left.
    """
    normal = [i for i, piece in enumerate(pieces) if piece.type == NORMAL]
    ranked = sorted(normal, key=lambda i: -counts[i])[:size]
    stay = {i for i in ranked if counts[i] >= min_count} | {min(normal, key=lambda i: pieces[i].score)}
    stay.update(i for i in normal if len(pieces[i].piece.lstrip(SPACE)) <= 1)
    stay = {i for i in stay if not set(map(script, pieces[i].piece)) & set(without)}
    if not any(counts[i] and any(map(script, pieces[i].piece)) for i in stay):
        raise ValueError('no letter of these texts is in the vocabulary, or stays; `extend` adds letters to it')
    return [i for i, piece in enumerate(pieces) if piece.type != NORMAL or i in stay]


def new_pieces(tokenizer, paths, n, seed=1):
    """The pieces [(piece, score)] that tokenizer lacks of a unigram model of n trained on texts, and the model's size.

    It is trained on parts of the lines, of each text as many as have about CHARACTERS, where that has more.
    All characters that tokenizer lacks are among the pieces, but for those SentencePiece reserves. A score is a log
    probability in the text that it was trained on; where texts of old and new pieces are mixed in proportion to the
    numbers of these, the new ones' is lower by the log of the ratio, so that the old languages are cut as before,
    nearly. None is below the least of the old. Raises ValueError for an n that is too small.
    """
    lines, counts = [], Counter()
    for path in paths:
        of_path = Counter()
        for part in parts(path):
            of_path.update(unicodedata.normalize('NFKC', part))
        share = CHARACTERS / max(of_path.total(), 1)
        lines += [part for part in parts(path) if digest('vocabulary', part) < share * 2**64]
        counts += of_path
    try:                                                                                  # 5: XLM-R's special ids
        trained = train_sentencepiece(lines, counts, n + 5, COMMON, seed, lacking(tokenizer, counts))
    except ValueError as e:
        raise ValueError(f'pieces={n}: too few for the {len(counts)} different characters of the texts, or too little '
                         'text') from e
    trained = [piece for piece in proto(Tokenizer(trained)).pieces if piece.type == NORMAL]
    old = {piece.piece: piece.score for piece in proto(tokenizer).pieces}
    new = [piece for piece in trained if piece.piece not in old]
    shift, lowest = min(0, math.log(max(len(new), 1) / len(old))), min(old.values())
    return [(piece.piece, max(piece.score + shift, lowest)) for piece in new], len(trained)


def parts(path):
    """The lines of a text file, long ones in parts."""
    return (line[i:i + PART] for line in read_lines(path) for i in range(0, len(line), PART))


def lacking(tokenizer, characters):
    """Those of the characters that tokenizer writes as <unk>, as a set."""
    characters = list(characters)
    return {c for c, ids in zip(characters, tokenizer.encode(characters)) if UNK in ids}


def new_rows(pieces, tokenizer, word, init, seed=1):
    """Embeddings (N,C) of new pieces from those of the old (V,C).

    init: `random`, N(0, 0.02²), XLM-R's own; `mean` of all old rows (after Hewitt 2021,
    nlp.stanford.edu/~johnhew/vocab-expansion.html); `script`, the mean of the old pieces with letters of the same
    script; `subpieces`, the mean of the old pieces that the piece was cut into (Gee et al. 2022,
    aclanthology.org/2022.emnlp-industry.41). Where one of these is <unk>, `subpieces` falls back on `random`, which is
    the next best (README); `script`, where there are none, on `mean`. To all but `random`, noise of a tenth of the old
    rows' spread is added, so that no two are equal.
    """
    generator, old = torch.Generator().manual_seed(seed), word[UNK + 1:tokenizer.mask].float()
    noise = torch.randn(len(pieces), word.shape[1], generator=generator)
    random = 0.02 * noise
    if init == 'random':
        return random
    rows = 0.1 * old.std(0) * noise
    if init == 'subpieces':
        model = proto(tokenizer)                      # cuts a piece without making it the beginning of a word
        model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = False
        cut = Tokenizer(model.SerializeToString()).encode([piece.replace(SPACE, ' ') for piece in pieces])
        return torch.stack([random[i] if UNK in ids else rows[i] + word[ids].float().mean(0)
                            for i, ids in enumerate(cut)])
    mean, found = old.mean(0), {}
    if init == 'script':
        for i, piece in enumerate(tokenizer.pieces[UNK + 1:tokenizer.mask]):
            for name in set(map(script, piece)) - {None}:
                found.setdefault(name, []).append(i)
        found = {name: old[members].mean(0) for name, members in found.items()}
    for i, piece in enumerate(pieces):
        near = [found[name] for name in set(map(script, piece)) if name in found]
        rows[i] += torch.stack(near).mean(0) if near else mean
    return rows


def proto(tokenizer):
    """The tokenizer's SentencePiece file as an object that can be changed.

    Raises ValueError where protobuf is missing or does not fit sentencepiece, and for a model that is not a
    unigram one, as XLM-R's is.
    """
    try:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except Exception as e:                            # TypeError or protobuf's own, where the two do not fit
        why = config.shorten(' '.join(str(e).split()), 150)
        raise ValueError('data.vocab needs protobuf to write SentencePiece files: pip install -U sentencepiece '
                         f'protobuf ({why})') from e
    found = ModelProto()
    found.ParseFromString(tokenizer.model)
    if found.trainer_spec.model_type != found.trainer_spec.UNIGRAM:
        raise ValueError('the SentencePiece model is not a unigram one, as the XLM-R family has it')
    return found


def read(folder, paths, out):
    """Sizes, tensors and tokenizer of an encoder's folder, after all that can be checked without work."""
    if Path(out).exists() and not (Path(out).is_dir() and not any(Path(out).iterdir())):
        raise ValueError(f'{out} exists; name a new folder')
    if (above := next(p for p in Path(out).absolute().parents if p.exists())).is_file():
        raise ValueError(f'{out} cannot be made, as {above} is a file; name another folder')
    check_texts(paths)
    sizes, state = read_encoder(Path(folder))
    tokenizer = Tokenizer(folder, vocab_size=sizes['vocab_size'])
    proto(tokenizer)
    return sizes, state, tokenizer


def check_texts(paths):
    """Raises FileNotFoundError or ValueError for what is no file of plain text, or an empty one."""
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f'{path} does not exist; give files of text, separated by spaces')
        if path.is_dir() or path.suffix in ('.jsonl', '.json', '.tsv', '.csv'):
            raise ValueError(f'{path} is {"a folder" if path.is_dir() else path.suffix[1:]}; give files of plain text')
        if not any(unicodedata.category(c)[0] not in 'ZC' for line in read_lines(path) for c in line):
            raise ValueError(f'{path} has no text')


def write(folder, paths, out, sizes, state, tokenizer, keep, new=(), added=None):
    """Writes an encoder with the old pieces of indices `keep`, then new ones [(piece, score)] with embeddings (N,C).

    Prints its size beside the old one's, and what it makes of the texts.
    """
    n_before, model = sum(t.numel() for t in state.values()), proto(tokenizer)
    pieces = [model.pieces[i] for i in keep]
    del model.pieces[:]
    model.pieces.extend(pieces)
    for piece, score in new:
        model.pieces.add(piece=piece, score=score)
    model.trainer_spec.vocab_size = len(model.pieces)
    rows = [*range(UNK + 1), *(i + 1 for i in keep if i >= UNK), tokenizer.mask]
    if tokenizer.vocab_size > tokenizer.mask + 1:
        print(f'{tokenizer.vocab_size - tokenizer.mask - 1:,} rows behind <mask> are left out')
    word, bias = state['embeddings.word.weight'], state.get('head.bias')
    added = {'embeddings.word.weight': word[:0] if added is None else added.to(word.dtype)}
    if bias is not None:
        added['head.bias'] = bias[UNK + 1:tokenizer.mask].float().mean().expand(len(new)).to(bias.dtype)
    for name, more in added.items():
        state[name] = torch.cat([state[name][rows[:-1]], more, state[name][rows[-1:]]])
    sizes = {**sizes, 'vocab_size': len(rows) + len(new),
             'dropout': read_json(Path(folder) / 'config.json').get('hidden_dropout_prob', 0.1)}
    write_encoder(out, sizes, state, model.SerializeToString())
    print(f'{folder}: {tokenizer.vocab_size:,} ids, {n_before:,} parameters')
    print(f'{out}: {sizes["vocab_size"]:,} ids, {sum(t.numel() for t in state.values()):,} parameters')
    report(paths, Tokenizer(out), tokenizer)


class Usage:
    """What a tokenizer makes of a file: `characters` {character: n}, `counts` of each id, and, beside another
    tokenizer, `n_changed` of the `n_before` pieces of that one, which are no longer cut out of the text as they were.
    """

    def __init__(self, path, tokenizer, before=None):
        self.characters, self.counts = Counter(), np.zeros(tokenizer.vocab_size, np.int64)
        self.n_changed = self.n_before = 0
        lines = read_lines(path)
        while chunk := list(islice(lines, 1000)):
            for line in chunk:
                self.characters.update(line)
            self.counts += np.bincount(np.concatenate(tokenizer.encode(chunk)), minlength=len(self.counts))
            if before:
                for ours, theirs in zip(*([spans(t.sp, pieces) for pieces in t.sp.encode(chunk, out_type=str)]
                                          for t in (tokenizer, before))):
                    self.n_before += len(theirs)
                    self.n_changed += len(theirs - ours)


def spans(sp, pieces):
    """Where pieces begin and end in the text that they make up, and which are <unk>."""
    ends = [0, *accumulate(map(len, pieces))]
    return set(zip(ends, ends[1:], (i == sp.unk_id() for i in sp.piece_to_id(pieces))))


def report(paths, tokenizer, before=None):
    """Prints a table: how the vocabulary fits each file, and the share of the tokens of `before` that it changes."""
    width = max(4, *(len(str(path)) for path in paths))
    print(f'{"file":{width}} {"characters":>12} {"tokens":>12} {"tokens/char":>12} {"<unk>":>8} {"missing":>8} '
          f'{"in use":>8}' + (f' {"changed":>8}' if before else ''))
    for path in paths:
        use = Usage(path, tokenizer, before)
        characters, tokens = use.characters.total(), max(use.counts.sum(), 1)     # 0 of text such as U+FFFD
        print(f'{str(path):{width}} {characters:12,} {tokens:12,} {tokens / characters:12.3f} '
              f'{use.counts[UNK] / tokens:8.2%} {len(lacking(tokenizer, use.characters)):8,} '
              f'{(use.counts > 0).sum() / tokenizer.vocab_size:8.1%}'
              + (f' {use.n_changed / max(use.n_before, 1):8.2%}' if before else ''))
    print('missing: different characters that become <unk>; in use: share of the vocabulary'
          + ('; changed: share of the other vocabulary\'s tokens that are cut otherwise' if before else ''))


def main(argv):
    parser = argparse.ArgumentParser('python -m data.vocab', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, about in (('report', 'how a vocabulary fits texts'), ('trim', 'keep the pieces that texts use'),
                        ('extend', 'add pieces that are trained on texts')):
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        command.add_argument('--encoder', required=True, type=config.find, help='folder of an encoder')
        command.add_argument('--text', required=True, nargs='+', help='files of plain text, UTF-8')
        if name == 'report':
            command.add_argument('--before', type=config.find,
                                 help='another encoder: show the share of its tokens that change')
            continue
        command.add_argument('--out', required=True, help='folder for the new encoder')
        if name == 'trim':
            limit = command.add_mutually_exclusive_group()
            limit.add_argument('--min_count', type=int, default=1, help='keep pieces that occur so often (1)')
            limit.add_argument('--size', type=int, help='or so many, the most frequent; single characters stay besides')
            command.add_argument('--without', nargs='+', default=(), metavar='SCRIPT',
                                 help='keep no letters of these scripts, such as CJK HANGUL')
        else:
            command.add_argument('--pieces', type=int, required=True, help='how many to train')
            command.add_argument('--init', choices=INITS, default='subpieces', help='their embeddings (subpieces)')
            command.add_argument('--seed', type=int, default=1, help='of the training of pieces, and of noise (1)')
    args = parser.parse_args(argv)
    for key, most in ('min_count', 10**9), ('size', 10**9), ('pieces', 10**6), ('seed', 2**31):
        if (value := getattr(args, key, None)) is not None and not 1 <= value <= most:
            raise ValueError(f'{key}={value}: give a number from 1 to {most:,}')
    if args.command == 'report':
        check_texts(args.text)
        report(args.text, Tokenizer(args.encoder), Tokenizer(args.before) if args.before else None)
    elif args.command == 'trim':
        trim(args.encoder, args.text, args.out, args.min_count, args.size, args.without)
    else:
        extend(args.encoder, args.text, args.out, args.pieces, args.init, args.seed)


if __name__ == '__main__':
    config.run(main)
