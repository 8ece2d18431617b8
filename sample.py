"""Text in, text out, with a checkpoint that train.py or finetune.py wrote.

    python sample.py                                    the newest model of out/ on held-out examples
    python sample.py --text=你好 --to=bo                 translates from zh; --source=LANG for other languages
    python sample.py --task=denoise --to=bo --text='བོད་<mask>ལ།'
    python sample.py --to=bo --file=zh.txt              a line each; --file=- reads what you type or pipe in
"""
import os
import stat
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import config


@dataclass
class Sample:
    checkpoint: str = ''             # folder with config.json, model.safetensors; '': the newest of out/
    text: str = ''                   # what to work on
    file: str = ''                   # or a UTF-8 file, a text a line; -: standard input
    task: str = ''                   # translate | denoise (fill in each <mask>) | summarise | answer; '': as fine-tuned
    question: str = ''               # to answer from the text
    to: str = ''                     # language to write; '': as fine-tuned, or the model's first
    source: str = ''                 # language of the text; '': as fine-tuned, or zh to translate, else that to write
    gather: int = 0                  # translate sentences together that have up to so many tokens; 0: one by one
    beams: int = 4                   # beam search; 1: greedy. This and the next three: as fine-tuned, if not given
    length_penalty: float = 1.0      # a score is divided by length ** this
    no_repeat_ngram: int = 4         # no sequence of so many tokens twice; 0: may
    force_script: str = ''           # scripts that outputs may have letters of, as TIBETAN+LATIN; '': any
    max_new_tokens: int = 0          # of a sentence or text; 0: as fine-tuned, or three times the source's and 20
    temperature: float = 0.0         # above 0: sample, with beams=1
    top_k: int = 0                   # sample from so many likeliest tokens; 0: all
    top_p: float = 1.0               # sample from the likeliest tokens that have this probability together
    seed: int = 1                    # of sampling
    full_width: bool = True          # Chinese with its own punctuation: ，！？：；（）
    examples: int = 1                # held-out examples shown of each task and language
    batch: int = 16                  # texts at a time
    device: str = 'auto'             # auto | cpu | cuda | mps
    int8: bool = False               # on a CPU: weights of 8 bits, which are faster and change some outputs
    dtype: str = 'auto'              # auto (bfloat16 on CUDA that has it, 16-bit weights on a CPU) | float32 | bfloat16


if __name__ == '__main__':
    config.start(Sample)                              # before torch, so that it answers at once

import numpy as np
import torch

from data import UNK
from data.batches import collate, tasks
from data.examples import truncate as cut_source
from data.examples import languages_of
from data.files import parse_object
from data.languages import BY_CHARACTER, full_width, scripts_of, wrong_script
from data.tokenizer import Tokenizer
from data.tokens import SPECIALS, cut, prepare, read_lines
from model import SWCM

TASKS = 'translate', 'denoise', 'summarise', 'answer'
WHOLE = 'summarise', 'answer'                         # these read a text at once, as far as they can
LARGELY_UNKNOWN = 0.25                                # share of a text's tokens that are <unk>: a warning


def write(model, tokenizer, sources, languages, max_new_tokens=0, batch=16, banned=(), **options):
    """What the model writes for each source: [(text, whether it came to the limit and may lack its end)].

    sources: ids with <s> <lang> </s>; languages: one to write for each. `max_new_tokens` limits an output; 0: three
    times the source's tokens and 20, which is enough for all but 1 of 2,000 lines of NTREX in each direction of
    README's languages; no more than the model has positions. `banned`: ids; `options`: of SWCM.generate. Texts of like
    length are written together, `batch` at a time, which changes none.
    """
    device, most = next(model.parameters()).device, model.config.max_length - 2
    limits = [min(max_new_tokens or 3 * len(source) + 20, most) for source in sources]
    never = [*range(tokenizer.mask, tokenizer.vocab_size), *banned]       # rows that no text has
    order, written = sorted(range(len(sources)), key=lambda i: len(sources[i])), {}
    for rows in (order[i:i + batch] for i in range(0, len(order), batch)):
        src = torch.from_numpy(collate([(sources[i], sources[i]) for i in rows])[0]).to(device)       # (B,S)
        found = model.generate(src, [languages[i] for i in rows], max_new_tokens=[limits[i] for i in rows],
                               banned=never, **options)
        for i, [(ids, _), *_] in zip(rows, found):
            written[i] = tokenizer.decode(ids), len(ids) == limits[i]
    return [written[i] for i in range(len(sources))]


