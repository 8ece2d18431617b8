"""data/small/distil.py: what the student begins with, what it learns, and that it resumes."""
import re
import runpy

import pytest
import torch
from conftest import ROOT, sentences

import train
from config import cli
from data.batches import collate
from data.tokenizer import BOS, EOS, PAD, Tokenizer
from model import XLMR

DISTIL = runpy.run_path(str(ROOT / 'data/small/distil.py'))
OPTIONS = ['--languages=bo,kk,zh', '--layers=0,3', '--n_ffn=40', '--taught=kk,zh',
           '--block_size=64', '--batch_tokens=600', '--eval_interval=100', '--val_fraction=0.1',
           '--eval_segments=4']


def config(*options):
    return cli.load(DISTIL['Distil'], [*OPTIONS, *options])


def distil(corpus, teacher, out, *options):
    DISTIL['distil'](config(f'--encoder={teacher}', f'--data_from={corpus}', f'--out_dir={out}',
                            *options))
    return XLMR.from_encoder(out / 'last')


@pytest.fixture
def teacher(encoder_folder):
    return XLMR.from_encoder(encoder_folder)


@torch.no_grad()
def test_shrink(teacher):
    """With all layers and channels it is the teacher; with fewer, the largest channels stay."""
    ids = torch.randint(4, 150, (3, 20))
    same = DISTIL['shrink'](teacher, config('--layers=0,1,2,3', '--n_ffn=64')).eval()
    torch.testing.assert_close(same.encode(ids), teacher.encode(ids))
    for j in (0, 3):
        teacher.layers[j].ffn.up.weight[5:29] *= 1e-6           # 24 of 64 channels are useless
        teacher.layers[j].ffn.up.bias[5:29] = 0
    small = DISTIL['shrink'](teacher, config()).eval()
    del teacher.layers[1:3]
    assert small.config.n_layer == 2 and small.layers[0].ffn.up.weight.shape == (40, 32)
    torch.testing.assert_close(small.encode(ids), teacher.encode(ids), rtol=0, atol=1e-3)


def test_contrast_and_distance():
    x, y = torch.randn(2, 6, 8)
    a, b = x - y.mean(0), y - y.mean(0)
    logits = torch.cosine_similarity(a[:, None], b[None], dim=2) / 0.05
    want = -logits.log_softmax(1).diagonal().mean()
    torch.testing.assert_close(DISTIL['contrast'](x, y), want)
    twice = torch.cat([y, y])                                   # each sentence is there twice
    many = torch.randn(60, 384)
    many[30:] = many[:30]                                       # bits apart if by matmul
    assert DISTIL['contrast'](many, many) < 0.01
    own, others = logits.diagonal()[:, None], logits.clone().fill_diagonal_(-torch.inf)
    want = (torch.cat([own, others, others], 1).logsumexp(1) - own[:, 0]).mean()
    torch.testing.assert_close(DISTIL['contrast'](torch.cat([x, x]), twice), want)
    assert DISTIL['distance'](y, y) == 0
    assert DISTIL['distance'](y, y[:1].expand(6, 8)).isfinite()
    mean = y.mean(0).expand(6, 8)
    torch.testing.assert_close(DISTIL['distance'](mean, y), torch.tensor(5 / 6))


