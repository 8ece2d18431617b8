"""Scores of generated text against references, in percent, with 95 % intervals.

Both are normalised as for the vocabulary (data.tokenizer.normalize). chrF++ and shuffled are
computed from the counts of all texts together; the other scores are means over texts.
"""
import math
import re
import string
import unicodedata
from collections import Counter, defaultdict
from difflib import SequenceMatcher
from functools import partial

import numpy as np

from data.languages import BY_CHARACTER, CHARACTER, SCRIPTS, main_script
from data.tokenizer import normalize

TSHEG = '\u0f0b\u0f0c'                                # between syllables of Tibetan and Dzongkha
# CMRC 2018 (aclanthology.org/D19-1600) drops these marks; a segment of the rest is a character, a
# word, a number or a sign. (Its script splits non-Chinese text by nltk: 19 of 601 differ.)
CMRC_MARKS = normalize('-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』')
CMRC_SEGMENT = re.compile(r"[一-龥]|'?(?:[^\W一-龥]|\.(?=[^\W一-龥]))+|[.…]+|\S")
REPEAT = re.compile(r'(.{2,50}?)\1{3}', re.DOTALL)
ABOUT = {                                             # units: see `units`
    'chrF++': 'character 1-6-grams, word 1-2-grams, all texts together; as sacrebleu',
    'shuffled': "chrF++ against another text's references, half the texts away",
    'rouge_l_f': 'F1 of the longest common subsequence of units',
    'rouge_l_p': 'its precision',
    'rouge_l_r': 'its recall',
    'f1': 'as SQuAD, but marks separate words: F1 of the units in common',
    'cmrc_f1': 'as CMRC 2018: longest common substring without its marks',
    'exact': 'as SQuAD, but marks separate words: equal except case, punctuation, spaces',
    'cmrc_exact': 'as CMRC 2018: equal to a reference except case and its marks',
    'empty': 'texts with nothing in them',
    'repeats': 'texts with 2 to 50 characters four times in a row',
    'wrong_script': "texts most of whose letters are not of the references' script",
}


def units(text, language):
    """A text's syllables, characters with their vowel signs (BY_CHARACTER) or words, and its marks
    (punctuation, symbols), without white space; tshegs are dropped, too, unless there is nothing
    else."""
    if language in BY_CHARACTER:
        return CHARACTER.findall(text)
    spaced = ''.join(' ' if c in TSHEG else f' {c} ' if is_mark(c) else c for c in text)
    return spaced.split() or list(characters(text))


def is_mark(character):
    return unicodedata.category(character)[0] in 'PS'


def words_only(text, language):
    """A text's units in lower case, without marks unless it has nothing else."""
    found = units(text.casefold(), language)
    return [unit for unit in found if not is_mark(unit[0])] or found


def characters(text):
    return ''.join(text.split())


def chrf_words(text):
    """Words between spaces; an ASCII mark at the end, or else the start, of each is split off."""
    found = []
    for word in text.split():
        at = -1 if word[-1] in string.punctuation else 1 if word[0] in string.punctuation else 0
        found += filter(None, (word[:at], word[at:]))
    return found


def ngrams(items, n):
    return Counter(tuple(items[i:i + n]) for i in range(len(items) - n + 1))


def chrf(hypotheses, references):
    """chrF++ of a list of texts, 0 to 100; references and errors as for `score`."""
    return float(chrf_of(sum(map(chrf_counts, *normalize_all(hypotheses, references)))))


def chrf_counts(hypothesis, references):
    """How many n-grams, of 1 to 6 characters and 1 to 2 words, the hypothesis has, the best
    reference has, and both have: flat (3 * orders,)."""
    orders = [(characters, n) for n in range(1, 7)] + [(chrf_words, 1), (chrf_words, 2)]
    ours, candidates = [ngrams(split(hypothesis), n) for split, n in orders], []
    for reference in references:
        theirs = [ngrams(split(reference), n) for split, n in orders]
        # as sacrebleu, nothing is counted against a reference without n-grams
        candidates.append(np.ravel([(a.total(), b.total(), (a & b).total()) if b else (0, 0, 0)
                                    for a, b in zip(ours, theirs)]))
    return max(candidates, key=chrf_of)


def chrf_of(counts):
    """Counts (3 * orders,) -> chrF (Popović 2017, aclanthology.org/W17-4770): the F2 score (beta 2)
    of precision and recall, each a mean over the orders of which both sides have some."""
    ours, theirs, common = counts.reshape(-1, 3).T                       # (orders,)
    there = (ours > 0) & (theirs > 0)
    p, r = ((common / np.maximum(n, 1)).sum(where=there) / max(there.sum(), 1)
            for n in (ours, theirs))
    return 100 * 5 * p * r / max(4 * p + r, 1e-16)


def f_measure(common, ours, theirs):
    """F1, precision, recall of two lists; common(ours, theirs): how much they have in common."""
    n = common(ours, theirs)
    return 2 * n / max(len(ours) + len(theirs), 1), n / max(len(ours), 1), n / max(len(theirs), 1)


