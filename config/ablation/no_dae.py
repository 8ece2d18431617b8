# As copy.py, translation only
from config.ablation.copy import *

out_dir = 'out/ablation/no_dae.1'
mt_fraction = 1.0
