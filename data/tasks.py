"""Training tasks: what a model reads and what it should write.

Noise is a pure function of ids (n,) without special tokens and a numpy generator. A task is a
class; TASKS, at the end, has all. `tasks` finds their streams.
"""
from itertools import permutations

import numpy as np

from data.dataset import SPECIALS, open_streams
from data.tokenizer import BOS, EOS, PAD, UNK


def infill(ids, mask, ratio, length, rng):
    """Replaces spans of tokens by one <mask> each (text infilling; BART, arXiv 1910.13461, 2.2).

    round(ratio * n) tokens are masked, in spans of Poisson(length) tokens, which do not overlap.
    The last is cut to fit; an empty one inserts a <mask>. mBART: ratio 0.35, length 3.5. Spans may
    wrap around from the end to the start, so that each token is masked equally often."""
    n_gone = round(ratio * len(ids))
    spans = rng.poisson(length, size=2 * n_gone + 10)
    spans = spans[spans.cumsum() - spans < n_gone]
    spans[-1:] -= spans.sum() - n_gone
    # Items, kept tokens and spans in random order, lie on a ring. The text begins anywhere, at cut:
    #     place on the ring     1 2    3    4     5    0         spans 0-2 and 4, cut = 1
    #     ids                   a b    c    d     e    f
    #     noisy                <mask>  c  <mask>  e  <mask>
    n_items = len(ids) - n_gone + len(spans)
    is_span = np.zeros(n_items, bool)
    is_span[rng.choice(n_items, len(spans), replace=False)] = True
    covers = np.ones(n_items, int)
    covers[is_span] = spans
    end = covers.cumsum()
    start = end - covers
    cut = rng.integers(max(len(ids), 1))
    noisy = ids.take(start - cut, mode='wrap')
    noisy[is_span] = mask
    first = int(np.searchsorted(end, cut, 'right'))
    is_inside = first < n_items and start[first] < cut
    return np.concatenate([noisy[first:], noisy[:first + is_inside]])   # a cut span: twice


def permute_sentences(ids, starts, rng):
    """The sentences, which begin at `starts` (the first is 0), in a random order."""
    sentences = np.split(ids, starts[1:])
    return np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])


class Task:
    """Examples of one kind from one stream, from language `source` to language `target`.

    A subclass has `kind`, its name; `objective`, of the runs that learn it; `n_languages`, of the
    stream; `example(i, rng)`: ids of source (S,) and target (T,), with special tokens; and
    `segment_lengths()`: S and T without these, for all i. `lengths` (2, n) includes them."""

    def __init__(self, stream, source, target, tokenizer, cfg):
        self.stream, self.source, self.target = stream, source, target
        self.tokenizer, self.cfg = tokenizer, cfg
        self.name = f'{self.kind} {source}' + (f'-{target}' if target != source else '')
        self.lengths = np.stack(self.segment_lengths()) + SPECIALS

    def __len__(self):
        return self.lengths.shape[1]

    def segment_lengths(self):
        return self.stream.lengths, self.stream.lengths

    def val_example(self, i):
        """As `example`, with the same noise in all runs, whatever their seed."""
        return self.example(i, np.random.default_rng((4, int(i))))     # 1 to 3: batches.py


class Denoise(Task):
    """Restores a text whose sentences are permuted and spans masked, as in mBART."""
    kind, objective, n_languages = 'dae', 'swcm', 1

    def segment_lengths(self):
        cfg, lengths = self.cfg, self.stream.lengths
        kept = 1 - cfg.mask_ratio + cfg.mask_ratio / cfg.span_length      # a span becomes one token
        return (lengths * kept).astype(int), lengths

    def example(self, i, rng):
        tok, cfg, ids = self.tokenizer, self.cfg, self.stream[i]
        noisy = permute_sentences(ids, tok.sentence_starts(ids), rng)
        noisy = infill(noisy, tok.mask, cfg.mask_ratio, cfg.span_length, rng)
        return tok.add_special_tokens(self.source, noisy), tok.add_special_tokens(self.target, ids)


class Translate(Task):
    """Translates a segment: 2i and 2i + 1 are a pair, in the order of the language codes."""
    kind, objective, n_languages = 'mt', 'swcm', 2

    def rows(self, i):
        """The segments of pair i, source and target."""
        return (2 * i, 2 * i + 1) if self.source < self.target else (2 * i + 1, 2 * i)

    def segment_lengths(self):
        return [self.stream.lengths[row::2] for row in self.rows(0)]

    def example(self, i, rng):
        source, target = (self.stream[row] for row in self.rows(i))
        return (self.tokenizer.add_special_tokens(self.source, source),
                self.tokenizer.add_special_tokens(self.target, target))

    def reference(self, i):
        """Held-out pair i's target as a string, including what the vocabulary has no ids for."""
        return self.stream.texts[self.rows(i)[1]]


def tasks(folder, split, tokenizer, cfg):
    """The tasks of cfg.objective on the streams of a prepared folder that are in cfg.languages.

    None of pairs if cfg.mt_fraction is 0, none of one language if it is 1. Raises ValueError where
    there is none or, for training, none for one of the languages."""
    found, streams = [], open_streams(folder, split)
    for name, stream in streams.items():
        languages = name.split('-')
        fraction = cfg.mt_fraction if len(languages) == 2 else 1 - cfg.mt_fraction
        if (fraction or cfg.objective == 'mlm') and {*languages} <= {*cfg.languages}:
            found += [task(stream, order[0], order[-1], tokenizer, cfg)
                      for task in TASKS.values() for order in permutations(languages)
                      if (task.objective, task.n_languages) == (cfg.objective, len(languages))]
    learned = {x for task in found for x in (task.source, task.target)}
    missing = [x for x in cfg.languages if x not in learned]
    if not found or missing and split == 'train':
        raise ValueError(f'languages={",".join(cfg.languages)}, objective={cfg.objective}, '
                         f'mt_fraction={cfg.mt_fraction}: the corpus has no {split} text for '
                         f'{" ".join(missing) or "these"}; it has {" ".join(streams) or "none"}. '
                         'Set --languages, --mt_fraction or, to hold out more or less, '
                         '--val_fraction')
    return found


def mask_tokens(ids, mask, ratio, rng):
    """BERT's masking: of ratio * n tokens 80 % become <mask>, 10 % a random piece.

    Returns the ids and a boolean array (n,) of the tokens to predict, at least one."""
    chosen = np.zeros(len(ids), bool)
    chosen[rng.choice(len(ids), max(1, round(ratio * len(ids))), replace=False)] = True
    dice = rng.random(len(ids))
    noisy = np.where(chosen & (dice < 0.8), mask, ids)
    swapped = chosen & (dice >= 0.9)
    noisy[swapped] = rng.integers(UNK + 1, mask, swapped.sum())
    return noisy, chosen


class MaskedTokens(Task):
    """The masked tokens of a text, as BERT: for an encoder."""
    kind, objective, n_languages = 'mlm', 'mlm', 1

    def example(self, i, rng):
        ids, tok = self.stream[i], self.tokenizer
        noisy, chosen = mask_tokens(ids, tok.mask, self.cfg.mlm_ratio, rng)
        target = np.where(chosen, ids, PAD)                               # <pad>: no loss
        return np.concatenate([[BOS], noisy, [EOS]]), np.concatenate([[PAD], target, [PAD]])


TASKS = {task.kind: task for task in (Denoise, Translate, MaskedTokens)}
