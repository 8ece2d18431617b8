"""model.py: equal to transformers' encoder, weights in place, masks, loss, new layers, files."""
import json
import runpy
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CHOICES, LANGUAGES, ROOT, make_model, make_sources, sentences
from safetensors.torch import load_file, save_file

import model as module
from config.cpu import pack
from data.batches import collate
from data.files import SENTENCEPIECE
from data.tasks import mask_tokens
from data.tokenizer import BOS, EOS, PAD, UNK, Tokenizer
from model import SWCM, XLMR, Attention, Layer, SWCMConfig
from sample import search
from train import weight_report


def logits_of(model, tgt, src):
    """(B,T,n_ids)."""
    states = model.states(tgt, model.encoder.encode(src), src)
    return model.encoder.head(states)[..., :model.config.n_ids]


@pytest.mark.parametrize('layers, heads, embd, ffn, vocab',
                         [(2, 2, 32, 64, 100), (12, 12, 96, 384, 333), (3, 4, 64, 96, 250)])
@pytest.mark.parametrize('kind', ['safetensors', 'no prefix', 'bin', 'no head', 'sharded', 'older'])
def test_encoder_equals_transformers(tmp_path, pieces, layers, heads, embd, ffn, vocab, kind):
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM
    torch.manual_seed(layers)
    theirs = XLMRobertaForMaskedLM(XLMRobertaConfig(
        vocab_size=vocab, hidden_size=embd, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=ffn, max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=1e-5,
        pad_token_id=1)).eval()
    for p in theirs.parameters():
        p.data += 0.05 * torch.randn_like(p)
    theirs.save_pretrained(tmp_path)
    (tmp_path / SENTENCEPIECE).write_bytes(pieces)
    state = load_file(tmp_path / 'model.safetensors')
    if kind == 'no prefix':
        state = {name.removeprefix('roberta.'): t for name, t in state.items()}
    if kind == 'no head':
        state = {name: t for name, t in state.items() if not name.startswith('lm_head')}
        state['roberta.pooler.dense.weight'] = torch.zeros(embd, embd)
    if kind == 'older':
        old = ('LayerNorm.weight', 'LayerNorm.gamma'), ('LayerNorm.bias', 'LayerNorm.beta')
        state['lm_head.decoder.bias'] = state.pop('lm_head.bias')
        state = {f'module.{name}': t for name, t in state.items()}
        for usual, before in old:
            state = {name.replace(usual, before): t for name, t in state.items()}
    if kind == 'sharded':
        (tmp_path / 'model.safetensors').unlink()
        theirs.save_pretrained(tmp_path, max_shard_size='50KB')
        assert len(list(tmp_path.glob('model-*'))) > 1
    elif kind == 'bin':
        (tmp_path / 'model.safetensors').unlink()
        torch.save({**state,
                    'lm_head.decoder.weight': state['roberta.embeddings.word_embeddings.weight'],
                    'roberta.embeddings.position_ids': torch.arange(66)[None]},
                   tmp_path / 'pytorch_model.bin')
    else:
        save_file(state, tmp_path / 'model.safetensors')
    ours = XLMR.from_encoder(tmp_path).eval()
    ids = torch.randint(4, vocab, (5, 40))
    for i in range(5):
        ids[i, 40 - 9 * i:] = PAD
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=(ids != PAD).long(),
                          output_hidden_states=True)
        hidden = ours.encode(ids)
        assert (hidden - expected.hidden_states[-1])[ids != PAD].abs().max() < 1e-5
        if kind != 'no head':
            logits = ours.head(hidden)[..., :vocab]
            assert (logits - expected.logits)[ids != PAD].abs().max() < 1e-5


