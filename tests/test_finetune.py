"""finetune.py: what is learned and scored, its messages, runs as a user types them."""
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from conftest import LANGUAGES, ROOT, SENTENCES, sentences
from safetensors.torch import load_file

import config
import finetune
import sample
from config import cli
from data.examples import Example
from data.heldout import digest
from data.languages import script
from data.metrics import score
from data.tokenizer import Tokenizer
from model import SWCM
from train import read_state


def run_here(*args):
    finetune.finetune(cli.load(config.FineTune, args))


def run(*args, script='finetune.py'):
    return subprocess.run([sys.executable, script, *map(str, args)], capture_output=True, text=True,
                          encoding='utf-8')


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def same_weights(*folders):
    a, b = (load_file(folder / 'model.safetensors') for folder in folders)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

def pairs(n=3000):
    """Translations of which some share one side."""
    return [Example(d, (f'source {i}',), f'target {j}',
                    (f'target {j}', f'source {i}'))
            for i in range(n) for j in [i % (n - 50)] for d in ('zh-bo', 'zh-kk')]


@pytest.mark.parametrize('options, n', [(dict(val_fraction=0.3), 0),
                                        (dict(val_fraction=0.05), None),
                                        (dict(val_fraction=0.05, mt_fraction=0.0), 0),
                                        (dict(languages=('kk', 'zh')), 0)])
def test_tests_that_were_learned_before_are_counted(tmp_path, corpus, capsys, options, n):
    """By the settings beside the checkpoint, or by those of the checkpoint that it began from."""
    data = corpus / 'some.bo-zh.tsv'
    cfg = config.FineTune(data=str(data), val_fraction=0.1, test_fraction=0.2)
    parts = finetune.read_parts(cfg)[0]
    held_out = [e for part in ('val', 'test') for e in parts[part]]
    if n is None:
        n = sum(digest(e.texts[-1]) >= 0.05 * 2**64 for e in held_out)
        assert n > 15
    before = config.Train(**{'dataset': 'text', 'data_from': str(data), 'languages': ('bo', 'zh'),
                             **options})
    after = replace(cfg, checkpoint=str(tmp_path / 'before/best'))
    for name, settings in ('before', before), ('after', after):
        (tmp_path / name / 'best').mkdir(parents=True)
        written = tmp_path / name / 'best/run.json'
        written.write_text(json.dumps(asdict(settings)), encoding='utf-8')
        finetune.warn_of_learned(parts, str(tmp_path / name / 'best'))
        found = re.findall(r'warning: (\d+) of the \d+ examples for \w+ are learned',
                           capsys.readouterr().out)
        assert sum(map(int, found)) == n
    circle = asdict(replace(cfg, checkpoint=str(tmp_path / 'after/best')))
    (tmp_path / 'before/best/run.json').write_text(json.dumps(circle))
    finetune.warn_of_learned(parts, str(tmp_path / 'after/best'))       # one began from the other
    assert 'is not known' not in capsys.readouterr().out
    moved = asdict(replace(before, data_from='/nowhere'))
    (tmp_path / 'before/best/run.json').write_text(json.dumps(moved))
    finetune.warn_of_learned(parts, str(tmp_path / 'after/best'))
    warning = 'has learned is not known, perhaps some of the tests (/nowhere does not exist)'
    assert warning in capsys.readouterr().out


def test_few_shots():
    cfg = config.FineTune(learn=('zh-bo',), transfer=('zh-kk',), shots=7)
    found = finetune.few_shots(pairs(), cfg)
    assert len(finetune.few_shots([*pairs(), *pairs()], cfg)) == 6007         # different ones
    other = config.FineTune(transfer=('zh-kk',), shots=7, seed=2)
    assert set(found) != set(finetune.few_shots(pairs(), other))
    few = [e for e in found if e.direction == 'zh-kk']
    assert len(few) == 7 and len(found) == 3007
    assert set(few) <= set(finetune.few_shots(pairs(),
                                              config.FineTune(transfer=('zh-kk',), shots=20)))
    assert not [e for e in finetune.few_shots(pairs(),
                                              config.FineTune(transfer=('zh-kk',), shots=0))
                if e.direction == 'zh-kk']


