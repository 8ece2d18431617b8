"""Scores of generated text against references, in percent, with 95 % intervals.

    python -m data.metrics hypotheses.txt references.txt --lang=bo
"""
import argparse
import math
import re
import string
import unicodedata
from collections import Counter
from functools import reduce
from itertools import chain
from operator import eq, or_

import numpy as np

from config import runtime
from data.languages import BY_CHARACTER, check_script, language_code, main_script
from data.files import read_lines
from data.tokenizer import normalize

ASCII_PUNCTUATION = set(string.punctuation)
TSHEG = '\u0f0b\u0f0c'                                # stands between the syllables of Tibetan and Dzongkha
# CMRC 2018 drops these marks, and here their normalised forms, as the vocabulary writes , for ，. A segment of what is
# left is a Chinese character, a word, a number, dots or another sign
CMRC_MARKS = '-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』'
CMRC_SEGMENT = re.compile(r"[一-龥]|'?(?:[^\W一-龥]|,(?=\d)|\.(?=[^\W一-龥]))+|[.…]+|\S")
RESAMPLES = 1000
LONGEST = 100_000                                     # characters of a text; ROUGE-L's time grows with their square
ABOUT = {                                             # name: (the start of its signature, what it is)
    'chrF++': ('nc:6|nw:2|', 'characters 1-6 and words 1-2, all texts together; equal to sacrebleu'),
    'bleu': ('tok:{}|smooth:exp|', '1-4 units, all texts together; equal to sacrebleu over these'),
    'rouge_l_f': ('tok:{}|', 'F1 of the longest common subsequence, mean over texts'),
    'rouge_l_p': ('tok:{}|', 'its precision'),
    'rouge_l_r': ('tok:{}|', 'its recall'),
    'rouge_l_char_f': ('tok:char|', 'the same over characters other than white space'),
    'rouge_l_char_p': ('tok:char|', 'its precision'),
    'rouge_l_char_r': ('tok:char|', 'its recall'),
    'f1': ('tok:{}|', 'as SQuAD: units in common, mean over texts'),
    'cmrc_f1': ('tok:cmrc|', 'as CMRC 2018: longest common substring, without its marks (normalised), mean over texts'),
    'exact': ('', 'as SQuAD: texts equal to a reference but for case, punctuation and runs of spaces'),
    'cmrc_exact': ('', 'as CMRC 2018: texts equal to a reference but for case and its marks (normalised)'),
    'empty': ('', 'texts with nothing in them'),
    'repeats': ('', 'texts in which something of 2 to 50 characters stands four times in a row'),
    'wrong_script': ('', "texts most of whose letters are not of the references' script"),
    'wrong_language': ('', 'texts in a wrong script, or that look more like another of the languages at hand'),
}


def chrf(hypotheses, references, words=2, raw=False):
    """chrF++ of a list of texts, 0 to 100 (Popović 2017, aclanthology.org/W17-4770); words=0 gives chrF.

    references: for each text a text, or several of which the best counts. All are normalised, unless `raw`.

    The F score, recall counting twice, of the mean precision and the mean recall over the n-grams of up to 6
    characters (without white space) and up to 2 words, counted over all texts, as sacrebleu computes it; orders of
    which hypotheses or references have none are left out. Raises ValueError for lists of unequal length and for
    references without text.
    """
    hypotheses, references = prepare(hypotheses, references, raw)
    return float(chrf_of(sum(chrf_counts(h, found, words) for h, found in zip(hypotheses, references))))


