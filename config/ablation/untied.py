# As copy.py, with a separate output matrix, as in the published code
from config.ablation.copy import *

out_dir = 'out/ablation/untied.1'
head = 'untied'
