"""data/examples.py: the files that data sets come in, and what is held out."""
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from textwrap import dedent
from types import SimpleNamespace

import pytest
from conftest import ROOT, sentences

from data import cloze
from data.examples import (
    Example, Examples, read_examples, rotate_context, split_examples, truncate,
)
from data.heldout import splits

ARTICLE, TITLE = 'ང་ལ་དེབ་གཉིས་ཡོད། ཁོས་ཁྱི་བཞི་མཐོང་།', 'དེབ་གཉིས།'
QUESTION, ANSWER = 'ང་ལ་ཅི་ཡོད།', 'དེབ་གཉིས'


def answer(answers):
    return {'question': QUESTION, 'id': 'TRAIN_186_QUERY_0', 'answers': answers}


SPAN = {'text': ANSWER, 'answer_start': 5}
SUMMARY = Example('bo', (ARTICLE,), TITLE, (ARTICLE,))
FOUND = Example('bo', (QUESTION, ARTICLE), ANSWER, (ARTICLE,))
FOUND_Y = Example('bo', (QUESTION, ARTICLE), ANSWER, (ARTICLE,), ('y',))


def line(**fields):
    return json.dumps(fields, ensure_ascii=False) + '\n'


@pytest.mark.parametrize('name, text, expected', [
    ('plain.jsonl', line(source=ARTICLE, target=TITLE), SUMMARY),
    ('ti-sum.jsonl', line(id=1, article=ARTICLE, title=TITLE) + '\n', SUMMARY),
    ('plain.tsv', f'\ufeff{ARTICLE}\t{TITLE}\r\n', SUMMARY),
    ('answer.jsonl', line(question=QUESTION, context=ARTICLE, answer=ANSWER), FOUND),
    ('several.jsonl', line(question=QUESTION, context=ARTICLE, answer=[ANSWER, 'y', ANSWER]),
     FOUND_Y)])
def test_read(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, encoding='utf-8')
    assert read_examples(str(tmp_path / name), ['bo']) == ([expected], 0)


PUBLISHED = {  # file name: its text, the file that it becomes, its example
    'cmrc2018_train.json': (json.dumps({'version': 'v1.0', 'data': [
        {'id': 'TRAIN_186', 'title': 'x', 'paragraphs': [
            {'id': 'TRAIN_186', 'context': ARTICLE,
             'qas': [answer([SPAN, {'text': 'y', 'answer_start': 0}])]}]}]}, indent=1),
        'cmrc.zh.jsonl', replace(FOUND_Y, key='x')),
    'kazqad.jsonl': (line(title='x', context=ARTICLE,
                          **answer({'text': [ANSWER], 'answer_start': [5]})),
                     'kazqad.kk.jsonl', replace(FOUND, key='x')),
    'TibetanQA.csv': (f'\ufeffID,标题,段落,问题,答案\n1,x,{ARTICLE},{QUESTION},"{ANSWER}"\n',
                      'tibetanqa.bo.jsonl', replace(FOUND, key='x'))}


def test_programs_of_the_readme(tmp_path):
    """What is published becomes a .jsonl with the same examples."""
    readme = (ROOT / 'data/README.md').read_text(encoding='utf-8')
    programs = {out: dedent(program)
                for program, out in re.findall(r'python -c "\n([^"]+)" > (\S+)', readme)}
    for name, (text, out, expected) in PUBLISHED.items():
        (tmp_path / name).write_text(text, encoding='utf-8')
        done = subprocess.run([sys.executable, '-c', programs.pop(out)], cwd=tmp_path,
                              capture_output=True, text=True, check=True)
        (tmp_path / 'out.bo.jsonl').write_text(done.stdout, encoding='utf-8')
        assert read_examples(str(tmp_path / 'out.bo.jsonl'), ['bo']) == ([expected], 0)
    assert not programs