class Writer:
    """A checkpoint ready to write: model, tokenizer and how to decode. `counts` is of what the reader has to know.

    `longest`: tokens that it learned to read at once, if that is known.
    """

    def __init__(self, folder, cfg, longest=0):
        self.device, self.dtype = config.find_device(cfg.device, cfg.dtype)
        self.model, self.cfg, self.counts = SWCM.load(folder).eval().to(self.device), cfg, Counter()
        if self.device.type == 'cpu' and self.dtype == torch.float32:
            self.model.pack(8 if cfg.int8 else 32 if cfg.dtype == 'float32' else 16)
        elif cfg.int8:
            raise ValueError(f'int8 is for float32 on a CPU, not {self.dtype} on {self.device}; leave --int8 out')
        c = self.model.config
        self.longest = min(longest or c.max_length, c.max_length)
        self.tokenizer = Tokenizer(self.model.sentencepiece, c.languages, c.vocab_size)
        scripts = cfg.force_script.upper().split('+') if cfg.force_script else None
        self.banned = self.tokenizer.foreign(scripts) if scripts else ()

    def write(self, sources, languages):
        """The best text for each source, ids with <s> <lang> </s>; languages: one to write for each."""
        c = self.cfg
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            found = write(self.model, self.tokenizer, sources, languages, c.max_new_tokens, c.batch, self.banned,
                          beams=c.beams, length_penalty=c.length_penalty, no_repeat_ngram=c.no_repeat_ngram,
                          temperature=c.temperature, top_k=c.top_k, top_p=c.top_p)
        self.counts['cut off'] += sum(at_limit for _, at_limit in found)
        return [text for text, _ in found]

    def answer(self, texts, source, language):
        """A text in `language` for each text in `source`.

        To translate, it is taken by sentences, and to denoise by pieces that end with one, and put together again; to
        summarise or answer, what the model cannot read of it is left out.
        """
        tok, cfg = self.tokenizer, self.cfg
        encoded = [tok.encode_masked(text) if cfg.task == 'denoise' else tok.encode(text) for text in texts]
        unknown = [(ids == UNK).sum() for ids in encoded]
        self.counts.update({
            'texts': len(texts), 'tokens': sum(map(len, encoded)), '<unk>': sum(unknown),
            'unknown': sum(n > LARGELY_UNKNOWN * len(ids) for n, ids in zip(unknown, encoded)),
            'script': sum(wrong_script(text.replace('<mask>', ''), source) is not None for text in texts)})
        if cfg.task in WHOLE:
            question = [tok.encode(cfg.question)] if cfg.question else []
            sources = [[tok.dress(source, *question, ids)] for ids in encoded]
            self.counts['cut'] += sum(len(ids) > self.longest for [ids] in sources)
            sources = [[cut_source(ids, self.longest)] for [ids] in sources]
        else:
            limit = self.longest - SPECIALS
            gather = cfg.gather if cfg.task == 'translate' else limit
            self.counts['cut'] += sum((np.diff([*tok.sentence_starts(ids), len(ids)]) > limit).sum() for ids in encoded)
            sources = [[tok.dress(source, part) for part in cut([ids], tok, limit, gather)] for ids in encoded]
        flat = [ids for parts in sources for ids in parts]
        written = iter(self.write(flat, [language] * len(flat)))
        answers = [('' if language in BY_CHARACTER else ' ').join(islice(written, len(parts))) for parts in sources]
        return list(map(full_width, answers)) if language == 'zh' and cfg.full_width else answers

    def warn(self, source):
        """Says on standard error what became of the texts so far that nobody would see, and counts anew."""
        n, self.counts = self.counts, Counter()
        cut = 'texts lost what is' if self.cfg.task in WHOLE else 'sentences were cut in parts, as they are'
        for key, what in (
                ('cut off', 'outputs came to the limit of their length and may lack their end; see --max_new_tokens'),
                ('cut', f'{cut} longer than the {self.longest} tokens that this model learned to read'),
                ('unknown', f'of {n["texts"]} texts are largely <unk>, not in the vocabulary: {n["<unk>"]} of all '
                            f'{n["tokens"]} tokens'),
                ('script', f'of {n["texts"]} texts are not in the script of {source}, {scripts_of(source)}; see '
                           '--source')):
            if n[key]:
                print(f'warning: {n[key]} {what}', file=sys.stderr)


