"""Settings of the scripts, one key per line. config/cli.py sets them from files and --key=value."""
from dataclasses import dataclass, field

TINY = 1e-9                                             # lower bound of what must not be 0


def key(default, help, low=0, high=10**15, changeable=False):
    """A setting: its default, a line for --help, and the range of a number.

    changeable: a run that is resumed may have another value. max_steps then changes the learning
    rates that follow; device, dtype and the like change the rounding of sums."""
    return field(default=default, metadata=dict(help=help, low=low, high=high,
                                                changeable=changeable))


def changeable(default, help, low=0, high=10**15):
    return key(default, help, low, high, changeable=True)


def fraction(default, help):
    return key(default, help, high=1)


@dataclass
class Run:
    """What train.py and finetune.py have in common."""
    encoder: str = key('data/small', 'folder of an encoder, or its name on the hub: owner/name')
    layer: str = key('custom', 'kind of decoder layer: custom (paper) | normal; see model.LAYERS')
    share: str = key('copy', "decoder weights: copy (the encoder's) | none | tie | alternate")
    insert_every: int = key(0, 'insert a normal layer between every N layers (paper: 3); 0: none')
    inserted: str = key('random', 'weights of these layers: random | duplicate')
    head: str = key('tied', 'output projection: tied (to the embeddings) | untied')
    freeze: bool = key(False, "do not train the encoder's layers (share=tie: nor the decoder's)")
    dropout: float = fraction(0.1, 'in encoder and decoder')
    batch_tokens: int = key(4096, 'source + target tokens of a micro-batch, on average', low=1)
    accumulate: int = key(1, 'micro-batches of an optimizer step, over all processes', low=1)
    alpha: float = fraction(0.3, 'languages are drawn with p ~ examples^alpha')
    max_steps: int = changeable(500, 'optimizer steps', low=1)
    lr: float = key(5e-4, 'peak learning rate of AdamW', low=TINY)
    warmup: float = fraction(0.1, 'fraction of steps in which the rate rises; then it falls')
    weight_decay: float = key(0.01, 'on matrices only')
    beta1: float = fraction(0.9, 'AdamW')
    beta2: float = fraction(0.98, "AdamW; as XLM-R")
    grad_clip: float = key(1.0, 'largest norm of the gradient', low=TINY)
    seed: int = key(1, 'of weights, data order, noise and dropout', high=2**32 - 1)
    out_dir: str = changeable('out/tibetan', 'gets last/, best/ and log.jsonl')
    eval_interval: int = changeable(100, 'steps between evaluations', low=1)
    save_interval: int = changeable(100, 'steps between writes of last/', low=1)
    resume: bool = changeable(True, 'resume from out_dir/last if it exists; False: start over')
    device: str = changeable('auto', 'auto | cpu | cuda | cuda:1 | mps')
    dtype: str = changeable('auto', 'auto (CUDA: bfloat16) | bfloat16 | float32 (CUDA: TF32)')
    compile: bool = changeable(True, 'torch.compile, on CUDA with a C compiler')


@dataclass
class Train(Run):
    objective: str = key('swcm', 'swcm: denoising, translation | mlm: masked LM, for an encoder')
    dataset: str = key('udhr', 'a corpus: data/NAME/prepare.py reads it')
    data_from: str = changeable('', 'files or folders of the corpus; udhr is included')
    languages: tuple = key(('bo', 'ug', 'kk', 'mn', 'zh'), 'what the model reads and writes')
    block_size: int = key(256, 'longest sequence in tokens, with <s> <lang> </s>', low=8)
    mt_fraction: float = fraction(0.5, 'fraction of examples for translation, not denoising')
    val_fraction: float = fraction(0.1, 'fraction of documents held out')
    mask_ratio: float = fraction(0.35, 'denoising: fraction of tokens that are hidden')
    span_length: float = key(3.5, 'denoising: mean length of the hidden spans (Poisson)', low=2)
    mlm_ratio: float = key(0.15, 'mlm: fraction of tokens to predict', low=TINY, high=1)
    eval_segments: int = key(100, 'held-out segments per task and language', low=1)
    eval_translations: int = changeable(0, 'pairs per direction translated at the end')


