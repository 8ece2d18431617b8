"""Text in, text out, with a checkpoint that train.py or finetune.py wrote.

    python sample.py                                    the newest model of out/ on held-out examples
    python sample.py --text=你好 --to=bo                 translates from zh; --source=LANG for other languages
    python sample.py --task=denoise --to=bo --text='བོད་<mask>ལ།'
    python sample.py --to=bo --file=zh.txt              a line each; --file=- reads what you type or pipe in
"""
import sys
from dataclasses import dataclass, replace
from itertools import islice
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
    beams: int = 4                   # beam search; 1: greedy
    length_penalty: float = 1.0      # a score is divided by length ** this
    no_repeat_ngram: int = 4         # no sequence of so many tokens twice; 0: may
    force_script: str = ''           # scripts that outputs may have letters of, as TIBETAN+LATIN; '': any
    max_new_tokens: int = 200        # longest output
    temperature: float = 0.0         # above 0: sample, with beams=1
    top_k: int = 0                   # sample from so many likeliest tokens; 0: all
    top_p: float = 1.0               # sample from the likeliest tokens that have this probability together
    seed: int = 1                    # of sampling
    examples: int = 1                # held-out examples shown of each task and language
    batch: int = 16                  # texts at a time
    device: str = 'auto'             # auto | cpu | cuda | mps
    int8: bool = False               # on a CPU: weights of 8 bits, which are faster and change some outputs
    dtype: str = 'auto'              # auto (bfloat16 on CUDA that has it, 16-bit weights on a CPU) | float32 | bfloat16


if __name__ == '__main__':
    config.start(Sample)                              # before torch, so that it answers at once

import numpy as np
import torch

from data.batches import collate, tasks
from data.examples import cut as cut_source
from data.examples import languages_of
from data.files import parse_object
from data.tokenizer import Tokenizer
from data.tokens import cut, prepare, read_lines
from model import SWCM


TASKS = 'translate', 'denoise', 'summarise', 'answer'


class Writer:
    """A checkpoint ready to write: model, tokenizer and how to decode."""

    def __init__(self, folder, cfg):
        self.device, self.dtype = config.find_device(cfg.device, cfg.dtype)
        self.model, self.cfg = SWCM.load(folder).eval().to(self.device), cfg
        if self.device.type == 'cpu' and self.dtype == torch.float32:
            self.model.pack(8 if cfg.int8 else 32 if cfg.dtype == 'float32' else 16)
        elif cfg.int8:
            raise ValueError(f'int8 is for float32 on a CPU, not {self.dtype} on {self.device}; leave --int8 out')
        c = self.model.config
        self.tokenizer = Tokenizer(self.model.sentencepiece, c.languages, c.vocab_size)
        scripts = cfg.force_script.upper().split('+') if cfg.force_script else None
        self.banned = self.tokenizer.foreign(scripts) if scripts else ()

    def write(self, sources, languages):
        """sources: arrays of ids with <s> <lang> and </s>; languages: to write -> an iterator of the best texts."""
        cfg, room = self.cfg, min(self.cfg.max_new_tokens, self.model.config.max_length - 2)
        for i in range(0, len(sources), cfg.batch):
            src = torch.from_numpy(collate([(s, s) for s in sources[i:i + cfg.batch]])[0]).to(self.device)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                found = self.model.generate(src, languages[i:i + cfg.batch], cfg.beams, room, 0, cfg.length_penalty,
                                            cfg.no_repeat_ngram, cfg.temperature, cfg.top_k, cfg.top_p, self.banned)
            yield from (self.tokenizer.decode(hypotheses[0][0]) for hypotheses in found)

    def answer(self, texts, source, language):
        """A text for each text. To translate or denoise, a long one is cut at sentence ends and put together again;
        to summarise or answer, what the model cannot read of it is left out."""
        tok, cfg, longest = self.tokenizer, self.cfg, self.model.config.max_length
        if cfg.task in ('summarise', 'answer'):
            question = [tok.encode(cfg.question)] if cfg.question else []
            dressed = [cut_source(tok.dress(source, *question, tok.encode(text)), longest) for text in texts]
            return list(self.write(dressed, [language] * len(dressed)))
        pieces = [cut([self.encode(text)], tok, min(longest - 3, cfg.max_new_tokens)) for text in texts]
        dressed = [tok.dress(source, ids) for p in pieces for ids in p]
        written = self.write(dressed, [language] * len(dressed))
        return [('' if language == 'zh' else ' ').join(next(written) for _ in p) for p in pieces]

    def encode(self, text):
        """Ids of a text in which <mask> is the token."""
        parts = [self.tokenizer.encode(part) for part in text.split('<mask>')]
        return np.concatenate([parts[0], *(np.append(self.tokenizer.mask, p) for p in parts[1:])])


