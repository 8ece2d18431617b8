"""What a model learns to repair: mBART's noise, and BERT's masking for an encoder.

Pure functions of ids (n,) without special tokens and a numpy generator; they return new arrays.
"""
import numpy as np


def infill(ids, mask, ratio, length, rng):
    """Replaces spans of tokens by one <mask> each (text infilling; BART, arXiv 1910.13461, 2.2).

    round(ratio * n) tokens go, in spans of Poisson(length) tokens, which do not overlap. The last
    is cut to fit; an empty one inserts a <mask>. mBART: ratio 0.35, length 3.5. Spans may run over
    the end to the start, so each token goes equally often.
    """
    n_gone = round(ratio * len(ids))
    spans = rng.poisson(length, size=2 * n_gone + 10)
    n_spans = int(np.searchsorted(spans.cumsum(), n_gone)) + 1 if n_gone else 0
    spans = spans[:n_spans]
    if n_spans:
        spans[-1] -= spans.sum() - n_gone
    # kept tokens and spans in a random order, one item each; an item covers 1 token or its span's
    n_items = len(ids) - n_gone + n_spans
    is_span = np.zeros(n_items, bool)
    is_span[rng.choice(n_items, n_spans, replace=False)] = True
    covers = np.ones(n_items, int)
    covers[is_span] = spans
    end = covers.cumsum()
    start = end - covers
    # items lie on a ring, which is cut before a random token: its item comes first and, if the cut
    # is inside it, once more at the end
    cut = rng.integers(max(len(ids), 1))
    first = int(np.searchsorted(end, cut, 'right'))
    is_inside = first < n_items and start[first] < cut
    order = np.concatenate([np.arange(first, n_items), np.arange(first + is_inside)])
    kept = ~is_span[order]
    noisy = np.full(len(order), mask, ids.dtype)
    noisy[kept] = ids[start[order[kept]] - cut]           # a negative index counts from the end
    return noisy


def permute_sentences(ids, starts, rng):
    """The sentences, which begin at `starts` (the first is 0), in a random order."""
    sentences = np.split(ids, starts[1:])
    return np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])


def mask_tokens(ids, mask, ratio, first, rng):
    """BERT's masking: of ratio * n tokens 80 % become <mask>, 10 % a random piece from id `first`.

    Returns the ids and a boolean array (n,) of the tokens to predict, at least one.
    """
    chosen = np.zeros(len(ids), bool)
    chosen[rng.choice(len(ids), max(1, round(ratio * len(ids))), replace=False)] = True
    dice = rng.random(len(ids))
    noisy = ids.copy()
    noisy[chosen & (dice < 0.8)] = mask
    swapped = chosen & (dice >= 0.9)
    noisy[swapped] = rng.integers(first, mask, swapped.sum())
    return noisy, chosen
