"""How well an encoder aligns languages: of N sentences, how many find their translation.

    python tests/tools/retrieval.py ENCODER NTREX --to zh --first 1 --count 200

NTREX has one file a language, `bo.txt`, whose lines translate each other. The nearest sentence is
the one with the highest cosine of the mean hidden states, centred by language. One row for each
layer (0: the embeddings), and `cosine`, the mean cosine of two tokens' states in the --to language.
"""
import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
from config import cli
from data.files import read_lines
from data.hub import fetch
from data.tokenizer import Tokenizer
from model import BOS, EOS, PAD, XLMR


def layer_states(encoder, src):
    """src (B,S) -> the states of all layers (L+1,B,S,C)."""
    mask, x = (src != PAD)[:, None, None], encoder.embeddings(src)
    return torch.stack([x, *(x := layer(x, mask) for layer in encoder.layers)])


def mean_states(encoder, sentences):
    """Lists of ids -> their mean states (L+1,N,C), and the tokens' mean cosine (L+1,)."""
    means, cosines = [], []
    for ids in sentences:
        tokens = F.normalize(x := layer_states(encoder, torch.tensor([ids]))[:, 0], dim=2)
        means.append(x.mean(1))
        n, total = len(ids), tokens.sum(1).square().sum(1)      # of all pairs, n with themselves
        cosines.append((total - n) / (n * (n - 1)))
    return torch.stack(means, 1), torch.stack(cosines).mean(0)


def centred(x):
    """x (L+1,N,C) without its mean over N, of length 1."""
    return F.normalize(x - x.mean(1, keepdim=True), dim=2)


@torch.inference_mode()
def main(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument('encoder')
    parser.add_argument('texts', type=Path)
    parser.add_argument('--to', default='zh')
    parser.add_argument('--first', type=int, default=1, help='number of the first line')
    parser.add_argument('--count', type=int, default=200)
    args = parser.parse_args(argv)
    encoder = XLMR.from_encoder(fetch(args.encoder))
    tokenizer = Tokenizer(encoder.sentencepiece, vocab_size=encoder.config.vocab_size)
    limit, means, cosines = encoder.config.max_length - 2, {}, {}
    for path in sorted(args.texts.glob('*.txt')):
        lines = [*read_lines(path)][args.first - 1:args.first - 1 + args.count]
        if len(lines) < args.count:
            raise ValueError(f'{path} has no {args.count} lines from line {args.first} on')
        ids = [[BOS, *row[:limit], EOS] for row in map(tokenizer.encode, lines)]
        x, cosines[path.stem] = mean_states(encoder, ids)
        means[path.stem] = centred(x)
    if args.to not in means:
        raise ValueError(f'{args.texts} has no {args.to}.txt')
    target = means.pop(args.to)
    print('layer  cosine  ' + '  '.join(f'{name:>5}' for name in means))
    for i, cosine in enumerate(cosines[args.to]):
        right = [(x[i] @ target[i].T).argmax(1) == torch.arange(args.count) for x in means.values()]
        print(f'{i:5}  {cosine:6.2f}  ' + '  '.join(f'{r.float().mean():5.1%}' for r in right))


if __name__ == '__main__':
    cli.run(main)
