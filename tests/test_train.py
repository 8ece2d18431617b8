"""train.py and sample.py: the loop, resume, and the command lines as a user types them."""
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import LANGUAGES, ROOT, sentences
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend

import config
import finetune
import sample
import train
from config import cli
from data import dataset, vocabulary
from data.batches import collate, val_batches
from data.tasks import tasks
from data.tokenizer import BOS, EOS, PAD, Tokenizer
from model import SWCM, XLMR, SWCMConfig


@pytest.fixture(scope='module')
def run_root(tmp_path_factory):
    """Token files go to a temporary folder that the module keeps, so that they are made once."""
    folder, before = tmp_path_factory.mktemp('runs'), dataset.token_folder
    dataset.token_folder = lambda dataset: folder / 'tokens' / dataset
    yield folder
    dataset.token_folder = before


@pytest.fixture
def cfg(run_root, corpus, encoder_folder, tmp_path):
    return config.Train(dataset='text', data_from=str(corpus), encoder=str(encoder_folder),
                        languages=LANGUAGES, block_size=64, batch_tokens=400, accumulate=2,
                        val_fraction=0.2, max_steps=6, eval_interval=3, save_interval=2,
                        eval_segments=4, device='cpu', out_dir=str(tmp_path / 'out'))


def weights(cfg, which='last'):
    return load_file(f'{cfg.out_dir}/{which}/model.safetensors')


def log(cfg):
    """The lines of the log without what depends on the clock."""
    lines = [json.loads(line) for line in open(f'{cfg.out_dir}/log.jsonl', encoding='utf-8')]
    return [{k: v for k, v in line.items() if k != 'tokens_per_s'} for line in lines]


@pytest.mark.parametrize('options', [
    dict(), dict(objective='mlm'), dict(freeze=True),
    pytest.param(dict(share='tie', head='untied'), marks=pytest.mark.full)])
def test_resume_changes_no_bit(cfg, tmp_path, options):
    cfg = replace(cfg, languages=('bo', 'zh'), **options)
    train.train(cfg)
    whole = weights(cfg)
    for stopped_at in (1, 4):
        interrupted = replace(cfg, out_dir=str(tmp_path / f'at{stopped_at}'))
        stop_after(stopped_at, interrupted)
        with open(f'{interrupted.out_dir}/log.jsonl', 'a', encoding='utf-8') as file:
            file.write('{"step": 5}\n{"step": 6, "lo')   # as a kill after the last save leaves it
        train.train(interrupted)
        again = weights(interrupted)
        assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)
        assert log(interrupted) == log(cfg)
    assert len({tuple(line['val'].values()) for line in log(cfg) if 'val' in line}) == 3


@pytest.mark.parametrize('objective', ['swcm', 'mlm'])
def test_freeze(cfg, objective):
    """The encoder's layers stay; all else is trained."""
    train.train(replace(cfg, freeze=True, objective=objective, max_steps=2))
    read = SWCM.load if objective == 'swcm' else XLMR.from_encoder
    model = read(f'{cfg.out_dir}/last')
    encoder = getattr(model, 'encoder', model)
    start = XLMR.from_encoder(cfg.encoder)
    same = {name for name, p in encoder.named_parameters()
            if torch.equal(p, start.get_parameter(name))}
    assert {name for name in same if name.startswith('layers')} == {
        f'layers.{name}' for name, _ in encoder.layers.named_parameters()}
    assert not {'embeddings.position.weight', 'head.dense.weight'} & same
    if objective == 'swcm':
        assert not torch.equal(model.decoder[0].ffn1.up.weight, start.layers[0].ffn.up.weight)


def stop_after(step, cfg):
    """Runs cfg and sends Ctrl-C in the step with this number."""
    original = train.schedule

    def interrupt(at, settings):
        if at == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(at, settings)

    train.schedule = interrupt
    try:
        with pytest.raises(SystemExit) as stopped:
            train.train(cfg)
    finally:
        train.schedule = original
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert stopped.value.code == 130


def test_best_has_the_settings_of_the_run_that_resumed(cfg, corpus, tmp_path, monkeypatch):
    """... such as where its text is now, also if its weights do not change. A run that starts over
    removes it at once."""
    train.train(replace(cfg, max_steps=3))
    before = weights(cfg, 'best')
    monkeypatch.setattr(train, 'evaluate', lambda *args: ({'x': 99.0}, {}, []))
    shutil.copytree(corpus, tmp_path / 'moved')
    train.train(replace(cfg, max_steps=4, data_from=str(tmp_path / 'moved')))
    assert all(torch.equal(before[name], t) for name, t in weights(cfg, 'best').items())
    for which in 'best', 'last':
        settings = json.load(open(f'{cfg.out_dir}/{which}/run.json', encoding='utf-8'))
        assert settings['data_from'] == str(tmp_path / 'moved')
    monkeypatch.setattr(train, 'evaluate', lambda *args: ({'x': float('nan')}, {}, []))
    train.train(replace(cfg, max_steps=1, resume=False))
    train.train(replace(cfg, max_steps=2))
    assert not os.path.exists(f'{cfg.out_dir}/best')


