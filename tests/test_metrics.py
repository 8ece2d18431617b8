"""data/metrics.py against the libraries whose names its scores bear."""
import json
import math
import random
import runpy
import string

import numpy as np
import pytest
from conftest import HARD, LANGUAGES, ROOT, sentences
from nltk import word_tokenize
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF
from torchmetrics.functional.text import squad

from config import FineTune
from data import metrics
from data.examples import Example
from data.languages import main_script, script
from data.metrics import (
    chrf, common_subsequence, f_measure, is_mark, score, units, wilson, words_only,
)
from data.tokenizer import Tokenizer, normalize
from finetune import write_scores

# From the Universal Declaration of Human Rights (public domain)
REAL = {
    'bo': ['སྐྱེ་བོ་རེ་རེར་སྲོག་འཚོ་བ་དང༌། རང་དབང་ལ་སྤྱོད་པ། ལུས་པོ་བདེ་སྐུང་བཅས་ཀྱི་ཐོབ་ཐང་ཡོད༎',
           'སུ་ཡིན་རུང་མནར་གཅོད་གཏོང་བ་དང༌། ཡང་སྙིང་རྗེ་བྲལ་ཞིང་མི་སྤྱོད་ལས་འདས་པའམ།'],
    'ug': ['ھەممە ئادەم ھاياتلىقتىن، ئەركىنلىكتىن ۋە جىسمانىي بىخەتەرلىكتىن بەھرىمەن بولۇشقا.',
           'ھەرقانداق ئادەمنى قۇل قىلىشقا ياكى قۇل قاتارىدا ئىشلىتىشكە.'],
    'kk': ['Ешкім де құлдықта немесе кіріптарлықта ұсталуы тиіс емес. Құлдық пен құл саудасына '
           'тыйым салынады.',
           'Ешкім де азапталуға немесе қадір‐қасиетін қорлайтындай адамшылыққа.'],
    'mn': ['Хүн бүр амьд явах, эрх чөлөөтэй байх, халдашгүй дархан байх эрхтэй.',
           'Хэнийг ч боолчлол буюу бусдын эрхшээлд байлгах ёсгүй.'],
    'zh': ['鉴于各会员国业已誓愿同联合国合作以促进对人权和基本自由的普遍尊重和遵行,',
           '人人有权享有生命、自由和人身安全。'],
    'en': ['All human beings are born free and equal in dignity and rights.',
           'No one shall be held in slavery or servitude; slavery shall be prohibited.'],
}
MIXED = [
    *HARD, 'a', '!a!', '..', '“x”, y', '😀😀 😀', 'LibreOffice ནང་ 2 本书 көрді', 'བོད་ཡིག་', '100%'
]


def shifted(texts):
    """Pairs of texts: the same, nearly the same, others."""
    return [(texts[i:] + texts[:i], texts) for i in (0, 1, 7)]


def variants(texts, n, rate=0.2):
    """Of each text n, with every fifth character left out by chance."""
    rng = random.Random(0)
    return [[''.join(c for c in text if rng.random() > rate) for _ in range(n)] for text in texts]


@pytest.mark.parametrize('language', LANGUAGES)
def test_chrf_equals_sacrebleu(language):
    texts = list(map(normalize, [*sentences(language)[::2], *REAL[language], *MIXED]))
    for hypotheses, references in shifted(texts):
        there = [i for i, text in enumerate(references) if text]
        ours, theirs = ([texts[i] for i in there] for texts in (hypotheses, references))
        expected = CHRF(word_order=2).corpus_score(ours, [theirs]).score
        whole, _ = score(ours, theirs, language)
        assert whole['chrF++'][0] == pytest.approx(expected, abs=1e-9)
        assert chrf(ours, theirs) == whole['chrF++'][0]


def test_chrf_of_few_texts():
    assert chrf(['བ'], ['x']) == 0 and chrf(['a b'], ['a b']) == pytest.approx(100)
    for ours, theirs, message in (['a'], ['a', 'b'], '1 hypotheses for 2 references'), (
            [], [], '0 hypotheses for 0'), (['a'], [' '], 'reference 1 has no text to score'):
        with pytest.raises(ValueError, match=message):
            chrf(ours, theirs)


