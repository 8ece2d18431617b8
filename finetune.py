"""Fine-tuning on supervised examples, and scores of what the model then writes.

    python finetune.py config/finetune/translate.py --data=web.bo-zh.tsv
    python finetune.py config/finetune/translate.py --data=web.bo-zh.tsv --eval_only=True

The loop is train.py's. In the end out_dir/best has metrics.json and predictions.jsonl.
"""
import json
from collections import namedtuple
from dataclasses import asdict, replace
from pathlib import Path

from config import FineTune, cli

if __name__ == '__main__':
    cli.start(FineTune)                             # before torch, so that it answers at once

import numpy as np
import torch

from config import runtime
from config.cpu import pack
from config.runtime import main_process_first, print0, rank_and_world
from data.batches import Batches, task_probabilities, val_batches
from data.dataset import SPECIALS, corpus_module
from data.examples import Examples, languages_of, read_examples, split_examples, translation
from data.files import atomic_write, check_folder
from data.heldout import Texts, digest, splits
from data.metrics import ABOUT, report, score
from data.tokenizer import Tokenizer, normalize
from model import SWCM
from sample import read_settings, run_of, write
from train import check_origin, fit, loss_of, model_options, read_state, start_folder, weight_report

# A task: the texts that an example has as its source, whether these are in another language than
# its target, and the scores that are shown, by the first of which the best checkpoint is chosen
Task = namedtuple('Task', 'source is_translation scores')
FAULTS = 'wrong_script', 'wrong_language', 'empty', 'repeats'
TASKS = {
    'translate': Task(['text'], True, ('chrF++', 'bleu', *FAULTS)),
    'summarise': Task(['text'], False, ('rouge_l_f', 'rouge_l_p', 'rouge_l_r', 'rouge_l_char_f',
                                        'chrF++', *FAULTS)),
    'answer': Task(['question', 'context'], False, ('f1', 'exact', 'cmrc_f1', 'cmrc_exact',
                                                    'rouge_l_f', *FAULTS)),
}


def finetune(cfg):
    """Runs one config to its end: reads the examples, trains, scores, writes cfg.out_dir.

    Raises ValueError or FileNotFoundError, which name what is wrong and the remedy.
    """
    if cfg.task not in TASKS:
        raise ValueError(f'task={cfg.task!r}: choose {", ".join(TASKS)}')
    best = Path(cfg.out_dir, 'best')
    state = None if cfg.eval_only else read_state(cfg)
    parts, samples, left_out = read_parts(cfg)
    texts = [text for e in parts['train'] for text in (e.direction, *e.source, e.target)]
    origin = None if cfg.eval_only else check_origin(cfg, state, f'{digest(*texts):016x}')
    is_done = state and state['progress']['step'] >= cfg.max_steps
    begin = cfg
    if is_done or cfg.eval_only and best.exists():
        begin, state = replace(cfg, checkpoint=str(best)), None
    with main_process_first() as is_main:
        if is_main:
            warn_of_learned(parts, start_folder(begin))
    model, tokenizer = build(begin, state)
    sets = {part: [Examples(d, [e for e in found if e.direction == d], tokenizer, cfg,
                            learn=part in ('train', 'val')) for d in (*cfg.learn, *cfg.transfer)]
            for part, found in parts.items()}
    print0('\n'.join(describe(sets, left_out)))
    tests = [(part, task) for part, found in sets.items() for task in found
             if part not in ('train', 'val') and len(task)]
    if not tests:
        raise ValueError('no examples to score; see --test_fraction and --test')
    if not is_done and not cfg.eval_only:
        learn(cfg, model, tokenizer, sets, state, origin)
        model = SWCM.load(best) if rank_and_world()[0] == 0 else model
    if rank_and_world()[0] == 0:
        folder = best.parent if cfg.eval_only and begin is cfg else best
        write_scores(model, tests, samples, tokenizer, cfg, folder)


def read_parts(cfg):
    """{'train': [Example], 'val': ..., 'test': ..., further tests}, samples, what was left out.

    samples: {language: texts}, none of them for tests, by which languages are told apart.
    """
    directions, samples = [*cfg.learn, *cfg.transfer], {}
    examples, left_out = read_examples(cfg.data, directions)
    parts, left_out['text in common with one held out'] = split_examples(
        examples, cfg.val_fraction, cfg.test_fraction)
    for e in parts['train'] + parts['val']:
        for language, side in zip(languages_of(e.direction), (e.source, (e.target,))):
            samples.setdefault(language, []).extend(side)
    parts['train'] = few_shots(parts['train'], cfg)
    if cfg.test:
        parts['test files'], more = read_examples(cfg.test, directions)
        left_out += more
    if cfg.test_dataset:
        parts[cfg.test_dataset] = corpus_examples(cfg, directions)
    check_examples(cfg, [e for found in parts.values() for e in found])
    return parts, {language: texts[:3000] for language, texts in samples.items()}, left_out


