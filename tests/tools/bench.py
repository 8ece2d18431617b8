"""Speed and memory of SWCM beside transformers: XLM-R base's sizes, random weights, one process for each row.

    python tests/tools/bench.py                                         # generation and a training step, on a CPU
    python tests/tools/bench.py --device cuda                           # the same on a GPU, bfloat16, at larger sizes
    python tests/tools/bench.py --profile --work train/8/1              # and in which operators the time goes
    python tests/tools/bench.py --systems swcm --vocab 250002 57000     # with a smaller vocabulary
    python tests/tools/bench.py --text FILE --encoder data/nano         # preparing text, and batches

swcm              this repository's model as train.py and `sample.py --dtype=float32` use it: 12 custom layers and the
                  paper's 3 inserted
swcm-16           as sample.py uses it: 16-bit weights
swcm-int8         as `sample.py --int8` does
swcm-compiled     the same with --compile, for training
bert2bert         transformers' EncoderDecoderModel of two XLM-R, the second with cross-attention
bert2bert-static  the same with a static cache, which makes transformers compile the decoding step
ct2, ct2-int8     CTranslate2 (`pip install ctranslate2`) on a CPU with an mBART of 12 + 12 layers, which reads 99M
                  weights a token beside the output's, where swcm reads 181M; float32 and 8-bit weights
plain             output projection and torch's cross-entropy, beside which `head` is that of swcm

Works are generate/BATCH/BEAMS, train/BATCH/1 (a step of AdamW) and head/BATCH/1 (only head and loss, with gradients).
Seconds are medians; `ratio` says how many times as fast as the first row of the same work; memory is the process' peak,
of a GPU what PyTorch has allocated. `of floor` is the share of what this machine could do in float32 (a GPU: bfloat16),
measured just before and after: the work's products at the rate of a large one or, if that is longer, the time to read
the decoder and the head for each new token.
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

import config
import data.tokens
from data import PAD
from data.batches import Batches, shares, tasks
from data.tokenizer import Tokenizer
from data.tokens import read_lines
from model import SWCM, SWCMConfig, n_weights

# On each kind of device: ids (a GPU: CINO-base-v2's), tokens of a source and of a target, works, systems
CPU = dict(vocab=[250002], length={'generate': 64, 'train': 128, 'head': 128},
           systems=['swcm', 'swcm-16', 'swcm-int8', 'bert2bert', 'plain'],
           work=['generate/1/1', 'generate/1/5', 'generate/8/1', 'generate/8/5', 'train/8/1',
                 'head/8/1'])
GPU = dict(vocab=[135359], length={'generate': 128, 'train': 256, 'head': 256},
           systems=['swcm', 'swcm-compiled', 'bert2bert', 'bert2bert-static'],
           work=['generate/64/5', 'train/64/1', 'train/128/1', 'train/256/1'])


class Ours:
    """What a system has: `module`, and of METHODS those that it can do; here also the least that its work costs."""
    bits, compiled = 32, False

    def __init__(self, vocab):
        self.module = SWCM(SWCMConfig(vocab_size=vocab, languages=('bo',), insert_every=3))
        if self.compiled:
            for layer in (*self.module.encoder, *self.module.decoder):
                layer.compile(dynamic=True)

    def cost(self, job, batch, beams, length):
        """Operations of the work, and bytes of weights that it reads, float32."""
        model, n = self.module, batch * length
        if job == 'head':
            return 6 * n * model.head.weight.numel(), 0
        flops = model.flops(n, n * beams)  # forward and backward
        weights = n_weights(model.decoder) + n_weights(model.head) - sum(
            n_weights(part) for layer in model.decoder
            for part in (layer.cross_attn.key, layer.cross_attn.value))
        return (flops, 0) if job == 'train' else (flops / 3, 4 * length * weights)

    def decode(self, src, mask, new, beams):
        """src (B,S) -> a list of `new` ids a sentence."""
        if src.device.type == 'cpu' and not self.module.head.packed:
            self.module.pack(self.bits)
        return [best[0][0] for best in self.module.generate(src, 'bo', beams, new, new)]

    def loss(self, src, mask, tgt):
        """src (B,S), tgt (B,T), all of it predicted -> loss per token."""
        given = torch.tensor([0, self.module.config.language_id('bo')],
                             device=tgt.device).expand(len(tgt), 2)
        loss, n = self.module.loss(src, torch.cat([given, tgt], 1))
        return loss / n

    def head(self, x, labels):
        """x (N,C), labels (N,) -> loss per token."""
        return self.module.head.loss(x, labels) / len(labels)


class Half(Ours):
    bits = 16


class Int8(Ours):
    bits = 8


class Compiled(Ours):
    compiled = True


class Bert2Bert:
    options = {}

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

    def decode(self, src, mask, new, beams):
        return self.module.generate(input_ids=src, attention_mask=mask, num_beams=beams,
                                    do_sample=False, min_new_tokens=new, max_new_tokens=new,
                                    **self.options)[:, 1:].tolist()

    def loss(self, src, mask, tgt):
        return self.module(input_ids=src, attention_mask=mask, labels=tgt).loss


class Static(Bert2Bert):
    options = dict(cache_implementation='static')


class CTranslate2:
    weights = 'float32'

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
            decoder_ffn_dim=3072, max_position_embeddings=514,
            decoder_start_token_id=2,
            # for Converter
            tokenizer_class='MBart50Tokenizer', normalize_before=True, normalize_embedding=True))
        tokenizer = SimpleNamespace(get_vocab=lambda: dict(zip(tokens, range(vocab))),
                                    bos_token='<s>', eos_token='</s>', unk_token='<unk>')
        self.module, self.tokens, self.ids = torch.nn.Module(), tokens, dict(zip(tokens,
                                                                                 range(vocab)))
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

    def decode(self, src, mask, new, beams):
        found = self.translator.translate_batch([[self.tokens[i] for i in row]
                                                 for row in src.tolist()],
                                                beam_size=beams, min_decoding_length=new,
                                                max_decoding_length=new)
        return [[self.ids[token] for token in best.hypotheses[0]] for best in found]


class CTranslate2Int8(CTranslate2):
    weights = 'int8'


class Plain:
    def __init__(self, vocab):
        self.module = torch.nn.Linear(768, vocab)

    def head(self, x, labels):
        return torch.nn.functional.cross_entropy(self.module(x), labels)


SYSTEMS = {'swcm': Ours, 'swcm-16': Half, 'swcm-int8': Int8, 'swcm-compiled': Compiled,
           'bert2bert': Bert2Bert, 'bert2bert-static': Static, 'ct2': CTranslate2,
           'ct2-int8': CTranslate2Int8, 'plain': Plain}
METHODS = {'generate': 'decode', 'train': 'loss', 'head': 'head'}  # what a system needs for a work


def rates(device, dtype):
    """Operations a second of a large product, and bytes a second of reading weights that one row is multiplied with.

    On a CPU each is that of the faster of the two libraries that PyTorch has there, MKL and oneDNN.
    """
    size = 3072 if device.type == 'cpu' else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    row = torch.randn(1, size, device=device, dtype=dtype)
    # 0.15 or 0.5 GB: no cache holds it
    w = [torch.randn(size, size, device=device, dtype=dtype) for _ in range(4)]
    products = [lambda x, w: x @ w.T]
    if device.type == 'cpu' and torch.backends.mkldnn.is_available():
        products.append(lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, 'none', [], ''))
    return (2 * size**3 / min(median(lambda: f(a, a), 5, device)[0] for f in products),
            sum(x.numel() * x.element_size() for x in w)
            / min(median(lambda: [f(row, x) for x in w], 5, device)[0] for f in products))


def median(run, n, device, warmup=1):
    seconds = []
    for i in range(warmup + n):
        start = time.perf_counter()
        run()
        if device.type == 'cuda':
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warmup:]), seconds[warmup:]


def shares_of_time(run, device):
    """(operator, share of the time of a run) of the five that take most."""
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CUDA if device.type == 'cuda'
                                            else kinds.CPU]) as profile:
        run()
    key = 'self_device_time_total' if device.type == 'cuda' else 'self_cpu_time_total'
    found = sorted(((getattr(e, key), e.key) for e in profile.key_averages()), reverse=True)
    return [(name, time / sum(t for t, _ in found)) for time, name in found[:5]]


def measure(name, vocab, work, device, runs, profile):
    """The row of one system and work, in a process of its own: a dict of figures."""
    config.keep_memory()  # as config.run does
    device, dtype = config.find_device(device, 'auto')
    before = rates(device, dtype)
    torch.manual_seed(1)
    job, batch, beams = work.split('/')
    batch, beams, n = int(batch), int(beams), (CPU if device.type == 'cpu' else GPU)['length'][job]
    system = SYSTEMS[name](vocab)
    model = system.module.to(device).train(job == 'train')
    size = getattr(system, 'size', 0) or sum(p.numel() for p in model.parameters())
    flops, read = system.cost(job, batch, beams,
                              n) if isinstance(system, Ours) and system.bits == 32 else (0, 0)
    src, tgt = (torch.randint(4, vocab, (batch, n), device=device) for _ in 'st')
    src[:, 0], src[:, -1] = 0, 2
    mask = torch.ones_like(src)
    mixed = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    if job == 'head':
        x, labels = torch.randn(batch * n, 768, device=device, requires_grad=True), tgt.flatten()

        def run():
            with mixed:
                loss = system.head(x, labels)
            loss.backward()
            x.grad = None
            model.zero_grad()
    elif job == 'train':
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def run():
            with mixed:
                loss = system.loss(src, mask, tgt)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    else:
        def run():
            with mixed, torch.inference_mode():
                assert [len(ids) for ids in system.decode(src, mask, n, beams)] == [n] * batch
    seconds, all_runs = median(run, runs, device)
    peak = torch.cuda.max_memory_allocated() if device.type == 'cuda' else 1024 * resource.getrusage(
        resource.RUSAGE_SELF).ru_maxrss
    products, reads = map(statistics.harmonic_mean, zip(before, rates(device, dtype)))
    row = dict(work=work, vocab=vocab, system=name, seconds=seconds, runs=all_runs,
               tokens_per_s=batch * n / seconds, parameters=size, tflops=products / 1e12,
               gb_per_s=reads / 1e9,
               # that of its conversion
               peak_gb=None if isinstance(system, CTranslate2) else peak / 2**30)
    if flops:
        row['of_floor'] = max(flops / products, read * dtype.itemsize / 4 / reads) / seconds
    return {**row, 'profile': shares_of_time(run, device) if profile else []}


def show(row, first):
    floor = f'{row["of_floor"]:9.0%}' if 'of_floor' in row else f'{"":9}'
    peak = f'{row["peak_gb"]:.1f} GB' if row['peak_gb'] else ''
    print(
          f'{row["work"]:14}{row["vocab"]:8,}  {row["system"]:17}{row["parameters"] / 1e6:5.0f}M{row["seconds"]:9.2f} s'
          f'{row["tokens_per_s"]:11,.1f}/s{first["seconds"] / row["seconds"]:7.2f}{floor}{peak:>11}'
          f'   {row["tflops"]:.3g} TFLOP/s, {row["gb_per_s"]:.0f} GB/s', flush=True)
    for name, share in row['profile']:
        print(f'{share:32.1%}  {name[:80]}', flush=True)


def measure_text(path, encoder, runs):
    """MB/s of data.tokens.prepare beside SentencePiece line by line, and tokens/s of data.batches alone.

    With a line a document, and with twenty, which fill the segments of 256 tokens.
    """
    tokenizer = Tokenizer(encoder, ('bo', 'zh'))
    lines = [line for line in read_lines(path) if line.strip()]
    plain, _ = median(lambda: [tokenizer.sp.encode(line) for line in lines], runs,
                      torch.device('cpu'))
    for twenty in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            text, times = Path(folder, 'bo.txt'), []
            data.tokens.token_folder = lambda dataset: Path(folder, 'tokens')
            text.write_text(''.join(line + ('\n\n' if twenty and i % 20 == 19 else '\n')
                                    for i, line in enumerate(lines)), encoding='utf-8')
            megabytes = text.stat().st_size / 1e6
            for i in range(runs):
                started = time.perf_counter()
                # each time anew
                tokens = data.tokens.prepare('text', tokenizer, 256, 0.01 + i / 1e6, str(text))
                times.append(time.perf_counter() - started)
            cfg = config.Train(languages=('bo',), batch_tokens=16384)
            found = tasks(tokens, 'train', tokenizer, cfg)
            batches = Batches(found, shares(found, cfg.mt_share, cfg.alpha), cfg)
            started = time.perf_counter()
            made = [batches[k] for k in range(256)]
            seconds, examples = time.perf_counter() - started, sum(len(src) for src, _ in made)
        (source, target), (padded_source, padded_target) = (
            [sum(int(count(pair[side])) for pair in made) for side in (0, 1)]
            for count in (lambda x: (x != PAD).sum(), lambda x: x.size))
        print(
              f'{megabytes:.0f} MB, {20 if twenty else 1} lines a document: SentencePiece line by line '
              f'{megabytes / plain:.1f} MB/s, prepare {megabytes / statistics.median(times):.1f} MB/s\n'
              f'  batches: {target / seconds:,.0f} target tokens/s in one process, {target / examples:.0f} an example, '
              f'{1 - (source + target) / (padded_source + padded_target):.1%} of all is padding')


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu', help='cpu (default) or cuda')
    parser.add_argument('--systems', nargs='+', choices=SYSTEMS)
    parser.add_argument('--vocab', nargs='+', type=int, help='ids')
    parser.add_argument('--work', nargs='+',
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
    for key, value in (CPU if args.device == 'cpu' else GPU).items():
        if getattr(args, key, 0) is None:
            setattr(args, key, value)
    if args.one:
        return print(json.dumps(measure(args.systems[0], args.vocab[0], args.work[0], args.device,
                                        args.runs, args.profile)))
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads\n'
          f'{"work":14}{"ids":>8}  {"system":17}{"size":>6}{"seconds":>11}{"target tokens":>13}{"ratio":>7}'
          f'{"of floor":>9}{"peak":>11}   the machine')
    rows = []
    for work in args.work:
        for vocab in args.vocab:
            for name in args.systems:
                system, job = SYSTEMS[name], work.split('/')[0]
                if not hasattr(system, METHODS[job]) or system in (Half, Int8,
                                                                   Static) and job != 'generate' \
                        or system is Compiled and job != 'train' \
                        or issubclass(system, CTranslate2) and args.device != 'cpu':
                    continue
                done = subprocess.run([sys.executable, __file__, '--one', '--systems', name,
                                       '--vocab', str(vocab), '--work', work, '--runs',
                                       str(args.runs), '--device', args.device,
                                       *['--profile'] * args.profile], stdout=subprocess.PIPE,
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
