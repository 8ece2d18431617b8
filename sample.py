"""Text in, text out, with a checkpoint that train.py or finetune.py wrote.

    python sample.py                             the newest model of out/ on held-out examples
    python sample.py --text=你好 --to=bo          translates from zh, or from --source=LANG
    python sample.py --task=denoise --to=bo --text='བོད་<mask>ལ།'
    python sample.py --to=bo --file=zh.txt       line by line; with --file=- --batch=1 as you type

First how a model generates: cache, beams, the loop. Then filters, and the command line.
"""
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from config import FineTune, Sample, Train, cli, cuda, runtime
from config.cpu import pack
from data.batches import pad
from data.dataset import SPECIALS, prepare, split_segments, unread
from data.examples import languages_of, rotate_context, truncate
from data.files import check_folder, is_text, read_json_object, read_lines
from data.languages import BY_CHARACTER, ids_outside_scripts, wrong_script
from data.tasks import tasks
from data.tokenizer import BOS, EOS, PAD, Tokenizer
from model import SWCM

TASKS = 'translate', 'denoise', 'summarise', 'answer'
BY_SENTENCE = 'translate', 'denoise'                    # the others read a text at once


class KVCache:
    """Keys and values of all attention modules while a decoder generates.

    All texts of a source share slots, in the order in which tokens are generated. A mask says which
    slots are in the past of each text. So nothing is copied when a text continues another, and the
    texts of a source are only rows of queries. Two texts, "a c" and "a d", after two steps:

        slot    0    1     2   3   4   5        slot n: the n-th token generated
               <s> <lang>  a   b   c   d
        a c     x    x     x       x            no text continues b
        a d     x    x     x           x
    """
    def __init__(self, n_sources, n_slots, device):
        self.memory, self.generated, self.n_uses = {}, {}, 0    # use in a step: [keys, values]
        self.slots = torch.arange(n_slots, device=device)
        self.at = self.slots[:2]                            # the slots (T,) of the newest tokens
        self.n_used, self.n_texts = 2, 1                    # slots to read, texts of a source
        self.past = (self.slots <= self.at[:, None]).expand(n_sources, -1, -1)  # (B,T,slots)

    def positions(self):
        return self.past.sum(-1)                                        # (B,T), from 1

    def keys_values(self, attn, x, kv, mask):
        """Keys and values (B,H,used,D) that x (B,T,C) attends to, and their mask."""
        use = self.n_uses = self.n_uses + 1     # each step has the same uses in this order
        if kv is not None:                                              # the source: computed once
            if use not in self.memory:
                self.memory[use] = attn.keys_values(kv)
            return *self.memory[use], mask
        new = attn.keys_values(x)
        if use not in self.generated:
            B, H, _, D = new[0].shape
            self.generated[use] = [t.new_zeros(B, H, len(self.slots), D) for t in new]
        for stored, values in zip(self.generated[use], new):
            stored.index_copy_(2, self.at, values)
        k, v = (stored[:, :, :self.n_used] for stored in self.generated[use])
        return k, v, self.past[:, None, :, :self.n_used]

    def extend(self, parent):
        """Adds a slot for each new text, which continues the text parent (B,K) of its source."""
        before = self.past[:, -self.n_texts:].take_along_dim(parent[:, :, None], 1)
        self.n_texts, self.n_uses = parent.shape[1], 0
        self.at = self.at[-1:] + 1 + torch.arange(self.n_texts, device=self.at.device)      # (K,)
        self.past = before | (self.slots == self.at[:, None])           # (B,K,slots)
        self.n_used += self.n_texts

    def keep(self, rows):                                               # the sources `rows` alone
        self.past = self.past[rows]
        for pairs in (self.memory, self.generated):
            pairs.update({use: [x[rows] for x in pair] for use, pair in pairs.items()})


