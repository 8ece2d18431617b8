"""data/: tokenizer, noise, token files, tasks, batches, corpora."""
import json
import os
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import HARD, LANGUAGES, sentences

import config
from data import dataset
from data.batches import POOL, Batches, task_probabilities, val_batches
from data.dataset import (
    Stream, cut_document, open_streams, prepare, report, split_segments, write_streams)
from data.heldout import SENTENCE_ENDS, digest, splits
from data.tasks import TASKS, Task, infill, mask_tokens, permute_sentences, tasks
from data.text import prepare as text
from data.files import atomic_dir, check_folder, read_lines
from data.tokenizer import BOS, EOS, FIRST, PAD, UNK, Tokenizer
from data.udhr import prepare as udhr
from model import XLMR


def rng(*seed):
    return np.random.default_rng(seed)


@pytest.fixture
def tokens_root(tmp_path, monkeypatch):
    """Token files go to a temporary folder instead of data/NAME/tokens."""
    monkeypatch.setattr(dataset, 'token_folder', lambda dataset: tmp_path / dataset)
    return tmp_path


@pytest.fixture
def cfg():
    return config.Train(languages=LANGUAGES, dataset='text', block_size=64, batch_tokens=600)


@pytest.fixture
def prepared(corpus, tokenizer, tokens_root, cfg):
    return prepare('text', tokenizer, cfg.block_size, 0.2, corpus)


