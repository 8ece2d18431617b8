"""Speed and memory of SWCM beside transformers: XLM-R base's sizes, random weights, one process a row's system.

    python tests/bench.py                                         # generation and a training step
    python tests/bench.py --systems swcm --vocab 250002 57000     # the same with a smaller vocabulary

swcm        this repository's model: 12 custom layers and the paper's 3 inserted ones
bert2bert   transformers' EncoderDecoderModel of two XLM-R, the second with cross-attention

Seconds are medians; `ratio` says how many times as fast as the first row of the same work; memory is the process' peak.
`of floor` is the share of what this machine could do, measured in the same run: the work's products at the rate of a
large one or, if that is longer, the time to read the decoder and the head for each new token.
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from model import SWCM, SWCMConfig

LENGTH = {'generate': 64, 'train': 128}                                           # tokens of a source and of a target
WORK = [('generate', 1, 1), ('generate', 1, 5), ('generate', 8, 1), ('generate', 8, 5), ('train', 8, 1)]


class Ours:
    """`module`, `decode` and `loss` are what a system has."""

    def __init__(self, vocab, *_):
        self.module = SWCM(SWCMConfig(vocab_size=vocab, languages=('bo',), insert_every=3))

    def decode(self, src, mask, new, beams):
        """src (B,S) -> a list of `new` ids a sentence."""
        return [best[0][0] for best in self.module.generate(src, 'bo', beams, new, new)]

    def loss(self, src, mask, tgt):
        """src (B,S), tgt (B,T), all of it predicted -> loss per token."""
        given = torch.tensor([0, self.module.config.language_id('bo')], device=tgt.device).expand(len(tgt), 2)
        loss, n = self.module.loss(src, torch.cat([given, tgt], 1))
        return loss / n

    def floor(self, job, batch, beams, products, reads):
        """Seconds that the work takes at `products` FLOP/s and `reads` bytes/s."""
        model, n, length = self.module, batch * LENGTH[job], LENGTH[job]
        flops = model.flops(n, n * beams)                                         # forward and backward
        if job == 'train':
            return flops / products
        weights = sum(p.numel() * p.element_size() for p in [*model.decoder.parameters(), model.head.weight])
        return max(flops / 3 / products, length * weights / reads)


class Bert2Bert:
    def __init__(self, vocab, *_):
        from transformers import (
            EncoderDecoderModel,
            XLMRobertaConfig,
            XLMRobertaForCausalLM,
            XLMRobertaModel,
        )
        sizes = dict(vocab_size=vocab, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
                     bos_token_id=0, pad_token_id=1, eos_token_id=2)
        decoder = XLMRobertaForCausalLM(XLMRobertaConfig(**sizes, is_decoder=True, add_cross_attention=True))
        self.module = EncoderDecoderModel(
            encoder=XLMRobertaModel(XLMRobertaConfig(**sizes), add_pooling_layer=False), decoder=decoder)
        for c in (self.module.config, self.module.generation_config):
            c.decoder_start_token_id, c.bos_token_id, c.pad_token_id, c.eos_token_id = 0, 0, 1, 2

    def decode(self, src, mask, new, beams):
        return self.module.generate(input_ids=src, attention_mask=mask, num_beams=beams, do_sample=False,
                                    min_new_tokens=new, max_new_tokens=new)[:, 1:].tolist()

    def loss(self, src, mask, tgt):
        return self.module(input_ids=src, attention_mask=mask, labels=tgt).loss


SYSTEMS = {'swcm': Ours, 'bert2bert': Bert2Bert}


def rates():
    """FLOP/s of a large product and bytes/s of reading weights that one row is multiplied with, both float32."""
    a, row = torch.randn(3072, 3072), torch.randn(1, 3072)
    w = [torch.randn(3072, 3072) for _ in range(16)]                              # 0.6 GB, no cache holds it
    return (2 * 3072**3 / median(lambda: a @ a, 5)[0],
            sum(x.numel() * 4 for x in w) / median(lambda: [row @ x.T for x in w], 5)[0])


def median(run, n, warmup=1):
    seconds = []
    for i in range(warmup + n):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warmup:]), seconds[warmup:]


def measure(name, vocab, works, runs):
    """The rows of one system, in a process of its own: dicts of figures."""
    products, reads = rates()
    torch.manual_seed(1)
    system, rows = SYSTEMS[name](vocab), []
    model = system.module.eval()
    for job, batch, beams in works:
        n = LENGTH[job]
        src, tgt = (torch.randint(4, vocab, (batch, n)) for _ in 'st')
        src[:, 0], src[:, -1] = 0, 2
        mask = torch.ones_like(src)
        if job == 'train':
            model.train()
            optimizer = torch.optim.AdamW(model.parameters(), fused=True)

            def run():
                system.loss(src, mask, tgt).backward()
                optimizer.step()
                optimizer.zero_grad()
        else:
            def run():
                with torch.inference_mode():
                    assert [len(ids) for ids in system.decode(src, mask, n, beams)] == [n] * batch
        seconds, all_runs = median(run, runs)
        row = dict(work=f'{job}/{batch}/{beams}', vocab=vocab, system=name, seconds=seconds, runs=all_runs,
                   tokens_per_s=batch * n / seconds, parameters=sum(p.numel() for p in model.parameters()),
                   peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, gflops=products / 1e9,
                   gb_per_s=reads / 1e9)
        if hasattr(system, 'floor'):
            row['of_floor'] = system.floor(job, batch, beams, products, reads) / seconds
        rows.append(row)
    return rows


def show(row, first):
    floor = f'{row["of_floor"]:9.0%}' if 'of_floor' in row else f'{"":9}'
    print(f'{row["work"]:13}{row["vocab"]:8,}  {row["system"]:10}{row["parameters"] / 1e6:6.0f}M{row["seconds"]:9.2f} s'
          f'{row["tokens_per_s"]:8.1f}/s{first["seconds"] / row["seconds"]:7.2f}{floor}{row["peak_gb"]:8.1f} GB'
          f'   {row["gflops"]:.0f} GFLOP/s, {row["gb_per_s"]:.0f} GB/s', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--systems', nargs='+', default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument('--vocab', nargs='+', type=int, default=[250002], help='ids')
    parser.add_argument('--work', nargs='+', default=['/'.join(map(str, work)) for work in WORK],
                        help='generate/BATCH/BEAMS or train/BATCH/1')
    parser.add_argument('--runs', type=int, default=3)
    parser.add_argument('--json', help='file for all figures')
    parser.add_argument('--one', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    works = [(job, int(batch), int(beams)) for job, batch, beams in (work.split('/') for work in args.work)]
    if args.one:
        print(json.dumps(measure(args.systems[0], args.vocab[0], works, args.runs)))
        return
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads\n'
          f'{"work":13}{"ids":>8}  {"system":10}{"size":>7}{"seconds":>11}{"tokens":>10}{"ratio":>7}{"of floor":>9}'
          f'{"peak":>11}   the machine')
    rows = []
    for work in args.work:
        for vocab in args.vocab:
            for name in args.systems:
                done = subprocess.run([sys.executable, __file__, '--one', '--systems', name, '--vocab', str(vocab),
                                       '--work', work, '--runs', str(args.runs)], stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    sys.exit(f'error: {name} with {vocab} ids stopped at {work}')
                rows += json.loads(done.stdout.splitlines()[-1])
                first = next(row for row in rows if row['work'] == rows[-1]['work'])
                show(rows[-1], first)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
