"""Fine-tuning on supervised examples, then scores of the model's outputs.

    python finetune.py config/finetune/translate.py --data=web.bo-zh.tsv
    python finetune.py config/finetune/translate.py --data=web.bo-zh.tsv --eval_only=True

The loop is train.py's. At the end out_dir/best has metrics.json and predictions.jsonl.
"""
import json
from collections import namedtuple
from dataclasses import asdict, replace
from pathlib import Path

from config import FineTune, cli, runtime
from config.runtime import print0, rank_and_world
from data.batches import Batches, evenly_spaced, val_batches
from data.dataset import SPECIALS, corpus_module
from data.examples import Examples, languages_of, read_examples, split_examples
from data.files import atomic_dir
from data.heldout import Texts, digest, splits
from data.languages import ids_outside_scripts
from data.metrics import ABOUT, as_json, report, score
from data.tokenizer import normalize
from model import SWCM
from sample import generate_texts, prepare_to_generate, read_settings, run_of
from train import (
    MODEL_SETTINGS, build, check_start, fit, loss_of, read_state, sample_lines, start_folder,
    weight_report,
)

# A task: the texts that form a source, and the score that selects the best checkpoint
Task = namedtuple('Task', 'source score')
TASKS = {
    'translate': Task(['text'], 'chrF++'),
    'summarise': Task(['text'], 'rouge_l_f'),
    'answer': Task(['question', 'context'], 'f1'),
}


def finetune(cfg):
    """Runs one config to its end: reads the examples, trains, scores, writes cfg.out_dir."""
    best = Path(cfg.out_dir, 'best')
    state = None if cfg.eval_only else read_state(cfg)
    parts, left_out = read_parts(cfg)
    texts = [text for e in parts['train'] for text in (e.direction, *e.source, e.target)]
    text_hash = f'{digest(*texts):016x}'
    if not cfg.eval_only:
        check_start(cfg, state, text_hash)
    learns = not cfg.eval_only and not (state and state['progress'].step >= cfg.max_steps)
    scores_best = not cfg.eval_only or best.exists()    # else it scores `checkpoint`
    begin = cfg if learns or not scores_best else replace(cfg, checkpoint=str(best))
    if rank_and_world()[0] == 0:                        # the others wait in `build`
        warn_of_learned(parts, start_folder(begin))
    model, tokenizer = build(begin, state if learns else None)
    banned_ids(cfg, tokenizer)                          # raises for a wrong force_script
    print0(f'{cfg.out_dir}: {cfg.task}\n{weight_report(model)}')
    sets = {}
    for part, found in parts.items():
        sets[part] = [Examples(d, [e for e in found if e.direction == d], tokenizer, cfg,
                               learn=part in ('train', 'val')) for d in cfg.directions]
        for task in sets[part]:
            print0(f'  {task.direction:6} {part:12}{len(task):9,} examples, {task.n_cut:,} sources '
                   f'cut, {task.n_long:,} targets too long, {task.n_inside:,} in their source')
            if task.n_unread:
                print0(f'warning: {task.n_unread} of these have a text over 25 % <unk>, not in the '
                       'vocabulary: see config/vocabulary/README.md')
        sets[part] = [task for task in sets[part] if len(task)]
    print0(f'  left out: {left_out}')
    tests = [(part, task) for part in sets if part not in ('train', 'val') for task in sets[part]]
    if not tests:
        raise ValueError('no examples to score; see --test_fraction and --test')
    if learns:
        learn(cfg, model, tokenizer, sets, state, text_hash)
    if rank_and_world()[0] == 0:
        model = SWCM.load(best) if learns else model
        cfg = replace(cfg, **{name: getattr(model.config, name) for name in MODEL_SETTINGS})
        write_scores(outputs_for(model, tests, tokenizer, cfg), cfg,
                     best if scores_best else best.parent)