@pytest.mark.parametrize('kind', ['plain', 'prefix', 'bin'])
def test_bert_with_xlmr_vocabulary(tmp_path, pieces, kind):
    """As multilingual-e5-small has it: what is saved is an XLM-R folder, with equal states."""
    from transformers import BertConfig, BertForMaskedLM, BertModel, XLMRobertaModel
    torch.manual_seed(0)
    rows = Tokenizer(pieces).vocab_size + 35
    settings = BertConfig(vocab_size=rows, hidden_size=32, num_hidden_layers=2, pad_token_id=0,
                          num_attention_heads=4, intermediate_size=64, max_position_embeddings=64,
                          type_vocab_size=2, layer_norm_eps=1e-12)
    theirs = (BertForMaskedLM if kind == 'prefix' else BertModel)(settings).eval()
    for p in theirs.parameters():
        p.data += 0.05 * torch.randn_like(p)
    theirs.save_pretrained(tmp_path / 'bert')
    (tmp_path / 'bert' / SENTENCEPIECE).write_bytes(pieces)
    state = load_file(tmp_path / 'bert/model.safetensors')
    assert ('bert.pooler.dense.bias' in state or 'pooler.dense.bias' in state) != (kind == 'prefix')
    if kind == 'bin':
        (tmp_path / 'bert/model.safetensors').unlink()
        torch.save(state, tmp_path / 'bert/pytorch_model.bin')
    ours = XLMR.from_encoder(tmp_path / 'bert')
    ids = torch.randint(4, rows, (4, 64))
    for i in range(4):
        ids[i, 64 - 9 * i:] = PAD
    mask = (ids != PAD).long()
    with torch.no_grad():
        base = theirs.bert if kind == 'prefix' else theirs
        expected, hidden = base(ids, attention_mask=mask).last_hidden_state, ours.encode(ids)
    assert (hidden - expected)[ids != PAD].abs().max() < 1e-5
    ours.save(tmp_path / 'xlmr')
    again = XLMRobertaModel.from_pretrained(tmp_path / 'xlmr').eval()
    with torch.no_grad():
        expected = again(ids, attention_mask=mask).last_hidden_state
    assert (hidden - expected)[ids != PAD].abs().max() < 1e-5
    assert torch.equal(hidden, XLMR.from_encoder(tmp_path / 'xlmr').encode(ids))
    head = SWCM.from_encoder(tmp_path / 'bert', languages=('bo',)).encoder.head
    assert not hasattr(head.bias, 'origin')             # random


def test_saved_encoder_is_read_by_transformers(encoder_folder):
    from transformers import XLMRobertaForMaskedLM
    theirs = XLMRobertaForMaskedLM.from_pretrained(encoder_folder).eval()
    ours = XLMR.from_encoder(encoder_folder).eval()
    ids = torch.randint(4, ours.config.vocab_size, (2, 30))
    with torch.no_grad():
        logits = ours.head(ours.encode(ids))[..., :ours.config.vocab_size]
        assert (logits - theirs(input_ids=ids).logits).abs().max() < 1e-5


def test_encoder_in_half_precision(encoder_folder, tmp_path):
    for file in encoder_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / 'model.safetensors')
    save_file({name: t.half() for name, t in state.items()}, tmp_path / 'model.safetensors')
    models = XLMR.from_encoder(encoder_folder), XLMR.from_encoder(tmp_path)
    whole, half = (dict(model.named_parameters()) for model in models)
    for name, p in half.items():
        # the rest are drawn anew
        rows = slice(models[0].config.vocab_size if name in module.ROW_PER_ID else None)
        assert p.dtype == torch.float32 and torch.equal(p[rows], whole[name][rows].half().float())


