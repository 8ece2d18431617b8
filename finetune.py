"""Fine-tuning on supervised examples, and scores of what the model then writes.

    python finetune.py config/finetune_translate.py --data=web.bo-zh.tsv
    python finetune.py config/finetune_translate.py --data=web.bo-zh.tsv --eval_only=True

The loop is train.py's. In the end out_dir/best has metrics.json and predictions.jsonl.
"""
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import config

if __name__ == '__main__':
    config.start(config.FineTune)                     # before torch, so that it answers at once

import numpy as np
import torch
import torch.distributed as dist

from data.batches import Batches, task_probabilities, val_batches
from data.examples import Example, Examples, direction, languages_of, read_examples, split_examples
from data.heldout import Texts, digest, splits
from data.metrics import ABOUT, LONGEST, report, score, signature
from data.tokenizer import Tokenizer, normalize
from data.dataset import SPECIALS, corpus_module
from data.text import atomic_write
from model import SWCM
from sample import read_settings, run_of, write
from train import (
    cannot_go_on, fit, loss_of, main_process_first, read_state, say, start_folder, with_processes,
)

# The scores of each task that are shown; by the first the best checkpoint is chosen
WRONG = ('wrong_script', 'wrong_language', 'empty', 'repeats')
SCORES = {'translate': ('chrF++', 'bleu', *WRONG),
          'answer': ('f1', 'exact', 'cmrc_f1', 'cmrc_exact', 'rouge_l_f', *WRONG),
          'summarise': ('rouge_l_f', 'rouge_l_p', 'rouge_l_r', 'rouge_l_char_f', 'chrF++', *WRONG)}
FEW = 50                                              # examples: a warning below


def finetune(cfg):
    """Runs one config to its end: reads the examples, trains, scores, writes cfg.out_dir.

    Raises ValueError or FileNotFoundError, which name what is wrong and the remedy.
    """
    if cfg.task not in SCORES:
        raise ValueError(f'task={cfg.task!r}: choose {", ".join(SCORES)}')
    if not cfg.data:
        raise ValueError("data='': give files of examples, separated by commas")
    cfg = replace(cfg, learn=tuple(direction(*languages_of(d)) for d in cfg.learn),
                  transfer=tuple(direction(*languages_of(d)) for d in cfg.transfer))
    if cfg.test_from and not cfg.test_dataset:
        raise ValueError(f'test_from={cfg.test_from}: name the corpus too, --test_dataset=ntrex; files of examples go '
                         'into --test')
    directions = [*cfg.learn, *cfg.transfer]
    if len(set(directions)) < len(directions) or not cfg.learn:
        raise ValueError(f'learn={",".join(cfg.learn)}, transfer={",".join(cfg.transfer)}: name each direction once')
    state = read_state(replace(cfg, resume=cfg.resume or cfg.eval_only))
    parts, samples, left_out = read_parts(cfg, directions)
    there = {e.direction for found in parts.values() for e in found}
    if missing := [d for d in directions if d not in there]:
        raise ValueError(f'data={cfg.data}: no examples of {" ".join(missing)}, which --learn or --transfer asks for')
    for found in parts.values():
        check_task(cfg.task, found)
    text = f'{digest(*(x for e in parts["train"] for x in (e.direction, *e.source, e.target))):016x}'
    if state and state['data'] != text:
        raise ValueError(f'{cfg.out_dir}: the examples have changed since this run began. --resume=False starts over, '
                         '--out_dir=NAME starts another beside it')
    best, done = Path(cfg.out_dir, 'best'), cfg.eval_only or state and state['step'] >= cfg.max_steps
    trained = (best / 'config.json').exists()
    if done and not trained and not cfg.eval_only:
        raise ValueError(f'{best} is missing, though the run is done; --resume=False starts over')
    with main_process_first() as is_main:
        if is_main:
            warn_of_learned(parts, best if done and trained else start_folder(cfg))
    model, tokenizer = build(replace(cfg, checkpoint=str(best)) if done and trained else cfg, directions,
                             None if done else state)
    if done:
        say(f'the model that is scored: {best if trained else cfg.checkpoint or f"{cfg.encoder}, untrained"}')
    banned = force_scripts(cfg.force_script, directions, tokenizer)
    sets = {part: [Examples(d, [e for e in found if e.direction == d], tokenizer, cfg, part in ('train', 'val'))
                   for d in directions] for part, found in parts.items()}
    say(f'{cfg.out_dir}: {cfg.task}\n' + '\n'.join(describe(sets, left_out, cfg)))
    tests = {part: [task for task in found if len(task)] for part, found in sets.items()
             if part not in ('train', 'val')}
    if empty := [part for part, found in tests.items() if not found and (part != 'test' or len(tests) == 1)]:
        raise ValueError(f'{empty[0]}: no examples of {" ".join(directions)} to score; see --test_fraction and --test')
    if not done:
        train, val = ({task.name: task for task in sets[part] if len(task)} for part in ('train', 'val'))
        chosen = [val[name] for name in train if name in val] if cfg.val_fraction else list(train.values())
        if {f'{cfg.task} {d}' for d in cfg.learn} - set(train) or not chosen:
            raise ValueError(f'data={cfg.data}: too few examples to learn {",".join(cfg.learn)} and to hold some out '
                             f'with val_fraction={cfg.val_fraction}; try --val_fraction=0.1, and as much for the test')
        say(f'  best checkpoint: by {SCORES[cfg.task][0]} of greedy outputs, at most {cfg.eval_examples} examples of '
            f'each of {" ".join(task.direction for task in chosen)}; of equal ones by loss')
        say(model.weight_report())
        fit(cfg, model, Batches(list(train.values()), task_probabilities(list(train.values()), 0, cfg.alpha), cfg),
            lambda model, last: evaluate(model, chosen, banned, tokenizer, cfg), state, text,
            badness=lambda losses, scores: -sum(scores.values()) / len(scores))
    if dist.is_initialized() and dist.get_rank():
        return
    if not done:
        model = SWCM.load(best)
    model.to(config.find_device(cfg.device, cfg.dtype)[0]).eval()
    write_scores(model, tests, banned, samples, tokenizer, cfg,
                 best if trained or not done else Path(cfg.out_dir))


