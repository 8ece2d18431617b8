# DeltaLM's way: each decoder layer is made from two encoder layers
from config.ablation.copy import *

out_dir = 'out/ablation/alternate.1'
share = 'alternate'
insert_every = 0
