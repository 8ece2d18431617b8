# A model from an encoder that has learned Tibetan: see README.md, "Your encoder, your text".
#     python train.py config/laptop.py --data_from=MY_TEXT
dataset = 'text'
encoder = 'out/encoder'          # what config/vocabulary/new_script.py wrote
out_dir = 'out/laptop'
languages = ('bo', 'zh')
block_size = 128
batch_tokens = 2048
max_steps = 300
lr = 5e-4
dropout = 0.0                    # few texts are read twice
val_fraction = 0.02
eval_segments = 150
eval_translations = 50           # chrF++ at the end
