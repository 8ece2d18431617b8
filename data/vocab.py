"""A vocabulary for other languages: keep only what their texts use, or add a script that it cannot read.

    python -m data.vocab report --encoder ENCODER --text bo.txt zh.txt
    python -m data.vocab trim   --encoder ENCODER --text bo.txt zh.txt --out SMALLER
    python -m data.vocab extend --encoder ENCODER --text bo.txt --pieces 8000 --out EXTENDED

ENCODER is a folder of the XLM-R family; what is written, transformers reads too. Needs protobuf.
"""
import argparse
import math
import unicodedata
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import config
from data import UNK
from data.files import read_encoder, read_json, write_encoder
from data.tokenizer import SPACE, Tokenizer, script, train_sentencepiece
from data.tokens import VOCABULARY_CHARACTERS, digest, read_lines

NORMAL = 1                                            # a piece's type where it is no special one
COMMON = 0.999                                        # share of a text whose characters new pieces are made of
INITS = ('subpieces', 'script', 'mean', 'random')


def trim(pieces, counts, min_count=1, size=None, without=()):
    """Which of a SentencePiece model's pieces stay, as sorted indices, given how often each occurs (n,).

    Those that occur min_count times or are among the `size` most frequent, the special ones and all single characters;
    none with letters of the scripts `without` (named as by data.tokenizer.script). The least likely one stays too, as
    the score of <unk> depends on it: so a text of which no piece is dropped is cut as before. Raises
    ValueError where no letter of the texts is in the vocabulary.
    """
    if not any(n and piece.type == NORMAL and any(map(script, piece.piece)) for n, piece in zip(counts, pieces)):
        raise ValueError('the vocabulary can read no letter of these texts; `extend` adds them to it')
    if size is not None:
        min_count = np.sort(counts)[-min(size, len(counts))]
    lowest = min(piece.score for piece in pieces)
    return [i for i, piece in enumerate(pieces) if piece.type != NORMAL
            or (counts[i] >= max(min_count, 1) or len(piece.piece.lstrip(SPACE)) <= 1 or piece.score == lowest)
            and not set(map(script, piece.piece)) & set(without)]


def new_pieces(tokenizer, paths, n, seed=1):
    """At most n [(piece, score)] that tokenizer lacks, of a unigram model of n pieces trained on the texts (where they
    have more than VOCABULARY_CHARACTERS, on lines with about so many).

    All characters that tokenizer lacks are among them. A score is a log probability; where texts of the old and the new
    pieces are mixed in proportion to their numbers, the new ones' is lower by the log of their share, and the old ones'
    hardly changes.
    """
    counts = Counter()
    for path in paths:
        for line in read_lines(path):
            counts.update(line)
    if not any(map(str.split, counts)):
        raise ValueError(f'{" ".join(paths)}: no text in there')
    missing = lacking(tokenizer, set(unicodedata.normalize('NFKC', ''.join(counts))))
    share = VOCABULARY_CHARACTERS / max(counts.total(), 1)
    lines = (line for path in paths for line in read_lines(path) if digest('vocabulary', line) < share * 2**64)
    if n < len(missing):
        raise ValueError(f'pieces={n}: the texts have {len(missing)} characters that the vocabulary lacks; give more')
    trained = proto(train_sentencepiece(lines, counts, n + 5, COMMON, seed, missing))   # 5: XLM-R's special ids
    old = {piece.piece: piece.score for piece in proto(tokenizer.model).pieces}
    shift, lowest = math.log(n / (n + len(old))), min(old.values())
    return [(piece.piece, max(piece.score + shift, lowest)) for piece in trained.pieces
            if piece.type == NORMAL and piece.piece not in old]


def lacking(tokenizer, characters):
    """Those of the characters that tokenizer writes as <unk>."""
    characters = list(characters)
    return {c for c, ids in zip(characters, tokenizer.encode(characters)) if UNK in ids}


