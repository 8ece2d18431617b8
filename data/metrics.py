"""Scores of generated text against references, in percent, with 95 % intervals.

    python -m data.metrics hypotheses.txt references.txt --lang=bo

chrF and BLEU add up the counts of all texts; the other scores are means over texts.
"""
import argparse
import math
import re
import string
import unicodedata
from collections import Counter, defaultdict
from functools import partial, reduce
from itertools import chain
from operator import eq, or_

import numpy as np

from config import cli
from data.files import read_lines
from data.languages import BY_CHARACTER, check_script, language_code, main_script
from data.tokenizer import normalize

TSHEG = '\u0f0b\u0f0c'                                # between syllables of Tibetan and Dzongkha
# CMRC 2018 drops these marks; a segment of the rest is a character, a word, a number or a sign
CMRC_MARKS = '-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』'
CMRC_SEGMENT = re.compile(r"[一-龥]|'?(?:[^\W一-龥]|,(?=\d)|\.(?=[^\W一-龥]))+|[.…]+|\S")
REPEAT = re.compile(r'(.{2,50}?)\1{3}', re.DOTALL)
RESAMPLES = 1000
LONGEST = 100_000                                     # characters; ROUGE-L takes quadratic time
ABOUT = {                                             # score: (start of its signature, what it is)
    'chrF++': ('nc:6|nw:2|', 'characters 1-6 and words 1-2, all texts together; as sacrebleu'),
    'bleu': ('tok:{}|smooth:exp|', '1-4 units, all texts together; as sacrebleu over these'),
    'rouge_l_f': ('tok:{}|', 'F1 of the longest common subsequence, mean over texts'),
    'rouge_l_p': ('tok:{}|', 'its precision'),
    'rouge_l_r': ('tok:{}|', 'its recall'),
    'rouge_l_char_f': ('tok:char|', 'the same over characters other than white space'),
    'rouge_l_char_p': ('tok:char|', 'its precision'),
    'rouge_l_char_r': ('tok:char|', 'its recall'),
    'f1': ('tok:{}|', 'as SQuAD: units in common, mean over texts'),
    'cmrc_f1': ('tok:cmrc|', 'as CMRC 2018: longest common substring without its marks, mean'),
    'exact': ('', 'as SQuAD: equal to a reference but for case, punctuation, runs of spaces'),
    'cmrc_exact': ('', 'as CMRC 2018: equal to a reference but for case and its marks'),
    'empty': ('', 'texts with nothing in them'),
    'repeats': ('', 'texts with 2 to 50 characters four times in a row'),
    'wrong_script': ('', "texts most of whose letters are not of the references' script"),
    'wrong_language': ('', 'texts in a wrong script, or likelier in another of the languages'),
}
RATES = 'exact', 'cmrc_exact', 'empty', 'repeats', 'wrong_script', 'wrong_language'


def units(text, language):
    """A text's syllables between tshegs, characters (BY_CHARACTER), or words between spaces, and
    its marks. White space is dropped, and tshegs, too, unless there is nothing else."""
    if language in BY_CHARACTER:
        return list(characters(text))
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
    """Words between spaces, and apart from each an ASCII mark at its end or else at its start."""
    found = []
    for word in text.split():
        at = -1 if word[-1] in string.punctuation else 1 if word[0] in string.punctuation else None
        found += [word] if at is None else filter(None, (word[:at], word[at:]))
    return found


def ngrams(items, n):
    return Counter(tuple(items[i:i + n]) for i in range(len(items) - n + 1))


def chrf(hypotheses, references, raw=False):
    """chrF++ of a list of texts, 0 to 100 (Popović 2017, aclanthology.org/W17-4770), as sacrebleu;
    references and raw as for `score`. Raises ValueError where no reference has text."""
    hypotheses, references = normalize_all(hypotheses, references, raw)
    if not any(r.strip() for r in chain(*references)):
        raise ValueError('the references have no text to score against')
    return float(chrf_of(sum(map(chrf_counts, hypotheses, references))))