def test_tokenizer_equals_transformers(tmp_path, pieces, tokenizer):
    from transformers import AutoTokenizer
    (tmp_path / 'sentencepiece.bpe.model').write_bytes(pieces)
    (tmp_path / 'config.json').write_text('{"model_type": "xlm-roberta"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocab_size > 150 and theirs.mask_token_id == tokenizer.mask
    lines = [line for language in LANGUAGES for line in sentences(language)]
    lines += [h for h in HARD if not set('<＜') & set(h)]      # theirs makes these special tokens
    expected = theirs(lines, add_special_tokens=False)['input_ids']
    assert [ids.tolist() for ids in map(tokenizer.encode, lines)] == expected


def test_decode_inverts_encode(tokenizer):
    for line in [s for language in LANGUAGES for s in sentences(language)] + HARD:
        ids = tokenizer.encode(line)
        if UNK not in ids:
            normal = tokenizer.sp.normalize(line).replace('\u2581', ' ').strip()
            assert tokenizer.decode(ids) == normal
        # text cannot forge special tokens
        assert all(i > EOS for i in ids) and tokenizer.mask not in ids
    a, b = tokenizer.encode('我有两本书。'), tokenizer.encode('ང་ལ་')
    ids = [BOS, tokenizer.language_id('zh'), *a, tokenizer.mask, *b, EOS, PAD]
    assert tokenizer.decode(ids) == '我有两本书。<mask> ང་ལ་'


def test_language_tokens_stand_behind_the_encoder(pieces, tokenizer):
    n = tokenizer.vocab_size
    assert [tokenizer.language_id(x) for x in LANGUAGES] == [n, n + 1, n + 2, n + 3, n + 4]
    assert Tokenizer(pieces, ('bo',), n + 7).language_id('bo') == n + 7
    with pytest.raises(ValueError, match="'xx' has no token"):
        tokenizer.language_id('xx')
    for rows in 100, 5000:
        with pytest.raises(ValueError, match=f'the encoder {rows} rows: they do not belong'):
            Tokenizer(pieces, vocab_size=rows)
    with pytest.raises(ValueError, match='damaged'):
        Tokenizer(b'no model')


def test_sentences_end_at_stops(tokenizer):
    def split(line, tokenizer=tokenizer):
        ids = tokenizer.encode(line)
        starts = tokenizer.sentence_starts(ids)
        return [tokenizer.decode(part) for part in np.split(ids, starts[1:])]

    parts = ['ང་ལ་ཁྱི་གཉིས་ཡོད།', 'ཁོས་རྟ་གསུམ་མཐོང་།']
    assert split(' '.join(parts)) == parts
    assert split('我有两本书。他看见了三本书。') == ['我有两本书。', '他看见了三本书。']
    assert split('Менде екі ит бар. Ол үш ит көрді.') == ['Менде екі ит бар.', 'Ол үш ит көрді.']
    assert len(split('а.б ит. ')) == 1
    small = Tokenizer('data/small')                   # as texts are compared: data/heldout.py
    for *parts, space in (('他说:“你好。”', '我(笑了。)', '她说:“走。”,', '走了。', ''),
                          ('«Бар!» деді.', '(Ол 3.5 алды.) Бар.', 'Болды!', ' '),
                          ('他来吗?', '《书》在这里!', '“好。”', '')):
        text = space.join(parts)
        assert split(text, small) == parts
        assert [part.strip() for part in SENTENCE_ENDS.split(text) if part] == parts
    for parts in (['༄༅། །ང་ལ་ཡོད།', 'ཁོས་མཐོང་།'], ['Бар.', '1. Болды. ...'], ['1. 2.'],
                  ['他来了。', '......好。......']):    # marks and numbers alone are no sentence
        assert split(' '.join(parts), small) == parts
    assert len(split('\u0b05\u0b06། \u0b15\u0b16།', small)) == 2      # read as <unk>
    for mark in FIRST.partition('鿿')[2]:
        assert len(SENTENCE_ENDS.split(f'他来吗?{mark}书')) == 2
        assert len(split(f'他来吗？{mark}书在这里。', small)) == 2 - (UNK in small.encode(mark))
    assert ')(' in small.pieces and len(split('我(笑了。)(她走了。)', small)) == 1


def test_infill():
    ids, mask = np.arange(10, 210), 9
    rates, spans = [], []
    for seed in range(300):
        noisy = infill(ids, mask, 0.35, 3.5, rng(seed))
        kept = noisy[noisy != mask]
        assert np.all(np.diff(kept) > 0)      # order stays, nothing comes twice
        rates.append(1 - len(kept) / len(ids))
        spans.append((noisy == mask).sum())
        assert np.array_equal(noisy, infill(ids, mask, 0.35, 3.5, rng(seed)))
    assert min(rates) == max(rates) == pytest.approx(0.35)
    assert 70 / 3.5 * 0.85 < np.mean(spans) < 70 / 3.5 * 1.15      # 70 tokens in spans of 3.5
    where = np.mean([np.isin(ids, infill(ids, mask, 0.35, 3.5, rng(s))) for s in range(2000)], 0)
    assert abs(where - 0.65)[20:-20].max() < 0.07      # at the ends fewer go, as in BART
    for n in range(6):
        for seed in range(20):
            assert len(infill(ids[:n], mask, 0.35, 3.5, rng(n, seed))) <= 2 * n + 1
    assert np.array_equal(infill(ids, mask, 0, 3.5, rng(0)), ids)
    assert set(infill(ids, mask, 1.0, 3.5, rng(0))) == {mask}


def test_infilling_hides_each_token_equally_often():
    """Of 20 tokens each goes in 35 % of 3,000 texts: within 3 points, or 3 standard deviations."""
    rng, kept = np.random.default_rng(0), np.zeros(20)
    for _ in range(3000):
        noisy = infill(np.arange(20), 99, 0.35, 3.5, rng)
        kept[noisy[noisy != 99]] += 1
    assert abs(1 - kept / 3000 - 0.35).max() < 0.03


def test_sentences_are_permuted_in_tibetan(tokenizer):
    ids = tokenizer.encode(' '.join(sentences('bo')[:6]))
    starts = tokenizer.sentence_starts(ids)
    assert len(starts) == 6
    seen = set()
    for seed in range(50):
        moved = permute_sentences(ids, starts, rng(seed))
        assert sorted(tokenizer.decode(moved).split()) == sorted(sentences('bo')[:6])
        seen.add(tuple(moved))
    assert len(seen) > 40


def test_mask_tokens():
    ids, mask = np.arange(4, 204), 300
    noisy, chosen = zip(*(mask_tokens(ids, mask, 0.15, rng(seed)) for seed in range(300)))
    noisy, chosen = np.stack(noisy), np.stack(chosen)
    assert chosen.sum(1).tolist() == [30] * 300 and (noisy == ids)[~chosen].all()
    picked = noisy[chosen]
    assert 0.77 < (picked == mask).mean() < 0.83
    assert 0.08 < (noisy == ids)[chosen].mean() < 0.12
    assert mask_tokens(ids[:1], mask, 0.15, rng(0))[1].sum() == 1


def test_cut_keeps_all_and_ends_at_sentences(tokenizer):
    lines = [tokenizer.encode(' '.join(sentences('bo')[i:i + 5])) for i in (0, 5)]
    lines.append(np.array([], int))
    for limit in (5, 20, 40, 1000):
        segments = split_segments(lines, tokenizer, limit)
        assert np.array_equal(np.concatenate(segments), np.concatenate(lines))
        assert max(map(len, segments)) <= limit
    for segment in split_segments(lines, tokenizer, 40):
        assert tokenizer.decode(segment).endswith('།')
    assert len(split_segments(lines, tokenizer, 1000)) == 1
    assert split_segments([np.array([], int)] * 2, tokenizer, 10) == []
    plain = tokenizer.encode('བོད')[:1]      # ends no sentence: lines alone count
    for n_ids, limit, lengths in (
            ([7, 7], 10, [7, 7]), ([3] * 4, 7, [6, 6]), ([25, 3], 10, [10, 10, 8])):
        segments = split_segments([plain.repeat(n) for n in n_ids], tokenizer, limit)
        assert list(map(len, segments)) == lengths


def test_held_out_texts_are_nowhere_else():
    pairs = [(None, {'bo': f'b{i}', 'zh': f'z{i % 400}'}) for i in range(1000)]
    mono = [(None, {'bo': f'b{i}'}) for i in range(1500)]
    split_of = splits(pairs + mono, 0.1)
    texts = {'train': set(), 'val': set(), None: set()}
    for document in pairs + mono:
        texts[split_of(*document)[0]] |= set(document[1].values())
    assert not texts['train'] & texts['val'] and texts[None] & texts['val']
    assert 50 < len([p for p in pairs if split_of(*p)[0] == 'val']) < 150 < len(texts['val']) < 400
    more = [(None, {'bo': f'b{i}', 'zh': f'y{i}'}) for i in range(1500)]
    grown = splits(pairs + mono + more, 0.1)
    assert all((grown(*d)[0] == 'val') == (split_of(*d)[0] == 'val') for d in pairs + mono)
    keyed = splits([], 0.5)
    assert len({keyed('section 4', {'bo': str(i)})[0] for i in range(20)}) == 1


def test_documents_become_token_files_stage_by_stage(tmp_path, tokenizer):
    """Each stage of write_streams, with literals."""
    def split_of(key, texts):
        return ('val', texts) if key == 'val' else ('train', {x: texts[x][:2] for x in texts})

    documents = [('val', {'zh': '我', 'bo': 'ང་'}), ('', {'zh': '我有\n两'}),
                 ('val', {'zh': '我' * 9, 'bo': 'ང་'})]
    one, two, nothing = np.array([5]), np.array([6, 7]), tokenizer.encode('')
    unusable = 'pairs with nothing or over 3 tokens on a side are left out'
    for split, texts, lines, segments, note in (
            ('train', 'ab', [[two], [one]], [[6, 7], [5]], None),
            ('train', 'ab', [[np.arange(9)], [one]], [], unusable),
            ('train', 'ab', [[nothing], [one]], [], unusable),
            ('val', 'a\u061c', [[two], [one]], [], unusable),           # invisible
            (None, 'a', [[one]], [], 'with a held-out text are left out'),
            ('val', 'a', [[one, two]], [[5, 6, 7]], None)):
        found, why = cut_document(split, texts, lines, tokenizer, 3)
        assert ([ids.tolist() for ids in found], why) == (segments, note)

    write_streams(tmp_path, documents, split_of, tokenizer, 9)
    meta = json.loads((tmp_path / 'meta.json').read_text())
    assert meta['segments'] == {'bo-zh.val': 2, 'zh.train': 1}
    assert meta['notes'] == {'zh': {'are shortened by held-out sentences': 1}, 'bo-zh': {
        'pairs with nothing or over 6 tokens on a side are left out': 1}}
    assert np.fromfile(tmp_path / 'zh.train.bin', np.uint16).tolist() == [*tokenizer.encode('我有')]
    bo, zh = (tokenizer.encode(text).tolist() for text in ('ང་', '我'))
    assert np.fromfile(tmp_path / 'bo-zh.val.bin', np.uint16).tolist() == bo + zh
    assert np.load(tmp_path / 'bo-zh.val.npy').tolist() == [0, len(bo), len(bo + zh)]
    assert open_streams(tmp_path, 'val')['bo-zh'].texts == ['ང་', '我']
    with pytest.raises(ValueError, match='the corpus has no text'):
        write_streams(tmp_path, [], split_of, tokenizer, 9)
    with pytest.raises(ValueError, match='a document is in bo kk zh; expected one language or two'):
        write_streams(tmp_path, [('', dict.fromkeys(['bo', 'kk', 'zh'], 'a'))], split_of,
                      tokenizer, 9)


def test_a_new_task_is_a_class(prepared, tokenizer, cfg, monkeypatch):
    """One of each number of languages is found its streams, and its examples come in batches."""
    class Copy(Task):
        kind, objective, n_languages = 'copy', 'swcm', 1

        def segment_lengths(self):
            return self.stream.lengths, self.stream.lengths

        def example(self, i, rng):
            ids = self.tokenizer.add_special_tokens(self.source, self.stream[i])
            return ids, ids

    class Both(Copy):
        kind, n_languages = 'both', 2

    monkeypatch.setitem(TASKS, 'copy', Copy)
    monkeypatch.setitem(TASKS, 'both', Both)
    found = tasks(prepared, 'train', tokenizer, cfg)
    names = {task.name for task in found}
    assert {'copy bo', 'copy zh', 'both bo-zh', 'both zh-bo', 'dae bo', 'mt zh-bo'} <= names
    assert len(found) == 2 * (5 + 8)
    p = task_probabilities(found, replace(cfg, mt_fraction=0.2))
    assert sum(p[[task.kind in ('mt', 'both') for task in found]]) == pytest.approx(0.2)
    src, tgt = Batches([task for task in found if task.kind == 'copy'], cfg)[0]
    assert np.array_equal(src, tgt)
    found = tasks(prepared, 'train', tokenizer, replace(cfg, objective='mlm'))
    assert {task.kind for task in found} == {'mlm'}


def test_prepare(prepared, corpus, tokenizer, tokens_root, cfg, capsys):
    meta = json.loads((prepared / 'meta.json').read_text(encoding='utf-8'))
    pairs = {f'{language}-zh' for language in LANGUAGES[:4]}
    assert meta['dtype'] == 'uint16' and set(meta['streams']) == {*LANGUAGES, *pairs}
    train, val = open_streams(prepared, 'train'), open_streams(prepared, 'val')
    for language in LANGUAGES:
        lines = (corpus / f'{language}.txt').read_text(encoding='utf-8').splitlines()
        total = sum(s[language].lengths.sum() for s in (train, val) if language in s)
        assert total == meta['streams'][language]['tokens']
        assert total <= sum(map(len, map(tokenizer.encode, lines)))
        notes = meta['notes'].get(language, ())           # lost pairs' sentences that are held out
        assert 'are shortened by held-out sentences' in notes or language == 'zh'
        assert max(train[language].lengths) <= cfg.block_size - 3
    stream = train['bo-zh']
    pairs = dict(zip(sentences('bo'), sentences('zh')))
    for i in range(20):
        assert pairs[tokenizer.decode(stream[2 * i])] == tokenizer.decode(stream[2 * i + 1])
    capsys.readouterr()
    assert prepare('text', tokenizer, cfg.block_size, 0.2, corpus) == prepared
    assert 'preparing' not in capsys.readouterr().out
    assert prepare('text', tokenizer, 32, 0.2, corpus) != prepared


def test_a_changed_prepare_py_is_used(tmp_path, corpus, tokenizer, tokens_root, monkeypatch):
    before = prepare('text', tokenizer, 32, 0.2, corpus)
    source = shutil.copy(text.__file__, tmp_path / 'prepare.py')
    monkeypatch.setattr(text, '__file__', source)
    assert prepare('text', tokenizer, 32, 0.2, corpus) == before
    with open(source, 'a', encoding='utf-8') as file:
        file.write('# changed')
    assert prepare('text', tokenizer, 32, 0.2, corpus) != before


def test_each_language_is_learned(corpus, tokenizer, tokens_root, cfg):
    """... by a task of the run, or it is an error."""
    files = f'{corpus}/bo.txt,{corpus}/some.kk-zh.tsv'
    folder = prepare('text', tokenizer, 64, 0.2, files)
    cfg = replace(cfg, languages=('bo', 'kk', 'zh'))
    assert len(tasks(folder, 'train', tokenizer, cfg)) == 3
    for fraction, language in (1.0, 'bo'), (0.0, 'kk zh'):
        with pytest.raises(ValueError, match=f'has no train text for {language}; it has bo kk-zh'):
            tasks(folder, 'train', tokenizer, replace(cfg, mt_fraction=fraction))


def test_texts_without_tokens_change_nothing(tmp_path, corpus, tokenizer, tokens_root):
    folder = tmp_path / 'some'
    shutil.copytree(corpus, folder)
    (folder / os.fsdecode(b'\xff.en.txt')).write_text('\u200b\n', encoding='utf-8')
    whole = prepare('text', tokenizer, 32, 0.2, folder)
    assert not [*whole.glob('en.*')]
    assert 'en' not in open_streams(whole, 'train')


def test_wide_ids_and_damaged_token_files(tmp_path, corpus, tokenizer):
    class Wide(Tokenizer):
        def encode(self, text):
            return super().encode(text) + 200_000

        def sentence_starts(self, ids):
            return super().sentence_starts(ids - 200_000)

        def decode(self, ids):
            return super().decode(ids - 200_000)

    wide = Wide(tokenizer.model, LANGUAGES)
    wide.vocab_size = 250_002
    write_streams(tmp_path, text.documents(text.fetch(corpus)),
                  lambda key, texts: ('train', texts), wide, 64)
    stream = open_streams(tmp_path, 'train')['zh']
    assert stream.ids.dtype == np.uint32 and stream[0].min() > 200_000
    meta = json.loads((tmp_path / 'meta.json').read_text())
    with pytest.raises(ValueError, match=r'is damaged \(zh.train.bin or .npy\); delete it'):
        Stream(tmp_path, 'zh.train', {**meta, 'vocab_size': 1000})
    file = tmp_path / 'zh.train.bin'
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r'is damaged \(zh.train.bin or .npy\); delete it'):
        open_streams(tmp_path, 'train')