def read_parts(cfg, directions):
    """{'train': [Example], 'val': ..., 'test': ..., further tests}, samples {language: texts} by which to tell the
    languages apart, of all that is not for tests, and a Counter of what was left out."""
    examples, left_out = read_examples(cfg.data, directions)
    parts, left_out['text in common with one held out'] = split_examples(examples, cfg.val_fraction, cfg.test_fraction)
    samples = {}
    for e in parts['train'] + parts['val']:
        for language, side in zip(languages_of(e.direction), (e.source, (e.target,))):
            samples.setdefault(language, []).extend(side if len(samples.get(language, ())) < 3000 else ())
    parts['train'] = few_shots(parts['train'], cfg)
    if cfg.test:
        parts['test files'], more = read_examples(cfg.test, directions)
        left_out += more
    if cfg.test_dataset:
        parts[cfg.test_dataset] = corpus_examples(cfg, directions)
    return parts, samples, left_out


def warn_of_learned(parts, folder):
    """Counts the examples for validation and tests that are learned here or were by the model of `folder`."""
    held_out = Texts(text for part, found in parts.items() if part != 'train' for e in found for text in e.texts)
    learned = Texts(text for e in parts['train'] for text in e.texts if text in held_out)
    try:
        learned.update(text for text in texts_learned(folder) if text in held_out)
    except (OSError, ValueError) as e:
        say(f'warning: what {folder} has learned is not known, perhaps some of the tests ({e})')
    for part, found in parts.items():
        n = sum(any(text in learned for text in e.texts) for e in found if part != 'train')
        if n:
            say(f'warning: {n} of the {len(found)} examples for {part} are learned, here or before by {folder}; hold '
                'out there (--val_fraction) what --val_fraction and --test_fraction do here, or test on other text')


def texts_learned(folder):
    """The texts that the model of `folder` was trained on, and those it began from, as the settings beside it say.

    Raises FileNotFoundError or ValueError where settings or texts are not there. Of an encoder nothing need be known.
    """
    run = run_of(folder) if folder else None
    if not run:
        if folder and read_settings(Path(folder, 'config.json')).get('model_type') == 'swcm':
            raise ValueError('the settings of its run are not beside it')
        return
    if isinstance(run, config.FineTune):
        parts, *_ = read_parts(replace(run, test='', test_dataset=''), [*run.learn, *run.transfer])
        yield from (text for e in parts['train'] for text in e.texts)
    else:
        corpus, mlm = corpus_module(run.dataset), run.objective == 'mlm'
        files = corpus.fetch(run.data_from or None)
        split_of = splits(corpus.documents(files), run.val_fraction)
        for split, texts in (split_of(*document) for document in corpus.documents(files)):
            used = run.mt_fraction > 0 and not mlm if len(texts) > 1 else run.mt_fraction < 1 or mlm
            if split == 'train' and used and set(texts) <= set(run.languages):
                yield from texts.values()
    yield from texts_learned(start_folder(run))