def test_a_step_is_the_mean_over_its_targets(encoder_folder, cfg):
    """Two ragged micro-batches and one that holds both give the same step."""
    torch.manual_seed(0)
    start = SWCM.from_encoder(encoder_folder, languages=LANGUAGES, dropout=0.0)
    g = np.random.default_rng(0)
    long, short = ([tuple(np.r_[0, 161, g.integers(4, 150, n), 2] for n in pair) for pair in sizes]
                   for sizes in ([(30, 40), (20, 25)], [(5, 3)]))
    results = []
    for batches, accumulate in (([collate(long), collate(short)], 2), ([collate(long + short)], 1)):
        model = SWCM.from_encoder(encoder_folder, languages=LANGUAGES, dropout=0.0)
        model.load_state_dict(start.state_dict())
        settings = replace(cfg, accumulate=accumulate, max_steps=1,
                           out_dir=f'{cfg.out_dir}{accumulate}')
        train.fit(settings, model, batches, lambda model, last: ({'x': 1.0}, {}, []))
        results.append((log(settings)[-2], model.state_dict()))
    (a, first), (b, second) = results
    assert abs(a['loss'] - b['loss']) < 1e-5 and abs(a['grad_norm'] / b['grad_norm'] - 1) < 1e-5
    assert a['tokens'] == 41 + 26 + 4
    loss, n = start.train().loss(*map(torch.from_numpy, collate(long + short)))
    (loss / n).backward()
    norm = torch.stack([p.grad.norm() for p in start.parameters()]).norm().item()
    assert a['grad_norm'] == pytest.approx(norm, rel=1e-4)
    # AdamW's first step has the size of the rate whatever the gradient: tiny gradients may differ
    # in sign
    close = torch.cat([((first[k] - second[k]).abs() < 1e-5).flatten() for k in first])
    assert close.float().mean() > 0.99


@pytest.mark.parametrize('kind', [SWCM, XLMR])
def test_a_gpu_is_not_waited_for_within_a_batch(kind):
    """On the device meta, tensors have no values: whatever needs one raises an error."""
    model = kind(SWCMConfig(100, n_layer=1, n_head=2, n_embd=16, n_ffn=16, languages=('bo',)))
    src, tgt = torch.tensor([[BOS, 100, 7, 8, EOS], [BOS, 100, 9, EOS, PAD]]).expand(2, 2, 5)
    with torch.autocast('cpu', torch.bfloat16):
        loss, n = model.to('meta').loss(src, tgt)
    loss.backward()
    assert n == (5 if kind is SWCM else 9) and all(p.grad.is_meta for p in model.parameters())
    with pytest.raises(RuntimeError):
        loss.item()


@pytest.mark.full
def test_ragged_batches_are_compiled_once():
    """A graph for each of three kinds of layer, and one of the loss for all targets, another for
    some of them (over 512)."""
    model = SWCM(SWCMConfig(100, n_layer=4, n_head=2, n_embd=16, n_ffn=16, languages=('bo',),
                            insert_every=1)).train()
    counter = CompileCounterWithBackend('eager')
    for part in model.modules():
        if isinstance(part, train.COMPILED):
            part.compile(dynamic=True, fullgraph=True, backend=counter)
    for seed in range(10):
        torch.manual_seed(seed)
        B, S, T = torch.randint(3, 40, (3,)).tolist()
        with torch.autocast('cpu', torch.bfloat16):
            loss, _ = model.loss(*(torch.randint(4, 90, (B, n)) for n in (S, T)))
        loss.backward()
        assert counter.frame_count <= 5 and loss.isfinite()
    assert counter.frame_count >= 4


def test_each_batch_is_read_once(cfg, monkeypatch):
    """... in the order of their numbers, also by a run that is stopped and resumed."""
    read, get = [], train.Batches.__getitem__
    monkeypatch.setattr(train.Batches, '__getitem__',
                        lambda batches, k: read.append(k) or get(batches, k))
    for max_steps in 2, 5:
        train.train(replace(cfg, max_steps=max_steps))
    assert read == [*range(5 * cfg.accumulate)]


