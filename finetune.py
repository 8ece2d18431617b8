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
from data.examples import (
    Example, Examples, direction, languages_of, read_examples, split_examples,
)
from data.files import atomic_write, check_folder
from data.heldout import Texts, digest, splits
from data.metrics import ABOUT, LONGEST, report, score, signature
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
FEW = 50                                                # examples: a warning below


def finetune(cfg):
    """Runs one config to its end: reads the examples, trains, scores, writes cfg.out_dir.

    Raises ValueError or FileNotFoundError, which name what is wrong and the remedy.
    """
    cfg = check_settings(cfg)
    state = None if cfg.eval_only else read_state(cfg)
    parts, samples, left_out = read_parts(cfg)
    texts = [text for e in parts['train'] for text in (e.direction, *e.source, e.target)]
    best = Path(cfg.out_dir, 'best')
    origin = None if cfg.eval_only else check_origin(cfg, state, f'{digest(*texts):016x}')
    is_done = cfg.eval_only or state and state['progress']['step'] >= cfg.max_steps
    begin = cfg
    if is_done and (best / 'model.safetensors').exists():
        begin = replace(cfg, checkpoint=str(best))
    elif is_done and not cfg.eval_only:
        raise ValueError(f'{best} is missing, though the run is done; --resume=False starts over')
    with main_process_first() as is_main:
        if is_main:
            warn_of_learned(parts, start_folder(begin))
    model, tokenizer = build(begin, None if is_done else state)
    sets = {part: [Examples(d, [e for e in found if e.direction == d], tokenizer, cfg,
                            learn=part in ('train', 'val')) for d in (*cfg.learn, *cfg.transfer)]
            for part, found in parts.items()}
    print0(f'{cfg.out_dir}: {cfg.task}\n' + '\n'.join(describe(sets, left_out, cfg)))
    tests = {part: list(filter(len, found)) for part, found in sets.items()
             if part not in ('train', 'val')}
    if not any(tests.values()) or any(not found for part, found in tests.items() if part != 'test'):
        raise ValueError('no examples to score; see --test_fraction and --test')
    if not is_done:
        learn(cfg, model, tokenizer, sets, state, origin)
        model = SWCM.load(best) if rank_and_world()[0] == 0 else model
    if rank_and_world()[0] == 0:
        is_new = cfg.eval_only and begin is cfg
        write_scores(model, tests, samples, tokenizer, cfg, Path(cfg.out_dir) if is_new else best)


def check_settings(cfg):
    if cfg.task not in TASKS:
        raise ValueError(f'task={cfg.task!r}: choose {", ".join(TASKS)}')
    if not cfg.data:
        raise ValueError("data='': give files of examples, separated by commas")
    if cfg.test_from and not cfg.test_dataset:
        raise ValueError(f'test_from={cfg.test_from}: name the corpus too, --test_dataset=ntrex; '
                         'files of examples go into --test')
    both = [*cfg.learn, *cfg.transfer]
    if len(set(map(languages_of, both))) < len(both):
        raise ValueError(f'learn={",".join(cfg.learn)}, transfer={",".join(cfg.transfer)}: name '
                         'each direction once')
    return replace(cfg, learn=tuple(direction(*languages_of(d)) for d in cfg.learn),
                   transfer=tuple(direction(*languages_of(d)) for d in cfg.transfer))


def read_parts(cfg):
    """{'train': [Example], 'val': ..., 'test': ..., further tests}, samples, what was left out.

    samples: {language: texts}, none of them for tests, by which languages are told apart.
    """
    directions = [*cfg.learn, *cfg.transfer]
    examples, left_out = read_examples(cfg.data, directions)
    parts, left_out['text in common with one held out'] = split_examples(
        examples, cfg.val_fraction, cfg.test_fraction)
    samples = {}
    for e in parts['train'] + parts['val']:
        for language, side in zip(languages_of(e.direction), (e.source, (e.target,))):
            samples.setdefault(language, []).extend(side)
    parts['train'] = few_shots(parts['train'], cfg)
    if cfg.test:
        parts['test files'], more = read_examples(cfg.test, directions)
        left_out += more
    if cfg.test_dataset:
        parts[cfg.test_dataset] = corpus_examples(cfg, directions)
    there = {e.direction for found in parts.values() for e in found}
    if missing := [d for d in directions if d not in there]:
        raise ValueError(f'data={cfg.data}: no examples of {" ".join(missing)}')
    for found in parts.values():
        check_examples(cfg.task, found)
    return parts, {language: texts[:3000] for language, texts in samples.items()}, left_out