def score(hypotheses, references, language, samples=None, raw=False):
    """All scores of ABOUT: ({name: (value, low, high)}, {name: [value of each text]}), in percent.

    hypotheses: texts in `language`. references: for each a text, or several of which the best counts. `samples`:
    {language: texts}, from which to tell languages apart; without them there is no `wrong_language`. All texts are
    normalised as the vocabulary has them (data.tokenizer.normalize), unless `raw`.

    Low and high are `wilson`'s where the score is a fraction of the texts, else the 2.5th and 97.5th percentile over
    1,000 resamples of the texts (Koehn 2004, aclanthology.org/W04-3250). What a score cannot say is nan, never 0.
    Raises as `chrf`, for a text without a reference, and for one of over LONGEST characters.
    """
    hypotheses, references = prepare(hypotheses, references, raw)
    if empty := [i for i, found in enumerate(references, 1) if not any(map(str.strip, found))]:
        raise ValueError(f'reference {empty[0]} has no text to score against')
    every, n = [*chain(*references)], len(hypotheses)
    if (longest := max(map(len, hypotheses + every))) > LONGEST:
        raise ValueError(f'a text of {longest:,} characters; scores are for texts of at most {LONGEST:,}: cut it')

    def each(compare, split, *args):
        """compare(hypothesis, [reference, ...]) of each text, all of them split."""
        return [compare(split(h, *args), [split(r, *args) for r in several])
                for h, several in zip(hypotheses, references)]

    def best(compare, split, *args):
        return each(lambda h, several: max(compare(h, r) for r in several), split, *args)

    found = {'chrF++': (np.array(each(chrf_counts, str)), chrf_of),
             'bleu': (np.array(each(bleu_counts, units, language)), bleu_of)}
    for name, values in ('rouge_l', best(rouge_l, units, language)), ('rouge_l_char', best(rouge_l, characters)):
        found |= {f'{name}_{part}': means(x) for part, x in zip('fpr', zip(*values))}
    found['f1'] = means(best(f1, bare, language))
    rates = {'exact': best(eq, bare, language)}
    if language == 'zh':
        marks = CMRC_MARKS if raw else normalize(CMRC_MARKS)
        found['cmrc_f1'] = means(best(cmrc_f1, cmrc_segments, marks))
        rates['cmrc_exact'] = best(eq, cmrc_text, marks)
    rates['empty'] = [not h.strip() for h in hypotheses]
    rates['repeats'] = [re.search(r'(.{2,50}?)\1{3}', h + ' ', re.DOTALL) is not None for h in hypotheses]
    main = main_script(''.join(every))
    rates['wrong_script'] = [main_script(h) not in (main, None) for h in hypotheses]
    if samples:
        rates['wrong_language'] = [wrong or guess not in (language, None) for wrong, guess in
                                   zip(rates['wrong_script'], guess_languages(hypotheses, samples))]
    rng, resampled, whole = np.random.default_rng(0), {name: [] for name in found}, {}
    for _ in range(0, RESAMPLES, 20):                                    # 20 at a time, for memory
        weights = rng.multinomial(n, [1 / n] * n, 20)                    # (20,n)
        for name, (counts, of) in found.items():
            resampled[name].append(of(weights @ counts))
    for name, (counts, of) in found.items():
        values = np.concatenate(resampled[name])                         # (RESAMPLES,)
        bounds = np.nanpercentile(values, [2.5, 97.5]) if np.isfinite(values).any() else [np.nan] * 2
        whole[name] = tuple(float(x) for x in (of(counts.sum(0)), *bounds))
    whole |= {name: wilson(sum(values), n) for name, values in rates.items()}
    return whole, {**{name: of(counts).tolist() for name, (counts, of) in found.items()},
                   **{name: [100.0 * value for value in values] for name, values in rates.items()}}


def prepare(hypotheses, references, raw):
    """Hypotheses, and for each a list of references, as they are scored: normalised, unless `raw`."""
    if len(hypotheses) != len(references):
        raise ValueError(f'{len(hypotheses)} hypotheses for {len(references)} references')
    change = str if raw else normalize
    references = [[change(r) for r in ([found] if isinstance(found, str) else found)] for found in references]
    references = [list(filter(str.strip, found)) or found[:1] for found in references]       # an empty answer is none
    if not any(map(str.strip, chain(*references))):
        raise ValueError('the references have no text to score against')
    return [change(h) for h in hypotheses], references


def signature(name, language, raw=False):
    """How a score splits and normalises texts, in the form of sacrebleu's signatures: tok:word|smooth:exp|norm:none."""
    tok = 'char' if language in BY_CHARACTER else 'syllable' if language in ('bo', 'dz') else 'word'
    return f'{ABOUT[name][0].format(tok)}norm:{"none" if raw else "nmt_nfkc"}'


def means(values):
    """Shares or scores from 0 to 1 of each text, as counts (n,2) and the function that makes a mean of their sum."""
    values = np.array(list(values), float)
    return np.stack([values, np.ones(len(values))], 1), lambda counts: 100 * counts[..., 0] / counts[..., 1]


def wilson(k, n):
    """The fraction k / n and its 95 % interval (Wilson 1927), in percent; the bootstrap has [0, 0] at 0 of n."""
    def lowest(k, z=1.959964):
        return (k + z * z / 2 - z * math.sqrt(z * z / 4 + k * (n - k) / n)) / (n + z * z)

    return 100 * k / n, 100 * lowest(k), 100 * (1 - lowest(n - k))


