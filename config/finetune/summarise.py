# Summarisation: a title for an article.
#     python finetune.py config/finetune/summarise.py --data=news.bo.jsonl \
#         --checkpoint=out/laptop/best
# These settings are for about 500 articles. The paper: 20,000, batches of 200 and 50 epochs:
# batch_tokens=8192, accumulate=8, max_steps=5000, lr=1e-4.
# Across languages: --learn=zh --transfer=bo,ug,mn,kk --shots=3000 \
#     --data=csl.zh.jsonl,news.bo.jsonl,...
task = 'summarise'
encoder = 'data/small'
learn = ('bo',)
out_dir = 'out/summarise'
max_target_len = 64
val_fraction = 0.1
test_fraction = 0.1
batch_tokens = 2048
max_steps = 400
lr = 5e-4
eval_interval = 100
