"""Hostile text and files: a right result or one clear line; nothing is lost, run or overwritten.

The properties are tried on a few cases here, and on some thousands by
`python tests/robustness/stress.py fuzz`.
"""
import json
import os
import pickle
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LANGUAGES, sentences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import config
import finetune
import sample
import train
from config import cli
from data import dataset
from data.batches import Batches
from data.dataset import open_streams, prepare, report, split_segments
from data.examples import read_examples
from data.files import atomic_dir, read_lines
from data.metrics import score
from data.tasks import Task, infill, mask_tokens, permute_sentences
from data.text import prepare as text
from data.tokenizer import UNK
from model import SIZES, SWCM, XLMR
from train import STATE

pytestmark = pytest.mark.full

# fixtures are read only, but for the folders that each case makes anew
settings.register_profile('few', max_examples=25, deadline=None, derandomize=True, database=None,
                          suppress_health_check=list(HealthCheck))
settings.register_profile('many', settings.get_profile('few'), max_examples=250, derandomize=False,
                          print_blob=True)
settings.load_profile(os.environ.get('CASES', 'few'))

PARTS = ['\0', '\ufeff', '\u200b', '\u200f', '\u202e', '\u0301', '\u0f72', '\u2585', '\u2581',
         '\ufffd', '<mask>', '<s>', '</s>', '<bo>', '😀', 'བོད་', '།', '我有', '。', 'كىتاب', 'бар. ',
         ' ', '\u3000', 'ﬁ', '\x1b', '"', ',', '\\']
