# Reading comprehension: an answer from a question and its context (TibetanQA, CMRC 2018; the paper
# uses 10,000 examples). data/README.md says how to convert these data sets.
#     python finetune.py config/finetune/answer.py --data=tibetanqa.bo.jsonl \
#         --checkpoint=out/tibetan_base/best
# Across languages: --learn=zh --transfer=bo,ug,mn,kk --shots=500 --data=cmrc.zh.jsonl,...
task = 'answer'
learn = ('bo',)
out_dir = 'out/answer'
max_target_len = 64
batch_tokens = 8192
accumulate = 8
max_steps = 2500
lr = 1e-4
eval_interval = 250
