# One set of weights for encoder and decoder
from config.ablation.copy import *

out_dir = 'out/ablation/tie.1'
share = 'tie'
