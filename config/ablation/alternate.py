# DeltaLM: two encoder layers make one of the decoder
from config.ablation.copy import *

out_dir = 'out/ablation/alternate.1'
share = 'alternate'
insert_every = 0
