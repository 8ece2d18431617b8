"""Token files: a corpus, tokenised once, cut into segments, split into train and val, memory-mapped.

A prepared folder holds for each stream (a language, `bo`, or a pair, `bo-zh`) and split two files: STREAM.SPLIT.bin,
the ids one after the other, and STREAM.SPLIT.npy, the offsets of its segments. Segments of a pair alternate: 2i and
2i + 1 translate each other; STREAM.val.txt has their texts, a line each. meta.json says the width of the ids and what
the files were made from.
"""
import argparse
import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import time
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from contextlib import nullcontext
from functools import cached_property
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path

import numpy as np

import config
from data import UNK
from data.files import filling, read_json
from data.heldout import digest, splits
from data.languages import SCRIPTS, language_code
from data.tokenizer import Tokenizer, normalize

ROOT = Path(__file__).parent
VOCABULARY_CHARACTERS = 2_000_000
NO_IDS = np.array([], np.int64)
STREAM = re.compile(r'[a-z]{2,3}(-[a-z]{2,3})?\.(train|val)')            # and so no path that leads elsewhere
HEADERS = 'source', 'target', 'src', 'tgt', 'trg'
COUNTS = 'documents', 'characters', 'tokens', 'unknown', 'too_long', 'held_out', 'shortened'
SPECIALS = 3                                          # <s> <lang> </s>, which stand around a segment in the model


def prepare(dataset, tokenizer, block_size, val_fraction, source=None, needed=False):
    """Tokenises data/DATASET if that has not been done; returns the folder.

    A segment has at most block_size - 3 tokens. About val_fraction of the documents are for validation, as `splits`
    says, `needed` or not. `source`: where the corpus lies (for a dataset that can fetch itself, None). The folder's
    name is a hash of all this and of the text files, so that a changed corpus or vocabulary is prepared anew.
    """
    corpus = corpus_module(dataset)
    files = corpus.fetch(source)
    identities = [identity(file) for file in files]
    fingerprint = digest(tokenizer.model, tokenizer.vocab_size, block_size, val_fraction, *identities)
    folder = token_folder(dataset) / f'{fingerprint:016x}'
    if (folder / 'meta.json').exists():
        report(read_meta(folder))
        return folder
    print(f'preparing {dataset} from {", ".join(f.name for f in files[:9])}{" ..." if len(files) > 9 else ""}')
    for old in folder.parent.glob('*.tmp'):           # of a run that was killed; one that still writes is left alone
        if time.time() - max(path.stat().st_mtime for path in (old, *old.iterdir())) > 3600:
            shutil.rmtree(old, ignore_errors=True)
    with filling(folder) as new:
        split_of = splits(corpus.documents(files), val_fraction, needed)
        write_streams(new, corpus.documents(files), split_of, tokenizer, block_size)
        if changed := [file.name for file, before in zip(files, identities) if identity(file) != before]:
            raise ValueError(f'{changed[0]} has changed while it was read; try again')
    return folder


def token_folder(dataset):
    return ROOT / dataset / 'tokens'


def corpus_module(dataset):
    """data/DATASET/prepare.py, which has fetch(source) -> files and documents(files) -> (key, {language: text})."""
    if not dataset.isidentifier() or not (ROOT / dataset / 'prepare.py').is_file():   # no path that leads elsewhere
        known = ', '.join(sorted(p.parent.name for p in ROOT.glob('*/prepare.py')))
        raise ValueError(f'dataset={dataset!r}: there is no data/{dataset}/prepare.py; there are {known}')
    return importlib.import_module(f'data.{dataset}.prepare')


def vocabulary_text(dataset, val_fraction, source=None):
    """What a vocabulary is trained on: (lines, count of each character), the characters from the whole corpus.

    The lines are training text, and about VOCABULARY_CHARACTERS of each language where there are more, so that no
    language crowds out the others.
    """
    corpus = corpus_module(dataset)
    files = corpus.fetch(source)
    split_of = splits(corpus.documents(files), val_fraction, needed=True)
    lines, counts, size = [], Counter(), Counter()
    for _, texts in corpus.documents(files):
        for lang, text in texts.items():
            counts.update(text)
            size[lang] += len(text)
    for key, texts in corpus.documents(files):
        split, texts = split_of(key, texts)
        if split == 'train':
            lines += [line for lang, text in texts.items() for line in text.splitlines()
                      if digest('vocabulary', line) < VOCABULARY_CHARACTERS / size[lang] * 2**64]
    return lines, counts


