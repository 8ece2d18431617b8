"""Supervised examples, source to target: summaries, answers, translations, from the files that data sets come in.

.tsv      two columns: source and target or, where the name says their languages, as web.bo-zh.tsv, a translation
.jsonl    an object a line; .json: a list of them, or SQuAD's nested form, as CMRC 2018 has it; .csv: a header and rows
.txt      LCSTS as published: <doc> with <summary> and <short_text>

Fields of an object: `source`, `target`; or `article`, `title`; or `question`, `context`, `answer`; or two languages,
`zh`, `bo`, also as `zh-CN`, `bod_Tibt` and inside `translation`; FIELDS has the names that CMRC 2018, LCSTS and
TibetanQA use. `lang`, or `source_lang` and `target_lang`, says the languages, else the file's name does
(news.bo.jsonl), else the settings.
"""
import csv
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import is_text, shorten
from data.heldout import Texts, digest
from data.languages import check_script, language_code
from data.files import read_lines, read_pairs
from data.tokenizer import EOS, normalize

# Names of CMRC 2018 (github.com/ymcui/cmrc2018) among them; LCSTS is of Hu et al. 2015 (aclanthology.org/D15-1229)
FIELDS = {'question': ('question', 'query_text', '问题'), 'context': ('context', 'context_text', 'passage', '段落'),
          'answer': ('answer', 'answers', '答案'), 'source': ('source', 'article', 'text', 'content'),
          'target': ('target', 'title', 'summary')}
LCSTS = re.compile(r'<summary>(?P<summary>.*?)</summary>.*?<short_text>(?P<text>.*?)</short_text>', re.DOTALL)
LCSTS_TAGS = '<doc', '<summary>', '</summary>', '<short_text>', '</short_text>'
NAME = re.compile(r'(?:.*\.)?([a-z]{2,3})(?:-([a-z]{2,3}))?\.\w+')


@dataclass(frozen=True)
class Example:
    direction: str                                    # zh-bo; bo stands for bo-bo
    source: tuple                                     # one text, or question and context
    target: str
    key: str                                          # the text whose hash says whether the example is held out
    texts: tuple                                      # texts that no example for training shares with one held out
    others: tuple = ()                                # further answers that count as right


def languages_of(direction):
    """('zh', 'bo') of zh-bo, ('bo', 'bo') of bo."""
    source, _, target = direction.partition('-')
    return source, target or source


def direction(source, target):
    """The inverse of languages_of."""
    return source if source == target else f'{source}-{target}'


def named_languages(path, directions):
    """('bo',) or ('bo', 'zh') that the name of a file says; () where it says none."""
    match = NAME.fullmatch(path.name)
    found = tuple(filter(None, match.groups())) if match else ()
    known = {language for direction in directions for language in languages_of(direction)}
    return found if '.' in path.stem or known.issuperset(found) else ()   # ti-sum.jsonl and dev.json name none


def read_examples(paths, directions):
    """The Examples of files in any of `directions`, and a Counter of what was left out, by reason.

    paths: separated by commas. Raises FileNotFoundError, and ValueError that names file and line where an example
    lacks a field, nothing says its language, or none of a file's examples is asked for.
    """
    found, left_out = [], Counter()
    for path in (Path(os.path.expanduser(part.strip())) for part in paths.split(',')):
        if not path.is_file():
            what = 'is a folder' if path.is_dir() else 'does not exist'
            raise FileNotFoundError(f'{path} {what}; give files, separated by commas')
        if path.suffix not in READERS:
            raise ValueError(f'{path}: examples come as {" ".join(READERS)}')
        n, n_before, named = 0, len(found), named_languages(path, directions)
        others = Counter()
        try:
            for n, (where, record) in enumerate(READERS[path.suffix](path, named), 1):
                for example in make_examples(record, f'{path}: {where}', named, directions):
                    if example.direction not in directions:
                        others[f'{example.direction}, which is not asked for'] += 1
                    elif not all(text.strip() for text in example.source):
                        left_out['empty source'] += 1
                    elif not normalize(example.target):                   # as U+200B is
                        left_out['empty target'] += 1
                    else:
                        found.append(example)
        except RecursionError as e:
            raise ValueError(f'{path}: example {n + 1} is nested too deeply') from e
        if n == 0:
            raise ValueError(f'{path} has no examples')
        if len(found) == n_before and others:
            raise ValueError(f'{path}: {n:,} examples of {next(iter(others)).split(",")[0]}'
                             f'{", as its name says (or rename it)," if named else ""} and none of '
                             f'{" ".join(directions)}')
        left_out += others
        check_scripts(found[n_before:], path)
    return found, +left_out