def small_examples(folder):
    """24 articles with a title, and 24 questions about them."""
    (mine, saw), numbers, things = SENTENCES['bo']
    numbers, things = numbers.split(), things.split()
    with (open(folder / 'summarise.bo.jsonl', 'w', encoding='utf-8') as titles,
          open(folder / 'answer.bo.jsonl', 'w', encoding='utf-8') as answers):
        for i in range(24):
            one = f'{things[i % 5]}་{numbers[i % 9]}'
            other = f'{things[(2 * i + 1) % 5]}་{numbers[(4 * i + 2) % 9]}'
            article = ' '.join(form.format(x=text.rpartition('་')[0], n=text.rpartition('་')[2])
                               for form, text in ((mine, one), (saw, other)))
            titles.write(json.dumps({'article': article, 'title': f'{one}་དང་{other}།'}) + '\n')
            question, answer = (('ང་ལ་ཅི་ཡོད།', one), ('ཁོས་ཅི་མཐོང་།', other))[i % 2]
            answers.write(json.dumps({'question': question, 'context': article,
                                      'answer': answer}) + '\n')


@pytest.mark.full
@pytest.mark.parametrize('task, scores',
                         [('summarise', ('rouge_l_f', 'chrF++')),
                          ('answer', ('exact', 'f1'))])
def test_learns_by_heart(tmp_path, task, scores):
    """The shipped encoder learns the small examples to a score of 100; a second run is done."""
    small_examples(tmp_path)
    data, out = tmp_path / f'{task}.bo.jsonl', tmp_path / 'out'
    settings = (f'config/finetune/{task}.py', f'--data={data}', f'--test={data}',
                f'--out_dir={out}', '--learn=bo', '--val_fraction=0', '--test_fraction=0',
                '--encoder=data/nano', '--max_steps=160', '--batch_tokens=600', '--dropout=0',
                '--accumulate=1', '--eval_interval=80', '--lr=5e-4')
    done = run(*settings)
    assert done.returncode == 0, done.stderr
    assert f'warning: 24 of the 24 examples for {task} are learned' in done.stdout
    metrics = json.loads((out / 'best/metrics.json').read_text(encoding='utf-8'))
    metrics = metrics['scores'][task]['bo']
    assert {name: metrics[name]['value'] for name in scores} == dict.fromkeys(scores, 100)
    lines = lines_of(out / 'best/predictions.jsonl')
    assert len(lines) == 24 and all(line['scores'][scores[0]] == 100 for line in lines)
    before = (out / 'log.jsonl').read_bytes()
    again = run(*settings, '--beams=1')
    assert again.returncode == 0
    assert (out / 'log.jsonl').read_bytes() == before
    assert 'step' not in again.stdout
    assert f'{task}, bo: 24 examples' in again.stdout
    source = lines[0]['source']  # sample.py does what a model was fine-tuned for
    asked = run(f'--checkpoint={out}/best', f'--text={source[-1]}', '--no_repeat_ngram=0',
                *(['--question=' + source[0]] if task == 'answer' else []), script='sample.py')
    assert asked.returncode == 0 and asked.stdout == lines[0]['reference'] + '\n', asked.stderr


