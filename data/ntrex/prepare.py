"""NTREX-128 (Federmann et al., 2022): 1,997 aligned sentences of news, for tests of translation, not for training.

CC BY-SA 4.0, github.com/MicrosoftTranslator/NTREX. Fetched to data/ntrex/raw the first time, or read from a folder
that has zh and at least one other language, in files named as there or bo.txt, ug.txt and so on.
"""
import urllib.request
from http.client import HTTPException
from itertools import zip_longest
from pathlib import Path

from data.files import replacing
from data.tokens import main, read_lines

RAW = Path(__file__).parent / 'raw'
NAMES = {'bo': 'ref.bod', 'ug': 'ref.uig', 'kk': 'ref.kaz', 'mn': 'ref.mon', 'zh': 'ref.zho-CN', 'en': 'src.eng'}
URL = 'https://raw.githubusercontent.com/MicrosoftTranslator/NTREX/HEAD/NTREX-128/'


def fetch(source=None):
    """The files of all languages, or those that `source` has. Raises FileNotFoundError that says what lacks."""
    if source:
        folder = Path(source).expanduser()
        files = [file for lang in NAMES for file in names(folder, lang) if file.is_file()]
        found = set(map(language, files))
        if 'zh' not in found or len(found) < 2:
            raise FileNotFoundError(f'{folder} needs {" or ".join(f.name for f in names(folder, "zh"))}, and the like '
                                    'of another language')
        return files
    files = [names(RAW, lang)[1] for lang in NAMES]
    for file in files:
        if not file.is_file():
            download(URL + file.name, file)
    return files


def names(folder, lang):
    return folder / f'{lang}.txt', folder / f'newstest2019-{NAMES[lang]}.txt'


def language(file):
    return next(lang for lang in NAMES if file in names(file.parent, lang))


def download(url, file):
    print(f'fetching {url}')
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=20) as response, replacing(file) as path:
            path.write_bytes(response.read())
    except (OSError, HTTPException) as e:
        raise FileNotFoundError(f'{url} could not be fetched ({e}); put the files of NTREX-128 into a folder and name '
                                'it with --test_from=FOLDER') from e


def documents(files):
    """A pair with zh for each other language, sentence by sentence."""
    languages = list(map(language, files))
    for n, row in enumerate(zip_longest(*map(read_lines, files)), 1):
        if None in row:
            raise ValueError(f'{files[row.index(None)]} ends before line {n}, and the others go on')
        texts = dict(zip(languages, row))
        for lang in languages:
            if lang != 'zh' and texts[lang].strip() and texts['zh'].strip():
                yield None, {lang: texts[lang], 'zh': texts['zh']}


if __name__ == '__main__':
    main('ntrex')
