"""The whole project on one sentence. Read this file first.

A sentence becomes ids, loses some of its tokens, and stands in a batch beside its translation. A
model is made from the encoder in data/nano, learns to write both, is saved, and writes them.
"""
import math

import numpy as np
import torch

from data.batches import collate
from data.tasks import infill
from data.tokenizer import BOS, EOS, PAD, Tokenizer
from model import SWCM
from sample import search


def test_walkthrough(tmp_path):
    # data/nano is a small encoder in Hugging Face's format. It has a vocabulary of 12,000 ids, the
    # last of which is <mask>. Each language that we want to write gets a new id behind these.
    tokenizer = Tokenizer('data/nano', languages=('bo', 'zh'))
    assert (BOS, PAD, EOS, tokenizer.mask) == (0, 1, 2, 11999)
    assert (tokenizer.language_id('bo'), tokenizer.language_id('zh')) == (12000, 12001)

    # "I have two books.", in Chinese and in Tibetan.
    chinese, tibetan = '我有两本书。', 'ང་ལ་དེབ་གཉིས་ཡོད།'

    # SentencePiece cuts a text into pieces, each with an id; ▁ stands for the space before a piece.
    zh, bo = tokenizer.encode(chinese), tokenizer.encode(tibetan)
    assert [tokenizer.pieces[i] for i in zh] == ['▁我', '有', '两', '本', '书', '。']
    assert zh.tolist() == [700, 29, 359, 437, 449, 6]
    assert [tokenizer.pieces[i] for i in bo] == ['▁', 'ང་ལ་', 'དེབ་', 'གཉིས་', 'ཡོད།']
    assert bo.tolist() == [4, 3420, 4851, 760, 1098]
    assert tokenizer.decode(bo) == tibetan

    # The model reads and writes sequences of the form <s> <zh> ... </s>.
    whole = tokenizer.add_special_tokens('zh', zh)
    assert whole.tolist() == [BOS, 12001, 700, 29, 359, 437, 449, 6, EOS]

    # Denoising: the source lacks 35 % of its tokens, and the target is the whole sentence. Here a
    # span of two tokens became one <mask>, so the model has to find out how many are missing, too.
    noisy = infill(zh, tokenizer.mask, ratio=0.35, length=3.5, rng=np.random.default_rng(0))
    assert tokenizer.decode(noisy) == '<mask>两本书。'
    denoising = tokenizer.add_special_tokens('zh', noisy), whole

    # Translation: the source is the Chinese sentence, and the target is the Tibetan one.
    translation = whole, tokenizer.add_special_tokens('bo', bo)

    # A batch is two arrays, sources and targets. Shorter rows are padded with <pad>, which is 1.
    src, tgt = map(torch.from_numpy, collate([denoising, translation]))
    assert src.tolist() == [[0, 12001, 11999, 359, 437, 449, 6, 2, 1],
                            [0, 12001, 700, 29, 359, 437, 449, 6, 2]]
    assert tgt.tolist() == [[0, 12001, 700, 29, 359, 437, 449, 6, 2],
                            [0, 12000, 4, 3420, 4851, 760, 1098, 2, 1]]

    # The model has the encoder, and a decoder whose layers are copies of the encoder's. This is the
    # paper's idea: self-attention and cross-attention both start as the encoder's self-attention.
    torch.manual_seed(0)
    model = SWCM.from_encoder('data/nano', languages=('bo', 'zh'))
    copied = model.encoder.layers[0].attn.query.weight
    for attention in model.decoder[0].self_attn, model.decoder[0].cross_attn:
        assert torch.equal(attention.query.weight, copied)

    # The loss is the sum of -log p over the tokens of the targets: 7 and 6. <s> and the language
    # are given, and padding does not count. At first the model is hardly better than a guess among
    # all ids, which has log(12002) = 9.39 a token.
    loss, n = model.loss(src, tgt)
    assert n == 7 + 6
    first = loss.item() / 13
    assert 8 < first < math.log(12002)

    # One step of training lowers the loss, and after 15 the model knows both targets by heart.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        loss, n = model.loss(src, tgt)
        (loss / n).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item() / 13)
    assert losses[1] < losses[0] == first
    assert losses[-1] < 0.1

    # A saved model is a folder with all that is needed to write: sizes, weights and vocabulary.
    model.save(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ['config.json', 'model.safetensors', 'sentencepiece.bpe.model']

    # The loaded model fills the gap and translates. `generate` writes the likeliest token, again
    # and again, until that is </s>.
    loaded = SWCM.load(tmp_path)
    [filled] = loaded.generate(src[:1], 'zh', max_new_tokens=20)
    [translated] = loaded.generate(src[1:], 'bo', max_new_tokens=20)
    assert tokenizer.decode(filled) == chinese
    assert tokenizer.decode(translated) == tibetan

    # sample.py writes faster. For each source `search` returns several texts, the best first, each
    # with its score, the mean of log p, which is near 0 here.
    found = search(loaded, src, ['zh', 'bo'], limits=[20, 20], beams=3)
    assert [texts[0][0] for texts in found] == [filled, translated]
    assert all(len(texts) == 3 and -0.1 < texts[0][1] < 0 for texts in found)
