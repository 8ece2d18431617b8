"""data/vocab.py: smaller and larger vocabularies are read by us and by transformers, and cost the rest nothing."""
import re
import subprocess
import sys

import pytest
import torch
from conftest import HARD, LANGUAGES, ROOT, sentences

from data import UNK
from data.tokenizer import SPACE, Tokenizer, script
from data.vocab import INITS, Usage, main, new_rows
from model import SWCM, XLMR

GEORGIAN = [f'{who} {n} {what} აქვს.' for who in ('მე', 'მას', 'ჩვენ', 'დედას', 'ბავშვს')
            for n in ('ორი', 'სამი', 'ოთხი', 'ხუთი', 'ექვსი') for what in ('წიგნი', 'ძაღლი', 'ცხენი', 'სახლი')]


@pytest.fixture
def texts(tmp_path):
    """A file for each language, and one in a script that the encoder has never seen."""
    for language in LANGUAGES:
        (tmp_path / f'{language}.txt').write_text('\n'.join(sentences(language)) + '\n', encoding='utf-8')
    (tmp_path / 'ka.txt').write_text('\n'.join(GEORGIAN) + '\n', encoding='utf-8')
    return tmp_path


def theirs(folder):
    from transformers import XLMRobertaForMaskedLM, XLMRobertaTokenizer
    return (XLMRobertaForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval(),
            XLMRobertaTokenizer.from_pretrained(folder))


@torch.no_grad()
def test_trim(texts, encoder_folder, tmp_path, capsys):
    """What the kept texts' tokens and hidden states are, they stay; transformers reads the folder alike."""
    out = tmp_path / 'small'
    kept = ('bo', 'zh')
    main(['trim', '--encoder', str(encoder_folder), '--out', str(out), '--text',
          *(str(texts / f'{language}.txt') for language in kept)])
    old, new = Tokenizer(encoder_folder), Tokenizer(out)
    before, after = XLMR.from_encoder(encoder_folder).eval(), XLMR.from_encoder(out).eval()
    assert re.search(rf'small: {new.vocab_size:,} ids, 0\.0M parameters', capsys.readouterr().out)
    assert set(new.pieces) < set(old.pieces)
    assert {p for p in old.pieces if len(p.strip(SPACE)) == 1} <= set(new.pieces)
    model, tokenizer = theirs(out)
    for language in kept:
        for text in sentences(language)[::9]:
            ids, theirs_ids = new.encode(text), tokenizer(text, add_special_tokens=False)['input_ids']
            assert [new.pieces[i] for i in ids] == [old.pieces[i] for i in old.encode(text)]
            assert ids.tolist() == theirs_ids
            src, was = (torch.tensor([[0, *row, 2, m]]) for row, m in ((ids.tolist(), new.mask),
                                                                       (old.encode(text).tolist(), old.mask)))
            torch.testing.assert_close(after.encode(src), before.encode(was), rtol=0, atol=1e-6)
            torch.testing.assert_close(after.head(after.encode(src)), model(src).logits, rtol=0, atol=1e-5)
    for text in HARD:                                 # other texts lose pieces, but no character
        assert (new.encode(text) == UNK).sum() == (old.encode(text) == UNK).sum()


def test_trim_to_a_size(texts, encoder_folder, tmp_path):
    path = str(texts / 'kk.txt')
    sizes = []
    for name, limit in (('all', ()), ('often', ('--min_count', '1000')), ('few', ('--size', '17')),
                        ('many', ('--size', '99999')), ('one', ('--without', 'TIBETAN', 'CJK'))):
        main(['trim', '--encoder', str(encoder_folder), '--out', str(tmp_path / name), '--text', path, *limit])
        sizes.append(Tokenizer(tmp_path / name).vocab_size)
    whole, often, few, many, one = sizes
    left = Tokenizer(tmp_path / 'one')
    assert one < whole
    assert {script(c) for piece in left.pieces[4:left.mask] for c in piece} == {None, 'CYRILLIC', 'ARABIC'}
    assert often < few < whole == many < Tokenizer(encoder_folder).vocab_size
    counts = Usage(path, Tokenizer(encoder_folder)).counts
    longest = [i for i in counts.argsort()[::-1][:17] if len(Tokenizer(encoder_folder).pieces[i].strip(SPACE)) > 1]
    assert longest and {Tokenizer(encoder_folder).pieces[i] for i in longest} <= set(Tokenizer(tmp_path / 'few').pieces)


@torch.no_grad()
def test_extend(texts, encoder_folder, tmp_path, capsys):
    """A script that was <unk> is read; other languages have the tokens and the hidden states that they had."""
    out = tmp_path / 'extended'
    main(['extend', '--encoder', str(encoder_folder), '--text', str(texts / 'ka.txt'), '--pieces', '90', '--out',
          str(out)])
    shown = capsys.readouterr().out
    assert re.search(r'ka\.txt .* 0\.00% +0 ', shown)
    old, new = Tokenizer(encoder_folder), Tokenizer(out)
    assert UNK in old.encode(GEORGIAN[0]) and 22 < new.vocab_size - old.vocab_size <= 90
    assert all(len(new.encode(text)) < len(text) for text in GEORGIAN)
    model, tokenizer = theirs(out)
    for text in GEORGIAN[::20] + [text for text in HARD[2:] if 's' not in text]:
        assert new.encode(text).tolist() == tokenizer(text, add_special_tokens=False)['input_ids']
    before, after = XLMR.from_encoder(encoder_folder).eval(), XLMR.from_encoder(out).eval()
    for language in LANGUAGES:
        for text in sentences(language)[::30]:
            ids = new.encode(text)
            assert [new.pieces[i] for i in ids] == [old.pieces[i] for i in old.encode(text)]
            src, was = torch.tensor([[0, *ids, new.mask, 2]]), torch.tensor([[0, *ids, old.mask, 2]])
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
    model = SWCM.from_encoder(out, languages=('ka', 'zh'))
    assert model.generate(src, 'ka', max_new_tokens=3)


