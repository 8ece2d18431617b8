"""Whether one run's outputs are better than another's: differences of their scores.

    python tests/tools/compare.py out/copy/best out/none/best --out=copy-none.json

Both folders have the predictions.jsonl of the same tests. For each score: the first minus the
second, in percent, with the 95 % interval that texts drawn with replacement give, for both the same
(paired bootstrap; Koehn 2004, aclanthology.org/W04-3250). An interval without 0 means that other
texts of this kind would give the same answer; of other seeds it says nothing. A score that differs
for no text is left out. curves.py --score makes a table of such files.
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from data.metrics import bootstrap, chrf_counts, chrf_of, normalize_all


def read_predictions(folder):
    """{(test, direction): its lines of predictions.jsonl}"""
    tests = {}
    with open(Path(folder, 'predictions.jsonl'), encoding='utf-8') as lines:
        for line in map(json.loads, lines):
            tests.setdefault((line['test'], line['direction']), []).append(line)
    return tests


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
    for name in [name for name in ours[0]['scores'] if name not in ('chrF++', 'shuffled')]:
        pairs = zip(ours, theirs)
        values = np.array([(a['scores'][name] - b['scores'][name], 1) for a, b in pairs])
        if values[:, 0].any():
            found[name] = bootstrap(values, lambda sums: sums[0] / sums[1])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('first')
    parser.add_argument('second')
    parser.add_argument('--out', help='a file for curves.py --score')
    args = parser.parse_args()
    try:
        first, second = read_predictions(args.first), read_predictions(args.second)
        scores = {}
        for test, direction in first:
            ours, theirs = first[test, direction], second.get((test, direction), ())
            if [(x['source'], x['reference']) for x in ours] != [
                    (x['source'], x['reference']) for x in theirs]:
                raise ValueError(f'{args.second} has other examples of {test}, {direction} than '
                                 f'{args.first}; score both with the same --data and --test')
            print(f'{test}, {direction}: {len(ours)} examples')
            found = differences(ours, theirs)
            for name, interval in found.items():
                print('  {:15}{:+6.1f}  [{:+5.1f}, {:+5.1f}]'.format(name, *interval))
            scores.setdefault(test, {})[direction] = {
                name: dict(zip(('value', 'low', 'high'), (round(x, 4) for x in interval)))
                for name, interval in found.items()}
        if args.out:
            Path(args.out).write_text(json.dumps({'scores': scores}, indent=1) + '\n',
                                      encoding='utf-8')
    except (OSError, ValueError) as e:
        sys.exit(f'error: {e}')


if __name__ == '__main__':
    main()