def check_examples(cfg, examples):
    """Raises ValueError for an example that is not of the task, and a direction without any."""
    if missing := {*cfg.learn, *cfg.transfer} - {e.direction for e in examples}:
        raise ValueError(f'data={cfg.data}: no examples of {" ".join(missing)}')
    task = TASKS[cfg.task]
    for e in examples:
        if len(e.source) != len(task.source) or task.is_translation and '-' not in e.direction:
            raise ValueError(f'{" ".join(e.source)[:40]!r} is no example for task={cfg.task}: its '
                             f'source has {len(e.source)} texts, its language is {e.direction}')


def few_shots(examples, cfg):
    """The examples of cfg.learn, and cfg.shots different ones of each direction of cfg.transfer.

    Which ones depends on the seed and on nothing else; fewer shots are a part of more.
    """
    few = []
    for d in cfg.transfer:
        of_direction = {e for e in examples if e.direction == d}
        few += sorted(of_direction, key=lambda e: digest('shots', cfg.seed, *e.source, e.target)
                      )[:cfg.shots]
    return [e for e in examples if e.direction in cfg.learn] + few


def corpus_examples(cfg, directions):
    """All pairs of the corpus cfg.test_dataset, which is of translations only."""
    corpus = corpus_module(cfg.test_dataset)
    with main_process_first():
        files = corpus.fetch(cfg.test_from)
    return [translation({language: texts[language] for language in languages_of(d)}, d)
            for _, texts in corpus.documents(files) for d in directions
            if '-' in d and {*languages_of(d)} <= {*texts}]


def warn_of_learned(parts, folder):
    """Counts held-out examples that are learned, here or before by the model of `folder`."""
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
                   f'{folder}; hold out there (--val_fraction) what is held out here')


def texts_learned(folder):
    """Yields what a model, and those it began from, learned, by the settings of their runs."""
    run = run_of(folder)
    if isinstance(run, FineTune):
        parts, *_ = read_parts(replace(run, test='', test_dataset=''))
        yield from (text for e in parts['train'] for text in e.texts)
    elif run:
        corpus, pairs = corpus_module(run.dataset), run.mt_fraction * (run.objective == 'swcm')
        files = corpus.fetch(run.data_from)
        split_of = splits(corpus.documents(files), run.val_fraction)
        for split, texts in (split_of(*document) for document in corpus.documents(files)):
            is_read = pairs > 0 if len(texts) > 1 else pairs < 1
            if split == 'train' and is_read and {*texts} <= {*run.languages}:
                yield from texts.values()
    elif 'share' in read_settings(folder):              # not an encoder as the Hub has it
        raise ValueError('the settings of its run are not beside it')
    if run:
        yield from texts_learned(start_folder(run))


def build(cfg, state):
    """The model, from a checkpoint or from an encoder, and its tokenizer."""
    torch.manual_seed(cfg.seed)
    languages = tuple(dict.fromkeys('-'.join((*cfg.learn, *cfg.transfer)).split('-')))
    folder = f'{cfg.out_dir}/last' if state else start_folder(cfg)
    check_folder(folder)
    if state or cfg.checkpoint:                         # of a state `fit` then fills in the weights
        model = SWCM.load(folder, dropout=cfg.dropout)
    else:
        model = SWCM.from_encoder(folder, languages=languages, **model_options(cfg))
    print0(f'{cfg.out_dir}: {cfg.task}\n{weight_report(model, cfg, state)}')
    c = model.config
    if max(cfg.max_source_len, cfg.max_target_len) > c.max_length:
        raise ValueError(f'max_source_len={cfg.max_source_len}, max_target_len='
                         f'{cfg.max_target_len}: this model reads at most {c.max_length} tokens')
    tokenizer = Tokenizer(model.encoder.sentencepiece, c.languages, c.vocab_size)
    banned_ids(cfg, tokenizer)                          # raises for a wrong force_script
    return model, tokenizer


def describe(sets, left_out):
    """Yields lines: examples of each part and direction, and what was cut or left out."""
    for part, task in ((part, task) for part, tasks in sets.items() for task in tasks):
        yield (f'  {task.direction:6} {part:12}{len(task):9,} examples, {task.n_cut:,} sources '
               f'cut, {task.n_long:,} targets too long')
    yield from (f'  left out, {reason}: {n:,}' for reason, n in left_out.items() if n)


