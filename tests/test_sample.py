"""sample.py: nothing of a text is lost, output is as trained and scored, what is cut is said."""
import json
import os
import sys

import numpy as np
import pytest
import torch
from conftest import LANGUAGES, sentences

import finetune
import sample
from config import FineTune, cli
from data.examples import Example, Examples
from data.tokenizer import UNK, Tokenizer
from model import SWCM, SWCMConfig


@pytest.fixture(scope='module')
def folder(encoder_folder, tmp_path_factory):
    """A model that is not trained, below a folder without settings."""
    path = tmp_path_factory.mktemp('run') / 'best'
    torch.manual_seed(0)
    SWCM.from_encoder(encoder_folder, languages=LANGUAGES).save(path)
    return path


@pytest.fixture
def asked(monkeypatch):
    """What is given to `generate_texts`, in place of it: it answers each source with its number."""
    calls = []

    def generate_texts(model, tokenizer, sources, languages, *args, **options):
        calls.append([tokenizer.decode(ids[2:-1]) for ids in sources])
        return [str(i) for i in range(len(sources))], [False] * len(sources)

    monkeypatch.setattr(sample, 'generate_texts', generate_texts)
    return calls


def generator(folder, source, to, task='translate', **options):
    cfg = sample.Sample(task=task, source=source, to=to, device='cpu', **options)
    return sample.TextGenerator(folder, cfg, sys.maxsize)


def test_translation_is_by_sentence(folder, asked):
    """The output has one part a sentence, and no sentence is lost, however long the text is."""
    text = '我有两本书。他看见了三只羊。' * 30
    answers = generator(folder, 'zh', 'bo').answer([text, '', '我有两本书'])
    assert answers == [' '.join(map(str, range(60))), '', '60']
    assert asked[0] == ['我有两本书。', '他看见了三只羊。'] * 30 + ['我有两本书']
    nano = Tokenizer('data/nano')
    # the vocabulary has !? for ！？
    starts = nano.sentence_starts(nano.encode('你好！我有3.5两本书？他看见了。'))
    assert len(starts) == 3


def test_a_context_is_read_as_it_was_learned(folder, asked):
    """... sentence by sentence or not, over several lines or not."""
    question, context = 'ང་ལ་ཅི་ཡོད།', 'ཁོས་ཁྱི་བཞི་མཐོང་། ང་ལ་དེབ་གཉིས་ཡོད།'
    learned = Example('bo', (question, context), context, ())
    for rotate_context in True, False:
        limits = FineTune(task='answer', rotate_context=rotate_context)
        options = sample.settings({'question': question, 'task': 'answer'}, limits, ['bo'])
        read = generator(folder, 'bo', 'bo', 'answer', question=question,
                         rotate_context=options.rotate_context)
        read.answer([context.replace(' ', '\n')])
        task = Examples('bo', [learned], read.tokenizer, limits)
        sentences = context.split()[::-1 if rotate_context else 1]
        assert asked.pop() == [read.tokenizer.decode(task.ids[0][0][2:-1])] == [
            ' '.join([question, *sentences])]


def test_room_for_output(encoder_folder, tokenizer, monkeypatch):
    """Three times the source and 20, or what is asked for, and never beyond the positions."""
    model, limits = SWCM.from_encoder(encoder_folder, languages=LANGUAGES), []
    search = sample.search
    monkeypatch.setattr(sample, 'search', lambda model, src, languages, room, **options: (
        limits.append(room) or search(model, src, languages, room, **options)))
    sources = [tokenizer.add_special_tokens('zh', tokenizer.encode(text))
               for text in ('我', '我有两本书。' * 4)]
    for asked, expected in ((0, [3 * len(sources[0]) + 20, 62]), (7, [7, 7]), (99, [62, 62])):
        sample.generate_texts(model, tokenizer, sources, ['bo'] * 2, asked)
        assert limits.pop() == expected
    assert 3 * len(sources[1]) + 20 > 62


def test_what_is_cut_off_is_said(folder, capsys):
    """... and a limit of the output is none of the source."""
    sample.main([f'--checkpoint={folder}', '--text=我有两本书。他看见了三只羊。', '--to=bo',
                 '--max_new_tokens=2', '--beams=1'])
    captured = capsys.readouterr()
    assert captured.out.count('\n') == 1
    warning = 'warning: 2 outputs reached the limit of tokens'
    assert warning in captured.err
    long = generator(folder, 'bo', 'bo', 'summarise', beams=1, max_new_tokens=2)
    assert long.answer(['ང' * 100, 'ང', ''])[2] == ''
    assert long.counts['texts were cut: the model reads 64 tokens'] == 1
    for task in 'translate', 'denoise':
        long = generator(folder, 'bo', 'zh', task, beams=1, max_new_tokens=2)
        long.answer(['ང' * 100, 'ང་ལ་དེབ་ཡོད། ' * 20, ''])
        assert long.counts['texts have a sentence that was cut: it has over 61 tokens'] == 1