def test_questions_made_from_text(tmp_path, capsys):
    """The answer is a sentence of the context; the same command makes the same questions."""
    assert cloze.sentences('ཀ།། ཁ།ག\nक। ख।') == ['ཀ།།', 'ཁ།', 'ག', 'क।', 'ख।']
    assert cloze.sentences('他说：「『好。』」（是。）他走了。') == ['他说：「『好。』」', '（是。）', '他走了。']
    assert cloze.sentences('Ол: «Бар.» Бол. «ሂድ።» አለው። አዎ፧ አዎ') == [
        'Ол: «Бар.» Бол.', '«ሂድ።»', 'አለው።', 'አዎ፧', 'አዎ']
    assert cloze.spaced_units('ང་ལ་དེབ་ གཉིས་ཡོད།', 'bo') == ['ང་', 'ལ་', 'དེབ་ ', 'གཉིས་', 'ཡོད།']
    assert cloze.spaced_units('a b  c.', 'kk') == ['a ', 'b  ', 'c.']
    assert cloze.spaced_units('我 有。', 'zh') == ['我 ', '有', '。']
    assert cloze.spaced_units('ខ្ញុំ មាន។', 'km') == ['ខ្ញុំ ', 'មា', 'ន', '។']
    for language in 'bo', 'kk', 'zh':
        path = tmp_path / f'some.{language}.txt'
        path.write_text('\n'.join(sentences(language)), encoding='utf-8')
        cloze.main([f'--text={path}', '--draws=300'])
        made = capsys.readouterr().out
        (tmp_path / f'cloze.{language}.jsonl').write_text(made, encoding='utf-8')
        found, _ = read_examples(str(tmp_path / f'cloze.{language}.jsonl'), [language])
        assert len(found) > 100
        for e in found:
            assert len(cloze.sentences(e.source[1])) >= 3 and len(e.source[1]) < 700
            assert e.target in e.source[1]
            assert 4 <= len(cloze.spaced_units(e.target, language)) <= 60
        cloze.main([f'--text={path}', '--draws=300'])
        assert capsys.readouterr().out == made
    for text, message in ((f'{tmp_path}/some.bo.txt,{path}', 'of one language, not of bo zh'),
                          (tmp_path / 'few.kk.txt', 'no question. It takes three')):
        (tmp_path / 'few.kk.txt').write_text('Бір. Екі.', encoding='utf-8')
        with pytest.raises(ValueError, match=message):
            cloze.main([f'--text={text}'])


