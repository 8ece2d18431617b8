"""MC2 (Zhang et al., ACL 2024): Tibetan, Uyghur, Kazakh in Arabic, Mongolian in traditional script.

The paper's corpus. huggingface.co/datasets/pkupie/mc2_corpus asks you to accept its terms, so fetch
it yourself and name the folder with --data_from=PATH. Its files are read as they come (bo-*.jsonl,
ug-*.jsonl, kk-*.jsonl, mn-*.jsonl), and beside them what data/text reads: zh.txt or zh.jsonl (the
paper: THUCNews) and pairs like bo-zh.tsv. THUCNews, one file a document in THUCNews/*/*.txt, is
read from a folder of that name.
"""
import re
from pathlib import Path

from data.dataset import main
from data.files import read_lines
from data.text import prepare as text


def languages(path):
    """('bo',) of the corpus's own files and of those that data/text reads; () for others."""
    crawled = re.fullmatch(r'(bo|ug|kk|mn)-.*\.jsonl', path.name)
    return crawled.groups() if crawled else text.languages(path)


def is_news(path):
    return path.suffix == '.txt' and path.parent.parent.name == 'THUCNews'


def fetch(source):
    """The files below the folder `source`."""
    paths = sorted(Path(source).expanduser().rglob('*')) if source else []
    if not any(languages(path) != text.languages(path) for path in paths):
        raise FileNotFoundError(f'{source or "dataset=mc2"} has no bo-*.jsonl, ug-*.jsonl ...: '
                                'download huggingface.co/datasets/pkupie/mc2_corpus and name its '
                                'folder with --data_from=PATH')
    return [path for path in paths if is_news(path) or languages(path)]


def documents(files):
    """(None, {language: text}) for each document or pair."""
    for path in files:
        if not is_news(path):
            yield from text.read_file(path, languages(path))
        elif news := '\n'.join(read_lines(path)).strip():
            yield None, {'zh': news}


if __name__ == '__main__':
    main('mc2')
