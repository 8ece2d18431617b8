"""data/vocab.py: other vocabularies are read by us and by transformers, at no cost to the rest."""
import io
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
from conftest import HARD, LANGUAGES, ROOT, sentences
from safetensors import SafetensorError

import config
import data.vocab as module
import train
from data import UNK, tokens
from data.files import read_json
from data.tokenizer import SPACE, Tokenizer, script
from data.vocab import INITS, Usage, main, new_pieces, new_rows, proto, used
from data.weights import read_encoder
from model import BY_ID, SWCM, XLMR, SWCMConfig

GEORGIAN = [f'{who} {n} {what} აქვს.' for who in ('მე', 'მას', 'ჩვენ', 'დედას', 'ბავშვს')
            for n in ('ორი', 'სამი', 'ოთხი', 'ხუთი', 'ექვსი')
            for what in ('წიგნი', 'ძაღლი', 'ცხენი', 'სახლი')]


@pytest.fixture
def texts(tmp_path):
    """A file for each language, and one in a script that the encoder has never seen."""
    for language in LANGUAGES:
        (tmp_path / f'{language}.txt').write_text('\n'.join(sentences(language)) + '\n',
                                                  encoding='utf-8')
    (tmp_path / 'ka.txt').write_text('\n'.join(GEORGIAN) + '\n', encoding='utf-8')
    return tmp_path


def theirs(folder):
    from transformers import XLMRobertaForMaskedLM, XLMRobertaTokenizer
    return (XLMRobertaForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval(),
            XLMRobertaTokenizer.from_pretrained(folder))


@torch.no_grad()
def test_trim(texts, encoder_folder, tmp_path, capsys):
    """Kept texts' tokens and hidden states stay as they are; transformers reads the folder, too."""
    out = tmp_path / 'small'
    kept = ('bo', 'zh')
    main(['trim', '--encoder', str(encoder_folder), '--out', str(out), '--text',
          *(str(texts / f'{language}.txt') for language in kept)])
    old, new = Tokenizer(encoder_folder), Tokenizer(out)
    before, after = XLMR.from_encoder(encoder_folder).eval(), XLMR.from_encoder(out).eval()
    shown = capsys.readouterr().out
    for folder, n in (encoder_folder, old.vocab_size), (out, new.vocab_size):
        total = sum(t.numel() for t in read_encoder(folder)[1].values())
        assert f'{folder}: {n:,} ids, {total:,} parameters\n' in shown
    assert set(new.pieces) < set(old.pieces)
    assert {p for p in old.pieces if len(p.strip(SPACE)) == 1} <= set(new.pieces)
    model, tokenizer = theirs(out)
    for language in kept:
        for text in sentences(language)[::9]:
            ids = new.encode(text)
            theirs_ids = tokenizer(text, add_special_tokens=False)['input_ids']
            assert [new.pieces[i] for i in ids] == [old.pieces[i] for i in old.encode(text)]
            assert ids.tolist() == theirs_ids
            src = torch.tensor([[0, *ids.tolist(), 2, new.mask]])
            was = torch.tensor([[0, *old.encode(text).tolist(), 2, old.mask]])
            torch.testing.assert_close(after.encode(src), before.encode(was), rtol=0, atol=1e-6)
            torch.testing.assert_close(after.head(after.encode(src)), model(src).logits, rtol=0,
                                       atol=1e-5)
    for text in HARD:                                 # other texts lose pieces, but no character
        assert (new.encode(text) == UNK).sum() == (old.encode(text) == UNK).sum()