def newest():
    """The SWCM checkpoint of the newest run below out/: its best, or its last where it has no best yet."""
    found = [p.parent for p in [*Path('out').glob('*/best/config.json'), *Path('out').glob('*/last/config.json')]
             if read_settings(p).get('model_type') == 'swcm' and (p.parent / 'model.safetensors').is_file()]
    if not found:
        raise FileNotFoundError('no checkpoint in out/; `python train.py config/tibetan.py` makes one, '
                                'or name one with --checkpoint=FOLDER')
    run = max(found, key=lambda p: (p / 'model.safetensors').stat().st_mtime).parent
    return min(p for p in found if p.parent == run)                       # best comes before last


def read_settings(path):
    """What a config.json says; {} where it is missing or damaged, as a model that is named can do without."""
    try:
        return parse_object(path.read_bytes(), path)
    except (OSError, ValueError):
        return {}


def run_of(folder):
    """The settings, config.Train or FineTune, of the run that wrote the checkpoint `folder`; None if they are lost."""
    path = Path(folder).parent / 'config.json'
    found = read_settings(path)
    try:
        return config.of_dict(config.FineTune if 'task' in found else config.Train, found, path) if found else None
    except ValueError:
        return None


def show_examples(writer, folder, run):
    """Prints source, output and reference of held-out examples, from the text that the model was trained on."""
    if not run:
        raise FileNotFoundError(f'{Path(folder).parent / "config.json"} does not exist or is damaged, so the held-out '
                                f'text of {folder} is not known; give --text')
    n, tok = writer.cfg.examples, writer.tokenizer
    if isinstance(run, config.FineTune):
        return show_predictions(Path(folder) / 'predictions.jsonl', n)
    encoder = Tokenizer(writer.model.sentencepiece, (), writer.model.config.vocab_size)
    data = prepare(run.dataset, encoder, run.block_size, run.val_fraction, run.data_from or None)
    examples = [(task, *task.val_example(i)) for task in tasks(data, 'val', tok, run)
                for i in np.linspace(0, len(task) - 1, n + 2)[1:-1].astype(int)]
    outputs = writer.write([src for _, src, _ in examples], [task.target for task, _, _ in examples])
    for (task, src, tgt), output in zip(examples, outputs):
        print(f'{task.name}\n  source     {tok.decode(src)}\n  output     {output}\n  reference  {tok.decode(tgt)}\n')


