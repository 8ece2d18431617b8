# Reading comprehension: an answer from a question and its context. data/README.md says how to
# convert TibetanQA and CMRC 2018, and how to make questions from text, to be learned before.
#     python finetune.py config/finetune/answer.py --data=tibetanqa.bo.jsonl \
#         --checkpoint=out/laptop/best
# These settings are for about 2,000 questions. The paper: 10,000, batches of 200 and 50 epochs:
# batch_tokens=8192, accumulate=8, max_steps=2500, lr=1e-4.
# Across languages: --learn=zh --transfer=bo,ug,mn,kk --shots=500 --data=cmrc.zh.jsonl,...
task = 'answer'
encoder = 'data/small'
learn = ('bo',)
out_dir = 'out/answer'
max_target_len = 128
rotate_context = True             # what is nearest to the question is read first, and not cut off
val_fraction = 0.1
test_fraction = 0.1
batch_tokens = 2048
max_steps = 800
lr = 5e-4
eval_interval = 200
