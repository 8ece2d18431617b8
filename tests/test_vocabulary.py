"""data/vocabulary.py: other vocabularies are read by us and by transformers, and cost nothing."""
import io
import math
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from itertools import permutations

import pytest
import sentencepiece
import torch
from conftest import HARD, LANGUAGES, ROOT, sentences
from safetensors import SafetensorError

import train
from config import Train, cli
from data import dataset
from data.tokenizer import SPACE, UNK, Tokenizer
from data.vocabulary import main, new_pieces, new_rows, proto, read_parts
from model import ROW_PER_ID, SWCM, XLMR, SWCMConfig, read_encoder
from sample import search

RETRIEVAL = runpy.run_path(str(ROOT / 'tests/tools/retrieval.py'))
GEORGIAN = [
    f'{who} {n} {what} აქვს.' for who in ('მე', 'მას', 'ჩვენ', 'დედას', 'ბავშვს')
    for n in ('ორი', 'სამი', 'ოთხი', 'ხუთი', 'ექვსი')
    for what in ('წიგნი', 'ძაღლი', 'ცხენი', 'სახლი')
]


@pytest.fixture
def texts(tmp_path):
    """A file for each language, and one in a script that the encoder has never seen."""
    for language in LANGUAGES:
        (tmp_path / f'{language}.txt').write_text('\n'.join(sentences(language)) + '\n',
                                                  encoding='utf-8')
    (tmp_path / 'ka.txt').write_text('\n'.join(GEORGIAN) + '\n', encoding='utf-8')
    return tmp_path


def run(command, encoder, texts, *options):
    main([command, '--encoder', str(encoder), *options, '--text', ','.join(map(str, texts))])


def theirs(folder):
    from transformers import XLMRobertaForMaskedLM, XLMRobertaTokenizer
    return (XLMRobertaForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval(),
            XLMRobertaTokenizer.from_pretrained(folder))


@torch.no_grad()
def test_trim(texts, encoder_folder, tmp_path, capsys):
    """The texts keep their tokens and hidden states; transformers reads the folder alike."""
    out, kept = tmp_path / 'small', ('bo', 'zh')
    run('trim', encoder_folder, [texts / f'{x}.txt' for x in kept], f'--out={out}')
    old, new = Tokenizer(encoder_folder), Tokenizer(out)
    before, after = XLMR.from_encoder(encoder_folder).eval(), XLMR.from_encoder(out).eval()
    shown = capsys.readouterr().out
    assert shown.endswith(f'{encoder_folder}: {old.vocab_size:,} ids, 4 layers\n'
                          f'{out}: {new.vocab_size:,} ids, 4 layers\n')
    assert set(new.pieces) < set(old.pieces)
    assert {p for p in old.pieces if len(p.strip(SPACE)) == 1} <= set(new.pieces)
    model, tokenizer = theirs(out)
    for language in kept:
        for text in sentences(language)[::9]:
            ids, old_ids = new.encode(text).tolist(), old.encode(text).tolist()
            assert [new.pieces[i] for i in ids] == [old.pieces[i] for i in old_ids]
            assert ids == tokenizer(text, add_special_tokens=False)['input_ids']
            src = torch.tensor([[0, *ids, 2, new.mask]])
            was = torch.tensor([[0, *old_ids, 2, old.mask]])
            memory = after.encode(src)
            torch.testing.assert_close(memory, before.encode(was), rtol=0, atol=1e-6)
            logits = after.head(memory)[..., :new.vocab_size]
            torch.testing.assert_close(logits, model(src).logits, rtol=0, atol=1e-5)
    for text in HARD:                                 # other texts lose pieces, but no character
        assert (new.encode(text) == UNK).sum() == (old.encode(text) == UNK).sum()


