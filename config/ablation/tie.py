# One set of weights for encoder and decoder
from config.ablation.base import *

out_dir = 'out/ablation/tie.1'
share = 'tie'
