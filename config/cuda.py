"""Faster generation on a GPU: decoding steps that are recorded once and then replayed."""
import torch

ENABLED = False                                 # it has not run on a GPU yet: tests/README.md
BUCKET = 64                                     # steps after which a longer cache is recorded
CHECK_EVERY = 8                                 # steps between checks whether all is done


def replay(step, cache, texts, n_steps):
    """Makes n_steps decoding steps, or fewer if all texts are done by then.

    A step is hundreds of short kernels, which take longer to launch than to run. A recording (CUDA
    graph) launches them at once, but always for the same shapes. So attention reads as many slots
    as BUCKET steps fill, or a multiple; the mask hides the unused ones."""
    graphs, pool = {}, torch.cuda.graph_pool_handle()
    for n in range(n_steps):
        if n < 2:                               # <s> <lang>; then the usual shapes, to warm up
            step()
        else:
            used, bucket = cache.n_used, BUCKET * cache.n_texts
            n_slots = cache.n_used = -(-used // bucket) * bucket
            if n_slots not in graphs:
                graphs[n_slots] = record(step, cache, texts, pool)
            graphs[n_slots].replay()
            cache.n_used = used + cache.n_texts
        if n % CHECK_EVERY == CHECK_EVERY - 1 and texts.done.all():
            break


def record(step, cache, texts, pool):
    """The CUDA graph of a step, which replaces tensors of cache and texts by others of the same
    shapes. The graph reads the present tensors and writes to them."""
    before = [(state, name, x) for state in (cache, texts) for name, x in vars(state).items()
              if isinstance(x, torch.Tensor)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode='thread_local'):
        step()
        for state, name, x in before:
            x.copy_(getattr(state, name))
            setattr(state, name, x)
    return graph