def show_predictions(path, n):
    """Prints n of the test examples of each kind that finetune.py has written, evenly spread."""
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist: its run has not come to the end. The same finetune.py command '
                                'goes on; or give --text')
    kinds = {}
    for number, line in enumerate(read_lines(path), 1):
        prediction = parse_object(line, f'{path}: line {number}')
        if not {'test', 'direction', 'source', 'prediction', 'reference'} <= set(prediction):
            raise ValueError(f'{path}: line {number} is no prediction; finetune.py --eval_only writes the file anew')
        kinds.setdefault(f'{prediction["test"]}, {prediction["direction"]}', []).append(prediction)
    for kind, found in kinds.items():
        for i in np.linspace(0, len(found) - 1, n + 2)[1:-1].astype(int):
            print(f'{kind}\n  source     {found[i]["source"]}\n  output     {found[i]["prediction"]}\n'
                  f'  reference  {found[i]["reference"]}\n')


def main(argv):
    given = config.parse(Sample, argv)
    cfg = Sample(**given)
    if cfg.task and cfg.task not in TASKS:
        raise ValueError(f'task={cfg.task!r}: choose {", ".join(TASKS)}')
    if cfg.file == '-' and sys.stdin is None:
        raise ValueError('file=-: standard input is closed; name a file')
    if 'text' in given and cfg.file:
        raise ValueError(f'text={cfg.text[:40]!r}, file={cfg.file}: give one of them')
    folder = cfg.checkpoint or newest()
    run = run_of(folder)
    tuned = run if isinstance(run, config.FineTune) and cfg.task in ('', run.task) else None
    task = tuned.task if tuned else cfg.task or 'translate'
    if tuned:                                         # so that it writes as for predictions.jsonl
        usual, to = languages_of(tuned.learn[0])
        scripts = dict(entry.split(':') for entry in tuned.force_script)
        given = {**{key: getattr(tuned, key) for key in ('beams', 'length_penalty', 'no_repeat_ngram')},
                 'max_new_tokens': tuned.max_target_len - SPECIALS, 'force_script': scripts.get(cfg.to or to, ''),
                 **given}
    cfg = Sample(**{**given, 'task': task})
    torch.manual_seed(cfg.seed)
    writer = Writer(folder, cfg, tuned.max_source_len if tuned else getattr(run, 'block_size', 0))
    print(f'model: {folder}{"" if run else ", without the settings of its run beside it"}', file=sys.stderr)
    lines = [cfg.text] if 'text' in given else read_lines(cfg.file) if cfg.file else piped_lines()
    if lines is None:
        return show_examples(writer, folder, run)
    if (cfg.task == 'answer') != bool(cfg.question):
        raise ValueError(f'task={cfg.task}, question={cfg.question!r}: --task=answer goes with a --question')
    if not tuned:
        to = writer.model.config.languages[0]
        usual = 'zh' if cfg.task == 'translate' else to
    source = cfg.source or (usual if cfg.task == 'translate' or usual != to else cfg.to or to)
    to = cfg.to or to
    if cfg.task == 'translate' and source == to:
        raise ValueError(f'translate from {source} to {to}: name another language with --source or --to')
    if cfg.task == 'denoise' and source != to:
        raise ValueError(f'denoise from {source} to {to}: give one language, --to={source}')
    for language in (source, to):
        writer.model.config.language_id(language)
    if cfg.file == '-' and sys.stdin.isatty():
        print(f'{source} to {to}; an empty line ends')
        try:
            while text := input('> '):
                print(writer.answer([text], source, to)[0])
                writer.warn(source)
        except EOFError:
            print()
        return
    lines = iter(lines)
    texts = list(islice(lines, cfg.batch))
    if not texts:
        raise ValueError(f'{cfg.file} has no text')
    while texts:
        print('\n'.join(writer.answer(texts, source, to)), flush=True)
        texts = list(islice(lines, cfg.batch))
    writer.warn(source)


def piped_lines():
    """The lines of a pipe or file that standard input is, or None where it is neither or has none."""
    if sys.stdin is None:
        return None
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not stat.S_ISFIFO(mode) and not stat.S_ISREG(mode):
        return None
    print('reading standard input', file=sys.stderr)
    lines = read_lines('-')
    first = next(lines, None)
    return None if first is None else chain([first], lines)


if __name__ == '__main__':
    config.run(main)
