"""Questions made from text: with them a model learns to find a sentence and to copy it.

    python -m data.cloze --text=bo.txt > cloze.bo.jsonl

The answer is a sentence, the context that one and some beside it, and the question has pieces of
the answer and of other sentences. This is near to the inverse cloze task (Lee et al. 2019, arXiv
1906.00300).
"""
import argparse
import json
import random
import re
from itertools import accumulate, chain, pairwise

from config import cli
from data.heldout import SENTENCE_ENDS
from data.languages import BY_CHARACTER, CHARACTER
from data.metrics import TSHEG
from data.text.prepare import documents, fetch


def sentences(text):
    """The sentences of a text, marks included."""
    parts = (part.strip() for line in text.splitlines() for part in SENTENCE_ENDS.split(line))
    return [part for part in parts if part] or [text]


def spaced_units(text, language):
    """The syllables, characters (BY_CHARACTER) or words of a text, with marks and spaces."""
    word = rf'[^\s{TSHEG}]+[\s{TSHEG}]*'
    return re.findall(rf'{CHARACTER.pattern}\s*' if language in BY_CHARACTER else word, text)


def pieces(units, fraction, rng):
    """Pieces of one to four units, in order; about this fraction of them."""
    ends = [0]
    while ends[-1] < len(units):
        ends.append(ends[-1] + rng.randint(1, 4))
    return [''.join(units[i:k]) for i, k in pairwise(ends) if rng.random() < fraction]


def make_question(parts, language, rng):
    """{'question', 'context', 'answer'} from sentences; None if these are too long or too short, or
    no piece is drawn.

    The context is three sentences or more in a row, perhaps of several documents; the answer is one
    of them with 4 to 60 units. The question has pieces of the answer, of another sentence of the
    context, and of any sentence, shuffled: so the answer is not always the sentence that has most
    units in common with the question."""
    longest = 250 if language in ('zh', 'ja') else 600                              # characters
    space = '' if language in BY_CHARACTER else ' '
    start, limit = rng.randrange(len(parts)), rng.uniform(100, longest)
    ends = accumulate(map(len, parts[start:start + 100]))
    context = parts[start:start + sum(end <= limit for end in ends)]
    answers = [part for part in context if 4 <= len(spaced_units(part, language)) <= 60]
    if len(context) < 3 or not answers:
        return None
    answer = rng.choice(answers)
    other = rng.choice([part for part in context if part != answer] or [''])
    asked, *more = (pieces(spaced_units(text + space, language), rng.uniform(low, high), rng)
                    for text, low, high in ((answer, 0.15, 0.6), (other, 0, 0.5),
                                            (rng.choice(parts), 0, 0.4)))
    question = [*asked, *chain(*more)]
    rng.shuffle(question)
    return {'question': ''.join(question).strip(), 'answer': answer,
            'context': space.join(context)} if asked else None


def main(argv):
    parser = argparse.ArgumentParser('python -m data.cloze', description=__doc__.splitlines()[0])
    parser.add_argument('--text', required=True, help='files of one language, separated by commas')
    parser.add_argument('--draws', type=int, default=12000,
                        help='questions to try to make; most succeed (12000)')
    args, rng = parser.parse_args(argv), random.Random(0)
    texts = [text for _, text in documents(fetch(args.text))]
    languages = {language for text in texts for language in text}
    if len(languages) > 1:
        raise ValueError(f'text={args.text}: expected files of one language, not of '
                         f'{" ".join(sorted(languages))}')
    [language] = languages
    parts = [part for text in texts for part in sentences(text[language])]
    found = (make_question(parts, language, rng) for _ in range(args.draws))
    lines = [json.dumps(question, ensure_ascii=False) for question in found if question]
    if not lines:
        raise ValueError(f'text={args.text}, draws={args.draws}: no question. It takes three '
                         'sentences in a row, together under 600 characters (of Chinese or '
                         'Japanese 250). Has your language no full stop? Write a sentence a line')
    print(*lines, sep='\n')


if __name__ == '__main__':
    cli.run(main)