def test_schedule():
    cfg = config.Train(max_steps=100, warmup=0.1)
    rates = [train.schedule(step, cfg) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == rates[10] == 1.0
    assert rates[-1] == pytest.approx(1 / 90) and np.all(np.diff(rates[10:]) < 0)


def test_training_learns_and_keeps_the_best(cfg, capsys):
    cfg = replace(cfg, languages=('bo', 'zh'), max_steps=60, eval_interval=20, lr=3e-3,
                  accumulate=1)
    train.train(cfg)
    means = {line['step']: line['val_mean'] for line in log(cfg) if 'val_mean' in line}
    assert means[60] < 0.9 * means[0]
    printed = capsys.readouterr().out
    for word in ('copied from the encoder', 'held-out loss', 'mt zh-bo', 'source', 'output',
                 'reference'):
        assert word in printed
    best, src = SWCM.load(f'{cfg.out_dir}/best'), torch.tensor([[0, 161, 30, 40, 2]])
    assert best.generate(src, 'zh', 5)


@pytest.mark.full
def test_scores_of_translations(cfg, monkeypatch):
    """A model that knows the references gets 100, one that writes those of other sources not."""
    cfg = replace(cfg, max_steps=1, eval_translations=3, batch_tokens=20)
    directions = {f'{a}-{b}' for x in LANGUAGES if x != 'zh' for a, b in ((x, 'zh'), ('zh', x))}
    known = {(a, to): b for x in LANGUAGES for pair in zip(sentences(x), sentences('zh'))
             for (a, b), to in ((pair, 'zh'), (pair[::-1], x))}
    for shift in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr(train, 'generate_texts', lambda model, tok, sources, to: ([
                known.get((tok.decode(ids[2:-1]), to[0]), 'བོད།')
                for ids in [*sources[shift:], *sources[:shift]]], None))
            train.train(replace(cfg, resume=False))
        scores = log(cfg)[-1]['scores']
        assert scores.keys() == {f'chrF++ {d}' for d in directions}
        assert all(value == pytest.approx(100) for value in scores.values()) == (shift == 0)
    train.train(replace(cfg, mt_fraction=0.0, resume=False))    # has nothing to translate
    assert log(cfg)[-1]['scores'] == {}
    train.train(replace(cfg, resume=False))
    assert log(cfg)[-1]['scores'].keys() == scores.keys()
    assert [line['parameters'] for line in log(cfg) if 'parameters' in line] == \
        [sum(w.numel() for w in weights(cfg).values())]


def test_scores_of_masked_tokens(cfg, run_root, monkeypatch):
    # a model that knows them all
    monkeypatch.setattr(train, 'likeliest', lambda model, src, tgt: tgt[tgt != PAD])
    mlm = replace(cfg, objective='mlm', max_steps=1)
    train.train(mlm)
    scores = log(cfg)[-1]['scores']
    assert scores.keys() == {f'{kind} {x}' for kind in ('accuracy', 'commonest') for x in LANGUAGES}
    for task in tasks(next((run_root / 'tokens/text').glob('*/bo.val.bin')).parent, 'val',
                      Tokenizer(cfg.encoder), mlm):
        labels = [t for _, tgt in val_batches(task, mlm, mlm.eval_segments)
                  for t in tgt[tgt != PAD].tolist()]
        assert scores[f'accuracy {task.source}'] == 1
        [(_, commonest)] = Counter(labels).most_common(1)
        assert scores[f'commonest {task.source}'] == pytest.approx(commonest / len(labels))
    monkeypatch.undo()
    train.train(replace(mlm, resume=False))
    assert all(log(cfg)[-1]['scores'][f'accuracy {x}'] < 1 for x in LANGUAGES)


def test_a_head_that_is_not_in_the_files_is_random(cfg, tmp_path, capsys):
    """... and the report of weights says so."""
    XLMR.from_encoder(cfg.encoder, mlm_head=False).save(tmp_path / 'bare')
    for encoder, origin in ((cfg.encoder, 'read from'), (str(tmp_path / 'bare'), 'random')):
        train.train(replace(cfg, objective='mlm', encoder=encoder, max_steps=1, resume=False))
        assert re.search(rf'  head +[\d,]+  {origin}', capsys.readouterr().out)


@pytest.mark.full
def test_curves(cfg, tmp_path):
    """A table and a figure of two seeds of one arm, and of another arm that does not translate."""
    train.train(replace(cfg, max_steps=2, eval_interval=1, out_dir=str(tmp_path / 'copy.1')))
    lines = [json.loads(line) for line in open(tmp_path / 'copy.1/log.jsonl', encoding='utf-8')]
    for path, gain in (('copy.2.jsonl', 0.25), ('alone.jsonl', 0)):
        with open(tmp_path / path, 'w', encoding='utf-8') as file:
            for line in lines:
                if 'val' in line:
                    line = {**line, 'scores': {'chrF++ bo-zh': 10 + gain},
                            'val': {k: v - gain for k, v in line['val'].items() if gain
                                    or k.startswith('dae')}}
                file.write(json.dumps(line) + '\n')
            if gain:  # a seed that is a step ahead, and still running
                file.write(json.dumps({**line, 'step': 3}) + '\n{"step": 4, ')
    status, out, err = call('tests/tools/curves.py', 'copy.1', 'copy.2.jsonl', 'alone.jsonl',
                            '--svg=c.svg', cwd=tmp_path)
    assert status == 0, err
    header, _, copy, alone = [line[2:-2].split(' | ') for line in out.splitlines()]
    value = lines[-1]['val']['mt bo-zh']
    copy, alone = dict(zip(header, copy)), dict(zip(header, alone))
    assert copy['arm'] == 'copy' and copy['seeds'] == '2' and alone['seeds'] == '1'
    assert copy['mt bo-zh'] == f'{value - 0.125:.2f} ± {0.25 / 2**0.5:.2f}'
    assert alone['mt bo-zh'] == ''
    assert alone['dae bo'] == f'{lines[-1]["val"]["dae bo"]:.2f}'
    # one of two seeds has it; all have
    assert (copy['chrF++ bo-zh'], alone['chrF++ bo-zh']) == ('', '10.0')
    assert copy['parameters'] == f'{lines[0]["parameters"] / 1e6:.2f}M'
    text = (tmp_path / 'copy.2.jsonl').read_text(encoding='utf-8')
    (tmp_path / 'mix.1.jsonl').write_text('{"parameters": 2000000}\n' + text, encoding='utf-8')
    shutil.copy(tmp_path / 'alone.jsonl', tmp_path / 'mix.2.jsonl')     # ends a step before mix.1
    for names in ['mix.1.jsonl', 'mix.2.jsonl'], ['mix.2.jsonl', 'mix.1.jsonl']:
        [row] = call('tests/tools/curves.py', *names, cwd=tmp_path)[1].splitlines()[2:]
        arm, seeds, parameters, _, mean, *_ = row[2:-2].split(' | ')
        first = '2.00M' if names[0] == 'mix.1.jsonl' else f'{lines[0]["parameters"] / 1e6:.2f}M'
        assert (arm, seeds, parameters, mean) == ('mix', '2', first, '')
    figure = (tmp_path / 'c.svg').read_text(encoding='utf-8')
    assert all(f'>{word}</text>' in figure for word in ('copy', 'alone', 'translation',
                                                        'denoising'))
    (tmp_path / 'empty.jsonl').write_text('')
    assert 'copy.1 is there already' in call('tests/tools/curves.py', 'copy.1', 'copy.1/log.jsonl',
                                             cwd=tmp_path)[2]
    assert call('tests/tools/curves.py', 'empty.jsonl',
                cwd=tmp_path)[::2] == (1, 'error: empty.jsonl has no evaluation\n')


@pytest.mark.full
def test_studies_have_the_tables_of_their_logs():
    """A study's README has what its commands print from committed logs and scores."""
    for study, pattern, more in (
            ('ablation', 'logs/*.jsonl', ()), ('ablation', 'logs/long/*.jsonl', ()),
            ('ablation', 'logs/small/*.bo.*.jsonl', ()),
            ('ablation', 'logs/small/*.kk.*.jsonl', ()),
            ('ablation', 'logs/headless/1200/*.jsonl', ()),
            ('ablation', 'logs/headless/400/*.jsonl', ()),
            ('ablation', 'logs/headless/tibetan/*.jsonl', ()),
            ('vocabulary', 'logs/*.jsonl', ()),
            ('vocabulary', 'logs/laptop/[acr]*.jsonl', ()),
            *(('finetune', f'scores/{table}/*.json', [f'--score={score}']) for table, score in (
                ('headlines', 'chrF++'), ('answers', 'f1'), ('zh-bo', 'chrF++'),
                ('bo-zh', 'chrF++'), ('into-zh', 'chrF++'), ('amount', 'chrF++'),
                ('strings', 'chrF++'), ('titles', 'rouge_l_f'), ('questions', 'f1'),
                ('compared/headlines', 'rouge_l_f'), ('compared/zh-bo', 'rouge_l_f'),
                ('compared/bo-zh', 'rouge_l_f'), ('compared/amount', 'chrF++'),
                ('compared/strings', 'chrF++'), ('compared/questions', 'f1')))):
        folder = ROOT / 'config' / study
        files = sorted(str(path) for path in folder.glob(pattern))
        status, out, err = call('tests/tools/curves.py', *files, *more, cwd=ROOT)
        assert status == 0, err
        assert out.count('\n') > 3 and out in (folder / 'README.md').read_text(encoding='utf-8')


def test_what_has_no_held_out_text_is_said(cfg, monkeypatch, capsys):
    whole, last = train.tasks, []

    def some(folder, split, *args):
        found = whole(folder, split, *args)
        last[:] = found[-1:]
        return found[:-1] if split == 'val' else found

    monkeypatch.setattr(train, 'tasks', some)
    monkeypatch.setattr(train, 'fit', lambda *args: None)
    train.train(cfg)
    assert f'warning: no held-out text for {last[0].name}; raise --val' in capsys.readouterr().out


def spoil(monkeypatch, kinds):
    """Makes the loss of some steps not finite. kinds: {step: nan or inf}, counted from 1.

    None in place of nan leaves the loss as it is, but not the gradient.
    """
    schedule, forward, at = train.schedule, SWCM.forward, []

    def note(step, cfg):
        at.append(step + 1)
        return schedule(step, cfg)

    def spoilt(model, src, tgt):
        loss, n = forward(model, src, tgt)
        kind = kinds.get(at[-1], 0.0)
        return loss + ((next(model.parameters()).sum() * 0).sqrt() if kind is None else kind), n

    monkeypatch.setattr(train, 'schedule', note)
    monkeypatch.setattr(SWCM, 'forward', spoilt)


@pytest.mark.full
def test_steps_without_a_finite_loss_are_skipped(cfg, monkeypatch, tmp_path, capsys):
    spoil(monkeypatch, {2: float('nan'), 4: None, 5: float('inf')})
    stop_after(1, cfg)
    before = weights(cfg)
    stop_after(2, cfg)
    assert all(torch.equal(before[k], value) for k, value in weights(cfg).items())
    train.train(cfg)
    whole = replace(cfg, out_dir=str(tmp_path / 'whole'))
    train.train(whole)
    assert log(whole) == log(cfg)
    assert all(torch.equal(weights(whole)[k], value) and value.isfinite().all()
               for k, value in weights(cfg).items())
    steps = [line for line in log(cfg) if 'lr' in line]
    assert [line.get('skipped') for line in steps] == [None, 1, None, 1, 2, None]
    more = [b['tokens'] > a['tokens'] for a, b in zip(steps, steps[1:])]
    assert more == [False, True, False, False, True]
    out = capsys.readouterr().out
    assert 'step 2 is skipped: its loss is nan' in out
    assert re.search(r'step 4 is skipped: its loss is \d\.\d+, the norm of its gradient nan', out)


@pytest.mark.full
def test_a_run_that_has_only_skipped_steps_can_go_on(cfg, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(patch, {1: float('nan'), 2: float('nan')})
        stop_after(2, cfg)
    train.train(cfg)
    assert log(cfg)[-1]['step'] == 6 and all(w.isfinite().all() for w in weights(cfg).values())


@pytest.mark.full
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_saves(cfg, number, tmp_path):
    """As a terminal or a scheduler sends it."""
    argv = [f'--{k}={",".join(v) if k == "languages" else v}' for k, v in
            asdict(replace(cfg, max_steps=5000)).items()]
    running = subprocess.Popen([sys.executable, str(ROOT / 'train.py'), *argv], cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
    written = tmp_path / 'out/log.jsonl'
    while not written.exists() or written.read_text().count('\n') < 4:
        time.sleep(0.05)
        assert running.poll() is None
    os.killpg(running.pid, number)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert 'stopped and saved at step' in out
    assert 'Traceback' not in out


@pytest.mark.full
def test_a_diverging_run_ends(cfg, monkeypatch):
    """... with its last good checkpoint, and so does the same command again."""
    spoil(monkeypatch, {step: float('inf') for step in range(4, 20)})
    cfg = replace(cfg, max_steps=20, save_interval=1)
    message = 'step 8: 5 steps in a row without a finite loss .*/last is from before them'
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            train.train(cfg)
        assert all(w.isfinite().all() for w in weights(cfg).values())
    with pytest.raises(ValueError, match=r'and gradient\. Try a lower --lr'):
        train.train(replace(cfg, save_interval=100, out_dir=cfg.out_dir + '2'))


@pytest.mark.full
def test_a_run_with_other_settings_is_not_continued(cfg, tmp_path, capsys):
    train.train(replace(cfg, max_steps=2))
    message = "holds a run with share='copy', not 'none'.*--resume=False.*--out_dir"
    with pytest.raises(ValueError, match=message):
        train.train(replace(cfg, share='none'))
    with pytest.raises(ValueError, match='holds a run with eval_segments=4, not 5'):
        train.train(replace(cfg, eval_segments=5))        # `best` could not be compared
    train.train(replace(cfg, max_steps=3))                                        # may be longer
    assert [line['lr'] for line in log(cfg) if 'lr' in line][1:] == [cfg.lr, cfg.lr / 2]
    assert 'resuming from step 2 of 3' in capsys.readouterr().out
    (tmp_path / 'bo.txt').write_text('ང་ལ་ཁྱི་གཉིས་ཡོད།\n' * 9, encoding='utf-8')
    with pytest.raises(ValueError, match='this run began with other text'):
        train.train(replace(cfg, max_steps=4, data_from=f'{cfg.data_from},{tmp_path}/bo.txt'))
    own = tmp_path / 'encoder'
    shutil.copytree(cfg.encoder, own)
    cfg = replace(cfg, encoder=str(own), resume=False, max_steps=1)
    train.train(cfg)
    shutil.move(own, tmp_path / 'away')
    train.train(replace(cfg, resume=True, max_steps=2))  # it is not needed any more
    shutil.move(tmp_path / 'away', own)
    train.train(replace(cfg, share='none', resume=False, max_steps=1))


def test_scores_of_replaced_weights_are_removed(cfg):
    train.train(replace(cfg, max_steps=1, eval_interval=1))
    scores = [ROOT / cfg.out_dir / 'best' / name for name in ('metrics.json', 'predictions.jsonl')]
    for path in scores:
        path.write_text('{}')
    train.train(replace(cfg, max_steps=2, eval_interval=1))
    assert not any(path.exists() for path in scores)


def test_finished_run_is_left_alone(cfg, capsys):
    train.train(replace(cfg, max_steps=2))
    before = os.stat(f'{cfg.out_dir}/last/model.safetensors').st_mtime_ns
    train.train(replace(cfg, max_steps=2))
    assert 'has done its 2 steps' in capsys.readouterr().out
    assert os.stat(f'{cfg.out_dir}/last/model.safetensors').st_mtime_ns == before


def call(*command, cwd, **kwargs):
    """Runs a script as a user does; returns exit status, output and error output."""
    # else sample.py reads the tests' own pipe
    stdin = {} if 'input' in kwargs else {'stdin': subprocess.DEVNULL}
    done = subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], cwd=cwd,
                          capture_output=True, text=True, encoding='utf-8', **stdin, **kwargs)
    return done.returncode, done.stdout, done.stderr


def test_help_lists_every_key(tmp_path):
    for script, cls in (('train.py', config.Train), ('sample.py', sample.Sample),
                        ('finetune.py', config.FineTune)):
        status, out, _ = call(script, '--help', cwd=tmp_path)
        assert status == 0
        for name in cls.__dataclass_fields__:
            assert re.search(rf'--{name}=\S* .*\w', out), name
    status, out, _ = call('train.py', 'config/tibetan_base.py', '-h', cwd=tmp_path)
    # the file's, and a default
    assert status == 0 and '--insert_every=3 ' in out and '--warmup=0.1 ' in out


def test_a_broken_config_file_and_a_closed_pipe(tmp_path):
    (tmp_path / 'broken.py').write_text('seed = (\n')
    status, out, err = call('train.py', 'broken.py', '--help', cwd=tmp_path)
    assert (status, out, err) == (1, '', "error: broken.py: SyntaxError: '(' was never closed "
                                         '(broken.py, line 1)\n')
    read, write = os.pipe()
    os.close(read)                            # as `--help | head` does when it has its lines
    done = subprocess.run([sys.executable, ROOT / 'sample.py', '-h'], stdout=write,
                          stderr=subprocess.PIPE, env={**os.environ, 'PYTHONUNBUFFERED': ''})
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b'')