ENDS = ['\n', '\r\n', '\r', '\u2028', '\x85', '\x0b', '\x0c', '\x1c', '\t']
characters = st.sampled_from(PARTS) | st.characters(exclude_categories=['Cs'])
lines = st.lists(characters, max_size=30).map(''.join)
whole_texts = st.lists(characters | st.sampled_from(ENDS), max_size=60).map(''.join)
mixed = st.tuples(whole_texts.map(str.encode), st.binary(max_size=3)).map(b''.join)
contents = whole_texts.map(str.encode) | st.binary(max_size=80) | mixed
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | lines
    | st.sampled_from([10**12, 0, -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(lines, inner, max_size=3),
    max_leaves=5)


class Code:
    """Pickled, it is code that makes a file where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.fixture(scope='module')
def trained(tmp_path_factory, corpus, encoder_folder):
    """The settings of a run of two steps; its out_dir has last/ and best/.

    Token files go to a temporary folder.
    """
    folder, before = tmp_path_factory.mktemp('trained'), dataset.token_folder
    dataset.token_folder = lambda dataset: folder / 'tokens' / dataset
    cfg = config.Train(dataset='text', data_from=str(corpus), encoder=str(encoder_folder),
                       languages=LANGUAGES, block_size=64, batch_tokens=400, val_fraction=0.2,
                       max_steps=2, eval_interval=2, eval_segments=2, device='cpu',
                       out_dir=str(folder / 'out'))
    train.train(cfg)
    yield cfg
    dataset.token_folder = before


def fresh(folder, name):
    """An empty folder of this name in `folder`."""
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).mkdir()
    return folder / name


def same_weights(*folders):
    a, b = (load_file(folder / 'model.safetensors') for folder in folders)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def read_meta(folder):
    return json.loads((folder / 'meta.json').read_text(encoding='utf-8'))


def one_line(error):
    assert '\n' not in str(error) and 10 < len(str(error)) < 1000
    str(error).encode()


# Code from strangers

@pytest.mark.parametrize('old', [False, True])
def test_code_in_weights_is_not_run(trained, encoder_folder, tmp_path, old):
    """A pickle that makes a file when it is read, in place of each file of weights."""
    hacked = tmp_path / 'hacked'
    state = {'roberta.embeddings.word_embeddings.weight': torch.zeros(3, 4), 'x': Code(hacked)}
    torch.save(state, tmp_path / 'evil', _use_new_zipfile_serialization=not old)
    pickle.loads(pickle.dumps(Code(hacked)))
    assert hacked.exists()                            # it would
    hacked.unlink()
    encoder, run = tmp_path / 'encoder', tmp_path / 'run'
    shutil.copytree(encoder_folder, encoder)
    (encoder / 'model.safetensors').unlink()
    shutil.copytree(trained.out_dir, run)
    for path, read in ((encoder / 'pytorch_model.bin', lambda: SWCM.from_encoder(encoder)),
                       (encoder / 'model.safetensors', lambda: XLMR.from_encoder(encoder)),
                       (run / 'best/model.safetensors', lambda: SWCM.load(run / 'best')),
                       (run / 'last' / STATE,
                        lambda: train.train(replace(trained, out_dir=str(run), max_steps=3)))):
        shutil.copy(tmp_path / 'evil', path)
        with pytest.raises(ValueError, match='damaged|cannot resume') as error:
            read()
        one_line(error.value)
        assert not hacked.exists()


def test_weights_as_pickle_are_read_if_they_are_tensors(encoder_folder, tmp_path):
    encoder = tmp_path / 'encoder'
    shutil.copytree(encoder_folder, encoder)
    state = load_file(encoder / 'model.safetensors')
    (encoder / 'model.safetensors').unlink()
    torch.save(state, encoder / 'pytorch_model.bin')
    ours, theirs = (XLMR.from_encoder(x).state_dict() for x in (encoder, encoder_folder))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs if k.startswith('layers'))
    for other in {**state, 'epoch': 3}, torch.nn.Linear(2, 2):
        torch.save(other, encoder / 'pytorch_model.bin')
        with pytest.raises(ValueError, match='damaged|unknown') as error:
            XLMR.from_encoder(encoder)
        one_line(error.value)


def test_names_lead_nowhere_else():
    """No dataset names a place outside data/."""
    for name in ('../data/text', '/tmp', 'text/', './text', 'a.b', '..', ''):
        with pytest.raises(ValueError, match='there is no data/') as error:
            dataset.corpus_module(name)
        one_line(error.value)


# Files that are damaged

positions = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.booleans())


def spoil(path, where):
    """Flips a bit of a file at a share of its length, or ends it there."""
    data, (share, bit, is_cut) = bytearray(path.read_bytes()), where
    at = int(share * len(data))
    if is_cut:
        del data[at:]
    else:
        data[at] ^= 1 << bit
    path.write_bytes(data)


@given(positions)
def test_a_damaged_model_is_refused(trained, tmp_path_factory, where):
    folder = tmp_path_factory.getbasetemp() / 'damaged'
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(f'{trained.out_dir}/best', folder)
    spoil(folder / 'model.safetensors', where)
    try:
        model = sample.TextGenerator(folder, sample.Sample(device='cpu', dtype='float32'), 64).model
    except ValueError as e:
        assert 'damaged' in str(e)
        return one_line(e)
    # only the name of the checksum was hit, and the weights are whole
    assert b'"crc32"' not in (folder / 'model.safetensors').read_bytes()
    before = SWCM.load(f'{trained.out_dir}/best')
    assert torch.equal(model.encoder.embeddings.word.weight, before.encoder.embeddings.word.weight)


@given(positions)
def test_a_damaged_state_is_refused(trained, tmp_path_factory, where):
    out = tmp_path_factory.getbasetemp() / 'damaged_run'
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(trained.out_dir, out)
    before = {path: path.read_bytes() for path in out.rglob('*.*') if path.name != STATE}
    spoil(out / 'last' / STATE, where)
    with pytest.raises(ValueError, match='cannot resume') as error:
        train.train(replace(trained, out_dir=str(out), max_steps=3))
    one_line(error.value)
    assert {path: path.read_bytes() for path in out.rglob('*.*') if path.name != STATE} == before


@pytest.mark.parametrize('key', ['vocab_size', 'n_layer', 'n_embd', 'n_ffn', 'n_positions'])
def test_sizes_that_the_weights_do_not_have(trained, encoder_folder, tmp_path, key):
    """As where config.json is that of another model, also without a checksum."""
    for source, read, name in ((encoder_folder, XLMR.from_encoder, SIZES[key]),
                               (f'{trained.out_dir}/best', SWCM.load, key)):
        folder = tmp_path / read.__name__
        shutil.copytree(source, folder)
        written = json.loads((folder / 'config.json').read_text())
        for n in (written[name] * 2, written[name] // 2):
            (folder / 'config.json').write_text(json.dumps({**written, name: n}))
            with pytest.raises(ValueError) as error:
                read(folder)
            one_line(error.value)
            assert str(folder) in str(error.value)


def test_a_step_that_is_changed_in_a_state_is_noticed(trained, tmp_path):
    out = tmp_path / 'out'
    shutil.copytree(trained.out_dir, out)
    path = out / 'last' / STATE
    path.write_bytes(path.read_bytes().replace(b'{\\"step\\": 2', b'{\\"step\\": 1', 1))
    with pytest.raises(ValueError, match='cannot resume: .*its checksum does not match'):
        train.train(replace(trained, out_dir=str(out), max_steps=3))


def test_a_run_that_lacks_files_is_not_begun_anew(trained, tmp_path):
    for name in (STATE, 'model.safetensors', 'config.json', 'sentencepiece.bpe.model'):
        out = fresh(tmp_path, 'out')
        shutil.copytree(trained.out_dir, out, dirs_exist_ok=True)
        (out / 'last' / name).unlink()
        before = {path: path.read_bytes() for path in out.rglob('*.*')}
        with pytest.raises((ValueError, OSError), match='resume|No such|has no s') as error:
            train.train(replace(trained, out_dir=str(out), max_steps=3))
        one_line(error.value)
        assert {path: path.read_bytes() for path in out.rglob('*.*')} == before


def test_folders_of_others_are_left_alone(trained, tmp_path):
    for name in ('best/thesis.txt', 'other/last/thesis.txt'):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text('mine')
    train.train(replace(trained, out_dir=str(tmp_path)))
    assert all((tmp_path / name).read_text() == 'mine'
               for name in ('best/thesis.txt', 'other/last/thesis.txt'))


def test_a_run_does_not_write_over_what_it_begins_from(trained, tmp_path):
    out = tmp_path / 'out'
    shutil.copytree(trained.encoder, out / 'best')
    message = 'best is in out_dir=.*, which this run would overwrite; .* --out_dir=NAME'
    with pytest.raises(ValueError, match=message):
        train.train(replace(trained, encoder=str(out / 'best'), out_dir=str(out)))
    assert XLMR.from_encoder(out / 'best')


@pytest.mark.parametrize('ending', ['bin', 'npy'])
def test_damaged_token_files(trained, tmp_path, ending):
    """Files that are cut, empty or something else, and ids that the vocabulary has not."""
    [folder] = dataset.token_folder('text').iterdir()
    for damage in (lambda b: b[:-2], lambda b: b'', lambda b: b[:-9], lambda b: b'x' * len(b)):
        damaged = fresh(tmp_path, 'damaged')
        shutil.copytree(folder, damaged, dirs_exist_ok=True)
        path = damaged / f'bo.train.{ending}'
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ValueError, match='is damaged .*delete it') as error:
            open_streams(damaged, 'train')
        one_line(error.value)


def test_the_same_seed_gives_the_same_run(trained, tmp_path):
    train.train(replace(trained, out_dir=str(tmp_path / 'out')))
    assert same_weights(tmp_path / 'out/last', Path(trained.out_dir, 'last'))


# Files that are being written

def test_a_new_folder_appears_whole_and_an_old_one_stays_whole(tmp_path, monkeypatch):
    folder = tmp_path / 'new'
    with pytest.raises(OSError, match='full'):
        with atomic_dir(folder) as new:
            (new / 'a').write_text('1')
            raise OSError('full')
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch, atomic_dir(folder) as new:
        (new / 'a').write_text('1')
        assert not folder.exists()
        patch.setattr(os, 'replace', None)            # not file by file
    with pytest.raises(OSError, match='No space left'), atomic_dir(folder) as new:
        (new / 'a').write_text('2')
        with open('/dev/full', 'w', encoding='utf-8') as full:
            full.write('3' * 10**6)
    with atomic_dir(folder) as new:
        (new / 'b').write_text('4')
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['a', 'b', 'new']
    assert (folder / 'a').read_text() == '1'


def test_what_a_killed_run_leaves_is_removed(trained, tmp_path):
    out = tmp_path / 'out'
    shutil.copytree(trained.out_dir, out)
    for name in ('last.12.tmp/model.safetensors', 'last.old.tmp/a', 'best.12.tmp/config.json',
                 'mine.tmp', 'other/last.12.tmp/a'):
        (out / name).parent.mkdir(exist_ok=True, parents=True)
        (out / name).write_bytes(b'half')
    train.train(replace(trained, out_dir=str(out), max_steps=3))
    assert {path.name for path in out.rglob('*.tmp')} == {'mine.tmp', 'last.12.tmp'}
    assert (out / 'best/model.safetensors').exists() and (out / 'other/last.12.tmp').exists()
    shutil.rmtree(out / 'other')
    (out / 'mine.tmp').unlink()
    (out / 'best/metrics.json').write_text('{}')
    train.train(replace(trained, out_dir=str(out), max_steps=1, eval_interval=5, resume=False))
    assert not (out / 'best/metrics.json').exists()   # that of the run before
    assert not list(out.rglob('*.tmp'))


# Text

@given(lines)
def test_any_text_becomes_ids_and_back(tokenizer, line):
    ids = tokenizer.encode(line)
    assert all(UNK <= i < tokenizer.mask for i in ids)
    tokenizer.decode(tokenizer.add_special_tokens('bo', ids))


@given(st.lists(lines, min_size=1, max_size=6), st.integers(5, 40), st.integers(0, 2**32))
def test_segments_and_noise_keep_every_token(tokenizer, texts, limit, seed):
    encoded = [*map(tokenizer.encode, texts)]
    segments = split_segments(encoded, tokenizer, limit)
    assert all(0 < len(s) <= limit for s in segments)
    assert [i for ids in segments for i in ids] == [i for ids in encoded for i in ids]
    rng = np.random.default_rng(seed)
    for ids in segments:
        permuted = permute_sentences(ids, tokenizer.sentence_starts(ids), rng)
        assert sorted(permuted) == sorted(ids)
        noisy = infill(ids, tokenizer.mask, 0.35, 3.5, rng)
        assert (noisy != tokenizer.mask).sum() == len(ids) - round(0.35 * len(ids))
        noisy, chosen = mask_tokens(ids, tokenizer.mask, 0.15, rng)
        assert chosen.any()
        assert np.array_equal(noisy[~chosen], ids[~chosen])
        assert noisy.max() <= tokenizer.mask


@given(st.lists(contents, min_size=1, max_size=3),
       st.sampled_from(['bo.txt', 'bo.jsonl', 'bo-zh.tsv']))
def test_prepared_text_is_all_there(trained, tokenizer, tmp_path_factory, parts, name):
    """Every token is in a token file or counted as left out; or one line, and no files."""
    base = tmp_path_factory.getbasetemp()
    folder, content = fresh(base, 'corpus_any'), b'\n'.join(parts)
    if name == 'bo.jsonl':
        content = b'\n'.join(json.dumps({'text': part.decode('utf-8', 'surrogateescape')}).encode()
                             for part in parts)
    elif name == 'bo-zh.tsv':
        flat = [part.replace(b'\n', b' ').replace(b'\t', b' ') for part in parts]
        turned = [part[::-1].replace(b'\n', b' ').replace(b'\t', b' ') for part in parts]
        content = b'\n'.join(a + b'\t' + b for a, b in zip(flat, turned))
    (folder / name).write_bytes(content)
    before = set(dataset.token_folder('text').iterdir())
    try:
        prepared = prepare('text', tokenizer, 20, 0.3, folder)
    except ValueError as error:
        one_line(error)
        assert set(dataset.token_folder('text').iterdir()) == before
        return
    found = sum(len(s.ids) for split in ('train', 'val')
                for s in open_streams(prepared, split).values())
    meta, wanted = read_meta(prepared), 0
    for _, texts in text.documents([folder / name]):
        lines = [line for text in texts.values() for line in text.splitlines()]
        wanted += sum(map(len, map(tokenizer.encode, lines)))
    counted = sum(s['tokens'] for s in meta['streams'].values())
    notes = {note for of_stream in meta['notes'].values() for note in of_stream}
    assert found <= counted <= wanted
    assert counted == wanted or 'are shortened by held-out sentences' in notes
    if not notes:
        assert found == wanted
    shutil.rmtree(prepared)


@given(st.lists(lines, min_size=1, max_size=12), st.lists(lines, min_size=1, max_size=12),
       st.sampled_from(LANGUAGES))
def test_scores_are_numbers(hypotheses, references, language):
    references = [reference if reference.strip() else 'x' for reference in references]
    n = min(len(hypotheses), len(references))
    try:
        whole, each = score(hypotheses[:n], references[:n], language)
    except ValueError as error:
        return one_line(error)
    for name, scores in whole.items():
        assert all(-1e-9 <= x <= 100 + 1e-9 or x != x for x in (*scores, *each[name])), name
    perfect, _ = score(references[:n], references[:n], language)
    assert perfect['chrF++'][0] == pytest.approx(100)
    assert perfect['rouge_l_f'][0] == pytest.approx(100)


records = st.dictionaries(st.sampled_from(['source', 'target', 'text', 'title', 'question',
                                           'context', 'answer', 'lang', 'bo', 'zh', 'data', 'qas']),
                          values, max_size=5)


@given(st.sampled_from(['.tsv', '.jsonl']),
       contents | (records | values).map(lambda value: json.dumps(value).encode()))
def test_any_file_of_examples(tmp_path_factory, ending, content):
    path = tmp_path_factory.getbasetemp() / f'any{ending}'
    path.write_bytes(content)
    try:
        found, _ = read_examples(str(path), ('zh-bo', 'bo'))
    except ValueError as error:
        return one_line(error)
    assert found and all(e.target.strip() and all(map(str.strip, e.source)) for e in found)


class Lengths(Task):
    """A task of given lengths, for the batches' sake alone."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths).T

    def example(self, i, rng):
        return tuple(np.full(n, 5) for n in self.lengths[:, i])


@given(st.lists(st.lists(st.tuples(*[st.integers(3, 300)] * 2), min_size=1, max_size=40),
                min_size=1, max_size=3),
       st.integers(1, 5000), st.integers(0, 2**31))
def test_batches_have_something_in_them(of_tasks, batch_tokens, seed):
    found = [Lengths(lengths) for lengths in of_tasks]
    batches = Batches(found, config.Train(batch_tokens=batch_tokens, seed=seed, alpha=0))
    seen = Counter()
    for k in range(128):
        src, tgt = batches[k]
        assert src.size and tgt.size and len(src) == len(tgt)
        seen.update(tuple(map(tuple, batches.plan(0)[k])))
    counts = [sum(n for (t, _), n in seen.items() if t == task) for task in range(len(found))]
    assert max(counts) - min(counts) <= 1             # each task has its share


@given(
       st.lists(st.sampled_from(['--lr', '--max_steps', '--languages', '--resume', '--seed',
                                 '--out_dir', '--x', '--'])
                | lines | lines.map('--lr={}'.format) | lines.map('--out_dir={}'.format),
                max_size=4))
def test_any_command_line(argv):
    try:
        cli.load(config.Train, [arg for arg in argv if arg not in ('-h', '--help')])
    except (ValueError, FileNotFoundError) as error:
        assert len(str(error)) < 1000


@settings(max_examples=settings.default.max_examples // 5)
@given(st.lists(contents, min_size=1, max_size=3))
def test_training_on_any_text(trained, corpus, tmp_path_factory, parts):
    """A corpus with such lines among others: trained on, or one line, and then no checkpoint."""
    base = tmp_path_factory.getbasetemp()
    folder, out = fresh(base, 'corpus_to_train'), fresh(base, 'trained_on_any')
    for language in ('bo', 'zh'):
        known = (corpus / f'{language}.txt').read_bytes()
        (folder / f'{language}.txt').write_bytes(b'\n'.join([*parts, known]))
    try:
        train.train(replace(trained, data_from=str(folder), languages=('bo', 'zh'),
                            out_dir=str(out), max_steps=1))
    except ValueError as error:
        one_line(error)
        assert not list(out.iterdir())
    else:
        assert SWCM.load(out / 'last')
    shutil.rmtree(dataset.token_folder('text'))


@settings(max_examples=settings.default.max_examples // 5)
@given(st.lists(lines, min_size=1, max_size=4))
def test_any_text_is_answered(generator, texts):
    assert len(generator.answer(texts)) == len(texts)


@pytest.fixture(scope='module')
def generator(trained):
    return sample.TextGenerator(f'{trained.out_dir}/best', sample.Sample(
        device='cpu', beams=2, max_new_tokens=8, task='translate', source='zh', to='bo'), 64)


# What hypothesis would not think of

def call(monkeypatch, main, argv):
    """The line with which a command ends, as a user would see it; '' for success."""
    monkeypatch.setattr(sys, 'stdin', open(os.devnull))
    for name in ('stdout', 'stderr'):
        monkeypatch.setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))
    monkeypatch.setattr(sys, 'argv', ['command', *argv])
    try:
        cli.run(main)
    except SystemExit as e:
        one_line(str(e.code).encode('ascii', 'backslashreplace').decode())
        return str(e.code)
    return ''


@pytest.mark.parametrize('name, content, message', [
    ('deep.bo.jsonl', b'[' * 100_000, 'line 1 is not JSON'),
    ('half.bo.jsonl', b'{"text": "a\\ud800b"}', 'line 1 has no string "text"'),
    ('null.bo.jsonl', b'{"text": null}', 'line 1 has no string "text"'),
    ('x.bo-bo.tsv', b'a\tb\n', 'no file is named like'),
    ('million.bo.txt', b'\n' * 1_000_000, 'has no text'), ('empty.bo.txt', b'', 'has no text'),
    ('utf16.bo.txt', 'བོད'.encode('utf-16'), 'is not UTF-8')])
def test_bad_corpora(trained, tokenizer, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        prepare('text', tokenizer, 64, 0.1, tmp_path)
    one_line(error.value)


@pytest.mark.parametrize('name, content, message', [
    ('a.jsonl', b'[' * 100_000, 'line 1 is not JSON'),
    ('a.jsonl',
     b'{"question": "q", "context": "c", "answer": ' + b'[' * 500 + b'"a"' + b']' * 500 + b'}',
     'expected a string'),
    ('a.jsonl', b'[]\n', 'line 1 is not a JSON object'),
    ('a.jsonl', b'{"\\ud800": "a"}', r'has .\\ud800'),
    ('a.jsonl', b'{"source": {"text": {"x": "' + b'y' * 100_000 + b'"}}, "target": "b"}',
     'expected a string'),
    ('a.csv', b'source,target\na,b\n', 'give --data=FILES of examples')])
def test_bad_examples(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_examples(str(tmp_path / name), ('zh-bo',))
    one_line(error.value)


def test_pairs_with_nothing_on_one_side_are_counted(trained, tokenizer, tmp_path, capsys):
    rows = [f'{a}\t{b}' for a, b in zip(sentences('bo'), sentences('zh'))]
    (tmp_path / 'bo-zh.tsv').write_text('\n'.join([*rows, '\t我', '\u200b\t我有', 'བོད།\t\ufffd']),
                                        encoding='utf-8')
    prepared = prepare('text', tokenizer, 64, 0.2, tmp_path)
    report(prepared)
    assert '  3 pairs with nothing or over 61 tokens on a side are left' in capsys.readouterr().out
    assert all(stream.lengths.all() for stream in open_streams(prepared, 'train').values())


def test_two_runs_may_prepare_one_corpus_at_once(trained, tokenizer, tmp_path, monkeypatch):
    (tmp_path / 'bo.txt').write_text('\n'.join(sentences('bo')), encoding='utf-8')
    original, other = dataset.write_streams, []

    def meanwhile(folder, *args):
        original(folder, *args)
        if not other:
            other.append(folder)
            other.append(prepare('text', tokenizer, 64, 0.2, tmp_path))

    monkeypatch.setattr(dataset, 'write_streams', meanwhile)
    prepared = prepare('text', tokenizer, 64, 0.2, tmp_path)
    assert prepared == other[1] and open_streams(prepared, 'train')
    assert not list(dataset.token_folder('text').glob('*.tmp'))


def test_equal_lines_are_all_learned_or_all_held_out(trained, tokenizer, tmp_path):
    for i, line in enumerate(sentences('bo')[:12]):
        folder = fresh(tmp_path, 'equal')
        (folder / 'bo.txt').write_text((line + '\n') * 50, encoding='utf-8')
        segments = read_meta(prepare('text', tokenizer, 64, 0.5, folder))['segments']
        assert list(segments.values()) == [50]


def test_a_line_of_10_megabytes(tokenizer, tmp_path):
    path = tmp_path / 'long.txt'
    path.write_text('བོད་\u0301\u200b' * 625_000, encoding='utf-8')
    assert path.stat().st_size >= 10**7
    [line] = read_lines(path)
    segments = split_segments([tokenizer.encode(line)], tokenizer, 253)
    assert max(map(len, segments)) <= 253 and sum(map(len, segments)) == len(tokenizer.encode(line))


def test_bytes_on_the_command_line_that_are_no_text(monkeypatch, corpus, tmp_path):
    monkeypatch.chdir(tmp_path)                       # not beside a run of the user's in out/

    def main(argv):
        train.train(cli.load(config.Train, argv))

    def main_of_finetune(argv):
        finetune.finetune(cli.load(config.FineTune, argv))

    for main, argv, message in (
            (main, ['--dataset=text', '--data_from=/tmp/\udcff'], 'does not exist'),
            (main, ['--dataset=text', f'--data_from={corpus}', '--languages=\udcff'], 'languages'),
            (main_of_finetune, ['--data=\udcff.tsv'], 'No such file'),
            (main, ['--lr={[]}'], '--lr='),
            (main, ['--span_length=0.1'], '--span_length=0.1: expected a number of at least 2')):
        found = call(monkeypatch, main, argv)
        assert found.startswith('error: ') and message in found
