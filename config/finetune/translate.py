# Translation, here from Chinese to Tibetan, learned from pairs (a .tsv of two columns):
#     python finetune.py config/finetune/translate.py --data=web.bo-zh.tsv
# These settings are for data/small and about 20,000 pairs. The paper: 50,000 pairs, batches of 200
# and 50 epochs: batch_tokens=8192, accumulate=8, max_steps=12500, lr=1e-4, dropout=0.1.
encoder = 'data/small'
learn = ('zh-bo',)
batch_tokens = 2048
max_steps = 800
lr = 5e-4
dropout = 0.0                   # 18,000 pairs are read 2.4 times
eval_interval = 200