@pytest.mark.parametrize('language', ['bo', 'zh', 'en'])
def test_several_references_equal_sacrebleu(language):
    """All texts and each; for ROUGE-L, which sacrebleu does not have, the best of Google's."""
    texts = [*sentences(language)[::5], *REAL[language]] if language != 'en' else REAL['en'] * 10
    hypotheses, *references = zip(*[map(normalize, row) for row in variants(texts, 4)])
    expected = CHRF(word_order=2).corpus_score(hypotheses, references).score
    assert chrf(hypotheses, list(zip(*references))) == pytest.approx(expected, abs=1e-9)
    whole, each = score(hypotheses, list(zip(*references)), language)
    assert whole['chrF++'][0] == pytest.approx(expected, abs=1e-9)
    for i, (h, *several) in enumerate(zip(hypotheses, *references)):
        expected = CHRF(word_order=2).sentence_score(h, several).score
        assert each['chrF++'][i] == pytest.approx(expected, abs=1e-9)
        assert each['rouge_l_f'][i] == pytest.approx(
            100 * max(by_google(h, r, language).fmeasure for r in several), abs=1e-9)


@pytest.mark.parametrize('language', LANGUAGES)
def test_rouge_l_equals_google(language):
    for hypotheses, references in shifted([*sentences(language), *REAL[language], *MIXED]):
        for h, r in zip(hypotheses, references):
            expected = by_google(h, r, language)
            assert rouge_l(units(h, language), units(r, language)) == pytest.approx(
                (expected.fmeasure, expected.precision, expected.recall), abs=1e-9)


def rouge_l(hypothesis, reference):
    return f_measure(common_subsequence, hypothesis, reference)


def by_google(hypothesis, reference, language):
    class OurUnits:
        def tokenize(self, text):
            return units(text, language)

    return RougeScorer(['rougeL'], tokenizer=OurUnits()).score(reference, hypothesis)['rougeL']


def test_google_gives_0_on_tibetan():
    texts = sentences('bo')
    assert RougeScorer(['rougeL']).score(texts[0], texts[0])['rougeL'].fmeasure == 0
    whole, _ = score(texts, texts, 'bo')
    assert whole['rouge_l_f'] == (100, 100, 100)


@pytest.mark.parametrize('language', LANGUAGES)
def test_answers_equal_squad(language):
    def as_words(text):                               # SQuAD knows ASCII marks and English articles
        return ' '.join(words_only(text, language))

    texts = [
        text for text in map(normalize, [*sentences(language), *REAL[language], *MIXED])
        if not all(is_mark(unit[0])
                   for unit in units(text, language)) and 'a' not in as_words(text).split()
    ]
    for hypotheses, references in shifted(texts):
        _, each = score(hypotheses, references, language)
        for h, r, of_f1, of_exact in zip(hypotheses, references, each['f1'], each['exact']):
            assert (of_f1, of_exact) == pytest.approx(by_squad(as_words(h), [as_words(r)]),
                                                      rel=1e-6)
    assert rouge_l(['a'], []) == rouge_l([], ['a']) == (0, 0, 0)


def by_squad(prediction, answers):
    expected = squad([{'prediction_text': prediction, 'id': ''}],
                     [{'answers': {'answer_start': [0] * len(answers), 'text': answers}, 'id': ''}])
    return expected['f1'].item(), expected['exact_match'].item()


def test_answers_in_english_equal_squad():
    """As they are written, and with several right answers."""
    texts = ['Two books.', 'two  BOOKS', 'three books, two dogs', 'Books, dogs!', '42', 'dogs']
    for h in texts:
        for first, *others in (texts[:1], texts[1:4], texts[3:], texts):
            whole, _ = score([h], [(first, *others)], 'en')
            assert (whole['f1'][0], whole['exact'][0]) == pytest.approx(by_squad(
                h, [first, *others]),
                                                                        rel=1e-6)
    # marks are dropped beside words only
    for h, r, same in (('', '。', 0), ('-', '+', 0), ('。', '。', 100)):
        assert score([h], [r], 'kk')[1]['exact'] == score([h], [r], 'kk')[1]['f1'] == [same]


