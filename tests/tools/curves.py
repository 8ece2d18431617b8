"""Compares runs: a table of their last evaluation, learning curves, or a table of one score.

    python tests/tools/curves.py out/tibetan out/other --svg=curves.svg
    python tests/tools/curves.py out/translate out/other --score=chrF++

Needs matplotlib. Each argument is the folder of a run or its log.jsonl; with --score, metrics.json.
In logs, runs whose names differ only in a number behind a dot, like copy.1 and copy.2, are one arm
with several seeds: the table has their mean ± standard deviation, and the figure their mean and
range, both at the steps that all of its seeds have.
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
    """{arm: [evaluations of each seed]}, those of most tasks first, then those of least loss.

    Raises ValueError for a log without evaluations, two runs of one name, and seeds that have no
    step in common.
    """
    arms, names = {}, set()
    for path in map(Path, paths):
        name = run_name(path, 'log.jsonl')
        if name in names:
            raise ValueError(f'{path}: {name} is there already; rename one')
        names.add(name)
        arm = re.sub(r'\.\d+$', '', name)
        arms.setdefault(arm, []).append(read_log(path / 'log.jsonl' if path.is_dir() else path))
    for arm, runs in arms.items():
        steps = sorted(set.intersection(*map(set, runs)))
        if not steps:
            raise ValueError(f'{arm}: its seeds have no evaluation of the same step')
        arms[arm] = [[run[step] for step in steps] for run in runs]

    def order(arm):
        ends = [run[-1]['val'] for run in arms[arm]]
        return -len(ends[0]), statistics.mean(loss for end in ends for loss in end.values())

    return {arm: arms[arm] for arm in sorted(arms, key=order)}


def run_name(path, file):
    """The name of a run's folder, or of a copy of its file in another place."""
    if path.is_dir():
        return path.resolve().name
    return path.resolve().parent.name if path.name == file else path.with_suffix('').name


def read_log(log):
    """{step: line of the log with `val`, and the number of parameters}."""
    lines = log.read_text(encoding='utf-8').splitlines(keepends=True)
    lines = [json.loads(line) for line in lines if line.endswith('\n')]  # a run may be writing one
    evaluations = {line['step']: line for line in lines if 'val' in line}
    if not evaluations:
        raise ValueError(f'{log} has no evaluation')
    parameters = [line['parameters'] for line in lines if 'parameters' in line]
    return {step: {**line, 'parameters': parameters[0] if parameters else None}
            for step, line in evaluations.items()}


def markdown(header, rows):
    """The lines of a Markdown table."""
    lines = ['| ' + ' | '.join(row) + ' |' for row in [header, *rows]]
    return [lines[0], '|' + '---|' * len(header), *lines[1:]]


def table(arms):
    """Markdown lines, a row an arm: parameters, target tokens, losses (nats a token), scores.

    An arm without some of the tasks has no mean of the losses, which could not be compared.
    """
    last = {arm: [run[-1] for run in runs] for arm, runs in arms.items()}
    ends = [end for ends in last.values() for end in ends]
    tasks, scores = (list(dict.fromkeys(name for end in ends for name in end.get(kind, ())))
                     for kind in ('val', 'scores'))
    rows = []
    for arm, ends in last.items():
        sizes = ends[0].get('parameters'), ends[0]['tokens']
        row = [arm, str(len(ends)), *(f'{n / 1e6:.2f}M' if n else '' for n in sizes)]
        means = [statistics.mean(end['val'].values()) for end in ends]
        row.append(spread(means, 2) if all(len(end['val']) == len(tasks) for end in ends) else '')
        for kind, names in ('val', tasks), ('scores', scores):
            for name in names:
                values = [end[kind][name] for end in ends if name in end.get(kind, ())]
                digits = 1 if name.lower().startswith('chrf') else 2
                row.append(spread(values, digits) if len(values) == len(ends) else '')
        rows.append(row)
    return markdown(['arm', 'seeds', 'parameters', 'tokens', 'mean', *tasks, *scores], rows)