def new_rows(pieces, tokenizer, word, init, seed=1):
    """Embeddings (N,C) of new pieces from those of the old (V,C).

    init: `random`, N(0, 0.02²), XLM-R's own; `mean` of all old rows, with noise of a tenth of their spread, so that no
    two are equal (after Hewitt 2021, nlp.stanford.edu/~johnhew/vocab-expansion.html); `script`, the same of the old
    pieces with letters of the same script; `subpieces`, the mean of the old pieces that the piece was cut into (Gee et
    al. 2022, aclanthology.org/2022.emnlp-industry.41). Where there are none, `subpieces` falls back on `script`, and
    that on `mean`.
    """
    generator, old = torch.Generator().manual_seed(seed), word[UNK + 1:tokenizer.mask].float()
    noise = torch.randn(len(pieces), word.shape[1], generator=generator)
    if init == 'random':
        return 0.02 * noise
    scripts, lone = {}, tokenizer.pieces.index(SPACE) if SPACE in tokenizer.pieces else UNK
    for i, piece in enumerate(tokenizer.pieces[UNK + 1:tokenizer.mask]):
        for name in set(map(script, piece)) - {None}:
            scripts.setdefault(name, []).append(i)
    found = {name: old[rows].mean(0) for name, rows in scripts.items()}
    rows = old.mean(0) + 0.1 * old.std(0) * noise
    for i, piece in enumerate(pieces):
        ids = [x for x in tokenizer.encode(piece.replace(SPACE, ' ')) if x not in (UNK, lone)]
        names = [name for name in set(map(script, piece)) if name in found]
        if init == 'subpieces' and ids:
            rows[i] = word[ids].float().mean(0)
        elif init in ('subpieces', 'script') and names:
            rows[i] += torch.stack([found[name] for name in names]).mean(0) - old.mean(0)
    return rows


def proto(model):
    """A SentencePiece file's bytes as an object that can be changed."""
    try:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except ImportError as e:
        raise ValueError(f'data.vocab needs protobuf to write SentencePiece files: pip install protobuf ({e})') from e
    found = ModelProto()
    found.ParseFromString(model)
    if found.trainer_spec.model_type != found.trainer_spec.UNIGRAM:
        raise ValueError('the SentencePiece model is not a unigram one, as the XLM-R family has it')
    return found


def with_pieces(tokenizer, keep, new=()):
    """The SentencePiece file, as bytes, with the old pieces of indices `keep` and new ones [(piece, score)] behind."""
    model = proto(tokenizer.model)
    kept = [model.pieces[i] for i in keep]
    del model.pieces[:]
    model.pieces.extend(kept)
    for piece, score in new:
        model.pieces.add(piece=piece, score=score)
    model.trainer_spec.vocab_size = len(model.pieces)
    return model.SerializeToString()


class Usage:
    """What a tokenizer makes of a file: `characters` {character: n}, `counts` of each id, and, beside another
    tokenizer, `changed`, the pieces of that one that are no longer cut out of the text as they were."""

    def __init__(self, path, tokenizer, before=None):
        self.characters, self.counts = Counter(), np.zeros(tokenizer.vocab_size, np.int64)
        self.changed = self.before = 0
        lines = read_lines(path)
        while chunk := list(islice(lines, 1000)):
            for line, ids in zip(chunk, tokenizer.encode(chunk)):
                self.characters.update(line)
                self.counts += np.bincount(ids, minlength=len(self.counts))
            if before:
                for ours, theirs in zip(*(map(spans, t.sp.encode(chunk, out_type=str)) for t in (tokenizer, before))):
                    self.before += len(theirs)
                    self.changed += len(theirs - ours)
        if not self.counts.sum():
            raise ValueError(f'{path} has no text')


def spans(pieces):
    """Where pieces begin and end in the text that they make up."""
    ends = np.cumsum([0, *map(len, pieces)]).tolist()
    return set(zip(ends, ends[1:]))


def report(paths, tokenizer, before=None):
    """Lines of a table: how the vocabulary fits each file, and the share of the tokens of `before` that it changes."""
    width = max(len(Path(path).name) for path in paths)
    yield (f'{"file":{width}} {"characters":>12} {"tokens":>12} {"tokens/char":>12} {"<unk>":>8} {"missing":>8} '
           f'{"in use":>8}' + (f' {"changed":>8}' if before else ''))
    for path in paths:
        use = Usage(path, tokenizer, before)
        characters, tokens = use.characters.total(), use.counts.sum()
        yield (f'{Path(path).name:{width}} {characters:12,} {tokens:12,} {tokens / characters:12.3f} '
               f'{use.counts[UNK] / tokens:8.2%} {len(lacking(tokenizer, use.characters)):8,} '
               f'{(use.counts > 0).sum() / tokenizer.vocab_size:8.1%}'
               + (f' {use.changed / use.before:8.2%}' if before else ''))
    yield 'missing: different characters that become <unk>; in use: share of the vocabulary'