def common_subsequence(ours, theirs):
    """Length of the longest one, by the bit-parallel rows of Hyyrö (2004): a bit for each item."""
    positions = defaultdict(int)
    for i, item in enumerate(ours):
        positions[item] |= 1 << i
    full = row = (1 << len(ours)) - 1
    for item in theirs:
        match = row & positions[item]
        row = (row + match | row - match) & full
    return len(ours) - row.bit_count()


def normalize_all(hypotheses, references):
    """Texts as they are scored, and for each a list of its references that have text."""
    several = [[r for r in map(normalize, [found] if isinstance(found, str) else found) if r]
               for found in references]
    if not len(hypotheses) == len(several) > 0:
        raise ValueError(f'{len(hypotheses)} hypotheses for {len(several)} references')
    if not all(several):
        raise ValueError(f'reference {several.index([]) + 1} has no text to score against')
    return list(map(normalize, hypotheses)), several


def values_of(hypothesis, references, language):
    """{score: value from 0 to 1, or chrF's counts} of a text, each by its best reference."""
    def best(common, split):
        return max(f_measure(common, split(hypothesis), split(r)) for r in references)

    def is_equal(change):
        return any(change(hypothesis) == change(r) for r in references)

    def without_marks(text):                          # as CMRC 2018 compares answers
        return text.lower().strip().translate(dict.fromkeys(map(ord, CMRC_MARKS)))

    as_units, words = partial(units, language=language), partial(words_only, language=language)
    found = {'chrF++': chrf_counts(hypothesis, references)}
    found |= zip(('rouge_l_f', 'rouge_l_p', 'rouge_l_r'), best(common_subsequence, as_units))
    found['f1'], *_ = best(lambda a, b: (Counter(a) & Counter(b)).total(), words)
    if language == 'zh':
        found['cmrc_f1'], *_ = best(
            lambda a, b: SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size,
            lambda text: CMRC_SEGMENT.findall(without_marks(text)))
        found['cmrc_exact'] = is_equal(without_marks)
    return found | {'exact': is_equal(words), 'empty': not hypothesis,
                    'repeats': REPEAT.search(hypothesis + ' ') is not None}


def score(hypotheses, references, language):
    """All scores of ABOUT: {name: (value, low, high)} and {name: [value of each text]}, in percent.

    references: for each hypothesis a text, or several, of which the best counts. Raises ValueError
    for lists that are empty or of unequal length, and for a text without a reference."""
    hypotheses, references = normalize_all(hypotheses, references)
    rows = [values_of(*pair, language) for pair in zip(hypotheses, references)]
    script = main_script(''.join(map(''.join, references)))
    half, also = len(rows) // 2, SCRIPTS['ja'] if language == 'ja' else ()
    for row, hypothesis, others in zip(rows, hypotheses, references[half:] + references[:half]):
        if half:                                      # with one text there is no other
            row['shuffled'] = chrf_counts(hypothesis, others)
        row['wrong_script'] = main_script(hypothesis) not in {script, None, *also}
    whole, each = {}, {}
    for name in rows[0]:
        values, is_chrf = [row[name] for row in rows], name in ('chrF++', 'shuffled')
        counts = np.array(values if is_chrf else [(value, 1) for value in values])
        formula = chrf_of if is_chrf else lambda sums: 100 * sums[0] / sums[1]
        each[name] = [float(formula(n)) for n in counts]
        is_rate = isinstance(values[0], bool)
        whole[name] = wilson(sum(values), len(rows)) if is_rate else bootstrap(counts, formula)
    return whole, each


def bootstrap(counts, formula):
    """Counts of each text (n,k) -> value, low, high: the 2.5th and 97.5th percentile over 1,000
    samples of n texts with replacement (Koehn 2004, aclanthology.org/W04-3250)."""
    n, rng = len(counts), np.random.default_rng(0)
    scores = [formula(rng.multinomial(n, [1 / n] * n) @ counts) for _ in range(1000)]
    return float(formula(counts.sum(0))), *map(float, np.percentile(scores, [2.5, 97.5]))


def wilson(k, n):
    """k / n and its interval (Wilson 1927), in percent; for k = 0 a bootstrap gives [0, 0]."""
    def lowest(k, z=1.959964):
        return (k + z * z / 2 - z * math.sqrt(z * z / 4 + k * (n - k) / n)) / (n + z * z)

    return 100 * k / n, 100 * lowest(k), 100 * (1 - lowest(n - k))


def report(whole):
    """Yields a line for each score: value, interval, what it is."""
    for name in filter(whole.get, ABOUT):
        yield '  {:15}{:6.1f}  [{:5.1f}, {:5.1f}]  {}'.format(name, *whole[name], ABOUT[name])


def as_json(whole):
    """{score: (value, low, high)} as metrics.json has it."""
    return {name: dict(zip(('value', 'low', 'high'), (round(x, 4) for x in interval)))
            for name, interval in whole.items()}
