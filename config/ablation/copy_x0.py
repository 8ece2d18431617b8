# The paper's BASE-A: copied layers only
from config.ablation.copy import *

out_dir = 'out/ablation/copy_x0.1'
insert_every = 0