def learn(cfg, model, tokenizer, sets, state, origin):
    """Trains; the best checkpoint is that of the best first score of greedy outputs."""
    tasks = [task for task in sets['train'] if len(task)]
    learned = {task.direction for task in tasks}
    chosen = [task for task in sets['val' if cfg.val_fraction else 'train']
              if len(task) and task.direction in learned]
    if not learned >= {*cfg.learn} or not chosen:
        raise ValueError(f'data={cfg.data}: too few examples to learn {",".join(cfg.learn)} and to '
                         f'hold some out with val_fraction={cfg.val_fraction}; try 0.1')
    print0(f'  best checkpoint: by {TASKS[cfg.task].scores[0]} of greedy outputs, at most '
           f'{cfg.eval_examples} of {" ".join(task.direction for task in chosen)}; then by loss')
    fit(cfg, model, Batches(tasks, task_probabilities(tasks, 0, cfg.alpha), cfg),
        lambda model, is_last: evaluate(model, chosen, tokenizer, cfg), state, origin,
        metric=lambda losses, scores: -sum(scores.values()) / len(scores))


def evaluate(model, tasks, tokenizer, cfg):
    """For `fit`: losses (nats per target token), the first score of greedy outputs, samples."""
    losses, scores, lines, metric = {}, {}, [], TASKS[cfg.task].scores[0]
    for task in tasks:
        losses[task.name] = loss_of(model, val_batches(task, cfg, cfg.eval_examples))
        examples, outputs, whole, _ = predict(model, task, tokenizer, cfg, cfg.eval_examples, 1)
        scores[f'{metric} {task.direction}'] = whole[metric][0]
        example, output = examples[len(examples) // 2], outputs[len(examples) // 2]
        lines += [f'  {task.name}', f'    source     {" | ".join(example.source)[:300]}',
                  f'    output     {output}', f'    reference  {normalize(example.target)}']
    return losses, scores, lines


def predict(model, task, tokenizer, cfg, n, beams, samples=None):
    """At most n of a task's examples (0: all), evenly spread, outputs, and what `score` returns."""
    n = min(n or len(task), len(task))
    chosen = np.linspace(0, len(task) - 1, n).astype(int)
    banned = banned_ids(cfg, tokenizer).get(task.target, ())
    found = write(model, tokenizer, [task.ids[i][0] for i in chosen], [task.target] * n,
                  cfg.max_target_len - SPECIALS, max(1, 64 // beams), banned, beams=beams,
                  length_penalty=cfg.length_penalty, no_repeat_ngram=cfg.no_repeat_ngram)
    examples, outputs = [task.examples[i] for i in chosen], [text for text, _ in found]
    references = [(e.target, *e.others) for e in examples]
    return examples, outputs, *score(outputs, references, task.target, samples)


def banned_ids(cfg, tokenizer):
    """{language: ids that its outputs must not have}, of force_script, as bo:TIBETAN+LATIN."""
    written, banned = {languages_of(d)[1] for d in (*cfg.learn, *cfg.transfer)}, {}
    for entry in cfg.force_script:
        language, _, names = entry.partition(':')
        if language not in written:
            raise ValueError(f'force_script={entry}: name one of the languages that are written, '
                             f'{" ".join(sorted(written))}')
        banned[language] = tokenizer.ids_outside_scripts(names.upper().split('+'))
    return banned


def write_scores(model, tests, samples, tokenizer, cfg, folder):
    """Scores the model's outputs for all tests; prints, writes metrics.json, predictions.jsonl."""
    metrics, lines = {}, []
    device, dtype = runtime.find_device(cfg.device, cfg.dtype)
    model.to(device).eval()
    if device.type == 'cpu' and dtype == torch.float32:
        pack(model)
    for test, task in tests:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            examples, outputs, whole, each = predict(model, task, tokenizer, cfg,
                                                     cfg.test_examples, cfg.beams, samples)
        print0(f'{test}, {task.direction}: {len(examples)} examples; percent, 95 % intervals')
        print0('\n'.join(report(whole, TASKS[cfg.task].scores)))
        metrics.setdefault(test, {})[task.direction] = {
            'examples': len(examples), 'too_long': task.n_long, 'cut': task.n_cut,
            **{name: dict(zip(('value', 'low', 'high'), map(or_null, values)))
               for name, values in whole.items()}}
        lines += [{'test': test, 'direction': task.direction, 'source': e.source,
                   'prediction': output, 'reference': e.target, 'others': e.others,
                   'scores': {name: or_null(values[i]) for name, values in each.items()}}
                  for i, (e, output) in enumerate(zip(examples, outputs))]
    whole = {'scores': metrics, 'about': ABOUT, 'settings': asdict(cfg)}
    texts = {'metrics.json': json.dumps(whole, indent=1, ensure_ascii=False),
             'predictions.jsonl': '\n'.join(json.dumps(x, ensure_ascii=False) for x in lines)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with atomic_write(folder / name) as path:
            path.write_text(text + '\n', encoding='utf-8')
    print0(f'wrote {folder}/metrics.json and predictions.jsonl')


def or_null(value):
    return round(value, 4) if value == value else None  # JSON has no nan


if __name__ == '__main__':
    cli.run(lambda argv: runtime.with_processes(finetune, cli.load(FineTune, argv)))