def main(argv):
    parser = argparse.ArgumentParser('python -m data.vocab', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, about in (('report', 'how a vocabulary fits texts'), ('trim', 'keep the pieces that texts use'),
                        ('extend', 'add pieces that are trained on texts')):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument('--encoder', required=True, help='folder of an encoder')
        command.add_argument('--text', required=True, nargs='+', help='files of text, UTF-8')
        if name == 'report':
            command.add_argument('--before', help='another encoder: show the share of its tokens that change')
            continue
        command.add_argument('--out', required=True, help='folder for the new encoder')
        if name == 'trim':
            limit = command.add_mutually_exclusive_group()
            limit.add_argument('--min_count', type=int, default=1, help='keep pieces that occur so often (1)')
            limit.add_argument('--size', type=int, help='or keep so many, the most frequent')
            command.add_argument('--without', nargs='+', default=(), metavar='SCRIPT',
                                 help='keep no letters of these scripts, such as CJK HANGUL')
        else:
            command.add_argument('--pieces', type=int, required=True, help='how many to train')
            command.add_argument('--init', choices=INITS, default='subpieces', help='embeddings of new pieces')
            command.add_argument('--seed', type=int, default=1)
    args = parser.parse_args(argv)
    folder = Path(args.encoder)
    if args.command == 'report':
        print('\n'.join(report(args.text, Tokenizer(folder), Tokenizer(args.before) if args.before else None)))
        return
    if Path(args.out).exists():
        raise ValueError(f'{args.out} exists; name a new folder')
    if unknown := set(getattr(args, 'without', ())) - {script(c) for piece in Tokenizer(folder).pieces for c in piece}:
        raise ValueError(f'without={" ".join(unknown)}: no letter of the vocabulary is so named; names are like CJK')
    for key in ('min_count', 'size', 'pieces'):
        if getattr(args, key, None) is not None and getattr(args, key) < 1:
            raise ValueError(f'{key}={getattr(args, key)}: give a number above 0')
    sizes, state = read_encoder(folder)
    old, word = Tokenizer(folder, vocab_size=sizes['vocab_size']), state['embeddings.word.weight']
    if args.command == 'trim':
        counts = sum(Usage(path, old).counts for path in args.text)[old.to_id]
        keep, new = trim(proto(old.model).pieces, counts, args.min_count, args.size, args.without), []
    else:
        keep, new = range(len(old.sp)), new_pieces(old, args.text, args.pieces, args.seed)
        print(f'{len(new):,} new pieces: all that such a text yields' if len(new) < 0.9 * args.pieces else
              f'{len(new):,} new pieces')
    rows = [*range(UNK + 1), *(i + 1 for i in keep if i >= UNK), old.mask]

    def with_rows(table, added):
        return torch.cat([table[rows[:-1]], added.to(table.dtype), table[rows[-1:]]])

    added = new_rows([piece for piece, _ in new], old, word, getattr(args, 'init', 'mean'), getattr(args, 'seed', 1))
    state['embeddings.word.weight'] = with_rows(word, added)
    if sizes['mlm_head']:
        bias = state['head.bias']
        state['head.bias'] = with_rows(bias, bias[UNK + 1:old.mask].float().mean().expand(len(new)))
    n_old = sum(t.numel() for t in state.values()) + word.numel() - state['embeddings.word.weight'].numel()
    sizes['vocab_size'] = len(state['embeddings.word.weight'])
    dropout = read_json(folder / 'config.json').get('hidden_dropout_prob', 0.1)
    write_encoder(args.out, {**sizes, 'dropout': dropout}, state, with_pieces(old, keep, new))
    print(f'{args.encoder}: {old.vocab_size:,} ids, {n_old / 1e6:,.1f}M parameters')
    print(f'{args.out}: {sizes["vocab_size"]:,} ids, {sum(t.numel() for t in state.values()) / 1e6:,.1f}M parameters')
    print('\n'.join(report(args.text, Tokenizer(args.out), old)))


if __name__ == '__main__':
    config.run(main)
