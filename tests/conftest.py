"""Small real inputs: sentences in five languages, a vocabulary trained on them, random encoders."""
import os
import sys
from pathlib import Path

# the models are tiny: more threads only wait, here and in commands
os.environ['OMP_NUM_THREADS'] = '1'

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

from data.files import SENTENCEPIECE  # noqa: E402
from data.tokenizer import BOS, EOS, PAD, Tokenizer  # noqa: E402
from data.vocabulary import train_sentencepiece  # noqa: E402
from model import SWCM, XLMR, SWCMConfig  # noqa: E402

LANGUAGES = ('bo', 'kk', 'mn', 'ug', 'zh')
# two sentences, "I have N X." and "He saw N X.", with the words for N and X
SENTENCES = {
    'bo': (('ང་ལ་{x}་{n}་ཡོད།', 'ཁོས་{x}་{n}་མཐོང་།'), 'གཉིས གསུམ བཞི ལྔ དྲུག བདུན བརྒྱད དགུ བཅུ',
           'དེབ ཁྱི རྟ ཁང་པ ལུག'),
    'kk': (('Менде {n} {x} бар.', 'Ол {n} {x} көрді.'),
           'екі үш төрт бес алты жеті сегіз тоғыз он', 'кітап ит ат үй қой'),
    'mn': (('Надад {n} {x} бий.', 'Тэр {n} {x} харсан.'),
           'хоёр гурван дөрвөн таван зургаан долоон найман есөн арван',
           'ном нохой морь байшин хонь'),
    'ug': (('مەندە {n} {x} بار.', 'ئۇ {n} {x} كۆردى.'),
           'ئىككى ئۈچ تۆت بەش ئالتە يەتتە سەككىز توققۇز ئون',
           'كىتاب ئىت ئات ئۆي قوي'),
    'zh': (('我有{n}{x}。', '他看见了{n}{x}。'), '两 三 四 五 六 七 八 九 十', '本书 只狗 匹马 座房子 只羊'),
}
# text that trips careless code
HARD = ['', ' ', '  two  spaces ', 'Ａｂｃ ﬁne ½', '<s> </s> <mask> <pad>', '3.5 Tb', '😀 བོད།',
        '\u200bx\u00a0y', 'عربي كىتاب', 'རྒྱལ་ཁབ་ཀྱི༎ །', '我有两本书。他看见了', 'Ол екі кітап көрді.',
        'Ё й ё', '＜s＞']

# ways to make a decoder from an encoder
CHOICES = [dict(insert_every=3), dict(), dict(insert_every=1, inserted='duplicate'),
           dict(share='none'), dict(share='tie'), dict(share='alternate', insert_every=1),
           dict(head='untied'), dict(layer='normal')]


def sentences(language):
    """90 sentences, the same in each language."""
    forms, numbers, things = SENTENCES[language]
    return [form.format(n=n, x=x) for form in forms for n in numbers.split()
            for x in things.split()]


def write_corpus(folder):
    """Files for data/text: documents of nine sentences in each language, and pairs with zh."""
    for language in LANGUAGES:
        lines = sentences(language)
        documents = [' '.join(lines[i::15]) for i in range(15)]
        (folder / f'{language}.txt').write_text('\n'.join(documents) + '\n', encoding='utf-8')
        if language != 'zh':
            rows = [f'{a}\t{b}\n' for a, b in zip(lines, sentences('zh'))]
            (folder / f'some.{language}-zh.tsv').write_text(''.join(rows), encoding='utf-8')


def make_pieces():
    """A SentencePiece model of the sentences, as bytes."""
    lines = [line for language in LANGUAGES for line in sentences(language)]
    return train_sentencepiece(lines, [], 295)


def make_encoder(folder, pieces):
    """A random encoder of 4 layers in Hugging Face's format; weights have a trained one's size."""
    torch.manual_seed(0)
    model = XLMR(SWCMConfig(vocab_size=Tokenizer(pieces).vocab_size, n_layer=4, n_head=4, n_embd=32,
                            n_ffn=64, n_positions=66), pieces)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    model.save(folder)
    assert (folder / SENTENCEPIECE).exists()


def make_model(encoder_folder, **options):
    torch.manual_seed(1)
    return SWCM.from_encoder(encoder_folder, languages=('bo', 'zh'), **options)


def make_sources(model, lengths=(20, 13, 7, 1), seed=0):
    """Random sources with <s> <bo> ... </s>, padded: (B,S)."""
    g, n_ids = torch.Generator().manual_seed(seed), model.config.vocab_size
    src = torch.full((len(lengths), max(lengths) + 3), PAD)
    for row, n in zip(src, lengths):
        ids = torch.randint(4, n_ids - 1, (n,), generator=g).tolist()
        row[:n + 3] = torch.tensor([BOS, n_ids, *ids, EOS])
    return src


def pytest_collection_modifyitems(items):
    """The walkthrough runs first."""
    items.sort(key=lambda item: item.path.name != 'test_walkthrough.py')


@pytest.fixture(scope='session')
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp('corpus')
    write_corpus(folder)
    return folder


@pytest.fixture(scope='session')
def pieces():
    return make_pieces()


@pytest.fixture(scope='session')
def tokenizer(pieces):
    return Tokenizer(pieces, LANGUAGES)


@pytest.fixture(scope='session')
def encoder_folder(tmp_path_factory, pieces):
    folder = tmp_path_factory.mktemp('encoder')
    make_encoder(folder, pieces)
    return folder
