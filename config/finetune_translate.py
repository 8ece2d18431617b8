# Translation, here from Chinese to Tibetan, of pairs of texts (a .tsv of two columns):
#     python finetune.py config/finetune_translate.py --data=web.bo-zh.tsv
task = 'translate'
learn = ('zh-bo',)
out_dir = 'out/translate'
batch_tokens = 2048
max_steps = 800
lr = 1e-3
dropout = 0.0                   # about one epoch of 18,000 pairs
eval_interval = 200
