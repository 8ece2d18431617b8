"""Trims an encoder to the pieces that texts use and to its first layers, or adds pieces.

    python -m data.vocabulary report --encoder ENCODER --text MY_TEXT
    python -m data.vocabulary trim   --encoder ENCODER --text bo.txt,zh.txt --layers 6 --out SMALLER
    python -m data.vocabulary extend --encoder ENCODER --text bo.txt --pieces 8000 --out EXTENDED

ENCODER is a folder of the XLM-R family, or its name on the hub (data/hub.py). `report` shows how
its vocabulary fits, as training does; trim and extend write another such folder, and need protobuf.
"""
import argparse
import io
import math
import unicodedata
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import sentencepiece
import torch

from config import cli
from data.dataset import prepare, report
from data.files import atomic_dir, read_lines
from data.hub import fetch
from data.tokenizer import SPACE, UNK, UNKNOWN, Tokenizer, normalize
from model import XLMR


def used_pieces(tokenizer, paths, n):
    """The indices of the pieces that the texts use, special pieces, single characters, and a piece
    with the lowest score, as the score of <unk> depends on it. With n: the n pieces with the
    largest mean share of the texts, and only the texts' characters. ValueError for no text."""
    shares, characters = Counter(), {''}
    for path in paths:
        counts = Counter()
        for line in read_lines(path):
            counts.update(tokenizer.sp.encode(line))
            characters.update(normalize(line))
        shares.update({i: count / counts.total() for i, count in counts.items()})
    if not shares:
        raise ValueError(f'{", ".join(paths)}: there is no text')
    used = {i for i, _ in shares.most_common(n)}
    pieces = proto(tokenizer).pieces
    normal = [i for i, piece in enumerate(pieces) if piece.type == piece.NORMAL]
    lowest = min(normal, key=lambda i: pieces[i].score)
    letters = {i: pieces[i].piece.lstrip(SPACE) for i in normal}
    single = {i for i in normal if len(letters[i]) < 2 and (n is None or letters[i] in characters)}
    gone = {*normal} - used - single - {lowest}
    return [i for i in range(len(pieces)) if i not in gone]


def new_pieces(tokenizer, paths, n):
    """Trains n pieces on texts. Returns [(piece, score)] of those that tokenizer lacks, including
    all characters that are <unk> to it. Raises ValueError if n is too small."""
    characters = {c for part in read_parts(paths) for c in unicodedata.normalize('NFKC', part)}
    unknown = {c for c in characters if not c.isspace() and UNK in tokenizer.encode(c)}
    model = train_sentencepiece(read_parts(paths), unknown - {'\0', UNKNOWN}, n)
    old = {piece.piece: piece.score for piece in proto(tokenizer).pieces}
    new = [piece for piece in proto(Tokenizer(model)).pieces
           if piece.type == piece.NORMAL and piece.piece not in old]
    # Scores are log probabilities. Lower ones for new pieces hardly change how old text is cut
    shift, lowest = min(0, math.log(max(len(new), 1) / len(old))), min(old.values())
    return [(piece.piece, max(piece.score + shift, lowest)) for piece in new]


def read_parts(paths):
    """The lines of text files, long ones in parts: SentencePiece drops lines over 4,192 bytes."""
    for line in chain.from_iterable(map(read_lines, paths)):
        yield from (line[i:i + 500] for i in range(0, len(line), 500))


def train_sentencepiece(lines, characters, n):
    """The bytes of a SentencePiece model like XLM-R's, trained on 100,000 of the lines: at most n
    pieces besides <unk> <s> </s>. These include `characters`, and others are 99.9 % of the text.
    Raises ValueError if n is too small for them."""
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(1)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=n + 3,
            hard_vocab_limit=False, input_sentence_size=100_000, character_coverage=0.999,
            required_chars=''.join(sorted(characters)), normalization_rule_name='nmt_nfkc',
            num_threads=4, minloglevel=2)
    except RuntimeError as e:
        raise ValueError(f'--pieces={n}: too few for this text, or it is empty ({e})') from e
    return model.getvalue()


def new_rows(pieces, tokenizer, word):
    """Embeddings (N,C) of new pieces, from those of the old pieces (V,C).

    Each is the mean of the old pieces that it was cut into (Gee et al., EMNLP 2022), with a tenth
    of the old rows' spread as noise, so that no two are equal. If one of these is <unk>, the row is
    random, N(0, 0.02²), as XLM-R's rows were at first."""
    noise = torch.randn(len(pieces), word.shape[1], generator=torch.Generator().manual_seed(1))
    rows, spread = 0.02 * noise, 0.1 * word[UNK + 1:tokenizer.mask].std(0)
    model = proto(tokenizer)                          # adds no space before a piece
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    cutter = Tokenizer(model.SerializeToString())
    for i, piece in enumerate(pieces):
        ids = cutter.encode(piece.replace(SPACE, ' '))
        if UNK not in ids:
            rows[i] = spread * noise[i] + word[ids].mean(0)
    return rows