def test_what_is_shipped_is_found_from_any_folder(run_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'stdin', open(os.devnull))
    cfg = cli.load(config.Train, ['config/ablation/copy.py', '--share=tie'])
    train.build(cfg, None)
    finetune.build(config.FineTune(), None)
    (tmp_path / 'zh.txt').write_text('我有两本书。', encoding='utf-8')
    for args in ['trim', '--out=small'], ['report']:
        vocabulary.main([*args, '--text', 'zh.txt', '--encoder=data/nano'])
    (tmp_path / 'data/nano').mkdir(parents=True)      # a folder of one's own comes first
    with pytest.raises(FileNotFoundError, match='data/nano/config.json'):
        train.build(cfg, None)


@pytest.mark.parametrize('args, message', [
    (['--max_step=3'], '--max_step: unknown key; did you mean max_steps?'),
    (['--max_steps=many'], "--max_steps='many': expected a whole number"),
    (['--lr=True'], "--lr='True': expected a number"),
    (['--resume=1'], "--resume='1': expected True or False"),
    (['config/tibetian.py'],
     'config file config/tibetian.py does not exist; see config/'),
    (['--accumulate=0'], 'accumulate=0: expected a number of at least 1'),
    (['--lr=1e999'], 'lr=1e999: expected a number of at most 1000000000000000'),
    ([f'--lr=1{"0" * 400}'], '000: expected a number of at most 1000000000000000'),
    (['--seed=99999999999'], 'seed=99999999999: expected a number'),
    (['--out_dir='], 'out_dir is empty'), (['--languages='], 'languages is empty'),
    (['--warmup=2'], 'warmup=2: expected a number of at most 1'),
    (['--mlm_ratio=0'], 'mlm_ratio=0: expected a number of at least 1e-09'),
    (['--block_size=3'], 'block_size=3: expected a number of at least 8'),
    (['--lr'], "'--lr': expected a config file, if any, then --key=value"),
    (['--lr=1', 'x.py'], "'x.py': expected a config file"),
    (['--objective=x'], "objective='x': choose swcm or mlm"),
    (['--encoder='], 'encoder is empty'),
    (['--encoder=nowhere'], "nowhere/config.json: No such file"),
    (['--device=cuda:9'], "device='cuda:9' is not available"),
    (['--dtype=int8'], "dtype='int8': choose auto"),
    (['--block_size=600'], 'block_size=600: this model reads at most 64 tokens'),
    (['--languages=bo,xx'],
     'no train text for xx; it has bo-zh bo kk-zh kk mn-zh mn ug-zh ug zh. Set'),
    (['--share=all'], "share='all': choose copy or none"),
    (['--objective=mlm', '--share=tie'], 'has copy; give --share=copy'),
    (['--dataset=none'], "dataset='none': there is no data/none/prepare.py"),
    (['--data_from=nowhere'], 'nowhere does not exist')])