def test_unknown_characters_are_a_warning(corpus, tokenizer, tokens_root, capsys):
    folder = tokens_root / 'odd'
    folder.mkdir()
    (folder / 'or.txt').write_text('ଓଡ଼ିଆ ଭାଷା ଏକ ଭାରତୀୟ ଭାଷା।\n' * 3, encoding='utf-8')
    report(prepare('text', tokenizer, 64, 0.0, folder))
    out, err = capsys.readouterr()
    assert '100.0% of the characters of or are <unk>' in err
    assert ' from or.txt\n' in out
    pair = 'ខ្ញុំមានសៀវភៅពីរក្បាល\t我有两本书。'          # a run of unknown characters is one <unk>
    (folder / 'or.txt').rename(folder / 'or.text')
    (folder / 'km-zh.tsv').write_text(pair, encoding='utf-8')
    report(prepare('text', tokenizer, 64, 0.0, folder))
    assert '77.8% of the characters of km-zh are <unk>' in capsys.readouterr().err


@pytest.mark.parametrize('objective', ['swcm', 'mlm'])
def test_batches_are_a_function_of_their_number(prepared, tokenizer, cfg, objective):
    cfg = replace(cfg, objective=objective)
    found = tasks(prepared, 'train', tokenizer, cfg)
    one = Batches(found, cfg)
    other = Batches(tasks(prepared, 'train', tokenizer, cfg), cfg)
    numbers = 2 * POOL + 44, 3, POOL + 1, 0                                       # of three pools
    late = [other[k] for k in numbers]
    for k, batch in zip(numbers, late):
        assert all(np.array_equal(a, b) for a, b in zip(one[k], batch))
    src, _ = Batches(found, replace(cfg, seed=2))[0]
    assert not np.array_equal(src[:4, :4], one[0][0][:4, :4])


