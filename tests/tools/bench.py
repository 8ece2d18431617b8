"""Speed and memory of SWCM beside transformers: XLM-R base's sizes, random weights.

    python tests/tools/bench.py                                      # on a CPU; gpu.py: on a GPU
    python tests/tools/bench.py --profile --work train/8/1           # where the time goes
    python tests/tools/bench.py --systems swcm --vocab 250002 57000  # with a smaller vocabulary
    python tests/tools/bench.py --text FILE --encoder data/nano      # preparing text, and batches

swcm              our model, with 12 custom layers and the paper's 3 inserted; float32
swcm-16           as sample.py uses it: 16-bit weights
bert2bert         transformers' EncoderDecoderModel of two XLM-R, with cross-attention
ct2, ct2-int8     CTranslate2 (`pip install ctranslate2`) on a CPU, with an mBART of 12 + 12 layers;
                  it reads 99M weights a token beside the output's, where swcm reads 181M
plain             a linear layer and torch's cross-entropy, beside which `head` is ours

Works are generate/BATCH/BEAMS, train/BATCH/1 (a step of AdamW) and head/BATCH/1 (head and loss,
with gradients). Each row has a process of its own. Seconds are medians. `ratio` compares with the
first row of the same work. `peak` is the process' memory.

`of floor` compares with what this machine can do, measured just before and after: the work's
products at the rate of a large one, or the time to read the weights of the decoder and the head for
each new token, whichever is longer. In float32.
"""
import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

import config
import data.dataset
from config.cpu import PackedHead, pack
from data.batches import Batches
from data.files import read_lines
from data.tasks import tasks
from data.tokenizer import BOS, EOS, PAD, Tokenizer
from model import SWCM, SWCMConfig
from sample import search

LENGTH = {'generate': 64, 'train': 128, 'head': 128}       # tokens of a source and of a target
WORK = ['generate/1/1', 'generate/1/5', 'generate/8/1', 'generate/8/5', 'train/8/1', 'head/8/1']


def flops(model, n_sources, n_targets):
    """Operations of a step: 6 a weight and token (Kaplan et al. 2020, section 2.1).

    Attention's products over positions are left out: below 5 % at 256 tokens and base size.
    """
    def n_weights(module):
        return sum(p.numel() for p in module.parameters() if p.dim() == 2)

    read = sum(n_weights(part.key) + n_weights(part.value) for layer in model.decoder
               for name, part in layer.named_children() if name == 'cross_attn')
    written = n_weights(model.decoder) - read + n_weights(model.encoder.head)
    return 6 * (n_sources * (n_weights(model.encoder.layers) + read) + n_targets * written)


class System:
    """Has a `module`, and of the methods decode, loss and head those that its `jobs` need."""
    jobs = ()

    @property
    def size(self):
        return sum(p.numel() for p in self.module.parameters())

    def cost(self, job, batch, beams, length):
        """Operations of the work, and bytes of float32 weights that it reads; 0: not counted."""
        return 0, 0


class Ours(System):
    jobs, is_packed = ('generate', 'train', 'head'), False

    def __init__(self, vocab):
        self.module = SWCM(SWCMConfig(vocab_size=vocab, languages=('bo',), insert_every=3))
        self.module.encoder.head.bias.data[EOS] = -1e4      # outputs end at their limit only

    def cost(self, job, batch, beams, length):
        if self.is_packed:
            return 0, 0
        model, n = self.module, batch * length
        if job == 'head':
            return 6 * n * model.encoder.head.word.weight.numel(), 0
        operations = flops(model, n, n * beams)             # forward and backward
        read = 4 * flops(model, 0, 1) / 6                   # bytes for a token
        return (operations, 0) if job == 'train' else (operations / 3, length * read)

    def decode(self, src, new, beams):
        """src (B,S) -> a list of `new` ids a sentence."""
        if self.is_packed and not isinstance(self.module.encoder.head, PackedHead):
            pack(self.module)
        found = search(self.module, src, ['bo'] * len(src), [new] * len(src), beams)
        return [best[0][0] for best in found]

    def loss(self, src, tgt):
        """src (B,S), tgt (B,T), all of it predicted -> loss per token."""
        given = torch.tensor([BOS, self.module.config.language_id('bo')]).expand(len(tgt), 2)
        loss, n = self.module.loss(src, torch.cat([given, tgt], 1))
        return loss / n

    def head(self, x, labels):
        """x (N,C), labels (N,) -> loss per token."""
        return self.module.encoder.head.loss(x, labels) / len(labels)