def test_trim_to_the_commonest_pieces(texts, encoder_folder, tmp_path):
    """Each text has the same weight, however long. Of single characters the texts' own stay."""
    long = '\n'.join(sentences('bo') * 9)
    (texts / 'bo.txt').write_text(long, encoding='utf-8')
    run('trim', encoder_folder, [texts / 'bo.txt', texts / 'kk.txt'], '--pieces=40',
        f'--out={tmp_path}/few')
    old, few = Tokenizer(encoder_folder), Tokenizer(tmp_path / 'few')
    shares = Counter()
    for text in long, '\n'.join(sentences('kk')):
        pieces = [old.pieces[i] for line in text.splitlines() for i in old.encode(line)]
        shares.update({piece: n / len(pieces) for piece, n in Counter(pieces).items()})
    forty = {piece for piece, _ in shares.most_common(40)}
    characters = {*long, *''.join(sentences('kk'))}
    rest = {*few.pieces[4:-1]} - forty
    assert forty < {*few.pieces} and any(len(x.strip(SPACE)) > 1 for x in forty)
    assert {piece for piece in old.pieces if piece in characters} <= {*few.pieces}
    assert len([piece for piece in rest if piece.strip(SPACE) not in {'', *characters}]) <= 1
    for text in long.splitlines()[0], sentences('kk')[0]:
        assert few.decode(few.encode(text)) == text and UNK not in few.encode(text)
    assert UNK in few.encode('我')


@torch.no_grad()
def test_trim_to_the_first_layers(texts, encoder_folder, tmp_path, capsys):
    """The states are those of the encoder's second layer, as tests/tools/retrieval.py has them."""
    run('trim', encoder_folder, [texts / 'bo.txt'], '--layers=2', f'--out={tmp_path}/two')
    shown = capsys.readouterr().out.splitlines()
    assert [line[-9:] for line in shown] == [' 4 layers', ' 2 layers']
    whole, two = XLMR.from_encoder(encoder_folder), XLMR.from_encoder(tmp_path / 'two')
    ids = [Tokenizer(folder).encode(sentences('bo')[0]).tolist()
           for folder in (encoder_folder, tmp_path / 'two')]
    states, last = (RETRIEVAL['layer_states'](model, torch.tensor([[0, *x, 2]]))
                    for model, x in zip((whole, two), ids))
    assert two.config.n_layer == 2 and states.shape[0] == 5
    torch.testing.assert_close(last, states[:3], rtol=0, atol=1e-6)


@torch.no_grad()
def test_retrieval(encoder_folder, tmp_path, capsys):
    """Equal lines find each other; with lines 3 to 11 in another order, none does. Cosines are
    means over all pairs of two tokens."""
    lines = sentences('zh')
    moved = lines[:2] + lines[3:11] + lines[2:3] + lines[11:]
    (tmp_path / 'lines').mkdir()
    for name, text in ('zh', lines), ('same', lines), ('moved', moved), ('bo', sentences('bo')):
        (tmp_path / f'lines/{name}.txt').write_text('\n'.join(text), encoding='utf-8')
    RETRIEVAL['main']([str(encoder_folder), str(tmp_path / 'lines'), '--first=3', '--count=9'])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ['layer', 'cosine', 'bo', 'moved', 'same'] and len(rows) == 5
    assert all(row.split()[3:] == ['0.0%', '100.0%'] for row in rows)
    x = torch.randn(5, 9, 8)
    torch.testing.assert_close(RETRIEVAL['centred'](x + 3), RETRIEVAL['centred'](x))
    encoder, tok = XLMR.from_encoder(encoder_folder), Tokenizer(encoder_folder)
    ids = [[0, *tok.encode(line).tolist(), 2] for line in lines[2:11]]
    cosines = [[torch.cosine_similarity(a, b, dim=0).item() for a, b in permutations(x, 2)]
               for x in (encoder.encode(torch.tensor([row]))[0] for row in ids)]
    mean = sum(sum(x) / len(x) for x in cosines) / 9
    assert rows[-1].split()[1] == f'{mean:.2f}'
    for option, message in (('--count=91', 'bo.txt has no 91 lines from line 1 on'),
                            ('--first=0', 'bo.txt has no 9 lines from line 0 on'),
                            ('--to=xx', 'lines has no xx.txt')):
        with pytest.raises(ValueError, match=message):
            RETRIEVAL['main']([str(encoder_folder), str(tmp_path / 'lines'), '--count=9', option])