def test_a_text_is_in_the_language_of_its_summary():
    run = FineTune(task='summarise', learn=('bo',))
    for given, languages in (({}, ('bo', 'bo')), ({'to': 'zh'}, ('zh', 'zh'))):
        cfg = sample.settings(given, run, ['bo', 'zh'])
        assert (cfg.source, cfg.to) == languages
    run = FineTune(learn=('kk-zh', 'ru-mn'), transfer=('zh-kk',))
    for given, languages in (({}, ('kk', 'zh')), ({'source': '', 'to': 'mn'}, ('ru', 'mn')),
                             ({'source': 'ru', 'to': ''}, ('ru', 'mn')),
                             ({'source': 'zh'}, ('zh', 'kk')), ({'to': 'kk'}, ('zh', 'kk')),
                             ({'source': 'kk', 'to': 'mn'}, ('kk', 'mn'))):
        cfg = sample.settings(given, run, ['kk', 'zh', 'ru', 'mn'])
        assert (cfg.source, cfg.to) == languages


def test_outputs_in_another_script_are_warned_of(folder, monkeypatch):
    outputs = ['我有两本书。', '3'], [False] * 2
    monkeypatch.setattr(sample, 'generate_texts', lambda *args, **options: outputs)
    for to, n in (('bo', 1), ('zh', 0)):
        chinese = generator(folder, 'kk', to)
        assert chinese.answer(['Менің кітабым бар.', 'Үш.']) == ['我有两本书。', '3']
        warning = f'outputs are not in the script of {to}; see --to, --force_script'
        assert chinese.counts[warning] == n


def test_what_was_fine_tuned_is_written(tmp_path, encoder_folder, capsys):
    """sample.py answers with the settings of the run, and so writes what predictions.jsonl has."""
    lines = sentences('bo')
    rows = [{'article': ' '.join(lines[i:i + 3]), 'title': lines[i]} for i in range(88)]
    (tmp_path / 'a.bo.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    finetune.finetune(cli.load(FineTune, [
        f'--data={tmp_path}/a.bo.jsonl', f'--encoder={encoder_folder}',
                   '--task=summarise', '--learn=bo', '--max_source_len=24', '--max_target_len=30',
                   '--max_steps=2', '--test_fraction=0.2', '--beams=3',
                   '--val_fraction=0.2', '--batch_tokens=300', '--length_penalty=0.5',
                   f'--out_dir={tmp_path}/out', '--force_script=bo:TIBETAN', '--dtype=bfloat16']))
    best = tmp_path / 'out/best'
    predictions = (best / 'predictions.jsonl').read_text(encoding='utf-8')
    found = [json.loads(line) for line in predictions.splitlines()]
    metrics = json.loads((best / 'metrics.json').read_text(encoding='utf-8'))
    scores = metrics['scores']['test']['bo']
    capsys.readouterr()

    def sampled(i, *options):                         # a file is one text, of several lines
        text = found[i]['source'][0].replace(' ', '\n')
        (tmp_path / 'article.txt').write_text(text, encoding='utf-8')
        sample.main([f'--checkpoint={best}', f'--file={tmp_path}/article.txt', *options])
        return capsys.readouterr()

    shown = [sampled(i) for i in range(10)]
    assert [captured.out for captured in shown] == [p['prediction'] + '\n' for p in found[:10]]
    warnings = [captured for captured in shown
                if 'warning: 1 texts were cut: the model reads 24 tokens' in captured.err]
    assert scores['cut'] >= len(warnings) > 0
    assert sampled(0, '--beams=1', '--max_new_tokens=3').out != shown[0].out  # what is typed counts
    run = json.loads((best / 'run.json').read_text(encoding='utf-8'))
    (best / 'run.json').write_text(json.dumps({**run, 'deam': 3}), encoding='utf-8')
    assert 'warning: run.json is not used: ' in sampled(0, '--task=summarise').err


def test_masks_are_encoded_as_in_training(tokenizer):
    """Any piece of a text, replaced by <mask>, leaves the others as they are."""
    n = 0
    for tok in tokenizer, Tokenizer('data/nano', LANGUAGES):
        for text in (text for language in LANGUAGES for text in sentences(language)[::30]):
            whole = tok.encode(text).tolist()
            for i in range(len(whole)):
                before, after = (''.join(tok.pieces[j] for j in ids).replace('▁', ' ')
                                 for ids in (whole[:i], whole[i + 1:]))
                if not before.endswith(' '):          # a space there would be no piece
                    n += 1
                    ids = tok.encode_masked(f'{before}<mask>{after}').tolist()
                    assert ids == [*whole[:i], tok.mask, *whole[i + 1:]]
    assert n > 100
    assert tokenizer.encode_masked('<mask>').tolist() == [*tokenizer.encode(''), tokenizer.mask]
    odd = tokenizer.encode_masked('ང་<mask>\u0b05ང་')
    assert odd.tolist().count(UNK) == 1 and odd.tolist().count(tokenizer.mask) == 1
    assert tokenizer.mask not in tokenizer.encode('ང་<mask>')