class Half(Ours):
    jobs, is_packed = ('generate',), True


class Bert2Bert(System):
    jobs, options = ('generate', 'train'), {}

    def __init__(self, vocab):
        from transformers import (
            EncoderDecoderModel,
            XLMRobertaConfig,
            XLMRobertaForCausalLM,
            XLMRobertaModel,
        )
        sizes = dict(vocab_size=vocab, max_position_embeddings=514, type_vocab_size=1,
                     layer_norm_eps=1e-5, bos_token_id=0, pad_token_id=1, eos_token_id=2)
        decoder = XLMRobertaForCausalLM(XLMRobertaConfig(**sizes, is_decoder=True,
                                                         add_cross_attention=True))
        self.module = EncoderDecoderModel(
            encoder=XLMRobertaModel(XLMRobertaConfig(**sizes), add_pooling_layer=False),
            decoder=decoder)
        for c in (self.module.config, self.module.generation_config):
            c.decoder_start_token_id, c.bos_token_id, c.pad_token_id, c.eos_token_id = 0, 0, 1, 2

    def decode(self, src, new, beams):
        return self.module.generate(input_ids=src, attention_mask=torch.ones_like(src),
                                    num_beams=beams, do_sample=False, min_new_tokens=new,
                                    max_new_tokens=new, **self.options)[:, 1:].tolist()

    def loss(self, src, tgt):
        return self.module(input_ids=src, attention_mask=torch.ones_like(src), labels=tgt).loss


class CTranslate2(System):
    jobs, weights, size = ('generate',), 'float32', 0

    def __init__(self, vocab):
        import ctranslate2
        from ctranslate2.converters import TransformersConverter
        from transformers import MBartConfig, MBartForConditionalGeneration
        from transformers.utils import logging

        logging.disable_progress_bar()
        # it takes and gives strings
        tokens = ['<s>', '<pad>', '</s>', '<unk>', *map(str, range(4, vocab))]
        model = MBartForConditionalGeneration(MBartConfig(
            vocab_size=vocab, d_model=768, encoder_layers=12, decoder_layers=12,
            encoder_attention_heads=12, decoder_attention_heads=12, encoder_ffn_dim=3072,
            decoder_ffn_dim=3072, max_position_embeddings=514, decoder_start_token_id=2,
            # for Converter
            tokenizer_class='MBart50Tokenizer', normalize_before=True, normalize_embedding=True))
        tokenizer = SimpleNamespace(get_vocab=lambda: dict(zip(tokens, range(vocab))),
                                    bos_token='<s>', eos_token='</s>', unk_token='<unk>')
        self.module, self.tokens = torch.nn.Module(), tokens
        self.ids = dict(zip(tokens, range(vocab)))
        self.size = model.num_parameters()

        class Converter(TransformersConverter):  # of a model that is here already
            def load_model(self, *_, **__):
                return model

            def load_tokenizer(self, *_, **__):
                return tokenizer

        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(f'{folder}/mbart')
            Converter(f'{folder}/mbart').convert(f'{folder}/ct2', quantization=self.weights)
            self.translator = ctranslate2.Translator(f'{folder}/ct2', compute_type=self.weights,
                                                     inter_threads=1,
                                                     intra_threads=torch.get_num_threads())

    def decode(self, src, new, beams):
        sources = [[self.tokens[i] for i in row] for row in src.tolist()]
        found = self.translator.translate_batch(sources, beam_size=beams, min_decoding_length=new,
                                                max_decoding_length=new)
        return [[self.ids[token] for token in best.hypotheses[0]] for best in found]


class CTranslate2Int8(CTranslate2):
    weights = 'int8'


class Plain(System):
    jobs = ('head',)

    def __init__(self, vocab):
        self.module = torch.nn.Linear(768, vocab)

    def head(self, x, labels):
        return torch.nn.functional.cross_entropy(self.module(x), labels)