@torch.no_grad()
def test_the_three_tasks(corpus, teacher, encoder_folder):
    """A batch's loss is the sum of those that its rows have by themselves, per masked token."""
    cfg, tok = config('--dropout=0'), Tokenizer(encoder_folder)
    text = DISTIL['prepare']('text', tok, 64, 0.1, corpus)
    tasks = {task.source: task for task in DISTIL['learned_tasks'](text, tok, cfg)
             if task.source == task.target}
    pairs = [task for task in DISTIL['learned_tasks'](text, tok, cfg) if task.source != task.target]
    assert [*tasks] == ['bo', 'kk', 'zh'] and [x.target for x in pairs] == ['zh', 'zh']
    marks = {name: task.val_example(0)[1][0] for name, task in tasks.items()}
    assert marks == {'bo': PAD, 'kk': EOS, 'zh': EOS}
    a, b = pairs[0].val_example(3)
    assert a[0] == b[0] == BOS and a[-1] == b[-1] == EOS
    assert tok.decode(a) in sentences('bo') and tok.decode(b) in sentences('zh')
    student = DISTIL['shrink'](teacher, cfg).eval()
    student.__dict__['teacher'] = teacher
    rows = [tasks['bo'].val_example(1), tasks['kk'].val_example(2), pairs[0].val_example(3),
            pairs[0].val_example(40)]
    loss, n = student(*map(torch.from_numpy, collate(rows)))
    (bo, bo_labels), (kk, kk_labels), *both = [
        [torch.tensor([[*ids]]) for ids in row] for row in rows]
    for labels in bo_labels, kk_labels:
        labels[:, 0] = PAD                                      # no mark, no token to predict
    sums, counts = zip(student.loss(bo, bo_labels), student.loss(kk, kk_labels))
    clean = torch.where(kk_labels == PAD, kk, kk_labels)
    assert clean[0, 1:-1].tolist() == tasks['kk'].stream[2].tolist()
    states = DISTIL['distance'](student.encode(kk)[0], teacher.encode(clean)[0])
    found = torch.cat([student.encode(a).mean(1) for a, _ in both])
    means = torch.cat([teacher.encode(b).mean(1) for _, b in both])
    of_pairs = DISTIL['distance'](found, means) + 0.2 * DISTIL['contrast'](found, means)
    n_pairs = sum(a.shape[1] for a, _ in both)
    assert n == sum(counts) + n_pairs and states > 0
    torch.testing.assert_close(loss, sum(sums) + sum(counts) * states + n_pairs * of_pairs)
    loss, n = student(*map(torch.from_numpy, collate(rows[2:3])))
    assert (loss, n) == (0, 1)                                  # no contrast for a pair alone
    more = DISTIL['learned_tasks'](text, tok, config('--taught=bo'))
    assert [(x.source, x.target) for x in more if x.source != x.target] == [('zh', 'bo')]


@torch.no_grad()
def pair_contrast(encoder, teacher, tok):
    """The contrast of 90 Tibetan sentences with the teacher's states of their translations."""
    bo, zh = (torch.stack([model.encode(torch.tensor([[BOS, *ids, EOS]]))[0].mean(0)
                           for ids in map(tok.encode, sentences(language))])
              for model, language in ((encoder, 'bo'), (teacher, 'zh')))
    return DISTIL['contrast'](bo, zh)


def test_a_run(corpus, teacher, encoder_folder, tmp_path, capsys, monkeypatch):
    """Losses fall, also that of pairs; a resumed run is the same to the bit."""
    options, tok = ['--max_steps=150', '--lr=3e-3', '--mt_fraction=0.9'], Tokenizer(encoder_folder)
    whole = distil(corpus, encoder_folder, tmp_path / 'whole', *options)
    shown = capsys.readouterr().out
    assert 'stream   documents       tokens' in shown
    first, *_, last = (float(x) for x in re.findall(r'held-out loss ([\d.]+)', shown))
    before = DISTIL['shrink'](teacher, config()).eval()
    assert last < first - 0.4
    assert pair_contrast(whole, teacher, tok) < 0.7 * pair_contrast(before, teacher, tok)

    def stop(step, settings):
        if step == 120:
            raise RuntimeError
        return schedule(step, settings)

    schedule = train.schedule
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(train, 'schedule', stop)
        distil(corpus, encoder_folder, tmp_path / 'stopped', *options)
    again = distil(corpus, encoder_folder, tmp_path / 'stopped', *options)
    assert 'resuming from step 100' in capsys.readouterr().out
    assert all(map(torch.equal, whole.parameters(), again.parameters()))


@pytest.mark.parametrize('options, message', [
    (['--layers=0,4'], 'layers=0,4, n_ffn=40: the teacher has layers 0 to 3 and n_ffn 64'),
    (['--layers=a'], 'layers=a, n_ffn=40: the teacher has'),
    (['--n_ffn=65'], 'n_ffn=65: the teacher has'),
    (['--objective=swcm'], "objective='swcm': distil.py has only mlm"),
    (['--block_size=65'], 'block_size=65: this model reads at most 64 tokens'),
    (['--languages=bo,xx'], 'the corpus has no train text for xx'),
    (['--layer=normal'], 'layer=normal: the model of .* has custom; give --layer=custom'),
])
def test_mistakes(corpus, encoder_folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        distil(corpus, encoder_folder, tmp_path / 'out', *options)
