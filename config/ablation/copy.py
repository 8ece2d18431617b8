# The paper's decoder on the nano encoder, for Tibetan and Chinese: copied layers, and a random one
# after every third. The other arms of the comparison change one or two settings: see README.md.
#     python train.py config/ablation/copy.py --data_from=MONO,PAIRS --share=none --seed=2 \
#         --out_dir=out/ablation/none.2
dataset = 'text'
encoder = 'data/nano'
out_dir = 'out/ablation/copy.1'
languages = ('bo', 'zh')
insert_every = 3
val_fraction = 0.02              # as for data/nano, so that it has not read the held-out text
block_size = 128
batch_tokens = 2048
max_steps = 400
lr = 1e-3
dropout = 0.0                    # each text is read at most once
eval_interval = 100
eval_segments = 150
eval_translations = 150
save_interval = 200