@pytest.mark.full
def test_transfer_and_force_script(tmp_path, corpus):
    """Zero and few shots, each language scored; force_script keeps letters of others away."""
    files = ','.join(str(corpus / f'some.{language}-zh.tsv') for language in ('bo', 'kk'))
    out = tmp_path / 'out'
    settings = ('config/finetune/translate.py', f'--data={files}', '--learn=zh-bo',
                '--transfer=zh-kk', f'--out_dir={out}', '--val_fraction=0.1', '--test_fraction=0.2',
                '--max_steps=6', '--eval_interval=3', '--batch_tokens=500', '--max_target_len=24',
                '--test_examples=8', '--eval_examples=8')
    done = run(*settings, '--shots=0')
    assert done.returncode == 0, done.stderr
    assert 'test, zh-bo:' in done.stdout and 'test, zh-kk:' in done.stdout
    changed = run(*settings, '--shots=5')
    assert changed.returncode == 1 and 'holds a run with shots=0, not 5' in changed.stderr
    forced = run(*settings, '--eval_only=True', '--shots=0', '--beams=2',
                 '--force_script=kk:CYRILLIC,bo:CJK')
    assert forced.returncode == 0, forced.stderr
    lines = lines_of(out / 'best/predictions.jsonl')
    for direction, letters in ('zh-bo', {None, 'CJK'}), ('zh-kk', {None, 'CYRILLIC'}):
        assert letters >= {script(c) for line in lines if line['direction'] == direction
                           for c in line['prediction']}
    scores = json.loads((out / 'best/metrics.json').read_text(encoding='utf-8'))['scores']['test']
    header, _, row = run(out, '--score=empty', script='tests/tools/curves.py').stdout.splitlines()
    assert header == '| empty | test zh-bo | test zh-kk |'
    assert row == '| out | ' + ' | '.join(
        '{value:.1f} [{low:.1f}, {high:.1f}]'.format(**scores[x]['empty'])
        for x in ('zh-bo', 'zh-kk')) + ' |'
    for args, message in (((out, '--score=blue'), "has no score 'blue' but chrF++, rouge_l_f"),
                          ((out, out / 'best/metrics.json', '--score=f1'),
                           'metrics.json: out is there already'),
                          ((out / 'last', '--score=f1'), 'has no scores')):
        wrong = run(*args, script='tests/tools/curves.py')
        assert wrong.returncode == 1 and wrong.stderr.count('\n') == 1 and message in wrong.stderr


def test_force_scripts():
    """What is left of the vocabulary has no other letters, and all that has none."""
    tokenizer = Tokenizer('data/nano', LANGUAGES)
    cfg = config.FineTune(learn=('zh-bo', 'kk'), force_script=('bo:TIBETAN', 'kk:CYRILLIC+LATIN'))
    banned = finetune.banned_ids(cfg, tokenizer)
    for language, letters in ('bo', {None, 'TIBETAN'}), ('kk', {None, 'CYRILLIC', 'LATIN'}):
        scripts = [{script(c) for c in piece} for piece in tokenizer.pieces[:tokenizer.mask]]
        assert {i for i, found in enumerate(scripts)
                if not found <= letters} == set(banned[language]) != set()


def test_references_and_answers():
    """A reference is scored as the vocabulary could write it, and the best answer counts."""
    for output, value in (('AB 書', 100), ('c', 100), ('狗', 100), ('猫', 0)):
        whole, _ = score([output], [('ＡＢ\u3000書', 'ｃ', '狗')], 'zh')
        assert whole['exact'][0] == whole['rouge_l_f'][0] == whole['cmrc_f1'][0] == value


def test_bad_settings(tmp_path, corpus):
    data, swapped = corpus / 'some.bo-zh.tsv', tmp_path / 'some.zh-bo.tsv'
    shutil.copy(data, swapped)
    shutil.copy(data, tmp_path / 'val.bo-zh.tsv')
    for args, message in (
            (('--task=sing',), "task='sing': choose translate, summarise, answer"),
            (('--data=',), "'.': give --data=FILES of examples"),
            ((f'--data={tmp_path}/no.tsv',), 'no.tsv'),
            (('--learn=zh-bo,zh-mn', '--transfer=bo-zh'),
             'some.bo-zh.tsv: no examples of zh-mn'),
            (('--transfer=zh-ug',), 'no examples of zh-ug'),
            (('--val_fraction=0.8',), 'too few examples to learn zh-bo'),
            ((f'--data={tmp_path}',), 'give --data=FILES of examples'),
            (('--max_target_len=999',), 'this model reads at most 256 tokens'),
            (('--max_source_len=3',), 'max_source_len=3: expected a number of at least 8'),
            (('--test_fraction=0',), 'no examples to score; see --test_fraction'),
            ((f'--test={data},{tmp_path}/val.bo-zh.tsv',), 'no test may be called val; rename'),
            (('--transfer=zh-bo',),
             'zh-bo zh-bo: give each direction of --learn and --transfer once'),
            (('--learn=',), 'learn and transfer are empty'),
            (('--force_script=bo:TIBETIAN', '--eval_only=True'),
             'the vocabulary has no letters of TIBETIAN; it has '),
            (('--task=answer',), 'is no example for task=answer, which reads question and context'),
            ((f'--data={swapped}',),
             'are in TIBETAN, and zh is written in CJK; correct the order of the columns'),
            (('--force_script=zh:CJK', '--eval_only=True'),
             'expected LANG:SCRIPT, where LANG is written: bo'),
            (('--force_script=bo', '--eval_only=True'), 'force_script=bo: expected LANG:SCRIPT')):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
            run_here(f'--data={data}', f'--out_dir={tmp_path}/out', '--test_fraction=0.2',
                     '--val_fraction=0.1', *args)
    assert not (tmp_path / 'out').exists()


