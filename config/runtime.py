"""The environment of a run: its device, the processes of torchrun, signals."""
import os
import shutil
import signal
import sysconfig
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

# oneDNN caches what it makes for each shape, 1,024 by default. With ragged batches these blocks
# fragment the heap, and memory grows by up to 14 MB a step.
os.environ.setdefault('ONEDNN_PRIMITIVE_CACHE_CAPACITY', '16')
# Ragged batches fragment a GPU's memory too, unless its segments can grow.
os.environ.setdefault('PYTORCH_CUDA_ALLOC_CONF', 'expandable_segments:True')
GLOO_GROUP = []                       # with several processes: that of `barrier`, without timeout


def find_device(device, dtype):
    """The torch device and dtype for two settings; `auto` takes the fastest there is."""
    if device == 'auto':
        mps = torch.backends.mps.is_available()
        device = 'cuda' if torch.cuda.is_available() else 'mps' if mps else 'cpu'
    if device == 'cuda' and 'LOCAL_RANK' in os.environ:
        device = f'cuda:{os.environ["LOCAL_RANK"]}'
    if dtype == 'auto':
        fast = device.startswith('cuda') and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = 'bfloat16' if fast else 'float32'
    if dtype not in ('float32', 'bfloat16'):
        raise ValueError(f'dtype={dtype!r}: choose auto, float32 or bfloat16')
    try:
        found = torch.empty(0, device=device).device        # cuda: with its number
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f'device={device!r} is not available: {str(e).splitlines()[0]}') from e
    # In bfloat16 on a CPU, for short sentences, flash attention takes 4 to 8 times as long as plain
    # matrix products.
    torch.backends.cuda.enable_flash_sdp(device != 'cpu' or dtype != 'bfloat16')
    if found.type == 'cuda':
        torch.cuda.set_device(found)                        # config/cuda.py records there
        torch.set_float32_matmul_precision('high')          # TF32
        # cuDNN's attention plans anew for each shape; its gradients may be NaN (pytorch #196678)
        torch.backends.cuda.enable_cudnn_sdp(False)
    return found, getattr(torch, dtype)


def can_compile(device):
    """Whether torch.compile works on a device: on newer GPUs, where Triton finds what it needs, a C
    compiler and Python's header."""
    compilers = os.environ.get('CC', 'cc'), 'gcc', 'clang'
    return bool(device.type == 'cuda' and torch.cuda.get_device_capability(device) >= (7, 0)
                and find_spec('triton') and any(map(shutil.which, compilers))
                and Path(sysconfig.get_path('include'), 'Python.h').exists())


def with_processes(main, cfg):
    """Calls main(cfg), within a process group if torchrun started several processes."""
    if 'RANK' in os.environ:
        world = int(os.environ['WORLD_SIZE'])
        if cfg.accumulate % world:
            raise ValueError(f'accumulate={cfg.accumulate}: give a multiple of the {world} '
                             'processes, which share the micro-batches of a step')
        if torch.cuda.is_available() and cfg.device != 'cpu':
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        dist.init_process_group()
        GLOO_GROUP.append(dist.new_group(backend='gloo', timeout=timedelta(days=7)))
    main(cfg)
    if dist.is_initialized():
        dist.destroy_process_group()


def rank_and_world():
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier():
    """Barrier without a timeout: one process may prepare text or evaluate for hours."""
    if GLOO_GROUP:
        dist.barrier(GLOO_GROUP[0])


@contextmanager
def main_process_first():
    """The main process (True) runs the block before the others (False), which find its files."""
    rank, _ = rank_and_world()
    if rank:
        barrier()
    yield rank == 0
    if rank == 0:
        barrier()


def print0(text):
    """Prints on the main process, above a progress bar."""
    if rank_and_world()[0] == 0:
        tqdm.write(text)


class StopSignals:
    """Notes Ctrl-C or SIGTERM, so that the loop can save first; a second one stops at once."""

    def __init__(self):
        self.signal = 0
        self.before = {n: signal.signal(n, self.note) for n in (signal.SIGINT, signal.SIGTERM)}

    def note(self, number, frame):
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
        print0('stopping after this step or evaluation')

    def on_any_process(self):
        """The signal that this or another process has received, or 0."""
        if not GLOO_GROUP:
            return self.signal
        found = torch.tensor(self.signal)
        dist.all_reduce(found, dist.ReduceOp.MAX, GLOO_GROUP[0])
        return found.item()

    def restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)
