"""What a run needs around it: device, processes, signals, memory, errors in one line."""
import ctypes
import os
import platform
import signal
import sys
from contextlib import contextmanager
from datetime import timedelta

from config.cli import parse

PATIENT = []                          # with several processes: the group that `barrier` waits for


def start(cls):
    """Checks a script's command line before it imports torch, which takes seconds."""
    run(lambda argv: parse(cls, argv))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:   # `command &` ignores it
        signal.signal(signal.SIGINT, stop_at_once)


def stop_at_once(number, frame):
    """Ctrl-C during imports; numpy's import would lose an exception."""
    os.write(2, b'stopped\n')
    os._exit(130)


def run(main):
    """Calls main(argv); a user's mistake or a failing disk becomes one line and exit status 1."""
    for stream in filter(None, (sys.stdin, sys.stdout, sys.stderr)):                # None: closed
        stream.reconfigure(encoding='utf-8',
                           errors='strict' if stream is sys.stdin else 'backslashreplace')
    keep_memory()
    try:
        if signal.getsignal(signal.SIGINT) is stop_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            main(sys.argv[1:])
        finally:
            print(end='', flush=True)                   # so that a closed pipe is met here
    except BrokenPipeError:                             # as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as e:
        sys.exit(f'error: {e.filename}: {e.strerror}' if e.filename else f'error: {e}')
    except ValueError as e:
        sys.exit(f'error: {e}')
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        sys.exit(130)


def keep_memory():
    """Has glibc keep freed memory for the next step.

    Otherwise the kernel takes large blocks back and fills new ones with zeros in every step: a
    quarter of the time at XLM-R base's sizes on a CPU.
    """
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == 'glibc' else None
    if libc:
        libc.mallopt(-4, 0)                             # M_MMAP_MAX: no blocks of their own
        libc.mallopt(-1, -1)                            # M_TRIM_THRESHOLD: never give back


def find_device(device, dtype):
    """The torch device and dtype for two settings; `auto` takes the fastest there is."""
    import torch

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
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f'device={device!r} is not there: {str(e).splitlines()[0]}') from e
    return torch.device(device), getattr(torch, dtype)


def with_processes(main, cfg):
    """Calls main(cfg), within the group of processes if torchrun has started one."""
    import torch
    import torch.distributed as dist

    if 'RANK' in os.environ:
        rank, world = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
        if cfg.accumulate % world:
            sys.exit(1 if rank else f'error: accumulate={cfg.accumulate}: give a multiple of the '
                     f'{world} processes, which divide the micro-batches of a step')
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        dist.init_process_group()
        PATIENT.append(dist.new_group(backend='gloo', timeout=timedelta(days=7)))
    main(cfg)
    if dist.is_initialized():
        dist.destroy_process_group()


def rank_and_world():
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier():
    """Barrier without a timeout: one process may prepare text or evaluate for hours."""
    if PATIENT:
        import torch.distributed as dist

        dist.barrier(PATIENT[0])


@contextmanager
def main_process_first():
    """The main process (True) does the block before the others (False), which find its files."""
    rank, _ = rank_and_world()
    if rank:
        barrier()
    yield rank == 0
    if rank == 0:
        barrier()


def print0(text):
    """Prints on the main process, above a progress bar."""
    from tqdm import tqdm

    if rank_and_world()[0] == 0:
        tqdm.write(text)


class StopSignals:
    """Remembers Ctrl-C or SIGTERM, so that the loop can save first; a second one ends at once."""

    def __init__(self):
        self.signal = 0
        self.before = {n: signal.signal(n, self.note) for n in (signal.SIGINT, signal.SIGTERM)}

    def note(self, number, frame):
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
        print0('stopping after this step, or evaluation')

    def on_any_process(self):
        """The signal that this or another process has got, or 0."""
        if not PATIENT:
            return self.signal
        import torch
        import torch.distributed as dist

        found = torch.tensor(self.signal)
        dist.all_reduce(found, dist.ReduceOp.MAX, PATIENT[0])
        return found.item()

    def restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def ignore_signals(worker):
    """For data workers: Ctrl-C reaches all processes of a group; the main one ends them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
