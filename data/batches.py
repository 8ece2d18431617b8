"""Batches: batch k is a function of the settings and k; resuming changes nothing.

Examples of all tasks are drawn for a pool of POOL batches. The pool is divided into batches of
similar lengths. A batch has `batch_tokens` tokens on average, source and target together; padding
adds 2 to 11 %. A batch of the longest examples has up to twice as many.
"""
from functools import lru_cache

import numpy as np

from data.tokenizer import PAD

# Batches planned together, a power of two. 256 leave less padding (8 % in mixtures, not 11), but
# more similar examples are learned worse: a first run from data/nano ended at 4.85 nats, not 4.69.
POOL = 128


def task_probabilities(tasks, cfg):
    """The probability of each task (n,): p ~ segments^alpha (XLM, arXiv 1901.07291, section 3.1).

    Tasks of pairs (n_languages 2) have mt_fraction together if there are also other tasks."""
    is_pair = np.array([getattr(task, 'n_languages', 1) == 2 for task in tasks])
    p = np.array([len(task) for task in tasks], float) ** cfg.alpha
    if is_pair.any() and not is_pair.all():
        p[is_pair] *= cfg.mt_fraction / p[is_pair].sum()
        p[~is_pair] *= (1 - cfg.mt_fraction) / p[~is_pair].sum()
    return p / p.sum()


class Batches:
    """`batches[k]` -> (src (B,S), tgt (B,T)), int64 arrays padded with 1, for any k from 0."""

    def __init__(self, tasks, cfg):
        self.tasks, self.cfg, self.probabilities = tasks, cfg, task_probabilities(tasks, cfg)
        mean_length = sum(p * task.lengths.sum(0).mean()
                          for p, task in zip(self.probabilities, tasks))
        n_examples = round(POOL * cfg.batch_tokens / mean_length)
        self.pool_size = max(n_examples, POOL + len(tasks))     # rounding may lose one of each task

    def __getitem__(self, k):
        pool, i = divmod(k, POOL)
        rng = np.random.default_rng((self.cfg.seed, 3, k))                          # noise
        return collate([self.tasks[t].example(j, rng) for t, j in self.plan(pool)[i]])

    @lru_cache(maxsize=1)                           # POOL batches in a row use the same plan
    def plan(self, pool):
        """The POOL batches of a pool: arrays (n,2) of task and example."""
        chosen = []
        for t, (task, p) in enumerate(zip(self.tasks, self.probabilities)):
            first, last = (int(i * self.pool_size * p) for i in (pool, pool + 1))
            epochs, places = np.divmod(np.arange(first, last), len(task))
            for epoch in np.unique(epochs):
                order = np.random.default_rng((self.cfg.seed, 1, t, epoch)).permutation(len(task))
                chosen += [(t, i) for i in order[places[epochs == epoch]]]
        chosen = np.array(chosen)                                                   # (n,2)
        lengths = np.array([self.tasks[t].lengths[:, i] for t, i in chosen])        # (n,2)
        batches = bucket_by_length(lengths, POOL)
        shuffled = np.random.default_rng((self.cfg.seed, 2, pool)).permutation(POOL)    # batches
        return [chosen[batches[i]] for i in shuffled]


def bucket_by_length(lengths, n):
    """Divides lengths (m,2), m >= n, into n = 2^i arrays of indices: similar lengths, equal sums.

    Sorts by the side, source or target, that varies most; halves by tokens."""
    if n == 1:
        return [np.arange(len(lengths))]
    side = np.ptp(lengths, axis=0).argmax()
    order = np.lexsort((lengths[:, 1 - side], lengths[:, side]))
    tokens = lengths[order].sum(1).cumsum()
    middle = np.searchsorted(tokens, tokens[-1] / 2).clip(n // 2, len(order) - n // 2)
    return [half[i] for half in (order[:middle], order[middle:])
            for i in bucket_by_length(lengths[half], n // 2)]


def collate(examples):
    """(source, target) pairs of ids as two padded arrays, (B,S) and (B,T)."""
    return tuple(map(pad, zip(*examples)))


def pad(rows):
    """Rows of ids as an int64 array (B,longest), padded."""
    padded = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
    for row, ids in zip(padded, rows):
        row[:len(ids)] = ids
    return padded


def evenly_spaced(n, at_most):
    """At most so many of the indices below n, evenly spaced: an int array."""
    return np.linspace(0, n - 1, min(n, at_most)).astype(int)


def val_batches(task, cfg, n):
    """The batches of a task for evaluation: at most n of its examples, the same noise each time."""
    examples = [task.val_example(i) for i in evenly_spaced(len(task), n)]
    lengths = np.array([[len(source), len(target)] for source, target in examples])
    n_batches = np.clip(lengths.sum() / cfg.batch_tokens, 1, len(examples))
    return [collate([examples[i] for i in rows])
            for rows in bucket_by_length(lengths, 2 ** int(np.log2(n_batches)))]