class Beams:
    """The K unfinished texts of each source, and its K best finished ones, best first.

    Of a source's 2K candidates, a </s> among the K best ends a text. A source is done when K texts
    have ended and no unfinished text would be better if it ended now (transformers' rule)."""
    def __init__(self, start, limits, K, length_penalty):
        """start (B,2): <s> <lang>; limits (B,): tokens after them, without </s>."""
        self.token, self.limits, self.length_penalty = start, limits, length_penalty
        self.n = torch.zeros_like(limits[:1])                           # tokens generated, (1,)
        self.source = torch.arange(len(start), device=start.device)     # row of the batch, (B,)
        self.ids = F.pad(start, (0, int(limits.max()) + 1), value=PAD)[:, None]     # (B,1,T)
        self.total = torch.zeros_like(limits[:, None], dtype=torch.float)           # (B,1)
        self.ended = self.ids.expand(-1, K, -1)                                     # (B,K,T)
        self.score = (self.total - torch.inf).expand(-1, K)                         # (B,K)
        self.done = torch.zeros_like(limits, dtype=torch.bool)                      # (B,)

    def extend(self, logp):
        """Adds a token to each text, given log p (R,V), a row for each. Returns parent (B,K): which
        of its source's texts each of the new ones continues."""
        K, self.n = self.score.shape[1], self.n + 1                     # with the new token
        best, token = (x.unflatten(0, self.total.shape) for x in topk(logp, 2 * K))     # (B,K,2K)
        total, i = (self.total[:, :, None] + best).flatten(1).topk(min(2 * K, best[0].numel()))
        parent, token = i // best.shape[2], token.flatten(1).gather(1, i)   # (B,2K)
        texts = self.ids.take_along_dim(parent[:, :, None], 1)          # (B,2K,T)
        texts.index_copy_(2, self.n + 1, token[:, :, None])
        norm, ends = self.n ** self.length_penalty, token == EOS
        ended = (total / norm).masked_fill(~ends | self.done[:, None], -torch.inf)[:, :K]
        self.score, kept = torch.cat([self.score, ended], 1).topk(K)
        self.ended = torch.cat([self.ended, texts[:, :K]], 1).take_along_dim(kept[:, :, None], 1)
        total = total.masked_fill(ends, -torch.inf)
        self.total, others = total.topk(min(K, total.shape[1]))
        self.ids = texts.take_along_dim(others[:, :, None], 1)
        self.token = token.gather(1, others)
        is_worse = self.total[:, 0] / norm <= self.score[:, -1]
        self.done = self.done | is_worse | (self.limits < self.n)
        return parent.gather(1, others)

    def keep(self, rows):                                               # the sources `rows` alone
        for name in 'token', 'limits', 'source', 'ids', 'total', 'ended', 'score', 'done':
            setattr(self, name, getattr(self, name)[rows])

    def found(self):
        """{source: its finished texts [(ids, score)], best first}, of sources that are done."""
        done = (x[self.done].tolist() for x in (self.source, self.ended, self.score))
        return {source: [(ids[2:ids.index(EOS)], score) for ids, score in zip(ended, scores)
                         if score > -torch.inf] for source, ended, scores in zip(*done)}


@torch.inference_mode()
def search(model, src, languages, limits, beams=1, length_penalty=1.0, no_repeat_ngram=0,
           temperature=0.0, top_k=0, banned=()):
    """Generates a text for each row of src (B,S), in the language and to the limit given for it.

    Greedy with beams=1, beam search with more, sampling with temperature > 0 and beams=1. At its
    limit a text ends with </s>. No n-gram of no_repeat_ngram tokens occurs twice (0: off), and no
    id of `banned`. Returns for each source its best texts [(ids, score)], best first, with

        score = sum of log p(token | before, source), </s> too, / (len(ids) + 1) ** length_penalty

    where p is the model's own probability. R: all texts of all sources, B * K."""
    c, device = model.config, src.device
    start = torch.tensor([[BOS, c.language_id(x)] for x in languages], device=device)       # (B,2)
    never = torch.tensor([*c.not_generated, *banned], device=device)
    memory = model.encoder.encode(src)
    cache = KVCache(len(src), 2 + beams * max(limits), device)
    texts = Beams(start, torch.tensor(limits, device=device), beams, length_penalty)

    def step():
        x = model.states(texts.token, memory, src, cache)[:, -cache.n_texts:]              # (B,K,C)
        logp = model.encoder.head(x.flatten(0, 1)).float().log_softmax(-1)                  # (R,V)
        logp.index_fill_(1, never, -torch.inf)
        if no_repeat_ngram:
            ban_repeats(logp, texts.ids.flatten(0, 1), texts.n, no_repeat_ngram)
        at_limit = (texts.n == texts.limits).repeat_interleave(cache.n_texts)                # (R,)
        end = logp[:, EOS].clone()
        logp.masked_fill_(at_limit[:, None], -torch.inf)[:, EOS] = end      # only </s> is left
        if temperature:
            logp = keep_sampled(logp, temperature, top_k)
        cache.extend(texts.extend(logp))

    if cuda.ENABLED and src.is_cuda and not temperature:
        cuda.replay(step, cache, texts, max(limits) + 1)
        return [*texts.found().values()]
    found = {}
    while len(src):
        step()
        if texts.done.any():
            found |= texts.found()
            rows = (~texts.done).nonzero()[:, 0]
            src = src[rows]                             # memory is only read in the first step
            cache.keep(rows)
            texts.keep(rows)
    return [found[b] for b in sorted(found)]


