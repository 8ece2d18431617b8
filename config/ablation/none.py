# A random decoder of the same layers as copy.py
from config.ablation.base import *

out_dir = 'out/ablation/none.1'
share = 'none'