def test_initial_rows(tokenizer):
    word = torch.randn(tokenizer.vocab_size, 16)
    old = word[UNK + 1:tokenizer.mask]
    pieces = ['ძა', 'མཐོང་།ཁོས་', SPACE + 'екіүш', '༈']
    found = {init: new_rows(pieces, tokenizer, word, init) for init in INITS}
    spread = old.std(0)
    cut = [i for i in tokenizer.encode(pieces[2].replace(SPACE, ' ')) if i != UNK and tokenizer.pieces[i] != SPACE]
    torch.testing.assert_close(found['subpieces'][2], word[cut].mean(0))
    tibetan = [i for i, p in enumerate(tokenizer.pieces[UNK + 1:tokenizer.mask]) if any('ཀ' <= c <= 'ྼ' for c in p)]
    near = (found['script'][1] - old[tibetan].mean(0)).abs() / spread
    assert 0 < near.mean() < 0.2                      # a tenth of the spread
    for init in ('subpieces', 'script', 'mean'):      # nothing is known of Georgian
        assert 0 < ((found[init][0] - old.mean(0)).abs() / spread).mean() < 0.2
        assert torch.equal(found[init], new_rows(pieces, tokenizer, word, init))
    assert found['random'].abs().max() < 0.1 and len(found['random'].unique(dim=0)) == 4


def test_mistakes_get_one_line(texts, encoder_folder, tmp_path):
    (tmp_path / 'empty.txt').write_text('\n \n', encoding='utf-8')
    (tmp_path / 'digits.txt').write_text('ძაღლი 1, წიგნი.', encoding='utf-8')
    (tmp_path / 'latin1.txt').write_bytes(b'\xe9t\xe9\n')
    out = tmp_path / 'out'
    for command, text, options, message in (
            ('extend', 'empty.txt', ('--pieces', '50'), 'empty.txt: no text in there'),
            ('extend', 'ka.txt', ('--pieces', '5'), 'pieces=5: '),
            ('extend', 'ka.txt', ('--pieces', '0'), 'pieces=0: '),
            ('extend', 'latin1.txt', ('--pieces', '50'), 'byte 0 (0xe9) is not UTF-8'),
            ('extend', 'none.txt', ('--pieces', '50'), 'none.txt'),
            ('trim', 'empty.txt', (), 'empty.txt has no text'),
            ('trim', 'digits.txt', (), 'can read no letter of these texts'),
            ('trim', 'bo.txt', ('--size', '0'), 'size=0: '),
            ('trim', 'bo.txt', ('--without', 'HAN'), 'without=HAN: no letter of the vocabulary is so named'),
            ('report', 'empty.txt', (), 'empty.txt has no text')):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as stopped:
            main([command, '--encoder', str(encoder_folder), '--text', str(texts / text),
                  *(() if command == 'report' else ('--out', str(out))), *options])
        assert '\n' not in str(stopped.value) and not out.exists()
    out.mkdir()
    with pytest.raises(ValueError, match='exists; name a new folder'):
        main(['trim', '--encoder', str(encoder_folder), '--text', str(texts / 'bo.txt'), '--out', str(out)])


def test_more_pieces_than_can_be_trained(texts, encoder_folder, tmp_path, capsys):
    main(['extend', '--encoder', str(encoder_folder), '--text', str(texts / 'ka.txt'), '--pieces', '20000', '--out',
          str(tmp_path / 'out')])
    assert 'all that such a text yields' in capsys.readouterr().out


def test_encoder_without_a_head(texts, encoder_folder, tmp_path):
    """An encoder as XLMRobertaModel saves it, without an MLM head, stays without."""
    from transformers import XLMRobertaModel
    bare = tmp_path / 'bare'
    XLMRobertaModel.from_pretrained(encoder_folder).save_pretrained(bare)
    (bare / 'sentencepiece.bpe.model').write_bytes((encoder_folder / 'sentencepiece.bpe.model').read_bytes())
    main(['extend', '--encoder', str(bare), '--text', str(texts / 'ka.txt'), '--pieces', '60', '--out',
          str(tmp_path / 'out')])
    assert XLMR.from_encoder(tmp_path / 'out').config.mlm_head is False
    XLMRobertaModel.from_pretrained(tmp_path / 'out')


def test_without_protobuf(texts, encoder_folder, tmp_path):
    """One line says what to install."""
    code = ('import sys; sys.modules["google.protobuf"] = None; sys.argv[0] = "vocab"\n'
            'import config; from data.vocab import main; config.run(main)')
    done = subprocess.run([sys.executable, '-c', code, 'trim', '--encoder', str(encoder_folder), '--text',
                           str(texts / 'bo.txt'), '--out', str(tmp_path / 'out')], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 1 and done.stderr.startswith('error: data.vocab needs protobuf') and \
        done.stderr.count('\n') == 1