@pytest.mark.parametrize('language, space, most', [('kk', ' ', 600), ('zh', '', 250)])
def test_a_question_has_pieces_of_its_answer_and_of_other_sentences(language, space, most):
    """Most are of the answer, fewer of its context, fewest of any sentence; they are shuffled."""
    letters = [chr(0x4e00 + i) for i in range(720)]                 # each occurs once
    parts = [space.join(letters[i:i + 12]) for i in range(0, 720, 12)]
    rng, fractions, firsts, lengths = random.Random(1), [], [], []
    for q in filter(None, (cloze.make_question(parts, language, rng) for _ in range(2000))):
        assert q['context'] in space.join(parts) and q['answer'] in parts
        answer, asked, context = (q[x].replace(' ', '') for x in ('answer', 'question', 'context'))
        assert q['question'] == space.join(asked)
        context = context.replace(answer, '')
        found = [sum(x in text for x in asked) for text in (answer, context)]
        assert 1 <= found[0]
        fractions.append([n / 12 for n in (*found, len(asked) - sum(found))])
        firsts.append(asked[0] in answer)
        lengths.append(len(q['context']))
    mean = [sum(column) / len(fractions) for column in zip(*fractions)]
    assert 0.4 < sum(firsts) / len(firsts) < 0.7
    assert 0.35 < mean[0] < 0.5 and 0.2 < mean[1] < 0.3 and 0.15 < mean[2] < 0.25
    assert 0.4 < sorted(lengths)[len(lengths) // 2] / most < 0.8 and max(lengths) < 1.1 * most


def test_pieces():
    rng, units = random.Random(0), [f'{i} ' for i in range(1000)]
    assert ''.join(cloze.pieces(units, 1, rng)) == ''.join(units)
    some = [piece.split() for piece in cloze.pieces(units, 0.3, rng)]
    assert {len(piece) for piece in some} == {1, 2, 3, 4}
    assert 250 < len(sum(some, [])) < 350 and sum(some, []) == sorted(sum(some, []), key=int)
    assert not cloze.pieces(units, 0, rng) and not cloze.pieces([], 1, rng)


def test_languages(tmp_path):
    """Those of the file's name or else the only direction."""
    (tmp_path / 'a.bo-zh.tsv').write_text('བོད\t藏\nདེབ\t\n', encoding='utf-8')
    found, n_empty = read_examples(str(tmp_path / 'a.bo-zh.tsv'), ['zh-bo', 'bo-zh', 'zh-kk'])
    both = ('བོད', '藏')
    assert found == [Example('zh-bo', ('藏',), 'བོད', both), Example('bo-zh', ('བོད',), '藏', both)]
    assert n_empty == 2
    text = 'དེབ\t\u200b\n'                              # whose target normalises to nothing
    (tmp_path / 'c.bo-zh.tsv').write_text(text, encoding='utf-8')
    row = {'source': 'a', 'target': 'b', 'id': '1'}
    for name, directions in (('dev.jsonl', ['bo']), ('ti-sum.jsonl', ['bo']), ('bo.jsonl', ['bo']),
                             ('x.jsonl', ['bo-bo']),
                             ('x.kk.jsonl', ['kk', 'zh-mn']), ('x.zh-mn.jsonl', ['kk', 'zh-mn'])):
        (tmp_path / name).write_text(json.dumps(row), encoding='utf-8')
        [example], n_empty = read_examples(str(tmp_path / name), directions)
        assert example.direction == directions['mn' in name] and example.source == ('a',)
        assert n_empty == 0
    with pytest.raises(ValueError, match='has no example of bo-bo'):
        read_examples(str(tmp_path / 'a.bo-zh.tsv'), ['bo-bo'])
    (tmp_path / 'web.xx-en.tsv').write_text('a\tb', encoding='utf-8')    # not of the only direction
    (tmp_path / 'news.fr.jsonl').write_text(json.dumps(row), encoding='utf-8')
    (tmp_path / 'my-set.tsv').write_text('a\tb', encoding='utf-8')
    for name, direction in ('web.xx-en.tsv', 'zh-kk'), ('news.fr.jsonl', 'bo'):
        with pytest.raises(ValueError, match=f'has no example of {direction} .* name of the file'):
            read_examples(str(tmp_path / name), [direction])
    assert read_examples(str(tmp_path / 'my-set.tsv'), ['bo'])[0][0].direction == 'bo'
    for name, directions in (('x.kk.jsonl', ['bo']), ('a.bo-zh.tsv', ['kk-zh', 'kk']),
                             ('c.bo-zh.tsv', ['bo-zh'])):
        message = f'{name} has no example of {" ".join(directions)} with text'
        with pytest.raises(ValueError, match=message):
            read_examples(str(tmp_path / name), directions)


def test_translations_share_texts(tmp_path):
    """In every form of file the key of a pair and its texts are the same."""
    expected = Example('bo-zh', ('བོད',), '藏', ('བོད', '藏'))
    rows = {
        'a.bo-zh.jsonl': json.dumps({'source': 'བོད', 'target': '藏'}),
        'b.tsv': 'བོད\t藏\n\n', 'c.jsonl': json.dumps({'zh': '藏', 'bo': 'བོད', 'ug': ' '})
    }
    for name, text in rows.items():
        (tmp_path / name).write_text(text, encoding='utf-8')
        assert read_examples(str(tmp_path / name), ['bo-zh'])[0] == [expected]
    found, n_empty = read_examples(str(tmp_path / 'c.jsonl'), ['bo-zh', 'ug-zh'])
    assert [e.direction for e in found] == ['bo-zh'] and n_empty == 1
    assert found[0].texts == ('བོད', '藏')
    text = json.dumps({'zh': '藏', 'bo': ['བོད', 'ང་']})
    (tmp_path / 'd.jsonl').write_text(text, encoding='utf-8')
    [one, two], _ = read_examples(str(tmp_path / 'd.jsonl'), ['zh-bo', 'bo-zh'])
    assert one == Example('zh-bo', ('藏',), 'བོད', ('བོད', 'ང་', '藏'), ('ང་',))
    assert two == Example('bo-zh', ('བོད',), '藏', one.texts)
    text = json.dumps({'source': '藏', 'target': ['བོད', 'ང་']})
    (tmp_path / 'e.zh-bo.jsonl').write_text(text, encoding='utf-8')
    assert read_examples(str(tmp_path / 'e.zh-bo.jsonl'), ['zh-bo', 'bo-zh'])[0] == [one, two]


@pytest.mark.parametrize('name, text, message', [
    ('a.jsonl', '{"source": "x", "target": "y"}\n{"source": "x"}',
     "a.jsonl: line 2 has 'source', not the fields question, context, answer or source, tar"),
    ('a.jsonl', '{"source": "x", "target": 3}', 'line 1: target is 3, expected a string'),
    ('a.jsonl', '{"source": "x"', 'line 1 is not JSON'),
    ('a.jsonl', '{"article": ["x", "y"], "title": "z"}', 'expected one string for article'),
    ('a.jsonl', '"x"', 'line 1 is not a JSON object'),
    ('a.jsonl', '', 'a.jsonl has no example of bo with text'),
    ('a.tsv', 'x\ty\nx\n', 'line 2 has 1 columns'),
    ('a.jsonl', r'{"source": "x", "target": "\ud800"}',
     'line 1: target is .* expected a string'),
    ('a.xml', 'x', 'give --data=FILES of examples, .tsv or .jsonl.*data/README.md')])
def test_bad_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding='utf-8')
    with pytest.raises(ValueError, match=message):
        read_examples(str(tmp_path / name), ['bo'])