def test_mistakes_get_one_line(cfg, args, message, monkeypatch, capsys):
    """As typed, but in this process, which has torch already."""
    settings = [f'--{k}={",".join(v) if isinstance(v, tuple) else v}' for k, v in vars(cfg).items()]
    argv = args if args[0].endswith('.py') or args == ['--lr'] else [*settings, *args]
    monkeypatch.setattr(sys, 'stdin', open(os.devnull))
    monkeypatch.setattr(sys, 'stdout', open(os.devnull, 'w', encoding='utf-8'))
    monkeypatch.setattr(sys, 'stderr', open(os.devnull, 'w', encoding='utf-8'))
    monkeypatch.setattr(sys, 'argv', ['train.py', *argv])
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda argv: train.train(cli.load(config.Train, argv)))
    assert stopped.value.code.startswith('error: ') and '\n' not in stopped.value.code
    assert message in stopped.value.code
    assert not os.path.exists(f'{cfg.out_dir}/last')


@pytest.mark.full
def test_command_lines(cfg, tmp_path, corpus, encoder_folder):
    """Train, stop with Ctrl-C, go on, and write, as a user does."""
    (tmp_path / 'mine.py').write_text(f'''dataset = 'text'
encoder = {str(encoder_folder)!r}
out_dir = 'out/mine'
block_size, batch_tokens, val_fraction, eval_interval, eval_segments = 64, 400, 0.2, 1000, 4
''', encoding='utf-8')
    command = [sys.executable, str(ROOT / 'train.py'), 'mine.py', f'--data_from={corpus}',
               '--max_steps=3000']
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                               encoding='utf-8')
    written = tmp_path / 'out/mine/log.jsonl'
    while not written.exists() or written.read_text().count('\n') < 3:
        time.sleep(0.1)
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert 'stopped and saved at step' in out
    assert 'the same command resumes' in out
    step = int(re.search(r'saved at step (\d+) of 3000', out)[1])
    strict = {**os.environ, 'PYTHONWARNINGS': 'error::ResourceWarning'}
    status, out, err = call('train.py', 'mine.py', f'--data_from={corpus}',
                            f'--max_steps={step + 2}',
                           cwd=tmp_path, env=strict)
    assert status == 0 and 'Warning' not in err, err
    assert f'step {step + 2}: held-out loss' in out
    status, out, err = call('sample.py', '--examples=1', cwd=tmp_path, env=strict)
    assert status == 0 and 'Warning' not in err, err
    assert out.count('source  ') == out.count('output  ') == out.count('reference  ') >= 5
    (tmp_path / 'zh.txt').write_text('我有两本书。\n\n' + '他看见了三只羊。' * 30 + '\n', encoding='utf-8')
    status, out, err = call('sample.py', '--to=bo', '--file=zh.txt', '--beams=2',
                            '--max_new_tokens=9', cwd=tmp_path)
    assert status == 0 and out.count('\n') == 3, err
    status, piped, err = call('sample.py', '--to=bo', '--file=-', '--beams=2', '--max_new_tokens=9',
                              cwd=tmp_path, input=(tmp_path / 'zh.txt').read_text(encoding='utf-8'))
    assert status == 0 and piped == out, err
    for args, message in ((['--text=x', '--to=fr'],
                           "language 'fr': the model has bo ug kk mn zh"),
                          (['--text=x', '--to=zh'],
                           'translate from zh to zh: see --source and --to'),
                          (['--file=none.txt'], 'none.txt'),
                          (['--text=x', '--file=zh.txt'],
                           "text='x', file=zh.txt: give one of them"),
                          (['--text=x', '--to=bo', '--force_script=TIBETIAN'],
                           'no letters of TIBETIAN; it has '),
                          (['--text=x', '--task=answer'],
                           "question='': --task=answer goes with a --question"),
                          (['--task=sing'],
                           "task='sing': choose translate, denoise, summarise, answer"),
                          ([f'--checkpoint={encoder_folder}', '--to=bo'],
                           'has no nanoSWCM model')):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
            sample.main([f'--checkpoint={tmp_path}/out/mine/best', *args])