@pytest.mark.full
def test_nano_is_read_by_transformers_and_knows_the_languages():
    """data/nano: the folder that is shipped. Masked tokens are likelier in their order."""
    from transformers import XLMRobertaForMaskedLM
    folder = ROOT / 'data/nano'
    theirs = XLMRobertaForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours, tokenizer = XLMR.from_encoder(folder), Tokenizer(folder)
    assert {t.dtype for t in load_file(folder / 'model.safetensors').values()} == {torch.float16}
    assert sum(file.stat().st_size for file in folder.iterdir()) < 16e6
    for language in LANGUAGES:
        rows = [tokenizer.encode(line) for line in sentences(language)]
        assert all(UNK not in row for row in rows)
        losses = []
        for shuffled in (False, True):
            examples = []
            for i, row in enumerate(rows):
                draw = np.random.default_rng(i)
                noisy, chosen = mask_tokens(row, tokenizer.mask, 0.15, draw)
                if shuffled:
                    order = draw.permutation(len(row))
                    row, noisy, chosen = row[order], noisy[order], chosen[order]
                examples.append((np.r_[BOS, noisy, EOS],
                                 np.r_[PAD, np.where(chosen, row, PAD), PAD]))
            src, tgt = map(torch.from_numpy, collate(examples))
            with torch.no_grad():
                logits = theirs(input_ids=src, attention_mask=(src != PAD).long()).logits
                ours_too = ours.head(ours.encode(src))[..., :ours.config.vocab_size]
                assert (ours_too - logits)[src != PAD].abs().max() < 1e-4
                losses.append(ours.loss(src, tgt)[0])
        assert losses[0] < losses[1], language


def test_copy_is_the_encoder(encoder_folder):
    model = make_model(encoder_folder, insert_every=3)
    assert [type(layer).__name__[0] for layer in model.decoder] == list('CCCNC')
    del model.decoder[3]
    for source, layer in zip(model.encoder.layers, model.decoder, strict=True):
        for part, theirs in (('self_attn', 'attn'), ('cross_attn', 'attn'), ('ffn1', 'ffn'),
                             ('ffn2', 'ffn')):
            pairs = zip(getattr(layer, part).parameters(), getattr(source, theirs).parameters(),
                        strict=True)
            assert all(torch.equal(a, b) and a is not b for a, b in pairs)


@torch.no_grad()
def test_custom_layers_without_their_second_half_are_the_encoder(encoder_folder, monkeypatch):
    model = make_model(encoder_folder)
    src = make_sources(model)
    mask = (src != PAD)[:, None, None]
    for layer in model.decoder:  # sees all: not causal
        monkeypatch.setattr(layer.self_attn, 'forward', lambda x, causal, cache,
                            attn=layer.self_attn: Attention.forward(attn, x, mask=mask))
        monkeypatch.setattr(layer.cross_attn, 'forward', lambda x, *rest, **options: x)
        monkeypatch.setattr(layer.ffn2, 'forward', lambda x: x)
    memory = model.encoder.encode(src)
    assert torch.equal(model.states(src, memory, src), memory)


def test_order_in_a_custom_layer(encoder_folder):
    layer = make_model(encoder_folder).decoder[0]
    x, memory = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    y = layer.ffn1(layer.self_attn(x, causal=True))
    assert torch.equal(layer(x, memory, None), layer.ffn2(layer.cross_attn(y, memory)))


@torch.no_grad()
def test_tie_is_one_set_of_weights(encoder_folder):
    tied, copied = make_model(encoder_folder, share='tie'), make_model(encoder_folder)
    tied.encoder.layers[1].attn.query.weight[0, 0] = 7
    assert tied.decoder[1].cross_attn.query.weight[0, 0] == 7
    assert tied.decoder[1].self_attn.query.weight[0, 0] == 7
    custom = sum(p.numel() for p in copied.decoder.parameters())
    total = [sum(p.numel() for p in model.parameters()) for model in (tied, copied)]
    assert total[0] == total[1] - custom


def test_alternate_takes_two_encoder_layers_for_one(encoder_folder):
    model = make_model(encoder_folder, share='alternate')
    assert len(model.decoder) == 2
    first, second = model.encoder.layers[2:4]
    layer = model.decoder[1]
    assert torch.equal(layer.self_attn.key.weight, first.attn.key.weight)
    assert torch.equal(layer.ffn1.norm.weight, first.ffn.norm.weight)
    assert torch.equal(layer.cross_attn.norm.bias, second.attn.norm.bias)
    assert torch.equal(layer.ffn2.up.weight, second.ffn.up.weight)


