# As copy.py, denoising only
from config.ablation.base import *

out_dir = 'out/ablation/no_mt.1'
mt_share = 0.0
