"""NTREX-128 (Federmann et al., 2022): 1,997 aligned sentences of news, to test translation with.

CC BY-SA 4.0, github.com/MicrosoftTranslator/NTREX. Fetched to data/ntrex/raw the first time, or
read from a folder that has zh and at least one other language, in files named as there or bo.txt,
ug.txt and so on.
"""
import urllib.request
from http.client import HTTPException
from itertools import zip_longest
from pathlib import Path

from data.dataset import main
from data.files import atomic_write, read_lines

RAW = Path(__file__).parent / 'raw'
NAMES = {'bo': 'ref.bod', 'ug': 'ref.uig', 'kk': 'ref.kaz', 'mn': 'ref.mon', 'zh': 'ref.zho-CN',
         'en': 'src.eng'}
URL = 'https://raw.githubusercontent.com/MicrosoftTranslator/NTREX/HEAD/NTREX-128/'


def fetch(source=None):
    """The files of all languages, or of those that `source` has.

    Raises FileNotFoundError that says what is missing.
    """
    if not source:
        files = [names(RAW, language)[1] for language in NAMES]
        for file in files:
            if not file.is_file():
                download(URL + file.name, file)
        return files
    folder = Path(source).expanduser()
    files = [file for language in NAMES for file in names(folder, language) if file.is_file()]
    found = {language_of(file) for file in files}
    if 'zh' not in found or len(found) < 2:
        zh = ' or '.join(file.name for file in names(folder, 'zh'))
        raise FileNotFoundError(f'{folder} needs {zh}, and the like of another language')
    return files


def names(folder, language):
    return folder / f'{language}.txt', folder / f'newstest2019-{NAMES[language]}.txt'


def language_of(file):
    return next(language for language in NAMES if file in names(file.parent, language))


def download(url, file):
    print(f'fetching {url}')
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=20) as response, atomic_write(file) as path:
            path.write_bytes(response.read())
    except (OSError, HTTPException) as e:
        raise FileNotFoundError(f'{url} could not be fetched ({e}); put the files of NTREX-128 '
                                'into a folder and name it with --test_from=FOLDER') from e


def documents(files):
    """A pair with zh for each other language, sentence by sentence."""
    languages = list(map(language_of, files))
    for n, row in enumerate(zip_longest(*map(read_lines, files)), 1):
        if None in row:
            raise ValueError(f'{files[row.index(None)]} ends before line {n}, and the others go on')
        texts = dict(zip(languages, row))
        zh = texts.pop('zh')
        for language, text in texts.items():
            if text.strip() and zh.strip():
                yield None, {language: text, 'zh': zh}


if __name__ == '__main__':
    main('ntrex')