def test_inserted_layers(encoder_folder):
    for inserted in ('duplicate', 'random'):
        model = make_model(encoder_folder, insert_every=3, inserted=inserted)
        before, new = model.decoder[2:4]
        for ours, theirs in ((new.self_attn.out, before.self_attn.out),
                             (new.cross_attn.key, before.cross_attn.key),
                             (new.ffn.down, before.ffn2.down)):
            assert torch.equal(ours.weight, theirs.weight) == (inserted == 'duplicate')
    model = SWCM(SWCMConfig(n_layer=8, n_head=1, n_embd=2, n_ffn=2, vocab_size=9, insert_every=2,
                            inserted='duplicate', share='alternate'))
    assert [type(layer).__name__[0] for layer in model.decoder] == [*'CCNCC']
    sources = model.shared['2.self_attn'], model.shared['2.cross_attn'], model.shared['4.ffn2']
    assert sources == ('layers.2.attn', 'layers.3.attn', 'layers.7.ffn')


def test_none_shares_nothing(encoder_folder):
    model = make_model(encoder_folder, share='none')
    assert not model.shared
    for layer, source in zip(model.decoder, model.encoder.layers):
        assert not torch.equal(layer.ffn1.up.weight, source.ffn.up.weight)
        assert not torch.equal(layer.self_attn.key.weight, source.attn.key.weight)


def test_parameters_of_the_published_layout():
    """CINO-base-v2's sizes. The published code has 492,548,543 parameters, 590,592 of a pooler.

    Ours has a LayerNorm, 2 * 768, more in each of the 3 inserted layers: 491,962,559. It also pads
    the 135,359 rows of two tables and a bias to a multiple of 64, which is not counted here.
    """
    with torch.device('meta'):
        model = SWCM(SWCMConfig(vocab_size=135359, insert_every=3, head='untied', mlm_head=False))
    ours = sum(p.numel() for p in model.parameters())
    padding = (model.config.n_rows - 135359) * (2 * 768 + 1)
    print(f'{ours - padding:,} parameters, untied, X = 3, without language rows and pooler')
    assert ours - padding == 492_548_543 - 590_592 + 3 * 2 * 768 == 491_962_559


@pytest.mark.parametrize('options', CHOICES)
def test_every_part_is_accounted_for(encoder_folder, options):
    """`shared` has each decoder part that has the weights of an encoder part, and no other."""
    model = make_model(encoder_folder, **options)
    encoder_parts = {name: list(part.parameters()) for name, part in model.encoder.named_modules()
                     if name.endswith(('attn', 'ffn'))}
    for name in (f'{i}.{part}' for i, layer in enumerate(model.decoder) for part in layer.SOURCES):
        ours = list(model.decoder.get_submodule(name).parameters())
        same = [source for source, theirs in encoder_parts.items()
                if len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))]
        assert same == [model.shared[name]] if name in model.shared else not same
        assert not same or (ours[0] is encoder_parts[same[0]][0]) == (options.get('share') == 'tie')
    *lines, last = weight_report(model).splitlines()
    assert last.split() == ['total', f'{sum(p.numel() for p in model.parameters()):,}']
    found = {(part, origin) for part, _, origin in (line.split(None, 2) for line in lines)}
    kind, copied = options.get('layer', 'custom').title(), 'copied from the encoder'
    origin = {'none': 'random', 'tie': 'tied'}.get(options.get('share'), copied)
    inserted = ('NormalDecoderLayer', copied if 'inserted' in options else 'random')
    read = {(part, f'read from {encoder_folder}') for part in ('embeddings', 'layers')}
    assert {row for row in found if row[0] != 'head'} == read | {
        (f'{kind}DecoderLayer', origin)} | ({inserted} if 'insert_every' in options else set())


