# As copy.py, with an output matrix of its own (the published code)
from config.ablation.base import *

out_dir = 'out/ablation/untied.1'
head = 'untied'