@pytest.mark.parametrize('mt_fraction', [0.0, 0.5, 1.0])
def test_batches_have_the_promised_form(prepared, tokenizer, cfg, mt_fraction):
    cfg = replace(cfg, mt_fraction=mt_fraction)
    found = tasks(prepared, 'train', tokenizer, cfg)
    assert len(found) == (5 if mt_fraction < 1 else 0) + (8 if mt_fraction else 0)
    batches, real, padded, drawn = Batches(found, cfg), 0, 0, np.zeros(len(found))
    for k in range(POOL):
        src, tgt = batches[k]
        assert src.dtype == tgt.dtype == np.int64 and len(src) == len(tgt)
        for side in (src, tgt):
            assert (side[:, 0] == BOS).all() and (side[:, 1] >= tokenizer.vocab_size).all()
            last = (side != PAD).sum(1) - 1
            assert (side[np.arange(len(side)), last] == EOS).all()
            assert all((row[n + 1:] == PAD).all() for row, n in zip(side, last))
            real, padded = real + (side != PAD).sum(), padded + side.size
        assert src.size + tgt.size < 2 * cfg.batch_tokens
    assert 1 - real / padded < 0.1
    assert abs(real / POOL / cfg.batch_tokens - 1) < 0.03               # padding comes on top
    for pool in range(3):
        for batch in batches.plan(pool):
            drawn += np.bincount(batch[:, 0], minlength=len(found))
    is_mt = np.array([t.kind == 'mt' for t in found])
    assert abs(drawn[is_mt].sum() / drawn.sum() - cfg.mt_fraction) < 0.01


