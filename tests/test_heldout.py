"""What is held out is not learned; texts and columns are in the language that their names say."""
import re
import unicodedata

import pytest
from conftest import sentences

import config
from data import dataset
from data.dataset import prepare
from data.examples import Example, read_examples, split_examples
from data.heldout import Texts, splits
from data.languages import wrong_script
from data.tasks import tasks
from data.tokenizer import normalize


@pytest.fixture
def tokens_root(tmp_path, monkeypatch):
    """Token files go to a temporary folder instead of data/NAME/tokens."""
    monkeypatch.setattr(dataset, 'token_folder', lambda dataset: tmp_path / dataset)
    return tmp_path


def variants(x):
    """The text and others that have its form."""
    return {x, x + ' ', x.replace(' ', '  '), unicodedata.normalize('NFD', x),
            x.replace('.', '．').replace('。', '｡'), x.replace('་', '\u0f0c'), x.upper(),
            x.rstrip('།.。'), '\u200b' + x, f'«{x}»'}


@pytest.mark.parametrize('language', ['bo', 'kk', 'zh'])
def test_variants_of_held_out_texts_are_not_learned(language):
    """A text that differs in spaces, case, punctuation or form of characters is the same."""
    lines = sentences(language)
    documents = [(None, {language: text}) for x in lines for text in variants(x)]
    split_of = splits(documents, 0.2)
    parts = [{split_of(None, {language: text})[0] for text in variants(x)} for x in lines]
    assert sum('val' in part for part in parts) > 20
    assert not [part for part in parts if {'val', 'train'} <= part]
    texts = [text for x in lines for text in variants(x)]
    examples = [Example(language, ('a',), text, (text,)) for text in texts]
    parts, left_out = split_examples(examples, 0.1, 0.1)
    forms = {part: {''.join(normalize(e.target).casefold().split()).strip('།.。«»་') for e in found}
             for part, found in parts.items()}
    assert not forms['train'] & (forms['val'] | forms['test']) and left_out
    assert not forms['val'] & forms['test']
    assert min(map(len, parts.values())) > 5


def test_lines_and_sentences_that_are_held_out_are_not_learned():
    """... in longer documents; and no line or sentence of a document that is held out."""
    zh, bo = sentences('zh'), sentences('bo')
    pairs = [(None, {'bo': b, 'zh': z}) for b, z in zip(bo, zh)]
    long = [(None, {'zh': '\n'.join(zh[i:i + 4])}) for i in range(0, 90, 4)]
    long += [(None, {'bo': ' '.join(bo[i:i + 4])}) for i in range(0, 90, 4)]
    split_of = splits(pairs + long, 0.1)
    found = [split_of(*document) for document in pairs + long]
    held_out = [text for part, texts in found if part == 'val' for text in texts.values()]
    lines = {line for text in held_out for line in re.split('\n|(?<=།) ', text)}
    assert 12 < len(lines) < 60
    learned = [text for part, texts in found if part == 'train' for text in texts.values()]
    assert len(learned) > 60
    assert not [text for text in learned if any(line in text for line in held_out)]
    whole = {line for text in learned for line in re.split('\n|(?<=།) ', text)}
    assert whole <= {*zh, *bo} and not {text for text in learned if text in lines}
    whole = {texts.get('zh') for _, texts in long}
    shortened = [text.split('\n') for text in learned if '\n' in text and text not in whole]
    assert shortened and all(text == [x for x in zh if x in text] for text in shortened)


def test_runs_of_sentences_are_found_anywhere():
    held_out = Texts(['他来了。我走了。', 'Ол келді.\nМен кеттім. Ит бар.', '5'])
    for text in ('天晴。他来了。我走了！好。', 'мен кеттім', 'Мен кеттім! ит бар', '他来了\n我走了',
                 '他来了，我走了'):
        assert text in held_out
    for text in '天晴。我走了。', 'Ит бар. Ол келді.', 'Version 1.5', '我走了。好。':
        assert text not in held_out
    assert held_out.without('天晴。“他来了。我走了。”好。\n他来了。') == '天晴。好。\n他来了。'
    assert held_out.without('他来了。我走了。\n') == held_out.without('мен кеттім.') == ''
    assert held_out.without('x 5') == 'x 5'
    assert held_out.without('早。他来了，我走了。晚。') == '早。晚。'        # as one sentence
    text = '天晴。他来了。我走了。好。'                # ... or two, where both forms are held out
    for texts in ['他来了，我走了。', '他来了。我走了。'], ['他来了。我走了。', '他来了，我走了。']:
        assert Texts(texts).without(text) == '天晴。好。' and '我走了' in Texts(texts)


