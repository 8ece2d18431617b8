"""Supervised examples, from source to target: translations, summaries, answers.

.tsv      two columns: source and target or, with a name such as web.bo-zh.tsv, a translation
.jsonl    one object per line: a text in two languages, `zh`, `bo`, or the fields of one of FORMS;
          several correct answers are a list

The file's name says the languages (news.bo.jsonl), or else --learn if it has one direction.
"""
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.dataset import unread
from data.files import is_text, read_json_object, read_lines, read_pairs
from data.heldout import SENTENCE_ENDS, Texts, digest
from data.languages import SCRIPTS, check_script
from data.metrics import words_only
from data.tokenizer import EOS, UNK, normalize

FORMS = ('question', 'context', 'answer'), ('source', 'target'), ('article', 'title')


@dataclass(frozen=True)
class Example:
    direction: str                                    # zh-bo; bo stands for bo-bo
    source: tuple                                     # one text, or question and context
    target: str
    texts: tuple                                      # decide if it is held out: `split_examples`
    others: tuple = ()                                # further correct answers
    key: str = ''                                     # examples of one are held out together


def languages_of(direction):
    """('zh', 'bo') of zh-bo, ('bo', 'bo') of bo."""
    source, _, target = direction.partition('-')
    return source, target or source


def read_examples(paths, directions):
    """The Examples in `directions` of files, and how many others have no text on one side.

    paths: file names, separated by commas. Raises OSError, and ValueError for an example of unknown
    form or language, texts in the wrong script, and a file without an example."""
    found, n_empty = [], 0
    for path in map(Path, paths.split(',')):
        there = [e for e in read_file(path.expanduser(), directions) if e.direction in directions]
        kept = [e for e in there if all(map(str.strip, e.source)) and normalize(e.target)]
        if not kept:
            raise ValueError(f'{path} has no example of {" ".join(directions)} with text; '
                             'see --learn, and the name of the file')
        for d in {e.direction for e in kept}:
            pairs = [(e.source[-1], e.target) for e in kept if e.direction == d][:1000]
            for texts, language in zip(zip(*pairs), languages_of(d)):
                check_script(texts, language, path)   # wrong for swapped columns
        found += kept
        n_empty += len(there) - len(kept)
    return found, n_empty


def read_file(path, directions):
    """Yields the Examples of a .tsv or .jsonl file; of translations only those in `directions`."""
    known = '-'.join(directions).split('-')
    named = path.stem.split('.')[-1].split('-')
    # news.fr.jsonl and web.xx-en.tsv name languages; dev.jsonl and ti-sum.jsonl do not
    is_named = re.fullmatch(r'.*\.([a-z]{2}|[a-z]{2,3}-[a-z]{2,3})', path.stem)
    if not is_named and not {*named} <= {*SCRIPTS, *known}:
        named = known if len(directions) == 1 else []
    if path.suffix == '.tsv':
        records = ((n, dict(zip(('source', 'target'), texts))) for n, texts in read_pairs(path))
    elif path.suffix == '.jsonl':
        records = ((n, read_json_object(line, f'{path}: line {n}'))
                   for n, line in enumerate(read_lines(path), 1) if line.strip())
    else:
        raise ValueError(f'{str(path)!r}: give --data=FILES of examples, .tsv or .jsonl, separated '
                         'by commas; data/README.md says how to convert others')
    for n, record in records:
        yield from make_examples(record, f'{path}: line {n}', named, directions)


def make_examples(record, where, languages, directions):
    """The Examples of a record {field: value}: one, or for a translation those in `directions`.

    languages: of source and target, unless the fields are languages."""
    known = {*languages, *'-'.join(directions).split('-')}
    texts = {x: strings_of(record, x, where) for x in known & record.keys()}
    if len(texts) < 2:
        form = next((form for form in FORMS if record.keys() >= {*form}), None)
        if not form:
            raise ValueError(f'{where} has {", ".join(map(repr, record)):.60}, not the fields '
                             f'{" or ".join(map(", ".join, FORMS))}')
        if not languages:
            raise ValueError(f'{where}: nothing says which of {" ".join(directions)} it is; name '
                             'the file like news.bo.jsonl')
        *sources, targets = [strings_of(record, field, where) for field in form]
        if max(map(len, sources)) > 1:
            raise ValueError(f'{where}: a list of strings is for several correct answers; expected '
                             f'one string for {" and ".join(form[:-1])}')
        if len(sources) > 1 or len({*languages}) == 1:
            source, article = tuple(text for [text] in sources), record.get('article_id')
            return [Example('-'.join(languages), source, targets[0], source[-1:],
                            tuple(targets[1:]), '' if article is None else str(article))]
        texts = {languages[0]: sources[0], languages[1]: targets}
    sides = tuple(text for language in sorted(texts) for text in texts[language] if text.strip())
    return [Example(f'{source}-{target}', (texts[source][0],), texts[target][0], sides,
                    tuple(texts[target][1:]))
            for source, target in map(languages_of, directions)
            if source != target and {source, target} <= texts.keys()]


