"""Token files: a corpus, split into train and val, tokenised, cut into segments, memory-mapped.

A prepared folder holds two files for each stream (a language, `bo`, or a pair, `bo-zh`) and split:
STREAM.SPLIT.bin, the ids one after the other, and STREAM.SPLIT.npy, the offsets of its segments.
Segments 2i and 2i + 1 of a pair translate each other; STREAM.val.txt has their texts, a line each.
meta.json has the width of the ids and the counts that `report` prints.
"""
import importlib
import json
import os
import sys
from collections import Counter, defaultdict
from itertools import accumulate, chain, pairwise
from pathlib import Path

import numpy as np

from data.files import atomic_dir
from data.heldout import digest, splits
from data.tokenizer import UNK, normalize

ROOT = Path(__file__).parent
FORMAT = 5                        # version of the token files
SPECIALS = 3                      # <s> <lang> </s>, which surround a segment in the model


def prepare(dataset, tokenizer, block_size, val_fraction, source=None):
    """Tokenises data/DATASET, unless that has been done; returns the folder of token files.

    A segment has at most block_size - SPECIALS tokens. About val_fraction of the documents are held
    out. `source`: where the corpus is, if it is not included. The folder's name is a hash of all
    this, of prepare.py and of the text files, so a changed corpus is prepared again."""
    corpus = corpus_module(dataset)
    files = corpus.fetch(source)
    settings = FORMAT, tokenizer.model, tokenizer.vocab_size, block_size, val_fraction
    texts = (digest(os.fsencode(x.name), x.read_bytes()) for x in (Path(corpus.__file__), *files))
    folder = token_folder(dataset) / f'{digest(*settings, *texts):016x}'
    if not (folder / 'meta.json').exists():
        print(f'preparing {dataset} in {folder} from', ' '.join(x.name for x in files)[:200])
        with atomic_dir(folder) as new:
            split_of = splits(corpus.documents(files), val_fraction)
            write_streams(new, corpus.documents(files), split_of, tokenizer, block_size)
    return folder


def token_folder(dataset):
    return ROOT / dataset / 'tokens'


def corpus_module(dataset):
    """data/DATASET/prepare.py, which has `fetch` and `documents`. Raises ValueError without one."""
    known = sorted(path.parent.name for path in ROOT.glob('*/prepare.py'))
    if dataset not in known:
        raise ValueError(f'dataset={dataset!r}: there is no data/{dataset}/prepare.py; there are '
                         f'{", ".join(known)}')
    return importlib.import_module(f'data.{dataset}.prepare')


def cut_document(split, texts, lines, tokenizer, limit):
    """The segments of a text, or the two of a pair, and the reason if they are left out.

    lines: the ids of each line of each text. A segment has at most `limit` tokens. Pairs are not
    cut, since the parts would not correspond."""
    sides = [np.concatenate(of_text) for of_text in lines]
    fits = (normalize(text) and 0 < len(ids) <= limit for text, ids in zip(texts, sides))
    if len(sides) == 2 and not all(fits):
        return [], f'pairs with nothing or over {limit} tokens on a side are left out'
    if split is None:
        return [], 'with a held-out text are left out'
    return sides if len(sides) == 2 else split_segments(lines[0], tokenizer, limit), None


def split_segments(lines, tokenizer, limit, gather=None):
    """Lines of ids -> segments of at most `limit` tokens that end with a sentence or a line.

    Whole sentences are gathered up to `gather` tokens (default: `limit`; 0: one sentence a
    segment); a sentence longer than `limit` is cut."""
    ids, gather = np.concatenate(lines), limit if gather is None else gather
    if 0 < len(ids) <= gather:                    # a shortcut for most documents
        return [ids]
    bounds = sorted({0, *tokenizer.sentence_starts(ids).tolist(), *accumulate(map(len, lines))})
    ends = []                                     # where a segment may end
    for first, last in pairwise(bounds):
        ends += [*range(first + limit, last, limit), last]
    starts = [0]
    for end, next_end in pairwise(ends):
        if next_end - starts[-1] > gather:
            starts.append(end)
    return [segment for segment in np.split(ids, starts[1:]) if len(segment)]