def chunks(documents, characters=2_000_000):              # much for SentencePiece's threads, little for memory
    """Lists of documents that have together about so many characters, and one at least."""
    chunk, size = [], 0
    for document in documents:
        chunk.append(document)
        size += sum(map(len, document[1].values()))
        if size >= characters:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def write_streams(folder, documents, split_of, tokenizer, block_size):
    """Writes the token files of `documents` and meta.json, and prints a line per stream."""
    limit, dtype = block_size - SPECIALS, np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    writers, stats, references = {}, {}, defaultdict(list)
    for chunk in chunks(documents):
        parts_of = [split_of(*document) for document in chunk]
        lines_of = [{lang: text.splitlines() for lang, text in texts.items()} for _, texts in parts_of]
        encoded = iter(tokenizer.encode([line for texts in lines_of for lines in texts.values() for line in lines]))
        seen, kept = defaultdict(list), defaultdict(list)                 # ids of each stream, segments of each file
        for (_, before), (split, texts), lines in zip(chunk, parts_of, lines_of):
            stream = '-'.join(sorted(texts))
            s = stats.setdefault(stream, dict.fromkeys([*COUNTS, 'empty'], 0))
            parts = {lang: [next(encoded) for _ in lines[lang]] for lang in texts}
            s['documents'] += 1
            s['shortened'] += texts != before
            s['characters'] += sum(map(len, texts.values()))
            seen[stream] += [ids for lang in texts for ids in parts[lang]]
            sizes = [sum(map(len, p)) for p in parts.values()] if len(texts) > 1 else [1]         # of a pair's sides
            if not all(sizes):
                s['empty'] += 1
            elif split is None:
                s['held_out'] += 1
            elif len(texts) == 1:
                kept[f'{stream}.{split}'] += cut(parts[stream], tokenizer, limit)
            elif max(sizes) <= limit:
                kept[f'{stream}.{split}'] += [np.concatenate(parts[lang]) for lang in sorted(parts)]
                if split == 'val':
                    references[stream] += [normalize(texts[lang]) for lang in sorted(parts)]
            else:                                     # half a pair has no translation
                s['too_long'] += 1
        for stream, parts in seen.items():
            ids = np.concatenate([NO_IDS, *parts])
            stats[stream]['tokens'] += len(ids)
            stats[stream]['unknown'] += int((ids == UNK).sum())
        for name, segments in kept.items():
            if not segments:                          # of texts without a token, such as one zero-width space
                continue
            if name not in writers:
                writers[name] = open(folder / f'{name}.bin', 'wb'), array('Q')
            file, lengths = writers[name]
            file.write(np.concatenate(segments).astype(dtype).tobytes())
            lengths.extend(map(len, segments))
    if not stats:
        raise ValueError('the corpus has no text')
    for name, (file, lengths) in writers.items():
        file.close()
        np.save(folder / f'{name}.npy', np.cumsum([0, *lengths], dtype=np.uint64))
    for stream, lines in references.items():
        (folder / f'{stream}.val.txt').write_text('\n'.join(lines), encoding='utf-8')
    meta = {'vocab_size': tokenizer.vocab_size, 'dtype': np.dtype(dtype).name, 'block_size': block_size,
            'segments': {name: len(lengths) for name, (_, lengths) in writers.items()}, 'streams': stats}
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1), encoding='utf-8')
    report(meta)


