# As copy.py, with an output matrix of its own (the published code)
from config.ablation.copy import *

out_dir = 'out/ablation/untied.1'
head = 'untied'