def test_masks_in_a_translation_are_text(folder, asked):
    generator(folder, 'bo', 'bo', 'denoise').answer(['ང་<mask>ལ'])
    generator(folder, 'zh', 'bo').answer(['我<mask>有'])
    assert '<mask>' in asked[0][0] and '我' in asked[1][0] and '<mask>' not in asked[1][0]


def test_no_row_behind_the_pieces_is_written(pieces):
    """The true <mask> is not the last row where a table was resized."""
    tokenizer = Tokenizer(pieces, LANGUAGES)
    mask, written = tokenizer.mask, []
    tokenizer = Tokenizer(pieces, LANGUAGES, mask + 20)
    torch.manual_seed(0)
    model = SWCM(SWCMConfig(mask + 20, 2, 2, 16, 16, 40, languages=LANGUAGES), pieces).eval()
    with torch.no_grad():
        model.encoder.head.bias[mask:mask + 20] += 50
    tokenizer.decode = lambda ids: written.extend(ids) or ''
    sample.generate_texts(model, tokenizer, [np.array([0, mask + 20, 9, 2])] * 2, ['bo', 'zh'], 12)
    assert len(written) > 12 and max(written) < mask


def test_newest_is_newest(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate(('old/last', 'old/best', 'study/arm.1/best', 'new/last', 'newest/last',
                              'newest/best'), 1):
        target = tmp_path / 'out' / name
        target.mkdir(parents=True)
        for file in ('config.json', 'model.safetensors'):
            (target / file).write_bytes((folder / file).read_bytes())
        os.utime(target / 'model.safetensors', (n, n))
        assert str(sample.newest_checkpoint()) == f'out/{name}'
    os.utime('out/newest/last/model.safetensors', (9, 9))  # its best is the model of the newest run
    assert str(sample.newest_checkpoint()) == 'out/newest/best'


def test_texts_that_the_model_cannot_read_are_said(folder, capsys, asked):
    unread = generator(folder, 'zh', 'bo')
    unread.answer(['我有两本书。', '\u0b05\u0b06 \u0b15', 'ང་ལ་དེབ་ཡོད།'])
    assert unread.counts['texts are over 25 % <unk>, not in the vocabulary'] == 1
    assert unread.counts['texts are not in the script of zh; see --source'] == 2
    asked.clear()
    unread.answer(['我有两本书。ខ្ញុំមានសៀវភៅ', ''])                 # one <unk> of 7 tokens
    assert unread.counts['texts are over 25 % <unk>, not in the vocabulary'] == 2
    unread.generate = lambda sources, languages: ['' for _ in sources]
    unread.answer(['我有。他走了。', ''])                      # two sentences, joined by a space
    assert unread.counts['outputs are empty'] == 1


def test_standard_input(folder, capsys, monkeypatch):
    """An empty text stays empty; without one: examples."""
    def run(content, *args):
        read, end = os.pipe()
        with open(end, 'w', encoding='utf-8') as file:
            file.write(content)
        monkeypatch.setattr(sys, 'stdin', open(read, encoding='utf-8'))
        sample.main([f'--checkpoint={folder}', '--to=bo', '--beams=1', '--max_new_tokens=3', *args])
        return capsys.readouterr().out

    assert run('我\n我有\n', '--file=-').count('\n') == 2
    assert run('', '--text=') == '\n'
    assert run('', '--file=-') == ''
    with pytest.raises(FileNotFoundError,
                       match='its held-out text is not known; give --text'):
        run('')


def test_what_does_not_go_together(folder, tmp_path):
    """... is refused before anything is written; a run's folder stands for its best model."""
    for args, message in (
            (['--temperature=1'], 'temperature=1.0 samples, which needs --beams=1'),
            (['--source=bo'], 'translate from bo to bo'), (['--task=answer'], 'goes with a'),
            (['--question=x'], 'goes with a'), (['--question=\udcff'], 'expected UTF-8'),
            (['--task=summarise', '--source=bo', '--question=x'], 'goes with a'),
            (['--text=', '--file=x'], "text='', file=x: give one of them"),
            (['--top_k=5'], 'top_k=5 is for sampling, with --temperature'),
            (['--task=denoise', '--source=zh'], 'denoise from zh to bo'),
            (['--task=sing'], 'choose translate, denoise'), (['--to=xx'], "language 'xx'")):
        with pytest.raises(ValueError, match=message):
            sample.main([f'--checkpoint={folder}', '--to=bo', '--text=x', *args])
    assert sample.model_folder(folder.parent) == str(folder)
    (tmp_path / 'run/last').mkdir(parents=True)
    assert sample.model_folder(tmp_path / 'run') == str(tmp_path / 'run/last')
    assert sample.model_folder('data/nano') == 'data/nano'