def test_sample_without_a_checkpoint(tmp_path):
    status, _, err = call('sample.py', cwd=tmp_path)
    assert status == 1
    assert err.startswith('error: no checkpoint in out/; '
                          '`python train.py config/tibetan.py` makes one')


@pytest.mark.full
def test_chinese_is_translated_where_it_is_the_first_language(cfg, capsys):
    train.train(replace(cfg, languages=('zh', 'bo'), max_steps=1))
    capsys.readouterr()
    sample.main([f'--checkpoint={cfg.out_dir}/last', '--text=我', '--to=bo', '--beams=1',
                 '--max_new_tokens=3'])
    assert capsys.readouterr().out.count('\n') == 1
    sample.main([f'--checkpoint={cfg.out_dir}/last', '--text=我\n书', '--to=bo', '--beams=1',
                 '--max_new_tokens=3'])
    assert capsys.readouterr().out.count('\n') == 2
    sample.main([f'--checkpoint={cfg.out_dir}/last', '--examples=99', '--beams=1',
                 '--max_new_tokens=1'])
    shown = re.findall('[a-z]+ [a-z-]+\n  source     (.*)', capsys.readouterr().out)
    assert 1 < len(shown) == len({*shown})               # all that there are, each once
    with pytest.raises(ValueError, match='translate from zh to zh'):
        sample.main([f'--checkpoint={cfg.out_dir}/last', '--text=我'])


