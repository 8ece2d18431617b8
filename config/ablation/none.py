# A random decoder of the same layers as copy.py
from config.ablation.copy import *

out_dir = 'out/ablation/none.1'
share = 'none'