@pytest.mark.parametrize('options', CHOICES)
def test_padding_batch_and_future_change_nothing(encoder_folder, options):
    model = make_model(encoder_folder, **options)
    src, tgt = make_sources(model), make_sources(model, (9, 14, 3, 11), seed=1)
    with torch.no_grad():
        together = logits_of(model, tgt, src)
        for i in range(len(src)):
            s, t = (x[i][x[i] != PAD][None] for x in (src, tgt))
            alone = logits_of(model, t, s)
            assert (alone[0] - together[i, :t.shape[1]]).abs().max() < 1e-4
        changed = tgt.clone()
        changed[:, 8:] = 5
        after = logits_of(model, changed, src)
        assert torch.equal(after[:, :8], together[:, :8])
        assert not torch.allclose(after[:, 8:], together[:, 8:])


@pytest.mark.parametrize('options', CHOICES)
def test_loss_is_plain_cross_entropy(encoder_folder, options):
    model = make_model(encoder_folder, **options)
    src = make_sources(model, range(1, 13))
    tgt = make_sources(model, range(61, 49, -1), seed=1)
    loss, n = model.loss(src, tgt)
    assert n == (tgt[:, 2:] != PAD).sum() > 512       # of which logits are computed at a time
    logits = logits_of(model, tgt, src)
    plain = F.cross_entropy(logits[:, 1:-1].flatten(0, 1), tgt[:, 2:].flatten(), ignore_index=PAD,
                            reduction='sum')
    assert abs(loss - plain) < 1e-5 * plain
    with torch.no_grad():
        assert model.loss(src, tgt)[0] == loss
    parameters = list(model.parameters())
    for ours, theirs in zip(torch.autograd.grad(3 * loss, parameters),
                            torch.autograd.grad(3 * plain, parameters)):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 5e-6


def test_gradients_in_bfloat16(encoder_folder):
    """Their relative errors, judged by 64 bits: of most matrices below 2 %, of none above 5 %."""
    model = make_model(encoder_folder, insert_every=3)
    src, tgt = make_sources(model, range(1, 13)), make_sources(model, range(61, 49, -1), seed=1)
    with torch.autocast('cpu', torch.bfloat16):
        loss, _ = model.loss(src, tgt)
    loss.backward()
    rough = {name: p.grad.double() for name, p in model.named_parameters() if p.dim() == 2}
    model.zero_grad()
    exact, _ = model.double().loss(src, tgt)
    exact.backward()
    errors = [((rough[name] - p.grad).norm() / p.grad.norm()).item()
              for name, p in model.named_parameters() if name in rough]
    assert abs(loss / exact - 1) < 1e-3 and np.median(errors) < 0.02 and max(errors) < 0.05


@torch.no_grad()
def test_rows_behind_the_vocabulary_never_win(encoder_folder):
    model = make_model(encoder_folder)
    c, src = model.config, make_sources(model)
    assert c.n_rows % 64 == 0 and c.n_rows > c.n_ids == c.vocab_size + 2
    model.encoder.head.bias[c.n_ids:] = 1000
    logits = model.encoder.head(model.states(src, model.encoder.encode(src), src))
    assert logits.shape[-1] == c.n_rows and logits[..., c.n_ids:].isneginf().all()
    assert model.loss(src, src)[0] < 1e5
    assert max(map(max, filter(None, model.generate(src, 'bo', 5)))) < c.vocab_size


class TwoReadsLayer(Layer):
    """Reads the source twice."""
    SOURCES = {'self_attn': ('attn', 0), 'cross_attn': ('attn', 0), 'cross_attn2': ('attn', 1),
               'ffn': ('ffn', 1)}

    def forward(self, x, memory, mask, cache=None):
        x = self.self_attn(x, causal=True, cache=cache)
        x = self.cross_attn(x, memory, mask, cache=cache)
        return self.ffn(self.cross_attn2(x, memory, mask, cache=cache))