def test_held_out_examples_have_warnings_too(cfg, capsys):
    train.train(replace(cfg, max_steps=1))
    sample.main([f'--checkpoint={cfg.out_dir}/last', '--max_new_tokens=1', '--beams=1'])
    captured = capsys.readouterr()
    assert captured.out.count('reference') > 1
    assert 'outputs reached the limit of tokens' in captured.err


def test_weights_are_packed_unless_asked_otherwise(cfg, monkeypatch):
    train.train(replace(cfg, max_steps=1))
    packed = []
    monkeypatch.setattr(sample, 'pack', packed.append)
    for dtype, expected in (('auto', 1), ('float32', 0), ('bfloat16', 0)):
        sample.TextGenerator(f'{cfg.out_dir}/last', sample.Sample(device='cpu', dtype=dtype), 64)
        assert len(packed) == expected
        packed.clear()


def test_sampling_fills_masks(cfg):
    train.train(replace(cfg, max_steps=1))
    generator = sample.TextGenerator(f'{cfg.out_dir}/last', sample.Sample(
        device='cpu', beams=2, max_new_tokens=12, task='denoise', source='bo', to='bo'), 64)
    ids = generator.tokenizer.encode_masked('ང་ལ་<mask>གཉིས་ཡོད།')
    assert (ids == generator.tokenizer.mask).sum() == 1 and PAD not in ids
    assert len(generator.answer(['ང་ལ་<mask>གཉིས་ཡོད།', ''])) == 2


