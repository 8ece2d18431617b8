# Encoder and decoder have one set of weights
from config.ablation.copy import *

out_dir = 'out/ablation/tie.1'
share = 'tie'