def check_examples(task, examples):
    """Raises ValueError for an example that is not of the task."""
    for e in examples:
        start = repr(' '.join(e.source)[:40])
        if len(e.source) != len(TASKS[task].source):
            raise ValueError(f'task={task}: {start} has {len(e.source)} texts as its source, not '
                             f'{" and ".join(TASKS[task].source)}; see --task')
        if TASKS[task].is_translation and '-' not in e.direction:
            raise ValueError(f'task={task}: {start} has its target in its language; see --task')
        if (longest := max(map(len, (e.target, *e.others)))) > LONGEST:
            raise ValueError(f'{start}: its target has {longest:,} characters; at most {LONGEST:,}')


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
    """All pairs of the corpus cfg.test_dataset."""
    corpus, found = corpus_module(cfg.test_dataset), []
    with main_process_first():
        files = corpus.fetch(cfg.test_from)
    for _, texts in corpus.documents(files):
        for source, target in map(languages_of, directions):
            if source != target and {source, target} <= set(texts):
                pair = texts[source], texts[target]
                found.append(Example(f'{source}-{target}', pair[:1], pair[1], '', pair))
    return found


def warn_of_learned(parts, folder):
    """Counts examples for validation and tests that are learned, here or before by `folder`."""
    held_out = Texts(text for part, found in parts.items() if part != 'train'
                     for e in found for text in e.texts)
    learned = Texts(text for e in parts['train'] for text in e.texts if text in held_out)
    try:
        learned.update(text for text in texts_learned(folder) if text in held_out)
    except (OSError, ValueError) as e:
        print0(f'warning: what {folder} has learned is not known, perhaps some of the tests ({e})')
    for part, found in parts.items():
        n = sum(any(text in learned for text in e.texts) for e in found if part != 'train')
        if n:
            print0(f'warning: {n} of the {len(found)} examples for {part} are learned, here or by '
                   f'{folder}; hold out there (--val_fraction) what is held out here')


def texts_learned(folder):
    """The texts that a model was trained on, and those it began from, by the settings beside it.

    Raises OSError or ValueError where settings or texts are missing. Of an encoder without
    settings nothing is known.
    """
    run = run_of(folder) if folder else None
    if not run:
        if folder and 'share' in read_settings(folder):
            raise ValueError('the settings of its run are not beside it')
        return
    if isinstance(run, FineTune):
        parts, *_ = read_parts(replace(run, test='', test_dataset=''))
        yield from (text for e in parts['train'] for text in e.texts)
    else:
        corpus, is_mlm = corpus_module(run.dataset), run.objective == 'mlm'
        files = corpus.fetch(run.data_from)
        split_of = splits(corpus.documents(files), run.val_fraction)
        for split, texts in (split_of(*document) for document in corpus.documents(files)):
            fraction = run.mt_fraction if len(texts) > 1 else 1 - run.mt_fraction
            fraction = float(len(texts) == 1) if is_mlm else fraction
            if split == 'train' and fraction and set(texts) <= set(run.languages):
                yield from texts.values()
    yield from texts_learned(start_folder(run))