def chrf_counts(hypothesis, references, words=2):
    """For each order (6 + words) the n-grams of hypothesis and of reference, and those in common; flat (24,).

    Of several references that with the best score of its own.
    """
    splits = [(characters, n) for n in range(1, 7)] + [(chrf_words, n) for n in range(1, words + 1)]
    ours, candidates = [ngrams(split(hypothesis), n) for split, n in splits], []
    for reference in references:
        theirs = [ngrams(split(reference), n) for split, n in splits]
        # sacrebleu counts no n-grams against a reference without any
        candidates.append(np.ravel([(a.total(), b.total(), (a & b).total()) if b else (0, 0, 0)
                                    for a, b in zip(ours, theirs)]))
    return max(candidates, key=chrf_of)


def chrf_of(counts):
    """counts (...,3 * orders), summed over texts -> chrF (...)."""
    ours, theirs, common = np.moveaxis(counts.reshape(*counts.shape[:-1], -1, 3), -1, 0)      # (...,orders)
    there = (ours > 0) & (theirs > 0)
    p, r = ((common / np.maximum(n, 1)).sum(-1, where=there) / np.maximum(there.sum(-1), 1) for n in (ours, theirs))
    return 100 * 5 * p * r / np.maximum(4 * p + r, 1e-16)


def bleu_counts(hypothesis, references):
    """Tokens of hypothesis and of the reference nearest in length, then for n = 1 to 4 the hypothesis' n-grams and
    those in common with any reference; (10,)."""
    found = [len(hypothesis), min(map(len, references), key=lambda n: (abs(n - len(hypothesis)), n))]
    for n in range(1, 5):
        ours, theirs = ngrams(hypothesis, n), reduce(or_, (ngrams(r, n) for r in references))
        found += [ours.total(), (ours & theirs).total()]
    return np.array(found)


def bleu_of(counts):
    """counts (...,10), summed over texts -> BLEU (...): Papineni et al. 2002; an order without matches counts as 1/2,
    the next such as 1/4 and so on of one match (Chen and Cherry 2014, method 3). Of one to three tokens: nan."""
    length, wanted, total, common = counts[..., 0], counts[..., 1], counts[..., 2::2], counts[..., 3::2]
    half = 0.5 ** np.cumsum(common == 0, -1)
    with np.errstate(divide='ignore', invalid='ignore'):
        precision = np.where(common == 0, half, common) / total                               # (...,4)
        brevity = np.exp(np.minimum(0, 1 - wanted / np.maximum(length, 1e-9)))
        value = 100 * brevity * np.exp(np.log(precision).mean(-1))
    value = np.where(common[..., 0] == 0, 0.0, value)
    return np.where((total[..., 3] == 0) & (length > 0), np.nan, value)


def rouge_l(hypothesis, reference):
    """F1, precision and recall, 0 to 1, of the longest common subsequence of two lists (Lin 2004, W04-1013)."""
    if not hypothesis or not reference:
        return 0.0, 0.0, 0.0
    common = longest_common_subsequence(hypothesis, reference)
    return (2 * common / (len(hypothesis) + len(reference)), common / len(hypothesis), common / len(reference))