def test_normalised():
    """Both sides go through SentencePiece's rule: what the vocabulary can write scores 100."""
    tokenizer = Tokenizer('data/nano')
    assert normalize('ك\u200dۆ') == 'ك ۆ'  # as by XLM-R's file, not by SentencePiece of today
    for language, text in (('zh', '我有两本书，他也有。'), ('zh', '三～四本\u200b书……看见了！'),
                           ('ug', 'ئۇ\u200b ئىككى\ufeffكىتاب كۆردى.')):
        written = tokenizer.decode(tokenizer.encode(text))
        assert written == normalize(text) != text
        for ours, theirs in ([written], [text]), ([text], [written]):
            whole, _ = score(ours, theirs, language)
            for value in (chrf(ours, theirs), *(whole[x][0]
                                                for x in ('chrF++', 'rouge_l_f', 'exact'))):
                assert value == pytest.approx(100)
            assert CHRF(word_order=2).corpus_score(ours, [theirs]).score < 99


def test_the_best_reference_counts():
    whole, _ = score(['蓝色的衣服'], [('红色', '蓝色的衣服')], 'zh')
    names = [x for x in whole if x.startswith(('chrF++', 'rouge', 'f1', 'exact', 'cmrc'))]
    assert len(names) == 8 and [whole[x][0] for x in names] == [pytest.approx(100)] * 8
    with pytest.raises(ValueError, match='reference 2 has no text'):
        score(['a', 'b'], ['a', (' ', '\u200b')], 'en')


def cmrc_rule(prediction, answers, marks):
    """F1 and exact match as github.com/ymcui/cmrc2018 defines them, in its own steps, but without
    splitting runs that are not Chinese into sentences."""
    def segments(text):
        found, run = [], ''
        for c in bared(text) + '一':
            if '\u4e00' <= c <= '\u9fa5':
                found += [*word_tokenize(run, preserve_line=True), c]
                run = ''
            else:
                run += c
        return found[:-1]

    def bared(text):
        return ''.join(c for c in text.lower().strip() if c not in marks)

    def common(a, b):
        return max((k for i in range(len(a)) for j in range(len(b)) for k in range(len(a) + 1)
                    if a[i:i + k] == b[j:j + k] and i + k <= len(a) and j + k <= len(b)), default=0)

    def overlap(a, b):
        n = common(a, b)
        return 2 * (n / len(a)) * (n / len(b)) / (n / len(a) + n / len(b)) if n else 0

    return (100 * max(overlap(segments(prediction), segments(a)) for a in answers),
            100 * any(bared(prediction) == bared(a) for a in answers))


def test_cmrc_scores_equal_the_official_rule():
    marks = '-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』'
    texts = [
        '红色，蓝色的', '《两本书》', '1,000米。', 'iPhone 5S和iPad', '35%（约）', "“It's”！", 'a-b', '约1.5万人……', '，',
        *sentences('zh')[::20], *(text[:12] for text in REAL['zh'])
    ]
    rng = random.Random(0)
    hypotheses, answers = zip(*((h.upper() + rng.choice(('', '。', '，', ',', '的')),
                                 found[:rng.randint(1, 2)]) for several in variants(texts, 30, 0.1)
                                for h, *found in zip(several[::3], several[1::3], several[2::3])
                                if found[0]))
    whole, each = score(hypotheses, answers, 'zh')
    expected = [cmrc_rule(normalize(h), [*map(normalize, found)], normalize(marks))
                for h, found in zip(hypotheses, answers)]
    assert [*zip(each['cmrc_f1'], each['cmrc_exact'])] == [pytest.approx(x) for x in expected]
    assert len(set(each['cmrc_f1'])) > 20 and 0 < whole['cmrc_exact'][0] < 100
    assert 'cmrc_f1' not in score(['书'], ['书'], 'ja')[0]


