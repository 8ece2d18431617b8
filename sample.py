"""Text in, text out, with a checkpoint that train.py or finetune.py wrote.

    python sample.py                             the newest model of out/ on held-out examples
    python sample.py --text=你好 --to=bo          translates from zh, or from --source=LANG
    python sample.py --task=denoise --to=bo --text='བོད་<mask>ལ།'
    python sample.py --to=bo --file=zh.txt       a line each; --file=-: what you type or pipe in
"""
import os
import stat
import sys
from collections import Counter
from itertools import chain, islice
from pathlib import Path

from config import FineTune, Sample, Train, cli

if __name__ == '__main__':
    cli.start(Sample)                               # before torch, so that it answers at once

import numpy as np
import torch
import torch.nn.functional as F

from config import runtime
from config.cpu import pack
from data.batches import collate
from data.dataset import SPECIALS, prepare, split_segments
from data.examples import languages_of, truncate
from data.languages import BY_CHARACTER, full_width, wrong_script
from data.tasks import tasks
from data.files import check_folder, read_json_object, read_lines
from data.tokenizer import BOS, EOS, PAD, UNK, Tokenizer
from model import SWCM

TASKS = 'translate', 'denoise', 'summarise', 'answer'
BY_SENTENCE = 'translate', 'denoise'                    # the others read a text at once
LARGELY_UNKNOWN = 0.25                                  # fraction of <unk> for a warning


@torch.inference_mode()
def search(model, src, languages, limits, beams=1, length_penalty=1.0, no_repeat_ngram=0,
           temperature=0.0, top_k=0, top_p=1.0, banned=()):
    """Writes a text for each row of src (B,S), in the language and up to the limit given for it.

    Greedy with beams=1, beam search with more, sampling with temperature > 0 and beams=1. At its
    limit a text ends with </s>. No n-gram of no_repeat_ngram tokens comes twice (0: may), and no id
    of `banned` at all. Returns for each source its best texts [(ids, score)], best first, with

        score = sum of log p(token | before, source), </s> too, / (len(ids) + 1) ** length_penalty

    where p is the model's own probability.
    """
    c = model.config
    new = torch.tensor([[BOS, c.language_id(x)] for x in languages], device=src.device)     # (B,2)
    memory = model.encoder.encode(src)
    cache = KVCache(len(src), 2 + beams * max(limits, default=0), src.device)
    texts = Beams(new, limits, beams, length_penalty)
    while texts.open:
        x = model.states(new, memory, src, cache)[:, -texts.ids.shape[1]:]              # (B,rows,C)
        logp = model.encoder.head(x.flatten(0, 1)).float().log_softmax(-1)                  # (R,V)
        logp[:, [*c.never_written, *banned]] = -torch.inf
        if no_repeat_ngram:
            ban_repeats(logp, texts.ids.flatten(0, 1)[:, 2:], no_repeat_ngram)
        for rows in texts.at_limit():
            logp[rows, :EOS] = logp[rows, EOS + 1:] = -torch.inf
        if temperature:
            logp = keep_sampled(logp, temperature, top_k, top_p)
        left, row, new = texts.extend(logp)
        src = src[left]
        cache.go_on(left, row)
    return texts.ended


class KVCache:
    """Keys and values of all attentions while a decoder writes.

    All texts of a source write into the same slots, in the order of writing, and a mask says which
    slots are in the past of each. So nothing is copied when a text goes on from another, and the
    texts of a source are but rows of queries. Two texts, "a c" and "a d", after two steps:

        slot    0    1     2   3   4   5
               <s> <lang>  a   b   c   d
        a c     x    x     x       x            nobody goes on from b
        a d     x    x     x           x
    """
    def __init__(self, n_sources, n_slots, device):
        self.n_slots, self.memory, self.written = n_slots, {}, {}       # Attention: [keys, values]
        start = torch.ones(n_sources, 2, 2, dtype=torch.bool, device=device)
        self.past, self.rows = start.tril(), 1              # (B,T,slots), texts of a source

    def positions(self):
        return self.past.sum(-1)                                        # (B,T), from 1

    def qkv(self, attn, x, kv, mask):
        """For x (B,T,C): queries (B,H,T,D), keys and values (B,H,slots,D), their mask, causal."""
        if kv is not None:                                              # the source: computed once
            if attn not in self.memory:
                self.memory[attn] = [attn.heads(attn.key(kv)), attn.heads(attn.value(kv))]
            return attn.heads(attn.query(x)), *self.memory[attn], mask, False
        q, *new = attn.qkv(x, x)
        B, H, T, D = q.shape
        if attn not in self.written:
            self.written[attn] = [x.new_zeros(B, H, self.n_slots, D) for _ in new]
        n = self.past.shape[2]
        for slots, values in zip(self.written[attn], new):
            slots[:, :, n - T:n] = values
        return q, *(slots[:, :, :n] for slots in self.written[attn]), self.past[:, None], False

    def go_on(self, left, row):
        """Keeps the sources left (B,); their new texts go on from the texts row (B,K)."""
        if len(left) < len(self.past):
            for kept in (self.memory, self.written):
                kept.update({attn: [x[left] for x in pair] for attn, pair in kept.items()})
        before = self.past[:, -self.rows:][left[:, None], row]          # (B,K,slots)
        itself = torch.eye(row.shape[1], dtype=torch.bool, device=row.device)
        self.past = torch.cat([before, itself.expand(len(row), -1, -1)], 2)
        self.rows = row.shape[1]


