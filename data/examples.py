"""Supervised examples, source to target: summaries, answers, translations.

Two kinds of file are read; data/{cmrc,lcsts,tibetanqa}/prepare.py convert others.

.tsv      two columns: source and target or, with a name such as web.bo-zh.tsv, a translation
.jsonl    an object a line: `source`, `target`; or `article`, `title`; or `question`, `context`,
          `answer` (a list where several are right); or a text in two languages, `zh` and `bo`, also
          as `zh-CN` and `bod_Tibt`, and inside `translation`

The languages are those of an object's `lang`, or `source_lang` and `target_lang`; else those of the
file's name (news.bo.jsonl); else those of the settings, if they have one direction only.
"""
import argparse
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files import atomic_write, is_text, read_json_object, read_lines, read_pairs, shorten
from data.heldout import Texts, digest
from data.languages import check_script, language_code
from data.tokenizer import EOS, normalize

FIELDS = {                                            # our name: the names in data sets
    'question': ('question', 'query_text', '问题'),
    'context': ('context', 'context_text', 'passage', '段落'),
    'answer': ('answer', 'answers', '答案'),
    'source': ('source', 'article', 'text', 'content'),
    'target': ('target', 'title', 'summary')}
NAME = re.compile(r'(?:.*\.)?([a-z]{2,3})(?:-([a-z]{2,3}))?\.\w+')


@dataclass(frozen=True)
class Example:
    direction: str                                    # zh-bo; bo stands for bo-bo
    source: tuple                                     # one text, or question and context
    target: str
    key: str                                          # its hash says whether this is held out
    texts: tuple                                      # not learned if one of them is held out
    others: tuple = ()                                # further answers that count as right


def languages_of(direction):
    """('zh', 'bo') of zh-bo, ('bo', 'bo') of bo."""
    source, _, target = direction.partition('-')
    return source, target or source


def direction(source, target):
    """The inverse of languages_of."""
    return source if source == target else f'{source}-{target}'


def read_examples(paths, directions):
    """Reads the Examples in `directions` from files, and counts those left out, by reason.

    paths: file names, separated by commas. Returns (list, Counter). Raises FileNotFoundError, and
    ValueError that names file and line: for an example that lacks a field or whose language nothing
    says, for texts in the script of another language, and for a file without an example asked for.
    """
    found, left_out = [], Counter()
    for path in (Path(part.strip()).expanduser() for part in paths.split(',')):
        named = named_languages(path, directions)
        examples = [example for where, record in read_records(path, named)
                    for example in make_examples(record, where, named, directions)]
        if not examples:
            raise ValueError(f'{path} has no examples')
        if not any(e.direction in directions for e in examples):
            why = ', as its name says (or rename it),' if named else ''
            raise ValueError(f'{path}: {len(examples):,} examples of {examples[0].direction}{why} '
                             f'and none of {" ".join(directions)}')
        reasons = [reason_to_leave_out(e, directions) for e in examples]
        left_out.update(filter(None, reasons))
        kept = [e for e, reason in zip(examples, reasons) if not reason]
        check_scripts(kept, path)
        found += kept
    return found, left_out


def named_languages(path, directions):
    """('bo',) or ('bo', 'zh') that the name of a file says; () where it says none."""
    match = NAME.fullmatch(path.name)
    found = tuple(filter(None, match.groups())) if match else ()
    known = '-'.join(directions).split('-')
    return found if '.' in path.stem or {*found} <= {*known} else ()     # ti-sum.jsonl says none


def read_records(path, named):
    """Yields (where it stands, {field: value}) for each record of a .tsv or .jsonl file."""
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist or is a folder; give files, separated by '
                                'commas')
    if path.suffix not in ('.tsv', '.jsonl'):
        raise ValueError(f'{path}: examples come as .tsv or .jsonl; data/cmrc, data/lcsts and '
                         'data/tibetanqa convert other files')
    if path.suffix == '.tsv':
        columns = named if len(set(named)) == 2 else ('source', 'target')
        for n, texts in read_pairs(path, named):
            yield f'{path}: line {n}', dict(zip(columns, texts))
        return
    for n, line in enumerate(read_lines(path), 1):
        if line.strip():
            yield f'{path}: line {n}', read_json_object(line, f'{path}: line {n}')


