# As copy.py, denoising only
from config.ablation.copy import *

out_dir = 'out/ablation/no_mt.1'
mt_fraction = 0.0