def test_untrained_and_checkpoint(tmp_path, corpus, encoder_folder):
    """--eval_only scores a model that train.py wrote, before any training, beside nothing of it."""
    SWCM.from_encoder(encoder_folder, languages=LANGUAGES, share='none').save(tmp_path / 'model')
    out = tmp_path / 'out'
    done = run(f'--data={corpus}/some.bo-zh.tsv', f'--checkpoint={tmp_path}/model',
               f'--out_dir={out}', '--eval_only=True', '--test_fraction=0.2', '--max_source_len=60',
               '--max_target_len=60')
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == ['metrics.json', 'predictions.jsonl']
    metrics = json.loads((out / 'metrics.json').read_text(encoding='utf-8'))
    assert metrics['settings']['share'] == 'none'           # the model's, not the default
    assert f'read from {tmp_path}/model' in done.stdout
    assert 'has learned is not known, perhaps some of the tests' in done.stdout
    with pytest.raises(ValueError, match='model has 0; give --insert_every=0'):
        run_here(f'--data={corpus}/some.bo-zh.tsv', f'--checkpoint={tmp_path}/model',
                 f'--out_dir={out}', '--insert_every=1', '--test_fraction=0.2',
                 '--max_source_len=60', '--max_target_len=60')


def test_scores_have_all_answers_and_counts(tmp_path, encoder_folder):
    """predictions.jsonl has each correct answer, metrics.json how many examples are cut and so on.
    """
    data, out = tmp_path / 'qa.bo.jsonl', tmp_path / 'out'
    examples = [{'question': 'ང་', 'context': 'ང་ལ་ཅི་ཡོད། དེབ་གཅིག', 'answer': ['ང་ལ', 'ཅི་ཡོད']},
                {'question': 'ང་', 'context': 'ང་ལ་' * 90, 'answer': 'དེབ་གཅིག་' * 40}]
    data.write_text('\n'.join(map(json.dumps, examples)), encoding='utf-8')
    run_here('--task=answer', '--learn=bo', f'--data={data}', f'--test={data}',
             f'--encoder={encoder_folder}', f'--out_dir={out}', '--eval_only=True', '--beams=1',
             '--val_fraction=0', '--test_fraction=0', '--max_source_len=60', '--max_target_len=60')
    assert [line['others'] for line in lines_of(out / 'predictions.jsonl')] == [['ཅི་ཡོད'], []]
    scores = json.loads((out / 'metrics.json').read_text(encoding='utf-8'))['scores']['qa']['bo']
    assert [scores[name] for name in ('examples', 'too_long', 'cut', 'inside')] == [2, 1, 1, 1]


@pytest.mark.parametrize('dtype, n_packed', [('auto', 1), ('float32', 0)])
def test_weights_are_packed_for_scores_unless_asked_otherwise(tmp_path, corpus, encoder_folder,
                                                              monkeypatch, dtype, n_packed):
    packed = []
    monkeypatch.setattr(sample, 'pack', packed.append)
    run_here(f'--data={corpus}/some.bo-zh.tsv', f'--encoder={encoder_folder}', '--device=cpu',
             f'--dtype={dtype}', '--eval_only=True', '--test_fraction=0.1', '--max_source_len=60',
             '--max_target_len=9', '--beams=1', f'--out_dir={tmp_path}/out')
    assert len(packed) == n_packed


