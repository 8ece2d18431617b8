"""Compares runs by their logs: a table of their last evaluation, and learning curves. Needs matplotlib.

    python tests/curves.py out/tibetan out/other --svg=curves.svg
    python tests/curves.py config/ablation/logs/*.jsonl --svg=docs/ablation.svg

Each argument is the folder of a run or its log.jsonl. Runs whose names differ only in a number behind the last dot,
like copy.1 and copy.2, are one arm with several seeds: the table gives their mean ± standard deviation, and the
figure their mean and range.
"""
import argparse
import json
import re
import statistics
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

WORDS = {'mt': 'translation', 'dae': 'denoising', 'mlm': 'masked tokens'}


def read_arms(paths):
    """{arm: [(parameters, evaluations) of each seed]}; an evaluation is a line of the log that has `val`.

    Raises ValueError for a log without evaluations.
    """
    arms = {}
    for path in map(Path, paths):
        log = path / 'log.jsonl' if path.is_dir() else path
        lines = [json.loads(line) for line in log.read_text(encoding='utf-8').splitlines()]
        evaluations = [line for line in lines if 'val' in line]
        if not evaluations:
            raise ValueError(f'{log} has no evaluation')
        name = path.name.removesuffix('.jsonl')
        if name == 'log':
            name = path.parent.name
        parameters = next((line['parameters'] for line in lines if 'parameters' in line), 0)
        arms.setdefault(re.sub(r'\.\d+$', '', name), []).append((parameters, evaluations))
    return arms


def table(arms):
    """Markdown lines: an arm a row, with parameters, target tokens, losses (nats a token) and scores at the end."""
    last = {arm: [evaluations[-1] for _, evaluations in runs] for arm, runs in arms.items()}
    columns = list(dict.fromkeys((kind, name) for ends in last.values() for kind in ('val', 'scores')
                                 for end in ends for name in end.get(kind, ())))
    yield '| ' + ' | '.join(['arm', 'seeds', 'parameters', 'tokens', *(name for _, name in columns)]) + ' |'
    yield '|' + '---|' * (len(columns) + 4)
    for arm, ends in last.items():
        cells = [arm, str(len(ends)), f'{arms[arm][0][0] / 1e6:.2f}M', f'{ends[0]["tokens"] / 1e6:.2f}M']
        for kind, name in columns:
            values = [end[kind][name] for end in ends if name in end.get(kind, ())]
            cells.append(spread(values, 3 if kind == 'val' else 1 if max(values, default=0) > 1 else 3))
        yield '| ' + ' | '.join(cells) + ' |'


def spread(values, digits):
    if not values:
        return ''
    mean = f'{statistics.mean(values):.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else mean


def draw(arms, path):
    """Writes the curves: held-out loss, the mean over the tasks of a kind, against target tokens seen."""
    kinds = list(dict.fromkeys(name.split()[0] for runs in arms.values() for _, evaluations in runs
                               for name in evaluations[-1]['val']))
    matplotlib.rcParams.update({'svg.fonttype': 'none', 'svg.hashsalt': 'curves', 'font.size': 9,
                                'axes.spines.top': False, 'axes.spines.right': False})
    figure, panels = plt.subplots(1, len(kinds), figsize=(4.2 * len(kinds) + 1.6, 3.8), squeeze=False)
    for kind, panel in zip(kinds, panels[0]):
        lowest, start = np.inf, -np.inf
        for i, (arm, runs) in enumerate(arms.items()):
            steps = sorted(set.intersection(*({e['step'] for e in evaluations} for _, evaluations in runs)))
            curves = np.array([[statistics.mean(values) if (values := losses(e, kind)) else np.nan
                                for e in evaluations if e['step'] in steps] for _, evaluations in runs])
            if np.isnan(curves).any():                # an arm that does not learn this kind
                continue
            tokens = [e['tokens'] / 1e6 for e in runs[0][1] if e['step'] in steps]
            style = dict(color=f'C{i % 10}', linestyle='-' if i < 10 else '--')
            panel.plot(tokens, curves.mean(0), label=arm, **style)
            panel.fill_between(tokens, curves.min(0), curves.max(0), color=style['color'], alpha=0.2, linewidth=0)
            lowest = min(lowest, curves.min())
            start = max(start, curves[:, min(1, curves.shape[1] - 1)].max())
        panel.set(title=WORDS.get(kind, kind), xlabel='target tokens seen, millions',
                  ylim=(lowest - 0.05 * (start - lowest), start + 0.05 * (start - lowest)) if start > lowest else None)
    panels[0, 0].set_ylabel('held-out loss, nats a token')
    handles = {label: line for panel in panels[0] for line, label in zip(*panel.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc='center right', frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.5 / figure.get_figwidth(), 1))
    figure.savefig(path, metadata={'Date': None})


def losses(evaluation, kind):
    return [value for name, value in evaluation['val'].items() if name.split()[0] == kind]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', help='folders of runs, or their log.jsonl')
    parser.add_argument('--svg', help='file for the figure')
    args = parser.parse_args()
    try:
        arms = read_arms(args.runs)
        print('\n'.join(table(arms)))
        if args.svg:
            draw(arms, args.svg)
    except (OSError, ValueError) as e:
        sys.exit(f'error: {e}')


if __name__ == '__main__':
    main()
