"""Scores of generated text against references."""
import string
from collections import Counter

PUNCTUATION = set(string.punctuation)


def chrf(hypotheses, references, words=2):
    """chrF++ of a list of texts, 0 to 100 (Popović 2017, aclanthology.org/W17-4770); words=0 gives chrF.

    The F score, recall counting twice, of the mean precision and the mean recall over the n-grams of up to 6
    characters (without white space) and up to 2 words, counted over all texts, as sacrebleu computes it; orders of
    which hypotheses or references have none are left out. Raises ValueError for lists of unequal length and for
    references without text.
    """
    if len(hypotheses) != len(references):
        raise ValueError(f'{len(hypotheses)} hypotheses for {len(references)} references')
    if not any(text.strip() for text in references):
        raise ValueError('the references have no text to score against')
    orders = [(to_characters, n) for n in range(1, 7)] + [(to_words, n) for n in range(1, words + 1)]
    precision, recall = [], []
    for split, n in orders:
        of_hypotheses = of_references = matches = 0
        for hypothesis, reference in zip(hypotheses, references):
            ours, theirs = (ngrams(split(text), n) for text in (hypothesis, reference))
            if theirs:                                # sacrebleu counts no n-grams against a reference without any
                of_hypotheses += ours.total()
                of_references += theirs.total()
                matches += (ours & theirs).total()
        if of_hypotheses and of_references:
            precision.append(matches / of_hypotheses)
            recall.append(matches / of_references)
    p, r = (sum(x) / max(len(x), 1) for x in (precision, recall))
    return 100 * 5 * p * r / (4 * p + r) if p and r else 0.0


def to_characters(text):
    return ''.join(text.split())


def to_words(text):
    """Words between spaces; one mark of ASCII punctuation at the end, or else at the start, is a word of its own."""
    found = []
    for word in text.split():
        at = -1 if word[-1] in PUNCTUATION else 1 if word[0] in PUNCTUATION else len(word)
        found += [part for part in (word[:at], word[at:]) if part]
    return found


def ngrams(items, n):
    return Counter(tuple(items[i:i + n]) for i in range(len(items) - n + 1))