def build(cfg, state):
    """The model, from a checkpoint or from an encoder, and its tokenizer."""
    torch.manual_seed(cfg.seed)
    both = [language for d in (*cfg.learn, *cfg.transfer) for language in languages_of(d)]
    languages = tuple(dict.fromkeys(both))
    folder = start_folder(cfg)
    if state:                                           # `fit` then fills in its weights
        model = SWCM.load(Path(cfg.out_dir, 'last'), dropout=cfg.dropout)
    elif cfg.checkpoint:
        check_folder(folder)
        model = SWCM.load(folder, dropout=cfg.dropout)
    else:
        model = SWCM.from_encoder(folder, languages=languages, **model_options(cfg))
    c = model.config
    print0(f'{"model" if cfg.checkpoint else "new model from"} {folder}: layer={c.layer}, '
           f'share={c.share}, insert_every={c.insert_every}, inserted={c.inserted}, head={c.head}')
    if max(cfg.max_source_len, cfg.max_target_len) > c.max_length:
        raise ValueError(f'max_source_len={cfg.max_source_len}, max_target_len='
                         f'{cfg.max_target_len}: this model reads at most {c.max_length} tokens')
    tokenizer = Tokenizer(model.encoder.sentencepiece, c.languages, c.vocab_size)
    for language in languages:
        tokenizer.language_id(language)                 # raises for one that it does not know
    banned_ids(cfg, tokenizer)                          # raises for a wrong force_script
    return model, tokenizer


def describe(sets, left_out, cfg):
    """Lines: examples of each part and direction, and what was cut or left out."""
    yield f'  {"":12}' + ''.join(f'{part:>12}' for part in sets) + f'{"cut":>10}{"too long":>10}'
    for tasks in zip(*sets.values()):
        n = sum(map(len, tasks))
        n_long = sum(t.n_long for part, t in zip(sets, tasks) if part in ('train', 'val'))
        yield (f'  {tasks[0].direction:12}' + ''.join(f'{len(task):12,}' for task in tasks)
               + f'{sum(task.n_cut for task in tasks) / max(n, 1):10.1%}{n_long:10,}')
    yield (f'  cut: sources of over {cfg.max_source_len} tokens; too long: targets of over '
           f'{cfg.max_target_len}, not learned')
    yield from (f'  left out, {reason}: {n:,}' for reason, n in left_out.items() if n)
    few = [f'{len(task)} of {part} {task.direction}' for part, tasks in sets.items()
           for task in tasks if part != 'train' and 0 < len(task) < FEW]
    if few:
        yield (f'  warning: fewer than {FEW} examples say little: {", ".join(few)}; see '
               '--val_fraction, --test_fraction')


def learn(cfg, model, tokenizer, sets, state, origin):
    """Trains; the best checkpoint is that of the best first score of greedy outputs."""
    train, val = ({task.direction: task for task in sets[part] if len(task)}
                  for part in ('train', 'val'))
    chosen = [val[d] for d in train if d in val] if cfg.val_fraction else list(train.values())
    if set(cfg.learn) - set(train) or not chosen:
        raise ValueError(f'data={cfg.data}: too few examples to learn {",".join(cfg.learn)} and to '
                         f'hold some out with val_fraction={cfg.val_fraction}; try 0.1')
    tasks, metric = list(train.values()), TASKS[cfg.task].scores[0]
    print0(f'  best checkpoint: by {metric} of greedy outputs, at most {cfg.eval_examples} '
           f'examples of each of {" ".join(task.direction for task in chosen)}; then by loss')
    print0(weight_report(model, cfg, state))
    fit(cfg, model, Batches(tasks, task_probabilities(tasks, 0, cfg.alpha), cfg),
        lambda model, is_last: evaluate(model, chosen, tokenizer, cfg), state, origin,
        metric=lambda losses, scores: -sum(scores.values()) / len(scores))