def report(meta):
    """Prints a line per stream, in segments or pairs; warns where the vocabulary does not cover a language."""
    print(f'{"stream":8}{"documents":>10}{"tokens":>13}{"for training":>14}{"held out":>10}{"tokens/char":>13}'
          f'{"<unk>":>9}')
    for stream, s in meta['streams'].items():
        of_one = len(stream.split('-'))               # a pair is two segments
        train, val = (meta['segments'].get(f'{stream}.{split}', 0) // of_one for split in ('train', 'val'))
        share = s['unknown'] / max(s['tokens'], 1)
        print(f'{stream:8}{s["documents"]:10,}{s["tokens"]:13,}{train:14,}{val:10,}'
              f'{s["tokens"] / max(s["characters"], 1):13.2f}{share:9.2%}')
        if s.get('empty'):
            print(f'  {s["empty"]} pairs with nothing on one side are left out')
        if s['too_long']:
            print(f'  {s["too_long"]} pairs of over {meta["block_size"] - SPECIALS} tokens a side are left out')
        if s['held_out']:
            print(f'  {s["held_out"]} with a text that stands in the validation part are left out')
        if s['shortened']:
            print(f'  {s["shortened"]} are shortened by lines and sentences that stand there')
        if share > 0.01:
            print(f'warning: {share:.1%} of the tokens of {stream} are <unk>: the vocabulary lacks its characters. Use '
                  'an encoder that has them (for Tibetan: CINO), or add them with `python -m data.vocabulary extend`',
                  file=sys.stderr)


def cut(lines, tokenizer, limit, gather=None):
    """Lines of ids -> segments of at most `limit` tokens that end where a sentence or a line does, if possible.

    All tokens are kept, in order: whole sentences are gathered while they have up to `gather` tokens (as a rule,
    `limit`; 0: each stays alone), and a sentence longer than `limit` is cut.
    """
    ids, gather = np.concatenate([NO_IDS, *lines]), limit if gather is None else gather
    if 0 < len(ids) <= gather:                        # so in most documents, and the rest would give the same
        return [ids]
    bounds = sorted({0, *tokenizer.sentence_starts(ids).tolist(), *accumulate(map(len, lines))})
    ends = [end for first, last in pairwise(bounds) for end in (*range(first + limit, last, limit), last)]
    segments, start = [], 0
    while start < len(ids):
        end = ends[max(bisect_right(ends, start), bisect_right(ends, start + gather) - 1)]
        segments.append(ids[start:end])
        start = end
    return segments


class Stream:
    """One memory-mapped token file: `stream[i]` is segment i (n,), `lengths` the tokens of each."""

    def __init__(self, folder, name, meta):
        path, n = folder / f'{name}.bin', meta['segments'][name]
        try:                                          # mapped, so that no number in its header asks for memory
            offsets = np.load(path.with_suffix('.npy'), mmap_mode='r')
            fits = offsets.dtype == np.uint64 and offsets.shape == (n + 1,) and not ('-' in name and n % 2)
        except Exception as e:                        # numpy raises what its parsers of a header raise
            raise damaged(folder, f'{name}.npy: {type(e).__name__}') from e
        if not fits:
            raise damaged(folder, f'{name}.npy is not an array of {n + 1} offsets')
        self.offsets = np.array(offsets)
        size, width = path.stat().st_size, np.dtype(meta['dtype']).itemsize
        end = int(self.offsets[-1])
        if self.offsets[0] != 0 or (self.offsets[1:] < self.offsets[:-1]).any() or size != end * width or not end:
            raise damaged(folder, f'{path.name} has {size / width:g} tokens, and {name}.npy is not their offsets')
        self.lengths = np.diff(self.offsets).astype(np.int64)
        self.where = path, meta['dtype']
        self.open()
        if (largest := int(self.ids.max())) >= meta['vocab_size']:
            raise damaged(folder, f'{path.name} has id {largest}, and the vocabulary ends at {meta["vocab_size"] - 1}')

    def open(self):
        self.ids = np.asarray(np.memmap(*self.where, 'r'))            # a plain array: slices of a memmap are slow

    @cached_property
    def texts(self):
        """The text of each segment of a pair that is held out, normalized."""
        path = self.where[0].with_suffix('.txt')
        lines = path.read_text(encoding='utf-8').split('\n') if path.is_file() else []
        if len(lines) != len(self):
            raise damaged(path.parent, f'{path.name} has not {len(self)} lines')
        return lines

    def __getstate__(self):                           # for worker processes: map the file again, do not copy it
        return {**self.__dict__, 'ids': None}

    def __setstate__(self, state):
        self.__dict__ = state
        self.open()

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        start = int(self.offsets[i])
        return self.ids[start:start + int(self.lengths[i])].astype(np.int64)


def read_meta(folder):
    """meta.json of a prepared folder. Raises ValueError where it is damaged."""
    try:
        meta = read_json(folder / 'meta.json')
    except ValueError as e:
        raise damaged(folder, e) from e
    kinds = {'vocab_size': int, 'block_size': int, 'dtype': str, 'segments': dict, 'streams': dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(meta.get(key), kind)]
    wrong = wrong or [name for name, n in meta['segments'].items()
                      if not STREAM.fullmatch(name) or not isinstance(n, int)]
    wrong = wrong or [name for name, s in meta['streams'].items()
                      if not isinstance(s, dict) or not all(isinstance(s.get(key), int) for key in COUNTS)]
    if wrong or meta['dtype'] not in ('uint16', 'uint32'):
        raise damaged(folder, f'meta.json has no right {" ".join(wrong or ["dtype"])}')
    return meta


def damaged(folder, why):
    return ValueError(f'{folder} is damaged ({why}); delete it, and the next run prepares the text again')


def open_streams(folder, split):
    """{name: Stream} of a prepared folder; names are languages, or pairs like bo-zh."""
    meta = read_meta(folder)
    return {name[:-len(split) - 1]: Stream(folder, name, meta) for name, n in sorted(meta['segments'].items())
            if name.endswith(f'.{split}') and n}


def read_lines(path):
    """The lines of a UTF-8 text file, or of standard input for `-`, without their ends.

    Raises ValueError with the byte that is not UTF-8.
    """
    position = 0
    with nullcontext(sys.stdin.buffer) if path == '-' else open(path, 'rb') as file:
        for line in file:
            try:
                yield line.decode('utf-8').removeprefix('\ufeff').rstrip('\r\n')
            except UnicodeDecodeError as e:
                kind = 'UTF-16' if line[:2] in (b'\xff\xfe', b'\xfe\xff') and not position else 'GB18030'
                raise ValueError(f'{path}: byte {position + e.start} (0x{line[e.start]:02x}) is not UTF-8; convert the '
                                 f'file, for example with iconv -f {kind} -t UTF-8 OLD > NEW') from e
            position += len(line)


def read_pairs(path, names):
    """(line number, its two texts) of a .tsv of two columns in the languages `names`; lines without text do not count.

    Raises ValueError with the line that has not two columns or names them, and where each text stands in quotes.
    """
    def rows():
        for n, line in enumerate(read_lines(path), 1):
            columns = line.split('\t')
            if line and len(columns) != 2:
                raise ValueError(f'{path}: line {n} has {len(columns)} columns instead of two, separated by a tab')
            if n == 1 and {language_code(text.strip()) for text in columns} <= {*names, *HEADERS, *SCRIPTS}:
                raise ValueError(f'{path}: line 1 is a header, {line!r}; remove it')
            if line.strip():
                yield n, columns

    found = rows()
    first = list(islice(found, 100))
    if first and all(len(text) > 1 and text[0] == text[-1] == '"' for _, columns in first for text in columns):
        raise ValueError(f'{path}: each text stands in quotes; write them without, or name the file .csv with a header')
    yield from chain(first, found)


def identity(path):
    """What tells a file from a changed one: its name and all of its bytes, hashed."""
    hashed = hashlib.blake2b(os.fsencode(path.name) + b'\0', digest_size=8)
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            hashed.update(block)
    return hashed.hexdigest()


def main(dataset):
    """The command line of data/NAME/prepare.py: prepares a corpus with an encoder's vocabulary, prints how it fits."""
    parser = argparse.ArgumentParser(f'python -m data.{dataset}.prepare', description=corpus_module(dataset).__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--from', dest='source', help='where the corpus lies')
    parser.add_argument('--encoder', required=True, type=config.find,
                        help='a folder with a SentencePiece file, or the file')
    parser.add_argument('--block_size', type=int, default=256, help='longest sequence in tokens (256)')
    parser.add_argument('--val_fraction', type=float, default=0.1, help='documents held out (0.1)')

    def run(argv):
        args = parser.parse_args(argv)
        for key in ('block_size', 'val_fraction'):
            config.check_range(key, getattr(args, key))
        folder = prepare(dataset, Tokenizer(args.encoder), args.block_size, args.val_fraction, args.source)
        print(f'the token files are in {folder}')

    config.run(run)