def test_equal_scores_are_chosen_by_loss(tmp_path, corpus, encoder_folder, monkeypatch):
    losses = iter([9, 8, 6, 7])
    monkeypatch.setattr(finetune, 'evaluate',
                        lambda *args: ({'x': next(losses)}, {'chrF++ x': 0.0}, []))
    run_here(f'--data={corpus}/some.bo-zh.tsv', f'--encoder={encoder_folder}',
             '--max_source_len=60', '--max_target_len=60', '--max_steps=3', '--test_fraction=0.2',
             '--val_fraction=0.2', '--beams=1', '--eval_interval=1', '--batch_tokens=300',
             '--test_examples=2', f'--out_dir={tmp_path}/out')
    assert read_state(sample.run_of(tmp_path / 'out/last'))['progress'].best == [0, 6]


def test_resume_best_and_reports(tmp_path, corpus, encoder_folder, monkeypatch, capsys):
    """A run that breaks off goes on to the same bits; the best checkpoint is by score, not loss."""
    data = tmp_path / 'some.bo-zh.tsv'
    data.write_text((corpus / 'some.bo-zh.tsv').read_text(encoding='utf-8') + 'དེབ\t \n',
                    encoding='utf-8')
    settings = [f'--data={data}', f'--encoder={encoder_folder}', '--max_source_len=60',
                '--max_target_len=22', '--test_fraction=0.2', '--val_fraction=0.2', '--max_steps=6',
                '--eval_interval=2', '--save_interval=2', '--batch_tokens=300', '--beams=1',
                f'--test={tmp_path}/news.bo-zh.tsv,{tmp_path}/news.more.bo-zh.tsv']
    for name, some in ('news', slice(9)), ('news.more', slice(9, 12)):
        rows = map('{}\t{}\n'.format, sentences('bo')[some], sentences('zh')[some])
        (tmp_path / f'{name}.bo-zh.tsv').write_text(''.join(rows), encoding='utf-8')
    real, calls = finetune.evaluate, []

    def evaluate(*args):
        calls.append(args)
        if len(calls) == 3 and broken:
            calls.pop()
            raise KeyboardInterrupt
        losses, scores, lines = real(*args)
        worse = {name: 9 - len(calls) for name in losses}
        return worse, {name: 9 - abs(len(calls) - 3) for name in scores}, lines

    monkeypatch.setattr(finetune, 'evaluate', evaluate)
    broken = False
    run_here(*settings, f'--out_dir={tmp_path}/whole')
    shown = capsys.readouterr().out
    assert 'left out: 1 without text, ' in shown and 'zh-bo' in shown
    assert 'news, zh-bo: 12 examples' in shown and 'test, zh-bo: ' in shown
    assert re.search('zh-bo  train .*, [1-9][0-9]* targets too long', shown)
    assert not same_weights(tmp_path / 'whole/best', tmp_path / 'whole/last')
    calls.clear()
    broken = True
    with pytest.raises(KeyboardInterrupt):
        run_here(*settings, f'--out_dir={tmp_path}/parts')
    broken = False
    run_here(*settings, f'--out_dir={tmp_path}/parts')
    for part in 'best', 'last':
        assert same_weights(tmp_path / 'whole' / part, tmp_path / 'parts' / part)
    whole, parts = (lines_of(tmp_path / x / 'best/predictions.jsonl') for x in ('whole', 'parts'))
    assert whole == parts
    capsys.readouterr()
    run_here(*settings, f'--out_dir={tmp_path}/whole', '--eval_only=True', '--test_fraction=0.5')
    assert re.search(r'warning: \d+ of the \d+ examples for test are learned, here or by .*/best',
                     capsys.readouterr().out)
    with pytest.raises(ValueError, match='holds a run with eval_examples=100, not 9'):
        run_here(*settings, f'--out_dir={tmp_path}/whole', '--eval_examples=9')
    weights = tmp_path / 'whole/best/model.safetensors'
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match='best/model.safetensors is damaged'):
        run_here(*settings, f'--out_dir={tmp_path}/whole')
    shutil.rmtree(tmp_path / 'whole/best')
    with pytest.raises(FileNotFoundError, match='whole/best'):
        run_here(*settings, f'--out_dir={tmp_path}/whole')
    assert not (tmp_path / 'whole/metrics.json').exists()