def read_parts(cfg):
    """{'train': [Example], 'val': ..., 'test': ..., a name in --test: ...}, and what is left out.
    Raises ValueError for examples of another task, and for a direction without examples."""
    if cfg.task not in TASKS:
        raise ValueError(f'task={cfg.task!r}: choose {", ".join(TASKS)}')
    directions = {*cfg.directions}
    if not directions:
        raise ValueError('learn and transfer are empty')
    if len(directions) < len(cfg.directions):
        raise ValueError(f'{" ".join(cfg.directions)}: give each direction of --learn and '
                         '--transfer once')
    examples, n_empty = read_examples(cfg.data, cfg.directions)
    parts, n_shared = split_examples(examples, cfg.val_fraction, cfg.test_fraction)
    parts['train'] = few_shots(parts['train'], cfg)
    for path in filter(None, cfg.test.split(',')):
        name, (found, n) = Path(path).name.split('.')[0], read_examples(path, cfg.directions)
        if name in ('train', 'val', 'test'):
            raise ValueError(f'test={path}: no test may be called {name}; rename the file')
        parts[name] = parts.get(name, []) + found
        n_empty += n
    examples = [e for found in parts.values() for e in found]
    if missing := directions - {e.direction for e in examples}:
        raise ValueError(f'data={cfg.data}: no examples of {" ".join(missing)}')
    for e in examples:
        if len(e.source) != len(TASKS[cfg.task].source):
            raise ValueError(f'{" ".join(e.source)[:40]!r} is no example for task={cfg.task}, '
                             f'which reads {" and ".join(TASKS[cfg.task].source)}')
    return parts, f'{n_empty:,} without text, {n_shared:,} with a text in common with one held out'


def few_shots(examples, cfg):
    """The examples of cfg.learn, and of each direction of cfg.transfer the first cfg.shots."""
    chosen = [e for e in examples if e.direction in cfg.learn]
    for d in cfg.transfer:
        ranked = sorted({e for e in examples if e.direction == d},
                        key=lambda e: digest('shots', cfg.seed, *e.source, e.target))
        chosen += ranked[:cfg.shots]                    # 50 shots include the first 10
    return chosen


def warn_of_learned(parts, folder):
    """Counts held-out examples that are learned, here or earlier by the model of `folder`."""
    held_out = Texts(text for part, found in parts.items() if part != 'train'
                     for e in found for text in e.texts)
    learned = Texts(text for e in parts['train'] for text in e.texts if text in held_out)
    try:
        learned.update(text for text in texts_learned(folder) if text in held_out)
    except (OSError, ValueError) as e:
        print0(f'warning: what {folder} has learned is not known, perhaps some of the tests ({e})')
    for part, found in parts.items():
        if n := sum(any(text in learned for text in e.texts) for e in found if part != 'train'):
            print0(f'warning: {n} of the {len(found)} examples for {part} are learned, here or by '
                   f'{folder}; to avoid this, hold out the same text there (--val_fraction)')


def texts_learned(folder, before=()):
    """Yields the training texts of a model and of those that it started from, from their runs."""
    run = run_of(folder)
    if isinstance(run, FineTune):
        parts, _ = read_parts(replace(run, test=''))
        yield from (text for e in parts['train'] for text in e.texts)
    elif run:
        corpus, pairs = corpus_module(run.dataset), run.mt_fraction * (run.objective == 'swcm')
        files = corpus.fetch(run.data_from)
        split_of = splits(corpus.documents(files), run.val_fraction)
        for split, texts in (split_of(*document) for document in corpus.documents(files)):
            is_read = pairs > 0 if len(texts) > 1 else pairs < 1
            if split == 'train' and is_read and {*texts} <= {*run.languages}:
                yield from texts.values()
    elif 'share' in read_settings(folder):              # not a plain encoder from the Hub
        raise ValueError('the settings of its run are missing')
    if run and (start := start_folder(run)) not in before:      # two may start from each other
        yield from texts_learned(start, (*before, start))


def learn(cfg, model, tokenizer, sets, state, text_hash):
    """Trains; the best checkpoint has the highest score (that of TASKS) of greedy outputs."""
    learned = {task.direction for task in sets['train']}
    chosen = [task for task in sets['val' if cfg.val_fraction else 'train']
              if task.direction in learned]
    if not learned >= {*cfg.learn} or not chosen:
        raise ValueError(f'data={cfg.data}: too few examples to learn {" ".join(cfg.directions)} '
                         f'(shots={cfg.shots}) and to hold some out with '
                         f'val_fraction={cfg.val_fraction}; try 0.1')
    print0(f'  best checkpoint: by {TASKS[cfg.task].score} of greedy outputs, at most '
           f'{cfg.eval_examples} of {" ".join(task.direction for task in chosen)}; then by loss')
    fit(cfg, model, Batches(sets['train'], cfg), lambda model, is_last: evaluate(
        model, chosen, tokenizer, cfg), state, text_hash, by_scores=True)