@pytest.mark.parametrize('text', ['“你好！”他说。', '他问：“真的吗？”我点头。', '他来吗？“好！”她说。',
                                  '太好了！2008年北京见。', '他等了很久……”她说。', '来？《书》',
                                  'Он.\u200dБар.'])
def test_a_held_out_line_costs_no_other(text):
    assert Texts([text]).without(f'第一行。\n{text}\n第三行。') == '第一行。\n第三行。'


@pytest.mark.parametrize('key, n', [(0, 1), ('a', 1), ('', 2), (None, 2)])
def test_texts_of_a_key_are_held_out_together(key, n):
    assert len({splits([], 0.5)(key, {'bo': str(i)})[0] for i in range(20)}) == n


def test_a_sentence_ends_before_an_opening_mark():
    for end, text in ('？', '《红楼梦》在这里。'), ('！', '“好。”他说。'), ('？', 'はい、そうです。'):
        assert text in Texts([f'他来了{end}{text}']) and f'他来了{end}{text}' in Texts([text])


def test_a_correction_in_the_middle_of_a_long_file_is_noticed(tmp_path, tokenizer, tokens_root):
    lines = sentences('bo') * 100                     # 300 KB
    names = []
    for middle in ('གཅིག', 'གཉིས'):
        lines[4000] = middle
        (tmp_path / 'bo.txt').write_text('\n'.join(lines), encoding='utf-8')
        names.append(prepare('text', tokenizer, 64, 0.2, tmp_path).name)
    assert (tmp_path / 'bo.txt').stat().st_size > 2**18 and names[0] != names[1]


SWAPPED = [
    ('x.bo-zh.tsv', list(map('{}\t{}'.format, sentences('zh'), sentences('bo'))),
     'are in CJK, and bo is written in TIB'),
    ('x.bo-ug.tsv', list(map('{}\t{}'.format, sentences('ug'), sentences('bo'))),
     'are in ARABIC, and bo is written in'),
]


@pytest.mark.parametrize('name, lines, message', [*SWAPPED, (
    'bo.txt', sentences('zh'),
    "'我有两本书。' and others are in CJK, and bo is written in TIBETAN; correct")])
def test_columns_and_files_of_other_languages(
        tmp_path, tokenizer, tokens_root, name, lines, message):
    """One check for train.py and finetune.py."""
    (tmp_path / name).write_text('\n'.join(lines), encoding='utf-8')
    with pytest.raises(ValueError, match=message):
        prepare('text', tokenizer, 64, 0.2, tmp_path)
    if name != 'bo.txt':
        with pytest.raises(ValueError, match=message):
            read_examples(str(tmp_path / name), ('bo-zh', 'bo-ug'))


def test_nothing_is_held_out(tmp_path, tokenizer, tokens_root):
    (tmp_path / 'bo.txt').write_text('\n'.join(sentences('bo')[:4]), encoding='utf-8')
    folder = prepare('text', tokenizer, 64, 0.01, tmp_path)
    cfg = config.Train(languages=('bo',))
    assert tasks(folder, 'train', tokenizer, cfg)
    with pytest.raises(ValueError, match='no val text for bo; it has none.* --val_fraction'):
        tasks(folder, 'val', tokenizer, cfg)


def test_scripts():
    """A text that quotes others has its own script still; of fr it is not known."""
    for text, language, found in (
            ('我的书 Ctrl+Alt+Delete', 'zh', None), ('བོད', 'zh', 'TIBETAN'), ('书', 'bo', 'CJK'),
            ('a b', 'bo', 'LATIN'), ('1', 'bo', None), ('Ёж', 'fr', None),
            ('книга', 'ug', None), ('ᠮᠣᠩᠭᠣᠯ', 'mn', None)):
        assert wrong_script(text, language) == found