def reason_to_leave_out(example, directions):
    if example.direction not in directions:
        return f'{example.direction}, which is not asked for'
    if not all(text.strip() for text in example.source):
        return 'empty source'
    return None if normalize(example.target) else 'empty target'         # as of U+200B


def check_scripts(examples, path):
    """Raises ValueError for texts in the script of another language, as of swapped columns."""
    for d in {e.direction for e in examples}:
        source, target = languages_of(d)
        first = [e for e in examples if e.direction == d][:1000]
        check_script([e.source[-1][:1000] for e in first], source, path)
        check_script([e.target[:1000] for e in first], target, path)


def make_examples(record, where, named, directions):
    """The examples of a record {field: value}: one, or for a text in several languages one for each
    of `directions` that it has. named: the languages that the file's name says."""
    known = {*named, *'-'.join(directions).split('-')}
    if isinstance(record.get('translation'), dict):   # as on Hugging Face's hub
        record = {**record, **record['translation']}
    fields = {language_code(name): name for name in record} | {name: name for name in record}
    texts = {language: strings_of(record, fields[language], where)[0]
             for language in sorted(known & fields.keys())}
    if len(texts) > 1:
        pairs = [languages_of(d) for d in directions]
        asked = [pair for pair in pairs if pair[0] != pair[1] and texts.keys() >= {*pair}]
        return [translation(texts, *pair) for pair in asked or [tuple(texts)[:2]]]
    source_lang, target_lang = record_languages(record, where, named, directions)
    *source, (target, *others) = texts_by_field(record, where).values()
    source = tuple(texts[0] for texts in source)
    if source_lang != target_lang and len(source) == 1:
        texts = {source_lang: source[0], target_lang: target}
        return [translation(texts, source_lang, target_lang)]
    return [Example(direction(source_lang, target_lang), source, target, source[-1], source[-1:],
                    tuple(others))]


def record_languages(record, where, named, directions):
    """(source, target) languages: of the record itself, the file's name, or the only direction."""
    own = [record.get(f'{side}_lang') or record.get('lang') for side in ('source', 'target')]
    if all(own):
        return [language_code(str(name)) for name in own]
    if named:
        return named[0], named[-1]
    if len(directions) == 1:
        return languages_of(directions[0])
    raise ValueError(f'{where}: nothing says which of {" ".join(directions)} it is; give it a '
                     '"lang", or name the file like news.bo.jsonl')


def texts_by_field(record, where):
    """{field: strings} of question, context and answer, or of source and target."""
    is_question = any(name in record for name in FIELDS['question'])
    found = {}
    for field in ('question', 'context', 'answer') if is_question else ('source', 'target'):
        there = [name for name in FIELDS[field] if record.get(name) is not None]
        if not there:
            raise ValueError(f'{where} has no {field} ({", ".join(FIELDS[field])}); its fields: '
                             f'{shorten(", ".join(map(ascii, record)))}')
        found[field] = strings_of(record, there[0], where)
    return found


def strings_of(record, name, where):
    """The different strings of a field, one or more; of several answers also in SQuAD's form."""
    value = record[name].get('text') if isinstance(record[name], dict) else record[name]
    values = value if isinstance(value, list) else [value]
    strings = [item.get('text') if isinstance(item, dict) else item for item in values]
    for string in strings:
        if not isinstance(string, str) or not is_text(string):            # half an emoji is not
            raise ValueError(f'{where}: {name} is {shorten(ascii(record[name]))}, expected a '
                             'string of whole characters')
    return list(dict.fromkeys(strings)) or ['']


def translation(texts, source, target):
    """The example of {language: text}. data/heldout.py chooses by the same key."""
    there = {language: text for language, text in texts.items() if text.strip()}
    key = there[max(there)] if there else ''
    return Example(f'{source}-{target}', (texts[source],), texts[target], key, (*there.values(),))


