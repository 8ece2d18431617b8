# A model on a laptop, from data/small: 25 minutes on one core.
#     python train.py config/laptop.py --data_from=MY_TEXT
dataset = 'text'
encoder = 'data/small'
out_dir = 'out/laptop'
languages = ('bo', 'zh')
block_size = 128
batch_tokens = 2048
max_steps = 400
lr = 5e-4                        # 1e-3 is too much for this encoder
dropout = 0.0                    # few texts are read twice
val_fraction = 0.02              # as for data/small, so that it has not read the held-out text
eval_segments = 150
eval_translations = 150          # chrF++ at the end
