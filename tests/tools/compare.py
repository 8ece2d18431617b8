"""Whether one run's outputs are better than another's: differences of their scores.

    python tests/tools/compare.py out/copy/best out/none/best --out=copy-none.json

Both folders have a predictions.jsonl. For each score of the tests in both: the first minus the
second, in percent, with the 95 % interval that texts drawn with replacement give, for both the same
(paired bootstrap; Koehn 2004, aclanthology.org/W04-3250). An interval without 0 means that other
texts of this kind would very likely give the same sign; of other seeds it says nothing. Of empty,
repeats and wrong_script less is better; `shuffled` is left out. curves.py --score makes a table of
such files.
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from config import cli
from data.files import read_json_object, read_lines
from data.metrics import as_json, bootstrap, chrf_counts, chrf_of, normalize_all


def read_predictions(folder):
    """{(test, direction): its lines of predictions.jsonl}"""
    path, tests = Path(folder, 'predictions.jsonl'), {}
    for n, line in enumerate(read_lines(path), 1):
        found = read_json_object(line, f'{path}: line {n}')
        if not {'test', 'direction', 'others', 'scores'} <= found.keys():
            raise ValueError(f'{path}: line {n} is no output that finetune.py has scored')
        tests.setdefault((found['test'], found['direction']), []).append(found)
    return tests


def examples_of(lines):
    """What must be equal in two runs that are compared."""
    return [(x['source'], x['reference'], x['others'], [*x['scores']]) for x in lines]


def counts_of(lines):
    """chrF++'s counts for each line (n, 3 * orders)."""
    references = [(line['reference'], *line['others']) for line in lines]
    predictions = [line['prediction'] for line in lines]
    return np.array(list(map(chrf_counts, *normalize_all(predictions, references))))


def differences(ours, theirs):
    """{score: (value, low, high)} of two lists of lines."""
    counts = np.hstack([counts_of(ours), counts_of(theirs)])
    half = counts.shape[1] // 2
    found = {'chrF++': bootstrap(counts, lambda n: chrf_of(n[:half]) - chrf_of(n[half:]))}
    for name in ours[0]['scores']:
        if name not in ('chrF++', 'shuffled'):
            values = [(a['scores'][name] - b['scores'][name], 1) for a, b in zip(ours, theirs)]
            found[name] = bootstrap(np.array(values), lambda sums: sums[0] / sums[1])
    return found


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, prog='compare.py',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('first')
    parser.add_argument('second')
    parser.add_argument('--out', help='a file for curves.py --score')
    args = parser.parse_args(argv)
    first, second = read_predictions(args.first), read_predictions(args.second)
    tests, scores = [test for test in first if test in second], {}
    if not tests:
        raise ValueError(f'{args.first} and {args.second} have no test in common')
    for test, direction in tests:
        ours, theirs = first[test, direction], second[test, direction]
        if examples_of(ours) != examples_of(theirs):
            raise ValueError(f'{args.first} and {args.second} do not have the same examples of '
                             f'{test}, {direction}; score both with the same settings')
        print(f'{test}, {direction}: {len(ours)} examples')
        found = differences(ours, theirs)
        for name, interval in found.items():
            print('  {:15}{:+6.1f}  [{:+5.1f}, {:+5.1f}]'.format(name, *interval))
        scores.setdefault(test, {})[direction] = as_json(found)
    if args.out:
        text = json.dumps({'first': args.first, 'second': args.second, 'scores': scores}, indent=1)
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__':
    cli.run(main)