@pytest.mark.parametrize('share', ['copy', 'tie', 'alternate', 'none'])
def test_a_new_kind_of_decoder_layer(monkeypatch, share):
    """A class and a row in LAYERS are enough: it is made, shared, trained and written with."""
    monkeypatch.setitem(module.LAYERS, 'two_reads', TwoReadsLayer)
    torch.manual_seed(0)
    model = SWCM.from_encoder('data/nano', languages=('bo', 'zh'), layer='two_reads', share=share)
    encoder, step = model.encoder.layers, 2 if share == 'alternate' else 1
    assert [type(layer) for layer in model.decoder] == [TwoReadsLayer] * (len(encoder) // step)
    for i, layer in enumerate(model.decoder):
        first, second = encoder[step * i], encoder[step * i + step - 1]
        for ours, theirs in ((layer.self_attn, first.attn), (layer.cross_attn, first.attn),
                             (layer.cross_attn2, second.attn), (layer.ffn, second.ffn)):
            assert (ours is theirs) == (share == 'tie')
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                assert torch.equal(a, b) or share == 'none'
    src, tgt = make_sources(model, (9, 5, 7)), make_sources(model, (4, 8, 2), seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss, n = model.loss(src, tgt)
    (loss / n).backward()
    assert all(layer.cross_attn2.query.weight.grad.norm() > 0 for layer in model.decoder)
    optimizer.step()
    assert model.loss(src, tgt)[0] < loss
    naive = model.generate(src, 'zh', max_new_tokens=8)
    assert max(map(len, naive)) == 8
    assert [found[0][0] for found in search(model, src, ['zh'] * 3, [8] * 3)] == naive
    pack(model)
    assert all(search(model, src, ['zh'] * 3, [8] * 3))


@pytest.mark.parametrize('options', CHOICES)
def test_save_and_load(encoder_folder, tmp_path, options):
    model = make_model(encoder_folder, **options)
    model.save(tmp_path)
    with pytest.raises(ValueError, match='config.json lacks num_hidden_layers'):
        SWCM.from_encoder(tmp_path)
    random = torch.get_rng_state()
    again = SWCM.load(tmp_path)
    # no time is lost with draws
    assert not again.training and torch.equal(torch.get_rng_state(), random)
    src = make_sources(model)
    assert torch.equal(model.loss(src, src)[0], again.loss(src, src)[0])
    assert again.config == model.config
    assert again.encoder.sentencepiece == model.encoder.sentencepiece
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ['config.json', 'model.safetensors', SENTENCEPIECE]
    assert SWCM.load(tmp_path, dropout=0.25).decoder[0].self_attn.dropout.p == 0.25


def damage(folder, how):
    weights, settings = folder / 'model.safetensors', folder / 'config.json'
    state, sizes = load_file(weights), json.loads(settings.read_text())
    if how == 'truncated':
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how in ('config.json', 'model.safetensors', SENTENCEPIECE):
        (folder / how).unlink()
    elif how == 'missing':
        del state['roberta.encoder.layer.2.output.dense.bias']
        save_file(state, weights)
    elif how == 'surplus':
        save_file({**state, 'roberta.encoder.layer.4.output.dense.bias': torch.zeros(32)}, weights)
    elif how == 'shape':
        state['roberta.embeddings.word_embeddings.weight'] = torch.zeros(100, 32)
        save_file(state, weights)
    elif how == 'gelu':
        settings.write_text(json.dumps({**sizes, 'hidden_act': 'relu'}))
    elif how in ('is_decoder', 'tie_word_embeddings'):
        settings.write_text(json.dumps({**sizes, how: how == 'is_decoder'}))
    elif how == 'BERT decoder':
        settings.write_text(json.dumps({**sizes, 'model_type': 'bert', 'is_decoder': True}))
    elif how == 'shard':                                # the other one has the rest
        weights.unlink()
        save_file(state, folder / 'model-00002-of-00002.safetensors')
    elif how == 'json':
        settings.write_text('{')
    elif how == 'no embeddings':
        del state['roberta.embeddings.word_embeddings.weight']
        save_file({**state, 'lm_head.decoder.weight': torch.zeros(9, 32)}, weights)
    elif how == 'half a head':
        del state['lm_head.dense.weight']
        save_file(state, weights)
    elif how in ('pickle', 'empty'):
        weights.unlink()
        content = b'' if how == 'empty' else b'cos\nsystem\n(S"touch hacked"\ntR.'
        (folder / 'pytorch_model.bin').write_bytes(content)


@pytest.mark.parametrize('how, message', [
    ('config.json', 'No such file or directory: .*config.json'),
    ('model.safetensors', 'No such file or directory: .*pytorch_model.bin'),
    (SENTENCEPIECE, 'has no sentencepiece.bpe.model: only encoders with'),
    ('truncated', 'has a damaged file: .*[Hh]eader'),
    ('missing', 'missing, unknown, .* config.json asks for: layers.2.ffn.down.bias$'),
    ('surplus', 'missing, unknown, .* config.json asks for: layers.4.ffn.down.bias$'),
    ('shape', 'not of the shape that config.json asks for: embeddings.word.weight$'),
    ('no embeddings', 'embeddings.word.weight'),
    ('half a head', 'config.json asks for: head.dense.weight$'),
    ('gelu', "hidden_act is 'relu'; XLM-R has 'gelu'"),
    ('is_decoder', 'is_decoder is True; XLM-R has False'),
    ('BERT decoder', 'is_decoder is True; XLM-R has False'),
    ('tie_word_embeddings', 'tie_word_embeddings is False; XLM-R has True'),
    ('shard', 'damaged file: of model-.*-of-00002.safetensors not all are there'),
    ('json', 'has a damaged file'), ('pickle', 'has a damaged file'),
    ('empty', 'has a damaged file')])
def test_bad_encoder_folders(encoder_folder, tmp_path, how, message):
    for file in encoder_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path, how)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        SWCM.from_encoder(tmp_path)
    assert '\n' not in str(error.value)


def test_code_in_weights_is_not_run(encoder_folder, tmp_path):
    hacked = tmp_path / 'hacked'

    class Code:
        def __reduce__(self):
            return open, (str(hacked), 'w')

    for file in encoder_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / 'model.safetensors').unlink()
    torch.save({'x': Code()}, tmp_path / 'pytorch_model.bin')
    with pytest.raises(ValueError, match='has a damaged file'):
        SWCM.from_encoder(tmp_path)
    assert not hacked.exists()
    torch.load(tmp_path / 'pytorch_model.bin', weights_only=False)
    assert hacked.exists()  # it would have run