def check_task(task, examples):
    """Raises ValueError for an example that is not of the task."""
    for e in examples:
        if len(longest := max((e.target, *e.others), key=len)) > LONGEST:
            raise ValueError(f'{longest[:40]!r} ...: {len(longest):,} characters; targets have at most {LONGEST:,}')
        if (len(e.source) == 2) != (task == 'answer') or task == 'translate' and '-' not in e.direction:
            kind = ('a question with its context' if len(e.source) == 2 else
                    'a translation' if '-' in e.direction else 'a text with another, in one language')
            raise ValueError(f'task={task}: {" ".join(e.source)[:40]!r} is {kind}; see --task and data/examples.py')


def few_shots(examples, cfg):
    """The examples of cfg.learn, and cfg.shots different ones of each direction of cfg.transfer.

    Which ones depends on the seed and on nothing else; fewer shots are a part of more.
    """
    few = []
    for d in cfg.transfer:
        of_direction = {e for e in examples if e.direction == d}
        few += sorted(of_direction, key=lambda e: digest('shots', cfg.seed, *e.source, e.target))[:cfg.shots]
    return [e for e in examples if e.direction in cfg.learn] + few


def build(cfg, directions, state):
    """The model, from a checkpoint or from an encoder, and its tokenizer."""
    torch.manual_seed(cfg.seed)
    languages = tuple(dict.fromkeys(language for d in directions for language in languages_of(d)))
    if state:                                                             # `fit` then fills in its weights
        try:
            model = SWCM.load(Path(cfg.out_dir, 'last'), dropout=cfg.dropout)
        except (ValueError, OSError) as e:
            raise cannot_go_on(cfg, e) from e
    elif cfg.checkpoint:
        model = SWCM.load(cfg.checkpoint, dropout=cfg.dropout)
        c = model.config
        say(f'{cfg.checkpoint}: share={c.share}, insert_every={c.insert_every}, inserted={c.inserted}, head={c.head}')
    else:
        model = SWCM.from_encoder(start_folder(cfg), languages=languages, dropout=cfg.dropout,
                                  share=cfg.share, insert_every=cfg.insert_every, inserted=cfg.inserted,
                                  head=cfg.head)
    for language in languages:
        model.config.language_id(language)                                # raises for one that it does not know
    if max(cfg.max_source_len, cfg.max_target_len) > model.config.max_length:
        raise ValueError(f'max_source_len={cfg.max_source_len}, max_target_len={cfg.max_target_len}: this model reads '
                         f'at most {model.config.max_length} tokens')
    return model, Tokenizer(model.sentencepiece, model.config.languages, model.config.vocab_size)


def describe(sets, left_out, cfg):
    """Lines: examples of each part and direction, and what was cut or left out."""
    yield f'  {"":12}' + ''.join(f'{part:>12}' for part in sets) + f'{"cut":>10}{"too long":>10}'
    for tasks in zip(*sets.values()):
        n = sum(len(task) for task in tasks)
        n_long = sum(task.n_long for part, task in zip(sets, tasks) if part in ('train', 'val'))
        yield (f'  {tasks[0].direction:12}' + ''.join(f'{len(task):12,}' for task in tasks)
               + f'{sum(task.n_cut for task in tasks) / max(n, 1):10.1%}{n_long:10,}')
    yield (f'  cut: sources of over {cfg.max_source_len} tokens; too long: targets of over {cfg.max_target_len}, '
           'not learned')
    for reason, n in left_out.items():
        if n:
            yield f'  left out, {reason}: {n:,}'
    if few := [f'{len(task)} of {part} {task.direction}' for part, tasks in sets.items() if part != 'train'
               for task in tasks if 0 < len(task) < FEW]:
        yield f'  warning: fewer than {FEW} examples say little: {", ".join(few)}; see --val_fraction, --test_fraction'


def corpus_examples(cfg, directions):
    """All pairs of the corpus cfg.test_dataset."""
    corpus = corpus_module(cfg.test_dataset)
    with main_process_first():
        files = corpus.fetch(cfg.test_from or None)
    return [Example(d, (texts[source],), texts[target], '', (texts[source], texts[target]))
            for _, texts in corpus.documents(files) for d in directions for source, target in [languages_of(d)]
            if source in texts and target in texts and source != target]