def test_every_example_comes_once_an_epoch(prepared, tokenizer, cfg):
    found = tasks(prepared, 'train', tokenizer, replace(cfg, languages=('bo',)))
    batches = Batches(found, replace(cfg, languages=('bo',)))
    chosen = np.concatenate([batch[:, 1] for pool in range(3) for batch in batches.plan(pool)])
    counts = np.bincount(chosen, minlength=len(found[0]))
    assert counts.max() - counts.min() <= 1


def test_denoising_keeps_language_and_ends(prepared, tokenizer, cfg):
    task = next(t for t in tasks(prepared, 'train', tokenizer, cfg) if t.name == 'dae bo')
    for i in range(len(task)):
        src, tgt = task.example(i, rng(i))
        for ids in src, tgt:
            assert ids[[0, 1, -1]].tolist() == [BOS, tokenizer.language_id('bo'), EOS]
        assert set(src[2:-1]) - {tokenizer.mask} <= set(tgt) and tokenizer.mask not in tgt


def test_translation_goes_both_ways(prepared, tokenizer, cfg):
    pairs = set(zip(sentences('bo'), sentences('zh')))
    cfg = replace(cfg, languages=('bo', 'zh'), mt_fraction=1.0)
    for task in tasks(prepared, 'train', tokenizer, cfg):
        for i in range(len(task)):
            src, tgt = task.example(i, rng(0))
            assert src[1] == tokenizer.language_id(task.source)
            assert tgt[1] == tokenizer.language_id(task.target)
            assert [len(src), len(tgt)] == task.lengths[:, i].tolist()
            texts = {task.source: tokenizer.decode(src), task.target: tokenizer.decode(tgt)}
            assert (texts['bo'], texts['zh']) in pairs