def test_bad_options(encoder_folder):
    for options, message in ((dict(share='both'),
                              "share='both': choose copy or none or tie or alternate"),
                             (dict(head='x'), "head='x'"), (dict(layer='x'), 'custom or normal'),
                             (dict(inserted='x'), "inserted='x'"),
                             (dict(share='alternate', n_layer=3), 'n_layer=3'),
                             (dict(insert_every=4, n_layer=4), 'insert_every=4: the decoder has 4'),
                             (dict(share='alternate', n_layer=4, insert_every=2), '2 layers'),
                             (dict(n_head=5), 'n_embd=32 is not a multiple of n_head=5')):
        with pytest.raises(ValueError, match=message):
            SWCM.from_encoder(encoder_folder, **options)
    with pytest.raises(ValueError, match='has no nanoSWCM model; train.py makes one'):
        SWCM.load(encoder_folder)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        SWCM.load('nowhere')
    model = make_model(encoder_folder)
    with pytest.raises(ValueError, match="language 'xx': the model has bo zh"):
        model.generate(make_sources(model), 'xx', 9)
    with pytest.raises(ValueError, match='70 tokens; the model reads at most 64'):
        model.encoder.encode(torch.full((1, 70), 5))


@pytest.mark.parametrize('options', CHOICES)
@torch.no_grad()
def test_without_a_head_the_last_norm_is_fitted(encoder_folder, tmp_path, monkeypatch, options):
    """States of copied layers then vary as embeddings do, also on other ids; no other weight
    changes. An encoder with a head changes nothing."""
    XLMR.from_encoder(encoder_folder, mlm_head=False).save(tmp_path / 'bare')
    fitted = make_model(tmp_path / 'bare', **options)
    assert 'fitted' not in weight_report(make_model(encoder_folder, **options))
    monkeypatch.setattr(SWCM, 'fit_last_norm', lambda model: None)
    plain = make_model(tmp_path / 'bare', **options)
    changed = [p for p, q in zip(fitted.parameters(), plain.parameters()) if not torch.equal(p, q)]
    last = fitted.decoder[-1].ffn if 'layer' in options else fitted.decoder[-1].ffn2
    is_copied = options.get('share') not in ('none', 'tie') and 'head' not in options
    assert [*map(id, changed)] == [*map(id, last.norm.parameters())] * is_copied
    assert is_copied == ('64  fitted to embeddings' in weight_report(fitted))
    src, tgt = torch.randint(4, 150, (2, 40, 32))
    states, were = (model.states(tgt, model.encoder.encode(src), src).flatten(0, 1)
                    for model in (fitted, plain))
    embedded = plain.encoder.embeddings(tgt).flatten(0, 1)
    for of in lambda x: x.mean(0), lambda x: x.std(0).norm():
        gap, was = ((of(x) - of(embedded)).norm() for x in (states, were))
        assert not is_copied or gap < 0.2 * of(embedded).norm() and gap < 0.4 * was


