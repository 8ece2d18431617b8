"""Batches: batch k is a function of the settings and k alone, so that resume and worker count change nothing.

Examples of all tasks and languages are drawn in pools of `POOL` batches. A pool is parted into batches of like
lengths, of `batch_tokens` tokens on average, source and target together, without the padding, which is 2 to 11 % more;
a batch of the longest examples may have nearly twice as many. The batches are shuffled.
"""

import numpy as np

from data import BOS, EOS, PAD
from data.noise import infill, mask_tokens, permute_sentences
from data.tokens import SPECIALS, open_streams

# Batches planned together, a power of two. 256 leave 8 % padding in mixtures, where 128 leave up to 11, but batches of
# examples more alike are learned worse: config/tibetan.py then ends at 4.85 and 4.88 nats (two seeds) instead of 4.69.
POOL = 128


class Task:
    """One kind of example: denoising a language, translating in one direction, or mlm (masked tokens).

    `example(i, rng)` returns source and target ids, with their special tokens; `lengths` (2,n) foretell their lengths.
    """

    def __init__(self, kind, stream, source, target, tokenizer, cfg):
        self.name = f'{kind} {source}' if source == target else f'{kind} {source}-{target}'
        self.kind, self.stream, self.source, self.target = kind, stream, source, target
        self.tokenizer, self.cfg = tokenizer, cfg
        if kind == 'mt':
            self.first = int(source > target)         # segments 2i, 2i + 1 are in the order of the languages' names
            of_source, of_target = stream.lengths[self.first::2], stream.lengths[1 - self.first::2]
        else:
            of_source = of_target = stream.lengths
            if kind == 'dae':                         # a span becomes one token
                of_source = (of_source * (1 - cfg.mask_ratio + cfg.mask_ratio / cfg.span_length)).astype(int)
        self.lengths = np.stack([of_source, of_target]) + SPECIALS

    def __len__(self):
        return self.lengths.shape[1]

    def example(self, i, rng):
        tok, cfg = self.tokenizer, self.cfg
        if self.kind == 'mt':
            source, target = self.stream[2 * i + self.first], self.stream[2 * i + 1 - self.first]
            return tok.dress(self.source, source), tok.dress(self.target, target)
        ids = self.stream[i]
        if self.kind == 'mlm':
            noisy, chosen = mask_tokens(ids, tok.mask, cfg.mlm_ratio, EOS + 2, rng)
            dressed = np.concatenate([[BOS], noisy, [EOS]])
            return dressed, np.concatenate([[PAD], np.where(chosen, ids, PAD), [PAD]])
        noisy = permute_sentences(ids, tok.sentence_starts(ids), rng) if cfg.permute_sentences else ids
        noisy = infill(noisy, tok.mask, cfg.mask_ratio, cfg.span_length, rng)
        return tok.dress(self.source, noisy), tok.dress(self.target, ids)

    def describe(self, examples):
        """A line that says where these examples stand."""
        segments = ' '.join(f'{2 * i}+{2 * i + 1}' if self.kind == 'mt' else str(i) for i in sorted(examples))
        return f'{self.name}, segments {segments} of {self.stream.where[0]}'

    def reference(self, i):
        """The translation of held-out pair i as text: what the model may have no tokens for is in it."""
        return self.stream.texts[2 * i + 1 - self.first]

    def val_example(self, i):
        """As `example`, with the noise that evaluation gives to i in all runs, whatever their seed."""
        return self.example(i, np.random.default_rng((4, int(i))))


def tasks(folder, split, tokenizer, cfg):
    """The tasks that cfg asks for, on the streams of a prepared folder whose languages the tokenizer has.

    Raises ValueError when none is left, or when a language has no text to train on.
    """
    found, streams = [], open_streams(folder, split)
    there = sorted({language for name in streams for language in name.split('-')})
    if split == 'train' and (missing := [language for language in cfg.languages if language not in there]):
        raise ValueError(f'languages={",".join(cfg.languages)}: the corpus has no text in {" ".join(missing)}, or all '
                         f'is held out (--val_fraction); it has {" ".join(there) or "none"}')
    for name, stream in streams.items():
        languages = name.split('-')
        if not set(languages) <= set(cfg.languages):
            continue
        if len(languages) == 2 and cfg.objective == 'swcm' and cfg.mt_share > 0:
            a, b = languages
            found += [Task('mt', stream, a, b, tokenizer, cfg), Task('mt', stream, b, a, tokenizer, cfg)]
        elif len(languages) == 1 and (cfg.objective == 'mlm' or cfg.mt_share < 1):
            found.append(Task('mlm' if cfg.objective == 'mlm' else 'dae', stream, name, name, tokenizer, cfg))
    if not found:
        raise ValueError(f'languages={",".join(cfg.languages)}, objective={cfg.objective}, mt_share={cfg.mt_share}: '
                         f'the corpus has no {split} text for these; it has {" ".join(streams) or "none"}. A larger '
                         '--val_fraction holds more out')
    return found