def longest_common_subsequence(a, b):
    """Its length, by the bit-parallel rows of Hyyrö (2004): a bit an item of a, a few operations an item of b."""
    at = {}
    for i, item in enumerate(a):
        at[item] = at.get(item, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for item in b:
        hit = row & at.get(item, 0)
        row = (row + hit | row - hit) & full
    return len(a) - row.bit_count()


def f1(hypothesis, reference):
    """F1 of two bags of units (SQuAD, Rajpurkar et al. 2016); 1 where both are empty."""
    if not hypothesis or not reference:
        return float(hypothesis == reference)
    return 2 * (Counter(hypothesis) & Counter(reference)).total() / (len(hypothesis) + len(reference))


def cmrc_text(text, marks):
    """In lower case, without the marks: as CMRC 2018 compares answers."""
    return text.lower().strip().translate(dict.fromkeys(map(ord, marks)))


def cmrc_segments(text, marks):
    return CMRC_SEGMENT.findall(cmrc_text(text, marks))


def cmrc_f1(hypothesis, reference):
    """F1, 0 to 1, of the longest common substring of two lists: CMRC 2018's (aclanthology.org/D19-1600).

    The official script splits Latin words by nltk.word_tokenize. That keeps initials (A.), quotes and signs such as ℃
    otherwise: 19 of the 601 different strings without Chinese in the validation set's answers.
    """
    codes, n = {}, 0
    ours, theirs = (''.join(chr(codes.setdefault(x, len(codes))) for x in side) for side in (hypothesis, reference))
    for end in range(1, len(ours) + 1):               # what is in common up to here is at most one longer than before
        n += ours[end - n - 1:end] in theirs
    return 2 * n / max(len(ours) + len(theirs), 1)


def units(text, language):
    """A text in its language's units: syllables between tshegs, characters (BY_CHARACTER), or words between spaces.

    Punctuation marks and symbols are units of their own; nothing but white space and tshegs is dropped, and tshegs
    only beside something else.
    """
    found = [] if language in BY_CHARACTER else text.translate(SPACED).split()
    return found or list(characters(text))


class Spaced(dict):
    """For str.translate: puts spaces in place of tshegs, and around punctuation marks and symbols."""

    def __missing__(self, code):
        self[code] = ' ' if chr(code) in TSHEG else f' {chr(code)} ' if is_mark(chr(code)) else chr(code)
        return self[code]


SPACED = Spaced()


def is_mark(unit):
    return unicodedata.category(unit[0])[0] in 'PS'


def bare(text, language):
    """The units of a text in lower case, without punctuation and symbols unless it has nothing else."""
    found = units(text.casefold(), language)
    return [unit for unit in found if not is_mark(unit)] or found


def characters(text):
    return ''.join(text.split())


def chrf_words(text):
    """Words between spaces; one mark of ASCII punctuation at the end, or else at the start, is a word of its own."""
    found = []
    for word in text.split():
        at = -1 if word[-1] in ASCII_PUNCTUATION else 1 if word[0] in ASCII_PUNCTUATION else len(word)
        found += [part for part in (word[:at], word[at:]) if part]
    return found


def ngrams(items, n):
    return Counter(tuple(items[i:i + n]) for i in range(len(items) - n + 1))


def guess_languages(texts, samples):
    """For each text the language of samples, {language: texts}, that it is likeliest in.

    None where it has no letters, or nothing that the samples have. Naive Bayes over the trigrams of characters: enough
    to tell Kazakh from Mongolian by a sentence.
    """
    def trigrams(text):
        return ngrams(f'  {normalize(text).casefold()} ', 3)

    seen = {language: trigrams(' '.join(sample)) for language, sample in samples.items()}
    least = min(found.total() for found in seen.values())                # so that a small sample is not the likeliest
    scale = {language: least / max(found.total(), 1) for language, found in seen.items()}
    for text in texts:
        found = trigrams(text)
        if main_script(text) is None or not any(found.keys() & known.keys() for known in seen.values()):
            yield None
            continue
        yield max(seen, key=lambda language: sum(
            n * math.log(seen[language][gram] * scale[language] + 0.1) for gram, n in found.items()))


def report(whole, language, names=None, raw=False):
    """Lines of scores with their intervals and signatures, and what they are."""
    for name, (value, low, high) in whole.items():
        if names is None or name in names:
            yield (f'  {name:15}{value:6.1f}  [{low:5.1f}, {high:5.1f}]'.replace('nan', '  –')
                   + f'  {signature(name, language, raw)}  {ABOUT[name][1]}')


def main(argv):
    parser = argparse.ArgumentParser('python -m data.metrics', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('hypotheses', help='a text a line')
    parser.add_argument('references', help='as many lines')
    parser.add_argument('--lang', required=True, type=language_code, help='as bo or bod_Tibt: says what a unit is')
    parser.add_argument('--raw', action='store_true', help='without SentencePiece\'s nmt_nfkc, which makes ， a ,')
    args = parser.parse_args(argv)
    hypotheses, references = (list(read_lines(path)) for path in (args.hypotheses, args.references))
    check_script(references, args.lang, args.references)
    _, prepared = prepare(hypotheses, references, args.raw)
    kept = [pair for pair, (text,) in zip(zip(hypotheses, references), prepared) if text.strip()]
    if left := len(references) - len(kept):
        print(f'{left} lines without a reference are not scored')
    whole, _ = score(*map(list, zip(*kept)), args.lang, raw=args.raw)
    print(f'{len(kept)} texts; percent, with 95 % intervals')
    print('\n'.join(report(whole, args.lang, raw=args.raw)))


if __name__ == '__main__':
    runtime.run(main)