def score_table(paths, score):
    """Markdown lines, a row a run: the score of each test and direction, with its 95 % interval.

    Raises ValueError where a run has not been scored, or not by this one.
    """
    runs = {}
    for path in map(Path, paths):
        places = path / 'best/metrics.json', path / 'metrics.json', path
        file = next(place for place in places if place.exists() or place == path)
        metrics = json.loads(file.read_text(encoding='utf-8')) if file.is_file() else {}
        if not metrics.get('scores'):
            raise ValueError(f'{path} has no scores; give the folder of a run of finetune.py, or '
                             'its metrics.json')
        folder = file.resolve().parent
        name = folder.parent.name if folder.name == 'best' else run_name(file, 'metrics.json')
        if name in runs:
            raise ValueError(f'{path}: {name} is there already; rename one')
        runs[name] = {f'{test} {direction}': with_interval(values, score, path)
                      for test, directions in metrics['scores'].items()
                      for direction, values in directions.items()}
    columns = list(dict.fromkeys(column for cells in runs.values() for column in cells))
    rows = [[name, *(cells.get(column, '') for column in columns)] for name, cells in runs.items()]
    return markdown([score, *columns], rows)


def with_interval(values, score, path):
    if score not in values:
        there = ', '.join(key for key in values if isinstance(values[key], dict))
        raise ValueError(f'{path} has no score {score!r} but {there}')
    return '{value:.1f} [{low:.1f}, {high:.1f}]'.format(**values[score])


def spread(values, digits):
    mean = f'{statistics.mean(values):.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else mean


def draw(arms, path):
    """Writes the curves: mean held-out loss of a kind of task against target tokens seen."""
    names = {arm: set(runs[0][0]['val']) for arm, runs in arms.items()}
    kinds = list(dict.fromkeys(name.split()[0] for found in names.values()
                               for name in sorted(found, reverse=True)))
    matplotlib.rcParams.update({'svg.fonttype': 'none', 'svg.hashsalt': 'curves', 'font.size': 9,
                                'axes.spines.top': False, 'axes.spines.right': False})
    figure, panels = plt.subplots(1, len(kinds), figsize=(4.2 * len(kinds) + 1.6, 3.8),
                                  squeeze=False)
    for kind, panel in zip(kinds, panels[0]):
        draw_kind(arms, kind, panel)
    panels[0, 0].set_ylabel('held-out loss, nats a token')
    handles = {label: line for panel in panels[0]
               for line, label in zip(*panel.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc='center right', frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.5 / figure.get_figwidth(), 1))
    figure.savefig(path, metadata={'Date': None})


def draw_kind(arms, kind, panel):
    of_kind = {arm: {name for name in runs[0][0]['val'] if name.split()[0] == kind}
               for arm, runs in arms.items()}
    common = set.intersection(*filter(None, of_kind.values()))  # so that means can be compared
    lowest, start = np.inf, -np.inf
    for i, (arm, runs) in enumerate(arms.items()):
        if not of_kind[arm] or not common:
            continue
        curves = np.array([[statistics.mean(end['val'][name] for name in common) for end in run]
                           for run in runs])
        tokens = [end['tokens'] / 1e6 for end in runs[0]]
        color = f'C{i % 10}'
        panel.plot(tokens, curves.mean(0), '-' if i < 10 else '--', label=arm, color=color)
        panel.fill_between(tokens, curves.min(0), curves.max(0), color=color, alpha=0.2,
                           linewidth=0)
        lowest = min(lowest, curves.min())
        start = max(start, curves[:, min(1, curves.shape[1] - 1)].max())
    panel.set(title=WORDS.get(kind, kind), xlabel='target tokens seen, millions')
    if start > lowest:  # the first evaluation, of an untrained model, is off the scale
        margin = 0.05 * (start - lowest)
        panel.set_ylim(lowest - margin, start + margin)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', help='folders of runs, or their log.jsonl')
    parser.add_argument('--svg', help='file for the figure')
    parser.add_argument('--score', help="a score of finetune.py's metrics.json, such as chrF++")
    args = parser.parse_args()
    try:
        if args.score:
            if args.svg:
                raise ValueError(f'svg={args.svg}: a score is shown as a table; leave --score out '
                                 'for learning curves')
            print('\n'.join(score_table(args.runs, args.score)))
            return
        arms = read_arms(args.runs)
        print('\n'.join(table(arms)))
        if args.svg:
            draw(arms, args.svg)
    except (OSError, ValueError) as e:
        sys.exit(f'error: {e}')


if __name__ == '__main__':
    main()
