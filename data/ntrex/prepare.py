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
from data.files import atomic_dir, read_lines

RAW = Path(__file__).parent / 'raw'
NAMES = {language: f'newstest2019-{name}.txt' for language, name in (
    ('bo', 'ref.bod'), ('ug', 'ref.uig'), ('kk', 'ref.kaz'), ('mn', 'ref.mon'),
    ('zh', 'ref.zho-CN'), ('en', 'src.eng'))}
URL = 'https://raw.githubusercontent.com/MicrosoftTranslator/NTREX/HEAD/NTREX-128/'


def fetch(source=None):
    """The files of all languages, or of those in `source`. Raises FileNotFoundError."""
    if not source and not RAW.is_dir():
        download()
    folder = Path(source or RAW).expanduser()
    files = [folder / file for language, name in NAMES.items() for file in (f'{language}.txt', name)
             if (folder / file).is_file()]
    if not {*map(language_of, files)} > {'zh'}:
        raise FileNotFoundError(f'{folder} needs zh.txt or {NAMES["zh"]}, and the like of another '
                                'language')
    return files


def language_of(file):
    return next(language for language in NAMES if file.name in (f'{language}.txt', NAMES[language]))


def download():
    print('fetching NTREX-128')
    try:
        with atomic_dir(RAW) as folder:
            for name in NAMES.values():
                with urllib.request.urlopen(URL + name, timeout=20) as response:
                    (folder / name).write_bytes(response.read())
    except (OSError, HTTPException) as e:
        raise FileNotFoundError(f'NTREX-128 could not be fetched ({e}); put its files into a '
                                'folder and name it with --test_from=FOLDER') from e


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