def keep_layers(encoder, n):
    """Removes all but the first n layers."""
    if not 0 < n <= encoder.config.n_layer:
        raise ValueError(f'--layers={n}: the encoder has {encoder.config.n_layer} layers')
    del encoder.layers[n:]
    encoder.config.n_layer = n


def with_pieces(encoder, tokenizer, kept, new):
    """The encoder with the old pieces at indices `kept`, then new ones [(piece, score)]."""
    model, state = proto(tokenizer), dict(encoder.named_parameters())
    pieces = [model.pieces[i] for i in kept]
    del model.pieces[:]
    model.pieces.extend(pieces)
    for piece, score in new:
        model.pieces.add(piece=piece, score=score)
    model.trainer_spec.vocab_size = len(model.pieces)
    ids, mask = [*range(UNK + 1), *(i + 1 for i in kept if i >= UNK)], tokenizer.mask
    word, bias = state['embeddings.word.weight'].detach(), state['head.bias']
    rows = new_rows([piece for piece, _ in new], tokenizer, word)
    bias_of_new = bias[UNK + 1:mask].mean().expand(len(new))
    state['embeddings.word.weight'] = torch.cat([word[ids], rows, word[mask, None]])
    state['head.bias'] = torch.cat([bias[ids], bias_of_new, bias[mask, None]])
    config = replace(encoder.config, vocab_size=len(ids) + len(new) + 1)
    changed = XLMR(config, model.SerializeToString())
    changed.copy_encoder(state, 'the encoder')
    return changed


def show(name, encoder):
    print(f'{name}: {encoder.config.vocab_size:,} ids, {encoder.config.n_layer} layers')


def proto(tokenizer):
    """The tokenizer's SentencePiece model as an editable object. ValueError without protobuf."""
    try:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except Exception as e:                            # TypeError etc., if versions do not match
        raise ValueError('this needs protobuf: pip install -U sentencepiece protobuf') from e
    return ModelProto.FromString(tokenizer.model)


def main(argv):
    parser = argparse.ArgumentParser('python -m data.vocabulary')
    parser.add_argument('command', choices=('report', 'trim', 'extend'))
    parser.add_argument('--encoder', required=True, help='folder of an encoder, or its name')
    parser.add_argument('--text', required=True, help='UTF-8 files, separated by commas')
    parser.add_argument('--out', help='folder for the new encoder')
    parser.add_argument('--pieces', type=int, help='for extend, to train (8000); for trim, the '
                        "commonest to keep, besides the texts' characters (all that are used)")
    parser.add_argument('--layers', type=int, help='for trim, the first ones to keep (all)')
    args = parser.parse_args(argv)
    if args.pieces is not None and args.pieces < 1:
        raise ValueError(f'--pieces={args.pieces}: expected at least 1')
    if args.layers is not None and args.command != 'trim':
        raise ValueError(f'--layers={args.layers}: only trim removes layers')
    if args.command == 'report':
        tokenizer = Tokenizer(fetch(args.encoder))
        return report(prepare('text', tokenizer, 256, 0.1, args.text))
    texts = list(filter(None, args.text.split(',')))
    if any(path.endswith(('.jsonl', '.tsv')) or Path(path).is_dir() for path in texts):
        raise ValueError(f'text={args.text}: give files of plain text')
    if not args.out or Path(args.out).exists():
        raise ValueError(f'out={args.out}: name a new folder')
    encoder = XLMR.from_encoder(fetch(args.encoder))
    show(args.encoder, encoder)
    tokenizer = Tokenizer(encoder.sentencepiece, vocab_size=encoder.config.vocab_size)
    if args.command == 'trim':
        if args.layers is not None:
            keep_layers(encoder, args.layers)
        kept = used_pieces(tokenizer, texts, args.pieces)
        changed = with_pieces(encoder, tokenizer, kept, [])
    else:
        new = new_pieces(tokenizer, texts, args.pieces or 8000)
        changed = with_pieces(encoder, tokenizer, range(len(tokenizer.sp)), new)
    with atomic_dir(Path(args.out)) as temporary:
        changed.save(temporary)
    show(args.out, changed)


if __name__ == '__main__':
    cli.run(main)