SYSTEMS = {'swcm': Ours, 'swcm-16': Half, 'bert2bert': Bert2Bert, 'ct2': CTranslate2,
           'ct2-int8': CTranslate2Int8, 'plain': Plain}


def rates():
    """Operations a second of a large product, and bytes a second of weights read for one row.

    Each is that of the faster of PyTorch's two libraries, MKL and oneDNN.
    """
    size = 3072
    rows = torch.randn(size, size)
    weights = [torch.randn(size, size) for _ in range(4)]   # 0.15 GB: no cache holds it
    products = [lambda x, w: x @ w.T]
    if torch.backends.mkldnn.is_available():
        products.append(lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, 'none', [], ''))
    multiply = min(median(lambda: f(rows, rows), 5)[0] for f in products)
    read = min(median(lambda: [f(rows[:1], w) for w in weights], 5)[0] for f in products)
    return 2 * size**3 / multiply, sum(w.numel() * w.element_size() for w in weights) / read


def median(run, n):
    """Seconds of a run: the median, and all n; one before them does not count."""
    seconds = []
    for i in range(1 + n):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), seconds[1:]


def slowest(run):
    """(operator, fraction of the time of a run) of the five that take most."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    found = sorted(((e.self_cpu_time_total, e.key) for e in profile.key_averages()), reverse=True)
    return [(name, time / sum(t for t, _ in found)) for time, name in found[:5]]


def generation(system, src, beams):
    def run():
        with torch.inference_mode():
            outputs = system.decode(src, src.shape[1], beams)
        assert [len(ids) for ids in outputs] == [src.shape[1]] * len(src)
    return run


def training(system, src, tgt):
    optimizer = torch.optim.AdamW(system.module.parameters(), fused=True)

    def run():
        system.loss(src, tgt).backward()
        optimizer.step()
        optimizer.zero_grad()
    return run


def head_and_loss(system, tgt):
    labels = tgt.flatten()
    x = torch.randn(len(labels), 768, requires_grad=True)

    def run():
        system.head(x, labels).backward()
        x.grad = None
        system.module.zero_grad()
    return run


def measure(name, vocab, work, runs, profile):
    """The row of one system and work, in a process of its own: a dict of figures."""
    before = rates()
    torch.manual_seed(1)
    job, batch, beams = work.split('/')
    batch, beams, length = int(batch), int(beams), LENGTH[job]
    system = SYSTEMS[name](vocab)
    system.module.train(job == 'train')
    size = system.size  # before packing
    operations, read = system.cost(job, batch, beams, length)
    src, tgt = (torch.randint(4, vocab, (batch, length)) for _ in range(2))
    src[:, 0], src[:, -1] = 0, 2
    if job == 'generate':
        run = generation(system, src, beams)
    elif job == 'train':
        run = training(system, src, tgt)
    else:
        run = head_and_loss(system, tgt)
    seconds, all_runs = median(run, runs)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    products, reads = map(statistics.harmonic_mean, zip(before, rates()))
    row = dict(work=work, vocab=vocab, system=name, seconds=seconds, runs=all_runs,
               tokens_per_s=batch * length / seconds, parameters=size, tflops=products / 1e12,
               gb_per_s=reads / 1e9, peak_gb=peak / 2**30)
    if isinstance(system, CTranslate2):
        row['peak_gb'] = None  # it would be that of the conversion
    if operations:
        row['of_floor'] = max(operations / products, read / reads) / seconds
    return {**row, 'profile': slowest(run) if profile else []}


HEADER = (f'{"work":14}{"ids":>8}  {"system":17}{"size":>6}{"seconds":>11}{"target tokens":>13}'
          f'{"ratio":>7}{"of floor":>9}{"peak":>11}   the machine')


def show(row, first):
    """Prints a row; its ratio is to the first row of the same work."""
    floor = f'{row["of_floor"]:9.0%}' if 'of_floor' in row else f'{"":9}'
    peak = f'{row["peak_gb"]:.1f} GB' if row['peak_gb'] else ''
    print(f'{row["work"]:14}{row["vocab"]:8,}  {row["system"]:17}{row["parameters"] / 1e6:5.0f}M'
          f'{row["seconds"]:9.2f} s{row["tokens_per_s"]:11,.1f}/s'
          f'{first["seconds"] / row["seconds"]:7.2f}{floor}{peak:>11}'
          f'   {row["tflops"]:.3g} TFLOP/s, {row["gb_per_s"]:.0f} GB/s', flush=True)
    for name, fraction in row['profile']:
        print(f'{fraction:32.1%}  {name[:80]}', flush=True)


def measure_text(path, encoder, runs):
    """MB/s of preparing text beside SentencePiece line by line, and tokens/s of batches alone.

    With a line a document, and with twenty, which fill the segments of 256 tokens.
    """
    tokenizer = Tokenizer(encoder, ('bo', 'zh'))
    lines = [line for line in read_lines(path) if line.strip()]
    plain, _ = median(lambda: [tokenizer.sp.encode(line) for line in lines], runs)
    for n in (1, 20):
        documents = ['\n'.join(lines[i:i + n]) for i in range(0, len(lines), n)]
        with tempfile.TemporaryDirectory() as folder:
            text, times = Path(folder, 'bo.txt'), []
            data.dataset.token_folder = lambda dataset: Path(folder, 'tokens')
            text.write_text(('\n' if n == 1 else '\n\n').join(documents) + '\n', encoding='utf-8')
            megabytes = text.stat().st_size / 1e6
            for i in range(runs):
                started = time.perf_counter()
                held_out = 0.01 + i / 1e6  # another fraction, so that nothing is there yet
                tokens = data.dataset.prepare('text', tokenizer, 256, held_out, str(text))
                times.append(time.perf_counter() - started)
            print(f'{megabytes:.0f} MB, {n} lines a document: SentencePiece line by line '
                  f'{megabytes / plain:.1f} MB/s, prepare '
                  f'{megabytes / statistics.median(times):.1f} MB/s')
            measure_batches(tokens, tokenizer)


def measure_batches(tokens, tokenizer):
    cfg = config.Train(languages=('bo',), batch_tokens=16384)
    found = tasks(tokens, 'train', tokenizer, cfg)
    batches = Batches(found, cfg)
    started = time.perf_counter()
    made = [batches[k] for k in range(256)]
    seconds = time.perf_counter() - started
    examples = sum(len(src) for src, _ in made)
    target = sum(int((tgt != PAD).sum()) for _, tgt in made)
    real = target + sum(int((src != PAD).sum()) for src, _ in made)
    padding = 1 - real / sum(src.size + tgt.size for src, tgt in made)
    print(f'  batches: {target / seconds:,.0f} target tokens/s in one process, '
          f'{target / examples:.0f} an example, {padding:.1%} of all is padding')


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--systems', nargs='+', choices=SYSTEMS,
                        default=['swcm', 'swcm-16', 'bert2bert', 'plain'])
    parser.add_argument('--vocab', nargs='+', type=int, default=[250002], help='ids')
    parser.add_argument('--work', nargs='+', default=WORK,
                        help='generate/BATCH/BEAMS, train/BATCH/1 or head/BATCH/1')
    parser.add_argument('--runs', type=int, default=3)
    parser.add_argument('--profile', action='store_true',
                        help='which operators take most of the time')
    parser.add_argument('--json', help='file for all figures')
    parser.add_argument('--text', help='a text file: measures preparing it instead')
    parser.add_argument('--encoder', default='data/nano', help='the vocabulary for --text')
    parser.add_argument('--one', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.text:
        return measure_text(args.text, args.encoder, args.runs)
    if args.one:
        return print(json.dumps(measure(args.systems[0], args.vocab[0], args.work[0], args.runs,
                                        args.profile)))
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads\n{HEADER}')
    rows = []
    for work, vocab, name in itertools.product(args.work, args.vocab, args.systems):
        if work.split('/')[0] not in SYSTEMS[name].jobs:
            continue
        command = [sys.executable, __file__, '--one', '--systems', name, '--vocab', str(vocab),
                   '--work', work, '--runs', str(args.runs)]
        done = subprocess.run(command + ['--profile'] * args.profile, stdout=subprocess.PIPE,
                              text=True)
        if done.returncode:
            print(f'{work:14}{vocab:8,}  {name:17}  stopped with an error', flush=True)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        show(rows[-1], next(row for row in rows if row['work'] == work))
        if args.json:
            Path(args.json).write_text(json.dumps(rows, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