def generate_texts(model, tokenizer, sources, languages, max_new_tokens=0, batch=16, banned=(),
                   **options):
    """The model's text for each source, and for each whether it reached its limit: two lists.

    sources: ids with <s> <lang> </s>; languages: the target language of each. max_new_tokens: the
    limit; 0: 3 times the source's tokens plus 20. options: of `search`. Texts of similar length are
    batched, `batch` at a time, which changes the result only of sampling."""
    device, most = next(model.parameters()).device, model.config.max_length - 2
    limits = [min(max_new_tokens or 3 * len(source) + 20, most) for source in sources]
    banned = [*range(tokenizer.mask, tokenizer.vocab_size), *banned]    # ids that no text has
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    texts, at_limit = [''] * len(order), [False] * len(order)
    for rows in (order[i:i + batch] for i in range(0, len(order), batch)):
        src = pad([sources[i] for i in rows])
        found = search(model, torch.from_numpy(src).to(device), [languages[i] for i in rows],
                       [limits[i] for i in rows], banned=banned, **options)
        if not all(found):
            raise ValueError('the model generates no text: are its weights finite?')
        for i, [(ids, _), *_] in zip(rows, found):
            texts[i], at_limit[i] = tokenizer.decode(ids), len(ids) == limits[i]
    return texts, at_limit


