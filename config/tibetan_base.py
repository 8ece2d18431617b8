# The paper's run (Su et al. 2025): CINO-base-v2, MC2 and THUCNews, 2 x A800-80GB for 92 hours.
#     torchrun --nproc_per_node=2 train.py config/tibetan_base.py --data_from=MC2_FOLDER,zh.jsonl
# MC2 is huggingface.co/datasets/pkupie/mc2_corpus; zh.jsonl is THUCNews, one {"text": ...} a line.
# Also as in the paper, but already the defaults: share='copy', inserted='random', mask_ratio=0.35,
# span_length=3.5, block_size=256. Not as in the published code: head='tied', so 389M parameters.
dataset = 'text'
encoder = 'hfl/cino-base-v2'     # on the Hugging Face Hub
out_dir = 'out/tibetan_base'
languages = ('bo', 'kk', 'mn', 'ug', 'zh')
insert_every = 3
batch_tokens = 600 * 2 * 256 // 12  # 600 sequences per step, source and target ...
accumulate = 12                  # ... in 12 parts
max_steps = 8 * 1_340_235 // 600    # 8 epochs of 1,340,235 documents
lr = 1e-4                        # peak; then linear decay, as in the paper
mt_fraction = 0.1                # not in the paper, which has 2,000 pairs per language
val_fraction = 0.002
eval_interval = 500
save_interval = 500