def test_units():
    assert units('བོད་ཡིག་གི་དེབ། ༡༢། OK',
                 'bo') == ['བོད', 'ཡིག', 'གི', 'དེབ', '།', '༡༢', '།', 'OK']
    assert units('Ол, екі  кітап!', 'kk') == ['Ол', ',', 'екі', 'кітап', '!']
    assert units('我有 2本。', 'zh') == ['我', '有', '2', '本', '。']
    assert units('ខ្ញុំមាន។', 'km') == ['ខ្ញុំ', 'មា', 'ន', '។']
    assert units('ئۇ «كۆردى»؟', 'ug') == ['ئۇ', '«', 'كۆردى', '»', '؟']
    assert units('a😀b', 'mn') == ['a', '😀', 'b'] and units('', 'bo') == [] and units(' ་',
                                                                                     'bo') == ['་']
    assert set(words_only(' '.join(string.printable),
                          'mn')) == set(string.ascii_lowercase + string.digits)
    every = ''.join(map(chr, range(0x20, 0x3000)))
    assert ''.join(units(every, 'mn')) == ''.join(
        c for c in every if not c.isspace() and c not in metrics.TSHEG)


def test_every_score_has_a_value():
    whole, each = score(['དེབ', '', '🙂'], ['ཁྱི', 'རྟ', 'ལུག'], 'bo')
    assert whole['empty'][0] == pytest.approx(100 / 3) and each['empty'] == [0, 100, 0]
    assert all(math.isfinite(x) for name in whole for x in whole[name])
    assert score(['་'], ['་'], 'bo')[0]['rouge_l_f'][0] == 100
    with pytest.raises(ValueError, match='reference 2 has no text'):
        score(['a', 'b'], ['a', ''], 'bo')


def test_shuffled():
    """Another text's references: what an output of the right kind reaches on a wrong text."""
    texts = sentences('bo')[:5]
    whole, each = score(texts, texts, 'bo')
    assert whole['chrF++'][0] == 100
    assert whole['shuffled'][0] == pytest.approx(chrf(texts, texts[2:] + texts[:2]))
    assert each['shuffled'][4] == pytest.approx(chrf(texts[4:], texts[1:2]))
    assert 'shuffled' not in score(texts[:1], texts[:1], 'bo')[0]


def test_wrong_script_and_repeats():
    hypotheses = [sentences(language)[1] for language in LANGUAGES] + ['', '2 + 2 = 4', 'ha ' * 9]
    _, each = score(hypotheses, sentences('kk')[:len(hypotheses)], 'kk')
    assert each['wrong_script'] == [100, 0, 0, 100, 100, 0, 0, 100]
    assert each['repeats'] == [0] * 7 + [100]
    japanese = ['東京都知事選挙', 'データセンター', 'これはほんです', '人々の本', 'data']
    _, each = score(japanese, japanese[:4] + ['ほん'], 'ja')
    assert each['wrong_script'] == [0, 0, 0, 0, 100]
    assert [*map(script, 'ー々')] == ['KATAKANA', 'CJK']
    for text, value in ('18 18 18 18', 100), ('18 18 18', 0):
        assert score([text], ['a'], 'kk')[0]['repeats'][0] == value
    assert [main_script(x) for x in ('བོད་', '书 a 本', '؟', 'Кк latin Ккк')] == [
        'TIBETAN', 'CJK', None, 'CYRILLIC'
    ]


def test_intervals():
    """For a mean of many texts the bootstrap gives nearly 1.96 standard errors to each side."""
    references = ['a b c d e f g h'] * 1000
    kept = np.random.default_rng(1).random(1000) < 0.3
    whole, _ = score([r if keep else 'x y' for r, keep in zip(references, kept)], references, 'mn')
    value, low, high = whole['f1']
    error = 1.96 * 100 * math.sqrt(value / 100 * (1 - value / 100) / 1000)
    assert (value - low, high - value) == pytest.approx((error, error), rel=0.15)
    assert all(low <= value <= high for value, low, high in whole.values())


def test_intervals_of_rates():
    """Table I of Newcombe 1998 (Statistics in Medicine 17), score interval without correction."""
    for k, n, low, high in (81, 263, 25.53,
                            36.62), (15, 148, 6.24, 16.05), (0, 20, 0, 16.11), (1, 29, 0.61, 17.18):
        assert wilson(k, n) == pytest.approx((100 * k / n, low, high), abs=0.005)
        assert wilson(n - k, n) == pytest.approx((100 - 100 * k / n, 100 - high, 100 - low),
                                                 abs=0.005)
    whole, _ = score(['两本书'] * 20, ['三只狗'] * 20, 'zh')
    rates = 'empty', 'repeats', 'wrong_script', 'exact', 'cmrc_exact'
    assert {whole[name] for name in rates} == {wilson(0, 20)} and whole['f1'] == (0, 0, 0)


