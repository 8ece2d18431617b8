"""README's section "Change something": its examples, as they stand there, train a step."""
import json
import re
import textwrap

import pytest
from conftest import ROOT, sentences

import config
import data
import finetune
import model
import sample
import train
from config import cli
from data import dataset
from data import tasks


def examples():
    """The blocks of Python in README's section "Change something": a layer, a corpus, a task."""
    section = (ROOT / 'README.md').read_text(encoding='utf-8').split('## Change something')[1]
    blocks = re.findall(r'(?:^(?: {4}.*)?\n)+', section.split('\n## ')[0], re.MULTILINE)
    blocks = [textwrap.dedent(block).split('\npython ')[0] for block in blocks]
    return [block for block in blocks if 'def ' in block]


LAYER, CORPUS, TASK = examples()


@pytest.fixture
def settings(corpus, encoder_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, 'token_folder', lambda name: tmp_path / 'tokens' / name)
    return config.Train(dataset='text', data_from=str(corpus), encoder=str(encoder_folder),
                        languages=('bo', 'zh'), block_size=64, batch_tokens=200, val_fraction=0.2,
                        max_steps=1, eval_segments=4, device='cpu', out_dir=str(tmp_path / 'out'))


def evaluated(cfg):
    """The losses of a run's last evaluation."""
    train.train(cfg)
    lines = open(f'{cfg.out_dir}/log.jsonl', encoding='utf-8').read().splitlines()
    return json.loads(lines[-1])['val']


def test_a_kind_of_layer(settings, monkeypatch, capsys):
    names = dict(vars(model))
    exec(LAYER, names)
    monkeypatch.setitem(model.LAYERS, 'cross_first', names['CrossFirstLayer'])
    settings.layer = 'cross_first'
    assert {'dae bo', 'dae zh', 'mt bo-zh', 'mt zh-bo'} <= set(evaluated(settings))
    assert 'CrossFirstLayer' in capsys.readouterr().out
    assert model.SWCM.load(f'{settings.out_dir}/best').config.layer == 'cross_first'


def test_a_training_task(settings, monkeypatch):
    names = dict(vars(tasks))
    exec(TASK, names)
    monkeypatch.setitem(tasks.TASKS, 'continue', names['Continue'])
    assert {'continue bo', 'continue zh', 'dae bo', 'mt bo-zh'} <= set(evaluated(settings))


def test_a_training_task_of_an_encoder(settings, monkeypatch):
    more = type('More', (tasks.MaskedTokens,), {'kind': 'more'})
    monkeypatch.setitem(tasks.TASKS, 'more', more)
    settings.objective = 'mlm'
    assert {'more bo', 'more zh', 'mlm bo', 'mlm zh'} == set(evaluated(settings))


def test_a_corpus(settings, monkeypatch, tmp_path):
    """A file data/NAME/prepare.py is all that it takes."""
    (tmp_path / 'data/tales').mkdir(parents=True)
    (tmp_path / 'bo').mkdir()
    (tmp_path / 'data/tales/prepare.py').write_text(CORPUS, encoding='utf-8')
    for i in range(10):
        text = '\n'.join(sentences('bo')[i::10])
        (tmp_path / f'bo/tale{i}.txt').write_text(text, encoding='utf-8')
    monkeypatch.setattr(dataset, 'ROOT', tmp_path / 'data')
    monkeypatch.setattr(data, '__path__', [str(tmp_path / 'data')])
    settings.dataset, settings.data_from, settings.languages = 'tales', str(tmp_path), ('bo',)
    assert set(evaluated(settings)) == {'dae bo'}
    assert [path.parent.name for path in tmp_path.glob('tokens/*/*/meta.json')]
    with pytest.raises(ValueError, match='no data/tails/prepare.py; there are tales'):
        dataset.corpus_module('tails')


def test_a_fine_tuning_task(tmp_path, encoder_folder, monkeypatch, capsys):
    """A row of finetune.TASKS: it is learned, scored as the row says, and sample.py does it."""
    monkeypatch.setitem(finetune.TASKS, 'simplify', finetune.Task(['text'], 'f1'))
    path, out = tmp_path / 'pairs.bo.jsonl', tmp_path / 'out'
    lines = [json.dumps({'source': text, 'target': text[:9]}) for text in sentences('bo')]
    path.write_text('\n'.join(lines), encoding='utf-8')
    finetune.finetune(cli.load(config.FineTune, [
        '--task=simplify', f'--data={path}', '--learn=bo', f'--encoder={encoder_folder}',
        '--max_source_len=60', '--max_target_len=30', '--val_fraction=0.2', '--test_fraction=0.2',
        '--max_steps=1', '--batch_tokens=300', '--beams=1', f'--out_dir={out}']))
    shown = capsys.readouterr().out
    assert 'simplify bo' in shown and 'best checkpoint: by f1 of greedy outputs' in shown
    assert re.search(r'test, bo: .*\n  chrF\+\+ +\d.*\n(.+\n)+wrote', shown)
    metrics = json.loads((out / 'best/metrics.json').read_text(encoding='utf-8'))
    assert metrics['scores']['test']['bo']['f1']['value'] is not None
    sample.main([f'--checkpoint={out}', f'--text={sentences("bo")[0]}'])
    assert capsys.readouterr().out.count('\n') == 1