def test_val_batches_are_the_same_each_time(prepared, tokenizer, cfg):
    cfg = replace(cfg, batch_tokens=60)
    other = replace(cfg, seed=2)
    found, again = (tasks(prepared, 'val', tokenizer, c) for c in (cfg, other))
    for task, same in zip(found, again):
        a, b = val_batches(task, cfg, 7), val_batches(same, other, 7)
        assert len(a) == len(b) > 1
        assert all(np.array_equal(x, y) for p, q in zip(a, b) for x, y in zip(p, q))
        chosen = np.linspace(0, len(task) - 1, min(len(task), 7)).astype(int)
        assert sorted(tuple(row[row != PAD]) for src, _ in a for row in src) \
            == sorted(tuple(task.val_example(i)[0]) for i in chosen)
    with pytest.raises(ValueError, match='languages=xx.* has no val text for xx'):
        tasks(prepared, 'val', tokenizer, replace(cfg, languages=('xx',)))


def test_text_formats(tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(content.encode('utf-8'))

    write('a.bo.txt', '\ufeffཀ\r\nཁ\n')
    write('kk.txt', 'бір\nекі\n\nүш\n\nтөрт\n')
    write('en.txt', 'one\n\ntwo\n\n')            # one empty line, and one at the end
    write('log.jsonl', '{"step": 0}\n')        # of a run, not in a language
    write('zh.txt', '一\n二\n\u3000\n\n三\n')    # a line of wide spaces is empty
    write('x.mn.jsonl', '{"text": "нэг\\nхоёр", "url": "u"}\n\n{"text": "гурав"}\n')
    write('b.ug-zh.tsv', 'بىر\t一\n\t\nئىككى\t二\n')
    write('mn-crawl-only-release-20231127.jsonl', '{"title": "т", "text": "дөрөв", "url": ""}')
    write('README.md', 'not text')
    write('bo_news.txt', 'ཀ')
    read = [(*texts,) + (*texts.values(),) for _, texts in text.documents(text.fetch(tmp_path))]
    assert read == [('bo', 'ཀ'), ('bo', 'ཁ'), ('ug', 'zh', 'بىر', '一'), ('ug', 'zh', 'ئىككى', '二'),
                    ('en', 'one'), ('en', 'two'), ('kk', 'бір\nекі'), ('kk', 'үш'), ('kk', 'төрт'),
                    ('mn', 'т\nдөрөв'), ('mn', 'нэг\nхоёр'), ('mn', 'гурав'),
                    ('zh', '一\n二'), ('zh', '三')]
    assert text.fetch(f'{tmp_path}/kk.txt,') == [tmp_path / 'kk.txt']   # no more
    with pytest.raises(ValueError, match='README.md: no file is named like'):
        text.fetch(f'{tmp_path}/kk.txt,{tmp_path}/README.md')


@pytest.mark.parametrize('name, content, message', [
    ('bo.txt', b'\xe0\xbd\x80\n\xff\xfe', r'bo.txt: line 2 is not UTF-8'),
    ('bo.txt', b'', 'bo.txt has no text'), ('bo.txt', b'\n \n', 'bo.txt has no text'),
    ('bo.jsonl', b'{"text": 1}\n', 'bo.jsonl: line 1 has no string "text"'),
    ('bo.jsonl', b'{"text": "1"}\n{"body": "2"}', 'line 2 has no string "text": .*body'),
    ('bo-zh.tsv', b'a\tb\na\n', 'bo-zh.tsv: line 2 has 1 columns'),
    ('tibetan.txt', b'x', 'bad: no file is named like bo.txt')])
def test_bad_text(tmp_path, tokenizer, tokens_root, name, content, message):
    folder = tmp_path / 'bad'
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare('text', tokenizer, 64, 0.1, folder)
    assert not list(tokens_root.glob('text/*'))      # nothing half written


def test_a_line_of_a_megabyte(tmp_path, tokenizer, tokens_root):
    line = ' '.join(sentences('bo')) * 220
    assert len(line.encode()) > 10**6
    (tmp_path / 'bo.txt').write_text(line, encoding='utf-8')
    stream = open_streams(prepare('text', tokenizer, 64, 0.0, tmp_path / 'bo.txt'), 'train')['bo']
    assert stream.lengths.max() <= 61 and stream.lengths.sum() == len(tokenizer.encode(line))


def test_udhr():
    documents = list(udhr.documents(udhr.fetch()))
    n = Counter('-'.join(sorted(texts)) for _, texts in documents)
    pairs = {'bo-zh': 82, 'ug-zh': 82, 'kk-zh': 82, 'mn-zh': 80, 'en-zh': 82}
    assert n == dict.fromkeys([*LANGUAGES, 'en'], 32) | pairs
    [last] = [texts for key, texts in documents if key == 'section 31' and {*texts} == {'en', 'zh'}
              and texts['en'] != 'Article 30']
    assert last['en'].startswith('Nothing in this Declaration may be interpreted')
    assert last['zh'].startswith('本宣言的任何条文,不得解释为')
    [preamble] = [texts['zh'] for key, texts in documents
                  if key == 'section 1' and {*texts} == {'mn', 'zh'}]
    assert preamble.startswith('序言\n鉴于')           # divided differently, and so one pair
    with pytest.raises(ValueError, match='data_from=MINE: udhr is included; --dataset=text'):
        udhr.fetch('MINE')


def test_unknown_dataset(tokenizer):
    with pytest.raises(ValueError, match='data/none/prepare.py; there are .*text, udhr'):
        prepare('none', tokenizer, 64, 0.1)


def test_small_things(tmp_path):
    assert digest('ab', 'c') != digest('a', 'bc') and digest('a') == digest(b'a') < 2**64
    (tmp_path / 'x').write_bytes('a\u2028b\nc'.encode())
    assert list(read_lines(tmp_path / 'x')) == ['a\u2028b', 'c']


def test_a_flipped_bit_is_found(tmp_path, encoder_folder):
    """atomic_dir gives safetensors files a checksum, wherever their metadata has its place."""
    for i in range(6):                                # the library changes the order of metadata
        with atomic_dir(tmp_path / 'one') as new:
            XLMR.from_encoder(encoder_folder).save(new)
        check_folder(tmp_path / 'one')
    file = tmp_path / 'one' / 'model.safetensors'
    damaged = bytearray(file.read_bytes())
    assert b'"00000000"' not in damaged
    for place in -9, len(damaged) // 2:
        damaged[place] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match='is damaged: its checksum does not match'):
            check_folder(tmp_path / 'one')
        damaged[place] ^= 4