def chrf_counts(hypothesis, references):
    """How many n-grams, of 1 to 6 characters and 1 to 2 words, the hypothesis has, the best
    reference has, and both have: flat (3 * orders,)."""
    orders = [(characters, n) for n in range(1, 7)] + [(chrf_words, 1), (chrf_words, 2)]
    ours, candidates = [ngrams(split(hypothesis), n) for split, n in orders], []
    for reference in references:
        theirs = [ngrams(split(reference), n) for split, n in orders]
        # as sacrebleu, count nothing against a reference without n-grams
        candidates.append(np.ravel([(a.total(), b.total(), (a & b).total()) if b else (0, 0, 0)
                                    for a, b in zip(ours, theirs)]))
    return max(candidates, key=chrf_of)


def chrf_of(counts):
    """Counts (...,3 * orders) -> chrF (...): the F score, recall counting twice, of precision and
    recall, each the mean over the orders of which both sides have n-grams."""
    counts = counts.reshape(*counts.shape[:-1], -1, 3)                   # (...,orders,3)
    ours, theirs, common = np.moveaxis(counts, -1, 0)                    # (...,orders)
    there = (ours > 0) & (theirs > 0)
    p, r = ((common / np.maximum(n, 1)).sum(-1, where=there) / np.maximum(there.sum(-1), 1)
            for n in (ours, theirs))
    return 100 * 5 * p * r / np.maximum(4 * p + r, 1e-16)


def bleu_counts(hypothesis, references):
    """Lengths of the hypothesis and of the reference nearest in length; then for n = 1 to 4 the
    hypothesis' n-grams, and those that any reference has too: (10,)."""
    nearest = min(map(len, references), key=lambda n: (abs(n - len(hypothesis)), n))
    counts = [len(hypothesis), nearest]
    for n in range(1, 5):
        ours, theirs = ngrams(hypothesis, n), reduce(or_, (ngrams(r, n) for r in references))
        counts += [ours.total(), (ours & theirs).total()]
    return np.array(counts)


def bleu_of(counts):
    """Counts (...,10) -> BLEU (...) (Papineni et al. 2002); nan for one to three units. The first
    order without a match counts as 1/2 match, the next as 1/4 ... (Chen and Cherry 2014, 3)."""
    length, wanted = counts[..., 0], counts[..., 1]
    total, common = counts[..., 2::2], counts[..., 3::2]                 # (...,4)
    smoothed = np.where(common == 0, 0.5 ** np.cumsum(common == 0, -1), common)
    with np.errstate(divide='ignore', invalid='ignore'):
        brevity = np.exp(np.minimum(0, 1 - wanted / np.maximum(length, 1e-9)))
        value = 100 * brevity * np.exp(np.log(smoothed / total).mean(-1))
    value = np.where(common[..., 0] == 0, 0.0, value)
    return np.where((total[..., 3] == 0) & (length > 0), np.nan, value)


def mean_of(counts):
    """Counts (...,2), of a score's sum and of texts -> the score's mean (...)."""
    return 100 * counts[..., 0] / counts[..., 1]


FORMULAS = {'chrF++': chrf_of, 'bleu': bleu_of}       # of counts; the others have mean_of


def f_measure(n, ours, theirs):
    """F1, precision and recall of two lists with n items in common."""
    return 2 * n / max(len(ours) + len(theirs), 1), n / max(len(ours), 1), n / max(len(theirs), 1)


def rouge_l(hypothesis, reference):
    """F1, precision, recall of two lists' longest common subsequence (Lin 2004, W04-1013), by the
    bit-parallel rows of Hyyrö (2004): a bit for each item of the hypothesis."""
    positions = defaultdict(int)
    for i, item in enumerate(hypothesis):
        positions[item] |= 1 << i
    full = row = (1 << len(hypothesis)) - 1
    for item in reference:
        match = row & positions[item]
        row = (row + match | row - match) & full
    return f_measure(len(hypothesis) - row.bit_count(), hypothesis, reference)