def evaluate(model, tasks, tokenizer, cfg):
    """For `fit`: losses (nats per target token), the first score of greedy outputs, samples."""
    losses, scores, lines, metric = {}, {}, [], TASKS[cfg.task].scores[0]
    for task in tasks:
        losses[task.name] = loss_of(model, val_batches(task, cfg, cfg.eval_examples))
        examples, outputs = predict(model, task, tokenizer, cfg, cfg.eval_examples, beams=1)
        whole, _ = score_outputs(outputs, examples, task.target)
        scores[f'{metric} {task.direction}'] = whole[metric][0]
        example, output = examples[len(examples) // 2], outputs[len(examples) // 2]
        lines += [f'  {task.name}', f'    source     {" | ".join(example.source)[:300]}',
                  f'    output     {output}', f'    reference  {normalize(example.target)}']
    return losses, scores, lines


def predict(model, task, tokenizer, cfg, n, beams):
    """At most n of a task's examples (0: all), evenly spread, and the model's outputs for them."""
    n = min(n or len(task), len(task))
    chosen = np.linspace(0, len(task) - 1, n).astype(int)
    banned = banned_ids(cfg, tokenizer).get(task.target, ())
    found = write(model, tokenizer, [task.ids[i][0] for i in chosen], [task.target] * n,
                  cfg.max_target_len - SPECIALS, max(1, 64 // beams), banned, beams=beams,
                  length_penalty=cfg.length_penalty, no_repeat_ngram=cfg.no_repeat_ngram)
    return [task.examples[i] for i in chosen], [text for text, _ in found]


def banned_ids(cfg, tokenizer):
    """{language: ids that its outputs must not have}, of force_script, as bo:TIBETAN+LATIN."""
    written = {languages_of(d)[1] for d in (*cfg.learn, *cfg.transfer)}
    banned = {}
    for entry in cfg.force_script:
        language, _, names = entry.partition(':')
        if language not in written or language in banned:
            raise ValueError(f'force_script={entry}: name each language once of those that are '
                             f'written, {" ".join(sorted(written))}')
        banned[language] = tokenizer.ids_outside_scripts(names.upper().split('+'))
    return banned


def score_outputs(outputs, examples, language, samples=None):
    return score(outputs, [(e.target, *e.others) for e in examples], language, samples)


def write_scores(model, tests, samples, tokenizer, cfg, folder):
    """Scores the model's outputs for all tests; prints, writes metrics.json, predictions.jsonl."""
    metrics, lines, names = {}, [], TASKS[cfg.task].scores
    if len(samples) < 2:
        print0(f'wrong_language is not scored: all examples are in {" ".join(samples)}')
    device, dtype = runtime.find_device(cfg.device, cfg.dtype)
    model.to(device).eval()
    if device.type == 'cpu' and dtype == torch.float32:
        pack(model)
    for test, task in ((test, task) for test, tasks in tests.items() for task in tasks):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            examples, outputs = predict(model, task, tokenizer, cfg, cfg.test_examples, cfg.beams)
        known = samples if len(samples) > 1 else None
        whole, each = score_outputs(outputs, examples, task.target, known)
        print0(f'{test}, {task.direction}: {len(examples)} examples; percent, 95 % intervals')
        print0('\n'.join(report(whole, task.target, names)))
        metrics.setdefault(test, {})[task.direction] = {
            'examples': len(examples), 'too_long': task.n_long, 'cut': task.n_cut, **{
                key: {**dict(zip(('value', 'low', 'high'), map(or_null, values))),
                      'signature': signature(key, task.target)} for key, values in whole.items()}}
        for i, (example, output) in enumerate(zip(examples, outputs)):
            lines.append({'test': test, 'direction': task.direction, 'source': list(example.source),
                          'prediction': output, 'reference': example.target,
                          'others': example.others,
                          'scores': {key: or_null(x[i]) for key, x in each.items()}})
    about = {'unit': 'percent, with the bounds of a 95 % interval',
             **{key: what for key, (_, what) in ABOUT.items()}}
    text = json.dumps({'scores': metrics, 'about': about, 'settings': asdict(cfg)}, indent=1,
                      ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / 'metrics.json') as path:
        path.write_text(text, encoding='utf-8')
    with atomic_write(folder / 'predictions.jsonl') as path:
        path.write_text(''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines),
                        encoding='utf-8')
    print0(f'wrote {folder}/metrics.json and predictions.jsonl')


def or_null(value):
    return round(value, 4) if value == value else None  # JSON has no nan


if __name__ == '__main__':
    cli.run(lambda argv: runtime.with_processes(finetune, cli.load(FineTune, argv)))