def shares(tasks, mt_share, alpha):
    """The probability of each task: p ~ n^alpha of its segments (XLM, arXiv 1901.07291, section 3.1) within a kind.

    Translation has mt_share of the examples; where only one kind is there, it has all.
    """
    is_mt = np.array([t.kind == 'mt' for t in tasks])
    p = np.array([len(t) for t in tasks], float) ** alpha
    for kind, share in ((is_mt, mt_share), (~is_mt, 1 - mt_share)):
        if kind.any() and not kind.all():
            p[kind] *= share / p[kind].sum()
    return p / p.sum()


class Batches:
    """`batches[k]` -> (src (B,S), tgt (B,T)), int64 arrays padded with 1, for any k from 0."""

    def __init__(self, tasks, p, cfg):
        self.tasks, self.p, self.cfg = tasks, p, cfg  # p: the probability of each task
        tokens = sum(p * t.lengths.sum(0).mean() for p, t in zip(self.p, tasks))      # of an example, on average
        self.pool_size = max(POOL + len(tasks), round(POOL * cfg.batch_tokens / tokens))
        self.orders, self.planned = {}, (None, None)  # what was asked for last

    def order(self, t, epoch):
        """The examples of task t in the order of an epoch."""
        if self.orders.get(t, (None,))[0] != epoch:
            rng = np.random.default_rng((self.cfg.seed, 1, t, epoch))
            self.orders[t] = epoch, rng.permutation(len(self.tasks[t]))
        return self.orders[t][1]

    def plan(self, pool):
        """The POOL batches of a pool: arrays (n,2) of task and example."""
        if self.planned[0] != pool:
            self.planned = pool, self.new_plan(pool)
        return self.planned[1]

    def new_plan(self, pool):
        chosen = []
        for t, p in enumerate(self.p):                # task t has had pool * pool_size * p examples before
            first, last = (int(x * self.pool_size * p) for x in (pool, pool + 1))
            n = len(self.tasks[t])
            chosen += [(t, self.order(t, i // n)[i % n]) for i in range(first, last)]
        chosen = np.array(chosen)                                                     # (n,2)
        lengths = np.array([self.tasks[t].lengths[:, i] for t, i in chosen])          # (n,2)
        batches = divide(lengths, np.arange(len(chosen)), POOL)
        order = np.random.default_rng((self.cfg.seed, 2, pool)).permutation(POOL)
        return [chosen[batches[i]] for i in order]

    def __getitem__(self, k):
        pool, i = divmod(k, POOL)
        rng = np.random.default_rng((self.cfg.seed, 3, k))
        return collate([self.tasks[t].example(j, rng) for t, j in self.plan(pool)[i]])

    def describe(self, k):
        """Lines that say which examples of which tasks are in batch k."""
        pool, i = divmod(k, POOL)
        rows = self.plan(pool)[i]
        return [self.tasks[t].describe(rows[rows[:, 0] == t, 1]) for t in np.unique(rows[:, 0])]


def divide(lengths, rows, n):
    """Parts the rows of lengths (m,2), m >= n, a power of two, into n lists of like lengths and nearly equal sums.

    Halves them, again and again, across the side, source or target, on which they differ most, at the half of the
    tokens.
    """
    if n == 1:
        return [rows]
    of_rows = lengths[rows]
    side = np.ptp(of_rows, axis=0).argmax()
    order = np.lexsort((of_rows[:, 1 - side], of_rows[:, side]))
    tokens = of_rows[order].sum(1).cumsum()
    half = np.searchsorted(tokens, tokens[-1] / 2).clip(n // 2, len(rows) - n // 2)
    return divide(lengths, rows[order[:half]], n // 2) + divide(lengths, rows[order[half:]], n // 2)


def collate(examples):
    """Pads (source, target) pairs to two arrays (B,S) and (B,T)."""
    padded = []
    for side in zip(*examples):
        array = np.full((len(side), max(map(len, side))), PAD, np.int64)
        for row, ids in zip(array, side):
            row[:len(ids)] = ids
        padded.append(array)
    return tuple(padded)


def val_batches(task, cfg, n):
    """The batches of one task for evaluation: at most n of its segments, the same noise each time."""
    n = min(len(task), n)
    chosen = np.linspace(0, len(task) - 1, n).astype(int)
    examples = [task.val_example(i) for i in chosen]
    lengths = np.array([[len(s), len(t)] for s, t in examples])
    n_batches = 2 ** max(0, int(np.log2(lengths.sum() / cfg.batch_tokens)))
    return [collate([examples[i] for i in rows]) for rows in divide(lengths, np.arange(n), min(n_batches, n))]
