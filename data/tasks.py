"""Training tasks: what a model reads and what it should write, one class each.

A new task is a class here, added to TASKS; `tasks` finds the streams for it.
"""
from itertools import permutations

import numpy as np

from data.dataset import SPECIALS, open_streams
from data.noise import infill, mask_tokens, permute_sentences
from data.tokenizer import BOS, EOS, PAD, UNK


class Task:
    """Examples of one kind from one stream, from language `source` to language `target`.

    A subclass has `kind`, its name; `objective`, of the runs that learn it; `n_languages`, of the
    stream; `segment_lengths()`; and `example(i, rng)`: ids of source (S,) and target (T,), with
    special tokens. `lengths` (2, n) foretell S and T.
    """

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
        return self.example(i, np.random.default_rng((4, int(i))))


class Denoise(Task):
    """A text from itself with its sentences permuted and spans masked, as mBART."""
    kind, objective, n_languages = 'dae', 'swcm', 1

    def segment_lengths(self):
        cfg, lengths = self.cfg, self.stream.lengths
        kept = 1 - cfg.mask_ratio + cfg.mask_ratio / cfg.span_length      # a span becomes one token
        return (lengths * kept).astype(int), lengths

    def example(self, i, rng):
        tok, cfg, ids = self.tokenizer, self.cfg, self.stream[i]
        starts = tok.sentence_starts(ids)
        noisy = permute_sentences(ids, starts, rng) if cfg.permute_sentences else ids
        noisy = infill(noisy, tok.mask, cfg.mask_ratio, cfg.span_length, rng)
        return tok.add_special_tokens(self.source, noisy), tok.add_special_tokens(self.target, ids)


class Translate(Task):
    """A sentence in one language from its translation: segments 2i and 2i + 1, by name."""
    kind, objective, n_languages = 'mt', 'swcm', 2

    def rows(self, i=0):
        """The segments of pair i, source and target."""
        return (2 * i, 2 * i + 1) if self.source < self.target else (2 * i + 1, 2 * i)

    def segment_lengths(self):
        return [self.stream.lengths[row::2] for row in self.rows()]

    def example(self, i, rng):
        source, target = (self.stream[row] for row in self.rows(i))
        return (self.tokenizer.add_special_tokens(self.source, source),
                self.tokenizer.add_special_tokens(self.target, target))

    def reference(self, i):
        """Held-out pair i's target as a string, with what the vocabulary cannot write."""
        return self.stream.texts[self.rows(i)[1]]


class MaskedTokens(Task):
    """The masked tokens of a text, as BERT: for an encoder."""
    kind, objective, n_languages = 'mlm', 'mlm', 1

    def example(self, i, rng):
        ids, tok = self.stream[i], self.tokenizer
        noisy, chosen = mask_tokens(ids, tok.mask, self.cfg.mlm_ratio, UNK + 1, rng)
        target = np.where(chosen, ids, PAD)                               # <pad>: no loss
        return np.concatenate([[BOS], noisy, [EOS]]), np.concatenate([[PAD], target, [PAD]])


TASKS = {task.kind: task for task in (Denoise, Translate, MaskedTokens)}


def tasks(folder, split, tokenizer, cfg):
    """The tasks of cfg.objective on the streams of a prepared folder that are in cfg.languages.

    None of pairs if cfg.mt_fraction is 0, none of one language if it is 1. Raises ValueError where
    there is none, or a language has no text to train on.
    """
    found, streams = [], open_streams(folder, split)
    for name, stream in streams.items():
        languages = name.split('-')
        fraction = cfg.mt_fraction if len(languages) == 2 else 1 - cfg.mt_fraction
        if (fraction or cfg.objective == 'mlm') and {*languages} <= {*cfg.languages}:
            found += [task(stream, order[0], order[-1], tokenizer, cfg)
                      for task in TASKS.values() for order in permutations(languages)
                      if (task.objective, task.n_languages) == (cfg.objective, len(languages))]
    there = {language for name in streams for language in name.split('-')}
    missing = [language for language in cfg.languages if language not in there]
    if not found or missing and split == 'train':
        raise ValueError(f'languages={",".join(cfg.languages)}, objective={cfg.objective}, '
                         f'mt_fraction={cfg.mt_fraction}: the corpus has no {split} text for '
                         f'{" ".join(missing) or "these"}; it has {" ".join(streams) or "none"}. '
                         'Set --val_fraction to hold out more or less')
    return found
