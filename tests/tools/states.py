"""What reaches the last layer of a new decoder: how its tokens' states differ, layer by layer.

    python tests/tools/states.py config/ablation/copy.py --data_from=MONO,PAIRS  # a run's arguments

`cosine`: the mean cosine of two tokens' states; near 1 if all are alike. `identity`: the fraction
of the states' variance between different tokens, not between occurrences of one (eta squared, of
tokens that occur at least four times). Target sides of held-out pairs; layer 0: the embeddings.
"""
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
import train
from config import Train, cli
from data.batches import evenly_spaced
from data.dataset import prepare
from data.tasks import tasks
from model import PAD

N = 60                                                          # pairs of each direction


def layer_states(model, src, tgt):
    """src (1,S), tgt (1,T) -> the states of the decoder's layers (L+1,T,C)."""
    memory, mask = model.encoder.encode(src), (src != PAD)[:, None, None]
    x = model.encoder.embeddings(tgt)
    return torch.cat([x, *(x := layer(x, memory, mask) for layer in model.decoder)])


def cosine(x):
    """The mean cosine of two rows of x (N,C)."""
    n, total = len(x), F.normalize(x).sum(0).square().sum()     # of all pairs, n with themselves
    return ((total - n) / (n * (n - 1))).item()


def identity(x, ids):
    """The fraction of the variance of x (N,C) between the groups of equal ids (N,)."""
    _, group, size = ids.unique(return_inverse=True, return_counts=True)
    x, group = x[size[group] >= 4], group[size[group] >= 4]
    x = x - x.mean(0)
    means = torch.zeros(len(size), x.shape[1]).index_add_(0, group, x) / size[:, None]
    return (means[group].square().sum() / x.square().sum()).item()


@torch.inference_mode()
def main(argv):
    cfg = cli.load(Train, argv)
    model, tokenizer = train.build(cfg, None)
    text = prepare(cfg.dataset, tokenizer, cfg.block_size, cfg.val_fraction, cfg.data_from)
    states, ids = [], []
    for task in tasks(text, 'val', tokenizer, cfg):
        for i in evenly_spaced(len(task), N) if task.kind == 'mt' else ():
            src, tgt = (torch.tensor(side)[None] for side in task.val_example(i))
            states.append(layer_states(model, src, tgt)[:, 2:-1])
            ids.append(tgt[0, 2:-1])                            # no special tokens
    if not ids:
        raise ValueError('the corpus has no held-out pair for these settings')
    print('layer  cosine  identity')
    for i, x in enumerate(torch.cat(states, 1)):
        print(f'{i:5}  {cosine(x):6.2f}  {identity(x, torch.cat(ids)):8.2f}')


if __name__ == '__main__':
    cli.run(main)