def evaluate(model, tasks, banned, tokenizer, cfg):
    """For `fit`: losses (nats per target token), the task's score of greedy outputs (percent), and a few of these."""
    losses, scores, lines = {}, {}, []
    for task in tasks:
        losses[task.name] = loss_of(model, val_batches(task, cfg, cfg.eval_examples))
        chosen, outputs = predict(model, task, banned, tokenizer, cfg, cfg.eval_examples, beams=1)
        examples = [task.examples[i] for i in chosen]
        whole, _ = score_outputs(outputs, examples, task.target)
        name = SCORES[cfg.task][0]
        scores[f'{name} {task.direction}'] = whole[name][0]
        middle = len(chosen) // 2
        lines += [f'  {task.name}', f'    source     {" | ".join(examples[middle].source)[:300]}',
                  f'    output     {outputs[middle]}', f'    reference  {normalize(examples[middle].target)}']
    return losses, scores, lines


def predict(model, task, banned, tokenizer, cfg, n, beams):
    """Which examples of a task were taken, at most n (0: all) and evenly spread, and what the model writes for each.

    That has at most max_target_len tokens with <s> <lang> </s>.
    """
    n = min(n or len(task), len(task))
    chosen = np.linspace(0, len(task) - 1, n).astype(int)
    found = write(model, tokenizer, [task.ids[i][0] for i in chosen], [task.target] * n, cfg.max_target_len - SPECIALS,
                  max(1, 64 // beams), banned.get(task.target, ()), beams=beams, length_penalty=cfg.length_penalty,
                  no_repeat_ngram=cfg.no_repeat_ngram)
    return chosen, [text for text, _ in found]


def force_scripts(entries, directions, tokenizer):
    """{language: ids that outputs in it must not have} of entries like bo:TIBETAN or bo:TIBETAN+LATIN."""
    written = {languages_of(d)[1] for d in directions}
    banned = {}
    for entry in entries:
        language, _, names = entry.partition(':')
        if language not in written or language in banned:
            raise ValueError(f'force_script={entry}: name each language once of those that are written, '
                             f'{" ".join(sorted(written))}')
        try:
            banned[language] = tokenizer.ids_outside_scripts(names.upper().split('+'))
        except ValueError as e:
            raise ValueError(f'force_script={entry}: {e}') from e
    return banned


def score_outputs(outputs, examples, language, samples=None):
    return score(outputs, [(e.target, *e.others) for e in examples], language, samples)


def write_scores(model, tests, banned, samples, tokenizer, cfg, folder):
    """Has the model write for all tests; prints the task's scores; writes metrics.json and predictions.jsonl."""
    metrics, lines = {}, []
    if len(samples) < 2:
        say(f'wrong_language is not scored: all examples are in {" ".join(samples)}')
    device, dtype = config.find_device(cfg.device, cfg.dtype)
    if device.type == 'cpu' and dtype == torch.float32:
        model.pack()
    for name, tasks in tests.items():
        for task in tasks:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                chosen, outputs = predict(model, task, banned, tokenizer, cfg, cfg.test_examples, cfg.beams)
            examples = [task.examples[i] for i in chosen]
            whole, each = score_outputs(outputs, examples, task.target, samples if len(samples) > 1 else None)
            say(f'{name}, {task.direction}: {len(chosen)} examples; percent, with 95 % intervals')
            say('\n'.join(report(whole, task.target, SCORES[cfg.task])))
            metrics.setdefault(name, {})[task.direction] = {
                'examples': len(chosen), 'too_long': task.n_long, 'cut': task.n_cut,
                **{key: {**dict(zip(('value', 'low', 'high'), map(or_null, values))),
                         'signature': signature(key, task.target)} for key, values in whole.items()}}
            for i, (example, output) in enumerate(zip(examples, outputs)):
                lines.append({'test': name, 'direction': task.direction, 'source': list(example.source),
                              'prediction': output, 'reference': example.target, 'others': example.others,
                              'scores': {key: or_null(values[i]) for key, values in each.items()}})
    folder.mkdir(parents=True, exist_ok=True)
    about = {'unit': 'percent, with the bounds of a 95 % interval', **{key: what for key, (_, what) in ABOUT.items()}}
    text = json.dumps({'scores': metrics, 'about': about, 'settings': asdict(cfg)}, indent=1, ensure_ascii=False)
    with atomic_write(folder / 'metrics.json') as path:
        path.write_text(text, encoding='utf-8')
    with atomic_write(folder / 'predictions.jsonl') as path:
        path.write_text(''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines), encoding='utf-8')
    say(f'wrote {folder}/metrics.json and predictions.jsonl')


def or_null(value):
    return round(value, 4) if value == value else None                    # JSON has no nan


def main(argv):
    cfg = config.load(config.FineTune, argv)
    with_processes(finetune, cfg)


if __name__ == '__main__':
    config.run(main)
