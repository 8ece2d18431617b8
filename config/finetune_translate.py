# Translation, here from Chinese to Tibetan, of pairs of texts (a .tsv of two columns):
#     python finetune.py config/finetune_translate.py --data=web.bo-zh.tsv
task = 'translate'
learn = ('zh-bo',)
out_dir = 'out/translate'
max_steps = 400
lr = 1e-3
eval_interval = 100