def convert(read, about, argv):
    """The command of a converter, data/NAME/prepare.py: FILE... --out OUT.jsonl.

    read(path) yields (where in the file, {field: value}). Raises ValueError that names file and
    place, and then leaves no file.
    """
    parser = argparse.ArgumentParser(description=about,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', type=Path)
    parser.add_argument('--out', required=True, type=Path, help='such as NAME.zh.jsonl')
    args = parser.parse_args(argv)
    if args.out.suffix != '.jsonl':
        raise ValueError(f'--out={args.out}: give it a name that ends in .jsonl')
    n = 0
    with atomic_write(args.out) as temporary:
        with open(temporary, 'w', encoding='utf-8') as file:
            for path in args.files:
                for n, (place, record) in enumerate(read(path), n + 1):
                    texts = texts_by_field(record, f'{path}: {place}')
                    fields = {name: t if len(t) > 1 else t[0] for name, t in texts.items()}
                    file.write(json.dumps(fields, ensure_ascii=False) + '\n')
    print(f'{args.out}: {n:,} examples')


def split_examples(examples, val_fraction, test_fraction):
    """Returns {'train': [...], 'val': ..., 'test': ...} and the number of examples left out.

    The hash of its key says where an example belongs. So the parts stay when the data grows, are
    the same for all directions of a text, and hold out the translations that data/text does with
    the sum of the fractions as val_fraction. An example is left out if it shares a text
    (data.heldout.Texts) with one for the test or, for training, with one for validation.
    """
    parts, held_out = {'train': [], 'val': [], 'test': []}, Texts()
    for example in examples:
        place = digest(example.key) / 2**64
        part = ('test' if place < test_fraction else
                'val' if place < test_fraction + val_fraction else 'train')
        parts[part].append(example)
    for part in 'test', 'val', 'train':
        parts[part] = [e for e in parts[part] if not any(text in held_out for text in e.texts)]
        if part != 'train':
            held_out.update(text for e in parts[part] for text in e.texts)
    return parts, len(examples) - sum(map(len, parts.values()))


def truncate(ids, limit):
    """A source's ids (n,), cut before its </s> to at most `limit`."""
    return ids if len(ids) <= limit else np.append(ids[:limit - 1], EOS)


class Examples:
    """Examples of one direction as token ids: a training task for data/batches.py.

    `example(i, rng)` returns source and target ids with their special tokens; `lengths` (2,n) are
    theirs. Sources are cut to max_source_len tokens, question and context together (`n_cut` are).
    Examples whose target has more than max_target_len tokens (`n_long`) are not learned.
    """
    kind = 'mt'                                       # supervised, in the words of data/batches.py

    def __init__(self, direction, examples, tokenizer, cfg, learn=True):
        self.name, self.direction = f'{cfg.task} {direction}', direction
        self.source, self.target = languages_of(direction)
        targets = [tokenizer.add_special_tokens(self.target, ids)
                   for ids in tokenizer.encode([e.target for e in examples])]
        fits = [len(ids) <= cfg.max_target_len for ids in targets]
        kept = [i for i in range(len(examples)) if fits[i] or not learn]
        self.examples, self.n_long = [examples[i] for i in kept], fits.count(False)
        parts = [tokenizer.encode(list(texts)) for texts in zip(*(e.source for e in self.examples))]
        sources = [tokenizer.add_special_tokens(self.source, *ids) for ids in zip(*parts)]
        self.n_cut = sum(len(ids) > cfg.max_source_len for ids in sources)
        self.ids = [(truncate(ids, cfg.max_source_len), targets[i])
                    for ids, i in zip(sources, kept)]
        self.lengths = np.array([[len(s), len(t)] for s, t in self.ids]).reshape(-1, 2).T

    def __len__(self):
        return len(self.ids)

    def example(self, i, rng=None):
        return self.ids[i]

    val_example = example