def test_trim_keeps_the_lowest_score(texts, encoder_folder, tmp_path):
    """The cost of <unk> depends on it, so a piece that has it stays even if no text uses it."""
    shutil.copytree(encoder_folder, tmp_path / 'old')
    model = proto(Tokenizer(encoder_folder))
    used = set(''.join(sentences('kk')) + SPACE)
    unused = [p for p in model.pieces[3:] if len(p.piece.strip(SPACE)) > 1 and set(p.piece) - used]
    unused[0].score = -50
    (tmp_path / 'old/sentencepiece.bpe.model').write_bytes(model.SerializeToString())
    run('trim', tmp_path / 'old', [texts / 'kk.txt'], f'--out={tmp_path}/new')
    left = Tokenizer(tmp_path / 'new').pieces
    assert [piece.piece in left for piece in unused] == [True] + [False] * (len(unused) - 1)
    assert len(unused) > 1


@torch.no_grad()
def test_extend(texts, encoder_folder, tmp_path):
    """A script that was <unk> is read; other languages keep their tokens and hidden states."""
    out = tmp_path / 'extended'
    run('extend', encoder_folder, [texts / 'ka.txt'], '--pieces=90', f'--out={out}')
    old, new = Tokenizer(encoder_folder), Tokenizer(out)
    assert UNK in old.encode(GEORGIAN[0]) and 22 < new.vocab_size - old.vocab_size <= 90
    assert all(len(new.encode(text)) < len(text) for text in GEORGIAN)
    assert not any(UNK in new.encode(text) for text in GEORGIAN)
    model, tokenizer = theirs(out)
    for text in GEORGIAN[::20] + [text for text in HARD[2:] if 's' not in text]:
        assert new.encode(text).tolist() == tokenizer(text, add_special_tokens=False)['input_ids']
    past, state = read_encoder(encoder_folder)[1], read_encoder(out)[1]
    torch.testing.assert_close(
        state['head.bias'][old.mask:-1],
        past['head.bias'][4:old.mask].mean().expand(new.vocab_size - old.vocab_size))
    before, after = XLMR.from_encoder(encoder_folder).eval(), XLMR.from_encoder(out).eval()
    n = old.mask
    for language in LANGUAGES:
        for text in sentences(language)[::30]:
            ids = new.encode(text)
            assert [new.pieces[i] for i in ids] == [old.pieces[i] for i in old.encode(text)]
            src, was = (torch.tensor([[0, *ids, mask, 2]]) for mask in (new.mask, n))
            assert torch.equal(after.encode(src), before.encode(was))
            logits, past = after.head(after.encode(src)), before.head(before.encode(was))
            torch.testing.assert_close(logits[..., :n], past[..., :n])
            torch.testing.assert_close(logits[..., new.mask], past[..., n])
            torch.testing.assert_close(logits[..., :new.vocab_size], model(src).logits, rtol=0,
                                       atol=1e-5)
    model = SWCM.from_encoder(out, languages=('ka', 'zh'))
    assert search(model, src, ['ka'], [3])
    run('extend', out, [texts / 'ka.txt'], '--pieces=90', f'--out={tmp_path}/again')
    assert Tokenizer(tmp_path / 'again').pieces == new.pieces          # there is nothing to add