def strings_of(record, field, where):
    """The distinct strings of a field, one or more."""
    strings = record[field] if isinstance(record[field], list) else [record[field]]
    if not all(map(is_text, strings)):
        raise ValueError(f'{where}: {field} is {ascii(record[field]):.60}, expected a string')
    return list(dict.fromkeys(strings)) or ['']


def split_examples(examples, val_fraction, test_fraction):
    """Returns {'train': [...], 'val': ..., 'test': ...} and the number of examples left out.

    A hash of its key, or else of its last text, decides the part of an example, as in
    data.heldout.splits with the sum of the fractions. Examples that share a text
    (data.heldout.Texts) with a test example are left out, and of training examples also those that
    share one with a validation example."""
    parts, held_out = {'train': [], 'val': [], 'test': []}, Texts()
    for e in examples:
        place = digest(e.key or e.texts[-1]) / 2**64
        is_held_out, is_test = place < test_fraction + val_fraction, place < test_fraction
        parts['test' if is_test else 'val' if is_held_out else 'train'].append(e)
    for part in 'test', 'val', 'train':
        parts[part] = [e for e in parts[part] if not any(text in held_out for text in e.texts)]
        held_out.update(text for e in parts[part] for text in e.texts if part != 'train')
    return parts, len(examples) - sum(map(len, parts.values()))


def truncate(ids, limit):
    """A source's ids (n,), truncated to at most `limit`, with </s> kept."""
    return ids if len(ids) <= limit else np.append(ids[:limit - 1], EOS)


def rotate_context(question, context, language):
    """A context from the sentence on that has most of the question's units, then what is before:
    so the answer is often at the beginning, and is seldom cut off with the end of a long one."""
    parts = [part for line in context.splitlines(keepends=True) or ['']
             for part in SENTENCE_ENDS.split(line)]
    asked = {*words_only(question, language)}
    shared = [len(asked & {*words_only(part, language)}) for part in parts]
    first = shared.index(max(shared))
    return f'{"".join(parts[first:])} {"".join(parts[:first])}'


class Examples:
    """Examples of one direction as token ids: a training task for data/batches.py.

    Sources are cut to max_source_len tokens, question and context together, after `rotate_context`
    if that is set; `n_cut` counts them. `n_long` targets have over max_target_len tokens: these
    examples are not learned. `n_inside` targets are a part of the rest of the source, letter for
    letter. `n_unread` examples have a text of which the vocabulary lacks more than a quarter."""
    def __init__(self, direction, examples, tokenizer, cfg, learn=True):
        self.name, self.direction = f'{cfg.task} {direction}', direction
        self.source, self.target = languages_of(direction)
        self.examples, self.ids = [], []
        self.n_cut = self.n_long = self.n_inside = self.n_unread = 0
        for e in examples:
            texts = *e.source, e.target
            if len(e.source) > 1 and cfg.rotate_context:
                texts = e.source[0], rotate_context(*e.source, self.source), e.target
            *sources, target = map(tokenizer.encode, texts)
            is_unread = any(unread(tokenizer, *pair) > 0.25
                            for pair in zip(texts, (*sources, target)))
            source = tokenizer.add_special_tokens(self.source, *sources)
            target = tokenizer.add_special_tokens(self.target, target)
            self.n_long += len(target) > cfg.max_target_len
            if not learn or len(target) <= cfg.max_target_len:
                self.n_unread += is_unread
                self.n_cut += len(source) > cfg.max_source_len
                source = truncate(source, cfg.max_source_len)
                self.n_inside += UNK not in target and (
                    tokenizer.decode(target) in tokenizer.decode(source))
                self.examples.append(e)
                self.ids.append((source, target))
        self.lengths = np.array([[len(s), len(t)] for s, t in self.ids]).reshape(-1, 2).T

    def __len__(self):
        return len(self.ids)

    def example(self, i, rng=None):
        return self.ids[i]

    val_example = example
