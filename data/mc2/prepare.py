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


def fetch(source):
    """The corpus's files below `source`."""
    paths = sorted(Path(source).expanduser().rglob('*')) if source else []
    if not any(map(crawled, paths)):
        raise FileNotFoundError(f'{source or "dataset=mc2"} has no bo-*.jsonl, ug-*.jsonl ...: '
                                'download huggingface.co/datasets/pkupie/mc2_corpus and name its '
                                'folder with --data_from=PATH')
    return [path for path in paths if crawled(path) or is_news(path) or text.languages(path)]


def crawled(path):
    """A match, whose group 1 is the language, for a file of the corpus itself."""
    return re.fullmatch(r'(bo|ug|kk|mn)-.*\.jsonl', path.name)


def is_news(path):
    return path.suffix == '.txt' and path.parent.parent.name == 'THUCNews'


def documents(files):
    """(None, {language: text}) for each document or pair."""
    for path in files:
        if match := crawled(path):
            yield from text.checked(text.read_jsonl(path), [match[1]], path)
        elif not is_news(path):
            yield from text.documents([path])
        elif news := '\n'.join(read_lines(path)).strip():
            yield None, {'zh': news}


if __name__ == '__main__':
    main('mc2')
