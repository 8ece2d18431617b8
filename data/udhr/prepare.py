"""The Universal Declaration of Human Rights in bo ug kk mn zh en, about 80 paragraphs each.

Public domain, from the UDHR in Unicode project (github.com/eric-muller/udhr). A line of the files
is a paragraph; an empty line ends the title, the preamble and each of the 30 articles.
"""
from pathlib import Path


def fetch(source=None):
    """The six files, which are in this folder. Raises ValueError for another source."""
    if source:
        raise ValueError(f'data_from={source}: udhr is included; --dataset=text reads your files')
    return sorted(Path(__file__).parent.glob('*.txt'))


def documents(files):
    """A document per article and language, and a pair with zh per paragraph; key: the article."""
    texts = {file.stem: file.read_text(encoding='utf-8').strip().split('\n\n') for file in files}
    for i, zh in enumerate(texts['zh']):
        for language, articles in texts.items():
            yield f'section {i}', {language: articles[i]}
            pairs = zip(articles[i].split('\n'), zh.split('\n'))
            if articles[i].count('\n') != zh.count('\n'):   # the preamble, in some languages
                pairs = [(articles[i], zh)]
            for text, translation in pairs if language != 'zh' else ():
                yield f'section {i}', {language: text, 'zh': translation}