@torch.no_grad()
def test_states_tool(corpus, encoder_folder, capsys):
    """tests/tools/states.py: its two numbers, and that its last layer is what the head reads."""
    tool = runpy.run_path(str(ROOT / 'tests/tools/states.py'))
    x, ids = torch.randn(12, 8), torch.tensor([5] * 4 + [7] * 5 + [9] * 3)
    cosines = [torch.cosine_similarity(a, b, dim=0).item() for a, b in permutations(x, 2)]
    assert tool['cosine'](x) == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)
    x[:4], x[4:9] = torch.randn(2, 1, 8)
    assert tool['identity'](x, ids) == pytest.approx(1)         # 9 is too rare to count
    x[:9] = torch.cat([-x[:1], x[:1]] * 4 + [0 * x[:1]])
    assert tool['identity'](x, ids) == pytest.approx(0, abs=1e-6)
    model = make_model(encoder_folder, insert_every=3)
    src, tgt = make_sources(model, (9,)), make_sources(model, (5,), seed=1)
    states = tool['layer_states'](model, src, tgt)
    assert len(states) == len(model.decoder) + 1
    torch.testing.assert_close(states[-1], model.states(tgt, model.encoder.encode(src), src)[0])
    tool['main'](['--dataset=text', f'--data_from={corpus}', f'--encoder={encoder_folder}',
                  '--languages=bo,zh', '--block_size=64'])
    rows = capsys.readouterr().out.splitlines()
    rows = rows[rows.index('layer  cosine  identity') + 1:]
    assert len(rows) == 5 and all(-1 < float(x) < 1 for row in rows for x in row.split()[1:])
    with pytest.raises(ValueError, match='no held-out pair'):
        tool['main'](['--dataset=text', f'--data_from={corpus}', f'--encoder={encoder_folder}',
                      '--languages=bo,zh', '--block_size=64', '--mt_fraction=0'])
