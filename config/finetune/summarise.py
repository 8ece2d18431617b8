# Summarisation: a title for an article (Ti-SUM). The settings are the paper's: 20,000 examples,
# 50 epochs of batches of 200.
#     python finetune.py config/finetune/summarise.py --data=ti-sum.bo.jsonl \
#         --checkpoint=out/tibetan_base/best
# Across languages: --learn=zh --transfer=bo,ug,mn,kk --shots=3000 \
#     --data=csl.zh.jsonl,ti-sum.bo.jsonl,...
task = 'summarise'
learn = ('bo',)
out_dir = 'out/summarise'
max_target_len = 64
batch_tokens = 8192
accumulate = 8
max_steps = 5000
lr = 1e-4
eval_interval = 250
