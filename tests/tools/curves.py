"""Compares runs by their logs: a table of their last evaluation, and learning curves; or fine-tuned ones by a score.

    python tests/tools/curves.py out/tibetan out/other --svg=curves.svg
    python tests/tools/curves.py config/ablation/logs/*.jsonl --svg=docs/ablation.svg
    python tests/tools/curves.py out/translate out/other --score=chrF++

Needs matplotlib. Each argument is the folder of a run or its log.jsonl; with --score, its metrics.json. In logs, runs
whose names differ only in a number behind a dot, like copy.1 and copy.2, are one arm with several seeds: the table has
their mean ± standard deviation, and the figure their mean and range, both at the steps that all of its seeds have.
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
    """{arm: [evaluations of each seed]}, of most tasks first, then of least loss in the end.

    An evaluation is a line of the log with `val`; the last has the run's parameters too.

    Raises ValueError for a log without evaluations, and for seeds that have no step in common.
    """
    arms = {}
    for path in map(Path, paths):
        log = path / 'log.jsonl' if path.is_dir() else path
        lines = [json.loads(line)
                 for line in log.read_text(encoding='utf-8').splitlines(keepends=True)
                 if line.endswith('\n')]  # the last one of a run that goes on may be half written
        name = re.sub(r'\.\d+$', '',
                      (path if path.is_dir() else log.parent if log.name == 'log.jsonl'
                              else log.with_suffix('')).resolve().name)
        evaluations = {line['step']: line for line in lines if 'val' in line}
        if not evaluations:
            raise ValueError(f'{log} has no evaluation')
        evaluations[max(evaluations)]['parameters'] = next((x['parameters'] for x in lines
                                                            if 'parameters' in x), None)
        arms.setdefault(name, []).append(evaluations)
    for arm, runs in arms.items():
        steps = sorted(set.intersection(*map(set, runs)))
        if not steps:
            raise ValueError(f'{arm}: its seeds have no evaluation of the same step')
        arms[arm] = [[run[step] for step in steps] for run in runs]

    def last_loss(arm):
        ends = [run[-1]['val'] for run in arms[arm]]
        return -len(ends[0]), statistics.mean(loss for end in ends for loss in end.values())

    return {arm: arms[arm] for arm in sorted(arms, key=last_loss)}


def table(arms):
    """Markdown lines: an arm a row, with parameters, target tokens, losses (nats a token) and scores at the end.

    An arm without some of the tasks has no mean of the losses, which could not be compared.
    """
    last = {arm: [run[-1] for run in runs] for arm, runs in arms.items()}
    columns = list(dict.fromkeys((kind, name) for kind in ('val', 'scores')
                                 for ends in last.values()
                                 for end in ends for name in end.get(kind, ())))
    n_tasks = sum(kind == 'val' for kind, _ in columns)
    yield '| ' + ' | '.join(['arm', 'seeds', 'parameters', 'tokens', 'mean',
                             *(name for _, name in columns)]) + ' |'
    yield '|' + '---|' * (len(columns) + 5)
    for arm, ends in last.items():
        parameters = ends[0].get('parameters')
        cells = [arm, str(len(ends)),
                 *(f'{n / 1e6:.2f}M' if n else '' for n in (parameters, ends[0]['tokens']))]
        means = [statistics.mean(end['val'].values()) for end in ends]
        cells.append(spread(means, 2) if len(ends[0]['val']) == n_tasks else '')
        for kind, name in columns:
            values = [end[kind][name] for end in ends if name in end.get(kind, ())]
            digits = 1 if name.lower().startswith('chrf') else 2
            cells.append(spread(values, digits) if len(values) == len(ends) else '')
        yield '| ' + ' | '.join(cells) + ' |'


def score_table(paths, score):
    """Markdown lines: a run a row, and of each test and direction the score with its 95 % interval, in percent.

    Raises ValueError where a run has not been scored, or not by this one.
    """
    rows = {}
    for path in map(Path, paths):
        file = next((p for p in (path / 'best/metrics.json', path / 'metrics.json') if p.exists()),
                    path)
        scores = json.loads(
            file.read_text(encoding='utf-8')).get(
                'scores') if file.is_file() else None
        if not scores:
            raise ValueError(
                f'{path} has no scores; give the folder of a run of finetune.py or its metrics.json')
        run = file.with_suffix('') if file.name != 'metrics.json' else file.resolve().parent
        name = run.parent.name if run.name == 'best' else run.name
        if name in rows:
            raise ValueError(f'{path}: {name} is there already; rename one')
        cells = rows[name] = {}
        for test, directions in scores.items():
            for direction, values in directions.items():
                if score not in values:
                    there = ', '.join(key for key in values if isinstance(values[key], dict))
                    raise ValueError(f'{path} has no score {score!r} but {there}')
                value, low, high = (values[score][key] for key in ('value', 'low', 'high'))
                cells[
                      f'{test} {direction}'] = '–' if value is None else f'{value:.1f} [{low:.1f}, {high:.1f}]'
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    yield '| ' + ' | '.join([score, *columns]) + ' |'
    yield '|' + '---|' * (len(columns) + 1)
    for name, cells in rows.items():
        yield '| ' + ' | '.join([name, *(cells.get(column, '') for column in columns)]) + ' |'


def spread(values, digits):
    mean = f'{statistics.mean(values):.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else mean


def draw(arms, path):
    """Writes the curves: held-out loss, the mean over the tasks of a kind, against target tokens seen."""
    tasks = {arm: set(runs[0][0]['val']) for arm, runs in arms.items()}
    kinds = list(dict.fromkeys(name.split()[0] for found in tasks.values()
                               for name in sorted(found, reverse=True)))
    matplotlib.rcParams.update({'svg.fonttype': 'none', 'svg.hashsalt': 'curves', 'font.size': 9,
                                'axes.spines.top': False, 'axes.spines.right': False})
    figure, panels = plt.subplots(1, len(kinds), figsize=(4.2 * len(kinds) + 1.6, 3.8),
                                  squeeze=False)
    for kind, panel in zip(kinds, panels[0]):
        of_kind = {arm: {name for name in found if name.split()[0] == kind}
                   for arm, found in tasks.items()}
        # so that all means are of the same tasks
        common = set.intersection(*filter(None, of_kind.values()))
        lowest, start = np.inf, -np.inf
        for i, (arm, runs) in enumerate(arms.items()):
            if not of_kind[arm] or not common:
                continue
            curves = np.array([[statistics.mean(end['val'][name] for name in common) for end in run]
                               for run in runs])
            tokens = [end['tokens'] / 1e6 for end in runs[0]]
            style = dict(color=f'C{i % 10}', linestyle='-' if i < 10 else '--')
            panel.plot(tokens, curves.mean(0), label=arm, **style)
            panel.fill_between(tokens, curves.min(0), curves.max(0), color=style['color'],
                               alpha=0.2, linewidth=0)
            lowest = min(lowest, curves.min())
            start = max(start, curves[:, min(1, curves.shape[1] - 1)].max())
        panel.set(title=WORDS.get(kind, kind), xlabel='target tokens seen, millions')
        if start > lowest:  # the first evaluation, of an untrained model, is off the scale
            panel.set_ylim(lowest - 0.05 * (start - lowest), start + 0.05 * (start - lowest))
    panels[0, 0].set_ylabel('held-out loss, nats a token')
    handles = {label: line for panel in panels[0]
               for line, label in zip(*panel.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc='center right', frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.5 / figure.get_figwidth(), 1))
    figure.savefig(path, metadata={'Date': None})


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
                raise ValueError(
                    f'svg={args.svg}: a score is shown as a table; leave --score out for learning curves')
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