def f1(hypothesis, reference):
    """F1 of two lists whatever their order (SQuAD, Rajpurkar et al. 2016)."""
    n = (Counter(hypothesis) & Counter(reference)).total()
    return f_measure(n, hypothesis, reference)[0]


def cmrc_f1(hypothesis, reference):
    """F1 of the longest common substring of two lists: CMRC 2018's (aclanthology.org/D19-1600). The
    official script has nltk split what is not Chinese: 19 of the 601 such strings in the validation
    set's answers otherwise than CMRC_SEGMENT."""
    codes, n = {}, 0                                  # a character for each item: `in` is fast
    ours, theirs = (''.join(chr(codes.setdefault(item, len(codes))) for item in side)
                    for side in (hypothesis, reference))
    for end in range(1, len(ours) + 1):               # does one longer than before end here?
        n += ours[end - n - 1:end] in theirs
    return f_measure(n, ours, theirs)[0]


def likeliest_languages(texts, samples):
    """The likeliest language of each text, by samples {language: texts}; None if nothing tells.
    Naive Bayes over trigrams of characters tells Kazakh from Mongolian by a sentence."""
    def trigrams(text):
        return ngrams(f'  {normalize(text).casefold()} ', 3)

    seen = {language: trigrams(' '.join(sample)) for language, sample in samples.items()}
    smallest = min(n.total() for n in seen.values())  # a small sample is not to be the likeliest
    scale = {language: smallest / max(n.total(), 1) for language, n in seen.items()}
    found = []
    for text in texts:
        grams = trigrams(text)
        known = any(grams.keys() & n.keys() for n in seen.values())
        likelihood = {language: sum(n * math.log(seen[language][gram] * scale[language] + 0.1)
                                    for gram, n in grams.items()) for language in seen}
        found.append(max(seen, key=likelihood.get) if known and main_script(text) else None)
    return found


def normalize_all(hypotheses, references, raw):
    """Texts as they are scored: normalised unless `raw`, a list of references for each."""
    if len(hypotheses) != len(references):
        raise ValueError(f'{len(hypotheses)} hypotheses for {len(references)} references')
    change, several = str if raw else normalize, []
    for found in references:
        found = [change(r) for r in ([found] if isinstance(found, str) else found)]
        several.append([r for r in found if r.strip()] or found[:1])
    return [change(h) for h in hypotheses], several


def values_of(hypothesis, references, language, marks):
    """{score: value from 0 to 1, or counts} of one text, where the best of its references counts.
    marks: CMRC 2018's, as the texts have them."""
    def best(compare, split):
        return max(compare(split(hypothesis), split(reference)) for reference in references)

    def without_marks(text):                          # as CMRC 2018 compares answers
        return text.lower().strip().translate(dict.fromkeys(map(ord, marks)))

    split, words = partial(units, language=language), partial(words_only, language=language)
    found = {'chrF++': chrf_counts(hypothesis, references),
             'bleu': bleu_counts(split(hypothesis), list(map(split, references))),
             'f1': best(f1, words), 'exact': best(eq, words), 'empty': not hypothesis.strip(),
             'repeats': REPEAT.search(hypothesis + ' ') is not None}
    found |= zip(('rouge_l_f', 'rouge_l_p', 'rouge_l_r'), best(rouge_l, split))
    found |= zip(('rouge_l_char_f', 'rouge_l_char_p', 'rouge_l_char_r'), best(rouge_l, characters))
    if language == 'zh':
        found['cmrc_f1'] = best(cmrc_f1, lambda text: CMRC_SEGMENT.findall(without_marks(text)))
        found['cmrc_exact'] = best(eq, without_marks)
    return found