@pytest.mark.full
def test_full_disk_leaves_the_last_checkpoint_whole(cfg):
    train.train(replace(cfg, max_steps=2))
    before = {p.name: p.read_bytes() for p in (ROOT / cfg.out_dir / 'last').iterdir()}
    code = ('import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);'
            'resource.setrlimit(resource.RLIMIT_FSIZE, (350_000, 350_000));'
            'import config, train; from config import cli, runtime; from data import dataset;'
            'from pathlib import Path; dataset.token_folder = '
            f'lambda name: Path({str(dataset.token_folder("text").parent)!r}) / name;'
            'cli.run(lambda argv: train.train(cli.load(config.Train, argv)))')
    settings = [f'--{k}={",".join(v) if isinstance(v, tuple) else v}' for k, v in vars(cfg).items()]
    done = subprocess.run([sys.executable, '-c', code, *settings], cwd=ROOT, capture_output=True,
                          text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith('error: '), done.stderr
    assert 'Traceback' not in done.stderr, done.stderr
    assert f'{cfg.out_dir}/best cannot be written' in last
    assert {p.name: p.read_bytes() for p in (ROOT / cfg.out_dir / 'last').iterdir()} == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


RAGGED = '''
import torch
from config import runtime
from model import SWCM, SWCMConfig
torch.manual_seed(1)
torch.set_num_threads(1)
model = SWCM(SWCMConfig(16000, n_layer=1, n_head=4, n_embd=384, n_ffn=384, languages=('bo',)))
for step in range(60):
    src, tgt = (torch.randint(4, 15000, (2, n)) for n in torch.randint(16, 120, (2,)).tolist())
    model.train().loss(src, tgt)[0].backward()
    model.zero_grad()
    if step in (19, 59):
        print(int(open('/proc/self/statm').read().split()[1]) * 4096 // 2**20)
'''


@pytest.mark.full
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_does_not_grow_with_the_number_of_shapes():
    """In MB, after 20 and 60 batches of other shapes. It grew by hundreds (config/runtime.py)."""
    done = subprocess.run([sys.executable, '-c', RAGGED], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    early, late = map(int, done.stdout.split())
    assert late < early + 100, done


def torchrun(cfg, n, script=ROOT / 'train.py', **env):
    """Runs cfg in n processes; returns exit status, output and error output."""
    keys = [f'--{key}={",".join(value) if key == "languages" else value}'
            for key, value in asdict(cfg).items()]
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={n}',
                           script, *keys],
                          capture_output=True, text=True, env={**os.environ, **env}, timeout=120)
    return done.returncode, done.stdout, done.stderr


# train.py with weights of 64 bits, so that the order of a sum does not matter, and with accidents
ACCIDENTS = f'''
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import config, train
from config import cli, runtime
build, schedule = train.build, train.schedule

def build_in_double(cfg, state):
    model, tokenizer = build(cfg, state)
    return model.double(), tokenizer

def accident(step, cfg):
    if os.environ.get('ACCIDENT') == f'{{os.environ.get("RANK", 0)}} {{step}}':
        os.kill(os.getpid(), int(os.environ['SIGNAL']))
    return schedule(step, cfg)

train.build, train.schedule = build_in_double, accident
cli.run(lambda argv: runtime.with_processes(train.train, cli.load(config.Train, argv)))
'''


@pytest.mark.full
def test_processes_compute_the_same(cfg, tmp_path):
    """One process, and two that are stopped and continued by three: the same weights."""
    (tmp_path / 'accidents.py').write_text(ACCIDENTS, encoding='utf-8')
    one = replace(cfg, accumulate=6, max_steps=4, out_dir=str(tmp_path / 'one'))
    assert call(str(tmp_path / 'accidents.py'),
                *[f'--{k}={",".join(v) if k == "languages" else v}' for k, v in
                  asdict(one).items()], cwd=tmp_path)[0] == 0
    several = replace(one, out_dir=str(tmp_path / 'several'))
    # it reaches one process, and all stop
    stop = dict(ACCIDENT='1 1', SIGNAL=str(int(signal.SIGTERM)))
    status, out, err = torchrun(several, 2, tmp_path / 'accidents.py', **stop)
    assert status and 'stopped and saved at step 2 of 4; the same command resumes' in out, err
    assert [line['step'] for line in log(several) if 'loss' in line] == [1, 2]
    status, _, err = torchrun(several, 3, tmp_path / 'accidents.py')
    assert status == 0, err
    for ours, theirs in zip(log(one), log(several), strict=True):
        assert {k: v for k, v in ours.items()
                if k not in ('val', 'grad_norm', 'loss', 'val_mean')} == \
            {k: v for k, v in theirs.items() if k not in ('val', 'grad_norm', 'loss', 'val_mean')}
        for key in 'loss', 'grad_norm', 'val_mean':
            assert ours.get(key) == pytest.approx(theirs.get(key), abs=1e-9)
    moved = [weights(one)[k] - w
             for k, w in SWCM.from_encoder(cfg.encoder, languages=LANGUAGES).state_dict().items()
             if k.startswith('encoder.layers.0') and w.dim() == 2]
    assert min(w.abs().mean() for w in moved) > 1e-4
    assert all((weights(several)[k] - w).abs().max() < 1e-9 for k, w in weights(one).items())


@pytest.mark.full
def test_one_process_killed_ends_the_others(cfg, tmp_path):
    (tmp_path / 'accidents.py').write_text(ACCIDENTS, encoding='utf-8')
    cfg = replace(cfg, max_steps=5000)
    started = time.perf_counter()
    status, _, err = torchrun(cfg, 2, tmp_path / 'accidents.py', ACCIDENT='1 3',
                              SIGNAL=str(int(signal.SIGKILL)))
    assert status and 'SIGKILL' in err and time.perf_counter() - started < 60
    assert SWCM.load(f'{cfg.out_dir}/last')                               # as of step 2
