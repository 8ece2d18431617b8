"""NTREX-128 (Federmann et al., 2022): 1,997 aligned sentences of news, to test translation with.

CC BY-SA 4.0, github.com/MicrosoftTranslator/NTREX. Fetched to data/ntrex/raw the first time, or
read from a folder of zh and other languages, in files named as there or bo.txt, zh.txt and so on.
"""
from itertools import zip_longest
from pathlib import Path

from data.files import atomic_dir, read_lines
from data.udhr.prepare import download

RAW = Path(__file__).parent / 'raw'
URL = 'https://raw.githubusercontent.com/MicrosoftTranslator/NTREX/HEAD/NTREX-128/'
LANGUAGES = {'newstest2019-ref.bod.txt': 'bo', 'newstest2019-ref.uig.txt': 'ug',
             'newstest2019-ref.kaz.txt': 'kk', 'newstest2019-ref.mon.txt': 'mn',
             'newstest2019-ref.zho-CN.txt': 'zh', 'newstest2019-src.eng.txt': 'en'}


def fetch(source=None):
    """The files of all languages, or of those in `source`. Raises OSError."""
    if not source and not RAW.is_dir():
        print('fetching NTREX-128')
        with atomic_dir(RAW) as folder:
            download(URL, LANGUAGES, folder)
    folder = Path(source or RAW).expanduser()
    files = [folder / file for name, language in LANGUAGES.items()
             for file in (f'{language}.txt', name) if (folder / file).is_file()]
    if not {*map(language_of, files)} > {'zh'}:
        raise FileNotFoundError(f'{folder} needs zh.txt and another language, such as bo.txt')
    return files


def language_of(file):
    return LANGUAGES.get(file.name, file.stem)


def documents(files):
    """A pair with zh for each other language, sentence by sentence."""
    for n, row in enumerate(zip_longest(*map(read_lines, files)), 1):
        if None in row:
            raise ValueError(f'{files[row.index(None)]} ends before line {n}, and the others go on')
        texts = dict(zip(map(language_of, files), row))
        zh = texts.pop('zh')
        for language, text in texts.items():
            if text.strip() and zh.strip():
                yield None, {language: text, 'zh': zh}
