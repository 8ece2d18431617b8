# An inserted layer begins with output projections of zero, so it changes little at first
from config.ablation.copy import *

out_dir = 'out/ablation/quiet.1'
inserted = 'quiet'