def check_scripts(examples, where):
    """Raises ValueError for texts in the script of another language: columns may be the wrong way round."""
    for d in {e.direction for e in examples}:
        sides = zip(*[(e.source[-1][:1000], e.target[:1000]) for e in examples if e.direction == d][:1000])
        for texts, language in zip(sides, languages_of(d)):
            check_script(texts, language, where)


def make_examples(record, where, named, directions):
    """The examples of a record, {field: value}. `named`: languages that the file names; `directions` are asked for."""
    known = {*named, *(language for direction in directions for language in languages_of(direction))}
    if isinstance(record.get('translation'), dict):                       # as Hugging Face has it
        record = {**record, **record['translation']}
    keys = {language_code(key): key for key in record} | {key: key for key in record}      # zh of zh_CN, but zh first
    texts = {code: texts_of(record[keys[code]], where, keys[code])[0] for code in sorted(known & set(keys))}
    if len(texts) > 1:
        asked = [pair for pair in map(languages_of, directions) if pair[0] != pair[1] and texts.keys() >= set(pair)]
        return [translation(texts, source, target) for source, target in asked or [tuple(texts)[:2]]]
    own = [record.get(f'{side}_lang') or record.get('lang') for side in ('source', 'target')]
    own = [language_code(x) if isinstance(x, str) else x for x in own]
    if wrong := [x for x in own if x and not (isinstance(x, str) and re.fullmatch('[a-z]{2,3}', x))]:
        raise ValueError(f'{where}: the language is {shorten(ascii(wrong[0]))}; give two or three letters, as "bo"')
    if all(own):
        source_lang, target_lang = own
    elif named:
        source_lang, target_lang = named[0], named[-1]
    elif len(directions) == 1:
        source_lang, target_lang = languages_of(directions[0])
    else:
        raise ValueError(f'{where}: nothing says which of {" ".join(directions)} it is; give it a "lang", or name the '
                         'file like news.bo.jsonl')
    names = ('question', 'context', 'answer') if set(FIELDS['question']) & set(record) else ('source', 'target')
    values = []
    for name in names:
        key = next((key for key in FIELDS[name] if record.get(key) is not None), None)
        if key is None:
            raise ValueError(f'{where} has no {name} ({", ".join(FIELDS[name])}); its fields: '
                             f'{shorten(", ".join(map(ascii, record)))}')
        values.append(texts_of(record[key], where, key))
    *source, (target, *others) = values
    source = tuple(texts[0] for texts in source)
    if source_lang != target_lang and len(source) == 1:
        return [translation({source_lang: source[0], target_lang: target}, source_lang, target_lang)]
    return [Example(direction(source_lang, target_lang), source, target, source[-1], source[-1:], tuple(others))]


def translation(texts, source, target):
    """The example of a text in several languages, {language: text}. Its key is that of data/tokens.py."""
    there = {language: text for language, text in texts.items() if text.strip()}
    return Example(f'{source}-{target}', (texts[source],), texts[target], there[max(there)] if there else '',
                   tuple(there.values()))


def texts_of(value, where, key):
    """The text of a field or, in the forms of CMRC 2018 and SQuAD, of several answers; a list of one or more."""
    if isinstance(value, dict):
        value = value.get('text')
    if isinstance(value, list):
        return list(dict.fromkeys(text for item in value for text in texts_of(item, where, key))) or ['']
    if not isinstance(value, str):
        raise ValueError(f'{where}: {key} is {shorten(ascii(value))}, not a text')
    if not is_text(value):
        raise ValueError(f'{where}: {key} has half a character, {ascii(value)[:60]}')
    return [value]


def read_tsv(path, named):
    for n, columns in read_pairs(path, named):
        yield f'line {n}', dict(zip(named if len(set(named)) == 2 else ('source', 'target'), columns))


def read_jsonl(path, named):
    for n, line in enumerate(read_lines(path), 1):
        if line.strip():
            found = list(records(parse(line, f'{path}: line {n}'), f'{path}: line {n}'))
            if not found:
                raise ValueError(f'{path}: line {n} has no example')
            yield from ((f'line {n}', record) for record in found)


def read_json(path, named):
    whole = parse('\n'.join(read_lines(path)), path)
    for n, record in enumerate(records(whole, path), 1):
        yield f'example {n}', record


def parse(text, where):
    try:
        return json.loads(text)
    except ValueError as e:
        raise ValueError(f'{where} is no JSON: {e}') from e


def records(node, where, outer=None):
    """The innermost objects of a list or of SQuAD's data, paragraphs and qas, with the fields around them."""
    if isinstance(node, list):
        for child in node:
            yield from records(child, where, outer)
        return
    if not isinstance(node, dict):
        raise ValueError(f'{where}: {str(node)[:40]!r} is no object with fields')
    inner = next((key for key in ('data', 'paragraphs', 'qas') if isinstance(node.get(key), list) and node[key]), None)
    fields = {**(outer or {}), **{key: value for key, value in node.items() if key != inner}}
    if inner:
        yield from records(node[inner], where, fields)
    else:
        yield fields