def test_lookup(capsys):
    """The most similar source's translation; the README has what the tool prints for the UDHR."""
    tool = runpy.run_path(str(ROOT / 'tests/tools/lookup.py'))
    table = tool['Lookup']([('abcd', 'one'), ('abce', 'two'), ('abcefghijk', 'three')])
    assert [table.translate(text) for text in ('abce', 'bcd', 'fghi', '')] == [
        'two', 'one', 'three', 'one']
    with pytest.raises(ValueError, match='eval_translations=0: give a run that ends with chrF'):
        tool['main'](['config/tibetan.py', '--eval_translations=0'])
    tool['main'](['config/tibetan.py'])
    lines = capsys.readouterr().out.splitlines()
    scores = {line.split()[1]: line.split()[6].rstrip(',') for line in lines if 'look-up' in line}
    assert len(scores) == 8
    for is_chinese, what in (True, 'into Chinese'), (False, 'into the others'):
        found = sorted((x for name, x in scores.items() if name.endswith('-zh') == is_chinese),
                       key=float)
        readme = ' '.join((ROOT / 'README.md').read_text(encoding='utf-8').split())
        assert f'{found[0]} to {found[-1]} {what}' in readme


def test_baselines(tmp_path, capsys):
    """Outputs that need no model are scored as those of a run, on the same examples."""
    tool = runpy.run_path(str(ROOT / 'tests/tools/baselines.py'))
    assert tool['most_shared']('B?', 'a. A b, c d. B b.', 'kk') == 'B b.'
    titles = [{'article': f'Алма {i}. Нан бар.', 'title': f'Алма {i}!'} for i in range(80)]
    asked = [{'question': f'Алма {i}?', 'context': f'Нан бар. Алма {i}.', 'answer': f'Алма {i}.'}
             for i in range(80)]
    for name, found in ('summarise', titles), ('answer', asked):
        text = '\n'.join(map(json.dumps, found))
        (tmp_path / f'{name}.kk.jsonl').write_text(text, encoding='utf-8')
    for name, end in ('translate', ''), ('near', ' бар.'):       # the same pairs but for an end
        lines = ''.join(f'Алма {i * i}{end}\t书{i}\n' for i in range(80))
        (tmp_path / f'{name}.kk-zh.tsv').write_text(lines, encoding='utf-8')
    for task, test, learn, expected in (
            ('summarise.kk.jsonl', 'test', 'kk', {'sentence': 100, 'lead': 100}),
            ('answer.kk.jsonl', 'test', 'kk', {'sentence': 100}),
            ('translate.kk-zh.tsv', 'near', 'kk-zh', {'look-up': 100})):
        args = [f'--task={task.split(".")[0]}', f'--data={tmp_path}/{task}', f'--learn={learn}',
                '--test_examples=5', f'--out_dir={tmp_path}/{task}.out']
        is_near = test == 'near'
        tool['main']([*args, f'--test={tmp_path}/near.kk-zh.tsv' if is_near else '--test=',
                      f'--test_fraction={0 if is_near else 0.2}', '--val_fraction=0'])
        found = {path.parent.name: json.loads(path.read_text(encoding='utf-8'))['scores']
                 for path in (tmp_path / f'{task}.out').glob('*/metrics.json')}
        assert {name: scores[test][learn]['exact']['value']
                for name, scores in found.items()} == expected
        assert capsys.readouterr().out.count(f'{test}, {learn}: 5 examples') == len(expected)
    with pytest.raises(ValueError, match='nothing is held out'):
        tool['main']([*args, '--test_fraction=0'])
    across = '\n'.join(json.dumps({'question': f'谁来{i}', 'context': f'书在{i}。他来了{i}。',
                                   'answer': f'他来了{i}。'}) for i in range(80))
    (tmp_path / 'answer.zh-fr.jsonl').write_text(across, encoding='utf-8')
    tool['main'](['--task=answer', '--learn=zh-fr', f'--data={tmp_path}/answer.zh-fr.jsonl',
                  f'--out_dir={tmp_path}/across', '--test_fraction=0.2'])
    lines = (tmp_path / 'across/sentence/predictions.jsonl').read_text(encoding='utf-8')
    assert all(row['prediction'] == row['reference'] for row in map(json.loads, lines.splitlines()))