def test_swapped_columns_are_noticed(tmp_path):
    (tmp_path / 'a.bo-zh.tsv').write_text('我有两本书。\tང་ལ་དེབ་གཉིས་ཡོད།\n', encoding='utf-8')
    with pytest.raises(ValueError, match='are in CJK, and bo is written in TIBETAN; correct the'):
        read_examples(str(tmp_path / 'a.bo-zh.tsv'), ['bo-zh'])


def test_bad_languages(tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"source": "x", "target": "y"}', encoding='utf-8')
    with pytest.raises(ValueError, match='line 1: nothing says which of bo kk'):
        read_examples(str(tmp_path / 'a.jsonl'), ['bo', 'kk'])
    with pytest.raises(FileNotFoundError, match='No such file.*no.jsonl'):
        read_examples(f'{tmp_path}/a.jsonl,{tmp_path}/no.jsonl', ['bo'])


def pairs(n=3000):
    """Translations of which some share one side."""
    return [
        Example(d, (f'source {i}',), f'target {j}', (f'target {j}', f'source {i}'))
        for i in range(n) for j in [i % (n - 50)] for d in ('zh-bo', 'zh-kk')
    ]


def test_held_out():
    parts, left_out = split_examples(pairs(), 0.05, 0.1)
    of = {part: {text for e in found for text in e.texts} for part, found in parts.items()}
    assert not of['train'] & of['test'] and not of['train'] & of['val'] and left_out > 0
    assert 0.08 < len(parts['test']) / 6000 < 0.12 and 0.035 < len(parts['val']) / 6000 < 0.065
    one, other = ({e.texts[-1] for e in parts['test'] if e.direction == d}
                  for d in ('zh-bo', 'zh-kk'))
    assert one == other
    grown, _ = split_examples(pairs() + [Example('zh-bo', ('new',), 'x', ('x', 'new'))],
                              0.05, 0.1)
    assert {e.texts[-1] for e in grown['test']} - {'new'} == {e.texts[-1] for e in parts['test']}