def score(hypotheses, references, language, samples=None, raw=False):
    """All scores of ABOUT: {name: (value, low, high)} and {name: [value of each text]}, in percent.

    references: for each hypothesis a text, or several of which the best counts. samples: {language:
    texts}, without which there is no wrong_language. raw: do not normalise the texts as the
    vocabulary does (data.tokenizer.normalize). A score without a value is nan. Raises ValueError
    for lists of unequal length, a text without a reference, and one of over LONGEST characters.
    """
    hypotheses, references = normalize_all(hypotheses, references, raw)
    for i, several in enumerate(references, 1):
        if not ''.join(several).strip():
            raise ValueError(f'reference {i} has no text to score against')
    if max(map(len, chain(hypotheses, *references))) > LONGEST:
        raise ValueError(f'a text has over {LONGEST:,} characters; cut it')
    marks = CMRC_MARKS if raw else normalize(CMRC_MARKS)
    script = main_script(''.join(chain(*references)))
    rows = [values_of(*pair, language, marks) for pair in zip(hypotheses, references)]
    for row, text in zip(rows, hypotheses):
        row['wrong_script'] = main_script(text) not in (script, None)
    if samples:
        for row, likeliest in zip(rows, likeliest_languages(hypotheses, samples)):
            row['wrong_language'] = row['wrong_script'] or likeliest not in (language, None)
    whole, each = {}, {}
    for name in (name for name in ABOUT if name in rows[0]):
        formula, values = FORMULAS.get(name, mean_of), [row[name] for row in rows]
        counts = np.array(values if name in FORMULAS else [(value, 1) for value in values])
        each[name] = formula(counts).tolist()
        is_rate = name in RATES
        whole[name] = wilson(sum(values), len(rows)) if is_rate else bootstrap(counts, formula)
    return whole, each


def bootstrap(counts, formula):
    """Counts of each text (n,k) -> value, low, high: the 2.5th and 97.5th percentile over RESAMPLES
    samples of n texts with replacement (Koehn 2004, W04-3250)."""
    n, rng = len(counts), np.random.default_rng(0)
    scores = np.concatenate([formula(rng.multinomial(n, [1 / n] * n, 20) @ counts)
                             for _ in range(0, RESAMPLES, 20)])          # 20 at a time, for memory
    finite = scores[np.isfinite(scores)]
    bounds = np.percentile(finite, [2.5, 97.5]) if len(finite) else [np.nan] * 2
    return float(formula(counts.sum(0))), float(bounds[0]), float(bounds[1])


def wilson(k, n):
    """The fraction k / n and its 95 % interval (Wilson 1927), in percent; the bootstrap of 0 of n
    would be [0, 0]."""
    def lowest(k, z=1.959964):
        return (k + z * z / 2 - z * math.sqrt(z * z / 4 + k * (n - k) / n)) / (n + z * z)

    return 100 * k / n, 100 * lowest(k), 100 * (1 - lowest(n - k))


def signature(name, language, raw=False):
    """How a score splits and normalises texts, as sacrebleu says it: tok:word|norm:none."""
    unit = 'syllable' if language in ('bo', 'dz') else 'word'
    unit = 'char' if language in BY_CHARACTER else unit
    return f'{ABOUT[name][0].format(unit)}norm:{"none" if raw else "nmt_nfkc"}'


def report(whole, language, names=ABOUT, raw=False):
    """Yields a line for each score of `names`: value, interval, signature, what it is."""
    for name in (name for name in whole if name in names):
        value, low, high = whole[name]
        numbers = f'{value:6.1f}  [{low:5.1f}, {high:5.1f}]'.replace('nan', '  –')
        yield f'  {name:15}{numbers}  {signature(name, language, raw)}  {ABOUT[name][1]}'


def main(argv):
    parser = argparse.ArgumentParser('python -m data.metrics', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('hypotheses', help='a text a line')
    parser.add_argument('references', help='as many lines')
    parser.add_argument('--lang', required=True, type=language_code, help='says what a unit is')
    parser.add_argument('--raw', action='store_true', help='without normalising, as nmt_nfkc does')
    args = parser.parse_args(argv)
    hypotheses, references = (list(read_lines(path)) for path in (args.hypotheses, args.references))
    check_script(references, args.lang, args.references)
    whole, _ = score(hypotheses, references, args.lang, raw=args.raw)
    print(f'{len(references)} texts; percent, with 95 % intervals')
    print('\n'.join(report(whole, args.lang, raw=args.raw)))


if __name__ == '__main__':
    cli.run(main)