@dataclass
class FineTune(Run):
    task: str = key('translate', 'translate | summarise | answer; see finetune.TASKS')
    data: str = changeable('', 'files of examples, .tsv or .jsonl, separated by commas')
    learn: tuple = key(('zh-bo',), 'source-target languages; bo alone is bo-bo')
    transfer: tuple = key((), 'further ones, of which only `shots` examples are learned')
    shots: int = key(50, 'examples learned of each direction of `transfer`')
    checkpoint: str = key('', "a model of train.py; '': a new one from the encoder")
    max_source_len: int = key(256, 'tokens, with <s> <lang> </s>; longer sources are cut', low=8)
    max_target_len: int = key(128, 'tokens; examples with longer targets are not learned', low=8)
    rotate_context: bool = key(False, "answer: read on from the sentence nearest to the question")
    val_fraction: float = fraction(0.01, 'to choose the best checkpoint; 0: uses training examples')
    test_fraction: float = fraction(0.01, 'held out for the scores')
    test: str = changeable('', 'files of further tests, named by the part before the first dot')
    out_dir: str = changeable('out/translate', 'gets last/, best/ with the scores, log.jsonl')
    eval_examples: int = key(100, 'per direction, to choose the best checkpoint', low=1)
    test_examples: int = changeable(0, 'per direction, scored at the end; 0: all')
    eval_only: bool = changeable(False, 'score out_dir/best or, without it, `checkpoint`')
    beams: int = changeable(4, 'beam search; 1: greedy', low=1)
    length_penalty: float = changeable(1.0, 'scores are divided by length ** this', high=10)
    no_repeat_ngram: int = changeable(0, 'length of n-grams that may not occur twice; 0: off')
    force_script: tuple = changeable((), 'scripts allowed in outputs, such as bo:TIBETAN+LATIN')

    @property
    def directions(self):
        return (*self.learn, *self.transfer)

    @property
    def languages(self):
        return tuple(dict.fromkeys('-'.join(self.directions).split('-')))


@dataclass
class Sample:
    checkpoint: str = key('', "folder of a model; '': the newest of out/")
    text: str = key('', 'what to work on')
    file: str = key('', 'or a UTF-8 file: one article, or a text per line; -: standard input')
    task: str = key('', 'translate | denoise (fills each <mask>) | summarise | answer')
    question: str = key('', 'what to answer from the text')
    to: str = key('', "language to write; '': as fine-tuned, or the model's first")
    source: str = key('', "language of the text; '': as fine-tuned, or zh to translate")
    beams: int = key(4, 'beam search; 1: greedy. This and the next five: as fine-tuned', low=1)
    length_penalty: float = key(1.0, 'scores are divided by length ** this', high=10)
    no_repeat_ngram: int = key(4, 'length of n-grams that may not occur twice; 0: off')
    force_script: str = key('', "scripts allowed in outputs, such as TIBETAN+LATIN; '': any")
    max_new_tokens: int = key(0, 'limit of an output; 0: 3 times the source tokens plus 20')
    rotate_context: bool = key(False, 'answer: read on from the sentence nearest to the question')
    temperature: float = key(0.0, 'above 0: sample, with beams=1')
    top_k: int = key(0, 'sample from the N most likely tokens; 0: all')
    seed: int = key(1, 'of sampling', high=2**32 - 1)
    examples: int = key(1, 'held-out examples shown per task and language', low=1)
    batch: int = key(16, 'texts at a time', low=1)
    device: str = key('auto', 'auto | cpu | cuda | mps')
    dtype: str = key('auto', 'auto (CPU: 16-bit weights) | float32 | bfloat16')