class Beams:
    """The K texts of each open source that are being written, best first, and those that ended.

    A </s> among a source's K best candidates ends a text. A source is done when K texts have ended
    and no text that is being written, were it to end now, would be better (transformers' rule).
    """
    def __init__(self, start, limits, K, length_penalty):
        self.ids, self.total = start[:, None], start.new_zeros(len(start), 1, dtype=torch.float)
        self.limits, self.K, self.length_penalty = limits, K, length_penalty
        self.open, self.ended = list(range(len(start))), [[] for _ in start]

    def at_limit(self):
        """The rows, as slices of R, of each source whose texts have as many tokens as they may."""
        n = self.ids.shape[1]
        return [slice(b * n, b * n + n) for b, source in enumerate(self.open)
                if self.limits[source] == self.ids.shape[2] - 2]

    def extend(self, logp):
        """Adds a token to each text, given log p (R,V).

        Returns left (B,), which of the sources stay open, row (B,K), which of a source's texts each
        of its new ones continues, and the tokens (B,K).
        """
        rows, n = self.ids.shape[1], self.ids.shape[2] - 1              # n tokens with the new one
        score, row, token = best_candidates(self.total, logp, 2 * self.K)   # at most K are </s>
        ends = (token == EOS) & score.isfinite()                        # (B,2K)
        for b, i in ends[:, :self.K].nonzero().tolist():
            text = self.ids[b, row[b, i], 2:].tolist()
            self.ended[self.open[b]].append((text, score[b, i].item() / n ** self.length_penalty))
        go_on = ends.int().argsort(dim=1, stable=True)[:, :min(self.K, score.shape[1] - rows)]
        score, row, token = (x.gather(1, go_on) for x in (score, row, token))               # (B,K)
        best = (score[:, 0] / n ** self.length_penalty).tolist()
        left = [b for b, source in enumerate(self.open) if not self.is_done(source, n, best[b])]
        self.open = [self.open[b] for b in left]
        left = torch.tensor(left, dtype=torch.long, device=row.device)
        self.total, row, token = score[left], row[left], token[left]
        self.ids = torch.cat([self.ids[left[:, None], row], token[:, :, None]], 2)
        return left, row, token

    def is_done(self, source, n, best):
        ended = sorted(self.ended[source], key=lambda text: -text[1])[:self.K]
        self.ended[source] = ended
        return n > self.limits[source] or len(ended) == self.K and best <= ended[-1][1]


def best_candidates(total, logp, n):
    """The n best ways to go on from texts of scores (B,rows), given log p (R,V) of the next token.

    Returns scores, the text that each continues, and its token, (B,n) each, best first.
    """
    best, token = (x.unflatten(0, total.shape) for x in topk(logp, n))  # (B,rows,n)
    score, i = (total[:, :, None] + best).flatten(1).topk(min(n, best[0].numel()))
    return score, i // best.shape[2], token.flatten(1).gather(1, i)