def write_streams(folder, documents, split_of, tokenizer, block_size):
    """Writes all files of a folder from (key, {language: text}). Raises ValueError without text."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    counts, notes = defaultdict(Counter), defaultdict(Counter)            # by stream
    files, lengths, references = {}, defaultdict(list), defaultdict(list)
    for key, whole in documents:
        if len(whole) > 2:
            raise ValueError(f'a document is in {" ".join(whole)}; expected one language or two')
        split, left = split_of(key, whole)
        texts = dict(sorted(left.items()))
        lines = [[tokenizer.encode(line) for line in text.splitlines() or ['']]
                 for text in texts.values()]
        stream, ids = '-'.join(texts), np.concatenate([*chain(*lines)])
        n, joined = sum(map(len, texts.values())), ' '.join(texts.values())
        counts[stream].update(documents=1, characters=n, unread=n * unread(tokenizer, joined, ids),
                              tokens=len(ids), unknown=int(np.count_nonzero(ids == UNK)))
        segments, left_out = cut_document(split, texts.values(), lines, tokenizer,
                                          block_size - SPECIALS)
        if left_out or left != whole:
            notes[stream][left_out or 'are shortened by held-out sentences'] += 1
        if segments:                              # else left out, or no token (as for U+200B)
            name = f'{stream}.{split}'
            lengths[name] += map(len, segments)
            if name not in files:
                files[name] = open(folder / f'{name}.bin', 'wb')
            files[name].write(np.concatenate(segments).astype(dtype))
            if split == 'val' and len(texts) == 2:
                references[name] += map(normalize, texts.values())
    if not counts:
        raise ValueError('the corpus has no text; see --data_from')
    for name, file in files.items():
        file.close()
        np.save(folder / f'{name}.npy', np.cumsum([0, *lengths[name]], dtype=np.uint64))
    for name, texts in references.items():
        (folder / f'{name}.txt').write_text('\n'.join(texts), encoding='utf-8')
    meta = {'vocab_size': tokenizer.vocab_size, 'dtype': dtype.name, 'streams': counts,
            'notes': notes, 'segments': {name: len(found) for name, found in lengths.items()}}
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1), encoding='utf-8')


class Stream:
    """A memory-mapped token file: `stream[i]` is segment i (n,), `lengths` (N,) are all lengths.

    `texts` are the normalized texts of segments, for held-out pairs. Raises ValueError for a file
    that is damaged or has ids outside the vocabulary."""

    def __init__(self, folder, name, meta):
        texts = folder / f'{name}.txt'
        self.texts = texts.read_text(encoding='utf-8').split('\n') if texts.exists() else None
        try:
            self.offsets = np.load(folder / f'{name}.npy').astype(np.int64)
            ids = np.memmap(folder / f'{name}.bin', meta['dtype'], 'r')
            if len(ids) != self.offsets[-1] or ids.max() >= meta['vocab_size']:
                raise ValueError('unequal sizes, or ids outside the vocabulary')
        except (ValueError, EOFError) as e:
            raise ValueError(f'{folder} is damaged ({name}.bin or .npy); delete it, and the next '
                             'run prepares the text again') from e
        self.ids, self.lengths = np.asarray(ids), np.diff(self.offsets)   # slicing a memmap is slow

    def __getitem__(self, i):
        return self.ids[self.offsets[i]:self.offsets[i + 1]].astype(np.int64)


def open_streams(folder, split):
    """{name: Stream} of a split of a prepared folder."""
    meta = json.loads((folder / 'meta.json').read_bytes())
    return {name.removesuffix(f'.{split}'): Stream(folder, name, meta)
            for name in sorted(meta['segments']) if name.endswith(f'.{split}')}


def unread(tokenizer, text, ids):
    """The fraction of a text's characters that its ids lack: a run of these is one <unk>."""
    if UNK not in ids:
        return 0.0
    known = tokenizer.decode(ids[ids != UNK])
    n, n_known = (len(''.join(x.split())) for x in (normalize(text), known))
    return max(0, n - n_known) / max(n, 1)


def report(folder):
    """Prints a line per stream, in segments or pairs; warns where the vocabulary does not fit."""
    meta = json.loads((folder / 'meta.json').read_bytes())
    print('stream   documents       tokens  for training  held out  tokens/char    <unk>')
    for stream, n in meta['streams'].items():
        train, val = (meta['segments'].get(f'{stream}.{split}', 0) // len(stream.split('-'))
                      for split in ('train', 'val'))
        unknown = n['unknown'] / max(n['tokens'], 1)              # a stream may have no token
        print(f'{stream:8}{n["documents"]:10,}{n["tokens"]:13,}{train:14,}{val:10,}'
              f'{n["tokens"] / max(n["characters"], 1):13.2f}{unknown:9.2%}')
        for note, times in meta['notes'].get(stream, {}).items():
            print(f'  {times} {note}')
        fraction = n['unread'] / max(n['characters'], 1)          # characters: a run is one <unk>
        if fraction > 0.01:
            print(f'warning: {fraction:.1%} of the characters of {stream} are <unk>: use an '
                  'encoder that has them (for Tibetan: CINO), or '
                  '`python -m data.vocabulary extend`', file=sys.stderr)