STUB = """#!/bin/sh
echo "$@" >> $LOG
case "$*" in *$FAILING*) exit 3;; esac
"""


def test_study_is_resumed(tmp_path):
    """study.sh: a row that failed is run again, one that is done is not; a name chooses rows."""
    pairs = [f'PAIRS/{name}.{x}-zh.tsv' for x in ('bo', 'kk', 'ug')
             for name in ('libreoffice', 'gnome', 'mediawiki')]
    for file in (*pairs, 'PAIRS/mozilla.kk-zh.tsv', 'PAIRS/tatoeba.ug-zh.tsv',
                 'TASKS/summarise/ntrex-headlines.bo.jsonl', 'bin/python'):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(STUB, encoding='utf-8')
        (tmp_path / file).chmod(0o755)
    script = str(ROOT / 'config/finetune/study.sh')

    def started(*args, failing='nothing', encoder=''):
        log = tmp_path / 'log'
        log.write_text('', encoding='utf-8')
        names = {name: str(tmp_path / name) for name in ('MONO', 'PAIRS', 'TASKS', 'NTREX')}
        path = f'{tmp_path}/bin:{os.environ["PATH"]}'
        done = subprocess.run(['bash', script, *args], cwd=tmp_path, capture_output=True, env={
            **os.environ, **names, 'PATH': path, 'LOG': str(log), 'FAILING': failing,
            'ENCODER': encoder})
        lines = log.read_text(encoding='utf-8').splitlines()
        return done.returncode, [line.split() for line in lines]

    assert started('headlines/copy')[0] == 1          # it starts from a row that is not done
    assert started('headlines/cop')[0] == 1           # there is no such row
    status, lines = started('pretrained', '--dtype=bfloat16')
    made = [line for line in lines if line[1] == 'data.cloze']
    lines = [line for line in lines if line not in made]
    assert status == 0 and len(lines) > 5 and all('--dtype=bfloat16' in line for line in lines)
    assert [line[-1][-6:] for line in made] == ['bo.txt', 'kk.txt', 'zh.txt']
    assert (tmp_path / 'out/cloze.zh.jsonl').exists()
    assert started('pretrained', '--dtype=bfloat16') == (0, [])
    assert started('pretrained/copy')[0] == 1         # it was done in another dtype
    status, lines = started('headlines', failing='headlines/dae')
    assert status and lines[-1][-2:] == ['--out_dir=out/headlines/dae',
                                         '--checkpoint=out/pretrained/dae/best']
    status, rest = started('headlines')
    assert status == 0 and rest[0] == lines[-1] and len(rest) == 2
    assert started('headlines') == (0, [])
    for line in (lines + rest)[2:]:                   # after `baselines` and `raw`
        assert line[-1].split('/')[2] == line[-2].split('/')[2]        # the arm
        assert 'config/finetune/summarise.py' in line
    status, lines = started('strings')
    assert status == 0 and len(lines) == 10
    for n, three in zip((0, 50, 500), (lines[:3], lines[3:6], lines[6:9])):
        assert all(f'--shots={n}' in line for line in three)
        assert three[2][-1] == f'--checkpoint=out/strings/shots{n}/best'
        assert '--eval_only=True' in three[2]
    status, lines = started('into-zh')
    assert (status, [line[0] for line in lines]) == (0, ['tests/tools/baselines.py', 'finetune.py'])
    assert started('pretrained/copy-larger')[0] == 1  # there is no larger encoder
    status, lines = started('pretrained', '--dtype=bfloat16', encoder='LARGER')
    assert status == 0 and len(lines) == 2 and all('--encoder=LARGER' in line for line in lines)
    assert len(started('headlines', encoder='LARGER')[1]) == 2
    (tmp_path / pairs[0]).unlink()
    assert started('answers')[0]                      # a file that is missing is no smaller study