def read_csv(path, named):
    csv.field_size_limit(2**31 - 1)
    rows, n = csv.DictReader((f'{line}\n' for line in read_lines(path)), strict=True), 1
    try:
        if len(header := rows.fieldnames or ()) > len(set(header)):
            raise ValueError(f'{path}: two columns have one name: {shorten(", ".join(map(ascii, header)))}')
        for n, row in enumerate(rows, 2):
            if None in row:
                raise ValueError(f'{path}: row {n} has more cells than the header; texts with commas stand in "..."')
            yield f'row {n}', row
    except csv.Error as e:
        raise ValueError(f'{path}: row {n + 1} is not as .csv has it ({str(e).split(" - ")[0]}); a text with a comma, '
                         'a quote or an end of line stands in "...", and a quote is written twice') from e


def read_lcsts(path, named):
    lines = []
    for n, line in enumerate(read_lines(path), 1):
        lines.append(line)
        if line.strip() == '</doc>':
            block = '\n'.join(lines)
            match = LCSTS.search(block) if all(block.count(tag) == 1 for tag in LCSTS_TAGS) else None
            if not match:
                raise ValueError(f'{path}: the <doc> that ends in line {n} has not one <summary> and one <short_text>')
            yield f'line {n}', {name: text.strip() for name, text in match.groupdict().items()}
            lines = []
    if any(map(str.strip, lines)):
        raise ValueError(f'{path}: its end, {"".join(lines).strip()[:40]!r}, is no whole <doc>')


READERS = {'.tsv': read_tsv, '.jsonl': read_jsonl, '.json': read_json, '.csv': read_csv, '.txt': read_lcsts}


def split_examples(examples, val_fraction, test_fraction):
    """{'train': [...], 'val': [...], 'test': [...]} and the number that is in none.

    By the hash of each example's key, so that the parts are stable when the data grows, and the same for all
    directions of one text. Examples that share a text with one for the test or, when they are for training, for
    validation (data.heldout.Texts) are left out. With fractions whose sum is that of a data/text corpus' val_fraction, its translations held out are held out here too.
    """
    parts, held_out = {'train': [], 'val': [], 'test': []}, Texts()
    for example in examples:
        place = digest(example.key) / 2**64
        part = 'test' if place < test_fraction else 'val' if place < test_fraction + val_fraction else 'train'
        parts[part].append(example)
    for part in 'test', 'val', 'train':               # none learned is a test, and none chosen by either
        parts[part] = [e for e in parts[part] if not any(text in held_out for text in e.texts)]
        if part != 'train':
            held_out.update(text for e in parts[part] for text in e.texts)
    return parts, len(examples) - sum(map(len, parts.values()))


def cut(ids, limit):
    """A source's ids, the last of its text left out where it has more than `limit` with </s>."""
    return ids if len(ids) <= limit else np.append(ids[:limit - 1], EOS)


class Examples:
    """Examples of one direction, tokenised: a task for data/batches.py.

    `example(i, rng)` returns source and target ids with their special tokens; `lengths` (2,n) are theirs. Sources are
    cut to max_source_len tokens, question and context together (`n_cut`); examples whose target has more than
    max_target_len tokens (`n_long`) are left out of what is to be learned.
    """
    kind = 'mt'                                       # supervised, in the words of data/batches.py

    def __init__(self, direction, examples, tokenizer, cfg, learn=True):
        self.name, self.direction = f'{cfg.task} {direction}', direction
        self.source, self.target = languages_of(direction)
        targets = [tokenizer.add_special_tokens(self.target, ids) for ids in tokenizer.encode([e.target for e in examples])]
        fit = [len(ids) <= cfg.max_target_len for ids in targets]
        kept = [i for i in range(len(examples)) if fit[i] or not learn]
        self.examples, self.n_long = [examples[i] for i in kept], fit.count(False)
        parts = [tokenizer.encode(list(texts)) for texts in zip(*(e.source for e in self.examples))]
        sources = [tokenizer.add_special_tokens(self.source, *texts) for texts in zip(*parts)]
        self.n_cut = sum(len(ids) > cfg.max_source_len for ids in sources)
        self.ids = [(cut(ids, cfg.max_source_len), targets[i]) for ids, i in zip(sources, kept)]
        self.lengths = np.array([[len(side) for side in pair] for pair in self.ids]).reshape(-1, 2).T

    def __len__(self):
        return len(self.ids)

    def example(self, i, rng=None):
        return self.ids[i]

    def describe(self, examples):
        """A line that says which these examples are, by how their sources begin."""
        return f'{self.name},' + ''.join(f' {self.examples[i].source[-1][:30]!r}' for i in examples)

    val_example = example