def test_trim_to_a_size(texts, encoder_folder, tmp_path):
    path = str(texts / 'kk.txt')
    sizes = []
    for name, limit in (('all', ()), ('often', ('--min_count', '1000')), ('few', ('--size', '17')),
                        ('many', ('--size', '99999')), ('one', ('--without', 'TIBETAN', 'CJK'))):
        main(['trim', '--encoder', str(encoder_folder), '--out', str(tmp_path / name), '--text',
              path, *limit])
        sizes.append(Tokenizer(tmp_path / name).vocab_size)
    whole, often, few, many, one = sizes
    left = Tokenizer(tmp_path / 'one')
    assert one < whole
    scripts = {script(c) for piece in left.pieces[4:left.mask] for c in piece}
    assert scripts == {None, 'CYRILLIC', 'ARABIC'}
    assert often < few < whole == many < Tokenizer(encoder_folder).vocab_size
    counts = Usage(path, Tokenizer(encoder_folder)).counts
    longest = [i for i in counts.argsort()[::-1][:17]
               if len(Tokenizer(encoder_folder).pieces[i].strip(SPACE)) > 1]
    assert longest
    assert {Tokenizer(encoder_folder).pieces[i]
            for i in longest} <= set(Tokenizer(tmp_path / 'few').pieces)


def test_what_stays():
    """The `size` most frequent; also single characters, special pieces and one of least score."""
    pieces = [SimpleNamespace(piece=p, score=s, type=t) for p, s, t in (
        ('<unk>', 0, 2), ('<s>', 0, 3), ('ab', -1, 1), ('bc', -2, 1), ('cd', -3, 1), ('de', -9, 1),
        ('ef', -9, 1),
        (SPACE + 'g', -4, 1), ('གང', -5, 1))]
    counts = [99, 0, 5, 5, 5, 0, 0, 0, 1]
    assert used(pieces, counts, size=2) == [0, 1, 2, 3, 5, 7]
    assert used(pieces, counts, min_count=5) == [0, 1, 2, 3, 4, 5, 7]
    assert used(pieces, counts, size=99) == [0, 1, 2, 3, 4, 5, 7, 8]
    assert used(pieces, counts, without=['LATIN']) == [0, 1, 8]