def topk(x, n):
    """x.topk(n) for x (R,V), V a multiple of 64, faster: they are in the n best blocks of 64."""
    blocks = x.unflatten(1, (-1, 64))                                   # (R,V/64,64)
    if blocks.shape[1] <= n:
        return x.topk(min(n, x.shape[1]))
    which = blocks.amax(2).topk(n).indices                              # (R,n)
    best, i = blocks.take_along_dim(which[:, :, None], 1).flatten(1).topk(n)
    return best, which.gather(1, i // 64) * 64 + i % 64


def ban_repeats(logp, ids, n):
    """Bans, in logp (R,V), each token that would complete an n-gram that is in ids (R,T)."""
    if ids.shape[1] >= n:
        grams = ids.unfold(1, n, 1)                                     # (R,T-n+1,n)
        same = (grams[:, :, :-1] == ids[:, None, ids.shape[1] - n + 1:]).all(-1)
        row, at = same.nonzero(as_tuple=True)
        logp[row, grams[row, at, -1]] = -torch.inf


def keep_sampled(logp, temperature, top_k, top_p):
    """Samples a token a row of logp (R,V); returns logp with -inf for all others."""
    p, order = (logp / temperature).softmax(-1).sort(-1, descending=True)
    if top_k:
        p = p[:, :top_k] / p[:, :top_k].sum(-1, keepdim=True)
    if top_p < 1:                                                       # keep what crosses it
        p = p.masked_fill(p.cumsum(-1) - p > top_p, 0)
    token = order.gather(1, p.multinomial(1))                           # (R,1)
    return torch.full_like(logp, -torch.inf).scatter(1, token, logp.gather(1, token))


def write(model, tokenizer, sources, languages, max_new_tokens=0, batch=16, banned=(), **options):
    """The model's text for each source: [(text, whether it came to its limit)].

    sources: ids with <s> <lang> </s>; languages: one to write for each. max_new_tokens: at most so
    many; 0: three times the source's and 20, enough for 1,999 of 2,000 lines of NTREX in each of
    README's directions. options: of `search`. Texts of like length are written together, `batch`
    at a time, which changes none.
    """
    device, most = next(model.parameters()).device, model.config.max_length - 2
    limits = [min(max_new_tokens or 3 * len(source) + 20, most) for source in sources]
    banned = [*range(tokenizer.mask, tokenizer.vocab_size), *banned]    # rows that no text has
    multiple = getattr(model, 'source_multiple', 1)                     # see `pack`
    order, written = sorted(range(len(sources)), key=lambda i: len(sources[i])), {}
    for rows in (order[i:i + batch] for i in range(0, len(order), batch)):
        src = torch.from_numpy(collate([(sources[i], sources[i]) for i in rows])[0])        # (B,S)
        n = src.shape[1]
        src = F.pad(src, (0, max(0, min(-n % multiple, most + 2 - n))), value=PAD).to(device)
        found = search(model, src, [languages[i] for i in rows], [limits[i] for i in rows],
                       banned=banned, **options)
        if not all(found):
            raise ValueError('the model finds no text: weights that are not finite?')
        for i, [(ids, _), *_] in zip(rows, found):
            written[i] = tokenizer.decode(ids), len(ids) == limits[i]
    return [written[i] for i in range(len(sources))]


class Writer:
    """A checkpoint that is ready to write, and counts of what its user has to know.

    cfg: Sample. longest: tokens that the model learned to read at once, 0 if that is not known.
    """
    def __init__(self, folder, cfg, longest=0):
        self.device, self.dtype = runtime.find_device(cfg.device, cfg.dtype)
        check_folder(folder)
        self.model, self.cfg, self.counts = SWCM.load(folder).to(self.device), cfg, Counter()
        if self.device.type == 'cpu' and self.dtype == torch.float32:
            pack(self.model, 8 if cfg.int8 else 32 if cfg.dtype == 'float32' else 16)
        elif cfg.int8:
            raise ValueError(f'int8 is for float32 on a CPU, not {self.dtype} on {self.device}')
        c = self.model.config
        self.longest = min(longest or c.max_length, c.max_length)
        self.tokenizer = Tokenizer(self.model.encoder.sentencepiece, c.languages, c.vocab_size)
        scripts = cfg.force_script.upper().split('+') if cfg.force_script else None
        self.banned = self.tokenizer.ids_outside_scripts(scripts) if scripts else ()

    def write(self, sources, languages):
        """The best text for each source, ids with <s> <lang> </s>; languages: one for each."""
        c = self.cfg
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            found = write(self.model, self.tokenizer, sources, languages, c.max_new_tokens, c.batch,
                          self.banned, beams=c.beams, length_penalty=c.length_penalty,
                          no_repeat_ngram=c.no_repeat_ngram, temperature=c.temperature,
                          top_k=c.top_k, top_p=c.top_p)
        self.counts['at limit'] += sum(at_limit for _, at_limit in found)
        return [text for text, _ in found]

    def answer(self, texts, source, language):
        """A text in `language` for each text in `source`.

        Translation takes a text by sentences, denoising by pieces that end with one, and joins the
        outputs. For a summary or an answer, a text is cut to what the model can read.
        """
        tok, cfg = self.tokenizer, self.cfg
        encoded = [tok.encode_masked(t) if cfg.task == 'denoise' else tok.encode(t) for t in texts]
        unknown = [(ids == UNK).sum() for ids in encoded]
        self.counts.update({
            'texts': len(texts), 'tokens': sum(map(len, encoded)), '<unk>': sum(unknown),
            'unknown': sum(n > LARGELY_UNKNOWN * len(ids) for n, ids in zip(unknown, encoded)),
            'script': sum(wrong_script(t.replace('<mask>', ''), source) is not None
                          for t in texts)})
        if cfg.task not in BY_SENTENCE:
            question = [tok.encode(cfg.question)] if cfg.question else []
            whole = [tok.add_special_tokens(source, *question, ids) for ids in encoded]
            self.counts['cut'] += sum(len(ids) > self.longest for ids in whole)
            sources = [[truncate(ids, self.longest)] for ids in whole]
        else:
            limit = self.longest - SPECIALS
            gather = cfg.gather if cfg.task == 'translate' else limit
            for ids in encoded:
                self.counts['cut'] += (np.diff([*tok.sentence_starts(ids), len(ids)]) > limit).sum()
            sources = [[tok.add_special_tokens(source, part)
                        for part in split_segments([ids], tok, limit, gather)] for ids in encoded]
        flat = [ids for parts in sources for ids in parts]
        written = iter(self.write(flat, [language] * len(flat)))
        space = '' if language in BY_CHARACTER else ' '
        answers = [space.join(islice(written, len(parts))) for parts in sources]
        return list(map(full_width, answers)) if language == 'zh' and cfg.full_width else answers

    def warn(self, source):
        """Says on standard error what became of the texts so far, and counts anew."""
        n, self.counts = self.counts, Counter()
        by_sentence = self.cfg.task in BY_SENTENCE
        cut = 'sentences were split' if by_sentence else 'texts lost their ends'
        for name, what in (
                ('at limit', 'outputs have as many tokens as they may; see --max_new_tokens'),
                ('cut', f'{cut}: longer than the {self.longest} tokens that the model reads'),
                ('unknown', f'of {n["texts"]} texts are largely <unk>, not in the vocabulary: '
                            f'{n["<unk>"]} of all {n["tokens"]} tokens'),
                ('script', f'of {n["texts"]} texts are not in the script of {source}; '
                           'see --source')):
            if n[name]:
                print(f'warning: {n[name]} {what}', file=sys.stderr)


def newest_checkpoint():
    """The model of the newest run below out/: its best, or its last where it has no best yet."""
    found = [p.parent for p in Path('out').glob('*/*/model.safetensors')
             if p.parent.name in ('best', 'last') and 'share' in read_settings(p.parent)]
    if not found:
        raise FileNotFoundError('no checkpoint in out/; `python train.py config/tibetan.py` makes '
                                'one, or name one with --checkpoint=FOLDER')
    run = max(found, key=lambda p: (p / 'model.safetensors').stat().st_mtime).parent
    return min(p for p in found if p.parent == run)                     # best is before last


def model_folder(folder):
    """The folder itself or, if it is that of a run, its best model, or else its last."""
    inside = [Path(folder, name) for name in ('best', 'last') if Path(folder, name).is_dir()]
    return str(inside[0]) if folder and inside else folder


def read_settings(folder):
    """config.json of a run or model; {} where it is missing or damaged."""
    path = Path(folder, 'config.json')
    try:
        return read_json_object(path.read_bytes(), path)
    except (OSError, ValueError):
        return {}


def run_of(folder):
    """The settings, Train or FineTune, of the run that wrote the checkpoint `folder`, or None."""
    found = read_settings(Path(folder).parent)
    cls = FineTune if 'task' in found else Train
    try:
        return cls(**cli.from_dict(cls, found, folder)) if found else None
    except ValueError:
        return None


def show_examples(writer, folder, run):
    """Prints source, output and reference of held-out examples of a run."""
    if not run:
        raise FileNotFoundError(f'the settings of the run of {folder} are not beside it: its '
                                'held-out text is not known; give --text')
    n, tok, c = writer.cfg.examples, writer.tokenizer, writer.model.config
    if isinstance(run, FineTune):                                       # its outputs are in a file
        lines = [read_json_object(line, folder) for line in
                 read_lines(Path(folder, 'predictions.jsonl'))]
        kinds = {f'{x["test"]}, {x["direction"]}': [] for x in lines}
        for x in lines:
            kinds[f'{x["test"]}, {x["direction"]}'].append(
                (' | '.join(x['source']), x['prediction'], x['reference']))
        shown = [(kind, *found[i]) for kind, found in kinds.items() for i in spread(len(found), n)]
    else:
        encoder = Tokenizer(tok.model, (), c.vocab_size)
        data = prepare(run.dataset, encoder, run.block_size, run.val_fraction, run.data_from)
        examples = [(task, *task.val_example(i)) for task in tasks(data, 'val', tok, run)
                    for i in spread(len(task), n)]
        outputs = writer.write([src for _, src, _ in examples], [t.target for t, *_ in examples])
        shown = [(task.name, tok.decode(src), output, tok.decode(tgt))
                 for (task, src, tgt), output in zip(examples, outputs)]
    for kind, source, output, reference in shown:
        print(f'{kind}\n  source     {source}\n  output     {output}\n  reference  {reference}\n')


def spread(n, k):
    """k indices below n, evenly spread."""
    return np.linspace(0, n - 1, k + 2)[1:-1].astype(int)


def settings(given, run, languages):
    """(Sample, language to read, language to write) from the settings given and a model's run."""
    cfg = Sample(**given)
    if cfg.task and cfg.task not in (*TASKS, getattr(run, 'task', '')):
        raise ValueError(f'task={cfg.task!r}: choose {", ".join(TASKS)}')
    if isinstance(run, FineTune) and cfg.task in ('', run.task):        # write as in its scores
        usual, to = languages_of(run.learn[0])
        scripts = dict(entry.split(':') for entry in run.force_script)
        cfg = Sample(**{'beams': run.beams, 'length_penalty': run.length_penalty, 'task': run.task,
                        'no_repeat_ngram': run.no_repeat_ngram,
                        'max_new_tokens': run.max_target_len - SPECIALS,
                        'force_script': scripts.get(cfg.to or to, ''), **given})
    else:
        cfg.task, to = cfg.task or 'translate', languages[0]
        usual = 'zh' if cfg.task == 'translate' else to
    source = cfg.source or (usual if cfg.task == 'translate' or usual != to else cfg.to or to)
    return cfg, source, cfg.to or to


def check(cfg, source, to):
    """Raises ValueError where task and languages do not fit."""
    if cfg.task == 'translate' and source == to:
        raise ValueError(f'translate from {source} to {to}: name another language with --source')
    if cfg.task == 'denoise' and source != to:
        raise ValueError(f'denoise from {source} to {to}: give one language, --to={source}')
    if cfg.temperature and cfg.beams > 1:
        raise ValueError(f'temperature={cfg.temperature} samples, which needs --beams=1')
    if cfg.question and cfg.task in BY_SENTENCE or cfg.task == 'answer' and not cfg.question:
        raise ValueError(f'task={cfg.task}, question={cfg.question!r}: --task=answer goes with a '
                         '--question')


def main(argv):
    given = cli.parse(Sample, argv)
    if 'text' in given and given.get('file'):
        raise ValueError(f'text={given["text"][:40]!r}, file={given["file"]}: give one of them')
    if given.get('file') == '-' and not sys.stdin:
        raise ValueError('file=-: standard input is closed; name a file')
    folder = model_folder(given.get('checkpoint') or newest_checkpoint())
    run = run_of(folder)
    cfg, source, to = settings(given, run, read_settings(folder).get('languages', ['']))
    torch.manual_seed(cfg.seed)
    learned = run.max_source_len if isinstance(run, FineTune) else getattr(run, 'block_size', 0)
    writer = Writer(folder, cfg, learned)
    print(f'model: {folder}', file=sys.stderr)
    lines = ([cfg.text] if 'text' in given else read_lines(cfg.file) if cfg.file else piped_lines())
    if lines is None:
        return show_examples(writer, folder, run)
    check(cfg, source, to)
    for language in (source, to):
        writer.tokenizer.language_id(language)                          # raises for one unknown
    is_dialogue = cfg.file == '-' and sys.stdin.isatty()
    if is_dialogue:
        print(f'{source} to {to}; Ctrl-D ends', file=sys.stderr)
    lines, size = iter(lines), 1 if is_dialogue else cfg.batch
    texts = list(islice(lines, size))
    if not texts and not is_dialogue:
        raise ValueError(f'{cfg.file} has no text')
    while texts:
        print('\n'.join(writer.answer(texts, source, to)), flush=True)
        texts = list(islice(lines, size))
        if is_dialogue or not texts:
            writer.warn(source)


def piped_lines():
    """The lines of a pipe or file that standard input is; None where it is neither or has none."""
    mode = os.fstat(sys.stdin.fileno()).st_mode if sys.stdin else 0
    if not stat.S_ISFIFO(mode) and not stat.S_ISREG(mode):
        return None
    print('reading standard input', file=sys.stderr)
    lines = read_lines('-')
    first = next(lines, None)
    return None if first is None else chain([first], lines)


if __name__ == '__main__':
    cli.run(main)