def test_held_out_by_article(tmp_path):
    """All questions on an article_id are in one part, though their contexts differ."""
    rows = [{'question': f'q{i}', 'context': f'c{i}', 'answer': f'c{i}', 'article_id': i // 3}
            for i in range(900)]
    rows += [{**row, 'context': row['context'] + ' none', 'article_id': None} for row in rows]
    path = tmp_path / 'qa.bo.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    parts, left_out = split_examples(read_examples(str(path), ['bo'])[0], 0.1, 0.2)
    articles = [{e.key for e in found if e.key} for found in parts.values()]
    assert sum(map(len, articles)) == len(set.union(*articles)) == 300 and not left_out
    for found, keys in zip(parts.values(), articles):
        alone = sum(not e.key for e in found)
        assert len(found) == 3 * len(keys) + alone and len(keys) > 10 and alone > 30


def test_held_out_as_in_pretraining(tmp_path):
    """finetune.py does not learn what train.py holds out with the sum of the fractions."""
    path = tmp_path / 'a.bo-zh.tsv'
    path.write_text(''.join(f'b{i}\tz{i}\n' for i in range(2000)), encoding='utf-8')
    documents = [(None, {'bo': f'b{i}', 'zh': f'z{i}'}) for i in range(2000)]
    split_of = splits(documents, 0.15)
    parts, _ = split_examples(read_examples(str(path), ['zh-bo'])[0], 0.05, 0.1)
    held_out = {texts['zh'] for key, texts in documents if split_of(key, texts)[0] == 'val'}
    assert {e.texts[-1] for e in parts['val'] + parts['test']} == held_out


def test_examples_are_cut_and_counted(tokenizer):
    texts = sentences('bo')
    made = [
        Example('bo', (texts[0], ' '.join(texts[:9])), texts[0], ()),
        Example('bo', (texts[1],) * 2, texts[1], ()),
        Example('bo', (texts[2],) * 2, ' '.join(texts), ())
    ]
    limits = SimpleNamespace(task='answer', max_source_len=60, max_target_len=40,
                             rotate_context=False)
    task = Examples('bo', made, tokenizer, limits)
    assert len(task) == 2 and task.n_cut == 1 and task.n_long == 1 and task.lengths.max() == 60
    assert task.n_inside == 2
    away = Example('bo', (' '.join(texts[:9]),), texts[8], ())
    unknown = Example('bo', ('\U00020001',), '\U00020000', ())       # both are <unk>
    for e in away, unknown:
        assert Examples('bo', [e], tokenizer, limits).n_inside == 0          # cut off; not known
    long = Example('bo', unknown.source, ' '.join(texts), ())       # not learned, so not counted
    assert Examples('bo', [unknown, long, *made], tokenizer, limits).n_unread == 1
    tested = Examples('bo', made, tokenizer, limits, learn=False)
    assert len(tested) == 3 and tested.n_long == 1                            # scored all the same
    source, target = task.example(1)
    once = [tokenizer.language_id('bo'), *tokenizer.encode(texts[1])]
    assert list(source) == [0, *once, 2, 2, *once[1:], 2] and list(target) == [0, *once, 2]
    assert len(Examples('bo', [], tokenizer, limits)) == 0


def test_a_context_begins_at_the_sentence_that_shares_most_with_the_question(tokenizer):
    """... of equals at the first. A cut takes the others, and the answer is still there."""
    answer, other, long = 'ང་ལ་དེབ་གཉིས་ཡོད།', 'ཁོ་ལ་དེབ་ཡོད།', 'ཁོས་ཁྱི་བཞི་མཐོང་།'
    for context, rotated in ((f'{other}{long} {answer}{long}', f'{answer}{long} {other}{long}'),
                             (f'{long}\n{other}\n{other}', f'{other}\n{other} {long}'),
                             (long, long), ('', '')):
        assert rotate_context(QUESTION, context, 'bo').strip() == rotated
    e = Example('bo', (QUESTION, f'{long} ' * 20 + answer), answer, ())
    limits = SimpleNamespace(task='answer', max_source_len=60, max_target_len=40)
    for limits.rotate_context in False, True:
        task = Examples('bo', [e], tokenizer, limits)
        assert (task.n_cut, task.n_inside) == (1, limits.rotate_context)
    texts = QUESTION, answer + f' {long}' * 20
    whole = tokenizer.add_special_tokens('bo', *map(tokenizer.encode, texts))
    assert list(task.ids[0][0]) == list(truncate(whole, 60))