@torch.no_grad()
def test_extend(texts, encoder_folder, tmp_path, capsys):
    """A script that was <unk> is read; other languages keep their tokens and hidden states."""
    out = tmp_path / 'extended'
    main(['extend', '--encoder', str(encoder_folder), '--text', str(texts / 'ka.txt'), '--pieces',
          '90', '--out', str(out)])
    shown = capsys.readouterr().out
    assert re.search(r'ka\.txt .* 0\.00% +0 ', shown)
    old, new = Tokenizer(encoder_folder), Tokenizer(out)
    assert UNK in old.encode(GEORGIAN[0]) and 22 < new.vocab_size - old.vocab_size <= 90
    assert all(len(new.encode(text)) < len(text) for text in GEORGIAN)
    model, tokenizer = theirs(out)
    for text in GEORGIAN[::20] + [text for text in HARD[2:] if 's' not in text]:
        assert new.encode(text).tolist() == tokenizer(text, add_special_tokens=False)['input_ids']
    (_, past), (_, state) = read_encoder(encoder_folder), read_encoder(out)
    mean = past['head.bias'][4:old.mask].mean()
    torch.testing.assert_close(state['head.bias'][old.mask:-1],
                               mean.expand(new.vocab_size - old.vocab_size))
    before, after = XLMR.from_encoder(encoder_folder).eval(), XLMR.from_encoder(out).eval()
    for language in LANGUAGES:
        for text in sentences(language)[::30]:
            ids = new.encode(text)
            assert [new.pieces[i] for i in ids] == [old.pieces[i] for i in old.encode(text)]
            src = torch.tensor([[0, *ids, new.mask, 2]])
            was = torch.tensor([[0, *ids, old.mask, 2]])
            assert torch.equal(after.encode(src), before.encode(was))
            n = old.mask
            logits, past = after.head(after.encode(src)), before.head(before.encode(was))
            torch.testing.assert_close(logits[..., :n], past[..., :n])
            torch.testing.assert_close(logits[..., new.mask], past[..., old.mask])
            torch.testing.assert_close(logits, model(src).logits, rtol=0, atol=1e-5)
    main(['report', '--encoder', str(out), '--before', str(encoder_folder), '--text',
          *(str(texts / f'{x}.txt') for x in ('bo', 'ka'))])
    bo, ka = (line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    assert bo[-1] == '0.00%' and float(ka[-1][:-1]) > 40
    with pytest.raises(ValueError,
                       match=r'the vocabulary has all \d+ pieces that these texts yield'):
        main(['extend', '--encoder', str(out), '--text', str(texts / 'ka.txt'), '--pieces', '90',
              '--out', str(tmp_path / 'again')])
    model = SWCM.from_encoder(out, languages=('ka', 'zh'))
    assert model.generate(src, 'ka', max_new_tokens=3)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
def test_rows_follow_their_pieces(texts, tmp_path, dtype):
    """In all types of numbers, beside symbols of the user's, with rows to spare behind <mask>."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for language in LANGUAGES for line in sentences(language)]),
        model_writer=model, vocab_size=250, hard_vocab_limit=False, character_coverage=1.0,
        user_defined_symbols=['<sep>'], normalization_rule_name='nmt_nfkc', minloglevel=2)
    mask = Tokenizer(model.getvalue()).mask
    encoder = XLMR(SWCMConfig(vocab_size=mask + 8, n_layer=1, n_head=2, n_embd=16, n_ffn=16,
                              n_positions=40, dropout=0.25), model.getvalue())
    torch.nn.init.normal_(encoder.head.bias)
    encoder.save(tmp_path / 'spare', dtype)
    past = read_encoder(tmp_path / 'spare')[1]
    old = Tokenizer(tmp_path / 'spare', vocab_size=mask + 8)
    at = {piece: i for i, piece in enumerate(old.pieces[:mask + 1]) if i > 2}
    for name, *options in (('trim', '--text', f'{texts}/kk.txt'),
                           ('extend', '--text', f'{texts}/ka.txt', '--pieces=90')):
        main([name, '--encoder', str(tmp_path / 'spare'), '--out', str(tmp_path / name), *options])
        (sizes, state), new = read_encoder(tmp_path / name), Tokenizer(tmp_path / name)
        kept = [i for i, piece in enumerate(new.pieces) if i < 3 or piece in at]
        assert sizes['vocab_size'] == new.vocab_size
        assert len(state['embeddings.word.weight']) == len(state['head.bias']) == new.vocab_size
        assert len(kept) == mask + 1 if name == 'extend' else 60 < len(kept) < mask
        assert '<sep>' in new.pieces
        assert read_json(tmp_path / name / 'config.json')['hidden_dropout_prob'] == 0.25
        for key, rows in state.items():
            assert rows.dtype == dtype
            if key in BY_ID:
                assert torch.equal(rows[kept], past[key][[at.get(new.pieces[i], i) for i in kept]])
            else:
                assert torch.equal(rows, past[key])


def test_report(texts, encoder_folder, tmp_path, capsys):
    """Each figure of a line, counted again."""
    main(['trim', '--encoder', str(encoder_folder), '--out', str(tmp_path / 'kk'), '--text',
          str(texts / 'kk.txt'), '--without', 'CJK'])
    path = texts / 'mixed.txt'
    path.write_text('Менде екі ит бар.\n我有两本书。 Менде ξ ძ ξ\n', encoding='utf-8')
    capsys.readouterr()
    main(['report', '--encoder', str(tmp_path / 'kk'), '--before', str(encoder_folder), '--text',
          str(path)])
    header, line, _ = capsys.readouterr().out.splitlines()
    tokenizer, lines = Tokenizer(tmp_path / 'kk'), path.read_text(encoding='utf-8').splitlines()
    ids = [i for text in lines for i in tokenizer.encode(text).tolist()]
    n = sum(map(len, lines))
    old = Tokenizer(encoder_folder)
    before = [old.pieces[i] for text in lines for i in old.encode(text)]
    lost = sum('CJK' in map(script, piece) for piece in before)                   # now <unk>
    assert line.split() == [str(path), str(n), str(len(ids)), f'{len(ids) / n:.3f}',
                            f'{ids.count(UNK) / len(ids):.2%}', '7',
                            f'{len(set(ids)) / tokenizer.vocab_size:.1%}',
                            f'{lost / len(before):.2%}']


def test_initial_rows(tokenizer):
    word = torch.randn(tokenizer.vocab_size, 16)
    old = word[UNK + 1:tokenizer.mask]
    pieces = ['ძა', 'མཐོང་།ཁོས་', SPACE + 'екіүш', '༈']
    found = {init: new_rows(pieces, tokenizer, word, init) for init in INITS}
    spread = old.std(0)
    cut = tokenizer.encode('екіүш')  # at the beginning of a word
    assert ((found['subpieces'][2] - word[cut].mean(0)).abs() / spread).mean() < 0.2
    assert not torch.equal(*(new_rows([piece], tokenizer, word, 'subpieces')
                             for piece in (SPACE + 'екіүш', 'екіүш')))
    equal = new_rows(['ძა' + c for c in 'ბგდ'] + ['ཁོས་ཁོས་', 'ཁོས་ཁོས་'], tokenizer, word,
                     'subpieces')
    assert len(equal.unique(dim=0)) == 5
    tibetan = [i for i, p in enumerate(tokenizer.pieces[UNK + 1:tokenizer.mask])
               if any('ཀ' <= c <= 'ྼ' for c in p)]
    near = (found['script'][1] - old[tibetan].mean(0)).abs() / spread
    assert 0 < near.mean() < 0.2                      # a tenth of the spread
    assert torch.equal(found['subpieces'][0], found['random'][0])  # nothing is known of Georgian
    for init in ('script', 'mean'):
        assert 0 < ((found[init][0] - old.mean(0)).abs() / spread).mean() < 0.2
        assert torch.equal(found[init], new_rows(pieces, tokenizer, word, init))
    assert found['random'].abs().max() < 0.1 and len(found['random'].unique(dim=0)) == 4


def test_mistakes_get_one_line(texts, encoder_folder, tmp_path):
    (tmp_path / 'empty.txt').write_text('\n \n', encoding='utf-8')
    (tmp_path / 'signs.txt').write_text('\0\n\u200b\u200c\n', encoding='utf-8')
    (tmp_path / 'ka.jsonl').write_text('{"text": "\u10d9"}\n', encoding='utf-8')
    (tmp_path / 'digits.txt').write_text('ძაღლი 1, წიგნი.', encoding='utf-8')
    (tmp_path / 'latin1.txt').write_bytes(b'\xe9t\xe9\n')
    out = tmp_path / 'out'
    for command, text, options, message in (
            ('extend', 'empty.txt', ('--pieces', '50'), 'empty.txt has no text'),
            ('extend', 'signs.txt', ('--pieces', '50'), 'signs.txt has no text'),
            ('extend', 'ka.jsonl', ('--pieces', '50'),
             'ka.jsonl is jsonl; give files of plain text'),
            ('extend', 'ka.txt', ('--pieces', '23'), 'pieces=23: too few'),
            ('extend', 'ka.txt', ('--pieces', '9', '--seed', '-1'), 'seed=-1: '),
            ('extend', 'ka.txt', ('--pieces', '5'), 'pieces=5: '),
            ('extend', 'ka.txt', ('--pieces', '0'), 'pieces=0: '),
            ('extend', 'latin1.txt', ('--pieces', '50'), 'byte 0 (0xe9) is not UTF-8'),
            ('extend', 'none.txt', ('--pieces', '50'), 'none.txt does not exist; give files'),
            ('trim', 'empty.txt', (), 'empty.txt has no text'),
            ('trim', 'digits.txt', (), 'no letter of these texts is in the vocabulary'),
            ('trim', 'bo.txt', ('--size', '0'), 'size=0: '),
            ('trim', 'bo.txt', ('--without', 'HAN'),
             'the vocabulary has no letters of HAN; it has CJK CYRILLIC'),
            ('trim', 'bo.txt', ('--without', 'TIBETAN'),
             'no letter of these texts is in the vocabulary, or stays'),
            ('report', 'empty.txt', (), 'empty.txt has no text')):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as stopped:
            main([command, '--encoder', str(encoder_folder), '--text', str(texts / text),
                  *(() if command == 'report' else ('--out', str(out))), *options])
        assert '\n' not in str(stopped.value) and not out.exists()
    with pytest.raises(ValueError, match='empty.txt is a file'):
        main(['trim', '--encoder', str(encoder_folder), '--text', str(texts / 'bo.txt'), '--out',
              str(tmp_path / 'empty.txt/out')])
    out.mkdir()
    (out / 'mine').touch()
    with pytest.raises(ValueError, match='exists; name a new folder'):
        main(['trim', '--encoder', str(encoder_folder), '--text', str(texts / 'bo.txt'), '--out',
              str(out)])


def test_more_pieces_than_can_be_trained(texts, encoder_folder, tmp_path, capsys):
    main(['extend', '--encoder', str(encoder_folder), '--text', str(texts / 'ka.txt'), '--pieces',
          '20000', '--out', str(tmp_path / 'out')])
    assert 'and such a text yields no more' in capsys.readouterr().out


def test_encoder_without_a_head(texts, encoder_folder, tmp_path, monkeypatch):
    """What XLMRobertaModel saves has no MLM head; it stays without, and is given one to train."""
    from transformers import XLMRobertaForMaskedLM, XLMRobertaModel
    bare = tmp_path / 'bare'
    XLMRobertaModel.from_pretrained(encoder_folder).save_pretrained(bare)
    (bare / 'sentencepiece.bpe.model').write_bytes((encoder_folder
                                                    / 'sentencepiece.bpe.model').read_bytes())
    main(['extend', '--encoder', str(bare), '--text', str(texts / 'ka.txt'), '--pieces', '60',
          '--out', str(tmp_path / 'out')])
    assert XLMR.from_encoder(tmp_path / 'out').config.mlm_head is False
    XLMRobertaModel.from_pretrained(tmp_path / 'out')
    monkeypatch.setattr(tokens, 'token_folder', lambda dataset: tmp_path / 'tokens' / dataset)
    cfg = config.load(config.Train, ['config/new_script.py', f'--data_from={texts}/ka.txt',
                                     '--batch_tokens=400', f'--encoder={tmp_path}/out',
                                     '--languages=ka', '--max_steps=1', '--accumulate=1',
                                     '--block_size=60', '--device=cpu',
                                     f'--out_dir={tmp_path}/mlm'])
    train.train(cfg)
    assert XLMR.from_encoder(tmp_path / 'mlm/best').config.mlm_head
    XLMRobertaForMaskedLM.from_pretrained(tmp_path / 'mlm/best')


@pytest.mark.full
def test_without_protobuf(texts, encoder_folder, tmp_path):
    """One line says what to install."""
    code = ('import sys; sys.modules["google.protobuf"] = None; sys.argv[0] = "vocab"\n'
            'import config; from data.vocab import main; config.run(main)')
    done = subprocess.run([sys.executable, '-c', code, 'trim', '--encoder', str(encoder_folder),
                           '--text', str(texts / 'bo.txt'), '--out', str(tmp_path / 'out')],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith('error: data.vocab needs protobuf') and \
        done.stderr.count('\n') == 1


def test_protobuf_that_does_not_fit_sentencepiece(tokenizer, monkeypatch):
    def refuse(*version):
        raise TypeError('Descriptors cannot be created directly.\n'
                        'If this call came from a _pb2.py file, ...')

    monkeypatch.delitem(sys.modules, 'sentencepiece.sentencepiece_model_pb2', raising=False)
    monkeypatch.setattr('google.protobuf.descriptor_pool.Default', refuse)
    message = r'pip install -U sentencepiece protobuf \(Descriptors .* directly. If this'
    with pytest.raises(ValueError, match=message):
        proto(tokenizer)


def test_new_pieces(encoder_folder, tmp_path, monkeypatch):
    """Rare characters are covered, scores yield to old pieces, a long line is drawn in part."""
    tokenizer, path = Tokenizer(encoder_folder), tmp_path / 'ka.txt'
    path.write_text('\n'.join(['e\u0301', *GEORGIAN * 5, 'ძ\u0301ა ჰ \u2585 \0']), encoding='utf-8')
    new, n = new_pieces(tokenizer, [path], 90)
    assert {'\u0301', 'ჰ', 'ძ'} <= {piece for piece, _ in new}
    assert '\u2585' not in dict(new)
    assert len(new) < n <= 90
    ratio = len(new) / len(tokenizer.sp)
    assert ratio / 3 < sum(math.exp(score) for _, score in new) < ratio
    assert min(score for _, score in new) >= min(piece.score for piece in proto(tokenizer).pieces)
    drawn, train = [], module.train_sentencepiece
    monkeypatch.setattr(module, 'CHARACTERS', 20_000)
    monkeypatch.setattr(module, 'train_sentencepiece',
                        lambda lines, *rest: drawn.append(lines) or train(lines, *rest))
    path.write_text(' '.join(f'{text} {i}' for i in range(20) for text in GEORGIAN),
                    encoding='utf-8')
    new_pieces(tokenizer, [path, path], 90)
    assert 20_000 < sum(map(len, drawn[0])) < 60_000 and max(map(len, drawn[0])) == 1000


def test_init_and_seed_reach_the_rows(texts, encoder_folder, tmp_path):
    rows = {}
    for name, *options in (('a', '--init=random'), ('b', '--init=random', '--seed=2'),
                           ('c', '--init=mean')):
        main(['extend', '--encoder', str(encoder_folder), '--text', str(texts / 'ka.txt'),
              '--pieces', '90', '--out', str(tmp_path / name), *options])
        sizes, state = read_encoder(tmp_path / name)
        rows[name] = state['embeddings.word.weight'][Tokenizer(encoder_folder).mask:-1]
    old = read_encoder(encoder_folder)[1]['embeddings.word.weight'][4:-1]
    assert not torch.equal(rows['a'], rows['b']) and 0.015 < rows['a'].std() < 0.025
    assert (rows['c'].mean(0) - old.mean(0)).abs().max() < 0.1 * old.std(0).max()


def test_other_models_are_refused(tmp_path, tokenizer):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(GEORGIAN), model_writer=model,
                                             vocab_size=40, model_type='bpe', minloglevel=2)
    with pytest.raises(ValueError, match='not a unigram one'):
        proto(Tokenizer(model.getvalue()))


def test_nothing_is_left_of_what_cannot_be_written(texts, encoder_folder, tmp_path, monkeypatch):
    def full(*args):
        raise SafetensorError('no space left')

    out = tmp_path / 'out'
    with monkeypatch.context() as patch:
        patch.setattr('data.weights.save_file', full)
        with pytest.raises(OSError, match='no space left'):
            main(['trim', '--encoder', str(encoder_folder), '--text', str(texts / 'bo.txt'),
                  '--out', str(out)])
    assert not out.exists()
    bad = tmp_path / 'bad'
    bad.mkdir()
    for file in encoder_folder.iterdir():
        (bad / file.name).write_bytes(file.read_bytes())
    settings = (bad / 'config.json').read_text()
    (bad / 'config.json').write_text(settings.replace('"vocab_size": 161', '"vocab_size": 200'))
    with pytest.raises(ValueError,
                       match='has vocab_size=200, and model.safetensors was written with 161'):
        main(['trim', '--encoder', str(bad), '--text', str(texts / 'bo.txt'), '--out', str(out)])
