"""MC2 (Zhang et al., ACL 2024): Tibetan, Uyghur, Kazakh in Arabic script, Mongolian in traditional script.

The paper's corpus. huggingface.co/datasets/pkupie/mc2_corpus asks you to accept its terms, so fetch it yourself and
name the folder with --data_from=PATH. Its files are read as they come (bo-*.jsonl, ug-*.jsonl, kk-*.jsonl,
mn-*.jsonl), and beside them what data/text reads: zh.txt or zh.jsonl (the paper: THUCNews) and pairs like bo-zh.tsv.
THUCNews, one file a document in THUCNews/*/*.txt, is read from a folder of that name.
"""
from pathlib import Path

from data.text.prepare import checked, languages, objects
from data.text.prepare import documents as read
from data.tokens import main, read_lines


def fetch(source):
    """The corpus's files below `source`."""
    if not source or not Path(source).expanduser().is_dir():
        raise FileNotFoundError(f'{source or "dataset=mc2"}: download huggingface.co/datasets/pkupie/mc2_corpus and '
                                'name its folder with --data_from=PATH')
    folder = Path(source).expanduser()
    files = sorted(p for p in folder.rglob('*') if crawl_language(p) or languages(p) or is_news(p))
    if not any(map(crawl_language, files)):
        raise FileNotFoundError(f'{folder} has none of bo-*.jsonl, ug-*.jsonl, kk-*.jsonl, mn-*.jsonl')
    return files


def crawl_language(path):
    name = path.name.partition('-')[0]
    return name if path.suffix == '.jsonl' and '-' in path.name and name in ('bo', 'ug', 'kk', 'mn') else None


def is_news(path):
    return path.suffix == '.txt' and path.parent.parent.name == 'THUCNews'


def documents(files):
    """(None, {language: text}) for each document or pair."""
    for path in files:
        if lang := crawl_language(path):
            yield from checked(objects(path), [lang], path)
        elif is_news(path):
            if text := '\n'.join(read_lines(path)).strip():
                yield None, {'zh': text}
        else:
            yield from read([path])


if __name__ == '__main__':
    main('mc2')