def test_differences_are_of_the_same_texts(tmp_path, capsys):
    """compare.py sees what separate intervals hide, and equals sacrebleu's difference."""
    tool = runpy.run_path(str(ROOT / 'tests/tools/compare.py'))
    references = [f'Алма {"нан " * (i % 7)}бар {i}' for i in range(60)]
    outputs = {'good': [text if i % 3 else 'сүт' for i, text in enumerate(references)],
               'worse': [text[:-3] if i % 3 else 'сүт' for i, text in enumerate(references)]}
    for name, texts in outputs.items():
        whole, each = score(texts, references, 'kk')
        examples = [Example('kk', (text,), text, ()) for text in references]
        write_scores([('test', 'kk', {}, examples, texts, whole, each)], FineTune(),
                     tmp_path / name)

    def compared(first, second):
        out = tmp_path / 'new/found.json'
        tool['main']([str(tmp_path / first), str(tmp_path / second), f'--out={out}'])
        return json.loads(out.read_text(encoding='utf-8'))['scores']['test']['kk']

    found = compared('good', 'worse')
    whole = [score(texts, references, 'kk')[0] for texts in outputs.values()]
    assert whole[0]['chrF++'][1] < whole[1]['chrF++'][2]         # separate intervals overlap
    assert 0 < found['chrF++']['low'] < found['chrF++']['value'] < found['chrF++']['high']
    theirs = [CHRF(word_order=2).corpus_score(texts, [references]).score
              for texts in outputs.values()]
    assert found['chrF++']['value'] == pytest.approx(theirs[0] - theirs[1], abs=1e-3)
    assert found['f1']['value'] == pytest.approx(whole[0]['f1'][0] - whole[1]['f1'][0], abs=1e-3)
    assert found['empty'] == {'value': 0, 'low': 0, 'high': 0}
    assert '  chrF++           +9.7  [ +8.1, +11.5]' in capsys.readouterr().out
    assert compared('worse', 'good')['chrF++']['value'] == -found['chrF++']['value']
    assert all(x['low'] == x['high'] == 0 for x in compared('good', 'good').values())

    text = (tmp_path / 'good/predictions.jsonl').read_text(encoding='utf-8')
    for changed in (text[:text.rindex('{"test"')],
                    text.replace('"others": []', '"others": ["нан"]', 1),
                    text.replace('"exact": 100.0, ', '', 1)):
        assert changed != text
        (tmp_path / 'worse/predictions.jsonl').write_text(changed, encoding='utf-8')
        for folders in ('good', 'worse'), ('worse', 'good'):
            with pytest.raises(ValueError, match='do not have the same examples of test'):
                compared(*folders)
    (tmp_path / 'worse/predictions.jsonl').write_text(text.replace(': "test"', ': "another"'),
                                                      encoding='utf-8')
    with pytest.raises(ValueError, match='worse have no test in common'):
        compared('good', 'worse')
    (tmp_path / 'worse/predictions.jsonl').write_text(text + '{}', encoding='utf-8')
    with pytest.raises(ValueError, match='line 61 is no output that finetune.py has scored'):
        compared('good', 'worse')


def test_lookup_in_the_same_languages(encoder_folder, tmp_path, capsys):
    """... although none of the two pairs bo-zh is held out."""
    for language, n in ('bo', 2), ('ug', 90):
        rows = [f'{a}\t{b}\n' for a, b in zip(sentences(language)[:n], sentences('zh'))]
        (tmp_path / f'web.{language}-zh.tsv').write_text(''.join(rows), encoding='utf-8')
    runpy.run_path(str(ROOT / 'tests/tools/lookup.py'))['main'](
        ['--dataset=text', f'--data_from={tmp_path}', '--languages=bo,ug,zh',
         f'--encoder={encoder_folder}', '--val_fraction=0.1', '--eval_translations=9'])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if 'look-up' in line]
    assert [line[1] for line in lines] == ['ug-zh', 'zh-ug']
    assert all(float(line[6].rstrip(',')) > 10 and float(line[8]) < 99 for line in lines)