def evaluate(model, tasks, tokenizer, cfg):
    """For `fit`: losses (nats per target token), the task's score of greedy outputs, samples."""
    losses, scores, lines, metric = {}, {}, [], TASKS[cfg.task].score
    for task in tasks:
        losses[task.name] = loss_of(model, val_batches(task, cfg, cfg.eval_examples))
        examples, outputs, whole, _ = predict(model, task, tokenizer, cfg, cfg.eval_examples, 1)
        scores[f'{metric} {task.direction}'] = whole[metric][0]
        example, output = examples[len(examples) // 2], outputs[len(examples) // 2]
        lines += sample_lines(task.name, ' | '.join(example.source)[:300], output,
                              normalize(example.target))
    return losses, scores, lines


def predict(model, task, tokenizer, cfg, n, beams):
    """At most n examples of a task (0: all), evenly spaced, outputs, and what `score` returns."""
    chosen = evenly_spaced(len(task), n or len(task))
    banned = banned_ids(cfg, tokenizer).get(task.target, ())
    sources, examples = [task.ids[i][0] for i in chosen], [task.examples[i] for i in chosen]
    outputs, _ = generate_texts(model, tokenizer, sources, [task.target] * len(sources),
                                cfg.max_target_len - SPECIALS, max(1, 64 // beams), banned,
                                beams=beams, length_penalty=cfg.length_penalty,
                                no_repeat_ngram=cfg.no_repeat_ngram)
    references = [(e.target, *e.others) for e in examples]
    return examples, outputs, *score(outputs, references, task.target)


def banned_ids(cfg, tokenizer):
    """{language: ids banned from its outputs}, from force_script, such as bo:TIBETAN+LATIN."""
    written, banned = {languages_of(d)[1] for d in cfg.directions}, {}
    for entry in cfg.force_script:
        language, colon, names = entry.partition(':')
        if language not in written or not colon:
            raise ValueError(f'force_script={entry}: expected LANG:SCRIPT, where LANG is written: '
                             f'{" ".join(sorted(written))}')
        banned[language] = ids_outside_scripts(tokenizer, names.upper().split('+'))
    return banned


def outputs_for(model, tests, tokenizer, cfg):
    """Yields the model's outputs for each test, by the weights that sample.py uses (on a CPU in 16
    bits), for `write_scores`."""
    dtype = 'float32' if cfg.dtype == 'float32' else 'auto'
    mixed = prepare_to_generate(model, cfg.device, dtype)
    for test, task in tests:
        with mixed:
            scored = predict(model, task, tokenizer, cfg, cfg.test_examples, cfg.beams)
        counts = {'too_long': task.n_long, 'cut': task.n_cut, 'inside': task.n_inside}
        yield test, task.direction, counts, *scored


def write_scores(tests, cfg, folder):
    """Prints scores, and writes them and the outputs to metrics.json and predictions.jsonl.

    tests: of each its name, direction, counts to be written, and what `predict` returns."""
    metrics, lines = {}, []
    for test, direction, counts, examples, outputs, whole, each in tests:
        print0(f'{test}, {direction}: {len(examples)} examples; percent, 95 % intervals')
        print0('\n'.join(report(whole)))
        metrics.setdefault(test, {})[direction] = {
            'examples': len(examples), **counts, **as_json(whole)}
        lines += [{'test': test, 'direction': direction, 'source': e.source,
                   'prediction': output, 'reference': e.target, 'others': e.others,
                   'scores': {name: round(values[i], 4) for name, values in each.items()}}
                  for i, (e, output) in enumerate(zip(examples, outputs))]
    whole = {'scores': metrics, 'about': ABOUT, 'settings': asdict(cfg)}
    with atomic_dir(folder) as new:
        texts = json.dumps(whole, indent=1, ensure_ascii=False)
        (new / 'metrics.json').write_text(texts + '\n', encoding='utf-8')
        texts = '\n'.join(json.dumps(line, ensure_ascii=False) for line in lines)
        (new / 'predictions.jsonl').write_text(texts + '\n', encoding='utf-8')
    print0(f'wrote {folder}/metrics.json and predictions.jsonl')


if __name__ == '__main__':
    cli.run(lambda argv: runtime.with_processes(finetune, cli.load(FineTune, argv)))