def newest():
    """The newest SWCM checkpoint below out/: the best of a run, or the last of one that has no best yet."""
    found = [p.parent for p in [*Path('out').glob('*/best/config.json'), *Path('out').glob('*/last/config.json')]
             if settings_of(p).get('model_type') == 'swcm' and (p.parent / 'model.safetensors').is_file()]
    if not found:
        raise FileNotFoundError('no checkpoint in out/; `python train.py config/tibetan.py` makes one, '
                                'or name one with --checkpoint=FOLDER')
    return max(found, key=lambda p: (p.name == 'best', (p / 'model.safetensors').stat().st_mtime))


def settings_of(path):
    """What a config.json says; {} where it is missing or damaged, as a model that is named can do without."""
    try:
        return parse_object(path.read_bytes(), path)
    except (OSError, ValueError):
        return {}


def show_examples(writer, folder, cfg, settings):
    """Prints source, output and reference of held-out examples, from the corpus that the model was trained on."""
    where = Path(folder).parent / 'config.json'
    if not settings:
        raise FileNotFoundError(f'{where} does not exist or is damaged, so the held-out text of {folder} is not known; '
                                'give --text')
    if 'task' in settings:                                                # finetune.py's
        return show_predictions(Path(folder) / 'predictions.jsonl', cfg.examples)
    settings = config.of_dict(config.Train, settings, where)
    encoder = Tokenizer(writer.model.sentencepiece, (), writer.model.config.vocab_size)
    data = prepare(settings.dataset, encoder, settings.block_size, settings.val_fraction, settings.data_from or None)
    examples = [(task, *task.val_example(i))
                for task in tasks(data, 'val', writer.tokenizer, settings)
                for i in np.linspace(0, len(task) - 1, cfg.examples + 2)[1:-1].astype(int)]
    outputs = writer.write([src for _, src, _ in examples], [task.target for task, _, _ in examples])
    for (task, src, tgt), output in zip(examples, outputs):
        print(f'{task.name}\n  source     {writer.tokenizer.decode(src)}\n  output     {output}\n'
              f'  reference  {writer.tokenizer.decode(tgt)}\n')


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
    cfg = config.load(Sample, argv)
    if cfg.task and cfg.task not in TASKS:
        raise ValueError(f'task={cfg.task!r}: choose {", ".join(TASKS)}')
    if cfg.file == '-' and sys.stdin is None:
        raise ValueError('file=-: standard input is closed; name a file')
    if cfg.text and cfg.file:
        raise ValueError(f'text={cfg.text[:40]!r}, file={cfg.file}: give one of them')
    folder = cfg.checkpoint or newest()
    settings = settings_of(Path(folder).parent / 'config.json')
    learned = settings.get('learn')
    learned = [d for d in learned if isinstance(d, str)] if isinstance(learned, list) else []
    tuned = settings.get('task') if learned and settings.get('task') in TASKS else ''
    cfg = replace(cfg, task=cfg.task or tuned or 'translate')
    if cfg.text + cfg.file and (cfg.task == 'answer') != bool(cfg.question):
        raise ValueError(f'task={cfg.task}, question={cfg.question!r}: --task=answer goes with a --question')
    torch.manual_seed(cfg.seed)
    writer = Writer(folder, cfg)
    print(f'model: {folder}', file=sys.stderr)
    if not cfg.text and not cfg.file:
        return show_examples(writer, folder, cfg, settings)
    if cfg.task == tuned:
        usual, to = languages_of(learned[0])
    else:
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
    if cfg.text:
        print(writer.answer([cfg.text], source, to)[0])
    elif cfg.file == '-' and sys.stdin.isatty():
        print(f'{source} to {to}; an empty line ends')
        try:
            while text := input('> '):
                print(writer.answer([text], source, to)[0])
        except EOFError:
            print()
    else:
        lines = read_lines(cfg.file)
        texts = list(islice(lines, cfg.batch))
        if not texts:
            raise ValueError(f'{cfg.file} has no text')
        while texts:
            print('\n'.join(writer.answer(texts, source, to)), flush=True)
            texts = list(islice(lines, cfg.batch))


if __name__ == '__main__':
    config.run(main)
