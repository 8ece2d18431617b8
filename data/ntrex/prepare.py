"""NTREX-128 (Federmann et al., 2022): 1,997 aligned sentences of news, for tests of translation, not for training.

CC BY-SA 4.0, github.com/MicrosoftTranslator/NTREX. Fetched to data/ntrex/raw the first time, or read from a folder
with its files, named as there or bo.txt, ug.txt and so on.
"""
import urllib.request
from itertools import zip_longest
from pathlib import Path

from data.files import replacing
from data.tokens import main, read_lines

RAW = Path(__file__).parent / 'raw'
NAMES = {'bo': 'bod', 'ug': 'uig', 'kk': 'kaz', 'mn': 'mon', 'zh': 'zho-CN', 'en': 'eng'}
URL = 'https://raw.githubusercontent.com/MicrosoftTranslator/NTREX/HEAD/NTREX-128/'


def fetch(source=None):
    """The six files, in the order of NAMES. Raises FileNotFoundError that says what to do."""
    folder = Path(source).expanduser() if source else RAW
    files = []
    for lang, name in NAMES.items():
        theirs = f'newstest2019-{"src" if lang == "en" else "ref"}.{name}.txt'
        file = folder / theirs
        if source is None and not file.is_file():
            download(URL + theirs, file)
        elif (folder / f'{lang}.txt').is_file():
            file = folder / f'{lang}.txt'
        elif not file.is_file():
            raise FileNotFoundError(f'{folder} has neither {theirs} nor {lang}.txt')
        files.append(file)
    return files


def download(url, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=20) as response, replacing(file) as path:
            path.write_bytes(response.read())
    except OSError as e:
        raise FileNotFoundError(f'{url} could not be fetched ({e}); put the files of NTREX-128 into a folder and '
                                'name it') from e


def documents(files):
    """A pair with zh for each other language, sentence by sentence."""
    texts = dict(zip(NAMES, map(read_lines, files)))
    for n, row in enumerate(zip_longest(*texts.values()), 1):
        if None in row:
            raise ValueError(f'{files[row.index(None)]} ends before line {n}, and the others go on')
        sentence = dict(zip(texts, row))
        for lang in NAMES:
            if lang != 'zh':
                yield None, {lang: sentence[lang], 'zh': sentence['zh']}


if __name__ == '__main__':
    main('ntrex')