def test_rows_follow_their_pieces(texts, tmp_path):
    """Beside a user's symbols, with rows to spare behind <mask>."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for language in LANGUAGES for line in sentences(language)]),
        model_writer=model, vocab_size=250, hard_vocab_limit=False, character_coverage=1.0,
        user_defined_symbols=['<sep>'], normalization_rule_name='nmt_nfkc', minloglevel=2)
    mask = Tokenizer(model.getvalue()).mask
    encoder = XLMR(SWCMConfig(vocab_size=mask + 8, n_layer=1, n_head=2, n_embd=16, n_ffn=16,
                              n_positions=40), model.getvalue())
    torch.nn.init.normal_(encoder.head.bias)
    encoder.save(tmp_path / 'spare')
    past, old = read_encoder(tmp_path / 'spare')[1], Tokenizer(tmp_path / 'spare')
    at = {piece: i for i, piece in enumerate(old.pieces[:mask + 1]) if i > 2}
    for name, text, *options in ('trim', 'kk.txt'), ('extend', 'ka.txt', '--pieces=90'):
        out = tmp_path / name
        run(name, tmp_path / 'spare', [texts / text], f'--out={out}', *options)
        (sizes, state, _), new = read_encoder(out), Tokenizer(out)
        kept = [i for i, piece in enumerate(new.pieces) if i < 3 or piece in at]
        assert sizes['vocab_size'] == new.vocab_size
        assert new.vocab_size == len(state['embeddings.word.weight']) == len(state['head.bias'])
        assert len(kept) == mask + 1 if name == 'extend' else 60 < len(kept) < mask
        assert '<sep>' in new.pieces
        for key, rows in state.items():
            if key in ROW_PER_ID:
                assert torch.equal(rows[kept], past[key][[at.get(new.pieces[i], i) for i in kept]])
            else:
                assert torch.equal(rows, past[key])


def test_rows_of_new_pieces(tokenizer):
    """Each is near the mean of the pieces it was cut into, or random; no two are equal."""
    torch.manual_seed(0)
    word = torch.randn(tokenizer.vocab_size, 16)
    spread = word[UNK + 1:tokenizer.mask].std(0)
    georgian, start, middle, *twins = new_rows(
        ['ძა', SPACE + 'екіүш', 'екіүш', 'ཁོས་ཁོས་', 'ཁོས་ཁོས་'], tokenizer, word)
    cut = tokenizer.encode('екіүш')                   # as at the beginning of a word
    assert 0 < ((start - word[cut].mean(0)).abs() / spread).mean() < 0.2
    assert ((middle - start).abs() / spread).mean() > 0.2 and not torch.equal(*twins)
    many = new_rows(['ძა'] * 100, tokenizer, word)
    assert torch.equal(georgian, many[0]) and 0.018 < many.std() < 0.022
    assert torch.equal(many, new_rows(['ძა'] * 100, tokenizer, word))


@pytest.mark.parametrize('command, text, options, message', [
    ('extend', 'empty.txt', (), '--pieces=8000: too few for this text, or it is empty'),
    ('extend', 'ka.jsonl', (), 'ka.jsonl: give files of plain text'),
    ('extend', 'latin1.txt', (), 'latin1.txt: line 1 is not UTF-8'),
    ('extend', 'none.txt', (), 'none.txt'),
    ('extend', 'ka.txt', ('--pieces=23',), '--pieces=23: too few for this text'),
    ('trim', 'bo.txt', ('--pieces=0',), '--pieces=0: expected at least 1'),
    ('trim', 'bo.txt', ('--out=tests',), 'out=tests: name a new folder'),
    ('trim', '', (), 'give files of plain text'),
    ('extend', 'ka.txt', ('--layers=2',), '--layers=2: only trim removes layers'),
    ('trim', 'bo.txt', ('--layers=0',), '--layers=0: the encoder has 4 layers'),
    ('trim', 'bo.txt', ('--layers=5',), '--layers=5: the encoder has 4 layers'),
    ('trim', 'empty.txt', (), 'empty.txt: there is no text')])
def test_mistakes_get_one_line(texts, encoder_folder, tmp_path, command, text, options, message):
    (tmp_path / 'empty.txt').write_text('\n \n', encoding='utf-8')
    (tmp_path / 'ka.jsonl').write_text('{"text": "\u10d9"}\n', encoding='utf-8')
    (tmp_path / 'latin1.txt').write_bytes(b'\xe9t\xe9\n')
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as stopped:
        run(command, encoder_folder, [texts / text], f'--out={tmp_path}/out', *options)
    assert '\n' not in str(stopped.value) and not (tmp_path / 'out').exists()


@pytest.mark.full
def test_encoder_without_a_head(texts, encoder_folder, tmp_path, monkeypatch):
    """An encoder without an MLM head stays without, and is given one to train."""
    from transformers import XLMRobertaForMaskedLM, XLMRobertaModel
    bare, out = tmp_path / 'bare', tmp_path / 'out'
    XLMRobertaModel.from_pretrained(encoder_folder).save_pretrained(bare)
    name = 'sentencepiece.bpe.model'
    (bare / name).write_bytes((encoder_folder / name).read_bytes())
    run('extend', bare, [texts / 'ka.txt'], '--pieces=60', f'--out={out}')
    assert XLMR.from_encoder(out).config.mlm_head is False
    XLMRobertaModel.from_pretrained(out)
    monkeypatch.setattr(dataset, 'token_folder', lambda name: tmp_path / 'tokens' / name)
    train.train(cli.load(Train, [
        'config/vocabulary/new_script.py', f'--data_from={texts}/ka.txt', '--batch_tokens=400',
        f'--encoder={out}', '--languages=ka', '--max_steps=1', '--val_fraction=0.1',
        '--block_size=60', '--device=cpu', f'--out_dir={tmp_path}/mlm']))
    assert XLMR.from_encoder(tmp_path / 'mlm/best').config.mlm_head
    XLMRobertaForMaskedLM.from_pretrained(tmp_path / 'mlm/best')


def test_without_protobuf(texts, encoder_folder, tmp_path):
    """One line says what to install."""
    code = ('import sys; sys.modules["google.protobuf"] = None; sys.argv[0] = "vocabulary"\n'
            'from config import cli; from data.vocabulary import main; cli.run(main)')
    command = [sys.executable, '-c', code, 'trim', '--encoder', str(encoder_folder)]
    command += ['--text', str(texts / 'bo.txt'), '--out', str(tmp_path / 'out')]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert done.stderr.startswith('error: this needs protobuf: pip install -U')


def test_protobuf_that_does_not_fit_sentencepiece(tokenizer, monkeypatch):
    def refuse(*version):
        raise TypeError(
            'Descriptors cannot be created directly.\nIf this call came from a _pb2.py file, ...')

    monkeypatch.delitem(sys.modules, 'sentencepiece.sentencepiece_model_pb2', raising=False)
    monkeypatch.setattr('google.protobuf.descriptor_pool.Default', refuse)
    with pytest.raises(ValueError, match='pip install -U sentencepiece protobuf'):
        proto(tokenizer)


def test_new_pieces(encoder_folder, tmp_path):
    """Rare characters are covered, old pieces are likelier, a long line is taken in part."""
    tokenizer, path = Tokenizer(encoder_folder), tmp_path / 'ka.txt'
    path.write_text('\n'.join(['e\u0301', *GEORGIAN * 5, 'ძ\u0301ა ჰ \u2585 \0']), encoding='utf-8')
    new = new_pieces(tokenizer, [path], 90)
    assert {'\u0301', 'ჰ', 'ძ'} <= {piece for piece, _ in new}
    assert '\u2585' not in dict(new) and 22 < len(new) < 90
    ratio = len(new) / len(tokenizer.sp)
    assert ratio / 3 < sum(math.exp(score) for _, score in new) < ratio
    assert min(score for _, score in new) >= min(piece.score for piece in proto(tokenizer).pieces)
    path.write_text(''.join(GEORGIAN * 50), encoding='utf-8')
    assert {'ჰ', 'ძ'} - {piece for piece, _ in new_pieces(tokenizer, [path, path], 90)} == {'ჰ'}
    assert max(map(len, read_parts([path]))) == 500


def test_nothing_is_left_of_what_cannot_be_written(texts, encoder_folder, tmp_path, monkeypatch):
    def full(*args):
        raise SafetensorError('no space left')

    monkeypatch.setattr('model.save_file', full)
    with pytest.raises(OSError, match='no space left'):
        run('trim', encoder_folder, [texts / 'bo.txt'], f'--out={tmp_path}/out')
    assert not (tmp_path / 'out').exists()