def topk(x, n):
    """x.topk(n) for x (R,V), V a multiple of 64, faster: they are in the n best blocks of 64."""
    blocks = x.unflatten(1, (-1, 64))                                   # (R,V/64,64)
    if blocks.shape[1] <= n:
        return x.topk(min(n, x.shape[1]))
    which = blocks.amax(2).topk(n).indices                              # (R,n)
    best, i = blocks.take_along_dim(which[:, :, None], 1).flatten(1).topk(n)
    return best, which.gather(1, i // 64) * 64 + i % 64


def ban_repeats(logp, ids, n, length):
    """Bans, in logp (R,V), each token that would repeat an n-gram of this length, given ids (R,T)
    with <s>, <lang>, n (1,) tokens, padding."""
    if ids.shape[1] >= 2 + length:
        last = ids[:, (n + torch.arange(3 - length, 2, device=n.device)).clamp(min=0)]
        grams = ids[:, 2:].unfold(1, length, 1)                         # (R,T-length-1,length)
        is_repeat = (grams[:, :, :-1] == last[:, None]).all(-1)
        logp.scatter_add_(1, grams[:, :, -1], torch.where(is_repeat, -torch.inf, 0.0))


def keep_sampled(logp, temperature, top_k):
    """Samples a token for each row of logp (R,V); returns logp with -inf for all others."""
    p, order = (logp / temperature).softmax(-1).sort(-1, descending=True)
    p = p[:, :top_k or None]
    token = order.gather(1, p.multinomial(1))                           # (R,1)
    return torch.full_like(logp, -torch.inf).scatter(1, token, logp.gather(1, token))


def prepare_to_generate(model, device, dtype):
    """Moves a model to its device; on a CPU with dtype='auto' packs its weights. Returns the
    context, autocast, in which to generate."""
    device, compute = runtime.find_device(device, dtype)
    model.to(device).eval()
    if device.type == 'cpu' and dtype == 'auto':
        pack(model)
    return torch.autocast(device.type, compute, enabled=compute != torch.float32)


class TextGenerator:
    """A checkpoint that is ready to generate, and counts for warnings to the user."""
    def __init__(self, folder, cfg, longest):
        """cfg: Sample, with languages. longest: the longest source that it was trained on."""
        check_folder(folder)
        self.cfg, self.counts, self.model = cfg, Counter(), SWCM.load(folder)
        self.mixed = prepare_to_generate(self.model, cfg.device, cfg.dtype)
        c = self.model.config
        self.longest = min(longest, c.max_length)
        self.tokenizer = Tokenizer(self.model.encoder.sentencepiece, c.languages, c.vocab_size)
        scripts = cfg.force_script.upper().split('+')
        self.banned = ids_outside_scripts(self.tokenizer, scripts) if cfg.force_script else ()

    def generate(self, sources, languages):
        """The best text for each source, ids with <s> <lang> </s>; languages: one for each."""
        options = {name: getattr(self.cfg, name) for name in (
            'beams', 'length_penalty', 'no_repeat_ngram', 'temperature', 'top_k',
            'max_new_tokens', 'batch')}
        with self.mixed:
            texts, at_limit = generate_texts(self.model, self.tokenizer, sources, languages,
                                             banned=self.banned, **options)
        self.counts['outputs reached the limit of tokens; see --max_new_tokens'] += sum(at_limit)
        return texts

    def answer(self, texts):
        """A text in cfg.to for each text in cfg.source.

        Translation splits a text into sentences, denoising into segments of whole sentences; their
        outputs are joined. For a summary or an answer, a text is truncated to `longest` tokens."""
        tok, cfg, sources = self.tokenizer, self.cfg, []
        for text in texts:
            if cfg.question and cfg.rotate_context:
                text = rotate_context(cfg.question, text, cfg.source)
            ids = tok.encode_masked(text) if cfg.task == 'denoise' else tok.encode(text)
            self.counts['texts are over 25 % <unk>, not in the vocabulary'] += (
                unread(tok, text, ids) > 0.25)
            self.counts[f'texts are not in the script of {cfg.source}; see --source'] += (
                wrong_script(text.replace('<mask>', ''), cfg.source) is not None)
            if cfg.task in BY_SENTENCE:
                limit = self.longest - SPECIALS
                parts = split_segments([ids], tok, limit, limit if cfg.task == 'denoise' else 0)
                sources.append([tok.add_special_tokens(cfg.source, part) for part in parts])
                bounds = [*tok.sentence_starts(ids), len(ids)]
                self.counts[f'texts have a sentence that was cut: it has over {limit} tokens'] += (
                    max(np.diff(bounds)) > limit)
            else:
                question = [tok.encode(cfg.question)] if cfg.question else []
                whole = tok.add_special_tokens(cfg.source, *question, ids)
                sources.append([truncate(whole, self.longest)] if len(ids) else [])
                self.counts[f'texts were cut: the model reads {self.longest} tokens'] += (
                    len(whole) > self.longest)
        flat = [ids for parts in sources for ids in parts]
        parts = iter(self.generate(flat, [cfg.to] * len(flat)))
        space = '' if cfg.to in BY_CHARACTER else ' '
        outputs = [space.join(islice(parts, len(of_text))) for of_text in sources]
        self.counts['outputs are empty'] += sum(
            not output.strip() for output, of_text in zip(outputs, sources) if of_text)
        self.counts[f'outputs are not in the script of {cfg.to}; see --to, --force_script'] += sum(
            wrong_script(output, cfg.to) is not None for output in outputs)
        return outputs


def newest_checkpoint():
    """The model of the newest run below out/: its best, or its last where it has no best yet."""
    found = [p for p in Path('out').rglob('model.safetensors')
             if p.parent.name in ('best', 'last') and 'share' in read_settings(p.parent)]
    if not found:
        raise FileNotFoundError('no checkpoint in out/; `python train.py config/tibetan.py` makes '
                                'one, or name one with --checkpoint=FOLDER')
    return model_folder(max(found, key=lambda p: p.stat().st_mtime).parent.parent)


def model_folder(folder):
    """The folder itself or, if a run wrote it, that of the run's best model, or else its last."""
    inside = [Path(folder, name) for name in ('best', 'last') if Path(folder, name).is_dir()]
    return str(inside[0]) if inside else folder


def read_settings(folder, name='config.json'):
    """The settings of a model or, with name='run.json', of its run; {} if missing or damaged."""
    path = Path(folder, name)
    try:
        return read_json_object(path.read_bytes(), path)
    except (OSError, ValueError):
        return {}


def run_of(folder):
    """The settings, Train or FineTune, of the run that wrote the checkpoint `folder`, or None."""
    found = read_settings(folder, 'run.json')
    cls = FineTune if 'task' in found else Train
    try:
        return cls(**cli.from_dict(cls, found, folder)) if found else None
    except ValueError as e:                             # of a changed program
        print(f'warning: run.json is not used: {e}', file=sys.stderr)
        return None


def show_examples(generator, folder, run):
    """Prints source, output and reference of held-out examples of a run."""
    if isinstance(run, FineTune):
        return print(f'{folder}/predictions.jsonl has its outputs for the held-out examples')
    if not run:
        raise FileNotFoundError(f'the settings of the run of {folder} are missing: its '
                                'held-out text is not known; give --text')
    tok, n = generator.tokenizer, generator.cfg.examples
    data = prepare(run.dataset, tok, run.block_size, run.val_fraction, run.data_from)
    examples = [(task, *task.val_example(i)) for task in tasks(data, 'val', tok, run)
                for i in np.unique(np.linspace(0, len(task) - 1, n + 2)[1:-1].astype(int))]
    outputs = generator.generate([src for _, src, _ in examples],
                                 [task.target for task, *_ in examples])
    for (task, src, tgt), output in zip(examples, outputs):
        print(f'{task.name}\n  source     {tok.decode(src)}\n  output     {output}\n'
              f'  reference  {tok.decode(tgt)}\n')


def show_answers(generator, lines):
    """Prints an output for each line or, of a summary or an answer, for all lines together."""
    cfg, lines = generator.cfg, iter(lines)
    if cfg.task in BY_SENTENCE and (cfg.source != cfg.to) != (cfg.task == 'translate'):
        raise ValueError(f'{cfg.task} from {cfg.source} to {cfg.to}: see --source and --to')
    if cfg.task in TASKS and (cfg.task == 'answer') != bool(cfg.question):
        raise ValueError(f'task={cfg.task}, question={cfg.question!r}: --task=answer goes with a '
                         '--question')
    if cfg.task not in BY_SENTENCE:
        lines = iter(['\n'.join(lines)])
    while texts := list(islice(lines, cfg.batch)):
        print('\n'.join(generator.answer(texts)), flush=True)


def settings(given, run, languages):
    """The Sample of the settings given; what is not given is as in the model's run.

    Raises ValueError if task and options do not fit together."""
    task = given.get('task') or getattr(run, 'task', 'translate')
    if task not in (*TASKS, getattr(run, 'task', '')):
        raise ValueError(f'task={task!r}: choose {", ".join(TASKS)}')
    if isinstance(run, FineTune) and task == run.task:
        pairs = [languages_of(direction) for direction in run.directions]
        source, to = next(((source, to) for source, to in pairs
                           if given.get('source') in (source, '', None)
                           and given.get('to') in (to, '', None)), pairs[0])
        source = '' if source == to else source         # as the target
        scripts = dict(entry.split(':') for entry in run.force_script)
        usual = dict(beams=run.beams, length_penalty=run.length_penalty,
                     no_repeat_ngram=run.no_repeat_ngram, rotate_context=run.rotate_context,
                     max_new_tokens=run.max_target_len - SPECIALS)
    else:
        source, to, scripts, usual = 'zh' if task == 'translate' else '', languages[0], {}, {}
    to = given.get('to') or to
    cfg = Sample(**{**usual, 'force_script': scripts.get(to, ''), **given, 'task': task, 'to': to,
                    'source': given.get('source') or source or to})
    if cfg.temperature and cfg.beams > 1:
        raise ValueError(f'temperature={cfg.temperature} samples, which needs --beams=1')
    if cfg.top_k and not cfg.temperature:
        raise ValueError(f'top_k={cfg.top_k} is for sampling, with --temperature')
    if not is_text(cfg.text + cfg.question):
        raise ValueError(f'{ascii(cfg.text + cfg.question):.60}: expected UTF-8')
    if 'text' in given and cfg.file:
        raise ValueError(f'text={cfg.text[:40]!r}, file={cfg.file}: give one of them')
    return cfg


def main(argv):
    given = cli.parse(Sample, argv)
    folder = model_folder(given.get('checkpoint') or newest_checkpoint())
    run = run_of(folder)
    cfg = settings(given, run, read_settings(folder).get('languages', ['']))
    torch.manual_seed(cfg.seed)
    longest = getattr(run, 'max_source_len', getattr(run, 'block_size', sys.maxsize))
    generator = TextGenerator(folder, cfg, longest)
    print(f'model: {folder}', file=sys.stderr)
    if 'text' in given or cfg.file:
        show_answers(generator, cfg.text.split('\n') if 'text' in given else read_lines(cfg.file))
    else:
        show_examples(generator, folder, run)
    for what, times in generator.counts.items():
        if times:
            print(f'warning: {times} {what}', file=sys.stderr)


if __name__ == '__main__':
    cli.run(main)
